//! Cells of one metric in panels, drawn as lines with bands or bars, as maps, or as bars of differences.

use std::collections::BTreeMap;

use super::control::{Control, widened};
use super::results::{Cell, Metric, Parameter, Results};
use super::{
    CENSORED, LINES, Layout, Method, PANELS, RATIO, Scale, baseline, better, labels, lowest, metric_title,
    parameter_axis, parameter_title, symbol, words,
};
use crate::error::{Error, Result};
use crate::plot::axis::Axis;
use crate::plot::chart::{self, Bar, Chart, Key, Line, LineStyle, Map, Panel as ChartPanel, Swatch};
use crate::plot::colours::{Colours, range};
use crate::plot::downsample::Point;
use crate::plot::ignored_flags::stays_linear;
use crate::plot::names::short;
use crate::plot::source::Kind;
use crate::plot::style::LogAxes;
use crate::plot::{Request, theme};
use crate::statistics::Estimate;

/// Most bands that stay distinct where they overlap.
const BANDS: usize = 3;
/// Height of a single panel of lines; below, of each of several.
const ALONE: f64 = 170.0;
/// Height of a slot of a map; below, the minimum and maximum height of a panel.
const SLOT: f64 = 16.0;
const MIN_HEIGHT: f64 = 80.0;
const MAX_HEIGHT: f64 = 200.0;
/// Width of all bars at a value, of which the space between two values is 1.
const BARS: f64 = 0.7;
/// Half the length of a control's level at a word, where the space between two words is 1.
const LEVEL: f64 = 0.35;
/// Maximum number of points that the note on events lists.
const MAX_EVENTS: usize = 3;

/// One metric, ready for drawing.
pub struct Grid<'a> {
    request: &'a Request,
    results: &'a Results,
    layout: &'a Layout,
    name: &'a str,
    title: String,
    ratio: bool,
    log: bool,
    method: Method,
    /// Whether values are differences to a baseline.
    differences: Option<String>,
    control: Option<Control>,
    panels: Vec<Panel>,
    omitted: usize,
}

/// Cells of one panel, by values of hue and x.
struct Panel {
    /// Values of the parameters that have panels.
    key: Vec<usize>,
    heading: String,
    cells: BTreeMap<(usize, usize), Cell>,
}

