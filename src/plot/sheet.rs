//! The sheet: a chart laid out and drawn as SVG. The legend lies above the panels, which form a grid. Panels with the same
//! axes label them once.

use plotters::style::Color;
use plotters::style::text_anchor::HPos;

use crate::plot::axis::Axis;
use crate::plot::canvas::{Canvas, svg};
use crate::plot::chart::{Chart, Line, Marker, Panel, PanelGrid};
use crate::plot::colours::Colours;
use crate::plot::downsample::Point;
use crate::plot::font::Font;
use crate::plot::frame::{Frame, hatch};
use crate::plot::legend::Legend;
use crate::plot::style::{FigureStyle, LegendPlace};
use crate::plot::{names, theme};

/// Minimum width of each of several columns of panels.
const MIN_WIDTH: f64 = 112.0;
/// Distance between panels that share their y axis.
const BETWEEN: f64 = 12.0;
/// Room above a panel for its heading, for its letter alone, and for neither.
const HEADING: f64 = 15.0;
const BARE: f64 = 4.0;
/// Distance between rows of panels that share their x axis, besides headings.
const ROWS: f64 = 2.0;
/// Distance between a panel and its colour bar; below, the width of the bar, with its labels, and its height at most.
const BESIDE: f64 = 12.0;
const BAR: f64 = 8.0;
const BAR_WITH_LABELS: f64 = 58.0;
const BAR_HEIGHT: f64 = 200.0;
/// Side of a square map, if there is room.
const SIDE: f64 = 300.0;
/// Largest fraction of the sheet for the labels of a y axis, and for names at the ends of lines.
const LABELS: f64 = 0.2;
/// Distance between a line's end, with its marker, and its name.
const APART: f64 = 5.0;
/// Distance between the lines of a title that reads upwards.
const TITLE_LINE: f64 = theme::TITLE + 1.0;

/// Draws a chart as an SVG document.
pub fn draw(chart: &Chart, style: &FigureStyle) -> String {
    let sheet = Sheet::new(chart, style);
    svg(style, sheet.height, |canvas| sheet.draw(canvas))
}

/// The layout of a chart, in points.
struct Sheet<'a> {
    chart: &'a Chart,
    style: &'a FigureStyle,
    font: Font,
    grid: PanelGrid,
    /// Top and left edge of the panels, by row and column.
    tops: Vec<f64>,
    lefts: Vec<f64>,
    panel: (f64, f64),
    /// Room left of the panels of a column for the labels and the title.
    room: Vec<f64>,
    height: f64,
    axes: Vec<(Axis, Axis)>,
    titles: Vec<Vec<String>>,
    headings: Vec<String>,
    /// Positions of the lines' ends, if their names lie there.
    ends: Vec<f64>,
}

impl<'a> Sheet<'a> {
    fn new(chart: &'a Chart, style: &'a FigureStyle) -> Self {
        let (width, font, panels) = (style.sheet_width(), style.font, &chart.panels);
        let fit = (1..=chart.columns).rev().find(|&n| n as f64 * MIN_WIDTH <= width).unwrap_or(1);
        let grid = chart.grid(style, fit);
        let rows = grid.rows;
        let maps = panels.iter().any(|panel| panel.map.is_some());
        let mut sheet = Self {
            chart,
            style,
            font,
            grid,
            tops: Vec::new(),
            lefts: Vec::new(),
            panel: (0.0, 0.0),
            room: Vec::new(),
            height: 0.0,
            axes: Vec::new(),
            titles: Vec::new(),
            headings: Vec::new(),
            ends: Vec::new(),
        };
        let above = if chart.has_headings() {
            HEADING
        } else if grid.letters {
            theme::HEAD
        } else {
            BARE
        };
        // Names at the ends of lines take the place of the legend, so they are tried first.
        for with_ends in [true, false] {
            let top = theme::EDGE + sheet.legend(with_ends).height(sheet.legend_width()) + ROWS;
            let below = if grid.shares_x { ROWS } else { theme::BOTTOM };
            let rest = top + above * rows as f64 + below * (rows - 1) as f64 + theme::BOTTOM;
            let height = style.panel_height(chart.height, rows, rest);
            let square = panels.iter().filter_map(|panel| panel.map.as_ref()).any(|map| map.square);
            let height = if square { sheet.square_side(rest) } else { height };
            sheet.tops = (0..rows).map(|row| top + above + row as f64 * (above + height + below)).collect();
            sheet.height = rest + height * rows as f64;
            sheet.fit_axes(height);
            if with_ends {
                sheet.ends = sheet.line_ends(height).unwrap_or_default();
                if sheet.ends.is_empty() {
                    continue;
                }
            }
            let bars = if maps { BESIDE + BAR_WITH_LABELS } else { 0.0 };
            sheet.fit_columns(height, bars, square);
            break;
        }
        sheet
    }

