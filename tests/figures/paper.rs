//! Figures as a paper needs them: statistics that fit the axis, colours that tell things apart, and the author's control.

use std::path::Path;

use nmem::plot::{
    CsvSource, Figure, FigureFormat, FigureStyle, Figures, INCH, Kind, LegendPlace, Limits, LogAxes, Part,
    Reference, Request, Theme, Venue, draw,
};
use nmem::statistics::{Center, Interval};

use crate::layout::check_layout;
use crate::{HEADER, check_svg, run};

/// A line of a CSV file.
macro_rules! line {
    ($($text:tt)*) => {{
        let line: String = format!($($text)*);
        line
    }};
}

/// Draws the text of a CSV file.
fn drawn(name: &str, text: &str, kind: Option<Kind>, request: &Request) -> Figures {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let csv = directory.path().join(name);
    std::fs::write(&csv, text).expect("a writable temporary directory");
    let source = CsvSource::find(&csv, kind).expect("a known file");
    draw(&[source], request, &mut || Ok(())).expect("figures")
}

fn only(figures: Figures) -> Figure {
    let mut figures = figures.figures;
    assert_eq!(figures.len(), 1);
    figures.remove(0)
}

fn rejected(name: &str, text: &str, kind: Option<Kind>, request: &Request) -> String {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let csv = directory.path().join(name);
    std::fs::write(&csv, text).expect("a writable temporary directory");
    let source = CsvSource::find(&csv, kind).expect("a known file");
    draw(&[source], request, &mut || Ok(())).expect_err("an error").to_string()
}

/// Rows of the data of a figure, as text by column.
fn data(figure: &Figure) -> Vec<Vec<String>> {
    let csv = String::from_utf8(figure.encode(FigureFormat::Csv).expect("a table")).expect("text");
    let rows = csv::Reader::from_reader(csv.as_bytes()).into_records();
    rows.map(|row| row.expect("a row").iter().map(str::to_owned).collect()).collect()
}

fn number(text: &str) -> f64 {
    text.parse().expect("a number")
}

fn tex(figure: &Figure) -> String {
    String::from_utf8(figure.encode(FigureFormat::Pgfplots).expect("TeX")).expect("text")
}

/// Returns a results.csv of losses by decay and seed.
fn losses(seeds: i32, loss: impl Fn(i32, i32) -> f64) -> String {
    let mut text = "run,decay,seed,status,loss_mean\n".to_owned();
    for decay in 0..4 {
        for seed in 0..seeds {
            text += &line!("{decay}{seed},{},{seed},ok,{}\n", f64::from(decay) / 10.0, loss(decay, seed));
        }
    }
    text
}

fn loss() -> Request {
    Request { y: vec!["loss_mean".into()], ..Request::default() }
}

#[test]
fn intervals_of_quantities_over_decades_are_of_logarithms() {
    // Runs of a setting differ by four decades, so that mean − t · sd / √n is far below 0.
    let text = losses(5, |decay, seed| 10f64.powi(decay + seed - 2));
    let figure = only(drawn("results.csv", &text, None, &loss()));
    assert!(
        figure.svg.contains("geometric means of 5 runs, bands: 95 % interval of logarithms"),
        "{}",
        figure.svg
    );
    for row in data(&figure) {
        let [y, low, high] = [number(&row[4]), number(&row[6]), number(&row[7])];
        assert!(
            low > 0.0 && (high / y - y / low).abs() < 1e-9 * high / y,
            "symmetric in the logarithm: {row:?}"
        );
    }
    // With arithmetic means, TeX gets the edge of the axis for an end that has no logarithm.
    let style = FigureStyle { log: Some(LogAxes::Y), ..FigureStyle::default() };
    let request = Request { center: Some(Center::Mean), interval: Some(Interval::Sd), style, ..loss() };
    let tex = tex(&only(drawn("results.csv", &text, None, &request)));
    let band = tex.lines().find(|line| line.contains("fill opacity=0.2")).expect("a band");
    let ends: Vec<f64> = band.split("\\\\").filter_map(|row| row.rsplit(' ').next()?.parse().ok()).collect();
    assert!(ends.len() == 8 && ends.iter().all(|&end| end > 0.0), "{band}");
}

