//! retention.csv of a run → a colour map: the kept chunk runs upwards and the last stored chunk to the right. The colour is
//! Σ loss ÷ Σ ℓ at W over sequences and heads. Cells left of the diagonal are empty, because their chunk was not kept yet.
//! Or a line: the same ratio by the number of chunks stored since.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::plot::axis::Axis;
use crate::plot::chart::{Cell, Chart, Key, Line, LineStyle, Map, Panel, Swatch, y_range};
use crate::plot::colours::Colours;
use crate::plot::downsample::{DownsampledLine, Unshown};
use crate::plot::filter::Rows;
use crate::plot::source::CsvSource;
use crate::plot::{Check, Request, font, theme};

/// Most cells along an axis, 2.4 pt each. A cell spans several moments if there are more.
const CELLS: usize = 128;
/// Side of the map, if there is room.
const SIDE: f64 = 300.0;
/// Most lags of a line, of which each holds two sums.
const MAX_LAGS: usize = 1 << 20;

/// Sums of loss and ℓ at W.
type Sums = [f64; 2];

/// Returns the map of a run's retention.csv.
pub fn map(csv: &Path, request: &Request, check: &mut Check) -> Result<Chart> {
    // Two passes, first the range of chunks, then the sums, so that files of any length fit in memory.
    let (mut end, mut first) = (0, u64::MAX);
    each(csv, request, check, |_, after, _| {
        end = end.max(after + 1);
        first = first.min(after + 1);
    })?;
    // Moments are `first` chunks apart, except for the last. A cell spans a whole number of them.
    let step = first.min(end).max(1);
    let span = step * end.div_ceil(step).div_ceil(CELLS as u64).max(1);
    let cells = end.div_ceil(span) as usize;
    let mut sums = vec![[0.0; 2]; cells * cells];
    each(csv, request, check, |chunk, after, [loss, at_w]| {
        let [chunk, after] = [chunk, after].map(|chunk| (chunk / span) as usize);
        let sums: &mut Sums = &mut sums[chunk * cells + after];
        sums[0] += loss;
        sums[1] += at_w;
    })?;
    let places = sums.iter().enumerate().filter(|(_, [_, at_w])| *at_w > 0.0);
    let cell = |(i, [loss, at_w]): (usize, &Sums)| Cell {
        column: i % cells,
        row: i / cells,
        value: Some(loss / at_w),
        text: String::new(),
        lost: false,
    };
    let shown: Vec<_> = places.map(cell).collect();
    let lost = shown.iter().filter_map(|cell| cell.value).filter(|value| !value.is_finite()).count();
    let ratios: Vec<_> =
        shown.iter().filter_map(|cell| cell.value).filter(|value| value.is_finite()).collect();
    let colours = Colours::about_one(&ratios, &request.style);
    let chunks = Axis::tokens(&(0..end));
    let (x, y) = (request.style.x_within(chunks.clone()), request.style.y_within(chunks));
    let mut panel = Panel::new((x, "stored up to chunk"), (y, "chunk kept"));
    let mut chart = Chart::new("retention", 1, SIDE);
    chart.notes.push(
        "loss under the memory as it was then ÷ loss at the initial weights, Σ over heads and sequences"
            .to_owned(),
    );
    if lost > 0 {
        chart.keys.push(Key::new("not finite", Swatch::Area(theme::ALARM)));
        chart.omitted.push(format!("retention: {lost} cells not finite"));
    }
    chart.notes.extend(colours.notes_on_ends(&ratios));
    if span > 1 && cells > 1 {
        chart.notes.push(format!("a cell is {span} × {span} chunks"));
    }
    if shown.is_empty() {
        panel.message = Some("no chunk was kept");
    }
    panel.map = Some(Map {
        size: (cells.max(1), cells.max(1)),
        from: (0.0, 0.0),
        cell: (span as f64, span as f64),
        cells: shown,
        colours,
        title: "loss ÷ loss at W".to_owned(),
        best: None,
        square: true,
    });
    chart.panels.push(panel);
    Ok(chart)
}

/// Returns the lines of some runs: the loss ratio of kept chunks by the number of chunks stored since.
pub fn lags(files: &[CsvSource], request: &Request, check: &mut Check) -> Result<Chart> {
    let style = &request.style;
    let mut chart = Chart::new("lags", 1, theme::ALONE);
    let styles = LineStyle::of_colours(style.colours(files.len()), style.theme);
    let (mut lines, mut above) = (Vec::new(), Vec::new());
    for (file, line_style) in files.iter().zip(styles) {
        let mut by_lag = BTreeMap::<u64, Sums>::new();
        let mut full = false;
        each(&file.csv, request, check, |chunk, after, [loss, at_w]| {
            full |= by_lag.len() == MAX_LAGS;
            if !full {
                let sums = by_lag.entry(after - chunk).or_default();
                sums[0] += loss;
                sums[1] += at_w;
            }
        })?;
        if full {
            let expected = format!("at most {MAX_LAGS} lags");
            return Err(Error::file(&file.csv, expected, "more"));
        }
        let mut line = DownsampledLine::new(CELLS, false);
        for (&lag, [loss, at_w]) in &by_lag {
            line.push(lag as f64, Some(loss / at_w));
        }
        let marked = by_lag.len() <= CELLS / 2;
        let line_style = if marked { line_style.marked() } else { line_style };
        let name = font::plain(&file.name);
        if files.len() > 1 {
            chart.keys.push(Key::line(&name, line_style));
        }
        let lost = line.places(Unshown::NotFinite).map(|range| (*range.start(), *range.end()));
        above.extend(lost);
        lines.push(Line::new(&name, line_style, line.stretches()));
    }
    let points = lines.iter().flat_map(|line| line.stretches.iter().flatten());
    let last = points.map(|point| point.0).fold(1.0, f64::max);
    let known = y_range(&lines);
    let ratios = known.unwrap_or((0.0, 1.0));
    let (x, y) = (style.x_axis((0.0, last), false), style.y_axis(ratios, style.is_log(ratios, true)));
    let panel = Panel::new((x, "chunks stored since"), (y, "loss of kept chunks ÷ at W"));
    let message = known.is_none().then_some("no chunk was kept");
    chart.panels.push(Panel { lines, above, message, ..panel });
    chart.notes.push("Σ over kept chunks, heads and sequences".to_owned());
    Ok(chart)
}

/// Calls `row` with the chunk, after, the loss and ℓ at W of every row.
fn each(
    path: &Path,
    request: &Request,
    check: &mut Check,
    mut row: impl FnMut(u64, u64, Sums),
) -> Result<()> {
    let mut rows = Rows::open(path, &[], check)?;
    let table = &rows.table;
    let (chunk, after, head) = (table.column("chunk")?, table.column("after")?, table.column("head")?);
    let (loss, at_w) = (table.column("loss")?, table.column("loss_at_w")?);
    while rows.advance()? {
        let table = &rows.table;
        let number = |column| table.number(column).map(|number| number.unwrap_or(f64::NAN));
        let (chunk, after) = (table.integer(chunk)?, table.integer(after)?);
        if chunk > after {
            return Err(table.bad_row("chunk ≤ after", format!("{chunk} and {after}")));
        }
        if request.part.heads.is_empty() || request.part.has_head(table.integer(head)?) {
            row(chunk, after, [number(loss)?, number(at_w)?]);
        }
    }
    Ok(())
}
