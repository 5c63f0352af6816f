//! `nmem store` of several sequences, which may have different lengths: each is a run with its own results.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::run::{RunArgs, command_line, print_divergence};
use super::table::{aligned, number};
use super::{FAILED, Format, check_interrupt, print, print_error};
use crate::config::{Command, Config, Settings};
use crate::error::{Error, Result};
use crate::escape::for_terminal;
use crate::io::text::TextFile;
use crate::metrics::COLUMNS;
use crate::run::{InputCache, ResolvedInputs, RunIdentity, read_json};
use crate::statistics::Estimate;
use crate::storage;

/// Maximum number of sequences, as many as runs of a sweep.
const MAX_SEQUENCES: usize = 1 << 16;

/// Status of a sequence that was stored to its end.
const OK: &str = "ok";

/// Sequences to store, and the directory with the results of all.
pub struct Sequences {
    files: Vec<PathBuf>,
    out: PathBuf,
}

/// A stored sequence.
struct Stored {
    file: PathBuf,
    /// Content of run.json.
    report: Value,
    /// Whether an earlier start of the command has stored it.
    before: bool,
}

/// Returns the sequences if there are several, or a directory of them.
pub fn sequences(settings: &Settings, more: &[PathBuf]) -> Result<Option<Sequences>> {
    let Some(first) = settings.data.clone() else { return Ok(None) };
    let is_directory = first != Path::new("-") && storage::is_directory(&first)?;
    if more.is_empty() && !is_directory {
        return Ok(None);
    }
    let mut files = Vec::new();
    for path in [&first].into_iter().chain(more) {
        if path == Path::new("-") {
            return Err(Error::rejected("-", "standard input is one sequence; store it alone"));
        }
        if storage::is_directory(path)? {
            files.extend(arrays_in(path)?);
        } else {
            std::fs::metadata(path).map_err(Error::io(path, "open"))?;
            files.push(path.clone());
        }
    }
    if files.len() > MAX_SEQUENCES {
        return Err(Error::setting(
            "SEQ.npy",
            format!("at most {MAX_SEQUENCES} sequences"),
            files.len().to_string(),
        ));
    }
    if settings.labels.is_some() {
        return Err(Error::rejected(
            "--labels",
            "marks the tokens of one sequence; store the sequences one by one",
        ));
    }
    let mut known = BTreeMap::new();
    for file in &files {
        if let Some(other) = known.insert(file.file_stem(), file) {
            let reason = format!(
                "{} and {} have the same name, and so would their results; store them into two directories",
                other.display(),
                file.display()
            );
            return Err(Error::rejected("SEQ.npy", reason));
        }
    }
    let directory = if is_directory { first } else { storage::parent_of(&first).to_path_buf() };
    let out = settings.out.clone().unwrap_or_else(|| {
        let directory = std::fs::canonicalize(&directory).unwrap_or(directory);
        let mut name = directory.file_name().unwrap_or_default().to_os_string();
        name.push("-store");
        Path::new("results").join(name)
    });
    Ok(Some(Sequences { files, out }))
}

/// Returns the .npy files of a directory, sorted by name.
fn arrays_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let error = || Error::io(directory, "read");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(error())? {
        let path = entry.map_err(error())?.path();
        if path.extension().is_some_and(|extension| extension == "npy") {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Error::file(directory, ".npy files in the directory", "none"));
    }
    files.sort();
    Ok(files)
}

/// Stores each sequence from the same initial memory. Sequences that an earlier start of the same command has stored are not
/// stored again. A sequence that cannot be stored is reported, and the others are stored.
pub fn run(
    args: &RunArgs,
    settings: &Settings,
    file: Option<&TextFile>,
    Sequences { files, out }: &Sequences,
) -> anyhow::Result<ExitCode> {
    let (mut stored, mut failed) = (Vec::new(), false);
    for path in files {
        let mut settings = settings.clone();
        settings.data = Some(path.clone());
        settings.out = Some(out.join(path.file_stem().unwrap_or_default()));
        let config = args.config(settings, file, Command::Store)?;
        let report = match earlier(&config) {
            Ok(Some(report)) if !args.is_forced() => Ok((report, true)),
            Ok(_) => {
                let report = args.run(Command::Store, &config, command_line());
                report.and_then(|report| {
                    print_divergence(&report);
                    Ok((serde_json::to_value(report)?, false))
                })
            }
            Err(error) => Err(error.into()),
        };
        match report {
            Ok((report, before)) => stored.push(Stored { file: path.clone(), report, before }),
            Err(error) => {
                if matches!(error.downcast_ref(), Some(Error::Interrupted | Error::Preempted { .. })) {
                    return Err(error);
                }
                let (text, name) = (format!("{error:#}"), path.display().to_string());
                print_error(&if text.contains(&name) { text } else { format!("{name}: {text}") });
                failed = true;
            }
        }
    }
    for diverged in stored.iter().filter(|stored| stored.status() != OK) {
        failed = true;
        if diverged.before {
            let file = diverged.file.display();
            print_error(&format!(
                "{file}: diverged when it was stored before; use --force to store it again"
            ));
        }
    }
    if !stored.is_empty() {
        storage::replace(&out.join("summary.csv"), &summary(&stored)?)?;
    }
    match args.format() {
        Format::Json => {
            let reports: Vec<_> = stored.iter().map(|stored| &stored.report).collect();
            let all = json!({ "out": out.to_string_lossy(), "sequences": files.len(), "runs": reports });
            print(&format!("{}\n", serde_json::to_string_pretty(&all)?))
        }
        Format::Table if args.is_quiet() || stored.is_empty() => Ok(true),
        Format::Table => print(&table(&stored, files.len(), out)),
    }?;
    Ok(if failed { FAILED.into() } else { ExitCode::SUCCESS })
}

