//! Matrix products: the kernels of the gemm crate behind safe functions on `ndarray` views. They are single-threaded
//! on purpose: tasks run in parallel instead, and a product's rounding must not depend on the number of threads.
//!
//! The crate `gemm` itself, which selects the kernels for a type, is not used: it also compiles those for complex
//! numbers, which takes nearly twice as long as the two that nmem needs.

use std::mem::swap;

use gemm_common::Parallelism;
use ndarray::{ArrayView2, ArrayViewMut2, Axis};

use crate::real::Real;

/// A kernel: m, n, k; out with its column and row strides and whether it is read; a and b with their strides; the
/// factors of out and of a b; whether each of the three is conjugated; parallelism.
pub type Kernel<T> = unsafe fn(
    usize,
    usize,
    usize,
    *mut T,
    isize,
    isize,
    bool,
    *const T,
    isize,
    isize,
    *const T,
    isize,
    isize,
    T,
    T,
    bool,
    bool,
    bool,
    Parallelism,
);

/// An element type that the gemm crates multiply.
pub trait Multiply: Sized {
    /// Returns the kernel for this machine's instruction set.
    fn kernel() -> Kernel<Self>;
}

impl Multiply for f32 {
    fn kernel() -> Kernel<Self> {
        gemm_f32::gemm::f32::get_gemm_fn()
    }
}

impl Multiply for f64 {
    fn kernel() -> Kernel<Self> {
        gemm_f64::gemm::f64::get_gemm_fn()
    }
}

/// Computes `out ← a b`, ignoring the old contents of `out`.
pub fn matmul<'a, T: Real>(out: ArrayViewMut2<T>, a: ArrayView2<'a, T>, b: ArrayView2<'a, T>) {
    multiply_add(out, T::zero(), T::one(), a, b);
}

/// Computes `out ← keep · out + factor · a b`. With a `keep` of zero the old contents of `out` are ignored.
pub fn multiply_add<'a, T: Real>(
    mut out: ArrayViewMut2<T>,
    keep: T,
    factor: T,
    mut a: ArrayView2<'a, T>,
    mut b: ArrayView2<'a, T>,
) {
    assert_eq!((b.nrows(), out.dim()), (a.ncols(), (a.nrows(), b.ncols())), "shapes of a product");
    // The kernels prefer columns of `out` to be contiguous: outᵀ = bᵀ aᵀ.
    if out.strides()[1].abs() < out.strides()[0].abs() {
        out = out.reversed_axes();
        swap(&mut a, &mut b);
        (a, b) = (a.reversed_axes(), b.reversed_axes());
    }
    // They take no negative strides of `out`, and none along the columns of `a`.
    if out.strides()[0] < 0 {
        out.invert_axis(Axis(0));
        a.invert_axis(Axis(0));
    }
    if out.strides()[1] < 0 {
        out.invert_axis(Axis(1));
        b.invert_axis(Axis(1));
    }
    if a.strides()[1] < 0 {
        a.invert_axis(Axis(1));
        b.invert_axis(Axis(0));
    }
    let ((m, k), n) = (a.dim(), b.ncols());
    // SAFETY: the three views cover (m, n), (m, k) and (k, n) elements at the strides given; `out` is borrowed
    // mutably, so it overlaps neither `a` nor `b`.
    unsafe {
        T::kernel()(
            m,
            n,
            k,
            out.as_mut_ptr(),
            out.strides()[1],
            out.strides()[0],
            keep != T::zero(),
            a.as_ptr(),
            a.strides()[1],
            a.strides()[0],
            b.as_ptr(),
            b.strides()[1],
            b.strides()[0],
            keep,
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, Axis, ShapeBuilder};

    use super::matmul;
    use crate::real::Real;

    /// Checks products of matrices in rows, in columns and with inverted axes against sums.
    fn agrees<T: Real>(tolerance: f64) {
        for (m, k, n) in [(0, 3, 2), (3, 0, 2), (1, 1, 1), (5, 7, 3), (17, 16, 33)] {
            for layout in 0..64 {
                let matrix = |rows: usize, columns: usize, layout: usize| {
                    let mut matrix = Array2::zeros((rows, columns).set_f(layout & 1 == 1));
                    let values = (0..).map(|i| T::from_f64((f64::from(i) * 0.618_034).fract() - 0.5));
                    matrix.iter_mut().zip(values).for_each(|(x, value)| *x = value);
                    if layout & 2 == 2 {
                        matrix.invert_axis(Axis(0));
                        matrix.invert_axis(Axis(1));
                    }
                    matrix
                };
                let (a, b) = (matrix(m, k, layout), matrix(k, n, layout >> 2));
                let mut out = matrix(m, n, layout >> 4);
                out.fill(T::nan());
                matmul(out.view_mut(), a.view(), b.view());
                for ((i, j), &x) in out.indexed_iter() {
                    let pairs = a.row(i).into_iter().zip(b.column(j));
                    let expected: f64 = pairs.map(|(&x, &y)| x.into() * y.into()).sum();
                    let error = (x.into() - expected).abs();
                    assert!(error <= tolerance, "{m} × {k} × {n}, layout {layout}: {x} for {expected}");
                }
            }
        }
    }

    #[test]
    fn products_in_any_layout_equal_sums() {
        // 16 products of at most ¼ each, rounded.
        agrees::<f32>(4.0 * f64::from(f32::EPSILON));
        agrees::<f64>(4.0 * f64::EPSILON);
    }
}
