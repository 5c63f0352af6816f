//! `nmem sweep`: runs the grid of an experiment in parallel, and can be resumed.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use super::cluster::{self, ClusterArgs};
use super::progress::SweepProgress;
use super::results_table::results_table;
use super::sweep_report::{Summary, dry_table, planned, varying};
use super::{FAILED, Format, INTERRUPTED, OutputArgs, begin_work, check_interrupt, note, print, print_error};
use super::{collect, sweep_status};
use crate::condition::Condition;
use crate::config::{nearest, whole};
use crate::cuda::Devices;
use crate::error::Error;
use crate::io::text::{MAX_TOML, TextFile};
use crate::plot::{self, CsvSource, FigureFormat, Request};
use crate::real::ElementType;
use crate::run::{Keep, UNSTABLE_RATIO};
use crate::storage;
use crate::sweep::{
    self, DirectoryLock, Experiment, Options, Plan, PlanFile, PlannedRun, Records, RerunIf, Results, Shard,
    SweepDirectory, SweepEvent, condition_on_row,
};

/// Run the grid of an experiment in parallel; finished runs are not repeated
///
/// Writes results.csv, summary.csv, joblog.tsv and runs/ to --out. KEY=VALUES overrides the file for every run. VALUES is
/// a list such as 0.1,0.2, a range(start,end) or range(start,end,step) that excludes its end, a
/// linspace(first,last,count), or a logspace(first,last,count) between two values.
#[derive(clap::Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches")]
pub struct Args {
    /// Experiment to run
    #[arg(
        help = "Experiment file: run, [fixed], [grid], [zip], [[run]], [when], exclude, stop_when. Not needed with KEY=VALUES: \
                nmem sweep data=seq.npy seed=0,1",
        value_name = "EXPERIMENT.toml",
        required_unless_present = "collect"
    )]
    experiment: Option<PathBuf>,
    /// Settings that override the experiment file, named as in a configuration: seed='range(0,5)'. Without the quotes most
    /// shells stop at the parenthesis
    #[arg(value_name = "KEY=VALUES")]
    settings: Vec<String>,

    /// Number of runs at once, which divide the cores among them [default: the number of cores]
    #[arg(short, long, value_name = "N", value_parser = whole::<usize>, help_heading = "Run")]
    jobs: Option<usize>,
    /// Print the runs with their ids and states without running them
    #[arg(long, help_heading = "Run")]
    dry_run: bool,
    /// Print the state of each run and the reason for it, without running any: current, other version, stale or missing
    #[arg(long, conflicts_with = "dry_run", help_heading = "Run")]
    status: bool,
    /// Select runs by their settings: --where 'decay = 0 and seed < 3'. With --collect, by results too
    #[arg(long, value_name = "CONDITION", help_heading = "Run")]
    r#where: Option<String>,
    /// Repeat finished runs of another version, or of another commit. By default they stay
    #[arg(
        long,
        value_enum,
        hide_possible_values = true,
        value_name = "version|commit",
        help_heading = "Run"
    )]
    rerun_if: Option<RerunIf>,
    /// Time after which a run fails: 90, 90s, 5m or 2h
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Run")]
    timeout: Option<Duration>,
    /// Stop at the first run that fails or diverges
    #[arg(long, help_heading = "Run")]
    fail_fast: bool,
    /// Ratio above which a chunk is unstable: loss_before > R × loss
    #[arg(long, value_name = "R", default_value_t = UNSTABLE_RATIO, help_heading = "Run")]
    unstable_ratio: f64,

    /// Sweep directory; an existing one is resumed [default: results/EXPERIMENT-sweep]
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: Option<PathBuf>,
    /// Files to keep of each run: metrics.csv and run.json, all, or none
    #[arg(
        long,
        value_enum,
        default_value = "metrics",
        hide_possible_values = true,
        value_name = "none|metrics|all",
        help_heading = "Output"
    )]
    keep: Keep,
    /// Start over: remove the files that earlier sweeps wrote to the directory
    #[arg(long, help_heading = "Output")]
    force: bool,
    /// Run nothing. Write tables and figures of the finished runs in a sweep's directory, and list the missing runs
    #[arg(long, value_name = "DIR", conflicts_with_all = ["experiment", "settings", "jobs", "dry_run", "status", "rerun_if", "timeout", "fail_fast", "unstable_ratio", "out", "keep", "force"], help_heading = "Shards and Slurm")]
    collect: Option<PathBuf>,
    /// Plan to collect, by the name of its file in plans/ [default: the one started last]
    #[arg(long, value_name = "HASH", requires = "collect", help_heading = "Shards and Slurm")]
    plan: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    figure: FigureArgs,
    /// Draw no figures
    #[arg(long, help_heading = "Figures")]
    no_plots: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Choice of columns and formats of the figures.
