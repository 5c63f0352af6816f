//! Measures numerical errors over long runs and many configurations: the numbers of docs/design/numerics.md.
//!
//! ```sh
//! cargo run --release --example long_run -- --tokens 10000000 --configurations 200
//! ```
//!
//! The first part runs one memory in f32 and in f64 over the same tokens and compares them after each power of
//! ten. The second part runs random configurations in both types against the oracle in plain loops.

#[path = "../tests/support/random.rs"]
mod random;
#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;

use clap::Parser;
use ndarray::{Array3, ArrayViewMut2};
use nmem::engine::{Discard, Engine, Memory, Work};
use nmem::memory::parameters::Init;
use nmem::memory::{Gate, Gates, State};
use nmem::real::Real;
use nmem::sequence::{Sequences, Shape};
use random::Case;
use support::{RandomMemory, run_through, uniform};

/// Compares f32 with f64 over many tokens, and random configurations with the oracle
#[derive(Parser)]
struct Args {
    /// Number of tokens of the longest run
    #[arg(long, default_value_t = 10_000_000)]
    tokens: usize,
    /// Number of random configurations
    #[arg(long, default_value_t = 200)]
    configurations: u64,
}

/// Width of tokens and of the memory's one head, and tokens per chunk.
const DIM: usize = 16;
const CHUNK: usize = 16;

/// The tokens `start ..` of an endless random sequence, uniform in ±1. Each number is a hash of its position.
struct HashedTokens {
    start: usize,
    tokens: usize,
}

impl<T: Real> Sequences<T> for HashedTokens {
    fn shape(&self) -> Shape {
        Shape { sequences: 1, tokens: self.tokens, dim: DIM }
    }

    fn read_rows(&self, _: usize, start: usize, mut out: ArrayViewMut2<T>) -> nmem::Result<()> {
        for ((row, column), x) in out.indexed_iter_mut() {
            // This is SplitMix64.
            let place = ((self.start + start + row) * DIM + column) as u64;
            let mut hash = place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let bits = (hash ^ (hash >> 31)) >> 40;
            *x = T::from_f64(bits as f64 / f64::from(1 << 23) - 1.0);
        }
        Ok(())
    }
}

/// A memory with its state.
struct RunningMemory<T: Real> {
    memory: Memory<T>,
    state: State<T>,
}

impl<T: Real> RunningMemory<T> {
    fn new(random: &RandomMemory) -> Self {
        let memory = random.memory::<T>();
        let state = memory.initial_state(1);
        Self { memory, state }
    }

    fn store(&mut self, sequences: &HashedTokens) {
        let work = Work::Store { sequences, probe: false };
        let outcome = Engine::new(&self.memory).run(&mut self.state, work, &mut Discard, &mut |_| Ok(()));
        assert_eq!(outcome.expect("nothing stops the run").divergence, None);
    }

    fn read(&mut self, queries: &Array3<f64>) -> Array3<f64> {
        let queries = queries.mapv(T::from_f64);
        run_through(&self.memory, &mut self.state, Work::Read(&queries), queries.dim())
            .retrieved
            .mapv(Real::to_f64)
    }
}

fn norm(of: &Array3<f64>) -> f64 {
    of.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// Returns ‖a − b‖ ÷ ‖b‖.
fn difference(a: &Array3<f64>, b: &Array3<f64>) -> f64 {
    norm(&(a - b)) / norm(b)
}

fn drift(name: &str, gates: Gates, tokens: usize) {
    let random = RandomMemory::new((DIM, 1, DIM), CHUNK, Init::Xavier, 1).gates(gates);
    let (mut single, mut double) = (RunningMemory::<f32>::new(&random), RunningMemory::<f64>::new(&random));
    let queries = uniform((1, 4 * CHUNK, DIM), 1.0, 2);
    println!("\n{name}\n{:>12} {:>10} {:>10} {:>10} {:>10}", "tokens", "U", "S", "reads", "norm of U");
    let mut stored = 0;
    for end in (2..).map(|power| 10_usize.pow(power)).take_while(|end| *end <= tokens) {
        let stretch = HashedTokens { start: stored, tokens: end - stored };
        single.store(&stretch);
        double.store(&stretch);
        stored = end;
        let wide = |of: &Array3<f32>| of.mapv(f64::from);
        let update = difference(&wide(&single.state.arrays[0]), &double.state.arrays[0]);
        let momentum = difference(&wide(&single.state.arrays[1]), &double.state.arrays[1]);
        let reads = difference(&single.read(&queries), &double.read(&queries));
        let size = norm(&double.state.arrays[0]);
        println!("{end:>12} {update:>10.1e} {momentum:>10.1e} {reads:>10.1e} {size:>10.3}");
    }
}

fn configurations(number: u64) {
    for (name, errors) in [
        ("f64", Case::errors::<f64> as fn(&Case) -> BTreeMap<&'static str, f64>),
        ("f32", Case::errors::<f32>),
    ] {
        let mut all = BTreeMap::<&str, Vec<f64>>::new();
        for seed in 0..number {
            for (group, error) in errors(&Case::new(seed)) {
                all.entry(group).or_default().push(error);
            }
        }
        println!(
            "\n{number} configurations in {name}, largest error of each relative to the largest magnitude"
        );
        println!("{:>10} {:>9} {:>9} {:>9} {:>9} {:>9}", "", "median", "90 %", "99 %", "largest", "seed");
        for (group, errors) in &mut all {
            let worst = (0..errors.len()).max_by(|&a, &b| errors[a].total_cmp(&errors[b])).unwrap_or(0);
            errors.sort_by(f64::total_cmp);
            let quantile = |percent: usize| errors[(errors.len() - 1) * percent / 100];
            print!("{group:>10}");
            [50, 90, 99, 100].map(quantile).iter().for_each(|error| print!(" {error:>9.1e}"));
            println!(" {worst:>9}");
        }
    }
}

fn main() {
    let Args { tokens, configurations: number } = Args::parse();
    let fixed = |learning_rate, momentum, decay| {
        let [learning_rate, momentum, decay] = [learning_rate, momentum, decay].map(Gate::Fixed);
        Gates { learning_rate, momentum, decay }
    };
    println!("f32 against f64: relative differences");
    drift("learned gates", Gates::default(), tokens);
    drift("learning rate 0.01, momentum 0.9, decay 0.001", fixed(0.01, 0.9, 0.001), tokens);
    drift("learning rate 0.0001, momentum 0, decay 0", fixed(1e-4, 0.0, 0.0), tokens);
    if number > 0 {
        configurations(number);
    }
}
