//! The outer gradient: reverse mode through a memory that stores and reads a sequence, for its parameters and its tokens.
//!
//! Storing is gradient descent, so this is the gradient of a loss of what is read, through the gradients that were stored.
//! The inner gradient is explicit, and so is its derivative: no automatic differentiation is needed. The docs' chapter on
//! training derives it.
//!
//! - this file: a sequence, from tokens to heads and back;
//! - `head`: one head through time;
//! - `walk`: passes over the nodes of a memory model;
//! - `rows`: products, norms and activations of many rows.
//!
//! Products are plain matrices in the gemm crate. Sequences, heads, chunks and groups of rows run in parallel. A task's work
//! depends on shapes only, and sums over tasks have a fixed order, so results have the same bits for any number of
//! threads. Memory use is that of a sequence's rows, and of the weights times about √N for N chunks.

mod head;
mod rows;
mod walk;

use ndarray::{Array1, Array2, Array3, ArrayView2, Axis, concatenate, s};
use rayon::prelude::*;

use self::head::{Course, HeadCotangents, State as HeadState, Tape};
use self::rows::{activated, activated_vjp, product, product_of_columns, rms_normed, rms_normed_vjp};
use self::walk::Walk;
use super::panel::Step;
use crate::error::{Error, Result};
use crate::memory::limits::OutOfRange;
use crate::memory::rule::RatePer;
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

/// A memory whose outer gradient is taken.
#[derive(Debug)]
pub struct Backward<'a, T> {
    parameters: &'a Parameters<T>,
    program: Program,
    gates: Gates,
    walk: Walk,
    /// Initial weights of each head that has its own, past weights included, in file order.
    base: Vec<Vec<T>>,
    truncate: Option<usize>,
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

/// Sequences that run side by side. Each has gradients of all parameters of its own until they are summed.
const GROUP: usize = 8;

