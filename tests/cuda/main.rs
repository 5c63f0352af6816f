//! The kernels of `--device cuda`: on the CPU, with the threads of a block in forward and backward order, and
//! on a GPU if there is one. With `NMEM_REQUIRE_CUDA=1` a missing GPU is a failure.

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
