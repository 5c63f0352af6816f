//! `nmem import`: a memory file from a checkpoint.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::{Format, check_interrupt, note, print};
use crate::config::whole;
use crate::error::Error;
use crate::escape::for_terminal;
use crate::io::import::{Arguments, Imported, Library, import, read_arguments};
use crate::io::tensors::TensorFile;
use crate::io::text::check_streams;
use crate::memory::Gates;
use crate::memory::model::ModelKind;
use crate::memory::program::Choices;
use crate::storage::WholeFile;

/// Make a memory file from a checkpoint: a state_dict of titans-pytorch and its constructor arguments
///
/// The memory holds its whole program: model, loss, rule and schedule. Tensors of other layers are ignored.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Checkpoint: a state_dict as .safetensors or .npz; `-` is standard input
    #[arg(value_name = "STATE")]
    state: PathBuf,
    /// Library that made the checkpoint
    #[arg(
        long,
        value_enum,
        value_name = "titans-pytorch-0.0.17|titans-pytorch-0.5.5",
        hide_possible_values = true
    )]
    from: Library,
    /// Constructor arguments as JSON, by their names in the library; `model` as its class and arguments, `activation` as its
    /// class [default: the library's defaults]
    #[arg(long = "args", value_name = "ARGS.json")]
    constructor: Option<PathBuf>,
    /// Part of the tensors' names before those of the memory, such as `layers.2.mem.` [default: the only one that fits]
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// Model of a checkpoint of 0.0.17, whose two models have the same names and shapes
    #[arg(long, value_enum, value_name = "attention|mlp", hide_possible_values = true)]
    model: Option<ModelKind>,
    /// Tokens per chunk, in place of the argument `chunk_size`
    #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
    chunk_size: Option<usize>,
    /// Output file
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// Output on stdout: a short table for people, or JSON for programs
    #[arg(long, value_enum, default_value_t, hide_possible_values = true, value_name = "table|json")]
    format: Format,
    /// Print only errors, and the output of --format json
    #[arg(short, long)]
    quiet: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    check_streams([Some(args.state.as_path()), args.constructor.as_deref()].into_iter().flatten())?;
    if args.model.is_some() && args.from != Library::Titans0017 {
        let reason = "applies to checkpoints of 0.0.17 only; give the model in --args";
        return Err(Error::rejected("--model", reason).into());
    }
    let default_chunks = args.constructor.is_none() && args.chunk_size.is_none();
    let json = args.constructor.as_deref().map(read_arguments).transpose()?;
    let mut out = WholeFile::open("--out", &args.out, args.force)?;
    let file = TensorFile::open(&args.state, &mut |_| check_interrupt())?;
    let arguments = Arguments { json, prefix: args.prefix, model: args.model, chunk_size: args.chunk_size };
    let imported = import(&file, args.from, &arguments)?;
    let Imported { memory, prefix, taken, ignored } = &imported;
    out.write(|to| memory.write_fresh(to, Gates::default()))?;
    out.publish("--out")?;
    if default_chunks && !args.quiet {
        note(
            "note: ",
            "chunk_size 1, the library's default; pass --args or --chunk-size if the memory has another",
        );
    }
    let program = memory.program();
    let dimensions = memory.dimensions();
    let shown = match args.format {
        Format::Json => {
            let report = json!({
                "out": args.out.display().to_string(),
                "prefix": prefix,
                "taken": taken,
                "ignored": ignored,
                "dimensions": dimensions,
                "chunk_size": program.chunk_size(),
                "program": Choices::from(program),
            });
            format!("{}\n", serde_json::to_string_pretty(&report)?)
        }
        Format::Table if args.quiet => String::new(),
        Format::Table => {
            let mut text = String::new();
            let mut line = |name: &str, value: String| {
                let _ = writeln!(text, "{name:<17}{}", for_terminal(&value));
            };
            let of_prefix = if prefix.is_empty() { String::new() } else { format!(" under {prefix:?}") };
            line("taken", format!("{} tensors{of_prefix}", taken.len()));
            line("ignored", listed(ignored));
            line("memory", format!("{dimensions}; chunk_size {}", program.chunk_size()));
            for (name, value) in Choices::from(program).made() {
                line(&name, value.as_str().map_or_else(|| value.to_string(), str::to_owned));
            }
            line("wrote", args.out.display().to_string());
            text
        }
    };
    print(&shown)?;
    Ok(ExitCode::SUCCESS)
}

/// Lists the first names and counts the others.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let first = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => "none".to_owned(),
        n if n <= SHOWN => format!("{n}: {first}"),
        n => format!("{n}: {first} and {} more", n - SHOWN),
    }
}
