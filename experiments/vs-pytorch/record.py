"""Makes summary.csv, README.md, times.csv and the figure of a record from its raw.csv and machine.json."""

import csv
import json
import math
import statistics
import subprocess
from pathlib import Path

from cases import CASES, PYTORCH, Case, Failure

HERE = Path(__file__).resolve().parent
median = statistics.median


def divide(a, b):
    return None if a is None or not b else a / b


class Measured:
    """Content of raw.csv by row, side and quantity, without warm-ups."""

    def __init__(self, path):
        self.values = {}
        self.rounds = {}
        with open(path, newline="") as file:
            for line in csv.DictReader(file):
                if line["iteration"] == "0":
                    continue
                case = Case(
                    *(int(line[name]) for name in ("dim", "tokens", "chunk", "heads", "batch"))
                )
                key = case, line["work"], line["side"], int(line["threads"]), line["quantity"]
                value = float(line["value"])
                self.values.setdefault(key, []).append(value)
                self.rounds.setdefault(key, {}).setdefault(line["round"], []).append(value)

    def all(self, case, side, threads, quantity, work="forward"):
        return self.values.get((case, work, side, threads, quantity), [])

    def median(self, *key, **work):
        values = self.all(*key, **work)
        return median(values) if values else None

    def ratios(self, case, threads, side):
        """Returns the ratio of the side's median to nmem's for each round."""
        theirs, ours = (
            self.rounds.get((case, "forward", name, threads, "time_ms"), {})
            for name in (side, "nmem")
        )
        return [median(theirs[round]) / median(ours[round]) for round in theirs if round in ours]

    def cases(self, works):
        """Returns the cases in the table's order, then in the order of measurement."""
        found = dict.fromkeys(key[0] for key in self.values if key[1] in works)
        return sorted(found, key=lambda case: CASES.index(case) if case in CASES else len(CASES))


def summarise(measured, threads):
    """Returns one dictionary per row of the table. Values that were not measured are None."""
    rows = []
    for case in measured.cases({"forward"}):
        row = {name: getattr(case, name) for name in ("dim", "tokens", "chunk", "heads", "batch")}
        for side in ["nmem", *PYTORCH]:
            times = measured.all(case, side, threads, "time_ms")
            lower, middle, upper = [None] * 3
            if len(times) > 1:
                lower, middle, upper = statistics.quantiles(times, n=4, method="inclusive")
            row[f"{side}_ms_least"] = min(times, default=None)
            row |= {f"{side}_ms": middle, f"{side}_ms_q1": lower, f"{side}_ms_q3": upper}
        ours = row["nmem_ms"]
        for side in PYTORCH:
            ratios = measured.ratios(case, threads, side)
            row[f"{side}_ratio"] = divide(row[f"{side}_ms"], ours)
            row[f"{side}_ratio_of_ms_least"] = divide(row[f"{side}_ms_least"], row["nmem_ms_least"])
            row[f"{side}_ratio_round_min"] = min(ratios, default=None)
            row[f"{side}_ratio_round_max"] = max(ratios, default=None)
        row["nmem_ms_1_thread"] = measured.median(case, "nmem", 1, "time_ms")
        row["threads_speedup"] = divide(row["nmem_ms_1_thread"], ours) if threads > 1 else None
        row["gflop"] = case.flop / 1e9
        row["nmem_gflops"] = divide(row["gflop"], ours and ours / 1e3)
        for name in ("dim_head", "dim"):
            d = getattr(case, name)
            rate = measured.median(case, "gemm", threads, "gflops", work=f"1024 x {d} x {d}")
            row[f"gemm_gflops_{name}"] = rate
            row[f"efficiency_{name}"] = divide(row["nmem_gflops"], rate)
        for side in ["nmem", "eager", "kept", "compiled"]:
            row[f"{side}_error"] = measured.median(case, side, threads, "error")
        row["nmem_error_f64"] = measured.median(case, "nmem", threads, "error_f64")
        row["nmem_error_to_eager"] = measured.median(case, "eager", threads, "nmem_error_to_it")
        for quantity in ("peak_bytes", "peak_anon_bytes"):
            row[f"nmem_{quantity}"] = measured.median(case, "nmem", threads, quantity)
        for side in PYTORCH:
            row[f"{side}_loaded_bytes"] = measured.median(case, side, threads, "peak_loaded_bytes")
            row[f"{side}_peak_bytes"] = max(
                measured.all(case, side, threads, "peak_bytes"), default=None
            )
        row["compiled_graphs"] = measured.median(case, "compiled", threads, "graphs")
        row["compiled_graph_breaks"] = measured.median(case, "compiled", threads, "graph_breaks")
        rows.append(row)
    return rows


def case_of(row):
    return Case(*(row[name] for name in ("dim", "tokens", "chunk", "heads", "batch")))


def number(value, suffix=""):
    """Formats three digits without an exponent, or a dash for None."""
    if value is None:
        return "–"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{round(value, digits):,.{max(digits, 0)}f}{suffix}"


def percent(value):
    return "–" if value is None else f"{value:.0%}"


