//! The engine's part of a run: its threads, its parts, and its timings.

use std::time::{Duration, Instant};

use rayon::ThreadPool;

use super::checkpoint::{Checkpoint, OfSegment, Part, Progress, Segments};
use super::files::{Files, Stage};
use super::inputs::ResolvedInputs;
use super::{CheckpointOf, Observer, Run, RunEvent};
use crate::cuda::OpenDevice;
use crate::engine::{
    CpuExecutor, CudaExecutor, Discard, Engine, Memory, Outcome, Phases, Probes, Sink, Work,
};
use crate::error::{Error, Result};
use crate::memory::State;
use crate::peak::PeakMemory;
use crate::real::Real;
use crate::recall::Repeated;

/// Result of the engine for one run.
pub(super) struct Computed {
    pub outcome: Outcome,
    /// Seconds of each engine run.
    pub engine_all: Vec<f64>,
    pub engine_phases: Phases,
    pub engine_bytes: usize,
    pub products: Option<String>,
    pub waited: Duration,
    /// Number of threads in the pool.
    pub threads: usize,
}

impl Run<'_> {
    /// Runs the engine once, then `repeat` more times for timing. A run with a checkpoint starts and ends at `progress`.
    #[expect(clippy::too_many_arguments, reason = "the parts of one run")]
    pub(super) fn compute<T: Real>(
        &self,
        inputs: &ResolvedInputs,
        memory: &Memory<T>,
        state: &mut State<T>,
        files: &mut Files<T>,
        peak: &mut PeakMemory,
        progress: &mut Progress,
        observe: Observer,
    ) -> Result<Computed> {
        let repeat = self.config.repeat;
        let checkpoint = self.checkpoint.map(|CheckpointOf(checkpoint)| checkpoint);
        let mut tick = |tokens: usize| {
            peak.sample();
            match observe(RunEvent::Computed(tokens as u64)) {
                // The segment in progress is finished, so that the state can be saved.
                Err(Error::Interrupted) if checkpoint.is_some_and(Checkpoint::is_preempted) => Ok(()),
                done => done,
            }
        };
        let queries = Repeated { queries: &*inputs.data, times: inputs.repeats(self.config) };
        let work = inputs.work(self.config, &queries);
        let own;
        let pool = if let Some(pool) = self.pool {
            pool
        } else {
            own = start_threads(self.threads_used(memory, inputs))?;
            &own
        };
        let waiting = Instant::now();
        let _turn = self.device.turn();
        let waited = waiting.elapsed();
        let mut engine = AnyEngine::new(memory, (self.config.retention, self.config.probes), self.device)?;
        let before = (repeat > 0).then(|| state.clone());
        let mut run = |state: &mut State<T>, work: Work<'_, T>, sink: &mut dyn Sink<T>| {
            pool.install(|| engine.run(state, work, sink, &mut tick))
        };
        let outcome = if let Some(checkpoint) = checkpoint {
            files.stage = Stage::Store;
            let run = |state: &mut State<T>, part: &Part<'_, T>, sink: &mut OfSegment<'_, '_, T>| {
                run(state, Work::Store { sequences: part, probe: self.config.probe }, sink)
            };
            Segments::new(&*inputs.data, memory).run(progress, checkpoint, state, files, run)?
        } else {
            until_stopped(&work, files, |part, files| run(state, part, files))?
        };
        let mut engine_all = vec![outcome.computing.as_secs_f64()];
        let mut engine_phases = outcome.phases;
        for mut state in before.into_iter().flat_map(|before| std::iter::repeat_n(before, repeat)) {
            let mut outcome = run(&mut state, work[0], &mut Discard)?;
            for &part in &work[1..] {
                outcome = outcome.then_read(run(&mut state, part, &mut Discard)?);
            }
            engine_all.push(outcome.computing.as_secs_f64());
            engine_phases = outcome.phases;
        }
        let engine_bytes = memory.bytes() + state.bytes() + engine.bytes();
        let products = engine.products();
        let threads = pool.current_num_threads();
        Ok(Computed { outcome, engine_all, engine_phases, engine_bytes, products, waited, threads })
    }

    /// Returns the number of threads to use. A thread without a task would slow down the others by looking for one.
    pub(super) fn threads_used<T: Real>(&self, memory: &Memory<T>, inputs: &ResolvedInputs) -> usize {
        if self.device.gpu().is_some() {
            return 1;
        }
        self.threads.min(memory.tasks(inputs.data.dims().sequences)).max(1)
    }
}

