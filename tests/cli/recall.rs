//! Multi-query recall from generated files to scores, against known answers.

use std::collections::BTreeSet;

use ndarray::{Axis, s};
use serde_json::Value;

use crate::{Sandbox, Transcript, tokens};

/// Stores pairs, reads the queries afterwards, and returns `recall` of run.json.
fn recall(sandbox: &Sandbox, memory: &str, more: &str) -> Value {
    sandbox.ok(&format!(
        "retrieve m/queries.npy --store-seq m/pairs.npy --read-after --memory m/{memory}.safetensors --target \
         m/targets.npy --candidates m/values.npy --out out --force --no-plots -q {more}"
    ));
    sandbox.json("out/run.json")["recall"].clone()
}

fn mean(recall: &Value, name: &str) -> f64 {
    recall[name]["mean"].as_f64().unwrap_or_else(|| panic!("{name}: {recall}"))
}

/// The expected numbers are those of numpy over 100 sequences, with a standard error of about 0.005; of updated keys 0.03.
/// Bounds are four standard errors of the difference to 40 sequences here.
#[test]
fn sums_and_delta_rules_recall_as_known() {
    let sandbox = Sandbox::new();
    sandbox.ok("generate mqar --pairs 64 --sequences 40 --out m -q");
    for (memory, more, expected, bound) in
        [("sum", "", 1.0, 0.004), ("delta", "", 0.851, 0.03), ("delta", "--learning-rate 32", 0.987, 0.012)]
    {
        let recall = recall(&sandbox, memory, more);
        let got = mean(&recall, "accuracy");
        assert!((got - expected).abs() < bound, "{memory} {more}: {got} for {expected}");
        assert!((recall["chance"].as_f64().unwrap() - 1.0 / 4096.0).abs() < 1e-15);
        assert!(mean(&recall, "in_set_accuracy") >= got, "fewer candidates are easier");
        let [low, high] = [0, 1].map(|end| recall["accuracy"]["ci95"][end].as_f64().unwrap());
        assert!(low <= got && got <= high);
    }
}

/// The sum holds old and new value alike; the delta rule overwrites.
#[test]
fn updated_keys_are_overwritten_by_the_delta_rule_alone() {
    let sandbox = Sandbox::new();
    sandbox.ok("generate mqar --pairs 16 --updates 4 --sequences 60 --out m -q");
    let sum = recall(&sandbox, "sum", "--old-target m/old_targets.npy");
    let delta = recall(&sandbox, "delta", "--old-target m/old_targets.npy");
    for (recall, name, expected, bound) in [
        (&sum, "kept_accuracy", 1.0, 0.01),
        (&sum, "updated_accuracy", 0.48, 0.15),
        (&sum, "stale", 0.52, 0.15),
        (&delta, "kept_accuracy", 1.0, 0.01),
        (&delta, "updated_accuracy", 1.0, 0.01),
        (&delta, "stale", 0.0, 0.01),
    ] {
        let got = mean(recall, name);
        assert!((got - expected).abs() < bound, "{name}: {got} for {expected}");
    }
}

#[test]
fn orthonormal_keys_come_back_and_overload_does_not() {
    let sandbox = Sandbox::new();
    sandbox.ok("generate mqar --keys orthonormal --dim 32 --pairs 16 --sequences 5 --out m -q");
    for memory in ["sum", "delta"] {
        let recall = recall(&sandbox, memory, "");
        assert_eq!(mean(&recall, "accuracy"), 1.0, "{memory}");
        assert_eq!(mean(&recall, "distinct_answers"), 16.0);
        assert!(recall["ratio"].as_f64().unwrap() < 1e-9, "{memory}: {recall}");
    }
    // 256 pairs in a matrix of two by two.
    sandbox.ok("generate mqar --dim 4 --pairs 256 --sequences 10 --out m --force -q");
    for memory in ["sum", "delta"] {
        let recall = recall(&sandbox, memory, "");
        // Of 2560 tokens; chance of the sequence's own values is one in 256.
        assert!(mean(&recall, "accuracy") < 0.005, "{memory}: {recall}");
        assert!(mean(&recall, "in_set_accuracy") < 0.02, "{memory}: {recall}");
    }
}

