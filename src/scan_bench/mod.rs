//! `nmem scan-bench`: times the scans against each other and against a copy, after checking each against the f64 oracle.
//!
//! - [`Config`]: shapes and the algorithms to run on them.
//! - [`execute`]: runs a configuration and publishes the results directory.
//! - `bench`: arrays, checks and timings of one shape on the CPU; `gpu`: the same on a GPU.
//! - `timing`: medians and outliers. `machine`: machine.json.

mod bench;
mod gpu;
mod machine;
mod timing;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cuda::{self, OpenDevice};
use crate::error::{Error, Result};
use crate::plot::{self, FigureFormat};
use crate::real::ElementType;
use crate::scan::linear::{self, Shape};
use crate::storage::{self, OutFile, ResultsDirectory};
use bench::{Arena, CopySpeeds};
pub use machine::{Cache, Machine};
use timing::Effort;

/// An algorithm to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// The library's choice for the shape.
    Auto,
    /// The plain loop on one thread.
    Sequential,
    /// Parallel across channels.
    Channels,
    /// Parallel across time, in two passes.
    Time,
    /// The associative tree of PyTorch and JAX.
    Tree,
    /// Momentum and update fused: the plain loop on one thread.
    PairSequential,
    /// Momentum and update fused, writing every update.
    Pair,
    /// Momentum and update fused, writing only the last state.
    PairLast,
}

/// Order of the axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// (batch, steps, channels)
    StepsChannels,
    /// (batch, channels, steps)
    ChannelsSteps,
}

/// The shape of the gates: one per step or one per element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// (batch, steps)
    Step,
    /// The inputs' shape.
    Element,
}

impl Gate {
    /// Returns the name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Element => "element",
        }
    }
}

impl Algorithm {
    /// Whether the algorithm also runs on GPUs.
    pub fn is_on_gpus(&self) -> bool {
        matches!(self, Self::Auto | Self::Pair | Self::PairLast)
    }

    /// Returns the name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Sequential => "sequential",
            Self::Channels => "channels",
            Self::Time => "time",
            Self::Tree => "tree",
            Self::PairSequential => "pair-sequential",
            Self::Pair => "pair",
            Self::PairLast => "pair-last",
        }
    }

    fn is_pair(self) -> bool {
        matches!(self, Self::PairSequential | Self::Pair | Self::PairLast)
    }

    /// Whether the algorithm uses one thread only.
    fn has_one_thread(self) -> bool {
        matches!(self, Self::Sequential | Self::PairSequential)
    }
}

impl Layout {
    /// Returns the name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::StepsChannels => "steps-channels",
            Self::ChannelsSteps => "channels-steps",
        }
    }

    fn of_library(self) -> linear::Layout {
        match self {
            Self::StepsChannels => linear::Layout::StepsChannels,
            Self::ChannelsSteps => linear::Layout::ChannelsSteps,
        }
    }
}

/// A validated benchmark configuration.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// Algorithms to time.
    pub algorithms: Vec<Algorithm>,
    /// Shapes to time them on.
    pub shapes: Vec<BenchShape>,
    /// Numbers of threads.
    pub threads: Vec<usize>,
    /// Orders of axes.
    pub layouts: Vec<Layout>,
    /// Kinds of gates.
    pub gates: Vec<Gate>,
    /// Element types.
    pub dtypes: Vec<ElementType>,
    /// Minimum runs per case.
    pub runs: usize,
    /// Minimum seconds per case.
    pub seconds: f64,
    /// Limit on the bytes of a shape's arrays; larger shapes are skipped. `None` is a quarter of the machine's memory.
    pub max_bytes: Option<u64>,
    /// Directory for the results.
    #[serde(serialize_with = "crate::io::path_as_text")]
    pub out: PathBuf,
    /// Whether figures are drawn.
    pub plots: bool,
    /// File formats of the figures.
    #[serde(skip)]
    pub figure_format: Vec<FigureFormat>,
}

