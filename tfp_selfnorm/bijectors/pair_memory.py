"""What a bijector remembers of the pairs that it made, for their log-dets."""

import contextlib
import functools
import threading
import weakref

import tensorflow as tf

from tfp_selfnorm.utils.graphs import is_within_reach

_THREAD = threading.local()


@contextlib.contextmanager
def keeping_values():
    """Within it passes keep what they computed in eager code too: for a call that changes no variable.

    Otherwise a network would be called twice for a density, for a value and its log-det, with dropout of two
    kinds, its losses counted twice, and its moving statistics moved twice.
    """
    before, _THREAD.keeps = _keeps_values(), True
    try:
        yield
    finally:
        _THREAD.keeps = before


def _keeps_values():
    return getattr(_THREAD, "keeps", False)


class PairMemory:
    """Remembers, while their tensors live, which direction made a pair, and in graphs what the pass computed.

    TFP asks for the log-det of a pair at either end; it is that of the map which made the pair. In a graph a
    direction and its log-det share the values of a pass; eagerly a variable may change in between, and a new
    tape would not see them, so that they are computed anew, but within `keeping_values`. All references in
    graphs are weak.
    """

    def __init__(self):
        self._entries = {}

    def add(self, direction, x, output, values=()):
        """Remembers a pass of a direction, from `x` to `output`."""
        if not tf.executing_eagerly():
            values = tuple(map(weakref.ref, values))
        else:
            # Nothing else holds them; they go with the pair.
            values = tuple(functools.partial(_same, value) for value in values) if _keeps_values() else ()
        entries, keys = self._entries, ((direction, "input", id(x)), (direction, "output", id(output)))

        def forget(_):
            for key in keys:
                entries.pop(key, None)

        # The pair goes when either end does.
        for key, tensor in zip(keys, (x, output), strict=True):
            entries[key] = weakref.ref(tensor, forget), values

    def values_by_input(self, direction, x):
        """The values of the pass that took `x`; empty if they must be computed, `None` without a pass."""
        return self._values((direction, "input", id(x)), x)

    def values_by_output(self, direction, output):
        """The same for the pass that returned `output`."""
        return self._values((direction, "output", id(output)), output)

    def _values(self, key, tensor):
        reference, values = self._entries.get(key, (lambda: None, ()))
        if reference() is not tensor:
            return None
        values = tuple(value() for value in values)
        return values if all(map(_can_be_used, values)) else ()


def _same(value):
    return value


def _can_be_used(value):
    """Whether the tensor lives, in this graph or one around it, and not in another branch of a `tf.cond`."""
    if value is None:
        return False
    if not tf.is_symbolic_tensor(value):
        return tf.executing_eagerly() and _keeps_values()
    return is_within_reach(value)