/// Rows of one stream and what becomes of them: whole chunks, from tokens that an earlier call left.
struct Stream<T> {
    tokens: Array2<T>,
    normed: Array2<T>,
    /// Products with the projection, before activation and norm.
    projected: Array2<T>,
    activated: Array2<T>,
    /// Keys and values, or queries.
    rows: Array2<T>,
    /// Rows that precede those of the call.
    before: usize,
}

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
        let walk = Walk::new(program.model.graph(parameters.dimensions.dim_head), c);
        let heads = if program.frame.per_head { parameters.dimensions.heads } else { 1 };
        let base = |head: usize| {
            let mut all = Vec::with_capacity(walk.graph.elements());
            for (p, weight) in parameters.memory.iter().enumerate() {
                let start = all.len();
                all.extend(weight.index_axis(Axis(0), head));
                if let Some(past) = past {
                    all[start..].iter_mut().zip(&past[p]).for_each(|(w, &delta)| *w += delta);
                }
            }
            all
        };
        let base = (0..heads).map(base).collect();
        Ok(Self { parameters, program, gates, base, walk, truncate: truncate.map(|tokens| tokens / c) })
    }

    /// Returns an upper bound of the bytes that sequences of these lengths take.
    pub fn bytes(&self, read: usize, stored: usize, sequences: usize) -> u128 {
        let crate::memory::Dimensions { dim, heads, dim_head, .. } = self.parameters.dimensions;
        let inner = heads * dim_head;
        // Tokens, normed tokens, their cotangents and the products of both projections, each with copies.
        let of_frame = (read + stored) * (8 * dim + 12 * inner);
        // Rows of a segment: values, cotangents and tangents of each node.
        let of_nodes: usize = self.walk.graph.nodes.iter().map(|node| 8 * node.width).sum();
        let chunks = stored / self.walk.chunk;
        let segment = (chunks.isqrt().max(head::MIN_SEGMENT) + 1).min(chunks + 1);
        let starts = chunks.div_ceil(segment);
        let weights = self.walk.graph.elements() * (4 * segment + 3 * starts + 2 * head::MAX_TASKS + 8);
        let of_heads = heads * (segment * self.walk.chunk * of_nodes + weights);
        let numbers = of_frame as u128 + of_heads as u128;
        let tokens = (read + stored) as u128 * dim as u128 * sequences as u128;
        (sequences.min(GROUP) as u128 * numbers + 3 * tokens) * size_of::<T>() as u128
    }

    /// Reads and stores the tokens of one sequence, from its state or from that of a new memory. `objective` receives what
    /// is read (tokens, D) and returns its cotangent, with whatever the caller wants.
    ///
    /// # Errors
    /// A state whose two streams are not in step.
    pub fn sequence<R>(
        &self,
        start: Option<(&State<T>, usize)>,
        tokens: Tokens<'_, T>,
        objective: impl FnOnce(ArrayView2<T>) -> (R, Array2<T>),
    ) -> Result<(R, Gradients<T>)> {
        let (parameters, Tokens { read, store, order }) = (self.parameters, tokens);
        let (d, heads) = (parameters.dimensions.dim_head, parameters.dimensions.heads);
        let (c, offset) = (self.walk.chunk, self.program.read_offset());
        if let (Some((state, _)), Order::Online) = (start, order) {
            state.check_online(c, offset)?;
        }
        let [key_norm, query_norm] = [0, 1].map(|i| parameters.qk_norm.as_ref().map(|norms| &norms[i]));
        let left = |of: fn(&State<T>) -> &Array3<T>| {
            start.map(|(state, i)| of(state).index_axis(Axis(0), i).to_owned())
        };
        let stored = left(|state| &state.stored.left_over);
        let stored = self.stream(stored, store, true, (&parameters.keys_values, key_norm));
        let zeros = || Array2::zeros((offset % c, read.ncols()));
        let asked =
            (order == Order::Online).then(|| left(|state| &state.read.left_over).unwrap_or_else(zeros));
        let asked = self.stream(asked, read, false, (&parameters.queries, query_norm));
        let (gates, token_rates) = self.gates(stored.normed.view());

        let courses: Vec<_> = (0..heads)
            .map(|j| self.course(j, (start, order), &stored.rows, &asked.rows, &gates, token_rates.as_ref()))
            .collect();
        let forward = |course: &Course<'_, T>| {
            let mut output = Array2::zeros(course.queries.dim());
            let tape = course.forward(output.view_mut());
            (output, tape)
        };
        let (outputs, tapes): (Vec<_>, Vec<_>) =
            courses.par_iter().map(forward).collect::<Vec<_>>().into_iter().unzip();
        let read_heads = side_by_side(&outputs.iter().collect::<Vec<_>>());
        let output = self.combine(&asked, &read_heads);
        let (result, cotangent) = objective(output.rows.slice(s![asked.before.., ..]));
        let mut d_output = Array2::zeros(output.rows.dim());
        d_output.slice_mut(s![asked.before.., ..]).assign(&cotangent);

        let mut of = parameters.zeros();
        let mut d_asked_normed = Array2::zeros(asked.normed.dim());
        let d_heads = self.combine_vjp(&asked, &read_heads, &output, d_output, &mut d_asked_normed, &mut of);
        let backward = |(j, (course, tape)): (usize, (&Course<'_, T>, Tape<T>))| {
            course.backward(tape, d_heads.slice(s![.., j * d..(j + 1) * d]))
        };
        let of_heads: Vec<_> = courses.par_iter().zip(tapes).enumerate().map(backward).collect();
        let mut d_stored_normed = Array2::zeros(stored.normed.dim());
        self.gates_vjp(&stored, &gates, token_rates.as_ref(), &of_heads, &mut d_stored_normed, &mut of);

        let keys_values =
            of_heads.iter().map(|head| &head.keys).chain(of_heads.iter().map(|head| &head.values));
        let d_stored = side_by_side(&keys_values.collect::<Vec<_>>());
        let d_asked = side_by_side(&of_heads.iter().map(|head| &head.queries).collect::<Vec<_>>());
        for (j, head) in of_heads.iter().enumerate() {
            let of_head = if self.base.len() == 1 { 0 } else { j };
            for (weight, place) in of.memory.iter_mut().zip(&self.walk.places) {
                let mut weight = weight.index_axis_mut(Axis(0), of_head);
                weight.iter_mut().zip(&head.base[place.clone()]).for_each(|(sum, &x)| *sum += x);
            }
            if let (Some(sum), Some(logit)) = (&mut of.transition, parameters.transition) {
                let gate = 1.0 / (1.0 + (-logit.to_f64()).exp());
                *sum += T::from_f64(head.transition * gate * (1.0 - gate));
            }
        }
        let [d_key_norm, d_query_norm] = match &mut of.qk_norm {
            Some([keys, queries]) => [Some(keys), Some(queries)],
            None => [None, None],
        };
        let d_projection = self.projection_vjp(&stored, d_stored, key_norm, d_key_norm);
        of.keys_values = product_of_columns(stored.normed.view(), d_projection.view());
        d_stored_normed += &product(d_projection.view(), parameters.keys_values.t());
        let d_projection = self.projection_vjp(&asked, d_asked, query_norm, d_query_norm);
        of.queries = product_of_columns(asked.normed.view(), d_projection.view());
        d_asked_normed += &product(d_projection.view(), parameters.queries.t());
        let norms = [
            (&parameters.store_norm, &mut of.store_norm),
            (&parameters.retrieve_norm, &mut of.retrieve_norm),
        ];
        let rows = [(&stored, &mut d_stored_normed), (&asked, &mut d_asked_normed)];
        for ((norm, d_norm), (stream, d_rows)) in norms.into_iter().zip(rows) {
            if let Some(norm) = norm {
                let weights = norm.as_slice().expect("standard layout");
                *d_norm = Some(rms_normed_vjp(stream.tokens.view(), weights, weights.len(), d_rows));
            }
        }
        // Rows that an earlier call left are constants, and tokens of an incomplete chunk are not stored.
        let mut tokens = TokenGradients {
            read: d_asked_normed.slice(s![asked.before.., ..]).to_owned(),
            store: Array2::zeros(store.dim()),
        };
        let complete = d_stored_normed.nrows().saturating_sub(stored.before);
        let from = stored.before.min(d_stored_normed.nrows());
        tokens.store.slice_mut(s![..complete, ..]).assign(&d_stored_normed.slice(s![from.., ..]));
        Ok((result, Gradients { parameters: of, tokens }))
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
        let mut sum = self.parameters.zeros();
        let mut results = Vec::with_capacity(tokens.len());
        for (i, group) in tokens.chunks(GROUP).enumerate() {
            let of_sequence = |(j, tokens): (usize, &Tokens<'_, T>)| {
                let index = i * GROUP + j;
                let start = state.map(|state| (state, index));
                self.sequence(start, *tokens, |read| objective(index, read))
            };
            let of_group: Vec<_> = group.par_iter().enumerate().map(of_sequence).collect();
            for result in of_group {
                let (result, Gradients { parameters, tokens }) = result?;
                sum.add(&parameters);
                results.push((result, tokens));
            }
        }
        Ok((results, sum))
    }

    /// Norms and projects the tokens of a stream, after those that an earlier call left. Only `whole` chunks are taken of
    /// the stored one.
    fn stream(
        &self,
        left: Option<Array2<T>>,
        tokens: ArrayView2<T>,
        whole: bool,
        (projection, head_norm): (&Array2<T>, Option<&Array2<T>>),
    ) -> Stream<T> {
        let left = left.unwrap_or_else(|| Array2::zeros((0, tokens.ncols())));
        let before = left.nrows();
        let mut tokens = concatenate(Axis(0), &[left.view(), tokens]).expect("rows of the same width");
        if whole {
            let complete = tokens.nrows() / self.walk.chunk * self.walk.chunk;
            tokens = tokens.slice_move(s![..complete, ..]).as_standard_layout().into_owned();
        }
        let parameters = self.parameters;
        let norm = if whole { &parameters.store_norm } else { &parameters.retrieve_norm };
        let normed = norm.as_ref().map_or_else(
            || tokens.clone(),
            |norm| rms_normed(tokens.view(), norm.as_slice().expect("standard layout"), norm.len()),
        );
        let projected = product(normed.view(), projection.view());
        let activated = activated(self.program.frame.activation.function(), projected.clone());
        let mut rows = activated.clone();
        if let Some(gains) = head_norm {
            let width = gains.len();
            let factors = factors(gains);
            let normed = rms_normed(activated.slice(s![.., ..width]), &factors, gains.ncols());
            rows.slice_mut(s![.., ..width]).assign(&normed);
        }
        Stream { tokens, normed, projected, activated, rows, before }
    }

    /// Returns the cotangent of a stream's products with its projection from that of its rows.
    fn projection_vjp(
        &self,
        stream: &Stream<T>,
        mut cotangent: Array2<T>,
        head_norm: Option<&Array2<T>>,
        d_head_norm: Option<&mut Array2<T>>,
    ) -> Array2<T> {
        if let (Some(gains), Some(d_gains)) = (head_norm, d_head_norm) {
            let width = gains.len();
            let mut of_heads = cotangent.slice(s![.., ..width]).to_owned();
            let before = stream.activated.slice(s![.., ..width]);
            let d_factors = rms_normed_vjp(before, &factors(gains), gains.ncols(), &mut of_heads);
            d_gains.iter_mut().zip(d_factors).for_each(|(to, x)| *to = x);
            cotangent.slice_mut(s![.., ..width]).assign(&of_heads);
        }
        activated_vjp(self.program.frame.activation.function(), &stream.projected, &mut cotangent);
        cotangent
    }

    /// Returns the logits (chunks, 3h) of the gates of chunks, and those (rows, h) of the rates of tokens, if they have any.
    fn gates(&self, normed: ArrayView2<T>) -> (Array2<T>, Option<Array2<T>>) {
        let parameters = self.parameters;
        let mut logits = product(self.means(normed).view(), parameters.gates.view());
        let mut of_tokens = (self.program.rule.rate_per == RatePer::Token)
            .then(|| product(normed, parameters.gates.slice(s![.., ..parameters.dimensions.heads])));
        if let Some(biases) = &parameters.gate_biases {
            logits += biases;
            if let Some(of_tokens) = &mut of_tokens {
                *of_tokens += &biases.slice(s![..parameters.dimensions.heads]);
            }
        }
        (logits, of_tokens)
    }

    /// Returns the mean of each chunk's rows.
    fn means(&self, normed: ArrayView2<T>) -> Array2<T> {
        let c = self.walk.chunk;
        let mut means = Array2::zeros((normed.nrows() / c, normed.ncols()));
        for (chunk, mut mean) in normed.axis_chunks_iter(Axis(0), c).zip(means.rows_mut()) {
            chunk.rows().into_iter().for_each(|row| mean += &row);
            mean /= T::from_f64(c as f64);
        }
        means
    }

    fn course<'s>(
        &'s self,
        j: usize,
        (start, order): (Option<(&State<T>, usize)>, Order),
        stored: &'s Array2<T>,
        asked: &'s Array2<T>,
        gates: &Array2<T>,
        token_rates: Option<&Array2<T>>,
    ) -> Course<'s, T> {
        let parameters = self.parameters;
        let (d, h) = (parameters.dimensions.dim_head, parameters.dimensions.heads);
        let base = &self.base[if self.base.len() == 1 { 0 } else { j }];
        let rule = self.program.rule;
        let zeros = || vec![T::zero(); base.len()];
        let state = match start {
            Some((state, i)) => HeadState {
                update: state.arrays[0].slice(s![i, j, ..]).to_vec(),
                momentum: state.momentum().map_or_else(zeros, |of| of.slice(s![i, j, ..]).to_vec()),
                point: state
                    .gradient_point
                    .as_ref()
                    .map_or_else(Vec::new, |of| of.slice(s![i, j, ..]).to_vec()),
            },
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
        Course {
            walk: &self.walk,
            program: &self.program,
            base,
            start: state,
            order,
            first_chunk: start.map_or(0, |(state, _)| state.stored.chunks(self.walk.chunk)),
            fresh: start.is_none(),
            ahead: match (order, start) {
                (Order::After, _) => 0,
                (Order::Online, None) => self.program.read_offset() / self.walk.chunk,
                (Order::Online, Some((state, _))) => {
                    state.read.chunks(self.walk.chunk) - state.stored.chunks(self.walk.chunk)
                }
            },
            keys: stored.slice(columns(j)),
            values: stored.slice(columns(h + j)),
            queries: asked.slice(columns(j)),
            steps: steps.collect(),
            rates: token_rates.map(|rates| rates.column(j).iter().map(rate).collect()),
            transition: parameters.transition.map(|logit| T::from_f64(1.0 / (1.0 + (-logit.to_f64()).exp()))),
            truncate: self.truncate,
        }
    }

    /// Passes the cotangents of the heads' gates back to the normed tokens that are stored and to the gate layers.
    fn gates_vjp(
        &self,
        stored: &Stream<T>,
        gates: &Array2<T>,
        token_rates: Option<&Array2<T>>,
        of_heads: &[HeadCotangents<T>],
        d_normed: &mut Array2<T>,
        gradients: &mut Parameters<T>,
    ) {
        let (c, h) = (self.walk.chunk, of_heads.len());
        let (rule, parameters) = (self.program.rule, self.parameters);
        let mut d_logits = Array2::zeros(gates.dim());
        for (j, head) in of_heads.iter().enumerate() {
            for (chunk, of_chunk) in head.gates.iter().enumerate() {
                let [step, momentum, decay] = [0, 1, 2].map(|i| gates[[chunk, i * h + j]].to_f64());
                let slopes = self.gates.slopes(&rule, step, momentum, decay);
                let rate = if token_rates.is_some() { 0.0 } else { slopes.learning_rate };
                for (i, (slope, d)) in
                    [rate, slopes.momentum, slopes.decay].into_iter().zip(of_chunk).enumerate()
                {
                    d_logits[[chunk, i * h + j]] = T::from_f64(slope * d);
                }
            }
        }
        let means = self.means(stored.normed.view());
        gradients.gates = product_of_columns(means.view(), d_logits.view());
        let d_means = product(d_logits.view(), parameters.gates.t());
        let share = T::from_f64(1.0 / c as f64);
        for (mut chunk, d_mean) in d_normed.axis_chunks_iter_mut(Axis(0), c).zip(d_means.rows()) {
            chunk.rows_mut().into_iter().for_each(|mut row| row.scaled_add(share, &d_mean));
        }
        let mut d_biases = d_logits.sum_axis(Axis(0));
        if let Some(logits) = token_rates {
            let mut d_logits = Array2::zeros(logits.dim());
            for (j, head) in of_heads.iter().enumerate() {
                let rates = head.rates.iter().flatten();
                for (r, &rate) in rates.enumerate() {
                    let slope = self.gates.rate_slope(&rule, logits[[r, j]].to_f64());
                    d_logits[[r, j]] = T::from_f64(slope * rate.to_f64());
                }
            }
            let layer = product_of_columns(stored.normed.view(), d_logits.view());
            gradients.gates.slice_mut(s![.., ..h]).assign(&layer);
            *d_normed += &product(d_logits.view(), parameters.gates.slice(s![.., ..h]).t());
            d_biases.slice_mut(s![..h]).assign(&d_logits.sum_axis(Axis(0)));
        }
        if let Some(biases) = &mut gradients.gate_biases {
            *biases = d_biases;
        }
    }
}

