//! The outer gradient: reverse mode through a memory that stores and reads a sequence, for its parameters and its tokens.
//!
//! Storing is gradient descent, so this is the gradient of a loss of what is read, through the gradients that were stored.
//! The inner gradient is explicit, and so is its derivative: no automatic differentiation is needed. The docs' chapter on
//! training derives it.
//!
//! - this file: a sequence, from tokens to heads and back;
//! - `frame`: the rows around the heads;
//! - `head`: one head through time, forward;
//! - `fused`: the first pass forward, which keeps states only at the starts of segments;
//! - `segment`: segments of chunks: gradients, and states of all chunks;
//! - `reads`: reads, and the way back through them;
//! - `reverse`: one head back through time;
//! - `stages`: segments forward and back where gradients are never refreshed, as the stages of a `pipeline`;
//! - `blocks`: such a segment back through time by blocks of the weights;
//! - `passes`: passes over the nodes of a memory model, in the buffers of `node_rows`; `second`: back through the pass back;
//! - `block`: the blocks of the weights;
//! - `recurrences`: those of the state for one chunk, and their way back;
//! - `few_rows`: products of the few rows of short chunks;
//! - `rows`: products, norms and activations of many rows;
//! - `pool`: buffers that tasks hand on.
//!
//! Products are of plain matrices, in tiles if they have few rows and in the gemm crate otherwise. Sequences, the two streams of
//! tokens, heads, segments, chunks, blocks of weights and groups of rows run in parallel. A task's work depends on shapes only, and sums over
//! tasks have a fixed order, so results have the same bits for any number of threads. Memory use is that of a sequence's rows, of
//! each node's rows for all reads where the way back goes by blocks, of each node's rows for the segments at work, and of the weights
//! times about √N for N chunks, or times N where all states are a few megabytes.

mod block;
mod blocks;
mod few_rows;
mod frame;
mod fused;
mod head;
mod node_rows;
mod passes;
mod pipeline;
mod pool;
mod reads;
mod recurrences;
mod reverse;
mod rows;
mod second;
mod segment;
mod stages;

use ndarray::{Array2, Array3, ArrayView2, Axis, concatenate, s};
use rayon::prelude::*;

use self::blocks::go_in_blocks;
use self::frame::Layers;
use self::head::{HeadCotangents, HeadSequence, RowCotangents, State as HeadState};
use self::passes::Passes;
pub use self::pool::Buffers;
use self::rows::add_product;
use super::panel::Step;
use crate::error::{Error, Result};
use crate::memory::limits::OutOfRange;
use crate::memory::operators;
use crate::memory::{Gates, Parameters, Program, State};
use crate::real::Real;

/// When tokens are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// While storing, with the weights that the schedule selects.
    #[default]
    Online,
    /// After everything is stored, with the weights as they stand.
    After,
}

/// Tokens of a call: those that are read and those that are stored, both (tokens, D).
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a, T> {
    /// Queries.
    pub read: ArrayView2<'a, T>,
    /// Tokens to store.
    pub store: ArrayView2<'a, T>,
    /// When the queries are read.
    pub order: Order,
}

/// A call between stretches of work, from any thread. Its error ends the work.
pub type Check<'a> = &'a (dyn Fn() -> Result<()> + Sync);

/// Initial weights in the order of `Passes`, and with each map's weights in columns.
struct Base<T> {
    weights: Vec<T>,
    transposed: Vec<T>,
}

/// A memory whose outer gradient is taken.
pub struct Backward<'a, T> {
    parameters: &'a Parameters<T>,
    program: Program,
    gates: Gates,
    passes: Passes,
    buffers: Buffers<T>,
    /// Initial weights of each head that has its own, past weights included, in the order of `passes`.
    base: Vec<Base<T>>,
    truncate: Option<usize>,
    segment: Option<usize>,
    check: Check<'a>,
}

