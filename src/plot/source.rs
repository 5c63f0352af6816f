//! Resolves a path from the command line to its CSV file and the kind of its figures.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::table::Table;
use crate::io::text::TextFile;
use crate::plot::names;
use crate::plot::sweep::setting_text;
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
    /// metrics.csv: boxes of a column by head, or by another column of few values.
    Boxes,
    /// metrics.csv with labels: the loss ratio around changes of topic.
    Topics,
    /// retention.csv: for a run, a map of kept chunk against last stored chunk; for a sweep, lines against the lag.
    Retention,
    /// retention.csv of a run: loss ratio against the number of chunks stored since.
    Lags,
    /// results.csv: centres over seeds with their intervals, lines or a map.
    Sweep,
    /// results.csv: a map for any number of values.
    Map,
    /// results.csv: bars of the differences to a baseline, paired by seed.
    Ablation,
    /// results.csv: one result against another, with the settings that no other beats in both.
    Pareto,
    /// results.csv and the runs that it lists: a quantity over tokens, mean and band over seeds for each setting.
    Curves,
    /// recall.csv: accuracy and error of what was read against tokens.
    Recall,
    /// spectrum.csv: singular values of the updates and their ranks against chunks.
    Spectrum,
    /// train.csv: losses, norms of gradients and learning rate against steps.
    Training,
    /// scan_bench.csv: time and bandwidth against steps.
    Scan,
    /// scan_bench.csv: time of one algorithm over that of the others.
    Speedup,
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
            Self::Timeline | Self::Gates | Self::Heads | Self::Columns | Self::Boxes | Self::Topics => {
                "metrics.csv"
            }
            Self::Retention | Self::Lags => "retention.csv",
            Self::Sweep | Self::Map | Self::Ablation | Self::Pareto | Self::Curves => "results.csv",
            Self::Recall => "recall.csv",
            Self::Spectrum => "spectrum.csv",
            Self::Training => "train.csv",
            Self::Scan | Self::Speedup => "scan_bench.csv",
        }
    }

    /// The default kind of each file and the columns that identify it. Of several files in a directory, the first is drawn.
    const FILES: [(Self, &'static [&'static str]); 7] = [
        (Self::Timeline, &["chunk", "head", "surprise"]),
        (Self::Sweep, &["run", "status"]),
        (Self::Scan, &["algorithm", "median_ms", "gb_per_s"]),
        (Self::Retention, &["chunk", "after", "loss_at_w"]),
        (Self::Recall, &["token", "mean_square_zero", "target", "rank"]),
        (Self::Spectrum, &["weight", "index", "singular_value"]),
        (Self::Training, &["step", "loss", "validation"]),
    ];

    /// Whether files detected as `detected` can be drawn as this kind.
    fn is_of(self, detected: Self) -> bool {
        self.file() == detected.file()
    }
}

/// Most bytes of a run.json; nmem writes a few kilobytes.
const MAX_RUN_JSON: usize = 1 << 20;

/// The part of a run's run.json that figures use.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// File of labels.
    pub labels: Option<PathBuf>,
    /// First token that the run stored, counted from the start of the memory's life; labels count from it.
    pub first_token: u64,
    /// Chunk in which the run diverged.
    pub diverged: Option<u64>,
    /// Accuracy of a guess among the candidates of its recall.
    pub chance: Option<f64>,
    /// k of the top-k accuracy of its recall.
    pub top_k: Option<usize>,
}

impl Run {
    /// Reads the run.json beside a CSV file. Without one, or with one that nmem did not write, nothing is known.
    fn beside(csv: &Path) -> Self {
        let read = || -> Option<serde_json::Value> {
            let path = csv.parent()?.join("run.json");
            storage::kind_of(&path).ok()?.filter(std::fs::FileType::is_file)?;
            serde_json::from_slice(TextFile::read(&path, MAX_RUN_JSON).ok()?.bytes()).ok()
        };
        let Some(run) = read() else { return Self::default() };
        let inputs = run["inputs"].as_array().map(Vec::as_slice).unwrap_or_default();
        let labels = inputs.iter().find(|input| input["role"] == "labels");
        Self {
            labels: labels.and_then(|input| input["path"].as_str()).map(PathBuf::from),
            first_token: run["life_tokens"]
                .as_u64()
                .zip(run["tokens_stored"].as_u64())
                .map_or(0, |(life, stored)| life.saturating_sub(stored)),
            diverged: run["diverged"]["chunk"].as_u64(),
            chance: run["recall"]["chance"].as_f64(),
            top_k: run["recall"]["top_k"].as_u64().and_then(|k| k.try_into().ok()),
        }
    }
}

