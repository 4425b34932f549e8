"""The parameters of convolutions: checks of arguments, and initial values."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_selfnorm.bijectors.parameters import as_parameters
from tfp_selfnorm.utils.integers import check_positive_int, check_sizes
from tfp_selfnorm.utils.options import check_dtype
from tfp_selfnorm.utils.types import DType, Parameter, Shape

# Standard deviation of the noise of initial kernels, relative to Glorot's.
_NOISE_GAIN = 0.01


def check_spatial_shape(spatial_shape: Shape, ndims: int) -> tuple[int, ...]:
    """Converts it to a tuple of ints.

    Raises:
      ValueError: if it does not have `ndims` sizes, or a size is unknown or not positive.
    """
    expected = f"{ndims} positive int{'s' * (ndims > 1)}, known when the layer is made"
    return tuple(check_sizes(spatial_shape, "spatial_shape", expected, lambda sizes: len(sizes) == ndims))


def check_kernel_size(kernel_size: Shape, ndims: int) -> list[int]:
    """Converts it to a list of `ndims` ints.

    Raises:
      ValueError: if it is not an odd positive int, or `ndims` of them.
    """

    def is_right(sizes):
        return len(sizes) in (1, ndims) and all(size % 2 for size in sizes)

    sizes = check_sizes(kernel_size, "kernel_size", f"an odd positive int, or {ndims} of them", is_right)
    return sizes * (ndims // len(sizes))


def check_conv_sizes(
    spatial_shape: Shape, channels: int, kernel_size: Shape, dtype: DType, ndims: int
) -> tuple[tuple[int, ...], int, list[int], tf.DType]:
    """Checks the arguments of `trainable`. Returns spatial shape, channels, kernel sizes and dtype."""
    spatial_shape = check_spatial_shape(spatial_shape, ndims)
    kernel_sizes = check_kernel_size(kernel_size, ndims)
    return spatial_shape, check_positive_int(channels, "channels"), kernel_sizes, check_dtype(dtype)


def as_conv_parameters(ndims: int, bias: Parameter, **kernels: Parameter) -> tuple[Any, ...]:
    """Returns the dtype, the kernels and the bias of a convolution. Constants become tensors.

    Args:
      ndims: the number of spatial dimensions.
      bias: the bias, or `None`.
      **kernels: the kernels by name.

    Raises:
      TypeError: if a parameter is not floating or the dtypes differ.
      ValueError: if a kernel has an even or unknown size, or its numbers of inputs and outputs differ; if
        the shapes of the kernels differ, or the bias has another number of channels.
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


def identity_kernel(sizes: Sequence[int], channels: int, dtype: tf.DType) -> tf.Tensor:
    """The kernel of the identity."""
    centre = np.zeros([*sizes, 1, 1])
    centre[tuple(size // 2 for size in sizes)] = 1.0
    return tf.constant(centre, dtype) * tf.eye(channels, dtype=dtype)


def noisy_identity_kernel(sizes: Sequence[int], channels: int, dtype: tf.DType, seed: Any) -> tf.Tensor:
    """The kernel of the identity plus `small_noise`."""
    return identity_kernel(sizes, channels, dtype) + small_noise(sizes, channels, dtype, seed)


def rotation_kernel(sizes: Sequence[int], channels: int, dtype: tf.DType, seed: Any) -> tf.Tensor:
    """The kernel of a random rotation of the channels of each pixel; `seed` is a stateless seed."""
    rotation = tf.linalg.qr(tf.random.stateless_normal([channels, channels], seed, dtype=dtype)).q
    return identity_kernel(sizes, 1, dtype) * rotation


def small_noise(sizes: Sequence[int], channels: int, dtype: tf.DType, seed: Any) -> tf.Tensor:
    """A hundredth of Glorot's normal noise; `seed` is a stateless seed."""
    stddev = _NOISE_GAIN / np.sqrt(np.prod(sizes) * channels)
    noise = tf.random.stateless_normal([*sizes, channels, channels], seed, dtype=dtype)
    return tf.cast(stddev, dtype) * noise


def initial_bias(channels: int, dtype: tf.DType, name: str, use_bias: bool) -> tf.Variable | None:
    """A variable of zeros, named after the layer; `None` without a bias."""
    return tf.Variable(tf.zeros([channels], dtype), name=f"{name}_bias") if use_bias else None
