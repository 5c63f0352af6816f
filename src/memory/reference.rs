//! The oracle: the whole memory in plain loops, token by token, in f64, with ε as an argument. It interprets the same
//! [`Program`] as the engine, through the naive twins of the operators. It is never optimised, and the engine is tested
//! against it. Derivation: `docs/concepts/mathematics.md`.
//!
//! A memory's life is a pass over token positions t = 0, 1, …: read token t (if there is a query), then store
//! token t; or first store, then read, where tokens read the chunk that they complete. A chunk is stored when its last
//! token arrives. Continuing from a state continues the pass.

use ndarray::{Array1, Array2, Array3, ArrayView1, ArrayView2, Axis};

use super::graph::{Graph, NodeKind, Value};
use super::loss::Loss;
use super::operators::Rows;
use super::program::Reads;
use super::rule::{DecayOf, RatePer};
use super::{Gates, Parameters, Program};
use crate::metrics::{ChunkMetrics, WeightMetrics};

type Weights = Vec<Array2<f64>>;

/// A memory with its state, for any number of sequences.
#[derive(Clone, Debug)]
pub struct Reference {
    parameters: Parameters<f64>,
    program: Program,
    graph: Graph,
    gates: Gates,
    eps: f64,
    sequences: Vec<Sequence>,
}

/// The state of one sequence.
#[derive(Clone, Debug)]
struct Sequence {
    heads: Vec<Head>,
    /// Tokens stored since the start of the memory's life, and rows read: tokens and the zeros before them.
    stored: usize,
    read: usize,
    /// Tokens of the incomplete last chunk, before the norm.
    stored_left_over: Rows,
    read_left_over: Rows,
}

/// The state of one head, one matrix per memory weight.
#[derive(Clone, Debug)]
pub struct Head {
    /// Initial weights, past weights included.
    pub initial: Weights,
    /// Weights at which gradients are taken.
    pub point: Weights,
    /// U: what is added to the initial weights, or whole weights.
    pub update: Weights,
    /// S; without momentum, what was last added to U.
    pub momentum: Weights,
}

impl Reference {
    /// Creates a memory in which nothing has been stored. `eps` is the ε of every `RMSNorm`; `past` shifts W.
    pub fn new(
        parameters: Parameters<f64>,
        program: Program,
        gates: Gates,
        eps: f64,
        past: Option<&[Array2<f64>]>,
        sequences: usize,
    ) -> Self {
        let whole = program.rule.decay_of == DecayOf::Weights;
        let head = |j: usize| {
            let of_head =
                |weight: &Array3<f64>| weight.index_axis(Axis(0), j.min(weight.dim().0 - 1)).to_owned();
            let mut initial: Weights = parameters.memory.iter().map(of_head).collect();
            for (w, delta) in initial.iter_mut().zip(past.into_iter().flatten()) {
                *w += delta;
            }
            let zeros: Weights = initial.iter().map(|w| Array2::zeros(w.dim())).collect();
            let update = if whole { initial.clone() } else { zeros.clone() };
            Head { point: initial.clone(), initial, update, momentum: zeros }
        };
        let offset = program.read_offset();
        let zero_row = vec![0.0; parameters.dimensions.dim];
        let sequence = Sequence {
            heads: (0..parameters.dimensions.heads).map(head).collect(),
            stored: 0,
            read: offset,
            stored_left_over: Vec::new(),
            read_left_over: vec![zero_row; offset],
        };
        let graph = program.model.graph(parameters.dimensions.dim_head);
        Self { parameters, program, graph, gates, eps, sequences: vec![sequence; sequences] }
    }

    /// Returns the state of one head.
    pub fn head(&self, sequence: usize, head: usize) -> &Head {
        &self.sequences[sequence].heads[head]
    }

    /// Returns ℓ of one chunk of tokens (c, D) under the weights that a head reads.
    pub fn loss_of(&self, sequence: usize, head: usize, tokens: ArrayView2<f64>) -> f64 {
        let (keys, values) = self.keys_and_values(&self.norm_stored(&to_rows(tokens)), head);
        self.loss(&self.weights(self.head(sequence, head)), &keys, &values)
    }

