//! Recurrences along contiguous time. Each is a chain of dependent products and sums, so [`LANES`] of them are
//! scanned at once. Tiles of as many steps are transposed so that one step of all lanes is a vector, computed,
//! and transposed back.
//!
//! Rows pass by [`BLOCK`]s through a scratch in L1. The hardware prefetches stretches of memory, not single
//! lines of many rows (which took twice as long). Stores past the cache should continue where they ended. And
//! rows a power of two apart would evict each other.

use super::{Element, stream};
use crate::simd::vectorised;

/// Rows scanned at once, and steps of a tile: two vectors of AVX2 in f32, one of AVX-512.
pub const LANES: usize = 16;
/// Rows and columns transposed at once.
const SQUARE: usize = 8;
/// Steps that pass through the scratch at once: in f32, gates and values take half of L1.
const BLOCK: usize = 128;
/// Padding that separates rows of the scratch in L1.
const PAD: usize = 16;

/// A recurrence, or a segment of it.
#[derive(Debug)]
pub struct Lane<'a, T> {
    pub gates: &'a [T],
    pub inputs: &'a [T],
    /// State before the first step; after the scan, the last state.
    pub state: T,
    /// Destination of the states, if they are needed.
    pub states: Option<&'a mut [T]>,
}

/// One block of all lanes.
type Rows<T> = [[T; BLOCK + PAD]; LANES];

/// [`LANES`] steps, each of all lanes.
type Tile<T> = [[T; LANES]; LANES];

/// Gates and values of a block, kept from one group of lanes to the next.
pub struct Scratch<T> {
    gates: Rows<T>,
    values: Rows<T>,
}

impl<T: Element> Scratch<T> {
    pub fn new() -> Self {
        let rows = [[T::zero(); BLOCK + PAD]; LANES];
        Self { gates: rows, values: rows }
    }
}

/// Scans up to [`LANES`] recurrences of the same length at once. Returns the products of their gates if no
/// states are written.
pub fn scan<T: Element>(lanes: &mut [Lane<T>], past_cache: bool, scratch: &mut Scratch<T>) -> [T; LANES] {
    let Some(first) = lanes.first() else { return [T::one(); LANES] };
    let (length, writes) = (first.inputs.len(), first.states.is_some());
    let alike = |lane: &Lane<T>| {
        let [gates, states] = [lane.gates.len(), lane.states.as_ref().map_or(length, |states| states.len())];
        [lane.inputs.len(), gates, states] == [length; 3] && lane.states.is_some() == writes
    };
    assert!(lanes.len() <= LANES && lanes.iter().all(alike), "lanes side by side");
    let shared = lanes.iter().all(|lane| std::ptr::eq(lane.gates, first.gates)).then_some(first.gates);
    // Unused lanes scan the old contents of the scratch, and their results are ignored.
    let Scratch { gates, values } = scratch;
    let mut state = std::array::from_fn(|i| lanes.get(i).map_or(T::zero(), |lane| lane.state));
    let mut product = [T::one(); LANES];
    let avx = has_avx();
    let (mut a, mut x) = ([[T::zero(); LANES]; LANES], [[T::zero(); LANES]; LANES]);
    vectorised(
        #[inline(always)]
        || {
            for start in (0..length).step_by(BLOCK) {
                let range = start..length.min(start + BLOCK);
                let soon = range.end..length.min(range.end + BLOCK);
                let count = range.len();
                for ((lane, gates), values) in lanes.iter().zip(&mut *gates).zip(&mut *values) {
                    if shared.is_none() {
                        stream::prefetch(&lane.gates[soon.clone()]);
                        gates[..count].copy_from_slice(&lane.gates[range.clone()]);
                    }
                    stream::prefetch(&lane.inputs[soon.clone()]);
                    values[..count].copy_from_slice(&lane.inputs[range.clone()]);
                }
                let shared = shared.map(|shared| &shared[range.clone()]);
                let whole = count - count % LANES;
                for t in (0..whole).step_by(LANES) {
                    turn_rows(avx, values, t, &mut x);
                    if let Some(shared) = shared {
                        let a: &[T; LANES] = shared[t..].first_chunk().expect("a whole tile");
                        compute(|i| [a[i]; LANES], &mut x, &mut state, &mut product, writes);
                    } else {
                        turn_rows(avx, gates, t, &mut a);
                        compute(|i| a[i], &mut x, &mut state, &mut product, writes);
                    }
                    if writes {
                        turn_back(avx, &x, values, t);
                    }
                }
                for t in whole..count {
                    for i in 0..LANES {
                        let a = shared.map_or(gates[i][t], |shared| shared[t]);
                        state[i] = a * state[i] + values[i][t];
                        product[i] *= a;
                        values[i][t] = state[i];
                    }
                }
                for (lane, values) in lanes.iter_mut().zip(&*values) {
                    let Some(states) = &mut lane.states else { continue };
                    let (states, values) = (&mut states[range.clone()], &values[..count]);
                    if past_cache {
                        stream::copy(states, values);
                    } else {
                        states.copy_from_slice(values);
                    }
                }
            }
        },
    );
    stream::fence();
    for (state, lane) in state.iter().zip(lanes) {
        lane.state = *state;
    }
    product
}

/// Computes a tile's steps: b in and x out, or their effect on the state before them.
#[expect(clippy::inline_always, reason = "to be compiled with the caller's instruction set")]
#[inline(always)]
fn compute<T: Element>(
    a: impl Fn(usize) -> [T; LANES],
    x: &mut Tile<T>,
    state: &mut [T; LANES],
    product: &mut [T; LANES],
    writes: bool,
) {
    let mut s = *state;
    if writes {
        for (t, x) in x.iter_mut().enumerate() {
            let a = a(t);
            for i in 0..LANES {
                s[i] = a[i] * s[i] + x[i];
            }
            *x = s;
        }
    } else {
        let mut p = *product;
        for (t, b) in x.iter().enumerate() {
            let a = a(t);
            for i in 0..LANES {
                s[i] = a[i] * s[i] + b[i];
                p[i] *= a[i];
            }
        }
        *product = p;
    }
    *state = s;
}