    /// Returns the entries and notes above the panels. Entries that lie elsewhere are not among them.
    fn legend(&self, at_ends: bool) -> Legend<'a> {
        let keys = match self.style.legend {
            LegendPlace::Top if at_ends => {
                // Entries of lines are at their ends, others stay.
                let lines = self.chart.panels.first().map_or(0, |panel| self.named(panel).count());
                self.chart.keys.get(lines..).unwrap_or_default()
            }
            LegendPlace::Top => &self.chart.keys[..],
            _ => &[],
        };
        let notes = if self.style.notes { &self.chart.notes[..] } else { &[] };
        Legend { keys, notes, font: self.font, stacked: false }
    }

    fn legend_width(&self) -> f64 {
        self.style.sheet_width() - 2.0 * theme::EDGE
    }

    /// Returns the entries beside or inside the panels.
    fn aside(&self) -> Legend<'a> {
        Legend { keys: &self.chart.keys, notes: &[], font: self.font, stacked: true }
    }

    /// Returns the side of a square map.
    fn square_side(&self, rest: f64) -> f64 {
        let width = self.style.sheet_width();
        let labels = self.chart.panels.first().map_or(0.0, |panel| self.left_of([&panel.y], 1));
        let side = (width - labels - BESIDE - BAR_WITH_LABELS - theme::EDGE).min(SIDE);
        self.style.panel_height(side, 1, rest).min(side)
    }

    /// Chooses the labels of the axes that fit panels of this height, and breaks the titles of the y axes.
    fn fit_axes(&mut self, height: f64) {
        let rows = self.tops.len();
        let whole = if self.grid.shares_y { self.tops[rows - 1] + height - self.tops[0] } else { height };
        self.titles.clear();
        self.axes.clear();
        for panel in &self.chart.panels {
            let y = words_within(&panel.y, self.font, self.style.sheet_width() * LABELS);
            let y = y.fitted(|_| (theme::SMALL + 1.5) / height);
            let title = y.titled(&panel.y_title);
            self.titles.push(self.upward_lines(&title, whole));
            self.axes.push((panel.x.clone(), y));
        }
    }

    /// Breaks a title that reads upwards into lines that fit this height.
    fn upward_lines(&self, title: &str, height: f64) -> Vec<String> {
        let lines = title.split('\n').flat_map(|line| self.font.wrapped(line, theme::TITLE, height));
        lines.map(|line| self.font.shortened(&line, theme::TITLE, height)).collect()
    }

    fn left_of<'b>(&self, axes: impl IntoIterator<Item = &'b Axis>, title_lines: usize) -> f64 {
        let labels = axes.into_iter().flat_map(Axis::labels).map(|(_, label)| label);
        let widest = self.font.widest(labels, theme::SMALL).max(10.0);
        theme::TITLES + title_lines.saturating_sub(1) as f64 * TITLE_LINE + widest + theme::TICK + 5.0
    }

    /// Divides the width among the columns.
    fn fit_columns(&mut self, height: f64, bars: f64, square: bool) {
        let (width, columns) = (self.style.sheet_width(), self.grid.columns);
        let of_column = |column: usize| (column..self.chart.panels.len()).step_by(columns);
        let room = |column: usize| {
            if self.grid.shares_y && column > 0 {
                return BETWEEN;
            }
            let lines = of_column(column).map(|i| self.titles[i].len()).max().unwrap_or(1);
            let beside = if column > 0 { BETWEEN / 2.0 } else { 0.0 };
            self.left_of(of_column(column).map(|i| &self.axes[i].1), lines) + beside
        };
        self.room = (0..columns).map(room).collect();
        let mut right = theme::RIGHT;
        if !self.ends.is_empty() {
            let names =
                self.chart.panels.iter().flat_map(|panel| self.named(panel)).map(|line| &line.name[..]);
            right = right.max(APART + self.font.widest(names, theme::SMALL) + theme::EDGE);
        }
        if self.style.legend == LegendPlace::Right && !self.chart.keys.is_empty() {
            right += self.aside().width(width / 3.0) + theme::EDGE;
        }
        let own_bars = if self.grid.one_bar { 0.0 } else { bars };
        right =
            if bars > 0.0 { if self.grid.one_bar { bars + theme::EDGE } else { theme::EDGE } } else { right };
        let taken = |right: f64| self.room.iter().sum::<f64>() + own_bars * columns as f64 + right;
        let of_panel = |right: f64| ((width - taken(right)) / columns as f64).max(1.0);
        // The last label of the x axis may reach beyond the panel.
        let beyond = self.chart.panels.iter().flat_map(|panel| {
            let labels = panel.x.labels().map(|(at, label)| {
                let reach = if panel.x.is_slots() { 0.0 } else { self.font.width(label, theme::SMALL) / 2.0 };
                reach - (1.0 - at) * of_panel(right)
            });
            labels.collect::<Vec<_>>()
        });
        let right = if bars > 0.0 {
            right
        } else {
            beyond.fold(right, |most, beyond| most.max(beyond + theme::EDGE))
        };
        let panel = if square { height } else { of_panel(right) };
        // A square map is as wide as needed and centred in the requested width.
        let mut left =
            if square { (width - taken(right) - panel * columns as f64).max(0.0) / 2.0 } else { 0.0 };
        self.lefts.clear();
        for column in 0..columns {
            left += self.room[column];
            self.lefts.push(left);
            left += panel + own_bars;
        }
        self.panel = (panel, height);
        let headings: Vec<_> = self.chart.panels.iter().map(|panel| panel.heading.clone()).collect();
        let letter = if self.grid.letters { self.font.bold_width("m", theme::TITLE) + 5.0 } else { 0.0 };
        self.headings = if self.chart.has_headings() {
            names::shortened(&headings, self.font, theme::SMALL, panel - letter)
        } else {
            headings
        };
        for (x, _) in &mut self.axes {
            *x = words_within(x, self.font, panel / x.labels().count().max(1) as f64 - 3.0)
                .fitted(|label| (self.font.width(label, theme::SMALL) + 5.0) / panel);
        }
    }

    /// Returns the lines that entries of the legend name: those of centres.
    fn named(&self, panel: &'a Panel) -> impl Iterator<Item = &'a Line> {
        let keys = &self.chart.keys;
        panel.lines.iter().filter(move |line| {
            line.style.joined
                && line.style.marker == Some(Marker::Shape)
                && keys.iter().any(|key| key.text == line.name)
        })
    }

    /// Returns the ends of the lines as fractions of the axis, if names fit beside them. That needs a single panel whose lines
    /// all end at the same x, far enough apart.
    fn line_ends(&self, height: f64) -> Option<Vec<f64>> {
        let [panel] = &self.chart.panels[..] else { return None };
        let lines: Vec<_> = self.named(panel).collect();
        if self.style.legend != LegendPlace::Top || lines.len() < 2 || lines.len() > self.chart.keys.len() {
            return None;
        }
        if lines.iter().zip(&self.chart.keys).any(|(line, key)| line.name != key.text) {
            return None;
        }
        let last = |line: &&Line| line.stretches.last()?.last().copied();
        let ends = lines.iter().map(last).collect::<Option<Vec<_>>>()?;
        let y = &self.axes[0].1;
        let furthest = ends.iter().map(|end| end.0).fold(f64::NEG_INFINITY, f64::max);
        if ends.iter().any(|end| end.0 < furthest || !y.holds(end.1) || !panel.x.holds(end.0)) {
            return None;
        }
        let names = lines.iter().map(|line| &line.name[..]);
        let fit = self.font.widest(names, theme::SMALL) < LABELS * self.style.sheet_width();
        let ends: Vec<_> = ends.iter().map(|end| y.fraction(end.1)).collect();
        let mut sorted = ends.clone();
        sorted.sort_by(f64::total_cmp);
        let apart = sorted.windows(2).all(|pair| (pair[1] - pair[0]) * height >= theme::SMALL + 1.0);
        (apart && fit).then_some(ends)
    }

    fn frame(&self, i: usize) -> Frame<'_> {
        let (x, y) = &self.axes[i];
        let (width, height) = self.panel;
        let (left, top) = (self.lefts[i % self.grid.columns], self.tops[i / self.grid.columns]);
        Frame { left, top, width, height, x, y }
    }

    fn draw(&self, canvas: &mut Canvas) {
        let legend = self.legend(!self.ends.is_empty());
        legend.draw(canvas, theme::EDGE, theme::EDGE, self.legend_width());
        for (i, panel) in self.chart.panels.iter().enumerate() {
            let frame = self.frame(i);
            frame.draw_marks(canvas, panel, self.font);
            let column = i % self.grid.columns;
            frame.draw_axes(canvas, self.grid.labels_x(i), self.grid.labels_y(i));
            if self.grid.labels_x(i) {
                let title = frame.x.titled(&panel.x_title);
                let title = self.font.shortened(&title, theme::TITLE, frame.width + self.room[column]);
                let at = (frame.centre().0, frame.bottom() + theme::BOTTOM - 7.0);
                canvas.text(&title, at, theme::TITLE, theme::BLACK, HPos::Center);
            }
            let edge = frame.left - self.room[column] + if column > 0 { BETWEEN / 2.0 } else { 0.0 };
            if !self.grid.shares_y {
                let widest =
                    (column..self.titles.len()).step_by(self.grid.columns).map(|i| self.titles[i].len());
                let aside = widest.max().unwrap_or(1).saturating_sub(self.titles[i].len());
                draw_upwards(canvas, &self.titles[i], (edge + aside as f64 * TITLE_LINE, frame.centre().1));
            } else if i == 0 {
                let last = self.tops[self.tops.len() - 1] + frame.height;
                draw_upwards(canvas, &self.titles[0], (edge, f64::midpoint(frame.top, last)));
            }
            self.draw_heading(canvas, &frame, panel, i, edge);
            if let Some(map) = panel.map.as_ref().filter(|_| !self.grid.one_bar) {
                let height = frame.height.min(BAR_HEIGHT.max(SIDE));
                draw_bar(canvas, &map.colours, &map.title, (frame.right() + BESIDE, frame.top, height), self);
            }
        }
        if let (true, Some((colours, title))) = (self.grid.one_bar, self.chart.shared_colours()) {
            let last = self.tops[self.tops.len() - 1] + self.panel.1;
            let right = self.lefts[self.grid.columns - 1] + self.panel.0;
            let height = (last - self.tops[0]).min(BAR_HEIGHT);
            draw_bar(canvas, colours, title, (right + BESIDE, self.tops[0], height), self);
        }
        self.draw_aside(canvas);
    }

    /// Draws the letter by which a text can refer to the panel, and the heading.
    fn draw_heading(&self, canvas: &mut Canvas, frame: &Frame, panel: &Panel, i: usize, edge: f64) {
        let letter = self.grid.letter(i);
        if panel.heading.is_empty() {
            if let Some(letter) = letter {
                let left = if self.grid.labels_y(i) { edge.max(theme::EDGE) } else { frame.left };
                canvas.bold_text(&letter, (left, frame.top - theme::LETTER), theme::TITLE, theme::BLACK);
            }
            return;
        }
        let (mut x, y) = (frame.left, frame.top - 7.0);
        if let Some(letter) = letter {
            canvas.bold_text(&letter, (x, y), theme::TITLE, theme::BLACK);
            x += self.font.bold_width(&letter, theme::TITLE) + 5.0;
        }
        canvas.text(&self.headings[i], (x, y), theme::SMALL, theme::BLACK, HPos::Left);
    }

    /// Draws the names at the ends of lines, or the legend beside or inside the panels.
    fn draw_aside(&self, canvas: &mut Canvas) {
        let (Some(panel), false) = (self.chart.panels.first(), self.axes.is_empty()) else { return };
        let frame = self.frame(0);
        for (line, &share) in self.named(panel).zip(&self.ends) {
            let at = (frame.right() + APART, frame.bottom() - share * frame.height);
            canvas.text(&line.name, at, theme::SMALL, theme::BLACK, HPos::Left);
        }
        let legend = self.aside();
        match self.style.legend {
            LegendPlace::Right if !legend.keys.is_empty() => {
                let width = legend.width(self.style.sheet_width() / 3.0);
                let left = self.style.sheet_width() - theme::EDGE - width;
                legend.draw(canvas, left, frame.top, width + 0.1);
            }
            LegendPlace::Inside if !legend.keys.is_empty() => {
                let width = legend.width(frame.width * 0.8);
                let height = legend.height(width + 0.1);
                let (right, low) =
                    emptiest_corner(panel, &frame, (width / frame.width, height / frame.height));
                let left = if right { frame.right() - width - 2.0 } else { frame.left + 5.0 };
                let top = if low { frame.bottom() - height - 2.0 } else { frame.top + 1.0 };
                let paper = theme::faint(theme::PAPER, 0.85);
                canvas.rectangle((left - 2.0, top), (left + width + 2.0, top + height), paper);
                legend.draw(canvas, left, top, width + 0.1);
            }
            _ => {}
        }
    }
}

