//! What a stored chunk reports: the rows of metrics.csv. Field order is the header's order.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, Seek};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::real::Real;
use crate::storage::OutFile;

/// One stored chunk of one head of one sequence. Norms are Frobenius norms over all memory weights together.
#[derive(Clone, Debug, Serialize)]
pub struct ChunkMetrics<T> {
    /// Index of the sequence in the batch.
    pub sequence: usize,
    /// Chunks since the start of the memory's life.
    pub chunk: usize,
    /// Head.
    pub head: usize,
    /// First token, counted from the start of the memory's life.
    pub start: usize,
    /// One past the last token.
    pub end: usize,
    /// ℓ at the weights of the start of the sequence, W: Σ over the chunk's tokens of mean over d of (M(k) − v)².
    pub loss: T,
    /// ℓ at W + U of just before this chunk was stored; absent without a probe.
    pub loss_before: Option<T>,
    /// ℓ at W + U of just after.
    pub loss_after: Option<T>,
    /// ‖g‖
    pub surprise: T,
    /// θ
    pub learning_rate: T,
    /// η
    pub momentum: T,
    /// α
    pub decay: T,
    /// ‖θ g‖
    pub surprise_norm: T,
    /// ‖S‖
    pub momentum_norm: T,
    /// ‖U‖
    pub update_norm: T,
    /// ‖W + U‖
    pub weight_norm: T,
    /// The same per memory weight, in file order.
    pub weights: Vec<WeightMetrics<T>>,
}

/// Norms of one memory weight.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct WeightMetrics<T> {
    /// ‖g_p‖
    pub surprise: T,
    /// ‖S_p‖
    pub momentum_norm: T,
    /// ‖U_p‖
    pub update_norm: T,
}

/// A stored chunk that was kept, and what the memory made of it some chunks later: a row of retention.csv.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Retained<T> {
    /// Index of the sequence in the batch.
    pub sequence: usize,
    /// The last chunk that the memory had stored.
    pub after: usize,
    /// The chunk that was kept.
    pub chunk: usize,
    /// Head.
    pub head: usize,
    /// ℓ of the kept chunk at W + U of that moment.
    pub loss: T,
    /// Its ℓ at W, as in [`ChunkMetrics::loss`].
    pub loss_at_w: T,
}

impl<T: Real> ChunkMetrics<T> {
    /// The columns that are measured, in header order, by name.
    pub fn quantities(&self) -> [(&'static str, Option<T>); 11] {
        let values = [
            Some(self.loss),
            self.loss_before,
            self.loss_after,
            Some(self.surprise),
            Some(self.learning_rate),
            Some(self.momentum),
            Some(self.decay),
            Some(self.surprise_norm),
            Some(self.momentum_norm),
            Some(self.update_norm),
            Some(self.weight_norm),
        ];
        std::array::from_fn(|i| (COLUMNS[COLUMNS.len() - values.len() + i], values[i]))
    }

    /// The first quantity, in header order, that is NaN or infinite.
    pub fn first_nonfinite(&self) -> Option<(&'static str, T)> {
        let mut given = self.quantities().into_iter().filter_map(|(name, value)| Some((name, value?)));
        given.find(|(_, value)| !value.is_finite())
    }
}

/// Columns before those per memory weight, in order.
pub const COLUMNS: [&str; 16] = [
    "sequence",
    "chunk",
    "head",
    "start",
    "end",
    "loss",
    "loss_before",
    "loss_after",
    "surprise",
    "learning_rate",
    "momentum",
    "decay",
    "surprise_norm",
    "momentum_norm",
    "update_norm",
    "weight_norm",
];

/// Writes metrics.csv, as rows come.
pub struct MetricsWriter(RowsWriter);

impl MetricsWriter {
    /// Creates the file with its header, for `weights` memory weights.
    pub fn create(path: &Path, weights: usize) -> Result<Self> {
        let own = ["surprise", "momentum_norm", "update_norm"];
        let per_weight = (0..weights).flat_map(|p| own.map(|name| format!("{name}.{p}")));
        RowsWriter::create(path, COLUMNS.map(str::to_owned).into_iter().chain(per_weight)).map(Self)
    }

    /// Rows of one sequence.
    pub fn write<T: Real>(&mut self, rows: &[ChunkMetrics<T>]) -> Result<()> {
        rows.first().map_or(Ok(()), |first| self.0.write(first.sequence, rows))
    }

    /// This sequence is complete: the next one's turn.
    pub fn sequence_done(&mut self, sequence: usize) -> Result<()> {
        self.0.sequence_done(sequence)
    }

    /// Flushes. Rows of sequences that never had their turn (after a divergence) are dropped.
    pub fn finish(self) -> Result<()> {
        self.0.finish()
    }
}

/// Columns of retention.csv.
pub const RETENTION_COLUMNS: [&str; 6] = ["sequence", "after", "chunk", "head", "loss", "loss_at_w"];

/// Writes retention.csv, as rows come.
pub struct RetentionWriter(RowsWriter);

impl RetentionWriter {
    /// Creates the file with its header.
    pub fn create(path: &Path) -> Result<Self> {
        RowsWriter::create(path, RETENTION_COLUMNS).map(Self)
    }

