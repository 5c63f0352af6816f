//! The associative tree (Blelloch, "Prefix sums and their applications", 1990), as PyTorch's and JAX's
//! `associative_scan` compute it. Neighbouring pairs (a, b) are combined, (a₂ a₁, a₂ b₁ + b₂), the halved
//! sequence is scanned by recursion, and the places between are filled in. It moves several times the bytes of
//! the loop, and is here for comparison. Two things favour it over the originals: it takes a panel of channels
//! at a time, so that small ones stay in the cache, and it skips products of gates that nothing reads. Products
//! that leave the element type's range turn states within the range into NaN, as in the originals.

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use super::Element;
use super::channels::{initial_state, panel_width, split_panels};
use super::linear::{Layout, Problem};
use crate::simd::vectorised;

pub fn scan<T: Element>(problem: &Problem<T>, states: &mut [T]) {
    match problem.layout {
        Layout::ChannelsSteps => {
            states.par_chunks_exact_mut(problem.shape.steps).enumerate().for_each(|(row, states)| {
                let (gates, inputs) = problem.row(row);
                states.copy_from_slice(inputs);
                states[0] = gates[0] * problem.start(row) + states[0];
                tree(gates, states, 1, 1);
            });
        }
        Layout::StepsChannels => {
            let channels = problem.shape.channels;
            let width = panel_width::<T>(problem.shape);
            split_panels(states, problem.shape, width).into_par_iter().for_each(
                |(sequence, first, mut states)| {
                    let width = states.ncols();
                    let of_panel = |all: &[T]| -> Vec<T> {
                        all.chunks_exact(channels).flat_map(|row| &row[first..][..width]).copied().collect()
                    };
                    let gates = problem.gates_of(sequence);
                    let gathered;
                    let (gates, gate_width) = if problem.gate_per_step {
                        (gates, 1)
                    } else {
                        gathered = of_panel(gates);
                        (&gathered[..], width)
                    };
                    let mut values = of_panel(problem.inputs_of(sequence));
                    let start = initial_state(problem, sequence, first, width);
                    for (i, (x, &start)) in values.iter_mut().zip(&start).enumerate() {
                        *x = gates[i % gate_width] * start + *x;
                    }
                    tree(gates, &mut values, gate_width, width);
                    for (mut to, from) in states.outer_iter_mut().zip(values.chunks_exact(width)) {
                        to.as_slice_mut().expect("contiguous rows").copy_from_slice(from);
                    }
                },
            );
        }
    }
}

/// Scans rows of `width` values in place; gates have rows of the same width, or of one.
fn tree<T: Element>(gates: &[T], values: &mut [T], gate_width: usize, width: usize) {
    let half = values.len() / width / 2;
    if half == 0 {
        return;
    }
    let mut half_gates = vec![T::zero(); half * gate_width];
    let mut half_values = vec![T::zero(); half * width];
    combine(gates, values, &mut half_gates, &mut half_values, gate_width, width);
    tree(&half_gates, &mut half_values, gate_width, width);
    spread(gates, values, &half_values, gate_width, width);
}

/// Combines pairs of rows into half as many.
fn combine<T: Element>(
    gates: &[T],
    values: &[T],
    half_gates: &mut [T],
    half_values: &mut [T],
    gate_width: usize,
    width: usize,
) {
    vectorised(
        #[inline(always)]
        || {
            if (gate_width, width) == (1, 1) {
                let pairs = gates.as_chunks::<2>().0.iter().zip(values.as_chunks::<2>().0);
                for ((half_gate, half), (a, b)) in half_gates.iter_mut().zip(&mut *half_values).zip(pairs) {
                    (*half_gate, *half) = (a[1] * a[0], a[1] * b[0] + b[1]);
                }
                return;
            }
            let gate_pairs = gates.chunks_exact(2 * gate_width);
            for (half, pair) in half_gates.chunks_exact_mut(gate_width).zip(gate_pairs.clone()) {
                let (earlier, later) = pair.split_at(gate_width);
                for ((half, &earlier), &later) in half.iter_mut().zip(earlier).zip(later) {
                    *half = later * earlier;
                }
            }
            let pairs = values.chunks_exact(2 * width).zip(gate_pairs);
            for (half, (pair, gates)) in half_values.chunks_exact_mut(width).zip(pairs) {
                let (earlier, later) = pair.split_at(width);
                let gates = &gates[gate_width..];
                if gate_width == width {
                    for (((half, &earlier), &later), &a) in half.iter_mut().zip(earlier).zip(later).zip(gates)
                    {
                        *half = a * earlier + later;
                    }
                } else {
                    for ((half, &earlier), &later) in half.iter_mut().zip(earlier).zip(later) {
                        *half = gates[0] * earlier + later;
                    }
                }
            }
        },
    );
}

/// Copies the scanned halves to the odd rows, and computes the even rows that follow from them.
fn spread<T: Element>(gates: &[T], values: &mut [T], half_values: &[T], gate_width: usize, width: usize) {
    vectorised(
        #[inline(always)]
        || {
            let (_, values) = values.split_at_mut(width);
            if (gate_width, width) == (1, 1) {
                let (pairs, last) = values.as_chunks_mut::<2>();
                let gates = gates[1..].as_chunks::<2>().0;
                for ((pair, &half), gates) in pairs.iter_mut().zip(half_values).zip(gates) {
                    *pair = [half, gates[1] * half + pair[1]];
                }
                if let ([last], Some(&half)) = (last, half_values.last()) {
                    *last = half;
                }
                return;
            }
            let gates = gates[gate_width..].chunks(2 * gate_width);
            for ((pair, half), gates) in
                values.chunks_mut(2 * width).zip(half_values.chunks_exact(width)).zip(gates)
            {
                let (odd, even) = pair.split_at_mut(width);
                odd.copy_from_slice(half);
                // The last even row does not exist if the number of rows is even.
                let gates = gates.get(gate_width..).unwrap_or_default();
                if gate_width == width {
                    for ((x, &half), &a) in even.iter_mut().zip(half).zip(gates) {
                        *x = a * half + *x;
                    }
                } else if let Some(&a) = gates.first() {
                    for (x, &half) in even.iter_mut().zip(half) {
                        *x = a * half + *x;
                    }
                }
            }
        },
    );
}
