//! PDF and PNG: the same bytes every time, fonts embedded as TrueType, selectable text. Without poppler's tools, their
//! checks are skipped with a note; NMEM_REQUIRE_PDFFONTS=1 makes that a failure.
#![cfg(feature = "pdf-png")]

use std::process::Command;

use nmem::plot::{CsvSource, FigureFormat, FigureStyle, Figures, INCH, Kind, Request, draw};

use crate::{HEADER, run};

fn timeline(width: f64) -> Figures {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let csv = directory.path().join("metrics.csv");
    std::fs::write(&csv, format!("{HEADER}\n{}", run(40, 3, true))).expect("a writable temporary directory");
    let source = CsvSource::find(&csv, Some(Kind::Timeline)).expect("a metrics.csv");
    let request = Request {
        style: FigureStyle { width: width * INCH, ..FigureStyle::default() },
        ..Request::default()
    };
    draw(&[source], &request, &mut || Ok(())).expect("a figure")
}

/// Returns the output of a poppler tool for the figure as PDF, or `None` if the tool is not installed.
fn of_poppler(tool: &str, arguments: &[&str]) -> Option<String> {
    if Command::new(tool).arg("-v").output().is_err() {
        assert!(std::env::var_os("NMEM_REQUIRE_PDFFONTS").is_none(), "{tool} is required, and not installed");
        eprintln!("skipped: {tool} (poppler-utils) is not installed");
        return None;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let files = timeline(3.25).write(directory.path(), &[FigureFormat::Pdf]).expect("a PDF");
    let said = Command::new(tool).args(arguments).arg(&files[0]).arg("-").output();
    let said = if tool == "pdftotext" { said } else { Command::new(tool).arg(&files[0]).output() };
    let said = said.expect("a tool that runs");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    Some(String::from_utf8_lossy(&said.stdout).into_owned())
}

#[test]
fn the_same_bytes_every_time() {
    let figure = &timeline(3.25).figures[0];
    for format in [FigureFormat::Pdf, FigureFormat::Png] {
        let (one, other) = (figure.encode(format).expect("bytes"), figure.encode(format).expect("bytes"));
        assert!(one == other, "{format:?} differs from itself");
    }
}

#[test]
fn fonts_are_embedded_as_truetype() {
    let Some(said) = of_poppler("pdffonts", &[]) else { return };
    let fonts: Vec<_> = said.lines().skip(2).collect();
    assert_eq!(fonts.len(), 2, "regular, and bold for the letters of panels:\n{said}");
    for font in fonts {
        assert!(font.contains("LiberationSans") && font.contains("TrueType"), "{font}");
        assert!(!font.contains("Type 3"), "{font}");
        let flags: Vec<_> = font.split_whitespace().rev().skip(2).take(3).collect();
        assert_eq!(flags, ["yes", "yes", "yes"], "embedded, a subset, with Unicode: {font}");
    }
}

#[test]
fn text_can_be_selected() {
    let Some(said) = of_poppler("pdftotext", &["-layout"]) else { return };
    for text in ["mean over heads", "head 2", "tokens"] {
        assert!(said.contains(text), "{text} in\n{said}");
    }
}

#[test]
fn pixels_are_600_an_inch() {
    let png = timeline(3.25).figures[0].encode(FigureFormat::Png).expect("a PNG");
    let width = u32::from_be_bytes(png[16..20].try_into().expect("four bytes"));
    assert_eq!(width, 1950);
    let place = png.windows(4).position(|chunk| chunk == b"pHYs").expect("the size of a pixel");
    let per_metre = u32::from_be_bytes(png[place + 4..place + 8].try_into().expect("four bytes"));
    assert_eq!(per_metre, 23_622, "600 an inch");
}
