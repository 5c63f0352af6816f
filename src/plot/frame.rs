//! A panel: its place on the sheet, its two axes, spines, ticks and titles.

use plotters::style::Color;
use plotters::style::text_anchor::HPos;

use crate::plot::axis::Axis;
use crate::plot::canvas::Canvas;
use crate::plot::envelope::Point;
use crate::plot::theme;

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

    /// Where a point of the data lies on the sheet.
    pub fn place(&self, (x, y): Point) -> Point {
        (self.left + self.x.fraction(x) * self.width, self.bottom() - self.y.fraction(y) * self.height)
    }

    /// Left and lower spine and the ticks; their labels where panels do not share them.
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

    /// Below the x axis' labels.
    pub fn draw_x_title(&self, canvas: &mut Canvas, title: &str) {
        let at = (self.centre().0, self.bottom() + theme::BOTTOM - 7.0);
        canvas.text(title, at, theme::TITLE, theme::BLACK, HPos::Center);
    }

    /// Reading upwards, its middle so far left of the panel.
    pub fn draw_y_title(&self, canvas: &mut Canvas, title: &str, distance: f64) {
        canvas.upward_text(title, (self.left - distance, self.centre().1), theme::TITLE, theme::BLACK);
    }

    /// Above the panel.
    pub fn draw_heading(&self, canvas: &mut Canvas, heading: &str) {
        canvas.text(heading, (self.left, self.top - 6.0), theme::SMALL, theme::BLACK, HPos::Left);
    }
}
