//! Blocks of the weights: some rows of a linear map, for one task.

use std::ops::Range;

use ndarray::{ArrayView2, ArrayViewMut2, s};

use crate::real::Real;
use crate::small_matmul::multiply_add;

/// Some rows of the weights of a linear map, which one task takes through the recurrences.
#[derive(Clone, Debug)]
pub struct Block {
    /// Node of the map.
    pub map: usize,
    pub rows: Range<usize>,
    /// Place in the slice of all weights.
    pub place: Range<usize>,
}

/// Elements of a block. It has more where the rows below would be fewer.
const BLOCK_ELEMENTS: usize = 2048;
/// Fewest rows of a block. Each block goes over all rows B of a chunk.
const MIN_BLOCK_ROWS: usize = 4;
/// Elements of a block where chunks have few rows, up to half of the map's rows. Each block's part of A S̄ is as wide as the map, and is
/// written, read and added. With 2,048 elements `64, 4096, 2, 1` took a tenth longer, and so did chunks of 4.
const SHORT_BLOCK_ELEMENTS: usize = 6144;
/// Rows of a block where chunks have many rows, or half of a chunk's if they are more, and fewer where the rows B of a chunk fit L1.
/// With one or two rows of 1,152 elements a block, products loaded B for little work, and gradients took half as long again. With 16
/// rows instead of 32, `64, 1024, 16, 1` took 3 % less time, and `384, 1024, 64, 1` a seventh more.
const LONG_BLOCK_ROWS: usize = 32;
const NEAR_BLOCK_ROWS: usize = 16;
/// Most numbers of such rows B: 16 KB of f32.
const NEAR_NUMBERS: usize = 4096;
/// Rows of a chunk that are many: the products are then most of the work.
const MANY_ROWS: usize = 8;

/// Divides the weights of a linear map of a width, which lie at `place`, for chunks of some rows.
pub fn divided(map: usize, place: &Range<usize>, width: usize, chunk: usize) -> impl Iterator<Item = Block> {
    let (start, rows) = (place.start, place.len() / width);
    let min_rows = if chunk < MANY_ROWS {
        (SHORT_BLOCK_ELEMENTS / width).min(rows.div_ceil(2)).max(MIN_BLOCK_ROWS)
    } else if chunk * width <= NEAR_NUMBERS {
        NEAR_BLOCK_ROWS.max(chunk / 2)
    } else {
        LONG_BLOCK_ROWS.max(chunk / 2)
    };
    let count = rows.div_ceil((BLOCK_ELEMENTS / width).max(min_rows));
    // Blocks of about the same size, and mostly an even number of them, for threads to share.
    let count = if count > 1 { count.next_multiple_of(2) } else { count };
    let each = rows.div_ceil(count);
    (0..rows).step_by(each).map(move |first| {
        let rows = first..rows.min(first + each);
        let place = start + rows.start * width..start + rows.end * width;
        Block { map, rows, place }
    })
}

impl Block {
    /// Computes Aᵀ B in these rows of the weights, from some rows of A and B, and adds it to `to` if `keep`.
    pub fn product<T: Real>(&self, to: &mut [T], keep: bool, [a, b]: [ArrayView2<T>; 2], rows: Range<usize>) {
        let a = a.slice_move(s![rows.clone(), self.rows.clone()]);
        let b = b.slice_move(s![rows, ..]);
        let to = ArrayViewMut2::from_shape((a.ncols(), b.ncols()), to).expect("rows of the map");
        multiply_add(to, keep, T::one(), a.reversed_axes(), b);
    }
}
