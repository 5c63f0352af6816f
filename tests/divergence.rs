//! Divergence: the run ends at the first non-finite value in the order of sequences, chunks and heads. It names
//! that value, and has delivered the rows of all chunks before it.

mod support;

use ndarray::{Array3, s};
use nmem::engine::{Divergence, Outcome, Work};
use nmem::memory::parameters::Init;
use nmem::memory::{Gate, Gates};
use nmem::metrics::ChunkMetrics;
use support::{Collect, RandomMemory, run, run_through, uniform};

const DIM: usize = 6;
const HEADS: usize = 2;
/// Two chunks make a block of 512 tokens.
const CHUNK: usize = 256;
const CHUNKS: usize = 7;

fn random() -> RandomMemory {
    RandomMemory::new((DIM, HEADS, 3), CHUNK, Init::Xavier, 1)
}

fn tokens(sequences: usize) -> Array3<f32> {
    uniform((sequences, CHUNKS * CHUNK, DIM), 1.0, 2).mapv(|x| x as f32)
}

fn at(sequence: usize, chunk: usize, head: Option<usize>, quantity: &'static str, value: &str) -> Divergence {
    Divergence { sequence, chunk, head, quantity: quantity.into(), value: value.into() }
}

fn store(random: &RandomMemory, sequences: &Array3<f32>, probe: bool) -> (Collect<f32>, Outcome) {
    let memory = random.memory::<f32>();
    let mut state = memory.initial_state(sequences.dim().0);
    run(&memory, &mut state, Work::Store { sequences, probe }, (0, 0, 0))
}

/// Returns the rows of `whole` before a chunk of a sequence.
fn rows_before(whole: &Collect<f32>, sequence: usize, chunk: usize) -> String {
    let before = whole.rows.iter().filter(|row| (row.sequence, row.chunk) < (sequence, chunk));
    format!("{:?}", before.collect::<Vec<_>>())
}

#[test]
fn huge_learning_rate() {
    let gates = Gates { learning_rate: Gate::Fixed(1e30), ..Gates::default() };
    let random = random().gates(gates);
    // Logits of (1e30)² are infinite, and their softmax is NaN. The probe shows that, but U fits an f32.
    let (probed, outcome) = store(&random, &tokens(1), true);
    assert_eq!((outcome.divergence, probed.rows.len()), (None, CHUNKS * HEADS));
    assert!(probed.rows.iter().all(|row| row.loss_after.unwrap().is_nan()));
    // The same run without a probe.
    let (plain, outcome) = store(&random, &tokens(1), false);
    assert_eq!((outcome.divergence, plain.rows.len()), (None, CHUNKS * HEADS));
    for (plain, probed) in plain.rows.iter().zip(probed.rows) {
        let unprobed = ChunkMetrics { loss_before: None, loss_after: None, ..probed };
        assert_eq!(format!("{plain:?}"), format!("{unprobed:?}"));
    }
    // In an online run, reads are non-finite from the first chunk on that is read with this state; the memory is not.
    let memory = random.memory::<f32>();
    let tokens = tokens(2);
    let work = Work::Online { read: &tokens, store: &tokens, probe: false };
    let mut state = memory.initial_state(2);
    let (collected, outcome) = run(&memory, &mut state, work, tokens.dim());
    assert_eq!(outcome.first_nonfinite(), Some(&at(0, 1, Some(0), "retrieved", "NaN")));
    assert_eq!((outcome.divergence, collected.rows.len()), (None, 2 * CHUNKS * HEADS));
    assert_eq!((collected.done, outcome.rows), (2, 2 * CHUNKS * HEADS));
    // The state equals that of a plain store, bit for bit.
    let mut stored = memory.initial_state(2);
    run_through(&memory, &mut stored, Work::Store { sequences: &tokens, probe: false }, (0, 0, 0));
    assert_eq!(state.arrays, stored.arrays);
}

