//! Figures of sweeps: the choices for each grid, the options, and results that must never be drawn as numbers.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use nmem::plot::{CsvSource, FigureFormat, Kind, Request, draw};

use crate::{check_svg, data_lines};

/// Columns of results; the others are not drawn unless requested.
const RESULTS: &str =
    "status,tokens,loss_mean,loss_before_mean,surprise_mean,first_unstable_chunk,diverged,error,tokens_per_s";

/// A results.csv under construction.
struct Grid {
    csv: String,
    runs: usize,
}

/// The outcome of a made-up run.
enum End {
    /// Success with this loss before storing, loss at W and surprise.
    Ok(f64, f64, f64),
    /// Infinite losses with the status of a success.
    Infinite,
    Diverged,
    Failed,
}

impl Grid {
    fn new(parameters: &str) -> Self {
        Self { csv: format!("run,{parameters},{RESULTS}\n"), runs: 0 }
    }

    fn run(&mut self, parameters: &str, end: End) {
        self.runs += 1;
        let results = match end {
            End::Ok(before, loss, surprise) => {
                format!("ok,2048,{loss},{before},{surprise},,false,,{}", 1000.0 + before)
            }
            End::Infinite => "ok,2048,inf,NaN,inf,,false,,1000".to_owned(),
            // A diverged run reports finite values up to its divergence, which must not be drawn.
            End::Diverged => "diverged,2048,77,77,77,77,true,,77".to_owned(),
            End::Failed => "failed,,,,,,,\"weights.npz: cannot open\",".to_owned(),
        };
        writeln!(self.csv, "{:012x},{parameters},{results}", self.runs).expect("a string takes all");
    }

    fn try_draw(&self, request: &Request) -> Result<(BTreeMap<String, String>, Vec<String>), String> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let csv = directory.path().join("results.csv");
        std::fs::write(&csv, &self.csv).expect("a writable temporary directory");
        let drawn = figures(&csv, request)?;
        let files =
            drawn.write(directory.path(), &[FigureFormat::Svg]).expect("a writable temporary directory");
        let figures = files.iter().map(|path| {
            let svg = std::fs::read_to_string(path).expect("the file that was named");
            check_svg(&svg);
            (path.file_name().expect("a file").to_string_lossy().into_owned(), svg)
        });
        Ok((figures.collect(), drawn.notes))
    }

    /// Returns the SVG files by name, and the notes.
    fn draw(&self, request: &Request) -> (BTreeMap<String, String>, Vec<String>) {
        self.try_draw(request).expect("figures")
    }
}

fn asked(x: &str, y: &str, hue: &str) -> Request {
    let some = |name: &str| (!name.is_empty()).then(|| name.to_owned());
    Request { x: some(x), y: some(y).into_iter().collect(), hue: some(hue), ..Request::default() }
}

fn figures(csv: &std::path::Path, request: &Request) -> Result<nmem::plot::Figures, String> {
    let source = CsvSource::find(csv, Some(Kind::Sweep)).map_err(|error| error.to_string())?;
    draw(&[source], request, &mut || Ok(())).map_err(|error| error.to_string())
}

/// Returns a full grid of these values with three seeds, fixed `heads`, and losses that depend on every parameter.
fn grid(parameters: &[(&str, &[&str])]) -> Grid {
    grid_of(parameters, 3)
}

/// Returns the same with this number of seeds.
fn grid_of(parameters: &[(&str, &[&str])], seeds: u8) -> Grid {
    let names: Vec<_> = parameters.iter().map(|(name, _)| *name).collect();
    let mut grid = Grid::new(&format!("{},seed,heads", names.join(",")));
    let mut rows = vec![(String::new(), 1.0)];
    for (_, values) in parameters {
        rows = rows
            .iter()
            .flat_map(|(row, loss)| {
                values
                    .iter()
                    .enumerate()
                    .map(move |(i, value)| (format!("{row}{value},"), loss * (1.0 + i as f64 / 7.0)))
            })
            .collect();
    }
    for (row, loss) in rows {
        for seed in 0..seeds {
            let loss = loss + f64::from(seed) / 50.0;
            grid.run(&format!("{row}{seed},4"), End::Ok(loss / 2.0, 1.5, loss * 3.0));
        }
    }
    grid
}

