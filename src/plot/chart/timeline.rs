//! metrics.csv as panels over tokens, and as maps of heads × chunks.

use std::path::Path;

use super::{Chart, ColumnSource, Key, Line, LineStyle, Map, Panel, columns};
use crate::error::Result;
use crate::plot::axis::Axis;
use crate::plot::colours::Colours;
use crate::plot::downsample::{DownsampledLine, Unshown};
use crate::plot::series::{Metrics, Quantity, Series};
use crate::plot::timeline::{RunMetrics, Selection, TREND, omitted, title, tokens, y_axis};
use crate::plot::{CsvSource, OmittedValues, Request, theme};

/// Most rows of a metrics.csv that TeX reads for each line within about a second. For longer files it reads only the
/// points drawn.
const ROWS_FOR_TEX: usize = 1024;
/// Cells of a map along the tokens, each of which TeX draws.
const CELLS: usize = 256;
/// Panel height at which titles need not be shortened.
const TALL: f64 = 150.0;

/// Returns a chart of all quantities, the gates or the requested quantities. Several runs are shown by their means.
pub fn chart(files: &[CsvSource], request: &Request, check: &mut dyn FnMut() -> Result<()>) -> Result<Chart> {
    let selection = Selection::read(files, request, check)?.ok_or_else(columns)?;
    let Selection { runs, shown, name } = selection;
    let chart = Chart {
        name: name.to_owned(),
        csv: if let [file] = files { Some(file.csv.clone()) } else { None },
        panels: Vec::new(),
        columns: 1,
        keys: Vec::new(),
        notes: Vec::new(),
        omitted: omitted(&runs, &shown),
        colours: None,
    };
    Ok(Drawing { runs: &runs, shown: &shown, request }.complete(chart))
}

struct Drawing<'a> {
    runs: &'a [RunMetrics],
    shown: &'a [Quantity],
    request: &'a Request,
}

