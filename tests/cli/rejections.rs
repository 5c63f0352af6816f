//! What cannot run: exit status 2, one line that says what, in which file or flag, expected, got; nothing left behind.

#![allow(clippy::too_many_lines, reason = "tables of cases")]

use std::collections::BTreeMap;

use ndarray::{Array1, Array2, Array4, ArrayD};
use ndarray_npy::write_npy;
use safetensors::Dtype;

use crate::{Raw, Sandbox, tokens, write_tensors};

/// Runs every command line, in a folder that has what they name, and compares what it says.
fn check(sandbox: &Sandbox, cases: &[(&str, &str)]) {
    let wrong: Vec<_> = cases
        .iter()
        .map(|&(line, expected)| (line, expected, sandbox.rejected(line)))
        .filter(|(_, expected, got)| got != expected)
        .map(|(line, expected, got)| format!("nmem {line}\n  expected: {expected}\n  got:      {got}"))
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// seq.npy (7 tokens of dim 4) and weights.safetensors for dim 4, two heads of 2.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[7, 4], 1));
    sandbox.ok("store seq.npy --heads 2 --chunk-size 4 --out made -q");
    write_tensors(&sandbox.path("weights.safetensors"), &parameters(&sandbox));
    sandbox
}

fn parameters(sandbox: &Sandbox) -> BTreeMap<String, Raw> {
    let tensors = sandbox.tensors("made/memory.safetensors").into_iter();
    tensors.filter(|(name, _)| !name.starts_with("state.")).collect()
}

