//! Hand-written gradients of every memory model under every loss, in the oracle and in the engine. The oracle's are
//! compared with central differences of its loss in f64, and the engine's with the oracle's and with differences of its
//! own loss.

mod support;

use std::ops::Range;

use ndarray::{Array2, ArrayD, ArrayView2, Axis, s};
use nmem::engine::gradient::{Examples, Factors, GradientPoint, GradientScratch, loss_and_gradient};
use nmem::memory::Loss;
use nmem::memory::graph::{Graph, NodeKind, Value};
use nmem::memory::model::{Model, ModelKind};
use nmem::memory::operators::buffers;
use nmem::memory::reference;
use support::{assert_close, assert_close_to_largest, uniform};

/// Half the distance of a central difference. Its truncation error is about δ²/6 · ℓ''' and its rounding error
/// ε ℓ / δ, so ∛ε balances the two.
const DELTA: f64 = 6e-6;
/// Tolerance against differences: δ² and ε/δ are both near 4e-11. With the weights below, third derivatives and
/// losses exceed the largest gradient by at most two orders; p-norms have larger ones. A wrong term causes 1e-2 and more.
const DIFFERENCE: f64 = 1e-7;
/// Tolerance between two ways to compute the same sums of at most a few hundred products.
const ROUNDING: f64 = 1e-12;

const LOSSES: [Loss; 5] = [
    Loss::MeanSquare,
    Loss::HalfSquare,
    Loss::InnerProduct,
    Loss::Huber { delta: 0.6 },
    Loss::PNorm { p: 3.0 },
];

struct Case {
    name: String,
    graph: Graph,
    loss: Loss,
    chunk: usize,
    weights: Vec<f64>,
    keys: Array2<f64>,
    values: Array2<f64>,
    /// Weight of each row's loss.
    rates: Option<Vec<f64>>,
}

impl Case {
    /// Returns cases of every model, with and without the wrapper, that go through all losses, with weights large enough
    /// that the softmax is far from uniform, and small enough that it does not saturate.
    fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for (&kind, residual_norm) in ModelKind::ALL.iter().flat_map(|kind| [(kind, false), (kind, true)]) {
            // A LayerNorm of two numbers is a step, so heads have at least four.
            for (d, chunk) in [(6_usize, 3_usize), (5, 7), (4, 16), (4, 1)] {
                // One token, a whole chunk, and several chunks of which the last is partial.
                for rows in [1, chunk, 3 * chunk + chunk.div_ceil(2)] {
                    let loss = LOSSES[cases.len() % LOSSES.len()];
                    cases.push(Self::new(Model::new(kind, residual_norm), loss, (d, chunk, rows)));
                }
            }
        }
        // Other depths than the defaults.
        for kind in [ModelKind::Mlp, ModelKind::Swiglu, ModelKind::GatedResidual, ModelKind::Factorized] {
            for depth in [1, 3] {
                let mut model = Model::new(kind, true);
                model.options.depth = Some(depth);
                // An odd number of rows has no weights, so that differences apply.
                cases.push(Self::new(model, Loss::MeanSquare, (4, 5, 7)));
            }
        }
        cases
    }

    fn new(mut model: Model, loss: Loss, (d, chunk, rows): (usize, usize, usize)) -> Self {
        model.options.rank = model.options.rank.map(|_| 2);
        model.options.expansion = model.options.expansion.map(|_| 1.6);
        let graph = model.graph(d);
        let seed = (1000 * d + 10 * chunk + rows) as u64;
        let keys = uniform((2, rows, d), 1.5, seed + 1);
        let weights = uniform((1, 1, graph.elements()), 1.0, seed);
        let rates = (rows % 2 == 0).then(|| uniform((1, 1, rows), 1.0, seed + 2).into_iter().collect());
        Self {
            name: format!("{model:?}, {loss:?}, d {d}, c {chunk}, {rows} rows"),
            graph,
            loss,
            chunk,
            weights: weights.into_iter().collect(),
            keys: keys.index_axis(Axis(0), 0).to_owned(),
            values: keys.index_axis(Axis(0), 1).to_owned(),
            rates,
        }
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
        let parts = self.graph.shapes().into_iter().zip(self.graph.places());
        parts.map(|(shape, place)| Array2::from_shape_vec(shape, weights[place].to_vec()).unwrap()).collect()
    }

    /// Returns loss and gradient per chunk, computed by the oracle.
    fn by_reference(&self, weights: &[f64]) -> (Vec<f64>, ArrayD<f64>) {
        let weights = self.split(weights);
        let mut gradients = Vec::new();
        let losses = self.chunks().into_iter().map(|range| {
            let (keys, values) =
                (Self::rows(&self.keys, range.clone()), Self::rows(&self.values, range.clone()));
            let rates = self.rates.as_ref().map(|rates| &rates[range]);
            let model = (&self.graph, self.loss);
            let (loss, gradient) = reference::loss_and_gradient(model, &weights, &keys, &values, rates);
            gradients.extend(gradient.into_iter().flatten());
            loss
        });
        (losses.collect(), self.shaped(gradients))
    }

    /// Returns the same from the engine, with all chunks in one call.
    fn by_engine(&self, weights: &[f64]) -> (Vec<f64>, ArrayD<f64>) {
        let rows = self.keys.nrows();
        // The buffers have space for more rows than exist, as in a group at the end of a sequence, and their
        // old contents must not matter.
        let most = rows.max(4 * self.chunk);
        let mut scratch = GradientScratch::new(&self.graph, most);
        let mut works = buffers(&self.graph, most, self.chunk);
        for kept in works.iter_mut().flatten().flat_map(|work| &mut work.kept) {
            kept.fill(f64::NAN);
        }
        let mut factors = Factors::new(&self.graph, rows);
        for matrix in factors.inputs.iter_mut().chain(&mut factors.cotangents).flatten() {
            matrix.fill(f64::NAN);
        }
        let mut losses = vec![f64::NAN; rows];
        let point = GradientPoint::new(&self.graph, weights);
        let (keys, values, weights) = (self.keys.view(), self.values.view(), self.rates.as_deref());
        let examples = Examples { keys, values, weights, chunk: self.chunk };
        let group = factors.groups(0..rows, rows).remove(0);
        let model = (&self.graph, self.loss);
        loss_and_gradient(model, &point, examples, &mut losses, group, (&mut scratch, &mut works));
        let mut gradients = Vec::new();
        for range in self.chunks() {
            let mut of_chunk = vec![f64::NAN; self.graph.elements()];
            for (i, node) in self.graph.nodes.iter().enumerate() {
                let NodeKind::Linear(of) = &node.kind else { continue };
                let ones = Array2::ones((rows, 1));
                let a = match node.inputs[0] {
                    Value::Rows => keys,
                    Value::Ones => ones.view(),
                    Value::Node(input) => factors.inputs[input].as_ref().unwrap().view(),
                };
                let b = factors.cotangents[i].as_ref().unwrap();
                let product = |a: ArrayView2<f64>| {
                    a.slice(s![range.clone(), ..]).t().dot(&b.slice(s![range.clone(), ..]))
                };
                let product = product(a);
                let mut start = 0;
                for p in of.clone() {
                    let columns = start..start + self.graph.weights[p].cols;
                    start = columns.end;
                    let part = product.slice(s![.., columns]);
                    of_chunk[self.graph.places()[p].clone()]
                        .copy_from_slice(&part.iter().copied().collect::<Vec<_>>());
                }
            }
            gradients.extend(of_chunk);
        }
        let losses = self.chunks().into_iter().map(|range| losses[range].iter().sum()).collect();
        (losses, self.shaped(gradients))
    }

    /// Returns the derivative of each chunk's loss, with the weights of rows, by central differences of `losses`.
    fn by_differences(&self, losses: impl Fn(&[f64]) -> Vec<f64>) -> ArrayD<f64> {
        let mut gradients = Array2::zeros((self.chunks().len(), self.weights.len()));
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

    /// Reshapes gradients to (chunks, elements).
    fn shaped(&self, gradients: Vec<f64>) -> ArrayD<f64> {
        ArrayD::from_shape_vec(vec![self.chunks().len(), self.weights.len()], gradients).unwrap()
    }

    /// Compares each chunk's gradient in each weight separately, so that a small one cannot hide behind a large one.
    fn assert_gradients(&self, who: &str, got: &ArrayD<f64>, expected: &ArrayD<f64>, rel: f64) {
        for (chunk, (got, expected)) in got.outer_iter().zip(expected.outer_iter()).enumerate() {
            // Gradients of the weights that make queries and keys are zero in a chunk of one token: its softmax is 1.
            let largest = expected.iter().fold(1e-3_f64, |largest, x| largest.max(x.abs()));
            for (p, place) in self.graph.places().into_iter().enumerate() {
                let what = format!("{who}: {}, chunk {chunk}, weight {p}", self.name);
                let [got, expected] =
                    [&got, &expected].map(|all| all.slice(s![place.clone()]).to_owned().into_dyn());
                assert_close(&what, got.view(), expected.view(), rel * largest, 0.0);
            }
        }
    }
}

