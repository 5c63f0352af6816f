//! nmem
pub mod engine;
mod error;
mod matmul;
pub mod memory;
pub mod metrics;
pub mod real;
pub mod scan;
pub mod sequence;
pub use error::{Error, Result};
