//! One shape on a GPU: checks the results of src/scan/cuda.rs against the oracle, then times them by the GPU's own clock.

use std::time::Instant;

use super::bench::{Arena, Case, CopySpeeds, Inputs, units};
use super::timing::{Effort, Timing};
use super::{Algorithm, BenchEvent, BenchRow, BenchShape, Gate, Layout, Observer};
use crate::cuda::{Array, Device};
use crate::error::Result;
use crate::real::Real;
use crate::scan::linear::Shape;
use crate::scan::{Element, cuda};

/// Total bytes of the array sets that runs cycle through, so that no run finds its inputs in the cache. It is several times
/// the largest L2, of 50 MB and more.
const ROUND: usize = 256 << 20;
/// Most array sets. With small sets, allocating more would cost more than it would show.
const MAX_ARRAY_SETS: usize = 128;
/// Timed runs queued before the first is waited for, so that the GPU is never idle between them.
const AHEAD: usize = 32;

/// Whether one set of a shape's arrays fits on a GPU.
pub fn fits(device: &dyn Device, needed: u64) -> Result<bool> {
    Ok(needed <= most(device)? as u64)
}

/// Returns the number of bytes that may be allocated.
fn most(device: &dyn Device) -> Result<usize> {
    Ok(device.free_bytes()? / 10 * 9)
}

/// Returns the number of array sets of `bytes` bytes that runs cycle through.
fn array_sets(device: &dyn Device, bytes: usize) -> Result<usize> {
    let bytes = bytes.max(1);
    Ok(ROUND.div_ceil(bytes).clamp(2, MAX_ARRAY_SETS).min(most(device)? / bytes).max(1))
}

/// Arrays of a case; every run uses the next set.
struct ArraySet<'d, T> {
    gates: Array<'d, T>,
    inputs: Array<'d, T>,
    states: Array<'d, T>,
    /// S and U.
    state: [Array<'d, T>; 2],
}

impl<'d, T: Real + Element> ArraySet<'d, T> {
    fn new(device: &'d dyn Device, data: &Inputs<T>, pair: bool) -> Result<Self> {
        let [momentum, update] = data.start();
        let state =
            |of: ndarray::Array2<T>| Array::from_slice(device, of.as_slice().expect("a contiguous state"));
        Ok(Self {
            gates: Array::from_slice(device, data.gates(pair))?,
            inputs: Array::from_slice(device, data.values())?,
            states: Array::new(device, data.values().len())?,
            state: [state(momentum)?, state(update)?],
        })
    }
}

impl Case {
    /// Runs those of `algorithms` that exist on a GPU; rows have `label` as their device.
    pub fn run_on<T: Real + Element>(
        self,
        device: &dyn Device,
        label: &str,
        arena: &mut Arena<T>,
        copies: &mut CopySpeeds,
        algorithms: &[Algorithm],
        observe: Observer,
    ) -> Result<Vec<BenchRow>> {
        for &algorithm in algorithms {
            let bytes = self.bytes::<T>(algorithm);
            if copies.speed(bytes, 0).is_none() {
                let check = &mut || observe(BenchEvent::Working);
                copies.add(bytes, 0, copy_speed(device, bytes, self.effort, check)?);
            }
        }
        let (data, states) = self.data(arena);
        let mut plain = [None; 2];
        let mut rows = Vec::new();
        for &algorithm in algorithms {
            let sequential =
                if algorithm.is_pair() { Algorithm::PairSequential } else { Algorithm::Sequential };
            let plain = &mut plain[usize::from(algorithm.is_pair())];
            let (largest, allowed) = *plain.get_or_insert_with(|| data.error(sequential, states));
            observe(BenchEvent::Working)?;
            let mut arrays = ArraySet::new(device, &data, algorithm.is_pair())?;
            arrays.states.poison()?;
            self.launch(device, algorithm, &mut arrays)?;
            if algorithm != Algorithm::PairLast {
                arrays.states.download(0, states)?;
            }
            let mut last = data.start();
            for (last, array) in last.iter_mut().zip(&arrays.state) {
                array.download(0, last.as_slice_mut().expect("a contiguous state"))?;
            }
            let (_, error) = data.difference(algorithm, states, &last);
            // A NaN error compares as incorrect.
            let correct = error <= 2.0 * allowed + units::<T>() * T::EPS.to_f64() * largest;
            let timing = if correct {
                let check = &mut || observe(BenchEvent::Working);
                Some(self.time_on(device, &data, algorithm, arrays, check)?)
            } else {
                None
            };
            let bytes = self.bytes::<T>(algorithm);
            let row = self.row(
                algorithm,
                T::TYPE,
                0,
                bytes,
                copies.speed(bytes, 0),
                timing,
                (error, allowed, correct),
            );
            let chosen = match algorithm {
                Algorithm::Auto if self.layout == Layout::StepsChannels && self.shape.channels > 1 => {
                    Algorithm::Channels
                }
                Algorithm::Auto => Algorithm::Time,
                other => other,
            };
            rows.push(BenchRow { device: label.to_owned(), chosen, ..row });
            observe(BenchEvent::Done)?;
        }
        Ok(rows)
    }

