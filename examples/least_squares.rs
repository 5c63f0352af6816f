//! The ceiling of one matrix in multi-query recall: the least-squares map from the stored keys to their values, which no
//! order or rate of updates can beat on the stored pairs. Where there are fewer pairs than dimensions it is the map of least
//! norm. Reads the directory that `nmem generate mqar` wrote, scores its queries, and writes a recall.csv:
//!
//! ```sh
//! cargo run --release --example least_squares -- DIR OUT.csv
//! ```

use std::path::Path;
use std::sync::Arc;

use ndarray::{Array2, s};
use nmem::io::NpySequences;
use nmem::real::ElementType;
use nmem::recall::{Cue, Recall, Targets};
use nmem::sequence::Sequences;

/// Added to the diagonal of the normal equations, far below the squares of unit keys. It makes them solvable where keys depend
/// on each other, and the solution then differs from that of least norm by about as much.
const RIDGE: f64 = 1e-9;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(directory), Some(csv)) = (arguments.next(), arguments.next()) else {
        return Err("usage: least_squares DIR OUT.csv".into());
    };
    let open = |name: &str| {
        let path = Path::new(&directory).join(name);
        NpySequences::open(path, ElementType::F64, false, &mut |_| Ok(())).map(Arc::new)
    };
    let (pairs, queries) = (open("pairs.npy")?, open("queries.npy")?);
    let targets = Targets {
        target: open("targets.npy")?,
        candidates: Some(open("values.npy")?),
        old_target: None,
        top_k: 5,
    };
    let mut recall = Recall::<f64>::new(targets, Some(Path::new(&csv)))?;
    for sequence in 0..pairs.dims().sequences {
        let rows = |file: &NpySequences| -> nmem::Result<Array2<f64>> {
            let mut rows = Array2::zeros((file.dims().tokens, file.dims().dim));
            file.read_rows(sequence, 0, rows.view_mut())?;
            Ok(rows)
        };
        let (pairs, queries) = (rows(&pairs)?, rows(&queries)?);
        let half = pairs.ncols() / 2;
        let (keys, values) = (pairs.slice(s![.., ..half]), pairs.slice(s![.., half..]));
        // M = (KᵀK + r)⁻¹ KᵀV
        let mut squares = keys.t().dot(&keys);
        squares.diag_mut().mapv_inplace(|x| x + RIDGE);
        let map = solve(squares, keys.t().dot(&values));
        let answers = queries.slice(s![.., ..half]).dot(&map);
        recall.add(sequence, 0, &answers.view())?;
        recall.sequence_done(sequence)?;
    }
    let report = recall.finish(Cue::Single)?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}

/// Solves A X = B for a symmetric, positive definite A by Cholesky's method.
fn solve(mut a: Array2<f64>, mut b: Array2<f64>) -> Array2<f64> {
    let n = a.nrows();
    // The lower triangle of A becomes L, with A = L Lᵀ.
    for j in 0..n {
        for i in j..n {
            let dot: f64 = (0..j).map(|k| a[[i, k]] * a[[j, k]]).sum();
            let rest = a[[i, j]] - dot;
            a[[i, j]] = if i == j { rest.sqrt() } else { rest / a[[j, j]] };
        }
    }
    for column in 0..b.ncols() {
        for i in 0..n {
            let dot: f64 = (0..i).map(|k| a[[i, k]] * b[[k, column]]).sum();
            b[[i, column]] = (b[[i, column]] - dot) / a[[i, i]];
        }
        for i in (0..n).rev() {
            let dot: f64 = (i + 1..n).map(|k| a[[k, i]] * b[[k, column]]).sum();
            b[[i, column]] = (b[[i, column]] - dot) / a[[i, i]];
        }
    }
    b
}
