//! The engine against the oracle on random parameters: every column of the metrics, retrieved tokens, U and S.
//! The cases cover shapes, gates, norms, past weights, probes and element types. Results have the same bits for
//! any number of threads.

mod support;

use ndarray::Array3;
use nmem::engine::{Engine, Work};
use nmem::memory::parameters::Init;
use nmem::memory::{Gate, Gates};
use nmem::real::Real;
use rayon::prelude::*;
use support::{
    Collect, RandomMemory, assert_close_to_largest, assert_rows_close, assert_state_close, dyn3, run,
    run_through, uniform,
};

/// Tolerance in f64: ε 2.2e-16 times the length of the sums (hundreds) times the cancellation in errors y − v
/// and in softmax derivatives.
const F64: f64 = 1e-10;
/// Tolerance in f32: ε 1.2e-7 times some tens. Sums run in vector lanes, and the contributions of chunks are
/// damped by decay. The golden cases stay within 1e-5; here a probed loss may be the small difference of two
/// larger numbers.
const F32: f64 = 5e-5;

/// Stores and reads online with `T` and with the oracle, and compares everything within `rel` of its largest value.
fn online<T: Real>(
    what: &str,
    random: &RandomMemory,
    read: &Array3<f64>,
    store: &Array3<f64>,
    probe: bool,
    rel: f64,
) {
    let what = format!("{what}, {}", T::TYPE);
    let memory = random.memory::<T>();
    let sequences = store.dim().0;
    let mut state = memory.initial_state(sequences);
    let (read_as, store_as) = (read.mapv(T::from_f64), store.mapv(T::from_f64));
    let work = Work::Online { read: &read_as, store: &store_as, probe };
    let collected = run_through(&memory, &mut state, work, read.dim());
    let mut reference = random.reference::<T>(sequences);
    let (retrieved, rows) = reference.online(read, store);
    assert!(collected.rows.iter().all(|row| row.loss_before.is_some() == probe), "{what}: probe");
    assert_rows_close(&what, &collected.rows, &rows, rel);
    assert_close_to_largest(
        &format!("{what}, retrieved"),
        dyn3(&collected.retrieved).view(),
        retrieved.view().into_dyn(),
        rel,
    );
    assert_state_close(&what, &memory, &state, &reference, rel);
}

fn both(what: &str, random: &RandomMemory, tokens: &Array3<f64>) {
    online::<f64>(what, random, tokens, tokens, true, F64);
    online::<f32>(what, random, tokens, tokens, true, F32);
}

/// (dim, heads, `dim_head`)
const DIMENSIONS: [(usize, usize, usize); 8] =
    [(4, 1, 4), (7, 1, 7), (33, 1, 33), (6, 2, 3), (5, 2, 4), (20, 2, 17), (9, 5, 3), (3, 5, 1)];

#[test]
fn dimensions_and_lengths() {
    for (i, dimensions) in DIMENSIONS.into_iter().enumerate() {
        for (chunk, init) in [(2, Init::Xavier), (3, Init::Randn), (16, Init::Xavier)] {
            let random = RandomMemory::new(dimensions, chunk, init, i as u64);
            for tokens in [0, 1, chunk - 1, chunk, chunk + 1, 53] {
                let what = format!("{dimensions:?}, chunks of {chunk}, {init:?}, {tokens} tokens");
                both(&what, &random, &uniform((1, tokens, dimensions.0), 2.0, tokens as u64));
            }
        }
    }
}

/// The cases have more than one block of 512 tokens, blocks of one chunk, and blocks that a chunk of 3 does not
/// fill. Groups of 64 rows end with a block in some cases and within one in others.
#[test]
fn several_blocks() {
    let (xavier, randn) = (Init::Xavier, Init::Randn);
    let cases =
        [(3, 1077, xavier), (3, 1077, randn), (16, 1031, xavier), (16, 1200, xavier), (128, 9 * 128, randn)];
    // Long chunks cost the oracle the most, so they are distributed first.
    [(513, 1027, xavier), (128, 801, xavier)].into_par_iter().chain(cases).for_each(
        |(chunk, tokens, init)| {
            let random = RandomMemory::new((5, 2, 4), chunk, init, 11);
            let what = format!("chunks of {chunk}, {init:?}, {tokens} tokens");
            both(&what, &random, &uniform((1, tokens, 5), 2.0, 12));
        },
    );
    // With one head, blocks have 1,024 tokens.
    let random = RandomMemory::new((4, 1, 4), 16, xavier, 13);
    both("one head, 2,100 tokens", &random, &uniform((1, 2100, 4), 2.0, 14));
}

