//! Comparisons: where and by how much two run directories differ ([`runs`]), and what a parameter of a sweep changes against
//! a baseline ([`baseline()`]).
//!
//! Two runs are compared number by number where they have the same chunks. Means are compared over pairs: each sequence of
//! each pair of runs is one pair, and losses are per token, so that chunks of other sizes can be compared too.

mod baseline;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ndarray::{Array2, ArrayD};
use serde::Serialize;

use crate::error::Result;
use crate::io::table::{Column, Table};
use crate::io::{NpySequences, TensorFile};
use crate::paired::{PairedDifference, holm};
use crate::real::ElementType;
use crate::sequence::{Sequences, Shape};
use crate::storage;
pub use baseline::{Baseline, BaselineReport, BaselineRow, baseline};

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

/// Comparison of two runs, or of pairs of runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// Whether all rows of metrics.csv are of the same chunks. Otherwise only means are compared.
    pub same_chunks: bool,
    /// Quantities in the order of metrics.csv, then what is read, then weights.
    pub quantities: Vec<Quantity>,
    /// Mean difference of each chunk over heads, for a figure: rows of [`Self::table`].
    #[serde(skip)]
    chunks: Vec<(usize, u64, u64, Vec<f64>)>,
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
        all.weights((a, b), check)?;
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

impl Comparison {
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
        let [a, b] = [a, b].map(|directory| directory.join("metrics.csv"));
        if !storage::exists(&a)? || !storage::exists(&b)? {
            return Ok(());
        }
        let of_b = Table::open(&b)?;
        let shared = |name: &&str| !PLACES.contains(name) && of_b.optional_column(name).is_some();
        let names: Vec<String> =
            Table::open(&a)?.columns().map(|(_, name)| name).filter(shared).map(str::to_owned).collect();
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
        if pair == 0 {
            self.columns.clone_from(&names);
        }
        loop {
            let (row_a, row_b) = match (a.next()?, b.next()?) {
                (Some(row_a), Some(row_b)) if row_a.0 == row_b.0 => (row_a, row_b),
                (None, None) => return Ok(()),
                _ => {
                    self.same_chunks = false;
                    return Ok(());
                }
            };
            let ([sequence, chunk, head, ..], numbers) = row_a;
            let mut differences = vec![f64::NAN; names.len()];
            for (i, (name, numbers)) in names.iter().zip(numbers.into_iter().zip(row_b.1)).enumerate() {
                let (Some(a), Some(b)) = numbers else { continue };
                let place = Place { pair, sequence, chunk: Some(chunk), head: Some(head), token: None };
                self.quantity(name).add(a, b, || Some(place));
                differences[i] = b - a;
            }
            match self.chunks.last_mut() {
                Some((of, s, c, sums)) if (*of, *s, *c) == (pair, sequence, chunk) => {
                    sums.iter_mut().zip(differences).for_each(|(sum, x)| *sum += x);
                }
                _ => self.chunks.push((pair, sequence, chunk, differences)),
            }
        }
    }

    fn retrieved(
        &mut self,
        pair: usize,
        (a, b): (&Path, &Path),
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let [a, b] = [a, b].map(|directory| directory.join("retrieved.npy"));
        if !storage::exists(&a)? || !storage::exists(&b)? {
            return Ok(());
        }
        let a = NpySequences::open(&a, ElementType::F64, true, &mut |_| check())?;
        let b = NpySequences::open(&b, ElementType::F64, true, &mut |_| check())?;
        if a.dims() != b.dims() {
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

    fn weights(&mut self, (a, b): (&Path, &Path), check: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let [a, b] = [a, b].map(|directory| directory.join("memory.safetensors"));
        if !storage::exists(&a)? || !storage::exists(&b)? {
            return Ok(());
        }
        let a = TensorFile::open(&a, &mut |_| check())?;
        let b = TensorFile::open(&b, &mut |_| check())?;
        for (name, of_a) in a.tensors() {
            let of_b = b.tensors().get(name).filter(|of_b| of_b.shape() == of_a.shape());
            let values = |array: Option<ArrayD<f64>>| array.filter(|_| of_a.dtype().is_float());
            let of_b = of_b.and_then(|of_b| values(of_b.to_array()));
            let (Some(of_a), Some(of_b)) = (values(of_a.to_array()), of_b) else { continue };
            let quantity = self.quantity(name);
            of_a.iter().zip(&of_b).for_each(|(&a, &b)| quantity.add(a, b, || None));
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
        let heads = |name: &str| {
            let quantity = self.quantities.iter().find(|of| of.name == name);
            quantity.map_or(1.0, |of| (of.compared as f64 / self.chunks.len() as f64).max(1.0))
        };
        let heads: Vec<f64> = self.columns.iter().map(|name| heads(name)).collect();
        let mut units = BTreeMap::new();
        for (place, (pair, sequence, chunk, sums)) in self.chunks.iter().enumerate() {
            let next = units.len();
            let unit = *units.entry((pair, sequence)).or_insert(next);
            let start = [place.to_string(), chunk.to_string(), unit.to_string(), "ok".to_owned()];
            let cells = sums
                .iter()
                .zip(&heads)
                .map(|(sum, heads)| if sum.is_finite() { (sum / heads).to_string() } else { String::new() });
            csv.write_record(start.into_iter().chain(cells)).expect("writing to memory cannot fail");
        }
        Some(csv.into_inner().expect("writing to memory cannot fail"))
    }

    /// Returns whether any number differs.
    pub fn differs(&self) -> bool {
        !self.same_chunks || self.quantities.iter().any(|quantity| quantity.differing > 0)
    }
}
