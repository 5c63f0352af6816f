//! Linear recurrences along time, over whole sequences. The engine streams its own, with gradients that it never writes
//! down; these are what the same recurrences cost where every step's input is given and every step may be kept:
//!
//! - [`linear`]: x_t = a_t x_{t−1} + b_t, its contract, and the ways to compute it: `sequential`, `channels`, `time`, `tree`;
//! - [`pair`]: S and U fused, for all steps at once;
//! - [`stream`]: stores past the cache, without which neither reaches the bandwidth of a copy;
//! - [`mod@reference`]: the oracle, plain loops in f64.

mod channels;
pub mod cuda;
mod lanes;
pub mod linear;
pub mod pair;
pub mod reference;
mod sequential;
pub mod stream;
mod time;
mod tree;

use ndarray::NdFloat;

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
