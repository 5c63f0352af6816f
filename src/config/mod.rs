//! Settings in two layers. [`Settings`] holds optional values from the command line or a TOML file. [`Config`] holds
//! the same values, checked against each other, and describes a run. [`TrainSettings`] and [`TrainConfig`] are those that
//! a training adds. Keys in a file are the flags' names with underscores. Flags override the file.

mod settings;
mod train;
mod train_settings;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cuda::DeviceChoice;
use crate::engine::Probes;
use crate::error::{Error, Result};
use crate::io::memory_file::MemoryFile;
use crate::memory::limits::check_chunk_size;
use crate::memory::model::ModelKind;
use crate::memory::parameters::Init;
use crate::memory::program::{Choices, Preset};
use crate::memory::{Dimensions, Gate, GateKind, Gates, Program};
use crate::plot::FigureFormat;
use crate::real::ElementType;
use crate::recall::{Cue, DEFAULT_TOP_K};
pub use settings::{GateSetting, ProbeSetting, Settings};
pub(crate) use settings::{nearest, whole};
pub use train::{Adam, Length, Objective, OuterLoss, OutputHead, Passages, Start, TrainConfig, Validation};
pub use train_settings::TrainSettings;

/// The command to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// `nmem store`
    Store,
    /// `nmem retrieve`
    Retrieve,
    /// `nmem train`
    Train,
}

impl Command {
    /// Returns the name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Retrieve => "retrieve",
            Self::Train => "train",
        }
    }
}

/// The operation on the sequences.
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

/// Settings checked against each other. Values that depend on the content of files are still open.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches")]
pub struct Config {
    /// Store, read or both.
    pub mode: Mode,
    /// The sequences.
    pub data: PathBuf,
    /// A separate sequence to store while `data` is read.
    pub store_seq: Option<PathBuf>,
    /// Whether `data` is read after everything is stored.
    pub read_after: bool,
    /// Files that say what should be read.
    pub recall: Option<RecallFiles>,
    /// Presentation of the tokens of a plain read.
    pub cue: Cue,
    /// The source of the memory.
    pub memory: MemorySource,
    /// Tokens per chunk, if given. A saved memory has its own.
    pub chunk_size: Option<usize>,
    /// Past weights.
    pub past: Option<PathBuf>,
    /// Whether momentum starts from zero.
    pub restart_momentum: bool,
    /// Chosen parts of the program.
    choices: Choices,
    /// Gate settings, which override those of a saved memory.
    gates: [GateLayer; 3],
    /// Whether ℓ is also computed before and after each chunk.
    pub probe: bool,
    /// Further probes of each chunk.
    pub probes: Probes,
    /// K, if every K-th chunk is kept and read again.
    pub retention: Option<usize>,
    /// The compute device.
    pub device: DeviceChoice,
    /// The reason why the device differs from the requested one.
    pub device_note: Option<&'static str>,
    /// Element type.
    pub dtype: ElementType,
    /// Threads; `None` is one per core.
    pub threads: Option<usize>,
    /// Whether inputs may hold NaN and infinity.
    pub allow_nonfinite: bool,
    /// Further runs of the engine, for timing.
    pub repeat: usize,
    /// Directory for the results.
    pub out: PathBuf,
    /// Labels of the tokens.
    pub labels: Option<PathBuf>,
    /// The TOML file with the settings. Replacing `out` must not delete it.
    pub file: Option<PathBuf>,
    /// SHA-256 of that file when it was read.
    pub file_sha256: String,
    /// Whether figures are drawn.
    pub plots: bool,
    /// File formats of the figures.
    pub figure_format: Vec<FigureFormat>,
}

/// Files that what is read is compared with.
#[derive(Clone, Debug)]
pub struct RecallFiles {
    /// The targets.
    pub target: PathBuf,
    /// The candidates.
    pub candidates: Option<PathBuf>,
    /// Values that the targets replaced.
    pub old_target: Option<PathBuf>,
    /// k of the top-k accuracy.
    pub top_k: usize,
}

