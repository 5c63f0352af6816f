//! Settings of `nmem train`, checked against each other and those of the memory that is trained.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Command, Config, RecallFiles, Settings, TrainSettings};
use crate::error::{Error, Result};

/// Answers that the memory learns to give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// The next token.
    #[default]
    Next,
    /// The token itself; with `visible`, its hidden coordinates.
    Reconstruct,
    /// The value of a query, from --target.
    Value,
}

/// Map from what is read to an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OutputHead {
    /// A linear layer with bias, learned too.
    Linear,
    /// The identity: the last columns of what is read, where targets are narrower.
    None,
}

/// Loss of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum OuterLoss {
    /// Mean over tokens and columns of (answer − target)².
    #[default]
    MeanSquare,
    /// Mean over tokens of −log softmax of the answer's products with all candidates, at the right one.
    CrossEntropy,
}

/// Settings of the training, checked, with all defaults filled in.
#[derive(Clone, Debug, Serialize)]
pub struct TrainConfig {
    /// Right answers of reads.
    pub objective: Objective,
    /// Map from what is read to an answer.
    pub output_head: OutputHead,
    /// Loss of an answer.
    pub outer_loss: OuterLoss,
    /// Coordinates that queries see; `None` is all.
    pub visible: Option<Vec<usize>>,
    /// Tokens of each example that have no loss; `None` are those that read zeros.
    pub skip: Option<usize>,
    /// Tokens of an example; `None` is a whole sequence.
    pub window: Option<usize>,
    /// Composition of windows.
    #[serde(flatten)]
    pub passages: Option<Passages>,
    /// Files and rule of the validation.
    #[serde(skip)]
    pub validation: Validation,
    /// Share of the sequences, or of the tokens of a single one, for validation.
    pub validation_split: f64,
    /// Steps between validations; `None` is a twentieth of all.
    pub validate_every: Option<usize>,
    /// Validations without a new best after which training ends.
    pub patience: Option<usize>,
    /// Number of steps.
    pub length: Length,
    /// Examples of a step.
    pub batch: usize,
    /// Optimiser.
    #[serde(flatten)]
    pub adam: Adam,
    /// Decay of the moving average that is validated and kept; `None` keeps what is learned itself.
    pub ema_decay: Option<f64>,
    /// Tokens after whose multiples gradients are cut off.
    pub truncate: Option<usize>,
    /// Starting values of a random memory.
    #[serde(flatten)]
    pub start: Start,
    /// Seed of examples, and of a random memory.
    pub seed: u64,
    /// Seconds between checkpoints.
    #[serde(skip)]
    pub checkpoint_every: f64,
}

/// Length of a training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Length {
    /// A number of steps.
    Steps(usize),
    /// A number of passes over all sequences.
    Epochs(usize),
}

/// Composition of windows from passages.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Passages {
    /// File of blocks.
    #[serde(skip)]
    pub blocks: PathBuf,
    /// Fewest tokens of a passage.
    pub passage_min: usize,
    /// Most tokens of a passage.
    pub passage_max: usize,
    /// Divisor of their lengths; `None` is the chunk size.
    pub passage_step: Option<usize>,
    /// Chance that a passage is an earlier one again.
    pub passage_repeat: f64,
}

/// Files of the validation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Validation {
    /// Sequences that are read.
    pub data: Option<PathBuf>,
    /// Sequences that are stored meanwhile.
    pub store: Option<PathBuf>,
    /// Right answers.
    pub target: Option<PathBuf>,
    /// Examples made of rows of `data`.
    pub layouts: Option<PathBuf>,
}

/// Settings of AdamW (arXiv 1711.05101) and its schedule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Adam {
    /// Learning rate after the warm-up.
    pub rate: f64,
    /// Steps over which it rises.
    pub warmup: usize,
    /// Share of it that the cosine ends at.
    pub final_rate: f64,
    /// Factor of the rate for gate layers.
    pub gate_rate: f64,
    /// Factor of the rate for memory weights.
    pub memory_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Weight decay of gate layers.
    pub gate_weight_decay: f64,
    /// Weight decay of memory weights.
    pub memory_weight_decay: f64,
    /// Weight decay of norms.
    pub norm_weight_decay: f64,
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε.
    pub adam_epsilon: f64,
    /// Largest norm of a gradient.
    pub clip: Option<f64>,
}

