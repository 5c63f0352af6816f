//! Notes on flags without effect on a figure. Without a note, the figure would look as if it obeyed them.

use clap::ValueEnum as _;

use super::series::Quantity;
use super::{CsvSource, Kind, Request};

/// Returns a line about the flags without effect on the sources' kind.
pub fn ignored_flags(sources: &[CsvSource], request: &Request) -> Option<String> {
    let first = sources.first()?;
    let timed = |name: &String| Quantity::ALL.iter().any(|quantity| quantity.name() == name);
    let others = request.x.is_some() || request.hue.is_some() || !request.y.iter().all(timed);
    // `draw` draws other columns, or another x, as `Kind::Columns`.
    let kind = match first.kind {
        Kind::Timeline | Kind::Gates if others => Kind::Columns,
        kind => kind,
    };
    let (columns, of_sweep) = (kind == Kind::Columns, matches!(kind, Kind::Sweep | Kind::Map));
    let timeline = matches!(kind, Kind::Timeline | Kind::Gates);
    let lags = kind == Kind::Retention && first.of_sweep;
    let log = columns || of_sweep || timeline || lags || kind == Kind::Heads;
    let asked = request.style.log;
    let flags = [
        ("--x", request.x.is_some() && !columns && !of_sweep),
        ("--y", !request.y.is_empty() && !columns && !of_sweep && !timeline),
        ("--hue", request.hue.is_some() && !columns && !of_sweep && !lags),
        ("--labels", request.labels.is_some() && !timeline),
        ("--smooth", request.style.smooth.is_some() && !timeline),
        ("--log", asked.is_some() && !log),
        ("--log=x", asked.is_some_and(super::LogAxes::x) && log && !columns),
    ];
    let ignored: Vec<_> = flags.iter().filter(|(_, ignored)| *ignored).map(|(flag, _)| *flag).collect();
    let name = kind.to_possible_value()?;
    (!ignored.is_empty())
        .then(|| format!("no effect with --kind {}: {}", name.get_name(), ignored.join(", ")))
}

/// Returns the note on an axis that stays linear although --log was given.
pub fn stays_linear(name: &str) -> String {
    format!("{name}: the axis stays linear despite --log, because some values are 0 or below")
}
