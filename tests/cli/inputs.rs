//! Inputs in unusual forms: pipes, sizes that a few bytes claim, names that steer a terminal.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use crate::{CommandOutput, Sandbox, Transcript, tokens, without_max_bytes, without_numbers};

const LABELS: &str = "position,segment,repeat\n0,a,0\n8,b,0\n16,a,1\n";

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.npy("d.npy", &tokens(&[24, 8], 1));
    sandbox
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The command with this text on a pipe.
fn piped(sandbox: &Sandbox, line: &str, input: &str) -> CommandOutput {
    let mut command = sandbox.command(line);
    command.write_stdin(input);
    Sandbox::finish(command)
}

/// A command that is rejected with this text on a pipe.
fn reject(said: &mut Transcript, sandbox: &Sandbox, line: &str, input: &str) {
    said.error(line, 2, &sandbox.one_error(&piped(sandbox, line, input), 2, line));
}

fn input_hash(sandbox: &Sandbox, directory: &str, role: &str) -> String {
    let run = sandbox.json(&format!("{directory}/run.json"));
    let inputs = run["inputs"].as_array().unwrap();
    let input = inputs.iter().find(|input| input["role"] == role).unwrap();
    input["sha256"].as_str().unwrap().to_owned()
}

#[test]
#[cfg(target_os = "linux")]
fn text_from_a_pipe_is_read_once() {
    let sandbox = sandbox();
    let output = piped(&sandbox, "store d.npy --labels /dev/stdin --chunk-size 4 --out l -q", LABELS);
    assert_eq!(output.code, Some(0), "{}", output.err);
    assert_eq!(input_hash(&sandbox, "l", "labels"), sha256(LABELS));
    let svg = String::from_utf8(sandbox.bytes("l/plots/timeline.svg")).unwrap();
    assert!(svg.contains("segment change") && svg.contains("repeat"));

    // Paths in it are relative to where one is.
    let config = "data = \"d.npy\"\nchunk_size = 4\nno_plots = true\n";
    let output = piped(&sandbox, "store --config /dev/stdin --out c -q", config);
    assert_eq!(output.code, Some(0), "{}", output.err);
    assert_eq!(input_hash(&sandbox, "c", "config"), sha256(config));

    let experiment = "data = \"d.npy\"\n[grid]\nseed = [0, 1]\n";
    let output = piped(&sandbox, "sweep /dev/stdin --out s --no-plots -q", experiment);
    assert_eq!(output.code, Some(0), "{}", output.err);
    assert_eq!(sandbox.csv("s/results.csv").rows.len(), 2);
    let mut said = Transcript::new();
    reject(&mut said, &sandbox, "sweep /dev/stdin --slurm --out t", experiment);

    // Drawn again with labels from a pipe; the table itself is read in passes.
    let output = piped(&sandbox, "plot c --labels /dev/stdin --out - --y surprise", LABELS);
    assert!(output.out.contains("segment change"), "{}", output.err);
    let metrics = String::from_utf8(sandbox.bytes("c/metrics.csv")).unwrap();
    for name in ["-", "/dev/stdin"] {
        let output = piped(&sandbox, &format!("plot {name} --y surprise --out drawn"), &metrics);
        assert_eq!((output.code, &output.out[..]), (Some(0), "drawn/surprise.svg\n"), "{}", output.err);
    }
    for line in [
        "store d.npy --out -",
        "retrieve d.npy --online --out -",
        "scan-bench --out -",
        "sweep /dev/stdin --out -",
    ] {
        reject(&mut said, &sandbox, line, experiment);
    }
    insta::assert_snapshot!(said);
}

#[test]
#[cfg(target_os = "linux")]
fn a_stream_named_twice_is_rejected() {
    let sandbox = sandbox();
    let mut said = Transcript::new();
    for line in [
        "store - --labels /dev/stdin --out o",
        "store d.npy --memory /dev/fd/0 --labels /dev/stdin --out o",
        "retrieve /dev/stdin --store-seq - --out o",
        "inspect - /dev/stdin",
        "plot d.npy /dev/stdin --labels /proc/self/fd/0",
    ] {
        reject(&mut said, &sandbox, line, LABELS);
    }
    insta::assert_snapshot!(said);
}

