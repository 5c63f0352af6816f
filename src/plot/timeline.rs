//! Timelines: panels over tokens, one below the other on a shared x axis, or a single one. For one run they show the heads,
//! faint, and their mean; for several runs the means only. Maps show heads × chunks.

use std::ops::Range;

use crate::error::Result;
use crate::plot::axis::Axis;
use crate::plot::chart::{Cell, Chart, Key, Line, LineStyle, Map, Panel, Swatch};
use crate::plot::colours::{Colours, range};
use crate::plot::downsample::{DownsampledLine, Point, Unshown};
use crate::plot::names::short;
use crate::plot::series::{Metrics, Quantity, Series};
use crate::plot::source::{CsvSource, Kind, Run};
use crate::plot::style::{FigureStyle, LogAxes};
use crate::plot::{Check, OmittedValues, Request, font, theme};

/// Points of a bold line that shows means of many chunks: about one per 2 pt.
const TREND: usize = 256;
/// Height of a row of a map; below, the minimum and maximum height of a map.
const ROW: f64 = 12.0;
const MIN_HEIGHT: f64 = 60.0;
const MAX_HEIGHT: f64 = 180.0;
/// Name of the line of the all-zero answer.
pub(super) const ZEROS: &str = "all zeros";
/// Largest quotient between an all-zero answer's loss ratio and the memory's that a linear axis shows.
const MAX_LINEAR: f64 = 10.0;
/// Most cells of a map along the tokens, 1 pt each in the widest column of a venue.
const CELLS: usize = 400;

/// A run and its name in legends.
pub struct RunMetrics {
    pub name: String,
    pub metrics: Metrics,
    /// Facts of its run.json.
    pub run: Run,
}

/// Returns the chart of all quantities, the gates or the requested quantities. Returns `None` for other columns or another
/// x, which are not timelines.
pub fn selected(files: &[CsvSource], request: &Request, check: &mut Check) -> Result<Option<Chart>> {
    let asked: Option<Vec<_>> = request.y.iter().map(|name| Quantity::from_name(name)).collect();
    let others = request.x.is_some() || request.hue.is_some() || !request.filter.is_empty();
    let (Some(asked), false) = (asked, others) else { return Ok(None) };
    let gates = files.iter().any(|file| file.kind == Kind::Gates);
    let read = |file: &CsvSource| {
        let metrics = Metrics::read(&file.csv, &request.style, &request.part, &mut *check)?;
        Ok(RunMetrics { name: font::plain(&file.name), metrics, run: file.run.clone() })
    };
    let runs = files.iter().map(read).collect::<Result<Vec<_>>>()?;
    let there = |quantity: &Quantity| {
        runs.iter().flat_map(|run| &run.metrics.series).any(|series| series.quantity == *quantity)
    };
    let (name, shown) = match &asked[..] {
        [] if gates => ("gates", vec![Quantity::LearningRate, Quantity::Momentum, Quantity::Decay]),
        [] => ("timeline", Quantity::ALL.into_iter().filter(there).collect()),
        [quantity] => (quantity.name(), asked.clone()),
        _ => ("timeline", asked.clone()),
    };
    Ok(Some(chart(name, &runs, &shown, !asked.is_empty(), request)))
}

