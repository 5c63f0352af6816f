//! `nmem store`: which files it writes and what is in them.

use half::f16;
use ndarray::{ArrayD, Axis};
use ndarray_npy::write_npy;
use nmem::engine::Work;
use nmem::real::Real;
use sha2::{Digest, Sha256};

use crate::support::{self, Golden, assert_close};
use crate::{COUNTS, Sandbox, Transcript, tokens};

const HEADS: &str = "--memory weights.safetensors --chunk-size 4";

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[test]
fn writes_its_files_and_no_others() {
    let sandbox = Sandbox::with_golden("heads");
    let line = format!("store seq.npy {HEADS}");
    let output = sandbox.ok(&line);
    assert_eq!(sandbox.names("results"), ["seq-store"], "the default directory");
    assert_eq!(
        sandbox.names("results/seq-store"),
        ["memory.safetensors", "metrics.csv", "plots", "run.json"]
    );
    let plots = sandbox.names("results/seq-store/plots");
    assert!(plots.contains(&"timeline.svg".to_owned()), "{plots:?}");
    for plot in plots {
        let svg = String::from_utf8(sandbox.bytes(&format!("results/seq-store/plots/{plot}"))).unwrap();
        assert!(svg.trim_end().ends_with("</svg>") && svg.contains("<svg"), "{plot}");
    }
    assert_eq!(output.err, "");
    // Between them are times.
    let shown: Vec<_> = output.out.lines().take(2).chain(output.out.lines().last()).collect();
    let mut said = Transcript::new();
    said.entry(&line, output.code, &shown.join("\n"));
    insta::assert_snapshot!(said);
}

#[test]
fn the_header_is_a_promise() {
    let sandbox = Sandbox::with_golden("heads");
    sandbox.ok(&format!("store seq.npy {HEADS} --out out"));
    let text = String::from_utf8(sandbox.bytes("out/metrics.csv")).unwrap();
    insta::assert_snapshot!(text.lines().next().unwrap(), @"sequence,chunk,head,start,end,loss,loss_before,loss_after,surprise,learning_rate,momentum,decay,surprise_norm,momentum_norm,update_norm,weight_norm,loss_zero,surprise_now,read_shift,key_cosine,surprise.0,momentum_norm.0,update_norm.0,surprise.1,momentum_norm.1,update_norm.1,surprise.2,momentum_norm.2,update_norm.2,surprise.3,momentum_norm.3,update_norm.3");
    assert!(!text.contains('"') && !text.contains('\r'), "plain numbers and line feeds");
}

#[test]
fn rows_are_by_sequence_chunk_and_head() {
    let sandbox = Sandbox::new();
    // Two and a half blocks of the engine, sequences beyond one of its groups.
    sandbox.npy("seq.npy", &tokens(&[35, 603, 4], 1));
    sandbox.ok("store seq.npy --chunk-size 8 --heads 2 --out out -q --no-plots");
    let table = sandbox.csv("out/metrics.csv");
    let mut expected = Vec::<[usize; 5]>::new();
    for (sequence, chunk) in (0..35).flat_map(|s| (0..75).map(move |c| (s, c))) {
        expected.extend((0..2).map(|head| [sequence, chunk, head, 8 * chunk, 8 * chunk + 8]));
    }
    let columns = COUNTS.map(|name| table.texts(name));
    let got: Vec<[usize; 5]> =
        (0..table.rows.len()).map(|i| columns.each_ref().map(|c| c[i].parse().unwrap())).collect();
    assert!(got == expected, "order of {} rows, expected {}", got.len(), expected.len());
}

