//! A sheet measured in points, drawn by plotters as SVG. plotters' coordinates and strokes are integers, so it draws at
//! 20 units per point, and the root element gets its true size afterwards. Coordinates must be finite.

use std::borrow::Cow;

use plotters::backend::{DrawingBackend, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{
    Color, FontStyle, FontTransform, IntoFont, RGBAColor, RGBColor, ShapeStyle, TextStyle,
};

use crate::escape::in_xml;
use crate::plot::downsample::Point;
use crate::plot::font::Font;
use crate::plot::style::{FigureStyle, Theme};
use crate::plot::theme;

/// plotters units per point, which give strokes and coordinates a resolution of 1/1440 in.
const UNITS: f64 = 20.0;
/// Divisor that plotters applies to font sizes.
const PLOTTERS_FONT_RATIO: f64 = 1.24;

/// A sheet being drawn.
pub struct Canvas<'a> {
    backend: SVGBackend<'a>,
    grey: bool,
    font: Font,
    /// Height of the title, below which everything else begins.
    lift: f64,
}

/// Draws a sheet of the style's width, `height` points high below its title, and returns its SVG document. y grows downwards.
pub fn svg(style: &FigureStyle, height: f64, draw: impl FnOnce(&mut Canvas)) -> String {
    let mut document = String::new();
    let (width, title) = (style.sheet_width(), style.title_lines());
    let lift = title.len() as f64 * theme::LINE;
    let size = (unit(width).unsigned_abs(), unit(height + lift).unsigned_abs());
    let grey = style.theme == Theme::Mono;
    let mut canvas =
        Canvas { backend: SVGBackend::with_string(&mut document, size), grey, font: style.font, lift: 0.0 };
    canvas.rectangle((0.0, 0.0), (width, height + lift), theme::PAPER.to_rgba());
    for (i, line) in title.iter().enumerate() {
        let at = (width / 2.0, theme::EDGE + (i as f64 + 0.5) * theme::LINE);
        canvas.text(line, at, theme::TITLE, theme::BLACK, HPos::Center);
    }
    canvas.lift = lift;
    draw(&mut canvas);
    into_string(canvas.backend.present());
    drop(canvas);
    finish(&document, size, style)
}

fn unit(points: f64) -> i32 {
    debug_assert!(points.is_finite());
    (points * UNITS).round() as i32
}

/// Unwraps a result of plotters. Its errors concern the file that it writes, and here it writes into a string.
fn into_string<E: std::fmt::Debug>(result: Result<(), E>) {
    result.expect("drawing into a string cannot fail");
}

/// Sets the document's true size and fonts, and turns `10^{2}` into a superscript.
fn finish(document: &str, (width, height): (u32, u32), style: &FigureStyle) -> String {
    let (scale, families) = (style.theme.scale(), style.font.families());
    let (_, body) = document.split_once('>').expect("plotters begins with the root element");
    let body = body
        .replace("dy=\"0.5ex\"", "dy=\"0.35em\"")
        .replace(&format!(" font-family=\"{families}\""), "")
        .replace("\">\n", "\">")
        .replace("\n</text>", "</text>");
    let body: Vec<_> = body.split("</text>").map(with_superscripts).collect();
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}pt\" height=\"{}pt\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"{families}\" stroke-linejoin=\"round\">{}",
        f64::from(width) * scale / UNITS,
        f64::from(height) * scale / UNITS,
        body.join("</text>"),
    )
}

/// Raises the text in `^{…}` and lowers the text after it, because a shift holds for the rest of a text.
fn with_superscripts(text: &str) -> Cow<'_, str> {
    let Some((before, _)) = text.split_once("^{") else { return Cow::Borrowed(text) };
    let (raise, size) = (0.5, theme::SUPERSCRIPT);
    let mut raised = before.to_owned();
    for part in text.split("^{").skip(1) {
        let (exponent, after) = part.split_once('}').unwrap_or((part, ""));
        let percent = size * 100.0;
        let up = format!("<tspan dy=\"-{raise}em\" font-size=\"{percent:.0}%\">{exponent}</tspan>");
        let down = format!("<tspan dy=\"{:.2}em\">{after}</tspan>", raise * size);
        raised.push_str(&up);
        raised.push_str(if after.is_empty() { "" } else { &down });
    }
    Cow::Owned(raised)
}

