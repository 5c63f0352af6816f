//! The engine on a GPU. It uses the same blocks, with all sequences and heads of a group side by side. Products
//! go through [`Device::multiply`], and attention within a chunk is one kernel forward and one backward.
//! `fused_update` takes a layer of the memory through the block's chunks with S and U in registers and forms
//! gradients from their thin factors. Gradients and states of every chunk are therefore never in memory.
//!
//! Chunks are divided into time segments that run side by side. The recurrences are linear, so the start of a
//! segment follows from the ends of the others when those start from zero. A segment has enough tokens that
//! computing these starts takes about as long as computing the factors. Host and device memory hold one block
//! of tokens each, so a sequence of any length can stream through.
//!
//! Matrices of heads are (sequences, heads, rows, columns). Transfers count as input and output, not as computing.
//!
//! - this file: blocks of tokens, one after another;
//! - `buffers`: buffers of a block on the device, time segments;
//! - `step`: the computation of a block on the device, kernel after kernel;
//! - `report`: the results of a block.

mod buffers;
mod report;
mod step;

use std::cell::Cell;
use std::ops::Range;
use std::time::Instant;

use ndarray::s;

use self::buffers::DeviceBuffers;
use self::step::{Marks, Step};
use super::tokens::BlockTokens;
use super::{Block, Memory, Outcome, Plan, Sink, Sizes, Work};
use crate::cuda::{Array, Device};
use crate::error::{Error, Result};
use crate::memory::State;
use crate::packed::Packed;
use crate::real::Real;

/// Rows of a block, over all sequences of a group. A launch takes some 5 µs and a block has about thirty of
/// them; this number of rows takes milliseconds.
const BLOCK_ROWS: usize = 32_768;
/// Most sequences that advance together.
const GROUP: usize = 1024;
/// A block's buffers may take the free memory divided by this.
const BUDGET_DIVISOR: usize = 2;
/// Rows and columns of the part of a weight that a block of threads processes, as in kernels.cu.
const TILE: usize = 64;
/// Most blocks in a grid's second dimension.
const MAX_HEADS: usize = 65_535;
/// Number of findings before those of heads.
const RANGES: usize = 2;

/// An engine that runs a memory on a device. Its buffers are reused by the next run of the same kind and size.
pub struct CudaEngine<'m, T: Real> {
    memory: &'m Memory<T>,
    device: &'m dyn Device,
    weights: Weights<'m, T>,
    buffers: Option<DeviceBuffers<'m, T>>,
    /// Bytes that the buffers of a block may take.
    budget: Option<usize>,
    /// Each sequence's next block, in host memory.
    incoming: Vec<BlockTokens<T>>,
    /// Retrieved rows of a block.
    outgoing: Vec<T>,
    /// Marks between phases, reused for every block.
    marks: Marks,
    /// Whether a large product ran.
    large: Cell<bool>,
}

/// Parameters on the device.
struct Weights<'d, T> {
    /// W in file order.
    base: Array<'d, T>,
    /// [W_q W_k W_v1]: (d, 3d)
    qkv: Array<'d, T>,
    keys_values: Array<'d, T>,
    queries: Array<'d, T>,
    gates: Array<'d, T>,
    combine: Option<Array<'d, T>>,
    store_norm: Option<Array<'d, T>>,
    retrieve_norm: Option<Array<'d, T>>,
    post_norm: Option<Array<'d, T>>,
}

impl<'m, T: Real> CudaEngine<'m, T> {
    /// Uploads the parameters to the device.
    ///
    /// # Errors
    /// A program whose parts have no kernels, and failures of the device.
    pub fn new(memory: &'m Memory<T>, device: &'m dyn Device) -> Result<Self> {
        if let Some(reason) = memory.program.needs_cpu() {
            return Err(Error::Cuda(format!("{reason}; use --device cpu")));
        }
        let projections = &memory.projections;
        let upload = |packed: &Packed<T>| {
            let matrix = packed.to_matrix();
            Array::from_slice(device, matrix.as_slice().expect("standard layout"))
        };
        let norm = |norm: &Option<ndarray::Array1<T>>| {
            norm.as_ref().map(|norm| Array::from_slice(device, &norm.to_vec())).transpose()
        };
        let d = memory.dimensions.dim_head;
        let qkv: Vec<T> = (0..d)
            .flat_map(|row| (0..3).flat_map(move |p| &memory.base[(p * d + row) * d..][..d]))
            .copied()
            .collect();
        Ok(Self {
            memory,
            device,
            weights: Weights {
                base: Array::from_slice(device, &memory.base)?,
                qkv: Array::from_slice(device, &qkv)?,
                keys_values: upload(&projections.keys_values)?,
                queries: upload(&projections.queries)?,
                gates: upload(&projections.gates)?,
                combine: projections.combine.as_ref().map(upload).transpose()?,
                store_norm: norm(&projections.store_norm)?,
                retrieve_norm: norm(&projections.retrieve_norm)?,
                post_norm: norm(&projections.post_norm)?,
            },
            buffers: None,
            budget: None,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            marks: Marks::default(),
            large: Cell::default(),
        })
    }

