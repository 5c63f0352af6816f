//! Figures, made only from CSV files (and labels, and a few facts of the run.json beside), so that they can be redrawn at any
//! time. A kind of figure makes a `chart`, the one description that all formats are drawn from.
//!
//! In reading order:
//! - [`downsample`]: a line of any length in bounded memory, every spike kept.
//! - [`series`]: metrics.csv → such lines, means over heads and sequences.
//! - `chart`: the description of a figure. `axis`: limits, ticks and labels. `colours`: colour scales for numbers.
//! - Kinds: `timeline` (and maps of heads), `columns` (any columns, boxes, changes of topic), `retention`, `recall`, `spectrum`,
//!   `scan_bench`, `training`, and `sweep` (lines, maps, differences, one result against another, curves over tokens).
//! - Back ends: `sheet` lays a chart out and draws it on a `canvas`, as SVG, with its `legend` and a `frame` for each panel; `pages` makes PDF and PNG of
//!   that. `pgfplots` writes TeX, [`terminal`] characters, and `table` the data as CSV.
//! - `style`: what an author can choose. `theme`: sizes and colours. `font`: fonts and text widths. `clip`: edges of panels.
//! - `source`: input files and their kinds. `filter`: the rows that are drawn. `figure`: drawn figures and their files.
//! - `names`: distinct short names. `ignored_flags`: flags without effect.

mod axis;
mod canvas;
mod chart;
mod clip;
mod colours;
mod columns;
pub mod downsample;
mod figure;
mod filter;
pub mod font;
mod frame;
mod ignored_flags;
mod legend;
mod names;
mod pages;
mod pgfplots;
mod recall;
mod retention;
mod scan_bench;
pub mod series;
mod sheet;
mod source;
mod spectrum;
mod style;
mod sweep;
mod table;
pub mod terminal;
mod theme;
mod timeline;
mod training;

use std::fmt;
use std::path::Path;

use crate::error::{Error, Result};
use crate::io::labels::Labels;
use crate::statistics::{Center, Interval};
use chart::Chart;
pub use chart::Reference;
use downsample::Unshown;
pub use figure::{Figure, FigureFormat, Figures};
pub use font::Font;
pub use ignored_flags::ignored_flags;
use series::Metrics;
pub use series::{Part, Quantity};
pub use source::{CsvSource, Kind, Run};
pub use style::{FigureStyle, INCH, Inches, LegendPlace, Limits, LogAxes, Palette, Theme, Venue};
pub use sweep::{Direction, better};
pub(crate) use sweep::{LOSS_RATIO, RATIO, is_figure_name};

/// A request for figures.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Theme, size, title and axes.
    pub style: FigureStyle,
    /// Labels to mark in timelines.
    pub labels: Option<Labels>,
    /// Column along the x axis.
    pub x: Option<String>,
    /// Columns to draw, with a figure or a panel each.
    pub y: Vec<String>,
    /// Column whose values become lines, or rows of a map.
    pub hue: Option<String>,
    /// Parameter whose values become rows of panels.
    pub rows: Option<String>,
    /// Parameter whose values become columns of panels.
    pub cols: Option<String>,
    /// Whether several columns are panels of one figure.
    pub panels: bool,
    /// Conditions that rows must pass: see [`Condition`](crate::condition::Condition).
    pub filter: Vec<String>,
    /// Heads and tokens to draw.
    pub part: Part,
    /// Centre of repeated values; `None` lets the axis decide.
    pub center: Option<Center>,
    /// Interval of repeated values; `None` is the 95 % interval, and the values themselves if they are few.
    pub interval: Option<Interval>,
    /// Settings of the runs to which others are compared, as parameter and value.
    pub baseline: Vec<(String, String)>,
    /// New names of lines, in the order of the legend.
    pub names: Vec<(String, String)>,
    /// Lines across all panels.
    pub references: Vec<Reference>,
    /// The command that draws, for the metadata of SVG and PDF.
    pub origin: Option<String>,
}

/// A function that runs every few thousand rows and with each figure, and can stop the work.
pub type Check<'a> = dyn FnMut() -> Result<()> + 'a;