const CHUNK_SIZES: &[&str] = &["2", "4", "8", "16", "32", "64", "128", "256"];
const DECAYS: &[&str] = &["0", "0.1", "0.5", "0.9"];
const RATES: &[&str] = &["0.001", "0.002", "0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"];

/// Counts the bands and the marks of lost runs, including the legend's.
fn polygons(svg: &str) -> usize {
    svg.matches("<polygon").count()
}

fn marks(svg: &str) -> usize {
    svg.split("<polygon").filter(|tag| tag.starts_with(" opacity=\"1\" fill=\"#CC0000\"")).count()
}

#[test]
fn one_parameter_is_a_line_with_its_band() {
    let (figures, notes) = grid_of(&[("chunk_size", CHUNK_SIZES)], 5).draw(&Request::default());
    let names: Vec<_> = figures.keys().map(String::as_str).collect();
    assert_eq!(names, ["loss_before_mean.svg", "loss_ratio.svg", "surprise_mean.svg", "tokens_per_s.svg"]);
    assert_eq!(notes, [""; 0]);
    for (name, svg) in &figures {
        assert_eq!(data_lines(svg), [8], "{name}");
        assert_eq!(polygons(svg), 1, "one band in {name}");
        assert_eq!(svg.matches("<circle").count(), 8, "a marker a value in {name}");
        for text in ["chunk size (tokens)", "256", "means of 5 runs, bands: 95 % interval (Student’s t)"] {
            assert!(svg.contains(&format!(">{text}</text>")), "{text} in {name}");
        }
    }
    assert!(figures["loss_ratio.svg"].contains(">loss before storing ÷ at W</text>"));
}

#[test]
fn one_seed_has_no_interval() {
    let mut grid = Grid::new("decay,seed");
    DECAYS
        .iter()
        .zip(1_u8..)
        .for_each(|(decay, loss)| grid.run(&format!("{decay},0"), End::Ok(f64::from(loss), 1.0, 2.0)));
    let (figures, _) = grid.draw(&Request::default());
    assert!(!figures.contains_key("surprise_mean.svg"), "the same everywhere: nothing to see");
    let svg = &figures["loss_before_mean.svg"];
    assert_eq!((data_lines(svg), polygons(svg)), (vec![4], 0));
    assert!(!svg.contains("interval"));
    assert!(grid.draw(&asked("", "surprise_mean", "")).0.contains_key("surprise_mean.svg"), "asked for");
}

#[test]
fn two_parameters_are_lines_or_a_map() {
    let options = Request::default();
    let (figures, _) = grid(&[("decay", DECAYS), ("chunk_size", CHUNK_SIZES)]).draw(&options);
    let svg = &figures["loss_before_mean.svg"];
    assert_eq!(data_lines(svg), [8; 4], "a line a decay");
    assert!(svg.contains(">α = 0.9</text>") && svg.contains("means of 3 runs, dots: the runs"));

    let (figures, _) = grid(&[("learning_rate", RATES), ("chunk_size", CHUNK_SIZES)]).draw(&options);
    let svg = &figures["loss_before_mean.svg"];
    assert_eq!(data_lines(svg), [0; 0]);
    // The paper, the cells and the steps of the bar.
    assert_eq!(svg.matches("<rect").count(), 1 + 80 + 64);
    for text in ["learning rate θ", "chunk size (tokens)", "loss before storing, per token", "0.001"] {
        assert!(svg.contains(&format!(">{text}</text>")), "{text}");
    }
}

#[test]
fn three_parameters_are_panels() {
    let values: [(&str, &[&str]); 3] =
        [("decay", DECAYS), ("momentum", &["0", "0.9"]), ("chunk_size", CHUNK_SIZES)];
    let (figures, _) = grid(&values).draw(&Request::default());
    let svg = &figures["surprise_mean.svg"];
    assert_eq!(data_lines(svg), [8; 4 * 2]);
    assert!(svg.contains(">η = 0</text>") && svg.contains(">η = 0.9</text>"), "a heading a panel");
    assert_eq!(svg.matches(">surprise (gradient norm)</text>").count(), 1, "shared axes");

    let (figures, _) = grid(&values).draw(&asked("decay", "surprise_mean", "momentum"));
    let svg = &figures["surprise_mean.svg"];
    assert_eq!(figures.len(), 1);
    assert_eq!(data_lines(svg), [4; 8 * 2], "a panel a chunk size");
    assert!(svg.contains(">chunk size 256</text>"));

    let four: [(&str, &[&str]); 4] =
        [("decay", DECAYS), ("momentum", DECAYS), ("chunk_size", CHUNK_SIZES), ("init", DECAYS)];
    let (_, notes) = grid(&four).draw(&asked("momentum", "loss_mean", "decay"));
    assert_eq!(
        notes,
        [
            "loss_mean: 20 more panels not drawn; choose other parameters with --x and --hue, or a part with --where"
        ]
    );
}

