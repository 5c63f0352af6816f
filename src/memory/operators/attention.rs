//! Causal attention within a chunk. For rows [q k v] (c, 3d) of one chunk
//!
//! ```text
//! plain:   H = softmax(q kᵀ / √d, causal) v        row r attends to rows 0 ..= r of its own chunk
//! cosine:  H = softmax(s · q̂ k̂ᵀ, causal) v         x̂ = x / max(‖x‖, 1e-12)
//! ```
//!
//! `docs/concepts/mathematics.md` derives the gradient, with the names used here. Operations inside the softmax run chunk
//! by chunk. The scores are plain in titans-pytorch 0.0.17 and cosines in 0.5.5.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};

use super::{Operator, Rows, Second, SecondResults, Work, each_row};
use crate::packed::{PanelRow, multiply_lower, multiply_lower_transposed, multiply_transposed_lower};
use crate::real::Real;
use crate::simd::vectorised;
use crate::small_matmul::{multiply, multiply_add};

/// Scores of a query and a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scores {
    /// Their inner product divided by √d.
    Plain,
    /// Their cosine times a scale.
    Cosine(f64),
}

/// Causal attention within a chunk, of rows [q k v].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Form of the scores.
    pub scores: Scores,
}

/// Smallest norm that a row is divided by, as in PyTorch's `F.normalize`.
const MIN_NORM: f64 = 1e-12;

impl Attention {
    pub(super) fn width(self, input: usize) -> usize {
        let _ = self;
        input / 3
    }

