//! run.json: what a run was and how it went.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::config::{Command, Mode};
use crate::engine::{Divergence, Phases};
use crate::memory::parameters::Init;
use crate::memory::{Dimensions, Gates};
use crate::metrics::Spread;
use crate::real::ElementType;

/// run.json: everything needed to repeat a run, and how it went.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of the program.
    pub nmem: &'static str,
    /// Commit that it was built from, with "-modified" where the tree was not clean; `None` outside a checkout.
    pub commit: Option<&'static str>,
    /// Subcommand.
    pub command: Command,
    /// As typed.
    pub command_line: Vec<String>,
    /// The results' folder.
    #[serde(serialize_with = "crate::io::path_as_text")]
    pub out: PathBuf,
    /// The configuration with everything filled in.
    pub config: Resolved,
    /// Files that were read.
    pub inputs: Vec<InputFile>,
    /// Where the engine ran: "cpu", or "cuda:0" and the GPU's name.
    pub device: String,
    /// What its large matrix products were made by on a GPU: "kernel", nmem's own, or "cuBLAS 13.1.0", the library that was found
    /// (which leaves sizes that it does not take to the kernel); `None` on the processor, and where there were none.
    pub products: Option<String>,
    /// Of a GPU: versions of the driver and of what the kernels were compiled from.
    pub software: Option<String>,
    /// Threads it could use, as asked for or one per core.
    pub threads: usize,
    /// Those it used: no more than column panels of memory weights that can be updated at once; with a GPU, one.
    pub threads_used: usize,
    /// Element type of computation and results.
    pub dtype: ElementType,
    /// Sequences side by side.
    pub sequences: usize,
    /// Tokens of each: of those read where another sequence was stored.
    pub tokens: usize,
    /// Tokens of each sequence that was stored; `None` in a plain read.
    pub tokens_stored: Option<usize>,
    /// Rows of metrics.csv.
    pub rows: usize,
    /// Tokens stored since the start of the memory's life, per sequence, left-over ones included.
    pub life_tokens: Option<usize>,
    /// Spread of each column of metrics.csv.
    pub summary: BTreeMap<&'static str, Spread>,
    /// With retention, Σ loss of the kept chunks under the final memory ÷ Σ their ℓ at W; `None` where none was kept,
    /// where it is not finite, and after a divergence.
    pub retained_ratio: Option<f64>,
    /// First value that is not finite: the run diverged there. In an online run that may be of a read, and the memory kept.
    pub diverged: Option<Divergence>,
    /// Whether the memory itself was not finite, which ended the run.
    #[serde(skip)]
    pub memory_lost: bool,
    /// What a user should know although nothing failed.
    pub warnings: Vec<String>,
    /// Largest resident memory of the process, where the system tells (Linux).
    pub peak_bytes: Option<u64>,
    /// Largest resident memory without mapped files as far as seen: sampled after blocks of tokens (at most every 10 ms), of rows
    /// drawn, and with every figure. What is taken and given back in between goes unseen: up to 2 MB in a figure's text.
    pub peak_anon_bytes: Option<u64>,
    /// Seconds per phase.
    pub wall_s: WallSeconds,
}

/// The configuration of a run with everything filled in.
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
    /// Distribution and seed of a random memory; `None` where it came from a file.
    pub init: Option<Init>,
    /// Likewise.
    pub seed: Option<u64>,
    /// Fixed values and biases of the gates.
    #[serde(flatten)]
    pub gates: Gates,
    /// Whether momentum started from zero.
    pub restart_momentum: bool,
    /// Whether ℓ was also taken before and after each chunk.
    pub probe: bool,
    /// K, where every K-th chunk was kept and read again.
    pub retention: Option<usize>,
    /// Whether inputs could hold NaN and infinity.
    pub allow_nonfinite: bool,
    /// Further runs of the engine, for timing.
    pub repeat: usize,
    /// Whether figures were drawn.
    pub plots: bool,
}

/// A file that was read.
#[derive(Clone, Debug, Serialize)]
pub struct InputFile {
    /// Flag or argument that named it.
    pub role: &'static str,
    /// As given.
    #[serde(serialize_with = "crate::io::path_as_text")]
    pub path: PathBuf,
    /// Of an array.
    pub shape: Option<Vec<usize>>,
    /// Of an array.
    pub dtype: Option<&'static str>,
    /// Of the whole file, as `sha256sum` prints it.
    pub sha256: String,
}

/// Seconds of each phase.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WallSeconds {
    /// Reading and checking inputs, and blocks of tokens on the way.
    pub load: f64,
    /// Everything computed, from inputs to results. With `--repeat` the median of `engine_all`.
    pub engine: f64,
    /// Every run of the engine, the first included.
    pub engine_all: Vec<f64>,
    /// Where the time of the engine's last run went, added up over its threads.
    pub engine_phases: Phases,
    /// Writing results.
    pub write: f64,
    /// Drawing figures.
    pub plots: f64,
}
