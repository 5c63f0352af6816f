//! The trained parameters: projections, gate layers, norms, and the memory weights `W` that every sequence
//! starts from. Names and the (out, in) layout in files are those of titans-pytorch 0.0.17's `state_dict`, with further
//! tensors for what other [programs](super::program) have. In memory every linear is (in, out).

use std::collections::BTreeMap;

use ndarray::{Array1, Array2, Array3, ArrayD, ArrayView2, Axis, Ix1, Ix2, Ix3, concatenate};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

use super::graph::WeightInit;
use super::program::Program;
use super::rule::RatePer;
use crate::error::{Error, Result};
use crate::real::Real;

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

    /// Returns all parameters of a program, in file order.
    pub fn tensors(&self, program: &Program) -> Vec<TensorSpec> {
        let Self { dim, heads, dim_head, .. } = *self;
        let (inner, frame) = (self.inner(), program.frame);
        let mut tensors: Vec<TensorSpec> = Vec::new();
        let mut add = |name: &str, shape: &[usize], init: TensorInit| {
            tensors.push(TensorSpec { name: name.to_owned(), shape: shape.to_vec(), init });
        };
        let linear = TensorInit::Linear(dim);
        if self.pre_norm {
            add("store_norm.weight", &[dim], TensorInit::Fill(1.0));
            add("retrieve_norm.weight", &[dim], TensorInit::Fill(1.0));
        }
        if self.post_norm {
            add("post_rmsnorm.weight", &[dim], TensorInit::Fill(1.0));
        }
        add("to_keys_values.weight", &[2 * inner, dim], linear);
        add("to_queries.weight", &[inner, dim], linear);
        if frame.qk_norm {
            add("k_norm.gamma", &[heads, dim_head], TensorInit::Fill(0.0));
            add("q_norm.gamma", &[heads, dim_head], TensorInit::Fill(0.0));
        }
        let gates =
            [("to_adaptive_step", true), ("to_momentum", program.rule.momentum), ("to_decay_factor", true)];
        for (name, _) in gates.into_iter().filter(|(_, exists)| *exists) {
            add(&format!("{name}.1.weight"), &[heads, dim], linear);
            if frame.gate_biases {
                add(&format!("{name}.1.bias"), &[heads], linear);
            }
        }
        if frame.head_norm {
            add("multihead_rmsnorm.gamma", &[heads, dim_head], TensorInit::Fill(0.0));
        }
        if frame.read_gate {
            add("retrieve_gate.weight", &[heads, dim], linear);
        }
        if heads > 1 {
            add("combine_heads.weight", &[dim, inner], TensorInit::Linear(inner));
        }
        if program.schedule.gated_transition {
            add("transition_gate", &[], TensorInit::Fill(FRESH_TRANSITION));
        }
        for (p, weight) in program.model.graph(dim_head).weights.into_iter().enumerate() {
            let mut shape = weight.shape();
            if frame.per_head {
                shape.insert(0, heads);
            }
            add(&format!("memory_model.weights.{p}"), &shape, TensorInit::Memory(weight.init));
        }
        tensors
    }

    /// Infers the dimensions of a program from the shapes of a file's parameters, and checks every shape.
    pub fn infer(shapes: &BTreeMap<String, Vec<usize>>, program: &Program) -> Result<Self, Mismatch> {
        let mismatch = |tensor: &str, expected: String, got: String| Mismatch {
            tensor: tensor.to_owned(),
            expected,
            got,
        };
        let matrix = |name: &str, meaning: &str, given: Option<&[usize]>| match given {
            Some(&[rows, cols]) if rows > 0 && cols > 0 => Ok((rows, cols)),
            Some(shape) => Err(mismatch(name, format!("shape {meaning}"), format!("{shape:?}"))),
            None => Err(mismatch(name, format!("a tensor of shape {meaning}"), "no such tensor".into())),
        };
        let given = |name: &str| shapes.get(name).map(Vec::as_slice);
        let (inner, dim) =
            matrix("to_queries.weight", "[heads * dim_head, dim]", given("to_queries.weight"))?;
        // In every model the first memory weight takes rows of width d, or is a gain of width d.
        let first = given("memory_model.weights.0");
        let heads_axis = usize::from(program.frame.per_head);
        let dim_head = match first {
            Some(shape) if shape.len() == heads_axis + 1 && shape[heads_axis] > 0 => shape[heads_axis],
            shape => {
                let without_heads = shape.map(|shape| shape.get(heads_axis..).unwrap_or(shape));
                matrix("memory_model.weights.0", "[dim_head, dim_head]", without_heads)?.0
            }
        };
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
        let tensors = dimensions.tensors(program);
        let expected: BTreeMap<_, _> =
            tensors.into_iter().map(|tensor| (tensor.name, tensor.shape)).collect();
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
                let wanted = format!("only the parameters of the model {}", program.model.kind.name());
                Err(mismatch(name, wanted, "an additional tensor".into()))
            }
            None => Ok(dimensions),
        }
    }

    /// Rejects sizes that the arithmetic cannot handle. This runs when a configuration is read, before any work.
    pub fn check(&self, program: &Program) -> Result<()> {
        let Self { dim, heads, dim_head, .. } = *self;
        program.check(Some(dim_head))?;
        for (name, value) in [("dim", dim), ("heads", heads), ("dim_head", dim_head)] {
            if value == 0 {
                return Err(Error::setting(name, "at least 1", "0"));
            }
        }
        self.check_numbers(program, MAX_NUMBERS)?;
        if heads == 1 && dim_head != dim {
            let expected =
                format!("{dim}, equal to dim, with one head (no projection maps its output back to dim)");
            return Err(Error::setting("dim_head", expected, dim_head.to_string()));
        }
        Ok(())
    }

    /// Rejects sizes of a random memory that must be typing errors, because no file confirms them.
    pub fn check_random(&self, program: &Program) -> Result<()> {
        self.check_numbers(program, MAX_RANDOM_NUMBERS)
    }

    /// Checks that the parameters, and the state of one sequence, have at most `most` numbers each.
    fn check_numbers(&self, program: &Program, most: u128) -> Result<()> {
        let Self { dim, heads, dim_head, .. } = *self;
        let product =
            |sizes: &[usize]| sizes.iter().try_fold(1_u128, |all, &size| all.checked_mul(size as u128));
        let parameters = product(&[4, heads, dim_head, dim.saturating_add(1)]);
        // Models are built for widths whose squares can be counted.
        let elements = (dim_head as u128 <= MAX_NUMBERS).then(|| program.model.graph(dim_head).weights);
        let elements = elements.map(|weights| {
            weights.iter().map(|weight| weight.rows as u128 * weight.cols as u128).sum::<u128>()
        });
        let arrays = program.rule.arrays().len() + usize::from(program.schedule.refresh.is_some());
        let state = elements.and_then(|elements| elements.checked_mul((arrays * heads.min(1 << 40)) as u128));
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

/// Name, shape in the file, and values in a new memory of one parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Name in the file.
    pub name: String,
    /// Shape in the file.
    pub shape: Vec<usize>,
    /// Values in a new memory.
    pub init: TensorInit,
}

