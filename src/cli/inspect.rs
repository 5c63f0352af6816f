//! `nmem inspect`: the content of files, as a table for people or JSON for programs.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::{Number, Value};

use super::table::aligned;
use super::{COULD_NOT_RUN, FAILED, Format, print, print_error};
use crate::error::Error;
use crate::escape::for_terminal;
use crate::io::Progress;
use crate::io::dtype::shape_text;
use crate::io::memory_config::read_config;
use crate::io::memory_file::{ATTENTION_WEIGHTS, layout};
use crate::io::summary::{ArraySummary, FileFormat, FileSummary, summarise};
use crate::io::tensors::{MAX_CONFIGURATION, METADATA_KEY, MODEL_KEY};
use crate::io::text::check_streams;
use crate::memory::program::Choices;
use crate::memory::{Dimensions, Program};

const FIRST_WEIGHT: &str = "memory_model.weights.0";

/// Show the content of .npy, .npz and .safetensors files: shapes, types, ranges and non-finite values
///
/// Also shows the dimensions of parameters, and the configuration and state of a memory.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Files to inspect; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Output on stdout: a table for people, or JSON for programs
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Role of a file for nmem.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Kind {
    /// Arrays without a meaning known to nmem.
    Arrays,
    /// Parameters of a memory; `None` if the shapes do not agree.
    Parameters {
        parameters: Option<Dimensions>,
        /// Model that the file names, or those that it may hold.
        model: String,
    },
    Memory {
        parameters: Option<Dimensions>,
        /// Every choice of the memory's program; `None` if the configuration cannot be read.
        program: Option<Choices>,
        /// Name of each memory weight, in file order.
        weights: Vec<String>,
        configuration: Value,
    },
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    file: FileSummary,
    #[serde(flatten)]
    kind: Kind,
}

/// Prints every file that can be read, and one error line for each that cannot. Exits with status 0, with 1 if some
/// files could not be read, or with 2 if none could.
pub fn run(args: &Args, progress: Progress) -> anyhow::Result<ExitCode> {
    check_streams(args.files.iter().map(PathBuf::as_path))?;
    let mut reports = Vec::new();
    let mut failed = 0;
    let mut gap = "";
    for path in &args.files {
        let mut file = match summarise(path, progress) {
            Ok(file) => file,
            Err(Error::Interrupted) => return Err(Error::Interrupted.into()),
            Err(error) => {
                failed += 1;
                print_error(&format!("{:#}", anyhow::Error::from(error)));
                continue;
            }
        };
        let kind = classify(&mut file);
        let report = Report { file, kind };
        if args.format == Format::Json {
            reports.push(report);
            continue;
        }
        let text = table(&report);
        if !print(&format!("{gap}{text}"))? {
            break;
        }
        gap = "\n";
    }
    if args.format == Format::Json {
        let text = serde_json::to_string_pretty(&reports)?;
        print(&(text + "\n"))?;
    }
    Ok(match failed {
        0 => ExitCode::SUCCESS,
        n if n == args.files.len() => COULD_NOT_RUN.into(),
        _ => FAILED.into(),
    })
}

/// Determines the role of a file. Moves a memory's configuration out of the metadata.
fn classify(file: &mut FileSummary) -> Kind {
    if let Some(json) = file.metadata.remove(METADATA_KEY) {
        // Text that is not JSON is shown as it is, because inspect is a tool for finding out what is wrong.
        let parsed = (json.len() <= MAX_CONFIGURATION).then(|| serde_json::from_str(&json).ok()).flatten();
        let program = read_config(&file.file, &json).ok().map(|config| config.program);
        let parameters = dimensions(&file.arrays, program.as_ref());
        let named = program.zip(parameters).map(|(program, of)| program.model.graph(of.dim_head).weights);
        let weights = named.into_iter().flatten().map(|weight| weight.name).collect();
        let program = program.as_ref().map(Choices::from);
        let configuration = parsed.unwrap_or(Value::String(json));
        return Kind::Memory { parameters, program, weights, configuration };
    }
    if file.arrays.iter().any(|array| array.name.as_deref() == Some(FIRST_WEIGHT)) {
        let weights = file.arrays.iter().filter_map(|array| array.name.as_ref());
        let weights = weights.filter(|name| name.starts_with("memory_model.weights.")).count();
        let model = match file.metadata.get(MODEL_KEY) {
            Some(model) => model.clone(),
            None if weights == ATTENTION_WEIGHTS => "attention or mlp: ambiguous, pass --model".to_owned(),
            None => "mlp: pass --model mlp".to_owned(),
        };
        return Kind::Parameters { parameters: dimensions(&file.arrays, None), model };
    }
    Kind::Arrays
}

/// Infers the dimensions of a memory; `None` if shapes are missing or do not agree. Parameters have the layout of
/// titans-pytorch 0.0.17.
fn dimensions(arrays: &[ArraySummary], program: Option<&Program>) -> Option<Dimensions> {
    let named = arrays.iter().filter_map(|array| Some((array.name.clone()?, array.shape.clone())));
    let shapes = named.filter(|(name, _)| !name.starts_with("state.")).collect();
    let program = program.copied().unwrap_or_else(|| layout(&shapes));
    Dimensions::infer(&shapes, &program).ok()
}

