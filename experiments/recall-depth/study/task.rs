//! The task: a mapping of 8 keys to 8 values is written in one order and asked for in another.

use super::random::Twister;

/// Keys, and values, of an episode.
pub const ITEMS: usize = 8;

/// A mapping: `row[key]` is the value.
pub type Mapping = [u8; ITEMS];

/// All mappings, shuffled, in three splits.
pub struct Splits {
    pub training: Vec<Mapping>,
    pub validation: Vec<Mapping>,
    pub test: Vec<Mapping>,
}

const SHUFFLE_SEED: u32 = 20_260_913;
const TRAINING: usize = 32_000;
const VALIDATION: usize = 4096;

impl Splits {
    pub fn new() -> Self {
        let mut rows = Vec::with_capacity(40_320);
        let mut row: Mapping = std::array::from_fn(|i| i as u8);
        loop {
            rows.push(row);
            if !next_permutation(&mut row) {
                break;
            }
        }
        Twister::of_python(SHUFFLE_SEED).shuffle(&mut rows);
        let test = rows.split_off(TRAINING + VALIDATION);
        let validation = rows.split_off(TRAINING);
        Self { training: rows, validation, test }
    }
}

/// Advances to the next permutation in lexicographic order. Returns whether there is one.
fn next_permutation(row: &mut Mapping) -> bool {
    let Some(i) = (0..ITEMS - 1).rev().find(|&i| row[i] < row[i + 1]) else { return false };
    let j = (i + 1..ITEMS).rev().find(|&j| row[j] > row[i]).expect("the next one is larger");
    row.swap(i, j);
    row[i + 1..].reverse();
    true
}

/// One episode: a mapping, the order of its writes and the order of its queries.
#[derive(Clone, Copy, Debug)]
pub struct Episode {
    pub mapping: Mapping,
    pub writes: [u8; ITEMS],
    pub queries: [u8; ITEMS],
}

/// Random orders of the writes and of the queries of some episodes.
pub struct Orders {
    pub writes: Vec<[u8; ITEMS]>,
    pub queries: Vec<[u8; ITEMS]>,
}

impl Orders {
    /// Draws orders. Those of all writes come first in the stream.
    pub fn new(number: usize, random: &mut Twister) -> Self {
        Self { writes: random.orders(number), queries: random.orders(number) }
    }

    /// Makes the episodes of some mappings.
    pub fn episodes(self, mappings: impl Iterator<Item = Mapping>) -> Vec<Episode> {
        let orders = self.writes.into_iter().zip(self.queries);
        mappings
            .zip(orders)
            .map(|(mapping, (writes, queries))| Episode { mapping, writes, queries })
            .collect()
    }
}

/// Episodes of a training step.
pub const BATCH: usize = 32;

/// Returns the generator of a run's training batches.
pub fn stream(seed: u32) -> Twister {
    Twister::new(10_000 + seed)
}

/// Draws the rows of the training split, and the orders, of the next batch.
pub fn draw_batch(random: &mut Twister, rows: usize) -> (Vec<usize>, Orders) {
    let rows = (0..BATCH).map(|_| random.word() as usize % rows).collect();
    (rows, Orders::new(BATCH, random))
}

/// Episodes of a batch of an evaluation, whose orders are drawn together.
const EVALUATION_BATCH: usize = 128;

/// Returns the batches of an evaluation of some mappings in order, with orders of a generator of their own.
pub fn evaluation(mappings: &[Mapping], seed: u32) -> impl Iterator<Item = Vec<Episode>> {
    let mut random = Twister::new(seed);
    let batches = mappings.chunks(EVALUATION_BATCH);
    batches.map(move |batch| Orders::new(batch.len(), &mut random).episodes(batch.iter().copied()))
}

/// Seeds of the orders of an evaluation.
pub const VALIDATION_SEED: u32 = 8100;
pub const TEST_SEED: u32 = 8200;
