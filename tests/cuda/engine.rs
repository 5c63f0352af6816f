//! The engine on a device, tested on the golden cases and against the oracle.

use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::s;
use nmem::cuda::{Argument, Device, Launch, Mark, Product};
use nmem::engine::{Engine, Memory, Outcome, Work};
use nmem::memory::parameters::Init;
use nmem::memory::program::Preset;
use nmem::memory::{Dimensions, Gate, Gates, State};
use nmem::real::Real;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::RngSeed;

use crate::device::{devices, is_watching};
use crate::support::{
    self, Collect, Golden, RandomMemory, assert_close_to_largest, assert_rows_close, assert_state_close,
    compare, dyn3, golden_results, uniform,
};

/// Runs the engine on a device, as [`support::run`] runs the CPU engine.
fn run_on<T: Real>(
    device: &dyn Device,
    memory: &Memory<T>,
    state: &mut State<T>,
    work: Work<'_, T>,
    shape: (usize, usize, usize),
) -> (Collect<T>, Outcome) {
    let mut sink = Collect::new(shape);
    let mut engine = Engine::on_gpu(memory, device).expect("space for the parameters");
    let outcome = engine.run(state, work, &mut sink, &mut |_| Ok(())).expect("a run");
    assert_eq!(outcome.rows, sink.rows.len(), "counted rows are those of complete sequences");
    (sink, outcome)
}

/// A device of another size, which leads to blocks of few tokens and more time segments side by side.
struct LimitedDevice<'a> {
    device: &'a dyn Device,
    free: usize,
    shared: usize,
    /// Reported number of multiprocessors.
    multiprocessors: usize,
    /// Number of launches, products, uploads and copies.
    calls: AtomicUsize,
    /// Number of fused updates of a layer.
    fused_updates: AtomicUsize,
    /// Number of stored blocks of tokens.
    blocks: AtomicUsize,
    /// Most time segments that have run side by side.
    segments: AtomicUsize,
    /// The widest second dimension of a grid, for a device that does not run kernels.
    widest: Option<AtomicUsize>,
}

impl<'a> LimitedDevice<'a> {
    fn new(device: &'a dyn Device, free: usize, shared: usize) -> Self {
        let [calls, fused_updates, blocks, segments] = [const { AtomicUsize::new(0) }; 4];
        Self {
            device,
            free,
            shared,
            multiprocessors: 1,
            calls,
            fused_updates,
            blocks,
            segments,
            widest: None,
        }
    }
}

impl Device for LimitedDevice<'_> {
    fn name(&self) -> String {
        self.device.name()
    }
    fn free_bytes(&self) -> nmem::Result<usize> {
        Ok(self.free)
    }
    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }
    fn shared_bytes(&self) -> usize {
        self.shared
    }
    fn allocate(&self, bytes: usize) -> nmem::Result<u64> {
        self.device.allocate(bytes)
    }
    fn free(&self, address: u64) {
        self.device.free(address);
    }
    fn fill(&self, address: u64, byte: u8, bytes: usize) -> nmem::Result<()> {
        self.device.fill(address, byte, bytes)
    }
    fn upload(&self, address: u64, parts: &[&[u8]]) -> nmem::Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.device.upload(address, parts)
    }
    fn download(&self, address: u64, bytes: &mut [u8]) -> nmem::Result<()> {
        self.device.download(address, bytes)
    }
    fn copy(&self, to: u64, from: u64, bytes: usize) -> nmem::Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.device.copy(to, from, bytes)
    }
    fn launch(&self, kernel: &str, launch: Launch, arguments: &[Argument]) -> nmem::Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if kernel.starts_with("fused_update") {
            self.fused_updates.fetch_add(1, Ordering::Relaxed);
        }
        if kernel.starts_with("gate_values") {
            self.blocks.fetch_add(1, Ordering::Relaxed);
        }
        if kernel.starts_with("segment_ends") {
            self.segments.fetch_max(launch.grid[2] as usize + 1, Ordering::Relaxed);
        }
        if let Some(widest) = &self.widest {
            widest.fetch_max(launch.grid[1] as usize, Ordering::Relaxed);
            return Ok(());
        }
        self.device.launch(kernel, launch, arguments)
    }
    fn multiply(&self, product: &Product) -> nmem::Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.widest.is_some() {
            return Ok(());
        }
        self.device.multiply(product)
    }
    fn products(&self) -> String {
        self.device.products()
    }
    fn mark_anew(&self, mark: &mut Mark) -> nmem::Result<()> {
        self.device.mark_anew(mark)
    }
    fn synchronize(&self) -> nmem::Result<()> {
        self.device.synchronize()
    }
    fn mark(&self) -> nmem::Result<Mark> {
        self.device.mark()
    }
    fn seconds(&self, from: &Mark, to: &Mark) -> nmem::Result<f64> {
        self.device.seconds(from, to)
    }
}