/// Cells and elements against what the engine gives inside this process: no digit may be lost on the way.
fn same_as_the_engine<T: Real + std::str::FromStr + std::fmt::Debug>(dtype: &str) {
    let case = Golden::all().into_iter().find(|case| case.name == "heads").unwrap();
    let memory = support::memory::<T>(&case);
    let seq = case.seq.mapv(T::from_f64);
    let mut state = memory.initial_state(seq.dim().0);
    let work = Work::Online { read: &seq, store: &seq, probe: true };
    let (collected, _) = support::run(&memory, &mut state, work, seq.dim());

    let sandbox = Sandbox::with_golden("heads");
    sandbox.ok(&format!("retrieve seq.npy {HEADS} --online --probe --dtype {dtype} --out out -q --no-plots"));
    let table = sandbox.csv("out/metrics.csv");
    assert_eq!(table.rows.len(), collected.rows.len());
    for (cells, row) in table.rows.iter().zip(&collected.rows) {
        // Those of probes that were not asked for are empty.
        let values = row.quantities().map(|(_, value)| value);
        let weights = row.weights.iter().flat_map(|w| [w.surprise, w.momentum_norm, w.update_norm].map(Some));
        for (cell, value) in cells[5..].iter().zip(values.into_iter().chain(weights)) {
            let same = |value| cell.parse::<T>().is_ok_and(|read| read.to_f64() == value);
            assert!(value.map_or(cell.is_empty(), same), "{cell} and {value:?}");
        }
    }
    assert_eq!(sandbox.floats("out/retrieved.npy"), support::dyn3(&collected.retrieved));
}

#[test]
fn numbers_read_back_as_they_were() {
    same_as_the_engine::<f32>("f32");
    same_as_the_engine::<f64>("f64");
}

#[test]
fn without_probe_the_cells_are_empty() {
    let sandbox = Sandbox::with_golden("heads");
    sandbox.ok(&format!("store seq.npy {HEADS} --out with -q"));
    sandbox.ok(&format!("store seq.npy {HEADS} --out without --no-probe -q"));
    let [with, without] = ["with", "without"].map(|out| sandbox.csv(&format!("{out}/metrics.csv")));
    for name in &with.header {
        if name == "loss_before" || name == "loss_after" {
            assert!(without.texts(name).iter().all(|text| text.is_empty()), "{name}");
            assert!(with.numbers(name).iter().all(|x| x.is_finite()), "{name}");
        } else {
            assert_eq!(with.texts(name), without.texts(name), "{name}");
        }
    }
    assert!(sandbox.bytes("with/memory.safetensors") == sandbox.bytes("without/memory.safetensors"));
    let summary = &sandbox.json("without/run.json")["summary"];
    assert!(summary.get("loss").is_some() && summary.get("loss_before").is_none());
}

#[test]
fn run_json_has_what_repeats_the_run() {
    let sandbox = Sandbox::with_golden("past_weights");
    sandbox.file("labels.csv", "position,segment\n0,a\n5,b\n");
    let line = "store seq.npy --memory weights.safetensors --chunk-size 4 --past past.safetensors \
                --labels labels.csv --learning-rate 0.125 --decay-bias -1.5 --threads 2 --dtype f64 --out out";
    sandbox.ok(line);
    let run = sandbox.json("out/run.json");
    assert_eq!(run["nmem"], env!("CARGO_PKG_VERSION"));
    let commit = &run["commit"];
    assert!(commit.is_null() || commit.as_str().is_some_and(|commit| commit.len() >= 40), "{commit}");
    assert_eq!(run["command"], "store");
    let typed: Vec<_> =
        run["command_line"].as_array().unwrap()[1..].iter().map(|v| v.as_str().unwrap()).collect();
    assert_eq!(typed, line.split_whitespace().collect::<Vec<_>>());
    let config = &run["config"];
    for (key, value) in [("dim", 8), ("heads", 2), ("dim_head", 8), ("chunk_size", 4), ("repeat", 0)] {
        assert_eq!(config[key], value, "{key}");
    }
    assert_eq!(config["learning_rate"]["pinned"], 0.125);
    assert_eq!(config["momentum"]["learned"], 0.0);
    assert_eq!(config["decay"]["learned"], -1.5);
    assert_eq!((&run["device"], &run["threads"], &run["dtype"]), (&"cpu".into(), &2.into(), &"f64".into()));
    assert!(run["diverged"].is_null());
    let inputs = run["inputs"].as_array().unwrap();
    let mut roles: Vec<_> = inputs.iter().map(|input| input["role"].as_str().unwrap()).collect();
    roles.sort_unstable();
    assert_eq!(roles, ["data", "labels", "memory", "past"]);
    for input in inputs {
        assert_eq!(input["sha256"], sha256(&sandbox.bytes(input["path"].as_str().unwrap())), "{input}");
    }
    let data = inputs.iter().find(|input| input["role"] == "data").unwrap();
    assert_eq!(data["shape"], serde_json::json!(sandbox.f32s("seq.npy").shape()));
    assert_eq!(data["dtype"], "f32");
    for phase in ["load", "engine", "write", "plots"] {
        assert!(run["wall_s"][phase].as_f64().is_some_and(|seconds| seconds > 0.0), "{phase}");
    }
    assert_eq!(run["wall_s"]["engine_all"].as_array().unwrap().len(), 1);
    if cfg!(target_os = "linux") {
        let [all, anonymous] = ["peak_bytes", "peak_anon_bytes"].map(|key| run[key].as_u64().unwrap());
        assert!(0 < anonymous && anonymous < all, "{anonymous} of {all}");
    }
}

