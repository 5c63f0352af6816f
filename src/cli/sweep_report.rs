//! Reports of `nmem sweep`: the runs of a plan before they start, and counts, failures and time afterwards.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::results_table::Row;
use super::table::aligned;
use crate::escape::for_terminal;
use crate::sweep::{Parameters, Plan, PlannedRun, Record, Status};

/// Returns the names of the parameters that differ between runs.
pub(super) fn varying(plan: &Plan) -> Vec<String> {
    let differs = |key: &&String| {
        plan.runs.windows(2).any(|pair| pair[0].parameters.get(*key) != pair[1].parameters.get(*key))
    };
    plan.keys.iter().filter(differs).cloned().collect()
}

/// Formats the parameters in `keys` on one line.
pub(super) fn one_line(parameters: &Parameters, keys: &[String]) -> String {
    let pairs = keys.iter().filter_map(|key| Some(format!("{key}={}", parameters.get(key)?)));
    pairs.collect::<Vec<_>>().join(" ")
}

/// Output of `--format json` at the end.
#[derive(Serialize)]
pub(super) struct Summary<'a> {
    #[serde(serialize_with = "crate::io::path_as_text")]
    pub out: &'a Path,
    pub runs: usize,
    pub done_before: usize,
    pub ran: usize,
    pub missing: usize,
    pub failed: Vec<Failure>,
    pub wall_s: f64,
    pub rows: Vec<Row<'a>>,
    #[serde(skip)]
    pub records: Vec<&'a Record>,
}

#[derive(Serialize)]
pub(super) struct Failure {
    run: String,
    status: &'static str,
    parameters: String,
    reason: String,
}

impl Failure {
    fn from_record(record: &Record, plan: &Plan) -> Self {
        Self {
            run: record.run.clone(),
            status: record.status.name(),
            parameters: one_line(&record.parameters, &varying(plan)),
            reason: record.error.clone().unwrap_or_default(),
        }
    }

    /// Formats the failure on one line.
    pub fn line(&self) -> String {
        let Self { run, status, parameters, reason } = self;
        let parameters = if parameters.is_empty() { String::new() } else { format!(" ({parameters})") };
        let reason = reason.strip_prefix(status).unwrap_or(reason).trim_start();
        format!("{status} {run}{parameters}: {reason}")
    }
}

impl<'a> Summary<'a> {
    /// Summarises the runs at the places `mine` of the plan from those that `ran` now and those on record.
    pub fn new(out: &'a Path, plan: &Plan, mine: &[usize], ran: &[Record], recorded: &'a [Record]) -> Self {
        let ids: HashSet<&str> = mine.iter().map(|&place| &*plan.runs[place].id).collect();
        let recorded: Vec<&Record> = recorded.iter().filter(|record| ids.contains(&*record.run)).collect();
        // The outcome of a run now counts, even if an older record with its results is kept.
        let now: HashMap<&str, &Record> = ran.iter().map(|record| (&*record.run, record)).collect();
        let latest = recorded.iter().map(|record| now.get(&*record.run).unwrap_or(record));
        Self {
            out,
            runs: mine.len(),
            done_before: 0,
            ran: ran.len(),
            missing: mine.len() - recorded.len(),
            failed: latest
                .filter(|record| matches!(record.status, Status::Failed | Status::Diverged))
                .map(|record| Failure::from_record(record, plan))
                .collect(),
            wall_s: 0.0,
            rows: recorded.iter().map(|record| Row::new(record)).collect(),
            records: recorded,
        }
    }

    /// Formats the counts and the time for people.
    pub fn table(&self) -> String {
        let diverged = self.failed.iter().filter(|failure| failure.status == Status::Diverged.name()).count();
        let failed = self.failed.len() - diverged;
        let each = 1e3 * self.wall_s / self.ran.max(1) as f64;
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<17}{value}");
        };
        line("runs", format!("{}: {} done before, {} run now", self.runs, self.done_before, self.ran));
        if !self.failed.is_empty() || self.missing > 0 {
            line("", format!("{failed} failed, {diverged} diverged, {} not run", self.missing));
        }
        let stopped = self.records.iter().filter(|record| record.status == Status::Stopped).count();
        if stopped > 0 {
            line("", format!("{stopped} stopped by their condition"));
        }
        if self.ran > 0 {
            line("time", format!("{:.2} s, {each:.1} ms per run", self.wall_s));
        }
        line("results", for_terminal(&self.out.join("results.csv").display().to_string()).into_owned());
        text
    }
}

#[derive(Serialize)]
pub(super) struct Planned<'a> {
    run: &'a str,
    done: bool,
    parameters: &'a Parameters,
    error: Option<&'a str>,
}

/// Lists the runs at the places `mine`.
pub(super) fn planned<'a>(
    plan: &'a Plan,
    mine: &[usize],
    done: &dyn Fn(&PlannedRun) -> bool,
) -> Vec<Planned<'a>> {
    let planned = |run: &'a PlannedRun| Planned {
        run: &run.id,
        done: done(run),
        parameters: &run.parameters,
        error: run.ready.as_ref().err().map(String::as_str),
    };
    mine.iter().map(|&place| planned(&plan.runs[place])).collect()
}

/// Formats a table of run ids, of the parameters that differ, and of each run's state.
pub(super) fn dry_table(plan: &Plan, mine: &[usize], done: &dyn Fn(&PlannedRun) -> bool) -> String {
    let keys = varying(plan);
    let mut rows = vec![["run".to_owned()].into_iter().chain(keys.iter().cloned()).collect::<Vec<_>>()];
    rows[0].push("state".to_owned());
    let runs = || mine.iter().map(|&place| &plan.runs[place]);
    for run in runs() {
        let mut row = vec![run.id.clone()];
        row.extend(keys.iter().map(|key| run.parameters.get(key).cloned().unwrap_or_default()));
        row.push(match &run.ready {
            Ok(_) if done(run) => "done".to_owned(),
            Ok(_) => "to run".to_owned(),
            Err(reason) => format!("cannot run: {reason}"),
        });
        rows.push(row);
    }
    let mut text = String::new();
    for line in aligned(&rows, keys.len() + 2) {
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let finished = runs().filter(|run| done(run)).count();
    let _ = writeln!(text, "{} runs, {finished} of them done", mine.len());
    text
}
