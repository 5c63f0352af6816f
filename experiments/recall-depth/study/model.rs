//! The models of the study and their gradients, several episodes side by side in the lanes of vectors.
//!
//! A write of key i and value a, for each factor j of the memory, with k = r / ‖r‖, r and v the embeddings of i and a:
//!
//! ```text
//! θ_j = 2 σ([r, v] · rate_j + b_j)      γ_j = σ([r, v] · decay_j + b′_j)
//! x_0 = k,  z_j = x_j W_j,  x_{j+1} = silu(z_j),  ℓ = ½ ‖x_depth − v‖²
//! δ_depth = x_depth − v,  dz_j = δ_{j+1} ∘ silu′(z_j),  δ_j = dz_j W_jᵀ       at the weights W of the chunk's start
//! W_j ← γ_j W_j − θ_j x_jᵀ dz_j                                             token by token
//! ```
//!
//! A query reads the last weights; `logits = LayerNorm(y) headᵀ + bias`.

#![expect(clippy::needless_range_loop, reason = "lanes and rows of several arrays go together")]
#![expect(clippy::too_many_lines, reason = "one pass forward and one back, in the order of the formulas")]

use std::ops::Range;

use nmem::real::Real;
use nmem::simd::vectorised;

use super::task::{Episode, ITEMS};

/// Width of embeddings and of the memory's factors.
pub const WIDTH: usize = 16;
/// Episodes side by side.
pub const LANES: usize = 8;
/// Sums of a product that are formed at once, in registers.
const SUMS: usize = 8;
/// Added to the variance in LayerNorm.
const LAYER_NORM_EPSILON: f64 = 1e-5;
/// Least norm of a key.
const LEAST_NORM: f64 = 1e-12;

/// A number of each episode.
type Lane<T> = [T; LANES];
/// A row of each episode.
type Row<T> = [Lane<T>; WIDTH];
/// A matrix of each episode, rows × columns.
type Matrix<T> = [Row<T>; WIDTH];

/// The derivative that training follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Derivative {
    /// The true one.
    Complete,
    /// The one that the study's code computed: W_1 counts as a constant in δ_1 = dz_1 W_1ᵀ.
    Released,
}

/// Places of the parameters in one vector.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub depth: usize,
}

/// A parameter array: its name and its place.
pub struct Named {
    pub name: String,
    pub place: Range<usize>,
}

const EMBEDDING: usize = ITEMS * WIDTH;
/// Places of the arrays that do not depend on the depth.
const QUERY: usize = 0;
const KEY: usize = EMBEDDING;
const VALUE: usize = 2 * EMBEDDING;
const RATE: usize = 3 * EMBEDDING;

impl Layout {
    fn rate_bias(self) -> usize {
        RATE + 2 * WIDTH * self.depth
    }
    fn decay(self) -> usize {
        self.rate_bias() + self.depth
    }
    fn decay_bias(self) -> usize {
        self.decay() + 2 * WIDTH * self.depth
    }
    fn memory(self, factor: usize) -> usize {
        self.decay_bias() + self.depth + factor * WIDTH * WIDTH
    }
    fn norm(self) -> usize {
        self.memory(self.depth)
    }
    fn norm_bias(self) -> usize {
        self.norm() + WIDTH
    }
    fn head(self) -> usize {
        self.norm_bias() + WIDTH
    }
    fn head_bias(self) -> usize {
        self.head() + ITEMS * WIDTH
    }

    /// Returns the number of parameters.
    pub fn len(self) -> usize {
        self.head_bias() + ITEMS
    }