    /// Runs `work` like [`Engine::run`](super::Engine::run), without retention.
    pub fn run(
        &mut self,
        state: &mut State<T>,
        work: Work<'_, T>,
        sink: &mut dyn Sink<T>,
        tick: &mut (dyn FnMut(usize) -> Result<()> + Send),
    ) -> Result<Outcome> {
        let begin = Instant::now();
        state.lay_out();
        let mut plan = Plan::new(self.memory, state, work, None)?;
        let group = self.prepare_buffers(&mut plan)?;
        let mut outcome = Outcome { read_past_store: plan.read_past_store, ..Outcome::default() };
        for first in (0..plan.sequences).step_by(group) {
            let sequences = first..plan.sequences.min(first + group);
            self.run_group(&plan, state, sequences, sink, tick, &mut outcome)?;
            if outcome.divergence.is_some() {
                break;
            }
        }
        if outcome.divergence.is_none() {
            plan.finish(state)?;
        }
        outcome.computing = begin.elapsed().saturating_sub(outcome.input + outcome.output);
        Ok(outcome)
    }

    /// Returns the implementation of large products, if any ran.
    pub fn products(&self) -> Option<String> {
        self.large.get().then(|| self.device.products())
    }

    /// Returns the bytes of parameters and buffers on the device.
    pub fn bytes(&self) -> usize {
        let Weights { base, qkv, keys_values, queries, gates, combine, store_norm, retrieve_norm, post_norm } =
            &self.weights;
        let always = [base, qkv, keys_values, queries, gates];
        let weights =
            always.into_iter().chain(combine).chain(store_norm).chain(retrieve_norm).chain(post_norm);
        weights.map(Array::bytes).sum::<usize>() + self.buffers.as_ref().map_or(0, DeviceBuffers::bytes)
    }

