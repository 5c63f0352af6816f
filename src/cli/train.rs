//! `nmem train`: learn the parameters of a memory from sequences.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::progress::TrainProgress;
use super::run::command_line;
use super::{FAILED, Format, OutputArgs, begin_work, check_interrupt, note, print, print_error};
use crate::config::{Command, Settings, TrainSettings};
use crate::escape::for_terminal;
use crate::io::text::{MAX_TOML, TextFile};
use crate::train::{Ended, TrainEvent, TrainReport, train};

/// Learn the parameters of a memory from sequences: norms, projections, gates, and the memory's initial weights
///
/// AdamW along the gradient of what is read, through everything that is stored. Writes memory.safetensors, which `store` takes
/// (`nmem export` makes a titans-pytorch state_dict of it), head.safetensors, train.csv, run.json and plots/*.svg to --out. A
/// training that was ended resumes with the same command, to the same bits.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    train: TrainSettings,
    /// TOML file with settings, named like these flags with underscores. Flags override the file. Also without --config, as
    /// the only argument
    #[arg(long, value_name = "FILE.toml", help_heading = "Run")]
    config: Option<PathBuf>,
    /// Replace an existing output directory if nmem wrote everything in it, and start anew
    #[arg(long, help_heading = "Output")]
    force: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(mut args: Args) -> anyhow::Result<ExitCode> {
    // `nmem train CONFIG.toml`
    let is_toml = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "toml");
    if args.config.is_none() && args.settings.data.as_ref().is_some_and(is_toml) {
        args.config = args.settings.data.take();
    }
    let file = args.config.as_deref().map(|path| TextFile::read(path, MAX_TOML)).transpose()?;
    let (of_file, train_of_file) =
        file.as_ref().map(TrainSettings::from_toml).transpose()?.unwrap_or_default();
    let merged = args.settings.clone().or(of_file);
    args.settings.check_flags(Command::Train, &merged)?;
    let (mut config, training) = args.train.or(train_of_file).validate(merged)?;
    config.file.clone_from(&args.config);
    config.file_sha256 = file.map(|file| file.sha256()).unwrap_or_default();
    let progress = TrainProgress::new(args.output.quiet);
    let mut observe = |event| {
        progress.show(event);
        if matches!(event, TrainEvent::Starting { .. }) {
            begin_work();
        }
        check_interrupt()
    };
    let report = train(&config, &training, command_line(), args.force, &mut observe)?;
    drop(progress);
    if !args.output.quiet {
        report.warnings.iter().for_each(|warning| note("warning: ", warning));
    }
    match args.output.format {
        Format::Json => {
            print(&format!("{}\n", serde_json::to_string_pretty(&report)?))?;
        }
        Format::Table if args.output.quiet => {}
        Format::Table => {
            print(&table(&report))?;
        }
    }
    if report.ended != Ended::Diverged {
        return Ok(ExitCode::SUCCESS);
    }
    let step = report.steps + 1;
    let kept = if report.validation.is_some() {
        format!("memory.safetensors is that of step {}, the best before", report.best_step)
    } else {
        "memory.safetensors is not written".to_owned()
    };
    let out = report.out.display();
    print_error(&format!(
        "{out}: the loss or its gradient is not finite at step {step}; use a smaller --rate, or --clip; {kept}"
    ));
    Ok(FAILED.into())
}

/// Formats the outcome for people.
fn table(report: &TrainReport) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<17}{value}");
    };
    let memory = &report.config.dimensions;
    let ended = match report.ended {
        Ended::Steps => "",
        Ended::Patience => ", ended by --patience",
        Ended::Diverged => ", diverged",
    };
    line("trained", format!("{} steps, {} tokens{ended}", report.steps, report.tokens));
    line(
        "memory",
        format!(
            "heads {}, dim_head {}, chunk_size {}, {}; {} numbers learned",
            memory.heads, memory.dim_head, report.config.chunk_size, report.dtype, report.parameters
        ),
    );
    if let Some(loss) = report.loss {
        line("loss", format!("{loss:.5} in the last step"));
    }
    if let Some(validation) = report.validation {
        line("validation", format!("{validation:.5} at step {}, the best", report.best_step));
    }
    let controls =
        [("  no updates", report.validation_without_updates), ("  all zeros", report.validation_zero)];
    for (name, value) in controls {
        if let Some(value) = value {
            line(name, format!("{value:.5}"));
        }
    }
    let wall = &report.wall_s;
    line(
        "time",
        format!(
            "load {:.2} s, train {:.2} s, validate {:.2} s, write {:.2} s",
            wall.load, wall.train, wall.validate, wall.write
        ),
    );
    line("results", for_terminal(&report.out.display().to_string()).into_owned());
    text
}
