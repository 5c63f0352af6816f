//! The way back through a segment by blocks of the weights, where gradients are never refreshed.
//!
//! Blocks of the weights are independent but for the rows that they multiply. A task therefore takes its share of a map's blocks, one
//! after another, forward through the chunks of a segment and back again. On the way back it runs the recurrences, multiplies what is read, and multiplies S̄ with the
//! factors of the gradients. Where √N chunks are few its states stay in the cache, and no state of all weights is kept but those at
//! the starts of segments. A segment takes one such pass for each linear map, from the last to the first.

use std::ops::Range;

use ndarray::{ArrayView2, ArrayViewMut2, s};
use rayon::prelude::*;

use super::block::Block;
use super::few_rows::{FewRows, are_few};
use super::head::{HeadSequence, State, add};
use super::node_rows::Passage;
use super::passes::Passes;
use super::pool::{MOST_KEPT, Pool};
use super::reads::Read;
use super::recurrences::{FewBack, few_space, step, step_back};
use super::reverse::add_to_both;
use super::segment::Interval;
use crate::engine::panel::Step;
use crate::memory::graph::Value;
use crate::memory::program::Program;
use crate::real::Real;
use crate::small_matmul::{multiply, multiply_add};

/// Returns whether a segment's way back goes by blocks of the weights: where gradients are never refreshed, and the factors of a
/// chunk's gradients have fewer numbers than the weights. The values of all reads are kept there.
pub fn go_in_blocks(passes: &Passes, program: &Program) -> bool {
    program.schedule.refresh.is_none() && passes.numbers_of_factors() * passes.chunk < passes.graph.elements()
}

