//! plot
pub mod envelope;
pub mod series;
pub(crate) mod table;
