//! The recurrences of U and S for one chunk and a block of the weights, and their way back. One pass over all arrays, with the
//! sums in registers. Where a chunk has few rows, the products with them are part of the pass.

#![expect(clippy::inline_always, reason = "compiled once per instruction set, as part of what is dispatched")]

use pulp::{Arch, Simd, WithSimd};

use super::few_rows::{FewRows, MAX_ROWS, vectors};
use crate::engine::panel::Step;
use crate::real::Real;

/// Sums side by side, so that an addition does not wait for the one before.
const CHAINS: usize = 4;

/// Writes U and S after the chunk. Its gradient is Aᵀ B of few rows; if there are none, it is in `next_s`, which S replaces.
pub fn step<T: Real>(step: &Step<T>, few: FewRows<'_, T>, old: [&[T]; 2], new: [&mut [T]; 2]) {
    Arch::new().dispatch(Forward { step, few, old, new });
}

/// Passes the cotangents of U and S back through one chunk, and returns those of η and α. Replaces S after the chunk, in
/// `next_s`, by its cotangent. Adds Xᵀ Y of few rows, the gradient of what is read before the chunk, to the cotangent of U.
pub fn step_back<T: Real>(
    step: &Step<T>,
    few: FewRows<'_, T>,
    old: [&[T]; 2],
    next_s: &mut [T],
    cotangents: [&mut [T]; 2],
) -> [f64; 2] {
    Arch::new().dispatch(Back { step, few, old, next_s, cotangents })
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
    few: FewRows<'a, T>,
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
        run_for_rows!(self, simd)
    }
}

impl<T: Real> Back<'_, T> {
    #[inline(always)]
    fn run<S: Simd, const ROWS: usize>(self, simd: S) -> [f64; 2] {
        let Self { step, few, old: [u, s], next_s, cotangents: [u_bar, s_bar] } = self;
        let factors = [step.momentum, T::one() - step.decay];
        let width = few.width().unwrap_or(u.len());
        let mut sums = Sums { lanes: [[T::splat(simd, T::ZERO); CHAINS]; 2], rest: [T::zero(); 2] };
        let old = u.chunks_exact(width).zip(s.chunks_exact(width));
        let cotangents = u_bar.chunks_exact_mut(width).zip(s_bar.chunks_exact_mut(width));
        let arrays = old.zip(next_s.chunks_exact_mut(width).zip(cotangents));
        for (i, ((u, s), (next_s, (u_bar, s_bar)))) in arrays.enumerate() {
            let products: ([T; ROWS], [&[T]; ROWS]) =
                (std::array::from_fn(|r| few.a(r, i)), std::array::from_fn(|r| few.b(r)));
            sums.row::<ROWS>(simd, factors, products, [u, s], [next_s, u_bar, s_bar]);
        }
        let total = |lanes: [_; CHAINS], rest: T| {
            lanes.into_iter().map(|sum| T::sum_lanes(simd, sum)).sum::<f64>() + rest.to_f64()
        };
        let [eta, alpha] = sums.lanes;
        [total(eta, sums.rest[0]), -total(alpha, sums.rest[1])]
    }
}

/// Sums of S̄ ∘ S and Ū ∘ U.
struct Sums<T: Real, S: Simd> {
    lanes: [[T::Vector<S>; CHAINS]; 2],
    /// Sums of the numbers after whole vectors.
    rest: [T; 2],
}

