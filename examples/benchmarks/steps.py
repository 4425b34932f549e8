"""Measures every hot path against the least work that it can do, in one process and in turns.

    python examples/benchmarks/steps.py --output results      # ten minutes on two cores; --quick in one
    python examples/benchmarks/steps.py --parts dense conv

Parts: one dense layer, one 3x3 convolution, whole models (a step in Keras's `fit` against the compiled step
alone), sampling and evaluation, what a fresh process pays: import, first call, peak memory. Without a name
"large" is left out: training steps of one large dense layer, each method in a process of its own. Each part
writes its table, `benchmark_dense.csv` and so on; `benchmark.png` draws some steps of the first two. Ratios
are of medians and within a run: to a limit, which is the least that such a step can do, and from the exact
gradient. What the names mean is in `cases.py`.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import cases
import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from shared import machine, write_csv
from timing import measure, memory_in_use, quartiles, wait

import tfp_selfnorm as sn

PARTS = ("process", "dense", "conv", "models", "sampling", "large")
BATCH = 100
SIZES, QUICK_SIZES = (256, 784, 2048, 4096), (64, 256)
# Patches of 16, 32 and 64 pixels in colour. A step that takes longer is measured once.
LARGE_SIZES, LONG_STEP_S = (768, 3072, 12288), 10.0
LARGE_STEPS = tuple(n + cases.ADAM for n in (cases.DENSE, cases.TRACKED, cases.PAPER, cases.EXACT))
SHAPES, QUICK_SHAPES = ((28, 28, 1), (14, 14, 4), (32, 32, 3), (16, 16, 12)), ((8, 8, 1),)
# One dense size and one image whose steps are compiled by XLA as well.
XLA, XLA_SIZE, XLA_SHAPE = ", XLA", 784, (28, 28, 1)
# What each step is a multiple of.
LIMITS = {
    cases.PAPER: cases.SIX,
    cases.TRACKED: cases.THREE,
    cases.EXACT: cases.THREE,
    cases.EXACT_LOG_PROB: cases.THREE,
}
# What each of these starts a process for: a dense layer of a size, or a convolution of images of a shape.
PROCESS_CASES = {
    (2048,): (cases.DENSE + cases.ADAM, cases.TRACKED + cases.ADAM, cases.PAPER + cases.ADAM, cases.EXACT),
    (4096,): (cases.DENSE + cases.ADAM, cases.TRACKED + cases.ADAM),
    (32, 32, 3): (cases.SIX_CONVOLUTIONS, cases.PAPER, cases.BLOCKS, cases.MATRIX),
}
# Of the picture: titles, parts and steps. A step has one colour in all panels.
PANELS = (
    ("one dense layer", "dense", (cases.THREE, cases.SIX, cases.TRACKED, cases.PAPER, cases.EXACT)),
    (
        "one dense layer with Adam",
        "dense",
        tuple(n + cases.ADAM for n in (cases.DENSE, cases.TRACKED, cases.PAPER, cases.EXACT, cases.LU)),
    ),
    ("one convolution", "conv", (cases.SIX_CONVOLUTIONS, cases.PAPER, cases.BLOCKS, cases.MATRIX)),
)
OF_ONE_COLOR = (
    (cases.THREE, cases.DENSE),
    (cases.TRACKED,),
    (cases.PAPER,),
    (cases.EXACT, cases.BLOCKS),
    (cases.LU, cases.MATRIX),
    (cases.SIX, cases.SIX_CONVOLUTIONS),
)
COLORS = {n: color for names, color in zip(OF_ONE_COLOR, sn.plot.COLORS, strict=True) for n in names}
QUICK_PROCESS_CASES = {(2048,): (cases.TRACKED + cases.ADAM,), (32, 32, 3): (cases.PAPER,)}
SAMPLED = ("FC-2, tracked", "conv-9, smooth leaky ReLU", "FC-2, squareplus, tracked", "conv-9, squareplus")


def row(part, size, step, values, **ratios):
    rounded = {name: "" if ratio is None else round(float(ratio), 3) for name, ratio in ratios.items()}
    return {"part": part, "size": size, "step": step, **quartiles(values), **rounded}


def dense_rows(sizes, repeats, seconds):
    for size in sizes:
        x = cases.batch(BATCH, size)
        calls = {name: make(x) for name, make in cases.dense_steps(size).items()}
        if size == XLA_SIZE:
            for name, learning in ((cases.PAPER, sn.Reconstruction()), (cases.TRACKED, sn.Tracking())):
                layer = cases.make_layer(size)
                calls[name + XLA] = cases.flow_step(layer, learning, x, jit_compile=True)
        interval = cases.make_layer(size).refresh_interval
        times = cases.with_refreshes(measure(calls, repeats, seconds), interval)
        medians = {name: np.median(values) for name, values in times.items()}
        for name, values in times.items():
            limit = cases.DENSE + cases.ADAM if cases.ADAM in name else LIMITS.get(name.removesuffix(XLA))
            yield row(
                "dense",
                size,
                name,
                values,
                over_limit=medians[name] / medians[limit] if limit else None,
                exact_over_this=medians[cases.EXACT_LOG_PROB] / medians[name],
            )


def conv_rows(shapes, repeats, seconds):
    for shape in shapes:
        x = cases.batch(BATCH, *shape)
        calls = {name: make(x) for name, make in cases.conv_steps(shape).items()}
        if shape == XLA_SHAPE:
            layer = cases.make_convolution(shape)
            calls[cases.PAPER + XLA] = cases.flow_step(layer, sn.Reconstruction(), x, jit_compile=True)
        times = measure(calls, repeats, seconds)
        six, matrix = (np.median(times[name]) for name in (cases.SIX_CONVOLUTIONS, cases.MATRIX))
        for name, values in times.items():
            median = np.median(values)
            ratios = {"over_limit": median / six, "exact_over_this": matrix / median}
            yield row("conv", "x".join(map(str, shape)), name, values, **ratios)


class LoopTimer(keras.callbacks.Callback):
    """The seconds of Keras's loop, from the first step to the last."""

    def on_train_begin(self, logs=None):
        self._start = time.perf_counter()

    def on_train_end(self, logs=None):
        self.seconds = time.perf_counter() - self._start


