//! Settings in two layers: [`Settings`] as typed, on the command line or in a TOML file, everything optional; and
//! [`Config`], checked against each other, of which a run is made. Keys of a file are the flags' names with
//! underscores; flags win.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::memory::parameters::Init;
use crate::memory::{Dimensions, Gate, Gates};
use crate::real::ElementType;

/// What can be said about a run, as typed.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Sequences: a .npy of shape (tokens, dim) or (sequences, tokens, dim), f16, f32 or f64; `-` is standard input
    #[arg(value_name = "SEQ.npy")]
    pub data: Option<PathBuf>,

    /// Parameters (a PyTorch state_dict as .safetensors or .npz) or a memory that `store` wrote; without it one is
    /// drawn at random
    #[arg(long, value_name = "FILE", help_heading = "Memory")]
    pub memory: Option<PathBuf>,
    /// Tokens per chunk, at least 2: needed with parameters; 16 for a drawn memory
    #[arg(long, value_name = "N", help_heading = "Memory", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub chunk_size: Option<usize>,
    /// Heads of a drawn memory [default: 1]
    #[arg(long, value_name = "N", help_heading = "Memory", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub heads: Option<usize>,
    /// Width of a head of a drawn memory [default: dim / heads]
    #[arg(long, value_name = "N", help_heading = "Memory", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub dim_head: Option<usize>,
    /// How a memory is drawn: memory weights uniform (xavier) or from N(0, 1) (randn, as titans-pytorch does)
    /// [default: xavier]
    #[arg(
        long,
        value_enum,
        help_heading = "Memory",
        hide_possible_values = true,
        value_name = "xavier|randn"
    )]
    pub init: Option<Init>,
    /// Seed of a drawn memory [default: 0]
    #[arg(long, value_name = "N", help_heading = "Memory", value_parser = whole::<u64>, allow_negative_numbers = true)]
    pub seed: Option<u64>,
    /// Draw a memory without the norms before storing and reading
    #[arg(long, help_heading = "Memory", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub no_pre_norm: Option<bool>,
    /// Draw a memory without the norm of what was read
    #[arg(long, help_heading = "Memory", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub no_post_norm: Option<bool>,
    /// Past weights: weights.0 … weights.3, each (dim_head, dim_head), that shift the memory weights themselves
    #[arg(long, value_name = "FILE", help_heading = "Memory")]
    pub past: Option<PathBuf>,
    /// Go on from a saved memory with its momentum set to zero
    #[arg(long, help_heading = "Memory", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub restart_momentum: Option<bool>,

    /// Pin the learning rate θ of every chunk (0 or more), or `learned` to free a saved memory's pin
    #[arg(long, value_name = "X", help_heading = "Gates", allow_negative_numbers = true)]
    pub learning_rate: Option<GateSetting>,
    /// Pin the momentum η, or `learned`
    #[arg(long, value_name = "X", help_heading = "Gates", allow_negative_numbers = true)]
    pub momentum: Option<GateSetting>,
    /// Pin the decay α, the share that each chunk forgets, or `learned`
    #[arg(long, value_name = "X", help_heading = "Gates", allow_negative_numbers = true)]
    pub decay: Option<GateSetting>,
    /// Added to the logit of θ = exp(−15 · sigmoid(logit)): a larger logit is a SMALLER rate
    #[arg(long, value_name = "B", help_heading = "Gates", allow_negative_numbers = true)]
    pub learning_rate_bias: Option<f64>,
    /// Added to the logit of η = sigmoid(logit)
    #[arg(long, value_name = "B", help_heading = "Gates", allow_negative_numbers = true)]
    pub momentum_bias: Option<f64>,
    /// Added to the logit of α = sigmoid(logit)
    #[arg(long, value_name = "B", help_heading = "Gates", allow_negative_numbers = true)]
    pub decay_bias: Option<f64>,

    /// Read chunk by chunk, one chunk behind, while storing the same sequence: forward(seq) of the module in PyTorch
    #[arg(long, help_heading = "Online", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub online: Option<bool>,
    /// Store this sequence while reading SEQ: forward(seq, store_seq); implies --online
    #[arg(long, value_name = "STORE.npy", help_heading = "Online")]
    pub store_seq: Option<PathBuf>,
    /// Also compute loss_before and loss_after (two more reads a chunk)
    #[arg(long, help_heading = "Online", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub probe: Option<bool>,

    /// Leave loss_before and loss_after out (two reads a chunk less)
    #[arg(long, help_heading = "Run", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub no_probe: Option<bool>,
    /// Element type of computation and results [default: f32]
    #[arg(long, value_enum, help_heading = "Run", hide_possible_values = true, value_name = "f32|f64")]
    pub dtype: Option<ElementType>,
    /// Threads; results are the same for any number [default: one per core]
    #[arg(long, value_name = "N", help_heading = "Run", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub threads: Option<usize>,
    /// Let NaN and infinity in inputs through to the divergence check
    #[arg(long, help_heading = "Run", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub allow_nonfinite: Option<bool>,
    /// Run the engine N more times for timing: wall_s.engine of run.json is then the median
    #[arg(long, value_name = "N", help_heading = "Run", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub repeat: Option<usize>,

    /// Folder for the results; must not exist [default: results/INPUT-COMMAND, of the input's stem]
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub out: Option<PathBuf>,
    /// Mark changes of topic and repeats in the figures: columns position, segment, optionally repeat
    #[arg(long, value_name = "FILE.csv", help_heading = "Output")]
    pub labels: Option<PathBuf>,
    /// Draw no figures
    #[arg(long, help_heading = "Output", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub no_plots: Option<bool>,
}

