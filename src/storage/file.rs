//! A file being written.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::fault;
use crate::error::{Error, Result};

/// A file being written, every operation of which a test can make fail. Closed by [`finish`](Self::finish), which reports what
/// a drop would swallow.
#[derive(Debug)]
pub struct OutFile(File);

impl OutFile {
    /// Creates a file, or empties an existing one.
    pub fn create(path: &Path) -> io::Result<Self> {
        fault::reach()?;
        File::create(path).map(Self)
    }

    /// Creates a file that does not exist, to append to.
    pub fn create_for_append(path: &Path) -> io::Result<Self> {
        fault::reach()?;
        OpenOptions::new().append(true).create_new(true).open(path).map(Self)
    }

    /// Opens what is there to write into: a pipe or a device.
    pub fn open_existing(path: &Path) -> io::Result<Self> {
        fault::reach()?;
        OpenOptions::new().write(true).open(path).map(Self)
    }

    /// Creates a file without a name in a directory: it goes when it is closed, however the process ends.
    pub fn unnamed_in(directory: &Path) -> io::Result<Self> {
        fault::reach()?;
        // The error's own text would name a file that no longer exists.
        tempfile::tempfile_in(directory).map(Self).map_err(|error| error.kind().into())
    }

    pub(super) fn from_file(file: File) -> Self {
        Self(file)
    }

    /// Writes a file that does not exist yet.
    pub fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
        let write = || {
            let mut file = Self::create(path)?;
            file.write_all(bytes)?;
            file.finish()
        };
        write().map_err(Error::io(path, "write"))
    }

    /// Length in bytes.
    pub fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    /// Cuts the file, or lengthens it by zeros.
    pub fn set_length(&self, bytes: u64) -> io::Result<()> {
        fault::reach()?;
        self.0.set_len(bytes)
    }

    /// Waits until all of it is on the disk.
    pub fn sync(&self) -> io::Result<()> {
        fault::reach()?;
        self.0.sync_all()
    }

    /// Closes the file. Network file systems report only here that a quota was exceeded.
    pub fn finish(self) -> io::Result<()> {
        fault::reach()?;
        close(self.0)
    }
}

#[cfg(unix)]
fn close(file: File) -> io::Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor is this file's own, given up here, so nobody else can use it afterwards.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(not(unix))]
#[expect(clippy::unnecessary_wraps, reason = "as on Unix")]
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
