//! Reproduces a published study of recall, depth and chunk size, and repeats it with fresh seeds: see README.md beside this
//! file.

mod figure;
mod study;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use statrs::statistics::Statistics;
use study::model::Derivative;
use study::task::Splits;
use study::training::{Run, initial};

/// Train the models of the study, write results.csv, and print means over seeds beside the published ones
#[derive(Parser)]
struct Args {
    /// Directory for the results
    #[arg(long, default_value = "results/recall-depth")]
    out: PathBuf,
    /// First and last seed, of the initial parameters and of the training batches
    #[arg(long, value_parser = seeds, default_value = "10-19", value_name = "FIRST-LAST")]
    seeds: RangeInclusive<u32>,
    /// Chunk sizes, which divide the 8 writes of an episode
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8", value_parser = chunk)]
    chunks: Vec<usize>,
    /// Numbers of factors of the memory, 1 or 2
    #[arg(long, value_delimiter = ',', default_value = "1,2", value_parser = depth)]
    depths: Vec<usize>,
    /// Train with the true derivative only, or also with the one that the study's code computed
    #[arg(long)]
    released: bool,
    /// Cross every seed of the initial parameters with every seed of the batches
    #[arg(long)]
    cross: bool,
    /// Train only, for timing
    #[arg(long)]
    time: bool,
}

/// Largest seed. The study adds 10,000 to it for the seeds of batches, and PyTorch's generator takes 32 bits.
const MAX_SEED: u32 = u32::MAX - 10_000;

fn seeds(text: &str) -> Result<RangeInclusive<u32>, String> {
    let (first, last) = text.split_once('-').ok_or("use FIRST-LAST, as 10-19")?;
    let number = |text: &str| text.parse::<u32>().map_err(|error| error.to_string());
    let seeds = number(first)?..=number(last)?;
    if seeds.is_empty() || *seeds.end() > MAX_SEED {
        return Err(format!("use FIRST ≤ LAST ≤ {MAX_SEED}"));
    }
    Ok(seeds)
}

fn chunk(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|chunk| [1, 2, 4, 8].contains(chunk)).ok_or("use 1, 2, 4 or 8".to_owned())
}

fn depth(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|depth| [1, 2].contains(depth)).ok_or("use 1 or 2".to_owned())
}

/// A row of results.csv.
#[derive(Clone, Debug, Serialize)]
struct Row {
    chunk: usize,
    depth: usize,
    derivative: &'static str,
    seed: u32,
    stream: u32,
    test_cross_entropy: f64,
    test_accuracy: f64,
    no_write_accuracy: f64,
    validation_cross_entropy: f64,
    step_1_loss: f64,
    step_1_gradient_norm: f64,
}

impl Row {
    /// Returns what the rows of a group have in common.
    fn kind(&self) -> (usize, &'static str, usize) {
        (self.depth, self.derivative, self.chunk)
    }
}

/// A row of published.csv: the study's own result.
#[derive(Deserialize)]
struct Published {
    chunk: usize,
    depth: usize,
    derivative: String,
    seed: u32,
    test_cross_entropy: f64,
}

/// Cross-entropy on the validation split below which a model has solved the task.
const SOLVED: f64 = 0.1;

fn name(derivative: Derivative) -> &'static str {
    match derivative {
        Derivative::Complete => "complete",
        Derivative::Released => "released",
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let derivatives = [Derivative::Complete, Derivative::Released];
    let derivatives = &derivatives[..if args.released { 2 } else { 1 }];
    let mut runs = Vec::new();
    for &depth in &args.depths {
        for &derivative in derivatives.iter().filter(|&&of| depth > 1 || of == Derivative::Complete) {
            for &chunk in &args.chunks {
                for seed in args.seeds.clone() {
                    let streams = if args.cross { args.seeds.clone() } else { seed..=seed };
                    runs.extend(streams.map(|stream| Run { depth, chunk, derivative, seed, stream }));
                }
            }
        }
    }
    let splits = Splits::new();
    let begin = Instant::now();
    if args.time {
        runs.par_iter().for_each(|run| {
            run.train::<f32>(&splits, &initial(run.model().layout, run.seed), false);
        });
        println!("{} models in {:.2} s", runs.len(), begin.elapsed().as_secs_f64());
        return Ok(());
    }
    let rows: Vec<Row> = runs.par_iter().map(|run| measure(run, &splits)).collect();
    eprintln!("{} models in {:.2} s", runs.len(), begin.elapsed().as_secs_f64());
    std::fs::create_dir_all(&args.out)?;
    let mut file = csv::Writer::from_path(args.out.join("results.csv"))?;
    rows.iter().try_for_each(|row| file.serialize(row))?;
    file.flush()?;
    if args.cross {
        crossing(&rows, &args.seeds);
    } else {
        figure::draw(&args.out.join("recall-depth.svg"), &rows)?;
        table(&rows, &published()?);
    }
    Ok(())
}

