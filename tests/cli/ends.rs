//! Ends of the program in unusual cases: names, pipes, inputs that change, signals, limits. Each end is one line, the
//! right status, and no files left.
#![cfg(unix)]

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::process::{Child, Command, Stdio};

use crate::{Sandbox, Transcript, tokens};

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[40, 8], 1));
    sandbox
}

fn start(sandbox: &Sandbox, line: &str, stdin: Stdio) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nmem"));
    command.args(line.split_whitespace()).current_dir(sandbox.path(".")).stdin(stdin);
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
    let sandbox = sandbox();
    let odd = |name: &str| {
        OsStr::from_bytes(
            &name.as_bytes().iter().map(|b| if *b == b'?' { 0xff } else { *b }).collect::<Vec<_>>(),
        )
        .to_owned()
    };
    sandbox.file("labels.csv", "position,segment\n0,a\n");
    sandbox.file("store.toml", "heads = 2\nchunk_size = 4\n");
    for (from, to) in [("seq.npy", "d?.npy"), ("labels.csv", "l?.csv"), ("store.toml", "c?.toml")] {
        fs::copy(sandbox.path(from), sandbox.path(".").join(odd(to))).unwrap();
    }
    let run = |words: &[&str]| {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_nmem"));
        command.current_dir(sandbox.path(".")).args(words.iter().map(|word| odd(word)));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    run(&["store", "d?.npy", "--config", "c?.toml", "--labels", "l?.csv", "--out", "o?"]);
    let at = |name: &str| sandbox.path(".").join(odd(name));
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
    sandbox.file("grid.toml", "data = 'seq.npy'\nheads = 2\nchunk_size = 4\n[grid]\nseed = [0, 1]\n");
    run(&["sweep", "grid.toml", "--out", "w?", "--format", "json"]);
    run(&["sweep", "--collect", "w?", "--format", "json"]);
    for name in ["g?.npy", "g?.csv", "f?.svg", "s?/machine.json", "w?/results.csv"] {
        assert!(at(name).is_file(), "{name}");
    }
    let left = fs::read_dir(sandbox.path("."))
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().as_bytes().starts_with(b"."));
    assert_eq!(left.count(), 0);
}

/// A pipe or device is written into, never replaced by a file.
#[test]
fn outputs_into_pipes_and_devices() {
    let sandbox = sandbox();
    let line = "generate drift --tokens 16 --segment 4 --dim 4 --out";
    sandbox.ok(&format!("{line} whole.npy -q"));
    assert!(Command::new("mkfifo").arg(sandbox.path("pipe")).status().unwrap().success());
    std::os::unix::fs::symlink("/dev/null", sandbox.path("null")).unwrap();
    for force in ["", "--force"] {
        let child = start(&sandbox, &format!("{line} pipe -q {force}"), Stdio::null());
        assert!(fs::read(sandbox.path("pipe")).unwrap() == sandbox.bytes("whole.npy"));
        assert_eq!(end(child), (Some(0), String::new()));
        assert!(fs::symlink_metadata(sandbox.path("pipe")).unwrap().file_type().is_fifo());
        assert_eq!(sandbox.run(&format!("{line} null -q {force}")).code, Some(0));
        assert!(fs::symlink_metadata(sandbox.path("null")).unwrap().is_symlink());
    }
    // As a table to draw it is rejected, without waiting for a writer.
    let mut said = Transcript::new();
    let output = sandbox.run("plot pipe");
    said.error("plot pipe", 2, &sandbox.one_error(&output, 2, "plot pipe"));
    fs::remove_file(sandbox.path("pipe")).unwrap();
    std::os::unix::fs::symlink("whole.npy", sandbox.path("link.npy")).unwrap();
    said.reject(&sandbox, &format!("{line} link.npy --force"));
    let to_null = "store seq.npy --out null --force";
    said.error(to_null, 2, &sandbox.one_error(&sandbox.run(to_null), 2, to_null));
    // One file under two spellings.
    said.reject(&sandbox, &format!("{line} ./one.npy --labels one.npy"));
    insta::assert_snapshot!(said);
}