/// Returns a line for each of these quantities about the values that cannot be drawn.
fn omitted(runs: &[RunMetrics], shown: &[Quantity]) -> Vec<String> {
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

/// Returns the chart of these quantities. Unless it is `asked` for, a quantity that never changes is a note.
pub fn chart(name: &str, runs: &[RunMetrics], shown: &[Quantity], asked: bool, request: &Request) -> Chart {
    let of = |quantity: Quantity| -> Vec<&Series> {
        let all = runs.iter().flat_map(|run| &run.metrics.series);
        all.filter(|series| series.quantity == quantity).collect()
    };
    let fixed = |quantity: &Quantity| {
        let values: Option<Vec<_>> = of(*quantity).into_iter().map(Series::constant).collect();
        let values = values.filter(|values| !values.is_empty())?;
        let (low, high) = range(&values)?;
        (low >= high).then_some(low)
    };
    let gates = [Quantity::LearningRate, Quantity::Decay, Quantity::Momentum];
    let constant: Vec<_> = shown
        .iter()
        .filter(|quantity| !asked && gates.contains(quantity))
        .filter_map(|&quantity| Some((quantity, fixed(&quantity)?)))
        .collect();
    let drawn = |quantity: &Quantity| {
        constant.len() == shown.len() || constant.iter().all(|(other, _)| other != quantity)
    };
    let panels: Vec<_> = shown.iter().copied().filter(drawn).collect();

    let height = if panels.len() > 1 { theme::STACKED } else { theme::ALONE };
    let mut chart = Chart::new(name, 1, height);
    let drawing = Drawing { runs, request, styles: styles(runs, &request.style), tokens: tokens(runs) };
    for &quantity in &panels {
        chart.panels.push(drawing.panel(quantity, &of(quantity)));
    }
    chart.keys = drawing.keys(&panels, &chart.panels);
    chart.notes = drawing.notes(&panels);
    if panels.len() < shown.len() && !constant.is_empty() {
        let texts =
            constant.iter().map(|(quantity, value)| format!("{} = {}", title(*quantity), short(*value)));
        chart.notes.push(format!("fixed: {}", texts.collect::<Vec<_>>().join(", ")));
    }
    chart.omitted = omitted(runs, shown);
    chart
}

struct Drawing<'a> {
    runs: &'a [RunMetrics],
    request: &'a Request,
    /// Styles of the heads' lines, or of the runs'.
    styles: Vec<LineStyle>,
    tokens: Range<u64>,
}

/// Returns the tokens from the first of any run to the last.
fn tokens(runs: &[RunMetrics]) -> Range<u64> {
    let tokens = runs.iter().map(|run| run.metrics.tokens.clone()).filter(|tokens| !tokens.is_empty());
    tokens.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
}

fn styles(runs: &[RunMetrics], style: &FigureStyle) -> Vec<LineStyle> {
    let [run] = runs else { return LineStyle::of_colours(style.colours(runs.len()), style.theme) };
    let metrics = &run.metrics;
    let binned = metrics.series.iter().flat_map(|series| &series.heads).any(|line| line.bin_width() > 1);
    let heads = metrics.heads.len();
    let (opacity, width) = match heads {
        ..=theme::MAX_DISTINCT if binned => (0.5, 0.4),
        _ if binned => (0.35, 0.4),
        1 if metrics.smoothed.is_some() => (0.6, 0.5),
        0 | 1 => (1.0, 0.9),
        2..=theme::MAX_DISTINCT => (0.75, 0.6),
        _ => (0.45, 0.5),
    };
    let styles = LineStyle::of_colours(style.colours(heads.max(1)), style.theme).into_iter();
    let of_head = |of: LineStyle| LineStyle {
        width,
        opacity,
        order: of.order.filter(|_| heads > 1),
        // Binned lines of heads are too many and too dense for dashes.
        dashes: if binned { &[] } else { of.dashes },
        ..of
    };
    styles.map(of_head).collect()
}

