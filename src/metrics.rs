//! Metrics of stored chunks: the rows of metrics.csv. The order of fields is the header's order.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, Seek};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};

use crate::error::{Error, Result};
use crate::real::{ElementType, Real};
use crate::recall::TokenScore;
use crate::singular_values::{effective_rank, stable_rank};
use crate::storage::OutFile;

/// Metrics of one stored chunk of one head of one sequence. Norms are Frobenius norms over all memory weights
/// together.
///
/// Every measured number is rounded to the element type of the run, if that can hold it: see [`rounded`].
#[derive(Clone, Debug)]
pub struct ChunkMetrics {
    /// Index of the sequence in the batch.
    pub sequence: usize,
    /// Index of the chunk since the start of the memory's life.
    pub chunk: usize,
    /// Index of the head.
    pub head: usize,
    /// First token, counted from the start of the memory's life.
    pub start: usize,
    /// Position after the last token.
    pub end: usize,
    /// ℓ at W, the weights at the start of the sequence: Σ over the chunk's tokens of mean over d of (M(k) − v)².
    pub loss: f64,
    /// ℓ at W + U just before this chunk is stored; absent without a probe.
    pub loss_before: Option<f64>,
    /// ℓ at W + U just after it is stored; absent without a probe.
    pub loss_after: Option<f64>,
    /// Norm of the surprise, ‖g‖.
    pub surprise: f64,
    /// Learning rate θ.
    pub learning_rate: f64,
    /// Momentum η.
    pub momentum: f64,
    /// Decay α.
    pub decay: f64,
    /// Norm of the scaled surprise, ‖θ g‖.
    pub surprise_norm: f64,
    /// Norm of the momentum, ‖S‖.
    pub momentum_norm: f64,
    /// Norm of the update, ‖U‖.
    pub update_norm: f64,
    /// Norm of the weights, ‖W + U‖.
    pub weight_norm: f64,
    /// ℓ of an answer of zeros, the baseline that costs nothing; not in files of nmem 0.2.
    pub loss_zero: Option<f64>,
    /// Norm of the gradient at the weights that are read, W + U, just before the chunk is stored: the surprise of the Titans
    /// paper. `surprise` is taken at W. Only with that probe, as the two below.
    pub surprise_now: Option<f64>,
    /// Norm of M_{W+U}(q) − M_W(q) over the chunk's queries, divided by that of M_W(q).
    pub read_shift: Option<f64>,
    /// Mean cosine over pairs of the chunk's keys; absent for a single key.
    pub key_cosine: Option<f64>,
    /// Norms per memory weight, in file order.
    pub weights: Vec<WeightMetrics>,
}

/// Norms of one memory weight p.
#[derive(Clone, Copy, Debug)]
pub struct WeightMetrics {
    /// Norm of the surprise, ‖g_p‖.
    pub surprise: f64,
    /// Norm of the momentum, ‖S_p‖.
    pub momentum_norm: f64,
    /// Norm of the update, ‖U_p‖.
    pub update_norm: f64,
}

/// A kept chunk and its loss some chunks after it was stored: a row of retention.csv.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retained {
    /// Index of the sequence in the batch.
    pub sequence: usize,
    /// Index of the last chunk that the memory had stored.
    pub after: usize,
    /// Index of the kept chunk, or of the control: one that the memory had not stored.
    pub chunk: usize,
    /// Index of the head.
    pub head: usize,
    /// ℓ of the kept chunk at W + U at that time.
    pub loss: f64,
    /// ℓ of the kept chunk at W, as in [`ChunkMetrics::loss`].
    pub loss_at_w: f64,
}

/// Returns the nearest number of type T, or `value` itself if T's range is too small: squares leave f32 long
/// before the squared numbers do.
pub fn rounded<T: Real>(value: f64) -> f64 {
    let near = T::from_f64(value);
    if near.is_finite() { near.to_f64() } else { value }
}

impl ChunkMetrics {
    /// Returns the measured columns with their names, in header order.
    pub fn quantities(&self) -> [(&'static str, Option<f64>); 15] {
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
            self.loss_zero,
            self.surprise_now,
            self.read_shift,
            self.key_cosine,
        ];
        std::array::from_fn(|i| (COLUMNS[COLUMNS.len() - values.len() + i], values[i]))
    }

