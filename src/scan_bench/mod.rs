//! `nmem scan-bench`: the scans timed against each other and against a copy, each checked against the f64 oracle before.
//!
//! - [`Config`]: shapes and what is run on them; [`execute`]: from there to a published folder.
//! - `bench`: one shape's arrays, checks and timings; `gpu`: those on a GPU. `timing`: medians and outliers. `machine`: machine.json.

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

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// What the library chooses for the shape.
    Auto,
    /// The plain loop, one thread.
    Sequential,
    /// Across channels.
    Channels,
    /// Across time, in two passes.
    Time,
    /// The associative tree of PyTorch and JAX.
    Tree,
    /// Momentum and update fused: the plain loop, one thread.
    PairSequential,
    /// Momentum and update fused, every update written.
    Pair,
    /// Momentum and update fused, only the last state.
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

/// Gates one per step or one per element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// (batch, steps)
    Step,
    /// As the inputs.
    Element,
}

impl Gate {
    /// As typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Element => "element",
        }
    }
}

impl Algorithm {
    /// Whether it is one of a GPU too.
    pub fn is_on_gpus(&self) -> bool {
        matches!(self, Self::Auto | Self::Pair | Self::PairLast)
    }

    /// As typed.
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

    /// However many it is given.
    fn has_one_thread(self) -> bool {
        matches!(self, Self::Sequential | Self::PairSequential)
    }
}

impl Layout {
    /// As typed.
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

/// What is to be timed, checked.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// Those timed.
    pub algorithms: Vec<Algorithm>,
    /// On these shapes.
    pub shapes: Vec<BenchShape>,
    /// Numbers of threads.
    pub threads: Vec<usize>,
    /// Orders of axes.
    pub layouts: Vec<Layout>,
    /// Kinds of gates.
    pub gates: Vec<Gate>,
    /// Element types.
    pub dtypes: Vec<ElementType>,
    /// Least runs of each.
    pub runs: usize,
    /// Least seconds of each.
    pub seconds: f64,
    /// Shapes whose arrays need more are left out; `None` is a quarter of the machine's memory.
    pub max_bytes: Option<u64>,
    /// Folder for the results.
    #[serde(serialize_with = "crate::io::path_as_text")]
    pub out: PathBuf,
    /// Whether figures are drawn.
    pub plots: bool,
    /// What they are written as.
    #[serde(skip)]
    pub figure_format: Vec<FigureFormat>,
}

/// Sizes of a problem, as written in results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BenchShape {
    /// Sequences.
    pub batch: usize,
    /// Steps of each.
    pub steps: usize,
    /// Recurrences side by side.
    pub channels: usize,
}

impl BenchShape {
    fn of_library(self) -> Shape {
        Shape { batch: self.batch, steps: self.steps, channels: self.channels }
    }

    /// The memory's own: 64 chunks, four weights of d × d with d = 64, 128, 256.
    pub fn of_memory() -> impl Iterator<Item = Self> {
        [64, 128, 256].into_iter().map(|d| Self { batch: 1, steps: 64, channels: 4 * d * d })
    }

    /// accelerated-scan's: 8 × 1536 channels, 128 steps to `most`, doubled.
    pub fn of_accelerated_scan(most: usize) -> impl Iterator<Item = Self> {
        steps_to(most).map(|steps| Self { batch: 8, steps, channels: 1536 })
    }
}

/// Steps to `most` from 128 on, doubled.
pub fn steps_to(most: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(128), |steps| Some(steps * 2)).take_while(move |&steps| steps <= most)
}

