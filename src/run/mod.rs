//! One run, from a checked configuration to a published directory of results: load, run the engine, write, draw.
//!
//! [`execute`] does all of it once. A sweep uses the parts. It opens [`ResolvedInputs`] once for all runs, and gives each
//! [`Run`] its threads and, if files are kept, a directory.

mod checkpoint;
mod files;
mod gradients;
mod identity;
mod inputs;
mod report;
mod statistics;
mod stop;

use std::path::Path;
use std::time::{Duration, Instant};

use ndarray::ArrayView2;
use rayon::ThreadPool;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::config::{Command, Config, MemorySource, Mode};
use crate::cuda::{Device, DeviceChoice, OpenDevice};
use crate::engine::{
    CpuExecutor, CudaExecutor, Discard, Engine, Memory, Outcome, Phases, Probes, Sink, Work,
};
use crate::error::{Error, Result};
use crate::io::labels::{Labels, OutOfRangeLabels};
use crate::memory::program::Reads;
use crate::memory::{Gate, Program, State};
use crate::metrics::{ChunkMetrics, read_metrics};
use crate::peak::PeakMemory;
use crate::plot;
use crate::real::{ElementType, Real};
use crate::recall::{RecallReport, Repeated};
use crate::sequence::Sequences;
use crate::storage::{self, OutFile, ResultsDirectory};
use checkpoint::{Checkpoint, Pace, Part};
use files::{Files, Stage};
pub use gradients::{GradientArray, GradientReport, Request as GradientRequest, gradients};
pub use identity::{Build, RunIdentity, changed_input, hexadecimal, read_json};
use inputs::Loaded;
pub use inputs::{InputCache, ResolvedInputs};
pub use report::{InputFile, RETRIEVED_NORM, Report, Resolved, WallSeconds};
pub use statistics::{RunStatistics, UNSTABLE_RATIO};
use stop::StopRule;
pub use stop::stop_names;

/// Progress event of a run. If the observer returns an error, the run stops and leaves nothing behind.
#[derive(Clone, Copy, Debug)]
pub enum RunEvent {
    /// A number of input bytes has been read.
    Loaded(u64),
    /// The engine starts. The number of tokens includes all sequences and repeats.
    Starting(u64),
    /// A number of tokens is done.
    Computed(u64),
    /// Results are being written and drawn. Reported several times.
    Writing,
}

/// Callback for every [`RunEvent`].
pub type Observer<'a> = &'a mut (dyn FnMut(RunEvent) -> Result<()> + Send);

/// Returns the commit of this build, with "-modified" if the tree was not clean.
pub fn commit() -> Option<&'static str> {
    let describe = git_version::git_version!(
        args = ["--always", "--dirty=-modified", "--abbrev=40", "--exclude=*"],
        fallback = ""
    );
    (!describe.is_empty()).then_some(describe)
}

/// Runs `config` on `device`, the opened device that it names, and publishes the results. `replace` allows replacing an
/// existing directory. `preempted` returns whether the run should save its state and end, if it can: a store of one sequence
/// on the CPU, without retention and repeats.
///
/// # Errors
/// Any failure that keeps the run from its results. Nothing is left behind then, except the state of a preempted run. A
/// divergence is not an error: it is published and reported.
pub fn execute(
    command: Command,
    config: &Config,
    device: &OpenDevice,
    command_line: Vec<String>,
    replace: bool,
    observe: Observer,
    preempted: &(dyn Fn() -> bool + Sync),
) -> Result<RunOutput> {
    let directory = ResultsDirectory::open(&config.out, replace)?;
    reject_inputs_inside(config, directory.target())?;
    let threads =
        config.threads.map_or_else(std::thread::available_parallelism, |n| Ok(n.try_into().expect("not 0")));
    let threads = threads.map_or(1, usize::from);
    let loading = Instant::now();
    let inputs = ResolvedInputs::open(config, replace, &InputCache::default(), observe)?;
    let opening = loading.elapsed().as_secs_f64();
    let resumable = config.mode == Mode::Store
        && device.gpu().is_none()
        && config.retention.is_none()
        && config.repeat == 0
        && inputs.data.dims().sequences == 1;
    let identity = RunIdentity::new(command, config, &inputs);
    let checkpoint = resumable.then(|| Checkpoint::open(directory.target(), &identity, replace, preempted));
    let checkpoint = checkpoint.transpose()?;
    let run = Run {
        command,
        config,
        device,
        command_line,
        threads,
        pool: None,
        unstable_ratio: UNSTABLE_RATIO,
        opening,
        note: None,
        stop_when: None,
        checkpoint: checkpoint.as_ref().map(CheckpointOf),
    };
    let output = run.execute(&inputs, Some((directory.path(), Keep::All)), observe);
    let output = output.map_err(|error| directory.explain(error))?;
    inputs.check_unchanged(true)?;
    observe(RunEvent::Writing)?;
    directory.publish()?;
    checkpoint.map_or(Ok(()), |checkpoint| checkpoint.remove())?;
    Ok(output)
}

