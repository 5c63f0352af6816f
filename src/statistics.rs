//! Statistics of repeated runs: a centre and an interval, quantiles, differences between pairs, ratios of sums, and medians
//! of values that some runs never reached.
//!
//! The default interval is the 95 % confidence interval of the true mean if the values are independent and about normal:
//! mean ± t · sd ÷ √n, with t of Student's distribution with n − 1 degrees of freedom. For values over decades the same
//! is done with their logarithms.

use clap::ValueEnum;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use statrs::distribution::{ContinuousCDF, StudentsT};
use statrs::statistics::Statistics;

/// Number of values from which an interval says more than the values themselves. Student's t is 12.7 for two values and
/// 2.8 for five.
pub const MIN_FOR_INTERVAL: usize = 5;
/// Resamples of a bootstrap: the ends of an interval have a standard error of √(0.025 · 0.975 ÷ N) ÷ density, for a normal
/// centre 0.7 % of the interval's width.
const RESAMPLES: usize = 10_000;

/// The centre of repeated values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Center {
    /// Arithmetic mean.
    Mean,
    /// Median.
    Median,
    /// Geometric mean, for values above 0.
    Geomean,
}

/// The interval around a centre.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Interval {
    /// 95 % confidence interval by Student's t; of the logarithms for a geometric mean.
    Ci95,
    /// One standard deviation to either side.
    Sd,
    /// One standard error to either side.
    Sem,
    /// From the lower to the upper quartile.
    Iqr,
    /// From the lowest to the highest value.
    Minmax,
    /// 95 % percentile interval of the centre under resampling, with a fixed seed.
    Bootstrap,
    /// No interval.
    None,
}

impl Interval {
    /// Returns the usual interval around a centre. Student's t is about means, so a median has that of the bootstrap.
    pub fn of(center: Center) -> Self {
        match center {
            Center::Mean | Center::Geomean => Self::Ci95,
            Center::Median => Self::Bootstrap,
        }
    }

    /// Whether the interval can stand around a centre. Standard deviations and errors are those of a mean.
    pub fn suits(self, center: Center) -> bool {
        center != Center::Median || !matches!(self, Self::Ci95 | Self::Sd | Self::Sem)
    }
}

/// Estimates from at least one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Number of values.
    pub n: usize,
    /// Mean, median or geometric mean.
    pub center: f64,
    /// Standard deviation of the values, with n − 1; `None` for one value.
    pub sd: Option<f64>,
    /// Low and high end of the interval; `None` for one value or without an interval.
    pub interval: Option<(f64, f64)>,
}

impl Estimate {
    /// Computes mean and 95 % interval; `None` without values.
    pub fn from_values(values: &[f64]) -> Option<Self> {
        Self::new(values, Center::Mean, Interval::Ci95)
    }

    /// Computes this centre and interval. Returns `None` without values, and for the geometric mean of values that are not
    /// all above 0. An interval that does not suit the centre is absent.
    pub fn new(values: &[f64], center: Center, interval: Interval) -> Option<Self> {
        let n = values.len();
        let at = centre(values, center)?;
        let sd = (n > 1).then(|| values.std_dev());
        // Sums of logarithms are products of the values.
        let logs = center == Center::Geomean;
        let scaled: Vec<_> = values.iter().map(|&x| if logs { x.ln() } else { x }).collect();
        let about = |half: f64| {
            let middle = if logs { at.ln() } else { at };
            (middle - half, middle + half)
        };
        let spread = if n > 1 { (&scaled[..]).std_dev() } else { 0.0 };
        let ends = match interval {
            _ if n < 2 || !interval.suits(center) => None,
            Interval::None => None,
            Interval::Ci95 => Some(about(student(n) * spread / (n as f64).sqrt())),
            Interval::Sd => Some(about(spread)),
            Interval::Sem => Some(about(spread / (n as f64).sqrt())),
            Interval::Iqr => Some((quantile(&scaled, 0.25), quantile(&scaled, 0.75))),
            Interval::Minmax => Some((quantile(&scaled, 0.0), quantile(&scaled, 1.0))),
            Interval::Bootstrap => Some(bootstrap(&scaled, center)),
        };
        let back = |(low, high): (f64, f64)| if logs { (low.exp(), high.exp()) } else { (low, high) };
        Some(Self { n, center: at, sd, interval: ends.map(back) })
    }

