//! Comparisons: where and by how much two run directories differ ([`runs`]), and what a parameter of a sweep changes against
//! a baseline ([`baseline()`]).
//!
//! Two runs are compared number by number where they have the same chunks. Means are compared over pairs: each sequence of
//! each pair of runs is one pair, and losses are per token, so that chunks of other sizes can be compared too.

mod baseline;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ndarray::Array2;
use serde::Serialize;

use crate::error::Result;
use crate::io::table::{Column, Table};
use crate::io::{NpySequences, Tensor, TensorFile};
use crate::paired::{PairedDifference, holm};
use crate::real::ElementType;
use crate::sequence::{Sequences, Shape};
use crate::storage;
pub use baseline::{Baseline, BaselineReport, BaselineRow, baseline};

/// Files that are compared.
const METRICS: &str = "metrics.csv";
const RETRIEVED: &str = "retrieved.npy";
const MEMORY: &str = "memory.safetensors";
/// Columns of metrics.csv that say which chunk a row is of.
const PLACES: [&str; 5] = ["sequence", "chunk", "head", "start", "end"];
/// Rows of retrieved.npy that are compared at once.
const ROWS: usize = 1024;

/// Place of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Pair of runs, from 0.
    pub pair: usize,
    /// Sequence.
    pub sequence: u64,
    /// Chunk of metrics.csv.
    pub chunk: Option<u64>,
    /// Head.
    pub head: Option<u64>,
    /// Token of retrieved.npy.
    pub token: Option<u64>,
}

/// A quantity of both runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Quantity {
    /// Column of metrics.csv, `retrieved`, or a tensor of memory.safetensors.
    pub name: String,
    /// Count of the numbers compared one by one.
    pub compared: u64,
    /// Count of those that differ.
    pub differing: u64,
    /// Largest difference of two numbers; infinite if one of them is not finite.
    pub largest: f64,
    /// First place where they differ.
    pub first: Option<Place>,
    /// Difference of the means over sequences: per token for losses, of the rows' norms for `retrieved`.
    pub means: Option<PairedDifference>,
    /// The p-value of `means`, adjusted for the number of quantities.
    pub p_holm: Option<f64>,
    #[serde(skip)]
    pairs: Vec<(f64, f64)>,
}

impl Quantity {
    fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    fn add(&mut self, a: f64, b: f64, place: impl FnOnce() -> Option<Place>) {
        self.compared += 1;
        if a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan() {
            return;
        }
        self.differing += 1;
        let difference = (a - b).abs();
        self.largest = self.largest.max(if difference.is_finite() { difference } else { f64::INFINITY });
        self.first = self.first.or_else(place);
    }
}

/// A file, a column or a tensor that cannot be compared, because one run does not have it or both have other shapes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Unmatched {
    /// Pair of runs, from 0.
    pub pair: usize,
    /// Name of the file, with that of the column or tensor.
    pub name: String,
    /// Form in A: a shape, or the number of cells with a number; `None` if it is absent.
    pub a: Option<String>,
    /// Form in B.
    pub b: Option<String>,
}

/// Differences of one chunk: for each column the sum over heads and their number.
#[derive(Clone, Debug, PartialEq)]
struct ChunkDifferences {
    pair: usize,
    sequence: u64,
    chunk: u64,
    /// By the columns of [`Comparison`], of which the last may be missing.
    sums: Vec<(f64, u64)>,
}

/// Comparison of two runs, or of pairs of runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// Whether all rows of metrics.csv are of the same chunks. Otherwise only means are compared.
    pub same_chunks: bool,
    /// Files, columns and tensors that cannot be compared.
    pub unmatched: Vec<Unmatched>,
    /// Quantities in the order of metrics.csv, then what is read, then weights.
    pub quantities: Vec<Quantity>,
    /// Difference of each chunk, for a figure: rows of [`Self::table`].
    #[serde(skip)]
    chunks: Vec<ChunkDifferences>,
    /// Columns of metrics.csv that are compared in any pair.
    #[serde(skip)]
    columns: Vec<String>,
}

/// Compares pairs of run directories, such as those of several seeds. `check` runs every few thousand rows and can stop the
/// work.
pub fn runs(pairs: &[(PathBuf, PathBuf)], check: &mut dyn FnMut() -> Result<()>) -> Result<Comparison> {
    let mut all = Comparison { same_chunks: true, ..Comparison::default() };
    for (pair, (a, b)) in pairs.iter().enumerate() {
        all.metrics(pair, (a, b), check)?;
        all.retrieved(pair, (a, b), check)?;
        all.weights(pair, (a, b), check)?;
    }
    if !all.same_chunks {
        all.forget_rows();
    }
    for quantity in &mut all.quantities {
        quantity.means = PairedDifference::from_pairs(&quantity.pairs);
    }
    let p: Vec<_> = all.quantities.iter().map(|of| of.means.and_then(|means| means.p)).collect();
    for (quantity, p) in all.quantities.iter_mut().zip(holm(&p)) {
        quantity.p_holm = p;
    }
    Ok(all)
}

