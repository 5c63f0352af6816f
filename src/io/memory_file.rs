//! Memories on disk. A file named by `--memory` holds either parameters (a `PyTorch` `state_dict`,
//! `.safetensors` or `.npz`) or a saved memory. A saved memory has the same parameters under the same names,
//! bit for bit as they were read, plus
//!
//! | tensor | shape |
//! | --- | --- |
//! | `state.tokens` | (2), u64: tokens stored and read since the start of the memory's life |
//! | `state.update.p`, `state.momentum.p` | (sequences, heads, rows, cols): U and S of memory weight p |
//! | `state.left_over` | (sequences, r, D): stored tokens of the incomplete last chunk; absent with r = 0 |
//! | `state.read_left_over` | (sequences, r, D): the same for the read stream, if it differs; absent with r = 0 |
//! | `state.past.p` | (d, d): past weights; absent without them |
//!
//! and the configuration ([`SavedConfig`]) as JSON under the metadata key `nmem`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::{Array2, Array3, Array4, ArrayD, ArrayView3, Dimension, Ix2, s};
use serde::{Deserialize, Serialize};

use super::mapped::Progress;
use super::tensors::{MAX_CONFIGURATION, Tensor, TensorFile, write_safetensors};
use crate::error::{Error, Result};
use crate::memory::limits::check_chunk_size;
use crate::memory::parameters::{self, Init, MEMORY_WEIGHTS, Mismatch};
use crate::memory::state::StreamPosition;
use crate::memory::{Dimensions, Gate, Gates, Parameters, State};
use crate::real::{ElementType, Real};

/// Metadata of a saved memory: everything that its tensors do not contain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Keys", into = "Keys")]
pub struct SavedConfig {
    /// Version of this layout.
    pub format: u32,
    /// Version of nmem that wrote the file.
    pub nmem: String,
    /// Name of the memory model that the weights belong to.
    pub model: String,
    /// Tokens per chunk.
    pub chunk_size: usize,
    /// Sizes and norms. The tensors contain them too; this copy is for readers of the header alone.
    pub dimensions: Dimensions,
    /// Fixed values and biases of the three gates.
    pub gates: Gates,
}

/// The keys of a [`SavedConfig`] in JSON, all on one level, because serde rejects unknown keys of flat
/// structures only.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    format: u32,
    nmem: String,
    model: String,
    chunk_size: usize,
    dim: usize,
    heads: usize,
    dim_head: usize,
    pre_norm: bool,
    post_norm: bool,
    learning_rate: Gate,
    momentum: Gate,
    decay: Gate,
}

impl From<Keys> for SavedConfig {
    fn from(keys: Keys) -> Self {
        let Keys { format, nmem, model, chunk_size, dim, heads, dim_head, pre_norm, post_norm, .. } = keys;
        let Keys { learning_rate, momentum, decay, .. } = keys;
        Self {
            format,
            nmem,
            model,
            chunk_size,
            dimensions: Dimensions { dim, heads, dim_head, pre_norm, post_norm },
            gates: Gates { learning_rate, momentum, decay },
        }
    }
}

impl From<SavedConfig> for Keys {
    fn from(config: SavedConfig) -> Self {
        let SavedConfig { format, nmem, model, chunk_size, dimensions, gates } = config;
        let Dimensions { dim, heads, dim_head, pre_norm, post_norm } = dimensions;
        let Gates { learning_rate, momentum, decay } = gates;
        Self {
            format,
            nmem,
            model,
            chunk_size,
            dim,
            heads,
            dim_head,
            pre_norm,
            post_norm,
            learning_rate,
            momentum,
            decay,
        }
    }
}

/// Version of a configuration. It is read first, so that a file of another format is reported as such whatever
/// its keys are.
#[derive(Deserialize)]
struct Version {
    format: u32,
    #[serde(default)]
    nmem: String,
}

const FORMAT: u32 = 1;
const MODEL: &str = "attention";