/// 11 sequences of one head are more than the engine advances together, and so are 5 sequences of two heads.
#[test]
fn batches() {
    for (sequences, dimensions) in [(3, (6, 2, 3)), (5, (6, 2, 3)), (11, (4, 1, 4)), (3, (9, 50, 2))] {
        let random = RandomMemory::new(dimensions, 4, Init::Randn, 21);
        let what = format!("{sequences} sequences, {dimensions:?}");
        both(&what, &random, &uniform((sequences, 23, dimensions.0), 1.0, 22));
    }
}

#[test]
fn norms_and_past_weights() {
    for dimensions in [(6, 1, 6), (5, 2, 4)] {
        for (pre, post) in [(false, false), (true, false), (false, true)] {
            let random = RandomMemory::new(dimensions, 5, Init::Xavier, 31).norms(pre, post);
            both(&format!("norms {pre} {post}"), &random, &uniform((2, 31, dimensions.0), 1.0, 32));
        }
        let random = RandomMemory::new(dimensions, 5, Init::Xavier, 33).past(0.5, 34);
        both("past weights", &random, &uniform((2, 31, dimensions.0), 1.0, 35));
        both("past weights, nothing stored", &random, &uniform((2, 4, dimensions.0), 1.0, 36));
    }
}

/// Norm weights differ from one, as in trained parameters, so each norm must be in its place.
#[test]
fn trained_norm_weights() {
    let mut random = RandomMemory::new((6, 2, 3), 4, Init::Xavier, 38);
    for (i, name) in ["store_norm.weight", "retrieve_norm.weight", "post_rmsnorm.weight"].iter().enumerate() {
        let weight = uniform((1, 1, 6), 1.0, i as u64).mapv(|x| x as f32).flatten().into_owned();
        random.tensors.insert((*name).to_owned(), weight.into_dyn());
    }
    both("trained norms", &random, &uniform((2, 31, 6), 1.0, 39));
}

#[test]
fn gates() {
    let (learned, fixed) = (Gate::default(), Gate::Fixed);
    let all = [
        [fixed(0.01), learned, learned],
        [learned, fixed(0.0), learned],
        [learned, fixed(1.0), learned],
        [learned, learned, fixed(0.0)],
        [learned, learned, fixed(1.0)],
        [fixed(0.0), fixed(0.9), fixed(0.01)],
        [Gate::Learned(-2.5), Gate::Learned(1.5), Gate::Learned(-3.0)],
    ];
    for [learning_rate, momentum, decay] in all {
        let gates = Gates { learning_rate, momentum, decay };
        let random = RandomMemory::new((5, 2, 4), 4, Init::Xavier, 41).gates(gates);
        both(&format!("{gates:?}"), &random, &uniform((2, 43, 5), 1.0, 42));
    }
}

/// Norms remove the scale except for ε: 1e-4 squared lies between the ε of the two element types.
#[test]
fn large_and_small_inputs() {
    for size in [1e3, 1e-4] {
        let random = RandomMemory::new((6, 2, 3), 4, Init::Xavier, 51);
        both(&format!("inputs of {size}"), &random, &uniform((2, 41, 6), size, 52));
    }
    let random = RandomMemory::new((6, 2, 3), 4, Init::Xavier, 53).norms(false, false);
    both("inputs of 1e-4 without norms", &random, &uniform((2, 41, 6), 1e-4, 54));
    // Without norms, inputs of 1e3 make logits of 1e6. Times ε that is 1e-10 in f64, and f32 cannot resolve
    // such a softmax. The rate is fixed at a low value, because the gradient grows with the square of the
    // inputs.
    let gates = Gates { learning_rate: Gate::Fixed(1e-12), ..Gates::default() };
    let tokens = uniform((2, 41, 6), 1e3, 55);
    online::<f64>("inputs of 1e3 without norms", &random.gates(gates), &tokens, &tokens, true, 1e-8);
}

#[test]
fn probe_changes_nothing_else() {
    let random = RandomMemory::new((5, 2, 4), 4, Init::Randn, 61);
    let tokens = uniform((2, 43, 5), 1.0, 62);
    online::<f64>("without a probe", &random, &tokens, &tokens, false, F64);
    let memory = random.memory::<f32>();
    let tokens = tokens.mapv(|x| x as f32);
    let [with, without] = [true, false].map(|probe| {
        let mut state = memory.initial_state(2);
        let work = Work::Online { read: &tokens, store: &tokens, probe };
        let mut collected = run_through(&memory, &mut state, work, tokens.dim());
        for row in &mut collected.rows {
            (row.loss_before, row.loss_after) = (None, None);
        }
        (collected.rows_text(), collected.retrieved, state)
    });
    assert_eq!(with, without);
}

