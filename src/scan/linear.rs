//! The recurrence on its own, over a whole sequence:
//!
//! ```text
//! x_t = a_t · x_{t−1} + b_t        t = 0 … steps − 1,  x_{−1} = initial, or 0
//! ```
//!
//! independently for every sequence of a batch and every channel. Inputs b and states x are
//! `[batch, steps, channels]` or `[batch, channels, steps]`, the gates a one per step `[batch, steps]` or one per
//! element, of the inputs' shape. Nothing is assumed of the gates: 0, negative ones and ones above 1 are as good as
//! others. Every state is written, none is read; without steps nothing is.

use ndarray::{ArrayView2, ArrayView3, ArrayViewMut3};

use super::{Element, channels, sequential, time, tree};

/// The order of the axes of inputs, states and gates per element. Arrays are contiguous, the last axis running fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `[batch, steps, channels]`
    StepsChannels,
    /// `[batch, channels, steps]`
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

/// What is to be computed.
#[derive(Clone, Copy, Debug)]
pub struct Recurrence<'a, T> {
    /// Of inputs, states and gates per element.
    pub layout: Layout,
    /// a
    pub gates: Gates<'a, T>,
    /// b
    pub inputs: ArrayView3<'a, T>,
    /// x before the first step, `[batch, channels]`; zero where there is none.
    pub initial: Option<ArrayView2<'a, T>>,
}

/// How it is computed. All but [`Tree`](Self::Tree) and [`Time`](Self::Time) give the bits of the plain loop; none
/// depends on the number of threads. Parallel work runs in the rayon pool of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// One of the first three below, by shape and layout alone: see [`Algorithm::chosen`].
    Auto,
    /// The plain loop on one thread.
    Sequential,
    /// Groups of channels side by side.
    Channels,
    /// Stretches of time side by side, in two passes. Reads the inputs twice, so it is for sequences of few channels.
    Time,
    /// The associative tree of PyTorch's and JAX's `associative_scan`: for comparison.
    Tree,
}

/// Sizes of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Sequences.
    pub batch: usize,
    /// Steps of each.
    pub steps: usize,
    /// Recurrences side by side.
    pub channels: usize,
}

impl Shape {
    /// Elements of the inputs.
    pub fn elements(self) -> usize {
        self.batch * self.steps * self.channels
    }
}

/// Under this the work is done before other threads have woken: some 10 µs, in which one core takes this many steps.
const WORTH_THREADS: usize = 1 << 15;
/// Fewer recurrences than this leave lanes or cores idle.
const FEW: usize = 16;
/// Steps from which a few recurrences are cut along time.
const LONG: usize = 4096;

impl Algorithm {
    /// What is run: itself, or what `Auto` stands for. It does not ask for the number of threads, so that neither do
    /// the results' last digits. Cutting along time needs twice the reads and arithmetic; rows of one channel gain that back
    /// even on one thread, because several stretches fill a pipeline that one recurrence leaves waiting.
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

/// A problem as slices. With one channel both layouts are the same, and it is taken as rows of time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Problem<'a, T> {
    pub shape: Shape,
    pub layout: Layout,
    pub gates: &'a [T],
    pub gate_per_step: bool,
    pub inputs: &'a [T],
    pub initial: Option<&'a [T]>,
    /// Whether states bypass the cache.
    pub stream: bool,
}

/// Arrays of a problem that together have more bytes than this leave the cache anyway, and states are written past
/// it: an ordinary store reads what it overwrites first. Where that begins to pay, found on one machine (32 MiB of L3, two cores):
/// streaming copies ran at 0.6 of ordinary ones' speed with 8 and 34 MB in all, at 0.95 with 25, at 1.25 with 50 and 1.4 with 134.
const STREAM_FROM: usize = 32 << 20;

pub(super) fn streams<T>(elements: usize) -> bool {
    elements * size_of::<T>() >= STREAM_FROM
}

/// Computes all states.
///
/// # Panics
/// If shapes do not agree or an array is not contiguous.
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
    /// The gates of a sequence of the batch.
    pub fn gates_of(&self, sequence: usize) -> &'a [T] {
        let each = self.gates.len() / self.shape.batch;
        &self.gates[sequence * each..][..each]
    }

    /// The inputs of a sequence of the batch.
    pub fn inputs_of(&self, sequence: usize) -> &'a [T] {
        let each = self.shape.steps * self.shape.channels;
        &self.inputs[sequence * each..][..each]
    }

    /// Gates and inputs of one channel over time; only in the layout of rows.
    pub fn row(&self, row: usize) -> (&'a [T], &'a [T]) {
        let Shape { steps, channels, .. } = self.shape;
        let gates_row = if self.gate_per_step { row / channels } else { row };
        (&self.gates[gates_row * steps..][..steps], &self.inputs[row * steps..][..steps])
    }

    /// What the recurrence of a channel, counted over the batch, starts from.
    pub fn start(&self, recurrence: usize) -> T {
        self.initial.map_or(T::zero(), |initial| initial[recurrence])
    }
}
