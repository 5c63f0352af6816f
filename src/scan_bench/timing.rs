//! Repeated timing, and what is said of it.

use std::time::{Duration, Instant};

use statrs::statistics::{Data, OrderStatistics};

use crate::error::Result;

/// How often something is timed.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// At least so many times.
    pub runs: usize,
    /// And for at least so long.
    pub time: Duration,
}

/// What so many runs took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Seconds.
    pub median: f64,
    /// Seconds.
    pub min: f64,
    /// How many.
    pub runs: usize,
    /// Of them, those that something else disturbed.
    pub outliers: usize,
}

/// A run further than this from the median, in units of the median distance from it, is an outlier: ten standard deviations
/// of a normal distribution. hyperfine's threshold for its modified Z-score (Iglewicz and Hoaglin, "How to detect and
/// handle outliers", 1993).
const OUTLIER: f64 = 1.4826 * 10.0;

/// Runs once for nothing, then as often as `effort` says. `check` is asked between runs and can stop it.
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
    /// Of at least one run.
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
