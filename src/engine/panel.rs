//! The fused update of a column panel of one memory weight along the chunks, which stores and reads one stream.
//!
//! For the columns J of a weight, the state's arrays and the weights M that are read are (in, |J|). Chunk i does, in this
//! order,
//!
//! ```text
//! Y ← X M[:, J]              read before chunk i is stored: X (rows, in), Y (rows, |J|)
//! g ← Aᵀ B[:, J]             A (c, in), B (c, |J|)
//! S, U ← rule(S, U, g)       for example S ← η S − θ g, U ← (1 − α) U + S, M = W + U;  ‖g‖², ‖S‖², ‖U‖², ‖M‖²
//! Y ← X M[:, J]              read after chunk i is stored
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

use std::marker::PhantomData;
use std::ops::Range;

use ndarray::{ArrayView2, ArrayViewMut2};
use pulp::{Arch, Simd, WithSimd};

use crate::memory::GateValues;
use crate::memory::rule::{Coefficients, Rule, UpdateRule, with_rule};
use crate::norm::{joined, scaled_norm, trusted};
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
    /// Norm of the update: what storing has added to the initial weights.
    pub update: f64,
    /// Norm of the weights that are read.
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

/// A column panel: the state's arrays in some columns of one memory weight of one head.
#[derive(Clone, Debug)]
pub struct Panel<T> {
    /// Arrays one after another, each with a panel row for each row of the weight; U is the first. W + U is formed where it
    /// is read: keeping it would push S, U and W of a panel of 64 rows out of the nearest cache. Rows of different arrays
    /// side by side took 24 % longer at 128 rows: reads of U alone then use half of the cache's sets.
    state: Vec<PanelRow<T>>,
    /// Norms of each chunk since they were last cleared.
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
        self.load(elements, rows.iter_mut());
        rows
    }

    fn load<'a, T: Real>(&self, elements: &[T], rows: impl IntoIterator<Item = &'a mut PanelRow<T>>) {
        for (row, place) in rows.into_iter().zip(self.places()) {
            *row = PanelRow::ZERO;
            row.fill_from(&elements[place]);
        }
    }

    /// Writes panel rows to these columns of the weight's elements.
    pub fn save<T: Real>(&self, rows: impl Iterator<Item = PanelRow<T>>, elements: &mut [T]) {
        for (row, place) in rows.zip(self.places()) {
            elements[place].copy_from_slice(&row.0[..self.width]);
        }
    }

    /// Returns the range of these columns.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.width
    }

    /// Yields the place of each row of these columns among the weight's elements.
    fn places(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let ((rows, cols), start, width) = (self.shape, self.start, self.width);
        (0..rows).map(move |row| row * cols + start..row * cols + start + width)
    }
}

impl<T: Real> Panel<T> {
    /// Creates a panel of zeros with a number of arrays.
    pub fn new(columns: &PanelColumns, arrays: usize) -> Self {
        Self { state: vec![PanelRow::ZERO; columns.shape.0 * arrays], norms: Vec::new() }
    }