/// Sizes of a problem, as the results record them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BenchShape {
    /// Sequences.
    pub batch: usize,
    /// Steps per sequence.
    pub steps: usize,
    /// Independent recurrences per sequence.
    pub channels: usize,
}

impl BenchShape {
    fn of_library(self) -> Shape {
        Shape { batch: self.batch, steps: self.steps, channels: self.channels }
    }

    /// Returns the memory's own shapes: 64 chunks and four weights of d × d, with d = 64, 128, 256.
    pub fn of_memory() -> impl Iterator<Item = Self> {
        [64, 128, 256].into_iter().map(|d| Self { batch: 1, steps: 64, channels: 4 * d * d })
    }

    /// Returns accelerated-scan's shapes: 8 × 1536 channels, with steps doubling from 128 to `most`.
    pub fn of_accelerated_scan(most: usize) -> impl Iterator<Item = Self> {
        steps_to(most).map(|steps| Self { batch: 8, steps, channels: 1536 })
    }
}

/// Returns numbers of steps, doubling from 128 to `most`.
pub fn steps_to(most: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(128), |steps| Some(steps * 2)).take_while(move |&steps| steps <= most)
}

/// A row of scan_bench.csv. Values that do not apply, such as timings of a wrong result, are `None` and empty cells.
#[derive(Clone, Debug, Serialize)]
pub struct BenchRow {
    /// The requested algorithm.
    pub algorithm: Algorithm,
    /// The device: "cpu", "cuda" (the first GPU), "cuda:1" (the second) and so on.
    pub device: String,
    /// Element type.
    pub dtype: ElementType,
    /// Threads available to it; 0 on a GPU.
    pub threads: usize,
    /// Sequences.
    pub batch: usize,
    /// Steps.
    pub steps: usize,
    /// Independent recurrences per sequence.
    pub channels: usize,
    /// Kind of gates.
    pub gate: Gate,
    /// Order of axes.
    pub layout: Layout,
    /// Median time in milliseconds.
    pub median_ms: Option<f64>,
    /// Shortest time in milliseconds.
    pub min_ms: Option<f64>,
    /// Compulsory traffic in bytes: each input read once, each output written once.
    pub bytes: usize,
    /// Bandwidth at the median time, in 10⁹ of these bytes per second.
    pub gb_per_s: Option<f64>,
    /// That bandwidth as a fraction of a copy's.
    pub copy_fraction: Option<f64>,
    /// Largest difference from the f64 oracle.
    pub max_abs_error: f64,
    /// Number of timed runs.
    pub runs: usize,
    /// Bandwidth of a copy of the same number of bytes (half read, half written) with the same threads. This is the faster
    /// of an ordinary and a streaming copy.
    pub copy_gb_per_s: Option<f64>,
    /// Largest error of the plain loop in the same element type.
    pub sequential_max_abs_error: f64,
    /// Number of timed runs that something disturbed.
    pub outliers: usize,
    /// The algorithm that ran: the choice of `auto`, or the requested one.
    pub chosen: Algorithm,
    /// Whether the error is at most twice the plain loop's plus one unit in the last place of the largest state. In f64,
    /// where the plain loop is the oracle itself, 16 units are allowed.
    pub correct: bool,
}

/// Header of scan_bench.csv: the fields of [`BenchRow`].
const COLUMNS: [&str; 21] = [
    "algorithm",
    "device",
    "dtype",
    "threads",
    "batch",
    "steps",
    "channels",
    "gate",
    "layout",
    "median_ms",
    "min_ms",
    "bytes",
    "gb_per_s",
    "copy_fraction",
    "max_abs_error",
    "runs",
    "copy_gb_per_s",
    "sequential_max_abs_error",
    "outliers",
    "chosen",
    "correct",
];

