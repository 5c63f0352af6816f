//! SwiGLU layers (`MemorySwiGluMLP` of titans-pytorch 0.5.5), of inner width e = ⌊d · expansion · 2/3⌋:
//!
//! ```text
//! [a z] = x W_1,  x ← x + (a ∘ gelu(z)) W_2        for each layer
//! y = LayerNorm(x) ∘ (γ + 1)
//! ```

use super::Options;
use crate::memory::graph::{GraphBuilder, Value};
use crate::memory::operators::Op;

pub const OPTIONS: Options = Options { depth: Some(1), expansion: Some(4.0), ..Options::NONE };

pub fn build(graph: &mut GraphBuilder, options: &Options, d: usize) -> Value {
    let inner = options.hidden(d, 2.0 / 3.0);
    let layers: Vec<_> = (0..options.depth())
        .map(|layer| {
            let up = graph.normal_weight(format!("weights.{layer}.0"), d, 2 * inner);
            (up, graph.normal_weight(format!("weights.{layer}.1"), inner, d))
        })
        .collect();
    let gain = graph.gain("norm.gamma", d);
    let mut rows = Value::Rows;
    for (up, down) in layers {
        let gated = graph.linear(rows, up..up + 1);
        let gated = graph.apply(Op::glu(), &[gated]);
        let branch = graph.linear(gated, down..down + 1);
        rows = graph.apply(Op::add(), &[branch, rows]);
    }
    graph.layer_norm(rows, gain)
}