#[derive(clap::Args, Debug)]
pub struct FigureArgs {
    /// Parameter along the x axis [default: chosen by the data, as for --y and --hue]
    #[arg(long, value_name = "COLUMN", help_heading = "Figures")]
    x: Option<String>,
    /// Columns of results.csv to draw, each in its own figure; a/b divides one column by another
    #[arg(long, value_name = "COLUMN,…", value_delimiter = ',', help_heading = "Figures")]
    y: Vec<String>,
    /// Parameter whose values become separate lines, or the rows of a map
    #[arg(long, value_name = "COLUMN", help_heading = "Figures")]
    hue: Option<String>,
    /// Formats of the figures, separated by commas: svg, pdf, png, pgfplots, csv
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "svg",
        value_name = "LIST",
        hide_possible_values = true,
        help_heading = "Figures"
    )]
    figure_format: Vec<FigureFormat>,
}

impl FigureArgs {
    /// Rejects names in --y that are no results, before any run.
    fn check_results(&self) -> crate::Result<()> {
        self.y.iter().try_for_each(|name| {
            if Results::is_known(name) {
                return Ok(());
            }
            let part = name.split('/').map(str::trim).find(|part| !Results::is_known(part)).unwrap_or(name);
            let near = nearest(part, Results::NAMES.iter().copied());
            let known = Results::NAMES.join(", ");
            let reason = format!("no result {part}{near}; pass a column, or two as a/b, of {known}");
            Err(Error::rejected("--y", reason))
        })
    }

