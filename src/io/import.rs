//! Memories from checkpoints: a `state_dict` of titans-pytorch and the constructor arguments of its `NeuralMemory`, as a
//! memory file that holds its whole program.
//!
//! | version | what is read |
//! | --- | --- |
//! | 0.0.17 | the attention memory and the MLP; names as in nmem's files |
//! | 0.5.5 | `NeuralMemory` with the options that a [`Program`] has; the others are rejected by name |
//!
//! Linears are (out, in) in both. In 0.5.5 the memory's initial weights are `memory_model_parameters.p`;
//! `memory_model.*` are templates whose values are not used, or the same tensors where the heads share them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use clap::ValueEnum;
use serde::Deserialize;

use super::memory_file::MemoryFile;
use super::tensors::{MODEL_KEY, Tensor, TensorFile};
use crate::error::{Error, Result};
use crate::memory::loss::Loss;
use crate::memory::model::{Model, ModelKind, Options};
use crate::memory::operators::Activation;
use crate::memory::parameters::Mismatch;
use crate::memory::program::{Frame, Preset, ProjectionActivation, Schedule};
use crate::memory::{Dimensions, Program};

/// A version of titans-pytorch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Library {
    /// 0.0.17: the attention memory and the MLP.
    #[value(name = "titans-pytorch-0.0.17")]
    Titans0017,
    /// 0.5.5
    #[value(name = "titans-pytorch-0.5.5")]
    Titans055,
}

/// Choices beside the checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    /// Constructor keywords as JSON, by their names in titans-pytorch; absent ones have the library's defaults.
    pub json: Option<String>,
    /// Part of the tensors' names before those of the memory; found if there is one candidate.
    pub prefix: Option<String>,
    /// Model of a checkpoint of 0.0.17.
    pub model: Option<ModelKind>,
    /// Tokens per chunk, in place of the keyword `chunk_size`.
    pub chunk_size: Option<usize>,
}

/// A memory made from a checkpoint.
#[derive(Debug)]
pub struct Imported {
    /// The memory, without state.
    pub memory: MemoryFile,
    /// Prefix of the tensors that were taken.
    pub prefix: String,
    /// Names of the tensors that were taken.
    pub taken: Vec<String>,
    /// Names of the tensors that were ignored.
    pub ignored: Vec<String>,
}

/// Constructor keywords. Unknown ones are rejected, since they may change what is computed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "the library's own keywords")]
struct Keywords {
    dim: Option<usize>,
    chunk_size: ChunkSizes,
    batch_size: Option<usize>,
    dim_head: Option<usize>,
    heads: Option<usize>,
    model: Option<ModelKeywords>,
    default_step_transform_max_lr: f64,
    per_parameter_lr_modulation: bool,
    max_mem_layer_modulation: f64,
    per_head_learned_parameters: bool,
    attn_pool_chunks: bool,
    momentum: bool,
    momentum_order: usize,
    learned_momentum_combine: bool,
    learned_combine_include_zeroth: bool,
    num_kv_per_token: usize,
    qkv_receives_diff_views: bool,
    pre_rmsnorm: bool,
    post_rmsnorm: Option<bool>,
    qk_rmsnorm: bool,
    max_grad_norm: Option<f64>,
    use_accelerated_scan: bool,
    activation: Option<String>,
    init_adaptive_step_bias: Option<f64>,
    init_momentum_bias: Option<f64>,
    init_decay_bias: Option<f64>,
    accept_weight_residual: bool,
    spectral_norm_surprises: bool,
    gated_transition: bool,
    store_with_lookahead_value: bool,
    mem_model_norm_add_residual: bool,
    default_model_kwargs: Option<ModelKeywords>,
    default_mlp_kwargs: Option<ModelKeywords>,
}