def bare_loop(step):
    """A function of a number of steps, which returns its seconds."""

    def loop(steps):
        start = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        return time.perf_counter() - start

    return loop


def fit_loop(model, data):
    """The same for Keras: without what `fit` prepares, 40 ms, and tf.data's threads, which may end late."""

    def loop(steps):
        timer = LoopTimer()
        model.fit(data, steps_per_epoch=steps, verbose=0, callbacks=[timer])
        return timer.seconds

    return loop


def model_rows(flows, repeats, seconds):
    """The compiled step, and the same number of steps in `fit`, by the step, refreshes in both."""
    for name, (shape, make) in flows.items():
        x = cases.batch(BATCH, *shape)
        flow, learning = make()
        model = sn.FlowModel(flow, learning)
        model.compile("adam")
        data = cases.endless(model, x)
        step = cases.compiled_step(model, x)
        once = np.median(measure({"step": step}, repeats, seconds)["step"]) / 1e3
        steps = int(np.clip(seconds / once, 10, 300))
        loops = {"compiled steps": bare_loop(step), "fit": fit_loop(model, data)}
        # Without the first turn, a warm-up.
        turns = [{name: loop(steps) for name, loop in loops.items()} for _ in range(1 + min(repeats, 3))][1:]
        times = {call: np.array([1e3 * turn[call] / steps for turn in turns]) for call in loops}
        bare = np.median(times["compiled steps"])
        for call, values in times.items():
            ratios = {"over_limit": np.median(values) / bare, "exact_over_this": None}
            yield row("models", name, call, values, **ratios)