#[test]
fn repeating_times_the_engine_and_changes_nothing_else() {
    let sandbox = Sandbox::with_golden("heads");
    sandbox.ok(&format!("store seq.npy {HEADS} --out once -q"));
    for n in [3, 4] {
        sandbox.ok(&format!("store seq.npy {HEADS} --out again --repeat {n} -q --force"));
        let wall = sandbox.json("again/run.json")["wall_s"].clone();
        let mut all: Vec<f64> =
            wall["engine_all"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        assert_eq!(all.len(), n + 1);
        all.sort_by(f64::total_cmp);
        let median = f64::midpoint(all[n / 2], all[n.div_ceil(2)]);
        assert_eq!(wall["engine"], median, "{all:?}");
        for file in ["metrics.csv", "memory.safetensors", "plots/timeline.svg"] {
            assert!(
                sandbox.bytes(&format!("once/{file}")) == sandbox.bytes(&format!("again/{file}")),
                "{file}"
            );
        }
    }
}

#[test]
fn what_is_printed() {
    let sandbox = Sandbox::with_golden("heads");
    let quiet = sandbox.ok(&format!("store seq.npy {HEADS} --out quiet --no-plots -q"));
    assert_eq!((quiet.out, quiet.err), (String::new(), String::new()));
    assert_eq!(sandbox.names("quiet"), ["memory.safetensors", "metrics.csv", "run.json"]);
    assert_eq!(
        sandbox.json("quiet/run.json")["wall_s"]["plots"].as_f64().map(|seconds| seconds < 0.05),
        Some(true)
    );

    // -q omits the table, unless --format json requests it.
    for flags in ["", "-q"] {
        let json = sandbox.ok(&format!("store seq.npy {HEADS} --out json --format json --force {flags}"));
        assert_eq!(json.err, "");
        let printed: serde_json::Value = serde_json::from_str(&json.out).unwrap();
        assert_eq!(printed, sandbox.json("json/run.json"));
    }

    let verbose = sandbox.ok(&format!("store seq.npy {HEADS} --out verbose -v"));
    assert!(
        verbose.err.contains("\"chunk_size\":4") && verbose.err.contains("fused_update"),
        "configuration and phases of the engine: {}",
        verbose.err
    );
    let plain = sandbox.ok(&format!("store seq.npy {HEADS} --out plain"));
    // The last two are times and the directory.
    let but_last_two = |text: &str| {
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines[..lines.len() - 2].to_vec()
    };
    assert_eq!(but_last_two(&verbose.out), but_last_two(&plain.out));
}

/// `nmem … | head -0`: the results are on disk, nothing went wrong.
#[test]
#[cfg(unix)]
fn a_reader_that_has_gone_is_no_error() {
    let sandbox = Sandbox::with_golden("heads");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_nmem"));
    command.current_dir(sandbox.path(".")).args(["store", "seq.npy", "--chunk-size", "4", "--out", "out"]);
    let output = command.stdout(writer).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let output = output.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]));
    assert_eq!(sandbox.names("out"), ["memory.safetensors", "metrics.csv", "plots", "run.json"]);
}

#[test]
fn labels_are_drawn_and_change_nothing_else() {
    let sandbox = Sandbox::with_passages();
    let line = "store passages.npy --memory passages.safetensors --chunk-size 16 -q";
    sandbox.ok(&format!("{line} --out with --labels passages_labels.csv"));
    sandbox.ok(&format!("{line} --out without"));
    assert!(sandbox.bytes("with/metrics.csv") == sandbox.bytes("without/metrics.csv"));
    assert!(sandbox.bytes("with/plots/timeline.svg") != sandbox.bytes("without/plots/timeline.svg"));
}