    /// Returns the keys and values of tokens (tokens, D), as one head stores them.
    pub fn pairs_of(&self, head: usize, tokens: ArrayView2<f64>) -> (Rows, Rows) {
        self.keys_and_values(&self.norm_stored(&to_rows(tokens)), head)
    }

    fn loss(&self, weights: &[Array2<f64>], keys: &Rows, values: &Rows) -> f64 {
        model_loss(&self.graph, self.program.loss, weights, keys, values)
    }

    /// Reads `queries` chunk by chunk while storing `store`, both (sequences, tokens, D). Returns the retrieved
    /// tokens (sequences, tokens, D), and the metrics by sequence, chunk and head.
    pub fn online(&mut self, queries: &Array3<f64>, store: &Array3<f64>) -> (Array3<f64>, Vec<ChunkMetrics>) {
        let mut retrieved = Array3::zeros(queries.dim());
        let mut metrics = Vec::new();
        let offset = self.program.read_offset();
        for sequence in 0..self.sequences.len() {
            let (queries, store) =
                (queries.index_axis(Axis(0), sequence), store.index_axis(Axis(0), sequence));
            let Sequence { read, stored, .. } = self.sequences[sequence];
            let read = read - offset;
            for position in read.min(stored)..(read + queries.nrows()).max(stored + store.nrows()) {
                let mut keep = |this: &mut Self| {
                    if (stored..stored + store.nrows()).contains(&position) {
                        metrics.extend(this.store_token(sequence, store.row(position - stored)));
                    }
                };
                if self.program.schedule.reads != Reads::Behind {
                    keep(self);
                }
                if (read..read + queries.nrows()).contains(&position) {
                    let token = self.read_token(sequence, queries.row(position - read));
                    retrieved.index_axis_mut(Axis(0), sequence).row_mut(position - read).assign(&token);
                }
                if self.program.schedule.reads == Reads::Behind {
                    keep(self);
                }
            }
        }
        (retrieved, metrics)
    }

    /// Stores `tokens` (sequences, tokens, D), counts them as read too, and returns the metrics.
    pub fn store(&mut self, tokens: &Array3<f64>) -> Vec<ChunkMetrics> {
        self.online(tokens, tokens).1
    }

    /// Reads `queries` (sequences, tokens, D) with the current weights, without counting them.
    pub fn read(&self, queries: &Array3<f64>) -> Array3<f64> {
        let mut retrieved = Array3::zeros(queries.dim());
        let c = self.program.chunk_size();
        for (i, queries) in queries.axis_iter(Axis(0)).enumerate() {
            let state = &self.sequences[if self.sequences.len() == 1 { 0 } else { i }];
            for (chunk, tokens) in queries.axis_chunks_iter(Axis(0), c).enumerate() {
                let tokens = to_rows(tokens);
                for r in 0..tokens.len() {
                    let token = self.recall(state, &tokens[..=r]);
                    retrieved.index_axis_mut(Axis(0), i).row_mut(chunk * c + r).assign(&token);
                }
            }
        }
        retrieved
    }

    /// Reads the next token of a sequence online.
    fn read_token(&mut self, sequence: usize, token: ArrayView1<f64>) -> Array1<f64> {
        let (c, zeros) = (self.program.chunk_size(), self.program.schedule.reads != Reads::Complete);
        let state = &mut self.sequences[sequence];
        if state.read.is_multiple_of(c) {
            state.read_left_over.clear();
        }
        state.read += 1;
        state.read_left_over.push(token.to_vec());
        let state = &self.sequences[sequence];
        if zeros && state.stored < c {
            return Array1::zeros(token.len());
        }
        self.recall(state, &state.read_left_over)
    }

