//! What compute-sanitizer's racecheck says on a GPU: every access of shared memory, of every kernel that has any.

use crate::device::watch;
use crate::{engine, product, scan};

#[test]
fn of_the_engine() {
    watch(|| {
        engine::agrees_with_the_oracle();
        engine::spans_side_by_side();
        engine::what_is_not_finite_stays_in_its_chunk();
    });
}

#[test]
fn of_scans_and_products() {
    watch(|| {
        scan::the_fused_pair();
        scan::scan_with_gates_of_all_kinds();
        scan::scan_where_products_of_gates_overflow_or_vanish();
        product::products_in_f32();
        product::products_in_f64();
    });
}
