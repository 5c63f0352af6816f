//! Result directories. They are opened before the work, so that a bad path fails within the first second. They are written
//! under a hidden name beside the target and renamed into place, so that results are complete or absent.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::temporary::{Temporary, clear};
use super::{create_missing, fault, kind_of, parent_of, sync_directory, without_slash};
use crate::error::{Error, Result};

/// Names of the files, other than figures, that a run or a benchmark writes at the top of its directory.
const FILES: [&str; 15] = [
    "metrics.csv",
    "retention.csv",
    "unstored.csv",
    "recall.csv",
    "spectrum.csv",
    "retrieved.npy",
    "memory.safetensors",
    "run.json",
    "scan_bench.csv",
    "machine.json",
    "checkpoint.json",
    "progress.json",
    "train.csv",
    "head.safetensors",
    "training.safetensors",
];
/// Files that identify a result directory. Every one holds one of them.
const MARKERS: [&str; 3] = ["run.json", "machine.json", "checkpoint.json"];
/// Name of the directory with figures.
const PLOTS: &str = "plots";
/// Names of the figures of runs and benchmarks.
const FIGURES: [&str; 17] = [
    "timeline",
    "surprise",
    "loss_ratio",
    "learning_rate",
    "decay",
    "momentum",
    "heads",
    "gates",
    "retention",
    "time",
    "bandwidth",
    "lags",
    "speedup",
    "topics-loss_ratio",
    "training",
    "recall",
    "spectrum",
];
/// File extensions of figures and of their data.
const ENDINGS: [&str; 5] = ["svg", "pdf", "png", "tex", "csv"];

/// A result directory that is being written. It leaves nothing behind if it is dropped without [`publish`](Self::publish).
#[derive(Debug)]
pub struct ResultsDirectory {
    /// Path as typed, for messages.
    typed: PathBuf,
    target: PathBuf,
    replace: bool,
    hidden: Temporary,
    /// Declared after `hidden`, because fields are dropped in order.
    made: CreatedParents,
}

/// Directories created to hold the target. On drop the empty ones are removed, so that a failed run leaves nothing.
#[derive(Debug)]
struct CreatedParents(Vec<PathBuf>);

impl Drop for CreatedParents {
    fn drop(&mut self) {
        for directory in &self.0 {
            // Fails if the directory holds anything: these results, or another run's.
            let _ = fs::remove_dir(directory);
        }
    }
}

impl ResultsDirectory {
    /// Prepares the directory `typed`, and removes stale temporaries of killed runs beside it. Rejects an existing target
    /// unless `replace` is set and nmem wrote everything in it.
    pub fn open(typed: &Path, replace: bool) -> Result<Self> {
        Self::prepare(typed, replace, |parent, name| clear(parent, Some(name)))
    }

    /// Prepares one of many directories in a parent that is already free of stale temporaries.
    pub fn open_among(typed: &Path, replace: bool) -> Result<Self> {
        Self::prepare(typed, replace, |_, _| ())
    }

    fn prepare(typed: &Path, replace: bool, clear: impl FnOnce(&Path, &OsStr)) -> Result<Self> {
        reject_stdout(typed)?;
        // Paths that end in "." or ".." have no file name.
        let named = |path: &Path| path.file_name().is_some();
        let target = if named(typed) {
            without_slash(typed)
        } else {
            fs::canonicalize(typed).map_err(Error::io(typed, "find"))?
        };
        let (Some(name), parent) = (target.file_name(), parent_of(&target)) else {
            return Err(Error::rejected(
                "--out",
                format!("{} has no name; name a directory", typed.display()),
            ));
        };
        restore(&target)?;
        check_target(&target, typed, replace)?;
        let made = create_missing(parent).map_err(Error::io(parent, "make a directory (--out) there"))?;
        let made = CreatedParents(made);
        clear(parent, name);
        let hidden = Temporary::directory(&target);
        let hidden = hidden.map_err(Error::io(parent, "make a directory (--out) there"))?;
        Ok(Self { typed: typed.to_path_buf(), target, replace, hidden, made })
    }

    /// Returns the hidden directory to write in.
    pub fn path(&self) -> &Path {
        self.hidden.path()
    }

