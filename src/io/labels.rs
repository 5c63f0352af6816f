//! Labels of a sequence's tokens: a CSV with the columns `position` (token), `segment` (the token's segment)
//! and optionally `repeat` (1 where the text occurred before). Other columns are ignored, and rows may come in
//! any order. A row is valid until the next one's position; the last row is valid for one token. A file may
//! therefore name every token, or only the places of changes.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result};
use crate::io::table::Table;
use crate::io::text::TextFile;

/// Most bytes of labels: one row per token for some twenty million tokens. Rows may name only the places of
/// changes, so longer sequences fit too.
pub const MAX_LABELS: usize = 256 << 20;
/// Most places of changes. With their names they take half a gigabyte, and no figure shows a thousandth of them.
const MAX_RUNS: usize = 1 << 22;

/// Segment boundaries and repeated tokens of a sequence, in tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// First tokens of all segments but the first, ascending.
    pub boundaries: Vec<u64>,
    /// Repeated tokens: ascending ranges that neither overlap nor touch.
    pub repeats: Vec<Range<u64>>,
    /// Tokens with a row: ascending ranges that neither overlap nor touch.
    pub named: Vec<Range<u64>>,
}

/// Labels of tokens beyond the end of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRangeLabels {
    /// Number of such positions.
    pub positions: u64,
    /// Last of these positions.
    pub last: u64,
}

/// Consecutive positions with the same labels. A file of millions of tokens is kept as its few runs.
struct LabelRun {
    positions: Range<u64>,
    segment: u32,
    repeat: bool,
    line: u64,
}

impl Labels {
    /// Reads a CSV file or a pipe.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&TextFile::read(path, MAX_LABELS)?)
    }

    /// Parses the bytes of a CSV file.
    pub fn parse(file: &TextFile) -> Result<Self> {
        Self::parse_changes(file, MAX_RUNS)
    }

    /// Parses labels that change in at most `most` places.
    fn parse_changes(file: &TextFile, most: usize) -> Result<Self> {
        let mut table = Table::from_text(file)?;
        let (position, segment) = (table.column("position")?, table.column("segment")?);
        let repeat = table.optional_column("repeat");
        let mut segments = HashMap::<Vec<u8>, u32>::new();
        let mut runs = Vec::<LabelRun>::new();
        while table.advance()? {
            let start = table.integer(position)?;
            let end = start + 1;
            let name = table.text(segment);
            let segment = if let Some(&known) = segments.get(name) {
                known
            } else {
                let new = segments.len() as u32;
                segments.insert(name.to_vec(), new);
                new
            };
            let repeat = match repeat
                .map(|column| String::from_utf8_lossy(table.text(column)).trim().to_lowercase())
            {
                None => false,
                Some(text) => match (&text[..], text.parse::<f64>()) {
                    ("true", _) => true,
                    ("false" | "", _) => false,
                    // pandas writes a column with gaps as floats: 1.0.
                    (_, Ok(number)) => (number - 1.0).abs() < f64::EPSILON,
                    _ => return Err(table.bad_row("a repeat of 0 or 1", text)),
                },
            };
            let count = runs.len();
            match runs.last_mut() {
                Some(run) if run.positions.end == start && run.segment == segment && run.repeat == repeat => {
                    run.positions.end = end;
                }
                _ if count == most => {
                    let expected = format!("at most {most} changes of segment or repeat");
                    return Err(Error::file(file.path(), expected, "more"));
                }
                _ => runs.push(LabelRun {
                    positions: start..end,
                    segment,
                    repeat,
                    line: table.position().line(),
                }),
            }
        }
        runs.sort_by_key(|run| (run.positions.start, run.line));
        if let Some(pair) = runs.windows(2).find(|pair| pair[1].positions.start < pair[0].positions.end) {
            let line = pair[1].line.max(pair[0].line);
            let got = format!("{} again on line {line}", pair[1].positions.start);
            return Err(Error::file(file.path(), "each position once", got));
        }
        Ok(Self::from_runs(&runs))
    }

    fn from_runs(runs: &[LabelRun]) -> Self {
        let mut labels = Self::default();
        for (i, run) in runs.iter().enumerate() {
            if i > 0 && runs[i - 1].segment != run.segment {
                labels.boundaries.push(run.positions.start);
            }
            match labels.named.last_mut() {
                Some(last) if last.end == run.positions.start => last.end = run.positions.end,
                _ => labels.named.push(run.positions.clone()),
            }
            if run.repeat {
                let end = runs.get(i + 1).map_or(run.positions.end, |next| next.positions.start);
                match labels.repeats.last_mut() {
                    Some(last) if last.end == run.positions.start => last.end = end,
                    _ => labels.repeats.push(run.positions.start..end),
                }
            }
        }
        labels
    }

    /// Returns the labels of the same tokens in a sequence that starts at token `offset` of the memory's life.
    pub fn shifted(&self, offset: u64) -> Self {
        let shift = |position: u64| position.saturating_add(offset);
        Self {
            boundaries: self.boundaries.iter().map(|&position| shift(position)).collect(),
            repeats: self.repeats.iter().map(|range| shift(range.start)..shift(range.end)).collect(),
            named: self.named.iter().map(|range| shift(range.start)..shift(range.end)).collect(),
        }
    }

    /// Returns labels of positions from `tokens` on, if there are any.
    pub fn beyond(&self, tokens: u64) -> Option<OutOfRangeLabels> {
        let last = self.named.last()?.end - 1;
        let positions =
            self.named.iter().map(|range| range.end.saturating_sub(range.start.max(tokens))).sum();
        (positions > 0).then_some(OutOfRangeLabels { positions, last })
    }
}

