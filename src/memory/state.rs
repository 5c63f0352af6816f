//! The state that storing changes and a saved memory keeps. It is enough to continue exactly from the end of a call.

use std::ops::Range;

use ndarray::{Array3, ArrayViewMut2, s};

use crate::error::{Error, Result};
use crate::real::Real;
use crate::sequence::Sequences;

/// The state of a memory after some tokens, per sequence and head.
#[derive(Clone, Debug, PartialEq)]
pub struct State<T> {
    /// The arrays of the update rule after the last stored chunk, in the order of
    /// [`Rule::arrays`](super::rule::Rule::arrays): each (sequences, heads, elements of all memory weights in file order).
    /// U is the first.
    pub arrays: Vec<Array3<T>>,
    /// The weights at which gradients are taken, shaped like the arrays; absent where they are the initial ones for ever.
    pub gradient_point: Option<Array3<T>>,
    /// Tokens stored since the start of the memory's life, left-over ones included.
    pub stored: StreamPosition<T>,
    /// Tokens read in step with storing since the start of the memory's life, left-over ones included. A plain
    /// store counts its tokens here too. It starts after the row of zeros that precedes the first token where the program
    /// has one ([`Program::read_offset`](super::program::Program::read_offset)).
    pub read: StreamPosition<T>,
}

/// A position in one of the two token streams of a state, the stored or the read one.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamPosition<T> {
    /// Tokens since the start of the memory's life.
    pub tokens: usize,
    /// The tokens of the incomplete last chunk, before the norm: (sequences, tokens % c, D).
    pub left_over: Array3<T>,
}

impl<T: Real> StreamPosition<T> {
    /// Creates the position before any token.
    pub fn new(sequences: usize, dim: usize) -> Self {
        Self { tokens: 0, left_over: Array3::default((sequences, 0, dim)) }
    }

    /// Returns the number of complete chunks.
    pub fn chunks(&self, chunk_size: usize) -> usize {
        self.tokens / chunk_size
    }

    /// Creates the position after `rows` rows of zeros.
    pub fn after_zeros(rows: usize, chunk_size: usize, sequences: usize, dim: usize) -> Self {
        Self { tokens: rows, left_over: Array3::default((sequences, rows % chunk_size, dim)) }
    }

    /// Copies the tokens at the positions `start .. start + out.nrows()` of the memory's life into `out` (rows,
    /// D). Left-over tokens come from this position, later ones from `sequences`. Tokens of complete chunks are gone: zeros
    /// stand for them.
    pub fn read_rows(
        &self,
        sequences: &dyn Sequences<T>,
        sequence: usize,
        start: usize,
        mut out: ArrayViewMut2<T>,
    ) -> Result<()> {
        let kept = self.left_over.dim().1;
        let first = self.tokens - kept;
        let gone = first.saturating_sub(start).min(out.nrows());
        out.slice_mut(s![..gone, ..]).fill(T::zero());
        let start = start + gone;
        let mut out = out.slice_mut(s![gone.., ..]);
        let old = self.tokens.saturating_sub(start).min(out.nrows());
        let from = (start - first.min(start)).min(kept);
        out.slice_mut(s![..old, ..]).assign(&self.left_over.slice(s![sequence, from..from + old, ..]));
        if old == out.nrows() {
            return Ok(());
        }
        sequences.read_rows(sequence, start + old - self.tokens, out.slice_mut(s![old.., ..]))
    }

    /// Returns the position after all tokens of `sequences`.
    pub fn after(&self, sequences: &dyn Sequences<T>, chunk_size: usize) -> Result<Self> {
        let shape = sequences.shape();
        let tokens = self.tokens + shape.tokens;
        let kept = tokens % chunk_size;
        let mut left_over = Array3::default((shape.sequences, kept, shape.dim));
        for (sequence, rows) in left_over.outer_iter_mut().enumerate() {
            self.read_rows(sequences, sequence, tokens - kept, rows)?;
        }
        Ok(Self { tokens, left_over })
    }
}

impl<T: Real> State<T> {
    /// Converts all arrays to standard layout, which engines need.
    pub(crate) fn lay_out(&mut self) {
        for array in self.arrays.iter_mut().chain(&mut self.gradient_point) {
            if !array.is_standard_layout() {
                *array = array.as_standard_layout().into_owned();
            }
        }
    }

    /// Moves the state of some sequences out, for [`put`](Self::put) to move back. The positions stay here too.
    pub(crate) fn take(&mut self, sequences: Range<usize>) -> Self {
        let part = |array: &Array3<T>| array.slice(s![sequences.clone(), .., ..]).to_owned();
        let position =
            |of: &StreamPosition<T>| StreamPosition { tokens: of.tokens, left_over: part(&of.left_over) };
        let (stored, read) = (position(&self.stored), position(&self.read));
        // All of them need no copy.
        let (arrays, gradient_point) = if sequences == (0..self.sequences()) {
            (std::mem::take(&mut self.arrays), self.gradient_point.take())
        } else {
            (self.arrays.iter().map(part).collect(), self.gradient_point.as_ref().map(part))
        };
        Self { arrays, gradient_point, stored, read }
    }

