"""Brings the data of `fit`, `evaluate` and `predict` into one form, and checks them before any work."""

import functools
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_selfnorm.model.batches import (
    EventForm,
    FitData,
    batch_of_events,
    finite_events,
    numeric_labels,
    parts_of,
    split_element,
)
from tfp_selfnorm.model.conditions import Conditions
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
    conditions: Conditions | None = None,
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
      conditions: the form of conditions. With them, `x` has the conditions and `y` the events. The result has
        the conditions in the place of the labels.

    Raises:
      TypeError: if `x` is of no form that has events, or not floating.
      ValueError: if `x` has no events, has events of another shape or without a batch dimension, or has
        values that are not finite; if weights are negative, not finite, or not one an example; if conditions
        do not fit.
    """
    form = EventForm(
        distribution.event_shape, distribution.dtype, name, class_weight is not None, keeps_labels
    )
    form = form._replace(conditions=conditions)
    _check_class_weight(class_weight, y, x, form)
    if not is_stream(x):
        x, y, form = _in_order(x, y, form)
        return _prepare_arrays(x, y, sample_weight, form)
    if sample_weight is not None:
        raise ValueError(f"`{name}` gives batches; these must hold the weights: (events, labels, weights).")
    if conditions is not None and y is not None:
        raise ValueError(f"`{name}` gives batches; these must hold the events: (conditions, events).")
    return FitData(checked_stream(x, form), y)


def _in_order(x, y, form):
    """The events, and the labels or conditions, with their names in the form."""
    if form.conditions is None:
        return x, y, form
    is_fit = form.name == "x"
    names = ("x", "y") if is_fit else (f"{form.name}[0]", f"{form.name}[1]")
    if y is None:
        raise ValueError(
            f"`{names[1]}` must be the events; got None. A ConditionalFlowModel takes the conditions first, "
            "and then the events, as (x, y)."
        )
    return y, x, form._replace(condition_name=names[0], name=names[1])


def _prepare_arrays(x, y, sample_weight, form):
    x = finite_events(x, form)
    data = _with_weights(x, y, sample_weight, form)
    if data.sample_weight is not None:
        if not data.sample_weight.any():
            raise ValueError(f"`{_weights_name(form.name)}` has weights that are all zero.")
        if data.y is None:
            # Without labels Keras drops the weights.
            data = data._replace(y=np.zeros(len(x), np.float32))
    y = data.y if form.conditions is None else keras.tree.map_structure(_as_bits, data.y)
    return data._replace(x=_as_bits(x) if form.dtype == tf.float64 else x, y=y)


def prepare_batch(
    x: Array,
    distribution: TfpObject,
    y: Array | None = None,
    sample_weight: Array | None = None,
    class_weight: Mapping[Any, float] | None = None,
    keeps_labels: bool = False,
    conditions: Conditions | None = None,
) -> FitData:
    """Does the same for a single batch. The training step finds values that are not finite."""
    form = EventForm(
        distribution.event_shape, distribution.dtype, "x", class_weight is not None, keeps_labels
    )
    form = form._replace(conditions=conditions)
    _check_class_weight(class_weight, y, x, form)
    x, y, form = _in_order(x, y, form)
    return _with_weights(batch_of_events(x, form), y, sample_weight, form)


def prepare_validation(
    data: Any, distribution: TfpObject, keeps_labels: bool = False, conditions: Conditions | None = None
) -> tuple[Any, Any, Any]:
    """Does the same for the `validation_data` of Keras: events, or a tuple or list that begins with them.

    With conditions: the conditions and the events, or a stream of these.
    """
    options: Any = {"name": "validation_data", "keeps_labels": keeps_labels, "conditions": conditions}
    if conditions is not None and is_stream(data):
        return tuple(prepare(data, distribution, **options))
    form = EventForm(distribution.event_shape, distribution.dtype, "validation_data", conditions=conditions)
    x, y, weights = parts_of(data, form)
    if conditions is not None:
        x, y = y, x
    return tuple(prepare(x, distribution, y if keeps_labels else None, weights, **options))


def prepare_prediction(
    x: Any, distribution: TfpObject, conditions: Conditions | None = None, prepares: Callable = prepare
) -> Any:
    """Does the same for the data of `predict`: events, or the conditions and the events."""
    if conditions is None:
        return prepares(x, distribution).x
    if is_stream(x):
        return prepares(x, distribution, conditions=conditions).x
    form = EventForm(distribution.event_shape, distribution.dtype, conditions=conditions)
    events, given, weights = split_element(x, form)
    data = prepares(given, distribution, events, weights, conditions=conditions)
    return data.x, data.y


def with_values(step: Callable) -> Callable:
    """Returns the method `step(self, data)` of a class, which then gets float64 data as they were fed."""

    @functools.wraps(step, updated=())
    def step_on_values(self: Any, data: Any) -> Any:
        has_parts = isinstance(data, (tuple, list))
        # Labels are as they were fed in any case.
        number = 1 if self.conditions is None else 2
        parts = [*data] if has_parts else [data]
        values = [*(keras.tree.map_structure(_from_bits, part) for part in parts[:number]), *parts[number:]]
        # A step may be another kind of method, such as a `tf.function`.
        return step.__get__(self, type(self))(type(data)(values) if has_parts else values[0])

    return step_on_values


def _with_weights(x, y, sample_weight, form):
    if sample_weight is not None:
        sample_weight = check_weights(sample_weight, len(x), _weights_name(form.name))
    if form.conditions is not None:
        return FitData(x, form.conditions.array(y, form.condition_name, len(x)), sample_weight)
    if form.needs_labels:
        return FitData(x, np.asarray(as_array(y, "y")), sample_weight)
    return FitData(x, numeric_labels(y) if form.keeps_labels else None, sample_weight)


def _weights_name(name):
    return "sample_weight" if name in ("x", "y") else name


def _check_class_weight(class_weight, y, x, form):
    if class_weight is None:
        return
    if form.conditions is not None:
        raise ValueError(f"`class_weight` must be None: the data have no labels; got {class_weight!r}.")
    if not isinstance(class_weight, Mapping):
        raise TypeError(f"`class_weight` must be a dictionary from labels to weights; got {class_weight!r}.")
    for label, weight in class_weight.items():
        if not (isinstance(weight, numbers.Real) and 0.0 <= float(weight) < np.inf):
            raise ValueError(f"`class_weight` must be finite and 0 or more; got {weight!r} for {label!r}.")
    if y is None and not is_stream(x):
        raise ValueError("`class_weight` needs labels: give them as `y`, or use `sample_weight`.")


def _as_bits(x):
    """Float64 data as integers of the same bits: Keras would round them to float32."""
    if x is None or x.dtype != tf.float64:
        return x
    return tf.bitcast(x, tf.uint64) if tf.is_tensor(x) else x.view(np.uint64)


def _from_bits(x):
    """Data as they were fed; no events and no conditions are uint64."""
    return tf.bitcast(x, tf.float64) if getattr(x, "dtype", None) in (tf.uint64, "uint64") else x
