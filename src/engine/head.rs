//! One head of one sequence. For each stretch between refreshes: first all gradients at W, then the layers of the memory
//! model in order. The column panels of a layer go through the chunks side by side.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::Memory;
use super::block_inputs::HeadBlock;
use super::cpu::Context;
use super::gradient::GradientPoint;
use super::outcome::{Divergence, Phase};
use super::panel::{FusedUpdate, Norms, Panel, Reading, Step, StoredChunks};
use super::plan::{Block, Sizes, Stretch};
use super::reader::Reader;
use super::retention::KeptChunks;
use super::telemetry::{key_cosine, probe, spectra};
use crate::memory::graph::Value;
use crate::memory::{GateValues, Loss};
use crate::metrics::{ChunkMetrics, WeightMetrics, rounded};
use crate::norm::joined;
use crate::real::Real;

/// Column panels and buffers of one head.
pub struct Head<T: Real> {
    index: usize,
    panels: Vec<Panel<T>>,
    queries: Reader<T>,
    /// Readers of the keys, just before and just after their chunk is stored.
    probe: Option<[Reader<T>; 2]>,
    /// The weights of the last refresh, in file order and prepared for gradients; absent without refreshes.
    point: Option<(Vec<T>, GradientPoint<T>)>,
    /// Empty without retention.
    pub kept: KeptChunks<T>,
    /// ℓ of the block's last chunk under the memory before the block, if that chunk is kept and the memory holds others.
    pub unstored: Option<f64>,
    /// Singular values of each memory weight's update after the block, if they are taken there.
    pub spectra: Vec<Vec<f64>>,
    /// Metrics of the block, up to a divergence.
    pub rows: Vec<ChunkMetrics>,
    /// The first non-finite metric of the block.
    pub divergence: Option<Divergence>,
    /// The first non-finite value read in the block.
    pub bad_read: Option<Divergence>,
}

impl<T: Real> Head<T> {
    /// Allocates buffers for any head of `memory`.
    pub fn new(memory: &Memory<T>, sizes: Sizes, index: usize) -> Self {
        let (graph, places) = (&memory.graph, &memory.places);
        let Sizes { stored, read, storing, probe, .. } = sizes;
        let arrays = if storing { memory.program.rule.arrays().len() } else { 1 };
        let refreshes = memory.program.schedule.refresh.is_some();
        Self {
            index,
            panels: memory.columns.iter().map(|columns| Panel::new(columns, arrays)).collect(),
            queries: Reader::new(graph, places, read, false),
            probe: probe.then(|| [(); 2].map(|()| Reader::new(graph, places, stored, true))),
            point: (storing && refreshes)
                .then(|| (vec![T::zero(); graph.elements()], memory.point(index).clone())),
            kept: KeptChunks::default(),
            unstored: None,
            spectra: Vec::new(),
            rows: Vec::new(),
            divergence: None,
            bad_read: None,
        }
    }

    /// Returns the bytes of panels and buffers.
    pub fn bytes(&self) -> usize {
        let readers = self.probe.iter().flatten().chain([&self.queries]).map(Reader::len).sum::<usize>();
        let point = self.point.as_ref();
        let numbers = readers + point.map_or(0, |(weights, _)| weights.len());
        let prepared = point.map_or(0, |(_, point)| point.bytes());
        let panels = self.panels.iter().map(Panel::bytes).sum::<usize>();
        panels + self.kept.bytes() + numbers * size_of::<T>() + prepared
    }

    /// Loads the state's arrays, and the weights of the last refresh after them, in file order.
    pub fn load(&mut self, memory: &Memory<T>, arrays: &[&[T]]) {
        (self.divergence, self.bad_read) = (None, None);
        self.kept.clear();
        let panels = self.panels.par_iter_mut().zip(&memory.columns);
        panels.for_each(|(panel, columns)| {
            let place = memory.weight_elements[columns.weight].clone();
            let parts: Vec<_> = arrays.iter().map(|array| &array[place.clone()]).collect();
            panel.load(columns, &parts);
        });
        if let Some((weights, point)) = &mut self.point {
            weights.copy_from_slice(arrays[memory.program.rule.arrays().len()]);
            point.assign(&memory.graph, weights);
        }
    }