/// Returns the run.json of an earlier run with the same settings and inputs.
fn earlier(config: &Config) -> Result<Option<Value>> {
    let Some(json) = read_json(&config.out.join("run.json"))? else { return Ok(None) };
    let inputs = ResolvedInputs::open(config, false, &InputCache::default(), &mut |_| check_interrupt())?;
    let same = RunIdentity::new(Command::Store, config, &inputs).difference(&json, false).is_none();
    Ok(same.then_some(json))
}

impl Stored {
    fn status(&self) -> &'static str {
        if self.report["diverged"].is_null() { OK } else { "diverged" }
    }

    /// Mean of a column of metrics.csv.
    fn mean(&self, column: &str) -> Option<f64> {
        self.report["summary"][column]["mean"].as_f64()
    }
}

/// Formats summary.csv: a row per sequence, with the means of its metrics.
fn summary(stored: &[Stored]) -> anyhow::Result<Vec<u8>> {
    let mut csv = csv::Writer::from_writer(Vec::new());
    let counts = ["sequences", "tokens", "rows"];
    // Indices have no mean.
    let measured = &COLUMNS[5..];
    csv.write_record(["data", "status"].into_iter().chain(counts).chain(measured.iter().copied()))?;
    for run in stored {
        let counts = counts.map(|name| run.report[name].to_string());
        let means =
            measured.iter().map(|column| run.mean(column).map_or(String::new(), |mean| mean.to_string()));
        let data = run.file.to_string_lossy().into_owned();
        csv.write_record([data, run.status().to_owned()].into_iter().chain(counts).chain(means))?;
    }
    Ok(csv.into_inner()?)
}

/// Columns of the table for people.
const SHOWN: [&str; 4] = ["loss", "loss_before", "loss_after", "surprise"];

fn table(stored: &[Stored], all: usize, out: &Path) -> String {
    let shown = || SHOWN.iter().filter(|column| stored.iter().any(|run| run.mean(column).is_some()));
    let header = ["sequence", "tokens"].into_iter().chain(shown().copied());
    let mut rows = vec![header.map(str::to_owned).collect::<Vec<_>>()];
    for run in stored {
        let name = run.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let means = shown().map(|column| run.mean(column).map_or(String::new(), number));
        rows.push([name, run.report["tokens"].to_string()].into_iter().chain(means).collect());
        if run.status() != OK {
            rows.last_mut().into_iter().for_each(|row| row.push("diverged".to_owned()));
        }
    }
    let well: Vec<_> = stored.iter().filter(|run| run.status() == OK).collect();
    if well.len() > 1 {
        let mean = |column: &&str| {
            let values: Option<Vec<f64>> = well.iter().map(|run| run.mean(column)).collect();
            let estimate = values.and_then(|values| Estimate::from_values(&values));
            estimate.map_or(String::new(), |of| {
                let half = of.interval.map_or(0.0, |(low, high)| 0.5 * (high - low));
                format!("{} ± {}", number(of.center), number(half))
            })
        };
        rows.push(["mean ± 95 %".to_owned(), String::new()].into_iter().chain(shown().map(mean)).collect());
    }
    let mut text = String::new();
    for line in aligned(&rows, 1) {
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let before = stored.iter().filter(|run| run.before).count();
    let _ = writeln!(text, "{} of {all} sequences stored, {before} of them before", stored.len());
    let _ =
        writeln!(text, "results          {}", for_terminal(&out.join("summary.csv").display().to_string()));
    text
}
