//! One head of one sequence: first all gradients of a block at W, then the layers of the memory in order. The
//! column panels of a layer go through the block's chunks side by side.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::norm::{joined, squared_distance};
use super::panel::{FusedUpdate, Norms, Panel, Reading, Step, StoredChunks};
use super::retention::KeptChunks;
use super::{Block, Context, Divergence, Memory, Phase, Sizes};
use crate::memory::GateValues;
use crate::memory::model::{Factors, MemoryModel};
use crate::metrics::{ChunkMetrics, WeightMetrics, rounded};
use crate::real::Real;

/// Inputs of a head for one block.
pub struct Inputs<'a, T> {
    /// (rows, d)
    pub keys: ArrayView2<'a, T>,
    /// (rows, d)
    pub values: ArrayView2<'a, T>,
    /// (rows, d)
    pub queries: ArrayView2<'a, T>,
    /// Gates of the head, by chunk.
    pub gates: Vec<GateValues>,
}

/// Column panels and buffers of one head.
pub struct Head<T: Real> {
    index: usize,
    panels: Vec<Panel<T>>,
    queries: Reader<T>,
    /// Absent in a plain read.
    storing: Option<StoreBuffers<T>>,
    /// Empty without retention.
    pub kept: KeptChunks<T>,
    /// Metrics of the block, up to a divergence.
    pub rows: Vec<ChunkMetrics>,
    /// The first non-finite metric of the block.
    pub divergence: Option<Divergence>,
    /// The first non-finite value read in the block.
    pub bad_read: Option<Divergence>,
}

/// Rows that pass through the memory's layers.
struct Reader<T> {
    /// Products with the weights of each layer, (rows, out). For the queries the last layer's are missing: they
    /// are the output.
    products: Vec<Array2<T>>,
    /// Input of each layer after the first, (rows, in).
    inputs: Vec<Array2<T>>,
}

/// Buffers for storing.
struct StoreBuffers<T> {
    factors: Factors<Array2<T>>,
    /// Loss of each row of the block at W.
    losses: Vec<f64>,
    /// Readers of the keys, just before and just after their chunk is stored.
    probe: Option<[Reader<T>; 2]>,
}

impl<T: Real> Reader<T> {
    fn new(model: &impl MemoryModel<T>, rows: usize) -> Self {
        // Products have the shapes of their cotangents.
        let Factors { inputs, cotangents } = Factors::new(model, rows);
        Self { products: cotangents, inputs }
    }

    fn len(&self) -> usize {
        self.products.iter().chain(&self.inputs).map(Array2::len).sum()
    }

    fn of_queries(model: &impl MemoryModel<T>, rows: usize) -> Self {
        let mut reader = Self::new(model, rows);
        reader.products.pop();
        reader
    }

    /// Computes the input of the next layer from the products of `layer`, for all layers but the last.
    fn activate<M: MemoryModel<T>>(&mut self, context: &Context<'_, T, M>, layer: usize, rows: usize) {
        let group = context.plan.group_rows;
        let products = self.products[layer].slice(s![..rows, ..]);
        let mut inputs = self.inputs[layer].slice_mut(s![..rows, ..]);
        let parts =
            products.axis_chunks_iter(Axis(0), group).zip(inputs.axis_chunks_iter_mut(Axis(0), group));
        parts.collect::<Vec<_>>().into_par_iter().for_each(|(products, inputs)| {
            let memory = context.memory;
            context.with_scratch(Phase::Activate, |scratch| {
                memory.model.activate(layer, memory.chunk_size, products, inputs, scratch);
            });
        });
    }
}

impl<T: Real> Head<T> {
    /// Allocates buffers for any head of `memory`.
    pub fn new<M: MemoryModel<T>>(memory: &Memory<T, M>, sizes: Sizes, index: usize) -> Self {
        let model = &memory.model;
        let Sizes { stored, read, storing, probe, .. } = sizes;
        Self {
            index,
            panels: memory.columns.iter().map(|columns| Panel::new(columns, storing)).collect(),
            queries: Reader::of_queries(model, read),
            storing: storing.then(|| StoreBuffers {
                factors: Factors::new(model, stored),
                losses: vec![0.0; stored],
                probe: probe.then(|| [(); 2].map(|()| Reader::new(model, stored))),
            }),
            kept: KeptChunks::default(),
            rows: Vec::new(),
            divergence: None,
            bad_read: None,
        }
    }

