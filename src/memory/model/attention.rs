//! The attention memory, the default model of titans-pytorch 0.0.17. For the rows x (c, d) of one chunk
//!
//! ```text
//! q = x W_q,  k = x W_k,  v = x W_v1
//! H = softmax(q kᵀ / √d, causal) v        row r attends to rows 0 ..= r of its own chunk
//! y = silu(H) W_v2
//! ```
//!
//! Its gradient by hand is derived in `memory/README.md`; the names here are those there.
//!
//! Projections run once over a whole block of chunks; only what lies inside the softmax is done chunk by chunk.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, azip, s};

use super::{Factors, MemoryModel};
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

/// Buffers for a block of rows. Before the backward pass `qkv` holds q, k, v side by side, after it `cotangents`
/// holds dq, dk, dv.
#[derive(Debug)]
pub struct Workspace<T> {
    qkv: Array2<T>,
    cotangents: Array2<T>,
    /// P, (rows, c): row r of a chunk in the columns 0 ..= r.
    attention: Array2<T>,
    d_attention: Array2<T>,
    hidden: Array2<T>,
    sigmoid: Array2<T>,
    activated: Array2<T>,
    d_output: Array2<T>,
    d_hidden: Array2<T>,
}

/// The rows of each chunk of a block, the last one perhaps cut short.
fn chunks(rows: usize, chunk: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..rows).step_by(chunk).map(move |start| start..rows.min(start + chunk))
}

impl Attention {
    /// Fills `qkv`, `attention`, `hidden`, `sigmoid` and `activated` for the rows of `inputs`.
    fn forward<T: Real>(&self, weights: &[T], inputs: ArrayView2<T>, chunk: usize, work: &mut Workspace<T>) {
        let d = self.dim_head;
        let rows = inputs.nrows();
        let [wq, wk, wv, _] = self.weights(weights);
        for (i, w) in [wq, wk, wv].into_iter().enumerate() {
            matmul(work.qkv.slice_mut(s![..rows, i * d..(i + 1) * d]), inputs, w);
        }
        let scale = T::of(1.0 / (d as f64).sqrt());
        for range in chunks(rows, chunk) {
            let qkv = work.qkv.slice(s![range.clone(), ..]);
            let (q, k, v) = (qkv.slice(s![.., ..d]), qkv.slice(s![.., d..2 * d]), qkv.slice(s![.., 2 * d..]));
            let mut p = work.attention.slice_mut(s![range.clone(), ..range.len()]);
            scaled_matmul(p.view_mut(), scale, q, k.t());
            for (r, mut row) in p.rows_mut().into_iter().enumerate() {
                let (seen, future) = row.as_slice_mut().expect("rows are contiguous").split_at_mut(r + 1);
                T::softmax(seen);
                future.fill(T::zero());
            }
            matmul(work.hidden.slice_mut(s![range, ..]), p.view(), v);
        }
        let hidden = work.hidden.slice(s![..rows, ..]);
        let mut sigmoid = work.sigmoid.slice_mut(s![..rows, ..]);
        sigmoid.assign(&hidden);
        T::sigmoid(sigmoid.as_slice_mut().expect("whole rows"));
        let mut activated = work.activated.slice_mut(s![..rows, ..]);
        azip!((a in &mut activated, &h in &hidden, &s in &sigmoid) *a = h * s);
    }
}

impl<T: Real> MemoryModel<T> for Attention {
    type Workspace = Workspace<T>;

    fn shapes(&self) -> &[(usize, usize)] {
        &self.shapes
    }

    fn workspace(&self, rows: usize, chunk: usize) -> Workspace<T> {
        let d = self.dim_head;
        let chunk = chunk.min(rows);
        let zeros = |cols: usize| Array2::zeros((rows, cols));
        Workspace {
            qkv: zeros(3 * d),
            cotangents: zeros(3 * d),
            attention: zeros(chunk),
            d_attention: Array2::zeros((chunk, chunk)),
            hidden: zeros(d),
            sigmoid: zeros(d),
            activated: zeros(d),
            d_output: zeros(d),
            d_hidden: zeros(d),
        }
    }

    fn read(
        &self,
        weights: &[T],
        inputs: ArrayView2<T>,
        chunk: usize,
        out: ArrayViewMut2<T>,
        work: &mut Workspace<T>,
    ) {
        self.forward(weights, inputs, chunk, work);
        let [.., wv2] = self.weights(weights);
        matmul(out, work.activated.slice(s![..inputs.nrows(), ..]), wv2);
    }

    fn surprise<'w>(
        &self,
        weights: &[T],
        keys: ArrayView2<'w, T>,
        values: ArrayView2<T>,
        chunk: usize,
        losses: &mut [T],
        work: &'w mut Workspace<T>,
    ) -> Vec<Factors<'w, T>> {
        let d = self.dim_head;
        let rows = keys.nrows();
        self.forward(weights, keys, chunk, work);
        let [.., wv2] = self.weights(weights);

        let mut d_output = work.d_output.slice_mut(s![..rows, ..]);
        matmul(d_output.view_mut(), work.activated.slice(s![..rows, ..]), wv2);
        d_output -= &values;
        for (loss, error) in losses.iter_mut().zip(d_output.rows()) {
            *loss = error.fold(T::zero(), |sum, &e| sum + e * e) / T::of(d as f64);
        }
        d_output *= T::of(2.0 / d as f64);

        let mut d_hidden = work.d_hidden.slice_mut(s![..rows, ..]);
        matmul(d_hidden.view_mut(), d_output.view(), wv2.t());
        azip!((dh in &mut d_hidden, &h in &work.hidden.slice(s![..rows, ..]), &s in &work.sigmoid.slice(s![..rows, ..]))
            *dh *= s * (T::one() + h * (T::one() - s)));

        let scale = T::of(1.0 / (d as f64).sqrt());
        for range in chunks(rows, chunk) {
            let length = range.len();
            let qkv = work.qkv.slice(s![range.clone(), ..]);
            let (q, k, v) = (qkv.slice(s![.., ..d]), qkv.slice(s![.., d..2 * d]), qkv.slice(s![.., 2 * d..]));
            let p = work.attention.slice(s![range.clone(), ..length]);
            let dh = d_hidden.slice(s![range.clone(), ..]);
            let mut da = work.d_attention.slice_mut(s![..length, ..length]);
            matmul(da.view_mut(), dh, v.t());
            for (r, (mut da, p)) in da.rows_mut().into_iter().zip(p.rows()).enumerate() {
                let mean = (0..=r).fold(T::zero(), |sum, j| sum + p[j] * da[j]);
                for j in 0..=r {
                    da[j] = p[j] * (da[j] - mean) * scale;
                }
                da.slice_mut(s![r + 1..]).fill(T::zero());
            }
            let mut cotangents = work.cotangents.slice_mut(s![range, ..]);
            matmul(cotangents.slice_mut(s![.., ..d]), da.view(), k);
            matmul(cotangents.slice_mut(s![.., d..2 * d]), da.t(), q);
            matmul(cotangents.slice_mut(s![.., 2 * d..]), p.t(), dh);
        }

        let work = &*work;
        let cotangent = |i: usize| work.cotangents.slice(s![..rows, i * d..(i + 1) * d]);
        vec![
            Factors { input: keys, cotangent: cotangent(0) },
            Factors { input: keys, cotangent: cotangent(1) },
            Factors { input: keys, cotangent: cotangent(2) },
            Factors {
                input: work.activated.slice(s![..rows, ..]),
                cotangent: work.d_output.slice(s![..rows, ..]),
            },
        ]
    }
}
