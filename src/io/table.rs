//! A CSV file, read row by row through one reused record. Columns are found by name, and other columns are
//! ignored. Every error names the file, line and column, and the expected and actual contents.

use std::fs::File;
use std::io::{self, Cursor, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use csv::{ByteRecord, Position, Reader, ReaderBuilder, Trim};

use crate::error::{Error, Result};
use crate::io::text::TextFile;

/// Most bytes of a row. The longest rows that nmem writes are those of failed runs, with an error of a few kilobytes.
const MAX_ROW: usize = 1 << 20;
/// Most columns. nmem writes some forty, and sweeps add one per parameter.
const MAX_COLUMNS: usize = 4096;
/// Largest integer that is read. Floats hold every integer up to here, and no count of tokens or chunks reaches it.
pub(crate) const MAX_INTEGER: u64 = 1 << 53;

/// An open CSV file and its current row.
pub(crate) struct Table<'a> {
    path: PathBuf,
    reader: Reader<Limited<'a>>,
    names: Vec<String>,
    record: ByteRecord,
}

/// An existing column.
#[derive(Clone, Copy)]
pub(crate) struct Column {
    index: usize,
}

impl<'a> Table<'a> {
    /// Opens the file and reads its header.
    pub fn open(path: &Path) -> Result<Self> {
        // This check precedes opening, because opening a pipe would wait for its writer.
        let kind = std::fs::metadata(path).map_err(Error::io(path, "open"))?.file_type();
        if !kind.is_file() && !kind.is_dir() {
            let expected = "a regular file (it is read more than once)";
            return Err(Error::file(path, expected, "a pipe or device (save it to a file first)"));
        }
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        Self::new(path, Box::new(file))
    }

    /// Reads the header of a file in memory.
    pub fn from_text(file: &'a TextFile) -> Result<Self> {
        Self::new(file.path(), Box::new(Cursor::new(file.bytes())))
    }

    fn new(path: &Path, inner: Box<dyn ReadSeek + 'a>) -> Result<Self> {
        let limited = Limited { inner, left: MAX_ROW };
        let mut reader = ReaderBuilder::new().trim(Trim::Headers).from_reader(limited);
        let names = reader.byte_headers().map_err(|error| explain(path, error))?;
        if names.len() > MAX_COLUMNS {
            let expected = format!("at most {MAX_COLUMNS} columns");
            return Err(Error::file(path, expected, names.len().to_string()));
        }
        let names = names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        Ok(Self { path: path.to_path_buf(), reader, names, record: ByteRecord::new() })
    }

    /// Returns a required column.
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

    /// Returns an optional column.
    pub fn optional_column(&self, name: &str) -> Option<Column> {
        let index = self.names.iter().position(|other| other == name)?;
        Some(Column { index })
    }

    /// Yields all columns and their names, in the file's order.
    pub fn columns(&self) -> impl Iterator<Item = (Column, &str)> {
        self.names.iter().enumerate().map(|(index, name)| (Column { index }, &name[..]))
    }

    /// Reads the next row; returns false at the end of the file.
    pub fn advance(&mut self) -> Result<bool> {
        self.reader.get_mut().left = MAX_ROW;
        self.reader.read_byte_record(&mut self.record).map_err(|error| explain(&self.path, error))
    }

    /// Returns the start of the current row.
    pub fn position(&self) -> Position {
        self.record.position().cloned().unwrap_or_else(Position::new)
    }

    /// Moves to a row, so that `advance` reads it next.
    pub fn seek(&mut self, position: Position) -> Result<()> {
        self.reader.seek(position).map_err(|error| explain(&self.path, error))
    }

    /// Returns the cell without surrounding spaces.
    pub fn text(&self, column: Column) -> &[u8] {
        self.record.get(column.index).unwrap_or_default().trim_ascii()
    }

    /// Parses an integer from 0 to [`MAX_INTEGER`].
    pub fn integer(&self, column: Column) -> Result<u64> {
        let number = self.parse(column).ok_or_else(|| self.bad_cell(column, "an integer ≥ 0"))?;
        if number > MAX_INTEGER {
            return Err(self.bad_cell(column, "an integer of at most 2^53"));
        }
        Ok(number)
    }

    /// Parses a number, NaN and infinities included; `None` for an empty cell.
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

    /// Returns an error at the current row.
    pub fn bad_row(&self, expected: impl std::fmt::Display, got: impl Into<String>) -> Error {
        Error::file(&self.path, format!("{expected} on line {}", self.position().line()), got)
    }