    /// Raises the low end of the interval to the lowest value that the quantity can have.
    pub fn at_least(mut self, lowest: f64) -> Self {
        self.interval = self.interval.map(|(low, high)| (low.max(lowest), high));
        self
    }
}

/// Sums over pairs (a, b), for the ratio Σ a ÷ Σ b. Memory does not grow with the pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RatioSums {
    n: usize,
    a: f64,
    b: f64,
    squares_of_a: f64,
    products: f64,
    squares_of_b: f64,
}

impl RatioSums {
    /// Adds a pair.
    pub fn add(&mut self, a: f64, b: f64) {
        self.n += 1;
        self.a += a;
        self.b += b;
        self.squares_of_a += a * a;
        self.products += a * b;
        self.squares_of_b += b * b;
    }

    /// Adds all pairs of other sums.
    pub fn merge(&mut self, other: &Self) {
        self.n += other.n;
        self.a += other.a;
        self.b += other.b;
        self.squares_of_a += other.squares_of_a;
        self.products += other.products;
        self.squares_of_b += other.squares_of_b;
    }

    /// Returns the ratio r and its 95 % interval by Student's t; `None` unless r is finite. The standard error is that of the
    /// mean of a − r b, relative to the mean of b (Cochran, Sampling Techniques, 1977, on ratio estimators). If all b are
    /// equal, r is the mean of a ÷ b, with the interval of that mean.
    pub fn estimate(&self) -> Option<Estimate> {
        let n = self.n as f64;
        let center = Some(self.a / self.b).filter(|ratio| ratio.is_finite())?;
        let sd = (self.n > 1).then(|| {
            // Rounding may leave less than 0 where all pairs have the same ratio.
            let squares =
                self.squares_of_a - 2.0 * center * self.products + center * center * self.squares_of_b;
            (squares.max(0.0) / (n - 1.0)).sqrt() * n / self.b.abs()
        });
        let half = sd.map(|sd| student(self.n) * sd / n.sqrt()).filter(|half| half.is_finite());
        Some(Estimate { n: self.n, center, sd, interval: half.map(|half| (center - half, center + half)) })
    }
}

/// Returns the factor of the standard error in a 95 % interval.
fn student(n: usize) -> f64 {
    let student = StudentsT::new(0.0, 1.0, (n - 1) as f64).expect("at least one degree of freedom");
    student.inverse_cdf(0.975)
}

fn centre(values: &[f64], center: Center) -> Option<f64> {
    match center {
        _ if values.is_empty() => None,
        Center::Mean => Some(values.mean()),
        Center::Median => Some(quantile(values, 0.5)),
        Center::Geomean => {
            values.iter().all(|&x| x > 0.0).then(|| values.iter().map(|x| x.ln()).mean().exp())
        }
    }
}

/// Returns a quantile, interpolated linearly between the sorted values (type 7 of Hyndman and Fan, the default of numpy
/// and R). There must be at least one value.
pub fn quantile(values: &[f64], at: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = at * (sorted.len() - 1) as f64;
    let (below, part) = ((place as i64).unsigned_abs() as usize, place.fract());
    let low = sorted[below];
    let high = sorted[(below + 1).min(sorted.len() - 1)];
    // A value beside an infinite one is kept as it is.
    if part == 0.0 { low } else { low + part * (high - low) }
}

/// Returns the ends between which the centre of 95 % of the resamples lies, with the same resamples every time. Logarithms
/// have an arithmetic mean.
pub fn bootstrap(values: &[f64], center: Center) -> (f64, f64) {
    let center = if center == Center::Geomean { Center::Mean } else { center };
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut sample = vec![0.0; values.len()];
    let centers = (0..RESAMPLES).filter_map(|_| {
        sample.fill_with(|| values[rng.random_range(0..values.len() as u64) as usize]);
        centre(&sample, center)
    });
    let centers: Vec<_> = centers.collect();
    (quantile(&centers, 0.025), quantile(&centers, 0.975))
}

/// The time of an event that some runs never reached: censored data, whose mean over those that reached it would be too
/// low.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Censored {
    /// Number of runs with the event.
    pub events: usize,
    /// Number of runs.
    pub n: usize,
    /// Median over all runs; `None` if the middle run never reached the event.
    pub median: Option<f64>,
}

