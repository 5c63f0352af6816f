//! Products and functions of many rows, in parallel. What a task computes depends on shapes only.

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use crate::memory::operators::{Activation, Op, Work};
use crate::norm::rms_scale;
use crate::real::Real;
use crate::simd::vectorised;
use crate::small_matmul::{multiply, multiply_add};

/// Rows, or columns of a weight, of one task.
const TASK_ROWS: usize = 64;
/// Groups of columns of a weight that are enough for threads to share. If there are fewer, its sums over rows are divided into parts of
/// `PART_ROWS` rows or more, at most `MAX_PARTS`.
const ENOUGH_GROUPS: usize = 4;
const PART_ROWS: usize = 512;
const MAX_PARTS: usize = 8;

/// Applies `work` to groups of rows of `to` in parallel. It receives the first row of its group. Each group is a task of its own:
/// those of two streams are of different sizes.
fn by_groups<T: Real>(to: &mut Array2<T>, work: impl Fn(usize, ArrayViewMut2<'_, T>) + Sync) {
    let groups: Vec<_> = to.axis_chunks_iter_mut(Axis(0), TASK_ROWS).enumerate().collect();
    groups.into_par_iter().with_max_len(1).for_each(|(i, group)| work(i * TASK_ROWS, group));
}

/// Returns X W.
pub fn product<T: Real>(x: ArrayView2<T>, w: ArrayView2<T>) -> Array2<T> {
    let mut out = Array2::zeros((x.nrows(), w.ncols()));
    let w = w.as_standard_layout();
    by_groups(&mut out, |start, group| {
        let rows = start..start + group.nrows();
        multiply(group, x.slice(s![rows, ..]), w.view());
    });
    out
}

/// Adds X W to `to`.
pub fn add_product<T: Real>(to: &mut Array2<T>, x: ArrayView2<T>, w: ArrayView2<T>) {
    // Once, rather than for each group.
    let w = w.as_standard_layout();
    by_groups(to, |start, group| {
        let rows = start..start + group.nrows();
        multiply_add(group, true, T::one(), x.slice(s![rows, ..]), w.view());
    });
}

/// Returns Xᵀ Y, the gradient of a weight.
pub fn product_of_columns<T: Real>(x: ArrayView2<T>, y: ArrayView2<T>) -> Array2<T> {
    let shape = (x.ncols(), y.ncols());
    let parts = (x.nrows() / PART_ROWS).min(MAX_PARTS);
    if x.ncols().div_ceil(TASK_ROWS) < ENOUGH_GROUPS && parts > 1 {
        let rows = x.nrows().div_ceil(parts);
        let parts = x.axis_chunks_iter(Axis(0), rows).zip(y.axis_chunks_iter(Axis(0), rows));
        let product = |(x, y): (ArrayView2<T>, ArrayView2<T>)| {
            let mut out = Array2::zeros(shape);
            multiply(out.view_mut(), x.t(), y);
            out
        };
        let of_parts: Vec<_> = parts.collect::<Vec<_>>().into_par_iter().map(product).collect();
        return of_parts.into_iter().reduce(|sum, part| sum + &part).expect("some parts");
    }
    let mut out = Array2::zeros(shape);
    by_groups(&mut out, |start, group| {
        let columns = start..start + group.nrows();
        multiply(group, x.slice(s![.., columns]).t(), y);
    });
    out
}

/// Returns the mean of each chunk's rows.
pub fn means_of_chunks<T: Real>(rows: ArrayView2<T>, chunk: usize) -> Array2<T> {
    let mut means = Array2::zeros((rows.nrows() / chunk, rows.ncols()));
    by_groups(&mut means, |start, mut group| {
        vectorised(
            #[inline(always)]
            || {
                for (i, mut mean) in group.rows_mut().into_iter().enumerate() {
                    let mean = mean.as_slice_mut().expect("standard layout");
                    let first = (start + i) * chunk;
                    for r in first..first + chunk {
                        let row = rows.row(r);
                        let row = row.to_slice().expect("contiguous rows");
                        mean.iter_mut().zip(row).for_each(|(mean, &x)| *mean += x);
                    }
                    for mean in mean {
                        *mean /= T::from_f64(chunk as f64);
                    }
                }
            },
        );
    });
    means
}

/// Adds the cotangent of each mean of [`means_of_chunks`] to those of the chunk's rows.
pub fn means_of_chunks_vjp<T: Real>(d_rows: &mut Array2<T>, d_means: ArrayView2<T>, chunk: usize) {
    let share = T::from_f64(1.0 / chunk as f64);
    by_groups(d_rows, |start, mut group| {
        vectorised(
            #[inline(always)]
            || {
                for (r, mut row) in group.rows_mut().into_iter().enumerate() {
                    let row = row.as_slice_mut().expect("standard layout");
                    let d_mean = d_means.row((start + r) / chunk);
                    let d_mean = d_mean.to_slice().expect("contiguous rows");
                    row.iter_mut().zip(d_mean).for_each(|(d, &d_mean)| *d += share * d_mean);
                }
            },
        );
    });
}

/// Returns the activation of each number.
pub fn activated<T: Real>(activation: Activation, mut rows: Array2<T>) -> Array2<T> {
    by_groups(&mut rows, |_, mut group| activation.apply(group.as_slice_mut().expect("standard layout")));
    rows
}

/// Replaces the cotangent of activated rows by that of the rows themselves.
pub fn activated_vjp<T: Real>(activation: Option<Activation>, before: &Array2<T>, cotangent: &mut Array2<T>) {
    let Some(activation) = activation else { return };
    let width = before.ncols();
    by_groups(cotangent, |start, mut group| {
        let rows = group.nrows();
        let inputs = [before.slice(s![start..start + rows, ..])];
        let mut work = Work::new(Op::Activation(activation), rows, rows, &[width]);
        let operator = Op::Activation(activation);
        let mut scratch = Array2::zeros((rows, width));
        operator.operator().forward_for_vjp(rows, &inputs, scratch.view_mut(), &mut work);
        let of_output = group.to_owned();
        operator.operator().vjp(rows, &inputs, of_output.view(), &mut [Some(group.view_mut())], &mut work);
    });
}

/// Returns `x · rsqrt(mean(x²) + ε)` of each part of `weights.len()` columns, times the weights. Several parts have
/// weights one after another.
pub fn rms_normed<T: Real>(rows: ArrayView2<T>, weights: &[T], width: usize) -> Array2<T> {
    let mut normed = rows.to_owned();
    by_groups(&mut normed, |_, mut group| {
        vectorised(
            #[inline(always)]
            || {
                for mut row in group.rows_mut() {
                    let row = row.as_slice_mut().expect("standard layout");
                    for (part, weights) in row.chunks_exact_mut(width).zip(weights.chunks_exact(width)) {
                        let scale = rms_scale(part);
                        part.iter_mut().zip(weights).for_each(|(x, &w)| *x = *x * scale * w);
                    }
                }
            },
        );
    });
    normed
}

/// Replaces the cotangents of [`rms_normed`] rows by those of the rows themselves, and returns the gradient of the weights.
/// With r the factor of a row: dx = r (w ∘ dy) − x r³ mean(x ∘ w ∘ dy), dw = Σ r x ∘ dy.
pub fn rms_normed_vjp<T: Real>(
    before: ArrayView2<T>,
    weights: &[T],
    width: usize,
    cotangent: &mut Array2<T>,
) -> Array1<T> {
    let groups: Vec<_> = cotangent.axis_chunks_iter_mut(Axis(0), TASK_ROWS).enumerate().collect();
    let of_group = |(i, mut group): (usize, ArrayViewMut2<T>)| {
        let mut d_weights = vec![T::zero(); weights.len()];
        vectorised(
            #[inline(always)]
            || {
                for (r, mut d_row) in group.rows_mut().into_iter().enumerate() {
                    let row = before.row(i * TASK_ROWS + r);
                    let row = row.to_slice().expect("contiguous rows");
                    let parts = row.chunks_exact(width).zip(weights.chunks_exact(width));
                    let d_row = d_row.as_slice_mut().expect("standard layout");
                    let places = d_row.chunks_exact_mut(width).zip(d_weights.chunks_exact_mut(width));
                    for ((x, w), (d, d_w)) in parts.zip(places) {
                        let scale = rms_scale(x);
                        for (((d_w, d), &x), &w) in d_w.iter_mut().zip(&mut *d).zip(x).zip(w) {
                            *d_w += scale * x * *d;
                            *d *= w;
                        }
                        let along = T::dot(x, d) * scale * scale / T::from_f64(width as f64);
                        for (d, &x) in d.iter_mut().zip(x) {
                            *d = scale * (*d - x * along);
                        }
                    }
                }
            },
        );
        d_weights
    };
    let of_groups: Vec<_> = groups.into_par_iter().map(of_group).collect();
    let mut sum = Array1::zeros(weights.len());
    for part in of_groups {
        sum += &Array1::from(part);
    }
    sum
}
