//! The recurrences against a plain f64 loop over random coefficients, their known forms, and their norms over
//! the whole range of the element types. Any small shape of the whole engine is tested against the oracle.
//!
//! Cases are random, but the same on every run, so that failures are reproducible.

mod support;

use ndarray::{Array2, ArrayView2, s};
use nmem::engine::Work;
use nmem::engine::panel::{FusedUpdate, Norms, Panel, PanelColumns, Reading, Step, StoredChunks};
use nmem::memory::Program;
use nmem::memory::parameters::Init;
use nmem::norm::norm;
use nmem::real::Real;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use pulp::Simd;
use support::{
    RandomMemory, assert_close, assert_close_to_largest, assert_rows_close, assert_state_close, dyn3,
    run_through, uniform,
};

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Sums run in lanes of at most 128 squares (64 rows of two vectors) in the element type: 128 · ε/2 of the sum,
/// half of that of its root. The other half of the bound is for squares rounded near the smallest number.
fn norm_bound<T: Real>() -> f64 {
    64.0 * T::EPS.to_f64()
}

/// The place of the elements in their weight: in one row, across panels, or in one column, down a panel.
#[derive(Clone, Copy, Debug)]
enum Orientation {
    Row,
    Column,
}

/// Runs one chunk of one token through the panels of a weight that holds the elements. Its g is the outer
/// product of a 1 and the surprise.
fn step_in<T: Real>(
    orientation: Orientation,
    step: Step<T>,
    surprise: &[T],
    momentum: &mut [T],
    update: &mut [T],
    weights: &[T],
) -> Norms {
    let length = surprise.len();
    let one = Array2::from_elem((1, 1), T::one());
    let thin = ArrayView2::from_shape((1, length), surprise).unwrap();
    let (shape, a, b) = match orientation {
        Orientation::Row => ((1, length), one.view(), thin),
        Orientation::Column => ((length, 1), thin, one.view()),
    };
    let mut norms = Vec::new();
    let mut start = 0;
    for columns in PanelColumns::all(&[shape]) {
        let base = columns.panel(weights);
        let mut panel = Panel::new(&columns, 2);
        panel.load(&columns, &[&*update, &*momentum]);
        let cotangents = b.slice(s![.., start..start + columns.width]);
        start += columns.width;
        let stored = Some(StoredChunks { steps: &[step], inputs: a, cotangents });
        let rule = Program::titans_0_0_17(2).rule;
        FusedUpdate { rule, chunk: 1, base: &base, panel: &mut panel, stored, readings: Vec::new() }.run();
        norms.extend_from_slice(&panel.norms);
        panel.save(&columns, &mut [update, momentum]);
    }
    Norms::joined(norms.into_iter())
}

/// Coefficients (θ, η, α) of one chunk, and the seed of its g.
type Chunk = ([f64; 3], u64);

fn chunks() -> impl Strategy<Value = Vec<Chunk>> {
    // Gates are in 0 ..= 1, ends included.
    let gate = prop_oneof![3 => 0.0..=1.0, 1 => Just(0.0), 1 => Just(1.0)];
    vec(([gate.clone(), gate.clone(), gate], any::<u64>()), 1..12)
}

fn values<T: Real>(length: usize, size: f64, seed: u64) -> Vec<T> {
    uniform((1, 1, length), size, seed).into_iter().map(T::from_f64).collect()
}

fn coefficients<T: Real>([learning_rate, momentum, decay]: [f64; 3]) -> Step<T> {
    Step {
        learning_rate: T::from_f64(learning_rate),
        momentum: T::from_f64(momentum),
        decay: T::from_f64(decay),
    }
}

fn widen<T: Real>(values: &[T]) -> Vec<f64> {
    values.iter().map(|&x| x.to_f64()).collect()
}

/// Returns the norm, with squares relative to the largest element, so that nothing leaves f64's range.
fn plain_norm<T: Real>(values: &[T]) -> f64 {
    let largest = values.iter().fold(0.0_f64, |largest, &x| largest.max(x.to_f64().abs()));
    if largest == 0.0 {
        return 0.0;
    }
    largest * values.iter().map(|&x| (x.to_f64() / largest).powi(2)).sum::<f64>().sqrt()
}

