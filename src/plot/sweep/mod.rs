//! results.csv of a sweep → a figure per metric: means over seeds with their 95 % interval against one parameter. Each
//! value of a second parameter has a line; many values make a colour map instead. All other parameters have panels.

mod chart;
mod lines;
mod map;
pub(super) mod results;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use crate::error::{Error, Result};
use crate::escape::for_figure;
use crate::plot::axis::Axis;
use crate::plot::canvas::{Canvas, svg};
use crate::plot::figure::{Figure, Figures};
use crate::plot::frame::{Frame, left_of, letter, title_lines};
use crate::plot::ignored_flags::stays_linear;
use crate::plot::legend::{Legend, Swatch};
use crate::plot::style::{FigureStyle, LogAxes};
use crate::plot::{font, names, theme};
pub(super) use chart::{charts, retention_charts};
use results::{Cell, Metric, Parameter, Results, Value};

/// Most lines in one panel; more values make a colour map.
const LINES: usize = 7;
/// Most panels; more would be too small to read.
const PANELS: usize = 12;
/// Minimum width of each column of panels.
const MIN_WIDTH: f64 = 112.0;
/// Most letters of a column's name in titles and notes.
const MAX_WORDS: usize = 60;
/// Distance between panels, which share their axes.
const BETWEEN: f64 = 12.0;
/// Room for a panel's heading.
const HEADING: f64 = 14.0;
/// Height of a single panel; below, of each of several.
const ALONE: f64 = 170.0;
const AMONG: f64 = 105.0;

/// The quotient that shows how far storing helped (below 1) or made the memory worse.
const RATIO: &str = "loss_before_mean/loss_mean";

/// The assignment of parameters and metrics to a figure. The data decide what is not set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepFigure {
    /// Parameter along the x axis.
    pub x: Option<String>,
    /// Columns with a figure each; `a/b` divides one by another.
    pub y: Vec<String>,
    /// Parameter whose values become lines, or rows of a map.
    pub hue: Option<String>,
    /// Whether to draw a map for any number of values of `hue`.
    pub map: bool,
}

/// Draws a sweep's figures, one per metric.
pub fn figures(results_csv: &Path, options: &SweepFigure, style: &FigureStyle) -> Result<Figures> {
    let results = Results::read(results_csv)?;
    let mut drawn = Figures::default();
    let Some(layout) = Layout::choose(&results, options)? else {
        drawn.notes.push("no figures: no parameter but the seed varies".to_owned());
        return Ok(drawn);
    };
    let metrics = metrics(&results, options)?;
    let asked = !options.y.is_empty();
    for (name, metric) in metrics {
        let figure = Grid { map: options.map, ..Grid::new(&results, &layout, &name, metric, style) };
        if !figure.is_informative() && !asked {
            continue;
        }
        let name = file_name(&name);
        if figure.omitted > 0 {
            drawn.notes.push(format!(
                "{name}: {} more panels not drawn; choose other parameters with --x and --hue",
                figure.omitted
            ));
        }
        drawn.notes.extend(figure.log_note(&name));
        drawn.figures.push(Figure { name, svg: figure.draw() });
    }
    if drawn.figures.is_empty() {
        drawn.notes.push("no figures: no result is finite".to_owned());
    }
    Ok(drawn)
}

/// Draws `retention`: loss ratio against lag, from the retention.csv of a sweep.
pub fn retention(retention_csv: &Path, options: &SweepFigure, style: &FigureStyle) -> Result<Figures> {
    let results = Results::read(retention_csv)?;
    let options =
        SweepFigure { x: Some("lag".to_owned()), y: Vec::new(), hue: options.hue.clone(), map: false };
    let layout = Layout::choose(&results, &options)?;
    let mut drawn = Figures::default();
    let Some((layout, metric)) = layout.zip(results.metric("loss_ratio")) else { return Ok(drawn) };
    let figure = Grid::new(&results, &layout, "loss_ratio", metric, style);
    drawn.figures.push(Figure { name: "retention".to_owned(), svg: figure.draw() });
    drawn.notes.extend(figure.log_note("retention"));
    drawn.notes.extend(
        (figure.omitted > 0)
            .then(|| format!("retention: {} more panels not drawn; choose another --hue", figure.omitted)),
    );
    Ok(drawn)
}

