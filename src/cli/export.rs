//! `nmem export`: a memory's parameters as a checkpoint of titans-pytorch.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use ndarray::s;

use super::{check_interrupt, note, print};
use crate::config::whole;
use crate::error::Error;
use crate::io::export::{arguments, library_of, state_dict};
use crate::io::import::Library;
use crate::io::memory_file::MemoryFile;
use crate::io::tensors::{Tensor, write_parameters};
use crate::memory::model::ModelKind;
use crate::memory::{Gate, Gates, Parameters};
use crate::real::{ElementType, Real};
use crate::storage::WholeFile;

/// Write a memory's parameters as a state_dict of titans-pytorch 0.0.17 or 0.5.5, whichever has such a memory
///
/// The inverse of `nmem import`. What the memory has stored is not part of a state_dict.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Memory that `store`, `import` or `retrieve` wrote, or parameters
    #[arg(value_name = "MEMORY")]
    memory: PathBuf,
    /// Tokens per chunk of a file of parameters, for --args
    #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
    chunk_size: Option<usize>,
    /// Network whose weights are the memory, of a file of parameters that does not name it
    #[arg(long, value_enum, value_name = "attention|mlp", hide_possible_values = true)]
    model: Option<ModelKind>,
    /// Element type of the output
    #[arg(long, value_enum, default_value_t, value_name = "f32|f64", hide_possible_values = true)]
    dtype: ElementType,
    /// Also write the constructor arguments, as `nmem import --args` reads them
    #[arg(long = "args", value_name = "ARGS.json")]
    constructor: Option<PathBuf>,
    /// Output file
    #[arg(long, value_name = "STATE.safetensors")]
    out: PathBuf,
    /// Replace existing files
    #[arg(long)]
    force: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let file = MemoryFile::open(&args.memory, args.dtype, false, &mut |_| check_interrupt())?;
    match args.dtype {
        ElementType::F32 => export::<f32>(&args, &file),
        ElementType::F64 => export::<f64>(&args, &file),
    }
}

fn export<T: Real>(args: &Args, file: &MemoryFile) -> anyhow::Result<ExitCode> {
    let program = match (file.saved(), args.chunk_size) {
        (Some(saved), None) => saved.program,
        (Some(saved), Some(given)) if given == saved.program.chunk_size() => saved.program,
        (Some(saved), Some(given)) => {
            let expected = format!("{}, as in {}", saved.program.chunk_size(), file.path().display());
            return Err(Error::setting("--chunk-size", expected, given.to_string()).into());
        }
        (None, Some(given)) => file.raw_program(args.model, given)?,
        (None, None) => {
            let path = file.path().display().to_string();
            let reason = "does not record a chunk size; pass --chunk-size with the value used in training";
            return Err(Error::rejected(path, reason).into());
        }
    };
    if file.past::<T>().is_some() {
        let path = file.path().display().to_string();
        return Err(Error::rejected(
            path,
            "has past weights, which no state_dict holds; export it without them",
        )
        .into());
    }
    let gates = file.saved().map(|saved| saved.gates).unwrap_or_default();
    let mut parameters = file.parameters::<T>(&program);
    bake_gates(&mut parameters, gates, &file.path().display().to_string())?;
    let dimensions = file.dimensions();
    let library = library_of(&program, &dimensions).map_err(|part| {
        let path = file.path().display().to_string();
        Error::rejected(
            path,
            format!("no version of titans-pytorch has {part} of this memory; keep it as it is"),
        )
    })?;
    let mut out = WholeFile::open("--out", &args.out, args.force)?;
    let mut constructor =
        args.constructor.as_deref().map(|path| WholeFile::open("--args", path, args.force)).transpose()?;
    if constructor.as_ref().is_some_and(|other| out.is_same_as(other)) {
        return Err(Error::rejected("--args", "is the same file as --out; pass another").into());
    }
    let tensors = parameters.tensors(&program);
    let tensors = state_dict(library, &program, &dimensions, tensors);
    let count = tensors.len();
    let tensors: BTreeMap<_, _> =
        tensors.into_iter().map(|(name, tensor)| (name, Tensor::from_array(&tensor.view()))).collect();
    out.write(|out| write_parameters(out, &tensors, program.model.kind.name()))?;
    if let Some(file) = &mut constructor {
        let text = serde_json::to_string_pretty(&arguments(library, &program, &dimensions))?;
        file.write(|out| writeln!(out, "{text}"))?;
    }
    out.publish("--out")?;
    constructor.map_or(Ok(()), |file| file.publish("--args"))?;
    if !args.quiet {
        if file.state_type().is_some() {
            note("note: ", "what the memory has stored is not part of a state_dict");
        }
        let version = if library == Library::Titans0017 { "0.0.17" } else { "0.5.5" };
        print(&format!("titans-pytorch {version}: {count} tensors in {}\n", args.out.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Adds the biases that a memory's settings add to the logits of its gates to the layers' own.
fn bake_gates<T: Real>(parameters: &mut Parameters<T>, gates: Gates, path: &str) -> anyhow::Result<()> {
    let heads = parameters.dimensions.heads;
    for (i, (kind, gate)) in gates.each().into_iter().enumerate() {
        let name = kind.key().replace('_', "-");
        let bias = match gate {
            Gate::Learned(bias) => bias,
            Gate::Fixed(_) => {
                let reason = format!(
                    "has a fixed {name}, which no state_dict holds; free it with --{name} learned when the memory is stored"
                );
                return Err(Error::rejected(path, reason).into());
            }
        };
        if bias == 0.0 {
            continue;
        }
        let Some(biases) = &mut parameters.gate_biases else {
            let reason = format!(
                "has --{name}-bias {bias}, and its gate layers have no biases to hold it in a state_dict"
            );
            return Err(Error::rejected(path, reason).into());
        };
        biases.slice_mut(s![i * heads..(i + 1) * heads]).map_inplace(|x| *x += T::from_f64(bias));
    }
    Ok(())
}
