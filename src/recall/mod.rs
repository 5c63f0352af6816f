//! Quality of what is read: how close each retrieved token is to its target, and whether it names the right one among
//! candidates.
//!
//! With r a retrieved row and v its target, both of width w (the last w columns, where rows are wider than targets):
//!
//! ```text
//! mean square   mean over w of (r − v)²; that of an all-zero answer is mean v²
//! R²            1 − Σ (r − v)² ÷ Σ (v − v̄)², v̄ the mean target of the sequence, column by column
//! answer        the candidate c with the largest cosine of r and c; a row of zeros has no answer
//! rank          1 + the number of other candidates whose cosine is at least that of the right one
//! ```
//!
//! Ties count against the memory, so that an answer which does not distinguish candidates is never right. A sequence has
//! one value of each measure, and intervals are over sequences.
//!
//! - `candidates`: the rows that an answer can be, and their products with what is read;
//! - `score`: sums over the tokens of a sequence, and the report over sequences.

mod candidates;
mod score;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::io::NpySequences;
use crate::metrics::RecallWriter;
use crate::real::Real;
use crate::sequence::{Sequences, Shape};
use candidates::Candidates;
pub use score::{Interval, RecallReport, TokenScore};
use score::{Kind, SequenceScore};

/// Presentation of the tokens of a plain read to the memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Cue {
    /// Together with the earlier tokens of its chunk, as the module reads.
    #[default]
    Chunk,
    /// Alone, so that a model which mixes the tokens of a chunk gets no help from the others.
    Single,
}

/// Files of targets, and the number of candidates among which the right one must be.
#[derive(Clone)]
pub struct Targets {
    /// Rows that should be read: (tokens, w) or (sequences, tokens, w).
    pub target: Arc<NpySequences>,
    /// Rows that an answer can be, (candidates, w); without them those of each sequence's own targets.
    pub candidates: Option<Arc<NpySequences>>,
    /// Values that the targets replaced, shaped like them.
    pub old_target: Option<Arc<NpySequences>>,
    /// k of the top-k accuracy.
    pub top_k: usize,
}

/// Default of k.
pub const DEFAULT_TOP_K: usize = 5;

/// Most candidates, 4 times a codebook of 4,096 values. Every token is multiplied with each of them.
const MAX_CANDIDATES: usize = 1 << 14;

/// Rows that are multiplied with the candidates at once, so that the products stay in cache.
const GROUP: usize = 64;

impl Targets {
    /// Yields the files.
    pub fn files(&self) -> impl Iterator<Item = &Arc<NpySequences>> {
        std::iter::once(&self.target).chain(&self.candidates).chain(&self.old_target)
    }

    /// Checks the shapes of the files against those of the queries.
    pub fn check(&self, queries: Shape) -> Result<()> {
        let Shape { sequences, tokens, dim } = queries;
        let target = self.target.dims();
        if (target.sequences, target.tokens) != (sequences, tokens) || target.dim > dim {
            let expected = format!("{sequences} × {tokens} rows of a width up to {dim}, one for each query");
            return Err(Error::file(self.target.path(), expected, shape(target)));
        }
        if let Some(old) = self.old_target.as_ref().filter(|old| old.dims() != target) {
            let expected = format!("the shape of the targets, {}", shape(target));
            return Err(Error::file(old.path(), expected, shape(old.dims())));
        }
        if let Some(candidates) = &self.candidates {
            let got = candidates.dims();
            if got.sequences != 1 || got.dim != target.dim || !(1..=MAX_CANDIDATES).contains(&got.tokens) {
                let expected =
                    format!("1 to {MAX_CANDIDATES} candidates of the targets' width, {}", target.dim);
                return Err(Error::file(candidates.path(), expected, shape(got)));
            }
        }
        Ok(())
    }
}

fn shape(of: Shape) -> String {
    format!("{} × {} × {}", of.sequences, of.tokens, of.dim)
}

