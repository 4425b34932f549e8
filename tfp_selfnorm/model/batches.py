"""The forms that a batch of events may have, in `fit` and the like: arrays, with labels and weights."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfp_selfnorm.utils.checks import as_array, check_event_form


class EventForm(NamedTuple):
    """What events must look like, and the name of the argument that they come in."""

    shape: tf.TensorShape
    dtype: tf.DType
    name: str = "x"


class FitData(NamedTuple):
    """Arguments of Keras: events, labels, sample weights."""

    x: object
    y: object = None
    sample_weight: object = None


def batch_of_events(x, form: EventForm):
    """Returns `x` as an array or tensor, if it is a batch of events; see `prepare`."""
    if isinstance(x, (tuple, list)) and x and len(getattr(x[0], "shape", ())) > form.shape.rank:
        if len(x) > 1:
            kind = f"{type(x).__name__} of {len(x)} arrays"
            raise ValueError(
                f"`{form.name}` is a {kind}; a FlowModel takes one array, and labels apart from it."
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


def parts_of(data, form) -> FitData:
    """Events, labels and weights in arrays; a list of single events is events alone."""
    if isinstance(data, (tuple, list)) and data and _shape(data[0]) is not None:
        is_long = len(data) > 3 and len(_shape(data[0])) <= form.shape.rank
        if is_long or all(_shape(part) == tuple(form.shape) for part in data):
            return FitData(data)
    return FitData(*split_element(data, form.name))


def _shape(value):
    """The shape of an array, a number, or lists of them; else `None`."""
    try:
        is_array = isinstance(value, (list, tuple, float)) or hasattr(value, "shape")
        return tuple(getattr(value, "shape", np.shape(value))) if is_array else None
    except ValueError:
        return None


def split_element(element, name) -> tuple:
    """Events, labels and weights, `None` where there are none."""
    parts = element if isinstance(element, (tuple, list)) else (element,)
    if not 1 <= len(parts) <= 3:
        raise ValueError(
            f"`{name}` must consist of events, (events, labels) or (events, labels, sample weights); got a "
            f"{type(element).__name__} of {len(parts)}."
        )
    return (*parts, None, None)[:3]


def check_labels(labels, weights, name):
    if labels is None:
        raise ValueError(f"`class_weight` needs labels; the elements of `{name}` have none.")
    if weights is not None:
        raise ValueError(
            f"`class_weight` or sample weights, not both; the elements of `{name}` have weights."
        )
