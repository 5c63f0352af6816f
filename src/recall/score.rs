//! Scores of single tokens, their sums over a sequence, and the report over sequences.

use std::collections::BTreeSet;

use ndarray::ArrayView1;
use serde::Serialize;

use super::Cue;
use crate::real::Real;
use crate::statistics::Estimate;

/// Score of one retrieved token: a row of recall.csv.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenScore {
    /// Mean over the width of (r − v)².
    pub mean_square: f64,
    /// Mean over the width of v²: the mean square of an all-zero answer.
    pub mean_square_zero: f64,
    /// Cosine of r and v; 0 if one of them is zero.
    pub cosine: f64,
    /// Whether every number read is zero.
    pub is_zero: bool,
    /// Row of the right candidate: in the file of candidates, or else the first token of the sequence with this target.
    pub target: Option<usize>,
    /// Row of the candidate that was read.
    pub answer: Option<usize>,
    /// Rank of the right candidate, from 1.
    pub rank: Option<usize>,
    /// The same rank among the candidates that are targets of the sequence.
    pub in_set_rank: Option<usize>,
    /// Whether the target replaced another value.
    pub updated: Option<bool>,
    /// Whether the answer is the replaced value.
    pub stale: Option<bool>,
}

impl TokenScore {
    /// Compares a row with its target, without candidates.
    pub(super) fn distances<T: Real>(read: ArrayView1<T>, target: ArrayView1<T>) -> Self {
        let (mut error, mut of_target, mut of_read, mut product) = (0.0, 0.0, 0.0, 0.0);
        for (&r, &v) in read.iter().zip(target) {
            let (r, v) = (Real::to_f64(r), Real::to_f64(v));
            error += (r - v) * (r - v);
            of_target += v * v;
            of_read += r * r;
            product += r * v;
        }
        let width = target.len() as f64;
        let norms = (of_target * of_read).sqrt();
        Self {
            mean_square: error / width,
            mean_square_zero: of_target / width,
            cosine: if norms > 0.0 { product / norms } else { 0.0 },
            is_zero: of_read == 0.0,
            ..Self::default()
        }
    }
}

/// Source of the candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Own,
}

/// Tokens of some kind, and the right answers among them.
#[derive(Clone, Copy, Debug, Default)]
struct Hits {
    tokens: usize,
    right: usize,
}

impl Hits {
    fn add(&mut self, right: bool) {
        self.tokens += 1;
        self.right += usize::from(right);
    }

    fn share(self) -> Option<f64> {
        (self.tokens > 0).then(|| self.right as f64 / self.tokens as f64)
    }
}

/// Sums over the tokens of one sequence.
#[derive(Clone, Debug)]
pub(super) struct SequenceScore {
    top_k: usize,
    tokens: usize,
    error: f64,
    zero_error: f64,
    cosine: f64,
    /// Mean of v, Σ (v − mean)² and Σ v², column by column.
    columns: Vec<[f64; 3]>,
    zero_reads: usize,
    top_1: Hits,
    top: Hits,
    in_set: Hits,
    kept: Hits,
    updated: Hits,
    stale: Hits,
    answers: BTreeSet<usize>,
    candidates: usize,
    distinct_targets: usize,
    most_frequent: usize,
}

impl SequenceScore {
    pub fn new(width: usize, top_k: usize) -> Self {
        Self {
            top_k,
            tokens: 0,
            error: 0.0,
            zero_error: 0.0,
            cosine: 0.0,
            columns: vec![[0.0; 3]; width],
            zero_reads: 0,
            top_1: Hits::default(),
            top: Hits::default(),
            in_set: Hits::default(),
            kept: Hits::default(),
            updated: Hits::default(),
            stale: Hits::default(),
            answers: BTreeSet::new(),
            candidates: 0,
            distinct_targets: 0,
            most_frequent: 0,
        }
    }

    /// Sets the number of candidates, and how often each is a target.
    pub fn set_targets(&mut self, candidates: usize, counts: impl Iterator<Item = usize>) {
        self.candidates = candidates;
        for count in counts {
            self.distinct_targets += 1;
            self.most_frequent = self.most_frequent.max(count);
        }
    }

