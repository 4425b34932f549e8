"""Checks of what users give to a flow, before any work is lost."""

import contextlib
import re

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.reconstruction import Reconstruction
from tfp_selfnorm.tracking import Tracking

_NOT_FINITE = "tfp_selfnorm: values that are not finite in batch"


def check_inverse_learning(inverse_learning) -> None:
    """Raises TypeError if it is no way of learning the inverse."""
    if inverse_learning is not None and not isinstance(inverse_learning, (Tracking, Reconstruction)):
        raise TypeError(
            f"`inverse_learning` must be a Tracking, a Reconstruction or None; got {inverse_learning!r}."
        )


def check_distribution(distribution) -> None:
    """Raises TypeError or ValueError if it is no TFP distribution of floats of a known shape."""
    if not isinstance(distribution, tfp.distributions.Distribution):
        raise TypeError(f"`distribution` must be a TFP distribution; got {type(distribution).__name__}.")
    dtype, shape = distribution.dtype, distribution.event_shape
    if not (isinstance(dtype, tf.DType) and dtype.is_floating):
        raise TypeError(f"`distribution` must have one floating dtype; got {dtype}.")
    if not (isinstance(shape, tf.TensorShape) and shape.is_fully_defined()):
        raise ValueError(f"`distribution` must have a fully defined event shape; got {shape}.")


def has_latent(distribution) -> bool:
    """Whether it is a transformed distribution; TFP has two classes of them, one that is not public."""
    return hasattr(distribution, "bijector") and hasattr(distribution, "distribution")


def check_latent(distribution) -> None:
    """Raises TypeError if the distribution is not transformed from a latent."""
    if not has_latent(distribution):
        raise TypeError(
            "Only a tfd.TransformedDistribution has a latent; the distribution is a "
            f"{type(distribution).__name__}."
        )


def check_events(x, distribution, name="x") -> tf.Tensor:
    """Returns `x` as a tensor of the distribution's dtype, if it is a batch of its events.

    Raises:
      TypeError: if `x` is not floating.
      ValueError: if its last dimensions are not the event shape.
    """
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        x = np.asarray(x)
        dtype = x.dtype
    if not tf.as_dtype(dtype).is_floating:
        raise TypeError(
            f"`{name}` must be floating; got dtype {tf.as_dtype(dtype).name}. Cast it, or for integer "
            "pixels use `tfp_selfnorm.images.dequantize`."
        )
    x = tf.cast(x, distribution.dtype)
    event_shape = distribution.event_shape
    if x.shape.rank is not None and (
        x.shape.rank < event_shape.rank
        or not x.shape[x.shape.rank - event_shape.rank :].is_compatible_with(event_shape)
    ):
        raise ValueError(
            f"`{name}` has shape {tuple(x.shape)}; expected a batch of events of shape "
            f"{tuple(event_shape)}, (..., {', '.join(str(size) for size in event_shape)})."
        )
    return x


def check_finite(data, name="x"):
    """Checks arrays now and data sets as they are read; returns what to read instead of `data`.

    Raises:
      ValueError: if an array, or the first array of a tuple, has values that are not finite.
    """
    if isinstance(data, tf.data.Dataset):
        return data.enumerate().map(lambda i, element: _assert_finite_batch(i, element, name))
    if isinstance(data, (tuple, list)) and data and _is_float_array(data[0]):
        return type(data)([check_finite(data[0], name), *data[1:]])
    if _is_float_array(data):
        finite = np.isfinite(np.asarray(data))
        if not finite.all():
            bad = np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1))
            raise ValueError(
                f"`{name}` has values that are not finite in {len(bad)} of {len(finite)} examples, "
                f"the first at index {bad[0]}."
            )
    return data


@contextlib.contextmanager
def naming_the_batch():
    """Turns the failure of a data set from `check_finite` into a ValueError that names the batch."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = re.search(rf"{_NOT_FINITE}\W+(\w+)\W+(\d+)", str(error))
        if found is None:
            raise
        raise ValueError(
            f"`{found[1]}` has values that are not finite in batch {found[2]} of the data set (the first "
            "is batch 0)."
        ) from None


def weighted(x, arguments: dict) -> dict:
    """Adds targets to Keras arguments that have sample weights: Keras drops the weights without them."""
    if arguments.get("sample_weight") is None or arguments.get("y") is not None or not _is_float_array(x):
        return arguments
    return arguments | {"y": np.zeros(len(x), np.float32)}


def with_dummy_targets(validation_data):
    """The same for validation data, `(x, None, sample_weight)`."""
    if isinstance(validation_data, tuple) and len(validation_data) == 3 and validation_data[1] is None:
        x, _, sample_weight = validation_data
        return x, np.zeros(len(x), np.float32), sample_weight
    return validation_data


def _is_float_array(data):
    dtype = getattr(data, "dtype", None)
    return isinstance(data, (np.ndarray, tf.Tensor)) and tf.as_dtype(dtype).is_floating


def _assert_finite_batch(index, element, name):
    x = element[0] if isinstance(element, tuple) else element
    if not (tf.is_tensor(x) and x.dtype.is_floating):
        return element
    check = tf.debugging.Assert(tf.reduce_all(tf.math.is_finite(x)), [_NOT_FINITE, name, index])
    with tf.control_dependencies([check]):
        return tf.nest.map_structure(tf.identity, element)
