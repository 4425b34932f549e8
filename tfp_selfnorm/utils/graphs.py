"""The graph under construction: the tensors that it can use, and conditions on its values."""

from typing import Any

import numpy as np
import tensorflow as tf


def current_graph() -> Any:
    """The graph under construction; `None` in eager code."""
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def is_within_reach(tensor: tf.Tensor) -> bool:
    """Whether the tensor belongs to the graph under construction, or to a graph around it."""
    graph = current_graph()
    while graph is not None and graph is not tensor.graph:
        graph = getattr(graph, "outer_graph", None)
    return graph is not None


def checked(value: tf.Tensor, condition: tf.Tensor, message: str, *numbers: tf.Tensor) -> tf.Tensor:
    """Returns `value` if the condition holds, a scalar bool. The error has the message and the numbers.

    Raises:
      ValueError: in eager mode, if the condition does not hold. A graph raises a
        `tf.errors.InvalidArgumentError` instead. XLA drops that, and the value is NaN.
    """
    if tf.executing_eagerly():
        if not condition:
            raise ValueError(" ".join([message, *(f"{float(number):.2g}." for number in numbers)]))
        return value
    with tf.control_dependencies([tf.debugging.Assert(condition, [message, *numbers])]):
        return tf.where(condition, value, tf.constant(np.nan, value.dtype))
