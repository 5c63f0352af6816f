//! The figure: the test cross-entropy of every model, by chunk size.

use std::path::Path;

use anyhow::Context;
use plotters::prelude::*;

use super::Row;

/// Width and height in pixels.
const SIZE: (u32, u32) = (640, 360);
/// Range of the cross-entropies.
const RANGE: std::ops::Range<f64> = 3e-4..5.0;
/// Series: depth, derivative, name, colour and place beside the chunk size, in octaves.
const SERIES: [(usize, &str, &str, RGBColor, f64); 3] = [
    (1, "complete", "one factor", RGBColor(0, 114, 178), -0.18),
    (2, "complete", "two factors", RGBColor(213, 94, 0), 0.0),
    (2, "released", "two factors, released derivative", RGBColor(0, 158, 115), 0.18),
];
/// Width of the points of one series, in octaves.
const SPREAD: f64 = 0.12;

/// Draws the figure as an SVG.
pub fn draw(path: &Path, rows: &[Row]) -> anyhow::Result<()> {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    let drawn = draw_on(&area, rows);
    drawn.with_context(|| format!("cannot draw {}", path.display()))
}

fn draw_on(area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>, rows: &[Row]) -> anyhow::Result<()> {
    area.fill(&WHITE)?;
    let octave = |chunk: usize| (chunk as f64).log2();
    let mut chunks: Vec<_> = rows.iter().map(|row| row.chunk).collect();
    chunks.sort_unstable();
    chunks.dedup();
    let (Some(&first), Some(&last)) = (chunks.first(), chunks.last()) else { return Ok(()) };
    let x = octave(first) - 0.5..octave(last) + 0.5;
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(x.clone(), RANGE.log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(chunks.len())
        .x_label_formatter(&|octave| format!("{:.0}", octave.exp2()))
        .y_label_formatter(&|y| format!("{y}"))
        .x_desc("writes per chunk")
        .y_desc("test cross-entropy (nats)")
        .draw()?;
    let chance = 8_f64.ln();
    chart.draw_series(DashedLineSeries::new(
        [(x.start, chance), (x.end, chance)],
        4,
        3,
        BLACK.stroke_width(1),
    ))?;
    chart.draw_series([Text::new(
        "uniform guess, ln 8",
        (x.start + 0.03, chance * 1.5),
        ("sans-serif", 13),
    )])?;
    for (depth, derivative, name, colour, place) in SERIES {
        let of: Vec<_> =
            rows.iter().filter(|row| row.depth == depth && row.derivative == derivative).collect();
        let Some(seeds) = of.iter().map(|row| row.seed).min().zip(of.iter().map(|row| row.seed).max()) else {
            continue;
        };
        // Seeds stand side by side, in order.
        let at = |row: &Row| {
            let share = f64::from(row.seed - seeds.0) / f64::from((seeds.1 - seeds.0).max(1)) - 0.5;
            octave(row.chunk) + place + share * SPREAD
        };
        let points = of.iter().map(|row| Circle::new((at(row), row.test_cross_entropy), 2, colour.filled()));
        chart
            .draw_series(points)?
            .label(name)
            .legend(move |(x, y)| Circle::new((x + 8, y), 3, colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .border_style(TRANSPARENT)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    area.present()?;
    Ok(())
}
