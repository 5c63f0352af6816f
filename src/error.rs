//! The library's error type. Each message is one line: the file or setting, the problem and, if it helps, the fix.
//! Causes are chained, so print errors with `{:#}` through `anyhow`.

use std::io;
use std::path::{Path, PathBuf};

use crate::memory::limits::OutOfRange;

/// Result of the library's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Reasons in an input, a setting, the file system or the user's wishes that keep a run from its result.
///
/// A run that diverges is a result, not an error: see [`crate::engine::Divergence`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation failed in the operating system.
    #[error("{}: cannot {action}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The attempted operation: "open", "write" …
        action: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A file does not have the expected content.
    #[error("{}: expected {expected}, got {got}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The expected value.
        expected: String,
        /// The value found.
        got: String,
    },
    /// A tensor of a weights file is absent or has the wrong shape or type.
    #[error("{}: {tensor}: expected {expected}, got {got}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The expected value.
        expected: String,
        /// The value found.
        got: String,
    },
    /// An input contains NaN or infinity.
    #[error("{}: expected finite numbers, got {value} at {place} (--allow-nonfinite lets it through)", path.display())]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The value found.
        value: f64,
        /// The place: "sequence 0, token 17, coordinate 3" or "tensor `memory_model.weights.0`, element [2, 5]".
        place: String,
    },
    /// A setting has an invalid value. `setting` names the flag or key.
    #[error("{setting}: expected {expected}, got {got}")]
    Setting {
        /// The flag or key.
        setting: String,
        /// The expected value.
        expected: String,
        /// The value given.
        got: String,
    },
    /// A flag, key or file is rejected for a reason given in words.
    #[error("{subject}: {reason}")]
    Rejected {
        /// The flag, key or file.
        subject: String,
        /// The problem, then the fix.
        reason: String,
    },
    /// A number is outside its limits.
    #[error("{name} {outside}")]
    Limit {
        /// The flag or key, after the name of its file if it comes from one: "--decay", "m.safetensors: decay".
        name: String,
        /// The value and its limits.
        outside: OutOfRange,
    },
    /// No GPU can be used, or a GPU failed. The text gives the reason and the fix.
    #[error("cuda: {0}")]
    Cuda(String),
    /// The user pressed Ctrl-C, or a termination signal arrived.
    #[error("interrupted")]
    Interrupted,
    /// A signal ended a run that had saved its state.
    #[error("interrupted after {done} of {all} {unit}; {} keeps them, and the same command resumes there", checkpoint.display())]
    Preempted {
        /// Directory with the state.
        checkpoint: PathBuf,
        /// Tokens or steps that the state holds.
        done: usize,
        /// Tokens or steps of the run.
        all: usize,
        /// Unit of the two counts.
        unit: &'static str,
    },
}

impl Error {
    /// Attaches a path and an action to an I/O error; for `map_err`.
    pub fn io(path: impl AsRef<Path>, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, action, source }
    }

    /// Creates an error for a file with unexpected content.
    pub fn file(path: impl AsRef<Path>, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_path_buf(), expected: expected.into(), got: got.into() }
    }

    /// Creates an error for a rejected flag, key or file.
    pub fn rejected(subject: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Rejected { subject: subject.into(), reason: reason.into() }
    }

    /// Names the number that is outside its limits; for `map_err`.
    pub fn limit(name: impl Into<String>) -> impl FnOnce(OutOfRange) -> Self {
        move |outside| Self::Limit { name: name.into(), outside }
    }

    /// Creates an error for a setting with an invalid value.
    pub fn setting(setting: impl Into<String>, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self::Setting { setting: setting.into(), expected: expected.into(), got: got.into() }
    }
}
