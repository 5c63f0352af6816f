//! Settings in two layers: [`Settings`] as typed, on the command line or in a TOML file, everything optional; and
//! [`Config`], checked against each other, of which a run is made. Keys of a file are the flags' names with
//! underscores; flags win.

mod settings;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cuda::DeviceChoice;
use crate::error::{Error, Result};
use crate::memory::limits::check_chunk_size;
use crate::memory::parameters::Init;
use crate::memory::{Dimensions, Gate, GateKind, Gates};
use crate::plot::FigureFormat;
use crate::real::ElementType;
pub use settings::{GateSetting, Settings};
pub(crate) use settings::{nearest, whole};

/// The command that is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// `nmem store`
    Store,
    /// `nmem retrieve`
    Retrieve,
}

impl Command {
    /// As typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Retrieve => "retrieve",
        }
    }
}

/// What is done with the sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Store them.
    Store,
    /// Read with them, from the memory as it stands.
    Read,
    /// Read with them while storing.
    Online,
}

/// Settings that have been checked against each other; what only files can tell is still open.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches")]
pub struct Config {
    /// Store, read or both.
    pub mode: Mode,
    /// The sequences.
    pub data: PathBuf,
    /// What is stored while `data` is read, where it is not the same.
    pub store_seq: Option<PathBuf>,
    /// Where the memory comes from.
    pub memory: MemorySource,
    /// As given; a saved memory has its own.
    pub chunk_size: Option<usize>,
    /// Past weights.
    pub past: Option<PathBuf>,
    /// Whether momentum starts from zero.
    pub restart_momentum: bool,
    /// Gates as given, over those of a saved memory.
    gates: [GateLayer; 3],
    /// Whether ℓ is also taken before and after each chunk.
    pub probe: bool,
    /// K, where every K-th chunk is kept and read again.
    pub retention: Option<usize>,
    /// Where it is computed.
    pub device: DeviceChoice,
    /// Why that is not what was asked for.
    pub device_note: Option<&'static str>,
    /// Element type.
    pub dtype: ElementType,
    /// Threads; `None` is one per core.
    pub threads: Option<usize>,
    /// Whether inputs may hold NaN and infinity.
    pub allow_nonfinite: bool,
    /// Further runs of the engine, for timing.
    pub repeat: usize,
    /// Folder for the results.
    pub out: PathBuf,
    /// Labels of the tokens.
    pub labels: Option<PathBuf>,
    /// The TOML file that settings came from, so that replacing `out` does not take it along.
    pub file: Option<PathBuf>,
    /// SHA-256 of that file as it was read.
    pub file_sha256: String,
    /// Whether figures are drawn.
    pub plots: bool,
    /// What they are written as.
    pub figure_format: Vec<FigureFormat>,
}

/// Where a memory comes from.
#[derive(Clone, Debug)]
pub enum MemorySource {
    /// A file: parameters or a saved memory.
    File {
        /// The file.
        path: PathBuf,
        /// Given although the file tells: must agree.
        heads: Option<usize>,
        /// Likewise.
        dim_head: Option<usize>,
    },
    /// Random, made once the width of the tokens is known.
    Random {
        /// Heads.
        heads: usize,
        /// Width of a head; `None` is dim / heads.
        dim_head: Option<usize>,
        /// Norms before storing and reading.
        pre_norm: bool,
        /// Norm of what was read.
        post_norm: bool,
        /// Distribution of the memory weights.
        init: Init,
        /// Of the random numbers.
        seed: u64,
    },
}

/// What was said of one gate.
#[derive(Clone, Copy, Debug)]
struct GateLayer {
    kind: GateKind,
    flag: &'static str,
    fixed: Option<GateSetting>,
    bias: Option<f64>,
}

/// More is a slip of the keyboard.
const MAX_THREADS: usize = 1024;

/// Most repeats: enough for a run that is meant to be stopped, and few enough to be counted in tokens.
const MAX_REPEAT: usize = 1 << 30;

/// Chunk size of a random memory without one.
const RANDOM_CHUNK_SIZE: usize = 16;

impl Settings {
    /// Refuses flags that have no effect in this command, so that nobody believes they had one. (A configuration
    /// file may serve several commands, so its keys are not held to this.)
    pub fn check_flags(&self, command: Command, merged: &Self) -> Result<()> {
        let online = command == Command::Retrieve && merged.is_online();
        let unused = |flag: &str, given: bool, expected: &str| {
            if given {
                Err(Error::setting(flag, expected, format!("`nmem {}`", command.name())))
            } else {
                Ok(())
            }
        };
        if command == Command::Store {
            unused("--online", self.online == Some(true), "`nmem retrieve` (a store reads nothing)")?;
            unused("--store-seq", self.store_seq.is_some(), "`nmem retrieve` (a store stores SEQ itself)")?;
            return unused(
                "--probe",
                self.probe == Some(true),
                "`nmem retrieve --online` (a store probes anyway)",
            );
        }
        unused(
            "--no-probe",
            self.no_probe == Some(true),
            "`nmem store` (retrieving probes only with --probe)",
        )?;
        let with = "--online with it (a plain read stores nothing)";
        unused("--probe", !online && self.probe == Some(true), with)?;
        unused("--retention", !online && self.retention.is_some(), with)?;
        unused("--labels", !online && self.labels.is_some(), with)?;
        unused("--restart-momentum", !online && self.restart_momentum == Some(true), with)?;
        for layer in self.gates() {
            unused(layer.flag, !online && layer.fixed.is_some(), with)?;
            unused(&format!("{}-bias", layer.flag), !online && layer.bias.is_some(), with)?;
        }
        Ok(())
    }

