//! One run, from a checked configuration to a published folder of results: load, run the engine, write, draw.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ndarray::ArrayView2;
use serde::Serialize;

use crate::config::{Command, Config, MemorySource, Mode};
use crate::engine::{Discard, Divergence, Engine, Memory, Outcome, Phases, Sink, Work};
use crate::error::{Error, Result};
use crate::io::labels::Labels;
use crate::io::mapped::Mapped;
use crate::io::memory_file::MemoryFile;
use crate::io::{NpySequences, Progress, RetrievedWriter};
use crate::memory::parameters::Init;
use crate::memory::{Dimensions, Gates, State};
use crate::metrics::{ChunkMetrics, MetricsWriter, Spread, Summary};
use crate::peak::PeakMemory;
use crate::plot;
use crate::real::{ElementType, Real};
use crate::record::ResultsFolder;

/// What a run is doing, told as it goes on. Returning an error stops it and leaves nothing behind.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// So many bytes of input have been read.
    Loaded(u64),
    /// The engine has so many tokens before it, `repeat` and several sequences included.
    Starting(u64),
    /// So many tokens are done.
    Computed(u64),
    /// Results are being written and drawn; told several times.
    Writing,
}

/// Told of every [`Event`].
pub type Observer<'a> = &'a mut (dyn FnMut(Event) -> Result<()> + Send);

/// run.json: everything needed to repeat a run, and how it went.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of the program.
    pub nmem: &'static str,
    /// Commit that it was built from, with "-modified" where the tree was not clean; `None` outside a checkout.
    pub commit: Option<&'static str>,
    /// Subcommand.
    pub command: Command,
    /// As typed.
    pub command_line: Vec<String>,
    /// The results' folder.
    pub out: PathBuf,
    /// The configuration with everything filled in.
    pub config: Resolved,
    /// Files that were read.
    pub inputs: Vec<Input>,
    /// Where the engine ran.
    pub device: &'static str,
    /// Threads it could use, as asked for or one per core.
    pub threads: usize,
    /// Those it used: no more than strips of memory weights that can walk at once.
    pub threads_used: usize,
    /// Element type of computation and results.
    pub dtype: ElementType,
    /// Sequences side by side.
    pub sequences: usize,
    /// Tokens of each: of those read where another sequence was stored.
    pub tokens: usize,
    /// Tokens of each sequence that was stored; `None` in a plain read.
    pub tokens_stored: Option<usize>,
    /// Rows of metrics.csv.
    pub rows: usize,
    /// Tokens stored since the start of the memory's life, per sequence, left-over ones included.
    pub life_tokens: Option<usize>,
    /// Spread of each column of metrics.csv.
    pub summary: BTreeMap<&'static str, Spread>,
    /// Where the run diverged.
    pub diverged: Option<Divergence>,
    /// What a user should know although nothing failed.
    pub warnings: Vec<String>,
    /// Largest resident memory of the process, where the system tells (Linux).
    pub peak_bytes: Option<u64>,
    /// Largest resident memory without mapped files as far as seen: sampled after blocks of tokens (at most every 10 ms), of rows
    /// drawn, and with every figure. What is taken and given back in between goes unseen: up to 2 MB in a figure's text.
    pub peak_anon_bytes: Option<u64>,
    /// Seconds per phase.
    pub wall_s: WallSeconds,
}

/// The configuration of a run with everything filled in.
#[derive(Clone, Debug, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches")]
pub struct Resolved {
    /// Store, read or both.
    pub mode: Mode,
    /// Sizes and norms of the memory.
    #[serde(flatten)]
    pub dimensions: Dimensions,
    /// Tokens per chunk.
    pub chunk_size: usize,
    /// How the memory was drawn, and from which seed; `None` where it came from a file.
    pub init: Option<Init>,
    /// Likewise.
    pub seed: Option<u64>,
    /// Pins and biases of the gates.
    #[serde(flatten)]
    pub gates: Gates,
    /// Whether momentum started from zero.
    pub restart_momentum: bool,
    /// Whether ℓ was also taken before and after each chunk.
    pub probe: bool,
    /// Whether inputs could hold NaN and infinity.
    pub allow_nonfinite: bool,
    /// Further runs of the engine, for timing.
    pub repeat: usize,
    /// Whether figures were drawn.
    pub plots: bool,
}

/// A file that was read.
#[derive(Clone, Debug, Serialize)]
pub struct Input {
    /// Flag or argument that named it.
    pub role: &'static str,
    /// As given.
    pub path: PathBuf,
    /// Of an array.
    pub shape: Option<Vec<usize>>,
    /// Of an array.
    pub dtype: Option<&'static str>,
    /// Of the whole file, as `sha256sum` prints it.
    pub sha256: String,
}

