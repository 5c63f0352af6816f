//! Gradients of a memory model: the loss of rows and its gradient as thin factors, by one pass forward and one back over the
//! model's operators.
//!
//! For each linear map, `g = Aᵀ B` over the rows of a chunk, with A (rows, in) its input rows and B (rows, out) the
//! cotangents of its products. Both are kept for a block; all other rows exist for one group only.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, CowArray, Ix2, concatenate, s};
use rayon::prelude::*;

use crate::memory::Loss;
use crate::memory::graph::{Graph, Node, NodeKind, Value};
use crate::memory::operators::Work;
use crate::packed::Packed;
use crate::real::Real;
use crate::simd::vectorised;

/// The weights at which gradients are taken, in column panels.
#[derive(Clone, Debug)]
pub struct GradientPoint<T> {
    /// Weights of each node of the model that is a linear map.
    linears: Vec<Option<LinearWeights<T>>>,
}

/// Weights of one linear map.
#[derive(Clone, Debug)]
struct LinearWeights<T> {
    /// (in, out), side by side.
    weights: Packed<T>,
    /// (out, in), where the cotangent of the input is needed.
    transposed: Option<Packed<T>>,
}

impl<T: Real> GradientPoint<T> {
    /// Prepares weights, given as one slice in file order.
    pub fn new(graph: &Graph, weights: &[T]) -> Self {
        let linear = |node: &Node| {
            side_by_side(graph, node, weights).map(|matrix| LinearWeights {
                weights: Packed::new(matrix.view()),
                transposed: graph.is_learned(node.inputs[0]).then(|| Packed::new(matrix.t())),
            })
        };
        Self { linears: graph.nodes.iter().map(linear).collect() }
    }

    /// Replaces the weights.
    pub fn assign(&mut self, graph: &Graph, weights: &[T]) {
        self.linears.par_iter_mut().zip(&graph.nodes).for_each(|(linear, node)| {
            let (Some(linear), Some(matrix)) = (linear, side_by_side(graph, node, weights)) else { return };
            linear.weights.assign(matrix.view());
            if let Some(transposed) = &mut linear.transposed {
                transposed.assign(matrix.t());
            }
        });
    }

    /// Returns the size in bytes.
    pub fn bytes(&self) -> usize {
        let both = |LinearWeights { weights, transposed }: &LinearWeights<T>| {
            weights.bytes() + transposed.as_ref().map_or(0, Packed::bytes)
        };
        self.linears.iter().flatten().map(both).sum()
    }
}

/// Returns the weights (in, out) of a linear map, side by side; `None` for other nodes.
fn side_by_side<'w, T: Real>(graph: &Graph, node: &Node, weights: &'w [T]) -> Option<CowArray<'w, T, Ix2>> {
    let NodeKind::Linear(of) = &node.kind else { return None };
    let places = graph.places();
    let matrix = |p: usize| {
        let shape = (graph.weights[p].rows, graph.weights[p].cols);
        ArrayView2::from_shape(shape, &weights[places[p].clone()]).expect("rows × cols elements")
    };
    let matrices: Vec<_> = of.clone().map(matrix).collect();
    Some(match matrices[..] {
        [matrix] => matrix.into(),
        _ => concatenate(Axis(1), &matrices).expect("weights of one input").into(),
    })
}

/// The thin factors of gradients, by node. The matrices are owned, or views of some of their rows.
#[derive(Clone, Debug)]
pub struct Factors<M> {
    /// Output rows of each node that is the input of a linear map: factor A.
    pub inputs: Vec<Option<M>>,
    /// Cotangents of each linear map's products: factor B.
    pub cotangents: Vec<Option<M>>,
}

impl<T: Real> Factors<Array2<T>> {
    /// Allocates factors for a number of rows of a model.
    pub fn new(graph: &Graph, rows: usize) -> Self {
        let zeros = |i: usize, exists: bool| exists.then(|| Array2::zeros((rows, graph.nodes[i].width)));
        Self {
            inputs: (0..graph.nodes.len()).map(|i| zeros(i, is_factor(graph, i))).collect(),
            cotangents: (0..graph.nodes.len()).map(|i| zeros(i, is_linear(graph, i))).collect(),
        }
    }

