//! Device buffers of a block, and the division of its chunks among the device's multiprocessors.

use std::ops::Range;

use super::report::Measurements;
use super::step::Marks;
use super::{RANGES, TILE};
use crate::cuda::{Array, Device, tile_bytes};
use crate::engine::Memory;
use crate::engine::plan::Sizes;
use crate::error::{Error, Result};
use crate::memory::State;
use crate::real::{ElementType, Real};

/// Most tiles of a block's attention in shared memory.
pub(super) const TILES: usize = 5;

/// Bytes of a block's shared memory reserved for a kernel's own variables. `fused_update` has 256 bytes of
/// them, in f64 512 (registers.txt).
const STATIC_SHARED: usize = 1024;

/// Returns the bytes of shared memory of a fused update with a number of buffers, in the layout of kernels.cu.
fn fused_update_bytes<T: Real>(buffers: usize) -> usize {
    TILE * TILE * size_of::<T>() + buffers * tile_bytes(T::TYPE)
}

/// Returns the number of fused-update blocks that run on a multiprocessor at once. Their registers and shared
/// memory limit it; a multiprocessor has little more shared memory than one block can use.
fn resident_blocks<T: Real>(device: &dyn Device) -> usize {
    let two = T::TYPE == ElementType::F32
        && 2 * (fused_update_bytes::<T>(2) + STATIC_SHARED) <= device.shared_bytes();
    1 + usize::from(two)
}

/// Number of buffers for a fused update's inputs, and its shared memory in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring {
    pub(super) buffers: usize,
    pub(super) shared: usize,
}

impl Ring {
    /// Chooses as many buffers as still allow several blocks on a multiprocessor.
    fn new<T: Real>(device: &dyn Device) -> Result<Self> {
        let all = device.shared_bytes();
        let most = (all / resident_blocks::<T>(device)).saturating_sub(STATIC_SHARED);
        let fits = |&buffers: &usize| fused_update_bytes::<T>(buffers) <= most;
        let buffers = [4, 3, 2].into_iter().find(fits).ok_or_else(|| {
            let needed = fused_update_bytes::<T>(2) + STATIC_SHARED;
            let reason = format!(
                "blocks on {} have {all} bytes of shared memory, but the engine needs {needed}; use --device cpu",
                device.name()
            );
            Error::rejected("--device", reason)
        })?;
        Ok(Self { buffers, shared: fused_update_bytes::<T>(buffers) })
    }
}

/// Time segments: runs of consecutive chunks that are stored in order, side by side with other segments. The
/// last may have fewer chunks.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeSegments {
    pub(super) number: usize,
    pub(super) each: usize,
}

impl TimeSegments {
    /// Divides `chunks` chunks of c tokens per head into at most `most` segments, with the number for which the
    /// device finishes soonest. A layer of three weights and one of one weight run, with a block of threads for
    /// each tile of a weight and each segment. All segments but the last are processed once beforehand, at half
    /// the cost. A segment has enough tokens that its start costs not much more than its factors.
    pub(super) fn fastest<T: Real>(
        device: &dyn Device,
        most: usize,
        chunks: usize,
        [heads, c, d]: [usize; 3],
    ) -> Self {
        let (slots, blocks) =
            (resident_blocks::<T>(device) * device.multiprocessors(), d.div_ceil(TILE).pow(2) * heads);
        let least = (d / 2).div_ceil(c).max(1);
        let most = chunks.div_ceil(least).clamp(1, most.min(slots).max(1));
        let segments = (1..=most).map(|number| {
            let each = chunks.div_ceil(number).max(1);
            Self { number: chunks.div_ceil(each).max(1), each }
        });
        // Cost in halves of a chunk. Starting a block of threads takes about as long as one half.
        let cost = |segments: &Self| {
            let rounds = |weights: usize, segments: usize| (weights * blocks * segments).div_ceil(slots);
            2 * (rounds(3, segments.number) + rounds(1, segments.number)) * (segments.each + 1)
                + rounds(4, segments.number - 1) * segments.each
        };
        segments.min_by_key(cost).expect("one at least")
    }
}

/// Rows that are read while a layer is updated: the queries, or keys before or after their chunk is stored.
pub(super) struct Reader<'d, T> {
    /// (…, 3d)
    pub(super) products: Array<'d, T>,
    /// (…, d)
    pub(super) activated: Array<'d, T>,
    /// (…, d)
    pub(super) outputs: Array<'d, T>,
    /// Partial results of rows of tiles, where there are several: (tiles, …, 3d)
    pub(super) parts: Option<Array<'d, T>>,
}

