"""A PyTorch process that holds one module and one sequence, and times forwards on request.

Requests and answers are lines of JSON. Between requests the process sleeps in a read.
"""

import json
import os
import sys
import time

import numpy as np
import torch
from safetensors.torch import load_file, save_file


def draw(case, weights, sequence):
    """Saves a module's parameters in nmem's format, and a sequence, both from a fixed random state."""
    torch.manual_seed(0)
    state = module(case, "eager").state_dict()
    for name, tensor in state.items():
        if name.startswith("memory_model."):
            # The module samples N(0, 1). With such weights, float32 outputs of any two
            # implementations have few digits in common. This is `nmem --init xavier`.
            bound = (6 / sum(tensor.shape)) ** 0.5
            tensor.uniform_(-bound, bound)
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, weights, metadata={"model": "attention"})
    np.save(sequence, torch.randn(case["batch"], case["tokens"], case["dim"]).numpy())


def module(case, side):
    if side == "latest":
        from titans_pytorch import NeuralMemory
    else:
        from titans_pytorch.titans_attn_memory import NeuralMemory
    shape = {name: case[name] for name in ("dim", "heads")}
    return NeuralMemory(chunk_size=case["chunk"], dim_head=case["dim"] // case["heads"], **shape)


def peak():
    """Returns the peak resident memory of this process in bytes; None except on Linux."""
    try:
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def prepare(case, weights, sequence, exact, exact_eps32):
    """Samples a row's weights and sequence, and saves the module's output in f64.

    Saves it twice: with the module's own ε, and with the ε that its norms have in f32. The second one
    is the reference for f32 outputs.
    """
    draw(case, weights, sequence)
    double = module(case, "eager").double()
    double.load_state_dict(load_file(weights))
    tokens = torch.from_numpy(np.load(sequence)).double()
    for path, eps in ((exact, None), (exact_eps32, torch.finfo(torch.float32).eps)):
        for part in double.modules():
            if isinstance(part, torch.nn.RMSNorm):
                part.eps = eps
        with torch.no_grad():
            np.save(path, double(tokens).numpy())
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkl": torch.backends.mkl.is_available(),
    }


class Worker:
    def prepare(self, **request):
        return prepare(**request)

    def load(self, side, threads, case, weights, sequence):
        torch.set_num_threads(threads)
        self.side = side
        torch.manual_seed(0)  # 0.5.5 keeps its sampled parameters, because it has different ones
        self.module = module(case, side)
        if side != "latest":
            self.module.load_state_dict(load_file(weights))
        self.sequence = torch.from_numpy(np.load(sequence))
        self.forward = torch.compile(self.module) if side == "compiled" else self.module
        return {"peak_bytes": peak()}

    def once(self):
        # no_grad does not affect the module's gradients, which use torch.func. inference_mode was
        # slower in a short trial. Like nmem, this keeps no graph of the forward itself.
        with torch.no_grad():
            output = self.forward(self.sequence)
        return output[0] if self.side == "latest" else output

    def first(self, output):
        """Runs the first forward, with its compilation if any, and saves the output."""
        retrieved = self.once().numpy()
        if not np.isfinite(retrieved).all():
            raise ValueError("the output is not finite")
        np.save(output, retrieved)
        counters = torch._dynamo.utils.counters if self.side == "compiled" else None
        if counters is None:
            return {}
        return {
            "graphs": counters["stats"]["unique_graphs"],
            "graph_breaks": sum(counters["graph_break"].values()),
        }

    def run(self, seconds, at_least):
        """Returns times of forwards in ms. The first one must be dropped, because threads wake up in it."""
        times = []
        until = time.perf_counter() + seconds
        while len(times) <= at_least or time.perf_counter() < until:
            start = time.perf_counter()
            self.once()
            times.append((time.perf_counter() - start) * 1e3)
        return {"ms": times, "peak_bytes": peak()}


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # all other output goes to the log
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            said = str(error).strip().splitlines() or [""]
            answer = {"error": f"{type(error).__name__}: {said[0]}"[:300]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
