//! A memory model as data: operators over the rows of a chunk, in the order in which they are evaluated.
//!
//! A [`Graph`] maps rows (tokens, d) to rows (tokens, d). Its nodes are linear maps with memory weights, and
//! [operators](super::operators) without weights. The split matters: the gradient of a linear map is `g = Aᵀ B`, with
//! A its input rows and B the cotangents of its products, so an engine keeps gradients as thin factors and never
//! forms them for whole blocks. A gain (the γ of a LayerNorm) is a linear map of a column of ones: its weight (1, d) then
//! moves by the same recurrence as any other.

use std::ops::Range;

use super::operators::Op;

/// Most inputs of a node: those of the gated mixture.
pub const MAX_INPUTS: usize = 3;

/// Input of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// The model's input rows (rows, d).
    Rows,
    /// A column of ones (rows, 1).
    Ones,
    /// Output of an earlier node.
    Node(usize),
}

/// Shape and name of one memory weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSpec {
    /// Name, as in titans-pytorch's model where it has one.
    pub name: String,
    /// Number of rows: the width of the input. 1 for a gain.
    pub rows: usize,
    /// Number of columns: the width of the product.
    pub cols: usize,
    /// Distribution in a new memory.
    pub init: WeightInit,
}

impl WeightSpec {
    /// Returns the shape in files: (rows, cols), or (cols) of a gain.
    pub fn shape(&self) -> Vec<usize> {
        if self.init == WeightInit::Zero { vec![self.cols] } else { vec![self.rows, self.cols] }
    }
}

/// Distribution of a weight in a new memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightInit {
    /// The distribution that the settings select for matrices.
    Matrix,
    /// N(0, 1), whatever the settings select.
    Normal,
    /// Zero: gains are stored as γ and applied as γ + 1.
    Zero,
}

/// Kind of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeKind {
    /// Products with these memory weights, side by side.
    Linear(Range<usize>),
    /// An operator without weights.
    Operator(Op),
}

/// One step of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Linear map or operator.
    pub kind: NodeKind,
    /// Inputs; a linear map has one.
    pub inputs: Vec<Value>,
    /// Width of the output rows.
    pub width: usize,
    /// Number of linear maps on the longest path to this node, itself included.
    pub layer: usize,
    /// Whether the output depends on memory weights, so that a gradient passes through it.
    pub learned: bool,
}

/// A model: its weights in file order, its nodes in order of evaluation. The last node is the output (rows, d).
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// Width d of input and output rows.
    pub width: usize,
    /// Memory weights, in file order.
    pub weights: Vec<WeightSpec>,
    /// Nodes. Inputs come before the nodes that use them.
    pub nodes: Vec<Node>,
}

impl Graph {
    /// Returns the number of elements of all memory weights.
    pub fn elements(&self) -> usize {
        self.weights.iter().map(|weight| weight.rows * weight.cols).sum()
    }

    /// Returns the range of each weight's elements, in file order.
    pub fn places(&self) -> Vec<Range<usize>> {
        let ends = self.weights.iter().scan(0, |end, weight| {
            let start = *end;
            *end += weight.rows * weight.cols;
            Some(start..*end)
        });
        ends.collect()
    }

    /// Returns the shape (rows, cols) of each weight, in file order.
    pub fn shapes(&self) -> Vec<(usize, usize)> {
        self.weights.iter().map(|weight| (weight.rows, weight.cols)).collect()
    }

    /// Returns the width of a node's input.
    pub fn width_of(&self, value: Value) -> usize {
        match value {
            Value::Rows => self.width,
            Value::Ones => 1,
            Value::Node(node) => self.nodes[node].width,
        }
    }

    /// Returns whether gradients pass through a value.
    pub fn is_learned(&self, value: Value) -> bool {
        matches!(value, Value::Node(node) if self.nodes[node].learned)
    }

    /// Returns the widths of a node's inputs.
    pub fn input_widths(&self, node: &Node) -> Vec<usize> {
        node.inputs.iter().map(|&input| self.width_of(input)).collect()
    }

    /// Returns the index of the output node.
    pub fn output(&self) -> usize {
        self.nodes.len() - 1
    }

    /// Returns whether the output of a row depends on earlier rows of its chunk.
    pub fn mixes_tokens(&self) -> bool {
        self.nodes.iter().any(|node| matches!(node.kind, NodeKind::Operator(Op::Attention(_))))
    }

    /// Returns the number of layers: linear maps on the longest path.
    pub fn layers(&self) -> usize {
        self.nodes.iter().map(|node| node.layer).max().unwrap_or(0)
    }

