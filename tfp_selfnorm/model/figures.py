"""The figures of the progress bar."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_selfnorm import images
from tfp_selfnorm.inverse_learning.reconstruction import Reconstruction
from tfp_selfnorm.inverse_learning.reconstruction_weight import ReconstructionWeights
from tfp_selfnorm.inverse_learning.scope import TrainingScope

# In training this number of examples gives the error of a layer, unless the loss needs it for all.
_ERROR_EXAMPLES = 8
_ONLY_TRAINING = ("reconstruction_weight", "skipped_updates")


class MeanFigure(keras.metrics.Mean):
    """A mean for the progress bar; NaN if nothing was measured."""

    def result(self) -> tf.Tensor:
        """Returns the mean."""
        mean = super().result()
        is_measured = tf.convert_to_tensor(self.count) > 0.0
        return tf.where(is_measured, mean, tf.constant(np.nan, mean.dtype))


class Figures:
    """The metrics of a flow, and their update by each step.

    Args:
      event_shape: the event shape of the distribution.
      **shown: for `bits_per_dim`, `reconstruction`, `reconstruction_weight` and `inverse_error`, whether the
        figure is shown; in the order of the progress bar.

    Attributes:
      metrics: the metrics, in the order of the progress bar.
    """

    def __init__(self, event_shape: tf.TensorShape, **shown: bool) -> None:
        self._event_shape = event_shape
        names = ["loss", "nll", *(name for name, is_shown in shown.items() if is_shown)]
        self._means = {name: MeanFigure(name) for name in names}
        self._skipped_updates = keras.metrics.Sum("skipped_updates")
        self.metrics: list[keras.Metric] = [*self._means.values(), self._skipped_updates]

    def without_training(self, results: dict[str, Any]) -> dict[str, Any]:
        """Returns the results of an evaluation, without the figures of training alone."""
        return {name: result for name, result in results.items() if name not in _ONLY_TRAINING}

    def update(
        self,
        log_prob: tf.Tensor,
        sample_weight: tf.Tensor | None,
        loss: tf.Tensor,
        scope: TrainingScope,
        is_training: bool,
        is_applied: bool | tf.Tensor = True,
    ) -> None:
        """Adds a batch; a skipped step has weight 0.

        Args:
          log_prob: the log density of each event.
          sample_weight: weights of the events, or `None`.
          loss: scalar.
          scope: the `TrainingScope` of the step.
          is_training: whether it is a training step.
          is_applied: scalar of bool, whether the weights were updated.
        """

        def add(name, value, weight):
            value, weight = (tf.where(is_applied, v, tf.zeros([], v.dtype)) for v in (value, weight))
            self._means[name].update_state(value, sample_weight=weight)

        weights = example_weights(log_prob, sample_weight)
        total = tf.reduce_sum(weights)
        nll = -tf.math.divide_no_nan(tf.reduce_sum(weights * log_prob), total)
        count = tf.cast(tf.shape(log_prob)[0], nll.dtype)
        num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
        add("loss", loss * num_replicas, count)
        add("nll", nll, total)
        if "bits_per_dim" in self._means:
            add("bits_per_dim", images.bits_per_dim(-nll, self._event_shape), total)
        if "reconstruction" in self._means and scope.passes and scope.sees_passes:
            errors = [
                Reconstruction.error(p, _ERROR_EXAMPLES if is_training and p.error is None else None)
                for p in scope.passes
            ]
            add("reconstruction", tf.stop_gradient(tf.add_n(errors)), count)
        if is_training:
            self._skipped_updates.update_state(tf.cast(~is_applied, tf.float32) / num_replicas)

    def update_weight(self, weights: ReconstructionWeights, step: int | tf.Tensor) -> None:
        """Adds the weight of the regularizer at a step."""
        if "reconstruction_weight" in self._means:
            self._means["reconstruction_weight"].update_state(weights.mean(step))

    def update_inverse_errors(self, errors: tf.Tensor) -> None:
        """Adds the relative errors of each tracked R, a vector."""
        if "inverse_error" in self._means:
            self._means["inverse_error"].update_state(errors)


def example_weights(log_prob: tf.Tensor, sample_weight: tf.Tensor | None) -> tf.Tensor:
    """Returns weights of the shape of `log_prob`, which has the batch shape of the distribution too."""
    weights = tf.ones_like(log_prob)
    if sample_weight is None:
        return weights
    # Keras repeats them for each part of a structure of labels.
    sample_weight = keras.tree.flatten(sample_weight)[0]
    shape = [-1] + [1] * (log_prob.shape.rank - 1)
    return weights * tf.reshape(tf.cast(sample_weight, log_prob.dtype), shape)
