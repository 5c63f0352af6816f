//! Commands that cannot run: exit status 2, one line that names the file or flag and the problem, and no files left.

#![allow(clippy::too_many_lines, reason = "tables of cases")]

use std::collections::BTreeMap;
use std::fs::File;

use ndarray::{Array1, Array2, Array4, ArrayD};
use ndarray_npy::{NpzWriter, write_npy};
use safetensors::Dtype;

use crate::{Raw, Sandbox, Transcript, tokens, write_tensors};

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
    let said = Transcript::of_rejected(
        &sandbox,
        &[
            "frob",
            "stor",
            "store seq.npy --frob",
            "store seq.npy --thread 2",
            "store",
            "retrieve --online",
            "store a.npy b.npy",
            "store seq.npy --chunk-size",
            "store seq.npy --chunk-size x",
            "store seq.npy --chunk-size 1.5",
            "store seq.npy --chunk-size -1",
            "store seq.npy --chunk-size 0",
            "store seq.npy --chunk-size 1",
            "store seq.npy --heads 0",
            "store seq.npy --dim-head 0",
            "store seq.npy --threads 0",
            "store seq.npy --threads 100000000",
            "store seq.npy --threads -2",
            "store seq.npy --repeat -2",
            "store seq.npy --seed -1",
            "store seq.npy --init zeros",
            "store seq.npy --dtype f16",
            "store seq.npy --format xml",
            "store seq.npy -q -v",
            "store seq.npy --learning-rate fast",
            "store seq.npy --learning-rate -0.5",
            "store seq.npy --momentum nan",
            "store seq.npy --decay inf",
            "store seq.npy --decay-bias nan",
            "store seq.npy --momentum-bias x",
            "store seq.npy --decay 0.5 --decay-bias 1",
            "store seq.npy --memory w.npz --seed 1",
            "store seq.npy --memory w.npz --init randn",
            "store seq.npy --memory w.npz --no-pre-norm",
            "store seq.npy --memory w.npz --no-post-norm",
            "store - --memory -",
            "store seq.npy --memory - --past -",
            "retrieve - --store-seq -",
            "retrieve seq.npy --online=false --store-seq store.npy",
            "completions",
            "completions tcsh",
            "inspect",
        ],
    );
    insta::assert_snapshot!(said);
}

#[test]
fn flags_without_effect() {
    let said = Transcript::of_rejected(
        &Sandbox::new(),
        &[
            "store seq.npy --online",
            "store seq.npy --store-seq x.npy",
            "store seq.npy --probe",
            "retrieve seq.npy --no-probe",
            "retrieve seq.npy --online --no-probe",
            "retrieve seq.npy --probe",
            "retrieve seq.npy --labels x.csv",
            "retrieve seq.npy --restart-momentum",
            "retrieve seq.npy --learning-rate 1",
            "retrieve seq.npy --momentum-bias 1",
            "retrieve seq.npy --decay learned",
        ],
    );
    insta::assert_snapshot!(said);
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
    let mut said = Transcript::of_rejected(
        &sandbox,
        &[
            "store absent.npy",
            "store made",
            "store cut-header.npy",
            "store cut.npy",
            "store long.npy",
            "store empty.npy",
            "store text.npy",
            "store weights.safetensors",
            "store one.npy",
            "store four.npy",
            "store int.npy",
            "store bool.npy",
            "store none.npy",
            "store nan.npy",
            "store inf.npy",
            "retrieve inf.npy",
            "store big.npy",
            "retrieve seq.npy --store-seq absent.npy",
            "retrieve seq.npy --store-seq nan.npy",
            "retrieve seq.npy --store-seq wide.npy",
            "retrieve seq.npy --store-seq three.npy",
            "store wide.npy --memory weights.safetensors --chunk-size 4",
            "store three.npy --memory made/memory.safetensors",
            "retrieve three.npy --memory made/memory.safetensors --online",
            "store seq.npy --heads 3",
            "store seq.npy --dim-head 2",
        ],
    );
    let mut piped = sandbox.command("store -");
    piped.write_stdin(&good[..good.len() - 5]);
    let message = sandbox.one_error(&Sandbox::finish(piped), 2, "store -");
    said.error("store - < cut.npy", 2, &message);
    insta::assert_snapshot!(said);
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
    other[text] = b'3';
    sandbox.file("newer.safetensors", other);
    sandbox.npy("wide.npy", &tokens(&[7, 6], 1));
    let of_a_model = |(name, tensor)| (format!("layers.3.memory.{name}"), tensor);
    write_tensors(
        &sandbox.path("model.safetensors"),
        &parameters(&sandbox).into_iter().map(of_a_model).collect(),
    );
    // Names of a saved memory's state in files without metadata, and a second memory beside the first.
    let raw = parameters(&sandbox);
    let of_a_state = raw.iter().map(|(name, tensor)| (format!("state.{name}"), tensor.clone()));
    write_tensors(&sandbox.path("state.safetensors"), &of_a_state.collect());
    let mut npz = NpzWriter::new(File::create(sandbox.path("state.npz")).unwrap());
    npz.add_array("state.to_queries.weight", &tokens(&[6, 6], 1)).unwrap();
    npz.finish().unwrap();
    for (file, name) in [("state-extra", "state.other"), ("two", "layers.3.memory.to_queries.weight")] {
        let mut more = raw.clone();
        more.insert(name.to_owned(), raw["to_queries.weight"].clone());
        write_tensors(&sandbox.path(&format!("{file}.safetensors")), &more);
    }
    let cases = [
        "absent.safetensors",
        "seq.npy",
        "made",
        "missing.safetensors",
        "no-weight.safetensors",
        "half-norms.safetensors",
        "no-combine.safetensors",
        "keys.safetensors",
        "gate.safetensors",
        "weight.safetensors",
        "extra.safetensors",
        "model.safetensors",
        "state.safetensors",
        "state.npz",
        "state-extra.safetensors",
        "two.safetensors",
        "nan.safetensors",
        "int.safetensors",
        "cut.safetensors",
        "newer.safetensors",
        "weights.safetensors --heads 4",
        "weights.safetensors --dim-head 4",
        "weights.safetensors --past absent.npz",
        "weights.safetensors --past past-3.safetensors",
        "weights.safetensors --past past-few.safetensors",
        "weights.safetensors --past past-many.safetensors",
    ]
    .map(|flags| format!("store seq.npy --chunk-size 4 --memory {flags}"));
    let mut said = Transcript::new();
    for line in &cases {
        said.reject(&sandbox, line);
    }
    for line in [
        "store seq.npy --memory weights.safetensors",
        "retrieve seq.npy --memory weights.safetensors",
        "store seq.npy --memory made/memory.safetensors --chunk-size 8",
    ] {
        said.reject(&sandbox, line);
    }
    insta::assert_snapshot!(said);
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
    let said = Transcript::of_rejected(
        &sandbox,
        &[
            "store seq.npy --labels absent.csv",
            "store seq.npy --labels position.csv",
            "store seq.npy --labels segment.csv",
            "store seq.npy --labels word.csv",
            "store seq.npy --labels twice.csv",
            "store seq.npy --labels ragged.csv",
            "store seq.npy --labels empty.csv",
            "retrieve seq.npy --online --labels absent.csv",
        ],
    );
    insta::assert_snapshot!(said);
}

