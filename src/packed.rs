//! Matrices for repeated products: weights, divided once into column panels in the layout of the inner loop.
//! The gemm crate rearranges its right-hand side at every call. At a few hundred rows (what stays in cache)
//! that was 8 % of a run with heads of 64, and its own rate is no higher.
//!
//! The engine's panels, whose weights move, use the same inner loop.

#![expect(clippy::inline_always, reason = "compiled once per instruction set, as part of what is dispatched")]
#![expect(clippy::needless_range_loop, reason = "tiles stay in registers where constants index them")]

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use pulp::{Arch, Simd, WithSimd};

use crate::real::Real;
use crate::simd::Lanes;

/// Columns of a panel: two AVX-512 registers of f32. With 8 rows that is 16 sums in flight, enough to hide the
/// latency of a multiply-add, and 2 + 8 loads for 16 of them. AVX2 takes them in two pieces, 6 rows at a time:
/// 12 sums, two weights and a broadcast fit its 16 registers.
pub const WIDTH: usize = 32;
/// Rows of a panel that are filled column by column. They stay in the nearest cache: 8 kB in f32, 16 kB in f64.
const BLOCK: usize = 64;

/// A row of a column panel. Columns past the matrix's own are zero.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct PanelRow<T>(pub [T; WIDTH]);

impl<T: Real> PanelRow<T> {
    /// All columns zero.
    pub const ZERO: Self = Self([T::ZERO; WIDTH]);

    /// Replaces the first values.
    #[inline(always)]
    pub fn fill_from(&mut self, values: &[T]) {
        match values.as_array() {
            Some(all) => self.0 = *all,
            None => self.0[..values.len()].copy_from_slice(values),
        }
    }
}

/// A matrix (in, out) in column panels.
#[derive(Clone, Debug)]
pub struct Packed<T> {
    rows: usize,
    cols: usize,
    /// `rows` rows of the first panel, then of the second, …
    panels: Vec<PanelRow<T>>,
}

impl<T: Real> Packed<T> {
    /// Returns the size in bytes, padding included.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.panels[..])
    }

    /// Divides a matrix (in, out) of at least one row into panels.
    pub fn new(matrix: ArrayView2<T>) -> Self {
        let (rows, cols) = matrix.dim();
        let mut packed = Self { rows, cols, panels: vec![PanelRow::ZERO; rows * cols.div_ceil(WIDTH)] };
        packed.assign(matrix);
        packed
    }

    /// Replaces all elements by those of a matrix (in, out) of the same shape.
    pub fn assign(&mut self, matrix: ArrayView2<T>) {
        assert_eq!(matrix.dim(), (self.rows, self.cols), "shape of a matrix");
        for (start, panel) in (0..self.cols).step_by(WIDTH).zip(self.panels.chunks_mut(self.rows)) {
            let columns = matrix.slice(s![.., start..self.cols.min(start + WIDTH)]);
            if columns.row(0).to_slice().is_some() {
                for (to, row) in panel.iter_mut().zip(columns.rows()) {
                    to.fill_from(row.to_slice().expect("contiguous, as the first row is"));
                }
                continue;
            }
            // The columns of a transposed matrix are contiguous.
            for (to, columns) in panel.chunks_mut(BLOCK).zip(columns.axis_chunks_iter(Axis(0), BLOCK)) {
                for (j, column) in columns.columns().into_iter().enumerate() {
                    to.iter_mut().zip(column).for_each(|(row, &x)| row.0[j] = x);
                }
            }
        }
    }

    /// Creates a matrix (in, out) from its panels: `rows` rows of the first, then of the second, …
    pub fn from_panels(rows: usize, cols: usize, panels: Vec<PanelRow<T>>) -> Self {
        assert_eq!(panels.len(), rows * cols.div_ceil(WIDTH), "panels of ({rows}, {cols})");
        Self { rows, cols, panels }
    }

    /// Returns the original matrix (in, out).
    pub fn to_matrix(&self) -> Array2<T> {
        Array2::from_shape_fn((self.rows, self.cols), |(row, col)| {
            self.panels[col / WIDTH * self.rows + row].0[col % WIDTH]
        })
    }

    /// Returns the number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Computes `out ← inputs W`: (rows, out) from (rows, in), with contiguous rows.
    pub fn multiply(&self, inputs: ArrayView2<T>, out: ArrayViewMut2<T>) {
        assert_eq!(
            (inputs.ncols(), out.dim()),
            (self.rows, (inputs.nrows(), self.cols)),
            "shapes of a product"
        );
        Arch::new().dispatch(Product { packed: self, inputs, out });
    }
}

