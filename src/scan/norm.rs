//! Frobenius norms that are right over the whole range of the element type: squares are summed fast in lanes of the
//! element type, and once more, scaled, in the rare case that they left its range.

use ndarray::NdFloat;

/// Lanes that the compiler turns into vector registers; also what keeps an f32 sum accurate.
const LANES: usize = 16;

/// A running sum of squares over stretches of a slice.
#[derive(Clone, Copy, Debug, Default)]
pub struct SumOfSquares(f64);

impl SumOfSquares {
    /// Adds a stretch, of at most a few thousand elements: within one the sum runs in the element type.
    #[expect(clippy::inline_always, reason = "to be compiled with the caller's instruction set")]
    #[inline(always)]
    pub fn add<T: NdFloat + Into<f64>>(&mut self, stretch: &[T]) {
        let mut lanes = [T::zero(); LANES];
        let (whole, rest) = stretch.as_chunks::<LANES>();
        for block in whole {
            for (lane, &x) in lanes.iter_mut().zip(block) {
                *lane += x * x;
            }
        }
        let rest: f64 = rest.iter().map(|&x| square(x.into())).sum();
        self.0 += lanes.iter().map(|&lane| -> f64 { lane.into() }).sum::<f64>() + rest;
    }

    /// The norm of `all`, the slice whose stretches were added. Squares that overflowed or vanished are summed
    /// again in f64, relative to the largest element.
    pub fn norm<T: NdFloat + Into<f64>>(self, all: &[T]) -> f64 {
        // Squares under the smallest normal are rounded to multiples of it times ε: over 2²⁰ elements that is less
        // than one part in 10⁶ of a sum above this.
        let trusted = T::min_positive_value().into() * f64::from(1 << 20);
        if self.0.is_nan() || (self.0.is_finite() && self.0 > trusted) {
            return self.0.sqrt();
        }
        let largest: f64 = all.iter().fold(T::zero(), |largest, x| largest.max(x.abs())).into();
        if largest == 0.0 || !largest.is_finite() {
            return largest;
        }
        largest * all.iter().map(|&x| square(x.into() / largest)).sum::<f64>().sqrt()
    }
}

fn square(x: f64) -> f64 {
    x * x
}

/// The Frobenius norm of `values`.
pub fn norm<T: NdFloat + Into<f64>>(values: &[T]) -> f64 {
    let mut sum = SumOfSquares::default();
    values.chunks(1024).for_each(|stretch| sum.add(stretch));
    sum.norm(values)
}
