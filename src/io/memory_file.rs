//! Memories on disk. A file named by `--memory` holds either parameters (a `PyTorch` `state_dict`,
//! `.safetensors` or `.npz`) or a memory. A memory has parameters of the names of
//! [`Dimensions::tensors`], bit for bit as they were read, the configuration ([`SavedConfig`]) as JSON under the metadata key
//! `nmem` and, once something was stored,
//!
//! | tensor | shape |
//! | --- | --- |
//! | `state.tokens` | (2), u64: tokens stored and read since the start of the memory's life |
//! | `state.update.p`, `state.momentum.p` | (sequences, heads, …): U and S of memory weight p, with the weight's own shape |
//! | `state.weights.p` | in place of `state.update.p` where U holds whole weights |
//! | `state.gradient_point.p` | the weights of the last refresh; absent without refreshes |
//! | `state.left_over` | (sequences, r, D): stored tokens of the incomplete last chunk; absent with r = 0 |
//! | `state.read_left_over` | (sequences, r, D): the same for the read stream, if it differs; absent with r = 0 |
//! | `state.past.p` | the weight's own shape: past weights; absent without them |

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ndarray::{Array2, Array3, ArrayD, ArrayView3, Dimension, s};

use super::mapped::Progress;
use super::memory_config::{SavedConfig, read_config};
use super::tensors::{METADATA_KEY, MODEL_KEY, Tensor, TensorFile, write_memory, write_safetensors};
use crate::error::{Error, Result};
use crate::memory::graph::{Graph, WeightSpec};
use crate::memory::model::ModelKind;
use crate::memory::parameters::{self, Init, Mismatch};
use crate::memory::state::StreamPosition;
use crate::memory::{Dimensions, Gates, Parameters, Program, State};
use crate::real::{ElementType, Real};

/// The contents of a memory file, or of a random memory: parameters and past weights as read, and the state of
/// a saved memory.
#[derive(Clone, Debug)]
pub struct MemoryFile {
    /// Path for messages.
    path: PathBuf,
    sha256: Option<String>,
    dimensions: Dimensions,
    /// The saved program, or one whose parameters have this layout.
    program: Program,
    /// Model named by the metadata of a file of parameters.
    named_model: Option<String>,
    parameters: BTreeMap<String, Tensor>,
    past: BTreeMap<String, Tensor>,
    state: BTreeMap<String, Tensor>,
    saved: Option<SavedConfig>,
}

impl MemoryFile {
    /// Reads parameters or a saved memory for a run in `element_type`. Numbers that are not finite in that type
    /// are rejected unless `allow_nonfinite`.
    pub fn open(
        path: &Path,
        element_type: ElementType,
        allow_nonfinite: bool,
        progress: Progress,
    ) -> Result<Self> {
        // The layout of a file with a configuration is checked when that has been read.
        let check =
            |name: &Path, shapes: &BTreeMap<String, Vec<usize>>, metadata: &BTreeMap<String, String>| {
                let Some(json) = metadata.get(METADATA_KEY) else {
                    return infer(name, shapes, &layout(shapes)).map(drop);
                };
                // The shapes of a saved memory include tensors of its state.
                let parameters = shapes.iter().filter(|(name, _)| !name.starts_with("state."));
                let parameters = parameters.map(|(name, shape)| (name.clone(), shape.clone())).collect();
                infer(name, &parameters, &read_config(name, json)?.program).map(drop)
            };
        let file = TensorFile::open_checked(path, progress, &check)?;
        if !allow_nonfinite {
            file.check_finite(element_type)?;
        }
        let path = file.path().to_path_buf();
        let saved = file.memory_json().map(|json| read_config(&path, json)).transpose()?;
        let (mut parameters, mut past, mut state) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (name, tensor) in file.tensors() {
            // Only saved memories have a state: the check above rejects such names in other files.
            let (into, name) = match name.strip_prefix("state.") {
                Some(rest) => match rest.strip_prefix("past.") {
                    Some(p) => (&mut past, p.to_owned()),
                    None => (&mut state, rest.to_owned()),
                },
                None => (&mut parameters, name.clone()),
            };
            into.insert(name, tensor.clone());
        }
        let shapes =
            parameters.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect();
        let program = saved.as_ref().map_or_else(|| layout(&shapes), |saved| saved.program);
        let dimensions = infer(&path, &shapes, &program)?;
        let named_model = file.metadata().get(MODEL_KEY).cloned();
        let sha256 = Some(file.sha256().to_owned());
        let this = Self { path, sha256, dimensions, program, named_model, parameters, past, state, saved };
        let parameters = this.parameters.iter().map(|(name, tensor)| (name.clone(), tensor));
        let past = this.past.iter().map(|(p, tensor)| (format!("state.past.{p}"), tensor));
        if let Some((name, tensor)) = parameters.chain(past).find(|(_, tensor)| !tensor.dtype().is_float()) {
            return Err(this.mismatch(&name, "type f16, bf16, f32 or f64", tensor.dtype().name()));
        }
        this.check_state()?;
        Ok(this)
    }

