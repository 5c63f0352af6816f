//! Means against a parameter with their intervals, and a line for each value of another parameter. Intervals are bands for
//! few lines, otherwise bars. Means at words are not joined, because words have no scale.

use plotters::style::text_anchor::HPos;
use plotters::style::{Color, RGBColor};

use super::results::Parameter;
use super::{ALONE, AMONG, Grid, Panel, Scale, labels, panel_width, parameter_axis, symbol};
use crate::plot::axis::Axis;
use crate::plot::canvas::Canvas;
use crate::plot::downsample::Point;
use crate::plot::font;
use crate::plot::frame::{Frame, fitted_y, left_of};
use crate::plot::legend::{Legend, Swatch, mark, marker};
use crate::plot::style::Theme;
use crate::plot::theme;
use crate::statistics::Estimate;

/// Most bands that stay distinct where they overlap.
pub(super) const BANDS: usize = 3;
/// Half the width of a bar's ends.
const CAP: f64 = 1.8;
/// Distance between a line's end, with its marker, and its name; below, the largest fraction of the sheet for names.
const APART: f64 = 5.0;
const WIDEST: f64 = 0.2;
/// Distance between the marks of lines that lost a run at the same place.
const STACK: f64 = 5.0;

pub fn draw(figure: &Grid) -> String {
    let lines = figure.hue().map_or(1, |hue| hue.values.len());
    let theme = figure.style.theme;
    let colours = colours(figure.hue(), theme);
    let mut legend = Legend::default();
    let name = |hue: &Parameter| -> Vec<_> {
        labels(hue).iter().map(|label| format!("{} {label}", symbol(&hue.name))).collect()
    };
    let names = figure.hue().map(name).unwrap_or_default();
    let texts = names.iter().cloned().enumerate();
    legend.entries.extend(texts.map(|(i, text)| (Swatch::Marked(colours[i], i, theme.dash(i)), text)));
    let numbers = figure.x().is_numeric();
    let bands = numbers && lines <= BANDS;
    let spread = if bands {
        ", bands: 95 % interval (Student’s t)"
    } else {
        ", bars: 95 % interval (Student’s t)"
    };
    let (y, cut) = y_axis(figure);
    figure.notes(&mut legend, spread);
    if cut {
        legend.notes.push("intervals cut at the edge".to_owned());
    }
    let (columns, _) = figure.grid();
    let default = if figure.panels.len() > 1 { AMONG } else { ALONE };
    let height = figure.panel_height(&legend, default);
    let y = fitted_y(y, height);
    let titles = figure.y_title_lines(&figure.title, height);
    let ends = if numbers { line_ends(figure, &names, &y, height) } else { None };
    let widest = names.iter().map(|name| font::width(name, theme::SMALL)).fold(0.0, f64::max);
    let ends = ends.filter(|_| widest < WIDEST * figure.style.sheet_width()).unwrap_or_default();
    let mut right = theme::RIGHT;
    if !ends.is_empty() {
        legend.entries.drain(..names.len());
        right = right.max(APART + widest + theme::EDGE);
    }
    let width = panel_width(figure.style.sheet_width() - left_of([&y], titles.len()) - right, columns);
    let scale = Scale::from_parameter(figure.x());
    let (x, places) = parameter_axis(figure.x(), scale, width);
    let painter =
        LinePainter { theme, colours, places, bands, joined: numbers, slots: scale == Scale::Slots };
    let draw = |canvas: &mut Canvas, frame: &Frame, panel: &Panel| {
        painter.draw(canvas, frame, panel);
        for (name, &share) in names.iter().zip(&ends) {
            let at = (frame.right() + APART, frame.bottom() - share * frame.height);
            canvas.text(name, at, theme::SMALL, theme::BLACK, HPos::Left);
        }
    };
    figure.sheet(&legend, (&x, &y), &titles, (height, right), draw, |_, _| ())
}

/// Returns the ends of the lines as fractions of the axis, if names fit beside them. That needs a single panel whose lines
/// all end at the last value of x, far enough apart.
fn line_ends(figure: &Grid, names: &[String], y: &Axis, height: f64) -> Option<Vec<f64>> {
    let ([panel], 2..) = (&figure.panels[..], names.len()) else { return None };
    let last = figure.x().values.len() - 1;
    let end = |line| Some(y.fraction(panel.cells.get(&(line, last))?.estimate()?.mean));
    let ends = (0..names.len()).map(end).collect::<Option<Vec<_>>>()?;
    let mut sorted = ends.clone();
    sorted.sort_by(f64::total_cmp);
    let apart = sorted.windows(2).all(|pair| (pair[1] - pair[0]) * height >= theme::SMALL + 1.0);
    apart.then_some(ends)
}

/// Returns the colours of the lines: ordered for numbers, as different as possible for words.
pub(super) fn colours(hue: Option<&Parameter>, theme: Theme) -> Vec<RGBColor> {
    let Some(hue) = hue else { return vec![theme.category(1)] };
    let n = hue.values.len();
    // Ordered greys are too pale for lines, which dashes distinguish instead.
    if hue.is_numeric() && n > 2 && theme != Theme::Mono {
        (0..n).map(|i| theme.sequential(i as f64 / (n - 1) as f64)).collect()
    } else {
        (0..n).map(|i| theme.category(i + 1)).collect()
    }
}