#[cfg(test)]
mod tests {
    use super::{Labels, MAX_LABELS, OutOfRangeLabels};
    use crate::io::text::TextFile;

    fn read(csv: &[u8]) -> Result<Labels, String> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("labels.csv");
        std::fs::write(&path, csv).expect("a writable temporary directory");
        Labels::read(&path).map_err(|error| {
            error
                .to_string()
                .replace(&directory.path().display().to_string(), "")
                .trim_start_matches('/')
                .to_string()
        })
    }

    #[test]
    fn segments_and_repeats() {
        let csv =
            b"text,repeat,position,segment\n\"a, b\",0,0,x\nb,0,1,x\nc,1,2,y\nd,1,3,y\ne,1,4,x\nf,0,5,x\n";
        let labels = read(csv).unwrap();
        assert_eq!(labels.boundaries, [2, 4]);
        assert_eq!(labels.repeats, vec![2..5]);
        let shifted = labels.shifted(100);
        assert_eq!(shifted.boundaries, [102, 104]);
        assert_eq!(shifted.repeats, vec![102..105]);
    }

    #[test]
    fn any_order_and_gaps() {
        let labels = read(b"position,segment,repeat\n20,a,0\n10,b,1\n0,a,0\n").unwrap();
        assert_eq!(labels.boundaries, [10, 20]);
        assert_eq!(labels.repeats, vec![10..20]);
        let last = read(b"position,segment,repeat\n0,a,0\n7,a,1\n").unwrap();
        assert_eq!(last.boundaries, [0; 0]);
        assert_eq!(last.repeats, vec![7..8]);
    }

    #[test]
    fn labels_of_more_tokens_than_there_are() {
        let labels = read(b"position,segment\n0,a\n1,a\n2,b\n7,a\n9,b\n").unwrap();
        assert_eq!(labels.beyond(10), None);
        assert_eq!(labels.beyond(9), Some(OutOfRangeLabels { positions: 1, last: 9 }));
        assert_eq!(labels.beyond(2), Some(OutOfRangeLabels { positions: 3, last: 9 }));
        assert_eq!(labels.beyond(0), Some(OutOfRangeLabels { positions: 5, last: 9 }));
        assert_eq!(Labels::default().beyond(0), None);
        assert_eq!(labels.shifted(5).beyond(9), Some(OutOfRangeLabels { positions: 2, last: 14 }));
    }

    #[test]
    fn no_repeat_column_and_no_rows() {
        assert_eq!(read(b"position,segment\n0,a\n1,b\n").unwrap().boundaries, [1]);
        assert_eq!(read(b"position,segment\n").unwrap(), Labels::default());
    }

    #[test]
    fn bad_input_is_named() {
        let cases: [(&[u8], &str); 6] = [
            (b"", r#"labels.csv: expected a column "position", got an empty file"#),
            (
                b"position,topic\n0,a\n",
                r#"labels.csv: expected a column "segment", got the columns position, topic"#,
            ),
            (
                b"position,segment\n0,a\n-1,a\n",
                r#"labels.csv: expected an integer ≥ 0 in column "position" on line 3, got "-1""#,
            ),
            (
                b"position,segment\n1.5,a\n",
                r#"labels.csv: expected an integer ≥ 0 in column "position" on line 2, got "1.5""#,
            ),
            (b"position,segment\n0,a\n1\n", "labels.csv: expected 2 fields on line 3, got 1"),
            (
                b"position,segment\n0,a\n1,a\n1,b\n",
                "labels.csv: expected each position once, got 1 again on line 4",
            ),
        ];
        for (csv, message) in cases {
            assert_eq!(read(csv).unwrap_err(), message);
        }
        let absent = Labels::read(std::path::Path::new("/no/such/labels.csv")).unwrap_err();
        assert_eq!(absent.to_string(), "/no/such/labels.csv: cannot read");
    }

    #[test]
    fn places_of_changes_are_limited() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "position,segment\n0,a\n1,a\n2,b\n3,b\n9,b\n10,b\n").unwrap();
        let text = TextFile::read(file.path(), MAX_LABELS).unwrap();
        assert_eq!(Labels::parse_changes(&text, 3).unwrap().boundaries, [2]);
        let message = Labels::parse_changes(&text, 2).unwrap_err().to_string();
        assert!(message.ends_with("expected at most 2 changes of segment or repeat, got more"), "{message}");
    }
}
