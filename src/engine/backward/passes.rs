//! Passes over a memory model's nodes with plain matrices, for the outer gradient, forward and back. `second` has those back through
//! the pass back of a chunk's gradient.
//!
//! Weights are in order of the linear maps, each with its matrices side by side: (in, out) is one matrix and one product.

use std::ops::Range;

use ndarray::{ArrayView2, ArrayViewMut2, s};

use super::block::{Block, divided};
use super::few_rows::{self, are_few};
use super::head::add;
use super::node_rows::{NodeRows, Passage, Values};
use crate::memory::Loss;
use crate::memory::graph::{Graph, Node, NodeKind, Value};
use crate::memory::operators::Op;
use crate::real::Real;
use crate::simd::vectorised;
use crate::small_matmul::{multiply, multiply_add};

/// A memory model, with the place of the weights of each linear map in the slice of all of them.
#[derive(Debug)]
pub struct Passes {
    pub graph: Graph,
    /// Places by node.
    places: Vec<Option<Range<usize>>>,
    /// All weights in blocks, in order.
    pub blocks: Vec<Block>,
    /// Rows of a chunk.
    pub chunk: usize,
}

/// Most shares of a linear map's blocks. Each has its share of A S̄, which is as wide as the map: in 12 shares, `384, 1024, 64, 1` took 20 MB
/// more with two segments at work. The number cannot depend on threads, or sums would. So at most 8 threads go through the maps of one
/// head at once; more have been measured with more heads only.
const MAX_SHARES: usize = 4;

/// Factors of the gradient of a linear map's weights, unless it is zero: its input rows and the cotangents of its products.
pub type Factors<'a, T> = Option<[ArrayView2<'a, T>; 2]>;

/// Returns the sum of the weights of a linear map, in the space for it.
fn summed<'w, T: Real>([a, b]: [ArrayView2<'_, T>; 2], space: &'w mut Vec<T>) -> ArrayView2<'w, T> {
    space.clear();
    space.extend_from_slice(a.to_slice().expect("standard layout"));
    add(space, b.to_slice().expect("standard layout"));
    ArrayView2::from_shape(a.dim(), space).expect("as many numbers")
}

