//! The first pass forward, which keeps states only at the starts of segments, by the engine's fused update: column panels of the
//! weights go through the chunks side by side, and each stays in the nearest cache.

use std::ops::Range;

use ndarray::{ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::head::{HeadSequence, State};
use super::node_rows::{Passage, Values};
use super::reads::Read;
use super::segment::Interval;
use crate::engine::panel::{FusedUpdate, Panel, PanelColumns, Reading, StoredChunks};
use crate::memory::graph::NodeKind;
use crate::memory::operators::Op;
use crate::packed::PanelRow;
use crate::real::Real;

/// A head's state in column panels.
pub struct PanelState<T> {
    maps: Vec<MapState<T>>,
    /// Weights at which gradients are taken.
    point: Vec<T>,
}

/// The part of a state that belongs to a linear map.
pub struct MapState<T> {
    /// The map's node.
    map: usize,
    panels: Vec<MapPanel<T>>,
}

/// The state in some columns of the weights of a linear map.
struct MapPanel<T> {
    columns: PanelColumns,
    panel: Panel<T>,
    /// The same columns of the initial weights.
    base: Vec<PanelRow<T>>,
}

/// A read and its values.
pub type ReadValues<T> = (Read, Values<T>);

impl<T: Real> PanelState<T> {
    pub fn new(head: &HeadSequence<'_, T>, state: &State<T>) -> Self {
        Self { maps: MapState::all(head, state).collect(), point: state.point.clone() }
    }

    /// Returns the state as plain arrays.
    pub fn save(&self, head: &HeadSequence<'_, T>) -> State<T> {
        let mut state = State { point: self.point.clone(), ..State::zeros(head.base.len()) };
        self.maps.iter().for_each(|map| map.save(head, &mut state));
        state
    }

    /// Returns the weights at which gradients are taken.
    pub fn point(&self) -> &[T] {
        &self.point
    }

    /// Stores the chunks of an interval and fills in the values of the reads before them. `reads` has an entry for each group of
    /// the interval.
    pub fn advance(
        &mut self,
        head: &HeadSequence<'_, T>,
        interval: &Interval<T>,
        reads: &mut [Option<ReadValues<T>>],
    ) {
        let mut maps = self.maps.iter_mut();
        for (i, node) in head.passes.graph.nodes.iter().enumerate() {
            match node.kind {
                NodeKind::Linear(_) => {
                    maps.next().expect("a state of each map").advance(head, interval, reads);
                }
                NodeKind::Operator(op) => operate(head, (i, op), reads),
            }
        }
        if interval.refresh {
            self.refresh(head);
        }
    }

    /// Takes gradients at the weights of this moment from here on.
    fn refresh(&mut self, head: &HeadSequence<'_, T>) {
        let rule = &head.program.rule;
        for MapState { map, panels } in &mut self.maps {
            let point = &mut self.point[head.passes.place(*map).0];
            for MapPanel { columns, panel, base, .. } in panels {
                if let Some(gate) = head.transition {
                    let old = columns.panel(point);
                    panel.replace_weights(rule, (base, &old), |new, old| old + gate * (new - old));
                }
                columns.save(panel.weights(rule, base), point);
            }
        }
    }
}

/// Computes an operator's values of reads.
pub fn operate<T: Real>(
    head: &HeadSequence<'_, T>,
    (i, op): (usize, Op),
    reads: &mut [Option<ReadValues<T>>],
) {
    let inputs = &head.passes.graph.nodes[i].inputs;
    reads.par_iter_mut().flatten().for_each(|(read, values)| {
        let rows = head.queries.slice(s![read.rows.clone(), ..]);
        values.compute(i, |values, output, work| {
            let inputs = &values.inputs(inputs, rows)[..inputs.len()];
            let work = work.expect("buffers of an operator");
            op.operator().forward_for_vjp(head.passes.chunk, inputs, output, work);
        });
    });
}

impl<T: Real> MapState<T> {
    /// Yields the parts of a state, in the order of the linear maps.
    pub fn all(head: &HeadSequence<'_, T>, state: &State<T>) -> impl Iterator<Item = Self> {
        let arrays = head.program.rule.arrays().len();
        head.passes.linears().map(move |map| {
            let (place, shape) = head.passes.place(map);
            let panel = |columns: PanelColumns| {
                let mut panel = Panel::new(&columns, arrays);
                panel.load(&columns, &[&state.update[place.clone()], &state.momentum[place.clone()]]);
                let base = columns.panel(&head.base[place.clone()]);
                MapPanel { columns, panel, base }
            };
            Self { map, panels: PanelColumns::all(&[shape]).into_iter().map(panel).collect() }
        })
    }

    /// Writes this part of a state, with zeros where the rule has no momentum.
    pub fn save(&self, head: &HeadSequence<'_, T>, to: &mut State<T>) {
        let place = head.passes.place(self.map).0;
        if head.program.rule.arrays().len() == 1 {
            to.momentum[place.clone()].fill(T::zero());
        }
        for MapPanel { columns, panel, .. } in &self.panels {
            panel.save(columns, &mut [&mut to.update[place.clone()], &mut to.momentum[place.clone()]]);
        }
    }

    /// Stores the chunks of an interval, and computes the map's products of what is read before them.
    pub fn advance(
        &mut self,
        head: &HeadSequence<'_, T>,
        interval: &Interval<T>,
        reads: &mut [Option<ReadValues<T>>],
    ) {
        let map = self.map;
        let mut buffers: Vec<_> =
            reads.iter_mut().map(|read| read.as_mut().map(|(_, values)| values.take(map))).collect();
        let mut products: Vec<Option<ArrayViewMut2<'_, T>>> = buffers
            .iter_mut()
            .zip(&*reads)
            .map(|(buffer, read)| {
                let (buffer, (read, _)) = buffer.as_mut().zip(read.as_ref())?;
                Some(buffer.slice_mut(s![..read.rows.len(), ..]))
            })
            .collect();
        let tasks: Vec<_> = self
            .panels
            .iter_mut()
            .map(|panel| {
                let of_panel = products.iter_mut().map(|products| {
                    let (of_panel, rest) = products.take()?.split_at(Axis(1), panel.columns.width);
                    *products = Some(rest);
                    Some(of_panel)
                });
                let of_panel: Vec<_> = of_panel.collect();
                (panel, of_panel)
            })
            .collect();
        let before = &*reads;
        tasks.into_par_iter().for_each(|(panel, products)| {
            for ((group, read), products) in interval.groups.iter().zip(before).zip(products) {
                panel.store(head, map, group, read.as_ref().zip(products));
            }
            panel.panel.norms.clear();
        });
        for (read, buffer) in reads.iter_mut().zip(buffers) {
            if let (Some((_, values)), Some(buffer)) = (read, buffer) {
                values.put(map, buffer);
            }
        }
    }
}

impl<T: Real> MapPanel<T> {
    /// Stores a group of chunks and computes the products of what is read before them.
    fn store(
        &mut self,
        head: &HeadSequence<'_, T>,
        map: usize,
        (chunks, inner): &(Range<usize>, Passage<T>),
        mut read: Option<(&ReadValues<T>, ArrayViewMut2<'_, T>)>,
    ) {
        let Self { columns, panel, base } = self;
        let (rule, chunk) = (head.program.rule, head.passes.chunk);
        let keys = head.examples(chunks).keys;
        let input = head.passes.graph.nodes[map].inputs[0];
        let [a, b] = head.passes.factors(inner, keys, map).expect("a gradient of each map");
        let b = b.slice_move(s![.., columns.range()]);
        let first_read = read.as_ref().map_or(chunks.end, |((read, _), _)| read.chunks.start);
        for part in [chunks.start..first_read, first_read..chunks.end] {
            if part.is_empty() {
                continue;
            }
            let reading = read.as_mut().filter(|_| part.start == first_read).map(|((read, values), to)| {
                let queries = head.queries.slice_move(s![read.rows.clone(), ..]);
                Reading { inputs: values.of(input, queries), outputs: to.view_mut(), after: false }
            });
            let rows = s![(part.start - chunks.start) * chunk..(part.end - chunks.start) * chunk, ..];
            let stored = StoredChunks {
                steps: &head.steps[part],
                inputs: a.slice_move(rows),
                cotangents: b.slice_move(rows),
            };
            let readings = reading.into_iter().collect();
            FusedUpdate { rule, chunk, base, panel, stored: Some(stored), readings }.run();
        }
    }
}