    /// Rejects names in --x and --hue that are no parameters of the plan or of earlier runs in the directory. --x may be a
    /// result, too.
    fn check_parameters(&self, plan: &Plan, known: &Records) -> crate::Result<()> {
        let planned = plan.runs.iter().map(|run| &run.parameters);
        let earlier = known.runs.values().map(|record| &record.parameters);
        let keys: BTreeSet<&str> =
            planned.chain(earlier).flat_map(|row| row.keys().map(String::as_str)).collect();
        let result = |name: &str| Results::is_known(name);
        for (flag, name) in
            [("--x", self.x.as_deref().filter(|x| !result(x))), ("--hue", self.hue.as_deref())]
        {
            let Some(name) = name.filter(|name| !keys.contains(name)) else { continue };
            let known = keys.iter().copied().collect::<Vec<_>>().join(", ");
            let reason = format!("no parameter {name}; the parameters are {known}");
            return Err(Error::rejected(flag, reason));
        }
        Ok(())
    }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    args.check()?;
    if let Some(directory) = &args.collect {
        return args.collect(directory);
    }
    let (experiment, file) = args.experiment()?;
    let out = args.out.clone().unwrap_or_else(|| default_out(file.as_deref(), &experiment));
    let directory = SweepDirectory::check(&out)?;
    let mut plan = args.plan(&experiment)?;
    let for_slurm = args.cluster.is_for_slurm();
    let shard = if for_slurm { Shard::WHOLE } else { args.cluster.shard(args.output.quiet)? };
    if args.force && shard != Shard::WHOLE && !args.dry_run {
        let reason =
            format!("shard {shard} would remove the results of the other shards; use --force without shards");
        return Err(Error::rejected("--force", reason).into());
    }
    let known = if args.force { Records::default() } else { directory.records()? };
    args.figure.check_parameters(&plan, &known)?;
    plan.adopt(&directory, &known)?;
    let mine: Vec<usize> = (0..plan.runs.len()).filter(|&place| shard.holds(place)).collect();
    let runs: Vec<_> = mine.iter().map(|&place| &plan.runs[place]).collect();
    let states = directory.states(&runs, &known, args.keep, args.rerun_if)?;
    let finished: HashSet<&str> =
        runs.iter().zip(&states).filter(|(_, state)| state.is_done()).map(|(run, _)| &*run.id).collect();
    let done = |run: &PlannedRun| finished.contains(&*run.id);
    if args.status {
        print(&sweep_status::status(&plan, &runs, &states, args.output.format)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let todo: Vec<usize> = mine.iter().copied().filter(|&place| !done(&plan.runs[place])).collect();
    announce_size(&plan, &todo, &directory, args.keep, args.output.quiet);
    if args.dry_run {
        let text = match args.output.format {
            Format::Json => format!("{}\n", serde_json::to_string_pretty(&planned(&plan, &mine, &done))?),
            Format::Table => dry_table(&plan, &mine, &done),
        };
        print(&text)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.cluster.is_dry_run() {
        print(&args.submit(file.as_deref(), directory.path(), &plan)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    // If Slurm's jobs do the runs, this process needs no GPU.
    let devices = if for_slurm { Devices::default() } else { open_devices(&plan, &todo, args.output.quiet)? };
    let plan_file = plan.file();
    let _in_use = args.begin(&directory, file.as_deref(), &plan, &plan_file)?;
    if for_slurm {
        print(&args.submit(file.as_deref(), directory.path(), &plan)?)?;
        return Ok(ExitCode::SUCCESS);
    }

    let cores = cluster::cores();
    warn_threads(&plan, cores, args.output.quiet);
    let options = Options {
        jobs: args.jobs.unwrap_or(cores).clamp(1, todo.len().max(1)),
        cores,
        keep: args.keep,
        fail_fast: args.fail_fast,
        unstable_ratio: args.unstable_ratio,
        timeout: args.timeout,
    };
    begin_work();
    let keys = varying(&plan);
    let begin = Instant::now();
    let progress = SweepProgress::new(args.output.quiet, todo.len());
    let observe = |event: SweepEvent| {
        progress.show(event, &keys);
        check_interrupt()
    };
    let (ran, ended) = sweep::run(&directory, &plan, &todo, &options, &devices, &observe);
    drop(progress);
    let took = begin.elapsed().as_secs_f64();

    // Finished runs are kept and reported, whatever ended the sweep.
    let collected = sweep::collect(directory.path(), Some(&plan_file.hash()))?;
    if !args.output.quiet {
        collected.warnings.iter().for_each(|warning| note("warning: ", warning));
    }
    // A single shard shows little, so only --collect draws the figures of shards.
    if !args.no_plots && ended.is_ok() && shard == Shard::WHOLE {
        draw(directory.path(), &args.figure, args.output.quiet)?;
    }
    let done_before = mine.len() - todo.len();
    let summary = Summary {
        done_before,
        wall_s: took,
        ..Summary::new(directory.path(), &plan, &mine, &ran, &collected.rows)
    };
    match args.output.format {
        Format::Json => print(&format!("{}\n", serde_json::to_string_pretty(&summary)?)),
        Format::Table if args.output.quiet => Ok(true),
        Format::Table => {
            print(&format!("{}{}", summary.table(), results_table(&summary.records, &args.figure.y)))
        }
    }?;
    for failure in &summary.failed {
        print_error(&failure.line());
    }
    status(ended, args.fail_fast, &summary)
}

/// Rejects a directory to clear that holds an input of this sweep.
fn reject_inputs_inside(
    directory: &SweepDirectory,
    experiment: Option<&Path>,
    plan: &Plan,
) -> crate::Result<()> {
    // A directory that does not exist holds nothing.
    let Ok(canonical) = std::fs::canonicalize(directory.path()) else { return Ok(()) };
    let ready = plan.runs.iter().filter_map(|run| run.ready.as_ref().ok());
    let inputs = ready.flat_map(|ready| ready.inputs.files().map(|input| &*input.path));
    for input in inputs.chain(experiment).collect::<BTreeSet<_>>() {
        if std::fs::canonicalize(input).is_ok_and(|input| input.starts_with(&canonical)) {
            let (out, input) = (directory.path().display(), input.display());
            let reason =
                format!("{out} holds {input}, which this sweep reads; move it away or choose another --out");
            return Err(Error::rejected("--force", reason));
        }
    }
    Ok(())
}

/// Opens the devices of the runs that are still to be done.
fn open_devices(plan: &Plan, todo: &[usize], quiet: bool) -> crate::Result<Devices> {
    let ready = todo.iter().filter_map(|&place| plan.runs[place].ready.as_ref().ok());
    let devices = Devices::open(ready.clone().map(|ready| ready.config.device))?;
    if !quiet {
        let notes: BTreeSet<_> =
            ready.filter_map(|ready| ready.config.device_note).chain(devices.notes()).collect();
        for text in notes {
            note("note: ", text);
        }
    }
    Ok(devices)
}

/// Prints how the sweep ended and returns the exit status.
fn status(ended: crate::Result<()>, fail_fast: bool, summary: &Summary) -> anyhow::Result<ExitCode> {
    match ended {
        Ok(()) => {
            if summary.missing > 0 {
                let (missing, out) = (summary.missing, summary.out.display());
                print_error(&format!(
                    "{missing} runs have no record in {out}; repeat the command to run them"
                ));
            }
            let all_well = summary.failed.is_empty() && summary.missing == 0;
            Ok(if all_well { ExitCode::SUCCESS } else { FAILED.into() })
        }
        Err(Error::Interrupted) => {
            let missing = summary.missing;
            print_error(&format!(
                "interrupted: {} keeps the finished runs; repeat the command to do the other {missing}",
                summary.out.display()
            ));
            Ok(INTERRUPTED.into())
        }
        Err(error) if fail_fast && !summary.failed.is_empty() => {
            print_error(&error.to_string());
            Ok(FAILED.into())
        }
        Err(error) => Err(error.into()),
    }
}

impl Args {
    /// Returns whether the first argument is a setting instead of a file.
    fn is_without_file(&self) -> bool {
        let text = self.experiment.as_ref().and_then(|path| path.to_str());
        text.is_some_and(|text| text.contains('=') && !Path::new(text).exists())
    }

    /// Returns the settings of the command line.
    fn settings(&self) -> impl Iterator<Item = &str> {
        let first = self.experiment.as_ref().filter(|_| self.is_without_file());
        first.and_then(|first| first.to_str()).into_iter().chain(self.settings.iter().map(String::as_str))
    }

    /// Returns the experiment with the settings of the command line, and its file.
    fn experiment(&self) -> crate::Result<(Experiment, Option<PathBuf>)> {
        let file = self.experiment.clone().filter(|_| !self.is_without_file());
        let mut experiment = match &file {
            None => Experiment::empty(),
            Some(file) if file.extension().is_some_and(|extension| extension == "npy") => {
                let file = file.display();
                let reason = format!("a sequence, not an experiment; write data={file}");
                return Err(Error::rejected(file.to_string(), reason));
            }
            Some(file) if storage::is_directory(file)? => {
                let reason =
                    "a directory, not an experiment; name a .toml file, or read results with --collect";
                return Err(Error::rejected(file.display().to_string(), reason));
            }
            Some(file) => {
                let text = TextFile::read(file, MAX_TOML)?;
                if text.is_stream() && self.cluster.is_for_slurm() {
                    let reason =
                        format!("{} is a pipe or device; name a file that the jobs can read", file.display());
                    return Err(Error::rejected("--slurm", reason));
                }
                Experiment::read(&text)?
            }
        };
        self.settings().try_for_each(|setting| experiment.override_setting(setting))?;
        Ok((experiment, file))
    }

    /// Returns the condition of `--where`.
    fn condition(&self) -> crate::Result<Option<Condition>> {
        let parse = |text: &String| condition_on_row(text, self.collect.is_some());
        self.r#where.as_ref().map(parse).transpose().map_err(|reason| Error::rejected("--where", reason))
    }

    /// Collects the sweep in `directory`.
    fn collect(&self, directory: &Path) -> anyhow::Result<ExitCode> {
        let options = collect::Options {
            plan: self.plan.as_deref(),
            figure: (!self.no_plots).then_some(&self.figure),
            metrics: &self.figure.y,
            condition: self.condition()?,
            format: self.output.format,
            quiet: self.output.quiet,
        };
        collect::run(directory, &options)
    }

    /// Returns the runs to consider: those of the experiment that satisfy `--where`.
    fn plan(&self, experiment: &Experiment) -> crate::Result<Plan> {
        let mut plan = Plan::new(experiment, self.unstable_ratio, &mut |_| check_interrupt())?;
        if let Some(condition) = &self.condition()? {
            plan.select(condition);
            if plan.runs.is_empty() {
                return Err(Error::rejected("--where", format!("`{condition}` holds for no run")));
            }
        }
        if plan.repeated > 0 && !self.output.quiet {
            let (rows, s) = (plan.repeated, if plan.repeated == 1 { "" } else { "s" });
            note("note: ", &format!("skipped {rows} row{s} with the same run as another row"));
        }
        Ok(plan)
    }

    /// Checks the arguments that clap cannot check.
    fn check(&self) -> crate::Result<()> {
        if self.unstable_ratio.is_nan() || self.unstable_ratio <= 0.0 {
            let expected = "a number above 0";
            return Err(Error::setting("--unstable-ratio", expected, self.unstable_ratio.to_string()));
        }
        if self.jobs == Some(0) {
            return Err(Error::setting("--jobs", "at least 1", "0"));
        }
        if self.jobs.is_some() && self.cluster.is_for_slurm() {
            return Err(Error::rejected("--jobs", "cannot be combined with --slurm; use --cpus-per-task"));
        }
        self.figure.figure_format.iter().try_for_each(|format| format.check())?;
        self.figure.check_results()?;
        self.cluster.check(self.collect.is_some())
    }

    /// Prepares the sweep's directory and locks it.
    fn begin(
        &self,
        directory: &SweepDirectory,
        file: Option<&Path>,
        plan: &Plan,
        plan_file: &PlanFile,
    ) -> crate::Result<DirectoryLock> {
        if self.cluster.is_for_slurm() && directory.path().to_str().is_none() {
            return Err(Error::rejected("--slurm", "its scripts need paths in UTF-8; choose another --out"));
        }
        if self.force {
            reject_inputs_inside(directory, file, plan)?;
            let _alone = directory.lock(true)?;
            directory.clear()?;
        }
        let in_use = directory.lock(false)?;
        directory.clear_stale();
        directory.start(plan_file)?;
        Ok(in_use)
    }

    /// Submits the sweep, or only renders its script. Returns the text to print.
    fn submit(&self, file: Option<&Path>, directory: &Path, plan: &Plan) -> crate::Result<String> {
        let file = file.map(|file| std::path::absolute(file).map_err(Error::io(file, "find"))).transpose()?;
        let mut arguments: Vec<_> = file.iter().map(|file| file.to_string_lossy().into_owned()).collect();
        arguments.extend(self.settings().map(str::to_owned));
        let keep = self.keep.to_possible_value();
        arguments.extend(keep.map(|keep| format!("--keep={}", keep.get_name())));
        arguments.push(format!("--unstable-ratio={}", self.unstable_ratio));
        arguments.extend(self.fail_fast.then(|| "--fail-fast".to_owned()));
        arguments.extend(self.r#where.iter().map(|condition| format!("--where={condition}")));
        arguments.extend(self.timeout.map(|timeout| format!("--timeout={}", timeout.as_secs_f64())));
        let rerun_if = self.rerun_if.and_then(|rerun_if| rerun_if.to_possible_value());
        arguments.extend(rerun_if.map(|rerun_if| format!("--rerun-if={}", rerun_if.get_name())));

        let FigureArgs { x, y, hue, figure_format } = &self.figure;
        let mut collect_arguments: Vec<_> = y.iter().map(|y| format!("--y={y}")).collect();
        collect_arguments.extend(x.iter().map(|x| format!("--x={x}")));
        collect_arguments.extend(hue.iter().map(|hue| format!("--hue={hue}")));
        collect_arguments.extend(
            figure_format.iter().filter(|&&format| format != FigureFormat::Svg).filter_map(|format| {
                Some(format!("--figure-format={}", format.to_possible_value()?.get_name()))
            }),
        );
        collect_arguments.extend(self.no_plots.then(|| "--no-plots".to_owned()));
        collect_arguments.push(format!("--plan={}", plan.file().hash()));
        self.cluster.submit(directory, plan.runs.len(), arguments, collect_arguments)
    }
}

/// Draws a sweep's figures from its results.csv.
pub(super) fn draw(directory: &Path, figure: &FigureArgs, quiet: bool) -> anyhow::Result<()> {
    let plots = directory.join("plots");
    let FigureArgs { x, y, hue, figure_format } = figure;
    storage::create_directories(&plots)?;
    let command = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).skip(1);
    let command: Vec<_> = std::iter::once("nmem".to_owned()).chain(command).collect();
    let origin = shlex::try_join(command.iter().map(String::as_str)).ok();
    let request = Request { x: x.clone(), y: y.clone(), hue: hue.clone(), origin, ..Request::default() };
    let of = |csv: &Path| -> crate::Result<_> {
        plot::draw(&[CsvSource::find(csv, None)?], &request, &mut check_interrupt)
    };
    let mut drawn = of(&directory.join("results.csv"))?;
    let retention = directory.join("retention.csv");
    if storage::kind_of(&retention)?.is_some() {
        // The x and y of results.csv are no columns of retention.csv.
        let of_retention = of(&retention)?;
        drawn.figures.extend(of_retention.figures);
        drawn.notes.extend(of_retention.notes);
    }
    let files = drawn.files(&plots, figure_format).collect::<crate::Result<Vec<_>>>()?;
    let new: HashSet<_> = files.iter().map(|(path, _)| path.clone()).collect();
    storage::replace_all(files.into_iter().map(Ok))?;
    // A figure of a column that is no longer drawn would show older results.
    let is_own = storage::kind_of(&plots)?.is_some_and(|kind| kind.is_dir());
    if y.is_empty() && is_own {
        for entry in std::fs::read_dir(&plots).map_err(Error::io(&plots, "read"))? {
            let entry = entry.map_err(Error::io(&plots, "read"))?;
            if sweep::is_figure_of_sweep(&entry.file_name()) && !new.contains(&entry.path()) {
                storage::remove_file(&entry.path())?;
            }
        }
    }
    if !quiet {
        drawn.notes.iter().for_each(|text| note("note: ", text));
    }
    Ok(())
}

/// Parses a time in seconds, minutes or hours.
fn duration(text: &str) -> Result<Duration, String> {
    let expected = || "expected a time above 0, such as 90, 90s, 5m or 2h".to_owned();
    let units = [("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let unit = units.into_iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)));
    let (number, seconds) = unit.unwrap_or((text, 1.0));
    let number: f64 = number.parse().map_err(|_| expected())?;
    Duration::try_from_secs_f64(number * seconds).ok().filter(|time| !time.is_zero()).ok_or_else(expected)
}

/// Returns results/STEM-sweep. STEM is the experiment file's, or that of its directory if the file is called sweep.toml.
/// Without a file it is that of the first sequence.
fn default_out(file: Option<&Path>, experiment: &Experiment) -> PathBuf {
    let data = experiment.data().map(PathBuf::from);
    let path = file.or(data.as_deref()).unwrap_or(Path::new(""));
    let stem = path.file_stem().unwrap_or_default();
    let directory = std::path::absolute(path).ok();
    let directory = directory.as_deref().and_then(Path::parent).and_then(Path::file_name);
    let stem = directory.filter(|_| stem == "sweep").unwrap_or(stem);
    let mut name = stem.to_os_string();
    name.push("-sweep");
    Path::new("results").join(name)
}

/// Size of kept files above which a sweep announces it. Smaller ones fit on any disk that holds the inputs.
const ANNOUNCED_BYTES: f64 = 1e9;
/// Bytes of a cell of metrics.csv, with its comma (measured: 10 in f32, 18 in f64).
const CELL_BYTES: [f64; 2] = [10.0, 18.0];

/// Announces about how much space the metrics of the runs will take.
fn announce_size(plan: &Plan, todo: &[usize], directory: &SweepDirectory, keep: Keep, quiet: bool) {
    if keep == Keep::None || quiet {
        return;
    }
    let ready = todo.iter().filter_map(|&place| plan.runs[place].ready.as_ref().ok());
    let bytes: f64 = ready
        .map(|ready| {
            let cell = CELL_BYTES[usize::from(ready.config.dtype == ElementType::F64)];
            ready.inputs.metric_cells() as f64 * cell
        })
        .sum();
    if bytes > ANNOUNCED_BYTES {
        let (runs, out) = (todo.len(), directory.path().display());
        let text = format!(
            "the metrics of {runs} runs will take about {:.1} GB in {out} (--keep none keeps none)",
            bytes / 1e9
        );
        note("note: ", &text);
    }
}

/// Warns if a run asks for more threads than cores, because it does not get them.
fn warn_threads(plan: &Plan, cores: usize, quiet: bool) {
    let asked = plan.runs.iter().filter_map(|run| run.ready.as_ref().ok()?.config.threads).max();
    if let Some(asked) = asked.filter(|&asked| asked > cores && !quiet) {
        note(
            "warning: ",
            &format!(
                "threads: {asked} requested, but only {cores} cores are available; no run uses more than {cores}"
            ),
        );
    }
}
