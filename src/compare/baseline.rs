//! Paired differences of a sweep against a baseline. A run is paired with the run whose parameters are the same, except that
//! the baseline's parameters have the baseline's values.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::io::table::{Column, Table};
use crate::paired::{PairedDifference, holm};

/// Metrics that are compared unless others are named, where they have values.
const METRICS: [&str; 8] = [
    "loss_mean",
    "loss_before_mean",
    "loss_after_mean",
    "retained_ratio",
    "recall_ratio",
    "recall_accuracy",
    "recall_updated_accuracy",
    "surprise_mean",
];

/// A baseline: values of parameters, such as `decay=0`.
#[derive(Clone, Debug, PartialEq)]
pub struct Baseline(Vec<(String, String)>);

impl std::str::FromStr for Baseline {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pair = |part: &str| {
            let (name, value) = part.split_once('=')?;
            (!name.is_empty()).then(|| (name.trim().to_owned(), value.trim().to_owned()))
        };
        let pairs: Option<Vec<_>> = text.split(',').map(pair).collect();
        pairs.map(Self).ok_or_else(|| "expected PARAMETER=VALUE, or several separated by commas".to_owned())
    }
}

/// One metric of one setting against its baseline.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BaselineRow {
    /// Parameters that vary, without those averaged over, with their values.
    pub parameters: BTreeMap<String, String>,
    /// Column of results.csv.
    pub metric: String,
    /// The difference to the baseline: a is the baseline.
    #[serde(flatten)]
    pub difference: PairedDifference,
    /// p-value adjusted for the number of settings that are compared by this metric.
    pub p_holm: Option<f64>,
}

/// All differences of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BaselineReport {
    /// Rows by setting, then metric.
    pub rows: Vec<BaselineRow>,
    /// Number of successful runs without a successful run of the baseline.
    pub unpaired: usize,
    /// Number of runs that failed or diverged, which are not compared.
    pub lost: usize,
    /// Number of pairs of values of which one is missing or not finite, over all metrics.
    pub not_finite: usize,
}

/// Parameter in which pairs may differ even if no run has it.
const SEED: &str = "seed";

/// Runs of one setting, each paired with its run of the baseline: (baseline, run) by metric.
struct Group {
    parameters: Values,
    pairs: Vec<Vec<(f64, f64)>>,
}

/// A value as it is compared: numbers by their value, so that 0 is 0.0 and −0.
fn canonical(text: &str) -> String {
    text.parse::<f64>().map_or_else(|_| text.to_owned(), |number| format!("{:?}", number + 0.0))
}

/// Values of parameters by name.
type Values = BTreeMap<String, String>;

fn key(values: &Values) -> Vec<String> {
    values.values().map(|value| canonical(value)).collect()
}

/// Successful runs of a results.csv, each once.
struct Runs {
    parameters: Vec<String>,
    metrics: Vec<String>,
    /// Parameters and metrics of each run.
    rows: Vec<(Values, Vec<Option<f64>>)>,
    lost: usize,
}

impl Runs {
    fn read(results_csv: &Path, metrics: &[String]) -> Result<Self> {
        let mut table = Table::open(results_csv)?;
        let status = table.column("status")?;
        let all: Vec<(Column, String)> =
            table.columns().map(|(column, name)| (column, name.to_owned())).collect();
        let split = all.iter().position(|(_, name)| name == "status").unwrap_or_default();
        let parameters: Vec<_> = all[..split].iter().filter(|(_, name)| name != "run").cloned().collect();
        let chosen: Vec<(Column, String)> = if metrics.is_empty() {
            all[split..].iter().filter(|(_, name)| METRICS.contains(&&**name)).cloned().collect()
        } else {
            let find = |name: &String| Ok((table.column(name)?, name.clone()));
            metrics.iter().map(find).collect::<Result<_>>()?
        };
        let (mut rows, mut lost, mut seen) = (Vec::new(), 0, HashSet::new());
        while table.advance()? {
            let text = |column: Column| String::from_utf8_lossy(table.text(column)).into_owned();
            let values: Values =
                parameters.iter().map(|(column, name)| (name.clone(), text(*column))).collect();
            // The first of several runs of the same parameters counts, as in figures.
            if !seen.insert(key(&values)) {
                continue;
            }
            if table.text(status) != b"ok" {
                lost += 1;
                continue;
            }
            let numbers: Vec<Option<f64>> =
                chosen.iter().map(|(column, _)| table.number(*column)).collect::<Result<_>>()?;
            rows.push((values, numbers));
        }
        let names = |columns: Vec<(Column, String)>| columns.into_iter().map(|(_, name)| name).collect();
        Ok(Self { parameters: names(parameters), metrics: names(chosen), rows, lost })
    }

    /// Rejects a name that is no parameter.
    fn check(&self, flag: &str, name: &str) -> Result<()> {
        if self.parameters.iter().any(|known| known == name) {
            return Ok(());
        }
        let reason = format!("no parameter {name}; the parameters are {}", self.parameters.join(", "));
        Err(Error::rejected(flag, reason))
    }
}

