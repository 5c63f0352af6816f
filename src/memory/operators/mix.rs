//! A gated mixture: `y = x + sigmoid(s) ∘ (v − x)`, the learned residual of gated-residual memories.

use ndarray::{ArrayView2, ArrayViewMut2, Zip, s};

use super::{Operator, Rows, Second, SecondResults, Work};
use crate::memory::sigmoid;
use crate::real::Real;

/// x + sigmoid(s) ∘ (v − x) of the inputs x, v and s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix;

impl<T: Real> Operator<T> for Mix {
    /// sigmoid(s)
    fn kept(&self, rows: usize, _: usize, inputs: &[usize]) -> Vec<(usize, usize)> {
        vec![(rows, inputs[0])]
    }

    fn forward(&self, _: usize, inputs: &[ArrayView2<T>], output: ArrayViewMut2<T>, work: &mut Work<T>) {
        let mut gate = work.kept[0].slice_mut(s![..output.nrows(), ..]);
        gate.assign(&inputs[2]);
        T::sigmoid(gate.as_slice_mut().expect("whole rows"));
        let y = Zip::from(output).and(inputs[0]).and(inputs[1]).and(&gate);
        y.for_each(|y, &x, &v, &gate| *y = x + gate * (v - x));
    }

    fn vjp(
        &self,
        _: usize,
        inputs: &[ArrayView2<T>],
        cotangent: ArrayView2<T>,
        d_inputs: &mut [Option<ArrayViewMut2<T>>],
        work: &mut Work<T>,
    ) {
        let gate = work.kept[0].slice(s![..cotangent.nrows(), ..]);
        let [dx, dv, ds] = d_inputs else { unreachable!("three inputs") };
        if let Some(dx) = dx {
            Zip::from(dx).and(cotangent).and(gate).for_each(|dx, &d, &g| *dx = d * (T::one() - g));
        }
        if let Some(dv) = dv {
            Zip::from(dv).and(cotangent).and(gate).for_each(|dv, &d, &g| *dv = d * g);
        }
        if let Some(ds) = ds {
            let all = Zip::from(ds).and(cotangent).and(gate).and(inputs[0]).and(inputs[1]);
            all.for_each(|ds, &d, &g, &x, &v| *ds = d * (v - x) * g * (T::one() - g));
        }
    }

    /// With the tangents t, u, w of x, v, s, c the cotangent, and g = sigmoid(s), g′ = g (1 − g):
    ///
    /// ```text
    /// ∂φ/∂c = t (1 − g) + u g + w (v − x) g′
    /// ∂φ/∂v = −∂φ/∂x = w c g′
    /// ∂φ/∂s = c g′ (u − t + w (v − x) (1 − 2g))
    /// ```
    fn vjp_of_vjp(&self, given: &Second<'_, T>, results: SecondResults<'_, T>, work: &mut Work<T>) {
        let SecondResults { mut d_cotangent, d_inputs } = results;
        let gates = work.kept[0].slice(s![..d_cotangent.nrows(), ..]);
        let two = T::one() + T::one();
        for ((r, e), d) in d_cotangent.indexed_iter_mut() {
            let [x, v] = [0, 1].map(|i| given.inputs[i][[r, e]]);
            let [t, u, w] = [0, 1, 2].map(|i| given.tangents[i].map_or(T::zero(), |tangent| tangent[[r, e]]));
            let (g, c) = (gates[[r, e]], given.cotangent[[r, e]]);
            let slope = g * (T::one() - g);
            *d = t * (T::one() - g) + u * g + w * (v - x) * slope;
            let ds = c * slope * (u - t + w * (v - x) * (T::one() - two * g));
            for (d_input, value) in d_inputs.iter_mut().zip([-w * c * slope, w * c * slope, ds]) {
                if let Some(d_input) = d_input {
                    d_input[[r, e]] = value;
                }
            }
        }
    }
}

fn rows_of(inputs: &[&Rows], f: impl Fn(f64, f64, f64, usize, usize) -> f64) -> Rows {
    let row = |r: usize| {
        let [x, v, s] = [0, 1, 2].map(|i| &inputs[i][r]);
        (0..x.len()).map(|e| f(x[e], v[e], sigmoid(s[e]), r, e)).collect()
    };
    (0..inputs[0].len()).map(row).collect()
}

pub(super) fn naive(inputs: &[&Rows]) -> Rows {
    rows_of(inputs, |x, v, gate, _, _| x + gate * (v - x))
}

pub(super) fn naive_vjp(inputs: &[&Rows], d: &Rows) -> Vec<Rows> {
    vec![
        rows_of(inputs, |_, _, gate, r, e| d[r][e] * (1.0 - gate)),
        rows_of(inputs, |_, _, gate, r, e| d[r][e] * gate),
        rows_of(inputs, |x, v, gate, r, e| d[r][e] * (v - x) * gate * (1.0 - gate)),
    ]
}