impl Censored {
    /// Counts the events and takes the median, with `None` as later than any time. Returns `None` without runs.
    pub fn from_times(times: &[Option<f64>]) -> Option<Self> {
        let all: Vec<_> = times.iter().map(|time| time.unwrap_or(f64::INFINITY)).collect();
        let events = all.iter().filter(|time| time.is_finite()).count();
        let median = (!all.is_empty()).then(|| quantile(&all, 0.5))?;
        Some(Self { events, n: all.len(), median: Some(median).filter(|median| median.is_finite()) })
    }
}

#[cfg(test)]
mod tests {
    use super::{Censored, Center, Estimate, Interval, RatioSums, quantile};

    /// Values, for which scipy 1.16 and numpy 2.3 computed what the tests expect.
    const VALUES: [f64; 7] = [2.1, 3.4, 1.9, 5.6, 4.2, 8.8, 2.7];

    fn check(center: Center, interval: Interval, at: f64, (low, high): (f64, f64), most: f64) {
        let estimate = Estimate::new(&VALUES, center, interval).unwrap();
        let ends = estimate.interval.unwrap();
        let near = |a: f64, b: f64| (a - b).abs() <= most;
        assert!(
            near(estimate.center, at) && near(ends.0, low) && near(ends.1, high),
            "{center:?} {interval:?}: {estimate:?}"
        );
    }

    #[test]
    fn estimates_of_few_values() {
        assert_eq!(Estimate::from_values(&[]), None);
        assert_eq!(
            Estimate::from_values(&[3.5]),
            Some(Estimate { n: 1, center: 3.5, sd: None, interval: None })
        );
        // Printed tables have t of 1 degree of freedom: 12.706.
        let two = Estimate::from_values(&[1.0, 3.0]).unwrap();
        assert!((two.center - 2.0).abs() < 1e-12 && (two.sd.unwrap() - 2f64.sqrt()).abs() < 1e-12);
        assert!((two.interval.unwrap().1 - 2.0 - 12.706).abs() < 1e-3, "{two:?}");
        assert_eq!(two.at_least(0.0).interval.unwrap().0.to_bits(), 0);
        let same = Estimate::from_values(&[0.1; 3]).unwrap();
        assert!((same.center - 0.1).abs() < 1e-15 && (same.interval.unwrap().1 - 0.1).abs() < 1e-15);
    }

    #[test]
    fn centres_and_intervals_are_scipys() {
        check(Center::Mean, Interval::Ci95, 4.1, (1.845_955_286_689_976_2, 6.354_044_713_310_023), 1e-9);
        check(Center::Geomean, Interval::Ci95, 3.583_009_321_846_431, (2.158_177_83, 5.948_516_21), 1e-7);
        check(
            Center::Mean,
            Interval::Sd,
            4.1,
            (4.1 - 2.437_211_521_390_788, 4.1 + 2.437_211_521_390_788),
            1e-9,
        );
        check(
            Center::Geomean,
            Interval::Sd,
            3.583_009_321_846_431,
            (2.071_078_982_189_636, 6.198_679_968_672_93),
            1e-9,
        );
        let sem = 0.921_179_368_294_486_2;
        check(Center::Mean, Interval::Sem, 4.1, (4.1 - sem, 4.1 + sem), 1e-9);
        check(Center::Median, Interval::Iqr, 3.4, (2.4, 4.9), 1e-9);
        check(Center::Geomean, Interval::Minmax, 3.583_009_321_846_431, (1.9, 8.8), 1e-9);
        // scipy with 99,999 resamples. The ends of 10,000 have a standard error of 0.03 at most, and the tolerance is three
        // times that.
        check(Center::Mean, Interval::Bootstrap, 4.1, (2.614, 5.929), 0.09);
        check(Center::Median, Interval::Bootstrap, 3.4, (2.1, 5.6), 1e-9);
        check(Center::Geomean, Interval::Bootstrap, 3.583_009_321_846_431, (2.505, 5.288), 0.09);
        let twice = || Estimate::new(&VALUES, Center::Mean, Interval::Bootstrap);
        assert_eq!(twice(), twice(), "the same resamples every time");
        assert_eq!(Estimate::new(&VALUES, Center::Mean, Interval::None).unwrap().interval, None);
        assert_eq!(Estimate::new(&[1.0, 0.0], Center::Geomean, Interval::Ci95), None);
        for of_means in [Interval::Ci95, Interval::Sd, Interval::Sem] {
            assert_eq!(Estimate::new(&VALUES, Center::Median, of_means).unwrap().interval, None);
        }
        assert_eq!(Interval::of(Center::Median), Interval::Bootstrap);
    }

