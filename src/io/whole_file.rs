//! Single files that are complete or absent: written beside their place under a hidden name, then renamed into it.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

use crate::error::{Error, Result};

/// A file in the making. Dropped without [`publish`](Self::publish), it leaves nothing.
#[derive(Debug)]
pub struct WholeFile {
    hidden: TempPath,
    target: PathBuf,
    replace: bool,
}

impl WholeFile {
    /// Prepares the file `target`, named by `flag`. An existing one is refused unless `replace`.
    pub fn open(flag: &str, target: &Path, replace: bool) -> Result<Self> {
        if target.is_dir() || target.file_name().is_none() {
            return Err(Error::setting(flag, "a file", format!("{}, which is none", target.display())));
        }
        refuse_existing(flag, target, replace)?;
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // As any file: the process's umask decides.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        // The error's own text would name the hidden file.
        let hidden =
            builder.prefix(".nmem-").tempfile_in(folder).map_err(|error| io::Error::from(error.kind()));
        let hidden = hidden.map(NamedTempFile::into_temp_path).map_err(Error::io(folder, "write in"))?;
        Ok(Self { hidden, target: target.to_path_buf(), replace })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.hidden
    }

    /// Writes all of it.
    pub fn write(&self, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        let write = || {
            let mut out = BufWriter::new(File::create(&self.hidden)?);
            content(&mut out)?;
            // Network file systems report a full quota only here.
            out.into_inner()?.sync_data()
        };
        write().map_err(Error::io(&self.target, "write"))
    }

    /// Puts the finished file in its place.
    pub fn publish(self, flag: &str) -> Result<()> {
        refuse_existing(flag, &self.target, self.replace)?;
        self.hidden.persist(&self.target).map_err(|error| Error::io(&self.target, "create")(error.error))
    }
}

fn refuse_existing(flag: &str, target: &Path, replace: bool) -> Result<()> {
    if replace || fs::symlink_metadata(target).is_err() {
        return Ok(());
    }
    let expected = "a file that does not exist yet (--force replaces it)";
    Err(Error::setting(flag, expected, target.display().to_string()))
}