/// A `.npy` of the same numbers in another type, order or byte order.
fn encoded(values: &ArrayD<f32>, descr: &str, fortran: bool) -> Vec<u8> {
    let mut data = Vec::new();
    let mut push = |x: f32| {
        let mut bytes = match &descr[1..] {
            "f2" => f16::from_f32(x).to_le_bytes().to_vec(),
            "f4" => x.to_le_bytes().to_vec(),
            _ => f64::from(x).to_le_bytes().to_vec(),
        };
        if descr.starts_with('>') {
            bytes.reverse();
        }
        data.extend(bytes);
    };
    if fortran {
        values.t().iter().for_each(|&x| push(x));
    } else {
        values.iter().for_each(|&x| push(x));
    }
    let order = if fortran { "True" } else { "False" };
    let shape: Vec<_> = values.shape().iter().map(ToString::to_string).collect();
    let text = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': ({}), }}", shape.join(", "));
    let text = format!("{text:<117}\n");
    [b"\x93NUMPY\x01\x00".as_slice(), &(text.len() as u16).to_le_bytes(), text.as_bytes(), &data].concat()
}

#[test]
fn every_type_and_order_gives_the_same_bits() {
    let sandbox = Sandbox::new();
    for shape in [&[37, 6][..], &[3, 37, 6]] {
        let values = tokens(shape, 2);
        sandbox.npy("seq.npy", &values);
        let line = "--chunk-size 5 --heads 2 -q --no-plots --force --probe --online";
        sandbox.ok(&format!("retrieve seq.npy {line} --out expected"));
        for (descr, fortran) in
            [("<f2", false), (">f2", true), ("<f4", true), (">f4", false), ("<f8", false), (">f8", true)]
        {
            sandbox.file("other.npy", encoded(&values, descr, fortran));
            sandbox.ok(&format!("retrieve other.npy {line} --out got"));
            for file in ["metrics.csv", "retrieved.npy", "memory.safetensors"] {
                let [got, expected] = ["got", "expected"].map(|out| sandbox.bytes(&format!("{out}/{file}")));
                assert!(got == expected, "{descr}, fortran {fortran}, shape {shape:?}: {file}");
            }
        }
    }
}

#[test]
fn standard_input_is_a_file() {
    let sandbox = Sandbox::with_golden("heads");
    sandbox.ok(&format!("store seq.npy {HEADS} --out file -q"));
    let piped = |line: &str, bytes: Vec<u8>| {
        let mut command = sandbox.command(line);
        command.write_stdin(bytes);
        Sandbox::finish(command)
    };
    let output = piped(&format!("store - {HEADS} -q"), sandbox.bytes("seq.npy"));
    assert_eq!((output.code, &output.err[..]), (Some(0), ""));
    assert_eq!(sandbox.names("results"), ["stdin-store"]);
    for file in ["metrics.csv", "memory.safetensors"] {
        assert!(
            sandbox.bytes(&format!("file/{file}")) == sandbox.bytes(&format!("results/stdin-store/{file}")),
            "{file}"
        );
    }
    let input = sandbox.json("results/stdin-store/run.json")["inputs"][0].clone();
    assert_eq!((&input["path"], &input["sha256"]), (&"-".into(), &sha256(&sandbox.bytes("seq.npy")).into()));
    let output = piped(
        "store seq.npy --memory - --chunk-size 4 -q --out memory",
        sandbox.bytes("weights.safetensors"),
    );
    assert_eq!((output.code, &output.err[..]), (Some(0), ""));
    assert!(sandbox.bytes("file/metrics.csv") == sandbox.bytes("memory/metrics.csv"));
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[5, 203, 64], 3));
    for threads in [1, 2, 7] {
        sandbox.ok(&format!(
            "retrieve seq.npy --online --probe --heads 4 --threads {threads} --out threads{threads} -q"
        ));
    }
    let plots = sandbox.names("threads1/plots").into_iter().map(|name| format!("plots/{name}"));
    let files = ["metrics.csv", "retrieved.npy", "memory.safetensors"].map(str::to_owned);
    for file in files.into_iter().chain(plots) {
        for other in ["threads2", "threads7"] {
            assert!(
                sandbox.bytes(&format!("threads1/{file}")) == sandbox.bytes(&format!("{other}/{file}")),
                "{other}/{file}"
            );
        }
    }
}

