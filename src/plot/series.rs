//! metrics.csv → bounded lines. The file is read twice: once to find the start of each sequence and the heads, once to
//! sum over sequences, a block of chunks at a time. Memory is therefore O(sequences + heads) for any number of chunks.
//!
//! Each head's line is its mean over sequences; the bold line is the mean of these over heads. The loss ratio is a ratio of
//! sums, Σ `loss_before` ÷ Σ `loss`, over sequences and, for the bold line, over heads. A mean of ratios would be dominated
//! by the heads with the smallest losses.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::{Range, RangeInclusive};
use std::path::Path;

use csv::Position;

use crate::error::{Error, Result};
use crate::io::table::{Column, Table};
use crate::plot::Check;
use crate::plot::downsample::{DownsampledLine, Unshown};
use crate::plot::style::{FigureStyle, LogAxes};

/// Bins of the bold lines, and of each head's line up to `BINS_OF_ALL_HEADS / BINS` heads. That is one per point of paper,
/// with up to four values each.
const BINS: usize = 512;
/// Bins of all heads together, which bounds the size of a figure with many heads.
const BINS_OF_ALL_HEADS: usize = 4096;
/// Most heads; the lines of each take about 50 kB when full.
const MAX_HEADS: usize = 1024;
/// Chunks of one sequence to read before the next sequence.
const BLOCK: u64 = 64;

/// A quantity shown in a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// ‖g‖ over all memory weights.
    Surprise,
    /// `loss_before` ÷ `loss`, the fraction of the loss at W that remains with the memory's updates. It is high for chunks
    /// that are new to the memory.
    LossRatio,
    /// θ.
    LearningRate,
    /// α.
    Decay,
    /// η.
    Momentum,
}

impl Quantity {
    /// All quantities, in the order of the panels.
    pub const ALL: [Self; 5] =
        [Self::Surprise, Self::LossRatio, Self::LearningRate, Self::Decay, Self::Momentum];

    /// Returns the quantity of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|quantity| quantity.name() == name)
    }

    /// Returns the name in columns and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Surprise => "surprise",
            Self::LossRatio => "loss_ratio",
            Self::LearningRate => "learning_rate",
            Self::Decay => "decay",
            Self::Momentum => "momentum",
        }
    }

    /// Whether the quantity is drawn on a log axis.
    pub fn is_log(self) -> bool {
        matches!(self, Self::Surprise | Self::LearningRate)
    }
}

/// One quantity over tokens.
#[derive(Debug)]
pub struct Series {
    /// The quantity.
    pub quantity: Quantity,
    /// One line per head.
    pub heads: Vec<DownsampledLine>,
    /// Mean or ratio of sums over heads, or their moving mean; `None` for a single head without smoothing.
    pub all: Option<DownsampledLine>,
    /// Whether the axis is logarithmic.
    pub log: bool,
}

/// The part of a metrics.csv to draw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Ranges of heads; all if empty.
    pub heads: Vec<RangeInclusive<u64>>,
    /// Tokens; chunks that overlap them are drawn.
    pub tokens: Option<Range<u64>>,
}

impl Part {
    /// Whether the head is drawn.
    pub fn has_head(&self, head: u64) -> bool {
        self.heads.is_empty() || self.heads.iter().any(|heads| heads.contains(&head))
    }

    /// Whether a chunk of these tokens is drawn.
    pub fn has_tokens(&self, tokens: &Range<u64>) -> bool {
        self.tokens.as_ref().is_none_or(|part| tokens.start < part.end && tokens.end > part.start)
    }
}

/// All data of a metrics.csv that figures show.
#[derive(Debug)]
pub struct Metrics {
    /// Number of sequences in the mean of each head's line.
    pub sequences: usize,
    /// Numbers of the heads, ascending.
    pub heads: Vec<u64>,
    /// Tokens from the first chunk's start to the last one's end; empty without rows.
    pub tokens: Range<u64>,
    /// The quantities that apply.
    pub series: Vec<Series>,
    /// `loss_zero` ÷ `loss`: the loss ratio of an all-zero answer, as a ratio of sums over heads. Without values if the file
    /// has no `loss_zero`.
    pub zero_ratio: DownsampledLine,
    /// Chunks in the mean of each point of a bold line, if it is smoothed.
    pub smoothed: Option<usize>,
}

