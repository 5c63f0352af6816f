//! A CSV file on stdin. Tables are read more than once, so that it is copied to a temporary file first.

use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::TempDir;

use super::check_interrupt;
use crate::error::Error;

/// Most bytes on stdin: the metrics.csv of some ten million chunks.
const MAX_BYTES: u64 = 2 << 30;
/// Bytes copied between two looks for a signal.
const BLOCK: u64 = 1 << 20;

/// Replaces `-` and `/dev/stdin` among the paths by a copy of stdin, in a directory that is removed with the result. Returns
/// `None` if no path is stdin.
pub fn keep(paths: &mut [PathBuf]) -> anyhow::Result<Option<TempDir>> {
    let is_stdin = |path: &&mut PathBuf| **path == Path::new("-") || **path == Path::new("/dev/stdin");
    let Some(path) = paths.iter_mut().find(is_stdin) else { return Ok(None) };
    let directory = tempfile::Builder::new().prefix("nmem-").tempdir().context("a temporary directory")?;
    let copy = directory.path().join("stdin.csv");
    let mut file = std::fs::File::create(&copy).context("a temporary file")?;
    let mut input = std::io::stdin().lock();
    let mut block = Vec::new();
    let mut total = 0;
    loop {
        check_interrupt()?;
        block.clear();
        let read = (&mut input).take(BLOCK).read_to_end(&mut block).context("standard input")?;
        if read == 0 {
            break;
        }
        total += read as u64;
        if total > MAX_BYTES {
            let reason = format!("more than {MAX_BYTES} bytes; save it to a file first");
            return Err(Error::rejected(path.display().to_string(), reason).into());
        }
        file.write_all(&block).context("a temporary file")?;
    }
    *path = copy;
    Ok(Some(directory))
}
