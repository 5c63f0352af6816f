//! `nmem plot`, and --figure-format of the commands that draw.

use crate::{Sandbox, Transcript, tokens};

/// A sandbox with a run of two heads in `run/`, and its metrics.csv.
fn with_run() -> Sandbox {
    let sandbox = Sandbox::with_golden("heads");
    let store = "store seq.npy --heads 2 --chunk-size 4 --seed 1 --no-plots";
    sandbox.ok(&format!("{store} --out run"));
    sandbox.ok(&format!("{store} --decay 0.5 --out other"));
    sandbox
}

#[test]
fn beside_the_csv_by_default() {
    let sandbox = with_run();
    let output = sandbox.ok("plot run");
    assert_eq!(output.out, "run/timeline.svg\n");
    for (kind, file) in [("gates", "gates.svg"), ("heads", "heads.svg")] {
        assert_eq!(sandbox.ok(&format!("plot run/metrics.csv --kind {kind}")).out, format!("run/{file}\n"));
    }
    let svg = String::from_utf8(sandbox.bytes("run/timeline.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("width=\"486pt\""));
    let drawn = sandbox.bytes("run/timeline.svg");
    sandbox.ok("plot run");
    assert_eq!(sandbox.bytes("run/timeline.svg"), drawn, "the same bytes every time");
}

#[test]
fn widths_titles_and_targets() {
    let sandbox = with_run();
    let output = sandbox.ok("plot run --venue icml --title Shown --out - --quiet");
    assert!(output.out.contains("width=\"234pt\"") && output.out.contains(">Shown</text>"));
    assert!(sandbox.ok("plot run --venue nature --wide --out -").out.contains("width=\"518.4pt\""));
    let output = sandbox.ok("plot run --width 4 --height 6 --out figures/deep");
    assert_eq!(output.out, "figures/deep/timeline.svg\n");
    let svg = String::from_utf8(sandbox.bytes("figures/deep/timeline.svg")).unwrap();
    assert!(svg.contains("width=\"288pt\" height=\"432pt\""), "{}", &svg[..200]);
    assert_eq!(sandbox.ok("plot run --y surprise --out one.svg").out, "one.svg\n");
    let mono = sandbox.ok("plot run --theme mono --out -").out;
    for colour in
        mono.split('#').skip(1).filter(|rest| rest.as_bytes()[..6].iter().all(u8::is_ascii_hexdigit))
    {
        assert!(colour[..2] == colour[2..4] && colour[..2] == colour[4..6], "#{} is no grey", &colour[..6]);
    }
}

#[test]
fn several_runs_and_any_columns() {
    let sandbox = with_run();
    let svg = sandbox.ok("plot run other --y surprise --smooth 3 --out -").out;
    for text in ["run", "other", "surprise ‖g‖", "tokens"] {
        assert!(svg.contains(&format!(">{text}</text>")), "{text}");
    }
    assert!(svg.contains("moving mean of 3 chunks"));
    let output = sandbox.ok("plot run --x weight_norm --y update_norm,loss --hue head --log=xy");
    assert_eq!(output.out, "run/update_norm-loss-weight_norm.svg\n");
    let svg = String::from_utf8(sandbox.bytes("run/update_norm-loss-weight_norm.svg")).unwrap();
    for text in ["weight norm", "update norm", "loss", "head 0", "head 1"] {
        assert!(svg.contains(&format!(">{text}</text>")), "{text}");
    }
}

#[test]
fn unknown_columns_are_rejected_with_the_existing_ones() {
    let sandbox = with_run();
    sandbox.file("table.csv", "a,b\n1,2\n");
    sandbox.file("empty.csv", "");
    std::fs::create_dir(sandbox.path("nothing")).unwrap();
    let said = Transcript::of_rejected(
        &sandbox,
        &[
            "plot run --y surprize",
            "plot run --x token",
            "plot run --hue heads",
            "plot run --kind sweep",
            "plot run/metrics.csv --kind scan",
            "plot table.csv",
            "plot empty.csv",
            "plot seq.npy",
            "plot nothing",
            "plot absent",
            "plot run --format pdf",
            "plot run --width 0.1",
            "plot run --smooth 0",
        ],
    );
    insta::assert_snapshot!(said);
    let message = sandbox.rejected("plot run --y loss --out a.svg --figure-format png");
    assert!(message.starts_with("--figure-format"), "{message}");
}

/// The run's metrics.csv with one surprise that is not finite.
fn with_gap(sandbox: &Sandbox) {
    let text = String::from_utf8(sandbox.bytes("run/metrics.csv")).unwrap();
    let mut rows: Vec<Vec<String>> =
        text.lines().map(|line| line.split(',').map(str::to_owned).collect()).collect();
    let surprise = rows[0].iter().position(|name| name == "surprise").unwrap();
    "NaN".clone_into(&mut rows[1][surprise]);
    let rows: Vec<_> = rows.iter().map(|row| row.join(",")).collect();
    sandbox.file("metrics.csv", rows.join("\n") + "\n");
}

