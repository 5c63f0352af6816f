//! The engine runs the mathematics of [`memory`](crate::memory) in blocks of tokens, so that memory use is that
//! of the weights and one block. Groups of rows before and after the memory's weights run in parallel, and so
//! do columns of the weights. Results have the same bits for any number of threads, because the work of a task
//! depends on shapes only.
//!
//! For each block, `sequence_runner` norms and projects the tokens of one sequence. `head` takes all gradients
//! of the block at once, since they are all at the same W. Then, layer by layer of the memory, column
//! [`panel`]s go through the block's chunks: read chunk i with W + U, then advance S and U by chunk i's
//! surprise. `plan` divides the tokens into blocks.
//!
//! # Example
//!
//! Store one sequence in a memory with random parameters:
//!
//! ```
//! use ndarray::Array3;
//! use nmem::engine::{Discard, Engine, Memory, Work};
//! use nmem::memory::{Dimensions, Gates, Parameters, parameters};
//!
//! let dimensions = Dimensions { dim: 8, heads: 2, dim_head: 4, pre_norm: true, post_norm: true };
//! let random = parameters::random_tensors(&dimensions, parameters::Init::Xavier, 1);
//! let parameters: Parameters<f32> = Parameters::collect(dimensions, |name| {
//!     random.iter().find(|(of, _)| of == name).expect("all parameters are random").1.clone()
//! });
//! let memory = Memory::new(parameters, 4, Gates::default(), None)?;
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
mod head;
pub mod norm;
pub mod panel;
mod plan;
mod retention;
mod sequence_runner;
mod tokens;

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ndarray::{Array1, Array2, ArrayView2, s};
use rayon::prelude::*;
use serde::Serialize;

use crate::error::Result;
use crate::memory::model::{Attention, MemoryModel};
use crate::memory::{Dimensions, Gates, Parameters, State};
use crate::metrics::{ChunkMetrics, Retained};
use crate::packed::{Packed, PanelRow};
use crate::real::Real;
use crate::sequence::Sequences;
use panel::{Panel, PanelColumns};
use plan::{Block, Plan, Sizes, TokenRange};
use sequence_runner::SequenceRunner;
use tokens::BlockTokens;

/// Heads, over all sequences, that advance together. Each head is many tasks and has its own buffers.
const GROUP_HEADS: usize = 8;

/// A memory that is ready to run: trained parameters in the element type of the run, and the settings for using them.
#[derive(Clone, Debug)]
pub struct Memory<T: Real, M: MemoryModel<T> = Attention> {
    dimensions: Dimensions,
    projections: Projections<T>,
    chunk_size: usize,
    gates: Gates,
    /// The memory model. The engine uses only its trait.
    model: M,
    /// W: the memory weights plus past weights, all in file order.
    base: Vec<T>,
    /// W in the form that the model needs.
    weights: M::Weights,
    /// Column panels of all memory weights, and W in those panels.
    columns: Vec<PanelColumns>,
    base_panels: Vec<Vec<PanelRow<T>>>,
    /// Panels of each memory weight, and the place of its elements in file order.
    weight_panels: Vec<Range<usize>>,
    weight_elements: Vec<Range<usize>>,
}

/// The parameters outside the memory weights: see [`Parameters`].
#[derive(Clone, Debug)]
struct Projections<T> {
    store_norm: Option<Array1<T>>,
    retrieve_norm: Option<Array1<T>>,
    post_norm: Option<Array1<T>>,
    keys_values: Packed<T>,
    queries: Packed<T>,
    gates: Packed<T>,
    combine: Option<Packed<T>>,
}

