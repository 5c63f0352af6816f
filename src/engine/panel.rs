//! The fused update of a column panel of one memory weight along the chunks, which stores and reads one stream.
//!
//! For the columns J of a weight, S, U and W + U of a panel are (in, |J|). Chunk i does, in this order,
//!
//! ```text
//! Y ← X (W + U)[:, J]        read before chunk i is stored: X (rows, in), Y (rows, |J|)
//! g ← Aᵀ B[:, J]             A (c, in), B (c, |J|)
//! S ← η S − θ g,  U ← (1 − α) U + S,  ‖g‖², ‖S‖², ‖U‖², ‖W + U‖²
//! Y ← X (W + U)[:, J]        read after chunk i is stored
//! ```
//!
//! A tile of g never leaves the registers: products, both recurrences, the weights that are read and the norms
//! are one pass. No column needs another one's, so panels run side by side until all chunks of a block are
//! done. A panel stays in the nearest cache meanwhile. Threads divide columns rather than segments of time,
//! because segments would take S and U through every chunk twice.
//!
//! Short chunks need no other form. The dual form reads through (Q Kᵀ ∘ coefficients) B within a stretch of 64
//! tokens and moves S and U once per stretch. Per token it takes 24 d² + 384 d operations to read through four
//! weights, and 16 d² to move their S and U. The inner products of each chunk's norms take another 16 d². At d = 64
//! and the full rate of matrix products (115 GFLOP/s a core, AMD EPYC of family 25, model 17) that is 2.2 µs. The
//! fused update measured 1.9 µs there with chunks of 2, the shortest, and 0.8 µs with chunks of 16.

#![expect(clippy::inline_always, reason = "compiled once per instruction set, as part of what is dispatched")]
#![expect(clippy::needless_range_loop, reason = "tiles stay in registers where constants index them")]

use std::ops::Range;

use ndarray::{ArrayView2, ArrayViewMut2};
use pulp::{Arch, Simd, WithSimd};

use super::norm::{joined, scaled_norm, trusted};
use crate::memory::GateValues;
use crate::packed::{PanelRow, WIDTH, in_tiles, multiply, pair, pieces, tile_transposed};
use crate::real::Real;

/// Coefficients of one chunk.
#[derive(Clone, Copy, Debug)]
pub struct Step<T> {
    /// Learning rate θ: the factor of the surprise in the momentum.
    pub learning_rate: T,
    /// Momentum η: the fraction of the momentum that is kept.
    pub momentum: T,
    /// Decay α: the fraction of the update that is forgotten.
    pub decay: T,
}

impl<T: Real> Step<T> {
    /// Converts gate values to the element type of a run.
    pub fn from_gates(gates: &GateValues) -> Self {
        Self {
            learning_rate: T::from_f64(gates.learning_rate),
            momentum: T::from_f64(gates.momentum),
            decay: T::from_f64(gates.decay),
        }
    }
}

/// Frobenius norms of the matrices of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Norms {
    /// Norm of the surprise, ‖g‖.
    pub surprise: f64,
    /// Norm of the momentum, ‖S‖.
    pub momentum: f64,
    /// Norm of the update, ‖U‖.
    pub update: f64,
    /// Norm of the weights, ‖W + U‖.
    pub weight: f64,
}

impl Norms {
    /// Returns the norms of several parts together.
    pub fn joined(parts: impl Iterator<Item = Self> + Clone) -> Self {
        Self {
            surprise: joined(parts.clone().map(|part| part.surprise)),
            momentum: joined(parts.clone().map(|part| part.momentum)),
            update: joined(parts.clone().map(|part| part.update)),
            weight: joined(parts.map(|part| part.weight)),
        }
    }
}

/// A column panel: U and S in some columns of one memory weight of one head.
#[derive(Clone, Debug)]
pub struct Panel<T> {
    /// U and S, one panel row per row of the weight. W + U is formed where it is read: keeping it would push S,
    /// U and W of a panel of 64 rows out of the nearest cache.
    update: Vec<PanelRow<T>>,
    /// Rows of S; empty if nothing is stored.
    momentum: Vec<PanelRow<T>>,
    /// Norms of each chunk of the last fused update.
    pub norms: Vec<Norms>,
}

/// The place of a column panel.
#[derive(Clone, Copy, Debug)]
pub struct PanelColumns {
    /// Index of the memory weight, in file order.
    pub weight: usize,
    /// Shape (rows, cols) of the weight.
    shape: (usize, usize),
    /// Index of the first column.
    start: usize,
    /// Number of columns, at most [`WIDTH`].
    pub width: usize,
}

impl PanelColumns {
    /// Returns the panels of all memory weights, in file order.
    pub fn all(shapes: &[(usize, usize)]) -> Vec<Self> {
        let of_weight = |(weight, &shape): (usize, &(usize, usize))| {
            let cols = shape.1;
            let panels = (0..cols).step_by(WIDTH);
            panels.map(move |start| Self { weight, shape, start, width: WIDTH.min(cols - start) })
        };
        shapes.iter().enumerate().flat_map(of_weight).collect()
    }

