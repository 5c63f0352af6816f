//! Probes of a chunk beyond its losses, taken just before the chunk is stored.
//!
//! ```text
//! surprise_now  ‖∂ℓ‖ at the weights that are read, W + U: the surprise of the Titans paper
//! read_shift    ‖M_{W+U}(q) − M_W(q)‖ ÷ ‖M_W(q)‖ over the queries of the chunk
//! key_cosine    mean over pairs of the chunk's keys of their cosine
//! ```
//!
//! Singular values of the updates U are taken just after every K-th chunk, and after the last.
//!
//! Column panels go through a block independently, so the weights exist as a whole only between blocks. A run with one of
//! the first two therefore has blocks of one chunk, and costs a gradient and two reads more for each, without reuse. With
//! singular values, blocks end after every K-th chunk.

use std::ops::Range;

use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use super::Memory;
use super::block_inputs::HeadBlock;
use super::cpu::Context;
use super::gradient::{Examples, Factors, GradientPoint, loss_and_gradient};
use super::outcome::Phase;
use super::panel::Panel;
use super::reader::evaluate;
use crate::error::{Error, Result};
use crate::memory::graph::{NodeKind, Value, WeightSpec};
use crate::metrics::rounded;
use crate::packed::Packed;
use crate::real::Real;
use crate::singular_values::singular_values;

/// Most work for the singular values of a weight, rows × cols × the shorter side: that of 1024 × 1024, some seconds on a core,
/// for which an interrupt waits.
const MAX_SPECTRUM: usize = 1 << 30;

/// Probes to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    /// Whether the gradient at the weights that are read is taken.
    pub gradient: bool,
    /// Whether reads at these weights are compared with reads at W.
    pub read: bool,
    /// Whether the keys of a chunk are compared with each other.
    pub keys: bool,
    /// K, if the singular values of the updates are taken after every K-th chunk.
    pub spectrum: Option<usize>,
}

impl Probes {
    /// Returns the names of the chosen probes.
    pub fn names(self) -> Vec<String> {
        let named = [("gradient", self.gradient), ("read", self.read), ("keys", self.keys)];
        let named = named.into_iter().filter(|(_, chosen)| *chosen).map(|(name, _)| name.to_owned());
        named.chain(self.spectrum.map(|every| format!("spectrum:{every}"))).collect()
    }

    /// Rejects singular values of weights that are too large for them.
    ///
    /// # Errors
    /// A weight whose rows × cols × shorter side are above 2³⁰.
    pub fn check<T: Real>(self, memory: &Memory<T>) -> Result<()> {
        let work = |of: &WeightSpec| of.rows.saturating_mul(of.cols).saturating_mul(of.rows.min(of.cols));
        let beyond = memory.graph.weights.iter().find(|of| work(of) > MAX_SPECTRUM);
        let Some(of) = beyond.filter(|_| self.spectrum.is_some()) else { return Ok(()) };
        let reason = format!(
            "is for memory weights up to about 1024 × 1024, and this memory has one of {} × {}; omit spectrum",
            of.rows, of.cols
        );
        Err(Error::rejected("--probe=spectrum", reason))
    }

    /// Returns whether the weights must exist as a whole before each chunk.
    pub(super) fn need_weights(self) -> bool {
        self.gradient || self.read
    }
}

/// Returns the singular values of the update of each memory weight, largest first.
pub(super) fn spectra<T: Real>(memory: &Memory<T>, (head, panels): (usize, &[Panel<T>])) -> Vec<Vec<f64>> {
    let base = memory.base_panels(head);
    let of_weight = |(weight, place): (&WeightSpec, &Range<usize>)| {
        let mut update = vec![0.0; weight.rows * weight.cols];
        for i in place.clone() {
            memory.columns[i].save(panels[i].update(&memory.program.rule, &base[i]), &mut update);
        }
        let update = ArrayView2::from_shape((weight.rows, weight.cols), &update);
        singular_values(update.expect("rows × cols elements"))
    };
    let weights: Vec<_> = memory.graph.weights.iter().zip(&memory.weight_panels).collect();
    weights.into_par_iter().map(of_weight).collect()
}

/// Results of the probes that need whole weights.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Probed {
    pub surprise_now: Option<f64>,
    pub read_shift: Option<f64>,
}

