//! Output directories are complete or absent: replaced whole, untouched by what fails, cleared of what was killed.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::{Sandbox, Transcript, counts, tokens};

/// Runs until it is stopped.
const ENDLESS: &str = "store seq.npy --chunk-size 8 --repeat 1000000000 --no-plots";

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[400, 16], 1));
    sandbox
}

fn hidden(sandbox: &Sandbox) -> Vec<String> {
    sandbox.names(".").into_iter().filter(|name| name.starts_with('.')).collect()
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
    fn start(sandbox: &Sandbox, line: &str) -> Self {
        let before = hidden(sandbox);
        let child = Command::new(env!("CARGO_BIN_EXE_nmem"))
            .args(line.split_whitespace())
            .current_dir(sandbox.path("."))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let this = Self(child);
        until("a run to start", || {
            let new = hidden(sandbox).into_iter().filter(|name| !before.contains(name));
            new.into_iter().any(|name| sandbox.path(&name).join("metrics.csv").exists())
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
fn force_replaces_the_whole_directory() {
    let sandbox = sandbox();
    sandbox.ok("store seq.npy --out out -q");
    // As `nmem plot` writes them there.
    sandbox.ok("plot out --kind gates --figure-format svg,pgfplots -q");
    let line = "retrieve seq.npy --out out -q";
    assert!(sandbox.rejected(line).contains("--force"));
    sandbox.ok(&format!("{line} --force"));
    assert_eq!(sandbox.names("out"), ["retrieved.npy", "run.json"]);
    // Without anything to replace it is an ordinary run, and makes the directories that it needs.
    sandbox.ok("store seq.npy --out a/b/c --force -q --no-plots");
    assert_eq!(sandbox.names("a/b/c"), ["memory.safetensors", "metrics.csv", "run.json"]);
    assert_eq!(sandbox.names("."), ["a", "out", "seq.npy"]);
}

#[test]
fn a_run_can_replace_the_directory_of_its_memory_no_more_than_other_inputs() {
    let sandbox = sandbox();
    sandbox.ok("store seq.npy --out out -q");
    let line = "store seq.npy --memory out/memory.safetensors --out out --force";
    let said = Transcript::of_rejected(&sandbox, &[line]);
    insta::assert_snapshot!(said);
}

/// Never replaces files that nmem did not write, and follows no link.
#[test]
#[cfg(unix)]
fn force_replaces_nothing_of_others() {
    let sandbox = sandbox();
    let mut said = Transcript::new();
    for name in
        ["notes.txt", "thesis.pdf", ".git/HEAD", "plots/mine.svg", "plots/deep/timeline.svg", "metrics.csv/x"]
    {
        let directory = format!("dir-{}", name.replace('/', "-"));
        sandbox.ok(&format!("store seq.npy --out {directory} -q"));
        let path = sandbox.path(&directory).join(name);
        if name == "metrics.csv/x" {
            std::fs::remove_file(sandbox.path(&directory).join("metrics.csv")).unwrap();
        }
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "mine").unwrap();
        said.reject(&sandbox, &format!("store seq.npy --out {directory} --force -q"));
    }
    // Names alone do not make results.
    std::fs::create_dir(sandbox.path("data")).unwrap();
    sandbox.file("data/metrics.csv", "mine");
    said.reject(&sandbox, "store seq.npy --out data --force");
    // Links: to results, to a file, to nothing.
    sandbox.ok("store seq.npy --out real -q");
    for (link, to) in [("link", "real"), ("file-link", "seq.npy"), ("dangling", "nothing")] {
        std::os::unix::fs::symlink(sandbox.path(to), sandbox.path(link)).unwrap();
        for line in ["", "/"].map(|end| format!("store seq.npy --out {link}{end} --force")) {
            said.error(&line, 2, &sandbox.one_error(&sandbox.run(&line), 2, &line));
        }
    }
    insta::assert_snapshot!(said);
    // In a directory that is reached through a link, results are as anywhere.
    std::fs::create_dir(sandbox.path("scratch")).unwrap();
    std::os::unix::fs::symlink(sandbox.path("scratch"), sandbox.path("results")).unwrap();
    sandbox.ok("store seq.npy -q");
    sandbox.ok("store seq.npy -q --force");
    assert_eq!(sandbox.names("scratch"), ["seq-store"]);
    std::fs::create_dir(sandbox.path("empty")).unwrap();
    sandbox.ok("store seq.npy --out empty --force -q");
}

#[test]
#[cfg(unix)]
fn interrupted() {
    let sandbox = sandbox();
    let mut said = Transcript::new();
    for (signal, force) in [("INT", false), ("TERM", false), ("INT", true), ("HUP", true)] {
        if force && !sandbox.path("out").exists() {
            sandbox.ok("store seq.npy --out out -q");
        }
        let before = sandbox.contents();
        let force = if force { "--force" } else { "" };
        let line = format!("{ENDLESS} --out out {force}");
        let run = Background::start(&sandbox, &line);
        let (status, out, err) = run.stop(signal);
        assert_eq!((status.code(), &out[..]), (Some(130), ""), "{signal}");
        said.given(&format!("SIG{signal}"));
        said.entry(line.trim_end(), status.code(), &err);
        assert!(sandbox.contents() == before, "what is in the directory");
    }
    insta::assert_snapshot!(said);
}

/// SIGTERM, with which schedulers end jobs: the state is kept, and the same command resumes there.
#[test]
#[cfg(unix)]
fn a_preempted_store_resumes() {
    let sandbox = Sandbox::new();
    // More than any machine stores while the test waits.
    sandbox.npy("seq.npy", &ndarray::ArrayD::zeros(ndarray::IxDyn(&[20_000_000, 1])));
    let line = "store seq.npy --no-plots --out out";
    let mut rows = 0;
    for _ in 0..2 {
        let (status, out, err) = Background::start(&sandbox, line).stop("TERM");
        assert_eq!((status.code(), &out[..]), (Some(130), ""), "{err}");
        let stored = counts(&err)[0];
        assert_eq!(
            err,
            format!(
                "error: interrupted after {stored} of 20000000 tokens; out.checkpoint keeps them, and the same command resumes there\n"
            )
        );
        assert_eq!(hidden(&sandbox), [""; 0]);
        assert_eq!(sandbox.names("."), ["out.checkpoint", "seq.npy"]);
        let now = sandbox.csv("out.checkpoint/metrics.csv").rows.len();
        assert!(now == stored / 16 && now > rows, "{now} rows of {stored} tokens, {rows} before");
        rows = now;
    }
    // Ctrl-C leaves the state as it is.
    let before = sandbox.contents();
    let (status, _, err) = Background::start(&sandbox, line).stop("INT");
    assert_eq!((status.code(), &err[..]), (Some(130), "error: out was not created: interrupted\n"));
    assert!(sandbox.contents() == before);
}

#[test]
#[cfg(unix)]
fn the_next_run_clears_what_a_killed_one_left() {
    let sandbox = sandbox();
    let run = Background::start(&sandbox, &format!("{ENDLESS} --out out"));
    // A live run's directory is nobody else's business.
    sandbox.ok("store seq.npy --out out -q");
    sandbox.ok("store seq.npy --out out -q --force");
    let of_run = hidden(&sandbox);
    assert_eq!(of_run.len(), 2, "the live run's and its lock: {of_run:?}");
    let (status, _, _) = run.stop("KILL");
    assert_eq!(status.code(), None);
    assert_eq!(hidden(&sandbox), of_run, "the killed run's");
    sandbox.ok("store seq.npy --out other -q");
    assert_eq!(hidden(&sandbox), of_run, "of another directory");
    // Another directory's name that begins the same is not mistaken for it, nor are files of one's own.
    std::fs::create_dir(sandbox.path(".out.mine")).unwrap();
    assert!(sandbox.rejected("store seq.npy --out out").starts_with("--out"));
    sandbox.ok("store seq.npy --out out -q --force");
    assert_eq!(hidden(&sandbox), [".out.mine"]);
}

#[test]
#[cfg(unix)]
fn the_first_of_two_runs_into_one_directory_wins() {
    let sandbox = sandbox();
    let line = "store seq.npy --chunk-size 8 --repeat 200 --no-plots -q --out out";
    let mut first = Background::start(&sandbox, line);
    let signal = |signal: &str, child: &Child| {
        let kill = format!("kill -{signal} {}", child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    };
    // Stopped in its work, it is overtaken.
    signal("STOP", &first.0);
    sandbox.ok("store seq.npy --out out -q");
    signal("CONT", &first.0);
    let status = first.0.wait().unwrap();
    assert_eq!(status.code(), Some(2));
    let err = std::io::read_to_string(first.0.stderr.take().unwrap()).unwrap();
    let mut said = Transcript::new();
    said.given("overtaken by another");
    said.entry(line, status.code(), &err);
    insta::assert_snapshot!(said);
    assert_eq!(sandbox.names("."), ["out", "seq.npy"]);
    assert!(sandbox.path("out/plots").exists(), "the second run's");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_leaves_nothing() {
    let sandbox = sandbox();
    // A limit on file sizes stands in for the disk; its signal does not end the program.
    let script = "ulimit -f 8; exec \"$0\" \"$@\"";
    let mut said = Transcript::new();
    for line in [
        "store seq.npy --out out --chunk-size 2",
        "retrieve seq.npy --out out",
        "store seq.npy --out out --chunk-size 400 --no-plots",
    ] {
        let before = sandbox.contents();
        let mut command = assert_cmd::Command::new("sh");
        command.current_dir(sandbox.path(".")).args(["-c", script, env!("CARGO_BIN_EXE_nmem")]);
        command.args(line.split_whitespace());
        let message = sandbox.one_error(&Sandbox::finish(command), 2, line);
        assert!(sandbox.contents() == before, "nmem {line}: contents of the directory");
        said.error(line, 2, &message);
    }
    insta::assert_snapshot!(said);
}

/// Each diverging run: its flags, and where it says that it diverged.
#[test]
fn a_diverged_run_is_published_up_to_there() {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[3, 40, 8], 2));
    let mut nan = tokens(&[3, 40, 8], 2);
    nan[[1, 21, 3]] = f32::NAN;
    nan[[2, 1, 0]] = f32::INFINITY;
    sandbox.npy("nan.npy", &nan);
    let mut said = Transcript::new();
    for command in ["store", "retrieve --online", "retrieve --online --probe"] {
        let published = |line: &str| {
            let output =
                sandbox.run(&format!("{command} {line} --heads 2 --chunk-size 4 --out out --force -q"));
            assert_eq!((output.code, &output.out[..]), (Some(1), ""), "{command} {line}: {}", output.err);
            assert_eq!(sandbox.names("out"), ["metrics.csv", "plots", "run.json"], "{command} {line}");
            assert!(sandbox.path("out/plots/timeline.svg").exists());
            let run = sandbox.json("out/run.json");
            let table = sandbox.csv("out/metrics.csv");
            assert_eq!(run["rows"], table.rows.len());
            for cell in table.rows.iter().flatten().filter(|cell| !cell.is_empty()) {
                assert!(cell.parse::<f64>().is_ok_and(f64::is_finite), "{cell}");
            }
            (output.err, run["diverged"].clone(), table)
        };
        let (err, diverged, table) = published("nan.npy --allow-nonfinite");
        let place = [&diverged["sequence"], &diverged["chunk"], &diverged["value"]];
        assert_eq!(place, [&serde_json::json!(1), &5.into(), &"NaN".into()], "{command}");
        let quantity = diverged["quantity"].as_str().unwrap();
        let place = [&diverged["sequence"], &diverged["head"], &diverged["chunk"]];
        let place: Vec<_> = place.into_iter().filter_map(|at| Some(at.as_u64()? as usize)).collect();
        assert!(counts(&err).starts_with(&place) && err.contains(quantity), "{diverged}: {err}");
        let line =
            format!("{command} nan.npy --allow-nonfinite --heads 2 --chunk-size 4 --out out --force -q");
        said.entry(&line, Some(1), &err);
        // All of the first sequence, five chunks of the second, nothing of the third.
        let count = |sequence: &str| table.texts("sequence").iter().filter(|text| **text == sequence).count();
        assert_eq!(["0", "1", "2"].map(count), [20, 10, 0], "{command}");
        sandbox.ok(&format!("{command} seq.npy --heads 2 --chunk-size 4 --out finite --force -q"));
        assert_eq!(table.rows[..30], sandbox.csv("finite/metrics.csv").rows[..30], "{command}");

        let (err, diverged, _) = published("seq.npy --learning-rate 1e39");
        assert!(err.contains(diverged["quantity"].as_str().unwrap()), "{err}");
        assert_eq!(diverged["sequence"], 0);
    }
    // A plain read has neither metrics nor figures.
    let line = "retrieve nan.npy --allow-nonfinite --chunk-size 4 --out read -q";
    let output = sandbox.run(line);
    assert_eq!(output.code, Some(1), "{}", output.err);
    assert_eq!(sandbox.names("read"), ["run.json"]);
    said.ran(&sandbox, line, &output);
    insta::assert_snapshot!(said);
}

/// A result that cannot be printed: the directory is there all the same.
#[test]
#[cfg(target_os = "linux")]
fn a_full_standard_output_does_not_undo_the_run() {
    let sandbox = sandbox();
    let line = "store seq.npy --out out";
    let output = std::process::Command::new("sh")
        .current_dir(sandbox.path("."))
        .args(["-c", &format!("{} {line} > /dev/full", env!("CARGO_BIN_EXE_nmem"))])
        .output()
        .unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    let mut said = Transcript::new();
    said.entry(&format!("{line} > /dev/full"), Some(1), &err);
    insta::assert_snapshot!(said);
    assert!(sandbox.path("out/metrics.csv").exists());
}
