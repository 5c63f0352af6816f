//! train.csv: a row for each step, and one before the first if there is a validation.

use std::path::Path;

use serde::Serialize;

use super::optimizer::Group;
use crate::error::{Error, Result};
use crate::storage::OutFile;

/// A row of train.csv.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Row {
    /// Steps taken.
    pub step: usize,
    /// Mean loss of the step's examples, before the step.
    pub loss: Option<f64>,
    /// Mean loss of the validation's examples, after the step.
    pub validation: Option<f64>,
    /// Learning rate of the step.
    pub rate: Option<f64>,
    /// Norm of the step's gradient, before it is clipped.
    pub grad_norm: Option<f64>,
    /// Norms of its groups.
    pub of_groups: [Option<f64>; Group::ALL.len()],
    /// Tokens per second of the step, without validation.
    pub tokens_per_s: Option<f64>,
}

/// The text of train.csv so far. It is small beside the examples: some hundred bytes per step.
#[derive(Clone, Debug)]
pub struct Log {
    text: Vec<u8>,
}

impl Log {
    /// Starts a log with its header.
    pub fn new() -> Self {
        let of_groups = Group::ALL.map(|group| format!("grad_norm_{}", group.name()));
        let first = ["step", "loss", "validation", "rate", "grad_norm"].map(str::to_owned);
        let names: Vec<_> = first.into_iter().chain(of_groups).chain(["tokens_per_s".to_owned()]).collect();
        Self { text: format!("{}\n", names.join(",")).into_bytes() }
    }

    /// Continues the log of a checkpoint.
    pub fn read(path: &Path) -> Result<Self> {
        std::fs::read(path).map(|text| Self { text }).map_err(Error::io(path, "read"))
    }

    /// Adds a row.
    pub fn add(&mut self, row: &Row) {
        let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(&mut self.text);
        writer.serialize(row).expect("numbers, written to memory");
        writer.flush().expect("written to memory");
    }

    /// Writes the file into a directory that is being written.
    pub fn write(&self, directory: &Path) -> Result<()> {
        OutFile::write_new(&directory.join("train.csv"), &self.text)
    }
}
