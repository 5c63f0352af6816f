//! Figures as TeX for \input into a paper, in its fonts. `NAME.tex` reads its points with \addplot table. It reads the
//! original CSV if every point is a row of that. Otherwise it reads a table beside it whose columns are the figure's lines:
//! `NAME-data.csv` or, with several panels, `NAME-data-PANEL.csv`. Values that are not finite are `nan` there and break the
//! line (`unbounded coords=jump`).

mod panel;
mod table;
mod text;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use plotters::style::RGBColor;

use super::chart::{self, Chart, LineStyle, Panel};
use super::{CsvSource, Request};
use crate::error::{Error, Result};
use crate::escape::for_figure;
use crate::plot::style::FigureStyle;
use crate::plot::{font, theme};
use panel::PanelText;
use table::Table;
use text::{number, tex};

/// Height of a single panel; below, of each of several, and of panels side by side.
const ALONE: f64 = 140.0;
const STACKED: f64 = 62.0;
const AMONG: f64 = 90.0;
/// Distance between panels; below, the distance above panels with a heading.
const BETWEEN: f64 = 14.0;
const HEADED: f64 = 24.0;
/// Room for a title that reads upwards.
const TITLE: f64 = 14.0;
/// Room for each further line of the title.
const LINE: f64 = 10.0;
/// Room right of the last panel; below, with a colour bar.
const RIGHT: f64 = 6.0;
const BAR: f64 = 58.0;
/// Colours of a colour bar; TeX blends between them.
const STOPS: usize = 17;
/// Most cells of a map; TeX takes about a millisecond for each.
const MAX_CELLS: usize = 1 << 16;
/// Markers in the order of `legend::marker`.
const MARKERS: [&str; 5] = ["*", "square*", "triangle*", "diamond*", "pentagon*"];

/// Returns a .tex file and its data for each figure of the sources, as files of a directory, which must exist. Figures of
/// several sources are named after them.
pub fn files(
    sources: &[CsvSource],
    request: &Request,
    directory: &Path,
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let (charts, _) = chart::charts(sources, request, check)?;
    let mut files = Vec::new();
    let mut stems = HashSet::new();
    for chart in charts {
        check()?;
        let most = chart.panels.iter().filter_map(|panel| panel.map.as_ref());
        let most = most.map(|map| map.size.0.saturating_mul(map.size.1)).max().unwrap_or(0);
        if most > MAX_CELLS {
            let reason =
                format!("pgfplots maps have at most {MAX_CELLS} cells, this one {most}; choose svg or pdf");
            return Err(Error::rejected("--figure-format", reason));
        }
        let mut stem = file_stem(&chart.name);
        while !stems.insert(stem.clone()) {
            stem += "-again";
        }
        let csv = chart.csv.as_ref().and_then(|csv| relative(csv, directory));
        let (tex, tables) = figure(&chart, &stem, &request.style, csv.as_deref());
        for (name, table) in tables {
            files.push((directory.join(name), table.text().into_bytes()));
        }
        files.push((directory.join(format!("{stem}.tex")), tex.into_bytes()));
    }
    Ok(files)
}

/// Whether TeX reads a letter of a name literally.
fn plain(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_')
}

fn file_stem(name: &str) -> String {
    name.chars().map(|letter| if plain(letter) { letter } else { '-' }).collect()
}

/// Returns the path from the directory to the CSV, if TeX can read it.
fn relative(csv: &Path, directory: &Path) -> Option<String> {
    let (csv, directory) = (csv.canonicalize().ok()?, directory.canonicalize().ok()?);
    let path = pathdiff::diff_paths(csv, directory)?;
    let path = path.to_str()?.replace(std::path::MAIN_SEPARATOR, "/");
    path.chars().all(|letter| plain(letter) || letter == '/').then_some(path)
}

/// Names of colours and styles, each defined once.
#[derive(Default)]
struct Names {
    colours: Vec<RGBColor>,
    styles: Vec<String>,
}

impl Names {
    fn colour(&mut self, colour: RGBColor) -> String {
        let place = self.colours.iter().position(|&other| other == colour);
        let place = place.unwrap_or_else(|| {
            self.colours.push(colour);
            self.colours.len() - 1
        });
        format!("nmem{place}")
    }

    fn style(&mut self, style: LineStyle) -> String {
        let mut keys = vec![self.colour(style.colour), format!("line width={}pt", number(style.width))];
        if style.opacity < 1.0 {
            keys.push(format!("opacity={}", number(style.opacity)));
        }
        if !style.dashes.is_empty() {
            let pairs = style.dashes.chunks(2).map(|pair| match pair {
                [on, off] => format!("on {on}pt off {off}pt"),
                _ => String::new(),
            });
            keys.push(format!("dash pattern={}", pairs.collect::<Vec<_>>().join(" ")));
        }
        match style.order {
            Some(order) if style.marked => {
                keys.push(format!("mark={}", MARKERS[order % MARKERS.len()]));
                keys.push("mark size=1.5pt, mark options={solid}".to_owned());
            }
            _ => keys.push("no marks".to_owned()),
        }
        if !style.joined {
            keys.push("only marks".to_owned());
        }
        let keys = keys.join(", ");
        let place = self.styles.iter().position(|other| *other == keys).unwrap_or_else(|| {
            self.styles.push(keys);
            self.styles.len() - 1
        });
        format!("nmem line {place}")
    }
}

