//! `nmem scan-bench`: small shapes, every column, skipped shapes, rejected flags.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{CommandOutput, Sandbox, Transcript, without_max_bytes};

const COLUMNS: &str = "algorithm,device,dtype,threads,batch,steps,channels,gate,layout,median_ms,min_ms,bytes,gb_per_s,\
                       copy_fraction,max_abs_error,runs,copy_gb_per_s,sequential_max_abs_error,outliers,chosen,correct";
const SMALL: &str = "scan-bench --batch 2 --steps 3,300 --channels 5,40 --seconds 0 --runs 3 --threads 1,2";

#[test]
fn small_shapes_and_every_column() {
    let sandbox = Sandbox::new();
    let output = sandbox.ok(&format!("{SMALL} --dtype f32,f64"));
    assert_eq!(sandbox.names("results"), ["scan-bench"]);
    assert_eq!(sandbox.names("results/scan-bench"), ["machine.json", "plots", "scan_bench.csv"]);
    assert_eq!(sandbox.names("results/scan-bench/plots"), ["bandwidth.svg", "time.svg"]);
    let text = String::from_utf8(sandbox.bytes("results/scan-bench/scan_bench.csv")).unwrap();
    assert_eq!(text.lines().next(), Some(COLUMNS));

    // 2 types × 4 shapes × (4 kinds of auto, channels, time, tree with 1 and 2 threads, sequential with 1; once the pair).
    let table = sandbox.csv("results/scan-bench/scan_bench.csv");
    let algorithms = table.texts("algorithm");
    assert_eq!(algorithms.len(), 2 * 4 * (4 * 9 + 5));
    assert_eq!(output.out.lines().filter(|line| line.starts_with("2 × ")).count(), algorithms.len());
    let [threads, steps, channels] = ["threads", "steps", "channels"].map(|name| table.numbers(name));
    let [median, min, bytes] = ["median_ms", "min_ms", "bytes"].map(|name| table.numbers(name));
    let [speed, fraction, copy] =
        ["gb_per_s", "copy_fraction", "copy_gb_per_s"].map(|name| table.numbers(name));
    let [error, plain, runs] =
        ["max_abs_error", "sequential_max_abs_error", "runs"].map(|name| table.numbers(name));
    for i in 0..algorithms.len() {
        let what = format!("row {i}: {}", text.lines().nth(i + 1).unwrap());
        assert!(median[i] >= min[i] && min[i] > 0.0, "{what}");
        assert!((speed[i] / (bytes[i] / median[i] / 1e6) - 1.0).abs() < 1e-9, "{what}");
        assert!((fraction[i] / (speed[i] / copy[i]) - 1.0).abs() < 1e-9, "{what}");
        assert!(error[i] < 1e-4 && plain[i] < 1e-4 && runs[i] >= 3.0, "{what}");
        let size = if table.texts("dtype")[i] == "f64" { 8.0 } else { 4.0 };
        let (rows, elements) = (2.0 * steps[i], 2.0 * steps[i] * channels[i]);
        let numbers = match (algorithms[i], table.texts("gate")[i]) {
            ("pair-last", _) => 3.0 * rows + elements + 8.0 * channels[i],
            ("pair" | "pair-sequential", _) => 3.0 * rows + 2.0 * elements + 8.0 * channels[i],
            (_, "step") => rows + 2.0 * elements,
            _ => 3.0 * elements,
        };
        assert!((bytes[i] - numbers * size).abs() < 0.5, "{what}");
        let sequential = algorithms[i].ends_with("sequential");
        assert!(!sequential || threads[i] < 1.5, "{what}");
        assert!(table.texts("correct")[i] == "true" && table.texts("device")[i] == "cpu", "{what}");
        // Few enough for one thread.
        assert!(algorithms[i] != "auto" || table.texts("chosen")[i] == "sequential", "{what}");
    }
    let machine = sandbox.json("results/scan-bench/machine.json");
    for key in
        ["cpu", "logical_cores", "caches", "memory_bytes", "os", "vector_isa", "nmem", "commit", "rustc"]
    {
        assert!(machine.get(key).is_some(), "{key}");
    }
    assert!(machine["rustc"].as_str().unwrap().starts_with("rustc 1."));
}

