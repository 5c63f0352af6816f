//! The directory of a sweep, and the tables made from its records.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::plan::{PlanEntry, PlanFile, PlannedRun, Ready};
use super::record::{Record, Records, read_all};
use super::results::Results;
use super::row::Parameters;
use super::slurm::{ARRAY_SCRIPT, COLLECT_SCRIPT, LOGS};
use super::state::{RerunIf, RunState};
use super::tables;
use crate::error::{Error, Result};
use crate::plot::is_figure_name;
use crate::run::{Build, Keep, changed_input, read_json};
use crate::storage::{self, is_figure, is_results, is_temporary};

/// Directory of a sweep, which may not exist yet.
#[derive(Clone, Debug)]
pub struct SweepDirectory(PathBuf);

/// Result of collecting a sweep.
#[derive(Debug)]
pub struct Collected {
    /// Runs of results.csv, in its order.
    pub rows: Vec<Record>,
    /// Runs of the plan that have not finished.
    pub missing: Vec<PlanEntry>,
    /// Runs of the plan that have not finished, but of which another version has results with the same settings. Their inputs
    /// may have changed since.
    pub other_version: Vec<(PlanEntry, Record)>,
    /// Number of runs in the plan.
    pub planned: usize,
    /// Messages about records and plans that could not be read. Their runs count as missing.
    pub warnings: Vec<String>,
}

