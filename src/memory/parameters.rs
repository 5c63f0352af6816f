//! The trained parameters: projections, gate layers, norms, and the memory weights `W` that every sequence
//! starts from. Names and the (out, in) layout in files are those of titans-pytorch 0.0.17's `state_dict`. In
//! memory every linear is (in, out).

use std::collections::BTreeMap;

use ndarray::{Array1, Array2, ArrayD, Axis, Ix1, Ix2, concatenate};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

use super::limits::check_chunk_size;
use crate::error::{Error, Result};
use crate::real::Real;

/// The memory weights of the attention memory, in file order: `W_q`, `W_k`, `W_v1`, `W_v2`.
pub const MEMORY_WEIGHTS: usize = 4;

/// Most numbers of the parameters, or of S and U of one sequence: 16 GiB in f32. A larger size is a typing error.
const MAX_NUMBERS: u128 = 1 << 32;

/// Most numbers of a random memory: a width of 4096 with one head, whose S and U take half a gigabyte in f32.
const MAX_RANDOM_NUMBERS: u128 = 1 << 27;

/// Sizes and norms of a memory. A weights file determines all of them; only the chunk size is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dimensions {
    /// Model width D.
    pub dim: usize,
    /// Number of heads, h.
    pub heads: usize,
    /// Width d of one head and of the memory.
    pub dim_head: usize,
    /// `RMSNorm` before storing and before reading.
    pub pre_norm: bool,
    /// `RMSNorm` of the retrieved rows.
    pub post_norm: bool,
}

impl std::fmt::Display for Dimensions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { dim, heads, dim_head, pre_norm, post_norm } = self;
        let norms = match (pre_norm, post_norm) {
            (true, true) => "before and after",
            (true, false) => "before, not after",
            (false, true) => "after, not before",
            (false, false) => "none",
        };
        write!(f, "dim {dim}, heads {heads}, dim_head {dim_head}; norms: {norms}")
    }
}

/// A tensor that does not fit the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Name in the file.
    pub tensor: String,
    /// Expected shape or presence.
    pub expected: String,
    /// Shape or presence in the file.
    pub got: String,
}

impl Dimensions {
    /// Returns the inner width h · d.
    pub fn inner(&self) -> usize {
        self.heads * self.dim_head
    }

