//! The hand-written gradient of the attention memory, in the oracle and in the engine's model. It is compared
//! with central differences of the loss in f64, and the two with each other.

mod support;

use std::ops::Range;

use ndarray::{Array2, ArrayD, ArrayView2, Axis, s};
use nmem::memory::model::{Attention, Factors, MemoryModel};
use nmem::memory::reference::{attention_loss, loss_and_gradient};
use support::{assert_close, assert_close_to_largest, uniform};

/// Half the distance of a central difference. Its truncation error is about δ²/6 · ℓ''' and its rounding error
/// ε ℓ / δ, so ∛ε balances the two.
const DELTA: f64 = 6e-6;
/// Tolerance against differences: δ² and ε/δ are both near 4e-11. With the weights below, third derivatives and
/// losses exceed the largest gradient by at most two orders. A wrong term causes 1e-2 and more.
const DIFFERENCE: f64 = 1e-8;
/// Tolerance between two ways to compute the same sums of at most a few hundred products.
const ROUNDING: f64 = 1e-13;

struct Case {
    d: usize,
    chunk: usize,
    weights: Vec<f64>,
    keys: Array2<f64>,
    values: Array2<f64>,
}

impl Case {
    /// Returns cases with weights large enough that the softmax is far from uniform, and small enough that it
    /// does not saturate.
    fn all() -> Vec<Self> {
        let shapes = [2_usize, 5, 8].into_iter().flat_map(|d| [2_usize, 3, 7, 16].map(|chunk| (d, chunk)));
        let cases = shapes.flat_map(|(d, chunk)| {
            // One token, a whole chunk, a partial chunk, and several chunks of which the last is partial.
            [1, chunk, chunk - 1, 3 * chunk + chunk.div_ceil(2)].map(|rows| {
                let seed = (100 * d + chunk + rows) as u64;
                let keys = uniform((2, rows, d), 1.5, seed + 1);
                Self {
                    d,
                    chunk,
                    weights: uniform((4, d, d), 1.0, seed).into_iter().collect(),
                    keys: keys.index_axis(Axis(0), 0).to_owned(),
                    values: keys.index_axis(Axis(0), 1).to_owned(),
                }
            })
        });
        cases.collect()
    }

    fn name(&self, who: &str) -> String {
        format!("{who}: d {}, c {}, {} rows", self.d, self.chunk, self.keys.nrows())
    }

    fn chunks(&self) -> Vec<Range<usize>> {
        let rows = self.keys.nrows();
        (0..rows).step_by(self.chunk).map(|start| start..rows.min(start + self.chunk)).collect()
    }

    /// Returns rows of one chunk of keys or values in the oracle's form.
    fn rows(of: &Array2<f64>, range: Range<usize>) -> Vec<Vec<f64>> {
        of.slice(s![range, ..]).rows().into_iter().map(|row| row.to_vec()).collect()
    }

    fn split(&self, weights: &[f64]) -> Vec<Array2<f64>> {
        let parts = weights.chunks_exact(self.d * self.d);
        parts.map(|part| Array2::from_shape_vec((self.d, self.d), part.to_vec()).unwrap()).collect()
    }

    /// Returns loss and gradient per chunk, computed by the oracle.
    fn by_reference(&self) -> (Vec<f64>, ArrayD<f64>) {
        let weights = self.split(&self.weights);
        let mut gradients = Vec::new();
        let losses = self.chunks().into_iter().map(|range| {
            let (keys, values) = (Self::rows(&self.keys, range.clone()), Self::rows(&self.values, range));
            let (loss, gradient) = loss_and_gradient(&weights, &keys, &values);
            gradients.extend(gradient.into_iter().flatten());
            loss
        });
        (losses.collect(), self.shaped(gradients))
    }