fn file_name(metric: &str) -> String {
    if metric == RATIO { "loss_ratio".to_owned() } else { metric.replace('/', "_per_") }
}

/// Returns the requested metrics, or the most informative ones.
fn metrics(results: &Results, options: &SweepFigure) -> Result<Vec<(String, Metric)>> {
    let named = |name: &String| Some((name.clone(), results.metric(name)?));
    if options.y.is_empty() {
        let loss =
            if results.metric("loss_before_mean").is_some() { "loss_before_mean" } else { "loss_mean" };
        let few = [loss, RATIO, "surprise_mean", "retained_ratio", "first_unstable_chunk", "tokens_per_s"];
        return Ok(few.into_iter().filter_map(|name| named(&name.to_owned())).collect());
    }
    let unknown = |name: &String| {
        let known = results.metrics.join(", ");
        Error::rejected("--y", format!("no numeric column {name}; pass a column, or two as a/b, of {known}"))
    };
    let found = options.y.iter().map(|name| named(name).ok_or_else(|| unknown(name)));
    found.collect()
}

/// The roles of the parameters, by index.
struct Layout {
    x: usize,
    hue: Option<usize>,
    panels: Vec<usize>,
    /// Parameters that are not drawn because they vary with another one.
    along: Vec<(usize, usize)>,
}

impl Layout {
    /// Chooses the layout. Returns `None` if only the seed varies and no parameter was requested.
    fn choose(results: &Results, options: &SweepFigure) -> Result<Option<Self>> {
        let parameters = &results.parameters;
        let find = |flag: &str, name: &Option<String>| {
            let Some(name) = name else { return Ok(None) };
            let found = parameters.iter().position(|parameter| parameter.name == *name);
            let names: Vec<_> = parameters.iter().map(|parameter| &parameter.name[..]).collect();
            let reason = || format!("no parameter {name}; the parameters are {}", names.join(", "));
            found.map(Some).ok_or_else(|| Error::rejected(flag, reason()))
        };
        let (x, hue) = (find("--x", &options.x)?, find("--hue", &options.hue)?);
        if x.is_some() && x == hue {
            let name = &parameters[x.unwrap_or_default()].name;
            return Err(Error::rejected("--hue", format!("{name} is also --x; choose another parameter")));
        }
        let chosen: Vec<_> = x.into_iter().chain(hue).collect();
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
            return Ok(hue.map(|x| Self { x, hue: None, panels: Vec::new(), along }));
        };
        let hue = hue.or_else(|| free.next());
        let mut panels: Vec<_> = free.collect();
        panels.sort_unstable();
        Ok(Some(Self { x, hue, panels, along }))
    }
}

/// One metric, ready for drawing.
struct Grid<'a> {
    style: &'a FigureStyle,
    results: &'a Results,
    layout: &'a Layout,
    title: String,
    /// Whether the metric is a ratio, which has a log axis and colours about 1.
    ratio: bool,
    /// Whether to draw a map for any number of values.
    map: bool,
    panels: Vec<Panel>,
    omitted: usize,
}

/// Cells of one panel, by values of hue and x.
struct Panel {
    heading: String,
    cells: BTreeMap<(usize, usize), Cell>,
}

