"""The exponential of a zero-padded convolution of stride 1, by its series.

Images are `[B, H, W, C]`, kernels `[kh, kw, C, C]` with odd sizes. M is the matrix of the convolution.
Hoogeboom et al. (2020), section 3.
"""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfp_selfnorm.baselines.math import line_conv
from tfp_selfnorm.utils.types import DType


def bounded(kernel: tf.Tensor, max_norm: float) -> tf.Tensor:
    """The kernel, scaled down so that a bound on the spectral norm of M is at most `max_norm`.

    The bound is the root of the largest row sum times the largest column sum of M.
    """
    magnitude = tf.abs(kernel)
    rows = tf.reduce_max(tf.reduce_sum(magnitude, axis=[0, 1, 2]))
    columns = tf.reduce_max(tf.reduce_sum(magnitude, axis=[0, 1, 3]))
    # The argument of the square root is never 0, where the gradient would be NaN.
    return kernel * (max_norm * tf.math.rsqrt(tf.maximum(rows * columns, max_norm**2)))


def number_of_terms(max_norm: float, dtype: DType) -> int:
    """The number of terms that leave a rest of the series below rounding, relative to any `exp(M) y`."""
    # exp(M) shrinks a vector by at most exp(-max_norm). The rest is below a geometric series.
    tolerance = np.finfo(tf.as_dtype(dtype).as_numpy_dtype).eps * math.exp(-max_norm)
    count, following = 0, max_norm
    while count + 2 <= max_norm or following / (1.0 - max_norm / (count + 2)) > tolerance:
        count += 1
        following *= max_norm / (count + 1)
    return count


def apply(kernel: tf.Tensor, images: tf.Tensor, count: int) -> tf.Tensor:
    """`exp(M)` of the images, by Horner's rule with `count` terms, which are `count` convolutions."""
    convolve, parameters = line_conv.linear_map(kernel, images.shape[1:3])
    result = images
    for n in range(count, 0, -1):
        result = images + convolve(result, parameters / n)
    return result


def log_det(kernel: tf.Tensor, spatial_shape: Sequence[int]) -> tf.Tensor:
    """`log |det exp(M)|` in nats, the trace of M."""
    height, width = kernel.shape[:2]
    return float(np.prod(spatial_shape)) * tf.linalg.trace(kernel[height // 2, width // 2])
