//! Multi-query associative recall with continuous keys and values (MQAR, Arora et al., arXiv 2312.04927; the continuous
//! form and the form with updates are those of HazyResearch/zoology).
//!
//! ```text
//! codebook   V unit values and as many unit keys of width d = D / 2, Gaussian rows scaled to length 1
//! pairs      x_t = [k_p | v_p]: P distinct keys with P distinct values, each pair once a pass, every pass in a new order
//! updates    u of the keys again, in a random order, each with a value that the sequence has not used before
//! gap        tokens of fresh unit keys and values, of which none is asked for
//! queries    [k_p | 0] for each of the P keys, in a random order; the target is the last value stored with the key
//! ```
//!
//! Queries are a sequence of their own, because a memory that stores what it reads would store them with the value 0.
//! An answer is the nearest of all V values. A matching is new in each sequence, or shared by all.
//!
//! [`memories`] returns two memories for the task, each one matrix from zero with identity projections. The head is as wide
//! as a token, D. With ℓ a mean over D, θ = β D / 2 makes a gradient step at the weights of the moment the delta rule
//! `M ← M + β kᵀ (v − k M)`. At fixed zero weights the same steps are the sum `M = β Σ kᵀ v`.

use std::io::{self, Write};

use ndarray::{Array2, s};

use super::{MAX_DIM, MAX_ITEM_NUMBERS, MAX_NUMBERS, MAX_TOKENS, RandomNumbers, check_length};
use crate::error::{Error, Result};
use crate::io::memory_file::MemoryFile;
use crate::io::{Tensor, npy};
use crate::memory::model::{Model, ModelKind};
use crate::memory::parameters::{Init, random_tensors};
use crate::memory::program::Schedule;
use crate::memory::{Dimensions, Gate, Gates, Program};
use crate::real::ElementType;

/// Distribution of the keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Keys {
    /// Gaussian rows scaled to length 1
    #[default]
    Spherical,
    /// A random orthonormal basis: d keys that do not disturb each other
    Orthonormal,
}

/// Extent of a matching of keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mapping {
    /// New keys, values and matching in every sequence
    #[default]
    Sequence,
    /// The same keys, values and matching in all sequences
    Shared,
}

/// Parameters of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mqar {
    /// Number of sequences.
    pub sequences: usize,
    /// D, the width of a token.
    pub dim: usize,
    /// P, the number of pairs of a sequence.
    pub pairs: usize,
    /// Number of passes over the pairs.
    pub passes: usize,
    /// u, the number of keys that get another value.
    pub updates: usize,
    /// Number of tokens after the pairs that are not asked for.
    pub gap: usize,
    /// V, the number of values of the codebook.
    pub values: usize,
    /// Distribution of the keys.
    pub keys: Keys,
    /// Extent of a matching.
    pub mapping: Mapping,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// A query and its right answer, as numbers of the codebook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// The key.
    pub key: usize,
    /// Its last value.
    pub value: usize,
    /// Its first value.
    pub first_value: usize,
}

/// The task with its codebook.
#[derive(Clone, Debug)]
pub struct MqarGenerator {
    task: Mqar,
    /// Rows of width d.
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

/// Smallest width of a token. Halves of width 1 have only two unit values, 1 and −1.
const MIN_DIM: usize = 4;
/// Random streams of what is stored and asked, and of the order in which it comes: the latter start here.
const ORDER_STREAMS: u64 = 1 << 32;

/// A token is stored or asked as (key, value).
type Pair<'a> = (&'a [f64], &'a [f64]);

/// The content of one sequence, as numbers of the codebook.
struct Content {
    stored: Vec<(usize, usize)>,
    queries: Vec<Query>,
}

impl MqarGenerator {
    /// Checks the sizes and samples the codebook.
    pub fn new(task: Mqar) -> Result<Self> {
        let Mqar { sequences, dim, pairs, passes, updates, values, seed, .. } = task;
        if !(MIN_DIM..=MAX_DIM).contains(&dim) || !dim.is_multiple_of(2) {
            let expected = format!(
                "an even number from {MIN_DIM} to {MAX_DIM} (half of a token is the key, half the value)"
            );
            return Err(Error::setting("--dim", expected, dim.to_string()));
        }
        let d = dim / 2;
        check_length("--sequences", sequences, ORDER_STREAMS as usize - 2)?;
        check_length("--values", values, MAX_ITEM_NUMBERS)?;
        if values.checked_mul(dim).is_none_or(|numbers| numbers > MAX_ITEM_NUMBERS) {
            let expected = format!("at most {MAX_ITEM_NUMBERS} numbers of keys and values");
            return Err(Error::setting("--values, --dim", expected, format!("{values} × {dim}")));
        }
        let keys = if task.keys == Keys::Orthonormal { d } else { values };
        if pairs > keys && task.keys == Keys::Orthonormal {
            let expected = format!("1 to {d} with orthonormal keys (half of --dim)");
            return Err(Error::setting("--pairs", expected, pairs.to_string()));
        }
        check_length("--pairs", pairs, keys.min(values))?;
        check_length("--passes", passes, MAX_TOKENS)?;
        if updates > pairs.min(values - pairs) {
            let most = pairs.min(values - pairs);
            let expected = format!("0 to {most} (each updates another pair, with a value not used before)");
            return Err(Error::setting("--updates", expected, updates.to_string()));
        }
        let tokens = pairs.checked_mul(passes).and_then(|n| n.checked_add(updates));
        let tokens = tokens.and_then(|n| n.checked_add(task.gap)).filter(|&n| n <= MAX_TOKENS);
        let Some(tokens) = tokens else {
            let expected = format!("at most {MAX_TOKENS} tokens in a sequence");
            return Err(Error::setting("--pairs, --passes, --gap", expected, "more"));
        };
        if sequences.checked_mul(tokens * dim).is_none_or(|numbers| numbers > MAX_NUMBERS) {
            let expected = format!("at most {MAX_NUMBERS} numbers");
            let got = format!("{sequences} × {tokens} × {dim}");
            return Err(Error::setting("--sequences, --pairs, --dim", expected, got));
        }
        let mut random = RandomNumbers::new(seed, 0);
        let values = (0..values).map(|_| unit(random.normals(d))).collect();
        let rows = (0..keys).map(|_| unit(random.normals(d))).collect();
        let keys = if task.keys == Keys::Orthonormal { orthonormal(rows) } else { rows };
        Ok(Self { task, keys, values })
    }

