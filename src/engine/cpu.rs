//! The engine on the CPU: sequences, heads and groups of rows in parallel.

use std::ops::Range;
use std::sync::Mutex;
use std::time::Duration;

use ndarray::{Array2, s};
use rayon::prelude::*;

use super::block_inputs::BlockInputs;
use super::budget;
use super::driver::{BlockResults, BlockStep, Buffers, Executor, Waits};
use super::gradient::GradientScratch;
use super::outcome::{Phase, PhaseClock};
use super::plan::Plan;
use super::sequence_runner::SequenceRunner;
use super::tokens::BlockTokens;
use super::{Engine, Memory};
use crate::error::Result;
use crate::memory::State;
use crate::memory::graph::{Node, NodeKind};
use crate::memory::operators::{Work as OperatorBuffers, buffers};
use crate::real::Real;

/// Computes blocks on the threads of the current pool.
pub struct CpuExecutor<'m, T: Real> {
    memory: &'m Memory<T>,
    /// Scratch buffers that no task is using.
    scratch: Mutex<Vec<Scratch<T>>>,
}

impl<'m, T: Real> Engine<CpuExecutor<'m, T>> {
    /// Creates an engine that runs `memory` on the CPU.
    pub fn new(memory: &'m Memory<T>) -> Self {
        Self::driving(CpuExecutor { memory, scratch: Mutex::default() })
    }
}

impl<T: Real> Executor for CpuExecutor<'_, T> {
    type Number = T;
    type Prepared = Vec<BlockInputs<T>>;
    type Running = Vec<SequenceRunner<T>>;

    fn memory(&self) -> &Memory<T> {
        self.memory
    }

    fn divide(
        &mut self,
        plan: &mut Plan<'_, T>,
        state: &State<T>,
        _: Option<&Buffers<Self>>,
    ) -> Result<usize> {
        let group = self.memory.group(plan.sequences);
        let buffers = self.memory.buffer_bytes(plan, group, rayon::current_num_threads());
        budget::check(buffers + state.bytes() as u128)?;
        Ok(group)
    }

    fn allocate(&mut self, plan: &Plan<'_, T>, sequences: usize) -> Result<(Self::Prepared, Self::Running)> {
        let (memory, sizes) = (self.memory, plan.sizes());
        self.scratch.get_mut().expect("no task panics with it").clear();
        let prepared = (0..sequences).map(|_| BlockInputs::new(memory, sizes)).collect();
        let running = (0..sequences).map(|_| SequenceRunner::new(memory, sizes)).collect();
        Ok((prepared, running))
    }

    fn bytes(&self, buffers: Option<&Buffers<Self>>) -> usize {
        let prepared = buffers.iter().flat_map(|held| &held.prepared).map(BlockInputs::bytes).sum::<usize>();
        prepared + buffers.iter().flat_map(|held| &held.running).map(SequenceRunner::bytes).sum::<usize>()
    }

    fn load(
        &self,
        running: &mut Self::Running,
        state: &State<T>,
        sequences: Range<usize>,
    ) -> Result<Duration> {
        let runners = running.par_iter_mut().zip(sequences);
        runners.for_each(|(runner, sequence)| runner.load(self.memory, state, sequence));
        Ok(Duration::ZERO)
    }

    fn take(&self, prepared: &mut Self::Prepared, tokens: &mut [BlockTokens<T>]) -> Result<Duration> {
        for (inputs, tokens) in prepared.iter_mut().zip(tokens) {
            std::mem::swap(&mut inputs.tokens, tokens);
        }
        Ok(Duration::ZERO)
    }

    fn prepare(&self, step: &BlockStep<'_, T>, prepared: &mut Self::Prepared) -> Result<()> {
        let context = self.context(step);
        let active = &mut prepared[..step.sequences.len()];
        active.par_iter_mut().for_each(|inputs| inputs.prepare(&context, step.block));
        Ok(())
    }

    fn advance(
        &self,
        step: &BlockStep<'_, T>,
        prepared: &mut Self::Prepared,
        running: &mut Self::Running,
        read_ahead: &mut (dyn FnMut() -> Result<Duration> + Send),
    ) -> Result<Waits> {
        let context = self.context(step);
        let active = step.sequences.len();
        let mut compute = || {
            let sequences = running[..active].par_iter_mut().zip(&mut prepared[..active]);
            sequences.for_each(|(runner, inputs)| runner.run(&context, step.block, inputs));
        };
        if rayon::current_num_threads() == 1 {
            compute();
            return Ok(Waits { input: read_ahead()?, ..Waits::default() });
        }
        // A thread without work falls asleep and is slow to wake, so one that waits for tokens costs nothing.
        rayon::join(compute, read_ahead).1?;
        Ok(Waits::default())
    }

    fn results<'a>(
        &self,
        _: &BlockStep<'_, T>,
        _: &'a Self::Prepared,
        running: &'a Self::Running,
        i: usize,
    ) -> Result<BlockResults<'a, T>> {
        Ok(running[i].results())
    }

    fn save(
        &self,
        running: &Self::Running,
        state: &mut State<T>,
        sequences: Range<usize>,
    ) -> Result<Duration> {
        let mut states: Vec<_> =
            running[..sequences.len()].iter().map(|runner| (runner, Vec::new())).collect();
        for array in state.arrays.iter_mut().chain(&mut state.gradient_point) {
            let parts = array.slice_mut(s![sequences.clone(), .., ..]).into_outer_iter_mut();
            states.iter_mut().zip(parts).for_each(|((_, arrays), part)| arrays.push(part));
        }
        states.into_par_iter().for_each(|(runner, arrays)| runner.save(self.memory, arrays));
        Ok(Duration::ZERO)
    }
}