/// Lock on a sweep's directory, held until it is dropped.
#[derive(Debug)]
pub struct DirectoryLock(#[expect(dead_code, reason = "held for its lock")] File);

/// Files that sweeps write into their directory.
const FILES: [&str; 6] =
    ["results.csv", "retention.csv", "summary.csv", "joblog.tsv", ARRAY_SCRIPT, COLLECT_SCRIPT];
/// Directories that sweeps write into theirs.
const DIRECTORIES: [&str; 5] = ["records", "runs", "plots", LOGS, "plans"];
/// Lock file in plans/. Sweeps hold it shared, so that shards can run in parallel, and `--force` holds it exclusively.
const LOCK: &str = ".lock";

impl SweepDirectory {
    /// Checks a directory. An existing one must be a sweep's or empty.
    pub fn check(path: &Path) -> Result<Self> {
        storage::reject_stdout(path)?;
        let reject = |reason: String| Err(Error::rejected("--out", reason));
        let this = Self(storage::without_slash(path));
        match fs::read_dir(path) {
            Ok(_) if this.exists()? => Ok(this),
            Ok(entries) => {
                for entry in entries {
                    let name = entry.map_err(Error::io(path, "read"))?.file_name();
                    if !is_temporary(&name) {
                        return reject(format!(
                            "{} holds {}, which no sweep wrote; choose another directory",
                            path.display(),
                            name.display()
                        ));
                    }
                }
                Ok(this)
            }
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound && storage::kind_of(path)?.is_none() =>
            {
                Ok(this)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
                reject(format!("{} is not a directory", path.display()))
            }
            Err(error) => Err(Error::io(path, "read")(error)),
        }
    }

    /// Locks the directory, creating it if necessary. `alone` takes an exclusive lock. Returns an error instead of waiting if
    /// another sweep uses the directory.
    pub fn lock(&self, alone: bool) -> Result<DirectoryLock> {
        let plans = self.0.join("plans");
        storage::create_directories(&plans)?;
        let path = plans.join(LOCK);
        let locked = storage::lock(&path, alone).map_err(Error::io(&path, "lock"))?;
        locked.map(DirectoryLock).ok_or_else(|| {
            let (flag, does) = if alone { ("--force", "running in") } else { ("--out", "clearing") };
            let out = self.0.display();
            Error::rejected(
                flag,
                format!("another sweep is {does} {out}; wait until it has ended, or stop it"),
            )
        })
    }

    /// Removes stale temporaries that killed processes left in the directory.
    pub fn clear_stale(&self) {
        storage::clear(&self.0, None);
        for directory in DIRECTORIES.map(|name| self.0.join(name)) {
            storage::clear(&directory, None);
        }
    }

    /// Returns the directory's path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the directory of one run's files.
    pub fn run(&self, id: &str) -> PathBuf {
        self.0.join("runs").join(id)
    }

    /// Returns whether a sweep has been started in the directory.
    pub fn exists(&self) -> Result<bool> {
        storage::is_directory(&self.0.join("plans"))
    }

    /// Removes all files that sweeps wrote. Removes nothing if another program's file is among them.
    pub fn clear(&self) -> Result<()> {
        for name in DIRECTORIES {
            let path = self.0.join(name);
            if let Some(foreign) = foreign(name, &path)? {
                let reason = format!(
                    "{} was not written by a sweep; move it away or choose another --out",
                    foreign.display()
                );
                return Err(Error::rejected("--force", reason));
            }
        }
        FILES.iter().try_for_each(|name| storage::remove_file(&self.0.join(name)))?;
        // plans/ goes last, because it identifies the directory as a sweep's.
        DIRECTORIES.iter().try_for_each(|name| storage::remove_directory(&self.0.join(name)))
    }

    /// Creates the directory if necessary, and writes the plan into it as the newest one.
    pub fn start(&self, plan: &PlanFile) -> Result<()> {
        for directory in ["plans", "records", "runs"].map(|name| self.0.join(name)) {
            storage::create_directories(&directory)?;
        }
        let mut json = serde_json::to_vec_pretty(plan).expect("text");
        json.push(b'\n');
        storage::replace(&self.plan_path(&plan.hash()), &json)
    }

    fn plan_path(&self, hash: &str) -> PathBuf {
        self.0.join("plans").join(format!("{hash}.json"))
    }

    /// Returns the records of finished runs, by identity. Records of nmem 0.2 have no version. It is that of run.json, if that
    /// was kept.
    pub fn records(&self) -> Result<Records> {
        if !self.exists()? {
            return Ok(Records::default());
        }
        let mut records = read_all(&self.0.join("records"))?;
        for record in records.runs.values_mut().filter(|record| record.build.version.is_none()) {
            let json = read_json(&self.run(&record.run).join("run.json"))?.unwrap_or_default();
            let text = |key: &str| json[key].as_str().map(str::to_owned);
            record.build = Build { version: text("nmem"), commit: text("commit"), executable: None };
        }
        Ok(records)
    }

    /// Returns the states of runs, in order: whether each has finished with the files to `keep`, and why not.
    pub fn states<'r>(
        &self,
        runs: &[&PlannedRun],
        known: &'r Records,
        keep: Keep,
        rerun_if: Option<RerunIf>,
    ) -> Result<Vec<RunState<'r>>> {
        let current = Build::current()?;
        let mut by_settings: HashMap<&Parameters, &Record> = HashMap::new();
        for record in known.runs.values().filter(|record| record.is_final()) {
            let latest = by_settings.entry(&record.resolved).or_insert(record);
            if record.started > latest.started {
                *latest = record;
            }
        }
        let state = |run: &&PlannedRun| {
            let Some(record) = known.runs.get(&run.id) else {
                return Ok(match (&run.ready, by_settings.get(&run.resolved)) {
                    (Err(reason), _) => RunState::Missing(format!("cannot run: {reason}")),
                    (Ok(_), None) => RunState::Missing("never run".to_owned()),
                    (Ok(ready), Some(record)) => RunState::Stale(record, why_stale(ready, record)),
                });
            };
            if !record.is_final() {
                let reason = record.error.clone().unwrap_or_default();
                return Ok(RunState::Missing(format!("failed: {reason}")));
            }
            if record.keep < keep {
                return Ok(RunState::Missing("has finished, but not all files were kept".to_owned()));
            }
            // run.json is the last file of a run to be written.
            if keep > Keep::None && storage::kind_of(&self.run(&record.run).join("run.json"))?.is_none() {
                return Ok(RunState::Missing("has finished, but its files are gone".to_owned()));
            }
            if rerun_if.is_some_and(|rerun_if| rerun_if.differs(&record.build, current)) {
                return Ok(RunState::Stale(record, format!("computed by {}", record.build)));
            }
            Ok(if record.build == *current {
                RunState::Current(record)
            } else {
                RunState::OtherVersion(record)
            })
        };
        runs.iter().map(state).collect()
    }

    /// Reads the plan that was started last. A plan that cannot be read is reported, and the one before it is used.
    fn newest_plan(&self, warnings: &mut Vec<String>) -> Result<PlanFile> {
        let directory = self.0.join("plans");
        let mut all: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&directory).map_err(Error::io(&directory, "read"))? {
            let entry = entry.map_err(Error::io(&directory, "read"))?;
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let at = entry.metadata().and_then(|metadata| metadata.modified());
                all.push((at.map_err(Error::io(&path, "read"))?, path));
            }
        }
        all.sort();
        for (_, path) in all.into_iter().rev() {
            match PlanFile::read(&path) {
                Ok(plan) => return Ok(plan),
                Err(error @ Error::File { .. }) => warnings.push(format!("{error}; this plan is skipped")),
                Err(error) => return Err(error),
            }
        }
        Err(Error::rejected(directory.display().to_string(), "no plan can be read; start the sweep again"))
    }
}

/// Says why a finished run with the same settings is not the planned one.
fn why_stale(ready: &Ready, record: &Record) -> String {
    let id = &record.run;
    if record.inputs.is_empty() {
        return format!(
            "{} computed {id}, which has another input or ratio, or no files to compare",
            record.build
        );
    }
    match changed_input(&record.inputs, &ready.inputs.hashes()) {
        Some(change) => format!("{change} since {id}"),
        None => format!("a default or --unstable-ratio has changed since {id}"),
    }
}

