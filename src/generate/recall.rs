//! Associative recall: each token is a pair of a key and a value. A memory that stores the pair can return the value for
//! the key. This is the oldest test of associative memories (Kohonen's correlation matrices, 1972). It returned with fast
//! weight programmers (Schlag et al., 2021) and as MQAR (Arora et al., 2023).
//!
//! ```text
//! x_t = [k_p | v_p],  k_p, v_p ~ N(0, I) of width D / 2,  p = the pair of token t
//! k ← √(1 − ν²) k_p + ν ε                                  with noise ν
//! ```
//!
//! The P pairs occur once each, in a random order. From token P on they repeat, each pass in another order.
//!
//! [`parameters`] takes keys and queries from the key half and values from the value half. It has no norms and h heads of
//! width d = D / (2h), so that head j associates columns j·d .. (j+1)·d of both halves, each a task of its own. Reads
//! return to the value half. One head would be as wide as D: see `Dimensions::check`.
//!
//! Memory weights are random like those of any memory, except that W_v2 = 0. At W the memory therefore returns zero and ℓ
//! is the size of the values, so that a ratio to it below 1 measures recall alone. Gates have no bias, and their zero
//! weights give θ = e^−7.5 and η = α = ½; fix them for experiments.

use std::collections::BTreeMap;
use std::io;

use ndarray::{Array2, s};

use super::{Label, RandomNumbers, TokenSink, check_length, check_share, items};
use crate::error::{Error, Result};
use crate::io::Tensor;
use crate::memory::parameters::{Init, random_tensors};
use crate::memory::{Dimensions, Program};
use crate::sequence::Shape;

/// Parameters of the task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recall {
    /// P, the number of pairs; `None` is one per token.
    pub pairs: Option<usize>,
    /// ν, the noise, 0 to 1.
    pub noise: f64,
}

impl Recall {
    pub(super) fn labels(&self, shape: Shape, random: &mut RandomNumbers) -> Result<Vec<Label>> {
        let pairs = self.pairs.unwrap_or(shape.tokens);
        check_length("--pairs", pairs, shape.tokens)?;
        check_share("--noise", self.noise)?;
        if !shape.dim.is_multiple_of(2) {
            let expected = "an even number (half of a token is the key, half the value)";
            return Err(Error::setting("--dim", expected, shape.dim.to_string()));
        }
        let mut order: Vec<usize> = (0..pairs).collect();
        let mut labels = Vec::with_capacity(shape.tokens);
        for t in 0..shape.tokens {
            if t > 0 && t % pairs == 0 {
                order = random.order(pairs);
            }
            let segment = t / pairs;
            labels.push(Label { segment, repeat: segment > 0, item: Some(order[t % pairs]) });
        }
        Ok(labels)
    }

    pub(super) fn fill(
        &self,
        labels: &[Label],
        dim: usize,
        random: &mut RandomNumbers,
        token: TokenSink,
    ) -> io::Result<()> {
        let pairs = random.normals(items(labels) * dim);
        let kept = (1.0 - self.noise * self.noise).sqrt();
        let mut numbers = Vec::with_capacity(dim);
        for label in labels {
            let pair = label.item.unwrap_or_default() * dim;
            let (key, value) = pairs[pair..pair + dim].split_at(dim / 2);
            numbers.clear();
            numbers.extend(key.iter().map(|x| match self.noise {
                0.0 => *x,
                noise => kept * x + noise * random.normal(),
            }));
            numbers.extend(value);
            token(&numbers)?;
        }
        Ok(())
    }
}

/// Largest width for which parameters are made: their dim × dim matrices take about 300 MB in the process.
const MAX_PARAMETERS_DIM: usize = 4096;

/// Returns parameters, in file layout, that make the task meaningful for tokens of width `dim`.
pub fn parameters(dim: usize, heads: usize, seed: u64) -> Result<BTreeMap<String, Tensor>> {
    if heads < 2 || !heads.checked_mul(2).is_some_and(|twice| dim.is_multiple_of(twice)) {
        let expected = format!("h of at least 2 such that 2h divides dim {dim}");
        return Err(Error::setting("--heads", expected, heads.to_string()));
    }
    if dim > MAX_PARAMETERS_DIM {
        let expected = format!("at most {MAX_PARAMETERS_DIM} with --parameters");
        return Err(Error::setting("--dim", expected, dim.to_string()));
    }
    let half = dim / 2;
    let dimensions = Dimensions { dim, heads, dim_head: half / heads, pre_norm: false, post_norm: false };
    // The task needs attention within a chunk; nothing but the chunk size depends on the program's schedule.
    let program = Program::titans_0_0_17(2);
    dimensions.check(&program)?;
    let key: Array2<f32> = Array2::from_shape_fn((half, dim), |(i, j)| f32::from(i == j));
    let mut keys_values = Array2::zeros((dim, dim));
    keys_values.slice_mut(s![..half, ..]).assign(&key);
    keys_values.slice_mut(s![half.., half..]).assign(&Array2::<f32>::eye(half));
    let mut combine = Array2::zeros((dim, half));
    combine.slice_mut(s![half.., ..]).assign(&Array2::<f32>::eye(half));
    let tensors =
        random_tensors(&dimensions, &program, Init::Xavier, seed).into_iter().map(|(name, mut tensor)| {
            match &name[..] {
                "to_keys_values.weight" => tensor.assign(&keys_values),
                "to_queries.weight" => tensor.assign(&key),
                "combine_heads.weight" => tensor.assign(&combine),
                // M_W = 0.
                "memory_model.weights.3" => tensor.fill(0.0),
                gate if gate.starts_with("to_") => tensor.fill(0.0),
                _ => {}
            }
            (name, Tensor::from_array(&tensor.view()))
        });
    Ok(tensors.collect())
}
