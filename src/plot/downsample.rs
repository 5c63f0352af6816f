//! A line of any length in bounded memory. All bins hold the same number of points. When all bins are full, neighbours
//! are merged and the bin width doubles. Each bin keeps its first, lowest, highest and last point (the "M4" aggregation:
//! Jugel et al., VLDB 2014). Every point drawn is therefore a point of the data, and no spike is lost. The line is exact
//! until the first merge.
//!
//! Values that an axis cannot show break the line, and their places are kept. These are NaN, infinities and, on a log
//! axis, values ≤ 0.

use std::ops::{Range, RangeInclusive};

/// A point (x, y).
pub type Point = (f64, f64);

/// The reason why a value cannot be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unshown {
    /// NaN or an infinity.
    NotFinite,
    /// Zero or below, on a log axis.
    NotPositive,
}

/// The points of one bin that are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Extent {
    first: Point,
    lowest: Point,
    highest: Point,
    last: Point,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Bin {
    extent: Option<Extent>,
    /// Sums of x and y over the points drawn, and their count.
    sums: (f64, f64, u64),
    /// Whether a value in this bin is missing, so that the line continues neither to nor from it.
    breaks: bool,
    /// x of the first and last values that cannot be drawn, by reason: not finite, not positive.
    unshown: [Option<(f64, f64)>; 2],
}

/// A line of any length in bounded memory.
#[derive(Clone, Debug)]
pub struct DownsampledLine {
    log: bool,
    capacity: usize,
    width: u64,
    in_last: u64,
    bins: Vec<Bin>,
    counts: [u64; 2],
}

impl DownsampledLine {
    /// Returns an empty line of at most `capacity` bins (even, at least 2), for a linear or a log axis.
    pub fn new(capacity: usize, log: bool) -> Self {
        debug_assert!(capacity >= 2 && capacity.is_multiple_of(2));
        Self { log, capacity, width: 1, in_last: 0, bins: Vec::new(), counts: [0; 2] }
    }

    /// Adds the next point. `None` is a value that does not apply; it breaks the line but is not reported.
    pub fn push(&mut self, x: f64, y: Option<f64>) {
        let mut bin = Bin { breaks: true, ..Bin::default() };
        match y {
            Some(y) if !y.is_finite() => bin.unshown[Unshown::NotFinite as usize] = Some((x, x)),
            Some(y) if self.log && y <= 0.0 => bin.unshown[Unshown::NotPositive as usize] = Some((x, x)),
            Some(y) => {
                let point = (x, y);
                let extent = Extent { first: point, lowest: point, highest: point, last: point };
                bin = Bin { extent: Some(extent), sums: (x, y, 1), ..Bin::default() };
            }
            None => {}
        }
        for (count, place) in self.counts.iter_mut().zip(bin.unshown) {
            *count += u64::from(place.is_some());
        }

        if self.in_last == self.width && self.bins.len() == self.capacity {
            self.bins = self.bins.chunks(2).map(|pair| pair[0].clone().merged(&pair[1])).collect();
            self.width *= 2;
            // The last bin is full again, because two full ones were merged into it.
            self.in_last = self.width;
        }
        match self.bins.last_mut() {
            Some(last) if self.in_last < self.width => {
                *last = std::mem::take(last).merged(&bin);
                self.in_last += 1;
            }
            _ => {
                self.bins.push(bin);
                self.in_last = 1;
            }
        }
    }

    /// Returns the number of points per bin.
    pub fn bin_width(&self) -> u64 {
        self.width
    }

    /// Returns the number of values that could not be drawn for this reason.
    pub fn count(&self, reason: Unshown) -> u64 {
        self.counts[reason as usize]
    }

    /// Returns the x ranges of values that could not be drawn, one per bin.
    pub fn places(&self, reason: Unshown) -> impl Iterator<Item = RangeInclusive<f64>> {
        self.bins.iter().filter_map(move |bin| bin.unshown[reason as usize]).map(|(start, end)| start..=end)
    }

    /// Returns the lowest and highest y drawn.
    pub fn range(&self) -> Option<(f64, f64)> {
        let extents = self.bins.iter().filter_map(|bin| bin.extent);
        extents.map(|extent| (extent.lowest.1, extent.highest.1)).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
    }

    /// Returns the unbroken stretches, each of at least one point.
    pub fn stretches(&self) -> Vec<Vec<Point>> {
        stretches(&self.bins, |bin| bin.extent.map(Extent::points).unwrap_or_default())
    }

