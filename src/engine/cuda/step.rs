//! The computation of one block on the device, kernel after kernel.

use std::cell::Cell;
use std::time::Duration;

use super::buffers::{DeviceBuffers, DeviceState, TILES, TimeSegments, in_tiles, padded};
use super::{RANGES, TILE, Weights};
use crate::cuda::{Argument, Array, Device, Launch, Mark, Matrix, Product, kernel, tile_bytes};
use crate::engine::Memory;
use crate::engine::outcome::{Phase, PhaseClock};
use crate::engine::plan::{Block, Plan};
use crate::error::{Error, Result};
use crate::memory::Gate;
use crate::norm::least_trusted;
use crate::real::Real;

/// Threads of every block of threads.
const THREADS: u32 = 256;
const WARPS: usize = THREADS as usize / 32;
/// A null pointer.
const NULL: Argument = Argument::Address(0);
/// Most blocks of kernels that process one element per thread.
const MAX_BLOCKS: usize = 4096;
/// Number of parts in which chunks are read side by side where nothing is stored.
const READ_PARTS: usize = 256;

/// Rows (…, D) and the weight of their norm, if any.
struct RowBatch<'a, T> {
    weight: &'a Option<Array<'a, T>>,
    rows: &'a Array<'a, T>,
    number: usize,
}

/// The computation of a block of some sequences.
pub(super) struct Step<'a, T: Real> {
    pub(super) memory: &'a Memory<T>,
    pub(super) device: &'a dyn Device,
    pub(super) weights: &'a Weights<'a, T>,
    pub(super) plan: &'a Plan<'a, T>,
    pub(super) block: Block,
    pub(super) sequences: usize,
    /// Whether the step contained a large product.
    pub(super) large: &'a Cell<bool>,
}

/// Marks between phases: the start, then the end of each phase.
#[derive(Default)]
pub(super) struct Marks {
    made: Vec<Mark>,
    ended: Vec<Phase>,
}

impl Marks {
    fn start(&mut self, device: &dyn Device) -> Result<()> {
        self.ended.clear();
        self.note(device)
    }

    fn end(&mut self, phase: Phase, device: &dyn Device) -> Result<()> {
        self.ended.push(phase);
        self.note(device)
    }

    fn note(&mut self, device: &dyn Device) -> Result<()> {
        if let Some(mark) = self.made.get_mut(self.ended.len()) {
            return device.mark_anew(mark);
        }
        self.made.push(device.mark()?);
        Ok(())
    }

    /// Adds the times between marks to the phases and returns their sum.
    pub(super) fn add_phases(&self, device: &dyn Device, clock: &PhaseClock) -> Result<Duration> {
        let mut all = Duration::ZERO;
        for (pair, &phase) in self.made.windows(2).zip(&self.ended) {
            let time = Duration::from_secs_f64(device.seconds(&pair[0], &pair[1])?);
            clock.add(phase, time);
            all += time;
        }
        Ok(all)
    }
}