impl<T: Real, S: Simd> Sums<T, S> {
    /// Passes one row of the weights back.
    #[inline(always)]
    fn row<const ROWS: usize>(
        &mut self,
        simd: S,
        factors: [T; 2],
        (scales, rows): ([T; ROWS], [&[T]; ROWS]),
        [u, s]: [&[T]; 2],
        [next_s, u_bar, s_bar]: [&mut [T]; 3],
    ) {
        let [eta, keep] = factors;
        let [eta_lanes, keep_lanes] = factors.map(|factor| T::splat(simd, factor));
        let scale_lanes = scales.map(|scale| T::splat(simd, scale));
        let ((u, u_rest), (s, s_rest)) = (vectors::<T, S>(u), vectors::<T, S>(s));
        let row_lanes = rows.map(|row| &T::vectors::<S>(row)[..u.len()]);
        let whole = next_s.len() - u_rest.len();
        let [(next_s, next_s_rest), (u_bar, u_bar_rest), (s_bar, s_bar_rest)] =
            [next_s, u_bar, s_bar].map(|array| array.split_at_mut(whole));
        let [next_s, u_bar, s_bar] = [next_s, u_bar, s_bar].map(T::vectors_mut::<S>);
        let mut lanes = self.lanes;
        // Not a closure, which would keep the sums out of registers.
        macro_rules! back_at {
            ($place:expr, $chain:expr) => {{
                let (k, ((&u, &s), (next_s, (u_bar, s_bar)))) = $place;
                let rows = row_lanes.map(|row| row[k]);
                let [eta, alpha] = &mut lanes;
                let sums = [&mut eta[$chain], &mut alpha[$chain]];
                let (factors, to) = ([eta_lanes, keep_lanes], [next_s, u_bar, s_bar]);
                back::<T, S, ROWS>(simd, factors, scale_lanes, rows, [u, s], to, sums);
            }};
        }
        let mut arrays = u.iter().zip(s).zip(next_s.iter_mut().zip(u_bar.iter_mut().zip(s_bar))).enumerate();
        // The number of chains is a constant, so that their sums stay in registers.
        while arrays.len() >= CHAINS {
            for chain in 0..CHAINS {
                back_at!(arrays.next().expect("counted"), chain);
            }
        }
        for place in arrays {
            back_at!(place, 0);
        }
        self.lanes = lanes;
        let arrays = u_rest.iter().zip(s_rest).zip(next_s_rest.iter_mut().zip(u_bar_rest).zip(s_bar_rest));
        for (k, ((&u, &s), ((next_s, u_bar), s_bar))) in arrays.enumerate() {
            *next_s = *u_bar + *s_bar;
            self.rest[0] += *next_s * s;
            self.rest[1] += *u_bar * u;
            *s_bar = eta * *next_s;
            let products = scales.iter().zip(rows);
            *u_bar = products.fold(keep * *u_bar, |sum, (&scale, row)| sum + scale * row[whole + k]);
        }
    }
}

/// Passes one vector back and adds to the sums.
#[inline(always)]
fn back<T: Real, S: Simd, const ROWS: usize>(
    simd: S,
    [eta, keep]: [T::Vector<S>; 2],
    scales: [T::Vector<S>; ROWS],
    rows: [T::Vector<S>; ROWS],
    [u, s]: [T::Vector<S>; 2],
    [next_s, u_bar, s_bar]: [&mut T::Vector<S>; 3],
    [of_eta, of_alpha]: [&mut T::Vector<S>; 2],
) {
    let both = T::add_vectors(simd, *u_bar, *s_bar);
    *next_s = both;
    *of_eta = T::mul_add_vectors(simd, both, s, *of_eta);
    *of_alpha = T::mul_add_vectors(simd, *u_bar, u, *of_alpha);
    *s_bar = T::mul_vectors(simd, eta, both);
    let mut sum = T::mul_vectors(simd, keep, *u_bar);
    for r in 0..ROWS {
        sum = T::mul_add_vectors(simd, scales[r], rows[r], sum);
    }
    *u_bar = sum;
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::{step, step_back};
    use crate::engine::backward::few_rows::FewRows;
    use crate::engine::backward::passes::Block;
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
                _ => FewRows::new(&block, [a.view(), b.view()], 0..rows).expect("few rows"),
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

            let (mut next_s, mut got_u, mut got_s) = (next_s, slice(&u_bar), slice(&s_bar));
            let old = [&slice(&u)[..], &slice(&s)];
            let [eta, alpha] = step_back(&chunk, few(), old, &mut next_s, [&mut got_u, &mut got_s]);
            let both = &u_bar + &s_bar;
            let read = if rows == 0 { Array2::zeros((height, width)) } else { gradient };
            close(&shaped(&got_u), 0.9 * &u_bar + read);
            close(&shaped(&got_s), 0.6 * &both);
            assert!((eta - (&both * &s).sum()).abs() < 1e-12 && (alpha + (&u_bar * &u).sum()).abs() < 1e-12);
            close(&shaped(&next_s), both);
        }
    }
}