/// A row of metrics.csv: sequence, chunk, head, start and end, and its numbers.
type Row = ([u64; 5], Vec<Option<f64>>);

/// An open metrics.csv.
struct Metrics {
    table: Table<'static>,
    places: [Column; 5],
    columns: Vec<Column>,
}

impl Metrics {
    fn open(path: &Path, names: &[String]) -> Result<Self> {
        let table = Table::open(path)?;
        let mut places = Vec::new();
        for name in PLACES {
            places.push(table.column(name)?);
        }
        let columns = names.iter().map(|name| table.column(name)).collect::<Result<_>>()?;
        let places = places.try_into().unwrap_or_else(|_| unreachable!("five columns"));
        Ok(Self { table, places, columns })
    }

    /// Reads the next row.
    fn next(&mut self) -> Result<Option<Row>> {
        if !self.table.advance()? {
            return Ok(None);
        }
        let mut place = [0; 5];
        for (number, &column) in place.iter_mut().zip(&self.places) {
            *number = self.table.integer(column)?;
        }
        let numbers = self.columns.iter().map(|&column| self.table.number(column));
        Ok(Some((place, numbers.collect::<Result<_>>()?)))
    }

    /// Returns the mean of each column by sequence. Losses are per token.
    fn means(
        mut self,
        names: &[String],
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<BTreeMap<u64, Vec<(f64, u64)>>> {
        let mut sums: BTreeMap<u64, Vec<(f64, u64)>> = BTreeMap::new();
        let mut rows = 0_u64;
        while let Some(([sequence, _, _, start, end], numbers)) = self.next()? {
            rows += 1;
            if rows.is_multiple_of(4096) {
                check()?;
            }
            let sums = sums.entry(sequence).or_insert_with(|| vec![(0.0, 0); names.len()]);
            for ((name, number), (sum, count)) in names.iter().zip(numbers).zip(sums) {
                let Some(number) = number else { continue };
                let per = if is_loss(name) { (end - start).max(1) as f64 } else { 1.0 };
                *sum += number / per;
                *count += 1;
            }
        }
        Ok(sums)
    }
}

/// Returns the name of a quantity's column in [`Comparison::table`].
pub fn difference_column(name: &str) -> String {
    format!("{name}_difference")
}

fn is_loss(name: &str) -> bool {
    name.starts_with("loss")
}

/// Formats a shape: "2 × 24 × 8".
fn shape_text(shape: &[usize]) -> String {
    if shape.is_empty() {
        return "one number".to_owned();
    }
    shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" × ")
}

/// Returns the numbers of a tensor: floating-point numbers of any type, or counters.
fn numbers(tensor: &Tensor) -> Option<Vec<f64>> {
    let counters = || Some(tensor.to_counters()?.into_iter().map(|counter| counter as f64).collect());
    tensor.to_array().map(|array| array.into_iter().collect()).or_else(counters)
}

impl Comparison {
    fn unmatched(&mut self, pair: usize, name: String, a: Option<String>, b: Option<String>) {
        self.unmatched.push(Unmatched { pair, name, a, b });
    }

    /// Returns the paths of a file in both directories. A file that one of them does not have is unmatched.
    fn paths(&mut self, pair: usize, (a, b): (&Path, &Path), name: &str) -> Result<Option<[PathBuf; 2]>> {
        let paths = [a, b].map(|directory| directory.join(name));
        let there = [storage::exists(&paths[0])?, storage::exists(&paths[1])?];
        if there[0] != there[1] {
            let [a, b] = there.map(|there| there.then(|| "a file".to_owned()));
            self.unmatched(pair, name.to_owned(), a, b);
        }
        Ok((there == [true, true]).then_some(paths))
    }

    /// Drops what was compared row by row before a pair with other chunks.
    fn forget_rows(&mut self) {
        for quantity in self.quantities.iter_mut().filter(|of| self.columns.contains(&of.name)) {
            (quantity.compared, quantity.differing, quantity.largest, quantity.first) = (0, 0, 0.0, None);
        }
    }

