//! Tables of a sweep as bytes: results.csv, retention.csv, summary.csv and joblog.tsv.

use std::collections::{BTreeSet, HashMap};

use super::plan::PlanFile;
use super::record::Record;
use super::results::{Results, Status};
use super::row::Parameters;
use super::values::number;
use crate::plot::better;
use crate::statistics::{Censored, Estimate};

/// The result that runs may never have.
const CENSORED: &str = "first_unstable_chunk";
/// Parameter over whose values summary.csv takes means.
const SEED: &str = "seed";

/// Returns the names of the parameters: first those that vary, in the plan's order, then the others.
pub fn parameter_columns(plan: &PlanFile, rows: &[Record]) -> Vec<String> {
    let planned = plan.runs.iter().map(|run| &run.parameters);
    let all: Vec<&Parameters> = planned.chain(rows.iter().map(|row| &row.parameters)).collect();
    let others: BTreeSet<&String> = all.iter().flat_map(|row| row.keys()).collect();
    let others = others.into_iter().filter(|key| !plan.keys.contains(key));
    let keys = plan.keys.iter().chain(others);
    let varies = |key: &str| all.windows(2).any(|pair| pair[0].get(key) != pair[1].get(key));
    let (varying, fixed): (Vec<_>, Vec<_>) = keys.cloned().partition(|key| varies(key));
    varying.into_iter().chain(fixed).collect()
}

fn cells<'a>(columns: &'a [String], row: &'a Record) -> impl Iterator<Item = &'a str> {
    columns.iter().map(|key| row.parameters.get(key).map_or("", |text| text))
}

fn write(rows: impl Iterator<Item = Vec<String>>) -> Vec<u8> {
    let mut csv = csv::Writer::from_writer(Vec::new());
    rows.for_each(|row| {
        csv.write_record(row).expect("writing to memory cannot fail, and rows have equal lengths");
    });
    csv.into_inner().expect("writing to memory cannot fail")
}

/// Formats results.csv, with one row per run.
pub fn results(columns: &[String], rows: &[Record]) -> Vec<u8> {
    let header = std::iter::once("run").chain(columns.iter().map(String::as_str)).chain(["status"]);
    let words = ["diverged", "error", "version", "commit"].map(str::to_owned);
    let names = Results::NAMES.iter().map(|&name| name.to_owned());
    let header = header.map(str::to_owned).chain(with_words(names, words));
    let row = |row: &Record| {
        let start = std::iter::once(&*row.run).chain(cells(columns, row)).chain([row.status.name()]);
        let diverged = match row.status {
            Status::Ok | Status::Stopped => "false",
            Status::Diverged => "true",
            Status::Failed => "",
        };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (version, commit) = (text(&row.build.version), text(&row.build.commit));
        let words = [diverged.to_owned(), text(&row.error), version, commit];
        start.map(str::to_owned).chain(with_words(row.results.cells(), words)).collect()
    };
    write(std::iter::once(header.collect()).chain(rows.iter().map(row)))
}

/// Formats retention.csv, with one row per run and lag; `None` if no run has lags.
pub fn retention(columns: &[String], rows: &[Record]) -> Option<Vec<u8>> {
    rows.iter().find(|row| !row.lags.lag.is_empty())?;
    let header = std::iter::once("run").chain(columns.iter().map(String::as_str));
    let header = header.chain(["lag", "status", "loss_ratio"]).map(str::to_owned).collect();
    let of_run = |row: &Record| {
        let start: Vec<_> =
            std::iter::once(&*row.run).chain(cells(columns, row)).map(str::to_owned).collect();
        let status = row.status.name();
        let lags = row.lags.lag.iter().zip(&row.lags.loss_ratio);
        let end =
            lags.map(|(lag, ratio)| [lag.to_string(), status.to_owned(), ratio.map_or("NaN".into(), number)]);
        end.map(|end| start.iter().cloned().chain(end).collect()).collect::<Vec<_>>()
    };
    Some(write(std::iter::once(header).chain(rows.iter().flat_map(of_run))))
}

