//! The memory's mathematics; start reading here. `docs/concepts/mathematics.md` has the derivation.
//!
//! Row-vector convention: a linear map is `x @ W` with `W` of shape (in, out). One legend for the paper's letters,
//! used in `memory/`, `scan/` and `engine/` only (*Titans: Learning to Memorize at Test Time*, arXiv 2501.00663):
//!
//! | letter | meaning |
//! | --- | --- |
//! | `b`, `n`, `D` | sequences, tokens, model width `dim` |
//! | `h`, `d` | heads, `dim_head`; inner width `h·d` |
//! | `c`, `N` | chunk size, number of complete chunks |
//! | `W` | memory weights at which gradients are taken (past weights included): the initial ones, or those of the last refresh |
//! | `g` | gradient of a chunk's loss in `W`: the momentary surprise |
//! | `θ`, `η`, `α` | learning rate, momentum, decay of a chunk. α is what is *forgotten*, as in Titans (MIRAS and ATLAS call α what is kept, and η what is θ here) |
//! | `S`, `U` | momentum, and update (all that was written so far): `S ← η S − θ g`, `U ← (1 − α) U + S` |
//!
//! A memory is a [`program`]: independent choices of model, loss, rule and schedule. Reading order: [`program`];
//! [`model`] (the networks whose weights are the memory), as a [`graph`] of linear maps and [`operators`]; [`loss`]; [`rule`]
//! (what a gradient does to the state); [`parameters`] (what is trained); [`state`] (what storing changes);
//! [`reference`](mod@reference) (the oracle in plain loops); [`limits`] (the accepted numbers).
//!
//! # Example
//!
//! Gates of a chunk, one of them fixed:
//!
//! ```
//! use nmem::memory::{Gate, Gates, Program};
//!
//! let rule = Program::titans_0_0_17(16).rule;
//! let gates = Gates { decay: Gate::Fixed(0.1), ..Gates::default() };
//! let values = gates.values(&rule, 0.0, 0.0, 5.0);
//! assert_eq!(values.decay, 0.1);
//! assert_eq!(values.momentum, 0.5);
//! assert!((values.learning_rate - (-7.5_f64).exp()).abs() < 1e-12);
//! ```

pub mod graph;
pub mod limits;
pub mod loss;
pub mod model;
pub mod operators;
pub mod parameters;
pub mod program;
pub mod reference;
pub mod rule;
pub mod state;

pub use loss::Loss;
pub use parameters::{Dimensions, Parameters};
pub use program::Program;
pub use state::State;

use serde::{Deserialize, Serialize};

use rule::Rule;

/// The source of the value of one of the three gates.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gate {
    /// A value computed from the chunk by the trained gate layer, with this bias added to its logit.
    Learned(f64),
    /// This value for every chunk, whatever the gate layer computes.
    #[serde(rename = "pinned")]
    Fixed(f64),
}

impl Default for Gate {
    fn default() -> Self {
        Self::Learned(0.0)
    }
}

impl Gate {
    fn resolve(self, logit: f64, squash: impl Fn(f64) -> f64) -> f64 {
        match self {
            Self::Learned(bias) => squash(logit + bias),
            Self::Fixed(value) => value,
        }
    }

    fn slope(self, logit: f64, slope: impl Fn(f64) -> f64) -> f64 {
        match self {
            Self::Learned(bias) => slope(logit + bias),
            Self::Fixed(_) => 0.0,
        }
    }
}

/// One of the three gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateKind {
    /// Learning rate θ.
    LearningRate,
    /// Momentum η.
    Momentum,
    /// Decay α.
    Decay,
}

impl GateKind {
    /// Returns the key in configuration files and metadata.
    pub fn key(self) -> &'static str {
        match self {
            Self::LearningRate => "learning_rate",
            Self::Momentum => "momentum",
            Self::Decay => "decay",
        }
    }
}

/// The sources of the three gates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gates {
    /// Learning rate θ, a function of its logit that the [rule](Rule::rate) chooses.
    pub learning_rate: Gate,
    /// Momentum η = `sigmoid(logit)`.
    pub momentum: Gate,
    /// Decay α = `sigmoid(logit)`.
    pub decay: Gate,
}

/// Values of the three gates for one chunk and head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GateValues {
    /// Learning rate θ.
    pub learning_rate: f64,
    /// Momentum η.
    pub momentum: f64,
    /// Decay α.
    pub decay: f64,
}

impl Gates {
    /// Returns each gate with its kind.
    pub fn each(&self) -> [(GateKind, Gate); 3] {
        [
            (GateKind::LearningRate, self.learning_rate),
            (GateKind::Momentum, self.momentum),
            (GateKind::Decay, self.decay),
        ]
    }

    /// Returns the gates of a chunk from the logits of the three gate layers. `step` is that of θ.
    pub fn values(&self, rule: &Rule, step: f64, momentum: f64, decay: f64) -> GateValues {
        GateValues {
            learning_rate: self.rate(rule, step),
            momentum: if rule.momentum { self.momentum.resolve(momentum, sigmoid) } else { 0.0 },
            decay: self.decay.resolve(decay, sigmoid),
        }
    }

    /// Returns the derivative of each gate in its logit; zero where the gate is fixed.
    pub fn slopes(&self, rule: &Rule, step: f64, momentum: f64, decay: f64) -> GateValues {
        let of_sigmoid = |logit: f64| sigmoid(logit) * (1.0 - sigmoid(logit));
        GateValues {
            learning_rate: self.rate_slope(rule, step),
            momentum: if rule.momentum { self.momentum.slope(momentum, of_sigmoid) } else { 0.0 },
            decay: self.decay.slope(decay, of_sigmoid),
        }
    }

    /// Returns the derivative of θ in its logit.
    pub fn rate_slope(&self, rule: &Rule, logit: f64) -> f64 {
        self.learning_rate.slope(logit, |x| rule.rate_slope(x))
    }

    /// Returns θ of a logit.
    pub fn rate(&self, rule: &Rule, logit: f64) -> f64 {
        self.learning_rate.resolve(logit, |x| rule.rate(x))
    }
}

/// The logistic function, 1 / (1 + e^−x).
pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