#[test]
fn command_lines() {
    let sandbox = Sandbox::new();
    check(
        &sandbox,
        &[
            ("frob", "unrecognized subcommand 'frob' (see --help)"),
            (
                "stor",
                "unrecognized subcommand 'stor'; tip: a similar subcommand exists: 'store' (see --help)",
            ),
            (
                "store seq.npy --frob",
                "unexpected argument '--frob' found; tip: a similar argument exists: '--probe' (see --help)",
            ),
            (
                "store seq.npy --thread 2",
                "unexpected argument '--thread' found; tip: a similar argument exists: '--threads' (see --help)",
            ),
            ("store", "SEQ.npy: expected a sequence to work on (or `data` in --config), got none"),
            (
                "retrieve --online",
                "SEQ.npy: expected a sequence to work on (or `data` in --config), got none",
            ),
            ("store a.npy b.npy", "unexpected argument 'b.npy' found (see --help)"),
            (
                "store seq.npy --chunk-size",
                "a value is required for '--chunk-size <N>' but none was supplied (see --help)",
            ),
            (
                "store seq.npy --chunk-size x",
                "invalid value 'x' for '--chunk-size <N>': expected a whole number (see --help)",
            ),
            (
                "store seq.npy --chunk-size 1.5",
                "invalid value '1.5' for '--chunk-size <N>': expected a whole number (see --help)",
            ),
            (
                "store seq.npy --chunk-size -1",
                "invalid value '-1' for '--chunk-size <N>': expected a whole number (see --help)",
            ),
            (
                "store seq.npy --chunk-size 0",
                "--chunk-size 0 is below 2: a token of the attention memory looks back within its chunk; use 2 to 16384",
            ),
            (
                "store seq.npy --chunk-size 1",
                "--chunk-size 1 is below 2: a token of the attention memory looks back within its chunk; use 2 to 16384",
            ),
            ("store seq.npy --heads 0", "--heads: expected at least 1, got 0"),
            ("store seq.npy --dim-head 0", "--dim-head: expected at least 1, got 0"),
            ("store seq.npy --threads 0", "--threads: expected at least 1, got 0"),
            ("store seq.npy --threads 100000000", "--threads: expected at most 1024, got 100000000"),
            (
                "store seq.npy --threads -2",
                "invalid value '-2' for '--threads <N>': expected a whole number (see --help)",
            ),
            (
                "store seq.npy --repeat -2",
                "invalid value '-2' for '--repeat <N>': expected a whole number (see --help)",
            ),
            (
                "store seq.npy --seed -1",
                "invalid value '-1' for '--seed <N>': expected a whole number (see --help)",
            ),
            (
                "store seq.npy --init zeros",
                "invalid value 'zeros' for '--init <xavier|randn>' [possible values: xavier, randn] (see --help)",
            ),
            (
                "store seq.npy --dtype f16",
                "invalid value 'f16' for '--dtype <f32|f64>' [possible values: f32, f64] (see --help)",
            ),
            (
                "store seq.npy --format xml",
                "invalid value 'xml' for '--format <table|json>' [possible values: table, json] (see --help)",
            ),
            ("store seq.npy -q -v", "the argument '--quiet' cannot be used with '--verbose' (see --help)"),
            (
                "store seq.npy --learning-rate fast",
                "invalid value 'fast' for '--learning-rate <X>': expected a number or `learned` (see --help)",
            ),
            (
                "store seq.npy --learning-rate -0.5",
                "--learning-rate -0.5 is below 0; use a finite value of 0 or more",
            ),
            ("store seq.npy --momentum nan", "--momentum NaN is not finite; use a finite value of 0 or more"),
            ("store seq.npy --decay inf", "--decay inf is not finite; use a value from 0 to 1"),
            ("store seq.npy --decay-bias nan", "--decay-bias NaN is not finite; use a finite number"),
            (
                "store seq.npy --momentum-bias x",
                "invalid value 'x' for '--momentum-bias <B>': invalid float literal (see --help)",
            ),
            (
                "store seq.npy --decay 0.5 --decay-bias 1",
                "--decay-bias: expected a gate that is not pinned (--decay learned frees it), got --decay 0.5",
            ),
            (
                "store seq.npy --memory w.npz --seed 1",
                "--seed: expected a memory drawn at random, got --memory w.npz, which is not drawn",
            ),
            (
                "store seq.npy --memory w.npz --init randn",
                "--init: expected a memory drawn at random, got --memory w.npz, which is not drawn",
            ),
            (
                "store seq.npy --memory w.npz --no-pre-norm",
                "--no-pre-norm: expected a memory drawn at random, got --memory w.npz, which is not drawn",
            ),
            (
                "store seq.npy --memory w.npz --no-post-norm",
                "--no-post-norm: expected a memory drawn at random, got --memory w.npz, which is not drawn",
            ),
            ("store - --memory -", "-: expected standard input in one place, got more than one"),
            (
                "store seq.npy --memory - --past -",
                "-: expected standard input in one place, got more than one",
            ),
            ("retrieve - --store-seq -", "-: expected standard input in one place, got more than one"),
            (
                "retrieve seq.npy --online=false --store-seq store.npy",
                "--store-seq: expected --online (which it implies), got --online=false",
            ),
            ("completions", "the following required arguments were not provided: <SHELL> (see --help)"),
            (
                "completions tcsh",
                "invalid value 'tcsh' for '<SHELL>' [possible values: bash, elvish, fish, powershell, zsh]; tip: a similar value exists: 'zsh' (see --help)",
            ),
            ("inspect", "the following required arguments were not provided: <FILE>... (see --help)"),
        ],
    );
}

#[test]
fn flags_without_effect() {
    check(
        &Sandbox::new(),
        &[
            (
                "store seq.npy --online",
                "--online: expected `nmem retrieve` (a store reads nothing), got `nmem store`",
            ),
            (
                "store seq.npy --store-seq x.npy",
                "--store-seq: expected `nmem retrieve` (a store stores SEQ itself), got `nmem store`",
            ),
            (
                "store seq.npy --probe",
                "--probe: expected `nmem retrieve --online` (a store probes anyway), got `nmem store`",
            ),
            (
                "retrieve seq.npy --no-probe",
                "--no-probe: expected `nmem store` (retrieving probes only with --probe), got `nmem retrieve`",
            ),
            (
                "retrieve seq.npy --online --no-probe",
                "--no-probe: expected `nmem store` (retrieving probes only with --probe), got `nmem retrieve`",
            ),
            (
                "retrieve seq.npy --probe",
                "--probe: expected --online with it (a plain read stores nothing), got `nmem retrieve`",
            ),
            (
                "retrieve seq.npy --labels x.csv",
                "--labels: expected --online with it (a plain read stores nothing), got `nmem retrieve`",
            ),
            (
                "retrieve seq.npy --restart-momentum",
                "--restart-momentum: expected --online with it (a plain read stores nothing), got `nmem retrieve`",
            ),
            (
                "retrieve seq.npy --learning-rate 1",
                "--learning-rate: expected --online with it (a plain read stores nothing), got `nmem retrieve`",
            ),
            (
                "retrieve seq.npy --momentum-bias 1",
                "--momentum-bias: expected --online with it (a plain read stores nothing), got `nmem retrieve`",
            ),
            (
                "retrieve seq.npy --decay learned",
                "--decay: expected --online with it (a plain read stores nothing), got `nmem retrieve`",
            ),
        ],
    );
}