/// Controls: nothing stored, and values that belong to other keys.
#[test]
fn controls_are_at_chance() {
    let sandbox = Sandbox::new();
    sandbox.ok("generate mqar --pairs 32 --sequences 10 --out m -q");
    let shuffled = sandbox.f32s("m/targets.npy");
    let mut other = shuffled.clone();
    other.slice_mut(s![.., ..31, ..]).assign(&shuffled.slice(s![.., 1.., ..]));
    other.slice_mut(s![.., 31, ..]).assign(&shuffled.slice(s![.., 0, ..]));
    sandbox.npy("shuffled.npy", &other);
    let wrong = "--target shuffled.npy --candidates m/values.npy --out out --force -q --no-plots";
    sandbox.ok(&format!(
        "retrieve m/queries.npy --store-seq m/pairs.npy --read-after --memory m/sum.safetensors {wrong}"
    ));
    assert_eq!(mean(&sandbox.json("out/run.json")["recall"], "accuracy"), 0.0);
    let empty = "retrieve m/queries.npy --memory m/sum.safetensors --target m/targets.npy --out empty -q";
    sandbox.ok(empty);
    let recall = &sandbox.json("empty/run.json")["recall"];
    assert_eq!((mean(recall, "accuracy"), &recall["zero_reads"]), (0.0, &320.into()));
    assert_eq!(sandbox.names("empty"), ["plots", "recall.csv", "retrieved.npy", "run.json"]);
}

/// Every run that writes recall.csv draws it, and `plot` draws the same from the directory.
#[test]
fn recalls_are_drawn() {
    let sandbox = Sandbox::new();
    sandbox.ok("generate mqar --pairs 16 --updates 8 --dim 16 --values 32 --sequences 6 --out m -q");
    let ask = "--target m/targets.npy --old-target m/old_targets.npy --candidates m/values.npy -q";
    sandbox.ok("store m/pairs.npy --memory m/delta.safetensors --out stored -q --no-plots");
    sandbox.ok(&format!("retrieve m/queries.npy --memory stored/memory.safetensors --out read {ask}"));
    sandbox.ok(&format!(
        "retrieve m/queries.npy --store-seq m/pairs.npy --read-after --memory m/delta.safetensors --out both {ask}"
    ));
    assert_eq!(sandbox.names("read/plots"), ["recall.svg"]);
    assert!(sandbox.names("both/plots").contains(&"recall.svg".to_owned()));
    let figure = |path: &str| {
        let svg = String::from_utf8(sandbox.bytes(path)).unwrap();
        let (start, rest) = svg.split_once("<desc").unwrap();
        start.to_owned() + rest.split_once("</desc>").unwrap().1
    };
    let drawn = figure("read/plots/recall.svg");
    assert_eq!(figure("both/plots/recall.svg"), drawn);
    for text in ["kept", "updated", "old value", "chance", "all zeros"] {
        assert!(drawn.contains(&format!(">{text}</text>")), "{text}");
    }
    for (line, out) in [("read", "a"), ("both --kind recall", "b"), ("read/recall.csv", "c")] {
        assert_eq!(sandbox.ok(&format!("plot {line} --out {out}")).out, format!("{out}/recall.svg\n"));
        assert_eq!(figure(&format!("{out}/recall.svg")), drawn, "{line}");
    }
    let view = sandbox.ok("plot read --terminal --y accuracy");
    assert!(view.out.contains("a kept   b updated   c old value   ╌╌ chance"), "{}", view.out);
    sandbox.ok(&format!("retrieve m/queries.npy --memory m/delta.safetensors --out bare --no-plots {ask}"));
    assert_eq!(sandbox.names("bare"), ["recall.csv", "retrieved.npy", "run.json"]);
    // A directory with the figure is still one that nmem wrote.
    sandbox.ok(&format!("retrieve m/queries.npy --memory m/delta.safetensors --out read --force {ask}"));
}

