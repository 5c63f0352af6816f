//! Titans-style neural memories from the command line: small networks whose weights are the memory. Storing a
//! sequence is gradient descent chunk by chunk, with learned step size, momentum and forgetting; reading is a
//! forward pass.
//!
//! In reading order:
//!
//! - [`memory`]: the mathematics, with its legend of symbols and the oracle in plain loops;
//! - [`engine`]: how the maths is run: blocks, column panels, streaming, threads;
//! - [`scan`]: linear recurrences on their own, over whole sequences; [`scan_bench`] times them;
//! - [`sequence`], [`real`]: what tokens and numbers are to all of these;
//! - [`io`]: one file a format; [`metrics`]: the rows of metrics.csv; [`storage`]: all that is written to disk, whole or not at all;
//! - [`plot`]: figures, made from the CSV alone;
//! - [`config`]: settings as typed and as checked; [`run`]: one run, from configuration to published folder;
//! - [`sweep`]: grids of runs, resumable, and their tables;
//! - [`generate`]: synthetic sequences;
//! - [`cli`]: the subcommands.
//!
//! Besides: `matmul` (the gemm crate on array views), [`packed`] (products with weights that are cut up once), [`simd`]
//! (vectors of either element type), [`statistics`] (means and their intervals), `peak` (memory used), `error`, `escape` (names
//! fit to be shown).

pub mod cli;
pub mod config;
pub mod cuda;
pub mod engine;
mod error;
mod escape;
pub mod generate;
pub mod io;
mod matmul;
pub mod memory;
pub mod metrics;
pub mod packed;
mod peak;
pub mod plot;
pub mod real;
pub mod run;
pub mod scan;
pub mod scan_bench;
pub mod sequence;
pub mod simd;
pub mod statistics;
pub mod storage;
pub mod sweep;

pub use error::{Error, Result};
