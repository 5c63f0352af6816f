//! Hidden names under which outputs are written before they are renamed into place, and the removal of stale ones.
//!
//! The temporary of a target NAME is called `.NAME.nmem-XXXXXX`. A directory has a lock file `.NAME.nmem-XXXXXX.lock` beside
//! it. A living writer holds a lock (`flock`) on its file, or on its directory's lock file.
//! The system releases the lock with the process. So a temporary that can be locked is stale, left by a killed process.
//!
//! A process that clears stale temporaries may lock a file just before its writer does, and remove it. The writer then finds
//! that its file has no name, and starts again under another one. On file systems without locks nothing is ever cleared.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, TryLockError as TryLock};

use super::file::OutFile;
use super::{fault, parent_of};

/// Text between the target's name and the random letters.
const INFIX: &str = ".nmem-";
const LETTERS: usize = 6;
const LOCK: &str = ".lock";
/// Maximum length of a target name that is used in full. Most file systems limit names to 255 bytes, and a temporary's name
/// is 18 bytes longer than its target's.
const MAX_NAME: usize = 230;
/// Maximum number of attempts at a name. An attempt fails only if another process removes the file before it is locked.
const MAX_ATTEMPTS: usize = 100;

/// Paths of the temporaries of this process.
static ALIVE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A file or directory under a hidden name, removed when this is dropped.
#[derive(Debug)]
pub struct Temporary {
    path: PathBuf,
    /// Lock file of a directory.
    lock_path: Option<PathBuf>,
    /// Lock, held until this is dropped.
    _lock: Option<File>,
    /// Whether something exists, or may exist, at `path`.
    there: bool,
}

impl Temporary {
    /// Creates an empty file beside `target`. Returns it together with a handle to write to it.
    pub fn file(target: &Path) -> io::Result<(Self, OutFile)> {
        let (path, file) = create_locked(target, "")?;
        let clone = file.try_clone()?;
        Ok((Self::new(path, None, clone), OutFile::from_file(file)))
    }

    /// Creates an empty directory beside `target`.
    pub fn directory(target: &Path) -> io::Result<Self> {
        let (lock_path, lock) = create_locked(target, LOCK)?;
        let path = lock_path.with_extension("");
        let this = Self::new(path, Some(lock_path), lock);
        fault::reach()?;
        fs::create_dir(&this.path)?;
        Ok(this)
    }

    fn new(path: PathBuf, lock_path: Option<PathBuf>, lock: File) -> Self {
        let mut alive = ALIVE.lock().unwrap_or_else(PoisonError::into_inner);
        alive.push(path.clone());
        alive.extend(lock_path.clone());
        Self { path, lock_path, _lock: Some(lock), there: true }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Records that the temporary was renamed, so that nothing is left to remove at its hidden name.
    pub fn renamed(&mut self) {
        self.there = false;
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.there {
            remove(&self.path);
        }
        // The lock goes after the directory, which would look stale without it.
        if let Some(lock) = &self.lock_path {
            let _ = fs::remove_file(lock);
        }
        let mut alive = ALIVE.lock().unwrap_or_else(PoisonError::into_inner);
        alive.retain(|path| *path != self.path && Some(path) != self.lock_path.as_ref());
    }
}

/// Removes a file, a directory with its content, or a symbolic link itself. Leaves the rest to a later process if that fails.
fn remove(path: &Path) {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let _ = if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

/// Removes every temporary of this process before an end without destructors. Their holders must not continue.
pub fn remove_all() {
    // The thread that ends the process may itself hold the list. A stale temporary is better than a deadlock.
    let mut alive = match ALIVE.try_lock() {
        Ok(alive) => alive,
        Err(TryLock::Poisoned(alive)) => alive.into_inner(),
        Err(TryLock::WouldBlock) => return,
    };
    for path in alive.drain(..) {
        remove(&path);
    }
}

/// Creates a locked file `.NAME.nmem-XXXXXX` + `ending`.
fn create_locked(target: &Path, ending: &str) -> io::Result<(PathBuf, File)> {
    let directory = parent_of(target);
    let name = target.file_name().unwrap_or_default();
    let mut builder = tempfile::Builder::new();
    let prefix = prefix(name);
    builder.prefix(&prefix).rand_bytes(LETTERS).suffix(ending);
    for _ in 0..MAX_ATTEMPTS {
        fault::reach()?;
        // Created like any file, so that the umask decides who may read it. The error's text would name the hidden file.
        let made = builder.make_in(directory, |path| File::create_new(path));
        let (file, path) = made.map_err(plain)?.into_parts();
        let path = path.keep().map_err(|error| plain(error.error))?;
        match file.lock() {
            Err(error) if has_no_locks(&error) => return Ok((path, file)),
            Err(error) => {
                let _ = fs::remove_file(&path);
                return Err(error);
            }
            Ok(()) => {}
        }
        if has_name(&file, &path) {
            return Ok((path, file));
        }
    }
    Err(io::Error::other("temporary files are removed as soon as they are created"))
}

/// Removes the hidden path from an error.
fn plain(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => error.kind().into(),
    }
}

#[cfg(unix)]
fn has_name(file: &File, _: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    file.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
}

#[cfg(not(unix))]
fn has_name(_: &File, path: &Path) -> bool {
    path.exists()
}

/// Returns ".NAME.nmem-", with a part of NAME if the whole is too long.
fn prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    if name.len() <= MAX_NAME {
        prefix.push(name);
    } else {
        prefix.push(name.to_string_lossy().chars().take(MAX_NAME / 4).collect::<String>());
    }
    prefix.push(INFIX);
    prefix
}