#[test]
fn some_of_everything_as_json() {
    let sandbox = Sandbox::new();
    let line = "scan-bench --algorithm channels,auto,channels --steps 300 --channels 20 --batch 1 --layout channels-steps \
                --gate element --threads 1 --seconds 0 --format json --no-plots --out out -q";
    let json: Value = serde_json::from_str(&sandbox.ok(line).out).unwrap();
    let rows = json["rows"].as_array().unwrap();
    let algorithms: Vec<_> = rows.iter().map(|row| row["algorithm"].as_str().unwrap()).collect();
    assert_eq!(algorithms, ["channels", "auto"]);
    let keys: BTreeSet<_> = rows[0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, COLUMNS.split(',').collect());
    assert_eq!(json["skipped"], Value::Array(Vec::new()));
    assert!(json["wall_s"].as_f64().unwrap() > 0.0 && json["machine"]["nmem"].is_string());
    assert_eq!(sandbox.names("out"), ["machine.json", "scan_bench.csv"]);
    // Again only with --force.
    assert!(sandbox.rejected(line).contains("--force"));
    sandbox.ok(&format!("{line} --force"));
}

#[test]
fn shapes_that_need_too_much_are_named() {
    let sandbox = Sandbox::new();
    let line = "scan-bench --steps 10,300 --channels 20 --batch 1 --gate element --threads 1 --seconds 0 --max-bytes 3000 --out out";
    let output = sandbox.ok(line);
    let mut said = Transcript::new();
    let first = output.err.lines().next().unwrap();
    said.entry(line, output.code, first);
    let (_, shape) = first.split_once(": ").unwrap();
    assert!(output.out.lines().any(|line| line.ends_with(shape)), "{shape}: {}", output.out);
    assert!(sandbox.csv("out/scan_bench.csv").numbers("steps").iter().all(|&steps| steps < 11.0));
    // With nothing to time there are no results. Also of a shape that no computer holds.
    said.reject(&sandbox, "scan-bench --steps 10 --max-bytes 3 --out none");
    let line = "scan-bench --steps 18446744073709551615 --out none";
    said.error(line, 2, &without_max_bytes(&sandbox.rejected(line)));
    insta::assert_snapshot!(said);
}

#[test]
fn rejected() {
    let sandbox = Sandbox::new();
    let mut said = Transcript::new();
    for arguments in [
        "--threads 0",
        "--threads 2,5000",
        "--steps 4,0",
        "--channels 0",
        "--batch 0",
        "--runs 0",
        "--seconds -1",
        "--seconds nan",
        "--algorithm pair --gate element",
        "--steps 1.5",
        "--full --steps 4",
        "--algorithm fast",
        "--layout rows",
        "--gate none",
        "--dtype f16",
    ] {
        said.reject(&sandbox, &format!("scan-bench {arguments}"));
    }
    insta::assert_snapshot!(said);
}

#[test]
#[cfg(unix)]
fn interrupted() {
    let sandbox = Sandbox::new();
    let before = sandbox.contents();
    let line = "scan-bench --steps 64 --channels 64 --seconds 3000 --out a/b";
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_nmem"))
        .args(line.split(' '))
        .current_dir(sandbox.path("."))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let start = std::time::Instant::now();
    while !sandbox.path("a").exists() {
        assert!(start.elapsed() < std::time::Duration::from_secs(30), "the run begins");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    std::thread::sleep(std::time::Duration::from_millis(200));
    let kill = format!("kill -INT {}", child.id());
    assert!(std::process::Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let status = child.wait().unwrap();
    let err = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    assert_eq!(status.code(), Some(130), "{err}");
    let output = CommandOutput { code: status.code(), out: String::new(), err };
    let mut said = Transcript::new();
    said.given("SIGINT");
    said.ran(&sandbox, line, &output);
    insta::assert_snapshot!(said);
    assert!(sandbox.contents() == before, "what is in the directory");
}