    /// Returns the line in at most `most` cells: the points that each spans, counted from 0, their mean, and whether some
    /// cannot be drawn.
    pub fn cells(&self, most: usize) -> Vec<(Range<u64>, Option<f64>, bool)> {
        let group = self.bins.len().div_ceil(most.max(1)).max(1);
        let end = (self.bins.len().max(1) as u64 - 1) * self.width + self.in_last;
        let cell = |(i, bins): (usize, &[Bin])| {
            let all = bins.iter().fold(Bin::default(), Bin::merged);
            let start = (i * group) as u64 * self.width;
            let (_, sum, count) = all.sums;
            let mean = (count > 0).then(|| sum / count as f64).filter(|mean| mean.is_finite());
            (start..(start + group as u64 * self.width).min(end), mean, all.unshown != [None; 2])
        };
        self.bins.chunks(group).enumerate().map(cell).collect()
    }

    /// Returns the trend of a line of more points than bins, as (points per mean, unbroken stretches of at most `most`
    /// means). Returns `None` for a line that is already exact.
    pub fn trend(&self, most: usize) -> Option<(u64, Vec<Vec<Point>>)> {
        if self.width == 1 {
            return None;
        }
        let group = self.bins.len().div_ceil(most);
        let merge = |bins: &[Bin]| bins.iter().fold(Bin::default(), Bin::merged);
        let bins: Vec<_> = self.bins.chunks(group).map(merge).collect();
        let mean = |(x, y, count): (f64, f64, u64)| {
            vec![(x / count as f64, y / count as f64); count.min(1) as usize]
        };
        // A sum may overflow where its terms do not.
        let finite = |point: &Point| point.1.is_finite();
        let means = stretches(&bins, |bin| mean(bin.sums).into_iter().filter(finite).collect());
        Some((self.width * group as u64, means))
    }
}

fn stretches(bins: &[Bin], points: impl Fn(&Bin) -> Vec<Point>) -> Vec<Vec<Point>> {
    let mut stretches = Vec::new();
    let mut open = Vec::new();
    for bin in bins {
        if bin.breaks {
            stretches.push(std::mem::take(&mut open));
        }
        open.extend(points(bin));
        if bin.breaks {
            stretches.push(std::mem::take(&mut open));
        }
    }
    stretches.push(open);
    stretches.retain(|stretch| !stretch.is_empty());
    stretches
}

impl Bin {
    fn merged(self, next: &Self) -> Self {
        let extent = match (self.extent, next.extent) {
            (Some(a), Some(b)) => Some(a.merged(&b)),
            (a, b) => a.or(b),
        };
        let span = |a: Option<(f64, f64)>, b: Option<(f64, f64)>| match (a, b) {
            (Some(a), Some(b)) => Some((a.0, b.1)),
            (a, b) => a.or(b),
        };
        let unshown = [span(self.unshown[0], next.unshown[0]), span(self.unshown[1], next.unshown[1])];
        let sums = (self.sums.0 + next.sums.0, self.sums.1 + next.sums.1, self.sums.2 + next.sums.2);
        Self { extent, sums, breaks: self.breaks || next.breaks, unshown }
    }
}

impl Extent {
    fn merged(self, next: &Self) -> Self {
        Self {
            first: self.first,
            lowest: if next.lowest.1 < self.lowest.1 { next.lowest } else { self.lowest },
            highest: if next.highest.1 > self.highest.1 { next.highest } else { self.highest },
            last: next.last,
        }
    }

    /// Returns the points in the order of x, each once.
    fn points(self) -> Vec<Point> {
        let (a, b) = if self.lowest.0 <= self.highest.0 {
            (self.lowest, self.highest)
        } else {
            (self.highest, self.lowest)
        };
        let mut points = vec![self.first, a, b, self.last];
        points.dedup();
        points
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};

    use super::{DownsampledLine, Point, Unshown};

    fn downsample(capacity: usize, log: bool, values: &[f64]) -> DownsampledLine {
        let mut line = DownsampledLine::new(capacity, log);
        for (i, &value) in values.iter().enumerate() {
            line.push(i as f64, Some(value));
        }
        line
    }

    fn points(values: &[f64]) -> Vec<Point> {
        values.iter().enumerate().map(|(i, &value)| (i as f64, value)).collect()
    }

    #[test]
    fn exact_until_full() {
        let values = [3.0, 1.0, 2.0, 5.0];
        let line = downsample(4, false, &values);
        assert_eq!(line.bin_width(), 1);
        assert_eq!(line.stretches(), [points(&values)]);
    }

    #[test]
    fn no_spike_is_lost_and_size_is_flat() {
        let spikes = [17usize, 4_242, 65_536, 99_999];
        let mut line = DownsampledLine::new(64, false);
        for i in 0..100_000usize {
            line.push(i as f64, Some(if spikes.contains(&i) { 9.0 } else { 1.0 }));
        }
        assert_eq!(line.bin_width(), 2048);
        assert!(line.bins.capacity() <= 64);
        let drawn = &line.stretches()[0];
        assert!(drawn.len() <= 4 * 64);
        for spike in spikes {
            assert!(drawn.contains(&(spike as f64, 9.0)), "the spike at {spike} is drawn");
        }
        assert_eq!((drawn[0], *drawn.last().unwrap()), ((0.0, 1.0), (99_999.0, 9.0)));
    }