    /// Returns all arrays.
    pub fn arrays(self) -> Vec<Named> {
        let named = |name: &str, shape: &[usize], start: usize| Named {
            name: name.to_owned(),
            place: start..start + shape.iter().product::<usize>(),
        };
        let mut arrays = vec![
            named("embed_q", &[ITEMS, WIDTH], QUERY),
            named("embed_k", &[ITEMS, WIDTH], KEY),
            named("embed_v", &[ITEMS, WIDTH], VALUE),
            named("rate_weight", &[self.depth, 2 * WIDTH], RATE),
            named("rate_bias", &[self.depth], self.rate_bias()),
            named("decay_weight", &[self.depth, 2 * WIDTH], self.decay()),
            named("decay_bias", &[self.depth], self.decay_bias()),
        ];
        arrays
            .extend((0..self.depth).map(|j| named(&format!("memory_{j}"), &[WIDTH, WIDTH], self.memory(j))));
        arrays.extend([
            named("norm_weight", &[WIDTH], self.norm()),
            named("norm_bias", &[WIDTH], self.norm_bias()),
            named("head_weight", &[ITEMS, WIDTH], self.head()),
            named("head_bias", &[ITEMS], self.head_bias()),
        ]);
        arrays
    }
}

/// Values kept of a row that passed through a factor.
struct Passed<T> {
    /// x_j
    input: Row<T>,
    /// z_j
    product: Row<T>,
    /// σ(z_j)
    gate: Row<T>,
}

/// Values kept of a write, for each factor.
struct Write<T> {
    passed: Vec<Passed<T>>,
    /// δ_{j+1}
    deltas: Vec<Row<T>>,
    /// dz_j
    cotangents: Vec<Row<T>>,
    rate: Vec<Lane<T>>,
    keep: Vec<Lane<T>>,
    key_row: Row<T>,
    value_row: Row<T>,
    key_norm: Lane<T>,
}

/// Weights of a gate's layer, and its bias.
type GateLayer<T> = [Lane<T>; 2 * WIDTH + 1];

/// Cotangents that writes add up, for each factor.
struct Cotangents<T> {
    weights: Vec<Matrix<T>>,
    /// Those of the layers of θ and γ.
    layers: Vec<[GateLayer<T>; 2]>,
}

/// Results of some episodes.
pub struct Outcome<T> {
    /// Sum of the cross-entropies of all queries.
    pub loss: f64,
    /// Number of queries whose largest logit is the target's.
    pub right: usize,
    /// Logits by episode, query and value.
    pub logits: Vec<[[T; ITEMS]; ITEMS]>,
}

/// A model of the study.
pub struct Model {
    pub layout: Layout,
    /// Writes whose gradients are taken at the same weights.
    pub chunk: usize,
    pub derivative: Derivative,
}

impl Model {
    /// Computes logits of episodes, and adds the gradient of the mean cross-entropy of `queries` queries to `gradient`,
    /// if there is one. Without `write` nothing is stored.
    pub fn run<T: Real>(
        &self,
        parameters: &[T],
        episodes: &[Episode],
        write: bool,
        mut gradient: Option<(&mut [T], usize)>,
    ) -> Outcome<T> {
        let mut outcome = Outcome { loss: 0.0, right: 0, logits: Vec::with_capacity(episodes.len()) };
        for group in episodes.chunks(LANES) {
            let gradient = gradient.as_mut().map(|(gradient, queries)| (&mut **gradient, *queries));
            let mut pass = Pass { model: self, parameters, episodes: group, gradient };
            vectorised(
                #[inline(always)]
                || pass.run(write, &mut outcome),
            );
        }
        outcome
    }
}

/// One pass over a group of episodes.
struct Pass<'a, T> {
    model: &'a Model,
    parameters: &'a [T],
    episodes: &'a [Episode],
    gradient: Option<(&'a mut [T], usize)>,
}