#[test]
fn golden_cases() {
    for (name, device) in devices() {
        for case in Golden::all() {
            let f64s = golden_results::<f64>(&case, |memory, state, work, shape| {
                run_on(device.as_ref(), memory, state, work, shape)
            });
            compare(&format!("{name} f64"), &case, "expected.npz", &f64s, 1e-10);
            let f32s = golden_results::<f32>(&case, |memory, state, work, shape| {
                run_on(device.as_ref(), memory, state, work, shape)
            });
            compare(&format!("{name} f32"), &case, "expected_f32eps.npz", &f32s, 1e-5);
        }
    }
}

/// A memory stored in two parts and read with another sequence, the first part with a probe: (dim, heads, d),
/// chunk, sequences, tokens of the parts.
type Case = ((usize, usize, usize), usize, usize, [usize; 2]);

/// Widths around tiles, chunks around pieces of a fused update, partial chunks, several sequences.
const CASES: [Case; 6] = [
    ((6, 2, 3), 5, 3, [23, 11]),
    ((20, 1, 20), 17, 1, [40, 30]),
    ((34, 2, 17), 33, 2, [70, 33]),
    ((70, 1, 70), 2, 1, [9, 8]),
    ((8, 2, 66), 40, 1, [41, 40]),
    // Products that use cuBLAS on a GPU.
    ((200, 1, 200), 9, 1, [20, 10]),
];

fn against_the_oracle<T: Real>(what: &str, device: &dyn Device, case: Case, rel: f64) {
    let ((dim, heads, d), chunk, sequences, parts) = case;
    let what = format!("{what}, {}, {case:?}", T::TYPE);
    let gates = Gates { decay: Gate::Learned(-1.0), momentum: Gate::Fixed(0.7), ..Gates::default() };
    let random = RandomMemory::new((dim, heads, d), chunk, Init::Xavier, 7).gates(gates).past(0.1, 3);
    let memory = random.memory::<T>();
    let mut reference = random.reference::<T>(sequences);
    let mut state = memory.initial_state(sequences);
    for (seed, tokens) in parts.into_iter().enumerate() {
        let shape = (sequences, tokens, dim);
        let [store, read] = [2, 20].map(|first| uniform(shape, 1.0, first + seed as u64));
        let [stored, queries] = [&store, &read].map(|part| part.mapv(T::from_f64));
        let (expected, rows) = reference.online(&read, &store);
        let work = Work::Online { read: &queries, store: &stored, probe: seed == 0 };
        let (got, outcome) = run_on(device, &memory, &mut state, work, shape);
        assert_eq!(outcome.divergence, None, "{what}");
        assert_rows_close(&what, &got.rows, &rows, rel);
        assert!(got.rows.iter().all(|row| row.loss_zero.is_some()), "{what}");
        let retrieved = dyn3(&got.retrieved);
        assert_close_to_largest(&what, retrieved.view(), expected.view().into_dyn(), rel);
    }
    assert_state_close(&what, &memory, &state, &reference, rel);
    // A plain read, compared with the engine on the CPU.
    let queries = uniform((sequences, chunk + 3, dim), 1.0, 9).mapv(T::from_f64);
    let (got, _) = run_on(device, &memory, &mut state, Work::Read(&queries), queries.dim());
    let (expected, _) = support::run(&memory, &mut state, Work::Read(&queries), queries.dim());
    assert_close_to_largest(&what, dyn3(&got.retrieved).view(), dyn3(&expected.retrieved).view(), rel);
}

#[test]
pub fn agrees_with_the_oracle() {
    for (name, device) in devices() {
        for case in CASES {
            against_the_oracle::<f64>(name, device.as_ref(), case, 1e-10);
            against_the_oracle::<f32>(name, device.as_ref(), case, 2e-5);
        }
    }
}

