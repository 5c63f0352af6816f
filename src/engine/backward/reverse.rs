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
use super::head::{HeadCotangents, HeadSequence, Parts, RowCotangents, Tape, add};
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
        let Tape { mut starts, mut last, mut gradients, mut reads, end } = tape;
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
        let groups = self.groups(self.reads(self.chunks()));
        let mut d_weights = vec![T::zero(); end.len()];
        for rows in groups {
            (self.check)()?;
            let d_queries = to.queries.slice_mut(s![rows.clone(), ..]);
            let passage = self.read_vjp(Weights::Plain(&end), rows.clone(), d_output, d_queries);
            self.passes.weight_gradients(&passage, self.queries.slice(s![rows, ..]), &mut d_weights);
            self.give(passage);
            add(&mut carried.update, &d_weights);
        }
        drop((end, d_weights));
        if !self.program.rule.holds_weights() {
            carried.base.copy_from_slice(&carried.update);
        }
        for chunks in self.segments().rev() {
            (self.check)()?;
            if self.in_blocks {
                let start = starts.pop();
                let start = start.as_ref().unwrap_or(&self.start);
                let gradients = gradients.take().unwrap_or_else(|| self.gradients(chunks));
                let kept = reads.pop().expect("reads of each segment");
                self.blocks_vjp((start, gradients, kept), d_output, &mut carried, &mut results, &mut to);
            } else {
                let segment = last.take().unwrap_or_else(|| match starts.pop() {
                    Some(start) => self.segment(&start, chunks),
                    None => self.segment(&self.start, chunks),
                });
                self.segment_vjp(segment, d_output, &mut carried, &mut results, &mut to);
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
            let momenta = &segment.momenta;
            self.gradients_vjp(&mut interval, carried, results, to, |chunks, passage, second, d_rates| {
                let steps = chunks.clone().map(|chunk| {
                    let s_bar = momenta.row(chunk - segment.chunks.start + 1);
                    (self.steps[chunk].learning_rate, s_bar.to_slice().expect("standard layout"))
                });
                let steps: Vec<_> = steps.collect();
                self.passes.factors_vjp(self.examples(chunks).keys, (passage, second), &steps, d_rates);
            });
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
            for (gates, [eta, alpha]) in results.gates[interval.chunks.clone()].iter_mut().zip(of_block) {
                gates[1] += eta;
                gates[2] += alpha;
            }
        }
    }

    /// Passes the cotangents of an interval's gradients back to keys, values, rates and the point. `factors_vjp` passes those of some
    /// chunks to their factors and rates.
    pub fn gradients_vjp(
        &self,
        interval: &mut Interval<T>,
        carried: &mut Carried<T>,
        results: &mut HeadCotangents<T>,
        to: &mut RowCotangents<'_, T>,
        factors_vjp: impl Fn(&Range<usize>, &Passage<T>, &mut Second<T>, &mut [f64]) + Sync,
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
            let mut second = Second { tangents: self.node_rows(rows), cotangents: self.node_rows(rows) };
            second.tangents.start(rows);
            second.cotangents.start(rows);
            let mut d_rates = vec![0.0; chunks.len()];
            factors_vjp(chunks, passage, &mut second, &mut d_rates);
            self.passes.inner_vjp((self.program.loss, at), examples, (passage, &mut second), to);
            (chunks.clone(), d_rates, second)
        };
        let of_groups: Vec<_> = tasks.into_par_iter().with_min_len(many).map(of_group).collect();
        let passed: Vec<_> = groups.iter().zip(&of_groups).collect();
        let Carried { point: d_point, base: d_base, .. } = &mut *carried;
        let mut rest = if point.is_empty() { &mut d_base[..] } else { &mut d_point[..] };
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
            self.buffers.rows.give(second.tangents);
            self.buffers.rows.give(second.cotangents);
        }
        let refreshed = |every: usize| (self.first_chunk + of_interval.start) * c >= every;
        if self.is_cut(of_interval.start) && self.program.schedule.refresh.is_some_and(refreshed) {
            carried.point.fill(T::zero());
        }
    }
}
