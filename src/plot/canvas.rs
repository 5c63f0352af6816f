//! A sheet measured in points, drawn by plotters as SVG. plotters' coordinates and strokes are integers, so it draws
//! 20 units a point and the root element gets its true size afterwards. Coordinates must be finite.

use plotters::backend::{DrawingBackend, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontTransform, IntoFont, RGBAColor, RGBColor, ShapeStyle, TextStyle};

use crate::plot::envelope::Point;
use crate::plot::theme;

/// plotters units a point: strokes and coordinates to 1/1440 in.
const UNITS: f64 = 20.0;
/// plotters writes a font size divided by this.
const PLOTTERS_FONT_RATIO: f64 = 1.24;

/// A sheet being drawn.
pub struct Canvas<'a> {
    backend: SVGBackend<'a>,
}

/// Draws a sheet of `width` × `height` points and returns its SVG document. y grows downwards.
pub fn svg(width: f64, height: f64, draw: impl FnOnce(&mut Canvas)) -> String {
    let mut document = String::new();
    let size = (unit(width).unsigned_abs(), unit(height).unsigned_abs());
    let mut canvas = Canvas { backend: SVGBackend::with_string(&mut document, size) };
    canvas.rectangle((0.0, 0.0), (width, height), theme::PAPER.to_rgba());
    draw(&mut canvas);
    into_string(canvas.backend.present());
    drop(canvas);
    finish(&document, size)
}

fn unit(points: f64) -> i32 {
    debug_assert!(points.is_finite());
    (points * UNITS).round() as i32
}

fn units(point: Point) -> (i32, i32) {
    (unit(point.0), unit(point.1))
}

/// plotters' errors are those of the file it writes; here it writes into a string.
fn into_string<E: std::fmt::Debug>(result: Result<(), E>) {
    result.expect("drawing into a string cannot fail");
}

/// Gives the document its true size and fonts, and `10^{2}` its superscript.
fn finish(document: &str, (width, height): (u32, u32)) -> String {
    let (_, body) = document.split_once('>').expect("plotters begins with the root element");
    let body = body
        .replace("dy=\"0.5ex\"", "dy=\"0.35em\"")
        .replace(&format!(" font-family=\"{}\"", theme::FONT), "")
        .replace("\">\n", "\">")
        .replace("\n</text>", "</text>")
        .replace("^{", &format!("<tspan dy=\"-0.5em\" font-size=\"{:.0}%\">", theme::SUPERSCRIPT * 100.0))
        .replace('}', "</tspan>");
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}pt\" height=\"{}pt\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"{}\" stroke-linejoin=\"round\">{body}",
        f64::from(width) / UNITS,
        f64::from(height) / UNITS,
        theme::FONT,
    )
}

impl Canvas<'_> {
    /// An open line through points.
    pub fn line(&mut self, points: &[Point], colour: RGBAColor, width: f64) {
        let mut path: Vec<_> = points.iter().copied().map(units).collect();
        path.dedup();
        let style = ShapeStyle { color: colour, filled: false, stroke_width: unit(width).unsigned_abs() };
        into_string(self.backend.draw_path(path, &style));
    }

    /// A straight dashed line.
    pub fn dashes(&mut self, from: Point, to: Point, colour: RGBAColor, width: f64) {
        let (dash, gap) = (3.0, 2.0);
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let length = dx.hypot(dy);
        let at = |share: f64| (from.0 + share * dx, from.1 + share * dy);
        let mut start = 0.0;
        while start < length {
            let end = (start + dash).min(length);
            self.line(&[at(start / length), at(end / length)], colour, width);
            start += dash + gap;
        }
    }

    /// A filled rectangle between two corners: upper left and lower right.
    pub fn rectangle(&mut self, from: Point, to: Point, colour: RGBAColor) {
        into_string(self.backend.draw_rect(units(from), units(to), &colour.filled(), true));
    }

    /// A filled polygon.
    pub fn polygon(&mut self, corners: &[Point], colour: RGBAColor) {
        into_string(self.backend.fill_polygon(corners.iter().copied().map(units), &colour.filled()));
    }

    /// A filled circle.
    pub fn dot(&mut self, centre: Point, radius: f64, colour: RGBAColor) {
        into_string(self.backend.draw_circle(
            units(centre),
            unit(radius).unsigned_abs(),
            &colour.filled(),
            true,
        ));
    }

    /// A line of text, centred vertically on `at`; `^{…}` in it is a superscript.
    pub fn text(&mut self, text: &str, at: Point, size: f64, colour: RGBColor, anchor: HPos) {
        self.turned_text(text, at, size, colour, anchor, FontTransform::None);
    }

    /// A line of text that reads upwards, centred on `at`.
    pub fn upward_text(&mut self, text: &str, at: Point, size: f64, colour: RGBColor) {
        self.turned_text(text, at, size, colour, HPos::Center, FontTransform::Rotate270);
    }

    fn turned_text(
        &mut self,
        text: &str,
        at: Point,
        size: f64,
        colour: RGBColor,
        anchor: HPos,
        turn: FontTransform,
    ) {
        let font = (theme::FONT, size * UNITS * PLOTTERS_FONT_RATIO).into_font().transform(turn);
        let style = TextStyle::from(font).color(&colour).pos(Pos::new(anchor, VPos::Center));
        into_string(self.backend.draw_text(text, &style, units(at)));
    }
}
