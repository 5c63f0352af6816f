//! The engine runs the mathematics of [`memory`](crate::memory) in blocks of tokens, so that memory use is that
//! of the weights and one block. Groups of rows before and after the memory's weights run in parallel, and so
//! do columns of the weights. Results have the same bits for any number of threads, because the work of a task
//! depends on shapes only.
//!
//! `driver` divides sequences and tokens into blocks (`plan`), reads them and passes on results. An executor computes a
//! block: [`cuda`] on a GPU, `cpu` as follows. For each sequence, `block_inputs` norms and projects its tokens and takes all
//! [`gradient`]s up to the next refresh at once, since they are all at the same W. `sequence_runner` and `head` then take the
//! state through the block: layer by layer of the memory model, column [`panel`]s go through the chunks, read chunk i with
//! the weights of that moment, then advance the state by chunk i's surprise. `reader` evaluates the model's operators between
//! layers.
//!
//! # Example
//!
//! Store one sequence in a memory with random parameters:
//!
//! ```
//! use ndarray::Array3;
//! use nmem::engine::{Discard, Engine, Memory, Work};
//! use nmem::memory::{Dimensions, Gates, Parameters, Program, parameters};
//!
//! let program = Program::titans_0_0_17(4);
//! let dimensions = Dimensions { dim: 8, heads: 2, dim_head: 4, pre_norm: true, post_norm: true };
//! let random = parameters::random_tensors(&dimensions, &program, parameters::Init::Xavier, 1);
//! let parameters: Parameters<f32> = Parameters::collect(dimensions, &program, |name| {
//!     random.iter().find(|(of, _)| of == name).expect("all parameters are random").1.clone()
//! });
//! let memory = Memory::new(parameters, program, Gates::default(), None)?;
//!
//! // One sequence of 10 tokens: two complete chunks of 4, and 2 left-over tokens.
//! let tokens = Array3::from_shape_fn((1, 10, 8), |(_, t, i)| ((3 * t + i) as f32).sin());
//! let mut state = memory.initial_state(1);
//! let work = Work::Store { sequences: &tokens, probe: false };
//! let outcome = Engine::new(&memory).run(&mut state, work, &mut Discard, &mut |_| Ok(()))?;
//! assert_eq!(outcome.divergence, None);
//! assert_eq!(state.stored.chunks(4), 2);
//! assert_eq!(state.stored.left_over.dim(), (1, 2, 8));
//! # Ok::<(), nmem::Error>(())
//! ```

pub mod backward;
mod block_inputs;
pub mod budget;
mod cpu;
pub mod cuda;
mod driver;
pub mod gradient;
mod head;
mod memory;
mod outcome;
pub mod panel;
mod plan;
mod reader;
mod retention;
mod sequence_runner;
mod telemetry;
mod tokens;

use ndarray::ArrayView2;

use crate::error::Result;
use crate::metrics::{ChunkMetrics, Retained, Spectrum};
use crate::real::Real;
use crate::sequence::Sequences;
pub use cpu::CpuExecutor;
pub use cuda::CudaExecutor;
pub use driver::Engine;
pub use memory::Memory;
pub use outcome::{Divergence, Outcome, Phases};
pub use telemetry::Probes;

/// Work for a memory.
#[derive(Clone, Copy)]
pub enum Work<'a, T> {
    /// Reads every token with the current weights; the state does not change. Chunks count from the
    /// first query.
    Read(&'a dyn Sequences<T>),
    /// Stores sequences. `probe` computes `loss_before` and `loss_after`.
    Store {
        /// Sequences to store.
        sequences: &'a dyn Sequences<T>,
        /// Whether to also take ℓ at the weights that are read, before and after each chunk.
        probe: bool,
    },
    /// Reads while storing, with the weights that the [schedule](crate::memory::program::Reads) selects:
    /// `forward(read, store)` of the PyTorch module.
    Online {
        /// The queries.
        read: &'a dyn Sequences<T>,
        /// Sequences to store; often the same as the queries.
        store: &'a dyn Sequences<T>,
        /// Whether to also take ℓ at the weights that are read, before and after each chunk.
        probe: bool,
    },
}

/// Receiver of results while the run produces them.
pub trait Sink<T>: Send {
    /// Receives metrics rows of one sequence, by chunk and head. Sequences of a group take turns. After a
    /// divergence, rows of sequences that are never reported as done do not count.
    fn metrics(&mut self, rows: &[ChunkMetrics]) -> Result<()>;
    /// Receives retrieved rows (rows, dim), starting at token `start` of the given queries.
    fn retrieved(&mut self, sequence: usize, start: usize, rows: ArrayView2<T>) -> Result<()>;
    /// Receives losses of kept chunks in a run with retention, by sequence, then moment, chunk and head. Turns
    /// and divergences follow the rules of [`metrics`](Self::metrics).
    fn retained(&mut self, _rows: &[Retained]) -> Result<()> {
        Ok(())
    }
    /// Receives losses of chunks that the memory had not stored, in a run with retention: for each kept chunk but the first,
    /// under the memory before its block. Turns and divergences follow the rules of [`metrics`](Self::metrics).
    fn unstored(&mut self, _rows: &[Retained]) -> Result<()> {
        Ok(())
    }
    /// Receives singular values of updates in a run that probes them, by sequence, then chunk, head and weight. Turns and
    /// divergences follow the rules of [`metrics`](Self::metrics).
    fn spectra(&mut self, _spectra: &[Spectrum]) -> Result<()> {
        Ok(())
    }
    /// Marks a sequence as complete. The engine calls this in the order of sequences.
    fn sequence_done(&mut self, sequence: usize) -> Result<()>;
}

/// A sink that drops everything, for timing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Discard;

impl<T: Real> Sink<T> for Discard {
    fn metrics(&mut self, _: &[ChunkMetrics]) -> Result<()> {
        Ok(())
    }
    fn retrieved(&mut self, _: usize, _: usize, _: ArrayView2<T>) -> Result<()> {
        Ok(())
    }
    fn sequence_done(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
}
