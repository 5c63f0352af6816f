//! Segments whose gradients are never refreshed, forward and back, as stages of a pipeline.
//!
//! Gradients at the initial weights wait for nothing. Only the state of each linear map goes from one segment to the next, and on the
//! way back its cotangent: a segment follows the one before it map by map.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use ndarray::{ArrayView2, s};
use rayon::prelude::*;

use super::blocks::{ReadBack, SegmentBack};
use super::fused::{MapState, ReadValues, operate};
use super::head::{HeadSequence, Parts, SegmentCotangents, State, Tape, add};
use super::node_rows::{Passage, Second, Values};
use super::pipeline::{self, Stage, lock};
use super::pool::MOST_KEPT;
use super::reads::Read;
use super::reverse::Carried;
use super::segment::Interval;
use crate::error::Result;
use crate::memory::graph::{NodeKind, Value};
use crate::real::Real;

/// State, values and gradients of a segment that are kept for the way back.
#[derive(Debug)]
pub struct Kept<T> {
    /// State at its start; `None` at the first segment.
    start: Option<State<T>>,
    /// Values of its reads.
    reads: Vec<Values<T>>,
    /// Gradients of the last segment. Those of the others are taken again.
    gradients: Option<Interval<T>>,
}

/// A segment on its way forward.
struct Forward<'m, T> {
    chunks: Range<usize>,
    output: Parts<'m, T>,
    gradients: Option<Interval<T>>,
    /// Reads before each group of the gradients.
    reads: Vec<Option<ReadValues<T>>>,
    start: Option<State<T>>,
}

/// A segment on its way back.
struct Back<'m, T> {
    kept: Option<Kept<T>>,
    /// After the first stage.
    segment: Option<SegmentBack<T>>,
    /// Rows of its gradients for the last stage.
    seconds: Vec<Second<T>>,
    to: SegmentCotangents<'m, T>,
}

impl<T> Back<'_, T> {
    /// Returns what the first stage left.
    fn segment(&mut self) -> &mut SegmentBack<T> {
        self.segment.as_mut().expect(STARTED)
    }
}

/// Promise of a segment's later stages.
const STARTED: &str = "the first stage comes first";

