//! `nmem sweep --status`: the state of each run of a sweep, and the reason for it.

use std::fmt::Write as _;

use serde::Serialize;

use super::Format;
use super::sweep_report::{one_line, varying};
use super::table::aligned;
use crate::sweep::{Parameters, Plan, PlannedRun, RunState};

#[derive(Serialize)]
struct Row<'a> {
    run: &'a str,
    state: &'static str,
    reason: String,
    parameters: &'a Parameters,
}

/// Formats the states of runs.
pub fn status(
    plan: &Plan,
    runs: &[&PlannedRun],
    states: &[RunState],
    format: Format,
) -> serde_json::Result<String> {
    let rows: Vec<_> = runs
        .iter()
        .zip(states)
        .map(|(run, state)| Row {
            run: &run.id,
            state: state.name(),
            reason: state.reason(),
            parameters: &run.parameters,
        })
        .collect();
    if let Format::Json = format {
        return Ok(format!("{}\n", serde_json::to_string_pretty(&rows)?));
    }
    let keys = varying(plan);
    let mut lines = vec![["run", "parameters", "state", "reason"].map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(|row| {
        vec![row.run.to_owned(), one_line(row.parameters, &keys), row.state.to_owned(), row.reason.clone()]
    }));
    let mut text = String::new();
    for line in aligned(&lines, lines[0].len()) {
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let count = |name: &str| rows.iter().filter(|row| row.state == name).count();
    let [current, other, stale, missing] = ["current", "other version", "stale", "missing"].map(count);
    let _ = writeln!(
        text,
        "{} runs: {current} current, {other} by another version, {stale} stale, {missing} missing",
        rows.len()
    );
    Ok(text)
}
