//! The memory's two recurrences over a whole sequence, fused:
//!
//! ```text
//! S_t = η_t S_{t−1} − θ_t g_t
//! U_t = (1 − α_t) U_{t−1} + S_t
//! ```
//!
//! The coefficients are scalars per step, the same for all channels. Surprises g and updates U are `[batch,
//! steps, channels]`. This takes one read of g and one write of U, 8 bytes an f32 element, against 24 for two
//! scans with gates per element. It takes 4 where only the last S and U are needed.

use ndarray::{ArrayView2, ArrayView3, ArrayViewMut2, ArrayViewMut3};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::channels::{PIECE, is_narrow, panel_width, split_panels};
use super::linear::{Shape, streams};
use super::{Element, stream};

/// The inputs of the pair.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a, T> {
    /// Learning rate θ `[batch, steps]`.
    pub learning_rate: ArrayView2<'a, T>,
    /// Momentum η `[batch, steps]`.
    pub momentum: ArrayView2<'a, T>,
    /// Decay α `[batch, steps]`.
    pub decay: ArrayView2<'a, T>,
    /// Surprise g `[batch, steps, channels]`.
    pub surprise: ArrayView3<'a, T>,
}

/// S and U of all channels, `[batch, channels]`.
#[derive(Debug)]
pub struct PairState<'a, T> {
    /// Momentum S.
    pub momentum: ArrayViewMut2<'a, T>,
    /// Update U.
    pub update: ArrayViewMut2<'a, T>,
}

/// The threads of the pair: one, or those of the caller's rayon pool, which divide the panels of channels. The
/// bits are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PairAlgorithm {
    /// One thread, row after row.
    Sequential,
    /// Panels side by side.
    Channels,
}

/// Advances S and U through all steps, and writes U after each step into `updates`, if given.
///
/// # Panics
/// Panics if shapes do not agree or an array is not contiguous.
pub fn scan_pair<T: Element>(
    pair: &Pair<T>,
    algorithm: PairAlgorithm,
    state: PairState<T>,
    updates: Option<ArrayViewMut3<T>>,
) {
    let (batch, steps, channels) = pair.surprise.dim();
    let shape = Shape { batch, steps, channels };
    let PairState { mut momentum, mut update } = state;
    assert_eq!(
        (momentum.dim(), update.dim()),
        ((batch, channels), (batch, channels)),
        "S and U [batch, channels]"
    );
    for gate in [&pair.learning_rate, &pair.momentum, &pair.decay] {
        assert_eq!(gate.dim(), (batch, steps), "gates [batch, steps]");
    }
    if shape.elements() == 0 {
        return;
    }
    let surprise = pair.surprise.to_slice().expect("contiguous surprises");
    let past_cache = streams::<T>(2 * surprise.len());
    let width = match algorithm {
        PairAlgorithm::Sequential => channels,
        PairAlgorithm::Channels => panel_width::<T>(shape),
    };
    let last = Shape { steps: 1, ..shape };
    let momenta = split_panels(momentum.as_slice_mut().expect("contiguous S"), last, width);
    let latest = split_panels(update.as_slice_mut().expect("contiguous U"), last, width);
    let mut updates = updates;
    let updates: Vec<_> = match &mut updates {
        Some(updates) => {
            assert_eq!(updates.dim(), pair.surprise.dim(), "updates of the surprises' shape");
            let updates = updates.as_slice_mut().expect("contiguous updates");
            split_panels(updates, shape, width).into_iter().map(|(.., panel)| Some(panel)).collect()
        }
        None => momenta.iter().map(|_| None).collect(),
    };
    let tasks: Vec<_> = momenta
        .into_iter()
        .zip(latest)
        .zip(updates)
        .map(|(((sequence, first, momentum), (.., update)), updates)| {
            let surprise = &surprise[sequence * steps * channels..][..steps * channels];
            let gates =
                [pair.learning_rate, pair.momentum, pair.decay].map(|gates| gates.row(sequence).to_vec());
            Task { gates, surprise, channels, first, momentum, update, updates }
        })
        .collect();
    match algorithm {
        PairAlgorithm::Sequential => tasks.into_iter().for_each(|task| task.run(false)),
        PairAlgorithm::Channels => tasks.into_par_iter().for_each(|task| task.run(past_cache)),
    }
}

/// A panel of channels of one sequence.
struct Task<'a, T> {
    /// θ, η, α
    gates: [Vec<T>; 3],
    /// Surprises of the whole sequence.
    surprise: &'a [T],
    channels: usize,
    first: usize,
    /// A single row.
    momentum: ArrayViewMut2<'a, T>,
    update: ArrayViewMut2<'a, T>,
    /// One row per step.
    updates: Option<ArrayViewMut2<'a, T>>,
}

impl<T: Element> Task<'_, T> {
    fn run(self, past_cache: bool) {
        let Self { gates: [learning_rate, momenta, decay], surprise, channels, first, .. } = self;
        let (mut momentum, mut update, mut updates) = (self.momentum, self.update, self.updates);
        let s = momentum.as_slice_mut().expect("a contiguous row");
        let u = update.as_slice_mut().expect("a contiguous row");
        let narrow = is_narrow::<T>(s.len(), channels);
        for (t, ((&theta, &eta), &alpha)) in learning_rate.iter().zip(&momenta).zip(&decay).enumerate() {
            let keep = T::one() - alpha;
            let mut row = updates.as_mut().map(|updates| updates.row_mut(t));
            let mut row = row.as_mut().map(|row| row.as_slice_mut().expect("contiguous rows"));
            for (i, (s, u)) in s.chunks_mut(PIECE).zip(u.chunks_mut(PIECE)).enumerate() {
                let place = t * channels + first + i * PIECE;
                if narrow {
                    let next = place + channels..place + channels + s.len();
                    stream::prefetch(surprise.get(next).unwrap_or_default());
                }
                let g = &surprise[place..][..s.len()];
                for ((s, u), &g) in s.iter_mut().zip(&mut *u).zip(g) {
                    *s = eta * *s - theta * g;
                    *u = keep * *u + *s;
                }
                if let Some(row) = &mut row {
                    let written = &mut row[i * PIECE..][..u.len()];
                    if past_cache {
                        stream::copy(written, u);
                    } else {
                        written.copy_from_slice(u);
                    }
                }
            }
        }
        stream::fence();
    }
}
