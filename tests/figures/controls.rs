//! Controls stand beside the results that must beat them: the loss of an all-zero answer, and the accuracy of a guess.

use std::path::Path;

use nmem::plot::{CsvSource, Figure, FigureFormat, FigureStyle, Kind, LogAxes, Request, draw};
use nmem::statistics::Center;

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

/// A control has the centre of its results: runs that are as good as zeros lie on the line of zeros.
#[test]
fn the_centre_is_that_of_the_results() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let run = |x: i32, seed: i32| {
        let loss = 10f64.powi(seed) * f64::from(x + 1);
        format!("r{x}{seed},{x},{seed},ok,{loss},{loss}\n")
    };
    let rows: String = (0..3).flat_map(|x| (0..5).map(move |seed| run(x, seed))).collect();
    let text = format!("run,rate,seed,status,loss_mean,loss_zero_mean\n{rows}");
    std::fs::write(directory.path().join("results.csv"), text).expect("a writable directory");
    let log = FigureStyle { log: Some(LogAxes::Y), ..FigureStyle::default() };
    for request in [
        Request { style: log, ..Request::default() },
        Request { center: Some(Center::Median), ..Request::default() },
        Request::default(),
    ] {
        let request = Request { y: vec!["loss_mean".into()], ..request };
        let figure = figure(directory.path(), Kind::Sweep, &request);
        let [(_, zeros)] = &lines(&figure, "all zeros")[..] else { panic!("one line") };
        assert_eq!(lines(&figure, "mean")[0].1, *zeros);
        // The only line has a key, because its control has one.
        assert_eq!(figure.svg.matches(">mean<").count(), 1, "{}", figure.svg);
    }
}

/// Words have no scale, so a control is a level at each of them.
#[test]
fn words_have_levels() {
    let directory = sweep("loss_mean,loss_zero_mean", |hue, x| format!("{},{}", 1 + hue + x, 2 + hue));
    let request = Request { x: Some("model".into()), hue: Some("rate".into()), ..request("loss_mean") };
    let figure = figure(directory.path(), Kind::Sweep, &request);
    let [(_, points)] = &lines(&figure, "all zeros")[..] else { panic!("one line") };
    assert_eq!(points.len(), 4);
    for (i, (ends, expected)) in points.chunks(2).zip([2.0, 3.0]).enumerate() {
        let (middle, width) = (f64::midpoint(ends[0].0, ends[1].0), ends[1].0 - ends[0].0);
        assert!((width - 0.7).abs() < 1e-9 && (middle - 0.5 - i as f64).abs() < 1e-9, "{ends:?}");
        assert_eq!((ends[0].1, ends[1].1), (expected, expected));
    }
}

/// Panels that are not drawn have no say, and a control of several figures in one says whose it is.
#[test]
fn panels() {
    let places = (0..14).flat_map(|panel| (0..2).flat_map(move |hue| (0..2).map(move |x| (panel, hue, x))));
    let row = |(panel, hue, x): (usize, usize, usize)| {
        let zero = if panel < 12 { 2 } else { 1000 };
        format!("r{panel}x{hue}{x},{panel},{hue},{x},ok,{},{zero}\n", 1 + hue + x)
    };
    let rows = format!(
        "run,size,depth,rate,status,loss_mean,loss_zero_mean\n{}",
        places.map(row).collect::<String>()
    );
    let directory = tempfile::tempdir().expect("a temporary directory");
    let request = Request {
        x: Some("rate".into()),
        hue: Some("depth".into()),
        y: vec!["loss_mean".into()],
        ..Request::default()
    };
    std::fs::write(directory.path().join("results.csv"), rows).expect("a writable directory");
    let of_panels = figure(directory.path(), Kind::Sweep, &request);
    let points = lines(&of_panels, "all zeros").into_iter().flat_map(|(_, points)| points);
    assert_eq!(points.map(|(_, y)| y).collect::<Vec<_>>(), [2.0; 24]);

    let far =
        sweep("loss_mean,loss_before_mean,loss_zero_mean", |hue, x| format!("{},{},90", 1 + hue + x, 1 + x));
    let y = vec!["loss_mean".to_owned(), "loss_before_mean".to_owned()];
    let joined = figure(far.path(), Kind::Sweep, &Request { panels: true, y, ..self::request("") });
    for name in ["loss mean", "loss before mean"] {
        assert!(joined.svg.contains(&format!("{name}: an answer of zeros: 90")), "{}", joined.svg);
    }
}