fn assert_norm(what: &str, got: f64, expected: f64, rel: f64) {
    let array = |x: f64| ndarray::arr1(&[x]).into_dyn();
    assert_close(what, array(got).view(), array(expected).view(), 0.0, rel);
}

fn assert_norms<T: Real>(norms: &Norms, g: &[T], s: &[T], u: &[T], w: &[T]) {
    let read: Vec<T> = w.iter().zip(u).map(|(&w, &u)| w + u).collect();
    let bound = norm_bound::<T>();
    assert_norm("‖g‖", norms.surprise, plain_norm(g), bound);
    assert_norm("‖S‖", norms.momentum, plain_norm(s), bound);
    assert_norm("‖U‖", norms.update, plain_norm(u), bound);
    assert_norm("‖W + U‖", norms.weight, plain_norm(&read), bound);
}

/// Steps through all chunks beside the plain loop. The loop's own f64 rounding is far below f32's, and as large
/// as f64's.
fn against_the_loop<T: Real>(orientation: Orientation, length: usize, size: f64, chunks: &[Chunk]) {
    let weights: Vec<T> = values(length, size, 1);
    let (mut s, mut u): (Vec<T>, Vec<T>) = (values(length, size, 2), values(length, size, 3));
    let (mut plain_s, mut plain_u) = (widen(&s), widen(&u));
    // The same recurrences on magnitudes give the scale of rounding errors.
    let magnitudes = |of: &[f64]| of.iter().map(|x| x.abs()).collect::<Vec<_>>();
    let (mut size_s, mut size_u) = (magnitudes(&plain_s), magnitudes(&plain_u));
    for (i, &(gates, seed)) in chunks.iter().enumerate() {
        let step = coefficients::<T>(gates);
        let g: Vec<T> = values(length, size, seed);
        let norms = step_in(orientation, step, &g, &mut s, &mut u, &weights);
        let [theta, eta, alpha] = [step.learning_rate, step.momentum, step.decay].map(Real::to_f64);
        // Per chunk a term has two roundings in S and three in U, plus those of the step before.
        let rel = 5.0 * (i + 1) as f64 * T::EPS.to_f64();
        for e in 0..length {
            plain_s[e] = eta * plain_s[e] - theta * g[e].to_f64();
            plain_u[e] = (1.0 - alpha) * plain_u[e] + plain_s[e];
            size_s[e] = eta * size_s[e] + theta * g[e].to_f64().abs();
            size_u[e] = (1.0 - alpha) * size_u[e] + size_s[e];
            let close = |what: &str, got: T, expected: f64, bound: f64| {
                let difference = (got.to_f64() - expected).abs();
                assert!(difference <= bound, "{what}[{e}] of chunk {i}: {got:e}, expected {expected:e}");
            };
            close("S", s[e], plain_s[e], rel * size_s[e]);
            close("U", u[e], plain_u[e], rel * size_u[e]);
        }
        assert_norms(&norms, &g, &s, &u, &weights);
    }
}

fn one_step<T: Real>(orientation: Orientation, gates: [f64; 3], length: usize) -> [Vec<T>; 5] {
    let (g, weights): (Vec<T>, Vec<T>) = (values(length, 1.0, 4), values(length, 1.0, 5));
    let (s, u): (Vec<T>, Vec<T>) = (values(length, 1.0, 6), values(length, 1.0, 7));
    let (mut new_s, mut new_u) = (s.clone(), u.clone());
    step_in(orientation, coefficients(gates), &g, &mut new_s, &mut new_u, &weights);
    [g, s, u, new_s, new_u]
}

/// Checks for a b + c, rounded once if the machine can fuse them, else twice.
fn assert_fused<T: Real>(got: &[T], expected: &dyn Fn(usize) -> (T, T, T)) {
    for (i, &got) in got.iter().enumerate() {
        let (a, b, c) = expected(i);
        assert!([a.mul_add(b, c), a * b + c].contains(&got), "element {i}: {got}");
    }
}

