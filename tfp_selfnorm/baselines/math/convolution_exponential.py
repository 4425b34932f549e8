"""The exponential of a zero-padded convolution of stride 1, by its series.

Images are `[B, H, W, C]`, kernels `[kh, kw, C, C]` of odd sizes; M is the matrix of the convolution.
Hoogeboom et al. (2020), section 3.
"""

import math

import numpy as np
import tensorflow as tf

from tfp_selfnorm.baselines.math import line_conv


def norm_bound_squared(kernel):
    """A bound on the square of the spectral norm of M: its largest row sum times its largest column sum."""
    magnitude = tf.abs(kernel)
    rows = tf.reduce_max(tf.reduce_sum(magnitude, axis=[0, 1, 2]))
    columns = tf.reduce_max(tf.reduce_sum(magnitude, axis=[0, 1, 3]))
    return rows * columns


def bounded(kernel, max_norm):
    """The kernel, scaled down where that is needed for the bound on the norm to be `max_norm` at most."""
    # No square root meets a 0 here, at which its gradient would be NaN.
    return kernel * (max_norm * tf.math.rsqrt(tf.maximum(norm_bound_squared(kernel), max_norm**2)))


def number_of_terms(max_norm, dtype):
    """After how many terms the rest of the series is below rounding, relative to any `exp(M) y`."""
    # exp(M) shrinks nothing by more than exp(-max_norm). The rest is below a geometric series.
    tolerance = np.finfo(tf.as_dtype(dtype).as_numpy_dtype).eps * math.exp(-max_norm)
    count, following = 0, max_norm
    while count + 2 <= max_norm or following / (1.0 - max_norm / (count + 2)) > tolerance:
        count += 1
        following *= max_norm / (count + 1)
    return count


def apply(kernel, images, count):
    """`exp(M)` of the images, by Horner's rule with so many terms: as many convolutions."""
    convolve, parameters = line_conv.linear_map(kernel, images.shape[1:3])
    result = images
    for n in range(count, 0, -1):
        result = images + convolve(result, parameters / n)
    return result


def log_det(kernel, spatial_shape):
    """`log |det exp(M)|` in nats, the trace of M."""
    height, width = kernel.shape[:2]
    return float(np.prod(spatial_shape)) * tf.linalg.trace(kernel[height // 2, width // 2])
