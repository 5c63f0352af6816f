//! What the device does of a block, kernel after kernel.

use std::cell::Cell;
use std::time::Duration;

use super::room::{Room, Spans, TILES, in_tiles, padded};
use super::{RANGES, TILE, Weights};
use crate::cuda::{Argument, Array, Device, Launch, Mark, Matrix, Product, kernel, tile_bytes};
use crate::engine::norm::least_trusted;
use crate::engine::{Block, Memory, Outcome, Phase, Plan};
use crate::error::{Error, Result};
use crate::memory::Gate;
use crate::real::Real;

/// Threads of every block.
const THREADS: u32 = 256;
const WARPS: usize = THREADS as usize / 32;
/// A pointer to nothing.
const NOTHING: Argument = Argument::Address(0);
/// Blocks of kernels that take an element a thread.
const MOST_BLOCKS: usize = 4096;
/// Parts of the chunks that are read side by side where nothing is stored.
const READ_PARTS: usize = 256;

/// Rows (…, D) and the weight of their norm, if they have one.
struct Lot<'a, T> {
    weight: &'a Option<Array<'a, T>>,
    rows: &'a Array<'a, T>,
    number: usize,
}

/// A block of some sequences, on its way.
pub(super) struct Step<'a, T: Real> {
    pub(super) memory: &'a Memory<T>,
    pub(super) device: &'a dyn Device,
    pub(super) weights: &'a Weights<'a, T>,
    pub(super) plan: &'a Plan<'a, T>,
    pub(super) block: Block,
    pub(super) sequences: usize,
    /// Whether there was a large product.
    pub(super) large: &'a Cell<bool>,
}

/// Moments between phases: the first, and what ended at each of the others.
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
}

