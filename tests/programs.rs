//! Every part of a program, in random combinations: the engine against the oracle, parts of a sequence against the whole,
//! and one thread against several. Then closed forms: programs that reduce to known rules.

mod support;

use std::fs::File;
use std::path::Path;

use ndarray::{Array1, Array2, Array3, Axis, s};
use ndarray_npy::NpzReader;
use nmem::engine::{Engine, Memory, Work};
use nmem::memory::loss::Loss;
use nmem::memory::model::{Model, ModelKind};
use nmem::memory::parameters::Init;
use nmem::memory::program::{Frame, ProjectionActivation, Reads, Schedule};
use nmem::memory::rule::{DecayOf, RateForm, RatePer, Rule};
use nmem::memory::{Dimensions, Gate, Gates, Parameters, Program};
use nmem::real::{ElementType, Real};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use support::{
    Collect, RandomMemory, assert_close_to_largest, assert_rows_close, assert_state_close, run_through,
    uniform,
};

/// Tolerance in f64: as in tests/engine.rs, times ten for LayerNorms of rows that are nearly constant.
const F64: f64 = 1e-9;
/// Tolerance in f32.
const F32: f64 = 5e-4;

fn pick<T: Copy>(rng: &mut impl Rng, of: &[T]) -> T {
    of[rng.random_range(0..of.len())]
}

/// Returns a random program of the model, with chunks of a random size, and its dimensions.
fn random_program(rng: &mut ChaCha8Rng, kind: ModelKind) -> (Program, Dimensions) {
    let chunk_size =
        if kind == ModelKind::Attention { pick(rng, &[2, 3, 5]) } else { pick(rng, &[1, 2, 3, 5]) };
    let mut model = Model::new(kind, rng.random_bool(0.5));
    model.options.depth = model.options.depth.map(|_| rng.random_range(1..=3));
    model.options.expansion = model.options.expansion.map(|_| pick(rng, &[1.0, 1.6, 2.5]));
    model.options.rank = model.options.rank.map(|_| 3);
    let loss = match rng.random_range(0..5) {
        0 => Loss::MeanSquare,
        1 => Loss::HalfSquare,
        2 => Loss::InnerProduct,
        3 => Loss::Huber { delta: 0.5 },
        _ => Loss::PNorm { p: 3.0 },
    };
    let refresh = rng.random_bool(0.5).then(|| chunk_size * rng.random_range(1..=3));
    let rate_form = pick(rng, &[RateForm::Exp, RateForm::Sigmoid]);
    let program = Program {
        model,
        loss,
        rule: Rule {
            rate_form,
            max_rate: if rate_form == RateForm::Sigmoid { 0.05 } else { 1.0 },
            rate_per: pick(rng, &[RatePer::Chunk, RatePer::Token]),
            momentum: rng.random_bool(0.6),
            decay_of: pick(rng, &[DecayOf::Update, DecayOf::Weights]),
        },
        schedule: Schedule {
            chunk_size,
            refresh,
            gated_transition: refresh.is_some() && rng.random_bool(0.5),
            reads: pick(rng, &[Reads::Behind, Reads::Complete, Reads::CompleteOrZeros]),
        },
        frame: Frame {
            activation: pick(
                rng,
                &[ProjectionActivation::None, ProjectionActivation::Silu, ProjectionActivation::Gelu],
            ),
            qk_norm: rng.random_bool(0.3),
            head_norm: rng.random_bool(0.3),
            read_gate: rng.random_bool(0.5),
            gate_biases: rng.random_bool(0.5),
            per_head: rng.random_bool(0.5),
        },
    };
    let heads = rng.random_range(1..=3);
    // A LayerNorm of two or three numbers is nearly a step.
    let dim_head = rng.random_range(4..=9);
    let dim = if heads == 1 { dim_head } else { rng.random_range(2..=8) };
    (
        program,
        Dimensions { dim, heads, dim_head, pre_norm: rng.random_bool(0.7), post_norm: rng.random_bool(0.3) },
    )
}

/// Makes trained values of what starts at a constant, and heads that differ.
fn trained(mut random: RandomMemory, seed: u64) -> RandomMemory {
    for (i, (name, tensor)) in random.tensors.iter_mut().enumerate() {
        let seed = seed + i as u64;
        let noise = uniform((1, 1, tensor.len()), 0.4, seed).mapv(|x| x as f32);
        let noise = noise.into_shape_with_order(tensor.raw_dim()).unwrap();
        if name.contains("norm")
            || name.contains("gamma")
            || name.starts_with("memory_model")
            || name == "transition_gate"
        {
            *tensor += &noise;
        }
    }
    random
}