struct Columns {
    sequence: Column,
    chunk: Column,
    head: Column,
    start: Column,
    end: Column,
    loss: Column,
    loss_before: Column,
    loss_zero: Option<Column>,
    surprise: Column,
    learning_rate: Column,
    decay: Column,
    momentum: Column,
}

/// The positions at which to resume sequences, by the chunk of their next row, then by sequence.
type Cursors = BTreeMap<(u64, u64), Position>;

/// A sum of the values that apply.
#[derive(Clone, Copy, Default)]
pub(super) struct Sum {
    sum: f64,
    count: u64,
}

/// Sums over sequences for one chunk and head.
#[derive(Clone, Copy, Default)]
struct Cell {
    loss: Sum,
    loss_before: Sum,
    loss_zero: Sum,
    surprise: Sum,
    learning_rate: Sum,
    decay: Sum,
    momentum: Sum,
}

impl Metrics {
    /// Reads a metrics.csv, sorted by sequence, chunk and head as `nmem` writes it.
    pub fn read(path: &Path, style: &FigureStyle, part: &Part, check: &mut Check) -> Result<Self> {
        let mut table = Table::open(path)?;
        let columns = Columns::find(&table)?;
        let (mut cursors, mut heads) = survey(&mut table, &columns, check)?;
        let known = heads.len();
        heads.retain(|&head| part.has_head(head));
        if known > 0 && heads.is_empty() {
            return Err(Error::rejected("--heads", format!("{} has none of these heads", path.display())));
        }
        let sequences = cursors.len();
        let smoothed = style.smoothed();
        let series = Series::empty(heads.len(), style);
        let log = series.iter().any(|series| series.quantity == Quantity::LossRatio && series.log);
        let zero_ratio = DownsampledLine::new(BINS, log);
        let mut metrics = Self { sequences, series, heads, tokens: 0..0, smoothed, zero_ratio };
        let mean = || MovingMean::new(smoothed.unwrap_or(1));
        let mut means = Means { series: Quantity::ALL.map(|_| mean()), zero_ratio: mean() };

        let mut cells = vec![Cell::default(); BLOCK as usize * metrics.heads.len()];
        let mut places = vec![None; BLOCK as usize];
        let mut blocks = 0_u64;
        while let Some((&(first, _), _)) = cursors.first_key_value() {
            blocks += 1;
            if blocks.is_multiple_of(16) {
                check()?;
            }
            cells.fill(Cell::default());
            places.fill(None);
            let later = cursors.split_off(&(first + BLOCK, 0));
            let mut here: Vec<_> = std::mem::replace(&mut cursors, later).into_iter().collect();
            // The order is fixed because sums of floats depend on it.
            here.sort_by_key(|((_, sequence), _)| *sequence);
            for ((_, sequence), position) in here {
                let rows = (&mut cells[..], &mut places[..]);
                table.seek(position)?;
                let open = metrics.read_block(&mut table, &columns, part, (sequence, first), rows)?;
                cursors.extend(open.map(|chunk| ((chunk, sequence), table.position())));
            }
            for (place, cells) in places.iter().zip(cells.chunks(metrics.heads.len().max(1))) {
                if let Some(place) = place {
                    metrics.push(place, cells, &mut means);
                }
            }
        }
        for (series, mean) in metrics.series.iter_mut().zip(&mut means.series) {
            if let Some(line) = &mut series.all {
                mean.finish(|x, y| line.push(x, y));
            }
        }
        means.zero_ratio.finish(|x, y| metrics.zero_ratio.push(x, y));
        metrics.series.retain(|series| series.quantity != Quantity::LossRatio || series.applies());
        Ok(metrics)
    }

