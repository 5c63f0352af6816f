//! Norms and squared distances that are correct over the whole range of the element type. Squares are summed
//! fast, in lanes of the element type. In the rare case that they leave its range, they are summed again in f64
//! or scaled.
//!
//! A norm is infinite or NaN only if an element is. One that would overflow f64 is [`f64::MAX`].

use ndarray::NdFloat;

use crate::real::Real;

/// Number of lanes, which the compiler turns into vector registers. They also keep an f32 sum accurate.
const LANES: usize = 16;

/// Returns Σ x² with sums of lanes in the element type, for at most a few thousand elements.
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

/// Returns Σ (a − b)², in f64 where T's range is too small for it.
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

/// Returns whether a sum of squares formed in the element type is accurate. A NaN is: every other way to sum
/// also gives NaN. Squares below the smallest normal number are rounded to multiples of it times ε. Over 2²⁰
/// elements this is less than one part in 10⁶ of a sum above the bound.
pub fn trusted<T: NdFloat + Into<f64>>(sum: f64) -> bool {
    sum.is_nan() || (sum.is_finite() && sum > least_trusted::<T>())
}

/// Returns the bound that sums of squares must exceed.
pub fn least_trusted<T: NdFloat + Into<f64>>() -> f64 {
    T::min_positive_value().into() * f64::from(1 << 20)
}

/// Returns the norm of `values`, with squares summed in f64 relative to the largest. `values` yields them at
/// each call.
pub fn scaled_norm<T: NdFloat + Into<f64>, I: Iterator<Item = T>>(values: impl Fn() -> I) -> f64 {
    let largest: f64 = values().fold(T::zero(), |largest, x| largest.max(x.abs())).into();
    if largest == 0.0 || !largest.is_finite() {
        return largest;
    }
    saturated(largest * values().map(|x| square(x.into() / largest)).sum::<f64>().sqrt())
}

/// Returns the norm of a whole from the norms of its `parts`. Their squares may leave f64's range where the
/// parts do not.
pub fn joined(parts: impl Iterator<Item = f64> + Clone) -> f64 {
    let sum: f64 = parts.clone().map(square).sum();
    if trusted::<f64>(sum) {
        return sum.sqrt();
    }
    let largest = parts.clone().fold(0.0, f64::max);
    let joined = parts.fold(0.0, f64::hypot);
    if largest.is_finite() { saturated(joined) } else { joined }
}

/// Returns the norm of finite numbers, with an overflow replaced by [`f64::MAX`].
pub fn saturated(norm: f64) -> f64 {
    if norm.is_infinite() { f64::MAX } else { norm }
}

fn square(x: f64) -> f64 {
    x * x
}

/// Returns the Frobenius norm of `values`.
#[expect(clippy::inline_always, reason = "to be compiled with the caller's instruction set")]
#[inline(always)]
pub fn norm<T: NdFloat + Into<f64>>(values: &[T]) -> f64 {
    let sum = values.chunks(1024).map(sum_of_squares).sum();
    if trusted::<T>(sum) { f64::sqrt(sum) } else { wide_norm(values) }
}

#[cold]
fn wide_norm<T: NdFloat + Into<f64>>(values: &[T]) -> f64 {
    scaled_norm(|| values.iter().copied())
}

/// Returns rsqrt(mean(x²) + ε), by which an RMSNorm multiplies x. It is accurate over the whole range of the element type.
#[expect(clippy::inline_always, reason = "to be compiled with the caller's instruction set")]
#[inline(always)]
pub fn rms_scale<T: Real>(x: &[T]) -> T {
    let root_mean_square = norm(x) / (x.len() as f64).sqrt();
    T::from_f64((root_mean_square * root_mean_square + T::EPS.to_f64()).sqrt().recip())
}

#[cfg(test)]
mod tests {
    use super::rms_scale;

    #[test]
    fn rows_of_any_size_are_scaled_to_one() {
        for size in [0.1_f32, 1.0, 1e20, 1e37] {
            assert!((rms_scale(&[size, -size, size]) * size - 1.0).abs() < 1e-4, "{size}");
        }
        assert!(rms_scale(&[0.0_f32; 3]).is_finite());
    }
}
