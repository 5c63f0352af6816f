//! Limits of numbers: the same on the command line, in a configuration file and in a saved memory; and what is reported
//! of numbers that are allowed but do harm.

use std::collections::HashMap;

use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::{Sandbox, Transcript, tokens, without_numbers};

/// seq.npy (40 tokens of dim 4) and made/memory.safetensors of two heads.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[40, 4], 1));
    sandbox.ok("store seq.npy --heads 2 --chunk-size 4 --out made -q");
    sandbox
}

/// changed.safetensors: the memory, its configuration replaced.
fn with_config(sandbox: &Sandbox, config: &str) {
    let tensors = sandbox.tensors("made/memory.safetensors");
    let views = tensors.iter().map(|(name, raw)| {
        (name, TensorView::new(raw.dtype, raw.shape.clone(), &raw.data).expect("as it was read"))
    });
    let metadata = HashMap::from([("nmem".to_owned(), config.to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), &sandbox.path("changed.safetensors")).unwrap();
}

fn config(sandbox: &Sandbox) -> Value {
    sandbox.memory_config("made/memory.safetensors")
}

/// The one warning on stderr.
fn warning(err: &str) -> &str {
    let warning = err.strip_prefix("warning: ").and_then(|rest| rest.strip_suffix('\n'));
    warning.filter(|text| !text.contains('\n')).unwrap_or_else(|| panic!("{err}"))
}

const STORE_CHANGED: &str = "store seq.npy --memory changed.safetensors --out out";

#[test]
fn as_it_was_written() {
    let sandbox = sandbox();
    with_config(&sandbox, &config(&sandbox).to_string());
    sandbox.ok(&format!("{STORE_CHANGED} -q"));
    assert_eq!(config(&sandbox), sandbox.memory_config("out/memory.safetensors"));
    let keys: Vec<_> = config(&sandbox).as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        keys.join(" "),
        "chunk_size decay dim dim_head format heads learning_rate model momentum nmem post_norm pre_norm"
    );
}

#[test]
fn gates_of_flags_files_and_memories() {
    let sandbox = sandbox();
    let mut said = Transcript::new();
    for (gate, value) in [
        ("learning_rate", "-0.5"),
        ("momentum", "-1"),
        ("decay", "-1"),
        ("decay", "1.5"),
        ("decay", "1.0000000000000002"),
    ] {
        let flag = format!("--{}", gate.replace('_', "-"));
        let message = said.reject(&sandbox, &format!("store seq.npy {flag} {value} --out out"));
        sandbox.file("settings.toml", format!("data = \"seq.npy\"\n{gate} = {value}\n"));
        assert_eq!(sandbox.rejected("store --config settings.toml --out out"), message);
        let mut config = config(&sandbox);
        config[gate] = json!({ "pinned": serde_json::from_str::<Value>(value).unwrap() });
        with_config(&sandbox, &config.to_string());
        said.reject(&sandbox, STORE_CHANGED);
    }
    // Not in JSON, which has no such numbers.
    for flag in ["--momentum nan", "--learning-rate inf", "--decay inf", "--decay-bias nan"] {
        said.reject(&sandbox, &format!("store seq.npy {flag} --out out"));
    }
    for allowed in ["--decay 1 --momentum 0 --learning-rate 0", "--decay 0 --decay-bias 0 --decay learned"] {
        let line = format!("store seq.npy {allowed} --out allowed --force -q");
        said.ran(&sandbox, &line, &sandbox.run(&line));
    }
    insta::assert_snapshot!(said);
}

#[test]
fn chunk_sizes_of_flags_files_and_memories() {
    let sandbox = sandbox();
    let mut said = Transcript::new();
    for size in ["0", "1", "16385", "9223372036854775807"] {
        let message = said.reject(&sandbox, &format!("store seq.npy --chunk-size {size} --out out"));
        for command in ["retrieve seq.npy", "retrieve seq.npy --online --heads 2 --retention 2"] {
            let line = format!("{command} --chunk-size {size} --out out");
            assert_eq!(sandbox.rejected(&line), message, "{command}");
        }
        sandbox.file("settings.toml", format!("data = \"seq.npy\"\nchunk_size = {size}\n"));
        assert_eq!(sandbox.rejected("store --config settings.toml --out out"), message);
        let mut config = config(&sandbox);
        config["chunk_size"] = serde_json::from_str(size).unwrap();
        with_config(&sandbox, &config.to_string());
        said.reject(&sandbox, STORE_CHANGED);
    }
    insta::assert_snapshot!(said);
    // The longest chunk is no burden where data are short.
    sandbox.ok("retrieve seq.npy --online --heads 2 --retention 2 --chunk-size 16384 --out long -q");
}