impl Default for Keywords {
    fn default() -> Self {
        Self {
            dim: None,
            chunk_size: ChunkSizes::One(1),
            batch_size: None,
            dim_head: None,
            heads: None,
            model: None,
            default_step_transform_max_lr: 1.0,
            per_parameter_lr_modulation: false,
            max_mem_layer_modulation: 1.0,
            per_head_learned_parameters: true,
            attn_pool_chunks: false,
            momentum: true,
            momentum_order: 1,
            learned_momentum_combine: false,
            learned_combine_include_zeroth: false,
            num_kv_per_token: 1,
            qkv_receives_diff_views: false,
            pre_rmsnorm: true,
            post_rmsnorm: None,
            qk_rmsnorm: false,
            max_grad_norm: None,
            use_accelerated_scan: false,
            activation: None,
            init_adaptive_step_bias: None,
            init_momentum_bias: None,
            init_decay_bias: None,
            accept_weight_residual: false,
            spectral_norm_surprises: false,
            gated_transition: false,
            store_with_lookahead_value: false,
            mem_model_norm_add_residual: true,
            default_model_kwargs: None,
            default_mlp_kwargs: None,
        }
    }
}

/// One chunk size, or the pair (retrieve, store).
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged, expecting = "chunk_size is not a whole number or a pair of them")]
enum ChunkSizes {
    One(usize),
    Pair(usize, usize),
}

/// A memory model: class and arguments.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelKeywords {
    class: Option<String>,
    #[serde(rename = "dim")]
    _dim: Option<usize>,
    depth: Option<usize>,
    expansion_factor: Option<f64>,
    k: Option<usize>,
    scale: Option<f64>,
}

/// Reads a checkpoint and makes a memory of it.
pub fn import(file: &TensorFile, library: Library, arguments: &Arguments) -> Result<Imported> {
    let keywords: Keywords = match &arguments.json {
        None => Keywords::default(),
        Some(json) => {
            serde_json::from_str(json).map_err(|error| Error::rejected("--args", error.to_string()))?
        }
    };
    let prefix = find_prefix(file, library, arguments.prefix.as_deref())?;
    let checkpoint = Checkpoint { file, prefix, taken: BTreeSet::new() };
    match library {
        Library::Titans0017 => checkpoint.import_0_0_17(&keywords, arguments),
        Library::Titans055 => checkpoint.import_0_5_5(&keywords, arguments),
    }
}

/// Name of a tensor that every memory of a version has, and that tells it from other layers.
fn markers(library: Library) -> [&'static [&'static str]; 2] {
    match library {
        Library::Titans0017 => [&["to_keys_values.weight"], &["memory_model.weights.0"]],
        Library::Titans055 => [
            &["to_keys.weight", "to_keys.0.weight"],
            &["to_adaptive_step.0.weight", "to_decay_factor.0.weight"],
        ],
    }
}

/// Returns the prefix of the memory's tensors.
fn find_prefix(file: &TensorFile, library: Library, given: Option<&str>) -> Result<String> {
    let [first, second] = markers(library);
    let has = |prefix: &str, names: &[&str]| {
        names.iter().any(|name| file.tensors().contains_key(&format!("{prefix}{name}")))
    };
    let of_name = |name: &String| {
        let prefix = first.iter().find_map(|marker| name.strip_suffix(marker))?;
        let whole = prefix.is_empty() || prefix.ends_with('.');
        (whole && has(prefix, second)).then(|| prefix.to_owned())
    };
    let candidates: BTreeSet<String> = file.tensors().keys().filter_map(of_name).collect();
    let path = file.path().display().to_string();
    let list = || candidates.iter().map(|prefix| format!("{prefix:?}")).collect::<Vec<_>>().join(", ");
    match (given, candidates.len()) {
        (Some(given), _) if candidates.contains(given) => Ok(given.to_owned()),
        (Some(given), 0) => {
            let reason = format!("no memory starts with {given:?} in {path}, nor with another prefix");
            Err(Error::rejected("--prefix", reason))
        }
        (Some(given), _) => {
            let reason = format!("no memory starts with {given:?} in {path}; use one of {}", list());
            Err(Error::rejected("--prefix", reason))
        }
        (None, 1) => Ok(candidates.into_iter().next().expect("one candidate")),
        (None, 0) => {
            let reason = format!(
                "no memory of this version of titans-pytorch: no tensor ends with {:?} beside one with {:?}; check --from",
                first[0], second[0]
            );
            Err(Error::rejected(path, reason))
        }
        (None, _) => {
            Err(Error::rejected(path, format!("several memories; pass --prefix with one of {}", list())))
        }
    }
}

