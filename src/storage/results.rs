//! Directories of results. Opened before the work, so that a bad path fails in the first second; written under a hidden name
//! beside the target and renamed into place, so that results are complete or absent.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::temporary::{Temporary, clear};
use super::{create_missing, fault, kind_of, parent_of, sync_directory, without_slash};
use crate::error::{Error, Result};

/// Files that a run or a benchmark writes at the top of its directory, besides figures.
const FILES: [&str; 7] = [
    "metrics.csv",
    "retention.csv",
    "retrieved.npy",
    "memory.safetensors",
    "run.json",
    "scan_bench.csv",
    "machine.json",
];
/// One of these is in every such directory.
const MARKERS: [&str; 2] = ["run.json", "machine.json"];
/// Directory of figures.
const PLOTS: &str = "plots";
/// Names of the figures of runs and benchmarks.
const FIGURES: [&str; 11] = [
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
];
/// Endings of figures and of their data.
const ENDINGS: [&str; 5] = ["svg", "pdf", "png", "tex", "csv"];

/// A directory of results in the making. Dropped without [`publish`](Self::publish), it leaves nothing.
#[derive(Debug)]
pub struct ResultsDirectory {
    /// For messages.
    typed: PathBuf,
    target: PathBuf,
    replace: bool,
    hidden: Temporary,
    /// After `hidden`: fields are dropped in order.
    made: CreatedParents,
}

/// Directories that were made to hold the target. Those still empty go again: nothing is left of a run that failed.
#[derive(Debug)]
struct CreatedParents(Vec<PathBuf>);

impl Drop for CreatedParents {
    fn drop(&mut self) {
        for directory in &self.0 {
            // Fails where it holds something: results, or another run's.
            let _ = fs::remove_dir(directory);
        }
    }
}

impl ResultsDirectory {
    /// Prepares the directory `typed`, clearing stale temporaries of killed runs beside it. An existing target is rejected
    /// unless `replace` and all that is in it was written by nmem.
    pub fn open(typed: &Path, replace: bool) -> Result<Self> {
        Self::prepare(typed, replace, |parent, name| clear(parent, Some(name)))
    }

    /// Prepares one of many directories in one that has been cleared of stale temporaries.
    pub fn open_among(typed: &Path, replace: bool) -> Result<Self> {
        Self::prepare(typed, replace, |_, _| ())
    }

    fn prepare(typed: &Path, replace: bool, clear: impl FnOnce(&Path, &OsStr)) -> Result<Self> {
        // "." and ".." end in no name.
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

    /// Hidden directory to write in.
    pub fn path(&self) -> &Path {
        self.hidden.path()
    }

    /// Directory that it will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// An error of writing here, with the path that the user knows: the hidden one is gone when it is read.
    pub fn explain(&self, error: Error) -> Error {
        match error {
            Error::Io { path, action, source } => {
                let shown = path.strip_prefix(self.path()).map(|inside| self.typed.join(inside));
                Error::Io { path: shown.unwrap_or(path), action, source }
            }
            error => error,
        }
    }

    /// Puts the finished directory in its place, all of it on the disk.
    pub fn publish(self) -> Result<()> {
        publish_all(vec![self]).pop().unwrap_or(Ok(()))
    }

    /// Swaps or renames; what is dropped afterwards is the old directory, if any.
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

/// Puts finished directories in their places: all of them on the disk first, then renamed, then the renames on the disk. One
/// result each, in order.
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
    // What they replaced goes last, once the new ones cannot be lost.
    placed.into_iter().map(|placed| placed.map(drop).and_then(|()| shared(failed.as_ref()))).collect()
}

/// The first of several directories that cannot be synced.
fn first_failure(
    directories: BTreeSet<PathBuf>,
    sync: impl Fn(&Path) -> io::Result<()>,
) -> Option<(PathBuf, io::Error)> {
    directories.into_iter().find_map(|directory| sync(&directory).err().map(|error| (directory, error)))
}

/// Outcome of a sync that several outputs share.
fn shared(failed: Option<&(PathBuf, io::Error)>) -> Result<()> {
    failed.map_or(Ok(()), |(path, error)| Err(Error::io(path, "sync")(error.kind().into())))
}

/// Most directories that are synced file by file: for more, one sync of the whole file system costs less, and more runs end
/// meanwhile that go with the next one. Measured on a busy ext4: 1.1 ms a file, of which a run has four with its directories, and
/// 7 ms the file system.
#[cfg(target_os = "linux")]
const MAX_SYNCED_SINGLY: usize = 2;

/// Waits until directories and all in them are on the disk.
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

/// Whether there is something to replace; rejects what must not be.
fn check_target(target: &Path, typed: &Path, replace: bool) -> Result<bool> {
    let display = typed.display();
    let reject = |reason: String| Err(Error::rejected("--out", reason));
    let Some(kind) = kind_of(target)? else { return Ok(false) };
    if kind.is_symlink() {
        return reject(format!(
            "{display} is a symbolic link, which is not followed; name the directory itself"
        ));
    }
    if !kind.is_dir() {
        return reject(format!("{display} is not a directory; choose another name"));
    }
    if !replace {
        let expected = "a folder that does not exist yet (--force replaces it whole)";
        return Err(Error::setting("--out", expected, format!("{display}")));
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
            "{display} holds {}, which nmem did not write; move it away, or choose another directory",
            name.display()
        )),
    }
}

/// Whether a directory holds what nmem wrote and nothing else.
pub(crate) fn is_results(directory: &Path) -> io::Result<bool> {
    Ok(foreign(directory)?.is_none())
}

/// The first thing in a directory of results that nmem did not write there, by its path inside.
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

/// Whether a name is that of a figure, or of the data of one, of a run or benchmark.
fn is_known_figure(name: &OsStr) -> bool {
    let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
    let stem = stem.split_once("-data").map_or(&*stem, |(stem, _)| stem);
    is_figure(name) && FIGURES.contains(&stem)
}

/// Whether a name has the ending of a figure or of the data of one.
pub(crate) fn is_figure(name: &OsStr) -> bool {
    Path::new(name).extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known))
}

/// Name of a directory for a moment where two cannot be swapped at once.
fn set_aside(target: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(".nmem-old");
    target.with_file_name(name)
}

/// Puts a directory back that a run was killed in replacing, or removes one that it had replaced already.
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

/// Swaps two directories, at once where the system can.
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
    // Killed here, the old directory is restored by the next run: see `restore`.
    fs::rename(a, b).or_else(|error| fs::rename(&aside, b).and(Err(error)))?;
    fault::reach()?;
    match fs::rename(&aside, a) {
        // Another run has removed it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed,
    }
}