/// The layout, in points.
struct Sheet {
    /// Width of the labels of the y axis.
    labels: f64,
    left: f64,
    right: f64,
    width: f64,
    height: f64,
    rows: usize,
}

impl Sheet {
    fn new(chart: &Chart, style: &FigureStyle) -> Self {
        let columns = chart.columns.max(1);
        let rows = chart.panels.len().div_ceil(columns).max(1);
        let labels =
            chart.panels.iter().flat_map(|panel| &panel.y.ticks).filter_map(|tick| tick.label.as_deref());
        let labels = labels.map(|label| font::width(label, theme::TITLE)).fold(10.0, f64::max) + 8.0;
        let right = if chart.colours.is_some() { BAR } else { RIGHT };
        // TeX has 72.27 points per inch.
        let whole = style.width * 72.27 / 72.0;
        let across = whole - TITLE - labels - right - BETWEEN * (columns - 1) as f64;
        let height = style.height.map_or_else(
            || default_height(chart, across / columns as f64, rows),
            |height| {
                let between = vertical_gap(chart) * (rows - 1) as f64;
                ((height * 72.27 / 72.0 - between - 45.0) / rows as f64).max(20.0)
            },
        );
        // TeX breaks a title that is longer than its panel.
        let tall = if shared_title(chart, rows).is_some() { height * rows as f64 } else { height };
        let long = |panel: &Panel| is_long(&panel.y_title, tall);
        let titles = TITLE + if chart.panels.iter().any(long) { LINE } else { 0.0 };
        let width = ((across + TITLE - titles) / columns as f64).max(40.0);
        Self { labels, left: titles + labels, right, width, height, rows }
    }
}

fn is_long(title: &str, room: f64) -> bool {
    font::width(&title.replace('\n', " "), theme::TITLE) > room
}

/// Returns the title, on one line if there is room.
fn title(title: &str, room: f64) -> String {
    let lines: Vec<_> = title.split('\n').map(tex).collect();
    lines.join(if is_long(title, room) { "\\\\" } else { " " })
}

fn default_height(chart: &Chart, width: f64, rows: usize) -> f64 {
    let map = chart.panels.iter().find_map(|panel| panel.map.as_ref());
    match (map, chart.columns.max(1), rows) {
        (Some(map), 1, _) if map.size.0 == map.size.1 => width,
        (Some(map), ..) => (map.size.1 as f64 * 12.0).clamp(60.0, 180.0),
        (None, 1, 1) => ALONE,
        (None, 1, _) => STACKED,
        (None, ..) => AMONG,
    }
}

/// Formats a length in points, to a thousandth.
fn points(length: f64) -> String {
    number((length * 1e3).round() / 1e3)
}

fn vertical_gap(chart: &Chart) -> f64 {
    if chart.panels.iter().any(|panel| !panel.heading.is_empty()) { HEADED } else { BETWEEN }
}

