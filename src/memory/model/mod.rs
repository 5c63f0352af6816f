//! Memory models: the networks whose weights are the memory. Each model is one file; the engine uses a model
//! only through [`MemoryModel`].

mod attention;

pub use attention::Attention;

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};

use crate::real::Real;

/// A small network M that maps rows (tokens, d) to rows (tokens, d) of the same chunk, in layers. A layer
/// multiplies its input rows by one or more memory weights, whose products stand side by side. The input of the
/// next layer is some function of these products. The engine computes the products with the moving weights, and
/// the model everything else.
///
/// Memory weights are one slice: all of them in file order, each row-major with the shape given by
/// [`shapes`](Self::shapes). Rows come as whole chunks of `chunk` tokens, of which the last may be shorter. No
/// row depends on another chunk or on a later row. All matrices have contiguous rows.
pub trait MemoryModel<T: Real>: Send + Sync {
    /// W in the form from which gradients are taken.
    type Weights: Clone + std::fmt::Debug + Send + Sync;
    /// Buffers that one task reuses from call to call.
    type Scratch: Send;

    /// Returns the shape (rows, cols) of each memory weight, in file order. Weights of a layer have the same rows.
    fn shapes(&self) -> &[(usize, usize)];

    /// Returns the range of memory weights of each layer, in file order.
    fn layers(&self) -> &[Range<usize>];

    /// Prepares the weights, given as one slice.
    fn prepare(&self, weights: &[T]) -> Self::Weights;

    /// Allocates buffers for up to `rows` rows in chunks of `chunk` tokens.
    fn scratch(&self, rows: usize, chunk: usize) -> Self::Scratch;

    /// Returns the most numbers that such buffers hold.
    fn scratch_numbers(&self, rows: usize, chunk: usize) -> usize;

    /// Computes the input (rows, in) of the layer after `layer` from the products (rows, out) of `layer`.
    fn activate(
        &self,
        layer: usize,
        chunk: usize,
        products: ArrayView2<T>,
        inputs: ArrayViewMut2<T>,
        scratch: &mut Self::Scratch,
    );

    /// Computes the associative loss and its gradient. `losses` (one per row) receives the mean over d of (M(k)
    /// − v)²; the loss of a chunk is the sum over its rows. `factors` receives the gradient in low rank. A is
    /// the keys in the first layer and `factors.inputs` (rows, in) in later ones; B is `factors.cotangents`
    /// (rows, out). The gradient of a layer's weights, side by side, is `g = Aᵀ B` over the rows of each chunk.
    #[expect(clippy::too_many_arguments, reason = "what a gradient is made of and made into")]
    fn loss_and_gradient(
        &self,
        weights: &Self::Weights,
        keys: ArrayView2<T>,
        values: ArrayView2<T>,
        chunk: usize,
        losses: &mut [f64],
        factors: &mut Factors<ArrayViewMut2<T>>,
        scratch: &mut Self::Scratch,
    );
}

/// The thin factors of a block's gradients: see [`MemoryModel::loss_and_gradient`]. The matrices are owned, or
/// views of some of their rows.
#[derive(Clone, Debug)]
pub struct Factors<M> {
    /// Factor A (rows, in) of each layer after the first.
    pub inputs: Vec<M>,
    /// Factor B (rows, out) of each layer.
    pub cotangents: Vec<M>,
}

impl<T: Real> Factors<Array2<T>> {
    /// Allocates factors for a number of rows of `model`.
    pub fn new(model: &impl MemoryModel<T>, rows: usize) -> Self {
        let widths = |layer: &Range<usize>| {
            let shapes = &model.shapes()[layer.clone()];
            (shapes[0].0, shapes.iter().map(|shape| shape.1).sum())
        };
        Self {
            inputs: model.layers()[1..].iter().map(|layer| Array2::zeros((rows, widths(layer).0))).collect(),
            cotangents: model.layers().iter().map(|layer| Array2::zeros((rows, widths(layer).1))).collect(),
        }
    }

    /// Returns the first `rows` rows in views of `group` rows each; the last may have fewer.
    pub fn groups(&mut self, rows: usize, group: usize) -> Vec<Factors<ArrayViewMut2<'_, T>>> {
        let mut groups: Vec<_> = (0..rows.div_ceil(group))
            .map(|_| Factors { inputs: Vec::new(), cotangents: Vec::new() })
            .collect();
        let Self { inputs, cotangents } = self;
        for matrix in inputs {
            groups.iter_mut().zip(cut(matrix, rows, group)).for_each(|(group, part)| group.inputs.push(part));
        }
        for matrix in cotangents {
            let parts = groups.iter_mut().zip(cut(matrix, rows, group));
            parts.for_each(|(group, part)| group.cotangents.push(part));
        }
        groups
    }
}

/// Yields the first `rows` rows of a matrix in groups.
fn cut<T>(matrix: &mut Array2<T>, rows: usize, group: usize) -> impl Iterator<Item = ArrayViewMut2<'_, T>> {
    let mut rest = Some(matrix.slice_mut(s![..rows, ..]));
    std::iter::from_fn(move || {
        let all = rest.take()?;
        let rows = group.min(all.nrows());
        let (part, later) = all.split_at(Axis(0), rows);
        rest = (later.nrows() > 0).then_some(later);
        Some(part)
    })
}
