//! A run in a few numbers, taken from its rows as they come: means over all rows, means over the last chunk, and the
//! chunk from which on writing makes the memory worse.

use std::collections::BTreeMap;

use crate::metrics::{ChunkMetrics, Retained, Summary};

/// Loss just before a chunk is stored, as a multiple of the loss at the initial weights, from which on a memory counts
/// as unstable.
pub const UNSTABLE_RATIO: f64 = 10.0;

/// What the rows of a run add up to. The same whatever turns its sequences take.
#[derive(Clone, Debug)]
pub struct RunStatistics {
    unstable_ratio: f64,
    done: Sums,
    /// Of sequences that are not done: after a divergence some never are.
    pending: BTreeMap<usize, Sums>,
}

/// Of one sequence, or of all that are done.
#[derive(Clone, Debug, Default)]
struct Sums {
    all: Summary,
    last: Summary,
    chunk: Option<usize>,
    /// Σ over heads of loss and loss_before of `chunk`.
    losses: [f64; 2],
    first_unstable: Option<usize>,
    /// Σ loss and ℓ at W of kept chunks, by the chunks stored since.
    retained: BTreeMap<usize, [f64; 2]>,
}

impl Sums {
    /// The chunk is complete.
    fn close(&mut self, unstable_ratio: f64) {
        let [loss, before] = std::mem::take(&mut self.losses);
        // NaN where reading through the memory overflowed.
        if before.is_nan() || before > unstable_ratio * loss {
            self.first_unstable = self.first_unstable.or(self.chunk);
        }
    }
}

impl RunStatistics {
    /// Nothing yet. A chunk is unstable where Σ loss_before > `unstable_ratio` × Σ loss, both over heads.
    pub fn new(unstable_ratio: f64) -> Self {
        Self { unstable_ratio, done: Sums::default(), pending: BTreeMap::new() }
    }

    /// Takes in a row; those of a sequence come by chunk and head.
    pub fn add(&mut self, row: &ChunkMetrics) {
        let sums = self.pending.entry(row.sequence).or_default();
        if sums.chunk != Some(row.chunk) {
            sums.close(self.unstable_ratio);
            sums.chunk = Some(row.chunk);
            sums.last = Summary::default();
        }
        sums.all.add(row);
        sums.last.add(row);
        sums.losses[0] += row.loss;
        sums.losses[1] += row.loss_before.unwrap_or(0.0);
    }

    /// Takes in a kept chunk as it was read again.
    pub fn add_retained(&mut self, row: &Retained) {
        let sums = self.pending.entry(row.sequence).or_default();
        let [loss, at_w] = sums.retained.entry(row.after - row.chunk).or_default();
        *loss += row.loss;
        *at_w += row.loss_at_w;
    }

    /// All rows of this sequence have come. Called in the order of sequences.
    pub fn sequence_done(&mut self, sequence: usize) {
        let Some(mut sums) = self.pending.remove(&sequence) else { return };
        sums.close(self.unstable_ratio);
        self.done.all.merge(sums.all);
        self.done.last.merge(sums.last);
        for (lag, [loss, at_w]) in sums.retained {
            let all = self.done.retained.entry(lag).or_default();
            all[0] += loss;
            all[1] += at_w;
        }
        let first = [self.done.first_unstable, sums.first_unstable].into_iter().flatten().min();
        self.done.first_unstable = first;
    }

    /// With retention: chunks stored since a chunk was kept, ascending, and Σ loss ÷ Σ ℓ at W over sequences and heads.
    pub fn lags(&self) -> impl ExactSizeIterator<Item = (usize, f64)> {
        self.done.retained.iter().map(|(&lag, [loss, at_w])| (lag, loss / at_w))
    }

    /// Over all rows.
    pub fn all(&self) -> &Summary {
        &self.done.all
    }

    /// Over the heads and sequences of each sequence's last chunk.
    pub fn last(&self) -> &Summary {
        &self.done.last
    }

    /// The first unstable chunk of any sequence.
    pub fn first_unstable_chunk(&self) -> Option<usize> {
        self.done.first_unstable
    }
}