impl<T> std::fmt::Debug for Backward<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backward")
            .field("program", &self.program)
            .field("truncate", &self.truncate)
            .finish_non_exhaustive()
    }
}

/// Gradients of one sequence.
#[derive(Clone, Debug)]
pub struct Gradients<T> {
    /// Gradient of each parameter. That of a gate layer which the program lacks is zero.
    pub parameters: Parameters<T>,
    /// Gradients of the tokens.
    pub tokens: TokenGradients<T>,
}

/// Gradients of the tokens of one sequence.
#[derive(Clone, Debug)]
pub struct TokenGradients<T> {
    /// Gradient of the tokens that are read (tokens, D).
    pub read: Array2<T>,
    /// Gradient of the tokens that are stored (tokens, D); zero for those of the incomplete last chunk.
    pub store: Array2<T>,
}

/// Results of several sequences, each with the gradients of its tokens, and the sum of their gradients of the parameters.
pub type SumOfGradients<R, T> = (Vec<(R, TokenGradients<T>)>, Parameters<T>);

/// Most segments of a head at work at once. Each takes memory for its rows. A third was no faster on two cores.
const MAX_LIVE: usize = 2;
/// Sequences that run side by side. Each has gradients of all parameters of its own until they are summed.
const GROUP: usize = 8;

impl<'a, T: Real> Backward<'a, T> {
    /// Prepares a memory. `past` shifts its initial weights. Gradients are cut off after every `truncate` tokens, a
    /// multiple of the chunk size.
    ///
    /// # Errors
    /// A program without derivative, and a truncation that is not between chunks.
    pub fn new(
        parameters: &'a Parameters<T>,
        program: Program,
        gates: Gates,
        past: Option<&[Array2<T>]>,
        truncate: Option<usize>,
    ) -> Result<Self> {
        parameters.dimensions.check(&program)?;
        program.check_differentiable()?;
        let c = program.chunk_size();
        if let Some(tokens) = truncate.filter(|tokens| *tokens == 0 || !tokens.is_multiple_of(c)) {
            let problem =
                format!("is not a multiple of chunk_size {c}; gradients are cut off between chunks");
            return Err(Error::limit("truncate")(OutOfRange::new(tokens, problem)));
        }
        let passes = Passes::new(program.model.graph(parameters.dimensions.dim_head), c);
        let heads = if program.frame.per_head { parameters.dimensions.heads } else { 1 };
        let base = |head: usize| {
            let mut all = Vec::with_capacity(passes.graph.elements());
            for (p, weight) in parameters.memory.iter().enumerate() {
                let start = all.len();
                all.extend(weight.index_axis(Axis(0), head));
                if let Some(past) = past {
                    all[start..].iter_mut().zip(&past[p]).for_each(|(w, &delta)| *w += delta);
                }
            }
            let weights = passes.arranged(&all);
            Base { transposed: passes.transposed(&weights), weights }
        };
        let base = (0..heads).map(base).collect();
        let truncate = truncate.map(|tokens| tokens / c);
        let buffers =
            Buffers::new(program.model, parameters.dimensions.dim_head, c, passes.graph.nodes.len());
        let check: Check = &|| Ok(());
        Ok(Self { parameters, program, gates, passes, buffers, base, truncate, segment: None, check })
    }

    /// Keeps the states at the start of every `chunks`-th chunk, and computes those between them again, instead of choosing a
    /// number. The gradients stay the same up to rounding.
    ///
    /// # Panics
    /// If `chunks` is 0.
    #[must_use]
    pub fn in_segments(mut self, chunks: usize) -> Self {
        assert!(chunks > 0, "a segment has chunks");
        self.segment = Some(chunks);
        self
    }

    fn segment_length(&self, chunks: usize) -> usize {
        let size = (self.parameters.dimensions.heads, self.passes.graph.elements());
        let block = go_in_blocks(&self.passes, &self.program).then(|| self.passes.largest_block());
        self.segment.unwrap_or_else(|| segment::segment_length(chunks, self.passes.chunk, size, block))
    }

