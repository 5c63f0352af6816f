//! A file of figures in TOML: every `[[figure]]` has the flags of `nmem plot` as keys, and `paths`. Keys above the first
//! figure hold for all of them. Relative paths start from the file's directory.

use std::path::{Path, PathBuf};

use clap::Parser;
use toml::{Table, Value};

use super::plot::Args;
use crate::error::{Error, Result};
use crate::io::text::TextFile;

/// Most bytes of a file of figures, which leaves a kilobyte for each of a thousand figures.
const MAX_BYTES: usize = 1 << 20;
/// Key of the paths of a figure.
const PATHS: &str = "paths";

/// The flags of a figure, parsed like a command line.
#[derive(Parser)]
#[command(name = "figure", no_binary_name = true, disable_help_flag = true)]
struct CommandLine {
    #[command(flatten)]
    args: Args,
}

/// A figure of the file.
pub struct FigureEntry {
    /// Number and output, for metadata and errors.
    pub name: String,
    pub args: Args,
}

/// Reads the figures. Of the command line, only --quiet may stand beside the file.
pub fn read(path: &Path, typed: &Args) -> Result<Vec<FigureEntry>> {
    let display = path.display().to_string();
    let reject = |reason: String| Error::rejected(display.clone(), reason);
    let mut alone = CommandLine::try_parse_from([path.as_os_str()]).map(|line| line.args);
    if let Ok(alone) = &mut alone {
        alone.quiet = typed.quiet;
    }
    if alone.is_ok_and(|alone| alone != *typed) {
        return Err(reject("flags cannot stand beside a file of figures; put them into it".to_owned()));
    }
    let file = TextFile::read(path, MAX_BYTES)?;
    let text = std::str::from_utf8(file.bytes()).map_err(|_| reject("expected text in UTF-8".to_owned()))?;
    let mut table: Table = toml::from_str(text).map_err(|error| {
        let line =
            error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        reject(format!("line {line}: {}", error.message()))
    })?;
    let figures = match table.remove("figure") {
        Some(Value::Array(figures)) if !figures.is_empty() => figures,
        _ => return Err(reject("expected at least one [[figure]]".to_owned())),
    };
    let of_figure = |(i, figure): (usize, Value)| {
        let number = format!("figure {}", i + 1);
        let reject = |reason: String| reject(format!("{number}: {reason}"));
        let Value::Table(figure) = figure else {
            return Err(reject("expected a table, [[figure]]".to_owned()));
        };
        // A key of the figure replaces that of all figures.
        let mut all = table.clone();
        all.extend(figure);
        let mut args = arguments(all).and_then(parse).map_err(reject)?;
        args.quiet |= typed.quiet;
        let base = file.directory();
        let resolve = |path: &mut PathBuf| {
            if *path != Path::new("-") {
                *path = base.join(&*path);
            }
        };
        args.paths.iter_mut().chain(&mut args.labels).chain(&mut args.out).for_each(resolve);
        if args.paths.iter().any(|path| path.extension().is_some_and(|ending| ending == "toml")) {
            return Err(reject("a file of figures cannot name another one".to_owned()));
        }
        let out = args
            .out
            .as_ref()
            .and_then(|out| out.file_name())
            .map(|out| format!(" ({})", out.to_string_lossy()));
        Ok(FigureEntry { name: number + &out.unwrap_or_default(), args })
    };
    figures.into_iter().enumerate().map(of_figure).collect()
}

/// Returns the figure's keys as arguments.
fn arguments(keys: Table) -> Result<Vec<String>, String> {
    let (mut arguments, mut paths) = (Vec::new(), Vec::new());
    for (key, value) in keys {
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        let texts = values.iter().map(|value| match value {
            Value::String(text) => Ok(text.clone()),
            Value::Integer(number) => Ok(number.to_string()),
            Value::Float(number) => Ok(number.to_string()),
            Value::Boolean(set) => Ok(set.to_string()),
            other => Err(format!(
                "{key}: expected text, a number, true, false or a list, got {}",
                other.type_str()
            )),
        });
        let texts = texts.collect::<Result<Vec<_>, _>>()?;
        let flag = key.replace('_', "-");
        match (&key[..], &values[..]) {
            (PATHS, _) => paths = texts,
            (_, [Value::Boolean(false)]) => {}
            (_, [Value::Boolean(true)]) => arguments.push(format!("--{flag}")),
            _ => arguments.extend(texts.iter().map(|text| format!("--{flag}={text}"))),
        }
    }
    arguments.push("--".to_owned());
    arguments.extend(paths);
    Ok(arguments)
}

fn parse(arguments: Vec<String>) -> Result<Args, String> {
    let parsed = CommandLine::try_parse_from(arguments);
    parsed.map(|line| line.args).map_err(|error| {
        let rendered = error.render().to_string();
        let first = rendered.split("\n\n").next().unwrap_or_default();
        let line = first.split_whitespace().collect::<Vec<_>>().join(" ");
        line.strip_prefix("error: ").unwrap_or(&line).to_owned()
    })
}
