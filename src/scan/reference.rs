//! The oracle of the scans: plain loops in f64, never optimised. States are passed on step by step, so that
//! nothing of their size is held.

use std::ops::Range;

use ndarray::{ArrayView2, ArrayView3, Axis, s};

use super::Element;
use super::linear::{Gates, Layout, Recurrence};
use super::pair::Pair;

/// Scans some channels of a sequence and calls `state(t, x_t)` for every step.
pub fn scan<'a, T: Element>(
    recurrence: &Recurrence<'a, T>,
    sequence: usize,
    channels: Range<usize>,
    mut state: impl FnMut(usize, &[f64]),
) {
    // [steps, channels]
    let by_step = |all: ArrayView3<'a, T>| {
        let all = all.index_axis_move(Axis(0), sequence);
        let all = match recurrence.layout {
            Layout::StepsChannels => all,
            Layout::ChannelsSteps => all.reversed_axes(),
        };
        all.slice_move(s![.., channels.clone()])
    };
    let gates = match recurrence.gates {
        Gates::Step(gates) => gates.index_axis_move(Axis(0), sequence).insert_axis(Axis(1)),
        Gates::Element(gates) => by_step(gates),
    };
    let inputs = by_step(recurrence.inputs);
    let start = |channel| recurrence.initial.map_or(0.0, |initial| initial[[sequence, channel]].into());
    let mut states: Vec<f64> = channels.clone().map(start).collect();
    for (t, (gates, inputs)) in gates.outer_iter().zip(inputs.outer_iter()).enumerate() {
        let gates = gates.broadcast(states.len()).expect("one gate or one a channel");
        for ((x, &a), &b) in states.iter_mut().zip(gates).zip(inputs) {
            *x = a.into() * *x + b.into();
        }
        state(t, &states);
    }
}

/// Scans S and U of some channels and calls `state(t, S_t, U_t)` for every step. `start` holds S and U of all
/// channels before the first step.
pub fn scan_pair<T: Element>(
    pair: &Pair<T>,
    sequence: usize,
    channels: Range<usize>,
    start: (ArrayView2<T>, ArrayView2<T>),
    mut state: impl FnMut(usize, &[f64], &[f64]),
) {
    let of = |start: ArrayView2<T>| -> Vec<f64> {
        channels.clone().map(|channel| start[[sequence, channel]].into()).collect()
    };
    let (mut momentum, mut update) = (of(start.0), of(start.1));
    for t in 0..pair.surprise.dim().1 {
        let theta: f64 = pair.learning_rate[[sequence, t]].into();
        let eta: f64 = pair.momentum[[sequence, t]].into();
        let alpha: f64 = pair.decay[[sequence, t]].into();
        for ((s, u), channel) in momentum.iter_mut().zip(&mut update).zip(channels.clone()) {
            let g: f64 = pair.surprise[[sequence, t, channel]].into();
            *s = eta * *s - theta * g;
            *u = (1.0 - alpha) * *u + *s;
        }
        state(t, &momentum, &update);
    }
}
