//! Captions and notes say what is drawn: the centre, the interval, the best setting, and whatever is not shown.

use std::path::Path;

use nmem::plot::terminal::{Screen, view};
use nmem::plot::{
    CsvSource, Figure, FigureFormat, FigureStyle, Figures, Kind, Limits, LogAxes, Request, draw,
    ignored_flags,
};
use nmem::statistics::{Center, Interval};

use crate::{HEADER, row, run};

fn write(directory: &Path, name: &str, text: &str) {
    let path = directory.join(name);
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("a writable directory");
    std::fs::write(path, text).expect("a writable directory");
}

/// Draws files, or returns the error.
fn try_drawn(files: &[(&str, &str)], kind: Option<Kind>, request: &Request) -> Result<Figures, String> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let sources = files.iter().map(|(name, text)| {
        write(directory.path(), name, text);
        CsvSource::find(&directory.path().join(name), kind).expect("a known file")
    });
    let sources: Vec<_> = sources.collect();
    let text =
        |error: nmem::Error| error.to_string().replace(&format!("{}/", directory.path().display()), "");
    draw(&sources, request, &mut || Ok(())).map_err(text)
}

fn drawn(text: &str, kind: Option<Kind>, request: &Request) -> Figures {
    let name = if text.starts_with("run,") { "results.csv" } else { "metrics.csv" };
    try_drawn(&[(name, text)], kind, request).expect("figures")
}

fn only(figures: &Figures) -> &Figure {
    assert_eq!(figures.figures.len(), 1, "{:?}", figures.notes);
    &figures.figures[0]
}

/// Rows of the data of a figure with this mark: x, y, low and high end.
fn data(figure: &Figure, mark: &str) -> Vec<[Option<f64>; 4]> {
    let csv = String::from_utf8(figure.encode(FigureFormat::Csv).expect("a table")).expect("text");
    let rows = csv::Reader::from_reader(csv.as_bytes()).into_records().map(|row| row.expect("a row"));
    let rows = rows.filter(|row| &row[2] == mark);
    rows.map(|row| [3, 4, 6, 7].map(|cell| row[cell].parse().ok())).collect()
}

fn results(columns: &str, rows: &[&str]) -> String {
    let rows = rows.iter().enumerate().map(|(i, row)| format!("r{i},{row}\n"));
    format!("run,{columns}\n{}", rows.collect::<String>())
}

/// Five seeds of two settings; the first seed of the first setting has a loss of 0.
fn with_a_zero() -> String {
    let rows = (0..10).map(|i| {
        let loss = if i == 0 { 0.0 } else { 10f64.powi(i % 5) };
        format!("r{i},{},{},ok,{loss}\n", i / 5, i % 5)
    });
    format!("run,decay,seed,status,loss_mean\n{}", rows.collect::<String>())
}

fn loss() -> Request {
    Request { y: vec!["loss_mean".into()], ..Request::default() }
}

#[test]
fn all_cells_of_a_metric_have_one_centre() {
    let text = with_a_zero();
    let log = FigureStyle { log: Some(LogAxes::Y), ..FigureStyle::default() };
    for (request, note) in [
        (Request { style: log, ..loss() }, false),
        (Request { center: Some(Center::Geomean), ..loss() }, true),
    ] {
        let figures = drawn(&text, None, &request);
        let figure = only(&figures);
        assert!(figure.svg.contains(">means of 5 runs, "), "{}", figure.svg);
        let centres: Vec<_> = data(figure, "line").iter().map(|row| row[1].expect("a number")).collect();
        assert_eq!(centres, [11_110.0 / 5.0, 11_111.0 / 5.0]);
        let said =
            ["loss_mean: means instead of geometric means, because some values are 0 or below".to_owned()];
        assert_eq!(figures.notes, if note { &said[..] } else { &[] });
    }
}

#[test]
fn medians_have_intervals_of_medians() {
    let rows = (0..10).map(|i| format!("{},{},ok,{}", i / 5, i % 5, [1.0, 2.0, 3.0, 4.0, 100.0][i % 5]));
    let rows: Vec<_> = rows.collect();
    let text = results("decay,seed,status,loss_mean", &rows.iter().map(String::as_str).collect::<Vec<_>>());
    let median = Request { center: Some(Center::Median), ..loss() };
    let figures = drawn(&text, None, &median);
    assert!(only(&figures).svg.contains(">medians of 5 runs, bands: 95 % bootstrap interval"));
    for [_, y, low, high] in data(only(&figures), "line") {
        assert_eq!((y, low, high), (Some(3.0), Some(1.0), Some(100.0)), "between values that occur");
    }
    for interval in [Interval::Ci95, Interval::Sd, Interval::Sem] {
        let request = Request { interval: Some(interval), ..median.clone() };
        assert_eq!(
            try_drawn(&[("results.csv", &text)], None, &request).expect_err("an error"),
            "--interval: ci95, sd and sem are about a mean; with --center median use bootstrap, iqr, minmax or none"
        );
    }
}

