"""The parameters of convolutions: checks of arguments, and initial values."""

import numpy as np
import tensorflow as tf

from tfp_selfnorm.bijectors.parameters import as_parameters
from tfp_selfnorm.utils.integers import as_sizes, check_positive_int
from tfp_selfnorm.utils.options import check_dtype

# Standard deviation of the noise of initial kernels, relative to Glorot's.
_NOISE_GAIN = 0.01


def check_spatial_shape(spatial_shape, ndims):
    """Returns it as a tuple of ints.

    Raises:
      ValueError: if it is not of that many sizes, all known and positive.
    """
    sizes = as_sizes(spatial_shape)
    if sizes is None or None in sizes or len(sizes) != ndims:
        raise ValueError(
            f"`spatial_shape` must be {ndims} positive int{'s' * (ndims > 1)}, known when the layer is made; "
            f"got {spatial_shape!r}."
        )
    return tuple(sizes)


def check_kernel_size(kernel_size, ndims):
    """Returns it as a list of that many ints.

    Raises:
      ValueError: if it is not an odd positive int, or as many.
    """
    sizes = as_sizes(kernel_size) or []
    sizes = sizes * ndims if len(sizes) == 1 else sizes
    if len(sizes) != ndims or not all(size and size % 2 for size in sizes):
        raise ValueError(
            f"`kernel_size` must be an odd positive int, or {ndims} of them; got {kernel_size!r}."
        )
    return sizes


def check_conv_sizes(spatial_shape, channels, kernel_size, dtype, ndims):
    """Checks the arguments of `trainable`: returns spatial shape, channels, kernel sizes and dtype."""
    spatial_shape = check_spatial_shape(spatial_shape, ndims)
    kernel_sizes = check_kernel_size(kernel_size, ndims)
    return spatial_shape, check_positive_int(channels, "channels"), kernel_sizes, check_dtype(dtype)


def as_conv_parameters(ndims, bias, **kernels):
    """The dtype, the kernels and the bias as parameters of a convolution.

    Args:
      ndims: the number of spatial dimensions.
      bias: the bias, or `None`.
      **kernels: the kernels by name.

    Raises:
      TypeError: if a parameter is not floating or the dtypes differ.
      ValueError: if a kernel has an even or unknown size, or not as many outputs as inputs; if the kernels
        differ in shape, or the bias has another number of channels.
    """
    dtype, *values, bias = as_parameters(**kernels, bias=bias)
    kernels = dict(zip(kernels, values, strict=True))
    for name, kernel in kernels.items():
        _check_kernel(kernel, name, ndims)
    if len({tuple(kernel.shape) for kernel in values}) > 1:
        listed = ", ".join(f"`{name}` {tuple(kernel.shape)}" for name, kernel in kernels.items())
        raise ValueError(f"The kernels must have the same shape; got {listed}.")
    channels = values[0].shape[-1]
    if bias is not None and bias.shape != [channels]:
        raise ValueError(
            f"`bias` must have shape ({channels},), one for each channel; got {tuple(bias.shape)}."
        )
    return dtype, *values, bias


def _check_kernel(kernel, name, ndims):
    layout = "[kh, kw, C, C]" if ndims == 2 else "[k, C, C]"
    shape = kernel.shape
    if shape.rank != ndims + 2 or not shape.is_fully_defined() or shape[-1] != shape[-2]:
        raise ValueError(f"`{name}` must have a known shape {layout}; got {tuple(shape)}.")
    if not all(size % 2 for size in shape[:-2]):
        raise ValueError(f"`{name}` must have odd sizes {layout}; got {tuple(shape)}.")


def identity_kernel(sizes, channels, dtype):
    """The kernel of the map that changes nothing."""
    centre = np.zeros([*sizes, 1, 1])
    centre[tuple(size // 2 for size in sizes)] = 1.0
    return tf.constant(centre, dtype) * tf.eye(channels, dtype=dtype)


def noisy_identity_kernel(sizes, channels, dtype, seed):
    """The kernel of the map that changes next to nothing."""
    return identity_kernel(sizes, channels, dtype) + small_noise(sizes, channels, dtype, seed)


def rotation_kernel(sizes, channels, dtype, seed):
    """The kernel that rotates the channels of each pixel at random; `seed` is a stateless one."""
    rotation = tf.linalg.qr(tf.random.stateless_normal([channels, channels], seed, dtype=dtype)).q
    return identity_kernel(sizes, 1, dtype) * rotation


def small_noise(sizes, channels, dtype, seed):
    """A hundredth of Glorot's normal noise; `seed` is a stateless one."""
    stddev = _NOISE_GAIN / np.sqrt(np.prod(sizes) * channels)
    noise = tf.random.stateless_normal([*sizes, channels, channels], seed, dtype=dtype)
    return tf.cast(stddev, dtype) * noise


def initial_bias(channels, dtype, name, use_bias):
    """A variable of zeros, named after the layer; `None` without a bias."""
    return tf.Variable(tf.zeros([channels], dtype), name=f"{name}_bias") if use_bias else None
