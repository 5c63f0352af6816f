//! Figures, made from metrics.csv (and labels), scan_bench.csv or results.csv alone, so that they can be drawn again at any time.
//!
//! In the order to read:
//! - [`envelope`]: a line of any length in bounded memory, every spike kept.
//! - [`series`]: metrics.csv → such lines, means over heads and sequences.
//! - `axis`: limits, ticks and labels. `theme`: sizes and colours. `canvas`: a sheet in points, written as SVG.
//! - `timeline` and `legend`: where all of it goes on the sheet.
//! - `frame`: a panel's spines, ticks and titles. `colours`: colours that stand for numbers, and their bar.
//! - `retention`: retention.csv → a map of chunks stored × stored up to.
//! - `scan_bench`: scan_bench.csv → time and bandwidth against steps.
//! - [`sweep`]: results.csv of a sweep → a figure a metric.

mod axis;
mod canvas;
mod colours;
pub mod envelope;
mod frame;
mod legend;
mod retention;
mod scan_bench;
pub mod series;
pub mod sweep;
mod theme;
mod timeline;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::labels::Labels;
use envelope::Unshown;
pub use retention::write_retention;
pub use scan_bench::write_scan_bench;
use series::{Metrics, Series};

/// What was drawn, and what could not be.
#[derive(Debug)]
pub struct Timelines {
    /// The files written.
    pub files: Vec<PathBuf>,
    /// Quantities with values that are marked at the panel's edge instead of being drawn: worth a note to the user.
    pub left_out: Vec<LeftOut>,
}

/// Values of one quantity that an axis cannot show, counted per chunk and head (after the mean over sequences).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// As the file without its ending: "surprise".
    pub quantity: &'static str,
    /// NaN or infinite.
    pub not_finite: u64,
    /// Zero or below, on a log axis.
    pub not_positive: u64,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons = [(self.not_finite, "not finite"), (self.not_positive, "not above 0 on a log axis")];
        let reasons = reasons.iter().filter(|(count, _)| *count > 0);
        let reasons: Vec<_> = reasons.map(|(count, reason)| format!("{count} {reason}")).collect();
        write!(f, "{}: values left out of the figure: {}", self.quantity, reasons.join(", "))
    }
}

/// Draws `timeline.svg`, all quantities on a shared axis of tokens, and each quantity alone: `surprise.svg`,
/// `loss_ratio.svg` (only where the losses were probed), `learning_rate.svg`, `decay.svg`, `momentum.svg`.
/// `out_dir` must exist. `check` is asked every few thousand rows and with each figure, and can stop the work.
pub fn write_timelines(
    metrics_csv: &Path,
    labels: Option<&Labels>,
    out_dir: &Path,
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<Timelines> {
    let metrics = Metrics::read(metrics_csv, check)?;
    let every: Vec<&Series> = metrics.series.iter().collect();
    let mut figures = vec![("timeline", every.clone())];
    figures.extend(every.iter().map(|&series| (series.quantity.name(), vec![series])));

    let mut files = Vec::new();
    for (name, shown) in figures {
        let path = out_dir.join(name).with_extension("svg");
        let figure = timeline::figure(&metrics, labels, &shown);
        check()?;
        std::fs::write(&path, figure).map_err(Error::io(&path, "write"))?;
        files.push(path);
    }
    let left_out = every.iter().map(|series| LeftOut {
        quantity: series.quantity.name(),
        not_finite: series.count(Unshown::NotFinite),
        not_positive: series.count(Unshown::NotPositive),
    });
    let left_out = left_out.filter(|left_out| left_out.not_finite + left_out.not_positive > 0).collect();
    Ok(Timelines { files, left_out })
}