def small(value):
    return "–" if value is None else f"{value:.1e}"


def megabytes(value):
    return number(None if value is None else value / 1e6)


def markdown(header, rows):
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])


def means(rows, key):
    """Formats the geometric mean over the rows with the number, and how many rows these are."""
    values = [row[key] for row in rows if row[key] is not None]
    if not values:
        return "–"
    some = "" if len(values) == len(rows) else f" ({len(values)} rows)"
    return f"**{number(statistics.geometric_mean(values))}**{some}"


SHAPE = "dim, tokens, chunk, heads (sequences)"


def times_table(rows):
    sides = [side for side in PYTORCH if any(row[f"{side}_ms"] for row in rows)]
    header = [SHAPE, "nmem, ms"]
    for side in sides:
        header += [f"{PYTORCH[side]}, ms", "÷ nmem"]
    body = []
    for row in rows:
        cells = [case_of(row).label, number(row["nmem_ms"])]
        for side in sides:
            cells += [number(row[f"{side}_ms"]), number(row[f"{side}_ratio"])]
        body.append(cells)
    for name, key in (
        ("geometric mean", "ratio"),
        ("the same of least times", "ratio_of_ms_least"),
    ):
        cells = [name, ""]
        for side in sides:
            cells += ["", means(rows, f"{side}_{key}")]
        body.append(cells)
    return markdown(header, body)


def rates_table(rows, threads):
    header = [SHAPE, "GFLOP", "GFLOP/s", "gemm at dim_head", "share", "gemm at dim", "share"]
    header += ["1 thread, ms", f"{threads} threads, ms", "speed-up"]
    body = []
    for row in rows:
        cells = [case_of(row).label, number(row["gflop"]), number(row["nmem_gflops"])]
        for name in ("dim_head", "dim"):
            cells += [number(row[f"gemm_gflops_{name}"]), percent(row[f"efficiency_{name}"])]
        cells += [number(row["nmem_ms_1_thread"]), number(row["nmem_ms"])]
        body.append([*cells, number(row["threads_speedup"])])
    return markdown(header, body)


def checks_table(rows):
    header = [SHAPE, "nmem to eager", "nmem", "eager", "compiled", "nmem in f64"]
    header += ["nmem, MB", "not files, MB", "eager, MB", "before, MB", "compiled, MB"]
    body = []
    for row in rows:
        errors = [
            "nmem_error_to_eager",
            "nmem_error",
            "eager_error",
            "compiled_error",
            "nmem_error_f64",
        ]
        peaks = ["nmem_peak", "nmem_peak_anon", "eager_peak", "eager_loaded", "compiled_peak"]
        cells = [small(row[name]) for name in errors] + [
            megabytes(row[f"{name}_bytes"]) for name in peaks
        ]
        body.append([case_of(row).label, *cells])
    return markdown(header, body)


def linear_table(measured, threads):
    """Formats the table by number of tokens, with means, medians and least times.

    Means are compared, because a long run is itself a mean over its blocks, including interruptions. The
    median of short runs excludes interruptions.
    """
    header = ["nmem", "tokens", "runs", "mean, ns a token", "÷ first", "median", "÷ first", "least", "÷ first"]
    header += ["peak, MB", "of it not files, MB"]
    body = []
    for work in ("store", "retrieve --online"):
        first = None
        for case in measured.cases({work}):
            times = measured.all(case, "nmem", threads, "time_ms", work=work)
            if not times:
                continue
            kinds = [statistics.fmean(times), median(times), min(times)]
            each = [ms * 1e6 / case.tokens for ms in kinds]
            first = first or each
            cells = [work, f"{case.tokens:,}", str(len(times))]
            for ns, of_first in zip(each, first):
                cells += [number(ns), f"{ns / of_first:.3f}"]
            for quantity in ("peak_bytes", "peak_anon_bytes"):
                cells.append(megabytes(measured.median(case, "nmem", threads, quantity, work=work)))
            body.append(cells)
    return markdown(header, body) if body else None


def compile_notes(rows, failures):
    notes = []
    for row in rows:
        breaks = row["compiled_graph_breaks"]
        if breaks:
            notes.append(f"{case_of(row).label}: compiled in pieces, {breaks:.0f} graph breaks")
    for label, sides in failures.items():
        notes += [
            f"{label}: {PYTORCH[side]} did not run: {reason}" for side, reason in sides.items()
        ]
    return "".join(f"- {note}\n" for note in notes)


# Sides in the order of their lines, with their names in the figure.
SIDES = {
    "nmem": "nmem",
    "compiled": "torch.compile",
    "kept": "eager, memory kept",
    "eager": "PyTorch eager",
}