/// Seconds of each phase.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WallSeconds {
    /// Reading and checking inputs, and blocks of tokens on the way.
    pub load: f64,
    /// Everything computed, from inputs to results. With `--repeat` the median of `engine_all`.
    pub engine: f64,
    /// Every run of the engine, the first included.
    pub engine_all: Vec<f64>,
    /// Where the time of the engine's last run went, added up over its threads.
    pub engine_phases: Phases,
    /// Writing results.
    pub write: f64,
    /// Drawing figures.
    pub plots: f64,
}

/// Where this build comes from.
pub fn commit() -> Option<&'static str> {
    let describe = git_version::git_version!(
        args = ["--always", "--dirty=-modified", "--abbrev=40", "--exclude=*"],
        fallback = ""
    );
    (!describe.is_empty()).then_some(describe)
}

/// Runs `config` and publishes its folder. `replace` allows an existing one to be replaced.
///
/// # Errors
/// Whatever keeps the run from its results; nothing is left behind then. A divergence is no error: it is published,
/// and the report tells.
pub fn execute(
    command: Command,
    config: &Config,
    command_line: Vec<String>,
    replace: bool,
    observe: Observer,
) -> Result<Report> {
    let folder = ResultsFolder::open(&config.out, replace)?;
    refuse_inputs_inside(config, folder.target())?;
    let threads =
        config.threads.map_or_else(std::thread::available_parallelism, |n| Ok(n.try_into().expect("not 0")));
    let threads = threads.map_or(1, usize::from);
    let run = Run { command, config, command_line, threads, folder: folder.path() };
    let report = match config.dtype {
        ElementType::F32 => run.in_type::<f32>(replace, observe),
        ElementType::F64 => run.in_type::<f64>(replace, observe),
    }?;
    observe(Event::Writing)?;
    folder.publish()?;
    Ok(report)
}

/// Replacing a folder must not take the run's own inputs with it.
fn refuse_inputs_inside(config: &Config, target: &Path) -> Result<()> {
    let memory = match &config.memory {
        MemorySource::File { path, .. } => Some(path),
        MemorySource::Drawn { .. } => None,
    };
    let others = [&config.store_seq, &config.past, &config.labels, &config.file].map(Option::as_ref);
    let inputs = std::iter::once(&config.data).chain(others.into_iter().chain([memory]).flatten());
    for input in inputs.filter_map(|input| std::fs::canonicalize(input).ok()) {
        if input.starts_with(target) {
            let got = format!("{}, which holds {}", target.display(), input.display());
            return Err(Error::setting("--out", "a folder without this run's inputs", got));
        }
    }
    Ok(())
}

/// Inputs, read and checked.
struct Loaded<T: Real> {
    data: NpySequences,
    store_seq: Option<NpySequences>,
    file: MemoryFile,
    labels: Option<Labels>,
    inputs: Vec<Input>,
    chunk_size: usize,
    gates: Gates,
    memory: Memory<T>,
}

impl<T: Real> Loaded<T> {
    /// With the state to start from.
    fn read(config: &Config, narrow: bool, observe: Observer) -> Result<(Self, State<T>)> {
        let mut progress = |bytes: u64| observe(Event::Loaded(bytes));
        let mut inputs = Vec::new();
        let labels = config.labels.as_deref().map(Labels::read).transpose()?;
        let mut open = |role: &'static str, path: &Path| {
            let sequences = NpySequences::open(path, T::TYPE, config.allow_nonfinite, &mut progress)?;
            inputs.push(Input {
                role,
                path: path.to_path_buf(),
                shape: Some(sequences.file_shape().to_vec()),
                dtype: Some(sequences.dtype().name()),
                sha256: sequences.sha256().to_owned(),
            });
            Ok::<_, Error>(sequences)
        };
        let data = open("data", &config.data)?;
        let store_seq = config.store_seq.as_deref().map(|path| open("store_seq", path)).transpose()?;

