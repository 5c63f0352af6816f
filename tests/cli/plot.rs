//! `nmem plot`, and --figure-format of the commands that draw.

use crate::Desk;

/// A desk with a run of two heads in `run/`, and its metrics.csv.
fn with_run() -> Desk {
    let desk = Desk::with_golden("heads");
    let store = "store seq.npy --heads 2 --chunk-size 4 --seed 1 --no-plots";
    desk.ok(&format!("{store} --out run"));
    desk.ok(&format!("{store} --decay 0.5 --out other"));
    desk
}

#[test]
fn beside_the_csv_by_default() {
    let desk = with_run();
    let ran = desk.ok("plot run");
    assert_eq!(ran.out, "run/timeline.svg\n");
    for (kind, file) in [("gates", "gates.svg"), ("heads", "heads.svg")] {
        assert_eq!(desk.ok(&format!("plot run/metrics.csv --kind {kind}")).out, format!("run/{file}\n"));
    }
    let svg = String::from_utf8(desk.bytes("run/timeline.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("width=\"486pt\""));
    let drawn = desk.bytes("run/timeline.svg");
    desk.ok("plot run");
    assert_eq!(desk.bytes("run/timeline.svg"), drawn, "the same bytes every time");
}

#[test]
fn widths_titles_and_targets() {
    let desk = with_run();
    let ran = desk.ok("plot run --venue icml --title Shown --out - --quiet");
    assert!(ran.out.contains("width=\"234pt\"") && ran.out.contains(">Shown</text>"));
    assert!(desk.ok("plot run --venue nature --wide --out -").out.contains("width=\"518.4pt\""));
    let ran = desk.ok("plot run --width 4 --height 6 --out figures/deep");
    assert_eq!(ran.out, "figures/deep/timeline.svg\n");
    let svg = String::from_utf8(desk.bytes("figures/deep/timeline.svg")).unwrap();
    assert!(svg.contains("width=\"288pt\" height=\"432pt\""), "{}", &svg[..200]);
    assert_eq!(desk.ok("plot run --y surprise --out one.svg").out, "one.svg\n");
    let mono = desk.ok("plot run --theme mono --out -").out;
    for colour in
        mono.split('#').skip(1).filter(|rest| rest.as_bytes()[..6].iter().all(u8::is_ascii_hexdigit))
    {
        assert!(colour[..2] == colour[2..4] && colour[..2] == colour[4..6], "#{} is no grey", &colour[..6]);
    }
}

#[test]
fn several_runs_and_any_columns() {
    let desk = with_run();
    let svg = desk.ok("plot run other --y surprise --smooth 3 --out -").out;
    for text in ["run", "other", "surprise ‖g‖", "tokens"] {
        assert!(svg.contains(&format!(">{text}</text>")), "{text}");
    }
    assert!(svg.contains("moving mean of 3 chunks"));
    let ran = desk.ok("plot run --x weight_norm --y update_norm,loss --hue head --log=xy");
    assert_eq!(ran.out, "run/update_norm-loss-weight_norm.svg\n");
    let svg = String::from_utf8(desk.bytes("run/update_norm-loss-weight_norm.svg")).unwrap();
    for text in ["weight norm", "update norm", "loss", "head 0", "head 1"] {
        assert!(svg.contains(&format!(">{text}</text>")), "{text}");
    }
}

#[test]
fn unknown_columns_are_refused_with_those_there_are() {
    let desk = with_run();
    let there = "one of the columns sequence, chunk, head, start, end, loss, ";
    for (flags, flag, name) in [
        ("--y surprize", "--y", "surprize"),
        ("--x token", "--x", "token"),
        ("--hue heads", "--hue", "heads"),
    ] {
        let message = desk.refused(&format!("plot run {flags}"));
        assert!(message.starts_with(&format!("{flag}: expected {there}")), "{message}");
        assert!(message.ends_with(&format!("got {name}")), "{message}");
    }
    let message = desk.refused("plot run --kind sweep");
    assert_eq!(message, "run: expected a folder with results.csv, got none of them");
    let message = desk.refused("plot run/metrics.csv --kind scan");
    assert_eq!(message, "run/metrics.csv: expected a scan_bench.csv for --kind, got a metrics.csv");
    desk.file("table.csv", "a,b\n1,2\n");
    let message = desk.refused("plot table.csv");
    assert!(message.ends_with("got the columns a, b"), "{message}");
    assert!(desk.refused("plot absent").contains("absent: cannot open"));
    assert!(desk.refused("plot run --width 0.1").contains("expected inches, from 2 to 60"));
    assert!(desk.refused("plot run --smooth 0").starts_with("--smooth: expected at least 1"));
    assert!(desk.refused("plot run --y loss --out a.svg --figure-format png").starts_with("--figure-format"));
}

#[test]
fn what_is_not_finite_is_counted() {
    let desk = with_run();
    let text = String::from_utf8(desk.bytes("run/metrics.csv")).unwrap();
    let mut rows: Vec<Vec<String>> =
        text.lines().map(|line| line.split(',').map(str::to_owned).collect()).collect();
    let surprise = rows[0].iter().position(|name| name == "surprise").unwrap();
    rows[1][surprise] = "NaN".to_owned();
    let rows: Vec<_> = rows.iter().map(|row| row.join(",")).collect();
    desk.file("metrics.csv", rows.join("\n") + "\n");
    let ran = desk.ok("plot metrics.csv");
    assert_eq!(ran.err, "note: surprise: values left out of the figure: 1 not finite\n");
    assert_eq!(ran.out, "./timeline.svg\n");
}

#[cfg(feature = "pdf-png")]
#[test]
fn other_formats_only_where_they_are_asked_for() {
    let desk = Desk::with_golden("heads");
    desk.file("run.toml", "figure_format = [\"svg\", \"pdf\"]\n");
    desk.ok("store seq.npy --heads 2 --chunk-size 4 --config run.toml --out run");
    let files = desk.names("run/plots");
    let of = |ending: &str| files.iter().filter(|name| name.ends_with(ending)).count();
    assert_eq!((of(".svg"), of(".pdf"), of(".png")), (7, 7, 0), "{files:?}");
    assert!(desk.bytes("run/plots/timeline.pdf").starts_with(b"%PDF-"));
    desk.ok("plot run --figure-format svg,pdf,png --out figures");
    assert_eq!(desk.names("figures"), ["timeline.pdf", "timeline.png", "timeline.svg"]);
    assert_eq!(desk.bytes("figures/timeline.svg"), desk.bytes("run/plots/timeline.svg"));
    desk.ok("scan-bench --batch 2 --steps 3,30 --channels 5 --seconds 0 --runs 1 --threads 1 --figure-format png --out scan");
    assert_eq!(desk.names("scan/plots"), ["bandwidth.png", "time.png"]);
    assert_eq!(desk.ok("plot scan").out, "scan/time.svg\nscan/bandwidth.svg\n");
    assert!(desk.refused("plot scan --out -").starts_with("--out: expected a folder, or --y or --kind"));
}
