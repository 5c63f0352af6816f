//! `nmem train` from the shell: its files, what other commands make of them, settings from a file, and messages.

use ndarray::{ArrayD, s};
use serde_json::Value;

use crate::Sandbox;
use crate::transcript::Transcript;

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.ok("generate drift --tokens 240 --dim 8 --segment 40 --out seq.npy -q");
    sandbox
}

const SHORT: &str = "--heads 2 --chunk-size 8 --window 64 --steps 4 --batch 2 --rate 0.01";

#[test]
fn other_commands_take_what_is_trained() {
    let sandbox = sandbox();
    let output = sandbox.ok(&format!("train seq.npy {SHORT} --validation-split 0.25 --out a"));
    for part in [
        "trained          4 steps, 512 tokens",
        "validation",
        "no updates",
        "all zeros",
        "results          a",
    ] {
        assert!(output.out.contains(part), "{}", output.out);
    }
    for file in ["train.csv", "memory.safetensors", "head.safetensors", "run.json", "plots/training.svg"] {
        assert!(sandbox.path("a").join(file).exists(), "{file}");
    }
    sandbox.ok("store seq.npy --memory a/memory.safetensors --out stored --no-plots -q");
    sandbox.ok("check a/memory.safetensors");
    sandbox.ok("export a/memory.safetensors --out state.safetensors -q");
    sandbox.ok("inspect a/memory.safetensors a/head.safetensors");
    sandbox.ok("plot a a/train.csv --out figures");
    assert!(sandbox.path("figures/training.svg").exists());
    let report = sandbox.json("a/run.json");
    assert_eq!((&report["command"], &report["ended"]), (&"train".into(), &"steps".into()));
    assert_eq!(report["train"]["rate"], 0.01);
    assert_eq!(report["validation_examples"], 1);
    // A directory that nmem wrote can be replaced.
    sandbox.ok(&format!("train seq.npy {SHORT} --out a --force -q"));
    assert_eq!(sandbox.json("a/run.json")["validation"], Value::Null);
}

/// The validation is what `retrieve --online` gives.
#[test]
fn validation_is_an_online_read() {
    let sandbox = sandbox();
    sandbox.ok("generate drift --tokens 50 --dim 8 --segment 25 --seed 3 --out other.npy -q");
    let line = "--heads 2 --chunk-size 8 --steps 3 --rate 0.01 --objective reconstruct --output-head none --validation other.npy";
    sandbox.ok(&format!("train seq.npy {line} --dtype f64 --out a --no-plots -q"));
    sandbox.ok("retrieve other.npy --online --memory a/memory.safetensors --dtype f64 --out r --no-plots -q");
    let [tokens, read]: [ArrayD<f64>; 2] = ["other.npy", "r/retrieved.npy"].map(|name| sandbox.floats(name));
    // The tokens of the first chunk read zeros, and have no loss.
    let difference = &read.slice(s![8.., ..]) - &tokens.slice(s![8.., ..]);
    let expected = difference.mapv(|x| x * x).mean().unwrap();
    let zero = tokens.slice(s![8.., ..]).mapv(|x| x * x).mean().unwrap();
    let report = sandbox.json("a/run.json");
    for (key, expected) in [("validation", expected), ("validation_zero", zero)] {
        let got = report[key].as_f64().unwrap();
        assert!((got - expected).abs() < 1e-12 * expected, "{key}: {got} for {expected}");
    }
}

#[test]
fn settings_come_from_a_file() {
    let sandbox = sandbox();
    std::fs::create_dir(sandbox.path("sub")).unwrap();
    sandbox.ok("generate drift --tokens 240 --dim 8 --segment 40 --out sub/near.npy -q");
    sandbox.file(
        "sub/train.toml",
        "data = \"near.npy\"\nheads = 2\nchunk_size = 8\nwindow = 64\nsteps = 3\nrate = 0.5\nstart_decay = 0.1\ngate_biases = true\n",
    );
    sandbox.ok("train sub/train.toml --rate 0 --out a --no-plots -q");
    let report = sandbox.json("a/run.json");
    assert_eq!((report["steps"].as_u64(), report["train"]["rate"].as_f64()), (Some(3), Some(0.0)));
    let roles: Vec<_> =
        report["inputs"].as_array().unwrap().iter().map(|input| input["role"].clone()).collect();
    assert_eq!(roles, ["data", "config"]);
    // A rate of 0 leaves the start: the logit of a decay of 0.1.
    let bias = sandbox.tensors("a/memory.safetensors")["to_decay_factor.1.bias"].floats();
    assert!(bias.iter().all(|x| (x - (0.1_f64 / 0.9).ln()).abs() < 1e-6), "{bias}");
}