    /// Creates a random memory.
    pub fn random(dimensions: Dimensions, program: &Program, init: Init, seed: u64) -> Self {
        let tensors = parameters::random_tensors(&dimensions, program, init, seed);
        let tensors = tensors.into_iter().map(|(name, tensor)| (name, Tensor::from_array(&tensor.view())));
        Self::from_parts("random memory".into(), dimensions, *program, tensors.collect())
    }

    /// Creates a memory without state from parameters of a program.
    pub fn from_parts(
        path: PathBuf,
        dimensions: Dimensions,
        program: Program,
        parameters: BTreeMap<String, Tensor>,
    ) -> Self {
        let (past, state) = (BTreeMap::new(), BTreeMap::new());
        Self {
            path,
            sha256: None,
            dimensions,
            program,
            named_model: None,
            parameters,
            past,
            state,
            saved: None,
        }
    }

    /// Returns the program of a file of parameters for chunks of `chunk_size` tokens. `model` is the user's choice of the
    /// model; otherwise the metadata key `model` counts.
    ///
    /// # Errors
    /// A file that could hold two models, and neither is named; a name that does not fit.
    pub fn raw_program(&self, model: Option<ModelKind>, chunk_size: usize) -> Result<Program> {
        let path = self.path.display();
        let named = match &self.named_model {
            Some(name) => Some(<ModelKind as clap::ValueEnum>::from_str(name, false).map_err(|_| {
                let reason = format!("metadata key {MODEL_KEY} is {name:?}; use attention or mlp");
                Error::rejected(path.to_string(), reason)
            })?),
            None => None,
        };
        let depth = self.program.model.graph(self.dimensions.dim_head).weights.len();
        match model.or(named) {
            Some(ModelKind::Mlp) => Ok(Program::titans_0_0_17_mlp(chunk_size, depth)),
            Some(ModelKind::Attention) if depth == ATTENTION_WEIGHTS => {
                Ok(Program::titans_0_0_17(chunk_size))
            }
            Some(ModelKind::Attention) => {
                let expected = format!("{ATTENTION_WEIGHTS} memory weights, as the model attention has");
                Err(Error::file(&self.path, expected, depth.to_string()))
            }
            Some(other) => {
                let reason = format!(
                    "files of parameters hold the models attention and mlp of titans-pytorch 0.0.17, not {}; import \
                     other models with `nmem import`",
                    other.name()
                );
                Err(Error::rejected(path.to_string(), reason))
            }
            None if depth == ATTENTION_WEIGHTS => {
                let reason = format!(
                    "the parameters of the models attention and mlp have the same names and shapes; pass --model \
                     attention or --model mlp, or save the file with the metadata key {MODEL_KEY}"
                );
                Err(Error::rejected(path.to_string(), reason))
            }
            // Perhaps an attention memory that lost a weight, which must not be computed as another model.
            None => {
                let reason = format!(
                    "{depth} memory weights, as an MLP of titans-pytorch 0.0.17 may have, and not the {ATTENTION_WEIGHTS} \
                     of the model attention; pass --model mlp, or save the file with the metadata key {MODEL_KEY}"
                );
                Err(Error::rejected(path.to_string(), reason))
            }
        }
    }

