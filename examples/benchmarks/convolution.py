"""Times the exact log-det of a convolution against its dense matrix, and exact sampling from a flow.

    python examples/benchmarks/convolution.py [--csv FILE]                  # both parts, three minutes
    python examples/benchmarks/convolution.py --part log_det --shapes 28x28x1 32x32x3 --repeats 20

The log-dets, of 3x3 kernels, are in float64; numpy builds the dense matrix on its own. Median milliseconds
of warm calls in turns of 30 ms, two for a matrix of order above 2000. The peak memory (on Linux) is what one
call adds in a fresh process that has called the same on a 4x4x1 image; for a matrix, building it included.
The sampling is in float32, from the paper's convolutional flow, lightly trained on enlarged digits.
"""

import argparse
import pathlib
import resource
import subprocess
import sys
import time

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from shared import machine, write_csv

import tfp_selfnorm as sn
from tfp_selfnorm.math import exact_conv

_COUNT = 100
# Calls that take less are repeated within a turn, so that each finds its own data in the caches.
_SECONDS_A_TURN = 0.03
COLUMNS = ("part", "shape", "quantity", "method", "value", "unit")
_OURS, _DENSE = "block elimination", "dense, tf slogdet"


def make_kernel(channels):
    """A 3x3 kernel, the identity plus noise."""
    kernel = np.random.default_rng(0).normal(size=[3, 3, channels, channels]) * 0.3 / np.sqrt(9 * channels)
    kernel[1, 1] += np.eye(channels)
    return tf.constant(kernel)