    /// Returns the first norm, in header order, that is not finite; the memory is then lost. Norms of finite
    /// arrays are finite. Losses are not considered: they may overflow while the memory is intact, and some
    /// exist only with a probe.
    pub fn first_nonfinite(&self) -> Option<(&'static str, f64)> {
        let norms = [
            ("surprise", self.surprise),
            ("momentum_norm", self.momentum_norm),
            ("update_norm", self.update_norm),
            ("weight_norm", self.weight_norm),
        ];
        norms.into_iter().find(|(_, norm)| !norm.is_finite())
    }
}

/// A measured number in a file. It is written in the digits of T, which read back to the same T, or of f64 if T
/// does not hold it.
struct Digits<T>(f64, PhantomData<T>);

impl<T: Real> Serialize for Digits<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let near = T::from_f64(self.0);
        if near.is_finite() { near.serialize(serializer) } else { self.0.serialize(serializer) }
    }
}

fn digits<T>(value: f64) -> Digits<T> {
    Digits(value, PhantomData)
}

/// A row of metrics.csv.
struct MetricsRow<'a, T>(&'a ChunkMetrics, PhantomData<T>);

impl<T: Real> Serialize for MetricsRow<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(row, _) = self;
        let mut fields = serializer.serialize_seq(None)?;
        for count in [row.sequence, row.chunk, row.head, row.start, row.end] {
            fields.serialize_element(&count)?;
        }
        for (_, value) in row.quantities() {
            fields.serialize_element(&value.map(digits::<T>))?;
        }
        for WeightMetrics { surprise, momentum_norm, update_norm } in &row.weights {
            for &value in [surprise, momentum_norm, update_norm] {
                fields.serialize_element(&digits::<T>(value))?;
            }
        }
        fields.end()
    }
}

/// Number of columns before those per memory weight in files of nmem 0.2, which had neither `loss_zero` nor probes.
const COLUMNS_BEFORE_PROBES: usize = 16;

/// Columns before those per memory weight, in order.
pub const COLUMNS: [&str; 20] = [
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
    "loss_zero",
    "surprise_now",
    "read_shift",
    "key_cosine",
];

/// A writer of metrics.csv that takes rows as they come.
pub struct MetricsWriter(RowsWriter);

impl MetricsWriter {
    /// Creates the file with its header, for `weights` memory weights.
    pub fn create(path: &Path, weights: usize) -> Result<Self> {
        let own = ["surprise", "momentum_norm", "update_norm"];
        let per_weight = (0..weights).flat_map(|p| own.map(|name| format!("{name}.{p}")));
        RowsWriter::create(path, COLUMNS.map(str::to_owned).into_iter().chain(per_weight)).map(Self)
    }

    /// Adds rows of one sequence.
    pub fn write<T: Real>(&mut self, rows: &[ChunkMetrics]) -> Result<()> {
        let Some(first) = rows.first() else { return Ok(()) };
        self.0.write(first.sequence, rows.iter().map(|row| MetricsRow::<T>(row, PhantomData)))
    }

    /// Adds the rows of the file `from`, in which the first `done` sequences are complete.
    pub fn resume(&mut self, from: &Path, done: usize) -> Result<()> {
        self.0.resume(from, done)
    }

    /// Marks a sequence as complete; the next one follows in the file.
    pub fn sequence_done(&mut self, sequence: usize) -> Result<()> {
        self.0.sequence_done(sequence)
    }

    /// Flushes the file. Rows of sequences whose turn never came, after a divergence, are dropped.
    pub fn finish(self) -> Result<()> {
        self.0.finish()
    }
}

