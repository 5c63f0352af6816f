//! Elementwise activations: `gelu(x) = x Φ(x)` with the exact Φ, and `silu(x) = x σ(x)`.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Zip, s};
use serde::{Deserialize, Serialize};

use super::{Operator, Rows, Second, SecondResults, Work, each_row};
use crate::memory::sigmoid;
use crate::real::Real;
use crate::simd::vectorised;

/// An elementwise function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// x · Φ(x), Φ the distribution function of N(0, 1).
    Gelu,
    /// x · sigmoid(x)
    Silu,
}

impl Activation {
    /// Replaces each value by its activation.
    pub fn apply<T: Real>(self, values: &mut [T]) {
        match self {
            Self::Gelu => T::gelu(values),
            Self::Silu => T::silu(values),
        }
    }

    /// Returns the activation of one value and its derivative there.
    fn naive_pair(self, x: f64) -> (f64, f64) {
        match self {
            Self::Gelu => {
                let below = 0.5 * (1.0 + libm::erf(x / std::f64::consts::SQRT_2));
                let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
                (x * below, below + x * density)
            }
            Self::Silu => {
                let s = sigmoid(x);
                (x * s, s * (1.0 + x * (1.0 - s)))
            }
        }
    }

    /// Computes the activation of one value in plain arithmetic.
    pub fn naive_value(self, x: f64) -> f64 {
        self.naive_pair(x).0
    }

    pub(super) fn naive(self, rows: &Rows) -> Rows {
        rows.iter().map(|row| row.iter().map(|&x| self.naive_pair(x).0).collect()).collect()
    }

    pub(super) fn naive_vjp(self, rows: &Rows, cotangent: &Rows) -> Rows {
        each_row(rows, cotangent, |row, d| {
            row.iter().zip(d).map(|(&x, d)| d * self.naive_pair(x).1).collect()
        })
    }
}

impl<T: Real> Operator<T> for Activation {
    /// Numbers for the derivative: σ(x) of silu; the derivative itself of gelu.
    fn kept(&self, rows: usize, _: usize, inputs: &[usize]) -> Vec<(usize, usize)> {
        vec![(rows, inputs[0])]
    }

    fn forward(&self, _: usize, inputs: &[ArrayView2<T>], mut output: ArrayViewMut2<T>, _: &mut Work<T>) {
        output.assign(&inputs[0]);
        Operator::<T>::forward_in_place(self, &mut output);
    }

    fn forward_in_place(&self, rows: &mut ArrayViewMut2<T>) -> bool {
        match rows.as_slice_mut() {
            Some(all) => self.apply(all),
            None => {
                for mut row in rows.rows_mut() {
                    self.apply(row.as_slice_mut().expect("contiguous rows"));
                }
            }
        }
        true
    }

    fn forward_for_vjp(
        &self,
        _: usize,
        inputs: &[ArrayView2<T>],
        mut output: ArrayViewMut2<T>,
        work: &mut Work<T>,
    ) {
        let x = inputs[0];
        let mut kept = work.kept[0].slice_mut(s![..x.nrows(), ..]);
        kept.assign(&x);
        let all = kept.as_slice_mut().expect("whole rows");
        if *self == Self::Gelu {
            T::gelu_slope(all);
            output.assign(&x);
            Operator::<T>::forward_in_place(self, &mut output);
            return;
        }
        T::sigmoid(all);
        vectorised(
            #[inline(always)]
            || {
                for ((mut y, x), kept) in output.rows_mut().into_iter().zip(x.rows()).zip(kept.rows()) {
                    let [x, kept] = [x, kept].map(|row| row.to_slice().expect("contiguous rows"));
                    let y = y.as_slice_mut().expect("contiguous rows");
                    for ((y, &x), &s) in y.iter_mut().zip(x).zip(kept) {
                        *y = x * s;
                    }
                }
            },
        );
    }

    fn vjp(
        &self,
        _: usize,
        inputs: &[ArrayView2<T>],
        cotangent: ArrayView2<T>,
        d_inputs: &mut [Option<ArrayViewMut2<T>>],
        work: &mut Work<T>,
    ) {
        let Some(dx) = &mut d_inputs[0] else { return };
        let kept = work.kept[0].slice(s![..cotangent.nrows(), ..]);
        vectorised(
            #[inline(always)]
            || {
                let rows = dx.rows_mut().into_iter().zip(cotangent.rows());
                for ((mut dx, dy), (x, kept)) in rows.zip(inputs[0].rows().into_iter().zip(kept.rows())) {
                    let dx = dx.as_slice_mut().expect("contiguous rows");
                    let [dy, x, kept] = [dy, x, kept].map(|row| row.to_slice().expect("contiguous rows"));
                    match self {
                        Self::Silu => {
                            for ((dx, &dy), (&x, &s)) in dx.iter_mut().zip(dy).zip(x.iter().zip(kept)) {
                                *dx = dy * (s * (T::one() + x * (T::one() - s)));
                            }
                        }
                        Self::Gelu => {
                            for ((dx, &dy), &slope) in dx.iter_mut().zip(dy).zip(kept) {
                                *dx = dy * slope;
                            }
                        }
                    }
                }
            },
        );
    }

    /// ∂φ/∂cotangent = t ∘ f′(x), ∂φ/∂x = t ∘ cotangent ∘ f″(x), with gelu″(x) = φ(x) (2 − x²) and silu″(x) = σ (1 − σ)
    /// (2 + x (1 − 2σ)).
    fn vjp_of_vjp(&self, given: &Second<'_, T>, results: SecondResults<'_, T>, work: &mut Work<T>) {
        let (x, Some(t)) = (given.inputs[0], given.tangents[0]) else { unreachable!("the only input's") };
        let SecondResults { mut d_cotangent, d_inputs } = results;
        let rows = x.nrows();
        let kept = work.kept[0].slice(s![..rows, ..]);
        let mut unwanted = None;
        let mut bend = match d_inputs[0].as_mut() {
            Some(d_input) => d_input.view_mut(),
            None => unwanted.insert(Array2::zeros(x.dim())).view_mut(),
        };
        if *self == Self::Gelu {
            Zip::from(&mut bend).and(x).for_each(|b, &x| *b = x * x * T::from_f64(-0.5));
            T::exp_all(bend.as_slice_mut().expect("standard layout"));
        }
        let density = T::from_f64((2.0 * std::f64::consts::PI).sqrt().recip());
        let two = T::one() + T::one();
        vectorised(
            #[inline(always)]
            || {
                let rows = bend.rows_mut().into_iter().zip(x.rows()).zip(kept.rows());
                for (r, ((mut bend, x), kept)) in rows.enumerate() {
                    let bend = bend.as_slice_mut().expect("contiguous rows");
                    let [x, kept, t, c] = [x, kept, t.row(r), given.cotangent.row(r)]
                        .map(|row| row.to_slice().expect("contiguous rows"));
                    let mut d_cotangent = d_cotangent.row_mut(r);
                    let d_cotangent = d_cotangent.as_slice_mut().expect("contiguous rows");
                    for i in 0..x.len() {
                        let (slope, second) = match self {
                            Self::Gelu => (kept[i], density * bend[i] * (two - x[i] * x[i])),
                            Self::Silu => {
                                let s = kept[i];
                                let slope = s * (T::one() - s);
                                (s + x[i] * slope, slope * (two + x[i] * (T::one() - two * s)))
                            }
                        };
                        d_cotangent[i] = t[i] * slope;
                        bend[i] = t[i] * c[i] * second;
                    }
                }
            },
        );
    }
}