#[test]
fn invalid_configurations() {
    let sandbox = sandbox();
    let good = config(&sandbox).to_string();
    let mut said = Transcript::new();
    let mut reject = |change: &str, config: &str| {
        with_config(&sandbox, config);
        let message = sandbox.rejected(STORE_CHANGED);
        assert!(message.starts_with("changed.safetensors"), "{message}");
        // Columns depend on the version.
        let (before, column) = message.split_once(" column ").unwrap_or((&message, ""));
        let after = column.trim_start_matches(|c: char| c.is_ascii_digit());
        let message = if column.is_empty() { message.clone() } else { format!("{before} column N{after}") };
        said.given(change);
        said.error(STORE_CHANGED, 2, &message);
    };
    for (key, value) in [
        ("chunk", json!(4)),
        ("dimensions", json!({})),
        ("chunk_size", json!("4")),
        ("chunk_size", json!(4.0)),
        ("chunk_size", json!(-4)),
        ("pre_norm", json!(1)),
        ("decay", json!(0.5)),
        ("decay", json!({ "pinned": "0.5" })),
        ("decay", json!({ "pinned": 0.5, "learned": 0.0 })),
        ("decay", json!({ "fixed": 0.5 })),
        ("decay", json!(null)),
        ("format", json!(3)),
        ("model", json!("mlp")),
    ] {
        let mut config = config(&sandbox);
        let change = format!("{key}: {value}");
        config[key] = value;
        reject(&change, &config.to_string());
    }
    for (text, other) in [
        ("\"chunk_size\":4,", ""),
        ("\"chunk_size\":4,", "\"chunk_size\":4,\"chunk_size\":4,"),
        ("\"chunk_size\":4,", "\"chunk_size\":1e999,"),
        ("\"chunk_size\":4,", "\"chunk_size\":99999999999999999999,"),
        ("{\"learned\":0.0}", "{\"pinned\":1e999}"),
    ] {
        reject(&format!("{text} replaced by {other:?}"), &good.replace(text, other));
    }
    reject("an x at the end", &format!("{good}x"));
    reject("nothing", "");
    reject("[]", "[]");
    insta::assert_snapshot!(said);
}

/// One run of a sweep that cannot be leaves the others.
#[test]
fn a_chunk_size_of_a_sweep() {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[40, 4], 1));
    sandbox.file(
        "sweep.toml",
        "run = \"retrieve-online\"\ndata = \"seq.npy\"\nheads = 2\nretention = 2\n[grid]\nchunk_size = [4, 1048577]\n",
    );
    let output = sandbox.run("sweep sweep.toml --out out -q --no-plots");
    assert!(matches!(output.code, Some(1 | 2)), "{}", output.err);
    assert!(output.err.contains("1048577") && output.err.contains("16384"), "{}", output.err);
    if output.code == Some(1) {
        assert_eq!(sandbox.csv("out/results.csv").texts("status"), ["ok", "failed"]);
    }
}

/// Sizes that no machine has memory for are rejected before any is taken.
#[test]
fn more_memory_than_there_is() {
    let sandbox = Sandbox::new();
    // A .npy of many sequences without a token.
    let mut header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 0, 4), }".to_owned();
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    bytes.extend(header.bytes());
    sandbox.file("many.npy", bytes);
    let line = "store many.npy --out out";
    let message = sandbox.rejected(line);
    assert!(message.contains("512000.0 GB"), "{message}");
    let mut said = Transcript::new();
    said.error(line, 2, &without_numbers(&message));
    insta::assert_snapshot!(said);
}

