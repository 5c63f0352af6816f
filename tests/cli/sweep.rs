//! `nmem sweep`: the rows of a grid, what is kept of them, and that nothing is run twice or lost.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::{CommandOutput, Sandbox, Table, Transcript, counts, tokens, without_runs};

/// Columns that hold timings.
const TIMED: [&str; 2] = ["tokens_per_s", "wall_s"];

const GRID: &str = "
data = 'seq.npy'
[fixed]
heads = 2
[grid]
chunk_size = [4, 8]
seed = [0, 1, 2]
";

fn sandbox(grid: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[40, 8], 1));
    sandbox.file("grid.toml", grid);
    sandbox
}

/// results.csv without its timings.
pub fn untimed(table: &Table) -> Vec<Vec<String>> {
    let kept: Vec<usize> = (0..table.header.len()).filter(|&i| !TIMED.contains(&&*table.header[i])).collect();
    let rows = std::iter::once(&table.header).chain(&table.rows);
    rows.map(|row| kept.iter().map(|&i| row[i].clone()).collect()).collect()
}

fn results(sandbox: &Sandbox, directory: &str) -> Table {
    sandbox.csv(&format!("{directory}/results.csv"))
}

/// Counts that a sweep prints first: runs in all, done before, to do now.
fn runs(output: &CommandOutput) -> Vec<usize> {
    counts(output.out.lines().next().unwrap_or_default())
}

/// Finished runs on record, those that were run twice counted twice.
fn recorded(sandbox: &Sandbox, directory: &str) -> usize {
    let records = format!("{directory}/records");
    let lines = |name: &String| {
        let text = String::from_utf8(sandbox.bytes(&format!("{records}/{name}"))).unwrap();
        text.matches('\n').count()
    };
    sandbox.names(&records).iter().map(lines).sum()
}

#[test]
fn the_first_key_is_slowest_and_columns_are_a_promise() {
    let sandbox = sandbox(GRID);
    let output = sandbox.ok("sweep grid.toml --no-plots");
    assert_eq!(runs(&output), [6, 0, 6]);
    let directory = "results/grid-sweep";
    assert_eq!(
        sandbox.names(directory),
        ["joblog.tsv", "plans", "records", "results.csv", "runs", "summary.csv"]
    );
    let table = results(&sandbox, directory);
    insta::assert_snapshot!(table.header.join(","), @"run,chunk_size,seed,data,heads,status,tokens,chunks,loss_final,loss_mean,loss_before_final,loss_before_mean,loss_after_final,loss_after_mean,surprise_mean,learning_rate_mean,momentum_mean,decay_mean,surprise_norm_final,momentum_norm_final,update_norm_final,weight_norm_final,first_unstable_chunk,diverged,retained_ratio,unstored_ratio,loss_zero_mean,recall_mean_square,recall_ratio,recall_cosine,recall_r2,recall_accuracy,recall_top_k_accuracy,recall_in_set_accuracy,recall_distinct_answers,recall_chance,recall_kept_accuracy,recall_updated_accuracy,recall_stale,error,engine_bytes,tokens_per_s,wall_s");
    assert_eq!(table.texts("chunk_size"), ["4", "4", "4", "8", "8", "8"]);
    assert_eq!(table.texts("seed"), ["0", "1", "2", "0", "1", "2"]);
    assert_eq!(table.texts("chunks"), ["10", "10", "10", "5", "5", "5"]);
    assert_eq!(
        sandbox.names(&format!("{directory}/runs/{}", table.texts("run")[0])),
        ["metrics.csv", "run.json"]
    );
    let summary = sandbox.csv(&format!("{directory}/summary.csv"));
    assert_eq!(summary.texts("chunk_size"), ["4", "8"]);
    assert_eq!(summary.texts("n"), ["3", "3"]);
    let losses = table.numbers("loss_mean");
    let mean = losses[..3].iter().sum::<f64>() / 3.0;
    assert!((summary.numbers("loss_mean.mean")[0] - mean).abs() < 1e-12 * mean, "{losses:?}");
    let (low, high) = (summary.numbers("loss_mean.ci95_low")[0], summary.numbers("loss_mean.ci95_high")[0]);
    assert!(low < mean && mean < high, "{low} {high}");
    let joblog = String::from_utf8(sandbox.bytes(&format!("{directory}/joblog.tsv"))).unwrap();
    assert!(joblog.lines().all(|line| line.split('\t').count() == 9), "{joblog}");
    assert!(
        joblog.contains("\tnmem store seq.npy --chunk-size 4 --heads 2 --seed 0 --no-plots --out "),
        "{joblog}"
    );
}

