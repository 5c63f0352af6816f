//! The better side of each result of a sweep: stars of maps and tables, and the settings that no other beats, follow it.

use super::RATIO;

/// The side on which a result is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Less is better.
    Lower,
    /// More is better.
    Higher,
}

impl Direction {
    /// Returns the factor by which a result is multiplied so that less is better.
    pub fn sign(self) -> f64 {
        match self {
            Self::Lower => 1.0,
            Self::Higher => -1.0,
        }
    }

    /// Returns the name of the best value.
    pub(super) fn best(self) -> &'static str {
        match self {
            Self::Lower => "lowest",
            Self::Higher => "highest",
        }
    }
}

/// Returns the better side of a column of results.csv or retention.csv. Returns `None` for quotients, of which the loss ratio
/// alone has a better side, for results that describe the input or the setting, and for unknown names.
pub fn better(result: &str) -> Option<Direction> {
    let quotient = result.split_once('/').map(|(over, under)| format!("{}/{}", over.trim(), under.trim()));
    match quotient.as_deref().unwrap_or(result) {
        RATIO | "loss_ratio" | "loss_final" | "loss_mean" | "loss_before_final" | "loss_before_mean"
        | "loss_after_final" | "loss_after_mean" | "retained_ratio" | "unstored_ratio"
        | "recall_mean_square" | "train_loss" | "validation" | "recall_ratio" | "recall_stale"
        | "engine_bytes" | "wall_s" => Some(Direction::Lower),
        "recall_cosine"
        | "recall_r2"
        | "recall_accuracy"
        | "recall_top_k_accuracy"
        | "recall_in_set_accuracy"
        | "recall_kept_accuracy"
        | "recall_updated_accuracy"
        | "tokens_per_s" => Some(Direction::Higher),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Direction, better};

    #[test]
    fn accuracies_are_better_when_higher() {
        for name in ["recall_accuracy", "recall_kept_accuracy", "recall_cosine", "recall_r2", "tokens_per_s"]
        {
            assert_eq!(better(name), Some(Direction::Higher), "{name}");
        }
        for name in
            ["loss_mean", "retained_ratio", "recall_stale", "loss_ratio", "loss_before_mean / loss_mean"]
        {
            assert_eq!(better(name), Some(Direction::Lower), "{name}");
        }
        for name in ["loss_mean/tokens_per_s", "tokens", "recall_chance", "loss_zero_mean", "my_loss"] {
            assert_eq!(better(name), None, "{name}");
        }
    }
}