/// Returns whether the corner with the fewest points lies right, and low.
fn emptiest_corner(panel: &Panel, frame: &Frame, (width, height): (f64, f64)) -> (bool, bool) {
    let points = || panel.lines.iter().flat_map(|line| line.stretches.iter().flatten());
    let places: Vec<_> = points().map(|&point| frame.share(point)).collect();
    let inside = |(right, low): (bool, bool)| {
        let within = |&&(x, y): &&Point| {
            (if right { x > 1.0 - width } else { x < width })
                && (if low { y < height } else { y > 1.0 - height })
        };
        places.iter().filter(within).count()
    };
    let corners = [(true, false), (false, false), (true, true), (false, true)];
    corners.into_iter().min_by_key(|&corner| inside(corner)).unwrap_or_default()
}

/// Returns an axis whose names are cut to this width.
fn words_within(axis: &Axis, font: Font, width: f64) -> Axis {
    if !axis.is_slots() {
        return axis.clone();
    }
    let labels: Vec<_> = axis.labels().map(|(_, label)| label.to_owned()).collect();
    // Numbers are dropped rather than cut.
    if labels.iter().all(|label| label.starts_with(|c: char| c.is_ascii_digit() || c == '−')) {
        return axis.clone();
    }
    axis.clone().relabelled(names::shortened(&labels, font, theme::SMALL, width))
}

