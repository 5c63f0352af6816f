//! The linear recurrence over a whole sequence:
//!
//! ```text
//! x_t = a_t · x_{t−1} + b_t        t = 0 … steps − 1,  x_{−1} = initial, or 0
//! ```
//!
//! It is independent for every sequence of a batch and every channel. Inputs b and states x are `[batch, steps,
//! channels]` or `[batch, channels, steps]`. The gates a are one per step, `[batch, steps]`, or one per
//! element, of the inputs' shape. Gates may have any value: 0, negative or above 1. Every state is written and
//! none is read; without steps nothing is written.

use ndarray::{ArrayView2, ArrayView3, ArrayViewMut3};

use super::{Element, channels, sequential, time, tree};

/// The order of the axes of inputs, states and gates per element. Arrays are contiguous, and the last axis
/// varies fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Steps before channels: `[batch, steps, channels]`.
    StepsChannels,
    /// Channels before steps: `[batch, channels, steps]`.
    ChannelsSteps,
}

/// The gates a.
#[derive(Clone, Copy, Debug)]
pub enum Gates<'a, T> {
    /// One per step, the same for all channels: `[batch, steps]`.
    Step(ArrayView2<'a, T>),
    /// One per element, of the inputs' shape.
    Element(ArrayView3<'a, T>),
}

/// The inputs of a scan.
#[derive(Clone, Copy, Debug)]
pub struct Recurrence<'a, T> {
    /// Axis order of inputs, states and gates per element.
    pub layout: Layout,
    /// Gates a.
    pub gates: Gates<'a, T>,
    /// Inputs b.
    pub inputs: ArrayView3<'a, T>,
    /// States x before the first step, `[batch, channels]`; zero if absent.
    pub initial: Option<ArrayView2<'a, T>>,
}

/// The way to compute a scan. All but [`Tree`](Self::Tree) and [`Time`](Self::Time) give the bits of the plain
/// loop; none depends on the number of threads. Parallel work runs in the rayon pool of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// One of the next three, chosen by shape and layout alone: see [`Algorithm::chosen`].
    Auto,
    /// The plain loop on one thread.
    Sequential,
    /// Groups of channels side by side.
    Channels,
    /// Segments of time side by side, in two passes. This reads the inputs twice, so it is for sequences of few
    /// channels.
    Time,
    /// The associative tree of PyTorch's and JAX's `associative_scan`: for comparison.
    Tree,
}

/// The sizes of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Number of sequences.
    pub batch: usize,
    /// Steps of each sequence.
    pub steps: usize,
    /// Recurrences side by side in each sequence.
    pub channels: usize,
}

impl Shape {
    /// Returns the number of elements of the inputs.
    pub fn elements(self) -> usize {
        self.batch * self.steps * self.channels
    }
}

/// Below this number of steps the work is done before other threads wake up: some 10 µs, in which one core
/// takes this many steps.
const WORTH_THREADS: usize = 1 << 15;
/// Fewer recurrences than this leave lanes or cores idle.
const FEW: usize = 16;
/// Number of steps from which a few recurrences are divided along time.
const LONG: usize = 4096;

impl Algorithm {
    /// Returns the algorithm that runs: itself, or the choice of `Auto`. It ignores the number of threads, so
    /// that the results' last digits do not depend on it. Dividing along time needs twice the reads and
    /// arithmetic. Rows of one channel regain that even on one thread, because several segments fill a pipeline
    /// that one recurrence leaves waiting.
    pub fn chosen(self, shape: Shape, layout: Layout) -> Self {
        if self != Self::Auto {
            return self;
        }
        let recurrences = shape.batch * shape.channels;
        let rows = layout == Layout::ChannelsSteps || shape.channels == 1;
        if shape.elements() < WORTH_THREADS {
            Self::Sequential
        } else if recurrences >= FEW {
            Self::Channels
        } else if rows && shape.steps >= LONG {
            Self::Time
        } else {
            Self::Sequential
        }
    }
}