    /// Writes the same arrays back.
    pub fn save(&self, memory: &Memory<T>, arrays: &mut [&mut [T]]) {
        let (of_rule, of_point) = arrays.split_at_mut(memory.program.rule.arrays().len());
        for (panel, columns) in self.panels.iter().zip(&memory.columns) {
            let place = memory.weight_elements[columns.weight].clone();
            let mut parts: Vec<_> = of_rule.iter_mut().map(|array| &mut array[place.clone()]).collect();
            panel.save(columns, &mut parts);
        }
        if let (Some(to), Some((weights, _))) = (of_point.first_mut(), &self.point) {
            to.copy_from_slice(weights);
        }
    }

    /// Reads and stores the chunks of a block. `output` (rows, d) receives the retrieved rows.
    pub fn run(
        &mut self,
        context: &Context<'_, T>,
        (sequence, block): (usize, Block),
        mut inputs: HeadBlock<'_, T>,
        mut output: ArrayViewMut2<'_, T>,
    ) {
        let (memory, c) = (context.memory, context.memory.chunk_size());
        let mut steps: Vec<Step<T>> = inputs.gates.iter().map(Step::from_gates).collect();
        if inputs.rates.is_some() {
            // The rates of tokens are part of the gradient.
            for step in &mut steps {
                step.learning_rate = T::one();
            }
        }
        self.panels.iter_mut().for_each(|panel| panel.norms.clear());
        self.unstored = (context.plan.keeps(block) && block.start() > 0).then(|| {
            let chunk = inputs.keys.nrows() - c..;
            let [keys, values] =
                [inputs.keys, inputs.values].map(|rows| rows.slice_move(s![chunk.clone(), ..]));
            KeptChunks::loss_of(context, &memory.read_weights(self.index, &self.panels), keys, values)
        });
        let probed = probe(context, (self.index, &self.panels), &inputs);
        for stretch in context.plan.stretches(block) {
            self.advance(context, &stretch, &mut inputs, &steps, output.view_mut());
            if stretch.refresh {
                self.refresh(memory);
            }
        }
        output.slice_mut(s![..context.plan.unready(block), ..]).fill(T::zero());
        context
            .clock
            .timed(Phase::Metrics, || self.report(memory, (sequence, block), &inputs, output.view()));
        for (chunk, row) in self.rows.iter_mut().enumerate() {
            (row.surprise_now, row.read_shift) = (probed.surprise_now, probed.read_shift);
            let keys = context.plan.probes.keys.then(|| s![chunk * c..(chunk + 1) * c, ..]);
            row.key_cosine = keys.and_then(|keys| key_cosine(inputs.keys.slice(keys)));
        }
        self.spectra.clear();
        if self.divergence.is_none() && context.plan.takes_spectra(block) {
            context
                .clock
                .timed(Phase::Metrics, || self.spectra = spectra(memory, (self.index, &self.panels)));
        }
        if self.divergence.is_none() && context.plan.keeps(block) {
            let chunk = inputs.keys.nrows() - memory.chunk_size()..;
            let [keys, values] =
                [inputs.keys, inputs.values].map(|rows| rows.slice_move(s![chunk.clone(), ..]));
            self.kept.keep(keys, values, self.rows.last().expect("a row a stored chunk").loss);
        }
    }

    /// Returns ℓ of each kept chunk under the weights that are read.
    pub fn reread(&self, context: &Context<'_, T>) -> Vec<f64> {
        self.kept.losses(context, &context.memory.read_weights(self.index, &self.panels))
    }

    /// Takes gradients at the weights of this moment from here on.
    fn refresh(&mut self, memory: &Memory<T>) {
        let Self { index, panels, point, .. } = self;
        let (weights, point) = point.as_mut().expect("a point of its own");
        let base = memory.base_panels(*index);
        for ((panel, columns), base) in panels.iter_mut().zip(&memory.columns).zip(base) {
            let place = memory.weight_elements[columns.weight].clone();
            let rule = &memory.program.rule;
            if let Some(gate) = memory.projections.transition {
                let old = columns.panel(&weights[place.clone()]);
                panel.replace_weights(rule, (base, &old), |new, old| old + gate * (new - old));
            }
            columns.save(panel.weights(rule, base), &mut weights[place]);
        }
        point.assign(&memory.graph, weights);
    }