/// Rejects a directory to replace that holds an input of this run.
fn reject_inputs_inside(config: &Config, target: &Path) -> Result<()> {
    let memory = match &config.memory {
        MemorySource::File { path, .. } => Some(path),
        MemorySource::Random { .. } => None,
    };
    let others = [&config.store_seq, &config.past, &config.labels, &config.file].map(Option::as_ref);
    let compared = config.recall.iter().flat_map(|recall| recall.paths().map(|(_, path)| path));
    let inputs = std::iter::once(&config.data).chain(others.into_iter().chain([memory]).flatten());
    let inputs = inputs.chain(compared);
    // A directory that does not exist holds nothing.
    let Ok(target) = std::fs::canonicalize(target) else { return Ok(()) };
    for input in inputs.filter_map(|input| std::fs::canonicalize(input).ok()) {
        if input.starts_with(&target) {
            let (target, input) = (target.display(), input.display());
            let reason = format!("{target} holds {input}, which this run reads; choose another directory");
            return Err(Error::rejected("--out", reason));
        }
    }
    Ok(())
}

/// Files of a run that are written.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// No files.
    None,
    /// metrics.csv, run.json and, with retention, retention.csv.
    #[default]
    Metrics,
    /// All files, including memory.safetensors and retrieved.npy.
    All,
}

/// Outcome of a run for its report.
struct Results {
    outcome: Outcome,
    products: Option<String>,
    statistics: RunStatistics,
    recall: Option<RecallReport>,
    warnings: Vec<String>,
    stopped: Option<String>,
    peak: PeakMemory,
    wall_s: WallSeconds,
}

/// Outcome of a run besides its files.
pub struct RunOutput {
    /// Content of run.json.
    pub report: Report,
    /// Statistics over the run's rows.
    pub statistics: RunStatistics,
    /// Bytes allocated by the engine for weights, state and buffers, including a GPU's. Excludes a scratch buffer per thread.
    pub engine_bytes: usize,
    /// Time spent waiting for other runs to finish with the GPU.
    pub waited: Duration,
}

/// A run that is ready to execute.
pub struct Run<'a> {
    /// Subcommand.
    pub command: Command,
    /// Configuration of the run.
    pub config: &'a Config,
    /// Device to compute on.
    pub device: &'a OpenDevice,
    /// Command line for the report.
    pub command_line: Vec<String>,
    /// Maximum number of threads.
    pub threads: usize,
    /// Pool that provides the threads. If `None`, the run starts its own.
    pub pool: Option<&'a ThreadPool>,
    /// See [`RunStatistics::new`].
    pub unstable_ratio: f64,
    /// Seconds spent on opening the inputs, for the report.
    pub opening: f64,
    /// Note about the device for the report's warnings.
    pub note: Option<String>,
    /// Condition on the metrics of a chunk that ends its sequence: see [`stop_names`].
    pub stop_when: Option<&'a Condition>,
    /// Place of the state that is saved if the run is preempted.
    pub checkpoint: Option<CheckpointOf<'a>>,
}

/// Place of the state of a preempted run, known to [`execute`] alone.
#[derive(Clone, Copy)]
pub struct CheckpointOf<'a>(&'a Checkpoint<'a>);

