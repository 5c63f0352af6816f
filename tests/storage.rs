//! Writes to disk, through the library: kinds of paths, result directories, whole files, and what a failure leaves behind.
//! `tests/cli/faults.rs` makes each operation fail, and `tests/disk` cuts the power.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use nmem::storage::{
    self, OutFile, ResultsDirectory, WholeFile, create_directories, create_directory, exists, is_directory,
    kind_of, publish_all, remove_directory, remove_file, replace, replace_all,
};

/// Returns the names in a directory, hidden ones too, sorted.
fn names(directory: &Path) -> Vec<String> {
    let names: BTreeSet<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.into_iter().collect()
}

/// Returns an error's text with its cause, without the directory's path.
fn message(at: &Path, error: nmem::Error) -> String {
    let text = format!("{:#}", anyhow::Error::from(error));
    text.replace(&format!("{}/", at.display()), "")
}

/// Fills a result directory as a run does.
fn fill(results: &ResultsDirectory, content: &str) {
    fs::write(results.path().join("run.json"), content).unwrap();
    fs::create_dir(results.path().join("plots")).unwrap();
    fs::write(results.path().join("plots/timeline.svg"), content).unwrap();
}

#[test]
#[cfg(unix)]
fn kinds_of_paths() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    fs::write(at.join("file"), "").unwrap();
    for (link, to) in [("to-file", "file"), ("to-directory", "."), ("dangling", "nothing")] {
        std::os::unix::fs::symlink(to, at.join(link)).unwrap();
    }
    for (name, expected) in [
        (".", (false, true, true)),
        ("file", (false, false, true)),
        ("to-file", (true, false, true)),
        ("to-directory", (true, true, true)),
        ("dangling", (true, false, false)),
    ] {
        let path = at.join(name);
        let is_link = kind_of(&path).unwrap().unwrap().is_symlink();
        assert_eq!((is_link, is_directory(&path).unwrap(), exists(&path).unwrap()), expected, "{name}");
    }
    let absent = at.join("absent");
    assert!(kind_of(&absent).unwrap().is_none());
    assert!(!is_directory(&absent).unwrap() && !exists(&absent).unwrap());
    // An error of the system does not mean that the path is free.
    let below = at.join("file/below");
    let errors = [kind_of(&below).err(), is_directory(&below).err(), exists(&below).err()];
    for error in errors {
        let text = message(at, error.unwrap());
        assert_eq!(text, "file/below: cannot look at: Not a directory (os error 20)");
    }
}

#[test]
fn directories_are_created_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    create_directories(&at.join("a/b/c")).unwrap();
    create_directories(&at.join("a/b/c")).unwrap();
    create_directory(&at.join("a/d")).unwrap();
    assert_eq!(names(&at.join("a")), ["b", "d"]);
    assert!(create_directory(&at.join("a/d")).is_err());
    fs::write(at.join("file"), "").unwrap();
    assert!(create_directories(&at.join("file/x")).is_err());

    // What does not exist is removed already. Anything else that fails is an error.
    assert!(remove_file(&at.join("a")).is_err());
    assert!(remove_directory(&at.join("file")).is_err());
    assert_eq!(names(at), ["a", "file"]);
    remove_directory(&at.join("a")).unwrap();
    remove_directory(&at.join("a")).unwrap();
    remove_file(&at.join("file")).unwrap();
    remove_file(&at.join("file")).unwrap();
    assert_eq!(names(at), [""; 0]);
}

#[test]
fn results_appear_whole() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let out = at.join("new/out");
    let results = ResultsDirectory::open(&out, false).unwrap();
    fill(&results, "first");
    assert_eq!(results.target(), out);
    assert_eq!(results.path().parent(), out.parent());
    assert!(!out.exists());
    results.publish().unwrap();
    assert_eq!(names(&at.join("new")), ["out"]);
    assert_eq!(names(&out), ["plots", "run.json"]);

    // A second one needs permission, and leaves nothing of the first.
    let error = ResultsDirectory::open(&out, false).unwrap_err();
    let text = "--out: new/out already exists; use --force to replace it, or choose another directory";
    assert_eq!(message(at, error), text);
    let results = ResultsDirectory::open(&out, true).unwrap();
    fs::write(results.path().join("run.json"), "second").unwrap();
    assert_eq!(fs::read_to_string(out.join("run.json")).unwrap(), "first");
    results.publish().unwrap();
    assert_eq!(names(&at.join("new")), ["out"]);
    assert_eq!(names(&out), ["run.json"]);
    assert_eq!(fs::read_to_string(out.join("run.json")).unwrap(), "second");
}

