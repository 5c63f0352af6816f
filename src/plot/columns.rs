//! Any columns of a metrics.csv against any other, with a panel per column and a colour per value of another column. Rows
//! that agree in x and the colour are averaged if x numbers the rows. Otherwise points are joined if x ascends from row to
//! row of a line, or else are dots. Columns against the head or the sequence are boxes.

use std::collections::{BTreeMap, HashMap};

use crate::error::{Error, Result};
use crate::io::labels::Labels;
use crate::io::table::{Column, Table};
use crate::plot::axis::Axis;
use crate::plot::chart::{BoxMark, Chart, Key, Line, LineStyle, Panel, Swatch, y_range};
use crate::plot::colours::range;
use crate::plot::downsample::{DownsampledLine, Point, Unshown};
use crate::plot::filter::{Metric, Rows, check_any};
use crate::plot::ignored_flags::stays_linear;
use crate::plot::source::{CsvSource, Kind};
use crate::plot::style::{FigureStyle, LogAxes};
use crate::plot::sweep::Method;
use crate::plot::{Check, Request, font, names, theme};
use crate::statistics::{MIN_FOR_INTERVAL, quantile};

/// Most numbers held in memory, sixteen bytes each. Timelines are read in passes and have no such limit.
const MAX_CELLS: usize = 1 << 25;
/// Most lines that a reader can distinguish.
const LINES: usize = 16;
/// Most boxes side by side.
const BOXES: usize = 64;
/// Bins of a joined line, each with up to four points.
const BINS: usize = 512;
/// Width of all boxes at a place, of which the space between two places is 1.
const WIDTH: f64 = 0.7;
/// Most bands around changes of topic that stay distinct where they overlap.
const BANDS: usize = 3;
/// Chunks before and after a change of topic that are shown.
const AROUND: usize = 16;
/// Columns that number the rows; others are measured.
const INDEX: [&str; 5] = ["sequence", "chunk", "head", "start", "end"];
/// Columns whose values have no order that a line could follow.
const GROUPS: [&str; 2] = ["head", "sequence"];

impl Metric<Column> {
    fn of_table(table: &Table, flag: &str, name: &str) -> Result<Self> {
        Self::find(name, "loss_before/loss", |name| table.optional_column(name)).ok_or_else(|| {
            let known = table.columns().map(|(_, name)| name).collect::<Vec<_>>().join(", ");
            Error::rejected(flag, format!("no column {name}; the columns are {known}"))
        })
    }

    /// Returns numerator and denominator, so that a mean of quotients is a quotient of sums.
    fn read(self, table: &Table) -> Result<Option<[f64; 2]>> {
        Ok(match self {
            Self::Column(column) => table.number(column)?.map(|value| [value, 1.0]),
            Self::Quotient(over, under) => {
                table.number(over)?.zip(table.number(under)?).map(|(over, under)| [over, under])
            }
        })
    }
}

/// The data of one value of the hue and, unless rows are averaged, one sequence: x and every y, row by row.
#[derive(Default)]
struct Series {
    hue: usize,
    x: Vec<f64>,
    y: Vec<Vec<Option<[f64; 2]>>>,
    /// Place of each x, if rows are averaged.
    places: HashMap<u64, usize>,
}

/// All data of a figure.
struct Data {
    all: Vec<Series>,
    hues: Vec<String>,
    averaged: bool,
    /// Count of the numbers held by all series.
    cells: usize,
}

