//! Shared code of `store` and `retrieve`: settings from flags and a file, the run, and its short table on stdout.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::progress::Progress;
use super::table::number;
use super::{FAILED, Format, begin_work, check_interrupt, is_preempted, note, print, print_error};
use crate::config::{Command, Config, Mode, Settings};
use crate::error::Error;
use crate::escape::for_terminal;
use crate::io::text::{MAX_TOML, TextFile};
use crate::metrics::COLUMNS;
use crate::recall::{Cue, Interval, RecallReport};
use crate::run::{RETRIEVED_NORM, Report, RunEvent, execute};
use crate::storage;

/// Settings of a run, and the form of its output.
#[derive(clap::Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    settings: Settings,

    /// TOML file with settings, named like these flags with underscores. Flags override the file
    #[arg(long, value_name = "FILE.toml", help_heading = "Run")]
    config: Option<PathBuf>,
    /// Replace an existing output directory if nmem wrote everything in it. Also narrow a memory's f64 state to f32
    #[arg(long, help_heading = "Output")]
    force: bool,
    /// Output on stdout: a short table for people, or run.json for programs
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
    #[arg(short, long, conflicts_with = "verbose", help_heading = "Output")]
    quiet: bool,
    /// Also print the settings and a time profile on stderr
    #[arg(short, long, help_heading = "Output")]
    verbose: bool,
}

impl RunArgs {
    /// Runs `command` as typed.
    pub fn execute(self, command: Command) -> anyhow::Result<ExitCode> {
        self.execute_as(command, command_line())
    }

    /// Replaces the sequence and the output directory, for a repetition.
    pub fn redirect(&mut self, data: PathBuf, out: PathBuf, force: bool, quiet: bool) {
        self.settings.data = Some(data);
        self.settings.out = Some(out);
        (self.force, self.quiet, self.verbose) = (force, quiet, false);
        self.format = Format::Table;
    }

    /// Returns the settings of the flags and the file.
    pub fn merged(&self, command: Command) -> crate::Result<(Settings, Option<TextFile>)> {
        let file = self.config.as_deref().map(|path| TextFile::read(path, MAX_TOML)).transpose()?;
        let of_file = file.as_ref().map(Settings::from_toml).transpose()?.unwrap_or_default();
        let merged = self.settings.clone().or(of_file);
        self.settings.check_flags(command, &merged)?;
        Ok((merged, file))
    }

    /// Returns the checked form of settings that [`merged`](Self::merged) returned.
    pub fn config(
        &self,
        settings: Settings,
        file: Option<&TextFile>,
        command: Command,
    ) -> crate::Result<Config> {
        let mut config = settings.validate(command)?;
        config.file.clone_from(&self.config);
        config.file_sha256 = file.map(TextFile::sha256).unwrap_or_default();
        Ok(config)
    }

    /// Runs `command`. run.json has the given command line.
    pub fn execute_as(self, command: Command, command_line: Vec<String>) -> anyhow::Result<ExitCode> {
        let (merged, file) = self.merged(command)?;
        self.execute_merged(command, merged, file.as_ref(), command_line)
    }

    /// Runs `command` with settings that [`merged`](Self::merged) returned.
    pub fn execute_merged(
        self,
        command: Command,
        merged: Settings,
        file: Option<&TextFile>,
        command_line: Vec<String>,
    ) -> anyhow::Result<ExitCode> {
        let config = self.config(merged, file, command)?;
        let report = self.run(command, &config, command_line)?;
        if self.verbose {
            note("config: ", &serde_json::to_string(&report.config)?);
            for line in phases(&report) {
                note("engine: ", &line);
            }
        }
        let shown = match self.format {
            Format::Json => print(&format!("{}\n", serde_json::to_string_pretty(&report)?)),
            Format::Table if self.quiet => Ok(true),
            Format::Table => print(&table(&report)),
        };
        if let Err(error) = &shown {
            print_error(&format!("{error:#}; the results are in {}", config.out.display()));
        }
        print_divergence(&report);
        Ok(if shown.is_err() || report.diverged.is_some() { FAILED.into() } else { ExitCode::SUCCESS })
    }

