//! Results folders. Opened before the work, so that a bad path fails in the first second; written to a hidden folder
//! beside the target and renamed into place, so that a folder of results is complete or absent.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use crate::error::{Error, Result};

/// Held locked in a hidden folder while its run is alive, and not empty from then on: an unlocked one with content is
/// the remnant of a killed run.
const LOCK: &str = ".lock";

/// How long a hidden folder without such a file may be one that another process is just making.
const GRACE: Duration = Duration::from_mins(1);

/// A folder of results in the making. Dropped without [`publish`](Self::publish), it leaves nothing.
#[derive(Debug)]
pub struct ResultsFolder {
    /// For messages.
    typed: PathBuf,
    target: PathBuf,
    replace: bool,
    hidden: TempDir,
    lock: File,
    /// After `hidden`: fields are dropped in order.
    made: MadeParents,
}

/// Folders that were made to hold the target. Those still empty go again: nothing is left of a run that failed.
#[derive(Debug)]
struct MadeParents(Vec<PathBuf>);

impl MadeParents {
    fn make(parent: &Path) -> io::Result<Self> {
        let absent = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
        let made = Self(parent.ancestors().take_while(absent).map(Path::to_path_buf).collect());
        fs::create_dir_all(parent)?;
        Ok(made)
    }
}

impl Drop for MadeParents {
    fn drop(&mut self) {
        for folder in &self.0 {
            // Refused where it holds something: results, or another run's.
            let _ = fs::remove_dir(folder);
        }
    }
}

impl ResultsFolder {
    /// Prepares the folder `typed`, clearing the remnants of killed runs beside it. An existing target is refused unless
    /// `replace`.
    pub fn open(typed: &Path, replace: bool) -> Result<Self> {
        // A symbolic link stays: what it points to is replaced.
        let target = fs::canonicalize(typed).unwrap_or_else(|_| typed.to_path_buf());
        let (Some(name), Some(parent)) = (target.file_name(), target.parent()) else {
            return Err(Error::setting("--out", "a folder that can be made", target.display().to_string()));
        };
        restore(&target);
        check_target(&target, typed, replace)?;
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let made = MadeParents::make(parent).map_err(Error::io(parent, "make a folder (--out) there"))?;
        let prefix = hidden_prefix(name);
        clear_remnants(parent, &prefix);
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // As any folder: the process's umask decides.
            builder.permissions(fs::Permissions::from_mode(0o777));
        }
        // The error's own text would name the hidden folder.
        let hidden =
            builder.prefix(&prefix).tempdir_in(parent).map_err(|error| io::Error::from(error.kind()));
        let hidden = hidden.map_err(Error::io(parent, "make a folder (--out) there"))?;
        let lock = File::create(hidden.path().join(LOCK)).and_then(|mut lock| {
            lock.lock()?;
            lock.write_all(std::process::id().to_string().as_bytes())?;
            Ok(lock)
        });
        let lock = lock.map_err(Error::io(parent, "write in"))?;
        Ok(Self { typed: typed.to_path_buf(), target, replace, hidden, lock, made })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        self.hidden.path()
    }

    /// Where it will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Puts the finished folder in its place.
    pub fn publish(self) -> Result<()> {
        // Dropped in reverse: `made` last.
        let Self { made: _made, typed, target, replace, hidden, lock } = self;
        check_target(&target, &typed, replace)?;
        fs::remove_file(hidden.path().join(LOCK)).map_err(Error::io(hidden.path(), "finish"))?;
        if replace && target.exists() {
            exchange(hidden.path(), &target).map_err(Error::io(&target, "replace"))?;
            // `hidden` is now the old folder, and goes; where it cannot, the next run tries again.
            let _ = hidden.close();
        } else {
            fs::rename(hidden.path(), &target).map_err(Error::io(&target, "create"))?;
            let _renamed = hidden.keep();
        }
        drop(lock);
        Ok(())
    }
}

/// ".NAME.nmem-", which a random suffix follows.
fn hidden_prefix(name: &std::ffi::OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".nmem-");
    prefix
}

fn check_target(target: &Path, typed: &Path, replace: bool) -> Result<()> {
    let refuse = |expected: &str, got: String| Err(Error::setting("--out", expected, got));
    let display = typed.display();
    match fs::symlink_metadata(target) {
        Err(_) => Ok(()),
        Ok(metadata) if !metadata.is_dir() => refuse("a folder", format!("{display}, which is none")),
        Ok(_) if !replace => {
            refuse("a folder that does not exist yet (--force replaces it whole)", format!("{display}"))
        }
        Ok(_) => {
            let inside = |place: io::Result<PathBuf>| place.is_ok_and(|place| place.starts_with(target));
            let home = std::env::home_dir().ok_or_else(|| io::ErrorKind::NotFound.into());
            if inside(std::env::current_dir()) || inside(home) {
                return refuse(
                    "a folder that may be replaced whole",
                    format!("{display}, which holds the working or home folder"),
                );
            }
            Ok(())
        }
    }
}

/// Removes hidden folders of runs that are no more. What cannot be removed is left to the next.
fn clear_remnants(parent: &Path, prefix: &OsString) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(prefix.as_encoded_bytes()) {
            continue;
        }
        let lock = File::open(entry.path().join(LOCK));
        let lock = lock.ok().filter(|lock| lock.metadata().is_ok_and(|metadata| metadata.len() > 0));
        let dead = if let Some(lock) = lock {
            !matches!(lock.try_lock(), Err(TryLockError::WouldBlock))
        } else {
            let made = entry.metadata().and_then(|metadata| metadata.modified());
            made.is_ok_and(|made| SystemTime::now().duration_since(made).is_ok_and(|age| age > GRACE))
        };
        if dead {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Where a folder lies for a moment where two cannot be swapped at once.
fn set_aside(target: &Path) -> PathBuf {
    let mut aside = target.file_name().map(hidden_prefix).unwrap_or_default();
    aside.push("old");
    target.with_file_name(aside)
}

/// Puts a folder back that a run was killed in replacing.
fn restore(target: &Path) {
    if !target.exists() {
        let _ = fs::rename(set_aside(target), target);
    }
}

/// Swaps two folders, at once where the system can.
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE) {
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {}
            done => return Ok(done?),
        }
    }
    let aside = set_aside(b);
    fs::rename(b, &aside)?;
    // Killed here, the old folder is restored by the next run: see `restore`.
    fs::rename(a, b).or_else(|error| fs::rename(&aside, b).and(Err(error)))?;
    fs::rename(&aside, a)
}
