//! The one description of a figure: panels with their axes, and lines, bands, boxes, bars, maps and marks in the data's own
//! units. Each kind of figure makes it; [`sheet`](super::sheet) draws it as SVG, and `pgfplots`, `terminal` and `table` as
//! TeX, characters and CSV.

use std::ops::Range;

use plotters::style::RGBColor;

use crate::io::labels::Labels;
use crate::plot::axis::Axis;
use crate::plot::colours::{Colours, range};
use crate::plot::downsample::Point;
use crate::plot::style::{FigureStyle, Theme};
use crate::plot::{Direction, Request, font, theme};
use crate::statistics::Estimate;

/// Opacity of bands.
pub const BAND: f64 = 0.2;

/// A figure.
#[derive(Debug, Default)]
pub struct Chart {
    /// Name of the file without its extension: "surprise".
    pub name: String,
    /// Panels, row by row.
    pub panels: Vec<Panel>,
    /// Number of columns of panels, if there is room.
    pub columns: usize,
    /// Height of a panel in points, unless the style asks for another.
    pub height: f64,
    /// Entries of the legend, in order.
    pub keys: Vec<Key>,
    /// Remarks for the caption.
    pub notes: Vec<String>,
    /// Notes on values that no axis can show and on lost runs.
    pub omitted: Vec<String>,
}

/// An entry of the legend.
#[derive(Clone, Debug)]
pub struct Key {
    pub text: String,
    pub swatch: Swatch,
}

/// The picture of an entry of the legend.
#[derive(Clone, Debug)]
pub enum Swatch {
    Line(LineStyle),
    /// A filled area, as of bars.
    Area(RGBColor),
    /// Many lines, in the order of their colours.
    Fan(Vec<RGBColor>),
    /// A thin vertical line.
    Rule,
    /// The mark of values that cannot be drawn.
    Mark,
}

/// A marker at points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    /// A shape that tells the line from others.
    Shape,
    /// A small dot, for one of several values.
    Dot,
}

/// The style of a line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LineStyle {
    pub colour: RGBColor,
    /// Width of the line in points.
    pub width: f64,
    pub opacity: f64,
    /// Number among the lines to distinguish, which selects the marker and the letter. `None` is
    /// the line that stands out, a mean over the others.
    pub order: Option<usize>,
    pub marker: Option<Marker>,
    /// Lengths of dashes and gaps; empty for a solid line.
    pub dashes: &'static [f64],
    pub joined: bool,
}

/// One pair of axes.
#[derive(Debug, Default)]
pub struct Panel {
    /// Heading above the panel; empty with one panel.
    pub heading: String,
    pub x: Axis,
    pub y: Axis,
    pub x_title: String,
    pub y_title: String,
    /// Ranges of x that are shaded.
    pub shades: Vec<(f64, f64)>,
    /// x of thin vertical lines.
    pub rules: Vec<f64>,
    pub map: Option<Map>,
    pub boxes: Vec<BoxMark>,
    pub bars: Vec<Bar>,
    pub lines: Vec<Line>,
    /// Values of x and y at which thin dashed lines run through the panel.
    pub references: Vec<Reference>,
    /// Ranges of x with marks on the upper edge: values that are not finite.
    pub above: Vec<(f64, f64)>,
    /// Ranges of x with marks on the lower edge: values that are not above 0.
    pub below: Vec<(f64, f64)>,
    /// x of lost runs, and the numbers of the lines that lost them.
    pub lost: Vec<(f64, Vec<usize>)>,
    /// Message in the middle of a panel without values.
    pub message: Option<&'static str>,
}

/// The grid of a chart's panels.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts of a layout")]
pub struct PanelGrid {
    pub panels: usize,
    pub columns: usize,
    pub rows: usize,
    /// Whether all panels have the same x axis, which the lowest ones label.
    pub shares_x: bool,
    /// Whether panels side by side have the same y axis, which the leftmost ones label.
    pub shares_y: bool,
    /// Whether one colour bar serves all panels.
    pub one_bar: bool,
    /// Whether panels have letters.
    pub letters: bool,
}

