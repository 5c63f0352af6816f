//! Synthetic sequences that make a memory's behaviour visible. A seed gives the same bytes on every platform.
//!
//! In reading order: [`Task`] lists the tasks, one file each. They are [`recall`] (associative recall pairs), [`drift`]
//! (changing topics), [`repeats`] (repeated passages) and [`needle`] (a needle in noise). [`Generator`] samples them.
//! [`mqar`] (multi-query recall) has files of its own: pairs, queries and their right answers.
//!
//! Numbers are sampled from N(0, 1) by Marsaglia's polar method, in f64, and then rounded to f32. The logarithm is
//! `libm`'s, because a system's own may differ in the last digit. The labels have a random stream of their own, so that all
//! sequences of a file share them. Each sequence has another stream, so that it does not depend on the number of sequences.

pub mod drift;
pub mod mqar;
pub mod needle;
pub mod recall;
pub mod repeats;

use std::io::{self, Write};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};
use crate::io::npy;
use crate::real::ElementType;
use crate::sequence::Shape;
pub use drift::Drift;
pub use needle::Needle;
pub use recall::Recall;
pub use repeats::Repeats;

/// Most numbers in a file, 16 GiB in f32; a larger size is taken for a typing error.
const MAX_NUMBERS: usize = 1 << 32;
/// Most tokens of a sequence. Their labels are held in memory, forty bytes each.
const MAX_TOKENS: usize = 1 << 23;
/// Largest width of a token; one token is held at a time.
const MAX_DIM: usize = 1 << 20;
/// Most numbers in pairs, passages or needles. They are held because they repeat: half a gigabyte in f64.
const MAX_ITEM_NUMBERS: usize = 1 << 26;

/// A task and its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Task {
    /// Pairs of a key and a value.
    Recall(Recall),
    /// Topics that change.
    Drift(Drift),
    /// Passages of which some repeat.
    Repeats(Repeats),
    /// The same few tokens at several places in noise.
    Needle(Needle),
}

/// The label of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Number of the pass, topic or passage; with needles, 1 inside and 0 outside.
    pub segment: usize,
    /// Whether the content occurred before.
    pub repeat: bool,
    /// Identity of the content: tokens of the same item differ only by noise. `None` is content that never repeats.
    pub item: Option<usize>,
}

/// A task with its sizes, its seed and the labels that follow from them.
#[derive(Clone, Debug)]
pub struct Generator {
    task: Task,
    shape: Shape,
    seed: u64,
    labels: Vec<Label>,
}

impl Generator {
    /// Checks the sizes and samples the labels.
    pub fn new(task: Task, shape: Shape, seed: u64) -> Result<Self> {
        let Shape { sequences, tokens, dim } = shape;
        for (flag, size) in [("--sequences", sequences), ("--tokens", tokens), ("--dim", dim)] {
            if size == 0 {
                return Err(Error::setting(flag, "at least 1", "0"));
            }
        }
        let numbers = sequences.checked_mul(tokens).and_then(|n| n.checked_mul(dim));
        if numbers.is_none_or(|numbers| numbers > MAX_NUMBERS) {
            let expected = format!("at most {MAX_NUMBERS} numbers");
            let got = format!("{sequences} × {tokens} × {dim}");
            return Err(Error::setting("--sequences, --tokens, --dim", expected, got));
        }
        for (flag, size, most) in [("--tokens", tokens, MAX_TOKENS), ("--dim", dim, MAX_DIM)] {
            if size > most {
                return Err(Error::setting(flag, format!("at most {most}"), size.to_string()));
            }
        }
        let mut random = RandomNumbers::new(seed, 0);
        let labels = match task {
            Task::Recall(recall) => recall.labels(shape, &mut random),
            Task::Drift(drift) => drift.labels(tokens),
            Task::Repeats(repeats) => repeats.labels(tokens, &mut random),
            Task::Needle(needle) => needle.labels(tokens, &mut random),
        }?;
        // Both are within their limits, so the product does not overflow.
        let items = items(&labels) * dim;
        if items > MAX_ITEM_NUMBERS {
            let expected = format!("at most {MAX_ITEM_NUMBERS} numbers of repeated content");
            return Err(Error::setting("--tokens, --dim", expected, items.to_string()));
        }
        Ok(Self { task, shape, seed, labels })
    }

    /// Returns the labels of the tokens, which all sequences share.
    pub fn labels(&self) -> &[Label] {
        &self.labels
    }

    /// Returns the tokens of one sequence, (tokens, dim).
    pub fn sequence(&self, sequence: usize) -> Vec<f32> {
        let mut numbers = Vec::with_capacity(self.shape.tokens * self.shape.dim);
        let all = self.each_token(sequence, &mut |token| {
            numbers.extend(token.iter().map(|&x| x as f32));
            Ok(())
        });
        all.expect("pushing to a Vec cannot fail");
        numbers
    }

    fn each_token(&self, sequence: usize, token: TokenSink) -> io::Result<()> {
        let mut random = RandomNumbers::new(self.seed, 1 + sequence as u64);
        let (labels, dim) = (&self.labels[..], self.shape.dim);
        match self.task {
            Task::Recall(recall) => recall.fill(labels, dim, &mut random, token),
            Task::Drift(drift) => drift.fill(labels, dim, &mut random, token),
            Task::Repeats(repeats) => repeats.fill(labels, dim, &mut random, token),
            Task::Needle(needle) => needle.fill(labels, dim, &mut random, token),
        }
    }

