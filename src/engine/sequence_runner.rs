//! One sequence in the engine: norms and projections of a block, its heads, and the combination of their outputs.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::head::{Head, Inputs, first_nonfinite};
use super::tokens::{BlockTokens, rms_norm, rms_norm_heads};
use super::{Block, Context, Divergence, Memory, Phase, Sizes};
use crate::memory::operators::Activation;
use crate::memory::{GateValues, State};
use crate::metrics::{ChunkMetrics, Retained};
use crate::packed::Packed;
use crate::real::Real;

/// Buffers and heads of one sequence.
pub struct SequenceRunner<T: Real> {
    pub sequence: usize,
    /// Tokens of the current block.
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
    heads: Vec<Head<T>>,
    /// Outputs of the heads, side by side: (rows, hd)
    merged: Array2<T>,
    /// Combined outputs, with several heads: (rows, D)
    combined: Option<Array2<T>>,
    /// Metrics of the block, by chunk and head.
    pub rows: Vec<ChunkMetrics>,
    /// Losses of kept chunks under the memory at the end of the block, if they are read again there: by chunk
    /// and head.
    pub retained: Vec<Retained>,
    /// Losses of the block's last chunk under the memory before the block, if it is kept: by head.
    pub unstored: Vec<Retained>,
    /// The first non-finite metric of the block.
    pub divergence: Option<Divergence>,
    /// The first non-finite value read in the block.
    pub bad_read: Option<Divergence>,
}

impl<T: Real> SequenceRunner<T> {
    /// Allocates buffers for any sequence.
    pub fn new(memory: &Memory<T>, sizes: Sizes) -> Self {
        let dimensions = memory.dimensions;
        let Sizes { stored, read, .. } = sizes;
        Self {
            sequence: 0,
            tokens: BlockTokens::new(sizes, dimensions.dim),
            keys_values: Array2::zeros((stored, 2 * dimensions.inner())),
            queries: Array2::zeros((read, dimensions.inner())),
            logits: Array2::zeros((stored / memory.chunk_size(), 3 * dimensions.heads)),
            rates: memory.projections.token_rates.as_ref().map(|_| Array2::zeros((stored, dimensions.heads))),
            read_gates: memory
                .projections
                .read_gate
                .as_ref()
                .map(|_| Array2::zeros((read, dimensions.heads))),
            heads: (0..dimensions.heads).map(|head| Head::new(memory, sizes, head)).collect(),
            merged: Array2::zeros((read, dimensions.inner())),
            combined: (dimensions.heads > 1).then(|| Array2::zeros((read, dimensions.dim))),
            rows: Vec::new(),
            retained: Vec::new(),
            unstored: Vec::new(),
            divergence: None,
            bad_read: None,
        }
    }

    /// Returns the bytes of all buffers.
    pub fn bytes(&self) -> usize {
        let arrays = [&self.keys_values, &self.queries, &self.logits, &self.merged];
        let arrays = arrays.into_iter().chain(&self.combined).chain(&self.rates).chain(&self.read_gates);
        let arrays = arrays.map(Array2::len).sum::<usize>();
        arrays * size_of::<T>() + self.tokens.bytes() + self.heads.iter().map(Head::bytes).sum::<usize>()
    }

    /// Switches to a sequence and loads its S and U from the state. All sequences of a plain read share the S
    /// and U of a state of one sequence.
    pub fn load(&mut self, memory: &Memory<T>, state: &State<T>, sequence: usize) {
        self.sequence = sequence;
        (self.divergence, self.bad_read) = (None, None);
        let of = if state.sequences() == 1 { 0 } else { sequence };
        for (index, head) in self.heads.iter_mut().enumerate() {
            let arrays = state.arrays.iter().chain(&state.gradient_point);
            let arrays: Vec<_> = arrays
                .map(|array| array.view().slice_move(s![of, index, ..]).to_slice().expect("standard layout"))
                .collect();
            head.load(memory, &arrays);
        }
    }