/// Checks special forms of the recurrences with gates at their limits, bit for bit: multiplying by 0 and 1 and
/// adding 0 round nothing.
fn known_forms<T: Real>(orientation: Orientation, length: usize, theta: f64, eta: f64, alpha: f64) {
    let (rate, keep) = (T::from_f64(theta), T::one() - T::from_f64(alpha));
    let each = |of: &dyn Fn(usize) -> T| (0..length).map(of).collect::<Vec<T>>();
    // Without momentum this is plain gradient descent.
    let [g, _, u, new_s, new_u] = one_step::<T>(orientation, [theta, 0.0, alpha], length);
    assert_eq!(new_s, each(&|i| -(rate * g[i])));
    assert_fused(&new_u, &|i| (keep, u[i], new_s[i]));
    // Everything is forgotten.
    let [_, _, _, new_s, new_u] = one_step::<T>(orientation, [theta, eta, 1.0], length);
    assert_eq!(new_u, new_s);
    // Nothing is learned, and S only decays.
    let [_, s, _, new_s, _] = one_step::<T>(orientation, [0.0, eta, alpha], length);
    assert_eq!(new_s, each(&|i| T::from_f64(eta) * s[i]));
    // Nothing is forgotten.
    let [_, _, u, new_s, new_u] = one_step::<T>(orientation, [theta, eta, 0.0], length);
    assert_eq!(new_u, each(&|i| u[i] + new_s[i]));
    // All momentum is kept.
    let [g, s, _, new_s, _] = one_step::<T>(orientation, [theta, 1.0, alpha], length);
    assert_fused(&new_s, &|i| (-rate, g[i], s[i]));
    // Nothing happens.
    let [_, s, u, new_s, new_u] = one_step::<T>(orientation, [0.0, 0.0, 0.0], length);
    assert_eq!((new_s, new_u), (vec![T::zero(); s.len()], u));
}

proptest! {
    #![proptest_config(config(64))]

    /// Lengths around the lanes of 16 and the blocks of 1024.
    #[test]
    fn steps_equal_the_plain_loop(
        length in prop_oneof![0_usize..40, 1020_usize..1030, 2040_usize..2100],
        size in prop_oneof![Just(1.0), Just(1e3), Just(1e-4)],
        chunks in chunks(),
    ) {
        for orientation in [Orientation::Row, Orientation::Column] {
            against_the_loop::<f32>(orientation, length, size, &chunks);
            against_the_loop::<f64>(orientation, length, size, &chunks);
        }
    }

    #[test]
    fn steps_have_known_forms(
        length in 0_usize..70, theta in 0.0..=1.0, eta in 0.0..=1.0, alpha in 0.0..=1.0,
    ) {
        for orientation in [Orientation::Row, Orientation::Column] {
            known_forms::<f32>(orientation, length, theta, eta, alpha);
            known_forms::<f64>(orientation, length, theta, eta, alpha);
        }
    }
}

fn norm_at<T: Real>(length: usize, size: f64, seed: u64) {
    let values: Vec<T> =
        uniform((1, 1, length), 1.0, seed).into_iter().map(|x| T::from_f64(size * x)).collect();
    let what = format!("norm of {length} of {size:e}, {}", T::TYPE);
    assert_norm(&what, norm(&values), plain_norm(&values), norm_bound::<T>());
}

/// 1e25 squared is infinite in f32, and 1e-30 squared is 0. In between, some squares leave the range and others
/// do not.
#[test]
fn norms_over_the_whole_range() {
    for length in [0, 1, 15, 16, 17, 1023, 1024, 1025, 5000] {
        for size in [1e25, 3e38, 1e-30, 1e-40, 1e19, 1e-19, 1e-21, 1e-23, 1.0, 0.0] {
            norm_at::<f32>(length, size, length as u64);
        }
        for size in [1e200, 1e-200, 1e154, 1e-154, 1e-310, 1.0, 0.0] {
            norm_at::<f64>(length, size, length as u64);
        }
    }
    // One large element among many small ones, and in the part that fills no lane.
    for place in [0, 16, 1030] {
        let mut values = vec![1e-30_f32; 1031];
        values[place] = 1e25;
        assert_norm("one large", norm(&values), plain_norm(&values), norm_bound::<f32>());
        values[place] = 1e-20;
        assert_norm("one less small", norm(&values), plain_norm(&values), norm_bound::<f32>());
    }
}

