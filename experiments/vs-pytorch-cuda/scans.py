#!/usr/bin/env python3
"""Times scans with gates per element in PyTorch, (8, 1536, T) f32 by CUDA events, beside a copy of the same number of bytes.

accelerated_scan's kernels take (batch, channels, steps), with powers of two. Inputs rotate through 256 MB or more, as in `nmem
scan-bench`. Modules that cannot be imported are reported and skipped.
"""

import argparse
import csv
import importlib
import statistics

BATCH, CHANNELS = 8, 1536
ROUND = 256 << 20
# 10⁻⁴ of the largest state: f32, gates of 0.9 to 1.
TOLERANCE = 1e-4


def milliseconds(torch, run, runs):
    """Returns the time of each run. All runs are queued before the first result is awaited."""
    run(0)
    torch.cuda.synchronize()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
    marks[0].record()
    for i in range(runs):
        run(i + 1)
        marks[i + 1].record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in zip(marks, marks[1:])]


def oracle(torch, gates, inputs):
    state = torch.zeros(inputs.shape[:2], dtype=torch.float64, device=inputs.device)
    states = torch.empty(inputs.shape, dtype=torch.float64, device=inputs.device)
    for t in range(inputs.shape[2]):
        state = gates[:, :, t].double() * state + inputs[:, :, t].double()
        states[:, :, t] = state
    return states


def measured(torch, sides, steps, runs):
    """Returns the rows of one number of steps: each side, and a copy of the same number of bytes."""
    rows = []
    shape = BATCH, CHANNELS, steps
    bytes_moved = 3 * 4 * BATCH * CHANNELS * steps
    input_sets = max(2, min(128, -(-ROUND // bytes_moved)))
    torch.manual_seed(0)
    inputs = [(torch.empty(shape, device="cuda").uniform_(0.9, 1), torch.empty(shape, device="cuda").uniform_(-1, 1)) for _ in range(input_sets)]
    halves = [(torch.empty(bytes_moved // 2, dtype=torch.uint8, device="cuda").random_(), torch.empty(bytes_moved // 2, dtype=torch.uint8, device="cuda")) for _ in range(input_sets)]
    times = milliseconds(torch, lambda i: halves[i % input_sets][1].copy_(halves[i % input_sets][0]), runs)
    copy = bytes_moved / statistics.median(times) / 1e6
    del halves
    # The oracle loops over steps in Python, so it runs only for moderate numbers of steps.
    expected = oracle(torch, *inputs[0]) if steps <= 4096 else None
    with torch.no_grad():
        for side, scan in sides.items():
            try:
                got = scan(*inputs[0])
                error = None
                if expected is not None:
                    error = float((got.double() - expected).abs().max())
                    if not error <= TOLERANCE * float(expected.abs().max()):
                        raise ValueError(f"wrong by {error}")
                del got
                times = milliseconds(torch, lambda i: scan(*inputs[i % input_sets]), runs)
            except Exception as reason:
                print(f"{side} at {steps} steps: {type(reason).__name__}: {reason}")
                continue
            speed = bytes_moved / statistics.median(times) / 1e6
            rows.append([side, BATCH, steps, CHANNELS, statistics.median(times), min(times), bytes_moved, speed, speed / copy, error, copy])
    rows.append(["copy", BATCH, steps, CHANNELS, bytes_moved / copy / 1e6, None, bytes_moved, copy, 1.0, None, copy])
    del inputs, expected
    torch.cuda.empty_cache()
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", default="128,1024,8192,65536")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--out", required=True)
    chosen = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("skipped: torch is not installed")
        return
    sides = {}
    for name in ("warp", "scalar", "triton"):
        try:
            sides[f"accelerated_scan.{name}"] = importlib.import_module(f"accelerated_scan.{name}").scan
        except Exception as error:  # an extension that cannot be compiled says so in many ways
            print(f"skipped: accelerated_scan.{name}: {type(error).__name__}: {str(error).splitlines()[:1]}")
    with open(chosen.out, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow("algorithm,batch,steps,channels,median_ms,min_ms,bytes,gb_per_s,copy_fraction,max_abs_error,copy_gb_per_s".split(","))
        for steps in map(int, chosen.steps.split(",")):
            rows = measured(torch, sides, steps, chosen.runs)
            print(f"{steps} steps: " + ", ".join(f"{row[0]} {row[4]:.3f} ms" for row in rows), flush=True)
            # Written now, so that a failure in the next shape does not lose this one.
            writer.writerows(rows)
            file.flush()


if __name__ == "__main__":
    main()
