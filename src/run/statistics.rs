//! Statistics of a run, updated with each row: means over all rows, means over the last chunk, and the first chunk at
//! which storing has made the memory worse.

use std::collections::BTreeMap;

use crate::metrics::{ChunkMetrics, Retained, Spread, Summary};

/// Ratio above which a memory counts as unstable: loss just before a chunk is stored ÷ loss at the initial weights.
pub const UNSTABLE_RATIO: f64 = 10.0;

/// Statistics over the rows of a run. They do not depend on the order in which sequences are processed.
#[derive(Clone, Debug)]
pub struct RunStatistics {
    unstable_ratio: f64,
    done: Sums,
    /// Number and spread of the norms of retrieved rows.
    reads: (u64, Spread),
    /// Sums of unfinished sequences. After a divergence some sequences never finish.
    pending: BTreeMap<usize, Sums>,
}

/// Sums over one sequence, or over all finished ones.
#[derive(Clone, Debug, Default)]
struct Sums {
    all: Summary,
    last: Summary,
    chunk: Option<usize>,
    /// Σ over heads of loss and loss_before of `chunk`.
    losses: [f64; 2],
    first_unstable: Option<usize>,
    /// Σ loss and Σ ℓ at W of kept chunks, by the number of chunks stored since.
    retained: BTreeMap<usize, [f64; 2]>,
}

impl Sums {
    /// Completes the current chunk.
    fn close(&mut self, unstable_ratio: f64) {
        let [loss, before] = std::mem::take(&mut self.losses);
        // The loss is NaN if reading through the memory overflowed. A multiple of a negative loss means nothing.
        if before.is_nan() || (loss >= 0.0 && before > unstable_ratio * loss) {
            self.first_unstable = self.first_unstable.or(self.chunk);
        }
    }
}

impl RunStatistics {
    /// Creates empty statistics. A chunk is unstable if Σ loss_before > `unstable_ratio` × Σ loss, both over heads.
    pub fn new(unstable_ratio: f64) -> Self {
        Self { unstable_ratio, done: Sums::default(), reads: (0, Spread::EMPTY), pending: BTreeMap::new() }
    }

    /// Adds a row. The rows of a sequence must come in order of chunk and head.
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

    /// Adds the result of reading a kept chunk again.
    pub fn add_retained(&mut self, row: &Retained) {
        let sums = self.pending.entry(row.sequence).or_default();
        let [loss, at_w] = sums.retained.entry(row.after - row.chunk).or_default();
        *loss += row.loss;
        *at_w += row.loss_at_w;
    }

    /// Adds the norm of a retrieved row.
    pub fn add_read(&mut self, norm: f64) {
        let (count, spread) = &mut self.reads;
        *count += 1;
        spread.add(norm, *count);
    }

    /// Returns the spread of the norms of retrieved rows; `None` if nothing was read.
    pub fn retrieved_norm(&self) -> Option<Spread> {
        let (count, spread) = self.reads;
        (count > 0).then_some(spread)
    }

    /// Completes a sequence. Must be called in the order of sequences.
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

    /// Returns the loss ratio by lag, with retention. The lag is the number of chunks stored since a chunk was kept, ascending.
    /// The ratio is Σ loss ÷ Σ ℓ at W over sequences and heads.
    pub fn lags(&self) -> impl ExactSizeIterator<Item = (usize, f64)> {
        self.done.retained.iter().map(|(&lag, [loss, at_w])| (lag, loss / at_w))
    }

    /// Returns the number of rows of complete sequences.
    pub fn rows(&self) -> usize {
        self.done.all.rows()
    }

    /// Returns the summary over all rows.
    pub fn all(&self) -> &Summary {
        &self.done.all
    }

    /// Returns the summary over the last chunk of each sequence, with all heads.
    pub fn last(&self) -> &Summary {
        &self.done.last
    }

    /// Returns the first unstable chunk of any sequence.
    pub fn first_unstable_chunk(&self) -> Option<usize> {
        self.done.first_unstable
    }
}
