//! The state of a long store that a signal ends, so that the same command resumes there with the same bits.
//!
//! Tokens are stored in segments of about half a second. Between two of them the memory is whole, and a life in several calls
//! gives the same bits as one call. After SIGTERM the segment in progress is finished, and `OUT.checkpoint` is written:
//! memory.safetensors with the state, metrics.csv with the rows so far, and checkpoint.json with the settings and inputs.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ndarray::{ArrayView2, ArrayViewMut2};
use serde_json::Value;

use super::files::Files;
use super::identity::write_json;
use super::{RunIdentity, commit, read_json};
use crate::engine::{Outcome, Sink};
use crate::error::{Error, Result};
use crate::io::memory_file::MemoryFile;
use crate::memory::State;
use crate::metrics::ChunkMetrics;
use crate::real::Real;
use crate::sequence::{Sequences, Shape};
use crate::storage::{self, ResultsDirectory};

const DESCRIPTION: &str = "checkpoint.json";

/// State of an unfinished run beside its directory `OUT`: `OUT.checkpoint`, with the settings and inputs of the run.
pub(crate) struct SavedState {
    path: PathBuf,
    /// Whether a state from which this run resumes is there.
    exists: bool,
    description: Value,
}

impl SavedState {
    /// Looks for the state of an earlier start of the run `identity` beside its directory `out`.
    ///
    /// # Errors
    /// The state of another run, unless `replace`.
    pub fn open(out: &Path, identity: &RunIdentity, replace: bool) -> Result<Self> {
        let mut name = storage::without_slash(out).into_os_string();
        name.push(".checkpoint");
        let path = PathBuf::from(name);
        let found = read_json(&path.join(DESCRIPTION))?;
        let description = identity.description();
        let difference = found.as_ref().and_then(|found| {
            let build = ["nmem", "commit"].into_iter().find(|key| found[*key] != description[*key]);
            let build = build.map(|key| format!("{key} was {}", found[key]));
            build.or_else(|| identity.difference(found, false))
        });
        match difference {
            Some(difference) if !replace => {
                let reason = format!(
                    "{} holds the state of an interrupted run that differs from this one ({difference}); use --force to start \
                     anew, or choose another directory",
                    path.display()
                );
                Err(Error::rejected("--out", reason))
            }
            difference => Ok(Self { path, exists: found.is_some() && difference.is_none(), description }),
        }
    }

    /// Rejects a place that nmem may not replace, before the work.
    pub fn check_place(&self) -> Result<()> {
        ResultsDirectory::open(&self.path, true).map(drop)
    }

    /// Starts anew, without the state that is there.
    pub fn forget(&mut self) {
        self.exists = false;
    }

    /// Returns the directory of the state.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the directory with the state to resume from.
    pub fn found(&self) -> Option<&Path> {
        self.exists.then_some(&*self.path)
    }

    /// Replaces the state by the files that `write` puts into a directory.
    pub fn save(&self, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let directory = ResultsDirectory::open(&self.path, true)?;
        let all = || {
            write(directory.path())?;
            write_json(&directory.path().join(DESCRIPTION), &self.description)
        };
        all().map_err(|error| directory.explain(error))?;
        directory.publish()
    }

    /// Removes the state once the run's results are in place.
    pub fn remove(&self) -> Result<()> {
        let is_own = storage::kind_of(&self.path.join(DESCRIPTION))?.is_some();
        if is_own { storage::remove_directory(&self.path) } else { Ok(()) }
    }
}

/// Place where a run of the engine saves its state if it is ended early.
pub(super) struct Checkpoint<'a> {
    saved: SavedState,
    preempted: &'a (dyn Fn() -> bool + Sync),
}

impl<'a> Checkpoint<'a> {
    /// Looks for the state of an earlier start: see [`SavedState::open`].
    pub fn open(
        out: &Path,
        identity: &RunIdentity,
        replace: bool,
        preempted: &'a (dyn Fn() -> bool + Sync),
    ) -> Result<Self> {
        Ok(Self { saved: SavedState::open(out, identity, replace)?, preempted })
    }

    /// Returns whether the run should save its state and end.
    pub fn is_preempted(&self) -> bool {
        (self.preempted)()
    }

    /// Returns the directory with the state to resume from.
    pub fn found(&self) -> Option<&Path> {
        self.saved.found()
    }

    /// Reads the state to resume from.
    pub fn state<T: Real>(&self) -> Result<Option<State<T>>> {
        let Some(path) = self.found() else { return Ok(None) };
        MemoryFile::open(&path.join("memory.safetensors"), T::TYPE, true, &mut |_| Ok(()))
            .map(|file| file.state())
    }

