//! Products of one, two or four rows with the sum of two matrices, without forming the sum: writing and reading it would take
//! longer than the product.

#![expect(clippy::inline_always, reason = "compiled once per instruction set, as part of what is dispatched")]

use std::ops::Range;

use ndarray::{ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis};
use pulp::{Arch, Simd, WithSimd};

use super::block::Block;
use crate::real::Real;

const CONTIGUOUS: &str = "contiguous rows";

/// Largest number of rows here.
pub const MAX_ROWS: usize = 4;

/// Returns whether there is a product of this number of rows.
pub fn are_few(rows: usize) -> bool {
    matches!(rows, 1 | 2 | MAX_ROWS)
}

/// Few rows of the factors A and B of a gradient Aᵀ B; or none.
#[derive(Clone, Copy)]
pub struct FewRows<'a, T> {
    a: [&'a [T]; MAX_ROWS],
    b: [&'a [T]; MAX_ROWS],
    rows: usize,
}

impl<'a, T: Real> FewRows<'a, T> {
    pub fn empty() -> Self {
        Self { a: [&[]; MAX_ROWS], b: [&[]; MAX_ROWS], rows: 0 }
    }

    /// Takes some rows of A and B, if they are few.
    pub fn new(factors: [ArrayView2<'a, T>; 2], rows: Range<usize>) -> Option<Self> {
        are_few(rows.len()).then(|| Self { rows: rows.len(), ..Self::empty() }.with(factors, rows))
    }

    /// Returns rows of zeros. `zeros` is at least as long as a row of A and as one of B.
    pub fn padded(rows: usize, zeros: &'a [T]) -> Self {
        Self { a: [zeros; MAX_ROWS], b: [zeros; MAX_ROWS], rows }
    }

    /// Takes some rows of A and B in place of the first.
    pub fn with(mut self, [a, b]: [ArrayView2<'a, T>; 2], rows: Range<usize>) -> Self {
        for (k, r) in rows.enumerate() {
            self.a[k] = row(a, r);
            self.b[k] = row(b, r);
        }
        self
    }

    /// Returns the rows in a block of the rows of the gradient.
    pub fn in_block(mut self, block: &Block) -> Self {
        for a in &mut self.a[..self.rows] {
            *a = &a[block.rows.clone()];
        }
        self
    }

    #[inline(always)]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the width of a row of the gradient.
    #[inline(always)]
    pub fn width(&self) -> Option<usize> {
        (self.rows > 0).then(|| self.b[0].len())
    }

    /// Returns the factor of a row of B in row `i` of the block.
    #[inline(always)]
    pub fn a(&self, row: usize, i: usize) -> T {
        self.a[row][i]
    }

    #[inline(always)]
    pub fn b(&self, row: usize) -> &'a [T] {
        self.b[row]
    }
}

/// Computes X (B + C).
pub fn multiply<T: Real>(to: ArrayViewMut2<T>, x: ArrayView2<T>, [b, c]: [ArrayView2<T>; 2]) {
    match x.nrows() {
        1 => Arch::new().dispatch(Product::<T, 1> { to, x, b, c }),
        2 => Arch::new().dispatch(Product::<T, 2> { to, x, b, c }),
        MAX_ROWS => Arch::new().dispatch(Product::<T, MAX_ROWS> { to, x, b, c }),
        rows => unreachable!("{rows} rows are not few"),
    }
}

/// Computes Y (B + C)ᵀ, and adds it to what `to` holds if `keep`.
pub fn multiply_transposed<T: Real>(
    to: ArrayViewMut2<T>,
    keep: bool,
    y: ArrayView2<T>,
    [b, c]: [ArrayView2<T>; 2],
) {
    match y.nrows() {
        1 => Arch::new().dispatch(Transposed::<T, 1> { to, keep, y, b, c }),
        2 => Arch::new().dispatch(Transposed::<T, 2> { to, keep, y, b, c }),
        MAX_ROWS => Arch::new().dispatch(Transposed::<T, MAX_ROWS> { to, keep, y, b, c }),
        rows => unreachable!("{rows} rows are not few"),
    }
}

/// Returns a row of a matrix.
#[inline(always)]
fn row<T>(matrix: ArrayView2<'_, T>, i: usize) -> &[T] {
    matrix.index_axis_move(Axis(0), i).to_slice().expect(CONTIGUOUS)
}

/// Returns whole vectors of a row and the numbers after them.
#[inline(always)]
pub fn vectors<T: Real, S: Simd>(row: &[T]) -> (&[T::Vector<S>], &[T]) {
    let vectors = T::vectors::<S>(row);
    (vectors, &row[size_of_val(vectors) / size_of::<T>()..])
}

struct Product<'a, T, const ROWS: usize> {
    to: ArrayViewMut2<'a, T>,
    x: ArrayView2<'a, T>,
    b: ArrayView2<'a, T>,
    c: ArrayView2<'a, T>,
}

impl<T: Real, const ROWS: usize> WithSimd for Product<'_, T, ROWS> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { mut to, x, b, c } = self;
        to.fill(T::zero());
        let mut rows = to.rows_mut().into_iter();
        let mut to: [&mut [T]; ROWS] =
            std::array::from_fn(|_| rows.next().and_then(ArrayViewMut1::into_slice).expect(CONTIGUOUS));
        // Several rows of the weights at a time, so that sums are loaded and stored less often.
        let depth = b.nrows();
        let mut i = 0;
        while i < depth {
            if depth - i >= DEPTH {
                add_rows::<T, S, ROWS, DEPTH>(simd, &mut to, x, [b, c], i);
                i += DEPTH;
            } else {
                add_rows::<T, S, ROWS, 1>(simd, &mut to, x, [b, c], i);
                i += 1;
            }
        }
    }
}