/// Reads the rows of a metrics.csv written by a run in `element_type`, with the bits that they had.
pub fn read_metrics(
    path: &Path,
    element_type: ElementType,
    each: &mut dyn FnMut(ChunkMetrics) -> Result<()>,
) -> Result<()> {
    let mut reader = csv::Reader::from_path(path).map_err(|error| Error::io(path, "open")(error.into()))?;
    let wrong = |got: String| Error::file(path, "rows of a metrics.csv", got);
    let header = reader.headers().map_err(|error| wrong(error.to_string()))?;
    let common = header.iter().zip(COLUMNS).take_while(|(name, known)| name == known).count();
    if ![COLUMNS_BEFORE_PROBES, COLUMNS.len()].contains(&common) || !(header.len() - common).is_multiple_of(3)
    {
        return Err(wrong("other columns".to_owned()));
    }
    // Digits of an f32 are read as such: a second rounding could change the last bit.
    let number = |text: &str| match element_type {
        ElementType::F32 => match text.parse::<f32>() {
            Ok(near) if near.is_finite() => Ok(f64::from(near)),
            _ => text.parse(),
        },
        ElementType::F64 => text.parse(),
    };
    let mut record = csv::StringRecord::new();
    while reader.read_record(&mut record).map_err(|error| wrong(error.to_string()))? {
        let number = |i: usize| number(&record[i]).map_err(|_| wrong(format!("{:?}", &record[i])));
        let count = |i: usize| record[i].parse().map_err(|_| wrong(format!("{:?}", &record[i])));
        let optional = |i: usize| {
            if i >= common || record[i].is_empty() { Ok(None) } else { number(i).map(Some) }
        };
        let weight = |i: usize| {
            Ok::<_, Error>(WeightMetrics {
                surprise: number(i)?,
                momentum_norm: number(i + 1)?,
                update_norm: number(i + 2)?,
            })
        };
        each(ChunkMetrics {
            sequence: count(0)?,
            chunk: count(1)?,
            head: count(2)?,
            start: count(3)?,
            end: count(4)?,
            loss: number(5)?,
            loss_before: optional(6)?,
            loss_after: optional(7)?,
            surprise: number(8)?,
            learning_rate: number(9)?,
            momentum: number(10)?,
            decay: number(11)?,
            surprise_norm: number(12)?,
            momentum_norm: number(13)?,
            update_norm: number(14)?,
            weight_norm: number(15)?,
            loss_zero: optional(16)?,
            surprise_now: optional(17)?,
            read_shift: optional(18)?,
            key_cosine: optional(19)?,
            weights: (common..record.len()).step_by(3).map(weight).collect::<Result<_>>()?,
        })?;
    }
    Ok(())
}

/// Columns of retention.csv.
pub const RETENTION_COLUMNS: [&str; 6] = ["sequence", "after", "chunk", "head", "loss", "loss_at_w"];

/// Singular values of the update of one memory weight after a chunk.
#[derive(Clone, Debug, PartialEq)]
pub struct Spectrum {
    /// Index of the sequence.
    pub sequence: usize,
    /// Index of the last chunk stored, counted from the start of the memory's life.
    pub chunk: usize,
    /// Index of the head.
    pub head: usize,
    /// Index of the memory weight, in file order.
    pub weight: usize,
    /// Singular values, largest first.
    pub values: Vec<f64>,
}

/// Columns of spectrum.csv.
pub const SPECTRUM_COLUMNS: [&str; 8] =
    ["sequence", "chunk", "head", "weight", "index", "singular_value", "stable_rank", "effective_rank"];

/// A writer of spectrum.csv that takes rows as they come.
pub struct SpectrumWriter(RowsWriter);

impl SpectrumWriter {
    /// Creates the file with its header.
    pub fn create(path: &Path) -> Result<Self> {
        RowsWriter::create(path, SPECTRUM_COLUMNS).map(Self)
    }

    /// Adds spectra of one sequence. The ranks stand in the row of the largest value.
    pub fn write<T: Real>(&mut self, spectra: &[Spectrum]) -> Result<()> {
        let Some(first) = spectra.first() else { return Ok(()) };
        let rows = spectra.iter().flat_map(|spectrum| {
            let &Spectrum { sequence, chunk, head, weight, ref values } = spectrum;
            values.iter().enumerate().map(move |(index, &value)| {
                let ranks = [stable_rank, effective_rank].map(|rank| {
                    (index == 0).then(|| rank(values)).flatten().map(|rank| digits::<T>(rounded::<T>(rank)))
                });
                (sequence, chunk, head, weight, index, digits::<T>(rounded::<T>(value)), ranks)
            })
        });
        self.0.write(first.sequence, rows)
    }

