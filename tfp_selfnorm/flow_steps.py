"""The steps of a `FlowModel`: one batch of training, of evaluation, of prediction."""

import warnings

import keras
import numpy as np
import tensorflow as tf

from tfp_selfnorm import images
from tfp_selfnorm.checks import check_events
from tfp_selfnorm.fit_data import unpack
from tfp_selfnorm.tracking import inverse_error, refresh_inverse, sketch_and_project
from tfp_selfnorm.training_scope import current_scope, training_scope

# The reconstruction error on the progress bar is estimated from so many examples where no loss needs it.
_ERROR_EXAMPLES = 8


class FlowSteps:
    """What Keras compiles, and what the host does between: refreshes in O(D^3), and a look at the guard."""

    # Until `compile`.
    optimizer = None

    def call(self, x, training=False):
        """The log density of each event: exact, or the surrogate of the training scope that is open."""
        log_prob = self.distribution.log_prob(tf.identity(check_events(x, self.distribution)))
        scope = current_scope()
        if scope is None or not scope.records:
            return log_prob
        if any(self._reconstruction_of(layer) is not None for layer in scope.layers):
            self.add_loss(scope.reconstruction_loss(self._reconstruction_weights.read(self._iterations())))
        return log_prob

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The mean negative log-likelihood, weighted by `sample_weight`, plus the added losses."""
        nll, _ = _mean_nll(y_pred, sample_weight)
        loss = tf.add_n([nll, *(tf.cast(loss, nll.dtype) for loss in self.losses)])
        # Keras adds the gradients of the replicas up.
        return loss / tf.distribute.get_strategy().num_replicas_in_sync

    def train_step(self, data):
        """One step of the optimizer, and under tracking one update of each learned inverse.

        A step whose loss or gradients are not finite changes no weight; it counts for `skipped_updates` only.
        """
        x, y, sample_weight = unpack(data)
        kept = [(variable.value, tf.identity(variable.value)) for variable in self._moving_variables]
        variables = self.trainable_variables
        self._build_optimizer()
        with self._open_scope() as scope, tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x, y, y_pred, sample_weight, training=True)
            scaled_loss = self.optimizer.scale_loss(loss)
        if self._mean_weight is not None:
            self._mean_weight.update_state(self._reconstruction_weights.mean(self._iterations()))
        if variables:
            is_finite = self._guard.apply(
                self.optimizer,
                tape.gradient(scaled_loss, variables),
                variables,
                loss,
                _suspects(x, y_pred, scope),
                kept,
            )
        else:
            warnings.warn(
                "The model has no trainable weights: it is measured, and not trained.", stacklevel=2
            )
            is_finite = tf.constant(True)
        self._skipped_updates.update_state(
            tf.cast(~is_finite, tf.float32) / tf.distribute.get_strategy().num_replicas_in_sync
        )
        self._update_figures(y_pred, sample_weight, loss, scope, True, is_finite)
        if self._reconstruction_weights.is_adaptive:
            self._reconstruction_weights.update(scope.reconstruction_errors(), is_finite)
        for i, layer in enumerate(self._tracked_self_norm):
            seed = tf.stack([i, tf.convert_to_tensor(self._guard.steps)])
            error = sketch_and_project(layer, self.inverse_learning.num_probes, seed)
            self._inverse_error.update_state(error)
        return self._figures()

    def test_step(self, data):
        """The figures of one batch, from the held log-dets."""
        x, y, sample_weight = unpack(data)
        with self._open_scope() as scope:
            y_pred = self(x, training=False)
            loss = self.compute_loss(x, y, y_pred, sample_weight, training=False)
        self._update_figures(y_pred, sample_weight, loss, scope, False)
        for i, layer in enumerate(self._tracked_self_norm):
            error = inverse_error(layer, self.inverse_learning.num_probes, seed=i)
            self._inverse_error.update_state(error)
        return self._figures()

    def predict_step(self, data):
        """The log densities of one batch, from the held log-dets."""
        with self._open_scope():
            return super().predict_step((unpack(data).x,))

    def make_train_function(self, force=False):
        """Keras's, with what must not be compiled before and after each call."""
        if self.train_function is not None and not force:
            return
        self._build_optimizer()
        super().make_train_function(force=force)
        compiled_steps = self.train_function

        def train_function(iterator):
            self._refresh_when_due()
            logs = compiled_steps(iterator)
            if self._step % self._guard.max_skipped < self.steps_per_execution:
                self._check_guard()
            return logs

        self.train_function = train_function

    def get_metrics_result(self):
        """Keras's, without the figures that only training has; NaN where nothing was measured."""
        figures = super().get_metrics_result()
        for metric in self.metrics:
            if metric in (self._skipped_updates, self._mean_weight):
                if self._is_evaluating:
                    del figures[metric.name]
            elif isinstance(metric, keras.metrics.Mean):
                figure = tf.convert_to_tensor(figures[metric.name])
                is_measured = tf.convert_to_tensor(metric.count) > 0.0
                figures[metric.name] = tf.where(is_measured, figure, tf.constant(np.nan, figure.dtype))
        return figures

    def _figures(self):
        figures = self.get_metrics_result()
        strategy = tf.distribute.get_strategy()
        is_multi_worker = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        if is_multi_worker and strategy.extended._in_multi_worker_mode():
            # Keras takes the mean over the first dimension, too, and scalars have none.
            figures = {name: tf.reshape(figure, [1]) for name, figure in figures.items()}
        return figures

    def _update_figures(self, log_prob, sample_weight, loss, scope, training, is_valid=True):
        """Feeds the metrics; a step that is not valid weighs nothing."""

        def update(metric, value, weight):
            value, weight = (tf.where(is_valid, v, tf.zeros([], v.dtype)) for v in (value, weight))
            metric.update_state(value, sample_weight=weight)

        nll, total = _mean_nll(log_prob, sample_weight)
        count = tf.cast(tf.shape(log_prob)[0], nll.dtype)
        update(self._loss_tracker, loss * tf.distribute.get_strategy().num_replicas_in_sync, count)
        update(self._nll, nll, total)
        if self._bits_per_dim is not None:
            update(self._bits_per_dim, images.bits_per_dim(-nll, self.distribution.event_shape), total)
        if self._reconstruction is not None and scope.records and scope.sees_records:
            is_full = scope.records[0].error is not None or not training
            error = scope.reconstruction_error(None if is_full else _ERROR_EXAMPLES)
            update(self._reconstruction, error, count)

    def _open_scope(self):
        seed = tf.stack([0, tf.convert_to_tensor(self._guard.steps)])
        return training_scope(self.inverse_learning, self._held_log_dets.read(), seed)

    def _iterations(self):
        """How many updates there were, for schedules."""
        return 0 if self.optimizer is None else tf.convert_to_tensor(self.optimizer.iterations)

    def _refresh_when_due(self):
        """Host side of the training step: what costs O(D^3) stays out of the compiled graph."""
        # An execution of several steps may have ended with the data; one of a single step has not.
        if self._step is None or self.steps_per_execution > 1:
            self._step = int(self._guard.steps.numpy())

        def is_due(layer):
            interval = self._tracking.interval(layer) if self._tracking else layer.refresh_interval
            return self._step % interval < self.steps_per_execution

        for layer in filter(is_due, self._tracked_self_norm):
            refresh_inverse(layer)
        self._held_log_dets.refresh(is_due)
        self._step += self.steps_per_execution

    def _build_optimizer(self, names=None):
        """Makes the optimizer's variables, for the trainable variables or those of the names."""
        # Variables made inside the compiled step would have Keras trace it twice.
        if self.optimizer.built:
            return
        variables = self.trainable_variables
        if names is not None:
            variables = [variable for variable in self._adopted if variable.name in names]
        with self.distribute_strategy.scope():
            self.optimizer.build(variables)
        self._optimized_variables = [variable.name for variable in variables]

    def _check_guard(self):
        self._guard.check(int(self.optimizer.iterations.numpy()))


def _mean_nll(log_prob, sample_weight):
    """The negative log-likelihood, a mean by weights over the batch, and the sum of the weights."""
    weights = tf.ones_like(log_prob)
    if sample_weight is not None:
        # One weight an example, whatever the batch shape of the distribution.
        shape = [-1] + [1] * (log_prob.shape.rank - 1)
        weights *= tf.reshape(tf.cast(sample_weight, log_prob.dtype), shape)
    total = tf.reduce_sum(weights)
    return -tf.math.divide_no_nan(tf.reduce_sum(weights * log_prob), total), total


def _suspects(x, log_prob, scope):
    """What a step computes, in its order, for `UpdateGuard`."""
    passes = scope.records if scope.sees_records else []
    outputs = [(f"the output of `{record.layer.name}`", record.output) for record in passes]
    return [("the data", x), *outputs, ("the log-likelihood", log_prob)]
