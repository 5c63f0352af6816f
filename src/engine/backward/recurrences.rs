//! The recurrences of U and S for one chunk and a block of the weights, and their way back. One pass over all arrays, with the
//! sums in registers. Where a chunk has few rows, the products with them are part of the pass.

#![expect(clippy::inline_always, reason = "compiled once per instruction set, as part of what is dispatched")]

use pulp::{Arch, Simd, WithSimd};

use super::few_rows::{FewRows, MAX_ROWS, vectors};
use crate::engine::panel::Step;
use crate::real::Real;
use crate::simd::Lanes;

/// Sums side by side, so that an addition does not wait for the one before.
const CHAINS: usize = 4;

/// Writes U and S after the chunk. Its gradient is Aᵀ B of few rows; if there are none, it is in `next_s`, which S replaces.
pub fn step<T: Real>(step: &Step<T>, few: FewRows<'_, T>, old: [&[T]; 2], new: [&mut [T]; 2]) {
    Arch::new().dispatch(Forward { step, few, old, new });
}

/// Passes the cotangents of U and S back through one chunk, and returns those of η and α. Writes that of S after the chunk to
/// `next_s`.
pub fn step_back<T: Real>(
    step: &Step<T>,
    old: [&[T]; 2],
    next_s: &mut [T],
    cotangents: [&mut [T]; 2],
) -> [f64; 2] {
    Arch::new().dispatch(Back { step, old, next_s, cotangents })
}

struct Forward<'a, T> {
    step: &'a Step<T>,
    few: FewRows<'a, T>,
    /// U and S before the chunk.
    old: [&'a [T]; 2],
    new: [&'a mut [T]; 2],
}

/// Runs work for its number of few rows, which is a constant in each copy of the loops.
macro_rules! run_for_rows {
    ($work:expr, $simd:expr) => {
        match $work.few.rows() {
            0 => $work.run::<S, 0>($simd),
            1 => $work.run::<S, 1>($simd),
            2 => $work.run::<S, 2>($simd),
            _ => $work.run::<S, MAX_ROWS>($simd),
        }
    };
}

impl<T: Real> WithSimd for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        run_for_rows!(self, simd);
    }
}

impl<T: Real> Forward<'_, T> {
    #[inline(always)]
    fn run<S: Simd, const ROWS: usize>(self, simd: S) {
        let Self { step, few, old: [u, s], new: [next_u, next_s] } = self;
        let factors = [-step.learning_rate, step.momentum, T::one() - step.decay];
        let width = few.width().unwrap_or(u.len());
        let old = u.chunks_exact(width).zip(s.chunks_exact(width));
        let new = next_u.chunks_exact_mut(width).zip(next_s.chunks_exact_mut(width));
        for (i, ((u, s), (next_u, next_s))) in old.zip(new).enumerate() {
            let scales: [T; ROWS] = std::array::from_fn(|r| factors[0] * few.a(r, i));
            let rows: [&[T]; ROWS] = std::array::from_fn(|r| few.b(r));
            row::<T, S, ROWS>(simd, factors, (scales, rows), [u, s], [next_u, next_s]);
        }
    }
}

/// Computes one row of the weights.
#[inline(always)]
fn row<T: Real, S: Simd, const ROWS: usize>(
    simd: S,
    factors: [T; 3],
    (scales, rows): ([T; ROWS], [&[T]; ROWS]),
    [u, s]: [&[T]; 2],
    [next_u, next_s]: [&mut [T]; 2],
) {
    let [theta, eta, keep] = factors;
    let [theta_lanes, eta_lanes, keep_lanes] = factors.map(|factor| T::splat(simd, factor));
    let scale_lanes = scales.map(|scale| T::splat(simd, scale));
    let ((u, u_rest), (s, s_rest)) = (vectors::<T, S>(u), vectors::<T, S>(s));
    let row_lanes = rows.map(|row| &T::vectors::<S>(row)[..u.len()]);
    let whole = next_u.len() - u_rest.len();
    let [(next_u, u_after), (next_s, s_after)] = [next_u, next_s].map(|array| array.split_at_mut(whole));
    let new = T::vectors_mut::<S>(next_u).iter_mut().zip(T::vectors_mut::<S>(next_s));
    for (k, ((&u, &s), (next_u, next_s))) in u.iter().zip(s).zip(new).enumerate() {
        let mut momentum = T::mul_vectors(simd, eta_lanes, s);
        if ROWS == 0 {
            momentum = T::mul_add_vectors(simd, theta_lanes, *next_s, momentum);
        }
        for (&scale, row) in scale_lanes.iter().zip(row_lanes) {
            momentum = T::mul_add_vectors(simd, scale, row[k], momentum);
        }
        *next_s = momentum;
        *next_u = T::mul_add_vectors(simd, keep_lanes, u, momentum);
    }
    let new = u_after.iter_mut().zip(s_after);
    for (k, ((&u, &s), (next_u, next_s))) in u_rest.iter().zip(s_rest).zip(new).enumerate() {
        let gradient = if ROWS == 0 { theta * *next_s } else { T::zero() };
        let products = scales.iter().zip(rows);
        let momentum = products.fold(eta * s + gradient, |sum, (&scale, row)| sum + scale * row[whole + k]);
        *next_s = momentum;
        *next_u = keep * u + momentum;
    }
}

