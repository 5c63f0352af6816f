//! A panel: its axis, lines, marks and maps.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::text::{number, power, tex};
use super::{FONT, Names, Sheet, legend, title};
use crate::plot::axis::Axis;
use crate::plot::chart::{BAND, Chart, Line, LineStyle, Map, Panel, joined};
use crate::plot::colours::Colours;
use crate::plot::downsample::Point;
use crate::plot::style::{FigureStyle, LegendPlace};
use crate::plot::theme;
use plotters::style::RGBColor;

/// Colours of a colour bar; TeX blends between them.
const STOPS: usize = 17;
/// Size of `\scriptsize` and `\tiny` in points, in a document of 10 pt.
const SCRIPT_SIZE: f64 = 7.0;
const TINY: f64 = 5.0;

/// A panel of a chart, as a group of pgfplots commands.
pub struct PanelText<'a> {
    pub chart: &'a Chart,
    pub panel: &'a Panel,
    pub i: usize,
    pub sheet: &'a Sheet,
    pub style: &'a FigureStyle,
}

impl PanelText<'_> {
    /// Writes the panel.
    pub fn write(&self, out: &mut String, names: &mut Names) {
        let (panel, sheet, grid) = (self.panel, self.sheet, self.sheet.grid);
        let mut keys = Vec::new();
        let room = |label: &str| (FONT.width(label, SCRIPT_SIZE) + 4.0) / sheet.width;
        keys.push(ticks("x", &panel.x.clone().fitted(room), grid.labels_x(self.i)));
        keys.push(ticks("y", &panel.y, grid.labels_y(self.i)));
        if grid.labels_x(self.i) {
            keys.push(format!("xlabel={{{}}}", tex(&panel.x.titled(&panel.x_title))));
        }
        if grid.labels_y(self.i) && !(grid.shares_y && grid.rows > 1) {
            keys.push(format!("ylabel={{{}}}", title(&panel.y.titled(&panel.y_title), sheet.height)));
        }
        let letter = grid.letter(self.i).map(|letter| format!("\\textbf{{{letter}}}"));
        let heading = (!panel.heading.is_empty()).then(|| tex(&panel.heading));
        let heading: Vec<_> = letter.into_iter().chain(heading).collect();
        if !heading.is_empty() {
            keys.push(format!("title={{{}}}", heading.join("\\enspace ")));
        }
        if let Some(map) = &panel.map {
            keys.push(colormap(&map.colours));
            if !grid.one_bar || self.i + 1 == grid.columns {
                keys.push(self.bar(map));
            }
        }
        if panel.map.is_some() || !panel.shades.is_empty() {
            keys.push("axis on top".to_owned());
        }
        let _ = writeln!(out, "    \\nextgroupplot[\n      {}\n    ]", keys.join(",\n      "));
        self.shades(out, names);
        if let Some(map) = &panel.map {
            self.map(out, map);
        }
        self.references(out, names);
        self.boxes(out, names);
        self.lines(out, names);
        self.marks(out, names);
        if let Some(message) = panel.message {
            let _ = writeln!(out, "    \\node[gray] at (rel axis cs:0.5,0.5) {{{message}}};");
        }
        if self.i == 0 && self.style.legend != LegendPlace::None {
            *out += &legend(self.chart, names);
        }
    }

    /// Returns the keys of the colour bar.
    fn bar(&self, map: &Map) -> String {
        let (places, labels): (Vec<_>, Vec<_>) = map
            .colours
            .axis()
            .clone()
            .fitted(|_| 8.0 / self.sheet.height.min(180.0))
            .labels()
            .map(|(at, label)| (number(at), format!("{{{}}}", tex(label))))
            .unzip();
        format!(
            "colorbar, colorbar style={{width=8pt, height={}pt, at={{([xshift=8pt]parent axis.north east)}}, anchor=north west, title={{}}, xlabel={{}}, axis x line*=box, axis y line*=right, ymode=normal, minor ytick={{}}, ymin=0, ymax=1, ytick={{{}}}, yticklabels={{{}}}, ylabel={{{}}}, ylabel style={{at={{([xshift=30pt]axis description cs:1,0.5)}}, anchor=base}}}}",
            number(self.sheet.height.min(180.0)),
            places.join(","),
            labels.join(","),
            tex(&map.colours.axis().titled(&map.title).replace('\n', " ")),
        )
    }

    /// Returns a place on the x axis, at the foot of the panel.
    fn place(&self, x: f64) -> String {
        let foot = limit(&self.panel.y, 0.0);
        format!("{{axis cs:{},{foot}}}", number(x))
    }

    fn shades(&self, out: &mut String, names: &mut Names) {
        let (from, to) = self.panel.x.ends();
        // Ranges too close to distinguish become one.
        let near = (to - from) / self.sheet.width;
        for (start, end) in joined(self.panel.shades.iter().copied(), near * 0.05) {
            let colour = names.colour(theme::SHADE);
            let _ = writeln!(
                out,
                "    \\fill[{colour}] ({}|-{{rel axis cs:0,0}}) rectangle ({}|-{{rel axis cs:0,1}});",
                self.place(start),
                self.place(end)
            );
        }
        let mut last = f64::NEG_INFINITY;
        for &x in self.panel.rules.iter().filter(|&&x| x > from && x < to) {
            if x - last >= near * 0.5 {
                let colour = names.colour(theme::RULE);
                let at = self.place(x);
                let _ = writeln!(
                    out,
                    "    \\draw[{colour}, line width=0.5pt] ({at}|-{{rel axis cs:0,0}}) -- ({at}|-{{rel axis cs:0,1}});"
                );
                last = x;
            }
        }
    }

    fn references(&self, out: &mut String, names: &mut Names) {
        for ends in self.panel.reference_lines() {
            let [from, to] = ends.map(|(x, y)| format!("{},{}", number(x), number(y)));
            let colour = names.colour(theme::GREY);
            let _ = writeln!(
                out,
                "    \\draw[{colour}, line width=0.6pt, dash pattern=on 3pt off 2pt] (rel axis cs:{from}) -- (rel axis cs:{to});"
            );
        }
    }

    fn map(&self, out: &mut String, map: &Map) {
        let shares: BTreeMap<_, _> = map
            .cells
            .iter()
            .map(|cell| ((cell.row, cell.column), cell.value.filter(|value| value.is_finite())))
            .collect();
        let (columns, rows) = map.size;
        let mut data = String::new();
        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
            let value = shares.get(&(row, column)).copied().flatten();
            let (x, y) = map.middle(column, row);
            // Four digits are more than the eye can tell apart.
            let share = value.map_or(f64::NAN, |value| (map.colours.share(value) * 1e4).round() / 1e4);
            let _ = write!(data, "{} {} {}\\\\", number(x), number(y), number(share));
        }
        let _ = writeln!(
            out,
            "    \\addplot[forget plot, matrix plot*, mesh/cols={columns}, mesh/rows={rows}, point meta=explicit] table[x=x, y=y, meta=shade] {{x y shade\\\\{data}}};",
        );
        for (row, columns) in map.hatched() {
            let (from, y) = map.middle(columns.start, row);
            let (to, _) = map.middle(columns.end - 1, row);
            let half = map.cell.0 / 2.0;
            for share in [-0.25, 0.25] {
                let y = y + share * map.cell.1;
                let _ = writeln!(
                    out,
                    "    \\draw[black, line width=0.3pt] (axis cs:{},{y}) -- (axis cs:{},{y});",
                    number(from - half),
                    number(to + half),
                );
            }
        }
        // A star is about as wide as the letters are high.
        let texts = map.cells.iter().map(|cell| &*cell.text);
        let numbered = FONT.widest(texts, TINY) + TINY <= self.sheet.width / columns as f64;
        for cell in &map.cells {
            let (x, y) = map.middle(cell.column, cell.row);
            let at = format!("axis cs:{},{}", number(x), number(y));
            let value = cell.value.filter(|value| value.is_finite());
            let bright = value.is_none_or(|value| theme::grey(map.colours.colour(value)) > 128);
            let ink = if bright { "black" } else { "white" };
            let star = if map.best == Some((cell.column, cell.row)) { "$\\star$" } else { "" };
            let text = if numbered { tex(&cell.text) } else { String::new() };
            if !text.is_empty() || !star.is_empty() {
                let _ = writeln!(
                    out,
                    "    \\node[{ink}, font=\\tiny, inner sep=0pt] at ({at}) {{{text}{star}}};"
                );
            }
            // TeX draws no cell without a value; a cell whose value is not finite has a mark.
            if cell.value.is_some() != value.is_some() || cell.lost {
                let _ = writeln!(
                    out,
                    "    \\node[red!80!black, font=\\tiny, inner sep=0pt, anchor={}] at ({at}) {{\\pgfuseplotmark{{triangle*}}}};",
                    if value.is_some() { "south" } else { "center" },
                );
            }
        }
    }

    fn boxes(&self, out: &mut String, names: &mut Names) {
        let y = |value: f64| number(self.clamped(value));
        for of in &self.panel.boxes {
            let (colour, half) = (names.colour(of.style.colour), of.width / 2.0);
            let [low, first, median, third, high] = of.values.map(y);
            let (x, a, b) = (number(of.x), number(of.x - half), number(of.x + half));
            let _ = writeln!(
                out,
                "    \\draw[{colour}, fill={colour}, fill opacity=0.35, line width=0.6pt] (axis cs:{a},{first}) rectangle (axis cs:{b},{third});\n    \
                 \\draw[{colour}, line width=0.6pt] (axis cs:{x},{low}) -- (axis cs:{x},{first}) (axis cs:{x},{third}) -- (axis cs:{x},{high});\n    \
                 \\draw[black, line width=1.2pt] (axis cs:{a},{median}) -- (axis cs:{b},{median});"
            );
        }
        for bar in &self.panel.bars {
            let (colour, half) = (names.colour(bar.style.colour), bar.width / 2.0);
            let _ = writeln!(
                out,
                "    \\fill[{colour}, fill opacity=0.75] (axis cs:{},{}) rectangle (axis cs:{},{});",
                number(bar.x - half),
                y(0.0),
                number(bar.x + half),
                y(bar.value)
            );
            let black = LineStyle { colour: theme::BLACK, ..bar.style };
            if let Some(ends) = bar.interval {
                self.interval(out, names, (bar.x, ends), black);
            }
            let dots: Vec<_> = bar.values.iter().map(|&value| (bar.x, value)).collect();
            if !dots.is_empty() {
                let style = names.style(black.of_values());
                let _ =
                    writeln!(out, "    \\addplot[forget plot, {style}] table {{{}}};", self.data(&[dots]));
            }
        }
    }

    /// Returns the value on the axis that is nearest. TeX would drop an end that a log axis cannot show.
    fn clamped(&self, value: f64) -> f64 {
        if !self.panel.y.is_log() {
            return value;
        }
        let (low, high) = self.panel.y.range();
        // Ends beyond the panel are cut by TeX, unless they have no logarithm.
        if value > low { value.min(high * 1e3) } else { low }
    }

    /// Draws an interval as a bar with caps.
    fn interval(&self, out: &mut String, names: &mut Names, (x, ends): (f64, Point), style: LineStyle) {
        let colour = names.colour(style.colour);
        let x = number(x);
        let (low, high) = (number(self.clamped(ends.0)), number(self.clamped(ends.1)));
        let _ = writeln!(
            out,
            "    \\addplot[forget plot, {colour}, line width=0.6pt, mark=-, mark size=1.8pt] coordinates {{({x},{low}) ({x},{high})}};"
        );
    }

    /// Returns points as rows of x and y; a row of `nan` separates stretches.
    fn data(&self, stretches: &[Vec<Point>]) -> String {
        let mut data = String::from("x y\\\\");
        for (i, stretch) in stretches.iter().enumerate() {
            if i > 0 {
                data += "nan nan\\\\";
            }
            for (x, y) in stretch {
                let _ = write!(data, "{} {}\\\\", number(*x), number(self.clamped(*y)));
            }
        }
        data
    }

    fn lines(&self, out: &mut String, names: &mut Names) {
        let lines: Vec<&Line> = self.panel.lines.iter().filter(|line| !line.stretches.is_empty()).collect();
        for line in &lines {
            let outlines = line.outlines();
            if outlines.is_empty() {
                for ((x, _), ends) in line.points() {
                    if let Some(ends) = ends {
                        self.interval(out, names, (x, ends), line.style);
                    }
                }
                continue;
            }
            let colour = names.colour(line.style.colour);
            let _ = writeln!(
                out,
                "    \\addplot[forget plot, draw=none, fill={colour}, fill opacity={BAND}] table {{{}}};",
                self.data(&outlines)
            );
        }
        for line in lines {
            let style = names.style(line.style);
            let _ = writeln!(
                out,
                "    \\addplot[forget plot, {style}] table {{{}}};",
                self.data(&line.stretches)
            );
            let alone: Vec<_> = line.stretches.iter().filter(|stretch| stretch.len() == 1).cloned().collect();
            if line.style.marker.is_none() && !alone.is_empty() {
                let _ = writeln!(
                    out,
                    "    \\addplot[forget plot, {style}, only marks, mark=*, mark size={}pt] table {{{}}};",
                    number(line.style.width / 2.0 + 0.4),
                    self.data(&alone)
                );
            }
        }
    }

    fn marks(&self, out: &mut String, names: &mut Names) {
        let (from, to) = self.panel.x.ends();
        let near = (to - from) / self.sheet.width * 5.0;
        let lost: Vec<_> = self.panel.lost.iter().map(|(x, _)| (*x, *x)).collect();
        let above: Vec<_> = self.panel.above.iter().copied().chain(lost).collect();
        for (places, edge, turned) in [(&above, 1, 180), (&self.panel.below, 0, 0)] {
            let place = |&(x, _): &Point| if self.panel.x.is_log() { (x.log10(), x) } else { (x, x) };
            let mut places: Vec<_> = places.iter().map(place).collect();
            places.sort_by(|a, b| a.0.total_cmp(&b.0));
            places.dedup_by(|next, last| next.0 - last.0 < near);
            for (_, x) in places {
                let colour = names.colour(theme::ALARM);
                let _ = writeln!(
                    out,
                    "    \\node[{colour}, rotate={turned}, anchor=south, inner sep=0pt] at ({}|-{{rel axis cs:0,{edge}}}) {{\\pgfuseplotmark{{triangle*}}}};",
                    self.place(x)
                );
            }
        }
    }
}

