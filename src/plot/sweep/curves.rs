//! A quantity over tokens for each setting of some sweeps: the mean over its seeds, and the interval as a band. The runs'
//! metrics.csv lie beside their results.csv, unless the sweep kept nothing of them.

use std::collections::BTreeMap;
use std::path::Path;

use super::control::{Centers, Control};
use super::results::{Parameter, Results};
use super::{Method, RATIO, lowest, setting_text};
use crate::error::{Error, Result};
use crate::plot::axis::Axis;
use crate::plot::chart::{Chart, Key, Line, LineStyle, Panel, y_range};
use crate::plot::colours::range;
use crate::plot::series::{Metrics, Quantity, Series};
use crate::plot::source::CsvSource;
use crate::plot::timeline::ZEROS;
use crate::plot::{Check, Request, theme, timeline};
use crate::statistics::Center;
use crate::storage;

/// Points of a curve: about one per point of paper.
const POINTS: usize = 256;
/// Most curves that a reader can tell apart.
const CURVES: usize = 12;
/// Most curves with bands.
const BANDS: usize = 4;

/// Values of the runs of one setting, by the bits of the token, which ascend with it.
type Values = BTreeMap<u64, Vec<f64>>;

/// The curves of all settings.
struct Curves<'a> {
    request: &'a Request,
    shown: Vec<Quantity>,
    names: Vec<String>,
    /// Styles of the settings' lines.
    styles: Vec<LineStyle>,
    /// By setting, then by quantity.
    values: Vec<Vec<Values>>,
    /// Loss ratio of an all-zero answer, by setting.
    zeros: Vec<Values>,
    /// Number of runs without a metrics.csv.
    missing: usize,
    /// Chunks in the mean of a point.
    chunks: u64,
    /// One past the last token.
    tokens: u64,
}

/// Returns the chart of one or more quantities.
pub fn chart(
    sources: &[CsvSource],
    results: &Results,
    request: &Request,
    check: &mut Check,
) -> Result<Chart> {
    let mut curves = Curves::new(results, request)?;
    let by = by(results, request)?;
    let settings = results.runs(&by);
    let count = settings.len();
    if count > CURVES {
        let reason = format!("{count} settings are too many curves; choose some with --where, or --hue");
        return Err(Error::rejected("--kind curves", reason));
    }
    let parameters = &results.parameters;
    let directory = |source: &CsvSource| source.csv.parent().unwrap_or(Path::new("")).join("runs");
    let directories: Vec<_> = sources.iter().map(directory).collect();
    for (key, runs) in &settings {
        let text = |(&i, &value): (&usize, &usize)| {
            setting_text(&parameters[i].name, &parameters[i].values[value].text)
        };
        let name = by.iter().zip(key).map(text).collect::<Vec<_>>().join(", ");
        curves.names.push(if name.is_empty() { "mean".to_owned() } else { name });
        curves.values.push(vec![Values::new(); curves.shown.len()]);
        curves.zeros.push(Values::new());
        for &(source, run) in runs {
            check()?;
            curves.read(&directories[source].join(run).join("metrics.csv"), check)?;
        }
    }
    if curves.values.iter().flatten().all(BTreeMap::is_empty) {
        let names: Vec<_> = directories.iter().map(|directory| directory.display().to_string()).collect();
        let (names, has) = (names.join(", "), if names.len() == 1 { "has" } else { "have" });
        let reason =
            format!("{names} {has} no metrics.csv of the runs; run the sweep again with --keep metrics");
        return Err(Error::rejected("--kind curves", reason));
    }
    let style = &request.style;
    let ordered = by.len() == 1 && parameters[by[0]].is_numeric();
    let colours = if ordered { style.ordered_colours(count) } else { style.colours(count) };
    curves.styles = LineStyle::of_colours(colours, style.theme);
    Ok(curves.chart())
}

