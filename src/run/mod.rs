//! One run, from a checked configuration to a published directory of results: load, run the engine, write, draw.
//!
//! [`execute`] does all of it once. A sweep uses the parts. It opens [`ResolvedInputs`] once for all runs, and gives each
//! [`Run`] its threads and, if files are kept, a directory.

mod checkpoint;
mod compute;
mod files;
mod gradients;
mod identity;
mod inputs;
mod report;
mod statistics;
mod stop;
mod warnings;

use std::path::Path;
use std::time::{Duration, Instant};

use rayon::ThreadPool;
use serde::{Deserialize, Serialize};

use crate::condition::Condition;
use crate::config::{Command, Config, MemorySource, Mode};
use crate::cuda::{Device, DeviceChoice, OpenDevice};
use crate::engine::Outcome;
use crate::error::{Error, Result};
use crate::io::labels::Labels;
use crate::memory::State;
use crate::peak::PeakMemory;
use crate::plot;
use crate::real::{ElementType, Real};
use crate::recall::RecallReport;
use crate::storage::{self, OutFile, ResultsDirectory};
pub(crate) use checkpoint::SavedState;
use checkpoint::{Checkpoint, Progress, Segments};
pub use compute::start_threads;
use compute::{Computed, median};
use files::Files;
pub use gradients::{GradientArray, GradientReport, Request as GradientRequest, gradients};
pub(crate) use identity::write_json;
pub use identity::{Build, RunIdentity, changed_input, hexadecimal, read_json};
use inputs::Loaded;
pub use inputs::{InputCache, ResolvedInputs};
pub use report::{InputFile, RETRIEVED_NORM, Report, Resolved, WallSeconds};
pub use statistics::{RunStatistics, UNSTABLE_RATIO};
use stop::StopRule;
pub use stop::stop_names;
use warnings::{warning_of_instability, warnings_after, warnings_before};

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
/// existing directory. `preempted` returns whether the run should save its state and end, if it can: a store on the CPU,
/// without retention and repeats.
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
    let (cpu, note) = (OpenDevice::default(), cpu_instead(config, device, &inputs));
    let device = if note.is_some() { &cpu } else { device };
    let resumable = config.mode == Mode::Store
        && device.gpu().is_none()
        && config.retention.is_none()
        && config.repeat == 0;
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
        note,
        stop_when: None,
        checkpoint: checkpoint.as_ref().map(CheckpointOf),
    };
    // Once everything is stored, the signal leaves time to write the results, but none to draw them.
    let mut observe = |event| match observe(event) {
        Err(Error::Interrupted)
            if matches!(event, RunEvent::Writing) && checkpoint.is_some() && preempted() =>
        {
            Ok(())
        }
        observed => observed,
    };
    let output = run.execute(&inputs, Some((directory.path(), Keep::All)), &mut observe);
    let output = output.map_err(|error| directory.explain(error))?;
    inputs.check_unchanged(true)?;
    observe(RunEvent::Writing)?;
    directory.publish()?;
    checkpoint.map_or(Ok(()), |checkpoint| checkpoint.remove())?;
    Ok(output)
}

