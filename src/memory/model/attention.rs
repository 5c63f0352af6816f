//! The attention memory of titans-pytorch 0.0.17 (`titans_attn_memory`). For the rows x (c, d) of one chunk
//!
//! ```text
//! q = x W_q,  k = x W_k,  v = x W_v1
//! y = silu(softmax(q kᵀ / √d, causal) v) W_v2
//! ```

use super::Options;
use crate::memory::graph::{GraphBuilder, Value};
use crate::memory::operators::{Activation, Attention, Op, Scores};

pub const OPTIONS: Options = Options::NONE;

pub fn build(graph: &mut GraphBuilder, _: &Options, d: usize) -> Value {
    let [q, _, _, last] = [0, 1, 2, 3].map(|p| graph.weight(format!("weights.{p}"), d, d));
    let qkv = graph.linear(Value::Rows, q..q + 3);
    let hidden = graph.apply(Op::Attention(Attention { scores: Scores::Plain }), &[qkv]);
    let activated = graph.apply(Op::Activation(Activation::Silu), &[hidden]);
    graph.linear(activated, last..last + 1)
}
