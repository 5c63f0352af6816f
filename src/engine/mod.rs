//! The engine runs the mathematics of [`memory`](crate::memory) in blocks of tokens, so that memory use is that
//! of the weights and one block. Groups of rows before and after the memory's weights run in parallel, and so
//! do columns of the weights. Results have the same bits for any number of threads, because the work of a task
//! depends on shapes only.
//!
//! For each block, `sequence_runner` norms and projects the tokens of one sequence. `head` takes all [`gradient`]s
//! up to the next refresh at once, since they are all at the same W. Then, layer by layer of the memory model, column
//! [`panel`]s go through the chunks: read chunk i with the weights of that moment, then advance the state by chunk
//! i's surprise. `reader` evaluates the model's operators between layers. `plan` divides the tokens into blocks.
//!
//! # Example
//!
//! Store one sequence in a memory with random parameters:
//!
//! ```
//! use ndarray::Array3;
//! use nmem::engine::{Discard, Engine, Memory, Work};
//! use nmem::memory::{Dimensions, Gates, Parameters, Program, parameters};
//!
//! let program = Program::titans_0_0_17(4);
//! let dimensions = Dimensions { dim: 8, heads: 2, dim_head: 4, pre_norm: true, post_norm: true };
//! let random = parameters::random_tensors(&dimensions, &program, parameters::Init::Xavier, 1);
//! let parameters: Parameters<f32> = Parameters::collect(dimensions, &program, |name| {
//!     random.iter().find(|(of, _)| of == name).expect("all parameters are random").1.clone()
//! });
//! let memory = Memory::new(parameters, program, Gates::default(), None)?;
//!
//! // One sequence of 10 tokens: two complete chunks of 4, and 2 left-over tokens.
//! let tokens = Array3::from_shape_fn((1, 10, 8), |(_, t, i)| ((3 * t + i) as f32).sin());
//! let mut state = memory.initial_state(1);
//! let work = Work::Store { sequences: &tokens, probe: false };
//! let outcome = Engine::new(&memory).run(&mut state, work, &mut Discard, &mut |_| Ok(()))?;
//! assert_eq!(outcome.divergence, None);
//! assert_eq!(state.stored.chunks(4), 2);
//! assert_eq!(state.stored.left_over.dim(), (1, 2, 8));
//! # Ok::<(), nmem::Error>(())
//! ```

pub mod budget;
pub mod cuda;
pub mod gradient;
mod head;
mod memory;
pub mod norm;
pub mod panel;
mod plan;
mod reader;
mod retention;
mod sequence_runner;
mod telemetry;
mod tokens;

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;
use serde::Serialize;

use crate::error::Result;
use crate::memory::State;
use crate::memory::graph::{Node, NodeKind};
use crate::memory::operators::{Work as OperatorBuffers, buffers};
use crate::metrics::{ChunkMetrics, Retained};
use crate::real::Real;
use crate::sequence::Sequences;
use gradient::GradientScratch;
pub use memory::Memory;
use plan::{Block, Plan, Sizes, TokenRange};
use sequence_runner::SequenceRunner;
pub use telemetry::Probes;
use tokens::BlockTokens;

/// Work for a memory.
#[derive(Clone, Copy)]
pub enum Work<'a, T> {
    /// Reads every token with the current weights; the state does not change. Chunks count from the
    /// first query.
    Read(&'a dyn Sequences<T>),
    /// Stores sequences. `probe` computes `loss_before` and `loss_after`.
    Store {
        /// Sequences to store.
        sequences: &'a dyn Sequences<T>,
        /// Whether to also take ℓ at the weights that are read, before and after each chunk.
        probe: bool,
    },
    /// Reads while storing, with the weights that the [schedule](crate::memory::program::Reads) selects:
    /// `forward(read, store)` of the PyTorch module.
    Online {
        /// The queries.
        read: &'a dyn Sequences<T>,
        /// Sequences to store; often the same as the queries.
        store: &'a dyn Sequences<T>,
        /// Whether to also take ℓ at the weights that are read, before and after each chunk.
        probe: bool,
    },
}

