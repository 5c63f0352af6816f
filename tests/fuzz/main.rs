//! Fuzzing of everything that nmem reads, within this process. `cargo test --test fuzz` replays the corpus in
//! fuzz/corpus/TARGET/*: seed inputs, and inputs that once caused a fault. `just fuzz [TARGET] [SECONDS]`
//! mutates them for a while. Inputs that fail are kept in target/fuzz; add them to the corpus once the fault is
//! fixed.
//!
//! An input fails if a target panics, or takes longer than [`MAX_SECONDS`] or more memory than [`MAX_BYTES`].
//! It also fails if a figure is not XML or has a non-finite coordinate.

mod memory;
mod mutate;
mod targets;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use mutate::Random;
use targets::{TARGETS, Target};

/// A hundred times the duration of any input of the corpus in an unoptimised build.
const MAX_SECONDS: u64 = 20;
/// Every limit in the readers is chosen for this number of bytes.
const MAX_BYTES: usize = 1 << 30;
/// Most bytes of an input; limits on lengths have tests of their own.
const MAX_INPUT: usize = 64 << 10;

/// Memory is counted for the whole process, so only one input runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name);
    let entries =
        std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Returns the fault that a target shows on an input, if any.
fn fault(target: &Target, input: &[u8], directory: &Path) -> Option<String> {
    memory::start();
    let start = Instant::now();
    let ended = catch_unwind(AssertUnwindSafe(|| (target.run)(input, directory)));
    let (took, peak) = (start.elapsed(), memory::peak());
    match ended {
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
            Some(format!("panic: {}", text.unwrap_or_default()))
        }
        Ok(Err(wrong)) => Some(wrong),
        Ok(Ok(())) if took > Duration::from_secs(MAX_SECONDS) => Some(format!("{took:?}")),
        Ok(Ok(())) if peak > MAX_BYTES => Some(format!("{peak} bytes")),
        Ok(Ok(())) => None,
    }
}

fn replay(name: &str) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let inputs = corpus(target);
    assert!(!inputs.is_empty(), "{name}: no corpus");
    for (path, input) in inputs {
        if let Some(fault) = fault(target, &input, directory.path()) {
            panic!("{}: {fault}", path.display());
        }
    }
}

macro_rules! replays {
    ($($name:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            replay(stringify!($name));
        }
    )*};
}
replays!(
    npy,
    npz,
    safetensors,
    memory_file,
    labels,
    config,
    experiment,
    metrics,
    retention,
    recall,
    spectrum,
    results,
    scan_bench
);

#[test]
#[ignore = "mutates the corpus for FUZZ_SECONDS, of FUZZ_TARGET or of all targets"]
fn fuzz() {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let wanted = variable("FUZZ_TARGET");
    let seconds = variable("FUZZ_SECONDS").map_or(60, |seconds| seconds.parse().expect("seconds"));
    let seed = variable("FUZZ_SEED").map_or(1, |seed| seed.parse().expect("a seed"));
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz");
    std::fs::create_dir_all(&kept).unwrap();
    let mut failed = 0;
    for target in TARGETS.iter().filter(|target| wanted.as_ref().is_none_or(|wanted| wanted == target.name)) {
        let inputs: Vec<_> = corpus(target).into_iter().map(|(_, input)| input).collect();
        let directory = tempfile::tempdir().unwrap();
        // If an abort or a hang ends the process, this file holds the input that caused it.
        let current = kept.join(format!("{}-current", target.name));
        let mut random = Random::new(seed);
        let mut kinds = BTreeSet::new();
        let (start, mut count) = (Instant::now(), 0_u64);
        while start.elapsed() < Duration::from_secs(seconds) {
            let input = (target.mutate)(&inputs, &mut random);
            if input.len() > MAX_INPUT {
                continue;
            }
            std::fs::write(&current, &input).unwrap();
            count += 1;
            let Some(fault) = fault(target, &input, directory.path()) else { continue };
            // Keeps one input of each kind; digits differ between inputs.
            let kind: String = fault.chars().filter(|letter| !letter.is_ascii_digit()).take(120).collect();
            if kinds.insert(kind) {
                let path = kept.join(format!("{}-{seed}-{count}", target.name));
                std::fs::write(&path, &input).unwrap();
                println!("{}: {fault}\n  kept as {}", target.name, path.display());
            }
        }
        let _ = std::fs::remove_file(current);
        failed += kinds.len();
        println!(
            "{}: {count} inputs in {:.0?}, {} kinds of faults",
            target.name,
            start.elapsed(),
            kinds.len()
        );
    }
    assert_eq!(failed, 0, "kinds of faults");
}
