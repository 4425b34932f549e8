"""Brings the data of `fit`, `evaluate` and `predict` into one form, and checks them before any work."""

import numbers
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from tfp_selfnorm.model.batches import EventForm, FitData, batch_of_events, parts_of
from tfp_selfnorm.model.streams import checked_stream, is_stream
from tfp_selfnorm.utils.checks import as_array, cast_array, check_finite, check_weights


def prepare(x, distribution, y=None, sample_weight=None, class_weight=None, name="x") -> FitData:
    """Brings events and weights of any form into one that Keras takes, and that keeps the weights.

    Arrays become numpy arrays or tensors, and are checked at once. Data sets, generators and the like are
    checked by their first elements, and batch by batch as they are read. Labels go on only if
    `class_weight` needs them.

    Args:
      x: events, or what Keras takes batches of them from.
      distribution: the TFP distribution that they are events of.
      y: labels, or `None`.
      sample_weight, class_weight: one weight an example; a dictionary from labels to weights.
      name: name of the argument.

    Raises:
      TypeError: if `x` is of no form that has events, or not floating.
      ValueError: if `x` has no events, events of another shape or without a batch dimension, or values that
        are not finite; if weights are negative, not finite, or not one an example.
    """
    form = EventForm(distribution.event_shape, distribution.dtype, name)
    _check_class_weight(class_weight, y, x)
    if is_stream(x):
        if sample_weight is not None:
            raise ValueError(
                f"`{name}` gives batches; these must hold the weights: (events, labels, weights)."
            )
        return FitData(checked_stream(x, form, class_weight is not None), y, sample_weight)
    x = batch_of_events(x, form)
    check_finite(cast_array(x, form.dtype), name)
    if sample_weight is not None:
        weights_name = "sample_weight" if name == "x" else name
        sample_weight = check_weights(sample_weight, len(x), weights_name)
        if not sample_weight.any():
            raise ValueError(f"`{weights_name}` has weights that are all zero.")
    if class_weight is not None:
        y = np.asarray(as_array(y, "y"))
    else:
        # Without labels Keras drops the weights.
        y = None if sample_weight is None else np.zeros(len(x), np.float32)
    return FitData(_as_bits(x, form.dtype), y, sample_weight)


def prepare_batch(x, distribution, y=None, sample_weight=None, class_weight=None) -> FitData:
    """Does the same for a single batch; values that are not finite are left to the step."""
    _check_class_weight(class_weight, y, x)
    x = batch_of_events(x, EventForm(distribution.event_shape, distribution.dtype))
    if sample_weight is not None:
        sample_weight = check_weights(sample_weight, len(x))
    return FitData(x, None if class_weight is None else np.asarray(as_array(y, "y")), sample_weight)


def prepare_validation(data, distribution):
    """Does the same for the `validation_data` of Keras: events, or a tuple or list that begins with them."""
    form = EventForm(distribution.event_shape, distribution.dtype, "validation_data")
    parts = parts_of(data, form)
    return tuple(prepare(parts.x, distribution, None, parts.sample_weight, name=form.name))


def unpack(data) -> FitData:
    """The events, labels and weights of a batch that Keras hands to a step."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    return FitData(_from_bits(x), y, sample_weight)


def _check_class_weight(class_weight, y, x):
    if class_weight is None:
        return
    if not isinstance(class_weight, Mapping):
        raise TypeError(f"`class_weight` must be a dictionary from labels to weights; got {class_weight!r}.")
    for label, weight in class_weight.items():
        if not (isinstance(weight, numbers.Real) and 0 <= weight < np.inf):
            raise ValueError(f"`class_weight` must be finite and 0 or more; got {weight!r} for {label!r}.")
    if y is None and not is_stream(x):
        raise ValueError("`class_weight` needs labels: give them as `y`, or use `sample_weight`.")


def _as_bits(x, dtype):
    """Float64 events of a float64 flow as integers of the same bits: Keras would round them to float32."""
    if not x.dtype == dtype == tf.float64:
        return x
    return tf.bitcast(x, tf.int64) if tf.is_tensor(x) else x.view(np.int64)


def _from_bits(x):
    return tf.bitcast(x, tf.float64) if tf.as_dtype(x.dtype) == tf.int64 else x
