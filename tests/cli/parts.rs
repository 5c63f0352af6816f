//! Whole = parts, through memory files: storing or reading on in pieces, and saving and loading bit for bit.

use std::collections::BTreeMap;

use ndarray::{ArrayD, Axis, concatenate};
use safetensors::Dtype;

use crate::{Raw, Sandbox, Table, Transcript, tokens, write_tensors};

/// Ends of pieces of 34 tokens in chunks of 4: shorter than a chunk, single tokens, empty, on and off boundaries.
const PIECES: [&[usize]; 3] = [&[17, 34], &[1, 7, 34], &[2, 3, 4, 13, 13, 29, 34]];
const TYPES: [&str; 2] = ["f64", "f32"];

fn piece(of: &ArrayD<f32>, start: usize, end: usize) -> ArrayD<f32> {
    of.slice_axis(Axis(1), (start..end).into()).to_owned()
}

/// Rows of all tables, in the order of one: by sequence, chunk, head.
fn joined(tables: Vec<Table>) -> Table {
    let header = tables[0].header.clone();
    let mut rows: Vec<_> = tables.into_iter().flat_map(|table| table.rows).collect();
    rows.sort_by_key(|row| [0, 1, 2].map(|column| row[column].parse::<usize>().unwrap()));
    Table { header, rows }
}

fn same_rows(what: &str, got: &Table, expected: &Table) {
    assert_eq!(got.header, expected.header, "{what}");
    for name in &expected.header {
        assert_eq!(got.texts(name), expected.texts(name), "{what}, {name}");
    }
}

fn same_memory(what: &str, got: &BTreeMap<String, Raw>, expected: &BTreeMap<String, Raw>) {
    assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    for (name, expected) in expected {
        assert!(&got[name] == expected, "{what}, {name}");
    }
}

/// The first piece goes into the parameters, each further one into the memory that the one before it left.
fn memory_of_piece(i: usize) -> String {
    match i {
        0 => "--memory weights.safetensors --chunk-size 4".to_owned(),
        _ => format!("--memory part{}/memory.safetensors", i - 1),
    }
}

#[test]
fn stored_in_pieces() {
    let sandbox = Sandbox::with_golden("heads");
    let seq = sandbox.f32s("seq.npy");
    for dtype in TYPES {
        let line = format!("--dtype {dtype} --no-plots -q --force --out");
        sandbox.ok(&format!("store seq.npy {} {line} whole", memory_of_piece(0)));
        for ends in PIECES {
            let mut start = 0;
            for (i, &end) in ends.iter().enumerate() {
                sandbox.npy("piece.npy", &piece(&seq, start, end));
                let output = sandbox.ok(&format!("store piece.npy {} {line} part{i}", memory_of_piece(i)));
                assert_eq!((&output.out[..], &output.err[..]), ("", ""));
                start = end;
            }
            let what = format!("{dtype}, pieces to {ends:?}");
            let parts = (0..ends.len()).map(|i| sandbox.csv(&format!("part{i}/metrics.csv"))).collect();
            same_rows(&what, &joined(parts), &sandbox.csv("whole/metrics.csv"));
            let last = sandbox.tensors(&format!("part{}/memory.safetensors", ends.len() - 1));
            same_memory(&what, &last, &sandbox.tensors("whole/memory.safetensors"));
        }
    }
}

#[test]
fn read_online_in_pieces() {
    let sandbox = Sandbox::with_golden("heads");
    sandbox.npy("store.npy", &tokens(&[2, 34, 16], 7));
    let (seq, store) = (sandbox.f32s("seq.npy"), sandbox.f32s("store.npy"));
    // Cuts of the read stream and of the stored one: the same, or with the same number of complete chunks.
    let mut cuts: Vec<(&[usize], Option<&[usize]>)> = PIECES.iter().map(|&ends| (ends, None)).collect();
    cuts.extend(PIECES.iter().map(|&ends| (ends, Some(ends))));
    cuts.push((&[7, 16, 34], Some(&[5, 18, 34])));
    cuts.push((&[1, 2, 24, 34], Some(&[0, 3, 27, 33])));
    for dtype in TYPES {
        let line = format!("--probe --online --dtype {dtype} --no-plots -q --force --out");
        for &(read_ends, store_ends) in &cuts {
            let what = format!("{dtype}, read to {read_ends:?}, stored to {store_ends:?}");
            let stored = store_ends.map_or("", |ends| {
                sandbox.npy("stored.npy", &piece(&store, 0, *ends.last().unwrap()));
                "--store-seq stored.npy"
            });
            sandbox.ok(&format!("retrieve seq.npy {stored} {} {line} whole", memory_of_piece(0)));
            let (mut read_start, mut store_start) = (0, 0);
            for (i, &end) in read_ends.iter().enumerate() {
                sandbox.npy("piece.npy", &piece(&seq, read_start, end));
                read_start = end;
                let stored = store_ends.map_or("", |ends| {
                    sandbox.npy("stored.npy", &piece(&store, store_start, ends[i]));
                    store_start = ends[i];
                    "--store-seq stored.npy"
                });
                sandbox.ok(&format!("retrieve piece.npy {stored} {} {line} part{i}", memory_of_piece(i)));
            }
            let parts = 0..read_ends.len();
            let tables = parts.clone().map(|i| sandbox.csv(&format!("part{i}/metrics.csv"))).collect();
            same_rows(&what, &joined(tables), &sandbox.csv("whole/metrics.csv"));
            let reads: Vec<_> = parts.map(|i| sandbox.floats(&format!("part{i}/retrieved.npy"))).collect();
            let views: Vec<_> = reads.iter().map(|read| read.view()).collect();
            let reads = concatenate(Axis(1), &views).unwrap();
            assert_eq!(reads, sandbox.floats("whole/retrieved.npy"), "{what}");
            let last = sandbox.tensors(&format!("part{}/memory.safetensors", read_ends.len() - 1));
            same_memory(&what, &last, &sandbox.tensors("whole/memory.safetensors"));
        }
    }
}

