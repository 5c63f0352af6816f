//! Runs one linear scan and compares it with the plain loop.
//!
//! ```sh
//! cargo run --release --example run_scan -- --steps 100000 --channels 4
//! ```
//!
//! The scan is x_t = a_t x_{t−1} + b_t on `[1, steps, channels]`, with one gate per step between 0.9 and 1.

use std::time::Instant;

use clap::Parser;
use ndarray::{Array2, Array3};
use nmem::scan::linear::{Algorithm, Gates, Layout, Recurrence, Shape, scan};

/// Runs one linear scan and compares it with the plain loop
#[derive(Parser)]
struct Arguments {
    /// Number of steps
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Number of channels
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    channels: u32,
}

fn main() {
    let Arguments { steps, channels } = Arguments::parse();
    let shape = Shape { batch: 1, steps: steps as usize, channels: channels as usize };
    let gates = Array2::from_shape_fn((1, shape.steps), |(_, t)| 0.95 + 0.05 * (t as f32).sin());
    let inputs =
        Array3::from_shape_fn((1, shape.steps, shape.channels), |(_, t, j)| ((t + 7 * j) as f32).cos());
    let recurrence = Recurrence {
        layout: Layout::StepsChannels,
        gates: Gates::Step(gates.view()),
        inputs: inputs.view(),
        initial: None,
    };

    let mut states = Array3::zeros(inputs.dim());
    let start = Instant::now();
    scan(&recurrence, Algorithm::Auto, states.view_mut());
    let elapsed = start.elapsed();

    let (mut error, mut largest) = (0.0_f64, 0.0_f64);
    for j in 0..shape.channels {
        let mut x = 0.0_f64;
        for t in 0..shape.steps {
            x = f64::from(gates[[0, t]]) * x + f64::from(inputs[[0, t, j]]);
            let difference = (f64::from(states[[0, t, j]]) - x).abs();
            assert!(difference.is_finite(), "step {t}, channel {j} is not finite");
            error = error.max(difference);
            largest = largest.max(x.abs());
        }
    }
    let algorithm = Algorithm::Auto.chosen(shape, recurrence.layout);
    println!("{steps} steps × {channels} channels with {algorithm:?} in {elapsed:.1?}");
    println!("largest error against the loop: {:.1e} of the largest state", error / largest);
    // Gates forget rounding errors of f32 within some hundred steps.
    assert!(error <= 1e-5 * largest, "the scan does not agree with the loop");
}
