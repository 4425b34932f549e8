"""Checks of what users give to a flow, before any work is lost."""

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

BAD_WEIGHTS = "weights that are NaN, infinite or negative"


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


def as_array(x, name="x"):
    """Returns an array of any library, or what converts to one, as a numpy array or a tensor.

    Raises:
      TypeError: if `x` is no dense array, such as None, a dictionary, a string or a `keras.Input`.
      ValueError: if its rows differ in length.
    """
    if isinstance(x, keras.KerasTensor):
        raise TypeError(
            f"`{name}` is symbolic, such as a `keras.Input`, and has no values. For the log density inside a "
            "Keras model call the FlowModel itself: `model(x)`."
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
    if isinstance(x, np.ndarray) or tf.is_tensor(x):
        return x
    try:
        return _from_frame(x) if hasattr(x, "to_numpy") else np.asarray(x)
    except ValueError as error:
        raise ValueError(f"`{name}` is no array: {error}") from None


def _from_frame(x):
    """The values of a frame or series of pandas, in which columns with missing values are of objects."""
    array = x.to_numpy()
    columns = np.ravel(getattr(x, "dtypes", None))
    kinds = {getattr(column, "kind", "O") for column in columns}
    if array.dtype == object and "f" in kinds and kinds <= set("fiu"):
        return x.to_numpy(dtype="float64", na_value=np.nan)
    return array


def check_event_form(x, event_shape, name="x", is_batch=False) -> None:
    """Raises unless an array, or the specification of a tensor, is of events.

    Args:
      x: whatever has a shape and a dtype.
      event_shape: that of the distribution.
      name: name of the argument.
      is_batch: whether it must have a batch dimension.

    Raises:
      TypeError: if the dtype is not floating.
      ValueError: if the last dimensions are not the event shape.
    """
    if not _is_floating(x.dtype):
        raise TypeError(
            f"`{name}` must be floating; got dtype {getattr(x.dtype, 'name', x.dtype)}. Cast it, or for "
            "integer pixels use `tfp_selfnorm.images.dequantize`."
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
            f"`{name}` has shape {tuple(shape)}, that of one event; expected a batch of events, "
            f"(batch, {', '.join(str(size) for size in event_shape)})."
        )


def _is_floating(dtype):
    try:
        return tf.as_dtype(dtype).is_floating
    except TypeError:
        # A dtype that TensorFlow does not know.
        return False


def check_events(x, distribution, name="x") -> tf.Tensor:
    """Returns `x` as a tensor of the distribution's dtype, if it is a batch of its events.

    A tensor of unknown rank is taken for `(batch, *event_shape)`.

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


def check_finite(x, name="x"):
    """Returns an array of examples if its values are finite.

    Raises:
      ValueError: if they are not, with the first example that has one.
    """
    finite = np.isfinite(np.asarray(x))
    if not finite.all():
        bad = np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1))
        raise ValueError(
            f"`{name}` has values that are not finite in {len(bad)} of {len(finite)} examples, "
            f"the first at index {bad[0]}."
        )
    return x


def check_weights(weights, number: int, name="sample_weight") -> np.ndarray:
    """Returns sample weights as an array `(number,)`.

    Raises:
      TypeError: if they are no numbers.
      ValueError: if they are not one an example, not finite, or negative.
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


def cast_array(x, dtype: tf.DType) -> np.ndarray:
    """Returns an array in a dtype of TensorFlow, in which finite values may overflow to infinite ones."""
    with np.errstate(over="ignore"):
        return np.asarray(x).astype(dtype.as_numpy_dtype, copy=False)