/// The runs of a sweep are trainings of their own, with the same files.
#[test]
fn a_sweep_of_trainings() {
    let sandbox = sandbox();
    sandbox.file(
        "grid.toml",
        "run = \"train\"\n[fixed]\ndata = \"seq.npy\"\nheads = 2\nchunk_size = 8\nwindow = 64\nsteps = 3\nbatch = 2\n\
         validation_split = 0.25\nmemory_scale = \"0.5,0.5,0.5,1\"\n[grid]\nrate = [0.0, 0.01]\nseed = [1, 2]\n",
    );
    let output = sandbox.ok("sweep grid.toml --out sweep --keep all");
    assert!(output.out.contains("best mean of validation"), "{}", output.out);
    let results = sandbox.csv("sweep/results.csv");
    assert_eq!(results.texts("status"), ["ok"; 4]);
    let validation = results.numbers("validation");
    // Without steps, the best is the start.
    assert_eq!(results.numbers("best_step")[..2], [0.0, 0.0]);
    assert!(validation[2] <= validation[0] && validation[3] < validation[1], "{validation:?}");
    assert_eq!(results.numbers("tokens"), [384.0; 4]);
    let run = format!("sweep/runs/{}", results.texts("run")[2]);
    let report: serde_json::Value =
        serde_json::from_slice(&sandbox.bytes(&format!("{run}/run.json"))).unwrap();
    for (column, key) in [
        ("train_loss", "loss"),
        ("validation", "validation"),
        ("validation_without_updates", "validation_without_updates"),
        ("validation_zero", "validation_zero"),
        ("best_step", "best_step"),
        ("tokens", "tokens"),
    ] {
        assert_eq!(Some(results.numbers(column)[2]), report[key].as_f64(), "{column}");
    }
    let trained = report["wall_s"]["train"].as_f64().unwrap();
    assert!((results.numbers("tokens_per_s")[2] * trained / 384.0 - 1.0).abs() < 1e-6);
    assert!(results.numbers("wall_s")[2] >= trained);
    assert_eq!(sandbox.names(&run), ["head.safetensors", "memory.safetensors", "run.json", "train.csv"]);
    // The same training alone.
    let line = "train seq.npy --heads 2 --chunk-size 8 --window 64 --steps 3 --batch 2 --validation-split 0.25 --no-plots -q";
    sandbox.ok(&format!("{line} --memory-scale 0.5,0.5,0.5,1 --rate 0.01 --seed 1 --out alone"));
    assert!(sandbox.bytes("alone/memory.safetensors") == sandbox.bytes(&format!("{run}/memory.safetensors")));
    let again = sandbox.ok("sweep grid.toml --out sweep --keep all");
    assert!(again.err.contains("4 runs are done") || again.out.contains("best mean"), "{}", again.err);
    sandbox.file("store.toml", "[fixed]\ndata = \"seq.npy\"\nrate = 0.1\n[grid]\nseed = [1, 2]\n");
    let message = sandbox.rejected("sweep store.toml --out other");
    assert_eq!(
        message,
        "rate: a setting of trainings; write run = \"train\" at the top of the file, or omit it"
    );
}

#[test]
fn rejected_trainings() {
    let sandbox = sandbox();
    sandbox.ok("generate drift --tokens 240 --dim 8 --segment 40 --seed 2 --out target.npy -q");
    sandbox.ok("store seq.npy --heads 2 --out stored --no-plots -q");
    sandbox.file("unknown.toml", "heads = 2\n\nrats = 0.1\n");
    sandbox.file("wrong.toml", "heads = 2\nsteps = \"many\"\n");
    sandbox.file("broken.toml", "heads = [\n");
    sandbox.file("one.csv", "start,end,source\n0,120,a\n120,240,a\n");
    sandbox.file("beyond.csv", "start,end,source\n0,120,a\n120,250,b\n");
    sandbox.file("layouts.csv", "layout,position,row\n0,0,5\n0,2,6\n");
    let lines = [
        "train",
        "train none.npy",
        "train unknown.toml",
        "train wrong.toml",
        "train broken.toml",
        "train seq.npy --steps 0",
        "train seq.npy --steps 3 --epochs 2",
        "train seq.npy --window 64 --epochs 2",
        "train seq.npy --window 500",
        "train seq.npy --rate=-1",
        "train seq.npy --beta1 1",
        "train seq.npy --objective value",
        "train seq.npy --target target.npy --objective next",
        "train seq.npy --target target.npy --outer-loss cross-entropy",
        "train seq.npy --target target.npy --candidates target.npy",
        "train seq.npy --target target.npy --visible 3",
        "train seq.npy --store-seq seq.npy",
        "train seq.npy --blocks one.csv",
        "train seq.npy --blocks one.csv --window 64",
        "train seq.npy --blocks beyond.csv --window 64",
        "train seq.npy --blocks one.csv --window 64 --validation-split 0.2",
        "train seq.npy --passage-min 16",
        "train seq.npy --target target.npy --validation-split 0.2",
        "train seq.npy --target target.npy --validation seq.npy --validation-target target.npy --validation-layouts layouts.csv",
        "train seq.npy --adam-epsilon 0",
        "train seq.npy --gate-scale inf",
        "train seq.npy --constant 7",
        "train seq.npy --constant 7 --start-decay 0.1 --decay 0.5",
        "train seq.npy --patience 3",
        "train seq.npy --validation target.npy --validation-split 0.2",
        "train seq.npy --validation target.npy --validation-layouts layouts.csv",
        "train seq.npy --validation-store target.npy",
        "train seq.npy --visible 8",
        "train seq.npy --visible 0,1,2,3,4,5,6,7",
        "train seq.npy --visible 1 --no-pre-norm",
        "train seq.npy --heads 2 --start-decay 0.1",
        "train seq.npy --heads 2 --start-decay 0.1,0.2,0.3 --constant 7",
        "train seq.npy --start-decay 2 --constant 7",
        "train seq.npy --memory-scale 1,2",
        "train seq.npy --memory stored/memory.safetensors",
        "train seq.npy --memory stored/memory.safetensors --tie-queries",
        "train seq.npy --skip 240",
        "train seq.npy --truncate 5",
        "train seq.npy --loss p-norm --loss-power 1.5",
        "train seq.npy --retention 2",
        "train seq.npy --device cuda",
        "train seq.npy --out stored",
    ];
    insta::assert_snapshot!(Transcript::of_rejected(&sandbox, &lines));
    // The limit is that of the machine.
    let message = sandbox.rejected("train seq.npy --batch 100000000000");
    assert!(message.starts_with("memory for the run:"), "{message}");
    assert!(!sandbox.path("results").exists());
}
