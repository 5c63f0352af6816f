#!/usr/bin/env python3
"""Times nmem against titans-pytorch beyond one forward of 0.0.17: the default memory of 0.5.5, its refreshes, and outer gradients.

    models.py [--nmem PATH] [--rounds N] [--threads N] [--only forward,refresh,gradient] [--out FILE.csv] [--turns FILE.csv]

Runs in the venv that compare.py makes. Each row has a PyTorch process of its own, so that its peak of memory is that of the row.
Both sides take turns. A turn is the median of five forwards, or of five forwards with their backwards, on the same weights and
inputs, after one that is dropped: nmem is a new process at each turn, and PyTorch is not.

The times of both sides depend on which physical cores the host of a virtual machine gives it. Cores that share a cache hand over data
quickly, but share the bandwidth to memory. So before and after each pair of turns the script measures how long a number takes to
another process and back. The cores were near if both times are below 400 ns, and far if none is; in other pairs they moved. Each row
has a line for each of these, with the medians. This tells something where two CPUs are all there are, and otherwise idle.

`--out` writes the lines of the table, and `--turns` each pair of turns.

The error is that of nmem's result in f64 from PyTorch's in f64, relative to the largest. In f32 a refreshed memory may multiply
rounding errors from chunk to chunk.
"""

import argparse
import contextlib
import csv
import json
import mmap
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import compare
from cases import Failure

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"

# Passes of a turn, without the one that is dropped.
PASSES = 5

# Nanoseconds to another process and back, from which on cores count as far. On one AMD EPYC it took 160 to 220 between cores with a
# shared cache, and 570 to 610 between others.
FAR = 400

# Work, version of titans-pytorch, and rows: dim, tokens, chunk, heads.
WORKS = {
    "forward": ("0.5.5", [(64, 1024, 16, 1), (256, 2048, 64, 4), (384, 4096, 64, 6), (384, 4096, 64, 1)]),
    "refresh": ("0.5.5", [(64, 1024, 16, 1), (256, 2048, 64, 4), (384, 4096, 64, 6), (384, 4096, 64, 1)]),
    "gradient": ("0.0.17", [(64, 1024, 16, 1), (256, 2048, 64, 4), (384, 1024, 64, 1), (64, 4096, 2, 1), (384, 4096, 64, 6)]),
    "gradient 0.5.5": ("0.5.5", [(64, 1024, 16, 1), (256, 2048, 64, 4), (384, 1024, 64, 6)]),
}


KINDS = ["forward", "refresh", "gradient"]


def works(text):
    chosen = text.split(",")
    if not set(chosen) <= set(KINDS):
        raise argparse.ArgumentTypeError(f"{text!r}: choose from {', '.join(KINDS)}")
    return chosen