impl<T: Real> Step<'_, T> {
    pub(super) fn d(&self) -> usize {
        self.memory.dimensions.dim_head
    }

    pub(super) fn c(&self) -> usize {
        self.memory.chunk_size
    }

    /// Over all sequences.
    pub(super) fn heads(&self) -> usize {
        self.sequences * self.memory.dimensions.heads
    }

    /// Stored of one head.
    pub(super) fn chunks(&self) -> usize {
        self.block.store.len() / self.c()
    }

    /// Read of one head, the last perhaps incomplete.
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

    /// A warp a row.
    fn rows(&self, name: &str, rows: usize, arguments: &[Argument]) -> Result<()> {
        self.launch(name, [rows.div_ceil(WARPS), 1, 1], 0, arguments)
    }

    /// A thread an element, or several.
    fn elements(&self, name: &str, elements: usize, arguments: &[Argument]) -> Result<()> {
        self.launch(name, [elements.div_ceil(THREADS as usize).min(MOST_BLOCKS), 1, 1], 0, arguments)
    }

    fn multiply(&self, batch: usize, size: [usize; 3], scale: f64, [a, b, c]: [Matrix; 3]) -> Result<()> {
        if batch * size[0] * size[1] == 0 {
            return Ok(());
        }
        let product = Product { dtype: T::TYPE, batch, size, scale, a, b, c };
        self.large.set(self.large.get() || !product.is_small());
        self.device.multiply(&product)
    }

    /// Everything that the device does of a block, asked for in order.
    pub(super) fn compute(&self, room: &mut Room<'_, T>, marks: &mut Marks) -> Result<()> {
        marks.start(self.device)?;
        let mut done = |phase: Phase| marks.end(phase, self.device);
        // Nothing found as yet.
        self.device.fill(room.findings.address(0), 0xFF, room.findings.bytes())?;
        self.project(room)?;
        done(Phase::Project)?;
        self.surprise(room)?;
        done(Phase::Gradients)?;
        self.span(room)?;
        self.walk(room, 0, 1.0)?;
        done(Phase::Walk)?;
        self.activate(room)?;
        done(Phase::Activate)?;
        self.walk(room, 1, 1.0)?;
        self.weight_norms(room)?;
        done(Phase::Walk)?;
        self.combine(room)?;
        done(Phase::Combine)?;
        self.measure(room)?;
        done(Phase::Metrics)
    }

    /// Adds the time between marks to the phases; all of it together.
    pub(super) fn add_phases(&self, marks: &Marks, outcome: &mut Outcome) -> Result<Duration> {
        let mut all = 0.0;
        for (pair, phase) in marks.made.windows(2).zip(&marks.ended) {
            let seconds = self.device.seconds(&pair[0], &pair[1])?;
            all += seconds;
            let phases = &mut outcome.phases;
            match phase {
                Phase::Project => phases.project += seconds,
                Phase::Gradients => phases.gradients += seconds,
                Phase::Walk => phases.walk += seconds,
                Phase::Activate => phases.activate += seconds,
                Phase::Combine => phases.combine += seconds,
                Phase::Metrics => phases.metrics += seconds,
                Phase::Retention => {}
            }
        }
        Ok(Duration::from_secs_f64(all))
    }

    /// Norms, keys, values, queries, gates.
    fn project(&self, room: &mut Room<'_, T>) -> Result<()> {
        let dimensions = self.memory.dimensions;
        let (dim, d, h, c) = (dimensions.dim, self.d(), dimensions.heads, self.c());
        let inner = dimensions.inner();
        let (stored, read) = (self.block.store.len(), self.block.read.len());
        let weights = self.weights;
        let [stored_rows, read_rows] = [stored, read].map(|rows| self.sequences * rows);
        let [of_store, of_read] = &room.tokens;
        self.norm([
            Lot { weight: &weights.store_norm, rows: of_store, number: stored_rows },
            Lot { weight: &weights.retrieve_norm, rows: of_read, number: read_rows },
        ])?;
        let read_rows = padded(read, c);
        if read_rows > read {
            // Zeros follow the last token: no token sees them, and they are finite.
            self.device.fill(room.queries.address(0), 0, self.heads() * read_rows * d * size_of::<T>())?;
        }
        let [of_store, of_read] = [(&room.tokens[0], [stored; 2]), (&room.tokens[1], [read, read_rows])];
        let (keys_values, to) = ((&weights.keys_values, 2 * inner), &room.keys);
        if self.sequences == 1 {
            // Values follow keys: as if there were twice as many heads.
            self.split_heads(of_store, keys_values, 0, 2 * h, to.address(0))?;
        } else {
            self.split_heads(of_store, keys_values, 0, h, to.address(0))?;
            self.split_heads(of_store, keys_values, inner, h, self.values(room))?;
        }
        self.split_heads(of_read, (&weights.queries, inner), 0, h, room.queries.address(0))?;
        let gates = self.memory.gates;
        let gates = [gates.learning_rate, gates.momentum, gates.decay];
        let mut pinned = 0;
        let mut arguments = vec![room.tokens[0].argument(), weights.gates.argument(), room.steps.argument()];
        for (i, gate) in gates.iter().enumerate() {
            pinned |= u32::from(matches!(gate, Gate::Pinned(_))) << i;
        }
        arguments.extend([self.chunks(), c, dim, h].map(Argument::count));
        arguments.push(Argument::U32(pinned));
        arguments.extend(gates.map(|gate| {
            let (Gate::Pinned(value) | Gate::Learned(value)) = gate;
            Argument::F64(value)
        }));
        let shared = dim * size_of::<T>();
        if shared > self.device.shared_bytes() {
            let most = self.device.shared_bytes() / size_of::<T>();
            return Err(Error::setting("--device", format!("cpu for tokens wider than {most}"), "cuda"));
        }
        self.launch("gate_values", [self.chunks(), self.sequences, 1], shared, &arguments)
    }

    /// Values of the block's chunks: they follow its keys.
    fn values(&self, room: &Room<T>) -> u64 {
        room.keys.address(self.heads() * self.block.store.len() * self.d())
    }

    /// Tokens of all sequences, (sequences, rows, D), times the columns of a projection from `first` on, d for each head: (sequences,
    /// heads, rows, d), with space for more rows. Heads of one sequence are a call, or sequences of one head, whatever makes fewer.
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

    /// RMSNorm of two lots of rows, where these have weights.
    fn norm(&self, lots: [Lot<'_, T>; 2]) -> Result<()> {
        if lots.iter().all(|lot| lot.weight.is_none()) {
            return Ok(());
        }
        let mut arguments = Vec::new();
        for Lot { weight, rows, number } in &lots {
            let weight = weight.as_ref().map_or(NOTHING, Array::argument);
            arguments.extend([rows.argument(), weight, Argument::long(*number)]);
        }
        arguments.extend([Argument::count(self.memory.dimensions.dim), Argument::F64(T::EPS.to_f64())]);
        let most = lots.iter().map(|lot| lot.number).fold(0, usize::max);
        self.launch("rms_norm", [most.div_ceil(WARPS), 2, 1], 0, &arguments)
    }

    /// From q, k, v side by side of chunks, silu(P v) with P their causal attention. For the way back P and P v are kept in the
    /// room.
    fn attend(
        &self,
        room: &Room<T>,
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
                [&room.scores, &room.hidden].map(|array| if keep { array.argument() } else { NOTHING });
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
        let square = matrix(room.scores.address(0), c, c * c);
        self.multiply(batch, [c, c, d], scale, [q, transposed(k), square])?;
        let rows = Argument::long(batch * c);
        self.rows("causal_softmax", batch * c, &[room.scores.argument(), rows, Argument::count(c)])?;
        self.multiply(batch, [c, d, c], 1.0, [square, v, matrix(room.hidden.address(0), d, c * d)])?;
        let elements = batch * c * d;
        let arguments = [room.hidden.argument(), activated.argument(), Argument::long(elements)];
        self.elements("silu", elements, &arguments)
    }

    /// Cotangents of q, k, v from those of what `attend` made of them, in `d_hidden`.
    fn attend_backward(&self, room: &Room<T>) -> Result<()> {
        let (d, c) = (self.d(), self.c());
        let batch = self.heads() * self.chunks();
        let scale = Argument::number::<T>(1.0 / (d as f64).sqrt());
        if self.in_tiles() {
            let arrays = [&room.qkv, &room.scores, &room.hidden, &room.d_hidden, &room.d_qkv];
            let mut arguments = arrays.map(Array::argument).to_vec();
            arguments.extend([Argument::long(batch), Argument::count(c), Argument::count(d), scale]);
            return self.tiles("attend_backward", batch, TILES, &arguments);
        }
        let elements = batch * c * d;
        let arguments = [room.hidden.argument(), room.d_hidden.argument(), Argument::long(elements)];
        self.elements("silu_backward", elements, &arguments)?;
        let of_chunk = |array: &Array<T>, width: usize| matrix(array.address(0), width, c * width);
        let [q, k, v] = [0, d, 2 * d].map(|first| matrix(room.qkv.address(first), 3 * d, c * 3 * d));
        let [dq, dk, dv] = [0, d, 2 * d].map(|first| matrix(room.d_qkv.address(first), 3 * d, c * 3 * d));
        let [p, dp] = [&room.scores, &room.d_scores].map(|array| of_chunk(array, c));
        let d_hidden = of_chunk(&room.d_hidden, d);
        self.multiply(batch, [c, c, d], 1.0, [d_hidden, transposed(v), dp])?;
        let [p_rows, dp_rows] = [&room.scores, &room.d_scores].map(Array::argument);
        let arguments = [p_rows, dp_rows, Argument::long(batch * c), Argument::count(c), scale];
        self.rows("softmax_backward", batch * c, &arguments)?;
        self.multiply(batch, [c, d, c], 1.0, [dp, k, dq])?;
        self.multiply(batch, [c, d, c], 1.0, [transposed(dp), q, dk])?;
        self.multiply(batch, [c, d, c], 1.0, [transposed(p), d_hidden, dv])
    }

    /// Whether attention within a chunk is a kernel.
    fn in_tiles(&self) -> bool {
        in_tiles::<T>(self.device, self.c())
    }

    /// A block for whole chunks that fit a tile's rows and for a tile's columns, with so many tiles of shared memory.
    fn tiles(&self, name: &str, chunks: usize, tiles: usize, arguments: &[Argument]) -> Result<()> {
        let grid = [chunks.div_ceil(TILE / self.c()), self.d().div_ceil(TILE), 1];
        self.launch(name, grid, tiles * tile_bytes(T::TYPE), arguments)
    }

    /// Losses and gradients at W, as thin factors: see `memory/model/attention.rs`.
    fn surprise(&self, room: &mut Room<'_, T>) -> Result<()> {
        let (d, c, chunks) = (self.d(), self.c(), self.chunks());
        if chunks == 0 {
            return Ok(());
        }
        let rows = self.heads() * chunks * c;
        let whole = |array: &Array<T>, width: usize| matrix(array.address(0), width, 0);
        let (weights, output) = (self.weights, matrix(self.weights.base.address(3 * d * d), d, 0));
        let product = [whole(&room.keys, d), whole(&weights.qkv, 3 * d), whole(&room.qkv, 3 * d)];
        self.multiply(1, [rows, 3 * d, d], 1.0, product)?;
        self.attend(room, &room.qkv, &room.activated, chunks, true)?;
        let product = [whole(&room.activated, d), output, whole(&room.d_output, d)];
        self.multiply(1, [rows, d, d], 1.0, product)?;
        self.losses(&room.d_output, room, &room.chunk_losses[0], true)?;
        let product = [whole(&room.d_output, d), transposed(output), whole(&room.d_hidden, d)];
        self.multiply(1, [rows, d, d], 1.0, product)?;
        self.attend_backward(room)
    }

    /// Of every chunk of keys, from what was made of them.
    fn losses(&self, predicted: &Array<T>, room: &Room<T>, sums: &Array<T>, gradient: bool) -> Result<()> {
        let mut arguments = vec![predicted.argument(), Argument::Address(self.values(room)), sums.argument()];
        arguments.extend([self.c(), self.d()].map(Argument::count));
        arguments.push(Argument::U32(gradient.into()));
        self.launch("chunk_losses", [self.heads() * self.chunks(), 1, 1], 0, &arguments)
    }

    fn spans(&self, room: &Room<'_, T>) -> Spans {
        Spans::of::<T>(self.device, room.spans, self.chunks(), [self.heads(), self.c(), self.d()])
    }

    /// What every span of the block's chunks starts from.
    fn span(&self, room: &Room<'_, T>) -> Result<()> {
        let spans = self.spans(room);
        if spans.number == 1 {
            return Ok(());
        }
        let elements = self.memory.base.len();
        let [updates, momenta] = &room.starts;
        let factors = [&room.steps, &room.keys, &room.d_qkv, &room.activated, &room.d_output];
        let written = [updates, momenta, &room.transitions];
        let mut arguments: Vec<_> = factors.into_iter().chain(written).map(Array::argument).collect();
        let sizes = [elements, self.d(), self.c(), self.chunks(), spans.each, spans.number, 3];
        arguments.extend(sizes.map(Argument::count));
        let tiles = self.d().div_ceil(TILE).pow(2);
        self.launch("span_ends", [4 * tiles, self.heads(), spans.number - 1], 0, &arguments)?;
        let [update, momentum] = &room.state[0];
        let arrays = [update, momentum, &room.transitions, updates, momenta];
        let mut arguments = arrays.map(Array::argument).to_vec();
        arguments.extend([elements, spans.number].map(Argument::count));
        self.launch("span_starts", [elements.div_ceil(THREADS as usize), self.heads(), 1], 0, &arguments)
    }

    /// A layer through all chunks of the block, and the sums of squares of its weights. Squares are of numbers times `scale`.
    pub(super) fn walk(&self, room: &mut Room<'_, T>, layer: usize, scale: f64) -> Result<()> {
        let (d, c, chunks) = (self.d(), self.c(), self.chunks());
        let (first, weights, width) = if layer == 0 { (0, 3, 3 * d) } else { (3, 1, d) };
        let tiles = d.div_ceil(TILE);
        let spans = if chunks > 0 {
            self.spans(room)
        } else {
            let each = self.query_chunks().div_ceil(READ_PARTS).max(1);
            Spans { number: self.query_chunks().div_ceil(each), each }
        };
        let [before, after] = &room.state;
        let before = if chunks > 0 && spans.number > 1 { &room.starts } else { before };
        let (a, b) = if layer == 0 { (&room.keys, &room.d_qkv) } else { (&room.activated, &room.d_output) };
        let mut arguments =
            [&self.weights.base, &before[0], &before[1], &after[0], &after[1]].map(Array::argument).to_vec();
        arguments.extend([self.memory.base.len(), d, first, width, c, chunks].map(Argument::count));
        arguments.extend([&room.steps, a, b].map(Array::argument));
        arguments.push(Argument::count(self.query_chunks()));
        let inputs = [&room.queries, &room.keys, &room.keys];
        // From parts where there are any, and what is read.
        let mut joined = Vec::new();
        for (i, keys) in inputs.into_iter().enumerate() {
            let Some(reader) = room.readers.get(i) else {
                arguments.extend([NOTHING; 2]);
                joined.extend([NOTHING; 2]);
                continue;
            };
            let (from, to) =
                if layer == 0 { (keys, &reader.products) } else { (&reader.activated, &reader.outputs) };
            arguments.extend([from, reader.parts.as_ref().unwrap_or(to)].map(Array::argument));
            joined.extend([reader.parts.as_ref().unwrap_or(to), to].map(Array::argument));
        }
        let read = [self.query_chunks(), chunks].map(|chunks| self.heads() * chunks * c * width);
        arguments.extend(read.map(Argument::long));
        arguments.extend([room.parts.argument(), Argument::number::<T>(scale)]);
        arguments.extend([room.ring.buffers, spans.each].map(Argument::count));
        let grid = [weights * tiles * tiles, self.heads(), spans.number];
        if chunks.max(self.query_chunks()) > 0 {
            self.launch("walk", grid, room.ring.shared, &arguments)?;
        }
        if tiles > 1 {
            joined.insert(2, Argument::long(read[0]));
            joined.extend([Argument::long(read[1]), Argument::count(tiles)]);
            let most = if room.readers.len() > 1 { read[0].max(read[1]) } else { read[0] };
            let blocks = most.div_ceil(THREADS as usize).min(MOST_BLOCKS);
            self.launch("join_reads", [blocks, room.readers.len(), 1], 0, &joined)?;
        }
        Ok(())
    }

    /// Sums of squares of the weights, from those of tiles.
    pub(super) fn weight_norms(&self, room: &Room<'_, T>) -> Result<()> {
        let count = self.heads() * self.chunks() * 4;
        let arguments = [
            room.parts.argument(),
            room.norms.argument(),
            room.findings.argument(),
            Argument::long(count),
            Argument::count(self.d().div_ceil(TILE).pow(2)),
            Argument::F64(least_trusted::<T>()),
        ];
        self.launch("weight_norms", [(count * 4).div_ceil(THREADS as usize), 1, 1], 0, &arguments)
    }

    /// Between the layers, of all that is read.
    fn activate(&self, room: &mut Room<'_, T>) -> Result<()> {
        for (i, reader) in room.readers.iter().enumerate() {
            let chunks = if i == 0 { self.query_chunks() } else { self.chunks() };
            if chunks == 0 {
                continue;
            }
            self.attend(room, &reader.products, &reader.activated, chunks, false)?;
        }
        Ok(())
    }

    /// `post_norm(merged heads @ combine)`. Rows that were read from nothing are zero and stay zero.
    fn combine(&self, room: &mut Room<'_, T>) -> Result<()> {
        let dimensions = self.memory.dimensions;
        let (rows, inner) = (self.block.read.len(), dimensions.inner());
        if rows == 0 {
            return Ok(());
        }
        let mut arguments = vec![room.readers[0].outputs.argument(), room.merged.argument()];
        let unready = self.plan.unready(self.block);
        arguments
            .extend([dimensions.heads, padded(rows, self.c()), rows, self.d(), unready].map(Argument::count));
        let blocks = (rows * inner).div_ceil(THREADS as usize).min(MOST_BLOCKS);
        self.launch("merge_heads", [blocks, self.sequences, 1], 0, &arguments)?;
        let number = self.sequences * rows;
        if let (Some(combine), Some(combined)) = (&self.weights.combine, &room.combined) {
            let [a, b, c] = [(&room.merged, inner), (combine, dimensions.dim), (combined, dimensions.dim)]
                .map(|(array, width): (&Array<T>, usize)| matrix(array.address(0), width, 0));
            self.multiply(1, [number, dimensions.dim, inner], 1.0, [a, b, c])?;
        }
        let output = room.combined.as_ref().unwrap_or(&room.merged);
        let read = Lot { weight: &self.weights.post_norm, rows: output, number };
        self.norm([read, Lot { weight: &None, rows: output, number: 0 }])
    }

    /// Losses of the probe, and where what was read is not finite.
    fn measure(&self, room: &mut Room<'_, T>) -> Result<()> {
        for (i, reader) in room.readers.iter().enumerate().skip(1) {
            self.losses(&reader.outputs, room, &room.chunk_losses[i], false)?;
        }
        let (rows, unready) = (self.block.read.len(), self.plan.unready(self.block));
        let (heads, d, dim) = (self.heads(), self.d(), self.memory.dimensions.dim);
        let output = room.combined.as_ref().unwrap_or(&room.merged);
        let arguments = [
            room.readers[0].outputs.argument(),
            Argument::count(heads),
            Argument::long(padded(rows, self.c()) * d),
            Argument::count(d),
            output.argument(),
            Argument::long(rows * dim),
            Argument::count(dim),
            Argument::Address(room.findings.address(RANGES)),
            Argument::count(unready),
            Argument::count(rows),
        ];
        let grid = [(rows - unready).div_ceil(WARPS), heads + self.sequences, 1];
        self.launch("first_nonfinite", grid, 0, &arguments)
    }
}

/// A matrix of each head, or of each chunk, `stride` elements apart.
fn matrix(address: u64, row: usize, stride: usize) -> Matrix {
    Matrix { address, row, stride, transposed: false }
}

fn transposed(matrix: Matrix) -> Matrix {
    Matrix { transposed: true, ..matrix }
}
