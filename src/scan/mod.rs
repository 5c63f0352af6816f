//! The memory's two linear recurrences along the chunks, fused, one chunk at a time:
//!
//! ```text
//! S ← η S − θ g
//! U ← (1 − α) U + S
//! ```
//!
//! with scalar coefficients per chunk. One pass reads g, S, U and W, writes S, U and the read weights W + U, and
//! sums the squares of all four; nothing is kept per chunk.
//!
//! And the recurrence on its own, over whole sequences:
//! - [`linear`]: x_t = a_t x_{t−1} + b_t, its contract, and the ways to compute it: `sequential`, `channels`, `time`, `tree`;
//! - [`pair`]: S and U fused, for all steps at once;
//! - [`stream`]: stores past the cache, without which neither reaches the bandwidth of a copy;
//! - [`mod@reference`]: the oracle, plain loops in f64.

mod channels;
mod lanes;
pub mod linear;
mod norm;
pub mod pair;
pub mod reference;
mod sequential;
pub mod stream;
mod time;
mod tree;
mod vectorised;

pub use norm::{SumOfSquares, norm};

use ndarray::NdFloat;
use pulp::Arch;

/// f32 or f64. Sealed: stores past the cache move elements as plain bytes.
pub trait Element: NdFloat + Into<f64> + sealed::Sealed {}

impl Element for f32 {}
impl Element for f64 {}

mod sealed {
    /// What keeps others out.
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// Coefficients of one chunk.
#[derive(Clone, Copy, Debug)]
pub struct Step<T> {
    /// θ: how much of the surprise enters the momentum.
    pub learning_rate: T,
    /// η: how much of the momentum is kept.
    pub momentum: T,
    /// α: how much of the update is forgotten.
    pub decay: T,
}

/// Frobenius norms of what one step touched.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Norms {
    /// ‖g‖
    pub surprise: f64,
    /// ‖S‖
    pub momentum: f64,
    /// ‖U‖
    pub update: f64,
    /// ‖W + U‖
    pub weight: f64,
}

/// Elements per stretch: long enough to amortise the sums, short enough for all five streams to stay in L1
/// (in f32).
const STRETCH: usize = 1024;

/// Advances S and U by one chunk and writes `read ← weights + U`. All slices have the same length; the norms are
/// those of `surprise` and of the new S, U and W + U.
pub fn step<T: NdFloat + Into<f64>>(
    step: Step<T>,
    surprise: &[T],
    momentum: &mut [T],
    update: &mut [T],
    weights: &[T],
    read: &mut [T],
) -> Norms {
    let length = surprise.len();
    assert!([momentum.len(), update.len(), weights.len(), read.len()] == [length; 4], "equal lengths");
    // Compiled once per instruction set, the best one chosen at run time. The same bits on all of them: nothing is
    // fused or reassociated beyond the fixed lanes of the sums.
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let keep = T::one() - step.decay;
            let mut sums = [SumOfSquares::default(); 4];
            for start in (0..length).step_by(STRETCH) {
                let range = start..length.min(start + STRETCH);
                let (g, w) = (&surprise[range.clone()], &weights[range.clone()]);
                let (s, u, r) = (&mut momentum[range.clone()], &mut update[range.clone()], &mut read[range]);
                for i in 0..g.len() {
                    s[i] = step.momentum * s[i] - step.learning_rate * g[i];
                    u[i] = keep * u[i] + s[i];
                    r[i] = w[i] + u[i];
                }
                for (sum, stretch) in sums.iter_mut().zip([g, s, u, r]) {
                    sum.add(stretch);
                }
            }
            let [g, s, u, r] = sums;
            Norms {
                surprise: g.norm(surprise),
                momentum: s.norm(momentum),
                update: u.norm(update),
                weight: r.norm(read),
            }
        },
    )
}