/// A line of scan_bench.csv. What does not apply is `None`, an empty cell: timings of a wrong result, above all.
#[derive(Clone, Debug, Serialize)]
pub struct BenchRow {
    /// As asked for.
    pub algorithm: Algorithm,
    /// Where it ran: "cpu", "cuda" (the first GPU), "cuda:1" (the second) and so on.
    pub device: String,
    /// Element type.
    pub dtype: ElementType,
    /// Threads it could use; 0 on a GPU.
    pub threads: usize,
    /// Sequences.
    pub batch: usize,
    /// Steps.
    pub steps: usize,
    /// Recurrences side by side.
    pub channels: usize,
    /// Kind of gates.
    pub gate: Gate,
    /// Order of axes.
    pub layout: Layout,
    /// Milliseconds.
    pub median_ms: Option<f64>,
    /// Milliseconds.
    pub min_ms: Option<f64>,
    /// Compulsory traffic: each input read once, each output written once.
    pub bytes: usize,
    /// 10⁹ of these bytes a second, at the median.
    pub gb_per_s: Option<f64>,
    /// Of the bandwidth of a copy.
    pub copy_fraction: Option<f64>,
    /// Largest difference from the f64 oracle.
    pub max_abs_error: f64,
    /// Timed runs.
    pub runs: usize,
    /// What a copy reaches on as many bytes (half of them read, half written) with the same threads: the faster of an
    /// ordinary and a streaming one.
    pub copy_gb_per_s: Option<f64>,
    /// Error of the plain loop in the same element type.
    pub sequential_max_abs_error: f64,
    /// Timed runs that something disturbed.
    pub outliers: usize,
    /// What `auto` stood for; else the algorithm itself.
    pub chosen: Algorithm,
    /// Whether the error is at most twice the plain loop's and one unit in the last place of the largest state (16 units
    /// in f64, where the plain loop is the oracle itself).
    pub correct: bool,
}

/// scan_bench.csv's header: the fields of [`BenchRow`].
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

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// As run.
    pub config: Config,
    /// Where.
    pub machine: Machine,
    /// GPUs that it ran on: "cuda:0" and a name.
    pub gpus: Vec<String>,
    /// scan_bench.csv.
    pub rows: Vec<BenchRow>,
    /// Shapes that would have needed too much memory.
    #[serde(rename = "left_out")]
    pub skipped: Vec<String>,
    /// Disturbed timings, wrong results.
    pub warnings: Vec<String>,
    /// Seconds, all of it.
    pub wall_s: f64,
}

impl Report {
    /// Whether every result was right.
    pub fn all_correct(&self) -> bool {
        self.rows.iter().all(|row| row.correct)
    }
}

/// Told as the work goes on. Returning an error stops it and leaves nothing behind.
#[derive(Clone, Debug)]
pub enum BenchEvent {
    /// So many cases to come.
    Starting(u64),
    /// One is begun, or goes on.
    Working,
    /// One is done.
    Done,
}

/// Told of every [`BenchEvent`].
pub type Observer<'a> = &'a mut dyn FnMut(BenchEvent) -> Result<()>;

/// For the arrays of a shape where the system does not tell how much memory there is.
const UNKNOWN_MEMORY: u64 = 1 << 30;

/// Most runs of a case, whose times are held, and most shapes, types and numbers of threads: more would run for days.
const MAX_RUNS: usize = 1 << 20;
const MAX_CASES: usize = 1 << 12;
/// More is a slip of the keyboard.
const MAX_THREADS: usize = 1024;

impl Config {
    /// Checks what was typed.
    pub fn check(&self) -> Result<()> {
        self.figure_format.iter().try_for_each(|format| format.check())?;
        let whole = |flag: &str, zero: bool| {
            if zero { Err(Error::setting(flag, "whole numbers of at least 1", "0")) } else { Ok(()) }
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
            let expected = format!("lists of at most {MAX_CASES} combinations");
            return Err(Error::setting("--batch, --steps, --channels, --threads", expected, "more"));
        }
        if let Some(&threads) = self.threads.iter().find(|&&threads| threads > MAX_THREADS) {
            return Err(Error::setting("--threads", format!("at most {MAX_THREADS}"), threads.to_string()));
        }
        if !(0.0..=3600.0).contains(&self.seconds) {
            return Err(Error::setting("--seconds", "0 to 3600 seconds", self.seconds.to_string()));
        }
        if self.plan().is_empty() {
            let expected =
                "steps-channels and step among --layout and --gate, for the fused pair is of that kind";
            let got = "neither a scan nor such a pair";
            return Err(Error::setting("--algorithm", expected, got));
        }
        Ok(())
    }