/// Returns one chart of all sources, which must be metrics.csv files.
pub fn chart(
    sources: &[CsvSource],
    request: &Request,
    check: &mut Check,
    notes: &mut Vec<String>,
) -> Result<Chart> {
    let boxes = sources.iter().any(|source| source.kind == Kind::Boxes);
    let x = request.x.as_deref().unwrap_or(if boxes { "head" } else { "end" });
    let boxes = boxes || GROUPS.contains(&x);
    let default = ["surprise".to_owned()];
    let shown = if request.y.is_empty() { &default[..] } else { &request.y[..] };
    let averaged = !boxes && INDEX.contains(&x);
    let mut data = Data::new(averaged);
    for source in sources {
        // Boxes are of all rows, unless a colour was asked for.
        let hue = request.hue.as_deref().or(if boxes { None } else { Some("head") });
        data.read(source, sources.len() > 1, (x, shown, hue), request, check)?;
    }
    check_any(&request.filter, !data.all.is_empty())?;
    let unshown: Vec<_> = (0..shown.len()).map(|y| data.count_unshown(y)).collect();
    let log = request.style.log;
    if log.is_some_and(LogAxes::y) {
        let linear = shown.iter().enumerate().filter(|(y, _)| data.points(*y).any(|point| point.1 <= 0.0));
        notes.extend(linear.map(|(_, name)| stays_linear(name)));
    }
    if log.is_some_and(LogAxes::x)
        && (0..shown.len()).flat_map(|y| data.points(y)).any(|point| point.0 <= 0.0)
    {
        notes.push(stays_linear(x));
    }
    let name = format!("{}-{x}", shown.join("-")).replace('/', "_per_");
    let mut chart = Chart::new(&name, 1, if shown.len() > 1 { theme::STACKED } else { theme::ALONE });
    if boxes {
        data.boxes(x, shown, request, &mut chart)?;
    } else {
        data.lines(x, shown, request, &mut chart);
    }
    for (name, count) in shown.iter().zip(&unshown).filter(|(_, count)| **count > 0) {
        chart.omitted.push(format!("{name}: values not drawn: {count} not finite"));
    }
    let unshown: u64 = unshown.iter().sum();
    if unshown > 0 {
        chart.keys.push(Key::new(&format!("not finite: {unshown}"), Swatch::Mark));
    }
    Ok(chart)
}

impl Data {
    fn new(averaged: bool) -> Self {
        Self { all: Vec::new(), hues: Vec::new(), averaged, cells: 0 }
    }

    fn read(
        &mut self,
        source: &CsvSource,
        several: bool,
        (x, shown, hue): (&str, &[String], Option<&str>),
        request: &Request,
        check: &mut Check,
    ) -> Result<()> {
        let mut rows = Rows::open(&source.csv, &request.filter, check)?;
        let table = &rows.table;
        let x = Metric::of_table(table, "--x", x)?;
        let shown: Vec<_> =
            shown.iter().map(|name| Metric::of_table(table, "--y", name)).collect::<Result<_>>()?;
        let find = |name: &str| Metric::of_table(table, "--hue", name);
        let hue_column = match hue.map(find).transpose()? {
            Some(Metric::Quotient(..)) => {
                return Err(Error::rejected("--hue", "expected a single column, not a quotient"));
            }
            Some(Metric::Column(column)) => Some(column),
            None => None,
        };
        let (sequence, head) = (table.column("sequence")?, table.column("head")?);
        let (start, end) = (table.column("start")?, table.column("end")?);
        // Index of each series of this file by hue and sequence.
        let mut places = HashMap::<(Vec<u8>, Vec<u8>), usize>::new();
        while rows.advance()? {
            let table = &rows.table;
            let tokens = table.integer(start)?..table.integer(end)?;
            if !request.part.has_head(table.integer(head)?) || !request.part.has_tokens(&tokens) {
                continue;
            }
            let of_hue = hue_column.map(|column| table.text(column).to_vec()).unwrap_or_default();
            let of_sequence = if self.averaged { Vec::new() } else { table.text(sequence).to_vec() };
            let key = (of_hue, of_sequence);
            let place = if let Some(&place) = places.get(&key) {
                place
            } else {
                let hue = self.hue(Some(source).filter(|_| several), hue, &key.0)?;
                self.all.push(Series { hue, y: vec![Vec::new(); shown.len()], ..Series::default() });
                places.insert(key, self.all.len() - 1);
                self.all.len() - 1
            };
            let Some([over, under]) = x.read(table)? else { continue };
            let at = over / under;
            let series = &mut self.all[place];
            let known = series.places.get(&at.to_bits()).copied().filter(|_| self.averaged);
            if known.is_none() {
                self.cells += 1 + shown.len();
                table.check_kept(self.cells, MAX_CELLS)?;
                if self.averaged {
                    series.places.insert(at.to_bits(), series.x.len());
                }
                series.x.push(at);
            }
            for (values, value) in series.y.iter_mut().zip(&shown) {
                let value = value.read(table)?;
                match known {
                    None => values.push(value),
                    Some(place) => match (&mut values[place], value) {
                        (Some(sums), Some([over, under])) => {
                            sums[0] += over;
                            sums[1] += under;
                        }
                        (sums, value) => *sums = sums.or(value),
                    },
                }
            }
        }
        Ok(())
    }

