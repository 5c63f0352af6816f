//! How the maths is run: in blocks of tokens, so that memory use is that of the weights and one block; in parallel
//! wherever nothing has to wait, which are groups of rows before and after the memory's weights and columns of
//! weights within; the same bits for any number of threads, because what a task computes depends on shapes only.
//!
//! Per block, `sequence_runner` norms and projects the tokens of one sequence. `head` takes all gradients of the block at once
//! (they are all at the same W); then, layer by layer of the memory, column [`panel`]s go through the block's
//! chunks: read chunk i with W + U, advance S and U by chunk i's surprise. Which tokens a block has, `plan` says.

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

/// Heads, over all sequences, that advance together: each is many tasks, and each has buffers of its own.
const GROUP_HEADS: usize = 8;

/// A memory ready to run: what is trained, in the element type of the run, and how it is used.
#[derive(Clone, Debug)]
pub struct Memory<T: Real, M: MemoryModel<T> = Attention> {
    dimensions: Dimensions,
    projections: Projections<T>,
    chunk_size: usize,
    gates: Gates,
    /// All that the engine knows of M is its trait.
    model: M,
    /// W: the memory weights plus past weights, all in file order.
    base: Vec<T>,
    /// W as the model wants it.
    weights: M::Weights,
    /// The column panels of all memory weights, and W in them.
    columns: Vec<PanelColumns>,
    base_panels: Vec<Vec<PanelRow<T>>>,
    /// The panels of each memory weight, and its elements in file order.
    weight_panels: Vec<Range<usize>>,
    weight_elements: Vec<Range<usize>>,
}

/// What lies around the memory: see [`Parameters`].
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
    /// `past`: one delta per memory weight that shifts W itself, (d, d) each.
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
    /// The state in which nothing has been stored.
    pub fn initial_state(&self, sequences: usize) -> State<T> {
        let dimensions = self.dimensions;
        State::new(sequences, dimensions.heads, self.base.len(), dimensions.dim)
    }

    /// (rows, cols) of each memory weight, in file order.
    pub fn weight_shapes(&self) -> &[(usize, usize)] {
        self.model.shapes()
    }

    /// W per memory weight: the trained ones plus past weights.
    pub fn weights(&self) -> Vec<ArrayView2<'_, T>> {
        let weights = self.weight_shapes().iter().zip(&self.weight_elements);
        let view = |(&shape, place): (&(usize, usize), &Range<usize>)| {
            ArrayView2::from_shape(shape, &self.base[place.clone()]).expect("rows × cols elements")
        };
        weights.map(view).collect()
    }

    /// Tokens per chunk.
    pub fn chunk_size(&self) -> usize {
        self.chunk_size
    }

    /// The panels of a layer's weights.
    fn panels_of(&self, layer: usize) -> Range<usize> {
        let weights = &self.weight_panels[self.model.layers()[layer].clone()];
        weights[0].start..weights[weights.len() - 1].end
    }

    /// W + U of a head, per memory weight.
    fn read_weights(&self, panels: &[Panel<T>]) -> Vec<Packed<T>> {
        let weights = self.weight_shapes().iter().zip(&self.weight_panels);
        let of_weight = |(&(rows, cols), place): (&(usize, usize), &Range<usize>)| {
            let panels = panels[place.clone()].iter().zip(&self.base_panels[place.clone()]);
            let panels = panels.flat_map(|(panel, base)| panel.weights(base)).collect();
            Packed::from_panels(rows, cols, panels)
        };
        weights.map(of_weight).collect()
    }

    /// Panels that are updated at once for so many sequences, all layers': more threads than that would mostly wait.
    pub fn tasks(&self, sequences: usize) -> usize {
        self.group(sequences) * self.dimensions.heads * self.columns.len()
    }

    /// What it takes, but for the form of the memory weights that the model has made for itself.
    pub fn bytes(&self) -> usize {
        let Projections { store_norm, retrieve_norm, post_norm, keys_values, queries, gates, combine } =
            &self.projections;
        let norms = [store_norm, retrieve_norm, post_norm].into_iter().flatten().map(Array1::len);
        let packed = [keys_values, queries, gates].into_iter().chain(combine).map(Packed::bytes);
        let panels = self.base_panels.iter().map(|panel| size_of_val(&panel[..]));
        let plain = self.base.len() + norms.sum::<usize>();
        plain * size_of::<T>() + packed.sum::<usize>() + panels.sum::<usize>()
    }

    /// Sequences that advance together.
    fn group(&self, sequences: usize) -> usize {
        (GROUP_HEADS / self.dimensions.heads).clamp(1, sequences.max(1))
    }
}

