//! Retention against the oracle and against the probes of the same run; it must not change the rest of the run.

mod support;

use ndarray::{Array1, Array3, Axis, s};
use nmem::engine::{Engine, Outcome, Work};
use nmem::memory::parameters::Init;
use nmem::memory::{Gate, Gates};
use nmem::real::Real;
use support::{Collect, RandomMemory, assert_close_to_largest, uniform};

/// The tolerance of tests/engine.rs against the oracle.
const F64: f64 = 1e-10;
const F32: f64 = 5e-5;

fn store<T: Real>(
    random: &RandomMemory,
    tokens: &Array3<f64>,
    every: Option<usize>,
) -> (Collect<T>, Outcome) {
    let tokens = tokens.mapv(T::from_f64);
    let memory = random.memory::<T>();
    let mut state = memory.initial_state(tokens.dim().0);
    let mut sink = Collect::new(tokens.dim());
    let work = Work::Online { read: &tokens, store: &tokens, probe: true };
    let mut engine = Engine::new(&memory).with_retention(every);
    let outcome = engine.run(&mut state, work, &mut sink, &mut |_| Ok(())).unwrap();
    // Retrieved tokens and the state are part of the bitwise comparison.
    sink.retrieved = ndarray::concatenate![Axis(2), state.arrays[0], state.arrays[1]]
        .iter()
        .chain(&sink.retrieved)
        .copied()
        .collect::<Array1<T>>()
        .into_shape_with_order((1, 1, state.arrays[0].len() * 2 + sink.retrieved.len()))
        .unwrap();
    (sink, outcome)
}

/// (sequence, after, chunk, head, loss, loss at W), in the order of the rows.
type RetentionRow = (usize, usize, usize, usize, f64, f64);

/// Returns the rows that the oracle gives: it stores chunk by chunk, and reads all kept chunks after every K-th
/// and after the last.
fn expected<T: Real>(random: &RandomMemory, tokens: &Array3<f64>, every: usize) -> Vec<RetentionRow> {
    let (sequences, n, _) = tokens.dim();
    let (c, heads) = (random.program.chunk_size(), random.dimensions.heads);
    let mut reference = random.reference::<T>(sequences);
    let mut rows = Vec::new();
    let mut at_w = Vec::new();
    let chunks = n / c;
    for i in 0..chunks {
        let chunk = |i: usize| tokens.slice(s![.., i * c..(i + 1) * c, ..]);
        at_w.push(reference.store(&chunk(i).to_owned()));
        if (i + 1) % every != 0 && i + 1 != chunks {
            continue;
        }
        for sequence in 0..sequences {
            for kept in (every - 1..=i).step_by(every) {
                for head in 0..heads {
                    let loss = reference.loss_of(sequence, head, chunk(kept).index_axis(Axis(0), sequence));
                    let at_w = at_w[kept][sequence * heads + head].loss;
                    rows.push((sequence, i, kept, head, loss, at_w));
                }
            }
        }
    }
    rows.sort_by_key(|row| (row.0, row.1, row.2, row.3));
    rows
}