    /// Writes the checkpoint. `memory` writes memory.safetensors; metrics.csv is moved from the directory `from`.
    pub fn save(&self, from: &Path, memory: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        self.saved.save(|directory| {
            memory(&directory.join("memory.safetensors"))?;
            storage::rename(&from.join("metrics.csv"), &directory.join("metrics.csv"))
        })?;
        Ok(self.saved.path().to_path_buf())
    }

    /// Removes the checkpoint once the run's results are in place.
    pub fn remove(&self) -> Result<()> {
        self.saved.remove()
    }
}

impl RunIdentity {
    /// Returns the content of checkpoint.json.
    fn description(&self) -> Value {
        let inputs: Vec<_> = self
            .inputs()
            .iter()
            .map(|(role, sha256)| serde_json::json!({ "role": role, "sha256": sha256 }))
            .collect();
        serde_json::json!({
            "nmem": env!("CARGO_PKG_VERSION"),
            "commit": commit(),
            "command": self.command().name(),
            "dtype": self.dtype().to_string(),
            "config": self.config(),
            "inputs": inputs,
        })
    }
}

/// Tokens of the first segment: tens of milliseconds for small memories, seconds for the largest.
const FIRST_TOKENS: usize = 16_384;
/// Time of a segment that the number of tokens is adapted to. A scheduler waits some 30 s after SIGTERM. Beginning a segment
/// costs some copies of the state, which is well below 1 % of this.
const SEGMENT: Duration = Duration::from_millis(500);

/// Number of tokens of the next segment. It affects no bit of the results.
pub(super) struct Pace(usize);

impl Pace {
    pub fn new() -> Self {
        Self(FIRST_TOKENS)
    }

    pub fn tokens(&self) -> usize {
        self.0
    }

    /// Adapts to the time that the last segment took.
    pub fn took(&mut self, time: Duration) {
        if time < SEGMENT / 2 {
            self.0 = self.0.saturating_mul(2);
        } else if time > SEGMENT * 2 {
            self.0 = (self.0 / 2).max(1);
        }
    }
}

/// Some consecutive tokens of each sequence.
pub(super) struct Part<'a, T> {
    pub whole: &'a dyn Sequences<T>,
    pub start: usize,
    pub tokens: usize,
}

impl<T: Real> Sequences<T> for Part<'_, T> {
    fn shape(&self) -> Shape {
        Shape { tokens: self.tokens, ..self.whole.shape() }
    }

    fn read_rows(&self, sequence: usize, start: usize, out: ArrayViewMut2<T>) -> Result<()> {
        self.whole.read_rows(sequence, self.start + start, out)
    }
}

/// Stores the tokens of one sequence from `stored` on in segments, until the run is preempted. `run` stores a segment.
pub(super) fn in_segments<T: Real>(
    sequences: &dyn Sequences<T>,
    stored: usize,
    checkpoint: &Checkpoint,
    state: &mut State<T>,
    files: &mut Files<T>,
    mut run: impl FnMut(&mut State<T>, &Part<'_, T>, &mut Unfinished<'_, '_, T>) -> Result<Outcome>,
) -> Result<Outcome> {
    let (end, mut at, mut pace) = (sequences.shape().tokens, stored, Pace::new());
    let mut whole = Outcome::default();
    loop {
        let part = Part { whole: sequences, start: at, tokens: pace.tokens().min(end - at) };
        at += part.tokens;
        let begin = Instant::now();
        let outcome = run(state, &part, &mut Unfinished(files))?;
        pace.took(begin.elapsed());
        whole.divergence = outcome.divergence;
        whole.rows += outcome.rows;
        whole.computing += outcome.computing;
        whole.input += outcome.input;
        whole.output += outcome.output;
        whole.phases += outcome.phases;
        if at == end || whole.divergence.is_some() {
            files.sequence_done(0)?;
            return Ok(whole);
        }
        if checkpoint.is_preempted() {
            return Ok(whole);
        }
    }
}

/// Passes on the results of a segment, which is not the end of its sequence.
pub(super) struct Unfinished<'f, 'a, T: Real>(&'f mut Files<'a, T>);

impl<T: Real> Sink<T> for Unfinished<'_, '_, T> {
    fn metrics(&mut self, rows: &[ChunkMetrics]) -> Result<()> {
        self.0.metrics(rows)
    }

    fn retrieved(&mut self, sequence: usize, start: usize, rows: ArrayView2<T>) -> Result<()> {
        self.0.retrieved(sequence, start, rows)
    }

    fn sequence_done(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
}
