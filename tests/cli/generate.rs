//! `nmem generate`: the same bytes for the same seed, what each task promises, and parameters that recall.

use std::collections::BTreeMap;

use ndarray::{ArrayD, Axis, s};
use sha2::{Digest, Sha256};

use crate::{Sandbox, Transcript};

fn sha256(bytes: &[u8]) -> String {
    let digits = |text: String, byte: &u8| text + &format!("{byte:02x}");
    Sha256::digest(bytes).iter().fold(String::new(), digits)
}

/// By position: segment, repeat, item.
fn labels(sandbox: &Sandbox, name: &str) -> Vec<(String, bool, Option<usize>)> {
    let table = sandbox.csv(name);
    assert_eq!(table.header, ["position", "segment", "repeat", "item"]);
    let positions: Vec<_> = (0..table.rows.len()).map(|i| i.to_string()).collect();
    assert_eq!(table.texts("position"), positions);
    let rows = table.rows.iter().map(|row| {
        assert!(["0", "1"].contains(&&row[2][..]), "{row:?}");
        (row[1].clone(), row[2] == "1", row[3].parse().ok())
    });
    rows.collect()
}

/// Rows of one sequence as bits, to be told apart exactly.
fn rows(array: &ArrayD<f32>) -> Vec<Vec<u32>> {
    array.rows().into_iter().map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
}

/// The bytes are part of what is promised: the same on every platform and from version to version.
#[test]
fn bytes_are_those_of_the_seed() {
    let sandbox = Sandbox::new();
    let expected = [
        (
            "recall --noise 0.25 --pairs 40",
            "4a3aa9d034f7965ae69464e15947dd07994908a6fe54d955c0c7203192830787",
        ),
        (
            "drift --segment 16 --transition 5",
            "9340590003770e612283b86e3250500069b69ac733c6f3f3db8b417b7b4687bc",
        ),
        (
            "repeats --segment 8 --noise 0.1",
            "869cebfa62aa6aa6eb4cf3da5bc43df3aeb38dd5ca0d925fe2a219086791cc81",
        ),
        ("needle --length 4", "4745823810bd27f9d3ce50438ba597d2b13a8467d9c588bc8b94225cce4b5f15"),
    ];
    let size = "--tokens 100 --dim 12 --sequences 2 --seed 7";
    let mut got = BTreeMap::new();
    for (task, _) in expected {
        let name = task.split(' ').next().unwrap();
        sandbox.ok(&format!("generate {task} {size} --out {name}.npy --labels {name}.csv"));
        let bytes = [sandbox.bytes(&format!("{name}.npy")), sandbox.bytes(&format!("{name}.csv"))].concat();
        got.insert(task, sha256(&bytes));
    }
    assert_eq!(got, BTreeMap::from(expected.map(|(task, sha)| (task, sha.to_owned()))));
}

#[test]
fn shapes_seeds_and_streams() {
    let sandbox = Sandbox::new();
    sandbox.ok("generate drift --tokens 40 --dim 6 --segment 10 --out one.npy");
    assert_eq!(sandbox.f32s("one.npy").shape(), [40, 6]);
    sandbox.ok("generate drift --tokens 40 --dim 6 --segment 10 --sequences 3 --out three.npy");
    let three = sandbox.f32s("three.npy");
    assert_eq!(three.shape(), [3, 40, 6]);
    assert_eq!(
        three.index_axis(Axis(0), 0),
        sandbox.f32s("one.npy"),
        "sequences do not depend on how many there are"
    );
    assert_ne!(three.index_axis(Axis(0), 0), three.index_axis(Axis(0), 1));
    sandbox.ok("generate drift --tokens 40 --dim 6 --segment 10 --seed 1 --out other.npy");
    assert_ne!(sandbox.f32s("other.npy"), sandbox.f32s("one.npy"));

    let piped = sandbox.command("generate drift --tokens 40 --dim 6 --segment 10 --out -").output().unwrap();
    assert_eq!(piped.stdout, sandbox.bytes("one.npy"));
    assert!(piped.stderr.is_empty());
}

/// Fewer tokens than a topic or a passage has by default are one of them.
#[test]
fn few_tokens() {
    let sandbox = Sandbox::new();
    for (task, expected) in [("drift", 128), ("repeats", 64)] {
        sandbox.ok(&format!("generate {task} --tokens 20 --dim 4 --out few.npy --labels few.csv --force"));
        let labels = sandbox.csv("few.csv").rows;
        assert!(labels.len() == 20 && labels.iter().all(|row| row[1] == "0"), "{labels:?}");
        sandbox.ok(&format!("generate {task} --tokens 300 --dim 4 --out many.npy --labels many.csv --force"));
        let labels = sandbox.csv("many.csv");
        let change = labels.rows.iter().position(|row| row[1] != "0");
        assert_eq!(change, Some(expected), "{task}");
    }
}