/// Returns a bound of the numbers that the way back takes beside the rows of nodes, with some chunks in all segments at work, and some
/// tasks.
pub fn numbers<T>(passes: &Passes, chunks: usize, tasks: usize) -> usize {
    let rows = chunks * passes.chunk;
    // Results of all maps, and chunks and buffers of the tasks of one of them.
    let of_results = |map| {
        let (_, (_, width)) = passes.place(map);
        rows * passes.shares_of(map).count() * (width + 2 * passes.share_rows(map))
    };
    let of_tasks = |map| {
        let (_, (_, width)) = passes.place(map);
        let buffer = (2 * chunks + 5) * passes.largest_block() + few_space(passes.chunk, width);
        let small =
            chunks * (size_of::<MapChunk<'_, T>>() + passes.shares_of(map).count() * size_of::<[f64; 2]>());
        tasks * (buffer + LINE / size_of::<T>()) + small.div_ceil(size_of::<T>())
    };
    passes.linears().map(of_results).sum::<usize>() + passes.linears().map(of_tasks).max().unwrap_or(0)
}

/// A segment on its way back through the linear maps.
pub struct SegmentBack<T> {
    /// State at its start; `None` at the first segment.
    pub start: Option<State<T>>,
    pub gradients: Interval<T>,
    pub reads: Vec<ReadBack<T>>,
    /// Results of a map, until they are joined.
    of_shares: Vec<OfShare<T>>,
    /// Products of each map so far.
    pub products: Vec<MapProducts<T>>,
}

impl<T> SegmentBack<T> {
    pub fn new(start: Option<State<T>>, gradients: Interval<T>, reads: Vec<ReadBack<T>>) -> Self {
        Self { start, gradients, reads, of_shares: Vec::new(), products: Vec::new() }
    }
}

/// A read before some chunks, with its values and their cotangents.
pub struct ReadBack<T> {
    pub read: Read,
    pub passage: Passage<T>,
}

/// One chunk of a segment at a linear map.
struct MapChunk<'a, T> {
    /// Factors A and B of the gradient that is stored.
    stored: [ArrayView2<'a, T>; 2],
    /// Rows X that are read before, and the cotangents Y of their products.
    read: Option<[ArrayView2<'a, T>; 2]>,
    /// Rows of the results of what is read.
    read_rows: Range<usize>,
    /// Rows that are stored and rows that are read as slices, if a chunk has few.
    few: Option<[FewRows<'a, T>; 2]>,
}

/// Blocks that one task takes one after another, with their cotangents of U, S and the initial weights.
type ShareTask<'a, T> = (&'a [Block], [&'a mut [T]; 3]);

/// Results of some blocks of a linear map, in the rows of a segment's chunks.
pub struct OfShare<T> {
    /// Cotangents of η and α of each chunk.
    gates: Vec<[f64; 2]>,
    /// For each block, B S̄ᵀ (rows, rows of the block) and Y (W + U)ᵀ (rows that are read, rows of the block).
    of_rows: Vec<T>,
    /// The blocks' share of A S̄ (rows, out). Both may have more numbers, which are old.
    of_b: Vec<T>,
    rows: usize,
    read: usize,
    width: usize,
}

impl<T> OfShare<T> {
    /// Returns the blocks' share of A S̄.
    fn of_b(&self) -> &[T] {
        &self.of_b[..self.rows * self.width]
    }

    /// Yields each block with its two products.
    fn of_blocks<'p>(
        &'p self,
        blocks: &'p [Block],
    ) -> impl Iterator<Item = (&'p Block, [ArrayView2<'p, T>; 2])> {
        let mut rest = &self.of_rows[..];
        blocks.iter().map(move |block| {
            let height = block.rows.len();
            let products = [self.rows, self.read].map(|rows| {
                let numbers = rest.split_off(..rows * height).expect("numbers of each product");
                ArrayView2::from_shape((rows, height), numbers).expect(SHAPE)
            });
            (block, products)
        })
    }
}

/// Places for the results of a block, in the rows of a segment's chunks.
struct BlockResults<'a, T> {
    /// Whether A S̄ is added to that of other blocks.
    keep: bool,
    gates: &'a mut [[f64; 2]],
    of_b: &'a mut [T],
    of_a: &'a mut [T],
    of_x: &'a mut [T],
}

/// Products of the factors of a linear map's gradients with S̄, in the rows of a segment's chunks.
pub struct MapProducts<T> {
    pub map: usize,
    /// Results of each share of the map. The first one has the sum of all shares of A S̄.
    shares: Vec<OfShare<T>>,
}

impl<T> MapProducts<T> {
    /// Returns A S̄ (rows, out) of some rows.
    pub fn of_b(&self, rows: Range<usize>) -> ArrayView2<'_, T> {
        let width = self.shares[0].width;
        let numbers = &self.shares[0].of_b()[rows.start * width..rows.end * width];
        ArrayView2::from_shape((rows.len(), width), numbers).expect(SHAPE)
    }

    /// Yields the columns of each block, and B S̄ᵀ (rows, columns) of some rows.
    pub fn of_a<'p>(
        &'p self,
        passes: &'p Passes,
        rows: Range<usize>,
    ) -> impl Iterator<Item = (Range<usize>, ArrayView2<'p, T>)> {
        let shares = passes.shares_of(self.map).zip(&self.shares);
        shares
            .flat_map(|(blocks, share)| share.of_blocks(blocks))
            .map(move |(block, [of_a, _])| (block.rows.clone(), of_a.slice_move(s![rows.clone(), ..])))
    }
}

