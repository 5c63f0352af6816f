//! One head of one sequence through time: forward with states kept at segment starts, and back through the recurrences.
//!
//! Backwards, with Ū and S̄ the cotangents of U and S and g = Aᵀ B the gradient of a chunk:
//!
//! ```text
//! S̄_n = Ū_n + η_{n+1} S̄_{n+1}          ᾱ_n = −⟨Ū_n, U_{n−1}⟩     η̄_n = ⟨S̄_n, S_{n−1}⟩
//! Ū_{n−1} = D_{n−1} + (1 − α_n) Ū_n     θ̄_n = −⟨S̄_n, g_n⟩         ḡ_n = −θ_n S̄_n
//! ```
//!
//! D_n comes from the reads of the weights after n chunks. A refresh P ← P + γ (M − P), with M the weights that are read,
//! passes the cotangents of P and of U on to M and to the old P. A recurrence is never inverted, which would divide by 1 − α:
//! a segment of about √N chunks is computed again from the state at its start.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::few_rows::{FewRows, are_few};
use super::node_rows::{Passage, Second};
use super::passes::{Block, ExampleCotangents, Examples, Factors, Passes, Weights};
use super::pool::Buffers;
use super::recurrences::{self, step_back};
use super::{Check, Order};
use crate::engine::panel::Step;
use crate::error::Result;
use crate::memory::program::{Program, Reads};
use crate::real::Real;
use crate::simd::vectorised;

/// Fewest chunks of a segment. The states of eight chunks are small beside their rows.
const MIN_SEGMENT: usize = 8;
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
/// Rows whose gradients are taken in one task, where there are as many: enough for products at full speed.
pub const TASK_ROWS: usize = 64;
/// Most tasks of a segment.
const MAX_TASKS: usize = 8;
/// Fewest multiplications of a task that another thread takes, about 10 µs.
const MIN_TASK_WORK: usize = 1 << 18;

/// Returns the number of chunks of a segment: √N of N, or more if they take little memory.
pub fn segment_length(chunks: usize, chunk: usize, (heads, elements): (usize, usize)) -> usize {
    let (rows, numbers) = MAX_WHOLE;
    if chunks * chunk <= rows && chunks.saturating_mul(heads * elements) <= numbers {
        return chunks.max(MIN_SEGMENT);
    }
    let small = (SEGMENT_ROWS / chunk).min(SEGMENT_ELEMENTS / elements);
    chunks.isqrt().max(MIN_SEGMENT).max(small)
}

/// Inputs of a head in one call, and the state that it starts from.
pub struct HeadSequence<'a, T> {
    pub passes: &'a Passes,
    pub buffers: &'a Buffers<T>,
    pub program: &'a Program,
    /// Initial weights, past weights included.
    pub base: &'a [T],
    /// The same with each map's weights in columns.
    pub transposed: &'a [T],
    /// State that an earlier call left, with the chunks stored before.
    pub start: State<T>,
    pub order: Order,
    pub first_chunk: usize,
    /// Whether `start` is that of a new memory, which depends on the initial weights.
    pub fresh: bool,
    /// Complete chunks: (rows, d).
    pub keys: ArrayView2<'a, T>,
    pub values: ArrayView2<'a, T>,
    /// Chunks by which the first query is ahead of the first key: 1 where it reads what is stored first.
    pub ahead: usize,
    /// From the first row of a chunk on: (rows, d).
    pub queries: ArrayView2<'a, T>,
    /// Gates of each chunk. A rate that tokens have of their own is 1.
    pub steps: Vec<Step<T>>,
    pub rates: Option<Vec<T>>,
    /// Fraction of its change that a refresh keeps.
    pub transition: Option<T>,
    /// Chunks after whose multiples gradients are cut off.
    pub truncate: Option<usize>,
    /// Chunks of a segment.
    pub segment: usize,
    /// Called before each segment, and before each group of rows that are read after them.
    pub check: Check<'a>,
}

/// State of a head between two chunks.
#[derive(Clone, Debug)]
pub struct State<T> {
    pub update: Vec<T>,
    /// Zeros without momentum.
    pub momentum: Vec<T>,
    /// Weights at which gradients are taken; empty where they are the initial ones for ever.
    pub point: Vec<T>,
}

