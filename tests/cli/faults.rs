//! Whatever the disk does at whatever moment, outputs are old or new and whole, and the next command works. Each command is run
//! again and again with a fault one operation later, until none strikes: an operation that fails, a disk that is full from there
//! on, a process that is killed there (see `src/storage/fault.rs`).

use std::cell::Cell;
use std::collections::BTreeMap;

use crate::sweep::untimed;
use crate::{CommandOutput, Sandbox, tokens};

/// Contents by path, of what is not hidden.
type Files = BTreeMap<String, Option<Vec<u8>>>;

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::in_memory();
    sandbox.npy("seq.npy", &tokens(&[40, 8], 1));
    sandbox
}

fn hidden(sandbox: &Sandbox) -> Vec<String> {
    let is_hidden =
        |path: &String| path.rsplit('/').next().is_some_and(|name| name.starts_with('.') && name != ".lock");
    sandbox.contents().into_keys().filter(is_hidden).collect()
}

/// Runs `line` in a sandbox of its own with every fault of every kind; `check` sees what is there afterwards.
fn with_each_fault(
    prepare: impl Fn() -> Sandbox,
    line: &str,
    check: impl Fn(&Sandbox, &CommandOutput, &str),
) {
    for kind in ["fail", "full", "stop"] {
        with_fault(kind, &prepare, line, &check);
    }
}

/// Returns the number of operations at which a fault struck.
fn with_fault(
    kind: &str,
    prepare: &dyn Fn() -> Sandbox,
    line: &str,
    check: &dyn Fn(&Sandbox, &CommandOutput, &str),
) -> usize {
    let mut n = 0;
    loop {
        n += 1;
        let sandbox = prepare();
        let mut command = sandbox.command(line);
        command.env("NMEM_FAULT", format!("{kind}:{n}:{}", sandbox.path("struck").display()));
        let output = Sandbox::finish(command);
        let case = format!("{kind} {n}: nmem {line}: {:?} {}", output.code, output.err);
        if !sandbox.path("struck").exists() {
            assert_eq!(output.code, Some(0), "{case}");
            break;
        }
        std::fs::remove_file(sandbox.path("struck")).unwrap();
        if matches!(kind, "stop" | "noswap") {
            assert_eq!(output.code, None, "{case}");
        } else {
            assert!(matches!(output.code, Some(0..=2)), "{case}");
            assert!(kind != "fail" || output.code != Some(0), "an error is swallowed: {case}");
            let orderly = |line: &str| line.starts_with("error: ") || line.starts_with("warning: ");
            assert!(
                output.err.lines().all(orderly) && (output.code == Some(0)) == output.err.is_empty(),
                "{case}"
            );
            assert!(!output.err.contains(".nmem-") && !output.err.contains("--force"), "{case}");
            assert_eq!(hidden(&sandbox), [""; 0], "{case}");
        }
        check(&sandbox, &output, &case);
    }
    // Something was tried: creating, writing, syncing, closing, renaming.
    assert!(n > 5, "{kind}: {n}");
    n - 1
}

#[test]
fn each_operation_of_a_file_can_fail() {
    let line = "generate drift --tokens 12 --segment 4 --dim 4 --out seq.npy -q";
    let operations = with_fault("fail", &Sandbox::in_memory, line, &|_, output, case| {
        assert_eq!(output.code, Some(2), "{case}");
    });
    let expected = ["create", "write", "sync", "close", "rename", "sync the directory"];
    assert_eq!(operations, expected.len(), "{expected:?}");
}

/// Contents of a directory, without what differs from run to run.
fn results(sandbox: &Sandbox, directory: &str) -> Files {
    let prefix = format!("{directory}/");
    let files = sandbox.contents().into_iter();
    let files = files.filter(|(path, _)| path.starts_with(&prefix) && !path.contains("/."));
    files.map(|(path, bytes)| (path.clone(), bytes.filter(|_| !path.ends_with("run.json")))).collect()
}

#[test]
fn a_store_is_there_whole_or_not_at_all() {
    let line = "store seq.npy --heads 2 --chunk-size 8 --out a/out -q";
    let reference = sandbox();
    reference.ok(line);
    let new = results(&reference, "a/out");
    with_each_fault(sandbox, line, |sandbox, output, case| {
        let there = sandbox.path("a/out").exists();
        assert!(!there || results(sandbox, "a/out") == new, "{case}");
        assert!(there || output.code != Some(0), "{case}");
        // Nor do the directories made for it stay, unless the process was killed.
        assert!(there || output.code.is_none() || !sandbox.path("a").exists(), "{case}");
        sandbox.ok(&format!("{line} --force"));
        assert!(results(sandbox, "a/out") == new && hidden(sandbox).is_empty(), "{case}");
    });
}

