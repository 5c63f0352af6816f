//! What is known of finished runs: records/, a line of JSON a run and a file a process, so that shards share a folder on
//! any file system without locks. A line that cannot be read, wherever it stands, is a run that is missing.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::results::{Results, Status};
use super::row::Parameters;
use crate::error::{Error, Result};
use crate::run::{Keep, RunStatistics};
use crate::storage::{self, OutFile};

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
const MAX_LAGS: usize = 256;

impl Lags {
    /// Of a run that came to an end.
    pub fn from_statistics(statistics: &RunStatistics) -> Self {
        let lags = statistics.lags();
        let stride = lags.len().div_ceil(MAX_LAGS).max(1);
        let finite = |(lag, ratio): (usize, f64)| (lag, Some(ratio).filter(|ratio| ratio.is_finite()));
        let (lag, loss_ratio) = lags.step_by(stride).map(finite).unzip();
        Self { lag, loss_ratio }
    }
}

impl Record {
    /// A run that ended well, but whose files could not be put in their place.
    pub(super) fn fail(&mut self, reason: String) {
        self.status = Status::Failed;
        self.error = Some(reason);
        self.results = Results::default();
        self.lags = Lags::default();
    }

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
    folder: PathBuf,
    file: Option<(PathBuf, OutFile)>,
}

impl RecordWriter {
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf(), file: None }
    }

    /// Appends records and waits until they are on the disk. Where that fails none of them is there, and later ones go
    /// to another file.
    pub fn write<'a>(&mut self, records: impl IntoIterator<Item = &'a Record>) -> Result<()> {
        let mut lines = Vec::new();
        for record in records {
            serde_json::to_writer(&mut lines, record).expect("text and numbers");
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
                // Where even that fails the file is left as it is, and never appended to again.
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
        let path = self.folder.join(name);
        let file = OutFile::create_for_append(&path).map_err(Error::io(&path, "create"))?;
        storage::sync_directory(&self.folder).map_err(Error::io(&self.folder, "sync"))?;
        Ok((path, file))
    }
}

/// Content of records/.
#[derive(Debug, Default)]
pub struct Records {
    /// Finished runs, by identity.
    pub runs: BTreeMap<String, Record>,
    /// Lines that cannot be read, one message each.
    pub unreadable: Vec<String>,
}

/// All finished runs of records/, by identity; the last record of each, a failed one only where there is no other.
pub(super) fn read_all(folder: &Path) -> Result<Records> {
    let Records { runs: mut records, mut unreadable } = Records::default();
    let mut files = Vec::new();
    let entries = match std::fs::read_dir(folder) {
        // Another process has only just begun here.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Records::default()),
        entries => entries.map_err(Error::io(folder, "read"))?,
    };
    for entry in entries {
        files.push(entry.map_err(Error::io(folder, "read"))?.path());
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
                        "{}, line {}: not the whole record of a run ({error}); that run counts as missing",
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
        }
    }

    #[test]
    fn a_torn_line_is_skipped_and_a_failure_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = RecordWriter::new(folder.path());
        first.write([&record("a", Status::Ok, 1.0), &record("b", Status::Failed, 2.0)]).unwrap();
        let line = serde_json::to_string(&record("c", Status::Ok, 3.0)).unwrap();
        // Torn within a letter.
        let torn = [&line.as_bytes()[..40], &"é".as_bytes()[..1]].concat();
        first.file.as_mut().unwrap().1.write_all(&torn).unwrap();
        let mut second = RecordWriter::new(folder.path());
        second.write([&record("a", Status::Failed, 4.0)]).unwrap();
        second.write([&record("b", Status::Ok, 5.0)]).unwrap();
        let Records { runs: records, unreadable } = read_all(folder.path()).unwrap();
        assert_eq!(unreadable.len(), 1, "{unreadable:?}");
        let found: Vec<_> = records.values().map(|record| (&*record.run, record.started)).collect();
        assert_eq!(found, [("a", 1.0), ("b", 5.0)]);
        assert_eq!(records["a"], record("a", Status::Ok, 1.0));
    }

    #[test]
    fn broken_lines_are_named_and_the_others_read() {
        let folder = tempfile::tempdir().unwrap();
        let line = serde_json::to_vec(&record("a", Status::Ok, 1.0)).unwrap();
        // Torn, with another worker's line behind it; not JSON; not a record; not UTF-8; then whole, without a line's end.
        let lines = [&line[..40], &line, b"\n]\n\n{}\n\xff\n", &line].concat();
        std::fs::write(folder.path().join("x.jsonl"), lines).unwrap();
        let Records { runs, unreadable } = read_all(folder.path()).unwrap();
        assert_eq!(runs.keys().collect::<Vec<_>>(), ["a"]);
        let places: Vec<_> = unreadable.iter().map(|text| text.split([' ', ':']).nth(2).unwrap()).collect();
        assert_eq!(places, ["1", "2", "4", "5"], "{unreadable:?}");
    }
}
