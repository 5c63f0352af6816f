//! An MLP: matrices of widths d, ⌊d · expansion⌋, …, d with an activation before every matrix but the first. It is
//! `MemoryMLP` of titans-pytorch: gelu in 0.5.5, silu and no expansion in 0.0.17.

use super::Options;
use crate::memory::graph::{GraphBuilder, Value};
use crate::memory::operators::{Activation, Op};

pub const OPTIONS: Options = Options {
    depth: Some(2),
    expansion: Some(4.0),
    model_activation: Some(Activation::Gelu),
    ..Options::NONE
};

pub fn build(graph: &mut GraphBuilder, options: &Options, d: usize) -> Value {
    let (depth, hidden) = (options.depth(), options.hidden(d, 1.0));
    let width = |layer: usize| if layer == 0 || layer == depth { d } else { hidden };
    let weights: Vec<_> = (0..depth)
        .map(|layer| graph.weight(format!("weights.{layer}"), width(layer), width(layer + 1)))
        .collect();
    let activation = options.model_activation.expect("has a default");
    let mut rows = Value::Rows;
    for (layer, weight) in weights.into_iter().enumerate() {
        if layer > 0 {
            rows = graph.apply(Op::Activation(activation), &[rows]);
        }
        rows = graph.linear(rows, weight..weight + 1);
    }
    rows
}
