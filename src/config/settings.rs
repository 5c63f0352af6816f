//! Settings from the command line or a TOML file. All are optional, and none is checked against the others.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use serde::Deserialize;
use serde::de::{self, Deserializer, Unexpected, Visitor};

use crate::cuda::DeviceChoice;
use crate::engine::Probes;
use crate::error::{Error, Result};
use crate::io::text::TextFile;
use crate::memory::loss::LossKind;
use crate::memory::model::ModelKind;
use crate::memory::operators::Activation;
use crate::memory::parameters::Init;
use crate::memory::program::{Choices, Preset, ProjectionActivation, Reads, with_choices};
use crate::memory::rule::{DecayOf, RateForm, RatePer};
use crate::plot::FigureFormat;
use crate::real::ElementType;
use crate::recall::Cue;

/// Settings of a run before validation.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Sequences: a .npy of shape (tokens, dim) or (sequences, tokens, dim), f16, f32 or f64; `-` is standard input
    #[arg(value_name = "SEQ.npy")]
    pub data: Option<PathBuf>,

    /// Parameters (a PyTorch state_dict as .safetensors or .npz) or a memory that `store` wrote [default: a random
    /// memory]
    #[arg(long, value_name = "FILE", help_heading = "Memory")]
    pub memory: Option<PathBuf>,
    /// Tokens per chunk, 1 (2 with attention) to 16384; required with parameters [default: 16 for a random memory]
    #[arg(long, value_name = "N", help_heading = "Memory", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub chunk_size: Option<usize>,
    /// Number of heads of a random memory [default: 1]
    #[arg(long, value_name = "N", help_heading = "Memory", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub heads: Option<usize>,
    /// Width of each head of a random memory [default: dim / heads]
    #[arg(long, value_name = "N", help_heading = "Memory", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub dim_head: Option<usize>,
    /// Distribution of a random memory's weights: uniform (xavier) or N(0, 1) (randn, as in titans-pytorch)
    /// [default: xavier]
    #[arg(
        long,
        value_enum,
        help_heading = "Memory",
        hide_possible_values = true,
        value_name = "xavier|randn"
    )]
    pub init: Option<Init>,
    /// Seed of a random memory [default: 0]
    #[arg(long, value_name = "N", help_heading = "Memory", value_parser = whole::<u64>, allow_negative_numbers = true)]
    #[serde(default, deserialize_with = "seed")]
    pub seed: Option<u64>,
    /// Make the random memory without the norms before storing and reading
    #[arg(long, help_heading = "Memory", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub no_pre_norm: Option<bool>,
    /// Make the random memory without the norm after reading
    #[arg(long, help_heading = "Memory", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub no_post_norm: Option<bool>,
    /// Past weights, which shift the memory weights themselves: weights.0, weights.1, …, each shaped like its weight
    #[arg(long, value_name = "FILE", help_heading = "Memory")]
    pub past: Option<PathBuf>,
    /// Continue from a saved memory with its momentum set to zero
    #[arg(long, help_heading = "Memory", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub restart_momentum: Option<bool>,

    /// Memory program to start from; the settings below change parts of it [default: titans-0.0.17]
    #[arg(
        long,
        value_enum,
        help_heading = "Program",
        hide_possible_values = true,
        value_name = "titans-0.0.17|titans-0.5.5|titans-paper"
    )]
    pub preset: Option<Preset>,
    /// Network whose weights are the memory. A file of parameters that could be `attention` or `mlp` needs it
    #[arg(
        long,
        value_enum,
        help_heading = "Program",
        hide_possible_values = true,
        value_name = "attention|attention-cosine|mlp|linear|swiglu|gated-residual|factorized"
    )]
    pub model: Option<ModelKind>,
    /// Layers of the model [default: 2; swiglu: 1]
    #[arg(long, value_name = "N", help_heading = "Program", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub depth: Option<usize>,
    /// Width of the model's hidden rows, as a multiple of dim_head [default: 4; attention-cosine: 2]
    #[arg(long, value_name = "X", help_heading = "Program", allow_negative_numbers = true)]
    pub expansion: Option<f64>,
    /// Inner width of the matrices of `factorized` [default: 32]
    #[arg(long, value_name = "N", help_heading = "Program", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub rank: Option<usize>,
    /// Factor of the scores of `attention-cosine` [default: 8]
    #[arg(long, value_name = "X", help_heading = "Program", allow_negative_numbers = true)]
    pub scale: Option<f64>,
    /// Function between the model's matrices [default: gelu]
    #[arg(long, value_enum, help_heading = "Program", hide_possible_values = true, value_name = "gelu|silu")]
    pub model_activation: Option<Activation>,
    /// Wrap the model: LayerNorm(M(x)) ∘ (γ + 1) + x, with γ among the memory weights
    #[arg(long, help_heading = "Program", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub residual_norm: Option<bool>,
    /// Loss that storing minimises, with e = M(k) − v: Σ e²/d, Σ e²/2, −⟨M(k), v⟩, Huber's loss or Σ |e|^p [default: mean-square]
    #[arg(
        long,
        value_enum,
        help_heading = "Program",
        hide_possible_values = true,
        value_name = "mean-square|half-square|inner-product|huber|p-norm"
    )]
    pub loss: Option<LossKind>,
    /// Error above which Huber's loss is linear [default: 1]
    #[arg(long, value_name = "X", help_heading = "Program", allow_negative_numbers = true)]
    pub huber_delta: Option<f64>,
    /// Exponent p of the loss p-norm, above 1 [default: 3]
    #[arg(long, value_name = "P", help_heading = "Program", allow_negative_numbers = true)]
    pub loss_power: Option<f64>,
    /// θ as a function of its logit: exp(−15 · sigmoid) or max_rate · sigmoid
    #[arg(
        long,
        value_enum,
        help_heading = "Program",
        hide_possible_values = true,
        value_name = "exp|sigmoid"
    )]
    pub rate_form: Option<RateForm>,
    /// Largest θ of the rate form `sigmoid` [default: 1; titans-paper: 0.001]
    #[arg(long, value_name = "X", help_heading = "Program", allow_negative_numbers = true)]
    pub max_rate: Option<f64>,
    /// One θ for each chunk, or one for each token, which weighs that token's loss
    #[arg(
        long,
        value_enum,
        help_heading = "Program",
        hide_possible_values = true,
        value_name = "chunk|token"
    )]
    pub rate_per: Option<RatePer>,
    /// Store without momentum
    #[arg(long, help_heading = "Program", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub no_momentum: Option<bool>,
    /// Part of the weights that decays: the update alone, or all of them with the initial ones
    #[arg(
        long,
        value_enum,
        help_heading = "Program",
        hide_possible_values = true,
        value_name = "update|weights"
    )]
    pub decay_of: Option<DecayOf>,
    /// Take gradients at the weights of every N-th token, a multiple of the chunk size; 0 never refreshes
    #[arg(long, value_name = "N", help_heading = "Program", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub refresh: Option<usize>,
    /// Pass each refresh through a learned gate: U ← W + sigmoid(g) (U − W)
    #[arg(long, help_heading = "Program", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub gated_transition: Option<bool>,
    /// Memory that an online token reads: after all chunks before its own (behind), or after all that are complete with it
    /// (complete; complete-or-zeros reads zeros before the first)
    #[arg(
        long,
        value_enum,
        help_heading = "Program",
        hide_possible_values = true,
        value_name = "behind|complete|complete-or-zeros"
    )]
    pub reads: Option<Reads>,
    /// Function of keys, values and queries after their projection
    #[arg(
        long,
        value_enum,
        help_heading = "Program",
        hide_possible_values = true,
        value_name = "none|gelu|silu"
    )]
    pub activation: Option<ProjectionActivation>,
    /// Norm keys and queries in each head
    #[arg(long, help_heading = "Program", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub qk_norm: Option<bool>,
    /// Norm what each head retrieves
    #[arg(long, help_heading = "Program", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub head_norm: Option<bool>,
    /// Gate what each head retrieves, token by token
    #[arg(long, help_heading = "Program", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub read_gate: Option<bool>,
    /// Give the gate layers biases
    #[arg(long, help_heading = "Program", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub gate_biases: Option<bool>,
    /// Give each head initial weights of its own
    #[arg(long, help_heading = "Program", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub per_head: Option<bool>,

    /// Fix the learning rate θ of every chunk or token (0 or more); `learned` frees a gate that a saved memory fixes
    #[arg(long, value_name = "X", help_heading = "Gates", allow_negative_numbers = true)]
    pub learning_rate: Option<GateSetting>,
    /// Fix the momentum η (0 or more; above 1 updates grow without bound), or `learned`
    #[arg(long, value_name = "X", help_heading = "Gates", allow_negative_numbers = true)]
    pub momentum: Option<GateSetting>,
    /// Fix the decay α (0 to 1), the fraction that each chunk forgets, or `learned`
    #[arg(long, value_name = "X", help_heading = "Gates", allow_negative_numbers = true)]
    pub decay: Option<GateSetting>,
    /// Bias added to the logit of θ. With the rate form `exp`, θ = exp(−15 · sigmoid(logit)), a larger logit gives a SMALLER
    /// rate
    #[arg(long, value_name = "B", help_heading = "Gates", allow_negative_numbers = true)]
    pub learning_rate_bias: Option<f64>,
    /// Bias added to the logit of η = sigmoid(logit)
    #[arg(long, value_name = "B", help_heading = "Gates", allow_negative_numbers = true)]
    pub momentum_bias: Option<f64>,
    /// Bias added to the logit of α = sigmoid(logit)
    #[arg(long, value_name = "B", help_heading = "Gates", allow_negative_numbers = true)]
    pub decay_bias: Option<f64>,

    /// Read while storing the same sequence, with the weights that `reads` selects (forward(seq) of the PyTorch module)
    #[arg(long, help_heading = "Online", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub online: Option<bool>,
    /// Store this sequence while reading SEQ (forward(seq, store_seq)); implies --online
    #[arg(long, value_name = "STORE.npy", help_heading = "Online")]
    pub store_seq: Option<PathBuf>,
    /// Read SEQ after all of --store-seq is stored, rather than in step with it
    #[arg(long, help_heading = "Online", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub read_after: Option<bool>,
    /// Right answers: a .npy with a row for each token of SEQ, compared with the last columns of what is read.
    /// Reports mean square, cosine, R² and accuracy, and writes recall.csv
    #[arg(long, value_name = "FILE.npy", help_heading = "Recall")]
    pub target: Option<PathBuf>,
    /// Rows among which the right answer must be found, (candidates, width) [default: the targets of each sequence]
    #[arg(long, value_name = "FILE.npy", help_heading = "Recall")]
    pub candidates: Option<PathBuf>,
    /// Values that the targets replaced, shaped like them. Rows that differ count as updated: accuracy of kept and of
    /// updated ones, and the share that is stale
    #[arg(long, value_name = "FILE.npy", help_heading = "Recall")]
    pub old_target: Option<PathBuf>,
    /// k of the top-k accuracy [default: 5]
    #[arg(long, value_name = "K", help_heading = "Recall", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub top_k: Option<usize>,
    /// Read each token alone, or together with the earlier ones of its chunk [default: single with --target, unless the
    /// run stores in step with its reads]
    #[arg(
        long,
        value_enum,
        help_heading = "Recall",
        hide_possible_values = true,
        value_name = "single|chunk"
    )]
    pub cue: Option<Cue>,
    /// Further columns of metrics.csv, separated by commas: losses (before and after storing; `store` has them anyway),
    /// gradient (its norm at the weights of the moment), read (how far storing moves what is read; online), keys (their
    /// mean cosine). Also spectrum or spectrum:K, the singular values of each update after every K-th chunk [K: 64], in
    /// spectrum.csv. Without a list: losses
    #[arg(long, help_heading = "Probes", num_args = 0..=1, require_equals = true, default_missing_value = "losses", value_name = "LIST")]
    pub probe: Option<ProbeSetting>,

    /// Skip loss_before and loss_after (two fewer reads per chunk)
    #[arg(long, help_heading = "Run", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub no_probe: Option<bool>,
    /// Keep every K-th chunk and reread it after every K-th later one, to measure what the memory still knows
    /// (retention.csv). Holds one K-th of the keys and values in memory and adds (chunks / K)² / 2 chunk reads
    #[arg(long, value_name = "K", help_heading = "Run", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub retention: Option<usize>,
    /// Compute device: cpu, cuda (the first GPU), cuda:N (as listed by `nmem devices`) or auto (a GPU if one is usable).
    /// A GPU needs a driver and a build with the feature cuda [default: cpu]
    #[arg(long, help_heading = "Run", value_name = "cpu|cuda|cuda:N|auto")]
    pub device: Option<DeviceChoice>,
    /// Element type of the computation and the results [default: f32]
    #[arg(long, value_enum, help_heading = "Run", hide_possible_values = true, value_name = "f32|f64")]
    pub dtype: Option<ElementType>,
    /// Number of threads; does not change the results [default: one per core]
    #[arg(long, value_name = "N", help_heading = "Run", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub threads: Option<usize>,
    /// Accept NaN and infinity in inputs and leave them to the divergence check
    #[arg(long, help_heading = "Run", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub allow_nonfinite: Option<bool>,
    /// Run the engine N more times for timing; wall_s.engine of run.json is then the median
    #[arg(long, value_name = "N", help_heading = "Run", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub repeat: Option<usize>,

    /// Directory for the results; must not exist [default: results/STEM-COMMAND, with the input's file stem]
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub out: Option<PathBuf>,
    /// Mark topic changes and repeats in the figures, from the columns position, segment and (optionally) repeat
    #[arg(long, value_name = "FILE.csv", help_heading = "Output")]
    pub labels: Option<PathBuf>,
    /// Skip the figures
    #[arg(long, help_heading = "Output", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub no_plots: Option<bool>,
    /// File formats of the figures, separated by commas: svg, pdf, png, pgfplots [default: svg]
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        help_heading = "Output",
        hide_possible_values = true,
        value_name = "LIST"
    )]
    pub figure_format: Option<Vec<FigureFormat>>,
}

