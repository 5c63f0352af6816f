//! A factorized MLP (`FactorizedMemoryMLP` of titans-pytorch 0.5.5): x W_a W_b in each layer, with W_a (d, k) and W_b (k,
//! d), and an activation before every layer but the first.

use super::Options;
use crate::memory::graph::{GraphBuilder, Value};
use crate::memory::operators::{Activation, Op};

pub const OPTIONS: Options = Options {
    depth: Some(2),
    rank: Some(32),
    model_activation: Some(Activation::Gelu),
    ..Options::NONE
};

pub fn build(graph: &mut GraphBuilder, options: &Options, d: usize) -> Value {
    let rank = options.rank.expect("has a default");
    let layers: Vec<_> = (0..options.depth())
        .map(|layer| {
            let narrow = graph.weight(format!("weights.{layer}.0"), d, rank);
            graph.weight(format!("weights.{layer}.1"), rank, d);
            narrow
        })
        .collect();
    let activation = options.model_activation.expect("has a default");
    let mut rows = Value::Rows;
    for (layer, narrow) in layers.into_iter().enumerate() {
        if layer > 0 {
            rows = graph.apply(Op::Activation(activation), &[rows]);
        }
        rows = graph.linear(rows, narrow..narrow + 1);
        rows = graph.linear(rows, narrow + 1..narrow + 2);
    }
    rows
}