    /// Adds the rows of one sequence and chunks `first .. first + BLOCK`, from the next row on. Stops at a later chunk of the
    /// sequence and returns it, if there is one.
    fn read_block(
        &mut self,
        table: &mut Table,
        columns: &Columns,
        part: &Part,
        (sequence, first): (u64, u64),
        (cells, places): (&mut [Cell], &mut [Option<Range<u64>>]),
    ) -> Result<Option<u64>> {
        while table.advance()? && table.integer(columns.sequence)? == sequence {
            let (chunk, head) = (table.integer(columns.chunk)?, table.integer(columns.head)?);
            let changed = || {
                let got = format!("chunk {chunk}, head {head}");
                table.bad_row("the rows of the first pass (the file changed)", got)
            };
            let row = chunk.checked_sub(first).ok_or_else(changed)?;
            if row >= BLOCK {
                return Ok(Some(chunk));
            }
            if !part.has_head(head) {
                continue;
            }
            // `survey` has seen the head unless the file changed in between.
            let head = self.heads.binary_search(&head).map_err(|_| changed())?;
            let tokens = table.integer(columns.start)?..table.integer(columns.end)?;
            if tokens.is_empty() {
                return Err(table.bad_row("start < end", format!("{} and {}", tokens.start, tokens.end)));
            }
            if !part.has_tokens(&tokens) {
                continue;
            }
            self.tokens = if self.tokens.is_empty() {
                tokens.clone()
            } else {
                self.tokens.start.min(tokens.start)..self.tokens.end.max(tokens.end)
            };
            places[row as usize].get_or_insert(tokens);
            cells[row as usize * self.heads.len() + head].add(table, columns)?;
        }
        Ok(None)
    }

    /// Adds one chunk to every line.
    fn push(&mut self, tokens: &Range<u64>, cells: &[Cell], means: &mut Means) {
        let x = f64::midpoint(tokens.start as f64, tokens.end as f64);
        for (series, mean) in self.series.iter_mut().zip(&mut means.series) {
            for (line, cell) in series.heads.iter_mut().zip(cells) {
                line.push(x, cell.value(series.quantity));
            }
            if let Some(line) = &mut series.all {
                mean.push(x, over_heads(cells, series.quantity), |x, y| line.push(x, y));
            }
        }
        means.zero_ratio.push(x, losses(cells).zero_ratio(), |x, y| self.zero_ratio.push(x, y));
    }
}

/// Finds the start of each sequence and the heads, and checks the order of the rows.
fn survey(table: &mut Table, columns: &Columns, check: &mut Check) -> Result<(Cursors, Vec<u64>)> {
    let mut cursors = Cursors::new();
    let mut heads = BTreeSet::new();
    let mut previous = None;
    let mut rows = 0_u64;
    while table.advance()? {
        rows += 1;
        if rows.is_multiple_of(4096) {
            check()?;
        }
        let key @ (sequence, chunk, head) =
            (table.integer(columns.sequence)?, table.integer(columns.chunk)?, table.integer(columns.head)?);
        let before = previous.replace(key);
        if let Some(before) = before.filter(|before| *before >= key) {
            let got = format!("sequence {sequence}, chunk {chunk}, head {head} after {before:?}");
            return Err(table.bad_row("rows sorted by sequence, chunk and head, each once,", got));
        }
        if heads.insert(head) && heads.len() > MAX_HEADS {
            return Err(table.bad_row(format!("at most {MAX_HEADS} heads"), "another"));
        }
        if before.is_none_or(|before| before.0 != sequence) {
            cursors.insert((chunk, sequence), table.position());
        }
    }
    Ok((cursors, heads.into_iter().collect()))
}

impl Columns {
    fn find(table: &Table) -> Result<Self> {
        Ok(Self {
            sequence: table.column("sequence")?,
            chunk: table.column("chunk")?,
            head: table.column("head")?,
            start: table.column("start")?,
            end: table.column("end")?,
            loss: table.column("loss")?,
            loss_before: table.column("loss_before")?,
            loss_zero: table.optional_column("loss_zero"),
            surprise: table.column("surprise")?,
            learning_rate: table.column("learning_rate")?,
            decay: table.column("decay")?,
            momentum: table.column("momentum")?,
        })
    }
}

impl Series {
    fn empty(heads: usize, style: &FigureStyle) -> Vec<Self> {
        let bins_a_head = (BINS_OF_ALL_HEADS / heads.max(1)).next_power_of_two().clamp(64, BINS);
        let bold = heads > 1 || (heads > 0 && style.smoothed().is_some());
        let series = |quantity: Quantity| {
            let log = style.log.map_or(quantity.is_log(), LogAxes::y);
            let heads = vec![DownsampledLine::new(bins_a_head, log); heads];
            Self { quantity, heads, all: bold.then(|| DownsampledLine::new(BINS, log)), log }
        };
        Quantity::ALL.map(series).into()
    }

    /// Returns the line over all heads.
    pub fn bold(&self) -> Option<&DownsampledLine> {
        self.all.as_ref().or(self.heads.first())
    }

    /// Returns the lowest and highest value drawn.
    pub fn range(&self) -> Option<(f64, f64)> {
        self.heads
            .iter()
            .chain(&self.all)
            .filter_map(DownsampledLine::range)
            .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
    }

