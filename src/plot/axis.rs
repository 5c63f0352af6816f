//! Axes: limits, ticks and labels. Limits lie a small margin beyond the data, and ticks at round numbers between them. A
//! log axis works in log₁₀ throughout, so that it holds every positive float.

use std::ops::Range;

/// An axis whose limits and ticks are chosen for a range of values.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    log: bool,
    /// Ends of the axis, in log₁₀ on a log axis.
    low: f64,
    high: f64,
    /// Place that lies in the middle whatever the ends are: 0, for ratios about 1.
    middle: Option<f64>,
    /// Power of ten by which labels are divided.
    exponent: i32,
    /// Whether the axis has a slot per name.
    slots: bool,
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

/// Most ticks of a linear axis.
const TICKS: f64 = 6.0;
/// Most ticks that are ever made, whatever rounding does.
const MAX_TICKS: usize = 64;
/// Distance of the ends from the data, as a fraction of their range.
const MARGIN: f64 = 0.04;
/// Digits of the labels beside 1 on an axis about 1, and the least distance between them as a fraction of the axis.
const ABOUT_ONE: [f64; 19] = [
    1.001, 1.002, 1.005, 1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 100.0, 1e4, 1e8, 1e12, 1e16,
    1e24,
];
const BELOW_ONE: [f64; 19] = [
    0.999, 0.998, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3, 0.2, 0.1, 0.01, 1e-4, 1e-8, 1e-12, 1e-16,
    1e-24,
];
const APART: f64 = 0.12;
/// Position, in axes, at which values beyond an end are kept, so that coordinates stay finite.
const FAR: f64 = 1e6;
/// Minimum room for a y label, as a fraction of the axis: 10 pt on a panel of 86 pt.
const LABEL_SHARE: f64 = 0.115;

impl Default for Axis {
    /// Returns an axis from 0 to 1 without ticks.
    fn default() -> Self {
        Self { log: false, low: 0.0, high: 1.0, middle: None, exponent: 0, slots: false, ticks: Vec::new() }
    }
}

