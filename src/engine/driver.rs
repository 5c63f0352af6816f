//! The driver of a run. It divides sequences into groups and tokens into blocks, reads tokens ahead, passes results to the
//! sink in the order of sequences, and ends sequences that diverge. An [`Executor`] computes single blocks: see
//! [`cpu`](super::cpu) and [`cuda`](super::cuda).

use std::borrow::Cow;
use std::ops::Range;
use std::time::{Duration, Instant};

use ndarray::{ArrayView2, s};

use super::outcome::{Divergence, Outcome, PhaseClock};
use super::plan::{Block, Plan, Sizes};
use super::tokens::BlockTokens;
use super::{Memory, Probes, Sink, Work};
use crate::error::Result;
use crate::memory::State;
use crate::metrics::{ChunkMetrics, Retained, Spectrum};
use crate::real::Real;

/// Computes blocks of tokens for a group of sequences that advance side by side.
///
/// A block is computed in two parts. [`prepare`](Self::prepare) does what depends on the block's tokens alone: norms,
/// projections, gates and, in a program without refresh, gradients. [`advance`](Self::advance) takes the states of the
/// sequences through the block. The parts share only `Prepared`, so later blocks may be prepared, each in buffers of its
/// own, before the states have reached them.
pub trait Executor {
    /// Element type of a run.
    type Number: Real;
    /// A block's tokens, and what is computed from them, for all sequences of a group.
    type Prepared;
    /// States of the sequences of a group.
    type Running;

    /// Returns the memory that this executor runs.
    fn memory(&self) -> &Memory<Self::Number>;

    /// Sets the rows of the plan's blocks, and returns the number of sequences that advance together. `held` are the
    /// buffers of the run before.
    ///
    /// # Errors
    /// Runs that need more memory than there is, and work that this executor does not do.
    fn divide(
        &mut self,
        plan: &mut Plan<'_, Self::Number>,
        state: &State<Self::Number>,
        held: Option<&Buffers<Self>>,
    ) -> Result<usize>;

    /// Allocates buffers for groups of `sequences` sequences.
    ///
    /// # Errors
    /// Failures of a device.
    fn allocate(
        &mut self,
        plan: &Plan<'_, Self::Number>,
        sequences: usize,
    ) -> Result<(Self::Prepared, Self::Running)>;

    /// Returns the bytes of the parameters that this executor copied, and of its buffers.
    fn bytes(&self, buffers: Option<&Buffers<Self>>) -> usize;

    /// Loads the states of some sequences, and returns the time of transfers to a device. All sequences of a plain read
    /// share a state of one sequence.
    ///
    /// # Errors
    /// Failures of a device.
    fn load(
        &self,
        running: &mut Self::Running,
        state: &State<Self::Number>,
        sequences: Range<usize>,
    ) -> Result<Duration>;

    /// Takes the tokens of a block, and returns the time of transfers to a device. What `tokens` holds afterwards is
    /// undefined.
    ///
    /// # Errors
    /// Failures of a device.
    fn take(
        &self,
        prepared: &mut Self::Prepared,
        tokens: &mut [BlockTokens<Self::Number>],
    ) -> Result<Duration>;

    /// Computes what depends on the taken tokens alone.
    ///
    /// # Errors
    /// Failures of a device.
    fn prepare(&self, step: &BlockStep<'_, Self::Number>, prepared: &mut Self::Prepared) -> Result<()>;

    /// Takes the states through the block, and calls `read_ahead` meanwhile. Returns the times spent waiting for it and
    /// for results.
    ///
    /// # Errors
    /// Those of `read_ahead`, and failures of a device.
    fn advance(
        &self,
        step: &BlockStep<'_, Self::Number>,
        prepared: &mut Self::Prepared,
        running: &mut Self::Running,
        read_ahead: &mut (dyn FnMut() -> Result<Duration> + Send),
    ) -> Result<Waits>;

    /// Returns the results of the block for the `i`-th sequence of the group.
    ///
    /// # Errors
    /// Failures of a device.
    fn results<'a>(
        &self,
        step: &BlockStep<'_, Self::Number>,
        prepared: &'a Self::Prepared,
        running: &'a Self::Running,
        i: usize,
    ) -> Result<BlockResults<'a, Self::Number>>;

    /// Writes the states of some sequences back, and returns the time of transfers from a device.
    ///
    /// # Errors
    /// Failures of a device.
    fn save(
        &self,
        running: &Self::Running,
        state: &mut State<Self::Number>,
        sequences: Range<usize>,
    ) -> Result<Duration>;
}