struct Back<'a, T> {
    step: &'a Step<T>,
    /// U and S before the chunk.
    old: [&'a [T]; 2],
    next_s: &'a mut [T],
    /// Cotangents of U and S.
    cotangents: [&'a mut [T]; 2],
}

impl<T: Real> WithSimd for Back<'_, T> {
    type Output = [f64; 2];

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> [f64; 2] {
        let Self { step, old: [u, s], next_s, cotangents: [u_bar, s_bar] } = self;
        let [eta, keep] = [step.momentum, T::one() - step.decay];
        let [eta_lanes, keep_lanes] = [eta, keep].map(|factor| T::splat(simd, factor));
        let ((u, u_rest), (s, s_rest)) = (vectors::<T, S>(u), vectors::<T, S>(s));
        let whole = next_s.len() - u_rest.len();
        let [(next_s, next_s_rest), (u_bar, u_bar_rest), (s_bar, s_bar_rest)] =
            [next_s, u_bar, s_bar].map(|array| array.split_at_mut(whole));
        let [next_s, u_bar, s_bar] = [next_s, u_bar, s_bar].map(T::vectors_mut::<S>);
        let [mut of_eta, mut of_alpha] = [[T::splat(simd, T::ZERO); CHAINS]; 2];
        // Not a closure, which would keep the sums out of registers.
        macro_rules! back_at {
            ($place:expr, $chain:expr) => {{
                let ((&u, &s), (next_s, (u_bar, s_bar))) = $place;
                let both = T::add_vectors(simd, *u_bar, *s_bar);
                *next_s = both;
                of_eta[$chain] = T::mul_add_vectors(simd, both, s, of_eta[$chain]);
                of_alpha[$chain] = T::mul_add_vectors(simd, *u_bar, u, of_alpha[$chain]);
                *s_bar = T::mul_vectors(simd, eta_lanes, both);
                *u_bar = T::mul_vectors(simd, keep_lanes, *u_bar);
            }};
        }
        let mut arrays = u.iter().zip(s).zip(next_s.iter_mut().zip(u_bar.iter_mut().zip(s_bar)));
        // The number of chains is a constant, so that their sums stay in registers.
        while arrays.len() >= CHAINS {
            for chain in 0..CHAINS {
                back_at!(arrays.next().expect("counted"), chain);
            }
        }
        for place in arrays {
            back_at!(place, 0);
        }
        let mut rest = [T::zero(); 2];
        let arrays = u_rest.iter().zip(s_rest).zip(next_s_rest.iter_mut().zip(u_bar_rest).zip(s_bar_rest));
        for ((&u, &s), ((next_s, u_bar), s_bar)) in arrays {
            *next_s = *u_bar + *s_bar;
            rest[0] += *next_s * s;
            rest[1] += *u_bar * u;
            *s_bar = eta * *next_s;
            *u_bar = keep * *u_bar;
        }
        let total = |lanes: [_; CHAINS], rest: T| {
            lanes.into_iter().map(|sum| T::sum_lanes(simd, sum)).sum::<f64>() + rest.to_f64()
        };
        [total(of_eta, rest[0]), -total(of_alpha, rest[1])]
    }
}