    /// Returns the factor of the scores for heads of width d.
    fn scale(self, d: usize) -> f64 {
        match self.scores {
            Scores::Plain => 1.0 / (d as f64).sqrt(),
            Scores::Cosine(scale) => scale,
        }
    }
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
    scale: T,
    mut hidden: ArrayViewMut2<T>,
) {
    let rows = qkv.nrows();
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
    scale: T,
    d_qkv: ArrayViewMut2<T>,
) {
    let (rows, d) = d_hidden.dim();
    let [q, k, v] = split(qkv);
    let (dq, rest) = d_qkv.split_at(Axis(1), d);
    let (dk, dv) = rest.split_at(Axis(1), d);
    for tile in tiles(rows) {
        let out = da.slice_mut(s![tile.clone(), ..tile.end]);
        multiply(out, d_hidden.slice(s![tile.clone(), ..]), v.slice(s![..tile.end, ..]).reversed_axes());
    }
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

/// Writes [q̂ k̂ v], and the norm that q and k of each row were divided by.
fn normalise<T: Real>(qkv: ArrayView2<T>, mut unit: ArrayViewMut2<T>, mut norms: ArrayViewMut2<T>) {
    let d = qkv.ncols() / 3;
    unit.assign(&qkv);
    vectorised(
        #[inline(always)]
        || {
            for (mut row, mut norms) in unit.rows_mut().into_iter().zip(norms.rows_mut()) {
                let row = row.as_slice_mut().expect("contiguous rows");
                for (part, norm) in row[..2 * d].chunks_exact_mut(d).zip(&mut norms) {
                    *norm = T::dot(part, part).sqrt().max(T::from_f64(MIN_NORM));
                    let scale = norm.recip();
                    for x in part {
                        *x *= scale;
                    }
                }
            }
        },
    );
}

/// Replaces the cotangents of q̂ and k̂ by those of q and k: `(d − x̂ ⟨x̂, d⟩) / ‖x‖`.
fn normalise_backward<T: Real>(unit: ArrayView2<T>, norms: ArrayView2<T>, mut d_qkv: ArrayViewMut2<T>) {
    let d = d_qkv.ncols() / 3;
    vectorised(
        #[inline(always)]
        || {
            for ((mut row, unit), norms) in d_qkv.rows_mut().into_iter().zip(unit.rows()).zip(norms.rows()) {
                let row = row.as_slice_mut().expect("contiguous rows");
                let unit = unit.to_slice().expect("contiguous rows");
                let parts = row[..2 * d].chunks_exact_mut(d).zip(unit[..2 * d].chunks_exact(d)).zip(norms);
                for ((part, unit), &norm) in parts {
                    // Below the smallest norm the divisor is a constant.
                    let along = if norm.to_f64() > MIN_NORM { T::dot(part, unit) } else { T::zero() };
                    let scale = norm.recip();
                    for (x, &unit) in part.iter_mut().zip(unit) {
                        *x = (*x - unit * along) * scale;
                    }
                }
            }
        },
    );
}

impl<T: Real> Operator<T> for Attention {
    /// P, dA of one chunk and, for cosines, [q̂ k̂ v] and two norms a row.
    fn kept(&self, rows: usize, chunk: usize, inputs: &[usize]) -> Vec<(usize, usize)> {
        // P: row r of a chunk fills the columns 0 ..= r, with zeros after them.
        let mut shapes = vec![(rows, chunk), (chunk, chunk)];
        if matches!(self.scores, Scores::Cosine(_)) {
            shapes.extend([(rows, inputs[0]), (rows, 2)]);
        }
        shapes
    }

    fn forward(&self, chunk: usize, inputs: &[ArrayView2<T>], output: ArrayViewMut2<T>, work: &mut Work<T>) {
        let rows = output.nrows();
        let scale = T::from_f64(self.scale(output.ncols()));
        let Work { kept, panel } = work;
        let (square, rest) = kept.split_at_mut(2);
        if let [unit, norms] = rest {
            normalise(inputs[0], unit.slice_mut(s![..rows, ..]), norms.slice_mut(s![..rows, ..]));
            attend(unit.slice(s![..rows, ..]), chunk, &mut square[0], panel, scale, output);
        } else {
            attend(inputs[0], chunk, &mut square[0], panel, scale, output);
        }
    }

    fn vjp(
        &self,
        chunk: usize,
        inputs: &[ArrayView2<T>],
        cotangent: ArrayView2<T>,
        d_inputs: &mut [Option<ArrayViewMut2<T>>],
        work: &mut Work<T>,
    ) {
        let Some(d_qkv) = &mut d_inputs[0] else { return };
        let rows = cotangent.nrows();
        let scale = T::from_f64(self.scale(cotangent.ncols()));
        let Work { kept, panel } = work;
        let (square, rest) = kept.split_at_mut(2);
        let [p, d_attention] = square else { unreachable!("two buffers") };
        let qkv = rest.first().map_or(inputs[0], |unit| unit.slice(s![..rows, ..]));
        let chunks = qkv.axis_chunks_iter(Axis(0), chunk).zip(p.axis_chunks_iter(Axis(0), chunk));
        let cotangents =
            cotangent.axis_chunks_iter(Axis(0), chunk).zip(d_qkv.axis_chunks_iter_mut(Axis(0), chunk));
        for ((qkv, p), (d_hidden, d_qkv)) in chunks.zip(cotangents) {
            attend_backward(qkv, p, d_hidden, d_attention, panel, scale, d_qkv);
        }
        if let [unit, norms] = rest {
            normalise_backward(unit.slice(s![..rows, ..]), norms.slice(s![..rows, ..]), d_qkv.view_mut());
        }
    }

    fn vjp_of_vjp(&self, given: &Second<'_, T>, results: SecondResults<'_, T>, work: &mut Work<T>) {
        let SecondResults { d_cotangent, d_inputs } = results;
        let tangent = given.tangents[0].expect("the only input's");
        let (rows, d) = given.cotangent.dim();
        let scale = T::from_f64(self.scale(d));
        let (p, rest) = (&work.kept[0], &work.kept[2..]);
        let mut unwanted = None;
        let mut d_qkv = match &mut d_inputs[0] {
            Some(d_input) => d_input.view_mut(),
            None => unwanted.insert(Array2::zeros(tangent.dim())).view_mut(),
        };
        if let [unit, norms] = rest {
            // The tangent passes through the normalisation, the cotangents back through it.
            let [unit, norms] = [unit, norms].map(|kept| kept.slice(s![..rows, ..]));
            let mut along = tangent.to_owned();
            normalise_backward(unit, norms, along.view_mut());
            let mut d_unit = Array2::zeros(tangent.dim());
            let of_chunks =
                SecondAttention { qkv: unit, p, cotangent: given.cotangent, tangent: along.view(), scale };
            of_chunks.run(given.chunk, d_cotangent, d_qkv.view_mut(), Some(d_unit.view_mut()));
            normalise_backward(unit, norms, d_qkv.view_mut());
            normalise_second(unit, norms, (tangent, along.view()), d_unit.view(), d_qkv);
        } else {
            let qkv = given.inputs[0];
            let of_chunks = SecondAttention { qkv, p, cotangent: given.cotangent, tangent, scale };
            of_chunks.run(given.chunk, d_cotangent, d_qkv, None);
        }
    }
}

/// The second pass of attention over chunks. With the tangents [t u w] of [q k v], C the cotangent of H = P v, D = C vᵀ,
/// G = scale · (t kᵀ + q uᵀ) on and below the diagonal, and row sums δ of P ∘ D and γ of P ∘ G:
///
/// ```text
/// E = P ∘ (D − δ)                     so that dA = scale · E: the cotangent of scores
/// F = P ∘ (G − γ)                     the derivative of P along the tangent
/// ∂φ/∂C = F v + P w
/// ∂φ/∂v = Fᵀ C
/// Y = D ∘ G − γ D − δ G + C wᵀ        ∂φ/∂P
/// Z = P ∘ (Y − rowsum(P ∘ Y))         ∂φ/∂scores through P
/// ∂φ/∂q = scale · (Z k + E u),  ∂φ/∂k = scale · (Zᵀ q + Eᵀ t)
/// ```
struct SecondAttention<'a, T> {
    qkv: ArrayView2<'a, T>,
    p: &'a Array2<T>,
    cotangent: ArrayView2<'a, T>,
    tangent: ArrayView2<'a, T>,
    scale: T,
}

