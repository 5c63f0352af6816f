//! Products of small matrices, such as those of one chunk of one head, and of few rows with a matrix of any size whose rows are
//! contiguous. A call of the gemm crate takes some 0.1 µs before its first product, which is as long as 16 × 16 × 16 numbers
//! take, and arranges B for the cache. Here a tile of sums stays in registers, and such a B is read where it lies.

#![expect(clippy::inline_always, reason = "compiled once per instruction set, as part of what is dispatched")]

use std::mem::MaybeUninit;

use ndarray::{ArrayView2, ArrayViewMut2, s};
use pulp::{Arch, Simd, WithSimd};

use crate::matmul;
use crate::packed::in_tiles;
use crate::real::Real;

/// Most rows of a B in columns. Two vectors of each fit L1 beside the tiles, also as AVX-512 vectors of f64.
const MAX_DEPTH: usize = 128;
/// Rows of a B that is read where it lies, for one visit to the sums. Two AVX-512 vectors of each are the size of L1.
const DEPTH_IN_PLACE: usize = 384;
/// Most columns of a block: two AVX-512 vectors of f32.
const MAX_LANES: usize = 32;
/// Most multiplications with a B in columns. The gemm crate is as fast here, and arranges larger matrices for the cache.
const MAX_WORK: usize = 1 << 17;
/// Most rows of A with a B that is read where it lies. Each block of columns of B reads all of them again. With 64 rows,
/// matrices of 384 × 384 took a tenth less time than in the gemm crate, which arranges them first, and with 512 as long.
const MAX_ROWS_IN_PLACE: usize = 512;

/// Computes `out ← a b`, ignoring the old contents of `out`.
pub fn multiply<T: Real>(out: ArrayViewMut2<T>, a: ArrayView2<T>, b: ArrayView2<T>) {
    multiply_add(out, false, T::one(), a, b);
}

/// Computes `out ← out + factor · a b`, or without the old contents of `out` unless `keep`. The rows of `out` are contiguous.
/// Products of many rows, and those of a large B in columns, are left to the gemm crate.
pub fn multiply_add<'a, T: Real>(
    out: ArrayViewMut2<'a, T>,
    keep: bool,
    factor: T,
    a: ArrayView2<'a, T>,
    b: ArrayView2<'a, T>,
) {
    let ((m, k), n) = (a.dim(), b.ncols());
    assert_eq!((b.nrows(), out.dim()), (k, (m, n)), "shapes of a product");
    let contiguous = n < 2 || out.strides()[1] == 1;
    let in_place = n < 2 || b.strides()[1] == 1;
    let fits = if in_place {
        m <= MAX_ROWS_IN_PLACE
    } else {
        k <= MAX_DEPTH && m * n * k <= MAX_WORK && m >= MIN_ROWS_OF_TRANSPOSED
    };
    if !contiguous || k == 0 || !fits {
        matmul::multiply_add(out, if keep { T::one() } else { T::zero() }, factor, a, b);
        return;
    }
    if k <= DEPTH_IN_PLACE {
        Arch::new().dispatch(Product { out, keep, factor, a, b });
        return;
    }
    let mut out = out;
    for from in (0..k).step_by(DEPTH_IN_PLACE) {
        let to = k.min(from + DEPTH_IN_PLACE);
        let (a, b) = (a.slice(s![.., from..to]), b.slice(s![from..to, ..]));
        let (out, keep) = (out.view_mut(), keep || from > 0);
        Arch::new().dispatch(Product { out, keep, factor, a, b });
    }
}

/// Fewest rows of A for which it pays to transpose a B in columns. 2 × 64 × 64 took 1.8 µs, and 0.5 µs in the gemm crate.
const MIN_ROWS_OF_TRANSPOSED: usize = 8;

struct Product<'a, T> {
    out: ArrayViewMut2<'a, T>,
    keep: bool,
    factor: T,
    a: ArrayView2<'a, T>,
    b: ArrayView2<'a, T>,
}

impl<T: Real> WithSimd for Product<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut block = [const { MaybeUninit::uninit() }; DEPTH_IN_PLACE * MAX_LANES];
        let n = self.b.ncols();
        let one = lanes::<T, S>(1);
        let mut first = 0;
        while first < n {
            if n - first > one {
                self.columns::<S, 2>(simd, first, &mut block);
                first += 2 * one;
            } else {
                self.columns::<S, 1>(simd, first, &mut block);
                first += one;
            }
        }
    }
}

/// Returns the numbers in some vectors.
const fn lanes<T: Real, S: Simd>(vectors: usize) -> usize {
    vectors * size_of::<T::Vector<S>>() / size_of::<T>()
}