/// Values of a parameter in a new memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TensorInit {
    /// This value everywhere.
    Fill(f32),
    /// Uniform in ±1/√(fan-in), as in `PyTorch`'s `nn.Linear`.
    Linear(usize),
    /// A memory weight.
    Memory(WeightInit),
}

/// Logit of a fresh transition gate, as in titans-pytorch.
const FRESH_TRANSITION: f32 = -5.0;

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
pub fn random_tensors(
    dimensions: &Dimensions,
    program: &Program,
    init: Init,
    seed: u64,
) -> Vec<(String, ArrayD<f32>)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let uniform = |rng: &mut ChaCha8Rng, bound: f64| (bound * (2.0 * rng.random::<f64>() - 1.0)) as f32;
    let tensors =
        dimensions.tensors(program).into_iter().map(|TensorSpec { name, shape, init: of_tensor }| {
            let tensor = match of_tensor {
                TensorInit::Fill(value) => ArrayD::from_elem(shape, value),
                TensorInit::Linear(fan_in) => {
                    let bound = 1.0 / (fan_in as f64).sqrt();
                    ArrayD::from_shape_simple_fn(shape, || uniform(&mut rng, bound))
                }
                TensorInit::Memory(of_weight) => {
                    // Heads with weights of their own start alike.
                    let of_head = &shape[usize::from(program.frame.per_head)..];
                    let bound = (6.0 / of_head.iter().sum::<usize>() as f64).sqrt();
                    let weight = ArrayD::from_shape_simple_fn(of_head, || match (of_weight, init) {
                        (WeightInit::Zero, _) => 0.0,
                        (WeightInit::Normal, _) | (WeightInit::Matrix, Init::Randn) => normal(&mut rng),
                        (WeightInit::Matrix, Init::Xavier) => uniform(&mut rng, bound),
                    });
                    weight.broadcast(shape).expect("heads before the weight's own axes").to_owned()
                }
            };
            (name, tensor)
        });
    tensors.collect()
}

