//! metrics.csv: panels over tokens.

use std::path::Path;

use super::{Chart, Key, Line, Panel, Source, Style};
use crate::error::{Error, Result};
use crate::plot::axis::Axis;
use crate::plot::envelope::{Envelope, Unshown};
use crate::plot::series::{Metrics, Quantity, Series};
use crate::plot::timeline::{TREND, title, y_axis};
use crate::plot::{LeftOut, Request, theme};

/// Rows of a metrics.csv that TeX reads once a line in a second or so; of longer files it gets what is drawn alone.
const ROWS_FOR_TEX: usize = 1024;

/// All quantities together, and each alone.
pub fn charts(csv: &Path, request: &Request, check: &mut dyn FnMut() -> Result<()>) -> Result<Vec<Chart>> {
    let metrics = Metrics::read(csv, check)?;
    let every: Vec<&Series> = metrics.series.iter().collect();
    let of = |name: &str| every.iter().copied().find(|series| series.quantity.name() == name);
    if !request.y.is_empty() {
        let names = || every.iter().map(|series| series.quantity.name()).collect::<Vec<_>>().join(", ");
        let asked = request.y.iter();
        return asked
            .map(|name| {
                let series =
                    of(name).ok_or_else(|| Error::setting("--y", format!("some of {}", names()), name))?;
                Ok(chart(&metrics, request, name, &[series]))
            })
            .collect();
    }
    let mut charts = vec![chart(&metrics, request, "timeline", &every)];
    charts.extend(every.iter().map(|&series| chart(&metrics, request, series.quantity.name(), &[series])));
    Ok(charts)
}

/// Learning rate, decay, momentum.
pub fn gates(csv: &Path, request: &Request, check: &mut dyn FnMut() -> Result<()>) -> Result<Chart> {
    let metrics = Metrics::read(csv, check)?;
    let gates = [Quantity::LearningRate, Quantity::Decay, Quantity::Momentum];
    let series: Vec<_> = metrics.series.iter().filter(|series| gates.contains(&series.quantity)).collect();
    Ok(chart(&metrics, request, "gates", &series))
}

fn chart(metrics: &Metrics, request: &Request, name: &str, shown: &[&Series]) -> Chart {
    let heads = &metrics.heads;
    let several = heads.len() > 1;
    let bins = shown.iter().flat_map(|series| &series.heads).map(Envelope::bin_width).max().unwrap_or(1);
    let (width, opacity) = match heads.len() {
        _ if bins > 1 => (0.4, 0.5),
        1 => (0.9, 1.0),
        2..=theme::TELLABLE_HEADS => (0.6, 0.75),
        _ => (0.5, 0.45),
    };
    let colours = theme::head_colours(heads.len().max(1));
    let styles = colours.iter().enumerate();
    let styles: Vec<_> =
        styles.map(|(i, &colour)| Style::line(colour, width, opacity, several.then_some(i))).collect();
    let bold = Style::line(theme::BLACK, theme::BOLD, 1.0, None);

    let mut keys = Vec::new();
    let trend = shown.iter().filter_map(|series| series.bold()?.trend(TREND)).map(|(chunks, _)| chunks).max();
    let only_ratio = shown.iter().all(|series| series.quantity == Quantity::LossRatio);
    let text = match (several, trend) {
        (true, _) if only_ratio => Some("ratio of sums over heads".to_owned()),
        (true, _) => Some("mean over heads".to_owned()),
        (false, Some(chunks)) => Some(format!("mean of {chunks} chunks")),
        (false, None) => None,
    };
    keys.extend(text.map(|text| Key { text, style: bold }));
    let told = if heads.len() > theme::TELLABLE_HEADS {
        vec![0, heads.len() - 1]
    } else {
        (0..heads.len()).collect()
    };
    if several {
        keys.extend(told.into_iter().map(|i| Key { text: format!("head {}", heads[i]), style: styles[i] }));
    }

    let mut notes = Vec::new();
    if heads.len() > theme::TELLABLE_HEADS {
        notes.push(format!("heads {} to {} from dark to bright", heads[0], heads[heads.len() - 1]));
    }
    if several && shown.len() > 1 && shown.iter().any(|series| series.quantity == Quantity::LossRatio) {
        notes.push("loss ratio: ratio of sums over heads".to_owned());
    }
    if metrics.sequences > 1 {
        notes.push(format!("means over {} sequences", metrics.sequences));
    }
    if bins > 1 {
        notes.push(format!("thin lines: first, lowest, highest and last of every {bins} chunks"));
    }
    if let (Some(chunks), true) = (trend, several) {
        notes.push(format!("thick line: mean of {chunks} chunks"));
    }
    if let Some(labels) = &request.labels {
        if !labels.boundaries.is_empty() {
            notes.push("thin vertical lines: segment changes".to_owned());
        }
        if !labels.repeats.is_empty() {
            notes.push("shaded: repeats".to_owned());
        }
    }

    let panels = shown.iter().map(|series| {
        let quantity = series.quantity;
        let y = y_axis(series).unwrap_or_else(|| Axis::share(0.0, 1.0));
        let title = title(quantity).join("\n");
        let mut panel = Panel::new(quantity.name(), (Axis::tokens(&metrics.tokens), "tokens"), (y, &title));
        if let Some(labels) = &request.labels {
            panel.mark_labels(labels, &metrics.tokens);
        }
        let lines = series.heads.iter().zip(heads).zip(&styles);
        panel.lines.extend(lines.map(|((line, head), &style)| {
            let name = if several { format!("head {head}") } else { quantity.name().to_owned() };
            Line {
                source: source(metrics, quantity, line, *head),
                ..Line::new(&name, style, line.stretches())
            }
        }));
        if let Some((_, trend)) = series.bold().and_then(|line| line.trend(TREND)) {
            panel.lines.push(Line::new("mean", bold, trend));
        } else if let Some(all) = &series.all {
            panel.lines.push(Line::new("mean", bold, all.stretches()));
        }
        let places = |reason| {
            series.heads.iter().flat_map(move |line| line.places(reason)).map(|range| *range.start())
        };
        panel.above = places(Unshown::NotFinite).collect();
        panel.below = places(Unshown::NotPositive).collect();
        panel
    });
    let left_out = LeftOut::of(metrics).into_iter();
    let left_out = left_out.filter(|of| shown.iter().any(|series| series.quantity.name() == of.quantity));
    Chart {
        name: name.to_owned(),
        panels: panels.collect(),
        columns: 1,
        keys,
        notes,
        left_out: left_out.map(|left_out| left_out.to_string()).collect(),
        colours: None,
    }
}

/// A head's line as metrics.csv has it: one sequence, every chunk, all of them drawn.
fn source(metrics: &Metrics, quantity: Quantity, line: &Envelope, head: u64) -> Option<Source> {
    let stretches = line.stretches();
    let [points] = &stretches[..] else { return None };
    let unshown = line.count(Unshown::NotFinite) + line.count(Unshown::NotPositive);
    let short = points.len() * metrics.heads.len() <= ROWS_FOR_TEX;
    (metrics.sequences == 1 && line.bin_width() == 1 && unshown == 0 && short).then(|| Source {
        x: "(\\thisrow{start}+\\thisrow{end})/2".to_owned(),
        y: match quantity {
            Quantity::LossRatio => "\\thisrow{loss_before}/\\thisrow{loss}".to_owned(),
            other => format!("\\thisrow{{{}}}", other.name()),
        },
        rows: if metrics.heads.len() > 1 { vec![("head", head.to_string())] } else { Vec::new() },
    })
}