/// Squares leave f32 where the squared numbers do not: metrics continue in f64, and nothing is lost.
#[test]
fn losses_and_norms_beyond_f32() {
    let mut random = random().gates(Gates { learning_rate: Gate::Fixed(1.0), ..Gates::default() });
    let inner = random.dimensions.inner();
    // Values of up to about 5e36 give squared errors of 1e74, gradients of up to about 1e38, and norms of
    // several times that.
    let scale = 5e36;
    let mut values = random.tensors.get_mut("to_keys_values.weight").unwrap().slice_mut(s![inner.., ..]);
    values *= scale;
    let expected = random.reference::<f32>(1).store(&tokens(1).mapv(f64::from));
    let (mut beyond_loss, mut beyond_norm) = (0, 0);
    for probe in [true, false] {
        let (collected, outcome) = store(&random, &tokens(1), probe);
        assert_eq!((outcome.divergence, collected.rows.len()), (None, CHUNKS * HEADS), "probe: {probe}");
        for (row, expected) in collected.rows.iter().zip(&expected) {
            let close = |got: f64, expected: f64| {
                assert!((got / expected - 1.0).abs() < 1e-4, "{got:e}, expected {expected:e}");
            };
            close(row.loss, expected.loss);
            close(row.surprise, expected.surprise);
            close(row.momentum_norm, expected.momentum_norm);
            close(row.update_norm, expected.update_norm);
            close(row.weight_norm, expected.weight_norm);
            beyond_loss += usize::from(row.loss > f64::from(f32::MAX));
            beyond_norm += usize::from(row.surprise.max(row.update_norm) > f64::from(f32::MAX));
        }
    }
    assert_eq!(beyond_loss, 2 * CHUNKS * HEADS);
    assert!(beyond_norm > 0, "some norm is beyond f32");
}

/// For every place of a NaN, the rows before it equal those of a run without it, and later rows are absent.
#[test]
fn nan_in_a_later_sequence_and_chunk() {
    let clean = tokens(4);
    let (whole, outcome) = store(&random(), &clean, true);
    assert_eq!((outcome.divergence, whole.rows.len()), (None, 4 * CHUNKS * HEADS));
    for (sequence, chunk) in [(0, 0), (0, 5), (1, 1), (2, 0), (2, 3), (2, 4), (3, 6)] {
        let mut tokens = clean.clone();
        tokens[[sequence, chunk * CHUNK + 17, 2]] = f32::NAN;
        let (collected, outcome) = store(&random(), &tokens, true);
        assert_eq!(outcome.divergence, Some(at(sequence, chunk, Some(0), "surprise", "NaN")));
        assert_eq!(collected.rows_text(), rows_before(&whole, sequence, chunk));
        assert_eq!(collected.done, sequence + 1, "no later sequence is complete");
    }
}

/// Sequences advance side by side. A later one may diverge first, but is then not the one reported.
#[test]
fn earlier_sequence_diverges_later_in_time() {
    let clean = tokens(5);
    let (whole, _) = store(&random(), &clean, false);
    let mut tokens = clean;
    for (sequence, chunk) in [(4, 0), (3, 2), (1, 6), (2, 6)] {
        tokens[[sequence, chunk * CHUNK, 0]] = f32::NAN;
    }
    let (collected, outcome) = store(&random(), &tokens, false);
    assert_eq!(outcome.divergence, Some(at(1, 6, Some(0), "surprise", "NaN")));
    assert_eq!(collected.rows_text(), rows_before(&whole, 1, 6));
    assert_eq!(outcome.rows, (CHUNKS + 6) * HEADS);
}

/// Groups have 8 heads, here 4 sequences: earlier groups are complete, and later ones never start.
#[test]
fn divergence_in_a_later_group() {
    let mut tokens = tokens(40);
    tokens[[20, 3 * CHUNK, 0]] = f32::NAN;
    tokens[[39, 0, 0]] = f32::NAN;
    let (collected, outcome) = store(&random(), &tokens, false);
    assert_eq!(outcome.divergence, Some(at(20, 3, Some(0), "surprise", "NaN")));
    assert_eq!((collected.done, collected.rows.len()), (21, (20 * CHUNKS + 3) * HEADS));
}

/// One head alone overflows. Without norms, coordinates that are zero elsewhere reach the values of one head each.
#[test]
fn heads_diverge_one_by_one() {
    let mut random = random().norms(false, false);
    let inner = random.dimensions.inner();
    let keys_values = random.tensors.get_mut("to_keys_values.weight").unwrap();
    for column in 0..2 * inner {
        for coordinate in 0..2 {
            // Head j's values are the columns from inner + 3 j on; file layout is (out, in).
            let of_head = column >= inner && (column - inner) / 3 == coordinate;
            keys_values[[column, coordinate]] = if of_head { 1e30 } else { 0.0 };
        }
    }
    let mut clean = tokens(1);
    clean.slice_mut(s![.., .., ..2]).fill(0.0);
    let (whole, _) = store(&random, &clean, false);
    // (chunk at which head 0 diverges, the same for head 1, reported chunk, reported head)
    for (of_0, of_1, chunk, head) in [(3, 2, 2, 1), (2, 3, 2, 0), (4, 4, 4, 0), (6, 1, 1, 1)] {
        let mut tokens = clean.clone();
        tokens[[0, of_0 * CHUNK + 5, 0]] = 1e10;
        tokens[[0, of_1 * CHUNK + 9, 1]] = 1e10;
        let (collected, outcome) = store(&random, &tokens, false);
        assert_eq!(outcome.divergence, Some(at(0, chunk, Some(head), "surprise", "NaN")));
        // Only whole chunks have rows: if one head cannot store a chunk, no head has a row for it.
        assert_eq!(collected.rows_text(), rows_before(&whole, 0, chunk));
    }
}

