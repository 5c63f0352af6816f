//! Colour scales for numbers.

use plotters::style::RGBColor;

use crate::plot::axis::Axis;
use crate::plot::names::short;
use crate::plot::style::{FigureStyle, Theme};
use crate::statistics::quantile;

/// Fraction of the values on a side of 1 that its colours cover, and the factor beyond it, in logarithms, from which the
/// extremes do not stretch the scale.
const COVERED: f64 = 0.9;
const STRETCH: f64 = 3.0;

/// A mapping from numbers to colours.
#[derive(Clone, Debug, PartialEq)]
pub struct Colours {
    axis: Axis,
    /// Part of the scale that is used, from 0 to 1.
    part: (f64, f64),
    about_one: bool,
    /// Whether values lie beyond the low and the high end.
    pub cut: (bool, bool),
    theme: Theme,
}

impl Colours {
    /// Returns a scale from dark to bright over finite values, within the requested limits.
    pub fn sequential(values: &[f64], log: bool, style: &FigureStyle) -> Self {
        let (low, high) = range(values).unwrap_or((0.0, 1.0));
        let (from, to) = (style.clim.low.unwrap_or(low), style.clim.high.unwrap_or(high));
        let log = log && from > 0.0;
        let axis = if from < to {
            Axis::exact(from, to, log)
        } else if log {
            Axis::log(to, from)
        } else {
            Axis::linear(to, from)
        };
        Self { axis, part: (0.0, 1.0), about_one: false, cut: (low < from, high > to), theme: style.theme }
    }

    /// Returns a scale for ratios: blue below 1, white at 1, red above. Each side covers its own values. A few extremes do
    /// not stretch a side, and lie beyond its end.
    pub fn about_one(values: &[f64], style: &FigureStyle) -> Self {
        let logs: Vec<_> = values.iter().filter(|ratio| **ratio > 0.0).map(|ratio| ratio.ln()).collect();
        let end = |sign: f64| {
            let side: Vec<_> = logs.iter().map(|log| log * sign).filter(|log| *log > 0.0).collect();
            let (_, most) = range(&side)?;
            let covered = quantile(&side, COVERED);
            Some((sign * if most > STRETCH * covered { covered } else { most }).exp())
        };
        let low = style.clim.low.filter(|low| *low > 0.0 && *low < 1.0).or_else(|| end(-1.0)).unwrap_or(1.0);
        let high = style.clim.high.filter(|high| *high > 1.0).or_else(|| end(1.0)).unwrap_or(1.0);
        // Ratios that differ from 1 in their last digits have no colour.
        let (low, high) = if high / low < 1.0 + 1e-6 { (0.9, 1.1) } else { (low, high) };
        let part = (if low < 1.0 { 0.0 } else { 0.5 }, if high > 1.0 { 1.0 } else { 0.5 });
        let beyond = |below: bool| {
            values
                .iter()
                .any(|&ratio| if below { ratio < low * (1.0 - 1e-9) } else { ratio > high * (1.0 + 1e-9) })
        };
        let cut = (beyond(true), beyond(false));
        Self { axis: Axis::about_one(low, high), part, about_one: true, cut, theme: style.theme }
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
        let share = self.part.0 + share * (self.part.1 - self.part.0);
        if self.about_one { self.theme.diverging(share) } else { self.theme.sequential(share) }
    }

    /// Returns notes on the ends of the scale beyond which some of these values lie.
    pub fn notes_on_ends(&self, values: &[f64]) -> impl Iterator<Item = String> {
        let (low, high) = range(values).unwrap_or_default();
        let ends = self.axis.range();
        let all = [(self.cut.0, ends.0, "lowest", low), (self.cut.1, ends.1, "highest", high)];
        let cut = all.into_iter().filter(|(cut, ..)| *cut);
        cut.map(|(_, end, what, most)| {
            format!("colours end at {}, the {what} is {}", short(end), short(most))
        })
    }

    /// Whether a cell of this value is hatched, because greys alone do not tell ratios above 1 from those below.
    pub fn hatches(&self, value: f64) -> bool {
        self.about_one && self.theme == Theme::Mono && value > 1.0
    }
}

/// Returns the lowest and highest of finite values.
pub fn range(values: &[f64]) -> Option<(f64, f64)> {
    let finite = values.iter().copied().filter(|value| value.is_finite());
    finite.map(|value| (value, value)).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}

#[cfg(test)]
mod tests {
    use super::{Colours, FigureStyle, Theme};

    #[test]
    fn useful_ratios_are_not_white() {
        let style = FigureStyle::default();
        // Nine settings help by up to 15 %, one is worse by four decades.
        let mut ratios: Vec<_> = (0..9).map(|i| 0.85 + 0.015 * f64::from(i)).collect();
        ratios.push(1e4);
        let colours = Colours::about_one(&ratios, &style);
        assert!(colours.share(0.85) < 0.01 && colours.share(0.92) < 0.3, "{colours:?}");
        assert_eq!(colours.cut, (false, false));
        ratios.extend([1.5; 20]);
        assert_eq!(Colours::about_one(&ratios, &style).cut, (false, true), "a lonely extreme");
        let below = Colours::about_one(&[0.5, 0.9], &style);
        assert_eq!(below.colour(1.0), Theme::Print.diverging(0.5), "white is 1 also without values above");
    }

    #[test]
    fn greys_show_the_side() {
        let mono = FigureStyle { theme: Theme::Mono, ..FigureStyle::default() };
        let colours = Colours::about_one(&[0.5, 2.0], &mono);
        assert!(colours.hatches(2.0) && !colours.hatches(0.5) && !colours.hatches(1.0));
        assert_eq!(colours.colour(2.0), colours.colour(0.5), "the hatching tells them apart");
        assert!(!Colours::about_one(&[0.5, 2.0], &FigureStyle::default()).hatches(2.0));
    }
}