#[test]
fn sequences() {
    let sandbox = sandbox();
    let good = sandbox.bytes("seq.npy");
    sandbox.file("cut-header.npy", &good[..40]);
    sandbox.file("cut.npy", &good[..good.len() - 5]);
    sandbox.file("long.npy", [&good[..], b"more"].concat());
    sandbox.file("empty.npy", "");
    sandbox.file("text.npy", "0.5,1.5\n");
    write_npy(sandbox.path("one.npy"), &Array1::<f32>::zeros(4)).unwrap();
    write_npy(sandbox.path("four.npy"), &Array4::<f32>::zeros((1, 1, 7, 4))).unwrap();
    write_npy(sandbox.path("int.npy"), &Array2::<i64>::zeros((7, 4))).unwrap();
    write_npy(sandbox.path("bool.npy"), &Array2::from_elem((7, 4), true)).unwrap();
    write_npy(sandbox.path("none.npy"), &ndarray::Array3::<f32>::zeros((0, 7, 4))).unwrap();
    let mut nan = tokens(&[3, 7, 4], 2);
    nan[[2, 5, 1]] = f32::NAN;
    nan[[2, 6, 0]] = f32::INFINITY;
    sandbox.npy("nan.npy", &nan);
    let mut infinite = tokens(&[7, 4], 2);
    infinite[[6, 3]] = f32::NEG_INFINITY;
    sandbox.npy("inf.npy", &infinite);
    write_npy(sandbox.path("big.npy"), &Array2::from_elem((7, 4), 1e300)).unwrap();
    sandbox.npy("wide.npy", &tokens(&[7, 6], 1));
    sandbox.npy("three.npy", &tokens(&[3, 7, 4], 1));
    check(
        &sandbox,
        &[
            ("store absent.npy", "absent.npy: cannot open: No such file or directory (os error 2)"),
            ("store made", "made: expected a .npy file, got a folder"),
            ("store cut-header.npy", "cut-header.npy: expected a .npy header of 128 bytes, got a file of 40"),
            ("store cut.npy", "cut.npy: expected 240 bytes (a header of 128, f32 of shape (7, 4)), got 235"),
            (
                "store long.npy",
                "long.npy: expected 240 bytes (a header of 128, f32 of shape (7, 4)), got 244",
            ),
            ("store empty.npy", "empty.npy: expected a .npy file, got an empty file"),
            ("store text.npy", "text.npy: expected a .npy file, got unrecognised content"),
            (
                "store weights.safetensors",
                "weights.safetensors: expected a .npy file, got a .safetensors file",
            ),
            (
                "store one.npy",
                "one.npy: expected shape (tokens, dim) or (sequences, tokens, dim), got shape (4,)",
            ),
            (
                "store four.npy",
                "four.npy: expected shape (tokens, dim) or (sequences, tokens, dim), got shape (1, 1, 7, 4)",
            ),
            ("store int.npy", "int.npy: expected numbers of type f16, f32 or f64, got i64 (<i8)"),
            ("store bool.npy", "bool.npy: expected numbers of type f16, f32 or f64, got bool (|b1)"),
            ("store none.npy", "none.npy: expected at least one sequence, got shape (0, 7, 4)"),
            (
                "store nan.npy",
                "nan.npy: expected finite numbers, got NaN at sequence 2, token 5, coordinate 1 (--allow-nonfinite lets it through)",
            ),
            (
                "store inf.npy",
                "inf.npy: expected finite numbers, got -inf at token 6, coordinate 3 (--allow-nonfinite lets it through)",
            ),
            (
                "retrieve inf.npy",
                "inf.npy: expected finite numbers, got -inf at token 6, coordinate 3 (--allow-nonfinite lets it through)",
            ),
            (
                "store big.npy",
                "big.npy: expected numbers that f32 can hold, got 1e300 at token 0, coordinate 0 (--dtype f64 holds it)",
            ),
            (
                "retrieve seq.npy --store-seq absent.npy",
                "absent.npy: cannot open: No such file or directory (os error 2)",
            ),
            (
                "retrieve seq.npy --store-seq nan.npy",
                "nan.npy: expected finite numbers, got NaN at sequence 2, token 5, coordinate 1 (--allow-nonfinite lets it through)",
            ),
            (
                "retrieve seq.npy --store-seq wide.npy",
                "wide.npy: expected tokens of dim 4, as the memory's, got dim 6",
            ),
            (
                "retrieve seq.npy --store-seq three.npy",
                "three.npy: expected as many sequences as seq.npy, 1, got 3",
            ),
            (
                "store wide.npy --memory weights.safetensors --chunk-size 4",
                "wide.npy: expected tokens of dim 4, as the memory's, got dim 6",
            ),
            (
                "store three.npy --memory made/memory.safetensors",
                "three.npy: expected as many sequences as the memory's state, 1, got 3",
            ),
            (
                "retrieve three.npy --memory made/memory.safetensors --online",
                "three.npy: expected as many sequences as the memory's state, 1, got 3",
            ),
            (
                "store seq.npy --heads 3",
                "--heads: expected a number that divides dim 4 (or --dim-head), got 3",
            ),
            (
                "store seq.npy --dim-head 2",
                "dim_head: expected dim_head = dim = 4 with one head (nothing would map the output back to dim), got 2",
            ),
        ],
    );
    let mut piped = sandbox.command("store -");
    piped.write_stdin(&good[..good.len() - 5]);
    let message = sandbox.one_error(&Sandbox::finish(piped), 2, "store -");
    assert_eq!(message, "standard input: expected 240 bytes (a header of 128, f32 of shape (7, 4)), got 235");
}

