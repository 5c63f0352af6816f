//! scan_bench.csv → `time.svg` and `bandwidth.svg`, against steps on logarithmic axes. Each layout and kind of gates has a
//! panel, and each algorithm a line. The second figure also shows the bandwidth of a copy.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;

use plotters::style::Color;

use crate::error::{Error, Result};
use crate::io::table::Table;
use crate::plot::axis::Axis;
use crate::plot::canvas::svg;
use crate::plot::figure::{Figure, Figures};
use crate::plot::frame::{Frame, fitted_y, left_of, letter};
use crate::plot::legend::{Legend, Swatch, marker};
use crate::plot::style::{FigureStyle, Theme};
use crate::plot::{font, theme};

/// Most rows held in memory; a thousand shapes times all algorithms take half of them.
const MAX_ROWS: usize = 1 << 16;
/// Most panels, one per letter; below, most lines, which have small and capital letters in the terminal.
const MAX_PANELS: usize = 26;
const MAX_SERIES: usize = 52;
/// Height of a panel.
const PANEL: f64 = 125.0;
/// Minimum width of a sheet with two panels per row.
const TWO_COLUMNS: f64 = 330.0;
/// Room for a panel's heading.
const HEADING: f64 = 12.0;

/// A row that was timed.
#[derive(Clone, Debug)]
pub(super) struct TimedRow {
    /// Algorithm, with its threads if the file has several numbers of them.
    pub(super) series: String,
    /// Batch, channels, layout and gates, with the element type if the file has several.
    pub(super) panel: String,
    pub(super) steps: u64,
    pub(super) milliseconds: f64,
    pub(super) gb_per_s: f64,
    /// Bandwidth of the copy in that row.
    pub(super) copy: Option<f64>,
    device: String,
    /// Number of threads; 0 on a GPU.
    threads: u64,
    /// Columns that distinguish this line from others of the file.
    pub(super) cells: Vec<(&'static str, String)>,
}

/// The quantity drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quantity {
    Time,
    Bandwidth,
}

/// Draws `time` and `bandwidth` of a scan_bench.csv, or nothing if no row was timed.
pub fn scan_bench(csv: &Path, style: &FigureStyle) -> Result<Figures> {
    let (rows, notes) = read(csv)?;
    if rows.is_empty() {
        return Ok(Figures { figures: Vec::new(), notes });
    }
    let figures = [("time", Quantity::Time), ("bandwidth", Quantity::Bandwidth)];
    let figures =
        figures.map(|(name, quantity)| Figure { name: name.to_owned(), svg: figure(&rows, quantity, style) });
    Ok(Figures { figures: figures.into(), notes })
}

