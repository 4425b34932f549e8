"""Measures the exact log-det, gradient and solve of a convolution, and sampling with the exact inverse.

    python examples/benchmark_convolution.py [--csv FILE]                  # both parts, some minutes
    python examples/benchmark_convolution.py --part log_det --shapes 28x28x1 32x32x3 --repeats 20
    python examples/benchmark_convolution.py --part sampling --steps 300

Part log_det, in float64: block elimination beside the dense matrix of a 3x3 convolution, which numpy builds
on its own. Warm functions take turns; a dense matrix of order over 2000 has two turns. A peak of memory is
what the first call adds in a fresh process that has called the same function on a 4x4x1 image; for a dense
matrix that includes building it.

Part sampling, in float32: a lightly trained convolutional flow of nine layers on enlarged digits. 100 samples
by the learned inverse and by the exact one, and how far images and latents are from their round trips.
"""

import argparse
import csv
import datetime
import os
import platform
import resource
import subprocess
import sys
import time

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_selfnorm as sn
from tfp_selfnorm.math import exact_conv

_COUNT = 100
_SHAPES = [(28, 28, 1), (16, 16, 12), (32, 32, 3)]
_LARGE = 2000
_OURS = "block elimination"
_DENSE = "dense, tf slogdet"


def make_kernel(channels):
    """A 3x3 kernel, the identity plus noise, in float64."""
    kernel = np.random.default_rng(0).normal(size=[3, 3, channels, channels]) * 0.3 / np.sqrt(9 * channels)
    kernel[1, 1] += np.eye(channels)
    return tf.constant(kernel)


