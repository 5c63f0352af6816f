//! The state of a long store that a signal ends, so that the same command resumes there with the same bits.
//!
//! Tokens are stored in segments of about half a second, group of sequences after group. Between two segments the states are
//! whole, and a life in several calls gives the same bits as one call. After SIGTERM the segment in progress is finished, and
//! `OUT.checkpoint` is written: memory.safetensors with the states, metrics.csv and spectrum.csv with the rows so far,
//! progress.json with the position, and checkpoint.json with the settings and inputs.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ndarray::{ArrayView2, ArrayViewMut2};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::files::Files;
use super::identity::write_json;
use super::{RunIdentity, commit, read_json};
use crate::engine::{Divergence, Memory, Outcome, Sink, budget};
use crate::error::{Error, Result};
use crate::io::memory_file::MemoryFile;
use crate::memory::State;
use crate::metrics::{ChunkMetrics, Spectrum};
use crate::real::Real;
use crate::sequence::{Sequences, Shape};
use crate::storage::{self, ResultsDirectory};

const DESCRIPTION: &str = "checkpoint.json";
const PROGRESS: &str = "progress.json";
const MEMORY: &str = "memory.safetensors";
/// Files of rows, which a run has or has not.
const ROWS: [&str; 2] = ["metrics.csv", "spectrum.csv"];

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

    /// Reads the arrays of the states to resume from into `state`, that of the run's start, and returns the position, if it
    /// `fits`.
    ///
    /// # Errors
    /// Files that cannot be read, or are not of this run.
    pub fn resume<T: Real>(
        &self,
        state: &mut State<T>,
        fits: impl FnOnce(&Progress, &State<T>, &State<T>) -> bool,
    ) -> Result<Progress> {
        let Some(path) = self.found() else { return Ok(Progress::default()) };
        let lost = |name: &str| {
            let reason = format!("{name} is missing or not of this run; remove the directory to start anew");
            Error::rejected(path.display().to_string(), reason)
        };
        let progress = read_json(&path.join(PROGRESS))?.and_then(|json| serde_json::from_value(json).ok());
        let progress: Progress = progress.ok_or_else(|| lost(PROGRESS))?;
        let file = MemoryFile::open(&path.join(MEMORY), T::TYPE, true, &mut |_| Ok(()))?;
        let saved = file.state::<T>().ok_or_else(|| lost(MEMORY))?;
        if !fits(&progress, state, &saved) {
            return Err(lost(PROGRESS));
        }
        (state.arrays, state.gradient_point) = (saved.arrays, saved.gradient_point);
        Ok(progress)
    }

    /// Writes the checkpoint. `memory` writes memory.safetensors; files of rows are moved from the directory `from`.
    pub fn save(
        &self,
        from: &Path,
        progress: &Progress,
        memory: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        self.saved.save(|directory| {
            memory(&directory.join(MEMORY))?;
            write_json(&directory.join(PROGRESS), progress)?;
            for name in ROWS {
                if storage::exists(&from.join(name))? {
                    storage::rename(&from.join(name), &directory.join(name))?;
                }
            }
            Ok(())
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

/// Tokens of the first segment, over all sequences of a group: tens of milliseconds for small memories, seconds for the largest.
const FIRST_TOKENS: usize = 16_384;
/// Time of a segment that the number of tokens is adapted to. A scheduler waits some 30 s after SIGTERM. Beginning a segment
/// costs some copies of the state, which is well below 1 % of this.
const SEGMENT: Duration = Duration::from_millis(500);

/// Number of tokens of the next segment. It affects no bit of the results.
struct Pace(usize);

impl Pace {
    /// Adapts to the time that the last segment took.
    fn took(&mut self, time: Duration) {
        if time < SEGMENT / 2 {
            self.0 = self.0.saturating_mul(2);
        } else if time > SEGMENT * 2 {
            self.0 = (self.0 / 2).max(1);
        }
    }
}

/// Position of a store, whose groups of sequences are stored one after another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// First sequence of the group that comes next, or that is in progress. Those before it are complete.
    pub sequence: usize,
    /// Stored tokens of each sequence of that group.
    tokens: usize,
    /// The first divergence so far. The sequences of the group before it are in progress, and none comes after it.
    divergence: Option<Divergence>,
}

/// Some consecutive tokens of some consecutive sequences.
pub(super) struct Part<'a, T> {
    whole: &'a dyn Sequences<T>,
    sequences: Range<usize>,
    tokens: Range<usize>,
    /// Whether no complete chunk follows.
    is_end: bool,
}

impl<T: Real> Sequences<T> for Part<'_, T> {
    fn is_end(&self) -> bool {
        self.is_end
    }

    fn shape(&self) -> Shape {
        let Shape { dim, .. } = self.whole.shape();
        Shape { sequences: self.sequences.len(), tokens: self.tokens.len(), dim }
    }

    fn read_rows(&self, sequence: usize, start: usize, out: ArrayViewMut2<T>) -> Result<()> {
        self.whole.read_rows(self.sequences.start + sequence, self.tokens.start + start, out)
    }
}

/// A store that can be ended between two segments.
pub(super) struct Segments<'a, T> {
    sequences: &'a dyn Sequences<T>,
    /// Number of sequences that advance together.
    group: usize,
    /// Bytes of their states.
    group_bytes: u128,
    chunk_size: usize,
}

impl<'a, T: Real> Segments<'a, T> {
    /// Divides a store of `sequences` into a memory.
    pub fn new(sequences: &'a dyn Sequences<T>, memory: &Memory<T>) -> Self {
        let group = memory.group(sequences.shape().sequences);
        Self { sequences, group, group_bytes: memory.state_bytes(group), chunk_size: memory.chunk_size() }
    }

