//! `--device` and `nmem devices` on a machine of any kind and in a build of either kind: what is read, what is refused,
//! and that the processor is what it was. What a driver does to it is in tests/driver.

use serde_json::Value;

use crate::Sandbox;

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.npy("data.npy", &crate::tokens(&[20, 8], 3));
    sandbox
}

#[test]
fn a_build_without_the_feature_says_so() {
    if cfg!(feature = "cuda") {
        return;
    }
    let sandbox = sandbox();
    let expected = "cuda: this build is without CUDA: build with `--features cuda`";
    for line in [
        "store data.npy --device cuda",
        "store data.npy --device cuda:3",
        "retrieve data.npy --online --device cuda",
        "scan-bench --device cuda",
    ] {
        assert_eq!(sandbox.rejected(line), expected, "{line}");
    }
    sandbox.file("experiment.toml", "data = 'data.npy'\n[grid]\ndevice = ['cpu', 'cuda']\n");
    assert_eq!(sandbox.rejected("sweep experiment.toml"), expected);
    let output = sandbox.ok("store data.npy --device auto --no-plots --out auto");
    assert_eq!(output.err, format!("note: --device auto: cpu ({expected})\n"));
    assert_eq!(sandbox.json("auto/run.json")["device"], "cpu");
    assert_eq!(sandbox.ok("store data.npy --device auto --no-plots --out quiet -q").err, "");
    let output = sandbox.ok("devices");
    assert!(
        output.out.ends_with("\nno GPU: this build is without CUDA: build with `--features cuda`\n"),
        "{}",
        output.out
    );
}

#[test]
fn the_processor_is_listed() {
    let sandbox = Sandbox::new();
    let output = sandbox.ok("devices");
    let lines: Vec<_> = output.out.lines().collect();
    assert!(lines[0].starts_with("device  name"), "{}", output.out);
    assert!(lines[1].starts_with("cpu     ") && lines[1].contains(" cores, "), "{}", output.out);
    let found: Value = serde_json::from_str(&sandbox.ok("devices --format json").out).unwrap();
    assert!(found["cpu"]["cores"].as_u64().unwrap() > 0);
    // Either GPUs or the reason why there are none, on one line.
    assert_eq!(found["cuda"].as_array().unwrap().is_empty(), found["cuda_error"].is_string());
    assert!(!found["cuda_error"].as_str().unwrap_or_default().contains('\n'));
}

#[test]
fn rejected_by_any_build() {
    let sandbox = sandbox();
    for text in ["gpu", "cuda:x", "cuda:", "cuda:-1"] {
        let message = sandbox.rejected(&format!("store data.npy --device {text}"));
        let expected = format!(
            "invalid value '{text}' for '--device <cpu|cuda|cuda:N|auto>': expected cpu, cuda, cuda:N"
        );
        assert!(message.starts_with(&expected), "{message}");
    }
    sandbox.file("settings.toml", "device = 'gpu'\n");
    let message = sandbox.rejected("store data.npy --config settings.toml");
    assert!(message.contains("line 1") && message.contains("expected cpu, cuda, cuda:N"), "{message}");
    assert_eq!(
        sandbox.rejected("store data.npy --device cuda:1 --retention 2"),
        "--retention: expected --device cpu with it (kept chunks are read again on the CPU only), got --device cuda:1"
    );
    // Left to the program, it is the processor.
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