#[test]
fn a_plain_store_can_be_followed_online() {
    let sandbox = Sandbox::with_golden("heads");
    let seq = sandbox.f32s("seq.npy");
    let line = "--dtype f64 -q --no-plots --out";
    sandbox.ok(&format!("retrieve seq.npy --online {} {line} whole", memory_of_piece(0)));
    sandbox.npy("piece.npy", &piece(&seq, 0, 14));
    sandbox.ok(&format!("store piece.npy {} {line} part0", memory_of_piece(0)));
    sandbox.npy("piece.npy", &piece(&seq, 14, 34));
    sandbox.ok(&format!("retrieve piece.npy --online {} {line} part1", memory_of_piece(1)));
    let expected = sandbox.f64s("whole/retrieved.npy").slice_axis(Axis(1), (14..34).into()).to_owned();
    assert_eq!(sandbox.f64s("part1/retrieved.npy"), expected);
}

#[test]
fn past_weights_and_fixed_gates_are_saved_apart_and_resumed() {
    let sandbox = Sandbox::with_golden("past_weights");
    let seq = sandbox.f32s("seq.npy");
    let gates = "--learning-rate 0.5 --momentum-bias -1";
    let line = "--dtype f64 --no-plots -q --out";
    let first = format!("--memory weights.safetensors --chunk-size 4 --past past.safetensors {gates}");
    sandbox.ok(&format!("store seq.npy {first} {line} whole"));
    let n = seq.shape()[1];
    for (i, (start, end)) in [(0, 5), (5, n)].into_iter().enumerate() {
        sandbox.npy("piece.npy", &piece(&seq, start, end));
        let memory = if i == 0 { first.clone() } else { memory_of_piece(i) };
        sandbox.ok(&format!("store piece.npy {memory} {line} part{i}"));
    }
    let tables = vec![sandbox.csv("part0/metrics.csv"), sandbox.csv("part1/metrics.csv")];
    same_rows("with past", &joined(tables), &sandbox.csv("whole/metrics.csv"));
    let [whole, parts] = ["whole", "part1"].map(|out| sandbox.tensors(&format!("{out}/memory.safetensors")));
    same_memory("with past", &parts, &whole);
    let (given, weights) = (sandbox.tensors("past.safetensors"), sandbox.tensors("weights.safetensors"));
    for p in 0..4 {
        assert_eq!(parts[&format!("state.past.{p}")], given[&format!("weights.{p}")]);
        let name = format!("memory_model.weights.{p}");
        assert_eq!(parts[&name], weights[&name], "never folded into the parameters");
    }
    let config = sandbox.memory_config("part1/memory.safetensors");
    assert_eq!(config["learning_rate"]["pinned"], 0.5);
    assert_eq!(config["momentum"]["learned"], -1.0);
    let memory = "store seq.npy --memory part1/memory.safetensors --dtype f64 --out no";
    let mut said = Transcript::new();
    said.reject(&sandbox, &format!("{memory} --past past.safetensors"));

    // A fixed value can be changed or freed, a bias replaced or taken back; what is not named stays.
    let gates_after = |flags: &str| {
        sandbox.ok(&format!(
            "store seq.npy --memory part1/memory.safetensors --dtype f64 -q --out on --force {flags}"
        ));
        sandbox.memory_config("on/memory.safetensors")
    };
    assert_eq!(gates_after("--learning-rate learned")["learning_rate"]["learned"], 0.0);
    assert_eq!(
        gates_after("--learning-rate learned --learning-rate-bias 2")["learning_rate"]["learned"],
        2.0
    );
    assert_eq!(gates_after("--learning-rate 0.25")["momentum"]["learned"], -1.0);
    assert_eq!(gates_after("--momentum learned")["momentum"]["learned"], 0.0);
    assert_eq!(gates_after("--decay 1")["learning_rate"]["pinned"], 0.5);
    said.reject(&sandbox, &format!("{memory} --learning-rate-bias 1"));
    insta::assert_snapshot!(said);
}

