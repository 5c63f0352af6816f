#!/usr/bin/env python3
"""Draw the same twelve figures with nmem and with matplotlib + SciencePlots, side by side.

    python experiments/figures/compare.py --nmem target/release/nmem --out DIR

Needs matplotlib, SciencePlots and Pillow (requirements.txt). Makes its data with nmem from data/, which takes some
minutes, and writes NAME.png with nmem's figure on the left and matplotlib's on the right, each 3.25 in wide.
"""

import argparse
import csv
import pathlib
import subprocess

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import scienceplots  # noqa: E402, F401
from PIL import Image  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
WIDTH = 3.25
DPI = 300

CHUNKS = """
data = "passages.npy"
[fixed]
heads = 4
[grid]
chunk_size = [4, 8, 16, 32, 64]
seed = [0, 1, 2, 3, 4]
"""
RATES = """
data = "passages.npy"
[fixed]
heads = 4
chunk_size = 16
retention = 16
[grid]
decay = [0.0, 0.01, 0.1, 0.6]
learning_rate = "logspace(1e-3, 10, 5)"
seed = [0, 1, 2, 3, 4]
"""
MAP = """
data = "passages.npy"
[fixed]
heads = 4
chunk_size = 16
seed = 0
[grid]
decay = [0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9]
learning_rate = "logspace(1e-4, 10, 11)"
"""


def rows(path):
    """Returns the rows of a CSV file, with numbers as numbers."""

    def number(text):
        try:
            return float(text)
        except ValueError:
            return text

    with open(path, newline="") as file:
        return [{key: number(text) for key, text in row.items()} for row in csv.DictReader(file)]


def data(nmem, out):
    """Makes the runs and sweeps, unless they exist."""
    for name in ["passages.npy", "passages.safetensors", "passages_labels.csv"]:
        (out / name).write_bytes((ROOT / "data" / name).read_bytes())
    store = "store passages.npy --memory passages.safetensors --chunk-size 16 --no-plots -q --out"
    commands = {
        "run": f"{store} run --labels passages_labels.csv --retention 8",
        "less": f"{store} less --decay-bias -2",
        "all": f"{store} all --decay 0",
        "scan": "scan-bench --batch 8 --steps 128,512,2048 --channels 256 --seconds 0.05 --no-plots -q --out scan",
    }
    for name, text in [("chunks", CHUNKS), ("rates", RATES), ("map", MAP)]:
        (out / f"{name}.toml").write_text(text)
        commands[name] = f"sweep {name}.toml --no-plots -q --out {name}"
    for name, command in commands.items():
        if not (out / name).exists():
            # Some runs of a sweep diverge, which is status 1.
            subprocess.run([nmem, *command.split()], cwd=out, check=False)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def by(table, *keys):
    """Groups rows by the values of some columns."""
    groups = {}
    for row in table:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def over_tokens(axes, table, column):
    for (head,), of_head in sorted(by(table, "head").items()):
        axes.plot([r["end"] for r in of_head], [r[column] for r in of_head], lw=0.6, label=f"head {head:.0f}")
    chunks = by(table, "end")
    axes.plot([end for (end,) in chunks], [mean(r[column] for r in c) for c in chunks.values()], "k", lw=1.2, label="mean")
    axes.set_ylabel(column.replace("_", " "))


def seeds(axes, table, x, y, hue=None):
    """Draws what one would write first: mean and symmetric t-interval."""
    from scipy import stats

    groups = by(table, *([hue] if hue else []))
    for key, group in sorted(groups.items()):
        points = sorted(by(group, x).items())
        xs = [at for (at,), _ in points]
        values = [[r[y] for r in cell if r["status"] == "ok"] for _, cell in points]
        means = [mean(v) for v in values]
        half = [stats.t.ppf(0.975, len(v) - 1) * stats.sem(v) for v in values]
        axes.plot(xs, means, "o-", ms=2, label=f"{hue} {key[0]}" if hue else None)
        axes.fill_between(xs, [m - h for m, h in zip(means, half)], [m + h for m, h in zip(means, half)], alpha=0.2)
    axes.set(xscale="log", xlabel=x.replace("_", " "), ylabel=y.replace("_", " "))


def grid(axes, figure, table, x, y, value, **look):
    xs, ys = sorted({r[x] for r in table}), sorted({r[y] for r in table})
    cells = {(r[y], r[x]): value(r) for r in table}
    image = axes.imshow([[cells.get((b, a), float("nan")) for a in xs] for b in ys], origin="lower", aspect="auto", **look)
    axes.set_xticks(range(len(xs)), [f"{a:g}" for a in xs], rotation=90)
    axes.set_yticks(range(len(ys)), [f"{b:g}" for b in ys])
    axes.set(xlabel=x, ylabel=y)
    figure.colorbar(image)