/// Computes `out ← lower V`, (rows, d), from a lower triangle (rows, rows) with zeros above its diagonal, and V
/// (rows, d). `panel` is space for the panels of V.
pub fn multiply_lower<T: Real>(
    lower: ArrayView2<T>,
    values: ArrayView2<T>,
    out: ArrayViewMut2<T>,
    panel: &mut Vec<PanelRow<T>>,
) {
    triangular(false, lower, values, out, panel);
}

/// Computes `out ← lowerᵀ V`, with the shapes of [`multiply_lower`].
pub fn multiply_lower_transposed<T: Real>(
    lower: ArrayView2<T>,
    values: ArrayView2<T>,
    out: ArrayViewMut2<T>,
    panel: &mut Vec<PanelRow<T>>,
) {
    triangular(true, lower, values, out, panel);
}

fn triangular<T: Real>(
    transposed: bool,
    lower: ArrayView2<T>,
    values: ArrayView2<T>,
    out: ArrayViewMut2<T>,
    panel: &mut Vec<PanelRow<T>>,
) {
    let rows = values.nrows();
    assert_eq!((lower.dim(), out.dim()), ((rows, rows), values.dim()), "shapes of a product");
    grow(panel, rows);
    Arch::new().dispatch(Triangular { transposed, lower, values, out, panel });
}

/// Computes `out ← factor · A Bᵀ` on and below the diagonal, for A and B (rows, in) and `out` (rows, rows).
/// Above the diagonal some numbers are written and others are not. `panel` is space for Bᵀ.
///
/// Each number depends only on its row of A and its row of B, whatever `rows` is. The gemm crate rounds by
/// shape, but the rows of a chunk must not depend on the number of rows that follow.
pub fn multiply_transposed_lower<T: Real>(
    factor: T,
    a: ArrayView2<T>,
    b: ArrayView2<T>,
    out: ArrayViewMut2<T>,
    panel: &mut Vec<PanelRow<T>>,
) {
    let (rows, depth) = a.dim();
    assert_eq!((b.dim(), out.dim()), ((rows, depth), (rows, rows)), "shapes of a product");
    grow(panel, depth);
    Arch::new().dispatch(TransposedLower { factor, a, b, out, panel });
}

/// Grows the panel if needed. It never shrinks, because the products of a chunk alternate between panels of
/// different lengths.
fn grow<T: Real>(panel: &mut Vec<PanelRow<T>>, rows: usize) {
    if panel.len() < rows {
        panel.resize(rows, PanelRow::ZERO);
    }
}

struct TransposedLower<'a, T> {
    factor: T,
    a: ArrayView2<'a, T>,
    b: ArrayView2<'a, T>,
    out: ArrayViewMut2<'a, T>,
    panel: &'a mut [PanelRow<T>],
}

impl<T: Real> WithSimd for TransposedLower<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { factor, a, b, mut out, panel } = self;
        let (rows, depth) = a.dim();
        let lanes = WIDTH / pieces::<T, S>();
        for start in (0..rows).step_by(WIDTH) {
            let width = WIDTH.min(rows - start);
            for j in 0..width {
                let row = b.row(start + j).to_slice().expect("contiguous rows");
                for (to, &x) in panel.iter_mut().zip(row) {
                    to.0[j] = factor * x;
                }
            }
            for piece in 0..width.div_ceil(lanes) {
                let columns = start + piece * lanes..start + width.min((piece + 1) * lanes);
                in_tiles!(S, columns.start..rows, |first, ROWS| {
                    let tile = tile::<T, S, ROWS>(simd, a, first, depth, |k| pair::<T, S>(&panel[k], piece));
                    store(simd, &tile, &mut out, first, columns.clone());
                });
            }
        }
    }
}

struct Product<'a, T> {
    packed: &'a Packed<T>,
    inputs: ArrayView2<'a, T>,
    out: ArrayViewMut2<'a, T>,
}

impl<T: Real> WithSimd for Product<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { packed: Packed { rows, panels, .. }, inputs, mut out } = self;
        for (i, panel) in panels.chunks_exact(*rows).enumerate() {
            let start = i * WIDTH;
            let width = WIDTH.min(out.ncols() - start);
            let mut out = out.slice_mut(s![.., start..start + width]);
            multiply(simd, inputs, 0..inputs.nrows(), panel.len(), &mut out, |k, piece| {
                pair::<T, S>(&panel[k], piece)
            });
        }
    }
}