    /// Returns the place of the name of a hue's value.
    fn hue(&mut self, source: Option<&CsvSource>, hue: Option<&str>, value: &[u8]) -> Result<usize> {
        let name = names::of_line(source, hue.map(|hue| names::of_value(hue, value)));
        if let Some(place) = self.hues.iter().position(|hue| *hue == name) {
            return Ok(place);
        }
        if self.hues.len() == LINES {
            return Err(names::too_many(hue.unwrap_or("head"), LINES));
        }
        self.hues.push(name);
        Ok(self.hues.len() - 1)
    }

    fn count_unshown(&self, y: usize) -> u64 {
        let points = self.all.iter().flat_map(|series| series.points(y));
        points.filter(|(x, y)| y.is_some_and(|y| !y.is_finite()) || !x.is_finite()).count() as u64
    }

    /// Returns all points of a panel that can be drawn.
    fn points(&self, y: usize) -> impl Iterator<Item = Point> {
        let points = self.all.iter().flat_map(move |series| series.points(y));
        let points = points.filter_map(|(x, y)| Some((x, y?)));
        points.filter(|(x, y)| x.is_finite() && y.is_finite())
    }

    fn y_axis(&self, y: usize, name: &str, style: &FigureStyle) -> Axis {
        let values: Vec<_> = self.points(y).map(|point| point.1).collect();
        range(&values).map_or_else(Axis::default, |range| {
            style.y_axis(range, style.is_log(range, name == "loss_ratio" || name.contains('/')))
        })
    }

    fn lines(&mut self, x_name: &str, shown: &[String], request: &Request, chart: &mut Chart) {
        let style = &request.style;
        if self.averaged {
            self.all.iter_mut().for_each(Series::sort);
        }
        let joined = self.averaged || self.all.iter().all(|series| series.x.is_sorted());
        let of_joined = |style| LineStyle { width: 0.75 * theme::SERIES, ..style };
        let styles = LineStyle::of_colours(style.colours(self.hues.len()), style.theme).into_iter();
        let styles = styles.map(|style| if joined { of_joined(style) } else { style.apart() });
        let styles: Vec<_> = styles.collect();
        if self.hues.len() > 1 {
            let hues = self.hues.iter().zip(&styles);
            chart.keys.extend(hues.map(|(name, &style)| Key::line(name, style)));
        }
        let xs: Vec<_> = (0..shown.len()).flat_map(|y| self.points(y)).map(|point| point.0).collect();
        let x = range(&xs).map_or_else(Axis::default, |range| {
            style.x_axis(range, range.0 > 0.0 && style.log.is_some_and(LogAxes::x))
        });
        for (y, name) in shown.iter().enumerate() {
            let mut panel = Panel::new(
                (x.clone(), &x_title(x_name)),
                (self.y_axis(y, name, style), &name.replace('_', " ")),
            );
            for series in &self.all {
                let stretches = if joined {
                    let mut line = DownsampledLine::new(BINS, false);
                    series
                        .points(y)
                        .filter(|(x, _)| x.is_finite())
                        .for_each(|(x, value)| line.push(x, value));
                    let lost = line.places(Unshown::NotFinite);
                    panel.above.extend(lost.map(|range| (*range.start(), *range.end())));
                    line.stretches()
                } else {
                    let points =
                        series.points(y).filter_map(|(x, y)| Some((x, y.filter(|y| y.is_finite())?)));
                    vec![points.filter(|(x, _)| x.is_finite()).collect()]
                };
                panel.lines.push(Line::new(&self.hues[series.hue], styles[series.hue], stretches));
            }
            chart.panels.push(panel);
        }
        if self.averaged && self.all.iter().any(Series::averaged) {
            chart.notes.push("means over rows of the same x and line".to_owned());
        }
    }

