//! `nmem compare`: first differences of runs, paired means, and sweeps against a baseline.

use ndarray::s;
use serde_json::Value;

use crate::{Sandbox, Transcript, tokens};

fn quantity<'a>(json: &'a Value, name: &str) -> &'a Value {
    let all = json["quantities"].as_array().unwrap();
    all.iter().find(|of| of["name"] == name).unwrap_or_else(|| panic!("{name}: {json}"))
}

fn json(sandbox: &Sandbox, line: &str) -> Value {
    serde_json::from_str(&sandbox.ok(&format!("compare {line} --format json")).out).unwrap()
}

#[test]
fn the_first_difference_is_found() {
    let sandbox = Sandbox::new();
    let seq = tokens(&[2, 24, 8], 1);
    let mut other = seq.clone();
    // Token 13 of the second sequence is in chunk 3.
    other.slice_mut(s![1, 13.., ..]).fill(0.5);
    sandbox.npy("seq.npy", &seq);
    sandbox.npy("other.npy", &other);
    let settings = "--online --probe --heads 2 --chunk-size 4 --learning-rate 0.01 --no-plots -q";
    sandbox.ok(&format!("retrieve seq.npy {settings} --out a"));
    sandbox.ok(&format!("retrieve seq.npy {settings} --out again"));
    sandbox.ok(&format!("retrieve other.npy {settings} --out b"));

    let same = json(&sandbox, "a again");
    assert!(same["quantities"].as_array().unwrap().iter().all(|of| of["differing"] == 0), "{same}");
    assert!(sandbox.ok("compare a again").out.ends_with("no number differs\n"));

    let differ = json(&sandbox, "a b --out d");
    assert_eq!(differ["same_chunks"], true);
    for name in ["loss", "loss_before", "surprise", "update_norm"] {
        let first = &quantity(&differ, name)["first"];
        assert_eq!(
            (&first["sequence"], &first["chunk"], &first["head"]),
            (&1.into(), &3.into(), &0.into()),
            "{name}"
        );
    }
    assert_eq!(quantity(&differ, "learning_rate")["differing"], 0);
    let read = quantity(&differ, "retrieved");
    assert_eq!((&read["first"]["sequence"], &read["first"]["token"]), (&1.into(), &13.into()));
    assert_eq!(read["compared"], 2 * 24 * 8);
    assert!(quantity(&differ, "state.update.0")["differing"].as_u64().unwrap() > 0);
    assert_eq!(quantity(&differ, "memory_model.weights.0")["differing"], 0);
    // The largest difference and the means are those of the tables.
    let (a, b) = (sandbox.csv("a/metrics.csv"), sandbox.csv("b/metrics.csv"));
    let (a, b) = (a.numbers("loss_before"), b.numbers("loss_before"));
    let largest = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let loss = quantity(&differ, "loss_before");
    assert_eq!(loss["largest"].as_f64().unwrap(), largest);
    let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len() as f64 / 4.0;
    assert!((loss["means"]["mean_b"].as_f64().unwrap() - mean(&b)).abs() < 1e-12);
    assert_eq!(loss["means"]["n"], 2);
    let rows = sandbox.csv("d/differences.csv");
    assert_eq!(rows.rows.len(), 2 * 6);
    let difference = rows.numbers("loss_before_difference");
    let expected = f64::midpoint(b[2 * 9] - a[2 * 9], b[2 * 9 + 1] - a[2 * 9 + 1]);
    assert!((difference[9] - expected).abs() < 1e-12);
    assert!(sandbox.names("d").contains(&"loss_before_difference.svg".to_owned()));
}

#[test]
fn configurations_on_one_sequence() {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[2, 24, 8], 2));
    sandbox
        .file("slow.toml", "heads = 2\nchunk_size = 4\nlearning_rate = 0.001\nmomentum = 0.0\ndecay = 0.0\n");
    sandbox
        .file("fast.toml", "heads = 2\nchunk_size = 4\nlearning_rate = 0.01\nmomentum = 0.0\ndecay = 0.0\n");
    let differ = json(&sandbox, "slow.toml fast.toml seq.npy --seeds 3");
    let loss = quantity(&differ, "loss_before");
    // Two sequences of three seeds.
    assert_eq!(loss["means"]["n"], 6);
    let mut means = Vec::new();
    for seed in 0..3 {
        sandbox.ok(&format!("store seq.npy --config fast.toml --seed {seed} --out r{seed} -q --no-plots"));
        means.extend(sandbox.csv(&format!("r{seed}/metrics.csv")).numbers("loss_before"));
    }
    let mean = means.iter().sum::<f64>() / means.len() as f64 / 4.0;
    assert!((loss["means"]["mean_b"].as_f64().unwrap() - mean).abs() < 1e-6 * mean);
    assert_eq!(quantity(&differ, "learning_rate")["first"]["chunk"], 0);
    // Without a difference in chunks there is nothing to compare row by row.
    sandbox
        .file("long.toml", "heads = 2\nchunk_size = 8\nlearning_rate = 0.01\nmomentum = 0.0\ndecay = 0.0\n");
    let chunks = json(&sandbox, "fast.toml long.toml seq.npy");
    let loss = quantity(&chunks, "loss");
    assert_eq!((&chunks["same_chunks"], &loss["means"]["n"]), (&false.into(), &2.into()));
    assert_eq!((&loss["compared"], &loss["differing"], &loss["first"]), (&0.into(), &0.into(), &Value::Null));
    let table = sandbox.ok("compare fast.toml long.toml seq.npy").out;
    assert!(
        table.contains("so only means are compared") && !table.contains("first differing chunk"),
        "{table}"
    );
}

