//! The two element types, f32 and f64, and the vector functions that differ between them: f32 goes through
//! rten-vecmath (AVX2 or AVX-512, chosen at run time), f64 through std, for golden cases and finite differences.

use ndarray::NdFloat;
use rten_simd::{SimdOp, SimdUnaryOp};
use rten_vecmath::{Sigmoid, Softmax};
use serde::Serialize;

/// Element type of a run, named as users name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ElementType {
    /// IEEE single precision.
    #[default]
    F32,
    /// IEEE double precision.
    F64,
}

impl std::fmt::Display for ElementType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
        })
    }
}

/// f32 or f64: everything the memory and the engine need of a number.
pub trait Real: NdFloat + Into<f64> + Serialize + Default + Send + Sync + 'static {
    /// Which of the two.
    const TYPE: ElementType;
    /// Machine epsilon: the ε of every `RMSNorm` (`PyTorch`'s default, `torch.finfo(dtype).eps`).
    const EPS: Self;

    /// Rounds to nearest.
    fn of(value: f64) -> Self;
    /// Exact.
    fn wide(self) -> f64;
    /// Little-endian bytes.
    fn le_bytes(self) -> impl AsRef<[u8]>;

    /// Replaces `row` by its softmax. A NaN or +∞ anywhere, or nothing but −∞, makes NaNs; −∞ among others is a 0.
    fn softmax(row: &mut [Self]);
    /// Replaces each x by its logistic sigmoid.
    fn sigmoid(values: &mut [Self]);
}

impl Real for f32 {
    const TYPE: ElementType = ElementType::F32;
    const EPS: Self = f32::EPSILON;

    fn of(value: f64) -> Self {
        value as f32
    }
    fn wide(self) -> f64 {
        f64::from(self)
    }
    fn le_bytes(self) -> impl AsRef<[u8]> {
        self.to_le_bytes()
    }
    fn softmax(row: &mut [Self]) {
        Softmax::new_mut(row).dispatch();
    }
    fn sigmoid(values: &mut [Self]) {
        Sigmoid {}.map_mut(values);
    }
}

impl Real for f64 {
    const TYPE: ElementType = ElementType::F64;
    const EPS: Self = f64::EPSILON;

    fn of(value: f64) -> Self {
        value
    }
    fn wide(self) -> f64 {
        self
    }
    fn le_bytes(self) -> impl AsRef<[u8]> {
        self.to_le_bytes()
    }
    fn softmax(row: &mut [Self]) {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut sum = 0.0;
        for x in &mut *row {
            *x = (*x - largest).exp();
            sum += *x;
        }
        for x in row {
            *x /= sum;
        }
    }
    fn sigmoid(values: &mut [Self]) {
        for x in values {
            *x = 1.0 / (1.0 + (-*x).exp());
        }
    }
}
