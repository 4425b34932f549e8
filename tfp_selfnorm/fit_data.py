"""Brings the data of `fit`, `evaluate` and `predict` into one form, and checks them before any work."""

import contextlib
import itertools
import numbers
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfp_selfnorm.checks import (
    BAD_WEIGHTS,
    as_array,
    cast_array,
    check_event_form,
    check_finite,
    check_weights,
)

_BAD_BATCH = "tfp_selfnorm: bad batch"
_NO_STREAMS = (Mapping, list, tuple, set, str, bytes, keras.KerasTensor, tf.Tensor, tf.RaggedTensor)


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
    if _is_stream(x):
        if sample_weight is not None:
            raise ValueError(
                f"`{name}` gives batches; these must hold the weights: (events, labels, weights)."
            )
        return FitData(_checked_stream(x, form, class_weight is not None), y, sample_weight)
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
    parts = _parts(data, form)
    return tuple(prepare(parts.x, distribution, None, parts.sample_weight, name=form.name))


def event_batches(data, distribution, number: int, name="x") -> Iterator:
    """The batches of events in data of any form that `fit` takes; of an array its first `number`."""
    form = EventForm(distribution.event_shape, distribution.dtype, name)
    if not _is_stream(data):
        x = _parts(data, form).x
        yield check_finite(cast_array(batch_of_events(x, form)[:number], form.dtype), name)
        return
    stream = _checked_stream(data, form, keeps_labels=False)
    if isinstance(stream, keras.utils.PyDataset):
        numbers = itertools.count() if stream.num_batches is None else range(stream.num_batches)
        stream = map(stream.__getitem__, numbers)
    with naming_the_batch():
        for element in stream:
            yield _split(element, name)[0]


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


def unpack(data) -> FitData:
    """The events, labels and weights of a batch that Keras hands to a step."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    return FitData(_from_bits(x), y, sample_weight)


@contextlib.contextmanager
def naming_the_batch():
    """Turns the failure of a stream from `prepare` into an error that names the argument and the batch."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        message = str(error)
        found = re.search(rf"{_BAD_BATCH}\W+(\w+)\W+(\d+)\W+([\w ,]+)", message)
        raised = re.search(r"(ValueError|TypeError): (`.*)", message)
        if found is not None:
            where = f"in batch {found[2]} of the data set (the first is batch 0)"
            raise ValueError(f"`{found[1]}` has {found[3]} {where}.") from None
        if raised is not None and "generator_py_func" in message:
            raise (ValueError if raised[1] == "ValueError" else TypeError)(raised[2]) from None
        raise


class _CheckedPyDataset(keras.utils.PyDataset):
    """A `keras.utils.PyDataset` whose batches are checked."""

    def __init__(self, data, form, keeps_labels):
        options = ("workers", "use_multiprocessing", "max_queue_size")
        super().__init__(**{option: getattr(data, option) for option in options})
        self._data, self._form, self._keeps_labels = data, form, keeps_labels

    def __getitem__(self, index):
        return _checked_element(self._data[index], index, self._form, self._keeps_labels)

    @property
    def num_batches(self):
        return self._data.num_batches

    def on_epoch_begin(self):
        self._data.on_epoch_begin()

    def on_epoch_end(self):
        self._data.on_epoch_end()


def _is_stream(x):
    """Whether it gives batches one by one, and is no array; Keras says which of these it does not take."""
    if isinstance(x, (tf.data.Dataset, keras.utils.PyDataset, Iterator)):
        return True
    return isinstance(x, Iterable) and not (hasattr(x, "__array__") or isinstance(x, _NO_STREAMS))


def _checked_stream(stream, form, keeps_labels):
    if isinstance(stream, tf.data.Dataset):
        return _checked_data_set(stream, form, keeps_labels)
    if isinstance(stream, keras.utils.PyDataset):
        if stream.num_batches == 0:
            raise ValueError(f"`{form.name}` is an empty data set.")
        checked = _CheckedPyDataset(stream, form, keeps_labels)
        _ = checked[0]
        return checked
    if isinstance(stream, Iterator):
        checked = (_checked_element(element, i, form, keeps_labels) for i, element in enumerate(stream))
        if (first := next(checked, None)) is None:
            raise ValueError(f"`{form.name}` gives no batches.")
        # Keras takes generators only, and tuples from them.
        return (element for element in itertools.chain([first], checked))
    return stream


def _checked_data_set(data, form, keeps_labels):
    """The data set with each batch checked as it is read."""
    x, labels, weights = _split(data.element_spec, form.name)
    _check_spec(x, weights, form)
    if keeps_labels:
        _check_labels(labels, weights, form.name)
    if data.cardinality() == 0:
        raise ValueError(f"`{form.name}` is an empty data set.")

    def check(index, element):
        x, labels, weights = _split(element, form.name)
        x = tf.cast(x, form.dtype)
        conditions = {
            "events of another shape": _has_event_shape(x, form.shape),
            "values that are not finite": tf.reduce_all(tf.math.is_finite(x)),
        }
        if weights is not None:
            weights = tf.cast(weights, tf.float32)
            conditions["weights that are not one an example"] = tf.equal(tf.size(weights), tf.shape(x)[0])
            conditions[BAD_WEIGHTS] = tf.reduce_all(tf.math.is_finite(weights) & (weights >= 0.0))
        checks = [
            tf.debugging.Assert(is_good, [_BAD_BATCH, form.name, index, problem])
            for problem, is_good in conditions.items()
        ]
        with tf.control_dependencies(checks):
            num_leading = 1 if x.shape.rank is None else x.shape.rank - form.shape.rank
            x = tf.ensure_shape(x, tf.TensorShape([None] * num_leading).concatenate(form.shape))
        if keeps_labels:
            return x, labels
        return x if weights is None else (x, tf.zeros_like(weights), weights)

    return data.enumerate().map(check)