/// A sequence and a configuration are read from named pipes, once, and a run has the same results as with files.
#[test]
fn inputs_from_named_pipes() {
    let sandbox = sandbox();
    sandbox.file("plain.toml", "heads = 2\nchunk_size = 4\n");
    sandbox.ok("store seq.npy --config plain.toml --out whole --no-plots -q");
    for name in ["seq", "toml"] {
        assert!(Command::new("mkfifo").arg(sandbox.path(name)).status().unwrap().success());
    }
    let child = start(&sandbox, "store seq --config toml --out piped --no-plots -q", Stdio::null());
    let copy = |from: &str, to: &str| fs::write(sandbox.path(to), sandbox.bytes(from)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| copy("seq.npy", "seq"));
        scope.spawn(|| copy("plain.toml", "toml"));
    });
    assert_eq!(end(child), (Some(0), String::new()));
    for file in ["metrics.csv", "memory.safetensors"] {
        assert!(sandbox.bytes(&format!("piped/{file}")) == sandbox.bytes(&format!("whole/{file}")), "{file}");
    }
    let inputs = |run: &str| {
        let run: serde_json::Value =
            serde_json::from_slice(&sandbox.bytes(&format!("{run}/run.json"))).unwrap();
        let inputs = run["inputs"].as_array().unwrap().iter();
        inputs.map(|input| (input["role"].clone(), input["sha256"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(inputs("piped"), inputs("whole"));
}

/// Ends with what the first signal says, also where the program waits for input that never comes.
#[test]
fn the_first_signal_ends_a_program_that_only_reads() {
    let sandbox = sandbox();
    let mut said = Transcript::new();
    for (line, name) in
        [("store - --out out", "INT"), ("inspect -", "TERM"), ("retrieve - --online --out out", "HUP")]
    {
        let mut child = start(&sandbox, line, Stdio::piped());
        // Enough to know that it reads: more than a pipe holds.
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&vec![0; 1 << 20]).unwrap();
        signal(&child, name);
        let (code, err) = end(child);
        assert_eq!(code, Some(130), "{line}: {err}");
        said.given(&format!("SIG{name}"));
        said.entry(line, code, &err);
        assert_eq!(sandbox.names("."), ["seq.npy"], "{line}");
    }
    insta::assert_snapshot!(said);
}

const COMPUTING: &str = "store long.npy --heads 2 --chunk-size 8 --no-plots --out out -q";

/// Starts a run that stops itself once its hidden directory exists. It has opened its inputs by then, and still has to read them.
fn computing(sandbox: &Sandbox) -> Child {
    sandbox.npy("long.npy", &tokens(&[4000, 16], 3));
    let mut command = Command::new(env!("CARGO_BIN_EXE_nmem"));
    command.args(COMPUTING.split(' '));
    command.current_dir(sandbox.path(".")).env("NMEM_FAULT", "pause:4:/dev/null");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let id = child.id().cast_signed();
    let mut status = 0;
    // SAFETY: the process is a child of this one, and `status` outlives the call.
    let stopped = unsafe { libc::waitpid(id, &raw mut status, libc::WUNTRACED) };
    assert_eq!((stopped, libc::WIFSTOPPED(status)), (id, true), "the run has stopped");
    let names = sandbox.names(".");
    assert!(names.iter().any(|name| name.starts_with(".out") && !name.contains(".lock")), "{names:?}");
    child
}

#[test]
fn an_input_that_is_rewritten_during_a_run_is_an_error() {
    let sandbox = sandbox();
    let child = computing(&sandbox);
    let mut bytes = sandbox.bytes("long.npy");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    sandbox.file("long.npy", &bytes);
    signal(&child, "CONT");
    let (code, err) = end(child);
    assert_eq!(code, Some(2), "{err}");
    let mut said = Transcript::new();
    said.given("long.npy rewritten meanwhile");
    said.entry(COMPUTING, code, &err);
    insta::assert_snapshot!(said);
    assert_eq!(sandbox.names("."), ["long.npy", "seq.npy"]);
    // The same content, written again, or a name taken over by another file, changes nothing.
    let child = computing(&sandbox);
    let bytes = sandbox.bytes("long.npy");
    sandbox.file("long.npy", &bytes);
    sandbox.file("other.npy", "other");
    fs::rename(sandbox.path("other.npy"), sandbox.path("long.npy")).unwrap();
    signal(&child, "CONT");
    assert_eq!(end(child), (Some(0), String::new()));
}

#[test]
fn an_input_that_is_cut_short_during_a_run_is_one_line() {
    let sandbox = sandbox();
    let child = computing(&sandbox);
    fs::OpenOptions::new().write(true).open(sandbox.path("long.npy")).unwrap().set_len(100).unwrap();
    signal(&child, "CONT");
    let (status, err) = end(child);
    assert_eq!(status, Some(2), "{err}");
    // Whether a read finds it or a signal is chance, and each has its words.
    assert!(err.starts_with("error: ") && err.lines().count() == 1, "{err}");
    assert_eq!(sandbox.names("."), ["long.npy", "seq.npy"]);
}

/// Runs a line with limits set by the shell.
fn limited(sandbox: &Sandbox, limits: &str, line: &str) -> (Option<i32>, String) {
    let script = format!("{limits}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.current_dir(sandbox.path(".")).args(["-c", &script, env!("CARGO_BIN_EXE_nmem")]);
    let child =
        command.args(line.split_whitespace()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    end(child)
}

#[test]
#[cfg(target_os = "linux")]
fn out_of_memory_is_one_line() {
    let sandbox = sandbox();
    let before = sandbox.contents();
    // 134 MB of weights, and as much again for S, U and more.
    let line = "store seq.npy --heads 128 --dim-head 256 --threads 2 --out out";
    let (status, err) = limited(&sandbox, "ulimit -v 500000", line);
    assert_eq!(status, Some(2), "{err}");
    assert!(err.starts_with("error: ") && err.lines().count() == 1, "{err}");
    assert!(sandbox.contents() == before, "what is in the directory");
}

/// Root may start as many threads as it likes, so this needs another user.
#[test]
#[cfg(target_os = "linux")]
fn fewer_threads_than_asked_for() {
    let sandbox = sandbox();
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !is_root || Command::new("setpriv").arg("--version").output().is_err() {
        eprintln!("skipped: needs root and setpriv, to become a user with few threads");
        return;
    }
    fs::set_permissions(sandbox.path("."), fs::Permissions::from_mode(0o777)).unwrap();
    sandbox.file("grid.toml", "data = 'seq.npy'\nheads = 2\nchunk_size = 4\n[grid]\nseed = [0, 1, 2]\n");
    // The program must be where that user can read it.
    let program = sandbox.path("nmem");
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
            command.current_dir(sandbox.path(".")).args(["--reuid", &user, "--clear-groups"]);
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
            let _ = fs::remove_dir_all(sandbox.path(name));
        }
    }
}

/// A mistake in the program: one line that asks for a report, Rust's status, nothing left behind.
#[test]
#[cfg(debug_assertions)]
fn a_panic_is_one_line() {
    let sandbox = sandbox();
    let before = sandbox.contents();
    let mut said = Transcript::new();
    for n in [1, 5, 12] {
        let line = "store seq.npy --heads 2 --chunk-size 4 --out out";
        let mut command = sandbox.command(line);
        command
            .env("NMEM_FAULT", format!("panic:{n}:{}", sandbox.path("struck").display()))
            .env("RUST_BACKTRACE", "0");
        let output = Sandbox::finish(command);
        fs::remove_file(sandbox.path("struck")).unwrap();
        assert_eq!((output.code, &output.out[..]), (Some(101), ""), "{}", output.err);
        let place = output.err.split_once("src/storage/fault.rs:").expect(&output.err).1;
        let digits: String = place.chars().take_while(|c| c.is_ascii_digit() || *c == ':').collect();
        assert!(output.err.lines().count() == 1, "{}", output.err);
        said.entry(line, output.code, &output.err.replace(&digits, "LINE"));
        assert!(sandbox.contents() == before, "what is in the directory");
    }
    insta::assert_snapshot!(said);
    // Of a sweep it costs its run alone.
    sandbox.file("grid.toml", "data = 'seq.npy'\nheads = 2\nchunk_size = 4\n[grid]\nseed = [0, 1]\n");
    let mut command = sandbox.command("sweep grid.toml --out sweep -j 1 --no-plots -q");
    command
        .env("NMEM_FAULT", format!("panic:20:{}", sandbox.path("struck").display()))
        .env("RUST_BACKTRACE", "0");
    let output = Sandbox::finish(command);
    assert!(sandbox.path("struck").exists() && output.code == Some(1), "{:?} {}", output.code, output.err);
    assert_eq!(
        sandbox.csv("sweep/results.csv").texts("status").iter().filter(|status| **status == "ok").count(),
        1
    );
}

/// Wherever it panics, a sweep ends: no thread waits for one that is no more.
#[test]
#[cfg(debug_assertions)]
fn a_sweep_that_panics_ends() {
    for n in (1..60).step_by(3) {
        let sandbox = sandbox();
        sandbox.file(
            "grid.toml",
            "data = 'seq.npy'\nheads = 2\nchunk_size = 20\n[grid]\nseed = 'range(0, 150)'\n",
        );
        let mut command = sandbox.command("sweep grid.toml --out sweep -j 2 --no-plots --keep none -q");
        command
            .env("NMEM_FAULT", format!("panic:{n}:{}", sandbox.path("struck").display()))
            .env("RUST_BACKTRACE", "0");
        let output = Sandbox::finish(command);
        let struck = sandbox.path("struck").exists();
        assert_eq!(output.code, Some(if struck { 101 } else { 0 }), "{n}: {}", output.err);
        assert_eq!(output.err.contains("src/storage/fault.rs:"), struck, "{n}: {}", output.err);
    }
}
