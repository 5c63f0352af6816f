//! `nmem store`: store a sequence, and report surprise, gates and decay per chunk.

use std::path::PathBuf;
use std::process::ExitCode;

use super::run::{RunArgs, command_line};
use super::store_many;
use crate::config::Command;

/// Store a sequence in a memory and report surprise, gates and decay per chunk
///
/// Writes metrics.csv, memory.safetensors, run.json and plots/*.svg to --out. With several sequences, or a directory of .npy
/// files, each starts from the same memory and has its own results in --out, with a summary of all in summary.csv.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    pub(super) run: RunArgs,
    /// Further sequences; each is a run of its own
    #[arg(value_name = "SEQ.npy")]
    more: Vec<PathBuf>,
}

impl Args {
    /// Makes this the run of one sequence, for a repetition.
    pub fn redirect(&mut self, data: PathBuf, out: PathBuf, force: bool, quiet: bool) {
        self.more.clear();
        self.run.redirect(data, out, force, quiet);
    }

    /// Runs it. run.json has the given command line.
    pub fn execute_as(self, command_line: Vec<String>) -> anyhow::Result<ExitCode> {
        self.run.execute_as(Command::Store, command_line)
    }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    // The file of settings may be a pipe, so it is read once.
    let (settings, file) = args.run.merged(Command::Store)?;
    match store_many::sequences(&settings, &args.more)? {
        None => args.run.execute_merged(Command::Store, settings, file.as_ref(), command_line()),
        Some(sequences) => store_many::run(&args.run, &settings, file.as_ref(), &sequences),
    }
}
