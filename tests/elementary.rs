//! Softmax, sigmoid and silu of both element types: the vectorised f32 functions against plain f64, and the
//! results of both for NaN and infinity.

mod support;

use ndarray::ArrayD;
use nmem::real::{ElementType, Real};
use support::{assert_close, uniform};

/// Lengths around whole vector registers of 4, 8 and 16 lanes.
const LENGTHS: [usize; 10] = [1, 2, 5, 8, 15, 16, 17, 33, 128, 300];

fn values<T: Real>(length: usize, size: f64) -> Vec<T> {
    uniform((1, 1, length), size, length as u64).into_iter().map(T::from_f64).collect()
}

fn compare<T: Real>(what: &str, got: &[T], expected: Vec<f64>, abs: f64, rel: f64) {
    let got: Vec<f64> = got.iter().map(|&x| x.to_f64()).collect();
    let array = |of: Vec<f64>| ArrayD::from_shape_vec(vec![of.len()], of).unwrap();
    assert_close(&format!("{what}, {}", T::TYPE), array(got).view(), array(expected).view(), abs, rel);
}

fn against_plain<T: Real>() {
    for length in LENGTHS {
        for size in [1.0, 30.0, 1e4] {
            let given = values::<T>(length, size);
            let what = format!("{length} values of {size}");
            // The rounding of an exponent, at most 2 · size, is ε of the exponent relative to the result.
            // Results below the normal numbers may vanish.
            let (abs, exponents) = (T::min_positive_value().to_f64(), (8.0 + 2.0 * size) * T::EPS.to_f64());

            let plain = |&x: &T| 1.0 / (1.0 + (-x.to_f64()).exp());
            let mut got = given.clone();
            T::sigmoid(&mut got);
            compare(&format!("sigmoid of {what}"), &got, given.iter().map(plain).collect(), abs, exponents);

            let plain = |&x: &T| x.to_f64() / (1.0 + (-x.to_f64()).exp());
            let mut got = given.clone();
            T::silu(&mut got);
            compare(
                &format!("silu of {what}"),
                &got,
                given.iter().map(plain).collect(),
                size * abs,
                exponents,
            );

            // The approximation of erf is within 6.7e-7 in f32, absolutely.
            let abs = size * if T::TYPE == ElementType::F32 { 1e-6 } else { 1e-14 };
            let both = |x: f64| {
                let below = 0.5 * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2));
                let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
                (x * below, below + x * density)
            };
            let mut got = given.clone();
            T::gelu(&mut got);
            let expected = given.iter().map(|&x| both(Real::to_f64(x)).0).collect();
            compare(&format!("gelu of {what}"), &got, expected, abs, exponents);
            let mut got = given.clone();
            T::gelu_slope(&mut got);
            let expected = given.iter().map(|&x| both(Real::to_f64(x)).1).collect();
            compare(&format!("slope of gelu of {what}"), &got, expected, abs, exponents);

            // A chunk whose rows are all the same values; row r uses r + 1 of them. The others are NaN.
            let mut chunk = given.repeat(length);
            for (r, row) in chunk.chunks_exact_mut(length).enumerate() {
                row[r + 1..].fill(T::nan());
            }
            T::causal_softmax(&mut chunk, length);
            for (r, row) in chunk.chunks_exact(length).enumerate() {
                let largest =
                    given[..=r].iter().fold(f64::NEG_INFINITY, |largest, &x| largest.max(x.to_f64()));
                let exps: Vec<f64> = given[..=r].iter().map(|&x| (x.to_f64() - largest).exp()).collect();
                let sum: f64 = exps.iter().sum();
                let mut expected: Vec<f64> = exps.iter().map(|e| e / sum).collect();
                expected.resize(length, 0.0);
                compare(&format!("softmax of {what}, row {r}"), row, expected, abs, exponents);
            }
        }
    }
}

#[test]
fn vectorised_functions_equal_plain_ones() {
    against_plain::<f32>();
    against_plain::<f64>();
}

fn no_numbers<T: Real>() {
    for length in LENGTHS {
        for place in [0, length / 2, length - 1] {
            let softmax_with = |bad: T| {
                let mut chunk = values::<T>(length, 1.0).repeat(length);
                chunk[(length - 1) * length + place] = bad;
                T::causal_softmax(&mut chunk, length);
                let row = chunk.split_off((length - 1) * length);
                assert!(chunk.iter().all(|x| x.is_finite()), "rows before that of {bad}");
                row
            };
            for bad in [T::nan(), T::infinity()] {
                assert!(softmax_with(bad).iter().all(|x| x.is_nan()), "{bad} at {place} of {length}");
            }
            let row = softmax_with(T::neg_infinity());
            if length == 1 {
                assert!(row[0].is_nan(), "only −∞");
            } else {
                assert!(row[place] == T::zero() && row.iter().all(|x| x.is_finite()), "−∞ at {place}");
            }
        }
    }
    let mut row = [T::nan(), T::infinity(), T::neg_infinity(), T::max_value(), T::min_value()];
    T::sigmoid(&mut row);
    assert!(row[0].is_nan());
    assert_eq!(row[1..], [T::one(), T::zero(), T::one(), T::zero()]);
}

#[test]
fn nan_and_infinities() {
    no_numbers::<f32>();
    no_numbers::<f64>();
}