/// Draws the lines of a title that reads upwards, from its left edge.
fn draw_upwards(canvas: &mut Canvas, lines: &[String], (left, middle): Point) {
    for (i, line) in lines.iter().enumerate() {
        let x = left + theme::TITLES / 2.0 + i as f64 * TITLE_LINE;
        canvas.upward_text(line, (x, middle), theme::TITLE, theme::BLACK);
    }
}

/// Draws a colour bar, its axis to the right, and its title, which reads upwards. Arrows show that values lie beyond.
fn draw_bar(
    canvas: &mut Canvas,
    colours: &Colours,
    title: &str,
    (left, top, height): (f64, f64, f64),
    sheet: &Sheet,
) {
    const STEPS: usize = 64;
    let (right, bottom) = (left + BAR, top + height);
    for i in 0..STEPS {
        let (low, high) = (i as f64 / STEPS as f64, (i + 1) as f64 / STEPS as f64);
        // Each step reaches the top, so that no seam shows between steps.
        let colour = colours.at(f64::midpoint(low, high)).to_rgba();
        canvas.rectangle((left, top), (right, bottom - low * height), colour);
    }
    let ends = colours.axis().range();
    if colours.hatches(ends.1) {
        let from = bottom - colours.share(1.0) * height;
        hatch(canvas, (left, top), (right, from));
    }
    for (cut, y, tip, end) in
        [(colours.cut.0, bottom, bottom + 4.0, 0.0), (colours.cut.1, top, top - 4.0, 1.0)]
    {
        if cut {
            canvas.polygon(
                &[(left, y), (right, y), (f64::midpoint(left, right), tip)],
                colours.at(end).to_rgba(),
            );
        }
    }
    let axis = colours.axis().clone().fitted(|_| (theme::SMALL + 1.5) / height);
    for tick in &axis.ticks {
        let y = bottom - tick.at * height;
        let length = if tick.label.is_some() { theme::TICK } else { theme::TICK / 2.0 };
        canvas.line(&[(right, y), (right + length, y)], theme::BLACK.to_rgba(), theme::SPINE);
        if let Some(label) = &tick.label {
            canvas.text(label, (right + theme::TICK + 2.0, y), theme::SMALL, theme::BLACK, HPos::Left);
        }
    }
    let widest = sheet.font.widest(axis.labels().map(|(_, label)| label), theme::SMALL);
    let first = right + theme::TICK + 2.0 + widest + 3.0 - theme::TITLES / 2.0 + theme::TITLE / 2.0;
    let lines = sheet.upward_lines(&axis.titled(title), height);
    draw_upwards(canvas, &lines, (first, top + height / 2.0));
}