fn check<T: Real>(what: &str, random: &RandomMemory, tokens: &Array3<f64>, every: usize, rel: f64) {
    let what = format!("{what}, every {every}, {}", T::TYPE);
    let (plain, _) = store::<T>(random, tokens, None);
    let (kept, outcome) = store::<T>(random, tokens, Some(every));
    assert!(plain.retained.is_empty());
    assert_eq!(plain.rows_text(), kept.rows_text(), "{what}: metrics with and without retention");
    assert_eq!(plain.retrieved, kept.retrieved, "{what}: reads and state with and without retention");

    let mut got = kept.retained.clone();
    got.sort_by_key(|row| (row.sequence, row.after, row.chunk, row.head));
    let expected = expected::<T>(random, tokens, every);
    let places: Vec<_> = got.iter().map(|row| (row.sequence, row.after, row.chunk, row.head)).collect();
    let wanted: Vec<_> = expected.iter().map(|row| (row.0, row.1, row.2, row.3)).collect();
    assert_eq!(places, wanted, "{what}: rows");
    let array = |values: Vec<f64>| Array1::from(values).into_dyn();
    let (loss, at_w) = (|i: usize| expected[i].4, |i: usize| expected[i].5);
    for (name, of, expected) in [
        ("loss", got.iter().map(|row| row.loss.to_f64()).collect(), (0..got.len()).map(loss).collect()),
        (
            "loss at W",
            got.iter().map(|row| row.loss_at_w.to_f64()).collect(),
            (0..got.len()).map(at_w).collect(),
        ),
    ] {
        let what = format!("{what}, {name}");
        assert_close_to_largest(&what, array(of).view(), array(expected).view(), rel);
    }

    let row_of = |sequence: usize, chunk: usize, head: usize| {
        let place = |row: &&nmem::metrics::ChunkMetrics| {
            (row.sequence, row.chunk, row.head) == (sequence, chunk, head)
        };
        kept.rows.iter().find(place).unwrap()
    };
    for row in &kept.retained {
        let stored = row_of(row.sequence, row.chunk, row.head);
        assert_eq!(row.loss_at_w.to_bits(), stored.loss.to_bits(), "{what}: ℓ at W is that of the metrics");
        if row.after == row.chunk {
            assert_eq!(
                Some(row.loss),
                stored.loss_after,
                "{what}: at once, what a probe finds after storing"
            );
        }
    }

    let last = got.iter().map(|row| row.after).max();
    let finals: Vec<_> = got.iter().filter(|row| Some(row.after) == last).collect();
    let sum = |of: fn(&nmem::metrics::Retained) -> f64| finals.iter().map(|row| of(row)).sum::<f64>();
    let ratio = outcome.retained_ratio();
    assert_eq!(ratio.is_some(), !finals.is_empty(), "{what}: ratio");
    if let Some(ratio) = ratio {
        let expected = sum(|row| row.loss) / sum(|row| row.loss_at_w);
        assert!((ratio / expected - 1.0).abs() < 1e-12, "{what}: ratio {ratio}, expected {expected}");
    }
}

#[test]
fn kept_chunks_are_read_as_the_oracle_reads_them() {
    for (dimensions, chunk, tokens) in [((5, 2, 4), 3, 47), ((4, 1, 4), 16, 16 * 9 + 5), ((20, 2, 17), 5, 61)]
    {
        let random = RandomMemory::new(dimensions, chunk, Init::Xavier, 3);
        let tokens = uniform((2, tokens, dimensions.0), 1.0, 4);
        for every in [1, 2, 3, 7] {
            let what = format!("{dimensions:?}, chunks of {chunk}");
            check::<f64>(&what, &random, &tokens, every, F64);
            check::<f32>(&what, &random, &tokens, every, F32);
        }
    }
}

/// Blocks have 512 tokens and groups 64 rows: K is below and above both, and in some cases neither holds.
#[test]
fn blocks_end_where_chunks_are_kept() {
    let random = RandomMemory::new((6, 2, 3), 16, Init::Xavier, 5).past(0.2, 6);
    let tokens = uniform((1, 1300, 6), 1.0, 7);
    for every in [3, 32, 45] {
        check::<f64>("several blocks", &random, &tokens, every, F64);
        check::<f32>("several blocks", &random, &tokens, every, F32);
    }
    let random = RandomMemory::new((6, 1, 6), 7, Init::Xavier, 5);
    for every in [100, 149] {
        check::<f32>("several blocks of one head", &random, &uniform((1, 2100, 6), 1.0, 8), every, F32);
    }
}

#[test]
fn nothing_or_one_chunk_is_kept() {
    let random = RandomMemory::new((6, 2, 3), 4, Init::Xavier, 5);
    for (tokens, rows) in [(0, 0), (3, 0), (4, 0), (11, 0), (12, 2), (16, 4)] {
        let tokens = uniform((1, tokens, 6), 1.0, 9);
        check::<f64>("few chunks", &random, &tokens, 3, F64);
        assert_eq!(store::<f64>(&random, &tokens, Some(3)).0.retained.len(), rows);
    }
}

