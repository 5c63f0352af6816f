//! Figures, made only from metrics.csv (and labels), retention.csv, scan_bench.csv or results.csv, so that they can be
//! redrawn at any time.
//!
//! In reading order:
//! - [`downsample`]: a line of any length in bounded memory, every spike kept.
//! - [`series`]: metrics.csv → such lines, means over heads and sequences.
//! - `axis`: limits, ticks and labels. `theme`: sizes and colours. `canvas`: a sheet in points, written as SVG.
//! - `timeline` and `legend`: the layout of the sheet.
//! - `frame`: a panel's spines, ticks and titles. `colours`: colour scales for numbers, and the colour bar.
//! - `heads`: maps of heads × chunks. `columns`: any columns against any other.
//! - `style`: theme and size. `source`: input files and their kinds. `figure`: drawn figures, and `pages` their PDF and
//!   PNG. `font`: the font and text widths.
//! - `names`: distinct short names.
//! - `ignored_flags`: flags without effect.
//! - `retention`: retention.csv → a map of the kept chunk against the last stored chunk.
//! - `scan_bench`: scan_bench.csv → time and bandwidth against steps.
//! - [`sweep`]: results.csv of a sweep → a figure per metric.
//! - `chart`: the same figures as data, for [`terminal`] and [`pgfplots`].

mod axis;
mod canvas;
mod chart;
mod colours;
mod columns;
pub mod downsample;
mod figure;
pub mod font;
mod frame;
mod heads;
mod ignored_flags;
mod legend;
mod names;
mod pages;
pub mod pgfplots;
mod retention;
mod scan_bench;
pub mod series;
mod source;
mod style;
pub mod sweep;
pub mod terminal;
mod theme;
mod timeline;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::labels::Labels;
use downsample::Unshown;
pub use figure::{Figure, FigureFormat, Figures};
pub use ignored_flags::ignored_flags;
use series::{Metrics, Quantity};
pub use source::{CsvSource, Kind};
pub use style::{FigureStyle, INCH, Inches, LogAxes, Theme, Venue};
use sweep::SweepFigure;

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
}

