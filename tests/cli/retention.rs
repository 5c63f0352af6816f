//! `--retention`: retention.csv, its figure and its place in run.json, beside results that it leaves alone.

use std::collections::BTreeMap;

use crate::{Sandbox, Transcript};

const RUN: &str = "--memory passages.safetensors --chunk-size 16";

#[test]
fn every_kth_chunk_under_every_later_memory() {
    let sandbox = Sandbox::with_passages();
    sandbox.ok(&format!("store passages.npy {RUN} --out plain"));
    let shown = sandbox.ok(&format!("store passages.npy {RUN} --retention 10 --out kept"));
    let (metrics, retention) = (sandbox.csv("kept/metrics.csv"), sandbox.csv("kept/retention.csv"));
    assert_eq!(sandbox.bytes("kept/metrics.csv"), sandbox.bytes("plain/metrics.csv"));
    assert_eq!(sandbox.bytes("kept/memory.safetensors"), sandbox.bytes("plain/memory.safetensors"));

    // 2048 tokens: 128 chunks, of which 9, 19, … 119 are kept and read after each of them and after the last.
    assert_eq!(retention.header, ["sequence", "after", "chunk", "head", "loss", "loss_at_w"]);
    let heads = 4;
    let mut expected = Vec::new();
    for after in (9..128).step_by(10).chain([127]) {
        for chunk in (9..=after).step_by(10) {
            expected.extend((0..heads).map(|head| [0, after, chunk, head].map(|n: usize| n.to_string())));
        }
    }
    let places: Vec<_> = retention.rows.iter().map(|row| &row[..4]).collect();
    assert_eq!(places, expected);

    // The control of each kept chunk but the first: the memory ten chunks before it was stored.
    let unstored = sandbox.csv("kept/unstored.csv");
    assert_eq!(unstored.header, retention.header);
    let mut expected = Vec::new();
    for chunk in (19..128).step_by(10) {
        expected.extend((0..heads).map(|head| [0, chunk - 10, chunk, head].map(|n: usize| n.to_string())));
    }
    assert_eq!(unstored.rows.iter().map(|row| &row[..4]).collect::<Vec<_>>(), expected);
    let sum = |column: &str| unstored.numbers(column).iter().sum::<f64>();
    let ratio = sandbox.json("kept/run.json")["unstored_ratio"].as_f64().unwrap();
    assert!((ratio - sum("loss") / sum("loss_at_w")).abs() < 1e-6);
    // A chunk before the control's memory has been stored, so with --retention 1 it is what a probe finds before storing.
    sandbox.ok(&format!("store passages.npy {RUN} --retention 1 --out each --no-plots"));
    let (each, before) = (sandbox.csv("each/unstored.csv"), metrics.numbers("loss_before"));
    for (got, expected) in each.numbers("loss").iter().zip(&before[heads..]) {
        assert!((got - expected).abs() <= 1e-5 * expected, "{got} for {expected}");
    }

    // At once it is what a probe finds after storing; ℓ at W is that of metrics.csv.
    let of_metrics: BTreeMap<_, _> = metrics.rows.iter().map(|row| ((&row[1], &row[2]), row)).collect();
    for row in &retention.rows {
        let stored = of_metrics[&(&row[2], &row[3])];
        assert_eq!(row[5], stored[5]);
        if row[1] == row[2] {
            assert_eq!(row[4], stored[7]);
        }
    }

    let report = sandbox.json("kept/run.json");
    assert_eq!(report["config"]["retention"], 10);
    let last = retention.rows.iter().filter(|row| row[1] == "127");
    let sum = |column: usize| last.clone().map(|row| row[column].parse::<f64>().unwrap()).sum::<f64>();
    let (ratio, expected) = (report["retained_ratio"].as_f64().unwrap(), sum(4) / sum(5));
    assert!((ratio / expected - 1.0).abs() < 1e-6, "{ratio}, expected {expected}");
    assert!(shown.out.contains(&format!(": {ratio:.5}")), "{}", shown.out);
    assert!(report["wall_s"]["engine_phases"]["retention"].as_f64().unwrap() > 0.0);

    let figure = String::from_utf8(sandbox.bytes("kept/plots/retention.svg")).unwrap();
    for text in ["stored up to chunk", "chunk kept", "loss ÷ loss at W"] {
        assert!(figure.contains(text), "{text}");
    }
    // Of 13 × 12 cells the 12 · 13 / 2 on and above the diagonal, and the 12 after the last chunk; paper and bar apart.
    assert_eq!(figure.matches("<rect").count(), 12 * 13 / 2 + 12 + 1 + 64);
    assert!(sandbox.json("plain/run.json")["retained_ratio"].is_null());
    assert!(!sandbox.path("plain/retention.csv").exists());
}

#[test]
fn online_from_a_file_and_for_several_sequences() {
    let sandbox = Sandbox::with_golden("batch");
    sandbox.file(
        "run.toml",
        "data = \"seq.npy\"\nmemory = \"weights.safetensors\"\nchunk_size = 4\nretention = 1\n",
    );
    sandbox.ok("retrieve --online --config run.toml --out online");
    let rows = sandbox.csv("online/retention.csv").rows;
    let by: Vec<[usize; 4]> =
        rows.iter().map(|row| std::array::from_fn(|column| row[column].parse().unwrap())).collect();
    assert!(
        by.is_sorted() && by.last().unwrap()[0] > 0,
        "by sequence, moment, chunk and head, several sequences"
    );
    sandbox.ok("retrieve --config run.toml --out read");
    assert!(!sandbox.path("read/retention.csv").exists(), "a plain read stores nothing");
}

#[test]
fn rejections() {
    let sandbox = Sandbox::with_passages();
    sandbox.ok(&format!("store passages.npy {RUN} --no-plots --out first"));
    let said = Transcript::of_rejected(
        &sandbox,
        &[
            "store passages.npy --memory first/memory.safetensors --retention 2 --out again",
            &format!("store passages.npy {RUN} --retention 0 --out x"),
            "retrieve passages.npy --memory first/memory.safetensors --retention 2 --out x",
        ],
    );
    insta::assert_snapshot!(said);
}

#[test]
fn nothing_kept() {
    let sandbox = Sandbox::with_passages();
    sandbox.ok(&format!("store passages.npy {RUN} --retention 1000 --out none"));
    assert!(sandbox.csv("none/retention.csv").rows.is_empty());
    assert!(sandbox.json("none/run.json")["retained_ratio"].is_null());
    let figure = String::from_utf8(sandbox.bytes("none/plots/retention.svg")).unwrap();
    assert!(figure.contains("no chunk was kept"));
}

/// A diverged run keeps its rows up to the divergence and a figure. A loss that is not finite is marked and does not stop the run.
#[test]
fn a_diverging_run_keeps_what_it_had() {
    let sandbox = Sandbox::with_passages();
    let output = sandbox.run(&format!(
        "store passages.npy {RUN} --learning-rate 1e3 --momentum 3 --decay 0 --retention 2 --no-probe --out wild"
    ));
    assert_eq!(output.code, Some(1), "{}", output.err);
    let report = sandbox.json("wild/run.json");
    let chunk = report["diverged"]["chunk"].as_u64().unwrap() as usize;
    assert!(report["retained_ratio"].is_null());
    let rows = sandbox.csv("wild/retention.csv").rows;
    assert!(!rows.is_empty() && rows.iter().all(|row| row[1].parse::<usize>().unwrap() < chunk));
    assert!(sandbox.path("wild/plots/retention.svg").exists());
}