#[test]
fn intervals_are_never_below_what_a_loss_can_be() {
    let text = losses(5, |decay, seed| f64::from(decay) + if seed == 0 { 5.0 } else { 0.01 });
    let request = Request { interval: Some(Interval::Ci95), ..loss() };
    let rows = data(&only(drawn("results.csv", &text, None, &request)));
    assert!(rows.iter().all(|row| number(&row[6]) >= 0.0), "{rows:?}");
}

#[test]
fn few_runs_are_drawn_as_they_are() {
    let text = losses(4, |decay, seed| f64::from(decay) + f64::from(seed) / 10.0);
    let few = only(drawn("results.csv", &text, None, &loss()));
    assert!(few.svg.contains("means of 4 runs, dots: the runs") && !few.svg.contains("interval"));
    let points = data(&few).into_iter().filter(|row| row[2] == "point").count();
    assert_eq!(points, 4 * 4);
    let asked =
        only(drawn("results.csv", &text, None, &Request { interval: Some(Interval::Minmax), ..loss() }));
    assert!(asked.svg.contains("lowest to highest"));
    assert!(data(&asked).iter().all(|row| number(&row[7]) - number(&row[6]) > 0.29));
}

#[test]
fn differences_are_paired_by_seed() {
    // Seeds differ by ten, settings by one: only pairs show it.
    let text = losses(5, |decay, seed| f64::from(10 * seed + decay));
    let request = Request { baseline: vec![("decay".into(), "0".into())], ..loss() };
    let figure = only(drawn("results.csv", &text, Some(Kind::Ablation), &request));
    let bars: Vec<_> = data(&figure).into_iter().filter(|row| row[2] == "bar").collect();
    let values: Vec<_> = bars.iter().map(|row| (row[1].clone(), number(&row[4]), row[8].clone())).collect();
    assert_eq!(values.len(), 3, "none of the baseline itself");
    for ((name, value, n), expected) in values.iter().zip([("0.1", 1.0), ("0.2", 2.0), ("0.3", 3.0)]) {
        assert_eq!((&name[..], *value, &n[..]), (expected.0, expected.1, "5"));
    }
    assert!(
        bars.iter().all(|row| (number(&row[7]) - number(&row[6])).abs() < 1e-9),
        "no spread within pairs"
    );
    let message = rejected("results.csv", &text, Some(Kind::Ablation), &loss());
    assert!(message.starts_with("--kind ablation") && message.contains("--baseline"), "{message}");
    let request = Request { baseline: vec![("dekay".into(), "0".into())], ..loss() };
    let message = rejected("results.csv", &text, Some(Kind::Ablation), &request);
    assert_eq!(message, "--baseline: no parameter dekay; the parameters are decay, seed");
}

#[test]
fn runs_that_never_become_unstable_count() {
    let mut text = "run,decay,learning_rate,seed,status,first_unstable_chunk\n".to_owned();
    for (decay, rate, seed) in (0..8).flat_map(|a| (0..3).flat_map(move |b| (0..3).map(move |c| (a, b, c)))) {
        // Of three seeds, `rate` become unstable, in chunk 5.
        let first = if seed < rate { "5" } else { "" };
        text += &line!("{decay}{rate}{seed},0.{decay},{},{seed},ok,{first}\n", rate + 1);
    }
    let y = vec!["first_unstable_chunk".into()];
    let request =
        Request { y, x: Some("decay".into()), hue: Some("learning_rate".into()), ..Request::default() };
    let figure = only(drawn("results.csv", &text, Some(Kind::Map), &request));
    for said in
        [">5 (2/3)</text>", ">1/3</text>", ">0/3</text>", "never unstable, in half of the runs or more"]
    {
        assert!(figure.svg.contains(said), "{said}");
    }
    assert!(!figure.svg.contains(">5 (1/3)</text>"), "not the mean of those that did");
}

