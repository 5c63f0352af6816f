//! Random configurations against the oracle: a few of those that `just long-run` runs.

#[path = "support/random.rs"]
mod random;
mod support;

use random::Case;

/// Tolerance: some ten times the largest error of the 200 configurations in docs/design/numerics.md.
const F64: f64 = 5e-12;
const F32: f64 = 2e-3;

#[test]
fn twenty_configurations() {
    for seed in 0..20 {
        let case = Case::new(seed);
        for (errors, bound) in [(case.errors::<f64>(), F64), (case.errors::<f32>(), F32)] {
            for (name, error) in errors {
                assert!(error <= bound, "configuration {seed}, {name}: {error:e}, at most {bound:e}");
            }
        }
    }
}
