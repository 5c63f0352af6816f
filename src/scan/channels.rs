//! Across channels: groups of them side by side on the threads, each walked from the first step to the last.
//!
//! Steps × channels: a strip of neighbouring channels keeps its state in the cache and goes down the rows, vectorised
//! across the strip. Strips are as wide as the threads allow: a row that is read in short pieces costs a page and the
//! prefetcher's attention a piece (768-byte pieces ran at a quarter of the speed of whole rows).
//!
//! Channels × steps: one channel is a chain of dependent products and sums, so [`LANES`] rows are walked at once, turned in
//! squares of [`SQUARE`] so that lanes are a vector. They come through a scratch in L1, because rows a power of two apart
//! would evict each other there.

use ndarray::{ArrayViewMut2, Axis};
use pulp::Arch;
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use super::linear::{Layout, Problem, Shape};
use super::{Element, stream};

/// The most bytes of a strip's row: half of a common L2. From DRAM, rows of 512 KB came at 23 GB/s, of 64 KB at 17, of
/// 16 KB at 13 (S and U, two threads); why so wide a row is still better was not found out.
const STRIP_BYTES: usize = 1 << 19;
/// The least: a few lines.
const LEAST_STRIP_BYTES: usize = 256;
/// Elements of a strip's row that are computed and then written, from L1.
pub(super) const PIECE: usize = 1024;
/// Strips narrower than this are asked for a row ahead. In wider ones the hardware soon finds its way, and asking costs
/// more than it brings.
const NARROW_BYTES: usize = 8192;
/// Rows walked at once: two vectors of AVX2, one of AVX-512.
pub(super) const LANES: usize = 16;
/// Turned at once. Compilers find the shuffles for 4; with 8 and 16 they went through memory, at a third of the speed.
const SQUARE: usize = 4;
/// Elements of a row that pass through the scratch at once: in f32 the scratch is half of L1.
const BLOCK: usize = 128;
/// Keeps the scratch's rows apart in L1.
const PAD: usize = 16;

/// Whether a row's piece ends before the hardware has found out that it goes on.
pub(super) fn is_narrow<T>(width: usize, channels: usize) -> bool {
    width < channels && width * size_of::<T>() < NARROW_BYTES
}

/// Channels of a strip. The results do not depend on it.
pub(super) fn strip<T>(shape: Shape) -> usize {
    let most = STRIP_BYTES / size_of::<T>();
    let least = LEAST_STRIP_BYTES / size_of::<T>();
    let wanted =
        (shape.batch * shape.channels).div_ceil(rayon::current_num_threads()).next_multiple_of(least);
    // Not a strip and a sliver.
    let pieces = shape.channels.div_ceil(wanted.clamp(least, most));
    shape.channels.div_ceil(pieces).next_multiple_of(16).max(1)
}

/// Cuts `[batch, steps, channels]` into strips `[steps, width]`: sequence, first channel, the strip.
pub(super) fn strips<T>(
    states: &mut [T],
    shape: Shape,
    width: usize,
) -> Vec<(usize, usize, ArrayViewMut2<'_, T>)> {
    let Shape { steps, channels, .. } = shape;
    let mut strips = Vec::new();
    for (sequence, states) in states.chunks_exact_mut(steps * channels).enumerate() {
        let mut rest = ArrayViewMut2::from_shape((steps, channels), states).expect("the states' shape");
        while rest.ncols() > 0 {
            let first = channels - rest.ncols();
            let width = width.min(rest.ncols());
            let (strip, others) = rest.split_at(Axis(1), width);
            strips.push((sequence, first, strip));
            rest = others;
        }
    }
    strips
}

pub fn scan<T: Element>(problem: &Problem<T>, states: &mut [T]) {
    match problem.layout {
        Layout::StepsChannels => {
            let width = strip::<T>(problem.shape);
            strips(states, problem.shape, width).into_par_iter().for_each(|(sequence, first, mut states)| {
                let width = states.ncols();
                let mut state = start_of_strip(problem, sequence, first, width);
                walk_strip(problem, sequence, (0, first), &mut state, &mut states);
            });
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
                    walk_lanes(&mut lanes, problem.stream, scratch);
                },
            );
        }
    }
}