    fn boxes(&self, x_name: &str, shown: &[String], request: &Request, chart: &mut Chart) -> Result<()> {
        let style = &request.style;
        let mut places: Vec<_> = self.all.iter().flat_map(|series| series.x.iter().copied()).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        let n = self.hues.len().max(1);
        if places.len() * n > BOXES {
            let reason = format!(
                "{} boxes are too many (at most {BOXES}); choose some with --where or --heads",
                places.len() * n
            );
            return Err(Error::rejected("--kind boxes", reason));
        }
        let colours = style.colours(n);
        if n > 1 {
            chart.keys.extend(
                self.hues.iter().zip(&colours).map(|(name, &colour)| Key::new(name, Swatch::Area(colour))),
            );
        }
        let names: Vec<_> = places.iter().map(ToString::to_string).collect();
        let width = WIDTH / n as f64;
        let mut few = false;
        for (y, name) in shown.iter().enumerate() {
            let axes = (Axis::slots(&names), self.y_axis(y, name, style));
            let mut panel = Panel::new((axes.0, &x_title(x_name)), (axes.1, &name.replace('_', " ")));
            let mut groups = BTreeMap::<(usize, usize), Vec<f64>>::new();
            for series in &self.all {
                for (x, value) in series.points(y) {
                    let place = places.binary_search_by(|other| other.total_cmp(&x)).unwrap_or(0);
                    groups
                        .entry((place, series.hue))
                        .or_default()
                        .extend(value.filter(|value| value.is_finite()));
                }
            }
            groups.retain(|_, values| !values.is_empty());
            for ((place, hue), values) in groups {
                let at = place as f64 + 0.5 + (hue as f64 - (n as f64 - 1.0) / 2.0) * width;
                let line_style = LineStyle::line(colours[hue], theme::SERIES, 1.0, Some(hue));
                let name = [Some(names[place].clone()), self.hues.get(hue).cloned()];
                let name =
                    name.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ");
                if values.len() < MIN_FOR_INTERVAL {
                    few = true;
                    let points = values.iter().map(|&value| (at, value)).collect();
                    panel.lines.push(Line::new(&name, line_style.of_values(), vec![points]));
                    continue;
                }
                let quantiles = [0.0, 0.25, 0.5, 0.75, 1.0].map(|at| quantile(&values, at));
                panel.boxes.push(BoxMark {
                    name,
                    style: line_style,
                    x: at,
                    width: width * 0.9,
                    n: values.len(),
                    values: quantiles,
                });
            }
            chart.panels.push(panel);
        }
        chart.notes.push("boxes: quartiles and median; whiskers: lowest and highest".to_owned());
        if few {
            chart.notes.push("dots: the values, where there are few".to_owned());
        }
        Ok(())
    }
}

impl Series {
    fn points(&self, y: usize) -> impl Iterator<Item = (f64, Option<f64>)> {
        self.x.iter().zip(&self.y[y]).map(|(&x, value)| (x, value.map(|[over, under]| over / under)))
    }

    /// Sorts averaged rows by x.
    fn sort(&mut self) {
        let mut order: Vec<_> = (0..self.x.len()).collect();
        order.sort_by(|&a, &b| self.x[a].total_cmp(&self.x[b]));
        self.x = order.iter().map(|&i| self.x[i]).collect();
        for values in &mut self.y {
            *values = order.iter().map(|&i| values[i]).collect();
        }
    }

    /// Whether any point is a mean of several rows.
    fn averaged(&self) -> bool {
        self.y.iter().flatten().flatten().any(|[_, under]| (*under - 1.0).abs() > 1e-9)
    }
}

fn x_title(name: &str) -> String {
    match name {
        "start" | "end" => "tokens".to_owned(),
        name => name.replace('_', " "),
    }
}

