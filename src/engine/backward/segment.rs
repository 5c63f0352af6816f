//! The states of a head in a segment of chunks.

use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::block::Block;
use super::few_rows::FewRows;
use super::head::{HeadSequence, State};
use super::node_rows::Passage;
use super::recurrences;
use crate::real::Real;

/// Fewest chunks of a segment outside blocks: with refreshes, or with chunks that are long beside the weights. This and the constants up to
/// `MAX_WHOLE` were measured before other segments went back in blocks.
const MIN_SEGMENT: usize = 8;
/// Most elements of all states U of a head in a segment of more than √N chunks. Larger states are not small beside the rows of a
/// short sequence: with √N chunks, 384 × 1024 with chunks of 64 and one head took a sixth less memory.
const MIN_SEGMENT_ELEMENTS: usize = 1 << 20;
/// Rows of a segment where they are more than √N chunks and the states take little memory. At each end of a segment threads
/// wait for the slowest one, and all but the last segment are computed twice: 16 chunks of 16 tokens instead of 8 took an
/// eighth less time.
const SEGMENT_ROWS: usize = 256;
/// Elements of all states U of such a segment.
const SEGMENT_ELEMENTS: usize = 1 << 18;
/// Most rows of a sequence, and elements of U of all its chunks and heads, for a single segment, so that nothing is computed twice.
/// With 1,024 tokens, chunks of 16 and a head of 64 it took a sixth less time than four segments, and with twice the elements
/// longer.
const MAX_WHOLE: (usize, usize) = (1024, 1 << 20);
/// Rows of a segment whose way back goes in blocks, where they are more than √N chunks, and elements of U of a block before all its
/// chunks: with those of S they are three quarters of an L2 of 1 MB in f32, unless √N chunks are more. Two segments are at work at
/// once, and wait less for each other if they are short: with 512 rows, of which a sequence of 1,024 has two segments,
/// `64, 1024, 16, 1` took 5 to 15 % longer than with 128.
const BLOCK_ROWS: usize = 128;
const BLOCK_STATES: usize = 3 << 15;
/// Rows whose gradients are taken in one task, where there are as many: enough for products at full speed.
pub const TASK_ROWS: usize = 64;
/// Most tasks of a segment.
const MAX_TASKS: usize = 8;

/// Returns the number of chunks of a segment: √N of N, or more if they take little memory. `block` is the size of the largest block of
/// the weights if the way back goes in blocks.
pub fn segment_length(
    chunks: usize,
    chunk: usize,
    (heads, elements): (usize, usize),
    block: Option<usize>,
) -> usize {
    let root = chunks.isqrt().max(1);
    if let Some(block) = block {
        return root.max((BLOCK_ROWS / chunk).min(BLOCK_STATES / block));
    }
    let (rows, numbers) = MAX_WHOLE;
    if chunks * chunk <= rows && chunks.saturating_mul(heads * elements) <= numbers {
        return chunks.max(1);
    }
    let few = MIN_SEGMENT.min(MIN_SEGMENT_ELEMENTS / elements);
    let small = (SEGMENT_ROWS / chunk).min(SEGMENT_ELEMENTS / elements);
    root.max(few).max(small)
}

/// The states of some chunks one after another.
#[derive(Debug)]
pub struct Segment<T> {
    pub chunks: Range<usize>,
    pub intervals: Vec<Interval<T>>,
    /// U before each chunk and after the last, refreshed: (chunks + 1, elements) or more rows.
    pub updates: Array2<T>,
    /// S in the same order. A pass back replaces them by their cotangents.
    pub momenta: Array2<T>,
}

/// Chunks of a segment whose gradients are at the same point.
#[derive(Debug)]
pub struct Interval<T> {
    pub chunks: Range<usize>,
    /// Empty where it is the initial weights.
    pub point: Vec<T>,
    /// Groups of chunks, with the factors of their gradients.
    pub groups: Vec<(Range<usize>, Passage<T>)>,
    /// Whether the point is replaced after the last chunk.
    pub refresh: bool,
}

impl<T: Real> Segment<T> {
    /// Returns U before a chunk.
    pub fn update(&self, chunk: usize) -> &[T] {
        self.updates.row(chunk - self.chunks.start).to_slice().expect("standard layout")
    }
}

