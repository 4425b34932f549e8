"""The parameters of bijectors: what constructors accept, and initial values of kernels."""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.utils.integers import as_sizes

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


def check_kernel(kernel, name, ndims):
    """Raises ValueError if the kernel, so called, has an even or unknown size or C differs."""
    layout = "[kh, kw, C, C]" if ndims == 2 else "[k, C, C]"
    shape = kernel.shape
    if shape.rank != ndims + 2 or not shape.is_fully_defined() or shape[-1] != shape[-2]:
        raise ValueError(f"`{name}` must have a known shape {layout}; got {tuple(shape)}.")
    if not all(size % 2 for size in shape[:-2]):
        raise ValueError(f"`{name}` must have odd sizes {layout}; got {tuple(shape)}.")


def check_same_shape(**kernels):
    """Raises ValueError if the kernels differ in shape."""
    if len({tuple(kernel.shape) for kernel in kernels.values()}) > 1:
        listed = ", ".join(f"`{name}` {tuple(kernel.shape)}" for name, kernel in kernels.items())
        raise ValueError(f"The kernels must have the same shape; got {listed}.")


def check_bias(bias, channels):
    """Raises ValueError if the bias is neither `None` nor a number for each channel."""
    if bias is not None and bias.shape != [channels]:
        raise ValueError(
            f"`bias` must have shape ({channels},), one for each channel; got {tuple(bias.shape)}."
        )


def ensure_event(x, event_sizes):
    """`x`, whose last sizes are checked at run time where they are not known before."""
    if x.shape.rank is None:
        return x
    # A reshape would take any sizes of the right product.
    batch = [None] * (x.shape.rank - len(event_sizes))
    return tf.ensure_shape(x, [*batch, *event_sizes])


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


def kernel_variables(forward_kernel, inverse_kernel, name):
    """The two kernels as variables, named after the layer."""
    # A replica of a distributed step assigns R too; all of them assign the same.
    return [
        tf.Variable(value, name=f"{name}_{direction}_kernel", aggregation=tf.VariableAggregation.MEAN)
        for direction, value in (("forward", forward_kernel), ("inverse", inverse_kernel))
    ]


def common_dtype(**parameters):
    """The one dtype of the parameters, float32 or float64; Python numbers count as float32.

    Raises:
      TypeError: if a parameter is of another dtype or missing, or the dtypes differ.
    """
    dtypes = {}
    for name, value in parameters.items():
        if value is None and name == "bias":
            continue
        if value is None:
            raise TypeError(f"`{name}` must be a tensor or a tf.Variable; got None.")
        dtype = getattr(value, "dtype", None) or as_tensor(value, name).dtype
        dtypes[name] = tf.as_dtype(dtype)
        if dtypes[name] not in (tf.float32, tf.float64):
            raise TypeError(f"`{name}` must be floating, float32 or float64; got dtype {dtypes[name].name}.")
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"`{name}` {dtype.name}" for name, dtype in dtypes.items())
        raise TypeError(f"The parameters must have one dtype; got {listed}.")
    return next(iter(dtypes.values()))


def as_tensor(value, name):
    """Returns it as a tensor; raises TypeError if that cannot be."""
    try:
        return tf.convert_to_tensor(value, name=name)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be a tensor of numbers or a tf.Variable; got {value!r}.") from error


def parameter(value, dtype, name):
    """Leaves what may change, a variable or a `tfp.util.DeferredTensor`, as it is."""
    if isinstance(value, (tf.Variable, tfp.util.DeferredTensor)):
        return value
    return tf.convert_to_tensor(value, dtype, name=name)


def check_event_shape(x, event_sizes, name, owner):
    """Raises ValueError unless `x`, so called, may be a batch of events of these sizes, the owner's."""
    ndims = len(event_sizes)
    if x.shape.rank is None:
        return
    if x.shape.rank < ndims or not x.shape[x.shape.rank - ndims :].is_compatible_with(event_sizes):
        raise ValueError(
            f"`{name}` of `{owner}` has shape {tuple(x.shape)}; expected "
            f"(..., {', '.join(map(str, event_sizes))}): that is the shape of its events."
        )
