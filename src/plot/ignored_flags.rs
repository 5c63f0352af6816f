//! Notes on flags without effect on a figure. Without a note, the figure would look as if it obeyed them.

use clap::ValueEnum as _;

use super::chart::{Chart, Panel};
use super::series::Quantity;
use super::{CsvSource, Kind, Limits, Request};
use crate::statistics::Interval;

/// Returns a line about the flags without effect on the sources' kind.
pub fn ignored_flags(sources: &[CsvSource], request: &Request) -> Option<String> {
    let first = sources.first()?;
    let timed = |name: &String| Quantity::from_name(name).is_some();
    let filtered = !request.filter.is_empty();
    let others = request.x.is_some() || request.hue.is_some() || filtered || !request.y.iter().all(timed);
    // `draw` draws other columns, or another x, as `Kind::Columns`.
    let kind = match first.kind {
        Kind::Timeline | Kind::Gates if others => Kind::Columns,
        kind => kind,
    };
    let timeline = matches!(kind, Kind::Timeline | Kind::Gates);
    let columns = matches!(kind, Kind::Columns | Kind::Boxes);
    let rows = timeline || columns || matches!(kind, Kind::Heads | Kind::Topics);
    let lags = kind == Kind::Retention && first.of_sweep;
    let map = kind == Kind::Retention && !first.of_sweep;
    let scan = matches!(kind, Kind::Scan | Kind::Speedup);
    let of_sweep = matches!(kind, Kind::Sweep | Kind::Map | Kind::Ablation | Kind::Pareto);
    let curves = kind == Kind::Curves;
    let recall = kind == Kind::Recall;
    let cells = matches!(kind, Kind::Sweep | Kind::Map | Kind::Ablation) || lags;
    let asked = request.style.log;
    let heads = !request.part.heads.is_empty();
    let flags = [
        (
            "--x",
            request.x.as_ref().is_some_and(|x| match kind {
                Kind::Lags => x != "lag",
                _ if lags => x != "lag",
                _ => !columns && !of_sweep,
            }),
        ),
        (
            "--y",
            !request.y.is_empty()
                && !columns
                && !of_sweep
                && !timeline
                && !curves
                && !recall
                && kind != Kind::Topics,
        ),
        ("--hue", request.hue.is_some() && !columns && !of_sweep && !lags && !curves && !recall),
        ("--rows", request.rows.is_some() && !cells),
        ("--cols", request.cols.is_some() && !cells),
        ("--panels", request.panels && !cells),
        (
            "--where",
            filtered
                && !columns
                && !of_sweep
                && !lags
                && !scan
                && !curves
                && !matches!(kind, Kind::Topics | Kind::Recall | Kind::Spectrum | Kind::Training),
        ),
        ("--heads", heads && !rows && !map && !matches!(kind, Kind::Lags | Kind::Spectrum) && !curves),
        ("--tokens", request.part.tokens.is_some() && !rows && !curves && !recall),
        ("--baseline", !request.baseline.is_empty() && !cells && kind != Kind::Speedup),
        ("--center", request.center.is_some() && !of_sweep && !lags && !curves && kind != Kind::Topics),
        (
            "--interval",
            request.interval.is_some_and(|interval| match kind {
                Kind::Recall => !matches!(interval, Interval::Ci95 | Interval::None),
                Kind::Topics => false,
                _ => !cells && !curves,
            }),
        ),
        ("--labels", request.labels.is_some() && !timeline && !curves && kind != Kind::Topics),
        ("--smooth", request.style.smooth.is_some() && !timeline && !curves && !recall),
        ("--log", asked.is_some() && map),
        (
            "--log=x",
            asked.is_some_and(super::LogAxes::x)
                && (timeline
                    || curves
                    || recall
                    || matches!(kind, Kind::Heads | Kind::Topics | Kind::Lags | Kind::Boxes)),
        ),
    ];
    let ignored: Vec<_> = flags.iter().filter(|(_, ignored)| *ignored).map(|(flag, _)| *flag).collect();
    let name = kind.to_possible_value()?;
    (!ignored.is_empty())
        .then(|| format!("no effect with --kind {}: {}", name.get_name(), ignored.join(", ")))
}

/// Returns a line about limits that no panel can obey. Names have no ends, and only maps have colours.
pub fn limits(charts: &[Chart], request: &Request) -> Option<String> {
    let style = &request.style;
    let any = |holds: fn(&Panel) -> bool| charts.iter().flat_map(|chart| &chart.panels).any(holds);
    let flags = [
        ("--xlim", style.xlim, any(|panel| !panel.x.is_slots())),
        ("--ylim", style.ylim, any(|panel| !panel.y.is_slots())),
        ("--clim", style.clim, any(|panel| panel.map.is_some())),
    ];
    let ignored = flags.iter().filter(|(_, limits, obeyed)| *limits != Limits::default() && !obeyed);
    let ignored: Vec<_> = ignored.map(|(flag, ..)| *flag).collect();
    (!ignored.is_empty() && !charts.is_empty())
        .then(|| format!("no effect on this figure: {}", ignored.join(", ")))
}

/// Returns the note on an axis that stays linear although --log was given.
pub fn stays_linear(name: &str) -> String {
    format!("{name}: the axis stays linear despite --log, because some values are 0 or below")
}
