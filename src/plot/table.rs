//! The data of a chart as CSV: one row per point, box, bar or cell, with the values that the figure shows.

use crate::plot::chart::{Chart, Panel};

const HEADER: [&str; 10] = ["panel", "series", "mark", "x", "y", "value", "low", "high", "n", "stretch"];

/// A row of the table; absent values are empty.
#[derive(Default)]
struct Row<'a> {
    series: &'a str,
    mark: &'static str,
    point: (f64, f64),
    /// Value of a cell of a map.
    value: Option<f64>,
    ends: Option<(f64, f64)>,
    n: Option<usize>,
    stretch: Option<usize>,
}

/// Returns the table of a chart.
pub fn csv(chart: &Chart) -> Vec<u8> {
    let mut csv = csv::Writer::from_writer(Vec::new());
    let mut write = |cells: [String; 10]| csv.write_record(cells).expect("writing to memory cannot fail");
    write(HEADER.map(str::to_owned));
    for panel in &chart.panels {
        let name = plain(&panel.name());
        for row in rows(panel) {
            let number = |value: f64| format!("{value:?}");
            let (low, high) = row.ends.unzip();
            let text = |value: Option<f64>| value.map_or(String::new(), number);
            let count = |value: Option<usize>| value.map_or(String::new(), |n| n.to_string());
            write([
                name.clone(),
                plain(row.series),
                row.mark.to_owned(),
                number(row.point.0),
                number(row.point.1),
                text(row.value),
                text(low),
                text(high),
                count(row.n),
                count(row.stretch),
            ]);
        }
    }
    csv.into_inner().expect("writing to memory cannot fail")
}

fn plain(text: &str) -> String {
    text.replace("^{", "^").replace('}', "")
}

fn rows(panel: &Panel) -> impl Iterator<Item = Row<'_>> {
    let lines = panel.lines.iter().flat_map(|line| {
        let stretches = line.stretches.iter().enumerate();
        let places = stretches.flat_map(|(i, stretch)| stretch.iter().map(move |_| i));
        let points = line.points().zip(places);
        points.map(move |((point, ends), stretch)| Row {
            series: &line.name,
            mark: if line.style.joined { "line" } else { "point" },
            point,
            ends,
            stretch: Some(stretch),
            ..Row::default()
        })
    });
    let boxes = panel.boxes.iter().flat_map(|of| {
        let [low, first, median, third, high] = of.values;
        let row = |mark, ends| Row {
            series: &of.name,
            mark,
            point: (of.x, median),
            ends: Some(ends),
            n: Some(of.n),
            ..Row::default()
        };
        [row("quartiles", (first, third)), row("range", (low, high))]
    });
    let bars = panel.bars.iter().map(|bar| Row {
        series: &bar.name,
        mark: "bar",
        point: (bar.x, bar.value),
        ends: bar.interval,
        n: Some(bar.n),
        ..Row::default()
    });
    let cells = panel.map.iter().flat_map(|map| {
        map.cells.iter().map(|cell| {
            let (x, y) = map.middle(cell.column, cell.row);
            Row { series: &map.title, mark: "cell", point: (x, y), value: cell.value, ..Row::default() }
        })
    });
    lines.chain(boxes).chain(bars).chain(cells)
}
