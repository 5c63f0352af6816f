//! A sweep's figures as data, for the terminal and pgfplots.

use std::path::Path;

use super::results::{Cell, Parameter, Results};
use super::{
    Grid, LINES, Layout, Scale, SweepFigure, file_name, labels, lines, map, metrics, panel_width,
    parameter_axis, parameter_title, short, symbol,
};
use crate::error::Result;
use crate::plot::axis::Axis;
use crate::plot::chart::{Chart, Key, Line, LineStyle, Map, Panel};
use crate::plot::frame::left_of;
use crate::plot::style::FigureStyle;
use crate::plot::theme;

/// Most cells along an axis with readable numbers.
const NUMBERS: usize = 12;

/// Returns the charts of a results.csv, one per metric.
pub fn charts(csv: &Path, options: &SweepFigure, style: &FigureStyle) -> Result<(Vec<Chart>, Vec<String>)> {
    let results = Results::read(csv)?;
    let Some(layout) = Layout::choose(&results, options)? else {
        return Ok((Vec::new(), vec!["no figures: no parameter but the seed varies".to_owned()]));
    };
    let (mut charts, mut notes) = (Vec::new(), Vec::new());
    for (name, metric) in metrics(&results, options)? {
        let grid = Grid::new(&results, &layout, &name, metric, style);
        if grid.is_informative() || !options.y.is_empty() {
            notes.extend(panels_left_out(&grid, &file_name(&name)));
            notes.extend(grid.log_note(&file_name(&name)));
            charts.push(chart(&grid, file_name(&name), options.map));
        }
    }
    if charts.is_empty() {
        notes.push("no figures: no result is finite".to_owned());
    }
    Ok((charts, notes))
}

/// Returns the charts of a sweep's retention.csv.
pub fn retention_charts(
    csv: &Path,
    options: &SweepFigure,
    style: &FigureStyle,
) -> Result<(Vec<Chart>, Vec<String>)> {
    let results = Results::read(csv)?;
    let options =
        SweepFigure { x: Some("lag".to_owned()), y: Vec::new(), hue: options.hue.clone(), map: false };
    let layout = Layout::choose(&results, &options)?;
    let Some((layout, metric)) = layout.zip(results.metric("loss_ratio")) else {
        return Ok((Vec::new(), Vec::new()));
    };
    let grid = Grid::new(&results, &layout, "loss_ratio", metric, style);
    let notes = panels_left_out(&grid, "retention").into_iter().chain(grid.log_note("retention"));
    Ok((vec![chart(&grid, "retention".to_owned(), false)], notes.collect()))
}

fn panels_left_out(grid: &Grid, name: &str) -> Option<String> {
    let omitted = grid.omitted;
    (omitted > 0).then(|| {
        format!("{name}: {omitted} more panels not drawn; choose other parameters with --x and --hue")
    })
}

fn chart(grid: &Grid, name: String, as_map: bool) -> Chart {
    let lost: usize = grid.cells().map(|cell| cell.lost).sum();
    let mut chart = Chart {
        csv: None,
        panels: Vec::new(),
        columns: grid.grid().0,
        keys: Vec::new(),
        notes: Vec::new(),
        omitted: (lost > 0)
            .then(|| format!("{name}: {lost} of {} runs failed, diverged or not finite", grid.results.len()))
            .into_iter()
            .collect(),
        colours: None,
        name,
    };
    let bands = match grid.hue() {
        Some(hue) if as_map || hue.values.len() > LINES => {
            map_of(grid, hue, &mut chart);
            None
        }
        _ => Some(lines_of(grid, &mut chart)),
    };
    let counts = grid.cells().filter_map(Cell::estimate).map(|estimate| estimate.n);
    let (few, most) = counts.fold((usize::MAX, 0), |(few, most), n| (few.min(n), most.max(n)));
    if most > 1 {
        let n = if few == most { most.to_string() } else { format!("{few} to {most}") };
        let spread = match bands {
            Some(true) => ", bands: 95 % interval (Student’s t)",
            Some(false) => ", bars: 95 % interval (Student’s t)",
            None => "",
        };
        chart.notes.push(format!("means of {n} runs{spread}"));
    }
    chart
}

