//! One head of one sequence through time, forward. The state at the start of each segment is kept, and what the way back needs
//! of the last one.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::fused::PanelState;
use super::node_rows::{NodeRows, Passage, Values};
use super::passes::{Examples, Passes, Weights};
use super::pool::Buffers;
use super::segment::Segment;
use super::stages::Kept;
use super::{Check, Order};
use crate::engine::panel::Step;
use crate::error::Result;
use crate::memory::program::Program;
use crate::real::Real;
use crate::simd::vectorised;

/// Fewest multiplications of a task that another thread takes, about 10 µs.
const MIN_TASK_WORK: usize = 1 << 18;

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
    /// Whether the way back goes by blocks of the weights.
    pub in_blocks: bool,
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

impl<T: Real> State<T> {
    /// Returns zeros where gradients are taken at the initial weights.
    pub fn zeros(elements: usize) -> Self {
        let [update, momentum] = [(); 2].map(|()| vec![T::zero(); elements]);
        Self { update, momentum, point: Vec::new() }
    }
}

/// States and other results of the pass forward that the pass back needs.
#[derive(Debug)]
pub struct Tape<T> {
    /// State at the start of each segment but the first and the last; only outside blocks.
    pub starts: Vec<State<T>>,
    /// States of the last segment; only outside blocks.
    pub last: Option<Segment<T>>,
    /// Results of each segment; only in blocks.
    pub kept: Vec<Kept<T>>,
    /// Weights that are read after the last chunk, if anything is.
    pub end: Vec<T>,
}

/// Places for the cotangents of a head's rows.
#[derive(Debug)]
pub struct RowCotangents<'a, T> {
    pub keys: ArrayViewMut2<'a, T>,
    pub values: ArrayViewMut2<'a, T>,
    pub queries: ArrayViewMut2<'a, T>,
}

/// Places for the cotangents of a segment's rows and gates.
pub struct SegmentCotangents<'a, T> {
    pub chunks: Range<usize>,
    pub keys: Parts<'a, T>,
    pub values: Parts<'a, T>,
    /// Rows that are read before its chunks.
    pub queries: Parts<'a, T>,
    /// Those of rates that rows have of their own.
    pub rates: Option<&'a mut [T]>,
    /// Those of θ, η and α of each chunk.
    pub gates: &'a mut [[f64; 3]],
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

/// Adds numbers to a slice.
pub fn add<T: Real>(to: &mut [T], numbers: &[T]) {
    vectorised(
        #[inline(always)]
        || to.iter_mut().zip(numbers).for_each(|(to, &x)| *to += x),
    );
}