    /// Returns the names and file shapes of all parameters, in file order.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let Self { dim, heads, dim_head, .. } = *self;
        let inner = self.inner();
        let mut tensors: Vec<(String, Vec<usize>)> = Vec::new();
        let mut add = |name: &str, shape: &[usize]| tensors.push((name.to_owned(), shape.to_vec()));
        if self.pre_norm {
            add("store_norm.weight", &[dim]);
            add("retrieve_norm.weight", &[dim]);
        }
        if self.post_norm {
            add("post_rmsnorm.weight", &[dim]);
        }
        add("to_keys_values.weight", &[2 * inner, dim]);
        add("to_queries.weight", &[inner, dim]);
        add("to_adaptive_step.1.weight", &[heads, dim]);
        add("to_momentum.1.weight", &[heads, dim]);
        add("to_decay_factor.1.weight", &[heads, dim]);
        if heads > 1 {
            add("combine_heads.weight", &[dim, inner]);
        }
        for p in 0..MEMORY_WEIGHTS {
            add(&format!("memory_model.weights.{p}"), &[dim_head, dim_head]);
        }
        tensors
    }

    /// Infers the dimensions from the shapes of a file's parameters, and checks every shape.
    pub fn infer(shapes: &BTreeMap<String, Vec<usize>>) -> Result<Self, Mismatch> {
        let mismatch = |tensor: &str, expected: String, got: String| Mismatch {
            tensor: tensor.to_owned(),
            expected,
            got,
        };
        let matrix = |name: &str, meaning: &str| match shapes.get(name).map(Vec::as_slice) {
            Some(&[rows, cols]) if rows > 0 && cols > 0 => Ok((rows, cols)),
            Some(shape) => Err(mismatch(name, format!("shape {meaning}"), format!("{shape:?}"))),
            None => Err(mismatch(name, format!("a tensor of shape {meaning}"), "no such tensor".into())),
        };
        let (inner, dim) = matrix("to_queries.weight", "[heads * dim_head, dim]")?;
        let (dim_head, _) = matrix("memory_model.weights.0", "[dim_head, dim_head]")?;
        if inner % dim_head != 0 {
            let expected = format!("rows that are a multiple of dim_head {dim_head}");
            return Err(mismatch("to_queries.weight", expected, format!("{inner} rows")));
        }
        let dimensions = Self {
            dim,
            heads: inner / dim_head,
            dim_head,
            pre_norm: shapes.contains_key("store_norm.weight") || shapes.contains_key("retrieve_norm.weight"),
            post_norm: shapes.contains_key("post_rmsnorm.weight"),
        };
        let expected: BTreeMap<_, _> = dimensions.tensors().into_iter().collect();
        for (name, shape) in &expected {
            match shapes.get(name) {
                Some(got) if got == shape => {}
                Some(got) => return Err(mismatch(name, format!("shape {shape:?}"), format!("{got:?}"))),
                None => {
                    let wanted = format!("a tensor of shape {shape:?}");
                    return Err(mismatch(name, wanted, "no such tensor".into()));
                }
            }
        }
        match shapes.keys().find(|name| !expected.contains_key(*name)) {
            Some(name) => {
                let wanted = "only the parameters of an attention memory (MemoryAttention, no biases)";
                Err(mismatch(name, wanted.into(), "an additional tensor".into()))
            }
            None => Ok(dimensions),
        }
    }

    /// Rejects sizes that the arithmetic cannot handle. This runs when a configuration is read, before any work.
    pub fn check(&self, chunk_size: usize) -> Result<()> {
        let Self { dim, heads, dim_head, .. } = *self;
        check_chunk_size(chunk_size).map_err(Error::limit("chunk_size"))?;
        for (name, value) in [("dim", dim), ("heads", heads), ("dim_head", dim_head)] {
            if value == 0 {
                return Err(Error::setting(name, "at least 1", "0"));
            }
        }
        self.check_numbers(MAX_NUMBERS)?;
        if heads == 1 && dim_head != dim {
            let expected =
                format!("{dim}, equal to dim, with one head (no projection maps its output back to dim)");
            return Err(Error::setting("dim_head", expected, dim_head.to_string()));
        }
        Ok(())
    }

    /// Rejects sizes of a random memory that must be typing errors, because no file confirms them.
    pub fn check_random(&self) -> Result<()> {
        self.check_numbers(MAX_RANDOM_NUMBERS)
    }

    /// Checks that the parameters, and S and U of one sequence, have at most `most` numbers each.
    fn check_numbers(&self, most: u128) -> Result<()> {
        let Self { dim, heads, dim_head, .. } = *self;
        let product =
            |sizes: &[usize]| sizes.iter().try_fold(1_u128, |all, &size| all.checked_mul(size as u128));
        let parameters = product(&[4, heads, dim_head, dim.saturating_add(1)]);
        let state = product(&[2 * MEMORY_WEIGHTS, heads, dim_head, dim_head]);
        let numbers = parameters.zip(state).map(|(parameters, state)| parameters.max(state));
        if numbers.is_some_and(|numbers| numbers <= most) {
            return Ok(());
        }
        let numbers = numbers.map_or("more than can be counted".to_owned(), |numbers| numbers.to_string());
        let expected = format!("sizes that need at most {most} numbers");
        let got = format!("heads {heads}, dim_head {dim_head}, dim {dim}: {numbers}");
        Err(Error::setting("--heads, --dim-head", expected, got))
    }
}

/// Distribution of the weights of a random memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// Memory weights uniform in ±√(6 / (rows + cols)).
    #[default]
    Xavier,
    /// Memory weights from N(0, 1), as in titans-pytorch.
    Randn,
}