#[test]
fn dropped_results_leave_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let results = ResultsDirectory::open(&at.join("a/b/out"), false).unwrap();
    fill(&results, "half");
    let hidden = results.path().to_path_buf();
    assert!(hidden.is_dir());
    drop(results);
    assert_eq!(names(at), [""; 0]);
    // Directories that someone else has come to use stay, and so do those that were there before.
    fs::create_dir(at.join("before")).unwrap();
    let results = ResultsDirectory::open(&at.join("before/b/out"), false).unwrap();
    fs::write(at.join("before/b/other"), "").unwrap();
    drop(results);
    assert_eq!(names(&at.join("before/b")), ["other"]);
    fs::remove_file(at.join("before/b/other")).unwrap();
    drop(ResultsDirectory::open(&at.join("before/b/out"), false).unwrap());
    assert!(at.join("before/b").is_dir());
}

/// The target is looked at again before it is replaced: it may have changed since the run began.
#[test]
fn a_target_that_appears_during_the_run_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let out = at.join("out");
    let results = ResultsDirectory::open(&out, false).unwrap();
    fill(&results, "late");
    fs::create_dir(&out).unwrap();
    assert!(message(at, results.publish().unwrap_err()).starts_with("--out: out already exists"));
    let results = ResultsDirectory::open(&out, true).unwrap();
    fill(&results, "late");
    fs::write(out.join("mine"), "").unwrap();
    let text = "--out: out holds mine, which nmem did not write; move it away or choose another directory";
    assert_eq!(message(at, results.publish().unwrap_err()), text);
    assert_eq!((names(at), names(&out)), (vec!["out".to_owned()], vec!["mine".to_owned()]));
}

/// Names alone do not make results: each directory holds a file that only nmem writes, and figures have known names.
#[test]
fn what_counts_as_results() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let out = at.join("out");
    for (files, foreign) in [
        (&[][..], None),
        (&["run.json"][..], None),
        (&["machine.json", "scan_bench.csv", "time.svg", "plots/bandwidth.pdf"], None),
        (&["run.json", "metrics.csv", "retention.csv", "retrieved.npy", "memory.safetensors"], None),
        (&["run.json", "plots/heads.tex", "plots/heads-data.csv", "plots/gates.png"], None),
        (&["metrics.csv"], Some("metrics.csv")),
        (&["timeline.svg"], Some("timeline.svg")),
        (&["plots/timeline.svg"], Some("plots")),
        (&["run.json", "other.svg"], Some("other.svg")),
        (&["run.json", "timeline.txt"], Some("timeline.txt")),
        (&["run.json", "plots/other.svg"], Some("plots/other.svg")),
        (&["run.json", "plots/timeline.txt"], Some("plots/timeline.txt")),
        (&["run.json", "plots/timeline.svg/x"], Some("plots/timeline.svg")),
        (&["run.json", "figures/timeline.svg"], Some("figures")),
        (&["run.json", "metrics.csv/x"], Some("metrics.csv")),
    ] {
        fs::create_dir(&out).unwrap();
        for file in files {
            fs::create_dir_all(out.join(file).parent().unwrap()).unwrap();
            fs::write(out.join(file), "").unwrap();
        }
        let opened = ResultsDirectory::open(&out, true).map(drop).map_err(|error| message(at, error));
        let reject = |name| {
            format!(
                "--out: out holds {name}, which nmem did not write; move it away or choose another directory"
            )
        };
        assert_eq!(opened, foreign.map(reject).map_or(Ok(()), Err), "{files:?}");
        fs::remove_dir_all(&out).unwrap();
    }
}

/// A run that was killed between two renames left the old results under a hidden name.
#[test]
fn results_set_aside_are_restored() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let (out, aside) = (at.join("out"), at.join(".out.nmem-old"));
    fs::create_dir(&aside).unwrap();
    fs::write(aside.join("run.json"), "old").unwrap();
    assert!(ResultsDirectory::open(&out, false).is_err());
    assert_eq!(fs::read_to_string(out.join("run.json")).unwrap(), "old");
    assert_eq!(names(at), ["out"]);
    // Once the new results are in place, the old ones are removed.
    fs::create_dir(&aside).unwrap();
    fs::write(aside.join("run.json"), "older").unwrap();
    drop(ResultsDirectory::open(&out, true).unwrap());
    assert_eq!(fs::read_to_string(out.join("run.json")).unwrap(), "old");
    assert_eq!(names(at), ["out"]);
    // A name that cannot be restored is an error, and stays.
    fs::write(&aside, "").unwrap();
    let text = message(at, ResultsDirectory::open(&out, true).unwrap_err());
    assert!(text.starts_with("out: cannot restore: "), "{text}");
    assert_eq!(names(at), [".out.nmem-old", "out"]);
}

