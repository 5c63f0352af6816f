//! A whole file as bytes without a copy on the heap. Regular files are mapped; standard input and pipes are
//! spooled to an unnamed temporary file, which is mapped. The SHA-256 is taken in one pass over the bytes.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// A callback that receives the bytes processed since the last call, every few hundred kilobytes. An error
/// stops the work. It serves progress bars and Ctrl-C.
pub type Progress<'a> = &'a mut dyn FnMut(u64) -> Result<()>;

/// Bytes of a piece. It is small enough to stay in the second-level cache between the check of its numbers and
/// the hash, and a multiple of every element's size.
pub(crate) const PIECE: usize = 256 * 1024;

/// Most bytes of a file whose content is compared again after a run even if size and times are unchanged: a
/// rewrite within the clock's resolution would go unnoticed. 16 MiB take about 10 ms.
const CHEAP: usize = 16 << 20;

/// The bytes of a file.
pub(crate) struct Mapped {
    /// Name in messages.
    pub name: PathBuf,
    map: Mmap,
    /// State at the time of mapping, for a file that others can change.
    of_others: Option<Stamp>,
}

/// State of a file, which changes with every write.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    /// Device and inode: another file of the same name differs in them.
    file: (u64, u64),
    bytes: u64,
    modified: Option<SystemTime>,
    /// Seconds and nanoseconds of the last change of the file's contents or metadata.
    changed: (i64, i64),
}

impl Stamp {
    fn from_metadata(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        let (file, changed) = {
            use std::os::unix::fs::MetadataExt;
            ((metadata.dev(), metadata.ino()), (metadata.ctime(), metadata.ctime_nsec()))
        };
        #[cfg(not(unix))]
        let (file, changed) = ((0, 0), (0, 0));
        Self { file, bytes: metadata.len(), modified: metadata.modified().ok(), changed }
    }
}

impl Mapped {
    /// Opens a file, or standard input for `-`. `expected` completes messages: "a .npy file".
    pub fn open(path: &Path, expected: &str, progress: Progress) -> Result<Self> {
        if path == Path::new("-") {
            let name = PathBuf::from("standard input");
            if io::stdin().is_terminal() {
                return Err(Error::file(name, expected, "a terminal (pipe the data in, or pass a file)"));
            }
            return Self::map(spool(&name, io::stdin().lock(), progress)?, name, false);
        }
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let kind = file.metadata().map_err(Error::io(path, "read"))?.file_type();
        if kind.is_dir() {
            let memory = expected.contains("safetensors") && path.join("memory.safetensors").is_file();
            let got = if memory { "a directory (pass the memory.safetensors in it)" } else { "a directory" };
            return Err(Error::file(path, expected, got));
        }
        if is_pipe(kind) {
            return Self::map(spool(path, file, progress)?, path.to_path_buf(), false);
        }
        if !kind.is_file() {
            return Err(Error::file(path, expected, "a device"));
        }
        Self::map(file, path.to_path_buf(), true)
    }

    fn map(file: File, name: PathBuf, of_others: bool) -> Result<Self> {
        let stamp = Stamp::from_metadata(&file.metadata().map_err(Error::io(&name, "read"))?);
        // SAFETY: the file must neither shrink nor be rewritten while it is mapped. A spooled copy has no name,
        // so nobody else can do that. For a named file, `check_unchanged` detects it at the end. Bytes are read
        // as plain numbers, so a rewrite gives wrong values; shrinking ends in SIGBUS, which the program turns
        // into an error.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(&name, "map"))?;
        Ok(Self { name, map, of_others: of_others.then_some(stamp) })
    }

