//! `nmem scan-bench`: checks and times the scans, and prints a table on stdout.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::progress::Bar;
use super::table::aligned;
use super::{FAILED, Format, begin_work, check_interrupt, note, print, print_error};
use crate::config::whole;
use crate::cuda::DeviceChoice;
use crate::error::Error;
use crate::escape::for_terminal;
use crate::plot::FigureFormat;
use crate::real::ElementType;
use crate::scan_bench::{
    Algorithm, BenchEvent, BenchRow, BenchShape, Config, Gate, Layout, Report, execute, steps_to,
};
use crate::storage;

/// Check and time the scans x_t = a_t x_{t−1} + b_t, and the memory's fused pair S, U
///
/// Every algorithm is first compared with an f64 loop on the same data. A wrong one is reported and not timed. Bandwidth
/// counts the bytes that must move (each input read once, each output written once). It is compared with a copy of the
/// same number of bytes, ordinary or streaming, whichever is faster. Lists are separated by commas. Writes
/// scan_bench.csv, machine.json and plots/*.svg to --out.
#[derive(clap::Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches")]
pub struct Args {
    /// Algorithms to time: auto (the library's choice), sequential, channels, time, tree. For the fused pair:
    /// pair-sequential, pair (writes every update), pair-last (writes the last state only) [default: all]
    #[arg(
        long,
        value_name = "LIST",
        value_enum,
        value_delimiter = ',',
        hide_possible_values = true,
        help_heading = "What"
    )]
    algorithm: Vec<Algorithm>,
    /// Order of axes: steps-channels, channels-steps. The pair has only the first [default: both]
    #[arg(
        long,
        value_name = "LIST",
        value_enum,
        value_delimiter = ',',
        hide_possible_values = true,
        help_heading = "What"
    )]
    layout: Vec<Layout>,
    /// Gates per step or per element: step, element. The pair has only the first [default: both]
    #[arg(
        long,
        value_name = "LIST",
        value_enum,
        value_delimiter = ',',
        hide_possible_values = true,
        help_heading = "What"
    )]
    gate: Vec<Gate>,
    /// Element types: f32, f64 [default: f32]
    #[arg(
        long,
        value_name = "LIST",
        value_enum,
        value_delimiter = ',',
        hide_possible_values = true,
        help_heading = "What"
    )]
    dtype: Vec<ElementType>,

    /// Numbers of steps [default: 128,256,…,4096, or up to 65536 if every device is a GPU. Without --channels and --batch
    /// also the memory's own shapes: 1 × 64 steps × 16384, 65536 and 262144 channels]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = whole::<usize>, allow_negative_numbers = true, help_heading = "Shapes")]
    steps: Vec<usize>,
    /// Numbers of channels per sequence [default: 1536]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = whole::<usize>, allow_negative_numbers = true, help_heading = "Shapes")]
    channels: Vec<usize>,
    /// Numbers of sequences [default: 8]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = whole::<usize>, allow_negative_numbers = true, help_heading = "Shapes")]
    batch: Vec<usize>,
    /// Run all numbers of steps up to 65536
    #[arg(long, conflicts_with = "steps", help_heading = "Shapes")]
    full: bool,
    /// Skip shapes whose arrays need more bytes [default: a quarter of the machine's memory]
    #[arg(long, value_name = "BYTES", value_parser = whole::<u64>, allow_negative_numbers = true, help_heading = "Shapes")]
    max_bytes: Option<u64>,

    /// Numbers of threads. Sequential algorithms always use 1 [default: one per core]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = whole::<usize>, allow_negative_numbers = true, help_heading = "Run")]
    threads: Vec<usize>,
    /// Devices: cpu, cuda (the first GPU), cuda:N as listed by `nmem devices`, auto (a GPU if one can be used). A GPU runs
    /// only auto, pair and pair-last [default: cpu]
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Run")]
    device: Vec<DeviceChoice>,
    /// Minimum number of timed runs per case
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = whole::<usize>, allow_negative_numbers = true, help_heading = "Run")]
    runs: usize,
    /// Minimum number of seconds per case
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0.05,
        allow_negative_numbers = true,
        help_heading = "Run"
    )]
    seconds: f64,

    /// Directory for the results; must not exist
    #[arg(long, value_name = "DIR", default_value = "results/scan-bench", help_heading = "Output")]
    out: PathBuf,
    /// Replace an existing output directory if nmem wrote everything in it
    #[arg(long, help_heading = "Output")]
    force: bool,
    /// Draw no figures
    #[arg(long, help_heading = "Output")]
    no_plots: bool,
    /// Formats of the figures, separated by commas: svg, pdf, png
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "svg",
        value_name = "LIST",
        hide_possible_values = true,
        help_heading = "Output"
    )]
    figure_format: Vec<FigureFormat>,
    /// Output on stdout: a table for people, or all results as JSON for programs
    #[arg(
        long,
        value_enum,
        default_value_t,
        help_heading = "Output",
        hide_possible_values = true,
        value_name = "table|json"
    )]
    format: Format,
    /// Print only errors, and the output of --format json
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

