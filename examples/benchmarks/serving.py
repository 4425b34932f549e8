"""What `log_prob` costs beyond `encode` while the weights stay: eager and from an exported SavedModel.

    python examples/benchmarks/serving.py --csv FILE [--sizes 784 2048]

Two dense layers with a smooth leaky ReLU, batches of 100, medians of calls in turns. An exported model is
called by its signatures. To measure another version of the package, put it on `PYTHONPATH`.
"""

import argparse
import datetime
import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from rules import Rows
from timing import measure

import tfp_selfnorm as sn

BATCH = 100
COLUMNS = ("size", "way", "encode_ms", "log_prob_ms", "ratio", "version", "date")


def calls_of(size):
    """Functions to time, by way and endpoint."""
    x = tf.constant(np.random.default_rng(0).normal(size=[BATCH, size]).astype(np.float32))
    model = sn.FlowModel(sn.dense_flow(size, seed=1), sn.Tracking())
    model.compile(keras.optimizers.Adam(1e-3))
    model.fit(x, batch_size=BATCH, epochs=1, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder)
        signatures = tf.saved_model.load(folder).signatures
    exported = {name: signatures[name] for name in ("encode", "log_prob")}
    argument = next(iter(exported["encode"].structured_input_signature[1]))
    calls = {("eager", name): lambda name=name: getattr(model, name)(x) for name in exported}
    return calls | {
        ("exported", name): lambda function=function: function(**{argument: x})
        for name, function in exported.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", required=True, help="the file of the figures; rows are added to it")
    parser.add_argument("--sizes", type=int, nargs="+", default=[784, 2048])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each call")
    parser.add_argument("--version", default="present", help="a name for the column `version`")
    arguments = parser.parse_args()
    rows = Rows(arguments.csv, COLUMNS)
    for size in arguments.sizes:
        medians = {
            key: np.median(times) for key, times in measure(calls_of(size), 200, arguments.seconds).items()
        }
        for way in ("eager", "exported"):
            encode, log_prob = (medians[way, name] for name in ("encode", "log_prob"))
            values = [f"{value:.3g}" for value in (encode, log_prob, log_prob / encode)]
            row = (size, way, *values, arguments.version, datetime.date.today().isoformat())
            rows.add(dict(zip(COLUMNS, row, strict=True)))
            print(rows.rows[-1], flush=True)


if __name__ == "__main__":
    main()
