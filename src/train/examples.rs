//! Examples: what is read, what is stored meanwhile, and what should be read.
//!
//! An example is some rows of one sequence. Those of a step depend on the seed and the number of the example alone, so that a
//! resumed training sees the same ones.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array2, ArrayViewMut2, Axis, s};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::config::{Objective, Passages, TrainConfig};
use crate::error::{Error, Result};
use crate::io::NpySequences;
use crate::io::table::Table;
use crate::io::text::TextFile;
use crate::real::Real;
use crate::sequence::{Sequences, Shape};

/// Most bytes of a table of blocks or layouts: some ten million rows.
pub const MAX_TABLE: usize = 256 << 20;
/// Most rows that the layouts of a validation have together. Each is read once per validation.
const MAX_LAYOUT_ROWS: usize = 1 << 24;

/// Rows of one sequence, in the order in which the memory sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Sequence.
    pub sequence: usize,
    /// Rows, one range after another.
    pub rows: Vec<Range<usize>>,
}

impl Selection {
    fn whole(sequence: usize, rows: Range<usize>) -> Self {
        Self { sequence, rows: vec![rows] }
    }

    /// Returns the number of rows.
    pub fn len(&self) -> usize {
        self.rows.iter().map(Range::len).sum()
    }
}

/// Numbers of an example.
pub struct Example<T> {
    /// Tokens that are read.
    pub read: Array2<T>,
    /// Tokens that are stored; `None` if they are those that are read.
    pub store: Option<Array2<T>>,
    /// Right answers of the first tokens.
    pub target: Array2<T>,
}

/// Files of examples, and how they become examples.
pub struct Data {
    /// Sequences that are read.
    pub read: Arc<NpySequences>,
    /// Sequences that are stored, if they differ.
    pub store: Option<Arc<NpySequences>>,
    /// Right answers of the objective `value`.
    pub target: Option<Arc<NpySequences>>,
    /// Source of right answers.
    pub objective: Objective,
    /// Columns of the tokens that are right answers.
    pub columns: Vec<usize>,
    /// Number of times that each query is presented, where it fills a chunk of its own.
    pub times: usize,
}

impl Data {
    /// Reads the numbers of an example.
    pub fn load<T: Real>(&self, of: &Selection) -> Result<Example<T>> {
        let tokens = rows::<T>(&self.read, of)?;
        let whole =
            |file: &NpySequences| rows::<T>(file, &Selection::whole(of.sequence, 0..file.dims().tokens));
        let target = match (&self.target, self.objective) {
            (Some(file), _) => whole(file)?,
            (None, Objective::Next) => tokens.slice(s![1.min(tokens.nrows()).., ..]).to_owned(),
            (None, _) => tokens.select(Axis(1), &self.columns),
        };
        let store = self.store.as_deref().map(whole).transpose()?;
        let read = if self.times == 1 {
            tokens
        } else {
            Array2::from_shape_fn((tokens.nrows() * self.times, tokens.ncols()), |(row, column)| {
                tokens[[row / self.times, column]]
            })
        };
        Ok(Example { read, store, target })
    }

    /// Returns the width of right answers.
    pub fn width(&self) -> usize {
        self.target.as_ref().map_or(self.columns.len(), |file| file.dims().dim)
    }
}

fn rows<T: Real>(file: &NpySequences, of: &Selection) -> Result<Array2<T>> {
    let mut all = Array2::zeros((of.len(), file.dims().dim));
    let mut rest: ArrayViewMut2<T> = all.view_mut();
    for rows in &of.rows {
        let (part, later) = rest.split_at(Axis(0), rows.len());
        Sequences::<T>::read_rows(file, of.sequence, rows.start, part)?;
        rest = later;
    }
    Ok(all)
}

/// The examples of a training, and of its validation.
pub struct Examples {
    source: Source,
    seed: u64,
}

/// Origin of examples.
enum Source {
    /// Whole sequences, shuffled anew in each pass.
    Sequences { sequences: Range<usize>, tokens: usize },
    /// Windows at random places.
    Windows { sequences: Range<usize>, tokens: Range<usize>, length: usize },
    /// Windows composed of passages.
    Passages { blocks: Vec<Block>, rule: PassageRule },
}

/// Tokens that belong together.
struct Block {
    rows: Range<usize>,
    source: String,
}

/// Sizes and order of the passages of a window.
struct PassageRule {
    length: usize,
    min: usize,
    max: usize,
    step: usize,
    repeat: f64,
}

