"""Times a training step of one layer over the dimension D of its events, and fits the exponents.

    python examples/benchmark_scaling.py --csv FILE --plot FILE           # a few minutes on two cores
    python examples/benchmark_scaling.py --sizes 32 64 128 --repeats 3    # a quick look

A step is the loss, what the learned inverse needs (the paper's regularizer, or the tracking with its share
of the refreshes) and the gradients of the variables and the input, compiled by `tf.function`, in float32,
without an optimizer. Convolutions have a 3x3 kernel and images of D pixels, as square as D allows; "dense
matrix" is how the published code has the exact gradient of one: `slogdet` of its matrix, here built by
convolving the unit images. All others hold the values of the log-dets, as training with this package does.

The methods of a layer take turns in one process, after a warm-up; the table gives the median and the
quartiles of the milliseconds. A method takes as many turns as fit in `--seconds` for one D, 2 at least and
`--repeats` at most; it drops out at the D where the cube of the sizes puts a step above `--longest-step`.

The exponent is the slope of log time over log D, by least squares, for those D where a step takes more than
4 times as long as at the smallest D, which is overhead; what overhead is left there makes it too low rather
than too high. With fewer than two such D there is none.
"""

import argparse
import csv
import datetime
import os
import platform
import time

import matplotlib as mpl
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from benchmark_step import flow_step, make_layer

import tfp_selfnorm as sn

_PAPER, _TRACKED, _EXACT = "self_norm, the paper's regularizer", "self_norm, tracked", "exact gradient"
_BLOCKS, _MATRIX = "exact gradient, block elimination", "exact gradient, dense matrix"
_REFRESH = "one refresh of R"
# Shorter calls are repeated within a turn, so that each finds its own data in the caches.
_CALLS_A_TURN, _SECONDS_OF_A_LONG_CALL = 5, 0.1
_ABOVE_OVERHEAD = 4.0


def image_shape(size):
    """Height and width of the image of so many pixels that is closest to a square, and one channel."""
    height = max(side for side in range(1, int(np.sqrt(size)) + 1) if size % side == 0)
    return height, size // height, 1


def make_convolution(shape, gradient):
    """A 3x3 convolution near the identity, with the flipped kernel for its learned inverse."""
    return sn.SelfNormConv2D.trainable(shape[:2], shape[2], seed=0, gradient=gradient)


def dense_matrix_step(layer):
    """The compiled step of a flow of a convolution, the log-det by the dense matrix of the map."""
    kernel, bias, shape = layer.inverse_kernel, layer.bias, layer.event_sizes
    size = int(np.prod(shape))
    base = tfp.distributions.Sample(tfp.distributions.Normal(0.0, 1.0), shape)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = tf.nn.conv2d(x, kernel, 1, "SAME") + bias
            columns = tf.nn.conv2d(tf.reshape(tf.eye(size), [size, *shape]), kernel, 1, "SAME")
            log_det = tf.linalg.slogdet(tf.reshape(columns, [size, size])).log_abs_determinant
            loss = -tf.reduce_mean(base.log_prob(z) + log_det)
        return loss, tape.gradient(loss, [x, kernel, bias])

    return step


def dense_makers(size):
    """For each method what makes its layer, and its step, for events of that size."""
    return {
        _PAPER: lambda: (make_layer(size, "self_norm"), lambda layer: flow_step(layer, sn.Reconstruction())),
        _TRACKED: lambda: (make_layer(size, "self_norm"), lambda layer: flow_step(layer, sn.Tracking())),
        _EXACT: lambda: (make_layer(size, "exact"), lambda layer: flow_step(layer, None)),
    }


def conv_makers(size):
    """As `dense_makers`, for convolutions."""
    shape = image_shape(size)

    def layer(gradient):
        return make_convolution(shape, gradient)

    return {
        _PAPER: lambda: (layer("self_norm"), lambda layer: flow_step(layer, sn.Reconstruction())),
        _BLOCKS: lambda: (layer("exact"), lambda layer: flow_step(layer, None)),
        _MATRIX: lambda: (layer("exact"), dense_matrix_step),
    }


LAYERS = {"dense": dense_makers, "conv": conv_makers}


def calls_of(makers, shape, batch):
    """Names and functions of no arguments, each one training step or a refresh, and the steps between two."""
    x = tf.random.stateless_normal([batch, *shape], [0, 1])
    calls, interval = {}, None
    for name, make in makers.items():
        layer, make_step = make()
        step = make_step(layer)
        calls[name] = lambda step=step: step(x)
        if name == _TRACKED:
            calls[_REFRESH] = lambda layer=layer: sn.refresh_inverse(layer)
            interval = layer.refresh_interval
    return calls, interval