impl RecallFiles {
    /// Yields the files with their roles.
    pub fn paths(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        let optional = [("candidates", &self.candidates), ("old_target", &self.old_target)];
        let optional = optional.into_iter().filter_map(|(role, path)| Some((role, path.as_ref()?)));
        std::iter::once(("target", &self.target)).chain(optional)
    }
}

/// The source of a memory.
#[derive(Clone, Debug)]
pub enum MemorySource {
    /// A file: parameters or a saved memory.
    File {
        /// The file.
        path: PathBuf,
        /// Number of heads, if given. It must agree with the file.
        heads: Option<usize>,
        /// Width of a head, if given. It must agree with the file.
        dim_head: Option<usize>,
    },
    /// A random memory, made once the width of the tokens is known.
    Random {
        /// Heads.
        heads: usize,
        /// Width of a head; `None` is dim / heads.
        dim_head: Option<usize>,
        /// Whether there are norms before storing and reading.
        pre_norm: bool,
        /// Whether there is a norm after reading.
        post_norm: bool,
        /// Program that the choices start from.
        preset: Preset,
        /// Distribution of the memory weights.
        init: Init,
        /// Seed of the random numbers.
        seed: u64,
    },
}

/// The settings of one gate.
#[derive(Clone, Copy, Debug)]
struct GateLayer {
    kind: GateKind,
    flag: &'static str,
    fixed: Option<GateSetting>,
    bias: Option<f64>,
}

/// Most threads; a larger number is taken for a typing error.
const MAX_THREADS: usize = 1024;

/// Most repeats: enough for a run that is meant to be stopped, and few enough for the count of tokens to fit.
const MAX_REPEAT: usize = 1 << 30;

/// Default chunk size of a random memory.
const RANDOM_CHUNK_SIZE: usize = 16;

impl Settings {
    /// Rejects flags that have no effect in this command. Keys of a configuration file are exempt, because one file may
    /// serve several commands.
    pub fn check_flags(&self, command: Command, merged: &Self) -> Result<()> {
        let online = command == Command::Retrieve && merged.is_online();
        let unused = |flag: &str, given: bool, reason: &str| {
            if given {
                Err(Error::rejected(flag, format!("no effect in `nmem {}`{reason}", command.name())))
            } else {
                Ok(())
            }
        };
        if command == Command::Train {
            let given = [
                ("--online", self.online.is_some()),
                ("--past", self.past.is_some()),
                ("--restart-momentum", self.restart_momentum.is_some()),
                ("--old-target", self.old_target.is_some()),
                ("--top-k", self.top_k.is_some()),
                ("--probe", self.probe.is_some()),
                ("--no-probe", self.no_probe.is_some()),
                ("--retention", self.retention.is_some()),
                ("--repeat", self.repeat.is_some()),
                ("--labels", self.labels.is_some()),
            ];
            if let Some(device @ DeviceChoice::Cuda(_)) = self.device {
                return Err(Error::rejected(
                    format!("--device {device}"),
                    "training runs on the CPU only; omit it",
                ));
            }
            return given.into_iter().try_for_each(|(flag, given)| unused(flag, given, "; omit it"));
        }
        if command == Command::Store {
            unused("--online", self.online == Some(true), ", which reads nothing; use `nmem retrieve`")?;
            unused(
                "--store-seq",
                self.store_seq.is_some(),
                ", which stores SEQ itself; use `nmem retrieve`",
            )?;
            for (flag, given) in self.recall_flags() {
                unused(flag, given, ", which reads nothing; use `nmem retrieve`")?;
            }
            let probe = self.probe.unwrap_or_default();
            if probe.others.read {
                let reason = "no effect in `nmem store`, which reads nothing; use `nmem retrieve --online`";
                return Err(Error::rejected("--probe=read", reason));
            }
            let only_losses = probe.losses && !probe.has_others();
            return unused("--probe", only_losses, ", which probes losses by default; omit it");
        }
        unused("--no-probe", self.no_probe == Some(true), ", which probes only with --probe; omit it")?;
        let with = " without --online, because a plain read stores nothing; add --online";
        let probes = self.probe.is_some_and(|probe| probe.losses || probe.has_others());
        unused("--probe", !online && probes, with)?;
        unused("--retention", !online && self.retention.is_some(), with)?;
        unused("--labels", !online && self.labels.is_some(), with)?;
        unused("--restart-momentum", !online && self.restart_momentum == Some(true), with)?;
        for layer in self.gates() {
            unused(layer.flag, !online && layer.fixed.is_some(), with)?;
            unused(&format!("{}-bias", layer.flag), !online && layer.bias.is_some(), with)?;
        }
        Ok(())
    }

