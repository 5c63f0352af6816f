//! Timelines: panels over tokens, one below the other on a shared x axis, or one alone.

use std::ops::Range;

use plotters::style::text_anchor::HPos;
use plotters::style::{Color, RGBAColor, RGBColor};

use crate::io::labels::Labels;
use crate::plot::axis::Axis;
use crate::plot::canvas::{Canvas, svg};
use crate::plot::envelope::{Envelope, Point, Unshown};
use crate::plot::legend::{Legend, Swatch, mark};
use crate::plot::look::Look;
use crate::plot::series::{Metrics, Quantity, Series};
use crate::plot::theme;

/// Marks closer than this would overlap: they become one with a bar.
const MARK_SPACE: f64 = 5.0;
/// Points of the bold line where it shows means of many chunks: about one to 2 pt.
pub(super) const TREND: usize = 256;

/// A box in which values are drawn.
struct Frame<'a> {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: &'a Axis,
    y: Option<Axis>,
}

/// The lines' looks: colours of the heads, and how strong they are.
struct Looks {
    colours: Vec<RGBColor>,
    opacity: f64,
    width: f64,
}

/// Draws panels of the same width one below the other.
pub fn figure(metrics: &Metrics, labels: Option<&Labels>, shown: &[&Series], look: &Look) -> String {
    let looks = Looks::of(metrics, shown);
    let legend = legend(metrics, labels, shown, &looks);
    let x = Axis::tokens(&metrics.tokens);
    let axes: Vec<_> = shown.iter().map(|series| y_axis(series)).collect();
    let labels_width =
        axes.iter().flatten().flat_map(|axis| &axis.ticks).filter_map(|tick| tick.label.as_ref());
    let labels_width = labels_width.map(|label| theme::text_width(label, theme::SMALL)).fold(10.0, f64::max);
    let two_lines = shown.iter().any(|series| title(series.quantity).len() > 1);
    let titles = theme::TITLES + if two_lines { theme::TITLE } else { 0.0 };
    let (left, right) = (titles + labels_width + theme::TICK + 5.0, theme::WIDTH - theme::RIGHT);

    let panel = if shown.len() > 1 { theme::STACKED } else { theme::ALONE };
    let top = 4.0 + legend.height(right - left) + 6.0;
    let height = top + panel * shown.len() as f64 + theme::GAP * (shown.len() - 1) as f64 + theme::BOTTOM;
    svg(theme::WIDTH, height, |canvas| {
        legend.draw(canvas, left, 4.0, right - left);
        for (i, (series, y)) in shown.iter().zip(axes).enumerate() {
            let top = top + i as f64 * (panel + theme::GAP);
            let frame = Frame { left, right, top, bottom: top + panel, x: &x, y };
            if let Some(labels) = labels {
                frame.draw_labels(canvas, labels, &metrics.tokens);
            }
            frame.draw_axes(canvas, series.quantity, i + 1 == shown.len());
            frame.draw_series(canvas, series, &looks);
        }
    })
}

impl Looks {
    fn of(metrics: &Metrics, shown: &[&Series]) -> Self {
        let binned = shown.iter().flat_map(|series| &series.heads).any(|line| line.bin_width() > 1);
        let (opacity, width) = match metrics.heads.len() {
            ..=theme::TELLABLE_HEADS if binned => (0.5, 0.4),
            _ if binned => (0.35, 0.4),
            1 => (1.0, 0.9),
            2..=theme::TELLABLE_HEADS => (0.75, 0.6),
            _ => (0.45, 0.5),
        };
        Self { colours: theme::head_colours(metrics.heads.len().max(1)), opacity, width }
    }
}

