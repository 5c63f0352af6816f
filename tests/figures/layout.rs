//! Layout of the sheet. usvg returns every text's outline as in the PDF. No two may overlap and none may leave the sheet,
//! for any data, width and theme.

use std::fmt::Write as _;
use std::sync::{Arc, LazyLock};

use nmem::io::labels::Labels;
use nmem::plot::{CsvSource, FigureStyle, INCH, Kind, Request, Theme, draw, font};
use usvg::{Node, Options, Rect, Tree, fontdb};

use crate::{HEADER, check_svg};

static FONTS: LazyLock<Arc<fontdb::Database>> = LazyLock::new(|| {
    let mut fonts = fontdb::Database::new();
    for file in font::FILES {
        fonts.load_font_data(file.to_vec());
    }
    Arc::new(fonts)
});

/// Returns the texts and their outlines.
fn texts(svg: &str) -> (Vec<(String, Rect)>, usvg::Size) {
    let options = Options { fontdb: FONTS.clone(), font_family: font::FAMILY.into(), ..Options::default() };
    let tree = Tree::from_str(svg, &options).expect("an SVG");
    let mut texts = Vec::new();
    collect(tree.root(), &mut texts);
    (texts, tree.size())
}

fn collect(group: &usvg::Group, texts: &mut Vec<(String, Rect)>) {
    for node in group.children() {
        match node {
            Node::Group(group) => collect(group, texts),
            Node::Text(text) => {
                let said = text.chunks().iter().map(usvg::TextChunk::text).collect();
                let outline = text.flattened().bounding_box().transform(text.abs_transform());
                texts.push((said, outline.expect("a text's place on the sheet")));
            }
            _ => {}
        }
    }
}

pub fn check_layout(what: &str, svg: &str) {
    check_svg(svg);
    let (texts, size) = texts(svg);
    assert!(!texts.is_empty(), "{what}: no text at all");
    for (i, (text, place)) in texts.iter().enumerate() {
        let inside = place.left() >= 0.0
            && place.top() >= 0.0
            && place.right() <= size.width()
            && place.bottom() <= size.height();
        assert!(inside, "{what}: {text:?} at {place:?} leaves the sheet of {size:?}");
        for (other, there) in &texts[..i] {
            let apart = place.left() >= there.right()
                || there.left() >= place.right()
                || place.top() >= there.bottom()
                || there.top() >= place.bottom();
            assert!(apart, "{what}: {text:?} at {place:?} overlaps {other:?} at {there:?}");
        }
    }
}

/// Returns a metrics.csv with these numbers of chunks and heads, whose values depend on chunk and head.
fn metrics(chunks: usize, heads: usize, value: impl Fn(usize, usize) -> f64) -> String {
    let mut csv = format!("{HEADER}\n");
    for chunk in 0..chunks {
        for head in 0..heads {
            let x = value(chunk, head);
            let (start, end) = (chunk * 16, chunk * 16 + 16);
            writeln!(csv, "0,{chunk},{head},{start},{end},{x},{x},{x},{x},{x},{x},{x},1,1,1,1,1")
                .expect("a string takes all");
        }
    }
    csv
}

/// Returns narrow and wide styles in each theme, with titles and low heights.
pub fn styles() -> Vec<FigureStyle> {
    let widths = [2.5, 3.25, 5.5, 6.75];
    let themes = [Theme::Print, Theme::Screen, Theme::Mono];
    let mut styles: Vec<_> = widths
        .into_iter()
        .flat_map(|width| {
            themes.map(|theme| FigureStyle { theme, width: width * INCH, ..FigureStyle::default() })
        })
        .collect();
    let title =
        Some("A title that is rather long for a figure of a single column, {braces} and <tags>".to_owned());
    styles.push(FigureStyle {
        title,
        height: Some(2.0 * INCH),
        width: 3.25 * INCH,
        ..FigureStyle::default()
    });
    styles
}

/// A value by chunk and head.
type Values = Box<dyn Fn(usize, usize) -> f64>;

