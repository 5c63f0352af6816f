//! The oracle of the scans: plain loops in f64, never optimised. States are handed over step by step, so that nothing of
//! their size is held.

use std::ops::Range;

use ndarray::ArrayView2;

use super::Element;
use super::linear::{Gates, Layout, Recurrence};
use super::pair::Pair;

/// Walks some channels of a sequence: `state(t, x_t)` for every step.
pub fn walk<T: Element>(
    recurrence: &Recurrence<T>,
    sequence: usize,
    channels: Range<usize>,
    mut state: impl FnMut(usize, &[f64]),
) {
    let place = |t, channel| match recurrence.layout {
        Layout::StepsChannels => [sequence, t, channel],
        Layout::ChannelsSteps => [sequence, channel, t],
    };
    let steps = match recurrence.layout {
        Layout::StepsChannels => recurrence.inputs.dim().1,
        Layout::ChannelsSteps => recurrence.inputs.dim().2,
    };
    let start = |channel| recurrence.initial.map_or(0.0, |initial| initial[[sequence, channel]].into());
    let mut states: Vec<f64> = channels.clone().map(start).collect();
    for t in 0..steps {
        for (x, channel) in states.iter_mut().zip(channels.clone()) {
            let a: f64 = match recurrence.gates {
                Gates::Step(gates) => gates[[sequence, t]].into(),
                Gates::Element(gates) => gates[place(t, channel)].into(),
            };
            let b: f64 = recurrence.inputs[place(t, channel)].into();
            *x = a * *x + b;
        }
        state(t, &states);
    }
}

/// Walks S and U of some channels from `start`, those of all: `state(t, S_t, U_t)` for every step.
pub fn walk_pair<T: Element>(
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
