//! The library's one error type. Each message is one line: what, in which file or setting, expected, got, and
//! where it helps how to repair it. Causes are chained, so print with `{:#}` through `anyhow`.

use std::io;
use std::path::{Path, PathBuf};

use crate::memory::limits::OutOfRange;

/// What the library's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that an input, a setting, the file system or the user can do to stop a run before its result.
/// (A run that diverges is a result: see [`crate::engine::Divergence`].)
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: cannot {action}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: "open", "write" …
        action: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: expected {expected}, got {got}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What would have been right.
        expected: String,
        /// What is there.
        got: String,
    },
    /// A tensor of a weights file is absent or has the wrong shape or type.
    #[error("{}: {tensor}: expected {expected}, got {got}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What would have been right.
        expected: String,
        /// What is there.
        got: String,
    },
    /// NaN or infinity in an input.
    #[error("{}: expected finite numbers, got {value} at {place} (--allow-nonfinite lets it through)", path.display())]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The value found.
        value: f64,
        /// Where: "sequence 0, token 17, coordinate 3" or "tensor `memory_model.weights.0`, element [2, 5]".
        place: String,
    },
    /// A setting that cannot be, alone or with the others. `setting` names flag or key.
    #[error("{setting}: expected {expected}, got {got}")]
    Setting {
        /// The flag or key.
        setting: String,
        /// What would have been right.
        expected: String,
        /// What was given.
        got: String,
    },
    /// A flag, key or file that is rejected, in words: what is wrong, then what to do.
    #[error("{subject}: {reason}")]
    Rejected {
        /// The flag, key or file.
        subject: String,
        /// The problem, then the fix.
        reason: String,
    },
    /// A number outside its limits.
    #[error("{name} {outside}")]
    Limit {
        /// The flag or key, after the file where it is in one: "--decay", "m.safetensors: decay".
        name: String,
        /// The value and its limits.
        outside: OutOfRange,
    },
    /// No GPU can be used, or it failed: why, and what to do.
    #[error("cuda: {0}")]
    Cuda(String),
    /// Ctrl-C or a termination signal.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// For `map_err`: attaches path and action to an I/O error.
    pub fn io(path: impl AsRef<Path>, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, action, source }
    }

    /// A file that is not what it should be.
    pub fn file(path: impl AsRef<Path>, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), expected: expected.into(), got: got.into() }
    }

    /// A rejected flag, key or file.
    pub fn rejected(subject: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Rejected { subject: subject.into(), reason: reason.into() }
    }

    /// For `map_err`: names the number that is outside its limits.
    pub fn limit(name: impl Into<String>) -> impl FnOnce(OutOfRange) -> Self {
        move |outside| Self::Limit { name: name.into(), outside }
    }

    /// A setting that cannot be.
    pub fn setting(setting: impl Into<String>, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self::Setting { setting: setting.into(), expected: expected.into(), got: got.into() }
    }
}
