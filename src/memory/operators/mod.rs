//! Operators: the functions between a model's linear maps. Each is one file with its forward pass, its vector-Jacobian
//! product, the vector-Jacobian product of that product, and its naive twin in plain loops, which is the oracle for all.
//!
//! Rows of a call are whole chunks of `chunk` rows, of which the last may be shorter. No row depends on another chunk or
//! on a later row. All matrices have contiguous rows.

mod activation;
mod add;
mod attention;
mod gain;
mod glu;
mod layer_norm;
mod mix;

pub use activation::Activation;
pub use attention::{Attention, Scores};

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use super::graph::{Graph, Node, NodeKind};
use crate::packed::PanelRow;
use crate::real::Real;
use add::Add;
use gain::Gain;
use glu::Glu;
use layer_norm::LayerNorm;
use mix::Mix;

/// Rows of numbers in plain loops.
pub type Rows = Vec<Vec<f64>>;

/// Buffers of one operator for a number of rows, reused from call to call.
#[derive(Debug)]
pub struct Work<T> {
    /// Matrices of the shapes that [`Operator::kept`] returns.
    pub kept: Vec<Array2<T>>,
    /// Space for products within a chunk.
    pub panel: Vec<PanelRow<T>>,
}

impl<T: Real> Work<T> {
    /// Allocates the buffers of `op` for up to `rows` rows in chunks of `chunk`.
    pub fn new(op: Op, rows: usize, chunk: usize, inputs: &[usize]) -> Self {
        let kept = op.operator::<T>().kept(rows, chunk.min(rows), inputs);
        Self { kept: kept.into_iter().map(Array2::zeros).collect(), panel: Vec::new() }
    }
}

/// Allocates the buffers of each node of a model that is an operator, for up to `rows` rows in chunks of `chunk`.
pub fn buffers<T: Real>(graph: &Graph, rows: usize, chunk: usize) -> Vec<Option<Work<T>>> {
    let work = |node: &Node| match node.kind {
        NodeKind::Linear(_) => None,
        NodeKind::Operator(op) => Some(Work::new(op, rows, chunk, &graph.input_widths(node))),
    };
    graph.nodes.iter().map(work).collect()
}

/// Returns the numbers in [`buffers`], but for space that grows with a chunk alone.
pub fn kept_numbers<T: Real>(graph: &Graph, rows: usize, chunk: usize) -> usize {
    let kept = |node: &Node| match node.kind {
        NodeKind::Linear(_) => 0,
        NodeKind::Operator(op) => {
            let shapes = op.operator::<T>().kept(rows, chunk.min(rows), &graph.input_widths(node));
            shapes.iter().map(|(rows, columns)| rows * columns).sum()
        }
    };
    graph.nodes.iter().map(kept).sum()
}

/// Arguments of [`Operator::vjp_of_vjp`].
#[derive(Clone, Copy)]
pub struct Second<'a, T> {
    /// Rows of a chunk.
    pub chunk: usize,
    /// Input rows.
    pub inputs: &'a [ArrayView2<'a, T>],
    /// Cotangent of the output, as given to [`Operator::vjp`].
    pub cotangent: ArrayView2<'a, T>,
    /// Cotangents of the results of [`Operator::vjp`]; zero where absent.
    pub tangents: &'a [Option<ArrayView2<'a, T>>],
}

/// Places for the results of [`Operator::vjp_of_vjp`].
pub struct SecondResults<'a, T> {
    /// Receives ∂φ/∂cotangent.
    pub d_cotangent: ArrayViewMut2<'a, T>,
    /// Receive ∂φ/∂input.
    pub d_inputs: &'a mut [Option<ArrayViewMut2<'a, T>>],
}

/// A function of rows without weights.
pub trait Operator<T: Real> {
    /// Returns the shapes of the buffers for a number of rows in chunks of `chunk`, whose inputs have these widths.
    fn kept(&self, rows: usize, chunk: usize, inputs: &[usize]) -> Vec<(usize, usize)>;

    /// Computes the output rows.
    fn forward(&self, chunk: usize, inputs: &[ArrayView2<T>], output: ArrayViewMut2<T>, work: &mut Work<T>);

