//! Text files that are read once: a pipe delivers its bytes only once, and the hash must be that of the parsed bytes.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::io::mapped::{UNRECOGNISED, guess};

/// Most bytes of a configuration or an experiment. A list of the most values of a sweep takes about one MiB,
/// and the parser needs some fifty times the bytes of the text.
pub const MAX_TOML: usize = 4 << 20;

/// The bytes of a file and their origin.
#[derive(Clone, Debug)]
pub struct TextFile {
    path: PathBuf,
    bytes: Vec<u8>,
    is_stream: bool,
}

impl TextFile {
    /// Reads a file, a pipe or a device to its end. More than `most` bytes are an error.
    pub fn read(path: &Path, most: usize) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "read"))?;
        let is_stream = !file.metadata().map_err(Error::io(path, "read"))?.is_file();
        let mut bytes = Vec::new();
        file.take(most as u64 + 1).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
        if bytes.len() > most {
            return Err(Error::file(path, format!("a text file of at most {most} bytes"), "a longer one"));
        }
        Ok(Self { path: path.to_path_buf(), bytes, is_stream })
    }

    /// Returns the path as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the base directory of relative paths in the file: its own directory or, for a pipe, the working
    /// directory.
    pub fn directory(&self) -> &Path {
        self.path.parent().filter(|_| !self.is_stream).unwrap_or(Path::new(""))
    }

    /// Returns whether the file is a pipe or a device, which cannot be read again.
    pub fn is_stream(&self) -> bool {
        self.is_stream
    }

    /// Returns the contents.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the contents as UTF-8.
    pub fn text(&self) -> Result<&str> {
        std::str::from_utf8(&self.bytes).map_err(|error| {
            let got = match guess(&self.bytes) {
                UNRECOGNISED => format!("other bytes at offset {}", error.valid_up_to()),
                known => known.to_owned(),
            };
            Error::file(&self.path, "a text file in UTF-8", got)
        })
    }

    /// Returns the SHA-256 of the contents in hexadecimal, as `sha256sum` prints it.
    pub fn sha256(&self) -> String {
        use std::fmt::Write as _;
        let mut hex = String::with_capacity(64);
        for byte in Sha256::digest(&self.bytes) {
            let _ = write!(hex, "{byte:02x}");
        }
        hex
    }
}

/// Rejects inputs if two of them are the same pipe, terminal or device under different names (`-`,
/// `/dev/stdin`, `/dev/fd/0`). Reading the first would leave nothing for the second.
pub fn check_streams<'a>(inputs: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let mut seen = HashMap::new();
    for path in inputs {
        let metadata = std::fs::metadata(if path == Path::new("-") { Path::new("/dev/stdin") } else { path });
        let Some(stream) = metadata.ok().and_then(|metadata| stream(&metadata)) else { continue };
        if let Some(other) = seen.insert(stream, path) {
            let reason = format!(
                "this is the same pipe or device as {}, which can be read only once; save it to a file first",
                other.display()
            );
            return Err(Error::rejected(path.display().to_string(), reason));
        }
    }
    Ok(())
}

/// Returns device and inode of a file that delivers its bytes only once; `None` for a regular file.
#[cfg(unix)]
fn stream(metadata: &Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let once = !metadata.is_file() && !metadata.is_dir();
    once.then(|| (metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn stream(_: &Metadata) -> Option<(u64, u64)> {
    None
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{TextFile, check_streams};

    #[test]
    fn the_limit_is_in_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.toml");
        std::fs::write(&path, "abc").unwrap();
        let file = TextFile::read(&path, 3).unwrap();
        assert_eq!(file.text().unwrap(), "abc");
        assert_eq!(file.sha256(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(TextFile::read(&path, 2).is_err());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn endless_files_end_at_the_limit() {
        assert!(TextFile::read(Path::new("/dev/zero"), 1 << 16).is_err());
    }

    #[test]
    #[cfg(unix)]
    fn a_device_under_two_names_is_rejected() {
        let [null, file] = ["/dev/null", "/etc/passwd"].map(Path::new);
        check_streams([null, file, file]).unwrap();
        assert!(check_streams([null, file, null]).is_err());
    }
}
