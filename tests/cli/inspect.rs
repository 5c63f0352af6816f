//! `nmem inspect`: what it prints, for people and programs, and its exit status.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{Sandbox, tokens};

#[test]
fn a_memory_shows_configuration_and_state() {
    let sandbox = Sandbox::with_golden("heads");
    sandbox.ok("store seq.npy --memory weights.safetensors --chunk-size 4 --learning-rate 0.5 --out out -q");
    let output = sandbox.ok("inspect out/memory.safetensors");
    assert_eq!(output.err, "");
    let lines: Vec<_> =
        output.out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let bytes = sandbox.bytes("out/memory.safetensors").len();
    assert_eq!(lines[0], format!("out/memory.safetensors: a memory, .safetensors, {bytes} bytes"));
    assert_eq!(lines[1], "dim 16, heads 4, dim_head 4; norms: before and after");
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

#[test]
fn other_files_show_what_they_are() {
    let sandbox = Sandbox::with_golden("heads");
    let first = |line: &str| sandbox.ok(line).out.lines().next().unwrap().to_owned();
    let size = |name: &str| sandbox.bytes(name).len();
    assert_eq!(first("inspect seq.npy"), format!("seq.npy: .npy, {} bytes", size("seq.npy")));
    assert_eq!(first("inspect expected.npz"), format!("expected.npz: .npz, {} bytes", size("expected.npz")));
    let weights =
        format!("weights.safetensors: parameters, .safetensors, {} bytes", size("weights.safetensors"));
    assert_eq!(first("inspect weights.safetensors"), weights);
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
    let some = sandbox.run("inspect seq.npy absent.npy weights.safetensors");
    assert_eq!(some.code, Some(1));
    assert!(some.out.contains("seq.npy: ") && some.out.contains("weights.safetensors: "));
    assert_eq!(some.err, "error: absent.npy: cannot open: No such file or directory (os error 2)\n");
    assert_eq!(
        sandbox.rejected("inspect absent.npy"),
        "absent.npy: cannot open: No such file or directory (os error 2)"
    );
}