#[test]
fn little_memory_makes_many_blocks() {
    for (name, device) in devices() {
        let shared = device.shared_bytes();
        let small = |free| LimitedDevice {
            multiprocessors: 132,
            ..LimitedDevice::new(device.as_ref(), free, shared)
        };
        let few = small(1 << 15);
        against_the_oracle::<f32>(name, &few, ((6, 2, 3), 5, 3, [53, 30]), 2e-5);
        let blocks = few.blocks.load(Ordering::Relaxed);
        assert!(blocks > 12, "{blocks} blocks of three sequences are only their two parts each");
        // The last block of a single sequence is shorter.
        against_the_oracle::<f32>(name, &small(1 << 16), ((6, 2, 3), 5, 1, [153, 30]), 2e-5);
        // The second sequence diverges in a later block, and the first continues.
        let gates = Gates { learning_rate: Gate::Fixed(1e3), decay: Gate::Fixed(0.0), ..Gates::default() };
        let memory = RandomMemory::new((6, 2, 3), 8, Init::Xavier, 1).gates(gates).memory::<f32>();
        let tokens = uniform((2, 400, 6), 1.0, 2).mapv(|x| x as f32);
        let work = Work::Store { sequences: &tokens, probe: true };
        let (got, at) = run_on(&small(1 << 16), &memory, &mut memory.initial_state(2), work, tokens.dim());
        let (expected, there) = support::run(&memory, &mut memory.initial_state(2), work, tokens.dim());
        assert_eq!(at.divergence, there.divergence, "{name}");
        assert_eq!(got.rows.len(), expected.rows.len(), "{name}");
    }
}

/// Returns any shape, on devices of any size: blocks of tokens, time segments, partial tiles.
fn shapes() -> impl Strategy<Value = (Case, usize, usize)> {
    // One head needs dim_head = dim: nothing maps its output to another width.
    let heads = (1_usize..=40, 1_usize..=3, 1_usize..=70)
        .prop_map(|(dim, heads, d)| (if heads == 1 { d } else { dim }, heads, d));
    let parts = [0_usize..=130, 0..=70];
    let case = (heads, 2_usize..=70, 1_usize..=5, parts);
    (case, select(vec![1, 40, 132, 1000]), 14_usize..=24)
        .prop_map(|(case, multiprocessors, free)| (case, multiprocessors, 1 << free))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn shapes_of_all_kinds((case, multiprocessors, free) in shapes()) {
        for (name, device) in devices() {
            let small = LimitedDevice { multiprocessors, ..LimitedDevice::new(device.as_ref(), free, device.shared_bytes()) };
            against_the_oracle::<f32>(name, &small, case, 5e-5);
            against_the_oracle::<f64>(name, &small, case, 1e-10);
        }
    }
}

/// Chunks of few tokens and of more than a piece of a fused update; a shorter last segment; several heads and
/// sequences; partial and whole tiles.
const SEGMENTS: [(Case, usize); 4] = [
    (((6, 2, 3), 2, 2, [23, 30]), 15),
    (((68, 1, 68), 33, 1, [200, 100]), 3),
    (((64, 1, 64), 16, 1, [150, 64]), 5),
    (((12, 3, 4), 70, 2, [320, 140]), 4),
];

#[test]
pub fn segments_side_by_side() {
    for (name, device) in devices() {
        for (case, segments) in SEGMENTS {
            let small = LimitedDevice {
                multiprocessors: 1000,
                ..LimitedDevice::new(device.as_ref(), 1 << 24, device.shared_bytes())
            };
            against_the_oracle::<f32>(name, &small, case, 2e-5);
            // The check for races is slow, so it is of one element type here.
            if !is_watching() {
                against_the_oracle::<f64>(name, &small, case, 1e-10);
            }
            assert_eq!(small.segments.load(Ordering::Relaxed), segments, "{name}, {case:?}");
        }
    }
}

#[test]
pub fn little_shared_memory() {
    for (name, device) in devices() {
        let small = |shared| LimitedDevice::new(device.as_ref(), 1 << 22, shared);
        // The shared memory of a block on compute capability 8.6.
        against_the_oracle::<f64>(name, &small(99 << 10), ((90, 1, 90), 3, 1, [8, 7]), 1e-10);
        let memory = RandomMemory::new((6, 2, 3), 5, Init::Xavier, 7).memory::<f32>();
        let none = small(1000);
        let mut engine = Engine::on_gpu(&memory, &none).expect("space for the parameters");
        let tokens = uniform((1, 7, 6), 1.0, 5).mapv(|x| x as f32);
        let work = Work::Store { sequences: &tokens, probe: false };
        let state = &mut memory.initial_state(1);
        let error = engine.run(state, work, &mut Collect::new((0, 0, 0)), &mut |_| Ok(()));
        let error = error.expect_err("no shared memory for a fused update").to_string();
        assert!(error.contains("1000 bytes") && error.contains("use --device cpu"), "{error}");
    }
}