    /// Returns the value if all are the same.
    pub fn constant(&self) -> Option<f64> {
        let unshown = self.count(Unshown::NotFinite) + self.count(Unshown::NotPositive);
        let (low, high) = self.range().filter(|_| unshown == 0)?;
        // Means over heads of the same value may differ in the last digit.
        (high - low <= 1e-9 * high.abs()).then_some(high)
    }

    /// Returns the number of the heads' values that cannot be drawn for this reason.
    pub fn count(&self, reason: Unshown) -> u64 {
        self.heads.iter().map(|line| line.count(reason)).sum()
    }

    /// Whether the series has any value, including values that cannot be drawn.
    fn applies(&self) -> bool {
        self.range().is_some() || self.count(Unshown::NotFinite) + self.count(Unshown::NotPositive) > 0
    }
}

/// Sum and count of the values in a queue, in constant time for each value. For older values it keeps sums up to the newest
/// of them. Nothing is ever subtracted, so that no large value leaves a rounding error behind.
#[derive(Default)]
struct Window {
    /// Sums from each older value to the newest of them, the oldest last.
    older: Vec<(f64, u64)>,
    newer: Vec<(f64, u64)>,
    of_newer: (f64, u64),
}

impl Window {
    fn push(&mut self, value: Option<f64>) {
        let value = value.filter(|value| value.is_finite()).map_or((0.0, 0), |value| (value, 1));
        self.newer.push(value);
        self.of_newer = (self.of_newer.0 + value.0, self.of_newer.1 + value.1);
    }

    /// Drops the oldest value.
    fn pop(&mut self) {
        if self.older.is_empty() {
            let mut sum = (0.0, 0);
            while let Some(value) = self.newer.pop() {
                sum = (value.0 + sum.0, value.1 + sum.1);
                self.older.push(sum);
            }
            self.of_newer = (0.0, 0);
        }
        self.older.pop();
    }

    fn sum(&self) -> (f64, u64) {
        let older = self.older.last().copied().unwrap_or_default();
        (older.0 + self.of_newer.0, older.1 + self.of_newer.1)
    }
}

/// A centred moving mean over a fixed number of points, fewer at the ends. Values that are not finite stay unchanged and
/// are excluded from other points' means.
struct MovingMean {
    half: usize,
    window: VecDeque<(f64, Option<f64>)>,
    sums: Window,
    /// Place in the window of the next point to emit.
    next: usize,
}

/// The moving means of the lines over all heads.
struct Means {
    series: [MovingMean; Quantity::ALL.len()],
    zero_ratio: MovingMean,
}

impl MovingMean {
    fn new(points: usize) -> Self {
        Self { half: points / 2, window: VecDeque::new(), sums: Window::default(), next: 0 }
    }

    fn push(&mut self, x: f64, y: Option<f64>, mut emit: impl FnMut(f64, Option<f64>)) {
        if self.half == 0 {
            return emit(x, y);
        }
        self.window.push_back((x, y));
        self.sums.push(y);
        if self.window.len() > self.next + self.half {
            self.emit(&mut emit);
        }
    }

    fn finish(&mut self, mut emit: impl FnMut(f64, Option<f64>)) {
        while self.next < self.window.len() {
            self.emit(&mut emit);
        }
    }

    fn emit(&mut self, emit: &mut impl FnMut(f64, Option<f64>)) {
        let (x, y) = self.window[self.next];
        let mean = |y: f64| {
            let (sum, count) = self.sums.sum();
            if y.is_finite() { sum / count as f64 } else { y }
        };
        emit(x, y.map(mean));
        self.next += 1;
        if self.next > self.half {
            self.window.pop_front();
            self.sums.pop();
            self.next -= 1;
        }
    }
}

impl Sum {
    pub(super) fn add(&mut self, value: Option<f64>) {
        if let Some(value) = value {
            self.sum += value;
            self.count += 1;
        }
    }