/// θ = 0 writes nothing, so every ratio is 1. α = 1 and η = 0 forget all but the last chunk.
#[test]
fn gates_at_their_limits() {
    let gates = |learning_rate: f64, decay: f64| Gates {
        learning_rate: Gate::Fixed(learning_rate),
        momentum: Gate::Fixed(0.0),
        decay: Gate::Fixed(decay),
    };
    let tokens = uniform((1, 80, 6), 1.0, 10);
    let random = RandomMemory::new((6, 2, 3), 4, Init::Xavier, 5);
    let (nothing, outcome) = store::<f64>(&random.clone().gates(gates(0.0, 0.1)), &tokens, Some(2));
    let ratios = nothing.retained.iter().map(|row| row.loss / row.loss_at_w);
    ratios.for_each(|ratio| assert!((ratio - 1.0).abs() < 1e-12, "{ratio}"));
    assert!((outcome.retained_ratio().unwrap() - 1.0).abs() < 1e-12);

    let all = RandomMemory::gates(random, gates(0.05, 1.0));
    let (last, _) = store::<f64>(&all, &tokens, Some(1));
    // With α = 1 the memory after chunk i is W − θ g_i, whatever was stored before.
    for i in [3, 11] {
        let alone = tokens.slice(s![.., i * 4..(i + 1) * 4, ..]).to_owned();
        let (alone, _) = store::<f64>(&all, &alone, Some(1));
        let of = |rows: &Collect<f64>, at: usize| {
            rows.retained
                .iter()
                .filter(|row| row.after == at && row.chunk == at)
                .map(|row| row.loss)
                .collect::<Vec<_>>()
        };
        assert_close_to_largest(
            "the last chunk alone",
            Array1::from(of(&last, i)).into_dyn().view(),
            Array1::from(of(&alone, 0)).into_dyn().view(),
            F64,
        );
    }
}

#[test]
fn the_same_bits_for_any_number_of_threads() {
    let random = RandomMemory::new((40, 2, 33), 5, Init::Xavier, 13);
    let tokens = uniform((3, 400, 40), 1.0, 14);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (collected, outcome) = pool.install(|| store::<f32>(&random, &tokens, Some(3)));
        (collected.retained, outcome.retained)
    };
    let one = with(1);
    assert!(!one.0.is_empty());
    for threads in [2, 5] {
        assert!(with(threads) == one, "{threads} threads");
    }
}

/// Keys and values of chunks that an earlier call stored are gone.
#[test]
fn resuming_is_rejected_unless_no_chunk_was_stored() {
    let random = RandomMemory::new((6, 2, 3), 4, Init::Xavier, 5);
    let memory = random.memory::<f64>();
    let tokens = uniform((1, 18, 6), 1.0, 15);
    let (whole, _) = store::<f64>(&random, &tokens, Some(2));
    let part = |range: std::ops::Range<usize>| tokens.slice(s![.., range, ..]).to_owned();
    let mut state = memory.initial_state(1);
    let mut engine = Engine::new(&memory).with_retention(Some(2));
    let mut run = |tokens: &Array3<f64>| {
        let mut sink = Collect::new((1, 0, 6));
        let work = Work::Store { sequences: tokens, probe: false };
        engine.run(&mut state, work, &mut sink, &mut |_| Ok(())).map(|outcome| (sink.retained, outcome))
    };
    assert!(run(&part(0..3)).unwrap().0.is_empty());
    let (retained, _) = run(&part(3..18)).unwrap();
    assert_eq!(retained, whole.retained, "left-over tokens are no hindrance");
    let rejected = run(&part(0..3)).unwrap_err().to_string();
    let expected = "--retention: the memory already has 4 stored chunks, whose keys and values are gone; \
                    omit --retention or start from a memory without stored chunks";
    assert_eq!(rejected, expected);
}

/// A non-finite loss of a kept chunk is reported, but does not end the run.
#[test]
fn a_diverged_run_has_no_ratio() {
    let gates =
        Gates { learning_rate: Gate::Fixed(1e3), momentum: Gate::Fixed(3.0), decay: Gate::Fixed(0.0) };
    let random = RandomMemory::new((6, 2, 3), 4, Init::Randn, 5).gates(gates);
    let (collected, outcome) = store::<f32>(&random, &uniform((1, 800, 6), 1.0, 16), Some(2));
    let divergence = outcome.divergence.clone().expect("it diverges");
    assert_eq!(outcome.retained_ratio(), None);
    assert!(collected.retained.iter().all(|row| row.after < divergence.chunk));
    assert!(!collected.retained.is_empty());
}