/// Rows between the heads and the output.
struct Output<T> {
    /// Rows that the heads retrieve, after their norm.
    normed: Array2<T>,
    /// Gates (rows, h) of these rows.
    gates: Option<Array2<T>>,
    merged: Array2<T>,
    combined: Array2<T>,
    rows: Array2<T>,
}

impl<T: Real> Backward<'_, T> {
    /// Combines the heads: norm, gate, projection and norm.
    fn combine(&self, asked: &Stream<T>, heads: &Array2<T>) -> Output<T> {
        let parameters = self.parameters;
        let normed = parameters
            .head_norm
            .as_ref()
            .map_or_else(|| heads.clone(), |gains| rms_normed(heads.view(), &factors(gains), gains.ncols()));
        let gates = parameters.read_gate.as_ref().map(|layer| {
            let mut gates = product(asked.normed.view(), layer.view());
            T::sigmoid(gates.as_slice_mut().expect("standard layout"));
            gates
        });
        let mut merged = normed.clone();
        if let Some(gates) = &gates {
            self.scale_heads(&mut merged, gates);
        }
        let combined =
            parameters.combine.as_ref().map_or_else(|| merged.clone(), |w| product(merged.view(), w.view()));
        let rows = parameters.post_norm.as_ref().map_or_else(
            || combined.clone(),
            |norm| rms_normed(combined.view(), norm.as_slice().expect("standard layout"), norm.len()),
        );
        Output { normed, gates, merged, combined, rows }
    }

    /// Multiplies each head's part of each row by its gate.
    fn scale_heads(&self, rows: &mut Array2<T>, gates: &Array2<T>) {
        let d = self.parameters.dimensions.dim_head;
        for (mut row, gates) in rows.rows_mut().into_iter().zip(gates.rows()) {
            let row = row.as_slice_mut().expect("standard layout");
            for (part, &gate) in row.chunks_exact_mut(d).zip(gates) {
                for x in part {
                    *x *= gate;
                }
            }
        }
    }

    /// Passes the cotangent of the output back to what the heads retrieve.
    fn combine_vjp(
        &self,
        asked: &Stream<T>,
        heads: &Array2<T>,
        output: &Output<T>,
        mut cotangent: Array2<T>,
        d_normed: &mut Array2<T>,
        gradients: &mut Parameters<T>,
    ) -> Array2<T> {
        let parameters = self.parameters;
        let d = parameters.dimensions.dim_head;
        if let Some(norm) = &parameters.post_norm {
            let weights = norm.as_slice().expect("standard layout");
            let of_norm = rms_normed_vjp(output.combined.view(), weights, weights.len(), &mut cotangent);
            gradients.post_norm = Some(of_norm);
        }
        if let Some(combine) = &parameters.combine {
            gradients.combine = Some(product_of_columns(output.merged.view(), cotangent.view()));
            cotangent = product(cotangent.view(), combine.t());
        }
        if let (Some(gates), Some(layer)) = (&output.gates, &parameters.read_gate) {
            let mut d_gates = Array2::zeros(gates.dim());
            for ((r, j), d_gate) in d_gates.indexed_iter_mut() {
                let part = s![r, j * d..(j + 1) * d];
                let gate = gates[[r, j]];
                *d_gate = cotangent.slice(part).dot(&output.normed.slice(part)) * gate * (T::one() - gate);
            }
            self.scale_heads(&mut cotangent, gates);
            gradients.read_gate = Some(product_of_columns(asked.normed.view(), d_gates.view()));
            *d_normed += &product(d_gates.view(), layer.t());
        }
        if let Some(gains) = &parameters.head_norm {
            let of_gains = rms_normed_vjp(heads.view(), &factors(gains), gains.ncols(), &mut cotangent);
            gradients.head_norm = Some(of_gains.into_shape_with_order(gains.dim()).expect("same elements"));
        }
        cotangent
    }
}

/// Returns matrices of the same number of rows side by side, row after row.
fn side_by_side<T: Real>(parts: &[&Array2<T>]) -> Array2<T> {
    let width = parts.iter().map(|part| part.ncols()).sum();
    let mut joined = Array2::zeros((parts[0].nrows(), width));
    let mut start = 0;
    for part in parts {
        joined.slice_mut(s![.., start..start + part.ncols()]).assign(part);
        start += part.ncols();
    }
    joined
}

/// Returns γ + 1 of gains γ (h, d), one head after another.
fn factors<T: Real>(gains: &Array2<T>) -> Vec<T> {
    gains.iter().map(|&gamma| gamma + T::one()).collect::<Array1<T>>().to_vec()
}
