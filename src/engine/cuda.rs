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
//! - this file: the executor, which computes a block;
//! - `buffers`: buffers of a block and states of sequences on the device, time segments;
//! - `step`: the computation of a block on the device, kernel after kernel;
//! - `report`: the results of a block.

mod buffers;
mod report;
mod step;

use std::cell::Cell;
use std::ops::Range;
use std::time::{Duration, Instant};

use self::buffers::{DeviceBuffers, DeviceState};
use self::step::Step;
use super::driver::{BlockResults, BlockStep, Buffers, Executor, Waits};
use super::plan::Plan;
use super::tokens::BlockTokens;
use super::{Engine, Memory};
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

/// Computes blocks on a GPU.
pub struct CudaExecutor<'m, T: Real> {
    memory: &'m Memory<T>,
    device: &'m dyn Device,
    weights: Weights<'m, T>,
    /// Bytes that the buffers of a block may take.
    budget: Option<usize>,
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

impl<'m, T: Real> Engine<CudaExecutor<'m, T>> {
    /// Creates an engine that runs `memory` on a device, and uploads the parameters. It has no retention.
    ///
    /// # Errors
    /// A program whose parts have no kernels, and failures of the device.
    pub fn on_gpu(memory: &'m Memory<T>, device: &'m dyn Device) -> Result<Self> {
        Ok(Self::driving(CudaExecutor::new(memory, device)?))
    }

    /// Returns the implementation of large products, if any ran.
    pub fn products(&self) -> Option<String> {
        self.executor.large.get().then(|| self.executor.device.products())
    }
}

impl<'m, T: Real> CudaExecutor<'m, T> {
    fn new(memory: &'m Memory<T>, device: &'m dyn Device) -> Result<Self> {
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
            budget: None,
            large: Cell::default(),
        })
    }

    /// Sets the rows of a block so that its buffers take at most `budget` bytes. Returns the number of
    /// sequences of a group.
    fn divide_by(&self, plan: &mut Plan<'_, T>, budget: usize) -> usize {
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

    fn step<'a>(&'a self, step: &BlockStep<'a, T>) -> Step<'a, T> {
        Step {
            memory: self.memory,
            device: self.device,
            weights: &self.weights,
            plan: step.plan,
            block: step.block,
            sequences: step.sequences.len(),
            large: &self.large,
        }
    }
}

impl<'m, T: Real> Executor for CudaExecutor<'m, T> {
    type Number = T;
    type Prepared = DeviceBuffers<'m, T>;
    type Running = DeviceState<'m, T>;

    fn memory(&self) -> &Memory<T> {
        self.memory
    }

    /// Chooses as many rows as are worthwhile and fit the device.
    fn divide(
        &mut self,
        plan: &mut Plan<'_, T>,
        _: &State<T>,
        held: Option<&Buffers<Self>>,
    ) -> Result<usize> {
        if plan.retention.is_some() {
            let reason = "chunks are kept by the CPU's engine only; use --device cpu".to_owned();
            return Err(Error::rejected("--retention", reason));
        }
        // Querying the free memory takes a tenth of the time of a short sequence.
        if let Some(budget) = self.budget {
            let group = self.divide_by(plan, budget);
            if held.is_some_and(|held| held.sizes == plan.sizes() && held.sequences == group) {
                return Ok(group);
            }
        }
        let taken = held.map_or(0, |held| held.prepared.bytes() + held.running.bytes());
        let budget = (self.device.free_bytes()? + taken) / BUDGET_DIVISOR;
        self.budget = Some(budget);
        Ok(self.divide_by(plan, budget))
    }

    fn allocate(&mut self, plan: &Plan<'_, T>, sequences: usize) -> Result<(Self::Prepared, Self::Running)> {
        let (memory, sizes) = (self.memory, plan.sizes());
        let buffers = DeviceBuffers::new(self.device, memory, sizes, sequences)?;
        Ok((buffers, DeviceState::new(self.device, memory, sizes, sequences)?))
    }

    fn bytes(&self, buffers: Option<&Buffers<Self>>) -> usize {
        let Weights { base, qkv, keys_values, queries, gates, combine, store_norm, retrieve_norm, post_norm } =
            &self.weights;
        let always = [base, qkv, keys_values, queries, gates];
        let weights =
            always.into_iter().chain(combine).chain(store_norm).chain(retrieve_norm).chain(post_norm);
        let of_buffers = buffers.map_or(0, |held| held.prepared.bytes() + held.running.bytes());
        weights.map(Array::bytes).sum::<usize>() + of_buffers
    }

    fn load(
        &self,
        running: &mut Self::Running,
        state: &State<T>,
        sequences: Range<usize>,
    ) -> Result<Duration> {
        let sending = Instant::now();
        running.send(self.device, state, sequences)?;
        Ok(sending.elapsed())
    }

    fn take(&self, prepared: &mut Self::Prepared, tokens: &mut [BlockTokens<T>]) -> Result<Duration> {
        let sending = Instant::now();
        let parts = |rows: fn(&BlockTokens<T>) -> &[T]| tokens.iter().map(rows).collect::<Vec<_>>();
        let [stored, read] = &mut prepared.tokens;
        stored.upload_parts(0, &parts(|tokens| tokens.store.elements()))?;
        read.upload_parts(0, &parts(|tokens| tokens.read.elements()))?;
        self.device.synchronize()?;
        Ok(sending.elapsed())
    }

    fn prepare(&self, step: &BlockStep<'_, T>, prepared: &mut Self::Prepared) -> Result<()> {
        self.step(step).prepare(prepared)
    }

    fn advance(
        &self,
        step: &BlockStep<'_, T>,
        prepared: &mut Self::Prepared,
        running: &mut Self::Running,
        read_ahead: &mut (dyn FnMut() -> Result<Duration> + Send),
    ) -> Result<Waits> {
        let of_block = self.step(step);
        of_block.advance(prepared, running)?;
        let loading = read_ahead()?;
        self.device.synchronize()?;
        // The device has worked meanwhile: input time after its end counts as waiting.
        let computed = prepared.marks.add_phases(self.device, step.clock)?;
        let receiving = Instant::now();
        let mut measured = of_block.measured(prepared)?;
        let mut output = receiving.elapsed();
        of_block.rescale(prepared, running, &mut measured)?;
        let receiving = Instant::now();
        of_block.receive_output(prepared)?;
        output += receiving.elapsed();
        prepared.measured = measured;
        if step.block.store.len() > 0 {
            running.arrays.swap(0, 1);
        }
        Ok(Waits { input: loading.saturating_sub(computed), output })
    }

    fn results<'a>(
        &self,
        step: &BlockStep<'_, T>,
        prepared: &'a Self::Prepared,
        _: &'a Self::Running,
        i: usize,
    ) -> Result<BlockResults<'a, T>> {
        self.step(step).results(prepared, step.sequences.start + i, i)
    }

    fn save(
        &self,
        running: &Self::Running,
        state: &mut State<T>,
        sequences: Range<usize>,
    ) -> Result<Duration> {
        let receiving = Instant::now();
        running.receive(state, sequences)?;
        Ok(receiving.elapsed())
    }
}