/// Parses a whole number. Flags also pass negative numbers, for a better message than that of an unknown flag.
pub(crate) fn whole<N: FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_| "expected a whole number".to_owned())
}

/// Deserializes a whole number, or the digits of one above 2^63 − 1, TOML's largest integer.
fn seed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    struct Seed;

    impl Visitor<'_> for Seed {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("u64")
        }

        fn visit_i64<E: de::Error>(self, number: i64) -> Result<u64, E> {
            u64::try_from(number).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<u64, E> {
            Ok(number)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
            let large = text.parse().ok().filter(|&number| number > i64::MAX.unsigned_abs());
            large.ok_or_else(|| E::invalid_type(Unexpected::Str(text), &self))
        }
    }

    deserializer.deserialize_any(Seed).map(Some)
}

/// Default number of chunks from one spectrum to the next. A few thousand tokens in chunks of 16 then have some points. The four
/// weights of a head of width 64 take 8 ms each time.
const SPECTRUM_EVERY: usize = 64;

/// Probes beside the default metrics: of losses, or further ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "toml::Value")]
pub struct ProbeSetting {
    /// Whether losses before and after storing are taken in an online run.
    pub losses: bool,
    /// Further probes.
    pub others: Probes,
}

impl ProbeSetting {
    /// Losses alone.
    pub const LOSSES: Self =
        Self { losses: true, others: Probes { gradient: false, read: false, keys: false, spectrum: None } };