fn colormap(colours: &Colours) -> String {
    let stops = (0..STOPS).map(|i| {
        let RGBColor(red, green, blue) = colours.at(i as f64 / (STOPS - 1) as f64);
        format!("rgb255=({red},{green},{blue})")
    });
    let stops = stops.collect::<Vec<_>>().join(" ");
    format!("colormap={{nmem}}{{{stops}}}, point meta min=0, point meta max=1")
}

/// Returns the value at this fraction of an axis.
fn limit(axis: &Axis, at: f64) -> String {
    let (low, high) = axis.ends();
    let place = low * (1.0 - at) + high * at;
    if axis.is_log() { power(place) } else { number(place) }
}

/// Returns the keys of an axis' limits and ticks.
fn ticks(name: &str, axis: &Axis, labels: bool) -> String {
    let major: Vec<_> = axis.labels().collect();
    let minor = axis.ticks.iter().filter(|tick| tick.label.is_none()).map(|tick| limit(axis, tick.at));
    let minor: Vec<_> = minor.collect();
    let places: Vec<_> = major.iter().map(|(at, _)| limit(axis, *at)).collect();
    let texts: Vec<_> =
        major.iter().filter(|_| labels).map(|(_, label)| format!("{{{}}}", tex(label))).collect();
    let mut keys = format!("{name}mode={}, ", if axis.is_log() { "log" } else { "normal" });
    let _ = write!(keys, "{name}min={}, {name}max={}, ", limit(axis, 0.0), limit(axis, 1.0));
    if places.is_empty() {
        let _ = write!(keys, "{name}tick=\\empty");
    } else {
        let _ = write!(keys, "{name}tick={{{}}}, {name}ticklabels={{{}}}", places.join(","), texts.join(","));
    }
    if minor.is_empty() {
        let _ = write!(keys, ", minor {name}tick={{}}");
    } else {
        let _ = write!(keys, ", minor {name}tick={{{}}}", minor.join(","));
    }
    keys
}