/// The tensors of a checkpoint, and those taken so far.
struct Checkpoint<'a> {
    file: &'a TensorFile,
    prefix: String,
    taken: BTreeSet<String>,
}

impl Checkpoint<'_> {
    /// Takes the first tensor that exists under one of these names.
    fn take(&mut self, names: &[&str]) -> Result<Tensor> {
        for name in names {
            if let Some(tensor) = self.find(name) {
                let tensor = tensor.clone();
                self.taken.insert(format!("{}{name}", self.prefix));
                return Ok(tensor);
            }
        }
        Err(Error::Tensor {
            path: self.file.path().to_path_buf(),
            tensor: format!("{}{}", self.prefix, names[0]),
            expected: "a tensor of this name".to_owned(),
            got: "no such tensor".to_owned(),
        })
    }

    fn find(&self, name: &str) -> Option<&Tensor> {
        self.file.tensors().get(&format!("{}{name}", self.prefix))
    }

    /// Makes the memory of the tensors, which are in nmem's layout.
    fn finish(
        self,
        program: Program,
        parameters: BTreeMap<String, Tensor>,
        keywords: &Keywords,
    ) -> Result<Imported> {
        let path = self.file.path().to_path_buf();
        program.check(None)?;
        let shapes =
            parameters.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect();
        let of_mismatch = |Mismatch { tensor, expected, got }| Error::Tensor {
            path: path.clone(),
            tensor: format!("{} (from {:?})", tensor, self.prefix),
            expected,
            got,
        };
        let dimensions = Dimensions::infer(&shapes, &program).map_err(of_mismatch)?;
        dimensions.check(&program)?;
        for (name, given, own) in [
            ("dim", keywords.dim, dimensions.dim),
            ("heads", keywords.heads, dimensions.heads),
            ("dim_head", keywords.dim_head, dimensions.dim_head),
        ] {
            if let Some(given) = given.filter(|given| *given != own) {
                let expected = format!("{own}, as in {}", path.display());
                return Err(Error::setting(format!("--args: {name}"), expected, given.to_string()));
            }
        }
        for (name, tensor) in &parameters {
            if !tensor.dtype().is_float() {
                let got = tensor.dtype().name().to_owned();
                let expected = "type f16, bf16, f32 or f64".to_owned();
                return Err(Error::Tensor { path, tensor: name.clone(), expected, got });
            }
        }
        let ignored =
            self.file.tensors().keys().filter(|name| !self.taken.contains(*name)).cloned().collect();
        let memory = MemoryFile::from_parts(path, dimensions, program, parameters);
        Ok(Imported { memory, prefix: self.prefix, taken: self.taken.into_iter().collect(), ignored })
    }

    fn import_0_0_17(mut self, keywords: &Keywords, arguments: &Arguments) -> Result<Imported> {
        reject_options(keywords)?;
        reject_later_options(keywords)?;
        let chunk_size = chunk_size(keywords, arguments)?;
        let weight = |p: &usize| self.find(&format!("memory_model.weights.{p}")).is_some();
        let depth = (0..self.file.tensors().len()).take_while(weight).count();
        let path = self.file.path().display().to_string();
        let of_keywords = keywords.model.as_ref().or(keywords.default_mlp_kwargs.as_ref());
        if let Some(given) = of_keywords.and_then(|model| model.depth).filter(|&given| given != depth) {
            let expected = format!("{depth}, the number of memory weights in {path}");
            return Err(Error::setting("--args: depth", expected, given.to_string()));
        }
        for (name, option, given) in [
            ("store_norm.weight", "pre_rmsnorm", arguments.json.as_ref().map(|_| keywords.pre_rmsnorm)),
            ("post_rmsnorm.weight", "post_rmsnorm", keywords.post_rmsnorm),
        ] {
            let has = self.find(name).is_some();
            if given.is_some_and(|given| given != has) {
                let expected = format!("{has}, as in {path}");
                return Err(Error::setting(format!("--args: {option}"), expected, (!has).to_string()));
            }
        }
        let of_metadata =
            self.file.metadata().get(MODEL_KEY).and_then(|name| ModelKind::from_str(name, false).ok());
        let program = match model_0_0_17(keywords, arguments)?.or(of_metadata) {
            Some(ModelKind::Mlp) => Program::titans_0_0_17_mlp(chunk_size, depth),
            Some(ModelKind::Attention) => Program::titans_0_0_17(chunk_size),
            Some(other) => {
                let reason =
                    format!("titans-pytorch 0.0.17 has no {} memory; pass attention or mlp", other.name());
                return Err(Error::rejected("--model", reason));
            }
            None => {
                let reason = "the attention memory and the MLP have the same names and, with a depth of 4, the same \
                              shapes; pass --model attention, or --model mlp for titans-pytorch's default";
                return Err(Error::rejected(path, reason));
            }
        };
        let mut parameters = BTreeMap::new();
        let required = ["to_keys_values.weight", "to_queries.weight", "to_adaptive_step.1.weight"];
        let required = required.into_iter().chain(["to_momentum.1.weight", "to_decay_factor.1.weight"]);
        let optional =
            ["store_norm.weight", "retrieve_norm.weight", "post_rmsnorm.weight", "combine_heads.weight"];
        let optional = optional.into_iter().filter(|name| self.find(name).is_some());
        let names: Vec<_> = required.chain(optional).map(str::to_owned).collect();
        let weights = (0..depth).map(|p| format!("memory_model.weights.{p}"));
        for name in names.into_iter().chain(weights) {
            let tensor = self.take(&[&name])?;
            parameters.insert(name, tensor);
        }
        self.reject_further_weights("memory_model.weights")?;
        self.finish(program, parameters, keywords)
    }

    fn import_0_5_5(mut self, keywords: &Keywords, arguments: &Arguments) -> Result<Imported> {
        reject_options(keywords)?;
        if keywords.default_mlp_kwargs.is_some() {
            let reason = "default_mlp_kwargs is not an argument of titans-pytorch 0.5.5; check --from";
            return Err(Error::rejected("--args", reason));
        }
        let chunk_size = chunk_size(keywords, arguments)?;
        let heads = keywords.heads.unwrap_or(1);
        let base = Preset::Titans055.program(chunk_size, heads);
        let activation = match keywords.activation.as_deref() {
            None => ProjectionActivation::None,
            Some("SiLU") => ProjectionActivation::Silu,
            Some("GELU") => ProjectionActivation::Gelu,
            Some(other) => return Err(unsupported("activation", &format!("{other:?}"))),
        };
        let mut program = Program {
            model: model_0_5_5(keywords)?,
            loss: Loss::MeanSquare,
            schedule: Schedule {
                refresh: keywords.batch_size,
                gated_transition: keywords.gated_transition && keywords.batch_size.is_some(),
                ..base.schedule
            },
            frame: Frame {
                activation,
                qk_norm: keywords.qk_rmsnorm,
                head_norm: keywords.post_rmsnorm.unwrap_or(false),
                per_head: keywords.per_head_learned_parameters,
                ..base.frame
            },
            ..base
        };
        program.rule.max_rate = keywords.default_step_transform_max_lr;
        program.rule.momentum = keywords.momentum;
        self.reject_tensors(&program, keywords)?;

        let mut parameters = BTreeMap::new();
        let keys = self.take(&["to_keys.weight", "to_keys.0.weight"])?;
        let values = self.take(&["to_values.weight", "to_values.0.weight"])?;
        parameters.insert("to_keys_values.weight".to_owned(), self.stacked(&keys, &values)?);
        let queries = self.take(&["to_queries.weight", "to_queries.0.weight"])?;
        parameters.insert("to_queries.weight".to_owned(), queries);
        if keywords.pre_rmsnorm {
            for name in ["store_norm.weight", "retrieve_norm.weight"] {
                parameters.insert(name.to_owned(), self.take(&[name])?);
            }
        }
        let gates =
            [("to_adaptive_step", true), ("to_momentum", keywords.momentum), ("to_decay_factor", true)];
        for (name, _) in gates.into_iter().filter(|(_, exists)| *exists) {
            for part in ["weight", "bias"] {
                let tensor = self.take(&[&format!("{name}.0.{part}")])?;
                parameters.insert(format!("{name}.1.{part}"), tensor);
            }
        }
        let norms = [("q_norm", keywords.qk_rmsnorm), ("k_norm", keywords.qk_rmsnorm)];
        for (name, _) in
            norms.into_iter().chain([("multihead_rmsnorm", program.frame.head_norm)]).filter(|(_, has)| *has)
        {
            let name = format!("{name}.gamma");
            let gamma = self.take(&[&name])?;
            parameters.insert(name, without_ones(&gamma, 1));
        }
        if heads > 1 {
            let gate = self.take(&["retrieve_gate.0.weight"])?;
            parameters.insert("retrieve_gate.weight".to_owned(), gate);
            parameters.insert("combine_heads.weight".to_owned(), self.take(&["combine_heads.weight"])?);
        }
        if program.schedule.gated_transition {
            parameters.insert("transition_gate".to_owned(), self.take(&["transition_gate"])?);
        } else if keywords.gated_transition {
            // Without refreshes the library never uses it.
            self.taken.insert(format!("{}transition_gate", self.prefix));
        }
        // Keywords are compared with the tensors later; models are built for widths that exist.
        let inner = parameters["to_queries.weight"].shape().first().copied().unwrap_or(0);
        for (p, weight) in program.model.graph(inner / heads.max(1)).weights.iter().enumerate() {
            // Where heads share the weights, checkpoints that drop repeated tensors may keep either name.
            let wrapped = program.model.residual_norm;
            let template = match weight.name.as_str() {
                "residual_norm.gamma" => "norm.gamma".to_owned(),
                name if wrapped => format!("model.{name}"),
                name => name.to_owned(),
            };
            let mut names = vec![format!("memory_model_parameters.{p}")];
            if !program.frame.per_head {
                names.push(format!("memory_model.{template}"));
            }
            let tensor = self.take(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
            parameters.insert(format!("memory_model.weights.{p}"), tensor);
        }
        self.reject_further_weights("memory_model_parameters")?;
        self.finish(program, parameters, keywords)
    }

    /// Rejects a checkpoint with more memory weights than its model has.
    fn reject_further_weights(&self, prefix: &str) -> Result<()> {
        let start = format!("{}{prefix}.", self.prefix);
        let mut further = self.file.tensors().keys().filter(|name| name.starts_with(&start));
        let Some(name) = further.find(|name| !self.taken.contains(*name)) else { return Ok(()) };
        let reason = format!(
            "the checkpoint has the tensor {name}, which the model of these arguments lacks; pass the arguments that the \
             memory was made with"
        );
        Err(Error::rejected("--args", reason))
    }

    /// Rejects tensors of options that the keywords do not name: then the keywords are not those of the checkpoint.
    fn reject_tensors(&self, program: &Program, keywords: &Keywords) -> Result<()> {
        let activated = program.frame.activation != ProjectionActivation::None;
        for (name, option, on) in [
            ("to_momentum.0.weight", "momentum", keywords.momentum),
            ("store_norm.weight", "pre_rmsnorm", keywords.pre_rmsnorm),
            ("q_norm.gamma", "qk_rmsnorm", keywords.qk_rmsnorm),
            ("multihead_rmsnorm.gamma", "post_rmsnorm", program.frame.head_norm),
            ("retrieve_gate.0.weight", "heads above 1", keywords.heads.is_some_and(|heads| heads > 1)),
            ("to_queries.0.weight", "activation", activated),
            ("transition_gate", "gated_transition", keywords.gated_transition),
            ("to_learned_momentum_combine.0.weight", "learned_momentum_combine", false),
            ("to_layer_modulation.0.weight", "per_parameter_lr_modulation", false),
            ("to_learned_weight_residual_mix.0.weight", "accept_weight_residual", false),
            ("reduce_to_chunk_rep.to_attn_logits.weight", "attn_pool_chunks", false),
        ] {
            if self.find(name).is_some() != on {
                let name = format!("{}{name}", self.prefix);
                let reason = if on {
                    format!(
                        "{option} needs the tensor {name}, which the checkpoint lacks; pass the arguments that the memory was made with"
                    )
                } else {
                    format!(
                        "the checkpoint has the tensor {name}, of the option {option}, which these arguments do not set; pass the arguments that the memory was made with"
                    )
                };
                return Err(Error::rejected("--args", reason));
            }
        }
        Ok(())
    }

    /// Returns the rows of two matrices, one below the other.
    fn stacked(&self, above: &Tensor, below: &Tensor) -> Result<Tensor> {
        let shape = |tensor: &Tensor| format!("{} {:?}", tensor.dtype().name(), tensor.shape());
        let ([rows, cols], [more, same]) = (above.shape(), below.shape()) else {
            return Err(Error::file(self.file.path(), "matrices to_keys and to_values", shape(above)));
        };
        if (rows, cols) != (more, same) || above.dtype() != below.dtype() {
            let expected = format!("to_values like to_keys, {}", shape(above));
            return Err(Error::file(self.file.path(), expected, shape(below)));
        }
        let data = [above.data(), below.data()].concat();
        Ok(Tensor::new(above.dtype(), vec![rows + more, *cols], data).expect("as many elements"))
    }
}