    /// Rejects a file of which more than `most` cells would be kept. `kept` is the number so far.
    pub fn check_kept(&self, kept: usize, most: usize) -> Result<()> {
        if kept <= most {
            return Ok(());
        }
        let got = format!("more on line {}", self.position().line());
        Err(Error::file(&self.path, format!("at most {most} cells to be held in memory"), got))
    }
}

fn explain(path: &Path, error: csv::Error) -> Error {
    let line = error.position().map_or(1, Position::line);
    match error.into_kind() {
        csv::ErrorKind::Io(source) if source.kind() == ErrorKind::FileTooLarge => {
            Error::file(path, format!("rows of at most {MAX_ROW} bytes"), "a longer one")
        }
        csv::ErrorKind::Io(source) => Error::io(path, "read")(source),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            Error::file(path, format!("{expected_len} fields on line {line}"), len.to_string())
        }
        other => Error::file(path, format!("CSV on line {line}"), format!("{other:?}")),
    }
}

/// A source of bytes that can be read again from any place.
trait ReadSeek: Read + Seek {}
impl<S: Read + Seek> ReadSeek for S {}

/// A file that fails if one row takes more bytes than remain for it.
struct Limited<'a> {
    inner: Box<dyn ReadSeek + 'a>,
    left: usize,
}

impl Read for Limited<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(ErrorKind::FileTooLarge.into());
        }
        let bytes = self.inner.read(buffer)?;
        self.left = self.left.saturating_sub(bytes);
        Ok(bytes)
    }
}

impl Seek for Limited<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_COLUMNS, MAX_ROW, Table};

    fn read(csv: &[u8]) -> Result<usize, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.csv");
        std::fs::write(&path, csv).unwrap();
        let mut rows = 0;
        let mut table = Table::open(&path).map_err(|error| error.to_string())?;
        while table.advance().map_err(|error| error.to_string())? {
            rows += 1;
        }
        Ok(rows)
    }

    #[test]
    fn cells_of_numbers() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "x, y\n1.5, \nNaN,inf\nx,1\n").unwrap();
        let mut table = Table::open(file.path()).unwrap();
        let [x, y] = ["x", "y"].map(|name| table.column(name).unwrap());
        assert!(table.advance().unwrap());
        assert_eq!((table.number(x).unwrap(), table.number(y).unwrap()), (Some(1.5), None));
        let second = table.position();
        assert!(table.advance().unwrap());
        assert!(table.number(x).unwrap().unwrap().is_nan());
        assert_eq!(table.number(y).unwrap(), Some(f64::INFINITY));
        assert!(table.advance().unwrap());
        let message = table.number(x).unwrap_err().to_string();
        assert!(
            message.ends_with("expected a number or nothing in column \"x\" on line 4, got \"x\""),
            "{message}"
        );
        assert!(!table.advance().unwrap());
        table.seek(second).unwrap();
        assert!(table.advance().unwrap());
        assert_eq!(table.number(x).unwrap(), Some(1.5));
        // The number of cells that are kept may reach its limit.
        table.check_kept(3, 3).unwrap();
        let message = table.check_kept(4, 3).unwrap_err().to_string();
        assert!(
            message.ends_with("expected at most 3 cells to be held in memory, got more on line 2"),
            "{message}"
        );
    }

    #[test]
    fn rows_and_columns_are_limited() {
        let long = |bytes: usize| format!("a\n\"{}\"\n", "x\n".repeat(bytes / 2));
        assert_eq!(read(long(MAX_ROW / 2).as_bytes()), Ok(1));
        for endless in [long(2 * MAX_ROW), "\n".repeat(2 * MAX_ROW), "\0".repeat(2 * MAX_ROW)] {
            let message = read(endless.as_bytes()).unwrap_err();
            assert!(
                message.contains("expected rows of at most 1048576 bytes, got a longer one"),
                "{message}"
            );
        }
        assert_eq!(read(",".repeat(MAX_COLUMNS - 1).as_bytes()), Ok(0));
        assert!(read(",".repeat(MAX_COLUMNS).as_bytes()).is_err());
        // As many short rows as possible.
        assert_eq!(read("a\n1\n".repeat(MAX_ROW).as_bytes()), Ok(2 * MAX_ROW - 1));
    }

    #[test]
    fn errors_of_the_system_are_no_errors_of_the_rows() {
        let directory = tempfile::tempdir().unwrap();
        let Err(error) = Table::open(directory.path()) else { panic!("a directory has no rows") };
        assert!(error.to_string().ends_with(": cannot read"), "{error}");
    }
}