/// Maximum number of values in a list. The limit on all combinations may be lower.
const MAX_LIST: usize = 128;

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (quiet, format, force) = (args.quiet, args.format, args.force);
    let lists = [&args.steps, &args.channels, &args.batch, &args.threads];
    for (flag, list) in ["--steps", "--channels", "--batch", "--threads"].into_iter().zip(lists) {
        if list.len() > MAX_LIST {
            return Err(
                Error::setting(flag, format!("at most {MAX_LIST} values"), list.len().to_string()).into()
            );
        }
    }
    args.config(false).check()?;
    let devices = or(&args.device, || vec![DeviceChoice::Cpu]);
    let mut devices = devices.into_iter().map(DeviceChoice::open).collect::<Result<Vec<_>, _>>()?;
    for text in devices.iter().filter_map(|device| device.note.as_deref()).filter(|_| !quiet) {
        note("note: ", text);
    }
    // `auto` may resolve to a device that is also named explicitly.
    let mut seen = Vec::new();
    devices.retain(|device| {
        let name = device.to_string();
        let new = !seen.contains(&name);
        seen.push(name);
        new
    });
    let on_gpus = devices.iter().all(|device| device.gpu().is_some());
    let config = args.config(on_gpus);
    let out = config.out.clone();
    let bar = Bar::new(quiet, "cases");
    let report = execute(config, &devices, force, &mut |event| {
        match event {
            BenchEvent::Starting(cases) => {
                begin_work();
                bar.start(cases);
            }
            BenchEvent::Working => {}
            BenchEvent::Done => bar.done(),
        }
        check_interrupt()
    });
    drop(bar);
    let report = report.map_err(|error| match error {
        Error::Interrupted => {
            let absent = storage::kind_of(&out).is_ok_and(|kind| kind.is_none());
            let left = if absent { "was not created" } else { "is unchanged" };
            anyhow::Error::new(error).context(format!("{} {left}", out.display()))
        }
        error => error.into(),
    })?;
    if on_gpus && !quiet {
        let others = args.algorithm.iter().filter(|algorithm| !algorithm.is_on_gpus()).map(|of| of.name());
        let others: Vec<_> = others.collect();
        if !others.is_empty() {
            let text = format!("{}: a GPU runs only auto, pair and pair-last", others.join(", "));
            note("skipped: ", &text);
        }
        if !args.threads.is_empty() {
            note("note: ", "--threads has no effect on a GPU");
        }
    }
    if !quiet {
        report.skipped.iter().for_each(|shape| note("skipped: ", shape));
        report.warnings.iter().for_each(|warning| note("warning: ", warning));
    }
    let shown = match format {
        Format::Json => print(&format!("{}\n", serde_json::to_string_pretty(&report)?)),
        Format::Table if quiet => Ok(true),
        Format::Table => print(&table(&report)),
    };
    if let Err(error) = &shown {
        print_error(&format!("{error:#}; the results are in {}", out.display()));
    }
    if !report.all_correct() {
        let wrong = report.rows.iter().filter(|row| !row.correct).count();
        print_error(&format!("{}: {wrong} results are wrong and were not timed", out.display()));
    }
    Ok(if shown.is_err() || !report.all_correct() { FAILED.into() } else { ExitCode::SUCCESS })
}