/// Inserts the columns `diverged`, `error`, `version` and `commit` into their places between the numbers.
fn with_words(numbers: impl Iterator<Item = String>, [diverged, others @ ..]: [String; 4]) -> Vec<String> {
    let mut cells = Vec::new();
    let (mut diverged, mut others) = (Some(diverged), Some(others));
    for (name, number) in Results::NAMES.iter().zip(numbers) {
        cells.extend(others.take_if(|_| *name == "engine_bytes").into_iter().flatten());
        cells.push(number);
        cells.extend(diverged.take_if(|_| *name == "first_unstable_chunk"));
    }
    cells
}

/// Groups runs by their parameters except the seed, in the order of the first run of each.
fn groups<'a>(
    columns: &[String],
    rows: impl Iterator<Item = &'a Record>,
) -> Vec<(Vec<String>, Vec<&'a Record>)> {
    let mut groups: Vec<(Vec<String>, Vec<&Record>)> = Vec::new();
    let mut places = HashMap::new();
    for row in rows {
        let key: Vec<String> = cells(columns, row).map(str::to_owned).collect();
        let place = *places.entry(key.clone()).or_insert(groups.len());
        if place == groups.len() {
            groups.push((key, Vec::new()));
        }
        groups[place].1.push(row);
    }
    groups
}

/// Formats summary.csv, with one row per combination of parameters except the seed, over the runs that ended normally.
pub fn summary(columns: &[String], rows: &[Record]) -> Vec<u8> {
    let columns: Vec<String> = columns.iter().filter(|key| *key != SEED).cloned().collect();
    let groups = groups(&columns, rows.iter());
    let of_name = |name: &&str| ["mean", "sd", "ci95_low", "ci95_high"].map(|what| format!("{name}.{what}"));
    let header = columns.iter().cloned().chain(["n".to_owned()]);
    let header = header.chain(Results::NAMES.iter().flat_map(of_name));
    let header = header.chain(["n", "median"].map(|what| format!("{CENSORED}.{what}"))).collect();
    let row = |(key, group): &(Vec<String>, Vec<&Record>)| {
        let well: Vec<_> = group.iter().filter(|row| row.status == Status::Ok).collect();
        let mut cells = key.clone();
        cells.push(well.len().to_string());
        for place in 0..Results::NAMES.len() {
            let values: Option<Vec<f64>> = well.iter().map(|row| row.results.values().nth(place)?).collect();
            cells.extend(spread(&values.unwrap_or_default()).map(|x| x.map_or(String::new(), number)));
        }
        let times: Vec<_> = well.iter().map(|row| row.results.first_unstable_chunk).collect();
        // Without a probe nobody knows.
        let probed = well.iter().any(|row| row.results.loss_before_mean.is_some());
        let censored = Censored::from_times(&times).filter(|_| probed);
        cells.push(censored.map_or(String::new(), |of| of.events.to_string()));
        cells.push(censored.and_then(|of| of.median).map_or(String::new(), number));
        cells
    };
    write(std::iter::once(header).chain(groups.iter().map(row)))
}

/// Means of some results over the runs that differ in nothing but the seed.
#[derive(Debug)]
pub struct Means {
    /// Names of the parameters that differ between the rows.
    pub keys: Vec<String>,
    /// Names of the results.
    pub metrics: Vec<String>,
    /// Rows, in the order of the runs.
    pub rows: Vec<TableRow>,
    /// Row with the best mean of the first result, if one of its sides is better.
    pub best: Option<usize>,
}

/// One row of [`Means`].
#[derive(Debug)]
pub struct TableRow {
    /// Values of the parameters that differ.
    pub parameters: Vec<String>,
    /// Number of runs that ended normally.
    pub n: usize,
    /// Number of the other runs.
    pub lost: usize,
    /// Estimate of each result; `None` unless all runs have it.
    pub estimates: Vec<Option<Estimate>>,
}

/// Results that are shown unless others are chosen, as far as runs have them.
const SHOWN: [&str; 5] = ["validation", "train_loss", "loss_before_mean", "loss_mean", "retained_ratio"];

