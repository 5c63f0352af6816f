//! Results of the original module in titans-pytorch 0.0.17. In f64, oracle and engine agree with them within
//! 1e-10 of each array's largest magnitude. In f32 the engine agrees within 1e-5 (`PyTorch` itself reaches
//! 1e-6).

mod support;

use std::collections::BTreeMap;

use ndarray::{Array4, ArrayD, Axis, s};
use nmem::memory::reference::Reference;
use nmem::memory::{Gates, Program};
use support::{Golden, compare, from_rows, golden_results, run};

fn reference_results(case: &Golden, eps: f64) -> BTreeMap<String, ArrayD<f64>> {
    let (sequences, heads) = (case.seq.dim().0, case.heads);
    let parameters = case.parameters::<f64>();
    let d = parameters.dimensions.dim_head;
    let past = case.past();
    let base: Vec<_> = (0..4)
        .map(|p| {
            let weight = parameters.memory[p].index_axis(Axis(0), 0).to_owned();
            past.as_ref().map_or_else(|| weight.clone(), |past| &weight + &past[p])
        })
        .collect();
    let program = Program::titans_0_0_17(case.chunk_size);
    let mut reference =
        Reference::new(parameters, program, Gates::default(), eps, past.as_deref(), sequences);
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
        compare("engine f64", &case, "expected.npz", &golden_results::<f64>(&case, run), 1e-10);
    }
}

#[test]
fn engine_agrees_with_the_module_in_f32() {
    for case in Golden::all() {
        compare("engine f32", &case, "expected_f32eps.npz", &golden_results::<f32>(&case, run), 1e-5);
    }
}