/// Returns the parameters whose values have a curve each: that of the hue, or all that vary.
fn by(results: &Results, request: &Request) -> Result<Vec<usize>> {
    let parameters = &results.parameters;
    let Some(hue) = &request.hue else {
        let varies = |parameter: &Parameter| parameter.varies() && parameter.name != "seed";
        return Ok((0..parameters.len()).filter(|&i| varies(&parameters[i])).collect());
    };
    Ok(vec![results.find("--hue", hue)?])
}

impl<'a> Curves<'a> {
    fn new(results: &Results, request: &'a Request) -> Result<Self> {
        let quantity = |name: &String| {
            Quantity::from_name(name).ok_or_else(|| {
                let known = Quantity::ALL.map(Quantity::name).join(", ");
                Error::rejected("--y", format!("no quantity {name}; the quantities over tokens are {known}"))
            })
        };
        let shown: Vec<_> = request.y.iter().map(quantity).collect::<Result<_>>()?;
        let probed = results.metric(RATIO).is_some();
        let default = if probed { Quantity::LossRatio } else { Quantity::Surprise };
        let shown = if shown.is_empty() { vec![default] } else { shown };
        let (names, styles, values, zeros) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Ok(Self { request, shown, names, styles, values, zeros, missing: 0, chunks: 1, tokens: 0 })
    }

    /// Adds a run to the values of the last setting.
    fn read(&mut self, csv: &Path, check: &mut Check) -> Result<()> {
        if !storage::exists(csv)? {
            self.missing += 1;
            return Ok(());
        }
        let metrics = Metrics::read(csv, &self.request.style, &self.request.part, check)?;
        let tokens = metrics.tokens.clone();
        self.tokens = self.tokens.max(tokens.end);
        let of_setting = self.values.last_mut().into_iter().flatten();
        let lines = self.shown.iter().zip(of_setting).map(|(quantity, values)| {
            let series = metrics.series.iter().find(|series| series.quantity == *quantity);
            (series.and_then(Series::bold), values)
        });
        let zeros = self.zeros.last_mut().map(|values| (Some(&metrics.zero_ratio), values));
        for (line, values) in lines.chain(zeros) {
            let Some(line) = line else { continue };
            let cells = line.cells(POINTS);
            let chunks = cells.last().map_or(1, |(chunks, ..)| chunks.end).max(1);
            let per_chunk = (tokens.end - tokens.start) as f64 / chunks as f64;
            for (chunks, mean, _) in cells {
                self.chunks = self.chunks.max(chunks.end - chunks.start);
                let middle = f64::midpoint(chunks.start as f64, chunks.end as f64);
                // A value that is not finite would make the mean so too.
                if let Some(mean) = mean.filter(|mean| mean.is_finite()) {
                    let token = tokens.start as f64 + middle * per_chunk;
                    values.entry(token.to_bits()).or_default().push(mean);
                }
            }
        }
        Ok(())
    }

    fn chart(&self) -> Chart {
        let name = self.shown.iter().map(|quantity| quantity.name()).collect::<Vec<_>>().join("-");
        let height = if self.shown.len() > 1 { theme::STACKED } else { theme::ALONE };
        let mut chart = Chart::new(&format!("curves-{name}"), 1, height);
        let (mut counts, mut methods) = (Vec::new(), Vec::new());
        let (mut controls, mut values) = (Vec::new(), None);
        for i in 0..self.shown.len() {
            let (panel, method, note) = self.panel(i, &mut counts);
            let has_control = panel.lines.len() > self.names.len();
            chart.panels.push(panel);
            methods.push(method);
            controls.extend(has_control.then(|| Key::line(ZEROS, Control::style(self.names.len()))));
            values = values.or(note);
        }
        if self.names.len() > 1 || !controls.is_empty() {
            let lines = self.names.iter().zip(&self.styles);
            chart.keys = lines.map(|(name, &style)| Key::line(name, style)).chain(controls).collect();
        }
        // Where panels have different centres, the usual one is described, and those with the other one are named.
        let (geometric, others): (Vec<_>, Vec<_>) =
            methods.iter().zip(&self.shown).partition(|(method, _)| method.center == Center::Geomean);
        if let Some((method, _)) = others.first().or(geometric.first()) {
            chart.notes.extend(method.note_on_bands(&counts, self.bands()));
        }
        if !geometric.is_empty() && !others.is_empty() {
            let names: Vec<_> =
                geometric.iter().map(|(_, quantity)| quantity.name().replace('_', " ")).collect();
            chart.notes.push(format!("geometric means: {}", names.join(", ")));
        }
        chart.notes.extend(values);
        if self.chunks > 1 {
            chart.notes.push(format!("each point: mean of {} chunks", self.chunks));
        }
        if self.missing > 0 {
            chart.omitted.push(format!("{} runs without a metrics.csv", self.missing));
        }
        chart
    }