fn normal(rng: &mut impl Rng) -> f32 {
    let value: f64 = rng.sample(StandardNormal);
    value as f32
}

/// Kind of a parameter, by which an optimiser may treat it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ParameterKind {
    /// Weights and gains of norms.
    Norm,
    /// Projections to keys, values and queries, and of the heads to the output.
    Projection,
    /// Gate layers, their biases, and the gate of a refresh.
    Gate,
    /// Initial weights of the memory.
    Memory,
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
    /// Gains γ (h, d) of the norms of keys and of queries, applied as γ + 1.
    pub qk_norm: Option<[Array2<T>; 2]>,
    /// Gate layers (D, 3h): the logits of θ, then of η, then of α; zeros for a gate that the program lacks.
    pub gates: Array2<T>,
    /// Biases (3h) of these logits.
    pub gate_biases: Option<Array1<T>>,
    /// Gains γ (h, d) of the norm of what each head retrieves, applied as γ + 1.
    pub head_norm: Option<Array2<T>>,
    /// Layer (D, h) of the gates of what is retrieved.
    pub read_gate: Option<Array2<T>>,
    /// Projection (hd, D) of the merged heads to the output; only with several heads.
    pub combine: Option<Array2<T>>,
    /// Logit of the gate of a refresh.
    pub transition: Option<T>,
    /// Initial memory weights in file order, each (1, rows, cols), or (h, rows, cols) where each head has its own.
    pub memory: Vec<Array3<T>>,
}

impl<T: Real> Parameters<T> {
    /// Collects the parameters of a program from `tensor`, which returns each named tensor in file layout. Shapes must be
    /// those of `dimensions` (see [`Dimensions::infer`]).
    pub fn collect(dimensions: Dimensions, program: &Program, tensor: impl Fn(&str) -> ArrayD<T>) -> Self {
        let vector = |name: &str| tensor(name).into_dimensionality::<Ix1>().expect("checked by infer");
        let matrix = |name: &str| tensor(name).into_dimensionality::<Ix2>().expect("checked by infer");
        let linear = |name: &str| matrix(name).t().as_standard_layout().into_owned();
        let Dimensions { dim, heads, .. } = dimensions;
        let frame = program.frame;
        let names = ["to_adaptive_step.1", "to_momentum.1", "to_decay_factor.1"];
        let exists = |name: &str| program.rule.momentum || name != names[1];
        let gates = names.map(|name| {
            if exists(name) { linear(&format!("{name}.weight")) } else { Array2::zeros((dim, heads)) }
        });
        let gate_biases = frame.gate_biases.then(|| {
            names.map(
                |name| {
                    if exists(name) { vector(&format!("{name}.bias")) } else { Array1::zeros(heads) }
                },
            )
        });
        let memory = |(p, weight): (usize, &super::graph::WeightSpec)| {
            let tensor = tensor(&format!("memory_model.weights.{p}"));
            let heads = if frame.per_head { heads } else { 1 };
            let shape = Ix3(heads, weight.rows, weight.cols);
            let tensor = tensor.as_standard_layout().into_owned();
            tensor.into_shape_with_order(shape).expect("checked by infer")
        };
        Self {
            dimensions,
            store_norm: dimensions.pre_norm.then(|| vector("store_norm.weight")),
            retrieve_norm: dimensions.pre_norm.then(|| vector("retrieve_norm.weight")),
            post_norm: dimensions.post_norm.then(|| vector("post_rmsnorm.weight")),
            keys_values: linear("to_keys_values.weight"),
            queries: linear("to_queries.weight"),
            qk_norm: frame.qk_norm.then(|| ["k_norm.gamma", "q_norm.gamma"].map(matrix)),
            gates: concatenate(Axis(1), &gates.each_ref().map(|gate| gate.view()))
                .expect("same rows")
                .as_standard_layout()
                .into_owned(),
            gate_biases: gate_biases.map(|biases| {
                concatenate(Axis(0), &biases.each_ref().map(|bias| bias.view())).expect("vectors")
            }),
            head_norm: frame.head_norm.then(|| matrix("multihead_rmsnorm.gamma")),
            read_gate: frame.read_gate.then(|| linear("retrieve_gate.weight")),
            combine: (heads > 1).then(|| linear("combine_heads.weight")),
            transition: program
                .schedule
                .gated_transition
                .then(|| *tensor("transition_gate").first().expect("a scalar")),
            memory: program.model.graph(dimensions.dim_head).weights.iter().enumerate().map(memory).collect(),
        }
    }