/// Negative numbers come here too, for a better message than that of an unknown flag.
fn whole<N: FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_| "expected a whole number".to_owned())
}

/// A gate as typed: a number pins it, `learned` leaves it to its layer.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "toml::Value")]
pub enum GateSetting {
    /// By the gate layer.
    Learned,
    /// To this value.
    Pinned(f64),
}

impl FromStr for GateSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "learned" => Ok(Self::Learned),
            number => number.parse().map(Self::Pinned).map_err(|_| "expected a number or `learned`".into()),
        }
    }
}

impl TryFrom<toml::Value> for GateSetting {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::Float(number) => Ok(Self::Pinned(number)),
            toml::Value::Integer(number) => Ok(Self::Pinned(number as f64)),
            toml::Value::String(text) => text.parse(),
            _ => Err("expected a number or \"learned\"".into()),
        }
    }
}

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
    /// Whether figures are drawn.
    pub plots: bool,
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
    /// Drawn at random, once the width of the tokens is known.
    Drawn {
        /// Heads.
        heads: usize,
        /// Width of a head; `None` is dim / heads.
        dim_head: Option<usize>,
        /// Norms before storing and reading.
        pre_norm: bool,
        /// Norm of what was read.
        post_norm: bool,
        /// How the memory weights are drawn.
        init: Init,
        /// Of the random numbers.
        seed: u64,
    },
}

/// What was said of one gate.
#[derive(Clone, Copy, Debug)]
struct GateLayer {
    flag: &'static str,
    pin: Option<GateSetting>,
    bias: Option<f64>,
}

/// More is a slip of the keyboard.
const MOST_THREADS: usize = 1024;

/// Chunk size of a memory drawn without one.
const DRAWN_CHUNK_SIZE: usize = 16;

impl Settings {
    /// Reads a TOML file. Relative paths in it are relative to its folder.
    pub fn from_toml(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        let mut settings: Self = toml::from_str(&text).map_err(|error| explain_toml(path, &text, &error))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let files = [
            &mut settings.data,
            &mut settings.memory,
            &mut settings.past,
            &mut settings.store_seq,
            &mut settings.out,
            &mut settings.labels,
        ];
        for file in files.into_iter().flatten().filter(|file| **file != Path::new("-")) {
            *file = folder.join(&*file);
        }
        Ok(settings)
    }

