//! A CSV file read row by row through one reused record. Columns are found by name, other columns are ignored,
//! and every error names the file, the line, the column, what was expected and what is there.

use std::fs::File;
use std::path::{Path, PathBuf};

use csv::{ByteRecord, Position, Reader, ReaderBuilder, Trim};

use crate::error::{Error, Result};

/// An open CSV file and its current row.
pub(crate) struct Table {
    path: PathBuf,
    reader: Reader<File>,
    names: Vec<String>,
    record: ByteRecord,
}

/// A column that is there.
#[derive(Clone, Copy)]
pub(crate) struct Column {
    index: usize,
}

impl Table {
    /// Opens the file and reads its header.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let mut reader = ReaderBuilder::new().trim(Trim::Headers).from_reader(file);
        let names = reader.byte_headers().map_err(|error| explain(path, error))?;
        let names = names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        Ok(Self { path: path.to_path_buf(), reader, names, record: ByteRecord::new() })
    }

    /// A column that must be there.
    pub fn column(&self, name: &str) -> Result<Column> {
        self.optional_column(name).ok_or_else(|| {
            let there = if self.names.is_empty() {
                "an empty file".to_string()
            } else {
                format!("the columns {}", self.names.join(", "))
            };
            Error::file(&self.path, format!("a column {name:?}"), there)
        })
    }

    /// A column that may be there.
    pub fn optional_column(&self, name: &str) -> Option<Column> {
        let index = self.names.iter().position(|other| other == name)?;
        Some(Column { index })
    }

    /// All columns and their names, in the file's order.
    pub fn columns(&self) -> impl Iterator<Item = (Column, &str)> {
        self.names.iter().enumerate().map(|(index, name)| (Column { index }, &name[..]))
    }

    /// Reads the next row; false at the end of the file.
    pub fn advance(&mut self) -> Result<bool> {
        self.reader.read_byte_record(&mut self.record).map_err(|error| explain(&self.path, error))
    }

    /// Where the current row begins.
    pub fn position(&self) -> Position {
        self.record.position().cloned().unwrap_or_else(Position::new)
    }

    /// Goes to a row, so that `advance` reads it next.
    pub fn seek(&mut self, position: Position) -> Result<()> {
        self.reader.seek(position).map_err(|error| explain(&self.path, error))
    }

    /// The cell without spaces around it.
    pub fn text(&self, column: Column) -> &[u8] {
        self.record.get(column.index).unwrap_or_default().trim_ascii()
    }

    /// An integer ≥ 0.
    pub fn integer(&self, column: Column) -> Result<u64> {
        self.parse(column).ok_or_else(|| self.bad_cell(column, "an integer ≥ 0"))
    }

    /// A number, NaN and infinities included, or `None` for an empty cell.
    pub fn number(&self, column: Column) -> Result<Option<f64>> {
        if self.text(column).is_empty() {
            return Ok(None);
        }
        self.parse(column).map(Some).ok_or_else(|| self.bad_cell(column, "a number or nothing"))
    }

    fn parse<N: std::str::FromStr>(&self, column: Column) -> Option<N> {
        std::str::from_utf8(self.text(column)).ok()?.parse().ok()
    }

    fn bad_cell(&self, column: Column, expected: &str) -> Error {
        let got = format!("{:?}", String::from_utf8_lossy(self.text(column)));
        self.bad_row(format!("{expected} in column {:?}", self.names[column.index]), got)
    }

    /// An error at the current row.
    pub fn bad_row(&self, expected: impl std::fmt::Display, got: impl Into<String>) -> Error {
        Error::file(&self.path, format!("{expected} on line {}", self.position().line()), got)
    }
}

fn explain(path: &Path, error: csv::Error) -> Error {
    let line = error.position().map_or(1, Position::line);
    match error.into_kind() {
        csv::ErrorKind::Io(source) => Error::io(path, "read")(source),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            Error::file(path, format!("{expected_len} fields on line {line}"), len.to_string())
        }
        other => Error::file(path, format!("CSV on line {line}"), format!("{other:?}")),
    }
}
