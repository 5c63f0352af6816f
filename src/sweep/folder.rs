//! The folder of a sweep, and what is made from the records in it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::plan::{PlanEntry, PlanFile};
use super::record::{Record, Records, read_all};
use super::results::Results;
use super::slurm::{ARRAY_SCRIPT, COLLECT_SCRIPT, LOGS};
use super::tables;
use crate::error::{Error, Result};
use crate::run::Keep;
use crate::storage::{self, is_figure, is_results, is_temporary};

/// A folder that holds a sweep, or will.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

/// What a sweep's folder comes to.
#[derive(Debug)]
pub struct Collected {
    /// The runs of results.csv, in its order.
    pub rows: Vec<Record>,
    /// Runs of the plan that have not finished.
    pub missing: Vec<PlanEntry>,
    /// Runs of the plan.
    pub planned: usize,
    /// Messages about what could not be read, and so counts as missing.
    pub warnings: Vec<String>,
}

/// A sweep's directory in use by this process, until this is dropped.
#[derive(Debug)]
pub struct DirectoryLock(#[expect(dead_code, reason = "held for its lock")] File);

/// All that sweeps write into their folder.
const FILES: [&str; 6] =
    ["results.csv", "retention.csv", "summary.csv", "joblog.tsv", ARRAY_SCRIPT, COLLECT_SCRIPT];
const FOLDERS: [&str; 5] = ["records", "runs", "plots", LOGS, "plans"];
/// In plans/, locked while a sweep is in the directory: shared, so that shards can run side by side, but not beside `--force`.
const LOCK: &str = ".lock";

impl Folder {
    /// A folder that is there already must be a sweep's, or empty.
    pub fn check(path: &Path) -> Result<Self> {
        let reject = |got: String| {
            Err(Error::setting("--out", "the folder of a sweep, or one that does not exist yet", got))
        };
        let this = Self(storage::without_slash(path));
        match fs::read_dir(path) {
            Ok(_) if this.exists()? => Ok(this),
            Ok(entries) => {
                for entry in entries {
                    let name = entry.map_err(Error::io(path, "read"))?.file_name();
                    if !is_temporary(&name) {
                        return reject(format!("{}, which holds something else", path.display()));
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
                reject(format!("{}, which is none that can be read", path.display()))
            }
            Err(error) => Err(Error::io(path, "read")(error)),
        }
    }

    /// Marks the directory, which is created if need be, as in use. `alone` waits for nobody: another sweep there is an
    /// error.
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

    /// Removes stale temporaries, which killed processes left in the directory.
    pub fn clear_stale(&self) {
        storage::clear(&self.0, None);
        for folder in FOLDERS.map(|name| self.0.join(name)) {
            storage::clear(&folder, None);
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Files of one run.
    pub fn run(&self, id: &str) -> PathBuf {
        self.0.join("runs").join(id)
    }

    /// Whether a sweep has been started in it.
    pub fn exists(&self) -> Result<bool> {
        storage::is_directory(&self.0.join("plans"))
    }

    /// Removes all that sweeps have written there, and nothing else: where something of others lies among it, nothing is
    /// removed.
    pub fn clear(&self) -> Result<()> {
        for name in FOLDERS {
            let path = self.0.join(name);
            if let Some(foreign) = foreign(name, &path)? {
                let reason = format!(
                    "{} was not written by a sweep; move it away, or choose another --out",
                    foreign.display()
                );
                return Err(Error::rejected("--force", reason));
            }
        }
        FILES.iter().try_for_each(|name| storage::remove_file(&self.0.join(name)))?;
        // plans/ last: a folder without is no longer known as a sweep's.
        FOLDERS.iter().try_for_each(|name| storage::remove_directory(&self.0.join(name)))
    }

    /// Makes the folder where it does not exist yet and puts the plan down in it, as its newest.
    pub fn start(&self, plan: &PlanFile) -> Result<()> {
        for folder in ["plans", "records", "runs"].map(|name| self.0.join(name)) {
            storage::create_directories(&folder)?;
        }
        let mut json = serde_json::to_vec_pretty(plan).expect("text");
        json.push(b'\n');
        storage::replace(&self.plan_path(&plan.hash()), &json)
    }

    fn plan_path(&self, hash: &str) -> PathBuf {
        self.0.join("plans").join(format!("{hash}.json"))
    }

    /// Runs that are known to have finished, by identity.
    pub fn records(&self) -> Result<Records> {
        if self.exists()? { read_all(&self.0.join("records")) } else { Ok(Records::default()) }
    }

    /// Whether a run need not be run again: it has finished, and what shall be kept of it is there.
    pub fn is_done(&self, record: Option<&Record>, keep: Keep) -> Result<bool> {
        match record.filter(|record| record.is_final()) {
            None => Ok(false),
            Some(_) if keep == Keep::None => Ok(true),
            Some(record) if record.keep < keep => Ok(false),
            // The last file to be written.
            Some(record) => Ok(storage::kind_of(&self.run(&record.run).join("run.json"))?.is_some()),
        }
    }

    /// The plan that was started last. One that cannot be read is reported, and the one before it taken.
    fn newest_plan(&self, warnings: &mut Vec<String>) -> Result<PlanFile> {
        let folder = self.0.join("plans");
        let mut all: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&folder).map_err(Error::io(&folder, "read"))? {
            let entry = entry.map_err(Error::io(&folder, "read"))?;
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
        Err(Error::rejected(folder.display().to_string(), "no plan here can be read; start the sweep again"))
    }
}

/// Whether a name is that of a figure of results.csv, or of the data of one.
pub(crate) fn is_figure_of_sweep(name: &OsStr) -> bool {
    let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
    let stem = stem.split_once("-data").map_or(&*stem, |(stem, _)| stem);
    let known = |part: &str| part == "loss_ratio" || part == "retention" || Results::NAMES.contains(&part);
    is_figure(name) && stem.split("_per_").all(|part| known(part) || stem == "tokens_per_s")
}

/// The first thing in a directory of a sweep's, called `name`, that no sweep writes there.
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

/// Makes results.csv, summary.csv, joblog.tsv and, where runs have it, retention.csv of the runs recorded in a sweep's folder: those of the plan in its
/// order, then what else finished there, by identity. `plan` names one by its hash; without, it is the newest.
///
/// A run with the settings of another one, and files of the same names, gives way to it, as an input or the program has
/// changed since: to the plan's, or to the later.
pub fn collect(folder: &Path, plan: Option<&str>) -> Result<Collected> {
    let folder = Folder::check(folder)?;
    if !folder.exists()? {
        return Err(Error::file(folder.path(), "the folder of a sweep", "none (it has no plans/)"));
    }
    let mut warnings = Vec::new();
    let plan = match plan {
        Some(hash) => PlanFile::read(&folder.plan_path(hash))?,
        None => folder.newest_plan(&mut warnings)?,
    };
    let Records { runs: mut records, unreadable } = folder.records()?;
    warnings.extend(unreadable);
    let (mut rows, mut missing) = (Vec::new(), Vec::new());
    let mut taken = BTreeSet::new();
    for run in &plan.runs {
        taken.insert(run.resolved.clone());
        match records.remove(&run.run) {
            // Another plan's record may have been written another way: a path, say.
            Some(record) => rows.push(Record { parameters: run.parameters.clone(), ..record }),
            None => missing.push(run.clone()),
        }
    }
    let mut others: Vec<Record> = records.into_values().collect();
    others.sort_by(|a, b| b.started.total_cmp(&a.started).then_with(|| a.run.cmp(&b.run)));
    others.retain(|record| taken.insert(record.resolved.clone()));
    others.sort_by(|a, b| a.run.cmp(&b.run));
    for mut record in others {
        // Written alike, but of other files: two experiments in different folders.
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
    let tables = tables.into_iter().filter_map(|(name, table)| Some(Ok((folder.path().join(name), table?))));
    storage::replace_all(tables)?;
    Ok(Collected { rows, missing, planned: plan.runs.len(), warnings })
}