/// One block of a group of sequences.
pub struct BlockStep<'a, T> {
    pub plan: &'a Plan<'a, T>,
    pub block: Block,
    /// Sequences of the group that still run.
    pub sequences: Range<usize>,
    pub clock: &'a PhaseClock,
}

/// Times of a block that are not computation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waits {
    pub input: Duration,
    pub output: Duration,
}

/// Results of a block for one sequence.
pub struct BlockResults<'a, T> {
    /// Metrics by chunk and head, up to a divergence.
    pub metrics: Cow<'a, [ChunkMetrics]>,
    /// Output rows of the block's queries: (rows, D)
    pub output: ArrayView2<'a, T>,
    /// Losses of kept chunks under the memory at the end of the block, if they are read again there: by chunk and head.
    pub retained: &'a [Retained],
    /// Losses of the block's last chunk under the memory before the block, if it is kept: by head.
    pub unstored: &'a [Retained],
    /// Singular values of the updates after the block, if they are taken there: by head and weight.
    pub spectra: &'a [Spectrum],
    /// The first non-finite metric.
    pub divergence: Option<Divergence>,
    /// The first non-finite value read.
    pub bad_read: Option<Divergence>,
}

/// Buffers of a group of sequences.
pub struct Buffers<E: Executor + ?Sized> {
    /// Most rows of a block.
    pub sizes: Sizes,
    /// Most sequences of a group.
    pub sequences: usize,
    pub prepared: E::Prepared,
    pub running: E::Running,
    /// Tokens of each sequence's next block.
    pub incoming: Vec<BlockTokens<E::Number>>,
}

/// An engine that runs a memory. Its large buffers are reused by the next run of the same kind and size.
pub struct Engine<E: Executor> {
    pub(super) executor: E,
    pub(super) retention: Option<usize>,
    pub(super) probes: Probes,
    pub(super) buffers: Option<Buffers<E>>,
}

