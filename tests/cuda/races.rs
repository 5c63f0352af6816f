//! The findings of compute-sanitizer's racecheck on a GPU, for some cases of each kernel with shared memory.

use crate::device::{race_of, watch};
use crate::{engine, product, scan};

/// The check itself finds races.
#[test]
fn races_are_found() {
    for (probe, expected) in [
        ("clean", ""),
        ("writes", "two writes: thread 0 and thread 1 "),
        ("read_of_another_warp", "a write beside a read: thread 31 and thread 32 "),
        ("read_of_a_lane", "a write beside a read: thread 0 and thread 1 "),
        ("write_of_what_others_read", "a read beside a write: thread 31 and thread 32 "),
        ("read_of_atomics", "a read beside a write: "),
        ("copy_not_waited_for", "an access beside a copy: "),
    ] {
        let Some(race) = race_of(probe) else { return };
        assert!(race.starts_with(expected) && race.is_empty() == expected.is_empty(), "{probe}: {race}");
    }
}

#[test]
fn engine_kernels_have_no_races() {
    watch(|| {
        engine::agrees_with_the_oracle();
        engine::segments_side_by_side();
        engine::little_shared_memory();
        engine::norms_whose_squares_leave_the_range();
        engine::nonfinite_values_stay_in_their_chunk();
    });
}

#[test]
fn scan_and_product_kernels_have_no_races() {
    watch(|| {
        scan::the_fused_pair();
        scan::scan_with_gates_of_all_kinds();
        scan::scan_where_products_of_gates_overflow_or_vanish();
        product::products_in_f32();
        product::products_in_f64();
    });
}
