//! Sources of tokens: [`Sequences`] are read block by block, so that a file larger than memory can be stored.

use ndarray::{Array3, ArrayViewMut2, s};

use crate::error::Result;
use crate::real::Real;

/// The shape (sequences, tokens, dim) of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Shape {
    /// Number of sequences side by side (the batch).
    pub sequences: usize,
    /// Tokens of each sequence.
    pub tokens: usize,
    /// Numbers per token: the model width.
    pub dim: usize,
}

/// Token sequences that can be read in blocks of rows.
pub trait Sequences<T>: Sync {
    /// Returns the shape.
    fn shape(&self) -> Shape;

    /// Returns whether a store of these tokens comes to its end. Singular values are taken there, besides where they are due.
    fn is_end(&self) -> bool {
        true
    }

    /// Copies the tokens `start .. start + out.nrows()` of one sequence into `out` (rows, dim).
    fn read_rows(&self, sequence: usize, start: usize, out: ArrayViewMut2<T>) -> Result<()>;
}

impl<T: Real> Sequences<T> for Array3<T> {
    fn shape(&self) -> Shape {
        let (sequences, tokens, dim) = self.dim();
        Shape { sequences, tokens, dim }
    }

    fn read_rows(&self, sequence: usize, start: usize, mut out: ArrayViewMut2<T>) -> Result<()> {
        let rows = out.nrows();
        out.assign(&self.slice(s![sequence, start..start + rows, ..]));
        Ok(())
    }
}