/// The losses around a stored chunk are those at the weights before and after it. For the first chunk the loss
/// before is the loss.
#[test]
fn probe_starts_at_the_loss() {
    let random = RandomMemory::new((5, 2, 4), 4, Init::Xavier, 63);
    let tokens = uniform((2, 43, 5), 1.0, 64);
    let memory = random.memory::<f64>();
    let mut state = memory.initial_state(2);
    let work = Work::Store { sequences: &tokens, probe: true };
    let collected = run_through(&memory, &mut state, work, (2, 0, 5));
    for row in &collected.rows {
        let before = row.loss_before.unwrap();
        // The same sum in another order.
        if row.chunk == 0 {
            assert!((before - row.loss).abs() <= 1e-14 * row.loss, "{before} {}", row.loss);
        }
        // One step of gradient descent; rates are near e^-7.5 here.
        assert!(row.chunk > 0 || row.loss_after.unwrap() < before, "{row:?}");
    }
}

/// Separate streams: longer and shorter by less than a chunk, by chunks, by blocks, and empty.
#[test]
fn read_and_stored_sequences_differ() {
    let random = RandomMemory::new((5, 2, 4), 8, Init::Xavier, 71).past(0.3, 72);
    let lengths =
        [(40, 47), (47, 40), (19, 64), (64, 19), (530, 10), (10, 530), (700, 300), (0, 30), (30, 0)];
    for (read, stored) in lengths {
        let what = format!("{read} read, {stored} stored");
        let (read, stored) = (uniform((2, read, 5), 1.0, 73), uniform((2, stored, 5), 1.0, 74));
        online::<f64>(&what, &random, &read, &stored, true, F64);
        online::<f32>(&what, &random, &read, &stored, true, F32);
    }
}

/// Chunk i needs the state after i chunks. The first chunk that needs more is reported, and it reads with the
/// last state.
#[test]
fn read_past_store() {
    let random = RandomMemory::new((4, 1, 4), 4, Init::Xavier, 75);
    let memory = random.memory::<f64>();
    let (none, all) = (None, Some);
    let expected = [(12, 12, none), (15, 12, none), (16, 12, none), (17, 12, all(4)), (40, 15, all(4))];
    let expected = expected.into_iter().chain([(9, 900, none), (4, 0, none), (5, 3, all(1)), (0, 0, none)]);
    for (read, stored, first) in expected {
        let (read, stored) = (uniform((1, read, 4), 1.0, 76), uniform((1, stored, 4), 1.0, 77));
        let mut state = memory.initial_state(1);
        let work = Work::Online { read: &read, store: &stored, probe: false };
        let (_, outcome) = run(&memory, &mut state, work, read.dim());
        assert_eq!(outcome.read_past_store, first, "{} read, {} stored", read.dim().1, stored.dim().1);
    }
}

/// An engine that has run before, even with a divergence, behaves like a new one: nothing of an earlier run remains.
#[test]
fn a_reused_engine_equals_a_new_one() {
    for dimensions in [(6, 2, 3), (40, 1, 40)] {
        let random = RandomMemory::new(dimensions, 4, Init::Xavier, 91);
        let memory = random.memory::<f32>();
        let finite = uniform((3, 37, dimensions.0), 1.0, 92).mapv(|x| x as f32);
        let mut broken = finite.clone();
        broken[[1, 9, 0]] = f32::NAN;
        let mut engine = Engine::new(&memory);
        for (tokens, probe) in
            [(&finite, true), (&broken, true), (&finite, true), (&broken, false), (&finite, false)]
        {
            let work = Work::Online { read: tokens, store: tokens, probe };
            let mut results =
                [None, None].map(|_: Option<()>| (memory.initial_state(3), Collect::new(tokens.dim())));
            let [(state, sink), (fresh_state, fresh_sink)] = &mut results;
            let again = engine.run(state, work, sink, &mut |_| Ok(())).unwrap();
            let fresh = Engine::new(&memory).run(fresh_state, work, fresh_sink, &mut |_| Ok(())).unwrap();
            assert_eq!(
                (again.divergence.is_some(), &again.divergence),
                (tokens[[1, 9, 0]].is_nan(), &fresh.divergence)
            );
            assert_eq!(sink.rows_text(), fresh_sink.rows_text(), "{dimensions:?}");
            assert_eq!(sink.done, fresh_sink.done);
            if again.divergence.is_none() {
                assert_eq!((&*state, &sink.retrieved), (&*fresh_state, &fresh_sink.retrieved));
            }
        }
    }
}

