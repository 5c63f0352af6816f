//! retention.csv → a colour map. The kept chunk runs upwards and the last stored chunk to the right. The colour is
//! Σ loss ÷ Σ ℓ at W over sequences and heads. Cells left of the diagonal are empty, because their chunk was not kept yet.

use std::path::Path;

use plotters::style::Color;

use crate::error::Result;
use crate::io::table::Table;
use crate::plot::axis::Axis;
use crate::plot::canvas::{Canvas, svg};
use crate::plot::colours::{BAR_WITH_LABELS, Colours};
use crate::plot::figure::{Figure, Figures};
use crate::plot::frame::{Frame, fitted_x, fitted_y, left_of, title_lines};
use crate::plot::legend::{Legend, Swatch};
use crate::plot::style::{FigureStyle, Theme};
use crate::plot::{font, theme};

/// Most cells along an axis, 2.4 pt each. A cell spans several moments if there are more.
const CELLS: usize = 128;
/// Side of the map, if there is room.
const SIDE: f64 = 300.0;
/// Distance between the map and the bar, and right of the bar.
const BESIDE: f64 = 12.0;
/// Largest ratio, either way, with a colour of its own.
const FURTHEST: f64 = 1e4;

/// Sums of loss and ℓ at W by kept chunk and moment. A cell joins several of them if there are many.
pub(super) struct Map {
    /// Chunks that a cell spans.
    pub(super) span: u64,
    /// Cells along an axis.
    pub(super) cells: usize,
    /// One past the last chunk.
    pub(super) end: u64,
    /// Sums of loss and ℓ at W, by kept chunk, then moment.
    sums: Vec<[f64; 2]>,
}

