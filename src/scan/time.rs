//! The scan across time in two passes. The first computes every segment's end from zero and the product of its
//! gates; from these follow, one after another, the true starts of the segments. The second scans every segment
//! again and writes it. Segments depend on the number of steps alone, so the results do not depend on the
//! number of threads.
//!
//! The inputs (and gates per element) are read twice. That is 20 bytes an f32 element with gates per element,
//! against 12 that must move, and 12 against 8 with gates per step. Products serve only as coefficients:
//! nothing is divided by them, so a product that vanishes is correct. If one is not finite, its segment is
//! scanned from its true start instead.

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use ndarray::{ArrayViewMut2, Axis};

use super::Element;
use super::channels::{initial_state, panel_width, scan_panel, split_panels};
use super::lanes::{self, LANES, Lane, Scratch};
use super::linear::{Layout, Problem, Shape};
use crate::simd::vectorised;

/// Fewest steps of a segment: each segment costs a task and a step of the serial combination.
const MIN_SEGMENT: usize = 256;
/// Most segments.
const MAX_SEGMENTS: usize = 64;

/// Returns the steps of a segment; the last may be shorter.
fn segment(steps: usize) -> usize {
    steps.div_ceil(MAX_SEGMENTS).max(MIN_SEGMENT)
}

/// The effect of a segment on the state before it: x ↦ gate · x + end.
#[derive(Clone, Copy, Debug)]
struct Effect<T> {
    gate: T,
    end: T,
}

impl<T: Element> Effect<T> {
    /// Returns the state after the segment. `sequential` computes it where the product of gates left the
    /// element type's range.
    fn apply(self, start: T, sequential: impl FnOnce() -> T) -> T {
        if self.gate.is_finite() && self.end.is_finite() && start.is_finite() {
            self.gate * start + self.end
        } else {
            sequential()
        }
    }
}

pub fn scan<T: Element>(problem: &Problem<T>, states: &mut [T]) {
    match problem.layout {
        Layout::StepsChannels => steps_channels(problem, states),
        Layout::ChannelsSteps => channels_steps(problem, states),
    }
}

fn channels_steps<T: Element>(problem: &Problem<T>, states: &mut [T]) {
    let Shape { batch, steps, channels } = problem.shape;
    let length = segment(steps);
    let whole = (steps - 1) / length;
    // All segments but each row's last, which has no successor: row by row.
    let first: Vec<_> = (0..batch * channels)
        .flat_map(|row| {
            let (gates, inputs) = problem.row(row);
            (0..whole).map(move |i| (&gates[i * length..][..length], &inputs[i * length..][..length]))
        })
        .collect();
    let effects: Vec<_> = first
        .par_chunks(LANES)
        .map_init(Scratch::new, |scratch, segments| effects_of_lanes(scratch, segments))
        .collect::<Vec<_>>()
        .concat();
    let mut lanes = Vec::with_capacity(batch * channels * (whole + 1));
    for (row, states) in states.chunks_exact_mut(steps).enumerate() {
        let (gates, inputs) = problem.row(row);
        let mut state = problem.start(row);
        let segments = states.chunks_mut(length).zip(gates.chunks(length)).zip(inputs.chunks(length));
        for (i, ((states, gates), inputs)) in segments.enumerate() {
            lanes.push(Lane { gates, inputs, state, states: Some(states) });
            if i < whole {
                let sequential = || gates.iter().zip(inputs).fold(state, |x, (&a, &b)| a * x + b);
                state = effects[row * whole + i].apply(state, sequential);
            }
        }
    }
    // Lanes side by side have equal lengths, so the last segments of all rows are taken together.
    let (mut last, mut others): (Vec<_>, Vec<_>) =
        lanes.into_iter().partition(|lane| lane.inputs.len() < length);
    for lanes in [&mut others, &mut last] {
        lanes.par_chunks_mut(LANES).for_each_init(Scratch::new, |scratch, lanes| {
            lanes::scan(lanes, problem.stream, scratch);
        });
    }
}

