//! A path as typed → the CSV file and what it is drawn as.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::table::Table;
use crate::plot::names;
use crate::storage;

/// What is drawn of a file.
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
    /// retention.csv: of a run a map of chunks kept × stored up to, of a sweep lines against the lag.
    Retention,
    /// results.csv: means over seeds with their 95 % intervals, lines or a map.
    Sweep,
    /// results.csv: a map whatever the number of values.
    Map,
    /// scan_bench.csv: time and bandwidth against steps.
    Scan,
}

impl Kind {
    /// The name of the file that holds it in a folder of results.
    fn file(self) -> &'static str {
        match self {
            Self::Timeline | Self::Gates | Self::Heads | Self::Columns => "metrics.csv",
            Self::Retention => "retention.csv",
            Self::Sweep | Self::Map => "results.csv",
            Self::Scan => "scan_bench.csv",
        }
    }

    /// Columns by which a file is recognised, and what it is drawn as.
    const SIGNATURES: [(&'static [&'static str], Self); 4] = [
        (&["algorithm", "median_ms", "gb_per_s"], Self::Scan),
        (&["chunk", "head", "surprise"], Self::Timeline),
        (&["chunk", "after", "loss_at_w"], Self::Retention),
        (&["run", "status"], Self::Sweep),
    ];

    /// Kinds that are drawn of the same files as this one.
    fn is_of(self, detected: Self) -> bool {
        self.file() == detected.file()
    }
}

/// A CSV file and what it is drawn as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CsvSource {
    /// The file.
    pub csv: PathBuf,
    /// What it is drawn as.
    pub kind: Kind,
    /// For legends: the folder's name, or the file's where that tells more.
    pub name: String,
    /// Whether it is the table of a sweep: a retention.csv may be a run's.
    pub of_sweep: bool,
}

impl CsvSource {
    /// Finds each path's file. Those that would have the same name in legends and files are named after their parents too.
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

    /// Finds the file of a folder (a run's, a sweep's, a benchmark's), or takes the file itself; and what kind it is, where
    /// that is not said.
    pub fn find(path: &Path, kind: Option<Kind>) -> Result<Self> {
        let csv = if storage::is_directory(path)? { in_folder(path, kind)? } else { path.to_path_buf() };
        let table = Table::open(&csv)?;
        let names: Vec<_> = table.columns().map(|(_, name)| name).collect();
        let has = |columns: &[&str]| columns.iter().all(|column| names.contains(column));
        let of_sweep = has(&["run", "status"]);
        let detected = Kind::SIGNATURES.into_iter().find(|(columns, _)| has(columns)).map(|(_, kind)| kind);
        let detected = if of_sweep && has(&["lag", "loss_ratio"]) { Some(Kind::Retention) } else { detected };
        let Some(detected) = detected else {
            let expected = "a metrics.csv, retention.csv, results.csv or scan_bench.csv";
            return Err(Error::file(&csv, expected, format!("the columns {}", names.join(", "))));
        };
        let kind = kind.unwrap_or(detected);
        if !kind.is_of(detected) {
            return Err(Error::file(
                &csv,
                format!("a {} for --kind", kind.file()),
                format!("a {}", detected.file()),
            ));
        }
        let (name, _) = named(&csv);
        Ok(Self { csv, kind, name, of_sweep })
    }
}

fn in_folder(folder: &Path, kind: Option<Kind>) -> Result<PathBuf> {
    let all = ["metrics.csv", "results.csv", "scan_bench.csv", "retention.csv"];
    let wanted = kind.map_or(all.to_vec(), |kind| vec![kind.file()]);
    for name in &wanted {
        let path = folder.join(name);
        if storage::exists(&path)? {
            return Ok(path);
        }
    }
    Err(Error::file(folder, format!("a folder with {}", wanted.join(" or ")), "none of them"))
}

/// The folder's name where the file is called as every such file is, else the file's; and the path that ends in it.
fn named(csv: &Path) -> (String, PathBuf) {
    let stem = csv.file_stem().unwrap_or_default();
    let usual = ["metrics", "results", "scan_bench", "retention"].iter().any(|&usual| stem == usual);
    let absolute = std::path::absolute(csv).unwrap_or_else(|_| csv.to_path_buf());
    let folder = absolute.parent().filter(|folder| usual && folder.file_name().is_some());
    let named = folder.unwrap_or(&absolute);
    let name = if folder.is_some() { named.file_name().unwrap_or_default() } else { stem };
    (name.to_string_lossy().into_owned(), named.to_path_buf())
}
