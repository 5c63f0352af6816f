//! kernels.ptx and what the tests run are the same kernels.

use std::collections::BTreeSet;

use crate::library::names;

#[test]
fn every_kernel_that_was_compiled_is_one_that_tests_can_run() {
    let ptx = include_str!("../../src/cuda/kernels.ptx");
    let entry = |line: &str| Some(line.split(".entry ").nth(1)?.trim_end_matches('(').to_owned());
    let compiled: BTreeSet<_> = ptx.lines().filter_map(entry).collect();
    let tested: BTreeSet<_> =
        names().flat_map(|name| ["f32", "f64"].map(|dtype| format!("{name}_{dtype}"))).collect();
    assert_eq!(compiled, tested);
}