    /// Returns the memory's output for the last of `tokens`, which all lie in one chunk.
    fn recall(&self, state: &Sequence, tokens: &[Vec<f64>]) -> Array1<f64> {
        let d = self.parameters.dimensions.dim_head;
        let normed: Rows =
            tokens.iter().map(|x| self.rms_norm(x, self.parameters.retrieve_norm.as_ref())).collect();
        let last = normed.last().expect("at least one token");
        let query_norm = self.parameters.qk_norm.as_ref().map(|[_, queries]| queries);
        let mut merged = Vec::new();
        for (j, head) in state.heads.iter().enumerate() {
            let query = |x: &Vec<f64>| {
                let query = &times(x, &self.parameters.queries)[j * d..(j + 1) * d];
                self.head_norm(&self.activate(query), query_norm, j)
            };
            let queries: Rows = normed.iter().map(query).collect();
            let output = evaluate(&self.graph, &self.weights(head), &queries).pop().expect("nodes");
            let output = output.last().expect("at least one row");
            let mut output = self.head_norm(output, self.parameters.head_norm.as_ref(), j);
            if let Some(gate) = &self.parameters.read_gate {
                let gate = super::sigmoid(times(last, gate)[j]);
                for x in &mut output {
                    *x *= gate;
                }
            }
            merged.extend(output);
        }
        let combined = self.parameters.combine.as_ref().map_or_else(|| merged.clone(), |w| times(&merged, w));
        Array1::from(self.rms_norm(&combined, self.parameters.post_norm.as_ref()))
    }

    /// Stores the next token of a sequence. Returns the metrics of each head if the token completes a chunk.
    fn store_token(&mut self, sequence: usize, token: ArrayView1<f64>) -> Vec<ChunkMetrics> {
        let c = self.program.chunk_size();
        let state = &mut self.sequences[sequence];
        state.stored += 1;
        state.stored_left_over.push(token.to_vec());
        if state.stored_left_over.len() < c {
            return Vec::new();
        }
        let tokens = std::mem::take(&mut state.stored_left_over);
        let stored = state.stored;
        let chunk = stored / c - 1;

        let dimensions = self.parameters.dimensions;
        let (h, rule) = (dimensions.heads, self.program.rule);
        let normed = self.norm_stored(&tokens);
        let mut mean = vec![0.0; dimensions.dim];
        for token in &normed {
            for (m, x) in mean.iter_mut().zip(token) {
                *m += x / c as f64;
            }
        }
        let logits = |x: &[f64]| -> Vec<f64> {
            let logits = times(x, &self.parameters.gates);
            let bias = |i: usize| self.parameters.gate_biases.as_ref().map_or(0.0, |biases| biases[i]);
            logits.iter().enumerate().map(|(i, x)| x + bias(i)).collect()
        };
        let of_chunk = logits(&mean);
        let of_tokens: Rows = normed.iter().map(|x| logits(x)).collect();
        let mut metrics = Vec::new();
        for j in 0..h {
            let (keys, values) = self.keys_and_values(&normed, j);
            let mut gates = self.gates.values(&rule, of_chunk[j], of_chunk[h + j], of_chunk[2 * h + j]);
            let rates: Option<Vec<f64>> = (rule.rate_per == RatePer::Token)
                .then(|| of_tokens.iter().map(|logits| self.gates.rate(&rule, logits[j])).collect());
            let mut rate = gates.learning_rate;
            if let Some(rates) = &rates {
                gates.learning_rate = rates.iter().sum::<f64>() / c as f64;
                rate = 1.0;
            }
            let mut head = self.sequences[sequence].heads[j].clone();
            let (loss, gradient) = loss_and_gradient(
                (&self.graph, self.program.loss),
                &head.point,
                &keys,
                &values,
                rates.as_deref(),
            );
            let loss_before = self.loss(&self.weights(&head), &keys, &values);
            let (_, now) = loss_and_gradient(
                (&self.graph, self.program.loss),
                &self.weights(&head),
                &keys,
                &values,
                rates.as_deref(),
            );
            for (p, g) in gradient.iter().enumerate() {
                head.momentum[p] = gates.momentum * &head.momentum[p] - rate * g;
                head.update[p] = (1.0 - gates.decay) * &head.update[p] + &head.momentum[p];
            }
            let loss_after = self.loss(&self.weights(&head), &keys, &values);
            let written = self.written(&head);
            metrics.push(ChunkMetrics {
                sequence,
                chunk,
                head: j,
                start: chunk * c,
                end: (chunk + 1) * c,
                loss,
                loss_before: Some(loss_before),
                loss_after: Some(loss_after),
                surprise: norm(&gradient),
                learning_rate: gates.learning_rate,
                momentum: gates.momentum,
                decay: gates.decay,
                surprise_norm: rate * norm(&gradient),
                momentum_norm: norm(&head.momentum),
                update_norm: norm(&written),
                weight_norm: norm(&self.weights(&head)),
                loss_zero: Some(
                    values.iter().map(|v| naive_loss(self.program.loss, &vec![0.0; v.len()], v).0).sum(),
                ),
                surprise_now: Some(norm(&now)),
                read_shift: None,
                key_cosine: mean_cosine(&keys),
                weights: (0..gradient.len())
                    .map(|p| WeightMetrics {
                        surprise: norm(&gradient[p..=p]),
                        momentum_norm: norm(&head.momentum[p..=p]),
                        update_norm: norm(&written[p..=p]),
                    })
                    .collect(),
            });
            if self.program.schedule.refresh.is_some_and(|every| stored.is_multiple_of(every)) {
                self.refresh(&mut head);
            }
            self.sequences[sequence].heads[j] = head;
        }
        metrics
    }

