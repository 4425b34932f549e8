"""The zero-padded convolution of stride 1 as products of whole lines with matrices.

Images are `[B, H, W, C]` and kernels `[kh, kw, C, C]` with odd sizes. A line is a row of W C numbers.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from tfp_selfnorm.math import conv

# On the CPU, TensorFlow's convolutions of few channels are slow: they take up to ten times as long as the
# products with matrices, although these compute with W / kw times as many numbers.
_FEWER_CHANNELS_THAN = 4
_LARGEST_LINE = 128


def line_matrices(kernel: tf.Tensor, width: int) -> tf.Tensor:
    """The matrices `[kh, W C, W C]` of the convolution, one for each of kh lines of an image.

    The sum of `line @ matrix` over kh lines is a line of the result, at the place of the middle line.
    """
    height, _, channels, _ = kernel.shape
    size, radius = width * channels, height // 2
    impulses = tf.reshape(tf.eye(size, dtype=kernel.dtype), [size, 1, width, channels])
    impulses = tf.pad(impulses, [[0, 0], [radius, radius], [0, 0], [0, 0]])
    responses = tf.reshape(conv.convolve(impulses, kernel), [size, height, size])
    return tf.reverse(tf.transpose(responses, [1, 0, 2]), axis=[0])


def linear_map(kernel: tf.Tensor, spatial_shape: Sequence[int]) -> tuple[Callable, tf.Tensor]:
    """The convolution as a function of images and parameters, and the parameters.

    The function is linear in both. The parameters are the kernel, or the matrices of lines if the product
    with these is faster.
    """
    height, width = spatial_shape
    channels = kernel.shape[-1]
    if channels >= _FEWER_CHANNELS_THAN or width * channels > _LARGEST_LINE:
        return conv.convolve, kernel
    radius, size = kernel.shape[0] // 2, width * channels

    def apply(images, matrices):
        lines = tf.pad(tf.reshape(images, [-1, height, size]), [[0, 0], [radius, radius], [0, 0]])
        around = tf.concat([lines[:, i : i + height] for i in range(2 * radius + 1)], axis=-1)
        product = tf.reshape(around, [-1, matrices.shape[0]]) @ matrices
        return tf.reshape(product, [-1, height, width, channels])

    return apply, tf.reshape(line_matrices(kernel, width), [-1, size])


def convolve(images: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """The convolution, as in `conv.convolve`, in the faster way."""
    apply, parameters = linear_map(kernel, images.shape[1:3])
    return apply(images, parameters)
