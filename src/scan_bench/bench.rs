//! One shape on the CPU: its arrays, the copy that sets the limit, and every algorithm, checked before it is timed.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayView3, ArrayViewMut3};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::ThreadPool;
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use super::timing::{Effort, Timing, time};
use super::{Algorithm, BenchEvent, BenchRow, BenchShape, Gate, Layout, Observer};
use crate::error::{Error, Result};
use crate::real::{ElementType, Real};
use crate::scan::linear::{self, Gates, Recurrence, scan};
use crate::scan::pair::{Pair, PairAlgorithm, PairState, scan_pair};
use crate::scan::{Element, reference, stream};

/// Size of a page, to which the arena is aligned, and of a cache line, to which every array is aligned.
const PAGE: usize = 4096;
const LINE: usize = 64;

/// Elements sampled from one stream of random numbers.
const STRETCH: usize = 1 << 16;

/// Channels that the oracle scans together: a few cache lines of a row.
const ORACLE: usize = 256;

/// Rows that the oracle scans together: their cache lines stay in L1.
const ORACLE_ROWS: usize = 16;

/// Lower end of the uniform gates, whose upper end is 1. Such gates forget slowly, so that errors can add up.
const MIN_GATE: f64 = 0.9;

/// Memory for all arrays of a shape. It is allocated once, grows as needed and is touched before anything is timed.
#[derive(Debug, Default)]
pub struct Arena<T>(Vec<T>);

impl<T: Real> Arena<T> {
    /// Returns space for `elements`, aligned to a page and never empty.
    fn buffer(&mut self, elements: usize) -> &mut [T] {
        let needed = elements + PAGE / size_of::<T>();
        if self.0.len() < needed {
            // The old buffer is dropped first, because both together would exceed the limit.
            self.0 = Vec::new();
            self.0 = vec![T::one(); needed];
        }
        let start = self.0.as_ptr().align_offset(PAGE);
        &mut self.0[start..start + elements]
    }
}

/// Returns the elements of the gates and of an array of the inputs' shape, rounded up to cache lines.
fn sizes<T>(shape: BenchShape, gate: Gate) -> [usize; 2] {
    let line = LINE / size_of::<T>();
    let elements = shape.of_library().elements();
    let gates = match gate {
        // θ, η and α of the pair.
        Gate::Step => 3 * shape.batch * shape.steps,
        Gate::Element => elements,
    };
    [gates.next_multiple_of(line), elements.next_multiple_of(line)]
}

/// Returns the bytes of all arrays, or `None` if the number overflows.
pub fn bytes_needed(shape: BenchShape, gate: Gate, dtype: ElementType) -> Option<u64> {
    let [batch, steps, channels] = [shape.batch, shape.steps, shape.channels].map(|n| n as u64);
    let rows = batch.checked_mul(steps)?;
    let elements = rows.checked_mul(channels)?;
    let gates = if gate == Gate::Step { rows.checked_mul(3)? } else { elements };
    let state = batch.checked_mul(channels)?.checked_mul(4)?;
    gates.checked_add(elements.checked_mul(2)?)?.checked_add(state)?.checked_mul(dtype.bytes() as u64)
}

/// Allowed error in f64, in units in the last place of the largest state. The plain loop is the oracle there, so its
/// error of 0 says nothing about rounding. Other orders were seen to differ from it by up to 3 units.
const UNITS_OF_F64: f64 = 16.0;

/// Returns the additional allowed error, in units in the last place of the largest state.
pub fn units<T: Real>() -> f64 {
    match T::TYPE {
        ElementType::F32 => 1.0,
        ElementType::F64 => UNITS_OF_F64,
    }
}

/// A shape and the way to time it.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub shape: BenchShape,
    pub layout: Layout,
    pub gate: Gate,
    pub effort: Effort,
}

/// Inputs of a case.
#[derive(Clone, Copy)]
pub struct Inputs<'a, T> {
    case: Case,
    gates: &'a [T],
    values: &'a [T],
}

