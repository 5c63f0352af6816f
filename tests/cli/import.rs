//! `nmem import`, and memories of other programs through the program: checkpoints in, files out.

use std::fs::File;
use std::path::Path;

use ndarray::{Array3, Axis, concatenate, s};
use ndarray_npy::{NpzReader, NpzWriter, ReadNpyExt, WriteNpyExt};
use serde_json::Value;

use crate::support::assert_close_to_largest;
use crate::transcript::Transcript;
use crate::{Raw, Sandbox, write_tensors};

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden-0.5.5")
}

/// Creates a sandbox with the files of a case.
fn with_case(name: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    for entry in std::fs::read_dir(root().join(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), sandbox.path(entry.file_name().to_str().unwrap())).unwrap();
    }
    sandbox
}

const IMPORT: &str =
    "import weights.safetensors --from titans-pytorch-0.5.5 --args args.json --out m.safetensors";

fn sequence(path: &Path) -> Array3<f32> {
    Array3::read_npy(File::open(path).unwrap()).unwrap()
}

/// Returns the retrieved tokens of a case, read in its pieces, and what the library retrieved.
fn retrieved(sandbox: &Sandbox, name: &str, dtype: &str) -> (Array3<f64>, Array3<f64>) {
    let case: Value = serde_json::from_slice(&sandbox.bytes("case.json")).unwrap();
    let mut npz = NpzReader::new(File::open(sandbox.path("expected.npz")).unwrap()).unwrap();
    let of_parts = if case["reads_equal_one_go"] == false { "retrieved_one_go" } else { "retrieved" };
    let expected: Array3<f64> = npz.by_name(of_parts).unwrap();
    sandbox.ok(&format!("{IMPORT} --force -q"));
    let flags = format!("--dtype {dtype} --no-plots -q --force");
    if name == "single_token_read" {
        sandbox.ok(&format!("store store_seq.npy --memory m.safetensors --out stored {flags}"));
        sandbox.ok(&format!(
            "retrieve seq.npy --memory stored/memory.safetensors --out read --dtype {dtype} -q --force"
        ));
        return (sandbox.floats("read/retrieved.npy").into_dimensionality().unwrap(), expected);
    }
    let seq = sequence(&sandbox.path("seq.npy"));
    let store = if case["store_seq"] == true { "--store-seq store_seq.npy" } else { "" };
    let (mut memory, mut start, mut parts) = ("m.safetensors".to_owned(), 0, Vec::new());
    for (i, tokens) in case["pieces"].as_array().unwrap().iter().enumerate() {
        let end = start + usize::try_from(tokens.as_u64().unwrap()).unwrap();
        let part = seq.slice(s![.., start..end, ..]).to_owned();
        part.write_npy(File::create(sandbox.path("part.npy")).unwrap()).unwrap();
        sandbox.ok(&format!("retrieve part.npy --online --memory {memory} {store} --out out-{i} {flags}"));
        parts.push(sandbox.floats(&format!("out-{i}/retrieved.npy")).into_dimensionality().unwrap());
        (memory, start) = (format!("out-{i}/memory.safetensors"), end);
    }
    let views: Vec<_> = parts.iter().map(|part: &Array3<f64>| part.view()).collect();
    (concatenate(Axis(1), &views).unwrap(), expected)
}

/// All cases, state carried from piece to piece by the memory's file.
#[test]
fn memories_of_0_5_5_agree_with_the_library() {
    let mut cases = 0;
    for entry in std::fs::read_dir(root()).unwrap().map(|entry| entry.unwrap()) {
        if !entry.path().is_dir() {
            continue;
        }
        let name = entry.file_name().into_string().unwrap();
        let sandbox = with_case(&name);
        for (dtype, tolerance) in [("f64", 1e-9), ("f32", 1e-4)] {
            let (got, expected) = retrieved(&sandbox, &name, dtype);
            let what = format!("{name}, {dtype}");
            assert_close_to_largest(&what, got.view().into_dyn(), expected.view().into_dyn(), tolerance);
        }
        cases += 1;
    }
    assert_eq!(cases, 40);
}