/// Runs the parts of a run one after another, until one diverges or the stop rule has ended every sequence. `run` runs a part.
fn until_stopped<T: Real>(
    work: &[Work<'_, T>],
    files: &mut Files<T>,
    mut run: impl FnMut(Work<'_, T>, &mut Files<T>) -> Result<Outcome>,
) -> Result<Outcome> {
    let begin = Instant::now();
    let mut outcome = None;
    for &part in work {
        files.stage = match part {
            Work::Store { .. } => Stage::Store,
            Work::Read(_) => Stage::Reads,
            Work::Online { .. } => Stage::Both,
        };
        let of_part = match (run(part, files), &files.stop) {
            // The sink has ended the engine.
            (Err(Error::Interrupted), Some(stop)) if stop.is_everywhere() => {
                stop.left().try_for_each(|sequence| files.sequence_done(sequence))?;
                outcome = Some(Outcome { computing: begin.elapsed(), ..Outcome::default() });
                break;
            }
            (of_part, _) => of_part?,
        };
        let whole = match outcome {
            None => of_part,
            Some(before) => Outcome::then_read(before, of_part),
        };
        let diverged = whole.divergence.is_some();
        outcome = Some(whole);
        if diverged {
            break;
        }
    }
    let outcome = outcome.expect("a run has a part");
    Ok(match &files.stop {
        Some(stop) if stop.place().is_some() => {
            Outcome { rows: stop.row_count(), retained: [0.0; 2], unstored: [0.0; 2], ..outcome }
        }
        _ => outcome,
    })
}

/// The CPU's engine or the GPU's.
enum AnyEngine<'a, T: Real> {
    Cpu(Box<Engine<CpuExecutor<'a, T>>>),
    Cuda(Box<Engine<CudaExecutor<'a, T>>>),
}

impl<'a, T: Real> AnyEngine<'a, T> {
    fn new(
        memory: &'a Memory<T>,
        (retention, probes): (Option<usize>, Probes),
        device: &'a OpenDevice,
    ) -> Result<Self> {
        Ok(match device.gpu() {
            None => {
                probes.check(memory)?;
                Self::Cpu(Box::new(Engine::new(memory).with_retention(retention).with_probes(probes)))
            }
            Some(gpu) => Self::Cuda(Box::new(Engine::on_gpu(memory, gpu)?)),
        })
    }

    fn run(
        &mut self,
        state: &mut State<T>,
        work: Work<'_, T>,
        sink: &mut dyn Sink<T>,
        tick: &mut (dyn FnMut(usize) -> Result<()> + Send),
    ) -> Result<Outcome> {
        match self {
            Self::Cpu(engine) => engine.run(state, work, sink, tick),
            Self::Cuda(engine) => engine.run(state, work, sink, tick),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Cpu(engine) => engine.bytes(),
            Self::Cuda(engine) => engine.bytes(),
        }
    }

    fn products(&self) -> Option<String> {
        match self {
            Self::Cpu(_) => None,
            Self::Cuda(engine) => engine.products(),
        }
    }
}

/// Starts a pool of `threads` threads. Halves the number until the system allows it, because results do not depend on it.
pub fn start_threads(threads: usize) -> Result<ThreadPool> {
    let mut fewer = threads.max(1);
    loop {
        match rayon::ThreadPoolBuilder::new().num_threads(fewer).build() {
            Ok(pool) => return Ok(pool),
            Err(error) if fewer == 1 => {
                return Err(Error::rejected("--threads", format!("no thread can be started ({error})")));
            }
            Err(_) => fewer /= 2,
        }
    }
}

/// Median of timings; for an even number of them the mean of the middle two.
pub(super) fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_the_middle_two() {
        for (seconds, expected) in
            [(&[3.0][..], 3.0), (&[9.0, 1.0, 2.0], 2.0), (&[4.0, 1.0, 2.0, 100.0], 3.0)]
        {
            assert!((median(seconds) - expected).abs() < f64::EPSILON, "{seconds:?}");
        }
    }
}
