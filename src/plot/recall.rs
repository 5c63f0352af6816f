//! recall.csv → lines over tokens: the share of right answers, and the mean square of the error ÷ that of an answer of zeros.
//! Single tokens are right or wrong, so a point is the mean of several tokens in a row, over all sequences. Every measure is a
//! ratio of sums, Σ a ÷ Σ b over tokens: a mean is one with b = 1. Bands are 95 % intervals over sequences.
//!
//! Several runs share one figure. The chance of a guess is in no column, and comes from the run.json beside the file.

use std::collections::BTreeSet;
use std::ops::Range;

use super::axis::Axis;
use super::chart::{Chart, Key, Line, LineStyle, Panel};
use super::colours::range;
use super::filter::{Rows, check_any};
use super::source::CsvSource;
use super::{Check, Request, names, theme};
use crate::config::nearest;
use crate::error::{Error, Result};
use crate::io::table::{Column, Table};
use crate::recall::DEFAULT_TOP_K;
use crate::statistics::{Estimate, Interval, MIN_FOR_INTERVAL, RatioSums};

/// Tokens of a point, over all sequences, unless points become too few or too many. The standard error of a share of 32
/// tokens is at most 0.09.
const TOKENS: u64 = 32;
/// Fewest points of a line, if there are as many tokens, and most: a point has 3.2 pt of a column.
const POINTS: [u64; 2] = [8, 64];
/// Most points that `--smooth` can ask for, each with six sums per measure and line.
const MAX_POINTS: u64 = 4096;
/// Most points of a line with markers.
const MARKED: u64 = 16;
/// Most lines in a panel.
const LINES: usize = 16;
/// Most lines with bands.
const BANDS: usize = 3;
/// Room below 0 in panels of shares, as a part of their height, so that the line of a small chance is not on the axis.
const BELOW: f64 = 0.03;
/// Column that says whether a key was updated.
const UPDATED: &str = "updated";
/// Name of the line of updated keys that get their old value.
const OLD_VALUE: &str = "old value";

/// A quantity over tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    Accuracy,
    TopK,
    Ratio,
    MeanSquare,
    Cosine,
    /// Share of updated keys that get their old value, a line beside the accuracy.
    Stale,
    /// Mean square of an answer of zeros, a line beside the mean square.
    Zeros,
}

impl Measure {
    const ALL: [Self; 7] =
        [Self::Accuracy, Self::TopK, Self::Ratio, Self::MeanSquare, Self::Cosine, Self::Stale, Self::Zeros];
    /// Those with a panel of their own, and those that are drawn unless others are requested.
    const PANELS: [Self; 5] = [Self::Accuracy, Self::TopK, Self::Ratio, Self::MeanSquare, Self::Cosine];
    const DEFAULT: [Self; 3] = [Self::Accuracy, Self::TopK, Self::Ratio];

    /// Returns the name on the command line.
    fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::TopK => "top_k",
            Self::Ratio => "ratio",
            Self::MeanSquare => "mean_square",
            Self::Cosine => "cosine",
            Self::Stale => "stale",
            Self::Zeros => "mean_square_zero",
        }
    }

    fn title(self, top_k: usize) -> String {
        match self {
            Self::TopK => format!("top {top_k} accuracy"),
            Self::Ratio => "mean square\n÷ all zeros".to_owned(),
            _ => self.name().replace('_', " "),
        }
    }

    fn is_share(self) -> bool {
        matches!(self, Self::Accuracy | Self::TopK | Self::Stale)
    }

    /// Returns the lowest and the highest value that it can have.
    fn limits(self) -> (f64, f64) {
        match self {
            Self::Accuracy | Self::TopK | Self::Stale => (0.0, 1.0),
            Self::Ratio | Self::MeanSquare | Self::Zeros => (0.0, f64::INFINITY),
            Self::Cosine => (-1.0, 1.0),
        }
    }
}

