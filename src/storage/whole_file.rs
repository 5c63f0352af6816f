//! Single files that are complete or unchanged: written beside their target under a hidden name, synced, then renamed into
//! place.

use std::collections::BTreeSet;
use std::fs::{self, FileType};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::temporary::{Temporary, clear};
use super::{OutFile, fault, kind_of, parent_of, sync_directory, without_slash};
use crate::error::{Error, Result};

/// A file that is being written. It leaves nothing behind if it is dropped without [`publish`](Self::publish).
#[derive(Debug)]
pub struct WholeFile {
    target: PathBuf,
    replace: bool,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Aside(Temporary, Option<OutFile>),
    /// Written directly into a pipe or a device, which is not replaced.
    Direct,
}

/// State of the path that a file is written to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Free,
    /// A file exists.
    Taken,
    PipeOrDevice,
}

impl WholeFile {
    /// Prepares the file `target`, named by `flag`. Writes into a pipe or a character device. Rejects an existing file unless
    /// `replace` is set, and anything else.
    pub fn open(flag: &str, target: &Path, replace: bool) -> Result<Self> {
        let target = without_slash(target);
        let place = place_of(flag, &target)?;
        if place == Place::PipeOrDevice {
            return Ok(Self { target, replace, way: Way::Direct });
        }
        reject_taken(flag, &target, place, replace)?;
        clear(parent_of(&target), target.file_name());
        let directory = parent_of(&target);
        let (temporary, file) = Temporary::file(&target).map_err(Error::io(directory, "write in"))?;
        Ok(Self { target, replace, way: Way::Aside(temporary, Some(file)) })
    }

    /// Returns whether both will be the same file, even if their paths are spelled differently.
    pub fn is_same_as(&self, other: &Self) -> bool {
        let place = |file: &Self| {
            let directory = fs::canonicalize(parent_of(&file.target));
            directory.ok().zip(file.target.file_name().map(ToOwned::to_owned))
        };
        self.target == other.target || place(self).is_some_and(|own| Some(own) == place(other))
    }

    /// Writes the whole content and waits until it is on the disk.
    pub fn write(&mut self, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        let write = || {
            let file = match &mut self.way {
                Way::Aside(_, file) => {
                    file.take().ok_or_else(|| io::Error::other("it was written already"))?
                }
                Way::Direct => OutFile::open_existing(&self.target)?,
            };
            let mut out = BufWriter::new(file);
            content(&mut out)?;
            let file = out.into_inner()?;
            if matches!(self.way, Way::Aside(..)) {
                file.sync()?;
            }
            file.finish()
        };
        write().map_err(Error::io(&self.target, "write"))
    }

    /// Moves the finished file into place.
    pub fn publish(self, flag: &str) -> Result<()> {
        let Way::Aside(temporary, _) = self.way else { return Ok(()) };
        let place = place_of(flag, &self.target)?;
        if place == Place::PipeOrDevice {
            let reason =
                format!("{} has become a pipe or device; run again to write into it", self.target.display());
            return Err(Error::rejected(flag, reason));
        }
        reject_taken(flag, &self.target, place, self.replace)?;
        rename(temporary, &self.target, self.replace).map_err(Error::io(&self.target, "create"))?;
        sync_directory(parent_of(&self.target)).map_err(Error::io(&self.target, "sync"))
    }
}

/// Renames a temporary to its target. Without `replace` this fails if the target exists, even if it has just been created.
fn rename(mut temporary: Temporary, target: &Path, replace: bool) -> io::Result<()> {
    fault::reach()?;
    #[cfg(target_os = "linux")]
    if !replace {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, temporary.path(), CWD, target, RenameFlags::NOREPLACE) {
            // Some file systems do not support the flag.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {}
            renamed => {
                renamed?;
                temporary.renamed();
                return Ok(());
            }
        }
    }
    let _ = replace;
    fs::rename(temporary.path(), target)?;
    temporary.renamed();
    Ok(())
}

fn reject_taken(flag: &str, target: &Path, place: Place, replace: bool) -> Result<()> {
    if replace || place != Place::Taken {
        return Ok(());
    }
    let reason =
        format!("{} already exists; use --force to replace it, or choose another name", target.display());
    Err(Error::rejected(flag, reason))
}

fn place_of(flag: &str, target: &Path) -> Result<Place> {
    let reject = |reason: &str| Err(Error::rejected(flag, format!("{} is {reason}", target.display())));
    if target.file_name().is_none() {
        return reject("a directory; name a file in it");
    }
    let Some(kind) = kind_of(target)? else { return Ok(Place::Free) };
    if !kind.is_symlink() {
        return match kind {
            kind if kind.is_file() => Ok(Place::Taken),
            kind if kind.is_dir() => reject("a directory; name a file in it"),
            kind if is_pipe_or_device(kind) => Ok(Place::PipeOrDevice),
            _ => reject("neither a file nor a pipe; choose another name"),
        };
    }
    // /dev/stdout is a symbolic link to a pipe or device.
    match fs::metadata(target) {
        Ok(metadata) if is_pipe_or_device(metadata.file_type()) => Ok(Place::PipeOrDevice),
        _ => reject("a symbolic link, which nmem does not follow; name the file itself"),
    }
}

#[cfg(unix)]
fn is_pipe_or_device(kind: FileType) -> bool {
    use std::os::unix::fs::FileTypeExt;
    kind.is_fifo() || kind.is_char_device()
}

#[cfg(not(unix))]
fn is_pipe_or_device(_: FileType) -> bool {
    false
}

/// Writes a whole file, replacing an existing one.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_all([Ok((path.to_path_buf(), bytes.to_vec()))]).map(drop)
}

/// Writes whole files, replacing existing ones, and returns their paths. All files are on the disk before the first is
/// renamed, so that a full disk leaves the old ones.
pub fn replace_all(files: impl IntoIterator<Item = Result<(PathBuf, Vec<u8>)>>) -> Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for file in files {
        let (path, bytes) = file?;
        let mut file = WholeFile::open("output", &path, true)?;
        file.write(|out| out.write_all(&bytes))?;
        written.push(file);
    }
    let paths = written.iter().map(|file| file.target.clone()).collect();
    let mut directories = BTreeSet::new();
    for file in written {
        let Way::Aside(temporary, _) = file.way else { continue };
        rename(temporary, &file.target, true).map_err(Error::io(&file.target, "write"))?;
        directories.insert(parent_of(&file.target).to_path_buf());
    }
    directories.iter().try_for_each(|path| sync_directory(path).map_err(Error::io(path, "sync")))?;
    Ok(paths)
}
