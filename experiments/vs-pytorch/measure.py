"""Takes the measurements: every side in turn, in several rounds. Keeps all raw values."""

import contextlib
import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

import machine
import record
from cases import LINEAR, LINEAR_QUICK, PYTORCH, TITANS, Failure

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"

# Pause between turns in seconds. OpenMP's threads spin for a while after their last work. After this
# pause they were asleep: an idle process used no CPU time in three seconds.
PAUSE = 0.3
# Minimum number of forwards per turn, and maximum number of iterations in a turn of nmem.
AT_LEAST, AT_MOST = 3, 1000

# Settings of glibc that keep freed memory: no mmap for large blocks, no trimming.
KEPT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
}


class DidNotRun(Exception):
    """Reason why a side has no times for a row. The other sides continue."""


class Raw:
    """Content of raw.csv: one line per measurement."""

    def __init__(self):
        self.lines = []

    def add(self, case, work, side, threads, quantity, value, round=None, iteration=None):
        if value is None:
            return
        if not math.isfinite(value):
            raise Failure(f"{case.label}, {side}: {quantity} is {value}")
        line = asdict(case) | {"work": work, "side": side, "threads": threads}
        line |= {"round": round, "iteration": iteration, "quantity": quantity, "value": value}
        self.lines.append(line)

    def times(self, case, work, side, threads, round, milliseconds):
        """Adds a turn's times. Iteration 0 is the warm-up: kept here, but not used in any result."""
        for iteration, value in enumerate(milliseconds):
            self.add(case, work, side, threads, "time_ms", value, round, iteration)

    def write(self, path):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, self.lines[0])
            writer.writeheader()
            writer.writerows(self.lines)


class Worker:
    """PyTorch process that runs worker.py."""

    def __init__(self, side, files):
        self.log = files / f"{side}.log"
        search = [str(VENV / f"titans-{TITANS[side]}"), os.environ.get("PYTHONPATH")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, search)),
            "TORCHINDUCTOR_CACHE_DIR": str(VENV / "inductor"),
        }
        if side == "kept":
            environment |= KEPT
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", HERE / "worker.py"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
                start_new_session=True,  # so that it can be ended together with its compilers
            )

    def ask(self, do, limit=600, **request):
        timer = threading.Timer(limit, self.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            over = not timer.is_alive()
            timer.cancel()
        if not line:
            said = self.log.read_text().strip().splitlines()
            ended = f"ended: {said[-1]}" if said else "ended without a message"
            raise DidNotRun(f"no answer within {limit:g} s" if over else ended)
        answer = json.loads(line)
        if "error" in answer:
            raise DidNotRun(answer["error"])
        return answer

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self):
        self.kill()
        self.process.communicate()


def nmem(program, arguments, out):
    """Runs nmem and returns its run.json."""
    fixed = ["--no-plots", "--quiet", "--force", "--out", out]
    command = [str(part) for part in [program, *arguments, *fixed]]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise Failure(f"{' '.join(command)}: {said[-1]}")
    return json.loads((out / "run.json").read_text())


def milliseconds(report):
    return [seconds * 1e3 for seconds in report["wall_s"]["engine_all"]]


def repeats(seconds, a_run_ms):
    return min(max(AT_LEAST, math.ceil(seconds * 1e3 / a_run_ms)), AT_MOST)