impl Drawing<'_> {
    fn series(&self, quantity: Quantity) -> Vec<&Series> {
        let all = self.runs.iter().flat_map(|run| &run.metrics.series);
        all.filter(|series| series.quantity == quantity).collect()
    }

    fn complete(&self, mut chart: Chart) -> Chart {
        let all: Vec<_> = self.shown.iter().flat_map(|&quantity| self.series(quantity)).collect();
        let bins =
            all.iter().flat_map(|series| &series.heads).map(DownsampledLine::bin_width).max().unwrap_or(1);
        let styles = self.styles(bins);
        let bold = LineStyle::line(theme::BLACK, theme::BOLD, 1.0, None);
        let trend =
            all.iter().filter_map(|series| series.bold()?.trend(TREND)).map(|(chunks, _)| chunks).max();
        if let [run] = self.runs {
            chart.keys = self.keys(&run.metrics, &styles, bold, trend);
        } else {
            let keys = self.runs.iter().zip(&styles);
            chart.keys = keys.map(|(run, &style)| Key { text: run.name.clone(), style }).collect();
        }
        chart.notes = self.notes(bins, trend);
        let tokens = tokens(self.runs);
        for &quantity in self.shown {
            let series = self.series(quantity);
            let several = self.runs.len() > 1;
            let y = y_axis(quantity, &series, several, &self.request.style);
            let title = title(quantity, TALL).join("\n");
            let axes = ((Axis::tokens(&tokens), "tokens"), (y.unwrap_or_else(Axis::bare), &title[..]));
            let mut panel = Panel::new(quantity.name(), axes.0, axes.1);
            if let Some(labels) = &self.request.labels {
                panel.mark_labels(labels, &tokens);
            }
            match (&series[..], self.runs) {
                ([series], [run]) => lines(&mut panel, series, &run.metrics, &styles, bold),
                _ => {
                    for (i, run) in self.runs.iter().enumerate() {
                        let series = run.metrics.series.iter().find(|series| series.quantity == quantity);
                        let Some(bold) = series.and_then(Series::bold) else { continue };
                        let line = bold.trend(TREND).map_or_else(|| bold.stretches(), |(_, trend)| trend);
                        panel.lines.push(Line::new(&run.name, styles[i], line));
                    }
                }
            }
            let places = |reason| {
                let lines = series.iter().flat_map(|series| &series.heads);
                lines.flat_map(move |line| line.places(reason)).map(|range| *range.start())
            };
            panel.above = places(Unshown::NotFinite).collect();
            panel.below = places(Unshown::NotPositive).collect();
            chart.panels.push(panel);
        }
        chart
    }

    /// Returns the line styles of the heads, or of the runs.
    fn styles(&self, bins: u64) -> Vec<LineStyle> {
        let theme = self.request.style.theme;
        let [run] = self.runs else {
            let style = |i| LineStyle {
                dashes: theme.dash(i),
                ..LineStyle::line(theme.category(i + 1), theme::SERIES, 1.0, Some(i))
            };
            return (0..self.runs.len()).map(style).collect();
        };
        let heads = run.metrics.heads.len();
        let (width, opacity) = match heads {
            _ if bins > 1 => (0.4, 0.5),
            1 if run.metrics.smoothed.is_some() => (0.5, 0.6),
            0 | 1 => (0.9, 1.0),
            2..=theme::MAX_DISTINCT_HEADS => (0.6, 0.75),
            _ => (0.5, 0.45),
        };
        let colours = theme.head_colours(heads.max(1)).into_iter().enumerate();
        let style = |(i, colour)| LineStyle {
            // Binned lines of heads are too many and too dense for dashes.
            dashes: if bins > 1 { &[] } else { theme.dash(i) },
            ..LineStyle::line(colour, width, opacity, (heads > 1).then_some(i))
        };
        colours.map(style).collect()
    }

    fn keys(&self, metrics: &Metrics, styles: &[LineStyle], bold: LineStyle, trend: Option<u64>) -> Vec<Key> {
        let heads = &metrics.heads;
        let chunks = trend.or(metrics.smoothed.map(|chunks| chunks as u64));
        let text = match (heads.len() > 1, chunks) {
            (true, _) if self.shown == [Quantity::LossRatio] => Some("ratio of sums over heads".to_owned()),
            (true, _) => Some("mean over heads".to_owned()),
            (false, Some(chunks)) => Some(format!("mean of {chunks} chunks")),
            (false, None) => None,
        };
        let mut keys: Vec<_> = text.into_iter().map(|text| Key { text, style: bold }).collect();
        let listed = match heads.len() {
            0 | 1 => Vec::new(),
            ..=theme::MAX_DISTINCT_HEADS => (0..heads.len()).collect(),
            many => vec![0, many - 1],
        };
        keys.extend(listed.into_iter().map(|i| Key { text: format!("head {}", heads[i]), style: styles[i] }));
        keys
    }

    fn notes(&self, bins: u64, trend: Option<u64>) -> Vec<String> {
        let mut notes = Vec::new();
        let heads = self.runs.iter().map(|run| run.metrics.heads.len()).max().unwrap_or(0);
        let several = self.runs.len() > 1;
        if let ([run], true) = (self.runs, heads > theme::MAX_DISTINCT_HEADS) {
            let numbers = &run.metrics.heads;
            notes.push(format!("heads {} to {} from dark to bright", numbers[0], numbers[heads - 1]));
        }
        if several && heads > 1 {
            notes.push("means over heads".to_owned());
        }
        if heads > 1 && self.shown.len() > 1 && !self.series(Quantity::LossRatio).is_empty() {
            notes.push("loss ratio: ratio of sums over heads".to_owned());
        }
        let sequences = self.runs.iter().map(|run| run.metrics.sequences).max().unwrap_or(0);
        if sequences > 1 {
            notes.push(format!("means over {sequences} sequences"));
        }
        if bins > 1 && !several {
            notes.push(format!("thin lines: first, lowest, highest and last of every {bins} chunks"));
        }
        let thick = if several { "lines" } else { "thick line" };
        if let Some(chunks) = trend.filter(|_| heads > 1 || several) {
            notes.push(format!("{thick}: mean of {chunks} chunks"));
        }
        if let Some(chunks) = self.runs.iter().find_map(|run| run.metrics.smoothed) {
            notes.push(format!("{thick}: moving mean of {chunks} chunks"));
        }
        if let Some(labels) = &self.request.labels {
            if !labels.boundaries.is_empty() {
                notes.push("thin vertical lines: segment changes".to_owned());
            }
            if !labels.repeats.is_empty() {
                notes.push("shaded: repeats".to_owned());
            }
        }
        notes
    }
}