#[test]
fn a_random_memory_depends_on_its_seed_alone() {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[40, 8], 4));
    let memory = |flags: &str| {
        sandbox.ok(&format!("store seq.npy -q --no-plots --out out --force {flags}"));
        sandbox.tensors("out/memory.safetensors")
    };
    let first = memory("--seed 5");
    assert_eq!(first, memory("--seed 5 --init xavier --chunk-size 16 --heads 1 --dim-head 8 --no-probe"));
    assert_ne!(first["memory_model.weights.0"], memory("--seed 6")["memory_model.weights.0"]);
    assert_ne!(first["memory_model.weights.0"], memory("--seed 5 --init randn")["memory_model.weights.0"]);
    let norms = |flags: &str| {
        let names: Vec<_> = memory(flags).into_keys().filter(|name| name.contains("norm")).collect();
        names.join(" ")
    };
    assert_eq!(norms(""), "post_rmsnorm.weight retrieve_norm.weight store_norm.weight");
    assert_eq!(norms("--no-pre-norm"), "post_rmsnorm.weight");
    assert_eq!(norms("--no-post-norm"), "retrieve_norm.weight store_norm.weight");
    // Written as drawn: using it as a file of parameters is the same run.
    let parameters: std::collections::BTreeMap<_, _> =
        first.into_iter().filter(|(name, _)| !name.starts_with("state.")).collect();
    crate::write_tensors(&sandbox.path("drawn.safetensors"), &parameters);
    sandbox.ok("store seq.npy -q --out drawn --seed 5");
    sandbox.ok("store seq.npy -q --out file --memory drawn.safetensors --chunk-size 16");
    assert!(sandbox.bytes("drawn/metrics.csv") == sandbox.bytes("file/metrics.csv"));
}

#[test]
fn fixed_values_and_biases_of_gates() {
    let sandbox = Sandbox::with_golden("heads");
    let run = |flags: &str| {
        sandbox.ok(&format!("store seq.npy {HEADS} -q --no-plots --dtype f64 --out out --force {flags}"));
        sandbox.csv("out/metrics.csv")
    };
    let plain = run("");
    let fixed = run("--learning-rate 2.5 --momentum 0 --decay 1");
    for (column, value) in [("learning_rate", 2.5), ("momentum", 0.0), ("decay", 1.0)] {
        assert!(fixed.numbers(column).iter().all(|&x| x == value), "{column}");
    }
    assert_eq!(fixed.texts("surprise"), plain.texts("surprise"));
    // η = 0 and α = 1: each chunk leaves its own step and nothing else.
    let [update, step] = ["update_norm", "surprise_norm"].map(|name| fixed.by_head(name, 2, 4));
    assert_close("one step", update.view(), step.view(), 0.0, 1e-14);

    let logit = |x: f64| (x / (1.0 - x)).ln();
    let biased = run("--learning-rate-bias 0.5 --momentum-bias -2 --decay-bias 1.25");
    let of_rate = |x: f64| logit(-x.ln() / 15.0);
    for (column, bias, to_logit) in [
        ("learning_rate", 0.5, &of_rate as &dyn Fn(f64) -> f64),
        ("momentum", -2.0, &logit),
        ("decay", 1.25, &logit),
    ] {
        for (x, before) in biased.numbers(column).into_iter().zip(plain.numbers(column)) {
            assert!((to_logit(x) - to_logit(before) - bias).abs() < 1e-9, "{column}: {before} became {x}");
        }
    }
    let smaller = biased.numbers("learning_rate").into_iter().zip(plain.numbers("learning_rate"));
    assert!(smaller.into_iter().all(|(x, before)| x < before), "a larger logit is a smaller rate");
}

#[test]
fn fewer_tokens_than_a_chunk_are_kept_and_said() {
    let sandbox = Sandbox::new();
    sandbox.npy("three.npy", &tokens(&[3, 4], 5));
    let output = sandbox.ok("store three.npy --chunk-size 4 --out out");
    let mut said = Transcript::new();
    said.ran(&sandbox, "store three.npy --chunk-size 4 --out out", &output);
    assert!(sandbox.csv("out/metrics.csv").rows.is_empty());
    let kept = sandbox.tensors("out/memory.safetensors")["state.left_over"].floats();
    assert_eq!(kept, sandbox.floats("three.npy").insert_axis(Axis(0)));
    assert_eq!(sandbox.json("out/run.json")["life_tokens"], 3);
    // A memory that has stored something says otherwise.
    for (out, from, more) in [("five", "out", 2), ("six", "five", 1)] {
        sandbox.npy("some.npy", &tokens(&[more, 4], 6));
        let line = format!("store some.npy --memory {from}/memory.safetensors --out {out}");
        said.ran(&sandbox, &line, &sandbox.ok(&line));
    }
    insta::assert_snapshot!(said);
}