/// The outcome of a benchmark.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The configuration that ran.
    pub config: Config,
    /// The machine that it ran on.
    pub machine: Machine,
    /// GPUs that it ran on, each as "cuda:0" and a name.
    pub gpus: Vec<String>,
    /// Rows of scan_bench.csv.
    pub rows: Vec<BenchRow>,
    /// Shapes that were skipped because they need too much memory.
    pub skipped: Vec<String>,
    /// Warnings about disturbed timings and wrong results.
    pub warnings: Vec<String>,
    /// Total time in seconds.
    pub wall_s: f64,
}

impl Report {
    /// Whether every result was correct.
    pub fn all_correct(&self) -> bool {
        self.rows.iter().all(|row| row.correct)
    }
}

/// A progress event. If the observer returns an error, the benchmark stops and leaves no files behind.
#[derive(Clone, Debug)]
pub enum BenchEvent {
    /// The benchmark starts, with this number of cases.
    Starting(u64),
    /// A case starts or continues.
    Working,
    /// A case has ended.
    Done,
}

/// A callback for every [`BenchEvent`].
pub type Observer<'a> = &'a mut dyn FnMut(BenchEvent) -> Result<()>;

/// Default limit on the bytes of a shape's arrays if the system does not report its memory.
const UNKNOWN_MEMORY: u64 = 1 << 30;

/// Most runs of a case, whose times are held in memory.
const MAX_RUNS: usize = 1 << 20;
/// Most combinations of shapes, types and numbers of threads; more would run for days.
const MAX_CASES: usize = 1 << 12;
/// Most threads; a larger number is taken for a typing error.
const MAX_THREADS: usize = 1024;

impl Config {
    /// Checks the settings.
    pub fn check(&self) -> Result<()> {
        self.figure_format.iter().try_for_each(|format| format.check())?;
        let whole = |flag: &str, zero: bool| {
            if zero { Err(Error::setting(flag, "at least 1", "0")) } else { Ok(()) }
        };
        whole("--threads", self.threads.contains(&0))?;
        whole("--steps", self.shapes.iter().any(|shape| shape.steps == 0))?;
        whole("--channels", self.shapes.iter().any(|shape| shape.channels == 0))?;
        whole("--batch", self.shapes.iter().any(|shape| shape.batch == 0))?;
        whole("--runs", self.runs == 0)?;
        if self.runs > MAX_RUNS {
            return Err(Error::setting("--runs", format!("at most {MAX_RUNS}"), self.runs.to_string()));
        }
        let cases = [self.shapes.len(), self.threads.len(), self.dtypes.len()]
            .iter()
            .try_fold(1_usize, |all, &n| all.checked_mul(n));
        if cases.is_none_or(|cases| cases > MAX_CASES) {
            let reason = format!("more than {MAX_CASES} combinations; shorten the lists");
            return Err(Error::rejected("--batch, --steps, --channels, --threads", reason));
        }
        if let Some(&threads) = self.threads.iter().find(|&&threads| threads > MAX_THREADS) {
            return Err(Error::setting("--threads", format!("at most {MAX_THREADS}"), threads.to_string()));
        }
        if !(0.0..=3600.0).contains(&self.seconds) {
            return Err(Error::setting("--seconds", "0 to 3600 seconds", self.seconds.to_string()));
        }
        if self.plan().is_empty() {
            let reason =
                "the fused pair needs --layout steps-channels and --gate step; add them, or choose a scan";
            return Err(Error::rejected("--algorithm", reason));
        }
        Ok(())
    }

    /// Returns the layouts and gates to run on one shape, and the algorithms for each.
    fn plan(&self) -> Vec<(Layout, Gate, Vec<Algorithm>)> {
        let kinds =
            self.layouts.iter().flat_map(|&layout| self.gates.iter().map(move |&gate| (layout, gate)));
        kinds
            .map(|(layout, gate)| {
                let pairs = (layout, gate) == (Layout::StepsChannels, Gate::Step);
                let algorithms = self.algorithms.iter().copied();
                (layout, gate, algorithms.filter(|algorithm| pairs || !algorithm.is_pair()).collect())
            })
            .filter(|(.., algorithms): &(_, _, Vec<_>)| !algorithms.is_empty())
            .collect()
    }

