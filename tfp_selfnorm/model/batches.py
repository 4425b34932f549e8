"""The forms of one batch of events in `fit` and its like: arrays, with labels and weights."""

import numbers
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfp_selfnorm.model.conditions import Conditions
from tfp_selfnorm.utils.checks import as_array, cast_array, check_event_form, check_finite
from tfp_selfnorm.utils.types import Array


class EventForm(NamedTuple):
    """The expected shape and dtype of events, the name of their argument, and the use of labels.

    Attributes:
      needs_labels: whether `class_weight` needs the labels.
      keeps_labels: whether a step gets the labels.
      conditions: the form of the conditions, or `None`. With them, they are the inputs of the data, and the
        events are the targets. After the checks they take the place of the labels.
      condition_name: the name of the argument of the conditions.
    """

    shape: tf.TensorShape
    dtype: tf.DType
    name: str = "x"
    needs_labels: bool = False
    keeps_labels: bool = False
    conditions: Conditions | None = None
    condition_name: str = "x"


class FitData(NamedTuple):
    """Arguments of Keras: events, labels, sample weights."""

    x: Any
    y: Any = None
    sample_weight: Any = None


def batch_of_events(x: Array, form: EventForm) -> Array:
    """Returns a batch of events as an array or a tensor; raises as `prepare` does."""
    if isinstance(x, (tuple, list)) and x and len(getattr(x[0], "shape", ())) > form.shape.rank:
        if len(x) > 1:
            kind = f"{type(x).__name__} of {len(x)} arrays"
            raise ValueError(
                f"`{form.name}` must be one array, with labels as an argument of their own; got a {kind}."
            )
        x = x[0]
    is_series = hasattr(x, "to_numpy") and not hasattr(x, "columns")
    x = as_array(x, form.name)
    if is_series and form.shape == [1] and len(x.shape) == 1:
        x = x[:, np.newaxis]
    check_event_form(x, form.shape, form.name, is_batch=True)
    if 0 in x.shape[:1]:
        raise ValueError(f"`{form.name}` has no events: its shape is {tuple(x.shape)}.")
    return tf.convert_to_tensor(x) if isinstance(x, tf.Variable) else x


def finite_events(x: Array, form: EventForm) -> Array:
    """Does the same, and raises ValueError if a value is not finite in the dtype of the flow."""
    x = batch_of_events(x, form)
    check_finite(cast_array(x, form.dtype), form.name)
    return x


def parts_of(data: Any, form: EventForm) -> FitData:
    """Returns the events, labels and weights in arrays; a list of single events is events alone."""
    if form.conditions is not None:
        return split_element(data, form)
    if isinstance(data, (tuple, list)) and data and (shape := _shape(data[0])) is not None:
        is_long = len(data) > 3 and len(shape) <= form.shape.rank
        if is_long or all(_shape(part) == tuple(form.shape) for part in data):
            return FitData(data)
    return split_element(data, form)


def _shape(value):
    """The shape of an array, a number, or lists of them; else `None`."""
    try:
        is_array = isinstance(value, (list, tuple, float)) or hasattr(value, "shape")
        return tuple(getattr(value, "shape", np.shape(value))) if is_array else None
    except ValueError:
        return None


def split_element(element: Any, form: EventForm) -> FitData:
    """Returns the events, labels or conditions, and weights of an element of a data set."""
    parts, name = element if isinstance(element, (tuple, list)) else (element,), form.name
    if form.conditions is not None:
        if not 2 <= len(parts) <= 3:
            raise ValueError(
                f"`{name}` must consist of (conditions, events) or (conditions, events, sample weights); got "
                f"a {type(element).__name__}{f' of {len(parts)}' if parts is element else ''}."
            )
        return FitData(parts[1], parts[0], *parts[2:])
    if not 1 <= len(parts) <= 3:
        raise ValueError(
            f"`{name}` must consist of events, (events, labels) or (events, labels, sample weights); got a "
            f"{type(element).__name__} of {len(parts)}."
        )
    return FitData(*parts)


def numeric_labels(labels: Any) -> Any:
    """Returns labels, or a structure of labels, as arrays; `None` for each part of strings or not dense."""
    parts = keras.tree.flatten(labels)
    if all(isinstance(part, numbers.Number) for part in parts):
        return _numeric_array(labels)
    kept = keras.tree.map_structure(_numeric_array, labels)
    return None if all(part is None for part in keras.tree.flatten(kept)) else kept


def numeric_tensors(labels: Any) -> Any:
    """Does the same for the labels in the graph of a data set."""
    kept = keras.tree.map_structure(
        lambda part: part if isinstance(part, tf.Tensor) and part.dtype != tf.string else None, labels
    )
    return None if all(part is None for part in keras.tree.flatten(kept)) else kept


def _numeric_array(labels):
    try:
        array = np.asarray(as_array(labels, "y"))
    except (TypeError, ValueError):
        return None
    return array if array.ndim and array.dtype.kind in "biufc" else None


def with_labels(x: Array, labels: Any, weights: Any, no_labels: Any) -> Any:
    """Returns a batch for Keras, which drops weights without labels: `no_labels(weights)` then are labels."""
    if weights is not None:
        return x, (no_labels(weights) if labels is None else labels), weights
    return (x,) if labels is None else (x, labels)


def check_labels(labels: Any, weights: Any, name: str) -> None:
    """Raises ValueError if an element of a data set does not fit `class_weight`."""
    if labels is None:
        raise ValueError(f"`class_weight` needs labels; the elements of `{name}` have none.")
    if weights is not None:
        raise ValueError(
            f"`class_weight` must be None with sample weights; the elements of `{name}` have weights."
        )
