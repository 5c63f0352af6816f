//! Reads of a head, and the way back through them.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};
use rayon::prelude::*;

use super::Order;
use super::head::{HeadSequence, Parts};
use super::node_rows::{Passage, Values};
use super::passes::Weights;
use super::segment::{Segment, TASK_ROWS};
use crate::memory::program::Reads;
use crate::real::Real;

/// Rows that are read before some chunks of a segment, a chunk of rows each.
pub struct Read {
    pub chunks: Range<usize>,
    pub rows: Range<usize>,
}

impl<T: Real> HeadSequence<'_, T> {
    /// Returns the rows of queries that read the weights before a chunk, or after the last.
    pub fn reads(&self, chunk: usize) -> Range<usize> {
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
    pub fn groups(&self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<T> {
        let step = self.chunk() * TASK_ROWS.div_ceil(self.chunk());
        let end = rows.end;
        rows.step_by(step).map(move |start| start..end.min(start + step))
    }

    /// Returns the weights that are read before a chunk of a segment.
    pub fn weights<'w>(&'w self, segment: &'w Segment<T>, chunk: usize) -> Weights<'w, T> {
        let update = segment.update(chunk);
        if self.program.rule.holds_weights() {
            Weights::Plain(update)
        } else {
            Weights::Sum([self.base, update])
        }
    }

    /// Reads rows of queries with some weights.
    pub fn read(&self, weights: Weights<'_, T>, rows: Range<usize>) -> Values<T> {
        let mut values = self.values(rows.len());
        let mut space = self.buffers.weights.take(|_| true, Vec::new);
        self.passes.forward(weights, self.queries.slice(s![rows, ..]), (&mut values, &mut space));
        self.buffers.weights.give(space);
        values
    }

    /// Reads before the chunks of a segment.
    pub fn read_segment(&self, segment: &Segment<T>, rest: &mut Parts<'_, T>) {
        let reads = self.reads_before(segment.chunks.clone().map(|chunk| chunk..chunk + 1), rest);
        let many = Self::batch(reads.first().map_or(0, |(read, _)| read.rows.len()) * self.elements());
        reads.into_par_iter().with_min_len(many).for_each(|(read, mut output)| {
            let values = self.read(self.weights(segment, read.chunks.start), read.rows);
            output.assign(&values.output());
            self.buffers.values.give(values);
        });
    }

    /// Returns what is read before some chunks; `None` if nothing is.
    pub fn read_before(&self, chunks: Range<usize>) -> Option<Read> {
        let mut read = chunks.filter(|&chunk| !self.reads(chunk).is_empty());
        let first = read.next()?;
        let last = read.next_back().unwrap_or(first);
        Some(Read { chunks: first..last + 1, rows: self.reads(first).start..self.reads(last).end })
    }

    /// Returns what is read before each of some parts of a segment, with its rows of a matrix.
    pub fn reads_before<'m>(
        &self,
        parts: impl Iterator<Item = Range<usize>>,
        rest: &mut Parts<'m, T>,
    ) -> Vec<(Read, ArrayViewMut2<'m, T>)> {
        let reads = parts.filter_map(|chunks| self.read_before(chunks));
        let with_rows = |read: Read| {
            let rows = rest.take(read.rows.clone());
            (read, rows)
        };
        reads.map(with_rows).collect()
    }

    /// Reads some rows again and passes the cotangent of what they read back.
    pub fn read_vjp(
        &self,
        weights: Weights<'_, T>,
        rows: Range<usize>,
        d_output: ArrayView2<'_, T>,
        d_queries: ArrayViewMut2<'_, T>,
    ) -> Passage<T> {
        let values = self.read(weights, rows.clone());
        let mut passage = Passage { values, cotangents: self.node_rows(rows.len()) };
        let mut space = self.buffers.weights.take(|_| true, Vec::new);
        let queries = self.queries.slice(s![rows.clone(), ..]);
        let d_output = d_output.slice(s![rows, ..]);
        self.passes.vjp(weights, queries, d_output, (&mut passage, &mut space), d_queries);
        self.buffers.weights.give(space);
        passage
    }

    /// Passes the cotangents of what a segment's chunks read back to the queries, and returns those of the weights: a row of
    /// elements for each chunk.
    pub fn reads_vjp(
        &self,
        segment: &Segment<T>,
        d_output: ArrayView2<'_, T>,
        queries: &mut Parts<'_, T>,
    ) -> Array2<T> {
        let reads = self.reads_before(segment.chunks.clone().map(|chunk| chunk..chunk + 1), queries);
        let many = Self::batch(reads.first().map_or(0, |(read, _)| read.rows.len()) * self.elements());
        let chunks = segment.chunks.clone();
        let mut gradients = self.array();
        let mut places: Vec<_> = gradients.outer_iter_mut().take(chunks.len()).map(Some).collect();
        let tasks: Vec<_> = reads
            .into_iter()
            .map(|(read, to)| {
                let place = places[read.chunks.start - chunks.start].take();
                (place.expect("one read a chunk"), read, to)
            })
            .collect();
        for mut unread in places.into_iter().flatten() {
            unread.fill(T::zero());
        }
        tasks.into_par_iter().with_min_len(many).for_each(|(mut to, Read { chunks, rows }, d_queries)| {
            let weights = self.weights(segment, chunks.start);
            let passage = self.read_vjp(weights, rows.clone(), d_output, d_queries);
            let queries = self.queries.slice(s![rows, ..]);
            self.passes.weight_gradients(&passage, queries, to.as_slice_mut().expect("standard layout"));
            self.give(passage);
        });
        gradients
    }
}