        let mut file = match (&config.memory, config.memory.drawn(data.dims().dim)?) {
            (_, Some((dimensions, init, seed))) => {
                dimensions.check(config.chunk_size(None)?)?;
                MemoryFile::draw(dimensions, init, seed)
            }
            (MemorySource::File { path, .. }, None) => {
                let file = MemoryFile::open(path, T::TYPE, config.allow_nonfinite, &mut progress)?;
                config.memory.check(&file.dimensions())?;
                let saved = file.saved().map(|saved| saved.chunk_size);
                file.dimensions().check(config.chunk_size(saved)?).map_err(|error| match error {
                    Error::Setting { setting, expected, got } => {
                        Error::file(path, format!("{setting} of {expected}"), got)
                    }
                    error => error,
                })?;
                let sha256 = file.sha256().unwrap_or_default().to_owned();
                inputs.push(Input { role: "memory", path: path.clone(), shape: None, dtype: None, sha256 });
                file
            }
            (MemorySource::Drawn { .. }, None) => unreachable!("a drawn memory has sizes"),
        };
        if let Some(path) = &config.past {
            let sha256 = file.add_past(path, T::TYPE, config.allow_nonfinite, &mut progress)?;
            inputs.push(Input { role: "past", path: path.clone(), shape: None, dtype: None, sha256 });
        }
        if let Some(path) = &config.labels {
            let sha256 = sha256(path, &mut progress)?;
            inputs.push(Input { role: "labels", path: path.clone(), shape: None, dtype: None, sha256 });
        }
        if let Some(path) = &config.file {
            let sha256 = sha256(path, &mut progress)?;
            inputs.push(Input { role: "config", path: path.clone(), shape: None, dtype: None, sha256 });
        }
        let dim = file.dimensions().dim;
        for sequences in std::iter::once(&data).chain(&store_seq) {
            let got = sequences.dims().dim;
            if got != dim {
                return Err(Error::file(
                    sequences.path(),
                    format!("tokens of dim {dim}, as the memory's"),
                    format!("dim {got}"),
                ));
            }
        }

        let saved = file.saved();
        let chunk_size = config.chunk_size(saved.map(|saved| saved.chunk_size))?;
        let gates = config.gates(saved.map(|saved| saved.gates).unwrap_or_default())?;
        if file.state_type() == Some(ElementType::F64) && T::TYPE == ElementType::F32 && !narrow {
            let expected = "f64, the type of the memory's state (--force narrows it)";
            return Err(Error::setting("--dtype", expected, "f32"));
        }
        let memory = Memory::<T>::new(file.parameters(), chunk_size, gates, file.past().as_deref())?;
        let sequences = data.dims().sequences;
        if let Some(store) = store_seq.as_ref().filter(|store| store.dims().sequences != sequences) {
            let expected = format!("as many sequences as {}, {sequences}", data.path().display());
            return Err(Error::file(store.path(), expected, store.dims().sequences.to_string()));
        }
        let known = file.state::<T>();
        let of_state = known.as_ref().map_or(sequences, State::sequences);
        if of_state != sequences && !(config.mode == Mode::Read && of_state == 1) {
            let expected = format!("as many sequences as the memory's state, {of_state}");
            return Err(Error::file(data.path(), expected, sequences.to_string()));
        }
        let mut state = known
            .unwrap_or_else(|| memory.initial_state(if config.mode == Mode::Read { 1 } else { sequences }));
        if config.restart_momentum {
            state.momentum.fill(T::zero());
        }
        Ok((Self { data, store_seq, file, labels, inputs, chunk_size, gates, memory }, state))
    }

    fn store(&self) -> &NpySequences {
        self.store_seq.as_ref().unwrap_or(&self.data)
    }

    fn work(&self, config: &Config) -> Work<'_, T> {
        match config.mode {
            Mode::Store => Work::Store { sequences: &self.data, probe: config.probe },
            Mode::Read => Work::Read(&self.data),
            Mode::Online => Work::Online { read: &self.data, store: self.store(), probe: config.probe },
        }
    }
}

fn sha256(path: &Path, progress: Progress) -> Result<String> {
    Mapped::open(path, "a file", progress)?.sha256(0, progress, |_| {})
}

/// The files that the engine's results stream into.
struct Files<T> {
    metrics: Option<MetricsWriter>,
    retrieved: Option<(PathBuf, RetrievedWriter<T>)>,
    summary: Summary,
    /// Of sequences that are not done: after a divergence some never are.
    pending: BTreeMap<usize, Summary>,
}

impl<T: Real> Files<T> {
    fn create(folder: &Path, mode: Mode, loaded: &Loaded<T>) -> Result<Self> {
        let weights = loaded.memory.weight_shapes().len();
        let metrics = folder.join("metrics.csv");
        let retrieved = folder.join("retrieved.npy");
        Ok(Self {
            metrics: (mode != Mode::Read).then(|| MetricsWriter::create(&metrics, weights)).transpose()?,
            retrieved: (mode != Mode::Store)
                .then(|| {
                    Ok((
                        retrieved.clone(),
                        RetrievedWriter::create(&retrieved, loaded.data.dims(), loaded.data.rank())?,
                    ))
                })
                .transpose()?,
            summary: Summary::default(),
            pending: BTreeMap::new(),
        })
    }