impl<T: Real> HeadSequence<'_, T> {
    /// Passes the cotangents of a read back through operators.
    pub fn operators_vjp(&self, nodes: Range<usize>, ReadBack { read, passage }: &mut ReadBack<T>) {
        let queries = self.queries.slice(s![read.rows.clone(), ..]);
        self.passes.operators_vjp(nodes, queries, passage);
    }

    /// Passes cotangents back through a linear map in all chunks of a segment.
    pub fn map_vjp<'b>(&'b self, map: usize, segment: &mut SegmentBack<T>, carried: &mut [&mut [T]; 3]) {
        let c = self.chunk();
        let chunks = segment.gradients.chunks.clone();
        let (_, (height, width)) = self.passes.place(map);
        let input = self.passes.graph.nodes[map].inputs[0];
        // These stand in for rows that are missing.
        let zeros = vec![T::zero(); height.max(width)];
        let mut of_chunks = Vec::with_capacity(chunks.len());
        for (chunks, passage) in &segment.gradients.groups {
            let factors = self.passes.factors(passage, self.examples(chunks).keys, map);
            let factors = factors.expect("a gradient of each map");
            of_chunks.extend((0..chunks.len()).map(|i| {
                let rows = i * c..(i + 1) * c;
                let stored = factors.map(|factor| factor.slice_move(s![rows.clone(), ..]));
                let few = FewRows::new(factors, rows).map(|stored| [stored, FewRows::padded(c, &zeros)]);
                MapChunk { stored, read: None, read_rows: 0..0, few }
            }));
        }
        let (mut of_reads, mut count) = (Vec::new(), 0);
        for ReadBack { read, passage } in &segment.reads {
            let x = passage.values.of(input, self.queries.slice_move(s![read.rows.clone(), ..]));
            let y = passage.cotangents.of(Value::Node(map)).expect("a cotangent of each map");
            for (i, chunk) in read.chunks.clone().enumerate() {
                let rows = i * c..read.rows.len().min((i + 1) * c);
                let chunk = &mut of_chunks[chunk - chunks.start];
                chunk.read = Some([x, y].map(|matrix| matrix.slice_move(s![rows.clone(), ..])));
                chunk.read_rows = count + rows.start..count + rows.end;
                if let Some([_, few]) = &mut chunk.few {
                    *few = few.with([x, y], rows);
                }
            }
            of_reads.push([x, y]);
            count += read.rows.len();
        }
        let mut rest = carried.each_mut().map(|array| &mut array[..]);
        let task = |blocks: &'b [Block]| {
            let size = blocks.iter().map(|block| block.place.len()).sum();
            (blocks, rest.each_mut().map(|rest| rest.split_off_mut(..size).expect("weights of the blocks")))
        };
        let tasks: Vec<_> = self.passes.shares_of(map).map(task).collect();
        let many = Self::batch(tasks[0].1[0].len() * chunks.len() * c);
        let start = segment.start.as_ref().unwrap_or(&self.start);
        let of_share = |task| self.share_vjp(task, (start, chunks.start), (&of_chunks, &of_reads));
        segment.of_shares = tasks.into_par_iter().with_min_len(many).map(of_share).collect();
    }

    /// Joins the results of a linear map's blocks, and passes the cotangents of reads back through the operators before it. Adds the
    /// cotangents of η and α to those of the segment's gates.
    pub fn join_shares(
        &self,
        (map, operators): (usize, Range<usize>),
        segment: &mut SegmentBack<T>,
        gates: &mut [[f64; 3]],
    ) {
        let c = self.chunk();
        let input = self.passes.graph.nodes[map].inputs[0];
        let mut shares = std::mem::take(&mut segment.of_shares);
        for share in &shares {
            for (gates, [eta, alpha]) in gates.iter_mut().zip(&share.gates) {
                gates[1] += eta;
                gates[2] += alpha;
            }
        }
        let firsts = segment.reads.iter().scan(0, |count, read| {
            *count += read.read.rows.len();
            Some(*count - read.read.rows.len())
        });
        let firsts: Vec<_> = firsts.collect();
        let many = Self::batch(c * self.elements());
        segment.reads.par_iter_mut().zip(firsts).with_min_len(many).for_each(|(read, first)| {
            if let Some((mut to, keep)) = read.passage.cotangents.reach(input) {
                for (blocks, share) in self.passes.shares_of(map).zip(&shares) {
                    for (block, [_, of_x]) in share.of_blocks(blocks) {
                        write_columns(block, to.view_mut(), keep, of_x.slice(s![first.., ..]));
                    }
                }
            }
            self.operators_vjp(operators.clone(), read);
        });
        let (sum, others) = shares.split_first_mut().expect("a share of each map");
        for other in others {
            add(&mut sum.of_b, other.of_b());
            Self::recycle_results(&self.buffers.results[map][1], std::mem::take(&mut other.of_b));
        }
        segment.products.push(MapProducts { map, shares });
    }

    /// Gives the buffers of a map's products back.
    pub fn recycle_products(&self, MapProducts { map, shares }: MapProducts<T>) {
        let [of_rows, of_b] = &self.buffers.results[map];
        for share in shares {
            Self::recycle_results(of_b, share.of_b);
            Self::recycle_results(of_rows, share.of_rows);
        }
    }

    /// Takes space for results, with old contents.
    fn results(pool: &Pool<Vec<T>>, numbers: usize) -> Vec<T> {
        pool.take(|buffer| buffer.len() >= numbers, || vec![T::zero(); numbers])
    }

    /// Gives space for results back, unless it is large.
    fn recycle_results(pool: &Pool<Vec<T>>, results: Vec<T>) {
        if results.len() <= MOST_KEPT {
            pool.give(results);
        }
    }

    /// Computes U and S of a block before each chunk from those before the first.
    fn block_states(&self, block: &Block, steps: &[Step<T>], chunks: &[MapChunk<'_, T>], states: &mut [T]) {
        let size = block.place.len();
        for (i, chunk) in chunks[..chunks.len() - 1].iter().enumerate() {
            let (before, after) = states[2 * i * size..].split_at_mut(2 * size);
            let (u, s) = before.split_at(size);
            let (next_u, next_s) = after[..2 * size].split_at_mut(size);
            if chunk.few.is_none() {
                block.product(next_s, false, chunk.stored, 0..self.chunk());
            }
            let few = chunk.few.map_or(FewRows::empty(), |[stored, _]| stored.in_block(block));
            step(&steps[i], few, [u, s], [next_u, next_s]);
        }
    }

    /// Takes a share of a map's blocks forward through some chunks and back.
    fn share_vjp(
        &self,
        (blocks, mut carried): ShareTask<'_, T>,
        (start, first): (&State<T>, usize),
        (chunks, reads): (&[MapChunk<'_, T>], &[[ArrayView2<'_, T>; 2]]),
    ) -> OfShare<T> {
        let read = reads.iter().map(|[x, _]| x.nrows()).sum();
        let (rows, longest) = (chunks.len() * self.chunk(), self.longest_segment() * self.chunk());
        let map = blocks[0].map;
        let (_, (_, width)) = self.passes.place(map);
        let [pool_of_rows, pool_of_b] = &self.buffers.results[map];
        // As many numbers for each segment and share, so that any of them takes the buffer.
        let of_b = Self::results(pool_of_b, longest * width);
        let of_rows = Self::results(pool_of_rows, 2 * longest * self.passes.share_rows(map));
        let mut results = OfShare { gates: vec![[0.0; 2]; chunks.len()], of_rows, of_b, rows, read, width };
        let (of_b, mut rest) = (&mut results.of_b[..rows * width], &mut results.of_rows[..]);
        for (i, block) in blocks.iter().enumerate() {
            let height = block.rows.len();
            let of_a = rest.split_off_mut(..rows * height).expect("numbers of each product");
            let of_x = rest.split_off_mut(..read * height).expect("numbers of each product");
            let carried = carried
                .each_mut()
                .map(|rest| rest.split_off_mut(..block.place.len()).expect("weights of a block"));
            let to = BlockResults { keep: i > 0, gates: &mut results.gates, of_b: &mut *of_b, of_a, of_x };
            self.block_vjp((block, carried), (start, first), (chunks, reads), to);
        }
        results
    }

    /// Takes a block of the weights forward through some chunks and back.
    fn block_vjp(
        &self,
        (block, [d_update, d_momentum, d_base]): (&Block, [&mut [T]; 3]),
        (start, first): (&State<T>, usize),
        (chunks, reads): (&[MapChunk<'_, T>], &[[ArrayView2<'_, T>; 2]]),
        to: BlockResults<'_, T>,
    ) {
        let c = self.chunk();
        let (size, height) = (block.place.len(), block.rows.len());
        let width = size / height;
        let whole = self.program.rule.holds_weights();
        let few_rows = are_few(c);
        let steps = &self.steps[first..];
        let packed = if few_rows { few_space(c, width) } else { 0 };
        let numbers = (2 * chunks.len() + 5) * size + packed + LINE / size_of::<T>();
        let fits = |buffer: &Vec<T>| buffer.len() >= numbers;
        let mut buffer = self.buffers.weights.take(fits, || vec![T::zero(); numbers]);
        let space = aligned(&mut buffer);
        // U and S before each chunk.
        let (states, space) = space.split_at_mut(2 * chunks.len() * size);
        // Space for the cotangent of S after a chunk, and for weights.
        let (s_after, space) = space.split_at_mut(size);
        let (weights, space) = space.split_at_mut(size);
        // Cotangents and initial weights of the block.
        let (u_bar, space) = space.split_at_mut(size);
        let (s_bar, space) = space.split_at_mut(size);
        let (base, space) = space.split_at_mut(size);
        let packed = &mut space[..packed];
        u_bar.copy_from_slice(d_update);
        s_bar.copy_from_slice(d_momentum);
        if whole {
            base.fill(T::zero());
        } else {
            base.copy_from_slice(&self.base[block.place.clone()]);
        }
        states[..size].copy_from_slice(&start.update[block.place.clone()]);
        states[size..2 * size].copy_from_slice(&start.momentum[block.place.clone()]);
        self.block_states(block, steps, chunks, states);

        for (i, chunk) in chunks.iter().enumerate().rev() {
            let (u, s) = states[2 * i * size..2 * (i + 1) * size].split_at(size);
            let of_a = &mut to.of_a[i * c * height..(i + 1) * c * height];
            let of_b = &mut to.of_b[i * c * width..(i + 1) * c * width];
            let of_x = &mut to.of_x[chunk.read_rows.start * height..chunk.read_rows.end * height];
            let cotangents = [&mut *u_bar, &mut *s_bar];
            let [eta, alpha] = if let Some(few) = &chunk.few {
                let [stored, read] = few.map(|few| few.in_block(block));
                let old = [u, s, &*base];
                let step = &steps[i];
                let space = &mut *packed;
                let keep = to.keep;
                FewBack { step, stored, read, old, cotangents, keep, of_b, of_a, of_x, space }.run()
            } else {
                let gates = step_back(&steps[i], [u, s], s_after, cotangents);
                let [a, b] = chunk.stored;
                let s_bar = ArrayView2::from_shape((height, width), &*s_after).expect(SHAPE);
                let of_b = ArrayViewMut2::from_shape((c, width), of_b).expect(SHAPE);
                multiply_add(of_b, to.keep, T::one(), a.slice(s![.., block.rows.clone()]), s_bar);
                let of_a = ArrayViewMut2::from_shape((c, height), of_a).expect(SHAPE);
                multiply(of_a, b, s_bar.reversed_axes());
                if let Some([x, y]) = chunk.read {
                    weights.copy_from_slice(u);
                    add(weights, base);
                    let weights = ArrayView2::from_shape((height, width), &*weights).expect(SHAPE);
                    let of_x = ArrayViewMut2::from_shape((x.nrows(), height), of_x).expect(SHAPE);
                    multiply(of_x, y, weights.reversed_axes());
                    if whole {
                        block.product(u_bar, true, [x, y], 0..x.nrows());
                    } else {
                        // `s_after` is free again.
                        block.product(s_after, false, [x, y], 0..x.nrows());
                        add_to_both([&mut *u_bar, &mut *d_base], s_after);
                    }
                }
                gates
            };
            to.gates[i][0] += eta;
            to.gates[i][1] += alpha;
            if self.is_cut(first + i) {
                u_bar.fill(T::zero());
                s_bar.fill(T::zero());
            }
        }
        if few_rows && !whole {
            // One product of all rows takes less time than many of few.
            for &[x, y] in reads {
                block.product(d_base, true, [x, y], 0..x.nrows());
            }
        }
        d_update.copy_from_slice(u_bar);
        d_momentum.copy_from_slice(s_bar);
        self.buffers.weights.give(buffer);
    }
}

/// Copies rows of a block's results to the block's columns of `to`, or adds them if `keep`.
fn write_columns<T: Real>(
    block: &Block,
    mut to: ArrayViewMut2<'_, T>,
    keep: bool,
    results: ArrayView2<'_, T>,
) {
    for (mut to, from) in to.rows_mut().into_iter().zip(results.rows()) {
        let from = from.to_slice().expect("contiguous rows");
        let to = &mut to.as_slice_mut().expect("contiguous rows")[block.rows.clone()];
        if keep {
            add(to, from);
        } else {
            to.copy_from_slice(from);
        }
    }
}

/// Bytes of a cache line. A vector that lies in two takes twice as long.
const LINE: usize = 64;

/// Returns the part of a buffer that begins with a cache line.
fn aligned<T>(buffer: &mut [T]) -> &mut [T] {
    let before = buffer.as_ptr().align_offset(LINE).min(LINE / size_of::<T>());
    &mut buffer[before..]
}

const SHAPE: &str = "as many numbers as the shape";