impl Examples {
    /// Chooses the examples of a training, and those that are kept back for its validation.
    ///
    /// # Errors
    /// Sequences that are too short, and a table of blocks that does not fit them.
    pub fn new(
        data: &NpySequences,
        train: &TrainConfig,
        chunk: usize,
        blocks: Option<&TextFile>,
    ) -> Result<(Self, Vec<Selection>)> {
        let Shape { sequences, tokens, .. } = data.dims();
        if sequences == 1 && train.objective == Objective::Value && train.validation_split > 0.0 {
            let reason =
                "cannot divide a single sequence of queries from its targets; pass --validation FILE.npy";
            return Err(Error::rejected("--validation-split", reason));
        }
        let share = |of: usize| share_of(of, train.validation_split);
        let (of_sequences, of_tokens) = match sequences {
            1 => (0..1, 0..tokens - share(tokens).next_multiple_of(chunk).min(tokens)),
            n => (0..n - share(n), 0..tokens),
        };
        let kept = if sequences == 1 { of_tokens.end..tokens } else { 0..tokens };
        let kept_sequences = if sequences == 1 { 0..1 } else { of_sequences.end..sequences };
        let length = train.window.unwrap_or(of_tokens.len());
        if of_sequences.is_empty() || length == 0 || of_tokens.len() < length {
            let expected = match train.window {
                Some(window) => {
                    format!("sequences of at least --window {window} tokens beside those kept for validation")
                }
                None => "tokens beside those kept for validation".to_owned(),
            };
            let got = format!("{} sequences of {}", of_sequences.len(), of_tokens.len());
            return Err(Error::file(data.path(), expected, got));
        }
        let source = match (&train.passages, blocks, train.window) {
            (Some(passages), Some(file), Some(length)) => passages_of(data, passages, file, length, chunk)?,
            (_, _, Some(length)) => Source::Windows { sequences: of_sequences, tokens: of_tokens, length },
            (_, _, None) => Source::Sequences { sequences: of_sequences, tokens: of_tokens.len() },
        };
        let validation = if train.validation_split > 0.0 {
            kept_sequences.flat_map(|sequence| windows(sequence, kept.clone(), train.window)).collect()
        } else {
            Vec::new()
        };
        Ok((Self { source, seed: train.seed }, validation))
    }

    /// Returns the number of different examples, if there is one.
    pub fn count(&self) -> Option<usize> {
        match &self.source {
            Source::Sequences { sequences, .. } => Some(sequences.len()),
            Source::Windows { .. } | Source::Passages { .. } => None,
        }
    }

    /// Returns the tokens of an example.
    pub fn tokens(&self) -> usize {
        match &self.source {
            Source::Sequences { tokens, .. } => *tokens,
            Source::Windows { length, .. } => *length,
            Source::Passages { rule, .. } => rule.length,
        }
    }

    /// Selects the example of a number, counted from the start of the training.
    pub fn select(&self, number: u64) -> Selection {
        match &self.source {
            Source::Sequences { sequences, tokens } => {
                let count = sequences.len() as u64;
                let mut order: Vec<_> = sequences.clone().collect();
                // Streams above those of single examples.
                order.shuffle(&mut self.random((1 << 63) + number / count));
                Selection::whole(order[(number % count) as usize], 0..*tokens)
            }
            Source::Windows { sequences, tokens, length } => {
                let mut random = self.random(number);
                let sequence = random.random_range(sequences.clone());
                let start = random.random_range(tokens.start..=tokens.end - length);
                Selection::whole(sequence, start..start + length)
            }
            Source::Passages { blocks, rule } => rule.compose(blocks, &mut self.random(number)),
        }
    }

    fn random(&self, stream: u64) -> ChaCha8Rng {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(stream);
        random
    }
}