    /// Completes the files; what was read before a divergence goes.
    fn finish(self, diverged: bool) -> Result<Summary> {
        if let Some(metrics) = self.metrics {
            metrics.finish()?;
        }
        if let Some((path, retrieved)) = self.retrieved {
            retrieved.finish()?;
            if diverged {
                std::fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
            }
        }
        Ok(self.summary)
    }
}

impl<T: Real> Sink<T> for Files<T> {
    fn metrics(&mut self, rows: &[ChunkMetrics<T>]) -> Result<()> {
        for row in rows {
            self.pending.entry(row.sequence).or_default().add(row);
        }
        self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.write(rows))
    }

    fn retrieved(&mut self, sequence: usize, start: usize, rows: ArrayView2<T>) -> Result<()> {
        self.retrieved.as_mut().map_or(Ok(()), |(_, retrieved)| retrieved.write_rows(sequence, start, &rows))
    }

    fn sequence_done(&mut self, sequence: usize) -> Result<()> {
        self.summary.merge(self.pending.remove(&sequence).unwrap_or_default());
        self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.sequence_done(sequence))
    }
}

/// How a run went.
struct Results {
    outcome: Outcome,
    summary: Summary,
    warnings: Vec<String>,
    peak: PeakMemory,
    wall_s: WallSeconds,
}

struct Run<'a> {
    command: Command,
    config: &'a Config,
    command_line: Vec<String>,
    threads: usize,
    folder: &'a Path,
}

