//! Titans-style neural memories from the command line: small networks whose weights are the memory. Storing a
//! sequence is gradient descent chunk by chunk, with learned step size, momentum and forgetting. Reading is a
//! forward pass.
//!
//! In reading order:
//!
//! - [`memory`]: the mathematics, with its legend of symbols and the oracle in plain loops;
//! - [`engine`]: runs the maths with blocks, column panels, streaming and threads;
//! - [`scan`]: linear recurrences over whole sequences; [`scan_bench`] times them;
//! - [`sequence`], [`real`]: the tokens and numbers that all of these use;
//! - [`recall`]: how good what is read is, against targets and candidates;
//! - [`io`]: file formats, one file each; [`metrics`]: the rows of metrics.csv; [`storage`]: atomic writes of
//!   files and directories;
//! - [`plot`]: figures, made from CSV files alone;
//! - [`config`]: settings as typed and as checked; [`run`]: one run, from configuration to published directory;
//! - [`train`]: learns parameters from sequences, by the outer gradient of the engine;
//! - [`sweep`]: grids of runs, resumable, and their tables; [`condition`]: comparisons that select, exclude and stop runs;
//! - [`certificate`]: what a memory promises, tested beside planted faults;
//! - [`compare`]: where two runs differ, and what a parameter of a sweep changes;
//! - [`generate`]: synthetic sequences;
//! - [`cli`]: the subcommands.
//!
//! Further modules:
//!
//! - `matmul`: the kernels of the gemm crate on array views; `small_matmul`: products of few rows; [`packed`]: products
//!   with weights in column panels;
//! - [`simd`]: vectors of either element type; [`norm`]: sums of squares over the whole range of numbers;
//!   [`singular_values`]: those of small matrices, and ranks;
//! - [`statistics`]: means and confidence intervals; [`paired`]: differences of pairs with intervals, and adjusted p-values;
//! - `peak`: memory used; `error`: the error type; `escape`: names for display.

pub mod certificate;
pub mod cli;
pub mod compare;
pub mod condition;
pub mod config;
pub mod cuda;
pub mod engine;
mod error;
mod escape;
pub mod generate;
pub mod io;
pub mod matmul;
pub mod memory;
pub mod metrics;
pub mod norm;
pub mod packed;
pub mod paired;
mod peak;
pub mod plot;
pub mod real;
pub mod recall;
pub mod run;
pub mod scan;
pub mod scan_bench;
pub mod sequence;
pub mod simd;
pub mod singular_values;
mod small_matmul;
pub mod statistics;
pub mod storage;
pub mod sweep;
pub mod train;

pub use error::{Error, Result};
