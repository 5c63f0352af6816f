//! A memory's tensors under the names of titans-pytorch's `state_dict`: the inverse of [`import`](super::import).
//!
//! | version | memories |
//! | --- | --- |
//! | 0.0.17 | its attention memory and its MLP: the names of nmem's files |
//! | 0.5.5 | programs that its `NeuralMemory` has |

use ndarray::{ArrayD, Axis};
use serde_json::{Value, json};

use super::import::Library;
use crate::memory::loss::Loss;
use crate::memory::model::{Model, ModelKind, Options};
use crate::memory::operators::Activation;
use crate::memory::program::{ProjectionActivation, Reads};
use crate::memory::rule::{DecayOf, RateForm, RatePer};
use crate::memory::{Dimensions, Program};
use crate::real::Real;

/// A tensor with its name.
pub type Named<T> = (String, ArrayD<T>);

/// Returns the version of titans-pytorch that has a memory, or the reason why none has.
pub fn library_of(program: &Program, dimensions: &Dimensions) -> Result<Library, &'static str> {
    let mlp = Program::titans_0_0_17_mlp(program.chunk_size(), program.model.options.depth.unwrap_or(1));
    if program.is_titans_0_0_17() || *program == mlp {
        return Ok(Library::Titans0017);
    }
    let Program { model, loss, rule, schedule, frame } = program;
    let known = match model.kind {
        ModelKind::Attention | ModelKind::Linear => false,
        _ => model.options.model_activation.is_none_or(|activation| activation == Activation::Gelu),
    };
    let checks = [
        (known, "the model"),
        (*loss == Loss::MeanSquare, "the loss"),
        (rule.rate_form == RateForm::Sigmoid && rule.rate_per == RatePer::Token, "the form of the rate"),
        (rule.decay_of == DecayOf::Weights, "what decays"),
        (schedule.reads == Reads::Complete, "the schedule of reads"),
        (frame.gate_biases, "gate layers without biases"),
        (frame.read_gate == (dimensions.heads > 1), "the gate of reads"),
        (!dimensions.post_norm, "the norm of the output"),
    ];
    match checks.into_iter().find(|(same, _)| !same) {
        Some((_, part)) => Err(part),
        None => Ok(Library::Titans055),
    }
}

/// Renames tensors of a program to those of a library's `state_dict`.
pub fn exported<T: Real>(
    library: Library,
    program: &Program,
    dimensions: &Dimensions,
    tensors: Vec<Named<T>>,
) -> Vec<Named<T>> {
    if library == Library::Titans0017 {
        return tensors;
    }
    let activated = program.frame.activation != ProjectionActivation::None;
    let projection = |name: &str| format!("{name}{}.weight", if activated { ".0" } else { "" });
    let graph = program.model.graph(dimensions.dim_head);
    let mut renamed = Vec::new();
    for (name, tensor) in tensors {
        match name.as_str() {
            "to_keys_values.weight" => {
                let (keys, values) = tensor.view().split_at(Axis(0), dimensions.inner());
                renamed.push((projection("to_keys"), keys.to_owned()));
                renamed.push((projection("to_values"), values.to_owned()));
            }
            "to_queries.weight" => renamed.push((projection("to_queries"), tensor)),
            "retrieve_gate.weight" => renamed.push(("retrieve_gate.0.weight".to_owned(), tensor)),
            "q_norm.gamma" | "k_norm.gamma" | "multihead_rmsnorm.gamma" => {
                renamed.push((name, tensor.insert_axis(Axis(1))));
            }
            _ => {
                if let Some(p) = name.strip_prefix("memory_model.weights.") {
                    let spec = &graph.weights[p.parse::<usize>().expect("a memory weight")];
                    renamed.push((format!("memory_model_parameters.{p}"), tensor.clone()));
                    // Without weights of their own, the heads' tensor is the template's.
                    if !program.frame.per_head {
                        renamed.push((template(&program.model, &spec.name), tensor));
                    }
                } else {
                    // The gate layers follow another layer in 0.0.17. No other name has a ".1.".
                    renamed.push((name.replacen(".1.", ".0.", 1), tensor));
                }
            }
        }
    }
    renamed
}

/// Returns the name of a weight among the library's own model's.
fn template(model: &Model, weight: &str) -> String {
    match weight {
        "residual_norm.gamma" => "memory_model.norm.gamma".to_owned(),
        weight if model.residual_norm => format!("memory_model.model.{weight}"),
        weight => format!("memory_model.{weight}"),
    }
}

