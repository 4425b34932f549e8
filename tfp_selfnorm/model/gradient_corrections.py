"""`GradientCorrections`, the held errors of the gradients that approximate those of log-dets."""

from collections.abc import Callable, Collection, Sequence

import keras
import tensorflow as tf

from tfp_selfnorm.math.linear import HeldCorrection
from tfp_selfnorm.utils.types import TfpObject

# The steps between two measurements of an error: the least and the most.
_LEAST_STEPS, _MOST_STEPS = 8, 64
# Parts of the exact gradient. If the error changes by more from one measurement to the next, the next follows
# soon. A step takes the exact gradient if the error has changed by more, or the approximation since.
_ALLOWED_CHANGE, _LARGEST_CHANGE_OF_ERROR, _LARGEST_CHANGE = 0.01, 0.05, 0.1


class GradientCorrections:
    """Adds to an approximate gradient its error when it was measured last.

    The approximation follows W at each step. Its error is a bias, with which a long training drifts away.
    The error mostly changes slowly, so that an old one removes the bias. Near singular kernels it does not:
    the gradient grows without bound there, which keeps a training away from them, and the approximation grows
    elsewhere. So a step takes the exact gradient if the error changed by more than a twentieth of it up to
    the last measurement, or if the approximation has changed by more than a tenth of it since.

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
        self._held = [(layer, *_variables_of(layer, add_weight)) for layer in corrected]
        self.identities = {layer.identity for layer in corrected}
        if corrected:
            options = {"shape": [len(corrected)], "trainable": False}
            self._intervals = add_weight(
                initializer=keras.initializers.Constant(_LEAST_STEPS),
                dtype="int64",
                name="correction_intervals",
                **options,
            )
            # The largest changes of the approximations, or -1 for the exact gradient.
            self._changes = add_weight(
                initializer="zeros", dtype="float32", name="correction_changes", **options
            )

    def read(self) -> dict[TfpObject, HeldCorrection]:
        """Returns the `gradient_corrections` of a `training_scope`."""
        return {
            layer: HeldCorrection(error.value, approximation.value, self._changes.value[i])
            for i, (layer, error, approximation) in enumerate(self._held)
        }

    def before_steps(self, step: int, count: int, moved: Collection) -> None:
        """Measures the errors that are due before the next `count` steps, and those of moved layers.

        Raises:
          ValueError: if a kernel is singular, with the name of the layer.
        """
        if not self._held:
            return
        intervals, changes = self._intervals.numpy(), self._changes.numpy()
        due = [
            (i, *held)
            for i, held in enumerate(self._held)
            if step % intervals[i] < count or held[0].identity in moved
        ]
        for i, layer, error, approximation in due:
            exact, new = layer.log_det_gradient("exact"), layer.log_det_gradient(layer.gradient)
            change = float(tf.norm(exact - new - error.value) / tf.norm(exact))
            error.assign(exact - new)
            approximation.assign(new)
            changes[i] = _LARGEST_CHANGE if change <= _LARGEST_CHANGE_OF_ERROR else -1.0
            if change > _ALLOWED_CHANGE:
                intervals[i] = _LEAST_STEPS
            elif change < _ALLOWED_CHANGE / 4:
                intervals[i] = min(2 * intervals[i], _MOST_STEPS)
        if due:
            self._intervals.assign(intervals)
            self._changes.assign(changes)


def _variables_of(layer, add_weight):
    """The variables of the last error of a layer, and of the approximation then."""
    return [
        add_weight(
            shape=layer.inverse_kernel.shape,
            initializer="zeros",
            dtype=layer.dtype.name,
            trainable=False,
            name=f"{name}_{layer.name}",
        )
        for name in ("gradient_error", "approximate_gradient")
    ]
