//! kernels.ptx contains the kernels that the tests run.

use std::collections::BTreeSet;

use crate::library::names;

#[test]
fn tests_can_run_every_compiled_kernel() {
    let ptx = include_str!("../../src/cuda/kernels.ptx");
    let entry = |line: &str| Some(line.split(".entry ").nth(1)?.trim_end_matches('(').to_owned());
    let compiled: BTreeSet<_> = ptx.lines().filter_map(entry).collect();
    let tested: BTreeSet<_> =
        names().flat_map(|name| ["f32", "f64"].map(|dtype| format!("{name}_{dtype}"))).collect();
    assert_eq!(compiled, tested);
}
