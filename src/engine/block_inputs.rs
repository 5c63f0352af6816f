//! Results of the tokens of a sequence's block alone: norms, projections, gates and, in a program without refresh,
//! gradients.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::Memory;
use super::cpu::Context;
use super::gradient::{Examples, Factors, GradientPoint, loss_and_gradient};
use super::outcome::Phase;
use super::plan::{Block, Sizes};
use super::tokens::{BlockTokens, rms_norm, rms_norm_heads};
use crate::memory::GateValues;
use crate::memory::operators::Activation;
use crate::packed::Packed;
use crate::real::Real;

/// Buffers of one sequence's block.
pub struct BlockInputs<T: Real> {
    pub tokens: BlockTokens<T>,
    /// (rows, 2hd)
    keys_values: Array2<T>,
    /// (rows, hd)
    queries: Array2<T>,
    /// Logits of the gates: (chunks, 3h)
    logits: Array2<T>,
    /// θ of each token, where tokens have their own: (rows, h)
    rates: Option<Array2<T>>,
    /// Gates of what is retrieved: (rows, h)
    read_gates: Option<Array2<T>>,
    heads: Vec<HeadInputs<T>>,
}

/// Inputs that one head has beside its columns of the projections.
struct HeadInputs<T> {
    /// By chunk.
    gates: Vec<GateValues>,
    /// θ of each stored token, where tokens have their own.
    rates: Option<Vec<T>>,
    /// Absent in a plain read.
    gradients: Option<Gradients<T>>,
}

/// A head's inputs of one block.
pub struct HeadBlock<'a, T> {
    /// (rows, d)
    pub keys: ArrayView2<'a, T>,
    /// (rows, d)
    pub values: ArrayView2<'a, T>,
    /// (rows, d)
    pub queries: ArrayView2<'a, T>,
    /// Gates of the head, by chunk.
    pub gates: &'a [GateValues],
    /// θ of each stored token, where tokens have their own.
    pub rates: Option<&'a [T]>,
    /// Absent in a plain read.
    pub gradients: Option<&'a mut Gradients<T>>,
}

/// Losses and gradients of the stored rows of a block.
pub struct Gradients<T> {
    pub factors: Factors<Array2<T>>,
    /// Loss of each row.
    pub losses: Vec<f64>,
}

impl<T: Real> BlockInputs<T> {
    /// Allocates buffers for any sequence.
    pub fn new(memory: &Memory<T>, sizes: Sizes) -> Self {
        let dimensions = memory.dimensions;
        let Sizes { stored, read, storing, .. } = sizes;
        let of_heads = |rows: usize| Array2::zeros((rows, dimensions.heads));
        let head = |_| HeadInputs {
            gates: Vec::new(),
            rates: None,
            gradients: storing.then(|| Gradients {
                factors: Factors::new(&memory.graph, stored),
                losses: vec![0.0; stored],
            }),
        };
        Self {
            tokens: BlockTokens::new(sizes, dimensions.dim),
            keys_values: Array2::zeros((stored, 2 * dimensions.inner())),
            queries: Array2::zeros((read, dimensions.inner())),
            logits: Array2::zeros((stored / memory.chunk_size(), 3 * dimensions.heads)),
            rates: memory.projections.token_rates.as_ref().map(|_| of_heads(stored)),
            read_gates: memory.projections.read_gate.as_ref().map(|_| of_heads(read)),
            heads: (0..dimensions.heads).map(head).collect(),
        }
    }

    /// Returns the bytes of all buffers.
    pub fn bytes(&self) -> usize {
        let arrays = [&self.keys_values, &self.queries, &self.logits];
        let arrays = arrays.into_iter().chain(&self.rates).chain(&self.read_gates);
        let gradients =
            self.heads.iter().filter_map(|head| head.gradients.as_ref()).map(|gradients| {
                gradients.factors.len() * size_of::<T>() + size_of_val(&gradients.losses[..])
            });
        let numbers = arrays.map(Array2::len).sum::<usize>();
        numbers * size_of::<T>() + self.tokens.bytes() + gradients.sum::<usize>()
    }