/// Rows of the weights of one pass over the sums.
const DEPTH: usize = 4;

/// Adds the products with some rows of the weights, from `first` on.
#[inline(always)]
fn add_rows<T: Real, S: Simd, const ROWS: usize, const ROWS_OF_WEIGHTS: usize>(
    simd: S,
    to: &mut [&mut [T]; ROWS],
    x: ArrayView2<T>,
    weights: [ArrayView2<T>; 2],
    first: usize,
) {
    let x: [[T; ROWS_OF_WEIGHTS]; ROWS] = std::array::from_fn(|r| std::array::from_fn(|i| x[(r, first + i)]));
    let lanes = x.map(|x| x.map(|x| T::splat(simd, x)));
    let rows: [[_; 2]; ROWS_OF_WEIGHTS] =
        std::array::from_fn(|i| weights.map(|matrix| vectors::<T, S>(row(matrix, first + i))));
    let count = rows[0][0].0.len();
    let whole = size_of_val(rows[0][0].0) / size_of::<T>();
    let numbers = rows.map(|pair| pair.map(|(numbers, _)| &numbers[..count]));
    let places = to.each_mut().map(|to| &mut T::vectors_mut::<S>(&mut to[..whole])[..count]);
    for k in 0..count {
        let sums: [_; ROWS_OF_WEIGHTS] =
            std::array::from_fn(|i| T::add_vectors(simd, numbers[i][0][k], numbers[i][1][k]));
        for r in 0..ROWS {
            let mut total = places[r][k];
            for i in 0..ROWS_OF_WEIGHTS {
                total = T::mul_add_vectors(simd, lanes[r][i], sums[i], total);
            }
            places[r][k] = total;
        }
    }
    for (to, x) in to.iter_mut().zip(x) {
        for (x, [(_, b), (_, c)]) in x.into_iter().zip(rows) {
            for ((to, &b), &c) in to[whole..].iter_mut().zip(b).zip(c) {
                *to += x * (b + c);
            }
        }
    }
}

struct Transposed<'a, T, const ROWS: usize> {
    to: ArrayViewMut2<'a, T>,
    keep: bool,
    y: ArrayView2<'a, T>,
    b: ArrayView2<'a, T>,
    c: ArrayView2<'a, T>,
}

impl<T: Real, const ROWS: usize> WithSimd for Transposed<'_, T, ROWS> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { mut to, keep, y, b, c } = self;
        let y: [_; ROWS] = std::array::from_fn(|r| vectors::<T, S>(y.row(r).to_slice().expect(CONTIGUOUS)));
        for (i, (b, c)) in b.rows().into_iter().zip(c.rows()).enumerate() {
            let (b, b_rest) = vectors::<T, S>(b.to_slice().expect(CONTIGUOUS));
            let (c, c_rest) = vectors::<T, S>(c.to_slice().expect(CONTIGUOUS));
            let mut sums = [T::splat(simd, T::ZERO); ROWS];
            let mut factors = y.map(|(y, _)| y.iter());
            for (&b, &c) in b.iter().zip(c) {
                let weight = T::add_vectors(simd, b, c);
                for (sum, factors) in sums.iter_mut().zip(&mut factors) {
                    let &factor = factors.next().expect("as wide as the weights");
                    *sum = T::mul_add_vectors(simd, factor, weight, *sum);
                }
            }
            for (r, (sum, (_, y))) in sums.into_iter().zip(y).enumerate() {
                let rest = b_rest.iter().zip(c_rest).zip(y);
                let rest = rest.fold(T::zero(), |total, ((&b, &c), &y)| total + y * (b + c));
                let total = T::from_f64(T::sum_lanes(simd, sum)) + rest;
                let to = &mut to[(r, i)];
                *to = if keep { *to + total } else { total };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::{are_few, multiply, multiply_transposed};

    #[test]
    fn products_of_few_rows() {
        let matrix = |rows, columns, first: usize| {
            let number = |(i, j)| ((first + i * 31 + j * 17) % 23) as f64 / 23.0 - 0.5;
            Array2::from_shape_fn((rows, columns), number)
        };
        assert!([0, 3, 5].into_iter().all(|rows| !are_few(rows)));
        for rows in [1, 2, 4] {
            assert!(are_few(rows));
            for (depth, width) in [(1, 1), (3, 7), (5, 33), (64, 192)] {
                let [b, c] = [1, 2].map(|first| matrix(depth, width, first));
                let (x, y) = (matrix(rows, depth, 3), matrix(rows, width, 4));
                let mut got = Array2::from_elem((rows, width), 9.0);
                multiply(got.view_mut(), x.view(), [b.view(), c.view()]);
                // Sums of at most 192 products of at most ½, rounded.
                let close = |got: &Array2<f64>, expected: &Array2<f64>| {
                    let error = (got - expected).fold(0.0_f64, |most, x| most.max(x.abs()));
                    assert!(error < 1e-13, "{rows} rows, {depth} × {width}: an error of {error}");
                };
                close(&got, &x.dot(&(&b + &c)));
                for keep in [false, true] {
                    let mut got = Array2::from_elem((rows, depth), 9.0);
                    multiply_transposed(got.view_mut(), keep, y.view(), [b.view(), c.view()]);
                    let expected = y.dot(&(&b + &c).t()) + if keep { 9.0 } else { 0.0 };
                    close(&got, &expected);
                }
            }
        }
    }
}