/// Draws the figures of `nmem plot`. All sources must be of one kind. Several timelines share one figure; each source of
/// another kind has its own figures, named after it.
pub fn draw(sources: &[CsvSource], request: &Request, check: &mut Check) -> Result<Figures> {
    request.style.check()?;
    let (charts, notes) = charts(sources, request, check)?;
    drawn(charts, request, notes, check)
}

fn drawn(charts: Vec<Chart>, request: &Request, notes: Vec<String>, check: &mut Check) -> Result<Figures> {
    let mut all = Figures { figures: Vec::new(), notes: with_omitted(notes, &charts) };
    for chart in charts {
        check()?;
        all.figures.push(Figure::new(chart, &request.style, request.origin.as_deref()));
    }
    Ok(all)
}

/// Adds the notes on what charts cannot show, each once.
fn with_omitted(mut notes: Vec<String>, charts: &[Chart]) -> Vec<String> {
    for text in charts.iter().flat_map(|chart| &chart.omitted) {
        if !notes.contains(text) {
            notes.push(text.clone());
        }
    }
    notes
}

/// Returns the charts of all sources and notes for the user. Notes on values that a chart cannot show are in the chart.
fn charts(sources: &[CsvSource], request: &Request, check: &mut Check) -> Result<(Vec<Chart>, Vec<String>)> {
    let Some(first) = sources.first() else { return Ok((Vec::new(), Vec::new())) };
    if let (Some(center), Some(interval)) = (request.center, request.interval)
        && !interval.suits(center)
    {
        let reason =
            "ci95, sd and sem are about a mean; with --center median use bootstrap, iqr, minmax or none";
        return Err(Error::rejected("--interval", reason));
    }
    if let Some(other) = sources.iter().find(|source| source.kind != first.kind) {
        let (kind, first_kind) = (other.kind.cli_name(), first.kind.cli_name());
        let reason =
            format!("is of kind {kind}, {} of kind {first_kind}; plot them separately", first.csv.display());
        return Err(Error::rejected(other.csv.display().to_string(), reason));
    }
    let roles = [&request.x, &request.hue, &request.rows, &request.cols];
    let together = roles.into_iter().flatten().any(|name| name == sweep::SWEEP);
    let mut notes = Vec::new();
    let mut charts = match first.kind {
        Kind::Timeline | Kind::Gates => vec![match timeline::selected(sources, request, check)? {
            Some(chart) => chart,
            None => columns::chart(sources, request, check, &mut notes)?,
        }],
        Kind::Columns | Kind::Boxes => vec![columns::chart(sources, request, check, &mut notes)?],
        Kind::Topics => vec![columns::topics(sources, request, check)?],
        Kind::Recall => vec![recall::chart(sources, request, check)?],
        Kind::Training => vec![training::chart(sources, request, check)?],
        Kind::Lags => vec![retention::lags(sources, request, check)?],
        _ if together && first.of_sweep => sweep::charts(sources, request, check, &mut notes)?,
        _ => each(sources, request, check, &mut notes)?,
    };
    let lines = charts.iter().map(Chart::distinct).max().unwrap_or(0);
    if request.style.theme == Theme::Mono && lines > theme::MAX_MONO {
        let reason = format!(
            "mono tells at most {} lines apart, not {lines}; choose fewer, or another theme",
            theme::MAX_MONO
        );
        return Err(Error::rejected("--theme", reason));
    }
    let unknown = request.names.iter().find(|(old, _)| charts.iter().all(|chart| !chart.has_name(old)));
    if let Some((old, new)) = unknown.filter(|_| !charts.is_empty()) {
        let mut known: Vec<&str> = Vec::new();
        for name in charts.iter().flat_map(Chart::names) {
            if !known.contains(&name) {
                known.push(name);
            }
        }
        let known = if known.is_empty() {
            "no line has a name".to_owned()
        } else {
            format!("the lines are {}", known.join("; "))
        };
        let reason = format!("no line {old} to become {new}; {known}");
        return Err(Error::rejected("--rename", reason));
    }
    notes.extend(ignored_flags::limits(&charts, request));
    for chart in &mut charts {
        chart.finish(request);
        chart.rename(&request.names);
    }
    Ok((charts, notes))
}