/// One, two and more directories: more than two share one sync of the file system.
#[test]
fn several_results_at_once() {
    for count in 1..=4 {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let open = |i: usize| {
            let results = ResultsDirectory::open_among(&at.join(format!("{i}")), false).unwrap();
            fill(&results, &format!("{i}"));
            results
        };
        let all: Vec<_> = (0..count).map(open).collect();
        // One of them fails alone.
        fs::write(at.join("0"), "").unwrap();
        let outcomes = publish_all(all);
        assert_eq!(outcomes.len(), count);
        for (i, outcome) in outcomes.into_iter().enumerate() {
            assert_eq!(outcome.is_err(), i == 0, "{i}");
            if i > 0 {
                let path = at.join(format!("{i}/plots/timeline.svg"));
                assert_eq!(fs::read_to_string(path).unwrap(), format!("{i}"));
            }
        }
        assert_eq!(names(at), (0..count).map(|i| i.to_string()).collect::<Vec<_>>());
    }
}

#[test]
fn errors_name_the_path_as_typed() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let results = ResultsDirectory::open(&at.join("out"), false).unwrap();
    let error = |path: PathBuf| nmem::Error::Io {
        path,
        action: "write",
        source: std::io::Error::from(std::io::ErrorKind::StorageFull),
    };
    let inside = results.explain(error(results.path().join("run.json")));
    assert!(message(at, inside).starts_with("out/run.json: cannot write"));
    let outside = results.explain(error(at.join("input.npy")));
    assert!(message(at, outside).starts_with("input.npy: cannot write"));
}

#[test]
fn stale_temporaries_of_the_same_target_are_cleared() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let stale = || {
        for name in [".out.nmem-AAAAAA", ".other.nmem-BBBBBB", ".out.nmem-old.txt"] {
            fs::write(at.join(name), "half").unwrap();
        }
    };
    let left = [".other.nmem-BBBBBB", ".out.nmem-old.txt"];
    stale();
    drop(ResultsDirectory::open(&at.join("out"), false).unwrap());
    assert_eq!(names(at), left);
    stale();
    drop(WholeFile::open("--out", &at.join("out"), false).unwrap());
    assert_eq!(names(at), left);
    // Among others, nothing is cleared: the caller did so.
    stale();
    drop(ResultsDirectory::open_among(&at.join("out"), false).unwrap());
    assert_eq!(names(at).len(), 3);
}

/// nmem makes no links, so that one with the name of a temporary is somebody else's.
#[cfg(unix)]
#[test]
fn links_are_not_cleared() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    fs::write(at.join("theirs"), "whole").unwrap();
    fs::create_dir(at.join("their directory")).unwrap();
    for (to, name) in [("theirs", ".out.nmem-AAAAAA"), ("their directory", ".out.nmem-BBBBBB")] {
        std::os::unix::fs::symlink(to, at.join(name)).unwrap();
    }
    let before = names(at);
    drop(ResultsDirectory::open(&at.join("out"), false).unwrap());
    assert_eq!(names(at), before);
    assert_eq!(fs::read_to_string(at.join("theirs")).unwrap(), "whole");
}

#[test]
fn files_appear_whole() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let path = at.join("a.csv");
    let mut file = WholeFile::open("--out", &path, false).unwrap();
    file.write(|out| out.write_all(b"first")).unwrap();
    assert!(!path.exists());
    let again = file.write(|out| out.write_all(b"again")).unwrap_err();
    assert_eq!(message(at, again), "a.csv: cannot write: it was written already");
    file.publish("--out").unwrap();
    assert_eq!((names(at), fs::read_to_string(&path).unwrap()), (vec!["a.csv".to_owned()], "first".into()));

    let taken = "--out: a.csv already exists; use --force to replace it, or choose another name";
    assert_eq!(message(at, WholeFile::open("--out", &path, false).unwrap_err()), taken);
    let mut file = WholeFile::open("--out", &path, true).unwrap();
    file.write(|out| out.write_all(b"second")).unwrap();
    file.publish("--out").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "second");

    // Content that fails, and a file that is dropped, leave the old one.
    let mut file = WholeFile::open("--out", &path, true).unwrap();
    assert!(file.write(|_| Err(std::io::Error::other("no content"))).is_err());
    drop(file);
    assert_eq!((names(at), fs::read_to_string(&path).unwrap()), (vec!["a.csv".to_owned()], "second".into()));

    // A file that appears meanwhile is not replaced.
    let late = at.join("late.csv");
    let mut file = WholeFile::open("--out", &late, false).unwrap();
    file.write(|out| out.write_all(b"mine")).unwrap();
    fs::write(&late, "theirs").unwrap();
    assert!(message(at, file.publish("--out").unwrap_err()).starts_with("--out: late.csv already exists"));
    assert_eq!(fs::read_to_string(&late).unwrap(), "theirs");
}