impl<'d, T: Real> Reader<'d, T> {
    fn new(device: &'d dyn Device, rows: usize, d: usize) -> Result<Self> {
        let tiles = d.div_ceil(TILE);
        Ok(Self {
            parts: (tiles > 1).then(|| Array::new(device, tiles * rows * 3 * d)).transpose()?,
            products: Array::new(device, rows * 3 * d)?,
            activated: Array::new(device, rows * d)?,
            outputs: Array::new(device, rows * d)?,
        })
    }
}

/// Device buffers of a block with `heads` heads over all sequences. `stored` and `read` count the rows of each;
/// read rows are whole chunks.
pub struct DeviceBuffers<'d, T: Real> {
    pub(super) sizes: Sizes,
    pub(super) ring: Ring,
    /// (sequences, rows, D)
    pub(super) tokens: [Array<'d, T>; 2],
    /// Keys of a block (sequences, heads, rows, d), followed by its values in the same shape.
    pub(super) keys: Array<'d, T>,
    pub(super) queries: Array<'d, T>,
    /// θ, η, α: (…, chunks, 3)
    pub(super) steps: Array<'d, T>,
    /// (…, 3d)
    pub(super) qkv: Array<'d, T>,
    pub(super) d_qkv: Array<'d, T>,
    /// (…, c)
    pub(super) scores: Array<'d, T>,
    pub(super) d_scores: Array<'d, T>,
    /// (…, d)
    pub(super) hidden: Array<'d, T>,
    pub(super) d_hidden: Array<'d, T>,
    pub(super) activated: Array<'d, T>,
    pub(super) d_output: Array<'d, T>,
    /// Losses at W, before and after: [3][heads, chunks]
    pub(super) chunk_losses: [Array<'d, T>; 3],
    /// Losses of an answer of zeros: (heads, chunks)
    pub(super) zero_losses: Array<'d, T>,
    /// Readers of the queries, then of the probe.
    pub(super) readers: Vec<Reader<'d, T>>,
    /// Sums of squares of tiles, and norms of weights: (heads, chunks, weights, 4)
    pub(super) parts: Array<'d, T>,
    pub(super) norms: Array<'d, f64>,
    /// Most time segments that run side by side.
    pub(super) segments: usize,
    /// U and S at the start of each segment: (heads, segments, elements)
    pub(super) starts: [Array<'d, T>; 2],
    /// (heads, segments, 3)
    pub(super) transitions: Array<'d, T>,
    /// (sequences, rows, hd) and (sequences, rows, D)
    pub(super) merged: Array<'d, T>,
    pub(super) combined: Option<Array<'d, T>>,
    /// Two flags, for norms that were too large and too small: 0 if there was one, else all ones. The index of the
    /// first non-finite row follows, for each head and then for each sequence; all ones if every row is finite.
    pub(super) findings: Array<'d, u32>,
    /// Marks between phases, reused for every block.
    pub(super) marks: Marks,
    /// Measurements of the block, in host memory.
    pub(super) measured: Measurements<T>,
    /// Output rows of the block in host memory: (sequences, rows, D)
    pub(super) output: Vec<T>,
}

impl<'d, T: Real> DeviceBuffers<'d, T> {
    pub(super) fn new(
        device: &'d dyn Device,
        memory: &Memory<T>,
        sizes: Sizes,
        sequences: usize,
    ) -> Result<Self> {
        let dimensions = memory.dimensions;
        let (d, c) = (dimensions.dim_head, memory.chunk_size());
        let heads = sequences * dimensions.heads;
        let (stored, read) = (heads * sizes.stored, heads * padded(sizes.read, c));
        let chunks = stored / c;
        let allocate = |elements: usize| Array::new(device, elements);
        let segments = TimeSegments::fastest::<T>(device, usize::MAX, chunks / heads, [heads, c, d]).number;
        let starts = if segments > 1 { heads * segments * memory.base.len() } else { 0 };
        let mut readers = vec![Reader::new(device, read, d)?];
        // Rows whose attention steps are separate kernels.
        let apart = if in_tiles::<T>(device, c) { 0 } else { read };
        if sizes.probe {
            readers.extend([Reader::new(device, stored, d)?, Reader::new(device, stored, d)?]);
        }
        Ok(Self {
            sizes,
            ring: Ring::new::<T>(device)?,
            segments,
            starts: [allocate(starts)?, allocate(starts)?],
            transitions: allocate(heads * segments * 3)?,
            tokens: [
                allocate(sequences * sizes.stored * dimensions.dim)?,
                allocate(sequences * sizes.read * dimensions.dim)?,
            ],
            keys: allocate(2 * stored * d)?,
            queries: allocate(read * d)?,
            steps: allocate(chunks * 3)?,
            qkv: allocate(stored * 3 * d)?,
            d_qkv: allocate(stored * 3 * d)?,
            scores: allocate(apart.max(stored) * c)?,
            d_scores: allocate(if in_tiles::<T>(device, c) { 0 } else { stored * c })?,
            hidden: allocate(apart.max(stored) * d)?,
            d_hidden: allocate(stored * d)?,
            activated: allocate(stored * d)?,
            d_output: allocate(stored * d)?,
            chunk_losses: [allocate(chunks)?, allocate(chunks)?, allocate(chunks)?],
            zero_losses: allocate(chunks)?,
            readers,
            parts: allocate(chunks * 4 * d.div_ceil(TILE).pow(2) * 4)?,
            norms: Array::new(device, chunks * 16)?,
            merged: allocate(sequences * sizes.read * dimensions.inner())?,
            combined: (dimensions.heads > 1)
                .then(|| allocate(sequences * sizes.read * dimensions.dim))
                .transpose()?,
            findings: Array::new(device, RANGES + heads + sequences)?,
            marks: Marks::default(),
            measured: Measurements::default(),
            output: Vec::new(),
        })
    }

    pub(super) fn bytes(&self) -> usize {
        let Self { tokens, keys, queries, steps, qkv, d_qkv, scores, d_scores, hidden, .. } = self;
        let Self { d_hidden, activated, d_output, chunk_losses, readers, parts, starts, .. } = self;
        let single = [keys, queries, steps, qkv, d_qkv, scores, d_scores, hidden, d_hidden];
        let others = [activated, d_output, parts, &self.merged, &self.zero_losses];
        let read = readers.iter().flat_map(|reader| {
            [&reader.products, &reader.activated, &reader.outputs].into_iter().chain(&reader.parts)
        });
        let all = single.into_iter().chain(others).chain(tokens).chain(chunk_losses).chain(read);
        let all = all.chain(starts).chain([&self.transitions]).chain(&self.combined);
        all.map(Array::bytes).sum::<usize>() + self.norms.bytes() + self.findings.bytes()
    }
}

/// U and S of a group's sequences, before and after a block: (heads, elements)
pub struct DeviceState<'d, T> {
    pub(super) arrays: [[Array<'d, T>; 2]; 2],
}

impl<'d, T: Real> DeviceState<'d, T> {
    pub(super) fn new(
        device: &'d dyn Device,
        memory: &Memory<T>,
        sizes: Sizes,
        sequences: usize,
    ) -> Result<Self> {
        let before = sequences * memory.dimensions.heads * memory.base.len();
        let after = if sizes.storing { before } else { 0 };
        let pair = |elements| Ok::<_, Error>([Array::new(device, elements)?, Array::new(device, elements)?]);
        Ok(Self { arrays: [pair(before)?, pair(after)?] })
    }

    /// Uploads S and U at the start of these sequences: their own, or one pair shared by all.
    pub(super) fn send(
        &mut self,
        device: &dyn Device,
        state: &State<T>,
        sequences: Range<usize>,
    ) -> Result<()> {
        let each = state.update().len() / state.sequences();
        let held = if state.sequences() == 1 { 0..1 } else { sequences.clone() };
        for (array, to) in state.arrays.iter().zip(&mut self.arrays[0]) {
            let elements = array.as_slice().expect("standard layout");
            to.upload(0, &elements[held.start * each..held.end * each])?;
            // Each copy doubles the number of filled states.
            let mut there = held.len();
            while there < sequences.len() {
                let more = there.min(sequences.len() - there);
                device.copy(to.address(there * each), to.address(0), more * each * size_of::<T>())?;
                there += more;
            }
        }
        Ok(())
    }

    /// Downloads S and U of these sequences, which come first in the buffers.
    pub(super) fn receive(&self, state: &mut State<T>, sequences: Range<usize>) -> Result<()> {
        let each = state.update().len() / state.sequences();
        let [update, momentum] = &self.arrays[0];
        for (array, from) in state.arrays.iter_mut().zip([update, momentum]) {
            let elements = array.as_slice_mut().expect("standard layout");
            from.download(0, &mut elements[sequences.start * each..sequences.end * each])?;
        }
        Ok(())
    }

    pub(super) fn bytes(&self) -> usize {
        self.arrays.iter().flatten().map(Array::bytes).sum()
    }
}

/// Returns whether a chunk fits a tile and the tiles of its attention fit a block's shared memory.
pub(super) fn in_tiles<T: Real>(device: &dyn Device, c: usize) -> bool {
    c <= TILE && TILES * tile_bytes(T::TYPE) <= device.shared_bytes()
}

/// Returns the rows of a stream padded to whole chunks.
pub(super) fn padded(rows: usize, c: usize) -> usize {
    rows.next_multiple_of(c)
}
