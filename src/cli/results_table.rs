//! The table of a sweep's results on stdout: means over seeds with their intervals, and the best row marked. As JSON, a row
//! per run.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::table::{aligned, number};
use crate::statistics::Estimate;
use crate::sweep::{Means, Parameters, Record, Results, TableRow};

/// Maximum number of rows that are printed, about two screens.
const MAX_ROWS: usize = 60;

/// Formats the table of runs after an empty line; nothing if no run has results.
pub fn results_table(runs: &[&Record], metrics: &[String]) -> String {
    let means = Means::new(runs, metrics);
    if means.metrics.is_empty() || means.rows.iter().all(|row| row.n == 0) {
        return String::new();
    }
    let with_interval = means.rows.iter().any(|row| row.n > 1);
    let column = |metric: &String| if with_interval { format!("{metric} ± 95 %") } else { metric.clone() };
    let mut header: Vec<String> = vec![String::new()];
    header.extend(means.keys.iter().cloned());
    header.push("n".to_owned());
    header.extend(means.metrics.iter().map(column));
    let cells = |(place, row): (usize, &TableRow)| {
        let mut cells = vec![if means.best == Some(place) { "*" } else { "" }.to_owned()];
        cells.extend(row.parameters.iter().cloned());
        cells.push(if row.lost > 0 {
            format!("{} of {}", row.n, row.n + row.lost)
        } else {
            row.n.to_string()
        });
        cells.extend(row.estimates.iter().copied().map(estimate));
        cells
    };
    // The best row is shown, wherever it is.
    let last = means.best.filter(|&best| best >= MAX_ROWS);
    let shown = means.rows.iter().enumerate().take(MAX_ROWS - usize::from(last.is_some()));
    let shown = shown.chain(last.map(|best| (best, &means.rows[best])));
    let mut rows = vec![header];
    rows.extend(shown.map(cells));
    let mut text = "\n".to_owned();
    for line in aligned(&rows, means.keys.len() + 1) {
        let _ = writeln!(text, "{}", line.trim_end());
    }
    if means.rows.len() > MAX_ROWS {
        let _ = writeln!(text, "and {} more rows in summary.csv", means.rows.len() - MAX_ROWS);
    }
    if means.best.is_some() {
        let _ = writeln!(text, "* best mean of {}", means.metrics[0]);
    }
    text
}

fn estimate(estimate: Option<Estimate>) -> String {
    let Some(Estimate { center, interval, .. }) = estimate else { return String::new() };
    match interval {
        Some((low, high)) => format!("{} ± {}", number(center), number(0.5 * (high - low))),
        None => number(center),
    }
}

/// A run in `--format json`.
#[derive(Serialize)]
pub struct Row<'a> {
    run: &'a str,
    status: &'static str,
    parameters: &'a Parameters,
    results: BTreeMap<&'static str, f64>,
    error: Option<&'a str>,
    version: Option<&'a str>,
    commit: Option<&'a str>,
}

impl<'a> Row<'a> {
    /// Returns the row of a run.
    pub fn new(record: &'a Record) -> Self {
        let results = Results::NAMES.iter().copied().zip(record.results.values());
        Self {
            run: &record.run,
            status: record.status.name(),
            parameters: &record.parameters,
            results: results.filter_map(|(name, value)| Some((name, value?))).collect(),
            error: record.error.as_deref(),
            version: record.build.version.as_deref(),
            commit: record.build.commit.as_deref(),
        }
    }
}
