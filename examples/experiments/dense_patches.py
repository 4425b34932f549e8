"""Draws dense flows on colour patches: milliseconds a step, learning curves over seconds, and samples.

    python examples/experiments/dense_patches.py --runs study_output/dense_patches \
        --steps benchmark_output/benchmark_large.csv --output dense_patches.png

The runs are those of `study.py dense_patches`; the steps are those of `benchmarks/steps.py --parts large`.
"""

import argparse
import csv
import math
import pathlib

import keras
from data_sets import load
from matplotlib.figure import Figure

import tfp_selfnorm as sn

SIDES = (16, 32, 64)
STEPS = {
    "Keras Dense, Adam": "a Keras Dense",
    "self_norm, tracked, Adam": "tracked",
    "exact gradient, Adam": "exact gradient",
}
COLORS = dict(zip(("a Keras Dense", "tracked", "exact gradient"), ("0.5", *sn.plot.COLORS), strict=False))


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def draw_steps(axis, rows):
    """Seconds of a training step of one layer over its dimensions."""
    for step, label in STEPS.items():
        chosen = sorted((int(r["size"]), float(r["median_ms"]) / 1e3) for r in rows if r["step"] == step)
        axis.plot(*zip(*chosen, strict=True), marker="o", markersize=4, color=COLORS[label], label=label)
    axis.set(xscale="log", yscale="log", xlabel="dimensions D", title="seconds a step, one layer, B = 100")
    axis.set_xticks(sizes := sorted({int(r["size"]) for r in rows}), [f"{size:,}" for size in sizes])
    axis.minorticks_off()


def draw_curves(axis, rows):
    """Bits per dimension of the validation patches over the seconds of training."""
    for side in SIDES:
        size = 3 * side * side
        for method in ("tracked", "exact gradient"):
            chosen = [r for r in rows if r["label"] == f"{method}, {side}x{side}" and r["seed"] == "1"]
            seconds = [float(r["seconds"]) for r in chosen]
            bits = [float(r["val_nll"]) / (size * math.log(2)) for r in chosen]
            axis.plot(
                seconds,
                bits,
                marker="o",
                markersize=3,
                linestyle="-" if method == "tracked" else "--",
                color=COLORS[method],
                label=f"{method}, D = {size:,}",
            )
    axis.set(xscale="log", xlabel="seconds of training, two cores", title="validation, bits per dimension")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="the output folder of the study")
    parser.add_argument("--steps", type=pathlib.Path, required=True, help="benchmark_large.csv")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1.15, 1.3, 0.8, 0.8))
    draw_steps(axes[0], read(arguments.steps))
    draw_curves(axes[1], read(arguments.runs / "curves.csv"))
    for axis in axes[:2]:
        axis.grid(alpha=0.3)
        sn.plot.label_lines(axis)
    side = SIDES[-1]
    model = keras.models.load_model(arguments.runs / f"tracked__{side}x{side}_seed1" / "best.keras")
    data = load(f"photo_patches/{side}")
    samples = model.sample(9, seed=1)
    for axis, title, shown in ((axes[2], "test patches", data.test[:9]), (axes[3], "samples", samples)):
        sn.plot.images(shown, data.num_levels, ax=axis).set_title(f"{side}×{side}×3: {title}")
    figure.savefig(arguments.output, dpi=110)


if __name__ == "__main__":
    main()
