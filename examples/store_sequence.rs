//! Stores a sequence in a memory with random parameters and prints two numbers for each chunk and head.
//!
//! ```sh
//! cargo run --release --example store_sequence -- tokens.npy --chunk-size 16
//! ```
//!
//! The sequence is a `.npy` file (tokens, dim) or (sequences, tokens, dim), or 128 generated tokens of width 16 if
//! none is given. `loss` is the chunk's loss ℓ at W, before the memory knows it. `norm` is ‖U‖ after the chunk is
//! stored: the norm of everything that the memory retains.

use std::path::PathBuf;

use clap::Parser;
use ndarray::{Array3, ArrayView2};
use nmem::engine::{Engine, Memory, Sink, Work};
use nmem::io::NpySequences;
use nmem::memory::parameters::{Init, random_tensors};
use nmem::memory::{Dimensions, Gates, Parameters, Program};
use nmem::metrics::ChunkMetrics;
use nmem::real::ElementType;
use nmem::sequence::Sequences;

/// Stores a sequence in a memory with random parameters
#[derive(Parser)]
struct Arguments {
    /// Sequence file (.npy); generated tokens if absent
    file: Option<PathBuf>,
    /// Tokens per chunk
    #[arg(long, default_value_t = 16)]
    chunk_size: usize,
    /// Seed of the random parameters
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Prints metrics as they come.
struct Print;

impl Sink<f32> for Print {
    fn metrics(&mut self, rows: &[ChunkMetrics]) -> nmem::Result<()> {
        for row in rows {
            let ChunkMetrics { sequence, chunk, head, loss, update_norm, .. } = row;
            println!("{sequence:>8} {chunk:>8} {head:>4} {loss:>12.5} {update_norm:>12.5}");
        }
        Ok(())
    }

    fn retrieved(&mut self, _: usize, _: usize, _: ArrayView2<f32>) -> nmem::Result<()> {
        Ok(())
    }

    fn sequence_done(&mut self, _: usize) -> nmem::Result<()> {
        Ok(())
    }
}

fn main() -> anyhow::Result<()> {
    let Arguments { file, chunk_size, seed } = Arguments::parse();
    let tokens: Box<dyn Sequences<f32>> = match file {
        Some(path) => Box::new(NpySequences::open(path, ElementType::F32, false, &mut |_| Ok(()))?),
        None => Box::new(Array3::from_shape_fn((1, 128, 16), |(_, t, i)| ((3 * t + 5 * i) as f32).sin())),
    };
    let shape = tokens.shape();
    let dimensions =
        Dimensions { dim: shape.dim, heads: 1, dim_head: shape.dim, pre_norm: true, post_norm: true };
    let program = Program::titans_0_0_17(chunk_size);
    let random = random_tensors(&dimensions, &program, Init::Xavier, seed);
    let parameters = Parameters::collect(dimensions, &program, |name| {
        let found = random.iter().find(|(of, _)| of == name);
        found.expect("random parameters of every name").1.clone()
    });
    let memory = Memory::new(parameters, program, Gates::default(), None)?;
    let mut state = memory.initial_state(shape.sequences);

    println!("{:>8} {:>8} {:>4} {:>12} {:>12}", "sequence", "chunk", "head", "loss", "norm");
    let work = Work::Store { sequences: &*tokens, probe: false };
    let outcome = Engine::new(&memory).run(&mut state, work, &mut Print, &mut |_| Ok(()))?;
    if let Some(divergence) = outcome.divergence {
        println!("diverged: {divergence}");
    }
    Ok(())
}