/// Draws each source alone. Figures of several sources are named after them.
fn each(
    sources: &[CsvSource],
    request: &Request,
    check: &mut Check,
    notes: &mut Vec<String>,
) -> Result<Vec<Chart>> {
    let mut all = Vec::new();
    // These become parts of file names. A source may be named after its directory and its parent directory.
    let prefixes = names::numbered(sources.iter().map(|source| source.name.replace('/', "-")).collect());
    for (source, prefix) in sources.iter().zip(&prefixes) {
        check()?;
        let charts = match source.kind {
            Kind::Scan => scan_bench::charts(&source.csv, request, check, notes)?,
            Kind::Speedup => scan_bench::speedup(&source.csv, request, check, notes)?,
            Kind::Retention if !source.of_sweep => vec![retention::map(&source.csv, request, check)?],
            Kind::Spectrum => vec![spectrum::chart(&source.csv, request, check)?],
            Kind::Heads => {
                let metrics = Metrics::read(&source.csv, &request.style, &request.part, check)?;
                vec![timeline::heads(&metrics, request)]
            }
            _ => sweep::charts(std::slice::from_ref(source), request, check, notes)?,
        };
        let named = |name: String| if sources.len() > 1 { format!("{prefix}-{name}") } else { name };
        all.extend(charts.into_iter().map(|chart| Chart { name: named(chart.name), ..chart }));
    }
    Ok(all)
}

/// Number of values of one quantity that an axis cannot show, by chunk and head, after the mean over sequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OmittedValues {
    /// Name of the quantity and of its file: "surprise".
    pub quantity: &'static str,
    /// Number of NaN and infinite values.
    pub not_finite: u64,
    /// Number of values of zero or below on a log axis.
    pub not_positive: u64,
}

impl fmt::Display for OmittedValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reasons = [(self.not_finite, "not finite"), (self.not_positive, "not above 0 on a log axis")];
        let reasons = reasons.iter().filter(|(count, _)| *count > 0);
        let reasons: Vec<_> = reasons.map(|(count, reason)| format!("{count} {reason}")).collect();
        write!(f, "{}: values not drawn: {}", self.quantity, reasons.join(", "))
    }
}

/// Draws a run. `timeline` shows all quantities on a shared axis of tokens. Each quantity also has its own figure:
/// `surprise`, `loss_ratio` (only if the losses were probed), `learning_rate`, `decay` and `momentum`. A run of several
/// heads also has their maps, `heads`.
pub fn timelines(
    metrics_csv: &Path,
    request: &Request,
    check: &mut Check,
) -> Result<(Figures, Vec<OmittedValues>)> {
    let metrics = Metrics::read(metrics_csv, &request.style, &request.part, check)?;
    let omitted = OmittedValues::from_metrics(&metrics);
    let runs = [timeline::RunMetrics { name: String::new(), metrics, run: Run::default() }];
    let metrics = &runs[0].metrics;
    let every: Vec<_> = metrics.series.iter().map(|series| series.quantity).collect();
    let mut charts = vec![timeline::chart("timeline", &runs, &every, false, request)];
    charts.extend(
        every.iter().map(|&quantity| timeline::chart(quantity.name(), &runs, &[quantity], true, request)),
    );
    if metrics.heads.len() > 1 {
        charts.push(timeline::heads(metrics, request));
    }
    for chart in &mut charts {
        chart.finish(request);
    }
    Ok((drawn(charts, request, Vec::new(), check)?, omitted))
}

impl OmittedValues {
    fn from_metrics(metrics: &Metrics) -> Vec<Self> {
        let omitted = metrics.series.iter().map(|series| Self {
            quantity: series.quantity.name(),
            not_finite: series.count(Unshown::NotFinite),
            not_positive: series.count(Unshown::NotPositive),
        });
        omitted.filter(|omitted| omitted.not_finite + omitted.not_positive > 0).collect()
    }
}
