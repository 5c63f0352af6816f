//! One result against another, with a point per setting: the centre over its runs. A line joins the settings that no other
//! beats in both results.

use std::collections::BTreeMap;

use super::results::{Cell, Results};
use super::{
    AGAINST, Direction, LINES, Method, RATIO, better, file_name, labels, metric_title, symbol, unknown_metric,
};
use crate::error::Result;
use crate::plot::chart::{Chart, Key, Line, LineStyle, Panel};
use crate::plot::colours::range;
use crate::plot::style::LogAxes;
use crate::plot::{Request, theme};
use crate::statistics::Interval;

/// Most settings with an entry each in the legend.
const NAMED: usize = 12;

/// Returns the chart of two results, by default quality against speed.
pub fn chart(results: &Results, request: &Request) -> Result<Chart> {
    let find = |flag: &str, asked: Option<&String>, default: &str| {
        let name = asked.map_or(default, |name| name);
        let metric = results.metric(name).ok_or_else(|| unknown_metric(results, flag, name));
        Ok((name.to_owned(), metric?))
    };
    let (x_name, x) = find("--x", request.x.as_ref(), "tokens_per_s")?;
    let (y_name, y) = find("--y", request.y.first(), RATIO)?;
    let style = &request.style;
    let parameters = &results.parameters;
    let varying: Vec<_> =
        (0..parameters.len()).filter(|&i| parameters[i].varies() && parameters[i].name != "seed").collect();
    let of = |metric| -> BTreeMap<Vec<usize>, Cell> { results.cells(metric, &varying, None) };
    let (xs, ys) = (of(x), of(y));
    let values = xs.values().chain(ys.values()).flat_map(|cell| cell.finite.iter().copied());
    let method = Method { interval: Interval::None, ..Method::new(request, false, values) };
    let mut lost = 0;
    let mut counts = Vec::new();
    let points = xs.into_iter().filter_map(|(key, cell)| {
        let (a, b) = (method.estimate(&cell), ys.get(&key).and_then(|cell| method.estimate(cell)));
        lost += usize::from(a.is_none() || b.is_none());
        let (a, b) = (a?, b?);
        counts.push(a.n);
        Some((key, (a.center, b.center)))
    });
    let points: Vec<_> = points.collect();
    let of_axis = |axis: fn(&(f64, f64)) -> f64| {
        range(&points.iter().map(|(_, point)| axis(point)).collect::<Vec<_>>())
    };
    let (of_x, of_y) = (of_axis(|point| point.0), of_axis(|point| point.1));
    let x_log = of_x.is_some_and(|(low, high)| low > 0.0 && style.log.map_or(high > 30.0 * low, LogAxes::x));
    let y_log =
        of_y.is_some_and(|range| style.is_log(range, y_name.contains("ratio") || y_name.contains('/')));
    let axes =
        (style.x_axis(of_x.unwrap_or((0.0, 1.0)), x_log), style.y_axis(of_y.unwrap_or((0.0, 1.0)), y_log));
    let mut panel = Panel::new((axes.0, &metric_title(&x_name)), (axes.1, &metric_title(&y_name)));

    // Each setting has a name if there are few. Otherwise one parameter has the colours.
    let hue = request.hue.as_ref().and_then(|name| results.parameter(name));
    let hue =
        hue.or_else(|| varying.iter().copied().find(|&i| (2..=LINES).contains(&parameters[i].values.len())));
    let setting = |parameter: usize, value: usize| {
        format!("{} {}", symbol(&parameters[parameter].name), labels(&parameters[parameter])[value])
    };
    let name = |key: &[usize]| -> String {
        if points.len() <= NAMED && request.hue.is_none() {
            let parts = varying.iter().zip(key).map(|(&parameter, &value)| setting(parameter, value));
            return parts.collect::<Vec<_>>().join(", ");
        }
        let place = hue.and_then(|hue| varying.iter().position(|&other| other == hue));
        hue.zip(place).map_or_else(|| "settings".to_owned(), |(hue, place)| setting(hue, key[place]))
    };
    let mut groups = Vec::<(String, Vec<(f64, f64)>)>::new();
    for (key, point) in &points {
        let name = name(key);
        match groups.iter_mut().find(|(other, _)| *other == name) {
            Some((_, points)) => points.push(*point),
            None => groups.push((name, vec![*point])),
        }
    }
    let styles = LineStyle::of_colours(style.colours(groups.len()), style.theme);
    let front = front(&points, better(&x_name), better(&y_name));
    let mut chart = Chart::new(&[file_name(&y_name), file_name(&x_name)].join(AGAINST), 1, theme::ALONE);
    if let Some(front) = front {
        let grey = LineStyle::line(theme::GREY, theme::SPINE, 1.0, None);
        panel.lines.push(Line::new("best in both", grey, vec![front]));
        chart.notes.push("line: settings that no other beats in both".to_owned());
    }
    for ((name, points), line_style) in groups.into_iter().zip(styles) {
        let line_style = line_style.apart();
        chart.keys.push(Key::line(&name, line_style));
        panel.lines.push(Line::new(&name, line_style, vec![points]));
    }
    if chart.keys.len() == 1 {
        chart.keys.clear();
    }
    chart.notes.extend(method.note(&counts, ""));
    if lost > 0 {
        chart.omitted.push(format!("{lost} settings without a finite value of both results"));
    }
    chart.panels.push(panel);
    Ok(chart)
}

/// Returns the points that no other beats in both directions, from left to right; `None` unless both have a better side.
fn front(
    points: &[(Vec<usize>, (f64, f64))],
    x: Option<Direction>,
    y: Option<Direction>,
) -> Option<Vec<(f64, f64)>> {
    let (x, y) = (x?.sign(), y?.sign());
    let mut sorted: Vec<_> = points.iter().map(|(_, (a, b))| (x * a, y * b)).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut best = f64::INFINITY;
    sorted.retain(|point| {
        let beats = point.1 < best;
        best = best.min(point.1);
        beats
    });
    let mut front: Vec<_> = sorted.into_iter().map(|(a, b)| (x * a, y * b)).collect();
    front.sort_by(|a, b| a.0.total_cmp(&b.0));
    Some(front)
}

#[cfg(test)]
mod tests {
    use super::front;
    use crate::plot::Direction::{Higher, Lower};

    #[test]
    fn the_front_is_what_no_other_beats() {
        let points: Vec<_> = [(1.0, 5.0), (2.0, 3.0), (3.0, 4.0), (4.0, 1.0), (0.5, 9.0)]
            .map(|point| (Vec::new(), point))
            .into();
        assert_eq!(
            front(&points, Some(Lower), Some(Lower)).unwrap(),
            [(0.5, 9.0), (1.0, 5.0), (2.0, 3.0), (4.0, 1.0)]
        );
        assert_eq!(front(&points, Some(Higher), Some(Lower)).unwrap(), [(4.0, 1.0)]);
        assert_eq!(front(&points, None, Some(Lower)), None);
    }
}