#[test]
fn the_best_accuracy_is_the_highest() {
    let rows: Vec<_> =
        (0..16).map(|i| format!("{},{},ok,{},{}", i / 4, i % 4, f64::from(i) / 16.0, 100 - i)).collect();
    let text = results(
        "decay,momentum,status,recall_accuracy,tokens_per_s",
        &rows.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    let accuracy = |x: Option<&str>| Request {
        x: x.map(str::to_owned),
        y: vec!["recall_accuracy".into()],
        ..Request::default()
    };
    let map = drawn(&text, Some(Kind::Map), &accuracy(None));
    assert!(only(&map).svg.contains("star: highest, 0.938 at"), "{}", only(&map).svg);
    let pareto = drawn(&text, None, &accuracy(Some("tokens_per_s")));
    let front = data(only(&pareto), "line");
    assert_eq!(front.len(), 16, "each is faster or more accurate than any other");
    // Of a quotient without a better side no setting is the best.
    let request = Request { y: vec!["recall_accuracy/tokens_per_s".into()], ..Request::default() };
    assert!(!only(&drawn(&text, Some(Kind::Map), &request)).svg.contains("star: "));
}

#[test]
fn curves_of_several_sweeps_are_of_their_own_runs() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let sources = [("ours", "2"), ("theirs", "5")].map(|(name, surprise)| {
        write(
            directory.path(),
            &format!("{name}/results.csv"),
            &results("seed,status,loss_mean", &["0,ok,1"]),
        );
        let rows: String = (0..8).map(|chunk| row(chunk, 0, "1", surprise)).collect();
        write(directory.path(), &format!("{name}/runs/r0/metrics.csv"), &format!("{HEADER}\n{rows}"));
        CsvSource::find(&directory.path().join(name), Some(Kind::Curves)).expect("a sweep")
    });
    let request = Request { hue: Some("sweep".into()), y: vec!["surprise".into()], ..Request::default() };
    let figures = draw(&sources, &request, &mut || Ok(())).expect("figures");
    let mut values: Vec<_> =
        data(only(&figures), "line").into_iter().map(|row| row[1].expect("a number")).collect();
    values.dedup();
    assert_eq!(values, [2.0, 5.0], "a line for each sweep");
}

#[test]
fn what_is_omitted_is_said_once_in_every_format() {
    let text = results(
        "decay,seed,status,loss_mean,surprise_mean",
        &["0,0,ok,1,1", "0,1,diverged,9,9", "1,0,ok,2,2", "1,1,ok,3,inf"],
    );
    let said = [
        "failed, stopped, diverged or not finite: 1 of 4 runs",
        "surprise_mean: failed, stopped, diverged or not finite: 2 of 4 runs",
    ];
    let figures = drawn(&text, None, &Request::default());
    assert_eq!(figures.figures.len(), 2);
    assert_eq!(figures.notes, said);

    let directory = tempfile::tempdir().expect("a temporary directory");
    let metrics: String =
        (0..8).map(|chunk| row(chunk, 0, "1", if chunk == 3 { "NaN" } else { "1" })).collect();
    write(directory.path(), "metrics.csv", &format!("{HEADER}\n{metrics}"));
    write(directory.path(), "results.csv", &text);
    for (name, kind, expected) in [
        ("metrics.csv", Kind::Timeline, "surprise: values not drawn: 1 not finite"),
        ("metrics.csv", Kind::Heads, "surprise: values not drawn: 1 not finite"),
        ("metrics.csv", Kind::Columns, "surprise: values not drawn: 1 not finite"),
        ("results.csv", Kind::Sweep, said[0]),
    ] {
        let sources = [CsvSource::find(&directory.path().join(name), Some(kind)).expect("a known file")];
        let screen = Screen { columns: 80, colours: false };
        let view = view(&sources, &Request::default(), &screen, &mut || Ok(())).expect("text");
        let drawn = draw(&sources, &Request::default(), &mut || Ok(())).expect("figures");
        for notes in [&view.notes, &drawn.notes] {
            let count = notes.iter().filter(|note| *note == expected).count();
            assert_eq!(count, 1, "{kind:?}: {notes:?}");
        }
    }
}

/// The marks of values that are not finite, including the legend's.
fn marks(svg: &str) -> usize {
    svg.split("<polygon").filter(|tag| tag.contains("fill=\"#CC0000\"")).count()
}