#[test]
fn words_are_categories_and_what_goes_together_is_one() {
    let mut words = Grid::new("init,data,memory,seed");
    for (init, loss) in [("xavier", 1.0), ("randn", 2.0), ("a<b&c}", 3.0)] {
        for (data, memory) in [("../x/recall.npy", "recall.safetensors"), ("drift.npy", "drift.safetensors")]
        {
            for seed in 0..3 {
                words.run(
                    &format!("{init},{data},{memory},{seed}"),
                    End::Ok(loss + f64::from(seed) / 50.0, 1.0, 1.0),
                );
            }
        }
    }
    let (figures, _) = words.draw(&Request::default());
    let svg = &figures["loss_before_mean.svg"];
    assert_eq!(data_lines(svg), [0; 0], "nothing lies between two words");
    for text in [
        "xavier",
        "a&lt;b&amp;c|",
        "data recall.npy",
        "means of 3 runs, dots: the runs; memory goes with data",
    ] {
        assert!(svg.contains(&format!(">{text}</text>")), "{text}");
    }
}

#[test]
fn what_failed_is_marked_and_never_a_number() {
    let mut grid = Grid::new("chunk_size,seed");
    for (i, size) in CHUNK_SIZES.iter().enumerate() {
        for seed in 0..3 {
            let end = match (i, seed) {
                (1, 0) | (3, _) => End::Diverged,
                (5, 1) => End::Failed,
                (6, 2) => End::Infinite,
                _ => End::Ok(1.0 + i as f64 / 8.0 + f64::from(seed) / 100.0, 1.0, 2.0),
            };
            grid.run(&format!("{size},{seed}"), end);
        }
    }
    let (figures, _) = grid.draw(&Request::default());
    let svg = &figures["loss_before_mean.svg"];
    // Four values of x have three runs, three have two, and each has its mean.
    assert_eq!(svg.matches("<circle").count(), 7 + 4 * 3 + 3 * 2, "no mean where all runs are lost");
    assert_eq!(data_lines(svg), [4], "broken there: three points before, four after");
    assert_eq!(marks(svg), 4 + 1, "four places and the legend's");
    assert!(svg.contains(">failed, stopped, diverged or not finite: 6 of 24 runs</text>"));
    assert!(!svg.contains(">77</text>") && !svg.contains(">80</text>"), "the axis does not reach to 77");

    // In a map too: of those that lost all no cell, a mark on all that lost some.
    let mut map = Grid::new("learning_rate,decay,seed");
    for (i, rate) in RATES.iter().enumerate() {
        for (j, decay) in RATES.iter().enumerate() {
            for seed in 0..2 {
                let end = if i + j > 15 || (i + j == 15 && seed == 1) {
                    End::Diverged
                } else {
                    End::Ok((i + j) as f64 + 1.0, 2.0, 1.0)
                };
                map.run(&format!("{rate},{decay},{seed}"), end);
            }
        }
    }
    let (figures, _) = map.draw(&Request::default());
    let svg = &figures["loss_ratio.svg"];
    assert_eq!(svg.matches("<rect").count(), 1 + (100 - 6) + 64);
    assert_eq!(marks(svg), 6 + 4 + 1);
}

#[test]
fn nothing_to_draw_is_said() {
    let mut seeds = Grid::new("decay,seed");
    (0..3).for_each(|seed| seeds.run(&format!("0.5,{seed}"), End::Ok(1.0, 2.0, 3.0)));
    let (figures, notes) = seeds.draw(&Request::default());
    assert!(figures.is_empty());
    assert_eq!(notes, ["no figures: no parameter but the seed varies"]);
    let (figures, _) = seeds.draw(&asked("seed", "loss_mean", ""));
    assert_eq!(figures.len(), 1, "the seed too where it is asked for");

    let mut lost = Grid::new("decay,seed");
    for decay in DECAYS {
        lost.run(&format!("{decay},0"), End::Diverged);
    }
    let (figures, notes) = lost.draw(&Request::default());
    assert_eq!((figures.len(), &notes[..]), (0, &["no figures: no result is finite".to_owned()][..]));
    let (figures, _) = lost.draw(&asked("", "loss_mean", ""));
    assert!(figures["loss_mean.svg"].contains(">no finite values</text>"));
    assert!(Grid::new("decay,seed").draw(&Request::default()).0.is_empty());
}