def _has_event_shape(x, event_shape):
    sizes = tf.constant(event_shape.as_list(), tf.int32)
    if x.shape.rank is not None:
        return tf.reduce_all(tf.equal(tf.shape(x)[x.shape.rank - event_shape.rank :], sizes))
    return tf.cond(
        tf.equal(tf.rank(x), event_shape.rank + 1),
        lambda: tf.reduce_all(tf.equal(tf.shape(x)[1:], sizes)),
        lambda: tf.constant(False),
    )


def _check_spec(x, weights, form):
    if not isinstance(x, tf.TensorSpec):
        parts = f"a dict with the keys {list(x)}" if isinstance(x, dict) else f"{x}"
        raise TypeError(
            f"The events in `{form.name}` must be one dense tensor; the data set has {parts} in their place. "
            "Make one tensor of it by `.map(...)`."
        )
    if x.shape.rank == form.shape.rank and x.shape.is_compatible_with(form.shape):
        raise ValueError(
            f"The elements of `{form.name}` are single events of shape {tuple(x.shape)}; batch the data set: "
            "`.batch(n)`."
        )
    check_event_form(x, form.shape, form.name, is_batch=True)
    if weights is None:
        return
    dtype = getattr(weights, "dtype", tf.string)
    if not (dtype.is_floating or dtype.is_integer or dtype.is_bool):
        raise TypeError(f"The sample weights in `{form.name}` must be real numbers; got {weights}.")
    if weights.shape.rank is not None and weights.shape[1:].num_elements() not in (1, None):
        raise ValueError(
            f"The sample weights in `{form.name}` have shape {tuple(weights.shape)}; expected one weight an "
            "example."
        )


def _checked_element(element, index, form, keeps_labels):
    """An element of a generator or a `PyDataset`, as a tuple of arrays."""
    parts = _parts(element, form)
    try:
        x = batch_of_events(parts.x, form)
        check_finite(cast_array(x, form.dtype), form.name)
        if (weights := parts.sample_weight) is not None:
            weights = check_weights(weights, len(x), form.name)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error} It is in batch {index} of the data set.") from None
    if keeps_labels:
        _check_labels(parts.y, weights, form.name)
        return x, np.asarray(as_array(parts.y, "y"))
    return (x,) if weights is None else (x, np.zeros_like(weights), weights)


def _parts(data, form) -> FitData:
    """Events, labels and weights in arrays; a list of single events is events alone."""
    if isinstance(data, (tuple, list)) and data and _shape(data[0]) is not None:
        is_long = len(data) > 3 and len(_shape(data[0])) <= form.shape.rank
        if is_long or all(_shape(part) == tuple(form.shape) for part in data):
            return FitData(data)
    return FitData(*_split(data, form.name))


def _shape(value):
    """The shape of an array, a number, or lists of them; else `None`."""
    try:
        is_array = isinstance(value, (list, tuple, float)) or hasattr(value, "shape")
        return tuple(getattr(value, "shape", np.shape(value))) if is_array else None
    except ValueError:
        return None


def _split(element, name) -> tuple:
    """Events, labels and weights, `None` where there are none."""
    parts = element if isinstance(element, (tuple, list)) else (element,)
    if not 1 <= len(parts) <= 3:
        raise ValueError(
            f"`{name}` must consist of events, (events, labels) or (events, labels, sample weights); got a "
            f"{type(element).__name__} of {len(parts)}."
        )
    return (*parts, None, None)[:3]


def _check_class_weight(class_weight, y, x):
    if class_weight is None:
        return
    if not isinstance(class_weight, Mapping):
        raise TypeError(f"`class_weight` must be a dictionary from labels to weights; got {class_weight!r}.")
    for label, weight in class_weight.items():
        if not (isinstance(weight, numbers.Real) and 0 <= weight < np.inf):
            raise ValueError(f"`class_weight` must be finite and 0 or more; got {weight!r} for {label!r}.")
    if y is None and not _is_stream(x):
        raise ValueError("`class_weight` needs labels: give them as `y`, or use `sample_weight`.")


def _check_labels(labels, weights, name):
    if labels is None:
        raise ValueError(f"`class_weight` needs labels; the elements of `{name}` have none.")
    if weights is not None:
        raise ValueError(
            f"`class_weight` or sample weights, not both; the elements of `{name}` have weights."
        )


def _as_bits(x, dtype):
    """Float64 events of a float64 flow as integers of the same bits: Keras would round them to float32."""
    if not x.dtype == dtype == tf.float64:
        return x
    return tf.bitcast(x, tf.int64) if tf.is_tensor(x) else x.view(np.int64)


def _from_bits(x):
    return tf.bitcast(x, tf.float64) if tf.as_dtype(x.dtype) == tf.int64 else x