    /// Computes the output rows, and keeps in `work` what [`vjp`](Self::vjp) needs.
    fn forward_for_vjp(
        &self,
        chunk: usize,
        inputs: &[ArrayView2<T>],
        output: ArrayViewMut2<T>,
        work: &mut Work<T>,
    ) {
        self.forward(chunk, inputs, output, work);
    }

    /// Computes the vector-Jacobian product: the cotangent of each input that has a place in `d_inputs`, from the
    /// cotangent of the output. Follows [`forward_for_vjp`](Self::forward_for_vjp) with the same inputs.
    fn vjp(
        &self,
        chunk: usize,
        inputs: &[ArrayView2<T>],
        cotangent: ArrayView2<T>,
        d_inputs: &mut [Option<ArrayViewMut2<T>>],
        work: &mut Work<T>,
    );

    /// Computes the vector-Jacobian product of [`vjp`](Self::vjp), which the gradient of a stored chunk needs to be
    /// differentiated again. With `tangents`, the cotangents of what `vjp` writes for each input (absent ones are zero), let
    /// φ = Σ ⟨tangent, `vjp` of the input⟩. Writes ∂φ/∂cotangent to `d_cotangent`, which is the derivative of the output
    /// along the tangents, and ∂φ/∂input for each input that has a place in `d_inputs`. Follows
    /// [`forward_for_vjp`](Self::forward_for_vjp) with the same inputs.
    fn vjp_of_vjp(&self, given: &Second<'_, T>, results: SecondResults<'_, T>, work: &mut Work<T>);

    /// Replaces the rows of the only input by the output, if the operator can. Returns whether it did.
    fn forward_in_place(&self, _rows: &mut ArrayViewMut2<T>) -> bool {
        false
    }
}

/// An operator, as part of a model. The variants hold the types of this module's files.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// Elementwise function.
    Activation(Activation),
    /// Causal attention within a chunk.
    Attention(Attention),
    /// `LN(x)`, without a gain.
    LayerNorm(LayerNorm),
    /// `x ∘ (γ + 1)`
    Gain(Gain),
    /// `a + b`
    Add(Add),
    /// `a ∘ gelu(z)` of rows [a z].
    Glu(Glu),
    /// Gated mixture of two inputs.
    Mix(Mix),
    /// Rows of two inputs side by side.
    Concat(add::Concat),
}

impl Op {
    /// Returns `LN(x)`.
    pub fn layer_norm() -> Self {
        Self::LayerNorm(LayerNorm)
    }

    /// Returns `x ∘ (γ + 1)` of the inputs x, γ.
    pub fn gain() -> Self {
        Self::Gain(Gain)
    }

    /// Returns the sum of two inputs.
    pub fn add() -> Self {
        Self::Add(Add)
    }

    /// Returns `a ∘ gelu(z)` of rows [a z].
    pub fn glu() -> Self {
        Self::Glu(Glu)
    }

    /// Returns `x + sigmoid(s) ∘ (v − x)` of the inputs x, v, s.
    pub fn mix() -> Self {
        Self::Mix(Mix)
    }

    /// Returns [a b] of the inputs a, b.
    pub fn concat() -> Self {
        Self::Concat(add::Concat)
    }

    /// Returns the fast implementation.
    pub fn operator<T: Real>(&self) -> &dyn Operator<T> {
        match self {
            Self::Activation(op) => op,
            Self::Attention(op) => op,
            Self::LayerNorm(op) => op,
            Self::Gain(op) => op,
            Self::Add(op) => op,
            Self::Glu(op) => op,
            Self::Mix(op) => op,
            Self::Concat(op) => op,
        }
    }

    /// Returns whether the output may overwrite the only input.
    pub fn is_in_place(&self) -> bool {
        matches!(self, Self::Activation(_))
    }

    /// Returns the width of the output rows for inputs of these widths.
    pub fn width(&self, inputs: &[usize]) -> usize {
        match self {
            Self::Attention(op) => op.width(inputs[0]),
            Self::Glu(_) => inputs[0] / 2,
            Self::Concat(_) => inputs.iter().sum(),
            Self::Activation(_) | Self::LayerNorm(_) | Self::Gain(_) | Self::Add(_) | Self::Mix(_) => {
                inputs[0]
            }
        }
    }

