"""Brings the data of `fit`, `evaluate` and `predict` into one form, and checks them before any work."""

import functools
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_selfnorm.model.batches import (
    EventForm,
    FitData,
    batch_of_events,
    finite_events,
    numeric_labels,
    parts_of,
)
from tfp_selfnorm.model.streams import checked_stream, is_stream
from tfp_selfnorm.utils.checks import as_array, check_weights
from tfp_selfnorm.utils.types import Array, TfpObject


def prepare(
    x: Any,
    distribution: TfpObject,
    y: Array | None = None,
    sample_weight: Array | None = None,
    class_weight: Mapping[Any, float] | None = None,
    name: str = "x",
    keeps_labels: bool = False,
) -> FitData:
    """Brings events and weights of any form into one that Keras takes with its weights.

    Arrays become numpy arrays or tensors, and are checked at once. Streams, such as data sets and generators,
    are checked by their first elements, and then batch by batch.

    Args:
      x: events, or a stream of batches of them.
      distribution: the TFP distribution of the events.
      y: labels, or `None`.
      sample_weight: one weight an example, or `None`.
      class_weight: a dictionary from labels to weights, or `None`.
      name: name of the argument.
      keeps_labels: whether to keep labels without `class_weight`; see `numeric_labels`.

    Raises:
      TypeError: if `x` is of no form that has events, or not floating.
      ValueError: if `x` has no events, has events of another shape or without a batch dimension, or has
        values that are not finite; if weights are negative, not finite, or not one an example.
    """
    needs_labels = class_weight is not None
    form = EventForm(distribution.event_shape, distribution.dtype, name, needs_labels, keeps_labels)
    _check_class_weight(class_weight, y, x)
    if is_stream(x):
        if sample_weight is not None:
            raise ValueError(
                f"`{name}` gives batches; these must hold the weights: (events, labels, weights)."
            )
        return FitData(checked_stream(x, form), y)
    x = finite_events(x, form)
    data = _with_weights(x, y, sample_weight, form)
    if data.sample_weight is not None:
        if not data.sample_weight.any():
            raise ValueError(f"`{_weights_name(name)}` has weights that are all zero.")
        if data.y is None:
            # Without labels Keras drops the weights.
            data = data._replace(y=np.zeros(len(x), np.float32))
    return data._replace(x=_as_bits(x, form.dtype))


def prepare_batch(
    x: Array,
    distribution: TfpObject,
    y: Array | None = None,
    sample_weight: Array | None = None,
    class_weight: Mapping[Any, float] | None = None,
    keeps_labels: bool = False,
) -> FitData:
    """Does the same for a single batch. The training step finds values that are not finite."""
    _check_class_weight(class_weight, y, x)
    needs_labels = class_weight is not None
    form = EventForm(distribution.event_shape, distribution.dtype, "x", needs_labels, keeps_labels)
    return _with_weights(batch_of_events(x, form), y, sample_weight, form)


def prepare_validation(
    data: Any, distribution: TfpObject, keeps_labels: bool = False
) -> tuple[Any, Any, Any]:
    """Does the same for the `validation_data` of Keras: events, or a tuple or list that begins with them."""
    form = EventForm(distribution.event_shape, distribution.dtype, "validation_data")
    parts = parts_of(data, form)
    y = parts.y if keeps_labels else None
    weights, name = parts.sample_weight, form.name
    return tuple(prepare(parts.x, distribution, y, weights, name=name, keeps_labels=keeps_labels))


def with_values(step: Callable) -> Callable:
    """Returns the method `step(self, data)` of a class, which then gets float64 events as they were fed."""

    @functools.wraps(step, updated=())
    def step_on_values(self: Any, data: Any) -> Any:
        has_parts = isinstance(data, (tuple, list))
        values = [_from_bits(data[0]), *data[1:]] if has_parts else _from_bits(data)
        # A step may be another kind of method, such as a `tf.function`.
        return step.__get__(self, type(self))(type(data)(values) if has_parts else values)

    return step_on_values


def _with_weights(x, y, sample_weight, form):
    if sample_weight is not None:
        sample_weight = check_weights(sample_weight, len(x), _weights_name(form.name))
    if form.needs_labels:
        return FitData(x, np.asarray(as_array(y, "y")), sample_weight)
    return FitData(x, numeric_labels(y) if form.keeps_labels else None, sample_weight)


def _weights_name(name):
    return "sample_weight" if name == "x" else name


def _check_class_weight(class_weight, y, x):
    if class_weight is None:
        return
    if not isinstance(class_weight, Mapping):
        raise TypeError(f"`class_weight` must be a dictionary from labels to weights; got {class_weight!r}.")
    for label, weight in class_weight.items():
        if not (isinstance(weight, numbers.Real) and 0.0 <= float(weight) < np.inf):
            raise ValueError(f"`class_weight` must be finite and 0 or more; got {weight!r} for {label!r}.")
    if y is None and not is_stream(x):
        raise ValueError("`class_weight` needs labels: give them as `y`, or use `sample_weight`.")


def _as_bits(x, dtype):
    """Float64 events of a float64 flow as integers of the same bits: Keras would round them to float32."""
    if not x.dtype == dtype == tf.float64:
        return x
    return tf.bitcast(x, tf.int64) if tf.is_tensor(x) else x.view(np.int64)


def _from_bits(x):
    """Events as they were fed; integers are no events."""
    return tf.bitcast(x, tf.float64) if getattr(x, "dtype", None) in (tf.int64, "int64") else x
