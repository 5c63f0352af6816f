//! Axes: limits, ticks and labels. Linear limits are rounded outwards to ticks; log limits have a small margin. A log axis
//! works in log₁₀ throughout, so that it holds every positive float.

use std::ops::Range;

/// An axis whose limits and ticks are chosen for a range of values.
#[derive(Clone, Debug)]
pub struct Axis {
    log: bool,
    /// Ends of the axis, in log₁₀ on a log axis.
    low: f64,
    high: f64,
    /// Ticks in the order of the axis, minor ones after the labelled ones.
    pub ticks: Vec<Tick>,
}

/// A mark on an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// Position from 0 (low end) to 1 (high end).
    pub at: f64,
    /// Label; `None` on minor ticks. `10^{2}` is a superscript.
    pub label: Option<String>,
}

/// Most ticks. Steps are chosen for a dozen, and rounding may add a few.
const MAX_TICKS: usize = 64;
/// Minimum room for a y label, as a fraction of the axis: 10 pt on a panel of 86 pt.
const LABEL_SHARE: f64 = 0.115;

impl Axis {
    /// Returns a linear axis from 0 to 1, extended to the values.
    pub fn share(low: f64, high: f64) -> Self {
        Self::linear(low.min(0.0), high.max(1.0))
    }

    /// Returns a linear axis around finite values, low ≤ high.
    pub fn linear(low: f64, high: f64) -> Self {
        // Nearly constant values lie mid-axis. Below a thousandth, labels would be longer than the margin.
        let largest = low.abs().max(high.abs());
        let (low, high) = if largest < 1e-290 {
            (0.0, 1.0)
        } else if high - low < largest * 1e-3 {
            ((low - largest * 0.5).max(f64::MIN), (high + largest * 0.5).min(f64::MAX))
        } else {
            (low, high)
        };
        let step = round_step(low, high, 5.0);
        let (first, last) = ((low / step + 1e-9).floor(), (high / step - 1e-9).ceil());
        let (low, high) = ((first * step).max(f64::MIN), (last * step).min(f64::MAX));
        let mut axis = Self { log: false, low, high, ticks: Vec::new() };
        let largest = low.abs().max(high.abs());
        // No tick lies beyond the largest float.
        let places = multiples(first, last).filter(|i| (i * step).is_finite());
        axis.ticks = places.map(|i| axis.tick(i * step, decimal(i, step, largest))).collect();
        axis
    }

    /// Returns an x axis over exactly these tokens; it is bare without tokens.
    pub fn tokens(tokens: &Range<u64>) -> Self {
        if tokens.is_empty() {
            return Self::bare();
        }
        let (low, high) = (tokens.start as f64, tokens.end as f64);
        let step = round_step(low, high, 8.0).max(1.0);
        let mut axis = Self { log: false, low, high, ticks: Vec::new() };
        axis.ticks = multiples((low / step).ceil(), (high / step).floor())
            .map(|i| axis.tick(i * step, grouped(i * step)))
            .collect();
        axis
    }

    /// Returns a log axis around positive finite values, low ≤ high.
    pub fn log(low: f64, high: f64) -> Self {
        let (low, high) = (low.log10(), high.log10());
        let room = ((high - low) * 0.04).max(if high - low < 0.02 { 0.18 } else { 0.0 });
        let (mut low, mut high) = (low - room, high + room);
        if grid(low, high).len() < 2 {
            low = low.floor() + (10f64.powf(low - low.floor()) + 1e-9).floor().log10();
            high = high.floor() + (10f64.powf(high - high.floor()) - 1e-9).ceil().log10();
        }
        let mut axis = Self { log: true, low, high, ticks: Vec::new() };
        let grid = grid(low, high);
        let decades = grid.iter().filter(|&&(_, m, _)| m == 1).count();
        let labelled = if decades >= 2 { axis.labelled_decades() } else { axis.labelled_digits(&grid) };
        let name = |n, m| if decades >= 2 { power(m, n) } else { digit(m, n) };
        let (major, minor): (Vec<_>, Vec<_>) = grid.into_iter().partition(|&(n, m, _)| labelled(n, m));
        let major = major.into_iter().map(|(n, m, place)| axis.tick(place, name(n, m)));
        let minor = minor.into_iter().filter(|&(_, m, _)| decades <= if m == 1 { 40 } else { 8 });
        axis.ticks = major.chain(minor.map(|(.., place)| Tick { at: axis.at(place), label: None })).collect();
        axis
    }

