//! Training through the library: the same bits after any interruption and with any number of threads, and memories that learn.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ndarray::{Array2, Array3, s};
use nmem::Error;
use nmem::config::{Objective, OuterLoss, OutputHead, Settings, TrainSettings};
use nmem::io::memory_file::MemoryFile;
use nmem::memory::model::ModelKind;
use nmem::real::ElementType;
use nmem::train::{Ended, TrainEvent, TrainReport, train};
use tempfile::TempDir;

const CHUNK: usize = 4;
const DIM: usize = 8;

/// Creates a directory with seq.npy: 3 sequences of 40 tokens, waves of three frequencies.
fn sandbox() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_path_buf();
    let wave = |(b, t, i): (usize, usize, usize)| ((0.3 + 0.1 * b as f32) * t as f32 + i as f32).sin();
    ndarray_npy::write_npy(path.join("seq.npy"), &Array3::from_shape_fn((3, 40, DIM), wave)).unwrap();
    (directory, path)
}

fn settings(directory: &Path, out: &str) -> Settings {
    Settings {
        data: Some(directory.join("seq.npy")),
        out: Some(directory.join(out)),
        chunk_size: Some(CHUNK),
        heads: Some(2),
        seed: Some(5),
        no_plots: Some(true),
        threads: Some(2),
        ..Settings::default()
    }
}

fn short() -> TrainSettings {
    TrainSettings {
        steps: Some(7),
        batch: Some(2),
        rate: Some(0.01),
        warmup: Some(2),
        clip: Some(1.0),
        weight_decay: Some(0.1),
        validation_split: Some(0.3),
        validate_every: Some(2),
        checkpoint_every: Some(1e9),
        ..TrainSettings::default()
    }
}

/// Trains, and ends after `most` steps of this start.
fn run(settings: &Settings, of_training: &TrainSettings, most: usize) -> Result<TrainReport, Error> {
    let (config, training) = of_training.clone().validate(settings.clone())?;
    let mut taken = 0;
    let mut observe = |event| {
        if matches!(event, TrainEvent::Step { .. }) {
            taken += 1;
            if taken == most {
                return Err(Error::Interrupted);
            }
        }
        Ok(())
    };
    train(&config, &training, Vec::new(), false, &mut observe)
}

/// Files but run.json; train.csv without its times.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        let mut bytes = fs::read(entry.path()).unwrap();
        if name == "train.csv" {
            let text = String::from_utf8(bytes).unwrap();
            let lines = text.lines().map(|line| line.rsplit_once(',').unwrap().0);
            bytes = lines.collect::<Vec<_>>().join("\n").into_bytes();
        }
        (name, bytes)
    };
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    entries.filter(|entry| entry.file_name() != "run.json").map(read).collect()
}

#[test]
fn an_interrupted_training_resumes_to_the_same_bits() {
    let (_directory, path) = sandbox();
    for (dtype, ema_decay) in [(ElementType::F32, Some(0.7)), (ElementType::F64, None)] {
        let settings =
            |out: &str| Settings { dtype: Some(dtype), ..settings(&path, &format!("{out}-{dtype}")) };
        let short = || TrainSettings { ema_decay, ..short() };
        let whole = run(&settings("whole"), &short(), usize::MAX).unwrap();
        assert_eq!((whole.steps, whole.ended, whole.validation_examples), (7, Ended::Steps, 1));
        let checkpoint = path.join(format!("part-{dtype}.checkpoint"));
        for (done, most) in [(1, 1), (3, 2), (4, 1), (6, 2)] {
            let error = run(&settings("part"), &short(), most).map(drop).unwrap_err();
            let Error::Preempted { done: got, all: 7, unit: "steps", .. } = error else { panic!("{error}") };
            assert_eq!(got, done);
            assert_eq!(
                files(&checkpoint).into_keys().collect::<Vec<_>>(),
                ["checkpoint.json", "train.csv", "training.safetensors"]
            );
        }
        let resumed = run(&settings("part"), &short(), usize::MAX).unwrap();
        assert!(!checkpoint.exists());
        let [whole_files, part] = ["whole", "part"].map(|name| files(&path.join(format!("{name}-{dtype}"))));
        assert_eq!(
            whole_files.keys().collect::<Vec<_>>(),
            ["head.safetensors", "memory.safetensors", "train.csv"]
        );
        assert!(whole_files == part, "other bits");
        assert_eq!((resumed.validation, resumed.best_step), (whole.validation, whole.best_step));
    }
}