impl<T: Real> Product<'_, T> {
    /// Computes the columns from `first` on that `VECTORS` vectors hold.
    #[inline(always)]
    fn columns<S: Simd, const VECTORS: usize>(
        &mut self,
        simd: S,
        first: usize,
        block: &mut [MaybeUninit<T>],
    ) {
        let Self { out, keep, factor, a, b } = self;
        let (to, out_row) = (out.as_mut_ptr(), out.strides()[0]);
        let lanes = lanes::<T, S>(VECTORS);
        let ((m, depth), n) = (a.dim(), b.ncols());
        let width = lanes.min(n - first);
        let [row, column] = [b.strides()[0], b.strides()[1]];
        // SAFETY: `first` is a column of b.
        let from = unsafe { b.as_ptr().offset(first.cast_signed() * column) };
        let whole = width == lanes && column == 1;
        let (from, stride) = if whole {
            (from, row)
        } else {
            // SAFETY: B has `depth` rows, and `width` columns from `first` on.
            (unsafe { arrange(from, [row, column], depth, [width, lanes], block) }, lanes.cast_signed())
        };
        let [a_row, a_column] = [a.strides()[0], a.strides()[1]];
        let factor = T::splat(simd, *factor);
        in_tiles!(S, 0..m, |top, ROWS| {
            // SAFETY: rows top .. top + ROWS of a and of out exist, a has `depth` columns, and `from` points to `depth` rows of
            // `lanes` numbers each. `out` is borrowed mutably, and each of its rows holds `width` numbers from `first` on.
            unsafe {
                let a = a.as_ptr().offset(top.cast_signed() * a_row);
                let tile = tile::<T, S, ROWS, VECTORS>(simd, a, [a_row, a_column], from, stride, depth);
                for (r, sums) in tile.into_iter().enumerate() {
                    let to = to.offset((top + r).cast_signed() * out_row).add(first);
                    let to = std::slice::from_raw_parts_mut(to, width);
                    store(simd, to, *keep, factor, sums);
                }
            }
        });
    }
}

/// Copies columns of B into rows of `lanes` numbers, with zeros after the first `width`. Returns the first row.
///
/// # Safety
/// `from` points to `depth` rows of `width` numbers at the given strides.
#[inline(always)]
unsafe fn arrange<T: Real>(
    from: *const T,
    [row, column]: [isize; 2],
    depth: usize,
    [width, lanes]: [usize; 2],
    block: &mut [MaybeUninit<T>],
) -> *const T {
    if row == 1 && width == lanes {
        // SAFETY: the columns of B are rows of its transpose.
        unsafe { transpose(from, column, depth, lanes, block) };
        return block.as_ptr().cast();
    }
    for (k, to) in block.chunks_exact_mut(lanes).take(depth).enumerate() {
        for (j, to) in to.iter_mut().enumerate() {
            let place = k.cast_signed() * row + j.cast_signed() * column;
            // SAFETY: by the caller's promise, for the first `width` numbers.
            to.write(if j < width { unsafe { *from.offset(place) } } else { T::ZERO });
        }
    }
    block.as_ptr().cast()
}

/// Side of the square blocks of a transposition. The compiler shuffles 4 × 4 in registers; 8 × 8 took half as long again.
const SIDE: usize = 4;

/// Writes the transpose of `lanes` rows of `depth` numbers, in blocks that stay in registers.
///
/// # Safety
/// `from` points to the rows, each with its numbers side by side.
#[inline(always)]
unsafe fn transpose<T: Real>(
    from: *const T,
    row: isize,
    depth: usize,
    lanes: usize,
    to: &mut [MaybeUninit<T>],
) {
    let whole = if lanes.is_multiple_of(SIDE) { depth / SIDE * SIDE } else { 0 };
    for first in (0..whole).step_by(SIDE) {
        for lane in (0..lanes).step_by(SIDE) {
            // SAFETY: by the caller's promise: there are `lanes` rows of `depth` numbers.
            let rows: [[T; SIDE]; SIDE] = std::array::from_fn(|j| unsafe {
                from.offset((lane + j).cast_signed() * row).add(first).cast::<[T; SIDE]>().read_unaligned()
            });
            for k in 0..SIDE {
                let column: [_; SIDE] = std::array::from_fn(|j| MaybeUninit::new(rows[j][k]));
                to[(first + k) * lanes + lane..][..SIDE].copy_from_slice(&column);
            }
        }
    }
    for k in whole..depth {
        for j in 0..lanes {
            // SAFETY: as above.
            to[k * lanes + j].write(unsafe { *from.offset(j.cast_signed() * row).add(k) });
        }
    }
}