    /// Returns the same from the engine's model, with all chunks in one call.
    fn by_model(&self, weights: &[f64]) -> (Vec<f64>, ArrayD<f64>) {
        let model = Attention::new(self.d);
        let elements = MemoryModel::<f64>::shapes(&model).iter().map(|(rows, cols)| rows * cols);
        assert_eq!(elements.sum::<usize>(), weights.len());
        let rows = self.keys.nrows();
        // The buffers have space for more rows than exist, as in a group at the end of a sequence, and their
        // old contents must not matter.
        let mut scratch = MemoryModel::<f64>::scratch(&model, 4 * self.chunk, self.chunk);
        let mut factors = Factors::new(&model, rows);
        for matrix in factors.inputs.iter_mut().chain(&mut factors.cotangents) {
            matrix.fill(f64::NAN);
        }
        let mut losses = vec![f64::NAN; rows];
        let (keys, values) = (self.keys.view(), self.values.view());
        let weights = model.prepare(weights);
        let mut group = factors.groups(rows, rows).remove(0);
        model.loss_and_gradient(&weights, keys, values, self.chunk, &mut losses, &mut group, &mut scratch);
        let mut gradients = Vec::new();
        for range in self.chunks() {
            let product = |a: ArrayView2<f64>, b: &Array2<f64>, columns: Range<usize>| {
                a.slice(s![range.clone(), ..]).t().dot(&b.slice(s![range.clone(), columns]))
            };
            let d = self.d;
            for p in 0..3 {
                gradients.extend(product(keys, &factors.cotangents[0], p * d..(p + 1) * d));
            }
            gradients.extend(product(factors.inputs[0].view(), &factors.cotangents[1], 0..d));
        }
        let losses = self.chunks().into_iter().map(|range| losses[range].iter().sum()).collect();
        (losses, self.shaped(gradients))
    }

    /// Returns ∂ℓ/∂W per chunk by central differences of `losses`, which returns the loss of each chunk.
    fn by_differences(&self, losses: impl Fn(&[f64]) -> Vec<f64>) -> ArrayD<f64> {
        let chunks = self.chunks().len();
        let mut gradients = Array2::zeros((chunks, self.weights.len()));
        let mut weights = self.weights.clone();
        for (i, mut column) in gradients.columns_mut().into_iter().enumerate() {
            let mut at = |value: f64| {
                weights[i] = value;
                losses(&weights)
            };
            let (above, below) = (at(self.weights[i] + DELTA), at(self.weights[i] - DELTA));
            weights[i] = self.weights[i];
            for ((slope, above), below) in column.iter_mut().zip(above).zip(below) {
                *slope = (above - below) / (2.0 * DELTA);
            }
        }
        self.shaped(gradients.into_iter().collect())
    }

    /// Reshapes gradients to (chunks, weights, d, d).
    fn shaped(&self, gradients: Vec<f64>) -> ArrayD<f64> {
        ArrayD::from_shape_vec(vec![self.chunks().len(), 4, self.d, self.d], gradients).unwrap()
    }

    /// Compares each chunk's gradient in each weight separately, so that a small one cannot hide behind a large one.
    fn assert_gradients(&self, who: &str, got: &ArrayD<f64>, expected: &ArrayD<f64>, rel: f64) {
        for (chunk, (got, expected)) in got.outer_iter().zip(expected.outer_iter()).enumerate() {
            let largest = expected.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
            for (p, (got, expected)) in got.outer_iter().zip(expected.outer_iter()).enumerate() {
                let what = format!("{}, chunk {chunk}, weight {p}", self.name(who));
                // The gradients of W_q and W_k are zero in a chunk of one token: its softmax is 1 for any weights.
                assert_close(&what, got, expected, rel * largest, 0.0);
            }
        }
    }
}

#[test]
fn reference_gradient_is_the_slope_of_its_loss() {
    for case in Case::all() {
        let losses = |weights: &[f64]| -> Vec<f64> {
            let weights = case.split(weights);
            let chunks = case.chunks().into_iter();
            let loss = |range: Range<usize>| {
                let rows = (Case::rows(&case.keys, range.clone()), Case::rows(&case.values, range));
                attention_loss(&weights, &rows.0, &rows.1)
            };
            chunks.map(loss).collect()
        };
        case.assert_gradients("reference", &case.by_reference().1, &case.by_differences(losses), DIFFERENCE);
    }
}

#[test]
fn model_gradient_is_the_slope_of_its_loss() {
    for case in Case::all() {
        let expected = case.by_differences(|weights| case.by_model(weights).0);
        case.assert_gradients("model", &case.by_model(&case.weights).1, &expected, DIFFERENCE);
    }
}

#[test]
fn model_and_reference_agree() {
    for case in Case::all() {
        let ((losses, gradients), (expected_losses, expected)) =
            (case.by_model(&case.weights), case.by_reference());
        let shaped = |losses: Vec<f64>| ArrayD::from_shape_vec(vec![losses.len()], losses).unwrap();
        let (losses, expected_losses) = (shaped(losses), shaped(expected_losses));
        let what = case.name("losses");
        assert_close_to_largest(&what, losses.view(), expected_losses.view(), ROUNDING);
        case.assert_gradients("model against reference", &gradients, &expected, ROUNDING);
    }
}