    /// Runs a configuration with progress, notes and warnings on stderr.
    pub fn run(
        &self,
        command: Command,
        config: &Config,
        command_line: Vec<String>,
    ) -> anyhow::Result<Report> {
        let device = config.device.open()?;
        for text in config.device_note.into_iter().chain(device.note.as_deref()).filter(|_| !self.quiet) {
            note("note: ", text);
        }
        let progress = Progress::new(self.quiet);
        let mut observe = |event| {
            progress.show(event);
            if matches!(event, RunEvent::Starting(_)) {
                begin_work();
            }
            check_interrupt()
        };
        let report = execute(command, config, &device, command_line, self.force, &mut observe, &is_preempted);
        drop(progress);
        let report = report.map_err(|error| match error {
            Error::Interrupted => {
                let absent = storage::kind_of(&config.out).is_ok_and(|kind| kind.is_none());
                let left = if absent { "was not created" } else { "is unchanged" };
                anyhow::Error::new(error).context(format!("{} {left}", config.out.display()))
            }
            error => error.into(),
        })?;
        let report = report.report;
        if !self.quiet {
            report.warnings.iter().for_each(|warning| note("warning: ", warning));
        }
        Ok(report)
    }

    /// Returns the output format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Returns whether only errors are printed.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Returns whether existing results are replaced.
    pub fn is_forced(&self) -> bool {
        self.force
    }
}

/// Returns the command line of this process.
pub fn command_line() -> Vec<String> {
    std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect()
}

/// Prints an error if a run has diverged.
pub fn print_divergence(report: &Report) {
    let Some(divergence) = &report.diverged else { return };
    let there = match report.config.mode {
        Mode::Store => "results end there, and memory.safetensors is not written",
        Mode::Read => "retrieved.npy is not written",
        Mode::Online if !report.memory_lost => "the memory is kept, and retrieved.npy is not written",
        Mode::Online => "results end there, and memory.safetensors and retrieved.npy are not written",
    };
    print_error(&format!("{}: diverged at {divergence}; {there}", report.out.display()));
}

/// Column of the loss of an answer of zeros.
const LOSS_ZERO: &str = "loss_zero";

/// Formats the short table of a run for people.
fn table(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<17}{value}");
    };
    let (sequences, tokens) = (report.sequences, report.tokens);
    let memory = &report.config.dimensions;
    let what = match report.config.mode {
        _ if report.diverged.is_some() => "diverged in",
        Mode::Store => "stored",
        Mode::Read => "read",
        Mode::Online => "read and stored",
    };
    let plural = if sequences == 1 { "" } else { "s" };
    let stored = report.tokens_stored.unwrap_or(tokens);
    let of_tokens = match stored {
        same if same == tokens => format!("{tokens} tokens"),
        other => format!("{tokens} tokens read and {other} stored"),
    };
    line(what, format!("{sequences} sequence{plural} of {of_tokens}, dim {}", memory.dim));
    line(
        "memory",
        format!(
            "heads {}, dim_head {}, chunk_size {}, {}",
            memory.heads, memory.dim_head, report.config.chunk_size, report.dtype
        ),
    );
    if report.device != "cpu" {
        line("device", report.device.clone());
    }
    if !report.summary.is_empty() {
        line("", format!("{:>12} {:>12} {:>12}", "mean", "min", "max"));
        // The loss of an answer of zeros stands beside the others.
        let (losses, others) =
            COLUMNS.split_at(COLUMNS.iter().position(|name| *name == "surprise").unwrap_or(0));
        let others = others.iter().filter(|name| **name != LOSS_ZERO);
        let names = losses.iter().chain([&LOSS_ZERO]).chain(others).chain([&RETRIEVED_NORM]);
        for (name, spread) in names.filter_map(|name| Some((name, report.summary.get(name)?))) {
            line(
                name,
                format!("{:>12} {:>12} {:>12}", number(spread.mean), number(spread.min), number(spread.max)),
            );
        }
    }
    if let Some(recall) = &report.recall {
        recall_lines(recall, &mut line);
    }
    if let Some(ratio) = report.retained_ratio {
        line("retained", format!("loss of kept chunks under the final memory ÷ at W: {ratio:.5}"));
    }
    if let Some(ratio) = report.unstored_ratio {
        line("never stored", format!("loss of the next kept chunk before its block ÷ at W: {ratio:.5}"));
    }
    let wall = &report.wall_s;
    let mut times = format!("load {}, engine {}", seconds(wall.load), seconds(wall.engine));
    if report.diverged.is_none() {
        let rate = (sequences * tokens.max(stored)) as f64 / wall.engine.max(f64::MIN_POSITIVE);
        let _ = write!(times, " ({rate:.0} tokens/s)");
    }
    let _ = write!(times, ", write {}, plots {}", seconds(wall.write), seconds(wall.plots));
    line("time", times);
    line("results", for_terminal(&report.out.display().to_string()).into_owned());
    text
}