    /// Adds the rows of another file, like [`MetricsWriter::resume`].
    pub fn resume(&mut self, from: &Path, done: usize) -> Result<()> {
        self.0.resume(from, done)
    }

    /// Marks a sequence as complete, like [`MetricsWriter::sequence_done`].
    pub fn sequence_done(&mut self, sequence: usize) -> Result<()> {
        self.0.sequence_done(sequence)
    }

    /// Flushes the file, like [`MetricsWriter::finish`].
    pub fn finish(self) -> Result<()> {
        self.0.finish()
    }
}

/// A writer of retention.csv that takes rows as they come.
pub struct RetentionWriter(RowsWriter);

impl RetentionWriter {
    /// Creates the file with its header.
    pub fn create(path: &Path) -> Result<Self> {
        RowsWriter::create(path, RETENTION_COLUMNS).map(Self)
    }

    /// Adds rows of one sequence.
    pub fn write<T: Real>(&mut self, rows: &[Retained]) -> Result<()> {
        let Some(first) = rows.first() else { return Ok(()) };
        let row = |row: &Retained| {
            let &Retained { sequence, after, chunk, head, loss, loss_at_w } = row;
            (sequence, after, chunk, head, digits::<T>(loss), digits::<T>(loss_at_w))
        };
        self.0.write(first.sequence, rows.iter().map(row))
    }

    /// Marks a sequence as complete, like [`MetricsWriter::sequence_done`].
    pub fn sequence_done(&mut self, sequence: usize) -> Result<()> {
        self.0.sequence_done(sequence)
    }

    /// Flushes the file, like [`MetricsWriter::finish`].
    pub fn finish(self) -> Result<()> {
        self.0.finish()
    }
}

/// Columns of recall.csv.
pub const RECALL_COLUMNS: [&str; 11] = [
    "sequence",
    "token",
    "mean_square",
    "mean_square_zero",
    "cosine",
    "target",
    "answer",
    "rank",
    "in_set_rank",
    "updated",
    "stale",
];

/// A writer of recall.csv that takes rows as they come.
pub struct RecallWriter(RowsWriter);

impl RecallWriter {
    /// Creates the file with its header.
    pub fn create(path: &Path) -> Result<Self> {
        RowsWriter::create(path, RECALL_COLUMNS).map(Self)
    }

    /// Adds the row of one token.
    pub fn write<T: Real>(&mut self, sequence: usize, token: usize, score: &TokenScore) -> Result<()> {
        let TokenScore { mean_square, mean_square_zero, cosine, target, answer, rank, in_set_rank, .. } =
            *score;
        let [mean_square, mean_square_zero, cosine] =
            [mean_square, mean_square_zero, cosine].map(digits::<T>);
        let [updated, stale] = [score.updated, score.stale].map(|of| of.map(u8::from));
        let row = (sequence, token, mean_square, mean_square_zero, cosine, target, answer, rank);
        self.0.write(sequence, std::iter::once((row, in_set_rank, updated, stale)))
    }

    /// Marks a sequence as complete, like [`MetricsWriter::sequence_done`].
    pub fn sequence_done(&mut self, sequence: usize) -> Result<()> {
        self.0.sequence_done(sequence)
    }

    /// Flushes the file, like [`MetricsWriter::finish`].
    pub fn finish(self) -> Result<()> {
        self.0.finish()
    }
}

/// A writer of a CSV ordered by sequence. Sequences advance side by side but are written one after another.
/// Rows of the current sequence go directly to the file. Rows of later ones wait in unnamed temporary files until they are
/// complete, because a divergence of an earlier one drops them.
struct RowsWriter {
    path: PathBuf,
    /// Directory of the file. Waiting rows are stored there too, because a temporary directory may be in memory.
    directory: PathBuf,
    file: csv::Writer<OutFile>,
    /// The sequence that is currently written.
    current: usize,
    waiting: BTreeMap<usize, csv::Writer<OutFile>>,
}

