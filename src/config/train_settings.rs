//! Settings of `nmem train` from the command line or a TOML file, beside those of the memory that is trained. All are optional,
//! and none is checked against the others.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use serde::{Deserialize, Deserializer};

use super::settings::{explain_toml, line_of, nearest, whole};
use super::{Objective, OuterLoss, OutputHead, Settings};
use crate::error::{Error, Result};
use crate::io::text::TextFile;

/// Settings of the training before validation.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSettings {
    /// Right answers of reads: the next token, the token itself (with --visible its hidden coordinates), or the values in
    /// --target [default: next; value with --target]
    #[arg(
        long,
        value_enum,
        help_heading = "Objective",
        hide_possible_values = true,
        value_name = "next|reconstruct|value"
    )]
    pub objective: Option<Objective>,
    /// Layer from what is read to the answer [default: linear; none with --objective value]
    #[arg(
        long,
        value_enum,
        help_heading = "Objective",
        hide_possible_values = true,
        value_name = "linear|none"
    )]
    pub output_head: Option<OutputHead>,
    /// Loss of the answers; cross-entropy is over the rows of --candidates [default: mean-square]
    #[arg(
        long,
        value_enum,
        help_heading = "Objective",
        hide_possible_values = true,
        value_name = "mean-square|cross-entropy"
    )]
    pub outer_loss: Option<OuterLoss>,
    /// Coordinates that queries see, separated by commas. The others are zeros to them: retrieve_norm.weight is 0 there, and
    /// stays 0 [default: all]
    #[arg(long, help_heading = "Objective", value_delimiter = ',', value_name = "LIST", value_parser = whole::<usize>)]
    #[serde(default, deserialize_with = "one_or_more")]
    pub visible: Option<Vec<usize>>,
    /// Tokens of each example that have no loss [default: those that read zeros before the first chunk is stored]
    #[arg(long, help_heading = "Objective", value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub skip: Option<usize>,

    /// Tokens of an example, cut at random places out of longer sequences [default: whole sequences]
    #[arg(long, help_heading = "Examples", value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub window: Option<usize>,
    /// Blocks of consecutive tokens that belong together (CSV: start, end, optionally source). An example of --window tokens
    /// is then composed of passages from random blocks, no two neighbours of one source
    #[arg(long, help_heading = "Examples", value_name = "FILE.csv")]
    pub blocks: Option<PathBuf>,
    /// Fewest tokens of a passage [default: 32]
    #[arg(long, help_heading = "Examples", value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub passage_min: Option<usize>,
    /// Most tokens of a passage [default: 96]
    #[arg(long, help_heading = "Examples", value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub passage_max: Option<usize>,
    /// Divisor of the lengths of passages, and of the place at which a window begins within its first passage [default: the
    /// chunk size]
    #[arg(long, help_heading = "Examples", value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub passage_step: Option<usize>,
    /// Chance that a passage is an earlier one of the window again [default: 0]
    #[arg(long, help_heading = "Examples", value_name = "P", allow_negative_numbers = true)]
    pub passage_repeat: Option<f64>,

    /// Sequences for validation
    #[arg(long, help_heading = "Validation", value_name = "FILE.npy")]
    pub validation: Option<PathBuf>,
    /// Sequences that are stored while those of --validation are read
    #[arg(long, help_heading = "Validation", value_name = "FILE.npy")]
    pub validation_store: Option<PathBuf>,
    /// Targets of --validation
    #[arg(long, help_heading = "Validation", value_name = "FILE.npy")]
    pub validation_target: Option<PathBuf>,
    /// Examples made of rows of --validation (CSV: layout, position, row)
    #[arg(long, help_heading = "Validation", value_name = "FILE.csv")]
    pub validation_layouts: Option<PathBuf>,
    /// Share of the sequences, or of the tokens of a single one, that is kept back at the end for validation [default: 0]
    #[arg(long, help_heading = "Validation", value_name = "X", allow_negative_numbers = true)]
    pub validation_split: Option<f64>,
    /// Steps between validations [default: a twentieth of all steps]
    #[arg(long, help_heading = "Validation", value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub validate_every: Option<usize>,
    /// End after this many validations without a new best [default: never]
    #[arg(long, help_heading = "Validation", value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub patience: Option<usize>,

    /// Steps of the optimiser [default: 1000]
    #[arg(long, help_heading = "Optimiser", value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub steps: Option<usize>,
    /// Passes over all sequences, in place of --steps
    #[arg(long, help_heading = "Optimiser", value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub epochs: Option<usize>,
    /// Examples of a step [default: 1]
    #[arg(long, help_heading = "Optimiser", value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub batch: Option<usize>,
    /// Learning rate of AdamW after the warm-up [default: 0.001]
    #[arg(long, help_heading = "Optimiser", value_name = "X", allow_negative_numbers = true)]
    pub rate: Option<f64>,
    /// Steps over which the rate rises from zero [default: 0]
    #[arg(long, help_heading = "Optimiser", value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub warmup: Option<usize>,
    /// Share of the rate that the cosine after the warm-up ends at [default: 0]
    #[arg(long, help_heading = "Optimiser", value_name = "X", allow_negative_numbers = true)]
    pub final_rate: Option<f64>,
    /// Factor of the rate for gate layers; 0 leaves them as they are [default: 1]
    #[arg(long, help_heading = "Optimiser", value_name = "X", allow_negative_numbers = true)]
    pub gate_rate: Option<f64>,
    /// Factor of the rate for the initial memory weights; 0 leaves them as they are [default: 1]
    #[arg(long, help_heading = "Optimiser", value_name = "X", allow_negative_numbers = true)]
    pub memory_rate: Option<f64>,
    /// Decoupled weight decay [default: 0]
    #[arg(long, help_heading = "Optimiser", value_name = "X", allow_negative_numbers = true)]
    pub weight_decay: Option<f64>,
    /// Weight decay of gate layers [default: that of --weight-decay]
    #[arg(long, help_heading = "Optimiser", value_name = "X", allow_negative_numbers = true)]
    pub gate_weight_decay: Option<f64>,
    /// Weight decay of the initial memory weights [default: that of --weight-decay]
    #[arg(long, help_heading = "Optimiser", value_name = "X", allow_negative_numbers = true)]
    pub memory_weight_decay: Option<f64>,
    /// Weight decay of the weights and gains of norms [default: 0]
    #[arg(long, help_heading = "Optimiser", value_name = "X", allow_negative_numbers = true)]
    pub norm_weight_decay: Option<f64>,
    /// β₁ of AdamW [default: 0.9]
    #[arg(long, help_heading = "Optimiser", value_name = "X", allow_negative_numbers = true)]
    pub beta1: Option<f64>,
    /// β₂ of AdamW [default: 0.999]
    #[arg(long, help_heading = "Optimiser", value_name = "X", allow_negative_numbers = true)]
    pub beta2: Option<f64>,
    /// ε of AdamW [default: 1e-8]
    #[arg(long, help_heading = "Optimiser", value_name = "X", allow_negative_numbers = true)]
    pub adam_epsilon: Option<f64>,
    /// Largest norm of a step's gradient; a longer one is scaled down [default: no limit]
    #[arg(long, help_heading = "Optimiser", value_name = "X", allow_negative_numbers = true)]
    pub clip: Option<f64>,
    /// Decay of an exponential moving average of what is learned, which is validated and kept in its place [default: no average]
    #[arg(long, help_heading = "Optimiser", value_name = "X", allow_negative_numbers = true)]
    pub ema_decay: Option<f64>,
    /// Cut gradients off after every N tokens, a multiple of the chunk size [default: never]
    #[arg(long, help_heading = "Optimiser", value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub truncate: Option<usize>,

    /// Factors of a random memory's weights, one for all or one each, separated by commas [default: 1]
    #[arg(
        long,
        help_heading = "Start",
        value_delimiter = ',',
        value_name = "LIST",
        allow_negative_numbers = true
    )]
    #[serde(default, deserialize_with = "one_or_more")]
    pub memory_scale: Option<Vec<f64>>,
    /// Multiples of the identity added to them, one for all or one each [default: 0]
    #[arg(
        long,
        help_heading = "Start",
        value_delimiter = ',',
        value_name = "LIST",
        allow_negative_numbers = true
    )]
    #[serde(default, deserialize_with = "one_or_more")]
    pub memory_identity: Option<Vec<f64>>,
    /// Start the projection of queries as that of keys
    #[arg(long, help_heading = "Start", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub tie_queries: Option<bool>,
    /// Factor of the random gate layers [default: 1]
    #[arg(long, help_heading = "Start", value_name = "X", allow_negative_numbers = true)]
    pub gate_scale: Option<f64>,
    /// Coordinate that is 1 in every token. Gates without biases start at their values below through it
    #[arg(long, help_heading = "Start", value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
    pub constant: Option<usize>,
    /// Learning rate θ that the gates start at, one for all heads or one each
    #[arg(
        long,
        help_heading = "Start",
        value_delimiter = ',',
        value_name = "LIST",
        allow_negative_numbers = true
    )]
    #[serde(default, deserialize_with = "one_or_more")]
    pub start_learning_rate: Option<Vec<f64>>,
    /// Momentum η that the gates start at
    #[arg(
        long,
        help_heading = "Start",
        value_delimiter = ',',
        value_name = "LIST",
        allow_negative_numbers = true
    )]
    #[serde(default, deserialize_with = "one_or_more")]
    pub start_momentum: Option<Vec<f64>>,
    /// Decay α that the gates start at
    #[arg(
        long,
        help_heading = "Start",
        value_delimiter = ',',
        value_name = "LIST",
        allow_negative_numbers = true
    )]
    #[serde(default, deserialize_with = "one_or_more")]
    pub start_decay: Option<Vec<f64>>,

    /// Seconds between checkpoints, from which an ended training resumes [default: 30]
    #[arg(long, help_heading = "Run", value_name = "SECONDS", allow_negative_numbers = true)]
    pub checkpoint_every: Option<f64>,
}

