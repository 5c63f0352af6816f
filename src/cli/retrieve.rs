//! `nmem retrieve`: read a memory with a sequence of queries, unchanged or while storing.

use std::process::ExitCode;

use super::run::RunArgs;
use crate::config::Command;

/// Read a memory with a sequence of queries, unchanged or (--online) while storing
///
/// Writes retrieved.npy and run.json to --out. With --online it also writes the files of `nmem store`. With --target it also
/// writes recall.csv and its figure.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    pub(super) run: RunArgs,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.run.execute(Command::Retrieve)
}