/// Formats the quality of what was read: each measure with its interval over sequences, and what it must beat.
fn recall_lines(recall: &RecallReport, line: &mut dyn FnMut(&str, String)) {
    let interval = |of: &Interval| match of.ci95 {
        Some([low, high]) => format!("{:.4} [{low:.4}, {high:.4}]", of.mean),
        None => format!("{:.4}", of.mean),
    };
    let (sequences, tokens, width) = (recall.sequences, recall.tokens, recall.width);
    let alone = if recall.cue == Cue::Single { ", each read alone" } else { "" };
    let s = if sequences == 1 { "" } else { "s" };
    line("recall", format!("{tokens} tokens of {sequences} sequence{s}, the last {width} columns{alone}"));
    let zero = recall.mean_square_zero.as_ref().map(|zero| format!(" (all zeros: {:.4})", zero.mean));
    let own = recall.in_set_accuracy.is_none();
    let constant = recall.constant.map(|constant| format!("one answer for all: {constant:.4}"));
    let chance = recall.chance.map(|chance| match constant.as_ref().filter(|_| own) {
        Some(constant) => format!(" (chance: {chance:.4}, {constant})"),
        None => format!(" (chance: {chance:.4})"),
    });
    let constant = constant.map(|constant| format!(" ({constant})"));
    let answers = recall.distinct_targets.as_ref().map(|targets| format!(" (targets: {:.4})", targets.mean));
    let top_k = format!("  top {}", recall.top_k);
    for (name, of, against) in [
        ("  mean square", &recall.mean_square, zero),
        ("  cosine", &recall.cosine, None),
        ("  R²", &recall.r2, None),
        ("  accuracy", &recall.accuracy, chance),
        (&top_k, &recall.top_k_accuracy, None),
        ("  in own set", &recall.in_set_accuracy, constant),
        ("  kept", &recall.kept_accuracy, None),
        ("  updated", &recall.updated_accuracy, None),
        ("  stale", &recall.stale, None),
        ("  answers", &recall.distinct_answers, answers),
    ] {
        if let Some(of) = of {
            line(name, format!("{:<28}{}", interval(of), against.unwrap_or_default()).trim_end().to_owned());
        }
    }
    if recall.zero_reads > 0 {
        line("  zero reads", format!("{} tokens, never right", recall.zero_reads));
    }
}

/// Formats the time profile of the engine's last run over all threads, one line per phase.
fn phases(report: &Report) -> Vec<String> {
    let phases = report.wall_s.engine_phases.named();
    let run = report.wall_s.engine_all.last().copied().unwrap_or_default() * report.threads_used as f64;
    let idle = ("idle or between", (run - phases.iter().map(|(_, seconds)| seconds).sum::<f64>()).max(0.0));
    let line = |(name, spent): (&str, f64)| {
        format!("{name:<17}{:>12} {:>5.1} %", seconds(spent), 100.0 * spent / run.max(f64::MIN_POSITIVE))
    };
    phases.into_iter().chain([idle]).map(line).collect()
}

fn seconds(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.1} ms", seconds * 1e3) } else { format!("{seconds:.2} s") }
}
