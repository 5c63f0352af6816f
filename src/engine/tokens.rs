//! One side's tokens of a block: how they are filled from left-over and new ones, and their norm.

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, s};

use super::Span;
use super::norm::norm;
use crate::error::Result;
use crate::memory::state::Side;
use crate::real::Real;
use crate::scan::vectorised::vectorised;
use crate::sequence::Sequences;

/// Rows (tokens, D) of the current block, normed in place once they are projected from.
#[derive(Debug)]
pub struct Tokens<T> {
    buffer: Array2<T>,
    rows: usize,
}

impl<T: Real> Tokens<T> {
    pub fn new(capacity: usize, dim: usize) -> Self {
        Self { buffer: Array2::zeros((capacity, dim)), rows: 0 }
    }

    /// Fills the rows with the positions of `span`.
    pub fn load(
        &mut self,
        side: &Side<T>,
        from: &dyn Sequences<T>,
        sequence: usize,
        span: Span,
    ) -> Result<()> {
        self.rows = span.len();
        side.read_rows(from, sequence, span.start, self.rows_mut())
    }

    pub fn rows(&self) -> ArrayView2<'_, T> {
        self.buffer.slice(s![..self.rows, ..])
    }

    pub fn rows_mut(&mut self) -> ArrayViewMut2<'_, T> {
        self.buffer.slice_mut(s![..self.rows, ..])
    }
}

/// `x ← x · rsqrt(mean(x²) + ε) · weight` for each row.
pub fn rms_norm<T: Real>(mut rows: ArrayViewMut2<T>, weight: &Array1<T>) {
    let weight = weight.as_slice().expect("contiguous");
    let width = (weight.len() as f64).sqrt();
    vectorised(
        #[inline(always)]
        || {
            for mut row in rows.rows_mut() {
                let row = row.as_slice_mut().expect("contiguous rows");
                let root_mean_square = norm(row) / width;
                let scale = T::of((root_mean_square * root_mean_square + T::EPS.wide()).sqrt().recip());
                for (x, &w) in row.iter_mut().zip(weight) {
                    *x = *x * scale * w;
                }
            }
        },
    );
}
