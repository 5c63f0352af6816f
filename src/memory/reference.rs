//! The oracle: the whole memory in plain loops, token by token, in f64, with ε as an argument. It is never
//! optimised, and the engine is tested against it. Derivation: `docs/concepts/mathematics.md`.
//!
//! A memory's life is a pass over token positions t = 0, 1, …: read token t (if there is a query), then store
//! token t. A chunk is stored when its last token arrives, so that reads of chunk i use the state after chunks
//! 0 .. i−1. Continuing from a state continues the pass.

use ndarray::{Array1, Array2, Array3, ArrayView1, ArrayView2, Axis};

use super::{Gates, Parameters};
use crate::metrics::{ChunkMetrics, WeightMetrics};

type Rows = Vec<Vec<f64>>;
type Weights = Vec<Array2<f64>>;

/// A memory with its state, for any number of sequences.
#[derive(Clone, Debug)]
pub struct Reference {
    parameters: Parameters<f64>,
    chunk_size: usize,
    gates: Gates,
    eps: f64,
    /// W, past weights included.
    base: Weights,
    sequences: Vec<Sequence>,
}

/// The state of one sequence.
#[derive(Clone, Debug)]
struct Sequence {
    heads: Vec<Head>,
    /// Tokens stored and read since the start of the memory's life.
    stored: usize,
    read: usize,
    /// Tokens of the incomplete last chunk, before the norm.
    stored_left_over: Rows,
    read_left_over: Rows,
}

/// The state of one head: U and S per memory weight.
#[derive(Clone, Debug)]
pub struct Head {
    /// U, one matrix per memory weight.
    pub update: Vec<Array2<f64>>,
    /// S, one matrix per memory weight.
    pub momentum: Vec<Array2<f64>>,
}

impl Reference {
    /// Creates a memory in which nothing has been stored. `eps` is the ε of every `RMSNorm`; `past` shifts W.
    pub fn new(
        parameters: Parameters<f64>,
        chunk_size: usize,
        gates: Gates,
        eps: f64,
        past: Option<&[Array2<f64>]>,
        sequences: usize,
    ) -> Self {
        let mut base = parameters.memory.clone();
        for (w, delta) in base.iter_mut().zip(past.into_iter().flatten()) {
            *w += delta;
        }
        let zeros: Weights = base.iter().map(|w| Array2::zeros(w.dim())).collect();
        let head = Head { update: zeros.clone(), momentum: zeros };
        let sequence = Sequence {
            heads: vec![head; parameters.dimensions.heads],
            stored: 0,
            read: 0,
            stored_left_over: Vec::new(),
            read_left_over: Vec::new(),
        };
        Self { parameters, chunk_size, gates, eps, base, sequences: vec![sequence; sequences] }
    }

    /// Returns the state of one head.
    pub fn head(&self, sequence: usize, head: usize) -> &Head {
        &self.sequences[sequence].heads[head]
    }

    /// Returns ℓ of one chunk of tokens (c, D) under a head's current W + U.
    pub fn loss_of(&self, sequence: usize, head: usize, tokens: ArrayView2<f64>) -> f64 {
        let (keys, values) = self.keys_and_values(&self.norm_stored(&to_rows(tokens)), head);
        attention_loss(&self.weights(self.head(sequence, head)), &keys, &values)
    }

