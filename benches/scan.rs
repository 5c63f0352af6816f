//! Benchmarks of the scans, each at a size in the cache and one past it: `cargo bench --bench scan`. `nmem
//! scan-bench` verifies results, compares with a copy and writes tables; these benchmarks are for work on a
//! single part.

use divan::Bencher;
use divan::counter::BytesCount;
use ndarray::{Array2, Array3};
use nmem::scan::linear::{Algorithm, Gates, Layout, Recurrence, scan};
use nmem::scan::pair::{Pair, PairAlgorithm, PairState, scan_pair};

fn main() {
    divan::main();
}

/// (sequences, steps, channels)
const SIZES: [(usize, usize, usize); 2] = [(1, 64, 4096), (1, 64, 262_144)];

fn ramp(shape: (usize, usize, usize)) -> Array3<f32> {
    Array3::from_shape_fn(shape, |(i, t, c)| ((7 * i + 5 * t + 3 * c) % 101) as f32 * 0.01 - 0.5)
}

fn linear(bencher: Bencher, shape: (usize, usize, usize), algorithm: Algorithm) {
    let inputs = ramp(shape);
    let gates = Array2::from_elem((shape.0, shape.1), 0.97);
    let mut states = Array3::from_elem(shape, 1.0);
    let recurrence = Recurrence {
        layout: Layout::StepsChannels,
        gates: Gates::Step(gates.view()),
        inputs: inputs.view(),
        initial: None,
    };
    bencher
        .counter(BytesCount::of_many::<f32>(2 * inputs.len()))
        .bench_local(|| scan(&recurrence, algorithm, states.view_mut()));
}

#[divan::bench(args = SIZES)]
fn sequential(bencher: Bencher, shape: (usize, usize, usize)) {
    linear(bencher, shape, Algorithm::Sequential);
}

#[divan::bench(args = SIZES)]
fn channels(bencher: Bencher, shape: (usize, usize, usize)) {
    linear(bencher, shape, Algorithm::Channels);
}

#[divan::bench(args = SIZES)]
fn time(bencher: Bencher, shape: (usize, usize, usize)) {
    linear(bencher, shape, Algorithm::Time);
}

/// Times S and U with every U written.
#[divan::bench(args = SIZES)]
fn pair(bencher: Bencher, shape: (usize, usize, usize)) {
    let surprise = ramp(shape);
    let gates = |value: f32| Array2::from_elem((shape.0, shape.1), value);
    let (learning_rate, momentum, decay) = (gates(0.1), gates(0.9), gates(0.05));
    let pair = Pair {
        learning_rate: learning_rate.view(),
        momentum: momentum.view(),
        decay: decay.view(),
        surprise: surprise.view(),
    };
    let [mut s, mut u] = [(); 2].map(|()| Array2::from_elem((shape.0, shape.2), 0.0));
    let mut updates = Array3::from_elem(shape, 1.0);
    bencher.counter(BytesCount::of_many::<f32>(2 * surprise.len())).bench_local(|| {
        let state = PairState { momentum: s.view_mut(), update: u.view_mut() };
        scan_pair(&pair, PairAlgorithm::Channels, state, Some(updates.view_mut()));
    });
}
