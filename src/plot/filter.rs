//! Conditions on the rows of a table.

use std::collections::HashMap;

use crate::condition::{Condition, Value};
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
        let parse = |condition: &String| {
            Condition::parse(condition, &names).map_err(|reason| Error::rejected("--where", reason))
        };
        Ok(Self { conditions: conditions.iter().map(parse).collect::<Result<_>>()?, columns })
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
