//! Matrix products: the gemm crate behind safe functions on `ndarray` views. Single-threaded on purpose: tasks are
//! what runs in parallel, and a product's rounding must not depend on the number of threads.

use gemm::Parallelism;
use ndarray::{ArrayView2, ArrayViewMut2};

use crate::real::Real;

/// `out ← a b`
pub fn matmul<T: Real>(out: ArrayViewMut2<T>, a: ArrayView2<T>, b: ArrayView2<T>) {
    product(out, T::one(), a, b);
}

/// `out ← factor · a b`
pub fn scaled_matmul<T: Real>(out: ArrayViewMut2<T>, factor: T, a: ArrayView2<T>, b: ArrayView2<T>) {
    product(out, factor, a, b);
}

/// `out ← factor · a b`, whatever was there.
fn product<T: Real>(mut out: ArrayViewMut2<T>, factor: T, a: ArrayView2<T>, b: ArrayView2<T>) {
    let ((m, k), n) = (a.dim(), b.ncols());
    assert_eq!((b.nrows(), out.dim()), (k, (m, n)), "shapes of a product");
    // SAFETY: the three views cover (m, n), (m, k) and (k, n) elements at the strides given; `out` is borrowed
    // mutably, so it overlaps neither `a` nor `b`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            out.strides()[1],
            out.strides()[0],
            false,
            a.as_ptr(),
            a.strides()[1],
            a.strides()[0],
            b.as_ptr(),
            b.strides()[1],
            b.strides()[0],
            T::zero(),
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