    /// Returns the sequences of the group in progress.
    fn group(&self, progress: &Progress) -> Range<usize> {
        let Progress { sequence, divergence, .. } = progress;
        let end = divergence.as_ref().map_or(self.sequences.shape().sequences, |at| at.sequence);
        *sequence..end.min(sequence.saturating_add(self.group))
    }

    /// Returns the number of tokens stored, over all sequences.
    pub fn stored(&self, progress: &Progress) -> usize {
        progress.sequence * self.sequences.shape().tokens + self.group(progress).len() * progress.tokens
    }

    /// Returns whether everything is stored that can be.
    pub fn is_done(&self, progress: &Progress) -> bool {
        self.group(progress).is_empty()
    }

    /// Returns whether a position, beside the states of `saved`, may have been saved by this store into `start`.
    pub fn fits(&self, progress: &Progress, start: &State<T>, saved: &State<T>) -> bool {
        let Shape { sequences, tokens, .. } = self.sequences.shape();
        let Progress { sequence, tokens: stored, divergence } = progress;
        let is_known = divergence.as_ref().is_none_or(|at| (*sequence..sequences).contains(&at.sequence));
        is_known
            && sequence.is_multiple_of(self.group)
            && *stored < tokens
            && !self.is_done(progress)
            && saved.sequences() == sequences
            && saved.stored.tokens.checked_sub(start.stored.tokens) == Some(*stored)
    }

    /// Stores from `progress` on, until the run is preempted. `run` stores a segment. Afterwards the positions of `state` are
    /// those of the group in progress.
    pub fn run(
        &self,
        progress: &mut Progress,
        checkpoint: &Checkpoint,
        state: &mut State<T>,
        files: &mut Files<T>,
        mut run: impl FnMut(&mut State<T>, &Part<'_, T>, &mut OfSegment<'_, '_, T>) -> Result<Outcome>,
    ) -> Result<Outcome> {
        let all = self.sequences.shape();
        let (first_token, c) = (state.stored.tokens, self.chunk_size);
        let chunks = |tokens: usize| (first_token + tokens) / c;
        let (mut whole, mut pace) = (Outcome::default(), Pace(FIRST_TOKENS));
        let mut preempted = false;
        while !self.is_done(progress) && !preempted {
            let group = self.group(progress);
            let mut part = Part {
                whole: self.sequences,
                sequences: group.clone(),
                tokens: 0..progress.tokens,
                is_end: false,
            };
            if group.len() < all.sequences {
                budget::check(state.bytes() as u128 + self.group_bytes)?;
            }
            let mut running = state.take(group.clone());
            running.advance(&part, &part, c)?;
            let mut sink = OfSegment { files: &mut *files, first: group.start };
            let mut finished = false;
            while !finished && !preempted {
                let end = progress.tokens.saturating_add((pace.0 / group.len()).max(1)).min(all.tokens);
                part.tokens = progress.tokens..end;
                part.is_end = chunks(end) == chunks(all.tokens);
                let begin = Instant::now();
                let outcome = run(&mut running, &part, &mut sink)?;
                pace.took(begin.elapsed());
                whole.add_times(&outcome);
                progress.tokens = end;
                if let Some(divergence) = outcome.divergence {
                    // The sequences before it continue.
                    part.sequences.end = group.start + divergence.sequence;
                    running = running.take(0..divergence.sequence);
                    progress.divergence = Some(Divergence { sequence: part.sequences.end, ..divergence });
                }
                finished = progress.tokens == all.tokens || part.sequences.is_empty();
                preempted = checkpoint.is_preempted();
            }
            let last = progress.divergence.as_ref().map_or(group.end, |divergence| divergence.sequence + 1);
            (group.start..last).try_for_each(|sequence| files.sequence_done(sequence))?;
            if preempted || progress.divergence.is_none() {
                state.put(part.sequences.clone(), running);
            }
            if finished {
                (progress.sequence, progress.tokens) = (group.end, 0);
            }
        }
        let tokens = 0..if self.is_done(progress) { all.tokens } else { progress.tokens };
        let part = Part { whole: self.sequences, sequences: 0..all.sequences, tokens, is_end: true };
        state.advance(&part, &part, c)?;
        whole.divergence.clone_from(&progress.divergence);
        whole.rows = files.statistics.rows();
        Ok(whole)
    }
}

/// Passes on the results of a segment with the sequences' own numbers. [`Segments::run`] completes the sequences.
pub(super) struct OfSegment<'f, 'a, T: Real> {
    files: &'f mut Files<'a, T>,
    /// Sequence that the engine calls 0.
    first: usize,
}

impl<T: Real> Sink<T> for OfSegment<'_, '_, T> {
    fn metrics(&mut self, rows: &[ChunkMetrics]) -> Result<()> {
        if self.first == 0 {
            return self.files.metrics(rows);
        }
        let rows: Vec<_> = rows
            .iter()
            .map(|row| ChunkMetrics { sequence: self.first + row.sequence, ..row.clone() })
            .collect();
        self.files.metrics(&rows)
    }

    fn retrieved(&mut self, sequence: usize, start: usize, rows: ArrayView2<T>) -> Result<()> {
        self.files.retrieved(self.first + sequence, start, rows)
    }

    fn spectra(&mut self, spectra: &[Spectrum]) -> Result<()> {
        let spectra: Vec<_> =
            spectra.iter().map(|of| Spectrum { sequence: self.first + of.sequence, ..of.clone() }).collect();
        self.files.spectra(&spectra)
    }

    fn sequence_done(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
}