#[test]
fn memories() {
    let sandbox = sandbox();
    let good = parameters(&sandbox);
    let write = |name: &str, change: &dyn Fn(&mut BTreeMap<String, Raw>)| {
        let mut tensors = good.clone();
        change(&mut tensors);
        write_tensors(&sandbox.path(name), &tensors);
    };
    let zeros = |shape: &[usize]| Raw::new(Dtype::F32, &ArrayD::zeros(shape));
    write("missing.safetensors", &|tensors| {
        tensors.remove("to_queries.weight");
    });
    write("no-weight.safetensors", &|tensors| {
        tensors.remove("memory_model.weights.3");
    });
    write("half-norms.safetensors", &|tensors| {
        tensors.remove("store_norm.weight");
    });
    write("no-combine.safetensors", &|tensors| {
        tensors.remove("combine_heads.weight");
    });
    write("keys.safetensors", &|tensors| {
        tensors.insert("to_keys_values.weight".into(), zeros(&[6, 4]));
    });
    write("gate.safetensors", &|tensors| {
        tensors.insert("to_momentum.1.weight".into(), zeros(&[3, 4]));
    });
    write("weight.safetensors", &|tensors| {
        tensors.insert("memory_model.weights.2".into(), zeros(&[2, 3]));
    });
    write("extra.safetensors", &|tensors| {
        tensors.insert("to_gold.weight".into(), zeros(&[2, 3]));
    });
    write("nan.safetensors", &|tensors| {
        let mut values = tensors["memory_model.weights.1"].floats();
        values[[1, 0]] = f64::NAN;
        tensors.insert("memory_model.weights.1".into(), Raw::new(Dtype::F32, &values));
    });
    write("int.safetensors", &|tensors| {
        let raw = tensors.get_mut("to_queries.weight").unwrap();
        raw.dtype = Dtype::I32;
    });
    let past =
        |rows: usize| (0..4).map(|p| (format!("weights.{p}"), zeros(&[rows, 2]))).collect::<BTreeMap<_, _>>();
    write_tensors(&sandbox.path("past.safetensors"), &past(2));
    write_tensors(&sandbox.path("past-3.safetensors"), &past(3));
    let mut three = past(2);
    three.remove("weights.2");
    write_tensors(&sandbox.path("past-few.safetensors"), &three);
    let mut five = past(2);
    five.insert("weights.4".into(), zeros(&[2, 2]));
    write_tensors(&sandbox.path("past-many.safetensors"), &five);
    let bytes = sandbox.bytes("made/memory.safetensors");
    sandbox.file("cut.safetensors", &bytes[..bytes.len() - 1]);
    let text = String::from_utf8_lossy(&bytes).find("format").map(|at| at + 9).unwrap();
    let mut other = bytes.clone();
    // The version of the layout, in JSON within JSON.
    assert_eq!(other[text], b'1');
    other[text] = b'2';
    sandbox.file("newer.safetensors", other);
    sandbox.npy("wide.npy", &tokens(&[7, 6], 1));
    let with = |flags: &str| format!("store seq.npy --chunk-size 4 --memory {flags}");
    let cases = [
        ("absent.safetensors",
 "absent.safetensors: cannot open: No such file or directory (os error 2)"),
        ("seq.npy",
 "seq.npy: expected a .safetensors or .npz file, got a .npy file"),
        ("made",
 "made: expected a .safetensors or .npz file, got a folder"),
        ("missing.safetensors",
 "missing.safetensors: to_queries.weight: expected a tensor of shape [heads * dim_head, dim], got no such tensor"),
        ("no-weight.safetensors",
 "no-weight.safetensors: memory_model.weights.3: expected a tensor of shape [2, 2], got no such tensor"),
        ("half-norms.safetensors",
 "half-norms.safetensors: store_norm.weight: expected a tensor of shape [4], got no such tensor"),
        ("no-combine.safetensors",
 "no-combine.safetensors: combine_heads.weight: expected a tensor of shape [4, 4], got no such tensor"),
        ("keys.safetensors",
 "keys.safetensors: to_keys_values.weight: expected shape [8, 4], got [6, 4]"),
        ("gate.safetensors",
 "gate.safetensors: to_momentum.1.weight: expected shape [2, 4], got [3, 4]"),
        ("weight.safetensors",
 "weight.safetensors: memory_model.weights.2: expected shape [2, 2], got [2, 3]"),
        ("extra.safetensors",
 "extra.safetensors: to_gold.weight: expected only the parameters of an attention memory (MemoryAttention, no biases), got a tensor of another name"),
        ("nan.safetensors",
 "nan.safetensors: expected finite numbers, got NaN at tensor memory_model.weights.1, element [1, 0] (--allow-nonfinite lets it through)"),
        ("int.safetensors",
 "int.safetensors: to_queries.weight: expected type f16, bf16, f32 or f64, got i32"),
        ("cut.safetensors",
 "cut.safetensors: expected 784 bytes of tensors after the header, got 783"),
        ("newer.safetensors",
 "newer.safetensors: expected a memory's configuration of format 1, got format 2, written by nmem \"0.1.0\""),
        ("weights.safetensors --heads 4",
 "--heads: expected 2, as in weights.safetensors (or leave it out), got 4"),
        ("weights.safetensors --dim-head 4",
 "--dim-head: expected 2, as in weights.safetensors (or leave it out), got 4"),
        ("weights.safetensors --past absent.npz",
 "absent.npz: cannot open: No such file or directory (os error 2)"),
        ("weights.safetensors --past past-3.safetensors",
 "past-3.safetensors: weights.0: expected floating-point numbers of shape [2, 2], got [3, 2]"),
        ("weights.safetensors --past past-few.safetensors",
 "past-few.safetensors: weights.2: expected a tensor of this name, got none"),
        ("weights.safetensors --past past-many.safetensors",
 "past-many.safetensors: weights.4: expected only weights.0 … weights.3, got a tensor of another name"),
    ]
    .map(|(flags, message)| (with(flags), message));
    let lines: Vec<_> = cases.iter().map(|(line, message)| (&line[..], *message)).collect();
    check(&sandbox, &lines);
    check(
        &sandbox,
        &[
            (
                "store seq.npy --memory weights.safetensors",
                "--chunk-size: expected the chunk size that the parameters were trained with (no file of parameters tells), got none for weights.safetensors",
            ),
            (
                "retrieve seq.npy --memory weights.safetensors",
                "--chunk-size: expected the chunk size that the parameters were trained with (no file of parameters tells), got none for weights.safetensors",
            ),
            (
                "store seq.npy --memory made/memory.safetensors --chunk-size 8",
                "--chunk-size: expected 4, with which the memory was stored, got 8",
            ),
        ],
    );
}