    /// Returns the final directory.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Replaces the hidden path in an error by the path as typed. The hidden one no longer exists when the user reads it.
    pub fn explain(&self, error: Error) -> Error {
        match error {
            Error::Io { path, action, source } => {
                let shown = path.strip_prefix(self.path()).map(|inside| self.typed.join(inside));
                Error::Io { path: shown.unwrap_or(path), action, source }
            }
            error => error,
        }
    }

    /// Syncs the finished directory to disk and moves it into place.
    pub fn publish(self) -> Result<()> {
        publish_all(vec![self]).pop().unwrap_or(Ok(()))
    }

    /// Swaps or renames the directory into place. The returned values remove the old directory, if any, when dropped.
    fn place(mut self) -> Result<(Temporary, CreatedParents)> {
        let exists = check_target(&self.target, &self.typed, self.replace)?;
        fault::reach().map_err(Error::io(&self.target, "create"))?;
        if exists {
            exchange(self.hidden.path(), &self.target).map_err(Error::io(&self.target, "replace"))?;
        } else {
            fs::rename(self.hidden.path(), &self.target).map_err(Error::io(&self.target, "create"))?;
            self.hidden.renamed();
        }
        Ok((self.hidden, self.made))
    }
}

/// Moves finished directories into place: syncs all of them, renames them, then syncs the renames. Returns one result
/// per directory, in order.
pub fn publish_all(directories: Vec<ResultsDirectory>) -> Vec<Result<()>> {
    let synced = sync_trees(&directories);
    let placed: Vec<_> = directories
        .into_iter()
        .zip(synced)
        .map(|(directory, synced)| {
            synced?;
            let parent = parent_of(&directory.target).to_path_buf();
            directory.place().map(|old| (parent, old))
        })
        .collect();
    let parents = placed.iter().flatten().map(|(parent, _)| parent.clone()).collect();
    let failed = first_failure(parents, sync_directory);
    // The replaced directories are removed last, when the new ones can no longer be lost.
    placed.into_iter().map(|placed| placed.map(drop).and_then(|()| shared(failed.as_ref()))).collect()
}

/// Syncs directories and returns the first failure.
fn first_failure(
    directories: BTreeSet<PathBuf>,
    sync: impl Fn(&Path) -> io::Result<()>,
) -> Option<(PathBuf, io::Error)> {
    directories.into_iter().find_map(|directory| sync(&directory).err().map(|error| (directory, error)))
}

/// Returns the outcome of a sync that several outputs share.
fn shared(failed: Option<&(PathBuf, io::Error)>) -> Result<()> {
    failed.map_or(Ok(()), |(path, error)| Err(Error::io(path, "sync")(error.kind().into())))
}

/// Maximum number of directories that are synced file by file. For more, one sync of the whole file system is cheaper, and
/// runs that end meanwhile share the next one. Measured on a busy ext4: 1.1 ms per file, of which a run has four including
/// its directories, and 7 ms per file system.
#[cfg(target_os = "linux")]
const MAX_SYNCED_SINGLY: usize = 2;

/// Waits until directories and their content are on the disk.
fn sync_trees(directories: &[ResultsDirectory]) -> Vec<Result<()>> {
    #[cfg(target_os = "linux")]
    if directories.len() > MAX_SYNCED_SINGLY {
        let parents =
            directories.iter().map(|directory| parent_of(&directory.target).to_path_buf()).collect();
        let sync = |parent: &Path| fault::reach().and_then(|()| Ok(rustix::fs::syncfs(File::open(parent)?)?));
        let failed = first_failure(parents, sync);
        return directories.iter().map(|_| shared(failed.as_ref())).collect();
    }
    directories
        .iter()
        .map(|directory| sync_tree(directory.path()).map_err(Error::io(&directory.target, "sync")))
        .collect()
}

fn sync_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            fault::reach()?;
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_directory(directory)
}

/// Rejects `-`, which means stdout elsewhere. Results are a directory, and one called `-` would surprise.
pub(crate) fn reject_stdout(typed: &Path) -> Result<()> {
    if typed == Path::new("-") {
        let reason = "results are a directory, which stdout cannot be; name one (./- for one of this name)";
        return Err(Error::rejected("--out", reason));
    }
    Ok(())
}