fn panel(grid: &Grid, i: usize, axes: (&Axis, &Axis), y_title: &str) -> Panel {
    let name = char::from_digit(i as u32 + 10, 36).map_or_else(|| i.to_string(), String::from);
    let x_title = parameter_title(&grid.x().name);
    let mut panel = Panel::new(&name, (axes.0.clone(), &x_title), (axes.1.clone(), y_title));
    panel.heading.clone_from(&grid.panels[i].heading);
    panel
}

/// Whether intervals are bands.
fn lines_of(grid: &Grid, chart: &mut Chart) -> bool {
    let hue = grid.hue();
    let (y, cut) = lines::y_axis(grid);
    if cut {
        chart.notes.push("intervals cut at the edge".to_owned());
    }
    let width = panel_width(grid.style.width - left_of([&y], 1) - theme::RIGHT, chart.columns);
    let scale = Scale::from_parameter(grid.x());
    let (x, places) = parameter_axis(grid.x(), scale, width);
    let joined = grid.x().is_numeric();
    let colours = lines::colours(hue, grid.style.theme);
    let bands = joined && colours.len() <= lines::BANDS;
    let style = |i: usize| LineStyle {
        dashes: grid.style.theme.dash(i),
        ..LineStyle::marked(colours[i], theme::SERIES, i, joined)
    };
    let of_hue = hue.map(labels).unwrap_or_default();
    let text = |hue: &Parameter, i: usize| format!("{} {}", symbol(&hue.name), of_hue[i]);
    if let Some(hue) = hue {
        chart.keys = (0..colours.len()).map(|i| Key { text: text(hue, i), style: style(i) }).collect();
    }
    for (i, cells) in grid.panels.iter().enumerate() {
        let mut panel = panel(grid, i, (&x, &y), &grid.title);
        for line in 0..colours.len() {
            let count = colours.len() as f64;
            let apart = scale == Scale::Slots && !joined;
            let aside = if apart { (line as f64 - (count - 1.0) / 2.0) * 0.5 / count } else { 0.0 };
            let mut stretches = lines::stretches(cells, line, &places);
            stretches.iter_mut().flatten().for_each(|point| point.0 += aside);
            let name = hue.map_or_else(|| "mean".to_owned(), |hue| text(hue, line));
            panel.lines.push(Line::of_estimates(&name, style(line), &stretches, bands));
        }
        let lost = |value: &usize| {
            (0..colours.len()).any(|line| cells.cells.get(&(line, *value)).is_some_and(|cell| cell.lost > 0))
        };
        panel.above = (0..places.len()).filter(lost).map(|value| places[value]).collect();
        chart.panels.push(panel);
    }
    bands
}

fn map_of(grid: &Grid, hue: &Parameter, chart: &mut Chart) {
    let y = Axis::slots(&labels(hue), |_| 0.05);
    let width = panel_width(grid.style.width - left_of([&y], 1) - 70.0, chart.columns);
    let (x, _) = parameter_axis(grid.x(), Scale::Slots, width);
    let size = (grid.x().values.len(), hue.values.len());
    for (i, cells) in grid.panels.iter().enumerate() {
        let mut panel = panel(grid, i, (&x, &y), &parameter_title(&hue.name));
        let shown = cells.cells.iter().filter_map(|(&(row, column), cell)| {
            if cell.lost > 0 && cell.estimate().is_none() {
                return Some((column, row, f64::NAN));
            }
            Some((column, row, cell.estimate()?.mean))
        });
        let shown: Vec<_> = shown.collect();
        let texts = shown.iter().filter(|_| size.0 * chart.columns <= NUMBERS);
        let texts =
            texts.map(|cell| if cell.2.is_finite() { short(cell.2) } else { String::new() }).collect();
        panel.map = Some(Map { size, from: (0.0, 0.0), cell: (1.0, 1.0), cells: shown, texts });
        chart.panels.push(panel);
    }
    chart.colours = Some((map::colours(grid), grid.title.clone()));
}