#[test]
fn ratios_near_one_have_a_linear_axis_and_useful_colours() {
    let mut text = "run,decay,learning_rate,seed,status,loss_mean,loss_before_mean\n".to_owned();
    for (decay, rate) in (0..8).flat_map(|a| (0..8).map(move |b| (a, b))) {
        let ratio = 0.85 + 0.02 * f64::from(decay) + if (decay, rate) == (7, 7) { 1e4 } else { 0.0 };
        text += &line!("{decay}{rate},0.{decay},{},0,ok,1,{ratio}\n", rate + 1);
    }
    let y = vec!["loss_ratio".to_owned()];
    let map = Request { y: y.clone(), ..Request::default() };
    let figure = only(drawn("results.csv", &text, None, &map));
    let fills = |svg: &str| svg.matches("#2166AC").count();
    assert!(fills(&figure.svg) > 0, "the best ratio has the darkest blue");
    assert!(figure.svg.contains("star: lowest, 0.85 at"), "{}", figure.svg);
    let few = Request { filter: vec!["learning_rate=1,2".to_owned()], y, ..Request::default() };
    let lines = only(drawn("results.csv", &text, None, &few));
    assert!(
        lines.svg.contains(">0.90</text>") && !lines.svg.contains("10<tspan"),
        "no decades: {}",
        lines.svg
    );

    let style = FigureStyle { theme: Theme::Mono, ..FigureStyle::default() };
    let mono = only(drawn("results.csv", &text, None, &Request { style, ..map }));
    let hatching = |svg: &str| svg.matches("stroke-width=\"8\"").count();
    assert_eq!(hatching(&figure.svg), 0);
    assert!(hatching(&mono.svg) > 2, "greys alone would not show which side of 1 a cell is on");
}

#[test]
fn heads_of_a_chunk_are_averaged_rather_than_joined() {
    let metrics = format!("{HEADER}\n{}", run(20, 4, true));
    let of = |x: &str, hue: Option<&str>| Request {
        x: Some(x.into()),
        hue: hue.map(str::to_owned),
        y: vec!["surprise".into()],
        ..Request::default()
    };
    let figure = only(drawn("metrics.csv", &metrics, None, &of("end", Some("sequence"))));
    let rows = data(&figure);
    assert_eq!(rows.len(), 20, "one point per chunk, not per head");
    assert!(rows.windows(2).all(|pair| number(&pair[0][3]) < number(&pair[1][3])), "no vertical strokes");
    // Heads 0 to 3 of the first chunk: 1, 4, 7 and 10.
    assert!((number(&rows[0][4]) - 5.5).abs() < 1e-12, "{:?}", rows[0]);

    let boxes = only(drawn("metrics.csv", &metrics, None, &of("head", None)));
    let rows = data(&boxes);
    assert_eq!(rows.iter().filter(|row| row[2] == "quartiles" && row[8] == "20").count(), 4, "{rows:?}");
    assert!(boxes.svg.contains("boxes: quartiles and median"));
}

#[test]
fn a_loss_ratio_is_known_for_every_table() {
    let metrics = format!("{HEADER}\n{}", run(20, 2, true));
    let y = vec!["loss_ratio".to_owned()];
    for kind in [None, Some(Kind::Columns), Some(Kind::Boxes)] {
        let figure =
            only(drawn("metrics.csv", &metrics, kind, &Request { y: y.clone(), ..Request::default() }));
        assert!(!data(&figure).is_empty(), "{kind:?}");
    }
    let results = "run,decay,seed,status,loss_mean,loss_before_mean\na,0,0,ok,2,1\nb,1,0,ok,2,3\n";
    let rows = data(&only(drawn("results.csv", results, None, &Request { y, ..Request::default() })));
    assert_eq!((number(&rows[0][4]), number(&rows[1][4])), (0.5, 1.5));
}