#[test]
fn a_sweep_against_a_baseline() {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[24, 8], 3));
    sandbox.file(
        "grid.toml",
        "data = \"seq.npy\"\n[fixed]\nchunk_size = 4\nlearning_rate = 0.01\n[grid]\ndecay = [0.0, 0.5, 1]\nseed = [0, 1, 2, 3]\n",
    );
    sandbox.ok("sweep grid.toml --out sweep -q --no-plots");
    sandbox.ok("compare sweep --baseline decay=0 --y loss_before_mean,loss_mean --out paired -q");
    let table = sandbox.csv("paired/paired.csv");
    assert_eq!(table.rows.len(), 4, "two settings by two metrics");
    assert_eq!(table.texts("decay"), ["0.5", "0.5", "1", "1"]);
    assert_eq!(table.numbers("n"), [4.0; 4]);
    let results = sandbox.csv("sweep/results.csv");
    let of = |decay: &str| -> Vec<f64> {
        let rows = results.texts("decay").into_iter().zip(results.numbers("loss_before_mean"));
        rows.filter(|(d, _)| d.parse::<f64>().unwrap() == decay.parse::<f64>().unwrap())
            .map(|(_, x)| x)
            .collect()
    };
    let expected = of("0.5").iter().zip(of("0")).map(|(b, a)| b - a).sum::<f64>() / 4.0;
    assert!((table.numbers("difference")[0] - expected).abs() < 1e-12);
    assert!(table.numbers("t_low")[0] <= expected && expected <= table.numbers("t_high")[0]);
    let [p, holm] = ["p", "p_holm"].map(|name| table.texts(name)[0].parse::<f64>().unwrap());
    assert!(p <= holm && holm <= 2.0 * p + 1e-12, "{p} {holm}");
    // The loss at W knows no decay, so there is no p of equal differences.
    assert_eq!((table.texts("difference")[1], table.texts("p")[1]), ("0", ""));
}

#[test]
fn rejections() {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[24, 8], 3));
    sandbox.file("a.toml", "chunk_size = 4\n");
    sandbox.file("results.csv", "run,decay,seed,status,loss_mean\na,0,0,ok,1\nb,1,0,ok,2\n");
    sandbox.file("same.csv", "run,decay,seed,status,loss_mean\na,0,0,ok,1\nb,0,1,ok,2\n");
    sandbox.ok("store seq.npy --chunk-size 4 --out run -q --no-plots");
    sandbox.ok("compare run run --out there -q");
    let lines = [
        "compare a.toml",
        "compare a.toml a.toml",
        "compare run absent",
        "compare run run --out there",
        "compare a.toml a.toml seq.npy --seeds 0",
        "compare run/memory.safetensors run/memory.safetensors seq.npy --seeds 2",
        "compare results.csv --baseline decay",
        "compare results.csv --baseline decay=5",
        "compare results.csv --baseline dekay=0",
        "compare results.csv --baseline decay=0 --y loss",
        "compare run run --y loss",
        "compare results.csv --baseline decay=0 --over sead",
        "compare same.csv --baseline decay=0",
    ];
    insta::assert_snapshot!(Transcript::of_rejected(&sandbox, &lines));
}

