//! Limits of a memory's numeric settings. Flags, configuration files and the metadata of saved memories are all
//! checked here.

use super::model::ModelKind;
use super::{Gate, GateKind};

/// Fewest tokens of a chunk of the model `attention`. The first token of a chunk attends only to itself, so chunks of one
/// token would learn no attention.
pub const MIN_ATTENTION_CHUNK: usize = 2;

/// Most tokens of a chunk. Attention within a chunk takes (c, c) numbers in a few buffers per thread: 1 GiB each in f32.
pub const MAX_CHUNK_SIZE: usize = 1 << 14;

/// Largest decay: a chunk cannot forget more than all of the update.
pub const MAX_DECAY: f64 = 1.0;

/// A value outside its limits: the value, the problem, and the accepted values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value} {problem}")]
pub struct OutOfRange {
    value: String,
    problem: String,
}

impl OutOfRange {
    /// Creates an error. `problem` follows the value: "is above 1; use …".
    pub fn new(value: impl ToString, problem: impl Into<String>) -> Self {
        Self { value: value.to_string(), problem: problem.into() }
    }
}

/// Checks a number of tokens per chunk of a model.
pub fn check_chunk_size(chunk_size: usize, model: ModelKind) -> Result<(), OutOfRange> {
    let fewest = if model == ModelKind::Attention { MIN_ATTENTION_CHUNK } else { 1 };
    let why = if chunk_size < fewest && fewest == MIN_ATTENTION_CHUNK {
        format!("is below {fewest}: a token of the attention memory looks back within its chunk")
    } else if chunk_size < fewest {
        format!("is below {fewest}")
    } else if chunk_size > MAX_CHUNK_SIZE {
        format!("is above {MAX_CHUNK_SIZE}: attention within a chunk takes the square of its size in memory")
    } else {
        return Ok(());
    };
    Err(OutOfRange::new(chunk_size, format!("{why}; use {fewest} to {MAX_CHUNK_SIZE}")))
}

impl Gate {
    /// Checks a fixed value or a bias of the gate `kind`.
    pub fn check(self, kind: GateKind) -> Result<(), OutOfRange> {
        match self {
            Self::Learned(bias) if !bias.is_finite() => {
                Err(OutOfRange::new(bias, "is not finite; use a finite number"))
            }
            Self::Learned(_) => Ok(()),
            Self::Fixed(value) => check_fixed(value, kind),
        }
    }
}

fn check_fixed(value: f64, kind: GateKind) -> Result<(), OutOfRange> {
    let right = match kind {
        GateKind::Decay => "use a value from 0 to 1",
        GateKind::LearningRate | GateKind::Momentum => "use a finite value of 0 or more",
    };
    let problem = if !value.is_finite() {
        "is not finite"
    } else if value < 0.0 {
        "is below 0"
    } else if kind == GateKind::Decay && value > MAX_DECAY {
        "is above 1: it is the fraction of the update that each chunk forgets"
    } else {
        return Ok(());
    };
    Err(OutOfRange::new(value, format!("{problem}; {right}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(gate: Gate, kind: GateKind) -> Option<String> {
        gate.check(kind).err().map(|error| error.to_string())
    }

    #[test]
    fn chunk_sizes() {
        for size in [MIN_ATTENTION_CHUNK, 3, MAX_CHUNK_SIZE] {
            assert_eq!(check_chunk_size(size, ModelKind::Attention), Ok(()));
        }
        assert_eq!(check_chunk_size(1, ModelKind::Mlp), Ok(()));
        for size in [0, 1, MAX_CHUNK_SIZE + 1, usize::MAX] {
            let error = check_chunk_size(size, ModelKind::Attention).unwrap_err();
            assert!(error.to_string().starts_with(&format!("{size} is ")));
        }
    }

    #[test]
    fn gates() {
        for kind in [GateKind::LearningRate, GateKind::Momentum, GateKind::Decay] {
            for value in [0.0, 0.5, 1.0, f64::MIN_POSITIVE] {
                assert_eq!(problem(Gate::Fixed(value), kind), None, "{kind:?} {value}");
            }
            for value in [-f64::MIN_POSITIVE, -1.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
                assert!(problem(Gate::Fixed(value), kind).is_some(), "{kind:?} {value}");
            }
            for bias in [-1e300, 0.0, 1e300] {
                assert_eq!(problem(Gate::Learned(bias), kind), None, "{kind:?} {bias}");
            }
            for bias in [f64::INFINITY, f64::NAN] {
                assert!(problem(Gate::Learned(bias), kind).is_some(), "{kind:?} {bias}");
            }
        }
        let above = Gate::Fixed(1.0 + f64::EPSILON);
        assert_eq!(problem(above, GateKind::Momentum), None);
        assert_eq!(problem(above, GateKind::LearningRate), None);
        assert_eq!(
            problem(Gate::Fixed(1.5), GateKind::Decay).unwrap(),
            "1.5 is above 1: it is the fraction of the update that each chunk forgets; use a value from 0 to 1"
        );
        assert!(problem(above, GateKind::Decay).is_some());
    }
}
