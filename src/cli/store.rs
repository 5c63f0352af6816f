//! `nmem store`: store a sequence, and report surprise, gates and decay per chunk.

use std::process::ExitCode;

use super::run::RunArgs;
use crate::config::Command;

/// Store a sequence in a memory and report surprise, gates and decay per chunk
///
/// Writes metrics.csv, memory.safetensors, run.json and plots/*.svg to --out.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    run: RunArgs,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.run.execute(Command::Store)
}