/// Adds the lines of a single run: its heads and the line for all of them.
fn lines(panel: &mut Panel, series: &Series, metrics: &Metrics, styles: &[LineStyle], bold: LineStyle) {
    let lines = series.heads.iter().zip(&metrics.heads).zip(styles);
    panel.lines.extend(lines.map(|((line, head), &style)| {
        let several = metrics.heads.len() > 1;
        let name = if several { format!("head {head}") } else { series.quantity.name().to_owned() };
        Line { source: source(metrics, series, line, *head), ..Line::new(&name, style, line.stretches()) }
    }));
    if let Some((_, trend)) = series.bold().and_then(|line| line.trend(TREND)) {
        panel.lines.push(Line::new("mean", bold, trend));
    } else if let Some(all) = &series.all {
        panel.lines.push(Line::new("mean", bold, all.stretches()));
    }
}

/// Returns the source of a head's line in metrics.csv, if that has one sequence and every chunk is drawn.
fn source(metrics: &Metrics, series: &Series, line: &DownsampledLine, head: u64) -> Option<ColumnSource> {
    let stretches = line.stretches();
    let [points] = &stretches[..] else { return None };
    let unshown = line.count(Unshown::NotFinite) + line.count(Unshown::NotPositive);
    let short = points.len() * metrics.heads.len() <= ROWS_FOR_TEX;
    (metrics.sequences == 1 && line.bin_width() == 1 && unshown == 0 && short).then(|| ColumnSource {
        x: "(\\thisrow{start}+\\thisrow{end})/2".to_owned(),
        y: match series.quantity {
            Quantity::LossRatio => "\\thisrow{loss_before}/\\thisrow{loss}".to_owned(),
            other => format!("\\thisrow{{{}}}", other.name()),
        },
        rows: if metrics.heads.len() > 1 { vec![("head", head.to_string())] } else { Vec::new() },
    })
}

/// Returns maps of surprise and learning rate, heads × chunks.
pub fn heads(csv: &Path, request: &Request, check: &mut dyn FnMut() -> Result<()>) -> Result<Vec<Chart>> {
    let metrics = Metrics::read(csv, &request.style, check)?;
    let shown = [(Quantity::Surprise, "surprise ‖g‖"), (Quantity::LearningRate, "learning rate θ")];
    let charts = shown.into_iter().filter_map(|(quantity, title)| {
        let series = metrics.series.iter().find(|series| series.quantity == quantity)?;
        Some(map(&metrics, series, title, request))
    });
    Ok(charts.collect())
}

fn map(metrics: &Metrics, series: &Series, title: &str, request: &Request) -> Chart {
    let names: Vec<_> = metrics.heads.iter().map(ToString::to_string).collect();
    let mut panel =
        Panel::new("map", (Axis::tokens(&metrics.tokens), "tokens"), (Axis::slots(&names, |_| 0.0), "head"));
    let heads: Vec<_> = series.heads.iter().map(|line| line.cells(CELLS)).collect();
    let columns = heads.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let span = heads.iter().flatten().map(|(chunks, ..)| chunks.end - chunks.start).max().unwrap_or(1);
    let chunks = heads.iter().flatten().map(|(chunks, ..)| chunks.end).max().unwrap_or(1);
    let cells = heads.iter().enumerate().flat_map(|(head, cells)| {
        let numbered = cells.iter().enumerate();
        numbered.filter_map(move |(i, (_, mean, unshown))| {
            let value = mean.or_else(|| unshown.then_some(f64::NAN))?;
            Some((i, head, value))
        })
    });
    let cells: Vec<_> = cells.collect();
    let finite = cells.iter().map(|cell| cell.2).filter(|value| value.is_finite());
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
    let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
    let log = low > 0.0 && request.style.log.is_none_or(crate::plot::LogAxes::y);
    let tokens = (metrics.tokens.end - metrics.tokens.start) as f64;
    let width = tokens * span as f64 / chunks as f64;
    panel.map = Some(Map {
        size: (columns, heads.len().max(1)),
        from: (metrics.tokens.start as f64, 0.0),
        cell: (width, 1.0),
        cells,
        texts: Vec::new(),
    });
    let mut notes = Vec::new();
    if span > 1 {
        notes.push(format!("a cell is the mean of {span} chunks"));
    }
    if metrics.sequences > 1 {
        notes.push(format!("means over {} sequences", metrics.sequences));
    }
    let omitted =
        OmittedValues::from_metrics(metrics).into_iter().filter(|of| of.quantity == series.quantity.name());
    Chart {
        name: format!("heads-{}", series.quantity.name()),
        csv: None,
        panels: vec![panel],
        columns: 1,
        keys: Vec::new(),
        notes,
        omitted: omitted.map(|omitted| omitted.to_string()).collect(),
        colours: Some((Colours::sequential(low, high, log, request.style.theme), title.to_owned())),
    }
}