/// The states of a strip before the first step.
pub(super) fn start_of_strip<T: Element>(
    problem: &Problem<T>,
    sequence: usize,
    first: usize,
    width: usize,
) -> Vec<T> {
    let place = sequence * problem.shape.channels + first;
    problem.initial.map_or_else(|| vec![T::zero(); width], |initial| initial[place..][..width].to_vec())
}

/// Takes a strip of channels from `state` through the steps of `states` `[steps, width]`, the first of which is
/// `step` of the sequence; leaves the last state in `state`.
pub(super) fn walk_strip<'a, T: Element>(
    problem: &Problem<'a, T>,
    sequence: usize,
    (step, channel): (usize, usize),
    state: &mut [T],
    states: &mut ArrayViewMut2<T>,
) {
    let (gates, inputs) = (problem.gates_of(sequence), problem.inputs_of(sequence));
    let channels = problem.shape.channels;
    let narrow = is_narrow::<T>(state.len(), channels);
    Arch::new().dispatch(
        #[inline(always)]
        || {
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
        },
    );
    stream::fence();
}

/// A recurrence along contiguous time, or a stretch of it.
#[derive(Debug)]
pub(super) struct Lane<'a, T> {
    pub gates: &'a [T],
    pub inputs: &'a [T],
    /// Before; afterwards the last.
    pub state: T,
    /// Where states are written, if they are wanted.
    pub states: Option<&'a mut [T]>,
}

/// Rows of a block.
type Rows<T> = [[T; BLOCK + PAD]; LANES];

/// Gates and values of a block, kept from one group of lanes to the next.
pub(super) struct Scratch<T> {
    gates: Rows<T>,
    values: Rows<T>,
}

impl<T: Element> Scratch<T> {
    /// Too large for a stack that others share.
    #[expect(clippy::unnecessary_box_returns, reason = "made for each thread, handed on by the pool")]
    pub fn new() -> Box<Self> {
        let rows = [[T::zero(); BLOCK + PAD]; LANES];
        Box::new(Self { gates: rows, values: rows })
    }
}

/// Walks up to [`LANES`] recurrences of the same length at once. Returns the products of their gates, where no states
/// are written.
pub(super) fn walk_lanes<T: Element>(
    lanes: &mut [Lane<T>],
    past_cache: bool,
    scratch: &mut Scratch<T>,
) -> [T; LANES] {
    let Some(first) = lanes.first() else { return [T::one(); LANES] };
    let (length, shared) = (first.inputs.len(), first.gates);
    assert!(
        lanes.len() <= LANES && lanes.iter().all(|lane| lane.inputs.len() == length),
        "lanes side by side"
    );
    let shared = lanes.iter().all(|lane| std::ptr::eq(lane.gates, shared)).then_some(shared);
    let writes = lanes.iter().any(|lane| lane.states.is_some());
    // Lanes that are not there walk what was there before: nobody reads it.
    let Scratch { gates, values } = scratch;
    let (mut state, mut product) = ([T::zero(); LANES], [T::one(); LANES]);
    for (state, lane) in state.iter_mut().zip(&*lanes) {
        *state = lane.state;
    }
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for start in (0..length).step_by(BLOCK) {
                let range = start..length.min(start + BLOCK);
                let count = range.len();
                let soon = range.end..length.min(range.end + BLOCK);
                for ((lane, gates), values) in lanes.iter().zip(&mut *gates).zip(&mut *values) {
                    stream::prefetch(&lane.inputs[soon.clone()]);
                    if shared.is_none() {
                        stream::prefetch(&lane.gates[soon.clone()]);
                        gates[..count].copy_from_slice(&lane.gates[range.clone()]);
                    }
                    values[..count].copy_from_slice(&lane.inputs[range.clone()]);
                }
                match (shared.map(|gates| &gates[range.clone()]), writes) {
                    (Some(shared), true) => block::<T, true>(
                        |t| [shared[t]; LANES],
                        |t| squares(shared, t),
                        values,
                        count,
                        &mut state,
                        &mut product,
                    ),
                    (Some(shared), false) => block::<T, false>(
                        |t| [shared[t]; LANES],
                        |t| squares(shared, t),
                        values,
                        count,
                        &mut state,
                        &mut product,
                    ),
                    (None, true) => block::<T, true>(
                        |t| column(gates, t),
                        |t| turned(gates, t),
                        values,
                        count,
                        &mut state,
                        &mut product,
                    ),
                    (None, false) => block::<T, false>(
                        |t| column(gates, t),
                        |t| turned(gates, t),
                        values,
                        count,
                        &mut state,
                        &mut product,
                    ),
                }
                for (lane, values) in lanes.iter_mut().zip(&*values) {
                    let Some(states) = &mut lane.states else { continue };
                    let states = &mut states[range.clone()];
                    if past_cache {
                        stream::copy(states, &values[..count]);
                    } else {
                        states.copy_from_slice(&values[..count]);
                    }
                }
            }
        },
    );
    stream::fence();
    for (state, lane) in state.iter().zip(lanes) {
        lane.state = *state;
    }
    product
}

