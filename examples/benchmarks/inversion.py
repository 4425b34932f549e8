"""Compares iterations by the circulant inverse of a convolution with its exact solve, layer by layer.

    python examples/experiments/train.py circulant_cnn_mnist --epochs 1 --output runs/circulant
    python examples/benchmarks/inversion.py runs/circulant/best.keras --csv FILE

On a torus the inverse of a convolution is known by FFT. It preconditions steps of GCR (generalised conjugate
residuals, each image for itself), applied by FFT or as a convolution with its 5x5 centre. Each layer inverts
its images in sampling. For each layer and method: the fewest steps with an error below 1e-4 and that error,
`||x - x*|| / ||x*||` over all images, with `x*` of the solve in float64. Milliseconds are for all images,
medians of calls in turns. "Held" leaves out the computation of the inverse of the kernel.
"""

import argparse
import functools

import keras
import numpy as np
import tensorflow as tf
from shared import machine, write_csv
from timing import measure, quartiles

import tfp_selfnorm as sn
from tfp_selfnorm.math import conv, exact_conv

_CENTRE = 5
_ERROR = 1e-4


def inverse_symbols(kernel, spatial_shape):
    """The inverses `[F1, F2, in, out]` of the symbols on a torus, by the frequencies of a real FFT."""
    height, width, channels, _ = kernel.shape
    sizes = [size + length // 2 * 2 for size, length in zip(spatial_shape, (height, width), strict=True)]
    paddings = [[0, sizes[0] - height], [0, sizes[1] - width], [0, 0], [0, 0]]
    padded = tf.pad(tf.cast(kernel, tf.float64), paddings)
    padded = tf.roll(padded, [-(height // 2), -(width // 2)], [0, 1])
    symbols = tf.math.conj(tf.signal.rfft2d(tf.transpose(padded, [2, 3, 0, 1])))
    if channels == 1:
        return tf.transpose(1.0 / symbols, [2, 3, 0, 1]), sizes
    return tf.linalg.inv(tf.transpose(symbols, [2, 3, 0, 1])), sizes


def by_fft(kernel, spatial_shape):
    """A function that divides images by the kernel on the torus."""
    symbols, sizes = inverse_symbols(kernel, spatial_shape)
    symbols = tf.cast(symbols, tf.complex64)

    def apply(symbols, z):
        spectrum = tf.signal.rfft2d(tf.transpose(z, [0, 3, 1, 2]), sizes)
        if symbols.shape[-1] == 1:
            spectrum *= symbols[..., 0, 0]
        else:
            spectrum = tf.transpose(tf.matmul(tf.transpose(spectrum, [2, 3, 0, 1]), symbols), [2, 3, 0, 1])
        images = tf.transpose(tf.signal.irfft2d(spectrum, sizes), [0, 2, 3, 1])
        return images[:, : spatial_shape[0], : spatial_shape[1]]

    return symbols, apply


def by_centre(kernel, spatial_shape):
    """A function that convolves images with the centre of the inverse of the kernel on the torus."""
    symbols, sizes = inverse_symbols(kernel, spatial_shape)
    inverse = tf.signal.irfft2d(tf.transpose(tf.math.conj(symbols), [2, 3, 0, 1]), sizes)
    inverse = tf.roll(tf.transpose(inverse, [2, 3, 0, 1]), [_CENTRE // 2] * 2, [0, 1])
    return tf.cast(inverse[:_CENTRE, :_CENTRE], kernel.dtype), lambda inverse, z: conv.convolve(z, inverse)


def gcr(kernel, z, precondition, steps):
    """The images after some steps of GCR from 0."""

    def dot(a, b):
        return tf.reduce_sum(a * b, axis=[1, 2, 3], keepdims=True)

    x, residual, directions = tf.zeros_like(z), z, []
    for _ in range(steps):
        p = precondition(residual)
        q = conv.convolve(p, kernel)
        for earlier_p, earlier_q, square in directions:
            share = tf.math.divide_no_nan(dot(q, earlier_q), square)
            p, q = p - share * earlier_p, q - share * earlier_q
        square = dot(q, q)
        length = tf.math.divide_no_nan(dot(residual, q), square)
        x, residual = x + length * p, residual - length * q
        directions.append((p, q, square))
    return x


def layers_and_latents(flow, count):
    """The layers in the order of sampling, each with the images that it inverts."""
    x = flow.distribution.sample(count, seed=[0, 1])
    for bijector in reversed(flow.bijector.bijectors):
        if isinstance(bijector, sn.SelfNormConv2D):
            yield bijector, x if bijector.bias is None else x - bijector.bias
        x = bijector.forward(tf.identity(x))


def error_of(x, target):
    return np.linalg.norm(x.numpy() - target) / np.linalg.norm(target)


def fewest_steps(invert, target, most_steps):
    """The fewest steps with an error below the bound, or the most; and the error."""
    for steps in range(1, most_steps + 1):
        error = error_of(invert(steps), target)
        if error < _ERROR:
            break
    return steps, error


def methods(kernel, z, target, most_steps):
    """Functions of the images by method, each with its steps and its error."""
    shape = z.shape[1:3]

    def current(z):
        # TensorFlow would compute the inverse of a constant kernel once, before the first call.
        return kernel + 0.0 * z[0, 0, 0, 0]

    error = error_of(exact_conv.solve(kernel, z), target)
    yield "exact solve", 1, error, lambda z: exact_conv.solve(current(z), z)
    for name, make in (("5x5 centre", by_centre), ("FFT", by_fft)):
        made, apply = make(kernel, shape)

        def held(z, steps, made=made, apply=apply):
            return gcr(kernel, z, lambda residual: apply(made, residual), steps)

        def whole(z, steps, make=make, apply=apply):
            made, _ = make(current(z), shape)
            return gcr(kernel, z, lambda residual: apply(made, residual), steps)

        steps, error = fewest_steps(lambda steps, held=held: held(z, steps), target, most_steps)
        yield name, steps, error, functools.partial(whole, steps=steps)
        yield f"{name}, held", steps, error, functools.partial(held, steps=steps)


def rows_of(layer, z, most_steps, repeats, seconds):
    """A row for each method."""
    kernel = tf.convert_to_tensor(layer.inverse_kernel)
    target = exact_conv.solve(tf.cast(kernel, tf.float64), tf.cast(z, tf.float64))
    found = list(methods(kernel, z, target.numpy(), most_steps))
    calls = {}
    for name, _, _, invert in found:
        compiled = tf.function(invert)
        calls[name] = lambda compiled=compiled: compiled(z).numpy()
    times = measure(calls, repeats, seconds)
    exact = np.median(times["exact solve"])
    for name, steps, error, _ in found:
        yield {
            "layer": layer.name,
            "image": "x".join(map(str, layer.event_sizes)),
            "method": name,
            "steps": steps,
            "error": f"{error:.1e}",
            **quartiles(times[name]),
            "exact_over_this": round(exact / np.median(times[name]), 2),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a .keras file of a flow with convolutions")
    parser.add_argument("--count", type=int, default=100, help="images")
    parser.add_argument("--most-steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--csv", help="file to write the table to")
    arguments = parser.parse_args()
    print(machine())
    flow = sn.exact(keras.models.load_model(arguments.model).distribution)
    rows = []
    for layer, z in layers_and_latents(flow, arguments.count):
        for row in rows_of(layer, z, arguments.most_steps, arguments.repeats, arguments.seconds):
            rows.append(row)
            print(*(f"{value!s:>16}" for value in row.values()), flush=True)
    if arguments.csv:
        write_csv(arguments.csv, rows)


if __name__ == "__main__":
    main()
