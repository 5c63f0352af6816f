//! The own results of the module in titans-pytorch 0.0.17 through the program: files in, files out.

use std::fs::File;

use ndarray::{ArrayD, Axis};
use ndarray_npy::NpzWriter;

use crate::support::{Golden, assert_close_to_largest};
use crate::{Sandbox, Table};

/// Returns the command line that reads and stores a case, without the element type.
fn line(case: &Golden, weights: &str) -> String {
    let mut line = format!(
        "retrieve seq.npy --online --memory {weights} --chunk-size {} --no-plots -q",
        case.chunk_size
    );
    if case.store_seq.is_some() {
        line += " --store-seq store_seq.npy";
    }
    if case.directory.join("past.safetensors").exists() {
        line += " --past past.safetensors";
    }
    line
}

/// Per memory weight as a last axis.
fn per_weight(table: &Table, name: &str, sequences: usize, heads: usize) -> ArrayD<f64> {
    let parts: Vec<_> = (0..4).map(|p| table.by_head(&format!("{name}.{p}"), sequences, heads)).collect();
    let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
    ndarray::stack(Axis(3), &views).unwrap()
}

fn compare(dtype: &str, file: &str, tolerance: f64) {
    for case in Golden::all() {
        let sandbox = Sandbox::with_golden(&case.name);
        let output = sandbox.ok(&format!("{} --dtype {dtype} --out out", line(&case, "weights.safetensors")));
        assert_eq!((&output.out[..], &output.err[..]), ("", ""), "{}", case.name);
        let (table, memory) = (sandbox.csv("out/metrics.csv"), sandbox.tensors("out/memory.safetensors"));
        let (sequences, heads) = (case.seq.dim().0, case.heads);
        let expected = case.expected(file);
        for (name, expected) in &expected {
            let got = match &name[..] {
                "retrieved" => sandbox.floats("out/retrieved.npy"),
                "loss" | "learning_rate" => table.by_head(name, sequences, heads),
                "momentum_gate" => table.by_head("momentum", sequences, heads),
                "decay_gate" => table.by_head("decay", sequences, heads),
                "grad_norm" => per_weight(&table, "surprise", sequences, heads),
                "momentum_norm" | "update_norm" => per_weight(&table, name, sequences, heads),
                name => match name.rsplit_once('_').unwrap() {
                    ("last_update", p) => memory[&format!("state.update.{p}")].floats(),
                    ("last_momentum", p) => memory[&format!("state.momentum.{p}")].floats(),
                    ("next_weights", p) => {
                        let base = memory[&format!("memory_model.weights.{p}")].floats();
                        let past = memory.get(&format!("state.past.{p}"));
                        let base = past.map_or_else(|| base.clone(), |past| &base + &past.floats());
                        memory[&format!("state.update.{p}")].floats() + base
                    }
                    _ => panic!("{}: {name} has no counterpart", case.name),
                },
            };
            let what = format!("{}, {dtype}, {name}", case.name);
            assert_close_to_largest(&what, got.view(), expected.view(), tolerance);
        }
        // The module returns early where one chunk is all there is; here it is stored.
        let rows = expected.get("loss").map_or(sequences * heads, ArrayD::len);
        assert_eq!(table.rows.len(), rows, "{}", case.name);
    }
}

#[test]
fn f64_agrees_with_the_module() {
    compare("f64", "expected.npz", 1e-10);
}

#[test]
fn f32_agrees_with_the_module_at_its_epsilon() {
    compare("f32", "expected_f32eps.npz", 1e-5);
}

#[test]
fn parameters_as_npz_give_the_same_bits() {
    for case in Golden::all() {
        let sandbox = Sandbox::with_golden(&case.name);
        for compressed in [false, true] {
            let file = File::create(sandbox.path("weights.npz")).unwrap();
            let mut npz = if compressed { NpzWriter::new_compressed(file) } else { NpzWriter::new(file) };
            for (name, tensor) in sandbox.tensors("weights.safetensors") {
                npz.add_array(name, &tensor.floats().mapv(|x| x as f32)).unwrap();
            }
            npz.finish().unwrap();
            sandbox.ok(&format!("{} --out from-npz --force", line(&case, "weights.npz --model attention")));
            sandbox.ok(&format!("{} --out from-safetensors --force", line(&case, "weights.safetensors")));
            for file in ["metrics.csv", "retrieved.npy", "memory.safetensors"] {
                let [a, b] =
                    ["from-npz", "from-safetensors"].map(|out| sandbox.bytes(&format!("{out}/{file}")));
                assert!(a == b, "{}: {file}", case.name);
            }
        }
    }
}
