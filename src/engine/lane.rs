//! One sequence on its way through the engine: norms and projections of a block, its heads in parallel, and their
//! outputs combined.

use ndarray::{Array2, ArrayView1, ArrayView2, Axis, s};
use rayon::prelude::*;

use super::head::{Head, Inputs, first_nonfinite};
use super::tokens::{Tokens, rms_norm};
use super::{Block, Divergence, Memory, Plan};
use crate::matmul::{add_matmul, matmul};
use crate::memory::State;
use crate::memory::model::MemoryModel;
use crate::metrics::ChunkMetrics;
use crate::real::Real;

/// Buffers and heads of one sequence.
pub struct Lane<'s, T: Real, M: MemoryModel<T>> {
    pub sequence: usize,
    pub store: Tokens<T>,
    pub read: Tokens<T>,
    /// (rows, 2hd)
    keys_values: Array2<T>,
    /// (rows, hd)
    queries: Array2<T>,
    /// (chunks, D): means of the chunks' normed tokens.
    means: Array2<T>,
    /// (chunks, 3h)
    logits: Array2<T>,
    heads: Vec<Head<'s, T, M>>,
    /// (rows, D)
    output: Array2<T>,
    /// The metrics of the block, by chunk and head.
    pub rows: Vec<ChunkMetrics<T>>,
    pub divergence: Option<Divergence>,
}

impl<'s, T: Real, M: MemoryModel<T>> Lane<'s, T, M> {
    /// The lanes of a range of sequences, their heads working on the state's own S and U. A plain read of many
    /// sequences against a state of one shares that one.
    pub fn group(
        memory: &Memory<T, M>,
        state: &'s mut State<T>,
        plan: &Plan<'_, T>,
        group: std::ops::Range<usize>,
    ) -> Vec<Self> {
        let elements = memory.base.len();
        if plan.store.is_none() {
            let state = &*state;
            let of_sequence = |sequence: usize| {
                let update =
                    state.update.index_axis(Axis(0), if state.sequences() == 1 { 0 } else { sequence });
                let heads = update.outer_iter().enumerate().map(|(head, update)| {
                    Head::reading(memory, plan, sequence, head, update.as_slice().expect("standard layout"))
                });
                Self::new(memory, plan, sequence, heads.collect())
            };
            return group.map(of_sequence).collect();
        }
        let of_sequence = memory.parameters.dimensions.heads * elements;
        let part = group.start * of_sequence..group.end * of_sequence;
        let update = &mut state.update.as_slice_mut().expect("standard layout")[part.clone()];
        let momentum = &mut state.momentum.as_slice_mut().expect("standard layout")[part];
        let parts = update.chunks_exact_mut(of_sequence).zip(momentum.chunks_exact_mut(of_sequence));
        let lanes = group.zip(parts).map(|(sequence, (update, momentum))| {
            let parts =
                update.chunks_exact_mut(elements).zip(momentum.chunks_exact_mut(elements)).enumerate();
            let heads = parts.map(|(head, (u, s))| Head::storing(memory, plan, sequence, head, u, s));
            Self::new(memory, plan, sequence, heads.collect())
        });
        lanes.collect()
    }

    fn new(memory: &Memory<T, M>, plan: &Plan<'_, T>, sequence: usize, heads: Vec<Head<'s, T, M>>) -> Self {
        let dimensions = memory.parameters.dimensions;
        let (store, read) = plan.rows();
        let chunks = store / memory.chunk_size;
        Self {
            sequence,
            store: Tokens::new(store, dimensions.dim),
            read: Tokens::new(read, dimensions.dim),
            keys_values: Array2::zeros((store, 2 * dimensions.inner())),
            queries: Array2::zeros((read, dimensions.inner())),
            means: Array2::zeros((chunks, dimensions.dim)),
            logits: Array2::zeros((chunks, 3 * dimensions.heads)),
            heads,
            output: Array2::zeros((read, dimensions.dim)),
            rows: Vec::new(),
            divergence: None,
        }
    }

