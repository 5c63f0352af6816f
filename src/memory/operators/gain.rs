//! A gain: `y = x ∘ (γ + 1)`. γ is a memory weight, so that its rows may differ from chunk to chunk.

use ndarray::{ArrayView2, ArrayViewMut2, Zip};

use super::{Operator, Rows, Second, SecondResults, Work, each_row};
use crate::real::Real;

/// x ∘ (γ + 1) of the inputs x and γ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gain;

impl<T: Real> Operator<T> for Gain {
    fn kept(&self, _: usize, _: usize, _: &[usize]) -> Vec<(usize, usize)> {
        Vec::new()
    }

    fn forward(&self, _: usize, inputs: &[ArrayView2<T>], output: ArrayViewMut2<T>, _: &mut Work<T>) {
        Zip::from(output).and(inputs[0]).and(inputs[1]).for_each(|y, &x, &gamma| *y = x * (gamma + T::one()));
    }

    fn vjp(
        &self,
        _: usize,
        inputs: &[ArrayView2<T>],
        cotangent: ArrayView2<T>,
        d_inputs: &mut [Option<ArrayViewMut2<T>>],
        _: &mut Work<T>,
    ) {
        let [dx, d_gamma] = d_inputs else { unreachable!("two inputs") };
        if let Some(dx) = dx {
            Zip::from(dx)
                .and(cotangent)
                .and(inputs[1])
                .for_each(|dx, &d, &gamma| *dx = d * (gamma + T::one()));
        }
        if let Some(d_gamma) = d_gamma {
            Zip::from(d_gamma).and(cotangent).and(inputs[0]).for_each(|dg, &d, &x| *dg = d * x);
        }
    }

    fn vjp_of_vjp(&self, given: &Second<'_, T>, results: SecondResults<'_, T>, _: &mut Work<T>) {
        let SecondResults { mut d_cotangent, d_inputs } = results;
        let (x, gamma, c) = (given.inputs[0], given.inputs[1], given.cotangent);
        let [dx, d_gamma] = d_inputs else { unreachable!("two inputs") };
        d_cotangent.fill(T::zero());
        // Each input's tangent meets the other input.
        let terms = [(given.tangents[0], gamma, T::one(), d_gamma), (given.tangents[1], x, T::zero(), dx)];
        for (tangent, other, offset, d_other) in terms {
            if let Some(tangent) = tangent {
                let sum = Zip::from(&mut d_cotangent).and(tangent).and(other);
                sum.for_each(|d, &t, &other| *d += t * (other + offset));
            }
            match (d_other, tangent) {
                (Some(d), Some(t)) => Zip::from(d).and(t).and(c).for_each(|d, &t, &c| *d = t * c),
                (Some(d), None) => d.fill(T::zero()),
                (None, _) => {}
            }
        }
    }
}

pub(super) fn naive(x: &Rows, gamma: &Rows) -> Rows {
    each_row(x, gamma, |x, gamma| x.iter().zip(gamma).map(|(x, g)| x * (g + 1.0)).collect())
}

pub(super) fn naive_vjp(x: &Rows, gamma: &Rows, cotangent: &Rows) -> Vec<Rows> {
    let dx = each_row(cotangent, gamma, |d, gamma| d.iter().zip(gamma).map(|(d, g)| d * (g + 1.0)).collect());
    let d_gamma = each_row(cotangent, x, |d, x| d.iter().zip(x).map(|(d, x)| d * x).collect());
    vec![dx, d_gamma]
}