    /// Writes the state back: each of its arrays, (heads, elements).
    pub fn save(&self, memory: &Memory<T>, arrays: Vec<ArrayViewMut2<T>>) {
        let mut of_heads: Vec<_> = self.heads.iter().map(|head| (head, Vec::new())).collect();
        for array in arrays {
            let rows = of_heads.iter_mut().zip(array.into_outer_iter_mut());
            rows.for_each(|((_, arrays), row)| arrays.push(row.into_slice().expect("standard layout")));
        }
        of_heads.into_par_iter().for_each(|(head, mut arrays)| head.save(memory, &mut arrays));
    }

    /// Computes the loaded block: fills `rows`, the rows of [`Self::retrieved`], `divergence` and `bad_read`.
    pub fn run(&mut self, context: &Context<'_, T>, block: Block) {
        self.project(context);
        let (memory, sequence) = (context.memory, self.sequence);
        let (d, h) = (memory.dimensions.dim_head, memory.dimensions.heads);
        let keys_values = self.keys_values.slice(s![..block.store.len(), ..]);
        let queries = self.queries.slice(s![..block.read.len(), ..]);
        let c = memory.chunk_size();
        let logits = self.logits.slice(s![..block.store.len() / c, ..]);
        let biases = memory.projections.gate_biases.as_ref();
        let rates = self.rates.as_ref().map(|rates| rates.slice(s![..block.store.len(), ..]));
        let mut merged = self.merged.slice_mut(s![..block.read.len(), ..]);
        let heads = self.heads.iter_mut().zip(merged.axis_chunks_iter_mut(Axis(1), d)).enumerate();
        heads.collect::<Vec<_>>().into_par_iter().for_each(|(j, (head, output))| {
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
            let inputs = Inputs {
                keys: keys_values.slice(s![.., j * d..(j + 1) * d]),
                values: keys_values.slice(s![.., (h + j) * d..(h + j + 1) * d]),
                queries: queries.slice(s![.., j * d..(j + 1) * d]),
                rates: rates.as_ref().map(|rates| rates.column(j).to_vec()),
                gates: (0..logits.nrows()).into_par_iter().with_min_len(64).map(gates).collect(),
            };
            head.run(context, (sequence, block), &inputs, output);
        });
        self.combine(context);
        context.timed(Phase::Metrics, || self.collect(block, c));
        self.unstored.clear();
        if self.divergence.is_none() {
            self.unstored.extend(self.heads.iter().enumerate().filter_map(|(j, head)| {
                let (loss, &loss_at_w) = head.unstored.zip(head.kept.at_w().last())?;
                let (after, chunk) = (block.start() / c - 1, block.store.end / c - 1);
                Some(Retained { sequence: self.sequence, after, chunk, head: j, loss, loss_at_w })
            }));
        }
        self.retained.clear();
        if self.divergence.is_none() && context.plan.rereads(block) {
            self.reread(context, block);
        }
    }

    /// Fills `retained` with the kept chunks' losses under the memory at the end of `block`.
    fn reread(&mut self, context: &Context<'_, T>, block: Block) {
        let c = context.memory.chunk_size();
        let heads: Vec<_> = self.heads.par_iter().map(|head| head.reread(context)).collect();
        for kept in 0..heads[0].len() {
            self.retained.extend(heads.iter().zip(&self.heads).enumerate().map(|(j, (losses, head))| {
                Retained {
                    sequence: self.sequence,
                    after: block.store.end / c - 1,
                    chunk: (kept + 1) * context.plan.kept_every / c - 1,
                    head: j,
                    loss: losses[kept],
                    loss_at_w: head.kept.at_w()[kept],
                }
            }));
        }
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
        groups.into_par_iter().for_each(|task| context.timed(Phase::Project, || task.project(memory)));
    }