/// Reads the rows with a time, and notes for the user. Shapes with a single number of steps are skipped, because a line of
/// one point shows no trend, unless there are no others.
pub(super) fn read(csv: &Path) -> Result<(Vec<TimedRow>, Vec<String>)> {
    let mut table = Table::open(csv)?;
    let [algorithm, dtype, layout, gate] =
        ["algorithm", "dtype", "layout", "gate"].map(|name| table.column(name));
    let (algorithm, dtype, layout, gate) = (algorithm?, dtype?, layout?, gate?);
    let device = table.column("device")?;
    let (threads, batch) = (table.column("threads")?, table.column("batch")?);
    let distinguishing = ["algorithm", "dtype", "layout", "gate", "threads", "batch", "channels", "device"];
    let distinguishing =
        distinguishing.into_iter().map(|name| Ok((name, table.column(name)?))).collect::<Result<Vec<_>>>()?;
    let (steps, channels) = (table.column("steps")?, table.column("channels")?);
    let (median, speed) = (table.column("median_ms")?, table.column("gb_per_s")?);
    let copy = table.column("copy_gb_per_s")?;
    let named = |table: &Table| {
        distinguishing
            .iter()
            .map(|&(name, column)| (name, String::from_utf8_lossy(table.text(column)).into_owned()))
            .collect()
    };
    let mut cells = Vec::new();
    let mut skipped = 0_u64;
    let drawable = |x: &f64| x.is_finite() && *x > 0.0;
    while table.advance()? {
        table.check_kept(cells.len() + 1, MAX_ROWS)?;
        let text = |column| String::from_utf8_lossy(table.text(column)).into_owned();
        let (Some(milliseconds), Some(gb_per_s)) = (table.number(median)?, table.number(speed)?) else {
            continue;
        };
        let threads = table.integer(threads)?;
        let row = TimedRow {
            series: match &text(device)[..] {
                "cpu" => text(algorithm),
                device => format!("{device} {}", text(algorithm)),
            },
            panel: String::new(),
            steps: table.integer(steps)?,
            milliseconds,
            gb_per_s,
            copy: table.number(copy)?.filter(drawable),
            device: text(device),
            threads,
            cells: named(&table),
        };
        let shape = (table.integer(batch)?, table.integer(channels)?);
        if drawable(&milliseconds) && drawable(&gb_per_s) && row.steps > 0 {
            cells.push((row, shape, text(dtype), text(layout), text(gate)));
        } else {
            skipped += 1;
        }
    }
    let mut steps = BTreeMap::<_, BTreeSet<u64>>::new();
    for (row, shape, ..) in &cells {
        steps.entry(*shape).or_default().insert(row.steps);
    }
    let lines: BTreeSet<_> =
        steps.into_iter().filter(|(_, steps)| steps.len() > 1).map(|(shape, _)| shape).collect();
    let shapes: BTreeSet<_> =
        if lines.is_empty() { cells.iter().map(|cell| cell.1).collect() } else { lines };
    let dtypes: BTreeSet<_> = cells.iter().map(|cell| cell.2.clone()).collect();
    let most = cells.iter().map(|cell| cell.0.threads).max().unwrap_or(1);
    let several = cells.iter().map(|cell| cell.0.threads).filter(|&threads| threads > 1 && threads != most);
    let several = several.count() > 0
        || cells
            .iter()
            .any(|(row, ..)| row.threads != most && row.threads > 0 && !row.series.ends_with("sequential"));
    let rows = cells.into_iter().filter(|cell| shapes.contains(&cell.1));
    let rows: Vec<_> = rows
        .map(|(row, (batch, channels), dtype, layout, gate)| {
            let dtype = if dtypes.len() > 1 { format!(", {dtype}") } else { String::new() };
            let panel = format!("{batch} × {channels}, {layout}, gates per {gate}{dtype}");
            let plural = if row.threads == 1 { "" } else { "s" };
            let series = if several && row.threads > 0 {
                format!("{}, {} thread{plural}", row.series, row.threads)
            } else {
                row.series.clone()
            };
            TimedRow { series, panel, ..row }
        })
        .collect();
    for (what, most, names) in [
        (
            "panels (batch, channels, layout, gate, dtype)",
            MAX_PANELS,
            distinct(rows.iter().map(|row| &row.panel[..])),
        ),
        ("lines (device, algorithm, threads)", MAX_SERIES, distinct(rows.iter().map(|row| &row.series[..]))),
    ] {
        if names.len() > most {
            return Err(Error::file(csv, format!("rows for at most {most} {what}"), names.len().to_string()));
        }
    }
    let mut notes = Vec::new();
    if skipped > 0 {
        notes.push(format!(
            "rows skipped: {skipped} whose time, bandwidth or steps are not finite and above 0"
        ));
    }
    if rows.is_empty() {
        notes.push("no figures: no row was timed".to_owned());
    }
    Ok((rows, notes))
}

/// Returns the rows whose copy is drawn, and its name. It is the first GPU's in the file, or else the one with the most
/// threads.
pub(super) fn copies(rows: &[TimedRow]) -> Option<(Vec<&TimedRow>, String)> {
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
pub(super) fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = HashSet::new();
    names.filter(|&name| seen.insert(name)).collect()
}

/// Returns the legend; `copy` is the name of the copy drawn.
fn legend(series: &[&str], copy: Option<String>, quantity: Quantity, theme: Theme) -> Legend {
    let mut legend = Legend::default();
    let entries = series.iter().enumerate();
    legend.entries.extend(
        entries.map(|(i, name)| (Swatch::Marked(theme.category(i), i, theme.dash(i)), font::plain(name))),
    );
    if quantity == Quantity::Bandwidth {
        legend.entries.extend(copy.map(|text| (Swatch::Dashes(theme::GREY), text)));
        legend.notes.push(
            "bytes that must move, each input read once and each output written once, over the median time"
                .to_owned(),
        );
    } else {
        legend.notes.push("medians".to_owned());
    }
    legend.notes.push("panels: batch × channels, order of axes, gates".to_owned());
    legend
}