impl RowsWriter {
    fn create(path: &Path, header: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Result<Self> {
        let mut file = writer(OutFile::create(path).map_err(Error::io(path, "create"))?);
        file.write_record(header).map_err(csv_error(path))?;
        let directory = path.parent().unwrap_or(Path::new("")).to_path_buf();
        Ok(Self { path: path.to_path_buf(), directory, file, current: 0, waiting: BTreeMap::new() })
    }

    fn write(&mut self, sequence: usize, mut rows: impl Iterator<Item = impl Serialize>) -> Result<()> {
        let file = self.of_sequence(sequence)?;
        rows.try_for_each(|row| file.serialize(row)).map_err(csv_error(&self.path))
    }

    /// Returns the writer of a sequence's rows. Those of complete sequences go to the file too.
    fn of_sequence(&mut self, sequence: usize) -> Result<&mut csv::Writer<OutFile>> {
        if sequence <= self.current && !self.waiting.contains_key(&sequence) {
            return Ok(&mut self.file);
        }
        Ok(match self.waiting.entry(sequence) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(writer(
                OutFile::unnamed_in(&self.directory).map_err(Error::io(&self.directory, "write in"))?,
            )),
        })
    }

    fn resume(&mut self, from: &Path, done: usize) -> Result<()> {
        self.current = done;
        let wrong = |got: String| Error::file(from, "rows by sequence", got);
        let mut reader =
            csv::Reader::from_path(from).map_err(|error| Error::io(from, "open")(error.into()))?;
        let mut row = csv::StringRecord::new();
        while reader.read_record(&mut row).map_err(|error| wrong(error.to_string()))? {
            let sequence = row[0].parse().map_err(|_| wrong(format!("{:?}", &row[0])))?;
            self.of_sequence(sequence)?.write_record(&row).map_err(csv_error(&self.path))?;
        }
        Ok(())
    }

    fn sequence_done(&mut self, sequence: usize) -> Result<()> {
        debug_assert_eq!(sequence, self.current, "sequences end in order");
        self.current = sequence + 1;
        let Some(waiting) = self.waiting.remove(&sequence) else { return Ok(()) };
        let mut rows =
            waiting.into_inner().map_err(|error| Error::io(&self.path, "write")(error.into_error()))?;
        self.file.flush().map_err(Error::io(&self.path, "write"))?;
        rows.rewind().map_err(Error::io(&self.path, "write"))?;
        io::copy(&mut rows, &mut self.file.get_ref()).map_err(Error::io(&self.path, "write"))?;
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let file = self.file.into_inner().map_err(csv::IntoInnerError::into_error);
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

/// Mean, smallest and largest value of a column over all rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Arithmetic mean.
    pub mean: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
}

impl Spread {
    /// The spread of no values.
    pub(crate) const EMPTY: Self = Self { mean: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY };

    /// Adds the value that is number `count`, from 1.
    pub(crate) fn add(&mut self, value: f64, count: u64) {
        self.mean += (value - self.mean) / count as f64;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }
}

/// Spread of each column over all rows of a run.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    columns: Vec<(&'static str, u64, Spread)>,
}

impl Summary {
    /// Adds a row.
    pub fn add(&mut self, row: &ChunkMetrics) {
        let quantities = row.quantities();
        if self.columns.is_empty() {
            self.columns = quantities.iter().map(|&(name, _)| (name, 0, Spread::EMPTY)).collect();
        }
        for ((_, count, spread), (_, value)) in self.columns.iter_mut().zip(quantities) {
            let Some(value) = value else { continue };
            *count += 1;
            spread.add(value, *count);
        }
    }

    /// Adds all rows of another summary.
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

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        // The first column, the loss, is never absent.
        self.columns.first().map_or(0, |(_, count, _)| *count as usize)
    }

    /// Yields the spreads by column name, in header order; columns without values are skipped.
    pub fn columns(&self) -> impl Iterator<Item = (&'static str, Spread)> {
        self.columns.iter().filter(|(_, count, _)| *count > 0).map(|&(name, _, spread)| (name, spread))
    }
}