impl<T: Real> HeadSequence<'_, T> {
    /// Reads and stores all chunks.
    pub fn blocks_forward(&self, live: usize, rest: &mut Parts<'_, T>) -> Result<Tape<T>> {
        let item = |chunks: Range<usize>| {
            let none = rest.start()..rest.start();
            let output = rest.part(self.read_before(chunks.clone()).map_or(none, |read| read.rows));
            Forward { chunks, output, gradients: None, reads: Vec::new(), start: None }
        };
        let mut segments: Vec<_> = self.segments().map(item).collect();
        let of_maps: Vec<_> = MapState::all(self, &self.start).map(Mutex::new).collect();
        let mut stages: Vec<Stage<'_, Forward<'_, T>>> = Vec::new();
        stages.push(Stage::AnyOrder(Box::new(|segment| {
            (self.check)()?;
            let gradients = self.interval(segment.chunks.clone(), Vec::new(), false);
            let read = |(chunks, _): &(Range<usize>, _)| {
                let read = self.read_before(chunks.clone())?;
                let mut values = self.kept_values(read.rows.len());
                values.start(read.rows.len());
                Some((read, values))
            };
            segment.reads = gradients.groups.iter().map(read).collect();
            segment.gradients = Some(gradients);
            segment.start = (segment.chunks.start > 0)
                .then(|| self.buffers.states.take(|_| true, || State::zeros(self.elements())));
            Ok(())
        })));
        let mut maps = of_maps.iter();
        for (i, node) in self.passes.graph.nodes.iter().enumerate() {
            stages.push(match node.kind {
                NodeKind::Linear(_) => {
                    let state = maps.next().expect("a state of each map");
                    Stage::InOrder(Box::new(move |segment| {
                        let mut state = lock(state);
                        if let Some(start) = &mut segment.start {
                            state.save(self, start);
                        }
                        let gradients = segment.gradients.as_ref().expect("gradients of the segment");
                        state.advance(self, gradients, &mut segment.reads);
                        Ok(())
                    }))
                }
                NodeKind::Operator(op) => Stage::AnyOrder(Box::new(move |segment| {
                    operate(self, (i, op), &mut segment.reads);
                    Ok(())
                })),
            });
        }
        stages.push(Stage::AnyOrder(Box::new(|segment| {
            for (read, values) in segment.reads.iter_mut().flatten() {
                segment.output.take(read.rows.clone()).assign(&values.output());
                values.works.iter_mut().flatten().for_each(|work| work.panel = Vec::new());
            }
            if segment.chunks.end < self.chunks() {
                self.recycle_groups(segment.gradients.take().expect("gradients of the segment"));
            }
            Ok(())
        })));
        pipeline::run(&mut segments, live, &stages)?;
        drop(stages);
        let kept = |Forward { start, reads, gradients, .. }: Forward<'_, T>| {
            let reads = reads.into_iter().flatten().map(|(_, values)| values).collect();
            Kept { start, reads, gradients }
        };
        let kept = segments.into_iter().map(kept).collect();
        let end = (!self.reads(self.chunks()).is_empty()).then(|| {
            let mut end = State::zeros(self.elements());
            for state in &of_maps {
                lock(state).save(self, &mut end);
            }
            self.point(&end.update)
        });
        Ok(Tape { starts: Vec::new(), last: None, kept, end: end.unwrap_or_default() })
    }

    /// Takes buffers for the values of a read that are kept, no larger than they need to be.
    fn kept_values(&self, rows: usize) -> Values<T> {
        let new = || Values::new(&self.passes.graph, rows, self.chunk());
        self.buffers.values.take(|values| values.capacity() == rows, new)
    }

    /// Passes the cotangents of all segments back.
    pub fn blocks_backward<'m>(
        &self,
        live: usize,
        segments: impl DoubleEndedIterator<Item = (Kept<T>, SegmentCotangents<'m, T>)>,
        d_output: ArrayView2<'_, T>,
        carried: &mut Carried<T>,
    ) -> Result<()> {
        let back = |(kept, to)| Back { kept: Some(kept), segment: None, seconds: Vec::new(), to };
        let mut segments: Vec<_> = segments.map(back).rev().collect();
        let maps: Vec<_> = self.passes.linears().collect();
        let last = *maps.last().expect("a linear map");
        let Carried { update, momentum, base, .. } = carried;
        let of_points = Mutex::new(vec![T::zero(); base.len()]);
        let mut rest = [update, momentum, base].map(|array| &mut array[..]);
        let of_map = |&map: &usize| {
            let size = self.passes.place(map).0.len();
            Mutex::new(rest.each_mut().map(|rest| rest.split_off_mut(..size).expect("a map")))
        };
        let of_maps: Vec<_> = maps.iter().map(of_map).collect();

        let mut stages: Vec<Stage<'_, Back<'_, T>>> = Vec::new();
        stages.push(Stage::AnyOrder(Box::new(move |segment| {
            (self.check)()?;
            self.start_back(segment, last + 1..self.passes.graph.nodes.len(), d_output);
            Ok(())
        })));
        for (i, (&map, carried)) in maps.iter().zip(&of_maps).enumerate().rev() {
            let operators = i.checked_sub(1).map_or(0, |before| maps[before] + 1)..map;
            stages.push(Stage::InOrder(Box::new(move |segment| {
                let mut carried = lock(carried);
                self.map_vjp(map, segment.segment(), &mut carried);
                Ok(())
            })));
            stages.push(Stage::AnyOrder(Box::new(move |segment| {
                let Back { segment, to, .. } = segment;
                let segment = segment.as_mut().expect(STARTED);
                self.join_shares((map, operators.clone()), segment, to.gates);
                Ok(())
            })));
        }
        stages.push(Stage::AnyOrder(Box::new(|segment| {
            self.finish_back(segment);
            Ok(())
        })));
        // The sum over segments has a fixed order.
        stages.push(Stage::InOrder(Box::new(|segment| {
            let mut to = lock(&of_points);
            let gradients = segment.segment.take().expect(STARTED).gradients;
            self.points_vjp(&gradients, std::mem::take(&mut segment.seconds), &mut to);
            self.recycle_groups(gradients);
            Ok(())
        })));
        pipeline::run(&mut segments, live, &stages)?;
        drop(stages);
        drop(of_maps);
        add(&mut carried.base, &of_points.into_inner().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    /// Takes the gradients of a segment again if they are not kept, and passes the cotangents of its reads back through the operators
    /// after the last linear map.
    fn start_back(&self, back: &mut Back<'_, T>, operators: Range<usize>, d_output: ArrayView2<'_, T>) {
        let Kept { start, reads, gradients } = back.kept.take().expect("kept for the first stage");
        let gradients = gradients.unwrap_or_else(|| self.interval(back.to.chunks.clone(), Vec::new(), false));
        let of_groups = gradients.groups.iter().filter_map(|(chunks, _)| self.read_before(chunks.clone()));
        let of_groups: Vec<_> = of_groups.collect();
        assert_eq!(of_groups.len(), reads.len(), "values of each read");
        let of_groups: Vec<_> = of_groups.into_iter().zip(reads).collect();
        let of_group = |(read, values): (Read, Values<T>)| {
            let mut passage = Passage { values, cotangents: self.node_rows(read.rows.len()) };
            self.passes.start_vjp(&mut passage, d_output.slice(s![read.rows.clone(), ..]));
            let mut read = ReadBack { read, passage };
            self.operators_vjp(operators.clone(), &mut read);
            read
        };
        let reads = of_groups.into_par_iter().map(of_group).collect();
        back.segment = Some(SegmentBack::new(start, gradients, reads));
    }

    /// Passes cotangents of queries, and of the factors of a segment's gradients, back to its rows.
    fn finish_back(&self, Back { segment, seconds, to, .. }: &mut Back<'_, T>) {
        let segment = segment.as_mut().expect(STARTED);
        if let Some(start) = segment.start.take().filter(|start| start.update.len() <= MOST_KEPT) {
            self.buffers.states.give(start);
        }
        for ReadBack { read, passage } in segment.reads.drain(..) {
            let mut d_queries = to.queries.take(read.rows);
            match passage.cotangents.of(Value::Rows) {
                Some(cotangent) => d_queries.assign(&cotangent),
                None => d_queries.fill(T::zero()),
            }
            self.give(passage);
        }
        let (c, first) = (self.chunk(), to.chunks.start);
        let products = std::mem::take(&mut segment.products);
        let factors_vjp =
            |chunks: &Range<usize>, passage: &Passage<T>, second: &mut Second<T>, d_rates: &mut [f64]| {
                let keys = self.examples(chunks).keys;
                let rows = (chunks.start - first) * c..(chunks.end - first) * c;
                let rates: Vec<_> =
                    self.steps[chunks.clone()].iter().map(|step| step.learning_rate).collect();
                for products in &products {
                    let second = (passage, &mut *second);
                    self.passes.products_vjp(keys, second, (products, rows.clone()), (&rates, d_rates));
                }
            };
        *seconds = self.gradients_vjp(&mut segment.gradients, to, factors_vjp);
        for products in products {
            self.recycle_products(products);
        }
    }
}
