//! Figures as TeX for \input into a paper, in its fonts. The data are in the file, so that it compiles wherever it is
//! copied to. Values that are not finite are `nan` there and break the line (`unbounded coords=jump`).

mod panel;
mod text;

use std::fmt::Write as _;

use plotters::style::RGBColor;

use super::chart::{Chart, LineStyle, Marker, Panel, PanelGrid, Swatch};
use crate::error::{Error, Result};
use crate::escape::for_figure;
use crate::plot::font::Font;
use crate::plot::style::{FigureStyle, LegendPlace};
use crate::plot::theme;
use panel::PanelText;
use text::{number, tex as escaped};

/// Height of a single panel; below, of each of several, and of panels side by side.
const ALONE: f64 = 140.0;
const STACKED: f64 = 62.0;
const AMONG: f64 = 90.0;
/// Distance between panels; below, the distance above panels with a heading, and below panels with an x axis of their own.
const BETWEEN: f64 = 14.0;
const HEADED: f64 = 24.0;
const LABELLED: f64 = 40.0;
/// Room for a title that reads upwards.
const TITLE: f64 = 14.0;
/// Room for each further line of the title.
const LINE: f64 = 10.0;
/// Room right of the last panel; below, with a colour bar.
const RIGHT: f64 = 6.0;
const BAR: f64 = 58.0;
/// Most cells of a map; TeX takes about a millisecond for each, and holds all in its main memory.
const MAX_CELLS: usize = 1 << 15;
/// Markers in the order of `legend::marker`.
const MARKERS: [&str; 5] = ["*", "square*", "triangle*", "diamond*", "pentagon*"];
/// Width of TeX's own fonts relative to the one that measures.
const FONT: Font = Font::Sans;

/// Whether TeX reads a letter of a name literally.
fn plain(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_')
}