/// Receiver of results while the run produces them.
pub trait Sink<T>: Send {
    /// Receives metrics rows of one sequence, by chunk and head. Sequences of a group take turns. After a
    /// divergence, rows of sequences that are never reported as done do not count.
    fn metrics(&mut self, rows: &[ChunkMetrics]) -> Result<()>;
    /// Receives retrieved rows (rows, dim), starting at token `start` of the given queries.
    fn retrieved(&mut self, sequence: usize, start: usize, rows: ArrayView2<T>) -> Result<()>;
    /// Receives losses of kept chunks in a run with retention, by sequence, then moment, chunk and head. Turns
    /// and divergences follow the rules of [`metrics`](Self::metrics).
    fn retained(&mut self, _rows: &[Retained]) -> Result<()> {
        Ok(())
    }
    /// Receives losses of chunks that the memory had not stored, in a run with retention: for each kept chunk but the first,
    /// under the memory before its block. Turns and divergences follow the rules of [`metrics`](Self::metrics).
    fn unstored(&mut self, _rows: &[Retained]) -> Result<()> {
        Ok(())
    }
    /// Marks a sequence as complete. The engine calls this in the order of sequences.
    fn sequence_done(&mut self, sequence: usize) -> Result<()>;
}

/// A sink that drops everything, for timing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Discard;

