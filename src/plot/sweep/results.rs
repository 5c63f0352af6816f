//! results.csv → parameters, metrics and cells. A cell holds the runs that differ only in the parameters averaged over.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use crate::error::{Error, Result};
use crate::io::table::Column;
use crate::plot::Check;
use crate::plot::filter::{self, Rows, check_any};
use crate::plot::source::CsvSource;
use crate::plot::sweep::RATIO;

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
    /// Number of the file with the row.
    source: usize,
    /// Name of the run's directory.
    id: String,
}

/// A metric, by the index of its columns.
pub type Metric = filter::Metric<usize>;

/// Runs that share their values of some parameters.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    /// Finite values of successful runs.
    pub finite: Vec<f64>,
    /// Number of runs that failed or diverged, or whose value is not finite.
    pub lost: usize,
    /// Number of successful runs to which the metric does not apply.
    pub absent: usize,
}

/// The setting to which others are compared: values of some parameters, by index.
pub type Baseline = Vec<(usize, usize)>;

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
        let same = number
            .map_or_else(|| Same::Text(text.to_owned()), |number| Same::Number((number + 0.0).to_bits()));
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
pub enum Same {
    /// Its bits, those of 0 for −0.
    Number(u64),
    Text(String),
}

/// Name of the parameter that tells sweeps apart.
pub const SWEEP: &str = "sweep";

impl Results {
    /// Reads results.csv files, of which several have the parameter `sweep` besides their own. Only rows that pass the
    /// filter are kept. The first of several runs with the same parameters counts, because runs of the present plan precede
    /// older ones.
    pub fn read(files: &[CsvSource], conditions: &[String], check: &mut Check) -> Result<Self> {
        let mut all = Self { parameters: Vec::new(), metrics: Vec::new(), rows: Vec::new() };
        let mut places = Vec::new();
        for (source, file) in files.iter().enumerate() {
            let name = (files.len() > 1).then_some(&file.name[..]);
            let rows = Rows::open(&file.csv, conditions, check)?;
            all.add((source, &file.csv), name, rows, &mut places)?;
        }
        check_any(conditions, !all.rows.is_empty())?;
        // Columns of one file are empty in the rows of another.
        for (i, parameter) in all.parameters.iter_mut().enumerate() {
            for row in all.rows.iter_mut().filter(|row| row.values.len() <= i) {
                row.values.push(parameter.index_of("", &mut places[i]));
            }
        }
        let mut seen = HashSet::new();
        all.rows.retain(|row| seen.insert(row.values.clone()));
        let places: Vec<_> = all.parameters.iter_mut().map(Parameter::sort).collect();
        for row in &mut all.rows {
            row.values.iter_mut().zip(&places).for_each(|(value, places)| *value = places[*value]);
            row.results.resize(all.metrics.len(), None);
        }
        // Columns without numbers cannot be drawn.
        let numeric: Vec<_> =
            (0..all.metrics.len()).filter(|&i| all.rows.iter().any(|row| row.results[i].is_some())).collect();
        for row in &mut all.rows {
            row.results = numeric.iter().map(|&i| row.results[i]).collect();
        }
        all.metrics = numeric.into_iter().map(|i| all.metrics[i].clone()).collect();
        Ok(all)
    }

    /// Adds the rows of a file.
    fn add(
        &mut self,
        (source, csv): (usize, &Path),
        sweep: Option<&str>,
        mut rows: Rows,
        places: &mut Vec<HashMap<Same, usize>>,
    ) -> Result<()> {
        let table = &rows.table;
        let status = table.column("status")?;
        let mut columns: Vec<(Column, String)> =
            table.columns().skip(1).map(|(column, name)| (column, name.to_owned())).collect();
        let run = table.columns().next().map(|(column, _)| column);
        let Some(split) = columns.iter().position(|(_, name)| name == "status") else {
            return Err(Error::rejected(
                csv.display().to_string(),
                "no parameter column precedes \"status\"",
            ));
        };
        let metrics = columns.split_off(split + 1);
        columns.pop();
        let names =
            sweep.map(|_| SWEEP.to_owned()).into_iter().chain(columns.iter().map(|(_, name)| name.clone()));
        let of_parameters: Vec<_> = names.map(|name| self.parameter_index(name, places)).collect();
        let of_metrics: Vec<_> = metrics.iter().map(|(_, name)| self.metric_index(name)).collect();
        while rows.advance()? {
            let table = &rows.table;
            table.check_kept((self.rows.len() + 1) * (columns.len() + metrics.len()), MAX_CELLS)?;
            let text = |column| String::from_utf8_lossy(table.text(column)).into_owned();
            let texts =
                sweep.map(str::to_owned).into_iter().chain(columns.iter().map(|(column, _)| text(*column)));
            let mut known = vec![None; self.parameters.len()];
            for (value, &i) in texts.zip(&of_parameters) {
                known[i] = Some(self.parameters[i].index_of(&value, &mut places[i]));
            }
            let values = known.iter().enumerate();
            let values: Vec<_> = values
                .map(|(i, known)| known.unwrap_or_else(|| self.parameters[i].index_of("", &mut places[i])))
                .collect();
            let mut results = vec![None; self.metrics.len()];
            for ((column, _), &i) in metrics.iter().zip(&of_metrics) {
                results[i] = text(*column).parse().ok();
            }
            let id = run.map_or_else(String::new, text);
            self.rows.push(RunRow { values, results, ok: table.text(status) == b"ok", source, id });
        }
        Ok(())
    }