    /// Takes gradients at the weights of this moment, through the gate of the transition where there is one.
    fn refresh(&self, head: &mut Head) {
        let gate = self.parameters.transition.map_or(1.0, super::sigmoid);
        let weights = self.weights(head);
        for (p, weight) in weights.into_iter().enumerate() {
            let next = &head.point[p] + gate * (weight - &head.point[p]);
            head.update[p] = match self.program.rule.decay_of {
                DecayOf::Weights => next.clone(),
                DecayOf::Update => &next - &head.initial[p],
            };
            head.point[p] = next;
        }
    }

    fn norm_stored(&self, tokens: &[Vec<f64>]) -> Rows {
        tokens.iter().map(|x| self.rms_norm(x, self.parameters.store_norm.as_ref())).collect()
    }

    /// Returns K and V of one head, from normed tokens.
    fn keys_and_values(&self, normed: &[Vec<f64>], head: usize) -> (Rows, Rows) {
        let (d, h) = (self.parameters.dimensions.dim_head, self.parameters.dimensions.heads);
        let keys_values: Rows = normed.iter().map(|x| times(x, &self.parameters.keys_values)).collect();
        let part = |from: usize| -> Rows {
            keys_values.iter().map(|kv| self.activate(&kv[from..from + d])).collect()
        };
        let key_norm = self.parameters.qk_norm.as_ref().map(|[keys, _]| keys);
        let keys = part(head * d).iter().map(|key| self.head_norm(key, key_norm, head)).collect();
        (keys, part((h + head) * d))
    }

    fn activate(&self, row: &[f64]) -> Vec<f64> {
        let activation = self.program.frame.activation.function();
        row.iter().map(|&x| activation.map_or(x, |activation| activation.naive_value(x))).collect()
    }

    /// Returns the weights that are read.
    fn weights(&self, head: &Head) -> Weights {
        match self.program.rule.decay_of {
            DecayOf::Weights => head.update.clone(),
            DecayOf::Update => head.initial.iter().zip(&head.update).map(|(w, u)| w + u).collect(),
        }
    }

    /// Returns what storing has added to the initial weights.
    fn written(&self, head: &Head) -> Weights {
        match self.program.rule.decay_of {
            DecayOf::Weights => head.update.iter().zip(&head.initial).map(|(u, w)| u - w).collect(),
            DecayOf::Update => head.update.clone(),
        }
    }

