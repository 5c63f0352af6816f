//! Starting values: those of a file, or random ones with the changes that make a memory learn from the first step on.

use ndarray::{Array1, Array2, s};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::objective::Head;
use crate::config::{Start, TrainConfig};
use crate::error::{Error, Result};
use crate::memory::rule::RateForm;
use crate::memory::{Gate, Gates, Parameters, Program};
use crate::real::Real;

/// Stream of the random numbers of an output head, apart from those of examples and of the memory.
const HEAD_STREAM: u64 = u64::MAX;

/// Applies the changes of [`Start`] to random parameters.
///
/// # Errors
/// Lists whose lengths do not fit the memory, and values that a gate cannot have.
pub fn apply<T: Real>(
    parameters: &mut Parameters<T>,
    program: &Program,
    of_gates: &Gates,
    start: &Start,
) -> Result<()> {
    let weights = parameters.memory.len();
    let each = |flag: &str, list: &[f64], count: usize, of: &str, default: f64| match list {
        [] => Ok(vec![default; count]),
        [one] => Ok(vec![*one; count]),
        many if many.len() == count => Ok(many.to_vec()),
        many => Err(Error::setting(
            flag,
            format!("one number, or one for each of {count} {of}"),
            many.len().to_string(),
        )),
    };
    let scales = each("--memory-scale", &start.memory_scale, weights, "memory weights", 1.0)?;
    let identities = each("--memory-identity", &start.memory_identity, weights, "memory weights", 0.0)?;
    for ((weight, scale), identity) in parameters.memory.iter_mut().zip(scales).zip(identities) {
        for mut weight in weight.outer_iter_mut() {
            weight *= T::from_f64(scale);
            weight.diag_mut().map_inplace(|x| *x += T::from_f64(identity));
        }
    }
    if start.tie_queries {
        let inner = parameters.queries.ncols();
        parameters.queries = parameters.keys_values.slice(s![.., ..inner]).as_standard_layout().into_owned();
    }
    parameters.gates *= T::from_f64(start.gate_scale);
    let heads = parameters.dimensions.heads;
    let gates = [
        ("--start-learning-rate", &start.start_learning_rate),
        ("--start-momentum", &start.start_momentum),
        ("--start-decay", &start.start_decay),
    ];
    for (i, (flag, values)) in gates.into_iter().enumerate().filter(|(_, (_, values))| !values.is_empty()) {
        let values = each(flag, values, heads, "heads", 0.0)?;
        let (kind, gate) = of_gates.each()[i];
        let bias = match gate {
            Gate::Learned(bias) => bias,
            Gate::Fixed(value) => {
                let name = kind.key().replace('_', "-");
                let reason =
                    format!("has no effect with --{name} {value}, which fixes the gate; omit one of the two");
                return Err(Error::rejected(flag, reason));
            }
        };
        if i == 1 && !program.rule.momentum {
            return Err(Error::rejected(flag, "the memory has no momentum; omit this or --no-momentum"));
        }
        for (head, value) in values.into_iter().enumerate() {
            let logit = logit(program, i == 0, value).ok_or_else(|| {
                let expected =
                    if i == 0 { "rates that the gate can have" } else { "numbers between 0 and 1" };
                Error::setting(flag, expected, value.to_string())
            })?;
            let (column, logit) = (i * heads + head, logit - bias);
            match (start.constant, &mut parameters.gate_biases) {
                (None, Some(biases)) => biases[column] = T::from_f64(logit),
                (Some(constant), _) => {
                    // The norm before storing keeps the constant near 1 in tokens of mean square 1.
                    let row = parameters.gates.get_mut([constant, column]);
                    *row.ok_or_else(|| {
                        let expected = format!("a coordinate below {}", parameters.dimensions.dim);
                        Error::setting("--constant", expected, constant.to_string())
                    })? = T::from_f64(logit);
                }
                (None, None) => {
                    let reason = "needs gates with biases (--gate-biases), or --constant with a coordinate that is always 1";
                    return Err(Error::rejected(flag, reason));
                }
            }
        }
    }
    Ok(())
}

/// Returns the logit at which a gate has a value.
fn logit(program: &Program, is_rate: bool, value: f64) -> Option<f64> {
    let share = match (is_rate, program.rule.rate_form) {
        (true, RateForm::Exp) => value.ln() / -15.0,
        (true, RateForm::Sigmoid) => value / program.rule.max_rate,
        (false, _) => value,
    };
    (share > 0.0 && share < 1.0).then(|| (share / (1.0 - share)).ln())
}

/// Hides the coordinates that queries do not see: their norm weights are 0.
///
/// # Errors
/// A memory without norm before reading, and coordinates that do not exist.
pub fn hide<T: Real>(parameters: &mut Parameters<T>, visible: &[usize]) -> Result<Vec<usize>> {
    let dim = parameters.dimensions.dim;
    if let Some(beyond) = visible.iter().find(|of| **of >= dim) {
        return Err(Error::setting("--visible", format!("coordinates below {dim}"), beyond.to_string()));
    }
    let hidden: Vec<_> = (0..dim).filter(|of| !visible.contains(of)).collect();
    let Some(norm) = &mut parameters.retrieve_norm else {
        return Err(Error::rejected("--visible", "needs the norm before reading; omit --no-pre-norm"));
    };
    if hidden.is_empty() {
        return Err(Error::setting(
            "--visible",
            format!("fewer than all {dim} coordinates"),
            "all".to_owned(),
        ));
    }
    for &of in &hidden {
        norm[of] = T::zero();
    }
    Ok(hidden)
}

/// Returns a random output head, uniform in ±1/√D like `PyTorch`'s `nn.Linear`.
pub fn head<T: Real>(dim: usize, width: usize, train: &TrainConfig) -> Head<T> {
    let mut random = ChaCha8Rng::seed_from_u64(train.seed);
    random.set_stream(HEAD_STREAM);
    let bound = 1.0 / (dim as f64).sqrt();
    let mut uniform = || T::from_f64(f64::from((bound * (2.0 * random.random::<f64>() - 1.0)) as f32));
    let weight = Array2::from_shape_simple_fn((width, dim), &mut uniform);
    Head { weight, bias: Array1::from_shape_simple_fn(width, uniform) }
}
