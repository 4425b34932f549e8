"""What a bijector remembers of the pairs that it made, for their log-dets."""

import weakref

import tensorflow as tf


class Passes:
    """Remembers, while their tensors live, which direction made a pair, and values that the pass computed.

    TFP asks for the log-det of a pair at either end; it is that of the map which made the pair. In graphs all
    references are weak, since a value there keeps its whole graph alive; a value that is gone must be
    computed anew.
    """

    def __init__(self):
        self._entries = {}

    def add(self, direction, x, output, values=()):
        """Remembers a pass of a direction, from `x` to `output`."""
        held = tuple(_Value(value) if tf.executing_eagerly() else weakref.ref(value) for value in values)
        entries, keys = self._entries, ((direction, "input", id(x)), (direction, "output", id(output)))

        def forget(_):
            for key in keys:
                entries.pop(key, None)

        # The pair goes when either end does.
        for key, tensor in zip(keys, (x, output), strict=True):
            entries[key] = weakref.ref(tensor, forget), held

    def values_by_input(self, direction, x):
        """The values of the pass that took `x`; empty if they are gone, `None` without a pass."""
        return self._values((direction, "input", id(x)), x)

    def values_by_output(self, direction, output):
        """The same for the pass that returned `output`."""
        return self._values((direction, "output", id(output)), output)

    def _values(self, key, tensor):
        reference, held = self._entries.get(key, (lambda: None, ()))
        if reference() is not tensor:
            return None
        values = tuple(reference() for reference in held)
        return () if any(value is None for value in values) else values


class _Value:
    """A strong reference that is called as a weak one is."""

    def __init__(self, value):
        self._value = value

    def __call__(self):
        return self._value