def gemm_rates(chosen, widths):
    command = [chosen.gemm_rate, "--threads", str(chosen.threads), *map(str, sorted(widths))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(f"{chosen.gemm_rate}: {done.stderr.strip() or done.returncode}")
    rates = json.loads(done.stdout)
    if not all(rate["error"] < 1e-4 for rate in rates):
        raise Failure(f"{chosen.gemm_rate}: products are wrong: {rates}")
    return {rate["d"]: rate["gflops"] for rate in rates}


def distance(output, reference):
    """Returns the largest difference, relative to the reference's largest magnitude."""
    if output.shape != reference.shape:
        raise Failure(f"outputs of shapes {output.shape} and {reference.shape}")
    return float(np.abs(output - reference).max() / np.abs(reference).max())


def table_row(chosen, case, raw, about, files):
    """Measures all sides on one row of the table. Returns the reasons why some did not run."""
    with contextlib.ExitStack() as stack:
        weights, sequence = files / "weights.safetensors", files / "sequence.npy"
        shared = {"case": asdict(case), "weights": str(weights), "sequence": str(sequence)}
        failures, workers, outputs = {}, {}, {}

        def start(side):
            worker = Worker(side, files)
            stack.callback(worker.close)
            return worker

        def fail(side, reason):
            failures[side] = str(reason)
            say(f"  {PYTORCH[side]}: did not run: {reason}")
            if side in workers:
                workers.pop(side).close()

        exact = {name: files / f"{name}.npy" for name in ("exact", "exact_eps32")}
        drawer = start("eager")
        try:
            paths = {name: str(path) for name, path in exact.items()}
            about |= drawer.ask("prepare", **shared, **paths)
        except DidNotRun as reason:
            raise Failure(f"{case.label}: PyTorch could not sample the weights: {reason}") from None
        drawer.close()
        exact = {name: np.load(path) for name, path in exact.items()}

        for side in chosen.sides if "table" in chosen.only else []:
            workers[side] = worker = start(side)
            try:
                loaded = worker.ask("load", side=side, threads=chosen.threads, **shared)
                output = files / f"{side}.npy"
                limit = chosen.compile_limit if side == "compiled" else 600
                first = worker.ask("first", limit, output=str(output))
            except DidNotRun as reason:
                fail(side, reason)
                continue
            raw.add(
                case, "forward", side, chosen.threads, "peak_loaded_bytes", loaded["peak_bytes"]
            )
            for quantity, count in first.items():
                raw.add(case, "forward", side, chosen.threads, quantity, count)
            if side != "latest":
                outputs[side] = np.load(output)

        online = ["retrieve", sequence, "--online", "--memory", weights, "--chunk-size", case.chunk]
        threaded = [*online, "--threads", chosen.threads]
        out = files / "nmem"
        report = nmem(chosen.nmem, threaded, out)
        for quantity in ("peak_bytes", "peak_anon_bytes"):
            raw.add(case, "forward", "nmem", chosen.threads, quantity, report[quantity])
        outputs["nmem"] = np.load(out / "retrieved.npy")
        for side, output in outputs.items():
            error = distance(output, exact["exact_eps32"])
            raw.add(case, "forward", side, chosen.threads, "error", error)
            if side != "nmem":
                error = distance(outputs["nmem"], output)
                raw.add(case, "forward", side, chosen.threads, "nmem_error_to_it", error)
        nmem(chosen.nmem, [*threaded, "--dtype", "f64"], out)
        error = distance(np.load(out / "retrieved.npy"), exact["exact"])
        raw.add(case, "forward", "nmem", chosen.threads, "error_f64", error)

        expected = {}

        def turn(side, threads, round):
            if side == "gemm":
                for d, rate in gemm_rates(chosen, {case.dim_head, case.dim}).items():
                    raw.add(case, f"1024 x {d} x {d}", "gemm", threads, "gflops", rate, round)
                return None
            if side == "nmem":
                last = expected.get(threads, milliseconds(report)[0])
                more = ["--threads", threads, "--repeat", repeats(chosen.seconds, last)]
                times = milliseconds(nmem(chosen.nmem, [*online, *more], out))
            elif side in workers:
                try:
                    ran = workers[side].ask("run", seconds=chosen.seconds, at_least=AT_LEAST)
                except DidNotRun as reason:
                    fail(side, reason)
                    return None
                times = ran["ms"]
                raw.add(case, "forward", side, threads, "peak_bytes", ran["peak_bytes"], round)
            else:
                return None
            raw.times(case, "forward", side, threads, round, times)
            if side == "nmem":
                expected[threads] = record.median(times[1:])
            return record.median(times[1:])

        turns = [("gemm", chosen.threads), ("nmem", chosen.threads), ("nmem", 1)]
        turns = [*dict.fromkeys(turns), *((side, chosen.threads) for side in workers)]
        for round in range(1, chosen.rounds + 1):
            timings = []
            # The order alternates, so that no side always follows the same other one.
            for side, threads in turns if round % 2 else reversed(turns):
                time.sleep(PAUSE)
                taken = turn(side, threads, round)
                if taken is not None:
                    timings.append(f"{side} {taken:.3g}" + (f" ({threads})" if side == "nmem" else ""))
            say(f"  round {round}, ms: {', '.join(timings)}")
        return failures


def linear(chosen, raw, files):
    """Measures time and memory of nmem by number of tokens, with one head of a random memory."""
    cases = LINEAR_QUICK if chosen.quick else LINEAR
    sequences = {case: files / f"{case.tokens}.npy" for case in cases}
    random = np.random.default_rng(0)
    for case, path in sequences.items():
        tokens = np.lib.format.open_memmap(path, "w+", np.float32, (case.tokens, case.dim))
        for start in range(0, case.tokens, 10_000):
            block = tokens[start : start + 10_000]
            block[:] = random.standard_normal(block.shape)
        del tokens, block
    out = files / "nmem"
    works = {"store": ["store"], "retrieve --online": ["retrieve", "--online"]}
    last = {}
    for round in range(chosen.rounds + 1):
        for work, words in works.items():
            timings = []
            for case, path in sequences.items():
                time.sleep(PAUSE)
                command = [*words, path, "--chunk-size", case.chunk, "--threads", chosen.threads]
                if round == 0:
                    report = nmem(chosen.nmem, command, out)
                    last[case, work] = milliseconds(report)[0]
                    for quantity in ("peak_bytes", "peak_anon_bytes"):
                        raw.add(case, work, "nmem", chosen.threads, quantity, report[quantity])
                    continue
                # Two runs are enough if a run is longer than a turn.
                count = repeats(chosen.seconds, last[case, work])
                count = 1 if last[case, work] > chosen.seconds * 1e3 else count
                times = milliseconds(nmem(chosen.nmem, [*command, "--repeat", count], out))
                last[case, work] = record.median(times[1:])
                raw.times(case, work, "nmem", chosen.threads, round, times)
                timings.append(
                    f"{last[case, work] * 1e6 / case.tokens:.0f} ns a token at {case.tokens:,}"
                )
            if timings:
                say(f"  round {round}, {work}: {', '.join(timings)}")


def say(line):
    print(line, file=sys.stderr, flush=True)


def measure(chosen):
    raw, about, did_not_run = Raw(), {}, {}
    before = machine.describe()
    if before["load_average_before"][0] > 0.5:
        busy = f"load average {before['load_average_before'][0]:.1f}"
        say(f"warning: {busy}: other programs are running and will affect the times")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vs-pytorch-") as temporary:
        for case in chosen.rows if {"table", "threads"} & set(chosen.only) else []:
            say(case.label)
            files = Path(temporary) / case.label
            files.mkdir()
            failures = table_row(chosen, case, raw, about, files)
            if failures:
                did_not_run[case.label] = failures
            shutil.rmtree(files)
        if "linear" in chosen.only:
            say("tokens")
            linear(chosen, raw, Path(temporary))
        sequence = Path(temporary) / "version.npy"
        np.save(sequence, np.ones((4, 2), np.float32))
        report = nmem(
            chosen.nmem, ["store", sequence, "--chunk-size", 2], Path(temporary) / "version"
        )
    before |= {"nmem": report["nmem"], "commit": report["commit"], **about}
    if about:
        before["titans_pytorch"] = {side: TITANS[side] for side in chosen.sides}
    before |= {
        "threads": chosen.threads,
        "rounds": chosen.rounds,
        "seconds_a_turn": chosen.seconds,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "did_not_run": did_not_run,
    }
    # Written beside its target and then renamed, so that the record is complete or absent.
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    hidden = chosen.out.with_name(f".{chosen.out.name}.part")
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir()
    try:
        raw.write(hidden / "raw.csv")
        (hidden / "machine.json").write_text(
            json.dumps(before, indent=2, ensure_ascii=False) + "\n"
        )
        print(record.write(hidden, chosen.nmem))
        if chosen.out.exists():
            shutil.rmtree(chosen.out)
        hidden.rename(chosen.out)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    say(f"written to {chosen.out}")