impl<T: Real> Pass<'_, T> {
    #[expect(clippy::inline_always, reason = "compiled with the best instruction set")]
    #[inline(always)]
    fn run(&mut self, write: bool, outcome: &mut Outcome<T>) {
        let Model { layout, chunk, .. } = *self.model;
        let depth = layout.depth;
        let mut weights: Vec<Matrix<T>> = (0..depth).map(|j| self.shared(layout.memory(j))).collect();
        // The weights at the start of each chunk.
        let mut starts = Vec::new();
        let mut writes: Vec<Write<T>> = Vec::new();
        if write {
            for first in (0..ITEMS).step_by(chunk) {
                starts.push(weights.clone());
                let of_chunk: Vec<_> = (first..first + chunk).map(|t| self.write(t, &weights)).collect();
                for write in &of_chunk {
                    for j in 0..depth {
                        update(
                            &mut weights[j],
                            (&write.keep[j], &write.rate[j]),
                            &write.passed[j].input,
                            &write.cotangents[j],
                        );
                    }
                }
                writes.extend(of_chunk);
            }
        }
        let mut d = Cotangents {
            weights: vec![[[[T::zero(); LANES]; WIDTH]; WIDTH]; depth],
            layers: vec![[[[T::zero(); LANES]; 2 * WIDTH + 1]; 2]; depth],
        };
        self.queries(&weights, &mut d.weights, outcome);
        if self.gradient.is_none() {
            return;
        }
        for (c, start) in starts.iter().enumerate().rev() {
            self.write_backward(c * chunk, start, &writes[c * chunk..(c + 1) * chunk], &mut d);
        }
        for (j, layers) in d.layers.iter().enumerate() {
            let places = [(RATE, layout.rate_bias()), (layout.decay(), layout.decay_bias())];
            for (layer, (weight, bias)) in layers.iter().zip(places) {
                let (bias_lane, weights) = layer.split_last().expect("a bias");
                self.add(bias + j, bias_lane);
                for (i, lane) in weights.iter().enumerate() {
                    self.add(weight + j * 2 * WIDTH + i, lane);
                }
            }
        }
        for (j, matrix) in d.weights.iter().enumerate() {
            for (i, row) in matrix.iter().enumerate() {
                for (k, lane) in row.iter().enumerate() {
                    self.add(layout.memory(j) + i * WIDTH + k, lane);
                }
            }
        }
    }

    /// Returns a parameter matrix in all lanes.
    fn shared(&self, start: usize) -> Matrix<T> {
        let row = |i: usize| std::array::from_fn(|k| [self.parameters[start + i * WIDTH + k]; LANES]);
        std::array::from_fn(row)
    }

    /// Gathers a row of an embedding for each episode.
    #[expect(clippy::inline_always, reason = "compiled with the best instruction set")]
    #[inline(always)]
    fn gather(&self, start: usize, item: impl Fn(&Episode) -> u8) -> Row<T> {
        let mut row = [[T::zero(); LANES]; WIDTH];
        for (lane, episode) in self.episodes.iter().enumerate() {
            let place = start + usize::from(item(episode)) * WIDTH;
            for (to, &from) in row.iter_mut().zip(&self.parameters[place..place + WIDTH]) {
                to[lane] = from;
            }
        }
        row
    }

    /// Adds the cotangent of a gathered row.
    #[expect(clippy::inline_always, reason = "compiled with the best instruction set")]
    #[inline(always)]
    fn scatter(&mut self, start: usize, item: impl Fn(&Episode) -> u8, row: &Row<T>) {
        let Some((gradient, _)) = &mut self.gradient else { return };
        for (lane, episode) in self.episodes.iter().enumerate() {
            let place = start + usize::from(item(episode)) * WIDTH;
            for (to, from) in gradient[place..place + WIDTH].iter_mut().zip(row) {
                *to += from[lane];
            }
        }
    }

    /// Adds the lanes of episodes to the gradient of a parameter.
    #[expect(clippy::inline_always, reason = "compiled with the best instruction set")]
    #[inline(always)]
    fn add(&mut self, place: usize, lane: &Lane<T>) {
        let Some((gradient, _)) = &mut self.gradient else { return };
        gradient[place] += lane[..self.episodes.len()].iter().fold(T::zero(), |sum, &x| sum + x);
    }

    /// Computes the gates and the gradient of the `t`-th write at `weights`.
    #[expect(clippy::inline_always, reason = "compiled with the best instruction set")]
    #[inline(always)]
    fn write(&self, t: usize, weights: &[Matrix<T>]) -> Write<T> {
        let layout = self.model.layout;
        let key_row = self.gather(KEY, |episode| episode.writes[t]);
        let value_row = self.gather(VALUE, |episode| episode.mapping[usize::from(episode.writes[t])]);
        let key_norm: Lane<T> =
            dot(&key_row, &key_row).map(|square| square.sqrt().max(T::from_f64(LEAST_NORM)));
        let mut key = key_row;
        for lane in &mut key {
            for l in 0..LANES {
                lane[l] /= key_norm[l];
            }
        }
        let (mut rate, mut keep) = (Vec::new(), Vec::new());
        for j in 0..layout.depth {
            let two = T::one() + T::one();
            let gate = |weight: usize, bias: usize| {
                let mut logit = [self.parameters[bias + j]; LANES];
                let weights = &self.parameters[weight + j * 2 * WIDTH..][..2 * WIDTH];
                for (&w, lane) in weights.iter().zip(key_row.iter().chain(&value_row)) {
                    for l in 0..LANES {
                        logit[l] += w * lane[l];
                    }
                }
                T::sigmoid(&mut logit);
                logit
            };
            rate.push(gate(RATE, layout.rate_bias()).map(|s| two * s));
            keep.push(gate(layout.decay(), layout.decay_bias()));
        }
        let (passed, output) = forward(key, weights);
        let mut deltas = vec![[[T::zero(); LANES]; WIDTH]; layout.depth];
        let mut cotangents = deltas.clone();
        let mut delta = output;
        for (lane, value) in delta.iter_mut().zip(&value_row) {
            for l in 0..LANES {
                lane[l] -= value[l];
            }
        }
        for j in (0..layout.depth).rev() {
            deltas[j] = delta;
            cotangents[j] = times_slope(&delta, &passed[j]);
            if j > 0 {
                delta = times_transposed(&cotangents[j], &weights[j]);
            }
        }
        Write { passed, deltas, cotangents, rate, keep, key_row, value_row, key_norm }
    }

    /// Answers the queries at the last weights, and computes the cotangent of these weights.
    #[expect(clippy::inline_always, reason = "compiled with the best instruction set")]
    #[inline(always)]
    fn queries(&mut self, weights: &[Matrix<T>], d_weights: &mut [Matrix<T>], outcome: &mut Outcome<T>) {
        let layout = self.model.layout;
        let mut all_logits = vec![[[T::zero(); ITEMS]; ITEMS]; self.episodes.len()];
        let width = T::from_f64(WIDTH as f64);
        let mut d_norm = [[[T::zero(); LANES]; WIDTH]; 2];
        let mut d_head = [[[T::zero(); LANES]; WIDTH]; ITEMS];
        let mut d_head_bias = [[T::zero(); LANES]; ITEMS];
        for t in 0..ITEMS {
            let query = self.gather(QUERY, |episode| episode.queries[t]);
            let (passed, output) = forward(query, weights);
            let mut normed = output;
            let mean: Lane<T> = sum(&normed).map(|total| total / width);
            for lane in &mut normed {
                for l in 0..LANES {
                    lane[l] -= mean[l];
                }
            }
            let scale: Lane<T> = dot(&normed, &normed)
                .map(|square| (square / width + T::from_f64(LAYER_NORM_EPSILON)).sqrt().recip());
            let mut rows = normed;
            for i in 0..WIDTH {
                let [weight, bias] =
                    [layout.norm() + i, layout.norm_bias() + i].map(|at| self.parameters[at]);
                for l in 0..LANES {
                    normed[i][l] *= scale[l];
                    rows[i][l] = normed[i][l] * weight + bias;
                }
            }
            let mut logits = [[T::zero(); LANES]; ITEMS];
            for (value, logit) in logits.iter_mut().enumerate() {
                *logit = [self.parameters[layout.head_bias() + value]; LANES];
                for i in 0..WIDTH {
                    let weight = self.parameters[layout.head() + value * WIDTH + i];
                    for l in 0..LANES {
                        logit[l] += weight * rows[i][l];
                    }
                }
            }
            // Softmax, and its cotangent.
            let mut largest = logits[0];
            for logit in &logits {
                for l in 0..LANES {
                    largest[l] = largest[l].max(logit[l]);
                }
            }
            let mut d_logits = logits;
            for logit in &mut d_logits {
                for l in 0..LANES {
                    logit[l] -= largest[l];
                }
                T::exp_all(logit);
            }
            let mut total = [T::zero(); LANES];
            for exponential in &d_logits {
                for l in 0..LANES {
                    total[l] += exponential[l];
                }
            }
            for (lane, episode) in self.episodes.iter().enumerate() {
                let target = usize::from(episode.mapping[usize::from(episode.queries[t])]);
                let loss = total[lane].ln() + largest[lane] - logits[target][lane];
                outcome.loss += loss.to_f64();
                let of_lane: [T; ITEMS] = logits.map(|logit| logit[lane]);
                let best = (0..ITEMS).fold(0, |best, i| if of_lane[i] > of_lane[best] { i } else { best });
                outcome.right += usize::from(best == target);
                all_logits[lane][t] = of_lane;
            }
            let Some((_, queries)) = self.gradient else { continue };
            let share = T::from_f64(1.0 / queries as f64);
            for (value, d_logit) in d_logits.iter_mut().enumerate() {
                for l in 0..LANES {
                    d_logit[l] = d_logit[l] / total[l] * share;
                }
                for (lane, episode) in self.episodes.iter().enumerate() {
                    if usize::from(episode.mapping[usize::from(episode.queries[t])]) == value {
                        d_logit[lane] -= share;
                    }
                }
            }
            let mut d_rows = [[T::zero(); LANES]; WIDTH];
            for (value, d_logit) in d_logits.iter().enumerate() {
                for i in 0..WIDTH {
                    let weight = self.parameters[layout.head() + value * WIDTH + i];
                    for l in 0..LANES {
                        d_rows[i][l] += weight * d_logit[l];
                        d_head[value][i][l] += rows[i][l] * d_logit[l];
                    }
                }
                for l in 0..LANES {
                    d_head_bias[value][l] += d_logit[l];
                }
            }
            for i in 0..WIDTH {
                let weight = self.parameters[layout.norm() + i];
                for l in 0..LANES {
                    d_norm[0][i][l] += d_rows[i][l] * normed[i][l];
                    d_norm[1][i][l] += d_rows[i][l];
                    d_rows[i][l] *= weight;
                }
            }
            let mean: Lane<T> = sum(&d_rows).map(|total| total / width);
            let along: Lane<T> = dot(&d_rows, &normed).map(|total| total / width);
            let mut d_output = d_rows;
            for i in 0..WIDTH {
                for l in 0..LANES {
                    d_output[i][l] = (d_rows[i][l] - mean[l] - normed[i][l] * along[l]) * scale[l];
                }
            }
            let mut d = d_output;
            for j in (0..layout.depth).rev() {
                let d_product = times_slope(&d, &passed[j]);
                add_outer(&mut d_weights[j], &passed[j].input, &d_product);
                d = times_transposed(&d_product, &weights[j]);
            }
            self.scatter(QUERY, |episode| episode.queries[t], &d);
        }
        outcome.logits.extend(all_logits);
        if self.gradient.is_none() {
            return;
        }
        for i in 0..WIDTH {
            self.add(layout.norm() + i, &d_norm[0][i]);
            self.add(layout.norm_bias() + i, &d_norm[1][i]);
        }
        for value in 0..ITEMS {
            self.add(layout.head_bias() + value, &d_head_bias[value]);
            for i in 0..WIDTH {
                self.add(layout.head() + value * WIDTH + i, &d_head[value][i]);
            }
        }
    }

    /// Takes the cotangent of the weights from the end of a chunk to its start, and adds the gradients of the embeddings
    /// and gates of its writes.
    #[expect(clippy::inline_always, reason = "compiled with the best instruction set")]
    #[inline(always)]
    fn write_backward(
        &mut self,
        first: usize,
        start: &[Matrix<T>],
        writes: &[Write<T>],
        cotangents_of_all: &mut Cotangents<T>,
    ) {
        let Cotangents { weights: d_weights, layers: d_layers } = cotangents_of_all;
        let layout = self.model.layout;
        let depth = layout.depth;
        let zero = [[T::zero(); LANES]; WIDTH];
        // Cotangents of x_j, dz_j, θ_j and γ_j of each write.
        let mut d_inputs = vec![vec![zero; depth + 1]; writes.len()];
        let mut d_cotangents = vec![vec![zero; depth]; writes.len()];
        let mut d_gates = vec![vec![[[T::zero(); LANES]; 2]; depth]; writes.len()];
        for j in 0..depth {
            let d = &mut d_weights[j];
            // Π γ of the later writes of the chunk.
            let mut later = vec![[T::one(); LANES]; writes.len()];
            for t in (1..writes.len()).rev() {
                later[t - 1] = later[t];
                for l in 0..LANES {
                    later[t - 1][l] *= writes[t].keep[j][l];
                }
            }
            // ⟨W, W̄⟩ after each write, with W̄ at the end.
            let mut along = inner(&start[j], d);
            for (t, write) in writes.iter().enumerate() {
                let (input, cotangent) = (&write.passed[j].input, &write.cotangents[j]);
                let across = times(input, d);
                let back = times_transposed(cotangent, d);
                let d_coefficient = dot(&across, cotangent).map(|x| -x);
                let (rate, keep) = (&write.rate[j], &write.keep[j]);
                for l in 0..LANES {
                    d_gates[t][j][0][l] = later[t][l] * d_coefficient[l];
                    d_gates[t][j][1][l] = later[t][l] * along[l];
                    along[l] = keep[l] * along[l] + rate[l] * d_coefficient[l];
                }
                for i in 0..WIDTH {
                    for l in 0..LANES {
                        let coefficient = rate[l] * later[t][l];
                        d_inputs[t][j][i][l] -= coefficient * back[i][l];
                        d_cotangents[t][j][i][l] -= coefficient * across[i][l];
                    }
                }
            }
            let mut kept = later[0];
            for l in 0..LANES {
                kept[l] *= writes[0].keep[j][l];
            }
            for row in d.iter_mut() {
                for lane in row {
                    for l in 0..LANES {
                        lane[l] *= kept[l];
                    }
                }
            }
        }
        for (t, write) in writes.iter().enumerate() {
            let Write { passed, deltas, cotangents, rate, keep, key_row, value_row, key_norm } = write;
            let d_input = &mut d_inputs[t];
            let d_cotangent = &mut d_cotangents[t];
            // Cotangents of z_j, from the gradient.
            let mut d_products = vec![zero; depth];
            for j in 0..depth {
                let of = &passed[j];
                let mut d_delta = zero;
                for i in 0..WIDTH {
                    for l in 0..LANES {
                        let (z, s) = (of.product[i][l], of.gate[i][l]);
                        let (one, two) = (T::one(), T::one() + T::one());
                        let slope = s * (one + z * (one - s));
                        let bend = s * (one - s) * (two + z * (one - two * s));
                        d_products[j][i][l] = d_cotangent[j][i][l] * deltas[j][i][l] * bend;
                        d_delta[i][l] = d_cotangent[j][i][l] * slope;
                    }
                }
                if j + 1 < depth {
                    // δ_{j+1} = dz_{j+1} W_{j+1}ᵀ
                    let across = times(&d_delta, &start[j + 1]);
                    for i in 0..WIDTH {
                        for l in 0..LANES {
                            d_cotangent[j + 1][i][l] += across[i][l];
                        }
                    }
                    if self.model.derivative == Derivative::Complete {
                        add_outer(&mut d_weights[j + 1], &d_delta, &cotangents[j + 1]);
                    }
                } else {
                    d_input[depth] = d_delta;
                }
            }
            // δ_depth = x_depth − v
            let mut d_value = d_input[depth].map(|lane| lane.map(|x| -x));
            for j in (0..depth).rev() {
                let through = times_slope(&d_input[j + 1], &passed[j]);
                for i in 0..WIDTH {
                    for l in 0..LANES {
                        d_products[j][i][l] += through[i][l];
                    }
                }
                add_outer(&mut d_weights[j], &passed[j].input, &d_products[j]);
                let back = times_transposed(&d_products[j], &start[j]);
                for i in 0..WIDTH {
                    for l in 0..LANES {
                        d_input[j][i][l] += back[i][l];
                    }
                }
            }
            // k = r / ‖r‖
            let key = &passed[0].input;
            let along = dot(&d_input[0], key);
            let mut d_key = zero;
            for i in 0..WIDTH {
                for l in 0..LANES {
                    d_key[i][l] = (d_input[0][i][l] - key[i][l] * along[l]) / key_norm[l];
                }
            }
            for j in 0..depth {
                let [mut d_rate, mut d_keep] = d_gates[t][j];
                for l in 0..LANES {
                    let half = T::from_f64(0.5);
                    d_rate[l] *= rate[j][l] * (T::one() - half * rate[j][l]);
                    d_keep[l] *= keep[j][l] * (T::one() - keep[j][l]);
                }
                let rows = || key_row.iter().chain(value_row);
                for (gate, (d_gate, weight)) in
                    [(d_rate, RATE), (d_keep, layout.decay())].into_iter().enumerate()
                {
                    let (d_bias, d_weights) = d_layers[j][gate].split_last_mut().expect("a bias");
                    for l in 0..LANES {
                        d_bias[l] += d_gate[l];
                    }
                    let weights = &self.parameters[weight + j * 2 * WIDTH..][..2 * WIDTH];
                    let d_rows = d_key.iter_mut().chain(&mut d_value);
                    for (((d_weight, &w), row), d_row) in
                        d_weights.iter_mut().zip(weights).zip(rows()).zip(d_rows)
                    {
                        for l in 0..LANES {
                            d_weight[l] += row[l] * d_gate[l];
                            d_row[l] += w * d_gate[l];
                        }
                    }
                }
            }
            let at = first + t;
            self.scatter(KEY, |episode| episode.writes[at], &d_key);
            self.scatter(VALUE, |episode| episode.mapping[usize::from(episode.writes[at])], &d_value);
        }
    }
}

