#!/usr/bin/env python3
"""One forward, store and read, on a GPU: nmem, and titans-pytorch 0.0.17 eager and compiled where it is installed.

Rows, weights and inputs are those of ../vs-pytorch. nmem's time is wall_s.engine of `retrieve --online --device cuda --repeat`
without the first run. It excludes transfers, so it compares with PyTorch's time with sequence and output on the GPU, measured
by CUDA events. PyTorch is also timed from host to host.

torch.compile takes most of a minute per row. `--warm ROW` only compiles, into TORCHINDUCTOR_CACHE_DIR. So several rows can be
compiled in parallel before a run that finds them there.
"""

import argparse
import array
import csv
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "vs-pytorch"))

from cases import CASES  # noqa: E402


def nmem(program, arguments, out):
    """Runs nmem and returns its run.json."""
    fixed = ["--no-plots", "--quiet", "--force", "--out", out]
    command = [str(part) for part in [program, *arguments, *fixed]]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return json.loads((out / "run.json").read_text())


def elements(npy):
    """Returns the elements of an f32 .npy file of version 1, the format that nmem writes."""
    header = 10 + int.from_bytes(npy[8:10], "little")
    return array.array("f", npy[header:])


def compiled(torch, module):
    # Forgets earlier rows. Otherwise sizes would become variables, in code that differs from a single row's.
    torch.compiler.reset()
    return torch.compile(module)


def warm(torch, worker, case):
    """Compiles a row with arbitrary weights and tokens, because the code does not depend on them."""
    start = time.perf_counter()
    shape = shape_of(case)
    try:
        with torch.no_grad():
            forward = compiled(torch, worker.module(shape, "eager").cuda())
            forward(torch.randn(case.batch, case.tokens, case.dim).cuda()).cpu()
    except Exception as reason:
        sys.exit(f"{case.label}: not compiled: {one_line(reason)}")
    print(f"{case.label}: compiled in {time.perf_counter() - start:.0f} s")


def shape_of(case):
    return {"dim": case.dim, "tokens": case.tokens, "chunk": case.chunk, "heads": case.heads, "batch": case.batch}


def one_line(reason):
    return f"{type(reason).__name__}: {str(reason).splitlines()[:1]}"


def of_pytorch(torch, worker, case, weights, sequence, side, runs, add):
    """Returns PyTorch's output and passes its times to `add`."""
    import numpy as np
    from safetensors.torch import load_file

    module = worker.module(case, "eager")
    module.load_state_dict(load_file(weights))
    module = module.cuda()
    forward = compiled(torch, module) if side == "compiled" else module
    host = torch.from_numpy(np.load(sequence))
    with torch.no_grad():
        output = forward(host.cuda()).cpu()
        whole = []
        for _ in range(runs):
            start = time.perf_counter()
            forward(host.cuda()).cpu()
            whole.append((time.perf_counter() - start) * 1e3)
        there = host.cuda()
        forward(there)
        inside = []
        for _ in range(runs):
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            marks[0].record()
            forward(there)
            marks[1].record()
            torch.cuda.synchronize()
            inside.append(marks[0].elapsed_time(marks[1]))
    add(side, "host to host", whole)
    add(side, "on the GPU", inside)
    return output.numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nmem", help="path of nmem")
    parser.add_argument("--rows", help="rows, counted from 1, separated by commas")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--out", help="output file (CSV)")
    parser.add_argument("--warm", type=int, metavar="ROW", help="only compile that row")
    chosen = parser.parse_args()
    if chosen.warm is None and not (chosen.nmem and chosen.out):
        parser.error("pass --nmem and --out, or --warm")
    try:
        import torch
        import titans_pytorch  # noqa: F401
        import worker
    except ImportError as missing:
        print(f"only nmem is timed: {missing}")
        torch = None
    if chosen.warm is not None:
        if torch:
            warm(torch, worker, CASES[chosen.warm - 1])
        return
    numbers = [int(row) for row in chosen.rows.split(",")] if chosen.rows else range(1, len(CASES) + 1)
    wrong = []
    with tempfile.TemporaryDirectory() as directory, open(chosen.out, "w", newline="") as file:
        directory = pathlib.Path(directory)
        writer = csv.writer(file)
        writer.writerow("dim,tokens,chunk,heads,batch,side,what,median_ms,min_ms,runs".split(","))
        for case in (CASES[number - 1] for number in numbers):
            weights, sequence, out = directory / "weights.safetensors", directory / "sequence.npy", directory / "out"
            shape = shape_of(case)
            rows = []
            if torch:
                worker.draw(shape, str(weights), str(sequence))
                memory = ["--memory", weights]
            else:
                tokens = ["--tokens", case.tokens, "--dim", case.dim, "--sequences", case.batch]
                command = [chosen.nmem, "generate", "needle", *tokens, "--out", sequence, "--force", "--quiet"]
                subprocess.run([str(part) for part in command], check=True)
                memory = ["--init", "xavier", "--heads", case.heads, "--dim-head", case.dim_head]

            def add(side, what, times):
                rows.append([*shape.values(), side, what, statistics.median(times), min(times), len(times)])

            online = ["retrieve", sequence, "--online", *memory, "--chunk-size", case.chunk, "--repeat", chosen.runs]
            outputs = {}
            for device in ("cpu", "cuda"):
                report = nmem(chosen.nmem, [*online, "--device", device], out)
                times = [seconds * 1e3 for seconds in report["wall_s"]["engine_all"]]
                add(f"nmem {device}", "engine", times[1:] or times)
                outputs[f"nmem {device}"] = elements((out / "retrieved.npy").read_bytes())
            # A failed compilation is tried once more.
            for side in ("eager", "compiled", "compiled") if torch else ():
                if side in outputs:
                    continue
                try:
                    output = of_pytorch(torch, worker, shape, weights, sequence, side, chosen.runs, add)
                    outputs[side] = output.reshape(-1).tolist()
                except Exception as reason:
                    rows[:] = [row for row in rows if row[5] != side]
                    print(f"{case.label}: {side}: {one_line(reason)}")
            expected = outputs["nmem cpu"]
            largest = max(map(abs, expected))
            for side, output in outputs.items():
                # Bounds for f32 sums in a different order. TF32 in nmem would exceed them. A NaN is within no bound.
                bound = 2e-5 if side.startswith("nmem") else 1e-3
                if not all(abs(a - b) <= bound * largest for a, b in zip(output, expected, strict=True)):
                    wrong.append(f"{case.label}: {side} differs from nmem on the CPU by more than {bound} of the largest")
            line = ", ".join(f"{row[5]} {row[6]} {row[7]:.3g}" for row in rows)
            print(f"{case.label}: ms: {line}", flush=True)
            # Written now, so that a failure in the next row does not lose this one.
            writer.writerows(rows)
            file.flush()
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