/// Draws the map of a run's retention.csv. `check` runs every few thousand rows.
pub fn retention(
    retention_csv: &Path,
    style: &FigureStyle,
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<Figures> {
    let map = Map::read(retention_csv, check)?;
    let figure = Figure { name: "retention".to_owned(), svg: map.draw(style) };
    Ok(Figures { figures: vec![figure], notes: Vec::new() })
}

impl Map {
    /// Reads the file in two passes, first the range of chunks, then the sums, so that files of any length fit in memory.
    pub(super) fn read(path: &Path, check: &mut dyn FnMut() -> Result<()>) -> Result<Self> {
        let (mut end, mut first) = (0, u64::MAX);
        each(path, check, |_, after, _, _| {
            end = end.max(after + 1);
            first = first.min(after + 1);
        })?;
        // Moments are `first` chunks apart, except for the last. A cell spans a whole number of them.
        let step = first.min(end).max(1);
        let span = step * end.div_ceil(step).div_ceil(CELLS as u64).max(1);
        let cells = end.div_ceil(span) as usize;
        let mut sums = vec![[0.0; 2]; cells * cells];
        each(path, check, |chunk, after, loss, at_w| {
            let [chunk, after] = [chunk, after].map(|chunk| (chunk / span) as usize);
            let [sum, sum_at_w] = &mut sums[chunk * cells + after];
            *sum += loss;
            *sum_at_w += at_w;
        })?;
        Ok(Self { span, cells, end, sums })
    }

    /// Returns the kept chunk, the moment and the ratio of each cell that has one.
    pub(super) fn ratios(&self) -> impl Iterator<Item = (usize, usize, f64)> {
        let places = self.sums.iter().enumerate().filter(|(_, [_, at_w])| *at_w > 0.0);
        places.map(|(i, [loss, at_w])| (i / self.cells, i % self.cells, loss / at_w))
    }

    /// Returns the colours of the ratios, and the lowest and highest ratio.
    pub(super) fn colours(&self, theme: Theme) -> (Colours, (f64, f64)) {
        let finite = self.ratios().map(|(.., ratio)| ratio).filter(|ratio| ratio.is_finite() && *ratio > 0.0);
        let (low, high) =
            finite.fold((f64::INFINITY, 0.0_f64), |(low, high), ratio| (low.min(ratio), high.max(ratio)));
        let (low, high) = if low > high { (1.0, 1.0) } else { (low, high) };
        let colours = Colours::about_one(low.clamp(1.0 / FURTHEST, 1.0), high.clamp(1.0, FURTHEST), theme);
        (colours, (low, high))
    }

    fn draw(&self, style: &FigureStyle) -> String {
        let (colours, (low, high)) = self.colours(style.theme);

        let mut legend = Legend::default();
        legend.notes.push(
            "loss under the memory as it was then ÷ loss at the initial weights, Σ over heads and sequences"
                .to_owned(),
        );
        if self.ratios().any(|(.., ratio)| !ratio.is_finite()) {
            legend.entries.push((Swatch::Mark, "not finite".to_owned()));
        }
        if high > FURTHEST || low < 1.0 / FURTHEST {
            legend.notes.push("colours end at 10^{4} and 10^{−4}".to_owned());
        }
        if self.span > 1 && self.cells > 1 {
            legend.notes.push(format!("a cell is {} × {} chunks", self.span, self.span));
        }
        let sheet = style.sheet_width();
        let axis = Axis::tokens(&(0..self.end));
        let left = left_of([&axis], 1);
        let side = (sheet - left - BESIDE - BAR_WITH_LABELS - theme::EDGE).min(SIDE);
        let legend_width =
            (left + side + BESIDE + BAR_WITH_LABELS - theme::EDGE).min(sheet - 2.0 * theme::EDGE);
        let top = theme::EDGE + legend.height(legend_width) + 6.0;
        let side = style.panel_height(side, 1, top + theme::BOTTOM).min(side);
        let (x, y) = (fitted_x(axis.clone(), side), fitted_y(axis, side));
        // The map is as wide as needed and centred in the requested width.
        let aside = (sheet - (left + side + BESIDE + BAR_WITH_LABELS + theme::EDGE)).max(0.0) / 2.0;
        let frame = Frame { left: aside + left, top, width: side, height: side, x: &x, y: &y };
        svg(style, top + side + theme::BOTTOM, |canvas| {
            let legend_left = aside.min(sheet - theme::EDGE - legend_width).max(theme::EDGE);
            legend.draw(canvas, legend_left, theme::EDGE, legend_width);
            self.draw_cells(canvas, &frame, &colours);
            frame.draw_axes(canvas, true, true);
            frame.draw_x_title(canvas, "stored up to chunk");
            let title = if font::width("chunk kept", theme::TITLE) > side { "kept" } else { "chunk kept" };
            frame.draw_y_title(canvas, &title_lines(title, side), aside);
            colours.draw_bar(canvas, frame.right() + BESIDE, top, side, "loss ÷ loss at W");
        })
    }

    fn draw_cells(&self, canvas: &mut Canvas, frame: &Frame, colours: &Colours) {
        let edge = |cell: usize| (cell as u64 * self.span).min(self.end) as f64;
        for (chunk, after, ratio) in self.ratios() {
            let from = frame.place((edge(after), edge(chunk + 1)));
            let to = frame.place((edge(after + 1), edge(chunk)));
            let colour =
                if ratio.is_finite() { colours.colour(ratio.max(f64::MIN_POSITIVE)) } else { theme::ALARM };
            canvas.rectangle(from, to, colour.to_rgba());
        }
        if self.sums.is_empty() {
            frame.draw_message(canvas, "no chunk was kept");
        }
    }
}

/// Calls `row` with the chunk, after, the loss and ℓ at W of every row.
fn each(
    path: &Path,
    check: &mut dyn FnMut() -> Result<()>,
    mut row: impl FnMut(u64, u64, f64, f64),
) -> Result<()> {
    let mut table = Table::open(path)?;
    let (chunk, after) = (table.column("chunk")?, table.column("after")?);
    let (loss, at_w) = (table.column("loss")?, table.column("loss_at_w")?);
    let mut rows = 0_u64;
    while table.advance()? {
        let number = |column| table.number(column).map(|number| number.unwrap_or(f64::NAN));
        let (chunk, after) = (table.integer(chunk)?, table.integer(after)?);
        if chunk > after {
            return Err(table.bad_row("chunk ≤ after", format!("{chunk} and {after}")));
        }
        row(chunk, after, number(loss)?, number(at_w)?);
        rows += 1;
        if rows.is_multiple_of(4096) {
            check()?;
        }
    }
    Ok(())
}