/// The rows of a recall.csv that are drawn, and its columns.
struct RecallRows<'a> {
    rows: Rows<'a>,
    tokens: Option<Range<u64>>,
    /// Column whose values have a line each.
    hue: Option<Column>,
    sequence: Column,
    token: Column,
    numbers: [Column; 3],
    target: Column,
    answer: Column,
    rank: Column,
    stale: Option<Column>,
    last_sequence: u64,
}

impl<'a> RecallRows<'a> {
    fn open(
        source: &CsvSource,
        request: &Request,
        hue: Option<&str>,
        check: &'a mut Check<'a>,
    ) -> Result<Self> {
        let rows = Rows::open(&source.csv, &request.filter, check)?;
        let table = &rows.table;
        let find = |name: &str| {
            table.optional_column(name).ok_or_else(|| {
                let names: Vec<_> = table.columns().map(|(_, name)| name).collect();
                let near = nearest(name, names.iter().copied());
                let names = names.join(", ");
                Error::rejected("--hue", format!("no column {name}{near}; the columns are {names}"))
            })
        };
        let [mean_square, zeros, cosine] =
            ["mean_square", "mean_square_zero", "cosine"].map(|name| table.column(name));
        Ok(Self {
            tokens: request.part.tokens.clone(),
            hue: hue.map(find).transpose()?,
            sequence: table.column("sequence")?,
            token: table.column("token")?,
            numbers: [mean_square?, zeros?, cosine?],
            target: table.column("target")?,
            answer: table.column("answer")?,
            rank: table.column("rank")?,
            stale: table.optional_column("stale"),
            last_sequence: 0,
            rows,
        })
    }

    /// Moves to the next row that is drawn. Returns its sequence and token.
    fn advance(&mut self) -> Result<Option<(u64, u64)>> {
        while self.rows.advance()? {
            let table = &self.rows.table;
            let (sequence, token) = (table.integer(self.sequence)?, table.integer(self.token)?);
            if sequence < self.last_sequence {
                let (expected, last) = ("sequences in ascending order", self.last_sequence);
                return Err(table.bad_row(expected, format!("{sequence} after {last}")));
            }
            self.last_sequence = sequence;
            if self.tokens.as_ref().is_none_or(|tokens| tokens.contains(&token)) {
                return Ok(Some((sequence, token)));
            }
        }
        Ok(None)
    }

    /// Returns the value of the hue; empty without one.
    fn hue(&self) -> &[u8] {
        self.hue.map_or(&[], |column| self.rows.table.text(column))
    }

    /// Returns the terms a and b of every measure in the current row; `None` for one that the row does not have.
    fn terms(&self, top_k: usize) -> Result<[Option<(f64, f64)>; Measure::ALL.len()]> {
        let table = &self.rows.table;
        let [mean_square, zeros, cosine] = self.numbers.map(|column| table.number(column));
        let [mean_square, zeros, cosine] = [mean_square?, zeros?, cosine?];
        let rank = table.number(self.rank)?;
        let stale = self.stale.map_or(Ok(None), |column| table.number(column))?;
        let has_candidates = [self.target, self.answer].iter().any(|of| !table.text(*of).is_empty());
        // A read of zeros has no rank, and is wrong.
        let right =
            |most: f64| has_candidates.then(|| (f64::from(rank.is_some_and(|rank| rank <= most)), 1.0));
        let term = |measure| match measure {
            Measure::Accuracy => right(1.0),
            Measure::TopK => right(top_k as f64),
            Measure::Ratio => mean_square.zip(zeros),
            Measure::MeanSquare => mean_square.map(|number| (number, 1.0)),
            Measure::Cosine => cosine.map(|number| (number, 1.0)),
            Measure::Stale => stale.map(|number| (number, 1.0)),
            Measure::Zeros => zeros.map(|number| (number, 1.0)),
        };
        Ok(Measure::ALL.map(term))
    }
}

/// Sums of a measure in a range of tokens: those of the current sequence, and over the sequences before.
#[derive(Clone, Copy, Default)]
struct Bin {
    current: Option<(u64, f64, f64)>,
    sums: RatioSums,
}

