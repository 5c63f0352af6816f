//! The engine on a GPU: the same blocks, with all sequences and heads of a group side by side. Products go through
//! [`Device::multiply`], attention within a chunk is a kernel forward and one backward, and `walk` takes a layer of the memory through
//! the block's chunks with S and U in registers, forming gradients from their thin factors: no gradient and no
//! state of every chunk is ever there. Chunks are cut into [`Spans`] that are walked side by side: as the recurrences are linear, what
//! each starts from follows from where the others end when they start from zero. A span has tokens enough that these starts take about
//! what the factors take. Host memory and the device's hold a block of tokens each: a sequence of any
//! length streams through.
//!
//! Matrices of heads are (sequences, heads, rows, columns). Transfers count as input and output, not as computing.

use std::ops::Range;
use std::time::Instant;

use ndarray::{ArrayView3, s};

use super::head::metrics;
use super::norm::{least_trusted, trusted};
use super::strip::Norms;
use super::tokens::Sides;
use super::{Block, Divergence, Memory, Outcome, Phase, Plan, Sink, Sizes, Work};
use crate::cuda::{Argument, Array, Device, Launch, Mark, Matrix, Product, kernel};
use crate::error::{Error, Result};
use crate::memory::{Gate, GateValues, State};
use crate::metrics::ChunkMetrics;
use crate::packed::Packed;
use crate::real::{ElementType, Real};

/// Rows of a block, all sequences of a group together. Launches take some 5 µs each and there are about thirty a block; this many
/// rows take milliseconds.
const BLOCK_ROWS: usize = 32_768;
/// Sequences that advance together, at most.
const GROUP: usize = 1024;
/// Of the free memory, what a block's buffers may take.
const SHARE: usize = 2;
/// Rows and columns of a weight that a block has: as in kernels.cu.
const TILE: usize = 64;
/// Most tiles of a block's attention that are in shared memory.
const TILES: usize = 5;
/// Threads of every block.
const THREADS: u32 = 256;
const WARPS: usize = THREADS as usize / 32;
/// A pointer to nothing.
const NOTHING: Argument = Argument::Address(0);
/// Blocks of kernels that take an element a thread.
const MOST_BLOCKS: usize = 4096;
/// Parts of the chunks that are read side by side where nothing is stored.
const READ_PARTS: usize = 256;
/// Most blocks in a grid's second dimension.
const MOST_HEADS: usize = 65_535;
/// Findings before those of heads.
const RANGES: usize = 2;
/// Nothing was found.
const NONE: u32 = u32::MAX;

/// Runs a memory on a device. Its buffers stay for the next run of the same kind and size.
pub struct CudaEngine<'m, T: Real> {
    memory: &'m Memory<T>,
    device: &'m dyn Device,
    weights: Weights<'m, T>,
    room: Option<Room<'m, T>>,
    /// Bytes that a room may take.
    share: Option<usize>,
    /// Each sequence's next block, on this side.
    incoming: Vec<Sides<T>>,
    /// What was read of a block.
    outgoing: Vec<T>,
    /// Between phases, for every block anew.
    marks: Marks,
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

/// Blocks of a walk that are on a multiprocessor at once: as many as their registers let.
fn walkers<T: Real>() -> usize {
    match T::TYPE {
        ElementType::F32 => 2,
        ElementType::F64 => 1,
    }
}

/// Buffers that a walk's inputs come through, and its shared memory in bytes.
#[derive(Clone, Copy, Debug)]
struct Ring {
    buffers: usize,
    shared: usize,
}