impl<T: Real> Memory<T> {
    /// Builds a memory. `past` holds one delta (d, d) per memory weight, which shifts W itself.
    pub fn new(
        parameters: Parameters<T>,
        chunk_size: usize,
        gates: Gates,
        past: Option<&[Array2<T>]>,
    ) -> Result<Self> {
        parameters.dimensions.check(chunk_size)?;
        let model = Attention::new(parameters.dimensions.dim_head);
        let mut base: Vec<T> = parameters.memory.iter().flatten().copied().collect();
        for (w, &delta) in base.iter_mut().zip(past.into_iter().flatten().flatten()) {
            *w += delta;
        }
        let shapes = MemoryModel::<T>::shapes(&model);
        let ends = shapes.iter().scan(0, |end, (rows, cols)| {
            *end += rows * cols;
            Some(*end - rows * cols..*end)
        });
        let weight_elements: Vec<_> = ends.collect();
        let columns = PanelColumns::all(shapes);
        let panel = |columns: &PanelColumns| columns.panel(&base[weight_elements[columns.weight].clone()]);
        let base_panels = columns.iter().map(panel).collect();
        let place = |weight: usize| columns.partition_point(|columns| columns.weight < weight);
        let weight_panels = (0..parameters.memory.len()).map(|p| place(p)..place(p + 1)).collect();
        Ok(Self {
            weights: model.prepare(&base),
            dimensions: parameters.dimensions,
            projections: Projections {
                keys_values: Packed::new(parameters.keys_values.view()),
                queries: Packed::new(parameters.queries.view()),
                combine: parameters.combine.map(|combine| Packed::new(combine.view())),
                store_norm: parameters.store_norm,
                retrieve_norm: parameters.retrieve_norm,
                post_norm: parameters.post_norm,
                gates: Packed::new(parameters.gates.view()),
            },
            chunk_size,
            gates,
            model,
            base,
            columns,
            base_panels,
            weight_panels,
            weight_elements,
        })
    }
}

impl<T: Real, M: MemoryModel<T>> Memory<T, M> {
    /// Returns the state before anything has been stored.
    pub fn initial_state(&self, sequences: usize) -> State<T> {
        let dimensions = self.dimensions;
        State::new(sequences, dimensions.heads, self.base.len(), dimensions.dim)
    }

    /// Returns the shape (rows, cols) of each memory weight, in file order.
    pub fn weight_shapes(&self) -> &[(usize, usize)] {
        self.model.shapes()
    }

    /// Returns W, one matrix (rows, cols) per memory weight: the trained weights plus past weights.
    pub fn weights(&self) -> Vec<ArrayView2<'_, T>> {
        let weights = self.weight_shapes().iter().zip(&self.weight_elements);
        let view = |(&shape, place): (&(usize, usize), &Range<usize>)| {
            ArrayView2::from_shape(shape, &self.base[place.clone()]).expect("rows × cols elements")
        };
        weights.map(view).collect()
    }

    /// Returns the number of tokens per chunk.
    pub fn chunk_size(&self) -> usize {
        self.chunk_size
    }

    /// Returns the panels of a layer's weights.
    fn panels_of(&self, layer: usize) -> Range<usize> {
        let weights = &self.weight_panels[self.model.layers()[layer].clone()];
        weights[0].start..weights[weights.len() - 1].end
    }

    /// Returns W + U of a head, one matrix per memory weight.
    fn read_weights(&self, panels: &[Panel<T>]) -> Vec<Packed<T>> {
        let weights = self.weight_shapes().iter().zip(&self.weight_panels);
        let of_weight = |(&(rows, cols), place): (&(usize, usize), &Range<usize>)| {
            let panels = panels[place.clone()].iter().zip(&self.base_panels[place.clone()]);
            let panels = panels.flat_map(|(panel, base)| panel.weights(base)).collect();
            Packed::from_panels(rows, cols, panels)
        };
        weights.map(of_weight).collect()
    }

    /// Returns the number of panels, of all layers, that are updated at once for a number of sequences. More
    /// threads than that would mostly wait.
    pub fn tasks(&self, sequences: usize) -> usize {
        self.group(sequences) * self.dimensions.heads * self.columns.len()
    }

    /// Returns the bytes of the memory, without the weights in the form that the model made for itself.
    pub fn bytes(&self) -> usize {
        let Projections { store_norm, retrieve_norm, post_norm, keys_values, queries, gates, combine } =
            &self.projections;
        let norms = [store_norm, retrieve_norm, post_norm].into_iter().flatten().map(Array1::len);
        let packed = [keys_values, queries, gates].into_iter().chain(combine).map(Packed::bytes);
        let panels = self.base_panels.iter().map(|panel| size_of_val(&panel[..]));
        let plain = self.base.len() + norms.sum::<usize>();
        plain * size_of::<T>() + packed.sum::<usize>() + panels.sum::<usize>()
    }

    /// Returns the number of sequences that advance together.
    fn group(&self, sequences: usize) -> usize {
        (GROUP_HEADS / self.dimensions.heads).clamp(1, sequences.max(1))
    }
}

