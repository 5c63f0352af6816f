//! What a stored chunk reports: the rows of metrics.csv. Field order is the header's order.

use serde::Serialize;

use crate::real::Real;

/// One stored chunk of one head of one sequence. Norms are Frobenius norms over all memory weights together.
#[derive(Clone, Debug, Serialize)]
pub struct ChunkMetrics<T> {
    /// Index of the sequence in the batch.
    pub sequence: usize,
    /// Chunks since the start of the memory's life.
    pub chunk: usize,
    /// Head.
    pub head: usize,
    /// First token, counted from the start of the memory's life.
    pub start: usize,
    /// One past the last token.
    pub end: usize,
    /// ℓ at the weights of the start of the sequence, W: Σ over the chunk's tokens of mean over d of (M(k) − v)².
    pub loss: T,
    /// ℓ at W + U of just before this chunk was stored; absent without a probe.
    pub loss_before: Option<T>,
    /// ℓ at W + U of just after.
    pub loss_after: Option<T>,
    /// ‖g‖
    pub surprise: T,
    /// θ
    pub learning_rate: T,
    /// η
    pub momentum: T,
    /// α
    pub decay: T,
    /// ‖θ g‖
    pub surprise_norm: T,
    /// ‖S‖
    pub momentum_norm: T,
    /// ‖U‖
    pub update_norm: T,
    /// ‖W + U‖
    pub weight_norm: T,
    /// The same per memory weight, in file order.
    pub weights: Vec<WeightMetrics<T>>,
}

/// Norms of one memory weight.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct WeightMetrics<T> {
    /// ‖g_p‖
    pub surprise: T,
    /// ‖S_p‖
    pub momentum_norm: T,
    /// ‖U_p‖
    pub update_norm: T,
}

impl<T: Real> ChunkMetrics<T> {
    /// The first quantity, in header order, that is NaN or infinite.
    pub fn first_nonfinite(&self) -> Option<(&'static str, T)> {
        let finite = T::zero();
        let quantities = [
            ("loss", self.loss),
            ("loss_before", self.loss_before.unwrap_or(finite)),
            ("loss_after", self.loss_after.unwrap_or(finite)),
            ("surprise", self.surprise),
            ("learning_rate", self.learning_rate),
            ("momentum", self.momentum),
            ("decay", self.decay),
            ("surprise_norm", self.surprise_norm),
            ("momentum_norm", self.momentum_norm),
            ("update_norm", self.update_norm),
            ("weight_norm", self.weight_norm),
        ];
        quantities.into_iter().find(|(_, value)| !value.is_finite())
    }
}