/// Bandwidths of copies by bytes and threads (0 is a GPU), each measured once.
#[derive(Debug, Default)]
pub struct CopySpeeds(Vec<(usize, usize, f64)>);

impl CopySpeeds {
    pub fn add(&mut self, bytes: usize, threads: usize, speed: f64) {
        self.0.push((bytes, threads, speed));
    }

    pub fn speed(&self, bytes: usize, threads: usize) -> Option<f64> {
        self.0.iter().find(|copy| (copy.0, copy.1) == (bytes, threads)).map(|copy| copy.2)
    }
}

impl Case {
    /// Runs `work`, a list of algorithms and the numbers of threads to time each with.
    pub fn run<T: Real + Element>(
        self,
        arena: &mut Arena<T>,
        copies: &mut CopySpeeds,
        work: &[(Algorithm, Vec<usize>)],
        observe: Observer,
    ) -> Result<Vec<BenchRow>> {
        let buffer = self.buffer(arena);
        let pools = work
            .iter()
            .flat_map(|(_, threads)| threads)
            .map(|&threads| Ok((threads, pool(threads)?)))
            .collect::<Result<Vec<_>>>()?;
        let pool = |threads: usize| &pools.iter().find(|pool| pool.0 == threads).expect("made above").1;

        fill(buffer, 1.0, 2.0);
        for (algorithm, threads) in work {
            for &threads in threads {
                let bytes = self.bytes::<T>(*algorithm);
                if copies.speed(bytes, threads).is_none() {
                    let check = &mut || observe(BenchEvent::Working);
                    let speed =
                        copy_speed(&mut buffer[..bytes / size_of::<T>()], pool(threads), self.effort, check)?;
                    copies.add(bytes, threads, speed);
                }
            }
        }

        let (data, states) = self.data(arena);
        let mut plain = [None; 2];
        let mut rows = Vec::new();
        for (algorithm, threads) in work {
            // The error of the plain loop of the same kind.
            let sequential =
                if algorithm.is_pair() { Algorithm::PairSequential } else { Algorithm::Sequential };
            let plain = &mut plain[usize::from(algorithm.is_pair())];
            let (largest, allowed) = *plain.get_or_insert_with(|| data.error(sequential, states));
            for &threads in threads {
                observe(BenchEvent::Working)?;
                let (_, error) = pool(threads).install(|| data.error(*algorithm, states));
                // A NaN error compares as incorrect.
                let correct = error <= 2.0 * allowed + units::<T>() * T::EPS.to_f64() * largest;
                let timing = if correct {
                    let check = &mut || observe(BenchEvent::Working);
                    Some(self.time(&data, *algorithm, states, pool(threads), check)?)
                } else {
                    None
                };
                let bytes = self.bytes::<T>(*algorithm);
                let copy = copies.speed(bytes, threads);
                rows.push(self.row(
                    *algorithm,
                    T::TYPE,
                    threads,
                    bytes,
                    copy,
                    timing,
                    (error, allowed, correct),
                ));
                observe(BenchEvent::Done)?;
            }
        }
        Ok(rows)
    }

    fn buffer<T: Real>(self, arena: &mut Arena<T>) -> &mut [T] {
        let [gates, elements] = sizes::<T>(self.shape, self.gate);
        // S and U of the pair are stored elsewhere; the copy includes their bytes too.
        let state = 4 * self.shape.batch * self.shape.channels;
        arena.buffer(gates + 2 * elements + state)
    }

