//! Linear recurrences along time, over whole sequences. The engine streams its own recurrences, with gradients
//! that it never writes to memory. These scans show the cost of the same recurrences when every step's input is
//! given and every state may be kept:
//!
//! - [`linear`]: x_t = a_t x_{t−1} + b_t, its contract, and four algorithms: `sequential`, `channels`, `time`, `tree`;
//! - [`pair`]: S and U fused, for all steps at once;
//! - [`stream`]: stores past the cache, which both need to reach the bandwidth of a copy;
//! - [`mod@reference`]: the oracle, plain loops in f64.
//!
//! # Example
//!
//! A running sum that forgets half at each step:
//!
//! ```
//! use ndarray::{Array3, array};
//! use nmem::scan::linear::{Algorithm, Gates, Layout, Recurrence, scan};
//!
//! let gates = array![[0.5, 0.5, 0.5]]; // [batch, steps]
//! let inputs = array![[[1.0], [1.0], [1.0]]]; // [batch, steps, channels]
//! let recurrence = Recurrence {
//!     layout: Layout::StepsChannels,
//!     gates: Gates::Step(gates.view()),
//!     inputs: inputs.view(),
//!     initial: None,
//! };
//! let mut states = Array3::<f64>::zeros((1, 3, 1));
//! scan(&recurrence, Algorithm::Auto, states.view_mut());
//! assert_eq!(states, array![[[1.0], [1.5], [1.75]]]);
//! ```

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

/// An element type: f32 or f64. The trait is sealed, because stores past the cache move elements as plain bytes.
pub trait Element: NdFloat + Into<f64> + sealed::Sealed {}

impl Element for f32 {}
impl Element for f64 {}

mod sealed {
    /// A bound that other crates cannot implement.
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}