impl<T: Real> SecondAttention<'_, T> {
    /// Computes all chunks. `d_unit`, if given, receives the cotangents [scale · E k, scale · Eᵀ q, ·] of q and k.
    fn run(
        &self,
        chunk: usize,
        mut d_cotangent: ArrayViewMut2<T>,
        mut d_qkv: ArrayViewMut2<T>,
        mut d_unit: Option<ArrayViewMut2<T>>,
    ) {
        let Self { p, scale, .. } = *self;
        let (total, d) = self.cotangent.dim();
        let zeros = || Array2::zeros((chunk, chunk));
        let (mut e, mut f, mut z) = (zeros(), zeros(), zeros());
        for start in (0..total).step_by(chunk) {
            let rows = start..total.min(start + chunk);
            let c = rows.len();
            let [q, k, v] = split(self.qkv.slice(s![rows.clone(), ..]));
            let [t, u, w] = split(self.tangent.slice(s![rows.clone(), ..]));
            let p = p.slice(s![rows.clone(), ..c]);
            let cotangent = self.cotangent.slice(s![rows.clone(), ..]);
            let [mut e, mut f, mut z] = [&mut e, &mut f, &mut z].map(|square| square.slice_mut(s![..c, ..c]));
            multiply(e.view_mut(), cotangent, v.reversed_axes());
            multiply_add(f.view_mut(), false, scale, t, k.reversed_axes());
            multiply_add(f.view_mut(), true, scale, q, u.reversed_axes());
            multiply(z.view_mut(), cotangent, w.reversed_axes());
            second_rows(p, e.view_mut(), f.view_mut(), z.view_mut());
            let [e, f, z] = [e.view(), f.view(), z.view()];
            let mut d_c = d_cotangent.slice_mut(s![rows.clone(), ..]);
            multiply(d_c.view_mut(), f, v);
            multiply_add(d_c, true, T::one(), p, w);
            let (mut dq, dkv) = d_qkv.slice_mut(s![rows.clone(), ..]).split_at(Axis(1), d);
            let (mut dk, dv) = dkv.split_at(Axis(1), d);
            multiply_add(dq.view_mut(), false, scale, z, k);
            multiply_add(dq, true, scale, e, u);
            multiply_add(dk.view_mut(), false, scale, z.reversed_axes(), q);
            multiply_add(dk, true, scale, e.reversed_axes(), t);
            multiply(dv, f.reversed_axes(), cotangent);
            if let Some(d_unit) = &mut d_unit {
                let (dq, dkv) = d_unit.slice_mut(s![rows, ..]).split_at(Axis(1), d);
                multiply_add(dq, false, scale, e, k);
                multiply_add(dkv.split_at(Axis(1), d).0, false, scale, e.reversed_axes(), q);
            }
        }
    }
}

/// Replaces D, G and C wᵀ of a chunk by E, F and Z, which are zero after the diagonal.
fn second_rows<T: Real>(
    p: ArrayView2<T>,
    mut e: ArrayViewMut2<T>,
    mut f: ArrayViewMut2<T>,
    mut z: ArrayViewMut2<T>,
) {
    vectorised(
        #[inline(always)]
        || {
            let rows = e.rows_mut().into_iter().zip(f.rows_mut()).zip(z.rows_mut()).zip(p.rows());
            for (r, (((mut e, mut f), mut z), p)) in rows.enumerate() {
                let p = &p.to_slice().expect("contiguous rows")[..=r];
                let [e, f, z] = [&mut e, &mut f, &mut z].map(|row| {
                    let (seen, future) = row.as_slice_mut().expect("contiguous rows").split_at_mut(r + 1);
                    future.fill(T::zero());
                    seen
                });
                let (delta, gamma) = (T::dot(p, e), T::dot(p, f));
                for (j, &p) in p.iter().enumerate() {
                    z[j] += e[j] * f[j] - gamma * e[j] - delta * f[j];
                    e[j] = p * (e[j] - delta);
                    f[j] = p * (f[j] - gamma);
                }
                let mean = T::dot(p, z);
                for (z, &p) in z.iter_mut().zip(p) {
                    *z = p * (*z - mean);
                }
            }
        },
    );
}