/// A CSV file and the kind of its figures.
#[derive(Clone, Debug, PartialEq)]
pub struct CsvSource {
    /// The file.
    pub csv: PathBuf,
    /// The kind of its figures.
    pub kind: Kind,
    /// Name in legends: the directory's name, or the file's if that is more specific.
    pub name: String,
    /// Whether the file belongs to a sweep; a retention.csv may also belong to a run.
    pub of_sweep: bool,
    /// Facts of the run.json beside the file.
    pub run: Run,
}

impl CsvSource {
    /// Finds each path's file. Runs of a sweep are named by the settings in which they differ. Other files that would have
    /// the same name are named after their parent directories too.
    pub fn find_all(paths: &[PathBuf], kind: Option<Kind>, x: Option<&str>) -> Result<Vec<Self>> {
        // With several lags, the question is how much is forgotten.
        let lags = kind.is_none() && x == Some("lag");
        let find = |path: &PathBuf| {
            let source = Self::find(path, if lags { Some(Kind::Retention) } else { kind })?;
            Ok(if lags && !source.of_sweep { Self { kind: Kind::Lags, ..source } } else { source })
        };
        let mut sources = paths.iter().map(find).collect::<Result<Vec<_>>>()?;
        let directories: Vec<_> = sources.iter().map(|source| named(&source.csv).1).collect();
        let directories: Vec<_> = directories.iter().map(PathBuf::as_path).collect();
        let distinct = match settings_of_runs(&directories) {
            Some(settings) => names::numbered(settings),
            None => names::of_paths(sources.iter().map(|source| source.name.clone()).collect(), &directories),
        };
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
        let detected = Kind::FILES.into_iter().find(|(_, columns)| has(columns)).map(|(kind, _)| kind);
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
        let run = Run::beside(&csv);
        Ok(Self { csv, kind, name, of_sweep, run })
    }
}

/// Returns the names of runs of one sweep, in the same order, by the settings in which they differ: "decay 0.1, seed 2".
/// Returns `None` for a single run, and unless all directories are runs that a results.csv lists.
fn settings_of_runs(directories: &[&Path]) -> Option<Vec<String>> {
    let [first, _, ..] = directories else { return None };
    let runs = first.parent().filter(|runs| runs.ends_with("runs"))?;
    if directories.iter().any(|directory| directory.parent() != Some(runs)) {
        return None;
    }
    let mut table = Table::open(&runs.parent()?.join("results.csv")).ok()?;
    let run = table.optional_column("run")?;
    let parameters: Vec<_> = table.columns().map(|(column, name)| (column, name.to_owned())).collect();
    let parameters: Vec<_> =
        parameters.into_iter().skip(1).take_while(|(_, name)| name != "status").collect();
    let mut rows = HashMap::new();
    while table.advance().ok()? {
        let texts =
            parameters.iter().map(|(column, _)| String::from_utf8_lossy(table.text(*column)).into_owned());
        rows.insert(table.text(run).to_vec(), texts.collect::<Vec<_>>());
    }
    let id = |directory: &&Path| rows.get(directory.file_name()?.as_encoded_bytes());
    let rows = directories.iter().map(id).collect::<Option<Vec<_>>>()?;
    let differs = |i: &usize| rows.windows(2).any(|pair| pair[0][*i] != pair[1][*i]);
    let differing: Vec<_> = (0..parameters.len()).filter(differs).collect();
    if differing.is_empty() {
        return None;
    }
    let name = |row: &&Vec<String>| {
        let parts = differing.iter().map(|&i| setting_text(&parameters[i].1, &row[i]));
        parts.collect::<Vec<_>>().join(", ")
    };
    Some(rows.iter().map(name).collect())
}

fn in_directory(directory: &Path, kind: Option<Kind>) -> Result<PathBuf> {
    let wanted = kind.map_or(Kind::FILES.map(|(kind, _)| kind).to_vec(), |kind| vec![kind]);
    for kind in wanted {
        let path = directory.join(kind.file());
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
    const FIX: &str = "pass a metrics.csv, recall.csv, retention.csv, results.csv, scan_bench.csv, spectrum.csv or \
                       train.csv that nmem wrote";
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
    let usual = Kind::FILES.iter().any(|(kind, _)| Path::new(kind.file()).file_stem() == Some(stem));
    let absolute = std::path::absolute(csv).unwrap_or_else(|_| csv.to_path_buf());
    let directory = absolute.parent().filter(|directory| usual && directory.file_name().is_some());
    let named = directory.unwrap_or(&absolute);
    let name = if directory.is_some() { named.file_name().unwrap_or_default() } else { stem };
    (name.to_string_lossy().into_owned(), named.to_path_buf())
}