fn chunk_size(keywords: &Keywords, arguments: &Arguments) -> Result<usize> {
    match (arguments.chunk_size, keywords.chunk_size) {
        (Some(given), _) => Ok(given),
        (None, ChunkSizes::One(size)) => Ok(size),
        (None, ChunkSizes::Pair(read, store)) if read == store => Ok(store),
        (None, ChunkSizes::Pair(read, store)) => Err(unsupported(
            "chunk_size",
            &format!("({read}, {store}), different sizes to retrieve and to store"),
        )),
    }
}

fn unsupported(option: &str, value: &str) -> Error {
    Error::rejected("--args", format!("{option} {value} is not supported by nmem import"))
}

/// Rejects options that change what is computed and that no program has.
fn reject_options(keywords: &Keywords) -> Result<()> {
    let Keywords { momentum_order, num_kv_per_token, .. } = *keywords;
    for (option, on) in [
        ("per_parameter_lr_modulation", keywords.per_parameter_lr_modulation),
        ("attn_pool_chunks", keywords.attn_pool_chunks),
        ("learned_momentum_combine", keywords.learned_momentum_combine),
        ("qkv_receives_diff_views", keywords.qkv_receives_diff_views),
        ("accept_weight_residual", keywords.accept_weight_residual),
        ("spectral_norm_surprises", keywords.spectral_norm_surprises),
        ("store_with_lookahead_value", keywords.store_with_lookahead_value),
    ] {
        if on {
            return Err(unsupported(option, "true"));
        }
    }
    if keywords.momentum && momentum_order != 1 {
        return Err(unsupported("momentum_order", &momentum_order.to_string()));
    }
    if num_kv_per_token != 1 {
        return Err(unsupported("num_kv_per_token", &num_kv_per_token.to_string()));
    }
    keywords.max_grad_norm.map_or(Ok(()), |norm| Err(unsupported("max_grad_norm", &norm.to_string())))
}

