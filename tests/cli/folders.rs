//! Output folders are complete or absent: replaced whole, untouched by what fails, cleared of what was killed.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::{Desk, tokens};

/// Runs until it is stopped.
const ENDLESS: &str = "store seq.npy --chunk-size 8 --repeat 1000000000 --no-plots";

fn desk() -> Desk {
    let desk = Desk::new();
    desk.npy("seq.npy", &tokens(&[400, 16], 1));
    desk
}

fn hidden(desk: &Desk) -> Vec<String> {
    desk.names(".").into_iter().filter(|name| name.starts_with('.')).collect()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A run in the background, ended with the test.
struct Background(Child);

impl Background {
    /// Returns once the run is computing.
    fn start(desk: &Desk, line: &str) -> Self {
        let before = hidden(desk);
        let child = Command::new(env!("CARGO_BIN_EXE_nmem"))
            .args(line.split_whitespace())
            .current_dir(desk.path("."))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let this = Self(child);
        until("a run to start", || {
            let new = hidden(desk).into_iter().filter(|name| !before.contains(name));
            new.into_iter().any(|name| desk.path(&name).join("metrics.csv").exists())
        });
        this
    }

    /// Sends a signal; how it ended and what it wrote to stdout and stderr.
    fn stop(mut self, signal: &str) -> (ExitStatus, String, String) {
        let kill = format!("kill -{signal} {}", self.0.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        let status = self.0.wait().unwrap();
        let [out, err] = [
            std::io::read_to_string(self.0.stdout.take().unwrap()).unwrap(),
            std::io::read_to_string(self.0.stderr.take().unwrap()).unwrap(),
        ];
        (status, out, err)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn force_replaces_the_whole_folder() {
    let desk = desk();
    desk.ok("store seq.npy --out out -q");
    // As `nmem plot` writes them there.
    desk.ok("plot out --kind gates --figure-format svg,pgfplots -q");
    let line = "retrieve seq.npy --out out -q";
    assert!(desk.refused(line).contains("--force"));
    desk.ok(&format!("{line} --force"));
    assert_eq!(desk.names("out"), ["retrieved.npy", "run.json"]);
    // Without anything to replace it is an ordinary run, and makes the folders that it needs.
    desk.ok("store seq.npy --out a/b/c --force -q --no-plots");
    assert_eq!(desk.names("a/b/c"), ["memory.safetensors", "metrics.csv", "run.json"]);
    assert_eq!(desk.names("."), ["a", "out", "seq.npy"]);
}

#[test]
fn a_run_can_replace_the_folder_of_its_memory_no_more_than_other_inputs() {
    let desk = desk();
    desk.ok("store seq.npy --out out -q");
    let message = desk.refused("store seq.npy --memory out/memory.safetensors --out out --force");
    assert_eq!(
        message,
        "--out: expected a folder without this run's inputs, got out, which holds out/memory.safetensors"
    );
}

/// What nmem did not write is never replaced, and no link is followed.
#[test]
#[cfg(unix)]
fn force_replaces_nothing_of_others() {
    let desk = desk();
    for name in
        ["notes.txt", "thesis.pdf", ".git/HEAD", "plots/mine.svg", "plots/deep/timeline.svg", "metrics.csv/x"]
    {
        let directory = format!("dir-{}", name.replace('/', "-"));
        desk.ok(&format!("store seq.npy --out {directory} -q"));
        let path = desk.path(&directory).join(name);
        if name == "metrics.csv/x" {
            std::fs::remove_file(desk.path(&directory).join("metrics.csv")).unwrap();
        }
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "mine").unwrap();
        let message = desk.refused(&format!("store seq.npy --out {directory} --force -q"));
        assert!(message.contains("which nmem did not write; move it away"), "{name}: {message}");
    }
    // Names alone do not make results.
    std::fs::create_dir(desk.path("data")).unwrap();
    desk.file("data/metrics.csv", "mine");
    assert!(desk.refused("store seq.npy --out data --force").contains("data holds metrics.csv"));
    // Links: to results, to a file, to nothing.
    desk.ok("store seq.npy --out real -q");
    for (link, to) in [("link", "real"), ("file-link", "seq.npy"), ("dangling", "nothing")] {
        std::os::unix::fs::symlink(desk.path(to), desk.path(link)).unwrap();
        for line in ["", "/"].map(|end| format!("store seq.npy --out {link}{end} --force")) {
            let message = desk.one_error(&desk.run(&line), 2, &line);
            let expected = "is a symbolic link, which is not followed; name the directory itself";
            assert!(message.ends_with(expected), "{message}");
        }
    }
    // In a directory that is reached through a link, results are as anywhere.
    std::fs::create_dir(desk.path("scratch")).unwrap();
    std::os::unix::fs::symlink(desk.path("scratch"), desk.path("results")).unwrap();
    desk.ok("store seq.npy -q");
    desk.ok("store seq.npy -q --force");
    assert_eq!(desk.names("scratch"), ["seq-store"]);
    std::fs::create_dir(desk.path("empty")).unwrap();
    desk.ok("store seq.npy --out empty --force -q");
}

#[test]
#[cfg(unix)]
fn interrupted() {
    let desk = desk();
    for (signal, force) in [("INT", false), ("TERM", false), ("INT", true), ("HUP", true)] {
        if force && !desk.path("out").exists() {
            desk.ok("store seq.npy --out out -q");
        }
        let before = desk.contents();
        let force = if force { "--force" } else { "" };
        let run = Background::start(&desk, &format!("{ENDLESS} --out out {force}"));
        let (status, out, err) = run.stop(signal);
        assert_eq!((status.code(), &out[..]), (Some(130), ""), "{signal}");
        let left = if force.is_empty() { "was not made" } else { "is as it was" };
        assert_eq!(err, format!("error: out {left}: interrupted\n"));
        assert!(desk.contents() == before, "what is in the folder");
    }
}

#[test]
#[cfg(unix)]
fn what_a_killed_run_leaves_the_next_one_clears() {
    let desk = desk();
    let run = Background::start(&desk, &format!("{ENDLESS} --out out"));
    // A live run's folder is nobody else's business.
    desk.ok("store seq.npy --out out -q");
    desk.ok("store seq.npy --out out -q --force");
    let of_run = hidden(&desk);
    assert_eq!(of_run.len(), 2, "the live run's and its lock: {of_run:?}");
    let (status, _, _) = run.stop("KILL");
    assert_eq!(status.code(), None);
    assert_eq!(hidden(&desk), of_run, "the killed run's");
    desk.ok("store seq.npy --out other -q");
    assert_eq!(hidden(&desk), of_run, "of another folder");
    // Another folder's name that begins the same is not mistaken for it, nor are files of one's own.
    std::fs::create_dir(desk.path(".out.mine")).unwrap();
    assert_eq!(desk.refused("store seq.npy --out out").split(':').next(), Some("--out"));
    desk.ok("store seq.npy --out out -q --force");
    assert_eq!(hidden(&desk), [".out.mine"]);
}

#[test]
#[cfg(unix)]
fn of_two_runs_to_one_folder_the_first_to_end_has_it() {
    let desk = desk();
    let mut first =
        Background::start(&desk, "store seq.npy --chunk-size 8 --repeat 200 --no-plots -q --out out");
    let signal = |signal: &str, child: &Child| {
        let kill = format!("kill -{signal} {}", child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    };
    // Stopped in its work, it is overtaken.
    signal("STOP", &first.0);
    desk.ok("store seq.npy --out out -q");
    signal("CONT", &first.0);
    let status = first.0.wait().unwrap();
    assert_eq!(status.code(), Some(2));
    let err = std::io::read_to_string(first.0.stderr.take().unwrap()).unwrap();
    assert!(err.starts_with("error: --out: expected a folder that does not exist yet"), "{err}");
    assert_eq!(desk.names("."), ["out", "seq.npy"]);
    assert!(desk.path("out/plots").exists(), "the second run's");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_leaves_nothing() {
    let desk = desk();
    // A limit on file sizes stands in for the disk; its signal does not end the program.
    let script = "ulimit -f 8; exec \"$0\" \"$@\"";
    let run = |line: &str| {
        let before = desk.contents();
        let mut command = assert_cmd::Command::new("sh");
        command.current_dir(desk.path(".")).args(["-c", script, env!("CARGO_BIN_EXE_nmem")]);
        command.args(line.split_whitespace());
        let message = desk.one_error(&Desk::finish(command), 2, line);
        assert!(desk.contents() == before, "nmem {line}: what is in the folder");
        message
    };
    let full = "File too large (os error 27)";
    let metrics = run("store seq.npy --out out --chunk-size 2");
    assert_eq!(metrics, format!("out/metrics.csv: cannot write: {full}"));
    assert_eq!(run("retrieve seq.npy --out out"), format!("out/retrieved.npy: cannot write: {full}"));
    let memory = run("store seq.npy --out out --chunk-size 400 --no-plots");
    assert_eq!(memory, format!("out/memory.safetensors: cannot write: {full}"));
}

/// Each diverging run: its flags, and where it says that it diverged.
#[test]
fn a_diverged_run_is_published_up_to_there() {
    let desk = Desk::new();
    desk.npy("seq.npy", &tokens(&[3, 40, 8], 2));
    let mut nan = tokens(&[3, 40, 8], 2);
    nan[[1, 21, 3]] = f32::NAN;
    nan[[2, 1, 0]] = f32::INFINITY;
    desk.npy("nan.npy", &nan);
    for command in ["store", "retrieve --online", "retrieve --online --probe"] {
        let published = |line: &str| {
            let ran = desk.run(&format!("{command} {line} --heads 2 --chunk-size 4 --out out --force -q"));
            assert_eq!((ran.code, &ran.out[..]), (Some(1), ""), "{command} {line}: {}", ran.err);
            assert_eq!(desk.names("out"), ["metrics.csv", "plots", "run.json"], "{command} {line}");
            assert!(desk.path("out/plots/timeline.svg").exists());
            let run = desk.json("out/run.json");
            let table = desk.csv("out/metrics.csv");
            assert_eq!(run["rows"], table.rows.len());
            for cell in table.rows.iter().flatten().filter(|cell| !cell.is_empty()) {
                assert!(cell.parse::<f64>().is_ok_and(f64::is_finite), "{cell}");
            }
            (ran.err, run["diverged"].clone(), table)
        };
        let (err, diverged, table) = published("nan.npy --allow-nonfinite");
        let place = [&diverged["sequence"], &diverged["chunk"], &diverged["value"]];
        assert_eq!(place, [&serde_json::json!(1), &5.into(), &"NaN".into()], "{command}");
        let head =
            diverged["head"].as_u64().map_or("heads combined".to_owned(), |head| format!("head {head}"));
        let quantity = diverged["quantity"].as_str().unwrap();
        assert_eq!(
            err,
            format!(
                "error: out: diverged at sequence 1, {head}, chunk 5: {quantity} is NaN; results go up to there, {} left out\n",
                match command {
                    "store" => "memory.safetensors is",
                    _ => "memory.safetensors and retrieved.npy are",
                }
            )
        );
        // All of the first sequence, five chunks of the second, nothing of the third.
        let count = |sequence: &str| table.texts("sequence").iter().filter(|text| **text == sequence).count();
        assert_eq!(["0", "1", "2"].map(count), [20, 10, 0], "{command}");
        desk.ok(&format!("{command} seq.npy --heads 2 --chunk-size 4 --out finite --force -q"));
        assert_eq!(table.rows[..30], desk.csv("finite/metrics.csv").rows[..30], "{command}");

        let (err, diverged, _) = published("seq.npy --learning-rate 1e39");
        assert!(err.starts_with("error: out: diverged at sequence 0, "), "{err}");
        assert_eq!(diverged["sequence"], 0);
    }
    // A plain read has neither metrics nor figures.
    let ran = desk.run("retrieve nan.npy --allow-nonfinite --chunk-size 4 --out read -q");
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert_eq!(desk.names("read"), ["run.json"]);
    let expected =
        "error: read: diverged at sequence 1, head 0, chunk 5: retrieved is NaN; retrieved.npy is left out\n";
    assert_eq!(ran.err, expected);
}

/// A result that cannot be printed: the folder is there all the same.
#[test]
#[cfg(target_os = "linux")]
fn a_full_standard_output_does_not_undo_the_run() {
    let desk = desk();
    let line = "store seq.npy --out out";
    let ran = std::process::Command::new("sh")
        .current_dir(desk.path("."))
        .args(["-c", &format!("{} {line} > /dev/full", env!("CARGO_BIN_EXE_nmem"))])
        .output()
        .unwrap();
    let err = String::from_utf8(ran.stderr).unwrap();
    let expected = "error: standard output: No space left on device (os error 28); the results are in out\n";
    assert_eq!((ran.status.code(), &err[..]), (Some(1), expected));
    assert!(desk.path("out/metrics.csv").exists());
}
