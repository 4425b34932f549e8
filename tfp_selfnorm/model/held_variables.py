"""The variables that hold values between the compiled steps: log-dets and events."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfp_selfnorm.utils.types import TfpObject

# The number of events for the mean of a log-det that depends on events.
_NUM_EXAMPLES = 16


def parts(condition: Any) -> list:
    """The tensors of a condition; none for `None`."""
    return [] if condition is None else tf.nest.flatten(condition)


def examples(
    distribution: TfpObject, condition: Any, add_weight: Callable[..., keras.Variable]
) -> list[keras.Variable]:
    """The variables of the kept events, and of the parts of their conditions."""
    forms = [("examples_for_log_dets", distribution.event_shape, distribution.dtype)]
    forms += [("conditions_for_log_dets", part.shape[1:], part.dtype) for part in parts(condition)]
    return [
        add_weight(
            shape=[_NUM_EXAMPLES, *shape],
            initializer="zeros",
            dtype=dtype.name,
            trainable=False,
            aggregation="only_first_replica",
            name=name,
        )
        for name, shape, dtype in forms
    ]


def held_log_det(layer: TfpObject, add_weight: Callable[..., keras.Variable]) -> keras.Variable:
    """The variable of the held log-det of a layer."""
    return add_weight(
        shape=layer.log_det_shape,
        initializer="zeros",
        dtype=(layer.dtype or tf.float32).name,
        trainable=False,
        name=f"held_log_det_{layer.name}",
    )