    /// Returns an axis with ticks at these ascending values only and a small margin at both ends. If labels would touch, only
    /// every k-th has one. `room` returns the fraction of the axis that a label needs.
    pub fn of_values(values: &[(f64, String)], log: bool, room: impl Fn(&str) -> f64) -> Self {
        let place = |value: f64| if log { value.log10() } else { value };
        let ends = values.first().zip(values.last());
        let (low, high) = ends.map_or((0.0, 1.0), |(first, last)| (place(first.0), place(last.0)));
        // Neither a difference nor an end may overflow.
        let margin = if high > low { high * 0.04 - low * 0.04 } else { low.abs().max(1.0) / 2.0 };
        let (low, high) = ((low - margin).max(f64::MIN), (high + margin).min(f64::MAX));
        let mut axis = Self { log, low, high, ticks: Vec::new() };
        let ticks = values.iter().map(|(value, label)| axis.tick(place(*value), label.clone()));
        axis.ticks = thinned(ticks.collect(), room);
        axis
    }

    /// Returns an axis of slots of the same width, the i-th from i to i + 1, with labels in the middle.
    pub fn slots(labels: &[String], room: impl Fn(&str) -> f64) -> Self {
        let mut axis = Self { log: false, low: 0.0, high: labels.len().max(1) as f64, ticks: Vec::new() };
        let ticks = labels.iter().enumerate();
        let ticks = ticks.map(|(i, label)| axis.tick(i as f64 + 0.5, label.clone()));
        axis.ticks = thinned(ticks.collect(), room);
        axis
    }

    /// Returns an axis from 0 to 1 without ticks.
    pub fn bare() -> Self {
        Self { log: false, low: 0.0, high: 1.0, ticks: Vec::new() }
    }

    /// Removes labels that would touch and keeps the ticks. `room` returns the fraction of the axis that a label needs.
    pub fn fitted(mut self, room: impl Fn(&str) -> f64) -> Self {
        let (mut labelled, minor): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.ticks).into_iter().partition(|tick| tick.label.is_some());
        labelled.sort_by(|a, b| a.at.total_cmp(&b.at));
        self.ticks = thinned(labelled, room);
        self.ticks.extend(minor);
        self
    }

    /// Returns the labels with their positions from 0 to 1.
    pub fn labels(&self) -> impl Iterator<Item = (f64, &str)> {
        self.ticks.iter().filter_map(|tick| Some((tick.at, tick.label.as_deref()?)))
    }

    /// Whether the axis is logarithmic.
    pub fn is_log(&self) -> bool {
        self.log
    }

    /// Returns the ends, in log₁₀ on a log axis.
    pub fn ends(&self) -> (f64, f64) {
        (self.low, self.high)
    }

    /// Returns the position of a value from 0 (low end) to 1 (high end). Values beyond an end, such as 0 on a log axis, are
    /// clamped to it. The value must not be NaN.
    pub fn fraction(&self, value: f64) -> f64 {
        self.at(if self.log { value.max(0.0).log10() } else { value }).clamp(0.0, 1.0)
    }

    fn at(&self, place: f64) -> f64 {
        // Halving first avoids an overflow, because the limits may be the largest floats.
        (place / 2.0 - self.low / 2.0) / (self.high / 2.0 - self.low / 2.0)
    }

    fn tick(&self, place: f64, label: String) -> Tick {
        Tick { at: self.at(place), label: Some(label) }
    }

    /// Selects every k-th decade for labels, with the smallest k whose labels do not touch.
    fn labelled_decades(&self) -> Box<dyn Fn(i32, i32) -> bool> {
        let room = LABEL_SHARE * (self.high - self.low);
        let strides = [1, 2, 3, 4, 5, 6, 10, 20, 50, 100];
        let stride = strides.into_iter().find(|&stride| f64::from(stride) >= room).unwrap_or(200);
        Box::new(move |n, m| m == 1 && n % stride == 0)
    }

    /// Selects the digits to label on an axis of about a decade: as many as fit without touching.
    fn labelled_digits(&self, grid: &[(i32, i32, f64)]) -> Box<dyn Fn(i32, i32) -> bool> {
        let room = LABEL_SHARE * (self.high - self.low);
        let sets: [&[i32]; 5] =
            [&[1, 2, 3, 4, 5, 6, 7, 8, 9], &[1, 2, 3, 4, 6, 8], &[1, 2, 3, 5], &[1, 2, 5], &[1, 3]];
        let fits = |set: &[i32]| {
            let places: Vec<_> =
                grid.iter().filter(|(_, m, _)| set.contains(m)).map(|&(.., place)| place).collect();
            places.windows(2).all(|pair| pair[1] - pair[0] >= room)
        };
        let set = sets.into_iter().find(|set| fits(set)).unwrap_or(&[1]);
        Box::new(move |_, m| set.contains(&m))
    }
}