#[test]
fn a_row_is_the_run_that_its_command_line_does() {
    let sandbox = sandbox(GRID);
    sandbox.ok("sweep grid.toml --keep all --no-plots --out sweep");
    let joblog = String::from_utf8(sandbox.bytes("sweep/joblog.tsv")).unwrap();
    let line =
        joblog.lines().find(|line| line.contains("--chunk-size 8") && line.contains("--seed 2")).unwrap();
    let command = line.split('\t').next_back().unwrap().strip_prefix("nmem ").unwrap();
    sandbox.ok(command);
    let id = command.split(' ').next_back().unwrap();
    for file in ["metrics.csv", "memory.safetensors"] {
        assert_eq!(
            sandbox.bytes(&format!("{id}/{file}")),
            sandbox.bytes(&format!("sweep/runs/{id}/{file}")),
            "{file}"
        );
    }
    // The numbers of the row are those of its metrics.
    let (metrics, table) = (sandbox.csv(&format!("{id}/metrics.csv")), results(&sandbox, "sweep"));
    let row = table.texts("run").iter().position(|run| *run == id).unwrap();
    for (column, from, per_token) in [
        ("loss_final", "loss", 8.0),
        ("loss_before_final", "loss_before", 8.0),
        ("loss_after_final", "loss_after", 8.0),
        ("weight_norm_final", "weight_norm", 1.0),
    ] {
        let last = &metrics.numbers(from)[metrics.rows.len() - 2..];
        let expected = f64::midpoint(last[0], last[1]) / per_token;
        let got = table.numbers(column)[row];
        assert!((got - expected).abs() <= 1e-6 * expected.abs(), "{column}: {got} for {expected}");
    }
    let mean = metrics.numbers("loss_before").iter().sum::<f64>() / metrics.rows.len() as f64 / 8.0;
    assert!((table.numbers("loss_before_mean")[row] - mean).abs() <= 1e-6 * mean);
    // Tokens of one sequence per second of the engine.
    let engine = sandbox.json(&format!("sweep/runs/{id}/run.json"))["wall_s"]["engine"].as_f64().unwrap();
    let rate = table.numbers("tokens_per_s")[row];
    assert!((rate * engine - 40.0).abs() < 1e-6 * 40.0, "{rate} tokens per second for {engine} s");
    // Nothing waits for a GPU here, so that the time of the row is that of joblog.tsv, which has milliseconds.
    let took: f64 = line.split('\t').nth(3).unwrap().parse().unwrap();
    assert!((table.numbers("wall_s")[row] - took).abs() < 1e-3, "{took} s");
}

#[test]
fn results_do_not_depend_on_how_many_run_at_once_nor_on_the_order() {
    let sandbox = sandbox(GRID);
    sandbox.ok("sweep grid.toml -j 1 --no-plots --out one");
    sandbox.ok("sweep grid.toml -j 4 --no-plots --out four");
    // The other way round, and a part first.
    sandbox.ok("sweep grid.toml seed=2,1 chunk_size=8,4 --no-plots --out parts");
    sandbox.ok("sweep grid.toml --no-plots --out parts");
    let one = untimed(&results(&sandbox, "one"));
    assert_eq!(one, untimed(&results(&sandbox, "four")));
    assert_eq!(one, untimed(&results(&sandbox, "parts")));
    assert_eq!(recorded(&sandbox, "parts"), 6, "none was run twice");
    for id in sandbox.names("one/runs") {
        let file = format!("runs/{id}/metrics.csv");
        assert_eq!(sandbox.bytes(&format!("one/{file}")), sandbox.bytes(&format!("four/{file}")));
    }
}

