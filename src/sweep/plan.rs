//! The runs of a sweep with their identities. Two runs have the same identity if and only if they are the same run. The
//! identity is the SHA-256 of the resolved configuration, the content of the inputs and the version of the program.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::experiment::{Experiment, Kind};
use super::row::{GridRow, Parameters};
use crate::config::{Command, Config};
use crate::cuda::DeviceChoice;
use crate::error::{Error, Result};
use crate::run::{InputCache, Observer, Resolved, ResolvedInputs, commit};

/// Number of hexadecimal digits of an identity that name a run.
const DIGITS: usize = 12;

/// All runs of a sweep, in order.
pub struct Plan {
    /// Names of the parameters, those that may vary first.
    pub keys: Vec<String>,
    /// Runs with distinct identities.
    pub runs: Vec<PlannedRun>,
    /// Number of rows that repeat the run of an earlier row.
    pub repeated: usize,
}

/// A run that a plan asks for.
pub struct PlannedRun {
    /// Start of the identity.
    pub id: String,
    /// Parameters by name, as written.
    pub parameters: Parameters,
    /// Settings with files as absolute paths. In the tables, a later run with the same ones replaces an older run, because a
    /// file or the program has changed since.
    pub resolved: Parameters,
    /// Settings of the row.
    pub row: GridRow,
    /// Everything needed to execute the run, or the reason why it cannot run.
    pub ready: Result<Ready, String>,
}

/// A checked configuration with its inputs, opened.
pub struct Ready {
    /// Subcommand to run.
    pub command: Command,
    /// Configuration of the run.
    pub config: Config,
    /// Inputs, shared with other runs.
    pub inputs: ResolvedInputs,
}

/// Content that is hashed into an identity.
#[derive(Serialize)]
struct Identity<'a> {
    program: &'a str,
    command: Command,
    config: Resolved,
    dtype: crate::real::ElementType,
    threads: Option<usize>,
    /// Device, omitted for the CPU, so that runs keep the identity they had before devices could be chosen.
    #[serde(skip_serializing_if = "DeviceChoice::is_cpu")]
    device: DeviceChoice,
    unstable_ratio: f64,
    inputs: Vec<(&'a str, &'a str)>,
}

impl Plan {
    /// Expands the experiment and opens each input once. A row that cannot run becomes a run that fails. If no row can run,
    /// returns the error of the first.
    pub fn new(experiment: &Experiment, unstable_ratio: f64, observe: Observer) -> Result<Self> {
        let inputs = InputCache::default();
        let (mut runs, mut seen, mut repeated) = (Vec::new(), BTreeSet::new(), 0);
        let mut first_error = None;
        for row in experiment.expand()? {
            let ready = prepare(&row, experiment.kind(), &inputs, observe);
            let id = match &ready {
                Ok(ready) => identity(ready, unstable_ratio)?,
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                Err(_) => hash(&(program()?, &row.resolved())),
            };
            if !seen.insert(id.clone()) {
                repeated += 1;
                continue;
            }
            let ready = ready.map_err(|error| {
                let reason = chain(&error);
                first_error.get_or_insert(error);
                reason
            });
            let (parameters, resolved) = (row.parameters.clone(), row.resolved());
            runs.push(PlannedRun { id, parameters, resolved, row, ready });
        }
        match first_error {
            Some(error) if runs.iter().all(|run| run.ready.is_err()) => Err(error),
            _ => Ok(Self { keys: experiment.keys(), runs, repeated }),
        }
    }

    /// Returns the content of the plan's file in plans/.
    pub fn file(&self) -> PlanFile {
        let runs = self.runs.iter().map(|run| PlanEntry {
            run: run.id.clone(),
            parameters: run.parameters.clone(),
            resolved: run.resolved.clone(),
        });
        PlanFile { keys: self.keys.clone(), runs: runs.collect() }
    }
}

fn prepare(row: &GridRow, kind: Option<Kind>, cache: &InputCache, observe: Observer) -> Result<Ready> {
    let (command, config) = row.config(kind)?;
    let inputs = ResolvedInputs::open(&config, false, cache, observe)?;
    Ok(Ready { command, config, inputs })
}

fn identity(ready: &Ready, unstable_ratio: f64) -> Result<String> {
    let Ready { command, config, inputs } = ready;
    Ok(hash(&Identity {
        program: program()?,
        command: *command,
        config: inputs.resolved(config),
        dtype: config.dtype,
        threads: config.threads,
        device: config.device,
        unstable_ratio,
        inputs: inputs.files.iter().map(|input| (input.role, &*input.sha256)).collect(),
    }))
}

/// Returns the version and commit of the program. If its source was not fully committed, adds the hash of the executable,
/// which distinguishes one edit from another.
fn program() -> Result<&'static str> {
    static PROGRAM: LazyLock<std::io::Result<String>> = LazyLock::new(|| {
        let (version, commit) = (env!("CARGO_PKG_VERSION"), commit());
        if let Some(commit) = commit.filter(|commit| !commit.ends_with("-modified")) {
            return Ok(format!("{version} {commit}"));
        }
        let executable = std::env::current_exe().and_then(std::fs::read)?;
        Ok(format!("{version} {} {:x?}", commit.unwrap_or("no commit"), Sha256::digest(executable)))
    });
    match &*PROGRAM {
        Ok(program) => Ok(program),
        Err(error) => Err(Error::io(
            "nmem",
            "read its own executable, which is part of the identity of runs",
        )(error.kind().into())),
    }
}

/// Returns the first digits of the SHA-256 of a value's JSON.
fn hash(of: &impl Serialize) -> String {
    let json = serde_json::to_vec(of).expect("text and numbers can be serialized");
    let first =
        Sha256::digest(json)[..DIGITS / 2].iter().fold(0_u64, |all, &byte| all << 8 | u64::from(byte));
    format!("{first:0DIGITS$x}")
}

/// Formats an error with its causes on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ").replace('\n', " ")
}

/// Content of plans/HASH.json: the runs that a sweep asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanFile {
    /// Names of the parameters, those that may vary first.
    pub keys: Vec<String>,
    /// Runs, in order.
    pub runs: Vec<PlanEntry>,
}

/// A run of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanEntry {
    /// Start of the identity.
    pub run: String,
    /// Parameters by name.
    pub parameters: Parameters,
    /// See [`PlannedRun::resolved`].
    pub resolved: Parameters,
}

impl PlanFile {
    /// Returns the hash that names the plan.
    pub fn hash(&self) -> String {
        hash(self)
    }

    /// Reads a plan.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(Error::io(path, "read"))?;
        serde_json::from_slice(&text)
            .map_err(|error| Error::file(path, "the plan of a sweep", error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another version or an edit of the program makes other runs.
    #[test]
    fn the_program_is_part_of_the_identity() {
        let text = program().unwrap();
        let (version, source) = text.split_once(' ').unwrap();
        assert_eq!(version, env!("CARGO_PKG_VERSION"));
        let committed = commit().is_some_and(|commit| !commit.ends_with("-modified"));
        // The commit alone, or with the hash of the executable: 32 bytes between brackets.
        assert_eq!(source.contains('['), !committed, "{text}");
    }
}