    /// Returns the numbers of threads to time an algorithm with.
    fn threads_of(&self, algorithm: Algorithm) -> Vec<usize> {
        if algorithm.has_one_thread() { vec![1] } else { self.threads.clone() }
    }
}

/// Runs `config` on each of `devices` and publishes the results directory. `replace` allows replacing an existing one.
pub fn execute(config: Config, devices: &[OpenDevice], replace: bool, observe: Observer) -> Result<Report> {
    let start = Instant::now();
    let gpus = devices.iter().any(|device| device.gpu().is_some());
    if devices.iter().all(|device| device.gpu().is_some())
        && !config.algorithms.iter().any(Algorithm::is_on_gpus)
    {
        let names: Vec<_> = config.algorithms.iter().map(|algorithm| algorithm.name()).collect();
        return Err(Error::setting("--algorithm", "auto, pair or pair-last on a GPU", names.join(", ")));
    }
    let directory = ResultsDirectory::open(&config.out, replace)?;
    // A failure is ignored: the devices are open already, and a device that the caller made is in no list.
    let gpus = gpus.then(cuda::list).and_then(Result::ok).unwrap_or_default().usable;
    let machine = Machine { gpus, ..Machine::detect() };
    let most =
        config.max_bytes.unwrap_or_else(|| machine.memory_bytes.map_or(UNKNOWN_MEMORY, |bytes| bytes / 4));
    let mut skipped = Vec::new();
    let plan = config.plan();
    let mut tasks = Vec::new();
    for &dtype in &config.dtypes {
        for &shape in &config.shapes {
            let kinds = plan.iter().filter(|(_, gate, _)| {
                let bytes = bench::bytes_needed(shape, *gate, dtype);
                let fits = bytes.is_some_and(|bytes| bytes <= most);
                if !fits {
                    let BenchShape { batch, steps, channels } = shape;
                    let needed =
                        bytes.map_or("needs more bytes than fit in 64 bits".to_owned(), |bytes| format!("needs {bytes} bytes"));
                    let gate = gate.name();
                    let text = format!(
                        "{batch} × {steps} × {channels}, gates per {gate}, {dtype}: {needed}, the limit is {most} (--max-bytes)"
                    );
                    if !skipped.contains(&text) {
                        skipped.push(text);
                    }
                }
                fits
            });
            tasks.extend(kinds.map(|kind| (dtype, shape, kind)));
        }
    }
    let cases = tasks.iter().flat_map(|(.., (.., algorithms))| algorithms);
    let cases_of = |device: &OpenDevice, algorithm: Algorithm| match device.gpu() {
        Some(_) => usize::from(algorithm.is_on_gpus()),
        None => config.threads_of(algorithm).len(),
    };
    let cases: usize =
        cases.map(|&algorithm| devices.iter().map(|device| cases_of(device, algorithm)).sum::<usize>()).sum();
    if cases == 0 {
        let reason = format!(
            "nothing to time: {}",
            skipped.first().map_or("no algorithm runs on these devices", |text| text)
        );
        return Err(Error::rejected("scan-bench", reason));
    }
    observe(BenchEvent::Starting(cases as u64))?;

    let effort = Effort { runs: config.runs, time: Duration::from_secs_f64(config.seconds) };
    let (mut of_f32, mut of_f64) = (Arena::<f32>::default(), Arena::<f64>::default());
    let mut copies: Vec<_> = devices.iter().map(|_| CopySpeeds::default()).collect();
    let mut rows = Vec::new();
    for &(dtype, shape, (layout, gate, algorithms)) in &tasks {
        let case = bench::Case { shape, layout: *layout, gate: *gate, effort };
        for (device, copies) in devices.iter().zip(&mut copies) {
            let Some(gpu) = device.gpu() else {
                let work: Vec<_> =
                    algorithms.iter().map(|&algorithm| (algorithm, config.threads_of(algorithm))).collect();
                rows.extend(match dtype {
                    ElementType::F32 => case.run(&mut of_f32, copies, &work, observe),
                    ElementType::F64 => case.run(&mut of_f64, copies, &work, observe),
                }?);
                continue;
            };
            let needed = bench::bytes_needed(shape, *gate, dtype);
            if needed.map(|needed| gpu::fits(gpu, needed)).transpose()? != Some(true) {
                let BenchShape { batch, steps, channels } = shape;
                let gate = gate.name();
                skipped.push(format!(
                    "{batch} × {steps} × {channels}, gates per {gate}, {dtype}: needs more memory than {device} has free"
                ));
                continue;
            }
            let algorithms: Vec<_> = algorithms.iter().copied().filter(Algorithm::is_on_gpus).collect();
            let label = device.label();
            rows.extend(match dtype {
                ElementType::F32 => case.run_on(gpu, &label, &mut of_f32, copies, &algorithms, observe),
                ElementType::F64 => case.run_on(gpu, &label, &mut of_f64, copies, &algorithms, observe),
            }?);
        }
    }
    drop((of_f32, of_f64));

    write(directory.path(), &config, &machine, &rows, observe).map_err(|error| directory.explain(error))?;
    observe(BenchEvent::Working)?;
    directory.publish()?;
    let warnings = warnings(&rows);
    let gpus = devices.iter().filter(|device| device.gpu().is_some()).map(OpenDevice::to_string).collect();
    Ok(Report { config, machine, gpus, rows, skipped, warnings, wall_s: start.elapsed().as_secs_f64() })
}