#[test]
fn what_has_finished_is_not_run_again_unless_its_input_changed() {
    let sandbox = sandbox(GRID);
    sandbox.ok("sweep grid.toml --no-plots --out out");
    let before = sandbox.contents();
    let again = sandbox.ok("sweep grid.toml --no-plots --out out");
    assert_eq!(runs(&again), [6, 6, 0]);
    assert_eq!(sandbox.contents(), before, "not a byte");
    // More is wanted of one sweep than was kept.
    sandbox.ok("sweep grid.toml --no-plots --out out --keep all");
    assert_eq!(recorded(&sandbox, "out"), 12);

    sandbox.npy("seq.npy", &tokens(&[40, 8], 2));
    let changed = sandbox.ok("sweep grid.toml --no-plots --out out");
    assert_eq!(runs(&changed), [6, 0, 6]);
    let table = results(&sandbox, "out");
    assert_eq!(table.rows.len(), 6, "rows of the old input are replaced");
    sandbox.ok("sweep grid.toml --no-plots --out fresh");
    assert_eq!(untimed(&table), untimed(&results(&sandbox, "fresh")));

    sandbox.ok("sweep grid.toml --no-plots --out out --force");
    assert_eq!(recorded(&sandbox, "out"), 6, "anew");
}

#[test]
fn a_second_sweep_into_the_directory_adds_to_it() {
    let sandbox = sandbox(GRID);
    sandbox.ok("sweep grid.toml --no-plots --out out");
    sandbox.ok("sweep grid.toml chunk_size=16 --no-plots --out out");
    let table = results(&sandbox, "out");
    assert_eq!(table.texts("chunk_size")[..3], ["16"; 3], "the present plan first");
    let ids: BTreeSet<&str> = table.texts("run").into_iter().collect();
    assert_eq!((table.rows.len(), ids.len()), (9, 9));
    // Each plan has its own file. The same plan again has the same one.
    let plans = || sandbox.names("out/plans").into_iter().filter(|name| name != ".lock").count();
    assert_eq!(plans(), 2);
    sandbox.ok("sweep grid.toml --no-plots --out out");
    assert_eq!(plans(), 2);
}

#[test]
fn sweeps_of_other_files_and_other_work_keep_their_rows_apart() {
    let sandbox = sandbox(GRID);
    for (directory, seed) in [("a", 2), ("b", 3)] {
        std::fs::create_dir(sandbox.path(directory)).unwrap();
        sandbox.npy(&format!("{directory}/seq.npy"), &tokens(&[40, 8], seed));
        sandbox.file(&format!("{directory}/grid.toml"), "data = 'seq.npy'\n[grid]\nseed = [0, 1]\n");
        sandbox.ok(&format!("sweep {directory}/grid.toml --out both --no-plots"));
    }
    let table = results(&sandbox, "both");
    let data = table.texts("data");
    assert_eq!(data[..2], ["seq.npy"; 2]);
    assert!(data.len() == 4 && data[2..].iter().all(|path| path.ends_with("a/seq.npy")), "{data:?}");
    assert_eq!(sandbox.csv("both/summary.csv").texts("n"), ["2", "2"]);

    sandbox.ok("sweep a/grid.toml run=store --out kinds --no-plots");
    sandbox.ok("sweep a/grid.toml run=retrieve-online --out kinds --no-plots");
    assert_eq!(results(&sandbox, "kinds").texts("online"), ["true", "true", "", ""]);
    assert_eq!(sandbox.csv("kinds/summary.csv").texts("n"), ["2", "2"]);
}

#[test]
fn a_directory_that_another_process_just_created_is_resumed() {
    let sandbox = sandbox(GRID);
    std::fs::create_dir_all(sandbox.path("out/plans")).unwrap();
    sandbox.ok("sweep grid.toml --out out --no-plots");
    assert_eq!(results(&sandbox, "out").rows.len(), 6);
}