impl<T: Real> Step<'_, T> {
    pub(super) fn d(&self) -> usize {
        self.memory.dimensions.dim_head
    }

    pub(super) fn c(&self) -> usize {
        self.memory.chunk_size()
    }

    /// Number of heads over all sequences.
    pub(super) fn heads(&self) -> usize {
        self.sequences * self.memory.dimensions.heads
    }

    /// Number of stored chunks per head.
    pub(super) fn chunks(&self) -> usize {
        self.block.store.len() / self.c()
    }

    /// Number of chunks read per head; the last may be incomplete.
    fn query_chunks(&self) -> usize {
        self.block.read.len().div_ceil(self.c())
    }

    fn launch(&self, name: &str, grid: [usize; 3], shared: usize, arguments: &[Argument]) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let launch = Launch { grid: grid.map(|n| n as u32), block: THREADS, shared: shared as u32 };
        self.device.launch(&kernel(name, T::TYPE), launch, arguments)
    }

    /// Launches a kernel with one warp per row.
    fn rows(&self, name: &str, rows: usize, arguments: &[Argument]) -> Result<()> {
        self.launch(name, [rows.div_ceil(WARPS), 1, 1], 0, arguments)
    }

    /// Launches a kernel with one or more elements per thread.
    fn elements(&self, name: &str, elements: usize, arguments: &[Argument]) -> Result<()> {
        self.launch(name, [elements.div_ceil(THREADS as usize).min(MAX_BLOCKS), 1, 1], 0, arguments)
    }

    fn multiply(&self, batch: usize, size: [usize; 3], scale: f64, [a, b, c]: [Matrix; 3]) -> Result<()> {
        if batch * size[0] * size[1] == 0 {
            return Ok(());
        }
        let product = Product { dtype: T::TYPE, batch, size, scale, a, b, c };
        self.large.set(self.large.get() || !product.is_small());
        self.device.multiply(&product)
    }

    /// Queues what depends on the tokens alone.
    pub(super) fn prepare(&self, buffers: &mut DeviceBuffers<'_, T>) -> Result<()> {
        buffers.marks.start(self.device)?;
        // Nothing has been found yet.
        self.device.fill(buffers.findings.address(0), 0xFF, buffers.findings.bytes())?;
        self.project(buffers)?;
        buffers.marks.end(Phase::Project, self.device)?;
        self.loss_and_gradient(buffers)?;
        buffers.marks.end(Phase::Gradients, self.device)
    }

    /// Queues everything else.
    pub(super) fn advance(
        &self,
        buffers: &mut DeviceBuffers<'_, T>,
        state: &mut DeviceState<'_, T>,
    ) -> Result<()> {
        self.segment_starts(buffers, state)?;
        self.fused_update(buffers, state, 0, 1.0)?;
        buffers.marks.end(Phase::FusedUpdate, self.device)?;
        self.activate(buffers)?;
        buffers.marks.end(Phase::Activate, self.device)?;
        self.fused_update(buffers, state, 1, 1.0)?;
        self.weight_norms(buffers)?;
        buffers.marks.end(Phase::FusedUpdate, self.device)?;
        self.combine(buffers)?;
        buffers.marks.end(Phase::Combine, self.device)?;
        self.measure(buffers)?;
        buffers.marks.end(Phase::Metrics, self.device)
    }

    /// Computes norms, keys, values, queries and gates.
    fn project(&self, buffers: &mut DeviceBuffers<'_, T>) -> Result<()> {
        let dimensions = self.memory.dimensions;
        let (dim, d, h, c) = (dimensions.dim, self.d(), dimensions.heads, self.c());
        let inner = dimensions.inner();
        let (stored, read) = (self.block.store.len(), self.block.read.len());
        let weights = self.weights;
        let [stored_rows, read_rows] = [stored, read].map(|rows| self.sequences * rows);
        let [of_store, of_read] = &buffers.tokens;
        self.norm([
            RowBatch { weight: &weights.store_norm, rows: of_store, number: stored_rows },
            RowBatch { weight: &weights.retrieve_norm, rows: of_read, number: read_rows },
        ])?;
        let read_rows = padded(read, c);
        if read_rows > read {
            // Zeros follow the last token: no token attends to them, and they are finite.
            self.device.fill(buffers.queries.address(0), 0, self.heads() * read_rows * d * size_of::<T>())?;
        }
        let [of_store, of_read] =
            [(&buffers.tokens[0], [stored; 2]), (&buffers.tokens[1], [read, read_rows])];
        let (keys_values, to) = ((&weights.keys_values, 2 * inner), &buffers.keys);
        if self.sequences == 1 {
            // Values follow keys, as if there were twice as many heads.
            self.split_heads(of_store, keys_values, 0, 2 * h, to.address(0))?;
        } else {
            self.split_heads(of_store, keys_values, 0, h, to.address(0))?;
            self.split_heads(of_store, keys_values, inner, h, self.values(buffers))?;
        }
        self.split_heads(of_read, (&weights.queries, inner), 0, h, buffers.queries.address(0))?;
        let gates = self.memory.gates;
        let gates = [gates.learning_rate, gates.momentum, gates.decay];
        let mut fixed = 0;
        let mut arguments =
            vec![buffers.tokens[0].argument(), weights.gates.argument(), buffers.steps.argument()];
        for (i, gate) in gates.iter().enumerate() {
            fixed |= u32::from(matches!(gate, Gate::Fixed(_))) << i;
        }
        arguments.extend([self.chunks(), c, dim, h].map(Argument::count));
        arguments.push(Argument::U32(fixed));
        arguments.extend(gates.map(|gate| {
            let (Gate::Fixed(value) | Gate::Learned(value)) = gate;
            Argument::F64(value)
        }));
        let shared = dim * size_of::<T>();
        if shared > self.device.shared_bytes() {
            let most = self.device.shared_bytes() / size_of::<T>();
            let reason =
                format!("tokens of {dim} numbers are wider than the GPU's limit of {most}; use --device cpu");
            return Err(Error::rejected("--device", reason));
        }
        self.launch("gate_values", [self.chunks(), self.sequences, 1], shared, &arguments)
    }

    /// Returns the address of the block's values, which follow its keys.
    fn values(&self, buffers: &DeviceBuffers<T>) -> u64 {
        buffers.keys.address(self.heads() * self.block.store.len() * self.d())
    }

    /// Multiplies the tokens of all sequences (sequences, rows, D) by the columns of a projection, from `first`
    /// on, d for each head. The result is (sequences, heads, rows, d), with space for more rows. Each call
    /// covers the heads of one sequence or the sequences of one head, whichever needs fewer calls.
    fn split_heads(
        &self,
        (tokens, [rows, space]): (&Array<T>, [usize; 2]),
        (projection, width): (&Array<T>, usize),
        first: usize,
        heads: usize,
        to: u64,
    ) -> Result<()> {
        let (dim, d) = (self.memory.dimensions.dim, self.d());
        let of_tokens = |sequence: usize, stride| matrix(tokens.address(sequence * rows * dim), dim, stride);
        let columns = |head: usize, stride| matrix(projection.address(first + head * d), width, stride);
        let head =
            |number: usize, stride| matrix(to + (number * space * d * size_of::<T>()) as u64, d, stride);
        for i in 0..heads.min(self.sequences) {
            let (batch, factors) = if heads < self.sequences {
                (self.sequences, [of_tokens(0, rows * dim), columns(i, 0), head(i, heads * space * d)])
            } else {
                (heads, [of_tokens(i, 0), columns(0, d), head(i * heads, space * d)])
            };
            self.multiply(batch, [rows, d, dim], 1.0, factors)?;
        }
        Ok(())
    }

    /// Applies `RMSNorm` to two row batches, where they have weights.
    fn norm(&self, batches: [RowBatch<'_, T>; 2]) -> Result<()> {
        if batches.iter().all(|batch| batch.weight.is_none()) {
            return Ok(());
        }
        let mut arguments = Vec::new();
        for RowBatch { weight, rows, number } in &batches {
            let weight = weight.as_ref().map_or(NULL, Array::argument);
            arguments.extend([rows.argument(), weight, Argument::long(*number)]);
        }
        arguments.extend([Argument::count(self.memory.dimensions.dim), Argument::F64(T::EPS.to_f64())]);
        let most = batches.iter().map(|batch| batch.number).fold(0, usize::max);
        self.launch("rms_norm", [most.div_ceil(WARPS), 2, 1], 0, &arguments)
    }

    /// Computes silu(P v) from q, k, v of chunks side by side, with P their causal attention. P and P v stay in
    /// the buffers for the backward pass.
    fn attend(
        &self,
        buffers: &DeviceBuffers<T>,
        qkv: &Array<T>,
        activated: &Array<T>,
        chunks: usize,
        keep: bool,
    ) -> Result<()> {
        let (d, c) = (self.d(), self.c());
        let batch = self.heads() * chunks;
        let scale = 1.0 / (d as f64).sqrt();
        if self.in_tiles() {
            let kept =
                [&buffers.scores, &buffers.hidden].map(|array| if keep { array.argument() } else { NULL });
            let arguments = [
                qkv.argument(),
                kept[0],
                kept[1],
                activated.argument(),
                Argument::long(batch),
                Argument::count(c),
                Argument::count(d),
                Argument::number::<T>(scale),
            ];
            return self.tiles("attend", batch, 3, &arguments);
        }
        let [q, k, v] = [0, d, 2 * d].map(|first| matrix(qkv.address(first), 3 * d, c * 3 * d));
        let square = matrix(buffers.scores.address(0), c, c * c);
        self.multiply(batch, [c, c, d], scale, [q, transposed(k), square])?;
        let rows = Argument::long(batch * c);
        self.rows("causal_softmax", batch * c, &[buffers.scores.argument(), rows, Argument::count(c)])?;
        self.multiply(batch, [c, d, c], 1.0, [square, v, matrix(buffers.hidden.address(0), d, c * d)])?;
        let elements = batch * c * d;
        let arguments = [buffers.hidden.argument(), activated.argument(), Argument::long(elements)];
        self.elements("silu", elements, &arguments)
    }

    /// Computes the cotangents of q, k, v from those of the output of `attend`, in `d_hidden`.
    fn attend_backward(&self, buffers: &DeviceBuffers<T>) -> Result<()> {
        let (d, c) = (self.d(), self.c());
        let batch = self.heads() * self.chunks();
        let scale = Argument::number::<T>(1.0 / (d as f64).sqrt());
        if self.in_tiles() {
            let arrays = [&buffers.qkv, &buffers.scores, &buffers.hidden, &buffers.d_hidden, &buffers.d_qkv];
            let mut arguments = arrays.map(Array::argument).to_vec();
            arguments.extend([Argument::long(batch), Argument::count(c), Argument::count(d), scale]);
            return self.tiles("attend_backward", batch, TILES, &arguments);
        }
        let elements = batch * c * d;
        let arguments = [buffers.hidden.argument(), buffers.d_hidden.argument(), Argument::long(elements)];
        self.elements("silu_backward", elements, &arguments)?;
        let of_chunk = |array: &Array<T>, width: usize| matrix(array.address(0), width, c * width);
        let [q, k, v] = [0, d, 2 * d].map(|first| matrix(buffers.qkv.address(first), 3 * d, c * 3 * d));
        let [dq, dk, dv] = [0, d, 2 * d].map(|first| matrix(buffers.d_qkv.address(first), 3 * d, c * 3 * d));
        let [p, dp] = [&buffers.scores, &buffers.d_scores].map(|array| of_chunk(array, c));
        let d_hidden = of_chunk(&buffers.d_hidden, d);
        self.multiply(batch, [c, c, d], 1.0, [d_hidden, transposed(v), dp])?;
        let [p_rows, dp_rows] = [&buffers.scores, &buffers.d_scores].map(Array::argument);
        let arguments = [p_rows, dp_rows, Argument::long(batch * c), Argument::count(c), scale];
        self.rows("softmax_backward", batch * c, &arguments)?;
        self.multiply(batch, [c, d, c], 1.0, [dp, k, dq])?;
        self.multiply(batch, [c, d, c], 1.0, [transposed(dp), q, dk])?;
        self.multiply(batch, [c, d, c], 1.0, [transposed(p), d_hidden, dv])
    }

    /// Returns whether attention within a chunk runs as one kernel.
    fn in_tiles(&self) -> bool {
        in_tiles::<T>(self.device, self.c())
    }

    /// Launches a kernel with one block for the whole chunks that fit a tile's rows and for a tile's columns.
    /// Each block has `tiles` tiles of shared memory.
    fn tiles(&self, name: &str, chunks: usize, tiles: usize, arguments: &[Argument]) -> Result<()> {
        let grid = [chunks.div_ceil(TILE / self.c()), self.d().div_ceil(TILE), 1];
        self.launch(name, grid, tiles * tile_bytes(T::TYPE), arguments)
    }

    /// Computes losses and gradients at W as thin factors: see `memory/model/attention.rs`.
    fn loss_and_gradient(&self, buffers: &mut DeviceBuffers<'_, T>) -> Result<()> {
        let (d, c, chunks) = (self.d(), self.c(), self.chunks());
        if chunks == 0 {
            return Ok(());
        }
        let rows = self.heads() * chunks * c;
        let whole = |array: &Array<T>, width: usize| matrix(array.address(0), width, 0);
        let (weights, output) = (self.weights, matrix(self.weights.base.address(3 * d * d), d, 0));
        let product = [whole(&buffers.keys, d), whole(&weights.qkv, 3 * d), whole(&buffers.qkv, 3 * d)];
        self.multiply(1, [rows, 3 * d, d], 1.0, product)?;
        self.attend(buffers, &buffers.qkv, &buffers.activated, chunks, true)?;
        let product = [whole(&buffers.activated, d), output, whole(&buffers.d_output, d)];
        self.multiply(1, [rows, d, d], 1.0, product)?;
        self.losses(&buffers.d_output, buffers, &buffers.chunk_losses[0], Some(&buffers.zero_losses))?;
        let product = [whole(&buffers.d_output, d), transposed(output), whole(&buffers.d_hidden, d)];
        self.multiply(1, [rows, d, d], 1.0, product)?;
        self.attend_backward(buffers)
    }

    /// Computes the loss of every chunk of keys from the memory's output for them. With `zero_sums`, also that of an
    /// answer of zeros, and the output's cotangents in its place.
    fn losses(
        &self,
        predicted: &Array<T>,
        buffers: &DeviceBuffers<T>,
        sums: &Array<T>,
        zero_sums: Option<&Array<T>>,
    ) -> Result<()> {
        let arguments = [
            predicted.argument(),
            Argument::Address(self.values(buffers)),
            sums.argument(),
            zero_sums.map_or(NULL, Array::argument),
            Argument::count(self.c()),
            Argument::count(self.d()),
        ];
        self.launch("chunk_losses", [self.heads() * self.chunks(), 1, 1], 0, &arguments)
    }

    fn segments(&self, buffers: &DeviceBuffers<'_, T>) -> TimeSegments {
        TimeSegments::fastest::<T>(
            self.device,
            buffers.segments,
            self.chunks(),
            [self.heads(), self.c(), self.d()],
        )
    }

    /// Computes S and U at the start of every time segment of the block.
    fn segment_starts(&self, buffers: &DeviceBuffers<'_, T>, state: &DeviceState<'_, T>) -> Result<()> {
        let segments = self.segments(buffers);
        if segments.number == 1 {
            return Ok(());
        }
        let elements = self.memory.base.len();
        let [updates, momenta] = &buffers.starts;
        let factors = [&buffers.steps, &buffers.keys, &buffers.d_qkv, &buffers.activated, &buffers.d_output];
        let written = [updates, momenta, &buffers.transitions];
        let mut arguments: Vec<_> = factors.into_iter().chain(written).map(Array::argument).collect();
        let sizes = [elements, self.d(), self.c(), self.chunks(), segments.each, segments.number, 3];
        arguments.extend(sizes.map(Argument::count));
        let tiles = self.d().div_ceil(TILE).pow(2);
        self.launch("segment_ends", [4 * tiles, self.heads(), segments.number - 1], 0, &arguments)?;
        let [update, momentum] = &state.arrays[0];
        let arrays = [update, momentum, &buffers.transitions, updates, momenta];
        let mut arguments = arrays.map(Array::argument).to_vec();
        arguments.extend([elements, segments.number].map(Argument::count));
        self.launch("segment_starts", [elements.div_ceil(THREADS as usize), self.heads(), 1], 0, &arguments)
    }

    /// Updates a layer through all chunks of the block and sums the squares of its weights. The squares are of
    /// numbers times `scale`.
    pub(super) fn fused_update(
        &self,
        buffers: &mut DeviceBuffers<'_, T>,
        state: &mut DeviceState<'_, T>,
        layer: usize,
        scale: f64,
    ) -> Result<()> {
        let (d, c, chunks) = (self.d(), self.c(), self.chunks());
        let (first, weights, width) = if layer == 0 { (0, 3, 3 * d) } else { (3, 1, d) };
        let tiles = d.div_ceil(TILE);
        let segments = if chunks > 0 {
            self.segments(buffers)
        } else {
            let each = self.query_chunks().div_ceil(READ_PARTS).max(1);
            TimeSegments { number: self.query_chunks().div_ceil(each), each }
        };
        let [before, after] = &state.arrays;
        let before = if chunks > 0 && segments.number > 1 { &buffers.starts } else { before };
        let (a, b) = if layer == 0 {
            (&buffers.keys, &buffers.d_qkv)
        } else {
            (&buffers.activated, &buffers.d_output)
        };
        let mut arguments =
            [&self.weights.base, &before[0], &before[1], &after[0], &after[1]].map(Array::argument).to_vec();
        arguments.extend([self.memory.base.len(), d, first, width, c, chunks].map(Argument::count));
        arguments.extend([&buffers.steps, a, b].map(Array::argument));
        arguments.push(Argument::count(self.query_chunks()));
        let inputs = [&buffers.queries, &buffers.keys, &buffers.keys];
        // The outputs are joined from parts where there are any.
        let mut joined = Vec::new();
        for (i, keys) in inputs.into_iter().enumerate() {
            let Some(reader) = buffers.readers.get(i) else {
                arguments.extend([NULL; 2]);
                joined.extend([NULL; 2]);
                continue;
            };
            let (from, to) =
                if layer == 0 { (keys, &reader.products) } else { (&reader.activated, &reader.outputs) };
            arguments.extend([from, reader.parts.as_ref().unwrap_or(to)].map(Array::argument));
            joined.extend([reader.parts.as_ref().unwrap_or(to), to].map(Array::argument));
        }
        let read = [self.query_chunks(), chunks].map(|chunks| self.heads() * chunks * c * width);
        arguments.extend(read.map(Argument::long));
        arguments.extend([buffers.parts.argument(), Argument::number::<T>(scale)]);
        arguments.extend([buffers.ring.buffers, segments.each].map(Argument::count));
        let grid = [weights * tiles * tiles, self.heads(), segments.number];
        if chunks.max(self.query_chunks()) > 0 {
            self.launch("fused_update", grid, buffers.ring.shared, &arguments)?;
        }
        if tiles > 1 {
            joined.insert(2, Argument::long(read[0]));
            joined.extend([Argument::long(read[1]), Argument::count(tiles)]);
            let most = if buffers.readers.len() > 1 { read[0].max(read[1]) } else { read[0] };
            let blocks = most.div_ceil(THREADS as usize).min(MAX_BLOCKS);
            self.launch("join_reads", [blocks, buffers.readers.len(), 1], 0, &joined)?;
        }
        Ok(())
    }

    /// Sums the squares of the weights from those of tiles.
    pub(super) fn weight_norms(&self, buffers: &DeviceBuffers<'_, T>) -> Result<()> {
        let count = self.heads() * self.chunks() * 4;
        let arguments = [
            buffers.parts.argument(),
            buffers.norms.argument(),
            buffers.findings.argument(),
            Argument::long(count),
            Argument::count(self.d().div_ceil(TILE).pow(2)),
            Argument::F64(least_trusted::<T>()),
        ];
        self.launch("weight_norms", [(count * 4).div_ceil(THREADS as usize), 1, 1], 0, &arguments)
    }

    /// Applies the function between the layers to everything that is read.
    fn activate(&self, buffers: &mut DeviceBuffers<'_, T>) -> Result<()> {
        for (i, reader) in buffers.readers.iter().enumerate() {
            let chunks = if i == 0 { self.query_chunks() } else { self.chunks() };
            if chunks == 0 {
                continue;
            }
            self.attend(buffers, &reader.products, &reader.activated, chunks, false)?;
        }
        Ok(())
    }

    /// Computes `post_norm(merged heads @ combine)`. Rows read before anything is stored are zero and stay zero.
    fn combine(&self, buffers: &mut DeviceBuffers<'_, T>) -> Result<()> {
        let dimensions = self.memory.dimensions;
        let (rows, inner) = (self.block.read.len(), dimensions.inner());
        if rows == 0 {
            return Ok(());
        }
        let mut arguments = vec![buffers.readers[0].outputs.argument(), buffers.merged.argument()];
        let unready = self.plan.unready(self.block);
        arguments
            .extend([dimensions.heads, padded(rows, self.c()), rows, self.d(), unready].map(Argument::count));
        let blocks = (rows * inner).div_ceil(THREADS as usize).min(MAX_BLOCKS);
        self.launch("merge_heads", [blocks, self.sequences, 1], 0, &arguments)?;
        let number = self.sequences * rows;
        if let (Some(combine), Some(combined)) = (&self.weights.combine, &buffers.combined) {
            let [a, b, c] = [(&buffers.merged, inner), (combine, dimensions.dim), (combined, dimensions.dim)]
                .map(|(array, width): (&Array<T>, usize)| matrix(array.address(0), width, 0));
            self.multiply(1, [number, dimensions.dim, inner], 1.0, [a, b, c])?;
        }
        let output = buffers.combined.as_ref().unwrap_or(&buffers.merged);
        let read = RowBatch { weight: &self.weights.post_norm, rows: output, number };
        self.norm([read, RowBatch { weight: &None, rows: output, number: 0 }])
    }

    /// Computes losses of the probe and finds non-finite rows among the retrieved ones.
    fn measure(&self, buffers: &mut DeviceBuffers<'_, T>) -> Result<()> {
        for (i, reader) in buffers.readers.iter().enumerate().skip(1) {
            self.losses(&reader.outputs, buffers, &buffers.chunk_losses[i], None)?;
        }
        let (rows, unready) = (self.block.read.len(), self.plan.unready(self.block));
        let (heads, d, dim) = (self.heads(), self.d(), self.memory.dimensions.dim);
        let output = buffers.combined.as_ref().unwrap_or(&buffers.merged);
        let arguments = [
            buffers.readers[0].outputs.argument(),
            Argument::count(heads),
            Argument::long(padded(rows, self.c()) * d),
            Argument::count(d),
            output.argument(),
            Argument::long(rows * dim),
            Argument::count(dim),
            Argument::Address(buffers.findings.address(RANGES)),
            Argument::count(unready),
            Argument::count(rows),
        ];
        let grid = [(rows - unready).div_ceil(WARPS), heads + self.sequences, 1];
        self.launch("first_nonfinite", grid, 0, &arguments)
    }
}

/// Describes one matrix per head or per chunk, `stride` elements apart.
fn matrix(address: u64, row: usize, stride: usize) -> Matrix {
    Matrix { address, row, stride, transposed: false }
}

fn transposed(matrix: Matrix) -> Matrix {
    Matrix { transposed: true, ..matrix }
}
