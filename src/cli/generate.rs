//! `nmem generate`: synthetic sequences, their labels, and parameters for associative recall.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{check_interrupt, note};
use crate::config::whole;
use crate::error::Error;
use crate::generate::mqar::{Keys, Mapping, Mqar, MqarGenerator, memories};
use crate::generate::{Drift, Generator, Needle, Recall, Repeats, Task, recall};
use crate::io::tensors::write_parameters;
use crate::memory::model::ModelKind;
use crate::sequence::Shape;
use crate::storage::{self, WholeFile};

/// Generate a synthetic sequence as .npy (f32): the same bytes for the same seed on every platform
///
/// All numbers of a token are N(0, 1). --labels also writes a label per position, for --labels of `store` and `retrieve`.
/// All sequences of a file share the labels.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    task: TaskArgs,
}

#[derive(clap::Subcommand, Debug)]
enum TaskArgs {
    /// Associative recall: the first half of each token is a key, the second half its value
    ///
    /// Every pass over the pairs shows each pair once, in a new order. --parameters writes a memory without norms that
    /// uses the key half as keys and queries, and the value half as values. Store with fixed gates, for example
    /// --learning-rate 0.5 --momentum 0 --decay 0.
    Recall {
        #[command(flatten)]
        common: Common,
        /// Number of different pairs [default: the number of tokens]
        #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
        pairs: Option<usize>,
        /// Amount of noise in the keys, 0 to 1: √(1 − X²) key + X noise
        #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
        noise: f64,
        /// Also write parameters for --memory of `store` and `retrieve` (.safetensors)
        #[arg(long, value_name = "FILE")]
        parameters: Option<PathBuf>,
        /// Number of heads of these parameters, at least 2. Each head takes dim / (2 heads) of the key and of the value
        #[arg(long, value_name = "N", default_value_t = 2, value_parser = whole::<usize>, allow_negative_numbers = true)]
        heads: usize,
    },
    /// Multi-query recall: pairs to store, keys to ask for, and the values that must come back
    ///
    /// Writes pairs.npy, queries.npy, targets.npy, values.npy and labels.csv, and old_targets.npy with --updates. Two
    /// memories for the task come with them: delta.safetensors takes each gradient at the weights of the moment,
    /// sum.safetensors all of them at zero. Both have one matrix, and a learning rate that --learning-rate changes.
    Mqar(MqarArgs),
    /// Topic drift: tokens scatter around a topic that changes abruptly or gradually
    Drift {
        #[command(flatten)]
        common: Common,
        /// Number of tokens per topic [default: 128, or all tokens if they are fewer]
        #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
        segment: Option<usize>,
        /// Number of tokens over which one topic blends into the next
        #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole::<usize>, allow_negative_numbers = true)]
        transition: usize,
        /// Amount of noise in the tokens, 0 to 1: √(1 − X²) topic + X noise
        #[arg(long, value_name = "X", default_value_t = 0.5, allow_negative_numbers = true)]
        noise: f64,
    },
    /// Repeated passages: passages of random tokens, some of which are repeated
    Repeats {
        #[command(flatten)]
        common: Common,
        /// Number of tokens per passage [default: 64, or all tokens if they are fewer]
        #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
        segment: Option<usize>,
        /// Probability that a passage repeats an earlier one, 0 to 1
        #[arg(long, value_name = "X", default_value_t = 0.5, allow_negative_numbers = true)]
        share: f64,
        /// Amount of noise in the tokens, 0 to 1: √(1 − X²) passage + X noise
        #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
        noise: f64,
    },
    /// A needle in noise: the same few tokens appear several times among tokens that never repeat
    Needle {
        #[command(flatten)]
        common: Common,
        /// Number of tokens in the needle
        #[arg(long, value_name = "N", default_value_t = 16, value_parser = whole::<usize>, allow_negative_numbers = true)]
        length: usize,
        /// Number of times the needle appears
        #[arg(long, value_name = "N", default_value_t = 4, value_parser = whole::<usize>, allow_negative_numbers = true)]
        needles: usize,
        /// Amount of noise in the needle, 0 to 1: √(1 − X²) needle + X noise
        #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
        noise: f64,
    },
}