def sampling_rows(flows, counts, repeats, seconds):
    for name in (name for name in SAMPLED if name in flows):
        shape, make = flows[name]
        flow, learning = make()
        model = sn.FlowModel(flow, learning)
        model.compile("adam")
        exact = sn.exact(flow)
        encode = tf.function(lambda x, flow=flow: flow.bijector.inverse(tf.identity(x)))
        for count in counts:
            x = cases.batch(count, *shape)
            learned_sample, exact_sample = (
                tf.function(lambda flow=way, count=count: flow.sample(count, seed=[0, 1]))
                for way in (flow, exact)
            )
            calls = {
                "encode": lambda x=x, encode=encode: encode(x),
                "sample, learned inverse": learned_sample,
                "sample, exact inverse": exact_sample,
            }
            times = measure(calls, repeats, seconds)
            for call, values in times.items():
                ratios = {"over_limit": np.median(values) / np.median(times["encode"])}
                yield row("sampling", f"{name}, {count}", call, values, **ratios, exact_over_this=None)
        batches, x = 20, cases.batch(BATCH, *shape)
        data = tf.data.Dataset.from_tensors(x).repeat(batches)
        calls = {"evaluate, a batch": lambda model=model, data=data: model.evaluate(data, verbose=0)}
        values = measure(calls, repeats, seconds)["evaluate, a batch"] / batches
        encoding = measure({"encode": lambda x=x, encode=encode: encode(x)}, repeats, seconds)["encode"]
        ratios = {"over_limit": np.median(values) / np.median(encoding), "exact_over_this": None}
        yield row("sampling", f"{name}, {BATCH}", "evaluate, a batch", values, **ratios)


def in_this_process(shape, name):
    """Seconds of the first call and of later ones, and the MiB that TensorFlow holds at its peak; as JSON."""
    in_use = memory_in_use("current")
    steps = cases.dense_steps(*shape) if len(shape) == 1 else cases.conv_steps(shape)
    step = steps[name](cases.batch(BATCH, *shape))
    # What the case was made from is gone by now.
    memory_in_use("peak", reset=True)
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < 8 and seconds[-1] < LONG_STEP_S):
        start = time.perf_counter()
        step()
        wait()
        seconds.append(time.perf_counter() - start)
    peak = None if in_use is None else memory_in_use("peak") - in_use
    print(json.dumps({"first_call_s": seconds[0], "later_s": seconds[1:], "peak_mib": peak}))


def of_a_process(shape, name):
    """What `in_this_process` prints in another process."""
    command = [sys.executable, __file__, "--case", json.dumps(shape), name]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def large_rows(sizes):
    """Training steps of one dense layer, without refreshes."""
    for size in sizes:
        limit = None
        for name in LARGE_STEPS:
            figures = of_a_process((size,), name)
            values = 1e3 * np.array(figures["later_s"])
            limit = limit or np.median(values)
            ratios = {"over_limit": np.median(values) / limit, "exact_over_this": None}
            yield row("large", size, name, values, **ratios) | {"peak_mib": rounded(figures["peak_mib"])}


def rounded(mib):
    return "" if mib is None else round(mib)