impl Args {
    /// Returns the configuration. `on_gpus` means that every device is a GPU.
    fn config(&self, on_gpus: bool) -> Config {
        let most = if self.full || on_gpus { 65_536 } else { 4096 };
        let own = self.steps.is_empty() && self.channels.is_empty() && self.batch.is_empty();
        let shapes = if own {
            BenchShape::of_memory().chain(BenchShape::of_accelerated_scan(most)).collect()
        } else {
            let steps = or(&self.steps, || steps_to(most).collect());
            let (channels, batches) = (or(&self.channels, || vec![1536]), or(&self.batch, || vec![8]));
            let mut shapes = Vec::new();
            for &batch in &batches {
                for &channels in &channels {
                    shapes.extend(steps.iter().map(|&steps| BenchShape { batch, steps, channels }));
                }
            }
            shapes
        };
        let algorithms = [
            Algorithm::Auto,
            Algorithm::Sequential,
            Algorithm::Channels,
            Algorithm::Time,
            Algorithm::Tree,
            Algorithm::PairSequential,
            Algorithm::Pair,
            Algorithm::PairLast,
        ];
        Config {
            algorithms: or(&self.algorithm, || algorithms.to_vec()),
            shapes,
            threads: or(&self.threads, || vec![std::thread::available_parallelism().map_or(1, usize::from)]),
            layouts: or(&self.layout, || vec![Layout::StepsChannels, Layout::ChannelsSteps]),
            gates: or(&self.gate, || vec![Gate::Step, Gate::Element]),
            dtypes: or(&self.dtype, || vec![ElementType::F32]),
            runs: self.runs,
            seconds: self.seconds,
            max_bytes: self.max_bytes,
            out: self.out.clone(),
            plots: !self.no_plots,
            figure_format: self.figure_format.clone(),
        }
    }
}

/// Returns a typed list without duplicates, or the default for an empty one.
fn or<T: Clone + PartialEq>(typed: &[T], default: impl FnOnce() -> Vec<T>) -> Vec<T> {
    let mut list = Vec::new();
    for item in if typed.is_empty() { default() } else { typed.to_vec() } {
        if !list.contains(&item) {
            list.push(item);
        }
    }
    list
}

const HEADINGS: [&str; 9] =
    ["batch × steps × channels", "layout", "gate", "algorithm", "threads", "ms", "GB/s", "of copy", "error"];
/// Number of left-aligned text columns; numbers are aligned to the right.
const LEFT: usize = 4;

fn table(report: &Report) -> String {
    let dtypes = report.config.dtypes.len() > 1;
    let cells = report.rows.iter().map(|row| cells(row, dtypes));
    let rows: Vec<_> =
        std::iter::once(HEADINGS.map(str::to_owned)).chain(cells).map(|row| row.to_vec()).collect();
    let mut text = String::new();
    for line in aligned(&rows, LEFT) {
        let _ = writeln!(text, "{line}");
    }
    for shape in &report.skipped {
        let _ = writeln!(text, "skipped   {shape}");
    }
    let machine = &report.machine;
    let cpu = machine.cpu.as_deref().unwrap_or("unknown CPU");
    let _ = writeln!(text, "machine   {cpu}, {} cores, {}", machine.logical_cores, machine.vector_isa);
    for gpu in &report.gpus {
        let _ = writeln!(text, "          {gpu}");
    }
    let _ = writeln!(text, "time      {:.1} s", report.wall_s);
    let _ = writeln!(text, "results   {}", for_terminal(&report.config.out.display().to_string()));
    text
}

fn cells(row: &BenchRow, with_dtype: bool) -> [String; HEADINGS.len()] {
    let or_dash =
        |x: Option<f64>, digits: usize| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.digits$}"));
    let dtype = if with_dtype { format!(" {}", row.dtype) } else { String::new() };
    let algorithm = match row.algorithm {
        Algorithm::Auto => format!("auto = {}", row.chosen.name()),
        other => other.name().to_owned(),
    };
    [
        format!("{} × {} × {}{dtype}", row.batch, row.steps, row.channels),
        row.layout.name().to_owned(),
        row.gate.name().to_owned(),
        algorithm,
        if row.threads == 0 { row.device.clone() } else { row.threads.to_string() },
        or_dash(row.median_ms, 3),
        or_dash(row.gb_per_s, 1),
        row.copy_fraction.map_or_else(|| "-".to_owned(), |x| format!("{:.0} %", x * 100.0)),
        format!("{:.1e}", row.max_abs_error),
    ]
}
