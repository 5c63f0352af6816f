//! Scores of what is read, on numbers that can be checked by hand.

use std::path::Path;
use std::sync::Arc;

use ndarray::{Array2, ArrayD, Axis, array};
use ndarray_npy::write_npy;
use nmem::io::NpySequences;
use nmem::real::ElementType;
use nmem::recall::{Cue, Recall, RecallReport, Targets};

fn file(directory: &Path, name: &str, rows: &Array2<f64>) -> Arc<NpySequences> {
    let path = directory.join(name);
    write_npy(&path, rows).unwrap();
    Arc::new(NpySequences::open(&path, ElementType::F64, false, &mut |_| Ok(())).unwrap())
}

/// Scores one sequence, its rows in two blocks. Returns the report and the rows of recall.csv.
fn score(
    read: &Array2<f64>,
    target: &Array2<f64>,
    candidates: Option<&Array2<f64>>,
    old: Option<&Array2<f64>>,
) -> (RecallReport, Vec<Vec<String>>) {
    let directory = tempfile::tempdir().unwrap();
    let targets = Targets {
        target: file(directory.path(), "target.npy", target),
        candidates: candidates.map(|rows| file(directory.path(), "candidates.npy", rows)),
        old_target: old.map(|rows| file(directory.path(), "old.npy", rows)),
        top_k: 2,
    };
    let csv = directory.path().join("recall.csv");
    let mut recall = Recall::<f64>::new(targets, Some(&csv)).unwrap();
    let (first, rest) = read.view().split_at(Axis(0), 1);
    recall.add(0, 0, &first).unwrap();
    recall.add(0, 1, &rest).unwrap();
    recall.sequence_done(0).unwrap();
    let report = recall.finish(Cue::Single).unwrap().expect("tokens were scored");
    let rows = csv::Reader::from_path(csv).unwrap().into_records();
    (report, rows.map(|row| row.unwrap().iter().map(str::to_owned).collect()).collect())
}

fn mean(of: Option<nmem::recall::Interval>) -> f64 {
    of.expect("a value").mean
}

fn close(got: f64, expected: f64) {
    assert!((got - expected).abs() < 1e-12, "{got} for {expected}");
}

#[test]
fn distances_and_answers() {
    let candidates = array![[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]];
    let target = array![[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]];
    // Right and exact; right but long; the wrong neighbour with the right one second; opposite, so last.
    let read = array![[1.0, 0.0], [0.5, 2.0], [-1.0, 1.5], [0.1, 3.0]];
    let (report, rows) = score(&read, &target, Some(&candidates), None);
    assert_eq!((report.sequences, report.tokens, report.width), (1, 4, 2));
    // By hand: (0 + 0.25 + 1 + 2.25 + 0.01 + 16) / 8.
    close(mean(report.mean_square), 19.51 / 8.0);
    close(mean(report.mean_square_zero), 0.5);
    close(report.ratio.unwrap(), 19.51 / 4.0);
    // The targets' mean is zero, so their variance is their square: R² = 1 − 19.51 / 4.
    close(mean(report.r2), 1.0 - 19.51 / 4.0);
    let cosines = [1.0, 2.0 / 4.25_f64.sqrt(), 1.0 / 3.25_f64.sqrt(), -3.0 / 9.01_f64.sqrt()];
    close(mean(report.cosine), cosines.iter().sum::<f64>() / 4.0);
    close(mean(report.accuracy), 0.5);
    close(mean(report.top_k_accuracy), 0.75);
    close(mean(report.in_set_accuracy), 0.5);
    close(mean(report.distinct_answers), 2.0);
    close(report.chance.unwrap(), 0.25);
    close(report.constant.unwrap(), 0.25);
    // One sequence has no interval.
    assert_eq!(report.accuracy.unwrap().ci95, None);
    let column = |i: usize| rows.iter().map(|row| row[i].clone()).collect::<Vec<_>>();
    assert_eq!(column(5), ["0", "1", "2", "3"]);
    assert_eq!(column(6), ["0", "1", "1", "1"]);
    assert_eq!(column(7), ["1", "1", "2", "4"]);
}

/// A read of zeros has the same cosine with every candidate, and a tie is never right.
#[test]
fn zeros_and_ties_are_wrong() {
    let target = array![[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]];
    let read = array![[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]];
    let (report, rows) = score(&read, &target, None, None);
    close(mean(report.accuracy), 1.0 / 3.0);
    assert_eq!(report.zero_reads, 1);
    assert_eq!((&rows[0][6][..], &rows[0][7][..]), ("", ""), "no answer and no rank");
    assert_eq!(&rows[1][7], "2", "a tie for the first place is the second");
    // Candidates are the two different targets, and the more frequent one is right two times in three.
    close(report.candidates, 2.0);
    close(report.chance.unwrap(), 0.5);
    close(report.constant.unwrap(), 2.0 / 3.0);
    assert_eq!(report.in_set_accuracy, None);
}

#[test]
fn a_collapse_is_seen() {
    let n = 8;
    let target = Array2::from_shape_fn((n, n), |(i, j)| f64::from(i == j));
    let read = Array2::from_shape_fn((n, n), |(_, j)| if j == 3 { 1.0 } else { 0.1 });
    let (report, _) = score(&read, &target, None, None);
    close(mean(report.accuracy), 1.0 / 8.0);
    close(mean(report.distinct_answers), 1.0);
    close(mean(report.distinct_targets), 8.0);
}

#[test]
fn kept_updated_and_stale() {
    let value = |i: usize| Array2::<f64>::eye(6).row(i).to_owned();
    let rows = |of: &[usize]| {
        ndarray::stack(
            Axis(0),
            &of.iter()
                .map(|&i| value(i))
                .collect::<Vec<_>>()
                .iter()
                .map(|row| row.view())
                .collect::<Vec<_>>(),
        )
        .unwrap()
    };
    let target = rows(&[0, 1, 4, 5]);
    let old = rows(&[0, 1, 2, 3]);
    // Kept: one right. Updated: one right, one stale.
    let read = rows(&[0, 2, 4, 3]);
    let (report, csv) = score(&read, &target, Some(&Array2::eye(6)), Some(&old));
    close(mean(report.kept_accuracy), 0.5);
    close(mean(report.updated_accuracy), 0.5);
    close(mean(report.stale), 0.5);
    assert_eq!(
        csv.iter().map(|row| (&row[9][..], &row[10][..])).collect::<Vec<_>>(),
        [("0", ""), ("0", ""), ("1", "0"), ("1", "1")]
    );
    // The answer 2 is no target of the sequence, so among the targets the right one is first.
    close(mean(report.in_set_accuracy), 0.5);
}

/// Rows wider than the targets are compared by their last columns.
#[test]
fn the_last_columns_count() {
    let target: ArrayD<f64> = array![[1.0], [-1.0]].into_dyn();
    let target = target.into_dimensionality().unwrap();
    let (report, _) = score(&array![[9.0, 7.0, 1.0], [9.0, 7.0, -1.0]], &target, None, None);
    close(mean(report.mean_square), 0.0);
    close(mean(report.r2), 1.0);
    close(mean(report.accuracy), 1.0);
}