    /// Returns the gates of what is retrieved (rows, h), if there are any.
    pub fn read_gates(&self) -> Option<ArrayView2<'_, T>> {
        self.read_gates.as_ref().map(|gates| gates.slice(s![..self.tokens.read.rows().nrows(), ..]))
    }

    /// Computes everything that follows from the tokens.
    pub fn prepare(&mut self, context: &Context<'_, T>, block: Block) {
        self.project(context);
        let memory = context.memory;
        let (c, h) = (memory.chunk_size(), memory.dimensions.heads);
        let logits = self.logits.slice(s![..block.store.len() / c, ..]);
        let biases = memory.projections.gate_biases.as_ref();
        let rates = self.rates.as_ref().map(|rates| rates.slice(s![..block.store.len(), ..]));
        self.heads.par_iter_mut().enumerate().for_each(|(j, head)| {
            let gates = |chunk: usize| -> GateValues {
                let logit = |gate: usize| {
                    let logit = logits[[chunk, gate * h + j]];
                    biases.map_or(logit, |biases| logit + biases[gate * h + j]).to_f64()
                };
                let mut values = memory.gates.values(&memory.program.rule, logit(0), logit(1), logit(2));
                if let Some(rates) = &rates {
                    let of_chunk = rates.slice(s![chunk * c..(chunk + 1) * c, j]);
                    values.learning_rate =
                        of_chunk.iter().map(|&rate| Real::to_f64(rate)).sum::<f64>() / c as f64;
                }
                values
            };
            head.rates = rates.as_ref().map(|rates| rates.column(j).to_vec());
            let chunks = (0..logits.nrows()).into_par_iter().with_min_len(64);
            chunks.map(gates).collect_into_vec(&mut head.gates);
        });
        if memory.program.schedule.refresh.is_none() {
            let heads: Vec<_> = self.heads(block).collect();
            heads.into_par_iter().enumerate().for_each(|(j, mut head)| {
                head.take_gradients(context, memory.point(j), 0..block.store.len());
            });
        }
    }

    /// Yields the inputs of each head.
    pub fn heads(&mut self, block: Block) -> impl Iterator<Item = HeadBlock<'_, T>> {
        let (h, inner) = (self.heads.len(), self.queries.ncols());
        let d = inner / h;
        let keys_values = self.keys_values.slice(s![..block.store.len(), ..]);
        let queries = self.queries.slice(s![..block.read.len(), ..]);
        self.heads.iter_mut().enumerate().map(move |(j, head)| HeadBlock {
            keys: keys_values.slice_move(s![.., j * d..(j + 1) * d]),
            values: keys_values.slice_move(s![.., (h + j) * d..(h + j + 1) * d]),
            queries: queries.slice_move(s![.., j * d..(j + 1) * d]),
            gates: &head.gates,
            rates: head.rates.as_deref(),
            gradients: head.gradients.as_mut(),
        })
    }

    /// Norms and projects both streams, and computes the gates' logits by chunk. Groups of rows run in parallel.
    fn project(&mut self, context: &Context<'_, T>) {
        let memory = context.memory;
        let (projections, c) = (&memory.projections, memory.chunk_size());
        let (stored, read) = (self.tokens.store.rows().nrows(), self.tokens.read.rows().nrows());
        let logits = self.logits.slice_mut(s![..stored / c, ..]);
        let group = context.plan.group_rows;
        let [key_norm, query_norm] =
            projections.qk_norm.as_ref().map_or([None, None], |norms| norms.each_ref().map(Some));
        let store = ProjectionTask {
            tokens: self.tokens.store.rows_mut(),
            norm: projections.store_norm.as_ref().and_then(|norm| norm.as_slice()),
            weights: &projections.keys_values,
            head_norm: key_norm.and_then(|norm| norm.as_slice()),
            projected: self.keys_values.slice_mut(s![..stored, ..]),
            token_gates: self.rates.as_mut().map(|rates| rates.slice_mut(s![..stored, ..])),
            logits: Some(logits),
        };
        let read = ProjectionTask {
            projected: self.queries.slice_mut(s![..read, ..]),
            tokens: self.tokens.read.rows_mut(),
            norm: projections.retrieve_norm.as_ref().and_then(|norm| norm.as_slice()),
            weights: &projections.queries,
            head_norm: query_norm.and_then(|norm| norm.as_slice()),
            token_gates: self.read_gates.as_mut().map(|gates| gates.slice_mut(s![..read, ..])),
            logits: None,
        };
        let mut groups = store.groups(group, c);
        groups.extend(read.groups(group, c));
        groups.into_par_iter().for_each(|task| context.clock.timed(Phase::Project, || task.project(memory)));
    }
}

impl<T: Real> HeadBlock<'_, T> {
    /// Computes the losses and gradients of some rows of the block at the weights of `point`. Does nothing in a plain read.
    /// Groups of rows run in parallel.
    pub fn take_gradients(&mut self, context: &Context<'_, T>, point: &GradientPoint<T>, rows: Range<usize>) {
        let Some(Gradients { factors, losses }) = self.gradients.as_deref_mut() else { return };
        let (memory, group) = (context.memory, context.plan.group_rows);
        let groups =
            factors.groups(rows.clone(), group).into_iter().zip(losses[rows.clone()].chunks_mut(group));
        let [keys, values] = [self.keys, self.values].map(|all| all.slice_move(s![rows.clone(), ..]));
        let tokens = keys.axis_chunks_iter(Axis(0), group).zip(values.axis_chunks_iter(Axis(0), group));
        let weights = self.rates.map(|rates| &rates[rows]);
        let groups: Vec<_> = groups.zip(tokens).enumerate().collect();
        groups.into_par_iter().for_each(|(i, ((factors, losses), (keys, values)))| {
            context.with_scratch(Phase::Gradients, |scratch| {
                let weights = weights.map(|weights| &weights[i * group..][..keys.nrows()]);
                let examples = Examples { keys, values, weights, chunk: memory.chunk_size() };
                let gradient = scratch.gradient.as_mut().expect("a run that stores");
                let model = (&memory.graph, memory.program.loss);
                loss_and_gradient(model, point, examples, losses, factors, (gradient, &mut scratch.works));
            });
        });
    }
}