    /// Rows of one sequence.
    pub fn write<T: Real>(&mut self, rows: &[Retained<T>]) -> Result<()> {
        rows.first().map_or(Ok(()), |first| self.0.write(first.sequence, rows))
    }

    /// As of [`MetricsWriter`].
    pub fn sequence_done(&mut self, sequence: usize) -> Result<()> {
        self.0.sequence_done(sequence)
    }

    /// As of [`MetricsWriter`].
    pub fn finish(self) -> Result<()> {
        self.0.finish()
    }
}

/// Writes a CSV by sequence. Sequences advance side by side but are written one after the other: rows of the one
/// whose turn it is go straight to the file, those of later ones wait in unnamed temporary files.
struct RowsWriter {
    path: PathBuf,
    /// Of the file; the waiting rows lie there too, for a temporary folder may be in memory.
    folder: PathBuf,
    file: csv::Writer<OutFile>,
    /// The sequence whose turn it is.
    current: usize,
    waiting: BTreeMap<usize, csv::Writer<OutFile>>,
}

impl RowsWriter {
    fn create(path: &Path, header: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Result<Self> {
        let mut file = writer(OutFile::create(path).map_err(Error::io(path, "create"))?);
        file.write_record(header).map_err(csv_error(path))?;
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        Ok(Self { path: path.to_path_buf(), folder, file, current: 0, waiting: BTreeMap::new() })
    }

    fn write(&mut self, sequence: usize, rows: &[impl Serialize]) -> Result<()> {
        let file = if sequence == self.current {
            &mut self.file
        } else {
            match self.waiting.entry(sequence) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(writer(
                    OutFile::unnamed_in(&self.folder).map_err(Error::io(&self.folder, "write in"))?,
                )),
            }
        };
        rows.iter().try_for_each(|row| file.serialize(row)).map_err(csv_error(&self.path))
    }

    fn sequence_done(&mut self, sequence: usize) -> Result<()> {
        debug_assert_eq!(sequence, self.current, "sequences end in order");
        self.current = sequence + 1;
        let Some(waiting) = self.waiting.remove(&self.current) else { return Ok(()) };
        let mut rows =
            waiting.into_inner().map_err(|error| Error::io(&self.path, "write")(error.into_error()))?;
        self.file.flush().map_err(Error::io(&self.path, "write"))?;
        rows.rewind().map_err(Error::io(&self.path, "write"))?;
        io::copy(&mut rows, &mut self.file.get_ref()).map_err(Error::io(&self.path, "write"))?;
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let file = self.file.into_inner().map_err(|error| error.into_error());
        file.and_then(OutFile::finish).map_err(Error::io(&self.path, "write"))
    }
}

fn writer(file: OutFile) -> csv::Writer<OutFile> {
    csv::WriterBuilder::new().has_headers(false).buffer_capacity(1 << 16).from_writer(file)
}

fn csv_error(path: &Path) -> impl FnOnce(csv::Error) -> Error {
    let error = Error::io(path, "write");
    |source| error(source.into())
}

/// Mean, smallest and largest of a column over all rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Arithmetic mean.
    pub mean: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

/// Columns of all rows of a run in brief.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    columns: Vec<(&'static str, u64, Spread)>,
}

impl Summary {
    /// Takes in a row.
    pub fn add<T: Real>(&mut self, row: &ChunkMetrics<T>) {
        let quantities = row.quantities();
        if self.columns.is_empty() {
            let empty = Spread { mean: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY };
            self.columns = quantities.iter().map(|&(name, _)| (name, 0, empty)).collect();
        }
        for ((_, count, spread), (_, value)) in self.columns.iter_mut().zip(quantities) {
            let Some(value) = value.map(Real::wide) else { continue };
            *count += 1;
            spread.mean += (value - spread.mean) / *count as f64;
            spread.min = spread.min.min(value);
            spread.max = spread.max.max(value);
        }
    }

    /// Takes in all rows of another.
    pub fn merge(&mut self, other: Self) {
        if self.columns.is_empty() {
            *self = other;
            return;
        }
        for ((_, count, spread), (_, more, of_more)) in self.columns.iter_mut().zip(other.columns) {
            *count += more;
            if more > 0 {
                spread.mean += (of_more.mean - spread.mean) * more as f64 / *count as f64;
            }
            spread.min = spread.min.min(of_more.min);
            spread.max = spread.max.max(of_more.max);
        }
    }

    /// By column name, in header order; columns without values are left out.
    pub fn columns(&self) -> impl Iterator<Item = (&'static str, Spread)> {
        self.columns.iter().filter(|(_, count, _)| *count > 0).map(|&(name, _, spread)| (name, spread))
    }
}
