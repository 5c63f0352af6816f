//! The recurrences on a device against the f64 oracle, like tests/scan.rs on the CPU.

use ndarray::{Array1, ArrayView2, ArrayView3, Axis};
use nmem::cuda::{Array, Device};
use nmem::real::Real;
use nmem::scan::linear::{Gates, Layout, Recurrence, Shape};
use nmem::scan::pair::Pair;
use nmem::scan::{Element, cuda, reference};

use crate::device::devices;
use crate::support::{assert_close, uniform};

const LAYOUTS: [Layout; 2] = [Layout::StepsChannels, Layout::ChannelsSteps];
/// Lengths: none, one, around a warp and around the steps of a warp, of a block and of the next, a prime.
const LENGTHS: [usize; 13] = [0, 1, 3, 31, 32, 33, 127, 129, 512, 1009, 1024, 1028, 2051];
/// Numbers of channels: one, around a warp, several blocks.
const CHANNELS: [usize; 4] = [1, 31, 33, 300];
/// Tolerance as in tests/scan.rs: the accumulated rounding errors at the weakest forgetting of these gates, in
/// units of the largest state.
const UNITS: f64 = 64.0;

fn numbers<T: Real>(count: usize, (low, high): (f64, f64), seed: u64) -> Vec<T> {
    let number = |x: f64| T::from_f64(f64::midpoint(low, high) + x * (high - low) / 2.0);
    uniform((1, 1, count), 1.0, seed).iter().map(|&x| number(x)).collect()
}

fn wide<T: Real>(numbers: &[T]) -> Array1<f64> {
    numbers.iter().map(|&x| x.to_f64()).collect()
}

fn assert_numbers_close<T: Real>(what: &str, got: &[T], expected: &[f64], bound: f64) {
    let expected = Array1::from(expected.to_vec());
    assert_close(what, wide(got).view().into_dyn(), expected.view().into_dyn(), bound, 0.0);
}

fn largest(numbers: &[f64]) -> f64 {
    numbers.iter().fold(0.0, |largest, x| x.abs().max(largest))
}

/// Checks results of every device, by name: those of the CPU must agree bit for bit.
fn assert_one_result<T: Real>(what: &str, results: &[(&str, Vec<T>)]) {
    let bits = |numbers: &[T]| -> Vec<u64> { numbers.iter().map(|&x| x.to_f64().to_bits()).collect() };
    let on_cpu: Vec<_> = results.iter().filter(|(name, _)| name.starts_with("CPU")).collect();
    for pair in on_cpu.windows(2) {
        assert!(bits(&pair[0].1) == bits(&pair[1].1), "{what}: the order of threads changes bits");
    }
}

struct Case<T> {
    shape: Shape,
    layout: Layout,
    per_step: bool,
    gates: Vec<T>,
    inputs: Vec<T>,
    initial: Option<Vec<T>>,
}

impl<T: Real + Element> Case<T> {
    fn new(shape: Shape, layout: Layout, per_step: bool, with_initial: bool, gates: (f64, f64)) -> Self {
        let Shape { batch, steps, channels } = shape;
        let of_gates = if per_step { batch * steps } else { shape.elements() };
        Self {
            shape,
            layout,
            per_step,
            gates: numbers(of_gates, gates, 1),
            inputs: numbers(shape.elements(), (-1.0, 1.0), 2),
            initial: with_initial.then(|| numbers(batch * channels, (-1.0, 1.0), 3)),
        }
    }

    fn what(&self) -> String {
        let Self { shape, layout, per_step, initial, .. } = self;
        let initial = initial.is_some();
        format!("{shape:?} {layout:?}, gates per step: {per_step}, initial: {initial}, {}", T::TYPE)
    }

    fn run(&self, device: &dyn Device) -> Vec<T> {
        let gates = Array::from_slice(device, &self.gates).unwrap();
        let gates = if self.per_step { cuda::Gates::Step(&gates) } else { cuda::Gates::Element(&gates) };
        let inputs = Array::from_slice(device, &self.inputs).unwrap();
        let initial = self.initial.as_ref().map(|initial| Array::from_slice(device, initial).unwrap());
        let mut states = Array::new(device, self.shape.elements()).unwrap();
        states.poison().unwrap();
        cuda::scan(device, self.shape, self.layout, gates, &inputs, initial.as_ref(), &mut states).unwrap();
        states.to_vec().unwrap()
    }