#[test]
fn coincident_lines_are_named() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let sources = ["one", "two", "other"].map(|name| {
        let csv = directory.path().join(name).with_extension("csv");
        let heads = if name == "other" { 3 } else { 2 };
        std::fs::write(&csv, format!("{HEADER}\n{}", run(20, heads, true))).expect("a writable directory");
        CsvSource::find(&csv, None).expect("a metrics.csv")
    });
    let request = Request { y: vec!["surprise".into()], ..Request::default() };
    let figure = only(draw(&sources, &request, &mut || Ok(())).expect("a figure"));
    assert!(figure.svg.contains("one and two coincide"), "{}", figure.svg);
    assert!(!figure.svg.contains("other coincide"));
}

#[test]
fn a_diverged_run_says_so() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let csv = directory.path().join("metrics.csv");
    std::fs::write(&csv, format!("{HEADER}\n{}", run(20, 2, true))).expect("a writable directory");
    let json =
        r#"{"diverged": {"sequence": 0, "chunk": 19, "head": 0, "quantity": "surprise", "value": "inf"}}"#;
    std::fs::write(directory.path().join("run.json"), json).expect("a writable directory");
    let source = CsvSource::find(directory.path(), None).expect("a run");
    let figure = only(draw(&[source], &Request::default(), &mut || Ok(())).expect("a figure"));
    assert!(figure.svg.contains(">diverged in chunk 19</text>") && figure.svg.contains("#CC0000"));
}

#[test]
fn colours_of_many_lines_differ() {
    let metrics = format!("{HEADER}\n{}", run(20, 9, true));
    let request = Request { x: Some("end".into()), y: vec!["surprise".into()], ..Request::default() };
    let figure = only(drawn("metrics.csv", &metrics, None, &request));
    let mut strokes: Vec<_> =
        figure.svg.split("<polyline").filter_map(|tag| tag.split("stroke=\"").nth(1)).collect();
    strokes = strokes
        .into_iter()
        .map(|rest| &rest[..7])
        .filter(|ink| ink.starts_with('#') && *ink != "#1A1A1A")
        .collect();
    strokes.sort_unstable();
    strokes.dedup();
    assert_eq!(strokes.len(), 9, "{strokes:?}");
}

#[test]
fn figures_fit_a_page() {
    let mut text =
        "algorithm,device,dtype,layout,gate,threads,batch,steps,channels,median_ms,gb_per_s,copy_gb_per_s\n"
            .to_owned();
    for (layout, gate, steps) in ["sc", "cs"].into_iter().flat_map(|layout| {
        ["step", "element"]
            .into_iter()
            .flat_map(move |gate| [128, 512, 4096].map(move |steps| (layout, gate, steps)))
    }) {
        for channels in [64, 128, 256] {
            text += &line!(
                "time,cpu,f32,{layout},{gate},2,8,{steps},{channels},{},1,2\n",
                f64::from(steps) / 7.0
            );
        }
    }
    let style = FigureStyle { width: Venue::Icml.widths().0 * INCH, ..FigureStyle::default() };
    for figure in drawn("scan.csv", &text, None, &Request { style, ..Request::default() }).figures {
        let height: f64 = figure
            .svg
            .split("height=\"")
            .nth(1)
            .and_then(|rest| rest.split("pt").next())
            .expect("a height")
            .parse()
            .expect("a number");
        assert!(height <= 8.5 * INCH + 1e-9, "{}: {height} pt", figure.name);
        check_layout(&figure.name, &figure.svg);
    }
}

