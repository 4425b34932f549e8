"""Trains one experiment, and resumes it where it was killed.

    python examples/experiments/train.py tracked_fc_mnist --output runs/tracked    # see presets.py
    python examples/experiments/train.py selfnorm_cnn_mnist --epochs 3 --set flow.activation=smooth_leaky_relu
    python examples/experiments/train.py tracked_fc_mnist --set dataset=digits learning_rate=3e-3

MNIST and the like come through TFDS, which downloads them; `digits`, `photo_patches` (32x32 colour) and 2-D
densities need no download.
The output folder gets `config.json` (all that made the run), `metrics.csv` (a row an epoch, likelihoods in
nats, exact on the validation examples), `best.keras` (the weights of the best epoch), `results.json` (the
test examples under them), `curves.png` and grids of samples. The same command again goes on where it ended.
"""

import argparse
import csv
import dataclasses
import datetime
import gc
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import time

import keras
import numpy as np
from data_sets import batches, load
from matplotlib.figure import Figure
from presets import PRESETS, overridden
from raw_files import write_csv

import tfp_selfnorm as sn

_NOISE = {"validation": 10_001, "test": 10_002}
_GRIDS = 10
_EVALUATION_BATCH = 500
# For the initial values: events, and their numbers.
_EXAMPLES, _NUMBERS = 20_000, 2**25


class Stopwatch(keras.callbacks.Callback):
    """Adds the seconds of training to the figures of an epoch, and ends training at the time limit.

    `seconds` are those of the clock and `cpu_seconds` those of the process's computing, both from the
    start of the first epoch and without validation, samples and files.
    """

    def __init__(self, elapsed, cpu_elapsed, time_limit):
        super().__init__()
        self._elapsed, self._cpu_elapsed, self._limit = elapsed, cpu_elapsed, time_limit
        self._start = None

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter(), time.process_time()

    def on_test_begin(self, logs=None):
        self._stop()

    def on_epoch_end(self, epoch, logs=None):
        before = self._elapsed
        self._stop()
        logs["seconds"], logs["cpu_seconds"] = self._elapsed, self._cpu_elapsed
        longest = max(self._last, self._elapsed - before)
        if self._limit is not None and self._elapsed + longest > self._limit:
            print(f"\nThe next epoch would end after the time limit of {self._limit:g} s.")
            self.model.stop_training = True

    def _stop(self):
        if self._start is not None:
            self._last = time.perf_counter() - self._start[0]
            self._elapsed += self._last
            self._cpu_elapsed += time.process_time() - self._start[1]
            self._start = None


class Checkpoints(keras.callbacks.Callback):
    """Saves the model after each epoch, keeps the last one and the best, and logs the figures beside."""

    def __init__(self, output, rows):
        super().__init__()
        self._output, self._rows = output, rows

    def on_epoch_end(self, epoch, logs=None):
        row = {"epoch": epoch + 1} | {name: float(value) for name, value in sorted(logs.items())}
        path = checkpoint(self._output, epoch + 1)
        self.model.save(path)
        self._rows.append(row)
        if row["val_nll"] == min(r["val_nll"] for r in self._rows):
            link = self._output / "best.new"
            link.unlink(missing_ok=True)
            os.link(path, link)
            link.replace(self._output / "best.keras")
        write_csv(self._output / "metrics.csv", self._rows)
        checkpoint(self._output, epoch).unlink(missing_ok=True)


def checkpoint(output, epoch):
    return output / f"epoch_{epoch:05d}.keras"