    fn rms_norm(&self, x: &[f64], weight: Option<&Array1<f64>>) -> Vec<f64> {
        let Some(weight) = weight else { return x.to_vec() };
        let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        x.iter().zip(weight).map(|(x, w)| x / (mean_square + self.eps).sqrt() * w).collect()
    }

    /// Returns the norm of one head's row, with gains γ (h, d).
    fn head_norm(&self, x: &[f64], gains: Option<&Array2<f64>>, head: usize) -> Vec<f64> {
        let weight = gains.map(|gains| gains.row(head).mapv(|gamma| gamma + 1.0));
        self.rms_norm(x, weight.as_ref())
    }
}

/// Returns the outputs of a model for the keys of one chunk, and the directions in which the loss of each row falls.
pub fn outputs_and_errors(
    (graph, loss): (&Graph, Loss),
    weights: &[Array2<f64>],
    keys: &Rows,
    values: &Rows,
) -> (Rows, Rows) {
    let outputs = evaluate(graph, weights, keys).pop().expect("nodes");
    let error = |(y, v): (&Vec<f64>, &Vec<f64>)| naive_loss(loss, y, v).1.iter().map(|g| -g).collect();
    let errors = outputs.iter().zip(values).map(error).collect();
    (outputs, errors)
}

/// Evaluates a model on the rows of one chunk, or of its first part. Returns the output rows of every node.
fn evaluate(graph: &Graph, weights: &[Array2<f64>], rows: &Rows) -> Vec<Rows> {
    let ones: Rows = vec![vec![1.0]; rows.len()];
    let mut values: Vec<Rows> = Vec::new();
    for node in &graph.nodes {
        let inputs: Vec<&Rows> =
            node.inputs.iter().map(|&input| value(input, rows, &ones, &values)).collect();
        let output = match &node.kind {
            NodeKind::Linear(of) => {
                let product = |x: &Vec<f64>| of.clone().flat_map(|p| times(x, &weights[p])).collect();
                inputs[0].iter().map(product).collect()
            }
            NodeKind::Operator(op) => op.naive(&inputs),
        };
        values.push(output);
    }
    values
}

fn value<'a>(of: Value, rows: &'a Rows, ones: &'a Rows, values: &'a [Rows]) -> &'a Rows {
    match of {
        Value::Rows => rows,
        Value::Ones => ones,
        Value::Node(node) => &values[node],
    }
}

/// Returns ℓ of a model: the sum over a chunk's rows of the loss of M(k) and v.
pub fn model_loss(graph: &Graph, loss: Loss, weights: &[Array2<f64>], keys: &Rows, values: &Rows) -> f64 {
    let predicted = evaluate(graph, weights, keys).pop().expect("nodes");
    predicted.iter().zip(values).map(|(y, v)| naive_loss(loss, y, v).0).sum()
}

/// Returns ℓ of one row and its gradient in the prediction.
fn naive_loss(loss: Loss, predicted: &[f64], value: &[f64]) -> (f64, Vec<f64>) {
    let d = predicted.len() as f64;
    let one = |(y, v): (&f64, &f64)| {
        let e = y - v;
        match loss {
            Loss::MeanSquare => (e * e / d, 2.0 * e / d),
            Loss::HalfSquare => (e * e / 2.0, e),
            Loss::InnerProduct => (-y * v, -v),
            Loss::Huber { delta } if e.abs() <= delta => (e * e / 2.0, e),
            Loss::Huber { delta } => (delta * (e.abs() - delta / 2.0), delta * e.signum()),
            Loss::PNorm { p } => (e.abs().powf(p), p * e.signum() * e.abs().powf(p - 1.0)),
        }
    };
    let (losses, gradient): (Vec<f64>, Vec<f64>) = predicted.iter().zip(value).map(one).unzip();
    (losses.iter().sum(), gradient)
}