/// Returns the warnings: one for each wrong result and one for all disturbed timings.
fn warnings(rows: &[BenchRow]) -> Vec<String> {
    let mut warnings: Vec<_> = rows.iter().filter(|row| !row.correct).map(wrong).collect();
    // A few outliers in hundreds of runs do not move a median.
    let disturbed = rows.iter().filter(|row| row.outliers * 10 > row.runs).count();
    if disturbed > 0 {
        let all = rows.len();
        let text = format!(
            "{disturbed} of {all} timings had outliers in more than a tenth of their runs (column `outliers`); the \
             machine may be busy"
        );
        warnings.push(text);
    }
    warnings
}

fn wrong(row: &BenchRow) -> String {
    let BenchRow { algorithm, batch, steps, channels, layout, gate, dtype, .. } = row;
    let (algorithm, layout, gate) = (algorithm.name(), layout.name(), gate.name());
    let (error, plain) = (row.max_abs_error, row.sequential_max_abs_error);
    let on = if row.device == "cpu" { String::new() } else { format!(", on {}", row.device) };
    format!(
        "{algorithm} on {batch} × {steps} × {channels}, {layout}, gates per {gate}, {dtype}{on}: wrong result, not timed; \
         its error is {error:e}, the plain loop's {plain:e}"
    )
}

/// Writes the files of a benchmark into a directory.
fn write(
    directory: &Path,
    config: &Config,
    machine: &Machine,
    rows: &[BenchRow],
    observe: Observer,
) -> Result<()> {
    let csv = directory.join("scan_bench.csv");
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    writer.write_record(COLUMNS).expect("writing to memory cannot fail");
    for row in rows {
        writer.serialize(row).expect("numbers and words");
    }
    OutFile::write_new(&csv, &writer.into_inner().expect("writing to memory cannot fail"))?;
    let json = serde_json::to_string_pretty(machine).expect("text and numbers") + "\n";
    OutFile::write_new(&directory.join("machine.json"), json.as_bytes())?;
    if !config.plots {
        return Ok(());
    }
    let plots = directory.join("plots");
    storage::create_directory(&plots)?;
    let request = plot::Request::default();
    let source = plot::CsvSource::find(&csv, Some(plot::Kind::Scan))?;
    let drawn = plot::draw(&[source], &request, &mut || observe(BenchEvent::Working))?;
    drawn.files(&plots, &config.figure_format).try_for_each(|file| {
        let (path, bytes) = file?;
        OutFile::write_new(&path, &bytes)
    })
}
