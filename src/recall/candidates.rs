//! The rows that an answer can be: distinct, scaled to unit length and packed for products with many rows.

use std::collections::HashMap;

use ndarray::{Array2, ArrayView1, ArrayView2};

use crate::packed::Packed;
use crate::real::Real;

/// Distinct candidates. Equal rows are one candidate.
pub(super) struct Candidates<T: Real> {
    /// Unit rows as columns: (w, candidates).
    units: Packed<T>,
    /// Each candidate by the bits of its row.
    known: HashMap<Vec<u64>, usize>,
    /// Number of each candidate's first row.
    places: Vec<usize>,
}

fn bits<T: Real>(row: ArrayView1<T>) -> Vec<u64> {
    // Adding zero makes −0 and 0 the same.
    row.iter().map(|&x| (Real::to_f64(x) + 0.0).to_bits()).collect()
}

impl<T: Real> Candidates<T> {
    /// Takes the distinct rows of (rows, w).
    pub fn new(rows: ArrayView2<T>) -> Self {
        let (mut known, mut places) = (HashMap::new(), Vec::new());
        for (place, row) in rows.rows().into_iter().enumerate() {
            known.entry(bits(row)).or_insert_with(|| {
                places.push(place);
                places.len() - 1
            });
        }
        let norms: Vec<f64> = places.iter().map(|&place| norm(rows.row(place))).collect();
        let unit = |(i, c): (usize, usize)| match norms[c] {
            0.0 => T::zero(),
            norm => T::from_f64(Real::to_f64(rows[[places[c], i]]) / norm),
        };
        let units = Array2::from_shape_fn((rows.ncols(), places.len()), unit);
        Self { units: Packed::new(units.view()), known, places }
    }

    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Returns the number of a candidate's first row.
    pub fn place(&self, candidate: usize) -> usize {
        self.places[candidate]
    }

    /// Returns the candidate that equals a row.
    pub fn find(&self, row: ArrayView1<T>) -> Option<usize> {
        self.known.get(&bits(row)).copied()
    }

    /// Returns the candidate that equals a row, or else the nearest in angle; `None` for zeros.
    pub fn nearest(&self, row: ArrayView1<T>) -> Option<usize> {
        self.find(row).or_else(|| {
            let products = self.products(row.insert_axis(ndarray::Axis(0)));
            row.iter().any(|&x| x != T::zero()).then(|| largest(products.row(0)))
        })
    }

    /// Returns the products of rows (rows, w) with the unit candidates: (rows, candidates). They order candidates as their
    /// cosines do.
    pub fn products(&self, rows: ArrayView2<T>) -> Array2<T> {
        let mut products = Array2::zeros((rows.nrows(), self.len()));
        let rows = rows.as_standard_layout();
        self.units.multiply(rows.view(), products.view_mut());
        products
    }
}

/// Returns the Euclidean norm.
fn norm<T: Real>(row: ArrayView1<T>) -> f64 {
    row.iter().map(|&x| Real::to_f64(x).powi(2)).sum::<f64>().sqrt()
}

/// Returns the place of the first of the largest numbers.
pub(super) fn largest<T: Real>(of: ArrayView1<T>) -> usize {
    let better = |best: (usize, T), (i, &x): (usize, &T)| if x > best.1 { (i, x) } else { best };
    of.iter().enumerate().fold((0, of[0]), better).0
}
