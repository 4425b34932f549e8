"""The gradient of the log-det of a convolution on a torus, which approximates zero padding.

On a torus the matrix of a convolution is block-circulant: the discrete Fourier transform divides it into one
C x C matrix for each frequency, the symbol of the kernel. So its inverse costs one small inverse for each
frequency, whatever the size of the images. Far from the edges of an image the inverse of the zero-padded
convolution is close to it.
"""

import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

# The most frequencies of one dimension, for kernels of up to 8. More were no better in training.
_MOST_FREQUENCIES = 16
# Relative to the mean squared singular value of the symbols. It bounds the inverse of a singular symbol.
_DAMPING = 1e-8


def mean_log_det_gradient(kernel: tf.Tensor, spatial_shape: Sequence[int]) -> tf.Tensor:
    """The gradient of `log |det|` on a torus by the kernel, for each pixel of the torus.

    The symbol at a frequency f is `A(f) = sum_s kernel[s] exp(2 pi i f s)`, with the offsets s from the
    centre of the kernel. The result is the mean over the frequencies of `Re(exp(2 pi i f s) A(f)^-T)`. The
    inverse is damped: `(A^H A + e)^-1 A^H`, where e is 1e-8 times the mean squared singular value of the
    symbols. So it is finite if the squares of the kernel are, and NaN if the kernel is not. It is computed in
    float64.

    In each dimension the torus is longer than the image by twice the radius of the kernel, and at most as
    long as two kernels, or 16 pixels if that is more. Elements of the kernel that multiply only zeros of the
    padding are left out.

    Args:
      kernel: float `[kh, kw, C, C]` (height, width, input and output channels), sizes odd.
      spatial_shape: `(H, W)`, the sizes of the images.

    Cost: O(F C^3) for about half as many frequencies F as the torus has pixels: at most 16 x 16
    for kernels of up to 8 x 8.
    """
    if tf.executing_eagerly():
        # Compiled, the dozens of small operations take a third of their eager time.
        return _compiled(tuple(spatial_shape))(kernel)
    *sizes, channels, _ = kernel.shape
    waves, weights = _waves(tuple(sizes), tuple(spatial_shape))
    elements = tf.reshape(tf.cast(kernel, tf.float64), [-1, channels**2])
    real, imaginary = (tf.reshape(wave @ elements, [-1, channels, channels]) for wave in waves)
    # Complex matrices as real ones of twice the size: XLA has no complex inverse.
    rows = tf.concat([real, -imaginary], axis=-1)
    symbols = tf.concat([rows, tf.concat([imaginary, real], axis=-1)], axis=-2)
    squares = tf.matmul(symbols, symbols, transpose_a=True)
    mean_square = tf.reduce_mean(tf.linalg.diag_part(squares))
    identity = tf.eye(2 * channels, dtype=tf.float64)
    damped = squares + (_DAMPING * mean_square + np.finfo(np.float64).tiny) * identity
    # The inverse of a matrix with NaN is an error on the CPU, which would end the training.
    is_finite = tf.math.is_finite(mean_square)
    inverses = tf.matmul(tf.linalg.inv(tf.where(is_finite, damped, identity)), rows, transpose_b=True)
    inverses = tf.where(is_finite, inverses, tf.constant(np.nan, tf.float64))
    real, imaginary = tf.split(inverses, 2, axis=-2)
    cosines, sines = (tf.constant(wave * weights[:, np.newaxis]) for wave in waves)
    gradient = tf.einsum("fs,foi->sio", cosines, real) - tf.einsum("fs,foi->sio", sines, imaginary)
    return tf.cast(tf.reshape(gradient, kernel.shape), kernel.dtype)


@functools.cache
def _compiled(spatial_shape):
    return tf.function(
        functools.partial(mean_log_det_gradient, spatial_shape=spatial_shape), reduce_retracing=False
    )


@functools.cache
def _waves(kernel_size, spatial_shape):
    """The cosines and sines `[F, s]` of the offsets s at half of the frequencies, and weights of the mean."""
    frequencies, offsets, inside = [], [], []
    for size, length in zip(kernel_size, spatial_shape, strict=True):
        radius = size // 2
        # On a shorter torus a kernel would lie over itself.
        most = max(_MOST_FREQUENCIES, 2 * size)
        number = 1 if radius == 0 or length == 1 else min(length + 2 * radius, most)
        frequencies.append(np.arange(number) / number)
        offsets.append(np.arange(size) - radius)
        # Elements that multiply only zeros of the padding.
        inside.append(np.abs(offsets[-1]) < length)
    points = np.stack(np.meshgrid(*frequencies, indexing="ij"), axis=-1).reshape([-1, 2])
    shifts = np.stack(np.meshgrid(*offsets, indexing="ij"), axis=-1).reshape([-1, 2])
    # The frequencies f and -f have conjugate symbols, and so the same real part.
    opposite = np.round((-points) % 1.0, 12)
    first = [
        tuple(point) <= tuple(other) for point, other in zip(np.round(points, 12), opposite, strict=True)
    ]
    both = np.any(np.round(points, 12) != opposite, axis=1)
    weights = np.where(both, 2.0, 1.0)[first] / len(points)
    angles = 2.0 * np.pi * points[first] @ shifts.T
    inside = np.multiply.outer(*inside).ravel()
    return (np.cos(angles) * inside, np.sin(angles) * inside), weights