    fn parameter_index(&mut self, name: String, places: &mut Vec<HashMap<Same, usize>>) -> usize {
        self.parameters.iter().position(|parameter| parameter.name == name).unwrap_or_else(|| {
            self.parameters.push(Parameter { name, values: Vec::new() });
            places.push(HashMap::new());
            self.parameters.len() - 1
        })
    }

    fn metric_index(&mut self, name: &str) -> usize {
        self.metrics.iter().position(|metric| metric == name).unwrap_or_else(|| {
            self.metrics.push(name.to_owned());
            self.metrics.len() - 1
        })
    }

    /// Finds a metric by its name: see [`filter::Metric::find`].
    pub fn metric(&self, name: &str) -> Option<Metric> {
        Metric::find(name, RATIO, |name| self.metrics.iter().position(|metric| metric == name))
    }

    /// Returns the index of the parameter that a flag names.
    pub fn find(&self, flag: &str, name: &str) -> Result<usize> {
        self.parameter(name).ok_or_else(|| {
            let names: Vec<_> = self.parameters.iter().map(|parameter| &parameter.name[..]).collect();
            Error::rejected(flag, format!("no parameter {name}; the parameters are {}", names.join(", ")))
        })
    }

    /// Finds a parameter by its name.
    pub fn parameter(&self, name: &str) -> Option<usize> {
        self.parameters.iter().position(|parameter| parameter.name == name)
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

    /// Returns the cells of a metric, by their values of the parameters `by`. With a baseline, values are differences to the
    /// run with the baseline's settings that agrees in all other parameters; runs of the baseline itself are skipped.
    pub fn cells(
        &self,
        metric: Metric,
        by: &[usize],
        baseline: Option<&Baseline>,
    ) -> BTreeMap<Vec<usize>, Cell> {
        let value = |row: &RunRow| match metric {
            Metric::Column(i) => row.results[i],
            Metric::Quotient(over, under) => row.results[over].zip(row.results[under]).map(|(a, b)| a / b),
        };
        let of_baseline = |row: &&RunRow| {
            baseline.is_some_and(|baseline| {
                baseline.iter().all(|&(parameter, value)| row.values[parameter] == value)
            })
        };
        let bases: HashMap<_, _> =
            self.rows.iter().filter(of_baseline).map(|row| (&row.values, row)).collect();
        let mut cells = BTreeMap::<_, Cell>::new();
        for row in self.rows.iter().filter(|row| !of_baseline(row)) {
            let key: Vec<_> = by.iter().map(|&parameter| row.values[parameter]).collect();
            let cell = cells.entry(key).or_default();
            let mut base = Some(0.0).filter(|_| baseline.is_none());
            if let Some(baseline) = baseline {
                let mut values = row.values.clone();
                for &(parameter, value) in baseline {
                    values[parameter] = value;
                }
                // Without its pair a value says nothing about the difference.
                base = bases.get(&values).filter(|base| base.ok).and_then(|base| value(base));
            }
            match value(row) {
                _ if !row.ok => cell.lost += 1,
                Some(value) => match base.map(|base| value - base) {
                    Some(value) if value.is_finite() => cell.finite.push(value),
                    _ => cell.lost += 1,
                },
                None => cell.absent += 1,
            }
        }
        cells
    }

    /// Returns the runs, as the number of their file and the name of their directory, by their values of these parameters.
    pub fn runs(&self, by: &[usize]) -> BTreeMap<Vec<usize>, Vec<(usize, &str)>> {
        let mut runs = BTreeMap::<_, Vec<_>>::new();
        for row in self.rows.iter().filter(|row| row.ok) {
            let key: Vec<_> = by.iter().map(|&parameter| row.values[parameter]).collect();
            runs.entry(key).or_default().push((row.source, &row.id[..]));
        }
        runs
    }

    /// Returns the number of runs.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns the number of runs that did not end normally.
    pub fn lost(&self) -> usize {
        self.rows.iter().filter(|row| !row.ok).count()
    }
}