/// Quarters of a tile: first lane and first step.
const SQUARES: [(usize, usize); 4] = [(0, 0), (0, SQUARE), (SQUARE, 0), (SQUARE, SQUARE)];

/// Reads the tile at step `t` of a block.
#[expect(clippy::inline_always, reason = "as above")]
#[inline(always)]
fn turn_rows<T: Element>(avx: bool, rows: &Rows<T>, t: usize, tile: &mut Tile<T>) {
    assert!(t + LANES <= BLOCK, "within the block");
    for (group, half) in SQUARES {
        let first = rows.as_flattened().as_ptr().wrapping_add(group * (BLOCK + PAD) + t + half);
        let from = std::array::from_fn(|i| first.wrapping_add(i * (BLOCK + PAD)));
        let to = tile.as_flattened_mut().as_mut_ptr().wrapping_add(half * LANES + group);
        // SAFETY: steps t + half … + 7 of rows group … group + 7, as asserted; likewise within the 16 × 16
        // tile, whose rows are LANES apart. `avx` is the detected feature.
        unsafe { turn(avx, from, to, LANES) };
    }
}

/// Writes a tile back to step `t` of a block.
#[expect(clippy::inline_always, reason = "as above")]
#[inline(always)]
fn turn_back<T: Element>(avx: bool, tile: &Tile<T>, rows: &mut Rows<T>, t: usize) {
    assert!(t + LANES <= BLOCK, "within the block");
    for (group, half) in SQUARES {
        let first = tile.as_flattened().as_ptr().wrapping_add(half * LANES + group);
        let from = std::array::from_fn(|i| first.wrapping_add(i * LANES));
        let to = rows.as_flattened_mut().as_mut_ptr().wrapping_add(group * (BLOCK + PAD) + t + half);
        // SAFETY: as above, in the other direction; rows of the block are BLOCK + PAD apart.
        unsafe { turn(avx, from, to, BLOCK + PAD) };
    }
}

fn has_avx() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Transposes 8 rows of 8 elements to `to`, whose rows are `stride` elements apart. It takes pointers, because
/// slices of slices cost more checks than the work takes.
///
/// # Safety
/// Both ranges must be valid for reads and writes and must not overlap; the CPU must have AVX if `avx`.
#[expect(clippy::inline_always, reason = "as above")]
#[inline(always)]
unsafe fn turn<T: Element>(avx: bool, from: [*const T; SQUARE], to: *mut T, stride: usize) {
    #[cfg(target_arch = "x86_64")]
    if avx && size_of::<T>() == size_of::<f32>() {
        let from = std::array::from_fn(|i| from[i].cast());
        // SAFETY: the contract of this function; `Element` is sealed, so T is f32.
        unsafe { turn_f32(from, to.cast(), stride) };
        return;
    }
    let _ = avx;
    // In quarters: compilers use shuffles for 4 × 4, but for 8 × 8 they went through memory, at a third of the speed.
    for (i, j) in [(0, 0), (0, 4), (4, 0), (4, 4)] {
        // SAFETY: rows j … j + 3 and columns i … i + 3 of the readable range, columns j … j + 3 of rows i … i +
        // 3 of the writable range.
        unsafe {
            let rows: [[T; 4]; 4] = std::array::from_fn(|k| from[j + k].add(i).cast::<[T; 4]>().read());
            let columns: [[T; 4]; 4] = std::array::from_fn(|k| std::array::from_fn(|l| rows[l][k]));
            for (k, column) in columns.into_iter().enumerate() {
                to.add((i + k) * stride + j).cast::<[T; 4]>().write(column);
            }
        }
    }
}

/// Transposes by halves of rows, because inserting a half from memory costs no shuffle. The whole scan takes
/// 0.26 ns an element within L1 with it, and 0.56 with the loop above.
///
/// # Safety
/// The contract of [`turn`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
#[inline]
unsafe fn turn_f32(from: [*const f32; SQUARE], to: *mut f32, stride: usize) {
    use std::arch::x86_64::{
        __m256, _mm_loadu_ps, _mm256_castps128_ps256, _mm256_insertf128_ps, _mm256_shuffle_ps,
        _mm256_storeu_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };
    for half in [0, SQUARE / 2] {
        let rows = |i: usize| -> __m256 {
            // SAFETY: columns half … half + 3 of rows i and i + 4.
            let (low, high) =
                unsafe { (_mm_loadu_ps(from[i].add(half)), _mm_loadu_ps(from[i + 4].add(half))) };
            _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(low), high)
        };
        let (r0, r1, r2, r3) = (rows(0), rows(1), rows(2), rows(3));
        let (a, b) = (_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1));
        let (c, d) = (_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3));
        // SAFETY: rows half … half + 3 of the writable range, 8 elements each.
        unsafe {
            _mm256_storeu_ps(to.add(half * stride), _mm256_shuffle_ps::<0b01_00_01_00>(a, c));
            _mm256_storeu_ps(to.add((half + 1) * stride), _mm256_shuffle_ps::<0b11_10_11_10>(a, c));
            _mm256_storeu_ps(to.add((half + 2) * stride), _mm256_shuffle_ps::<0b01_00_01_00>(b, d));
            _mm256_storeu_ps(to.add((half + 3) * stride), _mm256_shuffle_ps::<0b11_10_11_10>(b, d));
        }
    }
}
