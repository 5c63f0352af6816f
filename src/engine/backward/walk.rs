//! Passes over a memory model's nodes with plain matrices, for the outer gradient: forward, back, and back through the pass
//! back.
//!
//! The gradient of a chunk is a function of keys, values, rates of rows and weights: a pass forward over the nodes, the
//! loss, and a pass back that leaves the thin factors A (rows that a linear map multiplies) and B (cotangents of its
//! products). Its own reverse mode goes the other way round. First over the nodes in order, with the cotangents of the
//! factors B: the tangent of a node is the cotangent of its cotangent. Then through the loss. Then back over the nodes,
//! with the cotangents of the factors A and those that the operators' second derivatives leave.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, s};

use crate::matmul::{matmul, multiply_add};
use crate::memory::Loss;
use crate::memory::graph::{Graph, NodeKind, Value};
use crate::memory::operators::{Second, SecondResults, Work, buffers};
use crate::real::Real;
use crate::simd::vectorised;

/// Rows of each node, where there are any.
pub type NodeRows<T> = Vec<Option<Array2<T>>>;

/// A memory model, with the place of each weight in the slice of all of them.
#[derive(Debug)]
pub struct Walk {
    pub graph: Graph,
    pub places: Vec<Range<usize>>,
    /// Rows of a chunk.
    pub chunk: usize,
}

/// Rows of every node after a pass forward, and what the operators keep of it.
#[derive(Debug)]
pub struct Forward<T> {
    values: Vec<Array2<T>>,
    ones: Array2<T>,
    works: Vec<Option<Work<T>>>,
}

/// A chunk's gradient as its factors, with all that its derivative needs.
#[derive(Debug)]
pub struct Inner<T> {
    forward: Forward<T>,
    /// Cotangent of each node's output. That of a linear map is its factor B.
    cotangents: NodeRows<T>,
}

/// Examples that are stored: keys, values and, where rows have one, the weight of each row's loss.
#[derive(Clone, Copy)]
pub struct Examples<'a, T> {
    pub keys: ArrayView2<'a, T>,
    pub values: ArrayView2<'a, T>,
    pub rates: Option<&'a [T]>,
}

/// Cotangents of [`Examples`].
#[derive(Debug)]
pub struct ExampleCotangents<T> {
    pub keys: Array2<T>,
    pub values: Array2<T>,
    pub rates: Option<Vec<T>>,
}

/// Cotangents of the values and of the model's input rows during a pass back.
struct Pending<T> {
    nodes: NodeRows<T>,
    rows: Option<Array2<T>>,
}

impl<T: Real> Pending<T> {
    fn new(nodes: usize) -> Self {
        Self { nodes: vec![None; nodes], rows: None }
    }

    fn add(&mut self, to: Value, cotangent: Array2<T>) {
        let place = match to {
            Value::Rows => &mut self.rows,
            Value::Ones => return,
            Value::Node(node) => &mut self.nodes[node],
        };
        match place {
            Some(known) => *known += &cotangent,
            None => *place = Some(cotangent),
        }
    }
}

impl Walk {
    pub fn new(graph: Graph, chunk: usize) -> Self {
        Self { places: graph.places(), graph, chunk }
    }