#[test]
fn output_directories() {
    let sandbox = sandbox();
    sandbox.file("file", "");
    std::fs::create_dir(sandbox.path("inputs")).unwrap();
    std::fs::copy(sandbox.path("seq.npy"), sandbox.path("inputs/seq.npy")).unwrap();
    let said = Transcript::of_rejected(
        &sandbox,
        &[
            "store seq.npy --out made",
            "retrieve seq.npy --out made",
            "store seq.npy --out file",
            "store seq.npy --out file --force",
            "store seq.npy --out file/x",
            "store seq.npy --out . --force",
            "store seq.npy --out inputs/.. --force",
            "store seq.npy --out / --force",
            "store inputs/seq.npy --out inputs --force",
            "store absent.npy",
            "store absent.npy --out a/b/c",
        ],
    );
    insta::assert_snapshot!(said);
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
    let said = Transcript::of_rejected(
        &sandbox,
        &[
            "store --config absent.toml",
            "store --config made",
            "store --config key.toml",
            "store --config flag.toml",
            "store --config table.toml",
            "store --config type.toml",
            "store --config gate.toml",
            "store --config negative.toml",
            "store --config minus.toml",
            "store --config dtype.toml",
            "store --config syntax.toml",
            "store --config latin.toml",
            "store --config twice.toml",
            "store --config none.toml",
        ],
    );
    insta::assert_snapshot!(said);
}

/// Requests beyond any memory are rejected by their size, not by an abort.
#[test]
fn sizes_beyond_reason() {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[20_000, 2], 1));
    let mut said = Transcript::of_rejected(
        &sandbox,
        &[
            "store seq.npy --chunk-size 20000",
            "store seq.npy --heads 2 --dim-head 1000000",
            "store seq.npy --heads 99999999999 --dim-head 999999999",
        ],
    );
    // A chunk longer than all tokens costs nothing: they wait for the rest of it.
    sandbox.npy("short.npy", &tokens(&[10, 2], 7));
    let line = "store short.npy --chunk-size 16384 --out long";
    said.ran(&sandbox, line, &sandbox.ok(line));
    insta::assert_snapshot!(said);
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
    let said = Transcript::of_rejected(
        &sandbox,
        &["store seq.npy --memory huge.safetensors --chunk-size 4 --out out"],
    );
    insta::assert_snapshot!(said);
}
