//! A panel: its place on the sheet, its two axes, spines, ticks and titles.

use plotters::style::Color;
use plotters::style::text_anchor::HPos;

use crate::plot::axis::Axis;
use crate::plot::canvas::Canvas;
use crate::plot::downsample::Point;
use crate::plot::{font, theme};

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

    /// Returns the position on the sheet of a point of the data.
    pub fn place(&self, (x, y): Point) -> Point {
        (self.left + self.x.fraction(x) * self.width, self.bottom() - self.y.fraction(y) * self.height)
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

    /// Draws the title below the x axis' labels.
    pub fn draw_x_title(&self, canvas: &mut Canvas, title: &str) {
        let at = (self.centre().0, self.bottom() + theme::BOTTOM - 7.0);
        canvas.text(title, at, theme::TITLE, theme::BLACK, HPos::Center);
    }

    /// Draws the lines of the y title, which read upwards, left of the tick labels.
    pub fn draw_y_title(&self, canvas: &mut Canvas, lines: &[String], left: f64) {
        for (i, line) in lines.iter().enumerate() {
            let x = left + theme::TITLES / 2.0 + i as f64 * TITLE_LINE;
            canvas.upward_text(line, (x, self.centre().1), theme::TITLE, theme::BLACK);
        }
    }

    /// Draws the heading above the panel, after its letter if it has one.
    pub fn draw_heading(&self, canvas: &mut Canvas, heading: &str, letter: Option<char>) {
        let mut x = self.left;
        if let Some(letter) = letter {
            draw_letter(canvas, letter, (x, self.top - 7.0));
            x += font::bold_width(&letter.to_string(), theme::TITLE) + 5.0;
        }
        let heading = font::shortened(heading, theme::SMALL, self.right() - x);
        canvas.text(&heading, (x, self.top - 7.0), theme::SMALL, theme::BLACK, HPos::Left);
    }

    /// Draws a message in the middle of an otherwise empty panel.
    pub fn draw_message(&self, canvas: &mut Canvas, text: &str) {
        let (x, y) = self.centre();
        let (half, tall) = (font::width(text, theme::TITLE) / 2.0 + 4.0, theme::TITLE);
        canvas.rectangle((x - half, y - tall), (x + half, y + tall), theme::PAPER.to_rgba());
        canvas.text(text, (x, y), theme::TITLE, theme::GREY, HPos::Center);
    }
}

/// Distance between the lines of a title that reads upwards.
const TITLE_LINE: f64 = theme::TITLE + 1.0;

/// Breaks the title of a y axis into lines that fit beside a panel, or panels, of this height.
pub fn title_lines(title: &str, height: f64) -> Vec<String> {
    let lines = font::wrapped(title, theme::TITLE, height).into_iter();
    lines.map(|line| font::shortened(&line, theme::TITLE, height)).collect()
}

/// Returns the left edge of a title in a column with room for `most` lines, so that the title lies beside the labels.
pub fn title_left(most: usize, title: &[String]) -> f64 {
    most.saturating_sub(title.len()) as f64 * TITLE_LINE
}

/// Returns the room left of a panel for the lines of its y axis' title, the labels and the ticks.
pub fn left_of<'a>(axes: impl IntoIterator<Item = &'a Axis>, title_lines: usize) -> f64 {
    let labels = axes.into_iter().flat_map(Axis::labels);
    let widest = labels.map(|(_, label)| font::width(label, theme::SMALL)).fold(10.0, f64::max);
    theme::TITLES + title_lines.saturating_sub(1) as f64 * TITLE_LINE + widest + theme::TICK + 5.0
}

/// Returns the room right of a panel, because its last tick label may reach beyond it.
pub fn right_of(axis: &Axis, width: f64) -> f64 {
    let beyond = |(at, label): (f64, &str)| font::width(label, theme::SMALL) / 2.0 - (1.0 - at) * width;
    axis.labels().map(beyond).fold(theme::RIGHT, |most, beyond| most.max(beyond + theme::EDGE))
}

/// Returns a y axis with only as many labels as fit a panel of this height.
pub fn fitted_y(axis: Axis, height: f64) -> Axis {
    axis.fitted(|_| (theme::SMALL + 1.5) / height)
}

/// Returns an x axis with only as many labels as fit a panel of this width.
pub fn fitted_x(axis: Axis, width: f64) -> Axis {
    axis.fitted(|label| (font::width(label, theme::SMALL) + 5.0) / width)
}

/// Draws the letter by which a text can refer to a panel.
pub fn draw_letter(canvas: &mut Canvas, letter: char, at: Point) {
    canvas.bold_text(&letter.to_string(), at, theme::TITLE, theme::BLACK);
}

/// Returns the letter of a panel (a, b, c …), or `None` if there is only one panel.
pub fn letter(panel: usize, panels: usize) -> Option<char> {
    ('a'..='z').nth(panel).filter(|_| panels > 1)
}