/// A record that cannot be read is a run that is missing: the others are kept, and the same command runs it again.
#[test]
fn records_that_cannot_be_read_cost_their_runs_alone() {
    let sandbox = sandbox(GRID);
    sandbox.ok("sweep grid.toml --out out --no-plots -q -j 1");
    let whole = untimed(&results(&sandbox, "out"));
    let name = format!("out/records/{}", sandbox.names("out/records")[0]);
    let lines: Vec<String> =
        String::from_utf8(sandbox.bytes(&name)).unwrap().lines().map(str::to_owned).collect();
    // The second is torn within its first key, with the third appended to it.
    let (start, rest) = (&lines[1][..4], lines[2..].join("\n"));
    sandbox.file(&name, format!("{}\n{start}{rest}\n", lines[0]));
    let output = sandbox.run("sweep --collect out --no-plots");
    assert_eq!(output.code, Some(1), "{}", output.err);
    let errors: Vec<_> = output.err.lines().collect();
    assert!(errors.len() == 3 && errors[0].contains(&name), "{}", output.err);
    let mut said = Transcript::new();
    let err = without_runs(&output.err.replace(&name, "out/records/RECORD"));
    said.entry("sweep --collect out --no-plots", output.code, &err);
    insta::assert_snapshot!(said);
    let output = sandbox.ok("sweep grid.toml --out out --no-plots");
    assert_eq!(runs(&output), [6, 4, 2]);
    assert_eq!(untimed(&results(&sandbox, "out")), whole);
}

/// Only the newest plan is damaged: the one before it is collected, with a warning.
#[test]
fn plans_that_cannot_be_read_are_skipped() {
    let sandbox = sandbox(GRID);
    sandbox.ok("sweep grid.toml --out out --no-plots -q");
    sandbox.file("out/plans/0123456789ab.json", "{\"keys\":");
    let output = sandbox.ok("sweep --collect out --no-plots");
    let mut said = Transcript::new();
    said.ran(&sandbox, "sweep --collect out --no-plots", &output);
    insta::assert_snapshot!(said);
    sandbox.ok("sweep grid.toml --out out --no-plots -q");
}

#[test]
fn failures_are_recorded_listed_and_tried_again() {
    let sandbox = sandbox(
        "data = 'seq.npy'\n[grid]\nheads = [2, 3]\nseed = [0, 1]\n[[run]]\nheads = 2\nlearning_rate = 1e39\n",
    );
    let output = sandbox.run("sweep grid.toml --no-plots --out out");
    assert_eq!(output.code, Some(1), "{}", output.err);
    let errors: Vec<&str> = output.err.lines().collect();
    assert_eq!(errors.len(), 3, "{}", output.err);
    assert!(errors[0].contains("heads=3") && errors[2].contains("learning_rate=1e39"), "{}", output.err);
    let table = results(&sandbox, "out");
    // Which quantity is the first that overflows, and to what, may differ between processors.
    let run = sandbox.json(&format!("out/runs/{}/run.json", table.texts("run")[4]));
    let [quantity, value] = ["quantity", "value"].map(|key| run["diverged"][key].as_str().unwrap());
    let err = output.err.replace(quantity, "QUANTITY").replace(value, "VALUE");
    let mut said = Transcript::new();
    said.entry("sweep grid.toml --no-plots --out out", output.code, &without_runs(&err));
    insta::assert_snapshot!(said);
    assert_eq!(table.texts("status"), ["ok", "ok", "failed", "failed", "diverged"]);
    assert_eq!(table.texts("diverged"), ["false", "false", "", "", "true"]);
    assert_eq!(table.texts("loss_mean")[2], "", "never 0 for none");

    let again = sandbox.run("sweep grid.toml --no-plots --out out");
    assert_eq!(again.code, Some(1));
    assert_eq!(runs(&again), [5, 3, 2]);
    assert_eq!(untimed(&table), untimed(&results(&sandbox, "out")));

    let fast = sandbox.run("sweep grid.toml heads=3,2 -j 1 --fail-fast --no-plots --out fast");
    assert_eq!(fast.code, Some(1), "{}", fast.err);
    assert_eq!(results(&sandbox, "fast").texts("status"), ["failed"]);
}

