"""The training loop of the study in PyTorch, for its time: one model after another on one thread, as small tensors need it.

Prints the seconds, and the last loss of each model. Needs torch: `pip install torch`.
"""

import argparse
import itertools
import math
import random
import time

import torch

ITEMS, WIDTH, BATCH, STEPS = 8, 16, 32, 600


def training_rows():
    rows = list(itertools.permutations(range(ITEMS)))
    random.Random(20260913).shuffle(rows)
    return torch.tensor(rows[:32000])


def initial(depth, seed):
    g = torch.Generator().manual_seed(seed)
    for _ in range(3):
        torch.empty(ITEMS, WIDTH).normal_(generator=g)
    p = {f"embed_{n}": torch.empty(ITEMS, WIDTH).normal_(std=0.2, generator=g) for n in "qkv"}
    torch.empty(2 * 33 * depth).uniform_(generator=g)
    for _ in range(depth):
        torch.empty(WIDTH, WIDTH).normal_(generator=g)
    for j in range(depth):
        p[f"memory_{j}"] = torch.empty(WIDTH, WIDTH).normal_(std=0.02, generator=g)
    p["head_weight"] = 0.5 * torch.rand(ITEMS, WIDTH, generator=g) - 0.25
    p["head_bias"] = 0.5 * torch.rand(ITEMS, generator=g) - 0.25
    p["rate_weight"], p["decay_weight"] = torch.zeros(depth, 2 * WIDTH), torch.zeros(depth, 2 * WIDTH)
    p["rate_bias"] = torch.full((depth,), math.log(0.0005 / 0.9995))
    p["decay_bias"] = torch.full((depth,), math.log(99))
    p["norm_weight"], p["norm_bias"] = torch.ones(WIDTH), torch.zeros(WIDTH)
    return {name: tensor.requires_grad_() for name, tensor in p.items()}


def slope(z):
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def loss_of(p, depth, chunk, mapping, writes, queries, released):
    r, v = p["embed_k"][writes], p["embed_v"][mapping.gather(1, writes)]
    k = torch.nn.functional.normalize(r, dim=-1, eps=1e-12)
    both = torch.cat([r, v], -1)
    rate = 2 * torch.sigmoid(both @ p["rate_weight"].T + p["rate_bias"])
    keep = torch.sigmoid(both @ p["decay_weight"].T + p["decay_bias"])
    w = [p[f"memory_{j}"].expand(len(mapping), WIDTH, WIDTH) for j in range(depth)]
    for t in range(0, ITEMS, chunk):
        of = slice(t, t + chunk)
        x, z = [k[:, of]], []
        for j in range(depth):
            z.append(x[j] @ w[j])
            x.append(torch.nn.functional.silu(z[j]))
        d, dz = x[-1] - v[:, of], [None] * depth
        for j in reversed(range(depth)):
            dz[j] = d * slope(z[j])
            if j:
                d = dz[j] @ (w[j].detach() if released else w[j]).transpose(1, 2)
        # The product of what later tokens keep, and of all tokens.
        products = keep[:, of].flip(1).cumprod(1).flip(1)
        later = torch.cat([products[:, 1:], torch.ones_like(products[:, :1])], 1)
        for j in range(depth):
            scaled = dz[j] * (rate[:, of, j] * later[..., j])[..., None]
            w[j] = products[:, 0, j, None, None] * w[j] - x[j].transpose(1, 2) @ scaled
    y = p["embed_q"][queries]
    for j in range(depth):
        y = torch.nn.functional.silu(y @ w[j])
    y = torch.nn.functional.layer_norm(y, (WIDTH,), p["norm_weight"], p["norm_bias"])
    logits = y @ p["head_weight"].T + p["head_bias"]
    return torch.nn.functional.cross_entropy(logits.reshape(-1, ITEMS), mapping.gather(1, queries).reshape(-1))


def train(rows, depth, chunk, seed, released, steps=STEPS):
    p = initial(depth, seed)
    g = torch.Generator().manual_seed(10000 + seed)
    optimiser = torch.optim.AdamW(p.values(), lr=0.003, weight_decay=0.01, foreach=True)
    for _ in range(steps):
        mapping = rows[torch.randint(len(rows), (BATCH,), generator=g)]
        writes, queries = (torch.rand(BATCH, ITEMS, generator=g).argsort(1) for _ in range(2))
        optimiser.zero_grad()
        loss = loss_of(p, depth, chunk, mapping, writes, queries, released)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(p.values(), 1.0)
        optimiser.step()
    return loss.item()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="10-10", help="FIRST-LAST")
    args = parser.parse_args()
    first, last = map(int, args.seeds.split("-"))
    torch.set_num_threads(1)
    rows = training_rows()
    train(rows, 2, 8, first, False, steps=20)
    begin = time.perf_counter()
    models = 0
    for depth, chunk, seed in itertools.product((1, 2), (1, 2, 4, 8), range(first, last + 1)):
        for released in (False, True):
            loss = train(rows, depth, chunk, seed, released)
            models += 1
            print(f"depth {depth}, chunk {chunk}, seed {seed}, {'released' if released else 'complete'}: {loss:.6f}")
    print(f"{models} models in {time.perf_counter() - begin:.2f} s")


if __name__ == "__main__":
    main()