/// Weights of all linear maps.
#[derive(Clone, Copy)]
pub enum Weights<'w, T> {
    Plain(&'w [T]),
    /// The weights, and each map's in columns: (out, in). Products back through them read these where they lie.
    Transposed([&'w [T]; 2]),
    /// The sum of two.
    Sum([&'w [T]; 2]),
}

impl<'w, T> Weights<'w, T> {
    /// Returns the weights of a point, which are never a sum.
    pub fn plain(self) -> &'w [T] {
        match self {
            Self::Plain(weights) | Self::Transposed([weights, _]) => weights,
            Self::Sum(_) => unreachable!("a point of gradients"),
        }
    }
}

/// Examples that are stored: keys, values and, where rows have one, the weight of each row's loss.
#[derive(Clone, Copy)]
pub struct Examples<'a, T> {
    pub keys: ArrayView2<'a, T>,
    pub values: ArrayView2<'a, T>,
    pub rates: Option<&'a [T]>,
}

impl Passes {
    pub fn new(graph: Graph, chunk: usize) -> Self {
        let mut start = 0;
        let mut place = |node: &Node| {
            matches!(node.kind, NodeKind::Linear(_)).then(|| {
                let end = start + graph.width_of(node.inputs[0]) * node.width;
                std::mem::replace(&mut start, end)..end
            })
        };
        let places: Vec<Option<Range<usize>>> = graph.nodes.iter().map(&mut place).collect();
        let mut blocks = Vec::new();
        for (map, place) in places.iter().enumerate().filter_map(|(i, place)| Some((i, place.as_ref()?))) {
            blocks.extend(divided(map, place, graph.nodes[map].width, chunk));
        }
        Self { graph, places, blocks, chunk }
    }

    /// Returns the size of the largest block.
    pub fn largest_block(&self) -> usize {
        self.blocks.iter().map(|block| block.place.len()).max().unwrap_or(1)
    }

    /// Yields the blocks of a linear map in at most `MAX_SHARES` shares, one for each task.
    pub fn shares_of(&self, map: usize) -> impl Iterator<Item = &[Block]> {
        let first = self.blocks.partition_point(|block| block.map < map);
        let blocks = &self.blocks[first..];
        let blocks = &blocks[..blocks.partition_point(|block| block.map == map)];
        blocks.chunks(blocks.len().div_ceil(MAX_SHARES).max(1))
    }

    /// Returns the rows of the weights in the largest share of a map's blocks.
    pub fn share_rows(&self, map: usize) -> usize {
        let rows = |blocks: &[Block]| blocks.iter().map(|block| block.rows.len()).sum();
        self.shares_of(map).map(rows).max().unwrap_or(0)
    }

    /// Returns weights in file order in the order of the linear maps.
    pub fn arranged<T: Real>(&self, weights: &[T]) -> Vec<T> {
        let mut arranged = vec![T::zero(); weights.len()];
        let in_file = self.graph.places();
        for (i, node) in self.graph.nodes.iter().enumerate() {
            for (p, columns) in self.columns(node) {
                let shape = (self.graph.weights[p].rows, columns.len());
                let weight = ArrayView2::from_shape(shape, &weights[in_file[p].clone()]);
                let mut map = self.map_mut(&mut arranged, i);
                map.slice_mut(s![.., columns]).assign(&weight.expect("rows × cols elements"));
            }
        }
        arranged
    }

    /// Returns weights with each map's in columns.
    pub fn transposed<T: Real>(&self, weights: &[T]) -> Vec<T> {
        let mut transposed = Vec::with_capacity(weights.len());
        for i in self.linears() {
            transposed.extend(self.map(weights, i).t());
        }
        transposed
    }

    /// Yields each weight, in the order of the linear maps: its index in file order and its matrix.
    pub fn matrices<'w, T: Real>(
        &'w self,
        weights: &'w [T],
    ) -> impl Iterator<Item = (usize, ArrayView2<'w, T>)> + 'w {
        self.graph.nodes.iter().enumerate().flat_map(move |(i, node)| {
            let matrix = move |columns| self.map(weights, i).slice_move(s![.., columns]);
            self.columns(node).map(move |(p, columns)| (p, matrix(columns)))
        })
    }

    /// Yields the weights of a linear map, each with its columns of the product. An operator has none.
    fn columns(&self, node: &Node) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let of = match &node.kind {
            NodeKind::Linear(of) => of.clone(),
            NodeKind::Operator(_) => 0..0,
        };
        of.scan(0, |start, p| {
            let columns = *start..*start + self.graph.weights[p].cols;
            *start = columns.end;
            Some((p, columns))
        })
    }

    /// Returns the place of a linear map's weights and their shape (in, out).
    pub fn place(&self, i: usize) -> (Range<usize>, (usize, usize)) {
        let node = &self.graph.nodes[i];
        let place = self.places[i].clone().expect("weights of a linear map");
        (place, (self.graph.width_of(node.inputs[0]), node.width))
    }

    pub fn map<'w, T>(&self, weights: &'w [T], i: usize) -> ArrayView2<'w, T> {
        let (place, shape) = self.place(i);
        ArrayView2::from_shape(shape, &weights[place]).expect("in × out elements")
    }

    fn map_mut<'w, T>(&self, weights: &'w mut [T], i: usize) -> ArrayViewMut2<'w, T> {
        let (place, shape) = self.place(i);
        ArrayViewMut2::from_shape(shape, &mut weights[place]).expect("in × out elements")
    }

    /// Evaluates the model on rows of whole chunks, of which the last may be shorter. `space` is for the sum of two weights.
    pub fn forward<T: Real>(
        &self,
        weights: Weights<'_, T>,
        rows: ArrayView2<T>,
        (values, space): (&mut Values<T>, &mut Vec<T>),
    ) {
        values.start(rows.nrows());
        for (i, node) in self.graph.nodes.iter().enumerate() {
            values.compute(i, |values, output, work| match &node.kind {
                NodeKind::Linear(_) => {
                    let input = values.of(node.inputs[0], rows);
                    match weights {
                        Weights::Plain(weights) | Weights::Transposed([weights, _]) => {
                            multiply(output, input, self.map(weights, i));
                        }
                        Weights::Sum(sum) => {
                            let of_map = sum.map(|weights| self.map(weights, i));
                            if are_few(input.nrows()) {
                                few_rows::multiply(output, input, of_map);
                            } else {
                                multiply(output, input, summed(of_map, space));
                            }
                        }
                    }
                }
                NodeKind::Operator(op) => {
                    let inputs = values.inputs(&node.inputs, rows);
                    let work = work.expect("buffers of an operator");
                    let inputs = &inputs[..node.inputs.len()];
                    op.operator().forward_for_vjp(self.chunk, inputs, output, work);
                }
            });
        }
    }

    /// Passes cotangents of node outputs back. Only values that `wanted` selects receive one.
    fn backward<T: Real>(
        &self,
        weights: Weights<'_, T>,
        rows: ArrayView2<T>,
        (values, cotangents, space): (&mut Values<T>, &mut NodeRows<T>, &mut Vec<T>),
        wanted: impl Fn(Value) -> bool,
    ) {
        for (i, node) in self.graph.nodes.iter().enumerate().rev() {
            if let NodeKind::Operator(op) = node.kind {
                self.operator_vjp((i, op), rows, (values, &mut *cotangents), &wanted);
                continue;
            }
            cotangents.with(i, |cotangents, cotangent| {
                let input = node.inputs[0];
                let reached = wanted(input).then(|| cotangents.reach(input)).flatten();
                let Some((to, keep)) = reached else { return };
                match weights {
                    Weights::Plain(weights) => {
                        let transposed = self.map(weights, i).reversed_axes();
                        multiply_add(to, keep, T::one(), cotangent, transposed);
                    }
                    Weights::Transposed([_, transposed]) => {
                        let (place, (rows, columns)) = self.place(i);
                        let view = ArrayView2::from_shape((columns, rows), &transposed[place]);
                        let transposed = view.expect("in × out elements");
                        multiply_add(to, keep, T::one(), cotangent, transposed);
                    }
                    Weights::Sum(sum) => {
                        let of_map = sum.map(|weights| self.map(weights, i));
                        if are_few(cotangent.nrows()) {
                            few_rows::multiply_transposed(to, keep, cotangent, of_map);
                        } else {
                            let transposed = summed(of_map, space).reversed_axes();
                            multiply_add(to, keep, T::one(), cotangent, transposed);
                        }
                    }
                }
            });
        }
    }

    /// Passes the cotangent of the output of the last [`forward`](Self::forward) back to its input rows, and leaves the
    /// gradients of the weights in `passage` as their factors.
    pub fn vjp<T: Real>(
        &self,
        weights: Weights<'_, T>,
        rows: ArrayView2<T>,
        cotangent: ArrayView2<T>,
        (passage, space): (&mut Passage<T>, &mut Vec<T>),
        d_rows: ArrayViewMut2<T>,
    ) {
        self.start_vjp(passage, cotangent);
        let Passage { values, cotangents } = passage;
        self.outer(weights, rows, (values, cotangents, space), d_rows);
    }

    /// Starts a pass back with the cotangent of the output.
    pub fn start_vjp<T: Real>(&self, passage: &mut Passage<T>, cotangent: ArrayView2<T>) {
        let Passage { values, cotangents } = passage;
        cotangents.start(values.count());
        cotangents.reach(Value::Node(self.graph.output())).expect("a node").0.assign(&cotangent);
    }

    /// Passes the cotangents of some nodes back, which are operators.
    pub fn operators_vjp<T: Real>(&self, nodes: Range<usize>, rows: ArrayView2<T>, passage: &mut Passage<T>) {
        let Passage { values, cotangents } = passage;
        for i in nodes.rev() {
            let NodeKind::Operator(op) = self.graph.nodes[i].kind else { unreachable!("a linear map") };
            self.operator_vjp((i, op), rows, (values, &mut *cotangents), |value| value != Value::Ones);
        }
    }

    /// Passes the cotangent of an operator's output back to its inputs.
    fn operator_vjp<T: Real>(
        &self,
        (i, op): (usize, Op),
        rows: ArrayView2<T>,
        (values, cotangents): (&mut Values<T>, &mut NodeRows<T>),
        wanted: impl Fn(Value) -> bool,
    ) {
        let inputs = &self.graph.nodes[i].inputs;
        let mut work = values.works[i].take();
        cotangents.with(i, |cotangents, cotangent| {
            let rows = values.inputs(inputs, rows);
            let work = work.as_mut().expect("buffers of an operator");
            cotangents.receive(inputs, wanted, |places| {
                op.operator().vjp(self.chunk, &rows[..inputs.len()], cotangent, places, work);
            });
        });
        values.works[i] = work;
    }

    /// Writes the gradients of all weights after [`vjp`](Self::vjp).
    pub fn weight_gradients<T: Real>(&self, passage: &Passage<T>, rows: ArrayView2<T>, d_weights: &mut [T]) {
        for i in self.linears() {
            let mut to = self.map_mut(d_weights, i);
            match self.factors(passage, rows, i) {
                Some([input, cotangent]) => multiply(to, input.reversed_axes(), cotangent),
                None => to.fill(T::zero()),
            }
        }
    }

    /// Passes cotangents back to the input rows.
    pub fn outer<T: Real>(
        &self,
        weights: Weights<'_, T>,
        rows: ArrayView2<T>,
        (values, cotangents, space): (&mut Values<T>, &mut NodeRows<T>, &mut Vec<T>),
        mut d_rows: ArrayViewMut2<T>,
    ) {
        let passage = (values, &mut *cotangents, space);
        self.backward(weights, rows, passage, |value| value != Value::Ones);
        match cotangents.of(Value::Rows) {
            Some(cotangent) => d_rows.assign(&cotangent),
            None => d_rows.fill(T::zero()),
        }
    }

    /// Takes the gradient of rows of whole chunks at `point`, and leaves it in `passage` as its factors.
    pub fn inner<T: Real>(
        &self,
        loss: Loss,
        point: Weights<'_, T>,
        examples: Examples<'_, T>,
        passage: &mut Passage<T>,
    ) {
        let Passage { values, cotangents } = passage;
        // The weights at a point are whole.
        let mut no_space = Vec::new();
        self.forward(point, examples.keys, (values, &mut no_space));
        cotangents.start(values.count());
        let (mut predicted, _) = cotangents.reach(Value::Node(self.graph.output())).expect("a node");
        predicted.assign(&values.output());
        vectorised(
            #[inline(always)]
            || {
                let rows = predicted.rows_mut().into_iter().zip(examples.values.rows()).enumerate();
                for (r, (mut predicted, target)) in rows {
                    let predicted = predicted.as_slice_mut().expect("contiguous rows");
                    let target = target.to_slice().expect("contiguous rows");
                    loss.gradient(predicted, target, examples.rates.map(|rates| rates[r]));
                }
            },
        );
        let wanted = |value| self.graph.is_learned(value);
        self.backward(point, examples.keys, (values, cotangents, &mut no_space), wanted);
    }

    /// Returns the numbers in the factors of a row's gradients.
    pub fn numbers_of_factors(&self) -> usize {
        let numbers =
            |i: usize| self.graph.width_of(self.graph.nodes[i].inputs[0]) + self.graph.nodes[i].width;
        self.linears().map(numbers).sum()
    }

    /// Yields the linear maps.
    pub fn linears(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.places.len()).filter(|&i| self.places[i].is_some())
    }

    /// Returns the factors A and B of the gradients of a linear map's weights, after a pass back. Without a path from there to
    /// the output there are none.
    pub fn factors<'a, T: Real>(
        &self,
        passage: &'a Passage<T>,
        keys: ArrayView2<'a, T>,
        i: usize,
    ) -> Factors<'a, T> {
        let b = passage.cotangents.of(Value::Node(i))?;
        Some([passage.values.of(self.graph.nodes[i].inputs[0], keys), b])
    }
}
