//! Every write to disk. Keeping them in one place makes these guarantees hold:
//!
//! - An output is complete or unchanged after any failure, kill or power loss. It is written under a hidden name beside
//!   its target, synced and renamed into place. Then the directory is synced ([`WholeFile`], [`replace_all`],
//!   [`ResultsDirectory`]).
//! - `--force` replaces only files that nmem wrote, and follows no symbolic link to them.
//! - A later process removes the files left by a killed process, but never those of a living one ([`clear`]).
//! - An error of the operating system is never mistaken for "does not exist" ([`kind_of`]).
//!
//! Tests can make every operation fail or end the process (`fault`).

mod fault;
mod file;
mod results;
mod temporary;
mod whole_file;

use std::fs::{self, FileType};
use std::io::{self, ErrorKind};
use std::path::Path;

use crate::error::{Error, Result};

pub use file::OutFile;
pub use results::{ResultsDirectory, publish_all};
pub(crate) use results::{is_figure, is_results, reject_stdout};
pub use temporary::{clear, remove_all};
pub(crate) use temporary::{is_temporary, lock};
pub use whole_file::{WholeFile, replace, replace_all};

/// Returns the kind of the file at `path` without following a symbolic link; `None` if it does not exist.
pub fn kind_of(path: &Path) -> Result<Option<FileType>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata.file_type())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path, "look at")(error)),
    }
}

/// Returns whether `path` is a directory, following symbolic links.
pub fn is_directory(path: &Path) -> Result<bool> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(path, "look at")(error)),
    }
}

/// Returns whether `path` exists, following symbolic links.
pub fn exists(path: &Path) -> Result<bool> {
    fs::exists(path).map_err(Error::io(path, "look at"))
}

/// Creates a directory inside a directory that is being written.
pub fn create_directory(path: &Path) -> Result<()> {
    fault::reach().and_then(|()| fs::create_dir(path)).map_err(Error::io(path, "create"))
}

/// Creates a directory and its parents, and syncs them to disk.
pub fn create_directories(path: &Path) -> Result<()> {
    create_missing(path).map(drop).map_err(Error::io(path, "create"))
}

/// Creates a directory and its parents. Returns the ones that did not exist, innermost first.
fn create_missing(path: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    let mut missing = Vec::new();
    for directory in path.ancestors().filter(|directory| !directory.as_os_str().is_empty()) {
        match fs::metadata(directory) {
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::NotFound => missing.push(directory.to_path_buf()),
            Err(error) => return Err(error),
        }
    }
    fault::reach()?;
    fs::create_dir_all(path)?;
    let synced = missing.iter().try_for_each(|directory| sync_directory(parent_of(directory)));
    if let Err(error) = synced {
        // A failed call leaves nothing behind.
        for directory in &missing {
            let _ = fs::remove_dir(directory);
        }
        return Err(error);
    }
    Ok(missing)
}

/// Removes a slash at the end of a path, which would make the system follow a symbolic link.
pub(crate) fn without_slash(path: &Path) -> std::path::PathBuf {
    path.components().collect()
}

/// Returns the directory that holds `path`.
pub(crate) fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the names in a directory durable. Ignores the error of a file system that cannot sync directories.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    fault::reach()?;
    if cfg!(unix) {
        match fs::File::open(path)?.sync_all() {
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {}
            synced => synced?,
        }
    }
    Ok(())
}

/// Moves a file between two directories that are being written.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fault::reach().and_then(|()| fs::rename(from, to)).map_err(Error::io(to, "create"))
}

/// Removes a file, if it exists.
pub fn remove_file(path: &Path) -> Result<()> {
    match fault::reach().and_then(|()| fs::remove_file(path)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(path, "remove")(error)),
        _ => Ok(()),
    }
}

/// Removes a directory with its content, or a symbolic link itself, if it exists.
pub fn remove_directory(path: &Path) -> Result<()> {
    match fault::reach().and_then(|()| fs::remove_dir_all(path)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(path, "remove")(error)),
        _ => Ok(()),
    }
}