#[test]
fn no_text_overlaps_or_leaves_the_sheet() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let csv = directory.path().join("metrics.csv");
    let powers = |chunk: usize, _: usize| (0..chunk).fold(1e-12, |value, _| value * 10.0);
    let cases: Vec<(&str, usize, Vec<usize>, Values)> = vec![
        (
            "plain",
            40,
            vec![1, 2, 4, 7, 8, 16],
            Box::new(|chunk, head| 1.0 + ((chunk * 7 + head * 3) % 11) as f64),
        ),
        ("from 1e-12 to 1e12", 25, vec![1, 3], Box::new(powers)),
        ("tiny", 25, vec![2], Box::new(|chunk, _| 1e-12 * (1.0 + chunk as f64))),
        ("huge", 25, vec![2], Box::new(|chunk, _| 1e12 * (1.0 + chunk as f64))),
        ("within a decade", 30, vec![4], Box::new(|chunk, _| 2.0 + chunk as f64 / 10.0)),
        ("constant", 30, vec![1, 4], Box::new(|_, _| 0.123_456)),
        ("zero", 30, vec![1, 4], Box::new(|_, _| 0.0)),
        ("negative", 30, vec![2], Box::new(|chunk, _| -1234.5 - chunk as f64)),
        ("a single point", 1, vec![1, 2, 16], Box::new(|_, head| 3.0 + head as f64)),
        ("all NaN", 20, vec![1, 4], Box::new(|_, _| f64::NAN)),
        ("some not finite", 20, vec![4], Box::new(|chunk, _| [1.0, f64::INFINITY, 2.0, 0.0][chunk % 4])),
        ("nothing", 0, vec![1], Box::new(|_, _| 0.0)),
        ("long", 100_000, vec![2], Box::new(|chunk, _| 1.0 + (chunk % 97) as f64)),
    ];
    let labels = Labels { boundaries: vec![80, 160], repeats: vec![200..300, 400..432], ..Labels::default() };
    for (name, chunks, heads, value) in cases {
        for heads in heads {
            std::fs::write(&csv, metrics(chunks, heads, &value)).expect("a writable temporary directory");
            for style in if chunks > 1000 { vec![FigureStyle::default()] } else { styles() } {
                for kind in [Kind::Timeline, Kind::Gates, Kind::Heads, Kind::Columns] {
                    let source = CsvSource::find(&csv, Some(kind)).expect("a metrics.csv");
                    if kind == Kind::Columns && heads > 8 && style.width < 200.0 {
                        continue;
                    }
                    let request =
                        Request { style: style.clone(), labels: Some(labels.clone()), ..Request::default() };
                    let drawn = draw(&[source], &request, &mut || Ok(())).expect("a figure");
                    for figure in drawn.figures {
                        let inches = style.width / INCH;
                        let theme = style.theme;
                        let what =
                            format!("{name}, {heads} heads, {} of {inches} in, {theme:?}", figure.name);
                        check_layout(&what, &figure.svg);
                    }
                }
            }
        }
    }
}

#[test]
fn several_runs_overlay() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let sources: Vec<_> = ["a run", "another <run>", "and {one} with a name that is longer than others"]
        .iter()
        .enumerate()
        .map(|(i, name)| {
            let run = directory.path().join(name);
            std::fs::create_dir(&run).expect("a writable temporary directory");
            let csv = metrics(30 + 20 * i, 2, |chunk, head| (1 + chunk + head) as f64);
            std::fs::write(run.join("metrics.csv"), csv).expect("a writable temporary directory");
            CsvSource::find(&run, None).expect("a run")
        })
        .collect();
    for style in styles() {
        let request = Request { style, y: vec!["surprise".into()], ..Request::default() };
        let drawn = draw(&sources, &request, &mut || Ok(())).expect("a figure");
        let [figure] = &drawn.figures[..] else { panic!("one figure of all runs") };
        check_layout("several runs", &figure.svg);
        assert!(figure.svg.contains(">a run</text>"));
        if request.style.theme != Theme::Mono {
            assert_eq!(crate::data_lines(&figure.svg), [30, 50, 70], "a line a run");
        }
    }
}

