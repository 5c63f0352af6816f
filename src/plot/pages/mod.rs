//! An SVG as PDF and PNG. The only place that knows of the feature: with it the work is done, without it refused.

#[cfg_attr(feature = "pdf-png", path = "enabled.rs")]
#[cfg_attr(not(feature = "pdf-png"), path = "disabled.rs")]
mod build;

pub use build::{check, pdf, png};
