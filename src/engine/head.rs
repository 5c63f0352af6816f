//! One head of one sequence: all gradients of a block at W, then the walk along its chunks.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};

use super::{Block, Divergence, Memory, Plan};
use crate::matmul::matmul;
use crate::memory::GateValues;
use crate::memory::model::{Factors, MemoryModel};
use crate::metrics::{ChunkMetrics, WeightMetrics};
use crate::real::Real;
use crate::scan::{self, Norms, Step};

/// What a head sees of a block.
pub struct Inputs<'a, T> {
    /// (rows, d)
    pub keys: ArrayView2<'a, T>,
    /// (rows, d)
    pub values: ArrayView2<'a, T>,
    /// (rows, d)
    pub queries: ArrayView2<'a, T>,
    /// The head's gates, by chunk.
    pub gates: Vec<GateValues>,
}

/// State, weights and buffers of one head.
pub struct Head<'s, T: Real, M: MemoryModel<T>> {
    sequence: usize,
    index: usize,
    reader: Reader<T, M>,
    /// Absent in a plain read.
    storing: Option<Storing<'s, T, M>>,
    /// The metrics of the block, up to a divergence.
    pub rows: Vec<ChunkMetrics<T>>,
    pub divergence: Option<Divergence>,
}

struct Reader<T: Real, M: MemoryModel<T>> {
    /// W + U
    weights: Vec<T>,
    /// Whether there is something to read from: in a plain read always, online once a chunk has been stored.
    ready: bool,
    workspace: M::Workspace,
    /// What was read in this block, (rows, d).
    output: Array2<T>,
    /// Of a probe: what M says of a chunk's keys, (c, d).
    predicted: Array2<T>,
}

struct Storing<'s, T: Real, M: MemoryModel<T>> {
    recurrence: Recurrence<'s, T>,
    /// Loss at W of each row of the block.
    losses: Vec<T>,
    /// Holds the block's factors while chunks are read and probed with the reader's.
    workspace: M::Workspace,
}

/// What a stored chunk moves.
struct Recurrence<'s, T> {
    /// U
    update: &'s mut [T],
    /// S
    momentum: &'s mut [T],
    /// g of the current chunk.
    gradient: Vec<T>,
}

impl<'s, T: Real, M: MemoryModel<T>> Head<'s, T, M> {
    /// A head that reads with W + U, whatever was stored.
    pub fn reading(
        memory: &Memory<T, M>,
        plan: &Plan<'_, T>,
        sequence: usize,
        head: usize,
        update: &[T],
    ) -> Self {
        let (stored, read) = plan.rows();
        let d = memory.parameters.dimensions.dim_head;
        let probed = if plan.probe { memory.chunk_size.min(stored) } else { 0 };
        let reader = Reader {
            weights: memory.base.iter().zip(update).map(|(&w, &u)| w + u).collect(),
            ready: true,
            workspace: memory.model.workspace(read.max(probed), memory.chunk_size),
            output: Array2::zeros((read, d)),
            predicted: Array2::zeros((probed, d)),
        };
        Self { sequence, index: head, reader, storing: None, rows: Vec::new(), divergence: None }
    }

    /// A head that stores, and reads one chunk behind.
    pub fn storing(
        memory: &Memory<T, M>,
        plan: &Plan<'_, T>,
        sequence: usize,
        head: usize,
        update: &'s mut [T],
        momentum: &'s mut [T],
    ) -> Self {
        let (rows, _) = plan.rows();
        let mut this = Self::reading(memory, plan, sequence, head, update);
        this.reader.ready = plan.first_chunk > 0;
        this.storing = Some(Storing {
            recurrence: Recurrence { gradient: vec![T::zero(); update.len()], update, momentum },
            losses: vec![T::zero(); rows],
            workspace: memory.model.workspace(rows, memory.chunk_size),
        });
        this
    }

