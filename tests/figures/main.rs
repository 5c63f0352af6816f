//! Figures drawn from metrics.csv, and in `sweep` from results.csv: the files written and the content of their SVG.

mod captions;
mod controls;
mod formats;
mod layout;
mod paper;
mod recall;
mod snapshots;
mod sweep;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use nmem::io::labels::Labels;
use nmem::plot::{CsvSource, FigureFormat, OmittedValues, Request, timelines};

const HEADER: &str = "sequence,chunk,head,start,end,loss,loss_before,loss_after,surprise,learning_rate,momentum,decay,\
                      surprise_norm,momentum_norm,update_norm,weight_norm,surprise.0";

/// Returns one row of metrics.csv; columns that the figures do not read are empty or 1.
fn row(chunk: usize, head: usize, loss_before: &str, surprise: &str) -> String {
    let (start, end) = (chunk * 4, chunk * 4 + 4);
    format!("0,{chunk},{head},{start},{end},2,{loss_before},,{surprise},0.01,0.5,0.9,1,1,1,1,1\n")
}

fn run(chunks: usize, heads: usize, probe: bool) -> String {
    let cells = (0..chunks).flat_map(|chunk| (0..heads).map(move |head| (chunk, head)));
    cells.fold(String::new(), |mut rows, (chunk, head)| {
        let value = 1.0 + ((chunk * 7 + head * 3) % 11) as f64;
        let before = if probe { format!("{}", value / 4.0) } else { String::new() };
        rows.write_str(&row(chunk, head, &before, &format!("{value}"))).expect("a string takes all");
        rows
    })
}

/// A single run's loss ratio has that of an answer of zeros beside it, on the same axis.
#[test]
fn a_loss_ratio_is_beside_that_of_zeros() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let [with, without, far] = [Some(4), None, Some(200)].map(|zero: Option<i32>| {
        let csv = directory.path().join(format!("{zero:?}.csv"));
        let zero = zero.map_or(String::new(), |zero| zero.to_string());
        let rows = run(20, 2, true).lines().fold(String::new(), |all, row| format!("{all}{row},{zero}\n"));
        std::fs::write(&csv, format!("{HEADER},loss_zero\n{rows}")).expect("a writable temporary directory");
        csv
    });
    let drawn = |files: &[&PathBuf]| {
        let sources: Vec<_> =
            files.iter().map(|csv| CsvSource::find(csv, None).expect("a metrics.csv")).collect();
        let request = Request { y: vec!["loss_ratio".to_owned()], ..Request::default() };
        let drawn = nmem::plot::draw(&sources, &request, &mut || Ok(())).expect("a figure");
        drawn.figures[0].svg.clone()
    };
    let has_zeros = |svg: &str| svg.contains(">all zeros<");
    assert!(has_zeros(&drawn(&[&with])));
    assert!(!has_zeros(&drawn(&[&without])), "a file without the losses of zeros");
    assert!(!has_zeros(&drawn(&[&with, &far])), "several runs would need as many lines");
    // Ratios of 1/8 to 11/8: a line at 2 fits their axis, and one at 100 needs decades, whose exponents are raised.
    let (near, far) = (drawn(&[&with]), drawn(&[&far]));
    assert!(near.contains(">2.0<") && !near.contains("<tspan") && far.contains("<tspan"));
}

/// Returns the SVG files by name, and the omitted values.
fn draw(rows: &str, labels: Option<&Labels>) -> (BTreeMap<String, String>, Vec<OmittedValues>) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let csv = directory.path().join("metrics.csv");
    std::fs::write(&csv, format!("{HEADER}\n{rows}")).expect("a writable temporary directory");
    let request = Request { labels: labels.cloned(), ..Request::default() };
    let (drawn, omitted) = timelines(&csv, &request, &mut || Ok(())).expect("figures");
    let files = drawn.write(directory.path(), &[FigureFormat::Svg]).expect("a writable temporary directory");
    let figures = files.iter().map(|path| {
        let svg = std::fs::read_to_string(path).expect("the file that was named");
        check_svg(&svg);
        (path.file_name().expect("a file").to_string_lossy().into_owned(), svg)
    });
    (figures.collect(), omitted)
}