    fn quantity(&mut self, name: &str) -> &mut Quantity {
        let place = self.quantities.iter().position(|quantity| quantity.name == name);
        let place = place.unwrap_or_else(|| {
            self.quantities.push(Quantity::new(name));
            self.quantities.len() - 1
        });
        &mut self.quantities[place]
    }

    fn metrics(
        &mut self,
        pair: usize,
        (a, b): (&Path, &Path),
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let Some([a, b]) = self.paths(pair, (a, b), METRICS)? else { return Ok(()) };
        let columns = |path: &Path| -> Result<Vec<String>> {
            let table = Table::open(path)?;
            let names = table.columns().map(|(_, name)| name).filter(|name| !PLACES.contains(name));
            Ok(names.map(str::to_owned).collect())
        };
        let [of_a, of_b] = [columns(&a)?, columns(&b)?];
        let column = || Some("a column".to_owned());
        for name in of_a.iter().filter(|name| !of_b.contains(name)) {
            self.unmatched(pair, format!("{METRICS} {name}"), column(), None);
        }
        for name in of_b.iter().filter(|name| !of_a.contains(name)) {
            self.unmatched(pair, format!("{METRICS} {name}"), None, column());
        }
        let names: Vec<String> = of_a.into_iter().filter(|name| of_b.contains(name)).collect();
        let means_a = Metrics::open(&a, &names)?.means(&names, check)?;
        let means_b = Metrics::open(&b, &names)?.means(&names, check)?;
        for (sequence, of_a) in &means_a {
            let Some(of_b) = means_b.get(sequence) else { continue };
            for (name, (a, b)) in names.iter().zip(of_a.iter().zip(of_b)) {
                if a.1 > 0 && b.1 > 0 {
                    self.quantity(name).pairs.push((a.0 / a.1 as f64, b.0 / b.1 as f64));
                }
            }
        }
        let (mut a, mut b) = (Metrics::open(&a, &names)?, Metrics::open(&b, &names)?);
        let places: Vec<usize> = names.iter().map(|name| self.place_of_column(name)).collect();
        // Numbers in A alone and in B alone, by column.
        let mut alone = vec![[0_u64; 2]; names.len()];
        loop {
            let (row_a, row_b) = match (a.next()?, b.next()?) {
                (Some(row_a), Some(row_b)) if row_a.0 == row_b.0 => (row_a, row_b),
                (None, None) => break,
                _ => {
                    self.same_chunks = false;
                    return Ok(());
                }
            };
            let ([sequence, chunk, head, ..], numbers) = row_a;
            let same = |of: &ChunkDifferences| (of.pair, of.sequence, of.chunk) == (pair, sequence, chunk);
            if !self.chunks.last().is_some_and(same) {
                let sums = vec![(0.0, 0); self.columns.len()];
                self.chunks.push(ChunkDifferences { pair, sequence, chunk, sums });
            }
            for (i, (name, numbers)) in names.iter().zip(numbers.into_iter().zip(row_b.1)).enumerate() {
                let (a, b) = match numbers {
                    (Some(a), Some(b)) => (a, b),
                    (a, b) => {
                        alone[i][0] += u64::from(a.is_some());
                        alone[i][1] += u64::from(b.is_some());
                        continue;
                    }
                };
                let place = Place { pair, sequence, chunk: Some(chunk), head: Some(head), token: None };
                self.quantity(name).add(a, b, || Some(place));
                if let Some(chunk) = self.chunks.last_mut() {
                    let (sum, count) = &mut chunk.sums[places[i]];
                    *sum += b - a;
                    *count += 1;
                }
            }
        }
        for (name, [of_a, of_b]) in names.iter().zip(alone).filter(|(_, alone)| *alone != [0, 0]) {
            let numbers =
                |count: u64| (count > 0).then(|| format!("{count} numbers without one on the other side"));
            self.unmatched(pair, format!("{METRICS} {name}"), numbers(of_a), numbers(of_b));
        }
        Ok(())
    }

    /// Returns the place of a column among those that are compared in any pair.
    fn place_of_column(&mut self, name: &str) -> usize {
        self.columns.iter().position(|column| column == name).unwrap_or_else(|| {
            self.columns.push(name.to_owned());
            self.columns.len() - 1
        })
    }