impl Drawing<'_> {
    /// Returns the trend of a long line, unless the line is already smoothed.
    fn trend(&self, line: &DownsampledLine) -> Option<(u64, Vec<Vec<Point>>)> {
        if self.request.style.smoothed().is_some() { None } else { line.trend(TREND) }
    }

    /// Returns the number of chunks in a mean of the longest line's trend.
    fn chunks_of_trend(&self, shown: &[Quantity]) -> Option<u64> {
        let trends = self.series(shown).filter_map(|series| self.trend(series.bold()?));
        trends.map(|(chunks, _)| chunks).max()
    }

    fn series<'b>(&'b self, shown: &'b [Quantity]) -> impl Iterator<Item = &'b Series> {
        let all = self.runs.iter().flat_map(|run| &run.metrics.series);
        all.filter(move |series| shown.contains(&series.quantity))
    }

    fn panel(&self, quantity: Quantity, series: &[&Series]) -> Panel {
        let several = self.runs.len() > 1;
        let zeros = self.zeros(quantity);
        let y = y_axis(quantity, series, zeros.as_deref().unwrap_or_default(), several, &self.request.style);
        let x = self.request.style.x_within(Axis::tokens(&self.tokens));
        let any = y.is_some();
        let mut panel = Panel::new((x, "tokens"), (y.unwrap_or_default(), title(quantity)));
        if let Some(labels) = &self.request.labels {
            panel.mark_labels(labels, &self.tokens);
        }
        if !any {
            let not_positive: u64 = series.iter().map(|series| series.count(Unshown::NotPositive)).sum();
            panel.message = Some(if not_positive > 0 { "no values above 0" } else { "no finite values" });
        }
        panel.lines.extend(zeros.map(|points| Line::new(ZEROS, self.zeros_style(), points)));
        for (i, run) in self.runs.iter().enumerate().filter(|_| any) {
            let Some(series) = run.metrics.series.iter().find(|series| series.quantity == quantity) else {
                continue;
            };
            let trend = series.bold().and_then(|line| self.trend(line)).map(|(_, trend)| trend);
            if several {
                let line = trend.or_else(|| series.bold().map(DownsampledLine::stretches));
                panel.lines.extend(line.map(|line| Line::new(&run.name, self.styles[i], line)));
                continue;
            }
            let heads = series.heads.iter().zip(&run.metrics.heads).zip(&self.styles);
            panel.lines.extend(heads.map(|((line, head), &style)| {
                let name = if run.metrics.heads.len() > 1 {
                    format!("head {head}")
                } else {
                    quantity.name().to_owned()
                };
                Line::new(&name, style, line.stretches())
            }));
            let bold = LineStyle::bold();
            if let Some(trend) = trend {
                panel.lines.push(Line::new("mean", LineStyle { width: 0.75 * bold.width, ..bold }, trend));
            } else if let Some(all) = &series.all {
                panel.lines.push(Line::new("mean", bold, all.stretches()));
            }
        }
        let places = |reason| {
            let lines = series.iter().flat_map(|series| &series.heads);
            lines.flat_map(move |line| line.places(reason)).map(|range| (*range.start(), *range.end()))
        };
        panel.above = places(Unshown::NotFinite).collect();
        panel.below = places(Unshown::NotPositive).collect();
        panel.above.extend(self.ends());
        panel
    }

    /// Returns the line of an all-zero answer beside the loss ratio of a single run. Several runs would need as many lines.
    fn zeros(&self, quantity: Quantity) -> Option<Vec<Vec<Point>>> {
        let [run] = self.runs else { return None };
        let ratio = run.metrics.series.iter().find(|series| series.quantity == Quantity::LossRatio)?;
        let line = Some(&run.metrics.zero_ratio).filter(|_| quantity == Quantity::LossRatio)?;
        ratio.range().and(line.range())?;
        Some(self.trend(line).map_or_else(|| line.stretches(), |(_, trend)| trend))
    }

    fn zeros_style(&self) -> LineStyle {
        LineStyle::line(theme::GREY, theme::SPINE, 1.0, Some(self.styles.len())).control()
    }

    /// Returns the last tokens of the runs that diverged.
    fn ends(&self) -> impl Iterator<Item = (f64, f64)> {
        let diverged = self.runs.iter().filter(|run| run.run.diverged.is_some());
        diverged.map(|run| (run.metrics.tokens.end as f64, run.metrics.tokens.end as f64))
    }

    fn keys(&self, shown: &[Quantity], panels: &[Panel]) -> Vec<Key> {
        let mut keys = Vec::new();
        if let [run] = self.runs {
            keys.extend(self.of_heads(&run.metrics, shown));
        } else {
            keys.extend(self.runs.iter().zip(&self.styles).map(|(run, &style)| Key::line(&run.name, style)));
        }
        if shown.iter().any(|&quantity| self.zeros(quantity).is_some()) {
            keys.push(Key::line(ZEROS, self.zeros_style()));
        }
        if panels.iter().any(|panel| !panel.rules.is_empty()) {
            keys.push(Key::new("segment change", Swatch::Rule));
        }
        if panels.iter().any(|panel| !panel.shades.is_empty()) {
            keys.push(Key::new("repeat", Swatch::Area(theme::SHADE)));
        }
        let count = |reason| self.series(shown).map(|series| series.count(reason)).sum::<u64>();
        let unshown = match (count(Unshown::NotFinite) > 0, count(Unshown::NotPositive) > 0) {
            (true, true) => Some("not finite (top), not above 0 (bottom)"),
            (true, false) => Some("not finite"),
            (false, true) => Some("not above 0"),
            (false, false) => None,
        };
        keys.extend(unshown.map(|text| Key::new(text, Swatch::Mark)));
        if self.ends().next().is_some() {
            let diverged = self.runs.iter().filter_map(|run| Some((&run.name[..], run.run.diverged?)));
            let (names, chunks): (Vec<_>, Vec<_>) = diverged.unzip();
            let text = if self.runs.len() == 1 {
                format!("diverged in chunk {}", chunks[0])
            } else {
                format!("diverged: {}", names.join(", "))
            };
            keys.push(Key::new(&text, Swatch::Mark));
        }
        keys
    }

    /// Returns the entries of a single run's lines.
    fn of_heads(&self, metrics: &Metrics, shown: &[Quantity]) -> Vec<Key> {
        let heads = &metrics.heads;
        let chunks = self.chunks_of_trend(shown).or(metrics.smoothed.map(|chunks| chunks as u64));
        let bold = match (heads.len() > 1, chunks) {
            (true, _) if shown == [Quantity::LossRatio] => Some("ratio of sums over heads".to_owned()),
            (true, _) => Some("mean over heads".to_owned()),
            (false, Some(chunks)) => Some(format!("mean of {chunks} chunks")),
            (false, None) => None,
        };
        let mut keys: Vec<_> = bold.into_iter().map(|text| Key::line(&text, LineStyle::bold())).collect();
        if heads.len() > theme::MAX_DISTINCT {
            let colours = self.styles.iter().map(|style| style.colour).collect();
            keys.push(Key::new(
                &format!("heads {} to {}", heads[0], heads[heads.len() - 1]),
                Swatch::Fan(colours),
            ));
        } else if heads.len() > 1 {
            let lines = heads.iter().zip(&self.styles);
            keys.extend(lines.map(|(head, &style)| Key::line(&format!("head {head}"), style)));
        }
        keys
    }

    fn notes(&self, shown: &[Quantity]) -> Vec<String> {
        let mut notes = Vec::new();
        let heads = self.runs.iter().map(|run| run.metrics.heads.len()).max().unwrap_or(0);
        let several = self.runs.len() > 1;
        let ratio_alone = shown == [Quantity::LossRatio];
        if several && heads > 1 {
            let text = if ratio_alone { "ratios of sums over heads" } else { "means over heads" };
            notes.push(text.to_owned());
        }
        if heads > 1
            && shown.len() > 1
            && self.series(&[Quantity::LossRatio]).next().is_some()
            && shown.contains(&Quantity::LossRatio)
        {
            notes.push("loss ratio: ratio of sums over heads".to_owned());
        }
        let sequences = self.runs.iter().map(|run| run.metrics.sequences).max().unwrap_or(0);
        if sequences > 1 {
            let what = if heads > 1 && !several { "each head: " } else { "" };
            notes.push(format!("{what}mean over {sequences} sequences"));
        }
        let bin = self.series(shown).flat_map(|series| &series.heads).map(DownsampledLine::bin_width).max();
        if let Some(bin) = bin.filter(|&bin| bin > 1 && !several) {
            notes.push(format!("faint lines: first, lowest, highest and last of every {bin} chunks"));
        }
        let has_zeros = shown.iter().any(|&quantity| self.zeros(quantity).is_some());
        let bold = match (several, has_zeros) {
            (true, _) => "lines",
            (false, true) => "bold and grey lines",
            (false, false) => "bold line",
        };
        if let Some(chunks) = self.chunks_of_trend(shown).filter(|_| heads > 1 || several) {
            notes.push(format!("{bold}: mean of {chunks} chunks"));
        }
        if let Some(chunks) = self.runs.iter().find_map(|run| run.metrics.smoothed) {
            notes.push(format!("{bold}: moving mean of {chunks} chunks"));
        }
        notes
    }
}

