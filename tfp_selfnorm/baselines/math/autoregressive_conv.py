"""The masked convolution with a triangular matrix, and its solution by substitution.

Pixels are in raster order; in a pixel, the channels are in order. Each output depends on the inputs up to its
own place. In the reverse order it depends on the inputs from its own place on. Images are `[B, H, W, C]`,
kernels `[kh, kw, C, C]` with odd sizes, zero padding and stride 1. Hoogeboom et al. (2019), section 3.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfp_selfnorm.baselines.math.line_conv import line_matrices
from tfp_selfnorm.math import conv, exact_conv, linear

_NUM_PROBES = 4


def mask(kernel_size: Sequence[int], channels: int, reverse: bool = False) -> np.ndarray:
    """The elements of a kernel that keep the order: a numpy array of booleans `[kh, kw, C, C]`."""
    height, width = kernel_size
    pixel = np.arange(height * width).reshape(height, width, 1, 1) - height * width // 2
    channel = np.arange(channels)[:, np.newaxis] - np.arange(channels)
    keeps_order = (pixel < 0) | ((pixel == 0) & (channel <= 0))
    return keeps_order[::-1, ::-1, ::-1, ::-1] if reverse else keeps_order


def masked(kernel: tf.Tensor, reverse: bool = False) -> tf.Tensor:
    """The kernel with zeros for the elements that break the order."""
    keeps_order = mask(kernel.shape[:2], kernel.shape[-1], reverse)
    return tf.where(keeps_order, kernel, tf.zeros([], kernel.dtype))


def log_det(kernel: tf.Tensor, spatial_shape: Sequence[int]) -> tf.Tensor:
    """`log |det|` of the masked convolution in nats, for images of `spatial_shape`; -inf for a zero det.

    Cost: O(C), because the diagonal of the matrix is the same at each pixel.
    """
    height, width = kernel.shape[:2]
    diagonal = tf.linalg.diag_part(kernel[height // 2, width // 2])
    return float(np.prod(spatial_shape)) * tf.reduce_sum(tf.math.log(tf.abs(diagonal)))


def solve(kernel: tf.Tensor, z: tf.Tensor, reverse: bool = False, name: str = "kernel") -> tf.Tensor:
    """The images `[B, H, W, C]` with the masked convolution `z`, computed in float64.

    It is differentiable once, by the substitution of the transposed map. Cost: O(kh (W C)^2) for each line of
    an image, one line after the other.

    Raises:
      ValueError: if the convolution is singular to working precision, in eager mode. In a graph the error is
        `tf.errors.InvalidArgumentError`; under XLA the result is NaN.
    """

    @tf.custom_gradient
    def apply(kernel, z):
        x = exact_conv.in_double(_solution_and_error, reverse, name, kernel, z)

        def gradients(d_x):
            d_z = solve(conv.flip(kernel), d_x, not reverse, name)
            d_kernel = -masked(conv.kernel_gradient(x, d_z, kernel.shape[:2]), reverse)
            return linear.differentiated_once(d_kernel, kernel, z), d_z

        return x, gradients

    return apply(kernel, z)


def _solution_and_error(reverse, kernel, z):
    """The solution, and the relative error of random images after the map and the solution."""
    if reverse:
        kernel, z = tf.reverse(kernel, [0, 1, 2, 3]), tf.reverse(z, [1, 2, 3])
    probes = tf.constant(np.random.default_rng(0).standard_normal([_NUM_PROBES, *z.shape[1:]]))
    x = _substituted(kernel, tf.concat([conv.convolve(probes, kernel), z], axis=0))
    error = tf.norm(x[:_NUM_PROBES] - probes) / tf.norm(probes)
    x = x[_NUM_PROBES:]
    return tf.reverse(x, [1, 2, 3]) if reverse else x, error


def _substituted(kernel, z):
    height, width, channels = z.shape[1:]
    size, radius = width * channels, kernel.shape[0] // 2
    above = min(radius, height - 1)
    matrices = line_matrices(kernel, width)
    own = tf.transpose(matrices[radius])
    # TensorFlow raises its own errors for zeros. With these values the measured error is infinite.
    tiny = tf.constant(np.finfo(np.float64).tiny, own.dtype)
    own = tf.where(own == 0.0, tiny * tf.eye(size, dtype=own.dtype), own)
    # The window has the lines above with the last one first; their matrices get the same order.
    earlier = tf.transpose(tf.reverse(matrices[radius - above : radius], axis=[0]), [2, 0, 1])
    earlier = tf.reshape(earlier, [size, above * size])
    lines = tf.transpose(tf.reshape(z, [-1, height, size]), [1, 2, 0])

    def step(i, window, solved):
        line = tf.linalg.triangular_solve(own, lines[i] - earlier @ window)
        return i + 1, tf.concat([line, window], axis=0)[: above * size], solved.write(i, line)

    window = tf.tile(tf.zeros_like(lines[0]), [above, 1])
    solved = tf.TensorArray(z.dtype, size=height, element_shape=lines.shape[1:])
    _, _, solved = tf.while_loop(
        lambda i, *_: i < height, step, (0, window, solved), maximum_iterations=height
    )
    return tf.reshape(tf.transpose(solved.stack(), [2, 0, 1]), tf.shape(z))