def measure(calls, repeats, seconds):
    """Milliseconds of each call, an array of its turns for each; in turn, until each has had its time."""
    turns, counts = {}, {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        once = time.perf_counter() - start
        counts[name] = 1 if once > _SECONDS_OF_A_LONG_CALL else _CALLS_A_TURN
        turns[name] = int(np.clip(seconds / (once * counts[name]), min(2, repeats), repeats))
    times = {name: [] for name in calls}
    for turn in range(max(turns.values())):
        for name in [name for name in calls if turn < turns[name]]:
            start = time.perf_counter()
            for _ in range(counts[name]):
                calls[name]()
            times[name].append(1e3 * (time.perf_counter() - start) / counts[name])
    return {name: np.array(values) for name, values in times.items()}


def with_refreshes(times, interval):
    """The times, to each step of the tracked layer added its share of a refresh."""
    if _REFRESH not in times:
        return times
    share = np.median(times[_REFRESH]) / interval
    return {name: values + share * (name == _TRACKED) for name, values in times.items() if name != _REFRESH}


def rows_of(layer, sizes, arguments):
    """The quartiles of each method at each size, in the order of the sizes, as they are measured."""
    last = {}
    for size in sorted(set(sizes)):
        shape = image_shape(size) if layer == "conv" else (size,)
        makers = {
            name: make
            for name, make in LAYERS[layer](size).items()
            if name not in last or last[name][1] * (size / last[name][0]) ** 3 <= arguments.longest_step
        }
        if not makers:
            return
        calls, interval = calls_of(makers, shape, arguments.batch)
        times = with_refreshes(measure(calls, arguments.repeats, arguments.seconds), interval)
        for name, values in times.items():
            low, median, high = np.percentile(values, [25, 50, 75])
            last[name] = size, median / 1e3
            yield {
                "layer": layer,
                "method": name,
                "D": size,
                "event": "x".join(map(str, shape)),
                "B": arguments.batch,
                "median_ms": round(median, 4),
                "quartile_1_ms": round(low, 4),
                "quartile_3_ms": round(high, 4),
                "turns": len(values),
            }


def fitted_exponent(sizes, milliseconds):
    """The slope of log time over log size above the overhead, and the smallest size that it is fitted to.

    Returns:
      Two times `None` where fewer than two sizes take over 4 times as long as the smallest one.
    """
    order = np.argsort(sizes)
    sizes, milliseconds = np.array(sizes)[order], np.array(milliseconds)[order]
    above = milliseconds > _ABOVE_OVERHEAD * milliseconds[0]
    if above.sum() < 2:
        return None, None
    slope, _ = np.polyfit(np.log(sizes[above]), np.log(milliseconds[above]), 1)
    return float(slope), int(sizes[above][0])


def series_of(rows):
    """For each layer and method its rows, in the order of their sizes."""
    series = {}
    for row in rows:
        series.setdefault((row["layer"], row["method"]), []).append(row)
    return series


def add_exponents(rows):
    """Writes into each row the exponent of its method."""
    for (layer, method), points in series_of(rows).items():
        sizes = [row["D"] for row in points]
        exponent, start = fitted_exponent(sizes, [row["median_ms"] for row in points])
        for row in points:
            row["exponent"] = None if exponent is None else round(exponent, 3)
            row["fitted_from_D"] = start
        found = (
            "too few times above the overhead" if exponent is None else f"D^{exponent:.2f} from D = {start}"
        )
        print(f"{layer:6}{method:38}{found}, up to {max(sizes)}")


def draw(rows, path):
    """Writes a picture with a panel for each layer: times over sizes, both on logarithmic scales."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    layers = list(dict.fromkeys(row["layer"] for row in rows))
    figure, axes = plt.subplots(
        1, len(layers), figsize=(5.2 * len(layers), 4.4), sharey=True, squeeze=False, layout="constrained"
    )
    for (layer, method), points in series_of(rows).items():
        exponent = points[0]["exponent"]
        label = method if exponent is None else f"{method}: $D^{{{exponent:.1f}}}$"
        low, median, high = (
            np.array([row[key] for row in points]) for key in ("quartile_1_ms", "median_ms", "quartile_3_ms")
        )
        axes[0, layers.index(layer)].errorbar(
            [row["D"] for row in points],
            median,
            np.maximum([median - low, high - median], 0.0),
            marker="o",
            markersize=4,
            capsize=2,
            label=label,
        )
    titles = {"dense": "dense layer", "conv": "3x3 convolution, one channel"}
    for axis, layer in zip(axes[0], layers, strict=True):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_title(titles[layer])
        axis.set_xlabel("D, dimensions of an event")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0, 0].set_ylabel(f"ms a training step, B = {rows[0]['B']}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2**power for power in range(5, 13)])
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20, help="most turns of a method at one D")
    parser.add_argument("--seconds", type=float, default=3.0, help="bound on the turns of a method at one D")
    parser.add_argument("--longest-step", type=float, default=6.0, help="seconds above which it drops out")
    parser.add_argument("--csv", help="file to write the times and exponents to")
    parser.add_argument("--plot", help="file to draw them to, such as scaling.png")
    arguments = parser.parse_args()
    if min(arguments.sizes) < 1 or arguments.repeats < 1:
        raise SystemExit(
            f"--sizes and --repeats must be 1 or more; got {arguments.sizes} and {arguments.repeats}."
        )
    device = (tf.config.list_physical_devices("GPU") or ["CPU"])[0]
    print(
        f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}, {device}, "
        f"TensorFlow {tf.__version__}, TFP {tfp.__version__}, float32"
    )
    rows, start = [], time.perf_counter()
    for layer in arguments.layers:
        print(
            f"\n{layer + ', B = ' + str(arguments.batch):44}{'D':>6}{'ms':>11}{'quartiles':>22}{'turns':>7}"
        )
        for row in rows_of(layer, arguments.sizes, arguments):
            rows.append(row)
            quartiles = f"{row['quartile_1_ms']:.2f}-{row['quartile_3_ms']:.2f}"
            print(
                f"{row['method']:44}{row['D']:6}{row['median_ms']:11.2f}{quartiles:>22}{row['turns']:7}",
                flush=True,
            )
    print(f"\nexponents; {time.perf_counter() - start:.0f} seconds in all")
    add_exponents(rows)
    if arguments.csv:
        with open(arguments.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    if arguments.plot:
        draw(rows, arguments.plot)


if __name__ == "__main__":
    main()
