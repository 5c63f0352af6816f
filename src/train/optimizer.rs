//! AdamW (arXiv 1711.05101) with groups, a warm-up and a cosine, and a moving average of what it learns.
//!
//! At step s = 1, 2, …, with g the gradient, clipped to a norm, and λ the weight decay of the parameter's group:
//!
//! ```text
//! m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²
//! p ← p − rate (m / (1 − β₁ˢ) ÷ (√(v / (1 − β₂ˢ)) + ε) + λ p)
//! ```
//!
//! The average p̄ of decay γ has the bias correction of m: p̄ ← p̄ + (1 − γ) / (1 − γˢ) (p − p̄).

use std::f64::consts::PI;

use super::objective::Head;
use crate::config::Adam;
use crate::memory::Parameters;
use crate::memory::parameters::ParameterKind;
use crate::real::Real;

/// Parameters that are treated alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Norms.
    Norms,
    /// Projections.
    Projections,
    /// Gate layers.
    Gates,
    /// Initial memory weights.
    Memory,
    /// The output head.
    Head,
}

impl Group {
    /// All groups, in the order of the columns of train.csv.
    pub const ALL: [Self; 5] = [Self::Norms, Self::Projections, Self::Gates, Self::Memory, Self::Head];

    /// Returns the name in columns and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Norms => "norms",
            Self::Projections => "projections",
            Self::Gates => "gates",
            Self::Memory => "memory",
            Self::Head => "head",
        }
    }
}

/// Everything that is learned.
#[derive(Clone, Debug)]
pub struct Learned<T> {
    /// Parameters of the memory.
    pub parameters: Parameters<T>,
    /// The output head.
    pub head: Option<Head<T>>,
}

impl<T: Real> Learned<T> {
    /// Returns the numbers of each parameter with its group, in a fixed order.
    pub fn each(&self) -> Vec<(Group, &[T])> {
        let mut all: Vec<_> =
            self.parameters.each().into_iter().map(|(kind, numbers)| (group(kind), numbers)).collect();
        if let Some(Head { weight, bias }) = &self.head {
            all.push((Group::Head, weight.as_slice().expect("standard layout")));
            all.push((Group::Head, bias.as_slice().expect("standard layout")));
        }
        all
    }

    /// Returns the numbers of each parameter to be changed, in the order of [`each`](Self::each).
    pub fn each_mut(&mut self) -> Vec<(Group, &mut [T])> {
        let mut all: Vec<_> =
            self.parameters.each_mut().into_iter().map(|(kind, numbers)| (group(kind), numbers)).collect();
        if let Some(Head { weight, bias }) = &mut self.head {
            all.push((Group::Head, weight.as_slice_mut().expect("standard layout")));
            all.push((Group::Head, bias.as_slice_mut().expect("standard layout")));
        }
        all
    }

    /// Returns Euclidean norms: that of all numbers, and those of the groups.
    pub fn norms(&self) -> (f64, [f64; Group::ALL.len()]) {
        let mut squares = [0.0; Group::ALL.len()];
        for (group, numbers) in self.each() {
            squares[group as usize] += numbers.iter().map(|&x| Real::to_f64(x).powi(2)).sum::<f64>();
        }
        (squares.iter().sum::<f64>().sqrt(), squares.map(f64::sqrt))
    }
}

fn group(kind: ParameterKind) -> Group {
    match kind {
        ParameterKind::Norm => Group::Norms,
        ParameterKind::Projection => Group::Projections,
        ParameterKind::Gate => Group::Gates,
        ParameterKind::Memory => Group::Memory,
    }
}

/// The optimiser's state: one number of each kind per number that is learned.
#[derive(Clone, Debug)]
pub struct AdamW<T> {
    /// Running means m of gradients.
    pub first: Vec<Vec<T>>,
    /// Running means v of their squares.
    pub second: Vec<Vec<T>>,
}

impl<T: Real> AdamW<T> {
    /// Creates the state before the first step.
    pub fn new(of: &Learned<T>) -> Self {
        let zeros: Vec<_> =
            of.each().into_iter().map(|(_, numbers)| vec![T::zero(); numbers.len()]).collect();
        Self { first: zeros.clone(), second: zeros }
    }