#[test]
fn what_only_one_run_has_is_a_difference() {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[24, 8], 1));
    sandbox.npy("short.npy", &tokens(&[16, 8], 1));
    let store = "retrieve seq.npy --online --chunk-size 4 --seed 1 --no-plots -q";
    sandbox.ok(&format!("{store} --probe --out a"));
    sandbox.ok(&format!("{store} --out b"));
    sandbox.ok(&format!("{store} --heads 2 --probe --out wide"));
    sandbox.ok("store seq.npy --chunk-size 4 --seed 1 --no-plots -q --out stored");
    sandbox.ok("retrieve short.npy --memory a/memory.safetensors --no-plots -q --out read");
    let mut said = Vec::new();
    for other in ["b", "stored", "read", "wide"] {
        let text = sandbox.ok(&format!("compare a {other}")).out;
        assert!(!text.contains("no number differs"), "{text}");
        said.push(format!("a {other}"));
        said.extend(text.lines().filter(|line| line.starts_with("not compared")).take(3).map(str::to_owned));
        assert!(!json(&sandbox, &format!("a {other}"))["unmatched"].as_array().unwrap().is_empty());
    }
    insta::assert_snapshot!(said.join("\n"), @"
    a b
    not compared: metrics.csv loss_after: A has 6 numbers without one on the other side, B has nothing
    not compared: metrics.csv loss_before: A has 6 numbers without one on the other side, B has nothing
    a stored
    not compared: retrieved.npy: A has a file, B has nothing
    a read
    not compared: memory.safetensors: A has a file, B has nothing
    not compared: metrics.csv: A has a file, B has nothing
    not compared: retrieved.npy: A has 1 × 24 × 8, B has 1 × 16 × 8
    a wide
    not compared: memory.safetensors combine_heads.weight: A has nothing, B has f32 8 × 8
    not compared: memory.safetensors memory_model.weights.0: A has f32 8 × 8, B has f32 4 × 4
    not compared: memory.safetensors memory_model.weights.1: A has f32 8 × 8, B has f32 4 × 4
    ");
}

/// Writes a metrics.csv of two chunks of two heads. A cell of `-` is empty.
fn metrics(sandbox: &Sandbox, run: &str, columns: &str, rows: [&str; 4]) {
    std::fs::create_dir(sandbox.path(run)).unwrap();
    let mut lines = vec![format!("sequence,chunk,head,start,end,{columns}")];
    for (i, row) in rows.into_iter().enumerate() {
        let (chunk, head) = (i / 2, i % 2);
        lines.push(format!("0,{chunk},{head},{},{},{}", 4 * chunk, 4 * chunk + 4, row.replace('-', "")));
    }
    sandbox.file(&format!("{run}/metrics.csv"), lines.join("\n") + "\n");
}

#[test]
fn means_over_heads_are_of_the_heads_that_have_the_number() {
    let sandbox = Sandbox::new();
    metrics(&sandbox, "a", "loss,surprise", ["1,-", "1,5", "1,6", "1,7"]);
    metrics(&sandbox, "b", "loss,surprise", ["2,-", "4,8", "2,7", "2,9"]);
    // The second pair has one column more, in another order.
    metrics(&sandbox, "c", "decay,surprise,loss", ["1,1,1"; 4]);
    metrics(&sandbox, "d", "decay,surprise,loss", ["0,2,5"; 4]);
    let pairs = [("a", "b"), ("c", "d")].map(|(a, b)| (sandbox.path(a), sandbox.path(b)));
    let comparison = nmem::compare::runs(&pairs, &mut || Ok(())).unwrap();
    let table = String::from_utf8(comparison.table().unwrap()).unwrap();
    insta::assert_snapshot!(table, @"
    run,chunk,seed,status,loss_difference,surprise_difference,decay_difference
    0,0,0,ok,2,3,
    1,1,0,ok,1,1.5,
    2,0,1,ok,4,1,-1
    3,1,1,ok,4,1,-1
    ");
    assert!(comparison.unmatched.is_empty(), "{:?}", comparison.unmatched);
}

#[test]
fn a_baseline_counts_each_run_once_and_says_what_is_lost() {
    let sandbox = Sandbox::new();
    let rows = "run,decay,seed,status,loss_mean,surprise_mean\n\
                a,0,0,ok,1,1\nb,-0,1,ok,2,1\nc,1,0,ok,3,inf\nd,1,1,ok,5,2\n\
                e,1,1,ok,500,2\nf,0.0,0,ok,700,1\ng,2,0,failed,,\nh,2,0,ok,9,9\n";
    sandbox.file("results.csv", rows);
    let line = "compare results.csv --baseline decay=0 --y loss_mean,surprise_mean";
    let json: Value = serde_json::from_str(&sandbox.ok(&format!("{line} --format json")).out).unwrap();
    let rows = json["rows"].as_array().unwrap();
    let of: Vec<_> = rows.iter().map(|row| (row["n"].as_u64(), row["difference"].as_f64())).collect();
    assert_eq!(of, [(Some(2), Some(2.5)), (Some(1), Some(1.0))], "{json}");
    assert_eq!((&json["lost"], &json["unpaired"], &json["not_finite"]), (&1.into(), &0.into(), &1.into()));
    let table = sandbox.ok(line).out;
    assert!(
        table.contains("not compared: 1 pairs of values, of which one is missing or not finite"),
        "{table}"
    );
}