/// With a decay of zero, the average is what was learned in the last step.
#[test]
fn an_average_is_validated_and_kept() {
    let (_directory, path) = sandbox();
    let losses = |ema_decay: Option<f64>| {
        let out = format!("out-{ema_decay:?}");
        let last = TrainSettings { validate_every: Some(7), ema_decay, ..short() };
        let report = run(&settings(&path, &out), &last, usize::MAX).unwrap();
        (report.loss, report.validation, files(&path.join(out)))
    };
    let [none, zero, half] = [None, Some(0.0), Some(0.5)].map(losses);
    assert!(none == zero);
    assert_eq!(half.0, none.0, "the steps do not depend on it");
    assert!(half.1 != none.1 && half.2["memory.safetensors"] != none.2["memory.safetensors"]);
    assert!(half.2["head.safetensors"] != none.2["head.safetensors"]);
}

/// A signal while results are written loses no step.
#[test]
fn an_interrupted_end_resumes_too() {
    let (_directory, path) = sandbox();
    let whole = run(&settings(&path, "whole"), &short(), usize::MAX).unwrap();
    let (config, training) = short().validate(settings(&path, "out")).unwrap();
    let mut at_the_end = |event| match event {
        TrainEvent::Writing => Err(Error::Interrupted),
        _ => Ok(()),
    };
    let error = train(&config, &training, Vec::new(), false, &mut at_the_end).map(drop).unwrap_err();
    assert!(matches!(error, Error::Preempted { done: 7, all: 7, .. }), "{error}");
    let resumed = run(&settings(&path, "out"), &short(), usize::MAX).unwrap();
    assert!(files(&path.join("whole")) == files(&path.join("out")), "other bits");
    assert_eq!((resumed.loss, resumed.steps), (whole.loss, whole.steps));
}

#[test]
fn force_starts_anew() {
    let (_directory, path) = sandbox();
    run(&settings(&path, "out"), &short(), 3).unwrap_err();
    let (config, training) = short().validate(settings(&path, "out")).unwrap();
    let mut taken = Vec::new();
    for replace in [true, false] {
        let mut observe = |event| match event {
            TrainEvent::Starting { taken: of_before, .. } => {
                taken.push(of_before);
                Ok(())
            }
            TrainEvent::Step { .. } => Err(Error::Interrupted),
            _ => Ok(()),
        };
        train(&config, &training, Vec::new(), replace, &mut observe).map(drop).unwrap_err();
    }
    assert_eq!(taken, [0, 1]);
}

/// A validation that reads NaN is never the best, and a last step without validation is checked too.
#[test]
fn what_is_not_finite_is_not_kept() {
    let (_directory, path) = sandbox();
    let huge = Array3::from_elem((1, 12, DIM), 1e30_f32);
    ndarray_npy::write_npy(path.join("huge.npy"), &huge).unwrap();
    let validated = TrainSettings {
        validation: Some(path.join("huge.npy")),
        validation_split: None,
        output_head: Some(OutputHead::None),
        ..short()
    };
    let without_norm =
        Settings { no_pre_norm: Some(true), no_post_norm: Some(true), ..settings(&path, "out") };
    let report = run(&without_norm, &validated, usize::MAX).unwrap();
    assert_eq!((report.validation, report.best_step, report.ended), (None, 7, Ended::Steps));
    let last =
        TrainSettings { steps: Some(1), rate: Some(1e300), warmup: None, validation_split: None, ..short() };
    let last = TrainSettings { validate_every: None, ..last };
    let report = run(&settings(&path, "last"), &last, usize::MAX).unwrap();
    assert_eq!(report.ended, Ended::Diverged);
    assert!(!path.join("last/memory.safetensors").exists());
}

#[test]
fn checkpoints_are_written_on_the_way() {
    let (_directory, path) = sandbox();
    let often = TrainSettings { checkpoint_every: Some(0.0), ..short() };
    let (config, training) = often.validate(settings(&path, "out")).unwrap();
    let mut seen = Vec::new();
    let mut observe = |event| {
        if matches!(event, TrainEvent::Step { .. }) {
            seen.push(path.join("out.checkpoint/checkpoint.json").exists());
        }
        Ok(())
    };
    train(&config, &training, Vec::new(), false, &mut observe).unwrap();
    // That of the first step is written after it was seen.
    assert_eq!(seen, [false, true, true, true, true, true, true]);
    assert!(!path.join("out.checkpoint").exists());
}

