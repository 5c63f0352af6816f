//! Statistics of repeated runs: mean, standard deviation, and the 95 % confidence interval of the true mean if
//! the values are independent and about normal. The interval is mean ± t · sd ÷ √n, with t of Student's
//! distribution with n − 1 degrees of freedom.

use statrs::distribution::{ContinuousCDF, StudentsT};
use statrs::statistics::Statistics;

/// Estimates from at least one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Number of values.
    pub n: usize,
    /// Mean of the values.
    pub mean: f64,
    /// Standard deviation of the values, with n − 1; `None` for one value.
    pub sd: Option<f64>,
    /// Half the width of the 95 % interval; `None` for one value.
    pub half: Option<f64>,
}

impl Estimate {
    /// Computes the estimates; `None` without values.
    pub fn from_values(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.mean();
        let sd = (n > 1).then(|| values.std_dev());
        let half = sd.map(|sd| {
            let student = StudentsT::new(0.0, 1.0, (n - 1) as f64).expect("at least one degree of freedom");
            student.inverse_cdf(0.975) * sd / (n as f64).sqrt()
        });
        Some(Self { n, mean, sd, half })
    }

    /// Returns the low and high end of the 95 % interval.
    pub fn interval(self) -> Option<(f64, f64)> {
        self.half.map(|half| (self.mean - half, self.mean + half))
    }
}

#[cfg(test)]
mod tests {
    use super::Estimate;

    #[test]
    fn estimates_of_few_values() {
        assert_eq!(Estimate::from_values(&[]), None);
        assert_eq!(Estimate::from_values(&[3.5]), Some(Estimate { n: 1, mean: 3.5, sd: None, half: None }));
        // Printed tables have t of 1 and of 4 degrees of freedom: 12.706 and 2.776.
        let two = Estimate::from_values(&[1.0, 3.0]).unwrap();
        assert!((two.mean - 2.0).abs() < 1e-12 && (two.sd.unwrap() - 2f64.sqrt()).abs() < 1e-12);
        assert!((two.half.unwrap() - 12.706).abs() < 1e-3, "{two:?}");
        let five = Estimate::from_values(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert!((five.half.unwrap() - 2.776 * 2.5f64.sqrt() / 5f64.sqrt()).abs() < 1e-3, "{five:?}");
        let (low, high) = five.interval().unwrap();
        assert!((low + high - 6.0).abs() < 1e-12 && low < 2.0);
    }

    #[test]
    fn estimates_of_equal_values() {
        let same = Estimate::from_values(&[0.1; 3]).unwrap();
        assert!((same.mean - 0.1).abs() < 1e-15 && same.half.unwrap() < 1e-15);
    }
}