    /// Returns the bytes of panels and buffers.
    pub fn bytes(&self) -> usize {
        let storing = self.storing.as_ref().map_or(0, |storing| {
            let Factors { inputs, cotangents } = &storing.factors;
            let factors = inputs.iter().chain(cotangents).map(Array2::len).sum::<usize>();
            let probe = storing.probe.iter().flatten().map(Reader::len).sum::<usize>();
            (factors + probe) * size_of::<T>() + size_of_val(&storing.losses[..])
        });
        let panels = self.panels.iter().map(Panel::bytes).sum::<usize>();
        panels + self.kept.bytes() + storing + self.queries.len() * size_of::<T>()
    }

    /// Loads U and S of all memory weights, in file order.
    pub fn load<M: MemoryModel<T>>(&mut self, memory: &Memory<T, M>, update: &[T], momentum: &[T]) {
        (self.divergence, self.bad_read) = (None, None);
        self.kept.clear();
        let panels = self.panels.par_iter_mut().zip(&memory.columns);
        panels.for_each(|(panel, columns)| {
            let place = memory.weight_elements[columns.weight].clone();
            panel.load(columns, &update[place.clone()], &momentum[place]);
        });
    }

    /// Writes U and S back.
    pub fn save<M: MemoryModel<T>>(&self, memory: &Memory<T, M>, update: &mut [T], momentum: &mut [T]) {
        for (panel, columns) in self.panels.iter().zip(&memory.columns) {
            let place = memory.weight_elements[columns.weight].clone();
            panel.save(columns, &mut update[place.clone()], &mut momentum[place]);
        }
    }

    /// Reads and stores the chunks of a block. `output` (rows, d) receives the retrieved rows.
    pub fn run<M: MemoryModel<T>>(
        &mut self,
        context: &Context<'_, T, M>,
        (sequence, block): (usize, Block),
        inputs: &Inputs<'_, T>,
        mut output: ArrayViewMut2<'_, T>,
    ) {
        if let Some(storing) = &mut self.storing {
            storing.loss_and_gradient(context, inputs);
        }
        let steps: Vec<Step<T>> = inputs.gates.iter().map(Step::from_gates).collect();
        let last = context.memory.model.layers().len() - 1;
        for layer in 0..last {
            self.fused_update(context, layer, inputs, &steps, None);
            self.queries.activate(context, layer, inputs.queries.nrows());
            let probes = self.storing.iter_mut().flat_map(|storing| storing.probe.iter_mut().flatten());
            probes.for_each(|probe| probe.activate(context, layer, inputs.keys.nrows()));
        }
        self.fused_update(context, last, inputs, &steps, Some(output.view_mut()));
        output.slice_mut(s![..context.plan.unready(block), ..]).fill(T::zero());
        context
            .timed(Phase::Metrics, || self.report(context.memory, (sequence, block), inputs, output.view()));
        if self.divergence.is_none() && context.plan.keeps(block) {
            let chunk = inputs.keys.nrows() - context.memory.chunk_size..;
            let [keys, values] =
                [inputs.keys, inputs.values].map(|rows| rows.slice_move(s![chunk.clone(), ..]));
            self.kept.keep(keys, values, self.rows.last().expect("a row a stored chunk").loss);
        }
    }

    /// Returns ℓ of each kept chunk under W + U.
    pub fn reread<M: MemoryModel<T>>(&self, context: &Context<'_, T, M>) -> Vec<f64> {
        self.kept.losses(context, &context.memory.read_weights(&self.panels))
    }

