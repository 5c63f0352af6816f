//! The plain loop on one thread, with which the others are compared. The scan across channels uses the same
//! arithmetic: one product and one sum, in this order.

use super::Element;
use super::linear::{Layout, Problem, Shape};
use crate::simd::vectorised;

pub fn scan<T: Element>(problem: &Problem<T>, states: &mut [T]) {
    vectorised(
        #[inline(always)]
        || match problem.layout {
            Layout::StepsChannels => steps_channels(problem, states),
            Layout::ChannelsSteps => channels_steps(problem, states),
        },
    );
}

#[expect(clippy::inline_always, reason = "to be compiled with the caller's instruction set")]
#[inline(always)]
fn steps_channels<T: Element>(problem: &Problem<T>, states: &mut [T]) {
    let Shape { steps, channels, .. } = problem.shape;
    for (sequence, states) in states.chunks_exact_mut(steps * channels).enumerate() {
        let (gates, inputs) = (problem.gates_of(sequence), problem.inputs_of(sequence));
        let zero = vec![T::zero(); channels];
        let mut before =
            problem.initial.map_or(&zero[..], |initial| &initial[sequence * channels..][..channels]);
        let rows = states.chunks_exact_mut(channels).zip(inputs.chunks_exact(channels));
        for (t, (states, inputs)) in rows.enumerate() {
            if problem.gate_per_step {
                let a = gates[t];
                for ((x, &b), &before) in states.iter_mut().zip(inputs).zip(before) {
                    *x = a * before + b;
                }
            } else {
                let gates = &gates[t * channels..][..channels];
                for (((x, &a), &b), &before) in states.iter_mut().zip(gates).zip(inputs).zip(before) {
                    *x = a * before + b;
                }
            }
            before = states;
        }
    }
}

#[expect(clippy::inline_always, reason = "to be compiled with the caller's instruction set")]
#[inline(always)]
fn channels_steps<T: Element>(problem: &Problem<T>, states: &mut [T]) {
    for (row, states) in states.chunks_exact_mut(problem.shape.steps).enumerate() {
        let (gates, inputs) = problem.row(row);
        let mut state = problem.start(row);
        for ((x, &a), &b) in states.iter_mut().zip(gates).zip(inputs) {
            state = a * state + b;
            *x = state;
        }
    }
}