/// In anonymous memory the length of the sequence must not show: inputs are mapped, results streamed.
#[test]
#[cfg(target_os = "linux")]
fn memory_use_is_flat_in_tokens() {
    let sandbox = Sandbox::new();
    let all = tokens(&[200_000, 16], 6);
    let peak = |n: usize, dtype: &str| {
        write_npy(sandbox.path("seq.npy"), &all.slice_axis(Axis(0), (0..n).into())).unwrap();
        sandbox.ok(&format!(
            "store seq.npy --heads 4 --chunk-size 16 --threads 2 --dtype {dtype} --out out --force -q"
        ));
        sandbox.json("out/run.json")["peak_anon_bytes"].as_u64().unwrap()
    };
    // Figures keep as many points of a line as they can show; 20,000 tokens have fewer.
    let (short, long) = (peak(60_000, "f32"), peak(200_000, "f32"));
    assert!(long < 64 << 20, "{long} bytes");
    // What the allocator keeps varies by some hundred kilobytes from run to run.
    assert!(long.saturating_sub(short) < 1 << 20, "{short} bytes with 60,000 tokens, {long} with 200,000");
}

/// Files of different lengths: each has the results that it has alone, and one summary.
#[test]
fn several_sequences_are_runs_of_their_own() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("all")).unwrap();
    for (name, length) in [("all/a.npy", 40), ("all/b.npy", 57), ("c.npy", 16)] {
        sandbox.npy(name, &tokens(&[length, 8], length as u64));
    }
    let output = sandbox.ok("store all c.npy --heads 2 --chunk-size 4 --no-plots");
    assert_eq!(sandbox.names("results/all-store"), ["a", "b", "c", "summary.csv"]);
    for (name, file) in [("a", "all/a.npy"), ("b", "all/b.npy"), ("c", "c.npy")] {
        sandbox.ok(&format!("store {file} --heads 2 --chunk-size 4 --no-plots --out alone-{name}"));
        for result in ["metrics.csv", "memory.safetensors"] {
            let [got, expected] =
                ["results/all-store/", "alone-"].map(|at| sandbox.bytes(&format!("{at}{name}/{result}")));
            assert!(got == expected, "{name}/{result}");
        }
    }
    let summary = sandbox.csv("results/all-store/summary.csv");
    insta::assert_snapshot!(summary.header.join(","), @"data,status,sequences,tokens,rows,loss,loss_before,loss_after,surprise,learning_rate,momentum,decay,surprise_norm,momentum_norm,update_norm,weight_norm,loss_zero,surprise_now,read_shift,key_cosine");
    assert_eq!(summary.texts("data"), ["all/a.npy", "all/b.npy", "c.npy"]);
    assert_eq!(summary.texts("tokens"), ["40", "57", "16"]);
    for (name, got) in ["a", "b", "c"].into_iter().zip(summary.numbers("loss")) {
        assert_eq!(
            got,
            sandbox.json(&format!("alone-{name}/run.json"))["summary"]["loss"]["mean"].as_f64().unwrap()
        );
    }
    let lines: Vec<_> = output.out.lines().collect();
    assert_eq!(lines.len(), 1 + 3 + 1 + 2, "{}", output.out);
    assert!(lines[4].starts_with("mean ± 95 %"), "{}", output.out);
    assert_eq!(lines[5], "3 of 3 sequences stored, 0 of them before");
    // The same command again stores nothing, and one more file costs only itself.
    let before = sandbox.bytes("results/all-store/a/run.json");
    sandbox.npy("all/d.npy", &tokens(&[8, 8], 1));
    let again = sandbox.ok("store all c.npy --heads 2 --chunk-size 4 --no-plots");
    assert!(again.out.contains("4 of 4 sequences stored, 3 of them before"), "{}", again.out);
    assert_eq!(sandbox.bytes("results/all-store/a/run.json"), before);
    // A sequence that cannot be stored costs itself alone.
    sandbox.npy("odd.npy", &tokens(&[8, 3], 1));
    let line = "store c.npy odd.npy --heads 2 --chunk-size 4 --no-plots --out some --format json";
    let output = sandbox.run(line);
    assert_eq!(output.code, Some(1));
    let json: serde_json::Value = serde_json::from_str(&output.out).unwrap();
    assert_eq!((json["sequences"].as_u64(), json["runs"].as_array().unwrap().len()), (Some(2), 1));
    let mut said = Transcript::new();
    said.ran(&sandbox, line, &output);
    std::fs::create_dir(sandbox.path("none")).unwrap();
    for line in [
        "store none",
        "store c.npy all/a.npy -",
        "store c.npy all --labels x.csv",
        "store c.npy results/../c.npy",
        "store c.npy absent.npy --out some --seed 5",
    ] {
        let output = sandbox.run(line);
        said.ran(&sandbox, line, &output);
    }
    insta::assert_snapshot!(said);
}