    /// Yields the linear maps of a layer, which counts from 1: index of the node, input and weights.
    pub fn linears(&self, layer: usize) -> impl Iterator<Item = (usize, Value, Range<usize>)> + '_ {
        self.nodes.iter().enumerate().filter(move |(_, node)| node.layer == layer).filter_map(|(i, node)| {
            match &node.kind {
                NodeKind::Linear(weights) => Some((i, node.inputs[0], weights.clone())),
                NodeKind::Operator(_) => None,
            }
        })
    }

    /// Yields the operators that follow the linear maps of a layer.
    pub fn operators(&self, layer: usize) -> impl Iterator<Item = (usize, Op)> + '_ {
        self.nodes.iter().enumerate().filter(move |(_, node)| node.layer == layer).filter_map(|(i, node)| {
            match node.kind {
                NodeKind::Linear(_) => None,
                NodeKind::Operator(op) => Some((i, op)),
            }
        })
    }
}

/// Builds a [`Graph`] node by node.
#[derive(Debug)]
pub struct GraphBuilder {
    graph: Graph,
}

impl GraphBuilder {
    /// Starts a model of rows of width `width`.
    pub fn new(width: usize) -> Self {
        Self { graph: Graph { width, weights: Vec::new(), nodes: Vec::new() } }
    }

    /// Declares the next memory weight in file order.
    pub fn weight(&mut self, name: impl Into<String>, rows: usize, cols: usize) -> usize {
        self.declare(name, (rows, cols), WeightInit::Matrix)
    }

    /// Declares a weight with values from N(0, 1) in a new memory.
    pub fn normal_weight(&mut self, name: impl Into<String>, rows: usize, cols: usize) -> usize {
        self.declare(name, (rows, cols), WeightInit::Normal)
    }

    /// Declares a gain γ of width `width`.
    pub fn gain(&mut self, name: impl Into<String>, width: usize) -> usize {
        self.declare(name, (1, width), WeightInit::Zero)
    }

    fn declare(&mut self, name: impl Into<String>, (rows, cols): (usize, usize), init: WeightInit) -> usize {
        self.graph.weights.push(WeightSpec { name: name.into(), rows, cols, init });
        self.graph.weights.len() - 1
    }

    /// Adds products of `input` with the weights of a range, side by side.
    pub fn linear(&mut self, input: Value, weights: Range<usize>) -> Value {
        let width = self.graph.weights[weights.clone()].iter().map(|weight| weight.cols).sum();
        let layer = 1 + self.layer_of(input);
        self.graph.nodes.push(Node {
            kind: NodeKind::Linear(weights),
            inputs: vec![input],
            width,
            layer,
            learned: true,
        });
        Value::Node(self.graph.nodes.len() - 1)
    }

    /// Adds an operator.
    pub fn apply(&mut self, op: Op, inputs: &[Value]) -> Value {
        assert!(inputs.len() <= MAX_INPUTS, "at most {MAX_INPUTS} inputs");
        // The pass back writes one cotangent for each input.
        assert!((1..inputs.len()).all(|i| !inputs[..i].contains(&inputs[i])), "distinct inputs");
        let widths: Vec<_> = inputs.iter().map(|&input| self.graph.width_of(input)).collect();
        let layer = inputs.iter().map(|&input| self.layer_of(input)).max().unwrap_or(0);
        let learned = inputs.iter().any(|&input| self.graph.is_learned(input));
        let width = op.width(&widths);
        self.graph.nodes.push(Node {
            kind: NodeKind::Operator(op),
            inputs: inputs.to_vec(),
            width,
            layer,
            learned,
        });
        Value::Node(self.graph.nodes.len() - 1)
    }

    /// Adds a LayerNorm with the gain `gain`: `LN(x) ∘ (γ + 1)`.
    pub fn layer_norm(&mut self, input: Value, gain: usize) -> Value {
        let normed = self.apply(Op::layer_norm(), &[input]);
        let gain = self.linear(Value::Ones, gain..gain + 1);
        self.apply(Op::gain(), &[normed, gain])
    }

    fn layer_of(&self, value: Value) -> usize {
        match value {
            Value::Rows | Value::Ones => 0,
            Value::Node(node) => self.graph.nodes[node].layer,
        }
    }

    /// Completes the model. The last node is its output.
    pub fn finish(self) -> Graph {
        let Graph { width, nodes, .. } = &self.graph;
        let output = nodes.last().map(|node| node.width);
        assert_eq!(output, Some(*width), "a model maps rows to rows of its width");
        let is_used = |i| nodes.iter().any(|node| node.inputs.contains(&Value::Node(i)));
        assert!((0..nodes.len() - 1).all(is_used), "a node without a path to the output");
        self.graph
    }
}
