//! Controls stand beside the results that must beat them: the loss of an all-zero answer, and the accuracy of a guess.

use std::path::Path;

use nmem::plot::{CsvSource, Figure, FigureFormat, Kind, Request, draw};

use crate::{HEADER, row};

fn figure(directory: &Path, kind: Kind, request: &Request) -> Figure {
    let source = CsvSource::find(directory, Some(kind)).expect("a sweep");
    let mut figures = draw(&[source], request, &mut || Ok(())).expect("figures").figures;
    assert_eq!(figures.len(), 1);
    figures.remove(0)
}

/// A sweep of two hues and three rates. Results are those of `results`, which gets hue and rate.
fn sweep(columns: &str, results: impl Fn(usize, usize) -> String) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let places = (0..2).flat_map(|hue| (0..3).map(move |x| (hue, x)));
    let rows = places.map(|(hue, x)| format!("r{hue}{x},{},{x},ok,{}\n", ["a", "b"][hue], results(hue, x)));
    let text = format!("run,model,rate,status,{columns}\n{}", rows.collect::<String>());
    std::fs::write(directory.path().join("results.csv"), text).expect("a writable directory");
    directory
}

fn request(y: &str) -> Request {
    let name = |name: &str| Some(name.to_owned());
    Request { x: name("rate"), hue: name("model"), y: vec![y.to_owned()], ..Request::default() }
}

/// Points of the lines whose name begins with `name`, by line.
fn lines(figure: &Figure, name: &str) -> Vec<(String, Vec<(f64, f64)>)> {
    let csv = String::from_utf8(figure.encode(FigureFormat::Csv).expect("a table")).expect("text");
    let mut lines = Vec::<(String, Vec<_>)>::new();
    for row in csv::Reader::from_reader(csv.as_bytes()).into_records().map(|row| row.expect("a row")) {
        let number = |cell: usize| row[cell].parse().expect("a number");
        if !row[1].starts_with(name) {
            continue;
        }
        if lines.last().is_none_or(|(last, _)| *last != row[1]) {
            lines.push((row[1].to_owned(), Vec::new()));
        }
        lines.last_mut().expect("pushed").1.push((number(3), number(4)));
    }
    lines
}

#[test]
fn zeros_that_all_share_are_one_line() {
    let directory = sweep("loss_mean,loss_zero_mean", |hue, x| format!("{},{}", 1 + hue + x, 2 + x));
    let figure = figure(directory.path(), Kind::Sweep, &request("loss_mean"));
    assert_eq!(
        lines(&figure, "all zeros"),
        [("all zeros".to_owned(), vec![(0.0, 2.0), (1.0, 3.0), (2.0, 4.0)])]
    );
    assert_eq!(figure.svg.matches(">all zeros<").count(), 1, "one key: {}", figure.svg);
}

#[test]
fn zeros_of_each_hue_are_a_line_of_it() {
    let directory = sweep("loss_mean,loss_zero_mean", |hue, x| format!("{},{}", 1 + hue + x, 2 + hue));
    let figure = figure(directory.path(), Kind::Sweep, &request("loss_mean"));
    let level = |y: f64| vec![(0.0, y), (1.0, y), (2.0, y)];
    assert_eq!(
        lines(&figure, "all zeros"),
        [("all zeros, model a".to_owned(), level(2.0)), ("all zeros, model b".to_owned(), level(3.0))]
    );
}

/// A ratio has the ratio of zeros, and an accuracy that of a guess.
#[test]
fn controls_of_other_results() {
    let columns = "loss_mean,loss_before_mean,loss_zero_mean,recall_accuracy,recall_chance,validation,\
                   validation_zero,recall_mean_square,recall_ratio";
    let directory = sweep(columns, |hue, x| format!("2,{},3,0.{},0.25,{x},1.5,{x}.5,2", 1 + hue + x, 2 + x));
    let levels = |y: &str, name: &str| -> Vec<f64> {
        let figure = figure(directory.path(), Kind::Sweep, &request(y));
        lines(&figure, name).into_iter().flat_map(|(_, points)| points).map(|(_, y)| y).collect()
    };
    assert_eq!(levels("loss_ratio", "all zeros"), [1.5; 3]);
    assert_eq!(levels("loss_before_mean", "all zeros"), [3.0; 3]);
    assert_eq!(levels("recall_accuracy", "chance"), [0.25; 3]);
    assert_eq!(levels("validation", "all zeros"), [1.5; 3]);
    assert_eq!(levels("recall_mean_square", "all zeros"), [0.25, 0.75, 1.25]);
}

/// Beyond the axis of the losses, and in maps, the values stand in a note.
#[test]
fn zeros_far_away_are_in_a_note() {
    let directory = sweep("loss_mean,loss_zero_mean", |hue, x| format!("{},{}", 1 + hue + x, 90 + x));
    let far = figure(directory.path(), Kind::Sweep, &request("loss_mean"));
    assert_eq!(lines(&far, "all zeros"), []);
    assert!(far.svg.contains("an answer of zeros: 90 to 92"), "{}", far.svg);
    let map = figure(directory.path(), Kind::Map, &request("loss_mean"));
    assert!(map.svg.contains("an answer of zeros: 90 to 92"), "{}", map.svg);
}

/// In a difference to a baseline the control cancels out, and tables of nmem 0.2 have none.
#[test]
fn no_control() {
    let with = sweep("loss_mean,loss_zero_mean", |hue, x| format!("{},{}", 1 + hue + x, 2 + x));
    let without = sweep("loss_mean", |hue, x| format!("{}", 1 + hue + x));
    let baseline = vec![("model".to_owned(), "a".to_owned())];
    for (directory, request) in
        [(&with, Request { baseline, ..request("loss_mean") }), (&without, request("loss_mean"))]
    {
        let figure = figure(directory.path(), Kind::Sweep, &request);
        assert!(!figure.svg.contains("zeros"), "{}", figure.svg);
    }
}

#[test]
fn curves_have_the_ratio_of_zeros() {
    let directory = sweep("loss_mean,loss_before_mean", |_, _| "2,2".to_owned());
    for (hue, x) in (0..2).flat_map(|hue| (0..3).map(move |x| (hue, x))) {
        let rows = (0..8).map(|chunk| row(chunk, 0, &format!("{}", 1 + chunk % 3 + hue), "1"));
        let rows = rows.map(|row| format!("{},{}\n", row.trim_end(), 3 + hue));
        let text = format!("{HEADER},loss_zero\n{}", rows.collect::<String>());
        let run = directory.path().join(format!("runs/r{hue}{x}"));
        std::fs::create_dir_all(&run).expect("a writable directory");
        std::fs::write(run.join("metrics.csv"), text).expect("a writable directory");
    }
    let request = Request { hue: Some("model".into()), ..Request::default() };
    let figure = figure(directory.path(), Kind::Curves, &request);
    let lines = lines(&figure, "all zeros");
    let names: Vec<_> = lines.iter().map(|(name, _)| &name[..]).collect();
    assert_eq!(names, ["all zeros, model a", "all zeros, model b"]);
    for ((_, points), ratio) in lines.iter().zip([1.5, 2.0]) {
        let ratios: Vec<_> = points.iter().map(|&(_, y)| y).collect();
        assert_eq!(ratios, [ratio; 8]);
    }
    assert_eq!(figure.svg.matches(">all zeros<").count(), 1, "one key");
}