    fn is_online(&self) -> bool {
        self.online.unwrap_or(self.store_seq.is_some())
    }

    fn gates(&self) -> [GateLayer; 3] {
        [
            GateLayer {
                kind: GateKind::LearningRate,
                flag: "--learning-rate",
                fixed: self.learning_rate,
                bias: self.learning_rate_bias,
            },
            GateLayer {
                kind: GateKind::Momentum,
                flag: "--momentum",
                fixed: self.momentum,
                bias: self.momentum_bias,
            },
            GateLayer { kind: GateKind::Decay, flag: "--decay", fixed: self.decay, bias: self.decay_bias },
        ]
    }

    /// Checks the settings against each other.
    pub fn validate(self, command: Command) -> Result<Config> {
        let mode = match command {
            Command::Store => Mode::Store,
            Command::Retrieve if self.is_online() => Mode::Online,
            Command::Retrieve => Mode::Read,
        };
        let Some(data) = self.data.clone() else {
            return Err(Error::setting("SEQ.npy", "a sequence to work on (or `data` in --config)", "none"));
        };
        if self.online == Some(false) && self.store_seq.is_some() {
            return Err(Error::setting("--store-seq", "--online (which it implies)", "--online=false"));
        }
        let dash = Path::new("-");
        let inputs = [Some(&data), self.store_seq.as_ref(), self.memory.as_ref(), self.past.as_ref()];
        if inputs.into_iter().flatten().filter(|path| **path == dash).count() > 1 {
            return Err(Error::setting("-", "standard input in one place", "more than one"));
        }
        if let Some(threads) = self.threads.filter(|threads| *threads > MAX_THREADS) {
            return Err(Error::setting("--threads", format!("at most {MAX_THREADS}"), threads.to_string()));
        }
        if let Some(repeat) = self.repeat.filter(|repeat| *repeat > MAX_REPEAT) {
            return Err(Error::setting("--repeat", format!("at most {MAX_REPEAT}"), repeat.to_string()));
        }
        for (flag, number) in [
            ("--threads", self.threads),
            ("--heads", self.heads),
            ("--dim-head", self.dim_head),
            ("--retention", self.retention),
        ] {
            if number == Some(0) {
                return Err(Error::setting(flag, "at least 1", "0"));
            }
        }
        self.chunk_size.map_or(Ok(()), check_chunk_size).map_err(Error::limit("--chunk-size"))?;
        for layer in self.gates() {
            layer.check()?;
        }
        let retention = self.retention.filter(|_| mode != Mode::Read);
        let mut device_note = None;
        let device = match (self.device.unwrap_or_default(), retention) {
            (DeviceChoice::Auto, Some(_)) => {
                device_note = Some("--device auto: cpu (--retention is for the processor alone)");
                DeviceChoice::Cpu
            }
            (choice @ DeviceChoice::Cuda(_), Some(_)) => {
                let expected = "--device cpu with it (kept chunks are read again on the CPU only)";
                return Err(Error::setting("--retention", expected, format!("--device {choice}")));
            }
            (choice, _) => choice,
        };
        self.figure_format.iter().flatten().try_for_each(|format| format.check())?;
        let out = self.out.clone().unwrap_or_else(|| {
            let stem =
                if data == dash { "stdin".as_ref() } else { data.file_stem().unwrap_or(data.as_os_str()) };
            let mut name = stem.to_os_string();
            name.push(format!("-{}", command.name()));
            Path::new("results").join(name)
        });
        Ok(Config {
            mode,
            gates: self.gates(),
            memory: self.memory_source()?,
            chunk_size: self.chunk_size,
            past: self.past,
            restart_momentum: self.restart_momentum.unwrap_or(false),
            probe: match mode {
                Mode::Store => !self.no_probe.unwrap_or(false),
                Mode::Read => false,
                Mode::Online => self.probe.unwrap_or(false),
            },
            retention,
            device,
            device_note,
            dtype: self.dtype.unwrap_or_default(),
            threads: self.threads,
            allow_nonfinite: self.allow_nonfinite.unwrap_or(false),
            repeat: self.repeat.unwrap_or(0),
            labels: self.labels.filter(|_| mode != Mode::Read),
            file: None,
            file_sha256: String::new(),
            figure_format: self.figure_format.unwrap_or_else(|| vec![FigureFormat::default()]),
            plots: mode != Mode::Read && !self.no_plots.unwrap_or(false),
            store_seq: self.store_seq.filter(|_| mode == Mode::Online),
            data,
            out,
        })
    }

