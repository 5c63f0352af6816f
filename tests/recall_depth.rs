//! The experiment recall-depth against the results of an independent implementation: data, gradients and whole training runs.
//! See tests/recall-depth/README.md.

#[path = "../experiments/recall-depth/study/mod.rs"]
mod study;

use std::fs::File;
use std::path::PathBuf;

use ndarray::ArrayD;
use ndarray_npy::{NpzReader, ReadableElement};
use nmem::real::Real;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use study::model::{Derivative, Layout, Model, Named};
use study::task::{
    Episode, ITEMS, Mapping, Splits, TEST_SEED, VALIDATION_SEED, draw_batch, evaluation, stream,
};
use study::training::{Run, STEPS, initial, loss_and_gradient};

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/recall-depth").join(name)
}

fn json(name: &str) -> serde_json::Value {
    serde_json::from_reader(File::open(data(name)).unwrap()).unwrap()
}

/// Arrays of an .npz file.
struct Arrays(NpzReader<File>);

impl Arrays {
    fn open(name: &str) -> Self {
        Self(NpzReader::new(File::open(data(name)).unwrap()).unwrap())
    }

    fn get<T: ReadableElement>(&mut self, name: &str) -> Vec<T> {
        let array: ArrayD<T> = self.0.by_name(name).unwrap();
        array.into_iter().collect()
    }
}

fn rows(of: &serde_json::Value) -> Vec<[u8; ITEMS]> {
    serde_json::from_value(of.clone()).unwrap()
}

fn sha256(bytes: impl Iterator<Item = u8>) -> String {
    let digest = Sha256::digest(bytes.collect::<Vec<_>>());
    nmem::run::hexadecimal(&digest)
}

/// Asserts that values agree relative to the largest.
fn assert_close(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= tolerance * largest, "{what}[{i}]: {got}, not {expected}");
    }
}

#[test]
fn splits_and_orders_are_the_studys() {
    let (splits, known) = (Splits::new(), json("splits.json"));
    for (name, rows_of) in
        [("train", &splits.training), ("validation", &splits.validation), ("test", &splits.test)]
    {
        assert_eq!(rows_of[..20], rows(&known[name])[..], "{name}");
        let hash = sha256(rows_of.as_flattened().iter().copied());
        assert_eq!(hash, known["sha256_of_u8_rows"][name], "{name}");
    }
    let known = json("orders.json");
    for (name, seed, split) in
        [("validation", VALIDATION_SEED, &splits.validation), ("test", TEST_SEED, &splits.test)]
    {
        let batches: Vec<_> = evaluation(split, seed).collect();
        let orders = [|of: &Episode| of.writes, |of: &Episode| of.queries];
        let [writes, queries] = orders.map(|order| batches.iter().flatten().map(order).collect::<Vec<_>>());
        assert_eq!(writes[..20], rows(&known[name]["first_20_write_orders"])[..], "{name}");
        assert_eq!(queries[..20], rows(&known[name]["first_20_query_orders"])[..], "{name}");
        let of_batch =
            |batch: &Vec<Episode>| orders.map(|order| batch.iter().flat_map(order).collect::<Vec<_>>());
        let all = batches.iter().flat_map(of_batch).flatten();
        assert_eq!(sha256(all), known[name]["sha256_of_all_orders_u8"], "{name}");
    }
    for seed in 10..20 {
        let known = &known["train"][seed.to_string()];
        let mut random = stream(seed);
        let mut bytes = Vec::new();
        for _ in 0..STEPS {
            let (rows, orders) = draw_batch(&mut random, splits.training.len());
            bytes.extend(rows.iter().flat_map(|&row| (row as u16).to_le_bytes()));
            bytes.extend(orders.writes.iter().chain(&orders.queries).flatten());
        }
        assert_eq!(sha256(bytes.into_iter()), known["sha256_of_600_steps"], "seed {seed}");
    }
}

