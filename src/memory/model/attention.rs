//! The attention memory, which is `titans_attn_memory` of titans-pytorch 0.0.17. For the rows x (c, d) of one chunk
//!
//! ```text
//! q = x W_q,  k = x W_k,  v = x W_v1
//! H = softmax(q kᵀ / √d, causal) v        row r attends to rows 0 ..= r of its own chunk
//! y = silu(H) W_v2
//! ```
//!
//! It has two layers: [W_q W_k W_v1] and W_v2. Its hand-written gradient is derived in
//! `docs/concepts/mathematics.md`, with the names used here. Products run over all rows at once; only the
//! operations inside the softmax run chunk by chunk.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayView3, ArrayViewMut2, Axis, concatenate, s};

use super::{Factors, MemoryModel};
use crate::engine::norm::squared_distance;
use crate::matmul::matmul;
use crate::memory::parameters::MEMORY_WEIGHTS;
use crate::packed::{
    Packed, PanelRow, WIDTH, multiply_lower, multiply_lower_transposed, multiply_transposed_lower,
};
use crate::real::Real;
use crate::simd::vectorised;

/// The attention memory of width d.
#[derive(Clone, Debug)]
pub struct Attention {
    dim_head: usize,
    shapes: [(usize, usize); MEMORY_WEIGHTS],
}

impl Attention {
    /// Creates the model for heads of width `dim_head`.
    pub fn new(dim_head: usize) -> Self {
        Self { dim_head, shapes: [(dim_head, dim_head); MEMORY_WEIGHTS] }
    }
}

/// W in column panels.
#[derive(Clone, Debug)]
pub struct Weights<T> {
    /// [W_q W_k W_v1]: (d, 3d)
    qkv: Packed<T>,
    output: Packed<T>,
    output_transposed: Packed<T>,
}

/// Buffers for a group of rows.
#[derive(Debug)]
pub struct Scratch<T> {
    /// q, k, v side by side: (rows, 3d)
    qkv: Array2<T>,
    /// P, (rows, c): row r of a chunk fills the columns 0 ..= r, with zeros after them.
    attention: Array2<T>,
    /// Cotangent dA of one chunk: (c, c)
    d_attention: Array2<T>,
    hidden: Array2<T>,
    sigmoid: Array2<T>,
    d_hidden: Array2<T>,
    /// Space for products within a chunk.
    panel: Vec<PanelRow<T>>,
}

/// Rows of a chunk whose dH vᵀ is taken at once. Columns past the last of these rows are skipped, a quarter of
/// the products of a chunk of 64. Fewer rows skip more and cost more calls; 16 measured no faster.
const TILE: usize = 32;

/// Longest chunk whose q kᵀ is taken pair by pair. Rearranging kᵀ for the products takes as long as the
/// products of some ten rows.
const PAIRWISE: usize = 8;

/// Computes `p ← scale · q kᵀ` on and below the diagonal.
fn scores_pairwise<T: Real>(scale: T, q: ArrayView2<T>, k: ArrayView2<T>, mut p: ArrayViewMut2<T>) {
    vectorised(
        #[inline(always)]
        || {
            for (r, (mut p, q)) in p.rows_mut().into_iter().zip(q.rows()).enumerate() {
                let q = q.to_slice().expect("contiguous rows");
                for (p, k) in p.iter_mut().zip(k.rows()).take(r + 1) {
                    *p = scale * T::dot(q, k.to_slice().expect("contiguous rows"));
                }
            }
        },
    );
}

/// Yields the tiles of a chunk.
fn tiles(rows: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(TILE).map(move |start| start..rows.min(start + TILE))
}

/// Splits rows into q, k and v.
fn split<T>(qkv: ArrayView2<'_, T>) -> [ArrayView2<'_, T>; 3] {
    let d = qkv.ncols() / 3;
    let (q, kv) = qkv.split_at(Axis(1), d);
    let (k, v) = kv.split_at(Axis(1), d);
    [q, k, v]
}