/// A line across a panel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reference {
    /// A vertical line.
    X(f64),
    /// A horizontal line.
    Y(f64),
}

/// Low and high end of a point's interval.
pub type Ends = Option<(f64, f64)>;

/// A line: unbroken stretches of points.
#[derive(Clone, Debug)]
pub struct Line {
    pub name: String,
    pub style: LineStyle,
    pub stretches: Vec<Vec<Point>>,
    /// Low and high end of each point's interval, stretch by stretch; empty in figures without intervals.
    pub intervals: Vec<Vec<Ends>>,
    /// Whether intervals are drawn as bands rather than bars.
    pub band: bool,
}

/// A box of the values at a place: quartiles, median, and whiskers to the lowest and highest value.
#[derive(Clone, Debug)]
pub struct BoxMark {
    pub name: String,
    pub style: LineStyle,
    pub x: f64,
    /// Width in units of x.
    pub width: f64,
    pub n: usize,
    /// Lowest value, quartiles with the median between them, highest value.
    pub values: [f64; 5],
}

/// A bar from 0 to a value.
#[derive(Clone, Debug)]
pub struct Bar {
    pub name: String,
    pub style: LineStyle,
    pub x: f64,
    /// Width in units of x.
    pub width: f64,
    pub n: usize,
    pub value: f64,
    pub interval: Option<(f64, f64)>,
    /// Single values, if they are too few for an interval.
    pub values: Vec<f64>,
}

/// A grid of cells of the same size.
#[derive(Debug)]
pub struct Map {
    /// Number of cells along x and y.
    pub size: (usize, usize),
    /// x and y of the lower left corner.
    pub from: Point,
    /// Width and height of a cell.
    pub cell: (f64, f64),
    pub cells: Vec<Cell>,
    pub colours: Colours,
    /// Title of the colours.
    pub title: String,
    /// Column and row of the best cell.
    pub best: Option<(usize, usize)>,
    /// Whether cells are as high as wide.
    pub square: bool,
}

/// A cell of a map.
#[derive(Clone, Debug)]
pub struct Cell {
    pub column: usize,
    pub row: usize,
    /// Mean of the values drawn; `None` without any.
    pub value: Option<f64>,
    /// Number in the cell, if there is room.
    pub text: String,
    /// Whether values are missing that should be there.
    pub lost: bool,
}

impl Chart {
    pub fn new(name: &str, columns: usize, height: f64) -> Self {
        Self { name: name.to_owned(), columns, height, ..Self::default() }
    }

    /// Adds notes on empty panels and on lines that hide each other, and the titles and reference lines of the request. Drops
    /// marks beyond the ends of the x axes.
    pub fn finish(&mut self, Request { style, references, .. }: &Request) {
        self.panels.iter_mut().for_each(Panel::drop_marks_beyond);
        let mut hidden = Vec::<(String, Vec<String>)>::new();
        for panel in &self.panels {
            let place = panel.name();
            for pair in coincident(panel) {
                match hidden.iter_mut().find(|(lines, _)| *lines == pair) {
                    Some((_, places)) => places.push(place.clone()),
                    None => hidden.push((pair, vec![place.clone()])),
                }
            }
        }
        let several = self.panels.len() > 1;
        self.notes.extend(hidden.into_iter().map(|(lines, places)| {
            if several {
                format!("{lines} coincide in {}", places.join(", "))
            } else {
                format!("{lines} coincide")
            }
        }));
        for panel in &mut self.panels {
            if panel.is_empty() {
                panel.message.get_or_insert("no finite values");
            }
            panel.references.extend_from_slice(references);
            if let Some(label) = &style.x_label {
                panel.x_title = font::plain(label);
            }
            if let Some(label) = &style.y_label {
                let label = font::plain(label);
                match &mut panel.map {
                    Some(map) => map.title = label,
                    None => panel.y_title = label,
                }
            }
        }
    }