/// Starting values of a random memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Start {
    /// Factors of the memory weights: none, one for all, or one each.
    pub memory_scale: Vec<f64>,
    /// Multiples of the identity added to them.
    pub memory_identity: Vec<f64>,
    /// Whether the projection of queries starts as that of keys.
    pub tie_queries: bool,
    /// Factor of the gate layers.
    pub gate_scale: f64,
    /// Coordinate that is 1 in every token.
    pub constant: Option<usize>,
    /// θ, η and α that the gates start at: none, one for all heads, or one each.
    pub start_learning_rate: Vec<f64>,
    /// See `start_learning_rate`.
    pub start_momentum: Vec<f64>,
    /// See `start_learning_rate`.
    pub start_decay: Vec<f64>,
}

impl Start {
    /// Returns the flag of the first setting that changes a random memory.
    fn changes(&self) -> Option<&'static str> {
        [
            ("--memory-scale", !self.memory_scale.is_empty()),
            ("--memory-identity", !self.memory_identity.is_empty()),
            ("--tie-queries", self.tie_queries),
            ("--gate-scale", (self.gate_scale - 1.0).abs() > 0.0),
            ("--constant", self.constant.is_some()),
            ("--start-learning-rate", !self.start_learning_rate.is_empty()),
            ("--start-momentum", !self.start_momentum.is_empty()),
            ("--start-decay", !self.start_decay.is_empty()),
        ]
        .into_iter()
        .find_map(|(flag, changes)| changes.then_some(flag))
    }
}

impl TrainSettings {
    /// Checks the settings against each other and those of the memory.
    ///
    /// # Errors
    /// A value out of its range, and settings that exclude each other.
    pub fn validate(self, settings: Settings) -> Result<(Config, TrainConfig)> {
        self.check_numbers()?;
        let has_target = settings.target.is_some();
        let objective = self.objective.unwrap_or(if has_target { Objective::Value } else { Objective::Next });
        let is_value = objective == Objective::Value;
        let default_head = if is_value { OutputHead::None } else { OutputHead::Linear };
        let outer_loss = self.outer_loss.unwrap_or_default();
        self.check_objective(&settings, is_value, outer_loss)?;
        self.check_examples(is_value)?;
        self.check_validation(&settings, is_value)?;
        let weight_decay = self.weight_decay.unwrap_or(0.0);
        let train = TrainConfig {
            objective,
            output_head: self.output_head.unwrap_or(default_head),
            outer_loss,
            visible: self.visible,
            skip: self.skip,
            window: self.window,
            passages: self.blocks.map(|blocks| Passages {
                blocks,
                passage_min: self.passage_min.unwrap_or(32),
                passage_max: self.passage_max.unwrap_or(96),
                passage_step: self.passage_step,
                passage_repeat: self.passage_repeat.unwrap_or(0.0),
            }),
            validation: Validation {
                data: self.validation,
                store: self.validation_store,
                target: self.validation_target,
                layouts: self.validation_layouts,
            },
            validation_split: self.validation_split.unwrap_or(0.0),
            validate_every: self.validate_every,
            patience: self.patience,
            length: self.epochs.map_or(Length::Steps(self.steps.unwrap_or(1000)), Length::Epochs),
            batch: self.batch.unwrap_or(1),
            adam: Adam {
                rate: self.rate.unwrap_or(1e-3),
                warmup: self.warmup.unwrap_or(0),
                final_rate: self.final_rate.unwrap_or(0.0),
                gate_rate: self.gate_rate.unwrap_or(1.0),
                memory_rate: self.memory_rate.unwrap_or(1.0),
                weight_decay,
                gate_weight_decay: self.gate_weight_decay.unwrap_or(weight_decay),
                memory_weight_decay: self.memory_weight_decay.unwrap_or(weight_decay),
                norm_weight_decay: self.norm_weight_decay.unwrap_or(0.0),
                beta1: self.beta1.unwrap_or(0.9),
                beta2: self.beta2.unwrap_or(0.999),
                adam_epsilon: self.adam_epsilon.unwrap_or(1e-8),
                clip: self.clip,
            },
            ema_decay: self.ema_decay,
            truncate: self.truncate,
            start: Start {
                memory_scale: self.memory_scale.unwrap_or_default(),
                memory_identity: self.memory_identity.unwrap_or_default(),
                tie_queries: self.tie_queries.unwrap_or(false),
                gate_scale: self.gate_scale.unwrap_or(1.0),
                constant: self.constant,
                start_learning_rate: self.start_learning_rate.unwrap_or_default(),
                start_momentum: self.start_momentum.unwrap_or_default(),
                start_decay: self.start_decay.unwrap_or_default(),
            },
            seed: settings.seed.unwrap_or(0),
            checkpoint_every: self.checkpoint_every.unwrap_or(30.0),
        };
        if let Some(flag) = train.start.changes().filter(|_| settings.memory.is_some()) {
            let reason = "applies to a random memory only; omit it or --memory";
            return Err(Error::rejected(flag, reason));
        }
        let mut memory_only = settings;
        // The seed of examples may also be given with a file.
        if memory_only.memory.is_some() {
            memory_only.seed = None;
        }
        memory_only.online = Some(true);
        let config = memory_only.validate(Command::Train)?;
        Ok((config, train))
    }

