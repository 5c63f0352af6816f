//! Figures as TeX, compiled by pdfTeX. Each kind goes into a document with only the preamble that its comment requires, and
//! has the requested width. Without pdflatex or pgfplots, the tests are listed as ignored, with the reason on stderr; with
//! `NMEM_REQUIRE_LATEX=1` they fail instead.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};

/// Name, arguments of `nmem plot`, and the function that writes its data into a directory.
type Case = (&'static str, &'static str, fn(&Path));

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = missing();
    let required = std::env::var_os("NMEM_REQUIRE_LATEX").is_some_and(|value| value == "1");
    if let (Some(reason), false) = (&missing, arguments.list) {
        eprintln!("tests with LaTeX: {}: {reason}", if required { "failing" } else { "skipped" });
    }
    let skipped = missing.is_some() && !required;
    let cases: [Case; 20] = [
        ("timeline", "a --labels labels.csv", runs),
        ("timeline_with_gaps", "b", runs),
        ("gates_without_colour", "a --kind gates --theme mono", runs),
        ("heads", "a --kind heads", runs),
        ("two_runs", "a b --y surprise", runs),
        ("retention", "a/retention.csv", retention),
        ("retention_of_a_sweep", "retention.csv", lags),
        ("sweep_with_bands", "results.csv --x decay --hue momentum", |directory| results(directory, 2)),
        ("sweep_with_bars", "results.csv --x decay --hue momentum --theme mono", |directory| {
            results(directory, 5);
        }),
        ("map", "results.csv --kind map --x decay --hue momentum", |directory| results(directory, 9)),
        ("scan", "scan_bench.csv", scan),
        ("speedup", "scan_bench.csv --kind speedup --baseline algorithm=tree", scan),
        ("columns", "a --x loss --y surprise --title Any_columns", runs),
        ("boxes", "a --kind boxes --y surprise,decay --legend right", runs),
        ("lags", "a/retention.csv --kind lags", retention),
        ("recall", "recall.csv --theme mono", recall),
        ("spectrum", "spectrum.csv", spectrum),
        ("ablation", "results.csv --kind ablation --baseline decay=0 --hue momentum", |directory| {
            results(directory, 2);
        }),
        ("pareto", "results.csv --x decay_mean --y loss_mean --legend inside", |directory| {
            results(directory, 3);
        }),
        (
            "wide_intervals_on_a_log_axis",
            "results.csv --x decay --hue momentum --log --interval sd --center mean",
            |directory| {
                results(directory, 2);
            },
        ),
    ];
    let trials = cases.map(|(name, line, data)| {
        let trial = Trial::test(name, move || {
            compiles(line, data);
            Ok(())
        });
        trial.with_ignored_flag(skipped)
    });
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}

/// Returns the reason why nothing can be compiled here.
fn missing() -> Option<String> {
    match Command::new("kpsewhich").arg("pgfplots.sty").output() {
        Ok(output) if output.status.success() => {}
        Ok(_) => return Some("no pgfplots.sty (Debian: texlive-pictures)".to_owned()),
        Err(error) => return Some(format!("kpsewhich: {error}")),
    }
    Command::new("pdflatex").arg("-version").output().err().map(|error| format!("pdflatex: {error}"))
}

/// Draws and compiles in the document's directory; the figures are in another directory.
fn compiles(line: &str, data: fn(&Path)) {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    data(directory);
    let drawn = Command::new(env!("CARGO_BIN_EXE_nmem"))
        .arg("plot")
        .args(line.split(' '))
        .args(["--figure-format", "pgfplots", "--venue", "icml", "--out", "figures"])
        .current_dir(directory)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&drawn.stderr);
    assert!(drawn.status.success(), "nmem plot {line}: {said}");
    let files = String::from_utf8(drawn.stdout).unwrap();
    let figures: Vec<_> = files
        .lines()
        .filter(|file| Path::new(file).extension().is_some_and(|ending| ending == "tex"))
        .collect();
    assert!(!figures.is_empty(), "{files}");
    for figure in figures {
        let tex = std::fs::read_to_string(directory.join(figure)).unwrap();
        assert!(!tex.contains("\\documentclass") && !tex.contains("NaN"), "{tex}");
        let document = format!(
            "\\documentclass{{article}}\n\\usepackage{{pgfplots}}\n\\pgfplotsset{{compat=1.16}}\n\
             \\usepgfplotslibrary{{groupplots}}\n\\begin{{document}}\n\\setbox0=\\hbox{{\\input{{{figure}}}}}\n\
             \\typeout{{width \\the\\wd0}}\n\\noindent\\box0\n\\end{{document}}\n"
        );
        std::fs::write(directory.join("paper.tex"), document).unwrap();
        let compiled = Command::new("pdflatex")
            .args(["-interaction=nonstopmode", "-halt-on-error", "paper.tex"])
            .current_dir(directory)
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&compiled.stdout);
        assert!(compiled.status.success(), "{figure}: {log}\n{tex}");
        assert!(!log.contains("Missing character"), "{figure}: {log}");
        let width = log.lines().find_map(|line| line.strip_prefix("width ")?.strip_suffix("pt"));
        let width: f64 = width.unwrap_or_else(|| panic!("{log}")).parse().unwrap();
        assert!((width - 3.25 * 72.27).abs() < 0.1, "{figure}: {width} pt");
    }
}