/// Returns whether there is a directory to replace. Rejects a target that must not be replaced.
fn check_target(target: &Path, typed: &Path, replace: bool) -> Result<bool> {
    let display = typed.display();
    let reject = |reason: String| Err(Error::rejected("--out", reason));
    let Some(kind) = kind_of(target)? else { return Ok(false) };
    if kind.is_symlink() {
        return reject(format!(
            "{display} is a symbolic link, which nmem does not follow; name the directory itself"
        ));
    }
    if !kind.is_dir() {
        return reject(format!("{display} is not a directory; choose another name"));
    }
    if !replace {
        return reject(format!(
            "{display} already exists; use --force to replace it, or choose another directory"
        ));
    }
    let whole = fs::canonicalize(target).map_err(Error::io(typed, "look at"))?;
    let inside = |place: io::Result<PathBuf>| place.is_ok_and(|place| place.starts_with(&whole));
    let home = std::env::home_dir().ok_or_else(|| io::ErrorKind::NotFound.into());
    if inside(std::env::current_dir()) || inside(home) {
        return reject(format!("{display} holds the working or home directory; choose another directory"));
    }
    match foreign(target).map_err(Error::io(typed, "read"))? {
        None => Ok(true),
        Some(name) => reject(format!(
            "{display} holds {}, which nmem did not write; move it away or choose another directory",
            name.display()
        )),
    }
}

/// Returns whether nmem wrote everything in a directory.
pub(crate) fn is_results(directory: &Path) -> io::Result<bool> {
    Ok(foreign(directory)?.is_none())
}

/// Returns the relative path of the first entry in a result directory that nmem did not write.
fn foreign(directory: &Path) -> io::Result<Option<PathBuf>> {
    let (mut first, mut marked) = (None, false);
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        first.get_or_insert_with(|| PathBuf::from(&name));
        marked |= MARKERS.iter().any(|marker| name == *marker);
        let is_file = |name: &OsStr| FILES.iter().any(|known| name == *known);
        if kind.is_file() && (is_file(&name) || is_known_figure(&name)) {
            continue;
        }
        if !(kind.is_dir() && name == PLOTS) {
            return Ok(Some(name.into()));
        }
        for figure in fs::read_dir(entry.path())? {
            let figure = figure?;
            if !(figure.file_type()?.is_file() && is_known_figure(&figure.file_name())) {
                return Ok(Some(Path::new(PLOTS).join(figure.file_name())));
            }
        }
    }
    Ok(first.filter(|_| !marked))
}

/// Returns whether a name is that of a run's or benchmark's figure, or of a figure's data.
fn is_known_figure(name: &OsStr) -> bool {
    let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
    let stem = stem.split_once("-data").map_or(&*stem, |(stem, _)| stem);
    is_figure(name) && FIGURES.contains(&stem)
}

/// Returns whether a name has the extension of a figure or of a figure's data.
pub(crate) fn is_figure(name: &OsStr) -> bool {
    Path::new(name).extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known))
}

/// Returns the temporary name of a directory that is being replaced on a system that cannot swap two directories.
fn set_aside(target: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(".nmem-old");
    target.with_file_name(name)
}

/// Restores a directory if a run was killed while replacing it. Removes the old one if it was already replaced.
fn restore(target: &Path) -> Result<()> {
    let (there, aside) = (kind_of(target)?, set_aside(target));
    if kind_of(&aside)?.is_none() {
        return Ok(());
    }
    let done = match there {
        None => fs::rename(&aside, target),
        Some(_) => fs::remove_dir_all(&aside),
    };
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(target, "restore")(error)),
        _ => Ok(()),
    }
}

/// Swaps two directories, atomically if the system can.
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match fault::reach_exchange().unwrap_or_else(|| renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE))
        {
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {}
            done => return Ok(done?),
        }
    }
    let aside = set_aside(b);
    fs::rename(b, &aside)?;
    fault::reach()?;
    // If the process is killed here, the next run restores the old directory: see `restore`.
    fs::rename(a, b).or_else(|error| fs::rename(&aside, b).and(Err(error)))?;
    fault::reach()?;
    match fs::rename(&aside, a) {
        // Another run has already removed it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed,
    }
}