/// What to do with a memory.
#[derive(Clone, Copy)]
pub enum Work<'a, T> {
    /// Read every token with the weights as they stand, W + U; the state stays. Chunks count from the first query.
    Read(&'a dyn Sequences<T>),
    /// Store. `probe` computes `loss_before` and `loss_after`.
    Store {
        /// What is stored.
        sequences: &'a dyn Sequences<T>,
        /// Whether ℓ is also taken at W + U before and after each chunk.
        probe: bool,
    },
    /// Read chunk by chunk, one chunk behind what is stored: `forward(read, store)` of the module in PyTorch.
    Online {
        /// The queries.
        read: &'a dyn Sequences<T>,
        /// What is stored: often the same.
        store: &'a dyn Sequences<T>,
        /// As for a store.
        probe: bool,
    },
}

/// Takes results as they come.
pub trait Sink<T>: Send {
    /// Rows of one sequence, by chunk and head. Sequences of a group take turns; after a divergence those of
    /// sequences that are never done do not count.
    fn metrics(&mut self, rows: &[ChunkMetrics]) -> Result<()>;
    /// What was read (rows, dim), from the token `start` of the given queries on.
    fn retrieved(&mut self, sequence: usize, start: usize, rows: ArrayView2<T>) -> Result<()>;
    /// Of a run with retention, kept chunks under the memory of one moment: by sequence, then moment, chunk and head.
    /// Turns and divergences as for [`metrics`](Self::metrics).
    fn retained(&mut self, _rows: &[Retained]) -> Result<()> {
        Ok(())
    }
    /// All rows of this sequence have come. Called in the order of sequences.
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
    /// Chunk, counted from the start of the memory's life (of the queries in a plain read).
    pub chunk: usize,
    /// Head; absent where heads are already combined.
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

/// How a run ended.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The first non-finite value of what ended the run: of the memory or, in a plain read, of a read. The state is then of
    /// no use, and what was read incomplete.
    pub divergence: Option<Divergence>,
    /// The first read of an online run that is not finite. The memory may be all the same: the run goes on.
    pub bad_read: Option<Divergence>,
    /// Rows of the metrics of sequences that are done: all, or those that came before the divergence.
    pub rows: usize,
    /// Queries of chunks past the end of what was stored, read with the last weights: the first such chunk.
    pub read_past_store: Option<usize>,
    /// Over all sequences, heads and kept chunks: Σ ℓ under the final memory and Σ ℓ at W; zeros without any.
    pub retained: [f64; 2],
    /// From inputs to results, without `input` and `output`.
    pub computing: Duration,
    /// Where its time went, added up over threads.
    pub phases: Phases,
    /// Waiting for blocks of tokens: with several threads they come in while others are computed.
    pub input: Duration,
    /// Handing results to the sink.
    pub output: Duration,
}

impl Outcome {
    /// The first value that is not finite, in the order of sequences and chunks. A chunk is read before it is stored.
    pub fn first_nonfinite(&self) -> Option<&Divergence> {
        self.bad_read.iter().chain(&self.divergence).min_by_key(|at| (at.sequence, at.chunk))
    }

    /// Takes in what a sequence's block came to. Whether that ends the sequence: a read does only where nothing is stored.
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

