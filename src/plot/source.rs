//! Resolves a path from the command line to its CSV file and the kind of its figures.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::table::Table;
use crate::plot::names;
use crate::storage;

/// A kind of figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// metrics.csv: surprise, loss ratio, learning rate, decay and momentum against tokens.
    Timeline,
    /// metrics.csv: learning rate, decay and momentum against tokens.
    Gates,
    /// metrics.csv: maps of surprise and learning rate, heads × chunks.
    Heads,
    /// metrics.csv: any columns against any other.
    Columns,
    /// retention.csv: for a run, a map of kept chunk against last stored chunk; for a sweep, lines against the lag.
    Retention,
    /// results.csv: means over seeds with their 95 % intervals, lines or a map.
    Sweep,
    /// results.csv: a map for any number of values.
    Map,
    /// scan_bench.csv: time and bandwidth against steps.
    Scan,
}

impl Kind {
    /// Returns the name on the command line.
    pub(super) fn cli_name(self) -> String {
        clap::ValueEnum::to_possible_value(&self)
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Returns the name of its file in a results directory.
    fn file(self) -> &'static str {
        match self {
            Self::Timeline | Self::Gates | Self::Heads | Self::Columns => "metrics.csv",
            Self::Retention => "retention.csv",
            Self::Sweep | Self::Map => "results.csv",
            Self::Scan => "scan_bench.csv",
        }
    }

    /// Columns that identify a file, and its default kind.
    const SIGNATURES: [(&'static [&'static str], Self); 4] = [
        (&["algorithm", "median_ms", "gb_per_s"], Self::Scan),
        (&["chunk", "head", "surprise"], Self::Timeline),
        (&["chunk", "after", "loss_at_w"], Self::Retention),
        (&["run", "status"], Self::Sweep),
    ];

    /// Whether files detected as `detected` can be drawn as this kind.
    fn is_of(self, detected: Self) -> bool {
        self.file() == detected.file()
    }
}

/// A CSV file and the kind of its figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CsvSource {
    /// The file.
    pub csv: PathBuf,
    /// The kind of its figures.
    pub kind: Kind,
    /// Name in legends: the directory's name, or the file's if that is more specific.
    pub name: String,
    /// Whether the file belongs to a sweep; a retention.csv may also belong to a run.
    pub of_sweep: bool,
}

impl CsvSource {
    /// Finds each path's file. Files that would have the same name are named after their parent directories too.
    pub fn find_all(paths: &[PathBuf], kind: Option<Kind>) -> Result<Vec<Self>> {
        let mut sources = paths.iter().map(|path| Self::find(path, kind)).collect::<Result<Vec<_>>>()?;
        let named: Vec<_> = sources.iter().map(|source| named(&source.csv).1).collect();
        let named: Vec<_> = named.iter().map(PathBuf::as_path).collect();
        let distinct = names::of_paths(sources.iter().map(|source| source.name.clone()).collect(), &named);
        for (source, name) in sources.iter_mut().zip(distinct) {
            source.name = name;
        }
        Ok(sources)
    }

    /// Finds the file in a directory (a run's, a sweep's or a benchmark's), or takes the file itself. Detects the kind unless
    /// it is given.
    pub fn find(path: &Path, kind: Option<Kind>) -> Result<Self> {
        let csv = if storage::is_directory(path)? { in_directory(path, kind)? } else { path.to_path_buf() };
        let table = Table::open(&csv)?;
        let names: Vec<_> = table.columns().map(|(_, name)| name).collect();
        let has = |columns: &[&str]| columns.iter().all(|column| names.contains(column));
        let of_sweep = has(&["run", "status"]);
        let detected = Kind::SIGNATURES.into_iter().find(|(columns, _)| has(columns)).map(|(_, kind)| kind);
        let detected = if of_sweep && has(&["lag", "loss_ratio"]) { Some(Kind::Retention) } else { detected };
        let Some(detected) = detected else {
            return Err(Error::rejected(csv.display().to_string(), not_a_table(&names)));
        };
        let kind = kind.unwrap_or(detected);
        if !kind.is_of(detected) {
            let reason =
                format!("this is a {}; --kind {} needs a {}", detected.file(), kind.cli_name(), kind.file());
            return Err(Error::rejected(csv.display().to_string(), reason));
        }
        let (name, _) = named(&csv);
        Ok(Self { csv, kind, name, of_sweep })
    }
}

fn in_directory(directory: &Path, kind: Option<Kind>) -> Result<PathBuf> {
    let all = ["metrics.csv", "results.csv", "scan_bench.csv", "retention.csv"];
    let wanted = kind.map_or(all.to_vec(), |kind| vec![kind.file()]);
    for name in &wanted {
        let path = directory.join(name);
        if storage::exists(&path)? {
            return Ok(path);
        }
    }
    let reason = match kind {
        Some(kind) => format!("the directory has no {}; pass one that has, or omit --kind {}", kind.file(), kind.cli_name()),
        None => {
            "the directory holds no results; pass the directory of a run, a sweep or scan-bench, or a CSV file of one".to_owned()
        }
    };
    Err(Error::rejected(directory.display().to_string(), reason))
}

/// Explains why a file with these columns is not drawn, and names what can be.
fn not_a_table(columns: &[&str]) -> String {
    const FIX: &str = "pass a metrics.csv, retention.csv, results.csv or scan_bench.csv that nmem wrote";
    let is_text = columns
        .iter()
        .all(|name| !name.contains(|c: char| c.is_control() || c == char::REPLACEMENT_CHARACTER));
    match columns {
        [] => format!("the file is empty; {FIX}"),
        _ if is_text => format!("no figure shows the columns {}; {FIX}", columns.join(", ")),
        _ => format!("this is not a CSV file; {FIX}"),
    }
}

/// Returns the name of the directory if the file has its usual name, otherwise the file's, and the path that ends in it.
fn named(csv: &Path) -> (String, PathBuf) {
    let stem = csv.file_stem().unwrap_or_default();
    let usual = ["metrics", "results", "scan_bench", "retention"].iter().any(|&usual| stem == usual);
    let absolute = std::path::absolute(csv).unwrap_or_else(|_| csv.to_path_buf());
    let directory = absolute.parent().filter(|directory| usual && directory.file_name().is_some());
    let named = directory.unwrap_or(&absolute);
    let name = if directory.is_some() { named.file_name().unwrap_or_default() } else { stem };
    (name.to_string_lossy().into_owned(), named.to_path_buf())
}
