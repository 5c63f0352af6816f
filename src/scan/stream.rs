//! Stores past the cache, and prefetches. An ordinary store first reads the line that it overwrites, so that 12
//! bytes move for 8 copied. On CPUs other than x86-64 these are ordinary stores.

use super::Element;

/// Bytes of a cache line, which is the unit of the CPU's write buffers.
const LINE: usize = 64;

/// Copies `target ← source`, past the cache where a whole line is written. The stores are not ordered with
/// reads of other threads before [`fence`].
///
/// # Panics
/// Panics if lengths differ.
#[expect(clippy::inline_always, reason = "called for rows of a few hundred elements")]
#[inline(always)]
pub fn copy<T: Element>(target: &mut [T], source: &[T]) {
    assert_eq!(target.len(), source.len(), "as much as there is room for");
    let per_line = LINE / size_of::<T>();
    // Elements are aligned to their size, which divides a line, so the head ends on a line.
    let head = (target.as_ptr().align_offset(LINE)).min(target.len());
    let lines = (target.len() - head) / per_line;
    let (head_target, rest) = target.split_at_mut(head);
    let (head_source, rest_source) = source.split_at(head);
    head_target.copy_from_slice(head_source);
    let (body, tail) = rest.split_at_mut(lines * per_line);
    let (body_source, tail_source) = rest_source.split_at(lines * per_line);
    stream_lines(body, body_source);
    tail.copy_from_slice(tail_source);
}

/// Copies whole lines. `target` starts on a line; `source` may start anywhere.
#[cfg(target_arch = "x86_64")]
#[inline]
fn stream_lines<T: Element>(target: &mut [T], source: &[T]) {
    use std::arch::x86_64::{_mm_loadu_ps, _mm_stream_ps};
    let (lines, bytes) = (size_of_val(target) / LINE, size_of_val(target));
    assert!(size_of_val(source) == bytes && bytes.is_multiple_of(LINE), "whole lines");
    assert!(lines == 0 || target.as_ptr().align_offset(LINE) == 0, "from the start of one");
    let (target, source) = (target.as_mut_ptr().cast::<f32>(), source.as_ptr().cast::<f32>());
    for line in 0..lines {
        // SAFETY: both slices hold `lines` times 64 bytes (16 floats), as asserted; `target` is aligned to 64,
        // and loads need no alignment. Elements are f32 or f64 (`Element` is sealed): plain bytes, moved as
        // they are. SSE is part of x86-64. The slices do not overlap: one is borrowed mutably.
        unsafe {
            let (to, from) = (target.add(16 * line), source.add(16 * line));
            _mm_stream_ps(to, _mm_loadu_ps(from));
            _mm_stream_ps(to.add(4), _mm_loadu_ps(from.add(4)));
            _mm_stream_ps(to.add(8), _mm_loadu_ps(from.add(8)));
            _mm_stream_ps(to.add(12), _mm_loadu_ps(from.add(12)));
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn stream_lines<T: Element>(target: &mut [T], source: &[T]) {
    target.copy_from_slice(source);
}

/// Prefetches elements that are needed soon. The hardware prefetcher follows lines in order, but does not jump
/// from one row's piece to the next.
#[expect(clippy::inline_always, reason = "as above")]
#[inline(always)]
pub(super) fn prefetch<T: Element>(soon: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in soon.chunks(LINE / size_of::<T>()) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint about an address inside the slice, which reads nothing. SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = soon;
}

/// Makes this thread's [`copy`] visible before its later stores. Call it before passing on the work.
pub fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}