/// Computes rows of A B.
///
/// # Safety
/// `a` points to `ROWS` rows of `depth` numbers at the given strides, and `b` to `depth` rows of `VECTORS` vectors.
#[inline(always)]
unsafe fn tile<T: Real, S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    a: *const T,
    [row, column]: [isize; 2],
    b: *const T,
    stride: isize,
    depth: usize,
) -> [[T::Vector<S>; VECTORS]; ROWS] {
    let mut sums = [[T::splat(simd, T::ZERO); VECTORS]; ROWS];
    for k in 0..depth.cast_signed() {
        // SAFETY: by the caller's promise.
        let (b, a) = unsafe {
            (std::slice::from_raw_parts(b.offset(k * stride), lanes::<T, S>(VECTORS)), a.offset(k * column))
        };
        let b = T::vectors::<S>(b);
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: by the caller's promise.
            let x = T::splat(simd, unsafe { *a.offset(r.cast_signed() * row) });
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum = T::mul_add_vectors(simd, x, b, *sum);
            }
        }
    }
    sums
}

/// Writes one row of sums times the factor, and adds the old contents if `keep`.
#[inline(always)]
fn store<T: Real, S: Simd, const VECTORS: usize>(
    simd: S,
    to: &mut [T],
    keep: bool,
    factor: T::Vector<S>,
    sums: [T::Vector<S>; VECTORS],
) {
    for (to, sum) in to.chunks_mut(lanes::<T, S>(1)).zip(sums) {
        let whole = to.len() == lanes::<T, S>(1);
        let value = if keep {
            let old = if whole { T::vectors::<S>(to)[0] } else { T::load_some(simd, to) };
            T::mul_add_vectors(simd, factor, sum, old)
        } else {
            T::mul_vectors(simd, factor, sum)
        };
        if whole {
            T::vectors_mut::<S>(to)[0] = value;
        } else {
            T::store_some(simd, to, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, ArrayView2, ShapeBuilder, s};

    use super::multiply_add;
    use crate::real::Real;

    fn matrix<T: Real>(rows: usize, columns: usize, transposed: bool) -> Array2<T> {
        let mut matrix = Array2::zeros((rows, columns).set_f(transposed));
        let values = (0..).map(|i| T::from_f64((f64::from(i) * 0.618_034).fract() - 0.5));
        matrix.iter_mut().zip(values).for_each(|(x, value)| *x = value);
        matrix
    }

    fn sum<T: Real>(a: ArrayView2<T>, b: ArrayView2<T>, i: usize, j: usize) -> f64 {
        a.row(i).into_iter().zip(b.column(j)).map(|(&x, &y)| Real::to_f64(x) * Real::to_f64(y)).sum()
    }

    /// Checks products in both layouts of A and B, into part of a larger matrix whose other columns must stay.
    fn agrees<T: Real>(tolerance: f64) {
        for (m, k, n) in [
            (0, 3, 2),
            (3, 0, 2),
            (1, 1, 1),
            (5, 7, 3),
            (17, 16, 33),
            (16, 16, 48),
            (8, 129, 5),
            (70, 60, 64),
            // More work than is done in tiles where B is in columns.
            (33, 64, 2000),
            // Several visits to the sums, and more rows than are done in tiles.
            (7, 801, 35),
            (513, 9, 33),
        ] {
            for layout in 0..8 {
                let (a, b) = (matrix::<T>(m, k, layout & 1 == 1), matrix::<T>(k, n, layout & 2 == 2));
                let keep = layout & 4 == 4;
                let before = matrix::<T>(m, n + 2, false);
                let mut out = before.clone();
                let factor = T::from_f64(-0.5);
                multiply_add(out.slice_mut(s![.., 1..=n]), keep, factor, a.view(), b.view());
                for ((i, j), &x) in out.indexed_iter() {
                    let inside = (1..=n).contains(&j);
                    let old = if keep || !inside { before[[i, j]].to_f64() } else { 0.0 };
                    let expected = old - if inside { 0.5 * sum(a.view(), b.view(), i, j - 1) } else { 0.0 };
                    let error = (Real::to_f64(x) - expected).abs();
                    assert!(
                        error <= tolerance,
                        "{m} × {k} × {n}, layout {layout}, ({i}, {j}): {x} for {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn products_in_any_layout_equal_sums() {
        // 801 products of at most ¼ each, rounded.
        agrees::<f32>(64.0 * f64::from(f32::EPSILON));
        agrees::<f64>(64.0 * f64::EPSILON);
    }
}
