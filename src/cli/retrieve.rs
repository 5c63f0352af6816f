//! `nmem retrieve`: read the memory with a sequence of queries, as it stands or online.

use std::process::ExitCode;

use super::run::RunArgs;
use crate::config::Command;

/// Read the memory with a sequence of queries, as it stands or (--online) while storing
///
/// Writes retrieved.npy and run.json to --out; online also all that store writes.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    run: RunArgs,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.run.execute(Command::Retrieve)
}