impl<T: Real> Sink<T> for Discard {
    fn metrics(&mut self, _: &[ChunkMetrics]) -> Result<()> {
        Ok(())
    }
    fn retrieved(&mut self, _: usize, _: usize, _: ArrayView2<T>) -> Result<()> {
        Ok(())
    }
    fn sequence_done(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
}

/// The first non-finite value of a run, in the order of sequences, chunks and heads.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Divergence {
    /// Index of the sequence.
    pub sequence: usize,
    /// Chunk, counted from the start of the memory's life; in a plain read, from the start of the queries.
    pub chunk: usize,
    /// Head; absent for a value after the heads are combined.
    pub head: Option<usize>,
    /// Column of metrics.csv, or `retrieved`.
    pub quantity: &'static str,
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
    /// Afterwards the state is useless and the retrieved tokens are incomplete.
    pub divergence: Option<Divergence>,
    /// The first non-finite value read in an online run. The memory may still be intact, so the run continues.
    pub bad_read: Option<Divergence>,
    /// Number of metrics rows of complete sequences: all rows, or those before the divergence.
    pub rows: usize,
    /// The first chunk of queries past the end of the stored stream. Such chunks are read with the last weights.
    pub read_past_store: Option<usize>,
    /// Σ ℓ under the final memory and Σ ℓ at W, over all sequences, heads and kept chunks; zeros without kept chunks.
    pub retained: [f64; 2],
    /// Σ ℓ of chunks that were not stored yet and Σ their ℓ at W: see [`Sink::unstored`].
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
    fn ends(&mut self, divergence: Option<Divergence>, read: Option<Divergence>, storing: bool) -> bool {
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
    pub fn then_read(self, read: Self) -> Self {
        Self {
            bad_read: read.divergence,
            computing: self.computing + read.computing,
            input: self.input + read.input,
            output: self.output + read.output,
            phases: self.phases.plus(&read.phases),
            ..self
        }
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
enum Phase {
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
    #[serde(rename = "walk")]
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

impl Phases {
    fn plus(&self, other: &Self) -> Self {
        Self {
            project: self.project + other.project,
            gradients: self.gradients + other.gradients,
            fused_update: self.fused_update + other.fused_update,
            activate: self.activate + other.activate,
            combine: self.combine + other.combine,
            metrics: self.metrics + other.metrics,
            retention: self.retention + other.retention,
        }
    }

    /// Returns the seconds of each phase with its name, in order.
    pub fn named(&self) -> [(&'static str, f64); 7] {
        let Self { project, gradients, fused_update, activate, combine, metrics, retention } = *self;
        [
            ("project", project),
            ("gradients", gradients),
            ("walk", fused_update),
            ("activate", activate),
            ("combine", combine),
            ("metrics", metrics),
            ("retention", retention),
        ]
    }
}

/// State that all tasks of a run share.
struct Context<'a, T: Real> {
    memory: &'a Memory<T>,
    plan: &'a Plan<'a, T>,
    /// Scratch buffers that no task is using.
    scratch: &'a Mutex<Vec<Scratch<T>>>,
    /// Nanoseconds in each [`Phase`].
    phases: [AtomicU64; 7],
}

impl<T: Real> Context<'_, T> {
    fn timed<R>(&self, phase: Phase, work: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = work();
        self.phases[phase as usize].fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        result
    }

    /// Lends scratch buffers for a group of rows. At most as many exist as tasks run at once.
    fn with_scratch(&self, phase: Phase, work: impl FnOnce(&mut Scratch<T>)) {
        let idle = self.scratch.lock().expect("no task panics with it").pop();
        let mut scratch = idle.unwrap_or_else(|| {
            Scratch::new(self.memory, self.plan.scratch_rows(), self.plan.store.is_some())
        });
        self.timed(phase, || work(&mut scratch));
        self.scratch.lock().expect("no task panics with it").push(scratch);
    }

    fn phases(&self) -> Phases {
        let seconds = |phase: Phase| self.phases[phase as usize].load(Ordering::Relaxed) as f64 * 1e-9;
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

/// Buffers of one task for a group of rows, reused from call to call.
struct Scratch<T> {
    /// Rows that pass through operators: see [`reader`].
    groups: Vec<Array2<T>>,
    /// Absent in a plain read.
    gradient: Option<GradientScratch<T>>,
    /// Buffers of each node of the model that is an operator.
    works: Vec<Option<OperatorBuffers<T>>>,
}

impl<T: Real> Scratch<T> {
    fn new(memory: &Memory<T>, rows: usize, storing: bool) -> Self {
        let graph = &memory.graph;
        Self {
            groups: memory.places.group_matrices(rows),
            gradient: storing.then(|| GradientScratch::new(graph, rows)),
            works: buffers(graph, rows, memory.chunk_size()),
        }
    }

    /// Returns the most numbers that such buffers hold.
    fn numbers(memory: &Memory<T>, rows: usize, storing: bool) -> usize {
        let (graph, chunk) = (&memory.graph, memory.chunk_size().min(rows));
        let work = |node: &Node| match node.kind {
            NodeKind::Linear(_) => 0,
            NodeKind::Operator(op) => {
                let shapes = op.operator::<T>().kept(rows, chunk, &graph.input_widths(node));
                shapes.iter().map(|(rows, cols)| rows * cols).sum::<usize>() + chunk * crate::packed::WIDTH
            }
        };
        let of_rows = memory.places.group_columns()
            + if storing { GradientScratch::<T>::numbers_per_row(graph) } else { 0 };
        rows * of_rows + graph.nodes.iter().map(work).sum::<usize>()
    }
}

/// An engine that runs a memory. Its large buffers are reused by the next run of the same kind and size.
pub struct Engine<'m, T: Real> {
    memory: &'m Memory<T>,
    retention: Option<usize>,
    probes: Probes,
    sizes: Option<Sizes>,
    runners: Vec<SequenceRunner<T>>,
    /// Tokens of each runner's next block.
    incoming: Vec<BlockTokens<T>>,
    scratch: Mutex<Vec<Scratch<T>>>,
}

impl<'m, T: Real> Engine<'m, T> {
    /// Creates an engine for `memory`.
    pub fn new(memory: &'m Memory<T>) -> Self {
        Self {
            memory,
            retention: None,
            probes: Probes::default(),
            sizes: None,
            runners: Vec::new(),
            incoming: Vec::new(),
            scratch: Mutex::default(),
        }
    }

    /// Enables retention. With `Some(K)`, the keys and values of chunks K − 1, 2K − 1, … are kept. Each kept
    /// chunk is read again after every K-th chunk that is stored later, and after the last chunk: see
    /// [`Sink::retained`]. The other results of the run stay the same, bit for bit.
    ///
    /// For n chunks this costs (n / K)² / 2 reads of a chunk by every head, and memory for one K-th of the
    /// sequence's keys and values. Blocks are at most K chunks long.
    #[must_use]
    pub fn with_retention(self, every: Option<usize>) -> Self {
        Self { retention: every, ..self }
    }

    /// Takes further probes of each chunk. The other results of the run stay the same, bit for bit.
    #[must_use]
    pub fn with_probes(self, probes: Probes) -> Self {
        Self { probes, ..self }
    }

    /// Runs `work`. `tick` receives the number of tokens of each finished block, summed over sequences, and can
    /// stop the run.
    ///
    /// # Errors
    /// Settings that do not fit the state, failures of the inputs and the sink, and any error that `tick`
    /// returns. After any of these but the first the state is useless. A divergence is not an error: see
    /// [`Outcome`].
    pub fn run(
        &mut self,
        state: &mut State<T>,
        work: Work<'_, T>,
        sink: &mut dyn Sink<T>,
        tick: &mut (dyn FnMut(usize) -> Result<()> + Send),
    ) -> Result<Outcome> {
        let begin = Instant::now();
        state.lay_out();
        let plan = Plan::new(self.memory, state, work, self.retention)?.with_probes(self.probes);
        let group = self.memory.group(plan.sequences);
        let buffers = self.memory.buffer_bytes(&plan, group, rayon::current_num_threads());
        budget::check(buffers + state.bytes() as u128)?;
        self.prepare_buffers(plan.sizes(), group);
        let mut outcome = Outcome { read_past_store: plan.read_past_store, ..Outcome::default() };
        let context =
            Context { memory: self.memory, plan: &plan, scratch: &self.scratch, phases: Default::default() };
        for first in (0..plan.sequences).step_by(group) {
            let sequences = first..plan.sequences.min(first + group);
            let buffers = (&mut *self.runners, &mut *self.incoming);
            run_group(&context, buffers, state, sequences, sink, tick, &mut outcome)?;
            if outcome.divergence.is_some() {
                break;
            }
        }
        if outcome.divergence.is_none() {
            plan.finish(state)?;
        }
        outcome.phases = context.phases();
        outcome.computing = begin.elapsed().saturating_sub(outcome.input + outcome.output);
        Ok(outcome)
    }

    /// Returns the bytes of the buffers for sequences. The scratch buffers of each thread are not counted.
    pub fn bytes(&self) -> usize {
        let runners = self.runners.iter().map(SequenceRunner::bytes).sum::<usize>();
        runners + self.incoming.iter().map(BlockTokens::bytes).sum::<usize>()
    }

    /// Allocates buffers for a number of sequences side by side.
    fn prepare_buffers(&mut self, sizes: Sizes, runners: usize) {
        if self.sizes.replace(sizes) != Some(sizes) {
            self.runners.clear();
            self.incoming.clear();
            self.scratch.get_mut().expect("no task panics with it").clear();
        }
        self.runners.truncate(runners);
        self.runners.resize_with(runners, || SequenceRunner::new(self.memory, sizes));
        self.incoming.truncate(runners);
        self.incoming.resize_with(runners, || BlockTokens::new(sizes, self.memory.dimensions.dim));
    }
}

/// Advances the sequences `group` side by side. A divergence ends its sequence and all later ones; earlier
/// sequences continue. The first divergence in the order of sequences is therefore the one reported.
fn run_group<T: Real>(
    context: &Context<'_, T>,
    (runners, incoming): (&mut [SequenceRunner<T>], &mut [BlockTokens<T>]),
    state: &mut State<T>,
    group: Range<usize>,
    sink: &mut dyn Sink<T>,
    tick: &mut (dyn FnMut(usize) -> Result<()> + Send),
    outcome: &mut Outcome,
) -> Result<()> {
    let plan = context.plan;
    let (mut runners, incoming) = (&mut runners[..group.len()], &mut incoming[..group.len()]);
    runners
        .par_iter_mut()
        .zip(group.clone())
        .for_each(|(runner, sequence)| runner.load(context.memory, state, sequence));
    let mut rows = vec![0; runners.len()];
    let load = |incoming: &mut [BlockTokens<T>], block: Block| {
        let begin = Instant::now();
        let mut sequences = incoming.iter_mut().zip(group.clone());
        sequences.try_for_each(|(tokens, sequence)| tokens.load(plan, sequence, block))?;
        Ok(begin.elapsed())
    };
    let mut blocks = plan.blocks().peekable();
    if let Some(&first) = blocks.peek() {
        outcome.input += load(incoming, first)?;
    }
    while let Some(block) = blocks.next() {
        for (runner, tokens) in runners.iter_mut().zip(&mut *incoming) {
            std::mem::swap(&mut runner.tokens, tokens);
        }
        let mut compute = || runners.par_iter_mut().for_each(|runner| runner.run(context, block));
        match blocks.peek() {
            None => compute(),
            Some(&next) if rayon::current_num_threads() == 1 => {
                compute();
                outcome.input += load(incoming, next)?;
            }
            // The next block is read meanwhile: a thread without work falls asleep and is slow to wake.
            Some(&next) => {
                rayon::join(compute, || load(incoming, next)).1?;
            }
        }

        let writing = Instant::now();
        let mut active = runners.len();
        for (i, runner) in runners.iter().enumerate() {
            sink.metrics(&runner.rows)?;
            rows[i] += runner.rows.len();
            let (start, retrieved) = runner.retrieved(block, plan.first_query);
            if retrieved.nrows() > 0 && runner.divergence.is_none() && runner.bad_read.is_none() {
                sink.retrieved(runner.sequence, start, retrieved)?;
            }
            if !runner.unstored.is_empty() {
                sink.unstored(&runner.unstored)?;
                let [loss, at_w] = &mut outcome.unstored;
                *loss += runner.unstored.iter().map(|of| of.loss).sum::<f64>();
                *at_w += runner.unstored.iter().map(|of| of.loss_at_w).sum::<f64>();
            }
            if !runner.retained.is_empty() {
                sink.retained(&runner.retained)?;
                if block.store.end == plan.store_end {
                    let [loss, at_w] = &mut outcome.retained;
                    *loss += runner.retained.iter().map(|kept| kept.loss).sum::<f64>();
                    *at_w += runner.retained.iter().map(|kept| kept.loss_at_w).sum::<f64>();
                }
            }
            if outcome.ends(runner.divergence.clone(), runner.bad_read.clone(), plan.store.is_some()) {
                active = i;
                break;
            }
        }
        runners = &mut runners[..active];
        outcome.output += writing.elapsed();
        tick(runners.len() * block.store.len().max(block.read.len()))?;
        if runners.is_empty() {
            break;
        }
    }
    if plan.store.is_some() {
        let of_group = group.start..group.start + runners.len();
        let mut states: Vec<_> = runners.iter().map(|runner| (runner, Vec::new())).collect();
        for array in state.arrays.iter_mut().chain(&mut state.gradient_point) {
            let parts = array.slice_mut(s![of_group.clone(), .., ..]).into_outer_iter_mut();
            states.iter_mut().zip(parts).for_each(|((_, arrays), part)| arrays.push(part));
        }
        states.into_par_iter().for_each(|(runner, arrays)| runner.save(context.memory, arrays));
    }
    let last = outcome.divergence.as_ref().map_or(group.end, |divergence| divergence.sequence + 1);
    outcome.rows += rows[..last - group.start].iter().sum::<usize>();
    (group.start..last).try_for_each(|sequence| sink.sequence_done(sequence))
}
