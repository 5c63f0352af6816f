//! Norms and squared distances that are right over the whole range of the element type: squares are summed fast in lanes
//! of the element type, and once more, in f64 or scaled, in the rare case that they left its range.
//!
//! A norm is infinite or NaN only where an element is: one that would overflow f64 is [`f64::MAX`].

use ndarray::NdFloat;

/// Lanes that the compiler turns into vector registers; also what keeps an f32 sum accurate.
const LANES: usize = 16;

/// Σ x² with the lanes' sums in the element type: for at most a few thousand elements.
#[expect(clippy::inline_always, reason = "to be compiled with the caller's instruction set")]
#[inline(always)]
pub fn sum_of_squares<T: NdFloat + Into<f64>>(values: &[T]) -> f64 {
    let mut lanes = [T::zero(); LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for block in whole {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane += x * x;
        }
    }
    let rest: f64 = rest.iter().map(|&x| square(x.into())).sum();
    lanes.iter().map(|&lane| -> f64 { lane.into() }).sum::<f64>() + rest
}

/// Σ (a − b)², in f64 where T's range is too small for it.
#[expect(clippy::inline_always, reason = "to be compiled with the caller's instruction set")]
#[inline(always)]
pub fn squared_distance<T: NdFloat + Into<f64>>(a: &[T], b: &[T]) -> f64 {
    let (whole, rest) = a.as_chunks::<LANES>();
    let (whole_b, rest_b) = b.as_chunks::<LANES>();
    let mut lanes = [T::zero(); LANES];
    for (a, b) in whole.iter().zip(whole_b) {
        for i in 0..LANES {
            let difference = a[i] - b[i];
            lanes[i] += difference * difference;
        }
    }
    let rest: f64 = rest.iter().zip(rest_b).map(|(&a, &b)| square((a - b).into())).sum();
    let sum = lanes.iter().map(|&lane| -> f64 { lane.into() }).sum::<f64>() + rest;
    if sum.is_finite() { sum } else { wide_squared_distance(a, b) }
}

#[cold]
fn wide_squared_distance<T: NdFloat + Into<f64>>(a: &[T], b: &[T]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| square(a.into() - b.into())).sum()
}

/// Whether a sum of squares that were formed in the element type can be believed. A NaN can: no other way to sum
/// would find anything else. Squares under the smallest normal are rounded to multiples of it times ε: over 2²⁰
/// elements that is less than one part in 10⁶ of a sum above this bound.
pub fn trusted<T: NdFloat + Into<f64>>(sum: f64) -> bool {
    sum.is_nan() || (sum.is_finite() && sum > least_trusted::<T>())
}

/// The bound that sums of squares must be above.
pub fn least_trusted<T: NdFloat + Into<f64>>() -> f64 {
    T::min_positive_value().into() * f64::from(1 << 20)
}

/// The norm of `values` (given anew at each call), their squares summed in f64 relative to the largest.
pub fn scaled_norm<T: NdFloat + Into<f64>, I: Iterator<Item = T>>(values: impl Fn() -> I) -> f64 {
    let largest: f64 = values().fold(T::zero(), |largest, x| largest.max(x.abs())).into();
    if largest == 0.0 || !largest.is_finite() {
        return largest;
    }
    saturated(largest * values().map(|x| square(x.into() / largest)).sum::<f64>().sqrt())
}

/// The norm of what has `parts` as norms. Their squares may leave f64's range where the parts do not.
pub fn joined(parts: impl Iterator<Item = f64> + Clone) -> f64 {
    let sum: f64 = parts.clone().map(square).sum();
    if trusted::<f64>(sum) {
        return sum.sqrt();
    }
    let largest = parts.clone().fold(0.0, f64::max);
    let joined = parts.fold(0.0, f64::hypot);
    if largest.is_finite() { saturated(joined) } else { joined }
}

/// The norm of finite numbers, which may have overflowed.
pub fn saturated(norm: f64) -> f64 {
    if norm.is_infinite() { f64::MAX } else { norm }
}

fn square(x: f64) -> f64 {
    x * x
}

/// The Frobenius norm of `values`.
pub fn norm<T: NdFloat + Into<f64>>(values: &[T]) -> f64 {
    let sum = values.chunks(1024).map(sum_of_squares).sum();
    if trusted::<T>(sum) { f64::sqrt(sum) } else { scaled_norm(|| values.iter().copied()) }
}
