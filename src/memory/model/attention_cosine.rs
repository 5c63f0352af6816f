//! The attention memory of titans-pytorch 0.5.5 (`MemoryAttention`): attention with cosine scores and an MLP side by side.
//!
//! ```text
//! y = softmax(s · q̂ k̂ᵀ, causal) v + gelu(x W_3) W_4        q = x W_0, k = x W_1, v = x W_2, x̂ = x / ‖x‖
//! ```

use super::Options;
use crate::memory::graph::{GraphBuilder, Value};
use crate::memory::operators::{Activation, Attention, Op, Scores};

pub const OPTIONS: Options = Options {
    expansion: Some(2.0),
    scale: Some(8.0),
    model_activation: Some(Activation::Gelu),
    ..Options::NONE
};

pub fn build(graph: &mut GraphBuilder, options: &Options, d: usize) -> Value {
    let hidden = options.hidden(d, 1.0);
    let [q, ..] = [0, 1, 2].map(|p| graph.weight(format!("weights.{p}"), d, d));
    let up = graph.weight("weights.3", d, hidden);
    let down = graph.weight("weights.4", hidden, d);
    let qkv = graph.linear(Value::Rows, q..q + 3);
    let inner = graph.linear(Value::Rows, up..up + 1);
    let scale = options.scale.expect("has a default");
    let attended = graph.apply(Op::Attention(Attention { scores: Scores::Cosine(scale) }), &[qkv]);
    let activation = options.model_activation.expect("has a default");
    let activated = graph.apply(Op::Activation(activation), &[inner]);
    let beside = graph.linear(activated, down..down + 1);
    graph.apply(Op::add(), &[attended, beside])
}
