//! Random configurations of a memory, and the engine's error against the oracle for each.

use std::collections::BTreeMap;

use ndarray::{Array3, ArrayD, Axis, concatenate, s};
use nmem::engine::Work;
use nmem::memory::parameters::Init;
use nmem::memory::{Gate, Gates};
use nmem::real::Real;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::support::{RandomMemory, columns, largest, run_through, uniform, weight};

/// A memory, its input tokens, and the positions at which its life is divided into calls.
pub struct Case {
    random: RandomMemory,
    probe: bool,
    read: Array3<f64>,
    store: Array3<f64>,
    /// Ends of the calls, in both streams; the last call takes the remaining tokens of each.
    cuts: Vec<usize>,
}

impl Case {
    /// Creates the case of a seed.
    pub fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let heads = rng.random_range(1..=4);
        let dim_head = rng.random_range(1..=40);
        let dim = if heads == 1 { dim_head } else { rng.random_range(1..=24) };
        let chunk = rng.random_range(2..=40);
        let init = if rng.random_bool(0.5) { Init::Xavier } else { Init::Randn };
        let mut random = RandomMemory::new((dim, heads, dim_head), chunk, init, seed)
            .norms(rng.random_bool(0.7), rng.random_bool(0.7))
            .gates(Gates {
                learning_rate: gate(&mut rng, 0.1),
                momentum: gate(&mut rng, 1.05),
                decay: gate(&mut rng, 1.0),
            });
        if rng.random_bool(0.3) {
            random = random.past(0.5, seed + 1);
        }
        let sequences = rng.random_range(1..=3);
        let tokens = rng.random_range(0..=6 * chunk);
        let all = |tokens: usize, seed: u64| uniform((sequences, tokens, dim), 1.5, seed);
        let read = all(tokens, seed + 2);
        let store = match rng.random_range(0..3) {
            0 => read.clone(),
            1 => all(tokens, seed + 3),
            _ => all(tokens + rng.random_range(0..chunk), seed + 3),
        };
        let mut cuts: Vec<usize> =
            (0..rng.random_range(0..4)).map(|_| rng.random_range(0..=tokens)).collect();
        cuts.sort_unstable();
        Self { random, probe: rng.random_bool(0.5), read, store, cuts }
    }

    /// Returns the largest error of each group of results, relative to the largest magnitude of each array in
    /// the group.
    pub fn errors<T: Real>(&self) -> BTreeMap<&'static str, f64> {
        let (sequences, _, dim) = self.read.dim();
        let memory = self.random.memory::<T>();
        let mut state = memory.initial_state(sequences);
        let (mut rows, mut reads, mut start) = (Vec::new(), Vec::new(), 0);
        for end in self.cuts.iter().copied().map(Some).chain([None]) {
            let part =
                |of: &Array3<f64>| of.slice(s![.., start..end.unwrap_or(of.dim().1), ..]).mapv(T::from_f64);
            let (read, store) = (part(&self.read), part(&self.store));
            start = end.unwrap_or(start);
            let work = Work::Online { read: &read, store: &store, probe: self.probe };
            let collected = run_through(&memory, &mut state, work, (sequences, read.dim().1, dim));
            rows.extend(collected.rows);
            reads.push(collected.retrieved);
        }
        rows.sort_by_key(|row| (row.sequence, row.chunk, row.head));
        let views: Vec<_> = reads.iter().map(|read| read.view()).collect();
        let read = concatenate(Axis(1), &views).expect("parts of one sequence").mapv(Real::to_f64);

        let mut reference = self.random.reference::<T>(sequences);
        let (expected_read, expected_rows) = reference.online(&self.read, &self.store);
        let (got, expected) = (columns(&rows), columns(&expected_rows));
        let of_columns =
            got.iter().map(|(name, got)| error(&got.clone().into_dyn(), &expected[name].clone().into_dyn()));
        let mut errors = BTreeMap::from([
            ("metrics", of_columns.fold(0.0, f64::max)),
            ("read", error(&read.into_dyn(), &expected_read.into_dyn())),
        ]);
        for (name, got, is_update) in [("U", &state.arrays[0], true), ("S", &state.arrays[1], false)] {
            let mut worst = 0.0_f64;
            let shapes = memory.weight_shapes();
            for p in 0..shapes.len() {
                let got = weight(got, &shapes, p);
                let mut expected = ArrayD::zeros(got.raw_dim());
                for i in 0..sequences {
                    for j in 0..self.random.dimensions.heads {
                        let head = reference.head(i, j);
                        let of_head = if is_update { &head.update[p] } else { &head.momentum[p] };
                        expected.slice_mut(s![i, j, .., ..]).assign(of_head);
                    }
                }
                worst = worst.max(error(&got, &expected));
            }
            errors.insert(name, worst);
        }
        errors
    }
}

/// Returns a gate: learned with a bias, or fixed at up to `most`.
fn gate(rng: &mut ChaCha8Rng, most: f64) -> Gate {
    if rng.random_bool(0.5) {
        Gate::Learned(rng.random_range(-2.0..2.0))
    } else {
        Gate::Fixed(rng.random_range(0.0..most))
    }
}

/// Returns the largest difference relative to the largest expected magnitude: 0 if both are zero, NaN if one is.
fn error(got: &ArrayD<f64>, expected: &ArrayD<f64>) -> f64 {
    assert_eq!(got.shape(), expected.shape(), "shapes");
    let difference =
        (got - expected).iter().fold(0.0_f64, |worst, x| if x.is_nan() { *x } else { worst.max(x.abs()) });
    if difference == 0.0 { 0.0 } else { difference / largest(expected.view()).max(f64::MIN_POSITIVE) }
}
