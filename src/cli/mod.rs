//! The subcommands, one file each, and their shared code: printing, exit status, interruption.
//!
//! | status | meaning |
//! | ---: | --- |
//! | 0 | everything succeeded |
//! | 1 | the command ran, but something in it failed (for example, a run diverged) |
//! | 2 | the command could not run |
//! | 101 | a bug in the program |
//! | 130 | interrupted |
//!
//! An error is one line on stderr. Only results go to stdout.

mod check;
mod cluster;
mod collect;
mod compare;
mod completions;
mod devices;
mod end;
mod export;
mod figure_file;
mod generate;
mod gradients;
mod import;
pub mod inspect;
mod man;
mod plot;
mod progress;
mod repeat;
mod results_table;
mod retrieve;
mod run;
mod scan_bench;
mod stdin;
mod store;
mod store_many;
mod sweep;
mod sweep_report;
mod sweep_status;
mod table;
mod train;

use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::error::ErrorKind as ClapError;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub use end::Allocator;
use end::{begin_work, check_interrupt, is_preempted};

use crate::config::ProbeSetting;
use crate::error::Error;
use crate::escape::for_terminal;
use crate::storage;

/// Neural-memory experiments from the command line: store and retrieve sequences, measure, draw
#[derive(Parser, Debug)]
#[command(name = "nmem", version, max_term_width = 110, propagate_version = false)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Store(store::Args),
    Retrieve(retrieve::Args),
    Repeat(repeat::Args),
    Sweep(sweep::Args),
    Train(Box<train::Args>),
    Gradients(gradients::Args),
    Generate(generate::Args),
    ScanBench(scan_bench::Args),
    Plot(plot::Args),
    Compare(compare::Args),
    Check(check::Args),
    Import(import::Args),
    Export(export::Args),
    Inspect(inspect::Args),
    Devices(devices::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// Output format of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns.
    #[default]
    Table,
    /// JSON in the format of run.json.
    Json,
}

/// Form and amount of what a command prints.
#[derive(clap::Args, Clone, Copy, Debug)]
struct OutputArgs {
    /// Output on stdout: a short table for people, or JSON for programs
    #[arg(
        long,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "table|json",
        help_heading = "Output"
    )]
    format: Format,
    /// Print only errors, and the output of --format json
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

/// Exit status of a run in which something failed.
const FAILED: u8 = 1;
/// Exit status of a command that could not run.
const COULD_NOT_RUN: u8 = 2;
/// Exit status after Ctrl-C: 128 + SIGINT.
const INTERRUPTED: u8 = 130;
/// Exit status after a bug in the program; Rust's own.
const PANICKED: u8 = 101;

/// Runs the whole program: parses the command line, executes it and reports errors.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    end::keep_freed_memory();
    end::install();
    let args: Vec<OsString> = args.into_iter().collect();
    let status = std::panic::catch_unwind(|| run(&args));
    end::wait_if_ending();
    status.unwrap_or_else(|_| {
        // The panic hook has already printed the message.
        storage::remove_all();
        PANICKED.into()
    })
}