fn legend(metrics: &Metrics, labels: Option<&Labels>, shown: &[&Series], looks: &Looks) -> Legend {
    let mut legend = Legend::default();
    let heads = &metrics.heads;
    let only_ratio = shown.iter().all(|series| series.quantity == Quantity::LossRatio);
    let chunks =
        shown.iter().filter_map(|series| series.bold()?.trend(TREND)).map(|(chunks, _)| chunks).max();
    let bold = match (heads.len() > 1, chunks) {
        (true, _) if only_ratio => Some("ratio of sums over heads".to_string()),
        (true, _) => Some("mean over heads".to_string()),
        (false, Some(chunks)) => Some(format!("mean of {chunks} chunks")),
        (false, None) => None,
    };
    legend.entries.extend(bold.map(|text| (Swatch::Line(theme::BLACK, 1.0, theme::BOLD), text)));
    if heads.len() > theme::TELLABLE_HEADS {
        let text = format!("heads {} to {}", heads[0], heads[heads.len() - 1]);
        legend.entries.push((Swatch::Fan(looks.colours.clone()), text));
    } else if heads.len() > 1 {
        legend.entries.extend(heads.iter().zip(&looks.colours).map(|(head, &colour)| {
            (Swatch::Line(colour, looks.opacity.max(0.75), theme::BOLD), format!("head {head}"))
        }));
    }
    let within = |place: u64| metrics.tokens.contains(&place);
    if labels.is_some_and(|labels| labels.boundaries.iter().any(|&place| within(place))) {
        legend.entries.push((Swatch::Rule, "segment change".to_string()));
    }
    if labels
        .is_some_and(|labels| labels.repeats.iter().any(|range| overlap(range, &metrics.tokens).is_some()))
    {
        legend.entries.push((Swatch::Shade, "repeat".to_string()));
    }
    let count = |reason| shown.iter().map(|series| series.count(reason)).sum::<u64>();
    match (count(Unshown::NotFinite) > 0, count(Unshown::NotPositive) > 0) {
        (true, true) => {
            legend.entries.push((Swatch::Mark, "not finite (top), not above 0 (bottom)".to_string()));
        }
        (true, false) => legend.entries.push((Swatch::Mark, "not finite".to_string())),
        (false, true) => legend.entries.push((Swatch::Mark, "not above 0".to_string())),
        (false, false) => {}
    }

    let ratio = shown.iter().any(|series| series.quantity == Quantity::LossRatio);
    if ratio && heads.len() > 1 && shown.len() > 1 {
        legend.notes.push("loss ratio: ratio of sums over heads".to_string());
    }
    if metrics.sequences > 1 {
        let what = if heads.len() > 1 { "each head: " } else { "" };
        legend.notes.push(format!("{what}mean over {} sequences", metrics.sequences));
    }
    let bin = shown.iter().flat_map(|series| &series.heads).map(Envelope::bin_width).max().unwrap_or(1);
    if bin > 1 {
        legend.notes.push(format!("faint lines: first, lowest, highest and last of every {bin} chunks"));
    }
    if let (Some(chunks), true) = (chunks, heads.len() > 1) {
        legend.notes.push(format!("bold line: mean of {chunks} chunks"));
    }
    legend
}

pub(super) fn y_axis(series: &Series) -> Option<Axis> {
    let (low, high) = series.range()?;
    Some(match series.quantity {
        Quantity::Decay | Quantity::Momentum => Axis::share(low, high),
        // Near a divergence it grows by many powers of ten: a linear axis would flatten all before.
        Quantity::LossRatio if low > 0.0 && high > 100.0 * low => Axis::log(low, high),
        Quantity::LossRatio => Axis::linear(low, high),
        Quantity::Surprise | Quantity::LearningRate => Axis::log(low, high),
    })
}