impl Canvas<'_> {
    fn units(&self, point: Point) -> (i32, i32) {
        (unit(point.0), unit(point.1 + self.lift))
    }

    /// Returns the grey of the same brightness on a monochrome sheet, otherwise the colour itself.
    fn ink(&self, colour: RGBAColor) -> RGBAColor {
        if !self.grey {
            return colour;
        }
        let grey = theme::grey(RGBColor(colour.0, colour.1, colour.2));
        RGBAColor(grey, grey, grey, colour.3)
    }

    /// Draws an open line through points.
    pub fn line(&mut self, points: &[Point], colour: RGBAColor, width: f64) {
        let mut path: Vec<_> = points.iter().map(|&point| self.units(point)).collect();
        path.dedup();
        let style =
            ShapeStyle { color: self.ink(colour), filled: false, stroke_width: unit(width).unsigned_abs() };
        into_string(self.backend.draw_path(path, &style));
    }

    /// Draws an open dashed line. `dashes` holds lengths of dash, gap, dash and so on; an empty list is a solid line.
    pub fn dashed_line(&mut self, points: &[Point], dashes: &[f64], colour: RGBAColor, width: f64) {
        if dashes.is_empty() {
            return self.line(points, colour, width);
        }
        let (mut turn, mut left) = (0, dashes[0]);
        let mut dash: Vec<Point> = points.first().copied().into_iter().collect();
        for pair in points.windows(2) {
            let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
            let length = (x1 - x0).hypot(y1 - y0);
            let mut done = 0.0;
            while length - done > left {
                done += left;
                let at = (x0 + done / length * (x1 - x0), y0 + done / length * (y1 - y0));
                if turn % 2 == 0 {
                    dash.push(at);
                    self.line(&dash, colour, width);
                }
                dash = vec![at];
                turn += 1;
                left = dashes[turn % dashes.len()];
            }
            left -= length - done;
            if turn % 2 == 0 {
                dash.push(pair[1]);
            }
        }
        if turn % 2 == 0 && dash.len() > 1 {
            self.line(&dash, colour, width);
        }
    }

    /// Draws a filled rectangle between its upper left and lower right corners.
    pub fn rectangle(&mut self, from: Point, to: Point, colour: RGBAColor) {
        let (from, to, ink) = (self.units(from), self.units(to), self.ink(colour));
        into_string(self.backend.draw_rect(from, to, &ink.filled(), true));
    }

    /// Draws a filled polygon.
    pub fn polygon(&mut self, corners: &[Point], colour: RGBAColor) {
        let corners: Vec<_> = corners.iter().map(|&corner| self.units(corner)).collect();
        let ink = self.ink(colour);
        into_string(self.backend.fill_polygon(corners, &ink.filled()));
    }

    /// Draws a filled circle.
    pub fn dot(&mut self, centre: Point, radius: f64, colour: RGBAColor) {
        let (centre, ink) = (self.units(centre), self.ink(colour));
        into_string(self.backend.draw_circle(centre, unit(radius).unsigned_abs(), &ink.filled(), true));
    }

    /// Draws a line of text, centred vertically on `at`; `^{…}` in it is a superscript.
    pub fn text(&mut self, text: &str, at: Point, size: f64, colour: RGBColor, anchor: HPos) {
        self.styled_text(text, at, (size, FontStyle::Normal), colour, anchor, FontTransform::None);
    }

    /// Draws a line of bold text that begins at `at`.
    pub fn bold_text(&mut self, text: &str, at: Point, size: f64, colour: RGBColor) {
        self.styled_text(text, at, (size, FontStyle::Bold), colour, HPos::Left, FontTransform::None);
    }

    /// Draws a line of text that reads upwards, centred on `at`.
    pub fn upward_text(&mut self, text: &str, at: Point, size: f64, colour: RGBColor) {
        let turn = FontTransform::Rotate270;
        self.styled_text(text, at, (size, FontStyle::Normal), colour, HPos::Center, turn);
    }

    fn styled_text(
        &mut self,
        text: &str,
        at: Point,
        (size, style): (f64, FontStyle),
        colour: RGBColor,
        anchor: HPos,
        turn: FontTransform,
    ) {
        let font =
            (self.font.families(), size * UNITS * PLOTTERS_FONT_RATIO, style).into_font().transform(turn);
        let ink = self.ink(colour.to_rgba());
        let style = TextStyle::from(font).color(&ink).pos(Pos::new(anchor, VPos::Center));
        let at = self.units(at);
        // A single character that XML forbids would make the document invalid.
        let text = &text.replace(|letter| !in_xml(letter), "\u{fffd}");
        into_string(self.backend.draw_text(text, &style, at));
    }
}
