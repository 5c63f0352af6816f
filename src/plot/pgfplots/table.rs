//! The figure's lines as columns of a CSV file.

use super::text::number;
use crate::plot::chart::Line;
use crate::plot::downsample::Point;

/// Columns by name; shorter ones are padded with `nan`.
#[derive(Debug, Default)]
pub struct Table {
    columns: Vec<(String, Vec<f64>)>,
}

/// The columns of a line.
#[derive(Debug)]
pub struct Columns {
    pub x: String,
    pub y: String,
    /// Low and high ends of the intervals.
    pub ends: Option<(String, String)>,
    /// x and y of the outlines of bands.
    pub outline: Option<(String, String)>,
}

impl Table {
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Adds a column and returns its unique name.
    pub fn push(&mut self, name: &str, values: Vec<f64>) -> String {
        let letter = |letter: char| if letter.is_alphanumeric() || letter == '.' { letter } else { '_' };
        let plain: String = name
            .replace('θ', "theta")
            .replace('η', "eta")
            .replace('α', "alpha")
            .chars()
            .map(letter)
            .collect();
        let plain: String = plain.chars().filter(char::is_ascii).collect();
        let plain = plain.split('_').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("_");
        let taken = |name: &str| self.columns.iter().any(|(other, _)| other == name);
        let mut unique = plain.clone();
        let mut count = 1;
        while unique.is_empty() || taken(&unique) {
            count += 1;
            unique = format!("{plain}_{count}");
        }
        self.columns.push((unique.clone(), values));
        unique
    }

    /// Adds lines, which share one column of x if possible. A row of `nan` separates stretches.
    pub fn push_lines(&mut self, x: &str, lines: &[&Line]) -> Vec<Columns> {
        let xs = |line: &Line| broken(&line.stretches, |point: &Point| point.0);
        let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        let first = lines.first().map(|line| xs(line));
        let shared = first.filter(|first| lines.iter().all(|line| bits(&xs(line)) == bits(first)));
        let shared = shared.map(|xs| self.push(x, xs));
        let columns = lines.iter().map(|line| {
            let own = |table: &mut Self| table.push(&format!("{} x", line.name), xs(line));
            let x = shared.clone().unwrap_or_else(|| own(self));
            let y = self.push(&line.name, broken(&line.stretches, |point| point.1));
            let mut columns = Columns { x, y, ends: None, outline: None };
            if !line.intervals.is_empty() {
                let low = broken(&line.intervals, |ends| ends.map_or(f64::NAN, |ends| ends.0));
                let high = broken(&line.intervals, |ends| ends.map_or(f64::NAN, |ends| ends.1));
                let low = self.push(&format!("{} low", line.name), low);
                columns.ends = Some((low, self.push(&format!("{} high", line.name), high)));
            }
            let outlines = if line.band { outlines(line) } else { Vec::new() };
            if !outlines.is_empty() {
                let x = self.push(&format!("{} band x", line.name), broken(&outlines, |point| point.0));
                let y = self.push(&format!("{} band", line.name), broken(&outlines, |point| point.1));
                columns.outline = Some((x, y));
            }
            columns
        });
        columns.collect()
    }

    /// Returns the table as CSV.
    pub fn text(&self) -> String {
        let rows = self.columns.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
        let row = |i: usize| {
            let cells =
                self.columns.iter().map(|(_, values)| number(values.get(i).copied().unwrap_or(f64::NAN)));
            cells.collect::<Vec<_>>().join(",")
        };
        let header = self.columns.iter().map(|(name, _)| &name[..]).collect::<Vec<_>>().join(",");
        std::iter::once(header).chain((0..rows).map(row)).map(|line| line + "\n").collect()
    }
}

/// Joins stretches with a `nan` between them.
fn broken<T>(stretches: &[Vec<T>], value: impl Fn(&T) -> f64) -> Vec<f64> {
    let mut values = Vec::new();
    for (i, stretch) in stretches.iter().enumerate() {
        if i > 0 {
            values.push(f64::NAN);
        }
        values.extend(stretch.iter().map(&value));
    }
    values
}

/// Returns outlines along the high ends and back along the low ones, for stretches with at least two intervals.
fn outlines(line: &Line) -> Vec<Vec<Point>> {
    let of_stretch = |(points, ends): (&Vec<Point>, &Vec<_>)| {
        let ends: Vec<_> = points
            .iter()
            .zip(ends)
            .filter_map(|(point, ends)| Some((point.0, (*ends as Option<Point>)?)))
            .collect();
        let upper = ends.iter().map(|&(x, (_, high))| (x, high));
        let lower = ends.iter().rev().map(|&(x, (low, _))| (x, low));
        upper.chain(lower).collect::<Vec<_>>()
    };
    let outlines = line.stretches.iter().zip(&line.intervals).map(of_stretch);
    outlines.filter(|outline| outline.len() > 3).collect()
}

#[cfg(test)]
mod tests {
    use plotters::style::RGBColor;

    use super::Table;
    use crate::plot::chart::{Line, LineStyle};

    #[test]
    fn lines_share_x_or_have_their_own() {
        let style = LineStyle::line(RGBColor(0, 0, 0), 1.0, 1.0, None);
        let one = Line::new("a", style, vec![vec![(1.0, 2.0)], vec![(3.0, 4.0)]]);
        let same = Line::new("α = 0.1", style, vec![vec![(1.0, 5.0)], vec![(3.0, 6.0)]]);
        let other = Line::new("a", style, vec![vec![(1.0, 7.0)]]);
        let mut table = Table::default();
        let columns = table.push_lines("tokens", &[&one, &same]);
        assert_eq!(
            (&columns[0].x[..], &columns[1].x[..], &columns[1].y[..]),
            ("tokens", "tokens", "alpha_0.1")
        );
        let mut table = Table::default();
        let columns = table.push_lines("tokens", &[&one, &other]);
        assert_eq!((&columns[0].x[..], &columns[1].x[..], &columns[1].y[..]), ("a_x", "a_x_2", "a_2"));
        assert_eq!(table.text(), "a_x,a,a_x_2,a_2\n1,2,1,7\nnan,nan,nan,nan\n3,4,nan,nan\n");
    }
}
