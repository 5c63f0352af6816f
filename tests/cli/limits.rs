//! Limits of numbers: the same on the command line, in a configuration file and in a saved memory; and what is reported
//! of numbers that are allowed but do harm.

use std::collections::HashMap;

use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::{Desk, tokens};

/// seq.npy (40 tokens of dim 4) and made/memory.safetensors of two heads.
fn desk() -> Desk {
    let desk = Desk::new();
    desk.npy("seq.npy", &tokens(&[40, 4], 1));
    desk.ok("store seq.npy --heads 2 --chunk-size 4 --out made -q");
    desk
}

/// changed.safetensors: the memory, its configuration replaced.
fn with_config(desk: &Desk, config: &str) {
    let tensors = desk.tensors("made/memory.safetensors");
    let views = tensors.iter().map(|(name, raw)| {
        (name, TensorView::new(raw.dtype, raw.shape.clone(), &raw.data).expect("as it was read"))
    });
    let metadata = HashMap::from([("nmem".to_owned(), config.to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), &desk.path("changed.safetensors")).unwrap();
}

fn config(desk: &Desk) -> Value {
    desk.memory_config("made/memory.safetensors")
}

const STORE_CHANGED: &str = "store seq.npy --memory changed.safetensors --out out";

#[test]
fn as_it_was_written() {
    let desk = desk();
    with_config(&desk, &config(&desk).to_string());
    desk.ok(&format!("{STORE_CHANGED} -q"));
    assert_eq!(config(&desk), desk.memory_config("out/memory.safetensors"));
    let keys: Vec<_> = config(&desk).as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        keys.join(" "),
        "chunk_size decay dim dim_head format heads learning_rate model momentum nmem post_norm pre_norm"
    );
}

#[test]
fn gates_of_flags_files_and_memories() {
    let desk = desk();
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
        let message = desk.refused(&format!("store seq.npy {flag} {value} --out out"));
        assert_eq!(message, format!("{flag} {value} {problem}"));
        desk.file("settings.toml", format!("data = \"seq.npy\"\n{gate} = {value}\n"));
        assert_eq!(desk.refused("store --config settings.toml --out out"), message);
        let mut config = config(&desk);
        config[gate] = json!({ "pinned": serde_json::from_str::<Value>(value).unwrap() });
        with_config(&desk, &config.to_string());
        assert_eq!(desk.refused(STORE_CHANGED), format!("changed.safetensors: {gate} {value} {problem}"));
    }
    // Not in JSON, which has no such numbers.
    for (flag, message) in [
        ("--momentum nan", "--momentum NaN is not finite; use a finite value of 0 or more"),
        ("--learning-rate inf", "--learning-rate inf is not finite; use a finite value of 0 or more"),
        ("--decay inf", "--decay inf is not finite; use a value from 0 to 1"),
        ("--decay-bias nan", "--decay-bias NaN is not finite; use a finite number"),
    ] {
        assert_eq!(desk.refused(&format!("store seq.npy {flag} --out out")), message);
    }
    for allowed in ["--decay 1 --momentum 0 --learning-rate 0", "--decay 0 --decay-bias 0 --decay learned"] {
        let ran = desk.run(&format!("store seq.npy {allowed} --out allowed --force -q"));
        assert!(matches!(ran.code, Some(0 | 2)) && !ran.err.contains("; use "), "{}", ran.err);
    }
}

#[test]
fn chunk_sizes_of_flags_files_and_memories() {
    let desk = desk();
    let (few, many) = (
        "is below 2: a token of the attention memory looks back within its chunk; use 2 to 16384",
        "is above 16384: attention within a chunk takes the square of its size in memory; use 2 to 16384",
    );
    for (size, problem) in [("0", few), ("1", few), ("16385", many), ("9223372036854775807", many)] {
        for command in
            ["store seq.npy", "retrieve seq.npy", "retrieve seq.npy --online --heads 2 --retention 2"]
        {
            let message = desk.refused(&format!("{command} --chunk-size {size} --out out"));
            assert_eq!(message, format!("--chunk-size {size} {problem}"), "{command}");
        }
        desk.file("settings.toml", format!("data = \"seq.npy\"\nchunk_size = {size}\n"));
        let message = desk.refused("store --config settings.toml --out out");
        assert_eq!(message, format!("--chunk-size {size} {problem}"));
        let mut config = config(&desk);
        config["chunk_size"] = serde_json::from_str(size).unwrap();
        with_config(&desk, &config.to_string());
        assert_eq!(desk.refused(STORE_CHANGED), format!("changed.safetensors: chunk_size {size} {problem}"));
    }
    // The longest chunk is no burden where data are short.
    desk.ok("retrieve seq.npy --online --heads 2 --retention 2 --chunk-size 16384 --out long -q");
}

#[test]
fn configurations_that_are_none() {
    let desk = desk();
    let good = config(&desk).to_string();
    let edited = |key: &str, value: Value| {
        let mut config = config(&desk);
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
        with_config(&desk, &config);
        let message = desk.refused(STORE_CHANGED);
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
    let desk = Desk::new();
    desk.npy("seq.npy", &tokens(&[40, 4], 1));
    desk.file(
        "sweep.toml",
        "run = \"retrieve-online\"\ndata = \"seq.npy\"\nheads = 2\nretention = 2\n[grid]\nchunk_size = [4, 1048577]\n",
    );
    let ran = desk.run("sweep sweep.toml --out out -q --no-plots");
    assert!(matches!(ran.code, Some(1 | 2)), "{}", ran.err);
    assert!(ran.err.contains("--chunk-size 1048577 is above 16384"), "{}", ran.err);
    if ran.code == Some(1) {
        assert_eq!(desk.csv("out/results.csv").texts("status"), ["ok", "failed"]);
    }
}

/// Sizes that no machine has memory for are rejected before any is taken.
#[test]
fn more_memory_than_there_is() {
    let desk = Desk::new();
    // A .npy of many sequences without a token.
    let mut header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 0, 4), }".to_owned();
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    bytes.extend(header.bytes());
    desk.file("many.npy", bytes);
    let message = desk.refused("store many.npy --out out");
    assert!(
        message.starts_with("memory that the run needs: 512000.0 GB is more than the ")
            && message.ends_with(" of this machine; use smaller chunks, fewer sequences, heads or threads"),
        "{message}"
    );
}

