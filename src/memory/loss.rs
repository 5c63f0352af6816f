//! Associative losses ℓ(M(k), v): value and gradient in one place, for engine, probes and oracle. The loss of a chunk is
//! the sum over its rows.
//!
//! With e = M(k) − v of width d:
//!
//! | loss | ℓ of a row | ∂ℓ/∂M(k) | used by |
//! | --- | --- | --- | --- |
//! | `mean-square` | Σ e² / d | 2 e / d | titans-pytorch |
//! | `half-square` | Σ e² / 2 | e | delta rule, TTT |
//! | `inner-product` | −⟨M(k), v⟩ | −v | linear attention, LaCT |
//! | `huber` | Σ ½e², or δ(\|e\| − ½δ) where \|e\| > δ | e, or δ sign(e) | Yaad (MIRAS), by coordinate |
//! | `p-norm` | Σ \|e\|^p | p sign(e) \|e\|^(p−1) | Moneta (MIRAS) |

use serde::{Deserialize, Serialize};

use super::limits::OutOfRange;
use crate::norm::squared_distance;
use crate::real::Real;

/// An associative loss.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Loss {
    /// Σ e² / d
    #[default]
    MeanSquare,
    /// Σ e² / 2
    HalfSquare,
    /// −⟨M(k), v⟩
    InnerProduct,
    /// Σ ½e², and δ(|e| − ½δ) where |e| > δ.
    Huber {
        /// Error at which the loss becomes linear.
        delta: f64,
    },
    /// Σ |e|^p
    PNorm {
        /// Exponent, above 1.
        p: f64,
    },
}

/// Name of a loss, as in flags and files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LossKind {
    /// Σ e² / d
    #[default]
    MeanSquare,
    /// Σ e² / 2
    HalfSquare,
    /// −⟨M(k), v⟩
    InnerProduct,
    /// Squares up to an error δ, linear beyond
    Huber,
    /// Σ |e|^p
    PNorm,
}

impl Loss {
    /// Default δ of Huber's loss.
    pub const DELTA: f64 = 1.0;
    /// Default exponent of the p-norm, Moneta's.
    pub const POWER: f64 = 3.0;

    /// Returns the loss of a kind with its parameter, if the kind has one.
    pub fn new(kind: LossKind, delta: Option<f64>, p: Option<f64>) -> Self {
        match kind {
            LossKind::MeanSquare => Self::MeanSquare,
            LossKind::HalfSquare => Self::HalfSquare,
            LossKind::InnerProduct => Self::InnerProduct,
            LossKind::Huber => Self::Huber { delta: delta.unwrap_or(Self::DELTA) },
            LossKind::PNorm => Self::PNorm { p: p.unwrap_or(Self::POWER) },
        }
    }

    /// Returns the kind.
    pub fn kind(self) -> LossKind {
        match self {
            Self::MeanSquare => LossKind::MeanSquare,
            Self::HalfSquare => LossKind::HalfSquare,
            Self::InnerProduct => LossKind::InnerProduct,
            Self::Huber { .. } => LossKind::Huber,
            Self::PNorm { .. } => LossKind::PNorm,
        }
    }

    /// Checks the parameter: its name if it is out of range, and the problem.
    pub fn check(self) -> Result<(), (&'static str, OutOfRange)> {
        match self {
            Self::Huber { delta } if !(delta > 0.0 && delta.is_finite()) => {
                Err(("huber_delta", OutOfRange::new(delta, "is out of range; use a finite number above 0")))
            }
            // At p = 1 the gradient jumps at zero; below, it is infinite there.
            Self::PNorm { p } if !(p > 1.0 && p <= 16.0) => {
                Err(("loss_power", OutOfRange::new(p, "is out of range; use a number above 1, up to 16")))
            }
            _ => Ok(()),
        }
    }

    /// Returns the divisor of [`sum`](Self::sum) for rows of width d.
    pub fn divisor(self, d: usize) -> f64 {
        match self {
            Self::MeanSquare => d as f64,
            Self::HalfSquare => 2.0,
            Self::InnerProduct | Self::Huber { .. } | Self::PNorm { .. } => 1.0,
        }
    }

    /// Returns ℓ of one row times the [`divisor`](Self::divisor). Call it where the instruction set has been chosen.
    #[expect(clippy::inline_always, reason = "to be compiled with the caller's instruction set")]
    #[inline(always)]
    pub fn sum<T: Real>(self, predicted: &[T], value: &[T]) -> f64 {
        match self {
            Self::MeanSquare | Self::HalfSquare => squared_distance(predicted, value),
            Self::InnerProduct => -T::dot(predicted, value).to_f64(),
            Self::Huber { .. } | Self::PNorm { .. } => predicted
                .iter()
                .zip(value)
                .map(|(y, v)| self.of_error(Real::to_f64(*y) - Real::to_f64(*v)).0)
                .sum(),
        }
    }

