//! Any columns of a metrics.csv against any other, with a panel per column and a colour per value of another column.
//! Points are joined if x ascends from row to row of a line. Otherwise they are dots, one for each spot on the paper.

use std::collections::HashSet;

use plotters::style::{Color, RGBColor};

use crate::error::{Error, Result};
use crate::io::table::{Column, Table};
use crate::plot::axis::Axis;
use crate::plot::canvas::{Canvas, svg};
use crate::plot::downsample::{DownsampledLine, Point};
use crate::plot::figure::{Figure, Figures};
use crate::plot::frame::{
    Frame, draw_letter, fitted_x, fitted_y, left_of, letter, right_of, title_left, title_lines,
};
use crate::plot::ignored_flags::stays_linear;
use crate::plot::legend::{Legend, Swatch, mark, marker};
use crate::plot::source::CsvSource;
use crate::plot::{LogAxes, Request, font, theme};

/// Most numbers held in memory, sixteen bytes each. Timelines are read in passes and have no such limit.
const MAX_CELLS: usize = 1 << 25;
/// Most lines that a reader can distinguish.
const LINES: usize = 16;
/// Bins of a joined line, each with up to four points.
const BINS: usize = 512;
/// Distance in points of paper below which dots become one.
const SPOT: f64 = 0.5;

fn too_many_hues(column: &str) -> Error {
    Error::rejected("--hue", format!("{column} has more than {LINES} values; choose another column"))
}

/// The data of one value of the hue, one sequence and one file: x and every y, row by row.
#[derive(Default)]
struct Line {
    hue: usize,
    x: Vec<f64>,
    y: Vec<Vec<Option<f64>>>,
}

/// The lines and the values of their colours.
struct Lines {
    all: Vec<Line>,
    hues: Vec<String>,
    /// Count of the numbers held by all lines.
    cells: usize,
}