#[test]
fn two_runs_give_the_same_bits() {
    for (name, device) in devices() {
        let memory = RandomMemory::new((34, 2, 17), 16, Init::Xavier, 7).memory::<f32>();
        let tokens = uniform((2, 100, 34), 1.0, 5).mapv(|x| x as f32);
        let once = || {
            let mut state = memory.initial_state(2);
            let work = Work::Online { read: &tokens, store: &tokens, probe: true };
            let (got, _) = run_on(device.as_ref(), &memory, &mut state, work, tokens.dim());
            (got.rows_text(), got.retrieved, state)
        };
        assert_eq!(once(), once(), "{name}");
    }
}

/// Zeros need no fused update with other scales: tokens of zeros, as at the ends of shorter sequences, and θ = 0.
#[test]
fn norms_that_are_zero() {
    for (name, device) in devices() {
        for (rate, fused_updates) in [(Gate::Learned(0.0), 2), (Gate::Fixed(0.0), 2), (Gate::Fixed(1e-28), 4)]
        {
            let gates = Gates { learning_rate: rate, ..Gates::default() };
            let memory = RandomMemory::new((6, 2, 3), 4, Init::Xavier, 7).gates(gates).memory::<f32>();
            let mut tokens = uniform((2, 32, 6), 1.0, 5).mapv(|x| x as f32);
            tokens.slice_mut(s![1, 9.., ..]).fill(0.0);
            let work = Work::Store { sequences: &tokens, probe: false };
            let small = LimitedDevice::new(device.as_ref(), 1 << 24, device.shared_bytes());
            let (got, _) = run_on(&small, &memory, &mut memory.initial_state(2), work, (0, 0, 0));
            let (expected, _) = support::run(&memory, &mut memory.initial_state(2), work, (0, 0, 0));
            assert_rows_close(name, &got.rows, &expected.rows, 1e-5);
            assert_eq!(small.fused_updates.into_inner(), fused_updates, "{name}, {rate:?}");
        }
    }
}

#[test]
pub fn norms_whose_squares_leave_the_range() {
    for (name, device) in devices() {
        for rate in [1e-28, 1e25] {
            let gates = Gates { learning_rate: Gate::Fixed(rate), ..Gates::default() };
            let memory = RandomMemory::new((6, 2, 3), 4, Init::Xavier, 7).gates(gates).memory::<f32>();
            let tokens = uniform((1, 21, 6), 1.0, 5).mapv(|x| x as f32);
            let work = Work::Store { sequences: &tokens, probe: false };
            let (got, _) = run_on(device.as_ref(), &memory, &mut memory.initial_state(1), work, (0, 0, 0));
            let (expected, _) = support::run(&memory, &mut memory.initial_state(1), work, (0, 0, 0));
            assert_rows_close(&format!("{name}, θ = {rate:e}"), &got.rows, &expected.rows, 1e-5);
        }
    }
}

#[test]
fn divergences_equal_those_on_the_cpu() {
    for (name, device) in devices() {
        // Losses and reads beyond f32 do not lose the memory; weights beyond f32 do. (θ, probe, online, lost value)
        let [nothing, reads, memory_lost] = [(false, false), (true, false), (true, true)];
        for (rate, probe, online, lost) in [
            (1e30, true, false, nothing),
            (1e30, false, false, nothing),
            (1e39, true, false, memory_lost),
            (1e39, false, false, memory_lost),
            (1e30, false, true, reads),
            (1e22, true, true, reads),
        ] {
            let gates = Gates { learning_rate: Gate::Fixed(rate), ..Gates::default() };
            let memory = RandomMemory::new((6, 2, 3), 8, Init::Xavier, 1).gates(gates).memory::<f32>();
            let tokens = uniform((2, 61, 6), 1.0, 2).mapv(|x| x as f32);
            let work = if online {
                Work::Online { read: &tokens, store: &tokens, probe }
            } else {
                Work::Store { sequences: &tokens, probe }
            };
            let (got, at) =
                run_on(device.as_ref(), &memory, &mut memory.initial_state(2), work, tokens.dim());
            let (expected, there) = support::run(&memory, &mut memory.initial_state(2), work, tokens.dim());
            let what = (there.first_nonfinite().is_some(), there.divergence.is_some());
            assert_eq!(what, lost, "θ = {rate:e}");
            let both = |outcome: Outcome| (outcome.divergence, outcome.bad_read);
            assert_eq!(both(at), both(there), "{name}, θ = {rate:e}");
            assert_eq!(got.rows.len(), expected.rows.len(), "{name}, θ = {rate:e}");
        }
    }
}

