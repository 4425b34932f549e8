"""How far the gradients that layers name are from the exact ones, layer by layer, along a training.

    python examples/experiments/gradient_errors.py circulant_cnn_mnist --epochs 3 --csv FILE

The training is the one of `train.py`, with its options. At the first step and then every `--every` steps, the
gradient of each layer's log-det inside a training scope is compared with the exact one: the relative error in
the Frobenius norm, without and with the correction that the model holds, and the norm of the exact gradient.
"""

import argparse
import pathlib

import keras
import tensorflow as tf
from presets import PRESETS, overridden
from raw_files import write_csv
from train import parse_changes, train

import tfp_selfnorm as sn


class GradientErrors(keras.callbacks.Callback):
    """Keeps a row for each layer and measured step."""

    def __init__(self, every):
        super().__init__()
        self.rows, self._every = [], every

    def on_train_batch_end(self, batch, logs=None):
        step = int(self.model.optimizer.iterations.numpy())
        if step == 1 or step % self._every == 0:
            held = self.model._refresh.read(is_training=True)["gradient_corrections"]
            for layer in sn.self_norm_layers(self.model.distribution):
                exact = gradient(layer.copy(gradient="exact"))
                corrections = {layer: held[layer]} if layer in held else None
                errors = {
                    "error": gradient(layer) - exact,
                    "corrected_error": gradient(layer, corrections) - exact,
                }
                figures = {name: tf.norm(error) / tf.norm(exact) for name, error in errors.items()}
                figures["exact_norm"] = tf.norm(exact)
                row = {"step": step, "layer": layer.name, "events": "x".join(map(str, layer.event_sizes))}
                self.rows.append(row | {name: round(float(value), 6) for name, value in figures.items()})


def gradient(layer, corrections=None):
    """The gradient of log |det W| by W, inside a scope."""
    kernel = layer.inverse_kernel
    mixture = {"mixture": 1.0} if layer.gradient == "self_norm" else {}
    layer = layer.copy(**mixture)
    x = tf.zeros([1, *layer.event_sizes], layer.dtype)
    with tf.GradientTape() as tape, sn.training_scope(None, gradient_corrections=corrections):
        log_det = layer.inverse_log_det_jacobian(x, len(layer.event_sizes))
    return tf.convert_to_tensor(tape.gradient(log_det, kernel))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--set", nargs="+", default=[], metavar="PATH=VALUE", help="changes of the preset")
    parser.add_argument("--every", type=int, default=200, help="steps between two measurements")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("gradient_errors_output"))
    parser.add_argument("--csv", type=pathlib.Path, default=pathlib.Path("gradient_errors.csv"))
    parser.add_argument("--data-dir", help="where TFDS keeps its data")
    arguments = parser.parse_args()
    changes = {**parse_changes(arguments.set), "epochs": arguments.epochs}
    errors = GradientErrors(arguments.every)
    preset = overridden(PRESETS[arguments.preset], changes)
    train(preset, arguments.seed, arguments.output, None, arguments.data_dir, 2, [errors])
    write_csv(arguments.csv, errors.rows)
    last = errors.rows[-1]["step"]
    for row in errors.rows:
        if row["step"] == last:
            print(*row.values())


if __name__ == "__main__":
    main()
