//! Sweeps through the library, without runs: the rows of an experiment, and what becomes of the records in a directory.
//! `tests/cli/sweep.rs` runs whole sweeps.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use nmem::cuda::{DeviceChoice, Devices};
use nmem::io::text::TextFile;
use nmem::run::{Build, Keep};
use nmem::sweep::{
    self, Collected, Experiment, GridRow, Lags, Options, Parameters, Plan, PlanEntry, PlanFile, PlannedRun,
    Record, Records, Results, RunState, Status, SweepDirectory, SweepEvent, collect,
};
use tempfile::TempDir;

struct Directory(TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn message(&self, error: nmem::Error) -> String {
        let text = format!("{:#}", anyhow::Error::from(error));
        text.replace(&format!("{}/", self.0.path().display()), "")
    }

    fn experiment(&self, toml: &str) -> Result<Experiment, String> {
        fs::write(self.path("x.toml"), toml).unwrap();
        let file = TextFile::read(&self.path("x.toml"), 16 << 20).unwrap();
        Experiment::read(&file).map_err(|error| self.message(error))
    }

    fn names(&self, name: &str) -> Vec<String> {
        let names: BTreeSet<_> = fs::read_dir(self.path(name))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.into_iter().collect()
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
}

/// Rows of an experiment, each as "key=value key=value".
fn rows(experiment: &Experiment) -> Vec<String> {
    let row = |parameters: &Parameters| {
        parameters.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    };
    experiment.expand().unwrap().iter().map(|grid_row| row(&grid_row.parameters)).collect()
}

#[test]
fn grids_zips_rows_and_overrides() {
    let directory = Directory::new();
    let toml = "
        data = 'seq.npy'
        [fixed]
        heads = 2
        [grid]
        seed = [0, 1]
        [zip]
        chunk_size = [4, 8]
        _name = ['short', 'long']
        [[run]]
        decay = 0.5
        [[run]]
        decay = 1
        heads = 4
    ";
    let experiment = directory.experiment(toml).unwrap();
    assert_eq!(
        rows(&experiment),
        [
            "_name=short chunk_size=4 data=seq.npy heads=2 seed=0",
            "_name=long chunk_size=8 data=seq.npy heads=2 seed=0",
            "_name=short chunk_size=4 data=seq.npy heads=2 seed=1",
            "_name=long chunk_size=8 data=seq.npy heads=2 seed=1",
            "data=seq.npy decay=0.5 heads=2",
            "data=seq.npy decay=1 heads=4",
        ]
    );
    assert_eq!(experiment.keys(), ["seed", "chunk_size", "_name", "decay", "heads", "data"]);

    let overridden = |arguments: &[&str]| -> Result<Vec<String>, String> {
        let mut experiment = experiment.clone();
        for argument in arguments {
            experiment.override_setting(argument).map_err(|error| error.to_string())?;
        }
        Ok(rows(&experiment))
    };
    // One value replaces an axis, and the settings of rows.
    assert_eq!(
        overridden(&["seed=7", "heads=1"]).unwrap(),
        [
            "_name=short chunk_size=4 data=seq.npy heads=1 seed=7",
            "_name=long chunk_size=8 data=seq.npy heads=1 seed=7",
            "data=seq.npy decay=0.5 heads=1 seed=7",
            "data=seq.npy decay=1 heads=1 seed=7",
        ]
    );
    // Several values are an axis of the product and of the rows.
    let rows = overridden(&["seed=7", "_name=a,b", "decay=0,0.25,0.5"]).unwrap();
    assert_eq!(rows.len(), 2 * 3 + 2 * 2 * 3);
    assert_eq!(rows[1], "_name=a chunk_size=4 data=seq.npy decay=0.25 heads=2 seed=7");
    assert_eq!(rows[6], "_name=a data=seq.npy decay=0 heads=2 seed=7");
    assert_eq!(rows[17], "_name=b data=seq.npy decay=0.5 heads=4 seed=7");
    // The last of several overrides counts.
    assert_eq!(overridden(&["seed=1,2,3", "seed=4,5"]).unwrap().len(), 2 * 2 + 2 * 2);
    assert_eq!(overridden(&["seed=1,2,3", "seed=4"]).unwrap().len(), 2 + 2);
    // A zip whose keys are all given one value is a single row.
    assert_eq!(overridden(&["chunk_size=2", "_name=x", "seed=0"]).unwrap().len(), 1 + 2);
    for (argument, reason) in [
        (
            "chunk_size=2,4,8",
            "chunk_size=2,4,8: expected one value, or 2 as for the other keys of [zip], got 3",
        ),
        ("seed", "seed: expected key=value or key=a,b,c, got no `=`"),
        ("seed=", "seed=: expected values between commas, got an empty item"),
        ("run=other", "run=other: expected store, retrieve-online or train, got other"),
        ("seeds=1", "seeds=1: expected a known setting, got `seeds`"),
        ("seed=range(0,", "seed=range(0,: the shell has taken a range apart; quote it: seed='range(0,5)'"),
        ("seed=range", "seed=range: the shell has taken a range apart; quote it: seed='range(0,5)'"),
        ("(0,5)", "(0,5): the shell has taken a range apart; quote it: seed='range(0,5)'"),
        ("(0,", "(0,: the shell has taken a range apart; quote it: seed='range(0,5)'"),
        ("5)", "5): the shell has taken a range apart; quote it: seed='range(0,5)'"),
    ] {
        assert!(overridden(&[argument]).unwrap_err().starts_with(reason), "{argument}");
    }
}

#[test]
fn values_of_every_kind() {
    let directory = Directory::new();
    let toml = "
        [grid]
        seed = [18446744073709551615, 0xff, 9223372036854775808]
        decay = 'range(0, 1, 0.5)'
        online = [true, false]
        _note = 'a,b'
        learning_rate = 1e-3
    ";
    let experiment = directory.experiment(toml).unwrap();
    let all = rows(&experiment);
    assert_eq!(all.len(), 3 * 2 * 2);
    assert_eq!(all[0], "_note=a,b decay=0 learning_rate=0.001 online=true seed=18446744073709551615");
    assert_eq!(all[3], "_note=a,b decay=0.5 learning_rate=0.001 online=false seed=18446744073709551615");
    assert_eq!(all[4], "_note=a,b decay=0 learning_rate=0.001 online=true seed=255");
    assert_eq!(all[11], "_note=a,b decay=0.5 learning_rate=0.001 online=false seed=9223372036854775808");
    // Explicit rows alone, and an empty experiment, which is one row without settings.
    let alone = directory.experiment("[[run]]\nseed = 1\n[[run]]\nseed = 2\n").unwrap();
    assert_eq!(rows(&alone), ["seed=1", "seed=2"]);
    assert_eq!(rows(&directory.experiment("").unwrap()), [""]);
    assert_eq!(rows(&directory.experiment("[zip]\n").unwrap()), [""]);
    let online = directory.experiment("run = 'retrieve-online'\nseed = 3\n").unwrap();
    assert_eq!(rows(&online), ["online=true seed=3"]);
    assert_eq!(online.keys(), ["seed", "online"]);
    let explicit = directory.experiment("run = 'retrieve-online'\nonline = true\n").unwrap();
    assert_eq!(explicit.keys(), ["online"]);
}

/// Each wrong experiment, its whole message, and the line that it names.
#[test]
fn wrong_experiments() {
    let directory = Directory::new();
    for (toml, expected) in [
        (
            "seed = 1\nseed = 2\n",
            "expected an experiment in TOML, got a syntax error (duplicate key) in line 2",
        ),
        ("\n\nseeds = 1\n", "expected a known setting, got `seeds` (did you mean `seed`?) in line 3"),
        ("seed = [1, 2]\n", "expected a number, string or boolean for `seed`, got another type in line 1"),
        (
            "seed = 2000-01-01\n",
            "expected a number, string or boolean for `seed`, got another type in line 1",
        ),
        (
            "seed = 18446744073709551616\n",
            "expected an integer from −2^63 to 2^64 − 1 for `seed`, got one outside in line 1",
        ),
        ("[grid]\nseed = []\n", "expected at least one value for `seed`, got none in line 2"),
        ("[grid]\n\nseeds = [1]\n", "expected a known setting, got `seeds` (did you mean `seed`?) in line 3"),
        (
            "[zip]\nseed = [1, 2]\ndecay = [0]\n",
            "expected 2 values for `decay`, as for `seed` in [zip], got 1 in line 3",
        ),
        ("grid = 1\n", "expected a table, [grid], got `grid` in line 1"),
        ("zip = 1\n", "expected a table, [zip], got `zip` in line 1"),
        ("\nfixed = 1\n", "expected a table, [fixed], got `fixed` in line 2"),
        ("run = [1]\n", "expected a table, [[run]], got `[run]` in line 1"),
        (
            "run = 'other'\n",
            "expected run = \"store\", \"retrieve-online\" or \"train\", or tables [[run]], got another value of `run` in line 1",
        ),
        (
            "[grid]\nseed = 'range(5, 0)'\n",
            "expected values for `seed`, got range(5, 0), which has no values (usage: range(start, end) or \
             range(start, end, step), which exclude the end) in line 2",
        ),
    ] {
        assert_eq!(directory.experiment(toml).unwrap_err(), format!("x.toml: {expected}"), "{toml}");
    }
    for toml in [
        "seed = 1\n[grid]\nseed = [1, 2]\n",
        "[fixed]\nseed = 1\n[zip]\nseed = [1]\n",
        "[grid]\nseed = [1]\n[zip]\nseed = [1]\n",
    ] {
        let expected = "x.toml: `seed` is set twice; set it once in [fixed], [grid] or [zip]";
        assert_eq!(directory.experiment(toml).unwrap_err(), expected, "{toml}");
    }
}

/// 65,536 rows, and 768 MiB of estimated memory.
#[test]
fn grids_have_limits() {
    let directory = Directory::new();
    let count = |toml: &str| {
        let experiment = directory.experiment(toml)?;
        experiment.expand().map(|rows| rows.len()).map_err(|error| error.to_string())
    };
    let grid = "[grid]\nseed = 'range(0, 256)'\n_n = 'range(0, 256)'\n";
    assert_eq!(count(grid), Ok(65_536));
    let more = "the grid: expected at most 65536 rows, got";
    assert_eq!(count(&format!("{grid}[[run]]\ndecay = 1\n")).unwrap_err(), format!("{more} 65537"));
    let axes = [0, 1, 2, 3, 4].map(|i| format!("_n{i} = 'range(0, 65536)'\n")).concat();
    assert_eq!(count(&format!("[grid]\n{axes}")).unwrap_err(), format!("{more} too many to count"));
    let list = |items: usize| format!("[grid]\n_n = [{}]\n", "0,".repeat(items));
    assert_eq!(count(&list(65_536)), Ok(65_536));
    assert_eq!(
        count(&list(65_537)).unwrap_err(),
        "x.toml: expected at most 65536 values for `_n`, got 65537 in line 2"
    );
    // Of 32,768 rows, half are multiplied.
    let when = |more: usize| {
        format!(
            "[grid]\nheads = [1, 2]\nseed = 'range(0, 16384)'\n[when.'heads = 2']\n_n = 'range(0, {more})'\n"
        )
    };
    assert_eq!(count(&when(3)), Ok(65_536));
    assert_eq!(count(&when(4)).unwrap_err(), format!("{more} 81920"));
    // A row takes 3000 bytes, 700 for each setting, and six times its text. These take 12,288 bytes a row in all.
    let memory = |text: usize| {
        format!("_text = '{}'\n[grid]\nseed = 'range(0, 256)'\n_n = 'range(0, 256)'\n", "x".repeat(text))
    };
    let fits = (12_288 - 3000 - 3 * 700) / 6;
    assert_eq!(count(&memory(fits)), Ok(65_536));
    assert_eq!(
        count(&memory(fits + 1)).unwrap_err(),
        "the grid: expected rows that need at most 805306368 bytes of memory, got 65536 rows that need about 805699584"
    );
    // The longest of a column's texts counts, and the longest of explicit rows.
    let long = "x".repeat(fits + 1);
    let column = format!("[grid]\nseed = 'range(0, 256)'\n_m = 'range(0, 128)'\n_n = ['', '{long}']\n");
    assert!(count(&column).unwrap_err().contains("bytes of memory"));
    let row = format!("[[run]]\n_a = 1\n[[run]]\n_a = '{long}'\n");
    let mut experiment = directory.experiment(&row).unwrap();
    experiment.override_setting("_n=range(0, 32768)").unwrap();
    experiment.override_setting("seed=5").unwrap();
    assert!(experiment.expand().unwrap_err().to_string().contains("bytes of memory"));
    // An explicit row and its axes are added.
    let fits = (12_288 - 3000 - 2 * 700) / 6;
    for (text, is_within) in [(fits, true), (fits + 1, false)] {
        let row = format!("[[run]]\n_a = 1\n[[run]]\n_a = '{}'\n", "x".repeat(text));
        let mut experiment = directory.experiment(&row).unwrap();
        experiment.override_setting("_n=range(0, 32768)").unwrap();
        assert_eq!(experiment.expand().is_ok(), is_within);
    }
}

fn parameters(of: &[(&str, &str)]) -> Parameters {
    of.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// A run `id` with this seed, which started at `started`.
fn record(id: &str, seed: &str, started: f64, loss: f64) -> Record {
    let parameters = parameters(&[("seed", seed), ("heads", "2")]);
    Record {
        run: id.to_owned(),
        resolved: parameters.clone(),
        parameters,
        status: Status::Ok,
        error: None,
        results: Results { loss_mean: Some(loss), ..Results::default() },
        lags: Lags::default(),
        keep: Keep::None,
        host: "here".to_owned(),
        device: None,
        started,
        took: 0.25,
        command: format!("nmem store seq.npy\t--seed {seed}"),
        build: Build::current().unwrap().clone(),
        inputs: BTreeMap::new(),
    }
}

fn plan(runs: &[&Record]) -> PlanFile {
    let entry = |record: &&Record| PlanEntry {
        run: record.run.clone(),
        parameters: record.parameters.clone(),
        resolved: record.resolved.clone(),
    };
    PlanFile { keys: vec!["heads".to_owned(), "seed".to_owned()], runs: runs.iter().map(entry).collect() }
}

/// Writes the records of one process.
fn write(directory: &Directory, file: &str, records: &[Record]) {
    let lines: String = records.iter().map(|record| serde_json::to_string(record).unwrap() + "\n").collect();
    fs::write(directory.path(&format!("out/records/{file}.jsonl")), lines).unwrap();
}

/// Returns the columns of results.csv by name.
fn columns(directory: &Directory) -> BTreeMap<String, Vec<String>> {
    let mut reader = csv::Reader::from_path(directory.path("out/results.csv")).unwrap();
    let names = reader.headers().unwrap().clone();
    let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
    let column = |i: usize| rows.iter().map(|row| row[i].to_owned()).collect();
    names.iter().enumerate().map(|(i, name)| (name.to_owned(), column(i))).collect()
}

fn collected(directory: &Directory) -> Collected {
    collect(&directory.path("out"), None).unwrap()
}

#[test]
fn records_become_tables() {
    let directory = Directory::new();
    let opened = SweepDirectory::check(&directory.path("out")).unwrap();
    assert!(!opened.exists().unwrap());
    assert!(opened.records().unwrap().runs.is_empty());
    let error = collect(&directory.path("out"), None).map(drop).unwrap_err();
    assert_eq!(directory.message(error), "out: not the directory of a sweep (it has no plans/)");
    let [a, b, c] = [("a", "0", 30.0, 0.5), ("b", "1", 20.0, 1.5), ("c", "2", 10.0, 9.0)]
        .map(|(id, seed, started, loss)| record(id, seed, started, loss));
    let plan = plan(&[&a, &b, &c]);
    opened.start(&plan).unwrap();
    assert!(opened.exists().unwrap());
    assert_eq!(directory.names("out"), ["plans", "records", "runs"]);
    assert_eq!(directory.names("out/plans"), [format!("{}.json", plan.hash())]);

    // Two processes; the second repeats a run, and has one of an earlier plan.
    let mut failed = record("b", "1", 5.0, 0.0);
    (failed.status, failed.error) = (Status::Failed, Some("disk full".to_owned()));
    let other = record("x", "7", 1.0, 4.0);
    write(&directory, "1", &[a.clone(), failed]);
    write(&directory, "2", &[b.clone(), other]);
    let found = collected(&directory);
    assert_eq!((found.planned, found.rows.len(), found.warnings.len()), (3, 3, 0));
    assert_eq!(found.missing.iter().map(|run| &run.run[..]).collect::<Vec<_>>(), ["c"]);
    let table = columns(&directory);
    assert_eq!(table["run"], ["a", "b", "x"]);
    assert_eq!(table["loss_mean"], ["0.5", "1.5", "4"]);
    assert_eq!(table["status"], ["ok"; 3]);
    assert_eq!(table["diverged"], ["false"; 3]);
    assert_eq!(table["error"], [""; 3]);
    // What varies comes first.
    assert!(directory.text("out/results.csv").starts_with("run,seed,heads,status,tokens,"));
    let summary = directory.text("out/summary.csv");
    assert_eq!(summary.lines().count(), 2);
    assert!(summary.lines().nth(1).unwrap().starts_with("2,3,"), "{summary}");
    assert!(summary.contains(",2,"), "{summary}");
    assert!(!directory.path("out/retention.csv").exists());
    // In the order of their starts. Those of no plan are numbered after it.
    let joblog = directory.text("out/joblog.tsv");
    let fields: Vec<Vec<&str>> = joblog.lines().skip(1).map(|line| line.split('\t').collect()).collect();
    assert_eq!(fields[0], ["6", "here", "1.000", "0.250", "0", "0", "0", "0", "nmem store seq.npy --seed 7"]);
    assert_eq!(fields.iter().map(|line| line[0]).collect::<Vec<_>>(), ["6", "2", "1"]);
}

#[test]
fn failures_and_divergence_in_tables() {
    let directory = Directory::new();
    let opened = SweepDirectory::check(&directory.path("out")).unwrap();
    let [a, mut b, mut c] = [("a", "0", 1.0, 0.5), ("b", "1", 2.0, 1.5), ("c", "2", 3.0, 9.0)]
        .map(|(id, seed, started, loss)| record(id, seed, started, loss));
    (b.status, b.error) = (Status::Diverged, Some("NaN in chunk 3".to_owned()));
    b.results.first_unstable_chunk = Some(3.0);
    (c.status, c.error, c.results) = (Status::Failed, Some("disk full".to_owned()), Results::default());
    b.lags = Lags { lag: vec![1, 2], loss_ratio: vec![Some(0.5), None] };
    opened.start(&plan(&[&a, &b, &c])).unwrap();
    write(&directory, "1", &[a, b, c.clone()]);
    let found = collected(&directory);
    assert_eq!((found.rows.len(), found.missing.len()), (3, 0));
    let table = columns(&directory);
    assert_eq!(table["status"], ["ok", "diverged", "failed"]);
    assert_eq!(table["diverged"], ["false", "true", ""]);
    assert_eq!(table["error"], ["", "NaN in chunk 3", "disk full"]);
    assert_eq!(table["first_unstable_chunk"], ["", "3", ""]);
    assert_eq!(
        directory.text("out/retention.csv"),
        "run,seed,heads,lag,status,loss_ratio\nb,1,2,1,diverged,0.5\nb,1,2,2,diverged,NaN\n"
    );
    // Only runs that ended normally are summarised.
    assert!(directory.text("out/summary.csv").lines().nth(1).unwrap().starts_with("2,1,"));
    let joblog = directory.text("out/joblog.tsv");
    assert_eq!(
        joblog.lines().skip(1).map(|line| line.split('\t').nth(6).unwrap()).collect::<Vec<_>>(),
        ["0", "1", "2"]
    );
    // A failed run is tried again; the others are done if their files are there.
    let known = opened.records().unwrap();
    let state = |id: &str, known: &Records, keep| {
        let run = PlannedRun {
            id: id.to_owned(),
            parameters: Parameters::new(),
            resolved: Parameters::new(),
            row: GridRow::default(),
            ready: Err("no such file".to_owned()),
        };
        let states = opened.states(&[&run], known, keep, None).unwrap();
        format!("{}: {}", states[0].name(), states[0].reason())
    };
    let build = Build::current().unwrap();
    for (id, expected) in [
        ("a", format!("current: ok by {build}")),
        ("b", format!("current: diverged by {build}")),
        ("c", "missing: failed: disk full".to_owned()),
        ("absent", "missing: cannot run: no such file".to_owned()),
    ] {
        assert_eq!(state(id, &known, Keep::None), expected);
    }
    assert_eq!(state("a", &known, Keep::Metrics), "missing: has finished, but not all files were kept");
    let mut kept = opened.records().unwrap();
    kept.runs.get_mut("a").unwrap().keep = Keep::Metrics;
    assert_eq!(state("a", &kept, Keep::Metrics), "missing: has finished, but its files are gone");
    fs::create_dir(opened.run("a")).unwrap();
    fs::write(opened.run("a").join("run.json"), "{}").unwrap();
    assert!(state("a", &kept, Keep::Metrics).starts_with("current"));
    assert!(state("a", &kept, Keep::All).starts_with("missing"));
}

/// Runs with the same settings: the plan's replaces others, and a later one an earlier one.
#[test]
fn runs_with_the_same_settings() {
    let directory = Directory::new();
    let opened = SweepDirectory::check(&directory.path("out")).unwrap();
    let planned = record("p", "0", 5.0, 1.0);
    let (early, late) = (record("a", "1", 6.0, 2.0), record("b", "1", 7.0, 3.0));
    let old = record("z", "0", 9.0, 4.0);
    // The same parameters as written, but another file.
    let mut elsewhere = record("e", "0", 4.0, 5.0);
    elsewhere.parameters.insert("data".to_owned(), "seq.npy".to_owned());
    elsewhere.resolved.insert("data".to_owned(), "/b/seq.npy".to_owned());
    let mut here = planned.clone();
    here.parameters.insert("data".to_owned(), "seq.npy".to_owned());
    here.resolved.insert("data".to_owned(), "/a/seq.npy".to_owned());
    // Parameters that no other run has.
    let mut apart = record("f", "2", 3.0, 6.0);
    apart.parameters.insert("data".to_owned(), "seq.npy".to_owned());
    apart.resolved.insert("data".to_owned(), "/a/seq.npy".to_owned());
    opened.start(&plan(&[&here])).unwrap();
    write(&directory, "1", &[planned, early, late, old, elsewhere, apart]);
    let found = collected(&directory);
    let ids: Vec<_> = found.rows.iter().map(|row| &row.run[..]).collect();
    assert_eq!(ids, ["p", "b", "e", "f", "z"]);
    // The plan's spelling counts for its run, and full paths tell files of the same name apart.
    assert_eq!(columns(&directory)["data"], ["seq.npy", "", "/b/seq.npy", "seq.npy", ""]);
}

/// Results of other versions stand for a run until it has one of its own. The latest counts, whatever its name.
#[test]
fn results_of_other_versions() {
    for (starts, latest) in
        [([1.0, 3.0, 2.0], "b"), ([3.0, 2.0, 1.0], "a"), ([1.0, 2.0, 3.0], "c"), ([1.0, 2.0, 2.0], "b")]
    {
        let directory = Directory::new();
        let opened = SweepDirectory::check(&directory.path("out")).unwrap();
        let of_another = |id: &str, seed: &str, started: f64| {
            let mut record = record(id, seed, started, started);
            record.build.version = Some("0.1.0".to_owned());
            record
        };
        let others = ["a", "b", "c"].into_iter().zip(starts);
        let mut records: Vec<_> = others.map(|(id, started)| of_another(id, "0", started)).collect();
        let (absent, present) = (record("p", "0", 0.0, 0.0), record("q", "1", 4.0, 4.0));
        records.extend([present.clone(), of_another("d", "1", 5.0)]);
        // This version has computed it from other inputs, and the other version has failed.
        let (stale, mut failed) = (record("e", "2", 6.0, 6.0), of_another("f", "2", 7.0));
        failed.status = Status::Failed;
        records.extend([stale, failed]);
        let missing = record("r", "2", 0.0, 0.0);
        opened.start(&plan(&[&absent, &present, &missing])).unwrap();
        write(&directory, "1", &records);
        let found = collected(&directory);
        let kept = |(run, record): &(PlanEntry, Record)| (run.run.clone(), record.run.clone());
        let kept: Vec<_> = found.other_version.iter().map(kept).collect();
        assert_eq!((kept, found.missing.len()), (vec![("p".to_owned(), latest.to_owned())], 1), "{starts:?}");
        // The table has the result that stays, and that of the plan's own run.
        let rows: Vec<_> = found.rows.iter().map(|row| &row.run[..]).collect();
        assert_eq!(rows, ["q", latest], "{starts:?}");
    }
}

#[test]
fn plans_and_records_that_cannot_be_read() {
    let directory = Directory::new();
    let opened = SweepDirectory::check(&directory.path("out")).unwrap();
    let a = record("a", "0", 1.0, 0.5);
    let first = plan(&[&a]);
    opened.start(&first).unwrap();
    write(&directory, "1", &[a]);
    fs::write(directory.path("out/records/2.jsonl"), "\n{\n").unwrap();
    fs::write(directory.path("out/records/notes.txt"), "not a record").unwrap();
    fs::write(directory.path("out/plans/0.json"), "{").unwrap();
    let later = std::time::SystemTime::now() + Duration::from_mins(1);
    fs::File::options()
        .write(true)
        .open(directory.path("out/plans/0.json"))
        .unwrap()
        .set_modified(later)
        .unwrap();
    let found = collected(&directory);
    assert_eq!((found.rows.len(), found.missing.len(), found.warnings.len()), (1, 0, 2));
    assert!(found.warnings[0].contains("0.json: expected the plan of a sweep, got "), "{:?}", found.warnings);
    assert!(found.warnings[1].contains("2.jsonl, line 2: not a complete record"), "{:?}", found.warnings);
    // A plan that is named must be readable, and there must be one.
    let named = |hash: &str| collect(&directory.path("out"), Some(hash)).map(drop);
    named(&first.hash()).unwrap();
    assert!(named("0").is_err() && named("1").is_err());
    fs::remove_file(directory.path(&format!("out/plans/{}.json", first.hash()))).unwrap();
    let text = collect(&directory.path("out"), None).map(drop).unwrap_err().to_string();
    assert!(text.ends_with("no plan can be read; start the sweep again"), "{text}");
}

#[test]
fn plans_are_named_by_their_content() {
    let (a, b) = (record("a", "0", 1.0, 0.5), record("b", "1", 1.0, 0.5));
    let hash = |runs: &[&Record]| plan(runs).hash();
    assert_eq!(hash(&[&a, &b]), hash(&[&a, &b]));
    let all = BTreeSet::from([hash(&[&a]), hash(&[&b]), hash(&[&a, &b]), hash(&[&b, &a]), hash(&[])]);
    assert_eq!(all.len(), 5);
    for hash in all {
        assert!(hash.len() == 12 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{hash}");
    }
}

/// Only what sweeps write is removed, and only if nothing else is among it.
#[test]
fn clearing_a_sweep() {
    let directory = Directory::new();
    let out = directory.path("out");
    let a = record("a", "0", 1.0, 0.5);
    let files = [
        "results.csv",
        "retention.csv",
        "summary.csv",
        "joblog.tsv",
        "sweep.sbatch",
        "collect.sbatch",
        "runs/a/run.json",
        "plots/loss_mean_per_tokens.svg",
        "plots/loss_ratio_per_tokens-data.csv",
        "plots/tokens_per_s.pdf",
        "plots/retention.png",
        "slurm/1_1.log",
        "records/1.jsonl",
        "plans/.lock",
    ];
    let fill = || {
        SweepDirectory::check(&out).unwrap().start(&plan(&[&a])).unwrap();
        for file in files {
            fs::create_dir_all(out.join(file).parent().unwrap()).unwrap();
            fs::write(out.join(file), "").unwrap();
        }
    };
    for foreign in [
        "runs/a.txt",
        "runs/b/mine.txt",
        "plots/mine.svg",
        "plots/loss_mean.txt",
        "plots/loss_mean_per_mine.svg",
        "plots/deep/loss_mean.svg",
        "slurm/notes.txt",
        "records/notes.txt",
        "records/deep.jsonl/x",
        "plans/notes.txt",
        "plans/deep.json/x",
    ] {
        fill();
        fs::create_dir_all(out.join(foreign).parent().unwrap()).unwrap();
        fs::write(out.join(foreign), "mine").unwrap();
        let text = directory.message(SweepDirectory::check(&out).unwrap().clear().unwrap_err());
        assert!(text.starts_with("--force: out/") && text.contains(" was not written by a sweep"), "{text}");
        assert!(files.iter().all(|file| out.join(file).exists()), "{foreign}");
        fs::remove_dir_all(&out).unwrap();
    }
    fill();
    fs::write(out.join("mine.txt"), "").unwrap();
    // Left by a killed process.
    fs::write(out.join("records/.x.nmem-AAAAAA"), "").unwrap();
    let opened = SweepDirectory::check(&out).unwrap();
    opened.clear().unwrap();
    assert_eq!(directory.names("out"), ["mine.txt"]);
    // Nothing to clear is no error. A file in a directory's place is someone else's.
    opened.clear().unwrap();
    fs::write(out.join("runs"), "").unwrap();
    assert!(directory.message(opened.clear().unwrap_err()).starts_with("--force: out/runs was not written"));
}

#[test]
fn directories_that_a_sweep_may_use() {
    let directory = Directory::new();
    let check = |name: &str| {
        let opened = SweepDirectory::check(&directory.path(name));
        opened.map(|opened| opened.path().to_path_buf()).map_err(|error| directory.message(error))
    };
    assert_eq!(check("new").unwrap(), directory.path("new"));
    assert_eq!(check("new/").unwrap(), directory.path("new"));
    fs::create_dir(directory.path("empty")).unwrap();
    assert!(check("empty").is_ok());
    fs::write(directory.path("empty/.x.nmem-AAAAAA"), "").unwrap();
    assert!(check("empty").is_ok(), "a temporary of a killed process");
    fs::write(directory.path("empty/mine"), "").unwrap();
    assert_eq!(
        check("empty").unwrap_err(),
        "--out: empty holds mine, which no sweep wrote; choose another directory"
    );
    fs::create_dir(directory.path("empty/plans")).unwrap();
    assert!(check("empty").is_ok(), "a sweep's directory may hold other files");
    assert_eq!(check("empty/mine").unwrap_err(), "--out: empty/mine is not a directory");
    std::os::unix::fs::symlink("nothing", directory.path("dangling")).unwrap();
    assert!(check("dangling").unwrap_err().starts_with("dangling: cannot read"));
}

/// Several processes share a directory; clearing excludes them, and they exclude it.
#[test]
fn locks_of_a_directory() {
    let directory = Directory::new();
    let opened = SweepDirectory::check(&directory.path("out")).unwrap();
    let first = opened.lock(false).unwrap();
    let second = opened.lock(false).unwrap();
    let text = directory.message(opened.lock(true).unwrap_err());
    let out = directory.path("out");
    assert!(text.starts_with("--force: another sweep is running in "), "{text} {}", out.display());
    drop((first, second));
    let alone = opened.lock(true).unwrap();
    let text = directory.message(opened.lock(false).unwrap_err());
    assert!(text.starts_with("--out: another sweep is clearing "), "{text}");
    drop(alone);
    opened.lock(false).unwrap();
    // Stale temporaries go, from the directory and from those in it.
    for name in ["out/.x.nmem-AAAAAA", "out/plans/.x.nmem-AAAAAA", "out/plans/kept.json"] {
        fs::write(directory.path(name), "").unwrap();
    }
    opened.clear_stale();
    assert_eq!(directory.names("out"), ["plans"]);
    assert_eq!(directory.names("out/plans"), [".lock", "kept.json"]);
    assert_eq!(opened.path(), Path::new(&out));
}

/// A stale run is explained by the latest result with its settings, whatever its name.
#[test]
fn the_latest_stale_result_is_compared() {
    let directory = Directory::new();
    let tokens = ndarray::Array2::<f32>::from_shape_fn((8, 4), |(t, d)| (t * 4 + d) as f32 / 32.0);
    ndarray_npy::write_npy(directory.path("seq.npy"), &tokens).unwrap();
    let experiment = directory.experiment("data = 'seq.npy'\nchunk_size = 4\n[grid]\nseed = [1]\n").unwrap();
    let plan = Plan::new(&experiment, f64::INFINITY, &mut |_| Ok(())).unwrap();
    let opened = SweepDirectory::check(&directory.path("out")).unwrap();
    for (starts, latest) in
        [([1.0, 3.0, 2.0], "b"), ([3.0, 2.0, 1.0], "a"), ([1.0, 2.0, 3.0], "c"), ([1.0, 2.0, 2.0], "b")]
    {
        let records = ["a", "b", "c"].into_iter().zip(starts).map(|(id, started)| {
            let resolved = plan.runs[0].resolved.clone();
            (id.to_owned(), Record { resolved, ..record(id, "1", started, 0.5) })
        });
        let known = Records { runs: records.collect(), unreadable: Vec::new() };
        let states = opened.states(&[&plan.runs[0]], &known, Keep::None, None).unwrap();
        assert!(matches!(&states[0], RunState::Stale(record, _) if record.run == latest), "{starts:?}");
    }
}

/// Ctrl-C is noticed while the inputs of a plan are read.
#[test]
fn reading_the_inputs_can_be_interrupted() {
    let directory = Directory::new();
    let tokens = ndarray::Array2::<f32>::from_shape_fn((64, 4), |(t, d)| (t * 4 + d) as f32 / 256.0);
    ndarray_npy::write_npy(directory.path("seq.npy"), &tokens).unwrap();
    for command in ["store", "train"] {
        let toml = format!("run = '{command}'\ndata = 'seq.npy'\nchunk_size = 4\n[grid]\nseed = [1, 2]\n");
        let experiment = directory.experiment(&toml).unwrap();
        assert_eq!(Plan::new(&experiment, f64::INFINITY, &mut |_| Ok(())).unwrap().runs.len(), 2);
        let interrupted = Plan::new(&experiment, f64::INFINITY, &mut |_| Err(nmem::Error::Interrupted));
        assert!(matches!(interrupted, Err(nmem::Error::Interrupted)), "{command}");
    }
}

/// More workers than cores: the threads of the runs that are under way are never more than the cores.
#[test]
fn runs_wait_for_their_threads() {
    let directory = Directory::new();
    let tokens = ndarray::Array2::<f32>::from_shape_fn((8, 4), |(t, d)| (t * 4 + d) as f32 / 32.0);
    ndarray_npy::write_npy(directory.path("seq.npy"), &tokens).unwrap();
    let toml = "data = 'seq.npy'\nchunk_size = 4\n[grid]\nseed = 'range(0, 12)'\nthreads = [1, 2]\n";
    let experiment = directory.experiment(toml).unwrap();
    let plan = Plan::new(&experiment, f64::INFINITY, &mut |_| Ok(())).unwrap();
    assert_eq!((plan.runs.len(), plan.repeated), (24, 0));
    let opened = SweepDirectory::check(&directory.path("out")).unwrap();
    opened.start(&plan.file()).unwrap();
    let devices = Devices::open([DeviceChoice::default()]).unwrap();
    let options = Options {
        jobs: 8,
        cores: 3,
        keep: Keep::Metrics,
        fail_fast: false,
        unstable_ratio: f64::INFINITY,
        timeout: None,
    };
    // A run announces its start while it holds its threads.
    let (busy, most) = (Mutex::new(0), Mutex::new(0));
    let observe = |event: SweepEvent| {
        if let SweepEvent::Started(run) = event {
            let threads: usize = run.parameters["threads"].parse().unwrap();
            {
                let mut busy = busy.lock().unwrap();
                *busy += threads;
                let mut most = most.lock().unwrap();
                *most = (*most).max(*busy);
            }
            std::thread::sleep(Duration::from_millis(2));
            *busy.lock().unwrap() -= threads;
        }
        Ok(())
    };
    let places: Vec<usize> = (0..plan.runs.len()).collect();
    let (records, ended) = sweep::run(&opened, &plan, &places, &options, &devices, &observe);
    ended.unwrap();
    assert!(*most.lock().unwrap() <= 3, "{} threads on 3 cores", most.lock().unwrap());
    // Records are in the plan's order, whichever run ended first.
    let ids = |runs: &mut dyn Iterator<Item = String>| runs.collect::<Vec<_>>();
    let expected = ids(&mut plan.runs.iter().map(|run| run.id.clone()));
    assert_eq!(ids(&mut records.iter().map(|record| record.run.clone())), expected);
    assert!(records.iter().all(|record| record.status == Status::Ok && record.error.is_none()));
    assert_eq!(collected(&directory).missing.len(), 0);
    // Each has the threads that it asks for.
    for record in &records {
        let json = directory.text(&format!("out/runs/{}/run.json", record.run));
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["threads"].to_string(), record.parameters["threads"]);
    }
    // The number of threads is part of a run's identity, and changes no number.
    for pair in records.chunks(2) {
        assert_ne!(pair[0].run, pair[1].run);
        assert_eq!(pair[0].results.loss_mean, pair[1].results.loss_mean);
        assert_eq!(pair[0].results.tokens, Some(8.0));
    }
}

/// The files of one run cannot be moved into place. Its record says so, and those of its neighbours do not.
#[test]
fn a_run_whose_place_is_taken_fails_alone() {
    let directory = Directory::new();
    let tokens = ndarray::Array2::<f32>::from_shape_fn((8, 4), |(t, d)| (t * 4 + d) as f32 / 32.0);
    ndarray_npy::write_npy(directory.path("seq.npy"), &tokens).unwrap();
    let toml = "data = 'seq.npy'\nchunk_size = 4\n[grid]\nseed = 'range(0, 5)'\n";
    let plan = Plan::new(&directory.experiment(toml).unwrap(), f64::INFINITY, &mut |_| Ok(())).unwrap();
    let opened = SweepDirectory::check(&directory.path("out")).unwrap();
    opened.start(&plan.file()).unwrap();
    let devices = Devices::open([DeviceChoice::default()]).unwrap();
    let options = Options {
        jobs: 1,
        cores: 1,
        keep: Keep::Metrics,
        fail_fast: false,
        unstable_ratio: f64::INFINITY,
        timeout: None,
    };
    let current = Mutex::new(String::new());
    let taken = opened.run(&plan.runs[2].id);
    let observe = |event: SweepEvent| {
        match event {
            SweepEvent::Started(run) => current.lock().unwrap().clone_from(&run.id),
            // The run has its hidden directory by now.
            SweepEvent::Working if *current.lock().unwrap() == plan.runs[2].id => {
                fs::write(&taken, "mine").unwrap();
            }
            _ => {}
        }
        Ok(())
    };
    let (records, ended) = sweep::run(&opened, &plan, &[0, 1, 2, 3, 4], &options, &devices, &observe);
    ended.unwrap();
    let failed: Vec<_> = records.iter().map(|record| record.status == Status::Failed).collect();
    assert_eq!(failed, [false, false, true, false, false]);
    let reason = records[2].error.as_deref().unwrap();
    assert!(reason.ends_with("is not a directory; choose another name"), "{reason}");
    assert_eq!((records[2].results.clone(), records[2].lags.clone()), (Results::default(), Lags::default()));
    assert_eq!(fs::read_to_string(&taken).unwrap(), "mine");
    for run in [0, 1, 3, 4].map(|place| &plan.runs[place]) {
        assert!(opened.run(&run.id).join("run.json").is_file());
    }
}