    /// Returns whether any probe beyond the losses is chosen.
    pub fn has_others(self) -> bool {
        self.others != Probes::default()
    }
}

impl FromStr for ProbeSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut probes = Self::default();
        for name in text.split(',') {
            match name.trim() {
                "true" | "losses" => probes.losses = true,
                "false" if text == "false" => {}
                "gradient" => probes.others.gradient = true,
                "read" => probes.others.read = true,
                "keys" => probes.others.keys = true,
                "spectrum" => probes.others.spectrum = Some(SPECTRUM_EVERY),
                other => {
                    let every = other.strip_prefix("spectrum:").ok_or_else(|| {
                        "expected losses, gradient, read, keys or spectrum, separated by commas".to_owned()
                    })?;
                    let every = every.parse().ok().filter(|&every| every > 0);
                    let expected = "expected spectrum:K, with a number of chunks K of at least 1";
                    probes.others.spectrum = Some(every.ok_or(expected)?);
                }
            }
        }
        Ok(probes)
    }
}

impl TryFrom<toml::Value> for ProbeSetting {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::Boolean(losses) => Ok(Self { losses, ..Self::default() }),
            toml::Value::String(text) => text.parse(),
            _ => Err("expected true, false or a text such as \"gradient,keys\"".into()),
        }
    }
}