    /// Returns the inputs and space for states.
    pub(super) fn data<T: Real>(self, arena: &mut Arena<T>) -> (Inputs<'_, T>, &mut [T]) {
        let [gates, elements] = sizes::<T>(self.shape, self.gate);
        let (gates, rest) = self.buffer(arena).split_at_mut(gates);
        let (inputs, states) = rest.split_at_mut(elements);
        fill(gates, MIN_GATE, 1.0);
        if self.gate == Gate::Step {
            // α, what is forgotten.
            let rows = self.shape.batch * self.shape.steps;
            gates[2 * rows..3 * rows].iter_mut().for_each(|gate| *gate = T::one() - *gate);
        }
        fill(inputs, -1.0, 1.0);
        let elements = self.shape.of_library().elements();
        (Inputs { case: self, gates, values: &inputs[..elements] }, &mut states[..elements])
    }

    fn time<T: Real + Element>(
        self,
        data: &Inputs<T>,
        algorithm: Algorithm,
        states: &mut [T],
        pool: &ThreadPool,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Timing> {
        let mut pair = data.start();
        // Each run enters the pool from outside, because waking its threads is part of the work.
        time(self.effort, check, || pool.install(|| data.compute(algorithm, states, &mut pair)))
    }

    /// Returns the compulsory traffic in bytes.
    pub(super) fn bytes<T>(self, algorithm: Algorithm) -> usize {
        let BenchShape { batch, steps, channels } = self.shape;
        let (rows, elements) = (batch * steps, batch * steps * channels);
        let numbers = match (algorithm, self.gate) {
            // S and U are read and written.
            (Algorithm::PairLast, _) => 3 * rows + elements + 4 * batch * channels,
            (Algorithm::PairSequential | Algorithm::Pair, _) => {
                3 * rows + 2 * elements + 4 * batch * channels
            }
            (_, Gate::Step) => rows + 2 * elements,
            (_, Gate::Element) => 3 * elements,
        };
        numbers * size_of::<T>()
    }

    #[expect(clippy::too_many_arguments, reason = "a row has many columns")]
    pub(super) fn row(
        self,
        algorithm: Algorithm,
        dtype: ElementType,
        threads: usize,
        bytes: usize,
        copy_gb_per_s: Option<f64>,
        timing: Option<Timing>,
        (max_abs_error, sequential_max_abs_error, correct): (f64, f64, bool),
    ) -> BenchRow {
        let BenchShape { batch, steps, channels } = self.shape;
        let gb_per_s = timing.map(|timing| bytes as f64 / timing.median / 1e9);
        let chosen = match algorithm {
            Algorithm::Auto => {
                match linear::Algorithm::Auto.chosen(self.shape.of_library(), self.layout.of_library()) {
                    linear::Algorithm::Channels => Algorithm::Channels,
                    linear::Algorithm::Time => Algorithm::Time,
                    _ => Algorithm::Sequential,
                }
            }
            other => other,
        };
        BenchRow {
            algorithm,
            device: "cpu".to_owned(),
            dtype,
            threads,
            batch,
            steps,
            channels,
            gate: self.gate,
            layout: self.layout,
            median_ms: timing.map(|timing| timing.median * 1e3),
            min_ms: timing.map(|timing| timing.min * 1e3),
            bytes,
            gb_per_s,
            copy_fraction: gb_per_s.zip(copy_gb_per_s).map(|(speed, copy)| speed / copy),
            max_abs_error,
            runs: timing.map_or(0, |timing| timing.runs),
            copy_gb_per_s,
            sequential_max_abs_error,
            outliers: timing.map_or(0, |timing| timing.outliers),
            chosen,
            correct,
        }
    }
}

/// S and U.
pub type State<T> = [Array2<T>; 2];

impl<'a, T: Real + Element> Inputs<'a, T> {
    fn recurrence(&self) -> Recurrence<'a, T> {
        let BenchShape { batch, steps, channels } = self.case.shape;
        let dim = self.dim();
        let gates = match self.case.gate {
            Gate::Step => {
                let gates = ArrayView2::from_shape((batch, steps), &self.gates[..batch * steps]);
                Gates::Step(gates.expect("as many gates as steps"))
            }
            Gate::Element => {
                let gates = ArrayView3::from_shape(dim, &self.gates[..batch * steps * channels]);
                Gates::Element(gates.expect("as many gates as elements"))
            }
        };
        let inputs = ArrayView3::from_shape(dim, self.values).expect("as many inputs as elements");
        Recurrence { layout: self.case.layout.of_library(), gates, inputs, initial: None }
    }

