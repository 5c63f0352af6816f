//! `nmem retrieve`: a plain read, online, and with another sequence stored.

use ndarray::{Axis, s};

use crate::support::assert_close;
use crate::{Desk, tokens};

const HEADS: &str = "--memory weights.safetensors --chunk-size 4";

#[test]
fn a_plain_read_writes_what_was_read() {
    let desk = Desk::with_golden("heads");
    desk.ok(&format!("store seq.npy {HEADS} --out stored -q"));
    let ran = desk.ok("retrieve seq.npy --memory stored/memory.safetensors");
    assert_eq!(desk.names("results"), ["seq-retrieve"]);
    assert_eq!(desk.names("results/seq-retrieve"), ["retrieved.npy", "run.json"]);
    assert_eq!(ran.err, "");
    assert_eq!(ran.out.lines().next(), Some("read             2 sequences of 34 tokens, dim 16"));
    assert_eq!(desk.f32s("results/seq-retrieve/retrieved.npy").shape(), [2, 34, 16]);
    let run = desk.json("results/seq-retrieve/run.json");
    assert_eq!((&run["command"], &run["config"]["mode"]), (&"retrieve".into(), &"read".into()));
    assert_eq!(run["rows"], 0);
    assert!(run["life_tokens"].is_null() && run["summary"].as_object().unwrap().is_empty());
}

#[test]
fn online_writes_all_that_store_writes_too() {
    let desk = Desk::with_golden("heads");
    desk.ok(&format!("retrieve seq.npy --online {HEADS}"));
    let out = "results/seq-retrieve";
    assert_eq!(desk.names(out), ["memory.safetensors", "metrics.csv", "plots", "retrieved.npy", "run.json"]);
    let table = desk.csv(&format!("{out}/metrics.csv"));
    for column in ["loss_before", "loss_after"] {
        assert!(table.texts(column).iter().all(|text| text.is_empty()), "{column}");
    }
    desk.ok(&format!("retrieve seq.npy --online --probe {HEADS} --out probed -q"));
    desk.ok(&format!("store seq.npy {HEADS} --out stored -q"));
    assert!(
        desk.bytes("probed/metrics.csv") == desk.bytes("stored/metrics.csv"),
        "what is stored is the same"
    );
    assert!(desk.bytes("probed/memory.safetensors") == desk.bytes("stored/memory.safetensors"));
    assert!(desk.bytes("probed/retrieved.npy") == desk.bytes(&format!("{out}/retrieved.npy")));
}

#[test]
fn what_comes_out_has_the_rank_of_the_queries_and_the_type_of_the_flag() {
    let desk = Desk::new();
    let seq = tokens(&[21, 6], 1);
    desk.npy("two.npy", &seq);
    desk.npy("three.npy", &seq.clone().insert_axis(Axis(0)));
    for mode in ["", "--online"] {
        for dtype in ["f32", "f64"] {
            for name in ["two", "three"] {
                desk.ok(&format!(
                    "retrieve {name}.npy {mode} --chunk-size 4 --dtype {dtype} --out {name} --force -q --no-plots"
                ));
            }
            let read = |name: &str| match dtype {
                "f32" => desk.f32s(name).mapv(f64::from),
                _ => desk.f64s(name),
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
    let desk = Desk::with_golden("heads");
    desk.ok(&format!("store seq.npy {HEADS} --out stored -q --dtype f64"));
    let queries = tokens(&[2, 11, 16], 2);
    desk.npy("queries.npy", &queries);
    let read = |name: &str| {
        desk.ok(&format!(
            "retrieve {name} --memory stored/memory.safetensors --dtype f64 --out read --force -q"
        ));
        desk.f64s("read/retrieved.npy")
    };
    let all = read("queries.npy");
    assert!(all.slice(s![.., ..4, ..]).iter().any(|&x| x != 0.0), "the first chunk is read like any other");
    // Whole chunks do not know of each other.
    desk.npy("tail.npy", &queries.slice(s![.., 4.., ..]).to_owned().into_dyn());
    assert_close("tail", read("tail.npy").view(), all.slice(s![.., 4.., ..]).into_dyn(), 1e-12, 0.0);
    // Nor do tokens know of later ones.
    desk.npy("head.npy", &queries.slice(s![.., ..6, ..]).to_owned().into_dyn());
    assert_close("head", read("head.npy").view(), all.slice(s![.., ..6, ..]).into_dyn(), 1e-12, 0.0);
}

#[test]
fn one_state_answers_any_number_of_sequences() {
    let desk = Desk::with_golden("wide_heads");
    let seq = desk.f32s("seq.npy");
    let one = seq.index_axis(Axis(0), 0).to_owned();
    desk.npy("one.npy", &one);
    desk.ok(&format!("store one.npy {HEADS} --out stored -q"));
    let dim = *one.shape().last().unwrap();
    let queries = tokens(&[3, 10, dim], 3);
    desk.npy("queries.npy", &queries);
    desk.ok("retrieve queries.npy --memory stored/memory.safetensors --out all -q");
    let all = desk.f32s("all/retrieved.npy");
    for i in 0..3 {
        desk.npy("query.npy", &queries.index_axis(Axis(0), i).to_owned());
        desk.ok("retrieve query.npy --memory stored/memory.safetensors --out one --force -q");
        assert_eq!(desk.f32s("one/retrieved.npy"), all.index_axis(Axis(0), i), "sequence {i}");
    }
}

#[test]
fn storing_less_than_is_read_is_said() {
    let desk = Desk::new();
    desk.npy("read.npy", &tokens(&[30, 4], 4));
    desk.npy("store.npy", &tokens(&[9, 4], 5));
    let line = "--chunk-size 4 --out out --force --no-plots";
    let ran = desk.ok(&format!("retrieve read.npy --store-seq store.npy {line}"));
    assert_eq!(
        ran.err,
        "warning: 9 tokens stored and 30 read so far: from chunk 3 on, reads used the last weights\n"
    );
    assert_eq!(
        ran.out.lines().next(),
        Some("read and stored  1 sequence of 30 tokens read and 9 stored, dim 4")
    );
    assert_eq!(desk.f32s("out/retrieved.npy").shape(), [30, 4]);
    assert_eq!(desk.csv("out/metrics.csv").rows.len(), 2);
    assert_eq!(desk.json("out/run.json")["warnings"].as_array().unwrap().len(), 1);
    let quiet = desk.ok(&format!("retrieve read.npy --store-seq store.npy {line} -q"));
    assert_eq!((&quiet.out[..], &quiet.err[..]), ("", ""));
    // Storing more is nothing to mention.
    let ran = desk.ok(&format!("retrieve store.npy --store-seq read.npy {line}"));
    assert_eq!(ran.err, "");
    assert_eq!(desk.csv("out/metrics.csv").rows.len(), 7);
}

#[test]
fn short_reads_are_zeros() {
    let desk = Desk::new();
    for n in [0, 1, 3, 4] {
        desk.npy("seq.npy", &tokens(&[n, 4], 6));
        desk.ok("retrieve seq.npy --online --chunk-size 4 --out out --force -q");
        let read = desk.f32s("out/retrieved.npy");
        assert_eq!(read.shape(), [n, 4]);
        assert!(read.iter().all(|&x| x == 0.0), "{n} tokens");
        assert_eq!(desk.csv("out/metrics.csv").rows.len(), n / 4);
    }
}
