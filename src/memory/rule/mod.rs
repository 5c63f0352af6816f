//! Update rules: what the gradient of a chunk does to the state of a memory. A rule is one file with its arithmetic on
//! vectors ([`UpdateRule`]), a name for each array of its state, and an arm in `with_rule!`.
//!
//! The state is a list of named arrays, each with one number per element of the memory weights. The first array is U: the
//! weights that are read, or what is added to the initial ones.

pub mod titans;

use pulp::Simd;
use serde::{Deserialize, Serialize};

use super::sigmoid;
use crate::real::Real;

/// Coefficients of one chunk, in all lanes.
#[derive(Clone, Copy)]
pub struct Coefficients<T: Real, S: Simd> {
    /// −θ
    pub minus_rate: T::Vector<S>,
    /// η
    pub momentum: T::Vector<S>,
    /// 1 − α
    pub keep: T::Vector<S>,
}

/// A rule's arithmetic on one vector of each array.
pub trait UpdateRule: Copy + Send + Sync + 'static {
    /// One value per array: `[V; N]`.
    type State<V>: AsRef<[V]> + AsMut<[V]>;
    /// Whether U holds whole weights, rather than what is added to the initial ones.
    const WEIGHTS: bool;

    /// Creates a state from the value of each array.
    fn load<V>(of: impl FnMut(usize) -> V) -> Self::State<V>;

    /// Advances the state by the gradient g of a chunk. Returns S, what was added to U.
    fn step<T: Real, S: Simd>(
        simd: S,
        by: Coefficients<T, S>,
        g: T::Vector<S>,
        state: &mut Self::State<T::Vector<S>>,
    ) -> T::Vector<S>;
}

/// Evaluates an expression with `$rule` as the type of a [`Rule`]'s arithmetic.
macro_rules! with_rule {
    ($of:expr, $rule:ident => $call:expr) => {{
        use $crate::memory::rule::DecayOf::{Update, Weights};
        use $crate::memory::rule::titans::{WithMomentum, WithoutMomentum};
        let of: &$crate::memory::rule::Rule = $of;
        match (of.decay_of, of.momentum) {
            (Update, true) => {
                type $rule = WithMomentum<false>;
                $call
            }
            (Weights, true) => {
                type $rule = WithMomentum<true>;
                $call
            }
            (Update, false) => {
                type $rule = WithoutMomentum<false>;
                $call
            }
            (Weights, false) => {
                type $rule = WithoutMomentum<true>;
                $call
            }
        }
    }};
}
pub(crate) use with_rule;

/// Learning rate as a function of the logit of its gate layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RateForm {
    /// θ = exp(−15 · sigmoid(logit)): a larger logit is a smaller rate (titans-pytorch 0.0.17)
    #[default]
    Exp,
    /// θ = max_rate · sigmoid(logit) (titans-pytorch 0.5.5)
    Sigmoid,
}

/// Rows that share a learning rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RatePer {
    /// One rate for a chunk, computed from the mean of its tokens.
    #[default]
    Chunk,
    /// One rate for each token. It weighs the token's loss, so that it is part of the gradient.
    Token,
}

/// Part of the weights that decays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DecayOf {
    /// The update U alone; the initial weights stay (titans-pytorch 0.0.17)
    #[default]
    Update,
    /// The whole weights, the initial ones included (the paper, titans-pytorch 0.5.5)
    Weights,
}

/// A rule with its choices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// Rate as a function of its logit.
    pub rate_form: RateForm,
    /// Factor of a rate in the form [`RateForm::Sigmoid`].
    pub max_rate: f64,
    /// Rows that share a rate.
    pub rate_per: RatePer,
    /// Whether there is momentum S.
    pub momentum: bool,
    /// Part of the weights that decays.
    pub decay_of: DecayOf,
}

impl Rule {
    /// Returns the names of the state's arrays in files.
    pub fn arrays(&self) -> &'static [&'static str] {
        match (self.decay_of, self.momentum) {
            (DecayOf::Update, true) => &["update", "momentum"],
            (DecayOf::Update, false) => &["update"],
            (DecayOf::Weights, true) => &["weights", "momentum"],
            (DecayOf::Weights, false) => &["weights"],
        }
    }

    /// Returns whether the first array holds whole weights, rather than what is added to the initial ones.
    pub fn holds_weights(&self) -> bool {
        self.decay_of == DecayOf::Weights
    }

    /// Returns θ of a logit.
    pub fn rate(&self, logit: f64) -> f64 {
        match self.rate_form {
            RateForm::Exp => (-15.0 * sigmoid(logit)).exp(),
            RateForm::Sigmoid => self.max_rate * sigmoid(logit),
        }
    }

    /// Returns the derivative of θ in its logit.
    pub fn rate_slope(&self, logit: f64) -> f64 {
        let s = sigmoid(logit);
        let slope = s * (1.0 - s);
        match self.rate_form {
            RateForm::Exp => -15.0 * slope * self.rate(logit),
            RateForm::Sigmoid => self.max_rate * slope,
        }
    }
}
