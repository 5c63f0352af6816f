//! Whatever the disk does at whatever moment, outputs are old or new and whole, and the next command works. Each command is run
//! again and again with a fault one operation later, until none strikes: an operation that fails, a disk that is full from there
//! on, a process that is killed there (see `src/storage/fault.rs`).

use std::collections::BTreeMap;

use crate::sweep::untimed;
use crate::{Desk, Ran, tokens};

/// Contents by path, of what is not hidden.
type Files = BTreeMap<String, Option<Vec<u8>>>;

fn desk() -> Desk {
    let desk = Desk::in_memory();
    desk.npy("seq.npy", &tokens(&[40, 8], 1));
    desk
}

fn hidden(desk: &Desk) -> Vec<String> {
    let is_hidden =
        |path: &String| path.rsplit('/').next().is_some_and(|name| name.starts_with('.') && name != ".lock");
    desk.contents().into_keys().filter(is_hidden).collect()
}

/// Runs `line` in a desk of its own with every fault of every kind; `check` sees what is there afterwards.
fn with_each_fault(prepare: impl Fn() -> Desk, line: &str, check: impl Fn(&Desk, &Ran, &str)) {
    for kind in ["fail", "full", "stop"] {
        with_fault(kind, &prepare, line, &check);
    }
}

fn with_fault(kind: &str, prepare: &dyn Fn() -> Desk, line: &str, check: &dyn Fn(&Desk, &Ran, &str)) {
    let mut n = 0;
    loop {
        n += 1;
        let desk = prepare();
        let mut command = desk.command(line);
        command.env("NMEM_FAULT", format!("{kind}:{n}:{}", desk.path("struck").display()));
        let ran = Desk::finish(command);
        let case = format!("{kind} {n}: nmem {line}: {:?} {}", ran.code, ran.err);
        if !desk.path("struck").exists() {
            assert_eq!(ran.code, Some(0), "{case}");
            break;
        }
        std::fs::remove_file(desk.path("struck")).unwrap();
        if matches!(kind, "stop" | "noswap") {
            assert_eq!(ran.code, None, "{case}");
        } else {
            assert!(matches!(ran.code, Some(0..=2)), "{case}");
            let orderly = |line: &str| line.starts_with("error: ") || line.starts_with("warning: ");
            assert!(ran.err.lines().all(orderly) && (ran.code == Some(0)) == ran.err.is_empty(), "{case}");
            assert!(!ran.err.contains(".nmem-") && !ran.err.contains("--force"), "{case}");
            assert_eq!(hidden(&desk), [""; 0], "{case}");
        }
        check(&desk, &ran, &case);
    }
    // Something was tried: creating, writing, syncing, renaming.
    assert!(n > 5, "{kind}: {n}");
}

/// Contents of a directory, without what differs from run to run.
fn results(desk: &Desk, directory: &str) -> Files {
    let prefix = format!("{directory}/");
    let files = desk.contents().into_iter();
    let files = files.filter(|(path, _)| path.starts_with(&prefix) && !path.contains("/."));
    files.map(|(path, bytes)| (path.clone(), bytes.filter(|_| !path.ends_with("run.json")))).collect()
}

#[test]
fn a_store_is_there_whole_or_not_at_all() {
    let line = "store seq.npy --heads 2 --chunk-size 8 --out a/out -q";
    let reference = desk();
    reference.ok(line);
    let new = results(&reference, "a/out");
    with_each_fault(desk, line, |desk, ran, case| {
        let there = desk.path("a/out").exists();
        assert!(!there || results(desk, "a/out") == new, "{case}");
        assert!(there || ran.code != Some(0), "{case}");
        // Nor do the directories made for it stay, unless the process was killed.
        assert!(there || ran.code.is_none() || !desk.path("a").exists(), "{case}");
        desk.ok(&format!("{line} --force"));
        assert!(results(desk, "a/out") == new && hidden(desk).is_empty(), "{case}");
    });
}

#[test]
fn a_replaced_run_is_the_old_or_the_new_one() {
    let line = "retrieve seq.npy --online --heads 2 --chunk-size 8 --no-plots --out out -q --force";
    let prepare = || {
        let desk = desk();
        desk.ok(&format!("{line} --decay 0.1"));
        desk
    };
    let old = results(&prepare(), "out");
    let reference = desk();
    reference.ok(line);
    let new = results(&reference, "out");
    assert_ne!(old, new);
    let check = |desk: &Desk, ran: &Ran, case: &str| {
        let there = results(desk, "out");
        // Where two directories cannot be swapped at once, the old one is put back by the next run.
        let between = case.starts_with("noswap") && there.is_empty();
        assert!(there == new || (there == old || between) && ran.code != Some(0), "{case}");
        if between {
            desk.ok("retrieve seq.npy --heads 2 --chunk-size 8 --out other -q");
            assert!(
                desk.path(".out.nmem-old").exists() && desk.run(&line.replace("--force", "")).code == Some(2)
            );
            assert!(results(desk, "out") == old, "{case}");
        }
        desk.ok(line);
        assert!(results(desk, "out") == new && hidden(desk).is_empty(), "{case}");
    };
    with_each_fault(prepare, line, check);
    with_fault("noswap", &prepare, line, &check);
}

