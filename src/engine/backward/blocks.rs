//! The way back through a segment by blocks of the weights, where gradients are never refreshed.
//!
//! Blocks of the weights are independent but for the rows that they multiply. One task therefore takes a block forward through the
//! chunks of a segment and back again. On the way back it runs the recurrences, multiplies what is read, and multiplies S̄ with the
//! factors of the gradients. Where √N chunks are few its states stay in the cache, and no state of all weights is kept but those at
//! the starts of segments. A segment takes one such pass for each linear map, from the last to the first.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};
use rayon::prelude::*;

use super::block::Block;
use super::few_rows::{FewRows, are_few};
use super::head::{HeadCotangents, HeadSequence, Parts, RowCotangents, State, add};
use super::node_rows::{Passage, Values};
use super::passes::Passes;
use super::reads::Read;
use super::recurrences::{FewBack, few_space, step, step_back};
use super::reverse::{Carried, add_to_both};
use super::segment::Interval;
use crate::engine::panel::Step;
use crate::memory::graph::Value;
use crate::memory::program::Program;
use crate::real::Real;
use crate::small_matmul::multiply;

/// Returns whether a segment's way back goes by blocks of the weights: where gradients are never refreshed, and the factors of a
/// chunk's gradients have fewer numbers than the weights. The values of all reads are kept there.
pub fn go_in_blocks(passes: &Passes, program: &Program) -> bool {
    program.schedule.refresh.is_none() && passes.numbers_of_factors() * passes.chunk < passes.graph.elements()
}

