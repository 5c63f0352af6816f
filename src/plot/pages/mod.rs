//! Conversion of an SVG to PDF and PNG. Only this module depends on the feature; without it, conversion is an error.

#[cfg_attr(feature = "pdf-png", path = "enabled.rs")]
#[cfg_attr(not(feature = "pdf-png"), path = "disabled.rs")]
mod build;

pub use build::{check, pdf, png};