#[test]
fn what_is_not_finite_is_counted() {
    let sandbox = with_run();
    with_gap(&sandbox);
    let output = sandbox.ok("plot metrics.csv");
    assert_eq!(output.out, "./timeline.svg\n");
    let mut said = Transcript::new();
    said.ran(&sandbox, "plot metrics.csv", &output);
    insta::assert_snapshot!(said);
}

#[cfg(feature = "pdf-png")]
#[test]
fn other_formats_only_where_they_are_asked_for() {
    let sandbox = Sandbox::with_golden("heads");
    sandbox.file("run.toml", "figure_format = [\"svg\", \"pdf\"]\n");
    sandbox.ok("store seq.npy --heads 2 --chunk-size 4 --config run.toml --out run");
    let files = sandbox.names("run/plots");
    let of = |ending: &str| files.iter().filter(|name| name.ends_with(ending)).count();
    assert_eq!((of(".svg"), of(".pdf"), of(".png")), (7, 7, 0), "{files:?}");
    assert!(sandbox.bytes("run/plots/timeline.pdf").starts_with(b"%PDF-"));
    sandbox.ok("plot run --figure-format svg,pdf,png --out figures");
    assert_eq!(sandbox.names("figures"), ["timeline.pdf", "timeline.png", "timeline.svg"]);
    assert_eq!(sandbox.bytes("figures/timeline.svg"), sandbox.bytes("run/plots/timeline.svg"));
    sandbox.ok("scan-bench --batch 2 --steps 3,30 --channels 5 --seconds 0 --runs 1 --threads 1 --figure-format png --out scan");
    assert_eq!(sandbox.names("scan/plots"), ["bandwidth.png", "time.png"]);
    assert_eq!(sandbox.ok("plot scan").out, "scan/time.svg\nscan/bandwidth.svg\n");
    assert!(sandbox.rejected("plot scan --out -").starts_with("--out"));
}

#[test]
fn terminals_get_text_alone() {
    let sandbox = with_run();
    let of_width = |columns: &str, line: &str| {
        let mut command = sandbox.command(line);
        command.env("COLUMNS", columns).env_remove("NO_COLOR");
        Sandbox::finish(command)
    };
    for (columns, most) in [("60", 60), ("100", 100), ("0", 80), ("wide", 80)] {
        let output = of_width(columns, "plot run --terminal");
        assert_eq!(output.code, Some(0), "{}", output.err);
        assert!(!output.out.contains('\u{1b}'), "escape codes in a pipe");
        let widest = output.out.lines().map(|line| line.chars().count()).max();
        assert!(widest.is_some_and(|widest| widest <= most && widest > most - 12), "{columns}: {widest:?}");
        assert!(output.out.contains("surprise") && output.out.contains("tokens"), "{}", output.out);
    }
    with_gap(&sandbox);
    let note = sandbox.ok("plot metrics.csv").err;
    let output = sandbox.ok("plot metrics.csv --terminal");
    assert!(!note.is_empty() && output.err.contains(&note), "{}", output.err);
    assert_eq!(sandbox.ok("plot metrics.csv --terminal --quiet").err, "");
    let said = Transcript::of_rejected(
        &sandbox,
        &["plot run --terminal --out a.svg", "plot run --terminal --x loss"],
    );
    insta::assert_snapshot!(said);
}

#[test]
fn tex_reads_the_csv_from_where_it_lies() {
    let sandbox = with_run();
    // Of one sequence every point is a row.
    sandbox.npy("one.npy", &tokens(&[40, 8], 1));
    sandbox.ok("store one.npy --heads 2 --chunk-size 4 --no-plots --out single");
    let output =
        sandbox.ok("plot single --figure-format pgfplots --venue icml --title 50%_a&b --out figures/deep");
    assert!(output.out.lines().any(|file| file == "figures/deep/timeline.tex"), "{}", output.out);
    let tex = tex_of(&sandbox, "figures/deep/timeline.tex");
    let count = |what: &str| tex.matches(what).count();
    assert_eq!((count("\\begin{groupplot}"), count("\\end{groupplot}"), count("\\nextgroupplot")), (1, 1, 5));
    assert_eq!(count("\\begin{"), count("\\end{"));
    assert!(tex.contains("../../single/metrics.csv") && !tex.contains("\\documentclass"), "{tex}");

    sandbox.ok("plot run other --y surprise --figure-format pgfplots --out figures");
    let tex = tex_of(&sandbox, "figures/surprise.tex");
    assert_eq!(tex.matches("\\nextgroupplot").count(), 1);

    // Names of runs are text, not TeX.
    std::fs::rename(sandbox.path("other"), sandbox.path("a_b#50%&c")).unwrap();
    sandbox.ok("plot run a_b#50%&c --y surprise --figure-format pgfplots --out figures");
    let tex = tex_of(&sandbox, "figures/surprise.tex");
    assert!(tex.contains("a\\_b\\#50\\%\\&c"), "{tex}");
    let said = Transcript::of_rejected(&sandbox, &["plot run --figure-format pgfplots --out a.tex"]);
    insta::assert_snapshot!(said);
}