struct Triangular<'a, T> {
    transposed: bool,
    lower: ArrayView2<'a, T>,
    values: ArrayView2<'a, T>,
    out: ArrayViewMut2<'a, T>,
    panel: &'a mut [PanelRow<T>],
}

impl<T: Real> WithSimd for Triangular<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { transposed, lower, values, mut out, panel } = self;
        let (rows, cols) = values.dim();
        let lanes = WIDTH / pieces::<T, S>();
        for start in (0..cols).step_by(WIDTH) {
            let width = WIDTH.min(cols - start);
            for (to, from) in panel.iter_mut().zip(values.rows()) {
                to.fill_from(&from.to_slice().expect("contiguous rows")[start..start + width]);
            }
            for piece in 0..width.div_ceil(lanes) {
                let columns = start + piece * lanes..start + width.min((piece + 1) * lanes);
                let weights = |k: usize| pair::<T, S>(&panel[k], piece);
                // Past a tile's last row the triangle is zero; before its first row the transpose is.
                in_tiles!(S, 0..rows, |first, ROWS| {
                    let tile = if transposed {
                        tile_transposed::<T, S, ROWS>(simd, lower, first..rows, first, weights)
                    } else {
                        tile::<T, S, ROWS>(simd, lower, first, first + ROWS, weights)
                    };
                    store(simd, &tile, &mut out, first, columns.clone());
                });
            }
        }
    }
}

/// Sums of a tile: `ROWS` rows of two vectors.
pub type Tile<T, S, const ROWS: usize> = [[<T as Lanes>::Vector<S>; 2]; ROWS];

/// Returns the number of vector pairs in a row of a panel.
pub const fn pieces<T: Real, S: Simd>() -> usize {
    WIDTH * size_of::<T>() / (2 * size_of::<T::Vector<S>>())
}

/// Returns one of the [`pieces`] of a row.
#[inline(always)]
pub fn pair<T: Real, S: Simd>(row: &PanelRow<T>, piece: usize) -> [T::Vector<S>; 2] {
    let vectors = T::vectors::<S>(&row.0);
    [vectors[2 * piece], vectors[2 * piece + 1]]
}

/// Divides a range into tiles of as many rows as the registers of instruction set `$simd` hold: 8 rows with 32
/// registers and 6 with 16. The remaining rows form tiles of 4, 2 and 1. In each tile, `$first` is the first
/// row and `$rows` a constant.
macro_rules! in_tiles {
    ($simd:ty, $range:expr, |$first:ident, $rows:ident| $call:expr) => {{
        let std::ops::Range { start: mut $first, end } = $range;
        if <$simd as pulp::Simd>::REGISTER_COUNT >= 32 {
            in_tiles!(@ 8, end, $first, $rows, $call);
        } else {
            in_tiles!(@ 6, end, $first, $rows, $call);
        }
        in_tiles!(@ 4, end, $first, $rows, $call);
        in_tiles!(@ 2, end, $first, $rows, $call);
        in_tiles!(@ 1, end, $first, $rows, $call);
    }};
    (@ $n:literal, $end:ident, $first:ident, $rows:ident, $call:expr) => {
        while $end - $first >= $n {
            const $rows: usize = $n;
            $call;
            $first += $n;
        }
    };
}
pub(crate) use in_tiles;

/// Computes `outputs[range] ← inputs[range] W` for a panel W of `depth` rows, which `weights` yields one at a time.
#[inline(always)]
pub fn multiply<T: Real, S: Simd>(
    simd: S,
    inputs: ArrayView2<'_, T>,
    range: Range<usize>,
    depth: usize,
    outputs: &mut ArrayViewMut2<'_, T>,
    weights: impl Fn(usize, usize) -> [T::Vector<S>; 2],
) {
    let lanes = WIDTH / pieces::<T, S>();
    let width = outputs.ncols();
    for piece in 0..width.div_ceil(lanes) {
        let columns = piece * lanes..width.min((piece + 1) * lanes);
        in_tiles!(S, range.clone(), |first, ROWS| {
            let tile = tile::<T, S, ROWS>(simd, inputs, first, depth, |k| weights(k, piece));
            store(simd, &tile, outputs, first, columns.clone());
        });
    }
}