#[test]
fn initial_parameters_are_the_studys() {
    for (depth, seed) in [(1, 10), (1, 19), (2, 10), (2, 15)] {
        let layout = Layout { depth };
        let [got, expected] = [initial(layout, seed), pytorch_start(layout, seed)];
        for array in layout.arrays() {
            let [got, expected] = [&got, &expected]
                .map(|all| all[array.place.clone()].iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
            // Logarithms of PyTorch round differently.
            assert_close(&array.name, &got, &expected, 3e-7);
        }
    }
}

/// Returns the parameters of a seed with the random arrays as PyTorch computes them, to the last bit.
fn pytorch_start(layout: Layout, seed: u32) -> Vec<f32> {
    let mut known = Arrays::open("initial.npz");
    let mut start = initial(layout, seed);
    for Named { name, place } in layout.arrays() {
        if ["embed", "memory", "head"].iter().any(|random| name.starts_with(random)) {
            start[place].copy_from_slice(&known.get(&format!("d{}.s{seed}.{name}", layout.depth)));
        }
    }
    start
}

/// A point of the parameter space, with a batch.
struct Point {
    arrays: Arrays,
    layout: Layout,
    parameters: Vec<f64>,
    batch: Vec<Episode>,
}

impl Point {
    fn open(name: &str, depth: usize) -> Self {
        let mut arrays = Arrays::open(name);
        let layout = Layout { depth };
        let mut parameters = vec![0.0; layout.len()];
        for array in layout.arrays() {
            let values = arrays.get::<f64>(&format!("param.{}", array.name));
            parameters[array.place.clone()].copy_from_slice(&values);
        }
        let mut of = |name: &str| -> Vec<[u8; ITEMS]> {
            let rows = arrays.get::<u8>(&format!("batch.{name}"));
            rows.as_chunks().0.to_vec()
        };
        let (keys, values, queries) = (of("write_keys"), of("write_values"), of("query_keys"));
        let episode = |((writes, values), queries): ((&Mapping, &Mapping), &Mapping)| {
            let mut mapping = [0; ITEMS];
            for (&key, &value) in writes.iter().zip(values) {
                mapping[usize::from(key)] = value;
            }
            Episode { mapping, writes: *writes, queries: *queries }
        };
        let batch = keys.iter().zip(&values).zip(&queries).map(episode).collect();
        Self { arrays, layout, parameters, batch }
    }

    fn model(&self, chunk: usize, derivative: Derivative) -> Model {
        Model { layout: self.layout, chunk, derivative }
    }

    fn gradient<T: Real>(&self, chunk: usize, derivative: Derivative) -> (f64, Vec<f64>) {
        let parameters: Vec<T> = self.parameters.iter().map(|&x| T::from_f64(x)).collect();
        let mut gradient = vec![T::zero(); parameters.len()];
        let loss = loss_and_gradient(&self.model(chunk, derivative), &parameters, &self.batch, &mut gradient);
        (loss, gradient.into_iter().map(Real::to_f64).collect())
    }

    /// Returns the part of a gradient that belongs to each parameter array, with its name.
    fn parts<'a>(&self, gradient: &'a [f64]) -> impl Iterator<Item = (String, &'a [f64])> {
        self.layout.arrays().into_iter().map(|array| (array.name, &gradient[array.place]))
    }
}

const POINTS: [(&str, usize); 4] =
    [("init-d1.npz", 1), ("init-d2.npz", 2), ("trained-d1.npz", 1), ("trained-d2.npz", 2)];