impl Means {
    /// Computes the means of the results `metrics`, or of those that are shown by default. `a/b` is a ratio of two.
    pub fn new(rows: &[&Record], metrics: &[String]) -> Self {
        let names: BTreeSet<&String> = rows.iter().flat_map(|row| row.parameters.keys()).collect();
        let differs = |key: &str| {
            rows.windows(2).any(|pair| pair[0].parameters.get(key) != pair[1].parameters.get(key))
        };
        let keys: Vec<String> =
            names.into_iter().filter(|key| *key != SEED && differs(key)).cloned().collect();
        let shown = || SHOWN.iter().filter(|name| rows.iter().any(|row| row.results.get(name).is_some()));
        let metrics = if metrics.is_empty() {
            shown().map(|&name| name.to_owned()).collect()
        } else {
            metrics.to_vec()
        };
        let of_group = |(parameters, group): (Vec<String>, Vec<&Record>)| {
            let well: Vec<_> = group.iter().filter(|row| row.status == Status::Ok).collect();
            let estimate = |metric: &String| {
                let values: Option<Vec<f64>> = well.iter().map(|row| row.results.get(metric)).collect();
                Estimate::from_values(&values?)
            };
            let estimates = metrics.iter().map(estimate).collect();
            TableRow { parameters, n: well.len(), lost: group.len() - well.len(), estimates }
        };
        let rows: Vec<_> = groups(&keys, rows.iter().copied()).into_iter().map(of_group).collect();
        let direction = metrics.first().and_then(|metric| better(metric));
        let rank = |row: &TableRow| {
            let mean = row.estimates.first().copied().flatten()?.center;
            direction.filter(|_| mean.is_finite()).map(|direction| direction.sign() * mean)
        };
        let ranks = rows.iter().enumerate().filter_map(|(place, row)| Some((rank(row)?, place)));
        let best = ranks.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, place)| place);
        Self { keys, metrics, best: best.filter(|_| rows.len() > 1), rows }
    }
}

/// Returns the mean, the standard deviation, and the ends of the 95 % interval of the mean. A single value has only a mean.
fn spread(values: &[f64]) -> [Option<f64>; 4] {
    let Some(estimate) = Estimate::from_values(values) else { return [None; 4] };
    let (low, high) = estimate.interval.unzip();
    [Some(estimate.center), estimate.sd, low, high]
}

/// Formats joblog.tsv like the --joblog of GNU parallel. Seq is the run's place in the plan.
pub fn joblog(plan: &PlanFile, rows: &[Record]) -> Vec<u8> {
    let mut text = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n".to_owned();
    let places: HashMap<&str, usize> =
        plan.runs.iter().enumerate().map(|(place, run)| (&*run.run, place)).collect();
    let mut lines: Vec<(f64, String)> = Vec::new();
    for (place, row) in rows.iter().enumerate() {
        // Runs of other plans come after the runs of this one.
        let seq = places.get(&*row.run).copied().unwrap_or(plan.runs.len() + place) + 1;
        let exit = match row.status {
            Status::Ok | Status::Stopped => 0,
            Status::Diverged => 1,
            Status::Failed => 2,
        };
        let (Record { host, started, took, command, .. }, tab) = (row, '\t');
        // The format cannot escape the characters that separate its fields and lines.
        let command = command.replace(['\t', '\n', '\r'], " ");
        let line = format!(
            "{seq}{tab}{host}{tab}{started:.3}{tab}{took:.3}{tab}0{tab}0{tab}{exit}{tab}0{tab}{command}\n"
        );
        lines.push((*started, line));
    }
    lines.sort_by(|a, b| a.0.total_cmp(&b.0));
    text.extend(lines.into_iter().map(|(_, line)| line));
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn the_interval_is_students() {
        // R: t.test(c(1, 2, 4))
        let [mean, sd, low, high] = spread(&[1.0, 2.0, 4.0]).map(Option::unwrap);
        for (got, expected) in
            [(mean, 2.333_333_3), (sd, 1.527_525_2), (low, -1.461_249_5), (high, 6.127_916_2)]
        {
            assert!((got - expected).abs() < 1e-6, "{got} for {expected}");
        }
        assert_eq!(spread(&[3.0]), [Some(3.0), None, None, None]);
        assert_eq!(spread(&[]), [None; 4]);
    }
}
