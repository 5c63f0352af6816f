//! Measures the rate of f32 matrix products with the gemm crate, the reference of `experiments/vs-pytorch`.
//!
//! ```sh
//! cargo run --release --example gemm_rate -- --threads 2 64 384
//! ```
//!
//! It multiplies (rows × d) by (d × d), one product after another on each thread. All threads run at once, each on
//! its own matrices, as the engine uses the crate. Operands stay in the cache as far as they fit, so the rate is an
//! upper reference that the engine does not exceed. It prints JSON with three results for each d: the median rate
//! of all threads together in GFLOP/s, the rate of every pass, and the largest error. The error is that of a
//! product against f64, relative to its largest magnitude.

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use clap::Parser;
use ndarray::{ArrayView2, ArrayViewMut2};
use nmem::matmul::matmul;
use serde::Serialize;

/// Rate of f32 matrix products (rows × d) · (d × d)
#[derive(Parser)]
struct Args {
    /// Number of threads, each with its own products
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    threads: u16,
    /// Rows of the left factor
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    rows: u32,
    /// Number of passes; the reported rate is their median
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    passes: u32,
    /// Widths d
    #[arg(required = true, value_parser = clap::value_parser!(u32).range(1..))]
    widths: Vec<u32>,
}

#[derive(Serialize)]
struct Rate {
    rows: usize,
    d: usize,
    threads: usize,
    gflops: f64,
    passes: Vec<f64>,
    error: f64,
}

/// One product's matrices, row by row.
struct Product {
    rows: usize,
    d: usize,
    left: Vec<f32>,
    right: Vec<f32>,
    out: Vec<f32>,
}

impl Product {
    fn new(rows: usize, d: usize) -> Self {
        // Any values will do if none is subnormal: multiples of the golden ratio, wrapped to ±0.5.
        let fill = |n: usize| (1..=n).map(|i| ((i as f64 * 0.618_033_988_75).fract() - 0.5) as f32).collect();
        Self { rows, d, left: fill(rows * d), right: fill(d * d), out: vec![f32::NAN; rows * d] }
    }

    fn run(&mut self) {
        let (m, d) = (self.rows, self.d);
        let left = ArrayView2::from_shape((m, d), &self.left).expect("m · d numbers");
        let right = ArrayView2::from_shape((d, d), &self.right).expect("d · d numbers");
        matmul(ArrayViewMut2::from_shape((m, d), &mut self.out).expect("m · d numbers"), left, right);
        black_box(&mut self.out);
    }

    /// Returns the largest error of the first and the last row against sums in f64.
    fn error(&self) -> f64 {
        let (mut worst, mut largest) = (0.0_f64, 0.0_f64);
        for row in [0, self.rows - 1] {
            for column in 0..self.d {
                let terms = (0..self.d).map(|k| {
                    f64::from(self.left[row * self.d + k]) * f64::from(self.right[k * self.d + column])
                });
                let expected: f64 = terms.sum();
                let difference = (f64::from(self.out[row * self.d + column]) - expected).abs();
                // `max` alone would ignore a NaN.
                worst = if difference.is_nan() { f64::INFINITY } else { worst.max(difference) };
                largest = largest.max(expected.abs());
            }
        }
        worst / largest
    }
}

fn main() {
    let args = Args::parse();
    let rates: Vec<Rate> = args.widths.iter().map(|&d| measure(&args, d as usize)).collect();
    println!("{}", serde_json::to_string(&rates).expect("only numbers and names"));
}

fn measure(args: &Args, d: usize) -> Rate {
    let (rows, threads) = (args.rows as usize, usize::from(args.threads));
    let flop = 2.0 * (rows * d * d) as f64;
    let mut probe = Product::new(rows, d);
    // Runs twice, because the first run touches the memory.
    probe.run();
    let start = Instant::now();
    probe.run();
    // Passes of some 20 ms are long compared with a barrier and short compared with a whole measurement.
    let repeats = 20_000_000 / start.elapsed().as_nanos().max(1) + 1;
    let repeats = u32::try_from(repeats).expect("at most 20 million and one");
    let barrier = Barrier::new(threads);
    let spans: Vec<Vec<(Instant, Instant)>> = thread::scope(|scope| {
        let timed = || {
            let mut product = Product::new(rows, d);
            product.run();
            let pass = |_| {
                barrier.wait();
                let start = Instant::now();
                (0..repeats).for_each(|_| product.run());
                (start, Instant::now())
            };
            (0..args.passes).map(pass).collect()
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(timed)).collect();
        running.into_iter().map(|thread| thread.join().expect("products do not panic")).collect()
    });
    let done = flop * f64::from(repeats) * threads as f64;
    let rate = |pass: usize| {
        let start = spans.iter().map(|thread| thread[pass].0).min().expect("at least one thread");
        let end = spans.iter().map(|thread| thread[pass].1).max().expect("at least one thread");
        done / (end - start).as_secs_f64() / 1e9
    };
    let passes: Vec<f64> = (0..args.passes as usize).map(rate).collect();
    Rate { rows, d, threads, gflops: median(&passes), passes, error: probe.error() }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}