    /// Moves the arrays of some sequences back. If all were taken out, those of the others are zeros.
    pub(crate) fn put(&mut self, sequences: Range<usize>, of_them: Self) {
        if self.arrays.is_empty() {
            let all = self.stored.left_over.dim().0;
            if sequences == (0..all) {
                (self.arrays, self.gradient_point) = (of_them.arrays, of_them.gradient_point);
                return;
            }
            let zeros = |of: &Array3<T>| Array3::default((all, of.dim().1, of.dim().2));
            self.arrays = of_them.arrays.iter().map(zeros).collect();
            self.gradient_point = of_them.gradient_point.as_ref().map(zeros);
        }
        let all = self.arrays.iter_mut().chain(&mut self.gradient_point);
        for (array, part) in all.zip(of_them.arrays.iter().chain(&of_them.gradient_point)) {
            array.slice_mut(s![sequences.clone(), .., ..]).assign(part);
        }
    }

    /// Advances the positions past all tokens of `stored` and `read`.
    pub(crate) fn advance(
        &mut self,
        stored: &dyn Sequences<T>,
        read: &dyn Sequences<T>,
        chunk_size: usize,
    ) -> Result<()> {
        self.read = self.read.after(read, chunk_size)?;
        self.stored = self.stored.after(stored, chunk_size)?;
        Ok(())
    }

    /// Returns U: what is added to the initial weights, or whole weights.
    pub fn update(&self) -> &Array3<T> {
        &self.arrays[0]
    }

    /// Returns S, where the rule has momentum.
    pub fn momentum(&self) -> Option<&Array3<T>> {
        self.arrays.get(1)
    }

    /// Returns the size in bytes.
    pub fn bytes(&self) -> usize {
        let kept = self.stored.left_over.len() + self.read.left_over.len();
        let arrays = self.arrays.iter().chain(&self.gradient_point).map(Array3::len).sum::<usize>();
        (arrays + kept) * size_of::<T>()
    }

    /// Returns the number of sequences.
    pub fn sequences(&self) -> usize {
        self.arrays[0].dim().0
    }

    /// Checks that a run has as many sequences as the state.
    pub fn check_sequences(&self, setting: &str, sequences: usize) -> Result<()> {
        if sequences == self.sequences() {
            return Ok(());
        }
        let expected = format!("as many sequences as the memory's state, {}", self.sequences());
        Err(Error::setting(setting, expected, sequences.to_string()))
    }

    /// Checks that both positions are in step, as an online run needs: U of earlier chunks is gone.
    pub fn check_online(&self, chunk_size: usize, read_offset: usize) -> Result<()> {
        let (stored, read) = (self.stored.chunks(chunk_size), self.read.chunks(chunk_size));
        // Where reads are a row ahead, the next one may need the chunk that is stored next.
        let starts_next =
            read_offset > 0 && read == stored + 1 && self.read.tokens.is_multiple_of(chunk_size);
        if stored == read || starts_next {
            return Ok(());
        }
        let got = format!(
            "{stored} stored ({} tokens) and {read} read ({} tokens)",
            self.stored.tokens, self.read.tokens
        );
        let expected = "a memory that has stored and read the same number of complete chunks";
        Err(Error::setting("--online", expected, got))
    }
}

#[cfg(test)]
mod tests {
    use ndarray::ShapeBuilder;

    use super::*;

    /// A state of three sequences. All its numbers differ.
    fn state() -> State<f64> {
        let mut next = 0.0;
        let mut numbers = |shape: (usize, usize, usize)| {
            Array3::from_shape_simple_fn(shape, || {
                next += 0.25;
                next
            })
        };
        State {
            arrays: vec![numbers((3, 2, 4)), numbers((3, 2, 4))],
            gradient_point: Some(numbers((3, 2, 4))),
            stored: StreamPosition { tokens: 9, left_over: numbers((3, 1, 5)) },
            read: StreamPosition { tokens: 10, left_over: numbers((3, 2, 5)) },
        }
    }

    #[test]
    fn sequences_are_taken_out_and_put_back() {
        let whole = state();
        for range in [0..1, 1..3, 0..3] {
            let mut rest = whole.clone();
            let part = rest.take(range.clone());
            assert_eq!((part.sequences(), part.stored.tokens), (range.len(), 9));
            assert_eq!(part.arrays[1], whole.arrays[1].slice(s![range.clone(), .., ..]));
            rest.put(range.clone(), part);
            assert_eq!(rest, whole, "{range:?}");
        }
        // All are taken out, and one comes back. The others are zeros.
        let mut rest = whole.clone();
        let mut all = rest.take(0..3);
        let one = all.take(1..2);
        rest.put(1..2, one);
        for (array, of_whole) in rest
            .arrays
            .iter()
            .zip(&whole.arrays)
            .chain([(rest.gradient_point.as_ref().unwrap(), whole.gradient_point.as_ref().unwrap())])
        {
            assert_eq!(array.dim(), (3, 2, 4));
            assert_eq!(array.slice(s![1, .., ..]), of_whole.slice(s![1, .., ..]));
            assert!(array.slice(s![..;2, .., ..]).iter().all(|&x| x == 0.0));
        }
    }

    #[test]
    fn sizes_and_layouts() {
        let mut state = state();
        assert_eq!(state.bytes(), (3 * 24 + 15 + 30) * 8);
        let fortran = Array3::from_shape_fn((3, 2, 4).f(), |place| state.arrays[1][place]);
        assert!(!fortran.is_standard_layout());
        let expected = state.clone();
        state.arrays[1] = fortran;
        state.lay_out();
        assert!(state.arrays[1].is_standard_layout());
        assert_eq!(state, expected);
        let after = StreamPosition::<f64>::after_zeros(11, 4, 2, 5);
        assert_eq!((after.tokens, after.chunks(4), after.left_over.dim()), (11, 2, (2, 3, 5)));
    }
}
