//! Paired differences against numbers of scipy 1.17.1: `stats.ttest_rel`, its confidence interval, and the percentile
//! bootstrap `stats.bootstrap(…, numpy.mean, n_resamples=1_000_000, method="percentile")`.

use nmem::paired::{PairedDifference, holm};

const TEN_A: [f64; 10] = [0.512, 0.498, 0.431, 0.607, 0.553, 0.471, 0.529, 0.444, 0.588, 0.502];
const TEN_B: [f64; 10] = [0.497, 0.481, 0.440, 0.569, 0.541, 0.452, 0.498, 0.447, 0.545, 0.480];
const SKEWED_A: [f64; 6] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0];
const SKEWED_B: [f64; 6] = [1.5, 1.0, 9.0, 7.0, 40.0, 33.0];

fn compare(a: &[f64], b: &[f64]) -> PairedDifference {
    let pairs: Vec<_> = a.iter().copied().zip(b.iter().copied()).collect();
    PairedDifference::from_pairs(&pairs).expect("pairs")
}

fn close(got: f64, expected: f64, bound: f64) {
    assert!((got - expected).abs() <= bound, "{got} for {expected}");
}

#[test]
fn differences_are_those_of_scipy() {
    for (a, b, difference, p, t, bootstrap) in [
        (
            &TEN_A[..],
            &TEN_B[..],
            -0.0185,
            0.006_077_626_445_710_561,
            [-0.030_241_203_453_504_867, -0.006_758_796_546_495_133],
            [-0.028, -0.0087],
        ),
        (
            &SKEWED_A,
            &SKEWED_B,
            4.75,
            0.283_356_640_214_862_2,
            [-5.412_471_615_860_589, 14.912_471_615_860_59],
            [-0.416_666_666_666_666_7, 12.75],
        ),
    ] {
        let got = compare(a, b);
        close(got.difference, difference, 1e-12);
        close(got.mean_b - got.mean_a, difference, 1e-12);
        // The distribution of t is computed to about ten digits.
        close(got.p.unwrap(), p, 1e-8);
        let width = t[1] - t[0];
        for (got, expected) in got.ci95_t.unwrap().into_iter().zip(t) {
            close(got, expected, 1e-8 * width);
        }
        // Resamples are random in both. An end of 10,000 resamples has a standard error of about 2 % of the width.
        for (got, expected) in got.ci95_bootstrap.unwrap().into_iter().zip(bootstrap) {
            close(got, expected, 0.08 * (bootstrap[1] - bootstrap[0]));
        }
    }
}

#[test]
fn few_and_equal_pairs() {
    assert_eq!(PairedDifference::from_pairs(&[]), None);
    let one = compare(&[1.0], &[3.0]);
    assert_eq!((one.difference, one.ci95_t, one.ci95_bootstrap, one.p), (2.0, None, None, None));
    let equal = compare(&[1.0, 2.0], &[2.0, 3.0]);
    assert_eq!((equal.difference, equal.ci95_bootstrap, equal.p), (1.0, Some([1.0, 1.0]), None));
    // The same pairs have the same interval.
    assert_eq!(compare(&SKEWED_A, &SKEWED_B), compare(&SKEWED_A, &SKEWED_B));
}

/// R: p.adjust(c(0.01, 0.04, 0.03, 0.005, 0.2), "holm")
#[test]
fn holm_multiplies_and_never_descends() {
    let adjusted = holm(&[Some(0.01), Some(0.04), None, Some(0.03), Some(0.005), Some(0.2)]);
    let expected = [Some(0.04), Some(0.09), None, Some(0.09), Some(0.025), Some(0.2)];
    for (got, expected) in adjusted.into_iter().zip(expected) {
        assert_eq!(got.is_some(), expected.is_some());
        close(got.unwrap_or_default(), expected.unwrap_or_default(), 1e-15);
    }
    assert_eq!(holm(&[Some(0.7), Some(0.8)]), [Some(1.0), Some(1.0)]);
}
