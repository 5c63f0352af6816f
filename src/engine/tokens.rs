//! Tokens of one stream in a block: filling the rows from left-over and new tokens, and the `RMSNorm`.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};

use super::plan::{Block, Plan, Sizes, TokenRange};
use crate::error::Result;
use crate::memory::state::StreamPosition;
use crate::norm::rms_scale;
use crate::real::Real;
use crate::sequence::Sequences;
use crate::simd::vectorised;

/// Rows (tokens, D) of the current block. They are normed in place before they are projected.
#[derive(Debug)]
pub struct Tokens<T> {
    buffer: Array2<T>,
    rows: usize,
}

impl<T: Real> Tokens<T> {
    fn new(capacity: usize, dim: usize) -> Self {
        Self { buffer: Array2::zeros((capacity, dim)), rows: 0 }
    }

    /// Fills the rows with the positions of `range`.
    fn load(
        &mut self,
        position: &StreamPosition<T>,
        from: &dyn Sequences<T>,
        sequence: usize,
        range: TokenRange,
    ) -> Result<()> {
        self.rows = range.len();
        position.read_rows(from, sequence, range.start, self.rows_mut())
    }

    pub fn rows(&self) -> ArrayView2<'_, T> {
        self.buffer.slice(s![..self.rows, ..])
    }

    /// Elements of all rows, row-major.
    pub fn elements(&self) -> &[T] {
        let elements = self.buffer.as_slice().expect("standard layout");
        &elements[..self.rows * self.buffer.ncols()]
    }

    pub fn rows_mut(&mut self) -> ArrayViewMut2<'_, T> {
        self.buffer.slice_mut(s![..self.rows, ..])
    }
}

/// Tokens of both streams in a sequence's block.
#[derive(Debug)]
pub struct BlockTokens<T> {
    pub store: Tokens<T>,
    pub read: Tokens<T>,
}

impl<T: Real> BlockTokens<T> {
    pub fn new(sizes: Sizes, dim: usize) -> Self {
        Self { store: Tokens::new(sizes.stored, dim), read: Tokens::new(sizes.read, dim) }
    }

    /// Returns the bytes of both buffers.
    pub fn bytes(&self) -> usize {
        (self.store.buffer.len() + self.read.buffer.len()) * size_of::<T>()
    }

    /// Fills both streams with the tokens of a block.
    pub fn load(&mut self, plan: &Plan<'_, T>, sequence: usize, block: Block) -> Result<()> {
        if let Some(sequences) = plan.store {
            self.store.load(&plan.stored_before, sequences, sequence, block.store)?;
        }
        if let Some(sequences) = plan.read {
            self.read.load(&plan.read_before, sequences, sequence, block.read)?;
        }
        Ok(())
    }
}

/// Computes `x ← x · rsqrt(mean(x²) + ε) · weight` for each row.
pub fn rms_norm<T: Real>(mut rows: ArrayViewMut2<T>, weight: &[T]) {
    vectorised(
        #[inline(always)]
        || {
            for mut row in rows.rows_mut() {
                let row = row.as_slice_mut().expect("contiguous rows");
                let scale = rms_scale(row);
                for (x, &w) in row.iter_mut().zip(weight) {
                    *x = *x * scale * w;
                }
            }
        },
    );
}

/// Computes the [`rms_norm`] of each head's part of each row, with the heads' weights (h·d) side by side.
pub fn rms_norm_heads<T: Real>(mut rows: ArrayViewMut2<T>, weights: &[T], d: usize) {
    for (head, weight) in rows.axis_chunks_iter_mut(Axis(1), d).zip(weights.chunks_exact(d)) {
        rms_norm(head, weight);
    }
}
