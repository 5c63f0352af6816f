//! Figures as text, for work over ssh.

use super::{Request, Source};
use crate::error::{Error, Result};

/// The series of the sources as text of at most so many columns, for stdout.
pub fn view(
    _sources: &[Source],
    _request: &Request,
    _columns: usize,
    _check: &mut dyn FnMut() -> Result<()>,
) -> Result<String> {
    Err(Error::setting("--terminal", "a build that has it", "one without"))
}