/// Keeps every k-th label, with the smallest k whose labels do not touch.
fn thinned(mut ticks: Vec<Tick>, room: impl Fn(&str) -> f64) -> Vec<Tick> {
    let half = |tick: &Tick| tick.label.as_deref().map_or(0.0, |label| room(label) / 2.0);
    let apart = |stride: usize| {
        let kept: Vec<_> = ticks.iter().step_by(stride).collect();
        kept.windows(2).all(|pair| pair[1].at - pair[0].at >= half(pair[0]) + half(pair[1]))
    };
    let stride = (1..=ticks.len()).find(|&stride| apart(stride)).unwrap_or(1);
    for (i, tick) in ticks.iter_mut().enumerate() {
        if i % stride > 0 {
            tick.label = None;
        }
    }
    ticks
}

/// Returns every m·10ⁿ within limits given in log₁₀, as (n, m, log₁₀).
fn grid(low: f64, high: f64) -> Vec<(i32, i32, f64)> {
    (low.floor() as i32..=high.ceil() as i32)
        .flat_map(|n| (1..=9).map(move |m| (n, m, f64::from(n) + f64::from(m).log10())))
        .filter(|&(.., place)| place >= low - 1e-9 && place <= high + 1e-9)
        .collect()
}

/// Returns the smallest of 1, 2, 5 × 10ⁿ that divides the range, with its ends rounded outwards, into at most `most`
/// pieces.
fn round_step(low: f64, high: f64, most: f64) -> f64 {
    let rough = high / most - low / most;
    let decade = 10f64.powf(rough.log10().floor());
    let fits = |step: &f64| (high / step - 1e-9).ceil() - (low / step + 1e-9).floor() <= most;
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * decade).find(fits).unwrap_or(20.0 * decade)
}

fn multiples(first: f64, last: f64) -> impl Iterator<Item = f64> {
    (0..=(last - first) as i64).take(MAX_TICKS).map(move |i| first + i as f64)
}

/// Formats `i × step` with the digits that the step needs, or in powers of ten if plain digits would be long.
fn decimal(i: f64, step: f64, largest: f64) -> String {
    let (step_decade, largest_decade) = (decade(step), decade(largest));
    let text = if i == 0.0 {
        "0".to_string()
    } else if largest >= 1e5 || step < 0.9e-3 {
        let digits = usize::try_from(largest_decade - step_decade).unwrap_or(0);
        let mantissa = i * (step / 10f64.powi(step_decade)) * 10f64.powi(step_decade - largest_decade);
        match format!("{mantissa:.digits$}").as_str() {
            "1" => format!("10^{{{largest_decade}}}"),
            mantissa => format!("{mantissa}·10^{{{largest_decade}}}"),
        }
    } else {
        let digits = usize::try_from(-step_decade).unwrap_or(0);
        format!("{:.digits$}", i * step)
    };
    text.replace('-', "−")
}

fn decade(value: f64) -> i32 {
    (value.log10() + 1e-9).floor() as i32
}

/// Formats m·10ⁿ in powers of ten.
fn power(m: i32, n: i32) -> String {
    let power = format!("10^{{{n}}}").replace('-', "−");
    if m == 1 { power } else { format!("{m}·{power}") }
}

/// Formats m·10ⁿ, in plain digits if they are few.
fn digit(m: i32, n: i32) -> String {
    match n {
        0..=4 => format!("{m}{}", "0".repeat(n.unsigned_abs() as usize)),
        -3..0 => format!("0.{}{m}", "0".repeat(n.unsigned_abs() as usize - 1)),
        _ => power(m, n),
    }
}

