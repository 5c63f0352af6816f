//! scan_bench.csv → `time` and `bandwidth`, or `speedup`, against steps on logarithmic axes. Each shape, order of axes, kind of
//! gates and element type has a panel, and each algorithm a line. The second figure also shows the bandwidth of a copy.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::Hash;
use std::path::Path;

use crate::error::{Error, Result};
use crate::plot::axis::Axis;
use crate::plot::chart::{Chart, Key, Line, LineStyle, Panel};
use crate::plot::colours::range;
use crate::plot::downsample::Point;
use crate::plot::filter::{Rows, check_any};
use crate::plot::style::LogAxes;
use crate::plot::{Check, Request, font, theme};

/// Most rows held in memory; a thousand shapes times all algorithms take half of them.
const MAX_ROWS: usize = 1 << 16;
/// Most panels, one per letter; below, most lines, which have small and capital letters in the terminal.
const MAX_PANELS: usize = 26;
const MAX_SERIES: usize = 52;
/// Height of a panel.
const PANEL: f64 = 125.0;

/// Parts of a panel's heading: batch × channels, order of axes, gates, element type.
type PanelParts = [String; 4];
/// A part in a note.
struct Part {
    name: &'static str,
    /// Returns the text of a part that stands alone.
    alone: fn(&str) -> String,
}

const PARTS: [Part; 4] = [
    Part { name: "batch × channels", alone: |shape| format!("{shape} (batch × channels)") },
    Part { name: "order of axes", alone: str::to_owned },
    Part { name: "gates per", alone: |unit| format!("gates per {unit}") },
    Part { name: "element type", alone: str::to_owned },
];

/// A row that was timed.
#[derive(Clone, Debug)]
struct TimedRow {
    /// Algorithm, with its threads if the file has several numbers of them.
    series: String,
    panel: PanelParts,
    /// Batch and channels.
    shape: (u64, u64),
    steps: u64,
    milliseconds: f64,
    gb_per_s: f64,
    /// Bandwidth of the copy in that row.
    copy: Option<f64>,
    device: String,
    /// Number of threads; 0 on a GPU.
    threads: u64,
    algorithm: String,
    /// Time of another algorithm ÷ this time.
    speedup: f64,
}

/// The quantity drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quantity {
    Time,
    Bandwidth,
    Speedup,
}

/// Returns the charts `time` and `bandwidth` of a scan_bench.csv, or nothing if no row was timed.
pub fn charts(
    csv: &Path,
    request: &Request,
    check: &mut Check,
    notes: &mut Vec<String>,
) -> Result<Vec<Chart>> {
    let rows = read(csv, request, check, notes)?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    Ok([Quantity::Time, Quantity::Bandwidth].map(|quantity| chart(&rows, quantity, request)).into())
}

/// Returns the chart `speedup`: time of the slowest algorithm ÷ time.
pub fn speedup(
    csv: &Path,
    request: &Request,
    check: &mut Check,
    notes: &mut Vec<String>,
) -> Result<Vec<Chart>> {
    let mut rows = read(csv, request, check, notes)?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let base = match request.baseline.first() {
        Some((_, name)) => name.clone(),
        None => ["sequential", "pair-sequential"]
            .iter()
            .find(|name| rows.iter().any(|row| row.series.starts_with(*name)))
            .map_or_else(
                || rows.first().map(|row| row.series.clone()).unwrap_or_default(),
                |name| (*name).to_owned(),
            ),
    };
    let of_base: Vec<_> =
        rows.iter().filter(|row| row.series == base || row.algorithm == base).cloned().collect();
    if of_base.is_empty() {
        let known: Vec<_> =
            distinct(rows.iter().map(|row| &row.algorithm)).into_iter().map(String::as_str).collect();
        return Err(Error::rejected(
            "--baseline",
            format!("no algorithm {base}; the algorithms are {}", known.join(", ")),
        ));
    }
    let time = |row: &TimedRow| {
        let same = of_base.iter().find(|other| other.panel == row.panel && other.steps == row.steps)?;
        Some(same.milliseconds / row.milliseconds)
    };
    let speeds: Vec<_> = rows.iter().map(time).collect();
    let mut speeds = speeds.into_iter();
    rows.retain_mut(|row| {
        let speed = speeds.next().flatten();
        row.speedup = speed.unwrap_or(1.0);
        speed.is_some()
    });
    let mut chart = chart(&rows, Quantity::Speedup, request);
    chart.notes.insert(0, format!("median time of {base} ÷ median time"));
    Ok(vec![chart])
}

