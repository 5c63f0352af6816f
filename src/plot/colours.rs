//! Colour scales for numbers, and the colour bar.

use plotters::style::text_anchor::HPos;
use plotters::style::{Color, RGBColor};

use crate::plot::axis::Axis;
use crate::plot::canvas::Canvas;
use crate::plot::frame::{fitted_y, title_lines};
use crate::plot::style::Theme;
use crate::plot::{font, theme};

/// Width of the bar; below, the width with its labels and title.
const BAR: f64 = 8.0;
pub const BAR_WITH_LABELS: f64 = 58.0;

/// A mapping from numbers to colours.
pub struct Colours {
    axis: Axis,
    diverging: bool,
    theme: Theme,
}

impl Colours {
    /// Returns a scale from dark to bright over exactly the values from `low` to `high`.
    pub fn sequential(low: f64, high: f64, log: bool, theme: Theme) -> Self {
        let axis = if log { Axis::log(low, high) } else { Axis::linear(low, high) };
        Self { axis, diverging: false, theme }
    }

    /// Returns a scale for ratios from `low` to `high`, symmetric about 1: blue below 1, white at 1, red above.
    pub fn about_one(low: f64, high: f64, theme: Theme) -> Self {
        let most = high.max(1.0 / low).max(1.1);
        // Within a factor of three, whole digits alone would leave the side above 1 without a label.
        let end = [1.1, 1.2, 1.5, 2.0, 3.0].into_iter().find(|&end| most <= end);
        let axis = end.map_or_else(
            || Axis::log(1.0 / most, most),
            |end| {
                let values =
                    [(1.0 / end, format!("{:.2}", 1.0 / end)), (1.0, "1".to_owned()), (end, end.to_string())];
                Axis::of_values(&values, true, |_| 0.06)
            },
        );
        Self { axis, diverging: true, theme }
    }

    pub fn colour(&self, value: f64) -> RGBColor {
        self.at(self.axis.fraction(value))
    }

    /// Returns the axis beside the bar.
    pub fn axis(&self) -> &Axis {
        &self.axis
    }

    /// Returns the position of a finite value in the scale, from 0 to 1.
    pub fn share(&self, value: f64) -> f64 {
        self.axis.fraction(value)
    }

    pub fn at(&self, share: f64) -> RGBColor {
        if self.diverging { self.theme.diverging(share) } else { self.theme.sequential(share) }
    }

    /// Draws the bar, its axis to the right, and its title, which reads upwards.
    pub fn draw_bar(&self, canvas: &mut Canvas, left: f64, top: f64, height: f64, title: &str) {
        const STEPS: usize = 64;
        let (right, bottom) = (left + BAR, top + height);
        for i in 0..STEPS {
            let (low, high) = (i as f64 / STEPS as f64, (i + 1) as f64 / STEPS as f64);
            // Each step reaches the top, so that no seam shows between steps.
            let from = (left, top);
            canvas.rectangle(
                from,
                (right, bottom - low * height),
                self.at(f64::midpoint(low, high)).to_rgba(),
            );
        }
        let axis = fitted_y(self.axis.clone(), height);
        for tick in &axis.ticks {
            let y = bottom - tick.at * height;
            let length = if tick.label.is_some() { theme::TICK } else { theme::TICK / 2.0 };
            canvas.line(&[(right, y), (right + length, y)], theme::BLACK.to_rgba(), theme::SPINE);
            if let Some(label) = &tick.label {
                canvas.text(label, (right + theme::TICK + 2.0, y), theme::SMALL, theme::BLACK, HPos::Left);
            }
        }
        let lines = title_lines(title, height);
        let widest = axis.labels().map(|(_, label)| font::width(label, theme::SMALL)).fold(0.0, f64::max);
        let first = right + theme::TICK + 2.0 + widest + 3.0 + theme::TITLE / 2.0;
        for (i, line) in lines.iter().enumerate() {
            let at = (first + i as f64 * (theme::TITLE + 1.0), top + height / 2.0);
            canvas.upward_text(line, at, theme::TITLE, theme::BLACK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Colours, Theme};

    #[test]
    fn both_sides_of_one_have_labels() {
        for most in [1.0, 1.05, 1.25, 1.9, 2.5, 3.5, 9.0, 50.0, 1e4] {
            for colours in [
                Colours::about_one(1.0 / most, 1.0, Theme::Print),
                Colours::about_one(1.0, most, Theme::Print),
            ] {
                let labelled = || colours.axis.ticks.iter().filter(|tick| tick.label.is_some());
                assert!(labelled().any(|tick| tick.at > 0.51), "{most}: {:?}", colours.axis);
                assert!(labelled().any(|tick| tick.at < 0.49), "{most}: {:?}", colours.axis);
                assert!((colours.axis.fraction(1.0) - 0.5).abs() < 1e-9, "{most}");
            }
        }
    }
}