/// States and gradients of the pass forward that the pass back needs.
#[derive(Debug)]
pub struct Tape<T> {
    /// State at the start of each segment.
    starts: Vec<State<T>>,
    last: Option<Segment<T>>,
    end: State<T>,
}

/// Places for the cotangents of a head's rows.
#[derive(Debug)]
pub struct RowCotangents<'a, T> {
    pub keys: ArrayViewMut2<'a, T>,
    pub values: ArrayViewMut2<'a, T>,
    pub queries: ArrayViewMut2<'a, T>,
}

/// Cotangents of a head's gates and parameters.
#[derive(Debug)]
pub struct HeadCotangents<T> {
    /// Cotangents of θ, η and α of each chunk.
    pub gates: Vec<[f64; 3]>,
    pub rates: Option<Vec<T>>,
    pub base: Vec<T>,
    /// Cotangent of the fraction that a refresh keeps.
    pub transition: f64,
}

/// The states of some chunks one after another.
#[derive(Debug)]
struct Segment<T> {
    chunks: Range<usize>,
    intervals: Vec<Interval<T>>,
    /// U before each chunk and after the last, refreshed: (chunks + 1, elements) or more rows.
    updates: Array2<T>,
    /// S in the same order. A pass back replaces them by their cotangents.
    momenta: Array2<T>,
}

/// Chunks of a segment whose gradients are at the same point.
#[derive(Debug)]
struct Interval<T> {
    chunks: Range<usize>,
    /// Empty where it is the initial weights.
    point: Vec<T>,
    groups: Vec<(Range<usize>, Passage<T>)>,
    refresh: bool,
}

/// Gradients of what is read before each chunk of a segment, for the weights that are read.
enum ReadGradients<T> {
    /// A row of elements for each chunk.
    Full(Array2<T>),
    /// The factors of each node that is a linear map, input rows and cotangents of products, and each chunk's rows of them.
    /// They are fewer numbers where chunks are short beside the weights.
    Factors { factors: Vec<[Array2<T>; 2]>, rows: Vec<Range<usize>> },
}

/// Adds numbers to a slice.
fn add<T: Real>(to: &mut [T], numbers: &[T]) {
    to.iter_mut().zip(numbers).for_each(|(to, &x)| *to += x);
}

/// Adds numbers to two slices.
fn add_to_both<T: Real>([a, b]: [&mut [T]; 2], numbers: &[T]) {
    vectorised(
        #[inline(always)]
        || {
            for ((a, b), &x) in a.iter_mut().zip(&mut *b).zip(numbers) {
                *a += x;
                *b += x;
            }
        },
    );
}