/// Returns random parameters in f32 and file layout, like a trained file: linears uniform in ±1/√(fan-in)
/// (`PyTorch`'s `nn.Linear`), norm weights 1, memory weights by `init`. The same seed gives the same numbers on
/// any machine.
pub fn random_tensors(dimensions: &Dimensions, init: Init, seed: u64) -> Vec<(String, ArrayD<f32>)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let uniform = |rng: &mut ChaCha8Rng, bound: f64| (bound * (2.0 * rng.random::<f64>() - 1.0)) as f32;
    let tensors = dimensions.tensors().into_iter().map(|(name, shape)| {
        let tensor = if shape.len() == 1 {
            ArrayD::ones(shape)
        } else if name.starts_with("memory_model") {
            let bound = (6.0 / (shape[0] + shape[1]) as f64).sqrt();
            ArrayD::from_shape_simple_fn(shape, || match init {
                Init::Xavier => uniform(&mut rng, bound),
                Init::Randn => normal(&mut rng),
            })
        } else {
            let bound = 1.0 / (shape[1] as f64).sqrt();
            ArrayD::from_shape_simple_fn(shape, || uniform(&mut rng, bound))
        };
        (name, tensor)
    });
    tensors.collect()
}

fn normal(rng: &mut impl Rng) -> f32 {
    let value: f64 = rng.sample(StandardNormal);
    value as f32
}

/// The parameters in the element type of a run, every linear as (in, out).
#[derive(Clone, Debug)]
pub struct Parameters<T> {
    /// Sizes and norms.
    pub dimensions: Dimensions,
    /// Norm weight (D) before storing; absent without pre-norm.
    pub store_norm: Option<Array1<T>>,
    /// Norm weight (D) before reading; absent without pre-norm.
    pub retrieve_norm: Option<Array1<T>>,
    /// Norm weight (D) of the retrieved rows; absent without post-norm.
    pub post_norm: Option<Array1<T>>,
    /// Projection to keys and values (D, 2hd): head j's keys in columns j·d .. (j+1)·d, its values hd columns
    /// further on.
    pub keys_values: Array2<T>,
    /// Projection to queries (D, hd).
    pub queries: Array2<T>,
    /// Gate layers (D, 3h): the logits of θ, then of η, then of α.
    pub gates: Array2<T>,
    /// Projection (hd, D) of the merged heads to the output; only with several heads.
    pub combine: Option<Array2<T>>,
    /// Memory weights `W_q`, `W_k`, `W_v1`, `W_v2`, each (d, d).
    pub memory: Vec<Array2<T>>,
}

impl<T: Real> Parameters<T> {
    /// Collects the parameters from `tensor`, which returns each named tensor in file layout. Shapes must be
    /// those of `dimensions` (see [`Dimensions::infer`]).
    pub fn collect(dimensions: Dimensions, tensor: impl Fn(&str) -> ArrayD<T>) -> Self {
        let vector = |name: &str| tensor(name).into_dimensionality::<Ix1>().expect("checked by infer");
        let matrix = |name: &str| tensor(name).into_dimensionality::<Ix2>().expect("checked by infer");
        let linear = |name: &str| matrix(name).t().as_standard_layout().into_owned();
        let gates =
            ["to_adaptive_step.1.weight", "to_momentum.1.weight", "to_decay_factor.1.weight"].map(linear);
        Self {
            dimensions,
            store_norm: dimensions.pre_norm.then(|| vector("store_norm.weight")),
            retrieve_norm: dimensions.pre_norm.then(|| vector("retrieve_norm.weight")),
            post_norm: dimensions.post_norm.then(|| vector("post_rmsnorm.weight")),
            keys_values: linear("to_keys_values.weight"),
            queries: linear("to_queries.weight"),
            gates: concatenate(Axis(1), &gates.each_ref().map(|gate| gate.view())).expect("same rows"),
            combine: (dimensions.heads > 1).then(|| linear("combine_heads.weight")),
            memory: (0..MEMORY_WEIGHTS).map(|p| matrix(&format!("memory_model.weights.{p}"))).collect(),
        }
    }
}
