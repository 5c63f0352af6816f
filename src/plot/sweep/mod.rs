//! results.csv of a sweep → a chart per metric: centres over seeds with their intervals against one parameter. Each value of
//! a second parameter has a line; many values make a colour map instead. All other parameters have panels.

mod better;
mod control;
mod curves;
mod grid;
mod pareto;
pub(super) mod results;

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::escape::for_figure;
use crate::plot::axis::Axis;
use crate::plot::chart::Chart;
use crate::plot::names::{self, cut};
use crate::plot::source::{CsvSource, Kind};
use crate::plot::style::{FigureStyle, LogAxes};
use crate::plot::{Check, Request, font, theme};
use crate::statistics::{Censored, Center, Estimate, Interval, MIN_FOR_INTERVAL};
pub use better::{Direction, better};
use grid::Grid;
pub(super) use results::SWEEP;
use results::{Baseline, Cell, Metric, Parameter, Results, Value};

/// Most lines in one panel; more values make a colour map.
const LINES: usize = 7;
/// Most panels; more would be too small to read.
const PANELS: usize = 12;
/// Most letters of a value in axes and legends; below, of a column's name in titles and notes.
const MAX_LABEL: usize = 24;
const MAX_WORDS: usize = 60;

/// The quotient that shows how far storing helped (below 1) or made the memory worse.
pub(crate) const RATIO: &str = "loss_before_mean/loss_mean";
/// The result that runs may never have: the chunk from which the memory is unstable.
const CENSORED: &str = "first_unstable_chunk";

/// Returns the charts of results.csv files, one per metric. Several files have one chart together if a role was given to
/// `sweep`.
pub fn charts(
    files: &[CsvSource],
    request: &Request,
    check: &mut Check,
    notes: &mut Vec<String>,
) -> Result<Vec<Chart>> {
    let Some(first) = files.first() else { return Ok(Vec::new()) };
    let results = Results::read(files, &request.filter, check)?;
    if results.len() == 0 {
        let paths: Vec<_> = files.iter().map(|file| file.csv.display().to_string()).collect();
        notes.push(format!("no figures: {} has no rows", paths.join(", ")));
        return Ok(Vec::new());
    }
    // A result as x has no lines over it.
    let is_result = |x: &String| results.parameter(x).is_none() && results.metric(x).is_some();
    match first.kind {
        Kind::Curves => return Ok(vec![curves::chart(files, &results, request, check)?]),
        Kind::Ablation => grid::check_baseline(request)?,
        Kind::Pareto => return Ok(vec![pareto::chart(&results, request)?]),
        _ if request.x.as_ref().is_some_and(is_result) => return Ok(vec![pareto::chart(&results, request)?]),
        _ => {}
    }
    let lags = first.kind == Kind::Retention;
    let mut request = request.clone();
    if lags {
        // The y of the lags is known, and x is always the lag.
        (request.x, request.y) = (Some("lag".to_owned()), vec![LOSS_RATIO.to_owned()]);
    }
    if let (Kind::Ablation, None, Some((name, _))) = (first.kind, &request.x, request.baseline.first()) {
        baseline(&results, &request.baseline)?;
        request.x = Some(name.clone());
    }
    let Some(layout) = Layout::choose(&results, &request)? else {
        notes.push("no figures: no parameter but the seed varies".to_owned());
        return Ok(Vec::new());
    };
    let mut charts = Vec::new();
    for (name, metric) in metrics(&results, &request)? {
        check()?;
        let grid = Grid::new(&results, &layout, &name, metric, &request)?;
        if !grid.is_informative() && request.y.is_empty() {
            continue;
        }
        let file = if lags { "retention".to_owned() } else { file_name(&name) };
        notes.extend(grid.notes_for_user(&file));
        charts.push(grid.chart(&file, first.kind));
    }
    if charts.is_empty() {
        notes.push("no figures: no result is finite".to_owned());
    }
    if request.panels && charts.len() > 1 {
        charts = vec![joined(charts)];
    }
    Ok(charts)
}