#[test]
fn the_author_chooses() {
    let metrics = format!("{HEADER}\n{}", run(40, 4, true));
    let draw = |request: &Request| only(drawn("metrics.csv", &metrics, None, request));
    let surprise = || Request { y: vec!["surprise".into()], ..Request::default() };
    let lines_of = |figure: &Figure| {
        let mut names: Vec<_> = data(figure).into_iter().map(|row| row[1].clone()).collect();
        names.dedup();
        names
    };
    let part = Part { heads: vec![1..=1, 3..=3], tokens: Some(0..80) };
    let figure = draw(&Request { part, ..surprise() });
    assert_eq!(lines_of(&figure), ["head 1", "head 3", "mean"]);
    assert_eq!(data(&figure).len(), 3 * 20);

    let style = |change: fn(&mut FigureStyle)| {
        let mut style = FigureStyle::default();
        change(&mut style);
        draw(&Request { style, ..surprise() })
    };
    let cut = style(|style| style.ylim = Limits { low: Some(4.0), high: Some(6.0) });
    check_svg(&cut.svg);
    let lines = |figure: &Figure| figure.svg.matches("<polyline").count();
    assert!(lines(&cut) > lines(&style(|_| ())) + 10, "lines are cut at the edges, not bent along them");
    let labelled = style(|style| {
        style.x_label = Some("stored tokens".into());
        style.y_label = Some("gradient".into());
    });
    assert!(labelled.svg.contains(">stored tokens</text>") && labelled.svg.contains(">gradient</text>"));
    assert!(
        style(|style| style.font = nmem::plot::Font::Serif).svg.contains("font-family=\"Liberation Serif")
    );
    for place in [LegendPlace::Inside, LegendPlace::Right] {
        let request =
            Request { style: FigureStyle { legend: place, ..FigureStyle::default() }, ..surprise() };
        assert!(draw(&request).svg.contains(">head 3</text>"));
    }
    assert!(!style(|style| style.legend = LegendPlace::None).svg.contains(">head 3</text>"));

    let names = vec![("head 2".to_owned(), "ours".to_owned())];
    let figure = draw(&Request { names, ..surprise() });
    assert!(figure.svg.contains(">ours</text>") && !figure.svg.contains(">head 2</text>"));
    let first = |text: &str| figure.svg.find(&format!(">{text}</text>")).expect("the text");
    assert!(first("ours") < first("head 0"), "in the order that was asked for");
    let names = vec![("head 9".to_owned(), "ours".to_owned())];
    assert!(
        rejected("metrics.csv", &metrics, None, &Request { names, ..surprise() }).contains("no line head 9")
    );

    let references = vec![Reference::X(50.0), Reference::Y(5.0)];
    let dashes = |figure: &Figure| figure.svg.matches("#595959").count();
    assert!(dashes(&draw(&Request { references, ..surprise() })) > dashes(&draw(&surprise())) + 20);

    let all = Request {
        style: FigureStyle { letters: false, notes: false, ..FigureStyle::default() },
        ..Request::default()
    };
    let bare = draw(&all);
    assert!(
        !bare.svg.contains("font-weight=\"bold\"") && !bare.svg.contains("loss ratio: ratio"),
        "{}",
        bare.svg
    );
}

#[test]
fn rows_and_columns_of_panels() {
    let mut text = "run,decay,momentum,heads,seed,status,loss_mean\n".to_owned();
    for (i, j, k) in (0..3).flat_map(|i| (0..2).flat_map(move |j| (0..3).map(move |k| (i, j, k)))) {
        text += &line!("{i}{j}{k},0.{i},0.{j},{},0,ok,{}\n", k + 1, 1 + i + j + k);
    }
    let facets = |rows: &str, cols: &str| Request {
        x: Some("heads".into()),
        rows: Some(rows.into()),
        cols: Some(cols.into()),
        ..loss()
    };
    let figure = only(drawn("results.csv", &text, None, &facets("momentum", "decay")));
    for heading in ["η = 0.0, α = 0.2", "η = 0.1, α = 0.0"] {
        assert!(figure.svg.contains(&format!(">{heading}</text>")), "{heading}");
    }
    check_layout("facets", &figure.svg);
    let request = Request {
        rows: Some("decay".into()),
        hue: Some("heads".into()),
        x: Some("momentum".into()),
        ..loss()
    };
    assert_eq!(
        only(drawn("results.csv", &text, None, &request)).svg.matches("font-weight=\"bold\"").count(),
        3
    );
    let message = rejected(
        "results.csv",
        &text,
        None,
        &Request { rows: Some("decay".into()), cols: Some("decay".into()), ..loss() },
    );
    assert_eq!(message, "--cols: decay is also --rows; choose another parameter");
}