/// A .tex, after a look at whether everything that it says it reads is there.
fn tex_of(sandbox: &Sandbox, file: &str) -> String {
    let tex = String::from_utf8(sandbox.bytes(file)).unwrap();
    let path = sandbox.path(file);
    let directory = path.parent().unwrap();
    let reads = tex.lines().find(|line| line.starts_with('%') && line.contains(".csv"));
    let words = reads.expect("what it reads").split(' ').map(|word| word.trim_end_matches([',', '.']));
    for name in words.filter(|word| word.contains(".csv")) {
        assert!(directory.join(name).is_file(), "{file}: no {name}");
        assert!(tex.contains(&format!("{{{name}}}")), "{file} does not read {name}");
    }
    tex
}

#[test]
fn commands_that_draw_write_tex_beside_their_results() {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[40, 8], 1));
    let all_of = |directory: &str| {
        let names = sandbox.names(&format!("{directory}/plots"));
        let figures: Vec<_> = names.iter().filter_map(|name| name.strip_suffix(".tex")).collect();
        assert!(!figures.is_empty(), "{directory}: {names:?}");
        figures
            .iter()
            .map(|name| tex_of(&sandbox, &format!("{directory}/plots/{name}.tex")))
            .collect::<String>()
    };
    let line = "store seq.npy --heads 2 --chunk-size 4 --figure-format pgfplots --out deep/run";
    sandbox.ok(line);
    assert!(all_of("deep/run").contains("{../metrics.csv}"));
    // Once more over it: the old directory is replaced, the path is the same.
    sandbox.ok(&format!("{line} --force"));
    assert!(all_of("deep/run").contains("{../metrics.csv}"));
    sandbox.ok("scan-bench --batch 2 --steps 3,30 --channels 5 --seconds 0 --runs 1 --threads 1 --figure-format pgfplots --out scan");
    assert!(all_of("scan").contains("{../scan_bench.csv}"));
    sandbox.file(
        "grid.toml",
        "data = 'seq.npy'\n[fixed]\nheads = 2\n[grid]\nchunk_size = [4, 8]\nseed = [0, 1]\n",
    );
    sandbox.ok("sweep grid.toml --figure-format pgfplots --out sweep");
    assert!(all_of("sweep").contains("chunk"));
}

#[cfg(feature = "pdf-png")]
#[test]
fn sweeps_write_pdf() {
    let sandbox = Sandbox::with_golden("heads");
    sandbox.file(
        "grid.toml",
        "data = 'seq.npy'\n[fixed]\nheads = 2\n[grid]\nchunk_size = [4, 8]\nseed = [0, 1]\n",
    );
    sandbox.ok("sweep grid.toml --figure-format pdf --out sweep");
    let names = sandbox.names("sweep/plots");
    assert!(!names.is_empty() && names.iter().all(|name| name.strip_suffix(".pdf").is_some()), "{names:?}");
    assert!(names.iter().all(|name| sandbox.bytes(&format!("sweep/plots/{name}")).starts_with(b"%PDF-")));
}

#[test]
fn ignored_flags_are_reported() {
    let sandbox = with_run();
    let mut said = Transcript::new();
    let mut plot = |line: &str| {
        let line = format!("plot {line} --out -");
        let output = sandbox.ok(&line);
        said.ran(&sandbox, &line, &output);
        output.err
    };
    plot("run --kind heads --smooth 4 --x loss");
    plot("run --smooth 4 --log=xy");
    plot("run --smooth 4 --y loss");
    assert_eq!(plot("run --smooth 4 --log --quiet"), "");
    // Heads are numbered from 0, chunks too.
    plot("run --y loss,head --x chunk --log=xy");
    let rows = "run,seed,decay,status,gain\nr0,0,0.1,ok,-1\nr1,0,0.2,ok,2\n";
    sandbox.file("results.csv", rows);
    let linear = plot("results.csv --y gain --log");
    insta::assert_snapshot!(said);
    assert!(sandbox.ok("plot results.csv --y gain --log --terminal").err.contains(&linear));
}
