#!/usr/bin/env python3
"""Compute what titans-pytorch itself makes of the shipped passages, in float64: the files that tests compare nmem with.

    data/reference.py

Needs torch, numpy, safetensors and titans-pytorch 0.0.17. Writes trace_heads.csv, with nine digits, reference.json and
reference_retrieved_head.npy.
"""

import csv
import json
import pathlib

import numpy
import torch
from safetensors.torch import load_file
from titans_pytorch.titans_attn_memory import NeuralMemory
from torch.func import functional_call, grad, vmap

DATA = pathlib.Path(__file__).parent
HEADS, CHUNK = 4, 16


def per_head(tensors):
    """Returns the norm over all weights of a head and chunk, from tensors (heads, chunks, rows, columns)."""
    return sum(tensor.pow(2).sum((-2, -1)) for tensor in tensors.values()).sqrt()


def main():
    module = NeuralMemory(dim=64, heads=HEADS, dim_head=16, chunk_size=CHUNK).double()
    module.load_state_dict(load_file(DATA / "passages.safetensors"))
    tokens = torch.from_numpy(numpy.load(DATA / "passages.npy")).double()[None]
    weights = {name: tensor.detach() for name, tensor in module.memory_model.named_parameters()}

    def loss(weights, keys, values):
        return module.store_memory_loss_fn(functional_call(module.memory_model, weights, keys), values)

    with torch.no_grad():
        retrieved = module(tokens)[0]
        updates, (_, momenta) = module.store_memories(tokens, module.init_weights_and_momentum())
        normed = module.store_norm(tokens)
        gates = {
            "lr": (module.to_adaptive_step(normed).sigmoid() * -15).exp(),
            "momentum_gate": module.to_momentum(normed).sigmoid()[..., 0],
            "decay_gate": module.to_decay_factor(normed).sigmoid()[..., 0],
        }
        chunked = [
            module.split_heads(rows).unflatten(1, (-1, CHUNK))
            for rows in module.to_keys_values(normed).chunk(2, dim=-1)
        ]
        # A chunk is read with the updates up to the one before it.
        after = {name: weights[name] + updates[name] for name in weights}
        before = {
            name: torch.cat([weights[name].expand_as(tensor[:, :1]), tensor[:, :-1]], 1) for name, tensor in after.items()
        }
        at = {"base": weights, "memory": before, "after": after}
        dims = {name: None if name == "base" else 0 for name in at}
        over = lambda f, name: vmap(vmap(f, (dims[name], 0, 0)), (dims[name], 0, 0))
        columns = {f"loss_{name}": over(loss, name)(at[name], *chunked) for name in at}
        gradients = {name: over(grad(loss), name)(at[name], *chunked) for name in ("base", "memory")}
    columns["grad_norm"] = per_head(gradients["base"])
    columns["grad_norm_memory"] = per_head(gradients["memory"])
    columns |= gates
    columns["surprise_norm"] = columns["grad_norm"] * gates["lr"]
    columns["momentum_norm"] = per_head(momenta)
    columns["update_norm"] = per_head(updates)

    with open(DATA / "trace_heads.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["chunk", "head", *columns])
        for chunk in range(tokens.shape[1] // CHUNK):
            for head in range(HEADS):
                row = [f"{column[head, chunk].item():.9g}" for column in columns.values()]
                writer.writerow([chunk, head, *row])
    numpy.save(DATA / "reference_retrieved_head.npy", retrieved[:64].numpy())
    reference = {
        "sum": retrieved.sum().item(),
        "sum_of_squares": retrieved.pow(2).sum().item(),
        "row_2047_first_4": retrieved[2047, :4].tolist(),
        "note": "module output (retrieved) on passages.npy in float64; reference_retrieved_head.npy holds its first 64 rows",
    }
    (DATA / "reference.json").write_text(json.dumps(reference, indent=1) + "\n")


if __name__ == "__main__":
    main()
