//! spectrum.csv → a panel for each memory weight: singular values of its update against the chunks stored, with a line for the
//! 1st, 2nd, 4th, 8th … of them. Below, the effective and the stable rank of each weight. Lines are means over heads and
//! sequences.

use std::path::Path;

use super::chart::{Chart, Key, Line, LineStyle, Panel, y_range};
use super::colours::range;
use super::downsample::Point;
use super::filter::{Rows, check_any};
use super::series::Sum;
use super::style::LogAxes;
use super::{Check, Request, theme};
use crate::error::Result;

/// Most points of a line, one per point of paper.
const POINTS: u64 = 512;
/// Lines of a panel: of values 1, 2, 4, … 512. Colours of more are hard to tell apart.
const LINES: usize = 10;
/// Most memory weights that are drawn, each in a panel: as many as fit on a page.
const MAX_WEIGHTS: usize = 8;
/// Ratio of the largest value to the lower end of the axis. Updates in f32 have no smaller singular values, only rounding.
const RANGE: f64 = 1e7;

/// Titles of the panels of ranks, in the order of [`Weight::ranks`].
const RANKS: [&str; 2] = ["effective rank", "stable rank"];

/// Values of a memory weight, by line and bin.
struct Weight {
    values: Vec<Vec<Sum>>,
    ranks: [Vec<Sum>; 2],
}

/// Returns the number of the line that shows a singular value.
fn line_of(index: u64) -> Option<usize> {
    let nth = index + 1;
    Some(nth.ilog2() as usize).filter(|&line| nth.is_power_of_two() && line < LINES)
}

/// Draws the spectra of a run.
pub fn chart(csv: &Path, request: &Request, check: &mut Check) -> Result<Chart> {
    // Two passes, first the range of chunks, then the sums.
    let (mut first, mut end, mut weights) = (u64::MAX, 0, 0);
    each(csv, request, check, |chunk, weight, _, _, _| {
        (first, end, weights) = (first.min(chunk), end.max(chunk + 1), weights.max(weight + 1));
    })?;
    check_any(&request.filter, end > 0)?;
    if end == 0 {
        return Ok(empty(request));
    }
    let drawn = weights.min(MAX_WEIGHTS);
    let width = (end - first).div_ceil(POINTS).max(1);
    let bins = (end - first).div_ceil(width) as usize;
    let empty = || vec![Sum::default(); bins];
    let weight = |_| Weight { values: vec![empty(); LINES], ranks: [empty(), empty()] };
    let mut all: Vec<_> = (0..drawn).map(weight).collect();
    each(csv, request, check, |chunk, weight, index, value, ranks| {
        // A file that grows in between may hold more.
        let Some(of) = all.get_mut(weight).filter(|_| (first..end).contains(&chunk)) else { return };
        let bin = ((chunk - first) / width) as usize;
        if let Some(line) = line_of(index) {
            of.values[line][bin].add(Some(value));
        }
        for (bins, rank) in of.ranks.iter_mut().zip(ranks) {
            bins[bin].add(rank);
        }
    })?;

    let style = &request.style;
    let points = |bins: &[Sum]| -> Vec<Point> {
        let x = |bin: usize| {
            let start = first + bin as u64 * width;
            f64::midpoint(start as f64, (start + width).min(end) as f64 - 1.0) + 1.0
        };
        let means = bins.iter().map(|sum| sum.mean().filter(|mean| mean.is_finite()));
        means.enumerate().filter_map(|(bin, mean)| Some((x(bin), mean?))).collect()
    };
    let log_x = style.log.is_some_and(LogAxes::x);
    // Before the first spectrum of a log axis there is nothing, and 0 has no place there.
    let start = if log_x { first as f64 + 1.0 } else { 0.0 };
    let x = style.x_axis((start, end as f64), log_x);
    let mut chart = Chart::new("spectrum", 1, theme::STACKED);
    let lines = (0..LINES).filter(|&line| all.iter().any(|of| !points(&of.values[line]).is_empty()));
    let lines: Vec<_> = lines.collect();
    let styles = LineStyle::of_colours(style.ordered_colours(lines.len()), style.theme);
    let keys = lines.iter().zip(&styles).map(|(&line, &style)| Key::line(&ordinal(1 << line), style));
    chart.keys = keys.collect();
    for (p, of) in all.iter().enumerate() {
        let values: Vec<_> = lines.iter().map(|&line| points(&of.values[line])).collect();
        let positive: Vec<_> =
            values.iter().flatten().map(|point| point.1).filter(|value| *value > 0.0).collect();
        let (low, high) = range(&positive).unwrap_or((0.1, 1.0));
        let log = style.log.is_none_or(LogAxes::y);
        let ends = if log { (low.max(high / RANGE), high) } else { (0.0, high) };
        let mut panel = Panel::new(
            (x.clone(), "chunks stored"),
            (style.y_axis(ends, log), &format!("singular values\nof weight {p}")),
        );
        if positive.is_empty() {
            panel.message = Some("nothing was stored");
        }
        for ((points, &line), &style) in values.into_iter().zip(&lines).zip(&styles) {
            // An update of lower rank has zeros, which a log axis cannot show.
            let shown = points.chunk_by(|a, b| (a.1 > 0.0 || !log) == (b.1 > 0.0 || !log));
            let shown = shown.filter(|part| part[0].1 > 0.0 || !log).map(<[Point]>::to_vec).collect();
            panel.lines.push(Line::new(&ordinal(1 << line), style, shown));
        }
        chart.panels.push(panel);
    }
    let mut styles = LineStyle::of_colours(style.colours(all.len()), style.theme);
    if all.len() > 1 {
        let keys = styles.iter().enumerate().map(|(p, &style)| Key::line(&format!("weight {p}"), style));
        chart.keys.extend(keys);
    } else {
        styles = vec![LineStyle::bold()];
    }
    for (rank, title) in RANKS.into_iter().enumerate() {
        let lines = all.iter().zip(&styles).enumerate();
        let lines = lines
            .map(|(p, (of, &style))| Line::new(&format!("weight {p}"), style, vec![points(&of.ranks[rank])]));
        let lines: Vec<_> = lines.collect();
        let high = y_range(&lines).map_or(1.0, |(_, high)| high);
        let panel = Panel::new((x.clone(), "chunks stored"), (style.y_axis((0.0, high), false), title));
        let stored = lines.iter().any(|line| line.stretches.iter().any(|stretch| !stretch.is_empty()));
        let message = (!stored).then_some("nothing was stored");
        chart.panels.push(Panel { lines, message, ..panel });
    }
    if width > 1 {
        chart.notes.push(format!("each point: mean of {width} chunks"));
    }
    if drawn < weights {
        chart.notes.push(format!("weights from {drawn} on are not drawn"));
    }
    Ok(chart)
}