    fn expected(&self) -> Vec<f64> {
        let Shape { batch, steps, channels } = self.shape;
        let dim = match self.layout {
            Layout::StepsChannels => (batch, steps, channels),
            Layout::ChannelsSteps => (batch, channels, steps),
        };
        let gates = if self.per_step {
            Gates::Step(ArrayView2::from_shape((batch, steps), &self.gates).unwrap())
        } else {
            Gates::Element(ArrayView3::from_shape(dim, &self.gates).unwrap())
        };
        let initial = self.initial.as_ref();
        let recurrence = Recurrence {
            layout: self.layout,
            gates,
            inputs: ArrayView3::from_shape(dim, &self.inputs).unwrap(),
            initial: initial.map(|initial| ArrayView2::from_shape((batch, channels), initial).unwrap()),
        };
        let mut expected = vec![f64::NAN; self.shape.elements()];
        for sequence in 0..batch {
            reference::scan(&recurrence, sequence, 0..channels, |t, x| {
                for (channel, &x) in x.iter().enumerate() {
                    let place = match self.layout {
                        Layout::StepsChannels => (sequence * steps + t) * channels + channel,
                        Layout::ChannelsSteps => (sequence * channels + channel) * steps + t,
                    };
                    expected[place] = x;
                }
            });
        }
        expected
    }

    fn check(&self, units: f64) {
        let expected = self.expected();
        let bound = units * T::EPS.to_f64() * largest(&expected);
        let results: Vec<_> = devices()
            .iter()
            .map(|(name, device)| {
                let got = self.run(device.as_ref());
                let what = format!("{name}, {}", self.what());
                assert_numbers_close(&what, &got, &expected, bound);
                (&name[..], got)
            })
            .collect();
        assert_one_result(&self.what(), &results);
    }
}

fn all_lengths<T: Real + Element>() {
    for (steps, channels) in LENGTHS.iter().flat_map(|&steps| CHANNELS.map(|channels| (steps, channels))) {
        // Long scans of many channels test nothing new, and take the CPU's time.
        if steps * channels > 40_000 {
            continue;
        }
        for layout in LAYOUTS {
            for (per_step, with_initial) in [(false, false), (false, true), (true, false), (true, true)] {
                let shape = Shape { batch: 2, steps, channels };
                Case::<T>::new(shape, layout, per_step, with_initial, (0.5, 1.0)).check(UNITS);
            }
        }
    }
}

#[test]
fn scan_at_every_length_in_f32() {
    all_lengths::<f32>();
}

#[test]
fn scan_at_every_length_in_f64() {
    all_lengths::<f64>();
}

#[test]
fn scan_of_no_channels_and_no_sequences() {
    for (batch, channels) in [(0, 3), (2, 0)] {
        let shape = Shape { batch, steps: 5, channels };
        Case::<f32>::new(shape, LAYOUTS[0], true, true, (0.5, 1.0)).check(UNITS);
    }
}