/// Squared errors that leave f32 do not lose the memory, with a probe or without.
#[test]
fn losses_beyond_f32() {
    let desk = desk();
    let line =
        "store seq.npy --heads 2 --chunk-size 4 --learning-rate 1e12 --momentum 0.9 --decay 0.1 --no-plots";
    let probed = desk.ok(&format!("{line} --out probed"));
    desk.ok(&format!("{line} --no-probe --out plain"));
    assert_eq!(desk.bytes("probed/memory.safetensors"), desk.bytes("plain/memory.safetensors"));
    let table = desk.csv("probed/metrics.csv");
    let beyond = table.numbers("loss_after").into_iter().filter(|loss| *loss > f64::from(f32::MAX)).count();
    assert!(beyond > 0, "{:?}", table.texts("loss_after"));
    assert!(desk.json("probed/run.json")["diverged"].is_null());
    let warning = "storing made the memory worse: loss_before of chunk 1 is more than 10 times the loss at the initial \
                   weights; a smaller learning rate or momentum, or a larger decay, may help";
    assert_eq!(probed.err, format!("warning: {warning}\n"));
    assert_eq!(desk.json("probed/run.json")["warnings"], json!([warning]));
    assert_eq!(desk.json("plain/run.json")["warnings"], json!([]));
    // One chunk alone: what it wrote shows at its end.
    desk.npy("one.npy", &tokens(&[4, 4], 1));
    let ran = desk.ok("store one.npy --heads 2 --chunk-size 4 --learning-rate 1e6 --no-plots --out one");
    assert!(ran.err.contains("loss_after of the last chunk is more than 10 times"), "{}", ran.err);
    // Figures of such a run can be made.
    desk.ok("plot probed --y loss_after --out figure -q");
    desk.ok("plot probed --out timeline -q");
}

/// Reads that leave f32 do not lose a memory that is finite: online it is the one that a store leaves.
#[test]
fn reads_beyond_f32() {
    let desk = Desk::new();
    desk.ok("generate recall --tokens 64 --dim 8 --seed 3 --out seq.npy -q");
    let line = "seq.npy --heads 1 --chunk-size 8 --learning-rate 1e25 --momentum 0 --decay 0 --no-plots -q";
    desk.ok(&format!("store {line} --no-probe --out stored"));
    let ran = desk.run(&format!("retrieve --online {line} --out online"));
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    let end = "retrieved is NaN; the memory is kept, retrieved.npy is left out\n";
    assert!(
        ran.err.starts_with("error: online: diverged at sequence 0, ") && ran.err.ends_with(end),
        "{}",
        ran.err
    );
    assert_eq!(desk.names("online"), ["memory.safetensors", "metrics.csv", "run.json"]);
    let run = desk.json("online/run.json");
    assert_eq!((&run["rows"], &run["diverged"]["quantity"]), (&json!(8), &json!("retrieved")));
    let state = |name: &str| {
        let tensors = desk.tensors(&format!("{name}/memory.safetensors")).into_iter();
        tensors.filter(|(name, _)| name != "state.tokens").collect::<Vec<_>>()
    };
    assert!(state("online") == state("stored"));
}

#[test]
fn momentum_above_one() {
    let desk = desk();
    let line = "store seq.npy --heads 2 --chunk-size 4 --learning-rate 1e-6 --no-plots";
    let ran = desk.ok(&format!("{line} --momentum 1.5 --out out"));
    let warning = "momentum 1.5 is above 1: it grows from chunk to chunk instead of fading";
    assert_eq!(ran.err, format!("warning: {warning}\n"));
    assert_eq!(desk.json("out/run.json")["warnings"], json!([warning]));
    assert_eq!(desk.ok(&format!("{line} --momentum 1 --out one")).err, "");
    // A saved memory keeps it.
    let ran = desk.ok("store seq.npy --memory out/memory.safetensors --no-plots --out on");
    assert!(ran.err.contains(warning), "{}", ran.err);
    // Reading alone does not use it.
    assert_eq!(desk.ok("retrieve seq.npy --memory out/memory.safetensors --out read").err, "");
}

#[test]
fn labels_beyond_the_data() {
    let desk = desk();
    desk.file("labels.csv", "position,segment\n0,a\n39,a\n40,b\n41,b\n99,a\n");
    desk.file("fitting.csv", "position,segment\n0,a\n39,b\n");
    let line = "store seq.npy --heads 2 --chunk-size 4 --learning-rate 1e-6";
    let ran = desk.ok(&format!("{line} --labels labels.csv --out out"));
    let warning = "labels of 3 positions, up to 99, are beyond the 40 tokens of the data";
    assert_eq!(ran.err, format!("warning: {warning}\n"));
    assert_eq!(desk.json("out/run.json")["warnings"], json!([warning]));
    assert_eq!(desk.ok(&format!("{line} --labels fitting.csv --out fits")).err, "");
}