    pub(super) fn mean(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

impl Cell {
    fn add(&mut self, table: &Table, columns: &Columns) -> Result<()> {
        let (loss, loss_before) = (table.number(columns.loss)?, table.number(columns.loss_before)?);
        if loss.is_some() && loss_before.is_some() {
            self.loss.add(loss);
            self.loss_before.add(loss_before);
            if let Some(column) = columns.loss_zero {
                self.loss_zero.add(table.number(column)?);
            }
        }
        self.surprise.add(table.number(columns.surprise)?);
        self.learning_rate.add(table.number(columns.learning_rate)?);
        self.decay.add(table.number(columns.decay)?);
        self.momentum.add(table.number(columns.momentum)?);
        Ok(())
    }

    fn value(&self, quantity: Quantity) -> Option<f64> {
        match quantity {
            Quantity::Surprise => self.surprise.mean(),
            Quantity::LossRatio => (self.loss.count > 0).then(|| self.loss_before.sum / self.loss.sum),
            Quantity::LearningRate => self.learning_rate.mean(),
            Quantity::Decay => self.decay.mean(),
            Quantity::Momentum => self.momentum.mean(),
        }
    }

    fn zero_ratio(&self) -> Option<f64> {
        let all = self.loss.count > 0 && self.loss_zero.count == self.loss.count;
        all.then(|| self.loss_zero.sum / self.loss.sum)
    }
}

/// Returns the sums of the losses over heads.
fn losses(cells: &[Cell]) -> Cell {
    let sum = |a: Sum, b: Sum| Sum { sum: a.sum + b.sum, count: a.count + b.count };
    cells.iter().fold(Cell::default(), |all, cell| Cell {
        loss: sum(all.loss, cell.loss),
        loss_before: sum(all.loss_before, cell.loss_before),
        loss_zero: sum(all.loss_zero, cell.loss_zero),
        ..all
    })
}

fn over_heads(cells: &[Cell], quantity: Quantity) -> Option<f64> {
    if quantity == Quantity::LossRatio {
        return losses(cells).value(quantity);
    }
    let mut mean = Sum::default();
    for cell in cells {
        mean.add(cell.value(quantity));
    }
    mean.mean()
}

#[cfg(test)]
mod tests {
    use super::{BINS, FigureStyle, Metrics, MovingMean, Part, Quantity};
    use crate::plot::downsample::Point;

    const HEADER: &str =
        "sequence,chunk,head,start,end,loss,loss_before,surprise,learning_rate,momentum,decay";

    fn read(rows: &str) -> Result<Metrics, String> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("metrics.csv");
        std::fs::write(&path, format!("{HEADER}\n{rows}")).expect("a writable temporary directory");
        Metrics::read(&path, &FigureStyle::default(), &Part::default(), &mut || Ok(()))
            .map_err(|error| error.to_string().split_once("metrics.csv: ").unwrap().1.to_string())
    }

    fn all(metrics: &Metrics, quantity: Quantity) -> Vec<Vec<Point>> {
        let series = metrics.series.iter().find(|series| series.quantity == quantity).expect("the series");
        series.all.as_ref().unwrap_or(&series.heads[0]).stretches()
    }

    #[test]
    fn means_and_ratio_of_sums() {
        // Two sequences, two chunks, two heads.
        let metrics = read(
            "0,0,0,0,4,1,1,1,.1,0,.5\n0,0,1,0,4,3,1,3,.1,0,.5\n0,1,0,4,8,2,1,5,.1,0,.5\n0,1,1,4,8,2,1,5,.1,0,.5\n\
             1,0,0,0,4,1,1,5,.3,0,.5\n1,0,1,0,4,3,3,7,.3,0,.5\n1,1,0,4,8,2,1,7,.3,0,.5\n1,1,1,4,8,2,1,7,.3,0,.5\n",
        )
        .unwrap();
        assert_eq!(
            (metrics.sequences, metrics.heads.as_slice(), metrics.tokens.clone()),
            (2, &[0, 1][..], 0..8)
        );
        assert_eq!(metrics.series[0].heads[0].stretches(), [[(2.0, 3.0), (6.0, 6.0)]]);
        assert_eq!(all(&metrics, Quantity::Surprise), [[(2.0, 4.0), (6.0, 6.0)]]);
        assert_eq!(metrics.series[1].heads[1].stretches(), [[(2.0, 4.0 / 6.0), (6.0, 0.5)]]);
        assert_eq!(all(&metrics, Quantity::LossRatio), [[(2.0, 6.0 / 8.0), (6.0, 0.5)]]);
        assert_eq!(all(&metrics, Quantity::LearningRate), [[(2.0, 0.2), (6.0, 0.2)]]);
    }

    #[test]
    fn loss_of_zeros_by_loss() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics.csv");
        // The second chunk lacks one value, and its ratio would be of different rows.
        let rows = "0,0,0,0,4,1,1,1,1,1,1,2\n0,0,1,0,4,3,1,1,1,1,1,5\n0,1,0,4,8,1,1,1,1,1,1,2\n0,1,1,4,8,3,1,1,1,1,1,\n";
        std::fs::write(&path, format!("{HEADER},loss_zero\n{rows}")).unwrap();
        let metrics =
            Metrics::read(&path, &FigureStyle::default(), &Part::default(), &mut || Ok(())).unwrap();
        assert_eq!(metrics.zero_ratio.stretches(), [[(2.0, 7.0 / 4.0)]]);
        let without = read("0,0,0,0,4,1,1,1,1,1,1\n").unwrap();
        assert_eq!(without.zero_ratio.stretches(), Vec::<Vec<Point>>::new());
    }