impl Run<'_> {
    /// Executes the run and writes the files selected by [`Keep`] into `directory`.
    pub fn execute(
        &self,
        inputs: &ResolvedInputs,
        directory: Option<(&Path, Keep)>,
        observe: Observer,
    ) -> Result<RunOutput> {
        // `auto` was decided before the program of the memory was known.
        let needs_cpu = inputs.program.needs_cpu();
        if let (DeviceChoice::Auto, Some(_), Some(reason)) =
            (self.config.device, self.device.gpu(), needs_cpu)
        {
            let cpu = OpenDevice::default();
            let note = Some(format!("--device auto: cpu, because {reason}"));
            let run = Run { device: &cpu, note, command_line: self.command_line.clone(), ..*self };
            return run.execute(inputs, directory, observe);
        }
        match self.config.dtype {
            ElementType::F32 => self.in_type::<f32>(inputs, directory, observe),
            ElementType::F64 => self.in_type::<f64>(inputs, directory, observe),
        }
    }

    fn in_type<T: Real>(
        &self,
        inputs: &ResolvedInputs,
        directory: Option<(&Path, Keep)>,
        observe: Observer,
    ) -> Result<RunOutput> {
        let config = self.config;
        let mut peak = PeakMemory::default();
        let loading = Instant::now();
        let Loaded { file, memory, mut state } = inputs.load::<T>(config)?;
        let first_token = state.stored.tokens;
        let checkpoint = self.checkpoint.map(|CheckpointOf(checkpoint)| checkpoint);
        if let Some(saved) = checkpoint.map_or(Ok(None), Checkpoint::state)? {
            state = saved;
        }
        let stored = state.stored.tokens - first_token;
        let load = loading.elapsed();

        // From here on an interrupted run ends by itself, so that it removes what it has written.
        let tokens =
            inputs.data.dims().tokens.max(inputs.store().dims().tokens) * inputs.data.dims().sequences;
        observe(RunEvent::Starting((tokens as u64).saturating_mul(config.repeat as u64 + 1)))?;
        let weights = memory.weight_shapes().len();
        let sequences = inputs.data.dims().sequences;
        let stop = self.stop_when.map(|condition| StopRule::new(condition, sequences));
        let statistics = RunStatistics::new(self.unstable_ratio);
        let mut files = Files::create(directory, config, inputs, weights, statistics, stop)?;
        let mut rows = 0;
        if let Some(from) = checkpoint.and_then(Checkpoint::found) {
            observe(RunEvent::Computed(stored as u64))?;
            read_metrics(&from.join("metrics.csv"), T::TYPE, &mut |row| {
                rows += 1;
                files.metrics(&[row])
            })?;
        }
        let Computed { mut outcome, engine_all, engine_phases, engine_bytes, products, waited, threads } =
            self.compute(inputs, &memory, &mut state, &mut files, &mut peak, stored, observe)?;
        outcome.rows += rows;
        if let Some((checkpoint, (directory, _))) = checkpoint.filter(|of| of.is_preempted()).zip(directory)
            && outcome.divergence.is_none()
        {
            files.finish(true, config.cue)?;
            let stored = state.stored.tokens - first_token;
            let checkpoint = checkpoint
                .save(directory, |path| file.save(path, Some(&state), &inputs.program, inputs.gates))?;
            return Err(Error::Preempted { checkpoint, stored, tokens: inputs.data.dims().tokens });
        }
        observe(RunEvent::Writing)?;

        let writing = Instant::now();
        let stopped = files.stop.as_ref().and_then(StopRule::place);
        let whole = outcome.first_nonfinite().is_none() && stopped.is_none();
        let (statistics, recall) = files.finish(whole, config.cue)?;
        let directory = directory.filter(|(_, keep)| *keep > Keep::None);
        let all = directory.filter(|(_, keep)| *keep == Keep::All && config.mode != Mode::Read);
        if let Some((directory, _)) = all.filter(|_| outcome.divergence.is_none() && stopped.is_none()) {
            file.save(&directory.join("memory.safetensors"), Some(&state), &inputs.program, inputs.gates)?;
        }
        let write = outcome.output + writing.elapsed();

        let drawing = Instant::now();
        let mut warnings = match stopped {
            None => self.warnings(&outcome, inputs, &state, &statistics),
            Some(_) => warnings_before(inputs),
        };
        warnings.extend(self.note.clone());
        if let Some((directory, _)) = directory.filter(|_| config.plots) {
            let labels = inputs.labels.as_ref().map(|labels| labels.shifted(first_token as u64));
            warnings.extend(draw(
                directory,
                config,
                &self.command_line,
                labels.as_ref(),
                &mut peak,
                observe,
            )?);
        }
        let plots = drawing.elapsed();
        peak.sample_now();

        let results = Results {
            wall_s: WallSeconds {
                load: self.opening + (load + outcome.input).as_secs_f64(),
                engine: median(&engine_all),
                engine_all,
                engine_phases,
                write: write.as_secs_f64(),
                plots: plots.as_secs_f64(),
            },
            outcome,
            products,
            statistics,
            recall,
            warnings,
            stopped,
            peak,
        };
        let threads_used = self.threads_used(&memory, inputs).min(threads);
        let (report, statistics) = self.report(inputs, &state, threads_used, results);
        if let Some((directory, _)) = directory {
            let mut json = serde_json::to_string_pretty(&report).expect("text and numbers can be serialized");
            json.push('\n');
            OutFile::write_new(&directory.join("run.json"), json.as_bytes())?;
        }
        Ok(RunOutput { report, statistics, engine_bytes, waited })
    }

    fn warnings<T: Real>(
        &self,
        outcome: &Outcome,
        inputs: &ResolvedInputs,
        state: &State<T>,
        statistics: &RunStatistics,
    ) -> Vec<String> {
        let mode = self.config.mode;
        if mode == Mode::Read {
            return Vec::new();
        }
        let mut warnings = warnings_before(inputs);
        if outcome.divergence.is_none() {
            warnings.extend(warnings_after(outcome, &inputs.program, state, mode));
            warnings.extend(warning_of_instability(statistics, self.unstable_ratio));
        }
        warnings
    }

    /// Runs the engine once, then `repeat` more times for timing. The first `stored` tokens are in the state already.
    #[expect(clippy::too_many_arguments, reason = "the parts of one run")]
    fn compute<T: Real>(
        &self,
        inputs: &ResolvedInputs,
        memory: &Memory<T>,
        state: &mut State<T>,
        files: &mut Files<T>,
        peak: &mut PeakMemory,
        stored: usize,
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
            let run = |state: &mut State<T>, part: &Part<'_, T>, sink: &mut Unfinished<'_, '_, T>| {
                run(state, Work::Store { sequences: part, probe: self.config.probe }, sink)
            };
            in_segments(&*inputs.data, stored, checkpoint, state, files, run)?
        } else {
            let begin = Instant::now();
            let mut outcome = Outcome::default();
            for (place, &part) in work.iter().enumerate() {
                files.stage = match part {
                    Work::Store { .. } => Stage::Store,
                    Work::Read(_) => Stage::Reads,
                    Work::Online { .. } => Stage::Both,
                };
                let of_part = run(state, part, files);
                let of_part = match &files.stop {
                    // The sink has ended the engine.
                    Some(stop) if stop.is_everywhere() && matches!(of_part, Err(Error::Interrupted)) => {
                        stop.left().try_for_each(|sequence| files.sequence_done(sequence))?;
                        outcome = Outcome { computing: begin.elapsed(), ..Outcome::default() };
                        break;
                    }
                    _ => of_part?,
                };
                outcome = if place == 0 { of_part } else { outcome.then_read(of_part) };
                if outcome.divergence.is_some() {
                    break;
                }
            }
            outcome
        };
        let outcome = match &files.stop {
            Some(stop) if stop.place().is_some() => {
                Outcome { rows: stop.row_count(), retained: [0.0; 2], unstored: [0.0; 2], ..outcome }
            }
            _ => outcome,
        };
        let mut engine_all = vec![outcome.computing.as_secs_f64()];
        let mut engine_phases = outcome.phases;
        for mut state in before.into_iter().flat_map(|before| std::iter::repeat_n(before, repeat)) {
            let mut outcome = Outcome::default();
            for (place, &part) in work.iter().enumerate() {
                let of_part = run(&mut state, part, &mut Discard)?;
                outcome = if place == 0 { of_part } else { outcome.then_read(of_part) };
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
    fn threads_used<T: Real>(&self, memory: &Memory<T>, inputs: &ResolvedInputs) -> usize {
        if self.device.gpu().is_some() {
            return 1;
        }
        self.threads.min(memory.tasks(inputs.data.dims().sequences)).max(1)
    }

    fn report<T: Real>(
        &self,
        inputs: &ResolvedInputs,
        state: &State<T>,
        threads_used: usize,
        results: Results,
    ) -> (Report, RunStatistics) {
        let Results { outcome, products, statistics, recall, warnings, stopped, peak, wall_s } = results;
        let config = self.config;
        let shape = inputs.data.dims();
        let report = Report {
            nmem: env!("CARGO_PKG_VERSION"),
            commit: commit(),
            command: self.command,
            command_line: self.command_line.clone(),
            out: config.out.clone(),
            config: inputs.resolved(config),
            inputs: inputs.files.clone(),
            device: self.device.to_string(),
            products,
            software: self.device.gpu().and_then(Device::software),
            threads: self.threads,
            threads_used,
            dtype: T::TYPE,
            sequences: shape.sequences,
            tokens: shape.tokens,
            tokens_stored: (config.mode != Mode::Read).then_some(inputs.store().dims().tokens),
            rows: outcome.rows,
            life_tokens: (config.mode != Mode::Read).then_some(state.stored.tokens),
            summary: statistics
                .all()
                .columns()
                .chain(statistics.retrieved_norm().map(|norm| (RETRIEVED_NORM, norm)))
                .collect(),
            retained_ratio: outcome.retained_ratio(),
            unstored_ratio: outcome.unstored_ratio(),
            recall,
            stopped,
            memory_lost: outcome.divergence.is_some(),
            diverged: outcome.first_nonfinite().cloned(),
            warnings,
            peak_bytes: peak.resident(),
            peak_anon_bytes: peak.anonymous(),
            wall_s,
        };
        (report, statistics)
    }
}

/// Stores the tokens of one sequence from `stored` on in segments, until the run is preempted. `run` stores a segment.
fn in_segments<T: Real>(
    sequences: &dyn Sequences<T>,
    stored: usize,
    checkpoint: &Checkpoint,
    state: &mut State<T>,
    files: &mut Files<T>,
    mut run: impl FnMut(&mut State<T>, &Part<'_, T>, &mut Unfinished<'_, '_, T>) -> Result<Outcome>,
) -> Result<Outcome> {
    let (end, mut at, mut pace) = (sequences.shape().tokens, stored, Pace::new());
    let mut whole = Outcome::default();
    loop {
        let part = Part { whole: sequences, start: at, tokens: pace.tokens().min(end - at) };
        at += part.tokens;
        let begin = Instant::now();
        let outcome = run(state, &part, &mut Unfinished(files))?;
        pace.took(begin.elapsed());
        whole.divergence = outcome.divergence;
        whole.rows += outcome.rows;
        whole.computing += outcome.computing;
        whole.input += outcome.input;
        whole.output += outcome.output;
        whole.phases += outcome.phases;
        if at == end || whole.divergence.is_some() {
            files.sequence_done(0)?;
            return Ok(whole);
        }
        if checkpoint.is_preempted() {
            return Ok(whole);
        }
    }
}

/// Passes on the results of a segment, which is not the end of its sequence.
struct Unfinished<'f, 'a, T: Real>(&'f mut Files<'a, T>);

impl<T: Real> Sink<T> for Unfinished<'_, '_, T> {
    fn metrics(&mut self, rows: &[ChunkMetrics]) -> Result<()> {
        self.0.metrics(rows)
    }

    fn retrieved(&mut self, sequence: usize, start: usize, rows: ArrayView2<T>) -> Result<()> {
        self.0.retrieved(sequence, start, rows)
    }

    fn sequence_done(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
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
            None => Self::Cpu(Box::new(Engine::new(memory).with_retention(retention).with_probes(probes))),
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

/// Result of the engine for one run.
struct Computed {
    outcome: Outcome,
    /// Seconds of each engine run.
    engine_all: Vec<f64>,
    engine_phases: Phases,
    engine_bytes: usize,
    products: Option<String>,
    waited: Duration,
    /// Number of threads in the pool.
    threads: usize,
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

/// Draws the figures from metrics.csv and retention.csv. Returns notes about anything they omit.
fn draw(
    directory: &Path,
    config: &Config,
    command_line: &[String],
    labels: Option<&Labels>,
    peak: &mut PeakMemory,
    observe: Observer,
) -> Result<Vec<String>> {
    let plots = directory.join("plots");
    storage::create_directory(&plots)?;
    let mut tick = || {
        peak.sample_now();
        observe(RunEvent::Writing)
    };
    // run.json beside has the whole command line. Flags such as --threads change no byte of a figure.
    let origin = command_line.get(1).map(|command| format!("nmem {command}"));
    let request = plot::Request { labels: labels.cloned(), origin, ..plot::Request::default() };
    let mut drawn = plot::timelines(&directory.join("metrics.csv"), &request, &mut tick)?.0;
    if config.retention.is_some() {
        let retention = plot::CsvSource::find(&directory.join("retention.csv"), None)?;
        drawn.figures.extend(plot::draw(&[retention], &request, &mut tick)?.figures);
    }
    for file in drawn.files(&plots, &config.figure_format) {
        let (path, bytes) = file?;
        OutFile::write_new(&path, &bytes)?;
    }
    Ok(drawn.notes)
}

/// Returns warnings about a run's settings and inputs.
fn warnings_before(inputs: &ResolvedInputs) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Gate::Fixed(momentum) = inputs.gates.momentum
        && momentum > 1.0
    {
        warnings.push(format!(
            "momentum {momentum} is above 1: past surprise grows from chunk to chunk instead of fading"
        ));
    }
    let tokens = inputs.store().dims().tokens;
    if let Some(OutOfRangeLabels { positions, last }) =
        inputs.labels.as_ref().and_then(|labels| labels.beyond(tokens as u64))
    {
        warnings.push(format!(
            "labels of {positions} positions, up to {last}, are beyond the {tokens} tokens of the data"
        ));
    }
    warnings
}

/// Returns a warning if storing made the memory much worse, at some chunk or after the last one.
fn warning_of_instability(statistics: &RunStatistics, ratio: f64) -> Option<String> {
    let worse = format!("more than {ratio} times the loss at the weights of the gradients");
    let advice = "a smaller learning rate or momentum, or a larger decay, may help";
    if let Some(chunk) = statistics.first_unstable_chunk() {
        return Some(format!(
            "storing made the memory worse: loss_before of chunk {chunk} is {worse}; {advice}"
        ));
    }
    let mean =
        |name: &str| statistics.last().columns().find(|(column, _)| *column == name).map(|(_, of)| of.mean);
    let (after, loss) = mean("loss_after").zip(mean("loss"))?;
    let unstable = after.is_nan() || (loss >= 0.0 && after > ratio * loss);
    unstable
        .then(|| format!("storing made the memory worse: loss_after of the last chunk is {worse}; {advice}"))
}

fn warnings_after<T: Real>(
    outcome: &Outcome,
    program: &Program,
    state: &State<T>,
    mode: Mode,
) -> Vec<String> {
    let c = program.chunk_size();
    let stored = state.stored.tokens;
    let mut warnings = Vec::new();
    if let Some(chunk) = outcome.read_past_store.filter(|_| stored >= c) {
        let read = state.read.tokens - program.read_offset();
        warnings.push(format!(
            "{stored} tokens stored and {read} read so far: from chunk {chunk} on, reads used the last weights"
        ));
    }
    if outcome.rows == 0 {
        let kept = stored % c;
        warnings.push(match mode {
            _ if stored >= c => format!("no chunk completed: {kept} of the {c} tokens of a chunk"),
            Mode::Online => {
                let reads = match program.schedule.reads {
                    Reads::Behind | Reads::CompleteOrZeros => "all reads are zeros",
                    Reads::Complete => "reads used the initial weights",
                };
                format!("nothing stored yet, {reads}: {kept} of the {c} tokens of a chunk")
            }
            _ => format!("nothing stored yet: {kept} of the {c} tokens of a chunk"),
        });
    }
    warnings
}

/// Median of timings; for an even number of them the mean of the middle two.
fn median(seconds: &[f64]) -> f64 {
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