/// Returns a note if a run leaves the GPU that `auto` has chosen, before the program of the memory was known.
fn cpu_instead(config: &Config, device: &OpenDevice, inputs: &ResolvedInputs) -> Option<String> {
    let chosen = config.device == DeviceChoice::Auto && device.gpu().is_some();
    let reason = inputs.program.needs_cpu().filter(|_| chosen)?;
    Some(format!("--device auto: cpu, because {reason}"))
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
    /// metrics.csv, run.json and, where asked for, retention.csv and spectrum.csv.
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
        if let Some(note) = cpu_instead(self.config, self.device, inputs) {
            let cpu = OpenDevice::default();
            let run =
                Run { device: &cpu, note: Some(note), command_line: self.command_line.clone(), ..*self };
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
        let segments = Segments::<T>::new(&*inputs.data, &memory);
        let fits = |progress: &Progress, start: &_, saved: &_| segments.fits(progress, start, saved);
        let mut progress =
            checkpoint.map_or(Ok(Progress::default()), |checkpoint| checkpoint.resume(&mut state, fits))?;
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
        if let Some(from) = checkpoint.and_then(Checkpoint::found) {
            observe(RunEvent::Computed(segments.stored(&progress) as u64))?;
            files.resume(from, progress.sequence)?;
        }
        let Computed { outcome, engine_all, engine_phases, engine_bytes, products, waited, threads } =
            self.compute(inputs, &memory, &mut state, &mut files, &mut peak, &mut progress, observe)?;
        if let Some((checkpoint, (directory, _))) = checkpoint.zip(directory)
            && !segments.is_done(&progress)
        {
            files.finish(true, config.cue)?;
            let done = segments.stored(&progress);
            let save = |path: &Path| file.save(path, Some(&state), &inputs.program, inputs.gates);
            let checkpoint = checkpoint.save(directory, &progress, save)?;
            return Err(Error::Preempted { checkpoint, done, all: tokens, unit: "tokens" });
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
        // A read whose recall was lost has no figure.
        let mut any = config.plots && (config.mode != Mode::Read || recall.is_some());
        if any && checkpoint.is_some_and(Checkpoint::is_preempted) {
            warnings.push("figures not drawn after SIGTERM; nmem plot draws them".to_owned());
            any = false;
        }
        if let Some((directory, _)) = directory.filter(|_| any) {
            let labels = inputs.labels.as_ref().map(|labels| labels.shifted(first_token as u64));
            warnings.extend(draw(
                directory,
                config,
                &self.command_line,
                labels.as_ref(),
                recall.as_ref(),
                &mut peak,
                observe,
            )?);
        }
        let plots = drawing.elapsed();
        peak.sample_now();

        // A memory that is lost has stored nothing.
        let life_tokens = if outcome.divergence.is_some() { first_token } else { state.stored.tokens };
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
        let (report, statistics) = self.report::<T>(inputs, life_tokens, threads_used, results);
        if let Some((directory, _)) = directory {
            write_json(&directory.join("run.json"), &report)?;
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

    fn report<T: Real>(
        &self,
        inputs: &ResolvedInputs,
        life_tokens: usize,
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
            life_tokens: (config.mode != Mode::Read).then_some(life_tokens),
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

/// Draws the figures from metrics.csv, retention.csv, spectrum.csv and recall.csv. Returns notes about anything they omit.
fn draw(
    directory: &Path,
    config: &Config,
    command_line: &[String],
    labels: Option<&Labels>,
    recall: Option<&RecallReport>,
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
    let mut drawn = match config.mode {
        Mode::Read => plot::Figures::default(),
        Mode::Store | Mode::Online => plot::timelines(&directory.join("metrics.csv"), &request, &mut tick)?.0,
    };
    if config.retention.is_some() {
        let retention = plot::CsvSource::find(&directory.join("retention.csv"), None)?;
        drawn.figures.extend(plot::draw(&[retention], &request, &mut tick)?.figures);
    }
    if config.probes.spectrum.is_some() {
        let spectrum = plot::CsvSource::find(&directory.join("spectrum.csv"), None)?;
        drawn.figures.extend(plot::draw(&[spectrum], &request, &mut tick)?.figures);
    }
    if let Some(recall) = recall {
        let mut source = plot::CsvSource::find(&directory.join("recall.csv"), None)?;
        // run.json, which has these, is written last.
        source.run = plot::Run { chance: recall.chance, top_k: Some(recall.top_k), ..plot::Run::default() };
        drawn.figures.extend(plot::draw(&[source], &request, &mut tick)?.figures);
    }
    for file in drawn.files(&plots, &config.figure_format) {
        let (path, bytes) = file?;
        OutFile::write_new(&path, &bytes)?;
    }
    Ok(drawn.notes)
}