    /// Adds the past weights of a file: `weights.0` … or `memory_model.weights.0` …, each (d, d). Returns the
    /// file's SHA-256.
    pub fn add_past(
        &mut self,
        path: &Path,
        element_type: ElementType,
        allow_nonfinite: bool,
        progress: Progress,
    ) -> Result<String> {
        if !self.past.is_empty() {
            let reason = format!(
                "{} already contains past weights; omit --past or use a memory without them",
                self.path.display()
            );
            return Err(Error::rejected("--past", reason));
        }
        let weights = self.graph().weights;
        let shape = |p: usize| weights[p].shape();
        let last = weights.len() - 1;
        let names = |shapes: &BTreeMap<String, Vec<usize>>| {
            let bare = shapes.contains_key("weights.0");
            let prefix = if bare { "weights" } else { "memory_model.weights" };
            (0..=last).map(|p| format!("{prefix}.{p}")).collect::<Vec<_>>()
        };
        let wrong = |tensor: &str, expected: String, got: String| Error::Tensor {
            path: path.into(),
            tensor: tensor.to_owned(),
            expected,
            got,
        };
        let file = TensorFile::open_checked(path, progress, &|_, shapes, _| {
            let names = names(shapes);
            for (p, name) in names.iter().enumerate() {
                if let Some(got) = shapes.get(name).filter(|got| **got != shape(p)) {
                    let expected = format!("floating-point numbers of shape {:?}", shape(p));
                    return Err(wrong(name, expected, format!("{got:?}")));
                }
            }
            match shapes.keys().find(|name| !names.contains(name)) {
                Some(name) if names.iter().all(|name| shapes.contains_key(name)) => {
                    let expected = format!("only {} … {}", names[0], names[last]);
                    Err(wrong(name, expected, "an additional tensor".to_owned()))
                }
                _ => Ok(()),
            }
        })?;
        if !allow_nonfinite {
            file.check_finite(element_type)?;
        }
        let shapes = file.tensors().iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec()));
        for (p, name) in names(&shapes.collect()).iter().enumerate() {
            let tensor = file.get(name)?;
            if !tensor.dtype().is_float() {
                let expected = format!("floating-point numbers of shape {:?}", shape(p));
                let got = format!("{} {:?}", tensor.dtype().name(), tensor.shape());
                return Err(wrong(name, expected, got));
            }
            self.past.insert(p.to_string(), tensor.clone());
        }
        Ok(file.sha256().to_owned())
    }

    /// Returns the path for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns sizes and norms.
    pub fn dimensions(&self) -> Dimensions {
        self.dimensions
    }

    /// Returns the saved program, or one whose parameters have this file's layout.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Returns the configuration of a saved memory; `None` for parameters.
    pub fn saved(&self) -> Option<&SavedConfig> {
        self.saved.as_ref()
    }

    /// Returns the file's SHA-256 in hexadecimal; `None` for a random memory.
    pub fn sha256(&self) -> Option<&str> {
        self.sha256.as_deref()
    }

    /// Returns the element type of a saved memory's state.
    pub fn state_type(&self) -> Option<ElementType> {
        let first = format!("{}.0", self.program.rule.arrays()[0]);
        self.state.get(&first).map(|tensor| match tensor.dtype().name() {
            "f64" => ElementType::F64,
            _ => ElementType::F32,
        })
    }

    fn graph(&self) -> Graph {
        self.program.model.graph(self.dimensions.dim_head)
    }

    /// Returns the parameters in the run's type, for a program of their layout.
    pub fn parameters<T: Real>(&self, program: &Program) -> Parameters<T> {
        Parameters::collect(self.dimensions, program, |name| floats(&self.parameters[name]))
    }

    /// Returns past weights (rows, cols) in the run's type, one per memory weight.
    pub fn past<T: Real>(&self) -> Option<Vec<Array2<T>>> {
        let weight = |(p, weight): (usize, &WeightSpec)| {
            let past = floats(&self.past[&p.to_string()]);
            past.into_shape_with_order((weight.rows, weight.cols)).expect("checked")
        };
        (!self.past.is_empty()).then(|| self.graph().weights.iter().enumerate().map(weight).collect())
    }

    /// Returns the state of a saved memory in the run's type; `None` where nothing was stored.
    pub fn state<T: Real>(&self) -> Option<State<T>> {
        let counts = self.state.get("tokens")?.to_counters()?;
        let (graph, program) = (self.graph(), &self.program);
        let (arrays, places) = (program.rule.arrays(), graph.places());
        let (dim, heads) = (self.dimensions.dim, self.dimensions.heads);
        let sequences = self.state[&format!("{}.0", arrays[0])].shape()[0];
        let gather = |name: &str| -> Array3<T> {
            let mut all = Array3::default((sequences, heads, graph.elements()));
            for (p, place) in places.iter().enumerate() {
                let weight = floats(&self.state[&format!("{name}.{p}")]);
                let shape = (sequences, heads, place.len());
                let weight = weight.into_shape_with_order(shape).expect("shapes were checked");
                all.slice_mut(s![.., .., place.clone()]).assign(&weight);
            }
            all
        };
        let left_over = |kept: Option<&Tensor>| -> Array3<T> {
            let none = || Array3::default((sequences, 0, dim));
            kept.map_or_else(none, |kept| floats(kept).into_dimensionality().expect("checked"))
        };
        let of_store = self.state.get("left_over");
        let stored = StreamPosition { tokens: counts[0] as usize, left_over: left_over(of_store) };
        let read = counts[1] as usize + program.read_offset();
        let of_read = self.state.get("read_left_over").or(of_store);
        let read_left_over = left_over(of_read.filter(|_| !read.is_multiple_of(program.chunk_size())));
        Some(State {
            arrays: arrays.iter().map(|name| gather(name)).collect(),
            gradient_point: program.schedule.refresh.map(|_| gather(GRADIENT_POINT)),
            stored,
            read: StreamPosition { tokens: read, left_over: read_left_over },
        })
    }

    /// Writes a memory: these parameters and past weights, bit for bit, with a configuration and, if there is one, a state.
    pub fn save<T: Real>(
        &self,
        path: &Path,
        state: Option<&State<T>>,
        program: &Program,
        gates: Gates,
    ) -> Result<()> {
        let mut tensors = self.parameters.clone();
        let mut add = |name: String, tensor: Tensor| tensors.insert(format!("state.{name}"), tensor);
        if let Some(state) = state {
            let counts = [state.stored.tokens as u64, (state.read.tokens - program.read_offset()) as u64];
            add("tokens".into(), Tensor::from_counters(&counts));
            let graph = program.model.graph(self.dimensions.dim_head);
            let arrays = program.rule.arrays().iter().copied().zip(&state.arrays);
            for (name, of) in arrays.chain(state.gradient_point.as_ref().map(|of| (GRADIENT_POINT, of))) {
                let (sequences, heads, _) = of.dim();
                for ((p, weight), place) in graph.weights.iter().enumerate().zip(graph.places()) {
                    let part: ArrayD<T> = of.slice(s![.., .., place]).to_owned().into_dyn();
                    let shape = [vec![sequences, heads], weight.shape()].concat();
                    let part = part.into_shape_with_order(shape).expect("same elements");
                    add(format!("{name}.{p}"), Tensor::from_array(&part.view()));
                }
            }
            let kept = |position: &StreamPosition<T>| position.left_over.dim().1 > 0;
            if kept(&state.stored) {
                add("left_over".into(), Tensor::from_array(&state.stored.left_over.view()));
            }
            if kept(&state.read) && !same_bits(&state.read.left_over.view(), &state.stored.left_over.view()) {
                add("read_left_over".into(), Tensor::from_array(&state.read.left_over.view()));
            }
        }
        for (p, tensor) in &self.past {
            add(format!("past.{p}"), tensor.clone());
        }
        write_safetensors(path, &tensors, &self.configuration(program, gates))
    }

    /// Writes a memory in which nothing is stored.
    pub fn write_fresh(&self, out: &mut dyn Write, gates: Gates) -> io::Result<()> {
        write_memory(out, &self.parameters, &self.configuration(&self.program, gates))
    }

    /// Returns the metadata of a memory as JSON.
    fn configuration(&self, program: &Program, gates: Gates) -> String {
        let nmem = env!("CARGO_PKG_VERSION").to_owned();
        let config = SavedConfig { nmem, program: *program, dimensions: self.dimensions, gates };
        config.to_json()
    }

    /// Checks that the tensors of a saved state fit the parameters and each other.
    fn check_state(&self) -> Result<()> {
        let Some(saved) = &self.saved else { return Ok(()) };
        if saved.dimensions != self.dimensions {
            let expected = format!("a configuration that fits its tensors ({})", self.dimensions);
            return Err(Error::file(&self.path, expected, saved.dimensions.to_string()));
        }
        let Dimensions { dim, heads, .. } = self.dimensions;
        let weights = self.graph().weights;
        if !self.past.is_empty() {
            for (p, weight) in weights.iter().enumerate() {
                let past = self.past.get(&p.to_string()).map_or(&[][..], Tensor::shape);
                if past != weight.shape() {
                    let wanted = format!("shape {:?}", weight.shape());
                    return Err(self.mismatch(&format!("state.past.{p}"), &wanted, &format!("{past:?}")));
                }
            }
        }
        if self.state.is_empty() {
            return Ok(());
        }
        let tokens = self.state_tensor("tokens")?;
        // Counts stay far from overflow: nobody reaches 2⁵³ tokens.
        let possible = |counts: &Vec<u64>| counts.len() == 2 && counts.iter().all(|&count| count < 1 << 53);
        let counts = tokens.to_counters().filter(possible);
        let Some(counts) = counts else {
            let got = format!("{} {:?}", tokens.dtype().name(), tokens.shape());
            return Err(self.mismatch("state.tokens", "two counts below 2^53, u64 [2]", &got));
        };
        let program = &self.program;
        let first_name = format!("{}.0", program.rule.arrays()[0]);
        let first = self.state_tensor(&first_name)?;
        let (sequences, dtype) = (first.shape().first().copied().unwrap_or(0), first.dtype());
        if !["f32", "f64"].contains(&dtype.name()) || sequences == 0 {
            let got = format!("{} {:?}", dtype.name(), first.shape());
            let expected = "f32 or f64 of at least one sequence";
            return Err(self.mismatch(&format!("state.{first_name}"), expected, &got));
        }
        let mut expected = BTreeMap::from([("tokens".to_owned(), vec![2])]);
        let arrays = program.rule.arrays().iter().copied();
        for name in arrays.chain(program.schedule.refresh.map(|_| GRADIENT_POINT)) {
            for (p, weight) in weights.iter().enumerate() {
                let shape = [vec![sequences, heads], weight.shape()].concat();
                expected.insert(format!("{name}.{p}"), shape);
            }
        }
        let kept = [counts[0] as usize, counts[1] as usize + program.read_offset()];
        let kept = kept.map(|tokens| tokens % program.chunk_size());
        if kept[0] > 0 {
            expected.insert("left_over".into(), vec![sequences, kept[0], dim]);
        }
        if kept[1] > 0 && (kept[1] != kept[0] || self.state.contains_key("read_left_over")) {
            expected.insert("read_left_over".into(), vec![sequences, kept[1], dim]);
        }
        for (name, shape) in &expected {
            let tensor = self.state_tensor(name)?;
            let fits = tensor.shape() == shape && (name == "tokens" || tensor.dtype() == dtype);
            if !fits {
                let (wanted, got) = (
                    format!("{} {shape:?}", dtype.name()),
                    format!("{} {:?}", tensor.dtype().name(), tensor.shape()),
                );
                return Err(self.mismatch(&format!("state.{name}"), &wanted, &got));
            }
        }
        match self.state.keys().find(|name| !expected.contains_key(*name)) {
            None => Ok(()),
            Some(name) => Err(self.mismatch(
                &format!("state.{name}"),
                "only tensors of its saved state",
                "an additional tensor",
            )),
        }
    }

    fn state_tensor(&self, name: &str) -> Result<&Tensor> {
        let missing = || self.mismatch(&format!("state.{name}"), "a tensor of this name", "none");
        self.state.get(name).ok_or_else(missing)
    }

    fn mismatch(&self, tensor: &str, expected: &str, got: &str) -> Error {
        let (expected, got) = (expected.to_owned(), got.to_owned());
        Error::Tensor { path: self.path.clone(), tensor: tensor.to_owned(), expected, got }
    }
}

