//! A colour map with a parameter along each axis and a slot per value. Each cell shows the mean of its runs as colour and,
//! if there is room, as a number.

use plotters::style::text_anchor::HPos;
use plotters::style::{Color, RGBColor};

use super::results::{Cell, Parameter};
use super::{Grid, Panel, labels, panel_width, parameter_title, short};
use crate::plot::axis::Axis;
use crate::plot::canvas::Canvas;
use crate::plot::colours::{BAR_WITH_LABELS, Colours};
use crate::plot::frame::{Frame, left_of};
use crate::plot::legend::{Legend, Swatch, mark};
use crate::plot::{names, theme};

/// Height of a slot; below, the minimum and maximum height of a panel.
const SLOT: f64 = 16.0;
const MIN_HEIGHT: f64 = 80.0;
const MAX_HEIGHT: f64 = 200.0;
/// Width and height of a number in a cell.
const NUMBER: (f64, f64) = (25.0, 9.0);
/// Largest ratio, either way, with a colour of its own, because the interesting ratios are near 1.
const FURTHEST: f64 = 10.0;

pub fn draw(figure: &Grid, hue: &Parameter) -> String {
    let mut legend = Legend::default();
    figure.notes(&mut legend, "");
    if figure.cells().any(|cell| cell.absent > 0 && cell.estimate().is_none()) {
        legend.entries.push((Swatch::Shade, "no value".to_owned()));
    }
    let (low, high) = figure.range().unwrap_or((0.0, 1.0));
    let colours = colours(figure);
    if figure.ratio && figure.is_log() && (low < 1.0 / FURTHEST || high > FURTHEST) {
        legend
            .notes
            .push(format!("colours end at 1/{FURTHEST} and {FURTHEST}; the highest is {}", short(high)));
    }
    let height = figure.panel_height(&legend, (hue.values.len() as f64 * SLOT).clamp(MIN_HEIGHT, MAX_HEIGHT));
    let room = |_: &str| (theme::SMALL + 2.0) / height;
    // Words may be longer than the sheet is wide.
    let most = figure.style.sheet_width() / 5.0;
    let y = Axis::slots(&names::shortened(&labels(hue), theme::SMALL, most), room);
    let titles = figure.y_title_lines(&parameter_title(&hue.name), height);
    let (columns, _) = figure.grid();
    let right = BAR_WITH_LABELS + 16.0;
    let width = panel_width(figure.style.sheet_width() - left_of([&y], titles.len()) - right, columns);
    let (x, _) = super::parameter_axis(figure.x(), super::Scale::Slots, width);
    let slots = (figure.x().values.len(), hue.values.len());
    let draw =
        |canvas: &mut Canvas, frame: &Frame, panel: &Panel| draw_panel(canvas, frame, panel, &colours, slots);
    let bar = |canvas: &mut Canvas, whole: &Frame| {
        colours.draw_bar(
            canvas,
            whole.right() + 14.0,
            whole.top,
            whole.height.min(MAX_HEIGHT),
            &figure.title,
        );
    };
    figure.sheet(&legend, (&x, &y), &titles, (height, right), draw, bar)
}

pub(super) fn colours(figure: &Grid) -> Colours {
    let (low, high) = figure.range().unwrap_or((0.0, 1.0));
    if figure.ratio && figure.is_log() {
        Colours::about_one(low.max(1.0 / FURTHEST), high.min(FURTHEST), figure.style.theme)
    } else {
        Colours::sequential(low, high, figure.is_log(), figure.style.theme)
    }
}

fn draw_panel(canvas: &mut Canvas, frame: &Frame, panel: &Panel, colours: &Colours, slots: (usize, usize)) {
    let size = (frame.width / slots.0 as f64, frame.height / slots.1 as f64);
    for (&(row, column), cell) in &panel.cells {
        let from = (frame.left + column as f64 * size.0, frame.bottom() - (row + 1) as f64 * size.1);
        let to = (from.0 + size.0, from.1 + size.1);
        let centre = (from.0 + size.0 / 2.0, from.1 + size.1 / 2.0);
        if let Some(estimate) = cell.estimate() {
            let colour = colours.colour(estimate.mean);
            canvas.rectangle(from, to, colour.to_rgba());
            if size.0 >= NUMBER.0 && size.1 >= NUMBER.1 {
                canvas.text(&short(estimate.mean), centre, 6.0, ink_on(colour), HPos::Center);
            }
        } else if cell.absent > 0 {
            canvas.rectangle(from, to, theme::SHADE.to_rgba());
        }
        draw_lost(canvas, cell, from, to);
    }
}

/// Draws a mark on the upper edge of a cell that lost some runs, or in its middle if it lost all.
fn draw_lost(canvas: &mut Canvas, cell: &Cell, from: (f64, f64), to: (f64, f64)) {
    if cell.lost > 0 {
        let all = cell.estimate().is_none() && cell.absent == 0;
        let x = if all { f64::midpoint(from.0, to.0) } else { from.0 + 3.0 };
        let y = if all { f64::midpoint(from.1, to.1) - 2.0 } else { from.1 };
        mark(canvas, (x, y), 1.0);
    }
}

/// Returns the colour of text: black on bright colours, white on dark ones.
fn ink_on(colour: RGBColor) -> RGBColor {
    if theme::grey(colour) > 128 { theme::BLACK } else { theme::PAPER }
}
