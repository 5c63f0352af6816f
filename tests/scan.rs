//! The scans against the f64 oracle: every algorithm, both layouts, gates and element types, awkward lengths,
//! and gates of 0, 1, below 0 and above 1. States are filled with NaN before each scan, and the number of
//! threads must not change a bit.

mod support;

use ndarray::{Array2, Array3, ArrayD, Axis, s};
use nmem::real::Real;
use nmem::scan::linear::{Algorithm, Gates, Layout, Recurrence, Shape, scan};
use nmem::scan::pair::{Pair, PairAlgorithm, PairState, scan_pair};
use nmem::scan::{Element, reference, stream};
use support::{assert_close, uniform};

const ALGORITHMS: [Algorithm; 5] =
    [Algorithm::Auto, Algorithm::Sequential, Algorithm::Channels, Algorithm::Time, Algorithm::Tree];
const LAYOUTS: [Layout; 2] = [Layout::StepsChannels, Layout::ChannelsSteps];
/// Lengths: none, one, around a vector, a block and two segments of time, a prime.
const LENGTHS: [usize; 11] = [0, 1, 2, 31, 32, 33, 257, 511, 512, 4099, 65_536];

/// Data of one shape.
struct Case<T> {
    shape: Shape,
    layout: Layout,
    per_step: bool,
    gates: Array3<T>,
    step_gates: Array2<T>,
    inputs: Array3<T>,
    initial: Option<Array2<T>>,
}

impl<T: Real + Element> Case<T> {
    /// Creates a case with gates uniform between the two limits and inputs in ±1.
    fn new(
        shape: Shape,
        layout: Layout,
        per_step: bool,
        with_initial: bool,
        (low, high): (f64, f64),
    ) -> Self {
        let Shape { batch, steps, channels } = shape;
        let dim = match layout {
            Layout::StepsChannels => (batch, steps, channels),
            Layout::ChannelsSteps => (batch, channels, steps),
        };
        let gate = |x: f64| T::from_f64(f64::midpoint(low, high) + x * (high - low) / 2.0);
        let initial = uniform((1, batch, channels), 1.0, 4).remove_axis(Axis(0)).mapv(T::from_f64);
        Self {
            shape,
            layout,
            per_step,
            gates: uniform(dim, 1.0, 1).mapv(gate),
            step_gates: uniform((1, batch, steps), 1.0, 2).remove_axis(Axis(0)).mapv(gate),
            inputs: uniform(dim, 1.0, 3).mapv(T::from_f64),
            initial: with_initial.then_some(initial),
        }
    }

    fn recurrence(&self) -> Recurrence<'_, T> {
        let gates = if self.per_step {
            Gates::Step(self.step_gates.view())
        } else {
            Gates::Element(self.gates.view())
        };
        let initial = self.initial.as_ref().map(|initial| initial.view());
        Recurrence { layout: self.layout, gates, inputs: self.inputs.view(), initial }
    }

    /// Scans into states filled with NaN, so that a state that is not written, or read before it is written, shows.
    fn run(&self, algorithm: Algorithm) -> Array3<T> {
        let mut states = Array3::from_elem(self.inputs.dim(), T::nan());
        scan(&self.recurrence(), algorithm, states.view_mut());
        states
    }

    fn expected(&self) -> ArrayD<f64> {
        let mut expected = Array3::zeros(self.inputs.dim());
        for (sequence, channel) in
            (0..self.shape.batch).flat_map(|i| (0..self.shape.channels).map(move |j| (i, j)))
        {
            reference::scan(&self.recurrence(), sequence, channel..channel + 1, |t, x| match self.layout {
                Layout::StepsChannels => expected[[sequence, t, channel]] = x[0],
                Layout::ChannelsSteps => expected[[sequence, channel, t]] = x[0],
            });
        }
        expected.into_dyn()
    }

    /// Checks every algorithm within `units` rounding errors of the largest state.
    fn check(&self, units: f64) {
        self.check_all(&ALGORITHMS, units);
    }

    fn check_all(&self, algorithms: &[Algorithm], units: f64) {
        let expected = self.expected();
        let largest = expected.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
        for &algorithm in algorithms {
            let what = format!(
                "{algorithm:?} {:?} {:?}, gates per step: {}, initial: {}, {}",
                self.shape,
                self.layout,
                self.per_step,
                self.initial.is_some(),
                T::TYPE
            );
            let got = self.run(algorithm).mapv(Real::to_f64).into_dyn();
            assert_close(&what, got.view(), expected.view(), units * T::EPS.to_f64() * largest, 0.0);
        }
    }
}

