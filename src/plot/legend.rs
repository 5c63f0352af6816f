//! The legend: entries side by side in as many rows as needed, or one below the other, and notes below them.

use plotters::style::Color;
use plotters::style::text_anchor::HPos;

use crate::plot::canvas::Canvas;
use crate::plot::chart::{Key, LineStyle, Marker, Swatch};
use crate::plot::font::Font;
use crate::plot::{names, theme};

/// Height of a row of entries or notes.
pub const ROW: f64 = theme::LINE;
/// Width of a swatch.
const SWATCH: f64 = 14.0;
/// Distance between a swatch and its text; below, between entries.
const SPACE: f64 = 4.0;
const BETWEEN: f64 = 12.0;

/// A legend of entries and notes.
#[derive(Debug)]
pub struct Legend<'a> {
    pub keys: &'a [Key],
    /// Notes in small print, in as many lines as needed.
    pub notes: &'a [String],
    pub font: Font,
    /// Whether entries lie one below the other.
    pub stacked: bool,
}

impl Legend<'_> {
    /// Returns the places of the entries: row and distance from the left.
    fn places(&self, width: f64) -> Vec<(usize, f64)> {
        let (mut row, mut x) = (0, 0.0);
        let mut places = Vec::new();
        for text in &self.texts(width) {
            let entry = SWATCH + SPACE + self.font.width(text, theme::SMALL);
            if x > 0.0 && (x + entry > width || self.stacked) {
                (row, x) = (row + 1, 0.0);
            }
            places.push((row, x));
            x += entry + BETWEEN;
        }
        places
    }

    /// Returns the texts of the entries, cut to fit a line and still distinct.
    fn texts(&self, width: f64) -> Vec<String> {
        let texts: Vec<_> = self.keys.iter().map(|key| key.text.clone()).collect();
        names::shortened(&texts, self.font, theme::SMALL, width - SWATCH - SPACE)
    }

    /// Returns the lines of the notes, broken at spaces if they are longer than a line.
    fn note_lines(&self, width: f64) -> Vec<String> {
        let mut lines = Vec::<String>::new();
        for note in self.notes {
            match lines.last_mut() {
                Some(line) if self.font.width(&format!("{line}; {note}"), theme::SMALL) <= width => {
                    *line += "; ";
                    *line += note;
                }
                _ => lines.extend(self.font.wrapped(note, theme::SMALL, width)),
            }
        }
        lines.into_iter().map(|line| self.font.shortened(&line, theme::SMALL, width)).collect()
    }

    /// Returns the width of the widest entry, at most this width.
    pub fn width(&self, most: f64) -> f64 {
        let texts = self.texts(most);
        SWATCH + SPACE + self.font.widest(texts.iter().map(String::as_str), theme::SMALL)
    }

    /// Returns the height at this width.
    pub fn height(&self, width: f64) -> f64 {
        let rows = self.places(width).last().map_or(0, |(row, _)| row + 1);
        (rows + self.note_lines(width).len()) as f64 * ROW
    }

    /// Draws the legend with its upper left corner at `left`, `top`.
    pub fn draw(&self, canvas: &mut Canvas, left: f64, top: f64, width: f64) {
        let places = self.places(width);
        for ((key, text), (row, x)) in self.keys.iter().zip(self.texts(width)).zip(&places) {
            let (x, y) = (left + x, top + (*row as f64 + 0.5) * ROW);
            key.swatch.draw(canvas, x, y);
            canvas.text(&text, (x + SWATCH + SPACE, y), theme::SMALL, theme::BLACK, HPos::Left);
        }
        let rows = places.last().map_or(0, |(row, _)| row + 1);
        for (i, note) in self.note_lines(width).iter().enumerate() {
            let y = top + ((rows + i) as f64 + 0.5) * ROW;
            canvas.text(note, (left, y), theme::SMALL, theme::GREY, HPos::Left);
        }
    }
}