def read_rows(path):
    """The figures of the epochs so far."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return [row | {"epoch": int(row["epoch"])} for row in rows]


def resume(output, epochs):
    """The model of the last whole epoch, or `None` without one or after the last, and the figures so far."""
    rows = read_rows(output / "metrics.csv")
    saved = sorted(output.glob("epoch_*.keras"))
    while rows and checkpoint(output, rows[-1]["epoch"]) not in saved:
        rows.pop()
    if not rows or rows[-1]["epoch"] >= epochs:
        return None, rows
    path = checkpoint(output, rows[-1]["epoch"])
    print(f"Going on after epoch {rows[-1]['epoch']}, from {path}")
    return keras.models.load_model(path), rows


def train(
    preset,
    seed=1,
    output=pathlib.Path("train_output"),
    time_limit=None,
    data_dir=None,
    verbose=1,
    callbacks=(),
):
    """Runs an experiment to its end; returns what `results.json` holds."""
    write_config(preset, seed, output)
    data = preset.portions(load(preset.dataset, data_dir))
    size = min(_EVALUATION_BATCH, len(data.validation), len(data.test))
    rows, adapting = _fit(preset, data, size, seed, output, time_limit, verbose, callbacks)
    # The trained flow and its optimizer leave the memory to the best weights.
    gc.collect()
    best = keras.models.load_model(output / "best.keras")
    figures = best.evaluate(batches(data.test, size, _NOISE["test"]), verbose=0, return_dict=True)
    results = {
        "seed": seed,
        "epochs": rows[-1]["epoch"],
        "best_epoch": min(rows, key=lambda row: row["val_nll"])["epoch"],
        "val_nll": min(row["val_nll"] for row in rows),
        **{f"test_{name}": float(value) for name, value in figures.items()},
        **inverse_errors(best.distribution),
        **adapting,
        "seconds": rows[-1]["seconds"],
        "cpu_seconds": rows[-1]["cpu_seconds"],
        "date": datetime.date.today().isoformat(),
    }
    (output / "results.json").write_text(json.dumps(results, indent=1))
    (output / "metrics.json").write_text(json.dumps(rows, indent=1))
    draw_curves(rows, output / "curves.png")
    if len(data.event_shape) == 1:
        draw_points(best.sample(5000, seed=seed).numpy(), data.test[:5000], output / "samples.png")
    return results


def _fit(preset, data, size, seed, output, time_limit, verbose, callbacks):
    """Trains to the end; returns the figures of the epochs, and those of `adapt`."""
    keras.utils.set_random_seed(seed)
    model, rows = resume(output, preset.epochs)
    steps_per_epoch = preset.steps_per_epoch or len(data.train) // preset.batch_size
    adapting = {}
    if not rows:
        model = preset.make_model(data, seed)
        examples = data.train[: min(_EXAMPLES, _NUMBERS // np.prod(data.event_shape))]
        start = time.perf_counter()
        model.adapt(batches(examples, len(examples), seed), len(examples), whitens=preset.whiten)
        adapting = {"adapt_seconds": time.perf_counter() - start}
        model.compile(preset.make_optimizer(steps_per_epoch))
    first = rows[-1]["epoch"] if rows else 0
    elapsed, cpu_elapsed = (rows[-1][name] if rows else 0.0 for name in ("seconds", "cpu_seconds"))
    if first < preset.epochs:
        epochs = range(first, preset.epochs)
        callbacks = [*callbacks, Stopwatch(elapsed, cpu_elapsed, time_limit), Checkpoints(output, rows)]
        if len(data.event_shape) == 3:
            grid = output / "samples" / "{epoch:05d}.png"
            every = max(1, preset.epochs // _GRIDS)
            callbacks.append(sn.callbacks.SampleGrid(grid, data.num_levels, every_epochs=every))
        model.fit(
            batches(
                data.train, preset.batch_size, seed, epochs, True, preset.augment, preset.steps_per_epoch
            ),
            epochs=preset.epochs,
            initial_epoch=first,
            steps_per_epoch=steps_per_epoch,
            validation_data=batches(data.validation, size, _NOISE["validation"]),
            callbacks=callbacks,
            verbose=verbose,
        )
    return rows, adapting


def inverse_errors(flow):
    """The largest error of the learned inverses of networks, `||I - J_f J_g|| / ||I||`, if there are any."""
    layers = [layer for layer in sn.self_norm_layers(flow) if isinstance(layer, sn.LearnedInverse)]
    return (
        {"jacobian_error": max(float(sn.inverse_error(layer, seed=0)) for layer in layers)} if layers else {}
    )


def write_config(preset, seed, output):
    """Writes all that makes the run, or refuses a folder that holds another one."""
    packages = ("tensorflow", "tensorflow-probability", "keras", "numpy")
    learning = type(preset.inverse_learning).__name__
    config = {"seed": seed, "inverse_learning_kind": learning, **dataclasses.asdict(preset)}
    # As it reads back, tuples as lists.
    config = json.loads(json.dumps(config))
    path = output / "config.json"
    if path.exists():
        earlier = json.loads(path.read_text())["experiment"]
        differing = [name for name in config if earlier.get(name) != config[name]]
        if differing:
            raise SystemExit(
                f"{output} holds another run: {', '.join(differing)} differ. Name another with --output."
            )
        return
    output.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    versions = {name: importlib.metadata.version(name) for name in packages}
    record = {"command": " ".join(sys.argv), "experiment": config, "versions": versions, "machine": machine}
    path.write_text(json.dumps(record, indent=1))


def draw_curves(rows, path):
    """Training and validation over the epochs."""
    axis = Figure(figsize=(6, 4), layout="constrained").subplots()
    curves = {name: [row[name] for row in rows] for name in ("epoch", "nll", "val_nll")}
    sn.plot.learning_curves(curves, axis)
    last = curves["val_nll"][len(rows) // 10 :]
    axis.set(ylabel="negative log-likelihood, nats", ylim=(min(last) - 5, max(last) + 5))
    axis.figure.savefig(path, dpi=120)


def draw_points(samples, points, path):
    """Samples beside real points, in the plane of the first two coordinates."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    limits = np.stack([np.min(points, axis=0), np.max(points, axis=0)], axis=1)[:2]
    for axis, title, shown in zip(axes, ("data", "samples"), (points, samples), strict=True):
        sn.plot.samples(shown[:, :2], limits, axis).set_title(title)
    figure.savefig(path, dpi=120)


def parse_changes(settings):
    """`path=value` pairs as a dict; values in JSON, or else strings."""
    changes = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise SystemExit(f"--set takes path=value; got {setting!r}.")
        try:
            changes[path] = json.loads(text)
        except json.JSONDecodeError:
            changes[path] = text
    return changes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--epochs", type=int, help="default: the preset's")
    parser.add_argument("--set", nargs="+", default=[], metavar="PATH=VALUE", help="changes of the preset")
    parser.add_argument("--time-limit", type=float, help="seconds of training")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=pathlib.Path, help="default: train_output/PRESET")
    parser.add_argument("--data-dir", help="where TFDS keeps its data")
    parser.add_argument("--verbose", type=int, choices=(0, 1, 2), default=1)
    arguments = parser.parse_args()
    changes = parse_changes(arguments.set)
    if arguments.epochs is not None:
        changes["epochs"] = arguments.epochs
    try:
        preset = overridden(PRESETS[arguments.preset], changes)
    except (TypeError, ValueError) as error:
        raise SystemExit(str(error)) from None
    output = arguments.output or pathlib.Path("train_output") / arguments.preset
    results = train(
        preset, arguments.seed, output, arguments.time_limit, arguments.data_dir, arguments.verbose
    )
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