/// Queries of which each is presented `times` times in a row, to fill a chunk of its own.
pub struct Repeated<'a, T> {
    /// The queries.
    pub queries: &'a dyn Sequences<T>,
    /// Number of times that each is presented.
    pub times: usize,
}

impl<T: Real> Sequences<T> for Repeated<'_, T> {
    fn shape(&self) -> Shape {
        let shape = self.queries.shape();
        Shape { tokens: shape.tokens * self.times, ..shape }
    }

    fn read_rows(&self, sequence: usize, start: usize, mut out: ArrayViewMut2<T>) -> Result<()> {
        let first = start / self.times;
        let last = (start + out.nrows()).div_ceil(self.times);
        let mut queries = Array2::zeros((last - first, out.ncols()));
        self.queries.read_rows(sequence, first, queries.view_mut())?;
        for (row, mut token) in out.rows_mut().into_iter().enumerate() {
            token.assign(&queries.row((start + row) / self.times - first));
        }
        Ok(())
    }
}

/// Scores retrieved rows as they come.
pub struct Recall<T: Real> {
    targets: Targets,
    candidates: Option<Candidates<T>>,
    /// Sequences that are being read.
    pending: BTreeMap<usize, Pending<T>>,
    done: Vec<SequenceScore>,
    writer: Option<RecallWriter>,
}

/// A sequence that is being read.
struct Pending<T: Real> {
    /// Candidates of this sequence, where there is no file of them; `None` if they are too many.
    own: Option<Candidates<T>>,
    /// Whether each candidate of the file is a target of this sequence.
    in_set: Vec<bool>,
    score: SequenceScore,
}

impl<T: Real> Recall<T> {
    /// Reads the candidates, and creates the CSV of single tokens where a path is given.
    pub fn new(targets: Targets, csv: Option<&Path>) -> Result<Self> {
        let candidates = match &targets.candidates {
            Some(file) => Some(Candidates::new(all_rows::<T>(file, 0)?.view())),
            None => None,
        };
        let writer = csv.map(RecallWriter::create).transpose()?;
        Ok(Self { targets, candidates, pending: BTreeMap::new(), done: Vec::new(), writer })
    }

    /// Starts a sequence: finds the candidates among its targets.
    fn begin(&self, sequence: usize) -> Result<Pending<T>> {
        let targets = all_rows::<T>(&self.targets.target, sequence)?;
        let mut score = SequenceScore::new(targets.ncols(), self.targets.top_k);
        let (mut own, mut in_set) = (None, Vec::new());
        if let Some(candidates) = &self.candidates {
            in_set = vec![false; candidates.len()];
            let mut counts = BTreeMap::new();
            for target in targets.rows() {
                let right = candidates.nearest(target);
                if let Some(right) = right {
                    in_set[right] = true;
                }
                *counts.entry(right).or_insert(0) += 1;
            }
            score.set_targets(candidates.len(), counts.values().copied());
        } else {
            let candidates = Candidates::new(targets.view());
            let mut counts = BTreeMap::new();
            for target in targets.rows() {
                *counts.entry(candidates.find(target)).or_insert(0) += 1;
            }
            score.set_targets(candidates.len(), counts.values().copied());
            own = (candidates.len() <= MAX_CANDIDATES).then_some(candidates);
        }
        Ok(Pending { own, in_set, score })
    }

