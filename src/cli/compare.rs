//! `nmem compare`: where and by how much two memories, configurations or runs differ, and what a parameter of a sweep
//! changes against a baseline.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::table::{aligned, number};
use super::{Format, OutputArgs, begin_work, check_interrupt, note, print};
use crate::compare::{self, Baseline, BaselineReport, Comparison, Place, Quantity, Unmatched};
use crate::config::{Command, ProbeSetting, Settings, whole};
use crate::error::Error;
use crate::io::text::{MAX_TOML, TextFile};
use crate::paired::PairedDifference;
use crate::plot::{self, CsvSource, FigureFormat, Kind, Request};
use crate::run::execute;
use crate::storage;

/// Compare two memories, configurations or runs: where they differ first, by how much, and paired means with intervals
///
/// With SEQ both read and store it, as `retrieve --online --probe` does. Without SEQ both are run directories, whose files
/// are compared. With --baseline, A is the directory of a sweep: each setting is compared with the one that has the
/// baseline's values, paired by seed.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Run directory, memory (.safetensors, .npz) or configuration (.toml); with --baseline, a sweep's directory
    #[arg(value_name = "A")]
    a: PathBuf,
    /// The other one
    #[arg(value_name = "B", required_unless_present = "baseline", conflicts_with = "baseline")]
    b: Option<PathBuf>,
    /// Sequence that both read and store
    #[arg(value_name = "SEQ.npy", conflicts_with = "baseline")]
    sequence: Option<PathBuf>,
    /// Tokens per chunk of parameters that do not record it, with SEQ
    #[arg(long, value_name = "N", requires = "sequence", value_parser = whole::<usize>, allow_negative_numbers = true)]
    chunk_size: Option<usize>,
    /// Pair random memories of N seeds, from 0, with SEQ
    #[arg(long, value_name = "N", requires = "sequence", value_parser = whole::<usize>, allow_negative_numbers = true)]
    seeds: Option<usize>,

    /// Values of a sweep's parameters to compare with: decay=0, or several separated by commas
    #[arg(long, value_name = "PARAMETER=VALUE", help_heading = "Sweeps")]
    baseline: Option<Baseline>,
    /// Parameters in which paired runs may differ, such as the seed or a note that numbers draws
    #[arg(
        long,
        value_name = "PARAMETER,…",
        value_delimiter = ',',
        default_value = "seed",
        requires = "baseline",
        help_heading = "Sweeps"
    )]
    over: Vec<String>,
    /// Columns of results.csv to compare [default: losses, retained ratio, recall and surprise]
    #[arg(
        long,
        value_name = "COLUMN,…",
        value_delimiter = ',',
        requires = "baseline",
        help_heading = "Sweeps"
    )]
    y: Vec<String>,

    /// Directory for the results: compare.json, differences.csv and figures; for a sweep, paired.csv
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: Option<PathBuf>,
    /// Replace existing files
    #[arg(long, requires = "out", help_heading = "Output")]
    force: bool,
    #[command(flatten)]
    output: OutputArgs,
}

const EXAMPLES: &str = "\
Examples:
  nmem compare results/run-1 results/run-2
  nmem compare a.toml b.toml tokens.npy --seeds 10
  nmem compare results/forgetting-sweep --baseline decay=0 --y retained_ratio";

/// Most seeds; a larger number is taken for a typing error.
const MAX_SEEDS: usize = 10_000;

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let named = ["compare.json", "differences.csv", "paired.csv"];
    if let Some(out) = args.out.as_ref().filter(|_| !args.force) {
        for name in named {
            if storage::exists(&out.join(name))? {
                let reason = format!(
                    "{} already has a {name}; use --force to replace it, or choose another directory",
                    out.display()
                );
                return Err(Error::rejected("--out", reason).into());
            }
        }
    }
    if let Some(baseline) = &args.baseline {
        return args.sweep(baseline);
    }
    if !args.y.is_empty() {
        return Err(Error::rejected("--y", "chooses columns of a sweep; add --baseline, or omit it").into());
    }
    let b = args.b.as_deref().unwrap_or(Path::new(""));
    let temporary;
    let pairs = match &args.sequence {
        Some(sequence) => {
            temporary =
                tempfile::tempdir().map_err(Error::io(std::env::temp_dir(), "make a directory in"))?;
            args.run_both(b, sequence, temporary.path())?
        }
        None => vec![(run_directory(&args.a)?, run_directory(b)?)],
    };
    let comparison = compare::runs(&pairs, &mut || check_interrupt())?;
    let json = format!("{}\n", serde_json::to_string_pretty(&comparison)?);
    if let Some(out) = &args.out {
        args.write(out, &comparison, &json)?;
    }
    match args.output.format {
        Format::Json => print(&json)?,
        Format::Table if args.output.quiet => true,
        Format::Table => print(&table(&comparison))?,
    };
    Ok(ExitCode::SUCCESS)
}