def worker(role, work, version, dim, tokens, chunk, heads, directory, threads):
    """Serves requests on stdin, a line each. The weights and inputs come from a seed.

    `exact` saves them, and answers the difference of a result in a file from its own in f64. `time` answers the milliseconds and the
    peak of memory of a turn.
    """
    import numpy as np
    import torch
    from safetensors.torch import save_file

    if version == "0.0.17":
        from titans_pytorch.titans_attn_memory import NeuralMemory
    else:
        from titans_pytorch import NeuralMemory
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    arguments = {"dim": dim, "chunk_size": chunk, "heads": heads, "dim_head": dim // heads}
    if work == "refresh":
        # With the default rates of up to 1 an untrained memory diverges within 4096 tokens.
        arguments |= {"batch_size": chunk, "default_step_transform_max_lr": 0.005}
    memory = NeuralMemory(**arguments)
    state = memory.state_dict()
    if version == "0.0.17":
        # N(0, 1), as the module samples them, leaves few digits in common to any two programs.
        for name, tensor in state.items():
            if name.startswith("memory_model."):
                bound = (6 / sum(tensor.shape)) ** 0.5
                tensor.uniform_(-bound, bound)
        memory.load_state_dict(state)
    sequence, cotangent = torch.randn(1, tokens, dim), torch.randn(1, tokens, dim)
    has_gradient = work.startswith("gradient")

    def turn():
        memory.zero_grad()
        asked = sequence.detach().requires_grad_(has_gradient)
        with torch.set_grad_enabled(has_gradient):
            read = memory(asked)
            read = read[0] if isinstance(read, tuple) else read
            if has_gradient:
                (read * cotangent).sum().backward()
        return asked.grad if has_gradient else read

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    if role == "time":
        turn()
        answer()
        for _ in sys.stdin:
            turn()
            answer(ms=statistics.median(timed(turn) for _ in range(PASSES)) * 1e3, peak=peak())
        return
    state = {name: tensor.clone().contiguous() for name, tensor in state.items()}
    metadata = {"model": "attention"} if version == "0.0.17" else {}
    save_file(state, directory / "weights.safetensors", metadata=metadata)
    (directory / "args.json").write_text(json.dumps(arguments))
    np.save(directory / "sequence.npy", sequence.numpy())
    np.save(directory / "cotangent.npy", cotangent.numpy())
    memory, sequence, cotangent = memory.double(), sequence.double(), cotangent.double()
    exact = turn().numpy()
    answer()
    for line in sys.stdin:
        result = np.load(line.strip())
        result = result["seq"] if has_gradient else result
        answer(error=float(np.abs(result.reshape(exact.shape) - exact).max() / np.abs(exact).max()))


def timed(work):
    """Returns the seconds that a call takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def peak():
    """Returns the peak of memory of this process in bytes; NaN except on Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def nmem_turn(nmem, work, version, directory, threads, chunk, dtype="f32"):
    """Returns the milliseconds of a turn, the peak of memory, and the file of the result."""
    files = ["--memory", directory / "memory.safetensors", "--threads", threads, "--dtype", dtype]
    files += ["--repeat", PASSES, "--force", "--quiet"]
    if version == "0.0.17":
        files += ["--chunk-size", chunk]
    if work.startswith("gradient"):
        out = directory / "gradient.npz"
        more = ["--cotangent", directory / "cotangent.npy", "--out", out, "--format", "json"]
        said, peak = run([nmem, "gradients", directory / "sequence.npy", *files, *more])
        return statistics.median(json.loads(said)["seconds_all"][1:]) * 1e3, peak, out
    out = directory / "out"
    _, peak = run([nmem, "retrieve", directory / "sequence.npy", "--online", *files, "--no-plots", "--out", out])
    report = json.loads((out / "run.json").read_text())
    ms = statistics.median(report["wall_s"]["engine_all"][1:]) * 1e3
    return ms, peak, out / "retrieved.npy"


def run(command):
    """Returns what a command printed, and its peak of memory. That counts from this process's own, which stays small."""
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise Failure(f"{command[1]} failed with status {process.returncode}: see above")
    return said, usage.ru_maxrss * 1024


@contextlib.contextmanager
def pytorch(role, work, version, row, directory, threads):
    """Starts a worker, and yields a function that sends it a line and returns its answer."""
    environment = os.environ | {"PYTHONPATH": str(VENV / f"titans-{version}")}
    arguments = [role, work, version, *map(str, row), str(directory), str(threads)]
    command = [sys.executable, "-W", "ignore", __file__, "--worker", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True) as process:

        def ask(line=None):
            if line is not None:
                print(line, file=process.stdin, flush=True)
            answer = process.stdout.readline()
            if not answer:
                raise Failure(f"PyTorch ended in {work} of {row}: see above")
            return json.loads(answer)

        ask()
        yield ask
        process.stdin.close()


def round_trip(trips=500, rounds=5):
    """Returns the nanoseconds that a number takes to another process and back: the median of some rounds of trips. None on one CPU."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if cpus == 1:
        return None
    # Both numbers have a cache line of their own.
    with mmap.mmap(-1, mmap.PAGESIZE) as page, memoryview(page).cast("q") as numbers:
        there, back = 0, 64
        other = os.fork()
        if other == 0:
            try:
                for i in range(1, trips * rounds + 1):
                    await_number(numbers, there, i)
                    numbers[back] = i
            finally:
                os._exit(0)
        try:
            times = []
            for first in range(1, trips * rounds + 1, trips):
                begin = time.perf_counter()
                for i in range(first, first + trips):
                    numbers[there] = i
                    await_number(numbers, back, i)
                times.append((time.perf_counter() - begin) / trips * 1e9)
        finally:
            os.kill(other, signal.SIGKILL)
            os.waitpid(other, 0)
    return statistics.median(times)


def await_number(numbers, place, number):
    """Waits until another process writes a number, for some seconds at most."""
    for _ in range(1 << 27):
        if numbers[place] == number:
            return
    raise Failure("the process that answers round trips does not")


DISTANCES = ["near", "far", "moved", "one CPU"]


def distance(before, after):
    """Returns how far from each other the cores were between two round trips."""
    if before is None or after is None:
        return "one CPU"
    if max(before, after) < FAR:
        return "near"
    return "far" if min(before, after) >= FAR else "moved"


def measure(work, version, row, options):
    """Measures a row. Returns its pairs of turns, with the round trips before and after each."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        worker = (work, version, row, directory, options.threads)
        turn = (options.nmem, work, version, directory, options.threads, row[2])
        with pytorch("exact", *worker) as ask:
            weights, memory = directory / "weights.safetensors", directory / "memory.safetensors"
            if version == "0.0.17":
                weights.rename(memory)
            else:
                run([options.nmem, "import", weights, "--from", f"titans-pytorch-{version}", "--args",
                     directory / "args.json", "--out", memory, "--quiet"])  # fmt: skip
            error = ask(nmem_turn(*turn, dtype="f64")[2])["error"]
        if not error < 1e-5:
            raise Failure(f"{work} of {row}: results differ by {error:.1e} of the largest")
        dim, tokens, chunk, heads = row
        pairs = []
        with pytorch("time", *worker) as ask:
            for _ in range(options.rounds):
                before = round_trip()
                theirs, (ms, peak, _) = ask("turn"), nmem_turn(*turn)
                after = round_trip()
                pairs.append({
                    "work": work.split()[0], "version": version, "dim": dim, "tokens": tokens, "chunk": chunk, "heads": heads,
                    "cores": distance(before, after), "before_ns": before, "after_ns": after,
                    "pytorch_ms": theirs["ms"], "nmem_ms": ms, "ratio": theirs["ms"] / ms,
                    "pytorch_peak_mb": theirs["peak"] / 1e6, "nmem_peak_mb": peak / 1e6, "error": error,
                })  # fmt: skip
    return pairs


def lines(pairs):
    """Returns a line for each distance of the cores at which a row was measured."""
    for cores in DISTANCES:
        turns = [pair for pair in pairs if pair["cores"] == cores]
        if not turns:
            continue
        first = turns[0]
        median = {key: statistics.median(pair[key] for pair in turns) for key in ["pytorch_ms", "nmem_ms"]}
        peaks = {key: max(pair[key] for pair in turns) for key in ["pytorch_peak_mb", "nmem_peak_mb"]}
        ratios = [pair["ratio"] for pair in turns]
        yield {
            **{key: first[key] for key in ["work", "version", "dim", "tokens", "chunk", "heads", "cores"]},
            "turns": len(turns), **median, "ratio": median["pytorch_ms"] / median["nmem_ms"],
            "lowest_ratio": min(ratios), "highest_ratio": max(ratios), **peaks, "error": first["error"],
        }  # fmt: skip


class Csv:
    """A CSV of rows that are written as they come; none without a path."""

    def __init__(self, path):
        self.file = None if path is None else open(path, "w", newline="")
        self.writer = None

    def write(self, rows):
        if self.file is None:
            return
        if self.writer is None:
            self.writer = csv.DictWriter(self.file, rows[0])
            self.writer.writeheader()
        self.writer.writerows(rows)
        self.file.flush()


def positive(text):
    number = int(text)
    if number < 1:
        raise ValueError
    return number


positive.__name__ = "positive integer"


def main():
    if sys.argv[1:2] == ["--worker"]:
        role, work, version, *row, directory, threads = sys.argv[2:]
        worker(role, work, version, *map(int, row), Path(directory), int(threads))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nmem", type=Path, metavar="PATH", help="path of nmem (default: build it)")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="turns of each side (default: 5)")
    parser.add_argument("--threads", type=positive, default=2, metavar="N", help="threads of both sides (default: 2)")
    parser.add_argument("--only", type=works, metavar="WORK,…", help=f"{', '.join(KINDS)} (default: all)")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="also write the lines of the table as CSV")
    parser.add_argument("--turns", type=Path, metavar="FILE.csv", help="also write each pair of turns as CSV")
    options = parser.parse_args()
    python = compare.environment()
    if Path(sys.prefix).resolve() != VENV.resolve():
        os.execv(python, [python, __file__, *sys.argv[1:]])
    options.nmem = compare.program(options.nmem, "--bin", "nmem")
    table, turns = Csv(options.out), Csv(options.turns)
    print("| work | dim, tokens, chunk, heads | cores | turns | PyTorch, ms | nmem, ms | ratio | of single turns | ", end="")
    print("PyTorch, MB | nmem, MB | error |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: |", flush=True)
    for work, (version, shapes) in WORKS.items():
        for row in shapes if options.only is None or work.split()[0] in options.only else []:
            pairs = measure(work, version, row, options)
            turns.write(pairs)
            of_row = list(lines(pairs))
            table.write(of_row)
            for of in of_row:
                print(
                    f"| {of['work']}, {version} | {', '.join(map(str, row))} | {of['cores']} | {of['turns']} | "
                    f"{of['pytorch_ms']:.1f} | {of['nmem_ms']:.1f} | {of['ratio']:.1f} | "
                    f"{of['lowest_ratio']:.1f} to {of['highest_ratio']:.1f} | {of['pytorch_peak_mb']:.0f} | "
                    f"{of['nmem_peak_mb']:.0f} | {of['error']:.0e} |",
                    flush=True,
                )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except Failure as failure:
        print(f"models.py: error: {failure}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