/// A gate setting: a number fixes the gate, `learned` leaves it to its layer.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "toml::Value")]
pub enum GateSetting {
    /// Computed by the gate layer.
    Learned,
    /// Fixed at this value.
    Fixed(f64),
}

impl FromStr for GateSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "learned" => Ok(Self::Learned),
            number => number.parse().map(Self::Fixed).map_err(|_| "expected a number or `learned`".into()),
        }
    }
}

impl TryFrom<toml::Value> for GateSetting {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::Float(number) => Ok(Self::Fixed(number)),
            toml::Value::Integer(number) => Ok(Self::Fixed(number as f64)),
            toml::Value::String(text) => text.parse(),
            _ => Err("expected a number or \"learned\"".into()),
        }
    }
}

impl Settings {
    /// Reads settings from a TOML file. Its relative paths start from the file's [directory](TextFile::directory).
    pub fn from_toml(file: &TextFile) -> Result<Self> {
        let (path, text) = (file.path(), file.text()?);
        let mut settings: Self = toml::from_str(text).map_err(|error| explain_toml(path, text, &error))?;
        settings.start_from(file.directory());
        Ok(settings)
    }

    /// Makes relative paths start from a directory.
    pub(super) fn start_from(&mut self, directory: &Path) {
        let files = [
            &mut self.data,
            &mut self.memory,
            &mut self.past,
            &mut self.store_seq,
            &mut self.target,
            &mut self.candidates,
            &mut self.old_target,
            &mut self.out,
            &mut self.labels,
        ];
        for file in files.into_iter().flatten().filter(|file| **file != Path::new("-")) {
            *file = directory.join(&*file);
        }
    }