fn run(args: &[OsString]) -> ExitCode {
    if let Some((flag, value)) = separated_value(args) {
        print_error(&format!("{flag} takes its value after an equals sign: {flag}={value}"));
        return COULD_NOT_RUN.into();
    }
    let cli = match parse(args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let result = match cli.command {
        Command::Store(args) => store::run(args),
        Command::Retrieve(args) => retrieve::run(args),
        Command::Repeat(args) => repeat::run(&args),
        Command::Sweep(args) => sweep::run(args),
        Command::Train(args) => train::run(*args),
        Command::Gradients(args) => gradients::run(args),
        Command::Generate(args) => generate::run(args),
        Command::ScanBench(args) => scan_bench::run(&args),
        Command::Plot(args) => plot::run(args),
        Command::Compare(args) => compare::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Import(args) => import::run(args),
        Command::Export(args) => export::run(args),
        Command::Inspect(args) => inspect::run(&args, &mut |_| check_interrupt()),
        Command::Devices(args) => devices::run(&args),
        Command::Completions(args) => completions::run(args, &mut command()),
        Command::Man(args) => man::run(&args, &mut command()),
    };
    result.unwrap_or_else(|error| {
        end::wait_if_ending();
        let interrupted = matches!(error.downcast_ref(), Some(Error::Interrupted | Error::Preempted { .. }));
        print_error(&format!("{error:#}"));
        if interrupted { INTERRUPTED } else { COULD_NOT_RUN }.into()
    })
}

/// Returns the definition of the command line. Each subcommand shows only the settings that it uses.
fn command() -> clap::Command {
    Cli::command()
        .mut_subcommand("store", |store| {
            let of_reads = ["read_after", "target", "candidates", "old_target", "top_k", "cue"];
            let hidden = ["online", "store_seq"].into_iter().chain(of_reads);
            hidden.fold(store, |store, id| store.mut_arg(id, |arg| arg.hide(true)))
        })
        .mut_subcommand("train", |train| {
            let of_runs = [
                "online",
                "past",
                "restart_momentum",
                "old_target",
                "top_k",
                "probe",
                "no_probe",
                "retention",
                "repeat",
                "labels",
                "device",
            ];
            of_runs.into_iter().fold(train, |train, id| train.mut_arg(id, |arg| arg.hide(true)))
        })
        .mut_subcommand("retrieve", |retrieve| retrieve.mut_arg("no_probe", |arg| arg.hide(true)))
}

/// Returns a flag that takes a value only after `=`, and the next argument, if that is such a value and not a file. It would be
/// taken for a sequence.
fn separated_value(args: &[OsString]) -> Option<(&str, &str)> {
    let command = command();
    let subcommand = command.find_subcommand(args.get(1)?)?;
    let takes_equals = |flag: &str| {
        let long = flag.strip_prefix("--");
        subcommand.get_arguments().any(|arg| arg.is_require_equals_set() && arg.get_long() == long)
    };
    args[2..].array_windows().filter_map(|[flag, value]| flag.to_str().zip(value.to_str())).find(
        |&(flag, value)| {
            let is_value = if flag == "--probe" {
                value.parse::<ProbeSetting>().is_ok()
            } else {
                value.parse::<bool>().is_ok()
            };
            is_value && takes_equals(flag) && !Path::new(value).exists()
        },
    )
}

fn parse(args: &[OsString]) -> Result<Cli, clap::Error> {
    Cli::from_arg_matches_mut(&mut command().try_get_matches_from(args)?)
}

/// Prints help and version as clap does, and an error as one line.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ClapError::DisplayHelp
            | ClapError::DisplayVersion
            | ClapError::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        let _ = error.print();
        return if error.use_stderr() { COULD_NOT_RUN.into() } else { ExitCode::SUCCESS };
    }
    let rendered = error.render().to_string();
    let paragraphs = rendered
        .split("\n\n")
        .take_while(|text| !text.starts_with("Usage:") && !text.starts_with("For more information"))
        // This advice suits no command of nmem.
        .filter(|text| !text.trim_start().starts_with("tip: to pass"))
        .map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
    let line = paragraphs.collect::<Vec<_>>().join("; ");
    print_error(&format!("{} (see --help)", line.strip_prefix("error: ").unwrap_or(&line)));
    COULD_NOT_RUN.into()
}

/// Prints an error as one line on stderr.
fn print_error(message: &str) {
    note("error: ", message);
}

/// Maximum number of characters in a line on stderr. Names and cells of files may be of any length.
const MAX_LINE: usize = 8192;

/// Prints one line on stderr. Ignores errors, because there is no other place to report them.
fn note(kind: &str, message: &str) {
    let mut line: String = message.replace('\n', " ").chars().take(MAX_LINE + 1).collect();
    if line.chars().count() > MAX_LINE {
        line.pop();
        line.push('…');
    }
    let _ = writeln!(io::stderr(), "{kind}{}", for_terminal(&line));
}

/// Writes a result to stdout. Returns false if the reader has closed the pipe (`| head`), which is not an error.
fn print(text: &str) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        result => result.map(|()| true).context("standard output"),
    }
}