    pub fn add(&mut self, score: &TokenScore, target: impl Iterator<Item = f64>) {
        self.tokens += 1;
        self.error += score.mean_square;
        self.zero_error += score.mean_square_zero;
        self.cosine += score.cosine;
        // Welford, Technometrics 4 (1962): Σ v² − (Σ v)² ÷ n would cancel where targets hardly differ.
        for ([mean, about_mean, squares], v) in self.columns.iter_mut().zip(target) {
            let from_mean = v - *mean;
            *mean += from_mean / self.tokens as f64;
            *about_mean += from_mean * (v - *mean);
            *squares += v * v;
        }
        self.zero_reads += usize::from(score.is_zero);
        // Without candidates nothing has a rank, and without an answer the rank is the last.
        let right = score.rank == Some(1);
        if score.target.is_some() || score.answer.is_some() {
            self.top_1.add(right);
            self.top.add(score.rank.is_some_and(|rank| rank <= self.top_k));
            self.in_set.add(score.in_set_rank == Some(1));
            self.answers.extend(score.answer);
            match score.updated {
                Some(true) => {
                    self.updated.add(right);
                    self.stale.add(score.stale == Some(true));
                }
                Some(false) => self.kept.add(right),
                None => {}
            }
        }
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.tokens as f64
    }

    /// Returns the explained fraction of the variance. Targets that differ by no more than rounding have none.
    fn r2(&self) -> Option<f64> {
        let sum = |place: usize| self.columns.iter().map(|column| column[place]).sum::<f64>();
        let (total, squares) = (sum(1), sum(2));
        // The relative error of Welford's sum is at most about n ε √(Σ v² ÷ total) (Chan, Golub and LeVeque, The American
        // Statistician 37, 1983). Below this total nothing of it is known.
        let rounding = self.tokens as f64 * f64::EPSILON;
        (total > rounding * rounding * squares).then(|| 1.0 - self.error * self.columns.len() as f64 / total)
    }
}

/// A mean over sequences with its 95 % interval, which needs two of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// Mean over sequences.
    pub mean: f64,
    /// Low and high end of the interval: Student's t.
    pub ci95: Option<[f64; 2]>,
}

impl Interval {
    fn new(values: &[f64]) -> Option<Self> {
        let estimate = Estimate::from_values(values)?;
        Some(Self { mean: estimate.center, ci95: estimate.interval.map(|(low, high)| [low, high]) })
    }
}

/// Quality of what a run read: `recall` in run.json.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RecallReport {
    /// Number of sequences scored.
    pub sequences: usize,
    /// Number of tokens scored, over all sequences.
    pub tokens: usize,
    /// Width of the targets. The last columns of what is read are compared with them.
    pub width: usize,
    /// Whether each token was read alone.
    pub cue: Cue,
    /// Mean square of the error.
    pub mean_square: Option<Interval>,
    /// Mean square of the targets: the error of an all-zero answer.
    pub mean_square_zero: Option<Interval>,
    /// Σ `mean_square` ÷ Σ `mean_square_zero`: above 1, no answer would have been better.
    pub ratio: Option<f64>,
    /// Cosine of what is read and its target.
    pub cosine: Option<Interval>,
    /// Explained fraction of the variance of the targets.
    pub r2: Option<Interval>,
    /// Number of tokens whose numbers were all zero.
    pub zero_reads: usize,
    /// Source of the candidates: "file", or "own" for the targets of each sequence.
    pub candidates_from: &'static str,
    /// Number of candidates, as a mean over sequences.
    pub candidates: f64,
    /// Number of different targets of a sequence.
    pub distinct_targets: Option<Interval>,
    /// Number of different answers in a sequence: 1 is a collapse, which may look like chance.
    pub distinct_answers: Option<Interval>,
    /// Share of tokens whose nearest candidate is the right one.
    pub accuracy: Option<Interval>,
    /// k of `top_k_accuracy`.
    pub top_k: usize,
    /// Share of tokens whose right candidate is among the k nearest.
    pub top_k_accuracy: Option<Interval>,
    /// Share of right answers among the sequence's own targets, with a file of candidates.
    pub in_set_accuracy: Option<Interval>,
    /// Accuracy of a guess among all candidates.
    pub chance: Option<f64>,
    /// Accuracy of the best constant answer: the share of the most frequent target.
    pub constant: Option<f64>,
    /// Accuracy where the target did not replace another value.
    pub kept_accuracy: Option<Interval>,
    /// Accuracy where the target replaced another value.
    pub updated_accuracy: Option<Interval>,
    /// Share of tokens that replaced another value, and were answered with the replaced one.
    pub stale: Option<Interval>,
}