/// Storing and then reading is one command or two.
#[test]
fn reading_after_is_reading_a_saved_memory() {
    let sandbox = Sandbox::new();
    sandbox.ok("generate mqar --pairs 8 --dim 16 --sequences 3 --gap 5 --out m -q");
    assert_eq!(sandbox.f32s("m/pairs.npy").shape(), [3, 13, 16]);
    recall(&sandbox, "delta", "");
    sandbox.ok("store m/pairs.npy --memory m/delta.safetensors --out stored -q --no-plots --no-probe");
    sandbox
        .ok("retrieve m/queries.npy --memory stored/memory.safetensors --target m/targets.npy --candidates \
         m/values.npy --out read -q");
    for file in ["retrieved.npy", "recall.csv"] {
        assert_eq!(sandbox.bytes(&format!("out/{file}")), sandbox.bytes(&format!("read/{file}")), "{file}");
    }
    for file in ["metrics.csv", "memory.safetensors"] {
        assert_eq!(sandbox.bytes(&format!("out/{file}")), sandbox.bytes(&format!("stored/{file}")), "{file}");
    }
}

/// The attention memory mixes a query with the earlier ones of its chunk, unless each is read alone.
#[test]
fn a_query_is_read_alone_unless_asked() {
    let sandbox = Sandbox::with_golden("heads");
    sandbox.ok("store seq.npy --memory weights.safetensors --chunk-size 4 --out stored -q");
    let queries = tokens(&[2, 7, 16], 9);
    sandbox.npy("queries.npy", &queries);
    let read = |more: &str| {
        sandbox.ok(&format!(
            "retrieve queries.npy --memory stored/memory.safetensors --target queries.npy --out out --force -q {more}"
        ));
        (sandbox.json("out/run.json")["config"]["cue"].clone(), sandbox.f32s("out/retrieved.npy"))
    };
    let (cue, alone) = read("");
    assert_eq!(cue, "single");
    let (cue, together) = read("--cue chunk");
    assert_eq!(cue, "chunk");
    assert_eq!(alone.shape(), [2, 7, 16]);
    for token in 0..7 {
        let one = queries.slice(s![.., token..=token, ..]).to_owned().into_dyn();
        sandbox.npy("one.npy", &one);
        sandbox.ok("retrieve one.npy --memory stored/memory.safetensors --out one --force -q");
        let one = sandbox.f32s("one/retrieved.npy");
        let (of_all, one) = (alone.slice(s![.., token, ..]), one.slice(s![.., 0, ..]));
        // Of equal keys softmax returns the same value, up to rounding.
        assert!(of_all.iter().zip(&one).all(|(a, b)| (a - b).abs() < 1e-5), "token {token}");
        let mixed = together.slice(s![.., token, ..]) != one;
        assert_eq!(mixed, token % 4 > 0, "token {token}");
    }
}

#[test]
fn a_plain_read_has_a_summary() {
    let sandbox = Sandbox::with_golden("heads");
    let output =
        sandbox.ok("retrieve seq.npy --memory weights.safetensors --chunk-size 4 --format json --out out");
    let json: Value = serde_json::from_str(&output.out).unwrap();
    let read = sandbox.f32s("out/retrieved.npy").mapv(f64::from);
    let norms: Vec<f64> = read.lanes(Axis(2)).into_iter().map(|row| (&row * &row).sum().sqrt()).collect();
    let got = json["summary"]["retrieved_norm"]["mean"].as_f64().unwrap();
    assert!((got - norms.iter().sum::<f64>() / norms.len() as f64).abs() < 1e-5);
}

#[test]
fn a_sweep_has_columns_of_recall() {
    let sandbox = Sandbox::new();
    sandbox.ok("generate mqar --pairs 16 --dim 32 --sequences 4 --out m -q");
    sandbox.file(
        "grid.toml",
        "data = \"m/queries.npy\"\nstore_seq = \"m/pairs.npy\"\ntarget = \"m/targets.npy\"\n\
         memory = \"m/delta.safetensors\"\n[fixed]\nread_after = true\n[grid]\nlearning_rate = [0.0, 16.0]\n",
    );
    sandbox.ok("sweep grid.toml --out s -q --no-plots");
    let table = sandbox.csv("s/results.csv");
    let accuracy = table.numbers("recall_accuracy");
    assert_eq!(accuracy[0], 0.0, "nothing is stored at a rate of zero");
    assert!(accuracy[1] > 0.5, "{accuracy:?}");
    assert_eq!(table.numbers("recall_chance"), [0.0625, 0.0625]);
}