#[test]
fn reads_before_anything_is_stored_are_zero() {
    let random = RandomMemory::new((5, 2, 4), 8, Init::Xavier, 78).past(1.0, 79);
    let memory = random.memory::<f32>();
    let tokens = uniform((2, 40, 5), 1.0, 80).mapv(|x| x as f32);
    for stored in [40, 7, 0] {
        let store = tokens.slice(ndarray::s![.., ..stored, ..]).to_owned();
        let work = Work::Online { read: &tokens, store: &store, probe: false };
        let collected = run_through(&memory, &mut memory.initial_state(2), work, tokens.dim());
        for ((sequence, token, _), &x) in collected.retrieved.indexed_iter() {
            let zero = stored < 8 || token < 8;
            assert_eq!(x == 0.0, zero, "{stored} stored, sequence {sequence}, token {token}: {x}");
        }
    }
}

#[test]
fn plain_reads() {
    let mut cases = Vec::new();
    for (chunk, init) in [(2, Init::Xavier), (7, Init::Randn)] {
        for stored in [0, chunk - 1, 2 * chunk + 1] {
            // A state of one sequence serves reads of any number of sequences.
            for (of_state, sequences) in [(1, 1), (1, 3), (3, 3)] {
                let lengths = [0, 1, chunk, chunk + 1, 311];
                cases.extend(lengths.map(|tokens| (chunk, init, (of_state, stored), (sequences, tokens))));
            }
        }
    }
    // Long chunks cost the oracle c³.
    cases.push((128, Init::Randn, (1, 129), (1, 300)));
    cases.push((300, Init::Xavier, (2, 301), (2, 311)));
    cases.into_par_iter().rev().for_each(|(chunk, init, (of_state, stored), (sequences, tokens))| {
        let random = RandomMemory::new((5, 2, 4), chunk, init, 81).past(0.2, 82);
        let what =
            format!("chunks of {chunk}, {init:?}, {of_state} × {stored} stored, {sequences} × {tokens} read");
        let (store, queries) =
            (uniform((of_state, stored, 5), 1.0, 83), uniform((sequences, tokens, 5), 1.0, 84));
        plain_read::<f64>(&what, &random, &store, &queries, F64);
        plain_read::<f32>(&what, &random, &store, &queries, F32);
    });
    // Several groups of tasks share one state.
    let random = RandomMemory::new((5, 2, 4), 4, Init::Xavier, 85);
    let (store, queries) = (uniform((1, 9, 5), 1.0, 86), uniform((40, 6, 5), 1.0, 87));
    plain_read::<f64>("40 sequences of one state", &random, &store, &queries, F64);
}

fn plain_read<T: Real>(
    what: &str,
    random: &RandomMemory,
    store: &Array3<f64>,
    queries: &Array3<f64>,
    rel: f64,
) {
    let memory = random.memory::<T>();
    let mut state = memory.initial_state(store.dim().0);
    let work = Work::Store { sequences: &store.mapv(T::from_f64), probe: false };
    let stored = run_through(&memory, &mut state, work, (0, 0, 0));
    let mut reference = random.reference::<T>(store.dim().0);
    assert_rows_close(what, &stored.rows, &reference.store(store), rel);
    let before = state.clone();
    let read = run_through(&memory, &mut state, Work::Read(&queries.mapv(T::from_f64)), queries.dim());
    assert_eq!(before, state, "{what}: a plain read does not change the state");
    assert!(read.rows.is_empty(), "{what}: no metrics");
    let what = format!("{what}, {}, retrieved", T::TYPE);
    let expected = reference.read(queries);
    assert_close_to_largest(&what, dyn3(&read.retrieved).view(), expected.view().into_dyn(), rel);
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let random = RandomMemory::new((6, 3, 5), 7, Init::Randn, 91);
    let memory = random.memory::<f32>();
    let (read, store) = (uniform((5, 600, 6), 1.0, 92), uniform((5, 555, 6), 1.0, 93));
    let (read, store) = (read.mapv(|x| x as f32), store.mapv(|x| x as f32));
    let with_threads = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut state = memory.initial_state(5);
            let work = Work::Online { read: &read, store: &store, probe: true };
            let online = run_through(&memory, &mut state, work, read.dim());
            let plain = run_through(&memory, &mut state, Work::Read(&read), read.dim());
            let bits = |of: &Array3<f32>| of.mapv(f32::to_bits);
            let reads = [bits(&online.retrieved), bits(&plain.retrieved)];
            (online.rows_text(), reads, bits(&state.arrays[0]), bits(&state.arrays[1]))
        })
    };
    let one = with_threads(1);
    for threads in [2, 7] {
        assert!(with_threads(threads) == one, "{threads} threads differ from one");
    }
}