/// The contents of a memory file, or of a random memory: parameters and past weights as read, and the state of
/// a saved memory.
#[derive(Clone, Debug)]
pub struct MemoryFile {
    /// Path for messages.
    path: PathBuf,
    sha256: Option<String>,
    dimensions: Dimensions,
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
        // The shapes of a saved memory include tensors of its state.
        let parameters = |shapes: &BTreeMap<String, Vec<usize>>| -> BTreeMap<_, _> {
            let parameters = shapes.iter().filter(|(name, _)| !name.starts_with("state."));
            parameters.map(|(name, shape)| (name.clone(), shape.clone())).collect()
        };
        let check = |name: &Path, shapes: &_| infer(name, &parameters(shapes)).map(drop);
        let file = TensorFile::open_checked(path, progress, &check)?;
        if !allow_nonfinite {
            file.check_finite(element_type)?;
        }
        let path = file.path().to_path_buf();
        let saved = file.memory_json().map(|json| read_config(&path, json)).transpose()?;
        let (mut parameters, mut past, mut state) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (name, tensor) in file.tensors() {
            let (into, name) = match name.strip_prefix("state.") {
                Some(rest) if saved.is_some() => match rest.strip_prefix("past.") {
                    Some(p) => (&mut past, p.to_owned()),
                    None => (&mut state, rest.to_owned()),
                },
                _ => (&mut parameters, name.clone()),
            };
            into.insert(name, tensor.clone());
        }
        let shapes =
            parameters.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect();
        let dimensions = infer(&path, &shapes)?;
        let sha256 = Some(file.sha256().to_owned());
        let this = Self { path, sha256, dimensions, parameters, past, state, saved };
        let parameters = this.parameters.iter().map(|(name, tensor)| (name.clone(), tensor));
        let past = this.past.iter().map(|(p, tensor)| (format!("state.past.{p}"), tensor));
        if let Some((name, tensor)) = parameters.chain(past).find(|(_, tensor)| !tensor.dtype().is_float()) {
            return Err(this.mismatch(&name, "type f16, bf16, f32 or f64", tensor.dtype().name()));
        }
        this.check_state()?;
        Ok(this)
    }

    /// Creates a random memory.
    pub fn random(dimensions: Dimensions, init: Init, seed: u64) -> Self {
        let tensors = parameters::random_tensors(&dimensions, init, seed);
        let parameters =
            tensors.into_iter().map(|(name, tensor)| (name, Tensor::from_array(&tensor.view()))).collect();
        let (past, state) = (BTreeMap::new(), BTreeMap::new());
        Self { path: "random memory".into(), sha256: None, dimensions, parameters, past, state, saved: None }
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
        let d = self.dimensions.dim_head;
        let names = |shapes: &BTreeMap<String, Vec<usize>>| {
            let bare = shapes.contains_key("weights.0");
            let prefix = if bare { "weights" } else { "memory_model.weights" };
            (0..MEMORY_WEIGHTS).map(|p| format!("{prefix}.{p}")).collect::<Vec<_>>()
        };
        let wrong = |tensor: &str, expected: String, got: String| Error::Tensor {
            path: path.into(),
            tensor: tensor.to_owned(),
            expected,
            got,
        };
        let file = TensorFile::open_checked(path, progress, &|_, shapes| {
            let names = names(shapes);
            if let Some((name, shape)) =
                shapes.iter().find(|(name, shape)| names.contains(name) && shape[..] != [d, d])
            {
                let expected = format!("floating-point numbers of shape {:?}", [d, d]);
                return Err(wrong(name, expected, format!("{shape:?}")));
            }
            match shapes.keys().find(|name| !names.contains(name)) {
                Some(name) if names.iter().all(|name| shapes.contains_key(name)) => {
                    let expected = format!("only {} … {}", names[0], names[MEMORY_WEIGHTS - 1]);
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
                let expected = format!("floating-point numbers of shape {:?}", [d, d]);
                let got = format!("{} {:?}", tensor.dtype().name(), tensor.shape());
                return Err(wrong(name, expected, got));
            }
            self.past.insert(p.to_string(), tensor.clone());
        }
        Ok(file.sha256().to_owned())
    }

    /// Returns sizes and norms.
    pub fn dimensions(&self) -> Dimensions {
        self.dimensions
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
        self.state.get("update.0").map(|tensor| match tensor.dtype().name() {
            "f64" => ElementType::F64,
            _ => ElementType::F32,
        })
    }

    /// Returns the parameters in the run's type.
    pub fn parameters<T: Real>(&self) -> Parameters<T> {
        Parameters::collect(self.dimensions, |name| floats(&self.parameters[name]))
    }

    /// Returns past weights (d, d) in the run's type, one per memory weight.
    pub fn past<T: Real>(&self) -> Option<Vec<Array2<T>>> {
        let weight =
            |p: usize| floats(&self.past[&p.to_string()]).into_dimensionality::<Ix2>().expect("checked");
        (!self.past.is_empty()).then(|| (0..MEMORY_WEIGHTS).map(weight).collect())
    }

    /// Returns the state of a saved memory in the run's type; `None` for parameters.
    pub fn state<T: Real>(&self) -> Option<State<T>> {
        let d = self.dimensions.dim_head;
        let gather = |name: &str| -> Array3<T> {
            let sequences = self.state["update.0"].shape()[0];
            let mut all = Array3::default((sequences, self.dimensions.heads, MEMORY_WEIGHTS * d * d));
            for p in 0..MEMORY_WEIGHTS {
                let weight = floats(&self.state[&format!("{name}.{p}")]);
                let shape = (sequences, self.dimensions.heads, d * d);
                let weight = weight.into_shape_with_order(shape).expect("shapes were checked");
                all.slice_mut(s![.., .., p * d * d..(p + 1) * d * d]).assign(&weight);
            }
            all
        };
        let counts = self.state.get("tokens")?.to_counters()?;
        let update = gather("update");
        let left_over = |name: &str| -> Array3<T> {
            let none = || Array3::default((update.dim().0, 0, self.dimensions.dim));
            self.state
                .get(name)
                .map_or_else(none, |kept| floats(kept).into_dimensionality().expect("checked"))
        };
        let stored = StreamPosition { tokens: counts[0] as usize, left_over: left_over("left_over") };
        let of_read = if self.state.contains_key("read_left_over") { "read_left_over" } else { "left_over" };
        let read_kept = counts[1] as usize % self.saved.as_ref()?.chunk_size;
        let read_left_over = left_over(if read_kept == 0 { "none" } else { of_read });
        let read = StreamPosition { tokens: counts[1] as usize, left_over: read_left_over };
        Some(State { momentum: gather("momentum"), update, stored, read })
    }

    /// Writes a memory: these parameters and past weights, bit for bit, with a new state and configuration.
    pub fn save<T: Real>(
        &self,
        path: &Path,
        state: &State<T>,
        chunk_size: usize,
        gates: Gates,
    ) -> Result<()> {
        let mut tensors = self.parameters.clone();
        let mut add = |name: String, tensor: Tensor| tensors.insert(format!("state.{name}"), tensor);
        let counts = [state.stored.tokens as u64, state.read.tokens as u64];
        add("tokens".into(), Tensor::from_counters(&counts));
        let d = self.dimensions.dim_head;
        for (name, of) in [("update", &state.update), ("momentum", &state.momentum)] {
            let (sequences, heads, _) = of.dim();
            for p in 0..MEMORY_WEIGHTS {
                let part = of.slice(s![.., .., p * d * d..(p + 1) * d * d]).to_owned();
                let weight: Array4<T> =
                    part.into_shape_with_order((sequences, heads, d, d)).expect("same elements");
                add(format!("{name}.{p}"), Tensor::from_array(&weight.view()));
            }
        }
        let kept = |position: &StreamPosition<T>| position.left_over.dim().1 > 0;
        if kept(&state.stored) {
            add("left_over".into(), Tensor::from_array(&state.stored.left_over.view()));
        }
        if kept(&state.read) && !same_bits(&state.read.left_over.view(), &state.stored.left_over.view()) {
            add("read_left_over".into(), Tensor::from_array(&state.read.left_over.view()));
        }
        for (p, tensor) in &self.past {
            add(format!("past.{p}"), tensor.clone());
        }
        let config = SavedConfig {
            format: FORMAT,
            nmem: env!("CARGO_PKG_VERSION").to_owned(),
            model: MODEL.to_owned(),
            chunk_size,
            dimensions: self.dimensions,
            gates,
        };
        write_safetensors(path, &tensors, &serde_json::to_string(&config).expect("numbers and text"))
    }

    /// Checks that the tensors of a saved state fit the parameters and each other.
    fn check_state(&self) -> Result<()> {
        let Some(saved) = &self.saved else { return Ok(()) };
        if saved.dimensions != self.dimensions {
            let expected = format!("a configuration that fits its tensors ({})", self.dimensions);
            return Err(Error::file(&self.path, expected, saved.dimensions.to_string()));
        }
        let Dimensions { dim, heads, dim_head, .. } = self.dimensions;
        let tokens = self.state_tensor("tokens")?;
        // Counts stay far from overflow: nobody reaches 2⁵³ tokens.
        let possible = |counts: &Vec<u64>| counts.len() == 2 && counts.iter().all(|&count| count < 1 << 53);
        let counts = tokens.to_counters().filter(possible);
        let Some(counts) = counts else {
            let got = format!("{} {:?}", tokens.dtype().name(), tokens.shape());
            return Err(self.mismatch("state.tokens", "two counts below 2^53, u64 [2]", &got));
        };
        let first = self.state_tensor("update.0")?;
        let (sequences, dtype) = (first.shape().first().copied().unwrap_or(0), first.dtype());
        if !["f32", "f64"].contains(&dtype.name()) || sequences == 0 {
            let got = format!("{} {:?}", dtype.name(), first.shape());
            return Err(self.mismatch("state.update.0", "f32 or f64 of at least one sequence", &got));
        }
        let mut expected = BTreeMap::from([("tokens".to_owned(), vec![2])]);
        for p in 0..MEMORY_WEIGHTS {
            for name in ["update", "momentum"] {
                expected.insert(format!("{name}.{p}"), vec![sequences, heads, dim_head, dim_head]);
            }
            if !self.past.is_empty() {
                let past = self.past.get(&p.to_string()).map_or(&[][..], Tensor::shape);
                if past != [dim_head, dim_head] {
                    let wanted = format!("shape {:?}", [dim_head, dim_head]);
                    return Err(self.mismatch(&format!("state.past.{p}"), &wanted, &format!("{past:?}")));
                }
            }
        }
        let kept = [counts[0], counts[1]].map(|tokens| tokens as usize % saved.chunk_size);
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

fn infer(path: &Path, shapes: &BTreeMap<String, Vec<usize>>) -> Result<Dimensions> {
    Dimensions::infer(shapes).map_err(|Mismatch { tensor, expected, got }| Error::Tensor {
        path: path.to_path_buf(),
        tensor,
        expected,
        got,
    })
}

fn read_config(path: &Path, json: &str) -> Result<SavedConfig> {
    let bad = |got: String| Error::file(path, format!("a memory's configuration of format {FORMAT}"), got);
    if json.len() > MAX_CONFIGURATION {
        return Err(bad(format!("{} bytes", json.len())));
    }
    let Version { format, nmem } = serde_json::from_str(json).map_err(|error| bad(error.to_string()))?;
    if format != FORMAT {
        return Err(bad(format!("format {format}, written by nmem {nmem:?}")));
    }
    let config: SavedConfig = serde_json::from_str(json).map_err(|error| bad(error.to_string()))?;
    if config.model != MODEL {
        return Err(bad(format!("model {:?}, written by nmem {nmem:?}", config.model)));
    }
    let outside = |key: &str| Error::limit(format!("{}: {key}", path.display()));
    check_chunk_size(config.chunk_size).map_err(outside("chunk_size"))?;
    for (kind, gate) in config.gates.each() {
        let key = match gate {
            Gate::Fixed(_) => kind.key().to_owned(),
            Gate::Learned(_) => format!("{} bias", kind.key()),
        };
        gate.check(kind).map_err(outside(&key))?;
    }
    Ok(config)
}

fn floats<T: Real>(tensor: &Tensor) -> ArrayD<T> {
    tensor.to_array().expect("types were checked when the file was opened")
}

/// Returns whether the arrays are equal as bytes: −0 and 0 differ, and a NaN equals itself.
fn same_bits<T: Real>(a: &ArrayView3<T>, b: &ArrayView3<T>) -> bool {
    a.raw_dim().slice() == b.raw_dim().slice() && Tensor::from_array(a) == Tensor::from_array(b)
}
