//! Limits of numbers: the same on the command line, in a configuration file and in a saved memory; and what is reported
//! of numbers that are allowed but do harm.

use std::collections::HashMap;

use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::{Sandbox, tokens};

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
    let positive = "use a finite value of 0 or more";
    let fraction =
        "is above 1: it is the fraction of the update that each chunk forgets; use a value from 0 to 1";
    for (gate, value, problem) in [
        ("learning_rate", "-0.5", format!("is below 0; {positive}")),
        ("momentum", "-1", format!("is below 0; {positive}")),
        ("decay", "-1", "is below 0; use a value from 0 to 1".to_owned()),
        ("decay", "1.5", fraction.to_owned()),
        ("decay", "1.0000000000000002", fraction.to_owned()),
    ] {
        let flag = format!("--{}", gate.replace('_', "-"));
        let message = sandbox.rejected(&format!("store seq.npy {flag} {value} --out out"));
        assert_eq!(message, format!("{flag} {value} {problem}"));
        sandbox.file("settings.toml", format!("data = \"seq.npy\"\n{gate} = {value}\n"));
        assert_eq!(sandbox.rejected("store --config settings.toml --out out"), message);
        let mut config = config(&sandbox);
        config[gate] = json!({ "pinned": serde_json::from_str::<Value>(value).unwrap() });
        with_config(&sandbox, &config.to_string());
        assert_eq!(sandbox.rejected(STORE_CHANGED), format!("changed.safetensors: {gate} {value} {problem}"));
    }
    // Not in JSON, which has no such numbers.
    for (flag, message) in [
        ("--momentum nan", "--momentum NaN is not finite; use a finite value of 0 or more"),
        ("--learning-rate inf", "--learning-rate inf is not finite; use a finite value of 0 or more"),
        ("--decay inf", "--decay inf is not finite; use a value from 0 to 1"),
        ("--decay-bias nan", "--decay-bias NaN is not finite; use a finite number"),
    ] {
        assert_eq!(sandbox.rejected(&format!("store seq.npy {flag} --out out")), message);
    }
    for allowed in ["--decay 1 --momentum 0 --learning-rate 0", "--decay 0 --decay-bias 0 --decay learned"] {
        let output = sandbox.run(&format!("store seq.npy {allowed} --out allowed --force -q"));
        assert!(matches!(output.code, Some(0 | 2)) && !output.err.contains("; use "), "{}", output.err);
    }
}

#[test]
fn chunk_sizes_of_flags_files_and_memories() {
    let sandbox = sandbox();
    let (few, many) = (
        "is below 2: a token of the attention memory looks back within its chunk; use 2 to 16384",
        "is above 16384: attention within a chunk takes the square of its size in memory; use 2 to 16384",
    );
    for (size, problem) in [("0", few), ("1", few), ("16385", many), ("9223372036854775807", many)] {
        for command in
            ["store seq.npy", "retrieve seq.npy", "retrieve seq.npy --online --heads 2 --retention 2"]
        {
            let message = sandbox.rejected(&format!("{command} --chunk-size {size} --out out"));
            assert_eq!(message, format!("--chunk-size {size} {problem}"), "{command}");
        }
        sandbox.file("settings.toml", format!("data = \"seq.npy\"\nchunk_size = {size}\n"));
        let message = sandbox.rejected("store --config settings.toml --out out");
        assert_eq!(message, format!("--chunk-size {size} {problem}"));
        let mut config = config(&sandbox);
        config["chunk_size"] = serde_json::from_str(size).unwrap();
        with_config(&sandbox, &config.to_string());
        assert_eq!(
            sandbox.rejected(STORE_CHANGED),
            format!("changed.safetensors: chunk_size {size} {problem}")
        );
    }
    // The longest chunk is no burden where data are short.
    sandbox.ok("retrieve seq.npy --online --heads 2 --retention 2 --chunk-size 16384 --out long -q");
}