    /// Scores the rows of the tokens `start ..` of one sequence. Tokens of a sequence must come in order.
    pub fn add(&mut self, sequence: usize, start: usize, rows: &ArrayView2<T>) -> Result<()> {
        if !self.pending.contains_key(&sequence) {
            let pending = self.begin(sequence)?;
            self.pending.insert(sequence, pending);
        }
        let width = self.targets.target.dims().dim;
        let rows = rows.slice(s![.., rows.ncols() - width..]);
        let read = |file: &NpySequences| -> Result<Array2<T>> {
            let mut block = Array2::zeros((rows.nrows(), width));
            file.read_rows(sequence, start, block.view_mut())?;
            Ok(block)
        };
        let targets = read(&self.targets.target)?;
        let old = self.targets.old_target.as_deref().map(read).transpose()?;
        let pending = self.pending.get_mut(&sequence).expect("inserted above");
        let candidates = pending.own.as_ref().or(self.candidates.as_ref());
        let (in_set, from_file) = (&pending.in_set, pending.own.is_none());
        let groups: Vec<_> = (0..rows.nrows()).step_by(GROUP).collect();
        let scores = groups.into_par_iter().map(|first| {
            let group = first..rows.nrows().min(first + GROUP);
            let [read, target] =
                [rows.view(), targets.view()].map(|all| all.slice_move(s![group.clone(), ..]));
            let old = old.as_ref().map(|old| old.slice(s![group.clone(), ..]));
            let in_set = from_file.then_some(&in_set[..]);
            score_group(candidates, in_set, read, target, old)
        });
        let scores: Vec<TokenScore> = scores.collect::<Vec<_>>().into_iter().flatten().collect();
        for (row, (score, target)) in scores.iter().zip(targets.axis_iter(Axis(0))).enumerate() {
            pending.score.add(score, target.iter().map(|&x| Real::to_f64(x)));
            if let Some(writer) = &mut self.writer {
                writer.write::<T>(sequence, start + row, score)?;
            }
        }
        Ok(())
    }

    /// Completes a sequence. Must be called in the order of sequences.
    pub fn sequence_done(&mut self, sequence: usize) -> Result<()> {
        if let Some(pending) = self.pending.remove(&sequence) {
            self.done.push(pending.score);
        }
        self.writer.as_mut().map_or(Ok(()), |writer| writer.sequence_done(sequence))
    }

    /// Closes the CSV and returns the report; `None` if no token was scored.
    pub fn finish(self, cue: Cue) -> Result<Option<RecallReport>> {
        if let Some(writer) = self.writer {
            writer.finish()?;
        }
        let kind = if self.candidates.is_some() { Kind::File } else { Kind::Own };
        Ok(RecallReport::new(&self.done, kind, self.targets.top_k, cue))
    }
}

/// Returns all rows of one sequence.
fn all_rows<T: Real>(file: &NpySequences, sequence: usize) -> Result<Array2<T>> {
    let Shape { tokens, dim, .. } = file.dims();
    let mut rows = Array2::zeros((tokens, dim));
    file.read_rows(sequence, 0, rows.view_mut())?;
    Ok(rows)
}

/// Scores a group of rows.
fn score_group<T: Real>(
    candidates: Option<&Candidates<T>>,
    in_set: Option<&[bool]>,
    rows: ArrayView2<T>,
    targets: ArrayView2<T>,
    old: Option<ArrayView2<T>>,
) -> Vec<TokenScore> {
    let products = candidates.map(|candidates| candidates.products(rows));
    let score = |row: usize| {
        let (read, target) = (rows.row(row), targets.row(row));
        let mut score = TokenScore::distances(read, target);
        let updated = old.as_ref().map(|old| (old.row(row) != target, old.row(row)));
        score.updated = updated.map(|(updated, _)| updated);
        let (Some(candidates), Some(products)) = (candidates, &products) else { return score };
        let right = candidates.nearest(target);
        score.target = right.map(|right| candidates.place(right));
        if !score.is_zero {
            let products = products.row(row);
            let answer = candidates::largest(products);
            score.answer = Some(candidates.place(answer));
            let count = |among: &dyn Fn(usize) -> bool, right: usize| {
                let ahead = |&(c, x): &(usize, &T)| c != right && *x >= products[right] && among(c);
                1 + products.iter().enumerate().filter(ahead).count()
            };
            score.rank = right.map(|right| count(&|_| true, right));
            score.in_set_rank = in_set.zip(right).map(|(own, right)| count(&|c| own[c], right));
            let stale = updated.filter(|(updated, _)| *updated).map(|(_, old)| candidates.nearest(old));
            score.stale = stale.flatten().map(|stale| stale == answer);
        }
        score
    };
    (0..rows.nrows()).map(score).collect()
}
