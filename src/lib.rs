//! nmem
mod error;
pub mod real;
pub mod sequence;
pub use error::{Error, Result};