/// Returns the effects of up to [`LANES`] equally long segments.
fn effects_of_lanes<T: Element>(scratch: &mut Scratch<T>, segments: &[(&[T], &[T])]) -> Vec<Effect<T>> {
    let lane = |&(gates, inputs)| Lane { gates, inputs, state: T::zero(), states: None };
    let mut lanes: Vec<_> = segments.iter().map(lane).collect();
    let products = lanes::scan(&mut lanes, false, scratch);
    lanes.iter().zip(products).map(|(lane, gate)| Effect { gate, end: lane.state }).collect()
}

/// A panel of channels in one segment.
struct Piece<'a, T> {
    sequence: usize,
    /// First step and first channel.
    place: (usize, usize),
    /// State before the segment.
    state: Vec<T>,
    states: ArrayViewMut2<'a, T>,
}

fn steps_channels<T: Element>(problem: &Problem<T>, states: &mut [T]) {
    let Shape { steps, .. } = problem.shape;
    let length = segment(steps);
    let panels = split_panels(states, problem.shape, panel_width::<T>(problem.shape));
    let places: Vec<_> = panels
        .iter()
        .flat_map(|&(sequence, first, ref panel)| {
            let width = panel.ncols();
            (0..steps - 1)
                .step_by(length)
                .filter(move |start| start + length < steps)
                .map(move |start| (sequence, first, width, start))
        })
        .collect();
    let mut effects = places
        .into_par_iter()
        .map(|(sequence, first, width, start)| {
            effect_of_panel(problem, sequence, (start, first), width, length)
        })
        .collect::<Vec<_>>()
        .into_iter();
    let mut pieces = Vec::new();
    for (sequence, first, panel) in panels {
        let width = panel.ncols();
        let mut state = initial_state(problem, sequence, first, width);
        let mut rest = panel;
        let mut start = 0;
        while rest.nrows() > length {
            let (states, others) = rest.split_at(Axis(0), length);
            let place = (start, first);
            let effect = effects.next().expect("one for every segment that has a successor");
            let mut after = Vec::with_capacity(width);
            for (i, (effect, &state)) in effect.into_iter().zip(&state).enumerate() {
                let sequential = || scan_channel(problem, sequence, (start, first + i), length, state);
                after.push(effect.apply(state, sequential));
            }
            pieces.push(Piece { sequence, place, state: std::mem::replace(&mut state, after), states });
            (rest, start) = (others, start + length);
        }
        pieces.push(Piece { sequence, place: (start, first), state, states: rest });
    }
    pieces.into_par_iter().for_each(|Piece { sequence, place, mut state, mut states }| {
        scan_panel(problem, sequence, place, &mut state, &mut states);
    });
}

/// Scans one channel through a segment without writing states.
fn scan_channel<T: Element>(
    problem: &Problem<T>,
    sequence: usize,
    (start, channel): (usize, usize),
    length: usize,
    state: T,
) -> T {
    let (gates, inputs) = (problem.gates_of(sequence), problem.inputs_of(sequence));
    let channels = problem.shape.channels;
    (start..start + length).fold(state, |x, t| {
        let place = t * channels + channel;
        gates[if problem.gate_per_step { t } else { place }] * x + inputs[place]
    })
}

fn effect_of_panel<T: Element>(
    problem: &Problem<T>,
    sequence: usize,
    (start, channel): (usize, usize),
    width: usize,
    length: usize,
) -> Vec<Effect<T>> {
    let (gates, inputs) = (problem.gates_of(sequence), problem.inputs_of(sequence));
    let channels = problem.shape.channels;
    let (mut product, mut end) = (vec![T::one(); width], vec![T::zero(); width]);
    vectorised(
        #[inline(always)]
        || {
            let mut scalar = T::one();
            for t in start..start + length {
                let row = t * channels + channel;
                let inputs = &inputs[row..][..width];
                if problem.gate_per_step {
                    let a = gates[t];
                    for (x, &b) in end.iter_mut().zip(inputs) {
                        *x = a * *x + b;
                    }
                    scalar *= a;
                } else {
                    let gates = &gates[row..][..width];
                    for (((x, product), &a), &b) in end.iter_mut().zip(&mut product).zip(gates).zip(inputs) {
                        *x = a * *x + b;
                        *product *= a;
                    }
                }
            }
            if problem.gate_per_step {
                product.fill(scalar);
            }
        },
    );
    product.into_iter().zip(end).map(|(gate, end)| Effect { gate, end }).collect()
}
