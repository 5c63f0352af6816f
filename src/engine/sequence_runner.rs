//! One sequence in the engine: its heads, and the combination of their outputs.

use std::borrow::Cow;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::Memory;
use super::block_inputs::BlockInputs;
use super::cpu::Context;
use super::driver::BlockResults;
use super::head::{Head, first_nonfinite};
use super::outcome::{Divergence, Phase};
use super::plan::{Block, Sizes};
use super::tokens::{rms_norm, rms_norm_heads};
use crate::memory::State;
use crate::metrics::{ChunkMetrics, Retained, Spectrum};
use crate::real::Real;

/// Heads and outputs of one sequence.
pub struct SequenceRunner<T: Real> {
    sequence: usize,
    heads: Vec<Head<T>>,
    /// Rows of the block's queries.
    read: usize,
    /// Outputs of the heads, side by side: (rows, hd)
    merged: Array2<T>,
    /// Combined outputs, with several heads: (rows, D)
    combined: Option<Array2<T>>,
    /// Metrics of the block, by chunk and head.
    rows: Vec<ChunkMetrics>,
    /// Losses of kept chunks under the memory at the end of the block, if they are read again there: by chunk
    /// and head.
    retained: Vec<Retained>,
    /// Losses of the block's last chunk under the memory before the block, if it is kept: by head.
    unstored: Vec<Retained>,
    /// Singular values of the updates after the block, if they are taken there: by head and weight.
    spectra: Vec<Spectrum>,
    /// The first non-finite metric of the block.
    divergence: Option<Divergence>,
    /// The first non-finite value read in the block.
    bad_read: Option<Divergence>,
}

impl<T: Real> SequenceRunner<T> {
    /// Allocates buffers for any sequence.
    pub fn new(memory: &Memory<T>, sizes: Sizes) -> Self {
        let dimensions = memory.dimensions;
        Self {
            sequence: 0,
            heads: (0..dimensions.heads).map(|head| Head::new(memory, sizes, head)).collect(),
            read: 0,
            merged: Array2::zeros((sizes.read, dimensions.inner())),
            combined: (dimensions.heads > 1).then(|| Array2::zeros((sizes.read, dimensions.dim))),
            rows: Vec::new(),
            retained: Vec::new(),
            unstored: Vec::new(),
            spectra: Vec::new(),
            divergence: None,
            bad_read: None,
        }
    }

    /// Returns the bytes of all buffers.
    pub fn bytes(&self) -> usize {
        let outputs = self.merged.len() + self.combined.as_ref().map_or(0, Array2::len);
        outputs * size_of::<T>() + self.heads.iter().map(Head::bytes).sum::<usize>()
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

    /// Takes the state through a block.
    pub fn run(&mut self, context: &Context<'_, T>, block: Block, inputs: &mut BlockInputs<T>) {
        let (memory, sequence) = (context.memory, self.sequence);
        self.read = block.read.len();
        let mut merged = self.merged.slice_mut(s![..self.read, ..]);
        let outputs = merged.axis_chunks_iter_mut(Axis(1), memory.dimensions.dim_head);
        let heads: Vec<_> = self.heads.iter_mut().zip(inputs.heads(block)).zip(outputs).collect();
        heads.into_par_iter().for_each(|((head, inputs), output)| {
            head.run(context, (sequence, block), inputs, output);
        });
        self.combine(context, inputs.read_gates());
        context.clock.timed(Phase::Metrics, || self.collect(block, memory.chunk_size()));
        self.unstored.clear();
        if self.divergence.is_none() {
            let c = memory.chunk_size();
            self.unstored.extend(self.heads.iter().enumerate().filter_map(|(j, head)| {
                let (loss, &loss_at_w) = head.unstored.zip(head.kept.at_w().last())?;
                let (after, chunk) = (block.start() / c - 1, block.store.end / c - 1);
                Some(Retained { sequence: self.sequence, after, chunk, head: j, loss, loss_at_w })
            }));
        }
        self.spectra.clear();
        if self.divergence.is_none() {
            let (sequence, after) = (self.sequence, block.store.end / memory.chunk_size());
            let heads = self.heads.iter_mut().enumerate();
            self.spectra.extend(heads.flat_map(|(head, of)| {
                let spectra = of.spectra.drain(..).enumerate();
                spectra.map(move |(weight, values)| Spectrum {
                    sequence,
                    chunk: after - 1,
                    head,
                    weight,
                    values,
                })
            }));
        }
        self.retained.clear();
        if self.divergence.is_none() && context.plan.rereads(block) {
            self.reread(context, block);
        }
    }

    /// Returns the results of the block.
    pub fn results(&self) -> BlockResults<'_, T> {
        BlockResults {
            metrics: Cow::Borrowed(&self.rows),
            output: self.output(),
            retained: &self.retained,
            unstored: &self.unstored,
            spectra: &self.spectra,
            divergence: self.divergence.clone(),
            bad_read: self.bad_read.clone(),
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

    /// Computes `post_norm(merged heads @ combine)`, after each head's own norm and gate. Rows read before anything is
    /// stored are zero and stay zero.
    fn combine(&mut self, context: &Context<'_, T>, gates: Option<ArrayView2<'_, T>>) {
        let projections = &context.memory.projections;
        let (read, group) = (self.read, context.plan.group_rows);
        let mut merged = self.merged.slice_mut(s![..read, ..]);
        let norm = |rows: ArrayViewMut2<T>| {
            if let Some(weight) = projections.post_norm.as_ref().and_then(|norm| norm.as_slice()) {
                rms_norm(rows, weight);
            }
        };
        if projections.head_norm.is_some() || gates.is_some() {
            let (d, head_norm) = (context.memory.dimensions.dim_head, projections.head_norm.as_ref());
            let mut gates = gates.as_ref().map(|gates| gates.axis_chunks_iter(Axis(0), group));
            let groups = merged.axis_chunks_iter_mut(Axis(0), group);
            let groups: Vec<_> = groups.map(|rows| (rows, gates.as_mut().and_then(Iterator::next))).collect();
            groups.into_par_iter().for_each(|(mut rows, gates)| {
                context.clock.timed(Phase::Combine, || {
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
                context.clock.timed(Phase::Combine, || {
                    weights.multiply(heads.view(), rows.view_mut());
                    norm(rows);
                });
            });
        } else {
            let groups = groups.collect::<Vec<_>>().into_par_iter();
            groups.for_each(|rows| context.clock.timed(Phase::Combine, || norm(rows)));
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
            quantity: "retrieved".into(),
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
        self.combined.as_ref().unwrap_or(&self.merged).slice(s![..self.read, ..])
    }
}
