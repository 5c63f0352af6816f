//! The `nmem` program, which only calls [`nmem::cli`].

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: nmem::cli::Allocator = nmem::cli::Allocator;

fn main() -> ExitCode {
    nmem::cli::main(std::env::args_os())
}
