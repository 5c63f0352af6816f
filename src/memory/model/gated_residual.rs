//! Two-layer MLPs with gated residuals (`GatedResidualMemoryMLP` of titans-pytorch 0.5.5):
//!
//! ```text
//! v = gelu(x W_1) W_2,  x ← x + sigmoid([v x] W_3) ∘ (v − x)        for each layer
//! y = x W_final
//! ```

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
    let hidden = options.hidden(d, 1.0);
    let last = graph.weight("final_proj", d, d);
    let layers: Vec<_> = (0..options.depth())
        .map(|layer| {
            let up = graph.weight(format!("weights.{layer}.0"), d, hidden);
            graph.weight(format!("weights.{layer}.1"), hidden, d);
            graph.weight(format!("weights.{layer}.2"), 2 * d, d);
            up
        })
        .collect();
    let activation = options.model_activation.expect("has a default");
    let mut rows = Value::Rows;
    for up in layers {
        let inner = graph.linear(rows, up..up + 1);
        let inner = graph.apply(Op::Activation(activation), &[inner]);
        let branch = graph.linear(inner, up + 1..up + 2);
        let both = graph.apply(Op::concat(), &[branch, rows]);
        let gate = graph.linear(both, up + 2..up + 3);
        rows = graph.apply(Op::mix(), &[rows, branch, gate]);
    }
    graph.linear(rows, last..last + 1)
}