/// A scan's arrays as slices. With one channel both layouts are the same, and it is treated as rows of time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Problem<'a, T> {
    pub shape: Shape,
    pub layout: Layout,
    pub gates: &'a [T],
    pub gate_per_step: bool,
    pub inputs: &'a [T],
    pub initial: Option<&'a [T]>,
    /// Whether states are written past the cache.
    pub stream: bool,
}

/// Arrays that together have more bytes than this do not fit the cache anyway, so states are written past it: an
/// ordinary store first reads the line it overwrites. The limit was found on one machine (32 MiB of L3, two cores).
/// With 8 and 34 MB in all, streaming copies ran at 0.6 of the speed of ordinary ones. With 25 MB they ran at 0.95,
/// with 50 at 1.25 and with 134 at 1.4.
const STREAM_FROM: usize = 32 << 20;

pub(super) fn streams<T>(elements: usize) -> bool {
    elements * size_of::<T>() >= STREAM_FROM
}

/// Computes all states into `states`, of the inputs' shape.
///
/// # Panics
/// Panics if shapes do not agree or an array is not contiguous.
pub fn scan<T: Element>(recurrence: &Recurrence<T>, algorithm: Algorithm, mut states: ArrayViewMut3<T>) {
    let Recurrence { layout, gates, inputs, initial } = recurrence;
    let (batch, second, third) = inputs.dim();
    let (steps, channels) = match layout {
        Layout::StepsChannels => (second, third),
        Layout::ChannelsSteps => (third, second),
    };
    let shape = Shape { batch, steps, channels };
    assert_eq!(states.dim(), inputs.dim(), "states of the inputs' shape");
    let (gates, gate_per_step) = match gates {
        Gates::Step(gates) => {
            assert_eq!(gates.dim(), (batch, steps), "gates [batch, steps]");
            (gates.to_slice(), true)
        }
        Gates::Element(gates) => {
            assert_eq!(gates.dim(), inputs.dim(), "gates of the inputs' shape");
            (gates.to_slice(), false)
        }
    };
    let initial = initial.as_ref().map(|initial| {
        assert_eq!(initial.dim(), (batch, channels), "initial states [batch, channels]");
        initial.to_slice().expect("contiguous initial states")
    });
    let states = states.as_slice_mut().expect("contiguous states");
    if states.is_empty() {
        return;
    }
    let gates = gates.expect("contiguous gates");
    let problem = Problem {
        shape,
        layout: if channels == 1 { Layout::ChannelsSteps } else { *layout },
        gates,
        gate_per_step,
        inputs: inputs.to_slice().expect("contiguous inputs"),
        initial,
        stream: streams::<T>(gates.len() + 2 * states.len()),
    };
    match algorithm.chosen(shape, *layout) {
        Algorithm::Auto | Algorithm::Sequential => sequential::scan(&problem, states),
        Algorithm::Channels => channels::scan(&problem, states),
        Algorithm::Time => time::scan(&problem, states),
        Algorithm::Tree => tree::scan(&problem, states),
    }
}

impl<'a, T: Element> Problem<'a, T> {
    /// Returns the gates of a sequence of the batch.
    pub fn gates_of(&self, sequence: usize) -> &'a [T] {
        let each = self.gates.len() / self.shape.batch;
        &self.gates[sequence * each..][..each]
    }

    /// Returns the inputs of a sequence of the batch.
    pub fn inputs_of(&self, sequence: usize) -> &'a [T] {
        let each = self.shape.steps * self.shape.channels;
        &self.inputs[sequence * each..][..each]
    }

    /// Returns gates and inputs of one channel over time; only in the layout of rows.
    pub fn row(&self, row: usize) -> (&'a [T], &'a [T]) {
        let Shape { steps, channels, .. } = self.shape;
        let gates_row = if self.gate_per_step { row / channels } else { row };
        (&self.gates[gates_row * steps..][..steps], &self.inputs[row * steps..][..steps])
    }

    /// Returns the state of a channel, counted over the batch, before the first step.
    pub fn start(&self, recurrence: usize) -> T {
        self.initial.map_or(T::zero(), |initial| initial[recurrence])
    }
}