impl Ring {
    /// As laid out in kernels.cu: as many buffers as let blocks of a multiprocessor be side by side.
    fn of<T: Real>(device: &dyn Device) -> Result<Self> {
        let most = device.shared_bytes();
        let weights = TILE * TILE * size_of::<T>();
        let of = |buffers: usize| Self { buffers, shared: weights + buffers * tile_bytes::<T>() };
        let rooms = [most / walkers::<T>(), most];
        let mut fitting = rooms.into_iter().flat_map(|room| [4, 3, 2].map(|buffers| (room, buffers)));
        let fits = |&(room, buffers): &(usize, usize)| of(buffers).shared <= room;
        let (_, buffers) = fitting.find(fits).ok_or_else(|| {
            let expected = format!("a GPU whose blocks have {} bytes of shared memory, or cpu", of(2).shared);
            Error::setting("--device", expected, format!("{most} bytes on {}", device.name()))
        })?;
        Ok(of(buffers))
    }
}

/// Consecutive chunks that are walked one after another, side by side with others; the last may be fewer.
#[derive(Clone, Copy, Debug)]
struct Spans {
    number: usize,
    each: usize,
}

impl Spans {
    /// The number, up to `most`, with which a device that has `slots` blocks at once is done soonest. A layer of three weights and one
    /// of one weight are walked, `blocks` for each weight and span; all spans but the last are gone through before, at half the cost.
    /// A span has tokens enough that what it starts from is not much more than its factors are.
    fn of(chunks: usize, most: usize, [c, d]: [usize; 2], blocks: usize, slots: usize) -> Self {
        let least = (d / 2).div_ceil(c).max(1);
        let most = chunks.div_ceil(least).clamp(1, most.min(slots).max(1));
        let spans = (1..=most).map(|number| {
            let each = chunks.div_ceil(number).max(1);
            Self { number: chunks.div_ceil(each).max(1), each }
        });
        // In halves of a chunk. To start a block takes about as long as one.
        let cost = |spans: &Self| {
            let rounds = |weights: usize, spans: usize| (weights * blocks * spans).div_ceil(slots);
            2 * (rounds(3, spans.number) + rounds(1, spans.number)) * (spans.each + 1)
                + rounds(4, spans.number - 1) * spans.each
        };
        spans.min_by_key(cost).expect("one at least")
    }
}

/// Rows that are read while a layer walks: those of the queries, or keys before or after their chunk is stored.
struct Reader<'d, T> {
    /// (…, 3d)
    products: Array<'d, T>,
    /// (…, d)
    activated: Array<'d, T>,
    /// (…, d)
    outputs: Array<'d, T>,
    /// What rows of tiles make of either, where there are several: (tiles, …, 3d)
    parts: Option<Array<'d, T>>,
}

impl<'d, T: Real> Reader<'d, T> {
    fn new(device: &'d dyn Device, rows: usize, d: usize) -> Result<Self> {
        let tiles = d.div_ceil(TILE);
        Ok(Self {
            parts: (tiles > 1).then(|| Array::new(device, tiles * rows * 3 * d)).transpose()?,
            products: Array::new(device, rows * 3 * d)?,
            activated: Array::new(device, rows * d)?,
            outputs: Array::new(device, rows * d)?,
        })
    }
}

