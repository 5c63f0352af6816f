//! `nmem gradients`: outer gradients of a memory, for given cotangents of what is read.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::progress::Progress;
use super::table::aligned;
use super::{Format, OutputArgs, begin_work, check_interrupt, print};
use crate::config::{Command, GateSetting, Settings, whole};
use crate::engine::backward::Order;
use crate::io::text::check_streams;
use crate::memory::model::ModelKind;
use crate::real::ElementType;
use crate::run::{GradientReport, GradientRequest, gradients};
use crate::storage::WholeFile;

/// Take the gradient of what a memory reads for its parameters and its tokens, through everything that it stores
///
/// Reads SEQ while storing it, as `nmem retrieve --online` does, and differentiates L = Σ R ∘ retrieved. Writes ∂L/∂p for
/// every parameter, with the names and shapes of titans-pytorch's state_dict where it has such a memory, and for the tokens:
/// `seq`, and `store_seq` if another sequence is stored.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Sequences: a .npy of shape (tokens, dim) or (sequences, tokens, dim), f16, f32 or f64
    #[arg(value_name = "SEQ.npy")]
    data: PathBuf,
    /// Parameters (a PyTorch state_dict as .safetensors or .npz) or a memory that `store`, `import` or `train` wrote. Its state
    /// is a constant
    #[arg(long, value_name = "FILE", help_heading = "Memory")]
    memory: PathBuf,
    /// Tokens per chunk; required with parameters
    #[arg(long, value_name = "N", help_heading = "Memory", value_parser = whole::<usize>, allow_negative_numbers = true)]
    chunk_size: Option<usize>,
    /// Network whose weights are the memory, of a file of parameters that does not name it
    #[arg(
        long,
        value_enum,
        value_name = "attention|mlp",
        help_heading = "Memory",
        hide_possible_values = true
    )]
    model: Option<ModelKind>,
    /// Past weights, which shift the memory weights themselves
    #[arg(long, value_name = "FILE", help_heading = "Memory")]
    past: Option<PathBuf>,
    /// Fix the learning rate θ, or `learned`; a fixed gate has no gradient
    #[arg(long, value_name = "X", help_heading = "Memory", allow_negative_numbers = true)]
    learning_rate: Option<GateSetting>,
    /// Fix the momentum η, or `learned`
    #[arg(long, value_name = "X", help_heading = "Memory", allow_negative_numbers = true)]
    momentum: Option<GateSetting>,
    /// Fix the decay α, or `learned`
    #[arg(long, value_name = "X", help_heading = "Memory", allow_negative_numbers = true)]
    decay: Option<GateSetting>,
    /// R, the cotangent of what is read: a .npy of the shape of SEQ
    #[arg(long, value_name = "R.npy")]
    cotangent: PathBuf,
    /// Store this sequence while SEQ is read
    #[arg(long, value_name = "FILE.npy")]
    store_seq: Option<PathBuf>,
    /// Read SEQ after everything is stored, with the weights as they stand, as `nmem retrieve` does without --online
    #[arg(long)]
    after: bool,
    /// Cut gradients off after every N tokens, a multiple of the chunk size [default: never]
    #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
    truncate: Option<usize>,
    /// Element type of the computation and the results
    #[arg(long, value_enum, default_value_t, value_name = "f32|f64", hide_possible_values = true)]
    dtype: ElementType,
    /// Threads; the results have the same bits for any number [default: one per core]
    #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
    threads: Option<usize>,
    /// Take the gradients N more times for timing; the time is then the median
    #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
    repeat: Option<usize>,
    /// Output file
    #[arg(long, value_name = "G.npz", help_heading = "Output")]
    out: PathBuf,
    /// Replace an existing file
    #[arg(long, help_heading = "Output")]
    force: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let inputs = [Some(&args.data), Some(&args.cotangent), Some(&args.memory)];
    let inputs = inputs.into_iter().chain([args.store_seq.as_ref(), args.past.as_ref()]).flatten();
    check_streams(inputs.map(PathBuf::as_path))?;
    let settings = Settings {
        data: Some(args.data),
        memory: Some(args.memory),
        chunk_size: args.chunk_size,
        model: args.model,
        past: args.past,
        learning_rate: args.learning_rate,
        momentum: args.momentum,
        decay: args.decay,
        store_seq: args.store_seq,
        online: Some(true),
        dtype: Some(args.dtype),
        threads: args.threads,
        repeat: args.repeat,
        ..Settings::default()
    };
    let config = settings.validate(Command::Retrieve)?;
    let order = if args.after { Order::After } else { Order::Online };
    let request = GradientRequest { cotangent: args.cotangent, order, truncate: args.truncate };
    let mut out = WholeFile::open("--out", &args.out, args.force)?;
    let progress = Progress::new(args.output.quiet);
    let mut observe = |event| {
        progress.show(event);
        check_interrupt()
    };
    begin_work();
    let report = gradients(&config, &request, &mut out, &mut observe)?;
    drop(progress);
    out.publish("--out")?;
    match args.output.format {
        Format::Json => {
            print(&format!("{}\n", serde_json::to_string_pretty(&report)?))?;
        }
        Format::Table if args.output.quiet => {}
        Format::Table => {
            print(&table(&report, &args.out.display().to_string()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Formats the arrays and their norms for people.
fn table(report: &GradientReport, out: &str) -> String {
    let mut rows = vec![vec!["gradient of".to_owned(), "shape".to_owned(), "norm".to_owned()]];
    rows.extend(report.arrays.iter().map(|array| {
        let shape: Vec<_> = array.shape.iter().map(ToString::to_string).collect();
        vec![array.name.clone(), shape.join(" × "), format!("{:.6e}", array.norm)]
    }));
    let mut text = String::new();
    for line in aligned(&rows, 2) {
        let _ = writeln!(text, "{line}");
    }
    let rows = [
        vec!["loss".to_owned(), format!("{:.12e}", report.loss)],
        vec!["names".to_owned(), report.names.to_owned()],
        vec!["time".to_owned(), format!("{:.1} ms", report.seconds * 1e3)],
        vec!["wrote".to_owned(), out.to_owned()],
    ];
    for line in aligned(&rows, 2) {
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}
