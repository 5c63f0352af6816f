//! The runs of a sweep with their identities. Two runs have the same identity if and only if they are the same run. The
//! identity is the SHA-256 of the resolved configuration and the content of the inputs. The version of the program is not
//! part of it: records name the version that computed them, and results stay after an upgrade.
//!
//! nmem 0.2 had its version and commit in the identity. [`Plan::adopt`] finds such runs by what their run.json says, and
//! keeps the identity that they have.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::directory::SweepDirectory;
use super::experiment::{Experiment, Kind};
use super::record::{Record, Records};
use super::results::Status;
use super::row::{GridRow, Parameters};
use crate::condition::Condition;
use crate::config::{Command, Config, TrainConfig};
use crate::cuda::DeviceChoice;
use crate::error::{Error, Result};
use crate::metrics::read_metrics;
use crate::run::{
    InputCache, InputFile, Keep, Observer, ResolvedInputs, RunEvent, RunIdentity, RunStatistics, read_json,
};
use crate::train::{TrainEvent, TrainInputs};

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
    /// Condition that stops a run.
    pub stop_when: Option<Condition>,
    /// See [`crate::run::RunStatistics::new`].
    unstable_ratio: f64,
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
    pub inputs: Inputs,
}

/// Inputs of a run.
pub enum Inputs {
    /// Those of a run of the engine.
    Run(Box<ResolvedInputs>),
    /// Those of a training, with its settings.
    Train(Box<(TrainInputs, TrainConfig)>),
}

impl Inputs {
    /// Returns the SHA-256 of each input, by role.
    pub fn hashes(&self) -> BTreeMap<String, String> {
        match self {
            Self::Run(inputs) => inputs.hashes(),
            Self::Train(of) => of.0.hashes(),
        }
    }

    /// Yields the files that were read.
    pub fn files(&self) -> impl Iterator<Item = &InputFile> {
        let (main, others) = match self {
            Self::Run(inputs) => (&**inputs, &[][..]),
            Self::Train(of) => of.0.files(),
        };
        main.files.iter().chain(others)
    }

    /// Returns the number of cells of metrics.csv, if the run ends normally; 0 for a training.
    pub fn metric_cells(&self) -> usize {
        match self {
            Self::Run(inputs) => inputs.metric_cells(),
            Self::Train(_) => 0,
        }
    }
}

impl Ready {
    /// Returns settings and input content. They are not kept, because they take twice the memory of everything else in a row.
    pub fn identity(&self) -> RunIdentity {
        match &self.inputs {
            Inputs::Run(inputs) => RunIdentity::new(self.command, &self.config, inputs),
            Inputs::Train(of) => of.0.identity(&self.config, &of.1),
        }
    }
}

/// Content that is hashed into an identity. A part that a later version adds must be omitted at its default.
#[derive(Serialize)]
struct Identity<'a> {
    command: Command,
    config: BTreeMap<&'a String, &'a serde_json::Value>,
    dtype: crate::real::ElementType,
    threads: Option<usize>,
    /// Device, omitted for the CPU, so that runs keep the identity they had before devices could be chosen.
    #[serde(skip_serializing_if = "DeviceChoice::is_cpu")]
    device: DeviceChoice,
    unstable_ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_when: Option<String>,
    inputs: &'a BTreeMap<String, String>,
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
                Ok(ready) => identity(ready, unstable_ratio, experiment.stop_when()),
                Err(Error::Interrupted) => return Err(Error::Interrupted),
                Err(_) => hash(&row.resolved()),
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
            _ => Ok(Self {
                keys: experiment.keys(),
                runs,
                repeated,
                stop_when: experiment.stop_when().cloned(),
                unstable_ratio,
            }),
        }
    }

    /// Removes the runs whose parameters do not satisfy a condition.
    pub fn select(&mut self, condition: &Condition) {
        self.runs.retain(|run| condition.holds(&|name| run.row.value(name)));
    }

    /// Finds the runs to which nmem 0.2 has given identities in the directory, and keeps these. Their settings, the content of
    /// their inputs and their first unstable chunk must be the same. run.json says so, and metrics.csv.
    pub fn adopt(&mut self, directory: &SweepDirectory, records: &Records) -> Result<()> {
        let mut with_files: HashMap<&Parameters, Vec<&Record>> = HashMap::new();
        for record in records.runs.values() {
            let is_whole = matches!(record.status, Status::Ok | Status::Diverged);
            if is_whole && record.keep > Keep::None && self.stop_when.is_none() {
                with_files.entry(&record.resolved).or_default().push(record);
            }
        }
        for run in &mut self.runs {
            let Ok(ready) = &run.ready else { continue };
            if records.runs.contains_key(&run.id) {
                continue;
            }
            for record in with_files.get(&run.resolved).into_iter().flatten() {
                let files = directory.run(&record.run);
                let Some(json) = read_json(&files.join("run.json"))? else { continue };
                let unstable = first_unstable_chunk(&files, ready, self.unstable_ratio)?;
                if ready.identity().difference(&json, true).is_none()
                    && record.results.first_unstable_chunk == unstable.map(|chunk| chunk as f64)
                {
                    run.id.clone_from(&record.run);
                    break;
                }
            }
        }
        Ok(())
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

/// Returns the first unstable chunk of a finished run by its metrics.csv.
fn first_unstable_chunk(files: &Path, ready: &Ready, ratio: f64) -> Result<Option<usize>> {
    let (mut statistics, mut sequences) = (RunStatistics::new(ratio), 0);
    read_metrics(&files.join("metrics.csv"), ready.config.dtype, &mut |row| {
        sequences = row.sequence + 1;
        statistics.add(&row);
        Ok(())
    })?;
    (0..sequences).for_each(|sequence| statistics.sequence_done(sequence));
    Ok(statistics.first_unstable_chunk())
}

fn prepare(row: &GridRow, kind: Option<Kind>, cache: &InputCache, observe: Observer) -> Result<Ready> {
    let (command, config, train) = row.config(kind)?;
    let inputs = match train {
        None => Inputs::Run(Box::new(ResolvedInputs::open(&config, false, cache, observe)?)),
        Some(train) => {
            let mut loaded = |event| match event {
                TrainEvent::Loaded(bytes) => observe(RunEvent::Loaded(bytes)),
                _ => Ok(()),
            };
            Inputs::Train(Box::new((TrainInputs::open(&config, &train, cache, &mut loaded)?, train)))
        }
    };
    Ok(Ready { command, config, inputs })
}

fn identity(ready: &Ready, unstable_ratio: f64, stop_when: Option<&Condition>) -> String {
    let (Ready { command, config, .. }, identity) = (ready, ready.identity());
    hash(&Identity {
        command: *command,
        config: identity.config().iter().collect(),
        dtype: config.dtype,
        threads: config.threads,
        device: config.device,
        unstable_ratio,
        stop_when: stop_when.map(ToString::to_string),
        inputs: identity.inputs(),
    })
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