#[test]
fn explicit_rows_zips_and_the_command_line() {
    let sandbox = sandbox(
        "data = 'seq.npy'\n[zip]\nlearning_rate = [0.1, 0.2]\ndecay = [0.3, 0.4]\n[grid]\nseed = 'range(0, 2)'\n[[run]]\nlearning_rate = 0.5\n",
    );
    let rows = |arguments: &str| -> Vec<String> {
        let output = sandbox.ok(&format!("sweep grid.toml {arguments} --dry-run --format json"));
        let runs: serde_json::Value = serde_json::from_str(&output.out).unwrap();
        let text = |run: &serde_json::Value| {
            let value = |key: &str| run["parameters"][key].as_str().unwrap_or("-").to_owned();
            ["learning_rate", "decay", "seed"].map(value).join(" ")
        };
        runs.as_array().unwrap().iter().map(text).collect()
    };
    assert_eq!(rows(""), ["0.1 0.3 0", "0.1 0.3 1", "0.2 0.4 0", "0.2 0.4 1", "0.5 - -"]);
    assert_eq!(rows("seed=7"), ["0.1 0.3 7", "0.2 0.4 7", "0.5 - 7"]);
    assert_eq!(
        rows("seed=7 learning_rate=0,1 decay=0"),
        ["0 0 7", "1 0 7"],
        "of the explicit row's two none is new"
    );
    assert!(!sandbox.path("results").exists(), "a dry run writes nothing");
}

#[test]
fn past_weights_are_those_of_a_store() {
    let sandbox = Sandbox::with_golden("past_weights");
    let settings =
        "data = 'seq.npy'\nmemory = 'weights.safetensors'\npast = 'past.safetensors'\nchunk_size = 4\n";
    sandbox.file("grid.toml", format!("{settings}[grid]\ndecay = [0.1, 0.2]\n"));
    sandbox.ok("sweep grid.toml --out swept --no-plots");
    for (run, decay) in results(&sandbox, "swept").texts("run").into_iter().zip(["0.1", "0.2"]) {
        sandbox.ok(&format!(
            "store seq.npy --memory weights.safetensors --past past.safetensors --chunk-size 4 --decay {decay} --out {run} --no-plots"
        ));
        let of = |directory: &str| sandbox.bytes(&format!("{directory}/metrics.csv"));
        assert!(of(run) == of(&format!("swept/runs/{run}")), "decay {decay}");
    }
}

#[test]
fn notes_are_columns_and_nothing_else() {
    let sandbox = sandbox("data = 'seq.npy'\n[zip]\n_width = [0.5, 'two']\nseed = [1, 2]\n");
    sandbox.ok("sweep grid.toml --out a --no-plots");
    let table = results(&sandbox, "a");
    assert_eq!(table.texts("_width"), ["0.5", "two"]);
    // Another note is no other run.
    let output = sandbox.ok("sweep grid.toml _width=3,4 --out a --no-plots");
    assert_eq!(runs(&output), [2, 2, 0]);
    let again = results(&sandbox, "a");
    assert_eq!((again.texts("_width"), again.texts("run")), (vec!["3", "4"], table.texts("run")));
}

#[test]
fn a_key_of_the_zip_stays_in_it() {
    let sandbox = sandbox("data = 'seq.npy'\n[zip]\nlearning_rate = [0.1, 0.2]\ndecay = [0.3, 0.4]\n");
    let said = Transcript::of_rejected(&sandbox, &["sweep grid.toml decay=0.1,0.2,0.3"]);
    insta::assert_snapshot!(said);
    let output = sandbox.ok("sweep grid.toml decay=0.7,0.8 --dry-run");
    assert_eq!(counts(output.out.lines().last().unwrap()), [2, 0], "{}", output.out);
}

#[test]
fn paths_in_the_file_are_relative_to_it_and_online_runs_read() {
    let sandbox = sandbox(GRID);
    std::fs::create_dir(sandbox.path("deep")).unwrap();
    sandbox.file(
        "deep/sweep.toml",
        "run = 'retrieve-online'\ndata = '../seq.npy'\n[grid]\nprobe = [true, false]\n",
    );
    sandbox.ok("sweep deep/sweep.toml --keep all --no-plots");
    let table = results(&sandbox, "results/deep-sweep");
    assert_eq!(table.texts("data"), ["../seq.npy"; 2], "as written");
    assert!(!table.texts("loss_before_mean")[0].is_empty());
    assert_eq!(table.texts("loss_before_mean")[1], "");
    let files = sandbox.names(&format!("results/deep-sweep/runs/{}", table.texts("run")[0]));
    assert_eq!(files, ["memory.safetensors", "metrics.csv", "retrieved.npy", "run.json"]);
    // On the command line they are relative to where one is.
    sandbox.ok("sweep deep/sweep.toml data=seq.npy --no-plots --out here");
    assert_eq!(results(&sandbox, "here").texts("run"), table.texts("run"), "the same runs, by content");
}