impl RecallReport {
    pub(super) fn new(scores: &[SequenceScore], kind: Kind, top_k: usize, cue: Cue) -> Option<Self> {
        let scores: Vec<_> = scores.iter().filter(|score| score.tokens > 0).collect();
        let first = scores.first()?;
        let over = |of: &dyn Fn(&SequenceScore) -> Option<f64>| {
            let values: Vec<f64> = scores.iter().filter_map(|score| of(score)).collect();
            Interval::new(&values)
        };
        let hits = |of: fn(&SequenceScore) -> Hits| over(&|score| of(score).share());
        let mean = |of: &dyn Fn(&SequenceScore) -> f64| over(&|score| Some(of(score)));
        let sum = |of: fn(&SequenceScore) -> f64| scores.iter().map(|score| of(score)).sum::<f64>();
        let decoded = scores.iter().any(|score| score.top_1.tokens > 0);
        let if_decoded = |of: &dyn Fn(&SequenceScore) -> f64| mean(of).filter(|_| decoded);
        Some(Self {
            sequences: scores.len(),
            tokens: scores.iter().map(|score| score.tokens).sum(),
            width: first.columns.len(),
            cue,
            mean_square: mean(&|score| score.mean(score.error)),
            mean_square_zero: mean(&|score| score.mean(score.zero_error)),
            ratio: Some(sum(|score| score.error) / sum(|score| score.zero_error))
                .filter(|ratio| ratio.is_finite()),
            cosine: mean(&|score| score.mean(score.cosine)),
            r2: over(&SequenceScore::r2),
            zero_reads: scores.iter().map(|score| score.zero_reads).sum(),
            candidates_from: match kind {
                Kind::File => "file",
                Kind::Own => "own",
            },
            candidates: sum(|score| score.candidates as f64) / scores.len() as f64,
            distinct_targets: mean(&|score| score.distinct_targets as f64),
            distinct_answers: if_decoded(&|score| score.answers.len() as f64),
            accuracy: hits(|score| score.top_1),
            top_k,
            top_k_accuracy: hits(|score| score.top),
            in_set_accuracy: hits(|score| score.in_set).filter(|_| kind == Kind::File),
            chance: if_decoded(&|score| 1.0 / score.candidates as f64).map(|of| of.mean),
            constant: if_decoded(&|score| score.mean(score.most_frequent as f64)).map(|of| of.mean),
            kept_accuracy: hits(|score| score.kept),
            updated_accuracy: hits(|score| score.updated),
            stale: hits(|score| score.stale),
        })
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, array};

    use super::{SequenceScore, TokenScore};

    fn r2(targets: &[Array1<f64>], read: impl Fn(usize) -> Array1<f64>) -> Option<f64> {
        let mut score = SequenceScore::new(2, 1);
        for (i, target) in targets.iter().enumerate() {
            score.add(&TokenScore::distances(read(i).view(), target.view()), target.iter().copied());
        }
        score.r2()
    }

    #[test]
    fn constant_targets_have_no_variance_to_explain() {
        let targets = vec![array![1.1, 2.3]; 11];
        assert_eq!(r2(&targets, |_| array![1.0, 2.0]), None);
        // Nor has a mean of rounding errors: 0.1 + 0.2 is not 0.3.
        let mut targets = vec![array![0.3, 2.3]; 11];
        targets[3] = array![0.1 + 0.2, 2.3];
        assert_eq!(r2(&targets, |_| array![1.0, 2.0]), None);
    }

    #[test]
    fn a_large_mean_does_not_hide_the_variance() {
        // Residuals ±1 about targets 1e8 ± 2: R² = 1 − 4 · 1 ÷ (4 · 4).
        let targets: Vec<_> = [-2.0, 2.0, -2.0, 2.0].map(|v| array![1e8 + v, 5.0]).into();
        let read = |i: usize| array![1e8 + [-1.0, 1.0, -1.0, 1.0][i], 5.0];
        assert_eq!(r2(&targets, read), Some(0.75));
    }
}
