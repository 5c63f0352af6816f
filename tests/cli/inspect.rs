//! `nmem inspect`: what it prints, for people and programs, and its exit status.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{Sandbox, Transcript, tokens};

#[test]
fn a_memory_shows_configuration_and_state() {
    let sandbox = Sandbox::with_golden("heads");
    sandbox.ok("store seq.npy --memory weights.safetensors --chunk-size 4 --learning-rate 0.5 --out out -q");
    let output = sandbox.ok("inspect out/memory.safetensors");
    assert_eq!(output.err, "");
    let lines: Vec<_> =
        output.out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    // The size depends on the version in the file.
    let bytes = sandbox.bytes("out/memory.safetensors").len().to_string();
    assert!(lines[0].contains(&bytes), "{}", lines[0]);
    let mut said = Transcript::new();
    let shown = format!("{}\n{}", lines[0].replace(&bytes, "N"), lines[1]);
    said.entry("inspect out/memory.safetensors", output.code, &shown);
    insta::assert_snapshot!(said);
    for expected in [
        "chunk_size 4",
        "learning_rate.pinned 0.5",
        "momentum.learned 0.0",
        "model attention",
        "parameters",
        "state",
    ] {
        assert!(lines.iter().any(|line| line == expected), "{expected} in\n{}", output.out);
    }
    for expected in [
        "memory_model.weights.0 f32 (4, 4)",
        "state.update.3 f32 (2, 4, 4, 4)",
        "state.momentum.0 f32 (2, 4, 4, 4)",
        "state.left_over f32 (2, 2, 16)",
        "state.tokens u64 (2,) 34 34 34 0 0 16",
    ] {
        assert!(lines.iter().any(|line| line.starts_with(expected)), "{expected} in\n{}", output.out);
    }

    let json: Value =
        serde_json::from_str(&sandbox.ok("inspect out/memory.safetensors --format json").out).unwrap();
    assert_eq!(json[0]["kind"], "memory");
    assert_eq!(json[0]["configuration"], sandbox.memory_config("out/memory.safetensors"));
    let names: BTreeSet<_> = json[0]["arrays"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, sandbox.tensors("out/memory.safetensors").into_keys().collect());
}

/// Parameters name their model in the metadata, and the report says it once.
#[test]
fn parameters_show_their_model_once() {
    let sandbox = Sandbox::with_golden("heads");
    sandbox.ok("store seq.npy --memory weights.safetensors --chunk-size 4 --out out -q");
    sandbox.ok("export out/memory.safetensors --out exported.safetensors");
    let output = sandbox.ok("inspect exported.safetensors").out;
    assert_eq!(output.matches("model ").count(), 1, "{output}");
    let json: Value =
        serde_json::from_str(&sandbox.ok("inspect exported.safetensors --format json").out).unwrap();
    assert_eq!(
        (&json[0]["model"], &json[0]["metadata"]["model"]),
        (&"attention".into(), &"attention".into())
    );
}

#[test]
fn other_files_show_what_they_are() {
    let sandbox = Sandbox::with_golden("heads");
    let first = |line: &str| sandbox.ok(line).out.lines().next().unwrap().to_owned();
    let size = |name: &str| sandbox.bytes(name).len();
    let mut said = Transcript::new();
    for name in ["seq.npy", "expected.npz", "weights.safetensors"] {
        let line = format!("inspect {name}");
        let first = first(&line);
        assert!(first.contains(&format!(" {} ", size(name))), "{first}");
        said.entry(&line, Some(0), &first);
    }
    insta::assert_snapshot!(said);
    let mut bad = tokens(&[4, 4], 1);
    (bad[[0, 1]], bad[[2, 2]], bad[[3, 3]]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
    sandbox.npy("bad.npy", &bad);
    let json: Value = serde_json::from_str(&sandbox.ok("inspect bad.npy seq.npy --format json").out).unwrap();
    let json = json.as_array().unwrap();
    assert_eq!(json.len(), 2);
    let array = &json[0]["arrays"][0];
    assert_eq!(
        (&array["nan"], &array["infinite"], &array["shape"]),
        (&1.into(), &2.into(), &serde_json::json!([4, 4]))
    );
}

#[test]
fn some_files_can_fail() {
    let sandbox = Sandbox::with_golden("heads");
    let line = "inspect seq.npy absent.npy weights.safetensors";
    let some = sandbox.run(line);
    assert_eq!(some.code, Some(1));
    assert!(some.out.contains("seq.npy") && some.out.contains("weights.safetensors"));
    let mut said = Transcript::new();
    said.ran(&sandbox, line, &some);
    said.reject(&sandbox, "inspect absent.npy");
    insta::assert_snapshot!(said);
}