#[test]
fn the_first_of_equal_runs_counts() {
    let mut twice = Grid::new("decay,seed");
    for loss in [1.0, 5000.0] {
        DECAYS
            .iter()
            .zip(1_u8..)
            .for_each(|(decay, i)| twice.run(&format!("{decay},0"), End::Ok(loss * f64::from(i), 1.0, 1.0)));
    }
    let svg = &twice.draw(&Request::default()).0["loss_before_mean.svg"];
    assert!(!svg.contains("means of") && svg.contains(">4</text>"), "the later runs are older inputs'");
}

#[test]
fn extreme_values_stay_on_the_sheet() {
    let mut grid = Grid::new("learning_rate,seed");
    for (i, size) in [1e-300, 1.0, 1e300, 1.7e308].into_iter().enumerate() {
        for seed in 0..3_i32 {
            grid.run(&format!("1e{},{seed}", 100 * i), End::Ok(size / f64::from(1 + seed), 1.0, -size));
        }
    }
    let (figures, _) = grid.draw(&Request::default());
    assert!(figures.contains_key("loss_before_mean.svg"));
}

#[test]
fn the_same_bytes_every_time() {
    let values: [(&str, &[&str]); 2] = [("decay", DECAYS), ("chunk_size", CHUNK_SIZES)];
    let draw = || grid(&values).draw(&Request::default()).0;
    assert_eq!(draw(), draw());
}

#[test]
fn rejected() {
    let grid = grid(&[("chunk_size", CHUNK_SIZES), ("decay", DECAYS)]);
    let message = |x, y, hue| grid.try_draw(&asked(x, y, hue)).expect_err("an error");
    let parameters = "the parameters are chunk_size, decay, seed, heads";
    assert_eq!(message("chunk", "", ""), format!("--x: no parameter chunk; {parameters}"));
    assert_eq!(message("", "", "loss_mean"), format!("--hue: no parameter loss_mean; {parameters}"));
    assert_eq!(message("decay", "", "decay"), "--hue: decay is also --x; choose another parameter");
    let metrics = "tokens, loss_mean, loss_before_mean, surprise_mean, tokens_per_s";
    assert_eq!(
        message("", "error", ""),
        format!("--y: no numeric column error; pass a column, or two as a/b, of {metrics}")
    );
    let directory = tempfile::tempdir().expect("a temporary directory");
    let csv = directory.path().join("results.csv");
    let message = || figures(&csv, &Request::default()).expect_err("an error");
    assert_eq!(message(), format!("{}: cannot open", csv.display()));
    std::fs::write(&csv, "run,decay,loss\n").expect("a writable temporary directory");
    assert_eq!(
        message(),
        format!(
            "{}: no figure shows the columns run, decay, loss; pass a metrics.csv, recall.csv, retention.csv, \
             results.csv, scan_bench.csv, spectrum.csv or train.csv that nmem wrote",
            csv.display()
        )
    );
}

/// Medians over runs of which some never became unstable need the number of those that did.
#[test]
fn runs_that_became_unstable_are_counted() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let csv = directory.path().join("results.csv");
    let mut rows = "run,learning_rate,decay,seed,status,first_unstable_chunk\n".to_owned();
    let chunks = [((0.1, 0.0), ["", "", ""]), ((0.1, 0.3), ["", "9", "12"]), ((1.0, 0.0), ["2", "3", "5"])];
    for (i, ((rate, decay), chunks)) in chunks.into_iter().enumerate() {
        for (seed, chunk) in chunks.into_iter().enumerate() {
            writeln!(rows, "{i}{seed},{rate},{decay},{seed},ok,{chunk}").expect("a string takes all");
        }
    }
    std::fs::write(&csv, rows).expect("a writable temporary directory");
    let drawn = figures(&csv, &asked("learning_rate", "first_unstable_chunk", "decay")).expect("a figure");
    let svg = &drawn.figures[0].svg;
    assert!(svg.contains("5 of 9 finished runs became unstable (2 of 3 at α = 0.3, θ = 0.1)"), "{svg}");
}