    /// Returns one weight of the slice of all of them.
    pub fn weight<'w, T>(&self, weights: &'w [T], p: usize) -> ArrayView2<'w, T> {
        let spec = &self.graph.weights[p];
        ArrayView2::from_shape((spec.rows, spec.cols), &weights[self.places[p].clone()])
            .expect("rows × cols elements")
    }

    /// Yields the weights of a linear map, each with its columns of the product.
    pub fn columns(&self, of: &Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        of.clone().scan(0, |start, p| {
            let columns = *start..*start + self.graph.weights[p].cols;
            *start = columns.end;
            Some((p, columns))
        })
    }

    /// Evaluates the model on rows of whole chunks, of which the last may be shorter.
    pub fn forward<T: Real>(&self, weights: &[T], rows: ArrayView2<T>) -> Forward<T> {
        let count = rows.nrows();
        let mut works = buffers(&self.graph, count, self.chunk);
        let ones = Array2::ones((count, 1));
        let mut values: Vec<Array2<T>> = Vec::with_capacity(self.graph.nodes.len());
        for (node, work) in self.graph.nodes.iter().zip(&mut works) {
            let mut output = Array2::zeros((count, node.width));
            let inputs: Vec<_> = node.inputs.iter().map(|&input| view(input, rows, &ones, &values)).collect();
            match &node.kind {
                NodeKind::Linear(of) => self.multiply(weights, of, inputs[0], &mut output),
                NodeKind::Operator(op) => {
                    let work = work.as_mut().expect("buffers of an operator");
                    op.operator().forward_for_vjp(self.chunk, &inputs, output.view_mut(), work);
                }
            }
            values.push(output);
        }
        Forward { values, ones, works }
    }

    /// Computes `out ← rows W` for the weights of a linear map, side by side.
    fn multiply<T: Real>(&self, weights: &[T], of: &Range<usize>, rows: ArrayView2<T>, out: &mut Array2<T>) {
        for (p, columns) in self.columns(of) {
            matmul(out.slice_mut(s![.., columns]), rows, self.weight(weights, p));
        }
    }

    /// Passes cotangents of node outputs back. Only values that `wanted` selects receive one. `visit` sees each linear map
    /// with the cotangent of its products.
    fn backward<T: Real>(
        &self,
        weights: &[T],
        rows: ArrayView2<T>,
        forward: &mut Forward<T>,
        pending: &mut Pending<T>,
        wanted: impl Fn(Value) -> bool,
        mut visit: impl FnMut(usize, ArrayView2<T>, &Range<usize>, ArrayView2<T>),
    ) -> NodeRows<T> {
        let Forward { values, ones, works } = forward;
        let mut cotangents: NodeRows<T> = vec![None; self.graph.nodes.len()];
        for (i, node) in self.graph.nodes.iter().enumerate().rev() {
            let Some(cotangent) = pending.nodes[i].take() else { continue };
            let inputs: Vec<_> = node.inputs.iter().map(|&input| view(input, rows, ones, values)).collect();
            let place =
                |(&input, of): (&Value, &ArrayView2<T>)| wanted(input).then(|| Array2::zeros(of.dim()));
            let mut d_inputs: NodeRows<T> = node.inputs.iter().zip(&inputs).map(place).collect();
            match &node.kind {
                NodeKind::Linear(of) => {
                    visit(i, inputs[0], of, cotangent.view());
                    if let Some(d_input) = &mut d_inputs[0] {
                        for (p, columns) in self.columns(of) {
                            let keep = if columns.start == 0 { T::zero() } else { T::one() };
                            let part = cotangent.slice(s![.., columns]);
                            multiply_add(
                                d_input.view_mut(),
                                keep,
                                T::one(),
                                part,
                                self.weight(weights, p).t(),
                            );
                        }
                    }
                }
                NodeKind::Operator(op) => {
                    let mut places: Vec<_> =
                        d_inputs.iter_mut().map(|d| d.as_mut().map(|d| d.view_mut())).collect();
                    let work = works[i].as_mut().expect("buffers of an operator");
                    op.operator().vjp(self.chunk, &inputs, cotangent.view(), &mut places, work);
                }
            }
            for (&input, d_input) in node.inputs.iter().zip(d_inputs) {
                if let Some(d_input) = d_input {
                    pending.add(input, d_input);
                }
            }
            cotangents[i] = Some(cotangent);
        }
        cotangents
    }

    /// Passes the cotangent of the output back to the input rows, and adds the gradients of the weights to `d_weights`.
    pub fn vjp<T: Real>(
        &self,
        weights: &[T],
        rows: ArrayView2<T>,
        mut forward: Forward<T>,
        cotangent: Array2<T>,
        d_weights: &mut [T],
    ) -> Array2<T> {
        let mut pending = Pending::new(self.graph.nodes.len());
        pending.nodes[self.graph.output()] = Some(cotangent);
        self.outer(weights, rows, &mut forward, &mut pending, d_weights)
    }

    /// Passes pending cotangents back to the input rows, and adds the gradients of the weights to `d_weights`.
    fn outer<T: Real>(
        &self,
        weights: &[T],
        rows: ArrayView2<T>,
        forward: &mut Forward<T>,
        pending: &mut Pending<T>,
        d_weights: &mut [T],
    ) -> Array2<T> {
        let wanted = |value| value != Value::Ones;
        self.backward(weights, rows, forward, pending, wanted, |_, input, of, cotangent| {
            self.add_products(of, input, cotangent, d_weights);
        });
        pending.rows.take().unwrap_or_else(|| Array2::zeros(rows.dim()))
    }

    /// Adds Aᵀ B to each weight of a linear map.
    fn add_products<T: Real>(&self, of: &Range<usize>, a: ArrayView2<T>, b: ArrayView2<T>, to: &mut [T]) {
        for (p, columns) in self.columns(of) {
            let out = self.weight_mut(to, p);
            multiply_add(out, T::one(), T::one(), a.t(), b.slice(s![.., columns]));
        }
    }

    fn weight_mut<'w, T>(&self, weights: &'w mut [T], p: usize) -> ndarray::ArrayViewMut2<'w, T> {
        let spec = &self.graph.weights[p];
        ndarray::ArrayViewMut2::from_shape((spec.rows, spec.cols), &mut weights[self.places[p].clone()])
            .expect("rows × cols elements")
    }

    /// Takes the gradient of rows of whole chunks at `point`.
    pub fn inner<T: Real>(&self, loss: Loss, point: &[T], examples: Examples<'_, T>) -> Inner<T> {
        let mut forward = self.forward(point, examples.keys);
        let last = self.graph.output();
        let mut predicted = forward.values[last].clone();
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
        let mut pending = Pending::new(self.graph.nodes.len());
        pending.nodes[last] = Some(predicted);
        let wanted = |value| self.graph.is_learned(value);
        let cotangents =
            self.backward(point, examples.keys, &mut forward, &mut pending, wanted, |_, _, _, _| {});
        Inner { forward, cotangents }
    }

    /// Writes the gradient of some rows, one chunk, in the order of the weights.
    pub fn gradient<T: Real>(
        &self,
        inner: &Inner<T>,
        keys: ArrayView2<T>,
        rows: Range<usize>,
        gradient: &mut [T],
    ) {
        self.each_factor(inner, keys, rows, |_, p, a, b, _| {
            matmul(self.weight_mut(gradient, p), a.t(), b);
        });
    }

    /// Visits the factors A and B of each weight for some rows, with the index of the linear map and its columns.
    fn each_factor<T: Real>(
        &self,
        inner: &Inner<T>,
        keys: ArrayView2<T>,
        rows: Range<usize>,
        mut visit: impl FnMut(usize, usize, ArrayView2<T>, ArrayView2<T>, Range<usize>),
    ) {
        let Forward { values, ones, .. } = &inner.forward;
        for (i, node) in self.graph.nodes.iter().enumerate() {
            let (NodeKind::Linear(of), Some(cotangent)) = (&node.kind, &inner.cotangents[i]) else {
                continue;
            };
            let a = view(node.inputs[0], keys, ones, values).slice_move(s![rows.clone(), ..]);
            for (p, columns) in self.columns(of) {
                visit(i, p, a, cotangent.slice(s![rows.clone(), columns.clone()]), columns);
            }
        }
    }

    /// Passes cotangents of the chunks' gradients back to keys, values and rates of rows, and adds those of the point to
    /// `d_point`. The cotangent of chunk i's gradient is −θ S̄, with θ and S̄ as `steps` yields them. Returns the
    /// cotangents of the examples and, for each chunk, −⟨S̄, g⟩: the cotangent of its θ.
    pub fn inner_vjp<'s, T: Real>(
        &self,
        loss: Loss,
        point: &[T],
        examples: Examples<'_, T>,
        mut inner: Inner<T>,
        steps: impl Iterator<Item = (T, &'s [T])>,
        d_point: &mut [T],
    ) -> (ExampleCotangents<T>, Vec<f64>) {
        let count = examples.keys.nrows();
        let nodes = self.graph.nodes.len();
        let mut pending = Pending::new(nodes);
        let mut d_factors: NodeRows<T> = vec![None; nodes];
        let mut d_inputs: NodeRows<T> = vec![None; nodes];
        for (i, node) in self.graph.nodes.iter().enumerate() {
            if matches!(node.kind, NodeKind::Linear(_)) && inner.cotangents[i].is_some() {
                d_factors[i] = Some(Array2::zeros((count, node.width)));
                let width = self.graph.width_of(node.inputs[0]);
                d_inputs[i] = (node.inputs[0] != Value::Ones).then(|| Array2::zeros((count, width)));
            }
        }
        let mut rates = Vec::new();
        for (chunk, (rate, s_bar)) in steps.enumerate() {
            let rows = chunk * self.chunk..((chunk + 1) * self.chunk).min(count);
            let mut of_rate = 0.0;
            self.each_factor(&inner, examples.keys, rows.clone(), |i, p, a, b, columns| {
                let s_bar = self.weight(s_bar, p);
                let d_factor = d_factors[i].as_mut().expect("allocated for each factor");
                let mut d_b = d_factor.slice_mut(s![rows.clone(), columns.clone()]);
                matmul(d_b.view_mut(), a, s_bar);
                vectorised(
                    #[inline(always)]
                    || {
                        for (mut d_b, b) in d_b.rows_mut().into_iter().zip(b.rows()) {
                            let d_b = d_b.as_slice_mut().expect("contiguous rows");
                            of_rate -= T::dot(d_b, b.to_slice().expect("contiguous rows")).to_f64();
                            for x in d_b {
                                *x = -*x * rate;
                            }
                        }
                    },
                );
                if let Some(d_input) = &mut d_inputs[i] {
                    let keep = if columns.start == 0 { T::zero() } else { T::one() };
                    multiply_add(d_input.slice_mut(s![rows.clone(), ..]), keep, -rate, b, s_bar.t());
                }
            });
            rates.push(of_rate);
        }
        for (node, d_input) in self.graph.nodes.iter().zip(d_inputs) {
            if let Some(d_input) = d_input {
                pending.add(node.inputs[0], d_input);
            }
        }
        let tangent = self.tangents(point, examples.keys, &mut inner, d_factors, &mut pending, d_point);
        let last = self.graph.output();
        let mut d_output = inner.forward.values[last].clone();
        let mut d_values = Array2::zeros(d_output.dim());
        let mut d_rates = examples.rates.map(|_| Vec::with_capacity(count));
        for r in 0..count {
            let of_rate = loss.gradient_vjp(
                d_output.row_mut(r).as_slice_mut().expect("standard layout"),
                examples.values.row(r).to_slice().expect("contiguous rows"),
                examples.rates.map(|rates| rates[r]),
                tangent.row(r).to_slice().expect("standard layout"),
                d_values.row_mut(r).as_slice_mut().expect("standard layout"),
            );
            if let Some(d_rates) = &mut d_rates {
                d_rates.push(T::from_f64(of_rate));
            }
        }
        pending.add(Value::Node(last), d_output);
        let d_keys = self.outer(point, examples.keys, &mut inner.forward, &mut pending, d_point);
        (ExampleCotangents { keys: d_keys, values: d_values, rates: d_rates }, rates)
    }

    /// Goes over the nodes in order with the cotangents of the factors B. Adds the weights' gradients from the pass back,
    /// and the cotangents of values from the operators' second derivatives. Returns the tangent of the output.
    fn tangents<T: Real>(
        &self,
        point: &[T],
        keys: ArrayView2<T>,
        inner: &mut Inner<T>,
        mut d_factors: NodeRows<T>,
        pending: &mut Pending<T>,
        d_point: &mut [T],
    ) -> Array2<T> {
        let Inner { forward: Forward { values, ones, works }, cotangents } = inner;
        let mut tangents: NodeRows<T> = vec![None; self.graph.nodes.len()];
        for (i, node) in self.graph.nodes.iter().enumerate() {
            let Some(cotangent) = &cotangents[i] else { continue };
            let of_inputs: Vec<_> = node
                .inputs
                .iter()
                .map(|&input| match input {
                    Value::Node(j) => tangents[j].as_ref().map(|tangent| tangent.view()),
                    Value::Rows | Value::Ones => None,
                })
                .collect();
            match &node.kind {
                NodeKind::Linear(of) => {
                    let mut tangent = d_factors[i].take().expect("allocated for each factor");
                    if let Some(of_input) = of_inputs[0] {
                        for (p, columns) in self.columns(of) {
                            let weight = self.weight(point, p);
                            multiply_add(
                                tangent.slice_mut(s![.., columns]),
                                T::one(),
                                T::one(),
                                of_input,
                                weight,
                            );
                        }
                        self.add_products(of, of_input, cotangent.view(), d_point);
                    }
                    tangents[i] = Some(tangent);
                }
                NodeKind::Operator(_) if of_inputs.iter().all(Option::is_none) => {}
                NodeKind::Operator(op) => {
                    let inputs: Vec<_> =
                        node.inputs.iter().map(|&input| view(input, keys, ones, values)).collect();
                    let mut tangent = Array2::zeros(cotangent.dim());
                    let mut d_inputs: Vec<_> = inputs.iter().map(|of| Array2::zeros(of.dim())).collect();
                    let mut places: Vec<_> = d_inputs.iter_mut().map(|d| Some(d.view_mut())).collect();
                    let given = Second {
                        chunk: self.chunk,
                        inputs: &inputs,
                        cotangent: cotangent.view(),
                        tangents: &of_inputs,
                    };
                    let results = SecondResults { d_cotangent: tangent.view_mut(), d_inputs: &mut places };
                    op.operator().vjp_of_vjp(&given, results, works[i].as_mut().expect("buffers"));
                    for (&input, d_input) in node.inputs.iter().zip(d_inputs) {
                        pending.add(input, d_input);
                    }
                    tangents[i] = Some(tangent);
                }
            }
        }
        tangents.pop().flatten().unwrap_or_else(|| Array2::zeros(keys.dim()))
    }
}

impl<T: Real> Forward<T> {
    /// Returns the output rows.
    pub fn output(&self) -> ArrayView2<'_, T> {
        self.values.last().expect("a model has nodes").view()
    }
}

/// Returns the rows of a value.
fn view<'a, T>(
    value: Value,
    rows: ArrayView2<'a, T>,
    ones: &'a Array2<T>,
    nodes: &'a [Array2<T>],
) -> ArrayView2<'a, T> {
    match value {
        Value::Rows => rows,
        Value::Ones => ones.view(),
        Value::Node(node) => nodes[node].view(),
    }
}