#[test]
fn invalid_configurations() {
    let sandbox = sandbox();
    let good = config(&sandbox).to_string();
    let edited = |key: &str, value: Value| {
        let mut config = config(&sandbox);
        config[key] = value;
        config.to_string()
    };
    for (config, part) in [
        (edited("chunk", json!(4)), "unknown field `chunk`"),
        (edited("dimensions", json!({})), "unknown field `dimensions`"),
        (edited("chunk_size", json!("4")), "invalid type: string \"4\""),
        (edited("chunk_size", json!(4.0)), "invalid type: floating point `4.0`"),
        (edited("chunk_size", json!(-4)), "invalid value: integer `-4`"),
        (edited("pre_norm", json!(1)), "invalid type: integer `1`"),
        (edited("decay", json!(0.5)), "expected value"),
        (edited("decay", json!({ "pinned": "0.5" })), "invalid type: string \"0.5\""),
        (edited("decay", json!({ "pinned": 0.5, "learned": 0.0 })), "expected value at line 1 column"),
        (edited("decay", json!({ "fixed": 0.5 })), "unknown variant `fixed`"),
        (edited("decay", json!(null)), "expected value at line 1 column"),
        (edited("format", json!(2)), "got format 2, written by nmem \"0.1.0\""),
        (edited("model", json!("mlp")), "got model \"mlp\", written by nmem \"0.1.0\""),
        (good.replace("\"chunk_size\":4,", ""), "missing field `chunk_size`"),
        (
            good.replace("\"chunk_size\":4,", "\"chunk_size\":4,\"chunk_size\":4,"),
            "duplicate field `chunk_size`",
        ),
        (good.replace("\"chunk_size\":4,", "\"chunk_size\":1e999,"), "number out of range"),
        (
            good.replace("\"chunk_size\":4,", "\"chunk_size\":99999999999999999999,"),
            "invalid type: floating point",
        ),
        (good.replace("{\"learned\":0.0}", "{\"pinned\":1e999}"), "number out of range"),
        (format!("{good}x"), "trailing characters"),
        (String::new(), "EOF while parsing"),
        ("[]".to_owned(), "invalid"),
    ] {
        with_config(&sandbox, &config);
        let message = sandbox.rejected(STORE_CHANGED);
        let expected = "changed.safetensors: expected a memory's configuration of format 1, got ";
        assert!(
            message.starts_with(expected) && message.contains(part),
            "{config}\n{message}\nexpected: {part}"
        );
    }
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
    assert!(output.err.contains("--chunk-size 1048577 is above 16384"), "{}", output.err);
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
    let message = sandbox.rejected("store many.npy --out out");
    assert!(
        message.starts_with("memory that the run needs: 512000.0 GB is more than the ")
            && message.ends_with(" of this machine; use smaller chunks, fewer sequences, heads or threads"),
        "{message}"
    );
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
    let warning = "storing made the memory worse: loss_before of chunk 1 is more than 10 times the loss at the initial \
                   weights; a smaller learning rate or momentum, or a larger decay, may help";
    assert_eq!(probed.err, format!("warning: {warning}\n"));
    assert_eq!(sandbox.json("probed/run.json")["warnings"], json!([warning]));
    assert_eq!(sandbox.json("plain/run.json")["warnings"], json!([]));
    // One chunk alone: what it wrote shows at its end.
    sandbox.npy("one.npy", &tokens(&[4, 4], 1));
    let output =
        sandbox.ok("store one.npy --heads 2 --chunk-size 4 --learning-rate 1e6 --no-plots --out one");
    assert!(output.err.contains("loss_after of the last chunk is more than 10 times"), "{}", output.err);
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
    let output = sandbox.run(&format!("retrieve --online {line} --out online"));
    assert_eq!(output.code, Some(1), "{}", output.err);
    let end = "retrieved is NaN; the memory is kept, retrieved.npy is left out\n";
    assert!(
        output.err.starts_with("error: online: diverged at sequence 0, ") && output.err.ends_with(end),
        "{}",
        output.err
    );
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
    let warning = "momentum 1.5 is above 1: it grows from chunk to chunk instead of fading";
    assert_eq!(output.err, format!("warning: {warning}\n"));
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
    let warning = "labels of 3 positions, up to 99, are beyond the 40 tokens of the data";
    assert_eq!(output.err, format!("warning: {warning}\n"));
    assert_eq!(sandbox.json("out/run.json")["warnings"], json!([warning]));
    assert_eq!(sandbox.ok(&format!("{line} --labels fitting.csv --out fits")).err, "");
}
