//! Passes over a memory model's nodes with plain matrices, for the outer gradient: forward, back, and back through the pass
//! back.
//!
//! The gradient of a chunk is a function of keys, values, rates of rows and weights: a pass forward over the nodes, the
//! loss, and a pass back that leaves the thin factors A (rows that a linear map multiplies) and B (cotangents of its
//! products). Its own reverse mode goes the other way round. First over the nodes in order, with the cotangents of the
//! factors B: the tangent of a node is the cotangent of its cotangent. Then through the loss. Then back over the nodes,
//! with the cotangents of the factors A and those that the operators' second derivatives leave.
//!
//! Weights are in order of the linear maps, each with its matrices side by side: (in, out) is one matrix and one product.

use std::ops::Range;

use ndarray::{ArrayView1, ArrayView2, ArrayViewMut2, s};

use super::few_rows::{self, are_few};
use super::head::add;
use super::node_rows::{NodeRows, Passage, Second, Values};
use crate::memory::Loss;
use crate::memory::graph::{Graph, MAX_INPUTS, Node, NodeKind, Value};
use crate::memory::operators::{self, Op, SecondResults};
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

/// Some rows of the weights of a linear map, which one task takes through the recurrences.
#[derive(Clone, Debug)]
pub struct Block {
    /// Node of the map.
    pub map: usize,
    pub rows: Range<usize>,
    /// Place in the slice of all weights.
    pub place: Range<usize>,
}

/// Elements of a block where chunks are short.
const BLOCK_ELEMENTS: usize = 2048;
/// Fewest rows of a block. The partial products of all blocks with a chunk's rows are then at most twice as many numbers as a state.
const MIN_BLOCK_ROWS: usize = 4;
/// Rows of a block where chunks have many rows, or half of a chunk's if they are more, and fewer where the rows B of a chunk fit L1.
/// With one or two rows of 1,152 elements a block, products loaded B for little work, and gradients took half as long again. With 16
/// rows instead of 32, `64, 1024, 16, 1` took a twentieth less time, and `384, 1024, 64, 1` a seventh more.
const LONG_BLOCK_ROWS: usize = 32;
const NEAR_BLOCK_ROWS: usize = 16;
/// Most numbers of such rows B: 16 KB of f32.
const NEAR_NUMBERS: usize = 4096;
/// Rows of a chunk that are many: the products are then most of the work.
const MANY_ROWS: usize = 8;

/// Factors of the gradient of a linear map's weights, unless it is zero: its input rows and the cotangents of its products.
pub type Factors<'a, T> = Option<[ArrayView2<'a, T>; 2]>;

/// Returns the sum of the weights of a linear map, in the space for it.
fn summed<'w, T: Real>([a, b]: [ArrayView2<'_, T>; 2], space: &'w mut Vec<T>) -> ArrayView2<'w, T> {
    space.clear();
    space.extend_from_slice(a.to_slice().expect("standard layout"));
    add(space, b.to_slice().expect("standard layout"));
    ArrayView2::from_shape(a.dim(), space).expect("as many numbers")
}

/// Returns the numbers of a row.
fn contiguous<T>(row: ArrayView1<'_, T>) -> &[T] {
    row.to_slice().expect("contiguous rows")
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
    /// Returns the weights, which are no sum.
    fn plain(self) -> &'w [T] {
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

/// Places for the cotangents of [`Examples`].
pub struct ExampleCotangents<'a, T> {
    pub keys: ArrayViewMut2<'a, T>,
    pub values: ArrayViewMut2<'a, T>,
    pub rates: Option<&'a mut [T]>,
}

