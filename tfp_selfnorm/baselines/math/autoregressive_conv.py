"""The masked convolution whose matrix is triangular, and its solution by substitution.

Pixels are in raster order, and the channels of a pixel in theirs; each output depends on the inputs up to
its own place, or in the reverse order on those from its own place on. Images are `[B, H, W, C]`, kernels
`[kh, kw, C, C]` of odd sizes, with zero padding and stride 1. Hoogeboom et al. (2019), section 3.
"""

import functools

import numpy as np
import tensorflow as tf

from tfp_selfnorm.baselines.math.line_conv import line_matrices
from tfp_selfnorm.math import conv, exact_conv

_NUM_PROBES = 4


def mask(kernel_size, channels, reverse=False):
    """Which elements of a kernel keep the order: a numpy array of booleans `[kh, kw, C, C]`."""
    height, width = kernel_size
    pixel = np.arange(height * width).reshape(height, width, 1, 1) - height * width // 2
    channel = np.arange(channels)[:, np.newaxis] - np.arange(channels)
    keeps_order = (pixel < 0) | ((pixel == 0) & (channel <= 0))
    return keeps_order[::-1, ::-1, ::-1, ::-1] if reverse else keeps_order


def masked(kernel, reverse=False):
    """The kernel with zeros where it would break the order."""
    keeps_order = mask(kernel.shape[:2], kernel.shape[-1], reverse)
    return tf.where(keeps_order, kernel, tf.zeros([], kernel.dtype))


def log_det(kernel, spatial_shape):
    """`log |det|` in nats of the masked convolution of images of `spatial_shape`; -inf where it is 0.

    Cost: O(C), for the diagonal of the matrix is the same at each pixel.
    """
    height, width = kernel.shape[:2]
    diagonal = tf.linalg.diag_part(kernel[height // 2, width // 2])
    return float(np.prod(spatial_shape)) * tf.reduce_sum(tf.math.log(tf.abs(diagonal)))


def solve(kernel, z, reverse=False, name="kernel"):
    """The images `[B, H, W, C]` whose convolution with the masked kernel is `z`; computed in float64.

    Differentiable once, by the substitution of the transposed map. Cost: O(kh (W C)^2) for each line of an
    image, the lines one after another.

    Raises:
      ValueError: in eager mode, if the convolution is singular to working precision; in a graph that is a
        `tf.errors.InvalidArgumentError`, and NaN where XLA drops it.
    """

    @tf.custom_gradient
    def apply(kernel, z):
        compiled = _compiled(reverse, tuple(kernel.shape), tuple(z.shape[1:]))
        x, error = compiled(exact_conv.detached_double(kernel), exact_conv.detached_double(z))
        x = tf.cast(exact_conv.checked(x, error, name), z.dtype)

        def gradients(d_x):
            d_z = solve(conv.flip(kernel), d_x, not reverse, name)
            d_kernel = -masked(conv.kernel_gradient(x, d_z, kernel.shape[:2]), reverse)
            return exact_conv.differentiated_once(d_kernel, kernel, z), d_z

        return x, gradients

    return apply(kernel, z)


# Some hundred small operations: eagerly they take twenty times as long.
@functools.cache
def _compiled(reverse, kernel_shape, event_shape):
    return tf.function(
        functools.partial(_solution_and_error, reverse),
        input_signature=[tf.TensorSpec(shape, tf.float64) for shape in (kernel_shape, (None, *event_shape))],
        autograph=False,
        experimental_attributes={"_noinline": True},
    )


def _solution_and_error(reverse, kernel, z):
    """The solution, and the relative error with which random images come back from map and solution."""
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
    # TensorFlow has errors of its own for zeros; with these the error that is measured is infinite.
    tiny = tf.constant(np.finfo(np.float64).tiny, own.dtype)
    own = tf.where(own == 0.0, tiny * tf.eye(size, dtype=own.dtype), own)
    # Lines above in the order in which the window has them: the last one first.
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