/// A chunk of few rows on the way back through a block of the weights, with all products of its rows.
pub struct FewBack<'a, T> {
    pub step: &'a Step<T>,
    /// Factors A and B of the gradient that is stored.
    pub stored: FewRows<'a, T>,
    /// Rows X that are read before the chunk, and the cotangents Y of their products: as many rows, zeros where fewer are read.
    pub read: FewRows<'a, T>,
    /// U and S before the chunk, and the initial weights, which are added to U where it is read.
    pub old: [&'a [T]; 3],
    /// Cotangents of U and S.
    pub cotangents: [&'a mut [T]; 2],
    /// Whether A S̄ is added to the numbers in its place.
    pub keep: bool,
    /// Place for A S̄ (rows, width).
    pub of_b: &'a mut [T],
    /// Place for B S̄ᵀ (rows, rows of the block).
    pub of_a: &'a mut [T],
    /// Place for Y (W + U)ᵀ, of the rows that are read.
    pub of_x: &'a mut [T],
    /// Space of [`few_space`] numbers.
    pub space: &'a mut [T],
}

/// Returns the numbers of space that a [`FewBack`] takes.
pub fn few_space(rows: usize, width: usize) -> usize {
    3 * rows * width
}

impl<T: Real> FewBack<'_, T> {
    /// Passes the cotangents of U and S back through the chunk, and those of its rows. Returns those of η and α.
    pub fn run(self) -> [f64; 2] {
        Arch::new().dispatch(self)
    }

    #[inline(always)]
    fn rows<S: Simd, const ROWS: usize>(self, simd: S) -> [f64; 2] {
        let Self { step, stored, read, old, cotangents: [u_bar, s_bar], keep, of_b, of_a, of_x, space } =
            self;
        let factors = [step.momentum, T::one() - step.decay];
        let width = stored.width().expect("some rows");
        // Vectors of the rows B, of the rows Y and of A S̄, those of the same columns side by side: with a pointer for each row,
        // registers run out.
        let count = T::vectors::<S>(stored.b(0)).len();
        let size = space.len() / 3;
        let (packed_b, space) = space.split_at_mut(size);
        let (packed_y, packed_of_b) = space.split_at_mut(size);
        let packed_b = &mut T::vectors_mut::<S>(packed_b).as_chunks_mut::<ROWS>().0[..count];
        let packed_y = &mut T::vectors_mut::<S>(packed_y).as_chunks_mut::<ROWS>().0[..count];
        let packed_of_b = &mut T::vectors_mut::<S>(packed_of_b).as_chunks_mut::<ROWS>().0[..count];
        for r in 0..ROWS {
            for (to, &x) in packed_b.iter_mut().zip(T::vectors::<S>(stored.b(r))) {
                to[r] = x;
            }
            for (to, &x) in packed_y.iter_mut().zip(T::vectors::<S>(read.b(r))) {
                to[r] = x;
            }
        }
        let whole = width - vectors::<T, S>(stored.b(0)).1.len();
        for (r, row) in of_b.chunks_exact_mut(width).enumerate() {
            if !keep {
                row.fill(T::zero());
            }
            for (to, &x) in packed_of_b.iter_mut().zip(T::vectors::<S>(row)) {
                to[r] = x;
            }
        }
        let height = old[0].len() / width;
        let mut sums = Sums { lanes: [T::splat(simd, T::ZERO); 2], rest: [T::zero(); 2] };
        for i in 0..height {
            let place = i * width..(i + 1) * width;
            let a: [T; ROWS] = std::array::from_fn(|r| stored.a(r, i));
            let x: [T; ROWS] = std::array::from_fn(|r| read.a(r, i));
            let old = [&old[0][place.clone()], &old[1][place.clone()], &old[2][place.clone()]];
            let (u_bar, s_bar) = (&mut u_bar[place.clone()], &mut s_bar[place]);
            let packed = (&*packed_b, &*packed_y, &mut *packed_of_b);
            let [mut of_stored, mut of_read] =
                sums.row(simd, factors, [a, x], packed, old, [&mut *u_bar, &mut *s_bar]);
            // The numbers after whole vectors.
            let [u, s, base] = old;
            for k in whole..width {
                let both = u_bar[k] + s_bar[k];
                sums.rest[0] += both * s[k];
                sums.rest[1] += u_bar[k] * u[k];
                s_bar[k] = factors[0] * both;
                u_bar[k] = factors[1] * u_bar[k];
                for r in 0..ROWS {
                    of_b[r * width + k] += a[r] * both;
                    of_stored[r] += stored.b(r)[k] * both;
                    of_read[r] += read.b(r)[k] * (u[k] + base[k]);
                    u_bar[k] += x[r] * read.b(r)[k];
                }
            }
            for (row, x) in of_a.chunks_exact_mut(height).zip(of_stored) {
                row[i] = x;
            }
            for (row, x) in of_x.chunks_exact_mut(height).zip(of_read) {
                row[i] = x;
            }
        }
        for (r, row) in of_b.chunks_exact_mut(width).enumerate() {
            for (to, packed) in T::vectors_mut::<S>(row).iter_mut().zip(&*packed_of_b) {
                *to = packed[r];
            }
        }
        let [eta, alpha] = sums.lanes.map(|sum| T::sum_lanes(simd, sum));
        [eta + sums.rest[0].to_f64(), -(alpha + sums.rest[1].to_f64())]
    }
}