    /// Computes the output rows of one chunk, or of its first rows, in plain loops.
    pub fn naive(&self, inputs: &[&Rows]) -> Rows {
        match self {
            Self::Activation(op) => op.naive(inputs[0]),
            Self::Attention(op) => op.naive(inputs[0]),
            Self::LayerNorm(_) => layer_norm::naive(inputs[0]),
            Self::Gain(_) => gain::naive(inputs[0], inputs[1]),
            Self::Add(_) => add::naive(inputs[0], inputs[1]),
            Self::Glu(_) => glu::naive(inputs[0]),
            Self::Mix(_) => mix::naive(inputs),
            Self::Concat(_) => add::naive_concat(inputs[0], inputs[1]),
        }
    }

    /// Computes the cotangent of each input of one chunk in plain loops.
    pub fn naive_vjp(&self, inputs: &[&Rows], cotangent: &Rows) -> Vec<Rows> {
        match self {
            Self::Activation(op) => vec![op.naive_vjp(inputs[0], cotangent)],
            Self::Attention(op) => vec![op.naive_vjp(inputs[0], cotangent)],
            Self::LayerNorm(_) => vec![layer_norm::naive_vjp(inputs[0], cotangent)],
            Self::Gain(_) => gain::naive_vjp(inputs[0], inputs[1], cotangent),
            Self::Add(_) => vec![cotangent.clone(), cotangent.clone()],
            Self::Glu(_) => vec![glu::naive_vjp(inputs[0], cotangent)],
            Self::Mix(_) => mix::naive_vjp(inputs, cotangent),
            Self::Concat(_) => add::naive_concat_vjp(inputs[0], cotangent),
        }
    }
}

impl Op {
    /// Computes what [`Operator::vjp_of_vjp`] computes, from [`naive_vjp`](Self::naive_vjp) alone: that product is linear in
    /// the cotangent, so its derivative there is exact; the derivative in the inputs is a central difference. Returns
    /// ∂φ/∂cotangent, and ∂φ/∂input for each input.
    pub fn naive_vjp_of_vjp(
        &self,
        inputs: &[&Rows],
        cotangent: &Rows,
        tangents: &[Option<&Rows>],
    ) -> (Rows, Vec<Rows>) {
        let phi = |inputs: &[&Rows], cotangent: &Rows| -> f64 {
            let products = self.naive_vjp(inputs, cotangent);
            let pairs =
                products.iter().zip(tangents).filter_map(|(product, tangent)| Some((product, (*tangent)?)));
            pairs
                .map(|(a, b)| a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| a * b).sum::<f64>())
                .sum()
        };
        let places = |rows: &Rows| -> Vec<(usize, usize)> {
            rows.iter().enumerate().flat_map(|(r, row)| (0..row.len()).map(move |e| (r, e))).collect()
        };
        let zeros = |rows: &Rows| -> Rows { rows.iter().map(|row| vec![0.0; row.len()]).collect() };
        let mut d_cotangent = zeros(cotangent);
        for (r, e) in places(cotangent) {
            let mut unit = zeros(cotangent);
            unit[r][e] = 1.0;
            d_cotangent[r][e] = phi(inputs, &unit);
        }
        let d_input = |i: usize| {
            let mut slopes = zeros(inputs[i]);
            for (r, e) in places(inputs[i]) {
                let at = |step: f64| {
                    let mut moved = inputs[i].clone();
                    moved[r][e] += step;
                    let mut inputs = inputs.to_vec();
                    inputs[i] = &moved;
                    phi(&inputs, cotangent)
                };
                slopes[r][e] = (at(DIFFERENCE_STEP) - at(-DIFFERENCE_STEP)) / (2.0 * DIFFERENCE_STEP);
            }
            slopes
        };
        (d_cotangent, (0..inputs.len()).map(d_input).collect())
    }
}

/// Step of central differences: errors of about 1e-10 from both rounding (ε / step) and curvature (step²).
const DIFFERENCE_STEP: f64 = 1e-5;

/// Applies `f` to each pair of rows.
fn each_row(rows: &Rows, others: &Rows, f: impl Fn(&[f64], &[f64]) -> Vec<f64>) -> Rows {
    rows.iter().zip(others).map(|(a, b)| f(a, b)).collect()
}
