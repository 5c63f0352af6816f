//! The attention memory, the default model of titans-pytorch 0.0.17. For the rows x (c, d) of one chunk
//!
//! ```text
//! q = x W_q,  k = x W_k,  v = x W_v1
//! H = softmax(q kᵀ / √d, causal) v        row r attends to rows 0 ..= r of its own chunk
//! y = silu(H) W_v2
//! ```
//!
//! Two layers: [W_q W_k W_v1] and W_v2. Its gradient by hand is derived in `memory/README.md`; the names here are
//! those there. Products run over all rows at once; only what lies inside the softmax is done chunk by chunk.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};
use pulp::Arch;

use super::{Factors, MemoryModel};
use crate::engine::norm::sum_of_squares;
use crate::matmul::{matmul, scaled_matmul};
use crate::memory::parameters::MEMORY_WEIGHTS;
use crate::real::Real;

/// The attention memory of width d.
#[derive(Clone, Debug)]
pub struct Attention {
    dim_head: usize,
    shapes: [(usize, usize); MEMORY_WEIGHTS],
}

impl Attention {
    /// For heads of width `dim_head`.
    pub fn new(dim_head: usize) -> Self {
        Self { dim_head, shapes: [(dim_head, dim_head); MEMORY_WEIGHTS] }
    }

    fn weights<'a, T: Real>(&self, weights: &'a [T]) -> [ArrayView2<'a, T>; MEMORY_WEIGHTS] {
        let mut parts = weights.chunks_exact(self.dim_head * self.dim_head);
        self.shapes.map(|shape| {
            ArrayView2::from_shape(shape, parts.next().expect("four weights")).expect("d × d elements")
        })
    }
}

/// Buffers for a group of rows.
#[derive(Debug)]
pub struct Scratch<T> {
    /// q, k, v side by side: (rows, 3d)
    qkv: Array2<T>,
    /// P, (rows, c): row r of a chunk in the columns 0 ..= r, zeros after it.
    attention: Array2<T>,
    /// dA of one chunk: (c, c)
    d_attention: Array2<T>,
    hidden: Array2<T>,
    sigmoid: Array2<T>,
    d_hidden: Array2<T>,
}

/// The rows of each chunk, the last one perhaps cut short.
fn chunks(rows: usize, chunk: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(chunk).map(move |start| start..rows.min(start + chunk))
}

/// q, k and v of some rows.
fn split<T>(qkv: ArrayView2<'_, T>) -> [ArrayView2<'_, T>; 3] {
    let d = qkv.ncols() / 3;
    [0, 1, 2].map(|i| qkv.slice_move(s![.., i * d..(i + 1) * d]))
}

/// P and `hidden ← P v` for the chunks of `qkv`.
fn attend<T: Real>(
    qkv: ArrayView2<T>,
    chunk: usize,
    attention: &mut Array2<T>,
    mut hidden: ArrayViewMut2<T>,
) {
    let rows = qkv.nrows();
    let scale = T::of(1.0 / ((qkv.ncols() / 3) as f64).sqrt());
    let length = attention.ncols();
    for range in chunks(rows, chunk) {
        let [q, k, _] = split(qkv.slice(s![range.clone(), ..]));
        scaled_matmul(attention.slice_mut(s![range.clone(), ..range.len()]), scale, q, k.t());
    }
    let all = &mut attention.as_slice_mut().expect("contiguous")[..rows * length];
    T::causal_softmax(all, length);
    for range in chunks(rows, chunk) {
        let [.., v] = split(qkv.slice(s![range.clone(), ..]));
        matmul(hidden.slice_mut(s![range.clone(), ..]), attention.slice(s![range.clone(), ..range.len()]), v);
    }
}

impl<T: Real> MemoryModel<T> for Attention {
    type Scratch = Scratch<T>;

    fn shapes(&self) -> &[(usize, usize)] {
        &self.shapes
    }

    fn layers(&self) -> &[Range<usize>] {
        const { &[0..3, 3..MEMORY_WEIGHTS] }
    }

    fn scratch(&self, rows: usize, chunk: usize) -> Scratch<T> {
        let d = self.dim_head;
        let chunk = chunk.min(rows);
        let zeros = |cols: usize| Array2::zeros((rows, cols));
        Scratch {
            qkv: zeros(3 * d),
            attention: zeros(chunk),
            d_attention: Array2::zeros((chunk, chunk)),
            hidden: zeros(d),
            sigmoid: zeros(d),
            d_hidden: zeros(d),
        }
    }