    /// Computes `post_norm(merged heads @ combine)`, after each head's own norm and gate. Rows read before anything is
    /// stored are zero and stay zero.
    fn combine(&mut self, context: &Context<'_, T>) {
        let projections = &context.memory.projections;
        let (read, group) = (self.tokens.read.rows().nrows(), context.plan.group_rows);
        let mut merged = self.merged.slice_mut(s![..read, ..]);
        let norm = |rows: ArrayViewMut2<T>| {
            if let Some(weight) = projections.post_norm.as_ref().and_then(|norm| norm.as_slice()) {
                rms_norm(rows, weight);
            }
        };
        if projections.head_norm.is_some() || self.read_gates.is_some() {
            let (d, head_norm) = (context.memory.dimensions.dim_head, projections.head_norm.as_ref());
            let gates = self.read_gates.as_ref().map(|gates| gates.slice(s![..read, ..]));
            let mut gates = gates.as_ref().map(|gates| gates.axis_chunks_iter(Axis(0), group));
            let groups = merged.axis_chunks_iter_mut(Axis(0), group);
            let groups: Vec<_> = groups.map(|rows| (rows, gates.as_mut().and_then(Iterator::next))).collect();
            groups.into_par_iter().for_each(|(mut rows, gates)| {
                context.timed(Phase::Combine, || {
                    if let Some(weights) = head_norm.and_then(|norm| norm.as_slice()) {
                        rms_norm_heads(rows.view_mut(), weights, d);
                    }
                    if let Some(gates) = gates {
                        for (mut head, gates) in rows.axis_chunks_iter_mut(Axis(1), d).zip(gates.columns()) {
                            for (mut row, &gate) in head.rows_mut().into_iter().zip(gates) {
                                row.iter_mut().for_each(|x| *x *= gate);
                            }
                        }
                    }
                });
            });
        }
        let groups = merged.axis_chunks_iter_mut(Axis(0), group);
        if let (Some(weights), Some(combined)) = (&projections.combine, &mut self.combined) {
            let mut combined = combined.slice_mut(s![..read, ..]);
            let groups = groups.zip(combined.axis_chunks_iter_mut(Axis(0), group));
            groups.collect::<Vec<_>>().into_par_iter().for_each(|(heads, mut rows)| {
                context.timed(Phase::Combine, || {
                    weights.multiply(heads.view(), rows.view_mut());
                    norm(rows);
                });
            });
        } else {
            let groups = groups.collect::<Vec<_>>().into_par_iter();
            groups.for_each(|rows| context.timed(Phase::Combine, || norm(rows)));
        }
    }

    /// Interleaves the heads' metrics by chunk and finds the block's first divergence and first non-finite read.
    fn collect(&mut self, block: Block, c: usize) {
        let of_heads = self.heads.iter().filter_map(|head| head.divergence.clone());
        self.divergence = of_heads.min_by_key(|divergence| divergence.chunk);
        let output = self.output();
        let of_output = first_nonfinite(output).map(|(row, value)| Divergence {
            sequence: self.sequence,
            chunk: (block.start() + row) / c,
            head: None,
            quantity: "retrieved",
            value: value.to_string(),
        });
        // Heads come first, so that the first head of a chunk is named, and a head before the combined output.
        let reads = self.heads.iter().filter_map(|head| head.bad_read.clone()).chain(of_output);
        self.bad_read = reads.min_by_key(|read| read.chunk);

        self.rows.clear();
        let end = self.divergence.as_ref().map_or(usize::MAX, |at| at.chunk);
        let mut heads: Vec<_> = self.heads.iter_mut().map(|head| head.rows.drain(..)).collect();
        loop {
            let chunk = heads.iter_mut().filter_map(Iterator::next).filter(|row| row.chunk < end);
            let before = self.rows.len();
            self.rows.extend(chunk);
            if self.rows.len() == before {
                break;
            }
        }
    }

    /// Returns the output rows: (rows, D)
    fn output(&self) -> ArrayView2<'_, T> {
        let output = self.combined.as_ref().unwrap_or(&self.merged);
        output.slice(s![..self.tokens.read.rows().nrows(), ..])
    }

    /// Returns the index of the first retrieved row in the given queries, and the retrieved rows of this block
    /// (rows, D). Rows that an earlier call has already returned are skipped.
    pub fn retrieved(&self, block: Block, first_query: usize) -> (usize, ArrayView2<'_, T>) {
        let start = first_query.clamp(block.read.start, block.read.end);
        let rows = self.output().slice_move(s![start - block.read.start.., ..]);
        (start.saturating_sub(first_query), rows)
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