/// Returns one chart with the panels of all.
fn joined(charts: Vec<Chart>) -> Chart {
    let name = charts.iter().map(|chart| &chart.name[..]).collect::<Vec<_>>().join("-");
    let mut charts = charts.into_iter();
    let mut all = charts.next().unwrap_or_else(|| Chart::new("", 1, theme::STACKED));
    all.height = all.height.min(theme::AMONG);
    for chart in charts {
        all.panels.extend(chart.panels);
        for key in chart.keys {
            if !all.has_name(&key.text) {
                all.keys.push(key);
            }
        }
        for note in chart.notes {
            if !all.notes.contains(&note) {
                all.notes.push(note);
            }
        }
        all.omitted.extend(chart.omitted);
    }
    all.columns = if all.panels.len() == 1 { 1 } else { all.columns.max(2) };
    Chart { name, ..all }
}

/// Name of the figure of [`RATIO`], and of the same ratio in a retention.csv.
pub(crate) const LOSS_RATIO: &str = "loss_ratio";
/// Word between the two columns of a quotient in the name of its figure; below, between the two results of a comparison.
const PER: &str = "_per_";
const AGAINST: &str = "-";

/// Returns the name of the figure of a metric, without its extension.
fn file_name(metric: &str) -> String {
    let parts: Vec<_> = metric.split('/').map(str::trim).collect();
    if parts.join("/") == RATIO { LOSS_RATIO.to_owned() } else { parts.join(PER) }
}

/// Returns whether a figure, by its name without an extension, is one of results.csv with these `results`, or its data.
pub(crate) fn is_figure_name(name: &str, results: &[&str]) -> bool {
    // Names with spaces are those of earlier versions. TeX has a hyphen in the place of a space.
    let known = |part: &str| part == LOSS_RATIO || results.contains(&part.trim_matches([' ', '-']));
    let pairs = |name: &str, by: &str, holds: &dyn Fn(&str) -> bool| {
        name.match_indices(by).any(|(at, _)| holds(&name[..at]) && holds(&name[at + by.len()..]))
    };
    let metric = |name: &str| known(name) || pairs(name, PER, &known);
    let name = name.strip_suffix("-data").unwrap_or(name);
    name == "retention" || metric(name) || pairs(name, AGAINST, &metric)
}

/// Returns the requested metrics, or the most informative ones.
fn metrics(results: &Results, request: &Request) -> Result<Vec<(String, Metric)>> {
    let named = |name: &String| Some((name.clone(), results.metric(name)?));
    if request.y.is_empty() {
        let loss =
            if results.metric("loss_before_mean").is_some() { "loss_before_mean" } else { "loss_mean" };
        let few = [
            "validation",
            "train_loss",
            loss,
            RATIO,
            "surprise_mean",
            "retained_ratio",
            CENSORED,
            "tokens_per_s",
        ];
        return Ok(few.into_iter().filter_map(|name| named(&name.to_owned())).collect());
    }
    request.y.iter().map(|name| named(name).ok_or_else(|| unknown_metric(results, "--y", name))).collect()
}

fn unknown_metric(results: &Results, flag: &str, name: &str) -> Error {
    let known = results.metrics.join(", ");
    Error::rejected(flag, format!("no numeric column {name}; pass a column, or two as a/b, of {known}"))
}

/// The roles of the parameters, by index.
struct Layout {
    x: usize,
    hue: Option<usize>,
    panels: Vec<usize>,
    /// Number of columns of panels, if parameters were given to rows or columns.
    columns: Option<usize>,
    /// Parameters that are not drawn because they vary with another one.
    along: Vec<(usize, usize)>,
}