impl Axis {
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
        let room = high * MARGIN - low * MARGIN;
        // A margin does not suggest values that the data do not have: below 0.
        let from = if low >= 0.0 { (low - room).max(0.0) } else { (low - room).max(f64::MIN) };
        let to = if high <= 0.0 { (high + room).min(0.0) } else { (high + room).min(f64::MAX) };
        Self::exact(from, to, false)
    }

    /// Returns an axis with exactly these ends, low < high.
    pub fn exact(low: f64, high: f64, log: bool) -> Self {
        // Ends that differ in their last digits leave no room for ticks.
        if log && high.log10() - low.log10() < 1e-9 {
            return Self::log(low, high);
        }
        if high / 2.0 - low / 2.0 <= low.abs().max(high.abs()) * 1e-9 {
            return Self::linear(low, high);
        }
        if log {
            return Self::of_logs(low.log10(), high.log10());
        }
        let step = tick_step(low, high);
        let (first, last) = ((low / step - 1e-9).ceil(), (high / step + 1e-9).floor());
        let largest = low.abs().max(high.abs());
        let exponent = if (1e-2..1e5).contains(&largest) { 0 } else { decade(largest) };
        let mut axis = Self { low, high, exponent, ..Self::default() };
        // No tick lies beyond the largest float.
        let places = multiples(first, last).filter(|i| (i * step).is_finite());
        axis.ticks = places.map(|i| axis.tick(i * step, decimal(i, step, exponent))).collect();
        axis
    }

    /// Returns the axis of a colour scale for ratios: 1 is in the middle, and each side has its own scale.
    pub fn about_one(low: f64, high: f64) -> Self {
        let middle = (low < 1.0 && high > 1.0).then_some(0.0);
        let mut axis = Self { log: true, low: low.log10(), high: high.log10(), middle, ..Self::default() };
        let mut ticks = vec![axis.tick(0.0, "1".to_owned())];
        for (end, values) in [(low, BELOW_ONE), (high, ABOUT_ONE)] {
            let beyond = |value: &f64| if end < 1.0 { *value >= end } else { *value <= end };
            let mut last = axis.fraction(1.0);
            // From the end inwards, so that the values far from 1 have labels.
            let mut kept = Vec::new();
            let mut next = f64::INFINITY;
            for value in values.into_iter().filter(beyond).rev() {
                let at = axis.fraction(value);
                if (at - last).abs() >= APART && (at - next).abs() >= APART {
                    kept.push(axis.tick(value.log10(), plain(value)));
                    next = at;
                }
            }
            last = axis.fraction(end);
            if kept.is_empty() && (last - axis.fraction(1.0)).abs() > APART {
                kept.push(axis.tick(end.log10(), plain(end)));
            }
            ticks.extend(kept);
        }
        axis.ticks = ticks;
        axis
    }

    /// Returns an x axis over exactly these tokens; it has no ticks without tokens.
    pub fn tokens(tokens: &Range<u64>) -> Self {
        if tokens.is_empty() {
            return Self::default();
        }
        let low = tokens.start as f64;
        // At 2^53 floats no longer tell a token from the next one.
        let high = (tokens.end as f64).max(low.next_up());
        let step = tick_step(low, high).max(1.0);
        let mut axis = Self { low, high, ..Self::default() };
        axis.ticks = multiples((low / step).ceil(), (high / step).floor())
            .map(|i| axis.tick(i * step, grouped(i * step)))
            .collect();
        axis
    }

    /// Returns a log axis around positive finite values, low ≤ high.
    pub fn log(low: f64, high: f64) -> Self {
        let (low, high) = (low.log10(), high.log10());
        let room = ((high - low) * MARGIN).max(if high - low < 0.02 { 0.18 } else { 0.0 });
        Self::of_logs(low - room, high + room)
    }

    fn of_logs(mut low: f64, mut high: f64) -> Self {
        if grid(low, high).len() < 2 {
            low = low.floor() + (10f64.powf(low - low.floor()) + 1e-9).floor().log10();
            high = high.floor() + (10f64.powf(high - high.floor()) - 1e-9).ceil().log10();
        }
        let mut axis = Self { log: true, low, high, ..Self::default() };
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

    /// Returns an axis with ticks at these ascending values only and a small margin at both ends.
    pub fn of_values(values: &[(f64, String)], log: bool) -> Self {
        let place = |value: f64| if log { value.log10() } else { value };
        let ends = values.first().zip(values.last());
        let (low, high) = ends.map_or((0.0, 1.0), |(first, last)| (place(first.0), place(last.0)));
        // Neither a difference nor an end may overflow, and the ends of the smallest floats differ too.
        let margin = if high > low { high * MARGIN - low * MARGIN } else { low.abs().max(1.0) / 2.0 };
        let margin = margin.max(f64::MIN_POSITIVE);
        let (low, high) = ((low - margin).max(f64::MIN), (high + margin).min(f64::MAX));
        let mut axis = Self { log, low, high, ..Self::default() };
        let ticks = values.iter().map(|(value, label)| axis.tick(place(*value), label.clone()));
        axis.ticks = ticks.collect();
        axis
    }

    /// Returns an axis of slots of the same width, the i-th from i to i + 1, with labels in the middle.
    pub fn slots(labels: &[String]) -> Self {
        let mut axis = Self { high: labels.len().max(1) as f64, slots: true, ..Self::default() };
        let ticks = labels.iter().enumerate();
        axis.ticks = ticks.map(|(i, label)| axis.tick(i as f64 + 0.5, label.clone())).collect();
        axis
    }

    /// Returns the axis with these texts as labels, in the order of the ticks that have one.
    pub fn relabelled(mut self, labels: Vec<String>) -> Self {
        let places = self.ticks.iter_mut().filter(|tick| tick.label.is_some());
        places.zip(labels).for_each(|(tick, label)| tick.label = Some(label));
        self
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

    /// Whether the axis has a slot per name.
    pub fn is_slots(&self) -> bool {
        self.slots
    }

    /// Returns the lowest and highest value on the axis.
    pub fn range(&self) -> (f64, f64) {
        if self.log { (10f64.powf(self.low), 10f64.powf(self.high)) } else { (self.low, self.high) }
    }

    /// Returns the title of the axis with the power of ten of its labels.
    pub fn titled(&self, title: &str) -> String {
        if self.exponent == 0 {
            return title.to_owned();
        }
        format!("{title} (10^{{{}}})", self.exponent).replace('-', "−")
    }

    /// Returns the ends, in log₁₀ on a log axis.
    pub fn ends(&self) -> (f64, f64) {
        (self.low, self.high)
    }

    /// Returns the position of a value from 0 (low end) to 1 (high end). Values beyond an end, such as 0 on a log axis, are
    /// clamped to it. The value must not be NaN.
    pub fn fraction(&self, value: f64) -> f64 {
        self.beyond(value).clamp(0.0, 1.0)
    }

    /// Returns the position of a value, below 0 or above 1 if it lies beyond an end, however far.
    pub fn beyond(&self, value: f64) -> f64 {
        self.at(if self.log { value.max(0.0).log10() } else { value }).clamp(-FAR, FAR)
    }

    /// Whether a value lies between the ends.
    pub fn holds(&self, value: f64) -> bool {
        let at = self.beyond(value);
        (-1e-9..=1.0 + 1e-9).contains(&at)
    }

    /// Whether a range from low to high has a part between the ends.
    pub fn touches(&self, (low, high): (f64, f64)) -> bool {
        self.beyond(high) >= -1e-9 && self.beyond(low) <= 1.0 + 1e-9
    }

    fn at(&self, place: f64) -> f64 {
        if let Some(middle) = self.middle {
            return if place < middle {
                0.5 * (place - self.low) / (middle - self.low)
            } else {
                0.5 + 0.5 * (place - middle) / (self.high - middle)
            };
        }
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

/// Returns the smallest of 1, 2, 5 × 10ⁿ with at most [`TICKS`] multiples in the range. There are at least two, because a
/// larger step is at most 2.5 times a smaller one.
fn tick_step(low: f64, high: f64) -> f64 {
    let rough = high / TICKS - low / TICKS;
    let decade = 10f64.powf(rough.log10().floor());
    let fits = |step: &f64| (high / step + 1e-9).floor() - (low / step - 1e-9).ceil() < TICKS;
    [0.5, 1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * decade).find(fits).unwrap_or(20.0 * decade)
}

fn multiples(first: f64, last: f64) -> impl Iterator<Item = f64> {
    (0..=(last - first) as i64).take(MAX_TICKS).map(move |i| first + i as f64)
}

/// Formats `i × step` ÷ 10^exponent with the digits that the step needs.
fn decimal(i: f64, step: f64, exponent: i32) -> String {
    if i == 0.0 {
        return "0".to_owned();
    }
    let step_decade = decade(step);
    let digits = usize::try_from(exponent - step_decade).unwrap_or(0);
    let mantissa = i * (step / 10f64.powi(step_decade)) * 10f64.powi(step_decade - exponent);
    format!("{mantissa:.digits$}").replace('-', "−")
}

/// Formats a ratio with as few digits as it has.
fn plain(value: f64) -> String {
    match value {
        1e4.. | ..1e-3 => power(1, decade(value)),
        _ => format!("{}", (value * 1e3).round() / 1e3),
    }
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
        assert_eq!(labels(&Axis::linear(0.0, 1.0)), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&Axis::linear(0.71, 1.38)), ["0.8", "1.0", "1.2", "1.4"]);
        assert_eq!(labels(&Axis::linear(-3.0, 11.0)), ["0", "5", "10"]);
        let large = Axis::linear(1e-12, 1e12);
        assert_eq!(labels(&large), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(large.titled("tokens"), "tokens (10^{12})");
        let small = Axis::linear(0.002_11, 0.002_32);
        assert_eq!(labels(&small), ["2.15", "2.20", "2.25", "2.30"]);
        assert_eq!(small.titled("loss"), "loss (10^{−3})");
    }

    #[test]
    fn ends_are_near_the_data() {
        for (low, high) in [(0.71, 1.38), (0.101, 0.999), (3.0, 17.3), (-1.0, 21.0)] {
            let (from, to) = Axis::linear(low, high).ends();
            let room = 0.05 * (high - low);
            assert!(from > low - room && to < high + room, "{from} to {to} for {low} to {high}");
        }
        assert!(Axis::linear(0.001, 1.0).ends().0 >= 0.0, "not below 0 for values above 0");
    }

    #[test]
    fn each_side_of_one_has_its_own_scale() {
        let axis = Axis::about_one(0.85, 10.0);
        assert!((axis.fraction(1.0) - 0.5).abs() < 1e-12);
        assert!(axis.fraction(0.85).abs() < 1e-12 && axis.fraction(0.92) < 0.27, "{axis:?}");
        assert_eq!(labels(&axis), ["1", "0.9", "0.95", "10", "5", "2"]);
        let below = Axis::about_one(0.5, 1.0);
        assert!((below.fraction(1.0) - 1.0).abs() < 1e-12);
        assert_eq!(labels(&Axis::about_one(0.9994, 1.3)), ["1", "0.999", "1.2", "1.1"]);
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
        assert_eq!(labels(&Axis::tokens(&(0..16))), ["0", "5", "10", "15"]);
        assert_eq!(labels(&Axis::tokens(&(900_000..1_000_000)))[0], "900\u{2009}000");
        assert_eq!(labels(&Axis::tokens(&(7..8))), ["7", "8"]);
        assert_eq!(labels(&Axis::tokens(&(0..0))), [""; 0]);
        let last = 1 << 53;
        assert!(Axis::tokens(&(last..last + 1)).at(last as f64).is_finite());
    }

    #[test]
    fn ticks_at_values() {
        let values: Vec<_> = (1..=8).map(|i| (f64::from(1 << i), (1 << i).to_string())).collect();
        let all = ["2", "4", "8", "16", "32", "64", "128", "256"];
        let axis = Axis::of_values(&values, true);
        assert_eq!(labels(&axis), all);
        let gaps: Vec<_> = axis.ticks.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
        assert!(gaps.iter().all(|gap| (gap - gaps[0]).abs() < 1e-12), "{gaps:?}");
        assert!((axis.fraction(2.0) - axis.ticks[0].at).abs() < 1e-12);
        assert_eq!(labels(&axis.clone().fitted(|_| 0.12)), all);
        assert_eq!(labels(&axis.fitted(|_| 0.2)), ["2", "8", "32", "128"]);
        let one = Axis::of_values(&values[..1], false);
        assert!((one.fraction(2.0) - 0.5).abs() < 1e-12);
        // The margin is less than the smallest float.
        let smallest = Axis::of_values(&[(0.0, "0".to_owned()), (5e-324, "5e-324".to_owned())], false);
        assert!(smallest.ticks.iter().all(|tick| (0.0..=1.0).contains(&tick.at)), "{smallest:?}");

        let names = ["xavier", "randn"].map(str::to_owned);
        let axis = Axis::slots(&names);
        assert_eq!(labels(&axis), names);
        assert!((axis.ticks[1].at - 0.75).abs() < 1e-12);
        assert_eq!(labels(&axis.fitted(|_| 0.6)), ["xavier"]);
        assert_eq!(labels(&Axis::slots(&[])), [""; 0]);
    }

    #[test]
    fn every_range_is_sane() {
        let ends = [0.0, 5e-324, 1e-300, 1e-12, 0.9999, 1.0, 1.0 + 1e-15, 3.7, 1e12, 1.1e12, 1e300, f64::MAX];
        for low in ends {
            for high in ends.into_iter().filter(|&high| high >= low) {
                let mut axes = vec![Axis::linear(low, high), Axis::linear(-high, low)];
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