    /// Returns the bytes of the state.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.state[..])
    }

    /// Loads the arrays that the panel has from a weight's elements.
    pub fn load(&mut self, columns: &PanelColumns, arrays: &[&[T]]) {
        let rows = columns.shape.0;
        for (array, elements) in self.state.chunks_exact_mut(rows).zip(arrays) {
            columns.load(elements, array);
        }
    }

    /// Yields the rows of what storing has added to the initial weights W, in f64.
    pub fn update<'a>(
        &'a self,
        rule: &Rule,
        base: &'a [PanelRow<T>],
    ) -> impl Iterator<Item = PanelRow<f64>> + use<'a, T> {
        let whole = rule.holds_weights();
        base.iter().zip(&self.state).map(move |(w, u)| {
            let initial = |i: usize| if whole { Real::to_f64(w.0[i]) } else { 0.0 };
            PanelRow(std::array::from_fn(|i| Real::to_f64(u.0[i]) - initial(i)))
        })
    }

    /// Yields the rows of the weights that are read, given those of W.
    pub fn weights<'a>(
        &'a self,
        rule: &Rule,
        base: &'a [PanelRow<T>],
    ) -> impl Iterator<Item = PanelRow<T>> + use<'a, T> {
        let whole = rule.holds_weights();
        base.iter().zip(&self.state).map(move |(w, u)| {
            let mut sum = *u;
            if !whole {
                sum.0.iter_mut().zip(w.0).for_each(|(u, w)| *u = w + *u);
            }
            sum
        })
    }

    /// Replaces the weights that are read by `f` of them and of the rows of `point`. `f` commutes with adding the same
    /// number to both: where U is added to W, it is computed without W.
    pub fn replace_weights(
        &mut self,
        rule: &Rule,
        (base, point): (&[PanelRow<T>], &[PanelRow<T>]),
        f: impl Fn(T, T) -> T,
    ) {
        let whole = rule.holds_weights();
        for ((u, w), p) in self.state.iter_mut().zip(base).zip(point) {
            for ((u, &w), &p) in u.0.iter_mut().zip(&w.0).zip(&p.0) {
                *u = if whole { f(*u, p) } else { f(*u, p - w) };
            }
        }
    }

    /// Writes the arrays back to a weight's elements.
    pub fn save(&self, columns: &PanelColumns, arrays: &mut [&mut [T]]) {
        for (array, elements) in self.state.chunks_exact(columns.shape.0).zip(arrays) {
            columns.save(array.iter().copied(), elements);
        }
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
    /// Rule by which the panel is updated.
    pub rule: Rule,
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

impl<T: Real> WithSimd for FusedUpdate<'_, T> {
    type Output = ();

    fn with_simd<S: Simd>(self, simd: S) {
        with_rule!(&self.rule, Named => simd.vectorize(ByRule::<T, Named>(self, PhantomData)));
    }
}

/// A fused update whose rule is known when it is compiled.
struct ByRule<'a, T, R>(FusedUpdate<'a, T>, PhantomData<R>);

/// Rows of weights whose squares are summed in the element type before they join the f64 sum.
const SUMMED: usize = 64;

impl<T: Real, R: UpdateRule> WithSimd for ByRule<'_, T, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let FusedUpdate { chunk, base, panel, stored, mut readings, .. } = self.0;
        let steps = stored.map_or(&[][..], |stored| stored.steps);
        let mut b = vec![PanelRow::ZERO; if steps.is_empty() { 0 } else { chunk }];
        let longest = readings.iter().map(|reading| reading.inputs.nrows()).max().unwrap_or(0);
        for i in 0..steps.len().max(longest.div_ceil(chunk)) {
            let range = i * chunk..(i + 1) * chunk;
            for reading in readings.iter_mut().filter(|reading| !reading.after) {
                read::<T, R, S>(simd, (&mut *reading, range.clone()), base, panel);
            }
            if let (Some(&step), Some(StoredChunks { inputs, cotangents, .. })) = (steps.get(i), stored) {
                for (b, row) in b.iter_mut().zip(range.clone()) {
                    b.fill_from(cotangents.row(row).to_slice().expect("contiguous rows"));
                }
                advance::<T, R, S>(simd, step, panel, base, inputs, range.start, &b);
            }
            for reading in readings.iter_mut().filter(|reading| reading.after) {
                read::<T, R, S>(simd, (&mut *reading, range.clone()), base, panel);
            }
        }
    }
}

/// Computes Y ← X M for the rows of a range that exist. Compiled apart from the rules, of which it needs one property.
#[inline(always)]
fn read<T: Real, R: UpdateRule, S: Simd>(
    simd: S,
    (reading, range): (&mut Reading<'_, T>, Range<usize>),
    base: &[PanelRow<T>],
    panel: &Panel<T>,
) {
    if R::WEIGHTS {
        simd.vectorize(Read::<T, true> { reading, range, base, panel });
    } else {
        simd.vectorize(Read::<T, false> { reading, range, base, panel });
    }
}

/// A read of some rows with a panel. `WEIGHTS`: U holds whole weights.
struct Read<'r, 'a, T, const WEIGHTS: bool> {
    reading: &'r mut Reading<'a, T>,
    range: Range<usize>,
    base: &'r [PanelRow<T>],
    panel: &'r Panel<T>,
}

impl<T: Real, const WEIGHTS: bool> WithSimd for Read<'_, '_, T, WEIGHTS> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { reading, range, base, panel: Panel { state, .. } } = self;
        let end = range.end.min(reading.inputs.nrows());
        let range = range.start.min(end)..end;
        multiply(simd, reading.inputs, range, base.len(), &mut reading.outputs, |k, piece| {
            let u = pair::<T, S>(&state[k], piece);
            if WEIGHTS {
                return u;
            }
            let w = pair::<T, S>(&base[k], piece);
            [T::add_vectors(simd, w[0], u[0]), T::add_vectors(simd, w[1], u[1])]
        });
    }
}