    /// Returns the flags of `nmem retrieve` about what is read, and whether each is given.
    fn recall_flags(&self) -> [(&'static str, bool); 6] {
        [
            ("--read-after", self.read_after == Some(true)),
            ("--target", self.target.is_some()),
            ("--candidates", self.candidates.is_some()),
            ("--old-target", self.old_target.is_some()),
            ("--top-k", self.top_k.is_some()),
            ("--cue", self.cue.is_some()),
        ]
    }

    /// Returns the files that what is read is compared with, and how it is read.
    fn recall(&self, mode: Mode) -> Result<(Option<RecallFiles>, Cue)> {
        let read_after = self.read_after == Some(true);
        if read_after && self.store_seq.is_none() {
            let reason = "needs a sequence to store first; add --store-seq STORE.npy";
            return Err(Error::rejected("--read-after", reason));
        }
        let of_target = &self.recall_flags()[2..5];
        if let Some((flag, _)) = of_target.iter().find(|(_, given)| *given && self.target.is_none()) {
            return Err(Error::rejected(
                *flag,
                "needs the values that should be read; add --target FILE.npy",
            ));
        }
        if self.top_k == Some(0) {
            return Err(Error::setting("--top-k", "at least 1", "0"));
        }
        let in_step = mode == Mode::Online && !read_after;
        if in_step && self.cue == Some(Cue::Single) {
            let reason = "tokens that are read while they are stored belong to a chunk; omit --cue, or store \
                          first (--store-seq with --read-after, or `nmem store`)";
            return Err(Error::rejected("--cue single", reason));
        }
        let default = if self.target.is_some() && !in_step { Cue::Single } else { Cue::Chunk };
        let files = self.target.clone().map(|target| RecallFiles {
            target,
            candidates: self.candidates.clone(),
            old_target: self.old_target.clone(),
            top_k: self.top_k.unwrap_or(DEFAULT_TOP_K),
        });
        Ok((files, self.cue.unwrap_or(default)))
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
            Command::Train => Mode::Online,
            Command::Retrieve if self.is_online() => Mode::Online,
            Command::Retrieve => Mode::Read,
        };
        let Some(data) = self.data.clone() else {
            return Err(Error::rejected(
                "SEQ.npy",
                "no sequence; pass one, or set `data` in the --config file",
            ));
        };
        if self.online == Some(false) && self.store_seq.is_some() {
            return Err(Error::rejected(
                "--store-seq",
                "cannot be combined with --online=false; omit one of the two",
            ));
        }
        let dash = Path::new("-");
        let (recall, cue) = if mode == Mode::Store { (None, Cue::default()) } else { self.recall(mode)? };
        let compared = [self.target.as_ref(), self.candidates.as_ref(), self.old_target.as_ref()];
        let inputs = [Some(&data), self.store_seq.as_ref(), self.memory.as_ref(), self.past.as_ref()];
        let inputs = inputs.into_iter().chain(compared);
        if inputs.flatten().filter(|path| **path == dash).count() > 1 {
            return Err(Error::rejected(
                "-",
                "more than one input is standard input; pass files for the others",
            ));
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
        let in_limits = |chunk_size: usize| check_chunk_size(chunk_size, self.likely_model());
        self.chunk_size.map_or(Ok(()), in_limits).map_err(Error::limit("--chunk-size"))?;
        for layer in self.gates() {
            layer.check()?;
        }
        let retention = self.retention.filter(|_| mode != Mode::Read);
        let probe = self.probe.unwrap_or_default();
        let probes = if mode == Mode::Read { Probes::default() } else { probe.others };
        let (device, device_note) = self.device(retention.is_some(), probes != Probes::default())?;
        self.figure_format.iter().flatten().try_for_each(|format| format.check())?;
        let out = self.out.clone().unwrap_or_else(|| default_out(&data, command));
        Ok(Config {
            mode,
            gates: self.gates(),
            choices: self.choices(),
            memory: self.memory_source()?,
            chunk_size: self.chunk_size,
            past: self.past,
            restart_momentum: self.restart_momentum.unwrap_or(false),
            probe: match mode {
                Mode::Store => !self.no_probe.unwrap_or(false),
                Mode::Read => false,
                Mode::Online => probe.losses,
            },
            probes,
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
            // A plain read has a figure of its recall alone.
            plots: (mode != Mode::Read || recall.is_some()) && !self.no_plots.unwrap_or(false),
            read_after: mode == Mode::Online && self.read_after.unwrap_or(false),
            recall,
            cue,
            store_seq: self.store_seq.filter(|_| mode == Mode::Online),
            data,
            out,
        })
    }

    /// Returns the device, and the reason why it differs from the requested one.
    fn device(&self, retention: bool, probes: bool) -> Result<(DeviceChoice, Option<&'static str>)> {
        let mut device_note = None;
        let on_cpu = [
            ("--retention", retention, "--device auto: cpu, because --retention runs on the CPU only"),
            ("--probe", probes, "--device auto: cpu, because these probes run on the CPU only"),
        ];
        let device = match (self.device.unwrap_or_default(), on_cpu.into_iter().find(|(_, asked, _)| *asked))
        {
            (DeviceChoice::Auto, Some((.., note))) => {
                device_note = Some(note);
                DeviceChoice::Cpu
            }
            (choice @ DeviceChoice::Cuda(_), Some((flag, ..))) => {
                let reason = format!("cannot be combined with --device {choice}; use --device cpu");
                return Err(Error::rejected(flag, reason));
            }
            (choice, _) => choice,
        };
        Ok((device, device_note))
    }

    /// Returns the model whose limits hold before a file has been read: of a file, the one with the fewest.
    fn likely_model(&self) -> ModelKind {
        let preset = self.preset.unwrap_or_default();
        self.model.unwrap_or(match self.memory {
            Some(_) => ModelKind::Mlp,
            None => preset.program(RANDOM_CHUNK_SIZE, 1).model.kind,
        })
    }

    fn memory_source(&self) -> Result<MemorySource> {
        let Some(path) = self.memory.clone() else {
            return Ok(MemorySource::Random {
                heads: self.heads.unwrap_or(1),
                dim_head: self.dim_head,
                pre_norm: !self.no_pre_norm.unwrap_or(false),
                post_norm: match self.no_post_norm {
                    Some(without) => !without,
                    None => self.preset.unwrap_or_default() == Preset::Titans0017,
                },
                preset: self.preset.unwrap_or_default(),
                init: self.init.unwrap_or_default(),
                seed: self.seed.unwrap_or(0),
            });
        };
        let random_only = [
            ("--preset", self.preset.is_some()),
            ("--init", self.init.is_some()),
            ("--seed", self.seed.is_some()),
            ("--no-pre-norm", self.no_pre_norm == Some(true)),
            ("--no-post-norm", self.no_post_norm == Some(true)),
        ];
        match random_only.into_iter().find(|(_, given)| *given) {
            Some((flag, _)) => {
                let path = path.display();
                let reason = format!("applies to a random memory only; omit it or --memory {path}");
                Err(Error::rejected(flag, reason))
            }
            None => Ok(MemorySource::File { path, heads: self.heads, dim_head: self.dim_head }),
        }
    }
}

/// Returns the default directory of a run's results.
fn default_out(data: &Path, command: Command) -> PathBuf {
    let stem =
        if data == Path::new("-") { "stdin".as_ref() } else { data.file_stem().unwrap_or(data.as_os_str()) };
    let mut name = stem.to_os_string();
    name.push(format!("-{}", command.name()));
    Path::new("results").join(name)
}

impl GateLayer {
    fn check(&self) -> Result<()> {
        let Self { kind, flag, fixed, bias } = *self;
        if let Some(GateSetting::Fixed(value)) = fixed {
            Gate::Fixed(value).check(kind).map_err(Error::limit(flag))?;
            if bias.is_some() {
                let reason = format!("cannot be combined with {flag} {value}; omit one of the two");
                return Err(Error::rejected(format!("{flag}-bias"), reason));
            }
        }
        let bias = bias.map_or(Ok(()), |bias| Gate::Learned(bias).check(kind));
        bias.map_err(Error::limit(format!("{flag}-bias")))
    }

