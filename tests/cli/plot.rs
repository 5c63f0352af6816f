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
    for text in ["run", "other", "surprise", "tokens"] {
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
    // The same figure, whose metadata has the command that drew it.
    let svg = |file: &str| String::from_utf8(sandbox.bytes(file)).unwrap();
    let drawn = |file: &str| {
        let svg = svg(file);
        let (before, rest) = svg.split_once("<desc").unwrap();
        before.to_owned() + rest.split_once("</desc>").unwrap().1
    };
    assert!(drawn("figures/timeline.svg") == drawn("run/plots/timeline.svg"));
    assert!(svg("figures/timeline.svg").contains(": nmem plot run --figure-format"));
    assert!(svg("run/plots/timeline.svg").contains(": nmem store</desc>"));
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
    assert!(
        sandbox.ok("plot run --terminal --x loss").out.contains("surprise"),
        "any column against any other"
    );
    assert!(sandbox.ok("plot run --terminal --kind boxes").out.contains("head"));
    let said = Transcript::of_rejected(&sandbox, &["plot run --terminal --out a.svg"]);
    insta::assert_snapshot!(said);
}

#[test]
fn tex_is_whole_and_the_data_lie_beside_it_on_request() {
    let sandbox = with_run();
    let output =
        sandbox.ok("plot run --figure-format pgfplots,csv --venue icml --title 50%_a&b --out figures/deep");
    assert_eq!(output.out, "figures/deep/timeline.tex\nfigures/deep/timeline-data.csv\n");
    let tex = String::from_utf8(sandbox.bytes("figures/deep/timeline.tex")).unwrap();
    let count = |what: &str| tex.matches(what).count();
    assert_eq!((count("\\begin{groupplot}"), count("\\end{groupplot}"), count("\\nextgroupplot")), (1, 1, 5));
    assert_eq!(count("\\begin{"), count("\\end{"));
    assert!(!tex.contains("\\documentclass") && tex.contains("50\\%\\_a\\&b"), "{tex}");
    let reads = tex.lines().filter(|line| !line.starts_with('%') && line.contains(".csv"));
    assert_eq!(reads.count(), 0, "it compiles wherever it is copied to");
    let data = String::from_utf8(sandbox.bytes("figures/deep/timeline-data.csv")).unwrap();
    assert!(data.starts_with("panel,series,mark,x,y,value,low,high,n,stretch\n"), "{data}");

    // Names of runs are text, not TeX.
    std::fs::rename(sandbox.path("other"), sandbox.path("a_b#50%&c")).unwrap();
    sandbox.ok("plot run a_b#50%&c --y surprise --figure-format pgfplots --out figures");
    let tex = String::from_utf8(sandbox.bytes("figures/surprise.tex")).unwrap();
    assert!(tex.contains("a\\_b\\#50\\%\\&c"), "{tex}");
    assert_eq!(sandbox.ok("plot run --y surprise --out a.tex").out, "a.tex\n");
}

#[test]
fn commands_that_draw_write_tex_beside_their_results() {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[40, 8], 1));
    let count = |directory: &str| {
        let names = sandbox.names(&format!("{directory}/plots"));
        assert!(names.iter().all(|name| name.strip_suffix(".tex").is_some()), "{directory}: {names:?}");
        names.len()
    };
    let line = "store seq.npy --heads 2 --chunk-size 4 --figure-format pgfplots --out deep/run";
    sandbox.ok(line);
    assert_eq!(count("deep/run"), 7);
    sandbox.ok(&format!("{line} --force"));
    sandbox.ok("scan-bench --batch 2 --steps 3,30 --channels 5 --seconds 0 --runs 1 --threads 1 --figure-format pgfplots --out scan");
    assert_eq!(count("scan"), 2);
    sandbox.file(
        "grid.toml",
        "data = 'seq.npy'\n[fixed]\nheads = 2\n[grid]\nchunk_size = [4, 8]\nseed = [0, 1]\n",
    );
    sandbox.ok("sweep grid.toml --figure-format pgfplots --out sweep");
    assert!(count("sweep") > 2);
}