/// Reads the rows with a time. Shapes with a single number of steps are skipped, because a line of
/// one point shows no trend, unless there are no others.
fn read(csv: &Path, request: &Request, check: &mut Check, notes: &mut Vec<String>) -> Result<Vec<TimedRow>> {
    let mut rows = Rows::open(csv, &request.filter, check)?;
    let table = &rows.table;
    let [algorithm, dtype, layout, gate] =
        ["algorithm", "dtype", "layout", "gate"].map(|name| table.column(name));
    let (algorithm, dtype, layout, gate) = (algorithm?, dtype?, layout?, gate?);
    let device = table.column("device")?;
    let (threads, batch) = (table.column("threads")?, table.column("batch")?);
    let (steps, channels) = (table.column("steps")?, table.column("channels")?);
    let (median, speed) = (table.column("median_ms")?, table.column("gb_per_s")?);
    let copy = table.column("copy_gb_per_s")?;
    let mut timed = Vec::new();
    let (mut passed, mut skipped) = (0_u64, 0_u64);
    let drawable = |x: &f64| x.is_finite() && *x > 0.0;
    while rows.advance()? {
        let table = &rows.table;
        passed += 1;
        table.check_kept(timed.len() + 1, MAX_ROWS)?;
        let text = |column| String::from_utf8_lossy(table.text(column)).into_owned();
        let (Some(milliseconds), Some(gb_per_s)) = (table.number(median)?, table.number(speed)?) else {
            continue;
        };
        let shape = (table.integer(batch)?, table.integer(channels)?);
        let row = TimedRow {
            series: match &text(device)[..] {
                "cpu" => text(algorithm),
                device => format!("{device} {}", text(algorithm)),
            },
            panel: [format!("{} × {}", shape.0, shape.1), text(layout), text(gate), text(dtype)],
            shape,
            steps: table.integer(steps)?,
            milliseconds,
            gb_per_s,
            copy: table.number(copy)?.filter(drawable),
            device: text(device),
            threads: table.integer(threads)?,
            algorithm: text(algorithm),
            speedup: 1.0,
        };
        if drawable(&milliseconds) && drawable(&gb_per_s) && row.steps > 0 {
            timed.push(row);
        } else {
            skipped += 1;
        }
    }
    let mut rows = timed;
    let most = rows.iter().map(|row| row.threads).max().unwrap_or(1);
    let others = |row: &TimedRow| row.threads > 0 && row.threads != most;
    // Sequential algorithms have one thread, whatever the others have.
    if rows.iter().any(|row| others(row) && (row.threads > 1 || !row.series.ends_with("sequential"))) {
        for row in rows.iter_mut().filter(|row| row.threads > 0) {
            let plural = if row.threads == 1 { "" } else { "s" };
            row.series = format!("{}, {} thread{plural}", row.series, row.threads);
        }
    }
    let mut steps = BTreeMap::<_, BTreeSet<u64>>::new();
    for row in &rows {
        steps.entry(row.shape).or_default().insert(row.steps);
    }
    if steps.values().any(|steps| steps.len() > 1) {
        rows.retain(|row| steps[&row.shape].len() > 1);
    }
    for (what, most, names) in [
        (
            "panels (batch, channels, layout, gate, dtype)",
            MAX_PANELS,
            distinct(rows.iter().map(|row| &row.panel)).len(),
        ),
        (
            "lines (device, algorithm, threads)",
            MAX_SERIES,
            distinct(rows.iter().map(|row| &row.series)).len(),
        ),
    ] {
        if names > most {
            return Err(Error::file(csv, format!("rows for at most {most} {what}"), names.to_string()));
        }
    }
    check_any(&request.filter, passed > 0)?;
    if skipped > 0 {
        notes.push(format!(
            "rows skipped: {skipped} whose time, bandwidth or steps are not finite and above 0"
        ));
    }
    if rows.is_empty() {
        notes.push("no figures: no row was timed".to_owned());
    }
    Ok(rows)
}

