//! A run's work, checked against memory and state and divided into blocks of tokens.

use std::ops::Range;

use super::{Memory, Probes, Work};
use crate::error::{Error, Result};
use crate::memory::State;
use crate::memory::program::Reads;
use crate::memory::state::StreamPosition;
use crate::real::Real;
use crate::sequence::Sequences;

/// Tokens per block. Larger blocks mean longer visits to a panel's S and U and fewer waits between threads.
/// Smaller blocks keep their rows in cache and memory use low. With one head (batches not tried), 1,024
/// measured 5 % faster than 512 for heads of 384 and the same for heads of 64. With four heads of 64 it
/// measured 5 % slower.
const BLOCK_TOKENS: usize = 512;
const BLOCK_TOKENS_OF_ONE_HEAD: usize = 1024;

/// Tokens that are projected, and passed to a model, at once. Their rows stay in L2 from one product to the
/// next. 32 to 128 measured alike.
const GROUP_TOKENS: usize = 64;

/// A token range of one stream of a block, as positions in the memory's life. It starts at a chunk boundary.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenRange {
    pub start: usize,
    pub end: usize,
}

impl TokenRange {
    pub fn len(self) -> usize {
        self.end - self.start
    }
}

/// One step through time: the ranges read and stored, both from the same chunk boundary on.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    pub read: TokenRange,
    pub store: TokenRange,
}

impl Block {
    pub fn start(&self) -> usize {
        self.read.start
    }
}

/// Rows of a block, in both streams, whose gradients are taken at the same weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub store: Range<usize>,
    pub read: Range<usize>,
    /// Whether gradients are taken at new weights afterwards.
    pub refresh: bool,
}

/// Buffer sizes of a sequence runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Most rows of a block in the stored and in the read stream.
    pub stored: usize,
    pub read: usize,
    pub storing: bool,
    pub probe: bool,
    /// Most rows that a model processes at once.
    pub scratch: usize,
}

/// `work` checked against memory and state, as positions in the memory's life.
pub struct Plan<'a, T> {
    pub sequences: usize,
    pub read: Option<&'a dyn Sequences<T>>,
    pub store: Option<&'a dyn Sequences<T>>,
    pub probe: bool,
    /// K: every K-th chunk is kept, and the memory is whole after it.
    pub retention: Option<usize>,
    /// Further probes of each chunk.
    pub probes: Probes,
    /// Positions whose multiples end a block, in a run that probes singular values.
    spectrum_every: Option<usize>,
    /// Positions of the streams before the run; a plain read counts from zero.
    pub stored_before: StreamPosition<T>,
    pub read_before: StreamPosition<T>,
    pub chunk_size: usize,
    /// Most rows of a block and of a group; both are whole chunks.
    pub block_rows: usize,
    pub group_rows: usize,
    /// Positions whose multiples end a block, in a run with retention.
    pub kept_every: usize,
    /// Chunk at which both streams start.
    pub first_chunk: usize,
    /// Position after the last token read.
    pub read_end: usize,
    /// Position after the last token of a complete stored chunk.
    pub store_end: usize,
    /// Position of the first token of the queries; earlier ones are left over from an earlier call.
    pub first_query: usize,
    /// Weights that tokens read, in a run that also stores.
    reads: Reads,
    /// Positions whose multiples end a stretch of gradients at the same weights.
    refresh: Option<usize>,
    pub read_past_store: Option<usize>,
}

impl<'a, T: Real> Plan<'a, T> {
    pub fn new(
        memory: &Memory<T>,
        state: &State<T>,
        work: Work<'a, T>,
        retention: Option<usize>,
    ) -> Result<Self> {
        let c = memory.chunk_size();
        let (read, store, probe) = match work {
            Work::Read(queries) => (Some(queries), None, false),
            Work::Store { sequences, probe } => (None, Some(sequences), probe),
            Work::Online { read, store, probe } => (Some(read), Some(store), probe),
        };
        for given in read.iter().chain(&store) {
            let (dim, got) = (memory.dimensions.dim, given.shape().dim);
            if dim != got {
                return Err(Error::setting(
                    "sequence",
                    format!("tokens of the memory's width, {dim}"),
                    got.to_string(),
                ));
            }
        }
        let sequences = read.or(store).map_or(0, |given| given.shape().sequences);
        let whole = |tokens: usize| (tokens / c).max(1) * c;
        let longest = if memory.dimensions.heads == 1 { BLOCK_TOKENS_OF_ONE_HEAD } else { BLOCK_TOKENS };
        let retention = retention.filter(|_| store.is_some());
        let kept_every = retention.map_or(usize::MAX, |every| every.max(1).saturating_mul(c));
        let mut plan = Self {
            sequences,
            read,
            store,
            probe,
            retention,
            probes: Probes::default(),
            spectrum_every: None,
            chunk_size: c,
            block_rows: whole(longest).min(kept_every),
            kept_every,
            group_rows: whole(GROUP_TOKENS),
            stored_before: state.stored.clone(),
            read_before: StreamPosition::new(sequences, memory.dimensions.dim),
            first_chunk: 0,
            read_end: read.map_or(0, |queries| queries.shape().tokens),
            store_end: 0,
            first_query: 0,
            reads: memory.program.schedule.reads,
            refresh: memory.program.schedule.refresh,
            read_past_store: None,
        };
        let Some(store) = store else {
            if state.sequences() != 1 {
                state.check_sequences("sequences to read", plan.sequences)?;
            }
            return Ok(plan);
        };
        state.check_sequences("sequences to store", store.shape().sequences)?;
        plan.first_chunk = state.stored.chunks(c);
        if retention.is_some() && plan.first_chunk > 0 {
            let reason = format!(
                "the memory already has {} stored chunks, whose keys and values are gone; \
                 omit --retention or start from a memory without stored chunks",
                plan.first_chunk
            );
            return Err(Error::rejected("--retention", reason));
        }
        plan.store_end = (state.stored.tokens + store.shape().tokens) / c * c;
        if read.is_some() {
            state.check_sequences("sequences to read", plan.sequences)?;
            state.check_online(c, memory.program.read_offset())?;
            plan.read_before = state.read.clone();
            plan.first_query = state.read.tokens;
            plan.read_end += state.read.tokens;
            // Chunk i needs U after i chunks; the last chunk read may be incomplete.
            let last_read = plan.read_end.div_ceil(c).saturating_sub(1);
            plan.read_past_store = (last_read > plan.store_end / c).then_some(plan.store_end / c + 1);
        }
        Ok(plan)
    }