/// Rejects options that 0.0.17 does not have.
fn reject_later_options(keywords: &Keywords) -> Result<()> {
    for (option, on) in [
        ("batch_size", keywords.batch_size.is_some()),
        ("qk_rmsnorm", keywords.qk_rmsnorm),
        ("gated_transition", keywords.gated_transition),
        ("activation", keywords.activation.is_some()),
        ("momentum", !keywords.momentum),
        ("default_model_kwargs", keywords.default_model_kwargs.is_some()),
    ] {
        if on {
            let reason = format!("{option} is not an argument of titans-pytorch 0.0.17; check --from");
            return Err(Error::rejected("--args", reason));
        }
    }
    Ok(())
}

/// Returns the model of 0.0.17's arguments, if they name one.
fn model_0_0_17(keywords: &Keywords, arguments: &Arguments) -> Result<Option<ModelKind>> {
    let class = keywords.model.as_ref().and_then(|model| model.class.as_deref());
    let of_class = match class {
        None => keywords.default_mlp_kwargs.as_ref().map(|_| ModelKind::Mlp),
        Some("MemoryMLP") => Some(ModelKind::Mlp),
        Some("MemoryAttention" | "TitansAttentionMemory") => Some(ModelKind::Attention),
        Some(other) => {
            let reason =
                format!("titans-pytorch 0.0.17 has no model {other:?}; pass MemoryMLP or MemoryAttention");
            return Err(Error::rejected("--args", reason));
        }
    };
    match (arguments.model, of_class) {
        (Some(model), Some(of_class)) if model != of_class => {
            let reason = format!("{} contradicts the model of --args; omit one of the two", model.name());
            Err(Error::rejected("--model", reason))
        }
        (model, of_class) => Ok(model.or(of_class)),
    }
}

