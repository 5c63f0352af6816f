//! `nmem retrieve`: a plain read, online, and with another sequence stored.

use ndarray::{Axis, s};

use crate::support::assert_close;
use crate::{Sandbox, Transcript, counts, tokens};

const HEADS: &str = "--memory weights.safetensors --chunk-size 4";

#[test]
fn a_plain_read_writes_what_was_read() {
    let sandbox = Sandbox::with_golden("heads");
    sandbox.ok(&format!("store seq.npy {HEADS} --out stored -q"));
    let output = sandbox.ok("retrieve seq.npy --memory stored/memory.safetensors");
    assert_eq!(sandbox.names("results"), ["seq-retrieve"]);
    assert_eq!(sandbox.names("results/seq-retrieve"), ["retrieved.npy", "run.json"]);
    assert_eq!(output.err, "");
    assert_eq!(counts(output.out.lines().next().unwrap()), [2, 34, 16], "{}", output.out);
    assert_eq!(sandbox.f32s("results/seq-retrieve/retrieved.npy").shape(), [2, 34, 16]);
    let run = sandbox.json("results/seq-retrieve/run.json");
    assert_eq!((&run["command"], &run["config"]["mode"]), (&"retrieve".into(), &"read".into()));
    assert_eq!(run["rows"], 0);
    assert!(run["life_tokens"].is_null());
    assert_eq!(run["summary"].as_object().unwrap().keys().collect::<Vec<_>>(), ["retrieved_norm"]);
}

#[test]
fn online_writes_all_that_store_writes_too() {
    let sandbox = Sandbox::with_golden("heads");
    sandbox.ok(&format!("retrieve seq.npy --online {HEADS}"));
    let out = "results/seq-retrieve";
    assert_eq!(
        sandbox.names(out),
        ["memory.safetensors", "metrics.csv", "plots", "retrieved.npy", "run.json"]
    );
    let table = sandbox.csv(&format!("{out}/metrics.csv"));
    for column in ["loss_before", "loss_after"] {
        assert!(table.texts(column).iter().all(|text| text.is_empty()), "{column}");
    }
    sandbox.ok(&format!("retrieve seq.npy --online --probe {HEADS} --out probed -q"));
    sandbox.ok(&format!("store seq.npy {HEADS} --out stored -q"));
    assert!(
        sandbox.bytes("probed/metrics.csv") == sandbox.bytes("stored/metrics.csv"),
        "what is stored is the same"
    );
    assert!(sandbox.bytes("probed/memory.safetensors") == sandbox.bytes("stored/memory.safetensors"));
    assert!(sandbox.bytes("probed/retrieved.npy") == sandbox.bytes(&format!("{out}/retrieved.npy")));
}

#[test]
fn what_comes_out_has_the_rank_of_the_queries_and_the_type_of_the_flag() {
    let sandbox = Sandbox::new();
    let seq = tokens(&[21, 6], 1);
    sandbox.npy("two.npy", &seq);
    sandbox.npy("three.npy", &seq.clone().insert_axis(Axis(0)));
    for mode in ["", "--online"] {
        for dtype in ["f32", "f64"] {
            for name in ["two", "three"] {
                sandbox.ok(&format!(
                    "retrieve {name}.npy {mode} --chunk-size 4 --dtype {dtype} --out {name} --force -q --no-plots"
                ));
            }
            let read = |name: &str| match dtype {
                "f32" => sandbox.f32s(name).mapv(f64::from),
                _ => sandbox.f64s(name),
            };
            let (two, three) = (read("two/retrieved.npy"), read("three/retrieved.npy"));
            assert_eq!((two.shape(), three.shape()), (&[21, 6][..], &[1, 21, 6][..]));
            assert_eq!(two, three.index_axis_move(Axis(0), 0));
            assert!(two.iter().any(|&x| x != 0.0));
        }
    }
}