impl Block {
    /// Computes Aᵀ B in these rows of the weights, from some rows of A and B, and adds it to `to` if `keep`.
    pub fn product<T: Real>(&self, to: &mut [T], keep: bool, [a, b]: [ArrayView2<T>; 2], rows: Range<usize>) {
        let a = a.slice_move(s![rows.clone(), self.rows.clone()]);
        let b = b.slice_move(s![rows, ..]);
        let to = ArrayViewMut2::from_shape((a.ncols(), b.ncols()), to).expect("rows of the map");
        multiply_add(to, keep, T::one(), a.reversed_axes(), b);
    }
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
            let width = graph.nodes[map].width;
            let min_rows = if chunk < MANY_ROWS {
                MIN_BLOCK_ROWS
            } else if chunk * width <= NEAR_NUMBERS {
                NEAR_BLOCK_ROWS.max(chunk / 2)
            } else {
                LONG_BLOCK_ROWS.max(chunk / 2)
            };
            let rows = place.len() / width;
            let count = rows.div_ceil((BLOCK_ELEMENTS / width).max(min_rows));
            // Blocks of about the same size, and mostly an even number of them, for threads to share.
            let count = if count > 1 { count.next_multiple_of(2) } else { count };
            let each = rows.div_ceil(count);
            blocks.extend((0..rows).step_by(each).map(|first| {
                let rows = first..rows.min(first + each);
                let place = place.start + rows.start * width..place.start + rows.end * width;
                Block { map, rows, place }
            }));
        }
        Self { graph, places, blocks, chunk }
    }

    /// Returns the size of the largest block.
    pub fn largest_block(&self) -> usize {
        self.blocks.iter().map(|block| block.place.len()).max().unwrap_or(1)
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

    fn map<'w, T>(&self, weights: &'w [T], i: usize) -> ArrayView2<'w, T> {
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
    fn outer<T: Real>(
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

    /// Passes the cotangents of the factors of the chunks' gradients, in `second`, back to keys, values and rates of rows, and leaves
    /// the factors of that of the point in `passage` and `second`.
    pub fn inner_vjp<T: Real>(
        &self,
        (loss, point): (Loss, Weights<'_, T>),
        examples: Examples<'_, T>,
        (passage, second): (&mut Passage<T>, &mut Second<T>),
        mut to: ExampleCotangents<'_, T>,
    ) {
        self.tangents(point.plain(), examples.keys, passage, second);
        let Second { tangents, cotangents, .. } = second;
        let last = Value::Node(self.graph.output());
        let (mut d_output, _) = cotangents.reach(last).expect("a node");
        d_output.assign(&passage.values.output());
        let tangent = tangents.of(last);
        let tangent = tangent.expect("the output depends on weights");
        vectorised(
            #[inline(always)]
            || {
                for (r, mut d_output) in d_output.rows_mut().into_iter().enumerate() {
                    let of_rate = loss.gradient_vjp(
                        d_output.as_slice_mut().expect("contiguous rows"),
                        examples.values.row(r).to_slice().expect("contiguous rows"),
                        examples.rates.map(|rates| rates[r]),
                        tangent.row(r).to_slice().expect("contiguous rows"),
                        to.values.row_mut(r).as_slice_mut().expect("contiguous rows"),
                    );
                    if let Some(d_rates) = &mut to.rates {
                        d_rates[r] = T::from_f64(of_rate);
                    }
                }
            },
        );
        let passage = (&mut passage.values, cotangents, &mut Vec::new());
        self.outer(point, examples.keys, passage, to.keys);
    }

    /// Adds the cotangent of a block of the point, after [`inner_vjp`](Self::inner_vjp) of some rows: the gradients of a linear
    /// map in the pass over the nodes and in the one back.
    pub fn point_vjp<T: Real>(
        &self,
        keys: ArrayView2<T>,
        (passage, second): (&Passage<T>, &Second<T>),
        block: &Block,
        to: &mut [T],
    ) {
        let (input, output) = (self.graph.nodes[block.map].inputs[0], Value::Node(block.map));
        let tangents = second.tangents.of(input).zip(passage.cotangents.of(output));
        let values =
            second.cotangents.of(output).map(|cotangent| (passage.values.of(input, keys), cotangent));
        for (a, b) in tangents.into_iter().chain(values) {
            block.product(to, true, [a, b], 0..keys.nrows());
        }
    }

    /// Passes cotangents of the chunks' gradients back to their factors: those of B are the first tangents. The cotangent of a
    /// chunk's gradient is −θ S̄, with θ and S̄ from `steps`. Adds to `d_rates`, for each chunk, −⟨S̄, g⟩: the cotangent of its θ.
    pub fn factors_vjp<T: Real>(
        &self,
        keys: ArrayView2<T>,
        (passage, second): (&Passage<T>, &mut Second<T>),
        steps: &[(T, &[T])],
        d_rates: &mut [f64],
    ) {
        let chunk = |index: usize| s![index * self.chunk..((index + 1) * self.chunk).min(keys.nrows()), ..];
        for i in self.linears() {
            let Some([a, b]) = self.factors(passage, keys, i) else { continue };
            let input = self.graph.nodes[i].inputs[0];
            let (mut d_factor, _) = second.tangents.reach(Value::Node(i)).expect("a node");
            let mut d_input = second.cotangents.reach(input);
            for (index, (&(rate, s_bar), of_rate)) in steps.iter().zip(&mut *d_rates).enumerate() {
                let s_bar = self.map(s_bar, i);
                let [a, b] = [&a, &b].map(|factor| factor.slice(chunk(index)));
                let mut d_b = d_factor.slice_mut(chunk(index));
                multiply(d_b.view_mut(), a, s_bar);
                vectorised(
                    #[inline(always)]
                    || {
                        for (mut d_b, b) in d_b.rows_mut().into_iter().zip(b.rows()) {
                            let d_b = d_b.as_slice_mut().expect("contiguous rows");
                            *of_rate -= T::dot(d_b, b.to_slice().expect("contiguous rows")).to_f64();
                            for x in d_b {
                                *x = -*x * rate;
                            }
                        }
                    },
                );
                if let Some((d_input, keep)) = &mut d_input {
                    let d_input = d_input.slice_mut(chunk(index));
                    multiply_add(d_input, *keep, -rate, b, s_bar.reversed_axes());
                }
            }
        }
    }

    /// Passes cotangents of the chunks' gradients back to their factors at one linear map, from the products B S̄ᵀ and A S̄ of its rows, and
    /// to the `rates` θ of the chunks, as [`factors_vjp`](Self::factors_vjp) does.
    pub fn products_vjp<T: Real>(
        &self,
        map: usize,
        keys: ArrayView2<T>,
        (passage, second): (&Passage<T>, &mut Second<T>),
        [of_a, of_b]: [ArrayView2<'_, T>; 2],
        (rates, d_rates): (&[T], &mut [f64]),
    ) {
        let Some([_, b]) = self.factors(passage, keys, map) else { return };
        let (mut d_b, _) = second.tangents.reach(Value::Node(map)).expect("a node");
        vectorised(
            #[inline(always)]
            || {
                for (r, (mut d_b, (of_b, b))) in
                    d_b.rows_mut().into_iter().zip(of_b.rows().into_iter().zip(b.rows())).enumerate()
                {
                    let chunk = r / self.chunk;
                    let rate = rates[chunk];
                    d_rates[chunk] -= T::dot(contiguous(of_b), contiguous(b)).to_f64();
                    let d_b = d_b.as_slice_mut().expect("contiguous rows");
                    d_b.iter_mut().zip(contiguous(of_b)).for_each(|(d, &x)| *d = -x * rate);
                }
            },
        );
        let Some((mut d_a, keep)) = second.cotangents.reach(self.graph.nodes[map].inputs[0]) else { return };
        if !keep {
            d_a.fill(T::zero());
        }
        vectorised(
            #[inline(always)]
            || {
                for (r, (mut d_a, of_a)) in d_a.rows_mut().into_iter().zip(of_a.rows()).enumerate() {
                    let rate = rates[r / self.chunk];
                    let d_a = d_a.as_slice_mut().expect("contiguous rows");
                    d_a.iter_mut().zip(contiguous(of_a)).for_each(|(d, &x)| *d -= rate * x);
                }
            },
        );
    }

    /// Goes over the nodes in order with the cotangents of the factors B, and adds the cotangents of values from the operators' second derivatives.
    fn tangents<T: Real>(
        &self,
        point: &[T],
        keys: ArrayView2<T>,
        passage: &mut Passage<T>,
        second: &mut Second<T>,
    ) {
        let Passage { values, cotangents: of_first, .. } = passage;
        let Second { tangents, cotangents, .. } = second;
        for (i, node) in self.graph.nodes.iter().enumerate() {
            let Some(cotangent) = of_first.of(Value::Node(i)) else { continue };
            match &node.kind {
                NodeKind::Linear(_) => {
                    tangents.with_input(node.inputs[0], i, |of_input, to| {
                        multiply_add(to, true, T::one(), of_input, self.map(point, i));
                    });
                }
                NodeKind::Operator(op) => {
                    let mut work = values.works[i].take();
                    let inputs = values.inputs(&node.inputs, keys);
                    tangents.derive(i, &node.inputs, |of_inputs, tangent| {
                        cotangents.receive(
                            &node.inputs,
                            |value| value != Value::Ones,
                            |places| {
                                let given = operators::Second {
                                    chunk: self.chunk,
                                    inputs: &inputs[..node.inputs.len()],
                                    cotangent,
                                    tangents: of_inputs,
                                };
                                // Borrowed again, for as long as the tangent.
                                let mut places = places.iter_mut();
                                let mut d_inputs: [_; MAX_INPUTS] =
                                    std::array::from_fn(|_| Some(places.next()?.as_mut()?.view_mut()));
                                let d_inputs = &mut d_inputs[..node.inputs.len()];
                                let results = SecondResults { d_cotangent: tangent, d_inputs };
                                op.operator().vjp_of_vjp(&given, results, work.as_mut().expect("buffers"));
                            },
                        );
                    });
                    values.works[i] = work;
                }
            }
        }
    }
}