impl PassageRule {
    /// Composes a window: passages one after another, and a start within the first.
    fn compose(&self, blocks: &[Block], random: &mut ChaCha8Rng) -> Selection {
        let (min, max) = (self.min / self.step, self.max / self.step);
        let skipped = random.random_range(0..min) * self.step;
        let mut all: Vec<(usize, Range<usize>)> = Vec::new();
        let mut total = 0;
        while total < skipped + self.length {
            let last = all.last().map(|(block, _)| &blocks[*block].source);
            let differs = |block: usize| last.is_none_or(|last| *last != blocks[block].source);
            let earlier: Vec<_> = all.iter().filter(|(block, _)| differs(*block)).cloned().collect();
            let again = random.random_bool(self.repeat) && !earlier.is_empty();
            let passage = if again {
                earlier[random.random_range(0..earlier.len())].clone()
            } else {
                let block = loop {
                    let block = random.random_range(0..blocks.len());
                    if differs(block) {
                        break block;
                    }
                };
                let rows = &blocks[block].rows;
                let length =
                    (random.random_range(min..=max) * self.step).min(rows.len() / self.step * self.step);
                let start = rows.start + random.random_range(0..=rows.len() - length);
                (block, start..start + length)
            };
            total += passage.1.len();
            all.push(passage);
        }
        let mut rows: Vec<_> = all.into_iter().map(|(_, rows)| rows).collect();
        // The first passage is at least as long as what is skipped of it.
        rows[0].start += skipped;
        let beyond = total - skipped - self.length;
        let last = rows.last_mut().expect("a window has a passage");
        last.end -= beyond;
        Selection { sequence: 0, rows }
    }
}

/// Reads a table of blocks.
fn passages_of(
    data: &NpySequences,
    passages: &Passages,
    file: &TextFile,
    length: usize,
    chunk: usize,
) -> Result<Source> {
    let Passages { blocks: _, passage_min, passage_max, passage_step, passage_repeat } = passages;
    let Shape { sequences, tokens, .. } = data.dims();
    if sequences != 1 {
        return Err(Error::file(
            data.path(),
            "one sequence, of which --blocks names parts",
            sequences.to_string(),
        ));
    }
    let step = passage_step.unwrap_or(chunk);
    let (min, max) = (*passage_min, *passage_max);
    if min < step || max < min {
        let reason = format!(
            "passages have a multiple of {step} tokens, from {min} to {max}; use --passage-step ≤ --passage-min ≤ --passage-max"
        );
        return Err(Error::rejected("--passage-min", reason));
    }
    let mut table = Table::from_text(file)?;
    let (start, end, source) =
        (table.column("start")?, table.column("end")?, table.optional_column("source"));
    let mut blocks = Vec::new();
    while table.advance()? {
        let rows = table.integer(start)? as usize..table.integer(end)? as usize;
        if rows.end > tokens || rows.len() < min {
            let expected = format!("a block of at least {min} of the {tokens} tokens");
            return Err(table.bad_row(expected, format!("{}..{}", rows.start, rows.end)));
        }
        let source = source.map_or_else(
            || blocks.len().to_string(),
            |column| String::from_utf8_lossy(table.text(column)).into_owned(),
        );
        blocks.push(Block { rows, source });
    }
    if !blocks.iter().any(|block| block.source != blocks[0].source) {
        let got = format!("{} of one", blocks.len());
        return Err(Error::file(file.path(), "blocks of at least two sources", got));
    }
    let rule = PassageRule { length, min, max, step, repeat: *passage_repeat };
    Ok(Source::Passages { blocks, rule })
}

/// Selects the examples of a validation file: its layouts, windows one after another, or whole sequences.
pub fn of_validation(
    data: &NpySequences,
    layouts: Option<&TextFile>,
    window: Option<usize>,
) -> Result<Vec<Selection>> {
    let Shape { sequences, tokens, .. } = data.dims();
    let Some(file) = layouts else {
        return Ok((0..sequences).flat_map(|sequence| windows(sequence, 0..tokens, window)).collect());
    };
    if sequences != 1 {
        let expected = "one sequence, whose rows --validation-layouts names";
        return Err(Error::file(data.path(), expected, sequences.to_string()));
    }
    let mut table = Table::from_text(file)?;
    let (layout, position, row) = (table.column("layout")?, table.column("position")?, table.column("row")?);
    let mut all: BTreeMap<u64, Vec<(u64, usize)>> = BTreeMap::new();
    let mut count = 0;
    while table.advance()? {
        let at = table.integer(row)?;
        if at >= tokens as u64 {
            return Err(table.bad_row(format!("a row below {tokens}"), at.to_string()));
        }
        count += 1;
        table.check_kept(count, MAX_LAYOUT_ROWS)?;
        all.entry(table.integer(layout)?).or_default().push((table.integer(position)?, at as usize));
    }
    let selection = |(layout, mut places): (u64, Vec<(u64, usize)>)| {
        places.sort_unstable();
        if places.iter().enumerate().any(|(i, (position, _))| i as u64 != *position) {
            let expected = format!("positions 0 to {} of layout {layout}, once each", places.len() - 1);
            return Err(Error::file(file.path(), expected, "others"));
        }
        let mut rows: Vec<Range<usize>> = Vec::new();
        for (_, row) in places {
            match rows.last_mut() {
                Some(last) if last.end == row => last.end += 1,
                _ => rows.push(row..row + 1),
            }
        }
        Ok(Selection { sequence: 0, rows })
    };
    all.into_iter().map(selection).collect()
}