#[test]
fn labels() {
    let sandbox = sandbox();
    sandbox.file("position.csv", "segment,repeat\na,0\n");
    sandbox.file("segment.csv", "position,repeat\n0,0\n");
    sandbox.file("word.csv", "position,segment\n0,a\none,b\n");
    sandbox.file("twice.csv", "position,segment\n0,a\n0,b\n");
    sandbox.file("ragged.csv", "position,segment\n0,a\n1\n");
    sandbox.file("empty.csv", "");
    check(
        &sandbox,
        &[
            (
                "store seq.npy --labels absent.csv",
                "absent.csv: cannot read: No such file or directory (os error 2)",
            ),
            (
                "store seq.npy --labels position.csv",
                "position.csv: expected a column \"position\", got the columns segment, repeat",
            ),
            (
                "store seq.npy --labels segment.csv",
                "segment.csv: expected a column \"segment\", got the columns position, repeat",
            ),
            (
                "store seq.npy --labels word.csv",
                "word.csv: expected an integer ≥ 0 in column \"position\" on line 3, got \"one\"",
            ),
            (
                "store seq.npy --labels twice.csv",
                "twice.csv: expected each position once, on line 3, got 0 again",
            ),
            ("store seq.npy --labels ragged.csv", "ragged.csv: expected 2 fields on line 3, got 1"),
            (
                "store seq.npy --labels empty.csv",
                "empty.csv: expected a column \"position\", got an empty file",
            ),
            (
                "retrieve seq.npy --online --labels absent.csv",
                "absent.csv: cannot read: No such file or directory (os error 2)",
            ),
        ],
    );
}