    /// Replaces a predicted row by the loss's gradient there, times `weight`. Call it where the instruction set has been
    /// chosen.
    #[expect(clippy::inline_always, reason = "as above")]
    #[inline(always)]
    pub fn gradient<T: Real>(self, predicted: &mut [T], value: &[T], weight: Option<T>) {
        match self {
            Self::MeanSquare => {
                let twice = T::from_f64(2.0 / predicted.len() as f64);
                let factor = weight.map_or(twice, |weight| twice * weight);
                for (e, &v) in predicted.iter_mut().zip(value) {
                    *e = (*e - v) * factor;
                }
            }
            Self::HalfSquare => {
                let factor = weight.unwrap_or(T::one());
                for (e, &v) in predicted.iter_mut().zip(value) {
                    *e = (*e - v) * factor;
                }
            }
            Self::InnerProduct => {
                let factor = -weight.unwrap_or(T::one());
                for (e, &v) in predicted.iter_mut().zip(value) {
                    *e = v * factor;
                }
            }
            Self::Huber { .. } | Self::PNorm { .. } => {
                let factor = weight.map_or(1.0, Real::to_f64);
                for (e, &v) in predicted.iter_mut().zip(value) {
                    *e = T::from_f64(factor * self.of_error(Real::to_f64(*e) - Real::to_f64(v)).1);
                }
            }
        }
    }

    /// Differentiates [`gradient`](Self::gradient): with `tangent` the cotangent of the gradient that it returns, writes the
    /// cotangents of the predicted row, over `predicted`, and of the value. Returns the cotangent of the weight. Call it where
    /// the instruction set has been chosen.
    #[expect(clippy::inline_always, reason = "as above")]
    #[inline(always)]
    pub fn gradient_vjp<T: Real>(
        self,
        predicted: &mut [T],
        value: &[T],
        weight: Option<T>,
        tangent: &[T],
        d_value: &mut [T],
    ) -> f64 {
        let factor = weight.unwrap_or(T::one());
        let constant = match self {
            Self::MeanSquare => Some(2.0 / predicted.len() as f64),
            Self::HalfSquare => Some(1.0),
            Self::InnerProduct | Self::Huber { .. } | Self::PNorm { .. } => None,
        };
        if let Some(bend) = constant.map(T::from_f64) {
            for (y, &v) in predicted.iter_mut().zip(value) {
                *y = bend * (*y - v);
            }
            let of_weight = T::dot(predicted, tangent).to_f64();
            for ((y, &t), d_value) in predicted.iter_mut().zip(tangent).zip(d_value) {
                *y = factor * t * bend;
                *d_value = -*y;
            }
            return of_weight;
        }
        let mut of_weight = 0.0;
        for (((y, &v), &t), d_value) in predicted.iter_mut().zip(value).zip(tangent).zip(d_value) {
            let (slope, bend) = self.slope_and_bend((*y).to_f64() - v.to_f64(), v.to_f64());
            of_weight += slope * t.to_f64();
            let along = factor * t;
            *y = along * T::from_f64(bend);
            *d_value = if self == Self::InnerProduct { -along } else { -*y };
        }
        of_weight
    }

    /// Returns the first and the second derivative of the loss in one prediction, at the error e = y − v. Squares are
    /// computed for whole rows.
    fn slope_and_bend(self, e: f64, v: f64) -> (f64, f64) {
        match self {
            Self::InnerProduct => (-v, 0.0),
            Self::Huber { delta } => (self.of_error(e).1, if e.abs() > delta { 0.0 } else { 1.0 }),
            Self::PNorm { p } => (self.of_error(e).1, p * (p - 1.0) * e.abs().powf(p - 2.0)),
            Self::MeanSquare | Self::HalfSquare => unreachable!("computed for whole rows"),
        }
    }

    /// Rejects a loss whose gradient cannot be differentiated.
    pub fn check_differentiable(self) -> Result<(), (&'static str, OutOfRange)> {
        match self {
            Self::PNorm { p } if p < 2.0 => {
                let problem = "is below 2, where the second derivative is infinite at an exact prediction; use 2 or more";
                Err(("loss_power", OutOfRange::new(p, problem)))
            }
            _ => Ok(()),
        }
    }

    /// Returns the loss and its slope at one error of a loss that depends on single errors.
    fn of_error(self, e: f64) -> (f64, f64) {
        match self {
            Self::Huber { delta } if e.abs() > delta => (delta * (e.abs() - 0.5 * delta), delta * e.signum()),
            Self::Huber { .. } => (0.5 * e * e, e),
            Self::PNorm { p } => {
                let power = e.abs().powf(p - 1.0);
                (power * e.abs(), if e == 0.0 { 0.0 } else { p * e.signum() * power })
            }
            Self::MeanSquare | Self::HalfSquare | Self::InnerProduct => {
                unreachable!("computed for whole rows")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_have_limits() {
        let delta = |delta| Loss::Huber { delta }.check().map_err(|(name, _)| name);
        assert_eq!([f64::MIN_POSITIVE, f64::MAX].map(delta), [Ok(()); 2]);
        assert_eq!([-1.0, 0.0, f64::INFINITY, f64::NAN].map(delta), [Err("huber_delta"); 4]);
        let power = |p| Loss::PNorm { p }.check().map_err(|(name, _)| name);
        assert_eq!([1.1, 16.0].map(power), [Ok(()); 2]);
        assert_eq!([-2.0, 1.0, 16.1, f64::NAN].map(power), [Err("loss_power"); 4]);
        assert_eq!(Loss::HalfSquare.check(), Ok(()));
    }
}
