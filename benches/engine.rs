//! Benchmarks of the engine's hot parts, each alone and on one thread: `cargo bench --bench engine`. Items are
//! multiply-adds of the algorithm, so a rate of 57 Gitem/s is 114 GFLOP/s.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use ndarray::{Array2, Array3, s};
use nmem::engine::gradient::{Examples, Factors, GradientPoint, GradientScratch, loss_and_gradient};
use nmem::engine::panel::{FusedUpdate, Panel, PanelColumns, Reading, Step, StoredChunks};
use nmem::engine::{Discard, Engine, Memory, Work};
use nmem::memory::operators::buffers as operator_buffers;
use nmem::memory::parameters::{Init, random_tensors};
use nmem::memory::{Dimensions, Gates, Parameters, Program};
use nmem::packed::Packed;
use nmem::real::Real;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn main() {
    divan::main();
}

/// Rows that a model processes at once, and rows of a block.
const GROUP: usize = 64;
const BLOCK: usize = 512;

/// (`dim_head`, `chunk_size`)
const SHAPES: [(usize, usize); 5] = [(64, 2), (64, 16), (64, 64), (128, 16), (384, 64)];

fn uniform(rows: usize, cols: usize) -> Array2<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64((rows * cols) as u64);
    Array2::from_shape_simple_fn((rows, cols), || rng.random::<f32>() - 0.5)
}

/// Times a product with a packed weight.
#[divan::bench(args = [64, 128, 384, 512])]
fn packed(bencher: Bencher, d: usize) {
    let (weights, rows) = (Packed::new(uniform(d, d).view()), uniform(GROUP, d));
    let mut out = Array2::zeros((GROUP, d));
    bencher
        .counter(ItemsCount::new(GROUP * d * d))
        .bench_local(|| weights.multiply(black_box(rows.view()), out.view_mut()));
}

/// Times one column panel through a block: reading, storing, or both.
fn fused_update(bencher: Bencher, (d, chunk): (usize, usize), reading: bool, storing: bool) {
    let (base, keys, cotangents) = (uniform(d, d), uniform(BLOCK, d), uniform(BLOCK, d));
    let program = Program::titans_0_0_17(chunk);
    let columns = &PanelColumns::all(&[(d, d)])[0];
    let base = columns.panel(base.as_slice().expect("contiguous"));
    let mut panel = Panel::new(columns, program.rule.arrays().len());
    let mut out = Array2::zeros((BLOCK, columns.width));
    let steps = vec![Step { learning_rate: 1e-3, momentum: 0.5, decay: 0.5 }; BLOCK / chunk];
    let cotangents = cotangents.slice(s![.., ..columns.width]);
    let work = BLOCK * d * columns.width * (usize::from(reading) + usize::from(storing));
    bencher.counter(ItemsCount::new(work)).bench_local(|| {
        let stored = StoredChunks { steps: &steps, inputs: keys.view(), cotangents };
        let queries = Reading { inputs: keys.view(), outputs: out.view_mut(), after: false };
        FusedUpdate {
            rule: program.rule,
            chunk,
            base: &base,
            panel: &mut panel,
            stored: storing.then_some(stored),
            readings: if reading { vec![queries] } else { Vec::new() },
        }
        .run();
    });
}

#[divan::bench(args = SHAPES)]
fn fused_update_reading(bencher: Bencher, shape: (usize, usize)) {
    fused_update(bencher, shape, true, false);
}

#[divan::bench(args = SHAPES)]
fn fused_update_storing(bencher: Bencher, shape: (usize, usize)) {
    fused_update(bencher, shape, false, true);
}

#[divan::bench(args = SHAPES)]
fn fused_update_both(bencher: Bencher, shape: (usize, usize)) {
    fused_update(bencher, shape, true, true);
}

/// Times losses and gradients at W of a group of rows.
#[divan::bench(args = SHAPES)]
fn gradients(bencher: Bencher, (d, chunk): (usize, usize)) {
    let program = Program::titans_0_0_17(chunk);
    let graph = program.model.graph(d);
    let point = GradientPoint::new(&graph, uniform(4 * d, d).as_slice().expect("contiguous"));
    let (keys, values) = (uniform(GROUP, d), uniform(GROUP, d + 1));
    let examples = Examples { keys: keys.view(), values: values.slice(s![.., 1..]), weights: None, chunk };
    let mut factors = Factors::new(&graph, GROUP);
    let mut scratch = GradientScratch::new(&graph, GROUP);
    let mut works = operator_buffers(&graph, GROUP, chunk);
    let mut losses = vec![0.0; GROUP];
    bencher.counter(ItemsCount::new(GROUP * (5 * d * d + 3 * (chunk + 1) * d))).bench_local(|| {
        let group = factors.groups(0..GROUP, GROUP).remove(0);
        let model = (&graph, program.loss);
        loss_and_gradient(model, &point, examples, &mut losses, group, (&mut scratch, &mut works));
    });
}

#[divan::bench(args = [2, 16, 64])]
fn causal_softmax(bencher: Bencher, chunk: usize) {
    let logits = uniform(GROUP, chunk);
    let mut rows = logits.clone();
    bencher.counter(ItemsCount::new(GROUP * chunk)).bench_local(|| {
        rows.assign(&logits);
        f32::causal_softmax(rows.as_slice_mut().expect("contiguous"), chunk);
    });
}

/// Times storing and reading 1,024 tokens with one head. Items are tokens.
#[divan::bench(args = SHAPES)]
fn online(bencher: Bencher, (d, chunk): (usize, usize)) {
    let dimensions = Dimensions { dim: d, heads: 1, dim_head: d, pre_norm: true, post_norm: true };
    let program = Program::titans_0_0_17(chunk);
    let tensors: std::collections::BTreeMap<_, _> =
        random_tensors(&dimensions, &program, Init::Xavier, 1).into_iter().collect();
    let parameters = Parameters::<f32>::collect(dimensions, &program, |name| tensors[name].clone());
    let memory = Memory::new(parameters, program, Gates::default(), None).expect("sizes that fit");
    let tokens = uniform(1024, d).into_shape_with_order((1, 1024, d)).expect("as many");
    let tokens: Array3<f32> = tokens;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread");
    let mut engine = Engine::new(&memory);
    bencher.counter(ItemsCount::new(1024_usize)).bench_local(|| {
        let mut state = memory.initial_state(1);
        let work = Work::Online { read: &tokens, store: &tokens, probe: false };
        pool.install(|| engine.run(&mut state, work, &mut Discard, &mut |_| Ok(()))).expect("valid settings")
    });
}
