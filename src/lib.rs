//! nmem
pub mod cli;
mod error;
pub mod io;
pub mod real;
pub mod sequence;
pub use error::{Error, Result};