#[test]
fn one_result_against_another() {
    let mut text = "run,decay,seed,status,loss_mean,tokens_per_s\n".to_owned();
    for (decay, loss, speed) in [(0, 3.0, 10.0), (1, 2.0, 8.0), (2, 2.5, 7.0), (3, 1.0, 5.0)] {
        text += &line!("{decay},0.{decay},0,ok,{loss},{speed}\n");
    }
    let request = Request { x: Some("tokens_per_s".into()), ..loss() };
    let figure = only(drawn("results.csv", &text, None, &request));
    let front: Vec<_> =
        data(&figure).into_iter().filter(|row| row[1] == "best in both").map(|row| number(&row[3])).collect();
    assert_eq!(front, [5.0, 8.0, 10.0], "the third setting is slower and worse than the second");
}

#[test]
fn several_sweeps_share_a_figure() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let sources = [("ours", 0.0), ("theirs", 1.0)].map(|(name, more)| {
        let path = directory.path().join(name);
        std::fs::create_dir(&path).expect("a writable directory");
        std::fs::write(path.join("results.csv"), losses(2, |decay, seed| more + f64::from(decay + seed)))
            .expect("a writable directory");
        CsvSource::find(&path, None).expect("a sweep")
    });
    let together = Request { hue: Some("sweep".into()), ..loss() };
    let figures = draw(&sources, &together, &mut || Ok(())).expect("figures");
    let figure = only(figures);
    assert!(figure.svg.contains(">sweep ours</text>") && figure.svg.contains(">sweep theirs</text>"));
    assert_eq!(draw(&sources, &loss(), &mut || Ok(())).expect("figures").figures.len(), 2, "otherwise apart");
}

#[test]
fn where_the_figure_comes_from() {
    let metrics = format!("{HEADER}\n{}", run(20, 2, true));
    let request = Request { origin: Some("nmem plot a<b.csv".into()), ..Request::default() };
    let figure = only(drawn("metrics.csv", &metrics, None, &request));
    let svg = String::from_utf8(figure.encode(FigureFormat::Svg).expect("an SVG")).expect("text");
    check_svg(&svg);
    let version = env!("CARGO_PKG_VERSION");
    assert!(svg.contains(&format!("nmem {version}: nmem plot a&lt;b.csv</desc>")), "{}", &svg[..400]);
    #[cfg(feature = "pdf-png")]
    {
        let pdf = figure.encode(FigureFormat::Pdf).expect("a PDF");
        assert!(String::from_utf8_lossy(&pdf).contains("nmem plot a<b.csv"), "its metadata");
    }
    assert!(tex(&figure).contains("% nmem"));
}

#[test]
fn conditions_choose_rows() {
    let text = losses(2, |decay, seed| f64::from(decay + seed));
    let figure = only(drawn(
        "results.csv",
        &text,
        None,
        &Request { filter: vec!["decay>=0.1 and decay!=0.2".to_owned()], ..loss() },
    ));
    let xs: Vec<_> = data(&figure).iter().filter(|row| row[2] == "line").map(|row| number(&row[3])).collect();
    assert_eq!(xs, [0.1, 0.3]);
    let message =
        rejected("results.csv", &text, None, &Request { filter: vec!["dekay=1".to_owned()], ..loss() });
    assert_eq!(
        message,
        "--where: expected the name of a setting or result, got `dekay` (did you mean `decay`?)"
    );
}

#[test]
fn tex_has_its_data_with_it() {
    let metrics = format!("{HEADER}\n{}", run(20, 2, true));
    let style = FigureStyle { title: Some("All of it".into()), ..FigureStyle::default() };
    let tex = tex(&only(drawn("metrics.csv", &metrics, None, &Request { style, ..Request::default() })));
    assert!(!Path::new("metrics.csv").exists() && !tex.contains(".csv"), "reads no file");
    assert!(tex.contains("All of it") && tex.contains("\\textbf{a}"), "title and letters");
}
