"""Trains a flow on images in two or three ways and compares their exact likelihoods.

    python examples/experiments/demo.py                                  # scikit-learn's 8x8 digits, a minute
    python examples/experiments/demo.py --model conv                     # or glow
    python examples/experiments/demo.py --dataset mnist --epochs 30      # any image data set of TFDS, by name

The flow is dense (two layers), convolutional (three blocks of three 3x3 layers) or Glow-like (two blocks of
four steps); `--layers 1 --steps-per-epoch 10` is for a quick look. Each way fits the same: the
self-normalizing gradient with the paper's regularizer, the same with a tracked inverse (not for 3x3
convolutions, which have none), and the exact gradient. Then one table, one picture, and a SavedModel that a
fresh process loads and scores.
"""

import argparse
import pathlib
import subprocess
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from data_sets import load
from matplotlib.figure import Figure
from raw_files import write_csv

import tfp_selfnorm as sn

METHODS = ("self_norm, paper", "self_norm, tracked", "exact gradient")
# Of the paper's regularizer.
WEIGHTS = {"dense": 1.0, "conv": 1.0, "glow": 100.0}
# Of the dense flow, and of each block of the others.
LAYERS = {"dense": 2, "conv": 3, "glow": 4}
SHOWN = 64
RELOAD = """
import sys, numpy as np, tensorflow as tf
flow = tf.saved_model.load(sys.argv[1])
np.save(sys.argv[3], flow.log_prob(np.load(sys.argv[2])))
assert not {"tfp_selfnorm", "tensorflow_probability"} & set(sys.modules)
"""


def batches(images, batch_size, seed=0, training=False):
    """Dequantised batches: for training shuffled, endless, with fresh noise; else in order and fixed."""
    data = tf.data.Dataset.from_tensor_slices(images)
    if training:
        data = data.shuffle(len(images), seed=seed).repeat().batch(batch_size, drop_remainder=True)
        return sn.images.dequantize_dataset(data, seed=seed).prefetch(2)
    return sn.images.dequantize_dataset(data.batch(batch_size), seed=seed).cache()


def make_model(method, image_shape, num_levels, arguments):
    """The flow that was asked for, in a FlowModel that learns its inverses in the way that is named."""
    gradient = "exact" if method == "exact gradient" else "self_norm"
    pixels = sn.images.pixel_sigmoid(num_levels)
    options = {"gradient": gradient, "preprocessing": pixels, "seed": arguments.seed}
    if arguments.model == "dense":
        flow = sn.dense_flow(image_shape, num_layers=arguments.layers, **options)
    elif arguments.model == "conv":
        options["layers_per_block"] = arguments.layers
        flow = sn.conv_flow(image_shape, **options)
    else:
        options["steps_per_block"] = arguments.layers
        flow = sn.glow_flow(image_shape, width=32, **options)
    inverse_learning = {
        "self_norm, paper": sn.Reconstruction("data", WEIGHTS[arguments.model]),
        "self_norm, tracked": sn.Tracking(),
    }.get(method)
    return sn.FlowModel(flow, inverse_learning, bits_per_dim=True)


