//! Timelines: panels over tokens, one below the other on a shared x axis, or a single one. For one run they show the heads,
//! faint, and their mean; for several runs the means only.

use std::ops::Range;

use plotters::style::{Color, RGBAColor, RGBColor};

use crate::error::Result;
use crate::io::labels::Labels;
use crate::plot::axis::Axis;
use crate::plot::canvas::{Canvas, svg};
use crate::plot::downsample::{DownsampledLine, Point, Unshown};
use crate::plot::frame::{
    Frame, draw_letter, fitted_x, fitted_y, left_of, letter, right_of, title_left, title_lines,
};
use crate::plot::legend::{Legend, Swatch, mark};
use crate::plot::series::{Metrics, Quantity, Series};
use crate::plot::style::FigureStyle;
use crate::plot::{CsvSource, Kind, OmittedValues, Request, font, theme};

/// Distance below which marks would overlap and become one with a bar.
const MARK_SPACE: f64 = 5.0;
/// Points of a bold line that shows means of many chunks: about one per 2 pt.
pub(super) const TREND: usize = 256;
/// Minimum height of a panel with a full title; lower panels have symbols.
const LOW: f64 = 46.0;

/// A run and its name in legends.
pub struct RunMetrics {
    pub name: String,
    pub metrics: Metrics,
}

/// The content of the timelines of some files.
pub struct Selection {
    pub runs: Vec<RunMetrics>,
    pub shown: Vec<Quantity>,
    /// Name of the figure.
    pub name: &'static str,
}

impl Selection {
    /// Reads all quantities, the gates or the requested quantities. Returns `None` for other columns or another x, which are
    /// not timelines.
    pub fn read(
        files: &[CsvSource],
        request: &Request,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Option<Self>> {
        let quantity = |name: &String| Quantity::ALL.into_iter().find(|quantity| quantity.name() == name);
        let asked: Option<Vec<_>> = request.y.iter().map(quantity).collect();
        let (Some(asked), None, None) = (asked, &request.x, &request.hue) else { return Ok(None) };
        let gates = files.iter().any(|file| file.kind == Kind::Gates);
        let run = |file: &CsvSource| {
            Ok(RunMetrics {
                name: file.name.clone(),
                metrics: Metrics::read(&file.csv, &request.style, check)?,
            })
        };
        let runs = files.iter().map(run).collect::<Result<Vec<_>>>()?;
        let there = |quantity: &Quantity| {
            runs.iter().flat_map(|run| &run.metrics.series).any(|series| series.quantity == *quantity)
        };
        let name = match (&asked[..], gates) {
            ([quantity], _) => quantity.name(),
            ([], true) => "gates",
            _ => "timeline",
        };
        let shown = match &asked[..] {
            [] if gates => vec![Quantity::LearningRate, Quantity::Momentum, Quantity::Decay],
            [] => Quantity::ALL.into_iter().filter(there).collect(),
            _ => asked,
        };
        Ok(Some(Self { runs, shown, name }))
    }
}

/// Returns a line for each of these quantities about the values that cannot be drawn.
pub fn omitted(runs: &[RunMetrics], shown: &[Quantity]) -> Vec<String> {
    let of_run = |run: &RunMetrics| -> Vec<String> {
        let all = OmittedValues::from_metrics(&run.metrics).into_iter();
        let those = all.filter(|omitted| shown.iter().any(|quantity| quantity.name() == omitted.quantity));
        let name = |omitted: OmittedValues| {
            if runs.len() > 1 { format!("{}: {omitted}", run.name) } else { omitted.to_string() }
        };
        those.map(name).collect()
    };
    runs.iter().flat_map(of_run).collect()
}

/// Styles of the lines: colours, dashes and strengths of the heads or runs.
struct LineStyles<'a> {
    style: &'a FigureStyle,
    colours: Vec<RGBColor>,
    opacity: f64,
    width: f64,
    several: bool,
}