/// Returns whether a name is that of a figure of results.csv, or of a figure's data.
pub(crate) fn is_figure_of_sweep(name: &OsStr) -> bool {
    let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
    is_figure(name) && is_figure_name(&stem, Results::NAMES)
}

/// Returns the first entry that no sweep writes in a sweep's directory called `name`.
fn foreign(name: &str, directory: &Path) -> Result<Option<PathBuf>> {
    let error = || Error::io(directory, "read");
    match storage::kind_of(directory)? {
        None => return Ok(None),
        Some(kind) if !kind.is_dir() => return Ok(Some(directory.to_path_buf())),
        Some(_) => {}
    }
    for entry in fs::read_dir(directory).map_err(error())? {
        let entry = entry.map_err(error())?;
        let (file, kind) = (entry.file_name(), entry.file_type().map_err(error())?);
        let ends = |ending: &str| Path::new(&file).extension() == Some(OsStr::new(ending));
        let ours = match name {
            _ if is_temporary(&file) => true,
            "runs" => kind.is_dir() && is_results(&entry.path()).map_err(error())?,
            "plans" => kind.is_file() && (ends("json") || file == LOCK),
            "records" => kind.is_file() && ends("jsonl"),
            "plots" => kind.is_file() && is_figure_of_sweep(&file),
            _ => kind.is_file() && ends("log"),
        };
        if !ours {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// Writes the tables of the runs recorded in a sweep's directory: results.csv, summary.csv, joblog.tsv and, if runs have
/// it, retention.csv. The runs of the plan come first in its order, then other finished runs by identity. `plan` is the
/// hash of a plan; `None` is the newest.
///
/// Two runs with the same settings and file names differ if an input has changed in between, or nmem's own defaults. Then the
/// plan's run replaces the other one, or the later run the earlier one. Results of another version stay until the plan's run
/// has finished.
pub fn collect(directory: &Path, plan: Option<&str>) -> Result<Collected> {
    let directory = SweepDirectory::check(directory)?;
    if !directory.exists()? {
        let path = directory.path().display().to_string();
        return Err(Error::rejected(path, "not the directory of a sweep (it has no plans/)"));
    }
    let mut warnings = Vec::new();
    let plan = match plan {
        Some(hash) => PlanFile::read(&directory.plan_path(hash))?,
        None => directory.newest_plan(&mut warnings)?,
    };
    let Records { runs: mut records, unreadable } = directory.records()?;
    warnings.extend(unreadable);
    let (mut rows, mut missing, mut other_version) = (Vec::new(), Vec::new(), Vec::new());
    let mut taken = BTreeSet::new();
    let mut absent = Vec::new();
    for run in &plan.runs {
        match records.remove(&run.run) {
            // The record of another plan may spell a parameter differently, for example a path.
            Some(record) => rows.push(Record { parameters: run.parameters.clone(), ..record }),
            None => absent.push(run),
        }
    }
    let current = Build::current()?;
    let mut of_others: HashMap<&Parameters, &Record> = HashMap::new();
    for record in records.values().filter(|record| record.is_final() && record.build != *current) {
        let latest = of_others.entry(&record.resolved).or_insert(record);
        if record.started > latest.started {
            *latest = record;
        }
    }
    for run in absent {
        match of_others.get(&run.resolved) {
            Some(record) => other_version.push((run.clone(), Record::clone(record))),
            None => missing.push(run.clone()),
        }
    }
    let is_kept = |run: &PlanEntry| other_version.iter().any(|(kept, _)| kept.run == run.run);
    taken.extend(plan.runs.iter().filter(|run| !is_kept(run)).map(|run| run.resolved.clone()));
    let mut others: Vec<Record> = records.into_values().collect();
    others.sort_by(|a, b| b.started.total_cmp(&a.started).then_with(|| a.run.cmp(&b.run)));
    others.retain(|record| taken.insert(record.resolved.clone()));
    others.sort_by(|a, b| a.run.cmp(&b.run));
    for mut record in others {
        // The same text can name different files, in experiments from different directories.
        if rows.iter().any(|row| row.parameters == record.parameters) {
            for (key, text) in &mut record.parameters {
                if let Some(resolved) = record.resolved.get(key) {
                    text.clone_from(resolved);
                }
            }
        }
        rows.push(record);
    }

    let columns = tables::parameter_columns(&plan, &rows);
    let tables = [
        ("results.csv", Some(tables::results(&columns, &rows))),
        ("summary.csv", Some(tables::summary(&columns, &rows))),
        ("retention.csv", tables::retention(&columns, &rows)),
        ("joblog.tsv", Some(tables::joblog(&plan, &rows))),
    ];
    let tables =
        tables.into_iter().filter_map(|(name, table)| Some(Ok((directory.path().join(name), table?))));
    storage::replace_all(tables)?;
    Ok(Collected { rows, missing, other_version, planned: plan.runs.len(), warnings })
}
