//! How the program ends where something is unusual: names, pipes, inputs that change, signals, limits. One line, the right
//! status, nothing left behind.
#![cfg(unix)]

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Desk, tokens};

fn desk() -> Desk {
    let desk = Desk::new();
    desk.npy("seq.npy", &tokens(&[40, 8], 1));
    desk
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_mins(1), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn start(desk: &Desk, line: &str, stdin: Stdio) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nmem"));
    command.args(line.split_whitespace()).current_dir(desk.path(".")).stdin(stdin);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Exit status and stderr.
fn end(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn signal(child: &Child, name: &str) {
    assert!(
        Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap().success()
    );
}

/// Names that are not UTF-8 work wherever a path is taken; JSON has them with U+FFFD.
#[test]
fn names_that_are_not_utf8() {
    let desk = desk();
    let odd = |name: &str| {
        OsStr::from_bytes(
            &name.as_bytes().iter().map(|b| if *b == b'?' { 0xff } else { *b }).collect::<Vec<_>>(),
        )
        .to_owned()
    };
    desk.file("labels.csv", "position,segment\n0,a\n");
    desk.file("store.toml", "heads = 2\nchunk_size = 4\n");
    for (from, to) in [("seq.npy", "d?.npy"), ("labels.csv", "l?.csv"), ("store.toml", "c?.toml")] {
        fs::copy(desk.path(from), desk.path(".").join(odd(to))).unwrap();
    }
    let run = |words: &[&str]| {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_nmem"));
        command.current_dir(desk.path(".")).args(words.iter().map(|word| odd(word)));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    run(&["store", "d?.npy", "--config", "c?.toml", "--labels", "l?.csv", "--out", "o?"]);
    let at = |name: &str| desk.path(".").join(odd(name));
    let json: serde_json::Value = serde_json::from_slice(&fs::read(at("o?/run.json")).unwrap()).unwrap();
    assert_eq!((&json["out"], &json["inputs"][0]["path"]), (&"o\u{fffd}".into(), &"d\u{fffd}.npy".into()));
    run(&["retrieve", "d?.npy", "--memory", "o?/memory.safetensors", "--out", "r?", "--format", "json"]);
    run(&["store", "d?.npy", "--config", "c?.toml", "--out", "o?", "--force", "-q"]);
    run(&["inspect", "d?.npy", "--format", "json"]);
    run(&["plot", "o?", "--kind", "gates", "--out", "f?.svg"]);
    run(&["generate", "recall", "--tokens", "4", "--dim", "8", "--out", "g?.npy", "--labels", "g?.csv"]);
    run(&[
        "scan-bench",
        "--steps",
        "4",
        "--channels",
        "4",
        "--batch",
        "1",
        "--seconds",
        "0",
        "--out",
        "s?",
        "--format",
        "json",
    ]);
    desk.file("grid.toml", "data = 'seq.npy'\nheads = 2\nchunk_size = 4\n[grid]\nseed = [0, 1]\n");
    run(&["sweep", "grid.toml", "--out", "w?", "--format", "json"]);
    run(&["sweep", "--collect", "w?", "--format", "json"]);
    for name in ["g?.npy", "g?.csv", "f?.svg", "s?/machine.json", "w?/results.csv"] {
        assert!(at(name).is_file(), "{name}");
    }
    let left = fs::read_dir(desk.path("."))
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().as_bytes().starts_with(b"."));
    assert_eq!(left.count(), 0);
}

/// A pipe or device is written into, never replaced by a file.
#[test]
fn outputs_into_pipes_and_devices() {
    let desk = desk();
    let line = "generate drift --tokens 16 --segment 4 --dim 4 --out";
    desk.ok(&format!("{line} whole.npy -q"));
    assert!(Command::new("mkfifo").arg(desk.path("pipe")).status().unwrap().success());
    std::os::unix::fs::symlink("/dev/null", desk.path("null")).unwrap();
    for force in ["", "--force"] {
        let child = start(&desk, &format!("{line} pipe -q {force}"), Stdio::null());
        assert!(fs::read(desk.path("pipe")).unwrap() == desk.bytes("whole.npy"));
        assert_eq!(end(child), (Some(0), String::new()));
        assert!(fs::symlink_metadata(desk.path("pipe")).unwrap().file_type().is_fifo());
        assert_eq!(desk.run(&format!("{line} null -q {force}")).code, Some(0));
        assert!(fs::symlink_metadata(desk.path("null")).unwrap().is_symlink());
    }
    // As a table to draw it is rejected, without waiting for a writer.
    let ran = desk.run("plot pipe");
    assert!(desk.one_error(&ran, 2, "plot pipe").contains("a pipe or device (save it to a file first)"));
    fs::remove_file(desk.path("pipe")).unwrap();
    std::os::unix::fs::symlink("whole.npy", desk.path("link.npy")).unwrap();
    let message = desk.refused(&format!("{line} link.npy --force"));
    assert_eq!(message, "--out: link.npy is a symbolic link, which is not followed; name the file itself");
    let ran = desk.run("store seq.npy --out null --force");
    assert_eq!(
        desk.one_error(&ran, 2, "null"),
        "--out: null is a symbolic link, which is not followed; name the directory itself"
    );
    // One file under two spellings.
    let message = desk.refused(&format!("{line} ./one.npy --labels one.npy"));
    assert_eq!(message, "--labels: one.npy is the file of --out too; name another");
}

/// Ends with what the first signal says, also where the program waits for input that never comes.
#[test]
fn the_first_signal_ends_a_program_that_only_reads() {
    let desk = desk();
    for (line, name) in
        [("store - --out out", "INT"), ("inspect -", "TERM"), ("retrieve - --online --out out", "HUP")]
    {
        let mut child = start(&desk, line, Stdio::piped());
        // Enough to know that it reads: more than a pipe holds.
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&vec![0; 1 << 20]).unwrap();
        signal(&child, name);
        assert_eq!(end(child), (Some(130), "error: interrupted\n".to_owned()), "{line}");
        assert_eq!(desk.names("."), ["seq.npy"], "{line}");
    }
}

/// Starts a long run, which reads its sequence block by block, and stops it with SIGSTOP once it computes.
fn computing(desk: &Desk) -> Child {
    desk.npy("long.npy", &tokens(&[4000, 16], 3));
    let child = start(
        desk,
        "store long.npy --heads 2 --chunk-size 8 --repeat 40 --no-plots --out out -q",
        Stdio::null(),
    );
    until("a run to compute", || {
        let hidden =
            desk.names(".").into_iter().find(|name| name.starts_with(".out") && !name.contains(".lock"));
        hidden.is_some_and(|name| desk.path(&name).join("metrics.csv").exists())
    });
    signal(&child, "STOP");
    child
}

#[test]
fn an_input_that_is_rewritten_during_a_run_is_an_error() {
    let desk = desk();
    let child = computing(&desk);
    let mut bytes = desk.bytes("long.npy");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    desk.file("long.npy", &bytes);
    signal(&child, "CONT");
    let expected =
        "error: long.npy: it was changed while nmem was reading it; run again once it is complete\n";
    assert_eq!(end(child), (Some(2), expected.to_owned()));
    assert_eq!(desk.names("."), ["long.npy", "seq.npy"]);
    // The same content, written again, or a name taken over by another file, changes nothing.
    let child = computing(&desk);
    let bytes = desk.bytes("long.npy");
    desk.file("long.npy", &bytes);
    desk.file("other.npy", "other");
    fs::rename(desk.path("other.npy"), desk.path("long.npy")).unwrap();
    signal(&child, "CONT");
    assert_eq!(end(child), (Some(0), String::new()));
}

#[test]
fn an_input_that_is_cut_short_during_a_run_is_one_line() {
    let desk = desk();
    let child = computing(&desk);
    fs::OpenOptions::new().write(true).open(desk.path("long.npy")).unwrap().set_len(100).unwrap();
    signal(&child, "CONT");
    let (status, err) = end(child);
    assert_eq!(status, Some(2), "{err}");
    assert!(
        err.starts_with("error: ")
            && err.lines().count() == 1
            && err.contains("run again once it is complete"),
        "{err}"
    );
    assert_eq!(desk.names("."), ["long.npy", "seq.npy"]);
}

/// Runs a line with limits set by the shell.
fn limited(desk: &Desk, limits: &str, line: &str) -> (Option<i32>, String) {
    let script = format!("{limits}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.current_dir(desk.path(".")).args(["-c", &script, env!("CARGO_BIN_EXE_nmem")]);
    let child =
        command.args(line.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    end(child)
}

#[test]
#[cfg(target_os = "linux")]
fn memory_that_is_not_to_be_had_is_one_line() {
    let desk = desk();
    let before = desk.contents();
    // 134 MB of weights, and as much again for S, U and more.
    let line = "store seq.npy --heads 128 --dim-head 256 --threads 2 --out out";
    let (status, err) = limited(&desk, "ulimit -v 500000", line);
    assert_eq!(status, Some(2), "{err}");
    assert!(err.starts_with("error: ") && err.lines().count() == 1, "{err}");
    assert!(desk.contents() == before, "what is in the folder");
}

/// Root may start as many threads as it likes, so this needs another user.
#[test]
#[cfg(target_os = "linux")]
fn fewer_threads_than_asked_for() {
    let desk = desk();
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !is_root || Command::new("setpriv").arg("--version").output().is_err() {
        eprintln!("skipped: needs root and setpriv, to become a user with few threads");
        return;
    }
    fs::set_permissions(desk.path("."), fs::Permissions::from_mode(0o777)).unwrap();
    desk.file("grid.toml", "data = 'seq.npy'\nheads = 2\nchunk_size = 4\n[grid]\nseed = [0, 1, 2]\n");
    // The program must be where that user can read it.
    let program = desk.path("nmem");
    fs::copy(env!("CARGO_BIN_EXE_nmem"), &program).unwrap();
    for threads in 1..7 {
        for line in [
            "store seq.npy --heads 2 --chunk-size 4 --threads 8 --no-plots --out out --force -q",
            "sweep grid.toml -j 8 --no-plots --out sweep --force -q",
            "scan-bench --steps 8 --channels 64 --batch 2 --threads 8 --seconds 0 --no-plots --out bench --force -q",
            "inspect seq.npy",
        ] {
            let mut command = Command::new("setpriv");
            let user = (54_000 + threads).to_string();
            command.current_dir(desk.path(".")).args(["--reuid", &user, "--clear-groups"]);
            let script = format!("ulimit -u {threads}; exec \"$0\" \"$@\"");
            command.args(["bash", "-c", &script]).arg(&program).args(line.split_whitespace());
            let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let (status, err) = end(child);
            assert!(status == Some(0) || status == Some(2), "{threads}: {line}: {status:?} {err}");
            let lines = err.lines().count();
            assert!(
                status == Some(0) && lines == 0 || status == Some(2) && lines == 1,
                "{threads}: {line}: {err}"
            );
        }
        for name in ["out", "sweep", "bench"] {
            let _ = fs::remove_dir_all(desk.path(name));
        }
    }
}

/// A mistake in the program: one line that asks for a report, Rust's status, nothing left behind.
#[test]
#[cfg(debug_assertions)]
fn a_panic_is_one_line() {
    let desk = desk();
    let before = desk.contents();
    for n in [1, 5, 12] {
        let line = "store seq.npy --heads 2 --chunk-size 4 --out out";
        let mut command = desk.command(line);
        command
            .env("NMEM_FAULT", format!("panic:{n}:{}", desk.path("struck").display()))
            .env("RUST_BACKTRACE", "0");
        let ran = Desk::finish(command);
        fs::remove_file(desk.path("struck")).unwrap();
        assert_eq!((ran.code, &ran.out[..]), (Some(101), ""), "{}", ran.err);
        let said = ran.err.starts_with("internal error: injected by a test at src/storage/fault.rs:");
        let version =
            format!(", nmem {}; please report it with the command line\n", env!("CARGO_PKG_VERSION"));
        assert!(said && ran.err.ends_with(&version) && ran.err.lines().count() == 1, "{}", ran.err);
        assert!(desk.contents() == before, "what is in the folder");
    }
    // Of a sweep it costs its run alone.
    desk.file("grid.toml", "data = 'seq.npy'\nheads = 2\nchunk_size = 4\n[grid]\nseed = [0, 1]\n");
    let mut command = desk.command("sweep grid.toml --out sweep -j 1 --no-plots -q");
    command
        .env("NMEM_FAULT", format!("panic:20:{}", desk.path("struck").display()))
        .env("RUST_BACKTRACE", "0");
    let ran = Desk::finish(command);
    assert!(desk.path("struck").exists() && ran.code == Some(1), "{:?} {}", ran.code, ran.err);
    assert_eq!(
        desk.csv("sweep/results.csv").texts("status").iter().filter(|status| **status == "ok").count(),
        1
    );
}

/// Wherever it panics, a sweep ends: no thread waits for one that is no more.
#[test]
#[cfg(debug_assertions)]
fn a_sweep_that_panics_ends() {
    for n in (1..60).step_by(3) {
        let desk = desk();
        desk.file(
            "grid.toml",
            "data = 'seq.npy'\nheads = 2\nchunk_size = 20\n[grid]\nseed = 'range(0, 150)'\n",
        );
        let mut command = desk.command("sweep grid.toml --out sweep -j 2 --no-plots --keep none -q");
        command
            .env("NMEM_FAULT", format!("panic:{n}:{}", desk.path("struck").display()))
            .env("RUST_BACKTRACE", "0");
        let ran = Desk::finish(command);
        let struck = desk.path("struck").exists();
        assert_eq!(ran.code, Some(if struck { 101 } else { 0 }), "{n}: {}", ran.err);
        assert_eq!(ran.err.starts_with("internal error: injected by a test"), struck, "{n}: {}", ran.err);
    }
}