/// Draws panels of the same width one below the other.
pub fn figure(
    runs: &[RunMetrics],
    labels: Option<&Labels>,
    shown: &[Quantity],
    style: &FigureStyle,
) -> String {
    let tokens = tokens(runs);
    let styles = LineStyles::new(runs, style);
    let legend = legend(runs, labels, shown, &styles);
    let sheet = style.sheet_width();
    let legend_width = sheet - 2.0 * theme::EDGE;
    let top = theme::EDGE + legend.height(legend_width) + theme::HEAD;
    let count = shown.len().max(1);
    let default = if count > 1 { theme::STACKED } else { theme::ALONE };
    let rest = top + theme::GAP * (count - 1) as f64 + theme::BOTTOM;
    let height = style.panel_height(default, count, rest);

    let of = |quantity: Quantity| {
        let series = runs.iter().flat_map(|run| &run.metrics.series);
        series.filter(|series| series.quantity == quantity).collect::<Vec<_>>()
    };
    let panels: Vec<_> = shown.iter().map(|&quantity| (quantity, of(quantity))).collect();
    let axes: Vec<_> =
        panels.iter().map(|(quantity, series)| y_axis(*quantity, series, styles.several, style)).collect();
    let bare = Axis::bare();
    let axes: Vec<_> = axes.into_iter().map(|axis| axis.map(|axis| fitted_y(axis, height))).collect();
    let titles: Vec<_> = shown.iter().map(|&quantity| title(quantity, height)).collect();
    let lines = titles.iter().map(Vec::len).max().unwrap_or(1);
    let left = left_of(axes.iter().flatten(), lines);
    let right = right_of(&Axis::tokens(&tokens), sheet - left - theme::RIGHT);
    let width = sheet - left - right;
    let x = fitted_x(Axis::tokens(&tokens), width);

    let all = top + height * count as f64 + theme::GAP * (count - 1) as f64 + theme::BOTTOM;
    svg(style, all, |canvas| {
        legend.draw(canvas, theme::EDGE, theme::EDGE, legend_width);
        for (i, ((_, series), y)) in panels.iter().zip(&axes).enumerate() {
            let top = top + i as f64 * (height + theme::GAP);
            let frame = Frame { left, top, width, height, x: &x, y: y.as_ref().unwrap_or(&bare) };
            if let Some(labels) = labels {
                frame.draw_labels(canvas, labels, &tokens);
            }
            let lowest = i + 1 == panels.len();
            frame.draw_axes(canvas, lowest, true);
            if lowest {
                frame.draw_x_title(canvas, "tokens");
            }
            frame.draw_y_title(canvas, &titles[i], title_left(lines, &titles[i]));
            if let Some(letter) = letter(i, panels.len()) {
                draw_letter(canvas, letter, (theme::EDGE, top - theme::LETTER));
            }
            styles.draw(canvas, &frame, series, y.is_some());
        }
    })
}

/// Returns the tokens from the first of any run to the last.
pub(super) fn tokens(runs: &[RunMetrics]) -> Range<u64> {
    let tokens = runs.iter().map(|run| run.metrics.tokens.clone()).filter(|tokens| !tokens.is_empty());
    tokens.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
}

impl<'a> LineStyles<'a> {
    fn new(runs: &[RunMetrics], style: &'a FigureStyle) -> Self {
        let theme = style.theme;
        if let [run] = runs {
            let metrics = &run.metrics;
            let binned =
                metrics.series.iter().flat_map(|series| &series.heads).any(|line| line.bin_width() > 1);
            let (opacity, width) = match metrics.heads.len() {
                ..=theme::MAX_DISTINCT_HEADS if binned => (0.5, 0.4),
                _ if binned => (0.35, 0.4),
                1 if metrics.smoothed.is_some() => (0.6, 0.5),
                1 => (1.0, 0.9),
                2..=theme::MAX_DISTINCT_HEADS => (0.75, 0.6),
                _ => (0.45, 0.5),
            };
            let colours = theme.head_colours(metrics.heads.len().max(1));
            return Self { style, colours, opacity, width, several: false };
        }
        let colours = (0..runs.len()).map(|i| theme.category(i + 1)).collect();
        Self { style, colours, opacity: 1.0, width: theme::SERIES, several: true }
    }