/// Formats the report of one file for people. Ends with a newline.
fn table(report: &Report) -> String {
    let Report { file, kind } = report;
    let format = match file.format {
        FileFormat::Npy => ".npy",
        FileFormat::Npz => ".npz",
        FileFormat::Safetensors => ".safetensors",
    };
    let what = match kind {
        Kind::Arrays => "",
        Kind::Parameters { .. } => "parameters, ",
        Kind::Memory { .. } => "a memory, ",
    };
    let path = file.file.display().to_string();
    let mut text = format!("{}: {what}{format}, {} bytes\n", for_terminal(&path), file.bytes);
    if let Kind::Parameters { parameters, .. } | Kind::Memory { parameters, .. } = kind {
        let _ = match parameters {
            Some(dimensions) => writeln!(text, "  {dimensions}"),
            None => writeln!(text, "  dimensions unknown: shapes are missing or do not agree"),
        };
    }
    let is_parameters = matches!(kind, Kind::Parameters { .. });
    if let Kind::Parameters { model, .. } = kind {
        let _ = writeln!(text, "  model {}", for_terminal(model));
    }
    // The line above has the model.
    let others = file.metadata.iter().filter(|(key, _)| !is_parameters || *key != MODEL_KEY);
    let pairs = others.map(|(key, value)| vec![key.clone(), value.escape_debug().to_string()]);
    for line in aligned(&pairs.collect::<Vec<_>>(), 2) {
        let _ = writeln!(text, "  {}", line.trim_end());
    }
    if let Kind::Memory { configuration, program, weights, .. } = kind {
        if let Some(program) = program {
            text += "\n  program\n";
            let value = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let mut lines: Vec<_> =
                program.made().iter().map(|(name, choice)| vec![name.clone(), value(choice)]).collect();
            let weights =
                weights.iter().enumerate().map(|(p, name)| vec![format!("weight {p}"), name.clone()]);
            lines.extend(weights);
            for line in aligned(&lines, 2) {
                let _ = writeln!(text, "    {}", line.trim_end());
            }
        }
        text += "\n  configuration\n";
        let mut lines = Vec::new();
        flatten("", configuration, &mut lines);
        for line in aligned(&lines, 2) {
            let _ = writeln!(text, "    {}", line.trim_end());
        }
    }
    text.push('\n');
    let (state, others): (Vec<_>, Vec<_>) = file
        .arrays
        .iter()
        .partition(|array| array.name.as_ref().is_some_and(|name| name.starts_with("state.")));
    if matches!(kind, Kind::Memory { .. }) {
        let rows: Vec<_> = others.iter().chain(&state).map(|array| cells(array)).collect();
        let mut lines = align(rows, true).into_iter();
        text += "  parameters\n";
        let heading = lines.next().unwrap_or_default();
        let _ = writeln!(text, "    {heading}");
        for _ in &others {
            let _ = writeln!(text, "    {}", lines.next().unwrap_or_default());
        }
        text += "\n  state\n";
        if state.is_empty() {
            text += "    none: nothing has been stored\n";
        } else {
            let _ = writeln!(text, "    {heading}");
        }
        for line in lines {
            let _ = writeln!(text, "    {line}");
        }
    } else {
        let rows = file.arrays.iter().map(cells).collect();
        for line in align(rows, file.format != FileFormat::Npy) {
            let _ = writeln!(text, "  {line}");
        }
    }
    text
}

/// Flattens nested objects into dotted keys. Everything else becomes JSON on one line.
fn flatten(prefix: &str, value: &Value, lines: &mut Vec<Vec<String>>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&key, value, lines);
            }
        }
        Value::String(text) => lines.push(vec![prefix.to_owned(), text.escape_debug().to_string()]),
        Value::Null => lines.push(vec![prefix.to_owned(), "-".to_owned()]),
        other => lines.push(vec![prefix.to_owned(), other.to_string()]),
    }
}

const HEADINGS: [&str; 9] = ["name", "type", "shape", "min", "max", "mean", "nan", "inf", "bytes"];
/// Number of left-aligned text columns; numbers are aligned to the right.
const LEFT: usize = 3;

fn cells(array: &ArraySummary) -> [String; 9] {
    let ranges = &array.ranges;
    let count = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    [
        array.name.as_deref().unwrap_or_default().escape_debug().to_string(),
        array.described.clone(),
        shape_text(&array.shape),
        ranges.min.as_ref().map_or_else(|| "-".to_owned(), number),
        ranges.max.as_ref().map_or_else(|| "-".to_owned(), number),
        ranges.mean.map_or_else(|| "-".to_owned(), six_digits),
        count(ranges.nan),
        count(ranges.infinite),
        array.bytes.to_string(),
    ]
}

fn align(rows: Vec<[String; 9]>, with_names: bool) -> Vec<String> {
    let first = usize::from(!with_names);
    let rows = std::iter::once(HEADINGS.map(str::to_owned)).chain(rows);
    aligned(&rows.map(|row| row[first..].to_vec()).collect::<Vec<_>>(), LEFT - first)
}

fn number(number: &Number) -> String {
    match number.as_f64() {
        Some(x) if number.is_f64() => six_digits(x),
        _ => number.to_string(),
    }
}

/// Formats six significant digits without trailing zeros, enough to compare by eye. JSON has all digits.
fn six_digits(x: f64) -> String {
    let scientific = format!("{x:.5e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let trim = |text: &str| {
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text.to_owned()
        }
    };
    match exponent.parse::<i32>() {
        Ok(exponent @ -4..6) => trim(&format!("{x:.*}", usize::try_from(5 - exponent).unwrap_or_default())),
        _ => format!("{}e{exponent}", trim(mantissa)),
    }
}
