//! Loops compiled once per instruction set, the best one chosen at run time.

use pulp::{Arch, Simd, WithSimd};

struct Work<F>(F);

impl<R, F: FnMut() -> R> WithSimd for Work<F> {
    type Output = R;

    #[expect(clippy::inline_always, reason = "to be compiled with the instruction set of the caller")]
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) -> R {
        (self.0)()
    }
}

/// Runs `work`, a closure marked `#[inline(always)]`. As `FnMut` and not `FnOnce`, as pulp would take it: a closure that
/// consumes nothing is called once through a shim without that mark, and large ones were left outside, compiled for the
/// oldest instruction set. The same bits on all of them: nothing is fused or reassociated.
pub fn vectorised<R>(work: impl FnMut() -> R) -> R {
    Arch::new().dispatch(Work(work))
}