    /// Returns the columns of all matrices.
    pub fn columns(graph: &Graph) -> usize {
        let columns = |(i, node): (usize, &Node)| {
            node.width * (usize::from(is_factor(graph, i)) + usize::from(is_linear(graph, i)))
        };
        graph.nodes.iter().enumerate().map(columns).sum()
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.inputs.iter().chain(&self.cotangents).flatten().map(Array2::len).sum()
    }

    /// Returns whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the rows of a range in views of `group` rows each; the last may have fewer.
    pub fn groups(&mut self, rows: Range<usize>, group: usize) -> Vec<Factors<ArrayViewMut2<'_, T>>> {
        let nodes = self.inputs.len();
        let none = || std::iter::repeat_with(|| None).take(nodes).collect();
        let mut groups: Vec<_> =
            (0..rows.len().div_ceil(group)).map(|_| Factors { inputs: none(), cotangents: none() }).collect();
        let Self { inputs, cotangents } = self;
        for (i, (input, cotangent)) in inputs.iter_mut().zip(cotangents).enumerate() {
            for (groups, part) in groups.iter_mut().zip(parts(input, &rows, group)) {
                groups.inputs[i] = Some(part);
            }
            for (groups, part) in groups.iter_mut().zip(parts(cotangent, &rows, group)) {
                groups.cotangents[i] = Some(part);
            }
        }
        groups
    }
}

/// Yields a range of a matrix's rows in groups.
fn parts<'a, T>(
    matrix: &'a mut Option<Array2<T>>,
    rows: &Range<usize>,
    group: usize,
) -> impl Iterator<Item = ArrayViewMut2<'a, T>> {
    let mut rest = matrix.as_mut().map(|matrix| matrix.slice_mut(s![rows.clone(), ..]));
    std::iter::from_fn(move || {
        let all = rest.take()?;
        let rows = group.min(all.nrows());
        let (part, later) = all.split_at(Axis(0), rows);
        rest = (later.nrows() > 0).then_some(later);
        Some(part)
    })
}

/// Whether a node's output is the factor A of a linear map.
fn is_factor(graph: &Graph, node: usize) -> bool {
    let reads =
        |other: &Node| matches!(other.kind, NodeKind::Linear(_)) && other.inputs[0] == Value::Node(node);
    graph.nodes.iter().any(reads)
}

fn is_linear(graph: &Graph, node: usize) -> bool {
    matches!(graph.nodes[node].kind, NodeKind::Linear(_))
}

/// Rows of a group that no factor keeps. One task reuses them from call to call.
#[derive(Debug)]
pub struct GradientScratch<T> {
    /// Output of each node that is neither a factor nor the model's output.
    values: Vec<Option<Array2<T>>>,
    /// Cotangent of each operator's output.
    cotangents: Vec<Option<Array2<T>>>,
}

impl<T: Real> GradientScratch<T> {
    /// Allocates space for up to `rows` rows.
    pub fn new(graph: &Graph, rows: usize) -> Self {
        let nodes = 0..graph.nodes.len();
        let zeros = |i: usize, exists: bool| exists.then(|| Array2::zeros((rows, graph.nodes[i].width)));
        let kept = |i: usize| is_factor(graph, i) || i == graph.output();
        Self {
            values: nodes.clone().map(|i| zeros(i, !kept(i))).collect(),
            cotangents: nodes.map(|i| zeros(i, !is_linear(graph, i))).collect(),
        }
    }

    /// Returns the numbers that such buffers hold, per row.
    pub fn numbers_per_row(graph: &Graph) -> usize {
        let nodes = graph.nodes.iter().enumerate();
        let width = |(i, node): (usize, &Node)| {
            let value = !is_factor(graph, i) && i != graph.output();
            node.width * (usize::from(value) + usize::from(!is_linear(graph, i)))
        };
        nodes.map(width).sum()
    }
}