/// Checks that tags are balanced, attributes quoted and coordinates on the sheet.
fn check_svg(svg: &str) {
    let mut open = Vec::new();
    let (mut width, mut height) = (0.0, 0.0);
    for tag in svg.split('<').skip(1) {
        let (tag, text) = tag.split_once('>').expect("tags end");
        let entities = ["amp;", "lt;", "gt;", "quot;"];
        let all_are =
            text.split('&').skip(1).all(|rest| entities.iter().any(|entity| rest.starts_with(entity)));
        assert!(all_are, "{text}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
            continue;
        }
        let (name, attributes) = tag.split_once(' ').expect("every tag has attributes");
        if !tag.ends_with('/') {
            open.push(name);
        }
        assert_eq!(attributes.matches('"').count(), 2 * attributes.matches("=\"").count(), "{tag}");
        let attribute = |key: &str| {
            let start = attributes.split_once(&format!(" {key}=\"")).map(|(_, rest)| rest)?;
            Some(start.split('"').next().expect("a closing quote").to_string())
        };
        let numbers = |text: String| -> Vec<f64> {
            text.split([' ', ',']).filter(|n| !n.is_empty()).map(|n| n.parse().expect("a number")).collect()
        };
        if let Some(view) = attribute("viewBox") {
            (width, height) = (numbers(view.clone())[2], numbers(view)[3]);
        }
        let points = attribute("points").map(numbers).unwrap_or_default();
        for point in points.chunks(2) {
            assert!((0.0..=width).contains(&point[0]) && (0.0..=height).contains(&point[1]), "{tag}");
        }
    }
    assert!(open.is_empty());
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "no such numbers");
}

/// Returns the numbers of points of the polylines that are data; axes and rules have two or three.
fn data_lines(svg: &str) -> Vec<usize> {
    let points =
        svg.split("<polyline").skip(1).filter_map(|tag| tag.split("points=\"").nth(1)?.split('"').next());
    points.map(|points| points.split_whitespace().count()).filter(|&count| count > 3).collect()
}

#[test]
fn all_quantities_together_and_alone() {
    let (figures, omitted) = draw(&run(40, 3, true), None);
    let names: Vec<_> = figures.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "decay.svg",
            "heads.svg",
            "learning_rate.svg",
            "loss_ratio.svg",
            "momentum.svg",
            "surprise.svg",
            "timeline.svg"
        ]
    );
    assert_eq!(omitted, []);
    // The gates never change, which a note says instead of three panels.
    assert_eq!(data_lines(&figures["timeline.svg"]), [40; 2 * 4]);
    for name in ["surprise.svg", "loss_ratio.svg", "decay.svg"] {
        assert_eq!(data_lines(&figures[name]), [40; 4], "three heads and their mean in {name}");
    }
    let timeline = &figures["timeline.svg"];
    for text in ["surprise", "(gradient norm)", "loss ratio", "tokens", "mean over heads"] {
        assert!(timeline.contains(&format!(">{text}</text>")), "{text}");
    }
    let fixed = "fixed: learning rate θ = 0.01, decay α = 0.9, momentum η = 0.5";
    assert!(timeline.contains(fixed), "{timeline}");
    assert!(timeline.contains("width=\"486pt\""));
}

#[test]
fn one_head_is_one_line() {
    let (figures, _) = draw(&run(40, 1, true), None);
    assert_eq!(data_lines(&figures["surprise.svg"]), [40]);
    assert!(!figures["surprise.svg"].contains("head"));
}

#[test]
fn no_probe_no_ratio() {
    let (figures, _) = draw(&run(40, 2, false), None);
    assert!(!figures.contains_key("loss_ratio.svg"));
    assert!(!figures["timeline.svg"].contains("loss ratio"));
    assert_eq!(data_lines(&figures["timeline.svg"]).len(), 3);
}

#[test]
fn nonfinite_values_break_lines_and_are_reported() {
    let mut rows = String::new();
    for chunk in 0..30 {
        let surprise = match chunk {
            10 => "NaN",
            20 => "inf",
            25 => "0",
            _ => "1.5",
        };
        rows += &row(chunk, 0, "1", surprise);
    }
    let (figures, omitted) = draw(&rows, None);
    assert_eq!(data_lines(&figures["surprise.svg"]), [10, 9, 4, 4]);
    assert_eq!(figures["surprise.svg"].matches("<polygon").count(), 3 + 1, "three marks and the legend's");
    assert_eq!(omitted, [OmittedValues { quantity: "surprise", not_finite: 2, not_positive: 1 }]);
    assert_eq!(
        omitted[0].to_string(),
        "surprise: values not drawn: 2 not finite, 1 not above 0 on a log axis"
    );
    assert_eq!(data_lines(&figures["decay.svg"]), [30]);
}