    #[test]
    fn quantiles_are_numpys() {
        let four = [4.0, 1.0, 3.0, 2.0];
        let quartiles = [0.25, 0.5, 0.75].map(|at| quantile(&four, at));
        assert!(quartiles.iter().zip([1.75, 2.5, 3.25]).all(|(a, b)| (a - b).abs() < 1e-12), "{quartiles:?}");
    }

    #[test]
    fn runs_without_the_event_count_as_late() {
        let of = |times: &[Option<f64>]| Censored::from_times(times);
        assert_eq!(of(&[]), None);
        // The mean of the two runs that became unstable would be 3.
        let most = of(&[Some(2.0), None, None, Some(4.0), Some(4.0)]).unwrap();
        assert_eq!(most, Censored { events: 3, n: 5, median: Some(4.0) });
        assert_eq!(of(&[Some(2.0), None, None]).unwrap().median, None);
        assert_eq!(of(&[Some(2.0), None]).unwrap().median, None, "between 2 and never");
        assert_eq!(of(&[Some(1.0), Some(2.0), Some(4.0), None]).unwrap().median, Some(3.0));
    }

    #[test]
    fn a_ratio_of_equal_divisors_is_a_mean() {
        let mut sums = RatioSums::default();
        for value in VALUES {
            sums.add(4.0 * value, 4.0);
        }
        let (ratio, mean) = (sums.estimate().unwrap(), Estimate::from_values(&VALUES).unwrap());
        let ends = |of: Estimate| [of.center, of.interval.unwrap().0, of.interval.unwrap().1, of.sd.unwrap()];
        let pairs = ends(ratio).into_iter().zip(ends(mean));
        assert!(pairs.clone().all(|(a, b)| (a - b).abs() <= 1e-12 * b.abs()), "{ratio:?} for {mean:?}");
    }

    #[test]
    fn a_ratio_weighs_by_its_divisor() {
        // r = 6 ÷ 4; a − r b = −0.5, 1, −0.5; t of two degrees of freedom is 4.302653.
        let pairs = [(1.0, 1.0), (4.0, 2.0), (1.0, 1.0)];
        let of = |pairs: &[(f64, f64)]| {
            pairs.iter().fold(RatioSums::default(), |mut sums, &(a, b)| {
                sums.add(a, b);
                sums
            })
        };
        let mut parts = of(&pairs[..1]);
        parts.merge(&of(&pairs[1..]));
        assert_eq!(parts, of(&pairs), "the whole is its parts");
        let ratio = parts.estimate().unwrap();
        let half = 4.302_652_7 * (0.75_f64).sqrt() * 0.75 / 3f64.sqrt();
        let (low, high) = ratio.interval.unwrap();
        assert!((ratio.center - 1.5).abs() < 1e-15, "{ratio:?}");
        assert!((high - 1.5 - half).abs() < 1e-6 && (1.5 - low - half).abs() < 1e-6, "{ratio:?}");
    }

    #[test]
    fn ratios_without_an_interval() {
        assert_eq!(RatioSums::default().estimate(), None);
        let mut one = RatioSums::default();
        one.add(1.0, 3.0);
        assert_eq!(one.estimate().unwrap().interval, None);
        one.add(f64::INFINITY, 3.0);
        assert_eq!(one.estimate(), None);
        // 0.1 ÷ 0.3 is the ratio of all pairs, and rounding makes no interval of it.
        let mut same = RatioSums::default();
        for i in 1..100 {
            same.add(0.1 * f64::from(i), 0.3 * f64::from(i));
        }
        let (low, high) = same.estimate().unwrap().interval.unwrap();
        assert!(high - low < 1e-7, "{low} to {high}");
    }
}