#[test]
fn a_plain_read_uses_the_last_weights_and_counts_from_the_first_query() {
    let sandbox = Sandbox::with_golden("heads");
    sandbox.ok(&format!("store seq.npy {HEADS} --out stored -q --dtype f64"));
    let queries = tokens(&[2, 11, 16], 2);
    sandbox.npy("queries.npy", &queries);
    let read = |name: &str| {
        sandbox.ok(&format!(
            "retrieve {name} --memory stored/memory.safetensors --dtype f64 --out read --force -q"
        ));
        sandbox.f64s("read/retrieved.npy")
    };
    let all = read("queries.npy");
    assert!(all.slice(s![.., ..4, ..]).iter().any(|&x| x != 0.0), "the first chunk is read like any other");
    // Whole chunks do not know of each other.
    sandbox.npy("tail.npy", &queries.slice(s![.., 4.., ..]).to_owned().into_dyn());
    assert_close("tail", read("tail.npy").view(), all.slice(s![.., 4.., ..]).into_dyn(), 1e-12, 0.0);
    // Nor do tokens know of later ones.
    sandbox.npy("head.npy", &queries.slice(s![.., ..6, ..]).to_owned().into_dyn());
    assert_close("head", read("head.npy").view(), all.slice(s![.., ..6, ..]).into_dyn(), 1e-12, 0.0);
}

#[test]
fn one_state_answers_any_number_of_sequences() {
    let sandbox = Sandbox::with_golden("wide_heads");
    let seq = sandbox.f32s("seq.npy");
    let one = seq.index_axis(Axis(0), 0).to_owned();
    sandbox.npy("one.npy", &one);
    sandbox.ok(&format!("store one.npy {HEADS} --out stored -q"));
    let dim = *one.shape().last().unwrap();
    let queries = tokens(&[3, 10, dim], 3);
    sandbox.npy("queries.npy", &queries);
    sandbox.ok("retrieve queries.npy --memory stored/memory.safetensors --out all -q");
    let all = sandbox.f32s("all/retrieved.npy");
    for i in 0..3 {
        sandbox.npy("query.npy", &queries.index_axis(Axis(0), i).to_owned());
        sandbox.ok("retrieve query.npy --memory stored/memory.safetensors --out one --force -q");
        assert_eq!(sandbox.f32s("one/retrieved.npy"), all.index_axis(Axis(0), i), "sequence {i}");
    }
}

#[test]
fn storing_less_than_is_read_is_said() {
    let sandbox = Sandbox::new();
    sandbox.npy("read.npy", &tokens(&[30, 4], 4));
    sandbox.npy("store.npy", &tokens(&[9, 4], 5));
    let line = "--chunk-size 4 --out out --force --no-plots";
    let fewer = format!("retrieve read.npy --store-seq store.npy {line}");
    let output = sandbox.ok(&fewer);
    let mut said = Transcript::new();
    said.ran(&sandbox, &fewer, &output);
    insta::assert_snapshot!(said);
    assert_eq!(counts(output.out.lines().next().unwrap()), [1, 30, 9, 4], "{}", output.out);
    assert_eq!(sandbox.f32s("out/retrieved.npy").shape(), [30, 4]);
    assert_eq!(sandbox.csv("out/metrics.csv").rows.len(), 2);
    assert_eq!(sandbox.json("out/run.json")["warnings"].as_array().unwrap().len(), 1);
    let quiet = sandbox.ok(&format!("retrieve read.npy --store-seq store.npy {line} -q"));
    assert_eq!((&quiet.out[..], &quiet.err[..]), ("", ""));
    // Storing more is nothing to mention.
    let output = sandbox.ok(&format!("retrieve store.npy --store-seq read.npy {line}"));
    assert_eq!(output.err, "");
    assert_eq!(sandbox.csv("out/metrics.csv").rows.len(), 7);
}

#[test]
fn short_reads_are_zeros() {
    let sandbox = Sandbox::new();
    for n in [0, 1, 3, 4] {
        sandbox.npy("seq.npy", &tokens(&[n, 4], 6));
        sandbox.ok("retrieve seq.npy --online --chunk-size 4 --out out --force -q");
        let read = sandbox.f32s("out/retrieved.npy");
        assert_eq!(read.shape(), [n, 4]);
        assert!(read.iter().all(|&x| x == 0.0), "{n} tokens");
        assert_eq!(sandbox.csv("out/metrics.csv").rows.len(), n / 4);
    }
}