impl<T: Real> WithSimd for FewBack<'_, T> {
    type Output = [f64; 2];

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> [f64; 2] {
        match self.stored.rows() {
            1 => self.rows::<S, 1>(simd),
            2 => self.rows::<S, 2>(simd),
            _ => self.rows::<S, MAX_ROWS>(simd),
        }
    }
}

/// Sums of S̄ ∘ S and Ū ∘ U.
struct Sums<T: Real, S: Simd> {
    lanes: [T::Vector<S>; 2],
    /// Sums of the numbers after whole vectors.
    rest: [T; 2],
}

/// Vectors of the rows B, of the rows Y and of A S̄, side by side.
type Packed<'a, T, S, const ROWS: usize> = (
    &'a [[<T as Lanes>::Vector<S>; ROWS]],
    &'a [[<T as Lanes>::Vector<S>; ROWS]],
    &'a mut [[<T as Lanes>::Vector<S>; ROWS]],
);

impl<T: Real, S: Simd> Sums<T, S> {
    /// Passes the whole vectors of one row of the weights back. Returns the products of the rows B with S̄ and of the rows Y with
    /// the weights.
    #[inline(always)]
    fn row<const ROWS: usize>(
        &mut self,
        simd: S,
        [eta, keep]: [T; 2],
        [a, x]: [[T; ROWS]; 2],
        (packed_b, packed_y, packed_of_b): Packed<'_, T, S, ROWS>,
        [u, s, base]: [&[T]; 3],
        [u_bar, s_bar]: [&mut [T]; 2],
    ) -> [[T; ROWS]; 2] {
        let zero = T::splat(simd, T::ZERO);
        let (eta, keep) = (T::splat(simd, eta), T::splat(simd, keep));
        // A closure inside a closure would be compiled without the vector instructions.
        let (a, x) = (a.map(|scale| T::splat(simd, scale)), x.map(|scale| T::splat(simd, scale)));
        let (mut of_a, mut of_x) = ([zero; ROWS], [zero; ROWS]);
        let [mut of_eta, mut of_alpha] = self.lanes;
        let old = T::vectors::<S>(u).iter().zip(T::vectors::<S>(s)).zip(T::vectors::<S>(base));
        let cotangents = T::vectors_mut::<S>(u_bar).iter_mut().zip(T::vectors_mut::<S>(s_bar));
        let packed = packed_b.iter().zip(packed_y).zip(packed_of_b);
        for ((((&u, &s), &base), (u_bar, s_bar)), ((b, y), of_b)) in old.zip(cotangents).zip(packed) {
            let both = T::add_vectors(simd, *u_bar, *s_bar);
            of_eta = T::mul_add_vectors(simd, both, s, of_eta);
            of_alpha = T::mul_add_vectors(simd, *u_bar, u, of_alpha);
            *s_bar = T::mul_vectors(simd, eta, both);
            let weights = T::add_vectors(simd, u, base);
            let mut sum = T::mul_vectors(simd, keep, *u_bar);
            for r in 0..ROWS {
                of_b[r] = T::mul_add_vectors(simd, a[r], both, of_b[r]);
                of_a[r] = T::mul_add_vectors(simd, b[r], both, of_a[r]);
                of_x[r] = T::mul_add_vectors(simd, y[r], weights, of_x[r]);
                sum = T::mul_add_vectors(simd, x[r], y[r], sum);
            }
            *u_bar = sum;
        }
        self.lanes = [of_eta, of_alpha];
        let mut sums = [[T::zero(); ROWS]; 2];
        for r in 0..ROWS {
            sums[0][r] = T::from_f64(T::sum_lanes(simd, of_a[r]));
            sums[1][r] = T::from_f64(T::sum_lanes(simd, of_x[r]));
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, s};

    use super::{FewBack, few_space, step, step_back};
    use crate::engine::backward::block::Block;
    use crate::engine::backward::few_rows::FewRows;
    use crate::engine::panel::Step;

    /// One chunk of a block of 3 rows of 37 numbers: more than whole vectors, and more than all chains of them.
    #[test]
    fn a_step_and_its_way_back() {
        let (height, width) = (3, 37);
        let matrix = |rows, first: usize| {
            let number = |(i, j)| ((first + i * 31 + j * 17) % 23) as f64 / 23.0 - 0.5;
            Array2::from_shape_fn((rows, width), number)
        };
        let chunk = Step { learning_rate: 0.3, momentum: 0.6, decay: 0.1 };
        let block = Block { map: 0, rows: 1..1 + height, place: 0..height * width };
        let [u, s, u_bar, s_bar] = [1, 2, 3, 4].map(|first| matrix(height, first));
        for rows in [0, 1, 2, 4] {
            let a = Array2::from_shape_fn((rows, 5), |(r, i)| (r * 5 + i) as f64 / 7.0 - 1.0);
            let b = matrix(rows, 5);
            let gradient =
                if rows == 0 { matrix(height, 6) } else { a.slice(ndarray::s![.., 1..4]).t().dot(&b) };
            let few = || match rows {
                0 => FewRows::empty(),
                _ => FewRows::new([a.view(), b.view()], 0..rows).expect("few rows").in_block(&block),
            };
            let close = |got: &Array2<f64>, expected: Array2<f64>| {
                let error = (got - expected).fold(0.0_f64, |most, x| most.max(x.abs()));
                assert!(error < 1e-13, "{rows} rows: an error of {error}");
            };
            let slice = |array: &Array2<f64>| array.as_slice().unwrap().to_vec();
            let shaped = |array: &[f64]| Array2::from_shape_vec((height, width), array.to_vec()).unwrap();
            let (mut next_u, mut next_s) = (vec![9.0; height * width], slice(&gradient));
            step(&chunk, few(), [&slice(&u), &slice(&s)], [&mut next_u, &mut next_s]);
            let momentum = 0.6 * &s - 0.3 * &gradient;
            close(&shaped(&next_u), 0.9 * &u + &momentum);
            close(&shaped(&next_s), momentum);

            let (mut got_u, mut got_s) = (slice(&u_bar), slice(&s_bar));
            let (old, both) = ([&slice(&u)[..], &slice(&s)], &u_bar + &s_bar);
            let [eta, alpha] = if rows == 0 {
                let mut next_s = next_s;
                let sums = step_back(&chunk, old, &mut next_s, [&mut got_u, &mut got_s]);
                close(&shaped(&next_s), both.clone());
                close(&shaped(&got_u), 0.9 * &u_bar);
                sums
            } else {
                // One row fewer is read than is stored, unless it is the only one.
                let read = (rows - 1).max(1);
                let (x, y, base) = (a.slice(s![..read, ..]), matrix(read, 7), matrix(height, 8));
                let zeros = vec![0.0; width];
                let of_b_before = matrix(rows, 9);
                let mut of_b = of_b_before.clone();
                let mut of_a = Array2::from_elem((rows, height), 9.0);
                let mut of_x = Array2::from_elem((read, height), 9.0);
                let work = FewBack {
                    step: &chunk,
                    stored: few(),
                    read: FewRows::padded(rows, &zeros).with([x, y.view()], 0..read).in_block(&block),
                    old: [old[0], old[1], base.as_slice().unwrap()],
                    cotangents: [&mut got_u, &mut got_s],
                    keep: rows > 1,
                    of_b: of_b.as_slice_mut().unwrap(),
                    of_a: of_a.as_slice_mut().unwrap(),
                    of_x: of_x.as_slice_mut().unwrap(),
                    space: &mut vec![9.0; few_space(rows, width)],
                };
                let sums = work.run();
                let columns = s![.., 1..4];
                close(&shaped(&got_u), 0.9 * &u_bar + x.slice(columns).t().dot(&y));
                let of_b_before = if rows > 1 { of_b_before } else { Array2::zeros((rows, width)) };
                close(&of_b, of_b_before + a.slice(columns).dot(&both));
                close(&of_a, b.dot(&both.t()));
                close(&of_x, y.dot(&(&u + &base).t()));
                sums
            };
            close(&shaped(&got_s), 0.6 * &both);
            assert!((eta - (&both * &s).sum()).abs() < 1e-12 && (alpha + (&u_bar * &u).sum()).abs() < 1e-12);
        }
    }
}