    #[test]
    fn the_trend_is_of_means() {
        assert_eq!(downsample(4, false, &[1.0, 3.0]).trend(4), None);
        let line = downsample(4, false, &[1.0, 3.0, 5.0, 5.0, f64::NAN, 8.0, 2.0, 4.0]);
        let means = vec![vec![(0.5, 2.0), (2.5, 5.0)], vec![(5.0, 8.0)], vec![(6.5, 3.0)]];
        assert_eq!(line.trend(4), Some((2, means)));
        assert_eq!(line.trend(2), Some((4, vec![vec![(1.5, 3.5)], vec![(6.0, 14.0 / 3.0)]])));
    }

    #[test]
    fn cells_are_means() {
        let line = downsample(4, false, &[1.0, 3.0, 5.0, 5.0, f64::NAN]);
        let expected = [(0..2, Some(2.0), false), (2..4, Some(5.0), false), (4..5, None, true)];
        assert_eq!(line.cells(4), expected);
        assert_eq!(line.cells(1), [(0..5, Some(3.5), true)]);
        assert_eq!(DownsampledLine::new(2, false).cells(8), []);
    }

    #[test]
    fn breaks_at_what_is_not_finite() {
        let line = downsample(8, false, &[1.0, 2.0, f64::NAN, 3.0, f64::INFINITY, -4.0, 0.0]);
        assert_eq!(
            line.stretches(),
            [vec![(0.0, 1.0), (1.0, 2.0)], vec![(3.0, 3.0)], vec![(5.0, -4.0), (6.0, 0.0)]]
        );
        assert_eq!((line.count(Unshown::NotFinite), line.count(Unshown::NotPositive)), (2, 0));
        assert_eq!(line.places(Unshown::NotFinite).collect::<Vec<_>>(), [2.0..=2.0, 4.0..=4.0]);
        assert_eq!(line.range(), Some((-4.0, 3.0)));
    }

    #[test]
    fn breaks_at_what_a_log_axis_cannot_show() {
        let line = downsample(8, true, &[1.0, 0.0, 2.0, -1.0, f64::NAN]);
        assert_eq!(line.stretches(), [[(0.0, 1.0)], [(2.0, 2.0)]]);
        assert_eq!((line.count(Unshown::NotFinite), line.count(Unshown::NotPositive)), (1, 2));
    }

    #[test]
    fn a_missing_value_breaks_and_is_not_counted() {
        let mut line = downsample(8, false, &[1.0]);
        line.push(1.0, None);
        line.push(2.0, Some(2.0));
        assert_eq!(line.stretches(), [[(0.0, 1.0)], [(2.0, 2.0)]]);
        assert_eq!(line.count(Unshown::NotFinite), 0);
        assert_eq!(DownsampledLine::new(2, false).range(), None);
    }

    proptest! {
        #[test]
        fn merges_are_exact(
            values in prop::collection::vec(prop_oneof![9 => -1e3..1e3f64, 1 => Just(f64::NAN)], 0..200),
        ) {
            let line = downsample(8, false, &values);
            let finite: Vec<_> = points(&values).into_iter().filter(|point| point.1.is_finite()).collect();
            let drawn: Vec<_> = line.stretches().concat();
            prop_assert!(line.bins.len() <= 8);
            prop_assert!(drawn.iter().all(|point| finite.contains(point)), "only points of the data");
            prop_assert!(drawn.is_sorted_by(|a, b| a.0 < b.0));
            prop_assert_eq!(drawn.first(), finite.first());
            prop_assert_eq!(drawn.last(), finite.last());
            prop_assert_eq!(line.count(Unshown::NotFinite), (values.len() - finite.len()) as u64);
            let by_value = |a: &&Point, b: &&Point| a.1.total_cmp(&b.1);
            let lowest = finite.iter().min_by(by_value).map(|point| point.1);
            let highest = finite.iter().max_by(by_value).map(|point| point.1);
            prop_assert_eq!(line.range(), lowest.zip(highest));
            // No stretch spans a value that is not finite.
            for stretch in line.stretches() {
                let (start, end) = (stretch[0].0, stretch[stretch.len() - 1].0);
                let inside = points(&values).into_iter().filter(|p| p.0 > start && p.0 < end && !p.1.is_finite());
                prop_assert!((inside.count() as u64) < line.bin_width());
            }
        }
    }
}