#[test]
fn output_folders() {
    let sandbox = sandbox();
    sandbox.file("file", "");
    std::fs::create_dir(sandbox.path("inputs")).unwrap();
    std::fs::copy(sandbox.path("seq.npy"), sandbox.path("inputs/seq.npy")).unwrap();
    check(
        &sandbox,
        &[
            (
                "store seq.npy --out made",
                "--out: expected a folder that does not exist yet (--force replaces it whole), got made",
            ),
            (
                "retrieve seq.npy --out made",
                "--out: expected a folder that does not exist yet (--force replaces it whole), got made",
            ),
            ("store seq.npy --out file", "--out: file is not a directory; choose another name"),
            ("store seq.npy --out file --force", "--out: file is not a directory; choose another name"),
            ("store seq.npy --out file/x", "file/x: cannot look at: Not a directory (os error 20)"),
            (
                "store seq.npy --out . --force",
                "--out: . holds the working or home directory; choose another directory",
            ),
            (
                "store seq.npy --out inputs/.. --force",
                "--out: inputs/.. holds the working or home directory; choose another directory",
            ),
            ("store seq.npy --out / --force", "--out: / has no name; name a directory"),
            (
                "store inputs/seq.npy --out inputs --force",
                "--out: inputs holds seq.npy, which nmem did not write; move it away, or choose another directory",
            ),
            ("store absent.npy", "absent.npy: cannot open: No such file or directory (os error 2)"),
            (
                "store absent.npy --out a/b/c",
                "absent.npy: cannot open: No such file or directory (os error 2)",
            ),
        ],
    );
}

