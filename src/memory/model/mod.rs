//! Memory models: the networks whose weights are the memory. One file a model; the engine knows a model through
//! [`MemoryModel`] alone.

mod attention;

pub use attention::Attention;

use ndarray::{ArrayView2, ArrayViewMut2};

use crate::real::Real;

/// A small network M that maps rows (tokens, d) to rows (tokens, d) of the same chunk.
///
/// Weights come as one slice: all memory weights in file order, each row-major with the shape that
/// [`shapes`](Self::shapes) tells. Rows come as whole chunks of `chunk` tokens, of which the last may be cut short:
/// no row sees another chunk, nor a later row.
pub trait MemoryModel<T: Real>: Send + Sync {
    /// Buffers that one task reuses from block to block.
    type Workspace: Send;

    /// (rows, cols) of each memory weight, in file order.
    fn shapes(&self) -> &[(usize, usize)];

    /// Buffers for blocks of up to `rows` rows in chunks of `chunk`.
    fn workspace(&self, rows: usize, chunk: usize) -> Self::Workspace;

    /// `out ← M_weights(inputs)`, both (rows, d).
    fn read(
        &self,
        weights: &[T],
        inputs: ArrayView2<T>,
        chunk: usize,
        out: ArrayViewMut2<T>,
        workspace: &mut Self::Workspace,
    );

    /// The associative loss and its gradient. `losses` (one per row) gets the mean over d of (M(k) − v)²; the loss
    /// of a chunk is the sum over its rows. Per weight, in file order, comes back the gradient in low rank: chunk
    /// i's is `g = Aᵀ B` over chunk i's rows of A (rows, in) and B (rows, out).
    fn surprise<'w>(
        &self,
        weights: &[T],
        keys: ArrayView2<'w, T>,
        values: ArrayView2<T>,
        chunk: usize,
        losses: &mut [T],
        workspace: &'w mut Self::Workspace,
    ) -> Vec<Factors<'w, T>>;
}

/// The thin factors of one weight's gradients: see [`MemoryModel::surprise`].
#[derive(Clone, Copy, Debug)]
pub struct Factors<'a, T> {
    /// A: (rows, in)
    pub input: ArrayView2<'a, T>,
    /// B: (rows, out)
    pub cotangent: ArrayView2<'a, T>,
}