#[test]
fn the_first_unstable_chunk_is_where_writing_made_it_worse() {
    let sandbox = sandbox(
        "data = 'seq.npy'\n[fixed]\nheads = 2\nchunk_size = 4\ndecay = 0.0\nmomentum = 0.9\n[grid]\nlearning_rate = [0.0, 3.0]\n",
    );
    sandbox.ok("sweep grid.toml --no-plots --out out --unstable-ratio 2");
    let table = results(&sandbox, "out");
    assert_eq!(table.texts("first_unstable_chunk")[0], "", "nothing is written at a rate of 0");
    let metrics = sandbox.csv(&format!("out/runs/{}/metrics.csv", table.texts("run")[1]));
    let sum = |name: &str| -> Vec<f64> {
        metrics.numbers(name).chunks(2).map(|heads| heads.iter().sum()).collect()
    };
    let expected = sum("loss_before").iter().zip(sum("loss")).position(|(before, loss)| *before > 2.0 * loss);
    assert_eq!(table.texts("first_unstable_chunk")[1], expected.unwrap().to_string());
}

#[test]
fn bad_experiments_and_directories_are_rejected() {
    let sandbox = sandbox(GRID);
    let mut said = Transcript::new();
    for arguments in [
        "learing_rate=1",
        "out=x",
        "labels=x",
        "seed",
        "seed=range(3,0)",
        "seed=x",
        "data=-",
        "chunk_size=1",
        "run=stor",
        "-j 0",
        "--unstable-ratio 0",
        "--out .",
        "--out . --force",
    ] {
        said.reject(&sandbox, &format!("sweep grid.toml {arguments}"));
    }
    for text in [
        "[grid]\nsed = [1]\n",
        "[grids]\nseed = [1]\n",
        "[grid]\nseed = []\n",
        "[fixed]\nseed = [1]\n",
        "[fixed]\nseed = 1\n[grid]\nseed = [1]\n",
        "[zip]\nseed = [1, 2]\nheads = [1]\n",
        "run = 'retrieve'\n",
        "[fixed\n",
    ] {
        sandbox.file("bad.toml", text);
        said.given(text);
        said.reject(&sandbox, "sweep bad.toml");
    }
    insta::assert_snapshot!(said);
}

/// Ten runs, the fourth of which never ends by itself.
const ENDLESS: &str = "data = 'seq.npy'\nheads = 2\nchunk_size = 4\n[zip]\nseed = 'range(0, 10)'\n\
    repeat = [0, 0, 0, 1000000000, 0, 0, 0, 0, 0, 0]\n";

const LINE: &str = "sweep grid.toml --no-plots --out out -j 1";