    /// Returns the names of the lines, boxes and bars in the legend.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let areas = self.panels.iter().any(|panel| !panel.bars.is_empty() || !panel.boxes.is_empty());
        let named = move |key: &&Key| match key.swatch {
            Swatch::Line(_) => true,
            Swatch::Area(_) => areas,
            Swatch::Fan(_) | Swatch::Rule | Swatch::Mark => false,
        };
        self.keys.iter().filter(named).map(|key| &key.text[..])
    }

    /// Whether an entry of the legend has this name.
    pub fn has_name(&self, name: &str) -> bool {
        self.keys.iter().any(|key| key.text == name)
    }

    /// Returns the number of lines that entries of the legend tell apart.
    pub fn distinct(&self) -> usize {
        self.keys.iter().filter(|key| matches!(key.swatch, Swatch::Line(_))).count()
    }

    /// Renames lines, and moves them to the front of the legend in this order.
    pub fn rename(&mut self, names: &[(String, String)]) {
        let place = |key: &Key| names.iter().position(|(old, _)| *old == key.text).unwrap_or(names.len());
        self.keys.sort_by_key(place);
        for (old, new) in names {
            let new = font::plain(new);
            let keys = self.keys.iter_mut().map(|key| &mut key.text);
            let lines = self.panels.iter_mut().flat_map(|panel| &mut panel.lines).map(|line| &mut line.name);
            keys.chain(lines).filter(|name| *name == old).for_each(|name| name.clone_from(&new));
        }
    }

    /// Returns the grid of the panels, in at most this number of columns.
    pub fn grid(&self, style: &FigureStyle, most: usize) -> PanelGrid {
        let panels = self.panels.len();
        let columns = most.min(self.columns).clamp(1, panels.max(1));
        let pairs = || self.panels.windows(2);
        PanelGrid {
            panels,
            columns,
            rows: panels.div_ceil(columns).max(1),
            shares_x: pairs().all(|pair| pair[0].x == pair[1].x && pair[0].x_title == pair[1].x_title),
            shares_y: columns > 1
                && pairs().all(|pair| pair[0].y == pair[1].y && pair[0].y_title == pair[1].y_title),
            one_bar: panels > 1 && self.shared_colours().is_some(),
            letters: style.letters && panels > 1,
        }
    }

    /// Returns the colours of the maps if all panels have the same ones, with their title.
    pub fn shared_colours(&self) -> Option<(&Colours, &str)> {
        let first = self.panels.first()?.map.as_ref()?;
        let same = |panel: &Panel| {
            panel.map.as_ref().is_some_and(|map| map.colours == first.colours && map.title == first.title)
        };
        self.panels.iter().all(same).then_some((&first.colours, &first.title[..]))
    }

    /// Whether any panel has a heading.
    pub fn has_headings(&self) -> bool {
        self.panels.iter().any(|panel| !panel.heading.is_empty())
    }
}

impl PanelGrid {
    /// Whether a panel has labels at its x axis.
    pub fn labels_x(&self, i: usize) -> bool {
        i + self.columns >= self.panels || !self.shares_x
    }

    /// Whether a panel has labels at its y axis.
    pub fn labels_y(&self, i: usize) -> bool {
        i.is_multiple_of(self.columns) || !self.shares_y
    }

    /// Returns the letter by which a text can refer to a panel.
    pub fn letter(&self, i: usize) -> Option<String> {
        ('a'..='z').nth(i).filter(|_| self.letters).map(String::from)
    }
}

/// Returns the names of lines with the same points: "a and b".
fn coincident(panel: &Panel) -> Vec<String> {
    let lines: Vec<_> =
        panel.lines.iter().filter(|line| line.style.joined && !line.stretches.is_empty()).collect();
    let mut groups = Vec::<Vec<&Line>>::new();
    for line in lines {
        // A single point, or a line across a panel, is no surprise.
        if line.stretches.iter().map(Vec::len).sum::<usize>() < 3 {
            continue;
        }
        match groups.iter_mut().find(|group| group[0].stretches == line.stretches) {
            Some(group) => group.push(line),
            None => groups.push(vec![line]),
        }
    }
    let names = |group: Vec<&Line>| {
        let names: Vec<_> = group.iter().map(|line| &line.name[..]).collect();
        let (last, others) = names.split_last()?;
        (!others.is_empty()).then(|| format!("{} and {last}", others.join(", ")))
    };
    groups.into_iter().filter_map(names).collect()
}