    /// Returns the number of tokens to store in each sequence.
    pub fn tokens(&self) -> usize {
        let Mqar { pairs, passes, updates, gap, .. } = self.task;
        pairs * passes + updates + gap
    }

    fn order(&self, sequence: usize) -> RandomNumbers {
        RandomNumbers::new(self.task.seed, ORDER_STREAMS + 1 + sequence as u64)
    }

    /// Samples the content of one sequence. Returns the random numbers of its gap too.
    fn content(&self, sequence: usize) -> (Content, RandomNumbers) {
        let Mqar { pairs, passes, updates, mapping, seed, .. } = self.task;
        let stream = if mapping == Mapping::Shared { 0 } else { sequence };
        let mut random = RandomNumbers::new(seed, 1 + stream as u64);
        let keys = random.order(self.keys.len());
        let values = random.order(self.values.len());
        let updated = random.order(pairs);
        let mut order = self.order(sequence);
        let mut queries: Vec<Query> =
            (0..pairs).map(|p| Query { key: keys[p], value: values[p], first_value: values[p] }).collect();
        let mut stored = Vec::with_capacity(pairs * passes + updates);
        for _ in 0..passes {
            stored.extend(order.order(pairs).into_iter().map(|p| (queries[p].key, queries[p].value)));
        }
        for (i, &p) in updated[..updates].iter().enumerate() {
            queries[p].value = values[pairs + i];
            stored.push((queries[p].key, queries[p].value));
        }
        let asked = order.order(pairs);
        let queries = asked.into_iter().map(|p| queries[p]).collect();
        (Content { stored, queries }, order)
    }

    /// Returns the queries of one sequence, in order.
    pub fn queries(&self, sequence: usize) -> Vec<Query> {
        self.content(sequence).0.queries
    }

    /// Passes the tokens to store of one sequence.
    fn each_stored(&self, sequence: usize, token: &mut dyn FnMut(Pair) -> io::Result<()>) -> io::Result<()> {
        let (content, mut random) = self.content(sequence);
        for (key, value) in content.stored {
            token((&self.keys[key], &self.values[value]))?;
        }
        let d = self.task.dim / 2;
        for _ in 0..self.task.gap {
            let (key, value) = (unit(random.normals(d)), unit(random.normals(d)));
            token((&key, &value))?;
        }
        Ok(())
    }

    /// Writes the tokens to store: (sequences, tokens, D).
    pub fn write_pairs(
        &self,
        out: &mut dyn Write,
        check: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let Mqar { sequences, dim, .. } = self.task;
        out.write_all(&npy::header_bytes(ElementType::F32, &[sequences, self.tokens(), dim]))?;
        for sequence in 0..sequences {
            self.each_stored(sequence, &mut |(key, value)| {
                row(out, key)?;
                row(out, value)
            })?;
            check()?;
        }
        Ok(())
    }

    /// Writes the queries: (sequences, P, D).
    pub fn write_queries(&self, out: &mut dyn Write) -> io::Result<()> {
        let Mqar { dim, .. } = self.task;
        let zeros = vec![0.0; dim / 2];
        self.write_each(dim, out, &mut |out, query| {
            row(out, &self.keys[query.key])?;
            row(out, &zeros)
        })
    }