/// One block of all lanes, in place. `gate` and `gates` are those of one step and of [`SQUARE`] steps from one on.
#[expect(clippy::inline_always, reason = "to be compiled with the caller's instruction set")]
#[inline(always)]
fn block<T: Element, const WRITES: bool>(
    gate: impl Fn(usize) -> [T; LANES],
    gates: impl Fn(usize) -> [[T; LANES]; SQUARE],
    values: &mut Rows<T>,
    count: usize,
    state: &mut [T; LANES],
    product: &mut [T; LANES],
) {
    let (mut x, mut p) = (*state, *product);
    let mut step = |a: &[T; LANES], b: &mut [T; LANES]| {
        for i in 0..LANES {
            x[i] = a[i] * x[i] + b[i];
            if !WRITES {
                p[i] *= a[i];
            }
        }
        *b = x;
    };
    let whole = count - count % SQUARE;
    for t in (0..whole).step_by(SQUARE) {
        let a = gates(t);
        let mut b = turned(values, t);
        for (a, b) in a.iter().zip(&mut b) {
            step(a, b);
        }
        if WRITES {
            turn_back(&b, values, t);
        }
    }
    for t in whole..count {
        let mut b = column(values, t);
        step(&gate(t), &mut b);
        for (row, b) in values.iter_mut().zip(b) {
            row[t] = b;
        }
    }
    (*state, *product) = (x, p);
}

/// One step of all lanes.
#[expect(clippy::inline_always, reason = "as above")]
#[inline(always)]
fn column<T: Element>(rows: &Rows<T>, t: usize) -> [T; LANES] {
    std::array::from_fn(|i| rows[i][t])
}

/// Gates that all lanes share.
#[expect(clippy::inline_always, reason = "as above")]
#[inline(always)]
fn squares<T: Element>(shared: &[T], t: usize) -> [[T; LANES]; SQUARE] {
    std::array::from_fn(|i| [shared[t + i]; LANES])
}

/// [`SQUARE`] steps of all lanes, a step a vector.
#[expect(clippy::inline_always, reason = "as above")]
#[inline(always)]
fn turned<T: Element>(rows: &Rows<T>, t: usize) -> [[T; LANES]; SQUARE] {
    let mut steps = [[T::zero(); LANES]; SQUARE];
    for group in (0..LANES).step_by(SQUARE) {
        let square: [[T; SQUARE]; SQUARE] =
            std::array::from_fn(|i| std::array::from_fn(|j| rows[group + i][t + j]));
        for (step, column) in steps.iter_mut().zip(transposed(&square)) {
            step[group..group + SQUARE].copy_from_slice(&column);
        }
    }
    steps
}

#[expect(clippy::inline_always, reason = "as above")]
#[inline(always)]
fn turn_back<T: Element>(steps: &[[T; LANES]; SQUARE], rows: &mut Rows<T>, t: usize) {
    for group in (0..LANES).step_by(SQUARE) {
        let square: [[T; SQUARE]; SQUARE] =
            std::array::from_fn(|i| std::array::from_fn(|j| steps[i][group + j]));
        for (row, values) in rows[group..].iter_mut().zip(transposed(&square)) {
            row[t..t + SQUARE].copy_from_slice(&values);
        }
    }
}

#[expect(clippy::inline_always, reason = "as above")]
#[inline(always)]
fn transposed<T: Element>(square: &[[T; SQUARE]; SQUARE]) -> [[T; SQUARE]; SQUARE] {
    std::array::from_fn(|i| std::array::from_fn(|j| square[j][i]))
}
