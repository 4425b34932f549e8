"""CPU seconds of a process from its start to the end of a first epoch of ten steps, for each builder.

    python examples/benchmarks/first_epoch.py --csv FILE [--repeats 3] [--zuko zuko_env/bin/python]

Each run is a process of its own: it imports, builds the flow, and calls `fit` for ten steps of 100 events.
Beyond the import nearly all is tracing and compiling. `--zuko` is the Python of an environment with zuko and
PyTorch, whose neural spline flow with couplings is measured beside, by ten steps of its own loop. To measure
another version of the package, put it on `PYTHONPATH`; builders that it lacks are left out.
"""

import argparse
import datetime
import os
import statistics
import subprocess
import sys
import time

from rules import Rows

SHAPE = (28, 28, 1)
CASES = {
    "dense_flow": ("dense_flow", SHAPE, {}),
    "dense_flow, splines": ("dense_flow", SHAPE, {"activation": "spline"}),
    "conv_flow": ("conv_flow", SHAPE, {}),
    "conv_flow, splines": ("conv_flow", SHAPE, {"activation": "spline"}),
    "glow_flow, two blocks of four steps": ("glow_flow", SHAPE, {"steps_per_block": 4, "width": 16}),
    "coupling_flow, four splines": ("coupling_flow", (2,), {}),
    "autoregressive_flow, three splines": ("autoregressive_flow", (2,), {}),
    "free_form_flow": ("free_form_flow", (2,), {"num_layers": 1, "depth": 3}),
    "four spline couplings of TFP": ("tfp", (2,), {}),
}
COLUMNS = ("case", "import_s", "cpu_s", "runs", "version", "date")


def couplings_of_tfp(shape):
    """TFP's splines in `tfb.RealNVP`, with a Keras network each."""
    import keras
    import tensorflow as tf
    import tensorflow_probability as tfp

    tfb, tfd = tfp.bijectors, tfp.distributions

    def coupling():
        layers = [keras.Input([1]), keras.layers.Dense(64, "relu"), keras.layers.Dense(64, "relu")]
        network = keras.Sequential([*layers, keras.layers.Dense(23)])

        def spline(x, units, **kwargs):
            outputs = tf.reshape(network(x), [-1, units, 23])
            widths, heights = (
                tf.nn.softmax(part) * 9.92 + 0.01 for part in (outputs[..., :8], outputs[..., 8:16])
            )
            slopes = tf.nn.softplus(outputs[..., 16:]) + 1e-3
            return tfb.RationalQuadraticSpline(widths, heights, slopes, range_min=-5.0)

        return tfb.RealNVP(num_masked=1, bijector_fn=spline)

    chain = [part for _ in range(4) for part in (coupling(), tfb.Permute([1, 0]))]
    return tfd.TransformedDistribution(tfd.MultivariateNormalDiag(tf.zeros(shape)), tfb.Chain(chain))


def first_epoch(case):
    """Prints the CPU seconds of the import, and of all, in this process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import numpy as np

    import tfp_selfnorm as sn

    imported = time.process_time()
    builder, shape, options = CASES[case]
    if builder != "tfp" and not hasattr(sn, builder):
        print("none")
        return
    flow = couplings_of_tfp(shape) if builder == "tfp" else getattr(sn, builder)(shape, seed=1, **options)
    x = np.random.default_rng(0).normal(size=[1000, *shape]).astype(np.float32)
    if hasattr(sn, "adapt"):
        sn.adapt(flow, x[:100])
    model = sn.FlowModel(flow)
    model.compile(keras.optimizers.Adam(1e-3))
    model.fit(x, batch_size=100, epochs=1, verbose=0)
    print(imported, time.process_time())


ZUKO = """
import time, torch, zuko
imported = time.process_time()
flow = zuko.flows.NSF(2, transforms=4, hidden_features=[64, 64], passes=2)
optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
for _ in range(10):
    loss = -flow().log_prob(torch.randn(100, 2)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(imported, time.process_time())
"""


def measured(command, repeats):
    """Medians of both numbers, or `None` if the version lacks the builder."""
    runs = []
    for _ in range(repeats):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(result.stderr)
        words = result.stdout.splitlines()[-1].split()
        if words == ["none"]:
            return None
        runs.append([float(word) for word in words])
    return [round(statistics.median(values), 2) for values in zip(*runs, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", help="the file of the figures; rows are added to it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--version", default="present", help="a name for the column `version`")
    parser.add_argument("--zuko", help="the Python of an environment with zuko")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--case", choices=CASES, help="this process alone")
    arguments = parser.parse_args()
    if arguments.case:
        first_epoch(arguments.case)
        return
    if arguments.csv is None:
        parser.error("--csv is missing")
    rows = Rows(arguments.csv, COLUMNS)
    commands = {case: [sys.executable, __file__, "--case", case] for case in arguments.cases}
    if arguments.zuko:
        commands["four spline couplings of zuko"] = [arguments.zuko, "-c", ZUKO]
    for case, command in commands.items():
        values = measured(command, arguments.repeats)
        if values is None:
            continue
        row = (case, *values, arguments.repeats, arguments.version, datetime.date.today().isoformat())
        rows.add(dict(zip(COLUMNS, row, strict=True)))
        print(rows.rows[-1], flush=True)


if __name__ == "__main__":
    main()