def coupled_pixels(kernel_size, spatial_shape):
    """For each element of a kernel: the lines and columns of its outputs, and those of its inputs."""
    for element in np.ndindex(*kernel_size):
        shifts = [index - size // 2 for index, size in zip(element, kernel_size, strict=True)]
        outputs = [
            np.arange(max(0, -shift), min(length, length - shift))
            for shift, length in zip(shifts, spatial_shape, strict=True)
        ]
        inputs = [index + shift for index, shift in zip(outputs, shifts, strict=True)]
        yield element, np.ix_(*outputs), np.ix_(*inputs)


def dense_matrix(kernel, spatial_shape):
    """The matrix from flattened images to flattened outputs, `[H W C, H W C]`."""
    kernel = np.asarray(kernel)
    image = (*spatial_shape, kernel.shape[-1])
    blocks = np.zeros([*image, *image])
    for element, (h, w), (from_h, from_w) in coupled_pixels(kernel.shape[:2], spatial_shape):
        blocks[h, w, :, from_h, from_w, :] = kernel[element].T
    return blocks.reshape(np.prod(image), np.prod(image))


def gradient_from_inverse(inverse, kernel_shape, spatial_shape):
    """The gradient of `log |det|` for the kernel: sums over the inverse of the dense matrix."""
    image = (*spatial_shape, kernel_shape[-1])
    blocks = np.asarray(inverse).reshape(*image, *image)
    gradient = np.zeros(kernel_shape)
    for element, (h, w), (from_h, from_w) in coupled_pixels(kernel_shape[:2], spatial_shape):
        gradient[element] = blocks[from_h, from_w, :, h, w, :].sum(axis=(0, 1))
    return gradient


_LOG_DETS = {
    _OURS: exact_conv.log_det,
    _DENSE: lambda kernel, shape: tf.linalg.slogdet(dense_matrix(kernel, shape)).log_abs_determinant,
}


def print_added_peak(method, shape):
    """Prints the MiB by which one log-det raises the peak of this process, after a tiny one."""
    np.asarray(_LOG_DETS[method](make_kernel(1), (4, 4)))
    kernel = make_kernel(shape[2])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.asarray(_LOG_DETS[method](kernel, shape[:2]))
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def peak_memory(method, shape):
    """What `print_added_peak` prints in a fresh process."""
    command = [sys.executable, __file__, "--peak-of", method, "--shapes", text_of(shape)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return float(output.split()[-1])


def exact_calls(kernel, z):
    """By quantity and method, functions of no arguments."""
    spatial_shape = z.shape[1:3]
    matrix = dense_matrix(kernel, spatial_shape)
    tensor, columns = tf.constant(matrix), tf.transpose(tf.reshape(z, [_COUNT, -1]))
    return {
        ("log_det", _OURS): lambda: exact_conv.log_det(kernel, spatial_shape),
        ("build", "dense matrix, numpy"): lambda: dense_matrix(kernel, spatial_shape),
        ("log_det", _DENSE): lambda: tf.linalg.slogdet(tensor).log_abs_determinant,
        ("log_det", "dense, numpy slogdet"): lambda: np.linalg.slogdet(matrix).logabsdet,
        ("gradient", _OURS): lambda: exact_conv.log_det_gradient(kernel, spatial_shape),
        ("gradient", "dense, tf inv"): lambda: tf.linalg.inv(tensor),
        ("solve", _OURS): lambda: exact_conv.solve(kernel, z),
        ("solve", "dense, tf solve"): lambda: tf.linalg.solve(tensor, columns),
    }


def measure(calls, repeats):
    """The results of the calls and their median milliseconds; in turns, of which each call has its number."""
    results = {name: np.asarray(call()) for name, call in calls.items()}
    times = {name: [] for name in calls}
    for turn in range(max(repeats.values())):
        for name, call in calls.items():
            if turn < repeats[name]:
                start = time.perf_counter()
                np.asarray(call())
                times[name].append(1e3 * (time.perf_counter() - start))
    return results, {name: np.median(values) for name, values in times.items()}


def compare_exact(shape, repeats, peaks):
    """The figures of the exact functions for images of one shape."""
    kernel = make_kernel(shape[2])
    z = tf.random.stateless_normal([_COUNT, *shape], [0, 1], dtype=tf.float64)
    calls = exact_calls(kernel, z)
    few = min(2, repeats) if np.prod(shape) > _LARGE else repeats
    results, times = measure(calls, {name: repeats if name[1] == _OURS else few for name in calls})
    inverse, columns = results["gradient", "dense, tf inv"], results["solve", "dense, tf solve"]
    results["gradient", "dense, tf inv"] = gradient_from_inverse(inverse, kernel.shape, shape[:2])
    results["solve", "dense, tf solve"] = columns.T.reshape(z.shape)
    for (operation, method), milliseconds in times.items():
        yield f"{operation} time", method, milliseconds, "ms"
        if operation == "build":
            continue
        yield f"{operation} time over ours", method, milliseconds / times[operation, _OURS], "1"
        result, unit = results[operation, method], "nats" if operation == "log_det" else "1"
        if operation == "log_det":
            yield "log_det value", method, float(result), unit
            if method in peaks:
                yield "log_det peak memory", method, peaks[method], "MiB"
        if method != _OURS:
            difference = np.abs(result - results[operation, _OURS]).max()
            yield f"{operation} difference", method, difference, unit


def enlarged_digits():
    """Scikit-learn's digits as 28x28 images of 17 grey levels: for training, and 100 for the test."""
    from sklearn import datasets

    images = datasets.load_digits().images.astype(np.uint8)[..., np.newaxis]
    images = images[np.random.default_rng(0).permutation(len(images))]
    images = np.pad(images.repeat(3, axis=1).repeat(3, axis=2), [(0, 0), (2, 2), (2, 2), (0, 0)])
    return images[:-_COUNT], images[-_COUNT:]


def trained_flow(images, test, steps):
    keras.utils.set_random_seed(1)
    flow = sn.conv_flow(
        (28, 28, 1),
        num_blocks=3,
        layers_per_block=3,
        preprocessing=sn.images.pixel_sigmoid(17),
        seed=1,
    )
    model = sn.FlowModel(flow, sn.Reconstruction("data", weight=1.0))
    model.compile(keras.optimizers.Adam(1e-3))
    data = tf.data.Dataset.from_tensor_slices(images).shuffle(len(images), seed=0).repeat()
    data = sn.images.dequantize_dataset(data.batch(100, drop_remainder=True), seed=0)
    start = time.perf_counter()
    model.fit(data, steps_per_epoch=steps, shuffle=False, verbose=0)
    seconds = time.perf_counter() - start
    figures = model.evaluate(sn.images.dequantize(test, seed=0), verbose=0, return_dict=True)
    print(
        f"\nflow after {steps} steps ({seconds:.0f} s), on the test images: nll {figures['nll']:.1f} nats, "
        f"||x - R W x||^2 {figures['reconstruction']:.3g}"
    )
    return flow


def compare_sampling(steps, repeats):
    """The figures of the nine-layer flow."""
    training, test = enlarged_digits()
    flow = trained_flow(training, test, steps)
    flows = {"learned inverse": flow, "exact inverse": sn.exact(flow)}
    encode = tf.function(lambda x: flow.bijector.inverse(tf.identity(x)))
    samplers = {
        method: tf.function(lambda flow=flow: flow.sample(_COUNT, seed=[0, 1]))
        for method, flow in flows.items()
    }
    x = sn.images.dequantize(test, seed=0)
    calls = {("encode", "either"): lambda: encode(x)}
    calls |= {("sample", method): sampler for method, sampler in samplers.items()}
    _, times = measure(calls, dict.fromkeys(calls, repeats))
    for (operation, method), milliseconds in times.items():
        yield f"{operation} time", method, milliseconds, "ms"
        yield f"{operation} time over encode", method, milliseconds / times["encode", "either"], "1"
    for method, flow in flows.items():
        for space, error in round_trip_errors(flow, x).items():
            yield f"{space} max error", method, np.abs(error).max(), "1"
            yield f"{space} rms error", method, np.sqrt(np.mean(np.square(error, dtype=np.float64))), "1"


def round_trip_errors(flow, x):
    """Of images: `decode(encode(x)) - x`, as pixels and as logits; of their latents: `encode(decode(z)) - z`.

    The way of the latents leaves the pixels out, as those of a bad inverse may have infinite logits.
    """
    to_pixels, *layers = flow.bijector.bijectors
    layers = tfp.bijectors.Chain(layers)
    logits = to_pixels.inverse(x)
    z = layers.inverse(tf.identity(logits))
    decoded = layers.forward(tf.identity(z))
    return {
        "pixels": to_pixels.forward(tf.identity(decoded)) - x,
        "logits": decoded - logits,
        "latents": layers.inverse(tf.identity(decoded)) - z,
    }


def print_table(title, rows):
    """Prints a line for each operation and method, a column for each other word of the quantities."""
    lines, columns = {}, {}
    for quantity, method, value, unit in rows:
        operation, measured = quantity.split(" ", 1)
        heading = measured if unit == "1" else f"{measured}, {unit}"
        columns[heading] = max(len(heading), 10) + 3
        lines.setdefault((operation, method), {})[heading] = f"{value:.6g}"
    print(f"\n{title}\n{'':34}" + "".join(f"{heading:>{width}}" for heading, width in columns.items()))
    for (operation, method), cells in lines.items():
        cells = "".join(f"{cells.get(heading, ''):>{width}}" for heading, width in columns.items())
        print(f"{operation:10}{method:24}{cells}".rstrip())


def shape_of(text):
    height, width, channels = map(int, text.split("x"))
    return height, width, channels


def text_of(shape):
    return "x".join(map(str, shape))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["log_det", "sampling"], help="default: both")
    parser.add_argument("--shapes", type=shape_of, nargs="+", default=_SHAPES)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--steps", type=int, default=300, help="training steps of the flow")
    parser.add_argument("--csv", help="file to write the tables to")
    parser.add_argument("--peak-of", choices=_LOG_DETS, help="print the MiB that a log-det adds, and no more")
    arguments = parser.parse_args()
    if arguments.peak_of:
        print_added_peak(arguments.peak_of, arguments.shapes[0])
        return
    device = (tf.config.list_physical_devices("GPU") or ["CPU"])[0]
    print(
        f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}, {device}, "
        f"TensorFlow {tf.__version__}, TFP {tfp.__version__}"
    )
    rows = []
    if arguments.part != "sampling":
        # Before this process has grown: on Linux a child starts with the peak of its parent.
        peaks = [{method: peak_memory(method, shape) for method in _LOG_DETS} for shape in arguments.shapes]
        for shape, peak in zip(arguments.shapes, peaks, strict=True):
            figures = list(compare_exact(shape, arguments.repeats, peak))
            print_table(f"{text_of(shape)}, dense matrix of order {np.prod(shape)}", figures)
            rows += [("log_det", text_of(shape), *row) for row in figures]
    if arguments.part != "log_det":
        figures = list(compare_sampling(arguments.steps, arguments.repeats))
        print_table(f"{_COUNT} images of 28x28x1", figures)
        rows += [("sampling", "28x28x1", *row) for row in figures]
    if arguments.csv:
        with open(arguments.csv, "w", newline="") as file:
            csv.writer(file).writerows([("part", "shape", "quantity", "method", "value", "unit"), *rows])


if __name__ == "__main__":
    main()
