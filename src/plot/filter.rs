//! The rows of a CSV file that are drawn: those that pass the conditions of `--where`.

use std::collections::HashMap;
use std::path::Path;

use crate::condition::{Condition, Value};
use crate::config::nearest;
use crate::error::{Error, Result};
use crate::io::table::{Column, Table};
use crate::plot::Check;

/// Rows between two checks.
const ROWS: u64 = 4096;

/// The rows of a file that pass conditions.
pub struct Rows<'a> {
    /// The file, at the current row.
    pub table: Table<'static>,
    conditions: Vec<Condition>,
    columns: HashMap<String, Column>,
    check: &'a mut Check<'a>,
    read: u64,
}

impl<'a> Rows<'a> {
    /// Opens a file and parses conditions on its columns.
    pub fn open(csv: &Path, conditions: &[String], check: &'a mut Check<'a>) -> Result<Self> {
        let table = Table::open(csv)?;
        let columns: HashMap<_, _> =
            table.columns().map(|(column, name)| (name.to_owned(), column)).collect();
        let names: Vec<_> = table.columns().map(|(_, name)| name).collect();
        let parse = |text: &String| {
            let condition = Condition::parse(text, &names)?;
            // A sweep may have runs without a note, but a table has a column for each that any run has.
            if let Some(name) = condition.names().find(|name| !columns.contains_key(*name)) {
                let near = nearest(name, names.iter().copied());
                return Err(format!("expected the name of a setting or result, got `{name}`{near}"));
            }
            Ok(condition)
        };
        let conditions = conditions.iter().map(parse).collect::<Result<_, _>>();
        let conditions = conditions.map_err(|reason| Error::rejected("--where", reason))?;
        Ok(Self { table, conditions, columns, check, read: 0 })
    }

    /// Moves to the next row that passes all conditions; returns false at the end of the file.
    pub fn advance(&mut self) -> Result<bool> {
        while self.table.advance()? {
            self.read += 1;
            if self.read.is_multiple_of(ROWS) {
                (self.check)()?;
            }
            let cell = |name: &str| {
                let column = self.columns.get(name)?;
                std::str::from_utf8(self.table.text(*column)).ok().map(Value::Text)
            };
            if self.conditions.iter().all(|condition| condition.holds(&cell)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A column, or one column divided by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric<C> {
    /// A column.
    Column(C),
    /// Numerator and denominator.
    Quotient(C, C),
}

impl<C> Metric<C> {
    /// Finds a metric by its column's name, or by two names with a slash between them. `loss_ratio` is known in every table:
    /// if it is no column, it is the quotient `ratio`.
    pub fn find(name: &str, ratio: &str, column: impl Fn(&str) -> Option<C>) -> Option<Self> {
        if let Some(column) = column(name.trim()) {
            return Some(Self::Column(column));
        }
        let (over, under) = (if name == "loss_ratio" { ratio } else { name }).split_once('/')?;
        Some(Self::Quotient(column(over.trim())?, column(under.trim())?))
    }
}

/// Rejects conditions that hold for no row.
pub fn check_any(conditions: &[String], any: bool) -> Result<()> {
    if any || conditions.is_empty() {
        return Ok(());
    }
    let reason = format!("`{}` holds for no row; choose another condition", conditions.join("` and `"));
    Err(Error::rejected("--where", reason))
}