fn figure(rows: &[TimedRow], quantity: Quantity, style: &FigureStyle) -> String {
    let panels = distinct(rows.iter().map(|row| &row.panel[..]));
    let series = distinct(rows.iter().map(|row| &row.series[..]));
    let value = |row: &TimedRow| match quantity {
        Quantity::Time => row.milliseconds,
        Quantity::Bandwidth => row.gb_per_s,
    };
    let (copies, copy) = copies(rows).unzip();
    let copies = copies.unwrap_or_default();

    let legend = legend(&series, copy, quantity, style.theme);

    let limits = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, 0.0_f64), |(low, high), x| (low.min(x), high.max(x)))
    };
    // Ticks lie at the timed numbers of steps. These are powers of two, which a log axis' own ticks miss.
    let steps: BTreeSet<_> = rows.iter().map(|row| row.steps).collect();
    let steps: Vec<_> = steps.iter().map(|&steps| (steps as f64, steps.to_string())).collect();
    let of_copies = copies.iter().filter_map(|row| row.copy);
    let of_copies = of_copies.filter(|_| quantity == Quantity::Bandwidth);
    let (low, high) = limits(&mut rows.iter().map(value).chain(of_copies));
    let y = Axis::log(low, high);

    let sheet = style.sheet_width();
    let columns = if sheet < TWO_COLUMNS { 1 } else { panels.len().min(2) };
    let rows_of_panels = panels.len().div_ceil(columns);
    let title = match quantity {
        Quantity::Time => "time (ms)",
        Quantity::Bandwidth => "bandwidth (GB/s)",
    };
    let legend_width = sheet - 2.0 * theme::EDGE;
    let top = theme::EDGE + legend.height(legend_width) + 4.0;
    let rest = top + (HEADING + theme::BOTTOM + 6.0) * rows_of_panels as f64;
    let panel_height = style.panel_height(PANEL, rows_of_panels, rest);
    let y = fitted_y(y, panel_height);
    let left = left_of([&y], 1);
    let panel_width = (sheet - theme::RIGHT) / columns as f64 - left;
    let room = |label: &str| (font::width(label, theme::SMALL) + 5.0) / panel_width;
    let x = Axis::of_values(&steps, true, room);
    let row_height = HEADING + panel_height + theme::BOTTOM + 6.0;
    svg(style, top + row_height * rows_of_panels as f64, |canvas| {
        legend.draw(canvas, theme::EDGE, theme::EDGE, legend_width);
        for (i, panel) in panels.iter().enumerate() {
            let aside = (i % columns) as f64 * (panel_width + left);
            let frame = Frame {
                left: left + aside,
                top: top + HEADING + (i / columns) as f64 * row_height,
                width: panel_width,
                height: panel_height,
                x: &x,
                y: &y,
            };
            frame.draw_axes(canvas, true, true);
            frame.draw_y_title(
                canvas,
                &[font::shortened(title, theme::TITLE, panel_height + HEADING)],
                aside,
            );
            frame.draw_x_title(canvas, "steps");
            frame.draw_heading(canvas, &font::plain(panel), letter(i, panels.len()));
            let of_panel = |row: &&TimedRow| row.panel == *panel;
            if quantity == Quantity::Bandwidth {
                // If algorithms differ in bytes, the copy of the most bytes is drawn.
                let mut points: Vec<_> = copies.iter().copied().filter(of_panel).collect();
                points.sort_by_key(|row| row.steps);
                points.dedup_by_key(|row| row.steps);
                let places = points.iter().filter_map(|row| Some((row.steps as f64, row.copy?)));
                let places: Vec<_> = places.map(|point| frame.place(point)).collect();
                for pair in places.windows(2) {
                    canvas.dashes(pair[0], pair[1], theme::GREY.to_rgba(), theme::SERIES);
                }
            }
            for (i, name) in series.iter().enumerate() {
                let points = rows.iter().filter(of_panel).filter(|row| row.series == *name);
                let mut points: Vec<_> = points.map(|row| (row.steps as f64, value(row))).collect();
                points.sort_by(|a, b| a.0.total_cmp(&b.0));
                let places: Vec<_> = points.into_iter().map(|point| frame.place(point)).collect();
                if places.len() > 1 {
                    canvas.dashed_line(
                        &places,
                        style.theme.dash(i),
                        style.theme.category(i).to_rgba(),
                        theme::SERIES,
                    );
                }
                for place in places {
                    marker(canvas, place, i, style.theme.category(i));
                }
            }
        }
    })
}
