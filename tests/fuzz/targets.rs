//! Fuzz targets: each treats an input's bytes as a file of its kind and processes it completely.

use std::path::{Path, PathBuf};

use ndarray::Array2;
use nmem::config::{Command, Settings};
use nmem::io::labels::Labels;
use nmem::io::memory_file::MemoryFile;
use nmem::io::summary::summarise;
use nmem::io::text::{MAX_TOML, TextFile};
use nmem::io::{NpySequences, TensorFile};
use nmem::plot::terminal::{Screen, view};
use nmem::plot::{
    self, CsvSource, FigureFormat, FigureStyle, Kind, LegendPlace, Limits, LogAxes, Request, Theme,
};
use nmem::real::ElementType;
use nmem::sequence::Sequences;
use nmem::sweep::Experiment;
use usvg::roxmltree::{Document, ParsingOptions};

use crate::mutate::{self, Random};

/// A function under test, and the mutation that makes its inputs.
pub struct Target {
    pub name: &'static str,
    /// The function. Its error means a wrong result; an input that nmem rejects is not an error.
    pub run: fn(&[u8], &Path) -> Result<(), String>,
    pub mutate: fn(&[Vec<u8>], &mut Random) -> Vec<u8>,
}

pub const TARGETS: [Target; 13] = [
    Target { name: "npy", run: npy, mutate: mutate::npy },
    Target { name: "npz", run: tensors, mutate: mutate::npz },
    Target { name: "safetensors", run: tensors, mutate: mutate::safetensors },
    Target { name: "memory_file", run: tensors, mutate: mutate::safetensors },
    Target { name: "labels", run: labels, mutate: mutate::csv },
    Target { name: "config", run: config, mutate: mutate::bytes },
    Target { name: "experiment", run: experiment, mutate: mutate::bytes },
    Target {
        name: "metrics",
        run: |input, directory| figures(input, directory, "metrics.csv"),
        mutate: mutate::csv,
    },
    Target {
        name: "retention",
        run: |input, directory| figures(input, directory, "retention.csv"),
        mutate: mutate::csv,
    },
    Target {
        name: "recall",
        run: |input, directory| figures(input, directory, "recall.csv"),
        mutate: mutate::csv,
    },
    Target {
        name: "spectrum",
        run: |input, directory| figures(input, directory, "spectrum.csv"),
        mutate: mutate::csv,
    },
    Target {
        name: "results",
        run: |input, directory| figures(input, directory, "results.csv"),
        mutate: mutate::csv,
    },
    Target {
        name: "scan_bench",
        run: |input, directory| figures(input, directory, "scan_bench.csv"),
        mutate: mutate::csv,
    },
];

fn file(directory: &Path, name: &str, input: &[u8]) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, input).unwrap();
    path
}

/// Checks that an error is one line.
fn checked<T>(result: nmem::Result<T>) -> Result<Option<T>, String> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.to_string().is_empty() => Err("an error without a message".to_owned()),
        Err(_) => Ok(None),
    }
}

fn npy(input: &[u8], directory: &Path) -> Result<(), String> {
    let path = file(directory, "a.npy", input);
    checked(summarise(&path, &mut |_| Ok(())))?;
    checked(NpySequences::open(&path, ElementType::F32, false, &mut |_| Ok(())))?;
    let opened = checked(NpySequences::open(&path, ElementType::F64, true, &mut |_| Ok(())))?;
    let Some(sequences) = opened else { return Ok(()) };
    let shape = sequences.dims();
    let rows = shape.tokens.min(3);
    let mut out = Array2::<f64>::zeros((rows, shape.dim));
    checked(sequences.read_rows(shape.sequences - 1, shape.tokens - rows, out.view_mut()))?;
    Ok(())
}

fn tensors(input: &[u8], directory: &Path) -> Result<(), String> {
    let path = file(directory, "a", input);
    checked(summarise(&path, &mut |_| Ok(())))?;
    checked(TensorFile::open(&path, &mut |_| Ok(())))?;
    let opened = checked(MemoryFile::open(&path, ElementType::F32, true, &mut |_| Ok(())))?;
    let Some(memory) = opened else { return Ok(()) };
    if checked(memory.dimensions().check(memory.program()))?.is_some() {
        memory.parameters::<f32>(memory.program());
        memory.past::<f64>();
        memory.state::<f64>();
    }
    Ok(())
}

fn labels(input: &[u8], directory: &Path) -> Result<(), String> {
    let path = file(directory, "labels.csv", input);
    let Some(labels) = checked(Labels::read(&path))? else { return Ok(()) };
    labels.shifted(u64::MAX);
    let ascending = labels.boundaries.is_sorted_by(|a, b| a < b)
        && labels.repeats.is_sorted_by(|a, b| a.end < b.start)
        && labels.repeats.iter().all(|range| range.start < range.end);
    if ascending { Ok(()) } else { Err(format!("labels out of order: {labels:?}")) }
}

fn config(input: &[u8], directory: &Path) -> Result<(), String> {
    let path = file(directory, "run.toml", input);
    let Some(text) = checked(TextFile::read(&path, MAX_TOML))? else { return Ok(()) };
    let Some(settings) = checked(Settings::from_toml(&text))? else { return Ok(()) };
    for command in [Command::Store, Command::Retrieve] {
        if let Some(config) = checked(settings.clone().validate(command))? {
            for dim in [1, 64, usize::MAX] {
                if let Some(Some((dimensions, ..))) = checked(config.memory.random(dim))? {
                    let Some(program) = checked(config.program(None))? else { continue };
                    checked(dimensions.check(&program))?;
                    checked(dimensions.check_random(&program))?;
                }
            }
        }
    }
    Ok(())
}