    /// Updates all panels of a layer through all chunks. `output` receives the last layer's products with the queries.
    fn fused_update<M: MemoryModel<T>>(
        &mut self,
        context: &Context<'_, T, M>,
        layer: usize,
        inputs: &Inputs<'_, T>,
        steps: &[Step<T>],
        output: Option<ArrayViewMut2<'_, T>>,
    ) {
        let memory = context.memory;
        let place = memory.panels_of(layer);
        let columns = &memory.columns[place.clone()];
        let panels = self.panels[place.clone()].iter_mut().zip(&memory.base_panels[place]);
        let mut fused_updates: Vec<_> = panels
            .map(|(panel, base)| FusedUpdate {
                chunk: memory.chunk_size,
                base,
                panel,
                stored: None,
                readings: Vec::new(),
            })
            .collect();
        let Self { queries, storing, .. } = self;
        let mut readers = vec![(queries, inputs.queries, output, false)];
        if let Some(StoreBuffers { factors, probe, .. }) = storing {
            let a = layer_input(layer, inputs.keys, &factors.inputs);
            let mut b = factors.cotangents[layer].slice(s![..a.nrows(), ..]);
            for (fused_update, columns) in fused_updates.iter_mut().zip(columns) {
                let (cotangents, rest) = b.split_at(Axis(1), columns.width);
                fused_update.stored = Some(StoredChunks { steps, inputs: a, cotangents });
                b = rest;
            }
            let probes = probe.iter_mut().flatten().zip([false, true]);
            readers.extend(probes.map(|(probe, after)| (probe, inputs.keys, None, after)));
        }
        for (Reader { products, inputs }, first, output, after) in readers {
            let inputs = layer_input(layer, first, inputs);
            let mut products = output.unwrap_or_else(|| products[layer].slice_mut(s![..first.nrows(), ..]));
            for (fused_update, columns) in fused_updates.iter_mut().zip(columns) {
                let (outputs, rest) = products.split_at(Axis(1), columns.width);
                fused_update.readings.push(Reading { inputs, outputs, after });
                products = rest;
            }
        }
        fused_updates
            .into_par_iter()
            .for_each(|fused_update| context.timed(Phase::FusedUpdate, || fused_update.run()));
    }

    /// Fills `rows`, sets `divergence` to the first non-finite metric, and `bad_read` to the first non-finite
    /// value read.
    fn report<M: MemoryModel<T>>(
        &mut self,
        memory: &Memory<T, M>,
        (sequence, block): (usize, Block),
        inputs: &Inputs<'_, T>,
        output: ArrayView2<'_, T>,
    ) {
        let c = memory.chunk_size;
        let first = block.start() / c;
        let Self { index, panels, storing, rows, divergence, bad_read, .. } = self;
        let diverged = |chunk: usize, quantity: &'static str, value: f64| {
            let value = value.to_string();
            Some(Divergence { sequence, chunk: first + chunk, head: Some(*index), quantity, value })
        };
        rows.clear();
        *bad_read =
            first_nonfinite(output).and_then(|(row, value)| diverged(row / c, "retrieved", value.to_f64()));
        if let Some(storing) = storing {
            let row = |chunk: usize| {
                let gates = inputs.gates[chunk];
                let losses = storing.chunk_losses(inputs, chunk * c..(chunk + 1) * c);
                let of_weight =
                    |panels: &[Panel<T>]| Norms::joined(panels.iter().map(|panel| panel.norms[chunk]));
                let norms: Vec<_> =
                    memory.weight_panels.iter().map(|place| of_weight(&panels[place.clone()])).collect();
                metrics::<T>((sequence, first + chunk, *index), c, losses, gates, &norms)
            };
            // A row is little work, and there are many where chunks are short.
            (0..inputs.gates.len()).into_par_iter().with_min_len(64).map(row).collect_into_vec(rows);
            let bad = rows.iter().enumerate().find_map(|(i, row)| Some((i, row.first_nonfinite()?)));
            if let Some((chunk, (quantity, value))) = bad {
                *divergence = diverged(chunk, quantity, value);
                rows.truncate(chunk);
            }
        }
    }
}

impl<T: Real> StoreBuffers<T> {
    /// Computes the gradients of the block at W. Groups of rows run in parallel.
    fn loss_and_gradient<M: MemoryModel<T>>(&mut self, context: &Context<'_, T, M>, inputs: &Inputs<'_, T>) {
        let (memory, group) = (context.memory, context.plan.group_rows);
        let rows = inputs.keys.nrows();
        let groups = self.factors.groups(rows, group).into_iter().zip(self.losses[..rows].chunks_mut(group));
        let tokens =
            inputs.keys.axis_chunks_iter(Axis(0), group).zip(inputs.values.axis_chunks_iter(Axis(0), group));
        groups.zip(tokens).collect::<Vec<_>>().into_par_iter().for_each(
            |((mut factors, losses), (keys, values))| {
                context.with_scratch(Phase::Gradients, |scratch| {
                    let c = memory.chunk_size;
                    memory.model.loss_and_gradient(
                        &memory.weights,
                        keys,
                        values,
                        c,
                        losses,
                        &mut factors,
                        scratch,
                    );
                });
            },
        );
    }

