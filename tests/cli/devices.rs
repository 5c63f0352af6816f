//! `--device` and `nmem devices` on a machine of any kind and in a build of either kind: what is read, what is rejected,
//! and that the CPU is used as before. The effects of a driver are tested in tests/driver.

use serde_json::Value;

use crate::{Sandbox, Transcript};

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.npy("data.npy", &crate::tokens(&[20, 8], 3));
    sandbox
}

/// Runs in builds with the default features: `cargo test --test cli devices`. `.ci/run` checks some of the commands.
#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_the_feature_says_so() {
    let sandbox = sandbox();
    let mut said = Transcript::new();
    for line in [
        "store data.npy --device cuda",
        "store data.npy --device cuda:3",
        "retrieve data.npy --online --device cuda",
        "scan-bench --device cuda",
    ] {
        said.reject(&sandbox, line);
    }
    sandbox.file("experiment.toml", "data = 'data.npy'\n[grid]\ndevice = ['cpu', 'cuda']\n");
    said.reject(&sandbox, "sweep experiment.toml");
    let line = "store data.npy --device auto --no-plots --out auto";
    said.ran(&sandbox, line, &sandbox.ok(line));
    assert_eq!(sandbox.json("auto/run.json")["device"], "cpu");
    assert_eq!(sandbox.ok("store data.npy --device auto --no-plots --out quiet -q").err, "");
    let output = sandbox.ok("devices");
    said.entry("devices", output.code, output.out.lines().last().unwrap());
    insta::assert_snapshot!(said);
}

#[test]
fn the_processor_is_listed() {
    let sandbox = Sandbox::new();
    let output = sandbox.ok("devices");
    let lines: Vec<_> = output.out.lines().collect();
    let found: Value = serde_json::from_str(&sandbox.ok("devices --format json").out).unwrap();
    let cores = found["cpu"]["cores"].as_u64().unwrap();
    assert!(cores > 0);
    // Below the names of the columns.
    assert!(lines[1].starts_with("cpu     ") && lines[1].contains(&format!(" {cores} ")), "{}", output.out);
    // Either GPUs or the reason why there are none, on one line.
    assert_eq!(found["cuda"].as_array().unwrap().is_empty(), found["cuda_error"].is_string());
    assert!(!found["cuda_error"].as_str().unwrap_or_default().contains('\n'));
}

#[test]
fn rejected_by_any_build() {
    let sandbox = sandbox();
    let mut said = Transcript::new();
    for text in ["gpu", "cuda:x", "cuda:", "cuda:-1"] {
        said.reject(&sandbox, &format!("store data.npy --device {text}"));
    }
    sandbox.file("settings.toml", "device = 'gpu'\n");
    said.given("settings.toml: device = 'gpu'");
    said.reject(&sandbox, "store data.npy --config settings.toml");
    said.reject(&sandbox, "store data.npy --device cuda:1 --retention 2");
    insta::assert_snapshot!(said);
    // With `auto`, the CPU is used.
    sandbox.ok("store data.npy --device auto --retention 2 --chunk-size 4 --no-plots -q --out kept");
    assert_eq!(sandbox.json("kept/run.json")["device"], "cpu");
}

#[test]
fn the_processor_is_the_default_and_keeps_its_identities() {
    let sandbox = sandbox();
    sandbox.file("settings.toml", "data = 'data.npy'\ndevice = 'cpu'\n");
    sandbox.ok("store --config settings.toml --no-plots --out a");
    sandbox.ok("store data.npy --no-plots --out b");
    assert_eq!(sandbox.bytes("a/metrics.csv"), sandbox.bytes("b/metrics.csv"));
    assert_eq!(sandbox.json("b/run.json")["device"], "cpu");

    sandbox.file("plain.toml", "data = 'data.npy'\n[grid]\nseed = [0, 1]\n");
    sandbox.file("said.toml", "data = 'data.npy'\ndevice = 'cpu'\n[grid]\nseed = [0, 1]\n");
    sandbox.file(
        "gpu.toml",
        "data = 'data.npy'\n[grid]\nseed = [0, 1]\ndevice = ['cpu', 'cuda:0', 'cuda', 'auto']\n",
    );
    let ids = |file: &str| {
        // Runs are planned, and handed to machines that have one, without a GPU.
        let planned: Value =
            serde_json::from_str(&sandbox.ok(&format!("sweep {file} --dry-run --format json")).out).unwrap();
        let id = |run: &Value| run["run"].as_str().unwrap().to_owned();
        planned.as_array().unwrap().iter().map(id).collect::<Vec<_>>()
    };
    let (plain, said, gpu) = (ids("plain.toml"), ids("said.toml"), ids("gpu.toml"));
    assert_eq!(plain, said);
    // `cuda` is `cuda:0`, and what may be either is neither.
    assert_eq!(gpu.len(), 6);
    assert!(plain.iter().all(|id| gpu.contains(id)), "{plain:?} {gpu:?}");
}