    /// Copies these columns of the weight's `elements` into a new panel.
    pub fn panel<T: Real>(&self, elements: &[T]) -> Vec<PanelRow<T>> {
        let mut rows = vec![PanelRow::ZERO; self.shape.0];
        self.load(elements, &mut rows);
        rows
    }

    fn load<T: Real>(&self, elements: &[T], rows: &mut [PanelRow<T>]) {
        for (row, place) in rows.iter_mut().zip(self.places()) {
            *row = PanelRow::padded(elements[place].iter().copied());
        }
    }

    fn save<T: Real>(&self, rows: &[PanelRow<T>], elements: &mut [T]) {
        for (row, place) in rows.iter().zip(self.places()) {
            elements[place].copy_from_slice(&row.0[..self.width]);
        }
    }

    /// Yields the place of each row of these columns among the weight's elements.
    fn places(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let ((rows, cols), start, width) = (self.shape, self.start, self.width);
        (0..rows).map(move |row| row * cols + start..row * cols + start + width)
    }
}

impl<T: Real> Panel<T> {
    /// Creates a panel of zeros. It has S only if `storing`.
    pub fn new(columns: &PanelColumns, storing: bool) -> Self {
        let rows = columns.shape.0;
        Self {
            update: vec![PanelRow::ZERO; rows],
            momentum: vec![PanelRow::ZERO; if storing { rows } else { 0 }],
            norms: Vec::new(),
        }
    }

    /// Returns the bytes of U and S.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.update[..]) + size_of_val(&self.momentum[..])
    }

    /// Loads U, and S where it is kept, from a weight's elements.
    pub fn load(&mut self, columns: &PanelColumns, update: &[T], momentum: &[T]) {
        columns.load(update, &mut self.update);
        columns.load(momentum, &mut self.momentum);
    }

    /// Yields the rows of W + U.
    pub fn weights<'a>(&'a self, base: &'a [PanelRow<T>]) -> impl Iterator<Item = PanelRow<T>> + use<'a, T> {
        base.iter().zip(&self.update).map(|(w, u)| {
            let mut sum = *w;
            sum.0.iter_mut().zip(u.0).for_each(|(w, u)| *w += u);
            sum
        })
    }

    /// Writes U and S back to a weight's elements.
    pub fn save(&self, columns: &PanelColumns, update: &mut [T], momentum: &mut [T]) {
        columns.save(&self.update, update);
        columns.save(&self.momentum, momentum);
    }
}

/// Rows that are read with a panel during its update: chunk by chunk with the weights of that moment, and with
/// the last weights after the last chunk.
pub struct Reading<'a, T> {
    /// Input rows X (rows, in).
    pub inputs: ArrayView2<'a, T>,
    /// Output rows Y (rows, |J|).
    pub outputs: ArrayViewMut2<'a, T>,
    /// Whether chunk i is read after it is stored, rather than just before.
    pub after: bool,
}

/// One panel's fused update through a block. Rows of A, B, X and Y are contiguous.
pub struct FusedUpdate<'a, T> {
    /// Tokens per chunk.
    pub chunk: usize,
    /// Panel of W.
    pub base: &'a [PanelRow<T>],
    /// Panel to update.
    pub panel: &'a mut Panel<T>,
    /// Chunks to store; absent in a plain read.
    pub stored: Option<StoredChunks<'a, T>>,
    /// Rows to read.
    pub readings: Vec<Reading<'a, T>>,
}

/// The chunks that a fused update stores.
#[derive(Clone, Copy)]
pub struct StoredChunks<'a, T> {
    /// Gates of each chunk.
    pub steps: &'a [Step<T>],
    /// Factor A (rows, in) of the gradients.
    pub inputs: ArrayView2<'a, T>,
    /// Factor B (rows, |J|) of the gradients.
    pub cotangents: ArrayView2<'a, T>,
}

impl<T: Real> FusedUpdate<'_, T> {
    /// Runs on the best available instruction set.
    pub fn run(self) {
        Arch::new().dispatch(self);
    }
}

/// Rows of weights whose squares are summed in the element type before they join the f64 sum.
const SUMMED: usize = 64;

impl<T: Real> WithSimd for FusedUpdate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { chunk, base, panel, stored, mut readings } = self;
        let steps = stored.map_or(&[][..], |stored| stored.steps);
        let mut b = vec![PanelRow::ZERO; if steps.is_empty() { 0 } else { chunk }];
        panel.norms.clear();
        let longest = readings.iter().map(|reading| reading.inputs.nrows()).max().unwrap_or(0);
        for i in 0..steps.len().max(longest.div_ceil(chunk)) {
            let range = i * chunk..(i + 1) * chunk;
            for reading in readings.iter_mut().filter(|reading| !reading.after) {
                read(simd, reading, range.clone(), base, &panel.update);
            }
            if let (Some(&step), Some(StoredChunks { inputs, cotangents, .. })) = (steps.get(i), stored) {
                for (b, row) in b.iter_mut().zip(range.clone()) {
                    b.fill_from(cotangents.row(row).to_slice().expect("contiguous rows"));
                }
                advance(simd, step, panel, base, inputs, range.start, &b);
            }
            for reading in readings.iter_mut().filter(|reading| reading.after) {
                read(simd, reading, range.clone(), base, &panel.update);
            }
        }
    }
}

