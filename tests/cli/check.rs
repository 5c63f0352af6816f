//! `nmem check`: certificates hold, and each finds its planted fault.

use serde_json::Value;

use crate::{Sandbox, Transcript, tokens};

const NAMES: [&str; 8] = [
    "causality",
    "zero rate",
    "no-write baseline",
    "parts",
    "threads",
    "restore",
    "permutation",
    "impossible retrieval",
];

fn certificates(out: &str) -> Vec<Value> {
    let json: Value = serde_json::from_str(out).unwrap();
    json.as_array().unwrap().iter().flat_map(|of| of["certificates"].as_array().unwrap().clone()).collect()
}

#[test]
fn certificates_hold_and_faults_are_found_in_every_model() {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[40, 16], 3));
    let models = ["attention", "attention-cosine", "mlp", "linear", "swiglu", "gated-residual", "factorized"];
    for model in models {
        sandbox.ok(&format!(
            "store seq.npy --model {model} --heads 2 --chunk-size 4 --refresh 8 --learning-rate 0.01 --out {model} -q \
             --no-plots"
        ));
    }
    for dtype in ["f32", "f64"] {
        let output = sandbox.ok(&format!("check {} --format json --dtype {dtype}", models.join(" ")));
        let all = certificates(&output.out);
        assert_eq!(all.len(), models.len() * NAMES.len());
        for (of, name) in all.iter().zip(NAMES.iter().cycle()) {
            assert_eq!((&of["name"], &of["verdict"]), (&(*name).into(), &"passed".into()), "{of}");
            let count = |name: &str| of[name].as_u64().unwrap();
            assert!(count("found") <= count("allowed"), "{of}");
            assert!(count("found_with_fault") > count("allowed"), "{of}");
        }
    }
}

#[test]
fn presets_and_shipped_parameters() {
    let sandbox = Sandbox::with_passages();
    let output = sandbox.ok("check passages.safetensors --chunk-size 16");
    assert!(output.out.starts_with("passages.safetensors, f32\n"), "{}", output.out);
    sandbox.npy("seq.npy", &tokens(&[24, 16], 4));
    sandbox.ok(
        "store seq.npy --preset titans-0.5.5 --heads 2 --chunk-size 8 --out run -q --no-plots --dtype f64",
    );
    let output = sandbox.ok("check run --seed 7");
    // A saved state keeps its type.
    assert!(output.out.starts_with("run/memory.safetensors, f64\n"), "{}", output.out);
    for name in NAMES {
        assert!(output.out.contains(&format!("  {name} ")), "{name}: {}", output.out);
    }
}

/// Nothing can be shown on a memory whose weights are gone: all reads are zero, whatever the reader does.
#[test]
fn a_fault_that_goes_unnoticed_is_void() {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[8, 8], 5));
    sandbox.ok(
        "store seq.npy --model linear --decay-of weights --decay 1 --momentum 0 --learning-rate 0 --chunk-size 4 --out \
         dead -q --no-plots --no-post-norm",
    );
    let output = sandbox.run("check dead");
    assert_eq!(output.code, Some(1), "{}", output.out);
    let line = output.out.lines().find(|line| line.starts_with("  causality")).unwrap();
    assert!(line.contains("VOID"), "{line}");
    assert!(output.out.contains("causality: shows nothing, because the fault was not found"));
    let json = sandbox.run("check dead --format json");
    assert_eq!((json.code, &certificates(&json.out)[0]["verdict"]), (Some(1), &"void".into()));
}

#[test]
fn rejections() {
    let sandbox = Sandbox::with_golden("heads");
    sandbox.npy("seq.npy", &tokens(&[8, 8], 5));
    let lines = ["check", "check weights.safetensors", "check absent", "check seq.npy", "check ."];
    insta::assert_snapshot!(Transcript::of_rejected(&sandbox, &lines));
}