    #[test]
    fn one_bad_head_breaks_the_mean() {
        let metrics = read("0,0,0,0,4,1,,1,.1,0,.5\n0,0,1,0,4,1,,NaN,.1,0,.5\n").unwrap();
        assert_eq!(metrics.series[0].heads[0].stretches(), [[(2.0, 1.0)]]);
        assert_eq!(all(&metrics, Quantity::Surprise), [[]; 0]);
        assert_eq!(metrics.series.iter().filter(|series| series.quantity == Quantity::LossRatio).count(), 0);
    }

    #[test]
    fn sequences_of_many_blocks_and_unequal_length() {
        let rows = |sequence: u64, chunks: u64| {
            (0..chunks)
                .map(move |i| format!("{sequence},{i},0,{i},{},1,1,{},1,1,1\n", i + 1, i + 1 + sequence))
        };
        let metrics = read(&rows(0, 200).chain(rows(2, 150)).collect::<Vec<_>>().concat()).unwrap();
        let expected: Vec<_> =
            (0..200).map(|i| (f64::from(i) + 0.5, f64::from(i) + if i < 150 { 2.0 } else { 1.0 })).collect();
        assert_eq!(all(&metrics, Quantity::Surprise), [expected]);
    }

    #[test]
    fn long_runs_are_binned() {
        let rows: Vec<_> = (0..5000).map(|i| format!("0,{i},0,{i},{},1,1,1,1,1,1\n", i + 1)).collect();
        let metrics = read(&rows.concat()).unwrap();
        assert_eq!(metrics.series[0].heads[0].bin_width(), 16);
        assert!(all(&metrics, Quantity::Surprise)[0].len() <= 4 * BINS);
    }

    #[test]
    fn moving_means() {
        let of = |points: usize, values: &[f64]| {
            let (mut mean, mut means) = (MovingMean::new(points), Vec::new());
            for (i, &value) in values.iter().enumerate() {
                mean.push(i as f64, Some(value), |x, y| means.push((x, y)));
            }
            mean.finish(|x, y| means.push((x, y)));
            assert!(means.iter().enumerate().all(|(i, point)| (point.0 - i as f64).abs() < 1e-9));
            means.into_iter().map(|point| point.1.unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(of(1, &[1.0, 5.0]), [1.0, 5.0]);
        assert_eq!(of(3, &[1.0, 2.0, 6.0, 1.0]), [1.5, 3.0, 3.0, 3.5]);
        assert_eq!(of(9, &[1.0, 3.0]), [2.0, 2.0]);
        let with_a_gap = of(3, &[1.0, f64::NAN, 3.0]);
        assert_eq!((with_a_gap[0], with_a_gap[2]), (1.0, 3.0));
        assert!(with_a_gap[1].is_nan());
    }

    #[test]
    fn bad_input_is_named() {
        let cases = [
            (
                "0,0,0,0,4,1,,oops,1,1,1\n",
                r#"expected a number or nothing in column "surprise" on line 2, got "oops""#,
            ),
            ("0,0,0,4,4,1,,1,1,1,1\n", "expected start < end on line 2, got 4 and 4"),
            (
                "0,1,0,0,4,1,,1,1,1,1\n0,0,0,0,4,1,,1,1,1,1\n",
                "expected rows sorted by sequence, chunk and head, each once, on line 3, \
                 got sequence 0, chunk 0, head 0 after (0, 1, 0)",
            ),
        ];
        for (rows, message) in cases {
            assert_eq!(read(rows).unwrap_err(), message);
        }
    }
}