/// Returns an axis around all means and their intervals, and whether it cuts any. Intervals wider than three times the
/// range of the means are cut.
pub(super) fn y_axis(figure: &Grid) -> (Axis, bool) {
    let Some((low, high)) = figure.range() else { return (Axis::share(0.0, 1.0), false) };
    let log = figure.is_log();
    let (floor, ceiling) = if log {
        let span = (high / low).max(1.5);
        ((low / span).max(f64::MIN_POSITIVE), (high * span).min(f64::MAX))
    } else {
        let span = (high - low).max(high.abs() * 0.05);
        ((low - span).max(f64::MIN), (high + span).min(f64::MAX))
    };
    let ends = figure.cells().filter_map(|cell| cell.estimate()?.interval());
    let (mut from, mut to, mut cut) = (low, high, false);
    for (a, b) in ends {
        cut |= a < floor || b > ceiling;
        from = from.min(a.max(floor));
        to = to.max(b.min(ceiling));
    }
    (if log { Axis::log(from, to) } else { Axis::linear(from, to) }, cut)
}

/// Draws panels of lines.
struct LinePainter {
    theme: Theme,
    colours: Vec<RGBColor>,
    /// Position of each value of x on its axis.
    places: Vec<f64>,
    bands: bool,
    joined: bool,
    slots: bool,
}

impl LinePainter {
    fn draw(&self, canvas: &mut Canvas, frame: &Frame, panel: &Panel) {
        let means: Vec<_> = (0..self.colours.len()).map(|line| self.stretches(panel, line)).collect();
        for (line, stretches) in means.iter().enumerate() {
            for stretch in stretches {
                if self.bands {
                    self.draw_band(canvas, frame, line, stretch);
                } else {
                    self.draw_bars(canvas, frame, line, stretch);
                }
            }
        }
        for (line, stretches) in means.iter().enumerate() {
            let colour = self.colours[line];
            for stretch in stretches {
                let points: Vec<_> = stretch
                    .iter()
                    .map(|&(x, estimate)| self.place(frame, line, (x, estimate.mean)))
                    .collect();
                if self.joined && points.len() > 1 {
                    canvas.dashed_line(&points, self.theme.dash(line), colour.to_rgba(), theme::SERIES);
                }
                for point in points {
                    marker(canvas, point, line, colour);
                }
            }
        }
        if means.iter().all(Vec::is_empty) {
            frame.draw_message(canvas, "no finite values");
        }
        self.draw_lost(canvas, frame, panel);
    }

    fn stretches(&self, panel: &Panel, line: usize) -> Vec<Vec<(f64, Estimate)>> {
        stretches(panel, line, &self.places)
    }

    /// Returns the position of a point. Lines lie side by side in unjoined slots, so that bars do not hide each other.
    fn place(&self, frame: &Frame, line: usize, (x, y): Point) -> Point {
        let lines = self.colours.len() as f64;
        let aside =
            if self.slots && !self.joined { (line as f64 - (lines - 1.0) / 2.0) * 0.5 / lines } else { 0.0 };
        frame.place((x + aside, y))
    }

    fn draw_band(&self, canvas: &mut Canvas, frame: &Frame, line: usize, stretch: &[(f64, Estimate)]) {
        let ends = stretch.iter().filter_map(|&(x, estimate)| Some((x, estimate.interval()?)));
        let ends: Vec<_> = ends.collect();
        if ends.len() < 2 {
            return self.draw_bars(canvas, frame, line, stretch);
        }
        let upper = ends.iter().map(|&(x, (_, high))| self.place(frame, line, (x, high)));
        let lower = ends.iter().rev().map(|&(x, (low, _))| self.place(frame, line, (x, low)));
        let outline: Vec<_> = upper.chain(lower).collect();
        canvas.polygon(&outline, theme::faint(self.colours[line], 0.2));
    }

    fn draw_bars(&self, canvas: &mut Canvas, frame: &Frame, line: usize, stretch: &[(f64, Estimate)]) {
        let ink = self.colours[line].to_rgba();
        for &(x, estimate) in stretch {
            let Some((low, high)) = estimate.interval() else { continue };
            let (from, to) = (self.place(frame, line, (x, low)), self.place(frame, line, (x, high)));
            canvas.line(&[from, to], ink, theme::SPINE);
            for (x, y) in [from, to] {
                // A bar that is cut at the edge has no cap there.
                if y > frame.top && y < frame.bottom() {
                    canvas.line(&[(x - CAP, y), (x + CAP, y)], ink, theme::SPINE);
                }
            }
        }
    }

    /// Draws a mark on the upper edge where runs were lost. With several lines, the markers of the affected ones follow below.
    fn draw_lost(&self, canvas: &mut Canvas, frame: &Frame, panel: &Panel) {
        for (value, &x) in self.places.iter().enumerate() {
            let lines = 0..self.colours.len();
            let lost: Vec<_> = lines
                .filter(|&line| panel.cells.get(&(line, value)).is_some_and(|cell| cell.lost > 0))
                .collect();
            let Some(x) = (!lost.is_empty()).then(|| frame.left + frame.x.fraction(x) * frame.width) else {
                continue;
            };
            mark(canvas, (x, frame.top), 1.0);
            if self.colours.len() > 1 {
                for (i, &line) in lost.iter().enumerate() {
                    marker(canvas, (x, frame.top + 7.0 + i as f64 * STACK), line, self.colours[line]);
                }
            }
        }
    }
}

/// Returns a line's means by value of x, broken where all runs were lost.
pub(super) fn stretches(panel: &Panel, line: usize, places: &[f64]) -> Vec<Vec<(f64, Estimate)>> {
    let cells = panel.cells.range((line, 0)..(line + 1, 0));
    let mut stretches = vec![Vec::new()];
    for (&(_, x), cell) in cells {
        match (cell.estimate(), stretches.last_mut()) {
            (Some(estimate), Some(open)) => open.push((places[x], estimate)),
            _ if cell.lost > 0 => stretches.push(Vec::new()),
            _ => {}
        }
    }
    stretches.retain(|stretch| !stretch.is_empty());
    stretches
}