/// Number of memory weights of the model attention.
pub const ATTENTION_WEIGHTS: usize = 4;

/// Name of the weights of the last refresh among a state's tensors.
const GRADIENT_POINT: &str = "gradient_point";

/// Returns a program with the layout of a file of parameters: that of titans-pytorch 0.0.17, whose MLP of four matrices has
/// the names and shapes of its attention memory.
pub fn layout(shapes: &BTreeMap<String, Vec<usize>>) -> Program {
    let weights = shapes.keys().filter(|name| name.starts_with("memory_model.weights.")).count();
    match weights {
        0 | ATTENTION_WEIGHTS => Program::titans_0_0_17(2),
        depth => Program::titans_0_0_17_mlp(2, depth),
    }
}

fn infer(path: &Path, shapes: &BTreeMap<String, Vec<usize>>, program: &Program) -> Result<Dimensions> {
    if let Some(prefix) = prefix(shapes) {
        let reason = format!(
            "the names begin with {prefix:?}, as in the state_dict of a larger model; use `nmem import`, which takes the \
             memory out of it"
        );
        return Err(Error::rejected(path.display().to_string(), reason));
    }
    Dimensions::infer(shapes, program).map_err(|Mismatch { tensor, expected, got }| Error::Tensor {
        path: path.to_path_buf(),
        tensor,
        expected,
        got,
    })
}

/// Returns what precedes the names of the parameters in a file of a larger model.
fn prefix(shapes: &BTreeMap<String, Vec<usize>>) -> Option<&str> {
    const NAME: &str = "to_queries.weight";
    let mut prefixes = shapes.keys().filter_map(|name| name.strip_suffix(NAME));
    prefixes.next().filter(|prefix| prefix.ends_with('.') && !shapes.contains_key(NAME))
}

fn floats<T: Real>(tensor: &Tensor) -> ArrayD<T> {
    tensor.to_array().expect("types were checked when the file was opened")
}

/// Returns whether the arrays are equal as bytes: −0 and 0 differ, and a NaN equals itself.
fn same_bits<T: Real>(a: &ArrayView3<T>, b: &ArrayView3<T>) -> bool {
    a.raw_dim().slice() == b.raw_dim().slice() && Tensor::from_array(a) == Tensor::from_array(b)
}
