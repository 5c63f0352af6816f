//! The kernels of `--device cuda`: on the processor, the threads of a block in order and backwards, and on a GPU where there is
//! one. `NMEM_REQUIRE_CUDA=1` makes its absence a failure.

mod device;
mod engine;
mod kernels;
mod library;
mod product;
mod races;
mod scan;
mod scan_bench;
#[path = "../support/mod.rs"]
mod support;