/// Scores and retention in results.csv are the numbers of each run's report.
#[test]
fn columns_of_a_sweep_are_numbers_of_its_runs() {
    let sandbox = Sandbox::new();
    sandbox.ok("generate mqar --pairs 12 --updates 5 --dim 20 --values 40 --sequences 4 --out m -q");
    let memory = "memory = \"m/delta.safetensors\"\n[grid]\nlearning_rate = [4.0, 16.0]\n";
    sandbox.file(
        "recall.toml",
        format!(
            "data = \"m/queries.npy\"\nstore_seq = \"m/pairs.npy\"\ntarget = \"m/targets.npy\"\ncandidates = \"m/values.npy\"\n\
             old_target = \"m/old_targets.npy\"\nread_after = true\n{memory}"
        ),
    );
    sandbox.file("store.toml", format!("data = \"m/pairs.npy\"\nretention = 2\n{memory}"));
    let scores = [
        "mean_square",
        "ratio",
        "cosine",
        "r2",
        "accuracy",
        "top_k_accuracy",
        "in_set_accuracy",
        "distinct_answers",
        "chance",
        "kept_accuracy",
        "updated_accuracy",
        "stale",
    ];
    for grid in ["recall", "store"] {
        sandbox.ok(&format!("sweep {grid}.toml --out {grid} -q --no-plots"));
        let table = sandbox.csv(&format!("{grid}/results.csv"));
        assert!(table.numbers("engine_bytes").iter().all(|&bytes| bytes > 1000.0));
        for (row, run) in table.texts("run").into_iter().enumerate() {
            let report = sandbox.json(&format!("{grid}/runs/{run}/run.json"));
            let of_report = |value: &serde_json::Value| value.as_f64().or(value["mean"].as_f64());
            let cells: Vec<(String, Option<f64>)> = match grid {
                "recall" => scores
                    .iter()
                    .map(|name| (format!("recall_{name}"), of_report(&report["recall"][name])))
                    .collect(),
                _ => ["retained_ratio", "unstored_ratio"]
                    .map(|name| (name.to_owned(), of_report(&report[name])))
                    .into(),
            };
            for (name, expected) in cells {
                assert_eq!(Some(table.numbers(&name)[row]), expected, "{name}");
            }
        }
    }
    // Answers of zeros are scored beside what is stored.
    let (zero, before) = ("loss_zero_mean", "loss_before_mean");
    let table = sandbox.csv("store/results.csv");
    assert!(
        table
            .numbers(zero)
            .iter()
            .zip(table.numbers(before))
            .all(|(&zero, before)| zero > 0.0 && before > 0.0)
    );
}