def train(method, splits, num_levels, arguments):
    """Fits one flow; returns the model, with the weights of its best epoch, and the seconds it took."""
    keras.utils.set_random_seed(arguments.seed)
    training, validation, _ = splits
    model = make_model(method, training.shape[1:], num_levels, arguments)
    model.adapt(batches(training, arguments.batch_size))
    # Small sets pass several times in an epoch, so that the validation stays cheap.
    passes = max(1, 13_000 // len(training))
    steps = arguments.steps_per_epoch or passes * (len(training) // arguments.batch_size)
    total, warmup = steps * arguments.epochs, steps * arguments.epochs // 20
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, total - warmup, warmup_target=arguments.learning_rate, warmup_steps=warmup
    )
    model.compile(keras.optimizers.Adam(rate))
    best = keras.callbacks.EarlyStopping(
        "val_nll", mode="min", patience=arguments.epochs, restore_best_weights=True
    )
    start = time.perf_counter()
    model.fit(
        batches(training, arguments.batch_size, arguments.seed, training=True),
        epochs=arguments.epochs,
        steps_per_epoch=steps,
        validation_data=batches(validation, arguments.batch_size),
        callbacks=[best],
    )
    return model, time.perf_counter() - start


def draw(panels, num_levels, path):
    """Writes grids of images side by side, each panel under its title."""
    figure = Figure(figsize=(5 * len(panels), 5.4), layout="constrained")
    for axis, (title, images) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        sn.plot.images(images, num_levels, axis).set_title(title)
    figure.savefig(path, dpi=120)


def export_and_reload(model, images, output):
    """Exports, scores the images in a fresh process, and returns the largest difference, in nats."""
    folder = output / f"saved_model_{time.strftime('%Y%m%d_%H%M%S')}"
    model.export(folder)
    x = sn.images.dequantize(images[:SHOWN], seed=0).numpy()
    np.save(output / "x.npy", x)
    subprocess.run(
        [sys.executable, "-c", RELOAD, folder, output / "x.npy", output / "log_prob.npy"], check=True
    )
    here, there = model.log_prob(x).numpy(), np.load(output / "log_prob.npy")
    print(f"\nSavedModel in {folder}, reloaded in a process without tfp_selfnorm and TFP:")
    print(f"  log_prob of 3 test images, here:  {here[:3]}")
    print(f"  log_prob of 3 test images, there: {there[:3]}")
    return np.abs(here - there).max()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=WEIGHTS, default="dense")
    parser.add_argument("--dataset", default="digits", help="digits, or the name of a TFDS image data set")
    parser.add_argument("--data-dir", help="where TFDS keeps its data")
    parser.add_argument("--layers", type=int, help="of the dense flow, or of each block (glow: steps)")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--steps-per-epoch", type=int, help="default: passes through all training images")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, help="default: 3e-3 for dense on digits, 1e-3 else")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: all that differ")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"))
    arguments = parser.parse_args()
    digits = arguments.dataset == "digits"
    arguments.layers = arguments.layers or LAYERS[arguments.model]
    if arguments.learning_rate is None:
        arguments.learning_rate = 3e-3 if digits and arguments.model == "dense" else 1e-3
    if arguments.methods is None:
        arguments.methods = [METHODS[0], METHODS[2]] if arguments.model == "conv" else METHODS
    arguments.output.mkdir(parents=True, exist_ok=True)

    data = load(arguments.dataset, arguments.data_dir)
    splits, num_levels = (data.train, data.validation, data.test), data.num_levels
    if num_levels is None:
        raise SystemExit(f"The demo is for images; {arguments.dataset!r} are points. Try toy_gallery.py.")
    sizes = ", ".join(
        f"{len(split)} {name}" for split, name in zip(splits, ("train", "validation", "test"), strict=True)
    )
    print(f"{arguments.dataset}: images {splits[0].shape[1:]}, {num_levels} grey levels, {sizes}")

    models, rows = {}, []
    test = batches(splits[2], arguments.batch_size)
    for method in arguments.methods:
        print(f"\n{method}")
        models[method], seconds = train(method, splits, num_levels, arguments)
        results = models[method].evaluate(test, verbose=0, return_dict=True)
        rows.append((method, results["nll"], results["bits_per_dim"], results.get("reconstruction"), seconds))

    header = ("exact likelihood, test images", "nats", "bits/dim", "||x-RWx||^2", "seconds")
    print("\n{:30}{:>10}{:>10}{:>13}{:>9}".format(*header))
    for method, nll, bits, reconstruction, seconds in rows:
        error = "-" if reconstruction is None else f"{reconstruction:.3g}"
        print(f"{method:30}{nll:10.2f}{bits:10.3f}{error:>13}{seconds:9.1f}")
    columns = ("method", *header[1:])
    write_csv(arguments.output / "results.csv", [dict(zip(columns, row, strict=True)) for row in rows])

    shown = models.get("self_norm, tracked", models[arguments.methods[0]])
    panels = {
        "real images": splits[2][:SHOWN],
        "samples, learned inverse": shown.sample(SHOWN, seed=arguments.seed),
        "samples, exact inverse": shown.sample(SHOWN, seed=arguments.seed, exact=True),
    }
    draw(panels, num_levels, arguments.output / "samples.png")
    print(f"\nPicture in {arguments.output / 'samples.png'}")
    print(f"  largest difference: {export_and_reload(shown, splits[2], arguments.output):.2g} nats")


if __name__ == "__main__":
    main()