/// Returns whether a name is that of a temporary or of its lock.
pub(crate) fn is_temporary(name: &OsStr) -> bool {
    split(name.as_encoded_bytes()).is_some()
}

/// Returns the part of a temporary's name before its random letters, and whether the name is a lock's.
fn split(name: &[u8]) -> Option<(&[u8], bool)> {
    let (bare, is_lock) = match name.strip_suffix(LOCK.as_bytes()) {
        Some(bare) => (bare, true),
        None => (name, false),
    };
    let (before, letters) = bare.split_at_checked(bare.len().checked_sub(LETTERS)?)?;
    let ours = before.starts_with(b".")
        && before.ends_with(INFIX.as_bytes())
        && letters.iter().all(u8::is_ascii_alphanumeric);
    ours.then_some((before, is_lock))
}

/// Removes stale temporaries, left by killed processes, from a directory. `name` selects those of one output; `None` selects
/// all, for a directory that belongs to nmem. Temporaries that cannot be removed are left to a later process.
pub fn clear(directory: &Path, name: Option<&OsStr>) {
    let wanted = name.map(prefix);
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((before, is_lock)) = split(name.as_encoded_bytes()) else { continue };
        if wanted.as_ref().is_some_and(|wanted| wanted.as_encoded_bytes() != before) {
            continue;
        }
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => {
                let mut lock = path.clone().into_os_string();
                lock.push(LOCK);
                // The state of its lock file in the same directory decides.
                let without_lock =
                    matches!(fs::symlink_metadata(&lock), Err(error) if error.kind() == ErrorKind::NotFound);
                if without_lock {
                    remove(&path);
                }
            }
            Ok(kind) if kind.is_file() => {
                let Ok(file) = File::options().read(true).write(true).open(&path) else { continue };
                if file.try_lock().is_ok() {
                    if is_lock {
                        remove(&path.with_extension(""));
                    }
                    let _ = fs::remove_file(&path);
                }
            }
            _ => {}
        }
    }
}

/// Tries to lock a file shared by several processes, and creates it if necessary. A process with the exclusive lock
/// (`alone`) may remove the file. Returns `None` if another process holds it. File systems without locks count as free.
pub(crate) fn lock(path: &Path, alone: bool) -> io::Result<Option<File>> {
    for _ in 0..MAX_ATTEMPTS {
        fault::reach()?;
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        match if alone { file.try_lock() } else { file.try_lock_shared() } {
            Ok(()) if !has_name(&file, path) => {}
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) if has_no_locks(&error) => return Ok(Some(file)),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::other("it is removed as soon as it is locked"))
}

