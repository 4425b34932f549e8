"""The masked convolution whose matrix is triangular, and its solution by substitution.

Pixels are in raster order, and the channels of a pixel in theirs; each output depends on the inputs up to
its own place, or in the reverse order on those from its own place on. Images are `[B, H, W, C]`, kernels
`[kh, kw, C, C]` of odd sizes, with zero padding and stride 1. Hoogeboom et al. (2019), section 3.
"""

import numpy as np
import tensorflow as tf

from tfp_selfnorm.math import conv, exact_conv


def mask(kernel_size, channels, reverse=False):
    """Which elements of a kernel keep the order: a numpy array of booleans `[kh, kw, C, C]`."""
    height, width = kernel_size
    pixel = np.arange(height * width).reshape(height, width, 1, 1) - height * width // 2
    channel = np.arange(channels)[:, np.newaxis] - np.arange(channels)
    is_before = (pixel < 0) | ((pixel == 0) & (channel <= 0))
    return is_before[::-1, ::-1, ::-1, ::-1] if reverse else is_before


def masked(kernel, reverse=False):
    """The kernel with zeros where it would break the order."""
    keeps_order = mask(kernel.shape[:2], kernel.shape[-1], reverse)
    return tf.where(keeps_order, kernel, tf.zeros([], kernel.dtype))


def diagonal(kernel):
    """The diagonal of the matrix, `[C]`: the same for each pixel."""
    height, width = kernel.shape[:2]
    return tf.linalg.diag_part(kernel[height // 2, width // 2])


def log_det(kernel, spatial_shape):
    """`log |det|` in nats of the masked convolution of images of `spatial_shape`; -inf where it is 0."""
    return float(np.prod(spatial_shape)) * tf.reduce_sum(tf.math.log(tf.abs(diagonal(kernel))))


def solve(kernel, z, reverse=False, name="kernel"):
    """The images `[B, H, W, C]` whose convolution with the masked kernel is `z`, by substitution.

    Differentiable once, by the substitution of the transposed map. Cost: O(kh (W C)^2) for each line of an
    image, the lines one after another; with zeros on the diagonal there is no solution.

    Raises:
      ValueError: in eager mode, if the diagonal has a zero; in a graph that is a
        `tf.errors.InvalidArgumentError`, and NaN where XLA drops it.
    """

    @tf.custom_gradient
    def apply(kernel, z):
        kernel, is_regular = _checked(kernel, name)
        x = _substituted_back(kernel, z) if reverse else _substituted(kernel, z)
        x = tf.where(is_regular, x, tf.constant(np.nan, x.dtype))

        def gradients(d_x):
            d_z = solve(conv.flip(kernel), d_x, not reverse, name)
            d_kernel = -masked(conv.kernel_gradient(x, d_z, kernel.shape[:2]), reverse)
            return exact_conv.differentiated_once(d_kernel, kernel, z), d_z

        return x, gradients

    return apply(kernel, z)


def _substituted_back(kernel, z):
    axes = [1, 2, 3]
    return tf.reverse(_substituted(tf.reverse(kernel, [0, *axes]), tf.reverse(z, axes)), axes)


def _substituted(kernel, z):
    height, width, channels = z.shape[1:]
    size = width * channels
    above = min(kernel.shape[0] // 2, height - 1)
    own, earlier = _line_matrices(kernel, above, width, channels)
    lines = tf.transpose(tf.reshape(z, [-1, height, size]), [1, 2, 0])

    def step(i, window, solved):
        line = tf.linalg.triangular_solve(own, lines[i] - earlier @ window)
        return i + 1, tf.concat([line, window], axis=0)[: above * size], solved.write(i, line)

    # The lines that were solved last, the newest first: zeros above the image.
    window = tf.tile(tf.zeros_like(lines[0]), [above, 1])
    solved = tf.TensorArray(z.dtype, size=height, element_shape=lines.shape[1:])
    _, _, solved = tf.while_loop(
        lambda i, *_: i < height, step, (0, window, solved), maximum_iterations=height
    )
    return tf.reshape(tf.transpose(solved.stack(), [2, 0, 1]), tf.shape(z))


def _line_matrices(kernel, above, width, channels):
    """The matrices by which a line depends on itself, lower triangular, and on those above, side by side."""
    size = width * channels
    impulses = tf.reshape(tf.eye(size, dtype=kernel.dtype), [size, 1, width, channels])
    impulses = tf.pad(impulses, [[0, 0], [0, above], [0, 0], [0, 0]])
    responses = tf.reshape(conv.convolve(impulses, kernel), [size, above + 1, size])
    earlier = tf.transpose(responses[:, 1:], [2, 1, 0])
    return tf.transpose(responses[:, 0]), tf.reshape(earlier, [size, above * size])


def _checked(kernel, name):
    """The kernel, and whether its diagonal has no zero."""
    is_regular = tf.reduce_all(diagonal(kernel) != 0.0)
    message = f"The convolution with `{name}` is singular: its diagonal has a zero."
    if tf.executing_eagerly():
        if not is_regular:
            raise ValueError(message)
        return kernel, is_regular
    with tf.control_dependencies([tf.debugging.Assert(is_regular, [message])]):
        return tf.identity(kernel), is_regular
