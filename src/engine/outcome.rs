//! The result of a run: what was counted and timed, and the first non-finite value.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The first non-finite value of a run, in the order of sequences, chunks and heads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Index of the sequence.
    pub sequence: usize,
    /// Chunk, counted from the start of the memory's life; in a plain read, from the start of the queries.
    pub chunk: usize,
    /// Head; absent for a value after the heads are combined.
    pub head: Option<usize>,
    /// Column of metrics.csv, or `retrieved`.
    pub quantity: Cow<'static, str>,
    /// "NaN", "inf" or "-inf".
    pub value: String,
}

impl std::fmt::Display for Divergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let head = self.head.map_or_else(|| "heads combined".to_owned(), |head| format!("head {head}"));
        let Self { sequence, chunk, quantity, value, .. } = self;
        write!(f, "sequence {sequence}, {head}, chunk {chunk}: {quantity} is {value}")
    }
}

/// The result of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The first non-finite value that ended the run: one of the memory or, in a plain read, a retrieved one.
    /// Afterwards the states from its sequence on are useless and the retrieved tokens are incomplete.
    pub divergence: Option<Divergence>,
    /// The first non-finite value read in an online run. The memory may still be intact, so the run continues.
    pub bad_read: Option<Divergence>,
    /// Number of metrics rows of complete sequences: all rows, or those before the divergence.
    pub rows: usize,
    /// The first chunk of queries past the end of the stored stream. Such chunks are read with the last weights.
    pub read_past_store: Option<usize>,
    /// Σ ℓ under the final memory and Σ ℓ at W, over all sequences, heads and kept chunks; zeros without kept chunks.
    pub retained: [f64; 2],
    /// Σ ℓ of chunks that were not stored yet and Σ their ℓ at W: see [`Sink::unstored`](super::Sink::unstored).
    pub unstored: [f64; 2],
    /// Time from inputs to results, without `input` and `output`.
    pub computing: Duration,
    /// Time by phase, summed over threads.
    pub phases: Phases,
    /// Time spent waiting for blocks of tokens. With several threads they are read while others are computed.
    pub input: Duration,
    /// Time spent passing results to the sink.
    pub output: Duration,
}

impl Outcome {
    /// Returns the first non-finite value, in the order of sequences and chunks. A chunk is read before it is stored.
    pub fn first_nonfinite(&self) -> Option<&Divergence> {
        self.bad_read.iter().chain(&self.divergence).min_by_key(|at| (at.sequence, at.chunk))
    }

    /// Adds the findings of a sequence's block and returns whether they end the sequence. A non-finite read
    /// ends it only where nothing is stored.
    pub(super) fn ends(
        &mut self,
        divergence: Option<Divergence>,
        read: Option<Divergence>,
        storing: bool,
    ) -> bool {
        let divergence = if storing {
            self.bad_read =
                self.bad_read.take().into_iter().chain(read).min_by_key(|at| (at.sequence, at.chunk));
            divergence
        } else {
            divergence.or(read)
        };
        let ends = divergence.is_some();
        if ends {
            self.divergence = divergence;
        }
        ends
    }

    /// Adds the outcome of a plain read that followed. What is not finite there leaves the memory as it is.
    #[must_use]
    pub fn then_read(mut self, read: Self) -> Self {
        self.add_times(&read);
        self.bad_read = read.divergence;
        self
    }

    /// Adds the times of another part of the run.
    pub fn add_times(&mut self, part: &Self) {
        self.computing += part.computing;
        self.input += part.input;
        self.output += part.output;
        self.phases += part.phases;
    }

    /// Returns Σ ℓ under the final memory ÷ Σ ℓ at W of the kept chunks. 0 means that everything is retained, 1
    /// that the memory does no better than without storing. `None` without kept chunks, after a divergence, where
    /// the ratio is not finite, and where the loss at W is negative, as an inner product may be.
    pub fn retained_ratio(&self) -> Option<f64> {
        self.ratio(self.retained)
    }

    /// Returns the same ratio of chunks that were not stored yet. The difference is what is kept of a chunk.
    pub fn unstored_ratio(&self) -> Option<f64> {
        self.ratio(self.unstored)
    }

    fn ratio(&self, [loss, at_w]: [f64; 2]) -> Option<f64> {
        Some(loss / at_w).filter(|ratio| self.divergence.is_none() && ratio.is_finite() && at_w > 0.0)
    }
}

/// A phase of the engine's work.
#[derive(Clone, Copy, Debug)]
pub enum Phase {
    Project,
    Gradients,
    FusedUpdate,
    Activate,
    Combine,
    Metrics,
    Retention,
}

/// Seconds in each phase of a run, summed over threads.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Phases {
    /// Norms, projections and gates of the tokens of both streams.
    pub project: f64,
    /// Losses and gradients at W.
    pub gradients: f64,
    /// Fused updates of the panels: forming gradients, advancing S and U, and reading with W + U.
    pub fused_update: f64,
    /// The memory model's functions between layers, for everything that is read.
    pub activate: f64,
    /// Combination of the heads, and the norm of the retrieved rows.
    pub combine: f64,
    /// Metrics rows, and the search for non-finite values.
    pub metrics: f64,
    /// Reads of kept chunks, in a run with retention.
    pub retention: f64,
}

impl std::ops::AddAssign for Phases {
    fn add_assign(&mut self, other: Self) {
        self.project += other.project;
        self.gradients += other.gradients;
        self.fused_update += other.fused_update;
        self.activate += other.activate;
        self.combine += other.combine;
        self.metrics += other.metrics;
        self.retention += other.retention;
    }
}

impl Phases {
    /// Returns the seconds of each phase with its name, in order.
    pub fn named(&self) -> [(&'static str, f64); 7] {
        let Self { project, gradients, fused_update, activate, combine, metrics, retention } = *self;
        [
            ("project", project),
            ("gradients", gradients),
            ("fused_update", fused_update),
            ("activate", activate),
            ("combine", combine),
            ("metrics", metrics),
            ("retention", retention),
        ]
    }
}

/// The time in each phase of a run, added up by all threads.
#[derive(Debug, Default)]
pub struct PhaseClock {
    /// Nanoseconds in each [`Phase`].
    nanoseconds: [AtomicU64; 7],
}

impl PhaseClock {
    /// Adds the time that `work` takes.
    pub fn timed<R>(&self, phase: Phase, work: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = work();
        self.add(phase, start.elapsed());
        result
    }

    /// Adds a duration.
    pub fn add(&self, phase: Phase, duration: Duration) {
        self.nanoseconds[phase as usize].fetch_add(duration.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Returns the seconds of each phase.
    pub fn phases(&self) -> Phases {
        let seconds = |phase: Phase| self.nanoseconds[phase as usize].load(Ordering::Relaxed) as f64 * 1e-9;
        Phases {
            project: seconds(Phase::Project),
            gradients: seconds(Phase::Gradients),
            fused_update: seconds(Phase::FusedUpdate),
            activate: seconds(Phase::Activate),
            combine: seconds(Phase::Combine),
            metrics: seconds(Phase::Metrics),
            retention: seconds(Phase::Retention),
        }
    }
}
