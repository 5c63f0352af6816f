//! Figures of recall.csv: points are means over several tokens, and stand beside chance and an answer of zeros.

use nmem::plot::{
    CsvSource, Figure, FigureFormat, FigureStyle, Kind, Part, Request, Run, draw, ignored_flags,
};
use nmem::statistics::Interval;

use crate::layout::{check_layout, styles};

pub const HEADER: &str =
    "sequence,token,mean_square,mean_square_zero,cosine,target,answer,rank,in_set_rank,updated,stale\n";

/// Returns rows of these sequences and tokens. Every third token is wrong, as far as its rank of 3; every second one replaced
/// another value, which is the answer where it is wrong.
pub fn rows(sequences: u64, tokens: u64, with_updates: bool) -> String {
    let row = |sequence: u64, token: u64| {
        let wrong = (sequence + token).is_multiple_of(3);
        let (error, rank) = if wrong { (0.75, 3) } else { (0.25, 1) };
        let updated = token.is_multiple_of(2);
        let groups = match (with_updates, updated) {
            (false, _) => ",".to_owned(),
            (true, false) => "0,".to_owned(),
            (true, true) => format!("1,{}", u8::from(wrong)),
        };
        format!("{sequence},{token},{error},0.5,0.5,4,{},{rank},,{groups}\n", if wrong { 7 } else { 4 })
    };
    (0..sequences).flat_map(|sequence| (0..tokens).map(move |token| row(sequence, token))).collect()
}

/// Draws files of these rows, with the chance of a run of 16 candidates.
fn try_drawn(files: &[&str], request: &Request) -> Result<Figure, String> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let source = |(i, rows): (usize, &&str)| {
        let csv = directory.path().join(format!("r{i}")).join("recall.csv");
        std::fs::create_dir(csv.parent().expect("a directory")).expect("a writable directory");
        std::fs::write(&csv, format!("{HEADER}{rows}")).expect("a writable directory");
        let source = CsvSource::find(&csv, None).expect("a recall.csv");
        assert_eq!(source.kind, Kind::Recall);
        CsvSource { run: Run { chance: Some(1.0 / 16.0), top_k: Some(3), ..Run::default() }, ..source }
    };
    let sources: Vec<_> = files.iter().enumerate().map(source).collect();
    let clean =
        |error: nmem::Error| error.to_string().replace(&format!("{}/", directory.path().display()), "");
    let mut drawn = draw(&sources, request, &mut || Ok(())).map_err(clean)?;
    assert_eq!((drawn.figures.len(), drawn.notes.len()), (1, 0));
    Ok(drawn.figures.remove(0))
}

fn drawn(files: &[&str], request: &Request) -> Figure {
    try_drawn(files, request).expect("a figure")
}

/// Returns the points of the line of a panel: x, y, low and high end of the interval.
fn line(figure: &Figure, panel: &str, name: &str) -> Vec<[Option<f64>; 4]> {
    let csv = String::from_utf8(figure.encode(FigureFormat::Csv).expect("a table")).expect("text");
    let rows = csv::Reader::from_reader(csv.as_bytes()).into_records().map(|row| row.expect("a row"));
    let rows = rows.filter(|row| &row[0] == panel && &row[1] == name);
    rows.map(|row| [3, 4, 6, 7].map(|cell| row[cell].parse().ok())).collect()
}

fn points(figure: &Figure, panel: &str, name: &str) -> Vec<(f64, f64)> {
    let points = line(figure, panel, name).into_iter();
    points.map(|row| (row[0].expect("x"), row[1].expect("y"))).collect()
}

fn smooth(tokens: usize) -> Request {
    Request { style: FigureStyle { smooth: Some(tokens), ..FigureStyle::default() }, ..Request::default() }
}

#[test]
fn points_are_means_over_tokens_and_sequences() {
    // Three sequences of seven tokens: of three tokens in a row one is wrong, and the last bin has one token.
    let figure = drawn(&[&rows(3, 7, false)], &smooth(3));
    let share = 2.0 / 3.0;
    let at = |ys: [f64; 3]| vec![(1.0, ys[0]), (4.0, ys[1]), (6.0, ys[2])];
    assert_eq!(points(&figure, "share of tokens", "accuracy"), at([share; 3]));
    assert_eq!(points(&figure, "share of tokens", "top 3"), at([1.0; 3]));
    let ratio = (0.75 + 2.0 * 0.25) / 1.5;
    let panel = "mean square ÷ all zeros";
    let got = points(&figure, panel, "ratio");
    assert!(got.iter().all(|(_, y)| (y - ratio).abs() < 1e-12) && got.len() == 3, "{got:?}");
    // Baselines run over all tokens.
    assert_eq!(points(&figure, "share of tokens", "chance"), [(0.0, 0.0625), (7.0, 0.0625)]);
    assert_eq!(points(&figure, "share of tokens", "chance, top 3"), [(0.0, 0.1875), (7.0, 0.1875)]);
    assert_eq!(points(&figure, panel, "all zeros"), [(0.0, 1.0), (7.0, 1.0)]);
    assert!(figure.svg.contains(">each point: 3 tokens</text>"), "{}", figure.svg);
    // One token is a point where it is asked for.
    let single = points(&drawn(&[&rows(1, 7, false)], &smooth(1)), "share of tokens", "accuracy");
    assert_eq!(single.iter().map(|point| point.1).collect::<Vec<_>>(), [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0]);
}