/// Returns a memory's parameters as a whole `state_dict`. Where heads have weights of their own, the library also has a template,
/// whose values it does not use: they are those of the first head.
pub fn state_dict<T: Real>(
    library: Library,
    program: &Program,
    dimensions: &Dimensions,
    tensors: Vec<Named<T>>,
) -> Vec<Named<T>> {
    let mut templates = Vec::new();
    if library == Library::Titans055 && program.frame.per_head {
        let specs = program.model.graph(dimensions.dim_head).weights;
        for (p, spec) in specs.iter().enumerate() {
            let name = format!("memory_model.weights.{p}");
            let (_, tensor) = tensors.iter().find(|(of, _)| *of == name).expect("every memory weight");
            let first = tensor.index_axis(Axis(0), 0).to_owned();
            templates.push((template(&program.model, &spec.name), first));
        }
    }
    let mut all = exported(library, program, dimensions, tensors);
    all.extend(templates);
    all
}

/// Returns the constructor arguments of a memory, by their names in the library, as `nmem import` reads them.
pub fn arguments(library: Library, program: &Program, dimensions: &Dimensions) -> Value {
    let Dimensions { dim, heads, dim_head, pre_norm, post_norm } = *dimensions;
    let mut all = json!({
        "dim": dim,
        "heads": heads,
        "dim_head": dim_head,
        "chunk_size": program.chunk_size(),
        "pre_rmsnorm": pre_norm,
        "post_rmsnorm": if library == Library::Titans0017 { post_norm } else { program.frame.head_norm },
    });
    let Options { depth, expansion, rank, scale, .. } = program.model.options;
    if library == Library::Titans0017 {
        if program.model.kind == ModelKind::Mlp {
            all["default_mlp_kwargs"] = json!({ "depth": depth });
        }
        return all;
    }
    let class = match program.model.kind {
        ModelKind::Mlp => "MemoryMLP",
        ModelKind::Factorized => "FactorizedMemoryMLP",
        ModelKind::GatedResidual => "GatedResidualMemoryMLP",
        ModelKind::Swiglu => "MemorySwiGluMLP",
        ModelKind::AttentionCosine => "MemoryAttention",
        ModelKind::Attention | ModelKind::Linear => unreachable!("not a model of 0.5.5"),
    };
    let mut model = json!({ "class": class });
    let options = [("depth", depth.map(Value::from)), ("expansion_factor", expansion.map(Value::from))];
    let options =
        options.into_iter().chain([("k", rank.map(Value::from)), ("scale", scale.map(Value::from))]);
    for (name, value) in options.filter_map(|(name, value)| Some((name, value?))) {
        model[name] = value;
    }
    all["model"] = model;
    all["mem_model_norm_add_residual"] = program.model.residual_norm.into();
    all["default_step_transform_max_lr"] = program.rule.max_rate.into();
    all["momentum"] = program.rule.momentum.into();
    all["qk_rmsnorm"] = program.frame.qk_norm.into();
    all["per_head_learned_parameters"] = program.frame.per_head.into();
    all["gated_transition"] = program.schedule.gated_transition.into();
    if let Some(refresh) = program.schedule.refresh {
        all["batch_size"] = refresh.into();
    }
    match program.frame.activation {
        ProjectionActivation::None => {}
        ProjectionActivation::Silu => all["activation"] = "SiLU".into(),
        ProjectionActivation::Gelu => all["activation"] = "GELU".into(),
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::program::Preset;

    /// Each part of a program that titans-pytorch lacks is the reason by itself.
    #[test]
    fn parts_that_the_library_lacks_are_named() {
        type Change = fn(&mut Program, &mut Dimensions);
        let changes: [(Change, &str); 12] = [
            (|of, _| of.model = Model::new(ModelKind::Attention, true), "the model"),
            (|of, _| of.model = Model::new(ModelKind::Linear, true), "the model"),
            (|of, _| of.model.options.model_activation = Some(Activation::Silu), "the model"),
            (|of, _| of.loss = Loss::HalfSquare, "the loss"),
            (|of, _| of.rule.rate_form = RateForm::Exp, "the form of the rate"),
            (|of, _| of.rule.rate_per = RatePer::Chunk, "the form of the rate"),
            (|of, _| of.rule.decay_of = DecayOf::Update, "what decays"),
            (|of, _| of.schedule.reads = Reads::Behind, "the schedule of reads"),
            (|of, _| of.frame.gate_biases = false, "gate layers without biases"),
            (|of, _| of.frame.read_gate = false, "the gate of reads"),
            (|_, dimensions| dimensions.heads = 1, "the gate of reads"),
            (|_, dimensions| dimensions.post_norm = true, "the norm of the output"),
        ];
        let unchanged = Dimensions { dim: 8, heads: 2, dim_head: 4, pre_norm: true, post_norm: false };
        for kind in [ModelKind::Mlp, ModelKind::Swiglu] {
            let mut program = Preset::Titans055.program(4, 2);
            program.model = Model::new(kind, true);
            assert_eq!(library_of(&program, &unchanged), Ok(Library::Titans055));
            for (change, reason) in changes {
                let (mut program, mut dimensions) = (program, unchanged);
                change(&mut program, &mut dimensions);
                assert_eq!(library_of(&program, &dimensions), Err(reason), "{program:?} {dimensions:?}");
            }
        }
    }
}