    /// Overrides a saved memory's gate with this layer.
    fn over(&self, saved: Gate) -> Result<Gate> {
        Ok(match (self.fixed, self.bias, saved) {
            (Some(GateSetting::Fixed(value)), ..) => Gate::Fixed(value),
            (Some(GateSetting::Learned), bias, _) => Gate::Learned(bias.unwrap_or(0.0)),
            (None, Some(_), Gate::Fixed(value)) => {
                let flag = self.flag;
                let reason = format!("the memory fixes this gate at {value}; add {flag} learned to free it");
                return Err(Error::rejected(format!("{flag}-bias"), reason));
            }
            (None, Some(bias), Gate::Learned(_)) => Gate::Learned(bias),
            (None, None, saved) => saved,
        })
    }
}

impl Config {
    /// Returns the gates: these settings over those of a saved memory.
    pub fn gates(&self, saved: Gates) -> Result<Gates> {
        let [learning_rate, momentum, decay] = &self.gates;
        Ok(Gates {
            learning_rate: learning_rate.over(saved.learning_rate)?,
            momentum: momentum.over(saved.momentum)?,
            decay: decay.over(saved.decay)?,
        })
    }

    /// Returns the program of the run: that of a saved memory, with which all choices must agree, or these choices over those
    /// of a preset or of a file of parameters.
    pub fn program(&self, file: Option<&MemoryFile>) -> Result<Program> {
        let saved = file.and_then(MemoryFile::saved).map(|saved| saved.program);
        let chunk_size = self.chunk_size(saved.map(|saved| saved.chunk_size()))?;
        let base = match (&self.memory, file, saved) {
            (.., Some(saved)) => saved,
            (_, Some(file), None) => file.raw_program(self.choices.model, chunk_size)?,
            (MemorySource::Random { heads, preset, .. }, None, None) => preset.program(chunk_size, *heads),
            (MemorySource::File { .. }, None, None) => unreachable!("a file has been opened"),
        };
        let program = self.choices.over(base).and_then(|program| program.check(None).map(|()| program));
        let program = program.map_err(with_flag)?;
        self.check_momentum(&program)?;
        let Some(file) = file else { return Ok(program) };
        let path = file.path().display();
        if let Some(saved) = saved.filter(|saved| *saved != program) {
            let of_saved: Vec<_> = Choices::from(&saved).made();
            let differs = |(name, value): &(String, serde_json::Value)| {
                !of_saved.iter().any(|(known, saved)| known == name && saved == value)
            };
            let (name, value) = self.choices.made().into_iter().find(differs).expect("a choice that differs");
            let known = of_saved.iter().find(|(known, _)| *known == name);
            let known = known.map_or("none".to_owned(), |(_, value)| plain(value));
            return Err(Error::setting(flag(&name), format!("{known}, as in {path}"), plain(&value)));
        }
        if file.dimensions().tensors(&program) != file.dimensions().tensors(&base) {
            let made = self.choices.made().into_iter();
            let flags: Vec<_> = made.map(|(name, _)| flag(&name)).filter(|name| name != "--model").collect();
            let reason = format!(
                "the parameters in {path} do not belong to such a memory; omit what adds or removes some"
            );
            return Err(Error::rejected(flags.join(", "), reason));
        }
        Ok(program)
    }