    /// Takes step `step` of `steps`, counted from 1, along a gradient of norm `norm`.
    pub fn step(
        &mut self,
        learned: &mut Learned<T>,
        gradient: &Learned<T>,
        norm: f64,
        settings: &Adam,
        (step, steps): (usize, usize),
    ) {
        let scale = settings.clip.filter(|most| norm > *most).map_or(1.0, |most| most / norm);
        let exponent = i32::try_from(step).unwrap_or(i32::MAX);
        let correct = |beta: f64| 1.0 - beta.powi(exponent);
        let (of_first, of_second) = (correct(settings.beta1), correct(settings.beta2));
        let number = T::from_f64;
        let (scale, epsilon) = (number(scale), number(settings.adam_epsilon).max(T::min_positive_value()));
        let (beta1, beta2) = (number(settings.beta1), number(settings.beta2));
        let (rest1, rest2) = (number(1.0 - settings.beta1), number(1.0 - settings.beta2));
        let root = number(1.0 / of_second.sqrt());
        let rate = rate(settings, step, steps);
        let states = self.first.iter_mut().zip(&mut self.second);
        for (((group, p), (_, g)), (m, v)) in learned.each_mut().into_iter().zip(gradient.each()).zip(states)
        {
            let (factor, decay) = match group {
                Group::Norms => (1.0, settings.norm_weight_decay),
                Group::Projections | Group::Head => (1.0, settings.weight_decay),
                Group::Gates => (settings.gate_rate, settings.gate_weight_decay),
                Group::Memory => (settings.memory_rate, settings.memory_weight_decay),
            };
            let along = number(factor * rate / of_first);
            let keep = number(1.0 - factor * rate * decay);
            for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                let g = g * scale;
                *m = beta1 * *m + rest1 * g;
                *v = beta2 * *v + rest2 * g * g;
                *p = keep * *p - along * *m / (v.sqrt() * root + epsilon);
            }
        }
    }
}

/// Takes what was learned in step `step`, counted from 1, into a moving average.
pub fn average<T: Real>(mean: &mut Learned<T>, learned: &Learned<T>, decay: f64, step: usize) {
    let exponent = i32::try_from(step).unwrap_or(i32::MAX);
    let share = T::from_f64((1.0 - decay) / (1.0 - decay.powi(exponent)));
    for ((_, mean), (_, learned)) in mean.each_mut().into_iter().zip(learned.each()) {
        if share == T::one() {
            mean.copy_from_slice(learned);
        } else {
            mean.iter_mut().zip(learned).for_each(|(mean, &p)| *mean += share * (p - *mean));
        }
    }
}