def coupled_pixels(kernel_shape, spatial_shape):
    """For each element of a kernel: the indices of its outputs, and of the inputs that it takes."""
    for element in np.ndindex(*kernel_shape[:2]):
        shifts = np.subtract(element, np.array(kernel_shape[:2]) // 2)
        sides = list(zip(shifts, spatial_shape, strict=True))
        outputs = [np.arange(max(0, -shift), min(size, size - shift)) for shift, size in sides]
        inputs = [np.arange(max(0, shift), min(size, size + shift)) for shift, size in sides]
        yield element, np.ix_(*outputs), np.ix_(*inputs)


def dense_matrix(kernel, spatial_shape):
    """The matrix from flattened images to flattened outputs."""
    blocks = np.zeros([*spatial_shape, kernel.shape[-1]] * 2)
    for element, (h, w), (from_h, from_w) in coupled_pixels(kernel.shape, spatial_shape):
        blocks[h, w, :, from_h, from_w, :] = np.transpose(kernel[element])
    return blocks.reshape([np.prod(blocks.shape[:3])] * 2)


def gradient_from_inverse(inverse, kernel_shape, spatial_shape):
    """The gradient of `log |det|` for the kernel: sums over the inverse of the dense matrix."""
    blocks = inverse.reshape([*spatial_shape, kernel_shape[-1]] * 2)
    gradient = np.zeros(kernel_shape)
    for element, (h, w), (from_h, from_w) in coupled_pixels(kernel_shape, spatial_shape):
        gradient[element] = blocks[from_h, from_w, :, h, w, :].sum(axis=(0, 1))
    return gradient


LOG_DETS = {
    _OURS: exact_conv.log_det,
    _DENSE: lambda kernel, shape: tf.linalg.slogdet(dense_matrix(kernel, shape)).log_abs_determinant,
}


def print_added_peak(method, shape):
    """Prints the MiB by which one log-det raises the peak of this process, after a tiny one."""
    *spatial_shape, channels = map(int, shape.split("x"))
    LOG_DETS[method](make_kernel(1), (4, 4)).numpy()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    LOG_DETS[method](make_kernel(channels), spatial_shape).numpy()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def peak_memory(shape):
    """What `print_added_peak` prints in a fresh process for each method."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import convolution; "
        "convolution.print_added_peak(*sys.argv[2:])"
    )
    folder = pathlib.Path(__file__).parent
    commands = {method: [sys.executable, "-c", script, folder, method, shape] for method in LOG_DETS}
    children = {key: subprocess.Popen(line, stdout=subprocess.PIPE) for key, line in commands.items()}
    return {method: float(child.communicate()[0]) for method, child in children.items()}


def exact_calls(kernel, z):
    """Functions of no arguments, by operation and method."""
    shape = z.shape[1:3]
    matrix = dense_matrix(kernel, shape)
    tensor, columns = tf.constant(matrix), tf.transpose(tf.reshape(z, [_COUNT, -1]))
    return {
        ("log_det", _OURS): lambda: exact_conv.log_det(kernel, shape),
        ("log_det", _DENSE): lambda: tf.linalg.slogdet(tensor).log_abs_determinant,
        ("log_det", "dense, numpy slogdet"): lambda: np.linalg.slogdet(matrix).logabsdet,
        ("build", "dense, numpy"): lambda: dense_matrix(kernel, shape),
        ("gradient", _OURS): lambda: exact_conv.log_det_gradient(kernel, shape),
        ("gradient", "dense, tf inv"): lambda: tf.linalg.inv(tensor),
        ("solve", _OURS): lambda: exact_conv.solve(kernel, z),
        ("solve", "dense, tf solve"): lambda: tf.linalg.solve(tensor, columns),
    }


def measure(calls, repeats):
    """The results of the calls and their median milliseconds, in turns until each has had its repeats."""
    results = {name: np.asarray(call()) for name, call in calls.items()}
    times = {name: [] for name in calls}
    for turn in range(max(repeats.values())):
        for name in [name for name in calls if turn < repeats[name]]:
            start, count = time.perf_counter(), 0
            while (elapsed := time.perf_counter() - start) < _SECONDS_A_TURN:
                np.asarray(calls[name]())
                count += 1
            times[name].append(1e3 * elapsed / count)
    return results, {name: np.median(values) for name, values in times.items()}


def exact_figures(text, repeats, peaks):
    """Quantity, method, value and unit of all that is measured for one shape."""
    shape = tuple(map(int, text.split("x")))
    kernel = make_kernel(shape[2])
    z = tf.random.stateless_normal([_COUNT, *shape], [0, 1], dtype=tf.float64)
    calls = exact_calls(kernel, z)
    turns = min(2, repeats) if np.prod(shape) > 2000 else repeats
    results, times = measure(calls, {name: repeats if name[1] == _OURS else turns for name in calls})
    inverse, columns = results["gradient", "dense, tf inv"], results["solve", "dense, tf solve"]
    results["gradient", "dense, tf inv"] = gradient_from_inverse(inverse, kernel.shape, shape[:2])
    results["solve", "dense, tf solve"] = columns.T.reshape(z.shape)
    yield "build time", "dense, numpy", times.pop(("build", "dense, numpy")), "ms"
    for (operation, method), milliseconds in times.items():
        yield f"{operation} time", method, milliseconds, "ms"
        yield f"{operation} time over ours", method, milliseconds / times[operation, _OURS], "1"
        if operation == "log_det":
            yield "log_det value", method, float(results[operation, method]), "nats"
        if method != _OURS:
            difference = np.abs(results[operation, method] - results[operation, _OURS]).max()
            yield f"{operation} difference", method, difference, "1"
    yield from (("log_det peak memory", method, peak, "MiB") for method, peak in peaks.items())


def trained_flow(layers_per_block, steps):
    """The flow, and 100 images that it has not seen: scikit-learn's digits, enlarged to 28x28."""
    from sklearn import datasets

    images = datasets.load_digits().images.astype(np.uint8).repeat(3, axis=1).repeat(3, axis=2)
    images = np.pad(images, [(0, 0), (2, 2), (2, 2)])[..., np.newaxis]
    flow = sn.conv_flow(
        (28, 28, 1),
        num_blocks=3,
        layers_per_block=layers_per_block,
        centering=False,
        preprocessing=sn.images.pixel_sigmoid(17),
        seed=1,
        gradient="self_norm",
    )
    model = sn.FlowModel(flow, sn.Reconstruction("data", weight=1.0))
    model.compile(keras.optimizers.Adam(1e-3))
    data = tf.data.Dataset.from_tensor_slices(images[_COUNT:]).shuffle(2000, seed=0).repeat().batch(100)
    model.fit(sn.images.dequantize_dataset(data, seed=0), steps_per_epoch=steps, shuffle=False, verbose=0)
    return flow, sn.images.dequantize(images[:_COUNT], seed=0)


def round_trip_errors(flow, x):
    """Of `decode(encode(x))`, as pixels and as logits, and `encode(decode(z))`, from logits on."""
    to_pixels, layers = flow.bijector.bijectors[0], tfp.bijectors.Chain(flow.bijector.bijectors[1:])
    logits = to_pixels.inverse(x)
    z = layers.inverse(tf.identity(logits))
    decoded = layers.forward(tf.identity(z))
    return {
        "pixels": to_pixels.forward(tf.identity(decoded)) - x,
        "logits": decoded - logits,
        "latents": layers.inverse(tf.identity(decoded)) - z,
    }


def sampling_figures(layers_per_block, steps, repeats):
    """As `exact_figures`, of a flow that it trains."""
    flow, x = trained_flow(layers_per_block, steps)
    yield "test nll", f"after {steps} steps", -float(tf.reduce_mean(flow.log_prob(tf.identity(x)))), "nats"
    encode = tf.function(lambda x: flow.bijector.inverse(tf.identity(x)))
    calls = {("encode", "either"): lambda: encode(x)}
    flows = {"learned inverse": flow, "exact inverse": sn.exact(flow)}
    for method, decoder in flows.items():
        calls["sample", method] = tf.function(lambda flow=decoder: flow.sample(_COUNT, seed=[0, 1]))
    _, times = measure(calls, dict.fromkeys(calls, repeats))
    for (operation, method), milliseconds in times.items():
        yield f"{operation} time", method, milliseconds, "ms"
        yield f"{operation} time over encode", method, milliseconds / times["encode", "either"], "1"
    for method, decoder in flows.items():
        for space, error in round_trip_errors(decoder, x).items():
            yield f"{space} max error", method, np.abs(error).max(), "1"
            yield f"{space} rms error", method, np.sqrt(np.mean(np.square(error, dtype=np.float64))), "1"


def print_table(title, figures):
    """A line for each first word of a quantity and method, a column for each rest of one."""
    lines, widths = {}, {}
    for quantity, method, value, unit in figures:
        operation, measured = quantity.split(" ", 1)
        column = measured if unit == "1" else f"{measured}, {unit}"
        widths[column] = max(len(column), 10) + 3
        lines.setdefault((operation, method), {})[column] = f"{value:.5g}"
    print(f"\n{title:32}" + "".join(f"{column:>{width}}" for column, width in widths.items()))
    for (operation, method), cells in lines.items():
        cells = "".join(f"{cells.get(column, ''):>{width}}" for column, width in widths.items())
        print(f"{operation:10}{method:22}{cells}".rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["log_det", "sampling"], help="default: both")
    parser.add_argument("--shapes", nargs="+", default=["28x28x1", "16x16x12", "32x32x3"])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--steps", type=int, default=300, help="training steps of the flow")
    parser.add_argument("--layers", type=int, default=3, help="convolutions in each of its 3 blocks")
    parser.add_argument("--csv", help="file to write the tables to")
    arguments = parser.parse_args()
    print(machine())
    tables = {}
    if arguments.part != "sampling":
        # Before this process has grown: on Linux a child starts with the peak of its parent.
        peaks = {shape: peak_memory(shape) for shape in arguments.shapes}
        tables = {("log_det", text): exact_figures(text, arguments.repeats, peaks[text]) for text in peaks}
    if arguments.part != "log_det":
        tables["sampling", "28x28x1"] = sampling_figures(arguments.layers, arguments.steps, arguments.repeats)
    rows = []
    for table, figures in tables.items():
        figures = list(figures)
        print_table(", ".join(table), figures)
        rows += [dict(zip(COLUMNS, (*table, *figure), strict=True)) for figure in figures]
    if arguments.csv:
        write_csv(arguments.csv, rows)


if __name__ == "__main__":
    main()
