//! The scan across channels: groups of channels side by side on the threads, each scanned from the first step
//! to the last.
//!
//! Steps × channels: a panel of neighbouring channels keeps its state in the cache and goes down the rows,
//! vectorised across the panel. Panels are as wide as the number of threads allows. A row that is read in short
//! pieces costs a page and the prefetcher's attention per piece. Pieces of 768 bytes ran at a quarter of the speed
//! of whole rows.
//!
//! [`vectorised`](crate::simd::vectorised) is not used: these loops wait for memory, and with AVX-512 they
//! waited longer. With two threads the pair on 8 × 4096 × 1536 took 13.8 ms with AVX-512, 13.0 with AVX2, and
//! 9.4 to 10.1 with SSE2 (a copy: 8.4). In the cache all three took the same time.
//!
//! Channels × steps: groups of rows, in [`super::lanes`].

use ndarray::{ArrayViewMut2, Axis};
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use super::lanes::{LANES, Lane, Scratch};
use super::linear::{Layout, Problem, Shape};
use super::{Element, lanes, stream};

/// Most bytes of a panel's row: half of a common L2. From DRAM, rows of 512 KB ran at 23 GB/s, rows of 64 KB at
/// 17, rows of 16 KB at 13 (S and U, two threads). Why such wide rows are still better is unknown.
const MAX_PANEL_BYTES: usize = 1 << 19;
/// Fewest bytes of a panel's row: a few cache lines.
const MIN_PANEL_BYTES: usize = 256;
/// Elements of a panel's row that are computed and then written, from L1.
pub(super) const PIECE: usize = 512;
/// Panels with rows of fewer bytes than this are prefetched a row ahead. In wider ones the hardware soon
/// prefetches by itself, and a prefetch costs more than it gains.
const NARROW_BYTES: usize = 8192;
/// Returns whether a row's piece ends before the hardware prefetcher recognises the stream.
pub(super) fn is_narrow<T>(width: usize, channels: usize) -> bool {
    width < channels && width * size_of::<T>() < NARROW_BYTES
}

/// Returns the number of channels of a panel. The results do not depend on it.
pub(super) fn panel_width<T>(shape: Shape) -> usize {
    let most = MAX_PANEL_BYTES / size_of::<T>();
    let least = MIN_PANEL_BYTES / size_of::<T>();
    let wanted =
        (shape.batch * shape.channels).div_ceil(rayon::current_num_threads()).next_multiple_of(least);
    // Equal panels, rather than full ones and a narrow last one.
    let pieces = shape.channels.div_ceil(wanted.clamp(least, most));
    shape.channels.div_ceil(pieces).next_multiple_of(16).max(1)
}

/// Divides `[batch, steps, channels]` into column panels `[steps, width]`: sequence, first channel, and the panel.
pub(super) fn split_panels<T>(
    states: &mut [T],
    shape: Shape,
    width: usize,
) -> Vec<(usize, usize, ArrayViewMut2<'_, T>)> {
    let Shape { steps, channels, .. } = shape;
    let mut panels = Vec::new();
    for (sequence, states) in states.chunks_exact_mut(steps * channels).enumerate() {
        let mut rest = ArrayViewMut2::from_shape((steps, channels), states).expect("the states' shape");
        while rest.ncols() > 0 {
            let first = channels - rest.ncols();
            let width = width.min(rest.ncols());
            let (panel, others) = rest.split_at(Axis(1), width);
            panels.push((sequence, first, panel));
            rest = others;
        }
    }
    panels
}

pub fn scan<T: Element>(problem: &Problem<T>, states: &mut [T]) {
    match problem.layout {
        Layout::StepsChannels => {
            let width = panel_width::<T>(problem.shape);
            split_panels(states, problem.shape, width).into_par_iter().for_each(
                |(sequence, first, mut states)| {
                    let width = states.ncols();
                    let mut state = initial_state(problem, sequence, first, width);
                    scan_panel(problem, sequence, (0, first), &mut state, &mut states);
                },
            );
        }
        Layout::ChannelsSteps => {
            let steps = problem.shape.steps;
            states.par_chunks_mut(LANES * steps).enumerate().for_each_init(
                Scratch::new,
                |scratch, (group, states)| {
                    let mut lanes: Vec<_> = states
                        .chunks_exact_mut(steps)
                        .enumerate()
                        .map(|(i, states)| {
                            let row = group * LANES + i;
                            let (gates, inputs) = problem.row(row);
                            Lane { gates, inputs, state: problem.start(row), states: Some(states) }
                        })
                        .collect();
                    lanes::scan(&mut lanes, problem.stream, scratch);
                },
            );
        }
    }
}

/// Returns the states of a panel before the first step.
pub(super) fn initial_state<T: Element>(
    problem: &Problem<T>,
    sequence: usize,
    first: usize,
    width: usize,
) -> Vec<T> {
    let place = sequence * problem.shape.channels + first;
    problem.initial.map_or_else(|| vec![T::zero(); width], |initial| initial[place..][..width].to_vec())
}

/// Advances a panel of channels from `state` through the steps of `states` `[steps, width]`, the first of which
/// is step `step` of the sequence. Leaves the last state in `state`.
pub(super) fn scan_panel<'a, T: Element>(
    problem: &Problem<'a, T>,
    sequence: usize,
    (step, channel): (usize, usize),
    state: &mut [T],
    states: &mut ArrayViewMut2<T>,
) {
    let (gates, inputs) = (problem.gates_of(sequence), problem.inputs_of(sequence));
    let channels = problem.shape.channels;
    let narrow = is_narrow::<T>(state.len(), channels);
    for (t, mut states) in (step..).zip(states.outer_iter_mut()) {
        let states = states.as_slice_mut().expect("contiguous rows");
        for (i, (x, states)) in state.chunks_mut(PIECE).zip(states.chunks_mut(PIECE)).enumerate() {
            let place = t * channels + channel + i * PIECE;
            let piece = |all: &'a [T]| &all[place..][..states.len()];
            let soon = |all: &[T]| {
                if narrow {
                    let next = place + channels..place + channels + states.len();
                    stream::prefetch(all.get(next).unwrap_or_default());
                }
            };
            soon(inputs);
            if problem.gate_per_step {
                let a = gates[t];
                for (x, &b) in x.iter_mut().zip(piece(inputs)) {
                    *x = a * *x + b;
                }
            } else {
                soon(gates);
                for ((x, &a), &b) in x.iter_mut().zip(piece(gates)).zip(piece(inputs)) {
                    *x = a * *x + b;
                }
            }
            if problem.stream {
                stream::copy(states, x);
            } else {
                states.copy_from_slice(x);
            }
        }
    }
    stream::fence();
}