fn check<T: Real>(random: &RandomMemory, read: &Array3<f64>, store: &Array3<f64>, what: &str, rel: f64) {
    let what = format!("{what}, {}", T::TYPE);
    let sequences = read.dim().0;
    let memory = random.memory::<T>();
    let (read_as, store_as) = (read.mapv(T::from_f64), store.mapv(T::from_f64));
    let mut state = memory.initial_state(sequences);
    let work = Work::Online { read: &read_as, store: &store_as, probe: true };
    let whole = run_through(&memory, &mut state, work, read.dim());
    let mut reference = random.reference::<T>(sequences);
    let (retrieved, rows) = reference.online(read, store);
    // A gated refresh computes a small U from whole weights, whose digits f32 does not have.
    let program = memory.program();
    let cancels = program.schedule.gated_transition && program.rule.decay_of == DecayOf::Update;
    let comparable = T::TYPE == ElementType::F64 || !cancels;
    let got = whole.retrieved.mapv(Real::to_f64).into_dyn();
    assert_close_to_largest(&format!("{what}, retrieved"), got.view(), retrieved.view().into_dyn(), rel);
    if comparable {
        assert_rows_close(&what, &whole.rows, &rows, rel);
        assert_state_close(&what, &memory, &state, &reference, rel);
    }

    // The same tokens in three calls give the same bits, whatever the cuts.
    let mut parts_state = memory.initial_state(sequences);
    let n = read.dim().1;
    let (mut parts, mut start) = (Vec::new(), 0);
    for end in [n / 3, n / 3 + (n - n / 3) / 2, n] {
        let [read, store] = [&read_as, &store_as].map(|all| all.slice(s![.., start..end, ..]).to_owned());
        let work = Work::Online { read: &read, store: &store, probe: true };
        parts.push(run_through(&memory, &mut parts_state, work, read.dim()).retrieved);
        start = end;
    }
    let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
    let parts = ndarray::concatenate(Axis(1), &views).unwrap();
    assert!(parts.iter().zip(&whole.retrieved).all(|(a, b)| a == b), "{what}: parts differ from the whole");
    assert_eq!(parts_state, state, "{what}: state after parts");

    // And so does any number of threads.
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut threads_state = memory.initial_state(sequences);
        let mut sink = Collect::new(read.dim());
        pool.install(|| {
            Engine::new(&memory)
                .run(&mut threads_state, work_of(&read_as, &store_as), &mut sink, &mut |_| Ok(()))
        })
        .unwrap();
        assert_eq!(threads_state, state, "{what}: state of {threads} threads");
        assert_eq!(sink.rows_text(), whole.rows_text(), "{what}: metrics of {threads} threads");
    }
}

fn work_of<'a, T: Real>(read: &'a Array3<T>, store: &'a Array3<T>) -> Work<'a, T> {
    Work::Online { read, store, probe: true }
}

#[test]
fn random_programs() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for round in 0..16 {
        for &kind in ModelKind::ALL {
            let (program, dimensions) = random_program(&mut rng, kind);
            let seed = 1000 * round + kind as u64;
            let gates = Gates {
                // The slow rates keep losses of all kinds in range.
                learning_rate: if program.rule.rate_form == RateForm::Exp {
                    Gate::Learned(-0.5)
                } else {
                    Gate::default()
                },
                ..Gates::default()
            };
            let random = RandomMemory::of_program(program, dimensions, Init::Xavier, seed).gates(gates);
            let random = trained(random, seed);
            let c = program.chunk_size();
            let tokens = pick(&mut rng, &[0, 1, c.saturating_sub(1), c, c + 1, 4 * c, 29]);
            let read = uniform((2, tokens, dimensions.dim), 1.2, seed + 1);
            let store = if rng.random_bool(0.5) { read.clone() } else { uniform(read.dim(), 1.2, seed + 2) };
            let what = format!("{program:?}, {dimensions}, {tokens} tokens");
            check::<f64>(&random, &read, &store, &what, F64);
            check::<f32>(&random, &read, &store, &what, F32);
        }
    }
}