    /// Returns parameters of the same shapes whose numbers are all zero.
    #[must_use]
    pub fn zeros(&self) -> Self {
        let mut zeros = self.clone();
        zeros.each_mut().into_iter().for_each(|(_, values)| values.fill(T::zero()));
        zeros
    }

    /// Adds other parameters of the same shapes.
    pub fn add(&mut self, other: &Self) {
        for ((_, sum), (_, more)) in self.each_mut().into_iter().zip(other.each()) {
            sum.iter_mut().zip(more).for_each(|(sum, &x)| *sum += x);
        }
    }

    /// Returns the numbers of each parameter, with the name of its field here.
    pub fn each(&self) -> Vec<(ParameterKind, &[T])> {
        let Self {
            dimensions: _, store_norm, retrieve_norm, post_norm, keys_values, queries, qk_norm, ..
        } = self;
        let Self { gates, gate_biases, head_norm, read_gate, combine, transition, memory, .. } = self;
        let mut all: Vec<(ParameterKind, &[T])> = Vec::new();
        macro_rules! add {
            ($kind:ident: $($field:expr),*) => {
                $(all.extend($field.into_iter().map(|of| (ParameterKind::$kind, of.as_slice().expect("standard layout"))));)*
            };
        }
        add!(Norm: store_norm, retrieve_norm, post_norm, head_norm);
        add!(Norm: qk_norm.iter().flatten());
        add!(Projection: [keys_values, queries], combine);
        add!(Gate: [gates], gate_biases, read_gate);
        all.extend(transition.as_ref().map(|of| (ParameterKind::Gate, std::slice::from_ref(of))));
        add!(Memory: memory);
        all
    }

    /// Returns the numbers of each parameter to be changed, in the order of [`each`](Self::each).
    pub fn each_mut(&mut self) -> Vec<(ParameterKind, &mut [T])> {
        let Self {
            dimensions: _,
            store_norm,
            retrieve_norm,
            post_norm,
            keys_values,
            queries,
            qk_norm,
            gates,
            gate_biases,
            head_norm,
            read_gate,
            combine,
            transition,
            memory,
        } = self;
        let mut all: Vec<(ParameterKind, &mut [T])> = Vec::new();
        macro_rules! add {
            ($kind:ident: $($field:expr),*) => {
                $(all.extend($field.into_iter().map(|of| (ParameterKind::$kind, of.as_slice_mut().expect("standard layout"))));)*
            };
        }
        add!(Norm: store_norm, retrieve_norm, post_norm, head_norm);
        add!(Norm: qk_norm.iter_mut().flatten());
        add!(Projection: [keys_values, queries], combine);
        add!(Gate: [gates], gate_biases, read_gate);
        all.extend(transition.as_mut().map(|of| (ParameterKind::Gate, std::slice::from_mut(of))));
        add!(Memory: memory);
        all
    }

