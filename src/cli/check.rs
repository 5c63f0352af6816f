//! `nmem check`: certificates of memories, each with a planted fault that must be found.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use super::table::aligned;
use super::{FAILED, Format, check_interrupt, print};
use crate::certificate::{Certificate, Verdict, certificates};
use crate::config::{Command, Settings, whole};
use crate::escape::for_terminal;
use crate::io::memory_file::MemoryFile;
use crate::memory::model::ModelKind;
use crate::real::ElementType;
use crate::storage;

/// Test what a memory promises: causality, no writing at a rate of zero, parts, threads, restoring, and recall controls
///
/// Each certificate also measures with a fault planted in the procedure, and is void if the fault goes unnoticed. Exits
/// with status 1 unless all pass.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Memories: files that `store` or `import` wrote, run directories that hold one, or parameters (.safetensors, .npz)
    #[arg(value_name = "MEMORY|RUN", required = true)]
    memories: Vec<PathBuf>,
    /// Tokens per chunk; required with parameters
    #[arg(long, value_name = "N", value_parser = whole::<usize>, allow_negative_numbers = true)]
    chunk_size: Option<usize>,
    /// Network whose weights are the memory, for parameters that could be `attention` or `mlp`
    #[arg(long, value_enum, hide_possible_values = true, value_name = "attention|mlp")]
    model: Option<ModelKind>,
    /// Element type of the computation [default: that of the memory's state, or f32]
    #[arg(long, value_enum, hide_possible_values = true, value_name = "f32|f64")]
    dtype: Option<ElementType>,
    /// Seed of the random tokens
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole::<u64>, allow_negative_numbers = true)]
    seed: u64,
    /// Output on stdout: a table for people, or JSON for programs
    #[arg(long, value_enum, default_value_t, hide_possible_values = true, value_name = "table|json")]
    format: Format,
}

/// Certificates of one memory.
#[derive(Serialize)]
struct Checked {
    #[serde(serialize_with = "crate::io::path_as_text")]
    memory: PathBuf,
    dtype: ElementType,
    passed: bool,
    certificates: Vec<Certificate>,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut checked = Vec::new();
    for path in &args.memories {
        checked.push(args.check(path)?);
    }
    print(&match args.format {
        Format::Json => format!("{}\n", serde_json::to_string_pretty(&checked)?),
        Format::Table => checked.iter().map(table).collect::<Vec<_>>().join("\n"),
    })?;
    let passed = checked.iter().all(|checked| checked.passed);
    Ok(if passed { ExitCode::SUCCESS } else { FAILED.into() })
}

impl Args {
    fn check(&self, path: &Path) -> crate::Result<Checked> {
        let path = if storage::is_directory(path)? { path.join("memory.safetensors") } else { path.into() };
        let mut progress = |_| check_interrupt();
        let file = MemoryFile::open(&path, self.dtype.unwrap_or_default(), false, &mut progress)?;
        let settings = Settings {
            data: Some(path.clone()),
            memory: Some(path.clone()),
            chunk_size: self.chunk_size,
            model: self.model,
            ..Settings::default()
        };
        let config = settings.validate(Command::Store)?;
        let program = config.program(Some(&file))?;
        let gates = config.gates(file.saved().map(|saved| saved.gates).unwrap_or_default())?;
        let dtype = self.dtype.or(file.state_type()).unwrap_or_default();
        let mut check = || check_interrupt();
        let certificates = match dtype {
            ElementType::F32 => certificates::<f32>(&file, program, gates, self.seed, &mut check),
            ElementType::F64 => certificates::<f64>(&file, program, gates, self.seed, &mut check),
        }?;
        let passed = certificates.iter().all(|certificate| certificate.verdict == Verdict::Passed);
        Ok(Checked { memory: path, dtype, passed, certificates })
    }
}

const HEADINGS: [&str; 7] =
    ["certificate", "verdict", "planted fault", "found", "allowed", "of", "with fault"];
/// Number of left-aligned text columns.
const LEFT: usize = 3;

fn table(checked: &Checked) -> String {
    let row = |of: &Certificate| {
        let verdict = match of.verdict {
            Verdict::Passed => "passed",
            Verdict::Failed => "FAILED",
            Verdict::Void => "VOID",
        };
        let counts = [of.found, of.allowed, of.of, of.found_with_fault].map(|count| count.to_string());
        [of.name, verdict, of.fault].map(str::to_owned).into_iter().chain(counts).collect()
    };
    let mut rows: Vec<Vec<String>> = vec![HEADINGS.map(str::to_owned).to_vec()];
    rows.extend(checked.certificates.iter().map(row));
    let mut text = String::new();
    let name = checked.memory.display().to_string();
    let _ = writeln!(text, "{}, {}", for_terminal(&name), checked.dtype);
    for line in aligned(&rows, LEFT) {
        let _ = writeln!(text, "  {}", line.trim_end());
    }
    for of in checked.certificates.iter().filter(|of| of.verdict != Verdict::Passed) {
        let _ = match of.verdict {
            Verdict::Failed => writeln!(text, "  {}: not true that {}", of.name, of.claim),
            _ => writeln!(text, "  {}: shows nothing, because the fault was not found", of.name),
        };
    }
    text
}