/// Computes Y ← X (W + U) for the rows of `range` that exist.
#[inline(always)]
fn read<T: Real, S: Simd>(
    simd: S,
    reading: &mut Reading<'_, T>,
    range: Range<usize>,
    base: &[PanelRow<T>],
    update: &[PanelRow<T>],
) {
    let end = range.end.min(reading.inputs.nrows());
    let range = range.start.min(end)..end;
    let depth = base.len().min(update.len());
    multiply(simd, reading.inputs, range, depth, &mut reading.outputs, |k, piece| {
        let ([w0, w1], [u0, u1]) = (pair::<T, S>(&base[k], piece), pair::<T, S>(&update[k], piece));
        [T::add_vectors(simd, w0, u0), T::add_vectors(simd, w1, u1)]
    });
}

/// Stores one chunk: updates S and U, forms W + U and adds the chunk's norms to the panel's.
#[inline(always)]
fn advance<T: Real, S: Simd>(
    simd: S,
    step: Step<T>,
    panel: &mut Panel<T>,
    base: &[PanelRow<T>],
    inputs: ArrayView2<'_, T>,
    first: usize,
    b: &[PanelRow<T>],
) {
    let [minus_rate, keep_momentum, keep] =
        [-step.learning_rate, step.momentum, T::one() - step.decay].map(|x| T::splat(simd, x));
    let mut squares = [0.0; 4];
    for block in (0..base.len()).step_by(SUMMED) {
        for piece in 0..pieces::<T, S>() {
            let mut sums = [T::splat(simd, T::ZERO); 4];
            in_tiles!(S, block..base.len().min(block + SUMMED), |first_row, ROWS| {
                let of_chunk = |t: usize| pair::<T, S>(&b[t - first], piece);
                let tile =
                    tile_transposed::<T, S, ROWS>(simd, inputs, first..first + b.len(), first_row, of_chunk);
                let rows = first_row..first_row + ROWS;
                let w: &[PanelRow<T>; ROWS] = base[rows.clone()].as_array().expect("ROWS of them");
                let s: &mut [PanelRow<T>; ROWS] =
                    panel.momentum[rows.clone()].as_mut_array().expect("ROWS of them");
                let u: &mut [PanelRow<T>; ROWS] = panel.update[rows].as_mut_array().expect("ROWS of them");
                for r in 0..ROWS {
                    for j in 0..2 {
                        let at = 2 * piece + j;
                        let g = tile[r][j];
                        let w = T::vectors::<S>(&w[r].0)[at];
                        let s = &mut T::vectors_mut::<S>(&mut s[r].0)[at];
                        let u = &mut T::vectors_mut::<S>(&mut u[r].0)[at];
                        *s = T::mul_add_vectors(simd, minus_rate, g, T::mul_vectors(simd, keep_momentum, *s));
                        *u = T::mul_add_vectors(simd, keep, *u, *s);
                        let read = T::add_vectors(simd, w, *u);
                        for (sum, x) in sums.iter_mut().zip([g, *s, *u, read]) {
                            *sum = T::mul_add_vectors(simd, x, x, *sum);
                        }
                    }
                }
            });
            for (square, sum) in squares.iter_mut().zip(sums) {
                *square += T::sum_lanes(simd, sum);
            }
        }
    }
    let norm = |sum: f64, rows: &dyn Fn() -> f64| if trusted::<T>(sum) { sum.sqrt() } else { rows() };
    let stored = |rows: &[PanelRow<T>]| scaled_norm(|| rows.iter().flat_map(|row| row.0));
    panel.norms.push(Norms {
        surprise: norm(squares[0], &|| {
            // There is nothing to learn, as in padding, and no sum to scale.
            if b.iter().all(|row| row.0.iter().all(T::is_zero)) {
                return 0.0;
            }
            scaled_norm(|| (0..base.len()).flat_map(|row| surprise_row(inputs, first, row, b).0))
        }),
        momentum: norm(squares[1], &|| stored(&panel.momentum)),
        update: norm(squares[2], &|| stored(&panel.update)),
        weight: norm(squares[3], &|| {
            let rows = base.iter().zip(&panel.update);
            scaled_norm(|| rows.clone().flat_map(|(w, u)| w.0.into_iter().zip(u.0).map(|(w, u)| w + u)))
        }),
    });
}

/// Computes one row of Aᵀ B, for the norm of a surprise whose squares left the element type's range.
fn surprise_row<T: Real>(
    inputs: ArrayView2<'_, T>,
    first: usize,
    row: usize,
    b: &[PanelRow<T>],
) -> PanelRow<T> {
    let mut sums = PanelRow::ZERO;
    for (t, b) in b.iter().enumerate() {
        let a = inputs[[first + t, row]];
        for (sum, &b) in sums.0.iter_mut().zip(&b.0) {
            *sum += a * b;
        }
    }
    sums
}
