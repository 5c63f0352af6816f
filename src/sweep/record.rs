//! What is known of finished runs: records/, a line of JSON a run and a file a process, so that shards share a folder on
//! any file system without locks. A line that a killed process left torn is none.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::results::{Results, Status};
use super::row::Parameters;
use crate::error::{Error, Result};
use crate::run::{Keep, Tally};

/// A finished run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Start of its identity.
    pub run: String,
    /// By name.
    pub parameters: Parameters,
    /// See [`PlannedRun::resolved`](super::PlannedRun::resolved).
    pub resolved: Parameters,
    /// How it ended.
    pub status: Status,
    /// Why not well.
    pub error: Option<String>,
    /// Its numbers.
    pub results: Results,
    /// With retention.
    #[serde(default)]
    pub lags: Lags,
    /// Which of its files were written to runs/.
    pub keep: Keep,
    /// Machine.
    pub host: String,
    /// What computed it: "cpu", or "cuda:0" and the GPU's name.
    #[serde(default)]
    pub device: Option<String>,
    /// Seconds since 1970.
    pub started: f64,
    /// Seconds it took, waiting for a GPU included.
    pub took: f64,
    /// The command line that does the same.
    pub command: String,
}

/// How the loss of kept chunks grew: a row of the sweep's retention.csv each.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lags {
    /// Chunks stored since a chunk was kept, ascending.
    pub lag: Vec<usize>,
    /// Σ loss ÷ Σ ℓ at W at that lag; `None` where it is not finite.
    pub loss_ratio: Vec<Option<f64>>,
}

/// More lags than a figure can show are thinned to every k-th, so that records stay short.
const MOST_LAGS: usize = 256;

impl Lags {
    /// Of a run that came to an end.
    pub fn of(tally: &Tally) -> Self {
        let lags = tally.lags();
        let stride = lags.len().div_ceil(MOST_LAGS).max(1);
        let finite = |(lag, ratio): (usize, f64)| (lag, Some(ratio).filter(|ratio| ratio.is_finite()));
        let (lag, loss_ratio) = lags.step_by(stride).map(finite).unzip();
        Self { lag, loss_ratio }
    }
}

impl Record {
    /// A failed run is tried again: its reason may be gone. A diverged one would diverge again.
    pub fn is_final(&self) -> bool {
        self.status != Status::Failed
    }
}

/// Seconds since 1970.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Name of this machine, as a file's name can hold it.
pub(super) fn host() -> String {
    let name = sysinfo::System::host_name().unwrap_or_else(|_| "localhost".to_owned());
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

/// Appends records to a file of its own, which the first one makes.
pub(super) struct RecordWriter {
    path: PathBuf,
    file: Option<File>,
}

impl RecordWriter {
    pub fn new(folder: &Path) -> Self {
        let name = format!("{}-{}-{:.0}.jsonl", host(), std::process::id(), now() * 1e6);
        Self { path: folder.join(name), file: None }
    }

    /// One write a record: it is there whole or, of a killed process, torn.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let made = OpenOptions::new().append(true).create_new(true).open(&self.path);
                none.insert(made.map_err(Error::io(&self.path, "create"))?)
            }
        };
        let mut line = serde_json::to_string(record).expect("text and numbers");
        line.push('\n');
        file.write_all(line.as_bytes()).map_err(Error::io(&self.path, "write"))
    }
}

/// All finished runs of records/, by identity; the last record of each, a failed one only where there is no other.
pub(super) fn read_all(folder: &Path) -> Result<BTreeMap<String, Record>> {
    let mut records = BTreeMap::<String, Record>::new();
    let mut files = Vec::new();
    let entries = match std::fs::read_dir(folder) {
        // Another process has only just begun here.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(records),
        entries => entries.map_err(Error::io(folder, "read"))?,
    };
    for entry in entries {
        files.push(entry.map_err(Error::io(folder, "read"))?.path());
    }
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    for path in files {
        let mut bytes = std::fs::read(&path).map_err(Error::io(&path, "read"))?;
        bytes.truncate(bytes.iter().rposition(|&byte| byte == b'\n').unwrap_or(0));
        let lines = bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        for (number, line) in lines.enumerate() {
            let record: Record = serde_json::from_slice(line).map_err(|error| {
                let got = format!("this in line {}: {error} (--force starts anew)", number + 1);
                Error::file(&path, "the record of a run", got)
            })?;
            let rank = |record: &Record| (record.is_final(), record.started);
            match records.get(&record.run) {
                Some(known) if rank(known) > rank(&record) => {}
                _ => {
                    records.insert(record.run.clone(), record);
                }
            }
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(run: &str, status: Status, started: f64) -> Record {
        Record {
            run: run.to_owned(),
            parameters: Parameters::new(),
            resolved: Parameters::new(),
            status,
            error: None,
            results: Results { loss_mean: Some(0.1), ..Results::default() },
            lags: Lags { lag: vec![0, 8], loss_ratio: vec![Some(0.5), None] },
            keep: Keep::None,
            device: None,
            host: "here".to_owned(),
            started,
            took: 0.5,
            command: String::new(),
        }
    }

    #[test]
    fn a_torn_line_is_none_and_a_failure_gives_way() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = RecordWriter::new(folder.path());
        first.write(&record("a", Status::Ok, 1.0)).unwrap();
        first.write(&record("b", Status::Failed, 2.0)).unwrap();
        let line = serde_json::to_string(&record("c", Status::Ok, 3.0)).unwrap();
        // Torn within a letter.
        let torn = [&line.as_bytes()[..40], &"é".as_bytes()[..1]].concat();
        first.file.as_mut().unwrap().write_all(&torn).unwrap();
        let mut second = RecordWriter::new(folder.path());
        second.write(&record("a", Status::Failed, 4.0)).unwrap();
        second.write(&record("b", Status::Ok, 5.0)).unwrap();
        let records = read_all(folder.path()).unwrap();
        let found: Vec<_> = records.values().map(|record| (&*record.run, record.started)).collect();
        assert_eq!(found, [("a", 1.0), ("b", 5.0)]);
        assert_eq!(records["a"], record("a", Status::Ok, 1.0));
    }

    #[test]
    fn a_broken_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("x.jsonl"), "{}\n").unwrap();
        let error = read_all(folder.path()).unwrap_err().to_string();
        assert!(error.contains("x.jsonl: expected the record of a run, got this in line 1"), "{error}");
    }
}