/// Returns the rows whose copy is drawn, and its name. It is the first GPU's in the file, or else the one with the most
/// threads.
fn copies(rows: &[TimedRow]) -> Option<(Vec<&TimedRow>, String)> {
    let copied = || rows.iter().filter(|row| row.copy.is_some());
    let gpu = copied().find(|row| row.threads == 0);
    let of = gpu.or(copied().max_by_key(|row| row.threads))?;
    let on = match of.threads {
        0 if rows.iter().all(|row| row.threads > 0 || row.device == of.device) => "on the GPU".to_owned(),
        0 => format!("on {}", of.device),
        1 => "1 thread".to_owned(),
        threads => format!("{threads} threads"),
    };
    let rows = copied().filter(|row| (&row.device, row.threads) == (&of.device, of.threads));
    Some((rows.collect(), format!("copy of as many bytes, {on}")))
}

/// Returns the distinct names in the order of the file.
fn distinct<'a, T: Eq + Hash>(names: impl Iterator<Item = &'a T>) -> Vec<&'a T> {
    let mut seen = HashSet::new();
    names.filter(|&name| seen.insert(name)).collect()
}

/// Returns the headings of panels, made of the parts that differ, and a note that names these and the shared parts.
fn headings(panels: &[&PanelParts]) -> (Vec<String>, String) {
    let alone = |panel: &PanelParts, part: usize| (PARTS[part].alone)(&panel[part]);
    let (differing, shared): (Vec<_>, Vec<_>) =
        (0..PARTS.len()).partition(|&part| panels.iter().any(|panel| panel[part] != panels[0][part]));
    let heading = |panel: &&PanelParts| match differing[..] {
        [part] => alone(panel, part),
        _ => differing.iter().map(|&part| &panel[part][..]).collect::<Vec<_>>().join("/"),
    };
    let names: Vec<_> = differing.iter().map(|&part| PARTS[part].name).collect();
    let mut note: Vec<_> = shared.iter().map(|&part| alone(panels[0], part)).collect();
    if names.len() > 1 {
        note.insert(0, format!("panels: {}", names.join("/")));
    }
    (panels.iter().map(heading).collect(), note.join("; "))
}