/// Returns the learning rate of step `step` of `steps`, counted from 1.
pub fn rate(settings: &Adam, step: usize, steps: usize) -> f64 {
    let &Adam { rate, warmup, final_rate, .. } = settings;
    if step <= warmup {
        return rate * step as f64 / warmup as f64;
    }
    let along = (step - warmup - 1) as f64 / steps.saturating_sub(warmup).max(1) as f64;
    rate * (final_rate + (1.0 - final_rate) * 0.5 * (1.0 + (PI * along).cos()))
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, Array2, array};

    use super::*;
    use crate::memory::parameters::{Init, random_tensors};
    use crate::memory::{Dimensions, Program};

    const SETTINGS: Adam = Adam {
        rate: 0.01,
        warmup: 4,
        final_rate: 0.05,
        gate_rate: 1.0,
        memory_rate: 1.0,
        weight_decay: 0.1,
        gate_weight_decay: 0.1,
        memory_weight_decay: 0.1,
        norm_weight_decay: 0.0,
        beta1: 0.9,
        beta2: 0.999,
        adam_epsilon: 1e-8,
        clip: None,
    };

    #[test]
    fn the_rate_rises_and_falls() {
        let of = |step| rate(&SETTINGS, step, 104);
        assert!((of(1) - 0.0025).abs() < 1e-15 && (of(4) - 0.01).abs() < 1e-15);
        assert!((of(5) - 0.01).abs() < 1e-15 && (of(55) - 0.01 * 0.525).abs() < 1e-15);
        assert!((5..104).all(|step| of(step + 1) < of(step)) && of(104) > 0.0005 && of(104) < 0.000_51);
        assert!((rate(&Adam { warmup: 0, ..SETTINGS }, 1, 1) - 0.01).abs() < 1e-15);
    }

    fn learned(head: [f64; 3]) -> Learned<f64> {
        let program = Program::titans_0_0_17(2);
        let dimensions = Dimensions { dim: 2, heads: 1, dim_head: 2, pre_norm: true, post_norm: true };
        let random = random_tensors(&dimensions, &program, Init::Xavier, 1);
        let tensor = |name: &str| {
            let found = random.iter().find(|(of, _)| of == name).expect("all parameters are random");
            found.1.mapv(f64::from)
        };
        let weight = Array2::from_shape_vec((1, 2), head[..2].to_vec()).unwrap();
        let head = Some(Head { weight, bias: array![head[2]] });
        Learned { parameters: Parameters::collect(dimensions, &program, tensor), head }
    }

    /// Three steps of `torch.optim.AdamW` (PyTorch 2.13, float64) after `clip_grad_norm_`, which adds 1e-6 to the norm.
    #[test]
    fn steps_are_those_of_pytorch() {
        let settings = Adam {
            warmup: 0,
            final_rate: 1.0,
            beta1: 0.8,
            beta2: 0.95,
            adam_epsilon: 1e-6,
            clip: Some(1.0),
            ..SETTINGS
        };
        let mut of = learned([0.5, -1.0, 2.0]);
        let mut adam = AdamW::new(&of);
        let expected = [
            [0.489_500_016_666_642_2, -0.989_000_012_499_986_9, 1.998],
            [0.481_426_479_482_153_17, -0.983_770_589_541_633_3, 2.003_759_875_024_484],
            [0.475_391_043_858_198_36, -0.986_315_644_614_244_9, 2.007_435_060_077_488_4],
        ];
        let gradients = [[3.0, -4.0, 0.0], [0.1, 0.2, -0.3], [0.0, 1.0, 1e-4]];
        for (step, (gradient, expected)) in gradients.into_iter().zip(expected).enumerate() {
            let gradient = Learned { parameters: of.parameters.zeros(), ..learned(gradient) };
            let (norm, _) = gradient.norms();
            adam.step(&mut of, &gradient, norm, &settings, (step + 1, 3));
            let Head { weight, bias } = of.head.as_ref().unwrap();
            let got: Array1<f64> = weight.iter().chain(bias).copied().collect();
            for (got, expected) in got.iter().zip(expected) {
                assert!((got - expected).abs() < 1e-8, "step {step}: {got} for {expected}");
            }
        }
    }

    /// A weighted mean with weights γ³, γ², γ, 1 of four steps.
    #[test]
    fn averages_are_weighted_means() {
        let mut mean = learned([7.0, 7.0, 7.0]);
        let steps = [1.0, -2.0, 4.0, 0.5];
        for (i, x) in steps.into_iter().enumerate() {
            average(&mut mean, &learned([x, 1.0, -x]), 0.8, i + 1);
        }
        let weights: Vec<f64> = (0..4).map(|i| 0.8_f64.powi(3 - i)).collect();
        let sum: f64 = steps.iter().zip(&weights).map(|(x, w)| x * w).sum();
        let expected = sum / weights.iter().sum::<f64>();
        let Head { weight, bias } = mean.head.unwrap();
        assert!((weight[[0, 0]] - expected).abs() < 1e-15 && (bias[0] + expected).abs() < 1e-15);
        assert!((weight[[0, 1]] - 1.0).abs() < 1e-15);
    }

    #[test]
    fn groups_have_rates_and_decays_of_their_own() {
        let settings = Adam { warmup: 0, gate_rate: 0.0, memory_rate: 0.5, ..SETTINGS };
        let before = learned([1.0, 1.0, 1.0]);
        let mut after = before.clone();
        let zeros = Learned { parameters: before.parameters.zeros(), ..learned([0.0; 3]) };
        AdamW::new(&before).step(&mut after, &zeros, 0.0, &settings, (1, 100));
        let rate = rate(&settings, 1, 100);
        for ((group, before), (_, after)) in before.each().into_iter().zip(after.each()) {
            let factor = match group {
                Group::Norms | Group::Gates => 1.0,
                Group::Projections | Group::Head => 1.0 - 0.1 * rate,
                Group::Memory => 1.0 - 0.5 * 0.1 * rate,
            };
            for (before, after) in before.iter().zip(after) {
                assert!((before * factor - after).abs() < 1e-15, "{group:?}");
            }
        }
    }
}