#[test]
#[cfg(target_os = "linux")]
fn endless_text_is_rejected() {
    let sandbox = sandbox();
    let said = Transcript::of_rejected(
        &sandbox,
        &["store --config /dev/zero", "sweep /dev/zero", "store d.npy --labels /dev/zero", "plot /dev/zero"],
    );
    insta::assert_snapshot!(said);
}

#[test]
fn sizes_that_flags_claim_are_checked_first() {
    let sandbox = sandbox();
    sandbox.file("d.csv", "algorithm,median_ms,gb_per_s\n");
    let max = usize::MAX;
    let mut said = Transcript::new();
    for line in [
        "store d.npy --heads 1 --dim-head 1000000",
        &format!("store d.npy --heads {max} --dim-head {max}"),
        "store d.npy --heads 100 --dim-head 1000",
        "generate drift --out o.npy --tokens 8388609",
        &format!("generate drift --out o.npy --tokens {max}"),
        "generate needle --out o.npy --dim 1048577",
        &format!("store d.npy --repeat {max}"),
        &format!("generate repeats --out o.npy --sequences {max}"),
        &format!("generate recall --out o.npy --pairs {max}"),
        &format!("generate drift --out o.npy --segment {max}"),
        &format!("generate needle --out o.npy --needles {max}"),
        &format!("generate recall --out o.npy --parameters p --heads {max}"),
        "generate recall --out o.npy --tokens 8388608 --dim 64",
        "generate recall --out o.npy --tokens 2 --dim 8192 --parameters p",
        &format!("scan-bench --out o --runs {max}"),
        &format!("plot d.csv --smooth {max}"),
    ] {
        said.reject(&sandbox, line);
    }
    let line = "scan-bench --out o --steps ";
    let message = sandbox.rejected(&format!("{line}{}", vec!["1"; 200].join(",")));
    said.error(&format!("{line}1,1,1,…"), 2, &message);
    let line = format!("scan-bench --steps {max} --channels {max} --batch {max} --out o --no-plots");
    said.error(&line, 2, &without_max_bytes(&sandbox.rejected(&line)));
    insta::assert_snapshot!(said);
}

