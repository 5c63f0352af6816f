//! The folder of a sweep, and what is made from the records in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::plan::{PlanEntry, PlanFile};
use super::record::{Record, read_all};
use super::slurm::{ARRAY_SCRIPT, COLLECT_SCRIPT, LOGS};
use super::tables;
use crate::error::{Error, Result};
use crate::run::Keep;

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
}

/// All that sweeps write into their folder.
const FILES: [&str; 6] =
    ["results.csv", "retention.csv", "summary.csv", "joblog.tsv", ARRAY_SCRIPT, COLLECT_SCRIPT];
const FOLDERS: [&str; 5] = ["records", "runs", "plots", LOGS, "plans"];

impl Folder {
    /// A folder that is there already must be a sweep's, or empty.
    pub fn check(path: &Path) -> Result<Self> {
        let refuse = |got: String| {
            Err(Error::setting("--out", "the folder of a sweep, or one that does not exist yet", got))
        };
        match fs::read_dir(path) {
            Ok(mut entries) => {
                if entries.next().is_some() && !path.join("plans").is_dir() {
                    return refuse(format!("{}, which holds something else", path.display()));
                }
                Ok(Self(path.to_path_buf()))
            }
            Err(_) if fs::symlink_metadata(path).is_ok() => {
                refuse(format!("{}, which is none that can be read", path.display()))
            }
            _ => Ok(Self(path.to_path_buf())),
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
    pub fn exists(&self) -> bool {
        self.0.join("plans").is_dir()
    }

    /// Removes all that sweeps have written there, and nothing else.
    pub fn clear(&self) -> Result<()> {
        let gone = |path: &Path, removed: std::io::Result<()>| match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(path, "remove (--force)")(error))
            }
            _ => Ok(()),
        };
        for path in FILES.map(|name| self.0.join(name)) {
            gone(&path, fs::remove_file(&path))?;
        }
        // plans/ last: a folder without is no longer known as a sweep's.
        for path in FOLDERS.map(|name| self.0.join(name)) {
            gone(&path, fs::remove_dir_all(&path))?;
        }
        Ok(())
    }

    /// Makes the folder where it does not exist yet and puts the plan down in it, as its newest.
    pub fn start(&self, plan: &PlanFile) -> Result<()> {
        for folder in ["plans", "records", "runs"].map(|name| self.0.join(name)) {
            fs::create_dir_all(&folder).map_err(Error::io(&folder, "make the folder (--out)"))?;
        }
        let mut json = serde_json::to_vec_pretty(plan).expect("text");
        json.push(b'\n');
        write_whole(&self.plan_path(&plan.hash()), &json)
    }

    fn plan_path(&self, hash: &str) -> PathBuf {
        self.0.join("plans").join(format!("{hash}.json"))
    }

    /// Runs that are known to have finished, by identity.
    pub fn records(&self) -> Result<BTreeMap<String, Record>> {
        if self.exists() { read_all(&self.0.join("records")) } else { Ok(BTreeMap::new()) }
    }

    /// Whether a run need not be run again: it has finished, and what shall be kept of it is there.
    pub fn is_done(&self, record: Option<&Record>, keep: Keep) -> bool {
        record.is_some_and(|record| {
            record.is_final() && (keep == Keep::None || record.keep >= keep && self.run(&record.run).is_dir())
        })
    }

    /// The plan that was started last.
    fn newest_plan(&self) -> Result<PathBuf> {
        let folder = self.0.join("plans");
        let mut newest: Option<(SystemTime, PathBuf)> = None;
        for entry in fs::read_dir(&folder).map_err(Error::io(&folder, "read"))? {
            let entry = entry.map_err(Error::io(&folder, "read"))?;
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let at = entry.metadata().and_then(|metadata| metadata.modified());
                newest = newest.max(Some((at.map_err(Error::io(&path, "read"))?, path)));
            }
        }
        newest.map(|(_, path)| path).ok_or_else(|| Error::file(folder, "the plan of a sweep", "none"))
    }
}

/// Makes results.csv, summary.csv, joblog.tsv and, where runs have it, retention.csv of the runs recorded in a sweep's folder: those of the plan in its
/// order, then what else finished there, by identity. `plan` names one by its hash; without, it is the newest.
///
/// A run with the settings of another one, and files of the same names, gives way to it, as an input or the program has
/// changed since: to the plan's, or to the later.
pub fn collect(folder: &Path, plan: Option<&str>) -> Result<Collected> {
    let folder = Folder::check(folder)?;
    if !folder.exists() {
        return Err(Error::file(folder.path(), "the folder of a sweep", "none (it has no plans/)"));
    }
    let path = match plan {
        Some(hash) => folder.plan_path(hash),
        None => folder.newest_plan()?,
    };
    let plan = PlanFile::read(&path)?;
    let mut records = folder.records()?;
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
    let write = |name: &str, bytes: Vec<u8>| write_whole(&folder.path().join(name), &bytes);
    write("results.csv", tables::results(&columns, &rows))?;
    write("summary.csv", tables::summary(&columns, &rows))?;
    tables::retention(&columns, &rows).map_or(Ok(()), |table| write("retention.csv", table))?;
    write("joblog.tsv", tables::joblog(&plan, &rows))?;
    Ok(Collected { rows, missing, planned: plan.runs.len() })
}

/// The file is there whole, or as it was before.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any file: the process's umask decides.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.prefix(".").tempfile_in(parent).map_err(Error::io(parent, "write in"))?;
    file.write_all(bytes).map_err(Error::io(path, "write"))?;
    file.persist(path).map_err(|error| Error::io(path, "write")(error.error))?;
    Ok(())
}
