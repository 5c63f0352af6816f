//! The own results of the module in titans-pytorch 0.0.17: oracle and engine agree with them within 1e-10 of each array's largest magnitude in f64,
//! the engine within 1e-5 in f32 (`PyTorch` itself reaches 1e-6).

mod support;

use std::collections::BTreeMap;

use ndarray::{Array4, ArrayD, Axis, s};
use nmem::engine::Work;
use nmem::memory::Gates;
use nmem::memory::reference::Reference;
use nmem::metrics::ChunkMetrics;
use nmem::real::Real;
use support::{Golden, assert_close_to_largest, column, dyn3, memory, run, weight};

/// The arrays of expected.npz that metrics rows hold.
fn from_rows<T: Real>(
    rows: &[ChunkMetrics<T>],
    sequences: usize,
    heads: usize,
) -> BTreeMap<String, ArrayD<f64>> {
    let per_weight = |of: fn(&ChunkMetrics<T>, usize) -> T| {
        let parts: Vec<_> = (0..4).map(|p| column(rows, sequences, heads, |row| of(row, p))).collect();
        let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
        ndarray::stack(Axis(3), &views).unwrap()
    };
    let mut arrays = BTreeMap::new();
    let mut add = |name: &str, array| arrays.insert(name.to_owned(), array);
    add("learning_rate", column(rows, sequences, heads, |row| row.learning_rate));
    add("momentum_gate", column(rows, sequences, heads, |row| row.momentum));
    add("decay_gate", column(rows, sequences, heads, |row| row.decay));
    add("loss", column(rows, sequences, heads, |row| row.loss));
    add("grad_norm", per_weight(|row, p| row.weights[p].surprise));
    add("momentum_norm", per_weight(|row, p| row.weights[p].momentum_norm));
    add("update_norm", per_weight(|row, p| row.weights[p].update_norm));
    arrays
}

fn compare(who: &str, case: &Golden, file: &str, got: &BTreeMap<String, ArrayD<f64>>, tolerance: f64) {
    for (name, expected) in case.expected(file) {
        let what = format!("{who}, {}, {name}", case.name);
        let got = got.get(&name).unwrap_or_else(|| panic!("{what}: nothing to compare"));
        assert_close_to_largest(&what, got.view(), expected.view(), tolerance);
    }
}

fn engine_results<T: Real>(case: &Golden) -> BTreeMap<String, ArrayD<f64>> {
    let memory = memory::<T>(case);
    let (read, store) = (case.seq.mapv(T::of), case.stored().mapv(T::of));
    let sequences = read.dim().0;
    let mut state = memory.initial_state(sequences);
    let work = Work::Online { read: &read, store: &store, probe: false };
    let (collected, outcome) = run(&memory, &mut state, work, read.dim());
    assert_eq!((outcome.divergence, outcome.read_past_store), (None, None));
    let mut results = from_rows(&collected.rows, sequences, case.heads);
    results.insert("retrieved".into(), dyn3(&collected.retrieved));
    for (p, w) in memory.weights().iter().enumerate() {
        let update = weight(&state.update, memory.weight_shapes(), p);
        results.insert(format!("next_weights_{p}"), &update + &w.mapv(Real::wide));
        results.insert(format!("last_update_{p}"), update);
        results.insert(format!("last_momentum_{p}"), weight(&state.momentum, memory.weight_shapes(), p));
    }
    results
}

fn reference_results(case: &Golden, eps: f64) -> BTreeMap<String, ArrayD<f64>> {
    let (sequences, heads) = (case.seq.dim().0, case.heads);
    let parameters = case.parameters::<f64>();
    let d = parameters.dimensions.dim_head;
    let past = case.past();
    let base: Vec<_> = (0..4)
        .map(|p| {
            &parameters.memory[p]
                + &past.as_ref().map_or_else(|| 0.0 * &parameters.memory[p], |past| past[p].clone())
        })
        .collect();
    let mut reference =
        Reference::new(parameters, case.chunk_size, Gates::default(), eps, past.as_deref(), sequences);
    let (retrieved, rows) = reference.online(&case.seq, case.stored());
    let mut results = from_rows(&rows, sequences, heads);
    results.insert("retrieved".into(), retrieved.into_dyn());
    for (p, w) in base.iter().enumerate() {
        let (mut update, mut momentum) =
            (Array4::zeros((sequences, heads, d, d)), Array4::zeros((sequences, heads, d, d)));
        for (i, j) in (0..sequences).flat_map(|i| (0..heads).map(move |j| (i, j))) {
            update.slice_mut(s![i, j, .., ..]).assign(&reference.head(i, j).update[p]);
            momentum.slice_mut(s![i, j, .., ..]).assign(&reference.head(i, j).momentum[p]);
        }
        results.insert(format!("next_weights_{p}"), (&update + w).into_dyn());
        results.insert(format!("last_update_{p}"), update.into_dyn());
        results.insert(format!("last_momentum_{p}"), momentum.into_dyn());
    }
    results
}

#[test]
fn reference_agrees_with_the_module() {
    for case in Golden::all() {
        compare("reference", &case, "expected.npz", &reference_results(&case, f64::EPSILON), 1e-10);
        let eps = f64::from(f32::EPSILON);
        compare("reference at f32's ε", &case, "expected_f32eps.npz", &reference_results(&case, eps), 1e-10);
    }
}

#[test]
fn engine_agrees_with_the_module_in_f64() {
    for case in Golden::all() {
        compare("engine f64", &case, "expected.npz", &engine_results::<f64>(&case), 1e-10);
    }
}

#[test]
fn engine_agrees_with_the_module_in_f32() {
    for case in Golden::all() {
        compare("engine f32", &case, "expected_f32eps.npz", &engine_results::<f32>(&case), 1e-5);
    }
}