/// Returns whether a locking error means that the file system has no locks or no lock server.
fn has_no_locks(error: &io::Error) -> bool {
    #[cfg(unix)]
    if error.raw_os_error() == Some(libc::ENOLCK) {
        return true;
    }
    error.kind() == ErrorKind::Unsupported
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn only_stale_temporaries_are_cleared() {
        let parent = tempfile::tempdir().unwrap();
        let at = parent.path();
        let file = Temporary::file(&at.join("a.csv")).unwrap();
        let directory = Temporary::directory(&at.join("a")).unwrap();
        let alive = names(at);
        assert_eq!(alive.len(), 3, "{alive:?}");
        // Leftovers of killed processes: a file, a directory with its lock, a directory without, and a lock alone.
        fs::write(at.join(".a.csv.nmem-AAAAAA"), "half").unwrap();
        fs::create_dir(at.join(".a.nmem-BBBBBB")).unwrap();
        fs::write(at.join(".a.nmem-BBBBBB/metrics.csv"), "half").unwrap();
        fs::write(at.join(".a.nmem-BBBBBB.lock"), "").unwrap();
        fs::create_dir(at.join(".a.nmem-CCCCCC")).unwrap();
        fs::write(at.join(".b.nmem-DDDDDD.lock"), "").unwrap();
        // Files that nmem does not own.
        for name in [".a.nmem-old", ".a.mine", "a.nmem-EEEEEE", ".a.nmem-12345"] {
            fs::write(at.join(name), "").unwrap();
        }
        let before = names(at);
        clear(at, Some(OsStr::new("c")));
        assert_eq!(names(at), before, "nothing of another output");
        clear(at, Some(OsStr::new("a")));
        let left: Vec<_> = names(at).into_iter().filter(|name| !alive.contains(name)).collect();
        let mine = [".a.mine", ".a.nmem-12345", ".a.nmem-old", "a.nmem-EEEEEE"];
        assert_eq!(
            left,
            [&[".a.csv.nmem-AAAAAA"], &mine[..2], &[".a.nmem-old", ".b.nmem-DDDDDD.lock"], &mine[3..]]
                .concat()
        );
        clear(at, None);
        let left: Vec<_> = names(at).into_iter().filter(|name| !alive.contains(name)).collect();
        assert_eq!(left, mine);
        drop((file, directory));
        assert_eq!(names(at), mine);
    }

    #[test]
    fn a_name_taken_away_before_its_lock_is_replaced_by_another() {
        // Writing and clearing at once must not remove a file that is being written.
        let parent = tempfile::tempdir().unwrap();
        let at = parent.path();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    clear(at, None);
                }
            });
            for _ in 0..300 {
                let directory = Temporary::directory(&at.join("a")).unwrap();
                fs::write(directory.path().join("metrics.csv"), "whole").unwrap();
                assert_eq!(fs::read(directory.path().join("metrics.csv")).unwrap(), b"whole");
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(names(at), [""; 0]);
    }

    #[test]
    #[cfg(unix)]
    fn a_file_system_without_locks_is_recognised() {
        for (code, without) in [(libc::ENOLCK, true), (libc::EOPNOTSUPP, true), (libc::EIO, false)] {
            assert_eq!(has_no_locks(&io::Error::from_raw_os_error(code)), without, "{code}");
        }
    }

    /// Two processes may share a lock; the exclusive one excludes both.
    #[test]
    fn shared_and_exclusive_locks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = lock(&path, false).unwrap().unwrap();
        let second = lock(&path, false).unwrap().unwrap();
        assert!(lock(&path, true).unwrap().is_none());
        drop((first, second));
        let alone = lock(&path, true).unwrap().unwrap();
        assert!(lock(&path, false).unwrap().is_none() && lock(&path, true).unwrap().is_none());
        // The holder may remove the file; others then lock a new one.
        fs::remove_file(&path).unwrap();
        assert!(lock(&path, true).unwrap().is_some());
        drop(alone);
    }

    #[test]
    fn remove_all_leaves_no_temporary_of_this_process() {
        // Runs alone in a process of its own, because other tests hold temporaries.
        const SELF: &str = "storage::temporary::tests::remove_all_leaves_no_temporary_of_this_process";
        if std::env::var_os("NMEM_TEST_REMOVE_ALL").is_none() {
            let this = std::env::current_exe().unwrap();
            let mut child = std::process::Command::new(this);
            let status =
                child.args(["--exact", SELF]).env("NMEM_TEST_REMOVE_ALL", "1").output().unwrap().status;
            assert!(status.success());
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let held = (Temporary::file(&at.join("a")).unwrap(), Temporary::directory(&at.join("b")).unwrap());
        fs::write(held.1.path().join("metrics.csv"), "half").unwrap();
        drop(Temporary::file(&at.join("c")).unwrap());
        assert_eq!(ALIVE.lock().unwrap().len(), 3);
        assert_eq!(names(at).len(), 3);
        remove_all();
        assert_eq!(names(at), [""; 0]);
        assert!(ALIVE.lock().unwrap().is_empty());
    }

    #[test]
    fn long_names_have_temporaries() {
        let parent = tempfile::tempdir().unwrap();
        for name in ["x".repeat(255), "é".repeat(127)] {
            Temporary::directory(&parent.path().join(name)).unwrap();
        }
    }

    /// The letters that follow and a lock's ending still fit.
    #[test]
    fn long_names_keep_their_start() {
        let long = "é".repeat(MAX_NAME);
        let start = "é".repeat(MAX_NAME / 4);
        assert_eq!(prefix(OsStr::new(&long)), OsString::from(format!(".{start}{INFIX}")));
        let longest = "x".repeat(MAX_NAME);
        assert_eq!(prefix(OsStr::new(&longest)), OsString::from(format!(".{longest}{INFIX}")));
    }
}
