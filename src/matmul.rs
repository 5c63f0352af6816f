//! Matrix products: the gemm crate behind safe functions on `ndarray` views. They are single-threaded on
//! purpose: tasks run in parallel instead, and a product's rounding must not depend on the number of threads.

use gemm::Parallelism;
use ndarray::{ArrayView2, ArrayViewMut2};

use crate::real::Real;

/// Computes `out ← a b`, ignoring the old contents of `out`.
pub fn matmul<T: Real>(mut out: ArrayViewMut2<T>, a: ArrayView2<T>, b: ArrayView2<T>) {
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
            T::one(),
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