#[test]
fn sizes_that_a_few_bytes_claim_are_checked_first() {
    let sandbox = sandbox();
    let npy = |shape: &str| {
        let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
        let header = format!("{header:<117}\n");
        [b"\x93NUMPY\x01\0", &(header.len() as u16).to_le_bytes()[..], header.as_bytes()].concat()
    };
    sandbox.file("many.npy", npy("(1000000000, 0, 64)"));
    sandbox.file("wide.npy", npy("(0, 1000000000)"));
    sandbox.file("read.npy", npy("(20000, 0, 64)"));
    let mut said = Transcript::new();
    let line = "store many.npy --out o";
    let message = sandbox.rejected(line);
    assert!(message.contains("131072.0 GB"), "{message}");
    said.error(line, 2, &without_numbers(&message));
    said.reject(&sandbox, "store wide.npy --out o");
    // As many sequences share one memory where nothing is stored.
    sandbox.ok("retrieve read.npy --out read -q");

    // Half a gigabyte of zeros in half a megabyte.
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    archive.start_file("surplus.npy", options).unwrap();
    std::io::Write::write_all(&mut archive, &npy("(140000000, 1)")).unwrap();
    let zeros = vec![0; 1 << 20];
    let mut left = 560_000_000_usize;
    while left > 0 {
        let bytes = left.min(zeros.len());
        std::io::Write::write_all(&mut archive, &zeros[..bytes]).unwrap();
        left -= bytes;
    }
    sandbox.file("bomb.npz", archive.finish().unwrap().into_inner());
    let message = said.reject(&sandbox, "store d.npy --memory bomb.npz --chunk-size 4 --out o");
    assert!(message.contains("to_queries.weight"), "names are looked at first: {message}");

    // A header of ten megabytes.
    let header = format!("{{\"__metadata__\":{{\"a\":\"{}\"}}}}", "x".repeat(10 << 20));
    sandbox.file("long.safetensors", [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat());
    said.reject(&sandbox, "inspect long.safetensors");
    insta::assert_snapshot!(said);
}

#[test]
fn large_grids_are_rejected_in_time() {
    let sandbox = sandbox();
    sandbox.file("grid.toml", "data = 'd.npy'\n[grid]\nseed = 'range(0, 65536)'\nheads = [1, 2]\n");
    let mut said = Transcript::new();
    said.reject(&sandbox, "sweep grid.toml --dry-run");
    let list = |count: usize| (0..count).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
    sandbox.file("list.toml", format!("data = 'd.npy'\n[grid]\nseed = [{}]\n", list(65_537)));
    said.reject(&sandbox, "sweep list.toml --dry-run");
    let notes: Vec<_> = (0..4000).map(|i| format!("_n{i} = '{}'\n", "x".repeat(500))).collect();
    let notes = notes.concat();
    sandbox.file("notes.toml", format!("data = 'd.npy'\n{notes}[grid]\nseed = 'range(0, 65536)'\n"));
    let message = sandbox.rejected("sweep notes.toml --dry-run");
    // What they would take is an estimate, by the sizes of types.
    let masked = message.trim_end_matches(|c: char| c.is_ascii_digit());
    said.error("sweep notes.toml --dry-run", 2, &format!("{masked}N"));
    sandbox.file("text.toml", format!("data = 'd.npy'\n_n = '{}'\n", "x".repeat(5000)));
    said.reject(&sandbox, "sweep text.toml --dry-run");
    insta::assert_snapshot!(said);
}

#[test]
fn whole_numbers_keep_their_digits() {
    let sandbox = sandbox();
    sandbox.file("seeds.toml", "data = 'd.npy'\n[grid]\nseed = [18446744073709551615, 9007199254740993]\n");
    sandbox.ok("sweep seeds.toml --out s --no-plots -q");
    assert_eq!(sandbox.csv("s/results.csv").texts("seed"), ["18446744073709551615", "9007199254740993"]);
    sandbox.ok("store d.npy --seed 18446744073709551615 --no-plots --out one -q");
    let run = sandbox.csv("s/results.csv").texts("run")[0].to_owned();
    assert!(sandbox.bytes("one/metrics.csv") == sandbox.bytes(&format!("s/runs/{run}/metrics.csv")));
    sandbox.ok("sweep seeds.toml seed=18446744073709551614,range(9007199254740993,9007199254740995) --out t --no-plots -q");
    let seeds = ["18446744073709551614", "9007199254740993", "9007199254740994"];
    assert_eq!(sandbox.csv("t/results.csv").texts("seed"), seeds);
    sandbox.file("run.toml", "data = 'd.npy'\nseed = 18446744073709551615\nno_plots = true\n");
    sandbox.ok("store --config run.toml --out two -q");
    assert!(sandbox.bytes("one/metrics.csv") == sandbox.bytes("two/metrics.csv"));
    let mut said = Transcript::new();
    for text in ["seed = [18446744073709551616]", "seed = [-1]", "seed = ['5']"] {
        sandbox.file("wrong.toml", format!("data = 'd.npy'\n[grid]\n{text}\n"));
        said.given(text);
        said.reject(&sandbox, "sweep wrong.toml");
    }
    said.reject(&sandbox, "sweep seeds.toml seed=18446744073709551616 --out u");
    insta::assert_snapshot!(said);
}

#[test]
fn names_do_not_steer_a_terminal_or_break_a_figure() {
    let sandbox = sandbox();
    sandbox.file(
        "control.toml",
        "data = 'd.npy'\nheads = 2\nchunk_size = 8\n[grid]\ndecay = [0.1, 0.2, 0.3]\n[zip]\n\
         _n = [\"a\\u0001b\", \"a\\u0002b\", \"\\u001b[31md\\uFFFF\"]\nmomentum = [0, 0.5, 0.6]\n",
    );
    let shown = sandbox.ok("sweep control.toml --dry-run --out s").out;
    assert!(shown.contains("\\u{1b}[31m") && !shown.contains('\x1b'), "{shown:?}");
    sandbox.ok("sweep control.toml --out s -q --x decay --hue _n");
    for name in sandbox.names("s/plots") {
        let svg = String::from_utf8(sandbox.bytes(&format!("s/plots/{name}"))).unwrap();
        usvg::roxmltree::Document::parse(&svg).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(["a\\x01b", "a\\x02b", "\\x1b[31md\\xffff"].iter().all(|name| svg.contains(name)), "{name}");
    }
    let text = sandbox.ok("plot s --terminal --x decay --hue _n --quiet").out;
    assert!(text.contains("a\\x01b") && !text.contains(['\x01', '\x1b']), "{text:?}");
    let message = sandbox.rejected("store \x1b[31md.npy");
    assert!(message.starts_with("\\u{1b}[31md.npy"), "{message}");
    // Not in a file's name: it is an argument of clap's too.
    assert!(!sandbox.run("store d.npy --no\x1bsuch").err.contains('\x1b'));

    sandbox.ok("store d.npy --chunk-size 8 --out a\x1b/run --no-plots -q");
    let shown = sandbox.ok("inspect a\x1b/run/memory.safetensors").out;
    assert!(!shown.contains('\x1b'), "{shown:?}");
}

#[test]
fn the_same_name_twice_is_told_apart() {
    let sandbox = sandbox();
    for out in ["a/run", "b/run"] {
        sandbox.ok(&format!("store d.npy --chunk-size 4 --out {out} --no-plots -q"));
    }
    let svg = sandbox.ok("plot a/run b/run --out - --y surprise").out;
    assert!(svg.contains("a/run") && svg.contains("b/run"));
    let svg = sandbox.ok("plot a/run b/run --kind columns --out -").out;
    assert!(svg.contains("a/run, head 0") && svg.contains("b/run, head 0"));
    let files = sandbox.ok("plot a/run b/run --kind heads --out both").out;
    assert_eq!(files.lines().collect::<Vec<_>>(), ["both/a-run-heads.svg", "both/b-run-heads.svg"]);

    let header = "run,data,_note,status,loss_mean";
    let long = |end: &str| format!("{}{end}", "a note of the same beginning ".repeat(3));
    let row = |i: usize, data: &str, note: &str| format!("r{i},{data},{note},ok,{i}");
    let rows =
        [row(1, "a/d.npy", &long("one")), row(2, "b/d.npy", &long("two")), row(3, "a/d.npy", &long("two"))];
    sandbox.file("results.csv", format!("{header}\n{}\n", rows.join("\n")));
    let svg = sandbox.ok("plot results.csv --out - --y loss_mean --x data --hue _note").out;
    assert!(svg.contains("a/d.npy") && svg.contains("b/d.npy"), "{svg}");
    assert!(svg.contains("(1)") && svg.contains("(2)"), "{svg}");
}

#[test]
fn text_that_a_spreadsheet_would_run_stays_as_it_is() {
    let sandbox = sandbox();
    // As docs/reference/files.md has it: read back, the cells are what was written.
    let notes = ["=1+1", "@SUM(A1)", "-x", "+x", "a \\\"quote\\\", a comma", "two\\nlines", "\\ttab"];
    let list: Vec<_> = notes.iter().map(|note| format!("\"{note}\"")).collect();
    let seeds = (0..notes.len()).map(|i| i.to_string()).collect::<Vec<_>>().join(", ");
    sandbox.file(
        "notes.toml",
        format!("data = 'd.npy'\n[zip]\n_note = [{}]\nseed = [{seeds}]\n", list.join(", ")),
    );
    sandbox.ok("sweep notes.toml --out s --no-plots -q");
    let expected = ["=1+1", "@SUM(A1)", "-x", "+x", "a \"quote\", a comma", "two\nlines", "\ttab"];
    assert_eq!(sandbox.csv("s/results.csv").texts("_note"), expected);
}
