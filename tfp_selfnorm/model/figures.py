"""The figures of the progress bar."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_selfnorm import images
from tfp_selfnorm.inverse_learning.reconstruction_weight import ReconstructionWeights
from tfp_selfnorm.inverse_learning.scope import TrainingScope

# In training this number of examples gives the reconstruction error, unless the loss needs it for all.
_ERROR_EXAMPLES = 8


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
      has_bits_per_dim: whether bits per dimension are shown.
      has_inverse: whether a layer needs R: the reconstruction error is shown.
      has_weight: whether the weight of a regularizer changes from step to step: it is shown.
      is_tracked: whether an R is tracked: its error is shown.
    """

    def __init__(
        self,
        event_shape: tf.TensorShape,
        has_bits_per_dim: bool,
        has_inverse: bool,
        has_weight: bool,
        is_tracked: bool,
    ) -> None:
        self._event_shape = event_shape
        self._loss = MeanFigure("loss")
        self._nll = MeanFigure("nll")
        self._bits_per_dim = MeanFigure("bits_per_dim") if has_bits_per_dim else None
        self._reconstruction = MeanFigure("reconstruction") if has_inverse else None
        self._weight = MeanFigure("reconstruction_weight") if has_weight else None
        self._inverse_error = MeanFigure("inverse_error") if is_tracked else None
        self._skipped_updates = keras.metrics.Sum("skipped_updates")

    @property
    def metrics(self) -> list[keras.Metric]:
        """The metrics, in the order of the progress bar."""
        metrics = [self._loss, self._nll, self._bits_per_dim, self._reconstruction, self._weight]
        return [m for m in (*metrics, self._inverse_error, self._skipped_updates) if m is not None]

    def without_training(self, results: dict[str, Any]) -> dict[str, Any]:
        """Returns the results of an evaluation, without the figures of training alone."""
        only_training = {m.name for m in (self._weight, self._skipped_updates) if m is not None}
        return {name: result for name, result in results.items() if name not in only_training}

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

        def add(metric, value, weight):
            value, weight = (tf.where(is_applied, v, tf.zeros([], v.dtype)) for v in (value, weight))
            metric.update_state(value, sample_weight=weight)

        weights = example_weights(log_prob, sample_weight)
        total = tf.reduce_sum(weights)
        nll = -tf.math.divide_no_nan(tf.reduce_sum(weights * log_prob), total)
        count = tf.cast(tf.shape(log_prob)[0], nll.dtype)
        num_replicas = tf.distribute.get_strategy().num_replicas_in_sync
        add(self._loss, loss * num_replicas, count)
        add(self._nll, nll, total)
        if self._bits_per_dim is not None:
            add(self._bits_per_dim, images.bits_per_dim(-nll, self._event_shape), total)
        if self._reconstruction is not None and scope.passes and scope.sees_passes:
            is_full = scope.passes[0].error is not None or not is_training
            add(self._reconstruction, scope.reconstruction_error(None if is_full else _ERROR_EXAMPLES), count)
        if is_training:
            self._skipped_updates.update_state(tf.cast(~is_applied, tf.float32) / num_replicas)

    def update_weight(self, weights: ReconstructionWeights, step: int | tf.Tensor) -> None:
        """Adds the weight of the regularizer at a step."""
        if self._weight is not None:
            self._weight.update_state(weights.mean(step))

    def update_inverse_errors(self, errors: tf.Tensor) -> None:
        """Adds the relative errors of each tracked R, a vector."""
        if self._inverse_error is not None:
            self._inverse_error.update_state(errors)


def example_weights(log_prob: tf.Tensor, sample_weight: tf.Tensor | None) -> tf.Tensor:
    """Returns weights of the shape of `log_prob`, which has the batch shape of the distribution too."""
    weights = tf.ones_like(log_prob)
    if sample_weight is None:
        return weights
    shape = [-1] + [1] * (log_prob.shape.rank - 1)
    return weights * tf.reshape(tf.cast(sample_weight, log_prob.dtype), shape)
