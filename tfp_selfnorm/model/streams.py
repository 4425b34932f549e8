"""Data that come batch by batch, such as data sets and generators: each batch is checked when it is read."""

import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_selfnorm.model.batches import (
    EventForm,
    batch_of_events,
    check_labels,
    finite_events,
    numeric_labels,
    numeric_tensors,
    parts_of,
    split_element,
    with_labels,
)
from tfp_selfnorm.model.conditions import Conditions
from tfp_selfnorm.utils.checks import (
    BAD_WEIGHTS,
    as_array,
    cast_array,
    check_event_form,
    check_finite,
    check_weights,
)
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.types import TfpObject

_BAD_BATCH = "tfp_selfnorm: bad batch"
_NO_STREAMS = (Mapping, list, tuple, set, str, bytes, keras.KerasTensor, tf.Tensor, tf.RaggedTensor)


def is_stream(x: Any) -> bool:
    """Whether `x` gives batches one by one and is no array; Keras refuses the kinds that it does not take."""
    if isinstance(x, (tf.data.Dataset, keras.utils.PyDataset, Iterator)):
        return True
    return isinstance(x, Iterable) and not (hasattr(x, "__array__") or isinstance(x, _NO_STREAMS))


def checked_stream(stream: Any, form: EventForm) -> Any:
    """Returns a stream whose batches are checked when they are read; its first one is checked at once."""
    if isinstance(stream, tf.data.Dataset):
        return _checked_data_set(stream, form)
    if isinstance(stream, keras.utils.PyDataset):
        if stream.num_batches == 0:
            raise ValueError(f"`{form.name}` is an empty data set.")
        py_dataset = _CheckedPyDataset(stream, form)
        _ = py_dataset[0]
        return py_dataset
    if isinstance(stream, Iterator):
        checked = (_checked_element(element, i, form) for i, element in enumerate(stream))
        if (first := next(checked, None)) is None:
            raise ValueError(f"`{form.name}` gives no batches.")
        # Keras takes generators only, and tuples from them.
        return (element for element in itertools.chain([first], checked))
    return stream


def first_events(
    data: Any, num_examples: int, distribution: TfpObject, conditions: Conditions | None = None
) -> tuple[tf.Tensor, Any]:
    """Returns the first events of data of any form that `fit` takes, as one tensor, and their conditions."""
    check_positive_int(num_examples, "num_examples")
    form = EventForm(distribution.event_shape, distribution.dtype, "data", conditions=conditions)
    if not is_stream(data):
        arrays = parts_of(data, form)
        x = batch_of_events(arrays.x, form)
        given = None if conditions is None else conditions.array(arrays.y, form.condition_name, len(x))
        x = tf.convert_to_tensor(check_finite(cast_array(x[:num_examples], form.dtype), form.name))
        if given is not None:
            given = tf.nest.map_structure(lambda part: tf.convert_to_tensor(part[:num_examples]), given)
        return x, given
    stream = checked_stream(data, form)
    if isinstance(stream, keras.utils.PyDataset):
        # In earlier versions of Keras it has no `__iter__`, and Python asks for batches without end.
        stream = itertools.islice(stream, stream.num_batches)
    batches: list[Any] = []
    with raising_named_batches():
        for element in stream:
            # The checks have put the events first.
            x, given = [*element, None][:2]
            batches.append([tf.cast(x, form.dtype), *([] if conditions is None else tf.nest.flatten(given))])
            if sum(len(x) for x, *_ in batches) >= num_examples:
                break
    if not batches:
        raise ValueError("`data` has no batch to adapt to.")
    x, *parts = [tf.concat(part, axis=0)[:num_examples] for part in zip(*batches, strict=True)]
    return x, None if conditions is None else tf.nest.pack_sequence_as(given, parts)


@contextlib.contextmanager
def raising_named_batches() -> Iterator[None]:
    """Turns the failure of a checked stream into an error that names the argument and the batch."""
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
    """A `keras.utils.PyDataset` with checked batches."""

    def __init__(self, data: Any, form: EventForm) -> None:
        options = ("workers", "use_multiprocessing", "max_queue_size")
        super().__init__(**{option: getattr(data, option) for option in options})
        self._data, self._form = data, form

    def __getitem__(self, index: int) -> tuple:
        return _checked_element(self._data[index], index, self._form)

    @property
    def num_batches(self):
        return self._data.num_batches

    def on_epoch_begin(self):
        self._data.on_epoch_begin()

    def on_epoch_end(self):
        self._data.on_epoch_end()


def _checked_data_set(data, form):
    """The data set, with a check of each batch when it is read."""
    x, labels, weights = split_element(data.element_spec, form)
    _check_spec(x, weights, form)
    if form.conditions is not None:
        form.conditions.check_spec(labels, f"the conditions in {form.name}")
    if form.needs_labels:
        check_labels(labels, weights, form.name)
    if data.cardinality() == 0:
        raise ValueError(f"`{form.name}` is an empty data set.")

    def check(index, element):
        x, labels, weights = split_element(element, form)
        x = tf.cast(x, form.dtype)
        conditions = {
            "events of another shape": _has_event_shape(x, form.shape),
            "values that are not finite": tf.reduce_all(tf.math.is_finite(x)),
        }
        if weights is not None:
            weights = tf.cast(weights, tf.float32)
            conditions["weights that are not one an example"] = tf.equal(tf.size(weights), tf.shape(x)[0])
            conditions[BAD_WEIGHTS] = tf.reduce_all(tf.math.is_finite(weights) & (weights >= 0.0))
        if form.conditions is not None:
            labels, problems = form.conditions.checked_in_graph(labels, tf.shape(x)[0])
            conditions |= problems
        checks = [
            tf.debugging.Assert(is_good, [_BAD_BATCH, form.name, index, problem])
            for problem, is_good in conditions.items()
        ]
        with tf.control_dependencies(checks):
            num_leading = 1 if x.shape.rank is None else x.shape.rank - form.shape.rank
            x = tf.ensure_shape(x, tf.TensorShape([None] * num_leading).concatenate(form.shape))
        if form.needs_labels:
            return x, labels
        if form.conditions is not None:
            return with_labels(x, labels, weights, tf.zeros_like)
        return with_labels(x, numeric_tensors(labels) if form.keeps_labels else None, weights, tf.zeros_like)

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
            f"The events in `{form.name}` must be one dense tensor; got {parts}. Make one tensor of it by "
            "`.map(...)`."
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


def _checked_element(element, index, form):
    """An element of a generator or a `PyDataset`, as a tuple of arrays."""
    parts = parts_of(element, form)
    try:
        x = finite_events(parts.x, form)
        if (weights := parts.sample_weight) is not None:
            weights = check_weights(weights, len(x), form.name)
        if form.conditions is not None:
            name = f"the conditions in {form.name}"
            return with_labels(x, form.conditions.array(parts.y, name, len(x)), weights, np.zeros_like)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error} It is in batch {index} of the data set.") from None
    if form.needs_labels:
        check_labels(parts.y, weights, form.name)
        return x, np.asarray(as_array(parts.y, "y"))
    return with_labels(x, numeric_labels(parts.y) if form.keeps_labels else None, weights, np.zeros_like)
