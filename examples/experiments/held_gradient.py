"""Whether convolutions can hold the exact gradient of their log-det for some steps: a study.

    python examples/experiments/held_gradient.py --every 1 2 5 20 --output runs/held

Trains the nine-layer flow of `exact_cnn_mnist` with smooth leaky ReLUs. Every so many steps each layer's
gradient of `log |det W|`, a tensor of the kernel's shape, is computed by block elimination; between, the last
one stands in. With 1 it is the exact gradient.
"""

import argparse
import copy
import pathlib

import keras
import tensorflow as tf
from presets import PRESETS, overridden
from train import parse_changes, train

import tfp_selfnorm as sn


class HeldGradients(keras.callbacks.Callback):
    """Puts a variable where each layer has the exact gradient of its log-det, and sets it at times."""

    def __init__(self, every):
        super().__init__()
        self._every, self._step, self._held = every, 0, []

    def set_model(self, model):
        super().set_model(model)
        for layer in sn.self_norm_layers(model.distribution):
            exact = layer.operations
            held = tf.Variable(tf.zeros(layer.inverse_kernel.shape), trainable=False)
            layer._operations = copy.copy(exact)
            layer._operations.log_det_gradient = lambda kernel, held=held: held.read_value()
            self._held.append((layer, exact, held))

    def on_train_batch_begin(self, batch, logs=None):
        if self._step % self._every == 0:
            for layer, exact, held in self._held:
                held.assign(exact.log_det_gradient(layer.inverse_kernel.read_value()))
        self._step += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--every", type=int, nargs="+", default=[1, 2, 5, 20], help="steps between two gradients"
    )
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--set", nargs="+", default=[], metavar="PATH=VALUE", help="changes of the preset")
    parser.add_argument("--data-dir", help="where TFDS keeps its data")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("held_output"))
    arguments = parser.parse_args()
    changes = {"flow.activation": "smooth_leaky_relu", "schedule": "cosine", "warmup_epochs": None}
    changes |= {"epochs": arguments.epochs} | parse_changes(arguments.set)
    preset = overridden(PRESETS["exact_cnn_mnist"], changes)
    for every in arguments.every:
        output = arguments.output / f"every_{every}"
        held = HeldGradients(every)
        try:
            results = train(preset, output=output, data_dir=arguments.data_dir, verbose=2, callbacks=[held])
            print(f"every {every} steps: test NLL {results['test_nll']:.1f} nats", flush=True)
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            print(f"every {every} steps: training broke off. {str(error)[:300]}", flush=True)


if __name__ == "__main__":
    main()
