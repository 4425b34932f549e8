"""Times a training step of one dense layer against the products that it cannot do without.

    python examples/benchmark_step.py [--sizes 784 2048] [--batch 100] [--repeats 20] [--csv FILE]

Each step computes the loss of a one-layer flow and the gradients of its variables and its input (as a
layer below would need), compiled by `tf.function`, without an optimizer. The variants take turns in one
process, five steps each, after a warm-up; the table gives the median and the quartiles of the
milliseconds over the turns.
"""

import argparse
import csv
import datetime
import functools
import os
import platform
import time

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm import Reconstruction, SelfNormDense, Tracking, training_scope
from tfp_selfnorm.tracking import refresh_inverse, sketch_and_project

tfd = tfp.distributions
_RUN = 5


@functools.lru_cache(maxsize=1)
def make_kernel(size):
    """A kernel near the identity, and its inverse."""
    rng = np.random.default_rng(0)
    kernel = np.eye(size) + 0.1 * rng.normal(size=[size, size]) / np.sqrt(size)
    return kernel, np.linalg.inv(kernel)


def make_layer(size, gradient):
    """A layer whose learned inverse is the true one."""
    kernel, inverse = make_kernel(size)
    return SelfNormDense(
        tf.Variable(inverse, dtype=tf.float32),
        tf.Variable(kernel, dtype=tf.float32),
        tf.Variable(tf.zeros(size)),
        gradient=gradient,
    )


def flow_step(layer, inverse_learning):
    """The compiled step of a flow of that one self-normalizing layer."""
    flow = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), layer.event_sizes), layer)
    variables = [layer.inverse_kernel, layer.bias]
    if isinstance(inverse_learning, Reconstruction):
        variables.append(layer.forward_kernel)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape, training_scope(inverse_learning) as scope:
            tape.watch(x)
            loss = -tf.reduce_mean(flow.log_prob(tf.identity(x)))
            if isinstance(inverse_learning, Reconstruction):
                loss += scope.reconstruction_loss()
        gradients = tape.gradient(loss, [x, *variables])
        if isinstance(inverse_learning, Tracking):
            sketch_and_project(layer, inverse_learning.num_probes)
        return loss, gradients

    return step


def products_step(size, count):
    """Six or three plain products, as one writes them first: `z = W x`, `W^T z`, `z x^T`, and so on."""
    layer = make_layer(size, "self_norm")
    kernel, other = layer.inverse_kernel, layer.forward_kernel

    @tf.function
    def step(x):
        z = tf.matmul(x, kernel, transpose_b=True)
        d_x = tf.matmul(z, kernel)
        d_kernel = tf.matmul(z, x, transpose_a=True)
        if count == 3:
            return d_x, d_kernel
        back = tf.matmul(z, other, transpose_b=True)
        pulled = tf.matmul(back, other)
        return d_x, d_kernel, pulled, tf.matmul(pulled, z, transpose_a=True)

    return step


def variants(size, batch):
    """Names and functions of no arguments, each one training step."""
    x = tf.random.stateless_normal([batch, size], [0, 1])
    tracked = make_layer(size, "self_norm")
    steps = {
        "six products": products_step(size, 6),
        "three products": products_step(size, 3),
        "self_norm, data error": flow_step(make_layer(size, "self_norm"), Reconstruction()),
        "self_norm, tracked": flow_step(tracked, Tracking()),
        "exact gradient": flow_step(make_layer(size, "exact"), None),
    }
    calls = {name: (lambda step=step: step(x)) for name, step in steps.items()}
    calls["one refresh of R"] = lambda: refresh_inverse(tracked)
    outside, layer = exact_log_prob_step(size)
    calls["exact gradient and log_prob"] = lambda: outside(x)
    return calls, layer.refresh_interval


def exact_log_prob_step(size):
    """The step that a user of a plain TFP layer would write: no scope, the log-det in the graph."""
    layer = make_layer(size, "exact")
    flow = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), [size]), layer)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = -tf.reduce_mean(flow.log_prob(tf.identity(x)))
        return loss, tape.gradient(loss, [x, layer.inverse_kernel, layer.bias])

    return step, layer


def measure(calls, repeats):
    """Milliseconds of each call, `[repeats]` for each; in turn, in short runs as a training loop has."""
    for call in calls.values():
        call()
        call()
    times = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(_RUN):
                call()
            times[name].append(1e3 * (time.perf_counter() - start) / _RUN)
    return times


def rows_of(size, batch, repeats):
    calls, interval = variants(size, batch)
    times = measure(calls, repeats)
    tracked = np.array(times["self_norm, tracked"]) + np.array(times["one refresh of R"]) / interval
    times[f"self_norm, tracked, refresh every {interval} included"] = tracked
    six = np.median(times["six products"])
    exact = np.median(times["exact gradient"])
    for name, values in times.items():
        low, median, high = np.percentile(values, [25, 50, 75])
        yield {
            "D": size,
            "B": batch,
            "step": name,
            "median_ms": round(median, 2),
            "quartile_1_ms": round(low, 2),
            "quartile_3_ms": round(high, 2),
            "times_six_products": round(median / six, 2),
            "exact_over_this": round(exact / median, 2),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[784, 2048])
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--csv", help="file to write the table to")
    arguments = parser.parse_args()
    device = (tf.config.list_physical_devices("GPU") or ["CPU"])[0]
    print(
        f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}, {device}, "
        f"TensorFlow {tf.__version__}, TFP {tfp.__version__}, float32"
    )
    rows = []
    for size in arguments.sizes:
        print(f"\nD = {size}, B = {arguments.batch}")
        print(f"{'step':55} {'ms':>9} {'quartiles':>19} {'/ six':>7} {'exact /':>8}")
        for row in rows_of(size, arguments.batch, arguments.repeats):
            rows.append(row)
            quartiles = f"{row['quartile_1_ms']:.2f}-{row['quartile_3_ms']:.2f}"
            print(
                f"{row['step']:55} {row['median_ms']:9.2f} {quartiles:>19} "
                f"{row['times_six_products']:7.2f} {row['exact_over_this']:8.2f}"
            )
    if arguments.csv:
        with open(arguments.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