impl Bin {
    fn add(&mut self, sequence: u64, (a, b): (f64, f64)) {
        match &mut self.current {
            Some((current, over, under)) if *current == sequence => {
                *over += a;
                *under += b;
            }
            _ => {
                self.sums = self.all();
                self.current = Some((sequence, a, b));
            }
        }
    }

    fn all(&self) -> RatioSums {
        let mut sums = self.sums;
        self.current.iter().for_each(|&(_, a, b)| sums.add(a, b));
        sums
    }
}

/// A line of each measure: a run (without a name if it is the only line), or the rows of a run with one value of the hue.
struct Group {
    name: String,
    source: usize,
    hue: Vec<u8>,
    /// By measure, in the order of [`Measure::ALL`], then by bin.
    bins: Vec<Vec<Bin>>,
}

/// All data of a figure.
struct Data {
    groups: Vec<Group>,
    /// Tokens drawn.
    tokens: Range<u64>,
    /// Tokens in a point.
    width: u64,
    top_k: usize,
    /// Whether any row has a right candidate.
    ranked: bool,
}

impl Data {
    /// Reads all files twice: first the range of tokens and the values of the hue, then the sums.
    fn read(sources: &[CsvSource], request: &Request, check: &mut Check) -> Result<Self> {
        // A single run with updates has a line for the keys that it updates and for those that it keeps.
        let mut hue = request.hue.as_deref();
        if let ([source], None) = (sources, hue) {
            hue = Table::open(&source.csv)?.optional_column(UPDATED).map(|_| UPDATED);
        }
        let (mut groups, mut rows_drawn, mut ranked) = (Vec::new(), 0, false);
        let mut drawn = None::<Range<u64>>;
        for (i, source) in sources.iter().enumerate() {
            let mut rows = RecallRows::open(source, request, hue, check)?;
            let mut hues = BTreeSet::new();
            while let Some((_, token)) = rows.advance()? {
                let tokens = drawn.get_or_insert(token..token + 1);
                *tokens = tokens.start.min(token)..tokens.end.max(token + 1);
                rows_drawn += 1;
                ranked |= !rows.rows.table.text(rows.target).is_empty();
                if !hues.contains(rows.hue()) {
                    hues.insert(rows.hue().to_vec());
                    if groups.len() + hues.len() > LINES {
                        return Err(too_many(hue));
                    }
                }
            }
            if request.hue.is_none() && !(hues.contains(&b"0"[..]) && hues.contains(&b"1"[..])) {
                hue = None;
                hues = hues.first().map(|_| Vec::new()).into_iter().collect();
            }
            let mut hues: Vec<_> = hues.into_iter().collect();
            let number = |hue: &[u8]| std::str::from_utf8(hue).ok()?.parse::<u64>().ok();
            hues.sort_by_key(|hue| number(hue));
            groups.extend(hues.into_iter().map(|value| {
                let of_hue = hue.map(|hue| match (hue, &value[..]) {
                    (UPDATED, b"0") => "kept".to_owned(),
                    (UPDATED, b"1") => "updated".to_owned(),
                    _ => names::of_value(hue, &value),
                });
                let name = names::of_line(Some(source).filter(|_| sources.len() > 1), of_hue);
                Group { name, source: i, hue: value, bins: Vec::new() }
            }));
        }
        check_any(&request.filter, drawn.is_some())?;
        let Some(tokens) = drawn else {
            let csv = sources.first().map_or(String::new(), |source| source.csv.display().to_string());
            return Err(Error::rejected(csv, "no token to draw"));
        };
        let top_k = sources.iter().find_map(|source| source.run.top_k).unwrap_or(DEFAULT_TOP_K);
        let length = tokens.end - tokens.start;
        let width = width(length, rows_drawn / groups.len() as u64, request.style.smooth);
        let bins = length.div_ceil(width) as usize;
        for group in &mut groups {
            group.bins = vec![vec![Bin::default(); bins]; Measure::ALL.len()];
        }
        let mut data = Self { groups, tokens, width, top_k, ranked };
        for (i, source) in sources.iter().enumerate() {
            let mut rows = RecallRows::open(source, request, hue, check)?;
            while let Some((sequence, token)) = rows.advance()? {
                let groups = &mut data.groups;
                let group = groups.iter_mut().find(|group| group.source == i && group.hue == rows.hue());
                // A file that grows in between may hold more.
                let place = token.checked_sub(data.tokens.start).map(|token| (token / width) as usize);
                let Some((group, place)) = group.zip(place.filter(|&place| place < bins)) else { continue };
                for (bins, terms) in group.bins.iter_mut().zip(rows.terms(top_k)?) {
                    if let Some(terms) = terms {
                        bins[place].add(sequence, terms);
                    }
                }
            }
        }
        Ok(data)
    }

