//! AdamW (arXiv 1711.05101) with groups, a warm-up and a cosine.
//!
//! At step s = 1, 2, …, with g the gradient, clipped to a norm, and λ the weight decay of the parameter's group:
//!
//! ```text
//! m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²
//! p ← p − rate (m / (1 − β₁ˢ) ÷ (√(v / (1 − β₂ˢ)) + ε) + λ p)
//! ```

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
        let (scale, epsilon) = (number(scale), number(settings.adam_epsilon));
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

/// Returns the learning rate of step `step` of `steps`, counted from 1.
pub fn rate(settings: &Adam, step: usize, steps: usize) -> f64 {
    let &Adam { rate, warmup, final_rate, .. } = settings;
    if step <= warmup {
        return rate * step as f64 / warmup as f64;
    }
    let along = (step - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
    rate * (final_rate + (1.0 - final_rate) * 0.5 * (1.0 + (PI * along).cos()))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!((of(54) - 0.01 * 0.525).abs() < 1e-15 && (of(104) - 0.0005).abs() < 1e-15);
        assert!((4..104).all(|step| of(step + 1) < of(step)));
    }
}