    fn check_objective(&self, settings: &Settings, is_value: bool, outer_loss: OuterLoss) -> Result<()> {
        let reject = |flag: &str, reason: &str| Err(Error::rejected(flag, reason));
        if is_value != settings.target.is_some() {
            return if is_value {
                reject("--objective value", "needs what should be read; add --target FILE.npy")
            } else {
                reject(
                    "--target",
                    "needs --objective value; the other objectives take targets from the tokens",
                )
            };
        }
        let has_candidates = settings.candidates.is_some();
        if outer_loss == OuterLoss::CrossEntropy && !has_candidates {
            return reject(
                "--outer-loss cross-entropy",
                "needs the possible answers; add --candidates FILE.npy",
            );
        }
        if has_candidates && outer_loss != OuterLoss::CrossEntropy {
            return reject(
                "--candidates",
                "has no effect without --outer-loss cross-entropy; add that, or omit it",
            );
        }
        if is_value && self.visible.is_some() {
            return reject(
                "--visible",
                "hides coordinates of tokens; use it with --objective next or reconstruct",
            );
        }
        if !is_value && settings.store_seq.is_some() {
            return reject(
                "--store-seq",
                "has an effect with --objective value only; other objectives store what they read",
            );
        }
        Ok(())
    }

    fn check_examples(&self, is_value: bool) -> Result<()> {
        let reject = |flag: &str, reason: &str| Err(Error::rejected(flag, reason));
        if self.steps.is_some() && self.epochs.is_some() {
            return reject("--epochs", "cannot be combined with --steps; omit one of the two");
        }
        if self.blocks.is_some() && (is_value || self.window.is_none()) {
            let reason =
                "composes windows of tokens; use it with --window, and --objective next or reconstruct";
            return reject("--blocks", reason);
        }
        if is_value && self.window.is_some() {
            return reject(
                "--window",
                "cannot cut queries from their targets; omit it with --objective value",
            );
        }
        if self.epochs.is_some() && self.window.is_some() {
            return reject("--epochs", "has no meaning for random windows; use --steps");
        }
        let of_passages = [
            ("--passage-min", self.passage_min.is_some()),
            ("--passage-max", self.passage_max.is_some()),
            ("--passage-step", self.passage_step.is_some()),
            ("--passage-repeat", self.passage_repeat.is_some()),
        ];
        if let Some((flag, _)) = of_passages.iter().find(|(_, given)| *given && self.blocks.is_none()) {
            return reject(flag, "composes windows of passages; add --blocks FILE.csv");
        }
        Ok(())
    }

    fn check_validation(&self, settings: &Settings, is_value: bool) -> Result<()> {
        let reject = |flag: &str, reason: &str| Err(Error::rejected(flag, reason));
        let without_data = [
            ("--validation-store", self.validation_store.is_some()),
            ("--validation-target", self.validation_target.is_some()),
            ("--validation-layouts", self.validation_layouts.is_some()),
        ];
        if let Some((flag, _)) = without_data.iter().find(|(_, given)| *given && self.validation.is_none()) {
            return reject(flag, "needs --validation FILE.npy");
        }
        if is_value && self.validation_layouts.is_some() {
            return reject(
                "--validation-layouts",
                "cannot lay out queries with their targets; omit it with --objective value",
            );
        }
        let splits = self.validation_split.is_some_and(|share| share > 0.0);
        if self.validation.is_some() && splits {
            return reject("--validation-split", "cannot be combined with --validation; omit one of the two");
        }
        if self.blocks.is_some() && splits {
            let reason = "would keep back tokens that --blocks names; pass --validation FILE.npy";
            return reject("--validation-split", reason);
        }
        if self.validation.is_some() && is_value {
            if self.validation_target.is_none() {
                return reject("--validation", "needs what should be read; add --validation-target FILE.npy");
            }
            if self.validation_store.is_some() != settings.store_seq.is_some() {
                return reject("--validation-store", "is needed exactly if --store-seq is given");
            }
        } else if let Some((flag, _)) = without_data[..2].iter().find(|(_, given)| *given) {
            return reject(flag, "has an effect with --objective value only");
        }
        let has_validation = self.validation.is_some() || splits;
        let of_validation =
            [("--validate-every", self.validate_every.is_some()), ("--patience", self.patience.is_some())];
        if let Some((flag, _)) = of_validation.iter().find(|(_, given)| *given && !has_validation) {
            return reject(flag, "needs --validation FILE.npy or --validation-split X");
        }
        Ok(())
    }

