//! Retention: some chunks of a head are kept with their keys and values and read again later, to measure what
//! the memory still knows.
//!
//! ```text
//! ℓ(W + U) = Σ over the chunk's tokens of ℓ(M_{W+U}(k), v)        for example mean over d of (M_{W+U}(k) − v)²
//! ```
//!
//! The control is a chunk that has not been stored: the next one to be kept, under the memory before its block. What the
//! memory has learned about tokens in general lowers that loss too, so what is kept of a chunk is the difference.
//!
//! This is the loss that a probe takes just after a chunk is stored, but taken later. Column panels go through
//! a block independently, so the whole memory exists only between blocks; the kept chunks are read there.

use ndarray::{ArrayView2, Axis};
use rayon::prelude::*;

use super::cpu::Context;
use super::head::chunk_loss;
use super::outcome::Phase;
use super::reader::evaluate;
use crate::metrics::rounded;
use crate::packed::Packed;
use crate::real::Real;

/// The kept chunks of one head.
#[derive(Debug, Default)]
pub struct KeptChunks<T> {
    /// (rows, d), one chunk after another.
    keys: Vec<T>,
    /// (rows, d)
    values: Vec<T>,
    /// ℓ of each chunk at W.
    at_w: Vec<f64>,
}

impl<T: Real> KeptChunks<T> {
    /// Discards all kept chunks.
    pub fn clear(&mut self) {
        self.keys.clear();
        self.values.clear();
        self.at_w.clear();
    }

    /// Returns the bytes of the kept chunks.
    pub fn bytes(&self) -> usize {
        (self.keys.len() + self.values.len()) * size_of::<T>() + size_of_val(&self.at_w[..])
    }

    /// Keeps a chunk (c, d) and its ℓ at W.
    pub fn keep(&mut self, keys: ArrayView2<T>, values: ArrayView2<T>, at_w: f64) {
        self.keys.extend(keys);
        self.values.extend(values);
        self.at_w.push(at_w);
    }

    /// Returns ℓ at W of each kept chunk.
    pub fn at_w(&self) -> &[f64] {
        &self.at_w
    }

    /// Returns ℓ at `weights` of a chunk (c, d) that is not stored yet.
    pub fn loss_of(
        context: &Context<'_, T>,
        weights: &[Packed<T>],
        keys: ArrayView2<T>,
        values: ArrayView2<T>,
    ) -> f64 {
        let mut chunk = Self { keys: Vec::new(), values: Vec::new(), at_w: Vec::new() };
        chunk.keep(keys, values, 0.0);
        chunk.losses(context, weights)[0]
    }

    /// Returns ℓ of each kept chunk at `weights`, one matrix per memory weight. Groups of chunks run in parallel.
    pub fn losses(&self, context: &Context<'_, T>, weights: &[Packed<T>]) -> Vec<f64> {
        let memory = context.memory;
        let (c, d, group) = (memory.chunk_size(), memory.dimensions.dim_head, context.plan.group_rows);
        let [keys, values] = [&self.keys, &self.values]
            .map(|rows| ArrayView2::from_shape((self.at_w.len() * c, d), rows).expect("whole chunks"));
        let mut losses = vec![0.0; self.at_w.len()];
        let groups = keys.axis_chunks_iter(Axis(0), group).zip(values.axis_chunks_iter(Axis(0), group));
        let groups: Vec<_> = losses.chunks_mut(group / c).zip(groups).collect();
        groups.into_par_iter().for_each(|(losses, (keys, values))| {
            context.with_scratch(Phase::Retention, |scratch| {
                let model = (&memory.graph, &memory.places);
                let buffers = (&mut scratch.groups[..], &mut scratch.works[..]);
                let predicted = evaluate(model, weights, keys, c, buffers);
                let chunks = predicted.axis_chunks_iter(Axis(0), c).zip(values.axis_chunks_iter(Axis(0), c));
                for (loss, (predicted, values)) in losses.iter_mut().zip(chunks) {
                    *loss = rounded::<T>(chunk_loss(memory.program.loss, predicted, values));
                }
            });
        });
        losses
    }
}