    fn dim(&self) -> (usize, usize, usize) {
        let BenchShape { batch, steps, channels } = self.case.shape;
        match self.case.layout {
            Layout::StepsChannels => (batch, steps, channels),
            Layout::ChannelsSteps => (batch, channels, steps),
        }
    }

    fn pair(&self) -> Pair<'a, T> {
        let BenchShape { batch, steps, .. } = self.case.shape;
        let gates = ArrayView3::from_shape((3, batch, steps), &self.gates[..3 * batch * steps]);
        let gates = gates.expect("three gates a step");
        let gate = |i| gates.index_axis_move(ndarray::Axis(0), i);
        let surprise = ArrayView3::from_shape(self.dim(), self.values).expect("as many inputs as elements");
        Pair { learning_rate: gate(0), momentum: gate(1), decay: gate(2), surprise }
    }

    /// Returns the gates without the padding between arrays: θ, η and α for the pair, a for a scan.
    pub fn gates(&self, pair: bool) -> &'a [T] {
        let BenchShape { batch, steps, channels } = self.case.shape;
        match self.case.gate {
            Gate::Step => &self.gates[..if pair { 3 } else { 1 } * batch * steps],
            Gate::Element => &self.gates[..batch * steps * channels],
        }
    }

    /// Returns the values: b of a scan, g of the pair.
    pub fn values(&self) -> &'a [T] {
        self.values
    }

    /// Returns S and U before the first step.
    pub fn start(&self) -> State<T> {
        let BenchShape { batch, channels, .. } = self.case.shape;
        let state =
            Array2::from_shape_fn((batch, channels), |(_, c)| T::from_f64(0.5 + (c % 7) as f64 / 8.0));
        [state.clone(), state]
    }

    fn compute(&self, algorithm: Algorithm, states: &mut [T], [momentum, update]: &mut State<T>) {
        let states = ArrayViewMut3::from_shape(self.dim(), states).expect("as many states as inputs");
        let plain = match algorithm {
            Algorithm::Auto => linear::Algorithm::Auto,
            Algorithm::Sequential => linear::Algorithm::Sequential,
            Algorithm::Channels => linear::Algorithm::Channels,
            Algorithm::Time => linear::Algorithm::Time,
            Algorithm::Tree => linear::Algorithm::Tree,
            Algorithm::PairSequential | Algorithm::Pair | Algorithm::PairLast => {
                let how = match algorithm {
                    Algorithm::PairSequential => PairAlgorithm::Sequential,
                    _ => PairAlgorithm::Channels,
                };
                let state = PairState { momentum: momentum.view_mut(), update: update.view_mut() };
                return scan_pair(
                    &self.pair(),
                    how,
                    state,
                    (algorithm != Algorithm::PairLast).then_some(states),
                );
            }
        };
        scan(&self.recurrence(), plain, states);
    }

    /// Returns the largest magnitude of the oracle's states and the largest difference from them. States are filled with NaN
    /// first, so that an unwritten one shows.
    pub fn error(&self, algorithm: Algorithm, states: &mut [T]) -> (f64, f64) {
        states.par_chunks_mut(STRETCH).for_each(|states| states.fill(T::nan()));
        let mut last = self.start();
        self.compute(algorithm, states, &mut last);
        self.difference(algorithm, states, &last)
    }

    /// Returns the same as [`error`](Self::error) for states that are already computed.
    pub fn difference(&self, algorithm: Algorithm, states: &[T], last: &State<T>) -> (f64, f64) {
        let start = self.start();
        let states = ArrayView3::from_shape(self.dim(), states).expect("as many states as inputs");
        let BenchShape { batch, steps, channels } = self.case.shape;
        let width = if self.case.layout == Layout::StepsChannels { ORACLE } else { ORACLE_ROWS };
        let parts: Vec<(usize, Range<usize>)> = (0..batch)
            .flat_map(|i| (0..channels).step_by(width).map(move |c| (i, c..channels.min(c + width))))
            .collect();
        let worst = parts.into_par_iter().map(|(sequence, part)| {
            let mut worst = Worst::default();
            if algorithm.is_pair() {
                let starts = (start[0].view(), start[1].view());
                reference::scan_pair(&self.pair(), sequence, part.clone(), starts, |t, s, u| {
                    for ((&s, &u), channel) in s.iter().zip(u).zip(part.clone()) {
                        if algorithm != Algorithm::PairLast {
                            worst.add(states[[sequence, t, channel]].to_f64(), u);
                        }
                        if t + 1 == steps {
                            worst.add(last[0][[sequence, channel]].to_f64(), s);
                            worst.add(last[1][[sequence, channel]].to_f64(), u);
                        }
                    }
                });
            } else {
                reference::scan(&self.recurrence(), sequence, part.clone(), |t, x| {
                    for (&x, channel) in x.iter().zip(part.clone()) {
                        let place = match self.case.layout {
                            Layout::StepsChannels => [sequence, t, channel],
                            Layout::ChannelsSteps => [sequence, channel, t],
                        };
                        worst.add(states[place].to_f64(), x);
                    }
                });
            }
            worst
        });
        let Worst { largest, error } = worst.reduce(Worst::default, Worst::or);
        (largest, error)
    }
}

