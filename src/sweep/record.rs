//! Records of finished runs, in records/. Each run is a line of JSON, and each process has its own file. So shards can share
//! a directory on any file system without locks. The run of a line that cannot be read counts as missing.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::results::{Results, Status};
use super::row::Parameters;
use crate::condition::Value;
use crate::error::{Error, Result};
use crate::run::{Build, Keep, RunStatistics};
use crate::storage::{self, OutFile};

/// A finished run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Start of the identity.
    pub run: String,
    /// Parameters by name.
    pub parameters: Parameters,
    /// See [`PlannedRun::resolved`](super::PlannedRun::resolved).
    pub resolved: Parameters,
    /// Status at the end of the run.
    pub status: Status,
    /// Reason if the run failed or diverged.
    pub error: Option<String>,
    /// Numbers of the run.
    pub results: Results,
    /// Loss ratios of kept chunks, with retention.
    #[serde(default)]
    pub lags: Lags,
    /// Files of the run that were kept in runs/.
    pub keep: Keep,
    /// Name of the machine.
    pub host: String,
    /// Device that computed the run: "cpu", or "cuda:0" and the GPU's name.
    #[serde(default)]
    pub device: Option<String>,
    /// Start of the run in seconds since 1970.
    pub started: f64,
    /// Duration in seconds, including the wait for a GPU.
    pub took: f64,
    /// Command line of an equivalent single run.
    pub command: String,
    /// Program that computed the run.
    #[serde(flatten)]
    pub build: Build,
    /// SHA-256 of each input by role; empty in records of nmem 0.2 and earlier.
    #[serde(default)]
    pub inputs: BTreeMap<String, String>,
}

/// Growth of the loss of kept chunks. Each lag is a row of the sweep's retention.csv.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lags {
    /// Number of chunks stored since a chunk was kept, ascending.
    pub lag: Vec<usize>,
    /// Σ loss ÷ Σ ℓ at W at each lag; `None` if it is not finite.
    pub loss_ratio: Vec<Option<f64>>,
}

/// Maximum number of lags in a record. More than a figure can show are thinned to every k-th.
const MAX_LAGS: usize = 256;

impl Lags {
    /// Returns the lags of a run that ended normally or diverged.
    pub fn from_statistics(statistics: &RunStatistics) -> Self {
        let lags = statistics.lags();
        let stride = lags.len().div_ceil(MAX_LAGS).max(1);
        let finite = |(lag, ratio): (usize, f64)| (lag, Some(ratio).filter(|ratio| ratio.is_finite()));
        let (lag, loss_ratio) = lags.step_by(stride).map(finite).unzip();
        Self { lag, loss_ratio }
    }
}

impl Record {
    /// Marks a run as failed because its files could not be moved into place.
    pub(super) fn fail(&mut self, reason: String) {
        self.status = Status::Failed;
        self.error = Some(reason);
        self.results = Results::default();
        self.lags = Lags::default();
    }

    /// Returns a parameter or a result, for a condition.
    pub fn value(&self, name: &str) -> Option<Value<'_>> {
        let text = match name {
            "status" => Some(self.status.name()),
            "version" => self.build.version.as_deref(),
            "commit" => self.build.commit.as_deref(),
            name => self.parameters.get(name).map(String::as_str),
        };
        text.map(Value::Text).or_else(|| self.results.get(name).map(Value::Number))
    }

    /// Returns whether the run need not be tried again. A failed run is, because its reason may be gone. A diverged one would
    /// diverge again.
    pub fn is_final(&self) -> bool {
        self.status != Status::Failed
    }
}

/// Returns the seconds since 1970.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Returns the name of this machine in characters that file names allow.
pub(super) fn host() -> String {
    let name = sysinfo::System::host_name().unwrap_or_else(|_| "localhost".to_owned());
    in_file_names(&name)
}

/// Replaces characters that are not letters, digits or hyphens of ASCII.
fn in_file_names(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
}

/// Writer that appends records to its own file, created by the first write.
pub(super) struct RecordWriter {
    directory: PathBuf,
    file: Option<(PathBuf, OutFile)>,
}

impl RecordWriter {
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_path_buf(), file: None }
    }

    /// Appends records and waits until they are on the disk. If that fails, none of them is kept, and later records go to
    /// another file.
    pub fn write<'a>(&mut self, records: impl IntoIterator<Item = &'a Record>) -> Result<()> {
        let mut lines = Vec::new();
        for record in records {
            serde_json::to_writer(&mut lines, record).expect("text and numbers can be serialized");
            lines.push(b'\n');
        }
        if lines.is_empty() {
            return Ok(());
        }
        let (path, mut file) = self.file.take().map_or_else(|| self.new_file(), Ok)?;
        let mut append = || -> io::Result<()> {
            let before = file.length()?;
            let written = file.write_all(&lines).and_then(|()| file.sync());
            if written.is_err() {
                // If even that fails, the file stays as it is and is never appended to again.
                file.set_length(before)?;
            }
            written
        };
        append().map_err(Error::io(&path, "write"))?;
        self.file = Some((path, file));
        Ok(())
    }

    fn new_file(&self) -> Result<(PathBuf, OutFile)> {
        let name = format!("{}-{}-{:.0}.jsonl", host(), std::process::id(), now() * 1e6);
        let path = self.directory.join(name);
        let file = OutFile::create_for_append(&path).map_err(Error::io(&path, "create"))?;
        storage::sync_directory(&self.directory).map_err(Error::io(&self.directory, "sync"))?;
        Ok((path, file))
    }
}

