//! Sizes of a product as cuBLAS takes them. A part of its own, so that it is tested without the feature `cuda` too.

use std::ffi::c_int;

use super::{Matrix, Product};

/// Sizes of a product and row lengths of its matrices, in cuBLAS's types.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub rows: c_int,
    pub cols: c_int,
    pub depth: c_int,
    pub batch: c_int,
    pub a: c_int,
    pub b: c_int,
    pub c: c_int,
}

impl Sizes {
    /// Converts a product; `None` if a number is too large for cuBLAS, rows overlap, or the depth is 0.
    pub fn from_product(product: &Product) -> Option<Self> {
        let [rows, cols, depth] = product.size;
        let row = |matrix: &Matrix, [down, across]: [usize; 2]| {
            let length = if matrix.transposed { down } else { across };
            (matrix.row >= length.max(1)).then(|| c_int::try_from(matrix.row).ok()).flatten()
        };
        let size = |n: usize| c_int::try_from(n).ok().filter(|n| *n > 0);
        Some(Self {
            rows: size(rows)?,
            cols: size(cols)?,
            depth: size(depth)?,
            batch: size(product.batch)?,
            a: row(&product.a, [rows, depth])?,
            b: row(&product.b, [depth, cols])?,
            c: row(&product.c, [rows, cols])?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Sizes;
    use crate::cuda::{Matrix, Product};
    use crate::real::ElementType;

    #[test]
    fn sizes_that_cublas_accepts_and_rejects() {
        let matrix = |row, transposed| Matrix { address: 0, row, stride: 0, transposed };
        let product =
            |size, a, b, c| Product { dtype: ElementType::F32, batch: 7, size, scale: 1.0, a, b, c };
        let ours = product([2, 3, 5], matrix(5, false), matrix(5, true), matrix(4, false));
        let sizes = Sizes { rows: 2, cols: 3, depth: 5, batch: 7, a: 5, b: 5, c: 4 };
        assert_eq!(Sizes::from_product(&ours), Some(sizes));
        for (what, other) in [
            ("overlapping rows", Product { a: matrix(4, false), ..ours }),
            ("overlapping rows of a transposed one", Product { b: matrix(4, true), ..ours }),
            ("overlapping results", Product { c: matrix(2, false), ..ours }),
            ("nothing to add up", Product { size: [2, 3, 0], ..ours }),
            ("too many", Product { batch: 1 << 31, ..ours }),
        ] {
            assert_eq!(Sizes::from_product(&other), None, "{what}");
        }
    }
}