/// The largest expected magnitude and the largest difference from an expected value.
#[derive(Clone, Copy, Debug, Default)]
struct Worst {
    largest: f64,
    error: f64,
}

impl Worst {
    #[inline]
    fn add(&mut self, got: f64, expected: f64) {
        self.largest = self.largest.max(expected.abs());
        let error = (got - expected).abs();
        // A NaN stays, because no number compares as larger.
        if error > self.error || error.is_nan() {
            self.error = error;
        }
    }

    fn or(self, other: Self) -> Self {
        let error =
            if self.error.is_nan() || other.error.is_nan() { f64::NAN } else { self.error.max(other.error) };
        Self { largest: self.largest.max(other.largest), error }
    }
}

/// Fills an array with uniform random numbers, the same on every run.
fn fill<T: Real>(values: &mut [T], low: f64, high: f64) {
    values.par_chunks_mut(STRETCH).enumerate().for_each(|(stream, values)| {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        rng.set_stream(stream as u64);
        for x in values {
            *x = T::from_f64(low + (high - low) * f64::from(rng.random::<f32>()));
        }
    });
}

fn pool(threads: usize) -> Result<ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|error| {
        Error::rejected(
            "--threads",
            format!("cannot start {threads} threads ({error}); pass a smaller number"),
        )
    })
}

/// Measures the faster of an ordinary and a streaming copy from one half of `buffer` to the other, in 10⁹ bytes per
/// second. Each thread copies one contiguous part.
fn copy_speed<T: Real + Element>(
    buffer: &mut [T],
    pool: &ThreadPool,
    effort: Effort,
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<f64> {
    let half = buffer.len() / 2;
    let (from, to) = buffer.split_at_mut(half);
    let to = &mut to[..half];
    let each = half.div_ceil(pool.current_num_threads()).next_multiple_of(LINE / size_of::<T>());
    let mut best = f64::INFINITY;
    for past_cache in [false, true] {
        let timing = time(effort, check, || {
            pool.install(|| {
                to.par_chunks_mut(each).zip(from.par_chunks(each)).for_each(|(to, from)| {
                    if past_cache {
                        stream::copy(to, from);
                        stream::fence();
                    } else {
                        to.copy_from_slice(from);
                    }
                });
            });
        })?;
        best = best.min(timing.median);
    }
    Ok((2 * half * size_of::<T>()) as f64 / best / 1e9)
}
