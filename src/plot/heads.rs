//! Maps of heads × chunks: surprise and learning rate as colours, each with its bar. A cell that spans several chunks
//! shows their mean. It is marked if some of them are not finite or not above 0.

use plotters::style::Color;

use crate::plot::axis::Axis;
use crate::plot::canvas::{Canvas, svg};
use crate::plot::colours::{BAR_WITH_LABELS, Colours};
use crate::plot::frame::{Frame, draw_letter, fitted_x, left_of, letter, title_lines};
use crate::plot::legend::{Legend, Swatch, mark};
use crate::plot::series::{Metrics, Quantity, Series};
use crate::plot::style::FigureStyle;
use crate::plot::theme;

/// Quantities drawn, and the titles of their bars.
const SHOWN: [(Quantity, &str); 2] =
    [(Quantity::Surprise, "surprise ‖g‖"), (Quantity::LearningRate, "learning rate θ")];
/// Height of a head; below, the minimum and maximum height of a map.
const ROW: f64 = 12.0;
const MIN_HEIGHT: f64 = 60.0;
const MAX_HEIGHT: f64 = 180.0;
/// Minimum width of a cell in points of paper.
const CELL: f64 = 1.0;
/// Distance between the map and its bar.
const BESIDE: f64 = 12.0;

/// Draws maps of surprise and learning rate, one below the other.
pub fn figure(metrics: &Metrics, style: &FigureStyle) -> String {
    let sheet = style.sheet_width();
    let names: Vec<_> = metrics.heads.iter().map(ToString::to_string).collect();
    let whole = Axis::slots(&names, |_| 0.0);
    let left = left_of([&whole], 1);
    let width = sheet - left - BESIDE - BAR_WITH_LABELS;
    let most = (1..2048).take_while(|&cells| f64::from(cells) * CELL <= width).count().max(1);
    let cells = |series: &Series| series.heads.iter().map(|line| line.cells(most)).collect::<Vec<_>>();
    let maps: Vec<_> = SHOWN
        .iter()
        .filter_map(|&(quantity, title)| {
            let series = metrics.series.iter().find(|series| series.quantity == quantity)?;
            Some((title, cells(series)))
        })
        .collect();

    let mut legend = Legend::default();
    if maps.iter().flat_map(|(_, map)| map).flatten().any(|cell| cell.2) {
        legend.entries.push((Swatch::Mark, "not finite or not above 0".to_owned()));
    }
    let span = maps.iter().flat_map(|(_, map)| map).flatten().map(|(chunks, ..)| chunks.end - chunks.start);
    if let Some(span) = span.max().filter(|&span| span > 1) {
        legend.notes.push(format!("a cell is the mean of {span} chunks"));
    }
    if metrics.sequences > 1 {
        legend.notes.push(format!("mean over {} sequences", metrics.sequences));
    }
    let top = theme::EDGE + legend.height(sheet - 2.0 * theme::EDGE) + theme::HEAD;
    let rest = top + theme::GAP * (maps.len().max(1) - 1) as f64 + theme::BOTTOM;
    let default = (metrics.heads.len() as f64 * ROW).clamp(MIN_HEIGHT, MAX_HEIGHT);
    let height = style.panel_height(default, maps.len().max(1), rest);
    let y = Axis::slots(&names, |_| (theme::SMALL + 1.5) / height);
    let x = fitted_x(Axis::tokens(&metrics.tokens), width);
    svg(style, rest + height * maps.len().max(1) as f64, |canvas| {
        legend.draw(canvas, theme::EDGE, theme::EDGE, sheet - 2.0 * theme::EDGE);
        for (i, (title, map)) in maps.iter().enumerate() {
            let top = top + i as f64 * (height + theme::GAP);
            let frame = Frame { left, top, width, height, x: &x, y: &y };
            draw_map(canvas, &frame, map, title, style);
            let lowest = i + 1 == maps.len();
            frame.draw_axes(canvas, lowest, true);
            frame.draw_y_title(canvas, &title_lines("head", height), 0.0);
            if lowest {
                frame.draw_x_title(canvas, "tokens");
            }
            if let Some(letter) = letter(i, maps.len()) {
                draw_letter(canvas, letter, (theme::EDGE, top - theme::LETTER));
            }
        }
    })
}

/// Cells of a head: the chunks, counted from the first, their mean, and whether some cannot be drawn.
type Cells = Vec<(std::ops::Range<u64>, Option<f64>, bool)>;

fn draw_map(canvas: &mut Canvas, frame: &Frame, map: &[Cells], title: &str, style: &FigureStyle) {
    let means = map.iter().flatten().filter_map(|cell| cell.1);
    let range = means.map(|mean| (mean, mean)).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)));
    let Some((low, high)) = range else { return frame.draw_message(canvas, "no finite values") };
    let log = low > 0.0 && style.log.is_none_or(crate::plot::LogAxes::y);
    let colours = Colours::sequential(low, high, log, style.theme);
    let row = frame.height / map.len() as f64;
    for (head, cells) in map.iter().enumerate() {
        let (top, chunks) = (
            frame.bottom() - (head + 1) as f64 * row,
            cells.last().map_or(1, |(chunks, ..)| chunks.end) as f64,
        );
        let place = |chunk: u64| frame.left + chunk as f64 / chunks * frame.width;
        for (chunks, mean, unshown) in cells {
            let (from, to) = ((place(chunks.start), top), (place(chunks.end), top + row));
            if let Some(mean) = mean {
                canvas.rectangle(from, to, colours.colour(*mean).to_rgba());
            }
            if *unshown {
                mark(canvas, (f64::midpoint(from.0, to.0), top + 0.5), 1.0);
            }
        }
    }
    colours.draw_bar(canvas, frame.right() + BESIDE, frame.top, frame.height, title);
}