    /// Rejects settings of the momentum of a memory that has none.
    fn check_momentum(&self, program: &Program) -> Result<()> {
        if program.rule.momentum {
            return Ok(());
        }
        let set = |layer: &&GateLayer| {
            layer.kind == GateKind::Momentum && (layer.fixed.is_some() || layer.bias.is_some())
        };
        let flag = self.gates.iter().find(set).map(|layer| match layer.fixed {
            Some(_) => layer.flag.to_owned(),
            None => format!("{}-bias", layer.flag),
        });
        match flag.or_else(|| self.restart_momentum.then(|| "--restart-momentum".to_owned())) {
            Some(flag) => {
                Err(Error::rejected(flag, "the memory has no momentum; omit this or --no-momentum"))
            }
            None => Ok(()),
        }
    }

    /// Returns the chunk size, given that of a saved memory.
    pub fn chunk_size(&self, saved: Option<usize>) -> Result<usize> {
        match (self.chunk_size, saved, &self.memory) {
            (Some(given), Some(saved), _) if given != saved => {
                let expected = format!("{saved}, the chunk size of the saved memory");
                Err(Error::setting("--chunk-size", expected, given.to_string()))
            }
            (Some(size), ..) | (None, Some(size), _) => Ok(size),
            (None, None, MemorySource::Random { .. }) => Ok(RANDOM_CHUNK_SIZE),
            (None, None, MemorySource::File { path, .. }) => {
                let reason =
                    "does not record a chunk size; pass --chunk-size with the value used in training";
                Err(Error::rejected(path.display().to_string(), reason))
            }
        }
    }
}

/// Returns the flag of a setting.
fn flag(name: &str) -> String {
    format!("--{}", name.replace('_', "-"))
}

/// Formats a value without quotes.
fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Names the flag of a setting that the library rejects.
pub(crate) fn with_flag(error: Error) -> Error {
    match error {
        Error::Limit { name, outside } => Error::Limit { name: flag(&name), outside },
        Error::Rejected { subject, reason } => Error::Rejected { subject: flag(&subject), reason },
        error => error,
    }
}

impl MemorySource {
    /// Returns the sizes of a random memory for tokens of width `dim`, or `None` for a file.
    pub fn random(&self, dim: usize) -> Result<Option<(Dimensions, Init, u64)>> {
        let &Self::Random { heads, dim_head, pre_norm, post_norm, init, seed, .. } = self else {
            return Ok(None);
        };
        let dim_head = match dim_head {
            Some(dim_head) => dim_head,
            None if dim.is_multiple_of(heads) => dim / heads,
            None => {
                let reason = format!("{heads} does not divide dim {dim}; pass a divisor, or set --dim-head");
                return Err(Error::rejected("--heads", reason));
            }
        };
        Ok(Some((Dimensions { dim, heads, dim_head, pre_norm, post_norm }, init, seed)))
    }

    /// Checks that the settings given beside a file agree with it.
    pub fn check(&self, of_file: &Dimensions) -> Result<()> {
        let &Self::File { ref path, heads, dim_head } = self else { return Ok(()) };
        let pairs = [("--heads", heads, of_file.heads), ("--dim-head", dim_head, of_file.dim_head)];
        match pairs.into_iter().find(|(_, given, own)| given.is_some_and(|given| given != *own)) {
            None => Ok(()),
            Some((flag, given, own)) => {
                let expected = format!("{own}, as in {}", path.display());
                Err(Error::setting(flag, expected, given.unwrap_or(own).to_string()))
            }
        }
    }
}
