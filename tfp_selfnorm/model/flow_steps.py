"""The steps of a `FlowModel`: one batch of training, of evaluation, of prediction."""

import warnings

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record

from tfp_selfnorm import images
from tfp_selfnorm.bijectors.passes import keeping_values
from tfp_selfnorm.inverse_learning.scope import current_scope, recording_scope, training_scope
from tfp_selfnorm.inverse_learning.tracking import inverse_error, sketch_and_project
from tfp_selfnorm.model.data import unpack
from tfp_selfnorm.utils.checks import check_events

# The reconstruction error on the progress bar is estimated from so many examples where no loss needs it.
_ERROR_EXAMPLES = 8


class MeanFigure(keras.metrics.Mean):
    """A mean for the progress bar; NaN where nothing was measured."""

    def result(self):
        """The mean."""
        mean = super().result()
        is_measured = tf.convert_to_tensor(self.count) > 0.0
        return tf.where(is_measured, mean, tf.constant(np.nan, mean.dtype))


class FlowSteps:
    """What Keras compiles, and what the host does between: refreshes in O(D^3), and a look at the guard."""

    # Until `compile`.
    optimizer = None

    def call(self, x, training=None):
        """The log density of each event: exact, or the surrogate of the training scope that is open.

        Called by a bigger model its gradient is exact too, at O(D^3) for each layer and call, and the
        regularizer is added by `add_loss`, as Keras adds those of weights, in training and in evaluation. A
        weight that adapts or is scheduled goes on at each call in training; where a bigger model does not
        pass `training` on, that is where a gradient tape is open.
        """
        x = tf.identity(check_events(x, self.distribution))
        with keeping_values():
            return self._call_of_fresh_events(x, training)

    def _call_of_fresh_events(self, x, training):
        distribution = self.distribution if training else self.inference_distribution
        scope = current_scope()
        if scope is None and self._regularized_layers:
            return self._call_of_a_bigger_model(distribution, x, training)
        if scope is not None:
            self._check_scope(scope)
        log_prob = distribution.log_prob(x)
        if scope is not None and scope.records:
            self._add_reconstruction_loss(scope, self._iterations())
        return log_prob

    def _call_of_a_bigger_model(self, distribution, x, training):
        is_training = record.could_possibly_record() if training is None else training
        with recording_scope(self.inverse_learning) as scope:
            log_prob = distribution.log_prob(x)
            if is_training:
                self._guard.steps.assign_add(1)
            if scope.records:
                self._add_reconstruction_loss(scope, self._guard.steps)
        if is_training:
            self._adapt_reconstruction_weights(scope)
        return log_prob

    def _check_scope(self, scope):
        """A regularizer would teach nothing where the model tracks R, and so keeps it from gradients."""
        for layer in self._tracked_self_norm:
            if scope.reconstruction(layer) is not None:
                raise ValueError(
                    f"The open `training_scope` has inverse_learning {scope.inverse_learning!r}, and the "
                    f"FlowModel that is called in it {self.inverse_learning!r}: no gradient reaches "
                    f"`forward_kernel` of `{layer.name}`. Give both the same."
                )

    def _add_reconstruction_loss(self, scope, step):
        layers = [layer for layer in self._regularized_layers if scope.reconstruction(layer) is not None]
        if layers:
            weight = self._reconstruction_weights.read(tf.convert_to_tensor(step))
            self.add_loss(scope.reconstruction_loss(weight, layers))

    def _adapt_reconstruction_weights(self, scope):
        if self._reconstruction_weights.is_adaptive:
            errors = scope.reconstruction_errors()
            are_finite = tf.reduce_all([tf.math.is_finite(error) for error in errors.values()])
            self._reconstruction_weights.update(errors, are_finite)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The mean of the weighted negative log-likelihoods over the batch, plus the added losses.

        As Keras has it, the weighted sum is divided by the number of examples: so the weights of a batch
        count against those of other batches, and the optimum does not depend on how the data fall into
        batches.
        """
        weights = _weights(y_pred, sample_weight)
        count = tf.cast(tf.size(y_pred), y_pred.dtype)
        nll = -tf.math.divide_no_nan(tf.reduce_sum(weights * y_pred), count)
        losses = self.losses
        if any(map(_is_out_of_reach, losses)):
            raise ValueError(
                "A network of the flow adds a loss inside a `tf.function`, such as an activity regularizer, "
                "which is out of reach outside of it. Call the network without `tf.function`: `fit` compiles "
                "all of the step."
            )
        loss = tf.add_n([nll, *(tf.cast(loss, nll.dtype) for loss in losses)])
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
                dict(zip(self._names(variables), variables, strict=True)),
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
            try:
                logs = compiled_steps(iterator)
            finally:
                self._refresh.after_steps()
            if self._step % self._guard.max_skipped < self.steps_per_execution:
                self._check_guard()
            return logs

        self.train_function = train_function

    def make_test_function(self, force=False):
        """Keras's, with exact log-dets at the start of an evaluation, after its callbacks have begun."""
        if self.test_function is None or force:
            super().make_test_function(force=force)
            self.test_function = self._with_exact_log_dets(self.test_function)

    def make_predict_function(self, force=False):
        """Keras's, with exact log-dets at the start of a prediction, after its callbacks have begun."""
        if self.predict_function is None or force:
            super().make_predict_function(force=force)
            self.predict_function = self._with_exact_log_dets(self.predict_function)

    def _with_exact_log_dets(self, compiled_steps):
        def steps(iterator):
            if self._evaluation_begins:
                self._evaluation_begins = False
                self._refresh.before_evaluation()
            return compiled_steps(iterator)

        return steps

    def get_metrics_result(self):
        """Keras's, without the figures that only training has."""
        figures = super().get_metrics_result()
        for metric in (self._skipped_updates, self._mean_weight):
            if self._is_evaluating and metric is not None:
                del figures[metric.name]
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
        return training_scope(self.inverse_learning, self._refresh.read(), seed)

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

        self._refresh.before_steps(is_due)
        self._step += self.steps_per_execution

    def _build_optimizer(self, names=None):
        """Makes the optimizer's variables, for the trainable variables or those of the names."""
        # Variables made inside the compiled step would have Keras trace it twice.
        if self.optimizer.built:
            return
        variables = self.trainable_variables
        if names is not None:
            variables = [variable for name, variable in self._adopted.items() if name in names]
        with self.distribute_strategy.scope():
            self.optimizer.build(variables)
        self._optimized_variables = self._names(variables)

    def _check_guard(self):
        self._guard.check(int(self.optimizer.iterations.numpy()))


def _weights(log_prob, sample_weight):
    """One weight an example, whatever the batch shape of the distribution."""
    weights = tf.ones_like(log_prob)
    if sample_weight is None:
        return weights
    shape = [-1] + [1] * (log_prob.shape.rank - 1)
    return weights * tf.reshape(tf.cast(sample_weight, log_prob.dtype), shape)


def _is_out_of_reach(tensor):
    """Whether the tensor is of a graph that is neither the present one nor around it."""
    if not tf.is_symbolic_tensor(tensor):
        return False
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None and graph is not tensor.graph:
        graph = getattr(graph, "outer_graph", None)
    return graph is None


def _mean_nll(log_prob, sample_weight):
    """The negative log-likelihood, a mean by weights over the batch, and the sum of the weights."""
    weights = _weights(log_prob, sample_weight)
    total = tf.reduce_sum(weights)
    return -tf.math.divide_no_nan(tf.reduce_sum(weights * log_prob), total), total


def _suspects(x, log_prob, scope):
    """What a step computes, in its order, for `UpdateGuard`."""
    passes = scope.records if scope.sees_records else []
    outputs = [(f"the output of `{record.layer.name}`", record.output) for record in passes]
    return [("the data", x), *outputs, ("the log-likelihood", log_prob)]