impl<E: Executor> Engine<E> {
    /// Creates a driver of an executor.
    pub(super) fn driving(executor: E) -> Self {
        Self { executor, retention: None, probes: Probes::default(), buffers: None }
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

    /// Takes further probes of each chunk, on the CPU. The other results of the run stay the same, bit for bit, but for the
    /// control of a retention, which depends on the blocks.
    #[must_use]
    pub fn with_probes(self, probes: Probes) -> Self {
        Self { probes, ..self }
    }

    /// Runs `work`. `tick` receives the number of tokens of each finished block, summed over sequences, and can
    /// stop the run.
    ///
    /// # Errors
    /// Settings that do not fit the state, failures of the inputs, the sink and the device, and any error that `tick`
    /// returns. After any of these but the first the state is useless. A divergence is not an error: see
    /// [`Outcome`]. After it the states of the sequences before it are good, and those from it on are useless.
    pub fn run(
        &mut self,
        state: &mut State<E::Number>,
        work: Work<'_, E::Number>,
        sink: &mut dyn Sink<E::Number>,
        tick: &mut (dyn FnMut(usize) -> Result<()> + Send),
    ) -> Result<Outcome> {
        let begin = Instant::now();
        state.lay_out();
        let mut plan =
            Plan::new(self.executor.memory(), state, work, self.retention)?.with_probes(self.probes);
        let group = self.executor.divide(&mut plan, state, self.buffers.as_ref())?;
        let sizes = plan.sizes();
        if self.buffers.as_ref().is_none_or(|held| held.sizes != sizes || held.sequences != group) {
            self.buffers = None;
            let (prepared, running) = self.executor.allocate(&plan, group)?;
            let dim = self.executor.memory().dimensions.dim;
            let incoming = (0..group).map(|_| BlockTokens::new(sizes, dim)).collect();
            self.buffers = Some(Buffers { sizes, sequences: group, prepared, running, incoming });
        }
        let clock = PhaseClock::default();
        let mut outcome = Outcome { read_past_store: plan.read_past_store, ..Outcome::default() };
        for first in (0..plan.sequences).step_by(group) {
            let sequences = first..plan.sequences.min(first + group);
            self.run_group((&plan, &clock), state, sequences, sink, tick, &mut outcome)?;
            if outcome.divergence.is_some() {
                break;
            }
        }
        plan.finish(state)?;
        outcome.phases = clock.phases();
        outcome.computing = begin.elapsed().saturating_sub(outcome.input + outcome.output);
        Ok(outcome)
    }

    /// Returns the bytes of buffers, and of the parameters on a device. Scratch buffers of threads are not counted.
    pub fn bytes(&self) -> usize {
        let incoming = self.buffers.iter().flat_map(|buffers| &buffers.incoming);
        self.executor.bytes(self.buffers.as_ref()) + incoming.map(BlockTokens::bytes).sum::<usize>()
    }

    /// Advances the sequences `group` side by side. A divergence ends its sequence and all later ones; earlier
    /// sequences continue. The first divergence in the order of sequences is therefore the one reported.
    fn run_group(
        &mut self,
        (plan, clock): (&Plan<'_, E::Number>, &PhaseClock),
        state: &mut State<E::Number>,
        group: Range<usize>,
        sink: &mut dyn Sink<E::Number>,
        tick: &mut (dyn FnMut(usize) -> Result<()> + Send),
        outcome: &mut Outcome,
    ) -> Result<()> {
        let Self { executor, buffers, .. } = self;
        let Buffers { prepared, running, incoming, .. } = buffers.as_mut().expect("allocated before");
        let mut sequences = group.clone();
        let mut rows = vec![0; group.len()];
        let load = |incoming: &mut [BlockTokens<E::Number>], block: Block| {
            let begin = Instant::now();
            let mut sequences = incoming.iter_mut().zip(group.start..);
            sequences.try_for_each(|(tokens, sequence)| tokens.load(plan, sequence, block))?;
            Ok(begin.elapsed())
        };
        outcome.input += executor.load(running, state, group.clone())?;
        let mut blocks = plan.blocks().peekable();
        if let Some(&first) = blocks.peek() {
            outcome.input += load(&mut incoming[..group.len()], first)?;
        }
        while let Some(block) = blocks.next() {
            let incoming = &mut incoming[..sequences.len()];
            outcome.input += executor.take(prepared, incoming)?;
            let step = BlockStep { plan, block, sequences: sequences.clone(), clock };
            executor.prepare(&step, prepared)?;
            let next = blocks.peek().copied();
            let mut read_ahead = || next.map_or(Ok(Duration::ZERO), |next| load(incoming, next));
            let waits = executor.advance(&step, prepared, running, &mut read_ahead)?;
            outcome.input += waits.input;
            outcome.output += waits.output;

            let writing = Instant::now();
            let first_new = plan.first_query.clamp(block.read.start, block.read.end);
            for (i, sequence) in step.sequences.clone().enumerate() {
                let results = executor.results(&step, prepared, running, i)?;
                sink.metrics(&results.metrics)?;
                rows[i] += results.metrics.len();
                // Rows that an earlier call has already returned are skipped.
                let retrieved = results.output.slice_move(s![first_new - block.read.start.., ..]);
                if retrieved.nrows() > 0 && results.divergence.is_none() && results.bad_read.is_none() {
                    sink.retrieved(sequence, first_new.saturating_sub(plan.first_query), retrieved)?;
                }
                if !results.unstored.is_empty() {
                    sink.unstored(results.unstored)?;
                    let [loss, at_w] = &mut outcome.unstored;
                    *loss += results.unstored.iter().map(|of| of.loss).sum::<f64>();
                    *at_w += results.unstored.iter().map(|of| of.loss_at_w).sum::<f64>();
                }
                if !results.retained.is_empty() {
                    sink.retained(results.retained)?;
                    if block.store.end == plan.store_end {
                        let [loss, at_w] = &mut outcome.retained;
                        *loss += results.retained.iter().map(|kept| kept.loss).sum::<f64>();
                        *at_w += results.retained.iter().map(|kept| kept.loss_at_w).sum::<f64>();
                    }
                }
                if !results.spectra.is_empty() {
                    sink.spectra(results.spectra)?;
                }
                if outcome.ends(results.divergence, results.bad_read, plan.store.is_some()) {
                    sequences.end = sequence;
                    break;
                }
            }
            outcome.output += writing.elapsed();
            tick(sequences.len() * block.store.len().max(block.read.len()))?;
            if sequences.is_empty() {
                break;
            }
        }
        if plan.store.is_some() {
            outcome.output += executor.save(running, state, sequences)?;
        }
        let last = outcome.divergence.as_ref().map_or(group.end, |divergence| divergence.sequence + 1);
        outcome.rows += rows[..last - group.start].iter().sum::<usize>();
        (group.start..last).try_for_each(|sequence| sink.sequence_done(sequence))
    }
}