fn chart(rows: &[TimedRow], quantity: Quantity, request: &Request) -> Chart {
    let style = &request.style;
    let panels = distinct(rows.iter().map(|row| &row.panel));
    let series = distinct(rows.iter().map(|row| &row.series));
    let (name, title) = match quantity {
        Quantity::Time => ("time", "time (ms)"),
        Quantity::Bandwidth => ("bandwidth", "bandwidth (GB/s)"),
        Quantity::Speedup => ("speedup", "speed-up"),
    };
    let value = |row: &TimedRow| match quantity {
        Quantity::Time => row.milliseconds,
        Quantity::Bandwidth => row.gb_per_s,
        Quantity::Speedup => row.speedup,
    };
    let copies = copies(rows).filter(|_| quantity == Quantity::Bandwidth);
    let of_copies = copies.iter().flat_map(|(rows, _)| rows).filter_map(|row| row.copy);
    let all: Vec<_> = rows.iter().map(value).chain(of_copies).collect();
    let (low, high) = range(&all).unwrap_or((1.0, 1.0));
    // Times and bandwidths are compared by factors.
    let log = style.log.map_or(quantity != Quantity::Speedup || high > 10.0 * low, LogAxes::y);
    let y = if log { style.y_axis((low, high), true) } else { style.y_axis((low.min(0.0), high), false) };
    // Ticks lie at the timed numbers of steps. These are powers of two, which a log axis' own ticks miss.
    let steps: BTreeSet<_> = rows.iter().map(|row| row.steps).collect();
    let steps: Vec<_> = steps.iter().map(|&steps| (steps as f64, steps.to_string())).collect();
    let x = style.x_within(Axis::of_values(&steps, style.log.is_none_or(|log| log.x() || log == LogAxes::Y)));

    let mut chart = Chart::new(name, panels.len().min(2), PANEL);
    let styles = LineStyle::of_colours(style.colours(series.len()), style.theme).into_iter();
    let named = series.iter().map(|name| font::plain(name)).zip(styles.map(LineStyle::marked));
    let named: Vec<_> = named.collect();
    chart.keys = named.iter().map(|(name, style)| Key::line(name, *style)).collect();
    let dashed = LineStyle { dashes: &[3.0, 2.0], ..LineStyle::line(theme::GREY, theme::SERIES, 1.0, None) };
    if let Some((_, text)) = &copies {
        chart.keys.push(Key::line(text, dashed));
        chart.notes.push(
            "bytes that must move, each input read once and each output written once, over the median time"
                .to_owned(),
        );
    } else if quantity == Quantity::Time {
        chart.notes.push("medians".to_owned());
    }
    let (headings, note) = headings(&panels);
    chart.notes.push(font::plain(&note));
    for (parts, heading) in panels.iter().zip(&headings) {
        let mut panel = Panel::new((x.clone(), "steps"), (y.clone(), title));
        panel.heading = font::plain(heading);
        let sorted = |mut points: Vec<Point>| {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            points
        };
        if let Some((rows, _)) = &copies {
            // If algorithms differ in bytes, the copy of the most bytes is drawn.
            let here = rows.iter().filter(|row| row.panel == **parts);
            let mut points = sorted(here.filter_map(|row| Some((row.steps as f64, row.copy?))).collect());
            points.dedup_by_key(|point| point.0.to_bits());
            panel.lines.push(Line::new("copy", dashed, vec![points]));
        }
        for (&of, (name, style)) in series.iter().zip(&named) {
            let here = rows.iter().filter(|row| row.panel == **parts && row.series == *of);
            let points = sorted(here.map(|row| (row.steps as f64, value(row))).collect());
            if !points.is_empty() {
                panel.lines.push(Line::new(name, *style, vec![points]));
            }
        }
        chart.panels.push(panel);
    }
    chart
}

#[cfg(test)]
mod tests {
    use super::{PanelParts, headings};

    fn parts(texts: [&str; 4]) -> PanelParts {
        texts.map(str::to_owned)
    }

    #[test]
    fn headings_are_what_differs() {
        let a = parts(["8 × 64", "steps-channels", "step", "f32"]);
        let b = parts(["8 × 64", "steps-channels", "element", "f32"]);
        let c = parts(["8 × 64", "channels-steps", "element", "f32"]);
        let of = |panels: &[&PanelParts]| headings(panels);
        assert_eq!(
            of(&[&a]),
            (
                vec![String::new()],
                "8 × 64 (batch × channels); steps-channels; gates per step; f32".to_owned()
            )
        );
        assert_eq!(
            of(&[&a, &b]),
            (
                vec!["gates per step".to_owned(), "gates per element".to_owned()],
                "8 × 64 (batch × channels); steps-channels; f32".to_owned()
            )
        );
        assert_eq!(
            of(&[&a, &b, &c]),
            (
                vec!["steps-channels/step", "steps-channels/element", "channels-steps/element"]
                    .into_iter()
                    .map(str::to_owned)
                    .collect(),
                "panels: order of axes/gates per; 8 × 64 (batch × channels); f32".to_owned()
            )
        );
    }
}