/// Two runs of two heads, the second one with values that cannot be drawn.
fn runs(directory: &Path) {
    let header = "sequence,chunk,head,start,end,loss,loss_before,surprise,learning_rate,momentum,decay\n";
    for (name, bad) in [("a", false), ("b", true)] {
        let mut rows = header.to_owned();
        for (chunk, head) in (0..30).flat_map(|chunk| [(chunk, 0), (chunk, 1)]) {
            let surprise = match chunk {
                7 | 9 if bad => "NaN".to_owned(),
                20 if bad => "0".to_owned(),
                _ => (1.0 + f64::from((chunk * 7 + head * 3) % 11)).to_string(),
            };
            let (start, end) = (chunk * 4, chunk * 4 + 4);
            writeln!(rows, "0,{chunk},{head},{start},{end},2,1.5,{surprise},0.0{},0.5,0.9", head + 1)
                .unwrap();
        }
        std::fs::create_dir(directory.join(name)).unwrap();
        std::fs::write(directory.join(name).join("metrics.csv"), rows).unwrap();
    }
    let mut labels = "position,segment,repeat\n".to_owned();
    for i in 0..120 {
        writeln!(labels, "{i},{},{}", i / 40, i32::from(i > 90)).unwrap();
    }
    std::fs::write(directory.join("labels.csv"), labels).unwrap();
}

fn retention(directory: &Path) {
    let mut rows = "sequence,chunk,head,after,loss,loss_at_w\n".to_owned();
    for (after, chunk) in (0..12).flat_map(|after| (0..=after).map(move |chunk| (after, chunk))) {
        let loss = if (after, chunk) == (9, 3) { f64::NAN } else { 0.5 + 0.1 * f64::from(after - chunk) };
        writeln!(rows, "0,{chunk},0,{after},{loss},1").unwrap();
    }
    std::fs::create_dir(directory.join("a")).unwrap();
    std::fs::write(directory.join("a/retention.csv"), rows).unwrap();
}

fn spectrum(directory: &Path) {
    let mut rows = "sequence,chunk,head,weight,index,singular_value,stable_rank,effective_rank\n".to_owned();
    for (chunk, index) in (0..12).flat_map(|chunk| (0..8).map(move |index| (chunk, index))) {
        let value = if index < chunk { 0.5_f64.powi(index) } else { 0.0 };
        let ranks = if index == 0 { "1.2,2.1" } else { "," };
        writeln!(rows, "0,{chunk},0,{},{index},{value},{ranks}", chunk % 2).unwrap();
    }
    std::fs::write(directory.join("spectrum.csv"), rows).unwrap();
}

fn recall(directory: &Path) {
    let mut rows =
        "sequence,token,mean_square,mean_square_zero,cosine,target,answer,rank,in_set_rank,updated,stale\n"
            .to_owned();
    for (sequence, token) in (0..6).flat_map(|sequence| (0..40).map(move |token| (sequence, token))) {
        let wrong = i32::from((sequence + token) % 3 == 0);
        let groups = if token % 2 == 0 { format!("1,{wrong}") } else { "0,".to_owned() };
        writeln!(rows, "{sequence},{token},0.{token},0.5,0.5,4,4,{},,{groups}", 1 + 2 * wrong).unwrap();
    }
    std::fs::write(directory.join("recall.csv"), rows).unwrap();
}

fn lags(directory: &Path) {
    let mut rows = "run,decay,seed,lag,status,loss_ratio\n".to_owned();
    for (i, (decay, seed)) in [(0.0, 1), (0.0, 2), (0.1, 1), (0.1, 2)].into_iter().enumerate() {
        for lag in 0..6 {
            writeln!(rows, "r{i},{decay},{seed},{lag},ok,{}", 0.5 + decay + 0.01 * f64::from(lag * seed))
                .unwrap();
        }
    }
    std::fs::write(directory.join("retention.csv"), rows).unwrap();
}

/// Writes results with names that need escaping in TeX, a lost run, and `values` values of momentum.
fn results(directory: &Path, values: i32) {
    let mut rows = "run,momentum,decay,_50%_of #1 & {x}^\\y~$,seed,status,loss_mean,decay_mean\n".to_owned();
    let mut count = 0;
    for (i, j) in (0..values).flat_map(|i| (0..4).map(move |j| (i, j))) {
        for (note, seed) in [("a_b%", 1), ("a_b%", 2), ("\\end", 1), ("\\end", 2)] {
            let status = if (i, j) == (1, 2) { "diverged" } else { "ok" };
            let loss = 1.0 + f64::from(i) + 0.1 * f64::from(j * seed);
            count += 1;
            writeln!(
                rows,
                "r{count},{},{},{note},{seed},{status},{loss},{}",
                f64::from(i) / 10.0,
                f64::from(j) / 10.0,
                f64::from(i + j)
            )
            .unwrap();
        }
    }
    std::fs::write(directory.join("results.csv"), rows).unwrap();
}

fn scan(directory: &Path) {
    let mut rows =
        "algorithm,device,dtype,threads,batch,steps,channels,gate,layout,median_ms,gb_per_s,copy_gb_per_s\n"
            .to_owned();
    for (algorithm, device, threads, layout) in [
        ("time", "cpu", 2, "steps-channels"),
        ("tree", "cpu", 2, "steps-channels"),
        ("time", "cpu", 2, "channels-steps"),
        ("time", "cuda", 0, "channels-steps"),
        ("time", "cuda:1", 0, "channels-steps"),
    ] {
        for steps in [128, 256, 512] {
            let time = f64::from(steps) / if algorithm == "time" { 1e3 } else { 5e2 };
            let speed = 1.0 / time;
            writeln!(rows, "{algorithm},{device},f32,{threads},8,{steps},64,step,{layout},{time},{speed},20")
                .unwrap();
        }
    }
    std::fs::write(directory.join("scan_bench.csv"), rows).unwrap();
}
