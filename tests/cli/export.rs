//! `nmem export`: the state_dict that was imported comes back, bit for bit, with its constructor arguments.

use std::collections::BTreeMap;

use ndarray::ArrayD;

use crate::transcript::Transcript;
use crate::{Sandbox, shipped};

fn with_case(root: &str, name: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    for entry in std::fs::read_dir(shipped(root).join(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), sandbox.path(entry.file_name().to_str().unwrap())).unwrap();
    }
    sandbox
}

fn floats(sandbox: &Sandbox, name: &str) -> BTreeMap<String, ArrayD<f64>> {
    sandbox.tensors(name).iter().map(|(name, tensor)| (name.clone(), tensor.floats())).collect()
}

#[test]
fn an_imported_checkpoint_comes_back() {
    for name in [
        "default",
        "heads4_shared",
        "activation_silu",
        "all_norms",
        "refresh_gated",
        "swiglu",
        "attention",
        "no_residual",
    ] {
        let sandbox = with_case("tests/golden-0.5.5", name);
        let import =
            "import weights.safetensors --from titans-pytorch-0.5.5 --args args.json --out m.safetensors -q";
        sandbox.ok(import);
        sandbox.ok("export m.safetensors --out state.safetensors --args made.json -q");
        let (given, made) = (floats(&sandbox, "weights.safetensors"), floats(&sandbox, "state.safetensors"));
        assert_eq!(given.keys().collect::<Vec<_>>(), made.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, made) in made.iter().filter(|(tensor, _)| !tensor.starts_with("memory_model.")) {
            assert_eq!(*made, given[tensor], "{name}: {tensor}");
        }
        for (tensor, made) in &made {
            assert_eq!(made.shape(), given[tensor].shape(), "{name}: {tensor}");
        }
        sandbox.ok("import state.safetensors --from titans-pytorch-0.5.5 --args made.json --out again.safetensors -q");
        assert_eq!(sandbox.bytes("again.safetensors"), sandbox.bytes("m.safetensors"), "{name}");
    }
    let sandbox = with_case("tests/golden", "heads");
    sandbox.ok("export weights.safetensors --model attention --chunk-size 4 --out state.safetensors -q");
    assert_eq!(floats(&sandbox, "state.safetensors"), floats(&sandbox, "weights.safetensors"));
}

/// The arguments of the MLP of 0.0.17 have its depth, and name it for the import.
#[test]
fn the_mlp_of_0_0_17_comes_back() {
    let sandbox = with_case("tests/golden-0.0.17-mlp", "depth2_heads");
    let import = "import weights.safetensors --from titans-pytorch-0.0.17 --model mlp --chunk-size 4";
    sandbox.ok(&format!("{import} --out m.safetensors -q"));
    sandbox.ok("export m.safetensors --out state.safetensors --args made.json -q");
    assert_eq!(floats(&sandbox, "state.safetensors"), floats(&sandbox, "weights.safetensors"));
    let made: serde_json::Value = serde_json::from_slice(&sandbox.bytes("made.json")).unwrap();
    assert_eq!(made["default_mlp_kwargs"], serde_json::json!({"depth": 2}));
    sandbox.ok(
        "import state.safetensors --from titans-pytorch-0.0.17 --args made.json --out again.safetensors -q",
    );
    assert_eq!(sandbox.bytes("again.safetensors"), sandbox.bytes("m.safetensors"));
}

#[test]
fn rejected_exports() {
    let sandbox = with_case("tests/golden-0.5.5", "default");
    sandbox.ok("store seq.npy --preset titans-paper --out paper --no-plots -q");
    sandbox.ok("store seq.npy --chunk-size 4 --out seed --no-plots -q");
    sandbox.ok("store seq.npy --chunk-size 4 --decay 0.1 --out fixed --no-plots -q");
    sandbox.ok("store seq.npy --chunk-size 4 --decay-bias 1 --out biased --no-plots -q");
    // A memory that has no chunk size.
    std::fs::copy(shipped("tests/golden/heads/weights.safetensors"), sandbox.path("raw.safetensors"))
        .unwrap();
    let mut said = Transcript::of_rejected(
        &sandbox,
        &[
            "export paper/memory.safetensors --out x.safetensors",
            "export weights.safetensors --out x.safetensors",
            "export seed/memory.safetensors --chunk-size 8 --out x.safetensors",
            "export seed/memory.safetensors --out x.safetensors --args x.safetensors",
            "export fixed/memory.safetensors --out x.safetensors",
            "export biased/memory.safetensors --out x.safetensors",
            "export raw.safetensors --out x.safetensors",
            "export seed/memory.safetensors --out seed/memory.safetensors",
        ],
    );
    let line = "export seed/memory.safetensors --out x.safetensors";
    let output = sandbox.run(line);
    said.ran(&sandbox, line, &output);
    insta::assert_snapshot!(said);
}