    /// Computes the loaded block: fills `rows` and what [`Self::retrieved`] gives, or `divergence`.
    pub fn run(&mut self, memory: &Memory<T, M>, probe: bool, block: Block) {
        self.project(memory);
        let (d, h) = (memory.parameters.dimensions.dim_head, memory.parameters.dimensions.heads);
        let (stored, read) = (self.store.rows().nrows(), self.read.rows().nrows());
        let keys_values = self.keys_values.slice(s![..stored, ..]);
        let queries = self.queries.slice(s![..read, ..]);
        let logits = self.logits.slice(s![..stored / memory.chunk_size, ..]);
        self.heads.par_iter_mut().enumerate().for_each(|(j, head)| {
            let gates = |logits: ArrayView1<T>| {
                let [step, momentum, decay] = [0, 1, 2].map(|gate| logits[gate * h + j].wide());
                memory.gates.values(step, momentum, decay)
            };
            let inputs = Inputs {
                keys: keys_values.slice(s![.., j * d..(j + 1) * d]),
                values: keys_values.slice(s![.., (h + j) * d..(h + j + 1) * d]),
                queries: queries.slice(s![.., j * d..(j + 1) * d]),
                gates: logits.rows().into_iter().map(gates).collect(),
            };
            head.run(memory, probe, block, &inputs);
        });
        self.combine(memory);
        self.collect(block, memory.chunk_size);
    }

    /// Norms and projects both sides, and computes the gates' logits by chunk.
    fn project(&mut self, memory: &Memory<T, M>) {
        let parameters = &memory.parameters;
        self.read.norm(parameters.retrieve_norm.as_ref());
        let queries = self.read.rows();
        matmul(self.queries.slice_mut(s![..queries.nrows(), ..]), queries, parameters.queries.view());

        self.store.norm(parameters.store_norm.as_ref());
        let tokens = self.store.rows();
        matmul(self.keys_values.slice_mut(s![..tokens.nrows(), ..]), tokens, parameters.keys_values.view());
        let c = memory.chunk_size;
        let chunks = tokens.nrows() / c;
        for (chunk, mut mean) in tokens.axis_chunks_iter(Axis(0), c).zip(self.means.rows_mut()) {
            mean.fill(T::zero());
            chunk.rows().into_iter().for_each(|token| mean += &token);
            mean /= T::of(c as f64);
        }
        let logits = self.logits.slice_mut(s![..chunks, ..]);
        matmul(logits, self.means.slice(s![..chunks, ..]), parameters.gates.view());
    }

    /// `output ← post_norm(merged heads @ combine)`. Rows that were read from nothing are zero and stay zero.
    fn combine(&mut self, memory: &Memory<T, M>) {
        let read = self.read.rows().nrows();
        let mut output = self.output.slice_mut(s![..read, ..]);
        let d = memory.parameters.dimensions.dim_head;
        match &memory.parameters.combine {
            None => output.assign(&self.heads[0].output(read)),
            Some(combine) => {
                output.fill(T::zero());
                for (j, head) in self.heads.iter().enumerate() {
                    add_matmul(
                        output.view_mut(),
                        head.output(read),
                        combine.slice(s![j * d..(j + 1) * d, ..]),
                    );
                }
            }
        }
        if let Some(weight) = &memory.parameters.post_norm {
            rms_norm(output, weight);
        }
    }

    /// Interleaves the heads' metrics by chunk and finds the block's first divergence.
    fn collect(&mut self, block: Block, c: usize) {
        let of_heads = self.heads.iter().filter_map(|head| head.divergence.clone());
        let output = self.output.slice(s![..self.read.rows().nrows(), ..]);
        let of_output = first_nonfinite(output).map(|(row, value)| Divergence {
            sequence: self.sequence,
            chunk: (block.start() + row) / c,
            head: None,
            quantity: "retrieved",
            value: value.to_string(),
        });
        // Heads come first, so that of several in one chunk the first head is named, and a head before the whole.
        self.divergence = of_heads.chain(of_output).min_by_key(|divergence| divergence.chunk);

        self.rows.clear();
        let finite = |row: &&ChunkMetrics<T>| self.divergence.as_ref().is_none_or(|at| row.chunk < at.chunk);
        let chunks = self.heads.iter().map(|head| head.rows.len()).max().unwrap_or(0);
        for i in 0..chunks {
            let rows = self.heads.iter().filter_map(|head| head.rows.get(i));
            self.rows.extend(rows.filter(finite).cloned());
        }
    }

    /// What was read in this block, without what an earlier call has already given: the index of its first row in
    /// the given queries, and the rows.
    pub fn retrieved(&self, block: Block, plan: &Plan<'_, T>) -> (usize, ArrayView2<'_, T>) {
        let start = plan.first_query.clamp(block.read.start, block.read.end);
        let rows = self.output.slice(s![start - block.read.start..block.read.len(), ..]);
        (start.saturating_sub(plan.first_query), rows)
    }
}