#[test]
fn a_point_has_enough_tokens_by_default() {
    // At least 8 points and at most 64, of about 32 tokens.
    for (sequences, tokens, expected) in [(1, 1, 1), (1, 4, 4), (1, 640, 20), (1, 10_000, 64), (64, 97, 49)] {
        let figure = drawn(&[&rows(sequences, tokens, false)], &Request::default());
        let got = points(&figure, "share of tokens", "accuracy").len();
        assert_eq!(got, expected, "{sequences} × {tokens}");
    }
}

#[test]
fn intervals_are_over_sequences() {
    let figure = drawn(&[&rows(6, 8, false)], &smooth(2));
    assert!(figure.svg.contains("bands: 95 % interval over 6 sequences (Student’s t)"), "{}", figure.svg);
    // Tokens 0 and 1: one of them is wrong in sequences 0, 2, 3 and 5, and none in 1 and 4.
    let first = line(&figure, "share of tokens", "accuracy")[0];
    let (mean, sd) = (4.0 / 6.0, (4.0 * (1.0 / 6.0_f64).powi(2) + 2.0 * (1.0 / 3.0_f64).powi(2)) / 5.0);
    let half = 2.570_581_8 * sd.sqrt() / 6f64.sqrt();
    let expected = [Some(0.5), Some(mean), Some(mean - half), Some(mean + half)];
    let near =
        |(a, b): (Option<f64>, Option<f64>)| (a.expect("a number") - b.expect("a number")).abs() < 1e-6;
    assert!(first.into_iter().zip(expected).all(near), "{first:?} for {expected:?}");
    // Shares end at 1, and few sequences have no band.
    assert!(line(&figure, "share of tokens", "top 3").iter().all(|row| row[3] == Some(1.0)));
    let without = [
        drawn(&[&rows(4, 8, false)], &smooth(2)),
        drawn(&[&rows(6, 8, false)], &Request { interval: Some(Interval::None), ..smooth(2) }),
    ];
    for figure in without {
        assert_eq!(line(&figure, "share of tokens", "accuracy")[0][2..], [None, None]);
        assert!(!figure.svg.contains("bands"), "{}", figure.svg);
    }
}

#[test]
fn groups_and_runs_have_a_line_each() {
    let text = rows(3, 8, true);
    let figure = drawn(&[&text], &smooth(8));
    // Of the tokens 0, 2, 4, 6 and of 1, 3, 5, 7, four of twelve are wrong in three sequences.
    for (name, share) in [("kept", 8.0 / 12.0), ("updated", 8.0 / 12.0), ("old value", 4.0 / 12.0)] {
        assert_eq!(points(&figure, "accuracy", name), [(3.5, share)], "{name}");
    }
    assert_eq!(points(&figure, "top 3 accuracy", "kept"), [(3.5, 1.0)]);
    assert_eq!(line(&figure, "top 3 accuracy", "old value"), [[None; 4]; 0]);
    let hue = Request { hue: Some("sequence".into()), ..smooth(8) };
    let figure = drawn(&[&text], &hue);
    // Sequence 1 is wrong at 2 and 5, the others three times.
    assert_eq!(points(&figure, "accuracy", "sequence 1"), [(3.5, 0.75)]);
    assert_eq!(points(&figure, "accuracy", "sequence 2"), [(3.5, 0.625)]);
    let figure = drawn(&[&text, &rows(3, 8, false)], &smooth(8));
    for run in ["r0", "r1"] {
        assert_eq!(points(&figure, "accuracy", run), [(3.5, 2.0 / 3.0)]);
    }
    assert_eq!(points(&figure, "accuracy", "chance").len(), 2, "one line for the same chance");
}

