//! run.json of a training.

use std::path::PathBuf;

use serde::Serialize;

use crate::config::{Command, TrainConfig};
use crate::real::ElementType;
use crate::run::{InputFile, Resolved};

/// Content of run.json: everything needed to repeat a training, and its outcome.
#[derive(Clone, Debug, Serialize)]
pub struct TrainReport {
    /// Version of the program.
    pub nmem: &'static str,
    /// Commit of the build, with "-modified" if the tree was not clean; `None` outside a checkout.
    pub commit: Option<&'static str>,
    /// Subcommand.
    pub command: Command,
    /// Command line as typed.
    pub command_line: Vec<String>,
    /// Directory of the results.
    #[serde(serialize_with = "crate::io::path_as_text")]
    pub out: PathBuf,
    /// Configuration of the memory with all values filled in.
    pub config: Resolved,
    /// Configuration of the training.
    pub train: TrainConfig,
    /// Files that were read.
    pub inputs: Vec<InputFile>,
    /// Maximum number of threads.
    pub threads: usize,
    /// Element type of computation and results.
    pub dtype: ElementType,
    /// Number of numbers that were learned.
    pub parameters: usize,
    /// Examples of the validation.
    pub validation_examples: usize,
    /// Steps taken.
    pub steps: usize,
    /// Reason why the training ended.
    pub ended: Ended,
    /// Tokens that were stored, in all steps.
    pub tokens: u64,
    /// Loss of the last step.
    pub loss: Option<f64>,
    /// Step whose parameters are in memory.safetensors: the best validation, or the last.
    pub best_step: usize,
    /// Mean loss of the validation with these parameters; `None` without validation.
    pub validation: Option<f64>,
    /// The same with the memory's updates zeroed: what is read at the initial weights.
    pub validation_without_updates: Option<f64>,
    /// The same for answers that are all zeros.
    pub validation_zero: Option<f64>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
    /// Peak resident memory of the process in bytes; only known on Linux.
    pub peak_bytes: Option<u64>,
    /// Seconds of each phase, of this start alone.
    pub wall_s: TrainSeconds,
}

/// Reason why a training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// All steps were taken.
    Steps,
    /// No new best for as many validations as `patience`.
    Patience,
    /// A loss or a gradient that is not finite.
    Diverged,
}

/// Seconds of each phase.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct TrainSeconds {
    /// Reading and checking inputs.
    pub load: f64,
    /// Steps.
    pub train: f64,
    /// Validations.
    pub validate: f64,
    /// Checkpoints, results and figures.
    pub write: f64,
}
