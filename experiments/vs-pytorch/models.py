#!/usr/bin/env python3
"""Times nmem against titans-pytorch beyond one forward of 0.0.17: the default memory of 0.5.5, its refreshes, and outer gradients.

    models.py [--nmem PATH] [--rounds N] [--threads N] [--only forward,refresh,gradient] [--out FILE.csv]

Runs in the venv that compare.py makes. Each row has a PyTorch process of its own, so that its peak of memory is that of the row.
Both sides take turns. A turn is a forward, or a forward and a backward, on the same weights and inputs, after one that is dropped.
Writes a line per row with the medians, and prints a table. The error is that of nmem's result in f64 from PyTorch's in f64, relative
to the largest. In f32 a refreshed memory may multiply rounding errors from chunk to chunk.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"

# Work, version of titans-pytorch, and rows: dim, tokens, chunk, heads.
WORKS = {
    "forward": ("0.5.5", [(64, 1024, 16, 1), (256, 2048, 64, 4), (384, 4096, 64, 6), (384, 4096, 64, 1)]),
    "refresh": ("0.5.5", [(64, 1024, 16, 1), (256, 2048, 64, 4), (384, 4096, 64, 6), (384, 4096, 64, 1)]),
    "gradient": ("0.0.17", [(64, 1024, 16, 1), (256, 2048, 64, 4), (384, 1024, 64, 1), (64, 4096, 2, 1), (384, 4096, 64, 6)]),
    "gradient 0.5.5": ("0.5.5", [(64, 1024, 16, 1), (256, 2048, 64, 4), (384, 1024, 64, 6)]),
}


def worker(work, version, dim, tokens, chunk, heads, directory, threads):
    """Serves turns on stdin: each line is a turn, and its answer the milliseconds and the peak of memory."""
    import copy
    import time

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
    state = {name: tensor.clone().contiguous() for name, tensor in state.items()}
    metadata = {"model": "attention"} if version == "0.0.17" else {}
    save_file(state, directory / "weights.safetensors", metadata=metadata)
    (directory / "args.json").write_text(json.dumps(arguments))
    sequence, cotangent = torch.randn(1, tokens, dim), torch.randn(1, tokens, dim)
    np.save(directory / "sequence.npy", sequence.numpy())
    np.save(directory / "cotangent.npy", cotangent.numpy())
    has_gradient = work.startswith("gradient")

    def turn(memory=memory, sequence=sequence, cotangent=cotangent):
        memory.zero_grad()
        sequence = sequence.detach().requires_grad_(has_gradient)
        with torch.set_grad_enabled(has_gradient):
            read = memory(sequence)
            read = read[0] if isinstance(read, tuple) else read
            if has_gradient:
                (read * cotangent).sum().backward()
        return sequence.grad if has_gradient else read

    def peak():
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024

    exact = turn(copy.deepcopy(memory).double(), sequence.double(), cotangent.double())
    np.save(directory / "expected.npy", exact.numpy())
    del exact
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    print("{}", file=answers, flush=True)
    for _ in sys.stdin:
        turn()
        begin = time.perf_counter()
        turn()
        print(json.dumps({"ms": (time.perf_counter() - begin) * 1e3, "peak": peak()}), file=answers, flush=True)


def nmem_turn(nmem, work, version, directory, threads, chunk, dtype="f32"):
    """Returns the milliseconds of a turn after one that is dropped, the peak of memory, and the result."""
    import numpy as np

    files = ["--memory", directory / "memory.safetensors", "--threads", threads, "--dtype", dtype]
    files += ["--repeat", 1, "--force", "--quiet"]
    if version == "0.0.17":
        files += ["--chunk-size", chunk]
    if work.startswith("gradient"):
        out = directory / "gradient.npz"
        more = ["--cotangent", directory / "cotangent.npy", "--out", out, "--format", "json"]
        said, peak = run([nmem, "gradients", directory / "sequence.npy", *files, *more])
        return json.loads(said)["seconds_all"][1] * 1e3, peak, np.load(out)["seq"]
    out = directory / "out"
    _, peak = run([nmem, "retrieve", directory / "sequence.npy", "--online", *files, "--no-plots", "--out", out])
    report = json.loads((out / "run.json").read_text())
    return report["wall_s"]["engine_all"][1] * 1e3, peak, np.load(out / "retrieved.npy")


def run(command):
    """Returns what a command printed, and its peak of memory."""
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"models.py: error: {command[1]} failed with status {process.returncode}: see above")
    return said, usage.ru_maxrss * 1024


def measure(work, version, row, options):
    import numpy as np

    dim, tokens, chunk, heads = row
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        environment = os.environ | {"PYTHONPATH": str(VENV / f"titans-{version}")}
        arguments = [work, version, *map(str, row), name, str(options.threads)]
        command = [sys.executable, "-W", "ignore", __file__, "--worker", *arguments]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True) as pytorch:

            def answer():
                line = pytorch.stdout.readline()
                if not line:
                    sys.exit(f"models.py: error: PyTorch ended in {work} of {row}: see above")
                return json.loads(line)

            answer()
            weights, memory = directory / "weights.safetensors", directory / "memory.safetensors"
            if version == "0.0.17":
                weights.rename(memory)
            else:
                run([options.nmem, "import", weights, "--from", f"titans-pytorch-{version}", "--args",
                     directory / "args.json", "--out", memory, "--quiet"])
            turn = (options.nmem, work, version, directory, options.threads, chunk)
            result = nmem_turn(*turn, dtype="f64")[2]
            expected = np.load(directory / "expected.npy").reshape(result.shape)
            error = float(np.abs(result - expected).max() / np.abs(expected).max())
            if not error < 1e-5:
                sys.exit(f"models.py: error: {work} of {row}: results differ by {error:.1e} of the largest")
            theirs, ours = [], []
            for _ in range(options.rounds):
                print("turn", file=pytorch.stdin, flush=True)
                theirs.append(answer())
                ms, peak, _ = nmem_turn(*turn)
                ours.append({"ms": ms, "peak": peak})
            pytorch.stdin.close()
    pytorch_ms, nmem_ms = (statistics.median(turn["ms"] for turn in side) for side in (theirs, ours))
    return {
        "work": work.split()[0], "version": version, "dim": dim, "tokens": tokens, "chunk": chunk, "heads": heads,
        "pytorch_ms": pytorch_ms, "nmem_ms": nmem_ms, "ratio": pytorch_ms / nmem_ms,
        "lowest_ratio": min(a["ms"] / b["ms"] for a, b in zip(theirs, ours)),
        "highest_ratio": max(a["ms"] / b["ms"] for a, b in zip(theirs, ours)),
        "pytorch_peak_mb": max(turn["peak"] for turn in theirs) / 1e6,
        "nmem_peak_mb": max(turn["peak"] for turn in ours) / 1e6,
        "error": error,
    }  # fmt: skip


def main():
    if sys.argv[1:2] == ["--worker"]:
        work, version, *row, directory, threads = sys.argv[2:]
        worker(work, version, *map(int, row), Path(directory), int(threads))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nmem", type=Path, metavar="PATH", help="path of nmem (default: build it)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each side (default: 5)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads of both sides (default: 2)")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="WORK,…", help="forward, refresh, gradient (default: all)")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="also write the rows as CSV")
    options = parser.parse_args()
    import compare

    python = compare.environment()
    if Path(sys.prefix).resolve() != VENV.resolve():
        os.execv(python, [python, __file__, *sys.argv[1:]])
    options.nmem = compare.program(options.nmem, "--bin", "nmem")
    rows = []
    print("| work | dim, tokens, chunk, heads | PyTorch, ms | nmem, ms | ratio | of all turns | PyTorch, MB | nmem, MB | error |")
    print("| --- | --- | ---: | ---: | ---: | --- | ---: | ---: | ---: |")
    for work, (version, shapes) in WORKS.items():
        for row in shapes if options.only is None or work.split()[0] in options.only else []:
            rows.append(measure(work, version, row, options))
            of = rows[-1]
            print(
                f"| {of['work']}, {version} | {', '.join(map(str, row))} | {of['pytorch_ms']:.1f} | {of['nmem_ms']:.1f} | "
                f"{of['ratio']:.1f} | {of['lowest_ratio']:.1f} to {of['highest_ratio']:.1f} | {of['pytorch_peak_mb']:.0f} | "
                f"{of['nmem_peak_mb']:.0f} | {of['error']:.0e} |",
                flush=True,
            )
    if options.out is not None:
        with open(options.out, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