/// Tolerance for gates under 1, which forget errors: 64 roundings of the largest state remain at the weakest
/// forgetting of these gates.
const UNITS: f64 = 64.0;

fn all_lengths<T: Real + Element>() {
    for steps in LENGTHS {
        let channels: &[usize] = match steps {
            65_536 => &[1],
            4099 => &[1, 3, 17],
            _ => &[0, 1, 2, 15, 16, 17, 37, 130],
        };
        for &channels in channels {
            for batch in if channels > 17 { [1, 1] } else { [1, 3] } {
                for layout in LAYOUTS {
                    for (per_step, with_initial) in
                        [(false, false), (false, true), (true, false), (true, true)]
                    {
                        let shape = Shape { batch, steps, channels };
                        Case::<T>::new(shape, layout, per_step, with_initial, (0.5, 1.0)).check(UNITS);
                    }
                }
            }
        }
    }
}

#[test]
fn every_algorithm_at_every_length_in_f32() {
    all_lengths::<f32>();
}

#[test]
fn every_algorithm_at_every_length_in_f64() {
    all_lengths::<f64>();
}

#[test]
fn gates_of_all_kinds() {
    for layout in LAYOUTS {
        for per_step in [false, true] {
            for (low, high) in [(0.0, 0.0), (1.0, 1.0), (-1.0, 1.0), (-0.9, -0.5), (0.9, 1.1)] {
                let shape = Shape { batch: 2, steps: 700, channels: 19 };
                // Gates of 1 and more never forget: every step adds a rounding error of the sum so far.
                let units = if high >= 1.0 { 700.0 } else { UNITS };
                Case::<f32>::new(shape, layout, per_step, true, (low, high)).check(units);
                Case::<f64>::new(shape, layout, per_step, true, (low, high)).check(units);
            }
        }
    }
}

/// Products of gates leave the range of f32 although the states do not: 1.5²⁵⁶ is 10⁴⁵. The tree makes them
/// NaN, as in PyTorch and JAX.
#[test]
fn products_of_gates_that_overflow_or_vanish() {
    for layout in LAYOUTS {
        for (gate, start) in [(1.5, 0.0), (0.5, 1.0), (-1.5, 0.0)] {
            for per_step in [false, true] {
                let shape = Shape { batch: 1, steps: 4099, channels: 3 };
                let mut case = Case::<f32>::new(shape, layout, per_step, false, (gate, gate));
                case.inputs.fill(0.0);
                case.initial = Some(Array2::from_elem((1, 3), start));
                case.check_all(&ALGORITHMS[..4], UNITS);
            }
        }
    }
}

/// More than 64 segments of 256 steps make longer ones, here of 257. Their last step is outside the tiles of 16 steps, and its
/// gate is part of the product. These gates forget one two-hundredth per step.
#[test]
fn segments_that_end_within_a_tile() {
    for layout in LAYOUTS {
        for per_step in [false, true] {
            let shape = Shape { batch: 1, steps: 16_411, channels: 3 };
            Case::<f64>::new(shape, layout, per_step, true, (0.99, 1.0)).check(200.0 * UNITS);
        }
    }
}

/// The product of the first segment's gates overflows while its states are zero. Its last state is an ordinary number, with
/// which the next segment starts.
#[test]
fn states_after_products_of_gates_that_overflow() {
    for layout in LAYOUTS {
        for per_step in [false, true] {
            let shape = Shape { batch: 1, steps: 1031, channels: 3 };
            let mut case = Case::<f32>::new(shape, layout, per_step, false, (0.5, 0.5));
            let axis = Axis(if layout == Layout::StepsChannels { 1 } else { 2 });
            case.inputs.slice_axis_mut(axis, (..100).into()).fill(0.0);
            case.gates.slice_axis_mut(axis, (..100).into()).fill(3.0);
            case.step_gates.slice_mut(s![.., ..100]).fill(3.0);
            case.check_all(&ALGORITHMS[..4], UNITS);
        }
    }
}