/// Tokens and the outputs of their projections.
struct ProjectionTask<'a, T> {
    tokens: ArrayViewMut2<'a, T>,
    norm: Option<&'a [T]>,
    weights: &'a Packed<T>,
    projected: ArrayViewMut2<'a, T>,
    /// Weights (hd) of the norm of keys or queries in each head.
    head_norm: Option<&'a [T]>,
    /// Gates of single tokens (rows, h), if this stream has any: θ of stored tokens, gates of what is retrieved.
    token_gates: Option<ArrayViewMut2<'a, T>>,
    /// Logits of the gates of chunks, for the stream that is stored.
    logits: Option<ArrayViewMut2<'a, T>>,
}

impl<T: Real> ProjectionTask<'_, T> {
    /// Divides the task into groups of `group` rows, which are whole chunks of c.
    fn groups(self, group: usize, c: usize) -> Vec<Self> {
        let Self { mut tokens, norm, weights, mut projected, head_norm, mut token_gates, mut logits } = self;
        let mut groups = Vec::new();
        while tokens.nrows() > 0 {
            let rows = group.min(tokens.nrows());
            let (head, rest) = tokens.split_at(Axis(0), rows);
            let (products, later) = projected.split_at(Axis(0), rows);
            let (gates, later_gates) = token_gates.map(|gates| gates.split_at(Axis(0), rows)).unzip();
            let (of_group, of_later) = logits.map(|logits| logits.split_at(Axis(0), rows / c)).unzip();
            groups.push(Self {
                tokens: head,
                norm,
                weights,
                projected: products,
                head_norm,
                token_gates: gates,
                logits: of_group,
            });
            (tokens, projected, token_gates, logits) = (rest, later, later_gates, of_later);
        }
        groups
    }

    fn project(mut self, memory: &Memory<T>) {
        let (c, d) = (memory.chunk_size(), memory.dimensions.dim_head);
        let projections = &memory.projections;
        if let Some(weight) = self.norm {
            rms_norm(self.tokens.view_mut(), weight);
        }
        self.weights.multiply(self.tokens.view(), self.projected.view_mut());
        if let Some(activation) = memory.program.frame.activation.function() {
            activate(activation, self.projected.view_mut());
        }
        if let Some(weights) = self.head_norm {
            rms_norm_heads(self.projected.slice_mut(s![.., ..weights.len()]), weights, d);
        }
        let storing = self.logits.is_some();
        if let Some(mut gates) = self.token_gates {
            let layer = if storing { &projections.token_rates } else { &projections.read_gate };
            layer.as_ref().expect("the layer of the gates").multiply(self.tokens.view(), gates.view_mut());
            if storing {
                let biases = projections.gate_biases.as_ref();
                for (j, mut rates) in gates.columns_mut().into_iter().enumerate() {
                    let bias = biases.map_or(T::zero(), |biases| biases[j]);
                    rates.mapv_inplace(|logit| {
                        T::from_f64(memory.gates.rate(&memory.program.rule, (logit + bias).to_f64()))
                    });
                }
            } else {
                gates.rows_mut().into_iter().for_each(|mut row| {
                    T::sigmoid(row.as_slice_mut().expect("contiguous rows"));
                });
            }
        }
        if let Some(logits) = self.logits {
            let mut means = Array2::zeros((logits.nrows(), self.tokens.ncols()));
            for (chunk, mut mean) in self.tokens.axis_chunks_iter(Axis(0), c).zip(means.rows_mut()) {
                chunk.rows().into_iter().for_each(|token| mean += &token);
                mean /= T::from_f64(c as f64);
            }
            // The gemm crate's last digit may depend on the number of rows, and blocks may end anywhere. So it
            // is not used here.
            projections.gates.multiply(means.view(), logits);
        }
    }
}

/// Applies an activation to each row.
fn activate<T: Real>(activation: Activation, mut rows: ArrayViewMut2<T>) {
    for mut row in rows.rows_mut() {
        activation.apply(row.as_slice_mut().expect("contiguous rows"));
    }
}