/// Returns the name of the .tex file, without its extension.
pub fn file_stem(name: &str) -> String {
    name.chars().map(|letter| if plain(letter) { letter } else { '-' }).collect()
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
        match style.marker {
            Some(Marker::Shape) => {
                keys.push(format!("mark={}", MARKERS[style.order.unwrap_or(0) % MARKERS.len()]));
                keys.push("mark size=1.5pt, mark options={solid}".to_owned());
            }
            Some(Marker::Dot) => keys.push("mark=*, mark size=0.8pt, mark options={solid}".to_owned()),
            None => keys.push("no marks".to_owned()),
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
    grid: PanelGrid,
    /// Width of the labels of the y axis.
    labels: f64,
    left: f64,
    right: f64,
    width: f64,
    height: f64,
    /// Distances between panels.
    across: f64,
    down: f64,
}

impl Sheet {
    fn new(chart: &Chart, style: &FigureStyle) -> Self {
        let grid = chart.grid(style, chart.columns);
        let PanelGrid { columns, rows, shares_y, .. } = grid;
        let labels = chart.panels.iter().flat_map(|panel| panel.y.labels()).map(|(_, label)| label);
        let labels = FONT.widest(labels, theme::TITLE).max(10.0) + 8.0;
        let maps = chart.panels.iter().any(|panel| panel.map.is_some());
        let right = if maps { BAR } else { RIGHT };
        let between = if shares_y || columns == 1 { BETWEEN } else { labels + TITLE + BETWEEN };
        let between = if maps && !grid.one_bar && columns > 1 { between + BAR } else { between };
        let down = if chart.has_headings() || grid.letters { HEADED } else { BETWEEN };
        let down = if grid.shares_x { down } else { down + LABELLED };
        // TeX has 72.27 points per inch.
        let whole = style.width * 72.27 / 72.0;
        let title = style.title_lines().len() as f64 * LINE;
        let across = whole - TITLE - labels - right - between * (columns - 1) as f64;
        let height = style.height.map_or_else(
            || default_height(chart, across / columns as f64, columns, rows),
            |height| {
                ((height * 72.27 / 72.0 - down * (rows - 1) as f64 - 45.0 - title) / rows as f64).max(20.0)
            },
        );
        // TeX breaks a title that is longer than its panel.
        let tall = if shares_y { height * rows as f64 } else { height };
        let long = |panel: &Panel| is_long(&panel.y_title, tall);
        let titles = TITLE + if chart.panels.iter().any(long) { LINE } else { 0.0 };
        let width = ((across + TITLE - titles) / columns as f64).max(40.0);
        let left = titles + labels;
        Self { grid, labels, left, right, width, height, across: between, down }
    }
}

fn is_long(title: &str, room: f64) -> bool {
    FONT.width(&title.replace('\n', " "), theme::TITLE) > room
}

/// Returns the title, on one line if there is room.
fn title(title: &str, room: f64) -> String {
    let lines: Vec<_> = title.split('\n').map(escaped).collect();
    lines.join(if is_long(title, room) { "\\\\" } else { " " })
}

fn default_height(chart: &Chart, width: f64, columns: usize, rows: usize) -> f64 {
    let map = chart.panels.iter().find_map(|panel| panel.map.as_ref());
    match (map, columns, rows) {
        (Some(map), ..) if map.square => width,
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

/// Returns the .tex file of a chart.
pub fn tex(chart: &Chart, style: &FigureStyle, origin: Option<&str>) -> Result<String> {
    let cells = chart.panels.iter().filter_map(|panel| Some(panel.map.as_ref()?.cells.len()));
    let most = cells.max().unwrap_or(0);
    if most > MAX_CELLS {
        let reason =
            format!("pgfplots maps have at most {MAX_CELLS} cells, this one {most}; choose svg or pdf");
        return Err(Error::rejected("--figure-format", reason));
    }
    let sheet = Sheet::new(chart, style);
    let mut names = Names::default();
    let mut panels = String::new();
    for (i, panel) in chart.panels.iter().enumerate() {
        PanelText { chart, panel, i, sheet: &sheet, style }.write(&mut panels, &mut names);
    }

    let mut out = String::new();
    let mut line = |text: &str| {
        out += text;
        out.push('\n');
    };
    let name = file_stem(&chart.name);
    let version = env!("CARGO_PKG_VERSION");
    line(&format!("% {name}, drawn by nmem {version}: \\input this file in place of the figure."));
    if let Some(origin) = origin {
        line(&format!("% {}", for_figure(origin)));
    }
    line("% Preamble: \\usepackage{pgfplots} \\pgfplotsset{compat=1.16} \\usepgfplotslibrary{groupplots}");
    for note in chart.notes.iter().chain(&chart.omitted) {
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
    line(
        "    nmem area/.style={legend image code/.code={\\fill[#1] (0cm,-0.08cm) rectangle (0.5cm,0.08cm);}},",
    );
    line(
        "    nmem rule/.style={legend image code/.code={\\draw[#1, line width=0.5pt] (0.25cm,-0.1cm) -- (0.25cm,0.1cm);}},",
    );
    line("  }");
    line("  \\begin{groupplot}[");
    line(&format!(
        "    group style={{group name=nmem, group size={} by {}, horizontal sep={}pt, vertical sep={}pt}},",
        sheet.grid.columns,
        sheet.grid.rows,
        points(sheet.across),
        points(sheet.down),
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
    line(&format!("    {},", legend_keys(chart, &sheet, style)));
    line("    table/col sep=space, table/row sep=\\\\, unbounded coords=jump,");
    line("  ]");
    out += &panels;
    out += "  \\end{groupplot}\n";
    finish(&mut out, chart, &sheet, style);
    Ok(out)
}

fn legend_keys(chart: &Chart, sheet: &Sheet, style: &FigureStyle) -> String {
    let look = "draw=none, fill=none, font=\\scriptsize, inner sep=1pt";
    match style.legend {
        LegendPlace::Inside => {
            format!(
                "legend cell align=left, legend pos=north east, legend style={{{look}, fill=white, fill opacity=0.85, text opacity=1}}"
            )
        }
        LegendPlace::Right => {
            format!("legend cell align=left, legend style={{{look}, at={{(1.02,1)}}, anchor=north west}}")
        }
        LegendPlace::Top | LegendPlace::None => {
            let columns = legend_columns(chart, style.width - sheet.left);
            let headed = chart.has_headings() || sheet.grid.letters;
            let above = if headed { 14 } else { 2 };
            format!(
                "legend columns={columns}, legend cell align=left, legend style={{{look}, at={{(0,1)}}, yshift={above}pt, anchor=south west, /tikz/every even column/.append style={{column sep=6pt}}}}"
            )
        }
    }
}

/// Returns the largest number of columns of entries that fit this width.
fn legend_columns(chart: &Chart, width: f64) -> usize {
    let entries = chart.keys.iter().map(|key| FONT.width(&key.text, theme::TITLE) + 28.0);
    let entries: Vec<_> = entries.collect();
    let takes = |columns: usize| -> f64 {
        let widest = |column| entries.iter().skip(column).step_by(columns).copied().fold(0.0, f64::max);
        (0..columns).map(widest).sum()
    };
    (1..=entries.len()).rev().find(|&columns| takes(columns) <= width).unwrap_or(1)
}

/// Returns the commands of the legend's entries.
fn legend(chart: &Chart, names: &mut Names) -> String {
    let mut out = String::new();
    for key in &chart.keys {
        let image = match &key.swatch {
            Swatch::Line(style) => format!("{}, opacity=1", names.style(*style)),
            Swatch::Area(colour) => format!("nmem area={}", names.colour(*colour)),
            Swatch::Fan(colours) => {
                let middle = colours.get(colours.len() / 2).copied().unwrap_or(theme::GREY);
                format!("nmem area={}", names.colour(middle))
            }
            Swatch::Rule => format!("nmem rule={}", names.colour(theme::RULE)),
            Swatch::Mark => format!(
                "{}, only marks, mark=triangle*, mark options={{rotate=180}}",
                names.colour(theme::ALARM)
            ),
        };
        let _ = writeln!(out, "    \\addlegendimage{{{image}}} \\addlegendentry{{{}}}", escaped(&key.text));
    }
    out
}

/// Writes the title that panels share, the title of the figure, and the figure's width.
fn finish(out: &mut String, chart: &Chart, sheet: &Sheet, style: &FigureStyle) {
    let first = chart
        .panels
        .first()
        .map(|panel| &panel.y_title[..])
        .filter(|_| sheet.grid.shares_y && sheet.grid.rows > 1);
    if let Some(title) = first {
        let _ = writeln!(
            out,
            "  \\path (nmem c1r1.north west) -- (nmem c1r{}.south west) node[midway, xshift=-{}pt, rotate=90, anchor=south, align=center, text width={}pt] {{{}}};",
            sheet.grid.rows,
            points(sheet.labels),
            points(sheet.height * sheet.grid.rows as f64),
            self::title(title, sheet.height * sheet.grid.rows as f64),
        );
    }
    let columns = sheet.grid.columns;
    let _ = write!(
        out,
        "  % The requested width, whatever room the labels need.\n  \\path ([xshift=-{}pt]nmem c1r1.west |- current bounding box.south) coordinate (nmem a)\n    \
         ([xshift={}pt]nmem c{columns}r1.east |- current bounding box.north) coordinate (nmem b);\n",
        points(sheet.left),
        points(sheet.right),
    );
    if let Some(title) = style.title.as_deref().filter(|title| !title.trim().is_empty()) {
        let width = style.width * 72.27 / 72.0 - 8.0;
        let _ = writeln!(
            out,
            "  \\path (nmem a |- nmem b) -- (nmem b) node[midway, anchor=south, align=center, text width={}pt] {{{}}};",
            points(width),
            escaped(title)
        );
        let _ = writeln!(out, "  \\path (nmem b |- current bounding box.north) coordinate (nmem b);");
    }
    let _ = write!(
        out,
        "  \\pgfresetboundingbox\n  \\path[use as bounding box] (nmem a) rectangle (nmem b);\n\\end{{tikzpicture}}%\n"
    );
}
