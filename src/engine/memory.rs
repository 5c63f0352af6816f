//! A memory that is ready to run: parameters in column panels, and the settings for using them.

use std::ops::Range;

use ndarray::{Array1, Array2, Array3, ArrayView2, Axis};

use super::gradient::GradientPoint;
use super::panel::{Panel, PanelColumns};
use super::reader::Places;
use crate::error::Result;
use crate::memory::graph::{Graph, WeightSpec};
use crate::memory::state::StreamPosition;
use crate::memory::{Dimensions, Gates, Parameters, Program, State, sigmoid};
use crate::packed::{Packed, PanelRow};
use crate::real::Real;

/// Heads, over all sequences, that advance together. Each head is many tasks and has its own buffers.
const GROUP_HEADS: usize = 8;

/// A memory that is ready to run: trained parameters in the element type of the run, and the settings for using them.
#[derive(Clone, Debug)]
pub struct Memory<T: Real> {
    pub(super) dimensions: Dimensions,
    pub(super) program: Program,
    pub(super) gates: Gates,
    pub(super) projections: Projections<T>,
    /// The memory model.
    pub(super) graph: Graph,
    pub(super) places: Places,
    /// Initial weights plus past weights, all in file order; one after another where each head has its own.
    pub(super) base: Vec<T>,
    /// Initial weights prepared for gradients, and in column panels: once, or once for each head.
    points: Vec<GradientPoint<T>>,
    base_panels: Vec<Vec<Vec<PanelRow<T>>>>,
    /// Column panels of all memory weights.
    pub(super) columns: Vec<PanelColumns>,
    /// Panels of each memory weight, and the place of its elements in file order.
    pub(super) weight_panels: Vec<Range<usize>>,
    pub(super) weight_elements: Vec<Range<usize>>,
    /// 1, the input of gains.
    pub(super) one: Array2<T>,
}

/// The parameters outside the memory weights: see [`Parameters`].
#[derive(Clone, Debug)]
pub(super) struct Projections<T> {
    pub(super) store_norm: Option<Array1<T>>,
    pub(super) retrieve_norm: Option<Array1<T>>,
    pub(super) post_norm: Option<Array1<T>>,
    pub(super) keys_values: Packed<T>,
    pub(super) queries: Packed<T>,
    /// Factors γ + 1 (hd) of the norms of keys and of queries.
    pub(super) qk_norm: Option<[Array1<T>; 2]>,
    /// Gate layers of chunks (D, 3h), and their biases (3h).
    pub(super) gates: Packed<T>,
    pub(super) gate_biases: Option<Array1<T>>,
    /// Layer (D, h) of θ, where each token has its own.
    pub(super) token_rates: Option<Packed<T>>,
    /// Factors γ + 1 (hd) of the norm of what heads retrieve.
    pub(super) head_norm: Option<Array1<T>>,
    /// Layer (D, h) of the gates of what is retrieved.
    pub(super) read_gate: Option<Packed<T>>,
    pub(super) combine: Option<Packed<T>>,
    /// Fraction of its change that a refresh keeps; absent without a gate.
    pub(super) transition: Option<T>,
}

impl<T: Real> Memory<T> {
    /// Builds a memory. `past` holds one delta (rows, cols) per memory weight, which shifts W itself.
    pub fn new(
        parameters: Parameters<T>,
        program: Program,
        gates: Gates,
        past: Option<&[Array2<T>]>,
    ) -> Result<Self> {
        let dimensions = parameters.dimensions;
        dimensions.check(&program)?;
        let graph = program.model.graph(dimensions.dim_head);
        let weight_elements = graph.places();
        let heads = if program.frame.per_head { dimensions.heads } else { 1 };
        let mut base = Vec::with_capacity(heads * graph.elements());
        for head in 0..heads {
            for (p, weight) in parameters.memory.iter().enumerate() {
                let start = base.len();
                base.extend(weight.index_axis(Axis(0), head));
                if let Some(past) = past {
                    base[start..].iter_mut().zip(&past[p]).for_each(|(w, &delta)| *w += delta);
                }
            }
        }
        let columns = PanelColumns::all(&graph.shapes());
        let place = |weight: usize| columns.partition_point(|columns| columns.weight < weight);
        let weight_panels = (0..graph.weights.len()).map(|p| place(p)..place(p + 1)).collect();
        let of_heads = || base.chunks_exact(graph.elements());
        let panels = |weights: &[T]| -> Vec<_> {
            let panel =
                |columns: &PanelColumns| columns.panel(&weights[weight_elements[columns.weight].clone()]);
            columns.iter().map(panel).collect()
        };
        let factors = |gain: &Array2<T>| gain.iter().map(|&gamma| gamma + T::one()).collect::<Array1<T>>();
        let token_rates = parameters.token_rates(&program).map(|rates| Packed::new(rates.view()));
        Ok(Self {
            points: of_heads().map(|weights| GradientPoint::new(&graph, weights)).collect(),
            base_panels: of_heads().map(panels).collect(),
            places: Places::new(&graph),
            dimensions,
            program,
            projections: Projections {
                keys_values: Packed::new(parameters.keys_values.view()),
                queries: Packed::new(parameters.queries.view()),
                qk_norm: parameters.qk_norm.map(|norms| norms.each_ref().map(factors)),
                combine: parameters.combine.map(|combine| Packed::new(combine.view())),
                store_norm: parameters.store_norm,
                retrieve_norm: parameters.retrieve_norm,
                post_norm: parameters.post_norm,
                gates: Packed::new(parameters.gates.view()),
                gate_biases: parameters.gate_biases,
                token_rates,
                head_norm: parameters.head_norm.as_ref().map(factors),
                read_gate: parameters.read_gate.map(|gate| Packed::new(gate.view())),
                transition: parameters.transition.map(|logit| T::from_f64(sigmoid(logit.to_f64()))),
            },
            gates,
            graph,
            base,
            columns,
            weight_panels,
            weight_elements,
            one: Array2::ones((1, 1)),
        })
    }

