//! Conditions on rows: `decay=0.1`, `seed<3`, `init=xavier,randn`.

use std::str::FromStr;

use crate::error::{Error, Result};
use crate::io::table::{Column, Table};

/// A condition on a column.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    column: String,
    test: Test,
    /// Values, any of which may hold for `=`, and none for `!=`.
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Equal,
    Different,
    Below,
    AtMost,
    Above,
    AtLeast,
}

/// Signs of the tests; longer ones come first.
const SIGNS: [(&str, Test); 6] = [
    ("!=", Test::Different),
    ("<=", Test::AtMost),
    (">=", Test::AtLeast),
    ("=", Test::Equal),
    ("<", Test::Below),
    (">", Test::Above),
];

impl FromStr for Condition {
    type Err = String;

    fn from_str(condition: &str) -> Result<Self, String> {
        let expected = "expected COLUMN=VALUE,… or COLUMN with !=, <, <=, > or >= and a value";
        let place = condition.find(['!', '<', '>', '=']).ok_or(expected)?;
        let (column, rest) = condition.split_at(place);
        let sign = SIGNS.iter().find_map(|(sign, test)| Some((rest.strip_prefix(sign)?, *test)));
        let (values, test) = sign.ok_or(expected)?;
        let values: Vec<_> = values.split(',').map(|value| value.trim().to_owned()).collect();
        let listed = matches!(test, Test::Equal | Test::Different);
        if column.trim().is_empty() || (!listed && (values.len() > 1 || values[0].parse::<f64>().is_err())) {
            return Err(expected.to_owned());
        }
        Ok(Self { column: column.trim().to_owned(), test, values })
    }
}

impl Condition {
    /// Whether a cell passes. Numbers are compared as numbers: 0.1 equals 1e-1.
    fn holds(&self, cell: &str) -> bool {
        let number: Option<f64> = cell.parse().ok();
        let same = |value: &String| match (number, value.parse::<f64>()) {
            (Some(a), Ok(b)) => (a + 0.0).total_cmp(&(b + 0.0)).is_eq(),
            _ => cell == value,
        };
        let compare = |test: fn(&f64, &f64) -> bool| {
            number.is_some_and(|number| self.values[0].parse().is_ok_and(|value| test(&number, &value)))
        };
        match self.test {
            Test::Equal => self.values.iter().any(same),
            Test::Different => !self.values.iter().any(same),
            Test::Below => compare(f64::lt),
            Test::AtMost => compare(f64::le),
            Test::Above => compare(f64::gt),
            Test::AtLeast => compare(f64::ge),
        }
    }
}

/// Conditions with the columns of a table.
pub struct Filter<'a> {
    conditions: Vec<(Column, &'a Condition)>,
}

impl<'a> Filter<'a> {
    /// Finds the columns.
    pub fn new(conditions: &'a [Condition], table: &Table) -> Result<Self> {
        let find = |condition: &'a Condition| {
            let column = table.optional_column(&condition.column).ok_or_else(|| {
                let known: Vec<_> = table.columns().map(|(_, name)| name).collect();
                let reason = format!("no column {}; the columns are {}", condition.column, known.join(", "));
                Error::rejected("--where", reason)
            });
            Ok((column?, condition))
        };
        Ok(Self { conditions: conditions.iter().map(find).collect::<Result<_>>()? })
    }

    /// Whether the current row passes all conditions.
    pub fn passes(&self, table: &Table) -> bool {
        self.conditions
            .iter()
            .all(|(column, condition)| condition.holds(&String::from_utf8_lossy(table.text(*column))))
    }
}

#[cfg(test)]
mod tests {
    use super::Condition;

    #[test]
    fn numbers_are_compared_as_numbers() {
        let holds = |condition: &str, cell: &str| condition.parse::<Condition>().unwrap().holds(cell);
        assert!(holds("decay=0.1", "1e-1") && holds("decay = 0.1, 0.3", "0.3") && !holds("decay=0.1", "0.3"));
        assert!(
            holds("init=xavier", "xavier")
                && holds("init!=xavier,zero", "randn")
                && !holds("init!=zero", "zero")
        );
        assert!(
            holds("decay=", "") && holds("seed<3", "2") && !holds("seed<3", "3") && holds("seed<=3", "3")
        );
        assert!(holds("seed>1", "2") && holds("seed>=2", "2") && !holds("seed>1", "x"));
        for bad in ["decay", "=1", "seed<a", "seed<1,2", "seed!1"] {
            assert!(bad.parse::<Condition>().is_err(), "{bad}");
        }
    }
}