impl<T: Real> CpuExecutor<'_, T> {
    fn context<'a>(&'a self, step: &'a BlockStep<'_, T>) -> Context<'a, T> {
        Context { memory: self.memory, plan: step.plan, scratch: &self.scratch, clock: step.clock }
    }
}

/// Values that all tasks of a block share.
pub struct Context<'a, T: Real> {
    pub memory: &'a Memory<T>,
    pub plan: &'a Plan<'a, T>,
    scratch: &'a Mutex<Vec<Scratch<T>>>,
    pub clock: &'a PhaseClock,
}

impl<T: Real> Context<'_, T> {
    /// Lends scratch buffers for a group of rows. At most as many exist as tasks run at once.
    pub fn with_scratch(&self, phase: Phase, work: impl FnOnce(&mut Scratch<T>)) {
        let idle = self.scratch.lock().expect("no task panics with it").pop();
        let mut scratch = idle.unwrap_or_else(|| {
            Scratch::new(self.memory, self.plan.scratch_rows(), self.plan.store.is_some())
        });
        self.clock.timed(phase, || work(&mut scratch));
        self.scratch.lock().expect("no task panics with it").push(scratch);
    }
}

/// Buffers of one task for a group of rows, reused from call to call.
pub struct Scratch<T> {
    /// Rows that pass through operators: see [`reader`](super::reader).
    pub groups: Vec<Array2<T>>,
    /// Absent in a plain read.
    pub gradient: Option<GradientScratch<T>>,
    /// Buffers of each node of the model that is an operator.
    pub works: Vec<Option<OperatorBuffers<T>>>,
}

impl<T: Real> Scratch<T> {
    fn new(memory: &Memory<T>, rows: usize, storing: bool) -> Self {
        let graph = &memory.graph;
        Self {
            groups: memory.places.group_matrices(rows),
            gradient: storing.then(|| GradientScratch::new(graph, rows)),
            works: buffers(graph, rows, memory.chunk_size()),
        }
    }

    /// Returns the most numbers that such buffers hold.
    pub fn numbers(memory: &Memory<T>, rows: usize, storing: bool) -> usize {
        let (graph, chunk) = (&memory.graph, memory.chunk_size().min(rows));
        let work = |node: &Node| match node.kind {
            NodeKind::Linear(_) => 0,
            NodeKind::Operator(op) => {
                let shapes = op.operator::<T>().kept(rows, chunk, &graph.input_widths(node));
                shapes.iter().map(|(rows, cols)| rows * cols).sum::<usize>() + chunk * crate::packed::WIDTH
            }
        };
        let of_rows = memory.places.group_columns()
            + if storing { GradientScratch::<T>::numbers_per_row(graph) } else { 0 };
        rows * of_rows + graph.nodes.iter().map(work).sum::<usize>()
    }
}