#[test]
fn steps_over_the_whole_range() {
    for orientation in [Orientation::Row, Orientation::Column] {
        // g, S, U and W + U are near 3e38, at 1e25, among the smallest numbers, or zero.
        for size in [1e25, 1e-25, 1e-40] {
            let (g, weights): (Vec<f32>, Vec<f32>) = (values(1100, size, 1), values(1100, 1e-30, 2));
            let (mut s, mut u) = (vec![0.0; 1100], vec![0.0; 1100]);
            let norms = step_in(orientation, coefficients([1.0, 0.5, 0.5]), &g, &mut s, &mut u, &weights);
            assert_norms(&norms, &g, &s, &u, &weights);
            let (mut s, mut u) = (vec![0.0; 1100], vec![0.0; 1100]);
            let norms = step_in(orientation, coefficients([0.0, 0.5, 0.5]), &g, &mut s, &mut u, &weights);
            assert_eq!((norms.momentum, norms.update), (0.0, 0.0));
            assert_norms(&norms, &g, &s, &u, &weights);
        }
    }
}

#[test]
fn nan_and_infinity_propagate() {
    for length in [1, 16, 17, 1025, 2049] {
        for place in [0, length / 2, length - 1] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut all = values::<f32>(length, 1.0, 1);
                all[place] = bad;
                let of = norm(&all);
                assert!(if bad.is_nan() { of.is_nan() } else { of == f64::INFINITY }, "{bad}: {of}");
                // The sum of both is NaN, wherever they are.
                if length > 1 {
                    all[(place + 1) % length] = f32::NAN;
                    assert!(norm(&all).is_nan());
                }

                for orientation in [Orientation::Row, Orientation::Column] {
                    let mut g = values::<f32>(length, 1.0, 1);
                    g[place] = bad;
                    let weights = values::<f32>(length, 1.0, 2);
                    let (mut s, mut u) = (vec![0.0; length], vec![0.0; length]);
                    let gates = coefficients([0.1, 0.5, 0.5]);
                    let norms = step_in(orientation, gates, &g, &mut s, &mut u, &weights);
                    for of in [&s, &u] {
                        for (i, x) in of.iter().enumerate() {
                            assert_eq!(x.is_finite(), i != place, "element {i} of {length}");
                        }
                    }
                    for norm in [norms.surprise, norms.momentum, norms.update, norms.weight] {
                        assert!(!norm.is_finite(), "{bad} at {place} of {length}: {norm}");
                    }
                    // A rate of zero does not hide it: 0 · NaN and 0 · ∞ are NaN.
                    let gates = coefficients([0.0, 0.5, 0.5]);
                    let norms = step_in(orientation, gates, &g, &mut s, &mut u, &weights);
                    assert!(s[place].is_nan() && norms.momentum.is_nan());
                }
            }
        }
    }
}

/// (sequences, tokens), chunk size, (dim, heads, `dim_head`)
fn shapes() -> impl Strategy<Value = ((usize, usize), usize, (usize, usize, usize))> {
    let dimensions = (1_usize..7, 1_usize..4, 1_usize..5)
        .prop_map(|(dim, heads, dim_head)| (dim, heads, if heads == 1 { dim } else { dim_head }));
    ((1_usize..5, 0_usize..40), 2_usize..10, dimensions)
}

proptest! {
    #![proptest_config(config(96))]

    #[test]
    fn every_shape_delivers_all_and_equals_the_oracle(
        ((sequences, tokens), chunk, dimensions) in shapes(),
        (pre_norm, post_norm, randn) in any::<(bool, bool, bool)>(),
        seed in 0_u64..1000,
    ) {
        let init = if randn { Init::Randn } else { Init::Xavier };
        let random = RandomMemory::new(dimensions, chunk, init, seed).norms(pre_norm, post_norm);
        let memory = random.memory::<f64>();
        let input = uniform((sequences, tokens, dimensions.0), 1.0, seed);
        let mut state = memory.initial_state(sequences);
        let work = Work::Online { read: &input, store: &input, probe: true };
        let collected = run_through(&memory, &mut state, work, input.dim());

        prop_assert_eq!(collected.done, sequences);
        prop_assert_eq!(collected.rows.len(), sequences * (tokens / chunk) * dimensions.1);
        prop_assert!(collected.retrieved.iter().all(|x| x.is_finite()), "all of it was delivered");

        let mut reference = random.reference::<f64>(sequences);
        let (retrieved, rows) = reference.online(&input, &input);
        // The tolerance of tests/engine.rs.
        let rel = 1e-10;
        assert_rows_close("shape", &collected.rows, &rows, rel);
        let retrieved = retrieved.view().into_dyn();
        assert_close_to_largest("retrieved", dyn3(&collected.retrieved).view(), retrieved, rel);
        assert_state_close("state", &memory, &state, &reference, rel);
    }
}