impl<'a> Grid<'a> {
    fn new(
        results: &'a Results,
        layout: &'a Layout,
        name: &str,
        metric: Metric,
        style: &'a FigureStyle,
    ) -> Self {
        let by: Vec<_> = layout.panels.iter().copied().chain(layout.hue).chain([layout.x]).collect();
        let of_panels: Vec<_> = layout.panels.iter().map(|&i| labels(&results.parameters[i])).collect();
        let mut panels = BTreeMap::<Vec<usize>, Panel>::new();
        for (key, cell) in results.cells(metric, &by) {
            let (of_panel, of_cell) = key.split_at(layout.panels.len());
            let panel = panels.entry(of_panel.to_vec()).or_insert_with(|| {
                let values = layout.panels.iter().zip(&of_panels).zip(of_panel);
                let parts = values.map(|((&parameter, labels), &value)| {
                    format!("{} {}", symbol(&results.parameters[parameter].name), labels[value])
                });
                Panel { heading: parts.collect::<Vec<_>>().join(", "), cells: BTreeMap::new() }
            });
            let hue = if layout.hue.is_some() { of_cell[0] } else { 0 };
            panel.cells.insert((hue, of_cell[of_cell.len() - 1]), cell);
        }
        let omitted = panels.len().saturating_sub(PANELS);
        let panels = panels.into_values().take(PANELS).collect();
        let ratio = matches!(metric, Metric::Quotient(..)) || matches!(name, "retained_ratio" | "loss_ratio");
        Self { style, results, layout, title: metric_title(name), ratio, map: false, panels, omitted }
    }

    fn cells(&self) -> impl Iterator<Item = &Cell> {
        self.panels.iter().flat_map(|panel| panel.cells.values())
    }

    fn means(&self) -> impl Iterator<Item = f64> {
        self.cells().filter_map(Cell::estimate).map(|estimate| estimate.mean)
    }

    /// Returns the lowest and highest mean.
    fn range(&self) -> Option<(f64, f64)> {
        self.means().map(|mean| (mean, mean)).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
    }

    /// Whether the metric has finite values that are not all the same.
    fn is_informative(&self) -> bool {
        let same = |(low, high): (f64, f64)| high - low <= 1e-9 * low.abs().max(high.abs());
        self.range().is_some_and(|range| !same(range) || self.cells().any(|cell| cell.lost > 0))
    }

    fn is_log(&self) -> bool {
        if let Some(log) = self.style.log {
            return log.y() && self.range().is_some_and(|(low, _)| low > 0.0);
        }
        // The factor of thirty was chosen by eye.
        self.range().is_some_and(|(low, high)| low > 0.0 && (self.ratio || high > 30.0 * low))
    }

    fn log_note(&self, name: &str) -> Option<String> {
        let asked = self.style.log.is_some_and(LogAxes::y);
        (asked && self.range().is_some_and(|(low, _)| low <= 0.0)).then(|| stays_linear(name))
    }

