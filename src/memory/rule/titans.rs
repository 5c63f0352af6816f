//! The rule of Titans (arXiv 2501.00663), with and without momentum, and with either decay.
//!
//! ```text
//! S ← η S − θ g        without momentum: S = −θ g, and is not kept
//! U ← (1 − α) U + S    U is added to the initial weights, or holds whole weights: then these decay too
//! ```

#![expect(clippy::inline_always, reason = "compiled once per instruction set, as part of what is dispatched")]

use pulp::Simd;

use super::{Coefficients, UpdateRule};
use crate::real::Real;

/// Titans with momentum.
#[derive(Clone, Copy, Debug)]
pub struct WithMomentum<const WEIGHTS: bool>;

/// Titans without momentum.
#[derive(Clone, Copy, Debug)]
pub struct WithoutMomentum<const WEIGHTS: bool>;

impl<const WEIGHTS: bool> UpdateRule for WithMomentum<WEIGHTS> {
    type State<V> = [V; 2];
    const WEIGHTS: bool = WEIGHTS;

    #[inline(always)]
    fn load<V>(of: impl FnMut(usize) -> V) -> [V; 2] {
        std::array::from_fn(of)
    }

    #[inline(always)]
    fn step<T: Real, S: Simd>(
        simd: S,
        by: Coefficients<T, S>,
        g: T::Vector<S>,
        [u, s]: &mut [T::Vector<S>; 2],
    ) -> T::Vector<S> {
        *s = T::mul_add_vectors(simd, by.minus_rate, g, T::mul_vectors(simd, by.momentum, *s));
        *u = T::mul_add_vectors(simd, by.keep, *u, *s);
        *s
    }
}

impl<const WEIGHTS: bool> UpdateRule for WithoutMomentum<WEIGHTS> {
    type State<V> = [V; 1];
    const WEIGHTS: bool = WEIGHTS;

    #[inline(always)]
    fn load<V>(of: impl FnMut(usize) -> V) -> [V; 1] {
        std::array::from_fn(of)
    }

    #[inline(always)]
    fn step<T: Real, S: Simd>(
        simd: S,
        by: Coefficients<T, S>,
        g: T::Vector<S>,
        [u]: &mut [T::Vector<S>; 1],
    ) -> T::Vector<S> {
        let s = T::mul_vectors(simd, by.minus_rate, g);
        *u = T::mul_add_vectors(simd, by.keep, *u, s);
        s
    }
}