/// Options of `mqar`.
#[derive(clap::Args, Debug)]
struct MqarArgs {
    /// Directory for the files; it is made if it does not exist
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: PathBuf,
    /// Replace existing files
    #[arg(long, help_heading = "Output")]
    force: bool,
    /// Print nothing but errors
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
    /// Number of pairs in a sequence
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = whole::<usize>, allow_negative_numbers = true)]
    pairs: usize,
    /// Number of passes over the pairs, each in a new order
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole::<usize>, allow_negative_numbers = true)]
    passes: usize,
    /// Number of keys that get another value after the first pairs; the last one counts
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole::<usize>, allow_negative_numbers = true)]
    updates: usize,
    /// Number of other pairs that are stored before the queries and never asked for
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole::<usize>, allow_negative_numbers = true)]
    gap: usize,
    /// Number of values among which the right one must be found, and of keys to choose from
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = whole::<usize>, allow_negative_numbers = true)]
    values: usize,
    /// Distribution of the keys: random directions, or a random orthonormal basis
    #[arg(
        long,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "spherical|orthonormal"
    )]
    keys: Keys,
    /// New keys, values and matching in every sequence, or the same in all
    #[arg(long, value_enum, default_value_t, hide_possible_values = true, value_name = "sequence|shared")]
    mapping: Mapping,
    /// Width of a token: half key, half value
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = whole::<usize>, allow_negative_numbers = true, help_heading = "Size")]
    dim: usize,
    /// Number of sequences
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = whole::<usize>, allow_negative_numbers = true, help_heading = "Size")]
    sequences: usize,
    /// Seed of the random numbers
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole::<u64>, allow_negative_numbers = true, help_heading = "Size")]
    seed: u64,
}