/// The loss of a chunk whose rows have weights is a sum of losses of single rows.
#[test]
fn reference_gradient_is_the_slope_of_its_loss() {
    for case in Case::all().into_iter().filter(|case| case.rates.is_none()) {
        let losses = |weights: &[f64]| case.by_reference(weights).0;
        let expected = case.by_differences(losses);
        case.assert_gradients("reference", &case.by_reference(&case.weights).1, &expected, DIFFERENCE);
    }
}

/// With a weight on one row alone, the gradient is that row's share of the slope: weights of rows are factors of losses.
#[test]
fn weights_of_rows_are_factors_of_their_losses() {
    for mut case in Case::all().into_iter().filter(|case| case.rates.is_some()) {
        let rates = case.rates.clone().unwrap();
        let whole = case.by_reference(&case.weights.clone()).1;
        let mut sum = ArrayD::zeros(whole.raw_dim());
        for (row, &rate) in rates.iter().enumerate() {
            let mut one = vec![0.0; rates.len()];
            one[row] = 1.0;
            case.rates = Some(one);
            sum = sum + rate * &case.by_reference(&case.weights.clone()).1;
        }
        case.assert_gradients("sum of rows", &sum, &whole, ROUNDING);
    }
}

#[test]
fn engine_gradient_is_the_slope_of_its_loss() {
    for case in Case::all().into_iter().filter(|case| case.rates.is_none()) {
        let expected = case.by_differences(|weights| case.by_engine(weights).0);
        case.assert_gradients("engine", &case.by_engine(&case.weights).1, &expected, DIFFERENCE);
    }
}

#[test]
fn engine_and_reference_agree() {
    for case in Case::all() {
        let ((losses, gradients), (expected_losses, expected)) =
            (case.by_engine(&case.weights), case.by_reference(&case.weights));
        let shaped = |losses: Vec<f64>| ArrayD::from_shape_vec(vec![losses.len()], losses).unwrap();
        let (losses, expected_losses) = (shaped(losses), shaped(expected_losses));
        assert_close_to_largest(&case.name, losses.view(), expected_losses.view(), ROUNDING);
        case.assert_gradients("engine against reference", &gradients, &expected, ROUNDING);
    }
}