/// Returns ℓ of one chunk, and ∂/∂W of the sum of its rows' losses, each times its weight in `rates`.
pub fn loss_and_gradient(
    (graph, loss): (&Graph, Loss),
    weights: &[Array2<f64>],
    keys: &Rows,
    values: &Rows,
    rates: Option<&[f64]>,
) -> (f64, Vec<Array2<f64>>) {
    let outputs = evaluate(graph, weights, keys);
    let ones: Rows = vec![vec![1.0]; keys.len()];
    let mut cotangents: Vec<Option<Rows>> = vec![None; outputs.len()];
    let (mut total, mut errors) = (0.0, Vec::new());
    for (r, (y, v)) in outputs[graph.output()].iter().zip(values).enumerate() {
        let (of_row, gradient) = naive_loss(loss, y, v);
        total += of_row;
        let rate = rates.map_or(1.0, |rates| rates[r]);
        errors.push(gradient.iter().map(|g| rate * g).collect());
    }
    cotangents[graph.output()] = Some(errors);
    let mut gradient: Weights = weights.iter().map(|w| Array2::zeros(w.dim())).collect();
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        let Some(cotangent) = cotangents[i].take() else { continue };
        let inputs: Vec<&Rows> =
            node.inputs.iter().map(|&input| value(input, keys, &ones, &outputs)).collect();
        let d_inputs = match &node.kind {
            NodeKind::Operator(op) => op.naive_vjp(&inputs, &cotangent),
            NodeKind::Linear(of) => {
                let mut d_input: Rows = inputs[0].iter().map(|x| vec![0.0; x.len()]).collect();
                let mut start = 0;
                for p in of.clone() {
                    let columns = start..start + weights[p].ncols();
                    start = columns.end;
                    for ((x, d), dx) in inputs[0].iter().zip(&cotangent).zip(&mut d_input) {
                        add_outer(&mut gradient[p], x, &d[columns.clone()]);
                        for (k, dx) in dx.iter_mut().enumerate() {
                            *dx +=
                                dot(weights[p].row(k).as_slice().expect("contiguous"), &d[columns.clone()]);
                        }
                    }
                }
                vec![d_input]
            }
        };
        for (&input, d_input) in node.inputs.iter().zip(d_inputs) {
            let Value::Node(j) = input else { continue };
            match &mut cotangents[j] {
                None => cotangents[j] = Some(d_input),
                Some(known) => {
                    for (known, more) in known.iter_mut().flatten().zip(d_input.iter().flatten()) {
                        *known += more;
                    }
                }
            }
        }
    }
    (total, gradient)
}

/// Returns the mean cosine over pairs of rows, none of which is zero; `None` for a single row.
fn mean_cosine(rows: &Rows) -> Option<f64> {
    let cosine = |a: &Vec<f64>, b: &Vec<f64>| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    let pairs = (1..rows.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
    let cosines: Vec<f64> = pairs.map(|(i, j)| cosine(&rows[i], &rows[j])).collect();
    (!cosines.is_empty()).then(|| cosines.iter().sum::<f64>() / cosines.len() as f64)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Returns x @ W.
fn times(x: &[f64], w: &Array2<f64>) -> Vec<f64> {
    (0..w.ncols()).map(|j| x.iter().enumerate().map(|(i, x)| x * w[[i, j]]).sum()).collect()
}

fn add_outer(into: &mut Array2<f64>, a: &[f64], b: &[f64]) {
    for (i, a) in a.iter().enumerate() {
        for (j, b) in b.iter().enumerate() {
            into[[i, j]] += a * b;
        }
    }
}

/// Returns the norm. Squares are relative to the largest element, so that they stay in range. The result is
/// infinite only if an element is.
fn norm(of: &[Array2<f64>]) -> f64 {
    let elements = || of.iter().flatten();
    if elements().any(|x| x.is_nan()) {
        return f64::NAN;
    }
    let largest = elements().fold(0.0_f64, |largest, x| largest.max(x.abs()));
    if largest == 0.0 || largest.is_infinite() {
        return largest;
    }
    let squares: f64 = elements().map(|x| (x / largest) * (x / largest)).sum();
    (largest * squares.sqrt()).min(f64::MAX)
}

fn to_rows(of: ArrayView2<f64>) -> Rows {
    of.rows().into_iter().map(|row| row.to_vec()).collect()
}
