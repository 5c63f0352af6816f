//! `nmem gradients`: files in, files out, against PyTorch's autograd; names, streams, threads and messages.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use ndarray::{Array3, ArrayD, s};
use ndarray_npy::{NpzReader, WriteNpyExt};
use serde_json::Value;

use crate::support::assert_close_to_largest;
use crate::transcript::Transcript;
use crate::{Sandbox, shipped};

fn copy(from: &Path, sandbox: &Sandbox) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), sandbox.path(entry.file_name().to_str().unwrap())).unwrap();
    }
}

/// Creates a sandbox with a case, its cotangent and its gradients; a case of 0.5.5 is imported as m.safetensors.
fn with_case(library: &str, name: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    let golden = if library == "seed" { "tests/golden" } else { "tests/golden-0.5.5" };
    copy(&shipped(golden).join(name), &sandbox);
    copy(&shipped("tests/golden-train").join(library).join(name), &sandbox);
    if library == "0.5.5" {
        sandbox.ok(
            "import weights.safetensors --from titans-pytorch-0.5.5 --args args.json --out m.safetensors -q",
        );
    }
    sandbox
}

fn npz(path: &Path) -> BTreeMap<String, ArrayD<f64>> {
    let mut npz = NpzReader::new(File::open(path).unwrap()).unwrap();
    let names = npz.names().unwrap();
    names.into_iter().map(|name| (name.clone(), npz.by_name(&name).unwrap())).collect()
}

#[test]
fn gradients_have_the_names_and_values_of_the_library() {
    for (library, name, flags) in [
        ("seed", "heads", "--memory weights.safetensors --model attention --chunk-size"),
        ("seed", "store_seq", "--store-seq store_seq.npy --memory weights.safetensors --chunk-size"),
        ("0.5.5", "refresh_gated", "--memory m.safetensors"),
        ("0.5.5", "activation_silu", "--memory m.safetensors"),
        ("0.5.5", "heads4_shared", "--memory m.safetensors"),
        ("0.5.5", "all_norms", "--memory m.safetensors"),
        ("0.5.5", "swiglu", "--memory m.safetensors"),
        ("0.5.5", "single_token_read", "--after --store-seq store_seq.npy --memory m.safetensors"),
    ] {
        let sandbox = with_case(library, name);
        let case: Value = serde_json::from_slice(&sandbox.bytes("case.json")).unwrap();
        let chunk_size = if library == "seed" { format!(" {}", case["chunk_size"]) } else { String::new() };
        let line = format!("gradients seq.npy {flags}{chunk_size} --cotangent cotangent.npy --dtype f64");
        let output = sandbox.ok(&format!("{line} --out g.npz --format json"));
        let report: Value = serde_json::from_str(&output.out).unwrap();
        let loss: Value = serde_json::from_slice(&sandbox.bytes("loss.json")).unwrap();
        let [got, expected] = [&report["loss"], &loss["loss"]].map(|loss| loss.as_f64().unwrap());
        assert!((got - expected).abs() < 1e-9 * expected.abs(), "{name}: {got} for {expected}");
        let (mut got, expected) = (npz(&sandbox.path("g.npz")), npz(&sandbox.path("gradients.npz")));
        for (array, expected) in &expected {
            let got = got.remove(array).unwrap_or_else(|| panic!("{name}: {array}"));
            assert_close_to_largest(&format!("{name}, {array}"), got.view(), expected.view(), 1e-8);
        }
        assert_eq!(got.keys().collect::<Vec<_>>(), Vec::<&String>::new(), "{name}");
    }
}

/// The state of a saved memory is a constant: a second call has the gradients of its own tokens.
#[test]
fn a_call_continues_from_a_saved_memory() {
    let sandbox = with_case("0.5.5", "default");
    let [seq, cotangent] = ["seq.npy", "cotangent.npy"].map(|name| sandbox.floats(name));
    let chunk = s![.., ..12, ..];
    let parts = [("first", s![.., ..12, ..]), ("second", s![.., 12.., ..])];
    for (name, part) in parts {
        for (of, array) in [("seq", &seq), ("cotangent", &cotangent)] {
            let array: Array3<f64> = array.clone().into_dimensionality().unwrap();
            let file = File::create(sandbox.path(&format!("{name}-{of}.npy"))).unwrap();
            array.slice(part).to_owned().write_npy(file).unwrap();
        }
    }
    let flags = "--dtype f64 -q";
    sandbox.ok(&format!("retrieve first-seq.npy --online --memory m.safetensors --out a --no-plots {flags}"));
    sandbox.ok(&format!(
        "gradients second-seq.npy --memory a/memory.safetensors --cotangent second-cotangent.npy --out part.npz {flags}"
    ));
    // The whole, without a cotangent for the first tokens, and cut off where the first call ended.
    let mut late: Array3<f64> = cotangent.into_dimensionality().unwrap();
    late.slice_mut(chunk).fill(0.0);
    late.write_npy(File::create(sandbox.path("late.npy")).unwrap()).unwrap();
    sandbox.ok(&format!(
        "gradients seq.npy --memory m.safetensors --cotangent late.npy --truncate 12 --out whole.npz {flags}"
    ));
    let (part, whole) = (npz(&sandbox.path("part.npz")), npz(&sandbox.path("whole.npz")));
    for name in ["to_queries.weight", "retrieve_norm.weight"] {
        assert_close_to_largest(name, part[name].view(), whole[name].view(), 1e-10);
    }
}