impl Layout {
    /// Chooses the layout. Returns `None` if only the seed varies and no parameter was requested.
    fn choose(results: &Results, request: &Request) -> Result<Option<Self>> {
        let parameters = &results.parameters;
        let asked = [
            ("--x", &request.x),
            ("--hue", &request.hue),
            ("--rows", &request.rows),
            ("--cols", &request.cols),
        ];
        let mut roles = Vec::<Option<usize>>::new();
        for (flag, name) in asked {
            let role = name.as_ref().map(|name| results.find(flag, name)).transpose()?;
            if let Some(other) = roles.iter().position(|other| role.is_some() && *other == role) {
                let reason = format!(
                    "{} is also {}; choose another parameter",
                    parameters[role.unwrap_or_default()].name,
                    asked[other].0
                );
                return Err(Error::rejected(flag, reason));
            }
            roles.push(role);
        }
        let (x, hue, rows, cols) = (roles[0], roles[1], roles[2], roles[3]);
        let chosen: Vec<_> = roles.iter().copied().flatten().collect();
        let varying = (0..parameters.len())
            .filter(|&i| parameters[i].varies() && parameters[i].name != "seed" && !chosen.contains(&i));
        let (mut free, mut along) = (Vec::<usize>::new(), Vec::new());
        for i in varying {
            match chosen.iter().chain(&free).find(|&&other| results.goes_with(i, other)) {
                Some(&other) => along.push((i, other)),
                None => free.push(i),
            }
        }
        // Numbers come before words and many values before few; ties keep the order of the file.
        let fitness = |i: &usize| {
            let parameter = &parameters[*i];
            std::cmp::Reverse((parameter.is_numeric(), parameter.values.len()))
        };
        free.sort_by_key(fitness);
        let mut free = free.into_iter();
        let Some(x) = x.or_else(|| free.next()) else {
            return Ok(hue.map(|x| Self { x, hue: None, panels: Vec::new(), columns: None, along }));
        };
        let hue = hue.or_else(|| free.next());
        let mut panels: Vec<_> = free.collect();
        panels.sort_unstable();
        if rows.or(cols).is_none() {
            return Ok(Some(Self { x, hue, panels, columns: None, along }));
        }
        if let Some(&other) = panels.first() {
            let name = &parameters[other].name;
            let reason = format!("{name} varies too; choose one of its values with --where '{name}=VALUE'");
            return Err(Error::rejected("--rows and --cols", reason));
        }
        let columns = cols.map_or(1, |cols| parameters[cols].values.len());
        Ok(Some(Self {
            x,
            hue,
            panels: rows.into_iter().chain(cols).collect(),
            columns: Some(columns),
            along,
        }))
    }
}

/// The statistics that turn repeated values, such as the runs of a cell, into a centre and an interval.
#[derive(Clone, Copy, Debug)]
pub(super) struct Method {
    pub center: Center,
    pub interval: Interval,
    /// The repeated things: "runs".
    pub what: &'static str,
    /// Whether few runs are drawn as they are, because no interval was asked for.
    pub values_if_few: bool,
    /// Lowest value that the quantity can have.
    lowest: f64,
    /// Whether a run without a value counts as later than any.
    censored: bool,
}

impl Method {
    /// Chooses one centre and interval for all of these values. Values that are not all above 0 have no geometric mean, and
    /// get the arithmetic one.
    pub fn new(request: &Request, log: bool, mut values: impl Iterator<Item = f64>) -> Self {
        let center = request.center.unwrap_or(if log { Center::Geomean } else { Center::Mean });
        let has_none = center == Center::Geomean && values.any(|value| value <= 0.0);
        let center = if has_none { Center::Mean } else { center };
        Self {
            center,
            interval: request.interval.unwrap_or(Interval::of(center)),
            what: "runs",
            values_if_few: request.interval.is_none(),
            lowest: f64::NEG_INFINITY,
            censored: false,
        }
    }

    /// Whether geometric means were asked for, but some values have none.
    fn is_replaced(&self, request: &Request) -> bool {
        request.center == Some(Center::Geomean) && self.center != Center::Geomean && !self.censored
    }