    /// Returns the control of a quantity: an all-zero answer beside the loss ratio.
    fn control(&self, quantity: Quantity, method: &Method) -> Option<Control> {
        let centers: Centers = (self.zeros.iter().enumerate())
            .flat_map(|(i, values)| values.iter().map(move |(&token, values)| ((i, token), values)))
            .filter_map(|(place, values)| Some((place, method.of_values(values)?.center)))
            .collect();
        (quantity == Quantity::LossRatio && !centers.is_empty()).then(|| Control::of_zeros(centers))
    }

    fn bands(&self) -> bool {
        self.names.len() <= BANDS
    }

    /// Returns the panel of a quantity, its statistics, and a note on its control if that is not drawn.
    fn panel(&self, i: usize, counts: &mut Vec<usize>) -> (Panel, Method, Option<String>) {
        let (style, quantity) = (&self.request.style, self.shown[i]);
        let all: Vec<_> =
            self.values.iter().flat_map(|setting| setting[i].values().flatten().copied()).collect();
        let log = range(&all).is_some_and(|range| style.is_log(range, quantity == Quantity::LossRatio));
        let floor = lowest(quantity.name(), all.iter().copied());
        let method = Method { lowest: floor, ..Method::new(self.request, log, all.iter().copied()) };
        let curve = |((setting, name), &style): ((&Vec<Values>, &String), &LineStyle)| {
            let points = setting[i].iter();
            let points =
                points.filter_map(|(&token, values)| Some((f64::from_bits(token), method.band(values)?)));
            let points: Vec<_> = points.collect();
            counts.extend(points.iter().map(|(_, of)| of.n));
            let mut line = Line::of_estimates(name, style, &[points], true);
            if !self.bands() {
                line.intervals.clear();
            }
            line
        };
        let lines: Vec<_> = self.values.iter().zip(&self.names).zip(&self.styles).map(curve).collect();
        let ends = y_range(&lines);
        let control = self.control(quantity, &method);
        let fits = |control: &Control| ends.is_some_and(|ends| control.fits(ends, log));
        let note = control.as_ref().filter(|control| !fits(control)).map(Control::note);
        let control = control.filter(fits);
        let beside = control.iter().flat_map(Control::values);
        let ends: Vec<_> = ends.into_iter().flat_map(|(low, high)| [low, high]).chain(beside).collect();
        let y = style.y_axis(range(&ends).unwrap_or((0.0, 1.0)), log);
        let x = style.x_within(Axis::tokens(&(0..self.tokens)));
        let mut panel = Panel::new((x, "tokens"), (y, timeline::title(quantity)));
        if let Some(labels) = &self.request.labels {
            panel.mark_labels(labels, &(0..self.tokens));
        }
        panel.lines = lines;
        let hues: Vec<_> = self.names.iter().cloned().zip(self.styles.iter().copied()).collect();
        let place = |(token, y)| (f64::from_bits(token), y);
        let points = |points: Vec<_>| vec![points.into_iter().map(place).collect()];
        panel.lines.extend(control.into_iter().flat_map(|control| control.lines(&[], &hues, points)));
        (panel, method, note)
    }
}