/// Passes a row through all factors. Returns what is kept and the output row.
#[expect(clippy::inline_always, reason = "compiled with the best instruction set")]
#[inline(always)]
fn forward<T: Real>(row: Row<T>, weights: &[Matrix<T>]) -> (Vec<Passed<T>>, Row<T>) {
    let mut passed = Vec::with_capacity(weights.len());
    let mut input = row;
    for matrix in weights {
        let product = times(&input, matrix);
        let mut gate = product;
        T::sigmoid(gate.as_flattened_mut());
        let mut output = product;
        for (output, gate) in output.iter_mut().zip(&gate) {
            for l in 0..LANES {
                output[l] *= gate[l];
            }
        }
        passed.push(Passed { input, product, gate });
        input = output;
    }
    (passed, input)
}

/// d ∘ silu′(z)
#[expect(clippy::inline_always, reason = "compiled with the best instruction set")]
#[inline(always)]
fn times_slope<T: Real>(d: &Row<T>, at: &Passed<T>) -> Row<T> {
    let mut result = *d;
    for i in 0..WIDTH {
        for l in 0..LANES {
            let (z, s) = (at.product[i][l], at.gate[i][l]);
            result[i][l] *= s * (T::one() + z * (T::one() - s));
        }
    }
    result
}

/// x W
#[expect(clippy::inline_always, reason = "compiled with the best instruction set")]
#[inline(always)]
fn times<T: Real>(x: &Row<T>, matrix: &Matrix<T>) -> Row<T> {
    let mut result = [[T::zero(); LANES]; WIDTH];
    for first in (0..WIDTH).step_by(SUMS) {
        let mut sums = [[T::zero(); LANES]; SUMS];
        for i in 0..WIDTH {
            for (k, sum) in sums.iter_mut().enumerate() {
                for l in 0..LANES {
                    sum[l] += x[i][l] * matrix[i][first + k][l];
                }
            }
        }
        result[first..first + SUMS].copy_from_slice(&sums);
    }
    result
}

