//! run.json: the configuration, inputs and outcome of a run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::config::{Command, Mode};
use crate::engine::{Divergence, Phases};
use crate::memory::parameters::Init;
use crate::memory::program::Choices;
use crate::memory::{Dimensions, Gates};
use crate::metrics::Spread;
use crate::real::ElementType;
use crate::recall::{Cue, RecallReport};

/// Key in the summary of the norms of retrieved rows.
pub const RETRIEVED_NORM: &str = "retrieved_norm";

/// Content of run.json: everything needed to repeat a run, and its outcome.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
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
    /// Configuration with all values filled in.
    pub config: Resolved,
    /// Files that were read.
    pub inputs: Vec<InputFile>,
    /// Device of the engine: "cpu", or "cuda:0" and the GPU's name.
    pub device: String,
    /// Implementation of a GPU's large matrix products: "kernel" (nmem's own) or a library such as "cuBLAS 13.1.0". The
    /// kernel also computes sizes that the library does not support. `None` on the CPU, and in runs without such products.
    pub products: Option<String>,
    /// Versions of a GPU's driver and of the source of its kernels.
    pub software: Option<String>,
    /// Maximum number of threads, as requested or one per core.
    pub threads: usize,
    /// Number of threads used. At most the number of column panels of memory weights that can be updated at once; 1 with a
    /// GPU.
    pub threads_used: usize,
    /// Element type of computation and results.
    pub dtype: ElementType,
    /// Number of parallel sequences.
    pub sequences: usize,
    /// Number of tokens per sequence. Counts the sequence read if another one was stored.
    pub tokens: usize,
    /// Number of tokens per stored sequence; `None` in a plain read.
    pub tokens_stored: Option<usize>,
    /// Number of rows in metrics.csv.
    pub rows: usize,
    /// Number of tokens per sequence stored in the memory's life, including those of an incomplete chunk.
    pub life_tokens: Option<usize>,
    /// Spread of each column of metrics.csv, and of the norms of what was read ([`RETRIEVED_NORM`]).
    pub summary: BTreeMap<&'static str, Spread>,
    /// With retention, Σ loss of the kept chunks under the final memory ÷ Σ their ℓ at W. `None` if no chunk was kept, if
    /// the ratio is not finite, and after a divergence.
    pub retained_ratio: Option<f64>,
    /// The same ratio of chunks that the memory had not stored: the next kept chunk under the memory before its block. What
    /// is kept of a chunk is the difference.
    pub unstored_ratio: Option<f64>,
    /// Quality of what was read; `None` without targets.
    pub recall: Option<RecallReport>,
    /// First non-finite value, where the run diverged. In an online run it may be a value read, and the memory is kept.
    pub diverged: Option<Divergence>,
    /// Sequence, chunk and condition at which the run was stopped, in a sweep with `stop_when`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// Whether the memory itself became non-finite, which ended the run.
    #[serde(skip)]
    pub memory_lost: bool,
    /// Warnings for the user, although nothing failed.
    pub warnings: Vec<String>,
    /// Peak resident memory of the process in bytes; only known on Linux.
    pub peak_bytes: Option<u64>,
    /// Largest sample of resident memory without mapped files, in bytes. Samples are taken after blocks of tokens (at most
    /// every 10 ms), after blocks of drawn rows, and with every figure. Shorter peaks are missed: up to 2 MB for a figure's
    /// text.
    pub peak_anon_bytes: Option<u64>,
    /// Seconds per phase.
    pub wall_s: WallSeconds,
}

/// Configuration of a run with all values filled in.
#[derive(Clone, Debug, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches")]
pub struct Resolved {
    /// Store, read or both.
    pub mode: Mode,
    /// Sizes and norms of the memory.
    #[serde(flatten)]
    pub dimensions: Dimensions,
    /// Tokens per chunk.
    pub chunk_size: usize,
    /// Model, loss, rule and schedule; `None` for options that the parts do not have.
    #[serde(flatten)]
    pub program: Choices,
    /// Distribution of a random memory; `None` if it came from a file.
    pub init: Option<Init>,
    /// Seed of a random memory; `None` if it came from a file.
    pub seed: Option<u64>,
    /// Fixed values and biases of the gates.
    #[serde(flatten)]
    pub gates: Gates,
    /// Whether momentum started from zero.
    pub restart_momentum: bool,
    /// Whether everything was stored before the first read.
    pub read_after: bool,
    /// Presentation of the tokens of a plain read.
    pub cue: Cue,
    /// k of the top-k accuracy, with targets.
    pub top_k: Option<usize>,
    /// Whether ℓ was also measured before and after each chunk.
    pub probe: bool,
    /// Further probes of each chunk.
    pub probes: Vec<String>,
    /// K, if every K-th chunk was kept and read again.
    pub retention: Option<usize>,
    /// Whether NaN and infinity were accepted in inputs.
    pub allow_nonfinite: bool,
    /// Number of additional engine runs for timing.
    pub repeat: usize,
    /// Whether figures were drawn.
    pub plots: bool,
}

/// A file that was read.
#[derive(Clone, Debug, Serialize)]
pub struct InputFile {
    /// Flag or argument that named it.
    pub role: &'static str,
    /// Path as given.
    #[serde(serialize_with = "crate::io::path_as_text")]
    pub path: PathBuf,
    /// Shape of an array; `None` for other files.
    pub shape: Option<Vec<usize>>,
    /// Element type of an array; `None` for other files.
    pub dtype: Option<&'static str>,
    /// SHA-256 of the whole file, as printed by `sha256sum`.
    pub sha256: String,
}

/// Seconds of each phase.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WallSeconds {
    /// Reading and checking inputs, including blocks of tokens read during the run.
    pub load: f64,
    /// All computation from inputs to results. With `--repeat`, the median of `engine_all`.
    pub engine: f64,
    /// Each run of the engine, including the first.
    pub engine_all: Vec<f64>,
    /// Phases of the engine's last run, summed over its threads.
    pub engine_phases: Phases,
    /// Writing results.
    pub write: f64,
    /// Drawing figures.
    pub plots: f64,
}