#[test]
fn another_training_does_not_resume_from_a_checkpoint() {
    let (_directory, path) = sandbox();
    run(&settings(&path, "out"), &short(), 3).unwrap_err();
    let other = TrainSettings { rate: Some(0.02), ..short() };
    let message = run(&settings(&path, "out"), &other, 3).map(drop).unwrap_err().to_string();
    assert!(message.contains("differs from this one (rate was 0.01)"), "{message}");
    let other = Settings { seed: Some(6), ..settings(&path, "out") };
    let message = run(&other, &short(), 3).map(drop).unwrap_err().to_string();
    assert!(message.contains("differs from this one (seed was 5)"), "{message}");
    // More threads are the same training.
    let more = Settings { threads: Some(1), ..settings(&path, "out") };
    let Error::Preempted { done, .. } = run(&more, &short(), 1).map(drop).unwrap_err() else { panic!() };
    assert_eq!(done, 4);
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let (_directory, path) = sandbox();
    let all = [1, 2, 5].map(|threads| {
        let settings = Settings { threads: Some(threads), ..settings(&path, &threads.to_string()) };
        run(&settings, &short(), usize::MAX).unwrap();
        files(&path.join(threads.to_string()))
    });
    assert!(all[0] == all[1] && all[0] == all[2], "other bits");
}

/// A memory that learns does better than one without updates.
#[test]
fn next_tokens_are_learned() {
    let (_directory, path) = sandbox();
    let longer = TrainSettings { steps: Some(60), rate: Some(0.02), ..short() };
    let report = run(&settings(&path, "out"), &longer, usize::MAX).unwrap();
    let [best, zero] = [report.validation.unwrap(), report.validation_zero.unwrap()];
    assert!(best < 0.5 * zero, "{best} against {zero} of zeros");
    // Without what it stored, the memory does worse.
    assert!(report.validation_without_updates.unwrap() > best);
    let text = fs::read_to_string(path.join("out/train.csv")).unwrap();
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(
        rows[0],
        [
            "step",
            "loss",
            "validation",
            "rate",
            "grad_norm",
            "grad_norm_norms",
            "grad_norm_projections",
            "grad_norm_gates",
            "grad_norm_memory",
            "grad_norm_head",
            "tokens_per_s"
        ]
    );
    assert_eq!((rows.len(), rows[1][0], rows[61][0]), (62, "0", "60"));
    // Validation before the first step, after every second, and after the last.
    let validated = |row: &&Vec<&str>| !row[2].is_empty();
    assert_eq!(rows[1..].iter().filter(validated).count(), 31);
    let squares: f64 = rows[2][5..10].iter().map(|norm| norm.parse::<f64>().unwrap().powi(2)).sum();
    assert!((squares.sqrt() / rows[2][4].parse::<f64>().unwrap() - 1.0).abs() < 1e-12);
}

#[test]
fn hidden_coordinates_stay_hidden() {
    let (_directory, path) = sandbox();
    let hiding = TrainSettings {
        objective: Some(Objective::Reconstruct),
        visible: Some(vec![0, 3]),
        norm_weight_decay: Some(0.1),
        ..short()
    };
    let report = run(&settings(&path, "out"), &hiding, usize::MAX).unwrap();
    assert_eq!(report.steps, 7);
    let file =
        MemoryFile::open(&path.join("out/memory.safetensors"), ElementType::F32, false, &mut |_| Ok(()))
            .unwrap();
    let parameters = file.parameters::<f32>(file.program());
    let norm = parameters.retrieve_norm.unwrap();
    assert!(norm.iter().enumerate().all(|(i, &x)| (x == 0.0) != [0, 3].contains(&i)), "{norm}");
    let head =
        nmem::io::tensors::TensorFile::open(path.join("out/head.safetensors"), &mut |_| Ok(())).unwrap();
    assert_eq!(head.get("weight").unwrap().shape(), [6, DIM]);
    assert_eq!(head.get("bias").unwrap().shape(), [6]);
}