    /// Returns the trend of a long line, unless the line is already smoothed.
    fn trend(&self, line: &DownsampledLine) -> Option<(u64, Vec<Vec<Point>>)> {
        if self.style.smoothed().is_some() { None } else { line.trend(TREND) }
    }

    /// Returns the dashes of a line. Binned lines of heads are too many and too dense for dashes.
    fn dash(&self, i: usize, line: &DownsampledLine) -> &'static [f64] {
        if !self.several && line.bin_width() > 1 { &[] } else { self.style.theme.dash(i) }
    }

    fn draw(&self, canvas: &mut Canvas, frame: &Frame, series: &[&Series], any: bool) {
        if !any {
            let not_positive: u64 = series.iter().map(|series| series.count(Unshown::NotPositive)).sum();
            let text = if not_positive > 0 { "no values above 0" } else { "no finite values" };
            frame.draw_message(canvas, text);
        }
        for (i, series) in series.iter().enumerate().filter(|_| any) {
            if self.several {
                if let Some(bold) = series.bold() {
                    let trend = self.trend(bold).map(|(_, trend)| trend);
                    let line = trend.unwrap_or_else(|| bold.stretches());
                    let style = (self.colours[i].to_rgba(), self.width, self.dash(i, bold));
                    draw_line(canvas, frame, &line, style);
                }
                continue;
            }
            for (head, (line, &colour)) in series.heads.iter().zip(&self.colours).enumerate() {
                let ink = theme::faint(colour, self.opacity);
                draw_line(canvas, frame, &line.stretches(), (ink, self.width, self.dash(head, line)));
            }
            let bold = |width| (theme::BLACK.to_rgba(), width, &[][..]);
            if let Some((_, trend)) = series.bold().and_then(|line| self.trend(line)) {
                draw_line(canvas, frame, &trend, bold(0.75 * theme::BOLD));
            } else if let Some(all) = &series.all {
                draw_line(canvas, frame, &all.stretches(), bold(theme::BOLD));
            }
        }
        draw_unshown(canvas, frame, series, Unshown::NotFinite);
        draw_unshown(canvas, frame, series, Unshown::NotPositive);
    }
}