impl<'a> Grid<'a> {
    pub fn new(
        results: &'a Results,
        layout: &'a Layout,
        name: &'a str,
        metric: Metric,
        request: &'a Request,
    ) -> Result<Self> {
        let base = baseline(results, &request.baseline)?;
        let by: Vec<_> = layout.panels.iter().copied().chain(layout.hue).chain([layout.x]).collect();
        let mut all = BTreeMap::<Vec<usize>, BTreeMap<(usize, usize), Cell>>::new();
        if layout.columns.is_some() {
            // A place without runs stays empty.
            let keys = layout.panels.iter().fold(vec![Vec::new()], |keys, &i| {
                let values = 0..results.parameters[i].values.len();
                keys.iter()
                    .flat_map(|key: &Vec<usize>| {
                        values.clone().map(move |value| [&key[..], &[value]].concat())
                    })
                    .collect()
            });
            all.extend(keys.into_iter().map(|key| (key, BTreeMap::new())));
        }
        for (key, cell) in results.cells(metric, &by, base.as_ref()) {
            let (of_panel, of_cell) = key.split_at(layout.panels.len());
            let hue = if layout.hue.is_some() { of_cell[0] } else { 0 };
            all.entry(of_panel.to_vec()).or_default().insert((hue, of_cell[of_cell.len() - 1]), cell);
        }
        let omitted = all.len().saturating_sub(PANELS);
        let parameters: Vec<_> = layout.panels.iter().map(|&i| &results.parameters[i]).collect();
        let labels: Vec<_> = parameters.iter().map(|parameter| labels(parameter)).collect();
        let heading = |key: &[usize]| {
            let values = parameters.iter().zip(&labels).zip(key);
            let parts =
                values.map(|((of, labels), &value)| format!("{} {}", symbol(&of.name), labels[value]));
            parts.collect::<Vec<_>>().join(", ")
        };
        let panels = all.into_iter().take(PANELS);
        let panels: Vec<_> =
            panels.map(|(key, cells)| Panel { heading: heading(&key), key, cells }).collect();
        let differences = (!request.baseline.is_empty()).then(|| {
            let settings = request.baseline.iter().map(|(name, value)| format!("{} {value}", symbol(name)));
            settings.collect::<Vec<_>>().join(", ")
        });
        let ratio = differences.is_none()
            && (matches!(metric, Metric::Quotient(..)) || matches!(name, "retained_ratio" | "loss_ratio"));
        let title = match (name, metric) {
            ("loss_ratio", Metric::Quotient(..)) => metric_title(RATIO),
            ("loss_ratio", Metric::Column(_)) => "loss of kept chunks ÷ at W".to_owned(),
            _ => metric_title(name),
        };
        let title = differences.as_ref().map_or(title.clone(), |base| format!("Δ {title},\nfrom {base}"));
        let all = || {
            panels.iter().flat_map(|panel| panel.cells.values()).flat_map(|cell| cell.finite.iter().copied())
        };
        let floor = if differences.is_some() { f64::NEG_INFINITY } else { lowest(name, all()) };
        let censored = name == CENSORED;
        let method = |log| Method { lowest: floor, censored, ..Method::new(request, log, all()) };
        let linear = method(false);
        let centres: Vec<_> = panels
            .iter()
            .flat_map(|panel| panel.cells.values())
            .filter_map(|cell| Some(linear.estimate(cell)?.center))
            .collect();
        let positive = all().all(|value| value > 0.0);
        let log = range(&centres).is_some_and(|range| request.style.is_log(range, ratio))
            && (positive || request.style.log.is_some());
        let method = method(log);
        let keys: Vec<_> = panels.iter().map(|panel| &panel.key).collect();
        // In a difference to a baseline the control cancels out.
        let control = if base.is_none() { Control::find(results, name, &by, &keys, &method) } else { None };
        Ok(Self {
            request,
            results,
            layout,
            name,
            title,
            ratio,
            log,
            method,
            differences,
            control,
            panels,
            omitted,
        })
    }

    fn cells(&self) -> impl Iterator<Item = &Cell> {
        self.panels.iter().flat_map(|panel| panel.cells.values())
    }

    fn centers(&self) -> Vec<f64> {
        self.cells().filter_map(|cell| Some(self.method.estimate(cell)?.center)).collect()
    }

    /// Whether the metric has finite values that are not all the same.
    pub fn is_informative(&self) -> bool {
        let same = |(low, high): (f64, f64)| high - low <= 1e-9 * low.abs().max(high.abs());
        let lost = || self.cells().any(|cell| cell.lost > 0);
        range(&self.centers()).is_some_and(|range| !same(range) || lost())
    }

    /// Returns the notes on what is not drawn, or not as requested.
    pub fn notes_for_user(&self, name: &str) -> Vec<String> {
        let omitted = (self.omitted > 0).then(|| {
            format!("{name}: {} more panels not drawn; choose other parameters with --x and --hue, or a part with --where", self.omitted)
        });
        let asked = self.request.style.log.is_some_and(LogAxes::y);
        let linear = asked && range(&self.centers()).is_some_and(|(low, _)| low <= 0.0);
        let replaced = self
            .method
            .is_replaced(self.request)
            .then(|| format!("{name}: means instead of geometric means, because some values are 0 or below"));
        omitted.into_iter().chain(linear.then(|| stays_linear(name))).chain(replaced).collect()
    }