/// The axis title, a line each.
pub(super) fn title(quantity: Quantity) -> &'static [&'static str] {
    match quantity {
        Quantity::Surprise => &["surprise ‖g‖"],
        Quantity::LossRatio => &["loss ratio", "(before ÷ at W)"],
        Quantity::LearningRate => &["learning rate θ"],
        Quantity::Decay => &["decay α"],
        Quantity::Momentum => &["momentum η"],
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> Option<Range<u64>> {
    let both = a.start.max(b.start)..a.end.min(b.end);
    (!both.is_empty()).then_some(both)
}

/// Ascending intervals, those closer than `space` joined.
fn joined(intervals: impl Iterator<Item = (f64, f64)>, space: f64) -> Vec<(f64, f64)> {
    let mut joined = Vec::<(f64, f64)>::new();
    for (start, end) in intervals {
        match joined.last_mut() {
            Some(last) if start - last.1 < space => last.1 = last.1.max(end),
            _ => joined.push((start, end)),
        }
    }
    joined
}

impl Frame<'_> {
    fn x(&self, token: f64) -> f64 {
        self.left + self.x.fraction(token) * (self.right - self.left)
    }

    fn y(&self, share: f64) -> f64 {
        self.bottom - share * (self.bottom - self.top)
    }

    /// Joined where they are closer than can be seen: a file with a segment a token stays a small figure.
    fn draw_labels(&self, canvas: &mut Canvas, labels: &Labels, tokens: &Range<u64>) {
        let repeats = labels.repeats.iter().filter_map(|range| overlap(range, tokens));
        let repeats = repeats.map(|range| (self.x(range.start as f64), self.x(range.end as f64)));
        for (start, end) in joined(repeats, 0.05) {
            canvas.rectangle((start, self.top), (end, self.bottom), theme::SHADE.to_rgba());
        }
        let boundaries = labels.boundaries.iter().filter(|place| tokens.contains(place));
        let boundaries = boundaries.map(|&place| (self.x(place as f64), self.x(place as f64)));
        let mut last = f64::NEG_INFINITY;
        for (x, _) in joined(boundaries, 0.05) {
            if x - last >= 0.5 {
                canvas.line(&[(x, self.top), (x, self.bottom)], theme::RULE.to_rgba(), 0.5);
                last = x;
            }
        }
    }

    fn draw_axes(&self, canvas: &mut Canvas, quantity: Quantity, lowest: bool) {
        let ink = theme::BLACK.to_rgba();
        canvas.line(
            &[(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)],
            ink,
            theme::SPINE,
        );
        for tick in &self.x.ticks {
            let x = self.left + tick.at * (self.right - self.left);
            canvas.line(&[(x, self.bottom), (x, self.bottom + theme::TICK)], ink, theme::SPINE);
            if let (true, Some(label)) = (lowest, &tick.label) {
                let at = (x, self.bottom + theme::TICK + 6.0);
                canvas.text(label, at, theme::SMALL, theme::BLACK, HPos::Center);
            }
        }
        if lowest {
            let middle = f64::midpoint(self.left, self.right);
            let at = (middle, self.bottom + theme::BOTTOM - 7.0);
            canvas.text("tokens", at, theme::TITLE, theme::BLACK, HPos::Center);
        }
        for tick in self.y.iter().flat_map(|axis| &axis.ticks) {
            let y = self.y(tick.at);
            let length = if tick.label.is_some() { theme::TICK } else { theme::TICK / 2.0 };
            canvas.line(&[(self.left - length, y), (self.left, y)], ink, theme::SPINE);
            if let Some(label) = &tick.label {
                let at = (self.left - theme::TICK - 2.0, y);
                canvas.text(label, at, theme::SMALL, theme::BLACK, HPos::Right);
            }
        }
        let middle = f64::midpoint(self.top, self.bottom);
        for (i, line) in title(quantity).iter().enumerate() {
            let at = (theme::TITLES / 2.0 + i as f64 * (theme::TITLE + 1.0), middle);
            canvas.upward_text(line, at, theme::TITLE, theme::BLACK);
        }
    }

    fn draw_series(&self, canvas: &mut Canvas, series: &Series, looks: &Looks) {
        if let Some(y) = &self.y {
            for (line, &colour) in series.heads.iter().zip(&looks.colours) {
                self.draw_line(
                    canvas,
                    y,
                    &line.stretches(),
                    theme::faint(colour, looks.opacity),
                    looks.width,
                );
            }
            if let Some((_, trend)) = series.bold().and_then(|line| line.trend(TREND)) {
                self.draw_line(canvas, y, &trend, theme::BLACK.to_rgba(), 0.75 * theme::BOLD);
            } else if let Some(all) = &series.all {
                self.draw_line(canvas, y, &all.stretches(), theme::BLACK.to_rgba(), theme::BOLD);
            }
        } else {
            let text =
                if series.count(Unshown::NotPositive) > 0 { "no values above 0" } else { "no finite values" };
            let centre = (f64::midpoint(self.left, self.right), f64::midpoint(self.top, self.bottom));
            let half = (theme::text_width(text, theme::TITLE) / 2.0 + 4.0, theme::TITLE);
            let (from, to) = ((centre.0 - half.0, centre.1 - half.1), (centre.0 + half.0, centre.1 + half.1));
            canvas.rectangle(from, to, theme::PAPER.to_rgba());
            canvas.text(text, centre, theme::TITLE, theme::GREY, HPos::Center);
        }
        self.draw_unshown(canvas, series, Unshown::NotFinite);
        self.draw_unshown(canvas, series, Unshown::NotPositive);
    }

    fn draw_line(&self, canvas: &mut Canvas, y: &Axis, stretches: &[Vec<Point>], ink: RGBAColor, width: f64) {
        let place = |&(token, value): &Point| (self.x(token), self.y(y.fraction(value)));
        for stretch in stretches {
            let points: Vec<_> = stretch.iter().map(place).collect();
            if let [point] = points[..] {
                canvas.dot(point, width + 0.4, ink);
            } else {
                canvas.line(&points, ink, width);
            }
        }
    }

    /// Marks on the edge where values are missing from any head: above for NaN and infinities, below for ≤ 0.
    fn draw_unshown(&self, canvas: &mut Canvas, series: &Series, reason: Unshown) {
        let (edge, inwards) = match reason {
            Unshown::NotFinite => (self.top, 1.0),
            Unshown::NotPositive => (self.bottom, -1.0),
        };
        let places = series.heads.iter().flat_map(|line| line.places(reason));
        let mut places: Vec<_> =
            places.map(|tokens| (self.x(*tokens.start()), self.x(*tokens.end()))).collect();
        places.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (start, end) in joined(places.into_iter(), MARK_SPACE) {
            mark(canvas, (start, edge), inwards);
            if end > start {
                let (y0, y1) = (edge.min(edge + 1.2 * inwards), edge.max(edge + 1.2 * inwards));
                canvas.rectangle((start, y0), (end, y1), theme::ALARM.to_rgba());
            }
        }
    }
}