    /// Returns centre and interval of a cell, or `None` if no run has a value.
    fn estimate(&self, cell: &Cell) -> Option<Estimate> {
        if self.censored && cell.absent > 0 {
            let never = std::iter::repeat_n(None, cell.absent);
            let times: Vec<_> = cell.finite.iter().copied().map(Some).chain(never).collect();
            let of = Censored::from_times(&times)?;
            return Some(Estimate { n: of.n, center: of.median?, sd: None, interval: None });
        }
        self.of_values(&cell.finite)
    }

    fn of_values(&self, values: &[f64]) -> Option<Estimate> {
        let center = if self.censored { Center::Median } else { self.center };
        let few = self.values_if_few && values.len() < MIN_FOR_INTERVAL;
        let interval = if few || self.censored { Interval::None } else { self.interval };
        let mut estimate =
            Estimate::new(values, center, interval).filter(|of| of.center.is_finite())?.at_least(self.lowest);
        // The interval may overflow although the values do not.
        estimate.interval = estimate.interval.filter(|(low, high)| low.is_finite() && high.is_finite());
        Some(estimate)
    }

    /// Returns the statistics of a band. Few runs have a band from the lowest to the highest.
    fn of_bands(&self, few: bool) -> Self {
        let interval = if few && self.values_if_few { Interval::Minmax } else { self.interval };
        Self { interval, values_if_few: false, ..*self }
    }

    /// Returns centre and interval for a band.
    pub fn band(&self, values: &[f64]) -> Option<Estimate> {
        self.of_bands(values.len() < MIN_FOR_INTERVAL).of_values(values)
    }

    /// Describes bands of these numbers of runs.
    fn note_on_bands(&self, counts: &[usize], bands: bool) -> Option<String> {
        let few = counts.iter().any(|&n| n < MIN_FOR_INTERVAL);
        self.of_bands(few).note(counts, if bands { "bands" } else { "" })
    }

    /// Returns the single values of a cell, if they are drawn.
    fn values<'a>(&self, cell: &'a Cell) -> &'a [f64] {
        let n = cell.finite.len();
        if self.values_if_few && !self.censored && n > 1 && n < MIN_FOR_INTERVAL { &cell.finite } else { &[] }
    }

    /// Describes centre and interval of these numbers of values; `marks` are bands or bars.
    pub fn note(&self, counts: &[usize], marks: &str) -> Option<String> {
        let (few, most) = (counts.iter().min()?, counts.iter().max()?);
        if *most < 2 {
            return None;
        }
        let what = self.what;
        let n = if few == most { most.to_string() } else { format!("{few} to {most}") };
        if self.censored {
            return Some(format!(
                "medians of {n} runs; a run that never became unstable counts as later than any"
            ));
        }
        let center = match self.center {
            Center::Mean => "means",
            Center::Median => "medians",
            Center::Geomean => "geometric means",
        };
        let logs = if self.center == Center::Geomean { " of logarithms" } else { "" };
        let interval = match self.interval {
            Interval::Ci95 => format!("95 % interval{logs} (Student’s t)"),
            Interval::Sd => format!("standard deviation{logs}"),
            Interval::Sem => format!("standard error{logs}"),
            Interval::Iqr => "quartiles".to_owned(),
            Interval::Minmax => "lowest to highest".to_owned(),
            Interval::Bootstrap => "95 % bootstrap interval".to_owned(),
            Interval::None => return Some(format!("{center} of {n} {what}")),
        };
        let dots = self.values_if_few && *few < MIN_FOR_INTERVAL && !marks.is_empty();
        let bands = !marks.is_empty() && (*most >= MIN_FOR_INTERVAL || !self.values_if_few);
        Some(match (bands, dots) {
            (true, true) => format!(
                "{center} of {n} {what}, {marks}: {interval}, dots: {what}, where fewer than {MIN_FOR_INTERVAL}"
            ),
            (true, false) => format!("{center} of {n} {what}, {marks}: {interval}"),
            (false, true) => format!("{center} of {n} {what}, dots: the {what}"),
            (false, false) => format!("{center} of {n} {what}"),
        })
    }
}