    /// Allocates buffers for as many rows as are worthwhile and fit. Returns the number of sequences of a group.
    fn prepare_buffers(&mut self, plan: &mut Plan<'_, T>) -> Result<usize> {
        let fits = |made: &Option<DeviceBuffers<'_, T>>, sizes: Sizes, group: usize| {
            made.as_ref().is_some_and(|buffers| buffers.sizes == sizes && buffers.sequences == group)
        };
        // Querying the free memory takes a tenth of the time of a short sequence.
        if let Some(budget) = self.budget {
            let group = self.divide(plan, budget);
            if fits(&self.buffers, plan.sizes(), group) {
                return Ok(group);
            }
        }
        let taken = self.buffers.as_ref().map_or(0, DeviceBuffers::bytes);
        let budget = (self.device.free_bytes()? + taken) / BUDGET_DIVISOR;
        self.budget = Some(budget);
        let group = self.divide(plan, budget);
        let sizes = plan.sizes();
        if !fits(&self.buffers, sizes, group) {
            self.buffers = None;
            self.incoming = (0..group).map(|_| BlockTokens::new(sizes, self.memory.dimensions.dim)).collect();
            self.buffers = Some(DeviceBuffers::new(self.device, self.memory, sizes, group)?);
        }
        Ok(group)
    }

    /// Sets the rows of a block so that its buffers take at most `budget` bytes. Returns the number of
    /// sequences of a group.
    fn divide(&self, plan: &mut Plan<'_, T>, budget: usize) -> usize {
        let c = plan.chunk_size;
        let dimensions = self.memory.dimensions;
        let (d, h) = (dimensions.dim_head, dimensions.heads);
        let elements = self.memory.base.len();
        // Bytes of one row of a sequence in `DeviceBuffers`, and bytes of a sequence whatever its rows.
        let tiles = d.div_ceil(TILE);
        let of_reader = 5 * d + if tiles > 1 { tiles * 3 * d } else { 0 };
        // Factors and intermediate results; starts of segments; scores; readers; sums, norms, gates and losses
        // of chunks.
        let of_head = 13 * d + 16 * d + 2 * c + 3 * of_reader + 8 + (16 * tiles * tiles + 40).div_ceil(c);
        let of_row = (h * of_head + 2 * h * d + 4 * dimensions.dim) * size_of::<T>();
        let of_sequence = 6 * h * elements * size_of::<T>();
        let most = |bytes: usize| (bytes / of_row).min(BLOCK_ROWS);
        let longest = plan.read_end.max(plan.store_end).saturating_sub(plan.first_chunk * c).max(1);
        // Sequences run side by side while each block is still large enough to be worth its launches.
        let wanted = (most(budget) / longest.min(4096).next_multiple_of(c)).clamp(1, GROUP);
        let group = wanted.min(plan.sequences.max(1)).min((budget / 2 / of_sequence).max(1));
        // All heads of all sequences, and all sequences, are the second dimension of a grid.
        let group = group.min((MAX_HEADS / (h + 1)).max(1));
        let left = budget.saturating_sub(group * of_sequence);
        plan.block_rows = (most(left) / group / c).max(1) * c;
        group
    }

    fn run_group(
        &mut self,
        plan: &Plan<'_, T>,
        state: &mut State<T>,
        group: Range<usize>,
        sink: &mut dyn Sink<T>,
        tick: &mut (dyn FnMut(usize) -> Result<()> + Send),
        outcome: &mut Outcome,
    ) -> Result<()> {
        let Self { memory, device, weights, buffers, incoming, outgoing, marks, large, .. } = self;
        let buffers = buffers.as_mut().expect("made before");
        let tokens = &mut incoming[..group.len()];
        let load = |tokens: &mut [BlockTokens<T>], block: Block| {
            let begin = Instant::now();
            let mut sequences = tokens.iter_mut().zip(group.clone());
            sequences.try_for_each(|(tokens, sequence)| tokens.load(plan, sequence, block))?;
            Ok::<_, Error>(begin.elapsed())
        };
        let transfer = Instant::now();
        buffers.send_state(*device, state, group.clone())?;
        let mut blocks = plan.blocks().peekable();
        if let Some(&first) = blocks.peek() {
            load(tokens, first)?;
        }
        outcome.input += transfer.elapsed();

        let mut active = group.len();
        let mut rows = vec![0; active];
        while let Some(block) = blocks.next() {
            let sending = Instant::now();
            let parts =
                |rows: fn(&BlockTokens<T>) -> &[T]| tokens[..active].iter().map(rows).collect::<Vec<_>>();
            let [stored, read] = &mut buffers.tokens;
            stored.upload_parts(0, &parts(|tokens| tokens.store.elements()))?;
            read.upload_parts(0, &parts(|tokens| tokens.read.elements()))?;
            device.synchronize()?;
            outcome.input += sending.elapsed();

            let step = Step { memory, device: *device, weights, plan, block, sequences: active, large };
            step.compute(buffers, marks)?;
            let loading = match blocks.peek() {
                Some(&next) => load(&mut tokens[..active], next)?,
                None => std::time::Duration::ZERO,
            };
            device.synchronize()?;
            // The device has worked meanwhile: input time after its end counts as waiting.
            let computed = step.add_phases(marks, outcome)?;
            outcome.input += loading.saturating_sub(computed);

            let receiving = Instant::now();
            let mut measured = step.measured(buffers)?;
            outcome.output += receiving.elapsed();
            step.rescale(buffers, &mut measured)?;
            let writing = Instant::now();
            let output = step.output(buffers, outgoing)?;
            for (i, rows) in rows.iter_mut().enumerate().take(active) {
                let (reported, [divergence, bad_read]) =
                    step.report(buffers, &measured, group.start + i, i)?;
                sink.metrics(&reported)?;
                *rows += reported.len();
                let start = plan.first_query.clamp(block.read.start, block.read.end);
                let read = output.slice(s![i, start - block.read.start.., ..]);
                if read.nrows() > 0 && divergence.is_none() && bad_read.is_none() {
                    sink.retrieved(group.start + i, start.saturating_sub(plan.first_query), read)?;
                }
                if outcome.ends(divergence, bad_read, plan.store.is_some()) {
                    active = i;
                    break;
                }
            }
            outcome.output += writing.elapsed();
            if block.store.len() > 0 {
                buffers.state.swap(0, 1);
            }
            tick(active * block.store.len().max(block.read.len()))?;
            if active == 0 {
                break;
            }
        }
        if plan.store.is_some() {
            let receiving = Instant::now();
            buffers.receive_state(state, group.start..group.start + active)?;
            outcome.output += receiving.elapsed();
        }
        let last = outcome.divergence.as_ref().map_or(group.end, |divergence| divergence.sequence + 1);
        outcome.rows += rows[..last - group.start].iter().sum::<usize>();
        (group.start..last).try_for_each(|sequence| sink.sequence_done(sequence))
    }
}