/// Returns a share of a count, rounded up.
#[expect(clippy::cast_sign_loss, reason = "shares are not below 0")]
fn share_of(count: usize, share: f64) -> usize {
    (count as f64 * share).ceil() as usize
}

/// Cuts rows of a sequence into windows, without the shorter rest unless there is no whole one.
fn windows(sequence: usize, rows: Range<usize>, length: Option<usize>) -> Vec<Selection> {
    let length = length.unwrap_or(rows.len()).min(rows.len()).max(1);
    let starts = rows.clone().step_by(length).filter(|start| start + length <= rows.end);
    starts.map(|start| Selection::whole(sequence, start..start + length)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(rows: Range<usize>, source: &str) -> Block {
        Block { rows, source: source.to_owned() }
    }

    #[test]
    fn windows_are_composed_of_passages() {
        let blocks = vec![block(0..96, "a"), block(96..192, "b"), block(192..280, "a"), block(280..376, "c")];
        let rule = PassageRule { length: 512, min: 32, max: 96, step: 16, repeat: 0.5 };
        let examples = Examples { source: Source::Passages { blocks, rule }, seed: 7 };
        let Source::Passages { blocks, .. } = &examples.source else { panic!() };
        let (mut again, mut starts) = (0, std::collections::BTreeSet::new());
        for number in 0..200 {
            let window = examples.select(number);
            assert_eq!(window, examples.select(number));
            assert_eq!((window.len(), window.sequence), (512, 0));
            let of = |rows: &Range<usize>| {
                blocks
                    .iter()
                    .position(|block| block.rows.start <= rows.start && rows.end <= block.rows.end)
                    .unwrap()
            };
            let last = window.rows.len() - 1;
            for (i, rows) in window.rows.iter().enumerate() {
                assert!(i == 0 || blocks[of(rows)].source != blocks[of(&window.rows[i - 1])].source);
                assert!(
                    rows.len() % 16 == 0 && rows.len() <= 96 && (i == 0 || i == last || rows.len() >= 32)
                );
                again += usize::from(i > 1 && i < last && window.rows[1..i].contains(rows));
            }
            starts.insert(window.rows[0].len());
        }
        // Windows begin within a passage, and some passages come again.
        assert!(starts.contains(&16) && again > 200, "{starts:?}, {again}");
        let before: Vec<_> = (0..20).map(|number| examples.select(number)).collect();
        let others = Examples { seed: 8, ..examples };
        assert!((0..20).all(|number| others.select(number) != before[number as usize]));
    }

    #[test]
    fn every_pass_has_every_sequence_once() {
        let examples = Examples { source: Source::Sequences { sequences: 2..9, tokens: 5 }, seed: 1 };
        let pass =
            |n: u64| (7 * n..7 * n + 7).map(|number| examples.select(number).sequence).collect::<Vec<_>>();
        let sorted = |mut of: Vec<usize>| {
            of.sort_unstable();
            of
        };
        assert_eq!(sorted(pass(0)), [2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(sorted(pass(1)), [2, 3, 4, 5, 6, 7, 8]);
        assert_ne!(pass(0), pass(1));
        assert_eq!((examples.select(3).len(), examples.select(3).rows.len()), (5, 1));
    }

    #[test]
    fn random_windows_stay_inside() {
        let source = Source::Windows { sequences: 0..2, tokens: 0..20, length: 18 };
        let examples = Examples { source, seed: 1 };
        let mut seen = std::collections::BTreeSet::new();
        for number in 0..100 {
            let window = examples.select(number);
            assert!(window.len() == 18 && window.rows[0].end <= 20);
            seen.insert((window.sequence, window.rows[0].start));
        }
        assert_eq!(seen.len(), 6);
        assert_eq!(
            windows(1, 4..21, Some(8)).iter().map(|w| w.rows[0].clone()).collect::<Vec<_>>(),
            [4..12, 12..20]
        );
        assert_eq!(windows(1, 4..9, Some(8))[0], Selection::whole(1, 4..9));
    }
}
