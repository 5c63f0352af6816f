//! A panel: its axis, lines, marks and maps.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::table::Table;
use super::text::{number, power, tex};
use super::{Names, Sheet, shared_title, title};
use crate::plot::axis::Axis;
use crate::plot::chart::{Chart, ColumnSource, Line, Panel};
use crate::plot::theme;

/// A panel of a chart, as a group of pgfplots commands.
pub(super) struct PanelText<'a> {
    pub(super) chart: &'a Chart,
    pub(super) panel: &'a Panel,
    pub(super) i: usize,
    pub(super) sheet: &'a Sheet,
    /// The table beside the .tex.
    pub(super) file: &'a str,
    /// The CSV file that the figure is made from.
    pub(super) csv: Option<&'a str>,
}

impl PanelText<'_> {
    /// Writes the panel and returns whether it reads the CSV that the figure is made from.
    pub(super) fn write(&self, out: &mut String, names: &mut Names, table: &mut Table) -> bool {
        let (columns, panel) = (self.chart.columns.max(1), self.panel);
        let mut keys = Vec::new();
        let lowest = self.i + columns >= self.chart.panels.len();
        keys.push(ticks("x", &panel.x, lowest));
        keys.push(ticks("y", &panel.y, self.i.is_multiple_of(columns)));
        if lowest {
            keys.push(format!("xlabel={{{}}}", tex(&panel.x_title)));
        }
        if self.i.is_multiple_of(columns) && shared_title(self.chart, self.sheet.rows).is_none() {
            keys.push(format!("ylabel={{{}}}", title(&panel.y_title, self.sheet.height)));
        }
        if !panel.heading.is_empty() {
            keys.push(format!("title={{{}}}", tex(&panel.heading)));
        }
        if self.i + 1 == columns.min(self.chart.panels.len()) {
            keys.extend(self.bar());
        }
        if panel.map.is_some() || !panel.shades.is_empty() {
            keys.push("axis on top".to_owned());
        }
        let _ = writeln!(out, "    \\nextgroupplot[\n      {}\n    ]", keys.join(",\n      "));
        self.shades(out, names);
        self.map(out, table);
        let reads_csv = self.lines(out, names, table);
        self.marks(out, names);
        if self.i == 0 {
            for key in &self.chart.keys {
                let style = names.style(key.style);
                let _ = writeln!(
                    out,
                    "    \\addlegendimage{{{style}, opacity=1}} \\addlegendentry{{{}}}",
                    tex(&key.text)
                );
            }
        }
        reads_csv
    }

    /// Returns the keys of the colour bar.
    fn bar(&self) -> Option<String> {
        let (colours, title) = self.chart.colours.as_ref()?;
        let labelled = colours.axis().ticks.iter().filter_map(|tick| Some((tick.at, tick.label.as_deref()?)));
        let (places, labels): (Vec<_>, Vec<_>) =
            labelled.map(|(at, label)| (number(at), format!("{{{}}}", tex(label)))).unzip();
        Some(format!(
            "colorbar, colorbar style={{width=8pt, height={}pt, at={{([xshift=8pt]parent axis.north east)}}, anchor=north west, title={{}}, xlabel={{}}, axis x line*=box, axis y line*=right, ymode=normal, minor ytick={{}}, ymin=0, ymax=1, ytick={{{}}}, yticklabels={{{}}}, ylabel={{{}}}, ylabel style={{at={{([xshift=30pt]axis description cs:1,0.5)}}, anchor=base}}}}",
            number(self.sheet.height.min(180.0)),
            places.join(","),
            labels.join(","),
            tex(title),
        ))
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
        let mut shades = Vec::<(f64, f64)>::new();
        for &(start, end) in &self.panel.shades {
            match shades.last_mut() {
                Some(last) if start - last.1 < near * 0.05 => last.1 = end,
                _ => shades.push((start, end)),
            }
        }
        for (start, end) in shades {
            let colour = names.colour(theme::SHADE);
            let _ = writeln!(
                out,
                "    \\fill[{colour}] ({}|-{{rel axis cs:0,0}}) rectangle ({}|-{{rel axis cs:0,1}});",
                self.place(start),
                self.place(end)
            );
        }
        let mut last = f64::NEG_INFINITY;
        for &x in self.panel.rules.iter().filter(|&&x| x > from) {
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

    fn map(&self, out: &mut String, table: &mut Table) {
        let (Some(map), Some((colours, _))) = (&self.panel.map, &self.chart.colours) else { return };
        let values: BTreeMap<_, _> = map.cells.iter().map(|&(x, y, value)| ((y, x), value)).collect();
        let (columns, rows) = map.size;
        let cells = (0..rows).flat_map(|y| (0..columns).map(move |x| (y, x)));
        let middle_x = |i: usize| map.from.0 + (i as f64 + 0.5) * map.cell.0;
        let middle_y = |i: usize| map.from.1 + (i as f64 + 0.5) * map.cell.1;
        let (mut xs, mut ys, mut means, mut shades) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (y, x) in cells {
            let value = values.get(&(y, x)).copied().unwrap_or(f64::NAN);
            xs.push(middle_x(x));
            ys.push(middle_y(y));
            means.push(value);
            shades.push(if value.is_finite() { colours.share(value) } else { f64::NAN });
        }
        table.push("x", xs);
        table.push("y", ys);
        table.push("value", means);
        table.push("shade", shades);
        let _ = writeln!(
            out,
            "    \\addplot[forget plot, matrix plot*, mesh/cols={columns}, mesh/rows={rows}, point meta=explicit] table[x=x, y=y, meta=shade] {{{}}};",
            self.file
        );
        for (&(x, y, value), text) in map.cells.iter().zip(&map.texts).filter(|(_, text)| !text.is_empty()) {
            let grey = theme::grey(colours.colour(value));
            let ink = if grey > 128 { "black" } else { "white" };
            let _ = writeln!(
                out,
                "    \\node[{ink}, font=\\tiny, inner sep=0pt] at (axis cs:{},{}) {{{}}};",
                number(middle_x(x)),
                number(middle_y(y)),
                tex(text)
            );
        }
        // TeX draws no cell without a value; a cell whose value is not finite has a mark.
        for &(x, y, _) in map.cells.iter().filter(|cell| !cell.2.is_finite()) {
            let _ = writeln!(
                out,
                "    \\node[red!80!black, font=\\tiny, inner sep=0pt] at (axis cs:{},{}) {{\\pgfuseplotmark{{triangle*}}}};",
                number(middle_x(x)),
                number(middle_y(y)),
            );
        }
    }

    fn lines(&self, out: &mut String, names: &mut Names, table: &mut Table) -> bool {
        let of_csv = |line: &Line| line.source.clone().zip(self.csv.map(str::to_owned));
        let derived: Vec<_> = self.panel.lines.iter().filter(|line| of_csv(line).is_none()).collect();
        let columns = table.push_lines(&self.panel.x_title, &derived);
        let mut columns = columns.into_iter();
        let mut reads_csv = false;
        let mut plots = String::new();
        for line in &self.panel.lines {
            let style = names.style(line.style);
            if let Some((source, csv)) = of_csv(line) {
                let _ = writeln!(
                    plots,
                    "    \\addplot[forget plot, {style}{}] table[{}] {{{csv}}};",
                    rows(&source),
                    expressions(&source)
                );
                reads_csv = true;
                continue;
            }
            let Some(columns) = columns.next() else { continue };
            if let Some((x, y)) = &columns.outline {
                let colour = names.colour(line.style.colour);
                let _ = writeln!(
                    out,
                    "    \\addplot[forget plot, draw=none, fill={colour}, fill opacity=0.2] table[x={x}, y={y}] {{{}}};",
                    self.file
                );
            }
            let bars = columns.ends.as_ref().filter(|_| columns.outline.is_none());
            let (keys, errors) = bars.map_or((String::new(), String::new()), |(low, high)| {
                let y = &columns.y;
                let errors = format!(
                    ", y error minus expr=\\thisrow{{{y}}}-\\thisrow{{{low}}}, y error plus expr=\\thisrow{{{high}}}-\\thisrow{{{y}}}"
                );
                (", error bars/.cd, y dir=both, y explicit, error bar style={solid}, error mark options={rotate=90, mark size=1.8pt}".to_owned(), errors)
            });
            let _ = writeln!(
                plots,
                "    \\addplot[forget plot, {style}{keys}] table[x={}, y={}{errors}] {{{}}};",
                columns.x, columns.y, self.file
            );
            let alone: Vec<_> =
                line.stretches.iter().filter(|stretch| stretch.len() == 1).flatten().collect();
            if !line.style.marked && !alone.is_empty() {
                let points = alone.iter().map(|(x, y)| format!("({},{})", number(*x), number(*y)));
                let _ = writeln!(
                    plots,
                    "    \\addplot[forget plot, {style}, only marks, mark=*, mark size={}pt] coordinates {{{}}};",
                    number(line.style.width / 2.0 + 0.4),
                    points.collect::<Vec<_>>().join(" ")
                );
            }
        }
        *out += &plots;
        reads_csv
    }

    fn marks(&self, out: &mut String, names: &mut Names) {
        let (from, to) = self.panel.x.ends();
        let near = (to - from) / self.sheet.width * 5.0;
        for (places, edge, turned) in [(&self.panel.above, 1, 180), (&self.panel.below, 0, 0)] {
            let place = |&x: &f64| if self.panel.x.is_log() { (x.log10(), x) } else { (x, x) };
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

/// Returns the rows to use, as keys of a plot.
fn rows(source: &ColumnSource) -> String {
    let rows = source.rows.iter().map(|(column, text)| format!(", nmem row={{{column}}}{{{text}}}"));
    let rows: String = rows.collect();
    if rows.is_empty() { rows } else { rows + ", unbounded coords=discard, filter discard warning=false" }
}

fn expressions(source: &ColumnSource) -> String {
    let key = |axis: &str, text: &str| {
        let column = text.strip_prefix("\\thisrow{").and_then(|rest| rest.strip_suffix('}'));
        match column {
            Some(column) if !column.contains('}') => format!("{axis}={column}"),
            _ => format!("{axis} expr={text}"),
        }
    };
    format!("{}, {}", key("x", &source.x), key("y", &source.y))
}

/// Returns the value at this fraction of an axis.
fn limit(axis: &Axis, at: f64) -> String {
    let (low, high) = axis.ends();
    let place = low * (1.0 - at) + high * at;
    if axis.is_log() { power(place) } else { number(place) }
}

/// Returns the keys of an axis' limits and ticks.
fn ticks(name: &str, axis: &Axis, labels: bool) -> String {
    let major: Vec<_> =
        axis.ticks.iter().filter_map(|tick| Some((tick.at, tick.label.as_deref()?))).collect();
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
