//! Two figures compared byte by byte: a timeline and a sweep. After an intended change, NMEM_RENEW=1 regenerates them; look
//! at them before committing.

use std::fmt::Write as _;
use std::path::Path;

use nmem::plot::{CsvSource, FigureStyle, INCH, Kind, Request, Theme, draw};

use crate::{HEADER, run};

fn check(name: &str, svg: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/figures/snapshots").join(name);
    if std::env::var_os("NMEM_RENEW").is_some() {
        std::fs::write(&path, svg).expect("a writable checkout");
    }
    let expected = std::fs::read_to_string(&path).expect("the snapshot");
    assert!(svg == expected, "{name} has changed: look at it, then renew it with NMEM_RENEW=1");
}

#[test]
fn a_timeline_in_a_column() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let csv = directory.path().join("metrics.csv");
    std::fs::write(&csv, format!("{HEADER}\n{}", run(60, 2, true))).expect("a writable temporary directory");
    let source = CsvSource::find(&csv, Some(Kind::Timeline)).expect("a metrics.csv");
    let request =
        Request { style: FigureStyle { width: 3.25 * INCH, ..FigureStyle::default() }, ..Request::default() };
    let drawn = draw(&[source], &request, &mut || Ok(())).expect("a figure");
    check("timeline.svg", &drawn.figures[0].svg);
}

#[test]
fn a_sweep_in_greys() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let csv = directory.path().join("results.csv");
    let mut rows = "run,chunk_size,decay,seed,status,loss_before_mean\n".to_owned();
    for (i, chunk_size) in [4, 8, 16, 32, 64].into_iter().enumerate() {
        for (j, decay) in [0.0, 0.5, 0.9].into_iter().enumerate() {
            for seed in 0..3 {
                // Exact in binary: the same figure on every machine.
                let loss = 1.0 + i as f64 / 8.0 + j as f64 / 4.0 + f64::from(seed) / 64.0;
                writeln!(rows, "{i}{j}{seed},{chunk_size},{decay},{seed},ok,{loss}")
                    .expect("a string takes all");
            }
        }
    }
    std::fs::write(&csv, rows).expect("a writable temporary directory");
    let style = FigureStyle { theme: Theme::Mono, width: 3.25 * INCH, ..FigureStyle::default() };
    let source = CsvSource::find(&csv, None).expect("a results.csv");
    let drawn = draw(&[source], &Request { style, ..Request::default() }, &mut || Ok(())).expect("a figure");
    check("sweep.svg", &drawn.figures[0].svg);
}
