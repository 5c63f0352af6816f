//! retention.csv of a run as a map: the kept chunk against the last stored chunk.

use std::path::Path;

use super::{Chart, Map, Panel};
use crate::error::Result;
use crate::plot::Theme;
use crate::plot::axis::Axis;
use crate::plot::retention::Map as Sums;

pub fn chart(csv: &Path, theme: Theme, check: &mut dyn FnMut() -> Result<()>) -> Result<Chart> {
    let sums = Sums::read(csv, check)?;
    let axis = Axis::tokens(&(0..sums.end));
    let mut panel = Panel::new("map", (axis.clone(), "stored up to chunk"), (axis, "chunk kept"));
    let cells: Vec<_> = sums.ratios().map(|(kept, after, ratio)| (after, kept, ratio)).collect();
    let lost = cells.iter().filter(|cell| !cell.2.is_finite()).count();
    let size = sums.span as f64;
    panel.map = Some(Map {
        size: (sums.cells, sums.cells),
        from: (0.0, 0.0),
        cell: (size, size),
        cells,
        texts: Vec::new(),
    });
    let mut notes = vec![
        "loss under the memory as it was then over loss at the initial weights, sums over heads and sequences".to_owned(),
    ];
    if sums.span > 1 {
        notes.push(format!("a cell is {0} × {0} chunks", sums.span));
    }
    Ok(Chart {
        name: "retention".to_owned(),
        csv: None,
        panels: vec![panel],
        columns: 1,
        keys: Vec::new(),
        notes,
        omitted: (lost > 0).then(|| format!("retention: {lost} cells not finite")).into_iter().collect(),
        colours: Some((sums.colours(theme).0, "loss ÷ loss at W".to_owned())),
    })
}