/// Returns the model of 0.5.5's arguments, with the defaults of its classes.
fn model_0_5_5(keywords: &Keywords) -> Result<Model> {
    let default = ModelKeywords { depth: Some(2), expansion_factor: Some(4.0), ..ModelKeywords::default() };
    let given = keywords.model.as_ref().or(keywords.default_model_kwargs.as_ref()).unwrap_or(&default);
    let ModelKeywords { class, depth, expansion_factor: expansion, k: rank, scale, .. } = given.clone();
    let class = class.as_deref().unwrap_or("MemoryMLP");
    let (kind, own) = match class {
        "MemoryMLP" => (ModelKind::Mlp, Options { expansion: Some(2.0), ..Options::NONE }),
        "FactorizedMemoryMLP" => (ModelKind::Factorized, Options { rank: Some(32), ..Options::NONE }),
        "GatedResidualMemoryMLP" => {
            (ModelKind::GatedResidual, Options { expansion: Some(4.0), ..Options::NONE })
        }
        "MemorySwiGluMLP" => {
            (ModelKind::Swiglu, Options { expansion: Some(4.0), depth: Some(1), ..Options::NONE })
        }
        "MemoryAttention" => {
            (ModelKind::AttentionCosine, Options { expansion: Some(2.0), scale: Some(8.0), ..Options::NONE })
        }
        other => return Err(unsupported("model", &format!("{other:?}"))),
    };
    let needs_depth = kind.options().depth.is_some() && own.depth.is_none();
    if needs_depth && depth.is_none() {
        return Err(Error::rejected(
            "--args",
            format!("{class} without depth; pass the depth it was made with"),
        ));
    }
    let mut options = Options { depth, expansion, rank, scale, model_activation: None }.or(own);
    options.model_activation = kind.options().model_activation.map(|_| Activation::Gelu);
    let model = Model { kind, options, residual_norm: keywords.mem_model_norm_add_residual };
    model.check(None).map_err(|(name, problem)| Error::limit(format!("--args: {name}"))(problem))?;
    Ok(model)
}

