//! Figures as TeX that reads the CSV.

use std::path::{Path, PathBuf};

use super::{Request, Source};
use crate::error::{Error, Result};

/// Writes a .tex for each figure of the sources into a folder, which must exist; returns the files.
pub fn write(
    _sources: &[Source],
    _request: &Request,
    _folder: &Path,
    _check: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<PathBuf>> {
    Err(Error::setting("--figure-format", "svg, pdf or png", "pgfplots"))
}