/// Squared errors that leave f32 do not lose the memory, with a probe or without.
#[test]
fn losses_beyond_f32() {
    let sandbox = sandbox();
    let line =
        "store seq.npy --heads 2 --chunk-size 4 --learning-rate 1e12 --momentum 0.9 --decay 0.1 --no-plots";
    let probed = sandbox.ok(&format!("{line} --out probed"));
    sandbox.ok(&format!("{line} --no-probe --out plain"));
    assert_eq!(sandbox.bytes("probed/memory.safetensors"), sandbox.bytes("plain/memory.safetensors"));
    let table = sandbox.csv("probed/metrics.csv");
    let beyond = table.numbers("loss_after").into_iter().filter(|loss| *loss > f64::from(f32::MAX)).count();
    assert!(beyond > 0, "{:?}", table.texts("loss_after"));
    assert!(sandbox.json("probed/run.json")["diverged"].is_null());
    let mut said = Transcript::new();
    said.ran(&sandbox, &format!("{line} --out probed"), &probed);
    assert_eq!(sandbox.json("probed/run.json")["warnings"], json!([warning(&probed.err)]));
    assert_eq!(sandbox.json("plain/run.json")["warnings"], json!([]));
    // One chunk alone: what it wrote shows at its end.
    sandbox.npy("one.npy", &tokens(&[4, 4], 1));
    let line = "store one.npy --heads 2 --chunk-size 4 --learning-rate 1e6 --no-plots --out one";
    said.ran(&sandbox, line, &sandbox.ok(line));
    insta::assert_snapshot!(said);
    // Figures of such a run can be made.
    sandbox.ok("plot probed --y loss_after --out figure -q");
    sandbox.ok("plot probed --out timeline -q");
}

/// Reads that leave f32 do not lose a memory that is finite: online it is the one that a store leaves.
#[test]
fn reads_beyond_f32() {
    let sandbox = Sandbox::new();
    sandbox.ok("generate recall --tokens 64 --dim 8 --seed 3 --out seq.npy -q");
    let line = "seq.npy --heads 1 --chunk-size 8 --learning-rate 1e25 --momentum 0 --decay 0 --no-plots -q";
    sandbox.ok(&format!("store {line} --no-probe --out stored"));
    let line = format!("retrieve --online {line} --out online");
    let output = sandbox.run(&line);
    assert_eq!(output.code, Some(1), "{}", output.err);
    let mut said = Transcript::new();
    said.entry(&line, output.code, &without_numbers(&output.err));
    insta::assert_snapshot!(said);
    assert_eq!(sandbox.names("online"), ["memory.safetensors", "metrics.csv", "run.json"]);
    let run = sandbox.json("online/run.json");
    assert_eq!((&run["rows"], &run["diverged"]["quantity"]), (&json!(8), &json!("retrieved")));
    let state = |name: &str| {
        let tensors = sandbox.tensors(&format!("{name}/memory.safetensors")).into_iter();
        tensors.filter(|(name, _)| name != "state.tokens").collect::<Vec<_>>()
    };
    assert!(state("online") == state("stored"));
}

#[test]
fn momentum_above_one() {
    let sandbox = sandbox();
    let line = "store seq.npy --heads 2 --chunk-size 4 --learning-rate 1e-6 --no-plots";
    let output = sandbox.ok(&format!("{line} --momentum 1.5 --out out"));
    let mut said = Transcript::new();
    said.ran(&sandbox, &format!("{line} --momentum 1.5 --out out"), &output);
    insta::assert_snapshot!(said);
    let warning = warning(&output.err);
    assert_eq!(sandbox.json("out/run.json")["warnings"], json!([warning]));
    assert_eq!(sandbox.ok(&format!("{line} --momentum 1 --out one")).err, "");
    // A saved memory keeps it.
    let output = sandbox.ok("store seq.npy --memory out/memory.safetensors --no-plots --out on");
    assert!(output.err.contains(warning), "{}", output.err);
    // Reading alone does not use it.
    assert_eq!(sandbox.ok("retrieve seq.npy --memory out/memory.safetensors --out read").err, "");
}

#[test]
fn labels_beyond_the_data() {
    let sandbox = sandbox();
    sandbox.file("labels.csv", "position,segment\n0,a\n39,a\n40,b\n41,b\n99,a\n");
    sandbox.file("fitting.csv", "position,segment\n0,a\n39,b\n");
    let line = "store seq.npy --heads 2 --chunk-size 4 --learning-rate 1e-6";
    let output = sandbox.ok(&format!("{line} --labels labels.csv --out out"));
    let mut said = Transcript::new();
    said.ran(&sandbox, &format!("{line} --labels labels.csv --out out"), &output);
    insta::assert_snapshot!(said);
    assert_eq!(sandbox.json("out/run.json")["warnings"], json!([warning(&output.err)]));
    assert_eq!(sandbox.ok(&format!("{line} --labels fitting.csv --out fits")).err, "");
}