#[test]
fn a_replaced_run_is_the_old_or_the_new_one() {
    let line = "retrieve seq.npy --online --heads 2 --chunk-size 8 --no-plots --out out -q --force";
    let prepare = || {
        let sandbox = sandbox();
        sandbox.ok(&format!("{line} --decay 0.1"));
        sandbox
    };
    let old = results(&prepare(), "out");
    let reference = sandbox();
    reference.ok(line);
    let new = results(&reference, "out");
    assert_ne!(old, new);
    let times_between = Cell::new(0);
    let check = |sandbox: &Sandbox, output: &CommandOutput, case: &str| {
        let there = results(sandbox, "out");
        // Where two directories cannot be swapped at once, the old one is put back by the next run.
        let between = case.starts_with("noswap") && there.is_empty();
        assert!(there == new || (there == old || between) && output.code != Some(0), "{case}");
        if between {
            times_between.set(times_between.get() + 1);
            sandbox.ok("retrieve seq.npy --heads 2 --chunk-size 8 --out other -q");
            assert!(
                sandbox.path(".out.nmem-old").exists()
                    && sandbox.run(&line.replace("--force", "")).code == Some(2)
            );
            assert!(results(sandbox, "out") == old, "{case}");
        }
        sandbox.ok(line);
        assert!(results(sandbox, "out") == new && hidden(sandbox).is_empty(), "{case}");
    };
    with_each_fault(prepare, line, check);
    with_fault("noswap", &prepare, line, &check);
    assert!(times_between.get() > 0, "no process ended between the two renames");
}

#[test]
fn files_are_the_old_or_the_new_ones() {
    let line = "generate drift --tokens 12 --segment 4 --dim 4 --out seq.npy --labels labels.csv -q --force";
    let prepare = || {
        let sandbox = Sandbox::in_memory();
        sandbox.file("seq.npy", "old");
        sandbox.file("labels.csv", "old");
        sandbox
    };
    let reference = prepare();
    reference.ok(line);
    with_each_fault(prepare, line, |sandbox, output, case| {
        for name in ["seq.npy", "labels.csv"] {
            let there = sandbox.bytes(name);
            assert!(
                there == reference.bytes(name) || there == b"old" && output.code != Some(0),
                "{name}, {case}"
            );
        }
        sandbox.ok(line);
        assert!(sandbox.contents() == reference.contents(), "{case}");
    });
}

#[test]
fn figures_are_the_old_or_the_new_ones() {
    let prepare = || {
        let sandbox = sandbox();
        sandbox.ok("store seq.npy --heads 2 --chunk-size 8 --no-plots --out out -q");
        for name in ["gates.svg", "gates.tex", "gates-data-1.csv"] {
            sandbox.file(&format!("out/{name}"), "old");
        }
        sandbox
    };
    let line = "plot out --kind gates --figure-format svg,pgfplots -q";
    let reference = prepare();
    reference.ok(line);
    let new = results(&reference, "out");
    with_each_fault(prepare, line, |sandbox, output, case| {
        for (path, bytes) in results(sandbox, "out") {
            let old = bytes.as_deref() == Some(b"old") && output.code != Some(0);
            assert!(old || new.get(&path) == Some(&bytes), "{path}, {case}");
        }
        sandbox.ok(line);
        assert!(results(sandbox, "out") == new && hidden(sandbox).is_empty(), "{case}");
    });
}

#[test]
fn a_sweep_resumes_after_every_fault() {
    let line = "sweep grid.toml --out out -j 1 -q --y loss_mean";
    let prepare = || {
        let sandbox = sandbox();
        sandbox.file("grid.toml", "data = 'seq.npy'\nheads = 2\nchunk_size = 8\n[grid]\nseed = [0, 1]\n");
        sandbox
    };
    let reference = prepare();
    reference.ok(line);
    let rows = |sandbox: &Sandbox| untimed(&sandbox.csv("out/results.csv"));
    let whole = rows(&reference);
    let names = |sandbox: &Sandbox| {
        // Records are named after processes, plans after the paths in them.
        let paths = sandbox.contents().into_keys();
        let paths = paths.filter(|path| !path.contains("/records/") && !path.contains("/plans/"));
        paths.collect::<Vec<_>>()
    };
    with_each_fault(prepare, line, |sandbox, output, case| {
        assert!(output.code != Some(0) || rows(sandbox) == whole, "{case}");
        // A run on record is whole.
        let collected = sandbox.run("sweep --collect out --no-plots -q");
        if collected.code != Some(2) {
            let table = sandbox.csv("out/results.csv");
            let well = table
                .texts("run")
                .into_iter()
                .zip(table.texts("status"))
                .filter(|(_, status)| *status == "ok");
            for (row, _) in well {
                assert_eq!(sandbox.names(&format!("out/runs/{row}")), ["metrics.csv", "run.json"], "{case}");
            }
        }
        let output = sandbox.ok(line);
        assert!(rows(sandbox) == whole && output.err.is_empty(), "{case}: {}", output.err);
        assert!(
            hidden(sandbox).is_empty() && names(sandbox) == names(&reference),
            "{case}: {:?}",
            names(sandbox)
        );
    });
}

#[test]
fn a_collected_table_is_the_old_or_the_new_one() {
    let prepare = || {
        let sandbox = sandbox();
        sandbox.file("grid.toml", "data = 'seq.npy'\nheads = 2\nchunk_size = 8\n[grid]\nseed = [0, 1]\n");
        sandbox.ok("sweep grid.toml --out out --no-plots -q");
        for name in ["results.csv", "summary.csv", "joblog.tsv"] {
            sandbox.file(&format!("out/{name}"), "old");
        }
        sandbox
    };
    with_each_fault(prepare, "sweep --collect out --no-plots -q", |sandbox, output, case| {
        for name in ["results.csv", "summary.csv", "joblog.tsv"] {
            let text = String::from_utf8(sandbox.bytes(&format!("out/{name}"))).unwrap();
            let new = text.lines().count() > 1 && text.ends_with('\n');
            assert!(new || text == "old" && output.code != Some(0), "{name}, {case}: {text}");
        }
        sandbox.ok("sweep --collect out --no-plots -q");
        assert!(hidden(sandbox).is_empty(), "{case}");
    });
}