    fn memory_source(&self) -> Result<MemorySource> {
        let Some(path) = self.memory.clone() else {
            return Ok(MemorySource::Random {
                heads: self.heads.unwrap_or(1),
                dim_head: self.dim_head,
                pre_norm: !self.no_pre_norm.unwrap_or(false),
                post_norm: !self.no_post_norm.unwrap_or(false),
                init: self.init.unwrap_or_default(),
                seed: self.seed.unwrap_or(0),
            });
        };
        let drawn_only = [
            ("--init", self.init.is_some()),
            ("--seed", self.seed.is_some()),
            ("--no-pre-norm", self.no_pre_norm == Some(true)),
            ("--no-post-norm", self.no_post_norm == Some(true)),
        ];
        match drawn_only.into_iter().find(|(_, given)| *given) {
            Some((flag, _)) => {
                let got = format!("--memory {}, which is not drawn", path.display());
                Err(Error::setting(flag, "a memory drawn at random", got))
            }
            None => Ok(MemorySource::File { path, heads: self.heads, dim_head: self.dim_head }),
        }
    }
}

impl GateLayer {
    fn check(&self) -> Result<()> {
        let Self { kind, flag, fixed, bias } = *self;
        if let Some(GateSetting::Fixed(value)) = fixed {
            Gate::Fixed(value).check(kind).map_err(Error::limit(flag))?;
            if bias.is_some() {
                let expected = format!("a gate that is not pinned ({flag} learned frees it)");
                return Err(Error::setting(format!("{flag}-bias"), expected, format!("{flag} {value}")));
            }
        }
        let bias = bias.map_or(Ok(()), |bias| Gate::Learned(bias).check(kind));
        bias.map_err(Error::limit(format!("{flag}-bias")))
    }

    /// This layer over a saved memory's gate.
    fn over(&self, saved: Gate) -> Result<Gate> {
        Ok(match (self.fixed, self.bias, saved) {
            (Some(GateSetting::Fixed(value)), ..) => Gate::Fixed(value),
            (Some(GateSetting::Learned), bias, _) => Gate::Learned(bias.unwrap_or(0.0)),
            (None, Some(_), Gate::Fixed(value)) => {
                let expected = format!("a gate that is not pinned ({} learned frees it)", self.flag);
                let got = format!("a memory that pins it at {value}");
                return Err(Error::setting(format!("{}-bias", self.flag), expected, got));
            }
            (None, Some(bias), Gate::Learned(_)) => Gate::Learned(bias),
            (None, None, saved) => saved,
        })
    }
}

impl Config {
    /// The gates, given those of a saved memory.
    pub fn gates(&self, saved: Gates) -> Result<Gates> {
        let [learning_rate, momentum, decay] = &self.gates;
        Ok(Gates {
            learning_rate: learning_rate.over(saved.learning_rate)?,
            momentum: momentum.over(saved.momentum)?,
            decay: decay.over(saved.decay)?,
        })
    }

    /// The chunk size, given that of a saved memory.
    pub fn chunk_size(&self, saved: Option<usize>) -> Result<usize> {
        match (self.chunk_size, saved, &self.memory) {
            (Some(given), Some(saved), _) if given != saved => {
                let expected = format!("{saved}, with which the memory was stored");
                Err(Error::setting("--chunk-size", expected, given.to_string()))
            }
            (Some(size), ..) | (None, Some(size), _) => Ok(size),
            (None, None, MemorySource::Random { .. }) => Ok(RANDOM_CHUNK_SIZE),
            (None, None, MemorySource::File { path, .. }) => {
                let expected =
                    "the chunk size that the parameters were trained with (no file of parameters tells)";
                Err(Error::setting("--chunk-size", expected, format!("none for {}", path.display())))
            }
        }
    }
}

impl MemorySource {
    /// Sizes of a random memory for tokens of width `dim`; `None` for a file.
    pub fn random(&self, dim: usize) -> Result<Option<(Dimensions, Init, u64)>> {
        let &Self::Random { heads, dim_head, pre_norm, post_norm, init, seed } = self else {
            return Ok(None);
        };
        let dim_head = match dim_head {
            Some(dim_head) => dim_head,
            None if dim.is_multiple_of(heads) => dim / heads,
            None => {
                let expected = format!("a number that divides dim {dim} (or --dim-head)");
                return Err(Error::setting("--heads", expected, heads.to_string()));
            }
        };
        Ok(Some((Dimensions { dim, heads, dim_head, pre_norm, post_norm }, init, seed)))
    }

    /// What was said besides a file must agree with it.
    pub fn check(&self, of_file: &Dimensions) -> Result<()> {
        let &Self::File { ref path, heads, dim_head } = self else { return Ok(()) };
        let pairs = [("--heads", heads, of_file.heads), ("--dim-head", dim_head, of_file.dim_head)];
        match pairs.into_iter().find(|(_, given, own)| given.is_some_and(|given| given != *own)) {
            None => Ok(()),
            Some((flag, given, own)) => {
                let expected = format!("{own}, as in {} (or leave it out)", path.display());
                Err(Error::setting(flag, expected, given.unwrap_or(own).to_string()))
            }
        }
    }
}