#[test]
fn nonfinite_states_persist() {
    for layout in LAYOUTS {
        let shape = Shape { batch: 1, steps: 1000, channels: 2 };
        let mut case = Case::<f32>::new(shape, layout, false, false, (0.5, 1.0));
        let place = if layout == Layout::StepsChannels { [0, 300, 1] } else { [0, 1, 300] };
        case.inputs[place] = f32::NAN;
        for algorithm in ALGORITHMS {
            let states = case.run(algorithm);
            let state = |t, c| states[if layout == Layout::StepsChannels { [0, t, c] } else { [0, c, t] }];
            assert!((0..1000).all(|t| state(t, 1).is_nan() == (t >= 300)), "{algorithm:?} {layout:?}");
            assert!((0..1000).all(|t| state(t, 0).is_finite()), "{algorithm:?} {layout:?}");
        }
    }
}

fn on<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

#[test]
fn threads_change_no_bit_and_only_time_and_tree_round_differently() {
    for (layout, shape) in LAYOUTS.into_iter().flat_map(|layout| {
        [(1, 5000, 3), (2, 1031, 70), (1, 64, 4096)]
            .map(|(batch, steps, channels)| (layout, Shape { batch, steps, channels }))
    }) {
        for per_step in [false, true] {
            let case = Case::<f32>::new(shape, layout, per_step, true, (0.5, 1.0));
            for algorithm in ALGORITHMS {
                let bits = |threads| on(threads, || case.run(algorithm)).mapv(f32::to_bits);
                let one = bits(1);
                assert!(one == bits(2) && one == bits(7), "{algorithm:?} {layout:?} {shape:?}");
                if algorithm == Algorithm::Channels {
                    assert!(
                        one == case.run(Algorithm::Sequential).mapv(f32::to_bits),
                        "{layout:?} {shape:?}"
                    );
                }
            }
        }
    }
}

/// Large enough that states are written past the cache.
#[test]
fn past_the_cache() {
    for layout in LAYOUTS {
        // 41 × 4099 × 64: rows that start anywhere in a line.
        let shape = Shape { batch: 1, steps: 4099, channels: 1031 };
        let case = Case::<f32>::new(shape, layout, true, true, (0.5, 1.0));
        let expected = case.run(Algorithm::Sequential).mapv(f32::to_bits);
        assert!(case.run(Algorithm::Channels).mapv(f32::to_bits) == expected, "{layout:?}");
        case.check(UNITS);
    }
}

#[test]
fn stores_past_the_cache_at_every_alignment() {
    fn check<T: Real + Element>() {
        let source: Vec<T> = (0..200).map(|i| T::from_f64(f64::from(i))).collect();
        for from in 0..20 {
            for to in 0..20 {
                for length in [0, 1, 3, 15, 16, 17, 31, 64, 100] {
                    let mut target = [T::nan(); 200];
                    stream::copy(&mut target[to..to + length], &source[from..from + length]);
                    stream::fence();
                    assert_eq!(target[to..to + length], source[from..from + length]);
                    let others = target[..to].iter().chain(&target[to + length..]);
                    assert!(others.into_iter().all(|x| x.is_nan()), "{from}, {to}, {length}");
                }
            }
        }
    }
    check::<f32>();
    check::<f64>();
}

