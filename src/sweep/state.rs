//! The state of a planned run: finished or not, and why.

use super::record::Record;
use crate::run::Build;

/// State of a planned run in a sweep's directory.
#[derive(Clone, Debug)]
pub enum RunState<'a> {
    /// This build of nmem has computed it.
    Current(&'a Record),
    /// Another version or commit has computed it, with the same settings and inputs.
    OtherVersion(&'a Record),
    /// There is a result, but it is repeated, for this reason.
    Stale(&'a Record, String),
    /// There is no result to keep, for this reason.
    Missing(String),
}

impl RunState<'_> {
    /// Returns whether the run need not be executed.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Current(_) | Self::OtherVersion(_))
    }

    /// Returns the name of the state.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Current(_) => "current",
            Self::OtherVersion(_) => "other version",
            Self::Stale(..) => "stale",
            Self::Missing(_) => "missing",
        }
    }

    /// Says why the run is in this state.
    pub fn reason(&self) -> String {
        match self {
            Self::Current(record) | Self::OtherVersion(record) => {
                format!("{} by {}", record.status.name(), record.build)
            }
            Self::Stale(_, reason) | Self::Missing(reason) => reason.clone(),
        }
    }
}

/// Difference between the program and the one that computed a run for which the run is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RerunIf {
    /// Another version.
    Version,
    /// Another version or commit, or uncommitted edits.
    Commit,
}

impl RerunIf {
    pub(super) fn differs(self, before: &Build, now: &Build) -> bool {
        match self {
            Self::Version => before.version != now.version,
            Self::Commit => before != now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_that_repeat_a_run() {
        let build = |version: &str, commit: &str| Build {
            version: Some(version.to_owned()),
            commit: Some(commit.to_owned()),
            executable: None,
        };
        let now = build("1.0.0", "a");
        for (before, by_version, by_commit) in [
            (now.clone(), false, false),
            (build("1.0.0", "b"), false, true),
            (build("0.9.0", "a"), true, true),
        ] {
            assert_eq!(RerunIf::Version.differs(&before, &now), by_version, "{before:?}");
            assert_eq!(RerunIf::Commit.differs(&before, &now), by_commit, "{before:?}");
        }
    }
}