impl Run<'_> {
    fn in_type<T: Real>(self, narrow: bool, observe: Observer) -> Result<Report> {
        let config = self.config;
        let mut peak = PeakMemory::default();
        let loading = Instant::now();
        let (mut loaded, mut state) = Loaded::<T>::read(config, narrow, observe)?;
        let first_token = state.stored.tokens;
        let load = loading.elapsed();

        let mut files = Files::create(self.folder, config.mode, &loaded)?;
        let (outcome, engine_all, engine_phases) =
            self.compute(&loaded, &mut state, &mut files, &mut peak, observe)?;
        observe(Event::Writing)?;

        let writing = Instant::now();
        let summary = files.finish(outcome.divergence.is_some())?;
        if config.mode != Mode::Read && outcome.divergence.is_none() {
            let path = self.folder.join("memory.safetensors");
            loaded.file.save(&path, &state, loaded.chunk_size, loaded.gates)?;
        }
        let write = outcome.output + writing.elapsed();

        let drawing = Instant::now();
        let mut warnings = warnings(&outcome, &loaded, &state, config.mode);
        if config.plots {
            let labels = loaded.labels.take().map(|labels| labels.shifted(first_token as u64));
            warnings.extend(self.draw(labels.as_ref(), &mut peak, observe)?);
        }
        let plots = drawing.elapsed();
        peak.sample_now();

        let results = Results {
            wall_s: WallSeconds {
                load: (load + outcome.input).as_secs_f64(),
                engine: median(&engine_all),
                engine_all,
                engine_phases,
                write: write.as_secs_f64(),
                plots: plots.as_secs_f64(),
            },
            outcome,
            summary,
            warnings,
            peak,
        };
        let report = self.report(loaded, &state, results);
        let path = self.folder.join("run.json");
        let mut json = serde_json::to_string_pretty(&report).expect("text and numbers");
        json.push('\n');
        std::fs::write(&path, json).map_err(Error::io(&path, "write"))?;
        Ok(report)
    }

    /// The run itself, and its repeats; seconds of every one.
    fn compute<T: Real>(
        &self,
        loaded: &Loaded<T>,
        state: &mut State<T>,
        files: &mut Files<T>,
        peak: &mut PeakMemory,
        observe: Observer,
    ) -> Result<(Outcome, Vec<f64>, Phases)> {
        let repeat = self.config.repeat;
        let tokens =
            loaded.data.dims().tokens.max(loaded.store().dims().tokens) * loaded.data.dims().sequences;
        observe(Event::Starting((tokens as u64).saturating_mul(repeat as u64 + 1)))?;
        let mut tick = |tokens: usize| {
            peak.sample();
            observe(Event::Computed(tokens as u64))
        };
        let work = loaded.work(self.config);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.threads_used(loaded)).build();
        let pool =
            pool.map_err(|error| Error::setting("--threads", "threads that can start", error.to_string()))?;
        let mut engine = Engine::new(&loaded.memory);
        let mut run = |state: &mut State<T>, sink: &mut dyn Sink<T>| {
            pool.install(|| engine.run(state, work, sink, &mut tick))
        };
        let before = (repeat > 0).then(|| state.clone());
        let outcome = run(state, files)?;
        let mut seconds = vec![outcome.computing.as_secs_f64()];
        let mut phases = outcome.phases;
        for mut state in before.into_iter().flat_map(|before| std::iter::repeat_n(before, repeat)) {
            let outcome = run(&mut state, &mut Discard)?;
            seconds.push(outcome.computing.as_secs_f64());
            phases = outcome.phases;
        }
        Ok((outcome, seconds, phases))
    }

    /// Threads without a task would only look for one, at the cost of those that have.
    fn threads_used<T: Real>(&self, loaded: &Loaded<T>) -> usize {
        self.threads.min(loaded.memory.tasks(loaded.data.dims().sequences)).max(1)
    }

    /// Draws the figures from metrics.csv; what they had to leave out.
    fn draw(&self, labels: Option<&Labels>, peak: &mut PeakMemory, observe: Observer) -> Result<Vec<String>> {
        let folder = self.folder.join("plots");
        std::fs::create_dir(&folder).map_err(Error::io(&folder, "create"))?;
        let mut tick = || {
            peak.sample_now();
            observe(Event::Writing)
        };
        let drawn = plot::write_timelines(&self.folder.join("metrics.csv"), labels, &folder, &mut tick)?;
        Ok(drawn.left_out.iter().map(ToString::to_string).collect())
    }

    fn report<T: Real>(&self, loaded: Loaded<T>, state: &State<T>, results: Results) -> Report {
        let Results { outcome, summary, warnings, peak, wall_s } = results;
        let config = self.config;
        let shape = loaded.data.dims();
        let tokens_stored = (config.mode != Mode::Read).then_some(loaded.store().dims().tokens);
        let drawn = config.memory.drawn(shape.dim).ok().flatten();
        let threads_used = self.threads_used(&loaded);
        Report {
            nmem: env!("CARGO_PKG_VERSION"),
            commit: commit(),
            command: self.command,
            command_line: self.command_line.clone(),
            out: config.out.clone(),
            config: Resolved {
                mode: config.mode,
                dimensions: loaded.file.dimensions(),
                chunk_size: loaded.chunk_size,
                init: drawn.map(|(_, init, _)| init),
                seed: drawn.map(|(_, _, seed)| seed),
                gates: loaded.gates,
                restart_momentum: config.restart_momentum,
                probe: config.probe,
                allow_nonfinite: config.allow_nonfinite,
                repeat: config.repeat,
                plots: config.plots,
            },
            inputs: loaded.inputs,
            device: "cpu",
            threads: self.threads,
            threads_used,
            dtype: T::TYPE,
            sequences: shape.sequences,
            tokens: shape.tokens,
            tokens_stored,
            rows: outcome.rows,
            life_tokens: (config.mode != Mode::Read).then_some(state.stored.tokens),
            summary: summary.columns().collect(),
            diverged: outcome.divergence,
            warnings,
            peak_bytes: peak.resident(),
            peak_anon_bytes: peak.anonymous(),
            wall_s,
        }
    }
}

fn warnings<T: Real>(outcome: &Outcome, loaded: &Loaded<T>, state: &State<T>, mode: Mode) -> Vec<String> {
    let (c, stored) = (loaded.chunk_size, state.stored.tokens);
    let mut warnings = Vec::new();
    if mode == Mode::Read || outcome.divergence.is_some() {
        return warnings;
    }
    if let Some(chunk) = outcome.read_past_store.filter(|_| stored >= c) {
        let read = state.read.tokens;
        warnings.push(format!(
            "{stored} tokens stored and {read} read so far: from chunk {chunk} on, reads used the last weights"
        ));
    }
    if outcome.rows == 0 {
        let kept = stored % c;
        warnings.push(match mode {
            _ if stored >= c => format!("no chunk completed: {kept} of the {c} tokens of a chunk"),
            Mode::Online => {
                format!("nothing stored yet, all reads are zeros: {kept} of the {c} tokens of a chunk")
            }
            _ => format!("nothing stored yet: {kept} of the {c} tokens of a chunk"),
        });
    }
    warnings
}

/// Median of timings: the mean of the middle two where they are even in number.
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