#[test]
pub fn scan_with_gates_of_all_kinds() {
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

/// Products of gates leave the range of f32 although the states do not: 1.5²⁵⁶ is 10⁴⁵.
#[test]
pub fn scan_where_products_of_gates_overflow_or_vanish() {
    for (layout, per_step) in [(LAYOUTS[0], false), (LAYOUTS[1], false), (LAYOUTS[1], true)] {
        for (gate, start) in [(1.5, 0.0), (0.5, 1.0), (-1.5, 0.0)] {
            let shape = Shape { batch: 1, steps: 2051, channels: 3 };
            let mut case = Case::<f32>::new(shape, layout, per_step, false, (gate, gate));
            case.inputs.fill(0.0);
            case.initial = Some(vec![start; 3]);
            case.check(UNITS);
        }
    }
    // Neighbouring products overflow for one thread of four steps each, and not for the thread that has the
    // product of all.
    for per_step in [false, true] {
        let shape = Shape { batch: 1, steps: 512, channels: 2 };
        let mut case = Case::<f32>::new(shape, LAYOUTS[1], per_step, false, (1.0, 1.0));
        for (i, gate) in case.gates.iter_mut().enumerate().filter(|(i, _)| i % 512 < 16) {
            *gate = if i % 4 > 0 {
                1.0
            } else if matches!(i % 16, 4 | 8) {
                1e30
            } else {
                1e-30
            };
        }
        case.inputs.fill(0.0);
        case.initial = Some(vec![1.0; 2]);
        case.check(UNITS);
    }
}

#[test]
fn nonfinite_states_persist() {
    for layout in LAYOUTS {
        let shape = Shape { batch: 1, steps: 1500, channels: 2 };
        let mut case = Case::<f32>::new(shape, layout, false, false, (0.5, 1.0));
        let place = |t: usize, channel: usize| match layout {
            Layout::StepsChannels => t * 2 + channel,
            Layout::ChannelsSteps => channel * 1500 + t,
        };
        case.inputs[place(300, 1)] = f32::NAN;
        for (name, device) in devices() {
            let states = case.run(device.as_ref());
            let what = format!("{name}, {layout:?}");
            assert!((0..1500).all(|t| states[place(t, 1)].is_nan() == (t >= 300)), "{what}");
            assert!((0..1500).all(|t| states[place(t, 0)].is_finite()), "{what}");
        }
    }
}

fn pair<T: Real + Element>(shape: Shape) {
    let Shape { batch, steps, channels } = shape;
    let gates: Vec<T> = numbers(3 * batch * steps, (0.0, 1.0), 1);
    let surprise: Vec<T> = numbers(shape.elements(), (-1.0, 1.0), 2);
    // S and U before the first step.
    let start: Vec<T> = numbers(2 * batch * channels, (-1.0, 1.0), 3);

    let mut last = wide(&start).to_vec();
    let mut all = vec![f64::NAN; shape.elements()];
    {
        let gates = ArrayView3::from_shape((3, batch, steps), &gates).unwrap();
        let starts = ArrayView3::from_shape((2, batch, channels), &start).unwrap();
        let pair = Pair {
            learning_rate: gates.index_axis(Axis(0), 0),
            momentum: gates.index_axis(Axis(0), 1),
            decay: gates.index_axis(Axis(0), 2),
            surprise: ArrayView3::from_shape((batch, steps, channels), &surprise).unwrap(),
        };
        for sequence in 0..batch {
            let start = (starts.index_axis(Axis(0), 0), starts.index_axis(Axis(0), 1));
            reference::scan_pair(&pair, sequence, 0..channels, start, |t, s, u| {
                all[(sequence * steps + t) * channels..][..channels].copy_from_slice(u);
                last[sequence * channels..][..channels].copy_from_slice(s);
                last[(batch + sequence) * channels..][..channels].copy_from_slice(u);
            });
        }
    }
    let bound = UNITS * T::EPS.to_f64() * largest(&all).max(largest(&last));
    for every_step in [true, false] {
        let what = format!("{shape:?}, every update: {every_step}, {}", T::TYPE);
        let results: Vec<_> = devices()
            .iter()
            .map(|(name, device)| {
                let device = device.as_ref();
                let [on_gates, on_surprise] =
                    [&gates, &surprise].map(|of| Array::from_slice(device, of).unwrap());
                let (s, u) = start.split_at(batch * channels);
                let [mut s, mut u] = [s, u].map(|of| Array::from_slice(device, of).unwrap());
                let mut updates = Array::new(device, shape.elements()).unwrap();
                updates.poison().unwrap();
                let written = every_step.then_some(&mut updates);
                cuda::scan_pair(device, shape, &on_gates, &on_surprise, &mut s, &mut u, written).unwrap();
                let mut got = [s.to_vec().unwrap(), u.to_vec().unwrap()].concat();
                let what = format!("{name}, {what}");
                assert_numbers_close(&what, &got, &last, bound);
                let updates = updates.to_vec().unwrap();
                if every_step {
                    assert_numbers_close(&what, &updates, &all, bound);
                    got.extend(updates);
                } else {
                    assert!(
                        updates.iter().all(|x| x.is_nan()),
                        "{what}: updates are written without a request"
                    );
                }
                (&name[..], got)
            })
            .collect();
        assert_one_result(&what, &results);
    }
}

#[test]
pub fn the_fused_pair() {
    for steps in [0, 1, 15, 16, 17, 31, 32, 33, 1009] {
        for channels in if steps > 1000 { vec![1, 33] } else { vec![0, 1, 31, 33, 300] } {
            pair::<f32>(Shape { batch: 2, steps, channels });
            pair::<f64>(Shape { batch: 2, steps, channels });
        }
    }
}
