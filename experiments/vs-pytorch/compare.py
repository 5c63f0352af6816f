#!/usr/bin/env python3
"""Times nmem against titans-pytorch on the CPU, in turns, and writes a record. See README.md.

Needs Python, and also cargo unless --nmem and --gemm-rate name the two programs. The first call makes
a venv beside this file with a fixed version of every package, and runs itself again inside.
"""

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from cases import CASES, PYTORCH, TITANS, Failure

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VENV = HERE / ".venv"
OLDEST_PYTHON = (3, 11)  # numpy's


def arguments():
    def positive(kind):
        def parse(text):
            value = kind(text)
            if not 0 < value < 1e6:
                raise ValueError
            return value

        parse.__name__ = "positive " + ("integer" if kind is int else "number")
        return parse

    def rows(text):
        numbers = [int(number) for number in text.split(",")]
        if not all(1 <= number <= len(CASES) for number in numbers):
            raise argparse.ArgumentTypeError(f"{text!r}: rows are 1 to {len(CASES)}")
        return [CASES[number - 1] for number in sorted(set(numbers))]

    def some_of(names):
        def parse(text):
            chosen = text.split(",")
            if not set(chosen) <= set(names):
                raise argparse.ArgumentTypeError(f"{text!r}: choose from {', '.join(names)}")
            return [name for name in names if name in chosen]

        return parse

    numbered = "; ".join(f"{number}: {case.label}" for number, case in enumerate(CASES, 1))
    parser = argparse.ArgumentParser(
        description="Time nmem against titans-pytorch on this machine's CPU and write a record.",
        epilog=f"Rows (dim, tokens, chunk, heads and, in brackets, sequences): {numbered}.",
    )
    option = parser.add_argument
    option("--rounds", type=positive(int), metavar="N", help="turns of every side (default: 5)")
    option("--seconds", type=positive(float), metavar="S", help="length of a turn (default: 0.7)")
    option("--rows", type=rows, metavar="N,…", help="rows of the table by number (default: all)")
    option("--quick", action="store_true", help="2 short rounds of rows 1 and 6, as a trial")
    option(
        "--only",
        type=some_of(["table", "threads", "linear"]),
        metavar="PART,…",
        help="table (nmem against PyTorch), threads (nmem alone, one thread against several), "
        "linear (time and memory by number of tokens); table includes threads (default: table,linear)",
    )
    option(
        "--sides",
        type=some_of(list(PYTORCH)),
        metavar="SIDE,…",
        help=f"sides of PyTorch: {', '.join(PYTORCH)} (default: all)",
    )
    option("--threads", type=positive(int), default=2, metavar="N", help="threads of both sides (default: 2)")
    option(
        "--compile-limit",
        type=positive(float),
        default=600,
        metavar="S",
        help="seconds that torch.compile may take for a row (default: 600)",
    )
    option("--nmem", type=Path, metavar="PATH", help="path of nmem (default: build it)")
    option("--gemm-rate", type=Path, metavar="PATH", help="path of the example gemm_rate (default: build it)")
    option(
        "--out",
        type=Path,
        metavar="DIR",
        help="directory of the record "
        "(default: results/records/DATE-MACHINE-vs-pytorch; --quick: results/vs-pytorch)",
    )
    option("--force", action="store_true", help="replace an existing --out")
    option(
        "--redraw",
        type=Path,
        metavar="DIR",
        help="write a record's texts and plot again from its raw.csv",
    )
    chosen = parser.parse_args()
    quick = chosen.quick
    chosen.rounds = chosen.rounds or (2 if quick else 5)
    chosen.seconds = chosen.seconds or (0.2 if quick else 0.7)
    chosen.rows = chosen.rows or ([CASES[0], CASES[5]] if quick else CASES)
    chosen.only = chosen.only or ["table", "linear"]
    chosen.sides = chosen.sides or list(PYTORCH)
    return chosen


def environment():
    """Returns the venv's Python. Makes the venv if it does not match requirements.txt."""
    if sys.version_info < OLDEST_PYTHON:
        raise Failure(f"needs Python {'.'.join(map(str, OLDEST_PYTHON))} or newer")
    requirements = HERE / "requirements.txt"
    versions = sorted(set(TITANS.values()))
    wanted = hashlib.sha256(requirements.read_bytes() + repr(versions).encode()).hexdigest()
    python, finished = VENV / "bin" / "python", VENV / "finished"
    if finished.is_file() and finished.read_text() == wanted:
        return python
    print(f"making {VENV} with torch and the other packages of requirements.txt; this happens once", file=sys.stderr)
    shutil.rmtree(VENV, ignore_errors=True)
    run("making a venv", [sys.executable, "-m", "venv", VENV])
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run("installing requirements.txt", [*pip, "--requirement", requirements])
    for version in versions:
        # In separate directories, because both have the same name. requirements.txt has their dependencies.
        target = VENV / f"titans-{version}"
        package = f"titans-pytorch=={version}"
        run(f"installing {package}", [*pip, "--no-deps", "--target", target, package])
    finished.write_text(wanted)
    return python


def run(what, command):
    try:
        status = subprocess.run(command, stdout=sys.stderr, cwd=ROOT).returncode
    except OSError as error:
        raise Failure(f"{what}: {command[0]}: {error.strerror}") from None
    if status != 0:
        raise Failure(f"{what} failed with status {status}: see above")


def program(named, kind, name):
    """Returns the named program, or builds it."""
    if named is None:
        built = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
        command = ["cargo", "build", "--release", "--locked", kind, name]
        run(f"building {name} (a flag can name a finished one, see --help)", command)
        named = built / ("examples" if kind == "--example" else "") / name
    if not os.access(named, os.X_OK):
        raise Failure(f"{named}: no such program")
    return named.resolve()


def main():
    chosen = arguments()
    python = environment()
    if Path(sys.prefix).resolve() != VENV.resolve():
        os.execv(python, [python, __file__, *sys.argv[1:]])
    import record

    if chosen.redraw is not None:
        record.write(chosen.redraw, program(chosen.nmem, "--bin", "nmem"))
        return
    import machine

    if chosen.out is None:
        results = ROOT / "results"
        name = f"{machine.today()}-{machine.slug()}-vs-pytorch"
        chosen.out = results / "vs-pytorch" if chosen.quick else results / "records" / name
    if chosen.out.exists() and not chosen.force:
        raise Failure(f"{chosen.out} already exists; use --force to replace it, or choose another --out")
    chosen.nmem = program(chosen.nmem, "--bin", "nmem")
    chosen.gemm_rate = program(chosen.gemm_rate, "--example", "gemm_rate")
    import measure

    measure.measure(chosen)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except Failure as failure:
        print(f"compare.py: error: {failure}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("compare.py: interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)
