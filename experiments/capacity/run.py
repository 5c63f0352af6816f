#!/usr/bin/env python3
"""Measure recall against pairs ÷ dim_head: generate the tasks, tune rates on some draws, and report others.

    experiments/capacity/run.py --nmem target/release/nmem --least-squares target/release/examples/least_squares

Writes results/capacity/results.csv, one row per memory, load and draw, and its figures. Needs Python 3.11 alone. Finished runs are
used again.
"""

import argparse
import csv
import json
import pathlib
import subprocess

WIDTH = 64  # of a key, which is dim_head of the task: half of a token and of the head
PAIRS = [4, 8, 16, 32, 64, 128, 256]
DRAWS = 10
# β of the delta rule; θ = β · WIDTH, because the head is twice as wide as a key and ℓ is a mean over it.
RATES = [1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625]
MEMORIES = ["delta", "sum"]
# Seeds of the draws on which rates are chosen, and of those that are reported.
TUNE, REPORT = 1, 2


def call(*words):
    subprocess.run([str(word) for word in words], check=True)


def draws(path):
    """Accuracy and loss relative to an answer of zeros of each sequence of a recall.csv."""
    sums = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            of = sums.setdefault(int(row["sequence"]), [0, 0, 0.0, 0.0])
            of[0] += 1
            of[1] += row["rank"] == "1"
            of[2] += float(row["mean_square"])
            of[3] += float(row["mean_square_zero"])
    return [(right / n, error / zero) for n, right, error, zero in sums.values()]


def mean(values):
    return sum(values) / len(values)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nmem", default="target/release/nmem")
    parser.add_argument("--least-squares", default="target/release/examples/least_squares")
    parser.add_argument("--out", default="results/capacity", type=pathlib.Path)
    arguments = parser.parse_args()
    out = arguments.out

    def task(pairs, seed):
        directory = out / f"data-{pairs}-{seed}"
        if not (directory / "labels.csv").exists():
            call(arguments.nmem, "generate", "mqar", "--pairs", pairs, "--sequences", DRAWS, "--dim", 2 * WIDTH,
                 "--seed", seed, "--out", directory, "--force", "--quiet")
        return directory

    def recall(memory, pairs, rate, seed):
        data, to = task(pairs, seed), out / f"{memory}-{pairs}-{rate}-{seed}"
        if not (to / "run.json").exists():
            call(arguments.nmem, "retrieve", data / "queries.npy", "--store-seq", data / "pairs.npy", "--read-after",
                 "--memory", data / f"{memory}.safetensors", "--learning-rate", rate * WIDTH, "--target", data / "targets.npy",
                 "--candidates", data / "values.npy", "--out", to, "--no-plots", "--quiet")
        chance = json.loads((to / "run.json").read_text())["recall"]["chance"]
        return draws(to / "recall.csv"), chance

    rows, chosen = [], []
    for pairs in PAIRS:
        def add(memory, results):
            for draw, (accuracy, ratio) in enumerate(results):
                rows.append([len(rows), pairs / WIDTH, memory, draw, "ok", accuracy, ratio])

        for memory in MEMORIES:
            tuned = {rate: recall(memory, pairs, rate, TUNE)[0] for rate in RATES}
            # By accuracy, and where that is the same by the smaller error.
            rate = max(RATES, key=lambda rate: (mean([a for a, _ in tuned[rate]]), -mean([r for _, r in tuned[rate]])))
            reported, chance = recall(memory, pairs, rate, REPORT)
            add(memory, reported)
            chosen.append([memory, pairs, rate])
        ceiling = out / f"least-squares-{pairs}.csv"
        subprocess.run([arguments.least_squares, task(pairs, REPORT), ceiling], check=True, stdout=subprocess.DEVNULL)
        add("least squares", draws(ceiling))
        add("chance", [(chance, 1.0)] * DRAWS)
    for name, header, lines in [
        ("results.csv", ["run", "pairs_per_dim_head", "memory", "seed", "status", "accuracy", "error_ratio"], rows),
        ("rates.csv", ["memory", "pairs", "beta"], chosen),
    ]:
        with open(out / name, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *lines])
    call(arguments.nmem, "plot", out / "results.csv", "--x", "pairs_per_dim_head", "--hue", "memory", "--y", "accuracy,error_ratio", "--log=x")
    for pairs in PAIRS:
        cells = []
        for memory in ["delta", "sum", "least squares"]:
            of = [row for row in rows if row[1] == pairs / WIDTH and row[2] == memory]
            cells.append(f"{mean([row[5] for row in of]):.3f} / {mean([row[6] for row in of]):.3f}")
        print(f"| {pairs} | {pairs / WIDTH:g} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