#[test]
fn parts_of_a_recall() {
    let text = rows(3, 12, true);
    let request = Request {
        y: vec!["mean_square".into(), "cosine".into()],
        filter: vec!["updated=1".into()],
        part: Part { tokens: Some(4..10), ..Part::default() },
        ..smooth(3)
    };
    let figure = drawn(&[&text], &request);
    // Of three tokens in three sequences a third is wrong, whichever they are.
    let error = (0.75 + 2.0 * 0.25) / 3.0;
    let got = points(&figure, "mean square", "mean_square");
    assert!(got.iter().all(|(_, y)| (y - error).abs() < 1e-12), "{got:?}");
    assert_eq!(got.iter().map(|point| point.0).collect::<Vec<_>>(), [5.0, 7.5], "of tokens 4 to 8");
    assert_eq!(points(&figure, "mean square", "all zeros"), [(5.0, 0.5), (7.5, 0.5)]);
    assert_eq!(points(&figure, "cosine", "cosine"), [(5.0, 0.5), (7.5, 0.5)]);
    // Without candidates there is no share to draw.
    let without = "0,0,1,2,0.5,,,,,,
0,1,1,2,0.5,,,,,,
";
    let figure = drawn(&[without], &smooth(3));
    assert_eq!(points(&figure, "mean square ÷ all zeros", "ratio"), [(0.5, 0.5)]);
    assert!(!figure.svg.contains("accuracy"), "{}", figure.svg);
    let asked = drawn(&[without], &Request { y: vec!["accuracy".into()], ..smooth(3) });
    assert!(asked.svg.contains(">no candidates</text>"), "{}", asked.svg);
}

#[test]
fn what_cannot_be_drawn_is_rejected() {
    let text = rows(20, 3, true);
    let of = |text: &str, request: Request| try_drawn(&[text], &request).expect_err("an error");
    let (y, hue) = (|y: &str| vec![y.to_owned()], |hue: &str| Some(hue.to_owned()));
    insta::assert_snapshot!([
        of(&text, Request { y: y("acuracy"), ..Request::default() }),
        of(&text, Request { hue: hue("updatd"), ..Request::default() }),
        of(&text, Request { hue: hue("sequence"), ..Request::default() }),
        of(&text, Request { filter: vec!["token=9".into()], ..Request::default() }),
        of("", Request::default()),
        of("1,0,1,1,1,,,,,,\n0,0,1,1,1,,,,,,\n", Request::default()),
        of("0,0,x,1,1,,,,,,\n", Request::default()),
    ].join("\n"), @r#"
    --y: no measure acuracy (did you mean `accuracy`?); the measures of recall are accuracy, top_k, ratio, mean_square, cosine
    --hue: no column updatd (did you mean `updated`?); the columns are sequence, token, mean_square, mean_square_zero, cosine, target, answer, rank, in_set_rank, updated, stale
    --hue: sequence has more than 16 values; choose another column, or some values with --where
    --where: `token=9` holds for no row; choose another condition
    r0/recall.csv: no token to draw
    r0/recall.csv: expected sequences in ascending order on line 3, got 0 after 1
    r0/recall.csv: expected a number or nothing in column "mean_square" on line 2, got "x"
    "#);
}

#[test]
fn recalls_keep_the_sheet() {
    let nonfinite = "0,0,inf,1,nan,1,1,1,,,\n0,1,1e300,1e-300,1,1,1,1,,,\n".to_owned();
    let zeros = "0,0,0,0,0,1,,,,,\n".to_owned();
    for text in [rows(1, 1, false), rows(7, 40, true), rows(2, 5000, false), nonfinite, zeros] {
        for style in styles() {
            for hue in [None, Some("sequence".to_owned())] {
                for y in [vec![], vec!["mean_square".into(), "cosine".into()]] {
                    let request = Request { style: style.clone(), hue: hue.clone(), y, ..Request::default() };
                    check_layout("recall", &drawn(&[&text], &request).svg);
                }
            }
        }
    }
}

#[test]
fn flags_without_effect_are_said() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let csv = directory.path().join("recall.csv");
    std::fs::write(&csv, format!("{HEADER}{}", rows(1, 4, true))).expect("a writable directory");
    let sources = [CsvSource::find(&csv, None).expect("a recall.csv")];
    let heads = Part { heads: vec![0..=1], tokens: Some(0..2) };
    let request = Request {
        x: Some("token".into()),
        hue: Some("updated".into()),
        y: vec!["ratio".into()],
        filter: vec!["updated=1".into()],
        part: heads,
        interval: Some(Interval::Sd),
        ..smooth(2)
    };
    let ignored = ignored_flags(&sources, &request);
    assert_eq!(ignored.as_deref(), Some("no effect with --kind recall: --x, --heads, --interval"));
    let obeyed = Request { interval: Some(Interval::None), x: None, part: Part::default(), ..request };
    assert_eq!(ignored_flags(&sources, &obeyed), None);
}