    /// Returns ℓ of a chunk at W, and at W + U just before and just after it was stored.
    fn chunk_losses(&self, inputs: &Inputs<'_, T>, range: std::ops::Range<usize>) -> (f64, Option<[f64; 2]>) {
        let at_w = self.losses[range.clone()].iter().sum();
        let values = inputs.values.slice(s![range.clone(), ..]);
        let probed = |reader: &Reader<T>| {
            let predicted = reader.products.last().expect("a memory has layers");
            chunk_loss(predicted.slice(s![range.clone(), ..]), values)
        };
        let probe = self.probe.as_ref().map(|readers| readers.each_ref().map(probed));
        (at_w, probe)
    }
}

/// Returns ℓ of a chunk from M(k) and v.
pub fn chunk_loss<T: Real>(predicted: ArrayView2<T>, values: ArrayView2<T>) -> f64 {
    let rows = predicted.rows().into_iter().zip(values.rows());
    let squares = rows.map(|(predicted, value)| {
        let [predicted, value] = [predicted, value].map(|row| row.to_slice().expect("contiguous rows"));
        squared_distance(predicted, value)
    });
    squares.sum::<f64>() / values.ncols() as f64
}

/// Returns the rows that a layer multiplies: `first` (rows, in) for the first layer, and `made` for a later one.
fn layer_input<'a, T>(layer: usize, first: ArrayView2<'a, T>, made: &'a [Array2<T>]) -> ArrayView2<'a, T> {
    match layer {
        0 => first,
        _ => made[layer - 1].slice(s![..first.nrows(), ..]),
    }
}

/// Builds the metrics row of a (sequence, chunk, head). `losses` are at W and, with a probe, before and after.
pub fn metrics<T: Real>(
    (sequence, chunk, head): (usize, usize, usize),
    c: usize,
    losses: (f64, Option<[f64; 2]>),
    gates: GateValues,
    norms: &[Norms],
) -> ChunkMetrics {
    let total = |of: fn(&Norms) -> f64| rounded::<T>(joined(norms.iter().map(of)));
    let (loss, probed) = losses;
    let probed = probed.map(|losses| losses.map(rounded::<T>));
    let surprise = total(|norms| norms.surprise);
    let of_weight = |norms: &Norms| WeightMetrics {
        surprise: rounded::<T>(norms.surprise),
        momentum_norm: rounded::<T>(norms.momentum),
        update_norm: rounded::<T>(norms.update),
    };
    ChunkMetrics {
        sequence,
        chunk,
        head,
        start: chunk * c,
        end: (chunk + 1) * c,
        loss: rounded::<T>(loss),
        loss_before: probed.map(|[before, _]| before),
        loss_after: probed.map(|[_, after]| after),
        surprise,
        learning_rate: rounded::<T>(gates.learning_rate),
        momentum: rounded::<T>(gates.momentum),
        decay: rounded::<T>(gates.decay),
        surprise_norm: rounded::<T>(gates.learning_rate * surprise),
        momentum_norm: total(|norms| norms.momentum),
        update_norm: total(|norms| norms.update),
        weight_norm: total(|norms| norms.weight),
        weights: norms.iter().map(of_weight).collect(),
    }
}

/// Returns the index of the first row with a NaN or infinity, and that value.
pub fn first_nonfinite<T: Real>(rows: ArrayView2<T>) -> Option<(usize, T)> {
    let mut bad = rows.rows().into_iter().enumerate();
    bad.find_map(|(i, row)| {
        // There is no early exit, so that the loop is vectorised; hits are rare.
        let finite = row.iter().fold(true, |finite, x| finite & x.is_finite());
        if finite { None } else { row.iter().find(|x| !x.is_finite()).map(|&x| (i, x)) }
    })
}