#[test]
fn nan_in_retrieved_tokens() {
    let random = random();
    let memory = random.memory::<f32>();
    let stored = tokens(3);
    let mut queries = stored.clone();
    queries[[1, 3 * CHUNK + 1, 0]] = f32::NAN;

    let mut state = memory.initial_state(3);
    let work = Work::Online { read: &queries, store: &stored, probe: false };
    let (online, outcome) = run(&memory, &mut state, work, queries.dim());
    assert_eq!(outcome.first_nonfinite(), Some(&at(1, 3, Some(0), "retrieved", "NaN")));
    // Everything is stored nevertheless.
    assert_eq!((outcome.divergence, online.rows.len(), online.done), (None, 3 * CHUNKS * HEADS, 3));
    let mut without = memory.initial_state(3);
    run_through(&memory, &mut without, Work::Store { sequences: &stored, probe: false }, (0, 0, 0));
    assert_eq!(state.arrays, without.arrays);
    assert!(online.retrieved.index_axis(ndarray::Axis(0), 0).iter().all(|x| x.is_finite()));

    let mut state = memory.initial_state(1);
    let (plain, outcome) = run(&memory, &mut state, Work::Read(&queries), queries.dim());
    assert_eq!(outcome.divergence, Some(at(1, 3, Some(0), "retrieved", "NaN")));
    assert_eq!(plain.done, 2);
    assert!(plain.retrieved.index_axis(ndarray::Axis(0), 0).iter().all(|x| x.is_finite()));

    // The first chunk is read before anything is stored, whatever its queries.
    let mut queries = stored.clone();
    queries[[1, 1, 0]] = f32::NAN;
    let work = Work::Online { read: &queries, store: &stored, probe: false };
    run_through(&memory, &mut memory.initial_state(3), work, queries.dim());
}

/// Heads that are finite may overflow when they are combined.
#[test]
fn overflow_where_heads_are_combined() {
    let mut random = random().norms(false, false);
    random.tensors.get_mut("combine_heads.weight").unwrap().fill(3e38);
    let memory = random.memory::<f32>();
    let queries = tokens(2).mapv(|x| 100.0 * x);
    let (_, outcome) = run(&memory, &mut memory.initial_state(1), Work::Read(&queries), queries.dim());
    let divergence = outcome.divergence.unwrap();
    let value = divergence.value.as_str();
    assert!(["inf", "-inf", "NaN"].contains(&value));
    assert_eq!(divergence, at(0, 0, None, "retrieved", value));
    let expected = format!("sequence 0, heads combined, chunk 0: retrieved is {value}");
    assert_eq!(divergence.to_string(), expected);
}

/// Chunk numbers continue from the state; those of a plain read start at 0.
#[test]
fn chunk_numbers_continue_from_the_state() {
    let memory = random().memory::<f32>();
    let clean = tokens(1);
    let mut bad = clean.clone();
    bad[[0, 2 * CHUNK, 0]] = f32::NAN;
    let mut state = memory.initial_state(1);
    run_through(&memory, &mut state, Work::Store { sequences: &clean, probe: false }, (0, 0, 0));
    let (_, outcome) = run(&memory, &mut state.clone(), Work::Read(&bad), bad.dim());
    assert_eq!(outcome.divergence, Some(at(0, 2, Some(0), "retrieved", "NaN")));
    let work = Work::Online { read: &clean, store: &bad, probe: false };
    let (collected, outcome) = run(&memory, &mut state, work, clean.dim());
    assert_eq!(outcome.divergence, Some(at(0, CHUNKS + 2, Some(0), "surprise", "NaN")));
    assert_eq!(collected.rows.len(), 2 * HEADS);
    assert_eq!(
        outcome.divergence.unwrap().to_string(),
        format!("sequence 0, head 0, chunk {}: surprise is NaN", CHUNKS + 2)
    );
}