#[test]
fn saving_and_loading_loses_no_bit() {
    let sandbox = Sandbox::with_golden("heads");
    let parameters = sandbox.tensors("weights.safetensors");
    for parameter_type in [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64] {
        // A tenth more: f64 parameters that are no f32 numbers.
        let retyped: BTreeMap<_, _> = parameters
            .iter()
            .map(|(name, raw)| (name.clone(), Raw::new(parameter_type, &(raw.floats() * 1.1))))
            .collect();
        write_tensors(&sandbox.path("typed.safetensors"), &retyped);
        for (dtype, state_type) in [("f32", Dtype::F32), ("f64", Dtype::F64)] {
            let line = format!("--dtype {dtype} -q --no-plots --force --out");
            sandbox.ok(&format!("store seq.npy --memory typed.safetensors --chunk-size 4 {line} first"));
            let first = sandbox.tensors("first/memory.safetensors");
            for (name, raw) in &retyped {
                assert!(first[name] == *raw, "{name} as {parameter_type:?}");
            }
            for (name, raw) in first.iter().filter(|(name, _)| name.starts_with("state.")) {
                assert!(raw.dtype == state_type || name == "state.tokens", "{name}: {:?}", raw.dtype);
            }
            // Nothing stored on top: 34 tokens leave two over.
            sandbox.npy("nothing.npy", &tokens(&[2, 0, 16], 0));
            sandbox.ok(&format!("store nothing.npy --memory first/memory.safetensors {line} second"));
            assert!(sandbox.bytes("second/memory.safetensors") == sandbox.bytes("first/memory.safetensors"));
            assert!(first.contains_key("state.left_over"));
        }
    }
    assert_eq!(
        sandbox.memory_config("second/memory.safetensors"),
        sandbox.memory_config("first/memory.safetensors")
    );
}

#[test]
fn a_state_is_narrowed_only_when_asked() {
    let sandbox = Sandbox::with_golden("heads");
    let line = "--memory first/memory.safetensors -q --out";
    sandbox.ok(&format!("store seq.npy {} --dtype f64 -q --out first", memory_of_piece(0)));
    let mut said = Transcript::new();
    said.reject(&sandbox, &format!("store seq.npy {line} second"));
    said.reject(&sandbox, &format!("retrieve seq.npy {line} second --dtype f32"));
    insta::assert_snapshot!(said);
    sandbox.ok(&format!("store seq.npy {line} second --force"));
    assert_eq!(sandbox.tensors("second/memory.safetensors")["state.update.0"].dtype, Dtype::F32);
    // Widening is exact.
    sandbox.ok("store seq.npy --memory second/memory.safetensors -q --out third --dtype f64");
}

#[test]
fn restarting_momentum_forgets_it_alone() {
    let sandbox = Sandbox::with_golden("heads");
    let line = "--dtype f64 -q --no-plots --out";
    sandbox.ok(&format!("store seq.npy {} {line} first", memory_of_piece(0)));
    sandbox.npy("nothing.npy", &tokens(&[2, 0, 16], 0));
    sandbox
        .ok(&format!("store nothing.npy --restart-momentum --memory first/memory.safetensors {line} second"));
    let [first, second] =
        ["first", "second"].map(|out| sandbox.tensors(&format!("{out}/memory.safetensors")));
    for (name, raw) in &second {
        if name.starts_with("state.momentum") {
            assert!(raw.floats().iter().all(|&x| x == 0.0) && first[name].floats().iter().any(|&x| x != 0.0));
        } else {
            assert!(*raw == first[name], "{name}");
        }
    }
}

#[test]
fn resuming_online_needs_both_streams_at_the_same_chunk() {
    let sandbox = Sandbox::with_golden("heads");
    sandbox.npy("longer.npy", &tokens(&[2, 40, 16], 8));
    sandbox.ok(&format!("retrieve seq.npy --store-seq longer.npy {} -q --out first", memory_of_piece(0)));
    let line = "retrieve seq.npy --online --memory first/memory.safetensors --out second";
    let said = Transcript::of_rejected(&sandbox, &[line]);
    insta::assert_snapshot!(said);
    // Storing on and plain reads are possible.
    sandbox.ok("store seq.npy --memory first/memory.safetensors -q --out second");
    sandbox.ok("retrieve seq.npy --memory first/memory.safetensors -q --out third");
}
