//! results.csv → parameters, metrics and cells. A cell holds the runs that differ only in the parameters averaged over.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use crate::error::{Error, Result};
use crate::io::table::{Column, Table};
use crate::statistics::Estimate;

/// Most cells held in memory, about forty bytes each: a sweep's retention.csv of 25 columns and 640,000 rows.
const MAX_CELLS: usize = 1 << 24;

/// The content of a results.csv, without duplicate runs.
pub struct Results {
    pub parameters: Vec<Parameter>,
    /// Names of the result columns that hold at least one number.
    pub metrics: Vec<String>,
    rows: Vec<RunRow>,
}

/// A parameter and its values: numbers ascending, words in the order of the file.
#[derive(Clone, Debug)]
pub struct Parameter {
    pub name: String,
    pub values: Vec<Value>,
}

/// A value of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    pub text: String,
    /// The value as a finite number, if it is one.
    pub number: Option<f64>,
}

struct RunRow {
    /// Index into each parameter's values.
    values: Vec<usize>,
    /// Result of each metric; `None` if it does not apply.
    results: Vec<Option<f64>>,
    ok: bool,
}

/// A column, or one column divided by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    Column(usize),
    Quotient(usize, usize),
}

/// Runs that share their values of some parameters.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    /// Finite values of successful runs.
    finite: Vec<f64>,
    /// Number of runs that failed or diverged, or whose value is not finite.
    pub lost: usize,
    /// Number of successful runs to which the metric does not apply.
    pub absent: usize,
}

impl Cell {
    /// Returns the mean and its interval, or `None` if no run has a value.
    pub fn estimate(&self) -> Option<Estimate> {
        // Mean and interval may overflow although the values do not.
        let mut estimate =
            Estimate::from_values(&self.finite).filter(|estimate| estimate.mean.is_finite())?;
        if estimate.interval().is_some_and(|(low, high)| !low.is_finite() || !high.is_finite()) {
            estimate.half = None;
        }
        Some(estimate)
    }
}

impl Parameter {
    /// Whether all values are finite numbers.
    pub fn is_numeric(&self) -> bool {
        self.values.iter().all(|value| value.number.is_some())
    }

    pub fn varies(&self) -> bool {
        self.values.len() > 1
    }

    fn index_of(&mut self, text: &str, places: &mut HashMap<Same, usize>) -> usize {
        let number = text.parse().ok().filter(|number: &f64| number.is_finite());
        let same =
            number.map_or_else(|| Same::Text(text.to_owned()), |number| Same::Number(number.to_bits()));
        *places.entry(same).or_insert_with(|| {
            self.values.push(Value { text: text.to_owned(), number });
            self.values.len() - 1
        })
    }

    /// Sorts the values if all are numbers, and returns each one's new place.
    fn sort(&mut self) -> Vec<usize> {
        let mut order: Vec<_> = (0..self.values.len()).collect();
        if self.is_numeric() {
            let number = |&i: &usize| self.values[i].number.unwrap_or_default();
            order.sort_by(|a, b| number(a).total_cmp(&number(b)));
        }
        let mut places = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, &i)| places[i] = place);
        self.values = order.into_iter().map(|i| self.values[i].clone()).collect();
        places
    }
}

/// The key by which values are equal.
#[derive(PartialEq, Eq, Hash)]
enum Same {
    /// Its bits.
    Number(u64),
    Text(String),
}

impl Results {
    /// Reads a results.csv. The first of several runs with the same parameters counts, because runs of the present plan precede
    /// older ones.
    pub fn read(csv: &Path) -> Result<Self> {
        let mut table = Table::open(csv)?;
        let status = table.column("status")?;
        let mut columns: Vec<(Column, String)> =
            table.columns().skip(1).map(|(column, name)| (column, name.to_owned())).collect();
        let Some(split) = columns.iter().position(|(_, name)| name == "status") else {
            return Err(Error::rejected(
                csv.display().to_string(),
                "no parameter column precedes \"status\"",
            ));
        };
        let metrics = columns.split_off(split + 1);
        columns.pop();
        let mut parameters: Vec<_> =
            columns.iter().map(|(_, name)| Parameter { name: name.clone(), values: Vec::new() }).collect();

        let mut rows = Vec::<RunRow>::new();
        let mut places: Vec<_> = parameters.iter().map(|_| HashMap::new()).collect();
        let mut seen = HashSet::new();
        while table.advance()? {
            table.check_kept((rows.len() + 1) * (columns.len() + metrics.len()), MAX_CELLS)?;
            let text = |column| String::from_utf8_lossy(table.text(column));
            let values: Vec<_> = parameters
                .iter_mut()
                .zip(&mut places)
                .zip(&columns)
                .map(|((parameter, places), (column, _))| parameter.index_of(&text(*column), places))
                .collect();
            if seen.insert(values.clone()) {
                let results = metrics.iter().map(|(column, _)| text(*column).parse().ok()).collect();
                rows.push(RunRow { values, results, ok: table.text(status) == b"ok" });
            }
        }
        let places: Vec<_> = parameters.iter_mut().map(Parameter::sort).collect();
        for row in &mut rows {
            row.values.iter_mut().zip(&places).for_each(|(value, places)| *value = places[*value]);
        }
        // Columns without numbers cannot be drawn.
        let numeric: Vec<_> =
            (0..metrics.len()).filter(|&i| rows.iter().any(|row| row.results[i].is_some())).collect();
        for row in &mut rows {
            row.results = numeric.iter().map(|&i| row.results[i]).collect();
        }
        let metrics = numeric.into_iter().map(|i| metrics[i].1.clone()).collect();
        Ok(Self { parameters, metrics, rows })
    }

    /// Finds a metric by its column's name, or by two names with a slash between them.
    pub fn metric(&self, name: &str) -> Option<Metric> {
        let column = |name: &str| self.metrics.iter().position(|metric| metric == name.trim());
        column(name).map(Metric::Column).or_else(|| {
            let (over, under) = name.split_once('/')?;
            Some(Metric::Quotient(column(over)?, column(under)?))
        })
    }

    /// Whether a parameter is redundant beside `other`: each value of one occurs with a single value of the other.
    pub fn goes_with(&self, parameter: usize, other: usize) -> bool {
        let [values, others] = [parameter, other].map(|i| self.parameters[i].values.len());
        let (mut there, mut back) = (vec![None; values], vec![None; others]);
        values == others
            && self.rows.iter().all(|row| {
                let (a, b) = (row.values[parameter], row.values[other]);
                *there[a].get_or_insert(b) == b && *back[b].get_or_insert(a) == a
            })
    }

    /// Returns the cells of a metric, by their values of the parameters `by`.
    pub fn cells(&self, metric: Metric, by: &[usize]) -> BTreeMap<Vec<usize>, Cell> {
        let mut cells = BTreeMap::<_, Cell>::new();
        for row in &self.rows {
            let key: Vec<_> = by.iter().map(|&parameter| row.values[parameter]).collect();
            let cell = cells.entry(key).or_default();
            let value = match metric {
                Metric::Column(i) => row.results[i],
                Metric::Quotient(over, under) => {
                    row.results[over].zip(row.results[under]).map(|(a, b)| a / b)
                }
            };
            match value {
                _ if !row.ok => cell.lost += 1,
                Some(value) if value.is_finite() => cell.finite.push(value),
                Some(_) => cell.lost += 1,
                None => cell.absent += 1,
            }
        }
        cells
    }

    /// Returns the number of runs.
    pub fn len(&self) -> usize {
        self.rows.len()
    }
}