/// Probes the chunk that a head is about to store.
pub(super) fn probe<T: Real>(
    context: &Context<'_, T>,
    (head, panels): (usize, &[Panel<T>]),
    inputs: &HeadBlock<'_, T>,
) -> Probed {
    let (memory, chosen) = (context.memory, context.plan.probes);
    let mut probed = Probed::default();
    if inputs.keys.nrows() == 0 {
        return probed;
    }
    if chosen.gradient {
        probed.surprise_now = Some(rounded::<T>(gradient_norm(context, (head, panels), inputs)));
    }
    if chosen.read && inputs.queries.nrows() > 0 {
        let base = memory.base_panels(head);
        let initial = memory.graph.weights.iter().zip(&memory.weight_panels).map(|(weight, place)| {
            let rows = base[place.clone()].iter().flatten().copied().collect();
            Packed::from_panels(weight.rows, weight.cols, rows)
        });
        let at_w = outputs(context, &initial.collect::<Vec<_>>(), inputs.queries);
        let now = outputs(context, &memory.read_weights(head, panels), inputs.queries);
        let squares = |rows: &Array2<T>| rows.iter().map(|&x| Real::to_f64(x).powi(2)).sum::<f64>();
        probed.read_shift = Some(rounded::<T>((squares(&(&now - &at_w)) / squares(&at_w)).sqrt()));
    }
    probed
}

/// Returns the norm over all memory weights of the gradient at the weights that are read.
fn gradient_norm<T: Real>(
    context: &Context<'_, T>,
    (head, panels): (usize, &[Panel<T>]),
    inputs: &HeadBlock<'_, T>,
) -> f64 {
    let memory = context.memory;
    let (graph, rule, rows) = (&memory.graph, &memory.program.rule, inputs.keys.nrows());
    let mut elements = vec![T::zero(); graph.elements()];
    for ((panel, columns), base) in panels.iter().zip(&memory.columns).zip(memory.base_panels(head)) {
        columns
            .save(panel.weights(rule, base), &mut elements[memory.weight_elements[columns.weight].clone()]);
    }
    let point = GradientPoint::new(graph, &elements);
    let (mut factors, mut losses) = (Factors::new(graph, rows), vec![0.0; rows]);
    context.with_scratch(Phase::Metrics, |scratch| {
        let weights = inputs.rates;
        let examples =
            Examples { keys: inputs.keys, values: inputs.values, weights, chunk: memory.chunk_size() };
        let views = factors.groups(0..rows, rows).pop().expect("one group");
        let gradient = scratch.gradient.as_mut().expect("a run that stores");
        let model = (graph, memory.program.loss);
        loss_and_gradient(model, &point, examples, &mut losses, views, (gradient, &mut scratch.works));
    });
    let mut squares = 0.0;
    let ones = Array2::ones((rows, 1));
    for (i, node) in graph.nodes.iter().enumerate() {
        if !matches!(node.kind, NodeKind::Linear(_)) {
            continue;
        }
        let a = match node.inputs[0] {
            Value::Rows => inputs.keys,
            Value::Ones => ones.view(),
            Value::Node(input) => factors.inputs[input].as_ref().expect("a factor").view(),
        };
        let b = factors.cotangents[i].as_ref().expect("a factor").view();
        // ‖AᵀB‖² = Σ (A Aᵀ) ∘ (B Bᵀ)
        for (i, j) in (0..rows).flat_map(|i| (0..rows).map(move |j| (i, j))) {
            squares += dot(a, i, j) * dot(b, i, j);
        }
    }
    // Rounding may leave a square of zero just below it.
    squares.max(0.0).sqrt()
}

fn dot<T: Real>(rows: ArrayView2<T>, i: usize, j: usize) -> f64 {
    rows.row(i).iter().zip(rows.row(j)).map(|(&a, &b)| Real::to_f64(a) * Real::to_f64(b)).sum()
}

/// Returns the model's output for the rows of one chunk, or of its first part.
fn outputs<T: Real>(context: &Context<'_, T>, weights: &[Packed<T>], rows: ArrayView2<T>) -> Array2<T> {
    let memory = context.memory;
    let mut output = Array2::zeros((0, 0));
    context.with_scratch(Phase::Metrics, |scratch| {
        let buffers = (&mut scratch.groups[..], &mut scratch.works[..]);
        output = evaluate((&memory.graph, &memory.places), weights, rows, memory.chunk_size(), buffers);
    });
    output
}

/// Returns the mean cosine over pairs of keys (c, d); `None` for a single key.
pub(super) fn key_cosine<T: Real>(keys: ArrayView2<T>) -> Option<f64> {
    let n = keys.nrows();
    if n < 2 {
        return None;
    }
    // Σ_{i≠j} k̂_i·k̂_j = ‖Σ k̂‖² − Σ ‖k̂‖²
    let (mut sum, mut own) = (vec![0.0; keys.ncols()], 0.0);
    for key in keys.rows() {
        let norm = key.iter().map(|&x| Real::to_f64(x).powi(2)).sum::<f64>().sqrt();
        if norm > 0.0 {
            sum.iter_mut().zip(key).for_each(|(sum, &x)| *sum += Real::to_f64(x) / norm);
            own += 1.0;
        }
    }
    let all: f64 = sum.iter().map(|x| x * x).sum();
    Some(rounded::<T>((all - own) / (n * (n - 1)) as f64))
}
