//! scan_bench.csv: time and bandwidth against steps.

use std::path::Path;

use super::{Chart, ColumnSource, Key, Line, LineStyle, Panel};
use crate::error::Result;
use crate::io::table::Table;
use crate::plot::axis::Axis;
use crate::plot::scan_bench::{self, TimedRow, distinct, read};
use crate::plot::{Theme, theme};

/// Most rows that TeX reads for each line of a figure within about a second.
const ROWS_FOR_TEX: usize = 1024;

pub fn charts(csv: &Path, theme: Theme) -> Result<(Vec<Chart>, Vec<String>)> {
    let (rows, notes) = read(csv)?;
    if rows.is_empty() {
        return Ok((Vec::new(), notes));
    }
    // TeX cannot skip a row without a time.
    let whole = rows.len() <= ROWS_FOR_TEX && all_timed(csv)?;
    let time = chart((csv, &rows), theme, "time", "time (ms)", "median_ms", whole, |row| row.milliseconds);
    let mut speed =
        chart((csv, &rows), theme, "bandwidth", "bandwidth (GB/s)", "gb_per_s", whole, |row| row.gb_per_s);
    copies(&rows, &mut speed);
    Ok((vec![time, speed], notes))
}

fn all_timed(csv: &Path) -> Result<bool> {
    let mut table = Table::open(csv)?;
    let columns = [table.column("steps")?, table.column("median_ms")?, table.column("gb_per_s")?];
    while table.advance()? {
        for column in columns {
            if table.number(column)?.is_none_or(|number| !number.is_finite() || number <= 0.0) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn limits(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, 0.0_f64), |(low, high), x| (low.min(x), high.max(x)))
}

fn chart(
    (csv, rows): (&Path, &[TimedRow]),
    theme: Theme,
    name: &str,
    title: &str,
    column: &str,
    whole: bool,
    value: impl Fn(&TimedRow) -> f64,
) -> Chart {
    let panels = distinct(rows.iter().map(|row| &row.panel[..]));
    let series = distinct(rows.iter().map(|row| &row.series[..]));
    let style = |i| LineStyle {
        dashes: theme.dash(i),
        ..LineStyle::marked(theme.category(i), theme::SERIES, i, true)
    };
    let (low, high) = limits(rows.iter().map(|row| row.steps as f64));
    let x = Axis::log(10f64.powf(low.log10().floor()), 10f64.powf(high.log10().ceil()));
    let copies = rows.iter().filter_map(|row| row.copy);
    let (low, high) = limits(rows.iter().map(&value).chain(copies.filter(|_| name == "bandwidth")));
    let y = Axis::log(low, high);

    let of_panel = |(i, heading): (usize, &&str)| {
        let mut panel = Panel::new(&letter(i), (x.clone(), "steps"), (y.clone(), title));
        (*heading).clone_into(&mut panel.heading);
        for (i, name) in series.iter().enumerate() {
            let here = rows.iter().filter(|row| row.panel == **heading && row.series == **name);
            let here: Vec<_> = here.collect();
            let mut points: Vec<_> = here.iter().map(|row| (row.steps as f64, value(row))).collect();
            let ascending = points.is_sorted_by(|a, b| a.0 < b.0);
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            let Some(first) = here.first() else { continue };
            let mut line = Line::new(name, style(i), vec![points]);
            let source = || ColumnSource {
                x: "\\thisrow{steps}".to_owned(),
                y: format!("\\thisrow{{{column}}}"),
                rows: first.cells.clone(),
            };
            // TeX would misread other characters.
            let plain = |letter: char| letter.is_ascii_alphanumeric() || " .:-".contains(letter);
            let plain = first.cells.iter().all(|(_, text)| text.chars().all(plain));
            line.source = (whole && ascending && plain).then(source);
            panel.lines.push(line);
        }
        panel
    };
    Chart {
        name: name.to_owned(),
        csv: Some(csv.to_owned()),
        panels: panels.iter().enumerate().map(of_panel).collect(),
        columns: panels.len().min(2),
        keys: series
            .iter()
            .enumerate()
            .map(|(i, name)| Key { text: (*name).to_owned(), style: style(i) })
            .collect(),
        notes: vec!["medians; panels: batch × channels, order of axes, gates".to_owned()],
        omitted: Vec::new(),
        colours: None,
    }
}

/// Adds the bandwidth of a copy of the same number of bytes.
fn copies(rows: &[TimedRow], chart: &mut Chart) {
    let Some((rows, text)) = scan_bench::copies(rows) else { return };
    let style = LineStyle { dashes: &[3.0, 3.0], ..LineStyle::line(theme::GREY, theme::SERIES, 1.0, None) };
    for panel in &mut chart.panels {
        let here = rows.iter().filter(|row| row.panel == panel.heading);
        let mut points: Vec<_> = here.filter_map(|row| Some((row.steps as f64, row.copy?))).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points.dedup_by_key(|point| point.0.to_bits());
        panel.lines.insert(0, Line::new("copy", style, vec![points]));
    }
    chart.keys.push(Key { text, style });
    chart.notes.push(
        "bytes that must move, each input read once and each output written once, over the median time"
            .to_owned(),
    );
}

/// Returns the i-th letter: a, b, c …
fn letter(i: usize) -> String {
    char::from_digit(i as u32 + 10, 36).map_or_else(|| i.to_string(), String::from)
}
