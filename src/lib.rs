//! nmem
mod error;
pub mod io;
pub mod plot;
pub mod real;
pub mod sequence;
pub use error::{Error, Result};