#[test]
fn what_a_task_promises() {
    let sandbox = Sandbox::new();
    sandbox.ok("generate mqar --pairs 12 --passes 2 --updates 5 --gap 3 --dim 20 --values 40 --sequences 4 --out m -q");
    let (pairs, queries) = (sandbox.f32s("m/pairs.npy"), sandbox.f32s("m/queries.npy"));
    let (targets, values) = (sandbox.f32s("m/targets.npy"), sandbox.f32s("m/values.npy"));
    assert_eq!((pairs.shape(), queries.shape()), (&[4, 32, 20][..], &[4, 12, 20][..]));
    assert_eq!((targets.shape(), values.shape()), (&[4, 12, 10][..], &[40, 10][..]));
    let labels = sandbox.csv("m/labels.csv");
    let numbers =
        |name: &str| labels.texts(name).iter().map(|n| n.parse::<usize>().unwrap()).collect::<Vec<_>>();
    let (keys, value, updated, first) =
        (numbers("key"), numbers("value"), numbers("updated"), numbers("first_value"));
    for i in 0..4 {
        let of = |all: &[usize]| all[i * 12..(i + 1) * 12].to_vec();
        let distinct = |all: Vec<usize>| all.into_iter().collect::<BTreeSet<_>>().len();
        assert_eq!((distinct(of(&keys)), distinct(of(&value)), distinct(of(&first))), (12, 12, 12));
        assert_eq!(of(&updated).iter().sum::<usize>(), 5);
        for q in 0..12 {
            let n = i * 12 + q;
            assert_eq!(updated[n] == 1, value[n] != first[n]);
            assert_eq!(targets.slice(s![i, q, ..]), values.slice(s![value[n], ..]));
            let key = queries.slice(s![i, q, ..10]);
            assert!(queries.slice(s![i, q, 10..]).iter().all(|&x| x == 0.0));
            // Twice in the passes with the first value, once more with the last where it was updated.
            let stored: Vec<usize> = (0..32).filter(|&t| pairs.slice(s![i, t, ..10]) == key).collect();
            assert_eq!(stored.len(), 2 + updated[n]);
            for (k, &t) in stored.iter().enumerate() {
                let expected = if k < 2 { first[n] } else { value[n] };
                assert_eq!(pairs.slice(s![i, t, 10..]), values.slice(s![expected, ..]));
                assert!(if k < 2 { t / 12 == k } else { (24..29).contains(&t) });
            }
        }
    }
    assert_ne!(keys[..12], keys[12..24]);
    // Shared: the same pairs in every sequence, in other orders.
    sandbox
        .ok("generate mqar --pairs 12 --mapping shared --dim 20 --values 40 --sequences 2 --out shared -q");
    let labels = sandbox.csv("shared/labels.csv");
    let pairs: Vec<_> = labels.texts("key").into_iter().zip(labels.texts("value")).collect();
    assert_ne!(pairs[..12], pairs[12..]);
    let set = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| format!("{k} {v}")).collect::<BTreeSet<_>>();
    assert_eq!(set(&pairs[..12]), set(&pairs[12..]));
    // The same bytes for the same seed, and existing files are kept.
    sandbox.ok("generate mqar --pairs 12 --mapping shared --dim 20 --values 40 --sequences 2 --out again -q");
    assert_eq!(sandbox.bytes("again/pairs.npy"), sandbox.bytes("shared/pairs.npy"));
}

#[test]
fn rejections() {
    let sandbox = Sandbox::new();
    sandbox.ok("generate mqar --pairs 4 --dim 8 --values 16 --sequences 2 --out m -q");
    sandbox.npy("short.npy", &tokens(&[2, 3, 4], 1));
    sandbox.npy("wide.npy", &tokens(&[5, 6], 1));
    let read = "retrieve m/queries.npy --memory m/sum.safetensors";
    let lines = [
        "store m/pairs.npy --target m/targets.npy".to_owned(),
        "store m/pairs.npy --read-after".to_owned(),
        format!("{read} --read-after"),
        format!("{read} --candidates m/values.npy"),
        format!("{read} --top-k 3"),
        format!("{read} --target m/targets.npy --top-k 0"),
        format!("{read} --target short.npy"),
        format!("{read} --target m/targets.npy --candidates wide.npy"),
        format!("{read} --target m/targets.npy --old-target m/values.npy"),
        format!("{read} --online --cue single"),
        "generate mqar --out m --pairs 4 --dim 8".to_owned(),
        "generate mqar --out n --dim 9".to_owned(),
        "generate mqar --out n --dim 2 --pairs 2 --values 8".to_owned(),
        "generate mqar --out n --values 0".to_owned(),
        "generate mqar --out n --pairs 5000".to_owned(),
        "generate mqar --out n --pairs 8 --dim 8 --keys orthonormal".to_owned(),
        "generate mqar --out n --pairs 8 --updates 9".to_owned(),
        "generate mqar --out n --sequences 0".to_owned(),
    ];
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    insta::assert_snapshot!(Transcript::of_rejected(&sandbox, &lines));
}