    fn x(&self) -> &'a Parameter {
        &self.results.parameters[self.layout.x]
    }

    fn hue(&self) -> Option<&'a Parameter> {
        self.layout.hue.map(|hue| &self.results.parameters[hue])
    }

    fn draw(&self) -> String {
        match self.hue() {
            Some(hue) if self.map || hue.values.len() > LINES => map::draw(self, hue),
            _ => lines::draw(self),
        }
    }

    /// Draws the sheet: the legend, then every panel with `draw`. `right` is the room beside the last column.
    fn sheet(
        &self,
        legend: &Legend,
        axes: (&Axis, &Axis),
        y_title: &[String],
        (height, right): (f64, f64),
        draw: impl Fn(&mut Canvas, &Frame, &Panel),
        after: impl Fn(&mut Canvas, &Frame),
    ) -> String {
        let (columns, rows) = self.grid();
        let left = left_of([axes.1], y_title.len());
        let width = self.style.sheet_width() - left - right;
        let panel_width = panel_width(width, columns);
        let headed = self.headed();
        let top = self.top(legend);
        let sheet = top + (headed + height + 6.0) * rows as f64 + theme::BOTTOM;
        svg(self.style, sheet, |canvas| {
            legend.draw(canvas, theme::EDGE, theme::EDGE, self.legend_width());
            let place = |row: usize| top + headed + row as f64 * (headed + height + 6.0);
            for (i, panel) in self.panels.iter().enumerate() {
                let (row, column) = (i / columns, i % columns);
                let frame = Frame {
                    left: left + column as f64 * (panel_width + BETWEEN),
                    top: place(row),
                    width: panel_width,
                    height,
                    x: axes.0,
                    y: axes.1,
                };
                let lowest = i + columns >= self.panels.len();
                draw(canvas, &frame, panel);
                frame.draw_axes(canvas, lowest, column == 0);
                if !panel.heading.is_empty() {
                    frame.draw_heading(canvas, &panel.heading, letter(i, self.panels.len()));
                }
                if lowest {
                    frame.draw_x_title(canvas, &parameter_title(&self.x().name));
                }
            }
            let all = place(rows - 1) + height - place(0);
            let whole = Frame { left, top: place(0), width, height: all, x: axes.0, y: axes.1 };
            whole.draw_y_title(canvas, y_title, 0.0);
            after(canvas, &whole);
        })
    }

    /// Returns the numbers of columns and rows of panels.
    fn grid(&self) -> (usize, usize) {
        let fit =
            (1..4).take_while(|&columns| f64::from(columns) * MIN_WIDTH <= self.style.sheet_width()).count();
        let columns = match self.panels.len() {
            0 | 1 => 1,
            2 | 4 => 2,
            _ => 3,
        };
        let columns = columns.min(fit.max(1));
        (columns, self.panels.len().div_ceil(columns).max(1))
    }

    fn headed(&self) -> f64 {
        if self.layout.panels.is_empty() { 4.0 } else { HEADING }
    }

    fn legend_width(&self) -> f64 {
        self.style.sheet_width() - 2.0 * theme::EDGE
    }

    /// Returns the top of the first panel's heading.
    fn top(&self, legend: &Legend) -> f64 {
        theme::EDGE + legend.height(self.legend_width()) + 4.0
    }

    fn panel_height(&self, legend: &Legend, default: f64) -> f64 {
        let (_, rows) = self.grid();
        let rest = self.top(legend) + theme::BOTTOM + (self.headed() + 6.0) * rows as f64;
        self.style.panel_height(default, rows, rest)
    }

    /// Returns the title beside all rows of panels.
    fn y_title_lines(&self, title: &str, height: f64) -> Vec<String> {
        let (_, rows) = self.grid();
        title_lines(title, rows as f64 * (height + 6.0 + self.headed()) - self.headed())
    }

    /// Adds the notes that lines and maps share.
    fn notes(&self, legend: &mut Legend, spread: &str) {
        let counts = self.cells().filter_map(Cell::estimate).map(|estimate| estimate.n);
        let (few, most) = counts.fold((usize::MAX, 0), |(few, most), n| (few.min(n), most.max(n)));
        if most > 1 {
            let n = if few == most { most.to_string() } else { format!("{few} to {most}") };
            legend.notes.push(format!("means of {n} runs{spread}"));
        }
        let lost: usize = self.cells().map(|cell| cell.lost).sum();
        if lost > 0 {
            legend.entries.push((
                Swatch::Mark,
                format!("failed, diverged or not finite: {lost} of {} runs", self.results.len()),
            ));
        }
        let name = |i: usize| words(&self.results.parameters[i].name);
        for &(parameter, other) in &self.layout.along {
            legend.notes.push(format!("{} goes with {}", name(parameter), name(other)));
        }
    }
}

fn panel_width(width: f64, columns: usize) -> f64 {
    (width - BETWEEN * (columns - 1) as f64) / columns as f64
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

/// Returns the x axis of a parameter in a panel of this width, and the place of each value on it.
fn parameter_axis(parameter: &Parameter, scale: Scale, width: f64) -> (Axis, Vec<f64>) {
    let room = |text: &str| (font::width(text, theme::SMALL) + 5.0) / width;
    let labels = labels(parameter);
    let numbers = || parameter.values.iter().filter_map(|value| value.number);
    // Words are cut to their slot, so that each has a label. Numbers that do not fit have no label.
    let slot = (width / labels.len().max(1) as f64 - 6.0).max(12.0);
    let log = scale == Scale::Log;
    let (axis, places): (_, Vec<f64>) = match scale {
        Scale::Slots => (
            if parameter.is_numeric() {
                Axis::slots(&labels, room)
            } else {
                Axis::slots(&names::shortened(&labels, theme::SMALL, slot), room)
            },
            (0..labels.len()).map(|i| i as f64 + 0.5).collect(),
        ),
        // Ticks lie at the values if there are few, otherwise at round numbers.
        _ if labels.len() <= 11 => {
            (Axis::of_values(&numbers().zip(labels).collect::<Vec<_>>(), log, room), numbers().collect())
        }
        _ => {
            let (low, high) =
                numbers().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
            (if log { Axis::log(low, high) } else { Axis::linear(low, high) }, numbers().collect())
        }
    };
    (axis, places)
}

/// Returns the names of a parameter's values in axes and legends, as short as they can be and still distinct.
fn labels(parameter: &Parameter) -> Vec<String> {
    let short: Vec<_> = parameter.values.iter().map(label).collect();
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
        cut(&if value.number.is_some() { text.replace('-', "−") } else { text })
    };
    names::numbered(parameter.values.iter().zip(&short).map(longer).collect())
}

