"""Computes what limits a step on one GPU, on 8 of a host and on 64 hosts of 8. Nothing here is measured.

    python examples/benchmarks/scale_gpus.py --csv examples/results/computed_scale.csv

The model is that of `step_model.py`, the flow has two dense layers. The constants are assumptions. Published
ones are peaks, so that a real step takes longer:

- Products: 494e12 operations a second, an H100 SXM with TF32 and dense matrices (NVIDIA's data sheet: 989e12
  with sparsity). Memory: 3.35e12 bytes a second, the same data sheet.
- The link in a host: 450e9 bytes a second in one direction (900 GB/s of NVLink in both). The link between
  hosts: 50e9, one adapter of 400 Gb/s a host, or 400e9, eight of them.
- Guessed, for there is no published figure: inverses at 6.7e12 operations a second, a tenth of float32
  without TF32; a message takes 10 microseconds in a host, 20 between hosts.
- The overhead comes from the one run on an H100 (`gpu_dense_22_epochs.csv`): an epoch of 500 steps took 2.1 s
  with its validation, of which the model explains some hundredths. A strategy may have more.

Each GPU has its own batch of B. `efficiency` is the number of examples a second over that of as many GPUs,
each alone. From `even_batch` on more than half of the step is work that grows with B. Keras compiles the step
of one GPU by XLA, and not under a strategy. The model counts this for the update only.
"""

import argparse
import csv
import dataclasses
import pathlib

from shared import write_csv
from step_model import Machine, Step, peak_bytes, seconds

RESULTS = pathlib.Path(__file__).parents[1] / "results"
SIZES, BATCHES = (1024, 4096, 16384), (128, 1024, 8192)
_STEPS_OF_AN_EPOCH = 500
_GPU = Machine(products=494e12, inverses=6.7e12, memory=3.35e12, overhead=0.0)
# Bytes a second of a link, and seconds of a message.
_LINKS = {"8 GPUs": (450e9, 10e-6), "64 hosts": (50e9, 20e-6), "64 hosts, 8 adapters": (400e9, 20e-6)}


def overhead():
    """Seconds a step of the one run on a GPU, without what the model explains."""
    with open(RESULTS / "gpu_dense_22_epochs.csv", newline="") as file:
        ends = [float(row["seconds"]) for row in csv.DictReader(file)]
    # The first epoch compiles the step.
    of_a_step = (ends[-1] - ends[0]) / (len(ends) - 1) / _STEPS_OF_AN_EPOCH
    return of_a_step - sum(seconds(Step("tracked", 784), _GPU).values())


def machines():
    """Numbers of GPUs and of hosts, and the constants, by name."""
    gpu = dataclasses.replace(_GPU, overhead=overhead())
    found = {"1 GPU": (1, 1, gpu)}
    for name, (network, latency) in _LINKS.items():
        counts = (8, 1) if name == "8 GPUs" else (8 * 64, 64)
        found[name] = *counts, dataclasses.replace(gpu, network=network, latency=latency)
    return found


def even_batch(step, machine):
    """The batch at which half of the step is work that grows with it."""
    one, two = (sum(seconds(dataclasses.replace(step, batch=n), machine).values()) for n in (1000, 2000))
    growth = (two - one) / 1000
    return round(one / growth - 1000)


def row_of(name, method, size, batch):
    """The seconds of a step by its parts, and its memory."""
    replicas, hosts, machine = machines()[name]
    step = Step(method, size, batch, replicas=replicas, hosts=hosts, has_strategy=replicas > 1)
    parts = seconds(step, machine)
    total = sum(parts.values())
    alone = sum(seconds(Step(method, size, batch), machines()["1 GPU"][-1]).values())
    return {
        "machine": name,
        "method": method,
        "D": size,
        "B": batch,
        "ms": 1e3 * total,
        **{f"{part}_ms": 1e3 * value for part, value in parts.items()},
        "largest": max(parts, key=parts.get),
        "efficiency": alone / total,
        "even_batch": even_batch(step, machine),
        "gib": peak_bytes(step) / 2**30,
    }


def rounded(row):
    """Three digits of each number that is no count."""
    return {name: float(f"{x:.3g}") if isinstance(x, float) else x for name, x in row.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", required=True)
    arguments = parser.parse_args()
    rows = [
        rounded(row_of(name, method, size, batch))
        for name in machines()
        for method in ("tracked", "paper", "exact")
        for size in SIZES
        for batch in BATCHES
    ]
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    write_csv(arguments.csv, rows)


if __name__ == "__main__":
    main()
