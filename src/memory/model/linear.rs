//! One matrix: y = x W. With chunks of one token and no decay it stores by the delta rule.

use super::Options;
use crate::memory::graph::{GraphBuilder, Value};

pub const OPTIONS: Options = Options::NONE;

pub fn build(graph: &mut GraphBuilder, _: &Options, d: usize) -> Value {
    let weight = graph.weight("weights.0", d, d);
    graph.linear(Value::Rows, weight..weight + 1)
}