#[test]
fn a_file_of_figures() {
    let sandbox = with_run();
    let file = "venue = 'icml'\ny = ['surprise']\n[[figure]]\npaths = ['run', 'other']\nsmooth = 3\nout = 'paper/fig1.svg'\n\
                [[figure]]\npaths = ['run']\ny = ['loss_ratio', 'decay']\nno_letters = true\nylim = '0:2'\nout = 'paper'\n";
    std::fs::create_dir(sandbox.path("tex")).unwrap();
    std::fs::create_dir(sandbox.path("tex/paper")).unwrap();
    for run in ["run", "other"] {
        std::fs::rename(sandbox.path(run), sandbox.path("tex").join(run)).unwrap();
    }
    sandbox.file("tex/figures.toml", file);
    assert_eq!(sandbox.ok("plot tex/figures.toml").out, "tex/paper/fig1.svg\ntex/paper/timeline.svg\n");
    let svg = String::from_utf8(sandbox.bytes("tex/paper/fig1.svg")).unwrap();
    assert!(svg.contains("width=\"234pt\"") && svg.contains("moving mean of 3 chunks"));
    assert!(svg.contains("figure 1 (fig1.svg)</desc>"), "its metadata");
    assert_eq!(sandbox.ok("plot tex/figures.toml -q").out, "");

    let cases = [
        ("none.toml", "y = ['surprise']\n"),
        ("key.toml", "[[figure]]\npaths = ['tex/run']\ncolour = 'red'\n"),
        ("value.toml", "[[figure]]\npaths = ['tex/run']\nvenue = 'nips'\n"),
        ("syntax.toml", "[[figure]]\npaths = [\n"),
        ("table.toml", "[[figure]]\npaths = ['tex/run']\nx = {a = 1}\n"),
        ("nothing.toml", "[[figure]]\ny = 'surprise'\n"),
        ("nested.toml", "[[figure]]\npaths = ['none.toml']\n"),
    ];
    for (name, text) in &cases {
        sandbox.file(name, text);
    }
    let lines: Vec<_> = cases.iter().map(|(name, _)| format!("plot {name}")).collect();
    let mut lines: Vec<_> = lines.iter().map(String::as_str).collect();
    lines.push("plot tex/figures.toml --venue acl");
    insta::assert_snapshot!(Transcript::of_rejected(&sandbox, &lines));
}

#[test]
fn labels_of_the_run_are_drawn() {
    let sandbox = with_run();
    sandbox.file("labels.csv", "position,segment\n0,a\n8,b\n");
    sandbox.ok("store seq.npy --heads 2 --chunk-size 4 --labels labels.csv --no-plots --out labelled");
    assert!(sandbox.ok("plot labelled --out -").out.contains("segment change"));
    std::fs::remove_file(sandbox.path("labels.csv")).unwrap();
    let output = sandbox.ok("plot labelled --out -");
    assert!(!output.out.contains("segment change") && output.err.contains("labels.csv"), "{}", output.err);
}

#[test]
fn runs_of_a_sweep_are_named_by_their_settings() {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[40, 8], 1));
    sandbox.file(
        "grid.toml",
        "data = 'seq.npy'\n[grid]\ndecay = [0.1, 0.5]\nseed = [0, 1, 2]\n[fixed]\nchunk_size = 4\n",
    );
    sandbox.ok("sweep grid.toml --out sweep -q");
    let runs = sandbox.names("sweep/runs").iter().map(|run| format!("sweep/runs/{run}")).collect::<Vec<_>>();
    let svg = sandbox.ok(&format!("plot {} --y surprise --out -", runs.join(" "))).out;
    assert!(svg.contains(">α = 0.1, seed 2</text>"), "{svg}");
    // The field's figure: means over seeds with their band.
    let svg = sandbox.ok("plot sweep --kind curves --y surprise --out -").out;
    assert!(
        svg.contains(">α = 0.5</text>") && svg.contains("geometric means of 3 runs")
            || svg.contains("means of 3 runs, bands"),
        "{svg}"
    );
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

