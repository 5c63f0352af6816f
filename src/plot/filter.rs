//! Conditions on the rows of a table.

use std::collections::HashMap;

use crate::condition::{Condition, Value};
use crate::config::nearest;
use crate::error::{Error, Result};
use crate::io::table::{Column, Table};

/// Conditions with the columns of a table.
pub struct Filter {
    conditions: Vec<Condition>,
    columns: HashMap<String, Column>,
}

impl Filter {
    /// Parses conditions on the columns of a table.
    pub fn new(conditions: &[String], table: &Table) -> Result<Self> {
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
        Ok(Self { conditions: conditions.map_err(|reason| Error::rejected("--where", reason))?, columns })
    }

    /// Whether the current row passes all conditions.
    pub fn passes(&self, table: &Table) -> bool {
        let cell = |name: &str| {
            let column = self.columns.get(name)?;
            std::str::from_utf8(table.text(*column)).ok().map(Value::Text)
        };
        self.conditions.iter().all(|condition| condition.holds(&cell))
    }
}

/// Rejects conditions that hold for no row.
pub fn check(conditions: &[String], any: bool) -> Result<()> {
    if any || conditions.is_empty() {
        return Ok(());
    }
    let reason = format!("`{}` holds for no row; choose another condition", conditions.join("` and `"));
    Err(Error::rejected("--where", reason))
}