#[test]
fn losses_logits_and_gradients() {
    for (name, depth) in POINTS {
        let mut point = Point::open(name, depth);
        for chunk in [1, 2, 4, 8] {
            let of_point = point.model(chunk, Derivative::Complete);
            let outcome = of_point.run(&point.parameters, &point.batch, true, None);
            let logits: Vec<_> = outcome.logits[..4].as_flattened().as_flattened().to_vec();
            assert_close("logits", &logits, &point.arrays.get::<f64>(&format!("logits.c{chunk}")), 1e-12);
            let known_loss = point.arrays.get::<f64>(&format!("loss.c{chunk}"));
            for derivative in [Derivative::Complete, Derivative::Released] {
                let (loss, gradient) = point.gradient::<f64>(chunk, derivative);
                assert_close("loss", &[loss], &known_loss, 1e-12);
                let of =
                    if depth > 1 && derivative == Derivative::Released { "released" } else { "complete" };
                let (_, in_f32) = point.gradient::<f32>(chunk, derivative);
                let parts: Vec<_> = point.parts(&gradient).zip(point.parts(&in_f32)).collect();
                for ((array, got), (_, got_f32)) in parts {
                    let what = format!("{name}, chunk {chunk}, {of} gradient of {array}");
                    let expected = point.arrays.get::<f64>(&format!("grad.c{chunk}.{of}.{array}"));
                    assert_close(&what, got, &expected, 1e-9);
                    assert_close(&format!("{what} in f32"), got_f32, &expected, 1e-3);
                }
            }
        }
    }
}

/// The derivative of the study's code is wrong at depth 2, which the test of gradients must notice.
#[test]
fn the_released_derivative_is_another() {
    let point = Point::open("trained-d2.npz", 2);
    let [complete, released] =
        [Derivative::Complete, Derivative::Released].map(|derivative| point.gradient::<f64>(2, derivative).1);
    let mut different = 0;
    for ((name, complete), (_, released)) in point.parts(&complete).zip(point.parts(&released)) {
        let largest = complete.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        let error = complete.iter().zip(released).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest;
        different += usize::from(error > 0.1);
        assert!(error < 1e-12 || !name.starts_with("head"), "{name} does not depend on it: {error}");
    }
    assert!(different >= 4, "{different} arrays differ by more than a tenth");
}

/// Without writing, the logits depend on the keys that are asked for alone.
#[test]
fn without_writing() {
    for (name, depth) in POINTS {
        let mut point = Point::open(name, depth);
        let model = point.model(2, Derivative::Complete);
        let outcome = model.run(&point.parameters, &point.batch, false, None);
        let loss = outcome.loss / (point.batch.len() * ITEMS) as f64;
        assert_close("loss", &[loss], &point.arrays.get::<f64>("loss.no_write"), 1e-12);
        let mut other = point.batch.clone();
        for episode in &mut other {
            episode.mapping.reverse();
        }
        assert_eq!(model.run(&point.parameters, &other, false, None).logits, outcome.logits);
        assert_ne!(model.run(&point.parameters, &other, true, None).logits, outcome.logits);
    }
}

/// Whole runs in f64: losses and gradient norms of all steps, and the quality on the test split.
#[test]
fn trajectories() {
    let splits = Splits::new();
    [(2, 10), (2, 18), (1, 10), (1, 18)].into_par_iter().for_each(|(depth, seed)| {
        let mut known = Arrays::open("trajectories.npz");
        let run = Run { depth, chunk: 2, derivative: Derivative::Complete, seed, stream: seed };
        let name = |what: &str| format!("d{depth}.s{seed}.c2.{what}");
        let expected: [Vec<f64>; 3] = ["loss", "grad_norm", "test"].map(|what| known.get(&name(what)));
        let start = pytorch_start(run.model().layout, seed);
        let trained = run.train::<f64>(&splits, &start, false);
        assert_eq!([trained.steps.len(), expected[1].len()], [expected[0].len(); 2], "{}", name("loss"));
        for (step, (got, (loss, norm))) in
            trained.steps.iter().zip(expected[0].iter().zip(&expected[1])).enumerate()
        {
            assert!((got[0] - loss).abs() < 1e-8, "{}, step {step}: {}, not {loss}", name("loss"), got[0]);
            assert!(
                (got[1] / norm - 1.0).abs() < 1e-6,
                "{}, step {step}: {}, not {norm}",
                name("norm"),
                got[1]
            );
        }
        let [test, _] = run.test(&splits, &trained.parameters);
        assert_close(&name("test"), &[test.cross_entropy, test.accuracy], &expected[2], 1e-8);
    });
}
