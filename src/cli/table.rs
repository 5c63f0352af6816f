//! Cells in aligned columns, for people. Control characters in text from files and arguments are escaped.

use std::borrow::Cow;

use crate::escape::for_terminal;

/// Maximum width of a column. A longer cell, such as a path or an error, exceeds it, so that one long name does not fill
/// every row with spaces.
const MAX_WIDTH: usize = 100;

/// Formats a number with six digits or fewer, in powers of ten where plain digits would be long.
pub fn number(x: f64) -> String {
    if x == 0.0 || (1e-3..1e6).contains(&x.abs()) { format!("{x:.5}") } else { format!("{x:.4e}") }
}

/// Formats rows as lines. The first `left` columns are aligned to the left and the others to the right.
pub fn aligned<S: AsRef<str>>(rows: &[Vec<S>], left: usize) -> Vec<String> {
    let rows: Vec<Vec<_>> =
        rows.iter().map(|row| row.iter().map(|cell| for_terminal(cell.as_ref())).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.filter(|&width| width <= MAX_WIDTH).max().unwrap_or_default()
        })
        .collect();
    let line = |row: &Vec<Cow<str>>| {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let space = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
            if column > 0 {
                line += "  ";
            }
            if column < left {
                line += cell;
                line += &space;
            } else {
                line += &space;
                line += cell;
            }
        }
        line
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::{aligned, number};

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, 0.5, -123_456.789, 1e-4, 1.884_572_156e30, f64::NAN].map(number);
        assert_eq!(texts, ["0.00000", "0.50000", "-123456.78900", "1.0000e-4", "1.8846e30", "NaN"]);
    }

    #[test]
    fn columns_are_aligned() {
        assert_eq!(aligned(&[vec!["name", "n"], vec!["a", "10"]], 1), ["name   n", "a     10"]);
        let long = "x".repeat(70_000);
        let lines = aligned(&[vec![&long[..], "1"], vec!["a\x1b", "2"], vec!["abc", "3"]], 1);
        assert_eq!(lines, [format!("{long}  1"), "a\\u{1b}  2".to_owned(), "abc      3".to_owned()]);
    }
}