/// Buffers of a block: of `heads` heads over all sequences, `stored` and `read` rows each, the latter whole chunks.
struct Room<'d, T: Real> {
    sizes: Sizes,
    sequences: usize,
    ring: Ring,
    /// (sequences, rows, D)
    tokens: [Array<'d, T>; 2],
    keys: Array<'d, T>,
    values: Array<'d, T>,
    queries: Array<'d, T>,
    /// θ, η, α: (…, chunks, 3)
    steps: Array<'d, T>,
    /// (…, 3d)
    qkv: Array<'d, T>,
    d_qkv: Array<'d, T>,
    /// (…, c)
    scores: Array<'d, T>,
    d_scores: Array<'d, T>,
    /// (…, d)
    hidden: Array<'d, T>,
    d_hidden: Array<'d, T>,
    activated: Array<'d, T>,
    d_output: Array<'d, T>,
    /// At W, before and after: [3][heads, chunks]
    chunk_losses: [Array<'d, T>; 3],
    /// Of the queries, then of the probe.
    readers: Vec<Reader<'d, T>>,
    /// Sums of squares of tiles, and norms of weights: (heads, chunks, weights, 4)
    parts: Array<'d, T>,
    norms: Array<'d, f64>,
    /// U and S before and after the block: (heads, elements)
    state: [[Array<'d, T>; 2]; 2],
    /// Most spans of chunks that are walked side by side.
    spans: usize,
    /// U and S before each of them: (heads, spans, elements)
    starts: [Array<'d, T>; 2],
    /// (heads, spans, 3)
    transitions: Array<'d, T>,
    /// (sequences, rows, hd) and (sequences, rows, D)
    merged: Array<'d, T>,
    combined: Option<Array<'d, T>>,
    /// [`NONE`], or 0 where a norm was too large or too small; the first row that is not finite of each head and then of each
    /// sequence.
    findings: Array<'d, u32>,
}

/// What came of a block, for one run of the walks.
struct Measured<T> {
    steps: Vec<T>,
    losses: [Vec<T>; 3],
    norms: Vec<f64>,
    findings: Vec<u32>,
}

/// Of a tile in shared memory, as in kernels.cu.
fn tile_bytes<T>() -> usize {
    TILE * (TILE * size_of::<T>() + 16)
}

/// Whether a chunk fits a tile, and a block's shared memory those of its attention.
fn in_tiles<T>(device: &dyn Device, c: usize) -> bool {
    c <= TILE && TILES * tile_bytes::<T>() <= device.shared_bytes()
}

/// Rows of a padded side, in whole chunks.
fn padded(rows: usize, c: usize) -> usize {
    rows.next_multiple_of(c)
}

/// A matrix of each head, or of each chunk, `stride` elements apart.
fn matrix(address: u64, row: usize, stride: usize) -> Matrix {
    Matrix { address, row, stride, transposed: false }
}

fn transposed(matrix: Matrix) -> Matrix {
    Matrix { transposed: true, ..matrix }
}

impl<'m, T: Real> CudaEngine<'m, T> {
    /// Takes the parameters to the device.
    pub fn new(memory: &'m Memory<T>, device: &'m dyn Device) -> Result<Self> {
        let projections = &memory.projections;
        let upload = |packed: &Packed<T>| {
            let matrix = packed.to_matrix();
            Array::of(device, matrix.as_slice().expect("standard layout"))
        };
        let norm = |norm: &Option<ndarray::Array1<T>>| {
            norm.as_ref().map(|norm| Array::of(device, &norm.to_vec())).transpose()
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
                base: Array::of(device, &memory.base)?,
                qkv: Array::of(device, &qkv)?,
                keys_values: upload(&projections.keys_values)?,
                queries: upload(&projections.queries)?,
                gates: upload(&projections.gates)?,
                combine: projections.combine.as_ref().map(upload).transpose()?,
                store_norm: norm(&projections.store_norm)?,
                retrieve_norm: norm(&projections.retrieve_norm)?,
                post_norm: norm(&projections.post_norm)?,
            },
            room: None,
            share: None,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            marks: Marks::default(),
        })
    }

    /// As [`Engine::run`](super::Engine::run), without retention.
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
        plan.check_chunk()?;
        let group = self.make_room(&mut plan)?;
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

    /// What parameters and buffers take on the device.
    pub fn bytes(&self) -> usize {
        let Weights { base, qkv, keys_values, queries, gates, combine, store_norm, retrieve_norm, post_norm } =
            &self.weights;
        let always = [base, qkv, keys_values, queries, gates];
        let weights =
            always.into_iter().chain(combine).chain(store_norm).chain(retrieve_norm).chain(post_norm);
        weights.map(Array::bytes).sum::<usize>() + self.room.as_ref().map_or(0, Room::bytes)
    }

    /// Buffers for as many rows as pay and fit. Returns the sequences of a group.
    fn make_room(&mut self, plan: &mut Plan<'_, T>) -> Result<usize> {
        let kept = |made: &Option<Room<'_, T>>, sizes: Sizes, group: usize| {
            made.as_ref().is_some_and(|room| room.sizes == sizes && room.sequences == group)
        };
        // Asking what memory is free takes a tenth of the time that a short sequence does.
        if let Some(share) = self.share {
            let group = self.divide(plan, share);
            if kept(&self.room, plan.sizes(), group) {
                return Ok(group);
            }
        }
        let taken = self.room.as_ref().map_or(0, Room::bytes);
        let share = (self.device.free_bytes()? + taken) / SHARE;
        self.share = Some(share);
        let group = self.divide(plan, share);
        let sizes = plan.sizes();
        if !kept(&self.room, sizes, group) {
            self.room = None;
            self.incoming = (0..group).map(|_| Sides::new(sizes, self.memory.dimensions.dim)).collect();
            self.room = Some(Room::new(self.device, self.memory, sizes, group)?);
        }
        Ok(group)
    }

    /// How many rows a block has, so that a room is not larger than `share`, in bytes. Returns the sequences of a group.
    fn divide(&self, plan: &mut Plan<'_, T>, share: usize) -> usize {
        let c = plan.chunk_size;
        let dimensions = self.memory.dimensions;
        let (d, h) = (dimensions.dim_head, dimensions.heads);
        let elements = self.memory.base.len();
        // What a row of one sequence takes in `Room`, and what a sequence takes whatever its rows.
        let tiles = d.div_ceil(TILE);
        let of_reader = 5 * d + if tiles > 1 { tiles * 3 * d } else { 0 };
        // Factors and what is between them; spans' starts; scores; readers; sums, norms, gates and losses of chunks.
        let of_head = 13 * d + 16 * d + 2 * c + 3 * of_reader + 8 + (16 * tiles * tiles + 40).div_ceil(c);
        let of_row = (h * of_head + 2 * h * d + 4 * dimensions.dim) * size_of::<T>();
        let of_sequence = 6 * h * elements * size_of::<T>();
        let most = |bytes: usize| (bytes / of_row).min(BLOCK_ROWS);
        let longest = plan.read_end.max(plan.store_end).saturating_sub(plan.first_chunk * c).max(1);
        // Sequences side by side while each still has a block worth its launches.
        let wanted = (most(share) / longest.min(4096).next_multiple_of(c)).clamp(1, GROUP);
        let group = wanted.min(plan.sequences.max(1)).min((share / 2 / of_sequence).max(1));
        // Heads of all sequences, and these, are the second dimension of a grid.
        let group = group.min((MOST_HEADS / (h + 1)).max(1));
        let left = share.saturating_sub(group * of_sequence);
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
        let Self { memory, device, weights, room, incoming, outgoing, marks, .. } = self;
        let room = room.as_mut().expect("made before");
        let per_sequence = memory.dimensions.heads * memory.base.len();
        let sides = &mut incoming[..group.len()];
        let load = |sides: &mut [Sides<T>], block: Block| {
            let begin = Instant::now();
            let mut sequences = sides.iter_mut().zip(group.clone());
            sequences.try_for_each(|(sides, sequence)| sides.load(plan, sequence, block))?;
            Ok::<_, Error>(begin.elapsed())
        };
        let transfer = Instant::now();
        for (i, sequence) in group.clone().enumerate() {
            let of = if state.sequences() == 1 { 0 } else { sequence };
            for (array, to) in [&state.update, &state.momentum].into_iter().zip(&mut room.state[0]) {
                let elements = array.as_slice().expect("standard layout");
                to.upload(i * per_sequence, &elements[of * per_sequence..][..per_sequence])?;
            }
        }
        let mut blocks = plan.blocks().peekable();
        if let Some(&first) = blocks.peek() {
            load(sides, first)?;
        }
        outcome.input += transfer.elapsed();

        let mut going = group.len();
        let mut rows = vec![0; going];
        while let Some(block) = blocks.next() {
            let sending = Instant::now();
            for (i, sides) in sides[..going].iter().enumerate() {
                let sent = [sides.store.rows(), sides.read.rows()];
                for (rows, to) in sent.into_iter().zip(&mut room.tokens) {
                    to.upload(i * rows.len(), rows.as_slice().expect("whole rows"))?;
                }
            }
            device.synchronize()?;
            outcome.input += sending.elapsed();

            let step = Step { memory, device: *device, weights, plan, block, sequences: going };
            step.compute(room, marks)?;
            let loading = match blocks.peek() {
                Some(&next) => load(&mut sides[..going], next)?,
                None => std::time::Duration::ZERO,
            };
            device.synchronize()?;
            // The device has worked meanwhile: what came in after it had ended was waited for.
            let computed = step.add_phases(marks, outcome)?;
            outcome.input += loading.saturating_sub(computed);

            let receiving = Instant::now();
            let mut measured = step.measured(room)?;
            outcome.output += receiving.elapsed();
            step.rescale(room, &mut measured)?;
            let writing = Instant::now();
            let output = step.output(room, outgoing)?;
            for (i, rows) in rows.iter_mut().enumerate().take(going) {
                let (reported, divergence) = step.report(room, &measured, group.start + i, i)?;
                sink.metrics(&reported)?;
                *rows += reported.len();
                let start = plan.first_query.clamp(block.read.start, block.read.end);
                let read = output.slice(s![i, start - block.read.start.., ..]);
                if read.nrows() > 0 && divergence.is_none() {
                    sink.retrieved(group.start + i, start.saturating_sub(plan.first_query), read)?;
                }
                if divergence.is_some() {
                    outcome.divergence = divergence;
                    going = i;
                    break;
                }
            }
            outcome.output += writing.elapsed();
            if block.store.len() > 0 {
                room.state.swap(0, 1);
            }
            tick(going * block.store.len().max(block.read.len()))?;
            if going == 0 {
                break;
            }
        }
        if plan.store.is_some() {
            let receiving = Instant::now();
            let [update, momentum] = &room.state[0];
            for (array, from) in [(&mut state.update, update), (&mut state.momentum, momentum)] {
                let elements = array.as_slice_mut().expect("standard layout");
                from.download(0, &mut elements[group.start * per_sequence..][..going * per_sequence])?;
            }
            outcome.output += receiving.elapsed();
        }
        let last = outcome.divergence.as_ref().map_or(group.end, |divergence| divergence.sequence + 1);
        outcome.rows += rows[..last - group.start].iter().sum::<usize>();
        (group.start..last).try_for_each(|sequence| sink.sequence_done(sequence))
    }
}

impl<'d, T: Real> Room<'d, T> {
    fn new(device: &'d dyn Device, memory: &Memory<T>, sizes: Sizes, sequences: usize) -> Result<Self> {
        let dimensions = memory.dimensions;
        let (d, c) = (dimensions.dim_head, memory.chunk_size);
        let heads = sequences * dimensions.heads;
        let (stored, read) = (heads * sizes.stored, heads * padded(sizes.read, c));
        let chunks = stored / c;
        let room = |elements: usize| Array::new(device, elements);
        let state = if sizes.storing { heads * memory.base.len() } else { 0 };
        let slots = walkers::<T>() * device.multiprocessors();
        let spans =
            Spans::of(chunks / heads, usize::MAX, [c, d], d.div_ceil(TILE).pow(2) * heads, slots).number;
        let starts = if spans > 1 { heads * spans * memory.base.len() } else { 0 };
        let mut readers = vec![Reader::new(device, read, d)?];
        // In whose attention steps are kernels of their own.
        let apart = if in_tiles::<T>(device, c) { 0 } else { read };
        if sizes.probe {
            readers.extend([Reader::new(device, stored, d)?, Reader::new(device, stored, d)?]);
        }
        Ok(Self {
            sizes,
            sequences,
            ring: Ring::of::<T>(device)?,
            spans,
            starts: [room(starts)?, room(starts)?],
            transitions: room(heads * spans * 3)?,
            tokens: [
                room(sequences * sizes.stored * dimensions.dim)?,
                room(sequences * sizes.read * dimensions.dim)?,
            ],
            keys: room(stored * d)?,
            values: room(stored * d)?,
            queries: room(read * d)?,
            steps: room(chunks * 3)?,
            qkv: room(stored * 3 * d)?,
            d_qkv: room(stored * 3 * d)?,
            scores: room(apart.max(stored) * c)?,
            d_scores: room(if in_tiles::<T>(device, c) { 0 } else { stored * c })?,
            hidden: room(apart.max(stored) * d)?,
            d_hidden: room(stored * d)?,
            activated: room(stored * d)?,
            d_output: room(stored * d)?,
            chunk_losses: [room(chunks)?, room(chunks)?, room(chunks)?],
            readers,
            parts: room(chunks * 4 * d.div_ceil(TILE).pow(2) * 4)?,
            norms: Array::new(device, chunks * 16)?,
            state: [
                [room(heads * memory.base.len())?, room(heads * memory.base.len())?],
                [room(state)?, room(state)?],
            ],
            merged: room(sequences * sizes.read * dimensions.inner())?,
            combined: (dimensions.heads > 1)
                .then(|| room(sequences * sizes.read * dimensions.dim))
                .transpose()?,
            findings: Array::new(device, RANGES + heads + sequences)?,
        })
    }

    fn bytes(&self) -> usize {
        let Self { tokens, keys, values, queries, steps, qkv, d_qkv, scores, d_scores, hidden, .. } = self;
        let Self { d_hidden, activated, d_output, chunk_losses, readers, parts, state, starts, .. } = self;
        let single = [keys, values, queries, steps, qkv, d_qkv, scores, d_scores, hidden, d_hidden];
        let others = [activated, d_output, parts, &self.merged];
        let read = readers.iter().flat_map(|reader| {
            [&reader.products, &reader.activated, &reader.outputs].into_iter().chain(&reader.parts)
        });
        let all = single.into_iter().chain(others).chain(tokens).chain(chunk_losses).chain(read);
        let all =
            all.chain(state.iter().flatten()).chain(starts).chain([&self.transitions]).chain(&self.combined);
        all.map(Array::bytes).sum::<usize>() + self.norms.bytes() + self.findings.bytes()
    }
}

/// Rows (…, D) and the weight of their norm, if they have one.
struct Lot<'a, T> {
    weight: &'a Option<Array<'a, T>>,
    rows: &'a Array<'a, T>,
    number: usize,
}

