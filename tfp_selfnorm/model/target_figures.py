"""The figures of a training on a target density."""

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.model.figures import MeanFigure


class ImportanceFigures(keras.metrics.Metric):
    """The importance estimate `log_z`, and the effective fraction `ess`, of all samples since the reset.

    With the weights w = target / density of the samples, `log_z` is the log of the mean of w, in nats. `ess`
    is (sum of w)^2 / (number times sum of w^2), in (0, 1] (Kong, "A note on importance sampling using
    standardized weights", 1992).
    """

    def __init__(self) -> None:
        super().__init__(name="importance", dtype="float64")
        initializer = keras.initializers.Constant(-np.inf)
        self._sum = self.add_variable([], initializer, name="log_sum", dtype="float64")
        self._sum_of_squares = self.add_variable([], initializer, name="log_sum_of_squares", dtype="float64")
        self._count = self.add_variable([], "zeros", name="count", dtype="float64")

    def update_state(self, log_weights: tf.Tensor, is_applied: tf.Tensor) -> None:
        """Adds the samples of a step, unless it was skipped."""
        log_weights = tf.reshape(tf.cast(log_weights, tf.float64), [-1])
        log_weights = tf.where(is_applied, log_weights, tf.constant(-np.inf, tf.float64))
        for variable, power in ((self._sum, 1.0), (self._sum_of_squares, 2.0)):
            total = tf.reduce_logsumexp(power * log_weights)
            variable.assign(tfp.math.log_add_exp(tf.convert_to_tensor(variable), total))
        count = tf.cast(tf.size(log_weights), tf.float64)
        self._count.assign_add(tf.where(is_applied, count, tf.zeros_like(count)))

    def reset_state(self) -> None:
        """Begins again. Keras would set the logs of the sums to 0, which are then those of a weight of 1."""
        super().reset_state()
        for variable in (self._sum, self._sum_of_squares):
            variable.assign(-np.inf)

    def result(self) -> dict[str, tf.Tensor]:
        """Returns the two figures; NaN if nothing was measured."""
        log_sum, log_count = tf.convert_to_tensor(self._sum), tf.math.log(tf.convert_to_tensor(self._count))
        ess = tf.exp(2.0 * log_sum - tf.convert_to_tensor(self._sum_of_squares) - log_count)
        return {"log_z": log_sum - log_count, "ess": ess}


class TargetFigures:
    """The metrics of a training on a target.

    Args:
      has_conditions: whether the samples are of several conditions, in the last dimension. The figures are
        then means over conditions and steps of the figures of each, which are of few samples.

    Attributes:
      metrics: the metrics, in the order of the progress bar.
    """

    def __init__(self, has_conditions: bool) -> None:
        self._loss, self._skipped_updates = MeanFigure("loss"), keras.metrics.Sum("skipped_updates")
        self._importance = None if has_conditions else ImportanceFigures()
        self._means = [MeanFigure("log_z"), MeanFigure("ess")] if has_conditions else []
        shown = self._means if has_conditions else [self._importance]
        self.metrics: list[keras.metrics.Metric] = [self._loss, *shown, self._skipped_updates]

    def update(self, loss: tf.Tensor, log_weights: tf.Tensor, is_applied: tf.Tensor) -> None:
        """Adds a step; a skipped one counts in `skipped_updates` alone.

        Args:
          loss: scalar.
          log_weights: log density of the target minus that of the flow, for each sample.
          is_applied: scalar of bool, whether the weights were updated.
        """
        _add(self._loss, loss, is_applied)
        self._skipped_updates.update_state(tf.cast(~is_applied, tf.float32))
        if self._importance is not None:
            self._importance.update_state(log_weights, is_applied)
            return
        log_count = tf.math.log(tf.cast(tf.shape(log_weights)[0], log_weights.dtype))
        log_sum, log_squares = (tf.reduce_logsumexp(p * log_weights, axis=0) for p in (1.0, 2.0))
        for mean, value in zip(
            self._means, (log_sum - log_count, tf.exp(2.0 * log_sum - log_squares - log_count)), strict=True
        ):
            _add(mean, tf.reduce_mean(value), is_applied)


def _add(mean, value, is_applied):
    zero = tf.zeros_like(value)
    mean.update_state(tf.where(is_applied, value, zero), sample_weight=tf.cast(is_applied, value.dtype))