/// Returns the .tex file and the tables that it reads, by name.
fn figure(
    chart: &Chart,
    stem: &str,
    style: &FigureStyle,
    csv: Option<&str>,
) -> (String, Vec<(String, Table)>) {
    let sheet = Sheet::new(chart, style);
    let mut names = Names::default();
    let mut tables = Vec::new();
    let mut reads_csv = false;
    let mut panels = String::new();
    for (i, panel) in chart.panels.iter().enumerate() {
        let suffix = if chart.panels.len() > 1 { format!("-{}", panel.name) } else { String::new() };
        let file = format!("{stem}-data{suffix}.csv");
        let mut table = Table::default();
        let text = PanelText { chart, panel, i, sheet: &sheet, file: &file, csv };
        reads_csv |= text.write(&mut panels, &mut names, &mut table);
        if !table.is_empty() {
            tables.push((file, table));
        }
    }

    let mut out = String::new();
    let mut line = |text: &str| {
        out += text;
        out.push('\n');
    };
    let reads = tables.iter().map(|(name, _)| &name[..]).chain(csv.filter(|_| reads_csv));
    let reads: Vec<_> = reads.collect();
    line(&format!(
        "% {stem}, drawn by nmem {}: \\input this file in place of the figure.",
        env!("CARGO_PKG_VERSION")
    ));
    line("% Preamble: \\usepackage{pgfplots} \\pgfplotsset{compat=1.16} \\usepgfplotslibrary{groupplots}");
    line(&format!(
        "% Reads {}. If this file and the document are in different directories, add",
        reads.join(", ")
    ));
    line("%   \\pgfplotsset{table/search path={DIRECTORY}}");
    let caption = style.title.iter().chain(&chart.notes).chain(&chart.omitted);
    for note in caption {
        line(&format!("% For the caption: {}", for_figure(note)));
    }
    line("\\begin{tikzpicture}[font=\\footnotesize]");
    for (i, RGBColor(red, green, blue)) in names.colours.iter().enumerate() {
        line(&format!("  \\definecolor{{nmem{i}}}{{HTML}}{{{red:02X}{green:02X}{blue:02X}}}"));
    }
    line("  \\pgfplotsset{");
    for (i, style) in names.styles.iter().enumerate() {
        line(&format!("    nmem line {i}/.style={{{style}}},"));
    }
    if reads_csv {
        line(
            "    nmem row/.style 2 args={x filter/.append code={\\edef\\nmemcell{\\thisrow{#1}}\\edef\\nmemtext{#2}%",
        );
        line("      \\ifx\\nmemcell\\nmemtext\\else\\def\\pgfmathresult{}\\fi}},");
    }
    line("  }");
    line("  \\begin{groupplot}[");
    line(&format!(
        "    group style={{group name=nmem, group size={} by {}, horizontal sep={BETWEEN}pt, vertical sep={}pt}},",
        chart.columns.max(1),
        sheet.rows,
        vertical_gap(chart),
    ));
    line(&format!(
        "    scale only axis, width={}pt, height={}pt,",
        points(sheet.width),
        points(sheet.height)
    ));
    line(
        "    axis x line*=bottom, axis y line*=left, tick align=outside, scaled ticks=false, clip mode=individual,",
    );
    line("    major tick length=3pt, minor tick length=1.5pt, every tick/.style={black, thin},");
    line(
        "    tick label style={font=\\scriptsize}, title style={font=\\scriptsize, at={(0,1)}, anchor=south west, inner xsep=0pt},",
    );
    line(&format!(
        "    ylabel style={{at={{([xshift=-{}pt]axis description cs:0,0.5)}}, anchor=south, align=center, text width={}pt, execute at begin node={{\\hyphenpenalty=10000 }}}},",
        points(sheet.labels),
        points(sheet.height + 6.0),
    ));
    let columns = legend_columns(chart, style.width - sheet.left);
    let above = if chart.panels.iter().any(|panel| !panel.heading.is_empty()) { 16 } else { 2 };
    line(&format!(
        "    legend columns={columns}, legend cell align=left, legend style={{draw=none, fill=none, font=\\scriptsize, at={{(0,1)}}, yshift={above}pt, anchor=south west, inner sep=1pt, /tikz/every even column/.append style={{column sep=6pt}}}},"
    ));
    line("    table/col sep=comma, unbounded coords=jump,");
    if let Some((colours, _)) = &chart.colours {
        let stops = (0..STOPS).map(|i| {
            let RGBColor(red, green, blue) = colours.at(i as f64 / (STOPS - 1) as f64);
            format!("rgb255=({red},{green},{blue})")
        });
        line(&format!(
            "    colormap={{nmem}}{{{}}}, point meta min=0, point meta max=1,",
            stops.collect::<Vec<_>>().join(" ")
        ));
    }
    line("  ]");
    out += &panels;
    out += "  \\end{groupplot}\n";
    finish(&mut out, chart, &sheet);
    (out, tables)
}

/// Returns the largest number of columns of entries that fit this width.
fn legend_columns(chart: &Chart, width: f64) -> usize {
    let entries = chart.keys.iter().map(|key| font::width(&key.text, theme::TITLE) + 28.0);
    let entries: Vec<_> = entries.collect();
    let takes = |columns: usize| -> f64 {
        let widest = |column| entries.iter().skip(column).step_by(columns).copied().fold(0.0, f64::max);
        (0..columns).map(widest).sum()
    };
    (1..=entries.len()).rev().find(|&columns| takes(columns) <= width).unwrap_or(1)
}

/// Writes the title that all panels share, and the figure's width.
fn finish(out: &mut String, chart: &Chart, sheet: &Sheet) {
    if let Some(title) = shared_title(chart, sheet.rows) {
        let _ = writeln!(
            out,
            "  \\path (nmem c1r1.north west) -- (nmem c1r{}.south west) node[midway, xshift=-{}pt, rotate=90, anchor=south, align=center, text width={}pt] {{{}}};",
            sheet.rows,
            points(sheet.labels),
            points(sheet.height * sheet.rows as f64),
            self::title(title, sheet.height * sheet.rows as f64),
        );
    }
    let columns = chart.columns.max(1);
    let _ = write!(
        out,
        "  % The requested width, whatever room the labels need.\n  \\path ([xshift=-{}pt]nmem c1r1.west |- current bounding box.south) coordinate (nmem a)\n    \
         ([xshift={}pt]nmem c{columns}r1.east |- current bounding box.north) coordinate (nmem b);\n  \
         \\pgfresetboundingbox\n  \\path[use as bounding box] (nmem a) rectangle (nmem b);\n\\end{{tikzpicture}}%\n",
        points(sheet.left),
        points(sheet.right),
    );
}

/// Returns the shared title of the y axes, if there are rows of panels side by side.
fn shared_title(chart: &Chart, rows: usize) -> Option<&str> {
    let first = chart.panels.first().map(|panel| &panel.y_title[..])?;
    (chart.columns > 1 && rows > 1 && chart.panels.iter().all(|panel| panel.y_title == first))
        .then_some(first)
}