/// A block of some sequences, on its way.
struct Step<'a, T: Real> {
    memory: &'a Memory<T>,
    device: &'a dyn Device,
    weights: &'a Weights<'a, T>,
    plan: &'a Plan<'a, T>,
    block: Block,
    sequences: usize,
}

/// Moments between phases: the first, and what ended at each of the others.
#[derive(Default)]
struct Marks {
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
    fn d(&self) -> usize {
        self.memory.dimensions.dim_head
    }

    fn c(&self) -> usize {
        self.memory.chunk_size
    }

    /// Over all sequences.
    fn heads(&self) -> usize {
        self.sequences * self.memory.dimensions.heads
    }

    /// Stored of one head.
    fn chunks(&self) -> usize {
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
        self.device.multiply(&Product { dtype: T::TYPE, batch, size, scale, a, b, c })
    }

    /// Everything that the device does of a block, asked for in order.
    fn compute(&self, room: &mut Room<'_, T>, marks: &mut Marks) -> Result<()> {
        marks.start(self.device)?;
        let mut done = |phase: Phase| marks.end(phase, self.device);
        // `NONE`, all of them.
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
    fn add_phases(&self, marks: &Marks, outcome: &mut Outcome) -> Result<std::time::Duration> {
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
        Ok(std::time::Duration::from_secs_f64(all))
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
        for i in 0..self.sequences {
            let [of_store, of_read] = [(0, stored), (1, read)].map(|(side, rows): (usize, usize)| {
                matrix(room.tokens[side].address(i * rows * dim), dim, 0)
            });
            let head = |array: &Array<T>, rows: usize| matrix(array.address(i * h * rows * d), d, rows * d);
            let columns =
                |array: &Array<T>, first: usize, width: usize| matrix(array.address(first), width, d);
            let keys_values = &weights.keys_values;
            for (first, to) in [(0, &room.keys), (inner, &room.values)] {
                let product = [of_store, columns(keys_values, first, 2 * inner), head(to, stored)];
                self.multiply(h, [stored, d, dim], 1.0, product)?;
            }
            let product = [of_read, columns(&weights.queries, 0, inner), head(&room.queries, read_rows)];
            self.multiply(h, [read, d, dim], 1.0, product)?;
        }
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
        arguments.extend([Argument::count(self.memory.dimensions.dim), Argument::F64(T::EPS.wide())]);
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
        self.launch(name, grid, tiles * tile_bytes::<T>(), arguments)
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
        let mut arguments = [predicted, &room.values, sums].map(Array::argument).to_vec();
        arguments.extend([self.c(), self.d()].map(Argument::count));
        arguments.push(Argument::U32(gradient.into()));
        self.launch("chunk_losses", [self.heads() * self.chunks(), 1, 1], 0, &arguments)
    }

    fn spans(&self, room: &Room<'_, T>) -> Spans {
        let blocks = self.d().div_ceil(TILE).pow(2) * self.heads();
        let slots = walkers::<T>() * self.device.multiprocessors();
        Spans::of(self.chunks(), room.spans, [self.c(), self.d()], blocks, slots)
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
    fn walk(&self, room: &mut Room<'_, T>, layer: usize, scale: f64) -> Result<()> {
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
    fn weight_norms(&self, room: &Room<'_, T>) -> Result<()> {
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

    /// What `measure` and the walks found.
    fn measured(&self, room: &Room<'_, T>) -> Result<Measured<T>> {
        let places = self.heads() * self.chunks();
        let take = |array: &Array<'_, T>, elements: usize| {
            let mut taken = vec![T::zero(); elements];
            array.download(0, &mut taken)?;
            Ok::<_, Error>(taken)
        };
        let probed = if room.sizes.probe { places } else { 0 };
        let [at_w, before, after] = &room.chunk_losses;
        Ok(Measured {
            steps: take(&room.steps, 3 * places)?,
            losses: [take(at_w, places)?, take(before, probed)?, take(after, probed)?],
            norms: self.norms(room)?,
            findings: room.findings.to_vec()?,
        })
    }

    fn norms(&self, room: &Room<'_, T>) -> Result<Vec<f64>> {
        let mut norms = vec![0.0; self.heads() * self.chunks() * 16];
        room.norms.download(0, &mut norms)?;
        Ok(norms)
    }

    /// Norms whose squares left the range of T are taken from walks with other scales.
    fn rescale(&self, room: &mut Room<'_, T>, measured: &mut Measured<T>) -> Result<()> {
        // Far enough for the smallest and the largest numbers, and their squares' sums, to come into range.
        let exponent = match T::TYPE {
            ElementType::F32 => 80,
            ElementType::F64 => 560,
        };
        for (range, scale) in [2f64.powi(-exponent), 2f64.powi(exponent)].into_iter().enumerate() {
            if measured.findings[range] == NONE {
                continue;
            }
            for layer in 0..2 {
                self.walk(room, layer, scale)?;
            }
            self.weight_norms(room)?;
            let large = range == 0;
            for (norm, scaled) in measured.norms.iter_mut().zip(self.norms(room)?) {
                if !trusted::<T>(*norm * *norm) && (*norm > 1.0) == large {
                    *norm = scaled / scale;
                }
            }
        }
        Ok(())
    }

    /// What was read: (sequences, rows, D), in `taken`.
    fn output<'t>(&self, room: &Room<'_, T>, taken: &'t mut Vec<T>) -> Result<ArrayView3<'t, T>> {
        let shape = (self.sequences, self.block.read.len(), self.memory.dimensions.dim);
        taken.resize(shape.0 * shape.1 * shape.2, T::zero());
        room.combined.as_ref().unwrap_or(&room.merged).download(0, taken)?;
        Ok(ArrayView3::from_shape(shape, &*taken).expect("as many elements"))
    }

    /// Rows of the metrics of sequence `i` of the group by chunk and head, up to the first divergence: a head's before the whole's.
    fn report(
        &self,
        room: &Room<'_, T>,
        measured: &Measured<T>,
        sequence: usize,
        i: usize,
    ) -> Result<(Vec<ChunkMetrics<T>>, Option<Divergence>)> {
        let (h, c, chunks) = (self.memory.dimensions.heads, self.c(), self.chunks());
        let first = self.block.start() / c;
        let mut divergence: Option<Divergence> = None;
        let mut diverged = |chunk: usize, head: Option<usize>, quantity: &'static str, value: T| {
            if divergence.as_ref().is_none_or(|at| first + chunk < at.chunk) {
                let value = value.to_string();
                divergence = Some(Divergence { sequence, chunk: first + chunk, head, quantity, value });
            }
        };
        let mut of_heads = Vec::new();
        for head in 0..h {
            let place = i * h + head;
            let retrieved =
                Some(measured.findings[RANGES + place]).filter(|&row| row != NONE).map(|row| row as usize);
            let until = retrieved.map_or(chunks, |row| (row / c).min(chunks));
            let row =
                |chunk: usize| self.row(measured, (sequence, first + chunk, head), place * chunks + chunk);
            let mut rows: Vec<_> = (0..until).map(row).collect();
            let bad = rows.iter().enumerate().find_map(|(chunk, row)| Some((chunk, row.first_nonfinite()?)));
            if let Some((chunk, (quantity, value))) = bad {
                diverged(chunk, Some(head), quantity, value);
                rows.truncate(chunk);
            } else if let Some(row) = retrieved {
                let start = (place * padded(self.block.read.len(), c) + row) * self.d();
                diverged(
                    row / c,
                    Some(head),
                    "retrieved",
                    nonfinite(&room.readers[0].outputs, start, self.d())?,
                );
            }
            of_heads.push(rows.into_iter());
        }
        let row = measured.findings[RANGES + self.heads() + i];
        if row != NONE {
            let dim = self.memory.dimensions.dim;
            let output = room.combined.as_ref().unwrap_or(&room.merged);
            let start = (i * self.block.read.len() + row as usize) * dim;
            diverged(row as usize / c, None, "retrieved", nonfinite(output, start, dim)?);
        }
        let end = divergence.as_ref().map_or(usize::MAX, |at| at.chunk);
        let mut reported = Vec::with_capacity(h * chunks);
        for _ in 0..chunks {
            reported.extend(of_heads.iter_mut().filter_map(Iterator::next).filter(|row| row.chunk < end));
        }
        Ok((reported, divergence))
    }

    fn row(&self, measured: &Measured<T>, of: (usize, usize, usize), place: usize) -> ChunkMetrics<T> {
        let [at_w, before, after] = &measured.losses;
        let probed = before.get(place).zip(after.get(place)).map(|(&before, &after)| [before, after]);
        let [learning_rate, momentum, decay] = [0, 1, 2].map(|gate| measured.steps[place * 3 + gate].wide());
        let gates = GateValues { learning_rate, momentum, decay };
        let of_weight = |norms: &[f64]| Norms {
            surprise: norms[0],
            momentum: norms[1],
            update: norms[2],
            weight: norms[3],
        };
        let norms: Vec<_> = measured.norms[place * 16..][..16].chunks(4).map(of_weight).collect();
        metrics(of, self.c(), (at_w[place], probed), gates, &norms)
    }
}

/// The first number that is not finite among some.
fn nonfinite<T: Real>(array: &Array<'_, T>, start: usize, number: usize) -> Result<T> {
    let mut values = vec![T::zero(); number];
    array.download(start, &mut values)?;
    Ok(values.into_iter().find(|x| !x.is_finite()).unwrap_or_else(T::nan))
}