#[test]
fn settings_files() {
    let sandbox = sandbox();
    sandbox.file("key.toml", "data = \"seq.npy\"\n\n# sizes\nchunk_sise = 4\n");
    sandbox.file("flag.toml", "chunk-size = 4\n");
    sandbox.file("table.toml", "[store]\ndata = \"seq.npy\"\n");
    sandbox.file("type.toml", "data = \"seq.npy\"\nchunk_size = \"4\"\n");
    sandbox.file("gate.toml", "learning_rate = true\n");
    sandbox.file("negative.toml", "data = \"seq.npy\"\nlearning_rate = -1\n");
    sandbox.file("minus.toml", "data = \"seq.npy\"\nthreads = -1\n");
    sandbox.file("dtype.toml", "dtype = \"f16\"\n");
    sandbox.file("syntax.toml", "data = \"seq.npy\n");
    sandbox.file("latin.toml", b"data = \"\xe9.npy\"\n");
    sandbox.file("twice.toml", "seed = 1\nseed = 2\n");
    sandbox.file("none.toml", "chunk_size = 4\n");
    check(
        &sandbox,
        &[
            (
                "store --config absent.toml",
                "absent.toml: cannot read: No such file or directory (os error 2)",
            ),
            ("store --config made", "made: cannot read: Is a directory (os error 21)"),
            (
                "store --config key.toml",
                "key.toml: expected a known setting, got `chunk_sise` in line 4 (did you mean `chunk_size`?)",
            ),
            (
                "store --config flag.toml",
                "flag.toml: expected a known setting, got `chunk-size` in line 1 (did you mean `chunk_size`?)",
            ),
            (
                "store --config table.toml",
                "table.toml: expected a known setting, got `store` in line 1 (did you mean `store_seq`?)",
            ),
            (
                "store --config type.toml",
                "type.toml: expected settings in TOML, got this in line 2: invalid type: string \"4\", expected a whole number",
            ),
            (
                "store --config gate.toml",
                "gate.toml: expected settings in TOML, got this in line 1: expected a number or \"learned\"",
            ),
            (
                "store --config negative.toml",
                "--learning-rate -1 is below 0; use a finite value of 0 or more",
            ),
            (
                "store --config minus.toml",
                "minus.toml: expected settings in TOML, got this in line 2: invalid value: integer `-1`, expected a whole number",
            ),
            (
                "store --config dtype.toml",
                "dtype.toml: expected settings in TOML, got this in line 1: unknown variant `f16`, expected `f32` or `f64`",
            ),
            (
                "store --config syntax.toml",
                "syntax.toml: expected settings in TOML, got this in line 1: invalid basic string, expected `\"`",
            ),
            ("store --config latin.toml", "latin.toml: cannot read: stream did not contain valid UTF-8"),
            (
                "store --config twice.toml",
                "twice.toml: expected settings in TOML, got this in line 2: duplicate key",
            ),
            (
                "store --config none.toml",
                "SEQ.npy: expected a sequence to work on (or `data` in --config), got none",
            ),
        ],
    );
}

/// What would need more memory than anyone has is refused by its size, not by an abort.
#[test]
fn sizes_beyond_reason() {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[20_000, 2], 1));
    check(
        &sandbox,
        &[
            (
                "store seq.npy --chunk-size 20000",
                "--chunk-size 20000 is above 16384: attention within a chunk takes the square of its size in memory; use 2 to 16384",
            ),
            (
                "store seq.npy --heads 2 --dim-head 1000000",
                "--heads, --dim-head: expected sizes that need at most 4294967296 numbers, got heads 2, dim_head 1000000, dim 2: 16000000000000",
            ),
            (
                "store seq.npy --heads 99999999999 --dim-head 999999999",
                "--heads, --dim-head: expected sizes that need at most 4294967296 numbers, got heads 99999999999, dim_head 999999999, dim 2: 799999998392000000815999999992",
            ),
        ],
    );
    // A chunk longer than all tokens costs nothing: they wait for the rest of it.
    sandbox.npy("short.npy", &tokens(&[10, 2], 7));
    let output = sandbox.ok("store short.npy --chunk-size 16384 --out long");
    assert_eq!(output.err, "warning: nothing stored yet: 10 of the 16384 tokens of a chunk\n");
    assert_eq!(sandbox.tensors("long/memory.safetensors")["state.left_over"].shape, [1, 10, 2]);
    // Nor does reading one that is cut short: work and memory are those of the tokens there are.
    sandbox.ok("retrieve short.npy --chunk-size 16384 --out plain -q");
    sandbox.ok("retrieve short.npy --online --chunk-size 16384 --out online -q");
    assert!(sandbox.floats("plain/retrieved.npy").iter().all(|x| x.is_finite()));
    assert!(sandbox.floats("online/retrieved.npy").iter().all(|&x| x == 0.0));
}

#[test]
fn numbers_too_large_for_f32() {
    let sandbox = sandbox();
    let mut weights = parameters(&sandbox);
    let huge = Raw::new(Dtype::F64, &Array2::from_elem((2, 2), 1e300).into_dyn());
    weights.insert("memory_model.weights.2".into(), huge);
    write_tensors(&sandbox.path("huge.safetensors"), &weights);
    check(
        &sandbox,
        &[(
            "store seq.npy --memory huge.safetensors --chunk-size 4 --out out",
            "huge.safetensors: expected numbers that f32 can hold, got 1e300 at tensor memory_model.weights.2, element [0, 0] (--dtype f64 holds it)",
        )],
    );
}
