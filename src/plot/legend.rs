//! The legend above the panels: entries side by side in as many rows as needed, and notes below them.

use plotters::style::text_anchor::HPos;
use plotters::style::{Color, RGBColor};

use crate::plot::canvas::Canvas;
use crate::plot::{font, names, theme};

/// Height of a row of entries or notes.
const ROW: f64 = theme::LINE;
/// Width of a swatch.
const SWATCH: f64 = 14.0;
/// Distance between a swatch and its text; below, between entries.
const SPACE: f64 = 4.0;
const BETWEEN: f64 = 12.0;

/// The picture of an entry.
#[derive(Clone, Debug)]
pub enum Swatch {
    /// A line of this colour, opacity and width.
    Line(RGBColor, f64, f64),
    /// A line with a marker of the shape of this number, in these dashes.
    Marked(RGBColor, usize, &'static [f64]),
    /// A line of this colour and width in these dashes.
    Pattern(RGBColor, f64, &'static [f64]),
    /// The marker of this number alone.
    Dot(RGBColor, usize),
    /// A dashed line.
    Dashes(RGBColor),
    /// Many lines, in the order of their colours.
    Fan(Vec<RGBColor>),
    /// A thin vertical line.
    Rule,
    /// A shaded area.
    Shade,
    /// The mark of values that cannot be drawn.
    Mark,
}

/// A legend.
#[derive(Debug, Default)]
pub struct Legend {
    /// Swatches and their texts.
    pub entries: Vec<(Swatch, String)>,
    /// Notes in small print, in as many lines as needed.
    pub notes: Vec<String>,
}

impl Legend {
    /// Returns the places of the entries: row and distance from the left.
    fn places(&self, width: f64) -> Vec<(usize, f64)> {
        let (mut row, mut x) = (0, 0.0);
        let mut places = Vec::new();
        for text in self.texts(width) {
            let entry = SWATCH + SPACE + font::width(&text, theme::SMALL);
            if x > 0.0 && x + entry > width {
                (row, x) = (row + 1, 0.0);
            }
            places.push((row, x));
            x += entry + BETWEEN;
        }
        places
    }

    /// Returns the texts of the entries, cut to fit a line and still distinct.
    fn texts(&self, width: f64) -> Vec<String> {
        let texts: Vec<_> = self.entries.iter().map(|(_, text)| text.clone()).collect();
        names::shortened(&texts, theme::SMALL, width - SWATCH - SPACE)
    }

    /// Returns the lines of the notes, broken at spaces if they are longer than a line.
    fn note_lines(&self, width: f64) -> Vec<String> {
        let mut lines = Vec::<String>::new();
        for note in &self.notes {
            match lines.last_mut() {
                Some(line) if font::width(&format!("{line}; {note}"), theme::SMALL) <= width => {
                    *line += "; ";
                    *line += note;
                }
                _ => lines.extend(font::wrapped(note, theme::SMALL, width)),
            }
        }
        lines.into_iter().map(|line| font::shortened(&line, theme::SMALL, width)).collect()
    }

    /// Returns the height at this width.
    pub fn height(&self, width: f64) -> f64 {
        let rows = self.places(width).last().map_or(0, |(row, _)| row + 1);
        (rows + self.note_lines(width).len()) as f64 * ROW
    }

    /// Draws the legend with its upper left corner at `left`, `top`.
    pub fn draw(&self, canvas: &mut Canvas, left: f64, top: f64, width: f64) {
        let places = self.places(width);
        for (((swatch, _), text), (row, x)) in self.entries.iter().zip(self.texts(width)).zip(&places) {
            let (x, y) = (left + x, top + (*row as f64 + 0.5) * ROW);
            swatch.draw(canvas, x, y);
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
            Self::Line(colour, opacity, width) => {
                canvas.line(&[(x, y), (x + SWATCH, y)], theme::faint(*colour, *opacity), *width);
            }
            Self::Pattern(colour, width, dashes) => {
                canvas.dashed_line(&[(x, y), (x + SWATCH, y)], dashes, colour.to_rgba(), *width);
            }
            Self::Marked(colour, shape, dashes) => {
                canvas.dashed_line(&[(x, y), (x + SWATCH, y)], dashes, colour.to_rgba(), theme::SERIES);
                marker(canvas, (x + SWATCH / 2.0, y), *shape, *colour);
            }
            Self::Dot(colour, shape) => marker(canvas, (x + SWATCH / 2.0, y), *shape, *colour),
            Self::Dashes(colour) => {
                canvas.dashes((x, y), (x + SWATCH, y), colour.to_rgba(), theme::SERIES);
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
            Self::Shade => canvas.rectangle((x, y - half), (x + SWATCH, y + half), theme::SHADE.to_rgba()),
            Self::Mark => mark(canvas, (x + SWATCH / 2.0, y - 2.0), 1.0),
        }
    }
}

/// Draws a small triangle whose base lies on the edge of a panel. `inwards` is 1 at the upper edge, −1 at the lower one.
pub fn mark(canvas: &mut Canvas, (x, y): (f64, f64), inwards: f64) {
    let corners = [(x - 2.2, y), (x + 2.2, y), (x, y + 3.8 * inwards)];
    canvas.polygon(&corners, theme::ALARM.to_rgba());
}

/// Draws a filled marker; shapes repeat after the fifth.
pub fn marker(canvas: &mut Canvas, (x, y): (f64, f64), shape: usize, colour: RGBColor) {
    let ink = colour.to_rgba();
    let at = |dx: f64, dy: f64| (x + dx, y + dy);
    match shape % 5 {
        0 => canvas.dot((x, y), 1.8, ink),
        1 => canvas.rectangle(at(-1.6, -1.6), at(1.6, 1.6), ink),
        2 => canvas.polygon(&[at(-2.0, 1.6), at(2.0, 1.6), at(0.0, -2.0)], ink),
        3 => canvas.polygon(&[at(0.0, -2.3), at(2.3, 0.0), at(0.0, 2.3), at(-2.3, 0.0)], ink),
        _ => canvas.polygon(&[at(-2.0, -1.6), at(2.0, -1.6), at(0.0, 2.0)], ink),
    }
}

#[cfg(test)]
mod tests {
    use super::{Legend, ROW, Swatch};

    #[test]
    fn entries_and_notes_wrap() {
        let mut legend =
            Legend { entries: vec![(Swatch::Rule, "0123456789".to_string()); 3], ..Legend::default() };
        let rows = |legend: &Legend, width: f64| (legend.height(width) / ROW).round() as i64;
        assert_eq!([rows(&legend, 300.0), rows(&legend, 150.0), rows(&legend, 20.0)], [1, 2, 3]);
        legend.notes = vec!["0123456789".to_string(); 4];
        assert_eq!(legend.note_lines(100.0), ["0123456789; 0123456789", "0123456789; 0123456789"]);
        assert_eq!(rows(&legend, 300.0), 2);
    }
}