    /// Returns an error if the file has changed since `sha256` was taken of it. Size and times are compared.
    /// The content is compared if these differ or, if `content`, where that is cheap.
    pub fn check_unchanged(&self, sha256: &str, content: bool) -> Result<()> {
        let Some(stamp) = &self.of_others else { return Ok(()) };
        let now = match std::fs::metadata(&self.name) {
            Ok(metadata) => Stamp::from_metadata(&metadata),
            // The mapped file itself is unchanged if its name was removed.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io(&self.name, "read")(error)),
        };
        if now.file != stamp.file {
            return Ok(());
        }
        if now == *stamp && !(content && self.map.len() <= CHEAP) {
            return Ok(());
        }
        let mut hashed = 0..0;
        let release = |next: &[u8]| {
            self.release(hashed.clone());
            hashed = hashed.end..hashed.end + next.len();
        };
        if now.bytes == stamp.bytes && self.sha256(0, &mut |_| Ok(()), release)? == sha256 {
            return Ok(());
        }
        let reason = "the file changed while nmem was reading it; run again once it is complete";
        Err(Error::rejected(self.name.display().to_string(), reason))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Gives back the memory of pages that are not needed again soon. Reading them again takes them from the
    /// file.
    ///
    /// # Panics
    /// If the range goes beyond the file.
    pub fn release(&self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.map.len(), "{range:?} of {}", self.map.len());
        // SAFETY: the pages are within the map, which is shared and never written. Their bytes are those of the
        // file, and the same after the next access as long as nobody changes the file, as in `map`.
        #[cfg(unix)]
        let released = unsafe {
            self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
        };
        #[cfg(not(unix))]
        let (released, _) = (io::Result::Ok(()), range);
        // After an error the pages stay, which costs memory only.
        released.ok();
    }

    /// Returns the SHA-256 of the whole file in hexadecimal, as `sha256sum` prints it. `visit` receives the
    /// bytes from `start` on, [`PIECE`] by piece, just before they are hashed.
    pub fn sha256(&self, start: usize, progress: Progress, mut visit: impl FnMut(&[u8])) -> Result<String> {
        let (head, body) = self.bytes().split_at(start);
        let mut hash = Sha256::new_with_prefix(head);
        progress(head.len() as u64)?;
        for piece in body.chunks(PIECE) {
            visit(piece);
            hash.update(piece);
            progress(piece.len() as u64)?;
        }
        let mut hex = String::with_capacity(64);
        for byte in hash.finalize() {
            hex.extend(
                [byte >> 4, byte & 15].map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])),
            );
        }
        Ok(hex)
    }
}

#[cfg(unix)]
fn is_pipe(kind: std::fs::FileType) -> bool {
    std::os::unix::fs::FileTypeExt::is_fifo(&kind)
}

#[cfg(not(unix))]
fn is_pipe(_: std::fs::FileType) -> bool {
    false
}

/// Copies a stream to an unnamed temporary file, so that memory use stays flat and nothing needs cleaning up.
fn spool(name: &Path, mut from: impl Read, progress: Progress) -> Result<File> {
    let action = "store a temporary copy of a piped input (set TMPDIR to use another directory)";
    let mut file = tempfile::tempfile().map_err(Error::io(std::env::temp_dir(), action))?;
    let mut buffer = vec![0; PIECE];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(file),
            Ok(n) => file.write_all(&buffer[..n]).map_err(Error::io(std::env::temp_dir(), action))?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(name, "read")(error)),
        }
        progress(0)?;
    }
}

/// The guess about a file of unknown type.
pub(crate) const UNRECOGNISED: &str = "unrecognised content";

/// Guesses the type of an unexpected file from its first bytes.
pub(crate) fn guess(bytes: &[u8]) -> &'static str {
    match bytes {
        [] => "an empty file",
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => "a .npy file",
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => {
            "a zip archive, as of numpy.savez and torch.save (use numpy.save)"
        }
        [0x1f, 0x8b, ..] => "a gzip file (unpack it first)",
        [0x89, b'H', b'D', b'F', ..] => "an HDF5 file",
        [0x80, 2..=5, ..] => "a Python pickle",
        _ if is_safetensors(bytes) => "a .safetensors file",
        _ => UNRECOGNISED,
    }
}

/// Returns whether the bytes start with eight bytes of header length and a JSON object.
pub(crate) fn is_safetensors(bytes: &[u8]) -> bool {
    // The format's own limit is 100 MB, so the upper bytes of the length are zero.
    matches!(bytes, [_, _, _, 0..=5, 0, 0, 0, 0, b'{', ..])
}

/// Returns whether the bytes are a zip archive, which begins with a member or, if empty, with the end of its
/// directory.
pub(crate) fn is_zip(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06")
}
