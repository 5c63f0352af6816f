//! A figure as data: panels with their axes, lines, cells and marks in the data's own units. The terminal and pgfplots
//! back ends draw from it. Each kind of figure makes it from the series of its SVG.

mod retention;
mod scan;
mod timeline;

use std::ops::Range;
use std::path::PathBuf;

use plotters::style::RGBColor;

use super::{CsvSource, Kind, Request, sweep};
use crate::error::{Error, Result};
use crate::io::labels::Labels;
use crate::plot::axis::Axis;
use crate::plot::colours::Colours;
use crate::plot::downsample::Point;
use crate::plot::sweep::SweepFigure;
use crate::statistics::Estimate;

/// Returns the figures that `nmem plot` draws of files of one kind, and notes for the user. Timelines of several runs share
/// one figure. Figures of other kinds are named after their file if there are several files.
pub fn charts(
    files: &[CsvSource],
    request: &Request,
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<(Vec<Chart>, Vec<String>)> {
    let Some(first) = files.first() else { return Ok((Vec::new(), Vec::new())) };
    if matches!(first.kind, Kind::Timeline | Kind::Gates) {
        return Ok((vec![timeline::chart(files, request, check)?], Vec::new()));
    }
    let (mut all, mut notes) = (Vec::new(), Vec::new());
    for file in files {
        check()?;
        let (charts, notes_of_file) = of_file(file, request, check)?;
        all.extend(charts.into_iter().map(|chart| Chart {
            name: if files.len() > 1 {
                format!("{}-{}", file.name.replace('/', "-"), chart.name)
            } else {
                chart.name
            },
            ..chart
        }));
        notes.extend(notes_of_file);
    }
    Ok((all, notes))
}

fn of_file(
    file: &CsvSource,
    request: &Request,
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<(Vec<Chart>, Vec<String>)> {
    let options = || SweepFigure {
        x: request.x.clone(),
        y: request.y.clone(),
        hue: request.hue.clone(),
        map: file.kind == Kind::Map,
    };
    let style = &request.style;
    match file.kind {
        Kind::Heads => Ok((timeline::heads(&file.csv, request, check)?, Vec::new())),
        Kind::Retention if !file.of_sweep => {
            Ok((vec![retention::chart(&file.csv, style.theme, check)?], Vec::new()))
        }
        Kind::Retention => sweep::retention_charts(&file.csv, &options(), style),
        Kind::Sweep | Kind::Map => sweep::charts(&file.csv, &options(), style),
        Kind::Scan => scan::charts(&file.csv, style.theme),
        Kind::Columns | Kind::Timeline | Kind::Gates => Err(columns()),
    }
}

fn columns() -> Error {
    let reason = "columns cannot be drawn in the terminal or as pgfplots; write svg, pdf or png instead";
    Error::rejected("--kind", reason)
}

/// A figure.
pub struct Chart {
    /// Name of the file without its extension: "surprise".
    pub name: String,
    /// The CSV file whose columns are the sources of the lines.
    pub csv: Option<PathBuf>,
    /// Panels, row by row.
    pub panels: Vec<Panel>,
    /// Number of columns of panels.
    pub columns: usize,
    /// Entries of the legend, in order.
    pub keys: Vec<Key>,
    /// Remarks for the caption.
    pub notes: Vec<String>,
    /// Notes on values that no axis can show and on lost runs.
    pub omitted: Vec<String>,
    /// Colours of the cells and their title, if panels are maps.
    pub colours: Option<(Colours, String)>,
}

/// An entry of the legend.
pub struct Key {
    pub text: String,
    pub style: LineStyle,
}

/// The style of a line.
#[derive(Clone, Copy, Debug)]
pub struct LineStyle {
    pub colour: RGBColor,
    /// Width of the line in points.
    pub width: f64,
    pub opacity: f64,
    /// Number among the lines to distinguish, which selects the marker and the letter. `None` is
    /// the line that stands out, a mean over the others.
    pub order: Option<usize>,
    pub marked: bool,
    /// Lengths of dashes and gaps; empty for a solid line.
    pub dashes: &'static [f64],
    pub joined: bool,
}

/// One pair of axes.
pub struct Panel {
    /// Name of the panel within its figure, for use in file names.
    pub name: String,
    /// Heading above the panel; empty with one panel.
    pub heading: String,
    pub x: Axis,
    pub y: Axis,
    pub x_title: String,
    /// Title of the y axis, with line breaks where it may be broken.
    pub y_title: String,
    pub lines: Vec<Line>,
    pub map: Option<Map>,
    /// x of thin vertical lines.
    pub rules: Vec<f64>,
    /// Ranges of x that are shaded.
    pub shades: Vec<(f64, f64)>,
    /// x of marks on the upper edge, for values that are not finite and for lost runs.
    pub above: Vec<f64>,
    /// x of marks on the lower edge, for values that are not above 0.
    pub below: Vec<f64>,
}

/// A line: unbroken stretches of points.
pub struct Line {
    /// Name of the line, used as a column name.
    pub name: String,
    pub style: LineStyle,
    pub stretches: Vec<Vec<Point>>,
    /// Low and high end of each point's interval, stretch by stretch; empty in figures without intervals.
    pub intervals: Vec<Vec<Option<(f64, f64)>>>,
    /// Whether intervals are drawn as bands rather than bars.
    pub band: bool,
    /// The same points as columns of the CSV that the figure is made from.
    pub source: Option<ColumnSource>,
}

/// Columns of a CSV, or expressions of columns in pgfmath syntax, and the rows to use.
#[derive(Clone, Debug)]
pub struct ColumnSource {
    pub x: String,
    pub y: String,
    /// Columns and the texts that they must have.
    pub rows: Vec<(&'static str, String)>,
}

/// A grid of cells of the same size.
pub struct Map {
    /// Number of cells along x and y.
    pub size: (usize, usize),
    /// x and y of the lower left corner.
    pub from: (f64, f64),
    /// Width and height of a cell.
    pub cell: (f64, f64),
    /// Cells, each as column, row and value.
    pub cells: Vec<(usize, usize, f64)>,
    /// Numbers to write in the cells, in the order of `cells`, if there are few.
    pub texts: Vec<String>,
}

impl Panel {
    pub fn new(name: &str, (x, x_title): (Axis, &str), (y, y_title): (Axis, &str)) -> Self {
        Self {
            name: name.to_owned(),
            heading: String::new(),
            x,
            y,
            x_title: x_title.to_owned(),
            y_title: y_title.to_owned(),
            lines: Vec::new(),
            map: None,
            rules: Vec::new(),
            shades: Vec::new(),
            above: Vec::new(),
            below: Vec::new(),
        }
    }

    /// Marks the segments and repeats within these tokens.
    pub fn mark_labels(&mut self, labels: &Labels, tokens: &Range<u64>) {
        let within = |place: &&u64| tokens.contains(place);
        self.rules = labels.boundaries.iter().filter(within).map(|&place| place as f64).collect();
        let cut = labels.repeats.iter().map(|range| range.start.max(tokens.start)..range.end.min(tokens.end));
        self.shades = cut
            .filter(|range| !range.is_empty())
            .map(|range| (range.start as f64, range.end as f64))
            .collect();
    }
}

impl Line {
    pub fn new(name: &str, style: LineStyle, stretches: Vec<Vec<Point>>) -> Self {
        Self { name: name.to_owned(), style, stretches, intervals: Vec::new(), band: false, source: None }
    }

    /// Returns a line of means with their intervals.
    pub fn of_estimates(
        name: &str,
        style: LineStyle,
        stretches: &[Vec<(f64, Estimate)>],
        band: bool,
    ) -> Self {
        let points = stretches.iter().map(|stretch| stretch.iter().map(|&(x, of)| (x, of.mean)).collect());
        let mut line = Self::new(name, style, points.collect());
        let ends = stretches.iter().map(|stretch| stretch.iter().map(|(_, of)| of.interval()).collect());
        line.intervals = ends.collect();
        (line.intervals.iter().flatten().all(Option::is_none)).then(|| line.intervals.clear());
        line.band = band;
        line
    }
}

impl LineStyle {
    /// Returns the style of a plain line.
    pub fn line(colour: RGBColor, width: f64, opacity: f64, order: Option<usize>) -> Self {
        Self { colour, width, opacity, order, marked: false, dashes: &[], joined: true }
    }

    /// Returns the style of measurements with markers.
    pub fn marked(colour: RGBColor, width: f64, order: usize, joined: bool) -> Self {
        Self { colour, width, opacity: 1.0, order: Some(order), marked: true, dashes: &[], joined }
    }
}
