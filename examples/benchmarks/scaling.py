"""Times a training step of one layer over the dimension D of its events, and fits the exponents.

    python examples/benchmarks/scaling.py --csv FILE --plot FILE           # a few minutes on two cores
    python examples/benchmarks/scaling.py --sizes 32 64 128 --repeats 3    # a quick look

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
import time

import cases
import numpy as np
from matplotlib.figure import Figure
from shared import machine, write_csv
from timing import measure, quartiles

import tfp_selfnorm as sn

_ABOVE_OVERHEAD = 4.0
_DENSE = (cases.PAPER, cases.TRACKED, cases.EXACT, cases.REFRESH)
_CONV = (cases.PAPER, cases.BLOCKS, cases.MATRIX)


def image_shape(size):
    """Height and width of the image of so many pixels that is closest to a square, and one channel."""
    height = max(side for side in range(1, int(np.sqrt(size)) + 1) if size % side == 0)
    return height, size // height, 1


def dense_makers(size):
    """For each method a function that makes its step, for a batch of events of that size."""
    steps = cases.dense_steps(size)
    return {name: steps[name] for name in _DENSE}


def conv_makers(size):
    """As `dense_makers`, for convolutions."""
    steps = cases.conv_steps(image_shape(size))
    return {name: steps[name] for name in _CONV}


LAYERS = {"dense": dense_makers, "conv": conv_makers}


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
        if makers.keys() <= {cases.REFRESH}:
            return
        x = cases.batch(arguments.batch, *shape)
        calls = {name: make(x) for name, make in makers.items()}
        times = measure(calls, arguments.repeats, arguments.seconds)
        if cases.REFRESH in times:
            times = cases.with_refreshes(times, cases.make_layer(size).refresh_interval)
        for name, values in times.items():
            last[name] = size, np.median(values) / 1e3
            yield {
                "layer": layer,
                "method": name,
                "D": size,
                "event": "x".join(map(str, shape)),
                "B": arguments.batch,
                **quartiles(values),
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
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    figure = Figure(figsize=(6.4 * len(layers), 4.4), layout="constrained")
    axes = figure.subplots(1, len(layers), sharey=True, squeeze=False)
    for axis in axes.flat:
        axis.set_prop_cycle(color=sn.plot.COLORS)
    for (layer, method), points in series_of(rows).items():
        exponent = points[0]["exponent"]
        label = method.replace(", ", ",\n")
        if exponent is not None:
            label += f": $D^{{{exponent:.1f}}}$"
        low, median, high = (
            np.array([row[key] for row in points]) for key in ("quartile_1_ms", "median_ms", "quartile_3_ms")
        )
        line, *_ = axes[0, layers.index(layer)].errorbar(
            [row["D"] for row in points],
            median,
            np.maximum([median - low, high - median], 0.0),
            marker="o",
            markersize=4,
            capsize=2,
        )
        line.set_label(label)
    titles = {"dense": "dense layer", "conv": "3x3 convolution, one channel"}
    for axis, layer in zip(axes[0], layers, strict=True):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_title(titles[layer])
        axis.set_xlabel("D, dimensions of an event")
        axis.grid(alpha=0.3)
        sn.plot.label_lines(axis)
    axes[0, 0].set_ylabel(f"ms a training step, B = {rows[0]['B']}")
    figure.savefig(path, dpi=110)


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
    print(f"{machine()}, float32")
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
        write_csv(arguments.csv, rows)
    if arguments.plot:
        draw(rows, arguments.plot)


if __name__ == "__main__":
    main()