#[test]
fn repeated_passages_are_equal_and_no_others() {
    let sandbox = Sandbox::new();
    let tasks = ["recall --pairs 30", "repeats --segment 16 --share 0.6", "needle --length 5 --needles 7"];
    for (i, task) in tasks.into_iter().enumerate() {
        sandbox.ok(&format!("generate {task} --tokens 200 --dim 8 --out {i}.npy --labels {i}.csv"));
        let rows = rows(&sandbox.f32s(&format!("{i}.npy")));
        let labels = labels(&sandbox, &format!("{i}.csv"));
        assert_eq!(labels.len(), 200);
        let mut seen = BTreeMap::new();
        for (row, (_, repeat, item)) in rows.iter().zip(&labels) {
            let known = item.and_then(|item| seen.insert(item, row));
            assert_eq!(known.is_some(), *repeat, "{task}: item {item:?}");
            assert!(known.is_none_or(|known| known == row), "{task}: item {item:?} differs");
        }
        let mut different: Vec<_> = rows.clone();
        different.sort();
        different.dedup();
        let fresh = labels.iter().filter(|(_, repeat, _)| !repeat).count();
        assert_eq!(different.len(), fresh, "{task}: different rows");
        assert!(fresh < 200, "{task}: something repeats");
    }
    // Each pair once a pass.
    let recall = labels(&sandbox, "0.csv");
    for (pass, of_pass) in recall.chunks(30).enumerate() {
        assert!(of_pass.iter().all(|(segment, ..)| *segment == pass.to_string()));
        let mut items: Vec<_> = of_pass.iter().filter_map(|(.., item)| *item).collect();
        items.sort_unstable();
        items.dedup();
        assert_eq!(items.len(), of_pass.len());
    }
    let needles = labels(&sandbox, "2.csv");
    assert_eq!(needles.iter().filter(|(segment, ..)| segment == "1").count(), 35);
}

/// ν is a share of variance: content and content with noise correlate with √(1 − ν²), and all stay N(0, 1).
#[test]
fn noise_is_a_share() {
    let sandbox = Sandbox::new();
    let size = "--tokens 2000 --dim 50";
    for (task, content) in [("needle --length 500 --needles 2", 0..0), ("recall --pairs 1000", 0..25)] {
        sandbox.ok(&format!("generate {task} --noise 0.6 {size} --force --out noisy.npy --labels noisy.csv"));
        let all = sandbox.f32s("noisy.npy").mapv(f64::from);
        let mean_square = all.iter().map(|x| x * x).sum::<f64>() / all.len() as f64;
        assert!((mean_square - 1.0).abs() < 0.03, "{task}: mean square {mean_square}");
        let labels = labels(&sandbox, "noisy.csv");
        let mut first = BTreeMap::new();
        let (mut sum, mut count) = (0.0, 0);
        let columns = if content.is_empty() { 0..50 } else { content };
        for (t, (.., item)) in labels.iter().enumerate() {
            let Some(item) = item else { continue };
            if let Some(earlier) = first.insert(*item, t) {
                for column in columns.clone() {
                    sum += all[[t, column]] * all[[earlier, column]];
                    count += 1;
                }
            }
        }
        // Two noisy copies: 1 − ν² = 0.64, with a standard error of 1/√25,000.
        let correlation = sum / f64::from(count);
        assert!((correlation - 0.64).abs() < 0.04, "{task}: {correlation}");
    }
}

#[test]
fn topics_change_where_the_labels_say() {
    let sandbox = Sandbox::new();
    sandbox.ok("generate drift --tokens 96 --dim 400 --segment 32 --transition 7 --noise 0 --out a.npy --labels a.csv");
    let tokens = sandbox.f32s("a.npy").mapv(f64::from);
    let alike = |a: usize, b: usize| (0..400).map(|i| tokens[[a, i]] * tokens[[b, i]]).sum::<f64>() / 400.0;
    for (t, (segment, repeat, item)) in labels(&sandbox, "a.csv").into_iter().enumerate() {
        assert_eq!((segment, repeat, item), ((t / 32).to_string(), false, None));
    }
    // Of N(0, 1) numbers the mean square is within 5 × √(2/400) of 1, the product of two topics within 5/√400 of 0.
    assert!((alike(0, 31) - 1.0).abs() < 0.36 && alike(31, 39).abs() < 0.25);
    // Halfway, w = ½: as like the one topic as the other, at 1/√2.
    for topic in [31, 45] {
        assert!((alike(35, topic) - 0.5_f64.sqrt()).abs() < 0.4, "{}", alike(35, topic));
    }
    assert!(alike(33, 31) > alike(36, 31) && alike(36, 31) > alike(38, 31));
}

