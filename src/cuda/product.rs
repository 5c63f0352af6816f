//! Matrix products on a device.

use super::{Argument, Device, Launch, kernel};
use crate::error::Result;
use crate::real::ElementType;

/// One matrix per pair of a product, row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Device address of the first matrix.
    pub address: u64,
    /// Elements from one row to the next.
    pub row: usize,
    /// Elements from one pair's matrix to the next; 0 shares one matrix among all pairs.
    pub stride: usize,
    /// Whether the matrix enters the product transposed.
    pub transposed: bool,
}

/// The product C ← α op(A) op(B) for `batch` pairs: op(A) (rows, depth), op(B) (depth, cols), C (rows, cols).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// Element type of all three matrices.
    pub dtype: ElementType,
    /// Number of pairs.
    pub batch: usize,
    /// Sizes (rows, cols, depth).
    pub size: [usize; 3],
    /// Factor α.
    pub scale: f64,
    /// Matrix A.
    pub a: Matrix,
    /// Matrix B.
    pub b: Matrix,
    /// Matrix C, which is not transposed.
    pub c: Matrix,
}

/// Rows and columns of a block's tile, and its number of threads, as in kernels.cu.
const TILE: usize = 64;
const THREADS: u32 = 256;
/// Most blocks in the second and third dimension of a grid.
pub(crate) const MAX_BLOCKS: usize = 65_535;

/// Returns the bytes of a tile in shared memory, with padding between its rows.
pub(crate) fn tile_bytes(dtype: ElementType) -> usize {
    TILE * (TILE * dtype.bytes() + 16)
}

impl Product {
    /// Returns whether the kernel takes a few µs at most.
    pub(crate) fn is_small(&self) -> bool {
        let [rows, cols, depth] = self.size;
        // The kernel computes whole tiles.
        let [rows, cols] = [rows, cols].map(|n| n.next_multiple_of(TILE));
        depth <= 128 && self.batch * rows * cols * depth <= 1 << 24
    }

    /// Runs the product with the kernel.
    pub(super) fn launch<D: Device + ?Sized>(&self, device: &D) -> Result<()> {
        let [rows, cols, depth] = self.size;
        if rows * cols * self.batch == 0 {
            return Ok(());
        }
        let scale = match self.dtype {
            ElementType::F32 => Argument::F32(self.scale as f32),
            ElementType::F64 => Argument::F64(self.scale),
        };
        let matrix = |m: &Matrix| {
            [
                Argument::Address(m.address),
                Argument::long(m.row),
                Argument::long(m.stride),
                Argument::U32(u32::from(m.transposed)),
            ]
        };
        let [a, b, c] = [&self.a, &self.b, &self.c].map(matrix);
        let sizes = [rows, cols, depth, self.batch].map(Argument::count);
        let arguments = [&a[..], &b, &c[..3], &sizes, &[scale]].concat();
        let grid = [
            cols.div_ceil(TILE) as u32,
            rows.div_ceil(TILE).min(MAX_BLOCKS) as u32,
            self.batch.min(MAX_BLOCKS) as u32,
        ];
        let shared = 2 * tile_bytes(self.dtype) as u32;
        device.launch(&kernel("product", self.dtype), Launch { grid, block: THREADS, shared }, &arguments)
    }
}