/// x Wᵀ
#[expect(clippy::inline_always, reason = "compiled with the best instruction set")]
#[inline(always)]
fn times_transposed<T: Real>(x: &Row<T>, matrix: &Matrix<T>) -> Row<T> {
    let mut result = [[T::zero(); LANES]; WIDTH];
    for first in (0..WIDTH).step_by(SUMS) {
        let mut sums = [[T::zero(); LANES]; SUMS];
        for k in 0..WIDTH {
            for (i, sum) in sums.iter_mut().enumerate() {
                for l in 0..LANES {
                    sum[l] += x[k][l] * matrix[first + i][k][l];
                }
            }
        }
        result[first..first + SUMS].copy_from_slice(&sums);
    }
    result
}

/// W ← γ W − θ xᵀ d
#[expect(clippy::inline_always, reason = "compiled with the best instruction set")]
#[inline(always)]
fn update<T: Real>(matrix: &mut Matrix<T>, (keep, rate): (&Lane<T>, &Lane<T>), x: &Row<T>, d: &Row<T>) {
    for i in 0..WIDTH {
        let mut scaled = x[i];
        for l in 0..LANES {
            scaled[l] *= rate[l];
        }
        for k in 0..WIDTH {
            for l in 0..LANES {
                matrix[i][k][l] = keep[l] * matrix[i][k][l] - scaled[l] * d[k][l];
            }
        }
    }
}

