//! A store that is ended again and again between two segments, and resumed, gives the files of one that was not.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ndarray::Array2;
use nmem::Error;
use nmem::config::{Command, Settings};
use nmem::run::{RunOutput, execute};
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
    let config = settings.clone().validate(Command::Store)?;
    let device = config.device.open()?;
    execute(Command::Store, &config, &device, Vec::new(), force, &mut |_| Ok(()), &|| preempted)
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

fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

fn same_bits(more: impl Fn(&mut Settings)) {
    let (_directory, path) = sandbox();
    let whole = store(&settings(&path, "whole", &more), false, false).unwrap();
    let settings = settings(&path, "out", &more);
    let checkpoint = path.join("out.checkpoint");
    // The first segment of every start has the same length, and each start ends after it.
    for starts in 1..=4 {
        let error = store(&settings, false, true).map(drop).unwrap_err();
        let Error::Preempted { checkpoint: at, done: stored, all: tokens, unit: "tokens" } = error else {
            panic!("{error}")
        };
        assert_eq!((at, stored, tokens), (checkpoint.clone(), (starts * 16_384).min(TOKENS), TOKENS));
        assert!(!path.join("out").exists());
        assert_eq!(
            files(&checkpoint).into_keys().collect::<Vec<_>>(),
            ["checkpoint.json", "memory.safetensors", "metrics.csv"]
        );
    }
    let resumed = store(&settings, false, false).unwrap();
    assert!(!checkpoint.exists());
    let [mut expected, mut got] = ["whole", "out"].map(|name| files(&path.join(name)));
    let [_, _] = [expected.remove("run.json").unwrap(), got.remove("run.json").unwrap()];
    assert_eq!(expected.keys().collect::<Vec<_>>(), ["memory.safetensors", "metrics.csv"]);
    assert!(got == expected, "other bits");
    let [whole, resumed] = [whole, resumed].map(|output| output.report);
    assert_eq!(resumed.summary, whole.summary);
    assert_eq!((resumed.rows, resumed.life_tokens), (whole.rows, whole.life_tokens));
    assert_eq!(resumed.warnings, whole.warnings);
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