impl Key {
    pub fn line(text: &str, style: LineStyle) -> Self {
        Self { text: text.to_owned(), swatch: Swatch::Line(style) }
    }

    pub fn new(text: &str, swatch: Swatch) -> Self {
        Self { text: text.to_owned(), swatch }
    }
}

impl Panel {
    pub fn new((x, x_title): (Axis, &str), (y, y_title): (Axis, &str)) -> Self {
        Self { x, y, x_title: x_title.to_owned(), y_title: y_title.to_owned(), ..Self::default() }
    }

    /// Returns the heading, or else the title of the y axis, on one line.
    pub fn name(&self) -> String {
        let name = if self.heading.is_empty() { &self.y_title } else { &self.heading };
        name.replace('\n', " ")
    }

    /// Whether no value is drawn.
    fn is_empty(&self) -> bool {
        let points = self.lines.iter().flat_map(|line| &line.stretches).all(Vec::is_empty);
        let cells = self.map.as_ref().is_none_or(|map| map.cells.is_empty());
        points && cells && self.boxes.is_empty() && self.bars.is_empty()
    }

    /// Drops marks, rules and shades that do not touch the x axis. Back ends would draw them on its edge.
    fn drop_marks_beyond(&mut self) {
        let Self { x, shades, rules, above, below, lost, .. } = self;
        for ranges in [shades, above, below] {
            ranges.retain(|&range| x.touches(range));
        }
        rules.retain(|&place| x.holds(place));
        lost.retain(|(place, _)| x.holds(*place));
    }

    /// Returns the ends of the reference lines that lie in the panel, as fractions of the axes.
    pub fn reference_lines(&self) -> impl Iterator<Item = [Point; 2]> {
        self.references.iter().filter_map(|reference| match *reference {
            Reference::X(x) => self.x.holds(x).then(|| [0.0, 1.0].map(|y| (self.x.fraction(x), y))),
            Reference::Y(y) => self.y.holds(y).then(|| [0.0, 1.0].map(|x| (x, self.y.fraction(y)))),
        })
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
        Self { name: name.to_owned(), style, stretches, intervals: Vec::new(), band: false }
    }

    /// Returns a line of centres with their intervals.
    pub fn of_estimates(
        name: &str,
        style: LineStyle,
        stretches: &[Vec<(f64, Estimate)>],
        band: bool,
    ) -> Self {
        let points = stretches.iter().map(|stretch| stretch.iter().map(|&(x, of)| (x, of.center)).collect());
        let mut line = Self::new(name, style, points.collect());
        let ends = stretches.iter().map(|stretch| stretch.iter().map(|(_, of)| of.interval).collect());
        line.intervals = ends.collect();
        (line.intervals.iter().flatten().all(Option::is_none)).then(|| line.intervals.clear());
        line.band = band;
        line
    }

    /// Returns the points of stretches with their intervals.
    pub fn points(&self) -> impl Iterator<Item = (Point, Ends)> {
        self.stretches.iter().enumerate().flat_map(move |(i, stretch)| {
            let ends = move |place: usize| self.intervals.get(i).and_then(|ends| ends[place]);
            stretch.iter().enumerate().map(move |(place, &point)| (point, ends(place)))
        })
    }

    /// Returns outlines of the band along the high ends and back along the low ones, for stretches with at least two
    /// intervals.
    pub fn outlines(&self) -> Vec<Vec<Point>> {
        let of_stretch = |(points, ends): (&Vec<Point>, &Vec<Ends>)| {
            let ends: Vec<_> =
                points.iter().zip(ends).filter_map(|(point, ends)| Some((point.0, (*ends)?))).collect();
            let upper = ends.iter().map(|&(x, (_, high))| (x, high));
            let lower = ends.iter().rev().map(|&(x, (low, _))| (x, low));
            upper.chain(lower).collect::<Vec<_>>()
        };
        let stretches = self.stretches.iter().zip(&self.intervals).filter(|_| self.band);
        stretches.map(of_stretch).filter(|outline| outline.len() > 3).collect()
    }
}