/// Returns a tensor without its axis of length 1 at `axis`.
fn without_ones(tensor: &Tensor, axis: usize) -> Tensor {
    let mut shape = tensor.shape().to_vec();
    if shape.get(axis) == Some(&1) {
        shape.remove(axis);
    }
    Tensor::new(tensor.dtype(), shape, tensor.data().to_vec()).expect("as many elements")
}

/// Reads the text of constructor arguments.
pub fn read_arguments(path: &Path) -> Result<String> {
    let file = super::text::TextFile::read(path, super::text::MAX_TOML)?;
    file.text().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Depth, expansion, rank and scale of the library's classes, whose constructors need not be given all of them.
    #[test]
    fn models_of_0_5_5_have_the_defaults_of_their_classes() {
        for (model, kind, expected) in [
            ("", ModelKind::Mlp, (Some(2), Some(4.0), None, None)),
            (r#""class": "MemoryMLP", "depth": 3"#, ModelKind::Mlp, (Some(3), Some(2.0), None, None)),
            (
                r#""class": "FactorizedMemoryMLP", "depth": 1"#,
                ModelKind::Factorized,
                (Some(1), None, Some(32), None),
            ),
            (
                r#""class": "GatedResidualMemoryMLP", "depth": 2"#,
                ModelKind::GatedResidual,
                (Some(2), Some(4.0), None, None),
            ),
            (r#""class": "MemorySwiGluMLP""#, ModelKind::Swiglu, (Some(1), Some(4.0), None, None)),
            (r#""class": "MemoryAttention""#, ModelKind::AttentionCosine, (None, Some(2.0), None, Some(8.0))),
        ] {
            let json =
                if model.is_empty() { "{}".to_owned() } else { format!(r#"{{"model": {{{model}}}}}"#) };
            let made = model_0_5_5(&serde_json::from_str(&json).unwrap()).unwrap();
            let Options { depth, expansion, rank, scale, .. } = made.options;
            assert_eq!((made.kind, (depth, expansion, rank, scale)), (kind, expected), "{json}");
        }
    }
}