/// Pairs come back: what is read with the key alone is nearer to the value than without having stored.
#[test]
fn recall_parameters_recall() {
    let sandbox = Sandbox::new();
    sandbox.ok("generate recall --tokens 8 --dim 128 --out pairs.npy --labels pairs.csv --parameters recall.safetensors");
    let inspected = sandbox.ok("inspect recall.safetensors").out;
    assert!(inspected.contains("to_queries.weight"), "{inspected}");
    sandbox.ok(
        "store pairs.npy --memory recall.safetensors --chunk-size 2 --learning-rate 0.5 --momentum 0 --decay 0 \
         --labels pairs.csv --retention 1 --out stored",
    );
    let report = sandbox.json("stored/run.json");
    assert_eq!(report["config"]["heads"], 2);
    assert_eq!(report["config"]["dim_head"], 32);
    let ratio = report["retained_ratio"].as_f64().unwrap();
    assert!(ratio < 0.9, "stored pairs have a smaller loss: {ratio}");

    // Queries hold keys alone; chunks as when stored, for tokens look back within them.
    let pairs = sandbox.f32s("pairs.npy");
    let mut queries = pairs.clone();
    queries.slice_mut(s![.., 64..]).fill(0.0);
    sandbox.npy("queries.npy", &queries);
    sandbox.ok("retrieve queries.npy --memory stored/memory.safetensors --out read");
    let read = sandbox.f32s("read/retrieved.npy");
    assert!(read.slice(s![.., ..64]).iter().all(|x| *x == 0.0), "keys are not read");
    let (values, read) = (pairs.slice(s![.., 64..]), read.slice(s![.., 64..]));
    let product = |a: usize, b: usize| (&read.row(a) * &values.row(b)).sum();
    let own: f32 = (0..8).map(|t| product(t, t)).sum::<f32>() / 8.0;
    let others = (0..8).flat_map(|a| (0..8).map(move |b| (a, b))).filter(|(a, b)| a != b);
    let others: f32 = others.map(|(a, b)| product(a, b)).sum::<f32>() / 56.0;
    assert!(own > 3.0 * others.abs(), "a key brings back its own value ({own}), not the others ({others})");
}

#[test]
fn files_are_complete_or_absent() {
    let sandbox = Sandbox::new();
    let small = "--tokens 10 --dim 4";
    let line = format!("generate recall {small} --out a.npy --labels a.csv --parameters a.safetensors");
    let output = sandbox.ok(&line);
    assert_eq!(output.out, "");
    let mut said = Transcript::new();
    said.ran(&sandbox, &line, &output);
    assert_eq!(sandbox.names("."), ["a.csv", "a.npy", "a.safetensors"]);
    said.reject(&sandbox, &format!("generate drift {small} --segment 5 --out b.npy --labels a.csv"));
    insta::assert_snapshot!(said);
    let before = sandbox.bytes("a.csv");
    sandbox.ok(&format!("generate drift {small} --segment 5 --out a.npy --labels a.csv --force --quiet"));
    assert_ne!(sandbox.bytes("a.csv"), before);
    assert_eq!(sandbox.names("."), ["a.csv", "a.npy", "a.safetensors"]);
}

#[test]
fn rejections() {
    let sandbox = Sandbox::new();
    let mut said = Transcript::new();
    for line in [
        "recall --dim 7",
        "recall --tokens 5 --pairs 6",
        "recall --noise 1.5",
        "recall --noise nan",
        "recall --dim 64 --heads 3 --parameters p.safetensors",
        "recall --heads 1 --parameters p.safetensors",
        "drift --tokens 0",
        "drift --sequences 0",
        "drift --segment 0",
        "drift --segment 8 --transition 8",
        "repeats --share -1",
        "needle --needles 100 --length 16",
        "drift --tokens 4000000000 --dim 4000000000",
        "drift --out .",
        "recall --parameters x.npy",
    ] {
        let out = if line.contains("--out") { "" } else { "--out x.npy" };
        said.reject(&sandbox, format!("generate {line} {out}").trim_end());
    }
    said.reject(&sandbox, "generate drift --out no/such/x.npy");
    insta::assert_snapshot!(said);
}