impl LineStyle {
    /// Returns the style of a plain line.
    pub fn line(colour: RGBColor, width: f64, opacity: f64, order: Option<usize>) -> Self {
        Self { colour, width, opacity, order, marker: None, dashes: &[], joined: true }
    }

    /// Returns the style of the line that stands out.
    pub fn bold() -> Self {
        Self::line(theme::BLACK, theme::BOLD, 1.0, None)
    }

    /// Returns the styles of lines of these colours, which differ in their dashes too where colours are greys.
    pub fn of_colours(colours: Vec<RGBColor>, theme: Theme) -> Vec<Self> {
        let line =
            |(i, colour)| Self { dashes: theme.dash(i), ..Self::line(colour, theme::SERIES, 1.0, Some(i)) };
        colours.into_iter().enumerate().map(line).collect()
    }

    /// Returns the style with markers.
    pub fn marked(self) -> Self {
        Self { marker: Some(Marker::Shape), ..self }
    }

    /// Returns the style with markers alone.
    pub fn apart(self) -> Self {
        Self { joined: false, dashes: &[], ..self.marked() }
    }

    /// Returns the style of the single values whose centre has this style.
    pub fn of_values(self) -> Self {
        Self { marker: Some(Marker::Dot), joined: false, opacity: 0.6, ..self }
    }

    /// Returns the style of what a line beside it must beat.
    pub fn control(self) -> Self {
        Self { marker: None, joined: true, width: theme::SPINE, dashes: theme::BASELINES[0], ..self }
    }
}

impl Map {
    /// Returns the cells that are hatched, as row and ranges of columns.
    pub fn hatched(&self) -> Vec<(usize, Range<usize>)> {
        let hatched = |cell: &&Cell| cell.value.is_some_and(|value| self.colours.hatches(value));
        let mut places: Vec<_> =
            self.cells.iter().filter(hatched).map(|cell| (cell.row, cell.column)).collect();
        places.sort_unstable();
        let mut ranges = Vec::<(usize, Range<usize>)>::new();
        for (row, column) in places {
            match ranges.last_mut() {
                Some((last, range)) if *last == row && range.end == column => range.end += 1,
                _ => ranges.push((row, column..column + 1)),
            }
        }
        ranges
    }

    /// Returns the column and row of the best value.
    pub fn find_best(&self, direction: Direction) -> Option<(usize, usize)> {
        let values =
            self.cells.iter().filter_map(|cell| Some((cell, cell.value.filter(|value| value.is_finite())?)));
        let sign = direction.sign();
        let best = values.min_by(|a, b| (sign * a.1).total_cmp(&(sign * b.1)));
        best.map(|(cell, _)| (cell.column, cell.row))
    }

    /// Returns the middle of a cell.
    pub fn middle(&self, column: usize, row: usize) -> Point {
        (self.from.0 + (column as f64 + 0.5) * self.cell.0, self.from.1 + (row as f64 + 0.5) * self.cell.1)
    }
}

/// Returns the lowest and highest y of lines and of their intervals.
pub fn y_range(lines: &[Line]) -> Option<(f64, f64)> {
    let ends = lines.iter().flat_map(Line::points).map(|((_, y), ends)| ends.unwrap_or((y, y)));
    range(&ends.flat_map(|(low, high)| [low, high]).collect::<Vec<_>>())
}

/// Joins ascending ranges that are closer than `space`.
pub fn joined(ranges: impl IntoIterator<Item = (f64, f64)>, space: f64) -> Vec<(f64, f64)> {
    let mut joined = Vec::<(f64, f64)>::new();
    for (start, end) in ranges {
        match joined.last_mut() {
            Some(last) if start - last.1 < space => last.1 = last.1.max(end),
            _ => joined.push((start, end)),
        }
    }
    joined
}