/// Joins ascending ranges that lie side by side.
fn joined(ranges: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut joined = Vec::<Range<usize>>::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

/// Cotangents that pass from a chunk to the one before.
struct Carried<T> {
    update: Vec<T>,
    momentum: Vec<T>,
    point: Vec<T>,
    base: Vec<T>,
    transition: f64,
}

impl<T: Real> HeadSequence<'_, T> {
    fn chunks(&self) -> usize {
        self.steps.len()
    }

    fn chunk(&self) -> usize {
        self.passes.chunk
    }

    fn elements(&self) -> usize {
        self.base.len()
    }

    fn segments(&self) -> impl DoubleEndedIterator<Item = Range<usize>> + ExactSizeIterator + use<T> {
        let (chunks, length) = (self.chunks(), self.segment);
        (0..chunks).step_by(length).map(move |start| start..chunks.min(start + length))
    }

    fn longest_segment(&self) -> usize {
        self.segments().next().map_or(0, |chunks| chunks.len())
    }

    /// Returns whether gradients are cut off before a chunk.
    fn is_cut(&self, chunk: usize) -> bool {
        chunk > 0 && self.truncate.is_some_and(|every| (self.first_chunk + chunk).is_multiple_of(every))
    }

    /// Returns the number of tasks of a size that one thread takes at once.
    fn batch(work: usize) -> usize {
        (MIN_TASK_WORK / work.max(1)).max(1)
    }

    /// Returns the rows of queries that read the weights before a chunk, or after the last.
    fn reads(&self, chunk: usize) -> Range<usize> {
        let (c, rows) = (self.chunk(), self.queries.nrows());
        if self.order == Order::After {
            return if chunk == self.chunks() { 0..rows } else { 0..0 };
        }
        let zeros = self.program.schedule.reads != Reads::Complete && self.first_chunk + chunk == 0;
        let start = (chunk.saturating_sub(self.ahead) * c).min(rows);
        let end = if chunk == self.chunks() {
            rows
        } else {
            ((chunk + 1 - self.ahead.min(chunk + 1)) * c).min(rows)
        };
        if zeros { start..start } else { start..end }
    }

    /// Returns the rows in groups of whole chunks.
    fn groups(&self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<T> {
        let step = self.chunk() * TASK_ROWS.div_ceil(self.chunk());
        let end = rows.end;
        rows.step_by(step).map(move |start| start..end.min(start + step))
    }

    /// Returns the weights that some rows read in a state. `space` is for their sum.
    fn weights<'w>(&'w self, update: &'w [T], rows: usize, space: &'w mut Vec<T>) -> Weights<'w, T> {
        if self.program.rule.holds_weights() {
            return Weights::Plain(update);
        }
        if are_few(rows) {
            return Weights::Sum([self.base, update]);
        }
        space.clear();
        space.extend_from_slice(self.base);
        vectorised(
            #[inline(always)]
            || space.iter_mut().zip(update).for_each(|(w, &u)| *w += u),
        );
        Weights::Plain(space)
    }

    /// Returns the weights that are read in a state, as the point of later gradients.
    fn point(&self, update: &[T]) -> Vec<T> {
        if self.program.rule.holds_weights() {
            return update.to_vec();
        }
        update.iter().zip(self.base).map(|(&u, &w)| w + u).collect()
    }

    /// Returns the weights at which gradients are taken, from the point of a state or an interval.
    fn at<'w>(&'w self, point: &'w [T]) -> Weights<'w, T> {
        if point.is_empty() {
            Weights::Transposed([self.base, self.transposed])
        } else {
            Weights::Plain(point)
        }
    }

    /// Takes buffers for passes over a number of rows.
    fn passage(&self, rows: usize) -> Passage<T> {
        let new = || Passage::new(&self.passes.graph, rows, self.chunk());
        self.buffers.passages.take(|passage| passage.holds(rows), new)
    }

    /// Takes an array of a state's elements for each chunk of a segment and one more.
    fn array(&self) -> Array2<T> {
        let rows = self.longest_segment() + 1;
        let fits = |array: &Array2<T>| array.nrows() >= rows;
        self.buffers.arrays.take(fits, || Array2::zeros((rows, self.elements())))
    }

    /// Reads rows of queries with some weights.
    fn read(&self, update: &[T], rows: Range<usize>, mut output: ArrayViewMut2<'_, T>) {
        let mut passage = self.passage(rows.len());
        let mut space = self.buffers.weights.take(|_| true, Vec::new);
        let weights = self.weights(update, rows.len(), &mut space);
        self.passes.forward(weights, self.queries.slice(s![rows, ..]), &mut passage);
        output.assign(&passage.values.output());
        self.buffers.weights.give(space);
        self.buffers.passages.give(passage);
    }

    /// Computes the output rows (rows, d), which are zero where nothing is read.
    ///
    /// # Errors
    /// That of the check, which ends the work.
    pub fn forward(&self, output: ArrayViewMut2<'_, T>) -> Result<Tape<T>> {
        let mut state = self.start.clone();
        let mut starts = Vec::new();
        let mut last = None;
        let mut rest = Parts::new(output);
        for chunks in self.segments() {
            (self.check)()?;
            if let Some(segment) = last.take() {
                self.recycle(segment);
            }
            starts.push(state.clone());
            let segment = self.segment(&state, chunks.clone());
            let reads = self.reads_of(chunks, &mut rest);
            let many = Self::batch(self.chunk() * self.elements());
            reads.into_par_iter().with_min_len(many).for_each(|(chunk, rows, output)| {
                self.read(segment.update(chunk), rows, output);
            });
            state = self.end(&segment);
            last = Some(segment);
        }
        let groups = self.groups(self.reads(self.chunks()));
        let groups: Vec<_> = groups.map(|rows| (rows.clone(), rest.take(rows))).collect();
        groups.into_par_iter().try_for_each(|(rows, output)| {
            (self.check)()?;
            self.read(&state.update, rows, output);
            Ok(())
        })?;
        Ok(Tape { starts, last, end: state })
    }

    /// Returns the chunks of a segment before which rows are read, with these rows and their parts of a matrix.
    fn reads_of<'m>(
        &self,
        chunks: Range<usize>,
        rest: &mut Parts<'m, T>,
    ) -> Vec<(usize, Range<usize>, ArrayViewMut2<'m, T>)> {
        let reads = chunks.map(|chunk| (chunk, self.reads(chunk))).filter(|(_, rows)| !rows.is_empty());
        reads.map(|(chunk, rows)| (chunk, rows.clone(), rest.take(rows))).collect()
    }

    /// Returns the number of chunks of `of` whose gradients one task takes.
    fn group_chunks(&self, of: usize) -> usize {
        let tasks = of.div_ceil(TASK_ROWS.div_ceil(self.chunk())).clamp(1, MAX_TASKS);
        of.div_ceil(tasks).max(1)
    }

    /// Gives the buffers of a segment back.
    fn recycle(&self, segment: Segment<T>) {
        self.buffers.arrays.give(segment.updates);
        self.buffers.arrays.give(segment.momenta);
        for (_, passage) in segment.intervals.into_iter().flat_map(|interval| interval.groups) {
            self.buffers.passages.give(passage);
        }
    }

    /// Computes the states of a segment from that at its start.
    fn segment(&self, start: &State<T>, chunks: Range<usize>) -> Segment<T> {
        let [mut updates, mut momenta] = [(); 2].map(|()| self.array());
        for (array, start) in [(&mut updates, &start.update), (&mut momenta, &start.momentum)] {
            array.row_mut(0).as_slice_mut().expect("standard layout").copy_from_slice(start);
        }
        let mut segment = Segment { chunks: chunks.clone(), intervals: Vec::new(), updates, momenta };
        let next = |from: usize, every: Option<usize>| {
            every.map_or(usize::MAX, |every| {
                ((self.first_chunk + from) / every + 1) * every - self.first_chunk
            })
        };
        let every = self.program.schedule.refresh.map(|tokens| tokens / self.chunk());
        let mut from = chunks.start;
        while from < chunks.end {
            let refresh = next(from, every);
            let to = refresh.min(next(from, self.truncate)).min(chunks.end);
            let point = match segment.intervals.last() {
                // After a refresh, gradients are taken at the weights that are read.
                Some(before) if before.refresh => self.point(segment.update(from)),
                Some(before) => before.point.clone(),
                None => start.point.clone(),
            };
            segment.intervals.push(self.interval(from..to, point, refresh == to));
            self.advance(&mut segment);
            from = to;
        }
        segment
    }

    /// Returns the state after the last chunk of a segment.
    fn end(&self, segment: &Segment<T>) -> State<T> {
        let n = segment.chunks.len();
        let (update, momentum) = (segment.updates.row(n).to_vec(), segment.momenta.row(n).to_vec());
        let last = segment.intervals.last().expect("a segment has chunks");
        let point = if last.refresh { self.point(&update) } else { last.point.clone() };
        State { update, momentum, point }
    }

    /// Takes the gradients of some chunks.
    fn interval(&self, chunks: Range<usize>, point: Vec<T>, refresh: bool) -> Interval<T> {
        let c = self.chunk();
        let step = self.group_chunks(chunks.len());
        let end = chunks.end;
        let groups: Vec<_> = chunks.clone().step_by(step).map(|start| start..end.min(start + step)).collect();
        let at = self.at(&point);
        let inner = |chunks: Range<usize>| {
            let mut passage = self.passage(chunks.len() * c);
            self.passes.inner(self.program.loss, at, self.examples(&chunks), &mut passage);
            (chunks, passage)
        };
        let many = Self::batch(step * c * self.elements());
        let groups = groups.into_par_iter().with_min_len(many).map(inner).collect();
        Interval { chunks, point, groups, refresh }
    }

    fn examples(&self, chunks: &Range<usize>) -> Examples<'_, T> {
        let rows = chunks.start * self.chunk()..chunks.end * self.chunk();
        Examples {
            keys: self.keys.slice(s![rows.clone(), ..]),
            values: self.values.slice(s![rows.clone(), ..]),
            rates: self.rates.as_ref().map(|rates| &rates[rows]),
        }
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
                let keys = self.examples(chunks).keys;
                for (i, chunk) in chunks.clone().enumerate() {
                    let (n, step) = (chunk - of_segment.start, &self.steps[chunk]);
                    let (u, mut next_u) = updates.multi_slice_mut((s![n, ..], s![n + 1, ..]));
                    let (s, mut next_s) = momenta.multi_slice_mut((s![n, ..], s![n + 1, ..]));
                    let [u, s] = [&u, &s].map(|row| row.as_slice().expect("contiguous rows"));
                    let next_u = next_u.as_slice_mut().expect("contiguous rows");
                    let next_s = next_s.as_slice_mut().expect("contiguous rows");
                    let few = self.passes.gradient(inner, keys, i * c..(i + 1) * c, block, next_s);
                    recurrences::step(step, few, [u, s], [next_u, next_s]);
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
    fn blocks_of<'m>(
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

    /// Passes the cotangent of the output rows (rows, d) back. Writes the cotangents of all rows to `to`.
    ///
    /// # Errors
    /// That of the check, which ends the work.
    pub fn backward(
        &self,
        tape: Tape<T>,
        d_output: ArrayView2<'_, T>,
        mut to: RowCotangents<'_, T>,
    ) -> Result<HeadCotangents<T>> {
        let zeros = || vec![T::zero(); self.elements()];
        let Tape { starts, mut last, end } = tape;
        let mut carried =
            Carried { update: zeros(), momentum: zeros(), point: zeros(), base: zeros(), transition: 0.0 };
        let mut results = HeadCotangents {
            gates: vec![[0.0; 3]; self.chunks()],
            rates: self.rates.as_ref().map(|rates| vec![T::zero(); rates.len()]),
            base: Vec::new(),
            transition: 0.0,
        };
        let rows = self.reads(self.chunks());
        let mut d_weights = zeros();
        for rows in self.groups(rows) {
            (self.check)()?;
            let d_queries = to.queries.slice_mut(s![rows.clone(), ..]);
            let write =
                |i: usize, factors: Factors<'_, T>| self.passes.weight_gradient(i, factors, &mut d_weights);
            self.read_vjp(&end.update, rows, d_output, write, d_queries);
            carried.update.iter_mut().zip(&d_weights).for_each(|(sum, &x)| *sum += x);
        }
        if !self.program.rule.holds_weights() {
            carried.base.copy_from_slice(&carried.update);
        }
        for (start, chunks) in starts.iter().zip(self.segments()).rev() {
            (self.check)()?;
            let segment = last.take().unwrap_or_else(|| self.segment(start, chunks));
            self.segment_vjp(segment, d_output, &mut carried, &mut results, &mut to);
        }
        // The state of a new memory is the initial weights, and so is a point without refreshes.
        let mut parts = Vec::new();
        if self.fresh && self.program.rule.holds_weights() {
            parts.push(&carried.update);
        }
        if self.fresh || self.program.schedule.refresh.is_none() {
            parts.push(&carried.point);
        }
        for part in parts {
            carried.base.iter_mut().zip(part).for_each(|(sum, &x)| *sum += x);
        }
        Ok(HeadCotangents { base: carried.base, transition: carried.transition, ..results })
    }

    /// Reads some rows again and passes their cotangent back. `visit` sees each linear map with the factors of its gradient.
    fn read_vjp(
        &self,
        update: &[T],
        rows: Range<usize>,
        d_output: ArrayView2<'_, T>,
        visit: impl FnMut(usize, Factors<'_, T>),
        d_queries: ArrayViewMut2<'_, T>,
    ) {
        let mut passage = self.passage(rows.len());
        let mut space = self.buffers.weights.take(|_| true, Vec::new);
        let weights = self.weights(update, rows.len(), &mut space);
        let queries = self.queries.slice(s![rows.clone(), ..]);
        self.passes.forward(weights, queries, &mut passage);
        let d_output = d_output.slice(s![rows, ..]);
        self.passes.vjp(weights, queries, d_output, &mut passage, visit, d_queries);
        self.buffers.weights.give(space);
        self.buffers.passages.give(passage);
    }

    /// Passes the cotangents of what a segment's chunks read back to the queries, and returns those of the weights.
    fn reads_vjp(
        &self,
        segment: &Segment<T>,
        d_output: ArrayView2<'_, T>,
        to: &mut RowCotangents<'_, T>,
    ) -> ReadGradients<T> {
        let chunks = segment.chunks.clone();
        let mut queries = Parts::new(to.queries.view_mut());
        let reads = self.reads_of(chunks.clone(), &mut queries);
        let many = Self::batch(self.chunk() * self.elements());
        if self.passes.numbers_of_factors() * self.chunk() < self.elements() {
            let start = reads.first().map_or(0, |(_, rows, _)| rows.start);
            let end = reads.last().map_or(0, |(_, rows, _)| rows.end);
            let mut factors = self.passes.factor_arrays(end - start);
            let mut parts: Vec<_> = factors
                .iter_mut()
                .map(|pair| pair.each_mut().map(|array| Parts::from(array.view_mut(), start)))
                .collect();
            let mut rows_of = vec![0..0; chunks.len()];
            let tasks: Vec<_> = reads
                .into_iter()
                .map(|(chunk, rows, d_queries)| {
                    rows_of[chunk - chunks.start] = rows.start - start..rows.end - start;
                    let places: Vec<_> = parts
                        .iter_mut()
                        .map(|pair| pair.each_mut().map(|part| part.take(rows.clone())))
                        .collect();
                    (chunk, rows, d_queries, places)
                })
                .collect();
            tasks.into_par_iter().with_min_len(many).for_each(|(chunk, rows, d_queries, mut places)| {
                // An array without cotangents is zero from the start.
                let write = |i: usize, factors: Factors<'_, T>| {
                    for (place, factor) in places[i].iter_mut().zip(factors.into_iter().flatten()) {
                        place.assign(&factor);
                    }
                };
                self.read_vjp(segment.update(chunk), rows, d_output, write, d_queries);
            });
            return ReadGradients::Factors { factors, rows: rows_of };
        }
        let mut gradients = self.array();
        let mut places: Vec<_> = gradients.outer_iter_mut().take(chunks.len()).map(Some).collect();
        let tasks: Vec<_> = reads
            .into_iter()
            .map(|read| (places[read.0 - chunks.start].take().expect("one read a chunk"), read))
            .collect();
        for mut unread in places.into_iter().flatten() {
            unread.fill(T::zero());
        }
        tasks.into_par_iter().with_min_len(many).for_each(|(mut to, (chunk, rows, d_queries))| {
            let to = to.as_slice_mut().expect("standard layout");
            let write = |i: usize, factors: Factors<'_, T>| self.passes.weight_gradient(i, factors, to);
            self.read_vjp(segment.update(chunk), rows, d_output, write, d_queries);
        });
        ReadGradients::Full(gradients)
    }

    fn segment_vjp(
        &self,
        mut segment: Segment<T>,
        d_output: ArrayView2<'_, T>,
        carried: &mut Carried<T>,
        results: &mut HeadCotangents<T>,
        to: &mut RowCotangents<'_, T>,
    ) {
        let d_reads = self.reads_vjp(&segment, d_output, to);
        for mut interval in std::mem::take(&mut segment.intervals).into_iter().rev() {
            if interval.refresh {
                self.refresh_vjp(&segment, &interval, carried);
            }
            self.recurrences_vjp(&mut segment, &interval, &d_reads, carried, results);
            self.gradients_vjp(&segment, &mut interval, carried, results, to);
            segment.intervals.push(interval);
        }
        if let ReadGradients::Full(array) = d_reads {
            self.buffers.arrays.give(array);
        }
        self.recycle(segment);
    }

    /// Passes the cotangents of U and P after a refresh back to those before.
    fn refresh_vjp(&self, segment: &Segment<T>, interval: &Interval<T>, carried: &mut Carried<T>) {
        let last = interval.chunks.end - 1;
        let n = last - segment.chunks.start;
        let step = &self.steps[last];
        let gate = self.transition.unwrap_or(T::one());
        let whole = self.program.rule.holds_weights();
        let (u, s) = (segment.updates.row(n), segment.momenta.row(n + 1));
        let mut of_gate = 0.0;
        for e in 0..self.elements() {
            let offset = if whole { T::zero() } else { self.base[e] };
            let changed = (T::one() - step.decay) * u[e] + s[e] + offset - interval.point[e];
            if !whole {
                carried.base[e] -= carried.update[e];
            }
            let next = carried.update[e] + carried.point[e];
            of_gate += next.to_f64() * changed.to_f64();
            carried.update[e] = gate * next;
            if !whole {
                carried.base[e] += gate * next;
            }
            carried.point[e] = (T::one() - gate) * next;
        }
        carried.transition += of_gate;
    }

    /// Passes the cotangents of U and S back through the chunks of an interval. Replaces each S by its cotangent.
    fn recurrences_vjp(
        &self,
        segment: &mut Segment<T>,
        interval: &Interval<T>,
        d_reads: &ReadGradients<T>,
        carried: &mut Carried<T>,
        results: &mut HeadCotangents<T>,
    ) {
        let Segment { chunks: of_segment, updates, momenta, .. } = segment;
        let first = interval.chunks.start - of_segment.start;
        let steps = &self.steps[interval.chunks.clone()];
        let whole = self.program.rule.holds_weights();
        let cut = self.is_cut(interval.chunks.start);
        let Carried { update, momentum, base, .. } = carried;
        let mut rest = [&mut update[..], &mut momentum[..], &mut base[..]];
        let blocks: Vec<_> = self
            .blocks_of(momenta.view_mut())
            .map(|(block, momenta)| {
                let carried =
                    rest.each_mut().map(|rest| rest.split_off_mut(..block.place.len()).expect("a block"));
                (block, momenta, carried)
            })
            .collect();
        let many = Self::batch(self.elements() / blocks.len() * steps.len());
        let of_block =
            |(block, mut momenta, [u_bar, s_bar, d_base]): (&Block, ArrayViewMut2<T>, [&mut [T]; 3])| {
                let mut sums = vec![[0.0; 2]; steps.len()];
                let mut d_read = Vec::new();
                for (i, step) in steps.iter().enumerate().rev() {
                    let n = first + i;
                    let u = updates.slice(s![n, block.place.clone()]);
                    let u = u.to_slice().expect("contiguous rows");
                    let (s, mut next_s) = momenta.multi_slice_mut((s![n, ..], s![n + 1, ..]));
                    let s = s.as_slice().expect("contiguous rows");
                    let next_s = next_s.as_slice_mut().expect("contiguous rows");
                    let thin = match d_reads {
                        ReadGradients::Factors { factors, rows } if !rows[n].is_empty() => {
                            Some((factors[block.map].each_ref().map(|factor| factor.view()), rows[n].clone()))
                        }
                        _ => None,
                    };
                    let few = thin.clone().and_then(|(factors, rows)| FewRows::new(block, factors, rows));
                    let cotangents = [&mut *u_bar, &mut *s_bar];
                    sums[i] = step_back(step, few.unwrap_or(FewRows::empty()), [u, s], next_s, cotangents);
                    if let Some((factors, rows)) = thin.filter(|_| few.is_none()) {
                        if whole {
                            block.product(u_bar, true, factors, rows);
                        } else {
                            d_read.resize(block.place.len(), T::zero());
                            block.product(&mut d_read, false, factors, rows);
                            add_to_both([&mut *u_bar, &mut *d_base], &d_read);
                        }
                    }
                    if let ReadGradients::Full(gradients) = d_reads {
                        let d_read = gradients.slice(s![n, block.place.clone()]);
                        let d_read = d_read.to_slice().expect("contiguous rows");
                        if whole {
                            add(u_bar, d_read);
                        } else {
                            add_to_both([&mut *u_bar, &mut *d_base], d_read);
                        }
                    }
                    if cut && i == 0 {
                        u_bar.fill(T::zero());
                        s_bar.fill(T::zero());
                    }
                }
                if let ReadGradients::Factors { factors, rows } = d_reads
                    && !whole
                {
                    // One product of all rows takes less time than many of few.
                    let few = rows[first..first + steps.len()].iter().filter(|rows| are_few(rows.len()));
                    for rows in joined(few.cloned()) {
                        let factors = factors[block.map].each_ref().map(|factor| factor.view());
                        block.product(d_base, true, factors, rows);
                    }
                }
                sums
            };
        let sums: Vec<_> = blocks.into_par_iter().with_min_len(many).map(of_block).collect();
        for of_block in sums {
            for (gates, [eta, alpha]) in results.gates[interval.chunks.clone()].iter_mut().zip(of_block) {
                gates[1] += eta;
                gates[2] += alpha;
            }
        }
    }

    /// Passes the cotangents of an interval's gradients back to keys, values, rates and the point.
    fn gradients_vjp(
        &self,
        segment: &Segment<T>,
        interval: &mut Interval<T>,
        carried: &mut Carried<T>,
        results: &mut HeadCotangents<T>,
        to: &mut RowCotangents<'_, T>,
    ) {
        let c = self.chunk();
        let Interval { chunks: of_interval, point, groups, .. } = interval;
        let at = self.at(point);
        let largest = groups.iter().map(|(chunks, _)| chunks.len()).max().unwrap_or(0);
        let many = Self::batch(largest * c * self.elements());
        let mut keys = Parts::new(to.keys.view_mut());
        let mut values = Parts::new(to.values.view_mut());
        let mut rates = results.rates.as_deref_mut().map(|rates| &mut rates[of_interval.start * c..]);
        let tasks: Vec<_> = groups
            .iter_mut()
            .map(|(chunks, passage)| {
                let rows = chunks.start * c..chunks.end * c;
                let rates =
                    rates.as_mut().map(|rates| rates.split_off_mut(..rows.len()).expect("rates of rows"));
                let [keys, values] = [&mut keys, &mut values].map(|rest| rest.take(rows.clone()));
                (&*chunks, passage, ExampleCotangents { keys, values, rates })
            })
            .collect();
        let of_group = |(chunks, passage, to): (&Range<usize>, &mut Passage<T>, ExampleCotangents<'_, T>)| {
            let examples = self.examples(chunks);
            let rows = chunks.len() * c;
            let new = || Second::new(&self.passes.graph, rows);
            let mut second = self.buffers.seconds.take(|second| second.holds(rows), new);
            let steps = chunks.clone().map(|chunk| {
                let s_bar = segment.momenta.row(chunk - segment.chunks.start + 1);
                (self.steps[chunk].learning_rate, s_bar.to_slice().expect("standard layout"))
            });
            let steps: Vec<_> = steps.collect();
            let mut d_rates = vec![0.0; steps.len()];
            let loss = self.program.loss;
            self.passes.inner_vjp((loss, at), examples, (passage, &mut second), (&steps, &mut d_rates), to);
            (chunks.clone(), d_rates, second)
        };
        let of_groups: Vec<_> = tasks.into_par_iter().with_min_len(many).map(of_group).collect();
        let passed: Vec<_> = groups.iter().zip(&of_groups).collect();
        let mut rest = &mut carried.point[..];
        let blocks: Vec<_> = self
            .passes
            .blocks
            .iter()
            .map(|block| (block, rest.split_off_mut(..block.place.len()).expect("a block")))
            .collect();
        let many = Self::batch(of_interval.len() * c * self.elements() / blocks.len());
        blocks.into_par_iter().with_min_len(many).for_each(|(block, to)| {
            for ((chunks, passage), (.., second)) in &passed {
                self.passes.point_vjp(self.examples(chunks).keys, (passage, second), block, to);
            }
        });
        for (chunks, d_rates, second) in of_groups {
            for (gates, rate) in results.gates[chunks].iter_mut().zip(d_rates) {
                gates[0] += rate;
            }
            self.buffers.seconds.give(second);
        }
        let refreshed = |every: usize| (self.first_chunk + of_interval.start) * c >= every;
        if self.is_cut(of_interval.start) && self.program.schedule.refresh.is_some_and(refreshed) {
            carried.point.fill(T::zero());
        }
    }
}

impl<T: Real> Segment<T> {
    /// Returns U before a chunk.
    fn update(&self, chunk: usize) -> &[T] {
        self.updates.row(chunk - self.chunks.start).to_slice().expect("standard layout")
    }
}

/// A matrix whose rows are divided from the first to the last.
struct Parts<'m, T> {
    rest: Option<ArrayViewMut2<'m, T>>,
    /// Index of the first row that is left.
    start: usize,
}

impl<'m, T: Real> Parts<'m, T> {
    fn new(matrix: ArrayViewMut2<'m, T>) -> Self {
        Self::from(matrix, 0)
    }

    /// Divides a matrix whose first row has the index `start`.
    fn from(matrix: ArrayViewMut2<'m, T>, start: usize) -> Self {
        Self { rest: Some(matrix), start }
    }

    /// Returns the rows of a range, which begins where the last one ended or later.
    fn take(&mut self, rows: Range<usize>) -> ArrayViewMut2<'m, T> {
        let rest = self.rest.take().expect("put back below");
        let (_, rest) = rest.split_at(Axis(0), rows.start - self.start);
        let (part, rest) = rest.split_at(Axis(0), rows.len());
        (self.rest, self.start) = (Some(rest), rows.end);
        part
    }
}
