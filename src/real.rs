//! The two element types, f32 and f64, and the vector functions that differ between them. f32 uses rten-vecmath
//! (AVX2 or AVX-512, chosen at run time); f64 uses std, for golden cases and finite differences.

use ndarray::NdFloat;
use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdUnaryOp};
use rten_vecmath::{Erf, Exp, Gelu, Sigmoid, Silu};
use serde::Serialize;

use crate::matmul::Multiply;
use crate::simd::{Lanes, vectorised};

/// The element type of a run, with the names that users type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ElementType {
    /// IEEE single precision.
    #[default]
    F32,
    /// IEEE double precision.
    F64,
}

impl ElementType {
    /// Returns the bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

impl std::fmt::Display for ElementType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
        })
    }
}

/// A number of a run, f32 or f64, with all operations that the memory and the engine need.
pub trait Real: NdFloat + Lanes + Multiply + Into<f64> + Serialize + Default + bytemuck::Pod {
    /// The element type.
    const TYPE: ElementType;
    /// Machine epsilon: the ε of every `RMSNorm` (`PyTorch`'s default, `torch.finfo(dtype).eps`).
    const EPS: Self;

    /// Converts from f64, rounding to nearest.
    fn from_f64(value: f64) -> Self;
    /// Converts to f64 exactly.
    fn to_f64(self) -> f64;
    /// Returns the little-endian bytes.
    fn le_bytes(self) -> impl AsRef<[u8]>;

    /// Replaces each x by e^x.
    fn exp_all(values: &mut [Self]);
    /// Replaces each x by its logistic sigmoid.
    fn sigmoid(values: &mut [Self]);
    /// Replaces each x by x · sigmoid(x).
    fn silu(values: &mut [Self]);

    /// Replaces each x by x · Φ(x), where Φ is the distribution function of N(0, 1).
    fn gelu(values: &mut [Self]);
    /// Replaces each x by the derivative of gelu there, `Φ(x) + x φ(x)`. φ is the density of N(0, 1).
    fn gelu_slope(values: &mut [Self]);

    /// Returns Σ xᵢ, summed in lanes. Call it where the instruction set has been chosen.
    #[expect(clippy::inline_always, reason = "to be compiled with the caller's instruction set")]
    #[inline(always)]
    fn total(values: &[Self]) -> Self {
        total(values)
    }

    /// Replaces each row of `length` numbers by the softmax of its first r + 1 numbers and by zeros after them. r
    /// is the row's index within its chunk of `length` rows. A NaN or +∞ among the first r + 1 turns them into NaN,
    /// and so do only −∞. A −∞ among other numbers becomes 0.
    fn causal_softmax(rows: &mut [Self], length: usize) {
        let seen = |r: usize| r % length + 1;
        vectorised(
            #[inline(always)]
            || {
                for (r, row) in rows.chunks_exact_mut(length).enumerate() {
                    let (seen, future) = row.split_at_mut(seen(r));
                    let largest = largest(seen);
                    for x in seen {
                        *x -= largest;
                    }
                    future.fill(Self::neg_infinity());
                }
            },
        );
        Self::exp_all(rows);
        vectorised(
            #[inline(always)]
            || {
                for (r, row) in rows.chunks_exact_mut(length).enumerate() {
                    let seen = &mut row[..seen(r)];
                    let scale = total(seen).recip();
                    for x in seen {
                        *x *= scale;
                    }
                }
            },
        );
    }

    /// Returns Σ aᵢ bᵢ, summed in lanes. Call it where the instruction set has been chosen.
    #[expect(clippy::inline_always, reason = "to be compiled with the caller's instruction set")]
    #[inline(always)]
    fn dot(a: &[Self], b: &[Self]) -> Self {
        let (whole, rest) = a.as_chunks::<LANES>();
        let (whole_b, rest_b) = b.as_chunks::<LANES>();
        let mut lanes = [Self::zero(); LANES];
        for (a, b) in whole.iter().zip(whole_b) {
            for i in 0..LANES {
                lanes[i] += a[i] * b[i];
            }
        }
        let rest = rest.iter().zip(rest_b).fold(Self::zero(), |sum, (&a, &b)| sum + a * b);
        lanes.into_iter().fold(rest, |sum, x| sum + x)
    }
}