/// Formats a number with thin spaces between thousands.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) && digits.len() > 4 {
            text.push('\u{2009}');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::Axis;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().filter_map(|tick| tick.label.as_deref()).collect()
    }

    #[test]
    fn linear_ticks() {
        assert_eq!(labels(&Axis::share(0.3, 0.9)), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&Axis::share(0.0, 1.3)), ["0", "0.5", "1.0", "1.5"]);
        assert_eq!(labels(&Axis::linear(0.71, 1.38)), ["0.6", "0.8", "1.0", "1.2", "1.4"]);
        assert_eq!(labels(&Axis::linear(-3.0, 11.0)), ["−5", "0", "5", "10", "15"]);
        assert_eq!(
            labels(&Axis::linear(1e-12, 1e12)),
            ["0", "0.2·10^{12}", "0.4·10^{12}", "0.6·10^{12}", "0.8·10^{12}", "1.0·10^{12}"]
        );
        assert_eq!(
            labels(&Axis::linear(2e-7, 4e-7)),
            ["2.0·10^{−7}", "2.5·10^{−7}", "3.0·10^{−7}", "3.5·10^{−7}", "4.0·10^{−7}"]
        );
    }

    #[test]
    fn log_ticks() {
        assert_eq!(labels(&Axis::log(0.2, 700.0)), ["10^{0}", "10^{1}", "10^{2}"]);
        assert_eq!(labels(&Axis::log(1.0, 100.0)), ["10^{0}", "10^{1}", "10^{2}"]);
        assert_eq!(
            labels(&Axis::log(1e-12, 1e12)),
            ["10^{−12}", "10^{−9}", "10^{−6}", "10^{−3}", "10^{0}", "10^{3}", "10^{6}", "10^{9}", "10^{12}"]
        );
        assert_eq!(labels(&Axis::log(0.021, 0.048)), ["0.03", "0.04"]);
        assert_eq!(labels(&Axis::log(3.0, 40.0)), ["3", "5", "10", "20", "30"]);
        assert_eq!(labels(&Axis::log(2.2e-7, 2.8e-7)), ["2·10^{−7}", "3·10^{−7}"]);
        let minor = Axis::log(1.0, 100.0).ticks.iter().filter(|tick| tick.label.is_none()).count();
        assert_eq!(minor, 17);
    }

    #[test]
    fn token_ticks() {
        assert_eq!(labels(&Axis::tokens(&(0..2048))), ["0", "500", "1000", "1500", "2000"]);
        assert_eq!(labels(&Axis::tokens(&(0..16))), ["0", "2", "4", "6", "8", "10", "12", "14", "16"]);
        assert_eq!(labels(&Axis::tokens(&(900_000..1_000_000)))[0], "900\u{2009}000");
        assert_eq!(labels(&Axis::tokens(&(7..8))), ["7", "8"]);
        assert_eq!(labels(&Axis::tokens(&(0..0))), [""; 0]);
    }

    #[test]
    fn ticks_at_values() {
        let values: Vec<_> = (1..=8).map(|i| (f64::from(1 << i), (1 << i).to_string())).collect();
        let all = ["2", "4", "8", "16", "32", "64", "128", "256"];
        let axis = Axis::of_values(&values, true, |_| 0.12);
        assert_eq!(labels(&axis), all);
        let gaps: Vec<_> = axis.ticks.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
        assert!(gaps.iter().all(|gap| (gap - gaps[0]).abs() < 1e-12), "{gaps:?}");
        assert!((axis.fraction(2.0) - axis.ticks[0].at).abs() < 1e-12);
        assert_eq!(labels(&Axis::of_values(&values, true, |_| 0.2)), ["2", "8", "32", "128"]);
        let one = Axis::of_values(&values[..1], false, |_| 0.5);
        assert!((one.fraction(2.0) - 0.5).abs() < 1e-12);

        let names = ["xavier", "randn"].map(str::to_owned);
        let axis = Axis::slots(&names, |_| 0.1);
        assert_eq!(labels(&axis), names);
        assert!((axis.ticks[1].at - 0.75).abs() < 1e-12);
        assert_eq!(labels(&Axis::slots(&names, |_| 0.6)), ["xavier"]);
        assert_eq!(labels(&Axis::slots(&[], |_| 0.6)), [""; 0]);
    }

    #[test]
    fn every_range_is_sane() {
        let ends = [0.0, 5e-324, 1e-300, 1e-12, 0.9999, 1.0, 1.0 + 1e-15, 3.7, 1e12, 1.1e12, 1e300, f64::MAX];
        for low in ends {
            for high in ends.into_iter().filter(|&high| high >= low) {
                let mut axes =
                    vec![Axis::linear(low, high), Axis::linear(-high, low), Axis::share(low, high)];
                if low > 0.0 {
                    axes.push(Axis::log(low, high));
                }
                for axis in axes {
                    let what = format!("{low:e} to {high:e}: {axis:?}");
                    assert!((2..=12).contains(&labels(&axis).len()), "{what}");
                    assert!(axis.ticks.len() < 90, "{what}");
                    assert!(axis.ticks.iter().all(|tick| (-1e-6..=1.0 + 1e-6).contains(&tick.at)), "{what}");
                    assert!(
                        axis.fraction(low) <= axis.fraction(high) && !axis.fraction(low).is_nan(),
                        "{what}"
                    );
                    let mut seen = labels(&axis);
                    seen.sort_unstable();
                    seen.dedup();
                    assert_eq!(seen.len(), labels(&axis).len(), "{what}");
                    assert!(
                        seen.iter().all(|label| label.replace(['^', '{', '}'], "").chars().count() <= 11),
                        "{what}"
                    );
                }
            }
        }
    }
}