fn legend(runs: &[RunMetrics], labels: Option<&Labels>, shown: &[Quantity], styles: &LineStyles) -> Legend {
    let mut legend = Legend::default();
    let all = || runs.iter().flat_map(|run| &run.metrics.series);
    let shown_series = || all().filter(|series| shown.contains(&series.quantity));
    let chunks =
        shown_series().filter_map(|series| styles.trend(series.bold()?)).map(|(chunks, _)| chunks).max();
    let smoothed = runs.iter().find_map(|run| run.metrics.smoothed);
    if let [run] = runs {
        of_heads(&mut legend, &run.metrics, shown, styles, chunks.or(smoothed.map(|n| n as u64)));
    } else {
        for (i, run) in runs.iter().enumerate() {
            let swatch = Swatch::Pattern(styles.colours[i], theme::SERIES, styles.style.theme.dash(i));
            legend.entries.push((swatch, font::plain(&run.name)));
        }
        if runs.iter().any(|run| run.metrics.heads.len() > 1) {
            legend.notes.push("means over heads".to_owned());
        }
    }
    let tokens = tokens(runs);
    if labels.is_some_and(|labels| labels.boundaries.iter().any(|place| tokens.contains(place))) {
        legend.entries.push((Swatch::Rule, "segment change".to_owned()));
    }
    if labels.is_some_and(|labels| labels.repeats.iter().any(|range| overlap(range, &tokens).is_some())) {
        legend.entries.push((Swatch::Shade, "repeat".to_owned()));
    }
    let count = |reason| shown_series().map(|series| series.count(reason)).sum::<u64>();
    let unshown = match (count(Unshown::NotFinite) > 0, count(Unshown::NotPositive) > 0) {
        (true, true) => Some("not finite (top), not above 0 (bottom)"),
        (true, false) => Some("not finite"),
        (false, true) => Some("not above 0"),
        (false, false) => None,
    };
    legend.entries.extend(unshown.map(|text| (Swatch::Mark, text.to_owned())));

    let heads = runs.iter().map(|run| run.metrics.heads.len()).max().unwrap_or(0);
    if shown.contains(&Quantity::LossRatio) && heads > 1 && shown.len() > 1 && shown_series().count() > 0 {
        let ratio = all().any(|series| series.quantity == Quantity::LossRatio);
        legend.notes.extend(ratio.then(|| "loss ratio: ratio of sums over heads".to_owned()));
    }
    let sequences = runs.iter().map(|run| run.metrics.sequences).max().unwrap_or(0);
    if sequences > 1 {
        let what = if heads > 1 && runs.len() == 1 { "each head: " } else { "" };
        legend.notes.push(format!("{what}mean over {sequences} sequences"));
    }
    let bin =
        shown_series().flat_map(|series| &series.heads).map(DownsampledLine::bin_width).max().unwrap_or(1);
    if bin > 1 && runs.len() == 1 {
        legend.notes.push(format!("faint lines: first, lowest, highest and last of every {bin} chunks"));
    }
    if let Some(chunks) = chunks.filter(|_| heads > 1 || runs.len() > 1) {
        let bold = if runs.len() > 1 { "lines" } else { "bold line" };
        legend.notes.push(format!("{bold}: mean of {chunks} chunks"));
    }
    if let Some(chunks) = smoothed {
        let bold = if runs.len() > 1 { "lines" } else { "bold line" };
        legend.notes.push(format!("{bold}: moving mean of {chunks} chunks"));
    }
    legend
}

/// Adds the entries of a single run's lines.
fn of_heads(
    legend: &mut Legend,
    metrics: &Metrics,
    shown: &[Quantity],
    styles: &LineStyles,
    chunks: Option<u64>,
) {
    let heads = &metrics.heads;
    let only_ratio = shown == [Quantity::LossRatio];
    let bold = match (heads.len() > 1, chunks) {
        (true, _) if only_ratio => Some("ratio of sums over heads".to_owned()),
        (true, _) => Some("mean over heads".to_owned()),
        (false, Some(chunks)) => Some(format!("mean of {chunks} chunks")),
        (false, None) => None,
    };
    legend.entries.extend(bold.map(|text| (Swatch::Line(theme::BLACK, 1.0, theme::BOLD), text)));
    if heads.len() > theme::MAX_DISTINCT_HEADS {
        let text = format!("heads {} to {}", heads[0], heads[heads.len() - 1]);
        legend.entries.push((Swatch::Fan(styles.colours.clone()), text));
    } else if heads.len() > 1 {
        let line = metrics.series.first().and_then(|series| series.heads.first());
        legend.entries.extend(heads.iter().zip(&styles.colours).enumerate().map(|(i, (head, &colour))| {
            let dash = line.map_or(&[][..], |line| styles.dash(i, line));
            (Swatch::Pattern(colour, theme::SERIES, dash), format!("head {head}"))
        }));
    }
}

/// Returns an axis around the values drawn of all runs.
pub(super) fn y_axis(
    quantity: Quantity,
    series: &[&Series],
    several: bool,
    style: &FigureStyle,
) -> Option<Axis> {
    let range = |series: &&Series| {
        if several { series.bold().and_then(DownsampledLine::range) } else { series.range() }
    };
    let (low, high) = series.iter().filter_map(range).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))?;
    // The ratio grows by many powers of ten near a divergence, and a linear axis would flatten everything before.
    let wild = quantity == Quantity::LossRatio && style.log.is_none() && high > 100.0 * low;
    let log = series.iter().any(|series| series.log) || wild;
    Some(match quantity {
        _ if log && low > 0.0 => Axis::log(low, high),
        Quantity::Decay | Quantity::Momentum => Axis::share(low, high),
        _ => Axis::linear(low, high),
    })
}

