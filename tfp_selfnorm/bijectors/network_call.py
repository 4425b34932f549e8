"""The calls of the networks inside bijectors: their inputs, and the errors."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfp_selfnorm.utils.types import Array


def check_network(network: Any, argument: str, event_sizes: Sequence[int] | None = None) -> Callable:
    """Returns the network.

    Args:
      network: the network.
      argument: its name in errors.
      event_sizes: the shape of an event, if the network must keep it.

    Raises:
      TypeError: if it is not callable.
      ValueError: if it is a Keras network that is not built, or whose output is known to have another shape.
    """
    if not callable(network):
        raise TypeError(f"`{argument}` must be callable; got {type(network).__name__}.")
    if not getattr(network, "built", True):
        raise ValueError(
            f"`{argument}` {getattr(network, 'name', network)!r} has no weights yet: build it, or make it "
            "with keras.Input, before you give it to a bijector."
        )
    outputs = getattr(network, "outputs", None)
    for output in outputs if event_sizes and isinstance(outputs, list) else ():
        shape = tf.TensorShape(output.shape)[1:]
        if not shape.is_compatible_with(event_sizes):
            expected = tuple(tf.TensorShape(event_sizes))
            raise ValueError(
                f"`{argument}` must keep the event shape {expected}; its output for each event has the shape "
                f"{tuple(shape)}."
            )
    return network


def keras_weights(network: Any) -> list:
    """The Keras variables of a Keras network; empty for other networks."""
    weights = getattr(network, "weights", None)
    if not isinstance(weights, list) or not all(hasattr(weight, "value") for weight in weights):
        return []
    return [weight for weight in weights if isinstance(weight.value, tf.Variable)]


def network_variables(network: Any, event_sizes: Sequence[int]) -> list[tf.Variable]:
    """The variables of a network of Keras, tf_keras or `tf.Module`.

    Of another function they are the trainable variables that a call with an event of zeros reads. There are
    none if the call fails, for example because the function needs a condition.
    """
    weights = keras_weights(network)
    if weights:
        return [weight.value for weight in weights]
    if isinstance(network, tf.Module):
        return list(network.variables)
    return _variables_of_call(network, event_sizes) if tf.executing_eagerly() else []


def variables_of(network: Any, found: Sequence[tf.Variable]) -> list[tf.Variable]:
    """The present variables of a network, of which `network_variables` found some."""
    # A `tf.Module` may make variables in its first call.
    return list(network.variables) if isinstance(network, tf.Module) else list(found)


def dtype_of(*variables: tf.Variable) -> tf.DType | None:
    """The floating dtype of the variables of an encoder and a decoder; `None` without one.

    Raises:
      TypeError: if they have several, or one that is not float32 or float64.
    """
    dtypes = {variable.dtype for variable in variables if variable.dtype.is_floating}
    if len(dtypes) > 1 or not dtypes <= {tf.float32, tf.float64}:
        found = ", ".join(sorted(dtype.name for dtype in dtypes))
        raise TypeError(f"`encoder` and `decoder` must have one dtype, float32 or float64; got {found}.")
    return dtypes.pop() if dtypes else None


def gradient_of_training(gradient: str | None, encoder: Any, is_small: bool) -> str:
    """The gradient of a log-det: as given, or "exact" if the events are small.

    A batch normalization makes the output for an event depend on the other events in training. The exact
    log-det does not see that.

    Raises:
      ValueError: if it is "exact", and the encoder has a batch normalization.
    """
    variables = keras_weights(encoder) or (encoder.variables if isinstance(encoder, tf.Module) else [])
    mixes_events = any(variable.name.split("/")[-1].startswith("moving_mean") for variable in variables)
    if mixes_events and gradient == "exact":
        raise ValueError(
            "`gradient` must be 'self_norm' for an encoder with a batch normalization, which makes the "
            "output for an event depend on the other events in training; got 'exact'."
        )
    return gradient or ("exact" if is_small and not mixes_events else "self_norm")


def _variables_of_call(network, event_sizes):
    container = tf.distribute.get_strategy().extended.value_container
    for dtype in (tf.float32, tf.float64):
        try:
            with tf.GradientTape() as tape:
                network(tf.zeros([1, *event_sizes], dtype))
        except Exception:
            # Code of the user, which may need a condition or another dtype.
            continue
        return list({v.ref(): v for v in map(container, tape.watched_variables())}.values())
    return []


def with_one_batch_dimension(value: tf.Tensor, num_leading: int) -> tf.Tensor:
    """Joins the sample and batch dimensions."""
    flat = tf.reshape(value, tf.concat([[-1], tf.shape(value)[num_leading:]], axis=0))
    return tf.ensure_shape(flat, tf.TensorShape([None]).concatenate(value.shape[num_leading:]))


def flat_condition(condition: Array, events: tf.Tensor, num_leading: int, owner: str) -> tf.Tensor:
    """A condition with one batch dimension; floats are cast to the dtype of the events.

    Raises:
      ValueError: if it does not begin with the leading dimensions of the events.
    """
    condition = tf.convert_to_tensor(condition)
    condition = tf.cast(condition, events.dtype) if condition.dtype.is_floating else condition
    leading = events.shape[:num_leading]
    message = (
        f"The condition of `{owner}` must begin with the sample and batch dimensions of the events, "
        f"{leading}; got shape {condition.shape}."
    )
    if not condition.shape[:num_leading].is_compatible_with(leading):
        raise ValueError(message)
    sizes = (tf.shape(value)[:num_leading] for value in (condition, events))
    tf.debugging.assert_equal(*sizes, message=message)
    return with_one_batch_dimension(condition, num_leading)


def call_network(call: Callable, network: Any, inputs: Any, owner: str, argument: str = "network") -> Any:
    """The output of a network.

    Args:
      call: the function that is called.
      network: the network, which may be a Keras model with known inputs.
      inputs: a tensor, or the list of a tensor and a condition.
      owner: the name of the bijector.
      argument: the name of the network in the bijector.

    Raises:
      ValueError: if the call fails.
    """
    number = len(inputs) if isinstance(inputs, list) else 1
    # A Keras model may ignore a surplus input.
    known = getattr(network, "inputs", None)
    try:
        if isinstance(known, list) and len(known) != number:
            raise ValueError(f"it has {len(known)} inputs, and got {number}.")
        if isinstance(known, list) and number == 2:
            _check_condition(inputs[1].shape[1:], tf.TensorShape(known[1].shape)[1:])
        return tf.convert_to_tensor(call(inputs))
    except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
        shapes = " and ".join(str(value.shape) for value in tf.nest.flatten(inputs))
        raise ValueError(
            f"The {argument} of `{owner}`, called {'with' if number > 1 else 'without'} a condition on "
            f"shapes {shapes}, failed: {error} With the argument `condition` the {argument} gets the list "
            f"`[events, condition]`, without it only the events."
        ) from error


def takes_condition(given: tf.TensorShape, expected: tf.TensorShape) -> bool:
    """Whether a Keras model takes the condition of an event for an input. Keras adds or drops a last 1."""
    as_taken = [given, given + [1], given[:-1] if given[-1:] == [1] else given]
    return any(shape.is_compatible_with(expected) for shape in as_taken)


def _check_condition(given, expected):
    """Raises ValueError if Keras would not take the condition of an event."""
    if not takes_condition(given, expected):
        raise ValueError(
            f"it takes a condition of shape {tuple(expected)} for each event, and got {tuple(given)}. A "
            "condition has the sample and batch dimensions of the events before its own, and does not "
            "broadcast over them."
        )
