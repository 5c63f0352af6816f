//! `nmem sweep`: the rows of a grid, what is kept of them, and that nothing is run twice or lost.

use std::collections::BTreeSet;
use std::path::Path;
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
    insta::assert_snapshot!(table.header.join(","), @"run,chunk_size,seed,data,heads,status,tokens,chunks,loss_final,loss_mean,loss_before_final,loss_before_mean,loss_after_final,loss_after_mean,surprise_mean,learning_rate_mean,momentum_mean,decay_mean,surprise_norm_final,momentum_norm_final,update_norm_final,weight_norm_final,first_unstable_chunk,diverged,retained_ratio,unstored_ratio,loss_zero_mean,recall_mean_square,recall_ratio,recall_cosine,recall_r2,recall_accuracy,recall_top_k_accuracy,recall_in_set_accuracy,recall_distinct_answers,recall_chance,recall_kept_accuracy,recall_updated_accuracy,recall_stale,train_loss,validation,validation_without_updates,validation_zero,best_step,error,version,commit,engine_bytes,tokens_per_s,wall_s");
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

/// A directory that nmem wrote when its version was part of a run's identity, with its files at /home/user.
fn of_an_older_version(without_program: bool) -> Sandbox {
    let sandbox = Sandbox::new();
    let from = crate::shipped("tests/cli/sweep-before");
    let here = sandbox.path("").canonicalize().unwrap();
    let mut directories = vec![String::new()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(from.join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let name = Path::new(&directory).join(entry.file_name()).to_str().unwrap().to_owned();
            if entry.file_type().unwrap().is_dir() {
                std::fs::create_dir(sandbox.path(&name)).unwrap();
                directories.push(name);
                continue;
            }
            let mut bytes = std::fs::read(entry.path()).unwrap();
            if let Ok(text) = String::from_utf8(bytes.clone()) {
                bytes = text.replace("/home/user", here.to_str().unwrap()).into_bytes();
            }
            sandbox.file(&name, bytes);
            if without_program && name.ends_with("run.json") {
                let mut json = sandbox.json(&name);
                let config = json["config"].as_object_mut().unwrap();
                // The settings of nmem 0.2.0, which had one program.
                let known = [
                    "mode",
                    "dim",
                    "heads",
                    "dim_head",
                    "pre_norm",
                    "post_norm",
                    "chunk_size",
                    "init",
                    "seed",
                    "learning_rate",
                    "momentum",
                    "decay",
                    "restart_momentum",
                    "probe",
                    "retention",
                    "allow_nonfinite",
                    "repeat",
                    "plots",
                ];
                config.retain(|name, _| known.contains(&&**name));
                sandbox.file(&name, json.to_string());
            }
        }
    }
    sandbox
}

