//! Vectors of either element type on any instruction set: the few operations that our own kernels need. They
//! are pulp's, which are named by type, and loops left to the compiler. Everything here is inlined into the
//! caller's instruction set.

use pulp::{Arch, Simd, WithSimd};

/// An element type with vectors.
#[expect(missing_docs, reason = "the operations are what their names say, lane by lane")]
pub trait Lanes: Copy + Send + Sync + 'static {
    /// A full vector register.
    type Vector<S: Simd>: Copy;
    const ZERO: Self;

    fn splat<S: Simd>(simd: S, value: Self) -> Self::Vector<S>;
    fn add_vectors<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    fn mul_vectors<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    /// Returns a · b + c, fused if the instruction set supports it.
    fn mul_add_vectors<S: Simd>(
        simd: S,
        a: Self::Vector<S>,
        b: Self::Vector<S>,
        c: Self::Vector<S>,
    ) -> Self::Vector<S>;
    /// Returns the sum over the lanes.
    fn sum_lanes<S: Simd>(simd: S, a: Self::Vector<S>) -> f64;
    /// Loads fewer values than a vector holds, with zeros after them.
    fn load_some<S: Simd>(simd: S, values: &[Self]) -> Self::Vector<S>;
    fn store_some<S: Simd>(simd: S, values: &mut [Self], vector: Self::Vector<S>);
    /// Returns the whole vectors of a slice.
    fn vectors<S: Simd>(values: &[Self]) -> &[Self::Vector<S>];
    fn vectors_mut<S: Simd>(values: &mut [Self]) -> &mut [Self::Vector<S>];
}

macro_rules! lanes {
    ($element:ty, $vector:ident: $splat:ident $add:ident $mul:ident $mul_add:ident $sum:ident $load:ident $store:ident $as:ident $as_mut:ident) => {
        impl Lanes for $element {
            type Vector<S: Simd> = S::$vector;
            const ZERO: Self = 0.0;

            #[inline(always)]
            fn splat<S: Simd>(simd: S, value: Self) -> S::$vector {
                simd.$splat(value)
            }
            #[inline(always)]
            fn add_vectors<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$add(a, b)
            }
            #[inline(always)]
            fn mul_vectors<S: Simd>(simd: S, a: S::$vector, b: S::$vector) -> S::$vector {
                simd.$mul(a, b)
            }
            #[inline(always)]
            fn mul_add_vectors<S: Simd>(simd: S, a: S::$vector, b: S::$vector, c: S::$vector) -> S::$vector {
                simd.$mul_add(a, b, c)
            }
            #[inline(always)]
            fn sum_lanes<S: Simd>(simd: S, a: S::$vector) -> f64 {
                f64::from(simd.$sum(a))
            }
            #[inline(always)]
            fn load_some<S: Simd>(simd: S, values: &[Self]) -> S::$vector {
                simd.$load(values)
            }
            #[inline(always)]
            fn store_some<S: Simd>(simd: S, values: &mut [Self], vector: S::$vector) {
                simd.$store(values, vector);
            }
            #[inline(always)]
            fn vectors<S: Simd>(values: &[Self]) -> &[S::$vector] {
                S::$as(values).0
            }
            #[inline(always)]
            fn vectors_mut<S: Simd>(values: &mut [Self]) -> &mut [S::$vector] {
                S::$as_mut(values).0
            }
        }
    };
}

lanes!(f32, f32s: splat_f32s add_f32s mul_f32s mul_add_e_f32s reduce_sum_f32s partial_load_f32s partial_store_f32s as_simd_f32s as_mut_simd_f32s);
lanes!(f64, f64s: splat_f64s add_f64s mul_f64s mul_add_e_f64s reduce_sum_f64s partial_load_f64s partial_store_f64s as_simd_f64s as_mut_simd_f64s);

struct Work<F>(F);

impl<R, F: FnMut() -> R> WithSimd for Work<F> {
    type Output = R;

    #[expect(clippy::inline_always, reason = "to be compiled with the instruction set of the caller")]
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) -> R {
        (self.0)()
    }
}

/// Runs `work`, a closure marked `#[inline(always)]`, on the best available instruction set. It is `FnMut`
/// rather than pulp's `FnOnce`: a closure that consumes nothing is called once through a shim without that
/// mark, and large ones were not inlined but compiled for the oldest instruction set. All instruction sets give
/// the same bits: nothing is fused or reassociated.
pub fn vectorised<R>(work: impl FnMut() -> R) -> R {
    Arch::new().dispatch(Work(work))
}

#[cfg(test)]
mod tests {
    use super::Arch;

    /// The best instruction set is compiled in: without the feature for it, pulp skips AVX2 silently.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn vectors_are_used_if_the_cpu_has_them() {
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            assert!(!matches!(Arch::new(), Arch::Scalar), "scalar code on a machine with AVX2");
        }
    }
}