/// Work for a memory.
#[derive(Clone, Copy)]
pub enum Work<'a, T> {
    /// Reads every token with the current weights, W + U; the state does not change. Chunks count from the
    /// first query.
    Read(&'a dyn Sequences<T>),
    /// Stores sequences. `probe` computes `loss_before` and `loss_after`.
    Store {
        /// Sequences to store.
        sequences: &'a dyn Sequences<T>,
        /// Whether to also take ℓ at W + U before and after each chunk.
        probe: bool,
    },
    /// Reads chunk by chunk, one chunk behind the stored stream: `forward(read, store)` of the PyTorch module.
    Online {
        /// The queries.
        read: &'a dyn Sequences<T>,
        /// Sequences to store; often the same as the queries.
        store: &'a dyn Sequences<T>,
        /// Whether to also take ℓ at W + U before and after each chunk.
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

    /// Returns Σ ℓ under the final memory ÷ Σ ℓ at W of the kept chunks. 0 means that everything is retained, 1
    /// that the memory does no better than without storing. `None` without kept chunks, after a divergence, and
    /// where the ratio is not finite.
    pub fn retained_ratio(&self) -> Option<f64> {
        let [loss, at_w] = self.retained;
        Some(loss / at_w).filter(|ratio| self.divergence.is_none() && ratio.is_finite())
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
struct Context<'a, T: Real, M: MemoryModel<T>> {
    memory: &'a Memory<T, M>,
    plan: &'a Plan<'a, T>,
    /// Scratch buffers that no task is using.
    scratch: &'a Mutex<Vec<M::Scratch>>,
    /// Nanoseconds in each [`Phase`].
    phases: [AtomicU64; 7],
}

impl<T: Real, M: MemoryModel<T>> Context<'_, T, M> {
    fn timed<R>(&self, phase: Phase, work: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = work();
        self.phases[phase as usize].fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        result
    }

    /// Lends scratch buffers for a group of rows. At most as many exist as tasks run at once.
    fn with_scratch(&self, phase: Phase, work: impl FnOnce(&mut M::Scratch)) {
        let idle = self.scratch.lock().expect("no task panics with it").pop();
        let mut scratch = idle
            .unwrap_or_else(|| self.memory.model.scratch(self.plan.scratch_rows(), self.memory.chunk_size));
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

/// An engine that runs a memory. Its large buffers are reused by the next run of the same kind and size.
pub struct Engine<'m, T: Real, M: MemoryModel<T> = Attention> {
    memory: &'m Memory<T, M>,
    retention: Option<usize>,
    sizes: Option<Sizes>,
    runners: Vec<SequenceRunner<T>>,
    /// Tokens of each runner's next block.
    incoming: Vec<BlockTokens<T>>,
    scratch: Mutex<Vec<M::Scratch>>,
}

impl<'m, T: Real, M: MemoryModel<T>> Engine<'m, T, M> {
    /// Creates an engine for `memory`.
    pub fn new(memory: &'m Memory<T, M>) -> Self {
        Self {
            memory,
            retention: None,
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
        let plan = Plan::new(self.memory, state, work, self.retention)?;
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
fn run_group<T: Real, M: MemoryModel<T>>(
    context: &Context<'_, T, M>,
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
        let [update, momentum] = [&mut state.update, &mut state.momentum]
            .map(|array| array.slice_mut(s![group.start..group.start + runners.len(), .., ..]));
        let states = update.into_outer_iter_mut().zip(momentum.into_outer_iter_mut());
        runners
            .iter()
            .zip(states)
            .collect::<Vec<_>>()
            .into_par_iter()
            .for_each(|(runner, (update, momentum))| runner.save(context.memory, update, momentum));
    }
    let last = outcome.divergence.as_ref().map_or(group.end, |divergence| divergence.sequence + 1);
    outcome.rows += rows[..last - group.start].iter().sum::<usize>();
    (group.start..last).try_for_each(|sequence| sink.sequence_done(sequence))
}
