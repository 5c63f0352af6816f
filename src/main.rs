//! The `nmem` program: all of it is [`nmem::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    nmem::cli::main(std::env::args_os())
}
