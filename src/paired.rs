//! Differences of paired values: two configurations on the same sequences or seeds.
//!
//! The mean difference has two 95 % intervals. Student's t assumes differences that are about normal. The bootstrap
//! resamples the pairs and takes percentiles of the means, with linear interpolation; for few pairs it is too narrow. The
//! p-value is that of the two-sided paired t test. [`holm`] adjusts p-values for their number.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::statistics::{Center, Estimate, bootstrap};

/// Mean difference b − a of pairs, with what is known about it. Intervals and p need two pairs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PairedDifference {
    /// Number of pairs.
    pub n: usize,
    /// Mean of a.
    pub mean_a: f64,
    /// Mean of b.
    pub mean_b: f64,
    /// Mean of b − a.
    pub difference: f64,
    /// 95 % interval of Student's t.
    pub ci95_t: Option<[f64; 2]>,
    /// 95 % interval of the bootstrap.
    pub ci95_bootstrap: Option<[f64; 2]>,
    /// p-value of the paired t test; `None` if all differences are equal.
    pub p: Option<f64>,
}

impl PairedDifference {
    /// Compares pairs (a, b); `None` without pairs.
    pub fn from_pairs(pairs: &[(f64, f64)]) -> Option<Self> {
        let differences: Vec<f64> = pairs.iter().map(|(a, b)| b - a).collect();
        let estimate = Estimate::from_values(&differences)?;
        let n = pairs.len();
        let mean = |of: fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>() / n as f64;
        let p = estimate.sd.filter(|sd| *sd > 0.0 && sd.is_finite()).map(|sd| {
            let t = estimate.center / (sd / (n as f64).sqrt());
            let student = StudentsT::new(0.0, 1.0, (n - 1) as f64).expect("at least one degree of freedom");
            2.0 * student.cdf(-t.abs())
        });
        Some(Self {
            n,
            mean_a: mean(|pair| pair.0),
            mean_b: mean(|pair| pair.1),
            difference: estimate.center,
            ci95_t: estimate.interval.map(|(low, high)| [low, high]),
            ci95_bootstrap: (n > 1).then(|| bootstrap(&differences, Center::Mean).into()),
            p,
        })
    }
}

/// Adjusts p-values for their number by Holm's method: the smallest of m is multiplied by m, the next by m − 1, and so on,
/// none below the one before it.
pub fn holm(p: &[Option<f64>]) -> Vec<Option<f64>> {
    let mut order: Vec<usize> = (0..p.len()).filter(|&i| p[i].is_some()).collect();
    order.sort_by(|&a, &b| p[a].unwrap_or(1.0).total_cmp(&p[b].unwrap_or(1.0)));
    let mut adjusted = vec![None; p.len()];
    let mut largest = 0.0_f64;
    for (i, &place) in order.iter().enumerate() {
        largest = largest.max((order.len() - i) as f64 * p[place].unwrap_or(1.0)).min(1.0);
        adjusted[place] = Some(largest);
    }
    adjusted
}