fn pair_case<T: Real + Element>(batch: usize, steps: usize, channels: usize, units: f64, threads: &[usize]) {
    let gates = uniform((3, batch, steps), 0.5, 1).mapv(|x| T::from_f64(x + 0.5));
    let surprise = uniform((batch, steps, channels), 1.0, 2).mapv(T::from_f64);
    let start = uniform((2, batch, channels), 1.0, 3).mapv(T::from_f64);
    let gate = |i: usize| gates.index_axis(ndarray::Axis(0), i);
    let pair = Pair { learning_rate: gate(0), momentum: gate(1), decay: gate(2), surprise: surprise.view() };
    let run = |algorithm, every_step: bool| {
        let mut state = start.clone();
        let mut updates = Array3::from_elem((batch, steps, channels), T::nan());
        {
            let (momentum, update) = state.view_mut().split_at(ndarray::Axis(0), 1);
            let state =
                PairState { momentum: momentum.remove_axis(Axis(0)), update: update.remove_axis(Axis(0)) };
            scan_pair(&pair, algorithm, state, every_step.then_some(updates.view_mut()));
        }
        (state, updates)
    };
    let (mut last, mut all) = (start.mapv(Real::to_f64), Array3::<f64>::zeros((batch, steps, channels)));
    for (sequence, channel) in (0..batch).flat_map(|i| (0..channels).map(move |j| (i, j))) {
        let start = (start.index_axis(ndarray::Axis(0), 0), start.index_axis(ndarray::Axis(0), 1));
        reference::scan_pair(&pair, sequence, channel..channel + 1, start, |t, s, u| {
            (last[[0, sequence, channel]], last[[1, sequence, channel]]) = (s[0], u[0]);
            all[[sequence, t, channel]] = u[0];
        });
    }
    let largest = all.iter().chain(&last).fold(0.0_f64, |largest, x| largest.max(x.abs()));
    let bound = units * T::EPS.to_f64() * largest;
    let first = run(PairAlgorithm::Sequential, true);
    for algorithm in [PairAlgorithm::Sequential, PairAlgorithm::Channels] {
        for &threads in threads {
            for every_step in [true, false] {
                let (state, updates) = on(threads, || run(algorithm, every_step));
                let what =
                    format!("{algorithm:?} {batch} × {steps} × {channels}, {threads} threads, {}", T::TYPE);
                assert_close(
                    &what,
                    state.mapv(Real::to_f64).view().into_dyn(),
                    last.view().into_dyn(),
                    bound,
                    0.0,
                );
                assert!(state == first.0, "{what}: the bits of the plain loop");
                if every_step {
                    let updates = updates.mapv(Real::to_f64);
                    assert_close(&what, updates.view().into_dyn(), all.view().into_dyn(), bound, 0.0);
                }
            }
        }
    }
}

#[test]
fn the_fused_pair() {
    for steps in LENGTHS {
        for channels in if steps > 1000 { [1, 17] } else { [37, 130] } {
            pair_case::<f32>(2, steps, channels, UNITS, &[1, 2, 7]);
            pair_case::<f64>(2, steps, channels, UNITS, &[2]);
        }
    }
    pair_case::<f32>(1, 0, 0, UNITS, &[1]);
    // This size is past the cache.
    pair_case::<f32>(1, 67, 70_001, UNITS, &[1, 2]);
}

#[test]
fn auto_depends_on_shape_alone() {
    let chosen =
        |batch, steps, channels, layout| Algorithm::Auto.chosen(Shape { batch, steps, channels }, layout);
    assert_eq!(chosen(1, 64, 65_536, Layout::StepsChannels), Algorithm::Channels);
    assert_eq!(chosen(8, 4096, 1536, Layout::ChannelsSteps), Algorithm::Channels);
    assert_eq!(chosen(1, 65_536, 1, Layout::StepsChannels), Algorithm::Time);
    assert_eq!(chosen(1, 65_536, 3, Layout::ChannelsSteps), Algorithm::Time);
    assert_eq!(chosen(1, 65_536, 3, Layout::StepsChannels), Algorithm::Sequential);
    assert_eq!(chosen(1, 64, 64, Layout::StepsChannels), Algorithm::Sequential);
    // Just below and at each limit: 2^15 steps in all, 16 recurrences, 4096 steps of each.
    let rows = Layout::ChannelsSteps;
    assert_eq!(chosen(1, 2047, 16, rows), Algorithm::Sequential);
    assert_eq!(chosen(1, 2048, 16, rows), Algorithm::Channels);
    assert_eq!(chosen(4, 2048, 4, rows), Algorithm::Channels);
    assert_eq!(chosen(3, 4096, 5, rows), Algorithm::Time);
    assert_eq!(chosen(3, 4095, 5, rows), Algorithm::Sequential);
    assert_eq!(
        Algorithm::Tree.chosen(Shape { batch: 1, steps: 1, channels: 1 }, LAYOUTS[0]),
        Algorithm::Tree
    );
}
