//! Retention: some chunks of a head are kept with their keys and values and read again later, to measure what
//! the memory still knows.
//!
//! ```text
//! ℓ(W + U) = Σ over the chunk's tokens of mean over d of (M_{W+U}(k) − v)²
//! ```
//!
//! This is the loss that a probe takes just after a chunk is stored, but taken later. Column panels go through
//! a block independently, so the whole memory exists only between blocks; the kept chunks are read there.

use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

use super::head::chunk_loss;
use super::{Context, Phase};
use crate::memory::model::MemoryModel;
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

    /// Returns ℓ of each kept chunk at `weights`, one matrix per memory weight. Groups of chunks run in parallel.
    pub fn losses<M: MemoryModel<T>>(&self, context: &Context<'_, T, M>, weights: &[Packed<T>]) -> Vec<f64> {
        let memory = context.memory;
        let (c, d, group) = (memory.chunk_size, memory.dimensions.dim_head, context.plan.group_rows);
        let [keys, values] = [&self.keys, &self.values]
            .map(|rows| ArrayView2::from_shape((self.at_w.len() * c, d), rows).expect("whole chunks"));
        let mut losses = vec![0.0; self.at_w.len()];
        let groups = keys.axis_chunks_iter(Axis(0), group).zip(values.axis_chunks_iter(Axis(0), group));
        let groups: Vec<_> = losses.chunks_mut(group / c).zip(groups).collect();
        groups.into_par_iter().for_each(|(losses, (keys, values))| {
            context.with_scratch(Phase::Retention, |scratch| {
                let predicted = read(&memory.model, weights, keys, c, scratch);
                let chunks = predicted.axis_chunks_iter(Axis(0), c).zip(values.axis_chunks_iter(Axis(0), c));
                for (loss, (predicted, values)) in losses.iter_mut().zip(chunks) {
                    *loss = rounded::<T>(chunk_loss(predicted, values));
                }
            });
        });
        losses
    }
}

/// Returns M(keys) for whole chunks of c rows.
fn read<T: Real, M: MemoryModel<T>>(
    model: &M,
    weights: &[Packed<T>],
    keys: ArrayView2<T>,
    c: usize,
    scratch: &mut M::Scratch,
) -> Array2<T> {
    let mut inputs = keys.to_owned();
    for (layer, place) in model.layers().iter().enumerate() {
        let of_layer = &weights[place.clone()];
        let mut products = Array2::zeros((keys.nrows(), of_layer.iter().map(Packed::cols).sum()));
        let mut start = 0;
        for weight in of_layer {
            let columns = start..start + weight.cols();
            start = columns.end;
            weight.multiply(inputs.view(), products.slice_mut(s![.., columns]));
        }
        let Some(next) = model.layers().get(layer + 1) else { return products };
        inputs = Array2::zeros((keys.nrows(), model.shapes()[next.start].0));
        model.activate(layer, c, products.view(), inputs.view_mut(), scratch);
    }
    inputs
}