/// Returns the settings of a baseline such as `decay=0`.
fn baseline(results: &Results, texts: &[(String, String)]) -> Result<Option<Baseline>> {
    let find = |(name, text): &(String, String)| {
        let reject = |reason: String| Error::rejected("--baseline", reason);
        if name.is_empty() {
            return Err(reject(format!("expected PARAMETER=VALUE, got {text}")));
        }
        let i = results.find("--baseline", name)?;
        let values = &results.parameters[i].values;
        let number: Option<f64> = text.parse().ok();
        let same = |value: &Value| value.text == *text || (number.is_some() && value.number == number);
        let place = values.iter().position(same).ok_or_else(|| {
            let known: Vec<_> = values.iter().map(|value| &value.text[..]).collect();
            reject(format!("{name} is never {text}; its values are {}", known.join(", ")))
        })?;
        Ok((i, place))
    };
    let found: Baseline = texts.iter().map(find).collect::<Result<_>>()?;
    Ok(Some(found).filter(|found| !found.is_empty()))
}

/// The scale of a parameter's axis, which depends on its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    Linear,
    Log,
    /// A slot per value, for words and for numbers that neither scale separates, such as 0, 0.01, 0.1, 1.
    Slots,
}

impl Scale {
    /// Returns the scale that was asked for with `--log=x`, if the values allow it, or the one that suits the values.
    fn choose(parameter: &Parameter, style: &FigureStyle) -> Self {
        let positive = parameter.values.iter().all(|value| value.number.is_some_and(|number| number > 0.0));
        match style.log {
            Some(log) if log.x() && positive => Self::Log,
            Some(LogAxes::None) if parameter.is_numeric() => Self::Linear,
            _ => Self::from_parameter(parameter),
        }
    }

    fn from_parameter(parameter: &Parameter) -> Self {
        if !parameter.is_numeric() {
            return Self::Slots;
        }
        let numbers: Vec<_> = parameter.values.iter().filter_map(|value| value.number).collect();
        let positive: Vec<_> = numbers.iter().copied().filter(|&x| x > 0.0).collect();
        let evenness = |values: &[f64]| {
            let gaps = values.windows(2).map(|pair| pair[1] - pair[0]);
            let (least, most) = gaps.fold((f64::INFINITY, 0.0_f64), |(a, b), gap| (a.min(gap), b.max(gap)));
            least / most
        };
        let logs: Vec<_> = positive.iter().map(|x| x.log10()).collect();
        // Log if the values span a decade or more and are more even in log, as in 1, 3, 10 or 2, 4, 8, 16, 32.
        let decades = logs.first().zip(logs.last()).map_or(0.0, |(first, last)| last - first);
        let log = logs.len() > 2 && decades >= 1.0 && evenness(&logs) > evenness(&positive);
        match (log, positive.len() == numbers.len()) {
            (true, true) => Self::Log,
            (true, false) => Self::Slots,
            (false, _) => Self::Linear,
        }
    }
}

/// Returns the x axis of a parameter, and the place of each value on it.
fn parameter_axis(parameter: &Parameter, scale: Scale, style: &FigureStyle) -> (Axis, Vec<f64>) {
    let labels = labels(parameter);
    let numbers = || parameter.values.iter().filter_map(|value| value.number);
    let log = scale == Scale::Log;
    let (axis, places) = match scale {
        Scale::Slots => (Axis::slots(&labels), (0..labels.len()).map(|i| i as f64 + 0.5).collect()),
        // Ticks lie at the values if there are few, otherwise at round numbers.
        _ if labels.len() <= 11 => {
            (Axis::of_values(&numbers().zip(labels).collect::<Vec<_>>(), log), numbers().collect())
        }
        _ => {
            let (low, high) =
                numbers().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
            (if log { Axis::log(low, high) } else { Axis::linear(low, high) }, numbers().collect())
        }
    };
    (style.x_within(axis), places)
}