/// Adds the derivative of ψ(x) = ⟨t, J d⟩ for q and k of each row, where J = (I − x̂ x̂ᵀ) / ‖x‖ is the Jacobian of the
/// normalisation, d the cotangent of x̂, and `along` is J t: `−(x̂ ψ + ⟨x̂, d⟩ J t + ⟨x̂, t⟩ J d) / ‖x‖`.
fn normalise_second<T: Real>(
    unit: ArrayView2<T>,
    norms: ArrayView2<T>,
    (tangent, along): (ArrayView2<T>, ArrayView2<T>),
    d_unit: ArrayView2<T>,
    mut d_qkv: ArrayViewMut2<T>,
) {
    let d = d_qkv.ncols() / 3;
    for (r, mut row) in d_qkv.rows_mut().into_iter().enumerate() {
        for of in 0..2 {
            let norm = norms[[r, of]];
            if norm.to_f64() <= MIN_NORM {
                continue;
            }
            let part = |matrix: &ArrayView2<'_, T>| matrix.slice(s![r, of * d..(of + 1) * d]).to_vec();
            let [x, t, jt, d_x] = [&unit, &tangent, &along, &d_unit].map(part);
            let [xd, xt, td] = [(&x, &d_x), (&x, &t), (&jt, &d_x)].map(|(a, b)| T::dot(a, b));
            for (e, out) in row.slice_mut(s![of * d..(of + 1) * d]).iter_mut().enumerate() {
                let jd = (d_x[e] - x[e] * xd) / norm;
                *out -= (x[e] * td + xd * jt[e] + xt * jd) / norm;
            }
        }
    }
}

/// Rows of one chunk as plain numbers: q, k, v after normalisation, and P, in which row r has r + 1 entries.
struct Naive {
    q: Rows,
    k: Rows,
    v: Rows,
    attention: Rows,
}

impl Attention {
    fn naive_parts(self, rows: &Rows) -> Naive {
        let part = |of: usize| -> Rows {
            let part = |row: &Vec<f64>| row[of * row.len() / 3..(of + 1) * row.len() / 3].to_vec();
            rows.iter().map(part).collect()
        };
        let [mut q, mut k, v] = [0, 1, 2].map(part);
        let d = v.first().map_or(0, Vec::len);
        if matches!(self.scores, Scores::Cosine(_)) {
            for row in q.iter_mut().chain(&mut k) {
                let norm = naive_norm(row);
                for x in row {
                    *x /= norm;
                }
            }
        }
        let row = |r: usize| {
            let scores: Vec<f64> = (0..=r).map(|j| self.scale(d) * dot(&q[r], &k[j])).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exps: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let sum: f64 = exps.iter().sum();
            exps.iter().map(|e| e / sum).collect()
        };
        let attention = (0..rows.len()).map(row).collect();
        Naive { q, k, v, attention }
    }

    pub(super) fn naive(self, rows: &Rows) -> Rows {
        let Naive { v, attention, .. } = self.naive_parts(rows);
        let width = v.first().map_or(0, Vec::len);
        let row = |p: &Vec<f64>| (0..width).map(|e| p.iter().zip(&v).map(|(p, v)| p * v[e]).sum()).collect();
        attention.iter().map(row).collect()
    }

    pub(super) fn naive_vjp(self, rows: &Rows, cotangent: &Rows) -> Rows {
        let Naive { q, k, v, attention } = self.naive_parts(rows);
        let (c, d) = (rows.len(), cotangent.first().map_or(0, Vec::len));
        let zeros = || vec![vec![0.0; d]; c];
        let (mut dq, mut dk, mut dv) = (zeros(), zeros(), zeros());
        for r in 0..c {
            let (p, dh) = (&attention[r], &cotangent[r]);
            let dp: Vec<f64> = (0..=r).map(|j| dot(dh, &v[j])).collect();
            let mean = dot(p, &dp);
            for j in 0..=r {
                let da = p[j] * (dp[j] - mean) * self.scale(d);
                for e in 0..d {
                    dv[j][e] += p[j] * dh[e];
                    dq[r][e] += da * k[j][e];
                    dk[j][e] += da * q[r][e];
                }
            }
        }
        if matches!(self.scores, Scores::Cosine(_)) {
            for (of, (d_unit, unit)) in [(&mut dq, &q), (&mut dk, &k)].into_iter().enumerate() {
                for (r, (d_unit, unit)) in d_unit.iter_mut().zip(unit).enumerate() {
                    let row = &rows[r][of * d..(of + 1) * d];
                    let (norm, along) = (naive_norm(row), dot(d_unit, unit));
                    for (x, unit) in d_unit.iter_mut().zip(unit) {
                        *x = (*x - unit * along) / norm;
                    }
                }
            }
        }
        let joined = each_row(&dq, &dk, |q, k| [q, k].concat());
        each_row(&joined, &dv, |qk, v| [qk, v].concat())
    }
}

fn naive_norm(row: &[f64]) -> f64 {
    dot(row, row).sqrt().max(MIN_NORM)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