    /// What runs on one shape: layouts and gates, and the algorithms on each.
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

    /// Threads that an algorithm is timed with.
    fn threads_of(&self, algorithm: Algorithm) -> Vec<usize> {
        if algorithm.has_one_thread() { vec![1] } else { self.threads.clone() }
    }
}

/// Runs `config` on each of `devices` and publishes its folder. `replace` allows an existing one to be replaced.
pub fn execute(config: Config, devices: &[OpenDevice], replace: bool, observe: Observer) -> Result<Report> {
    let start = Instant::now();
    let gpus = devices.iter().any(|device| device.gpu().is_some());
    if devices.iter().all(|device| device.gpu().is_some())
        && !config.algorithms.iter().any(Algorithm::is_on_gpus)
    {
        let names: Vec<_> = config.algorithms.iter().map(|algorithm| algorithm.name()).collect();
        return Err(Error::setting("--algorithm", "auto, pair or pair-last on a GPU", names.join(", ")));
    }
    let folder = ResultsDirectory::open(&config.out, replace)?;
    // No error: they are open already, and a device of the caller's own is in no list.
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
                    let needed = bytes.map_or("more than there can be".to_owned(), |bytes| format!("{bytes} bytes"));
                    let gate = gate.name();
                    let text = format!(
                        "{batch} × {steps} × {channels}, gates per {gate}, {dtype}: {needed}, at most {most} (--max-bytes)"
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
        let reason =
            format!("nothing to time: {}", skipped.first().map_or("no algorithm runs there", |text| text));
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
                    "{batch} × {steps} × {channels}, gates per {gate}, {dtype}: more than {device} has free"
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

    write(folder.path(), &config, &machine, &rows, observe).map_err(|error| folder.explain(error))?;
    observe(BenchEvent::Working)?;
    folder.publish()?;
    let warnings = warnings(&rows);
    let gpus = devices.iter().filter(|device| device.gpu().is_some()).map(OpenDevice::to_string).collect();
    Ok(Report { config, machine, gpus, rows, skipped, warnings, wall_s: start.elapsed().as_secs_f64() })
}

/// Wrong results one by one, disturbed timings together.
fn warnings(rows: &[BenchRow]) -> Vec<String> {
    let mut warnings: Vec<_> = rows.iter().filter(|row| !row.correct).map(wrong).collect();
    // A few outliers in hundreds of runs do not move a median.
    let disturbed = rows.iter().filter(|row| row.outliers * 10 > row.runs).count();
    if disturbed > 0 {
        let all = rows.len();
        let text = format!(
            "{disturbed} of {all} timings had outliers in more than a tenth of their runs (column `outliers`): is the \
             machine busy?"
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
        "{algorithm} on {batch} × {steps} × {channels}, {layout}, gates per {gate}, {dtype}{on}: wrong, not timed: error \
         {error:e}, the plain loop's {plain:e}"
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
    writer.write_record(COLUMNS).expect("memory takes it");
    for row in rows {
        writer.serialize(row).expect("numbers and words");
    }
    OutFile::write_new(&csv, &writer.into_inner().expect("memory takes it"))?;
    let json = serde_json::to_string_pretty(machine).expect("text and numbers") + "\n";
    OutFile::write_new(&directory.join("machine.json"), json.as_bytes())?;
    if !config.plots {
        return Ok(());
    }
    let plots = directory.join("plots");
    storage::create_directory(&plots)?;
    let request = plot::Request::default();
    let drawn = plot::scan_bench(&csv, &request.style)?;
    let to = (plots.as_path(), &config.figure_format[..]);
    let files = plot::files(&drawn, &csv, &request, to, &mut || observe(BenchEvent::Working))?;
    files.iter().try_for_each(|(path, bytes)| OutFile::write_new(path, bytes))
}