/// Returns the axis title, in lines that fit beside a panel of this height.
pub(super) fn title(quantity: Quantity, height: f64) -> Vec<String> {
    let (title, symbol) = match quantity {
        Quantity::Surprise => ("surprise ‖g‖", "‖g‖"),
        Quantity::LossRatio if height >= 1.5 * LOW => {
            return vec!["loss ratio".to_owned(), "(before ÷ at W)".to_owned()];
        }
        Quantity::LossRatio => ("loss ratio", "ratio"),
        Quantity::LearningRate => ("learning rate θ", "θ"),
        Quantity::Decay => ("decay α", "α"),
        Quantity::Momentum => ("momentum η", "η"),
    };
    title_lines(if height < LOW { symbol } else { title }, height)
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> Option<Range<u64>> {
    let both = a.start.max(b.start)..a.end.min(b.end);
    (!both.is_empty()).then_some(both)
}

/// Joins ascending intervals that are closer than `space`.
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
    fn token(&self, token: f64) -> f64 {
        self.left + self.x.fraction(token) * self.width
    }

    /// Draws the labels and joins those too close to distinguish, so that a file with a segment per token stays a small figure.
    fn draw_labels(&self, canvas: &mut Canvas, labels: &Labels, tokens: &Range<u64>) {
        let repeats = labels.repeats.iter().filter_map(|range| overlap(range, tokens));
        let repeats = repeats.map(|range| (self.token(range.start as f64), self.token(range.end as f64)));
        for (start, end) in joined(repeats, 0.05) {
            canvas.rectangle((start, self.top), (end, self.bottom()), theme::SHADE.to_rgba());
        }
        let boundaries = labels.boundaries.iter().filter(|place| tokens.contains(place));
        let boundaries = boundaries.map(|&place| (self.token(place as f64), self.token(place as f64)));
        let mut last = f64::NEG_INFINITY;
        for (x, _) in joined(boundaries, 0.05) {
            if x - last >= 0.5 {
                canvas.line(&[(x, self.top), (x, self.bottom())], theme::RULE.to_rgba(), 0.5);
                last = x;
            }
        }
    }
}

fn draw_line(
    canvas: &mut Canvas,
    frame: &Frame,
    stretches: &[Vec<Point>],
    (ink, width, dash): (RGBAColor, f64, &[f64]),
) {
    for stretch in stretches {
        let points: Vec<_> = stretch.iter().map(|&point| frame.place(point)).collect();
        if let [point] = points[..] {
            canvas.dot(point, width + 0.4, ink);
        } else {
            canvas.dashed_line(&points, dash, ink, width);
        }
    }
}

/// Draws marks on the edge where any line lacks values: above for NaN and infinities, below for ≤ 0.
fn draw_unshown(canvas: &mut Canvas, frame: &Frame, series: &[&Series], reason: Unshown) {
    let (edge, inwards) = match reason {
        Unshown::NotFinite => (frame.top, 1.0),
        Unshown::NotPositive => (frame.bottom(), -1.0),
    };
    let places = series.iter().flat_map(|series| &series.heads).flat_map(|line| line.places(reason));
    let mut places: Vec<_> =
        places.map(|tokens| (frame.token(*tokens.start()), frame.token(*tokens.end()))).collect();
    places.sort_by(|a, b| a.0.total_cmp(&b.0));
    for (start, end) in joined(places.into_iter(), MARK_SPACE) {
        mark(canvas, (start, edge), inwards);
        if end > start {
            let (y0, y1) = (edge.min(edge + 1.2 * inwards), edge.max(edge + 1.2 * inwards));
            canvas.rectangle((start, y0), (end, y1), theme::ALARM.to_rgba());
        }
    }
}