/// Number of lanes, which the compiler turns into vector registers.
const LANES: usize = 16;

#[expect(clippy::inline_always, reason = "to be compiled with the caller's instruction set")]
#[inline(always)]
fn fold<T: Real>(values: &[T], start: T, join: impl Fn(T, T) -> T) -> T {
    let (whole, rest) = values.as_chunks::<LANES>();
    let mut lanes = [start; LANES];
    for block in whole {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane = join(*lane, x);
        }
    }
    lanes.iter().chain(rest).fold(start, |joined, &x| join(joined, x))
}

/// Returns the largest number, ignoring NaNs.
#[expect(clippy::inline_always, reason = "to be compiled with the caller's instruction set")]
#[inline(always)]
fn largest<T: Real>(values: &[T]) -> T {
    fold(values, T::neg_infinity(), |a, b| if b > a { b } else { a })
}

#[expect(clippy::inline_always, reason = "to be compiled with the caller's instruction set")]
#[inline(always)]
fn total<T: Real>(values: &[T]) -> T {
    fold(values, T::zero(), |a, b| a + b)
}

impl Real for f32 {
    const TYPE: ElementType = ElementType::F32;
    const EPS: Self = f32::EPSILON;

    fn from_f64(value: f64) -> Self {
        value as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn le_bytes(self) -> impl AsRef<[u8]> {
        self.to_le_bytes()
    }
    fn exp_all(values: &mut [Self]) {
        Exp {}.map_mut(values);
    }
    fn sigmoid(values: &mut [Self]) {
        Sigmoid {}.map_mut(values);
    }
    fn silu(values: &mut [Self]) {
        Silu {}.map_mut(values);
    }
    fn gelu(values: &mut [Self]) {
        Gelu {}.map_mut(values);
    }
    fn gelu_slope(values: &mut [Self]) {
        GeluSlope {}.map_mut(values);
    }
}

impl Real for f64 {
    const TYPE: ElementType = ElementType::F64;
    const EPS: Self = f64::EPSILON;

    fn from_f64(value: f64) -> Self {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
    fn le_bytes(self) -> impl AsRef<[u8]> {
        self.to_le_bytes()
    }
    fn exp_all(values: &mut [Self]) {
        for x in values {
            *x = x.exp();
        }
    }
    fn sigmoid(values: &mut [Self]) {
        for x in values {
            *x = 1.0 / (1.0 + (-*x).exp());
        }
    }
    fn silu(values: &mut [Self]) {
        for x in values {
            *x /= 1.0 + (-*x).exp();
        }
    }
    fn gelu(values: &mut [Self]) {
        for x in values {
            *x *= 0.5 * (1.0 + libm::erf(*x * std::f64::consts::FRAC_1_SQRT_2));
        }
    }
    fn gelu_slope(values: &mut [Self]) {
        for x in values {
            let below = 0.5 * (1.0 + libm::erf(*x * std::f64::consts::FRAC_1_SQRT_2));
            *x = below + *x * (-0.5 * *x * *x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        }
    }
}

/// The derivative of gelu in one pass: erf and exp in registers.
struct GeluSlope {}

impl SimdUnaryOp<f32> for GeluSlope {
    #[expect(clippy::inline_always, reason = "to be compiled with the instruction set of the caller")]
    #[inline(always)]
    fn eval<I: Isa>(&self, isa: I, x: I::F32) -> I::F32 {
        let ops = isa.f32();
        let half = ops.splat(0.5);
        let error = Erf::apply(isa, ops.mul(x, ops.splat(std::f32::consts::FRAC_1_SQRT_2)));
        let below = ops.mul_add(error, half, half);
        let square = ops.mul(ops.mul(x, x), ops.splat(-0.5));
        let density = ops.mul(Exp::apply(isa, square), ops.splat(INVERSE_ROOT_OF_TWO_PI));
        ops.mul_add(x, density, below)
    }
}

/// (2π)^−½
const INVERSE_ROOT_OF_TWO_PI: f32 = 0.398_942_3;