    /// Returns the middle of the tokens of a bin.
    fn x(&self, bin: usize) -> f64 {
        let start = self.tokens.start + bin as u64 * self.width;
        f64::midpoint(start as f64, (start + self.width).min(self.tokens.end) as f64 - 1.0)
    }

    /// Returns the line of a measure over some groups together.
    fn line<'a>(&self, groups: impl Iterator<Item = &'a Group> + Clone, measure: Measure) -> Points {
        let bins = self.groups[0].bins[0].len();
        let point = |bin: usize| {
            let sums = groups.clone().map(|group| group.bins[measure as usize][bin].all());
            let sums = sums.fold(RatioSums::default(), |mut all, sums| {
                all.merge(&sums);
                all
            });
            Some((self.x(bin), sums.estimate()?))
        };
        (0..bins).filter_map(point).collect()
    }
}

/// Points of a line.
type Points = Vec<(f64, Estimate)>;

fn too_many(hue: Option<&str>) -> Error {
    match hue {
        Some(hue) => names::too_many(hue, LINES),
        None => Error::rejected("--kind recall", format!("at most {LINES} runs have lines; pass fewer")),
    }
}

/// Returns the number of tokens in a point of a line.
fn width(tokens: u64, rows: u64, smooth: Option<usize>) -> u64 {
    let chosen = smooth
        .map_or_else(|| tokens.div_ceil((rows / TOKENS).clamp(POINTS[0], POINTS[1])), |tokens| tokens as u64);
    chosen.max(tokens.div_ceil(MAX_POINTS)).max(1)
}

/// Draws one or more recalls.
pub fn chart(sources: &[CsvSource], request: &Request, check: &mut Check) -> Result<Chart> {
    let requested = requested(request)?;
    let data = Data::read(sources, request, check)?;
    let has = |measure: &Measure| data.ranked || !measure.is_share();
    let measures = match requested {
        Some(measures) => measures,
        None => Measure::DEFAULT.into_iter().filter(has).collect(),
    };
    // Shares of a single line fit one panel.
    let single = data.groups.len() == 1;
    let mut panels = Vec::<Vec<Measure>>::new();
    for measure in measures {
        match panels.last_mut() {
            Some(last) if single && measure.is_share() && last[0].is_share() => last.push(measure),
            _ => panels.push(vec![measure]),
        }
    }
    let mut drawing =
        Drawing { sources, request, data: &data, styles: Vec::new(), keys: Vec::new(), counts: Vec::new() };
    let lines: Vec<_> = panels.iter().map(|measures| drawing.lines(measures)).collect();
    // All panels have the same colours, of which greys and ordered scales depend on the number.
    let colours = request.style.colours(lines.iter().map(Vec::len).max().unwrap_or(0));
    drawing.styles = LineStyle::of_colours(colours, request.style.theme);
    let panels: Vec<_> =
        panels.iter().zip(lines).map(|(measures, lines)| drawing.panel(measures, lines)).collect();
    let height = if panels.len() > 1 { theme::STACKED } else { theme::ALONE };
    let mut chart = Chart::new("recall", 1, height);
    chart.panels = panels;
    chart.notes = drawing.notes();
    chart.keys = drawing.keys;
    Ok(chart)
}