#[test]
fn sweeps_retention_and_scans_keep_the_sheet() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = |name: &str, text: String| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("a writable temporary directory");
        path
    };
    let mut files = Vec::new();
    for (case, values) in [1, 3, 12].into_iter().enumerate() {
        let mut rows =
            "run,learning_rate,chunk_size,init,seed,status,loss_mean,loss_before_mean,tokens_per_s\n"
                .to_owned();
        let words = ["xavier", "randn", "a_rather_long_word_for_an_axis"];
        for i in 0..values {
            for (j, chunk_size) in (0..9_u8).zip([2, 4, 8, 16, 32, 64, 128, 256, 512]) {
                for (k, init) in (0..3_u8).zip(words) {
                    for seed in 0..2 {
                        let rate = 10f64.powi(i - 6);
                        let loss =
                            10f64.powi(i - 3) * (1.0 + f64::from(j) + f64::from(seed) / 8.0) + f64::from(k);
                        let status = if i + seed == 11 { "diverged" } else { "ok" };
                        writeln!(
                            rows,
                            "{i}{j}{k}{seed},{rate:e},{chunk_size},{init},{seed},{status},1.5,{loss:e},{}",
                            1e5 / loss
                        )
                        .expect("a string takes all");
                    }
                }
            }
        }
        files.push(file(&format!("sweep-{case}.csv"), rows));
    }
    for last in [1, 9, 700] {
        let mut rows = "sequence,chunk,head,after,loss,loss_at_w\n".to_owned();
        for after in 0..last {
            for chunk in (0..=after).step_by(3) {
                writeln!(rows, "0,{chunk},0,{after},{},1", 0.5 + f64::from(chunk % 5) / 4.0)
                    .expect("a string");
            }
        }
        files.push(file(&format!("retention-{last}.csv"), rows));
    }
    for (weights, last) in [(1, 1), (4, 40), (8, 3000)] {
        let mut rows =
            "sequence,chunk,head,weight,index,singular_value,stable_rank,effective_rank\n".to_owned();
        for (chunk, weight) in (0..last).flat_map(|chunk| (0..weights).map(move |weight| (chunk, weight))) {
            for index in 0..40 {
                let value = f64::from(chunk) * 2f64.powi(-index);
                let ranks = if index == 0 { "1.5,2.5" } else { "," };
                writeln!(rows, "0,{chunk},0,{weight},{index},{value},{ranks}").expect("a string takes all");
            }
        }
        files.push(file(&format!("spectrum-{last}.csv"), rows));
    }
    let mut rows =
        "algorithm,device,dtype,layout,gate,threads,batch,steps,channels,median_ms,gb_per_s,copy_gb_per_s\n"
            .to_owned();
    for algorithm in
        ["auto", "sequential", "channels", "time", "tree", "pair-sequential", "pair", "pair-last"]
    {
        for layout in ["steps-channels", "channels-steps"] {
            for gate in ["step", "element"] {
                for steps in [128, 512, 4096] {
                    writeln!(
                        rows,
                        "{algorithm},cpu,f32,{layout},{gate},2,8,{steps},1536,{},{},12.5",
                        f64::from(steps) / 77.0,
                        1000.0 / f64::from(steps)
                    )
                    .expect("a string takes all");
                }
            }
        }
    }
    files.push(file("scan.csv", rows));
    for path in files {
        let kinds = match CsvSource::find(&path, None).expect("a known file").kind {
            Kind::Sweep => vec![Kind::Sweep, Kind::Map],
            kind => vec![kind],
        };
        for style in styles() {
            for &kind in &kinds {
                let source = CsvSource::find(&path, Some(kind)).expect("a known file");
                let request = Request { style: style.clone(), ..Request::default() };
                let drawn = draw(&[source], &request, &mut || Ok(())).expect("figures");
                for figure in drawn.figures {
                    let (inches, theme) = (style.width / INCH, style.theme);
                    let what =
                        format!("{}: {} as {kind:?} of {inches} in, {theme:?}", path.display(), figure.name);
                    check_layout(&what, &figure.svg);
                }
            }
        }
    }
}
