//! A store that is ended again and again between two segments, and resumed, gives the files of one that was not.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ndarray::{Array2, Array3};
use nmem::Error;
use nmem::config::{Command, Settings};
use nmem::run::{RunEvent, RunOutput, execute};
use tempfile::TempDir;

/// Three segments of 16,384 tokens and a part of one, which ends within a chunk.
const TOKENS: usize = 3 * 16_384 + 1003;

fn settings(directory: &Path, out: &str, more: impl Fn(&mut Settings)) -> Settings {
    let mut settings = Settings {
        data: Some(directory.join("seq.npy")),
        out: Some(directory.join(out)),
        chunk_size: Some(13),
        heads: Some(2),
        no_plots: Some(true),
        ..Settings::default()
    };
    more(&mut settings);
    settings
}

fn store(settings: &Settings, force: bool, preempted: bool) -> Result<RunOutput, Error> {
    store_until(settings, force, if preempted { 1 } else { usize::MAX })
}

/// Stores until the run has asked `calls` times whether it is preempted, which it does after every segment.
fn store_until(settings: &Settings, force: bool, calls: usize) -> Result<RunOutput, Error> {
    let config = settings.clone().validate(Command::Store)?;
    let device = config.device.open()?;
    let asked = AtomicUsize::new(0);
    let preempted = || asked.fetch_add(1, Ordering::Relaxed) + 1 >= calls;
    execute(Command::Store, &config, &device, Vec::new(), force, &mut |_| Ok(()), &preempted)
}

fn sandbox() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_path_buf();
    let mut state = 1_u64;
    let tokens = Array2::<f32>::from_shape_simple_fn((TOKENS, 4), || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    });
    ndarray_npy::write_npy(path.join("seq.npy"), &tokens).unwrap();
    (directory, path)
}