/// Returns the measures of `--y`.
fn requested(request: &Request) -> Result<Option<Vec<Measure>>> {
    let known = || Measure::PANELS.into_iter().map(Measure::name);
    let find = |name: &String| {
        Measure::PANELS.into_iter().find(|measure| measure.name() == name).ok_or_else(|| {
            let (near, all) = (nearest(name, known()), known().collect::<Vec<_>>().join(", "));
            Error::rejected("--y", format!("no measure {name}{near}; the measures of recall are {all}"))
        })
    };
    let measures = request.y.iter().map(find).collect::<Result<Vec<_>>>()?;
    Ok(Some(measures).filter(|measures| !measures.is_empty()))
}

/// A figure that is being drawn.
struct Drawing<'a> {
    sources: &'a [CsvSource],
    request: &'a Request,
    data: &'a Data,
    styles: Vec<LineStyle>,
    keys: Vec<Key>,
    /// Numbers of sequences in the points of bands.
    counts: Vec<usize>,
}

impl Drawing<'_> {
    /// Returns the lines of the measures of a panel: name, measure and points.
    fn lines(&self, measures: &[Measure]) -> Vec<(String, Measure, Points)> {
        let data = self.data;
        let mut lines = Vec::new();
        for &measure in measures {
            for group in &data.groups {
                let name = match measure {
                    Measure::TopK if measures.len() > 1 => format!("top {}", data.top_k),
                    _ if measures.len() > 1 || group.name.is_empty() => measure.name().to_owned(),
                    _ => group.name.clone(),
                };
                lines.push((name, measure, data.line(std::iter::once(group), measure)));
            }
        }
        if measures[0] == Measure::Accuracy && self.sources.len() == 1 {
            let stale = data.line(data.groups.iter(), Measure::Stale);
            if !stale.is_empty() {
                lines.push((OLD_VALUE.to_owned(), Measure::Stale, stale));
            }
        }
        if !data.ranked {
            lines.retain(|(_, measure, _)| !measure.is_share());
        }
        lines
    }

    fn panel(&mut self, measures: &[Measure], mut lines: Vec<(String, Measure, Points)>) -> Panel {
        let (data, style) = (self.data, &self.request.style);
        let measure = measures[0];
        let baselines = self.baselines(measures);
        let all = || lines.iter().flat_map(|(.., points)| points).map(|(_, of)| of.center);
        let centres: Vec<_> =
            all().chain(baselines.iter().flat_map(|(_, line)| line.iter().map(|of| of.1))).collect();
        let log = match measure {
            Measure::Ratio => range(&centres).is_some_and(|range| style.is_log(range, true)),
            _ => style.log.is_some() && range(&centres).is_some_and(|range| style.is_log(range, false)),
        };
        let bands = self.request.interval != Some(Interval::None) && lines.len() <= BANDS;
        for (_, measure, points) in &mut lines {
            limit(points, *measure, bands, log);
            self.counts.extend(points.iter().filter(|(_, of)| of.interval.is_some()).map(|(_, of)| of.n));
        }
        let ends = lines.iter().flat_map(|(.., points)| points).filter_map(|(_, of)| of.interval);
        let ends: Vec<_> = ends.flat_map(|(low, high)| [low, high]).chain(centres).collect();
        let (low, high) = range(&ends).unwrap_or((0.0, 1.0));
        let ends = match measure {
            _ if log => (low, high),
            _ if measure.is_share() => {
                let high = if high > 0.5 { 1.0 } else { high };
                (-BELOW * high, high)
            }
            Measure::Cosine => (low.min(0.0), high),
            _ => (0.0, high),
        };
        let title = if measures.len() > 1 { "share of tokens".to_owned() } else { measure.title(data.top_k) };
        let x = style.x_within(Axis::tokens(&data.tokens));
        let mut panel = Panel::new((x, "tokens"), (style.y_axis(ends, log), &title));
        if lines.iter().all(|(.., points)| points.is_empty()) {
            panel.message = Some(if data.ranked { "no finite values" } else { "no candidates" });
            return panel;
        }
        let marked = data.tokens.end.div_ceil(data.width) <= MARKED;
        for (i, (name, _, points)) in lines.iter().enumerate() {
            let line_style = match lines.len() {
                1 => LineStyle::bold(),
                _ if marked => self.styles[i].marked(),
                _ => self.styles[i],
            };
            if lines.len() > 1 {
                self.key(name, line_style);
            }
            panel.lines.push(Line::of_estimates(name, line_style, std::slice::from_ref(points), true));
        }
        for (i, (name, points)) in baselines.into_iter().enumerate() {
            let dashes = theme::BASELINES[i % theme::BASELINES.len()];
            let order = Some(lines.len() + i);
            let line_style = LineStyle { dashes, ..LineStyle::line(theme::GREY, theme::SPINE, 1.0, order) };
            self.key(&name, line_style);
            panel.lines.push(Line::new(&name, line_style, vec![points]));
        }
        panel
    }

    /// Adds an entry of the legend, unless a panel before has added it.
    fn key(&mut self, name: &str, style: LineStyle) {
        if self.keys.iter().all(|key| key.text != name) {
            self.keys.push(Key::line(name, style));
        }
    }

    /// Returns what the measures must beat, by name: the chance of each run, or zeros.
    fn baselines(&self, measures: &[Measure]) -> Vec<(String, Vec<(f64, f64)>)> {
        let ends = [self.data.tokens.start as f64, self.data.tokens.end as f64];
        let flat = |y: f64| ends.map(|x| (x, y)).to_vec();
        let mut baselines = Vec::new();
        for &measure in measures {
            match measure {
                Measure::Accuracy | Measure::TopK => {
                    let k = if measure == Measure::TopK { self.data.top_k } else { 1 };
                    let named = measure == Measure::TopK && measures.len() > 1;
                    let name = if named { format!("chance, top {k}") } else { "chance".to_owned() };
                    let of_runs = self.sources.iter().filter_map(|source| source.run.chance);
                    let mut chances: Vec<_> = of_runs.map(|chance| (chance * k as f64).min(1.0)).collect();
                    chances.sort_by(f64::total_cmp);
                    chances.dedup();
                    baselines.extend(chances.into_iter().map(|chance| (name.clone(), flat(chance))));
                }
                Measure::Ratio => baselines.push(("all zeros".to_owned(), flat(1.0))),
                Measure::MeanSquare => {
                    let zeros = self.data.line(self.data.groups.iter(), Measure::Zeros);
                    let points = zeros.into_iter().map(|(x, of)| (x, of.center)).collect();
                    baselines.push(("all zeros".to_owned(), points));
                }
                Measure::Cosine | Measure::Stale | Measure::Zeros => {}
            }
        }
        baselines
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.data.width > 1 {
            notes.push(format!("each point: {} tokens", self.data.width));
        }
        if let (Some(fewest), Some(most)) = (self.counts.iter().min(), self.counts.iter().max()) {
            let n = if fewest == most { most.to_string() } else { format!("{fewest} to {most}") };
            notes.push(format!("bands: 95 % interval over {n} sequences (Student’s t)"));
        }
        notes
    }
}

/// Keeps intervals within the limits of the measure, and removes those of few sequences.
fn limit(points: &mut Points, measure: Measure, bands: bool, log: bool) {
    let (lowest, highest) = measure.limits();
    for (_, of) in points {
        of.interval = of.interval.filter(|_| bands && of.n >= MIN_FOR_INTERVAL).map(|(low, high)| {
            // On a log axis the error is that of the logarithm, which is relative, to first order.
            let (low, high) = if log {
                let factor = ((high - of.center) / of.center).exp();
                (of.center / factor, of.center * factor)
            } else {
                (low, high)
            };
            (low.max(lowest), high.min(highest))
        });
    }
}