#[test]
fn results_of_an_older_version_stay() {
    for without_program in [false, true] {
        let sandbox = of_an_older_version(without_program);
        let before = sandbox.contents();
        let output = sandbox.ok("sweep grid.toml --out out --status");
        insta::allow_duplicates! {
            insta::assert_snapshot!(output.out, @"
            run           parameters         state          reason
            dd80fdff49f3  learning_rate=0.1  other version  ok by nmem 0.2.0 (a95723a1)
            7411dd2bd095  learning_rate=3    other version  ok by nmem 0.2.0 (a95723a1)
            2 runs: 0 current, 2 by another version, 0 stale, 0 missing
            ");
        }
        assert!(sandbox.contents() == before, "the state alone is printed");
        let output = sandbox.ok("sweep grid.toml --out out --no-plots");
        assert_eq!(runs(&output), [2, 2, 0]);
        let table = results(&sandbox, "out");
        assert_eq!(table.texts("version"), ["0.2.0"; 2]);
        assert_eq!(table.texts("commit"), ["a95723a1b0e10f95bd98a4f7a0f1777ccb369118"; 2]);
        sandbox.ok("sweep --collect out --no-plots");
        // More of the same grid costs only itself.
        let output = sandbox.ok("sweep grid.toml --out out --no-plots learning_rate=0.1,0.2,3");
        assert_eq!(runs(&output), [3, 2, 1]);
        let all = untimed(&results(&sandbox, "out"));
        sandbox.ok("sweep grid.toml --out new --no-plots learning_rate=0.1,0.2,3");
        let new = untimed(&results(&sandbox, "new"));
        // The numbers are the same; ids, versions and commits are not, and a newer result is not in older files.
        let skipped = ["run", "version", "commit", "loss_zero_mean"]
            .map(|name| all[0].iter().position(|column| column == name));
        for (a, b) in all.iter().zip(&new) {
            for (i, (a, b)) in a.iter().zip(b).enumerate().filter(|(i, _)| !skipped.contains(&Some(*i))) {
                assert_eq!(a, b, "{}", all[0][i]);
            }
        }
        // Everything is repeated if that is wanted, and nothing recorded is lost.
        let output = sandbox.ok("sweep grid.toml --out out --no-plots --rerun-if commit");
        assert_eq!(runs(&output), [2, 0, 2]);
        assert_eq!(recorded(&sandbox, "out"), 2 + 1 + 2);
        let output = sandbox.ok("sweep grid.toml --out out --no-plots --rerun-if commit");
        assert_eq!(runs(&output), [2, 2, 0]);
    }
}

#[test]
fn results_of_an_older_version_with_other_inputs_are_not_taken() {
    let sandbox = of_an_older_version(false);
    // At this ratio one run of the grid has an unstable chunk, and at that of the records it has none.
    let status = |line: &str| {
        let output = sandbox.ok(&format!("sweep grid.toml --out out --status --format json {line}"));
        let json: serde_json::Value = serde_json::from_str(&output.out).unwrap();
        let states: Vec<_> =
            json.as_array().unwrap().iter().map(|run| run["state"].as_str().unwrap().to_owned()).collect();
        states
    };
    assert_eq!(status("--unstable-ratio 1.05"), ["other version", "stale"]);
    assert_eq!(status("--keep all"), ["missing", "missing"]);
    assert_eq!(status("learning_rate=0.1,0.2"), ["other version", "missing"]);
    sandbox.npy("seq.npy", &tokens(&[40, 8], 2));
    assert_eq!(status(""), ["stale", "stale"]);
    // A plan is made, but its runs have not ended.
    let line = "sweep grid.toml --out out --no-plots repeat=1000000000 learning_rate=0.1 --timeout 0.01";
    assert_eq!(sandbox.run(line).code, Some(1));
    sandbox.npy("seq.npy", &tokens(&[40, 8], 2));
    let plan = sandbox.run("sweep grid.toml --out out --no-plots --slurm");
    assert!(plan.err.contains("sbatch failed"), "{}", plan.err);
    let output = sandbox.run("sweep --collect out --no-plots");
    assert_eq!(output.code, Some(1));
    let lines: Vec<_> = output.err.lines().collect();
    assert!(
        lines.len() == 2 && lines.iter().all(|line| line.starts_with("error: other version ")),
        "{lines:?}"
    );
    assert!(lines[0].contains("nmem 0.2.0 (a95723a1) computed it as dd80fdff49f3"), "{lines:?}");
    let table = results(&sandbox, "out");
    let of_before = table.texts("commit").into_iter();
    let of_before = of_before.filter(|text| text.starts_with("a95723a1b0e1") && !text.ends_with("modified"));
    assert_eq!(of_before.count(), 2);
}

#[test]
fn states_say_why() {
    let sandbox = sandbox(GRID);
    sandbox.ok("sweep grid.toml --out out --no-plots chunk_size=4");
    sandbox.npy("seq.npy", &tokens(&[40, 8], 2));
    sandbox.ok("sweep grid.toml --out out --no-plots chunk_size=4 seed=0");
    let output = sandbox.ok("sweep grid.toml --out out --status seed=0,1");
    let text = without_runs(&output.out);
    let build = text.lines().nth(1).unwrap().split(" by ").nth(1).unwrap().to_owned();
    assert!(build.starts_with("nmem "), "{text}");
    insta::assert_snapshot!(text.replace(&build, "BUILD"), @"
    run           parameters           state    reason
    RUN  chunk_size=4 seed=0  current  ok by BUILD
    RUN  chunk_size=4 seed=1  stale    the content of data has changed since RUN
    RUN  chunk_size=8 seed=0  missing  never run
    RUN  chunk_size=8 seed=1  missing  never run
    4 runs: 1 current, 0 by another version, 1 stale, 2 missing
    ");
}

#[test]
fn a_table_of_means_with_the_best_row() {
    let sandbox = sandbox("data = 'seq.npy'\n[grid]\nlearning_rate = [0.0, 3.0]\nseed = [0, 1]\n");
    let output = sandbox
        .ok("sweep grid.toml --out out --no-plots chunk_size=4 --y loss_mean,loss_before_mean/loss_mean");
    let table: Vec<_> = output.out.lines().skip_while(|line| !line.is_empty()).skip(1).collect();
    let summary = sandbox.csv("out/summary.csv");
    let mean = summary.numbers("loss_mean.mean")[0];
    let half = summary.numbers("loss_mean.ci95_high")[0] - mean;
    assert_eq!(table.len(), 4, "{table:?}");
    assert_eq!(
        table[0].split_whitespace().collect::<Vec<_>>().join(" "),
        "learning_rate n loss_mean ± 95 % loss_before_mean/loss_mean ± 95 %"
    );
    let first: Vec<_> = table[1].split_whitespace().collect();
    assert_eq!(first[..3], ["*", "0", "2"]);
    assert_eq!(first[3..6], [format!("{mean:.5}").as_str(), "±", format!("{half:.5}").as_str()]);
    // Nothing is stored at a rate of 0.
    assert_eq!(first[6..8], ["1.00000", "±"]);
    assert!(first[8].parse::<f64>().unwrap() < 1e-6, "{first:?}");
    assert_eq!(table[3], "* best mean of loss_mean");
    let json = sandbox.ok("sweep grid.toml --out out --no-plots chunk_size=4 --format json");
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    let rows = json["rows"].as_array().unwrap();
    let of_rows: Vec<f64> = rows.iter().map(|row| row["results"]["loss_mean"].as_f64().unwrap()).collect();
    assert_eq!(of_rows, results(&sandbox, "out").numbers("loss_mean"));
    assert_eq!(rows[3]["parameters"]["learning_rate"], "3");
    assert_eq!(rows[3]["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn conditions_select_exclude_and_add_rows() {
    let sandbox = sandbox(
        "data = 'seq.npy'\nexclude = ['seed = 1 and heads > 1', 'chunk_size = 8']\n[grid]\nloss = ['huber', 'p-norm']\n\
         heads = [1, 2]\nseed = [0, 1]\nchunk_size = [4, 8]\n[when.\"loss = huber\"]\nhuber_delta = [0.5, 1.0]\n",
    );
    let rows = |arguments: &str| -> Vec<String> {
        let output = sandbox.ok(&format!("sweep grid.toml {arguments} --dry-run --format json"));
        let runs: serde_json::Value = serde_json::from_str(&output.out).unwrap();
        let text = |run: &serde_json::Value| {
            let value = |key: &str| run["parameters"][key].as_str().unwrap_or("-").to_owned();
            ["loss", "heads", "seed", "huber_delta"].map(value).join(" ")
        };
        runs.as_array().unwrap().iter().map(text).collect()
    };
    let all = [
        "huber 1 0 0.5",
        "huber 1 0 1",
        "huber 1 1 0.5",
        "huber 1 1 1",
        "huber 2 0 0.5",
        "huber 2 0 1",
        "p-norm 1 0 -",
        "p-norm 1 1 -",
        "p-norm 2 0 -",
    ];
    assert_eq!(rows(""), all);
    assert_eq!(rows("huber_delta=2")[0], "huber 1 0 2", "the command line overrides it, for all rows");
    let selected = |condition: &str| {
        let mut command = sandbox.command("sweep grid.toml --dry-run --where");
        command.arg(condition);
        let output = Sandbox::finish(command);
        assert_eq!(output.code, Some(0), "{}", output.err);
        counts(output.out.lines().last().unwrap())[0]
    };
    assert_eq!(selected("loss = huber and huber_delta < 1"), 3);
    assert_eq!(selected("huber_delta != 1"), 6);
    assert_eq!(selected("heads=2"), 3);
    let mut said = Transcript::new();
    for line in ["--where seeds=1", "--where seed=7", "--where loss_mean<1", "--where seed"] {
        said.reject(&sandbox, &format!("sweep grid.toml {line}"));
    }
    for text in [
        "exclude = 'sed = 1'\n",
        "exclude = 1\n",
        "exclude = 'heads = 1'\nheads = 1\n",
        "stop_when = 'loss_befor > loss'\n",
        "[when.'seed']\nheads = 1\n",
        "when = 1\n",
    ] {
        sandbox.file("bad.toml", text);
        said.given(text);
        said.reject(&sandbox, "sweep bad.toml data=seq.npy");
    }
    insta::assert_snapshot!(said);
    // Collected runs are selected by their results too.
    sandbox.ok("sweep grid.toml --out out --no-plots -q");
    let losses = results(&sandbox, "out").numbers("loss_mean");
    let mut command = sandbox.command("sweep --collect out --no-plots --format json --where");
    command.arg(format!("loss_mean <= {} and status = ok", losses[3]));
    let json: serde_json::Value = serde_json::from_str(&Sandbox::finish(command).out).unwrap();
    let expected = losses.iter().filter(|loss| **loss <= losses[3]).count();
    assert_eq!(json["rows"].as_array().unwrap().len(), expected);
    assert_eq!(results(&sandbox, "out").rows.len(), 9, "the table has all");
}

#[test]
fn a_run_stops_at_the_chunk_where_its_condition_holds() {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[3, 40, 8], 1));
    let text = "data = 'seq.npy'\nheads = 2\nchunk_size = 4\ndecay = 0.0\nmomentum = 0.9\n[grid]\nlearning_rate = [0.0, 3.0]\n";
    sandbox.file("grid.toml", text);
    let stop = "stop_when = 'loss_before > 2 * loss'\n";
    sandbox.file("stop.toml", format!("{stop}{text}"));
    sandbox.ok("sweep grid.toml --no-plots --out whole --unstable-ratio 2");
    sandbox.ok("sweep stop.toml --no-plots --out out --unstable-ratio 2 --keep all");
    let (whole, table) = (results(&sandbox, "whole"), results(&sandbox, "out"));
    assert_eq!(table.texts("status"), ["ok", "stopped"]);
    assert_eq!(table.texts("diverged"), ["false", "false"]);
    let without_speed: Vec<_> = table.texts("tokens_per_s").into_iter().map(str::is_empty).collect();
    assert_eq!(without_speed, [false, true]);
    assert_eq!(table.texts("first_unstable_chunk"), whole.texts("first_unstable_chunk"));
    assert_ne!(table.texts("run")[0], whole.texts("run")[0], "the rule is part of the identity");
    // The rows are those of the whole run, up to the first chunk of each sequence that is unstable.
    let [all, cut] = [("whole", &whole), ("out", &table)]
        .map(|(name, table)| sandbox.csv(&format!("{name}/runs/{}/metrics.csv", table.texts("run")[1])));
    let mut expected = Vec::new();
    for sequence in ["0", "1", "2"] {
        let rows: Vec<_> = all.rows.iter().filter(|row| row[0] == sequence).collect();
        for chunk in rows.chunks(2) {
            expected.extend(chunk.iter().copied().cloned());
            let sum =
                |column: usize| chunk.iter().map(|row| row[column].parse::<f64>().unwrap()).sum::<f64>();
            if sum(6) > 2.0 * sum(5) {
                break;
            }
        }
    }
    assert!(expected.len() < all.rows.len());
    assert_eq!(cut.rows, expected);
    assert_eq!(table.numbers("chunks")[1], expected.len() as f64 / 2.0);
    assert_eq!(table.numbers("tokens")[1], expected.len() as f64 / 2.0 * 4.0);
    let run = format!("out/runs/{}", table.texts("run")[1]);
    assert_eq!(sandbox.names(&run), ["metrics.csv", "run.json"], "the memory is not one of the sequence");
    let reason = table.texts("error")[1];
    assert!(
        reason.starts_with("stopped at sequence 0, chunk ") && reason.ends_with(": loss_before > 2 * loss"),
        "{reason}"
    );
    // A run that the rule has stopped is no result of the whole one, and the other way round. One that it has not stopped is.
    let rest = sandbox.ok("sweep grid.toml --no-plots --out out --unstable-ratio 2 --keep all");
    assert_eq!(runs(&rest), [2, 1, 1]);
    let stopped = sandbox.ok("sweep stop.toml --no-plots --out whole --unstable-ratio 2");
    assert_eq!(runs(&stopped), [2, 0, 2]);
    // A stopped run has ended. The rule can be given on the command line, and one thread gives the same.
    let mut command =
        sandbox.command("sweep grid.toml --no-plots --out out --unstable-ratio 2 --keep all threads=1");
    command.arg("stop_when=loss_before>2.0*loss");
    assert_eq!(Sandbox::finish(command).code, Some(0));
    assert_eq!(results(&sandbox, "out").numbers("loss_mean")[..2], table.numbers("loss_mean")[..2]);
    let again = sandbox.ok("sweep stop.toml --no-plots --out out --unstable-ratio 2 --keep all");
    assert_eq!(runs(&again), [2, 2, 0]);
}

#[test]
fn a_run_that_takes_too_long_fails_alone() {
    let sandbox = sandbox(
        "data = 'seq.npy'\nheads = 2\nchunk_size = 4\n[zip]\nseed = [0, 1]\nrepeat = [1000000000, 0]\n",
    );
    let output = sandbox.run("sweep grid.toml --no-plots --out out -j 1 --timeout 1.5s");
    assert_eq!(output.code, Some(1), "{}", output.err);
    let table = results(&sandbox, "out");
    assert_eq!(table.texts("status"), ["failed", "ok"]);
    assert_eq!(table.texts("error")[0], "--timeout: the run had not ended after 1.5 s");
    assert_eq!(sandbox.names("out/runs").len(), 1);
    let said =
        Transcript::of_rejected(&sandbox, &["sweep grid.toml --timeout 0", "sweep grid.toml --timeout 5d"]);
    insta::assert_snapshot!(said);
}

#[test]
fn a_sweep_without_a_file() {
    let sandbox = sandbox(GRID);
    sandbox.ok("sweep data=seq.npy heads=2 chunk_size=4,8 seed=0,1,2 --no-plots");
    let table = results(&sandbox, "results/seq-sweep");
    sandbox.ok("sweep grid.toml --no-plots --out out");
    assert_eq!(table.texts("run"), results(&sandbox, "out").texts("run"), "the same runs");
    let script = sandbox.ok("sweep data=seq.npy seed=0,1 --where seed=1 --slurm-dry-run").out;
    assert!(
        script.contains(" sweep data=seq.npy seed=0,1 --keep=metrics") && script.contains(" --where=seed=1"),
        "{script}"
    );
    let mut said = Transcript::new();
    for line in [
        "seq.npy",
        ".",
        "seed=0,1",
        "grid.toml seed=range(0, 5)",
        "grid.toml seed=range (0,5)",
        "grid.toml (0,5)",
    ] {
        said.reject(&sandbox, &format!("sweep {line}"));
    }
    insta::assert_snapshot!(said);
}

#[test]
fn the_size_of_many_metrics_is_announced() {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &ndarray::ArrayD::zeros(ndarray::IxDyn(&[200_000, 2])));
    let line = "sweep data=seq.npy chunk_size=2 seed=range(0,100) --dry-run --out out";
    let output = sandbox.ok(line);
    let mut said = Transcript::new();
    said.ran(&sandbox, line, &output);
    let line = format!("{line} --keep none");
    let output = sandbox.ok(&line);
    said.ran(&sandbox, &line, &output);
    insta::assert_snapshot!(said);
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
    let without_speed: Vec<_> = table.texts("tokens_per_s").into_iter().map(str::is_empty).collect();
    assert_eq!(without_speed, [false, false, true, true, true], "the speed is that of whole runs");

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
    assert_eq!(sandbox.names("none/runs"), [""; 0]);
    sandbox.ok("sweep grid.toml --no-plots --out plain");
    assert!(!sandbox.path("plain/retention.csv").exists(), "no run has retention");
}

#[test]
fn names_of_figures_are_checked_before_the_first_run() {
    let sandbox = sandbox(GRID);
    let lines = [
        "sweep grid.toml --out new --y los_mean",
        "sweep grid.toml --out new --y loss_mean/tokens --y loss_mean/tokenz --no-plots",
        "sweep grid.toml --out new --x dekay",
        "sweep grid.toml --out new --hue loss_mean --no-plots",
    ];
    let said = Transcript::of_rejected(&sandbox, &lines).to_string();
    insta::assert_snapshot!(said.replace(&nmem::sweep::Results::NAMES.join(", "), "NAMES"), @"
    $ nmem sweep grid.toml --out new --y los_mean
    2 error: --y: no result los_mean (did you mean `loss_mean`?); pass a column, or two as a/b, of NAMES

    $ nmem sweep grid.toml --out new --y loss_mean/tokens --y loss_mean/tokenz --no-plots
    2 error: --y: no result tokenz (did you mean `tokens`?); pass a column, or two as a/b, of NAMES

    $ nmem sweep grid.toml --out new --x dekay
    2 error: --x: no parameter dekay; the parameters are chunk_size, data, heads, seed

    $ nmem sweep grid.toml --out new --hue loss_mean --no-plots
    2 error: --hue: no parameter loss_mean; the parameters are chunk_size, data, heads, seed
    ");
}

#[test]
fn force_removes_every_figure_of_a_sweep() {
    let sandbox = sandbox(GRID);
    for figures in [
        &["--x", "surprise_mean", "--y", "loss_before_mean"][..],
        &["--y", "loss_before_mean/tokens_per_s"],
        &["--y", "loss_before_mean / tokens_per_s,loss_before_mean / loss_mean"],
        &["--x", "tokens_per_s", "--y", "loss_ratio,loss_before_mean/tokens_per_s"],
    ] {
        let mut command = sandbox.command("sweep grid.toml --out out -q --figure-format svg,csv,pgfplots");
        command.args(figures);
        let output = Sandbox::finish(command);
        assert_eq!(output.code, Some(0), "{figures:?}: {}", output.err);
        assert!(sandbox.names("out/plots").len() >= 3, "{figures:?}");
        sandbox.ok("sweep grid.toml --out out -q --force --no-plots");
        assert!(!sandbox.path("out/plots").exists(), "{figures:?}");
    }
}

#[test]
fn a_table_marks_no_row_where_neither_side_is_better() {
    let sandbox = sandbox("data = 'seq.npy'\nchunk_size = 4\n[grid]\nlearning_rate = [0.0, 3.0]\n");
    let table = |y: &str| sandbox.ok(&format!("sweep grid.toml --out out --no-plots --y {y}")).out;
    assert!(table("loss_mean").contains("* best mean of loss_mean"));
    for y in ["surprise_mean", "loss_mean/tokens_per_s"] {
        assert!(!table(y).contains('*'), "{y}");
    }
}

#[test]
fn a_condition_that_holds_for_no_finished_run_is_said() {
    let sandbox = sandbox(GRID);
    sandbox.ok("sweep grid.toml --out out -q --no-plots");
    let output = sandbox.ok("sweep --collect out --no-plots --where chunk_size=99");
    assert_eq!(output.err, "note: --where: `chunk_size = 99` holds for no finished run\n");
}

#[test]
fn every_column_of_results_is_documented() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/files.md");
    let page = std::fs::read_to_string(path).unwrap();
    let section = page.split("### results.csv").nth(1).and_then(|rest| rest.split("\n### ").next()).unwrap();
    let columns: String =
        section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next()).collect();
    for name in nmem::sweep::Results::NAMES {
        assert!(columns.contains(&format!("`{name}`")), "{name}");
    }
}
