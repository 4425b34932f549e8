"""Checks of the distribution and the data that users give to a flow."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.utils.types import Array, TfpObject

BAD_WEIGHTS = "weights that are NaN, infinite or negative"


def kind_of(value: Any) -> str:
    """The class of a value in errors, with the way to the distribution of a model."""
    is_model = isinstance(getattr(value, "distribution", None), tfp.distributions.Distribution)
    return type(value).__name__ + (
        ", a model. Give its distribution, `model.distribution`" if is_model else ""
    )


def check_is_distribution(distribution: Any) -> None:
    """Raises TypeError if it is no TFP distribution."""
    if not isinstance(distribution, tfp.distributions.Distribution):
        raise TypeError(f"`distribution` must be a TFP distribution; got {kind_of(distribution)}.")


def check_distribution(distribution: TfpObject) -> None:
    """Checks that it is a TFP distribution of floats with a known event shape.

    Raises:
      TypeError: if it is no distribution, or its dtype is not floating.
      ValueError: if its event shape is not fully defined.
    """
    check_is_distribution(distribution)
    dtype, shape = distribution.dtype, distribution.event_shape
    if not (isinstance(dtype, tf.DType) and dtype.is_floating):
        raise TypeError(f"`distribution` must have one floating dtype; got {dtype}.")
    if not (isinstance(shape, tf.TensorShape) and shape.is_fully_defined()):
        raise ValueError(f"`distribution` must have a fully defined event shape; got {shape}.")


def has_latent(distribution: TfpObject) -> bool:
    """Whether it is a transformed distribution. TFP has two classes for it, and one of them is private."""
    return hasattr(distribution, "bijector") and hasattr(distribution, "distribution")


def check_latent(distribution: TfpObject) -> None:
    """Raises TypeError if the distribution is not a transformed one."""
    if not has_latent(distribution):
        raise TypeError(
            "Only a tfd.TransformedDistribution has a latent; the distribution is a "
            f"{type(distribution).__name__}."
        )


def as_array(x: Array, name: str = "x") -> Array:
    """Converts a dense array, or nested lists of numbers, to a numpy array or a tensor.

    Raises:
      TypeError: if `x` is no dense array. Examples are None, a dictionary, a string, a `keras.Input`, or if
        values are masked.
      ValueError: if its rows differ in length.
    """
    if isinstance(x, keras.KerasTensor):
        raise TypeError(
            f"`{name}` must have values; got a symbolic tensor, such as a `keras.Input`. For the log density "
            "inside a Keras model, call the FlowModel: `model(x)`."
        )
    if isinstance(x, (tf.RaggedTensor, tf.SparseTensor)) or hasattr(x, "tocoo"):
        raise TypeError(f"`{name}` must be dense; got {type(x).__name__}. Convert it to a dense array first.")
    if isinstance(x, dict):
        raise TypeError(
            f"`{name}` must be one array; got a dict with the keys {list(x)}. Take one entry of it."
        )
    if x is None or isinstance(x, (str, bytes, set)):
        raise TypeError(f"`{name}` must be an array or a tensor of floats; got {x!r:.60}.")
    if isinstance(x, keras.Variable):
        x = x.value
    if np.ma.is_masked(x):
        raise TypeError(f"`{name}` must have all its values; got a masked array with masked ones.")
    if isinstance(x, np.ndarray) or tf.is_tensor(x):
        return x
    try:
        array = _from_frame(x) if hasattr(x, "to_numpy") else np.asarray(x)
    except ValueError as error:
        raise ValueError(f"`{name}` is no array: {error}") from None
    if array.dtype == object and array.shape == ():
        # One object, such as a data set, a generator or a function.
        raise TypeError(f"`{name}` must be an array or a tensor of floats; got a {type(x).__name__}.")
    return array


def _from_frame(x):
    """The values of a pandas frame or series. Its columns with missing values may convert to objects."""
    array = x.to_numpy()
    columns: Any = getattr(x, "dtypes", None)
    kinds = {getattr(column, "kind", "O") for column in np.ravel(columns)}
    if array.dtype == object and "f" in kinds and kinds <= set("fiu"):
        return x.to_numpy(dtype="float64", na_value=np.nan)
    return array


def check_event_form(
    x: Array | tf.TensorSpec, event_shape: tf.TensorShape, name: str = "x", is_batch: bool = False
) -> None:
    """Checks the shape and the dtype of an array of events.

    Args:
      x: an array, or the specification of a tensor.
      event_shape: the event shape of the distribution.
      name: name of the argument, for errors.
      is_batch: whether the array must have a batch dimension.

    Raises:
      TypeError: if the dtype is not floating.
      ValueError: if the last dimensions are not the event shape, or a batch dimension is missing.
    """
    if not _is_floating(x.dtype):
        raise TypeError(
            f"`{name}` must be floating; got dtype {getattr(x.dtype, 'name', x.dtype)}. Cast it. For integer "
            "pixels use `tfp_selfnorm.images.dequantize`."
        )
    shape = tf.TensorShape(x.shape)
    if shape.rank is None:
        return
    if shape.rank < event_shape.rank or not shape[shape.rank - event_shape.rank :].is_compatible_with(
        event_shape
    ):
        raise ValueError(
            f"`{name}` has shape {tuple(shape)}; expected a batch of events of shape {tuple(event_shape)}, "
            f"(..., {', '.join(str(size) for size in event_shape)})."
        )
    if is_batch and shape.rank == event_shape.rank:
        raise ValueError(
            f"`{name}` has shape {tuple(shape)}, the shape of one event; expected a batch of events, "
            f"(batch, {', '.join(str(size) for size in event_shape)})."
        )


def _is_floating(dtype):
    try:
        return tf.as_dtype(dtype).is_floating
    except TypeError:
        # TensorFlow does not know the dtype.
        return False


def check_events(x: Array, distribution: TfpObject, name: str = "x") -> tf.Tensor:
    """Converts events to a tensor of the distribution's dtype.

    A tensor of unknown rank gets the shape `(batch, *event_shape)`.

    Raises:
      TypeError: if `x` is not floating.
      ValueError: if its last dimensions are not the event shape.
    """
    x = as_array(x, name)
    event_shape = distribution.event_shape
    check_event_form(x, event_shape, name)
    x = tf.cast(x, distribution.dtype)
    if x.shape.is_fully_defined():
        return x
    num_leading = 1 if x.shape.rank is None else x.shape.rank - event_shape.rank
    return tf.ensure_shape(x, tf.TensorShape([None] * num_leading).concatenate(event_shape))


def check_finite(x: Array, name: str = "x") -> Array:
    """Returns an array of examples if all its values are finite.

    Raises:
      ValueError: if a value is not finite. The error names the first example that has one.
    """
    finite = np.isfinite(np.asarray(x))
    if not finite.all():
        bad = np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1))
        raise ValueError(
            f"`{name}` has values that are not finite in {len(bad)} of {len(finite)} examples, "
            f"the first at index {bad[0]}."
        )
    return x


def check_weights(weights: Array, number: int, name: str = "sample_weight") -> np.ndarray:
    """Converts sample weights to an array `(number,)`.

    Raises:
      TypeError: if a weight is no real number.
      ValueError: if the number of weights is not the number of examples, or a weight is not finite or
        negative.
    """
    weights = np.asarray(as_array(weights, name))
    if not np.can_cast(weights.dtype, np.float64):
        raise TypeError(f"`{name}` must have weights that are real numbers; got dtype {weights.dtype}.")
    if weights.shape not in ((number,), (number, 1)):
        raise ValueError(
            f"`{name}` has weights of shape {weights.shape}; expected one weight an example, ({number},)."
        )
    weights = cast_array(weights.reshape(number), tf.float32)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if bad.size:
        raise ValueError(
            f"`{name}` has {BAD_WEIGHTS} in {bad.size} of {number} examples, the first at index {bad[0]}."
        )
    return weights


def cast_array(x: Array, dtype: tf.DType) -> np.ndarray:
    """Converts an array to a dtype of TensorFlow. Finite values may overflow to infinite ones."""
    with np.errstate(over="ignore"):
        return np.asarray(x).astype(dtype.as_numpy_dtype, copy=False)