def figures(out):
    """Yields name, arguments of `nmem plot`, and the function that draws with matplotlib."""
    run = rows(out / "run/metrics.csv")
    retention = rows(out / "run/retention.csv")

    def stacked(columns):
        def draw():
            figure, axes = plt.subplots(len(columns), 1, sharex=True, figsize=(WIDTH, 1.2 * len(columns)))
            for a, column in zip(axes, columns):
                over_tokens(a, run, column)
            axes[0].legend(ncol=3)
            axes[-1].set_xlabel("tokens")

        return draw

    def alone(content, height=2.2):
        def draw():
            figure, axes = plt.subplots(figsize=(WIDTH, height))
            content(figure, axes)

        return draw

    def heads(figure, axes):
        grid(axes, figure, run, "end", "head", lambda r: r["surprise"])
        axes.set_xticks([])

    def overlay(_, axes):
        for name in ["run", "less", "all"]:
            chunks = by(rows(out / name / "metrics.csv"), "end")
            ratio = [mean(r["loss_before"] for r in c) / mean(r["loss"] for r in c) for c in chunks.values()]
            axes.plot([end for (end,) in chunks], ratio, label=name)
        axes.set(yscale="log", xlabel="tokens", ylabel="loss ratio")
        axes.legend()

    def scatter(_, axes):
        for (head,), of_head in sorted(by(run, "head").items()):
            axes.plot([r["loss"] for r in of_head], [r["surprise"] for r in of_head], ".", label=f"head {head:.0f}")
        axes.set(xlabel="loss", ylabel="surprise")
        axes.legend()

    def boxes(_, axes):
        groups = sorted(by(run, "head").items())
        axes.boxplot([[r["surprise"] for r in group] for _, group in groups], showfliers=False)
        axes.set(xlabel="head", ylabel="surprise")

    def kept(figure, axes):
        cells = by(retention, "chunk", "after")
        ratio = [
            {"chunk": c, "after": a, "ratio": mean(r["loss"] for r in g) / mean(r["loss_at_w"] for r in g)}
            for (c, a), g in cells.items()
        ]
        grid(axes, figure, ratio, "after", "chunk", lambda r: r["ratio"], cmap="RdBu_r", vmin=0.5, vmax=1.5)

    def lags(_, axes):
        groups = {}
        for r in retention:
            groups.setdefault(r["after"] - r["chunk"], []).append(r)
        points = sorted((lag, mean(r["loss"] for r in g) / mean(r["loss_at_w"] for r in g)) for lag, g in groups.items())
        axes.plot(*zip(*points), "o-")
        axes.set(xlabel="chunks stored since", ylabel="loss ratio")

    def sizes(_, axes):
        seeds(axes, rows(out / "chunks/results.csv"), "chunk_size", "loss_before_mean")

    def rates(_, axes):
        seeds(axes, rows(out / "rates/results.csv"), "learning_rate", "loss_before_mean", "decay")
        axes.set_yscale("log")
        axes.legend()

    def ratios(figure, axes):
        from matplotlib.colors import LogNorm

        table = [r for r in rows(out / "map/results.csv") if r["status"] == "ok"]
        ratio = lambda r: r["loss_before_mean"] / r["loss_mean"]  # noqa: E731
        grid(axes, figure, table, "learning_rate", "decay", ratio, cmap="RdBu_r", norm=LogNorm(0.1, 10))

    def scans(_, axes):
        for (name,), group in by(rows(out / "scan/scan_bench.csv"), "algorithm").items():
            points = sorted((r["steps"], r["median_ms"]) for r in group if r["median_ms"] != "")
            axes.plot(*zip(*points), "o-", ms=2, label=name)
        axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="time (ms)")
        axes.legend(ncol=2)

    sweep = "--x learning_rate --hue decay --y loss_before_mean"
    yield "01-timeline", "run --y surprise,loss_before,loss --kind columns", stacked(["surprise", "loss_before", "loss"])
    yield "02-gates", "run --kind gates", stacked(["learning_rate", "momentum", "decay"])
    yield "03-heads", "run --kind heads", alone(heads)
    yield "04-overlay", "run less all --y loss_ratio", alone(overlay)
    yield "05-scatter", "run --x loss --y surprise", alone(scatter)
    yield "06-boxes", "run --kind boxes --y surprise", alone(boxes)
    yield "07-retention", "run/retention.csv", alone(kept, 2.8)
    yield "08-lags", "run --x lag", alone(lags)
    yield "09-band", "chunks --y loss_before_mean", alone(sizes)
    yield "10-decades", f"rates {sweep}", alone(rates)
    yield "11-ratio-map", "map --y loss_ratio --x learning_rate --hue decay", alone(ratios, 2.8)
    yield "12-scan", "scan/scan_bench.csv", alone(scans)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nmem", default="nmem")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    nmem = str(pathlib.Path(arguments.nmem).resolve()) if "/" in arguments.nmem else arguments.nmem
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    data(nmem, out)
    plt.style.use(["science", "no-latex"])
    for name, line, draw in figures(out):
        command = [nmem, "plot", *line.split(), "--width", str(WIDTH), "--figure-format", "png", "--out", f"nmem-{name}"]
        subprocess.run(command, cwd=out, check=True, stdout=subprocess.DEVNULL)
        left = Image.open(sorted((out / f"nmem-{name}").glob("*.png"))[-1]).convert("RGB")
        draw()
        plt.savefig(out / "matplotlib.png", dpi=DPI)
        plt.close()
        right = Image.open(out / "matplotlib.png").convert("RGB")
        left = left.resize((left.width * DPI // 600, left.height * DPI // 600))
        both = Image.new("RGB", (left.width + right.width + 40, max(left.height, right.height)), "white")
        both.paste(left, (0, 0))
        both.paste(right, (left.width + 40, 0))
        both.save(out / f"{name}.png")
        print(out / f"{name}.png")


if __name__ == "__main__":
    main()
