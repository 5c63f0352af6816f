//! A file being written.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::fault;
use crate::error::{Error, Result};

/// A file being written. Tests can make each of its operations fail.
///
/// Close it with [`finish`](Self::finish), which reports the errors that a drop would ignore.
#[derive(Debug)]
pub struct OutFile(File);

impl OutFile {
    /// Creates a file, or empties an existing one.
    pub fn create(path: &Path) -> io::Result<Self> {
        fault::reach()?;
        File::create(path).map(Self)
    }

    /// Creates a new file to append to.
    pub fn create_for_append(path: &Path) -> io::Result<Self> {
        fault::reach()?;
        OpenOptions::new().append(true).create_new(true).open(path).map(Self)
    }

    /// Opens an existing pipe or device for writing.
    pub fn open_existing(path: &Path) -> io::Result<Self> {
        fault::reach()?;
        OpenOptions::new().write(true).open(path).map(Self)
    }

    /// Creates an unnamed file in a directory. It disappears when it is closed or the process ends.
    pub fn unnamed_in(directory: &Path) -> io::Result<Self> {
        fault::reach()?;
        // The error's text would name a file that no longer exists.
        tempfile::tempfile_in(directory).map(Self).map_err(|error| error.kind().into())
    }

    pub(super) fn from_file(file: File) -> Self {
        Self(file)
    }

    /// Writes a new file.
    pub fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
        let write = || {
            let mut file = Self::create(path)?;
            file.write_all(bytes)?;
            file.finish()
        };
        write().map_err(Error::io(path, "write"))
    }

    /// Returns the length in bytes.
    pub fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    /// Truncates the file, or extends it with zeros.
    pub fn set_length(&self, bytes: u64) -> io::Result<()> {
        fault::reach()?;
        self.0.set_len(bytes)
    }

    /// Waits until the whole file is on the disk.
    pub fn sync(&self) -> io::Result<()> {
        fault::reach()?;
        self.0.sync_all()
    }

    /// Closes the file. Network file systems may report an exceeded quota only here.
    pub fn finish(self) -> io::Result<()> {
        fault::reach()?;
        close(self.0)
    }
}

#[cfg(unix)]
fn close(file: File) -> io::Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the file gives up ownership of its descriptor here, so nothing else can use it afterwards.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "same signature as on Unix")]
fn close(file: File) -> io::Result<()> {
    drop(file);
    Ok(())
}

impl Write for &OutFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let allowed = fault::reach_write(bytes.len())?;
        (&self.0).write(&bytes[..allowed])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for OutFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for OutFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Seek for OutFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}