#[test]
fn an_input_is_never_replaced() {
    let sandbox = with_run();
    sandbox.file("labels.csv", "position,segment\n0,a\n8,b\n");
    // The name of the table of a figure.
    std::fs::copy(sandbox.path("run/metrics.csv"), sandbox.path("surprise-data.csv")).unwrap();
    let lines = [
        "plot run/metrics.csv --y surprise --out run/metrics.csv",
        "plot run other --y surprise --out other/../other/metrics.csv",
        "plot run --y surprise --labels labels.csv --out labels.csv",
        "plot surprise-data.csv --y surprise --figure-format csv",
    ];
    insta::assert_snapshot!(Transcript::of_rejected(&sandbox, &lines), @"
    $ nmem plot run/metrics.csv --y surprise --out run/metrics.csv
    2 error: --out: run/metrics.csv is an input of the figure; choose another name

    $ nmem plot run other --y surprise --out other/../other/metrics.csv
    2 error: --out: other/../other/metrics.csv is an input of the figure; choose another name

    $ nmem plot run --y surprise --labels labels.csv --out labels.csv
    2 error: --out: labels.csv is an input of the figure; choose another name

    $ nmem plot surprise-data.csv --y surprise --figure-format csv
    2 error: --out: ./surprise-data.csv is an input of the figure; choose another name
    ");
    assert_eq!(sandbox.ok("plot run --y surprise --out table.csv").out, "table.csv\n");
    assert_eq!(sandbox.ok("plot run --y surprise --out table.csv").out, "table.csv\n", "its own table");
}

#[test]
fn a_single_file_without_a_figure_says_why() {
    let sandbox = Sandbox::new();
    sandbox.file("results.csv", "run,decay,seed,status,loss_mean\n");
    sandbox.file("one.csv", "run,decay,seed,status,loss_mean\na,0,0,ok,1\n");
    let lines = [
        "plot results.csv --out a.svg -q",
        "plot one.csv --out - -q",
        "plot one.csv --where decay=1 --out -",
    ];
    insta::assert_snapshot!(Transcript::of_rejected(&sandbox, &lines), @"
    $ nmem plot results.csv --out a.svg -q
    2 error: --out: no figure for a.svg: results.csv has no rows

    $ nmem plot one.csv --out - -q
    2 error: --out: no figure for -: no parameter but the seed varies

    $ nmem plot one.csv --where decay=1 --out -
    2 error: --where: `decay=1` holds for no row; choose another condition
    ");
}

#[test]
fn a_quiet_file_of_figures_may_be_quiet_twice() {
    let sandbox = with_run();
    sandbox
        .file("figures.toml", "quiet = true\n[[figure]]\npaths = ['run']\ny = ['surprise']\nout = 'a.svg'\n");
    assert_eq!(sandbox.ok("plot figures.toml").out, "");
    assert_eq!(sandbox.ok("plot figures.toml -q").out, "");
}

#[test]
fn figures_of_a_file_do_not_replace_each_other() {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[64, 4], 4));
    sandbox.ok("store seq.npy --chunk-size 4 --no-plots -q --out run");
    let figure = |out: &str| format!("[[figure]]\npaths = [\"run\"]\ny = [\"surprise\"]\nout = \"{out}\"\n");
    sandbox.file("same.toml", &(figure("figures") + &figure("figures")));
    let output = sandbox.run("plot same.toml -q");
    assert_eq!(output.code, Some(2), "{}", output.err);
    assert!(output.err.contains("an earlier figure has written figures/surprise.svg"), "{}", output.err);
    sandbox.file("other.toml", &(figure("figures") + &figure("figures/later.svg")));
    sandbox.ok("plot other.toml -q");
    assert!(sandbox.path("figures/later.svg").exists());
}
