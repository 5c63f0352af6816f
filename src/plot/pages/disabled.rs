//! A build without PDF and PNG.

use crate::error::{Error, Result};

pub fn check() -> Result<()> {
    Err(Error::setting("--figure-format", "a build with the feature pdf-png, for pdf and png", "one without"))
}

pub fn pdf(_svg: &str) -> Result<Vec<u8>> {
    Err(check().expect_err("this build has neither"))
}

pub fn png(_svg: &str) -> Result<Vec<u8>> {
    Err(check().expect_err("this build has neither"))
}