/// Returns an axis around the values drawn of all runs.
fn y_axis(
    quantity: Quantity,
    series: &[&Series],
    zeros: &[Vec<Point>],
    several: bool,
    style: &FigureStyle,
) -> Option<Axis> {
    let range = |series: &&Series| {
        if several { series.bold().and_then(DownsampledLine::range) } else { series.range() }
    };
    let wider = |a: (f64, f64), b: (f64, f64)| (a.0.min(b.0), a.1.max(b.1));
    let of_memory = series.iter().filter_map(range).reduce(wider)?;
    let (low, high) = zeros.iter().flatten().map(|&(_, ratio)| (ratio, ratio)).fold(of_memory, wider);
    let far = high > MAX_LINEAR * of_memory.1 || low * MAX_LINEAR < of_memory.0;
    // The ratio grows by many powers of ten near a divergence, and a linear axis would flatten everything before.
    let wild = quantity == Quantity::LossRatio && style.log.is_none() && (far || high > 100.0 * low);
    let log = (series.iter().any(|series| series.log) || wild) && low > 0.0;
    Some(match quantity {
        Quantity::Decay | Quantity::Momentum if !log => style.y_axis((low.min(0.0), high.max(1.0)), false),
        _ => style.y_axis((low, high), log),
    })
}

