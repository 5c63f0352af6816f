//! Repeated timing and its statistics.

use std::time::{Duration, Instant};

use statrs::statistics::{Data, OrderStatistics};

use crate::error::Result;

/// The effort spent on timing one thing.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Minimum number of runs.
    pub runs: usize,
    /// Minimum total time.
    pub time: Duration,
}

/// Statistics of the times of some runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Median time in seconds.
    pub median: f64,
    /// Shortest time in seconds.
    pub min: f64,
    /// Number of runs.
    pub runs: usize,
    /// Number of runs that something else disturbed.
    pub outliers: usize,
}

/// Distance from the median beyond which a run is an outlier, in units of the median distance from it. It is ten standard
/// deviations of a normal distribution, hyperfine's threshold for its modified Z-score (Iglewicz and Hoaglin, "How to
/// detect and handle outliers", 1993).
const OUTLIER: f64 = 1.4826 * 10.0;

/// Runs once untimed, then as often as `effort` requires. `check` runs between the runs and can stop the timing.
pub fn time(effort: Effort, check: &mut dyn FnMut() -> Result<()>, mut run: impl FnMut()) -> Result<Timing> {
    run();
    let start = Instant::now();
    let mut seconds = Vec::new();
    while seconds.len() < effort.runs || start.elapsed() < effort.time {
        check()?;
        let one = Instant::now();
        run();
        seconds.push(one.elapsed().as_secs_f64());
    }
    Ok(Timing::from_seconds(&seconds))
}

impl Timing {
    /// Computes the statistics of at least one run.
    pub fn from_seconds(seconds: &[f64]) -> Self {
        let median = median(seconds.to_vec());
        let distance = |x: &f64| (x - median).abs();
        let spread = median_or_zero(seconds.iter().map(distance).collect());
        let outliers = seconds.iter().filter(|x| spread > 0.0 && distance(x) > OUTLIER * spread).count();
        let min = seconds.iter().copied().fold(f64::INFINITY, f64::min);
        Self { median, min, runs: seconds.len(), outliers }
    }
}

fn median(values: Vec<f64>) -> f64 {
    Data::new(values).median()
}

fn median_or_zero(values: Vec<f64>) -> f64 {
    let median = median(values);
    if median.is_finite() { median } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::Timing;

    #[test]
    fn median_and_outliers() {
        let odd = Timing::from_seconds(&[3.0, 1.0, 2.0]);
        assert_eq!(odd, Timing { median: 2.0, min: 1.0, runs: 3, outliers: 0 });
        assert!((Timing::from_seconds(&[4.0, 1.0, 3.0, 2.0]).median - 2.5).abs() < 1e-12);
        assert_eq!(Timing::from_seconds(&[1.0]), Timing { median: 1.0, min: 1.0, runs: 1, outliers: 0 });
        let disturbed = Timing::from_seconds(&[1.0, 1.01, 0.99, 1.0, 1.02, 2.0]);
        assert_eq!(disturbed.outliers, 1);
    }
}