    /// Reads and stores a stretch of the block.
    fn advance(
        &mut self,
        context: &Context<'_, T>,
        stretch: &Stretch,
        inputs: &mut HeadBlock<'_, T>,
        steps: &[Step<T>],
        output: ArrayViewMut2<'_, T>,
    ) {
        let memory = context.memory;
        let model = (&memory.graph, &memory.places);
        let c = memory.chunk_size();
        let Stretch { store, read, .. } = stretch;
        let Self { index, panels, queries, probe, point, .. } = self;
        if let Some((_, point)) = point {
            inputs.take_gradients(context, point, store.clone());
        }
        let keys = inputs.keys.slice(s![store.clone(), ..]);
        let output = output.slice_move(s![read.clone(), ..]);
        let one = memory.one.view();
        let mut passages = vec![queries.passage(
            inputs.queries.slice(s![read.clone(), ..]),
            read.clone(),
            Some(output),
            one,
        )];
        for (reader, after) in probe.iter_mut().flatten().zip([false, true]) {
            let mut passage = reader.passage(keys, store.clone(), None, one);
            passage.after = after;
            passages.push(passage);
        }
        let of_chunks = &steps[store.start / c..store.end / c];
        let stored = inputs.gradients.as_deref().map(|gradients| (&gradients.factors, of_chunks));
        for layer in 0..=memory.graph.layers() {
            let mut products: Vec<_> =
                passages.iter_mut().map(|passage| passage.take(model, layer)).collect();
            let mut outputs: Vec<Vec<_>> = products
                .iter_mut()
                .map(|of_passage| of_passage.iter_mut().map(|product| Some(product.view_mut())).collect())
                .collect();
            let mut updates = Vec::new();
            let mut rest = &mut panels[..];
            let mut done = 0;
            let mut by_linear: Vec<_> = memory.graph.linears(layer).enumerate().collect();
            by_linear.sort_by_key(|(_, (_, _, weights))| weights.start);
            for (place, (node, input, weights)) in by_linear {
                let range =
                    memory.weight_panels[weights.start].start..memory.weight_panels[weights.end - 1].end;
                let (of_linear, later) =
                    std::mem::take(&mut rest).split_at_mut(range.start - done).1.split_at_mut(range.len());
                (rest, done) = (later, range.end);
                let bases = &memory.base_panels(*index)[range.clone()];
                let columns = &memory.columns[range];
                let first = updates.len();
                updates.extend(of_linear.iter_mut().zip(bases).map(|(panel, base)| FusedUpdate {
                    rule: memory.program.rule,
                    chunk: c,
                    base,
                    panel,
                    stored: None,
                    readings: Vec::with_capacity(passages.len()),
                }));
                if let Some((factors, steps)) = stored {
                    let a = match input {
                        Value::Rows => keys,
                        Value::Ones => one.broadcast((keys.nrows(), 1)).expect("one column"),
                        Value::Node(node) => of_stretch(factors.inputs[node].as_ref(), store),
                    };
                    let mut b = of_stretch(factors.cotangents[node].as_ref(), store);
                    for (update, columns) in updates[first..].iter_mut().zip(columns) {
                        let (cotangents, rest) = b.split_at(Axis(1), columns.width);
                        update.stored = Some(StoredChunks { steps, inputs: a, cotangents });
                        b = rest;
                    }
                }
                for (passage, outputs) in passages.iter().zip(&mut outputs) {
                    let inputs = passage.input(&memory.places, input);
                    let mut outputs = outputs[place].take().expect("one product for each linear map");
                    for (update, columns) in updates[first..].iter_mut().zip(columns) {
                        let (of_panel, rest) = outputs.split_at(Axis(1), columns.width);
                        update.readings.push(Reading { inputs, outputs: of_panel, after: passage.after });
                        outputs = rest;
                    }
                }
            }
            updates
                .into_par_iter()
                .for_each(|update| context.clock.timed(Phase::FusedUpdate, || update.run()));
            for (passage, products) in passages.iter_mut().zip(products) {
                passage.put(model, layer, products);
                passage.operate(context, layer);
            }
        }
    }

