//! `nmem repeat`: runs a run.json again and compares the results.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Command, FAILED, check_interrupt, note, parse, print, retrieve};
use crate::config;
use crate::error::{Error, Result};
use crate::escape::for_terminal;
use crate::run::{hexadecimal, read_json};
use crate::storage;

/// Run a run.json again, and compare the results bit by bit
///
/// Reads the same inputs with the same settings, from the directory in which the run was started. Exits with status 1 if a
/// result differs.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Directory with the results of a run, or its run.json
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Directory for the new results [default: RUN-repeat]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace an existing output directory if nmem wrote everything in it
    #[arg(long)]
    force: bool,
    /// Print only errors
    #[arg(short, long)]
    quiet: bool,
}

/// Results that are compared. A memory also names the version that wrote it, so that another version's file differs.
const COMPARED: [&str; 7] = [
    "metrics.csv",
    "retention.csv",
    "unstored.csv",
    "spectrum.csv",
    "recall.csv",
    "retrieved.npy",
    "memory.safetensors",
];

/// Bytes that are read and hashed at once.
const BUFFER: usize = 1 << 20;

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (directory, file) = if storage::is_directory(&args.run)? {
        (storage::without_slash(&args.run), args.run.join("run.json"))
    } else {
        (storage::parent_of(&args.run).to_path_buf(), args.run.clone())
    };
    let Some(json) = read_json(&file)? else {
        let reason = "no run.json; name the directory of a run, or its run.json";
        return Err(Error::rejected(args.run.display().to_string(), reason).into());
    };
    let line: Vec<String> = serde_json::from_value(json["command_line"].clone())
        .map_err(|_| Error::file(&file, "the run.json of a run", "no command line"))?;
    check_inputs(&file, &json)?;
    if json["nmem"] != env!("CARGO_PKG_VERSION") && !args.quiet {
        note("note: ", &format!("{} is by nmem {}", file.display(), json["nmem"].as_str().unwrap_or("?")));
    }
    let data = input_paths(&json).find(|(role, ..)| *role == "data").map(|(_, path, _)| PathBuf::from(path));
    let data = data.ok_or_else(|| Error::file(&file, "the run.json of a run", "no input `data`"))?;
    let out = args.out.clone().unwrap_or_else(|| {
        let mut name = directory.file_name().unwrap_or_default().to_os_string();
        name.push("-repeat");
        directory.with_file_name(name)
    });
    let typed = line.iter().map(Into::into).collect::<Vec<_>>();
    let parsed = parse(&typed).map_err(|error| {
        let reason = format!("its command line is not one of this version ({})", error.kind());
        Error::rejected(file.display().to_string(), reason)
    })?;
    let status = match parsed.command {
        Command::Store(mut of_run) => {
            of_run.redirect(data, out.clone(), args.force, true);
            of_run.execute_as(line)?
        }
        Command::Retrieve(retrieve::Args { run: mut of_run, .. }) => {
            of_run.redirect(data, out.clone(), args.force, true);
            of_run.execute_as(config::Command::Retrieve, line)?
        }
        _ => return Err(Error::file(&file, "the run.json of a store or retrieve", line.join(" ")).into()),
    };
    compare(&directory, &out, args.quiet, status)
}

/// Returns role, path and SHA-256 of each input.
fn input_paths(json: &Value) -> impl Iterator<Item = (&str, &str, &str)> {
    let inputs = json["inputs"].as_array().into_iter().flatten();
    inputs.filter_map(|input| {
        let text = |key: &str| input[key].as_str();
        Some((text("role")?, text("path")?, text("sha256")?))
    })
}

/// Rejects inputs that are absent or have changed.
fn check_inputs(file: &Path, json: &Value) -> Result<()> {
    for (role, path, sha256) in input_paths(json) {
        let path = Path::new(path);
        if !storage::exists(path)? {
            let reason = format!(
                "its input {} ({role}) is absent; paths start where the run was started, so change to that directory",
                path.display()
            );
            return Err(Error::rejected(file.display().to_string(), reason));
        }
        let found = sha256_of(path)?;
        if found != sha256 {
            let expected = format!("the content that {} names, SHA-256 {sha256}", file.display());
            return Err(Error::file(path, expected, found));
        }
    }
    Ok(())
}

/// Compares the results that both directories have.
fn compare(before: &Path, after: &Path, quiet: bool, status: ExitCode) -> anyhow::Result<ExitCode> {
    let (mut text, mut same) = (String::new(), true);
    for name in COMPARED {
        let paths = [before, after].map(|directory| directory.join(name));
        if !storage::exists(&paths[0])? || !storage::exists(&paths[1])? {
            continue;
        }
        let equal = sha256_of(&paths[0])? == sha256_of(&paths[1])?;
        same &= equal;
        let _ = writeln!(text, "{name:<20} {}", if equal { "same bits" } else { "differs" });
    }
    let _ = writeln!(text, "results              {}", for_terminal(&after.display().to_string()));
    if !quiet {
        print(&text)?;
    }
    Ok(if same { status } else { FAILED.into() })
}

fn sha256_of(path: &Path) -> Result<String> {
    let mut digest = Sha256::new();
    let mut file = BufReader::with_capacity(BUFFER, File::open(path).map_err(Error::io(path, "open"))?);
    loop {
        check_interrupt()?;
        let bytes = file.fill_buf().map_err(Error::io(path, "read"))?;
        if bytes.is_empty() {
            return Ok(hexadecimal(&digest.finalize()));
        }
        digest.update(bytes);
        let read = bytes.len();
        file.consume(read);
    }
}