/// Options of every other task.
#[derive(clap::Args, Debug)]
struct Common {
    /// Output file for the sequence; `-` is standard output
    #[arg(long, value_name = "FILE.npy", help_heading = "Output")]
    out: PathBuf,
    /// Also write the labels: position, segment, repeat, item
    #[arg(long, value_name = "FILE.csv", help_heading = "Output")]
    labels: Option<PathBuf>,
    /// Replace existing files
    #[arg(long, help_heading = "Output")]
    force: bool,
    /// Print nothing but errors
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
    /// Number of tokens per sequence
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = whole::<usize>, allow_negative_numbers = true, help_heading = "Size")]
    tokens: usize,
    /// Width of a token
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = whole::<usize>, allow_negative_numbers = true, help_heading = "Size")]
    dim: usize,
    /// Number of sequences, in a file with three axes [default: one, in a file with two]
    #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true, help_heading = "Size")]
    sequences: Option<usize>,
    /// Seed of the random numbers
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole::<u64>, allow_negative_numbers = true, help_heading = "Size")]
    seed: u64,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (common, task, memory) = match args.task {
        TaskArgs::Mqar(args) => return mqar(args),
        TaskArgs::Recall { common, pairs, noise, parameters, heads } => {
            let memory = parameters.map(|path| (path, heads));
            (common, Task::Recall(Recall { pairs, noise }), memory)
        }
        TaskArgs::Drift { common, segment, transition, noise } => {
            let segment = segment.unwrap_or(128.min(common.tokens));
            (common, Task::Drift(Drift { segment, transition, noise }), None)
        }
        TaskArgs::Repeats { common, segment, share, noise } => {
            let segment = segment.unwrap_or(64.min(common.tokens));
            (common, Task::Repeats(Repeats { segment, share, noise }), None)
        }
        TaskArgs::Needle { common, length, needles, noise } => {
            (common, Task::Needle(Needle { length, needles, noise }), None)
        }
    };
    let Common { out, labels, force, quiet, tokens, dim, sequences, seed } = common;
    let shape = Shape { sequences: sequences.unwrap_or(1), tokens, dim };
    let rank = if sequences.is_some() { 3 } else { 2 };
    let generator = Generator::new(task, shape, seed)?;
    let parameters = memory.as_ref().map(|(_, heads)| recall::parameters(dim, *heads, seed)).transpose()?;

    let to_stdout = out == Path::new("-");
    let named = [
        ("--out", Some(&out).filter(|_| !to_stdout)),
        ("--labels", labels.as_ref()),
        ("--parameters", memory.as_ref().map(|(path, _)| path)),
    ];
    let named = named.into_iter().filter_map(|(flag, path)| Some((flag, path?)));
    let files = named.map(|(flag, path)| Ok((flag, path, WholeFile::open(flag, path, force)?)));
    let mut files: Vec<_> = files.collect::<crate::Result<_>>()?;
    for (i, (flag, path, file)) in files.iter().enumerate() {
        if let Some((other, ..)) = files[..i].iter().find(|(.., other)| other.is_same_as(file)) {
            let reason = format!("{} is also the file of {other}; choose another name", path.display());
            return Err(Error::rejected(*flag, reason).into());
        }
    }

    let mut interrupted = false;
    let mut check = || {
        check_interrupt().map_err(|_| {
            interrupted = true;
            io::ErrorKind::Interrupted.into()
        })
    };
    let written = files.iter_mut().try_for_each(|(flag, _, file)| match *flag {
        "--out" => file.write(|out| generator.write_npy(rank, out, &mut check)),
        "--labels" => file.write(|out| generator.write_labels(out)),
        _ => parameters.as_ref().map_or(Ok(()), |tensors| {
            file.write(|out| write_parameters(out, tensors, ModelKind::Attention.name()))
        }),
    });
    let written = written.and_then(|()| {
        if !to_stdout {
            return Ok(());
        }
        match generator.write_npy(rank, &mut io::stdout().lock(), &mut check) {
            // The reader has closed the pipe.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            done => done.map_err(Error::io("-", "write")),
        }
    });
    if interrupted {
        return Err(Error::Interrupted.into());
    }
    written?;
    let paths: Vec<_> = files.iter().map(|(_, path, _)| path.display().to_string()).collect();
    files.into_iter().try_for_each(|(flag, _, file)| file.publish(flag))?;
    if !quiet && !paths.is_empty() {
        note("wrote ", &paths.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the files of `mqar`. All are complete before the first is published.
fn mqar(args: MqarArgs) -> anyhow::Result<ExitCode> {
    let MqarArgs {
        out,
        force,
        quiet,
        pairs,
        passes,
        updates,
        gap,
        values,
        keys,
        mapping,
        dim,
        sequences,
        seed,
    } = args;
    let task = Mqar { sequences, dim, pairs, passes, updates, gap, values, keys, mapping, seed };
    let generator = MqarGenerator::new(task)?;
    let memories = memories(dim)?;
    storage::create_directories(&out)?;
    let named = ["pairs.npy", "queries.npy", "targets.npy", "values.npy", "labels.csv"];
    let named = named.into_iter().chain((updates > 0).then_some("old_targets.npy"));
    let named = named.chain(memories.iter().map(|(name, ..)| *name));
    let files = named.map(|name| Ok((name, WholeFile::open("--out", &out.join(name), force)?)));
    let mut files: Vec<_> = files.collect::<crate::Result<_>>()?;
    let mut check = || check_interrupt().map_err(|_| io::ErrorKind::Interrupted.into());
    let written = files.iter_mut().try_for_each(|(name, file)| {
        file.write(|out| match *name {
            "pairs.npy" => generator.write_pairs(out, &mut check),
            "queries.npy" => generator.write_queries(out),
            "targets.npy" => generator.write_targets(out),
            "old_targets.npy" => generator.write_old_targets(out),
            "values.npy" => generator.write_values(out),
            "labels.csv" => generator.write_labels(out),
            memory => {
                let (_, file, gates) =
                    memories.iter().find(|(name, ..)| *name == memory).expect("listed above");
                file.write_fresh(out, *gates)
            }
        })
    });
    check_interrupt()?;
    written?;
    let listed: Vec<_> = files.iter().map(|(name, _)| *name).collect();
    files.into_iter().try_for_each(|(_, file)| file.publish("--out"))?;
    if !quiet {
        note("wrote ", &format!("{}: {}", out.display(), listed.join(", ")));
    }
    Ok(ExitCode::SUCCESS)
}
