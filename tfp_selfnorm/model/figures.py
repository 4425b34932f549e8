"""The figures of the progress bar."""

import keras
import numpy as np
import tensorflow as tf

from tfp_selfnorm import images

# In training the reconstruction error is estimated from so many examples, where no loss needs it.
_ERROR_EXAMPLES = 8


class MeanFigure(keras.metrics.Mean):
    """A mean for the progress bar; NaN where nothing was measured."""

    def result(self):
        """The mean."""
        mean = super().result()
        is_measured = tf.convert_to_tensor(self.count) > 0.0
        return tf.where(is_measured, mean, tf.constant(np.nan, mean.dtype))


class Figures:
    """The metrics of a flow in training, and what each step adds to them.

    Args:
      event_shape: that of the distribution.
      has_bits_per_dim: whether there are bits per dimension.
      has_inverse: whether a layer needs its learned inverse, so that there is a reconstruction error.
      has_weight: whether the weight of a regularizer changes from step to step.
      is_tracked: whether a learned inverse is tracked, so that there is its error.
    """

    def __init__(self, event_shape, has_bits_per_dim, has_inverse, has_weight, is_tracked):
        self._event_shape = event_shape
        self.loss = MeanFigure("loss")
        self._nll = MeanFigure("nll")
        self._bits_per_dim = MeanFigure("bits_per_dim") if has_bits_per_dim else None
        self._reconstruction = MeanFigure("reconstruction") if has_inverse else None
        self._weight = MeanFigure("reconstruction_weight") if has_weight else None
        self._inverse_error = MeanFigure("inverse_error") if is_tracked else None
        self._skipped_updates = keras.metrics.Sum("skipped_updates")

    @property
    def metrics(self) -> list:
        """The metrics, in the order of the progress bar."""
        metrics = [self.loss, self._nll, self._bits_per_dim, self._reconstruction, self._weight]
        return [m for m in (*metrics, self._inverse_error, self._skipped_updates) if m is not None]

    def without_training(self, results) -> dict:
        """The results of an evaluation, without the figures that only training has."""
        only_training = {m.name for m in (self._weight, self._skipped_updates) if m is not None}
        return {name: result for name, result in results.items() if name not in only_training}

    def update(self, log_prob, sample_weight, loss, scope, is_training, is_applied=True) -> None:
        """Adds a batch; a step that was not applied weighs nothing.

        Args:
          log_prob: the log density of each event.
          sample_weight: weights of the events, or `None`.
          loss: scalar.
          scope: the `TrainingScope` of the step.
          is_training: whether it is a step of training.
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
        add(self.loss, loss * num_replicas, count)
        add(self._nll, nll, total)
        if self._bits_per_dim is not None:
            add(self._bits_per_dim, images.bits_per_dim(-nll, self._event_shape), total)
        if self._reconstruction is not None and scope.passes and scope.sees_passes:
            is_full = scope.passes[0].error is not None or not is_training
            add(self._reconstruction, scope.reconstruction_error(None if is_full else _ERROR_EXAMPLES), count)
        if is_training:
            self._skipped_updates.update_state(tf.cast(~is_applied, tf.float32) / num_replicas)

    def update_weight(self, weights, step) -> None:
        """Adds the weight of the regularizer at a step, from `ReconstructionWeights`."""
        if self._weight is not None:
            self._weight.update_state(weights.mean(step))

    def update_inverse_errors(self, errors) -> None:
        """Adds the relative errors of tracked inverses, a vector."""
        if self._inverse_error is not None:
            self._inverse_error.update_state(errors)


def example_weights(log_prob, sample_weight):
    """One weight an example, whatever the batch shape of the distribution."""
    weights = tf.ones_like(log_prob)
    if sample_weight is None:
        return weights
    shape = [-1] + [1] * (log_prob.shape.rank - 1)
    return weights * tf.reshape(tf.cast(sample_weight, log_prob.dtype), shape)