def process_rows(process_cases):
    """What fresh processes pay."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import tensorflow_probability, keras"], check=True)
    libraries = time.perf_counter() - start
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import tfp_selfnorm"], check=True)
    yield process_row("", "import tensorflow_probability, keras", libraries, None)
    yield process_row("", "import tfp_selfnorm, with them", time.perf_counter() - start, None)
    for shape, names in process_cases.items():
        for name in names:
            figures = of_a_process(shape, name)
            size = "x".join(map(str, shape))
            yield process_row(size, name, figures["first_call_s"], figures["peak_mib"])


def process_row(size, name, seconds, peak):
    columns = row("process", size, name, [1e3 * seconds], over_limit=None, exact_over_this=None)
    return columns | {"peak_mib": rounded(peak)}


def all_rows(arguments):
    """Each part's name and its rows, as they are measured."""
    quick = arguments.quick
    repeats, seconds = (3, 0.3) if quick else (20, arguments.seconds)
    flows = cases.flows()
    if quick:
        flows = {name: flows[name] for name in SAMPLED[:1]}
    parts = {
        "process": lambda: process_rows(QUICK_PROCESS_CASES if quick else PROCESS_CASES),
        "dense": lambda: dense_rows(arguments.sizes or (QUICK_SIZES if quick else SIZES), repeats, seconds),
        "conv": lambda: conv_rows(QUICK_SHAPES if quick else SHAPES, repeats, seconds),
        "models": lambda: model_rows(flows, repeats, seconds),
        "sampling": lambda: sampling_rows(flows, (1, 10) if quick else (1, 100, 10_000), repeats, seconds),
        "large": lambda: large_rows(arguments.sizes or (QUICK_SIZES[:1] if quick else LARGE_SIZES)),
    }
    for part in arguments.parts:
        yield part, ({"peak_mib": "", **columns} for columns in parts[part]())


def print_row(columns):
    """Prints a row of the table, and returns it."""
    spread = f"{columns['quartile_1_ms']:.2f}-{columns['quartile_3_ms']:.2f}"
    print(
        f"{columns['part']:9}{columns['size']!s:43}{columns['step']:42}{columns['median_ms']:10.2f}{spread:>20}"
        f"{columns['over_limit']!s:>9}{columns['exact_over_this']!s:>9}{columns['peak_mib']!s:>7}",
        flush=True,
    )
    return columns


def draw(rows, path):
    """Milliseconds over the size: dense and convolutional steps, and training steps of a dense layer."""
    figure = Figure(figsize=(17, 4.6), layout="constrained")
    for axis, (title, part, names) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for name in names:
            chosen = [r for r in rows if (r["part"], r["step"]) == (part, name)]
            sizes = [str(r["size"]) for r in chosen]
            method = name.removesuffix(cases.ADAM)
            options = {"color": COLORS[method], "label": method.replace(", ", ",\n")}
            axis.plot(sizes, [r["median_ms"] for r in chosen], marker="o", markersize=4, **options)
        axis.set(yscale="log", title=f"{title}, B = {BATCH}", ylabel="ms a step")
        axis.grid(alpha=0.3)
        sn.plot.label_lines(axis)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS[:-1]))
    parser.add_argument("--quick", action="store_true", help="small sizes, a minute")
    parser.add_argument("--seconds", type=float, default=1.5, help="bound on the turns of one step")
    parser.add_argument("--sizes", type=int, nargs="+", help="of the dense layers")
    parser.add_argument("--intra-op-threads", type=int, help="default: the cores")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("benchmark_output"))
    parser.add_argument("--case", nargs=2, metavar=("SHAPE", "NAME"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        shape, name = arguments.case
        in_this_process(json.loads(shape), name)
        return
    if arguments.intra_op_threads:
        tf.config.threading.set_intra_op_parallelism_threads(arguments.intra_op_threads)
    start = time.perf_counter()
    print(f"{machine()}, float32, B = {BATCH}")
    print(f"{'':9}{'size':43}{'step':42}{'ms':>10}{'quartiles':>20}{'/limit':>9}{'exact/':>9}{'MiB':>7}")
    rows = []
    arguments.output.mkdir(parents=True, exist_ok=True)
    for part, part_rows in all_rows(arguments):
        rows += [print_row(columns) for columns in part_rows]
        write_csv(arguments.output / f"benchmark_{part}.csv", [r for r in rows if r["part"] == part])
    draw(rows, arguments.output / "benchmark.png")
    print(f"{time.perf_counter() - start:.0f} seconds in all")


if __name__ == "__main__":
    main()