/// Returns the axis title of a quantity.
pub(super) fn title(quantity: Quantity) -> &'static str {
    match quantity {
        // ‖g‖ would be the exact name, but reads as letters in a sans serif at this size.
        Quantity::Surprise => "surprise\n(gradient norm)",
        Quantity::LossRatio => "loss ratio\n(before ÷ at W)",
        Quantity::LearningRate => "learning rate θ",
        Quantity::Decay => "decay α",
        Quantity::Momentum => "momentum η",
    }
}

/// Returns maps of surprise and learning rate, heads × chunks, one below the other. A cell that spans several chunks shows
/// their mean. It is marked if some of them are not finite or not above 0.
pub fn heads(metrics: &Metrics, request: &Request) -> Chart {
    let height = (metrics.heads.len() as f64 * ROW).clamp(MIN_HEIGHT, MAX_HEIGHT);
    let mut chart = Chart::new("heads", 1, height);
    let names: Vec<_> = metrics.heads.iter().map(ToString::to_string).collect();
    let most = (64..CELLS).take_while(|&cells| cells as f64 <= request.style.sheet_width()).count() + 64;
    let mut widest = 1;
    for (quantity, title) in
        [(Quantity::Surprise, title(Quantity::Surprise)), (Quantity::LearningRate, "learning rate θ")]
    {
        let Some(series) = metrics.series.iter().find(|series| series.quantity == quantity) else { continue };
        let (mut cells, mut span, mut chunks, mut columns) = (Vec::new(), 1, 1, 1);
        for (row, line) in series.heads.iter().enumerate() {
            for (column, (of, value, lost)) in line.cells(most).into_iter().enumerate() {
                (span, chunks) = (span.max(of.end - of.start), chunks.max(of.end));
                columns = columns.max(column + 1);
                cells.push(Cell { column, row, value, text: String::new(), lost });
            }
        }
        widest = widest.max(span);
        cells.retain(|cell| cell.value.is_some() || cell.lost);
        let means: Vec<_> = cells.iter().filter_map(|cell| cell.value).collect();
        let log = range(&means).is_some_and(|(low, _)| low > 0.0) && request.style.log.is_none_or(LogAxes::y);
        let axis = request.style.x_within(Axis::tokens(&metrics.tokens));
        let mut panel = Panel::new((axis, "tokens"), (Axis::slots(&names), "head"));
        let tokens = (metrics.tokens.end - metrics.tokens.start) as f64;
        panel.map = (!means.is_empty()).then(|| Map {
            size: (columns, metrics.heads.len().max(1)),
            from: (metrics.tokens.start as f64, 0.0),
            cell: (tokens * span as f64 / chunks as f64, 1.0),
            cells,
            colours: Colours::sequential(&means, log, &request.style),
            title: title.to_owned(),
            best: None,
            square: false,
        });
        chart.panels.push(panel);
    }
    let lost = |panel: &Panel| panel.map.as_ref().is_some_and(|map| map.cells.iter().any(|cell| cell.lost));
    if chart.panels.iter().any(lost) {
        chart.keys.push(Key::new("not finite or not above 0", Swatch::Mark));
    }
    if widest > 1 {
        chart.notes.push(format!("a cell is the mean of {widest} chunks"));
    }
    if metrics.sequences > 1 {
        chart.notes.push(format!("mean over {} sequences", metrics.sequences));
    }
    let shown = [Quantity::Surprise.name(), Quantity::LearningRate.name()];
    let omitted = OmittedValues::from_metrics(metrics).into_iter().filter(|of| shown.contains(&of.quantity));
    chart.omitted = omitted.map(|of| of.to_string()).collect();
    chart
}
