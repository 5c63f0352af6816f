//! Results of a run: the columns of results.csv after the parameters.

use serde::{Deserialize, Serialize};

use super::values::number;
use crate::config::Mode;
use crate::metrics::Summary;
use crate::plot::{LOSS_RATIO, RATIO};
use crate::recall::{Interval, RecallReport};
use crate::run::RunOutput;
use crate::train::{Ended, TrainReport};

/// Status of a run at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The run ended normally.
    Ok,
    /// The run met a non-finite value. Results are those up to there.
    Diverged,
    /// The run met the condition that stops it. Results are those up to there.
    Stopped,
    /// The run could not finish.
    Failed,
}

impl Status {
    /// Returns the name used in results.csv.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Diverged => "diverged",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

macro_rules! results {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Numbers of a run, in the order of results.csv; `None` if one does not apply.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct Results { $($(#[$doc])* pub $name: Option<f64>),* }

        impl Results {
            /// Names of the numbers.
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// Returns the values of the numbers.
            pub fn values(&self) -> impl Iterator<Item = Option<f64>> {
                [$(self.$name),*].into_iter()
            }
        }
    };
}

results! {
    /// Number of tokens stored, over all sequences. For a diverged run, those of the chunks before the divergence.
    tokens,
    /// Number of chunks stored, over all sequences.
    chunks,
    /// ℓ at W per token, mean over heads and sequences of the last chunk.
    loss_final,
    /// ℓ at W per token, mean over all chunks.
    loss_mean,
    /// ℓ at W + U just before the last chunk was stored.
    loss_before_final,
    /// ℓ at W + U just before a chunk was stored, mean over all chunks.
    loss_before_mean,
    /// ℓ at W + U just after the last chunk was stored.
    loss_after_final,
    /// ℓ at W + U just after a chunk was stored, mean over all chunks.
    loss_after_mean,
    /// ‖g‖, mean over all chunks.
    surprise_mean,
    /// θ, mean over all chunks.
    learning_rate_mean,
    /// η, mean over all chunks.
    momentum_mean,
    /// α, mean over all chunks.
    decay_mean,
    /// ‖θ g‖ of the last chunk.
    surprise_norm_final,
    /// ‖S‖ after the last chunk.
    momentum_norm_final,
    /// ‖U‖ after the last chunk.
    update_norm_final,
    /// ‖W + U‖ after the last chunk.
    weight_norm_final,
    /// First unstable chunk: see [`crate::run::RunStatistics`].
    first_unstable_chunk,
    /// Loss ratio of kept chunks, with retention: see [`crate::run::Report::retained_ratio`].
    retained_ratio,
    /// Loss ratio of chunks that were not stored: see [`crate::run::Report::unstored_ratio`].
    unstored_ratio,
    /// ℓ of an answer of zeros per token, mean over all chunks; not measured on a GPU.
    loss_zero_mean,
    /// Mean square of the error of what was read, with targets: see [`crate::recall::RecallReport`].
    recall_mean_square,
    /// Mean square of the error ÷ that of an all-zero answer.
    recall_ratio,
    /// Cosine of what was read and its target.
    recall_cosine,
    /// Explained fraction of the variance of the targets.
    recall_r2,
    /// Share of right answers among the candidates.
    recall_accuracy,
    /// Share of tokens whose right candidate is among the k nearest.
    recall_top_k_accuracy,
    /// Share of right answers among the sequence's own targets.
    recall_in_set_accuracy,
    /// Number of different answers in a sequence.
    recall_distinct_answers,
    /// Accuracy of a guess among the candidates.
    recall_chance,
    /// Accuracy where the target did not replace another value.
    recall_kept_accuracy,
    /// Accuracy where the target replaced another value.
    recall_updated_accuracy,
    /// Share of replaced values among the answers where the target replaced one.
    recall_stale,
    /// Loss of the last step of a training.
    train_loss,
    /// Lowest loss of a training's validation.
    validation,
    /// Loss of the validation at the same parameters, when nothing is stored.
    validation_without_updates,
    /// Loss of the validation of answers that are all zeros.
    validation_zero,
    /// Step of the lowest validation, or the last.
    best_step,
    /// Bytes allocated by the engine.
    engine_bytes,
    /// Tokens per second of the engine, over all sequences.
    tokens_per_s,
    /// Seconds of the whole run.
    wall_s,
}

/// Number of leading columns that do not depend on timing.
pub const UNTIMED: usize = Results::NAMES.len() - 2;

impl Results {
    /// Returns the results of a run that ended normally or diverged.
    pub fn from_output(output: &RunOutput, wall_s: f64) -> Self {
        let report = &output.report;
        let (all, last) = (&output.statistics.all(), &output.statistics.last());
        let mean = |of: &Summary, name: &str| {
            of.columns().find(|(column, _)| *column == name).map(|(_, spread)| spread.mean)
        };
        let per_token =
            |of: &Summary, name: &str| mean(of, name).map(|sum| sum / report.config.chunk_size as f64);
        let recall = report.recall.as_ref();
        let of_recall = |of: fn(&RecallReport) -> Option<Interval>| recall.and_then(of).map(|of| of.mean);
        let chunks = report.rows / report.config.dimensions.heads;
        let through = report.sequences * report.tokens.max(report.tokens_stored.unwrap_or(0));
        let rate = through as f64 / report.wall_s.engine.max(f64::MIN_POSITIVE);
        let whole = report.diverged.is_none() && report.stopped.is_none();
        let went_through = whole && report.config.mode != Mode::Read;
        Self {
            tokens: Some(if report.memory_lost || report.stopped.is_some() {
                chunks * report.config.chunk_size
            } else {
                report.sequences * report.tokens_stored.unwrap_or(0)
            } as f64),
            chunks: Some(chunks as f64),
            loss_final: per_token(last, "loss"),
            loss_mean: per_token(all, "loss"),
            loss_before_final: per_token(last, "loss_before"),
            loss_before_mean: per_token(all, "loss_before"),
            loss_after_final: per_token(last, "loss_after"),
            loss_after_mean: per_token(all, "loss_after"),
            surprise_mean: mean(all, "surprise"),
            learning_rate_mean: mean(all, "learning_rate"),
            momentum_mean: mean(all, "momentum"),
            decay_mean: mean(all, "decay"),
            surprise_norm_final: mean(last, "surprise_norm"),
            momentum_norm_final: mean(last, "momentum_norm"),
            update_norm_final: mean(last, "update_norm"),
            weight_norm_final: mean(last, "weight_norm"),
            first_unstable_chunk: output.statistics.first_unstable_chunk().map(|chunk| chunk as f64),
            retained_ratio: report.retained_ratio,
            unstored_ratio: report.unstored_ratio,
            loss_zero_mean: per_token(all, "loss_zero"),
            recall_mean_square: of_recall(|of| of.mean_square),
            recall_ratio: recall.and_then(|of| of.ratio),
            recall_cosine: of_recall(|of| of.cosine),
            recall_r2: of_recall(|of| of.r2),
            recall_accuracy: of_recall(|of| of.accuracy),
            recall_top_k_accuracy: of_recall(|of| of.top_k_accuracy),
            recall_in_set_accuracy: of_recall(|of| of.in_set_accuracy),
            recall_distinct_answers: of_recall(|of| of.distinct_answers),
            recall_chance: recall.and_then(|of| of.chance),
            recall_kept_accuracy: of_recall(|of| of.kept_accuracy),
            recall_updated_accuracy: of_recall(|of| of.updated_accuracy),
            recall_stale: of_recall(|of| of.stale),
            engine_bytes: Some(output.engine_bytes as f64),
            tokens_per_s: went_through.then_some(rate),
            wall_s: Some(wall_s),
            ..Self::default()
        }
    }

    /// Returns the results of a training.
    pub fn from_training(report: &TrainReport, wall_s: f64) -> Self {
        let rate = report.tokens as f64 / report.wall_s.train.max(f64::MIN_POSITIVE);
        Self {
            tokens: Some(report.tokens as f64),
            train_loss: report.loss,
            validation: report.validation,
            validation_without_updates: report.validation_without_updates,
            validation_zero: report.validation_zero,
            best_step: Some(report.best_step as f64),
            tokens_per_s: (report.ended != Ended::Diverged).then_some(rate),
            wall_s: Some(wall_s),
            ..Self::default()
        }
    }

    /// Whether a name is that of a number, of a quotient `a/b` of two, or the loss ratio.
    pub fn is_known(name: &str) -> bool {
        let known = |name: &str| Self::NAMES.contains(&name.trim());
        match name.split_once('/') {
            Some((over, under)) => known(over) && known(under),
            None => name == LOSS_RATIO || known(name),
        }
    }

    /// Returns a number by its name, or the quotient of two by `a/b`. `None` if one does not apply.
    pub fn get(&self, name: &str) -> Option<f64> {
        if name == LOSS_RATIO {
            return self.get(RATIO);
        }
        if let Some((over, under)) = name.split_once('/') {
            return Some(self.get(over.trim())? / self.get(under.trim())?);
        }
        self.values().nth(Self::NAMES.iter().position(|known| *known == name)?)?
    }

    /// Returns the cells of results.csv.
    pub fn cells(&self) -> impl Iterator<Item = String> {
        self.values().map(|value| value.map_or(String::new(), number))
    }
}