/// Returns the names of a parameter's values in axes and legends, as short as they can be and still distinct.
fn labels(parameter: &Parameter) -> Vec<String> {
    let short: Vec<_> = parameter.values.iter().map(|value| label(&parameter.name, value)).collect();
    let mut counts = HashMap::<&str, usize>::new();
    for label in &short {
        *counts.entry(label).or_default() += 1;
    }
    let longer = |(value, short): (&Value, &String)| {
        if counts[&short[..]] == 1 {
            return short.clone();
        }
        let mut parts: Vec<_> = value.text.rsplit('/').take(2).collect();
        parts.reverse();
        let text = font::plain(&parts.join("/"));
        cut(&if value.number.is_some() { text.replace('-', "−") } else { text }, MAX_LABEL)
    };
    names::numbered(parameter.values.iter().zip(&short).map(longer).collect())
}

/// Returns the name of a setting and its value, as in legends.
pub(super) fn setting_text(name: &str, text: &str) -> String {
    let value = Value { text: text.to_owned(), number: text.parse().ok() };
    format!("{} {}", symbol(name), label(name, &value))
}

/// Returns what nmem does where a setting is absent.
fn absent(name: &str) -> &'static str {
    match name {
        "learning_rate" | "momentum" | "decay" => "learned",
        "heads" => "1",
        "chunk_size" => "16",
        "seed" => "0",
        "model" => "attention",
        "loss" => "mean-square",
        "init" => "xavier",
        _ => "default",
    }
}

/// Returns a value's usual name: short and without markup.
fn label(name: &str, value: &Value) -> String {
    let text = match value.number {
        Some(number) if value.text.len() > 6 || value.text.contains(['e', 'E']) => names::short(number),
        Some(_) => value.text.clone(),
        None if value.text.is_empty() => absent(name).to_owned(),
        // A path is shortened to its file name.
        None => value.text.rsplit('/').next().unwrap_or_default().to_owned(),
    };
    let of_text = || for_figure(&text).replace(['{', '}'], "|");
    cut(&if value.number.is_some() { text.replace('-', "−") } else { of_text() }, MAX_LABEL)
}

fn words(name: &str) -> String {
    let words = name.trim_start_matches('_').replace('_', " ").replace(['{', '}'], "|");
    cut(&for_figure(&words), MAX_WORDS)
}

/// Returns a short name of a parameter for headings and legends.
fn symbol(name: &str) -> String {
    match name {
        "learning_rate" => "θ =".to_owned(),
        "momentum" => "η =".to_owned(),
        "decay" => "α =".to_owned(),
        other => words(other),
    }
}

fn parameter_title(name: &str) -> String {
    match name {
        "chunk_size" => "chunk size (tokens)".to_owned(),
        "lag" => "chunks stored since".to_owned(),
        "learning_rate" => "learning rate θ".to_owned(),
        "momentum" => "momentum η".to_owned(),
        "decay" => "decay α".to_owned(),
        other => words(other),
    }
}

/// Returns the lowest value that a result can have, if it has one.
fn lowest(name: &str, mut values: impl Iterator<Item = f64>) -> f64 {
    // An inner product as loss is below 0, so the data are asked too.
    let positive =
        ["loss", "surprise", "tokens", "chunks", "wall_s", "engine_bytes", "retained", "norm", "first"];
    let can = positive.iter().any(|part| name.contains(part));
    if can && values.all(|value| value >= 0.0) { 0.0 } else { f64::NEG_INFINITY }
}