/// Chunks of few tokens share a tile of attention with those of other heads and sequences.
#[test]
pub fn nonfinite_values_stay_in_their_chunk() {
    for (name, device) in devices() {
        for (value, online) in [(1e25, false), (f32::NAN, false), (f32::NAN, true)] {
            let memory = RandomMemory::new((6, 2, 3), 4, Init::Xavier, 1).norms(false, false).memory::<f32>();
            let mut tokens = uniform((2, 44, 6), 1.0, 2).mapv(|x| x as f32);
            tokens[[1, 9, 1]] = value;
            let work = if online {
                Work::Online { read: &tokens, store: &tokens, probe: false }
            } else {
                Work::Store { sequences: &tokens, probe: false }
            };
            let (got, at) =
                run_on(device.as_ref(), &memory, &mut memory.initial_state(2), work, tokens.dim());
            let (expected, there) = support::run(&memory, &mut memory.initial_state(2), work, tokens.dim());
            assert_eq!(there.divergence.as_ref().map(|at| (at.sequence, at.chunk)), Some((1, 2)));
            assert_eq!(at.divergence, there.divergence, "{name}, {value}");
            assert_rows_close(name, &got.rows, &expected.rows, 1e-5);
        }
    }
}

/// Calls to a device cover all sequences together.
#[test]
fn sequences_side_by_side() {
    for (name, device) in devices() {
        let memory = RandomMemory::new((6, 2, 3), 5, Init::Xavier, 7).memory::<f32>();
        let calls = [3, 40].map(|sequences| {
            let tokens = uniform((sequences, 23, 6), 1.0, 5).mapv(|x| x as f32);
            let small = LimitedDevice::new(device.as_ref(), 1 << 24, device.shared_bytes());
            let work = Work::Online { read: &tokens, store: &tokens, probe: true };
            let compare = |got: &Collect<f32>, expected: &Collect<f32>| {
                assert_rows_close(name, &got.rows, &expected.rows, 2e-5);
                let [got, expected] = [got, expected].map(|of| dyn3(&of.retrieved));
                assert_close_to_largest(name, got.view(), expected.view(), 2e-5);
            };
            let (got, _) = run_on(&small, &memory, &mut memory.initial_state(sequences), work, tokens.dim());
            let (expected, _) =
                support::run(&memory, &mut memory.initial_state(sequences), work, tokens.dim());
            compare(&got, &expected);
            let online = small.calls.swap(0, Ordering::Relaxed);

            // All sequences start from the memory of one.
            let one = uniform((1, 20, 6), 1.0, 3).mapv(|x| x as f32);
            let mut stored = memory.initial_state(1);
            support::run(&memory, &mut stored, Work::Store { sequences: &one, probe: false }, (0, 0, 0));
            let (got, _) = run_on(&small, &memory, &mut stored, Work::Read(&tokens), tokens.dim());
            let (expected, _) = support::run(&memory, &mut stored, Work::Read(&tokens), tokens.dim());
            compare(&got, &expected);
            [online, small.calls.into_inner()]
        });
        let [[online, read], [online_of_many, read_of_many]] = calls;
        assert_eq!(online, online_of_many, "{name}");
        // For each of two arrays, 2 copies spread the state: 3 sequences from the first, against 2, 4, 8, 16, 32, 40.
        assert_eq!(read + 2 * 4, read_of_many, "{name}");
    }
}

/// The heads and sequences do not fit one grid.
#[test]
fn many_heads_of_many_sequences() {
    let (_, device) = &devices()[0];
    let memory = RandomMemory::new((64, 64, 1), 2, Init::Xavier, 1).memory::<f32>();
    let tokens = uniform((1023, 2, 64), 1.0, 2).mapv(|x| x as f32);
    let small = LimitedDevice::new(device.as_ref(), 1 << 36, device.shared_bytes());
    let roomy = LimitedDevice { widest: Some(AtomicUsize::new(0)), ..small };
    run_on(&roomy, &memory, &mut memory.initial_state(1), Work::Read(&tokens), tokens.dim());
    let widest = roomy.widest.expect("set at construction").into_inner();
    assert!((60_000..=65_535).contains(&widest), "{widest} of at most 65,535");
}

/// Kernels exist for the memory of titans-pytorch 0.0.17 only.
#[test]
fn other_programs_are_rejected() {
    for (name, device) in devices() {
        let program = Preset::Titans055.program(4, 1);
        let dimensions = Dimensions { dim: 6, heads: 1, dim_head: 6, pre_norm: true, post_norm: false };
        let memory = RandomMemory::of_program(program, dimensions, Init::Xavier, 1).memory::<f32>();
        let error = Engine::on_gpu(&memory, device.as_ref()).err().expect(name);
        assert_eq!(error.to_string(), "cuda: the model mlp runs on the CPU only; use --device cpu", "{name}");
    }
}