def plot(rows, nmem, directory):
    """Writes the medians to times.csv in the format of a sweep's results, and draws them with `nmem plot`."""
    times = directory / "times.csv"
    with open(times, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "dim_tokens_chunk_heads", "by", "status", "ms_a_forward"])
        for row in rows:
            label = case_of(row).label.replace(", ", "·").replace(" ", "")
            for side, name in SIDES.items():
                if row[f"{side}_ms"] is not None:
                    writer.writerow([f"{label} {side}", label, name, "ok", row[f"{side}_ms"]])
    command = [nmem, "plot", times, "--kind", "sweep", "--x", "dim_tokens_chunk_heads", "--hue", "by"]
    command += ["--y", "ms_a_forward", "--log=y", "--width", "7.8", "--quiet", "--out", directory / "times.svg"]
    try:
        failed = subprocess.run(command).returncode
    except OSError as error:
        raise Failure(f"{nmem}: {error.strerror}") from None
    if failed:
        raise Failure(f"{nmem} plot failed with status {failed}: see above")


def sentence_of_machine(about):
    virtual = ", virtual" if about["virtual"] else ""
    family = (
        f" (family {about['cpu_family']}, model {about['cpu_model']})"
        if about["cpu_family"]
        else ""
    )
    caches = ", ".join(f"{name} {size}" for name, size in about["caches"].items())
    ram = f", {about['ram_bytes'] / 2**30:.0f} GiB" if about["ram_bytes"] else ""
    commit = f" at commit {about['commit']}" if about["commit"] else ""
    torch = f", torch {about['torch']}" if "torch" in about else ""
    return (
        f"{about['cpu']}{family}, {about['cores']} cores{virtual}; {caches}{ram}; "
        f"{about['system']}. "
        f"nmem {about['nmem']}{commit}, Python {about['python']}{torch}. {about['date']}, "
        f"{about['rounds']} rounds of {about['seconds_a_turn']:g} s a side, "
        f"load average before {about['load_average_before'][0]:.1f}, "
        f"{about['minutes']:g} minutes in all."
    )


TIMES = """\
Medians over all rounds, with the same weights and inputs, in turns. PyTorch's sides are titans-pytorch
0.0.17 as installed (eager), with freed memory kept by the allocator, and under `torch.compile`. The last
side is a different model, version 0.5.5.
"""

RATES = """\
GFLOP counts the operations that the algorithm needs. Per token and head these are (26 + 8h)·d² +
8(c + 1)·d with h heads of width d and chunks of c, and 32·d² + 8(c + 1)·d with one head. GFLOP/s is
GFLOP divided by nmem's median time. The gemm crate's rate is that of {threads} threads, each with its own
products 1024 × d × d, measured in every round. d is the width of a head, or of the model.
"""

CHECKS = """\
Errors are the largest difference divided by the largest magnitude of the output. The first column
compares nmem with eager PyTorch. The next ones compare each side with the module's own result in f64,
computed with the ε that its norms have in f32. The last one compares nmem's `--dtype f64` with the
module's f64 result, including the ε of f64. Memory is the peak of nmem's whole process, and its part
that is not mapped files. For PyTorch it is the peak of the process, and the peak before the first
forward, with module and sequence loaded.
"""

LINEAR = """\
The numbers are over all runs after each turn's first. A long run is itself a mean over its blocks,
including interruptions by other programs, so means are compared. The median of short runs excludes
interruptions.
"""

FILES = """\
## Files

`raw.csv` has one line per measurement. Its `iteration` 0 is each turn's warm-up, which no result uses.
`summary.csv` holds the tables' numbers with all digits, with quartiles and the least and greatest ratios
of the rounds. `times.csv` holds the data of the figure. `machine.json` describes the machine, versions and
settings. `experiments/vs-pytorch/compare.py --redraw DIR` makes all other files from `raw.csv` and
`machine.json`.
"""


def write(directory, nmem):
    """Writes everything that follows from raw.csv and machine.json; returns the tables."""
    try:
        about = json.loads((directory / "machine.json").read_text())
        measured = Measured(directory / "raw.csv")
    except OSError as error:
        raise Failure(f"{error.filename}: {error.strerror}") from None
    threads = about["threads"]
    rows = summarise(measured, threads)
    parts = [f"# nmem and titans-pytorch, {about['cpu']}\n", sentence_of_machine(about) + "\n"]
    if rows:
        with open(directory / "summary.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        timed = any(row[f"{side}_ms"] for row in rows for side in PYTORCH)
        if timed:
            plot(rows, nmem, directory)
            parts += [
                f"## One forward: store a sequence and read it back, f32, {threads} threads\n",
                "![Median times of a forward, by dim·tokens·chunk·heads](times.svg)\n",
                TIMES,
                times_table(rows) + "\n",
                compile_notes(rows, about["did_not_run"]),
            ]
        parts += [
            "## Share of the machine's matrix products, and threads\n",
            RATES.format(threads=threads),
            rates_table(rows, threads) + "\n",
            "## Errors and memory\n",
            CHECKS,
            checks_table(rows) + "\n",
        ]
    tokens = linear_table(measured, threads)
    if tokens:
        parts += ["## By number of tokens: dim 64, chunk 16, one head\n", LINEAR, tokens + "\n"]
    text = "\n".join(part for part in parts if part)
    readme = f"{text}\n{(HERE / 'fair.md').read_text()}\n{FILES}"
    (directory / "README.md").write_text(readme)
    return text