/// Rows to store, in whole chunks of `chunk` rows, of which the last may be shorter.
#[derive(Clone, Copy)]
pub struct Examples<'a, T> {
    /// K (rows, d)
    pub keys: ArrayView2<'a, T>,
    /// V (rows, d)
    pub values: ArrayView2<'a, T>,
    /// Weight of each row's loss, where rows have one: its learning rate.
    pub weights: Option<&'a [T]>,
    /// Rows of a chunk.
    pub chunk: usize,
}

/// Computes loss and gradient of rows at a point. `losses` (one per row) receives ℓ, without the weights of rows.
pub fn loss_and_gradient<T: Real>(
    (graph, loss): (&Graph, Loss),
    point: &GradientPoint<T>,
    examples: Examples<'_, T>,
    losses: &mut [f64],
    factors: Factors<ArrayViewMut2<T>>,
    (scratch, works): (&mut GradientScratch<T>, &mut [Option<Work<T>>]),
) {
    let rows = examples.keys.nrows();
    let one = Array2::ones((1, 1));
    let ones = one.broadcast((rows, 1)).expect("one column");
    let mut pass = Pass {
        graph,
        point,
        chunk: examples.chunk,
        keys: examples.keys,
        ones,
        values: places(&mut scratch.values, factors.inputs, rows),
        cotangents: places(&mut scratch.cotangents, factors.cotangents, rows),
        reached: vec![false; graph.nodes.len()],
        works,
    };
    let last = graph.output();
    // The output is turned into its cotangent in place.
    pass.values[last] = pass.cotangents[last].take();
    for i in 0..graph.nodes.len() {
        pass.forward(i);
    }
    let mut predicted = pass.values[last].take().expect("the output");
    replace_by_gradient(loss, &examples, losses, &mut predicted);
    pass.cotangents[last] = Some(predicted);
    pass.reached[last] = true;
    for i in (0..graph.nodes.len()).rev() {
        pass.backward(i);
    }
}

/// Returns the place of each node's rows: a factor, or scratch.
fn places<'a, T>(
    scratch: &'a mut [Option<Array2<T>>],
    factors: Vec<Option<ArrayViewMut2<'a, T>>>,
    rows: usize,
) -> Vec<Option<ArrayViewMut2<'a, T>>> {
    let place = |(scratch, factor): (&'a mut Option<Array2<T>>, Option<ArrayViewMut2<'a, T>>)| {
        factor.or_else(|| scratch.as_mut().map(|scratch| scratch.slice_mut(s![..rows, ..])))
    };
    scratch.iter_mut().zip(factors).map(place).collect()
}

/// Computes the loss of each row, and replaces predicted rows by the gradient in them.
fn replace_by_gradient<T: Real>(
    loss: Loss,
    examples: &Examples<'_, T>,
    losses: &mut [f64],
    predicted: &mut ArrayViewMut2<'_, T>,
) {
    let Examples { values: targets, weights, .. } = *examples;
    let divisor = loss.divisor(targets.ncols());
    vectorised(
        #[inline(always)]
        || {
            let rows = losses.iter_mut().zip(predicted.rows_mut()).zip(targets.rows()).enumerate();
            for (r, ((of_row, mut predicted), target)) in rows {
                let predicted = predicted.as_slice_mut().expect("contiguous rows");
                let target = target.to_slice().expect("contiguous rows");
                *of_row = loss.sum(predicted, target) / divisor;
                loss.gradient(predicted, target, weights.map(|weights| weights[r]));
            }
        },
    );
}

/// A pass forward and back over a model's nodes.
struct Pass<'a, T: Real> {
    graph: &'a Graph,
    point: &'a GradientPoint<T>,
    chunk: usize,
    keys: ArrayView2<'a, T>,
    ones: ArrayView2<'a, T>,
    /// Output rows of each node, and their cotangents.
    values: Vec<Option<ArrayViewMut2<'a, T>>>,
    cotangents: Vec<Option<ArrayViewMut2<'a, T>>>,
    /// Whether the cotangent of a node has been written.
    reached: Vec<bool>,
    works: &'a mut [Option<Work<T>>],
}