/// Runs a fused update that reads and stores on one instruction set. Returns the outputs, U, S and the norms in f64.
fn run_fused_update<T: Real>(run: impl FnOnce(FusedUpdate<'_, T>)) -> Vec<f64> {
    let (shape, chunk, tokens) = ((45, 37), 5, 23);
    let matrix = |rows: usize, cols: usize, seed: u64| {
        uniform((1, rows, cols), 1.0, seed).mapv(T::from_f64).remove_axis(ndarray::Axis(0))
    };
    let elements = shape.0 * shape.1;
    let (weights, update, momentum) =
        (values::<T>(elements, 1.0, 1), values::<T>(elements, 1.0, 2), values::<T>(elements, 1.0, 3));
    let columns = PanelColumns::all(&[shape])[1];
    let base = columns.panel(&weights);
    let mut panel = Panel::new(&columns, 2);
    panel.load(&columns, &[&update, &momentum]);
    let (queries, keys) = (matrix(tokens, shape.0, 4), matrix(tokens, shape.0, 5));
    let cotangents = matrix(tokens, columns.width, 6);
    let steps = [coefficients([0.1, 0.7, 0.2]); 4];
    let [mut before, mut after] = [(); 2].map(|()| Array2::from_elem((tokens, columns.width), T::nan()));
    let reading = |inputs, outputs, after| Reading { inputs, outputs, after };
    run(FusedUpdate {
        rule: Program::titans_0_0_17(2).rule,
        chunk,
        base: &base,
        panel: &mut panel,
        stored: Some(StoredChunks { steps: &steps, inputs: keys.view(), cotangents: cotangents.view() }),
        readings: vec![
            reading(queries.view(), before.view_mut(), false),
            reading(queries.view(), after.view_mut(), true),
        ],
    });
    let [mut u, mut s] = [(); 2].map(|()| vec![T::zero(); elements]);
    panel.save(&columns, &mut [&mut u, &mut s]);
    let norms = panel.norms.iter().flat_map(|n| [n.surprise, n.momentum, n.update, n.weight]);
    before.iter().chain(&after).chain(&u).chain(&s).map(|&x| x.to_f64()).chain(norms).collect()
}

/// Tiles of 8, 4, 2 and 1 rows, columns that fill no register, and a partial chunk give the same results on all
/// instruction sets.
#[test]
fn instruction_sets_agree() {
    let expected = run_fused_update::<f64>(|fused_update| {
        fused_update.run();
    });
    assert!(expected.iter().all(|x| x.is_finite()));
    let array = |of: &[f64]| ndarray::arr1(of).into_dyn();
    let check = |name: &str, got: &[f64], eps: f64| {
        assert_close_to_largest(name, array(got).view(), array(&expected).view(), 100.0 * eps);
    };
    let (narrow, wide) = (f32::EPS.to_f64(), f64::EPS);
    check(
        "scalar f32",
        &run_fused_update::<f32>(|update| Simd::vectorize(pulp::Scalar::new(), update)),
        narrow,
    );
    check(
        "scalar f64",
        &run_fused_update::<f64>(|update| Simd::vectorize(pulp::Scalar::new(), update)),
        wide,
    );
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        check("AVX2 f32", &run_fused_update::<f32>(|update| Simd::vectorize(simd, update)), narrow);
        check("AVX2 f64", &run_fused_update::<f64>(|update| Simd::vectorize(simd, update)), wide);
    }
    check(
        "the best, f32",
        &run_fused_update::<f32>(|fused_update| {
            fused_update.run();
        }),
        narrow,
    );
}