fn measure(run: &Run, splits: &Splits) -> Row {
    let trained = run.train::<f32>(splits, &initial(run.model().layout, run.seed), true);
    let [test, no_write] = run.test(splits, &trained.parameters);
    let (_, validation) = trained.validation.last().expect("an evaluation after the last step");
    Row {
        chunk: run.chunk,
        depth: run.depth,
        derivative: name(run.derivative),
        seed: run.seed,
        stream: run.stream,
        test_cross_entropy: test.cross_entropy,
        test_accuracy: test.accuracy,
        no_write_accuracy: no_write.accuracy,
        validation_cross_entropy: validation.cross_entropy,
        step_1_loss: trained.steps[0][0],
        step_1_gradient_norm: trained.steps[0][1],
    }
}

fn published() -> anyhow::Result<Vec<Published>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments/recall-depth/published.csv");
    Ok(csv::Reader::from_path(path)?.deserialize().collect::<Result<_, _>>()?)
}

/// Prints a row for each chunk size, depth and derivative, with the published mean of the same seeds.
fn table(rows: &[Row], published: &[Published]) {
    println!(
        "depth  derivative  chunk   models  test cross-entropy (sd)   published    solved            accuracy  no write"
    );
    for of in rows.chunk_by(|a, b| a.kind() == b.kind()) {
        let (depth, derivative, chunk) = of[0].kind();
        let mean = |value: fn(&Row) -> f64| of.iter().map(value).mean();
        let deviation = of.iter().map(|row| row.test_cross_entropy).std_dev();
        let known: Option<Vec<f64>> = of
            .iter()
            .map(|row| {
                published.iter().find(|of| {
                    (of.depth, of.derivative.as_str(), of.chunk, of.seed)
                        == (depth, derivative, chunk, row.seed)
                })
            })
            .map(|of| of.map(|of| of.test_cross_entropy))
            .collect();
        let known = known.map_or_else(|| "-".to_owned(), |known| format!("{:.6}", known.mean()));
        let solved = of.iter().filter(|row| row.validation_cross_entropy < SOLVED).count();
        let [low, high] = wilson(solved, of.len());
        println!(
            "{depth:>5}  {derivative:<10}  {chunk:>5}  {:>7}  {:.6} ({:.5})       {known:>9}    {solved:>3} [{:.0}, {:.0}] %    {:>7.2} %  {:.2} %",
            of.len(),
            mean(|row| row.test_cross_entropy),
            deviation,
            100.0 * low,
            100.0 * high,
            100.0 * mean(|row| row.test_accuracy),
            100.0 * mean(|row| row.no_write_accuracy),
        );
    }
}

/// Returns the 95 % interval of Wilson for a share.
fn wilson(hits: usize, of: usize) -> [f64; 2] {
    let (n, z) = (of as f64, 1.959_964);
    let share = hits as f64 / n;
    let middle = share + z * z / (2.0 * n);
    let half = z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    [-1.0, 1.0].map(|side| ((middle + side * half) / (1.0 + z * z / n)).clamp(0.0, 1.0))
}

/// Prints the shares of the sum of squares that initial parameters, batches and their interaction have, and how often each
/// initialisation solves the task.
fn crossing(rows: &[Row], seeds: &RangeInclusive<u32>) {
    for of in rows.chunk_by(|a, b| a.kind() == b.kind()) {
        let (depth, derivative, chunk) = of[0].kind();
        let loss = |row: &&Row| row.test_cross_entropy;
        let all = of.iter().map(|row| loss(&row)).mean();
        let squares = |by: fn(&Row) -> u32| -> f64 {
            let of_seed = |seed: u32| {
                let group: Vec<_> = of.iter().filter(|row| by(row) == seed).map(|row| loss(&row)).collect();
                group.len() as f64 * ((&group).mean() - all).powi(2)
            };
            seeds.clone().map(of_seed).sum()
        };
        let total: f64 = of.iter().map(|row| (loss(&row) - all).powi(2)).sum();
        let [start, stream] = [squares(|row| row.seed), squares(|row| row.stream)].map(|part| part / total);
        let solved = |row: &&Row| row.validation_cross_entropy < SOLVED;
        let counts: Vec<_> = seeds
            .clone()
            .map(|seed| of.iter().filter(|row| row.seed == seed && solved(row)).count())
            .collect();
        println!(
            "depth {depth}, {derivative}, chunk {chunk}: initialisation {:.2} %, batches {:.2} %, interaction {:.2} %; mean {all:.5}; {} of {} solved, by initialisation {counts:?}",
            100.0 * start,
            100.0 * stream,
            100.0 * (1.0 - start - stream),
            counts.iter().sum::<usize>(),
            of.len(),
        );
    }
}
