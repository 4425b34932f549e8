"""The memory of a bijector for the pairs that it made, for their log-dets."""

import contextlib
import contextvars
import functools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfp_selfnorm.utils.graphs import is_within_reach

_KEEPS_VALUES: contextvars.ContextVar[bool] = contextvars.ContextVar("keeps_values", default=False)


def _nothing():
    return None


_NO_ENTRY: tuple = (_nothing, (), _nothing, ())


@contextlib.contextmanager
def keeping_values() -> Iterator[None]:
    """Lets passes keep their values in eager code too. Use it only for a call that changes no variable.

    Without it, a density calls a network twice: for the value and for the log-det. The two calls have
    different dropout. The losses of the network count twice, and its moving statistics change twice.
    """
    token = _KEEPS_VALUES.set(True)
    try:
        yield
    finally:
        _KEEPS_VALUES.reset(token)


class PairMemory:
    """Remembers the direction that made each pair, and in graphs the values of the pass.

    TFP asks for the log-det of a pair at either end. It is the log-det of the map that made the pair. In a
    graph, a direction and its log-det share the values of a pass. In eager code they are computed again: a
    variable may have changed, and a new tape would not see the old values. `keeping_values` changes this.
    An entry goes when the tensors of its pair go. All references in graphs are weak.
    """

    def __init__(self) -> None:
        # By direction, end and id: the tensor, the values of the pass, its input, the parts of its condition.
        self._entries: dict[tuple, tuple] = {}

    def add(
        self,
        direction: str,
        x: tf.Tensor,
        output: tf.Tensor,
        values: Sequence[tf.Tensor] = (),
        condition: Any = None,
    ) -> None:
        """Remembers a pass from `x` to `output`.

        Args:
          direction: "forward" or "inverse".
          x: the input of the pass.
          output: its output.
          values: the tensors that the log-det needs.
          condition: the condition of the pass: a tensor, a structure of tensors, or `None`. Only the same
            tensors find the pass again.
        """
        values_of_pass: tuple = ()
        if not tf.executing_eagerly():
            values_of_pass = tuple(map(weakref.ref, values))
        elif _KEEPS_VALUES.get():
            # Only the entry holds these tensors. They go with the pair.
            values_of_pass = tuple(functools.partial(_same, value) for value in values)
        parts = tuple(map(_reference, _parts(condition)))
        entries, keys = self._entries, ((direction, "input", id(x)), (direction, "output", id(output)))

        def forget(_):
            for key in keys:
                entries.pop(key, None)

        # The entry goes when either end of the pair goes.
        for key, tensor in zip(keys, (x, output), strict=True):
            entries[key] = weakref.ref(tensor, forget), values_of_pass, weakref.ref(x), parts

    def values_by_input(self, direction: str, x: tf.Tensor, condition: Any = None) -> tuple[Any, ...] | None:
        """The values of the pass with this input; empty if they must be computed, `None` without a pass."""
        return self._values((direction, "input", id(x)), x, condition)

    def values_by_output(
        self, direction: str, output: tf.Tensor, condition: Any = None
    ) -> tuple[Any, ...] | None:
        """The values of the pass with this output; see `values_by_input`."""
        return self._values((direction, "output", id(output)), output, condition)

    def input_by_output(self, direction: str, output: tf.Tensor, condition: Any = None) -> tf.Tensor | None:
        """The input of the pass with this output; `None` without a pass, or if it cannot be used here."""
        _, _, x, _ = self._entry((direction, "output", id(output)), output, condition)
        x = x()
        return x if x is None or not tf.is_symbolic_tensor(x) or is_within_reach(x) else None

    def _entry(self, key, tensor, condition):
        """The entry of a tensor and a condition."""
        entry, parts = self._entries.get(key, _NO_ENTRY), _parts(condition)
        is_same = len(parts) == len(entry[3]) and all(
            reference() is part for reference, part in zip(entry[3], parts, strict=True)
        )
        return entry if entry[0]() is tensor and is_same else _NO_ENTRY

    def _values(self, key, tensor, condition):
        reference, values, _, _ = self._entry(key, tensor, condition)
        if reference() is not tensor:
            return None
        values = tuple(value() for value in values)
        return values if all(map(_can_be_used, values)) else ()


def _same(value):
    return value


def _parts(condition):
    return () if condition is None else tuple(tf.nest.flatten(condition))


def _reference(part):
    """A weak reference, where Python has one: numbers have none."""
    try:
        return weakref.ref(part)
    except TypeError:
        return functools.partial(_same, part)


def _can_be_used(value):
    """Whether the tensor exists and can be used here, and is not in another branch of a `tf.cond`."""
    if value is None:
        return False
    if not tf.is_symbolic_tensor(value):
        return tf.executing_eagerly() and _KEEPS_VALUES.get()
    return is_within_reach(value)
