//! The frame of one panel: its axes and the marks within them.

use plotters::style::text_anchor::HPos;
use plotters::style::{Color, RGBColor};

use crate::plot::axis::Axis;
use crate::plot::canvas::Canvas;
use crate::plot::chart::{BAND, Bar, BoxMark, Line, LineStyle, Map, Marker, Panel, joined};
use crate::plot::clip;
use crate::plot::downsample::Point;
use crate::plot::font::Font;
use crate::plot::legend::{mark, marker};
use crate::plot::theme;

/// Half the width of an interval's ends.
const CAP: f64 = 1.8;
/// Distance between the marks of lines that lost a run at the same place.
const STACK: f64 = 5.0;
/// Distance below which marks would overlap and become one with a bar.
const MARK_SPACE: f64 = 5.0;
/// Distance in points of paper below which dots become one.
const SPOT: f64 = 0.5;
/// Width and height of a number in a cell, and its size.
const NUMBER: (f64, f64) = (25.0, 9.0);
const NUMBER_SIZE: f64 = 6.0;
/// Distance between the lines of hatching.
const HATCH: f64 = 2.5;

/// A panel's place and axes.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
    pub x: &'a Axis,
    pub y: &'a Axis,
}

impl Frame<'_> {
    pub fn right(&self) -> f64 {
        self.left + self.width
    }

    pub fn bottom(&self) -> f64 {
        self.top + self.height
    }

    pub fn centre(&self) -> Point {
        (self.left + self.width / 2.0, self.top + self.height / 2.0)
    }

    /// Returns the position of a point as fractions of the axes.
    pub fn share(&self, (x, y): Point) -> Point {
        (self.x.beyond(x), self.y.beyond(y))
    }

    /// Returns the position on the sheet of fractions of the axes.
    pub fn at(&self, (x, y): Point) -> Point {
        (self.left + x * self.width, self.bottom() - y * self.height)
    }

    /// Returns the position on the sheet of a point, on the edge if it lies beyond.
    pub fn place(&self, (x, y): Point) -> Point {
        self.at((self.x.fraction(x), self.y.fraction(y)))
    }

    pub fn place_x(&self, x: f64) -> f64 {
        self.left + self.x.fraction(x) * self.width
    }

    /// Draws the left and lower spines and the ticks, with labels unless panels share them.
    pub fn draw_axes(&self, canvas: &mut Canvas, x_labels: bool, y_labels: bool) {
        let ink = theme::BLACK.to_rgba();
        let (left, bottom) = (self.left, self.bottom());
        canvas.line(&[(left, self.top), (left, bottom), (self.right(), bottom)], ink, theme::SPINE);
        let length = |label: Option<&str>| if label.is_some() { theme::TICK } else { theme::TICK / 2.0 };
        for tick in &self.x.ticks {
            let (x, label) = (left + tick.at * self.width, tick.label.as_deref());
            canvas.line(&[(x, bottom), (x, bottom + length(label))], ink, theme::SPINE);
            if let Some(label) = label.filter(|_| x_labels) {
                let at = (x, bottom + theme::TICK + 6.0);
                canvas.text(label, at, theme::SMALL, theme::BLACK, HPos::Center);
            }
        }
        for tick in &self.y.ticks {
            let (y, label) = (bottom - tick.at * self.height, tick.label.as_deref());
            canvas.line(&[(left, y), (left - length(label), y)], ink, theme::SPINE);
            if let Some(label) = label.filter(|_| y_labels) {
                canvas.text(label, (left - theme::TICK - 2.0, y), theme::SMALL, theme::BLACK, HPos::Right);
            }
        }
    }

    /// Draws everything within the axes.
    pub fn draw_marks(&self, canvas: &mut Canvas, panel: &Panel, font: Font) {
        let on_paper = |&(start, end): &(f64, f64)| (self.place_x(start), self.place_x(end));
        for (start, end) in joined(panel.shades.iter().map(on_paper), 0.05) {
            canvas.rectangle((start, self.top), (end, self.bottom()), theme::SHADE.to_rgba());
        }
        let rules = panel.rules.iter().map(|&x| on_paper(&(x, x)));
        let mut last = f64::NEG_INFINITY;
        for (x, _) in joined(rules, 0.05) {
            if x - last >= 0.5 {
                canvas.line(&[(x, self.top), (x, self.bottom())], theme::RULE.to_rgba(), 0.5);
                last = x;
            }
        }
        if let Some(map) = &panel.map {
            self.draw_map(canvas, map);
        }
        for ends in panel.reference_lines() {
            let mut ends = ends.map(|end| self.at(end));
            // Dashes begin at the left and at the top.
            ends.sort_by(|a, b| a.1.total_cmp(&b.1));
            canvas.dashed_line(&ends, &[3.0, 2.0], theme::GREY.to_rgba(), theme::SPINE);
        }
        if let Some(message) = panel.message {
            let (x, y) = self.centre();
            let (half, tall) = (font.width(message, theme::TITLE) / 2.0 + 4.0, theme::TITLE);
            canvas.rectangle((x - half, y - tall), (x + half, y + tall), theme::PAPER.to_rgba());
            canvas.text(message, (x, y), theme::TITLE, theme::GREY, HPos::Center);
        }
        panel.bars.iter().for_each(|bar| self.draw_column(canvas, bar));
        panel.boxes.iter().for_each(|values| self.draw_box(canvas, values));
        panel.lines.iter().for_each(|line| self.draw_intervals(canvas, line));
        panel.lines.iter().for_each(|line| self.draw_line(canvas, line));
        for (places, edge, inwards) in [(&panel.above, self.top, 1.0), (&panel.below, self.bottom(), -1.0)] {
            let mut places: Vec<_> = places.iter().map(on_paper).collect();
            places.sort_by(|a, b| a.0.total_cmp(&b.0));
            for (start, end) in joined(places, MARK_SPACE) {
                mark(canvas, (start, edge), inwards);
                if end > start {
                    let (y0, y1) = (edge.min(edge + 1.2 * inwards), edge.max(edge + 1.2 * inwards));
                    canvas.rectangle((start, y0), (end, y1), theme::ALARM.to_rgba());
                }
            }
        }
        for (x, lines) in &panel.lost {
            let x = self.place_x(*x);
            mark(canvas, (x, self.top), 1.0);
            // With several lines, the markers of the affected ones follow below.
            let styles = panel.lines.iter().filter(|line| line.style.marker == Some(Marker::Shape));
            let styles: Vec<_> = styles.map(|line| line.style).collect();
            let of_lost =
                lines.iter().filter_map(|line| styles.iter().find(|style| style.order == Some(*line)));
            for (i, style) in of_lost.enumerate().filter(|_| styles.len() > 1) {
                marker(canvas, (x, self.top + 7.0 + i as f64 * STACK), *style);
            }
        }
    }

    fn draw_line(&self, canvas: &mut Canvas, line: &Line) {
        let style = line.style;
        let ink = theme::faint(style.colour, style.opacity);
        let mut seen = std::collections::HashSet::new();
        for stretch in &line.stretches {
            let shares: Vec<_> = stretch.iter().map(|&point| self.share(point)).collect();
            if style.joined {
                for part in clip::line(&shares) {
                    let points: Vec<_> = part.iter().map(|&share| self.at(share)).collect();
                    match points[..] {
                        [point] if style.marker.is_none() => canvas.dot(point, style.width + 0.4, ink),
                        [_] => {}
                        _ => canvas.dashed_line(&points, style.dashes, ink, style.width),
                    }
                }
            }
            for share in shares.into_iter().filter(|&share| style.marker.is_some() && clip::inside(share)) {
                let (x, y) = self.at(share);
                if seen.insert(((x / SPOT) as i64, (y / SPOT) as i64)) {
                    marker(canvas, (x, y), style);
                }
            }
        }
    }

    fn draw_intervals(&self, canvas: &mut Canvas, line: &Line) {
        for outline in line.outlines() {
            let area = clip::area(outline.iter().map(|&point| self.share(point)).collect());
            if area.len() > 2 {
                let corners: Vec<_> = area.iter().map(|&share| self.at(share)).collect();
                canvas.polygon(&corners, theme::faint(line.style.colour, BAND));
            }
        }
        let bars = line.points().filter(|_| line.outlines().is_empty());
        for ((x, _), ends) in bars {
            if let Some(ends) = ends {
                self.draw_bar(canvas, x, ends, line.style);
            }
        }
    }

    /// Draws an interval as a bar. A bar that is cut at the edge has no cap there.
    fn draw_bar(&self, canvas: &mut Canvas, x: f64, (low, high): (f64, f64), style: LineStyle) {
        let ink = theme::faint(style.colour, style.opacity);
        let ends = [(x, low), (x, high)].map(|end| self.share(end));
        for part in clip::line(&ends) {
            let points: Vec<_> = part.iter().map(|&share| self.at(share)).collect();
            canvas.line(&points, ink, theme::SPINE);
        }
        for (x, y) in ends.into_iter().filter(|&end| clip::inside(end)).map(|end| self.at(end)) {
            canvas.line(&[(x - CAP, y), (x + CAP, y)], ink, theme::SPINE);
        }
    }

    fn draw_box(&self, canvas: &mut Canvas, values: &BoxMark) {
        let ink = values.style.colour.to_rgba();
        let [low, first, median, third, high] = values.values;
        let half = values.width / 2.0;
        let (from, to) = (self.place((values.x - half, third)), self.place((values.x + half, first)));
        canvas.rectangle(from, to, theme::faint(values.style.colour, 0.35));
        let outline = [from, (to.0, from.1), to, (from.0, to.1), from];
        canvas.line(&outline, ink, theme::SPINE);
        for (a, b) in [(low, first), (third, high)] {
            canvas.line(&[self.place((values.x, a)), self.place((values.x, b))], ink, theme::SPINE);
        }
        let middle = self.place((values.x, median)).1;
        canvas.line(&[(from.0, middle), (to.0, middle)], theme::BLACK.to_rgba(), theme::BOLD);
    }

    fn draw_column(&self, canvas: &mut Canvas, bar: &Bar) {
        let half = bar.width / 2.0;
        let (a, b) = (self.place((bar.x - half, bar.value)), self.place((bar.x + half, 0.0)));
        let (top, bottom) = (a.1.min(b.1), a.1.max(b.1));
        canvas.rectangle((a.0, top), (b.0, bottom), theme::faint(bar.style.colour, 0.75));
        canvas.line(&[(a.0, b.1), (b.0, b.1)], theme::BLACK.to_rgba(), theme::SPINE);
        let black = LineStyle { colour: theme::BLACK, opacity: 1.0, ..bar.style };
        if let Some(ends) = bar.interval {
            self.draw_bar(canvas, bar.x, ends, black);
        }
        let dots =
            bar.values.iter().map(|&value| self.share((bar.x, value))).filter(|&share| clip::inside(share));
        dots.for_each(|share| marker(canvas, self.at(share), black.of_values()));
    }

    fn draw_map(&self, canvas: &mut Canvas, map: &Map) {
        let corner = |column: usize, row: usize| {
            let (x, y) = map.middle(column, row);
            let half = (map.cell.0 / 2.0, map.cell.1 / 2.0);
            (self.place((x - half.0, y + half.1)), self.place((x + half.0, y - half.1)))
        };
        for cell in &map.cells {
            let (from, to) = corner(cell.column, cell.row);
            let colour = match cell.value {
                Some(value) if value.is_finite() => map.colours.colour(value),
                Some(_) => theme::ALARM,
                None if cell.lost => continue,
                None => theme::SHADE,
            };
            canvas.rectangle(from, to, colour.to_rgba());
        }
        for (row, columns) in map.hatched() {
            let (from, _) = corner(columns.start, row);
            let (_, to) = corner(columns.end - 1, row);
            hatch(canvas, from, to);
        }
        let (width, height) = (self.width / map.size.0 as f64, self.height / map.size.1 as f64);
        let numbered = width >= NUMBER.0 && height >= NUMBER.1;
        for cell in &map.cells {
            let (from, to) = corner(cell.column, cell.row);
            let centre = (f64::midpoint(from.0, to.0), f64::midpoint(from.1, to.1));
            let best = map.best == Some((cell.column, cell.row));
            if let Some(value) = cell.value.filter(|value| value.is_finite()) {
                let colour = map.colours.colour(value);
                if map.colours.hatches(value) && numbered {
                    canvas.rectangle(
                        (centre.0 - 11.0, centre.1 - 4.0),
                        (centre.0 + 11.0, centre.1 + 4.0),
                        colour.to_rgba(),
                    );
                }
                if numbered {
                    canvas.text(&cell.text, centre, NUMBER_SIZE, ink_on(colour), HPos::Center);
                }
                if best {
                    let at = if numbered { (to.0 - 4.0, from.1 + 4.0) } else { centre };
                    star(canvas, at, if numbered { 2.4 } else { 2.8 }, ink_on(colour));
                }
            } else if numbered && !cell.lost {
                canvas.text(&cell.text, centre, NUMBER_SIZE, theme::BLACK, HPos::Center);
            }
            if cell.lost {
                let all = cell.value.is_none();
                let x = if all { centre.0 } else { from.0 + (to.0 - from.0).min(6.0) / 2.0 };
                mark(canvas, (x, if all { centre.1 - 2.0 } else { from.1 }), 1.0);
            }
        }
    }
}

/// Draws a star of five points.
fn star(canvas: &mut Canvas, (x, y): Point, radius: f64, colour: RGBColor) {
    let corner = |i: u32| {
        let (angle, far) = (
            std::f64::consts::PI * f64::from(i) / 5.0,
            if i.is_multiple_of(2) { radius } else { 0.4 * radius },
        );
        (x + far * angle.sin(), y - far * angle.cos())
    };
    canvas.polygon(&(0..10).map(corner).collect::<Vec<_>>(), colour.to_rgba());
}

/// Draws horizontal lines across an area.
pub fn hatch(canvas: &mut Canvas, (left, top): Point, (right, bottom): Point) {
    let ink = theme::BLACK.to_rgba();
    let first = (top / HATCH).ceil() as i32;
    for y in (first..).map(|i| f64::from(i) * HATCH).take_while(|&y| y < bottom) {
        canvas.line(&[(left, y), (right, y)], ink, 0.4);
    }
}

/// Returns the colour of text: black on bright colours, white on dark ones.
fn ink_on(colour: RGBColor) -> RGBColor {
    if theme::grey(colour) > 128 { theme::BLACK } else { theme::PAPER }
}