/// Reads an experiment and, after a line of dashes, command-line settings.
fn experiment(input: &[u8], directory: &Path) -> Result<(), String> {
    let text = String::from_utf8_lossy(input);
    let (text, settings) = text.split_once("\n---\n").unwrap_or((&text, ""));
    let path = file(directory, "sweep.toml", text.as_bytes());
    let Some(text) = checked(TextFile::read(&path, MAX_TOML))? else { return Ok(()) };
    let Some(mut experiment) = checked(Experiment::read(&text))? else { return Ok(()) };
    for setting in settings.lines() {
        checked(experiment.override_setting(setting))?;
    }
    experiment.keys();
    for row in checked(experiment.expand())?.unwrap_or_default().iter().take(1000) {
        checked(row.config(experiment.kind()))?;
    }
    Ok(())
}

fn figures(input: &[u8], directory: &Path, name: &str) -> Result<(), String> {
    let path = file(directory, name, input);
    let mut check = || Ok(());
    let digest =
        input.iter().fold(7_u64, |all, &byte| (all ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let nth = |of: u64, place: u32| (digest >> (place * 8)) % of;
    let style = FigureStyle {
        theme: [Theme::Print, Theme::Screen, Theme::Mono][nth(3, 1) as usize],
        title: (nth(4, 2) == 0).then(|| "{a}\x01 title".to_owned()),
        log: [None, None, Some(LogAxes::Xy), Some(LogAxes::None)][nth(4, 3) as usize],
        smooth: (nth(4, 4) == 0).then_some(3),
        width: if nth(2, 5) == 0 { FigureStyle::default().width } else { 2.0 * plot::INCH },
        height: (nth(4, 6) == 0).then_some(2.5 * plot::INCH),
        ylim: if nth(5, 0) == 0 { Limits { low: Some(0.5), high: None } } else { Limits::default() },
        legend: [LegendPlace::Top, LegendPlace::Inside, LegendPlace::Right][nth(3, 3) as usize],
        ..FigureStyle::default()
    };
    let baseline = if nth(4, 5) == 0 { vec![("decay".to_owned(), "0".to_owned())] } else { Vec::new() };
    let request = Request { style, baseline, ..Request::default() };
    let kinds: &[Option<Kind>] = match name {
        "metrics.csv" => {
            &[None, Some(Kind::Gates), Some(Kind::Heads), Some(Kind::Columns), Some(Kind::Boxes)]
        }
        "results.csv" => &[None, Some(Kind::Map), Some(Kind::Ablation), Some(Kind::Pareto)],
        "retention.csv" => &[None, Some(Kind::Lags)],
        "scan_bench.csv" => &[None, Some(Kind::Speedup)],
        _ => &[None],
    };
    for &kind in kinds {
        let paths = vec![path.clone(); 1 + nth(2, 7) as usize];
        let Some(sources) = checked(CsvSource::find_all(&paths, kind, None))? else { continue };
        let mut requests = vec![request.clone()];
        if kind == Some(Kind::Columns) {
            let columns = Request {
                x: Some("loss".into()),
                y: vec!["surprise".into(), "decay".into()],
                ..request.clone()
            };
            requests.push(columns);
        }
        if name == "results.csv" {
            requests.push(Request { y: vec!["loss_mean".into(), "a/loss_mean".into()], ..request.clone() });
        }
        for request in &requests {
            if let Some(drawn) = checked(plot::draw(&sources, request, &mut check))? {
                for figure in &drawn.figures {
                    check_svg(&figure.svg)?;
                    checked(figure.encode(FigureFormat::Pgfplots))?;
                    checked(figure.encode(FigureFormat::Csv))?;
                }
            }
            let screen = Screen { columns: 40 + nth(60, 0) as usize, colours: false };
            if let Some(view) = checked(view(&sources, request, &screen, &mut check))? {
                let steers = |letter: char| letter.is_control() && letter != '\n';
                if view.text.contains(steers) {
                    return Err(format!("a control character in the terminal: {:?}", view.text));
                }
            }
        }
    }
    Ok(())
}

/// Checks that a figure is XML and that all its positions and sizes are finite.
fn check_svg(svg: &str) -> Result<(), String> {
    let options = ParsingOptions { nodes_limit: u32::MAX, ..ParsingOptions::default() };
    let document = Document::parse_with_options(svg, options).map_err(|error| format!("no XML: {error}"))?;
    for node in document.descendants() {
        for attribute in node.attributes() {
            let places =
                ["x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "r", "width", "height", "points", "viewBox"];
            if !places.contains(&attribute.name()) {
                continue;
            }
            let numbers = attribute.value().split([',', ' ']).filter(|part| !part.is_empty());
            for number in numbers {
                let number: Result<f64, _> = number.trim_end_matches("pt").parse();
                // A sheet of a hundred panels is far smaller.
                if !number.as_ref().is_ok_and(|number| number.is_finite() && number.abs() < 1e7) {
                    return Err(format!(
                        "{} of {}: {}",
                        attribute.name(),
                        node.tag_name().name(),
                        attribute.value()
                    ));
                }
            }
        }
    }
    Ok(())
}