#[test]
fn any_number_of_threads_and_any_run_gives_the_same_bytes() {
    let sandbox = with_case("seed", "heads");
    let case: Value = serde_json::from_slice(&sandbox.bytes("case.json")).unwrap();
    let line = format!(
        "gradients seq.npy --memory weights.safetensors --model attention --chunk-size {} --cotangent cotangent.npy -q",
        case["chunk_size"]
    );
    for threads in [1, 2, 5] {
        sandbox.ok(&format!("{line} --threads {threads} --out {threads}.npz"));
    }
    assert_eq!(sandbox.bytes("1.npz"), sandbox.bytes("2.npz"));
    assert_eq!(sandbox.bytes("1.npz"), sandbox.bytes("5.npz"));
    let report = sandbox.ok(&format!("{line} --repeat 2 --out again.npz --format json")).out;
    assert_eq!(sandbox.bytes("1.npz"), sandbox.bytes("again.npz"));
    let report: Value = serde_json::from_str(&report).unwrap();
    let mut all: Vec<_> =
        report["seconds_all"].as_array().unwrap().iter().map(|time| time.as_f64().unwrap()).collect();
    all.sort_by(f64::total_cmp);
    assert_eq!((all.len(), report["seconds"].as_f64()), (3, Some(all[1])));
}

/// The table for people: a row for each array, with its shape and norm.
#[test]
fn gradients_are_listed() {
    let sandbox = with_case("0.5.5", "default");
    let line = "gradients seq.npy --memory m.safetensors --cotangent cotangent.npy --dtype f64 --out g.npz";
    let shown = sandbox.ok(line).out;
    let arrays = npz(&sandbox.path("g.npz"));
    let rows: Vec<Vec<&str>> = shown
        .lines()
        .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    assert_eq!(rows[0], ["gradient of", "shape", "norm"]);
    for row in &rows[1..=arrays.len()] {
        let array = &arrays[row[0]];
        let shape: Vec<_> = array.shape().iter().map(ToString::to_string).collect();
        let norm = array.iter().map(|x| x * x).sum::<f64>().sqrt();
        assert_eq!(*row, [row[0], &shape.join(" × "), &format!("{norm:.6e}")]);
    }
    let loss: Value = serde_json::from_slice(&sandbox.bytes("loss.json")).unwrap();
    let [of_loss, names, time, wrote] = &rows[arrays.len() + 1..] else { panic!("{shown}") };
    let shown_loss: f64 = of_loss[1].parse().unwrap();
    assert!((shown_loss - loss["loss"].as_f64().unwrap()).abs() < 1e-9 * shown_loss.abs());
    assert_eq!(names[..], ["names", "titans-pytorch 0.5.5"]);
    assert!(time[0] == "time" && time[1].ends_with(" ms"));
    assert_eq!(wrote[..], ["wrote", "g.npz"]);
}

#[test]
fn rejected_gradients() {
    let sandbox = with_case("0.5.5", "default");
    sandbox.ok("gradients seq.npy --memory m.safetensors --cotangent cotangent.npy --out g.npz -q");
    sandbox.ok("generate drift --tokens 8 --dim 4 --segment 4 --out other.npy -q");
    let said = Transcript::of_rejected(
        &sandbox,
        &[
            "gradients seq.npy --memory m.safetensors --cotangent cotangent.npy --out g.npz",
            "gradients seq.npy --memory m.safetensors --cotangent other.npy --out h.npz",
            "gradients other.npy --memory m.safetensors --cotangent other.npy --out h.npz",
            "gradients seq.npy --memory m.safetensors --cotangent cotangent.npy --truncate 6 --out h.npz",
            "gradients seq.npy --memory m.safetensors --cotangent none.npy --out h.npz",
            "gradients seq.npy --cotangent cotangent.npy --out h.npz",
            "gradients - --memory m.safetensors --cotangent - --out h.npz",
        ],
    );
    insta::assert_snapshot!(said);
    assert!(!sandbox.path("h.npz").exists());
}