    /// Reads `queries` chunk by chunk while storing `store`, both (sequences, tokens, D). Returns the retrieved
    /// tokens (sequences, tokens, D), and the metrics by sequence, chunk and head.
    pub fn online(&mut self, queries: &Array3<f64>, store: &Array3<f64>) -> (Array3<f64>, Vec<ChunkMetrics>) {
        let mut retrieved = Array3::zeros(queries.dim());
        let mut metrics = Vec::new();
        for sequence in 0..self.sequences.len() {
            let (queries, store) =
                (queries.index_axis(Axis(0), sequence), store.index_axis(Axis(0), sequence));
            let Sequence { read, stored, .. } = self.sequences[sequence];
            for position in read.min(stored)..(read + queries.nrows()).max(stored + store.nrows()) {
                if (read..read + queries.nrows()).contains(&position) {
                    let token = self.read_token(sequence, queries.row(position - read));
                    retrieved.index_axis_mut(Axis(0), sequence).row_mut(position - read).assign(&token);
                }
                if (stored..stored + store.nrows()).contains(&position) {
                    metrics.extend(self.store_token(sequence, store.row(position - stored)));
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
        for (i, queries) in queries.axis_iter(Axis(0)).enumerate() {
            let state = &self.sequences[if self.sequences.len() == 1 { 0 } else { i }];
            for (c, chunk) in queries.axis_chunks_iter(Axis(0), self.chunk_size).enumerate() {
                let chunk = to_rows(chunk);
                for r in 0..chunk.len() {
                    let token = self.recall(state, &chunk[..=r]);
                    retrieved.index_axis_mut(Axis(0), i).row_mut(c * self.chunk_size + r).assign(&token);
                }
            }
        }
        retrieved
    }

    /// Reads the next token of a sequence online.
    fn read_token(&mut self, sequence: usize, token: ArrayView1<f64>) -> Array1<f64> {
        let state = &mut self.sequences[sequence];
        if state.read.is_multiple_of(self.chunk_size) {
            state.read_left_over.clear();
        }
        state.read += 1;
        state.read_left_over.push(token.to_vec());
        let state = &self.sequences[sequence];
        if state.stored < self.chunk_size {
            return Array1::zeros(token.len());
        }
        self.recall(state, &state.read_left_over)
    }

    /// Returns the memory's output for the last of `tokens`, which all lie in one chunk.
    fn recall(&self, state: &Sequence, tokens: &[Vec<f64>]) -> Array1<f64> {
        let d = self.parameters.dimensions.dim_head;
        let normed: Rows =
            tokens.iter().map(|x| self.rms_norm(x, self.parameters.retrieve_norm.as_ref())).collect();
        let mut merged = Vec::new();
        for (j, head) in state.heads.iter().enumerate() {
            let queries: Rows = normed
                .iter()
                .map(|x| times(x, &self.parameters.queries)[j * d..(j + 1) * d].to_vec())
                .collect();
            let output = attend(&self.weights(head), &queries).output;
            merged.extend_from_slice(output.last().expect("at least one token"));
        }
        let combined = self.parameters.combine.as_ref().map_or_else(|| merged.clone(), |w| times(&merged, w));
        Array1::from(self.rms_norm(&combined, self.parameters.post_norm.as_ref()))
    }

    /// Stores the next token of a sequence. Returns the metrics of each head if the token completes a chunk.
    fn store_token(&mut self, sequence: usize, token: ArrayView1<f64>) -> Vec<ChunkMetrics> {
        let state = &mut self.sequences[sequence];
        state.stored += 1;
        state.stored_left_over.push(token.to_vec());
        if state.stored_left_over.len() < self.chunk_size {
            return Vec::new();
        }
        let tokens = std::mem::take(&mut state.stored_left_over);
        let chunk = state.stored / self.chunk_size - 1;

        let dimensions = self.parameters.dimensions;
        let (h, c) = (dimensions.heads, self.chunk_size);
        let normed = self.norm_stored(&tokens);
        let mut mean = vec![0.0; dimensions.dim];
        for token in &normed {
            for (m, x) in mean.iter_mut().zip(token) {
                *m += x / c as f64;
            }
        }
        let logits = times(&mean, &self.parameters.gates);
        let mut metrics = Vec::new();
        for j in 0..h {
            let (keys, values) = self.keys_and_values(&normed, j);
            let gates = self.gates.values(logits[j], logits[h + j], logits[2 * h + j]);
            let (loss, gradient) = loss_and_gradient(&self.base, &keys, &values);
            let mut head = self.sequences[sequence].heads[j].clone();
            let loss_before = attention_loss(&self.weights(&head), &keys, &values);
            for (p, g) in gradient.iter().enumerate() {
                head.momentum[p] = gates.momentum * &head.momentum[p] - gates.learning_rate * g;
                head.update[p] = (1.0 - gates.decay) * &head.update[p] + &head.momentum[p];
            }
            let loss_after = attention_loss(&self.weights(&head), &keys, &values);
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
                surprise_norm: gates.learning_rate * norm(&gradient),
                momentum_norm: norm(&head.momentum),
                update_norm: norm(&head.update),
                weight_norm: norm(&self.weights(&head)),
                weights: (0..gradient.len())
                    .map(|p| WeightMetrics {
                        surprise: norm(&gradient[p..=p]),
                        momentum_norm: norm(&head.momentum[p..=p]),
                        update_norm: norm(&head.update[p..=p]),
                    })
                    .collect(),
            });
            self.sequences[sequence].heads[j] = head;
        }
        metrics
    }

    fn norm_stored(&self, tokens: &[Vec<f64>]) -> Rows {
        tokens.iter().map(|x| self.rms_norm(x, self.parameters.store_norm.as_ref())).collect()
    }

    /// Returns K and V of one head, from normed tokens.
    fn keys_and_values(&self, normed: &[Vec<f64>], head: usize) -> (Rows, Rows) {
        let (d, h) = (self.parameters.dimensions.dim_head, self.parameters.dimensions.heads);
        let keys_values: Rows = normed.iter().map(|x| times(x, &self.parameters.keys_values)).collect();
        let part =
            |from: usize| -> Rows { keys_values.iter().map(|kv| kv[from..from + d].to_vec()).collect() };
        (part(head * d), part((h + head) * d))
    }

    /// Returns W + U.
    fn weights(&self, head: &Head) -> Weights {
        self.base.iter().zip(&head.update).map(|(w, u)| w + u).collect()
    }

    fn rms_norm(&self, x: &[f64], weight: Option<&Array1<f64>>) -> Vec<f64> {
        let Some(weight) = weight else { return x.to_vec() };
        let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        x.iter().zip(weight).map(|(x, w)| x / (mean_square + self.eps).sqrt() * w).collect()
    }
}

/// Intermediate results of the attention memory, row by row.
struct Attended {
    q: Rows,
    k: Rows,
    v: Rows,
    /// P, in which row r has r + 1 entries.
    attention: Rows,
    hidden: Rows,
    output: Rows,
}

/// Computes M for the rows of one chunk, or of its first part.
fn attend(weights: &[Array2<f64>], rows: &[Vec<f64>]) -> Attended {
    let project = |p: usize| -> Rows { rows.iter().map(|x| times(x, &weights[p])).collect() };
    let (q, k, v) = (project(0), project(1), project(2));
    let width = q.first().map_or(0, Vec::len);
    let (mut attention, mut hidden, mut output) = (Vec::new(), Vec::new(), Vec::new());
    for (r, query) in q.iter().enumerate() {
        let scores: Vec<f64> = (0..=r).map(|j| dot(query, &k[j]) / (width as f64).sqrt()).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let exps: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
        let sum: f64 = exps.iter().sum();
        let p: Vec<f64> = exps.iter().map(|e| e / sum).collect();
        let h: Vec<f64> = (0..width).map(|e| (0..=r).map(|j| p[j] * v[j][e]).sum()).collect();
        let activated: Vec<f64> = h.iter().map(|&h| silu(h)).collect();
        output.push(times(&activated, &weights[3]));
        attention.push(p);
        hidden.push(h);
    }
    Attended { q, k, v, attention, hidden, output }
}

/// Returns ℓ: Σ over the chunk's tokens of mean over d of (M(k) − v)².
pub fn attention_loss(weights: &[Array2<f64>], keys: &[Vec<f64>], values: &[Vec<f64>]) -> f64 {
    let predicted = attend(weights, keys).output;
    let squares = predicted.iter().flatten().zip(values.iter().flatten()).map(|(p, v)| (p - v) * (p - v));
    squares.sum::<f64>() / values[0].len() as f64
}

/// Returns ℓ and the hand-written ∂ℓ/∂W of the attention memory for one chunk.
pub fn loss_and_gradient(weights: &[Array2<f64>], keys: &[Vec<f64>], values: &[Vec<f64>]) -> (f64, Weights) {
    let Attended { q, k, v, attention, hidden, output } = attend(weights, keys);
    let (c, d) = (keys.len(), keys[0].len());
    let root = (d as f64).sqrt();
    let mut loss = 0.0;
    let mut gradient: Weights = weights.iter().map(|w| Array2::zeros(w.dim())).collect();
    let (mut dq, mut dk, mut dv) = (vec![vec![0.0; d]; c], vec![vec![0.0; d]; c], vec![vec![0.0; d]; c]);
    for r in 0..c {
        let error: Vec<f64> = output[r].iter().zip(&values[r]).map(|(y, v)| y - v).collect();
        loss += dot(&error, &error) / d as f64;
        let dy: Vec<f64> = error.iter().map(|e| 2.0 * e / d as f64).collect();
        let activated: Vec<f64> = hidden[r].iter().map(|&h| silu(h)).collect();
        add_outer(&mut gradient[3], &activated, &dy);
        let dh: Vec<f64> = (0..d)
            .map(|e| {
                let s = 1.0 / (1.0 + (-hidden[r][e]).exp());
                (0..d).map(|f| dy[f] * weights[3][[e, f]]).sum::<f64>() * s * (1.0 + hidden[r][e] * (1.0 - s))
            })
            .collect();
        let p = &attention[r];
        let dp: Vec<f64> = (0..=r).map(|j| dot(&dh, &v[j])).collect();
        let mean = dot(p, &dp);
        for j in 0..=r {
            let da = p[j] * (dp[j] - mean) / root;
            for e in 0..d {
                dv[j][e] += p[j] * dh[e];
                dq[r][e] += da * k[j][e];
                dk[j][e] += da * q[r][e];
            }
        }
    }
    for r in 0..c {
        add_outer(&mut gradient[0], &keys[r], &dq[r]);
        add_outer(&mut gradient[1], &keys[r], &dk[r]);
        add_outer(&mut gradient[2], &keys[r], &dv[r]);
    }
    (loss, gradient)
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
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