    fn x(&self) -> &'a Parameter {
        &self.results.parameters[self.layout.x]
    }

    fn hue(&self) -> Option<&'a Parameter> {
        self.layout.hue.map(|hue| &self.results.parameters[hue])
    }

    pub fn chart(&self, name: &str, kind: Kind) -> Chart {
        let columns = self.layout.columns.unwrap_or(match self.panels.len() {
            0 | 1 => 1,
            2 | 4 => 2,
            _ => 3,
        });
        let mut chart = Chart::new(name, columns, if self.panels.len() > 1 { theme::AMONG } else { ALONE });
        let marks = match self.hue() {
            _ if kind == Kind::Ablation => self.bars(&mut chart),
            Some(hue) if kind == Kind::Map || hue.values.len() > LINES => self.maps(hue, &mut chart),
            _ => self.lines(&mut chart),
        };
        let counts: Vec<_> = self.cells().filter_map(|cell| Some(self.method.estimate(cell)?.n)).collect();
        let what =
            if self.differences.is_some() { "differences, paired by all other settings: " } else { "" };
        let note = self.method.note(&counts, marks).map(|note| format!("{what}{note}"));
        chart.notes.splice(0..0, note);
        let lost: usize = self.cells().map(|cell| cell.lost).sum();
        if lost > 0 {
            let text =
                format!("failed, stopped, diverged or not finite: {lost} of {} runs", self.results.len());
            // A run that failed has no result, so all figures of the table would say the same.
            let of = if lost == self.results.lost() { String::new() } else { format!("{name}: ") };
            chart.omitted.push(format!("{of}{text}"));
            chart.keys.push(Key::new(&text, Swatch::Mark));
        }
        let name = |i: usize| words(&self.results.parameters[i].name);
        for &(parameter, other) in &self.layout.along {
            chart.notes.push(format!("{} goes with {}", name(parameter), name(other)));
        }
        chart
    }

    fn panel(&self, i: usize, x: &Axis, (y, y_title): (&Axis, &str)) -> ChartPanel {
        let mut panel = ChartPanel::new((x.clone(), &parameter_title(&self.x().name)), (y.clone(), y_title));
        panel.heading.clone_from(&self.panels[i].heading);
        panel
    }

    /// Returns the control if the axis of the centres can show it.
    fn drawn_control(&self) -> Option<&Control> {
        let range = range(&self.centers())?;
        self.control.as_ref().filter(|control| control.fits(range, self.log))
    }

    /// Returns an axis around all centres and their intervals, and whether it cuts any. Intervals wider than three times the
    /// range of the centres are cut.
    fn y_axis(&self, from_zero: bool) -> (Axis, bool) {
        let style = &self.request.style;
        let Some((low, high)) = range(&self.centers()) else { return (Axis::linear(0.0, 1.0), false) };
        let (low, high) = if from_zero { (low.min(0.0), high.max(0.0)) } else { (low, high) };
        let (floor, ceiling) = widened((low, high), self.log);
        let ends = self.cells().filter_map(|cell| self.method.estimate(cell)?.interval);
        let values = self.cells().flat_map(|cell| self.method.values(cell)).copied();
        let control = self.drawn_control().filter(|_| !from_zero).into_iter().flat_map(Control::values);
        let values = values.chain(control).map(|value| (value, value));
        let (mut from, mut to, mut cut) = (low, high, false);
        for (a, b) in ends.chain(values) {
            cut |= a < floor || b > ceiling;
            from = from.min(a.max(floor));
            to = to.max(b.min(ceiling));
        }
        (style.y_axis((from, to), self.log), cut)
    }

    /// Adds panels of lines and returns the name of their intervals.
    fn lines(&self, chart: &mut Chart) -> &'static str {
        let hue = self.hue();
        let style = &self.request.style;
        let (y, cut) = self.y_axis(false);
        if cut {
            chart.notes.push("intervals and runs cut at the edge".to_owned());
        }
        let scale = Scale::choose(self.x(), style);
        let (x, places) = parameter_axis(self.x(), scale, style);
        // Words have no scale, so nothing lies between two of them.
        let joined = self.x().is_numeric();
        let n = hue.map_or(1, |hue| hue.values.len());
        let colours =
            if hue.is_some_and(Parameter::is_numeric) { style.ordered_colours(n) } else { style.colours(n) };
        let bands = joined && n <= BANDS;
        let styles = LineStyle::of_colours(colours, style.theme).into_iter();
        let styles = styles.map(|style| LineStyle { joined, ..style.marked() });
        let hues: Vec<_> = names_of(hue).into_iter().zip(styles).collect();
        // A single line has a key only if its control has one.
        if hue.is_some() || self.drawn_control().is_some() {
            chart.keys = hues.iter().map(|(name, style)| Key::line(name, *style)).collect();
        }
        for (i, cells) in self.panels.iter().enumerate() {
            let mut panel = self.panel(i, &x, (&y, &self.title));
            let mut values = Vec::new();
            for (line, (name, line_style)) in hues.iter().enumerate() {
                // Lines lie side by side in unjoined slots, so that bars do not hide each other.
                let apart = scale == Scale::Slots && !joined;
                let aside = if apart { (line as f64 - (n as f64 - 1.0) / 2.0) * 0.5 / n as f64 } else { 0.0 };
                let place = |x: usize| places[x] + aside;
                let stretches = self.stretches(cells, line, place);
                let of_line = cells.cells.range((line, 0)..(line + 1, 0));
                let runs = of_line.flat_map(|(&(_, x), cell)| {
                    self.method.values(cell).iter().map(move |&value| (place(x), value))
                });
                let runs: Vec<_> = runs.collect();
                if !runs.is_empty() {
                    let name = format!("{name}: runs");
                    values.push(Line::new(&name, line_style.of_values(), vec![runs]));
                }
                panel.lines.push(Line::of_estimates(name, *line_style, &stretches, bands));
            }
            panel.lines.extend(values);
            let control = |points: Vec<(u64, f64)>| -> Vec<Vec<Point>> {
                let points = points.into_iter().map(|(x, y)| (places[x as usize], y));
                if joined {
                    return vec![points.collect()];
                }
                points.map(|(x, y)| vec![(x - LEVEL, y), (x + LEVEL, y)]).collect()
            };
            let controls = self.drawn_control().map(|of| of.lines(&cells.key, &hues, control));
            panel.lines.extend(controls.into_iter().flatten());
            for (value, &x) in places.iter().enumerate() {
                let lost = |line: &usize| cells.cells.get(&(*line, value)).is_some_and(|cell| cell.lost > 0);
                let lost: Vec<_> = (0..n).filter(lost).collect();
                if !lost.is_empty() {
                    panel.lost.push((x, lost));
                }
            }
            chart.panels.push(panel);
        }
        chart.notes.extend(self.note_on_events(&hues));
        if let Some(control) = self.drawn_control() {
            chart.keys.push(Key::line(control.name, Control::style(n)));
        } else {
            chart.notes.extend(self.note_on_control());
        }
        if bands { "bands" } else { "bars" }
    }

    /// Describes the control where it is not drawn, with the metric's name if figures are joined.
    fn note_on_control(&self) -> Option<String> {
        let note = self.control.as_ref().map(Control::note)?;
        Some(if self.request.panels { format!("{}: {note}", words(self.name)) } else { note })
    }

    /// Returns how many runs reached the event, and where only some of a point's runs did. Maps say so in their cells.
    fn note_on_events(&self, lines: &[(String, LineStyle)]) -> Option<String> {
        let counted = self.method.censored && self.differences.is_none();
        if !counted || self.cells().all(|cell| cell.absent == 0) {
            return None;
        }
        let events: usize = self.cells().map(|cell| cell.finite.len()).sum();
        let runs = events + self.cells().map(|cell| cell.absent).sum::<usize>();
        let (x, values) = (symbol(&self.x().name), labels(self.x()));
        let mut some = Vec::new();
        for panel in &self.panels {
            let cells = panel.cells.iter().filter(|(_, cell)| cell.absent > 0 && !cell.finite.is_empty());
            some.extend(cells.map(|(key, cell)| (&panel.heading, key, cell.finite.len(), cell.absent)));
        }
        let at = some.iter().map(|(heading, (line, value), events, absent)| {
            let place = [heading.as_str(), if self.layout.hue.is_some() { &lines[*line].0 } else { "" }];
            let place = place.into_iter().filter(|part| !part.is_empty()).map(|part| format!("{part}, "));
            format!("{events} of {} at {}{x} {}", events + absent, place.collect::<String>(), values[*value])
        });
        let at = match some.len() {
            0 => String::new(),
            1..=MAX_EVENTS => format!(" ({})", at.collect::<Vec<_>>().join("; ")),
            more => format!(" (only some of them at {more} points)"),
        };
        Some(format!("{events} of {runs} finished runs became unstable{at}"))
    }

    /// Returns a line's centres by value of x, broken where all runs were lost or never reached the event.
    fn stretches(
        &self,
        panel: &Panel,
        line: usize,
        place: impl Fn(usize) -> f64,
    ) -> Vec<Vec<(f64, Estimate)>> {
        let cells = panel.cells.range((line, 0)..(line + 1, 0));
        let mut stretches = vec![Vec::new()];
        for (&(_, x), cell) in cells {
            match (self.method.estimate(cell), stretches.last_mut()) {
                (Some(estimate), Some(open)) => open.push((place(x), estimate)),
                _ if cell.lost > 0 || self.method.censored => stretches.push(Vec::new()),
                _ => {}
            }
        }
        stretches.retain(|stretch| !stretch.is_empty());
        stretches
    }

    fn maps(&self, hue: &Parameter, chart: &mut Chart) -> &'static str {
        let style = &self.request.style;
        chart.height = (hue.values.len() as f64 * SLOT).clamp(MIN_HEIGHT, MAX_HEIGHT);
        let y = Axis::slots(&labels(hue));
        let (x, _) = parameter_axis(self.x(), Scale::Slots, style);
        let centers = self.centers();
        let colours = if self.ratio && centers.iter().all(|&ratio| ratio > 0.0) {
            Colours::about_one(&centers, style)
        } else {
            Colours::sequential(&centers, self.log, style)
        };
        let absent = self.cells().any(|cell| cell.absent > 0 && self.method.estimate(cell).is_none());
        if absent {
            let text =
                if self.method.censored { "never unstable, in half of the runs or more" } else { "no value" };
            chart.keys.push(Key::new(text, Swatch::Area(theme::SHADE)));
        }
        for (i, cells) in self.panels.iter().enumerate() {
            let mut panel = self.panel(i, &x, (&y, &parameter_title(&hue.name)));
            let shown = cells.cells.iter().filter_map(|(&(row, column), cell)| {
                let value = self.method.estimate(cell).map(|estimate| estimate.center);
                (value.is_some() || cell.absent > 0 || cell.lost > 0).then(|| chart::Cell {
                    column,
                    row,
                    value,
                    text: self.text(cell, value),
                    lost: cell.lost > 0 && (value.is_some() || cell.absent == 0),
                })
            });
            let mut map = Map {
                size: (self.x().values.len(), hue.values.len()),
                from: (0.0, 0.0),
                cell: (1.0, 1.0),
                cells: shown.collect(),
                colours: colours.clone(),
                title: self.title.clone(),
                best: None,
                square: false,
            };
            map.best = better(self.name).and_then(|direction| map.find_best(direction));
            panel.map = Some(map);
            chart.panels.push(panel);
        }
        let ends: Vec<_> = colours.notes_on_ends(&centers).collect();
        chart.notes.extend((!ends.is_empty()).then(|| ends.join("; ")));
        chart.notes.extend(self.note_on_best(hue, &chart.panels));
        chart.notes.extend(self.note_on_control());
        ""
    }

    /// Returns the number in a cell. Where some runs never reached the event, it says how many did.
    fn text(&self, cell: &Cell, value: Option<f64>) -> String {
        let (events, n) = (cell.finite.len(), cell.finite.len() + cell.absent);
        match value {
            Some(value) if self.method.censored && events < n => format!("{} ({events}/{n})", short(value)),
            Some(value) => short(value),
            None if self.method.censored && n > 1 => format!("{events}/{n}"),
            None => String::new(),
        }
    }

    /// Names the best setting of a single panel, which has a star.
    fn note_on_best(&self, hue: &Parameter, panels: &[ChartPanel]) -> Option<String> {
        let direction = better(self.name)?;
        let [ChartPanel { map: Some(map), .. }] = panels else {
            return Some(format!("star: {} of each panel", direction.best()));
        };
        let (column, row) = map.best?;
        let best = map.cells.iter().find(|cell| (cell.column, cell.row) == (column, row))?;
        let (x, y) = (&self.x().name, &hue.name);
        let (of_x, of_y) = (&labels(self.x())[column], &labels(hue)[row]);
        let what = direction.best();
        Some(format!("star: {what}, {} at {} {of_x}, {} {of_y}", short(best.value?), symbol(x), symbol(y)))
    }

    /// Adds panels of bars.
    fn bars(&self, chart: &mut Chart) -> &'static str {
        let style = &self.request.style;
        let (hue, n) = (self.hue(), self.hue().map_or(1, |hue| hue.values.len()));
        let (y, cut) = self.y_axis(true);
        if cut {
            chart.notes.push("intervals and runs cut at the edge".to_owned());
        }
        // The baseline itself has no difference, and no slot.
        let used: Vec<_> = (0..self.x().values.len())
            .filter(|&x| {
                self.panels.iter().any(|panel| (0..n).any(|line| panel.cells.contains_key(&(line, x))))
            })
            .collect();
        let names = labels(self.x());
        let x = Axis::slots(&used.iter().map(|&i| names[i].clone()).collect::<Vec<_>>());
        let colours = style.colours(n);
        let of_hue = names_of(hue);
        if hue.is_some() {
            let keys = of_hue.iter().zip(&colours);
            chart.keys = keys.map(|(name, &colour)| Key::new(name, Swatch::Area(colour))).collect();
        }
        let width = BARS / n as f64;
        for (i, cells) in self.panels.iter().enumerate() {
            let mut panel = self.panel(i, &x, (&y, &self.title));
            for (slot, line) in (0..used.len()).flat_map(|slot| (0..n).map(move |line| (slot, line))) {
                let Some(cell) = cells.cells.get(&(line, used[slot])) else { continue };
                let place = slot as f64 + 0.5 + (line as f64 - (n as f64 - 1.0) / 2.0) * width;
                if cell.lost > 0 {
                    panel.lost.push((place, vec![line]));
                }
                let Some(estimate) = self.method.estimate(cell) else { continue };
                panel.bars.push(Bar {
                    name: if hue.is_some() {
                        format!("{}, {}", names[used[slot]], of_hue[line])
                    } else {
                        names[used[slot]].clone()
                    },
                    style: LineStyle::line(colours[line], theme::SERIES, 1.0, Some(line)),
                    x: place,
                    width: width * 0.9,
                    n: estimate.n,
                    value: estimate.center,
                    interval: estimate.interval,
                    values: self.method.values(cell).to_vec(),
                });
            }
            chart.panels.push(panel);
        }
        "bars"
    }
}

/// Returns the names of the lines of a hue.
fn names_of(hue: Option<&Parameter>) -> Vec<String> {
    hue.map_or_else(
        || vec!["mean".to_owned()],
        |hue| labels(hue).iter().map(|label| format!("{} {label}", symbol(&hue.name))).collect(),
    )
}

/// Rejects a figure of differences without a baseline.
pub fn check_baseline(request: &Request) -> Result<()> {
    if request.baseline.is_empty() {
        let reason =
            "needs the setting to compare with; add --baseline PARAMETER=VALUE, such as --baseline decay=0";
        return Err(Error::rejected("--kind ablation", reason));
    }
    Ok(())
}