/// Returns a bound of the numbers that a segment's way back takes beside the rows of nodes, with some tasks at work.
pub fn numbers<T>(passes: &Passes, chunks: usize, tasks: usize) -> usize {
    let rows = chunks * passes.chunk;
    // Products of all maps, and results, chunks and buffers of the tasks of one of them.
    let of_products = |map| {
        let (_, (height, width)) = passes.place(map);
        rows * (height + width)
    };
    let of_tasks = |map| {
        let (_, (height, width)) = passes.place(map);
        let blocks = passes.blocks.iter().filter(|block| block.map == map).count();
        let buffer = (2 * chunks + 5) * passes.largest_block() + few_space(passes.chunk, width);
        let small = chunks * (size_of::<MapChunk<'_, T>>() + blocks * size_of::<[f64; 2]>());
        rows * (blocks * width + 2 * height)
            + tasks * (buffer + LINE / size_of::<T>())
            + small.div_ceil(size_of::<T>())
    };
    passes.linears().map(of_products).sum::<usize>() + passes.linears().map(of_tasks).max().unwrap_or(0)
}

/// A read before some chunks, with its values and their cotangents.
struct ReadBack<'a, T> {
    read: Read,
    passage: Passage<T>,
    d_queries: ArrayViewMut2<'a, T>,
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

/// One block of a linear map, with its cotangents of U, S and the initial weights.
type BlockTask<'a, T> = (&'a Block, [&'a mut [T]; 3]);

/// Results of one block, in the rows of a segment's chunks.
struct OfBlock<T> {
    /// Cotangents of η and α of each chunk.
    gates: Vec<[f64; 2]>,
    /// B S̄ᵀ (rows, rows of the block).
    of_a: Vec<T>,
    /// The block's part of A S̄ (rows, out).
    of_b: Vec<T>,
    /// Y (W + U)ᵀ (rows that are read, rows of the block).
    of_x: Vec<T>,
}

/// Products of the factors of a linear map's gradients with S̄, in the rows of a segment's chunks.
struct MapProducts<T> {
    map: usize,
    /// B S̄ᵀ (rows, in).
    of_a: Array2<T>,
    /// A S̄ (rows, out).
    of_b: Array2<T>,
}

impl<T: Real> HeadSequence<'_, T> {
    /// Passes the cotangents of a segment back, from the state at its start, its gradients and the values of its reads.
    pub fn blocks_vjp(
        &self,
        (start, mut intervals, kept): (&State<T>, Vec<Interval<T>>, Vec<Values<T>>),
        d_output: ArrayView2<'_, T>,
        carried: &mut Carried<T>,
        results: &mut HeadCotangents<T>,
        to: &mut RowCotangents<'_, T>,
    ) {
        let first = intervals[0].chunks.start;
        let mut queries = Parts::new(to.queries.view_mut());
        let groups = intervals.iter().flat_map(|interval| &interval.groups);
        let reads = self.reads_before(groups.map(|(chunks, _)| chunks.clone()), &mut queries);
        assert_eq!(reads.len(), kept.len(), "values of each read");
        let maps: Vec<_> = self.passes.linears().collect();
        let last = *maps.last().expect("a linear map");
        let back = |((read, d_queries), values): ((Read, _), _)| {
            let mut passage = Passage { values, cotangents: self.node_rows(read.rows.len()) };
            self.passes.start_vjp(&mut passage, d_output.slice(s![read.rows.clone(), ..]));
            let mut read = ReadBack { read, passage, d_queries };
            self.operators_vjp(last + 1..self.passes.graph.nodes.len(), &mut read);
            read
        };
        let mut reads: Vec<_> = reads.into_par_iter().zip(kept).map(back).collect();
        let mut products = Vec::new();
        for (i, &map) in maps.iter().enumerate().rev() {
            let operators = i.checked_sub(1).map_or(0, |before| maps[before] + 1)..map;
            let state = (start, &intervals[..]);
            products.push(self.map_vjp((map, operators), state, &mut reads, carried, results));
        }
        reads.into_par_iter().for_each(|ReadBack { passage, mut d_queries, .. }| {
            match passage.cotangents.of(Value::Rows) {
                Some(cotangent) => d_queries.assign(&cotangent),
                None => d_queries.fill(T::zero()),
            }
            self.give(passage);
        });
        for interval in intervals.iter_mut().rev() {
            let steps = &self.steps;
            self.gradients_vjp(interval, carried, results, to, |chunks, passage, second, d_rates| {
                let keys = self.examples(chunks).keys;
                let rows = (chunks.start - first) * self.chunk()..(chunks.end - first) * self.chunk();
                let rates: Vec<_> = steps[chunks.clone()].iter().map(|step| step.learning_rate).collect();
                for MapProducts { map, of_a, of_b } in &products {
                    let products = [of_a, of_b].map(|products| products.slice(s![rows.clone(), ..]));
                    self.passes.products_vjp(*map, keys, (passage, second), products, (&rates, d_rates));
                }
            });
        }
        self.recycle_intervals(intervals);
    }

    /// Passes the cotangents of a read back through operators.
    fn operators_vjp(&self, nodes: Range<usize>, ReadBack { read, passage, .. }: &mut ReadBack<'_, T>) {
        let queries = self.queries.slice(s![read.rows.clone(), ..]);
        self.passes.operators_vjp(nodes, queries, passage);
    }

    /// Passes cotangents back through a linear map in all chunks of a segment, and those of reads through the operators before it.
    fn map_vjp<'s>(
        &'s self,
        (map, operators): (usize, Range<usize>),
        (start, intervals): (&State<T>, &[Interval<T>]),
        reads: &mut [ReadBack<'_, T>],
        carried: &mut Carried<T>,
        results: &mut HeadCotangents<T>,
    ) -> MapProducts<T> {
        let c = self.chunk();
        let chunks = intervals[0].chunks.start..intervals[intervals.len() - 1].chunks.end;
        let (place, (height, width)) = self.passes.place(map);
        let input = self.passes.graph.nodes[map].inputs[0];
        // These stand in for rows that are missing.
        let zeros = vec![T::zero(); height.max(width)];
        let mut of_chunks = Vec::with_capacity(chunks.len());
        for (chunks, passage) in intervals.iter().flat_map(|interval| &interval.groups) {
            let factors = self.passes.factors(passage, self.examples(chunks).keys, map);
            let factors = factors.expect("a gradient of each map");
            of_chunks.extend((0..chunks.len()).map(|i| {
                let rows = i * c..(i + 1) * c;
                let stored = factors.map(|factor| factor.slice_move(s![rows.clone(), ..]));
                let few = FewRows::new(factors, rows).map(|stored| [stored, FewRows::padded(c, &zeros)]);
                MapChunk { stored, read: None, read_rows: 0..0, few }
            }));
        }
        let (mut of_reads, mut firsts, mut count) = (Vec::new(), Vec::new(), 0);
        for ReadBack { read, passage, .. } in &*reads {
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
            firsts.push(count);
            count += read.rows.len();
        }

        let Carried { update, momentum, base, .. } = carried;
        let mut rest = [update, momentum, base].map(|array| &mut array[place.clone()]);
        let blocks: Vec<_> = self.passes.blocks.iter().filter(|block| block.map == map).collect();
        let task = |&block: &&'s Block| {
            let carried =
                rest.each_mut().map(|rest| rest.split_off_mut(..block.place.len()).expect("a block"));
            (block, carried)
        };
        let tasks: Vec<_> = blocks.iter().map(task).collect();
        let many = Self::batch(blocks[0].place.len() * chunks.len() * c);
        let of_block = |task| self.block_vjp(task, (start, chunks.start), (&of_chunks, &of_reads), count);
        let of_blocks: Vec<_> = tasks.into_par_iter().with_min_len(many).map(of_block).collect();
        for of_block in &of_blocks {
            for (gates, [eta, alpha]) in results.gates[chunks.clone()].iter_mut().zip(&of_block.gates) {
                gates[1] += eta;
                gates[2] += alpha;
            }
        }
        let rows = chunks.len() * c;
        let [mut of_a, mut of_b] = [height, width].map(|width| Array2::zeros((rows, width)));
        let each = || blocks.iter().zip(&of_blocks);
        let join_chunks = || {
            let [of_a, of_b] = [&mut of_a, &mut of_b].map(|all| all.as_slice_mut().expect("standard layout"));
            let parts = of_a.par_chunks_mut(c * height).zip(of_b.par_chunks_mut(c * width)).enumerate();
            let many = Self::batch(c * (blocks.len() * width + height));
            parts.with_min_len(many).for_each(|(i, (of_a, of_b))| {
                let mut of_a = ArrayViewMut2::from_shape((c, height), of_a).expect(SHAPE);
                for (block, results) in each() {
                    add(of_b, &results.of_b[i * c * width..(i + 1) * c * width]);
                    write_columns(block, of_a.view_mut(), false, &results.of_a, i * c);
                }
            });
        };
        let join_reads = || {
            reads.par_iter_mut().zip(firsts).for_each(|(read, first)| {
                if let Some((mut to, keep)) = read.passage.cotangents.reach(input) {
                    for (block, results) in each() {
                        write_columns(block, to.view_mut(), keep, &results.of_x, first);
                    }
                }
                self.operators_vjp(operators.clone(), read);
            });
        };
        rayon::join(join_chunks, join_reads);
        MapProducts { map, of_a, of_b }
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

    /// Takes a block of the weights forward through some chunks and back. `read` has the number of rows that are read.
    fn block_vjp(
        &self,
        (block, [d_update, d_momentum, d_base]): BlockTask<'_, T>,
        (start, first): (&State<T>, usize),
        (chunks, reads): (&[MapChunk<'_, T>], &[[ArrayView2<'_, T>; 2]]),
        read: usize,
    ) -> OfBlock<T> {
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

        let rows = chunks.len() * c;
        let new = |numbers| vec![T::zero(); numbers];
        let mut results = OfBlock {
            gates: vec![[0.0; 2]; chunks.len()],
            of_a: new(rows * height),
            of_b: new(rows * width),
            of_x: new(read * height),
        };
        for (i, chunk) in chunks.iter().enumerate().rev() {
            let (u, s) = states[2 * i * size..2 * (i + 1) * size].split_at(size);
            let of_a = &mut results.of_a[i * c * height..(i + 1) * c * height];
            let of_b = &mut results.of_b[i * c * width..(i + 1) * c * width];
            let of_x = &mut results.of_x[chunk.read_rows.start * height..chunk.read_rows.end * height];
            let cotangents = [&mut *u_bar, &mut *s_bar];
            results.gates[i] = if let Some(few) = &chunk.few {
                let [stored, read] = few.map(|few| few.in_block(block));
                let old = [u, s, &*base];
                let step = &steps[i];
                let space = &mut *packed;
                FewBack { step, stored, read, old, cotangents, of_b, of_a, of_x, space }.run()
            } else {
                let gates = step_back(&steps[i], [u, s], s_after, cotangents);
                let [a, b] = chunk.stored;
                let s_bar = ArrayView2::from_shape((height, width), &*s_after).expect(SHAPE);
                let of_b = ArrayViewMut2::from_shape((c, width), of_b).expect(SHAPE);
                multiply(of_b, a.slice(s![.., block.rows.clone()]), s_bar);
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
        results
    }
}

/// Copies a block's results, from the row `first` on, to the block's columns of `to`, or adds them if `keep`.
fn write_columns<T: Real>(
    block: &Block,
    mut to: ArrayViewMut2<'_, T>,
    keep: bool,
    results: &[T],
    first: usize,
) {
    let height = block.rows.len();
    for (mut to, from) in to.rows_mut().into_iter().zip(results[first * height..].chunks_exact(height)) {
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