    /// Rejects numbers outside their ranges.
    fn check_numbers(&self) -> Result<()> {
        let positive = [
            ("--window", self.window),
            ("--passage-min", self.passage_min),
            ("--passage-max", self.passage_max),
            ("--passage-step", self.passage_step),
            ("--validate-every", self.validate_every),
            ("--patience", self.patience),
            ("--steps", self.steps),
            ("--epochs", self.epochs),
            ("--batch", self.batch),
        ];
        if let Some((flag, _)) = positive.iter().find(|(_, number)| *number == Some(0)) {
            return Err(Error::setting(*flag, "at least 1", "0"));
        }
        let below = |flag, value: Option<f64>, most: f64, expected: &str| match value {
            Some(x) if !(0.0..=most).contains(&x) => Err(Error::setting(flag, expected, x.to_string())),
            _ => Ok(()),
        };
        for (flag, share) in [("--final-rate", self.final_rate), ("--passage-repeat", self.passage_repeat)] {
            below(flag, share, 1.0, "a number from 0 to 1")?;
        }
        for (flag, share) in [
            ("--validation-split", self.validation_split),
            ("--beta1", self.beta1),
            ("--beta2", self.beta2),
            ("--ema-decay", self.ema_decay),
        ] {
            below(flag, share, 1.0_f64.next_down(), "a number from 0 to below 1")?;
        }
        for (flag, number) in [
            ("--rate", self.rate),
            ("--gate-rate", self.gate_rate),
            ("--memory-rate", self.memory_rate),
            ("--weight-decay", self.weight_decay),
            ("--gate-weight-decay", self.gate_weight_decay),
            ("--memory-weight-decay", self.memory_weight_decay),
            ("--norm-weight-decay", self.norm_weight_decay),
            ("--adam-epsilon", self.adam_epsilon),
            ("--clip", self.clip),
            ("--checkpoint-every", self.checkpoint_every),
        ] {
            below(flag, number, f64::MAX, "a finite number of at least 0")?;
        }
        let lists = [
            ("--memory-scale", &self.memory_scale),
            ("--memory-identity", &self.memory_identity),
            ("--start-learning-rate", &self.start_learning_rate),
            ("--start-momentum", &self.start_momentum),
            ("--start-decay", &self.start_decay),
        ];
        for (flag, list) in lists {
            if let Some(x) = list.iter().flatten().find(|x| !x.is_finite()) {
                return Err(Error::setting(flag, "finite numbers", x.to_string()));
            }
        }
        if let Some(scale) = self.gate_scale.filter(|scale| !scale.is_finite()) {
            return Err(Error::setting("--gate-scale", "a finite number", scale.to_string()));
        }
        if self.adam_epsilon == Some(0.0) {
            return Err(Error::setting("--adam-epsilon", "a number above 0", "0"));
        }
        let starts = [&self.start_learning_rate, &self.start_momentum, &self.start_decay];
        if self.constant.is_some() && starts.iter().all(|list| list.is_none()) {
            let reason =
                "has no effect without --start-learning-rate, --start-momentum or --start-decay; add one";
            return Err(Error::rejected("--constant", reason));
        }
        Ok(())
    }
}

impl Config {
    /// Returns the configuration of a validation: the same memory, other files.
    pub(crate) fn for_validation(&self, files: &Validation) -> Option<Self> {
        let data = files.data.clone()?;
        let recall = files.target.clone().map(|target| RecallFiles {
            target,
            candidates: self.recall.as_ref().and_then(|recall| recall.candidates.clone()),
            old_target: None,
            top_k: self.recall.as_ref().map_or(1, |recall| recall.top_k),
        });
        Some(Self { data, store_seq: files.store.clone(), recall, ..self.clone() })
    }
}