/// Keys and values in the two halves of a token. Each is stored once, then the keys are read.
#[test]
fn values_are_recalled() {
    let (_directory, path) = sandbox();
    let (pairs, width) = (8, DIM / 2);
    let unit = |seed: usize, i: usize, j: usize| ((seed * 31 + i * 7 + j * 3) as f32).sin();
    let mut store = Array3::zeros((6, pairs, DIM));
    let mut target = Array3::zeros((6, pairs, width));
    let codebook = Array2::from_shape_fn((10, width), |(i, j)| unit(99, i, j));
    for b in 0..6 {
        for i in 0..pairs {
            let value = codebook.row((b + 3 * i) % 10).to_owned();
            let key = Array2::from_shape_fn((1, width), |(_, j)| unit(b, i, j));
            store.slice_mut(s![b, i, ..width]).assign(&key.row(0));
            store.slice_mut(s![b, i, width..]).assign(&value);
            target.slice_mut(s![b, i, ..]).assign(&value);
        }
    }
    let mut queries = store.clone();
    queries.slice_mut(s![.., .., width..]).fill(0.0_f32);
    for (name, array) in [("store", &store), ("queries", &queries), ("target", &target)] {
        ndarray_npy::write_npy(path.join(format!("{name}.npy")), array).unwrap();
    }
    ndarray_npy::write_npy(path.join("codebook.npy"), &codebook).unwrap();
    let of_values = |out: &str, entropy: bool| Settings {
        data: Some(path.join("queries.npy")),
        store_seq: Some(path.join("store.npy")),
        target: Some(path.join("target.npy")),
        candidates: entropy.then(|| path.join("codebook.npy")),
        read_after: Some(true),
        model: Some(ModelKind::Mlp),
        chunk_size: Some(2),
        heads: Some(1),
        ..settings(&path, out)
    };
    let longer = TrainSettings {
        steps: Some(200),
        batch: Some(6),
        rate: Some(0.02),
        validation_split: None,
        validate_every: None,
        ..short()
    };
    for (out, outer_loss, output_head) in [
        ("square", None, Some(OutputHead::Linear)),
        ("entropy", Some(OuterLoss::CrossEntropy), Some(OutputHead::Linear)),
        ("headless", Some(OuterLoss::CrossEntropy), None),
    ] {
        let longer = TrainSettings { outer_loss, output_head, ..longer.clone() };
        let report = run(&of_values(out, outer_loss.is_some()), &longer, usize::MAX).unwrap();
        let text = fs::read_to_string(path.join(out).join("train.csv")).unwrap();
        let losses: Vec<f64> =
            text.lines().skip(1).map(|line| line.split(',').nth(1).unwrap().parse().unwrap()).collect();
        assert_eq!((losses.len(), report.steps), (200, 200));
        // As many pairs as the keys have room for twice over: some values stay wrong.
        let share = if out == "square" { 0.3 } else { 0.9 };
        assert!(losses[199] < share * losses[0], "{out}: {} after {}", losses[199], losses[0]);
        assert_eq!(path.join(out).join("head.safetensors").exists(), out != "headless");
    }
}

#[test]
fn patience_ends_a_training() {
    let (_directory, path) = sandbox();
    // A rate of zero never improves.
    let patient = TrainSettings { rate: Some(0.0), patience: Some(2), steps: Some(50), ..short() };
    let report = run(&settings(&path, "out"), &patient, usize::MAX).unwrap();
    assert_eq!((report.ended, report.steps, report.best_step), (Ended::Patience, 4, 0));
}

#[test]
fn a_training_that_diverges_says_so() {
    let (_directory, path) = sandbox();
    let wild = TrainSettings { rate: Some(1e30), warmup: None, clip: None, ..short() };
    let report = run(&settings(&path, "out"), &wild, usize::MAX).unwrap();
    assert_eq!(report.ended, Ended::Diverged);
    // The best is that before the first step.
    assert_eq!(report.best_step, 0);
    assert!(path.join("out/memory.safetensors").exists());
    let without = TrainSettings { validation_split: None, validate_every: None, ..wild };
    let report = run(&settings(&path, "alone"), &without, usize::MAX).unwrap();
    assert_eq!((report.ended, report.validation), (Ended::Diverged, None));
    assert!(!path.join("alone/memory.safetensors").exists());
}

/// A training from a file starts at its parameters.
#[test]
fn a_file_is_trained_further() {
    let (_directory, path) = sandbox();
    run(&settings(&path, "first"), &short(), usize::MAX).unwrap();
    let from = Settings {
        memory: Some(path.join("first/memory.safetensors")),
        heads: None,
        chunk_size: None,
        ..settings(&path, "second")
    };
    let still = TrainSettings { rate: Some(0.0), output_head: Some(OutputHead::None), ..short() };
    run(&from, &still, usize::MAX).unwrap();
    let read = |name: &str| fs::read(path.join(name).join("memory.safetensors")).unwrap();
    assert!(read("first") == read("second"), "other bits");
}
