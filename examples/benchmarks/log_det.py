"""Compares the estimate of the log-det of a `LearnedInverse` with the exact one, over the size of events.

    python examples/benchmarks/log_det.py --csv FILE
    python examples/benchmarks/log_det.py --model runs/free_form/best.keras --dataset digits --csv FILE

Without a model, the encoder is a residual network of three blocks of 128 units, whose last layers have random
weights. With a model, it is the first pair of networks of a trained flow, at test events of the data set.
For each number of probes and of steps: milliseconds of CPU for an event, compiled by `tf.function`, medians
of three calls; the mean over the events of the estimate less the exact log-det, in nats, with its standard
error; and the mean standard error of an event. `condition` is the condition number of the first Jacobian.
"""

import argparse
import time

import keras
import numpy as np
import tensorflow as tf
from shared import batches, load, machine, write_csv

import tfp_selfnorm as sn
from tfp_selfnorm.math import networks

_SETTINGS = ((2, 10), (2, 20), (8, 20), (16, 20))
_CALLS = 3


def random_pair(size, scale=0.3, seed=1):
    """Networks of the size of `free_form_flow`'s, away from the identity."""
    pair = [sn.residual_network(size, width=128, depth=3, seed=seed, dtype="float32") for _ in "ab"]
    rng = np.random.default_rng(seed)
    for network in pair:
        for layer in network.layers:
            if layer.name.endswith("last"):
                shape = layer.kernel.shape
                layer.kernel.assign(scale * rng.normal(size=shape) / np.sqrt(shape[0]))
    return sn.LearnedInverse(*pair, size)


def trained_pair(path, dataset, count):
    """The first pair of networks of a flow, and its events for test examples."""
    flow = keras.models.load_model(path).distribution
    x = next(iter(batches(load(dataset).test[:count], count, 1)))
    with sn.training_scope(None) as scope:
        flow.log_prob(tf.identity(x[0] if isinstance(x, tuple) else x))
    first = next(p for p in scope.passes if isinstance(p.layer, sn.LearnedInverse))
    return first.layer, first.input


def milliseconds(call, count):
    """Of CPU for an event, and the result."""
    result, times = call(), []
    for _ in range(_CALLS):
        start = time.process_time()
        result = tf.nest.map_structure(np.asarray, call())
        times.append(1e3 * (time.process_time() - start) / count)
    return round(float(np.median(times)), 4), result


def rows_of(layer, y, settings):
    """The exact log-det, and a row for each number of probes and steps."""
    count, size = len(y), int(np.prod(layer.event_sizes))
    values = np.linalg.svd(networks.jacobian(layer.maps[0], y[:1])[0], compute_uv=False)
    exact_ms, exact = milliseconds(tf.function(lambda: layer.inverse_log_det_jacobian(tf.identity(y))), count)
    for num_probes, num_steps in settings:

        def estimate(num_probes=num_probes, num_steps=num_steps):
            return sn.estimate_log_det(layer, y, num_probes=num_probes, num_steps=num_steps, seed=1)

        estimate_ms, (value, error) = milliseconds(tf.function(estimate), count)
        yield {
            "D": size,
            "events": count,
            "condition": round(float(values[0] / values[-1]), 1),
            "probes": num_probes,
            "steps": num_steps,
            "exact_ms": exact_ms,
            "estimate_ms": estimate_ms,
            "mean_error": round(float(np.mean(value - exact)), 3),
            "its_standard_error": round(float(np.sqrt(np.sum(np.square(error)))) / count, 3),
            "standard_error_of_one": round(float(np.mean(error)), 3),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 784, 1536, 3072])
    parser.add_argument("--events", type=int, default=8)
    parser.add_argument("--model", help="a .keras file of a free-form flow")
    parser.add_argument("--dataset", default="digits", help="of the model")
    parser.add_argument("--csv", help="file to write the table to")
    arguments = parser.parse_args()
    print(machine())
    if arguments.model:
        pairs = [trained_pair(arguments.model, arguments.dataset, arguments.events)]
    else:
        pairs = (
            (random_pair(size), tf.random.stateless_normal([arguments.events, size], [0, 1]))
            for size in arguments.sizes
        )
    rows = []
    for layer, y in pairs:
        for row in rows_of(layer, y, _SETTINGS):
            rows.append(row)
            print(*(f"{value!s:>10}" for value in row.values()), flush=True)
    if arguments.csv:
        write_csv(arguments.csv, rows)


if __name__ == "__main__":
    main()
