//! Memory that the outer gradient takes, against the bound that is compared with the machine's.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};

use ndarray::{Array3, ArrayView2, Axis};
use nmem::engine::backward::{Backward, Order, Tokens};
use nmem::memory::model::{Model, ModelKind};
use nmem::memory::parameters::Init;
use nmem::memory::{Dimensions, Gates, Program};
use support::{RandomMemory, uniform};

/// Counts the bytes in use and their peak.
struct Counting;

static IN_USE: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every call is passed on to the system's allocator with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let size = layout.size().cast_signed();
        let in_use = IN_USE.fetch_add(size, Ordering::Relaxed) + size;
        PEAK.fetch_max(in_use, Ordering::Relaxed);
        // SAFETY: the caller's promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size().cast_signed(), Ordering::Relaxed);
        // SAFETY: the caller's promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test, because the count is that of the process.
#[test]
fn gradients_take_at_most_what_is_announced() {
    // With more threads, how many tasks are under way at once depends on time. The bound holds for all of them.
    let pools = [1, 4].map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
    let mut closest = 0.0_f64;
    for &kind in ModelKind::ALL {
        for (tokens, chunk, dim, heads, dim_head, sequences) in [
            (512, 4, 16, 2, 8, 1),
            (256, 2, 16, 1, 16, 1),
            (300, 64, 16, 1, 16, 2),
            (96, 96, 16, 2, 8, 3),
            (40, 8, 24, 1, 24, 9),
            // These go back by blocks of the weights, with a short last segment.
            (60, 4, 48, 1, 48, 1),
            (135, 9, 64, 1, 64, 2),
            // The layers around the heads are larger than all else.
            (8, 4, 1024, 2, 16, 1),
            (8, 4, 512, 2, 16, 9),
        ] {
            let mut program = Program::titans_0_0_17(chunk);
            program.model = Model::new(kind, false);
            let dimensions = Dimensions { dim, heads, dim_head, pre_norm: true, post_norm: true };
            let memory = RandomMemory::of_program(program, dimensions, Init::Xavier, 1);
            let parameters = memory.parameters::<f32>();
            let seq: Array3<f32> = uniform((sequences, tokens, dim), 1.0, 2).mapv(|x| x as f32);
            let cases = [Order::Online, Order::After]
                .into_iter()
                .flat_map(|order| [None, Some(chunk)].map(|refresh| (order, refresh)))
                .flat_map(|(order, refresh)| {
                    [None, Some(1), Some(8)].map(|segment| (order, refresh, segment))
                });
            for (order, refresh, segment) in cases {
                program.schedule.refresh = refresh;
                let rows: Vec<_> =
                    seq.axis_iter(Axis(0)).map(|rows| Tokens { read: rows, store: rows, order }).collect();
                let new = || {
                    let backward = Backward::new(&parameters, program, Gates::default(), None, None).unwrap();
                    segment.into_iter().fold(backward, Backward::in_segments)
                };
                // Several segments of a head are at work at once where there are threads enough.
                let sequences_of_heads = heads * sequences;
                for pool in
                    pools.iter().filter(|pool| sequences_of_heads <= 2 || pool.current_num_threads() == 1)
                {
                    let backward = new();
                    let before = IN_USE.load(Ordering::Relaxed);
                    PEAK.store(before, Ordering::Relaxed);
                    let objective = |_: usize, read: ArrayView2<f32>| ((), read.to_owned());
                    // The second gradient is taken in the buffers of the first.
                    for _ in 0..2 {
                        let again = new().reusing(&backward.buffers());
                        pool.install(|| again.sequences(None, &rows, objective)).unwrap();
                    }
                    let taken = (PEAK.load(Ordering::Relaxed) - before) as f64;
                    let announced = pool.install(|| backward.bytes(tokens, tokens, sequences)) as f64;
                    let what = format!(
                        "{kind:?}, {tokens} tokens, chunks of {chunk}, {sequences} sequences, {order:?}, refresh {refresh:?}, segments {segment:?}, {} threads",
                        pool.current_num_threads()
                    );
                    assert!(taken <= announced, "{what}: {taken} bytes, announced {announced}");
                    closest = closest.max(taken / announced);
                }
            }
        }
    }
    // A bound of ten times as much would reject gradients that fit.
    assert!(closest > 0.2, "{closest}");
}
