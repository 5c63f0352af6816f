//! Input and output files. They are built here byte by byte or with ndarray-npy; nothing needs Python.

// File contents are compared exactly.
#![allow(clippy::float_cmp)]

mod inspect;
mod labels;
mod memories;
mod sequences;
mod tensors;

use std::path::PathBuf;

use tempfile::TempDir;

/// Returns a `.npy` file of version 1 in `NumPy`'s layout.
fn npy(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
    let order = if fortran { "True" } else { "False" };
    npy_of_header(&format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"), data)
}

fn npy_of_header(dictionary: &str, data: &[u8]) -> Vec<u8> {
    let mut text = dictionary.to_owned();
    while !(10 + text.len() + 1).is_multiple_of(64) {
        text.push(' ');
    }
    text.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.bytes());
    bytes.extend(data);
    bytes
}

struct TestDirectory(TempDir);

impl TestDirectory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    /// Returns the message as the program prints it, without the directory's path.
    fn message(&self, error: nmem::Error) -> String {
        let text = format!("{:#}", anyhow::Error::from(error));
        assert!(!text.contains('\n'), "{text}");
        text.replace(&format!("{}/", self.0.path().display()), "")
    }
}

/// A progress callback that never stops the work.
#[allow(clippy::unnecessary_wraps)]
fn go_on(_: u64) -> nmem::Result<()> {
    Ok(())
}