/// Compares the runs of a results.csv with those of the baseline. Pairs differ in the parameters `over`, such as the seed.
/// `metrics` names the columns to compare; if it is empty, the usual ones are.
pub fn baseline(
    results_csv: &Path,
    baseline: &Baseline,
    over: &[String],
    metrics: &[String],
) -> Result<BaselineReport> {
    let all = Runs::read(results_csv, metrics)?;
    baseline.0.iter().try_for_each(|(name, _)| all.check("--baseline", name))?;
    over.iter().filter(|name| *name != SEED).try_for_each(|name| all.check("--over", name))?;
    let Runs { parameters, metrics, rows: runs, lost } = &all;
    let is_baseline =
        |values: &Values| baseline.0.iter().all(|(name, value)| canonical(&values[name]) == canonical(value));
    let of_baseline = runs.iter().enumerate().filter(|(_, (values, _))| is_baseline(values));
    let known: HashMap<Vec<String>, usize> =
        of_baseline.map(|(place, (values, _))| (key(values), place)).collect();
    if known.is_empty() {
        let text: Vec<_> = baseline.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let reason = format!(
            "no successful run has {}; the parameters are {}",
            text.join(", "),
            parameters.join(", ")
        );
        return Err(Error::rejected("--baseline", reason));
    }
    let varies = |name: &String| {
        runs.windows(2).any(|pair| canonical(&pair[0].0[name]) != canonical(&pair[1].0[name]))
    };
    let shown: Vec<String> =
        parameters.iter().filter(|name| !over.contains(name) && varies(name)).cloned().collect();

    let mut groups: Vec<Group> = Vec::new();
    let (mut places, mut unpaired, mut not_finite) = (HashMap::new(), 0, 0);
    for (values, numbers) in runs.iter().filter(|(values, _)| !is_baseline(values)) {
        let mut of_baseline = values.clone();
        for (name, value) in &baseline.0 {
            of_baseline.insert(name.clone(), value.clone());
        }
        let Some(&partner) = known.get(&key(&of_baseline)) else {
            unpaired += 1;
            continue;
        };
        let mut group = values.clone();
        group.retain(|name, _| !over.contains(name));
        let group_key = key(&group);
        let place = *places.entry(group_key.clone()).or_insert(groups.len());
        if place == groups.len() {
            group.retain(|name, _| shown.contains(name));
            groups.push(Group { parameters: group, pairs: vec![Vec::new(); metrics.len()] });
        }
        for ((pairs, b), a) in groups[place].pairs.iter_mut().zip(numbers).zip(&runs[partner].1) {
            let pair = a.filter(|a| a.is_finite()).zip(b.filter(|b| b.is_finite()));
            // A metric that applies to neither run is no loss.
            not_finite += usize::from(pair.is_none() && (a.is_some() || b.is_some()));
            pairs.extend(pair);
        }
    }
    if groups.is_empty() && unpaired == 0 && *lost == 0 {
        return Err(Error::rejected(
            "--baseline",
            "all runs have these values; there is no other setting to compare",
        ));
    }
    let mut rows = Vec::new();
    for Group { parameters, pairs } in &groups {
        for (metric, pairs) in metrics.iter().zip(pairs) {
            let Some(difference) = PairedDifference::from_pairs(pairs) else { continue };
            let (parameters, metric) = (parameters.clone(), metric.clone());
            rows.push(BaselineRow { parameters, metric, difference, p_holm: None });
        }
    }
    for metric in metrics {
        let of_metric: Vec<usize> = (0..rows.len()).filter(|&i| rows[i].metric == *metric).collect();
        let p: Vec<_> = of_metric.iter().map(|&i| rows[i].difference.p).collect();
        for (&i, p) in of_metric.iter().zip(holm(&p)) {
            rows[i].p_holm = p;
        }
    }
    Ok(BaselineReport { rows, unpaired, lost: *lost, not_finite })
}

impl BaselineReport {
    /// Formats the rows as CSV.
    pub fn csv(&self) -> Vec<u8> {
        let mut csv = csv::Writer::from_writer(Vec::new());
        let parameters: Vec<String> =
            self.rows.first().map(|row| row.parameters.keys().cloned().collect()).unwrap_or_default();
        let columns = [
            "metric",
            "n",
            "mean_baseline",
            "mean",
            "difference",
            "t_low",
            "t_high",
            "bootstrap_low",
            "bootstrap_high",
            "p",
            "p_holm",
        ];
        let header = parameters.iter().cloned().chain(columns.map(str::to_owned));
        csv.write_record(header).expect("writing to memory cannot fail");
        let text = |x: Option<f64>| x.map_or(String::new(), |x| x.to_string());
        for BaselineRow { parameters, metric, difference: of, p_holm } in &self.rows {
            let ends = [of.ci95_t, of.ci95_bootstrap].map(|ci| ci.map(|[low, high]| (low, high)).unzip());
            let numbers = [of.mean_a, of.mean_b, of.difference].map(Some).into_iter();
            let numbers = numbers.chain(ends.into_iter().flat_map(|(low, high)| [low, high]));
            let row = parameters.values().cloned().chain([metric.clone(), of.n.to_string()]);
            let row = row.chain(numbers.chain([of.p, *p_holm]).map(text));
            csv.write_record(row).expect("writing to memory cannot fail");
        }
        csv.into_inner().expect("writing to memory cannot fail")
    }
}