/// Draws one figure of all sources, which must be metrics.csv files.
pub fn columns(
    sources: &[CsvSource],
    request: &Request,
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<Figures> {
    let x = request.x.as_deref().unwrap_or("end");
    let default = ["surprise".to_owned()];
    let shown = if request.y.is_empty() { &default[..] } else { &request.y[..] };
    let mut all = Lines { all: Vec::new(), hues: Vec::new(), cells: 0 };
    for source in sources {
        all.read(source, sources.len() > 1, x, shown, request.hue.as_deref(), check)?;
    }
    if all.hues.len() > LINES {
        return Err(too_many_hues(request.hue.as_deref().unwrap_or("head")));
    }
    let mut drawn = Figures::default();
    let unshown: Vec<_> = (0..shown.len()).map(|y| all.count_unshown(y)).collect();
    for (name, count) in shown.iter().zip(&unshown).filter(|(_, count)| **count > 0) {
        drawn.notes.push(format!("{name}: values not drawn: {count} not finite"));
    }
    let log = request.style.log;
    let low = |y: usize| all.points(y).any(|point| point.1 <= 0.0);
    if log.is_some_and(LogAxes::y) {
        let linear = shown.iter().enumerate().filter(|(y, _)| low(*y));
        drawn.notes.extend(linear.map(|(_, name)| stays_linear(name)));
    }
    if log.is_some_and(LogAxes::x) && (0..shown.len()).flat_map(|y| all.points(y)).any(|point| point.0 <= 0.0)
    {
        drawn.notes.push(stays_linear(x));
    }
    let name = format!("{}-{x}", shown.join("-"));
    let svg = all.draw(x, shown, unshown.iter().sum(), request);
    drawn.figures.push(Figure { name: name.replace('/', "_per_"), svg });
    Ok(drawn)
}

impl Lines {
    fn read(
        &mut self,
        source: &CsvSource,
        several: bool,
        x: &str,
        shown: &[String],
        hue: Option<&str>,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let mut table = Table::open(&source.csv)?;
        let find = |flag: &str, name: &str| {
            let known = || table.columns().map(|(_, name)| name).collect::<Vec<_>>().join(", ");
            let found = table.optional_column(name);
            found.ok_or_else(|| {
                Error::rejected(flag, format!("no column {name}; the columns are {}", known()))
            })
        };
        let x = find("--x", x)?;
        let shown: Vec<_> = shown.iter().map(|name| find("--y", name)).collect::<Result<_>>()?;
        let hue_name = hue.unwrap_or("head");
        let hue = find("--hue", hue_name)?;
        let sequence = table.column("sequence")?;
        let mut rows = 0_u64;
        // Index of each line of this file by hue and sequence.
        let mut places = std::collections::HashMap::<(Vec<u8>, Vec<u8>), usize>::new();
        let text = |table: &Table, column: Column| table.text(column).to_vec();
        while table.advance()? {
            rows += 1;
            if rows.is_multiple_of(4096) {
                check()?;
            }
            let key = (text(&table, hue), text(&table, sequence));
            let place = if let Some(&place) = places.get(&key) {
                place
            } else {
                let value = String::from_utf8_lossy(&key.0).into_owned();
                let value = format!("{} {}", hue_name.replace('_', " "), font::plain(&value));
                let name = if several { format!("{}, {value}", font::plain(&source.name)) } else { value };
                let known = self.hues.iter().position(|hue| *hue == name);
                let hue = known.unwrap_or_else(|| {
                    self.hues.push(name);
                    self.hues.len() - 1
                });
                if self.hues.len() > LINES {
                    return Err(too_many_hues(hue_name));
                }
                self.all.push(Line { hue, y: vec![Vec::new(); shown.len()], ..Line::default() });
                places.insert(key, self.all.len() - 1);
                self.all.len() - 1
            };
            let Some(at) = table.number(x)? else { continue };
            self.cells += 1 + shown.len();
            table.check_kept(self.cells, MAX_CELLS)?;
            let line = &mut self.all[place];
            line.x.push(at);
            for (values, &column) in line.y.iter_mut().zip(&shown) {
                values.push(table.number(column)?);
            }
        }
        Ok(())
    }

    fn count_unshown(&self, y: usize) -> u64 {
        let points = self.all.iter().flat_map(|line| line.x.iter().zip(&line.y[y]));
        points.filter(|(x, y)| y.is_some_and(|y| !y.is_finite()) || !x.is_finite()).count() as u64
    }

    /// Returns all points of a panel that can be drawn.
    fn points(&self, y: usize) -> impl Iterator<Item = Point> {
        let points = self.all.iter().flat_map(move |line| line.x.iter().zip(&line.y[y]));
        let points = points.filter_map(|(&x, &y)| Some((x, y?)));
        points.filter(|(x, y)| x.is_finite() && y.is_finite())
    }

    fn draw(&self, x_name: &str, shown: &[String], unshown: u64, request: &Request) -> String {
        let style = &request.style;
        let joined = self.all.iter().all(|line| line.x.is_sorted());
        let log = style.log.map_or((false, None), |log| (log.x(), Some(log.y())));
        let n = self.hues.len();
        let colours: Vec<RGBColor> = (0..n).map(|i| style.theme.category(i + usize::from(n > 1))).collect();
        let mut legend = Legend::default();
        if n > 1 {
            let swatch = |i: usize| {
                if joined {
                    Swatch::Pattern(colours[i], theme::SERIES, style.theme.dash(i))
                } else {
                    Swatch::Dot(colours[i], i)
                }
            };
            legend.entries.extend(self.hues.iter().enumerate().map(|(i, name)| (swatch(i), name.clone())));
        }
        if unshown > 0 {
            legend.entries.push((Swatch::Mark, format!("not finite: {unshown}")));
        }
        let sheet = style.sheet_width();
        let legend_width = sheet - 2.0 * theme::EDGE;
        let top = theme::EDGE + legend.height(legend_width) + theme::HEAD;
        let default = if shown.len() > 1 { theme::STACKED } else { theme::ALONE };
        let rest = top + theme::GAP * (shown.len() - 1) as f64 + theme::BOTTOM;
        let height = style.panel_height(default, shown.len(), rest);
        let axis = |values: &mut dyn Iterator<Item = f64>, log: Option<bool>| {
            let range = values.map(|v| (v, v)).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
            range.map(|(low, high)| match log {
                Some(true) if low > 0.0 => Axis::log(low, high),
                None if low > 0.0 && high > 100.0 * low => Axis::log(low, high),
                _ => Axis::linear(low, high),
            })
        };
        let y_axes: Vec<_> = (0..shown.len())
            .map(|y| axis(&mut self.points(y).map(|point| point.1), log.1))
            .map(|axis| axis.map_or_else(Axis::bare, |axis| fitted_y(axis, height)))
            .collect();
        let y_titles: Vec<_> =
            shown.iter().map(|name| title_lines(&name.replace('_', " "), height)).collect();
        let lines = y_titles.iter().map(Vec::len).max().unwrap_or(1);
        let left = left_of(&y_axes, lines);
        let mut of_all = (0..shown.len()).flat_map(|y| self.points(y)).map(|point| point.0);
        let x = axis(&mut of_all, Some(log.0)).unwrap_or_else(Axis::bare);
        let right = right_of(&x, sheet - left - theme::RIGHT);
        let width = sheet - left - right;
        let x = fitted_x(x, width);
        svg(style, rest + height * shown.len() as f64, |canvas| {
            legend.draw(canvas, theme::EDGE, theme::EDGE, legend_width);
            for (i, y) in y_axes.iter().enumerate() {
                let top = top + i as f64 * (height + theme::GAP);
                let frame = Frame { left, top, width, height, x: &x, y };
                let lowest = i + 1 == y_axes.len();
                frame.draw_axes(canvas, lowest, true);
                frame.draw_y_title(canvas, &y_titles[i], title_left(lines, &y_titles[i]));
                if lowest {
                    frame.draw_x_title(canvas, &x_title(x_name));
                }
                if let Some(letter) = letter(i, y_axes.len()) {
                    draw_letter(canvas, letter, (theme::EDGE, top - theme::LETTER));
                }
                if self.points(i).next().is_none() {
                    frame.draw_message(canvas, "no finite values");
                    continue;
                }
                if joined {
                    self.draw_lines(canvas, &frame, i, &colours, request);
                } else {
                    self.draw_dots(canvas, &frame, i, &colours);
                }
            }
        })
    }

    fn draw_lines(
        &self,
        canvas: &mut Canvas,
        frame: &Frame,
        y: usize,
        colours: &[RGBColor],
        request: &Request,
    ) {
        for line in &self.all {
            let mut downsampled = DownsampledLine::new(BINS, false);
            for (&x, &value) in line.x.iter().zip(&line.y[y]) {
                if x.is_finite() {
                    downsampled.push(x, value);
                }
            }
            let (ink, dash) = (colours[line.hue].to_rgba(), request.style.theme.dash(line.hue));
            for stretch in downsampled.stretches() {
                let points: Vec<_> = stretch.iter().map(|&point| frame.place(point)).collect();
                match points[..] {
                    [point] => canvas.dot(point, 1.0, ink),
                    _ => canvas.dashed_line(&points, dash, ink, 0.75 * theme::SERIES),
                }
            }
            let mut last = f64::NEG_INFINITY;
            for place in downsampled.places(super::downsample::Unshown::NotFinite) {
                let x = frame.place((*place.start(), 0.0)).0;
                if x - last > 5.0 {
                    mark(canvas, (x, frame.top), 1.0);
                    last = x;
                }
            }
        }
    }

    fn draw_dots(&self, canvas: &mut Canvas, frame: &Frame, y: usize, colours: &[RGBColor]) {
        let mut seen = HashSet::new();
        for line in &self.all {
            for (&x, &value) in line.x.iter().zip(&line.y[y]) {
                let Some(value) = value.filter(|value| value.is_finite() && x.is_finite()) else { continue };
                let (x, y) = frame.place((x, value));
                if seen.insert((line.hue, (x / SPOT) as i64, (y / SPOT) as i64)) {
                    marker(canvas, (x, y), line.hue, colours[line.hue]);
                }
            }
        }
    }
}

fn x_title(name: &str) -> String {
    match name {
        "start" | "end" => "tokens".to_owned(),
        name => name.replace('_', " "),
    }
}