    /// What was read in this block, (rows, d).
    pub fn output(&self, rows: usize) -> ArrayView2<'_, T> {
        self.reader.output.slice(s![..rows, ..])
    }

    /// Reads and stores the chunks of a block.
    pub fn run(&mut self, memory: &Memory<T, M>, probe: bool, block: Block, inputs: &Inputs<'_, T>) {
        let Self { sequence, index: head, reader, storing, rows, divergence } = self;
        rows.clear();
        let c = memory.chunk_size;
        let first = block.start() / c;
        let diverged = |chunk: usize, quantity: &'static str, value: T| {
            let value = value.to_string();
            Some(Divergence { sequence: *sequence, chunk, head: Some(*head), quantity, value })
        };
        let queries = inputs.queries.nrows();
        let Some(Storing { recurrence, losses, workspace }) = storing else {
            // The weights stand still: all chunks at once.
            if let Some((row, value)) = reader.read(memory, inputs.queries, 0..queries) {
                *divergence = diverged(first + row / c, "retrieved", value);
            }
            return;
        };
        let stored = inputs.keys.nrows();
        let losses = &mut losses[..stored];
        let factors = memory.model.surprise(&memory.base, inputs.keys, inputs.values, c, losses, workspace);
        for i in 0..stored.max(queries).div_ceil(c) {
            let (chunk, range) = (first + i, i * c..(i + 1) * c);
            if range.start < queries {
                let read = reader.read(memory, inputs.queries, range.start..range.end.min(queries));
                if let Some((_, value)) = read {
                    *divergence = diverged(chunk, "retrieved", value);
                    return;
                }
            }
            if range.end > stored {
                continue;
            }
            let keys = inputs.keys.slice(s![range.clone(), ..]);
            let values = inputs.values.slice(s![range.clone(), ..]);
            let loss_before = probe.then(|| reader.loss(memory, keys, values));

            let gates = inputs.gates[i];
            let norms = recurrence.advance(memory, gates, &factors, range.clone(), &mut reader.weights);
            reader.ready = true;

            let loss_after = probe.then(|| reader.loss(memory, keys, values));
            let total = |of: fn(&Norms) -> f64| T::of(norms.iter().map(of).fold(0.0, f64::hypot));
            let surprise = total(|norms| norms.surprise);
            let row = ChunkMetrics {
                sequence: *sequence,
                chunk,
                head: *head,
                start: chunk * c,
                end: (chunk + 1) * c,
                loss: T::of(losses[range].iter().map(|loss| loss.wide()).sum()),
                loss_before,
                loss_after,
                surprise,
                learning_rate: T::of(gates.learning_rate),
                momentum: T::of(gates.momentum),
                decay: T::of(gates.decay),
                surprise_norm: T::of(gates.learning_rate * surprise.wide()),
                momentum_norm: total(|norms| norms.momentum),
                update_norm: total(|norms| norms.update),
                weight_norm: total(|norms| norms.weight),
                weights: norms
                    .iter()
                    .map(|norms| WeightMetrics {
                        surprise: T::of(norms.surprise),
                        momentum_norm: T::of(norms.momentum),
                        update_norm: T::of(norms.update),
                    })
                    .collect(),
            };
            if let Some((quantity, value)) = row.first_nonfinite() {
                *divergence = diverged(chunk, quantity, value);
                return;
            }
            rows.push(row);
        }
    }
}

impl<T: Real> Recurrence<'_, T> {
    /// Stores the chunk of the rows `range`: moves S and U and writes `weights ← W + U`. Norms per memory weight.
    fn advance(
        &mut self,
        memory: &Memory<T, impl MemoryModel<T>>,
        gates: GateValues,
        factors: &[Factors<'_, T>],
        range: Range<usize>,
        weights: &mut [T],
    ) -> Vec<Norms> {
        let step = Step {
            learning_rate: T::of(gates.learning_rate),
            momentum: T::of(gates.momentum),
            decay: T::of(gates.decay),
        };
        let mut offset = 0;
        let per_weight = memory.weight_shapes().iter().zip(factors).map(|(&(rows, cols), factors)| {
            let part = offset..offset + rows * cols;
            offset = part.end;
            let gradient = &mut self.gradient[part.clone()];
            let a = factors.input.slice(s![range.clone(), ..]);
            let b = factors.cotangent.slice(s![range.clone(), ..]);
            let g = ArrayViewMut2::from_shape((rows, cols), gradient).expect("rows × cols elements");
            matmul(g, a.t(), b);
            scan::step(
                step,
                &self.gradient[part.clone()],
                &mut self.momentum[part.clone()],
                &mut self.update[part.clone()],
                &memory.base[part.clone()],
                &mut weights[part],
            )
        });
        per_weight.collect()
    }
}

impl<T: Real, M: MemoryModel<T>> Reader<T, M> {
    /// Reads the rows `range` of the queries into the same rows of the output; tells the first that is not finite.
    fn read(
        &mut self,
        memory: &Memory<T, M>,
        queries: ArrayView2<T>,
        range: Range<usize>,
    ) -> Option<(usize, T)> {
        let mut output = self.output.slice_mut(s![range.clone(), ..]);
        if !self.ready {
            output.fill(T::zero());
            return None;
        }
        let queries = queries.slice(s![range.clone(), ..]);
        memory.model.read(&self.weights, queries, memory.chunk_size, output.view_mut(), &mut self.workspace);
        first_nonfinite(output.view()).map(|(row, value)| (range.start + row, value))
    }

    /// ℓ of a chunk at W + U.
    fn loss(&mut self, memory: &Memory<T, M>, keys: ArrayView2<T>, values: ArrayView2<T>) -> T {
        memory.model.read(&self.weights, keys, keys.nrows(), self.predicted.view_mut(), &mut self.workspace);
        let squares = self.predicted.iter().zip(&values).map(|(&p, &v)| {
            let error = (p - v).wide();
            error * error
        });
        T::of(squares.sum::<f64>() / keys.ncols() as f64)
    }
}

/// The first row that holds a NaN or infinity, and that value.
pub fn first_nonfinite<T: Real>(rows: ArrayView2<T>) -> Option<(usize, T)> {
    let mut bad = rows.rows().into_iter().enumerate();
    bad.find_map(|(i, row)| row.iter().find(|x| !x.is_finite()).map(|&x| (i, x)))
}
