//! The oracle of the scans: plain loops in f64, one recurrence after the other, never optimised. States are handed over
//! one by one, so that nothing of their size is held.

use super::Element;
use super::linear::{Gates, Layout, Recurrence};
use super::pair::Pair;

/// Walks one recurrence: `state(t, x_t)` for every step.
pub fn walk<T: Element>(
    recurrence: &Recurrence<T>,
    sequence: usize,
    channel: usize,
    mut state: impl FnMut(usize, f64),
) {
    let place = |t| match recurrence.layout {
        Layout::StepsChannels => [sequence, t, channel],
        Layout::ChannelsSteps => [sequence, channel, t],
    };
    let steps = match recurrence.layout {
        Layout::StepsChannels => recurrence.inputs.dim().1,
        Layout::ChannelsSteps => recurrence.inputs.dim().2,
    };
    let mut x: f64 = recurrence.initial.map_or(0.0, |initial| initial[[sequence, channel]].into());
    for t in 0..steps {
        let a: f64 = match recurrence.gates {
            Gates::Step(gates) => gates[[sequence, t]].into(),
            Gates::Element(gates) => gates[place(t)].into(),
        };
        let b: f64 = recurrence.inputs[place(t)].into();
        x = a * x + b;
        state(t, x);
    }
}

/// Walks S and U of one channel from `start`: `state(t, S_t, U_t)` for every step.
pub fn walk_pair<T: Element>(
    pair: &Pair<T>,
    sequence: usize,
    channel: usize,
    start: (T, T),
    mut state: impl FnMut(usize, f64, f64),
) {
    let (mut s, mut u): (f64, f64) = (start.0.into(), start.1.into());
    for t in 0..pair.surprise.dim().1 {
        let theta: f64 = pair.learning_rate[[sequence, t]].into();
        let eta: f64 = pair.momentum[[sequence, t]].into();
        let alpha: f64 = pair.decay[[sequence, t]].into();
        let g: f64 = pair.surprise[[sequence, t, channel]].into();
        s = eta * s - theta * g;
        u = (1.0 - alpha) * u + s;
        state(t, s, u);
    }
}
