"""Times the training step of dense flows in this process; `scale.py` starts it, and says what a row has.

    python examples/benchmarks/step_times.py SETTING '[[METHOD, D, B, LAYERS], ...]'

It makes and compiles all steps first, prints "ready", and times them after a line on its standard input: so
workers start together, and what else runs on the machine may be stopped meanwhile.
"""

import argparse
import contextlib
import gc
import json
import time

import keras
import tensorflow as tf
from timing import memory_in_use, quartiles

import tfp_selfnorm as sn

SETTINGS = ("one device", "one replica", "two devices", "two workers")
REFRESH = "refresh"
# TensorFlow does not count small tensors, and so nothing at smaller sizes.
_LEAST_COUNTED = 512
_TURNS = 5
# No refresh comes within a measurement.
_NEVER = 10**9


def make_model(method, size, layers):
    """A compiled model of `dense_flow`, with the variables of its optimizer."""
    learning = {"tracked": sn.Tracking(refresh_every=_NEVER), "paper": sn.Reconstruction()}.get(method)
    gradient = "exact" if method == "exact" else "self_norm"
    flow = sn.dense_flow(size, num_layers=layers, seed=1, gradient=gradient)
    model = sn.FlowModel(flow, learning)
    model.compile(keras.optimizers.Adam(1e-5))
    model.optimizer.build(model.trainable_variables)
    return model


def make_strategy(setting):
    """The strategy of a setting, or `None`."""
    if setting == "two devices":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return {
        "one device": lambda: None,
        "one replica": lambda: tf.distribute.MirroredStrategy(["CPU:0"]),
        "two devices": lambda: tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]),
        "two workers": tf.distribute.MultiWorkerMirroredStrategy,
    }[setting]()


def step_of(strategy, method, size, batch, layers):
    """A function of no arguments: what Keras calls for each batch, on one batch again and again."""
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = make_model(method, size, layers)
    model.make_train_function()
    x = tf.random.stateless_normal([batch, size], [0, 1])

    def endless(context=None):
        return tf.data.Dataset.from_tensors(x).repeat()

    batches = iter(strategy.distribute_datasets_from_function(endless) if strategy else endless())
    return lambda: model.train_function(batches)


def refresh_of(size):
    """A function of no arguments: what the host does between two steps for a layer that is tracked."""
    layer = sn.SelfNormDense.trainable(size, seed=0)
    layer.inverse_kernel.assign_add(0.1 / size**0.5 * tf.random.stateless_normal([size, size], [0, 1]))

    def refresh():
        sn.refresh_inverse(layer)
        return layer.exact_log_det()

    return refresh


def calls_of(method, size):
    """The number of calls in a turn. No clock decides it, for workers must agree on it."""
    return 1 if method in ("exact", REFRESH) else max(1, min(6, int(4e6 / size**2)))


def prepared(strategy, method, size, batch, layers):
    """The call to time, after two calls, and what TensorFlow holds at their peak, in MiB."""
    gc.collect()
    before = memory_in_use("current", reset=True)
    call = refresh_of(size) if method == REFRESH else step_of(strategy, method, size, batch, layers)
    for _ in range(2):
        call()
    counts = before is not None and size >= _LEAST_COUNTED
    return call, round(memory_in_use("peak") - before, 2) if counts else ""


def timed(calls, counts):
    """Milliseconds of each call, for each case. The cases take turns, so that a drift is shared by all."""
    times = [[] for _ in calls]
    for _ in range(_TURNS):
        for call, count, found in zip(calls, counts, times, strict=True):
            for _ in range(count):
                start = time.perf_counter()
                call()
                found.append(1e3 * (time.perf_counter() - start))
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("cases", type=json.loads)
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    strategy = make_strategy(arguments.setting)
    replicas = strategy.num_replicas_in_sync if strategy else 1
    calls, peaks = zip(*(prepared(strategy, *case) for case in arguments.cases), strict=True)
    print("ready", flush=True)
    input()
    all_times = timed(calls, [calls_of(method, size) for method, size, _, _ in arguments.cases])
    for case, times, peak in zip(arguments.cases, all_times, peaks, strict=True):
        row = dict(zip(("method", "D", "B", "layers"), case, strict=True))
        row = {"setting": arguments.setting, **row, "replicas": replicas, **quartiles(times)}
        print(json.dumps({**row, "peak_mib": peak}), flush=True)


if __name__ == "__main__":
    main()