/// W ← W + xᵀ d
#[expect(clippy::inline_always, reason = "compiled with the best instruction set")]
#[inline(always)]
fn add_outer<T: Real>(matrix: &mut Matrix<T>, x: &Row<T>, d: &Row<T>) {
    for i in 0..WIDTH {
        for k in 0..WIDTH {
            for l in 0..LANES {
                matrix[i][k][l] += x[i][l] * d[k][l];
            }
        }
    }
}

#[expect(clippy::inline_always, reason = "compiled with the best instruction set")]
#[inline(always)]
fn dot<T: Real>(a: &Row<T>, b: &Row<T>) -> Lane<T> {
    let mut sum = [T::zero(); LANES];
    for i in 0..WIDTH {
        for l in 0..LANES {
            sum[l] += a[i][l] * b[i][l];
        }
    }
    sum
}

#[expect(clippy::inline_always, reason = "compiled with the best instruction set")]
#[inline(always)]
fn sum<T: Real>(row: &Row<T>) -> Lane<T> {
    let mut sum = [T::zero(); LANES];
    for lane in row {
        for l in 0..LANES {
            sum[l] += lane[l];
        }
    }
    sum
}

/// ⟨A, B⟩
#[expect(clippy::inline_always, reason = "compiled with the best instruction set")]
#[inline(always)]
fn inner<T: Real>(a: &Matrix<T>, b: &Matrix<T>) -> Lane<T> {
    let mut sums = [[T::zero(); LANES]; WIDTH / 2];
    for (a, b) in a.iter().zip(b) {
        for k in 0..WIDTH {
            for l in 0..LANES {
                sums[k / 2][l] += a[k][l] * b[k][l];
            }
        }
    }
    let mut total = [T::zero(); LANES];
    for sum in sums {
        for l in 0..LANES {
            total[l] += sum[l];
        }
    }
    total
}