/// Returns the figure of a run that ended before its first spectrum.
fn empty(request: &Request) -> Chart {
    let style = &request.style;
    let mut chart = Chart::new("spectrum", 1, theme::STACKED);
    let x = style.x_axis((0.0, 1.0), false);
    let mut panel = Panel::new((x, "chunks stored"), (style.y_axis((0.0, 1.0), false), "singular values"));
    panel.message = Some("nothing was stored");
    chart.panels.push(panel);
    chart
}

/// Returns "1st", "2nd", "4th" and so on, for powers of two.
fn ordinal(number: u32) -> String {
    let ending = match number {
        1 => "st",
        2 | 32 | 512 => "nd",
        _ => "th",
    };
    format!("{number}{ending}")
}

/// Calls `row` with the chunk, the weight, the index and the value of every row, and its effective and stable rank.
fn each(
    path: &Path,
    request: &Request,
    check: &mut Check,
    mut row: impl FnMut(u64, usize, u64, f64, [Option<f64>; 2]),
) -> Result<()> {
    let mut rows = Rows::open(path, &request.filter, check)?;
    let table = &rows.table;
    let [chunk, head, weight, index] = ["chunk", "head", "weight", "index"].map(|name| table.column(name));
    let (chunk, head, weight, index) = (chunk?, head?, weight?, index?);
    let value = table.column("singular_value")?;
    let (effective, stable) = (table.column("effective_rank")?, table.column("stable_rank")?);
    while rows.advance()? {
        let table = &rows.table;
        if !request.part.has_head(table.integer(head)?) {
            continue;
        }
        let of = usize::try_from(table.integer(weight)?).unwrap_or(usize::MAX - 1);
        let ranks = [table.number(effective)?, table.number(stable)?];
        let value = table.number(value)?.unwrap_or(f64::NAN);
        row(table.integer(chunk)?, of, table.integer(index)?, value, ranks);
    }
    Ok(())
}