impl<T: Real> HeadSequence<'_, T> {
    /// Computes the states of a segment from that at its start.
    pub fn segment(&self, start: &State<T>, chunks: Range<usize>) -> Segment<T> {
        let [mut updates, mut momenta] = [(); 2].map(|()| self.array());
        for (array, start) in [(&mut updates, &start.update), (&mut momenta, &start.momentum)] {
            array.row_mut(0).as_slice_mut().expect("standard layout").copy_from_slice(start);
        }
        let mut segment = Segment { chunks: chunks.clone(), intervals: Vec::new(), updates, momenta };
        for (chunks, refresh) in self.intervals(chunks) {
            let point = match segment.intervals.last() {
                // After a refresh, gradients are taken at the weights that are read.
                Some(before) if before.refresh => self.point(segment.update(chunks.start)),
                Some(before) => before.point.clone(),
                None => start.point.clone(),
            };
            segment.intervals.push(self.interval(chunks, point, refresh));
            self.advance(&mut segment);
        }
        segment
    }

    /// Divides some chunks where gradients are cut off or the point is replaced. Yields each part, and whether the point is replaced
    /// after it.
    pub fn intervals(&self, chunks: Range<usize>) -> impl Iterator<Item = (Range<usize>, bool)> {
        let next = |from: usize, every: Option<usize>| {
            every.map_or(usize::MAX, |every| {
                ((self.first_chunk + from) / every + 1) * every - self.first_chunk
            })
        };
        let every = self.program.schedule.refresh.map(|tokens| tokens / self.chunk());
        let mut from = chunks.start;
        std::iter::from_fn(move || {
            let start = from;
            let refresh = next(start, every);
            from = refresh.min(next(start, self.truncate)).min(chunks.end);
            (start < chunks.end).then_some((start..from, refresh == from))
        })
    }

    /// Takes the gradients of some chunks.
    pub fn interval(&self, chunks: Range<usize>, point: Vec<T>, refresh: bool) -> Interval<T> {
        let c = self.chunk();
        let step = self.group_chunks(chunks.len());
        let end = chunks.end;
        let groups: Vec<_> = chunks.clone().step_by(step).map(|start| start..end.min(start + step)).collect();
        let at = self.at(&point);
        let inner = |chunks: Range<usize>| {
            let rows = chunks.len() * c;
            let mut passage = Passage { values: self.values(rows), cotangents: self.node_rows(rows) };
            self.passes.inner(self.program.loss, at, self.examples(&chunks), &mut passage);
            (chunks, passage)
        };
        let many = Self::batch(step * c * self.elements());
        let groups = groups.into_par_iter().with_min_len(many).map(inner).collect();
        Interval { chunks, point, groups, refresh }
    }

    /// Advances the states by the last interval of a segment. A block of the weights stays in the cache from the gradient of
    /// a chunk to the state after it.
    fn advance(&self, segment: &mut Segment<T>) {
        let Segment { chunks: of_segment, intervals, updates, momenta } = segment;
        let Interval { chunks, point, groups, refresh } = intervals.last().expect("an interval");
        let c = self.chunk();
        let whole = self.program.rule.holds_weights();
        let gate = refresh.then(|| self.transition.unwrap_or(T::one())).filter(|gate| *gate != T::one());
        let blocks: Vec<_> =
            self.blocks_of(updates.view_mut()).zip(self.blocks_of(momenta.view_mut())).collect();
        let many = Self::batch(self.elements() / blocks.len() * chunks.len() * c);
        let of_block = |((block, mut updates), (_, mut momenta)): (
            (&Block, ArrayViewMut2<T>),
            (_, ArrayViewMut2<T>),
        )| {
            for (chunks, inner) in groups {
                let factors = self.passes.factors(inner, self.examples(chunks).keys, block.map);
                let factors = factors.expect("a gradient of each map");
                for (i, chunk) in chunks.clone().enumerate() {
                    let (n, step) = (chunk - of_segment.start, &self.steps[chunk]);
                    let (u, mut next_u) = updates.multi_slice_mut((s![n, ..], s![n + 1, ..]));
                    let (s, mut next_s) = momenta.multi_slice_mut((s![n, ..], s![n + 1, ..]));
                    let [u, s] = [&u, &s].map(|row| row.as_slice().expect("contiguous rows"));
                    let next_u = next_u.as_slice_mut().expect("contiguous rows");
                    let next_s = next_s.as_slice_mut().expect("contiguous rows");
                    let rows = i * c..(i + 1) * c;
                    let few = FewRows::new(factors, rows.clone()).map(|few| few.in_block(block));
                    if few.is_none() {
                        block.product(next_s, false, factors, rows);
                    }
                    recurrences::step(step, few.unwrap_or(FewRows::empty()), [u, s], [next_u, next_s]);
                }
            }
            let Some(gate) = gate else { return };
            let place = block.place.clone();
            let mut u = updates.row_mut(chunks.end - of_segment.start);
            for ((u, &p), &w) in u.iter_mut().zip(&point[place.clone()]).zip(&self.base[place]) {
                let offset = if whole { T::zero() } else { w };
                *u = p + gate * (*u + offset - p) - offset;
            }
        };
        blocks.into_par_iter().with_min_len(many).for_each(of_block);
    }

    /// Divides the columns of an array of states into the blocks of the weights.
    pub fn blocks_of<'m>(
        &self,
        array: ArrayViewMut2<'m, T>,
    ) -> impl Iterator<Item = (&Block, ArrayViewMut2<'m, T>)> {
        let mut rest = Some(array);
        self.passes.blocks.iter().map(move |block| {
            let (columns, later) = rest.take().expect("put back below").split_at(Axis(1), block.place.len());
            rest = Some(later);
            (block, columns)
        })
    }

    /// Gives the buffers of a segment back.
    pub fn recycle(&self, segment: Segment<T>) {
        self.buffers.arrays.give(segment.updates);
        self.buffers.arrays.give(segment.momenta);
        segment.intervals.into_iter().for_each(|interval| self.recycle_groups(interval));
    }

    pub fn recycle_groups(&self, interval: Interval<T>) {
        interval.groups.into_iter().for_each(|(_, passage)| self.give(passage));
    }

    /// Returns the number of chunks of `of` whose gradients one task takes.
    fn group_chunks(&self, of: usize) -> usize {
        let tasks = of.div_ceil(TASK_ROWS.div_ceil(self.chunk())).clamp(1, MAX_TASKS);
        // An even number where the chunks allow it, for two threads to share.
        let tasks = if tasks > 1 { tasks.next_multiple_of(2) } else { tasks };
        of.div_ceil(tasks).max(1)
    }
}