impl<T: Real> HeadSequence<'_, T> {
    pub fn chunks(&self) -> usize {
        self.steps.len()
    }

    pub fn chunk(&self) -> usize {
        self.passes.chunk
    }

    pub fn elements(&self) -> usize {
        self.base.len()
    }

    pub fn segments(&self) -> impl DoubleEndedIterator<Item = Range<usize>> + ExactSizeIterator + use<T> {
        let (chunks, length) = (self.chunks(), self.segment);
        (0..chunks).step_by(length).map(move |start| start..chunks.min(start + length))
    }

    pub fn longest_segment(&self) -> usize {
        self.segments().next().map_or(0, |chunks| chunks.len())
    }

    /// Returns whether gradients are cut off before a chunk.
    pub fn is_cut(&self, chunk: usize) -> bool {
        chunk > 0 && self.truncate.is_some_and(|every| (self.first_chunk + chunk).is_multiple_of(every))
    }

    /// Returns the number of tasks of a size that one thread takes at once.
    pub fn batch(work: usize) -> usize {
        (MIN_TASK_WORK / work.max(1)).max(1)
    }

    /// Returns the weights that are read in a state.
    pub fn point(&self, update: &[T]) -> Vec<T> {
        if self.program.rule.holds_weights() {
            return update.to_vec();
        }
        update.iter().zip(self.base).map(|(&u, &w)| w + u).collect()
    }

    /// Returns the weights at which gradients are taken, from the point of a state or an interval.
    pub fn at<'w>(&'w self, point: &'w [T]) -> Weights<'w, T> {
        if point.is_empty() {
            Weights::Transposed([self.base, self.transposed])
        } else {
            Weights::Plain(point)
        }
    }

    /// Takes buffers for a pass forward over a number of rows.
    pub fn values(&self, rows: usize) -> Values<T> {
        let new = || Values::new(&self.passes.graph, rows, self.chunk());
        self.buffers.values.take(|values| values.holds(rows), new)
    }

    /// Takes buffers for a pass back, or for one with tangents.
    pub fn node_rows(&self, rows: usize) -> NodeRows<T> {
        self.buffers.rows.take(|buffers| buffers.holds(rows), || NodeRows::new(&self.passes.graph, rows))
    }

    pub fn give(&self, passage: Passage<T>) {
        self.buffers.values.give(passage.values);
        self.buffers.rows.give(passage.cotangents);
    }

    /// Takes an array of a state's elements for each chunk of a segment and one more.
    pub fn array(&self) -> Array2<T> {
        let rows = self.longest_segment() + 1;
        let fits = |array: &Array2<T>| array.nrows() >= rows;
        self.buffers.arrays.take(fits, || Array2::zeros((rows, self.elements())))
    }

    /// Computes the output rows (rows, d), which are zero where nothing is read, with at most `live` segments at work at once.
    ///
    /// # Errors
    /// That of the check, which ends the work.
    pub fn forward(&self, live: usize, output: ArrayViewMut2<'_, T>) -> Result<Tape<T>> {
        let mut rest = Parts::new(output);
        let tape = if self.in_blocks {
            self.blocks_forward(live, &mut rest)?
        } else {
            self.segments_forward(&mut rest)?
        };
        let groups = self.groups(self.reads(self.chunks()));
        let groups: Vec<_> = groups.map(|rows| (rows.clone(), rest.take(rows))).collect();
        groups.into_par_iter().try_for_each(|(rows, mut output)| {
            (self.check)()?;
            let values = self.read(Weights::Plain(&tape.end), rows);
            output.assign(&values.output());
            self.buffers.values.give(values);
            Ok(())
        })?;
        Ok(tape)
    }

    /// Reads and stores the chunks outside blocks. The states of the last segment are kept, which panels do not take.
    fn segments_forward(&self, rest: &mut Parts<'_, T>) -> Result<Tape<T>> {
        let mut tape = Tape { starts: Vec::new(), last: None, kept: Vec::new(), end: Vec::new() };
        let mut state = (self.segments().len() > 1).then(|| PanelState::new(self, &self.start));
        for chunks in self.segments() {
            (self.check)()?;
            let first = chunks.start == 0;
            if let Some(state) = state.as_mut().filter(|_| chunks.end < self.chunks()) {
                if !first {
                    tape.starts.push(state.save(self));
                }
                self.advance_panels(state, chunks, rest);
            } else {
                // The panels are gone before arrays of states take memory.
                let start = state.take().map(|state| state.save(self));
                let segment = self.segment(start.as_ref().unwrap_or(&self.start), chunks);
                self.read_segment(&segment, rest);
                tape.last = Some(segment);
            }
        }
        if !self.reads(self.chunks()).is_empty() {
            let last = tape.last.as_ref().map(|segment| segment.update(segment.chunks.end));
            tape.end = self.point(last.unwrap_or(&self.start.update));
        }
        Ok(tape)
    }

    /// Reads and stores the chunks of a segment without keeping its states.
    fn advance_panels(&self, state: &mut PanelState<T>, chunks: Range<usize>, rest: &mut Parts<'_, T>) {
        for (chunks, refresh) in self.intervals(chunks) {
            let interval = self.interval(chunks, state.point().to_vec(), refresh);
            let read = |(chunks, _): &(Range<usize>, _)| {
                let read = self.read_before(chunks.clone())?;
                let mut values = self.values(read.rows.len());
                values.start(read.rows.len());
                Some((read, values))
            };
            let mut reads: Vec<_> = interval.groups.iter().map(read).collect();
            state.advance(self, &interval, &mut reads);
            for (read, values) in reads.into_iter().flatten() {
                rest.take(read.rows).assign(&values.output());
                self.buffers.values.give(values);
            }
            self.recycle_groups(interval);
        }
    }

    pub fn examples(&self, chunks: &Range<usize>) -> Examples<'_, T> {
        let rows = chunks.start * self.chunk()..chunks.end * self.chunk();
        Examples {
            keys: self.keys.slice(s![rows.clone(), ..]),
            values: self.values.slice(s![rows.clone(), ..]),
            rates: self.rates.as_ref().map(|rates| &rates[rows]),
        }
    }
}

/// A matrix whose rows are divided from the first to the last.
pub struct Parts<'m, T> {
    rest: Option<ArrayViewMut2<'m, T>>,
    /// Index of the first row that is left.
    start: usize,
}

impl<'m, T: Real> Parts<'m, T> {
    pub fn new(matrix: ArrayViewMut2<'m, T>) -> Self {
        Self { rest: Some(matrix), start: 0 }
    }

    /// Returns the rows of a range, which begins where the last one ended or later.
    pub fn take(&mut self, rows: Range<usize>) -> ArrayViewMut2<'m, T> {
        let rest = self.rest.take().expect("put back below");
        let (_, rest) = rest.split_at(Axis(0), rows.start - self.start);
        let (part, rest) = rest.split_at(Axis(0), rows.len());
        (self.rest, self.start) = (Some(rest), rows.end);
        part
    }

    /// Returns the index of the first row that is left.
    pub fn start(&self) -> usize {
        self.start
    }

    /// Returns such rows, to be divided further.
    pub fn part(&mut self, rows: Range<usize>) -> Self {
        Self { start: rows.start, rest: Some(self.take(rows)) }
    }

    /// Returns the rows that are left, to be divided more than once.
    pub fn again(&mut self) -> Parts<'_, T> {
        Parts { rest: self.rest.as_mut().map(|rest| rest.view_mut()), start: self.start }
    }
}