/// Computes P and `hidden ← P v` for the chunks of `qkv`. Each row of P holds `chunk` numbers.
fn attend<T: Real>(
    qkv: ArrayView2<T>,
    chunk: usize,
    attention: &mut Array2<T>,
    panel: &mut Vec<PanelRow<T>>,
    mut hidden: ArrayViewMut2<T>,
) {
    let rows = qkv.nrows();
    let scale = T::from_f64(1.0 / ((qkv.ncols() / 3) as f64).sqrt());
    let length = attention.ncols();
    let mut attention = attention.slice_mut(s![..rows, ..]);
    let chunks = qkv.axis_chunks_iter(Axis(0), chunk);
    for (qkv, mut p) in chunks.clone().zip(attention.axis_chunks_iter_mut(Axis(0), chunk)) {
        let [q, k, _] = split(qkv);
        // The length of whole chunks decides: a row must not depend on the number of rows that follow it.
        if chunk <= PAIRWISE {
            scores_pairwise(scale, q, k, p);
        } else {
            multiply_transposed_lower(scale, q, k, p.slice_mut(s![.., ..q.nrows()]), panel);
        }
    }
    T::causal_softmax(attention.as_slice_mut().expect("whole rows"), length);
    let outputs = attention.axis_chunks_iter(Axis(0), chunk).zip(hidden.axis_chunks_iter_mut(Axis(0), chunk));
    for (qkv, (p, hidden)) in chunks.zip(outputs) {
        let [.., v] = split(qkv);
        multiply_lower(p.slice(s![.., ..v.nrows()]), v, hidden, panel);
    }
}

/// Computes dq, dk and dv, side by side, from dH of a chunk. `da` has space for (c, c).
fn attend_backward<T: Real>(
    qkv: ArrayView2<T>,
    p: ArrayView2<T>,
    d_hidden: ArrayView2<T>,
    da: &mut Array2<T>,
    panel: &mut Vec<PanelRow<T>>,
    d_qkv: ArrayViewMut2<T>,
) {
    let (rows, d) = d_hidden.dim();
    let [q, k, v] = split(qkv);
    let (dq, rest) = d_qkv.split_at(Axis(1), d);
    let (dk, dv) = rest.split_at(Axis(1), d);
    for tile in tiles(rows) {
        let out = da.slice_mut(s![tile.clone(), ..tile.end]);
        matmul(out, d_hidden.slice(s![tile.clone(), ..]), v.slice(s![..tile.end, ..]).t());
    }
    let scale = T::from_f64(1.0 / (d as f64).sqrt());
    vectorised(
        #[inline(always)]
        || {
            for (r, (mut da, p)) in da.rows_mut().into_iter().zip(p.rows()).enumerate() {
                let (seen, future) = da.as_slice_mut().expect("contiguous rows").split_at_mut(r + 1);
                let p = &p.to_slice().expect("contiguous rows")[..=r];
                let mean = T::dot(seen, p);
                for (da, &p) in seen.iter_mut().zip(p) {
                    *da = p * (*da - mean) * scale;
                }
                future.fill(T::zero());
            }
        },
    );
    let [da, p] = [da.view(), p].map(|square| square.slice_move(s![..rows, ..rows]));
    multiply_lower(da, k, dq, panel);
    multiply_lower_transposed(da, q, dk, panel);
    multiply_lower_transposed(p, d_hidden, dv, panel);
}

impl<T: Real> MemoryModel<T> for Attention {
    type Weights = Weights<T>;
    type Scratch = Scratch<T>;

    fn shapes(&self) -> &[(usize, usize)] {
        &self.shapes
    }

    fn layers(&self) -> &[Range<usize>] {
        const { &[0..3, 3..MEMORY_WEIGHTS] }
    }

