//! Controls of results, which a result must beat: the loss of an all-zero answer beside a loss, and the chance of a guess beside
//! an accuracy. A control is a dashed line, or a note where the axis has no place for it.

use std::collections::BTreeMap;

use super::results::{Cell, Results};
use super::{Method, Metric, RATIO};
use crate::plot::chart::{Line, LineStyle};
use crate::plot::colours::range;
use crate::plot::downsample::Point;
use crate::plot::names::short;
use crate::plot::theme;
use crate::plot::timeline::ZEROS;

/// Values that differ by less than this fraction are the same.
const SAME: f64 = 1e-6;

/// The control of a metric.
pub struct Control {
    pub name: &'static str,
    /// Centres over runs, by panel, then by hue and x.
    centers: BTreeMap<Vec<usize>, Centers>,
}

/// Centres of one panel, by hue and x: the index of a parameter's value, or the bits of a token's place.
pub type Centers = BTreeMap<(usize, u64), f64>;

/// Returns a range of centres, widened by itself on both sides. What lies beyond would press the centres together.
pub fn widened((low, high): (f64, f64), log: bool) -> (f64, f64) {
    if log {
        let span = (high / low).max(1.5);
        ((low / span).max(f64::MIN_POSITIVE), (high * span).min(f64::MAX))
    } else {
        let span = (high - low).max(high.abs() * 0.05);
        ((low - span).max(f64::MIN), (high + span).min(f64::MAX))
    }
}

impl Control {
    /// Finds the control of a metric in the table. `by` are the parameters that separate cells: as many as `keys` hold have
    /// panels, of which those with these keys are drawn, and the others are hue and x.
    pub fn find(
        results: &Results,
        metric: &str,
        by: &[usize],
        keys: &[&Vec<usize>],
        method: &Method,
    ) -> Option<Self> {
        let (column, name) = match metric {
            "loss_mean" | "loss_before_mean" | "loss_after_mean" => ("loss_zero_mean", ZEROS),
            RATIO | "loss_ratio" => ("loss_zero_mean/loss_mean", ZEROS),
            "validation" => ("validation_zero", ZEROS),
            "recall_mean_square" => ("recall_mean_square/recall_ratio", ZEROS),
            "recall_accuracy" => ("recall_chance", "chance"),
            _ => return None,
        };
        let control = results.metric(column)?;
        // A retention.csv has other ratios.
        results.metric(metric).filter(|of| metric != "loss_ratio" || matches!(of, Metric::Quotient(..)))?;
        let mut centers = BTreeMap::<_, Centers>::new();
        for (key, Cell { finite, .. }) in results.cells(control, by, None) {
            let (panel, of_cell) = key.split_at(keys.first()?.len());
            if !keys.iter().any(|key| *key == panel) {
                continue;
            }
            let (hue, x) = if of_cell.len() > 1 { (of_cell[0], of_cell[1]) } else { (0, of_cell[0]) };
            if let Some(estimate) = method.of_values(&finite) {
                centers.entry(panel.to_vec()).or_default().insert((hue, x as u64), estimate.center);
            }
        }
        (!centers.is_empty()).then_some(Self { name, centers })
    }

    /// Creates the control of a single panel of losses.
    pub fn of_zeros(centers: Centers) -> Self {
        Self { name: ZEROS, centers: [(Vec::new(), centers)].into() }
    }

    /// Returns all values.
    pub fn values(&self) -> impl Iterator<Item = f64> {
        self.centers.values().flat_map(|of_panel| of_panel.values().copied())
    }

    /// Returns whether an axis around centres of this range can show it: see [`widened`].
    pub fn fits(&self, range: (f64, f64), log: bool) -> bool {
        let (low, high) = widened(range, log);
        self.values().all(|value| (low..=high).contains(&value))
    }

    /// Returns the lines of a panel, beside the hues' lines of these names and styles: one, if all hues have the same values.
    /// `stretches` places the values of one line.
    pub fn lines(
        &self,
        panel: &[usize],
        hues: &[(String, LineStyle)],
        stretches: impl Fn(Vec<(u64, f64)>) -> Vec<Vec<Point>>,
    ) -> Vec<Line> {
        let Some(centers) = self.centers.get(panel) else { return Vec::new() };
        let mut by_x = BTreeMap::<u64, Vec<f64>>::new();
        for (&(_, x), &center) in centers {
            by_x.entry(x).or_default().push(center);
        }
        let same = |values: &Vec<f64>| {
            range(values).is_none_or(|(low, high)| high - low <= SAME * low.abs().max(high.abs()))
        };
        if by_x.values().all(same) {
            let points = by_x.into_iter().map(|(x, values)| (x, values[0])).collect();
            return vec![Line::new(self.name, Self::style(hues.len()), stretches(points))];
        }
        let mut lines = BTreeMap::<usize, Vec<(u64, f64)>>::new();
        for (&(hue, x), &center) in centers {
            lines.entry(hue).or_default().push((x, center));
        }
        let line = |(hue, points): (usize, _)| {
            let (name, style) = &hues[hue];
            Line::new(&format!("{}, {name}", self.name), style.control(), stretches(points))
        };
        lines.into_iter().map(line).collect()
    }

    /// Describes the values where they are not drawn.
    pub fn note(&self) -> String {
        let values: Vec<_> = self.values().collect();
        let (low, high) = range(&values).unwrap_or_default();
        let (low, high) = (short(low), short(high));
        let name = if self.name == ZEROS { "an answer of zeros" } else { self.name };
        if low == high { format!("{name}: {low}") } else { format!("{name}: {low} to {high}") }
    }

    /// Returns the style of the line of this many hues, also in the key.
    pub fn style(hues: usize) -> LineStyle {
        LineStyle::line(theme::GREY, theme::SPINE, 1.0, Some(hues)).control()
    }
}