#[test]
fn files_are_the_old_or_the_new_ones() {
    let line = "generate drift --tokens 12 --segment 4 --dim 4 --out seq.npy --labels labels.csv -q --force";
    let prepare = || {
        let desk = Desk::in_memory();
        desk.file("seq.npy", "old");
        desk.file("labels.csv", "old");
        desk
    };
    let reference = prepare();
    reference.ok(line);
    with_each_fault(prepare, line, |desk, ran, case| {
        for name in ["seq.npy", "labels.csv"] {
            let there = desk.bytes(name);
            assert!(
                there == reference.bytes(name) || there == b"old" && ran.code != Some(0),
                "{name}, {case}"
            );
        }
        desk.ok(line);
        assert!(desk.contents() == reference.contents(), "{case}");
    });
}

#[test]
fn figures_are_the_old_or_the_new_ones() {
    let prepare = || {
        let desk = desk();
        desk.ok("store seq.npy --heads 2 --chunk-size 8 --no-plots --out out -q");
        for name in ["gates.svg", "gates.tex", "gates-data-1.csv"] {
            desk.file(&format!("out/{name}"), "old");
        }
        desk
    };
    let line = "plot out --kind gates --figure-format svg,pgfplots -q";
    let reference = prepare();
    reference.ok(line);
    let new = results(&reference, "out");
    with_each_fault(prepare, line, |desk, ran, case| {
        for (path, bytes) in results(desk, "out") {
            let old = bytes.as_deref() == Some(b"old") && ran.code != Some(0);
            assert!(old || new.get(&path) == Some(&bytes), "{path}, {case}");
        }
        desk.ok(line);
        assert!(results(desk, "out") == new && hidden(desk).is_empty(), "{case}");
    });
}

#[test]
fn a_sweep_resumes_after_every_fault() {
    let line = "sweep grid.toml --out out -j 1 -q --y loss_mean";
    let prepare = || {
        let desk = desk();
        desk.file("grid.toml", "data = 'seq.npy'\nheads = 2\nchunk_size = 8\n[grid]\nseed = [0, 1]\n");
        desk
    };
    let reference = prepare();
    reference.ok(line);
    let rows = |desk: &Desk| untimed(&desk.csv("out/results.csv"));
    let whole = rows(&reference);
    let names = |desk: &Desk| {
        // Records are named after processes, plans after the paths in them.
        let paths = desk.contents().into_keys();
        let paths = paths.filter(|path| !path.contains("/records/") && !path.contains("/plans/"));
        paths.collect::<Vec<_>>()
    };
    with_each_fault(prepare, line, |desk, ran, case| {
        assert!(ran.code != Some(0) || rows(desk) == whole, "{case}");
        // A run on record is whole.
        let collected = desk.run("sweep --collect out --no-plots -q");
        if collected.code != Some(2) {
            let table = desk.csv("out/results.csv");
            let well = table
                .texts("run")
                .into_iter()
                .zip(table.texts("status"))
                .filter(|(_, status)| *status == "ok");
            for (row, _) in well {
                assert_eq!(desk.names(&format!("out/runs/{row}")), ["metrics.csv", "run.json"], "{case}");
            }
        }
        let ran = desk.ok(line);
        assert!(rows(desk) == whole && ran.err.is_empty(), "{case}: {}", ran.err);
        assert!(hidden(desk).is_empty() && names(desk) == names(&reference), "{case}: {:?}", names(desk));
    });
}

#[test]
fn a_collected_table_is_the_old_or_the_new_one() {
    let prepare = || {
        let desk = desk();
        desk.file("grid.toml", "data = 'seq.npy'\nheads = 2\nchunk_size = 8\n[grid]\nseed = [0, 1]\n");
        desk.ok("sweep grid.toml --out out --no-plots -q");
        for name in ["results.csv", "summary.csv", "joblog.tsv"] {
            desk.file(&format!("out/{name}"), "old");
        }
        desk
    };
    with_each_fault(prepare, "sweep --collect out --no-plots -q", |desk, ran, case| {
        for name in ["results.csv", "summary.csv", "joblog.tsv"] {
            let text = String::from_utf8(desk.bytes(&format!("out/{name}"))).unwrap();
            let new = text.lines().count() > 1 && text.ends_with('\n');
            assert!(new || text == "old" && ran.code != Some(0), "{name}, {case}: {text}");
        }
        desk.ok("sweep --collect out --no-plots -q");
        assert!(hidden(desk).is_empty(), "{case}");
    });
}