    /// Adds probes of each chunk. Blocks have one chunk where the weights must exist as a whole before it, and at most as many
    /// as lie between singular values.
    pub fn with_probes(self, probes: Probes) -> Self {
        let c = self.chunk_size;
        let every = probes.spectrum.filter(|_| self.store.is_some());
        let spectrum_every = every.map(|every| every.max(1).saturating_mul(c));
        let one_chunk = self.store.is_some() && probes.need_weights();
        let block_rows =
            if one_chunk { c } else { self.block_rows.min(spectrum_every.unwrap_or(usize::MAX)) };
        Self { probes, spectrum_every, block_rows, ..self }
    }

    /// Returns the most rows that a model processes at once: a group, or all rows if they are fewer.
    pub fn scratch_rows(&self) -> usize {
        let (stored, read) = self.rows();
        if self.retention.is_some() && stored > 0 {
            return self.group_rows;
        }
        self.group_rows.min(stored.max(read))
    }

    pub fn sizes(&self) -> Sizes {
        let (stored, read) = self.rows();
        Sizes { stored, read, storing: self.store.is_some(), probe: self.probe, scratch: self.scratch_rows() }
    }

    /// Returns the rows of the longest block in the stored and in the read stream.
    fn rows(&self) -> (usize, usize) {
        let start = self.first_chunk * self.chunk_size;
        let longest = |end: usize| end.saturating_sub(start).min(self.block_rows);
        (longest(self.store_end), longest(self.read_end))
    }

    /// Returns the number of rows of a block's queries before anything is stored. Nothing is read there.
    pub fn unready(&self, block: Block) -> usize {
        let until = match self.store {
            None => 0,
            Some(_) if self.first_chunk > 0 || self.reads == Reads::Complete => 0,
            // Without a stored chunk nothing is read.
            Some(_) if self.store_end == 0 => self.read_end,
            Some(_) => self.chunk_size,
        };
        until.clamp(block.read.start, block.read.end) - block.read.start
    }

    /// Divides a block where gradients are refreshed.
    pub fn stretches(&self, block: Block) -> impl Iterator<Item = Stretch> + use<T> {
        let Block { read, store } = block;
        let (start, end) = (block.start(), read.end.max(store.end));
        let every = self.refresh.filter(|_| store.len() > 0).unwrap_or(usize::MAX);
        let mut next = start;
        std::iter::from_fn(move || {
            let from = next;
            next = (from / every + 1).saturating_mul(every).min(end);
            let rows = |of: TokenRange| from.min(of.end) - start..next.min(of.end) - start;
            let refresh = every < usize::MAX && next.is_multiple_of(every) && store.end >= next;
            (from < end).then(|| Stretch { store: rows(store), read: rows(read), refresh })
        })
    }

    /// Returns the number of chunks of a sequence that are kept until its end.
    pub fn kept_chunks(&self) -> usize {
        self.store_end / self.kept_every
    }

    pub fn blocks(&self) -> impl Iterator<Item = Block> + use<'a, T> {
        let ends = [self.kept_every, self.spectrum_every.unwrap_or(usize::MAX)];
        let length = self.block_rows;
        let (read_end, store_end) = (self.read_end, self.store_end);
        let mut next = self.first_chunk * self.chunk_size;
        std::iter::from_fn(move || {
            let start = next;
            next = ends
                .into_iter()
                .fold(start + length, |next, every| next.min((start / every + 1).saturating_mul(every)));
            let range = |end: usize| TokenRange { start, end: end.clamp(start, next) };
            (start < read_end.max(store_end))
                .then(|| Block { read: range(read_end), store: range(store_end) })
        })
    }

    /// Returns whether the last stored chunk of a block is kept.
    pub fn keeps(&self, block: Block) -> bool {
        block.store.len() > 0 && block.store.end.is_multiple_of(self.kept_every)
    }

    /// Returns whether the kept chunks are read again after a block.
    pub fn rereads(&self, block: Block) -> bool {
        let last = block.store.end == self.store_end;
        self.retention.is_some() && block.store.len() > 0 && (last || self.keeps(block))
    }

    /// Returns whether singular values are taken after a block.
    pub fn takes_spectra(&self, block: Block) -> bool {
        let end = block.store.end;
        let ends = end == self.store_end && self.store.is_some_and(Sequences::is_end);
        let is_due = |every: usize| ends || end.is_multiple_of(every);
        block.store.len() > 0 && self.spectrum_every.is_some_and(is_due)
    }

    /// Updates the state's counts and left-over tokens, once everything is stored.
    pub fn finish(&self, state: &mut State<T>) -> Result<()> {
        let Some(store) = self.store else { return Ok(()) };
        // A plain store counts its tokens as read too.
        state.advance(store, self.read.unwrap_or(store), self.chunk_size)
    }
}