/// Blocks hold 512 tokens, 1,024 with one head; refreshes end within and between them.
#[test]
fn programs_over_several_blocks() {
    for (heads, chunk_size, refresh) in [(1, 3, Some(300)), (2, 4, Some(512)), (2, 1, Some(7)), (2, 5, None)]
    {
        let mut program = nmem::memory::program::Preset::Titans055.program(chunk_size, heads);
        program.schedule.refresh = refresh;
        program.model.options.expansion = Some(2.0);
        let dimensions = Dimensions { dim: 4, heads, dim_head: 4, pre_norm: true, post_norm: false };
        let random = trained(RandomMemory::of_program(program, dimensions, Init::Xavier, 5), 6);
        let random = random.gates(Gates { learning_rate: Gate::Fixed(0.002), ..Gates::default() });
        let tokens = uniform((1, 1100, 4), 1.0, 9);
        check::<f64>(
            &random,
            &tokens,
            &tokens,
            &format!("{heads} heads, chunks of {chunk_size}, {refresh:?}"),
            F64,
        );
    }
}

/// A linear memory of one head and its projections to keys, values and queries, without norms.
struct LinearMemory {
    memory: Memory<f64>,
    keys: Array2<f64>,
    values: Array2<f64>,
    queries: Array2<f64>,
}

impl LinearMemory {
    /// Half squared error, no decay, no momentum, zero initial weights, a fixed rate, and reads of complete chunks.
    fn new(
        [keys, values, queries]: [Array2<f64>; 3],
        (chunk_size, refresh): (usize, Option<usize>),
        rate: f64,
    ) -> Self {
        let d = keys.nrows();
        let base = Program::titans_0_0_17(chunk_size);
        let program = Program {
            model: Model::new(ModelKind::Linear, false),
            loss: Loss::HalfSquare,
            rule: Rule { momentum: false, ..base.rule },
            schedule: Schedule { chunk_size, refresh, gated_transition: false, reads: Reads::Complete },
            frame: Frame::default(),
        };
        let dimensions = Dimensions { dim: d, heads: 1, dim_head: d, pre_norm: false, post_norm: false };
        let mut random = RandomMemory::of_program(program, dimensions, Init::Xavier, 1);
        random.tensors.get_mut("memory_model.weights.0").unwrap().fill(0.0);
        let mut parameters: Parameters<f64> = random.parameters();
        parameters.keys_values = ndarray::concatenate(Axis(1), &[keys.view(), values.view()]).unwrap();
        parameters.queries.assign(&queries);
        let gates =
            Gates { learning_rate: Gate::Fixed(rate), momentum: Gate::default(), decay: Gate::Fixed(0.0) };
        Self { memory: Memory::new(parameters, program, gates, None).unwrap(), keys, values, queries }
    }

    /// Returns what is read while `stored` (n, d) is stored, and the weights at the end.
    fn run(&self, read: &Array2<f64>, stored: &Array2<f64>) -> (Array2<f64>, Array2<f64>) {
        let d = read.ncols();
        let [read, store] = [read, stored].map(|rows| rows.clone().insert_axis(Axis(0)));
        let mut state = self.memory.initial_state(1);
        let work = Work::Online { read: &read, store: &store, probe: false };
        let retrieved = run_through(&self.memory, &mut state, work, read.dim()).retrieved;
        let weights = state.arrays[0].clone().into_shape_with_order((d, d)).unwrap();
        (retrieved.index_axis_move(Axis(0), 0), weights)
    }
}

fn projections(d: usize) -> [Array2<f64>; 3] {
    [11, 12, 13].map(|seed| uniform((1, d, d), 0.8, seed).index_axis_move(Axis(0), 0))
}

fn rows(n: usize, d: usize, seed: u64) -> Array2<f64> {
    uniform((1, n, d), 1.0, seed).index_axis_move(Axis(0), 0)
}

/// One step of gradient descent from zero weights at rate 1 sums k ⊗ v: unnormalised linear attention.
#[test]
fn one_chunk_of_a_linear_memory_is_linear_attention() {
    let (n, d) = (12, 5);
    let linear = LinearMemory::new(projections(d), (n, None), 1.0);
    let stored = rows(n, d, 1);
    // The last token of the chunk is the first to read it, and so are tokens after the end of what is stored.
    let read = rows(n + 3, d, 2);
    let (retrieved, weights) = linear.run(&read, &stored);
    let sum = stored.dot(&linear.keys).t().dot(&stored.dot(&linear.values));
    assert_close_to_largest("weights", weights.view().into_dyn(), sum.view().into_dyn(), 1e-13);
    let expected = read.slice(s![n - 1.., ..]).dot(&linear.queries).dot(&sum);
    let got = retrieved.slice(s![n - 1.., ..]).to_owned();
    assert_close_to_largest("reads", got.view().into_dyn(), expected.view().into_dyn(), 1e-13);
    assert!(retrieved.slice(s![..n - 1, ..]).iter().all(|&x| x == 0.0), "nothing is stored before");
}