#[test]
fn marks_beyond_the_axis_are_not_on_its_edge() {
    let rows: String =
        (0..30).map(|chunk| row(chunk, 0, "1", if chunk == 20 { "NaN" } else { "1.5" })).collect();
    let text = format!("{HEADER}\n{rows}");
    let within = |low: f64, high: f64| {
        let xlim = Limits { low: Some(low), high: Some(high) };
        let style = FigureStyle { xlim, ..FigureStyle::default() };
        Request { style, y: vec!["surprise".into()], ..Request::default() }
    };
    // Chunk 20 is of tokens 80 to 83.
    let svg = |request: &Request| only(&drawn(&text, None, request)).svg.clone();
    assert_eq!((marks(&svg(&within(0.0, 100.0))), marks(&svg(&within(0.0, 40.0)))), (2, 1));
    let directory = tempfile::tempdir().expect("a temporary directory");
    write(directory.path(), "metrics.csv", &text);
    let source = [CsvSource::find(directory.path(), None).expect("a run")];
    let shown = |request: &Request| {
        let screen = Screen { columns: 80, colours: false };
        view(&source, request, &screen, &mut || Ok(())).expect("text").text.contains('▾')
    };
    assert!(shown(&within(0.0, 100.0)) && !shown(&within(0.0, 40.0)));
    // Nor are lost runs.
    let text = results("decay,seed,status,loss_mean", &["0,0,ok,1", "1,0,ok,2", "2,0,ok,3", "3,0,failed,"]);
    let lost = |high: f64| {
        let style =
            FigureStyle { xlim: Limits { low: Some(0.0), high: Some(high) }, ..FigureStyle::default() };
        marks(&only(&drawn(&text, None, &Request { style, ..loss() })).svg)
    };
    assert_eq!((lost(4.0), lost(1.5)), (2, 1));
}

const BOTH: Limits = Limits { low: Some(0.0), high: Some(5.0) };

#[test]
fn limits_without_effect_are_said() {
    let metrics = format!("{HEADER}\n{}", run(20, 2, true));
    let all = FigureStyle { xlim: BOTH, ylim: BOTH, clim: BOTH, ..FigureStyle::default() };
    let request = Request { style: all, ..Request::default() };
    let words = results("init,seed,status,loss_mean", &["a,0,ok,1", "b,0,ok,2"]);
    for (text, kind, expected) in [
        (&metrics, None, "--clim"),
        (&metrics, Some(Kind::Heads), "--ylim"),
        (&metrics, Some(Kind::Boxes), "--xlim, --clim"),
        (&words, None, "--xlim, --clim"),
    ] {
        let notes = drawn(text, kind, &request).notes;
        assert_eq!(notes, [format!("no effect on this figure: {expected}")], "{kind:?}");
    }
    assert_eq!(drawn(&metrics, None, &Request::default()).notes, [""; 0]);
}

#[test]
fn a_map_of_kept_chunks_has_two_axes() {
    let rows = (0..8).flat_map(|chunk| (chunk..8).map(move |after| format!("0,0,{chunk},{after},1,2\n")));
    let text = format!("sequence,head,chunk,after,loss,loss_at_w\n{}", rows.collect::<String>());
    let ylim = FigureStyle { ylim: Limits { low: Some(2.0), high: Some(4.0) }, ..FigureStyle::default() };
    let request = Request { style: ylim, ..Request::default() };
    let of = |request: &Request| {
        let figures = try_drawn(&[("retention.csv", &text)], None, request).expect("a figure");
        let svg = &only(&figures).svg;
        ["3.5", "6"].map(|label| svg.matches(&format!(">{label}</text>")).count())
    };
    assert_eq!((of(&Request::default()), of(&request)), ([0, 2], [1, 1]), "one axis keeps its ends");

    let text = "run,decay,seed,lag,status,loss_ratio\na,0,0,1,ok,0.5\na,0,0,2,ok,0.6\n";
    let directory = tempfile::tempdir().expect("a temporary directory");
    write(directory.path(), "retention.csv", text);
    let source = [CsvSource::find(&directory.path().join("retention.csv"), None).expect("a retention.csv")];
    let ignored = |x: &str| ignored_flags(&source, &Request { x: Some(x.into()), ..Request::default() });
    assert_eq!(ignored("nonsense").as_deref(), Some("no effect with --kind retention: --x"));
    assert_eq!(ignored("lag"), None);
}