    fn activate(
        &self,
        _: usize,
        chunk: usize,
        qkv: ArrayView2<T>,
        mut activated: ArrayViewMut2<T>,
        scratch: &mut Scratch<T>,
    ) {
        attend(qkv, chunk, &mut scratch.attention, activated.view_mut());
        T::silu(activated.as_slice_mut().expect("whole rows"));
    }

    fn surprise(
        &self,
        weights: &[T],
        keys: ArrayView2<T>,
        values: ArrayView2<T>,
        chunk: usize,
        losses: &mut [T],
        factors: &mut Factors<ArrayViewMut2<T>>,
        scratch: &mut Scratch<T>,
    ) {
        let d = self.dim_head;
        let rows = keys.nrows();
        let Scratch { qkv, attention, d_attention, hidden, sigmoid, d_hidden } = scratch;
        let [mut qkv, mut hidden, mut sigmoid, mut d_hidden] =
            [qkv, hidden, sigmoid, d_hidden].map(|matrix| matrix.slice_mut(s![..rows, ..]));
        let Factors { inputs, cotangents } = factors;
        let [d_qkv, d_output] = cotangents.as_mut_slice() else { unreachable!("two layers") };
        let activated = &mut inputs[0];
        let [wq, wk, wv, wv2] = self.weights(weights);

        for (i, w) in [wq, wk, wv].into_iter().enumerate() {
            matmul(qkv.slice_mut(s![.., i * d..(i + 1) * d]), keys, w);
        }
        attend(qkv.view(), chunk, attention, hidden.view_mut());
        let [hidden, sigmoid] = [&mut hidden, &mut sigmoid].map(|m| m.as_slice_mut().expect("whole rows"));
        sigmoid.copy_from_slice(hidden);
        T::sigmoid(sigmoid);
        let gate = activated.as_slice_mut().expect("whole rows");
        Arch::new().dispatch(|| {
            for ((a, &h), &s) in gate.iter_mut().zip(&*hidden).zip(&*sigmoid) {
                *a = h * s;
            }
        });

        matmul(d_output.view_mut(), activated.view(), wv2);
        let width = T::of(d as f64);
        let twice = T::of(2.0 / d as f64);
        Arch::new().dispatch(|| {
            for ((loss, mut error), value) in losses.iter_mut().zip(d_output.rows_mut()).zip(values.rows()) {
                let error = error.as_slice_mut().expect("contiguous rows");
                for (e, &v) in error.iter_mut().zip(value.as_slice().expect("contiguous rows")) {
                    *e -= v;
                }
                *loss = T::of(sum_of_squares(error)) / width;
                for e in error {
                    *e *= twice;
                }
            }
        });

        matmul(d_hidden.view_mut(), d_output.view(), wv2.t());
        let slope = d_hidden.as_slice_mut().expect("whole rows");
        Arch::new().dispatch(|| {
            for ((dh, &h), &s) in slope.iter_mut().zip(&*hidden).zip(&*sigmoid) {
                *dh *= s * (T::one() + h * (T::one() - s));
            }
        });

        let scale = T::of(1.0 / (d as f64).sqrt());
        for range in chunks(rows, chunk) {
            let length = range.len();
            let [q, k, v] = split(qkv.slice(s![range.clone(), ..]));
            let p = attention.slice(s![range.clone(), ..length]);
            let dh = d_hidden.slice(s![range.clone(), ..]);
            let mut da = d_attention.slice_mut(s![..length, ..length]);
            matmul(da.view_mut(), dh, v.t());
            Arch::new().dispatch(|| {
                for (r, (mut da, p)) in da.rows_mut().into_iter().zip(p.rows()).enumerate() {
                    let da = da.as_slice_mut().expect("contiguous rows");
                    let (seen, future) = da.split_at_mut(r + 1);
                    let p = &p.as_slice().expect("contiguous rows")[..=r];
                    let mean = T::dot(seen, p);
                    for (da, &p) in seen.iter_mut().zip(p) {
                        *da = p * (*da - mean) * scale;
                    }
                    future.fill(T::zero());
                }
            });
            let mut cotangents = d_qkv.slice_mut(s![range, ..]);
            matmul(cotangents.slice_mut(s![.., ..d]), da.view(), k);
            matmul(cotangents.slice_mut(s![.., d..2 * d]), da.t(), q);
            matmul(cotangents.slice_mut(s![.., 2 * d..]), p.t(), dh);
        }
    }
}