impl<T: Real> Pass<'_, T> {
    /// Computes the output of a node.
    fn forward(&mut self, i: usize) {
        let node = &self.graph.nodes[i];
        let mut output = self.values[i].take().expect("every node has a place");
        let inputs: Vec<_> =
            node.inputs.iter().map(|&input| view(input, self.keys, self.ones, &self.values)).collect();
        match &node.kind {
            NodeKind::Linear(_) => {
                let of_node = self.point.linears[i].as_ref().expect("weights of a linear map");
                of_node.weights.multiply(inputs[0], output.view_mut());
            }
            NodeKind::Operator(op) => {
                let work = self.works[i].as_mut().expect("buffers of an operator");
                op.operator().forward_for_vjp(self.chunk, &inputs, output.view_mut(), work);
            }
        }
        self.values[i] = Some(output);
    }

    /// Passes the cotangent of a node to its inputs. A first contribution is written in place; later ones are added.
    fn backward(&mut self, i: usize) {
        let (graph, node) = (self.graph, &self.graph.nodes[i]);
        if !self.reached[i] {
            // Without a path to the output nothing is learned there.
            if let Some(cotangent) = &mut self.cotangents[i] {
                cotangent.fill(T::zero());
            }
            return;
        }
        let cotangent = self.cotangents[i].take().expect("every node has a place");
        let rows = cotangent.nrows();
        let of_input = |&input: &Value| match input {
            Value::Node(j) if graph.nodes[j].learned => Some(j),
            _ => None,
        };
        let inputs: Vec<_> = node.inputs.iter().map(of_input).collect();
        let written = |j: &usize| self.reached[*j];
        let added = |j: &Option<usize>| {
            let j = j.filter(written)?;
            Some(Array2::zeros((rows, graph.nodes[j].width)))
        };
        let mut later: Vec<_> = inputs.iter().map(added).collect();
        let mut first: Vec<_> = inputs
            .iter()
            .map(|j| j.filter(|j| !self.reached[*j]).and_then(|j| self.cotangents[j].take()))
            .collect();
        let mut d_inputs: Vec<_> = first
            .iter_mut()
            .zip(&mut later)
            .map(|(first, later)| match (first, later) {
                (Some(first), _) => Some(first.view_mut()),
                (None, Some(later)) => Some(later.view_mut()),
                (None, None) => None,
            })
            .collect();
        match &node.kind {
            NodeKind::Linear(_) => {
                if let Some(d_input) = &mut d_inputs[0] {
                    let of_node = self.point.linears[i].as_ref().expect("weights of a linear map");
                    let transposed = of_node.transposed.as_ref().expect("transposed where a gradient passes");
                    transposed.multiply(cotangent.view(), d_input.view_mut());
                }
            }
            NodeKind::Operator(op) => {
                let inputs: Vec<_> = node
                    .inputs
                    .iter()
                    .map(|&input| view(input, self.keys, self.ones, &self.values))
                    .collect();
                let work = self.works[i].as_mut().expect("buffers of an operator");
                op.operator().vjp(self.chunk, &inputs, cotangent.view(), &mut d_inputs, work);
            }
        }
        for (j, (first, later)) in inputs.into_iter().zip(first.into_iter().zip(later)) {
            let Some(j) = j else { continue };
            if let Some(later) = later {
                *self.cotangents[j].as_mut().expect("written before") += &later;
            } else {
                self.cotangents[j] = first;
                self.reached[j] = true;
            }
        }
        self.cotangents[i] = Some(cotangent);
    }
}

/// Returns the rows of a value.
fn view<'a, T>(
    value: Value,
    rows: ArrayView2<'a, T>,
    ones: ArrayView2<'a, T>,
    nodes: &'a [Option<ArrayViewMut2<'_, T>>],
) -> ArrayView2<'a, T> {
    match value {
        Value::Rows => rows,
        Value::Ones => ones,
        Value::Node(node) => nodes[node].as_ref().expect("evaluated before").view(),
    }
}