    /// Σ ℓ under the final memory ÷ Σ ℓ at W of the kept chunks: 0 is all there, 1 as if nothing had been stored.
    /// Absent where none was kept, after a divergence, and where it is not finite.
    pub fn retained_ratio(&self) -> Option<f64> {
        let [loss, at_w] = self.retained;
        Some(loss / at_w).filter(|ratio| self.divergence.is_none() && ratio.is_finite())
    }
}

/// What the engine spends its time on.
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

/// Seconds that the threads together spent in each part of a run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Phases {
    /// Norms, projections and gates of the tokens of both streams.
    pub project: f64,
    /// Losses and gradients at W.
    pub gradients: f64,
    /// The fused updates of the panels: gradients formed, S and U moved, everything read with W + U.
    #[serde(rename = "walk")]
    pub fused_update: f64,
    /// What a memory model does between its layers, of what is read.
    pub activate: f64,
    /// Heads combined, norm of what was read.
    pub combine: f64,
    /// Rows of the metrics, and the search for values that are not finite.
    pub metrics: f64,
    /// Kept chunks read again, where there is retention.
    pub retention: f64,
}

impl Phases {
    /// By name, in order.
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

/// What all tasks of a run share.
struct Context<'a, T: Real, M: MemoryModel<T>> {
    memory: &'a Memory<T, M>,
    plan: &'a Plan<'a, T>,
    /// Buffers that no task is using.
    scratch: &'a Mutex<Vec<M::Scratch>>,
    /// Nanoseconds by [`Phase`].
    phases: [AtomicU64; 7],
}

impl<T: Real, M: MemoryModel<T>> Context<'_, T, M> {
    fn timed<R>(&self, phase: Phase, work: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = work();
        self.phases[phase as usize].fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        result
    }

    /// Lends the buffers for a group of rows: as many as tasks run at once are ever made.
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

/// Runs a memory. Its large buffers stay for the next run of the same kind and size.
pub struct Engine<'m, T: Real, M: MemoryModel<T> = Attention> {
    memory: &'m Memory<T, M>,
    retention: Option<usize>,
    sizes: Option<Sizes>,
    runners: Vec<SequenceRunner<T>>,
    /// The tokens of each runner's next block.
    incoming: Vec<BlockTokens<T>>,
    scratch: Mutex<Vec<M::Scratch>>,
}

impl<'m, T: Real, M: MemoryModel<T>> Engine<'m, T, M> {
    /// An engine that has not run yet.
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

    /// With `Some(K)`, chunks K − 1, 2K − 1, … stay, keys and values, and each is read again after every K-th chunk
    /// that is stored later and after the last: [`Sink::retained`]. The run's own results stay the same, bit for bit.
    /// For n chunks that is (n / K)² / 2 reads of a chunk by every head, in memory a K-th of the sequence's keys and
    /// values; blocks are no longer than K chunks.
    #[must_use]
    pub fn with_retention(self, every: Option<usize>) -> Self {
        Self { retention: every, ..self }
    }

    /// Runs `work`. `tick` is told the tokens of each finished block (summed over sequences) and can stop the run.
    ///
    /// # Errors
    /// Settings that do not fit the state, failures of inputs and sink, and whatever `tick` returns; after any but the
    /// first the state is of no use. A divergence is no error: see [`Outcome`].
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

    /// What the buffers of sequences take. Scratch, of which each thread has its own, does not count.
    pub fn bytes(&self) -> usize {
        let runners = self.runners.iter().map(SequenceRunner::bytes).sum::<usize>();
        runners + self.incoming.iter().map(BlockTokens::bytes).sum::<usize>()
    }

    /// Buffers for so many sequences side by side.
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

/// Advances the sequences `group` side by side. A sequence that diverges ends itself and all after it; those before
/// it go on, so that what is reported is the first divergence in the order of sequences.
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
            // The next block comes in meanwhile: a thread with nothing to do falls asleep, and is slow to wake.
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
