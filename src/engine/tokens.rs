//! One side's tokens of a block: as given, normed, and how they are filled from left-over and new ones.

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, s};

use super::Span;
use crate::error::Result;
use crate::memory::state::Side;
use crate::real::Real;
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
        side.read_rows(from, sequence, span.start, self.buffer.slice_mut(s![..self.rows, ..]))
    }

    pub fn rows(&self) -> ArrayView2<'_, T> {
        self.buffer.slice(s![..self.rows, ..])
    }

    /// Applies an `RMSNorm`, where there is one.
    pub fn norm(&mut self, weight: Option<&Array1<T>>) {
        if let Some(weight) = weight {
            rms_norm(self.buffer.slice_mut(s![..self.rows, ..]), weight);
        }
    }
}

/// `x ← x · rsqrt(mean(x²) + ε) · weight` for each row.
pub fn rms_norm<T: Real>(mut rows: ArrayViewMut2<T>, weight: &Array1<T>) {
    let width = weight.len() as f64;
    for mut row in rows.rows_mut() {
        // In f64, so that no square overflows or vanishes in f32.
        let mean_square = row.fold(0.0, |sum, x| sum + x.wide() * x.wide()) / width;
        let scale = T::of((mean_square + T::EPS.wide()).sqrt().recip());
        row.zip_mut_with(weight, |x, &w| *x = *x * scale * w);
    }
}