#[test]
fn empty_panels_have_a_message() {
    let (figures, omitted) = draw("", None);
    assert_eq!(figures.len(), 5, "no ratio without a probe");
    assert_eq!(figures["timeline.svg"].matches(">no finite values</text>").count(), 4);
    assert_eq!(omitted, []);

    let (figures, _) = draw(&row(0, 0, "NaN", "NaN"), None);
    assert!(figures["loss_ratio.svg"].contains(">no finite values</text>"));
    let (figures, _) = draw(&row(0, 0, "1", "0"), None);
    assert!(figures["surprise.svg"].contains(">no values above 0</text>"));
}

#[test]
fn one_chunk_is_a_dot() {
    let (figures, _) = draw(&run(1, 2, true), None);
    assert_eq!(figures["timeline.svg"].matches("<circle").count(), 2 * 3);
}

#[test]
fn extreme_ranges() {
    let exponents = (0..25).map(|i| (i, i32::try_from(i).expect("small")));
    let rows = exponents
        .clone()
        .map(|(i, n)| row(i, 0, &format!("1e{}", n * 25 - 300), &format!("1e{}", n * 12 - 150)));
    let (_, omitted) = draw(&rows.collect::<String>(), None);
    assert_eq!(omitted, []);
    let rows = exponents.map(|(i, n)| row(i, 0, "1.7e308", &format!("1e{}", n - 12)));
    let (figures, _) = draw(&rows.collect::<String>(), None);
    assert!(figures["surprise.svg"].contains(">10<tspan dy=\"-0.5em\" font-size=\"70%\">−12</tspan></text>"));
}

#[test]
fn labels_are_drawn_within_the_tokens() {
    let labels = Labels {
        boundaries: vec![8, 80, 9999],
        repeats: vec![40..60, 100..9999, 20_000..20_001],
        ..Labels::default()
    };
    let (figures, _) = draw(&run(30, 1, true), Some(&labels));
    let surprise = &figures["surprise.svg"];
    assert!(surprise.contains(">segment change</text>") && surprise.contains(">repeat</text>"));
    assert_eq!(surprise.matches("#BDBDBD").count(), 2 + 1, "two lines and the legend's");
    assert_eq!(surprise.matches("#EEEEEE").count(), 2 + 1, "two areas and the legend's");
    let (figures, _) = draw(&run(30, 1, true), Some(&labels.shifted(1 << 40)));
    assert!(!figures["surprise.svg"].contains("segment change"));
}

#[test]
fn size_is_bounded_and_bytes_are_the_same_every_time() {
    let (short, _) = draw(&run(3000, 4, true), None);
    let (long, _) = draw(&run(48_000, 4, true), None);
    assert!(long["timeline.svg"].len() < short["timeline.svg"].len() * 3 / 2);
    assert!(data_lines(&long["surprise.svg"]).iter().all(|&points| points <= 4 * 1024));
    assert_eq!(draw(&run(3000, 4, true), None).0, short);
}

#[test]
fn errors_name_the_file() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let csv = directory.path().join("metrics.csv");
    let message = || timelines(&csv, &Request::default(), &mut || Ok(())).expect_err("an error").to_string();
    assert_eq!(message(), format!("{}: cannot open", csv.display()));
    std::fs::write(&csv, "sequence,chunk\n0,0\n").expect("a writable temporary directory");
    let expected = format!("{}: expected a column \"head\", got the columns sequence, chunk", csv.display());
    assert_eq!(message(), expected);
    std::fs::write(&csv, format!("{HEADER}\n")).expect("a writable temporary directory");
    let absent = directory.path().join("absent");
    let (drawn, _) = timelines(&csv, &Request::default(), &mut || Ok(())).expect("figures");
    let message = drawn.write(&absent, &[FigureFormat::Svg]).expect_err("an error").to_string();
    assert_eq!(message, format!("{}: cannot write in", absent.display()));
}