    /// Returns the names of all settings.
    pub(crate) fn names() -> Vec<String> {
        let command = Self::augment_args(clap::Command::new(""));
        command.get_arguments().map(|argument| argument.get_id().to_string()).collect()
    }

    /// Returns the choices of a program.
    pub fn choices(&self) -> Choices {
        macro_rules! each {
            ($($field:ident: $type:ty,)*) => { Choices { $($field: self.$field,)* } };
        }
        with_choices!(each!())
    }

    /// Returns these settings, completed by those of `other`. A fixed value here also overrides a bias there, and the
    /// reverse. A memory here discards the settings of a random memory there.
    #[must_use]
    pub fn or(self, mut other: Self) -> Self {
        for (fixed, bias, other_fixed, other_bias) in [
            (
                self.learning_rate,
                self.learning_rate_bias,
                &mut other.learning_rate,
                &mut other.learning_rate_bias,
            ),
            (self.momentum, self.momentum_bias, &mut other.momentum, &mut other.momentum_bias),
            (self.decay, self.decay_bias, &mut other.decay, &mut other.decay_bias),
        ] {
            if fixed.is_some() || bias.is_some() {
                (*other_fixed, *other_bias) = (None, None);
            }
        }
        if self.online == Some(false) {
            other.store_seq = None;
        }
        if self.memory.is_some() && other.memory.is_none() {
            (other.heads, other.dim_head, other.init, other.seed) = (None, None, None, None);
            (other.no_pre_norm, other.no_post_norm, other.preset) = (None, None, None);
        }
        macro_rules! each {
            ($($other:ident,)*; $($field:ident: $type:ty,)*) => {
                Self {
                    $($other: self.$other.or(other.$other),)*
                    $($field: self.$field.or(other.$field),)*
                }
            };
        }
        with_choices!(each!(
            data, memory, chunk_size, heads, dim_head, init, seed, no_pre_norm, no_post_norm, preset, past, restart_momentum, learning_rate, momentum, decay, learning_rate_bias, momentum_bias, decay_bias, online, store_seq, read_after, target, candidates, old_target, top_k, cue, probe, no_probe, retention, device, dtype, threads, allow_nonfinite, repeat, out, labels, no_plots, figure_format,;
        ))
    }
}

/// Explains a TOML error on one line: the file, the line, the problem and the known key nearest to an unknown one.
pub(super) fn explain_toml(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
    let message = error.message().replace('\n', ", ");
    let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'));
    let Some((key, rest)) = unknown else {
        let message = ["usize", "u64"].iter().fold(message, |text, of| text.replace(of, "a whole number"));
        return Error::rejected(path.display().to_string(), format!("line {line}: {message}"));
    };
    let near = nearest(key, rest.split('`').skip(1).step_by(2));
    Error::rejected(path.display().to_string(), format!("line {line}: unknown setting `{key}`{near}"))
}

/// Returns the line on which a key is set, counted from 1.
pub(super) fn line_of(text: &str, key: &str) -> Option<usize> {
    let is_set = |line: &str| {
        let name = line.split('=').next().unwrap_or_default().trim();
        name.trim_matches(['"', '\'']) == key
    };
    text.lines().position(is_set).map(|line| line + 1)
}

/// Returns a hint with the known name most similar to an unknown one, or an empty text if none is similar.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    known
        .into_iter()
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or(String::new(), |(_, known)| format!(" (did you mean `{known}`?)"))
}