/// Cuts a text to at most 24 letters.
fn cut(text: &str) -> String {
    if text.chars().count() > 24 { text.chars().take(23).chain(['…']).collect() } else { text.to_owned() }
}

/// Returns a value's usual name: short and without markup.
fn label(value: &Value) -> String {
    let text = match value.number {
        Some(number) if value.text.len() > 6 || value.text.contains(['e', 'E']) => short(number),
        Some(_) => value.text.clone(),
        None if value.text.is_empty() => "none".to_owned(),
        // A path is shortened to its file name.
        None => value.text.rsplit('/').next().unwrap_or_default().to_owned(),
    };
    let of_text = || for_figure(&text).replace(['{', '}'], "|");
    cut(&if value.number.is_some() { text.replace('-', "−") } else { of_text() })
}

/// Formats a number with three significant digits, without trailing zeros, in powers of ten if plain digits would be long.
pub(super) fn short(number: f64) -> String {
    let size = number.abs();
    if size != 0.0 && !(1e-3..1e5).contains(&size) {
        let text = format!("{number:.2e}");
        let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
        return match digits.trim_end_matches('0').trim_end_matches('.') {
            "1" => format!("10^{{{power}}}"),
            digits => format!("{digits}·10^{{{power}}}"),
        };
    }
    let decade = if size == 0.0 { 0 } else { size.log10().floor() as i32 };
    let places = usize::try_from(2 - decade).unwrap_or(0);
    let text = format!("{number:.places$}");
    if places == 0 { text } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
}

fn words(name: &str) -> String {
    let words = name.trim_start_matches('_').replace('_', " ").replace(['{', '}'], "|");
    let words = for_figure(&words);
    if words.chars().count() > MAX_WORDS {
        return words.chars().take(MAX_WORDS - 1).chain(['…']).collect();
    }
    words.into_owned()
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

fn metric_title(name: &str) -> String {
    let known = match name {
        "loss_mean" => "loss at W, per token",
        "loss_before_mean" => "loss before storing, per token",
        "loss_after_mean" => "loss after storing, per token",
        RATIO => "loss before storing ÷ at W",
        "surprise_mean" => "surprise ‖g‖",
        "loss_ratio" => "loss of kept chunks ÷ at W",
        "retained_ratio" => "loss of what is kept ÷ at W",
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
    use super::{Parameter, Scale, Value, label, short};

    fn parameter(values: &[&str]) -> Parameter {
        let value = |text: &&str| Value { text: (*text).to_owned(), number: text.parse().ok() };
        Parameter { name: "p".to_owned(), values: values.iter().map(value).collect() }
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
        let text = |text: &str| label(&parameter(&[text]).values[0]);
        assert_eq!(text("0.05"), "0.05");
        assert_eq!(text("-0.5"), "−0.5");
        assert_eq!(text("0.012589254117941675"), "0.0126");
        assert_eq!(text("0.00012589254117941675"), "1.26·10^{−4}");
        assert_eq!(text("1000000000"), "10^{9}");
        assert_eq!(text("1e-05"), "10^{−5}");
        assert_eq!(text(""), "none");
        assert_eq!(text("../data/{a}.npy"), "|a|.npy");
        assert_eq!(text(&"x".repeat(40)).chars().count(), 24);
        assert_eq!([short(1234.6), short(99_999.0), short(0.5), short(0.0)], ["1235", "99999", "0.5", "0"]);
    }
}
