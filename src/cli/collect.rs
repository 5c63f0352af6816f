//! `nmem sweep --collect`: tables and figures of a sweep's finished runs, and a list of the missing ones.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::results_table::{Row, results_table};
use super::sweep::{FigureArgs, draw};
use super::sweep_report::one_line;
use super::{FAILED, Format, note, print, print_error};
use crate::condition::Condition;
use crate::escape::for_terminal;
use crate::run::Build;
use crate::sweep::{self, Parameters, Record, Status, SweepDirectory};

/// Output of `--format json`.
#[derive(Serialize)]
struct Collection<'a> {
    #[serde(serialize_with = "crate::io::path_as_text")]
    out: &'a Path,
    runs: usize,
    finished: usize,
    missing: Vec<Missing<'a>>,
    /// Runs of which only another version has results, and that would run again.
    other_version: Vec<OtherVersion<'a>>,
    failed: Vec<FailedRun<'a>>,
    rows: Vec<Row<'a>>,
}

#[derive(Serialize)]
struct OtherVersion<'a> {
    run: &'a str,
    parameters: &'a Parameters,
    computed_as: &'a str,
    build: &'a Build,
}

/// Options of `--collect`.
pub struct Options<'a> {
    /// Hash of the plan; `None` is the newest.
    pub plan: Option<&'a str>,
    /// Figures to draw.
    pub figure: Option<&'a FigureArgs>,
    /// Results in the table.
    pub metrics: &'a [String],
    /// Condition of the runs in the table.
    pub condition: Option<Condition>,
    /// Output format.
    pub format: Format,
    /// Whether only errors are printed.
    pub quiet: bool,
}

#[derive(Serialize)]
struct Missing<'a> {
    run: &'a str,
    parameters: &'a Parameters,
}

#[derive(Serialize)]
struct FailedRun<'a> {
    run: &'a str,
    status: &'static str,
    parameters: &'a Parameters,
    reason: &'a str,
}

/// Merges the records, draws figures if wanted, and prints the result. Exits with status 1 if a run is missing, failed or
/// diverged.
pub fn run(out: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    let &Options { plan, figure, metrics, ref condition, format, quiet } = options;
    let directory = SweepDirectory::check(out)?;
    let _in_use = if directory.exists()? { Some(directory.lock(false)?) } else { None };
    directory.clear_stale();
    let collected = sweep::collect(out, plan)?;
    if !quiet {
        collected.warnings.iter().for_each(|warning| note("warning: ", warning));
    }
    if let Some(figure) = figure {
        draw(out, figure, quiet)?;
    }
    // The rows of this plan come first, those of older plans after them.
    let absent = collected.missing.len() + collected.other_version.len();
    let finished = &collected.rows[..collected.planned - absent];
    let shown: Vec<&Record> = finished
        .iter()
        .filter(|record| {
            condition.as_ref().is_none_or(|condition| condition.holds(&|name| record.value(name)))
        })
        .collect();
    if let Some(condition) = condition.as_ref().filter(|_| shown.is_empty() && !finished.is_empty() && !quiet)
    {
        note("note: ", &format!("--where: `{condition}` holds for no finished run"));
    }
    let missing = collected.missing.iter().map(|run| Missing { run: &run.run, parameters: &run.parameters });
    let not_ok = |record: &&Record| matches!(record.status, Status::Failed | Status::Diverged);
    let other_version = collected.other_version.iter().map(|(run, record)| OtherVersion {
        run: &run.run,
        parameters: &run.parameters,
        computed_as: &record.run,
        build: &record.build,
    });
    let failed = finished.iter().filter(not_ok).map(|record| FailedRun {
        run: &record.run,
        status: record.status.name(),
        parameters: &record.parameters,
        reason: record.error.as_deref().unwrap_or_default(),
    });
    let collection = Collection {
        out,
        runs: collected.planned,
        finished: finished.len(),
        missing: missing.collect(),
        other_version: other_version.collect(),
        failed: failed.collect(),
        rows: shown.iter().map(|record| Row::new(record)).collect(),
    };
    match format {
        Format::Json => print(&format!("{}\n", serde_json::to_string_pretty(&collection)?)),
        Format::Table if quiet => Ok(true),
        Format::Table => print(&format!("{}{}", collection.table(), results_table(&shown, metrics))),
    }?;
    let keys = collection.varying(finished);
    for run in &collection.missing {
        print_error(&format!("missing {} ({})", run.run, one_line(run.parameters, &keys)));
    }
    for run in &collection.other_version {
        let parameters = one_line(run.parameters, &keys);
        print_error(&format!(
            "other version {} ({parameters}): {} computed it as {}; the sweep repeats it, because an input may have changed",
            run.run, run.build, run.computed_as
        ));
    }
    for run in &collection.failed {
        let parameters = one_line(run.parameters, &keys);
        print_error(&format!("{} {} ({parameters}): {}", run.status, run.run, run.reason));
    }
    let all_well = absent == 0 && collection.failed.is_empty();
    Ok(if all_well { ExitCode::SUCCESS } else { FAILED.into() })
}

impl Collection<'_> {
    fn table(&self) -> String {
        let mut text = String::new();
        let (missing, failed) = (self.missing.len(), self.failed.len());
        let other = match self.other_version.len() {
            0 => String::new(),
            other => format!("{other} of another version, "),
        };
        let _ = writeln!(
            text,
            "runs             {}: {} finished, {other}{missing} missing, {failed} failed or diverged",
            self.runs, self.finished
        );
        let path = self.out.join("results.csv").display().to_string();
        let _ = writeln!(text, "results          {}", for_terminal(&path));
        text
    }

    /// Returns the names of the parameters that differ between runs.
    fn varying(&self, finished: &[Record]) -> Vec<String> {
        let missing = self.missing.iter().map(|run| run.parameters);
        let missing = missing.chain(self.other_version.iter().map(|run| run.parameters));
        let all: Vec<_> = finished.iter().map(|record| &record.parameters).chain(missing).collect();
        let Some(first) = all.first() else { return Vec::new() };
        let differs = |key: &&String| all.iter().any(|other| other.get(*key) != first.get(*key));
        first.keys().filter(differs).cloned().collect()
    }
}
