#!/usr/bin/env python3
"""Recompute what data/README.md says about the shipped passages, with intervals by passage.

    nmem store data/passages.npy --memory data/passages.safetensors --chunk-size 16 --dtype f64 --out results/claims-store
    nmem retrieve data/passages.npy --online --memory data/passages.safetensors --chunk-size 16 --dtype f64 --out results/claims-online
    nmem retrieve data/passages.npy --memory data/passages.safetensors --chunk-size 16 --dtype f64 --out results/claims-zeroed
    data/claims.py results/claims-store results/claims-online results/claims-zeroed

Needs numpy, scipy and safetensors. Intervals are 95 %: the bootstrap resamples the 24 passages, with all chunks of both visits,
10,000 times from a fixed seed, and takes percentiles. Those of repeats are Student's t over the 12 passages that come twice.
"""

import csv
import pathlib
import sys

import numpy
from safetensors.numpy import load_file
from scipy import stats

DATA = pathlib.Path(__file__).parent
CHUNK = 16
RESAMPLES = 10_000


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def area(scores, positive):
    """The area under the ROC curve: ties count half."""
    of, others = scores[positive][:, None], scores[~positive]
    return (of > others).mean() + 0.5 * (of == others).mean()


def main(store, online, zeroed):
    tokens = numpy.load(DATA / "passages.npy").astype(float)
    labels = rows(DATA / "passages_labels.csv")[::CHUNK]
    segment = [label["segment"] for label in labels]
    passage = numpy.array([label["passage"] for label in labels])
    chunks = len(labels)
    loss, before, surprise = numpy.zeros((3, chunks))
    for row in rows(f"{store}/metrics.csv"):
        chunk = int(row["chunk"])
        loss[chunk] += float(row["loss"])
        before[chunk] += float(row["loss_before"])
        surprise[chunk] += float(row["surprise"])
    rng = numpy.random.default_rng(0)
    names = sorted(set(passage))
    # The first chunk has none before it.
    places = {name: numpy.flatnonzero(passage[1:] == name) for name in names}
    resamples = [numpy.concatenate([places[names[i]] for i in rng.integers(0, len(names), len(names))])
                 for _ in range(RESAMPLES)]
    percentiles = lambda values: "[{:.4f}, {:.4f}]".format(*numpy.percentile(values, [2.5, 97.5]))

    changes = numpy.array([segment[i] != segment[i - 1] for i in range(1, chunks)])
    means = tokens.reshape(chunks, CHUNK, -1).mean(1)
    unit = means / numpy.linalg.norm(means, axis=1, keepdims=True)
    scores = {
        "loss_before / loss": (before / loss)[1:],
        "cosine of successive chunk means": -(unit[1:] * unit[:-1]).sum(1),
        "distance of successive chunk means": numpy.linalg.norm(means[1:] - means[:-1], axis=1),
        "loss": loss[1:],
        "surprise": surprise[1:],
    }
    print(f"area under the ROC curve of {changes.sum()} changes among {len(changes)} chunks")
    usable = [places for places in resamples if 0 < changes[places].sum() < len(places)]
    areas = {name: numpy.array([area(of[places], changes[places]) for places in usable]) for name, of in scores.items()}
    for name, of in scores.items():
        print(f"  {name}: {area(of, changes):.4f} {percentiles(areas[name])}")
        if name.endswith("means"):
            ours = scores["loss_before / loss"]
            difference = area(of, changes) - area(ours, changes)
            print(f"    minus that of the ratio: {difference:.4f} {percentiles(areas[name] - areas['loss_before / loss'])}")

    decays = {}
    for row in rows(f"{store}/metrics.csv"):
        decays.setdefault(row["head"], []).append(float(row["decay"]))
    print("mean decay by head:", ", ".join(f"{numpy.mean(of):.3f}" for of in decays.values()))

    print("loss_before / loss of repeats minus that of the first time")
    ratio = before / loss
    for skip in (0, 1):
        pairs = {}
        for chunk, label in enumerate(labels):
            if label["repeat"] == "1" and int(label["index_in_passage"]) >= skip * CHUNK:
                difference = ratio[chunk] - ratio[int(label["first_seen_at"]) // CHUNK]
                pairs.setdefault(label["passage"], []).append(difference)
        by_passage = numpy.array([numpy.mean(of) for of in pairs.values()])
        every = numpy.concatenate(list(pairs.values()))
        test = stats.ttest_1samp(by_passage, 0)
        low, high = test.confidence_interval()
        what = "without first chunks" if skip else "all chunks"
        print(f"  {what}: lower in {(by_passage < 0).sum()} of {len(by_passage)} passages, {(every < 0).sum()} of {len(every)} chunks; "
              f"mean {by_passage.mean():.4f} [{low:.4f}, {high:.4f}], p {test.pvalue:.2f}")

    hidden = [i for i in range(tokens.shape[1]) if i % 4 != 3]
    head = load_file(DATA / "passages_head.safetensors")

    def error(directory):
        """Mean square error over the hidden coordinates, by chunk, of the head on what was read."""
        read = numpy.load(f"{directory}/retrieved.npy").astype(float)
        predicted = read @ head["weight"].T.astype(float) + head["bias"]
        return ((predicted - tokens[:, hidden]) ** 2).mean(1).reshape(chunks, CHUNK).mean(1)[1:]

    errors = {"memory": error(online), "updates zeroed": error(zeroed),
              "zero": (tokens[:, hidden] ** 2).mean(1).reshape(chunks, CHUNK).mean(1)[1:]}
    print("mean square error over the hidden coordinates, from chunk 1 on")
    for name, of in errors.items():
        print(f"  {name}: {of.mean():.4f} {percentiles([of[places].mean() for places in resamples])}; "
              f"first chunks of passages {of[changes].mean():.4f}")
    for name in ("updates zeroed", "zero"):
        of = errors["memory"] - errors[name]
        print(f"  memory minus {name}: {of.mean():.4f} {percentiles([of[places].mean() for places in resamples])}; "
              f"first chunks {of[changes].mean():.4f}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