/// Content of records/.
#[derive(Debug, Default)]
pub struct Records {
    /// Finished runs, by identity.
    pub runs: BTreeMap<String, Record>,
    /// Messages about lines that cannot be read.
    pub unreadable: Vec<String>,
}

/// Reads records/: the last record of each run, by identity. A failed record counts only if the run has no other.
pub(super) fn read_all(directory: &Path) -> Result<Records> {
    let Records { runs: mut records, mut unreadable } = Records::default();
    let mut files = Vec::new();
    let entries = match std::fs::read_dir(directory) {
        // Another process has just created the sweep's directory.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Records::default()),
        entries => entries.map_err(Error::io(directory, "read"))?,
    };
    for entry in entries {
        files.push(entry.map_err(Error::io(directory, "read"))?.path());
    }
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    for path in files {
        let file = std::fs::File::open(&path).map_err(Error::io(&path, "open"))?;
        for (number, line) in io::BufRead::split(io::BufReader::new(file), b'\n').enumerate() {
            let line = line.map_err(Error::io(&path, "read"))?;
            let record: Record = match serde_json::from_slice(&line) {
                Ok(record) => record,
                Err(_) if line.is_empty() => continue,
                Err(error) => {
                    unreadable.push(format!(
                        "{}, line {}: not a complete record of a run ({error}); that run counts as missing",
                        path.display(),
                        number + 1
                    ));
                    continue;
                }
            };
            let rank = |record: &Record| (record.is_final(), record.started);
            match records.get(&record.run) {
                Some(known) if rank(known) > rank(&record) => {}
                _ => {
                    records.insert(record.run.clone(), record);
                }
            }
        }
    }
    Ok(Records { runs: records, unreadable })
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
            build: Build::default(),
            inputs: BTreeMap::new(),
        }
    }

    #[test]
    fn names_of_machines_fit_into_file_names() {
        assert_eq!(in_file_names("gpu-07.cluster/ä b"), "gpu-07_cluster___b");
        assert_eq!(host(), in_file_names(&sysinfo::System::host_name().unwrap()));
    }

    #[test]
    fn a_torn_line_is_skipped_and_a_failure_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let mut first = RecordWriter::new(directory.path());
        first.write([&record("a", Status::Ok, 1.0), &record("b", Status::Failed, 2.0)]).unwrap();
        let line = serde_json::to_string(&record("c", Status::Ok, 3.0)).unwrap();
        // A line truncated within a character.
        let torn = [&line.as_bytes()[..40], &"é".as_bytes()[..1]].concat();
        first.file.as_mut().unwrap().1.write_all(&torn).unwrap();
        let mut second = RecordWriter::new(directory.path());
        second.write([&record("a", Status::Failed, 4.0)]).unwrap();
        second.write([&record("b", Status::Ok, 5.0)]).unwrap();
        let Records { runs: records, unreadable } = read_all(directory.path()).unwrap();
        assert_eq!(unreadable.len(), 1, "{unreadable:?}");
        let found: Vec<_> = records.values().map(|record| (&*record.run, record.started)).collect();
        assert_eq!(found, [("a", 1.0), ("b", 5.0)]);
        assert_eq!(records["a"], record("a", Status::Ok, 1.0));
    }

    #[test]
    fn broken_lines_are_named_and_the_others_read() {
        let directory = tempfile::tempdir().unwrap();
        let line = serde_json::to_vec(&record("a", Status::Ok, 1.0)).unwrap();
        // Truncated with another worker's line behind it; not JSON; not a record; not UTF-8; complete without a newline.
        let lines = [&line[..40], &line, b"\n]\n\n{}\n\xff\n", &line].concat();
        std::fs::write(directory.path().join("x.jsonl"), lines).unwrap();
        let Records { runs, unreadable } = read_all(directory.path()).unwrap();
        assert_eq!(runs.keys().collect::<Vec<_>>(), ["a"]);
        let places: Vec<_> = unreadable.iter().map(|text| text.split([' ', ':']).nth(2).unwrap()).collect();
        assert_eq!(places, ["1", "2", "4", "5"], "{unreadable:?}");
    }

    #[test]
    fn only_absent_records_are_none() {
        let directory = tempfile::tempdir().unwrap();
        assert!(read_all(&directory.path().join("absent")).unwrap().runs.is_empty());
        std::fs::write(directory.path().join("file"), "").unwrap();
        assert!(read_all(&directory.path().join("file")).is_err());
    }
}