/// Returns the loss ratio, or another column, around changes of topic: the mean over the changes and its interval. A chunk
/// beyond the next or previous change is skipped.
pub fn topics(sources: &[CsvSource], request: &Request, check: &mut Check) -> Result<Chart> {
    let Some(labels) = &request.labels else {
        return Err(Error::rejected("--kind topics", "needs the changes of topic; add --labels FILE.csv"));
    };
    let style = &request.style;
    let name = request.y.first().map_or("loss_ratio", |name| name);
    let mut chart = Chart::new(&format!("topics-{}", name.replace('/', "_per_")), 1, theme::ALONE);
    let log = style.log.is_some_and(LogAxes::y);
    let mut of_runs = Vec::new();
    for source in sources {
        let mut data = Data::new(true);
        data.read(source, false, ("start", &[name.to_owned()], None), request, check)?;
        check_any(&request.filter, !data.all.is_empty())?;
        let mut series = data.all.pop().unwrap_or_default();
        series.sort();
        let values: Vec<_> = if series.y.is_empty() { Vec::new() } else { series.points(0).collect() };
        of_runs.push(around(&values, labels));
    }
    let all = of_runs.iter().flat_map(BTreeMap::values).flatten().copied();
    let mut method = Method::new(request, log, all);
    (method.what, method.values_if_few) = ("changes of topic", false);
    let bands = sources.len() <= BANDS;
    let (mut lines, mut counts) = (Vec::new(), Vec::new());
    let styles = LineStyle::of_colours(style.colours(sources.len()), style.theme).into_iter();
    for ((source, by_offset), line_style) in sources.iter().zip(&of_runs).zip(styles.map(LineStyle::marked)) {
        let points =
            by_offset.iter().filter_map(|(&offset, values)| Some((offset as f64, method.band(values)?)));
        let points: Vec<_> = points.collect();
        counts.extend(points.iter().map(|(_, of)| of.n));
        let run = font::plain(&source.name);
        if sources.len() > 1 {
            chart.keys.push(Key::line(&run, line_style));
        }
        lines.push(Line::of_estimates(&run, line_style, &[points], bands));
    }
    let y = y_range(&lines).unwrap_or((0.0, 1.0));
    let title =
        if name == "loss_ratio" { "loss ratio (before ÷ at W)".to_owned() } else { name.replace('_', " ") };
    let offsets: Vec<_> =
        lines.iter().flat_map(|line| line.stretches.iter().flatten()).map(|point| point.0).collect();
    let x = style.x_axis(range(&offsets).unwrap_or((-1.0, 1.0)), false);
    let mut panel =
        Panel::new((x, "chunks since a change of topic"), (style.y_axis(y, log && y.0 > 0.0), &title));
    panel.rules.push(-0.5);
    if counts.is_empty() {
        panel.message = Some("no change of topic");
    }
    panel.lines = lines;
    chart.notes.extend(method.note(&counts, if bands { "bands" } else { "bars" }));
    chart.panels.push(panel);
    Ok(chart)
}

/// Values by their distance in chunks from a change of topic.
type ByOffset = BTreeMap<i64, Vec<f64>>;

/// Returns the values by their distance in chunks from a change. The first token of a chunk is its x.
fn around(values: &[(f64, Option<f64>)], labels: &Labels) -> ByOffset {
    let chunk = |token: u64| values.partition_point(|(start, _)| *start <= token as f64).checked_sub(1);
    let mut changes: Vec<_> = labels.boundaries.iter().filter_map(|&token| chunk(token)).collect();
    changes.dedup();
    // The last chunk may end before tokens that have labels.
    changes.retain(|&chunk| chunk + 1 < values.len());
    let mut by_offset = ByOffset::new();
    for (i, &change) in changes.iter().enumerate() {
        let first = if i > 0 { changes[i - 1] } else { 0 }.max(change.saturating_sub(AROUND));
        let last = changes.get(i + 1).copied().unwrap_or(values.len()).min(change + AROUND + 1);
        for (chunk, (_, value)) in values.iter().enumerate().take(last).skip(first) {
            if let Some(value) = value.filter(|value| value.is_finite()) {
                by_offset
                    .entry(chunk.cast_signed() as i64 - change.cast_signed() as i64)
                    .or_default()
                    .push(value);
            }
        }
    }
    by_offset
}

#[cfg(test)]
mod tests {
    use super::{Labels, around};

    #[test]
    fn chunks_are_aligned_on_changes() {
        let values: Vec<_> = (0..8).map(|i| (f64::from(4 * i), Some(f64::from(i)))).collect();
        let labels = Labels { boundaries: vec![8, 21, 400], ..Labels::default() };
        let by_offset = around(&values, &labels);
        // Changes lie in chunks 2 and 5.
        assert_eq!((&by_offset[&0][..], &by_offset[&-1][..]), (&[2.0, 5.0][..], &[1.0, 4.0][..]));
        assert_eq!((&by_offset[&2][..], &by_offset[&-3][..]), (&[4.0, 7.0][..], &[2.0][..]));
        assert!(!by_offset.contains_key(&3), "chunk 5 belongs to the next topic");
    }
}