/// Checks that a path is the directory of a run.
fn run_directory(path: &Path) -> crate::Result<PathBuf> {
    if storage::exists(&path.join("run.json"))? {
        return Ok(path.to_path_buf());
    }
    let reason = "is not the directory of a run; pass one, or add a sequence that both store and read";
    Err(Error::rejected(path.display().to_string(), reason))
}

impl Args {
    /// Runs both sides on a sequence, once or for each seed. Returns the pairs of run directories.
    fn run_both(&self, b: &Path, sequence: &Path, at: &Path) -> anyhow::Result<Vec<(PathBuf, PathBuf)>> {
        if let Some(seeds) = self.seeds.filter(|seeds| !(1..=MAX_SEEDS).contains(seeds)) {
            let expected = format!("1 to {MAX_SEEDS}");
            return Err(Error::setting("--seeds", expected, seeds.to_string()).into());
        }
        let seeds = self.seeds.map_or(vec![None], |seeds| (0..seeds as u64).map(Some).collect());
        let mut pairs = Vec::new();
        for (place, seed) in seeds.into_iter().enumerate() {
            let one = |side: &Path, name: &str| -> anyhow::Result<PathBuf> {
                let out = at.join(format!("{name}{place}"));
                let mut settings = self.settings(side)?;
                (settings.data, settings.out) = (Some(sequence.to_path_buf()), Some(out.clone()));
                (settings.online, settings.no_plots) = (Some(true), Some(true));
                settings.probe = Some(ProbeSetting::LOSSES);
                settings.seed = seed.or(settings.seed);
                let config = settings.validate(Command::Retrieve)?;
                let device = config.device.open()?;
                begin_work();
                let mut observe = |_| check_interrupt();
                let (command, line) = (Command::Retrieve, Vec::new());
                let output = execute(command, &config, &device, line, false, &mut observe, &|| false)?;
                if let Some(divergence) = output.report.diverged.filter(|_| !self.output.quiet) {
                    let text = format!("{}: diverged at {divergence}", side.display());
                    note("warning: ", &text);
                }
                Ok(out)
            };
            pairs.push((one(&self.a, "a")?, one(b, "b")?));
        }
        Ok(pairs)
    }

    /// Returns the settings of one side: a configuration, or a memory.
    fn settings(&self, side: &Path) -> crate::Result<Settings> {
        if side.extension().is_some_and(|ending| ending == "toml") {
            let file = TextFile::read(side, MAX_TOML)?;
            let settings = Settings::from_toml(&file)?;
            return Ok(Settings { store_seq: None, target: None, labels: None, ..settings });
        }
        let memory = if storage::is_directory(side)? { side.join("memory.safetensors") } else { side.into() };
        Ok(Settings { memory: Some(memory), chunk_size: self.chunk_size, ..Settings::default() })
    }

    fn write(&self, out: &Path, comparison: &Comparison, json: &str) -> anyhow::Result<()> {
        storage::create_directories(out)?;
        storage::replace(&out.join("compare.json"), json.as_bytes())?;
        let Some(table) = comparison.table() else { return Ok(()) };
        let csv = out.join("differences.csv");
        storage::replace(&csv, &table)?;
        let differ = comparison.quantities.iter().filter(|of| of.differing > 0);
        let y: Vec<_> = differ.map(|of| of.name.clone()).filter(|name| FIGURES.contains(&&**name)).collect();
        if y.is_empty() {
            return Ok(());
        }
        let y = y.iter().map(|name| compare::difference_column(name)).collect();
        let request = Request { x: Some("chunk".to_owned()), y, ..Request::default() };
        let source = CsvSource::find(&csv, Some(Kind::Sweep))?;
        let drawn = plot::draw(&[source], &request, &mut || check_interrupt())?;
        if !self.output.quiet {
            drawn.notes.iter().for_each(|text| note("note: ", text));
        }
        storage::replace_all(drawn.files(out, &[FigureFormat::default()]))?;
        Ok(())
    }

    fn sweep(&self, baseline: &Baseline) -> anyhow::Result<ExitCode> {
        let csv = if storage::is_directory(&self.a)? { self.a.join("results.csv") } else { self.a.clone() };
        let report = compare::baseline(&csv, baseline, &self.over, &self.y)?;
        if let Some(out) = &self.out {
            storage::create_directories(out)?;
            storage::replace(&out.join("paired.csv"), &report.csv())?;
        }
        match self.output.format {
            Format::Json => print(&format!("{}\n", serde_json::to_string_pretty(&report)?))?,
            Format::Table if self.output.quiet => true,
            Format::Table => print(&baseline_table(&report))?,
        };
        Ok(ExitCode::SUCCESS)
    }
}

/// Quantities whose differences get a figure.
const FIGURES: [&str; 5] = ["loss", "loss_before", "surprise", "learning_rate", "update_norm"];