/// Stores that end after a number of segments, until one comes to its end. Returns its output and the tokens after each start.
fn start_until_done(settings: &Settings, segments: usize) -> (RunOutput, Vec<usize>) {
    let mut done = Vec::new();
    loop {
        match store_until(settings, false, segments) {
            Ok(output) => return (output, done),
            Err(Error::Preempted { done: at, .. }) => done.push(at),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Settings of a run that is not divided into segments, because it is repeated for timing.
fn undivided(path: &Path, more: impl Fn(&mut Settings)) -> Settings {
    settings(path, "whole", |settings| {
        more(settings);
        settings.repeat = Some(1);
    })
}

/// Compares the files of two runs, and what their reports say about the results.
fn assert_same(path: &Path, whole: RunOutput, resumed: RunOutput) {
    let [mut expected, got] = ["whole", "out"].map(|name| files(&path.join(name)));
    assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    expected.remove("run.json").unwrap();
    for (name, expected) in expected {
        assert!(got[&name] == expected, "{name}: other bits");
    }
    let [whole, resumed] = [whole, resumed].map(|output| output.report);
    assert_eq!(resumed.summary, whole.summary);
    assert_eq!((resumed.rows, resumed.life_tokens), (whole.rows, whole.life_tokens));
    assert_eq!((resumed.warnings, resumed.diverged), (whole.warnings, whole.diverged));
}

/// 19 sequences of 5,003 tokens. Groups have four of them, as many as have eight heads.
fn several(path: &Path, nan: &[(usize, usize)]) {
    let mut state = 1_u64;
    let mut tokens = Array3::<f32>::from_shape_simple_fn((19, 5003, 4), || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    });
    for &(sequence, token) in nan {
        tokens[[sequence, token, 1]] = f32::NAN;
    }
    ndarray_npy::write_npy(path.join("seq.npy"), &tokens).unwrap();
}

fn files_of(directory: &Path) -> Vec<String> {
    let names =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

fn same_bits(more: impl Fn(&mut Settings)) {
    let (_directory, path) = sandbox();
    let whole = store(&undivided(&path, &more), false, false).unwrap();
    let settings = settings(&path, "out", &more);
    let checkpoint = path.join("out.checkpoint");
    // The first segment of every start has the same length, and each start ends after it.
    for starts in 1..=3 {
        let error = store(&settings, false, true).map(drop).unwrap_err();
        let Error::Preempted { checkpoint: at, done: stored, all: tokens, unit: "tokens" } = error else {
            panic!("{error}")
        };
        assert_eq!((at, stored, tokens), (checkpoint.clone(), starts * 16_384, TOKENS));
        assert!(!path.join("out").exists());
        assert_eq!(
            files(&checkpoint).into_keys().collect::<Vec<_>>(),
            ["checkpoint.json", "memory.safetensors", "metrics.csv", "progress.json"]
        );
    }
    let resumed = store(&settings, false, false).unwrap();
    assert!(!checkpoint.exists());
    assert_eq!(
        files(&path.join("out")).into_keys().collect::<Vec<_>>(),
        ["memory.safetensors", "metrics.csv", "run.json"]
    );
    assert_same(&path, whole, resumed);
}

#[test]
fn resumed_in_f32() {
    same_bits(|_| {});
}

#[test]
fn resumed_in_f64_on_one_thread() {
    same_bits(|settings| {
        settings.dtype = Some(nmem::real::ElementType::F64);
        settings.threads = Some(1);
    });
}

#[test]
fn resumed_between_refreshes() {
    same_bits(|settings| settings.refresh = Some(39));
}

#[test]
fn a_divergence_after_resuming_is_that_of_the_whole_run() {
    let (_directory, path) = sandbox();
    let mut tokens: Array2<f32> = ndarray_npy::read_npy(path.join("seq.npy")).unwrap();
    tokens[[20_000, 1]] = f32::NAN;
    ndarray_npy::write_npy(path.join("seq.npy"), &tokens).unwrap();
    let more = |settings: &mut Settings| settings.allow_nonfinite = Some(true);
    let whole = store(&settings(&path, "whole", more), false, false).unwrap();
    let settings = settings(&path, "out", more);
    store(&settings, false, true).map(drop).unwrap_err();
    let resumed = store(&settings, false, true).unwrap();
    assert_eq!(resumed.report.diverged, whole.report.diverged);
    assert!(whole.report.diverged.is_some());
    assert_eq!(resumed.report.rows, whole.report.rows);
    assert_eq!(
        fs::read(path.join("out/metrics.csv")).unwrap(),
        fs::read(path.join("whole/metrics.csv")).unwrap()
    );
}

fn same_bits_of_several(more: impl Fn(&mut Settings)) -> BTreeMap<String, Vec<u8>> {
    let (_directory, path) = sandbox();
    several(&path, &[]);
    let whole = store(&undivided(&path, &more), false, false).unwrap();
    let settings = settings(&path, "out", more);
    let (resumed, done) = start_until_done(&settings, 1);
    // The first segment has 4,096 tokens of each sequence, and the next one the rest. The last group has three sequences, for
    // which one is enough.
    let of_group = |group: usize| [4096, 5003].map(|tokens| (group * 5003 + tokens) * 4);
    assert_eq!(done, (0..4).flat_map(of_group).collect::<Vec<_>>());
    assert_same(&path, whole, resumed);
    assert!(!path.join("out.checkpoint").exists());
    let kept = files(&path.join("out"));
    // How many tokens a later segment of a start has depends on the time, and affects nothing.
    for segments in [2, 3, 5, usize::MAX] {
        fs::remove_dir_all(path.join("out")).unwrap();
        start_until_done(&settings, segments);
        let again = files(&path.join("out"));
        for name in kept.keys().filter(|name| *name != "run.json") {
            assert!(again[name] == kept[name], "{name}: other bits after {segments} segments");
        }
    }
    kept
}

/// Singular values are taken where they are due, and at the end, but not where a segment ends.
#[test]
fn several_sequences_and_their_singular_values() {
    for every in [7, 1_000_000] {
        let probe = format!("spectrum:{every}");
        let files = same_bits_of_several(|settings| settings.probe = Some(probe.parse().unwrap()));
        assert!(files["spectrum.csv"].len() > 100);
    }
}

#[test]
fn several_sequences_with_gated_refreshes() {
    same_bits_of_several(|settings| {
        settings.refresh = Some(39);
        settings.gated_transition = Some(true);
    });
}

/// The memory to continue has tokens left over from an incomplete chunk.
#[test]
fn several_sequences_into_a_saved_memory() {
    let (_directory, path) = sandbox();
    several(&path, &[]);
    let first = settings(&path, "first", |settings| settings.seed = Some(3));
    store(&first, false, false).unwrap();
    let memory = path.join("first/memory.safetensors");
    same_bits_of_several(|settings| {
        (settings.heads, settings.memory) = (None, Some(memory.clone()));
    });
}

/// The signal comes while the results are written: the run comes to its end.
#[test]
fn a_signal_after_the_last_token() {
    let (_directory, path) = sandbox();
    let drawn = |settings: &mut Settings| settings.no_plots = None;
    let config = settings(&path, "out", drawn).validate(Command::Store).unwrap();
    let device = config.device.open().unwrap();
    let signal = AtomicBool::new(false);
    let mut observe = |event| match event {
        RunEvent::Writing => {
            signal.store(true, Ordering::Relaxed);
            Err(Error::Interrupted)
        }
        _ => Ok(()),
    };
    let preempted = || signal.load(Ordering::Relaxed);
    let output =
        execute(Command::Store, &config, &device, Vec::new(), false, &mut observe, &preempted).unwrap();
    assert_eq!(
        output.report.warnings.last().unwrap(),
        "figures not drawn after SIGTERM; nmem plot draws them"
    );
    let names = files_of(&path.join("out"));
    assert_eq!(names, ["memory.safetensors", "metrics.csv", "run.json"]);
    assert!(!path.join("out.checkpoint").exists());
    // Ctrl-C still ends it.
    let config = settings(&path, "other", |_| {}).validate(Command::Store).unwrap();
    let ended = execute(Command::Store, &config, &device, Vec::new(), false, &mut observe, &|| false);
    assert!(matches!(ended, Err(Error::Interrupted)), "{:?}", ended.err());
    assert!(!path.join("other").exists());
}

/// A position that this store cannot have had is neither used nor removed.
#[test]
fn a_damaged_position() {
    let (_directory, path) = sandbox();
    let settings = settings(&path, "out", |_| {});
    store(&settings, false, true).map(drop).unwrap_err();
    let progress = path.join("out.checkpoint/progress.json");
    let good = fs::read(&progress).unwrap();
    for bad in [
        "{}",
        "[]",
        r#"{"sequence": 0, "tokens": 9, "divergence": null}"#,
        r#"{"sequence": 1, "tokens": 0, "divergence": null}"#,
        r#"{"sequence": 1, "tokens": 3, "divergence": null}"#,
        r#"{"sequence": 2, "tokens": 0, "divergence": null}"#,
        r#"{"sequence": 0, "tokens": 999999999, "divergence": null}"#,
        r#"{"sequence": 0, "tokens": 9, "divergence": {"sequence": 4, "chunk": 0, "head": 0, "quantity": "loss", "value": "inf"}}"#,
    ] {
        fs::write(&progress, bad).unwrap();
        let message = store(&settings, false, false).map(drop).unwrap_err().to_string();
        let expected =
            "out.checkpoint: progress.json is missing or not of this run; remove the directory to start anew";
        assert!(message.contains(expected), "{bad}: {message}");
    }
    fs::remove_file(&progress).unwrap();
    let message = store(&settings, false, false).map(drop).unwrap_err().to_string();
    assert!(message.contains("remove the directory to start anew"), "{message}");
    fs::write(&progress, good).unwrap();
    store(&settings, false, false).unwrap();
}

/// Sequences before a divergence are stored to their ends, and those of later groups are not.
#[test]
fn a_divergence_among_several_sequences() {
    for (nan, stored) in [
        // One sequence in the first segment, and an earlier one of the same group in the next.
        (&[(3, 100), (2, 4900)][..], 3 * 4096),
        (&[(3, 100)], 3 * 4096),
        (&[(2, 4900), (9, 100)], 4 * 4096),
        (&[(6, 4900), (9, 100)], 4 * 4096),
        (&[(10, 100)], 4 * 4096),
    ] {
        let (_directory, path) = sandbox();
        several(&path, nan);
        let more = |settings: &mut Settings| settings.allow_nonfinite = Some(true);
        let whole = store(&undivided(&path, more), false, false).unwrap();
        let settings = settings(&path, "out", more);
        let error = store(&settings, false, true).map(drop).unwrap_err();
        assert!(matches!(error, Error::Preempted { done, .. } if done == stored), "{error}");
        let (resumed, _) = start_until_done(&settings, 2);
        assert_eq!(
            whole.report.diverged.as_ref().unwrap().sequence,
            nan.iter().map(|at| at.0).min().unwrap()
        );
        let rows = fs::read_to_string(path.join("out/metrics.csv")).unwrap().lines().count() - 1;
        assert_eq!(rows, whole.report.rows);
        assert_same(&path, whole, resumed);
    }
}

/// The state of another run is neither used nor lost.
#[test]
fn only_the_same_run_resumes() {
    let (_directory, path) = sandbox();
    let first = settings(&path, "out", |_| {});
    store(&first, false, true).map(drop).unwrap_err();
    let before = files(&path.join("out.checkpoint"));
    let other = settings(&path, "out", |settings| settings.seed = Some(7));
    let message = store(&other, false, false).map(drop).unwrap_err().to_string();
    assert!(message.contains("(seed was 0); use --force to start anew"), "{message}");
    assert!(files(&path.join("out.checkpoint")) == before);
    assert!(!path.join("out").exists());
    // With --force another run starts anew, and the same run resumes.
    let Error::Preempted { done: stored, .. } = store(&first, true, true).map(drop).unwrap_err() else {
        panic!()
    };
    assert_eq!(stored, 2 * 16_384);
    store(&other, true, false).unwrap();
    assert!(!path.join("out.checkpoint").exists());
    store(&settings(&path, "whole", |settings| settings.seed = Some(7)), false, false).unwrap();
    assert!(
        fs::read(path.join("out/metrics.csv")).unwrap() == fs::read(path.join("whole/metrics.csv")).unwrap()
    );
    // Runs whose state cannot be saved run to their end.
    let with_retention = settings(&path, "kept", |settings| settings.retention = Some(1000));
    store(&with_retention, false, true).unwrap();
}
