//! Passes back through the pass back of a chunk's gradient.
//!
//! The gradient of a chunk is a function of keys, values, rates of rows and weights: a pass forward over the nodes, the
//! loss, and a pass back that leaves the thin factors A (rows that a linear map multiplies) and B (cotangents of its
//! products). Its own reverse mode goes the other way round. First over the nodes in order, with the cotangents of the
//! factors B: the tangent of a node is the cotangent of its cotangent. Then through the loss. Then back over the nodes,
//! with the cotangents of the factors A and those that the operators' second derivatives leave.

use std::ops::Range;

use ndarray::{ArrayView1, ArrayView2, ArrayViewMut2, s};

use super::block::Block;
use super::blocks::MapProducts;
use super::node_rows::{Passage, Second};
use super::passes::{Examples, Passes, Weights};
use crate::memory::Loss;
use crate::memory::graph::{MAX_INPUTS, NodeKind, Value};
use crate::memory::operators::{self, SecondResults};
use crate::real::Real;
use crate::simd::vectorised;
use crate::small_matmul::{multiply, multiply_add};

/// Places for the cotangents of [`Examples`].
pub struct ExampleCotangents<'a, T> {
    pub keys: ArrayViewMut2<'a, T>,
    pub values: ArrayViewMut2<'a, T>,
    pub rates: Option<&'a mut [T]>,
}

/// Returns the numbers of a row.
fn contiguous<T>(row: ArrayView1<'_, T>) -> &[T] {
    row.to_slice().expect("contiguous rows")
}

impl Passes {
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

    /// Passes cotangents of the chunks' gradients back to their factors at one linear map, from the products B S̄ᵀ and A S̄ of some of
    /// its rows, and to the `rates` θ of the chunks, as [`factors_vjp`](Self::factors_vjp) does.
    pub fn products_vjp<T: Real>(
        &self,
        keys: ArrayView2<T>,
        (passage, second): (&Passage<T>, &mut Second<T>),
        (products, rows): (&MapProducts<T>, Range<usize>),
        (rates, d_rates): (&[T], &mut [f64]),
    ) {
        let map = products.map;
        let Some([_, b]) = self.factors(passage, keys, map) else { return };
        let of_b = products.of_b(rows.clone());
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
        for (columns, of_a) in products.of_a(self, rows) {
            vectorised(
                #[inline(always)]
                || {
                    for (r, (mut d_a, of_a)) in d_a.rows_mut().into_iter().zip(of_a.rows()).enumerate() {
                        let rate = rates[r / self.chunk];
                        let d_a = &mut d_a.as_slice_mut().expect("contiguous rows")[columns.clone()];
                        d_a.iter_mut().zip(contiguous(of_a)).for_each(|(d, &x)| *d -= rate * x);
                    }
                },
            );
        }
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
