"""`GradientCorrections`, the held errors of the gradients that approximate those of log-dets."""

from collections.abc import Callable, Collection, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfp_selfnorm.math.linear import HeldCorrection
from tfp_selfnorm.utils.types import TfpObject

# The steps between two measurements of an error: the least and the most.
_LEAST_STEPS, _MOST_STEPS = 8, 64
# The largest change from one measurement to the next, as a part of the gradient.
_ALLOWED_CHANGE = 0.01
# The errors, as a part of the gradient, above which the exact gradient is taken, and below which no longer.
_LARGE_ERROR, _SMALL_ERROR = 0.5, 0.2
# What a layer does until the next measurement.
_UNCORRECTED, _CORRECTED, _EXACT = 0.0, 1.0, -1.0


class GradientCorrections:
    """Adds to an approximate gradient its error when it was measured last.

    The approximation follows W at each step. Its error is a bias, with which a long training drifts away.
    The error mostly changes slowly, so that an old one removes the bias. Where it changes fast, as near
    singular kernels at a high learning rate, the delay would let the training oscillate. Until the next
    measurement the gradient then has no correction. If the error is above half of the gradient, the
    exact gradient takes its place, until the error is below a fifth.

    A measurement costs the exact gradient. They follow each other after 8 to 64 steps, the later the less the
    error changes.

    Args:
      layers: self-normalizing layers.
      add_weight: function that makes a Keras variable, such as the method of a `keras.Model`.

    Attributes:
      identities: the identities of the layers with a correction.
    """

    def __init__(self, layers: Sequence[TfpObject], add_weight: Callable[..., keras.Variable]) -> None:
        corrected = [layer for layer in layers if layer.has_gradient_correction]
        self._errors = [(layer, _error_of(layer, add_weight)) for layer in corrected]
        self.identities = {layer.identity for layer in corrected}
        if corrected:
            options = {"shape": [len(corrected)], "trainable": False}
            self._intervals = add_weight(
                initializer=keras.initializers.Constant(_LEAST_STEPS),
                dtype="int64",
                name="correction_intervals",
                **options,
            )
            # The name is that of files from when there were two states.
            self._states = add_weight(
                initializer="zeros", dtype="float32", name="corrections_are_steady", **options
            )

    def read(self) -> dict[TfpObject, HeldCorrection]:
        """Returns the `gradient_corrections` of a `training_scope`."""
        corrections = {}
        for i, (layer, error) in enumerate(self._errors):
            state = tf.convert_to_tensor(self._states.value)[i]
            held = tf.where(state == _CORRECTED, error.value, tf.zeros_like(error.value))
            corrections[layer] = HeldCorrection(held, state == _EXACT)
        return corrections

    def before_steps(self, step: int, count: int, moved: Collection) -> None:
        """Measures the errors that are due before the next `count` steps, and those of moved layers.

        Raises:
          ValueError: if a kernel is singular, with the name of the layer.
        """
        if not self._errors:
            return
        intervals, states = self._intervals.numpy(), self._states.numpy()
        due = [
            (i, layer, error)
            for i, (layer, error) in enumerate(self._errors)
            if step % intervals[i] < count or layer.identity in moved
        ]
        for i, layer, error in due:
            old, new = tf.convert_to_tensor(error.value), layer.gradient_correction()
            error.assign(new)
            # The products of a kernel and the gradient of its log-det have the sum D.
            unit = np.prod(layer.event_sizes) / tf.norm(layer.inverse_kernel)
            change, size = float(tf.norm(new - old) / unit), float(tf.norm(new) / unit)
            steady = _CORRECTED if change <= _ALLOWED_CHANGE else _UNCORRECTED
            limit = _SMALL_ERROR if states[i] == _EXACT else _LARGE_ERROR
            states[i] = _EXACT if size > limit else steady
            if change > _ALLOWED_CHANGE:
                intervals[i] = _LEAST_STEPS
            elif change < _ALLOWED_CHANGE / 4:
                intervals[i] = min(2 * intervals[i], _MOST_STEPS)
        if due:
            self._intervals.assign(intervals)
            self._states.assign(states)


def _error_of(layer, add_weight):
    """The variable of the last error of a layer."""
    return add_weight(
        shape=layer.inverse_kernel.shape,
        initializer="zeros",
        dtype=layer.dtype.name,
        trainable=False,
        name=f"gradient_error_{layer.name}",
    )
