//! All that nmem writes to disk, so that what it promises holds in one place:
//!
//! - an output is there whole, or as it was before, whatever fails or is killed on the way, a power loss included: it is written
//!   under a hidden name beside its target, synced, renamed into place, and the directory synced ([`WholeFile`],
//!   [`replace_all`], [`ResultsDirectory`]);
//! - `--force` replaces what nmem wrote and nothing else, and no symbolic link is followed to it;
//! - what a killed process left behind is removed by a later one, what a living process is writing never is ([`clear`]);
//! - an error of the operating system is never taken for "does not exist" ([`kind_of`]).
//!
//! Every operation passes a point where a test can make it fail or end the process (`fault`).

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
pub(crate) use results::{is_figure, is_results};
pub use temporary::{clear, remove_all};
pub(crate) use temporary::{is_temporary, lock};
pub use whole_file::{WholeFile, replace, replace_all};

/// Kind of the file at `path`, a symbolic link as itself; `None` where nothing is.
pub fn kind_of(path: &Path) -> Result<Option<FileType>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata.file_type())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path, "look at")(error)),
    }
}

/// Whether a directory is at `path`, or where a symbolic link there points.
pub fn is_directory(path: &Path) -> Result<bool> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(path, "look at")(error)),
    }
}

/// Whether anything is at `path`, or where a symbolic link there points.
pub fn exists(path: &Path) -> Result<bool> {
    fs::exists(path).map_err(Error::io(path, "look at"))
}

/// Creates a directory in one that is being written.
pub fn create_directory(path: &Path) -> Result<()> {
    fault::reach().and_then(|()| fs::create_dir(path)).map_err(Error::io(path, "create"))
}

/// Creates a directory and its parents, durable as soon as it exists.
pub fn create_directories(path: &Path) -> Result<()> {
    create_missing(path).map(drop).map_err(Error::io(path, "create"))
}

/// Creates a directory and its parents; returns those that did not exist, innermost first.
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
        // Nothing is left of what failed.
        for directory in &missing {
            let _ = fs::remove_dir(directory);
        }
        return Err(error);
    }
    Ok(missing)
}

/// A path without a slash at its end, which would make the system follow a link there.
pub(crate) fn without_slash(path: &Path) -> std::path::PathBuf {
    path.components().collect()
}

/// The directory that holds `path`.
pub(crate) fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the names in a directory durable. File systems that cannot sync a directory say so, and are left alone.
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

/// Removes a file; nothing there is fine.
pub fn remove_file(path: &Path) -> Result<()> {
    match fault::reach().and_then(|()| fs::remove_file(path)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(path, "remove")(error)),
        _ => Ok(()),
    }
}

/// Removes a directory and all in it, or a symbolic link itself; nothing there is fine.
pub fn remove_directory(path: &Path) -> Result<()> {
    match fault::reach().and_then(|()| fs::remove_dir_all(path)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(path, "remove")(error)),
        _ => Ok(()),
    }
}