#[test]
fn a_run_is_repeated_from_its_run_json() {
    let sandbox = Sandbox::with_golden("heads");
    sandbox.file("some.toml", "chunk_size = 4\nseed = 3\n");
    sandbox.ok("store seq.npy --config some.toml --heads 2 --no-plots -q --out run");
    insta::assert_snapshot!(sandbox.ok("repeat run").out, @"
    metrics.csv          same bits
    memory.safetensors   same bits
    results              run-repeat
    ");
    assert_eq!(sandbox.json("run-repeat/run.json")["config"], sandbox.json("run/run.json")["config"]);
    // A repetition can be repeated, and a run of a sweep, and a read.
    sandbox.ok("repeat run-repeat/run.json --out third");
    sandbox.ok("sweep data=seq.npy chunk_size=4 seed=1,2 --no-plots --out swept -q");
    let id = sandbox.names("swept/runs")[0].clone();
    let output = sandbox.ok(&format!("repeat swept/runs/{id} --out fourth"));
    assert!(output.out.starts_with("metrics.csv          same bits\n"), "{}", output.out);
    sandbox.ok("retrieve seq.npy --memory run/memory.safetensors --out read -q");
    assert!(sandbox.ok("repeat read").out.starts_with("retrieved.npy        same bits\n"));
    // One of several.
    sandbox.npy("other.npy", &tokens(&[24, 8], 1));
    sandbox.ok("store seq.npy other.npy --chunk-size 4 --out many -q --no-plots");
    assert!(sandbox.ok("repeat many/other").out.ends_with("results              many/other-repeat\n"));
    let mut said = Transcript::new();
    let text = String::from_utf8(sandbox.bytes("run/metrics.csv")).unwrap();
    sandbox.file("run/metrics.csv", text.replacen('1', "2", 1));
    let output = sandbox.run("repeat run --out fifth");
    said.entry("repeat run --out fifth", output.code, &output.out);
    sandbox.npy("seq.npy", &tokens(&[8, 8], 1));
    for line in ["repeat run --out sixth", "repeat absent", "repeat swept"] {
        said.reject(&sandbox, line);
    }
    std::fs::remove_file(sandbox.path("seq.npy")).unwrap();
    said.reject(&sandbox, "repeat run --out sixth");
    insta::assert_snapshot!(said);
}

#[test]
fn a_divergence_among_several_sequences_fails_every_time() {
    let sandbox = Sandbox::new();
    sandbox.npy("a.npy", &tokens(&[40, 8], 1));
    sandbox.npy("b.npy", &tokens(&[40, 8], 2));
    let line = "store a.npy b.npy --chunk-size 4 --learning-rate 1e39 --no-plots --out all";
    let output = sandbox.run(line);
    assert_eq!(output.code, Some(1), "{}", output.err);
    let again = sandbox.run(line);
    assert_eq!(again.code, Some(1), "{}", again.err);
    assert!(again.out.contains("2 of 2 sequences stored, 2 of them before"), "{}", again.out);
    insta::assert_snapshot!(again.err, @"
    error: a.npy: diverged when it was stored before; use --force to store it again
    error: b.npy: diverged when it was stored before; use --force to store it again
    ");
}