    /// Returns the number of segments of a head that are at work at once, with some sequences side by side.
    fn live(&self, sequences: usize) -> usize {
        let heads = self.parameters.dimensions.heads * sequences.max(1);
        (rayon::current_num_threads() / heads).clamp(1, MAX_LIVE)
    }

    /// Calls `check` between stretches of work: segments of √N chunks of N or some more, and groups of rows that are read after them.
    #[must_use]
    pub fn checked(mut self, check: Check<'a>) -> Self {
        self.check = check;
        self
    }

    /// Returns the buffers, for other gradients.
    pub fn buffers(&self) -> Buffers<T> {
        self.buffers.clone()
    }

    /// Works in buffers that gradients of another memory have used.
    ///
    /// # Panics
    /// If the memories differ in model, dim_head or chunk size.
    #[must_use]
    pub fn reusing(mut self, buffers: &Buffers<T>) -> Self {
        assert!(self.buffers.suit(buffers), "buffers of another model, dim_head or chunk size");
        self.buffers = buffers.clone();
        self
    }

    /// Returns an upper bound of the bytes that sequences of these lengths take on the threads of the current pool, without
    /// the buffers of products that each thread keeps.
    pub fn bytes(&self, read: usize, stored: usize, sequences: usize) -> u128 {
        let crate::memory::Dimensions { dim, heads, dim_head, .. } = self.parameters.dimensions;
        let inner = heads * dim_head;
        // Tokens, normed tokens, their cotangents and the products of both projections, each with copies.
        let of_frame = (read + stored) * (8 * dim + 12 * inner);
        // Rows of a segment: values, cotangents and tangents of each node.
        let of_nodes: usize = self.passes.graph.nodes.iter().map(|node| 8 * node.width).sum();
        let chunks = stored / self.passes.chunk;
        let length = self.segment_length(chunks);
        let in_blocks = go_in_blocks(&self.passes, &self.program);
        let live = if in_blocks { self.live(sequences.min(GROUP)) } else { 1 };
        let segment = live * (length.min(chunks) + 1);
        let starts = chunks.div_ceil(length);
        // Reading tasks and one of the second pass, beside the groups of a segment, of which the last may be short.
        let tasks = rayon::current_num_threads().max(3);
        let states = if in_blocks { 0 } else { 4 * segment };
        let copies = states + 3 * starts + 2 * tasks + 8;
        let mut weights = self.passes.graph.elements() * copies;
        if in_blocks {
            weights += blocks::numbers::<T>(&self.passes, segment, tasks);
        }
        let tasks = tasks * segment::TASK_ROWS.next_multiple_of(self.passes.chunk);
        let rows = segment * self.passes.chunk + tasks;
        let of_operators = operators::kept_numbers::<T>(&self.passes.graph, rows, self.passes.chunk);
        let kept = if in_blocks {
            let width: usize = self.passes.graph.nodes.iter().map(|node| node.width).sum();
            read * width + operators::kept_numbers::<T>(&self.passes.graph, read, self.passes.chunk)
        } else {
            0
        };
        let of_heads = heads * (rows * of_nodes + of_operators + kept + weights);
        let of_parameters: usize = self.parameters.each().iter().map(|(_, numbers)| numbers.len()).sum();
        // Gradients, layers in columns for the way back, and a part of the sum of all sequences.
        let numbers = of_frame as u128 + of_heads as u128 + 3 * of_parameters as u128;
        let tokens = (read + stored) as u128 * dim as u128 * sequences as u128;
        (sequences.min(GROUP) as u128 * numbers + 3 * tokens) * size_of::<T>() as u128
    }