    fn retrieved(
        &mut self,
        pair: usize,
        (a, b): (&Path, &Path),
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let Some([a, b]) = self.paths(pair, (a, b), RETRIEVED)? else { return Ok(()) };
        let a = NpySequences::open(&a, ElementType::F64, true, &mut |_| check())?;
        let b = NpySequences::open(&b, ElementType::F64, true, &mut |_| check())?;
        if a.dims() != b.dims() {
            let text = |of: Shape| Some(shape_text(&[of.sequences, of.tokens, of.dim]));
            self.unmatched(pair, RETRIEVED.to_owned(), text(a.dims()), text(b.dims()));
            return Ok(());
        }
        let Shape { sequences, tokens, dim } = a.dims();
        let quantity = self.quantity("retrieved");
        for sequence in 0..sequences {
            let mut norms = [0.0; 2];
            for start in (0..tokens).step_by(ROWS) {
                check()?;
                let rows = ROWS.min(tokens - start);
                let (mut of_a, mut of_b) = (Array2::<f64>::zeros((rows, dim)), Array2::zeros((rows, dim)));
                a.read_rows(sequence, start, of_a.view_mut())?;
                b.read_rows(sequence, start, of_b.view_mut())?;
                for (row, (a, b)) in of_a.rows().into_iter().zip(of_b.rows()).enumerate() {
                    for (&a, &b) in a.iter().zip(b) {
                        let token = Some((start + row) as u64);
                        let sequence = sequence as u64;
                        let place = Place { pair, sequence, chunk: None, head: None, token };
                        quantity.add(a, b, || Some(place));
                    }
                    norms[0] += a.dot(&a).sqrt();
                    norms[1] += b.dot(&b).sqrt();
                }
            }
            if tokens > 0 {
                quantity.pairs.push((norms[0] / tokens as f64, norms[1] / tokens as f64));
            }
        }
        Ok(())
    }

    fn weights(
        &mut self,
        pair: usize,
        (a, b): (&Path, &Path),
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let Some([a, b]) = self.paths(pair, (a, b), MEMORY)? else { return Ok(()) };
        let a = TensorFile::open(&a, &mut |_| check())?;
        let b = TensorFile::open(&b, &mut |_| check())?;
        let names: BTreeSet<_> = a.tensors().keys().chain(b.tensors().keys()).collect();
        for name in names {
            let tensors = [a.tensors().get(name), b.tensors().get(name)];
            match (tensors, tensors.map(|tensor| tensor.and_then(numbers))) {
                ([Some(of_a), Some(of_b)], [Some(a), Some(b)]) if of_a.shape() == of_b.shape() => {
                    let quantity = self.quantity(name);
                    a.iter().zip(&b).for_each(|(&a, &b)| quantity.add(a, b, || None));
                }
                ([Some(of_a), Some(of_b)], _) if of_a == of_b => {}
                (tensors, _) => {
                    let text = |tensor: &Tensor| format!("{} {}", tensor.dtype(), shape_text(tensor.shape()));
                    let [a, b] = tensors.map(|tensor| tensor.map(text));
                    self.unmatched(pair, format!("{MEMORY} {name}"), a, b);
                }
            }
        }
        Ok(())
    }

    /// Formats the mean differences b − a of each chunk over heads, as a table that `nmem plot` draws like the results of a
    /// sweep: the mean over sequences, with its interval, against the chunk. `None` if chunks cannot be compared.
    pub fn table(&self) -> Option<Vec<u8>> {
        if !self.same_chunks || self.chunks.is_empty() {
            return None;
        }
        let mut csv = csv::Writer::from_writer(Vec::new());
        let header = ["run", "chunk", "seed", "status"].map(str::to_owned);
        let columns = self.columns.iter().map(|name| difference_column(name));
        csv.write_record(header.into_iter().chain(columns)).expect("writing to memory cannot fail");
        let mut units = BTreeMap::new();
        for (place, ChunkDifferences { pair, sequence, chunk, sums }) in self.chunks.iter().enumerate() {
            let next = units.len();
            let unit = *units.entry((pair, sequence)).or_insert(next);
            let start = [place.to_string(), chunk.to_string(), unit.to_string(), "ok".to_owned()];
            let mean = |place: usize| {
                let &(sum, count) = sums.get(place)?;
                (count > 0 && sum.is_finite()).then(|| (sum / count as f64).to_string())
            };
            let cells = (0..self.columns.len()).map(|place| mean(place).unwrap_or_default());
            csv.write_record(start.into_iter().chain(cells)).expect("writing to memory cannot fail");
        }
        Some(csv.into_inner().expect("writing to memory cannot fail"))
    }

    /// Returns whether any number differs, or has none to compare with.
    pub fn differs(&self) -> bool {
        !self.same_chunks
            || !self.unmatched.is_empty()
            || self.quantities.iter().any(|quantity| quantity.differing > 0)
    }
}