/// Draws the figures of `nmem plot`. All sources must be of one kind. Several timelines share one figure; each source of
/// another kind has its own figures, named after it. `check` runs every few thousand rows and with each figure, and can
/// stop the work.
pub fn draw(
    sources: &[CsvSource],
    request: &Request,
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<Figures> {
    request.style.check()?;
    let Some(first) = sources.first() else { return Ok(Figures::default()) };
    if let Some(other) = sources.iter().find(|source| source.kind != first.kind) {
        let (kind, first_kind) = (other.kind.cli_name(), first.kind.cli_name());
        let reason =
            format!("is of kind {kind}, {} of kind {first_kind}; plot them separately", first.csv.display());
        return Err(Error::rejected(other.csv.display().to_string(), reason));
    }
    match first.kind {
        Kind::Columns => return columns::columns(sources, request, check),
        Kind::Timeline | Kind::Gates => return draw_timelines(sources, request, check),
        _ => {}
    }
    let mut all = Figures::default();
    // These become parts of file names. A source may be named after its directory and its parent directory.
    let prefixes = names::numbered(sources.iter().map(|source| source.name.replace('/', "-")).collect());
    for (source, prefix) in sources.iter().zip(&prefixes) {
        check()?;
        let drawn = draw_one(source, request, check)?;
        let named = |name: String| if sources.len() > 1 { format!("{prefix}-{name}") } else { name };
        all.notes.extend(drawn.notes);
        let figures = drawn.figures.into_iter();
        all.figures.extend(figures.map(|figure| Figure { name: named(figure.name), ..figure }));
    }
    Ok(all)
}

/// Returns the files, in all formats, of the figures that a subcommand drew from a CSV file. `directory` must exist.
pub fn files(
    drawn: &Figures,
    csv: &Path,
    request: &Request,
    (directory, formats): (&Path, &[FigureFormat]),
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut files = drawn.files(directory, formats).collect::<Result<Vec<_>>>()?;
    if formats.contains(&FigureFormat::Pgfplots) {
        files.extend(pgfplots::files(&[CsvSource::find(csv, None)?], request, directory, check)?);
    }
    Ok(files)
}

fn draw_one(source: &CsvSource, request: &Request, check: &mut dyn FnMut() -> Result<()>) -> Result<Figures> {
    let options = || SweepFigure {
        x: request.x.clone(),
        y: request.y.clone(),
        hue: request.hue.clone(),
        map: source.kind == Kind::Map,
    };
    match source.kind {
        Kind::Scan => scan_bench(&source.csv, &request.style),
        Kind::Retention if source.of_sweep => sweep::retention(&source.csv, &options(), &request.style),
        Kind::Retention => retention(&source.csv, &request.style, check),
        Kind::Sweep | Kind::Map => sweep::figures(&source.csv, &options(), &request.style),
        Kind::Heads => heads(&source.csv, &request.style, check),
        Kind::Timeline | Kind::Gates | Kind::Columns => unreachable!("drawn of all sources at once"),
    }
}

/// Draws `timeline` or `gates` of all sources, or the single requested quantity. Other columns, or another x, are drawn as
/// [`Kind::Columns`].
fn draw_timelines(
    sources: &[CsvSource],
    request: &Request,
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<Figures> {
    let Some(timeline::Selection { runs, shown, name }) = timeline::Selection::read(sources, request, check)?
    else {
        return columns::columns(sources, request, check);
    };
    check()?;
    let notes = timeline::omitted(&runs, &shown);
    let svg = timeline::figure(&runs, request.labels.as_ref(), &shown, &request.style);
    Ok(Figures { figures: vec![Figure { name: name.to_owned(), svg }], notes })
}

/// Draws `heads`: maps of heads × chunks.
fn heads(metrics_csv: &Path, style: &FigureStyle, check: &mut dyn FnMut() -> Result<()>) -> Result<Figures> {
    let metrics = Metrics::read(metrics_csv, style, check)?;
    let figure = Figure { name: "heads".to_owned(), svg: heads::figure(&metrics, style) };
    let shown = [Quantity::Surprise.name(), Quantity::LearningRate.name()];
    let omitted = OmittedValues::from_metrics(&metrics).into_iter().filter(|of| shown.contains(&of.quantity));
    Ok(Figures { figures: vec![figure], notes: omitted.map(|of| of.to_string()).collect() })
}

pub use retention::retention;
pub use scan_bench::scan_bench;

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
/// heads also has their maps, `heads`. `check` runs every few thousand rows and with each figure, and can stop the work.
pub fn timelines(
    metrics_csv: &Path,
    labels: Option<&Labels>,
    style: &FigureStyle,
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<(Figures, Vec<OmittedValues>)> {
    let metrics = Metrics::read(metrics_csv, style, check)?;
    let omitted = OmittedValues::from_metrics(&metrics);
    let runs = [timeline::RunMetrics { name: String::new(), metrics }];
    let metrics = &runs[0].metrics;
    let every: Vec<_> = metrics.series.iter().map(|series| series.quantity).collect();
    let mut shown = vec![("timeline", every.clone())];
    shown.extend(every.iter().map(|&quantity| (quantity.name(), vec![quantity])));

    let mut figures = Vec::new();
    for (name, shown) in shown {
        check()?;
        figures.push(Figure { name: name.to_owned(), svg: timeline::figure(&runs, labels, &shown, style) });
    }
    if metrics.heads.len() > 1 {
        figures.push(Figure { name: "heads".to_owned(), svg: heads::figure(metrics, style) });
    }
    let notes = omitted.iter().map(ToString::to_string).collect();
    Ok((Figures { figures, notes }, omitted))
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