    /// Reads and stores the tokens of one sequence, from its state or from that of a new memory. `objective` receives what
    /// is read (tokens, D) and returns its cotangent, with whatever the caller wants.
    ///
    /// # Errors
    /// A state whose two streams are not in step, and that of the check.
    pub fn sequence<R>(
        &self,
        start: Option<(&State<T>, usize)>,
        tokens: Tokens<'_, T>,
        objective: impl FnOnce(ArrayView2<T>) -> (R, Array2<T>),
    ) -> Result<(R, Gradients<T>)> {
        self.sequence_of(1, start, tokens, objective)
    }

    /// Takes the gradient of one of some `sequences` side by side.
    fn sequence_of<R>(
        &self,
        sequences: usize,
        start: Option<(&State<T>, usize)>,
        tokens: Tokens<'_, T>,
        objective: impl FnOnce(ArrayView2<T>) -> (R, Array2<T>),
    ) -> Result<(R, Gradients<T>)> {
        let (parameters, Tokens { read, store, order }) = (self.parameters, tokens);
        let (d, heads) = (parameters.dimensions.dim_head, parameters.dimensions.heads);
        let (c, offset) = (self.passes.chunk, self.program.read_offset());
        if let (Some((state, _)), Order::Online) = (start, order) {
            state.check_online(c, offset)?;
        }
        let [store_layers, read_layers] = Layers::of(parameters);
        let left = |of: fn(&State<T>) -> &Array3<T>| {
            start.map(|(state, i)| of(state).index_axis(Axis(0), i).to_owned())
        };
        let left_stored = left(|state| &state.stored.left_over);
        let zeros = || Array2::zeros((offset % c, read.ncols()));
        let left_asked =
            (order == Order::Online).then(|| left(|state| &state.read.left_over).unwrap_or_else(zeros));
        let (stored, asked) = rayon::join(
            || self.stream(store_layers, left_stored, store, true),
            || self.stream(read_layers, left_asked, read, false),
        );
        let (gates, token_rates) = self.gates(stored.normed());

        let (stored_rows, asked_rows) = (stored.rows(), asked.rows());
        let live = self.live(sequences);
        let head_sequences: Vec<_> = (0..heads)
            .map(|j| {
                self.head_sequence(j, (start, order), stored_rows, asked_rows, &gates, token_rates.as_ref())
            })
            .collect();
        let mut of_heads = Array2::zeros(asked_rows.dim());
        let places: Vec<_> = of_heads.axis_chunks_iter_mut(Axis(1), d).collect();
        let forward = |(head, output): (&HeadSequence<'_, T>, _)| head.forward(live, output);
        let tapes = head_sequences.par_iter().zip(places).map(forward).collect::<Result<Vec<_>>>()?;
        let mut output = self.combine(&asked, of_heads);
        let (result, mut d_output) = objective(output.rows().slice_move(s![asked.before.., ..]));
        // Later arrays take the place of those that are dropped before them, whose pages have been touched.
        output.post_normed = None;
        if asked.before > 0 {
            let earlier = Array2::zeros((asked.before, d_output.ncols()));
            d_output =
                concatenate(Axis(0), &[earlier.view(), d_output.view()]).expect("rows of the same width");
        }
        if !d_output.is_standard_layout() {
            d_output = d_output.as_standard_layout().into_owned();
        }

        let mut of = parameters.zeros();
        // These may be large, and are written after the heads.
        of.memory.clear();
        [of.keys_values, of.queries] = Default::default();
        let (d_heads, d_read_gates) = self.combine_vjp(&asked, output, d_output, &mut of);
        let mut d_stored = Array2::zeros(stored_rows.dim());
        let mut d_asked = Array2::zeros(asked_rows.dim());
        let mut keys: Vec<_> = d_stored.axis_chunks_iter_mut(Axis(1), d).collect();
        let values = keys.split_off(heads);
        let queries = d_asked.axis_chunks_iter_mut(Axis(1), d);
        let places: Vec<_> = keys
            .into_iter()
            .zip(values)
            .zip(queries)
            .map(|((keys, values), queries)| RowCotangents { keys, values, queries })
            .collect();
        let of_heads = head_sequences
            .par_iter()
            .zip(tapes)
            .zip(places)
            .enumerate()
            .map(|(j, ((head, tape), to))| {
                head.backward(live, tape, d_heads.slice(s![.., j * d..(j + 1) * d]), to)
            })
            .collect::<Result<Vec<_>>>()?;
        drop(d_heads);
        let [mut d_stored_normed, mut d_asked_normed] =
            [&stored, &asked].map(|stream| Array2::zeros(stream.tokens.dim()));
        self.gates_vjp(&stored, &gates, token_rates.as_ref(), &of_heads, &mut d_stored_normed, &mut of);
        if let Some((d_gates, layer)) = d_read_gates.zip(parameters.read_gate.as_ref()) {
            add_product(&mut d_asked_normed, d_gates.view(), layer.t());
        }
        self.weights_vjp(&of_heads, &mut of);
        let (stored_gradients, asked_gradients) = rayon::join(
            || self.stream_vjp(&stored, d_stored, d_stored_normed),
            || self.stream_vjp(&asked, d_asked, d_asked_normed),
        );
        of.keys_values = stored_gradients.projection;
        of.queries = asked_gradients.projection;
        of.store_norm = stored_gradients.norm;
        of.retrieve_norm = asked_gradients.norm;
        of.qk_norm =
            stored_gradients.qk_norm.zip(asked_gradients.qk_norm).map(|(keys, queries)| [keys, queries]);
        // Rows that an earlier call left are constants, and tokens of an incomplete chunk are not stored.
        let from = stored.before.min(stored_gradients.tokens.nrows());
        let read = rows_from(asked_gradients.tokens, asked.before, read.nrows());
        let store = rows_from(stored_gradients.tokens, from, store.nrows());
        Ok((result, Gradients { parameters: of, tokens: TokenGradients { read, store } }))
    }

    /// Adds the gradients of the heads' initial weights up, and those of the fraction that a refresh keeps.
    fn weights_vjp(&self, of_heads: &[HeadCotangents<T>], gradients: &mut Parameters<T>) {
        gradients.memory = self.parameters.memory.iter().map(|weight| Array3::zeros(weight.dim())).collect();
        for (j, head) in of_heads.iter().enumerate() {
            let of_head = if self.base.len() == 1 { 0 } else { j };
            for (p, weight) in self.passes.matrices(&head.base) {
                let mut sum = gradients.memory[p].index_axis_mut(Axis(0), of_head);
                sum.iter_mut().zip(weight).for_each(|(sum, &x)| *sum += x);
            }
            if let (Some(sum), Some(logit)) = (&mut gradients.transition, self.parameters.transition) {
                let gate = 1.0 / (1.0 + (-logit.to_f64()).exp());
                *sum += T::from_f64(head.transition * gate * (1.0 - gate));
            }
        }
    }

    /// Takes the gradients of several sequences, as [`sequence`](Self::sequence) does, and sums those of the parameters in the
    /// order of the sequences. Some of them run side by side.
    ///
    /// # Errors
    /// Those of a sequence.
    pub fn sequences<R: Send>(
        &self,
        state: Option<&State<T>>,
        tokens: &[Tokens<'_, T>],
        objective: impl Fn(usize, ArrayView2<T>) -> (R, Array2<T>) + Sync,
    ) -> Result<SumOfGradients<R, T>> {
        let beside = tokens.len().min(GROUP);
        let mut sum: Option<Parameters<T>> = None;
        let mut results = Vec::with_capacity(tokens.len());
        for (i, group) in tokens.chunks(GROUP).enumerate() {
            let of_sequence = |(j, tokens): (usize, &Tokens<'_, T>)| {
                let index = i * GROUP + j;
                let start = state.map(|state| (state, index));
                self.sequence_of(beside, start, *tokens, |read| objective(index, read))
            };
            let of_group: Vec<_> = group.par_iter().enumerate().map(of_sequence).collect();
            for result in of_group {
                let (result, Gradients { parameters, tokens }) = result?;
                match &mut sum {
                    Some(sum) => sum.add(&parameters),
                    None => sum = Some(parameters),
                }
                results.push((result, tokens));
            }
        }
        Ok((results, sum.unwrap_or_else(|| self.parameters.zeros())))
    }

    fn head_sequence<'s>(
        &'s self,
        j: usize,
        (start, order): (Option<(&State<T>, usize)>, Order),
        stored: ArrayView2<'s, T>,
        asked: ArrayView2<'s, T>,
        gates: &Array2<T>,
        token_rates: Option<&Array2<T>>,
    ) -> HeadSequence<'s, T> {
        let parameters = self.parameters;
        let (d, h) = (parameters.dimensions.dim_head, parameters.dimensions.heads);
        let Base { weights: base, transposed } = &self.base[if self.base.len() == 1 { 0 } else { j }];
        let rule = self.program.rule;
        let zeros = || vec![T::zero(); base.len()];
        let state = match start {
            Some((state, i)) => {
                let arranged = |of: &Array3<T>| self.passes.arranged(&of.slice(s![i, j, ..]).to_vec());
                HeadState {
                    update: arranged(&state.arrays[0]),
                    momentum: state.momentum().map_or_else(zeros, arranged),
                    point: state.gradient_point.as_ref().map_or_else(Vec::new, arranged),
                }
            }
            None => HeadState {
                update: if rule.holds_weights() { base.clone() } else { zeros() },
                momentum: zeros(),
                point: self.program.schedule.refresh.map_or_else(Vec::new, |_| base.clone()),
            },
        };
        let steps = gates.rows().into_iter().map(|logits| {
            let [step, momentum, decay] = [0, 1, 2].map(|i| logits[i * h + j].to_f64());
            let mut gates = self.gates.values(&rule, step, momentum, decay);
            if token_rates.is_some() {
                gates.learning_rate = 1.0;
            }
            Step::from_gates(&gates)
        });
        let rate = |logit: &T| T::from_f64(self.gates.rate(&rule, Real::to_f64(*logit)));
        let columns = |from: usize| s![.., from * d..(from + 1) * d];
        HeadSequence {
            passes: &self.passes,
            buffers: &self.buffers,
            program: &self.program,
            base,
            transposed,
            start: state,
            order,
            first_chunk: start.map_or(0, |(state, _)| state.stored.chunks(self.passes.chunk)),
            fresh: start.is_none(),
            ahead: match (order, start) {
                (Order::After, _) => 0,
                (Order::Online, None) => self.program.read_offset() / self.passes.chunk,
                (Order::Online, Some((state, _))) => {
                    state.read.chunks(self.passes.chunk) - state.stored.chunks(self.passes.chunk)
                }
            },
            keys: stored.slice_move(columns(j)),
            values: stored.slice_move(columns(h + j)),
            queries: asked.slice_move(columns(j)),
            steps: steps.collect(),
            rates: token_rates.map(|rates| rates.column(j).iter().map(rate).collect()),
            transition: parameters.transition.map(|logit| T::from_f64(1.0 / (1.0 + (-logit.to_f64()).exp()))),
            truncate: self.truncate,
            segment: self.segment_length(stored.nrows() / self.passes.chunk),
            in_blocks: go_in_blocks(&self.passes, &self.program),
            check: self.check,
        }
    }
}

/// Returns rows from `first` on as a matrix of `count` rows, with zeros after them.
fn rows_from<T: Real>(rows: Array2<T>, first: usize, count: usize) -> Array2<T> {
    if first == 0 && rows.nrows() == count {
        return rows;
    }
    let rows = rows.slice(s![first.., ..]);
    let mut all = Array2::zeros((count, rows.ncols()));
    all.slice_mut(s![..rows.nrows(), ..]).assign(&rows);
    all
}