#[test]
#[cfg(unix)]
fn targets_that_are_no_files() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    fs::write(at.join("file"), "").unwrap();
    std::os::unix::fs::symlink("file", at.join("link")).unwrap();
    std::os::unix::fs::symlink("/dev/null", at.join("to-device")).unwrap();
    std::os::unix::net::UnixListener::bind(at.join("socket")).unwrap();
    for (name, reason) in [
        ("..", "a directory; name a file in it"),
        (".", "a directory; name a file in it"),
        ("link", "a symbolic link, which nmem does not follow; name the file itself"),
        ("socket", "neither a file nor a pipe; choose another name"),
    ] {
        let path = if name == ".." { at.join("..") } else { at.join(name) };
        for force in [false, true] {
            let text = WholeFile::open("--out", &path, force).unwrap_err().to_string();
            assert!(text.starts_with("--out: ") && text.ends_with(&format!(" is {reason}")), "{text}");
        }
    }
    // A device is written into, and stays.
    for path in [Path::new("/dev/null"), &at.join("to-device")] {
        let mut file = WholeFile::open("--out", path, false).unwrap();
        file.write(|out| out.write_all(b"gone")).unwrap();
        file.publish("--out").unwrap();
    }
    assert_eq!(names(at), ["file", "link", "socket", "to-device"]);
    // A device that takes the file's place during the run is not replaced.
    let path = at.join("late");
    let mut file = WholeFile::open("--out", &path, true).unwrap();
    file.write(|out| out.write_all(b"mine")).unwrap();
    std::os::unix::fs::symlink("/dev/null", &path).unwrap();
    let text = message(at, file.publish("--out").unwrap_err());
    assert_eq!(text, "--out: late has become a pipe or device; run again to write into it");
}

#[test]
fn the_same_file_under_two_names() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    fs::create_dir(at.join("d")).unwrap();
    let open = |name: &str| WholeFile::open("--out", &at.join(name), false).unwrap();
    let file = open("a");
    assert!(file.is_same_as(&open("a")) && file.is_same_as(&open("d/../a")));
    assert!(!file.is_same_as(&open("b")) && !file.is_same_as(&open("d/a")));
}

#[test]
fn files_are_replaced_together_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    replace(&at.join("a"), b"old").unwrap();
    assert_eq!(fs::read(at.join("a")).unwrap(), b"old");
    let file = |name: &str| Ok((at.join(name), b"new".to_vec()));
    let paths = replace_all([file("a"), file("b")]).unwrap();
    assert_eq!(paths, [at.join("a"), at.join("b")]);
    assert_eq!(
        (fs::read(at.join("a")).unwrap(), fs::read(at.join("b")).unwrap()),
        (b"new".into(), b"new".into())
    );
    fs::create_dir(at.join("directory")).unwrap();
    let newer = |name: &str| Ok((at.join(name), b"newer".to_vec()));
    assert!(replace_all([newer("a"), newer("c"), newer("directory")]).is_err());
    assert_eq!(names(at), ["a", "b", "directory"]);
    assert_eq!(fs::read(at.join("a")).unwrap(), b"new");
}

#[test]
fn an_open_file() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let path = at.join("records");
    let mut file = OutFile::create_for_append(&path).unwrap();
    assert!(OutFile::create_for_append(&path).is_err());
    file.write_all(b"first second").unwrap();
    file.flush().unwrap();
    file.set_length(5).unwrap();
    assert_eq!(file.length().unwrap(), 5);
    // It is written at its end, wherever that is now.
    (&file).write_all(b"!").unwrap();
    (&file).flush().unwrap();
    file.sync().unwrap();
    file.finish().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"first!");

    let mut unnamed = OutFile::unnamed_in(at).unwrap();
    unnamed.write_all(b"abc").unwrap();
    assert_eq!(unnamed.seek(SeekFrom::Start(1)).unwrap(), 1);
    let mut text = String::new();
    unnamed.read_to_string(&mut text).unwrap();
    assert_eq!(text, "bc");
    drop(unnamed);
    assert_eq!(names(at), ["records"]);

    // An existing file is emptied, and one that must exist is not created.
    OutFile::write_new(&path, b"x").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"x");
    assert!(OutFile::open_existing(&at.join("absent")).is_err());
    storage::remove_file(&path).unwrap();
    assert_eq!(names(at), [""; 0]);
}