fn interval(of: Option<[f64; 2]>) -> String {
    of.map_or("-".to_owned(), |[low, high]| format!("[{}, {}]", number(low), number(high)))
}

fn p_value(of: Option<f64>) -> String {
    of.map_or("-".to_owned(), |p| if p < 1e-4 { "<0.0001".to_owned() } else { format!("{p:.4}") })
}

/// Formats the cells of a paired difference: n, both means, the difference, two intervals and p.
fn cells(of: Option<&PairedDifference>, p: Option<f64>) -> [String; 7] {
    let Some(of) = of else { return ["-"; 7].map(str::to_owned) };
    [
        of.n.to_string(),
        number(of.mean_a),
        number(of.mean_b),
        number(of.difference),
        interval(of.ci95_t),
        interval(of.ci95_bootstrap),
        p_value(p),
    ]
}

fn place(of: Place) -> String {
    let part = |name: &str, number: Option<u64>| number.map(|number| format!("{name} {number}"));
    let pair = (of.pair > 0).then(|| format!("pair {}", of.pair));
    let parts = [pair, part("sequence", Some(of.sequence)), part("chunk", of.chunk), part("head", of.head)];
    parts.into_iter().chain([part("token", of.token)]).flatten().collect::<Vec<_>>().join(", ")
}

fn lines(rows: &[Vec<String>], left: usize) -> String {
    aligned(rows, left).iter().fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

fn table(comparison: &Comparison) -> String {
    let headings = [
        "quantity",
        "pairs",
        "A",
        "B",
        "B − A",
        "95 % (t)",
        "95 % (bootstrap)",
        "p (Holm)",
        "differing",
        "largest",
        "first",
    ];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    // Single weights and tensors are many, and matter only where they differ.
    let (shown, equal): (Vec<_>, Vec<_>) =
        comparison.quantities.iter().partition(|of| of.differing > 0 || !of.name.contains('.'));
    for of in shown {
        let Quantity { name, compared, differing, largest, first, means, p_holm, .. } = of;
        let mut row = vec![name.clone()];
        row.extend(cells(means.as_ref(), *p_holm));
        row.extend(match compared {
            0 => ["-"; 2].map(str::to_owned),
            _ => [format!("{differing}/{compared}"), number(*largest)],
        });
        row.push(first.map_or(String::new(), place));
        rows.push(row);
    }
    let mut text = lines(&rows, 1);
    let equal = equal.iter().filter(|of| of.compared > 0).count();
    if equal > 0 && comparison.differs() {
        let _ = writeln!(text, "{equal} columns and tensors of single weights do not differ");
    }
    // Several pairs differ in the same names.
    let mut unmatched = BTreeMap::<_, usize>::new();
    for Unmatched { name, a, b, .. } in &comparison.unmatched {
        *unmatched.entry((name, a, b)).or_default() += 1;
    }
    for ((name, a, b), pairs) in unmatched {
        let [a, b] = [a, b].map(|form| form.as_deref().unwrap_or("nothing"));
        let pairs = if pairs > 1 { format!(", in {pairs} pairs") } else { String::new() };
        let _ = writeln!(text, "not compared: {name}: A has {a}, B has {b}{pairs}");
    }
    if !comparison.same_chunks {
        text += "the runs have different chunks, so only means are compared; losses are per token\n";
    } else if !comparison.differs() {
        text += "no number differs\n";
    }
    let firsts = comparison.quantities.iter().filter_map(|of| of.first).filter(|of| of.chunk.is_some());
    if let Some(first) = firsts.min_by_key(|of| (of.pair, of.sequence, of.chunk)) {
        let _ = writeln!(text, "first differing chunk: {}", place(Place { head: None, ..first }));
    }
    text
}

fn baseline_table(report: &BaselineReport) -> String {
    let parameters: Vec<String> =
        report.rows.first().map(|row| row.parameters.keys().cloned().collect()).unwrap_or_default();
    let headings =
        ["metric", "pairs", "baseline", "mean", "difference", "95 % (t)", "95 % (bootstrap)", "p (Holm)"];
    let header = parameters.iter().cloned().chain(headings.map(str::to_owned)).collect();
    let mut rows: Vec<Vec<String>> = vec![header];
    for row in &report.rows {
        let start = row.parameters.values().cloned().chain([row.metric.clone()]);
        rows.push(start.chain(cells(Some(&row.difference), row.p_holm)).collect());
    }
    let mut text = lines(&rows, parameters.len() + 1);
    text += "p is adjusted by Holm's method for the settings compared by one metric, not for the number of metrics\n";
    for (count, what) in [
        (report.unpaired, "runs have no successful run of the baseline"),
        (report.lost, "runs failed or diverged"),
        (report.not_finite, "pairs of values, of which one is missing or not finite"),
    ] {
        if count > 0 {
            let _ = writeln!(text, "not compared: {count} {what}");
        }
    }
    text
}
