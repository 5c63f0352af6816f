//! Figures of train.csv: the losses of a training, the norms of its gradients and its learning rate, against steps. Several
//! trainings share one figure of the losses that they were validated with.

use std::path::Path;

use super::chart::{Chart, Key, Line, LineStyle, Panel, y_range};
use super::downsample::DownsampledLine;
use super::filter::Rows;
use super::source::CsvSource;
use super::style::LogAxes;
use super::{Check, Request, font, theme};
use crate::error::{Error, Result};

/// Bins of a line. More are finer than print.
const BINS: usize = 2000;
/// Losses within this factor are compared on a linear axis, as elsewhere.
const LINEAR: f64 = 3.0;
/// Title of the panel that starts at 0.
const RATE: &str = "learning rate";
/// Prefix of the columns with norms of groups.
const NORM: &str = "grad_norm_";

/// Columns of a train.csv as lines.
struct Curves {
    names: Vec<String>,
    lines: Vec<DownsampledLine>,
    last: u64,
}

impl Curves {
    fn read(csv: &Path, request: &Request, check: &mut Check) -> Result<Self> {
        let mut rows = Rows::open(csv, &request.filter, check)?;
        let step = rows.table.column("step")?;
        let columns: Vec<_> = rows
            .table
            .columns()
            .filter(|(_, name)| *name != "step")
            .map(|(column, name)| (column, name.to_owned()))
            .collect();
        let mut lines = vec![DownsampledLine::new(BINS, false); columns.len()];
        let mut last = 0;
        while rows.advance()? {
            last = rows.table.integer(step)?;
            for ((column, _), line) in columns.iter().zip(&mut lines) {
                // Steps without validation do not break its line.
                if let Some(value) = rows.table.number(*column)? {
                    line.push(last as f64, Some(value));
                }
            }
        }
        Ok(Self { names: columns.into_iter().map(|(_, name)| name).collect(), lines, last })
    }

    fn line(&self, name: &str) -> Option<&DownsampledLine> {
        let line = &self.lines[self.names.iter().position(|other| other == name)?];
        line.range().map(|_| line)
    }
}

/// Draws one or more trainings.
pub fn chart(sources: &[CsvSource], request: &Request, check: &mut Check) -> Result<Chart> {
    let read = |source: &CsvSource| Curves::read(&source.csv, request, &mut *check);
    let all = sources.iter().map(read).collect::<Result<Vec<_>>>()?;
    let style = &request.style;
    let last = all.iter().map(|curves| curves.last).max().unwrap_or(0);
    let x = style.x_axis((0.0, last.max(1) as f64), style.log.is_some_and(LogAxes::x));
    let mut chart = Chart::new("training", 1, theme::STACKED);
    let line =
        |name: &str, style: LineStyle, line: &DownsampledLine| Line::new(name, style, line.stretches());
    let panel = |title: &str, lines: Vec<Line>, log: Option<bool>| {
        let range = y_range(&lines).unwrap_or((0.0, 1.0));
        let default = log.unwrap_or(range.1 > LINEAR * range.0);
        let log = style.log.map_or(default, LogAxes::y) && range.0 > 0.0;
        let range = if log || title != RATE { range } else { (0.0, range.1) };
        let panel = Panel::new((x.clone(), "step"), (style.y_axis(range, log), title));
        Panel { lines, ..panel }
    };
    let keys =
        |lines: &[Line]| -> Vec<Key> { lines.iter().map(|line| Key::line(&line.name, line.style)).collect() };
    if let [curves] = &all[..] {
        let pale = LineStyle::line(theme::GREY, theme::SERIES, 0.6, None);
        let shown = [("loss", "training", pale), ("validation", "validation", LineStyle::bold())];
        let lines =
            shown.into_iter().filter_map(|(column, name, of)| Some(line(name, of, curves.line(column)?)));
        let lines: Vec<_> = lines.collect();
        chart.keys = keys(&lines);
        chart.panels.push(panel("loss", lines, None));
        let groups =
            curves.names.iter().filter_map(|name| Some((name.strip_prefix(NORM)?, curves.line(name)?)));
        let groups: Vec<_> = groups.collect();
        let styles = LineStyle::of_colours(style.colours(groups.len()), style.theme);
        let lines: Vec<_> =
            groups.iter().zip(styles).map(|((name, of), style)| line(name, style, of)).collect();
        chart.keys.extend(keys(&lines));
        if !lines.is_empty() {
            chart.panels.push(panel("norm of the gradient", lines, Some(true)));
        }
        if let Some(of) = curves.line("rate") {
            chart.panels.push(panel(RATE, vec![line(RATE, LineStyle::bold(), of)], Some(false)));
        }
    } else {
        let validated = all.iter().all(|curves| curves.line("validation").is_some());
        let (column, title) =
            if validated { ("validation", "validation loss") } else { ("loss", "training loss") };
        let styles = LineStyle::of_colours(style.colours(all.len()), style.theme);
        let lines = all.iter().zip(sources).zip(styles).filter_map(|((curves, source), style)| {
            Some(line(&font::plain(&source.name), style, curves.line(column)?))
        });
        let lines: Vec<_> = lines.collect();
        chart.height = theme::ALONE;
        chart.keys = keys(&lines);
        chart.panels.push(panel(title, lines, None));
    }
    if chart.panels.iter().all(|panel| panel.lines.is_empty()) {
        let csv = sources.first().map_or(String::new(), |source| source.csv.display().to_string());
        return Err(Error::rejected(csv, "no step with a finite loss to draw"));
    }
    Ok(chart)
}