impl Swatch {
    fn draw(&self, canvas: &mut Canvas, x: f64, y: f64) {
        let half = 3.5;
        match self {
            Self::Line(style) => {
                if style.joined {
                    let width = style.width.max(theme::SERIES);
                    canvas.dashed_line(
                        &[(x, y), (x + SWATCH, y)],
                        style.dashes,
                        style.colour.to_rgba(),
                        width,
                    );
                }
                let solid = LineStyle { opacity: 1.0, ..*style };
                marker(canvas, (x + SWATCH / 2.0, y), solid);
            }
            Self::Fan(colours) => {
                let width = SWATCH / colours.len() as f64;
                for (i, colour) in colours.iter().enumerate() {
                    let from = (x + i as f64 * width, y - 1.5);
                    // Each reaches the end of the swatch, so that no seam shows between them.
                    canvas.rectangle(from, (x + SWATCH, y + 1.5), colour.to_rgba());
                }
            }
            Self::Rule => {
                let x = x + SWATCH / 2.0;
                canvas.line(&[(x, y - half), (x, y + half)], theme::RULE.to_rgba(), theme::SPINE);
            }
            Self::Area(colour) => canvas.rectangle((x, y - half), (x + SWATCH, y + half), colour.to_rgba()),
            Self::Mark => mark(canvas, (x + SWATCH / 2.0, y - 2.0), 1.0),
        }
    }
}

/// Draws a small triangle whose base lies on the edge of a panel. `inwards` is 1 at the upper edge, −1 at the lower one.
pub fn mark(canvas: &mut Canvas, (x, y): (f64, f64), inwards: f64) {
    let corners = [(x - 2.2, y), (x + 2.2, y), (x, y + 3.8 * inwards)];
    canvas.polygon(&corners, theme::ALARM.to_rgba());
}

/// Draws the marker of a line; shapes repeat after the fifth.
pub fn marker(canvas: &mut Canvas, (x, y): (f64, f64), style: LineStyle) {
    let ink = theme::faint(style.colour, style.opacity);
    let at = |dx: f64, dy: f64| (x + dx, y + dy);
    match (style.marker, style.order.unwrap_or(0) % 5) {
        (None, _) => {}
        (Some(Marker::Dot), _) => canvas.dot((x, y), 0.9, ink),
        (_, 0) => canvas.dot((x, y), 1.8, ink),
        (_, 1) => canvas.rectangle(at(-1.6, -1.6), at(1.6, 1.6), ink),
        (_, 2) => canvas.polygon(&[at(-2.0, 1.6), at(2.0, 1.6), at(0.0, -2.0)], ink),
        (_, 3) => canvas.polygon(&[at(0.0, -2.3), at(2.3, 0.0), at(0.0, 2.3), at(-2.3, 0.0)], ink),
        _ => canvas.polygon(&[at(-2.0, -1.6), at(2.0, -1.6), at(0.0, 2.0)], ink),
    }
}

#[cfg(test)]
mod tests {
    use super::{Font, Key, Legend, ROW, Swatch};

    #[test]
    fn entries_and_notes_wrap() {
        let keys: Vec<_> =
            ["0123456780", "0123456781", "0123456782"].map(|text| Key::new(text, Swatch::Rule)).into();
        let rows = |keys: &[Key], notes: &[String], width: f64, stacked: bool| {
            let legend = Legend { keys, notes, font: Font::Sans, stacked };
            (legend.height(width) / ROW).round() as i64
        };
        assert_eq!([300.0, 150.0, 20.0].map(|width| rows(&keys, &[], width, false)), [1, 2, 3]);
        assert_eq!(rows(&keys, &[], 300.0, true), 3);
        let notes = vec!["0123456789".to_string(); 4];
        assert_eq!(rows(&[], &notes, 100.0, false), 2);
        assert_eq!(rows(&keys, &notes, 300.0, false), 2);
    }
}
