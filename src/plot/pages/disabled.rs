//! A build without PDF and PNG.

use crate::error::{Error, Result};

pub fn check() -> Result<()> {
    let reason = "this build cannot write pdf or png; build nmem with the feature pdf-png, or choose svg";
    Err(Error::rejected("--figure-format", reason))
}

pub fn pdf(_svg: &str, _title: Option<&str>, _origin: Option<&str>) -> Result<Vec<u8>> {
    Err(check().expect_err("this build can write neither"))
}

pub fn png(_svg: &str) -> Result<Vec<u8>> {
    Err(check().expect_err("this build can write neither"))
}