    /// Writes the right answers: (sequences, P, d).
    pub fn write_targets(&self, out: &mut dyn Write) -> io::Result<()> {
        self.write_each(self.task.dim / 2, out, &mut |out, query| row(out, &self.values[query.value]))
    }

    /// Writes the first value of each query's key: (sequences, P, d).
    pub fn write_old_targets(&self, out: &mut dyn Write) -> io::Result<()> {
        self.write_each(self.task.dim / 2, out, &mut |out, query| row(out, &self.values[query.first_value]))
    }

    fn write_each(
        &self,
        width: usize,
        out: &mut dyn Write,
        write: &mut dyn FnMut(&mut dyn Write, &Query) -> io::Result<()>,
    ) -> io::Result<()> {
        let Mqar { sequences, pairs, .. } = self.task;
        out.write_all(&npy::header_bytes(ElementType::F32, &[sequences, pairs, width]))?;
        (0..sequences).try_for_each(|i| self.queries(i).iter().try_for_each(|query| write(out, query)))
    }

    /// Writes the values of the codebook: (V, d).
    pub fn write_values(&self, out: &mut dyn Write) -> io::Result<()> {
        let shape = [self.values.len(), self.task.dim / 2];
        out.write_all(&npy::header_bytes(ElementType::F32, &shape))?;
        self.values.iter().try_for_each(|value| row(out, value))
    }

    /// Writes a row for each query as CSV: sequence, position, key, value, updated (0 or 1), `first_value`.
    pub fn write_labels(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut csv = csv::Writer::from_writer(out);
        csv.write_record(["sequence", "position", "key", "value", "updated", "first_value"])?;
        for sequence in 0..self.task.sequences {
            for (position, query) in self.queries(sequence).into_iter().enumerate() {
                let Query { key, value, first_value } = query;
                let updated = usize::from(value != first_value);
                let row = [sequence, position, key, value, updated, first_value];
                csv.write_record(row.map(|n| n.to_string()))?;
            }
        }
        csv.flush()
    }
}

fn row(out: &mut dyn Write, numbers: &[f64]) -> io::Result<()> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect();
    out.write_all(&bytes)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Scales a row to length 1.
fn unit(mut row: Vec<f64>) -> Vec<f64> {
    let norm = dot(&row, &row).sqrt();
    for x in &mut row {
        *x /= norm;
    }
    row
}

/// Makes rows orthonormal by the Gram-Schmidt process. A second round removes what rounding has left.
fn orthonormal(rows: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(rows.len());
    for mut row in rows {
        for _ in 0..2 {
            for known in &basis {
                let along = dot(&row, known);
                row.iter_mut().zip(known).for_each(|(x, k)| *x -= along * k);
            }
        }
        basis.push(unit(row));
    }
    basis
}

/// Returns the memories of the task by file name. Their learning rate is that of β = 1.
///
/// # Errors
/// A width for which a memory would take more numbers than are accepted.
pub fn memories(dim: usize) -> Result<[(&'static str, MemoryFile, Gates); 2]> {
    let gates = Gates {
        learning_rate: Gate::Fixed(dim as f64 / 2.0),
        momentum: Gate::Fixed(0.0),
        decay: Gate::Fixed(0.0),
    };
    let memory = |refresh: Option<usize>| -> Result<MemoryFile> {
        let base = Program::titans_0_0_17(1);
        let schedule = Schedule { refresh, ..base.schedule };
        let program = Program { model: Model::new(ModelKind::Linear, false), schedule, ..base };
        let dimensions = Dimensions { dim, heads: 1, dim_head: dim, pre_norm: false, post_norm: false };
        dimensions.check(&program)?;
        dimensions.check_random(&program)?;
        let half = dim / 2;
        let mut keys_values = Array2::<f32>::zeros((2 * dim, dim));
        for i in 0..half {
            keys_values[[i, i]] = 1.0;
            keys_values[[dim + half + i, half + i]] = 1.0;
        }
        let queries = keys_values.slice(s![..dim, ..]).to_owned();
        let tensors = random_tensors(&dimensions, &program, Init::Xavier, 0).into_iter();
        let tensors = tensors.map(|(name, mut tensor)| {
            match &name[..] {
                "to_keys_values.weight" => tensor.assign(&keys_values),
                "to_queries.weight" => tensor.assign(&queries),
                _ => tensor.fill(0.0),
            }
            (name, Tensor::from_array(&tensor.view()))
        });
        Ok(MemoryFile::from_parts("memory".into(), dimensions, program, tensors.collect()))
    };
    Ok([("delta.safetensors", memory(Some(1))?, gates), ("sum.safetensors", memory(None)?, gates)])
}