/// Starts a sweep and waits until it computes the run that does not end.
fn started(sandbox: &Sandbox) -> std::process::Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nmem"));
    command.current_dir(sandbox.path("")).args(LINE.split(' '));
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let begin = Instant::now();
    let computing = || {
        let hidden = sandbox
            .names("out/runs")
            .into_iter()
            .find(|name| name.starts_with('.') && !name.contains(".lock"));
        hidden.is_some_and(|name| sandbox.path("out/runs").join(name).join("metrics.csv").exists())
    };
    while !sandbox.path("out/runs").is_dir() || recorded(sandbox, "out") < 3 || !computing() {
        assert!(begin.elapsed() < Duration::from_mins(2), "the run that does not end has not begun");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

/// Resumes a sweep that was ended, with an end to its fourth run, and compares with one that was not.
fn resumes(sandbox: &Sandbox) {
    let output = sandbox.ok("sweep grid.toml repeat=0 --no-plots --out out");
    assert_eq!(runs(&output), [10, 3, 7]);
    assert_eq!(recorded(sandbox, "out"), 10, "each once");
    sandbox.ok("sweep grid.toml repeat=0 --no-plots --out whole");
    let rows = |name: &str| untimed(&results(sandbox, name));
    assert_eq!(rows("out"), rows("whole"));
    for directory in [".", "runs", "records"] {
        let [out, whole] = ["out", "whole"].map(|name| sandbox.names(&format!("{name}/{directory}")));
        let hidden = out.iter().find(|name| name.starts_with('.'));
        assert_eq!(hidden, None, "in {directory}");
        assert!(directory == "records" || out == whole, "in {directory}: {out:?}");
    }
}

#[test]
fn a_killed_sweep_resumes() {
    let sandbox = sandbox(ENDLESS);
    let mut child = started(&sandbox);
    child.kill().unwrap();
    child.wait().unwrap();
    // As if it had been killed just between the making of a temporary and its lock.
    std::fs::create_dir(sandbox.path("out/runs/.0123456789ab.nmem-AAAAAA")).unwrap();
    sandbox.file("out/plans/.0123456789ab.json.nmem-BBBBBB", "");
    sandbox.file("out/.results.csv.nmem-CCCCCC", "");
    resumes(&sandbox);
}

#[cfg(unix)]
#[test]
fn an_interrupted_sweep_says_so_and_resumes() {
    let sandbox = sandbox(ENDLESS);
    let child = started(&sandbox);
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let mut said = Transcript::new();
    said.given("SIGINT");
    said.entry(LINE, output.status.code(), &String::from_utf8(output.stderr).unwrap());
    insta::assert_snapshot!(said);
    assert_eq!((results(&sandbox, "out").rows.len(), recorded(&sandbox, "out")), (3, 3));
    resumes(&sandbox);
}

/// While a sweep is running its directory cannot be cleared, and shards can join it.
#[cfg(unix)]
#[test]
fn force_leaves_a_running_sweep_alone() {
    let sandbox = sandbox(ENDLESS);
    let mut child = started(&sandbox);
    let before = recorded(&sandbox, "out");
    let line = "sweep grid.toml --no-plots --out out --force";
    let mut said = Transcript::new();
    said.error(line, 2, &sandbox.one_error(&sandbox.run(line), 2, line));
    assert_eq!(recorded(&sandbox, "out"), before);
    // Two of the last six.
    sandbox.ok("sweep grid.toml seed=9 repeat=0 --no-plots --out out -q");
    child.kill().unwrap();
    child.wait().unwrap();
    sandbox.ok("sweep grid.toml repeat=0 --no-plots --out out --force -q");
    assert_eq!(recorded(&sandbox, "out"), 10);
    insta::assert_snapshot!(said);
}

/// Files that no sweep wrote are neither followed nor removed.
#[cfg(unix)]
#[test]
fn force_removes_what_sweeps_wrote_and_nothing_else() {
    let sandbox = sandbox(GRID);
    sandbox.ok("sweep grid.toml --out out -q");
    sandbox.file("out/notes.txt", "mine");
    sandbox.ok("sweep grid.toml --out out -q --force");
    assert_eq!(sandbox.bytes("out/notes.txt"), b"mine");
    std::fs::create_dir(sandbox.path("precious")).unwrap();
    sandbox.file("precious/thesis.txt", "mine");
    let run = results(&sandbox, "out").texts("run")[0].to_owned();
    let mut said = Transcript::new();
    let mut reject = |line: &str| said.error(line, 2, &sandbox.rejected(line).replace(&run, "RUN"));
    for name in
        [format!("out/runs/{run}/thesis.txt"), "out/plots/thesis.txt".into(), "out/records/thesis.txt".into()]
    {
        sandbox.file(&name, "mine");
        reject("sweep grid.toml --out out -q --force");
        std::fs::remove_file(sandbox.path(&name)).unwrap();
    }
    // Nor are figures of others in plots/, with --force or without, and be it a link.
    sandbox.file("out/plots/paper.tex", "mine");
    sandbox.ok("sweep grid.toml --out out -q");
    assert_eq!(sandbox.bytes("out/plots/paper.tex"), b"mine");
    std::fs::remove_dir_all(sandbox.path("out/plots")).unwrap();
    std::os::unix::fs::symlink(sandbox.path("precious"), sandbox.path("out/plots")).unwrap();
    sandbox.file("precious/surprise_mean.svg", "mine");
    sandbox.ok("sweep grid.toml --out out -q");
    assert!(sandbox.names("precious").contains(&"surprise_mean.svg".to_owned()));
    reject("sweep grid.toml --out out -q --force");
    std::fs::remove_file(sandbox.path("out/plots")).unwrap();
    std::fs::remove_dir_all(sandbox.path("precious")).unwrap();
    std::fs::create_dir(sandbox.path("precious")).unwrap();
    sandbox.file("precious/thesis.txt", "mine");
    // Nor what the sweep itself reads.
    sandbox.ok("sweep grid.toml --out kept --keep all --no-plots -q");
    let memory = format!("kept/runs/{run}/memory.safetensors");
    sandbox.file("more.toml", format!("data = 'seq.npy'\nmemory = '{memory}'\n[grid]\ndecay = [0.1, 0.2]\n"));
    reject("sweep more.toml --out kept --force -q");
    // A link in the place of a run: its run fails, and says why.
    std::fs::rename(sandbox.path("out/runs").join(&run), sandbox.path("moved")).unwrap();
    std::os::unix::fs::symlink(sandbox.path("precious"), sandbox.path("out/runs").join(&run)).unwrap();
    reject("sweep grid.toml --out out -q --force");
    let line = "sweep grid.toml --out out -q --no-plots";
    let output = sandbox.run(line);
    assert_eq!(output.code, Some(1), "{}", output.err);
    said.entry(line, output.code, &sandbox.without_own_path(&output.err).replace(&run, "RUN"));
    insta::assert_snapshot!(said);
    assert_eq!(sandbox.names("precious"), ["thesis.txt"]);
}

#[test]
fn retention_by_lag_is_that_of_the_runs_own_rows() {
    let sandbox = sandbox(GRID);
    sandbox.ok("sweep grid.toml retention=2 chunk_size=4,8 -j 1 --out kept");
    let table = sandbox.csv("kept/retention.csv");
    insta::assert_snapshot!(table.header.join(","), @"run,chunk_size,seed,data,heads,retention,lag,status,loss_ratio");
    let rows = table.texts("run").into_iter().zip(table.texts("lag")).zip(table.numbers("loss_ratio"));
    let mut checked = 0;
    for ((run, lag), got) in rows {
        let of_run = sandbox.csv(&format!("kept/runs/{run}/retention.csv"));
        let lags = of_run.numbers("after").into_iter().zip(of_run.numbers("chunk")).map(|(a, b)| a - b);
        let losses = of_run.numbers("loss").into_iter().zip(of_run.numbers("loss_at_w"));
        let (mut loss, mut at_w) = (0.0, 0.0);
        for (_, (l, w)) in lags.zip(losses).filter(|(at, _)| at.to_string() == lag) {
            loss += l;
            at_w += w;
        }
        let expected: f64 = loss / at_w;
        assert!((got - expected).abs() <= 1e-6 * expected, "{run}, lag {lag}: {got} for {expected}");
        checked += 1;
    }
    // Ten chunks: lags 0, 2, 4, 6 and 8; five: 0 and 2, and 1 and 3 under the last memory; three seeds of each.
    assert_eq!(checked, 3 * 5 + 3 * 4);
    let figure = String::from_utf8(sandbox.bytes("kept/plots/retention.svg")).unwrap();
    assert!(figure.contains(">chunks stored since<"), "{figure}");

    sandbox.ok("sweep grid.toml retention=2 chunk_size=4,8 -j 4 --keep none --no-plots --out none");
    assert_eq!(sandbox.bytes("none/retention.csv"), sandbox.bytes("kept/retention.csv"));
    sandbox.ok("sweep grid.toml --no-plots --out plain");
    assert!(!sandbox.path("plain/retention.csv").exists(), "no run has retention");
}