fn metric_title(name: &str) -> String {
    let known = match name {
        "loss_mean" => "loss at W, per token",
        "loss_before_mean" => "loss before storing, per token",
        "loss_after_mean" => "loss after storing, per token",
        RATIO => "loss before storing ÷ at W",
        "surprise_mean" => "surprise (gradient norm)",
        CENSORED => "first unstable chunk",
        "retained_ratio" => "loss of what is kept ÷ at W",
        "validation" => "validation loss",
        "train_loss" => "training loss",
        "tokens_per_s" => "tokens per second",
        "wall_s" => "time (s)",
        _ => "",
    };
    match (known, name.split_once('/')) {
        ("", Some((over, under))) => {
            format!("{} ÷ {}", metric_title(over.trim()), metric_title(under.trim()))
        }
        ("", None) => words(name),
        (known, _) => known.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{AGAINST, Parameter, Scale, Value, file_name, is_figure_name, label};

    fn parameter(values: &[&str]) -> Parameter {
        let value = |text: &&str| Value { text: (*text).to_owned(), number: text.parse().ok() };
        Parameter { name: "p".to_owned(), values: values.iter().map(value).collect() }
    }

    #[test]
    fn figures_are_known_by_their_names() {
        let results = ["loss_before_mean", "loss_mean", "tokens_per_s", "wall_s"];
        let mut metrics: Vec<_> = results.map(str::to_owned).into();
        metrics.push("loss_ratio".to_owned());
        for (a, b) in results.iter().flat_map(|a| results.map(|b| (a, b))) {
            metrics.extend([format!("{a}/{b}"), format!("{a} / {b}")]);
        }
        let names: Vec<_> = metrics.iter().map(|metric| file_name(metric)).collect();
        for (a, b) in names.iter().flat_map(|a| names.iter().map(move |b| (a, b))) {
            for name in [a.clone(), [&a[..], b].join(AGAINST), format!("{a}-data")] {
                assert!(is_figure_name(&name, &results), "{name}");
            }
        }
        // Earlier versions kept the spaces.
        assert!(
            is_figure_name("loss_mean _per_ wall_s", &results)
                && is_figure_name("loss_mean-_per_-wall_s", &results)
        );
        for name in ["paper", "loss", "loss_mean_per_", "tokens_per_x", "loss_mean-thesis", "-data"] {
            assert!(!is_figure_name(name, &results), "{name}");
        }
    }

    #[test]
    fn scales() {
        let scale = |values: &[&str]| Scale::from_parameter(&parameter(values));
        assert_eq!(scale(&["2", "4", "8", "16", "32", "64", "128", "256"]), Scale::Log);
        assert_eq!(scale(&["0.001", "0.003", "0.01", "0.03", "0.1"]), Scale::Log);
        assert_eq!(scale(&["0", "0.25", "0.5", "0.75", "1"]), Scale::Linear);
        assert_eq!(scale(&["0.1", "0.2", "0.9", "1"]), Scale::Linear);
        assert_eq!(scale(&["0", "0.001", "0.01", "0.1"]), Scale::Slots);
        assert_eq!(scale(&["1", "100"]), Scale::Linear);
        assert_eq!(scale(&["0.1", "learned"]), Scale::Slots);
    }

    #[test]
    fn labels() {
        let text = |text: &str| label("p", &parameter(&[text]).values[0]);
        assert_eq!(text("0.05"), "0.05");
        assert_eq!(text("-0.5"), "−0.5");
        assert_eq!(text("0.012589254117941675"), "0.0126");
        assert_eq!(text("0.00012589254117941675"), "1.26·10^{−4}");
        assert_eq!(text("1000000000"), "10^{9}");
        assert_eq!(text("1e-05"), "10^{−5}");
        assert_eq!(text(""), "default");
        assert_eq!(super::setting_text("decay", ""), "α = learned");
        assert_eq!(text("../data/{a}.npy"), "|a|.npy");
        assert_eq!(text(&"x".repeat(40)).chars().count(), 24);
    }
}