/// Writes a tile to the rows from `first` on.
#[inline(always)]
fn store<T: Real, S: Simd, const ROWS: usize>(
    simd: S,
    tile: &Tile<T, S, ROWS>,
    outputs: &mut ArrayViewMut2<'_, T>,
    first: usize,
    columns: Range<usize>,
) {
    let lanes = WIDTH / pieces::<T, S>();
    for r in 0..ROWS {
        let mut row = outputs.row_mut(first + r);
        let row = &mut row.as_slice_mut().expect("contiguous rows")[columns.clone()];
        if row.len() == lanes {
            T::vectors_mut::<S>(row).copy_from_slice(&tile[r]);
        } else {
            let (left, right) = row.split_at_mut(row.len().min(lanes / 2));
            T::store_some(simd, left, tile[r][0]);
            T::store_some(simd, right, tile[r][1]);
        }
    }
}

/// Computes rows of X W, from the rows of X from `first` on and their first `depth` numbers.
#[inline(always)]
fn tile<T: Real, S: Simd, const ROWS: usize>(
    simd: S,
    inputs: ArrayView2<'_, T>,
    first: usize,
    depth: usize,
    weights: impl Fn(usize) -> [T::Vector<S>; 2],
) -> Tile<T, S, ROWS> {
    let mut x: [&[T]; ROWS] = [&[]; ROWS];
    for (r, x) in x.iter_mut().enumerate() {
        *x = &inputs.row(first + r).to_slice().expect("contiguous rows")[..depth];
    }
    let mut tile = [[T::splat(simd, T::ZERO); 2]; ROWS];
    for k in 0..depth {
        let [left, right] = weights(k);
        for r in 0..ROWS {
            let x = T::splat(simd, x[r][k]);
            tile[r][0] = T::mul_add_vectors(simd, x, left, tile[r][0]);
            tile[r][1] = T::mul_add_vectors(simd, x, right, tile[r][1]);
        }
    }
    tile
}

