//! Notes on flags without effect on a figure. Without a note, the figure would look as if it obeyed them.

use super::chart::{Chart, Panel};
use super::series::Quantity;
use super::{CsvSource, Kind, Limits, LogAxes, Request};
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
    let obeyed: Vec<_> = obeyed(kind, first.of_sweep).split(' ').collect();
    let asked = |role: &Option<String>| role.is_some();
    // Of a sweep's lags, x is always the lag.
    let lags = kind == Kind::Lags || (kind == Kind::Retention && first.of_sweep);
    let given = [
        ("--x", request.x.as_ref().is_some_and(|x| !lags || x != "lag")),
        ("--y", !request.y.is_empty()),
        ("--hue", asked(&request.hue)),
        ("--rows", asked(&request.rows)),
        ("--cols", asked(&request.cols)),
        ("--panels", request.panels),
        ("--where", filtered),
        ("--heads", !request.part.heads.is_empty()),
        ("--tokens", request.part.tokens.is_some()),
        ("--baseline", !request.baseline.is_empty()),
        ("--center", request.center.is_some()),
        ("--interval", request.interval.is_some()),
        ("--labels", request.labels.is_some()),
        ("--smooth", request.style.smooth.is_some()),
        ("--log", request.style.log.is_some()),
        ("--log=x", request.style.log.is_some_and(LogAxes::x) && obeyed.contains(&"--log")),
    ];
    // Bands of recall are 95 % intervals or none.
    let bands = kind == Kind::Recall && matches!(request.interval, Some(Interval::Ci95 | Interval::None));
    let obeys = |flag| obeyed.contains(&flag) || (flag == "--interval" && bands);
    let ignored: Vec<_> =
        given.iter().filter(|(flag, given)| *given && !obeys(flag)).map(|(flag, _)| *flag).collect();
    (!ignored.is_empty())
        .then(|| format!("no effect with --kind {}: {}", kind.cli_name(), ignored.join(", ")))
}

/// Returns the flags that change a figure of this kind.
fn obeyed(kind: Kind, of_sweep: bool) -> &'static str {
    match kind {
        Kind::Timeline | Kind::Gates => "--y --heads --tokens --labels --smooth --log",
        Kind::Heads => "--heads --tokens --log",
        Kind::Columns => "--x --y --hue --where --heads --tokens --log --log=x",
        Kind::Boxes => "--x --y --hue --where --heads --tokens --log",
        Kind::Topics => "--y --where --heads --tokens --center --interval --labels --log",
        Kind::Retention if of_sweep => {
            "--hue --rows --cols --panels --where --baseline --center --interval --log --log=x"
        }
        Kind::Retention => "--heads",
        Kind::Lags => "--heads --log",
        Kind::Sweep | Kind::Map | Kind::Ablation => {
            "--x --y --hue --rows --cols --panels --where --baseline --center --interval --log --log=x"
        }
        Kind::Pareto => "--x --y --hue --where --center --log --log=x",
        Kind::Curves => "--y --hue --where --heads --tokens --center --interval --labels --smooth --log",
        Kind::Recall => "--y --hue --where --tokens --smooth --log",
        Kind::Spectrum => "--where --heads --log --log=x",
        Kind::Training | Kind::Scan => "--where --log --log=x",
        Kind::Speedup => "--where --baseline --log --log=x",
    }
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
