//! One head back through time.
//!
//! With Ū and S̄ the cotangents of U and S and g = Aᵀ B the gradient of a chunk:
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

use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};
use rayon::prelude::*;

use super::block::Block;
use super::head::{HeadCotangents, HeadSequence, Parts, RowCotangents, SegmentCotangents, Tape, add};
use super::node_rows::{Passage, Second};
use super::passes::Weights;
use super::recurrences::step_back;
use super::second::ExampleCotangents;
use super::segment::{Interval, Segment};
use crate::error::Result;
use crate::real::Real;
use crate::simd::vectorised;

/// Cotangents that pass from a chunk to the one before.
pub struct Carried<T> {
    pub update: Vec<T>,
    pub momentum: Vec<T>,
    /// Empty without refreshes, where the point is the initial weights.
    point: Vec<T>,
    pub base: Vec<T>,
    transition: f64,
}

/// Gradients of a group of chunks, and places for the cotangents of its gates and rows.
struct GroupBack<'a, T> {
    chunks: &'a Range<usize>,
    passage: &'a mut Passage<T>,
    gates: &'a mut [[f64; 3]],
    to: ExampleCotangents<'a, T>,
}

/// Adds numbers to two slices.
pub fn add_to_both<T: Real>([a, b]: [&mut [T]; 2], numbers: &[T]) {
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

impl<T: Real> HeadSequence<'_, T> {
    /// Passes the cotangent of the output rows (rows, d) back, with at most `live` segments at work at once. Writes the cotangents of
    /// all rows to `to`.
    ///
    /// # Errors
    /// That of the check, which ends the work.
    pub fn backward(
        &self,
        live: usize,
        tape: Tape<T>,
        d_output: ArrayView2<'_, T>,
        mut to: RowCotangents<'_, T>,
    ) -> Result<HeadCotangents<T>> {
        let zeros = || vec![T::zero(); self.elements()];
        let Tape { mut starts, mut last, kept, end } = tape;
        let refreshes = self.program.schedule.refresh.is_some();
        let mut carried = Carried {
            update: zeros(),
            momentum: zeros(),
            point: if refreshes { zeros() } else { Vec::new() },
            base: zeros(),
            transition: 0.0,
        };
        let mut results = HeadCotangents {
            gates: vec![[0.0; 3]; self.chunks()],
            rates: self.rates.as_ref().map(|rates| vec![T::zero(); rates.len()]),
            base: Vec::new(),
            transition: 0.0,
        };
        let (segments, mut queries) = self.divided(&mut results, &mut to);
        let groups = self.groups(self.reads(self.chunks()));
        let mut d_weights = vec![T::zero(); end.len()];
        for rows in groups {
            (self.check)()?;
            let d_queries = queries.take(rows.clone());
            let passage = self.read_vjp(Weights::Plain(&end), rows.clone(), d_output, d_queries);
            self.passes.weight_gradients(&passage, self.queries.slice(s![rows, ..]), &mut d_weights);
            self.give(passage);
            add(&mut carried.update, &d_weights);
        }
        drop((end, d_weights));
        if !self.program.rule.holds_weights() {
            carried.base.copy_from_slice(&carried.update);
        }
        if self.in_blocks {
            self.blocks_backward(live, kept.into_iter().zip(segments), d_output, &mut carried)?;
        } else {
            for to in segments.into_iter().rev() {
                (self.check)()?;
                let segment = last.take().unwrap_or_else(|| match starts.pop() {
                    Some(start) => self.segment(&start, to.chunks.clone()),
                    None => self.segment(&self.start, to.chunks.clone()),
                });
                self.segment_vjp(segment, d_output, &mut carried, to);
            }
        }
        // The state of a new memory is the initial weights.
        let mut parts = Vec::new();
        if self.fresh && self.program.rule.holds_weights() {
            parts.push(&carried.update);
        }
        if self.fresh && refreshes {
            parts.push(&carried.point);
        }
        for part in parts {
            carried.base.iter_mut().zip(part).for_each(|(sum, &x)| *sum += x);
        }
        Ok(HeadCotangents { base: carried.base, transition: carried.transition, ..results })
    }

    /// Divides the places for cotangents at the segments. Returns those of queries after the last chunk too.
    fn divided<'m>(
        &self,
        results: &'m mut HeadCotangents<T>,
        to: &'m mut RowCotangents<'_, T>,
    ) -> (Vec<SegmentCotangents<'m, T>>, Parts<'m, T>) {
        let [mut keys, mut values, mut queries] =
            [&mut to.keys, &mut to.values, &mut to.queries].map(|rows| Parts::new(rows.view_mut()));
        let (mut gates, mut rates) = (&mut results.gates[..], results.rates.as_deref_mut());
        let of_segment = |chunks: Range<usize>| {
            let rows = chunks.start * self.chunk()..chunks.end * self.chunk();
            let none = queries.start()..queries.start();
            let read = self.read_before(chunks.clone()).map_or(none, |read| read.rows);
            SegmentCotangents {
                keys: keys.part(rows.clone()),
                values: values.part(rows.clone()),
                queries: queries.part(read),
                rates: rates.as_mut().map(|rates| rates.split_off_mut(..rows.len()).expect("rates of rows")),
                gates: gates.split_off_mut(..chunks.len()).expect("gates of chunks"),
                chunks,
            }
        };
        let segments = self.segments().map(of_segment).collect();
        (segments, queries)
    }

    fn segment_vjp(
        &self,
        mut segment: Segment<T>,
        d_output: ArrayView2<'_, T>,
        carried: &mut Carried<T>,
        mut to: SegmentCotangents<'_, T>,
    ) {
        let first = segment.chunks.start;
        let d_reads = self.reads_vjp(&segment, d_output, &mut to.queries);
        for mut interval in std::mem::take(&mut segment.intervals).into_iter().rev() {
            if interval.refresh {
                self.refresh_vjp(&segment, &interval, carried);
            }
            let gates = &mut to.gates[interval.chunks.start - first..interval.chunks.end - first];
            self.recurrences_vjp(&mut segment, &interval, &d_reads, carried, gates);
            let momenta = &segment.momenta;
            let seconds = self.gradients_vjp(&mut interval, &mut to, |chunks, passage, second, d_rates| {
                let steps = chunks.clone().map(|chunk| {
                    let s_bar = momenta.row(chunk - first + 1);
                    (self.steps[chunk].learning_rate, s_bar.to_slice().expect("standard layout"))
                });
                let steps: Vec<_> = steps.collect();
                self.passes.factors_vjp(self.examples(chunks).keys, (passage, second), &steps, d_rates);
            });
            let of_point = if interval.point.is_empty() { &mut carried.base } else { &mut carried.point };
            self.points_vjp(&interval, seconds, of_point);
            let refreshed = |every: usize| (self.first_chunk + interval.chunks.start) * self.chunk() >= every;
            if self.is_cut(interval.chunks.start) && self.program.schedule.refresh.is_some_and(refreshed) {
                carried.point.fill(T::zero());
            }
            segment.intervals.push(interval);
        }
        self.buffers.arrays.give(d_reads);
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
        d_reads: &Array2<T>,
        carried: &mut Carried<T>,
        gates: &mut [[f64; 3]],
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
                for (i, step) in steps.iter().enumerate().rev() {
                    let n = first + i;
                    let [u, d_read] = [&*updates, d_reads].map(|array| {
                        let part = array.slice(s![n, block.place.clone()]);
                        part.to_slice().expect("contiguous rows")
                    });
                    let (s, mut next_s) = momenta.multi_slice_mut((s![n, ..], s![n + 1, ..]));
                    let s = s.as_slice().expect("contiguous rows");
                    let next_s = next_s.as_slice_mut().expect("contiguous rows");
                    sums[i] = step_back(step, [u, s], next_s, [&mut *u_bar, &mut *s_bar]);
                    if whole {
                        add(u_bar, d_read);
                    } else {
                        add_to_both([&mut *u_bar, &mut *d_base], d_read);
                    }
                    if cut && i == 0 {
                        u_bar.fill(T::zero());
                        s_bar.fill(T::zero());
                    }
                }
                sums
            };
        let sums: Vec<_> = blocks.into_par_iter().with_min_len(many).map(of_block).collect();
        for of_block in sums {
            for (gates, [eta, alpha]) in gates.iter_mut().zip(of_block) {
                gates[1] += eta;
                gates[2] += alpha;
            }
        }
    }

    /// Passes the cotangents of an interval's gradients back to keys, values and rates, and to θ. Returns what is left for
    /// [`points_vjp`](Self::points_vjp). `factors_vjp` passes the cotangents of some chunks to their factors and rates.
    pub fn gradients_vjp(
        &self,
        interval: &mut Interval<T>,
        to: &mut SegmentCotangents<'_, T>,
        factors_vjp: impl Fn(&Range<usize>, &Passage<T>, &mut Second<T>, &mut [f64]) + Sync,
    ) -> Vec<Second<T>> {
        let c = self.chunk();
        let Interval { chunks: of_interval, point, groups, .. } = interval;
        let at = self.at(point);
        let largest = groups.iter().map(|(chunks, _)| chunks.len()).max().unwrap_or(0);
        let many = Self::batch(largest * c * self.elements());
        let first = to.chunks.start;
        let (mut keys, mut values) = (to.keys.again(), to.values.again());
        let mut rates = to.rates.as_deref_mut().map(|rates| &mut rates[(of_interval.start - first) * c..]);
        let mut gates = &mut to.gates[of_interval.start - first..];
        let tasks: Vec<_> = groups
            .iter_mut()
            .map(|(chunks, passage)| {
                let rows = chunks.start * c..chunks.end * c;
                let rates =
                    rates.as_mut().map(|rates| rates.split_off_mut(..rows.len()).expect("rates of rows"));
                let [keys, values] = [&mut keys, &mut values].map(|rest| rest.take(rows.clone()));
                let gates = gates.split_off_mut(..chunks.len()).expect("gates of chunks");
                GroupBack { chunks, passage, gates, to: ExampleCotangents { keys, values, rates } }
            })
            .collect();
        let of_group = |GroupBack { chunks, passage, gates, to }: GroupBack<'_, T>| {
            let examples = self.examples(chunks);
            let rows = chunks.len() * c;
            let mut second = Second { tangents: self.node_rows(rows), cotangents: self.node_rows(rows) };
            second.tangents.start(rows);
            second.cotangents.start(rows);
            let mut d_rates = vec![0.0; chunks.len()];
            factors_vjp(chunks, passage, &mut second, &mut d_rates);
            for (gates, rate) in gates.iter_mut().zip(d_rates) {
                gates[0] += rate;
            }
            self.passes.inner_vjp((self.program.loss, at), examples, (passage, &mut second), to);
            second
        };
        tasks.into_par_iter().with_min_len(many).map(of_group).collect()
    }

    /// Adds the cotangent of the point of an interval's gradients, from what each group's gradients left.
    pub fn points_vjp(&self, interval: &Interval<T>, seconds: Vec<Second<T>>, to: &mut [T]) {
        let mut rest = to;
        let blocks: Vec<_> = self
            .passes
            .blocks
            .iter()
            .map(|block| (block, rest.split_off_mut(..block.place.len()).expect("a block")))
            .collect();
        let many = Self::batch(interval.chunks.len() * self.chunk() * self.elements() / blocks.len());
        blocks.into_par_iter().with_min_len(many).for_each(|(block, to)| {
            for ((chunks, passage), second) in interval.groups.iter().zip(&seconds) {
                self.passes.point_vjp(self.examples(chunks).keys, (passage, second), block, to);
            }
        });
        for second in seconds {
            self.buffers.rows.give(second.tangents);
            self.buffers.rows.give(second.cotangents);
        }
    }
}