    /// Returns the state before anything has been stored.
    pub fn initial_state(&self, sequences: usize) -> State<T> {
        let Dimensions { dim, heads, .. } = self.dimensions;
        let elements = self.graph.elements();
        let zeros = || Array3::default((sequences, heads, elements));
        let weights = || {
            let head = |(_, j, i): (usize, usize, usize)| self.head_base(j)[i];
            Array3::from_shape_fn((sequences, heads, elements), head)
        };
        let rule = self.program.rule;
        let mut arrays: Vec<_> = rule.arrays().iter().map(|_| zeros()).collect();
        if rule.holds_weights() {
            arrays[0] = weights();
        }
        let (offset, c) = (self.program.read_offset(), self.chunk_size());
        State {
            arrays,
            gradient_point: self.program.schedule.refresh.map(|_| weights()),
            stored: StreamPosition::new(sequences, dim),
            read: StreamPosition::after_zeros(offset, c, sequences, dim),
        }
    }

    /// Returns the program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Returns the shape (rows, cols) of each memory weight, in file order.
    pub fn weight_shapes(&self) -> Vec<(usize, usize)> {
        self.graph.shapes()
    }

    /// Returns the initial weights of a head, one matrix (rows, cols) per memory weight, past weights included.
    pub fn weights(&self, head: usize) -> Vec<ArrayView2<'_, T>> {
        let base = self.head_base(head);
        let weights = self.graph.weights.iter().zip(&self.weight_elements);
        let view = |(weight, place): (&WeightSpec, &Range<usize>)| {
            ArrayView2::from_shape((weight.rows, weight.cols), &base[place.clone()])
                .expect("rows × cols elements")
        };
        weights.map(view).collect()
    }

    /// Returns the number of tokens per chunk.
    pub fn chunk_size(&self) -> usize {
        self.program.chunk_size()
    }

    /// Returns the index of a head among initial weights.
    fn of_head(&self, head: usize) -> usize {
        if self.points.len() == 1 { 0 } else { head }
    }

    /// Returns the elements of a head's initial weights.
    fn head_base(&self, head: usize) -> &[T] {
        let elements = self.graph.elements();
        &self.base[self.of_head(head) * elements..][..elements]
    }

    /// Returns the panels of a head's initial weights.
    pub(super) fn base_panels(&self, head: usize) -> &[Vec<PanelRow<T>>] {
        &self.base_panels[self.of_head(head)]
    }

    /// Returns a head's initial weights, prepared for gradients.
    pub(super) fn point(&self, head: usize) -> &GradientPoint<T> {
        &self.points[self.of_head(head)]
    }

    /// Returns the weights that a head reads, one matrix per memory weight.
    pub(super) fn read_weights(&self, head: usize, panels: &[Panel<T>]) -> Vec<Packed<T>> {
        let weights = self.graph.weights.iter().zip(&self.weight_panels);
        let of_weight = |(weight, place): (&WeightSpec, &Range<usize>)| {
            let panels = panels[place.clone()].iter().zip(&self.base_panels(head)[place.clone()]);
            let panels = panels.flat_map(|(panel, base)| panel.weights(&self.program.rule, base)).collect();
            Packed::from_panels(weight.rows, weight.cols, panels)
        };
        weights.map(of_weight).collect()
    }

    /// Returns the number of panels, of all layers, that are updated at once for a number of sequences. More
    /// threads than that would mostly wait.
    pub fn tasks(&self, sequences: usize) -> usize {
        self.group(sequences) * self.dimensions.heads * self.columns.len()
    }

    /// Returns the bytes of the memory, without the weights in the form from which gradients are taken.
    pub fn bytes(&self) -> usize {
        let Projections {
            store_norm, retrieve_norm, post_norm, keys_values, queries, gates, combine, ..
        } = &self.projections;
        let Projections { qk_norm, gate_biases, token_rates, head_norm, read_gate, .. } = &self.projections;
        let norms = [store_norm, retrieve_norm, post_norm, gate_biases, head_norm].into_iter().flatten();
        let norms = norms.chain(qk_norm.iter().flatten()).map(Array1::len);
        let packed =
            [keys_values, queries, gates].into_iter().chain(combine).chain(token_rates).chain(read_gate);
        let panels = self.base_panels.iter().flatten().map(|panel| size_of_val(&panel[..]));
        let plain = self.base.len() + norms.sum::<usize>();
        plain * size_of::<T>() + packed.map(Packed::bytes).sum::<usize>() + panels.sum::<usize>()
    }

    /// Returns the number of sequences that advance together on the CPU.
    pub(crate) fn group(&self, sequences: usize) -> usize {
        (GROUP_HEADS / self.dimensions.heads).clamp(1, sequences.max(1))
    }
}