#[test]
fn an_empty_selection_is_said() {
    let text = results("decay,model,seed,status,loss_mean", &["0,mlp,0,ok,1", "1,mlp,0,ok,2"]);
    let of = |text: &str, kind: Option<Kind>, condition: &str| {
        let filter = if condition.is_empty() { Vec::new() } else { vec![condition.to_owned()] };
        let name = if text.starts_with("run,") { "results.csv" } else { "metrics.csv" };
        let drawn = try_drawn(&[(name, text)], kind, &Request { filter, ..Request::default() });
        drawn.map(|figures| (figures.figures.len(), figures.notes))
    };
    let metrics = format!("{HEADER}\n{}", run(4, 1, false));
    for (text, condition) in [(&text, "decay=9"), (&text, "model=MLP"), (&metrics, "head=7")] {
        assert_eq!(
            of(text, None, condition),
            Err(format!("--where: `{condition}` holds for no row; choose another condition"))
        );
    }
    assert_eq!(
        of(&text, None, "_typo=1"),
        Err("--where: expected the name of a setting or result, got `_typo`".to_owned())
    );
    let noted = results("decay,_note,seed,status,loss_mean", &["0,x,0,ok,1", "1,x,0,ok,2"]);
    assert!(of(&noted, None, "_note=x").is_ok());
    let header = results("decay,seed,status,loss_mean,loss_before_mean,tokens_per_s", &[]);
    for kind in [Kind::Sweep, Kind::Pareto, Kind::Curves, Kind::Map] {
        let expected = (0, vec!["no figures: results.csv has no rows".to_owned()]);
        let got = of(&header, Some(kind), "").map(|(count, notes)| {
            (count, notes.iter().map(|note| without_directory(note)).collect::<Vec<_>>())
        });
        assert_eq!(got, Ok(expected), "{kind:?}");
    }
}

/// Removes the directory from the only path in a note.
fn without_directory(note: &str) -> String {
    let words = note.split(' ').map(|word| word.rsplit('/').next().unwrap_or(word));
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn topics_say_which_mean_it_is() {
    let rows: String = (0..40)
        .map(|chunk| row(chunk, 0, "1", if chunk == 12 { "0" } else { ["1", "100"][chunk / 4 % 2] }))
        .collect();
    let text = format!("{HEADER}\n{rows}");
    let labels = nmem::io::labels::Labels { boundaries: vec![32, 64, 96], ..Default::default() };
    let style = FigureStyle { log: Some(LogAxes::Y), ..FigureStyle::default() };
    let of = |request: Request| {
        let request = Request { y: vec!["surprise".into()], ..request };
        let figures = drawn(&text, Some(Kind::Topics), &request);
        (only(&figures).svg.clone(), data(only(&figures), "line").len())
    };
    let (svg, points) = of(Request { labels: Some(labels.clone()), ..Request::default() });
    assert!(
        svg.contains(">means of 1 to 3 changes of topic, bands: 95 % interval (Student’s t)</text>"),
        "{svg}"
    );
    // A value of 0 costs no point, and makes all of them arithmetic means.
    let (svg, with_log) =
        of(Request { style: style.clone(), labels: Some(labels.clone()), ..Request::default() });
    assert!(svg.contains(">means of 1 to 3 changes"), "{svg}");
    assert_eq!(with_log, points);
    let early = nmem::io::labels::Labels { boundaries: vec![96], ..Default::default() };
    let (svg, _) = of(Request { labels: Some(early), ..Request::default() });
    assert!(!svg.contains("changes of topic"), "{svg}");
    let positive = text.replace(",0,0.01,", ",2,0.01,");
    let request = Request { style, labels: Some(labels), y: vec!["surprise".into()], ..Request::default() };
    let svg = only(&drawn(&positive, Some(Kind::Topics), &request)).svg.clone();
    assert!(
        svg.contains(">geometric means of 1 to 3 changes of topic, bands: 95 % interval of logarithms"),
        "{svg}"
    );
}

#[test]
fn errors_name_each_line_once() {
    let text = results(
        "decay,momentum,seed,status,loss_mean,surprise_mean",
        &["0,0,0,ok,1,1", "1,0,0,ok,2,2", "0,1,0,ok,3,1", "1,1,0,failed,,"],
    );
    let names = vec![("η = 7".to_owned(), "ours".to_owned())];
    let request =
        Request { names, x: Some("decay".into()), hue: Some("momentum".into()), ..Request::default() };
    assert_eq!(
        try_drawn(&[("results.csv", &text)], None, &request).expect_err("an error"),
        "--rename: no line η = 7 to become ours; the lines are η = 0; η = 1"
    );
    let baseline = vec![(String::new(), "decay".to_owned())];
    let request = Request { baseline, ..loss() };
    assert_eq!(
        try_drawn(&[("results.csv", &text)], Some(Kind::Ablation), &request).expect_err("an error"),
        "--baseline: expected PARAMETER=VALUE, got decay"
    );
}

#[test]
fn minus_zero_is_zero() {
    let text = results("decay,seed,status,loss_mean", &["0,0,ok,1", "-0,1,ok,3", "1,0,ok,5"]);
    let figures = drawn(&text, None, &loss());
    let points: Vec<_> = data(only(&figures), "line").into_iter().map(|row| (row[0], row[1])).collect();
    assert_eq!(points, [(Some(0.0), Some(2.0)), (Some(1.0), Some(5.0))]);
}