    fn prepare(&self, weights: &[T]) -> Weights<T> {
        let d = self.dim_head;
        let all = ArrayView3::from_shape((MEMORY_WEIGHTS, d, d), weights).expect("four weights of d × d");
        let [wq, wk, wv1, wv2] = [0, 1, 2, 3].map(|p| all.index_axis(Axis(0), p));
        Weights {
            qkv: Packed::new(concatenate![Axis(1), wq, wk, wv1].view()),
            output: Packed::new(wv2),
            output_transposed: Packed::new(wv2.t()),
        }
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
            panel: Vec::new(),
        }
    }

    fn scratch_numbers(&self, rows: usize, chunk: usize) -> usize {
        let chunk = chunk.min(rows);
        let within_chunk = chunk * (chunk + WIDTH);
        rows * (6 * self.dim_head + chunk) + within_chunk
    }

    fn activate(
        &self,
        _: usize,
        chunk: usize,
        qkv: ArrayView2<T>,
        mut activated: ArrayViewMut2<T>,
        scratch: &mut Scratch<T>,
    ) {
        attend(qkv, chunk, &mut scratch.attention, &mut scratch.panel, activated.view_mut());
        T::silu(activated.as_slice_mut().expect("whole rows"));
    }

    fn loss_and_gradient(
        &self,
        weights: &Weights<T>,
        keys: ArrayView2<T>,
        values: ArrayView2<T>,
        chunk: usize,
        losses: &mut [f64],
        factors: &mut Factors<ArrayViewMut2<T>>,
        scratch: &mut Scratch<T>,
    ) {
        let d = self.dim_head;
        let rows = keys.nrows();
        let Scratch { qkv, attention, d_attention, hidden, sigmoid, d_hidden, panel } = scratch;
        let [mut qkv, mut hidden, mut sigmoid, mut d_hidden] =
            [qkv, hidden, sigmoid, d_hidden].map(|matrix| matrix.slice_mut(s![..rows, ..]));
        let Factors { inputs, cotangents } = factors;
        let [d_qkv, d_output] = cotangents.as_mut_slice() else { unreachable!("two layers") };
        let activated = &mut inputs[0];

        weights.qkv.multiply(keys, qkv.view_mut());
        attend(qkv.view(), chunk, attention, panel, hidden.view_mut());
        let [hidden, sigmoid] = [&mut hidden, &mut sigmoid].map(|m| m.as_slice_mut().expect("whole rows"));
        sigmoid.copy_from_slice(hidden);
        T::sigmoid(sigmoid);
        let gate = activated.as_slice_mut().expect("whole rows");
        vectorised(
            #[inline(always)]
            || {
                for ((a, &h), &s) in gate.iter_mut().zip(&*hidden).zip(&*sigmoid) {
                    *a = h * s;
                }
            },
        );

        weights.output.multiply(activated.view(), d_output.view_mut());
        let width = d as f64;
        let twice = T::from_f64(2.0 / d as f64);
        vectorised(
            #[inline(always)]
            || {
                for ((loss, mut error), value) in
                    losses.iter_mut().zip(d_output.rows_mut()).zip(values.rows())
                {
                    let error = error.as_slice_mut().expect("contiguous rows");
                    let value = value.as_slice().expect("contiguous rows");
                    *loss = squared_distance(error, value) / width;
                    for (e, &v) in error.iter_mut().zip(value) {
                        *e = (*e - v) * twice;
                    }
                }
            },
        );

        weights.output_transposed.multiply(d_output.view(), d_hidden.view_mut());
        let slope = d_hidden.as_slice_mut().expect("whole rows");
        vectorised(
            #[inline(always)]
            || {
                for ((dh, &h), &s) in slope.iter_mut().zip(&*hidden).zip(&*sigmoid) {
                    *dh *= s * (T::one() + h * (T::one() - s));
                }
            },
        );

        let chunks = qkv.axis_chunks_iter(Axis(0), chunk).zip(attention.axis_chunks_iter(Axis(0), chunk));
        let cotangents =
            d_hidden.axis_chunks_iter(Axis(0), chunk).zip(d_qkv.axis_chunks_iter_mut(Axis(0), chunk));
        for ((qkv, p), (d_hidden, d_qkv)) in chunks.zip(cotangents) {
            attend_backward(qkv, p, d_hidden, d_attention, panel, d_qkv);
        }
    }
}