    fn launch<T: Real>(
        self,
        device: &dyn Device,
        algorithm: Algorithm,
        arrays: &mut ArraySet<T>,
    ) -> Result<()> {
        let BenchShape { batch, steps, channels } = self.shape;
        let shape = Shape { batch, steps, channels };
        let ArraySet { gates, inputs, states, state: [momentum, update] } = arrays;
        match algorithm {
            Algorithm::Pair => cuda::scan_pair(device, shape, gates, inputs, momentum, update, Some(states)),
            Algorithm::PairLast => cuda::scan_pair(device, shape, gates, inputs, momentum, update, None),
            _ => {
                let gates = match self.gate {
                    Gate::Step => cuda::Gates::Step(gates),
                    Gate::Element => cuda::Gates::Element(gates),
                };
                cuda::scan(device, shape, self.layout.of_library(), gates, inputs, None, states)
            }
        }
    }

    fn time_on<T: Real + Element>(
        self,
        device: &dyn Device,
        data: &Inputs<T>,
        algorithm: Algorithm,
        first: ArraySet<T>,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Timing> {
        let count = array_sets(device, self.bytes::<T>(algorithm))?;
        let mut all = vec![first];
        while all.len() < count {
            all.push(ArraySet::new(device, data, algorithm.is_pair())?);
        }
        time(device, self.effort, check, |run| self.launch(device, algorithm, &mut all[run % count]))
    }
}

/// Runs as often as `effort` requires; `run` receives the number of the run. Each batch starts with one untimed run,
/// because that one starts while the GPU is idle and its time would include the CPU's. Events are created beforehand, so
/// that only their recording lies between runs.
fn time(
    device: &dyn Device,
    effort: Effort,
    check: &mut dyn FnMut() -> Result<()>,
    mut run: impl FnMut(usize) -> Result<()>,
) -> Result<Timing> {
    let mut runs = 0..;
    let mut next = || run(runs.next().expect("no end"));
    next()?;
    let ahead = AHEAD.min(effort.runs.max(1));
    let mut marks = (0..=ahead).map(|_| device.mark()).collect::<Result<Vec<_>>>()?;
    device.synchronize()?;
    let start = Instant::now();
    let mut seconds = Vec::new();
    while seconds.len() < effort.runs || start.elapsed() < effort.time {
        check()?;
        for mark in &mut marks {
            next()?;
            device.mark_anew(mark)?;
        }
        for pair in marks.windows(2) {
            seconds.push(device.seconds(&pair[0], &pair[1])?);
        }
    }
    Ok(Timing::from_seconds(&seconds))
}

/// Measures the device's own copy, with half of `bytes` read and half written, in 10⁹ bytes per second.
fn copy_speed(
    device: &dyn Device,
    bytes: usize,
    effort: Effort,
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<f64> {
    let half = bytes / 2;
    let array_sets = array_sets(device, bytes)?;
    let arrays =
        (0..array_sets).map(|_| Ok([Array::<u8>::zeros(device, half)?, Array::<u8>::zeros(device, half)?]));
    let arrays = arrays.collect::<Result<Vec<_>>>()?;
    let timing = time(device, effort, check, |run| {
        let [from, to] = &arrays[run % array_sets];
        device.copy(to.address(0), from.address(0), half)
    })?;
    Ok((2 * half) as f64 / timing.median / 1e9)
}