/// A checkpoint of a larger model: the memory is found, other tensors are ignored and named.
#[test]
fn memories_inside_larger_models() {
    let sandbox = with_case("default");
    let tensors = sandbox.tensors("weights.safetensors");
    let other = tensors.values().next().unwrap();
    let mut larger: std::collections::BTreeMap<String, Raw> =
        tensors.iter().map(|(name, tensor)| (format!("layers.2.mem.{name}"), tensor.clone())).collect();
    larger.insert("layers.2.attn.to_keys.weight".into(), other.clone());
    larger.insert("embedding.weight".into(), other.clone());
    write_tensors(&sandbox.path("model.safetensors"), &larger);
    let line =
        "import model.safetensors --from titans-pytorch-0.5.5 --args args.json --out found.safetensors";
    let report: Value = serde_json::from_str(&sandbox.ok(&format!("{line} --format json")).out).unwrap();
    assert_eq!(report["prefix"], "layers.2.mem.");
    let ignored: Vec<_> =
        report["ignored"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(ignored.contains(&"embedding.weight") && ignored.contains(&"layers.2.attn.to_keys.weight"));
    assert!(ignored.contains(&"layers.2.mem.memory_model.norm.gamma"), "templates are not used: {ignored:?}");
    assert_eq!(report["program"]["model"], "mlp");
    sandbox.ok(&format!("{IMPORT} -q"));
    assert_eq!(sandbox.bytes("found.safetensors"), sandbox.bytes("m.safetensors"), "whatever the prefix");

    // Two memories need a prefix.
    for (name, tensor) in &tensors {
        larger.insert(format!("layers.5.mem.{name}"), tensor.clone());
    }
    write_tensors(&sandbox.path("two.safetensors"), &larger);
    let two = "import two.safetensors --from titans-pytorch-0.5.5 --args args.json --out two-m.safetensors";
    let mut said = Transcript::new();
    said.reject(&sandbox, two);
    said.reject(&sandbox, &format!("{two} --prefix layers.3.mem."));
    insta::assert_snapshot!(said);
    sandbox.ok(&format!("{two} --prefix layers.5.mem. -q"));
    assert_eq!(sandbox.bytes("two-m.safetensors"), sandbox.bytes("m.safetensors"));
}

/// The table for people: what was taken and ignored, and the choices that the arguments make.
#[test]
fn imports_say_what_they_took() {
    let sandbox = with_case("default");
    let tensors = sandbox.tensors("weights.safetensors");
    let mut larger = tensors.clone();
    let mut said = Transcript::new();
    let mut import = |file: &str, flags: &str| {
        let line = format!("import {file} --from titans-pytorch-0.5.5 --out {file}.memory {flags}");
        let output = sandbox.ok(line.trim_end());
        said.entry(line.trim_end(), output.code, &format!("{}{}", output.out, output.err));
    };
    import("weights.safetensors", "--args args.json");
    larger.insert("embedding.weight".into(), tensors.values().next().unwrap().clone());
    write_tensors(&sandbox.path("larger.safetensors"), &larger);
    import("larger.safetensors", "--args args.json");
    for layer in 0..6 {
        larger.insert(format!("layers.{layer}.weight"), tensors.values().next().unwrap().clone());
    }
    let inside: std::collections::BTreeMap<String, Raw> =
        larger.iter().map(|(name, tensor)| (format!("mem.{name}"), tensor.clone())).collect();
    write_tensors(&sandbox.path("inside.safetensors"), &inside);
    import("inside.safetensors", "--args args.json");
    // No chunk size is given.
    import("weights.safetensors", "--force");
    insta::assert_snapshot!(said);
}

#[test]
fn npz_checkpoints_are_imported_too() {
    let sandbox = with_case("heads2");
    let mut npz = NpzWriter::new(File::create(sandbox.path("weights.npz")).unwrap());
    for (name, tensor) in sandbox.tensors("weights.safetensors") {
        npz.add_array(name, &tensor.floats().mapv(|x| x as f32)).unwrap();
    }
    npz.finish().unwrap();
    sandbox.ok(&format!("{IMPORT} -q"));
    sandbox.ok("import weights.npz --from titans-pytorch-0.5.5 --args args.json --out npz.safetensors -q");
    assert_eq!(sandbox.bytes("npz.safetensors"), sandbox.bytes("m.safetensors"));
}

/// A checkpoint of shared weights has each under two names. One of them is enough.
#[test]
fn weights_that_heads_share_have_two_names() {
    let sandbox = with_case("heads4_shared");
    sandbox.ok(&format!("{IMPORT} -q"));
    let all = sandbox.tensors("weights.safetensors");
    for dropped in ["memory_model_parameters.", "memory_model."] {
        let kept = all.iter().filter(|(name, _)| !name.starts_with(dropped));
        let kept: std::collections::BTreeMap<String, Raw> =
            kept.map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
        assert!(kept.len() < all.len());
        write_tensors(&sandbox.path("once.safetensors"), &kept);
        sandbox.ok("import once.safetensors --from titans-pytorch-0.5.5 --args args.json --out once-m.safetensors --force -q");
        assert_eq!(sandbox.bytes("once-m.safetensors"), sandbox.bytes("m.safetensors"), "without {dropped}");
    }
}

/// Keys and values become one matrix.
#[test]
fn keys_and_values_of_different_shapes_are_rejected() {
    let sandbox = with_case("default");
    let mut tensors = sandbox.tensors("weights.safetensors");
    let other = tensors["to_adaptive_step.0.weight"].clone();
    tensors.insert("to_values.weight".to_owned(), other);
    write_tensors(&sandbox.path("weights.safetensors"), &tensors);
    let message = sandbox.rejected(IMPORT);
    assert!(message.contains("expected to_values like to_keys, f32 [16, 16], got f32 [1, 16]"), "{message}");
}

/// Each rejected import and its whole message.
#[test]
fn rejected_imports() {
    let sandbox = with_case("default");
    let mut args: Value = serde_json::from_slice(&sandbox.bytes("args.json")).unwrap();
    let mut said = Transcript::new();
    for (key, value) in [
        ("momentum_order", serde_json::json!(2)),
        ("spectral_norm_surprises", true.into()),
        ("max_grad_norm", 0.5.into()),
        ("chunk_size", serde_json::json!([8, 4])),
        ("chunk_size", 0.into()),
        ("batch_size", 6.into()),
        ("qk_rmsnorm", true.into()),
        ("momentum", false.into()),
        ("heads", 0.into()),
        ("heads", 3.into()),
        ("dim", 7.into()),
        ("model", serde_json::json!({"class": "MemoryMLP", "depth": 3})),
        ("model", serde_json::json!({"class": "MemoryMLP", "depth": 1})),
        ("model", serde_json::json!({"class": "MyMemory"})),
        ("dim_head", serde_json::json!(u64::MAX)),
        ("chunk_size", "4".into()),
        ("default_mlp_kwargs", serde_json::json!({"depth": 2})),
        ("activation", "ReLU".into()),
        ("unknown", 1.into()),
    ] {
        let old = args[key].clone();
        args[key] = value.clone();
        sandbox.file("args.json", args.to_string());
        said.given(&format!("{key}: {value}"));
        said.reject(&sandbox, IMPORT);
        match old {
            Value::Null if !["activation", "max_grad_norm", "batch_size"].contains(&key) => {
                drop(args.as_object_mut().unwrap().remove(key));
            }
            old => args[key] = old,
        }
    }
    sandbox.file("args.json", args.to_string());
    for line in [
        "import weights.safetensors --from titans-pytorch-0.0.17 --out m.safetensors",
        "import weights.safetensors --from titans-pytorch-0.5.5 --args args.json --model mlp --out m.safetensors",
        "import seq.npy --from titans-pytorch-0.5.5 --out m.safetensors",
        "import absent.safetensors --from titans-pytorch-0.5.5 --out m.safetensors",
        "import weights.safetensors --from titans-pytorch-0.5.5 --args args.json --out seq.npy",
    ] {
        said.reject(&sandbox, line);
    }
    insta::assert_snapshot!(said);
}

/// Arguments that contradict a checkpoint of 0.0.17, another flag, or the version.
#[test]
fn rejected_imports_of_0_0_17() {
    let sandbox = Sandbox::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden-0.0.17-mlp/depth4");
    std::fs::copy(golden.join("weights.safetensors"), sandbox.path("weights.safetensors")).unwrap();
    let line = "import weights.safetensors --from titans-pytorch-0.0.17 --args args.json --out m.safetensors";
    let mut said = Transcript::new();
    for args in [
        serde_json::json!({"default_mlp_kwargs": {"depth": 3}}),
        serde_json::json!({"model": {"class": "MemoryMLP", "depth": 5}}),
        serde_json::json!({"model": {"class": "MemorySwiGluMLP"}}),
        serde_json::json!({"pre_rmsnorm": false}),
        serde_json::json!({"post_rmsnorm": false}),
        serde_json::json!({"chunk_size": [8, 4]}),
        serde_json::json!({"batch_size": 8}),
        serde_json::json!({"qk_rmsnorm": true}),
        serde_json::json!({"gated_transition": true}),
        serde_json::json!({"activation": "SiLU"}),
        serde_json::json!({"momentum": false}),
        serde_json::json!({"default_model_kwargs": {"depth": 4}}),
    ] {
        sandbox.file("args.json", args.to_string());
        said.given(&format!("args.json: {args}"));
        said.reject(&sandbox, line);
    }
    let args = serde_json::json!({"default_mlp_kwargs": {"depth": 4}, "chunk_size": [4, 4]});
    sandbox.file("args.json", args.to_string());
    said.given(&format!("args.json: {args}"));
    said.reject(&sandbox, &format!("{line} --model attention"));
    sandbox.file("args.json", r#"{"chunk_size": 4}"#);
    said.given(r#"args.json: {"chunk_size": 4}"#);
    said.reject(&sandbox, &format!("{line} --model linear"));
    sandbox.file("args.json", args.to_string());
    insta::assert_snapshot!(said);
    sandbox.ok(&format!("{line} --model mlp -q"));
    let from_flags = "--model mlp --chunk-size 4 --out flags.safetensors -q";
    sandbox.ok(&format!("import weights.safetensors --from titans-pytorch-0.0.17 {from_flags}"));
    assert_eq!(sandbox.bytes("m.safetensors"), sandbox.bytes("flags.safetensors"));
}

/// A file of four weights could hold either model of 0.0.17: nothing is computed before one is named.
#[test]
fn either_model_of_0_0_17() {
    let sandbox = Sandbox::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden-0.0.17-mlp/depth4");
    for name in ["weights.safetensors", "seq.npy", "expected.npz"] {
        std::fs::copy(golden.join(name), sandbox.path(name)).unwrap();
    }
    let mut said = Transcript::new();
    said.reject(&sandbox, "retrieve seq.npy --online --memory weights.safetensors --chunk-size 4");
    said.reject(
        &sandbox,
        "import weights.safetensors --from titans-pytorch-0.0.17 --chunk-size 4 --out m.safetensors",
    );
    said.reject(&sandbox, "store seq.npy --memory weights.safetensors --chunk-size 4 --model swiglu");
    std::fs::copy(
        golden.with_file_name("depth1").join("weights.safetensors"),
        sandbox.path("one.safetensors"),
    )
    .unwrap();
    said.reject(&sandbox, "retrieve seq.npy --online --memory one.safetensors --chunk-size 4");
    let inspected = sandbox.ok("inspect weights.safetensors").out;
    said.entry("inspect weights.safetensors", Some(0), inspected.lines().nth(2).unwrap());
    insta::assert_snapshot!(said);

    let mut npz = NpzReader::new(File::open(sandbox.path("expected.npz")).unwrap()).unwrap();
    let expected: Array3<f64> = npz.by_name("retrieved").unwrap();
    let flags = "--chunk-size 4 --dtype f64 --no-plots -q";
    sandbox
        .ok(&format!("retrieve seq.npy --online --memory weights.safetensors --model mlp --out mlp {flags}"));
    sandbox.ok("import weights.safetensors --from titans-pytorch-0.0.17 --model mlp --chunk-size 4 --out m.safetensors -q");
    sandbox.ok("retrieve seq.npy --online --memory m.safetensors --out imported --dtype f64 --no-plots -q");
    for out in ["mlp", "imported"] {
        let got = sandbox.floats(&format!("{out}/retrieved.npy"));
        assert_close_to_largest(out, got.view(), expected.view().into_dyn(), 1e-10);
    }
    sandbox.ok(&format!(
        "retrieve seq.npy --online --memory weights.safetensors --model attention --out other {flags}"
    ));
    assert_ne!(sandbox.bytes("other/retrieved.npy"), sandbox.bytes("mlp/retrieved.npy"));
}

/// Choices of a program: from flags, files and presets into run.json and the memory, which then needs none of them.
#[test]
fn choices_are_resolved_and_saved() {
    let sandbox = with_case("default");
    sandbox.file(
        "run.toml",
        "data = \"seq.npy\"\npreset = \"titans-0.5.5\"\nmodel = \"swiglu\"\nloss = \"huber\"\n",
    );
    sandbox
        .ok("store --config run.toml --huber-delta 0.5 --chunk-size 4 --refresh 8 --out out --no-plots -q");
    let run: Value = serde_json::from_slice(&sandbox.bytes("out/run.json")).unwrap();
    let expected = [
        ("model", serde_json::json!("swiglu")),
        ("depth", 1.into()),
        ("residual_norm", true.into()),
        ("loss", "huber".into()),
        ("huber_delta", 0.5.into()),
        ("loss_power", Value::Null),
        ("rate_per", "token".into()),
        ("decay_of", "weights".into()),
        ("refresh", 8.into()),
        ("reads", "complete".into()),
        ("per_head", true.into()),
    ];
    for (name, value) in &expected {
        assert_eq!(run["config"][name], *value, "{name}");
    }
    sandbox.ok("store seq.npy --memory out/memory.safetensors --out on --no-plots -q");
    let on: Value = serde_json::from_slice(&sandbox.bytes("on/run.json")).unwrap();
    for (name, value) in &expected {
        assert_eq!(on["config"][name], *value, "{name}, continued");
    }
    let inspected: Value =
        serde_json::from_str(&sandbox.ok("inspect out/memory.safetensors --format json").out).unwrap();
    for (name, value) in &expected {
        assert_eq!(inspected[0]["program"][name], *value, "{name}, inspected");
    }
    let names = ["residual_norm.gamma", "weights.0.0", "weights.0.1", "norm.gamma"];
    assert_eq!(inspected[0]["weights"], serde_json::json!(names));

    let mut said = Transcript::new();
    for line in [
        "store seq.npy --depth 2",
        "store seq.npy --model mlp --depth 0",
        "store seq.npy --model mlp --expansion 0.001",
        "store seq.npy --model mlp --rank 4",
        "store seq.npy --huber-delta 2",
        "store seq.npy --loss p-norm --loss-power 1",
        "store seq.npy --max-rate 0.1",
        "store seq.npy --refresh 10",
        "store seq.npy --gated-transition",
        "store seq.npy --model attention --chunk-size 1",
        "store seq.npy --memory out/memory.safetensors --loss mean-square",
        "store seq.npy --memory out/memory.safetensors --model mlp",
        "store seq.npy --memory out/memory.safetensors --preset titans-0.5.5",
        "store seq.npy --preset titans",
        "store seq.npy --no-momentum --momentum 0.5",
        "store seq.npy --no-momentum --momentum-bias 1",
        "store seq.npy --no-momentum --restart-momentum",
    ] {
        said.reject(&sandbox, line);
    }
    insta::assert_snapshot!(said);
}

/// Parts of a program are axes of a sweep.
#[test]
fn programs_in_sweeps() {
    let sandbox = with_case("default");
    let grid = "[fixed]\ndata = \"seq.npy\"\npreset = \"titans-0.5.5\"\nchunk_size = 4\n\n[grid]\nmodel = [\"mlp\", \"linear\"]\nrefresh = [0, 4]\n";
    sandbox.file("grid.toml", grid);
    sandbox.ok("sweep grid.toml --out swept -q --no-plots");
    let table = sandbox.csv("swept/results.csv");
    assert_eq!(table.rows.len(), 4);
    let losses: std::collections::BTreeSet<_> =
        table.numbers("loss_before_mean").into_iter().map(f64::to_bits).collect();
    assert_eq!(losses.len(), 4, "each model and schedule has its own losses");
}