/// Reads a number, a list of them, or a text with numbers between commas, as flags have it.
fn one_or_more<'de, D, N>(deserializer: D) -> Result<Option<Vec<N>>, D::Error>
where
    D: Deserializer<'de>,
    N: Deserialize<'de> + FromStr,
{
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a number or a list of numbers")]
    enum Numbers<N> {
        One(N),
        Many(Vec<N>),
        Text(String),
    }
    match Numbers::deserialize(deserializer)? {
        Numbers::One(x) => Ok(Some(vec![x])),
        Numbers::Many(list) => Ok(Some(list)),
        Numbers::Text(text) => {
            let parse = |part: &str| part.trim().parse::<N>().map_err(|_| part.trim().to_owned());
            let numbers: Result<Vec<N>, String> = text.split(',').map(parse).collect();
            numbers.map(Some).map_err(|part| {
                let unexpected = format!("{part:?}");
                serde::de::Error::custom(format!("expected numbers between commas, got {unexpected}"))
            })
        }
    }
}

impl TrainSettings {
    /// Names of all settings.
    pub(crate) fn names() -> Vec<String> {
        let command = Self::augment_args(clap::Command::new(""));
        command.get_arguments().map(|argument| argument.get_id().to_string()).collect()
    }

    /// Reads a TOML file that holds settings of the memory and of its training. Relative paths start from the file's
    /// [directory](TextFile::directory).
    ///
    /// # Errors
    /// A file that is not TOML, an unknown key, and a value of the wrong type.
    pub fn from_toml(file: &TextFile) -> Result<(Settings, Self)> {
        let (path, text) = (file.path(), file.text()?);
        let (own, memory) = (Self::names(), Settings::names());
        let all: toml::Table = toml::from_str(text).map_err(|error| explain_toml(path, text, &error))?;
        let (mut of_training, mut others) = (toml::Table::new(), toml::Table::new());
        for (key, value) in all {
            let reject = |reason: String| {
                let place = line_of(text, &key).map_or(String::new(), |line| format!("line {line}: "));
                Error::rejected(path.display().to_string(), format!("{place}{reason}"))
            };
            let single = toml::Table::from_iter([(key.clone(), value.clone())]);
            let checked = if own.contains(&key) {
                single.try_into::<Self>().map(drop)
            } else if memory.contains(&key) {
                single.try_into::<Settings>().map(drop)
            } else {
                let near = nearest(&key, own.iter().chain(&memory).map(String::as_str));
                return Err(reject(format!("unknown setting `{key}`{near}")));
            };
            checked.map_err(|error| {
                let message = error.message().replace('\n', ", ");
                let message =
                    ["usize", "u64"].iter().fold(message, |text, of| text.replace(of, "a whole number"));
                reject(format!("{key}: {message}"))
            })?;
            let to = if own.contains(&key) { &mut of_training } else { &mut others };
            to.insert(key, value);
        }
        let mut of_training: Self = of_training.try_into().expect("each was checked");
        let mut settings: Settings = others.try_into().expect("each was checked");
        settings.start_from(file.directory());
        let files = [
            &mut of_training.blocks,
            &mut of_training.validation,
            &mut of_training.validation_store,
            &mut of_training.validation_target,
            &mut of_training.validation_layouts,
        ];
        for path in files.into_iter().flatten() {
            *path = file.directory().join(&*path);
        }
        Ok((settings, of_training))
    }

    /// Returns these settings, completed by those of `other`. A number of epochs overrides one of steps, and the reverse.
    #[must_use]
    pub fn or(self, mut other: Self) -> Self {
        if self.steps.is_some() || self.epochs.is_some() {
            (other.steps, other.epochs) = (None, None);
        }
        macro_rules! each {
            ($($field:ident,)*) => { Self { $($field: self.$field.or(other.$field),)* } };
        }
        each!(
            objective,
            output_head,
            outer_loss,
            visible,
            skip,
            window,
            blocks,
            passage_min,
            passage_max,
            passage_step,
            passage_repeat,
            validation,
            validation_store,
            validation_target,
            validation_layouts,
            validation_split,
            validate_every,
            patience,
            steps,
            epochs,
            batch,
            rate,
            warmup,
            final_rate,
            gate_rate,
            memory_rate,
            weight_decay,
            gate_weight_decay,
            memory_weight_decay,
            norm_weight_decay,
            beta1,
            beta2,
            adam_epsilon,
            clip,
            ema_decay,
            truncate,
            memory_scale,
            memory_identity,
            tie_queries,
            gate_scale,
            constant,
            start_learning_rate,
            start_momentum,
            start_decay,
            checkpoint_every,
        )
    }
}