    /// Returns each tensor of a program in file order and layout: the inverse of [`collect`](Self::collect).
    pub fn tensors(&self, program: &Program) -> Vec<(String, ArrayD<T>)> {
        let heads = self.dimensions.heads;
        let tensor = |TensorSpec { name, shape, .. }: TensorSpec| {
            let gate = |i: usize| ndarray::s![.., i * heads..(i + 1) * heads];
            let bias = |i: usize| {
                let biases = self.gate_biases.as_ref().expect("a program with biases");
                biases.slice(ndarray::s![i * heads..(i + 1) * heads]).to_owned().into_dyn()
            };
            let linear = |of: ArrayView2<T>| of.t().as_standard_layout().into_owned().into_dyn();
            let has = "parameters of the program";
            let values = match name.as_str() {
                "store_norm.weight" => self.store_norm.clone().expect(has).into_dyn(),
                "retrieve_norm.weight" => self.retrieve_norm.clone().expect(has).into_dyn(),
                "post_rmsnorm.weight" => self.post_norm.clone().expect(has).into_dyn(),
                "to_keys_values.weight" => linear(self.keys_values.view()),
                "to_queries.weight" => linear(self.queries.view()),
                "k_norm.gamma" => self.qk_norm.as_ref().expect(has)[0].clone().into_dyn(),
                "q_norm.gamma" => self.qk_norm.as_ref().expect(has)[1].clone().into_dyn(),
                "to_adaptive_step.1.weight" => linear(self.gates.slice(gate(0))),
                "to_momentum.1.weight" => linear(self.gates.slice(gate(1))),
                "to_decay_factor.1.weight" => linear(self.gates.slice(gate(2))),
                "to_adaptive_step.1.bias" => bias(0),
                "to_momentum.1.bias" => bias(1),
                "to_decay_factor.1.bias" => bias(2),
                "multihead_rmsnorm.gamma" => self.head_norm.clone().expect(has).into_dyn(),
                "retrieve_gate.weight" => linear(self.read_gate.as_ref().expect(has).view()),
                "combine_heads.weight" => linear(self.combine.as_ref().expect(has).view()),
                "transition_gate" => ndarray::arr0(self.transition.expect(has)).into_dyn(),
                memory => {
                    let p =
                        memory.strip_prefix("memory_model.weights.").and_then(|p| p.parse::<usize>().ok());
                    self.memory[p.expect("a memory weight")].clone().into_dyn()
                }
            };
            let values = values.into_shape_with_order(shape).expect("same elements");
            (name, values)
        };
        self.dimensions.tensors(program).into_iter().map(tensor).collect()
    }

    /// Returns the layer (D, h) of the logits of θ, where each token has its own rate.
    pub fn token_rates(&self, program: &Program) -> Option<Array2<T>> {
        let heads = self.dimensions.heads;
        (program.rule.rate_per == RatePer::Token)
            .then(|| self.gates.slice(ndarray::s![.., ..heads]).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::program::Preset;

    /// A first memory weight without elements has no width, by which others are divided.
    #[test]
    fn widths_of_zero_are_rejected() {
        for (heads, shape) in
            [(1, vec![0]), (1, vec![0, 4]), (1, vec![4, 0]), (2, vec![2, 0]), (2, vec![2, 0, 4])]
        {
            let mut program = Preset::Titans055.program(4, heads);
            program.frame.per_head = heads > 1;
            let shapes = [("to_queries.weight", vec![4, 4]), ("memory_model.weights.0", shape)];
            let shapes = shapes.map(|(name, shape)| (name.to_owned(), shape)).into();
            let mismatch = Dimensions::infer(&shapes, &program).unwrap_err();
            assert_eq!(mismatch.tensor, "memory_model.weights.0");
            assert_eq!(mismatch.expected, "shape [dim_head, dim_head]");
        }
    }

    /// Parameters and state are counted separately, and the larger number counts.
    #[test]
    fn random_memories_have_a_largest_size() {
        let mut program = Program::titans_0_0_17(4);
        let check = |heads, dim_head, dim, program: &Program, most| {
            let dimensions = Dimensions { dim, heads, dim_head, pre_norm: true, post_norm: false };
            dimensions.check_numbers(program, most).map_err(|error| error.to_string())
        };
        // Four matrices of (heads, dim_head, dim + 1).
        assert_eq!(check(2, 3, 99, &program, 2400), Ok(()));
        let message = check(2, 3, 99, &program, 2399).unwrap_err();
        assert!(message.ends_with(
            "expected sizes that need at most 2399 numbers, got heads 2, dim_head 3, dim 99: 2400"
        ));
        // Two arrays of four matrices of (dim_head, dim_head) for each head, and with refreshes a third one.
        let state = 3 * 4 * 100 * 100 * 2;
        assert_eq!(check(3, 100, 2, &program, state), Ok(()));
        assert!(check(3, 100, 2, &program, state - 1).is_err());
        program.schedule.refresh = Some(4);
        assert_eq!(check(3, 100, 2, &program, state / 2 * 3), Ok(()));
        assert!(check(3, 100, 2, &program, state / 2 * 3 - 1).is_err());
        for (heads, dim_head, dim) in [(usize::MAX, 2, 2), (2, usize::MAX, 2), (2, 2, usize::MAX)] {
            assert!(check(heads, dim_head, dim, &program, u128::from(u64::MAX)).is_err());
        }
    }
}