    /// Writes all sequences as .npy: f32, little-endian, C order. The shape is (tokens, dim) for rank 2, which needs a single
    /// sequence, and otherwise (sequences, tokens, dim). `check` runs after every token and can stop the work.
    pub fn write_npy(
        &self,
        rank: usize,
        out: &mut dyn Write,
        check: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let Shape { sequences, tokens, dim } = self.shape;
        assert!(rank == 3 || (rank == 2 && sequences == 1), "rank {rank} for {:?}", self.shape);
        let axes = [sequences, tokens, dim];
        out.write_all(&npy::header_bytes(ElementType::F32, &axes[3 - rank..]))?;
        for sequence in 0..sequences {
            let mut bytes = Vec::with_capacity(dim * size_of::<f32>());
            self.each_token(sequence, &mut |token| {
                bytes.clear();
                bytes.extend(token.iter().flat_map(|&x| (x as f32).to_le_bytes()));
                out.write_all(&bytes)?;
                check()
            })?;
        }
        out.flush()
    }

    /// Writes the labels as CSV: position, segment, repeat (0 or 1), item.
    pub fn write_labels(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut csv = csv::Writer::from_writer(out);
        csv.write_record(["position", "segment", "repeat", "item"])?;
        for (position, label) in self.labels.iter().enumerate() {
            let item = label.item.map_or_else(String::new, |item| item.to_string());
            let numbers = [position, label.segment, usize::from(label.repeat)].map(|n| n.to_string());
            csv.write_record(numbers.iter().chain([&item]))?;
        }
        csv.flush()
    }
}

/// Receives one token after the other.
pub(crate) type TokenSink<'a> = &'a mut dyn FnMut(&[f64]) -> io::Result<()>;

/// Returns one past the last item.
fn items(labels: &[Label]) -> usize {
    labels.iter().filter_map(|label| label.item).max().map_or(0, |last| last + 1)
}

/// A stream of random numbers.
pub(crate) struct RandomNumbers {
    rng: ChaCha8Rng,
    /// The second normal number of a pair.
    spare: Option<f64>,
}

impl RandomNumbers {
    fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self { rng, spare: None }
    }

    /// Samples a number from [0, 1).
    fn uniform(&mut self) -> f64 {
        self.rng.random()
    }

    /// Samples a whole number from 0 .. n.
    fn below(&mut self, n: usize) -> usize {
        self.rng.random_range(0..n as u64) as usize
    }

    /// Samples a number from N(0, 1).
    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        loop {
            let (u, v) = (2.0 * self.uniform() - 1.0, 2.0 * self.uniform() - 1.0);
            let square = u * u + v * v;
            if square > 0.0 && square < 1.0 {
                let scale = (-2.0 * libm::log(square) / square).sqrt();
                self.spare = Some(v * scale);
                return u * scale;
            }
        }
    }

    /// Samples `count` numbers from N(0, 1).
    fn normals(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| self.normal()).collect()
    }

    /// Returns 0 .. n in a random order.
    fn order(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// Emits `x = √(1 − ν²) item + ν ε` for each token, and ε alone without an item. Items are sampled once; all are N(0, 1).
fn fill_items(
    labels: &[Label],
    dim: usize,
    noise: f64,
    random: &mut RandomNumbers,
    token: TokenSink,
) -> io::Result<()> {
    let items = random.normals(items(labels) * dim);
    let kept = (1.0 - noise * noise).sqrt();
    for label in labels {
        let Some(item) = label.item else {
            token(&random.normals(dim))?;
            continue;
        };
        let item = &items[item * dim..(item + 1) * dim];
        let numbers = item.iter().map(|x| if noise == 0.0 { *x } else { kept * x + noise * random.normal() });
        token(&numbers.collect::<Vec<_>>())?;
    }
    Ok(())
}

/// Checks a share, 0 to 1.
fn check_share(flag: &str, share: f64) -> Result<()> {
    if (0.0..=1.0).contains(&share) {
        return Ok(());
    }
    Err(Error::setting(flag, "a number from 0 to 1", share.to_string()))
}

/// Checks a length, 1 to `most` tokens.
fn check_length(flag: &str, length: usize, most: usize) -> Result<()> {
    if (1..=most).contains(&length) {
        return Ok(());
    }
    Err(Error::setting(flag, format!("1 to {most}"), length.to_string()))
}

#[cfg(test)]
mod tests {
    use super::RandomNumbers;

    #[test]
    fn normal_numbers_have_the_moments_of_their_kind() {
        let n = 200_000;
        let all = RandomNumbers::new(1, 0).normals(n);
        let moment = |k: i32| all.iter().map(|x| x.powi(k)).sum::<f64>() / f64::from(n as u32);
        // The bound is five standard errors: 1/√n for x, √2/√n for x², √15/√n for x³, √96/√n for x⁴.
        for (k, expected, deviation) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let error = (moment(k) - expected).abs();
            assert!(error < 5.0 * f64::sqrt(deviation / f64::from(n as u32)), "moment {k}: off by {error}");
        }
    }

    #[test]
    fn orders_hold_each_once_and_differ() {
        let mut random = RandomNumbers::new(2, 0);
        let (a, b) = (random.order(50), random.order(50));
        assert_ne!(a, b);
        for mut order in [a, b] {
            order.sort_unstable();
            assert!(order.into_iter().eq(0..50));
        }
        assert_eq!(random.order(0), [0; 0]);
    }
}