    /// These settings, with those of `other` where these say nothing. A pin here also overrides a bias there, and the
    /// reverse; a memory here makes what is said there of drawing one void.
    #[must_use]
    pub fn or(self, mut other: Self) -> Self {
        for (pin, bias, other_pin, other_bias) in [
            (
                self.learning_rate,
                self.learning_rate_bias,
                &mut other.learning_rate,
                &mut other.learning_rate_bias,
            ),
            (self.momentum, self.momentum_bias, &mut other.momentum, &mut other.momentum_bias),
            (self.decay, self.decay_bias, &mut other.decay, &mut other.decay_bias),
        ] {
            if pin.is_some() || bias.is_some() {
                (*other_pin, *other_bias) = (None, None);
            }
        }
        if self.online == Some(false) {
            other.store_seq = None;
        }
        if self.memory.is_some() && other.memory.is_none() {
            (other.heads, other.dim_head, other.init, other.seed) = (None, None, None, None);
            (other.no_pre_norm, other.no_post_norm) = (None, None);
        }
        macro_rules! each {
            ($($field:ident),* $(,)?) => { Self { $($field: self.$field.or(other.$field)),* } };
        }
        each!(
            data,
            memory,
            chunk_size,
            heads,
            dim_head,
            init,
            seed,
            no_pre_norm,
            no_post_norm,
            past,
            restart_momentum,
            learning_rate,
            momentum,
            decay,
            learning_rate_bias,
            momentum_bias,
            decay_bias,
            online,
            store_seq,
            probe,
            no_probe,
            dtype,
            threads,
            allow_nonfinite,
            repeat,
            out,
            labels,
            no_plots,
        )
    }

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
        unused("--labels", !online && self.labels.is_some(), with)?;
        unused("--restart-momentum", !online && self.restart_momentum == Some(true), with)?;
        for layer in self.gates() {
            unused(layer.flag, !online && layer.pin.is_some(), with)?;
            unused(&format!("{}-bias", layer.flag), !online && layer.bias.is_some(), with)?;
        }
        Ok(())
    }

    fn is_online(&self) -> bool {
        self.online.unwrap_or(self.store_seq.is_some())
    }

    fn gates(&self) -> [GateLayer; 3] {
        [
            GateLayer { flag: "--learning-rate", pin: self.learning_rate, bias: self.learning_rate_bias },
            GateLayer { flag: "--momentum", pin: self.momentum, bias: self.momentum_bias },
            GateLayer { flag: "--decay", pin: self.decay, bias: self.decay_bias },
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
        if let Some(threads) = self.threads.filter(|threads| *threads > MOST_THREADS) {
            return Err(Error::setting("--threads", format!("at most {MOST_THREADS}"), threads.to_string()));
        }
        for (flag, number) in
            [("--threads", self.threads), ("--heads", self.heads), ("--dim-head", self.dim_head)]
        {
            if number == Some(0) {
                return Err(Error::setting(flag, "at least 1", "0"));
            }
        }
        if let Some(chunk_size @ 0..2) = self.chunk_size {
            let expected = "at least 2 (a token of the attention memory looks back within its chunk)";
            return Err(Error::setting("--chunk-size", expected, chunk_size.to_string()));
        }
        for layer in self.gates() {
            layer.check()?;
        }
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
            dtype: self.dtype.unwrap_or_default(),
            threads: self.threads,
            allow_nonfinite: self.allow_nonfinite.unwrap_or(false),
            repeat: self.repeat.unwrap_or(0),
            labels: self.labels.filter(|_| mode != Mode::Read),
            file: None,
            plots: mode != Mode::Read && !self.no_plots.unwrap_or(false),
            store_seq: self.store_seq.filter(|_| mode == Mode::Online),
            data,
            out,
        })
    }

    fn memory_source(&self) -> Result<MemorySource> {
        let Some(path) = self.memory.clone() else {
            return Ok(MemorySource::Drawn {
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
        let Self { flag, pin, bias } = *self;
        match (pin, bias) {
            (Some(GateSetting::Pinned(value)), _) if !(value >= 0.0 && value.is_finite()) => {
                Err(Error::setting(flag, "a finite number of 0 or more", value.to_string()))
            }
            (Some(GateSetting::Pinned(value)), Some(_)) => {
                let expected = format!("a gate that is not pinned ({flag} learned frees it)");
                Err(Error::setting(format!("{flag}-bias"), expected, format!("{flag} {value}")))
            }
            (_, Some(bias)) if !bias.is_finite() => {
                Err(Error::setting(format!("{flag}-bias"), "a finite number", bias.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// This layer over a saved memory's gate.
    fn over(&self, saved: Gate) -> Result<Gate> {
        Ok(match (self.pin, self.bias, saved) {
            (Some(GateSetting::Pinned(value)), ..) => Gate::Pinned(value),
            (Some(GateSetting::Learned), bias, _) => Gate::Learned(bias.unwrap_or(0.0)),
            (None, Some(_), Gate::Pinned(value)) => {
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
            (None, None, MemorySource::Drawn { .. }) => Ok(DRAWN_CHUNK_SIZE),
            (None, None, MemorySource::File { path, .. }) => {
                let expected =
                    "the chunk size that the parameters were trained with (no file of parameters tells)";
                Err(Error::setting("--chunk-size", expected, format!("none for {}", path.display())))
            }
        }
    }
}

impl MemorySource {
    /// Sizes of a drawn memory for tokens of width `dim`; `None` for a file.
    pub fn drawn(&self, dim: usize) -> Result<Option<(Dimensions, Init, u64)>> {
        let &Self::Drawn { heads, dim_head, pre_norm, post_norm, init, seed } = self else { return Ok(None) };
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

/// One line: file, line, what is wrong, and for an unknown key the nearest known one.
fn explain_toml(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
    let message = error.message().replace('\n', ", ");
    let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'));
    let Some((key, rest)) = unknown else {
        let message = ["usize", "u64"].iter().fold(message, |text, of| text.replace(of, "a whole number"));
        return Error::file(path, "settings in TOML", format!("this in line {line}: {message}"));
    };
    let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    let near = known
        .iter()
        .map(|known| (strsim::jaro_winkler(key, known), known))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or(String::new(), |(_, known)| format!(" (did you mean `{known}`?)"));
    Error::file(path, "a known setting", format!("`{key}` in line {line}{near}"))
}
