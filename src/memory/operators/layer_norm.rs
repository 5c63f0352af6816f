//! LayerNorm without a gain: `y = (x − mean) · rsqrt(var + 1e-5)` over each row, with the biased variance (PyTorch's
//! `nn.LayerNorm` without affine parameters).

use ndarray::{ArrayView2, ArrayViewMut2, s};

use super::{Operator, Rows, Second, SecondResults, Work, each_row};
use crate::real::Real;
use crate::simd::vectorised;

/// ε of PyTorch's LayerNorm.
const EPS: f64 = 1e-5;

/// `LN(x)`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerNorm;

/// Writes the normed row and returns rsqrt(var + ε).
#[expect(clippy::inline_always, reason = "to be compiled with the caller's instruction set")]
#[inline(always)]
fn norm_row<T: Real>(x: &[T], y: &mut [T]) -> T {
    let count = T::from_f64(x.len() as f64);
    let mean = T::total(x) / count;
    for (y, &x) in y.iter_mut().zip(x) {
        *y = x - mean;
    }
    let variance = T::dot(y, y) / count;
    let scale = T::from_f64((variance.to_f64() + EPS).sqrt().recip());
    for y in y {
        *y *= scale;
    }
    scale
}

impl<T: Real> Operator<T> for LayerNorm {
    /// The normed rows, and the factor of each.
    fn kept(&self, rows: usize, _: usize, inputs: &[usize]) -> Vec<(usize, usize)> {
        vec![(rows, inputs[0]), (rows, 1)]
    }

    fn forward(&self, _: usize, inputs: &[ArrayView2<T>], mut output: ArrayViewMut2<T>, _: &mut Work<T>) {
        vectorised(
            #[inline(always)]
            || {
                for (x, mut y) in inputs[0].rows().into_iter().zip(output.rows_mut()) {
                    let x = x.to_slice().expect("contiguous rows");
                    norm_row(x, y.as_slice_mut().expect("contiguous rows"));
                }
            },
        );
    }

    fn forward_for_vjp(
        &self,
        _: usize,
        inputs: &[ArrayView2<T>],
        mut output: ArrayViewMut2<T>,
        work: &mut Work<T>,
    ) {
        let rows = output.nrows();
        let [normed, scales] = &mut work.kept[..] else { unreachable!("two buffers") };
        vectorised(
            #[inline(always)]
            || {
                for ((x, mut y), scale) in
                    inputs[0].rows().into_iter().zip(output.rows_mut()).zip(&mut *scales)
                {
                    let x = x.to_slice().expect("contiguous rows");
                    *scale = norm_row(x, y.as_slice_mut().expect("contiguous rows"));
                }
            },
        );
        normed.slice_mut(s![..rows, ..]).assign(&output);
    }

    /// dx = scale · (dy − mean(dy) − y · mean(dy ∘ y))
    fn vjp(
        &self,
        _: usize,
        _: &[ArrayView2<T>],
        cotangent: ArrayView2<T>,
        d_inputs: &mut [Option<ArrayViewMut2<T>>],
        work: &mut Work<T>,
    ) {
        let Some(dx) = &mut d_inputs[0] else { return };
        let [normed, scales] = &work.kept[..] else { unreachable!("two buffers") };
        let count = T::from_f64(cotangent.ncols() as f64);
        vectorised(
            #[inline(always)]
            || {
                for (((mut dx, dy), y), &scale) in
                    dx.rows_mut().into_iter().zip(cotangent.rows()).zip(normed.rows()).zip(scales)
                {
                    let dx = dx.as_slice_mut().expect("contiguous rows");
                    let [dy, y] = [dy, y].map(|row| row.to_slice().expect("contiguous rows"));
                    let (mean, along) = (T::total(dy) / count, T::dot(dy, y) / count);
                    for ((dx, &dy), &y) in dx.iter_mut().zip(dy).zip(y) {
                        *dx = scale * (dy - mean - y * along);
                    }
                }
            },
        );
    }

    /// The Jacobian J = scale · (I − 1 1ᵀ/n − y yᵀ/n) is symmetric, and is that of y too. With ⟨a b⟩ = mean(a ∘ b):
    ///
    /// ```text
    /// ∂φ/∂c = J t
    /// ∂φ/∂x = −scale² y (⟨t c⟩ − ⟨t⟩⟨c⟩ − ⟨t y⟩⟨c y⟩) − scale (⟨c y⟩ J t + ⟨t y⟩ J c)
    /// ```
    fn vjp_of_vjp(&self, given: &Second<'_, T>, results: SecondResults<'_, T>, work: &mut Work<T>) {
        let SecondResults { mut d_cotangent, d_inputs } = results;
        let [normed, scales] = &work.kept[..] else { unreachable!("two buffers") };
        let tangent = given.tangents[0].expect("the only input's");
        let count = T::from_f64(tangent.ncols() as f64);
        let mut d_input = d_inputs[0].as_mut();
        vectorised(
            #[inline(always)]
            || {
                for (r, mut along_tangent) in d_cotangent.rows_mut().into_iter().enumerate() {
                    let along_tangent = along_tangent.as_slice_mut().expect("contiguous rows");
                    let [t, c, y] = [tangent.row(r), given.cotangent.row(r), normed.row(r)]
                        .map(|row| row.to_slice().expect("contiguous rows"));
                    let scale = scales[[r, 0]];
                    let [mean_t, mean_c] = [t, c].map(|row| T::total(row) / count);
                    let [ty, cy] = [t, c].map(|row| T::dot(row, y) / count);
                    for i in 0..t.len() {
                        along_tangent[i] = scale * (t[i] - mean_t - y[i] * ty);
                    }
                    if let Some(d_input) = &mut d_input {
                        let mut dx = d_input.row_mut(r);
                        let dx = dx.as_slice_mut().expect("contiguous rows");
                        let bracket = scale * scale * (T::dot(t, c) / count - mean_t * mean_c - ty * cy);
                        for i in 0..t.len() {
                            let along_cotangent = scale * (c[i] - mean_c - y[i] * cy);
                            dx[i] = -y[i] * bracket - scale * (cy * along_tangent[i] + ty * along_cotangent);
                        }
                    }
                }
            },
        );
    }
}

fn moments(x: &[f64]) -> (f64, f64) {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / x.len() as f64;
    (mean, 1.0 / (variance + EPS).sqrt())
}

pub(super) fn naive(rows: &Rows) -> Rows {
    let norm = |x: &Vec<f64>| {
        let (mean, scale) = moments(x);
        x.iter().map(|x| (x - mean) * scale).collect()
    };
    rows.iter().map(norm).collect()
}

pub(super) fn naive_vjp(rows: &Rows, cotangent: &Rows) -> Rows {
    each_row(rows, cotangent, |x, d| {
        let (mean, scale) = moments(x);
        let width = x.len() as f64;
        let mean_d = d.iter().sum::<f64>() / width;
        let along = d.iter().zip(x).map(|(d, x)| d * (x - mean) * scale).sum::<f64>() / width;
        d.iter().zip(x).map(|(d, x)| scale * (d - mean_d - (x - mean) * scale * along)).collect()
    })
}