/// Computes rows of Aᵀ B, from the columns of A from `first` on, summed over its rows `terms`. `weights` yields
/// the rows of B.
#[inline(always)]
pub fn tile_transposed<T: Real, S: Simd, const ROWS: usize>(
    simd: S,
    inputs: ArrayView2<'_, T>,
    terms: Range<usize>,
    first: usize,
    weights: impl Fn(usize) -> [T::Vector<S>; 2],
) -> Tile<T, S, ROWS> {
    let mut tile = [[T::splat(simd, T::ZERO); 2]; ROWS];
    for t in terms {
        let [left, right] = weights(t);
        let a = &inputs.row(t).to_slice().expect("contiguous rows")[first..first + ROWS];
        for r in 0..ROWS {
            let a = T::splat(simd, a[r]);
            tile[r][0] = T::mul_add_vectors(simd, a, left, tile[r][0]);
            tile[r][1] = T::mul_add_vectors(simd, a, right, tile[r][1]);
        }
    }
    tile
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, Axis};
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;

    /// Runs the same check on every instruction set of this machine.
    macro_rules! everywhere {
        (|$name:ident, $simd:ident| $check:block) => {
            let ($name, $simd) = ("scalar", pulp::Scalar::new());
            $check
            #[cfg(target_arch = "x86_64")]
            {
                if let ($name, Some($simd)) = ("AVX2", pulp::x86::V3::try_new()) {
                    $check
                }
                if let ($name, Some($simd)) = ("AVX-512", pulp::x86::V4::try_new()) {
                    $check
                }
            }
        };
    }

    /// Rows or columns of what is packed are contiguous, or neither; earlier elements are replaced.
    #[test]
    fn matrices_come_back() {
        for (rows, cols) in [(1, 1), (3, 33), (65, 32), (130, 70)] {
            let matrix = Array2::from_shape_fn((rows, cols), |(i, j)| (i * cols + j) as f32);
            let mut packed = Packed::new(matrix.view());
            assert_eq!(packed.to_matrix(), matrix);
            let columns = matrix.t().as_standard_layout().reversed_axes().mapv(|x| x + 0.5);
            packed.assign(columns.view());
            assert_eq!(packed.to_matrix(), columns);
            let backwards = matrix.slice(s![..;-1, ..;-1]);
            packed.assign(backwards);
            assert_eq!(packed.to_matrix(), backwards);
        }
    }

    /// Checks sums of at most 100 products of halves, and that nothing is written beyond `cols`.
    fn assert_product(what: &str, out: ArrayView2<f32>, expected: ArrayView2<f64>) {
        let (within, beyond) = out.split_at(Axis(1), expected.ncols());
        for ((place, &expected), &got) in expected.indexed_iter().zip(&within) {
            let close = (f64::from(got) - expected).abs() <= 100.0 * 0.25 * f64::from(f32::EPSILON);
            assert!(close, "{what}: {got} at {place:?}, expected {expected}");
        }
        assert!(beyond.iter().all(|x| x.is_nan()), "{what}: past the end");
    }

    fn matrix(rows: usize, cols: usize, seed: u32) -> Array2<f32> {
        let mut state = seed;
        Array2::from_shape_simple_fn((rows, cols), || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            rng_seed: RngSeed::Fixed(1),
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// Every size of tile and of remainder, strided inputs and outputs, and outputs filled with NaN.
        #[test]
        fn products_are_those_of_plain_loops(
            rows in 0_usize..20, depth in 1_usize..70, cols in 0_usize..100, seed in any::<u32>(),
        ) {
            let (inputs, weights) = (matrix(rows, depth + 3, seed), matrix(depth, cols, seed ^ 1));
            let inputs = inputs.slice(ndarray::s![.., 3..]);
            let expected = inputs.mapv(f64::from).dot(&weights.mapv(f64::from));
            let packed = Packed::new(weights.view());
            everywhere!(|name, simd| {
                let mut out = Array2::from_elem((rows, cols + 5), f32::NAN);
                let product = Product { packed: &packed, inputs, out: out.slice_mut(s![.., ..cols]) };
                Simd::vectorize(simd, product);
                assert_product(name, out.view(), expected.view());
            });
        }

        /// Numbers above the diagonal are not checked.
        #[test]
        fn products_below_the_diagonal_are_those_of_plain_loops(
            rows in 1_usize..70, depth in 1_usize..70, seed in any::<u32>(),
        ) {
            let [a, b] = [matrix(rows, depth + 3, seed), matrix(rows, depth + 3, seed ^ 1)];
            let [a, b] = [&a, &b].map(|matrix| matrix.slice(s![.., 3..]));
            let expected = 0.5 * a.mapv(f64::from).dot(&b.mapv(f64::from).t());
            let below = |of: &Array2<f64>| {
                Array2::from_shape_fn((rows, rows), |(r, c)| if c <= r { of[[r, c]] } else { 0.0 })
            };
            everywhere!(|name, simd| {
                let mut out = Array2::from_elem((rows, rows), f32::NAN);
                let mut panel = vec![PanelRow([f32::NAN; WIDTH]); depth];
                let product = TransposedLower { factor: 0.5, a, b, out: out.view_mut(), panel: &mut panel };
                Simd::vectorize(simd, product);
                let got = below(&out.mapv(f64::from)).mapv(|x| x as f32);
                assert_product(name, got.view(), below(&expected).view());
            });
        }

        /// Numbers above the diagonal are zero, as the products require.
        #[test]
        fn triangular_products_are_those_of_plain_loops(
            rows in 1_usize..70, cols in 1_usize..100, seed in any::<u32>(),
        ) {
            let values = matrix(rows, cols + 3, seed);
            let values = values.slice(s![.., 3..]);
            let mut lower = matrix(rows, rows, seed ^ 1);
            for (r, mut row) in lower.rows_mut().into_iter().enumerate() {
                row.slice_mut(s![r + 1..]).fill(0.0);
            }
            let wide = lower.mapv(f64::from);
            for transposed in [false, true] {
                let square = if transposed { wide.t() } else { wide.view() };
                let expected = square.dot(&values.mapv(f64::from));
                everywhere!(|name, simd| {
                    let mut out = Array2::from_elem((rows, cols + 5), f32::NAN);
                    // Longer than needed, with old contents.
                    let mut panel = vec![PanelRow([f32::NAN; WIDTH]); rows];
                    let (lower, out_view) = (lower.view(), out.slice_mut(s![.., ..cols]));
                    let product = Triangular { transposed, lower, values, out: out_view, panel: &mut panel };
                    Simd::vectorize(simd, product);
                    assert_product(&format!("{name}, transposed {transposed}"), out.view(), expected.view());
                });
            }
        }
    }
}