/// Stores one chunk: updates the state, forms the weights that are read, and adds the chunk's norms to the panel's.
#[inline(always)]
fn advance<T: Real, R: UpdateRule, S: Simd>(
    simd: S,
    step: Step<T>,
    panel: &mut Panel<T>,
    base: &[PanelRow<T>],
    inputs: ArrayView2<'_, T>,
    first: usize,
    b: &[PanelRow<T>],
) {
    let [minus_rate, momentum, keep] =
        [-step.learning_rate, step.momentum, T::one() - step.decay].map(|x| T::splat(simd, x));
    let by = Coefficients::<T, S> { minus_rate, momentum, keep };
    let minus = T::splat(simd, -T::one());
    let arrays = R::load(|_| ()).as_ref().len();
    assert_eq!(panel.state.len(), arrays * base.len(), "all arrays of the rule");
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
                let mut whole = panel.state.chunks_exact_mut(base.len());
                let mut state: R::State<&mut [PanelRow<T>; ROWS]> = R::load(|_| {
                    let array = whole.next().expect("all arrays of the rule");
                    array[rows.clone()].as_mut_array().expect("ROWS of them")
                });
                for r in 0..ROWS {
                    for j in 0..2 {
                        let at = 2 * piece + j;
                        let g = tile[r][j];
                        let w = T::vectors::<S>(&w[r].0)[at];
                        let mut of_row = R::load(|i| T::vectors::<S>(&state.as_ref()[i][r].0)[at]);
                        let s = R::step::<T, S>(simd, by, g, &mut of_row);
                        for (array, &vector) in state.as_mut().iter_mut().zip(of_row.as_ref()) {
                            T::vectors_mut::<S>(&mut array[r].0)[at] = vector;
                        }
                        let u = of_row.as_ref()[0];
                        let read = if R::WEIGHTS { u } else { T::add_vectors(simd, w, u) };
                        let written = if R::WEIGHTS { T::mul_add_vectors(simd, minus, w, u) } else { u };
                        for (sum, x) in sums.iter_mut().zip([g, s, written, read]) {
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
    let norms = slow_norms::<T, R>(step, panel, base, inputs, first, b, squares);
    panel.norms.push(norms);
}

/// Returns the norms of a chunk from the sums of squares, or from the elements where a sum left the element type's range.
fn slow_norms<T: Real, R: UpdateRule>(
    step: Step<T>,
    panel: &Panel<T>,
    base: &[PanelRow<T>],
    inputs: ArrayView2<'_, T>,
    first: usize,
    b: &[PanelRow<T>],
    squares: [f64; 4],
) -> Norms {
    let norm = |sum: f64, rows: &dyn Fn() -> f64| if trusted::<T>(sum) { sum.sqrt() } else { rows() };
    let array = |i: usize| panel.state[i * base.len()..(i + 1) * base.len()].iter();
    let of_pairs = |f: fn(T, T) -> T| {
        let rows = base.iter().zip(array(0));
        scaled_norm(|| rows.clone().flat_map(|(w, u)| w.0.into_iter().zip(u.0).map(move |(w, u)| f(w, u))))
    };
    let surprise = norm(squares[0], &|| {
        // There is nothing to learn, as in padding, and no sum to scale.
        if b.iter().all(|row| row.0.iter().all(T::is_zero)) {
            return 0.0;
        }
        scaled_norm(|| (0..base.len()).flat_map(|row| surprise_row(inputs, first, row, b).0))
    });
    let whole = |i: usize| scaled_norm(|| array(i).flat_map(|row| row.0));
    Norms {
        surprise,
        momentum: norm(squares[1], &|| match panel.state.len() / base.len() {
            1 => step.learning_rate.to_f64() * surprise,
            _ => whole(1),
        }),
        update: norm(squares[2], &|| if R::WEIGHTS { of_pairs(|w, u| u - w) } else { whole(0) }),
        weight: norm(squares[3], &|| if R::WEIGHTS { whole(0) } else { of_pairs(|w, u| w + u) }),
    }
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