    /// Fills `rows`, sets `divergence` to the first non-finite metric, and `bad_read` to the first non-finite
    /// value read.
    fn report(
        &mut self,
        memory: &Memory<T>,
        (sequence, block): (usize, Block),
        inputs: &HeadBlock<'_, T>,
        output: ArrayView2<'_, T>,
    ) {
        let c = memory.chunk_size();
        let first = block.start() / c;
        let Self { index, panels, probe, rows, divergence, bad_read, .. } = self;
        let diverged = |chunk: usize, quantity: &'static str, value: f64| {
            let value = value.to_string();
            let quantity = quantity.into();
            Some(Divergence { sequence, chunk: first + chunk, head: Some(*index), quantity, value })
        };
        rows.clear();
        *bad_read =
            first_nonfinite(output).and_then(|(row, value)| diverged(row / c, "retrieved", value.to_f64()));
        if let Some(gradients) = inputs.gradients.as_deref() {
            let answer_of_zeros = Array2::<T>::zeros((1, inputs.values.ncols()));
            let row = |chunk: usize| {
                let gates = inputs.gates[chunk];
                let range = chunk * c..(chunk + 1) * c;
                let loss = gradients.losses[range.clone()].iter().sum();
                let values = inputs.values.slice(s![range.clone(), ..]);
                let read = |reader: &Reader<T>| {
                    chunk_loss(memory.program.loss, reader.output().slice(s![range.clone(), ..]), values)
                };
                let zeros = answer_of_zeros.broadcast(values.dim()).expect("a row of zeros");
                let losses = ChunkLosses {
                    loss,
                    zero: chunk_loss(memory.program.loss, zeros, values),
                    probed: probe.as_ref().map(|readers| readers.each_ref().map(read)),
                };
                let of_weight =
                    |panels: &[Panel<T>]| Norms::joined(panels.iter().map(|panel| panel.norms[chunk]));
                let norms: Vec<_> =
                    memory.weight_panels.iter().map(|place| of_weight(&panels[place.clone()])).collect();
                let weighted = inputs.rates.is_some();
                metrics::<T>((sequence, first + chunk, *index), c, losses, (gates, weighted), &norms)
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

/// Returns the rows of a stretch of a factor.
fn of_stretch<'a, T>(factor: Option<&'a Array2<T>>, rows: &Range<usize>) -> ArrayView2<'a, T> {
    factor.expect("a factor of a linear map").slice(s![rows.clone(), ..])
}

/// Returns ℓ of a chunk from M(k) and v.
pub fn chunk_loss<T: Real>(loss: Loss, predicted: ArrayView2<T>, values: ArrayView2<T>) -> f64 {
    let rows = predicted.rows().into_iter().zip(values.rows());
    let sums = rows.map(|(predicted, value)| {
        let [predicted, value] = [predicted, value].map(|row| row.to_slice().expect("contiguous rows"));
        loss.sum(predicted, value)
    });
    sums.sum::<f64>() / loss.divisor(values.ncols())
}

/// Losses of a chunk, ℓ.
pub struct ChunkLosses {
    /// The loss at W.
    pub loss: f64,
    /// The loss of an answer of zeros.
    pub zero: f64,
    /// Losses before and after the chunk is stored, with a probe.
    pub probed: Option<[f64; 2]>,
}

/// Builds the metrics row of a (sequence, chunk, head). `gates` come with whether the learning rate is already part of the
/// gradient.
pub fn metrics<T: Real>(
    (sequence, chunk, head): (usize, usize, usize),
    c: usize,
    losses: ChunkLosses,
    (gates, weighted): (GateValues, bool),
    norms: &[Norms],
) -> ChunkMetrics {
    let total = |of: fn(&Norms) -> f64| rounded::<T>(joined(norms.iter().map(of)));
    let probed = losses.probed.map(|losses| losses.map(rounded::<T>));
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
        loss: rounded::<T>(losses.loss),
        loss_before: probed.map(|[before, _]| before),
        loss_after: probed.map(|[_, after]| after),
        surprise,
        learning_rate: rounded::<T>(gates.learning_rate),
        momentum: rounded::<T>(gates.momentum),
        decay: rounded::<T>(gates.decay),
        surprise_norm: rounded::<T>(if weighted { surprise } else { gates.learning_rate * surprise }),
        momentum_norm: total(|norms| norms.momentum),
        update_norm: total(|norms| norms.update),
        weight_norm: total(|norms| norms.weight),
        // The sum turns −0 into 0.
        loss_zero: Some(rounded::<T>(losses.zero + 0.0)),
        surprise_now: None,
        read_shift: None,
        key_cosine: None,
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