/// The delta rule in plain loops: e = v − k S, S ← S + β k ⊗ e, o = q S.
fn delta_rule(q: &Array2<f64>, k: &Array2<f64>, v: &Array2<f64>, beta: f64) -> (Array2<f64>, Array2<f64>) {
    let mut state: Array2<f64> = Array2::zeros((k.ncols(), v.ncols()));
    let mut read = Array2::zeros(v.dim());
    for t in 0..k.nrows() {
        let error: Array1<f64> = &v.row(t) - &k.row(t).dot(&state);
        for (i, mut row) in state.rows_mut().into_iter().enumerate() {
            row.scaled_add(beta * k[[t, i]], &error);
        }
        read.row_mut(t).assign(&q.row(t).dot(&state));
    }
    (read, state)
}

#[test]
fn chunks_of_one_token_store_by_the_delta_rule() {
    let (n, d, beta) = (19, 5, 0.3);
    let linear = LinearMemory::new(projections(d), (1, Some(1)), beta);
    let (read, stored) = (rows(n, d, 3), rows(n, d, 4));
    let (got, weights) = linear.run(&read, &stored);
    let [q, k, v] = [read.dot(&linear.queries), stored.dot(&linear.keys), stored.dot(&linear.values)];
    let (expected, state) = delta_rule(&q, &k, &v, beta);
    assert_close_to_largest("reads", got.view().into_dyn(), expected.view().into_dyn(), 1e-12);
    assert_close_to_largest("weights", weights.view().into_dyn(), state.view().into_dyn(), 1e-12);
}

/// Recorded results of `delta_rule_recurrence` of flash-linear-attention, which computes in f32. Its scale of the queries
/// is taken out.
#[test]
fn delta_rule_of_flash_linear_attention() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/closed-forms/delta_rule.npz");
    let mut npz = NpzReader::new(File::open(path).unwrap()).unwrap();
    let mut matrix = |name: &str| -> Array2<f64> {
        let array: Array2<f32> = npz.by_name(name).unwrap();
        array.mapv(f64::from)
    };
    let [stored, read, keys, values, queries, output, state] =
        ["stored", "read", "keys", "values", "queries", "output", "state"].map(&mut matrix);
    let rate: Array1<f32> = npz.by_name("rate").unwrap();
    let linear = LinearMemory::new([keys, values, queries], (1, Some(1)), f64::from(rate[0]));
    let (got, weights) = linear.run(&read, &stored);
    assert_close_to_largest("reads", got.view().into_dyn(), output.view().into_dyn(), 1e-5);
    assert_close_to_largest("weights", weights.view().into_dyn(), state.view().into_dyn(), 1e-5);
}

/// The naive form of TTT-Linear without its LayerNorm and bias (flash-linear-attention's `ttt_linear`). Token t of a
/// mini-batch reads W − η Σ_{s ≤ t} k_s ⊗ (k_s W − v_s), with all gradients at the mini-batch's start W.
#[test]
fn refreshes_of_a_linear_memory_are_the_mini_batches_of_ttt() {
    let (n, d, batch, rate) = (24, 4, 6, 0.25);
    let linear = LinearMemory::new(projections(d), (1, Some(batch)), rate);
    let (read, stored) = (rows(n, d, 5), rows(n, d, 6));
    let (got, weights) = linear.run(&read, &stored);
    let [q, k, v] = [read.dot(&linear.queries), stored.dot(&linear.keys), stored.dot(&linear.values)];
    let mut w: Array2<f64> = Array2::zeros((d, d));
    let mut expected = Array2::zeros((n, d));
    for start in (0..n).step_by(batch) {
        let part = |of: &Array2<f64>| of.slice(s![start..start + batch, ..]).to_owned();
        let [q, k, v] = [&q, &k, &v].map(part);
        let gradient = k.dot(&w) - &v;
        let mut scores = q.dot(&k.t());
        for ((t, s), score) in scores.indexed_iter_mut() {
            if s > t {
                *score = 0.0;
            }
        }
        let out = q.dot(&w) - rate * scores.dot(&gradient);
        expected.slice_mut(s![start..start + batch, ..]).assign(&out);
        w = w - rate * k.t().dot(&gradient);
    }
    assert_close_to_largest("reads", got.view().into_dyn(), expected.view().into_dyn(), 1e-12);
    assert_close_to_largest("weights", weights.view().into_dyn(), w.view().into_dyn(), 1e-12);
}
