"""`ScoringModel`, the log density of a distribution as the call of a Keras layer."""

import contextlib
from typing import Any

import tensorflow as tf

from tfp_selfnorm.bijectors.pair_memory import keeping_values
from tfp_selfnorm.inverse_learning.base import InverseLearning
from tfp_selfnorm.inverse_learning.known_log_dets import known_log_dets
from tfp_selfnorm.inverse_learning.reconstruction_weight import ReconstructionWeights
from tfp_selfnorm.inverse_learning.scope import current_scope, recording_scope
from tfp_selfnorm.model.distribution_model import DistributionModel
from tfp_selfnorm.model.log_det_cache import LogDetCache
from tfp_selfnorm.model.update_guard import UpdateGuard
from tfp_selfnorm.utils.checks import check_events
from tfp_selfnorm.utils.compat import could_record_gradients
from tfp_selfnorm.utils.types import Array


class ScoringModel(DistributionModel):
    """Scores events in its call, and adds its regularizer; `FlowTrainer` sets the attributes."""

    _inverse_learning: InverseLearning | None
    _learning: InverseLearning
    _self_norm_layers: tuple
    _regularized_layers: list
    _regularizer_weights: ReconstructionWeights
    _guard: UpdateGuard
    _log_dets: LogDetCache

    @property
    def inverse_learning(self) -> InverseLearning | None:
        """How R follows W, as the model was made."""
        return self._inverse_learning

    def call(self, x: Array, training: bool | None = None) -> tf.Tensor:
        """Returns the log density of each event: exact, or the surrogate of the open training scope.

        In a bigger model, outside a scope, value and gradient are exact, at O(D^3) for each layer and call.
        The regularizer is added by `add_loss`, in training and in evaluation, as Keras adds regularizers of
        weights. Each call in training advances a weight that adapts or has a schedule. If the bigger model
        does not pass `training` on, a call under an open gradient tape is in training.
        """
        return self._score(x, training, {})

    def _score(self, x, training, arguments):
        """The result of `call`, with further arguments for `log_prob` of the distribution."""
        x = tf.identity(check_events(x, self.distribution))
        distribution = self.distribution if training else self.inference_distribution
        scope = current_scope()
        with keeping_values():
            if scope is None and self._regularized_layers:
                return self._log_prob_of_a_bigger_model(distribution, x, training, arguments)
            if scope is not None:
                self._check_scope(scope)
            log_prob = distribution.log_prob(x, **arguments)
            if scope is not None and scope.passes:
                self._add_regularizer(scope, self._iterations())
        return log_prob

    def _log_prob_of_a_bigger_model(self, distribution, x, training, arguments):
        is_training = could_record_gradients() if training is None else training
        with recording_scope(self.inverse_learning, self._step_seed()) as scope:
            log_prob = distribution.log_prob(x, **arguments)
            if is_training:
                self._guard.steps.assign_add(1)
            if scope.passes:
                self._add_regularizer(scope, self._guard.steps)
        if is_training and self._regularizer_weights.is_adaptive:
            if tf.distribute.get_strategy().num_replicas_in_sync > 1:
                raise ValueError(
                    f"`{self.name}` is a layer of a bigger model, on several replicas. There its "
                    "`AdaptiveWeight` cannot be updated. Give the `Reconstruction` a number or a schedule."
                )
            errors = scope.reconstruction_errors()
            are_finite = tf.reduce_all([tf.math.is_finite(error) for error in errors.values()])
            self._regularizer_weights.update(errors, are_finite)
        return log_prob

    def _density(self, x, arguments):
        """The exact log density, or the surrogate of the open scope.

        In eager code without a tape the log-dets are those that the last call computed, if W is the same.
        """
        x = tf.identity(check_events(self._frames.ordered(x, "x"), self.distribution))
        known: contextlib.AbstractContextManager = contextlib.nullcontext()
        if tf.executing_eagerly() and current_scope() is None and not could_record_gradients():
            known = known_log_dets(self._log_dets.read())
        with keeping_values(), known:
            return self.inference_distribution.log_prob(x, **arguments)

    def _check_scope(self, scope):
        """Raises ValueError if a regularizer has no effect, because the model tracks R without gradients."""
        for layer in self._self_norm_layers:
            if self._learning.tracks(layer) and scope.learning.regularizer(layer) is not None:
                raise ValueError(
                    f"`inverse_learning` of the open `training_scope` must be as in the FlowModel, "
                    f"{self.inverse_learning!r}; got {scope.inverse_learning!r}, and no gradient reaches "
                    f"`forward_kernel` of `{layer.name}`."
                )

    def _add_regularizer(self, scope, step):
        layers = [la for la in self._regularized_layers if scope.learning.regularizer(la) is not None]
        if layers:
            weight = {layer: self._learning.regularizer(layer).weight for layer in layers}
            if self._regularizer_weights.changes:
                weight = self._regularizer_weights.read(tf.convert_to_tensor(step))
            self.add_loss(scope.reconstruction_loss(weight, layers))

    def _iterations(self) -> Any:
        """The number of updates, for schedules."""
        return 0 if self.optimizer is None else tf.convert_to_tensor(self.optimizer.iterations)

    def _step_seed(self):
        """The seed of the probes of a step: a training that goes on from a file has the same ones."""
        return tf.stack([0, tf.cast(tf.convert_to_tensor(self._guard.steps), tf.int32)])

    def _can_use_xla(self, is_training):
        """Whether XLA computes the log-dets well. Exact ones that depend on the events are slow there."""
        layers = [layer for layer in self._self_norm_layers if not layer.is_constant_jacobian]
        return is_training and all(layer.gradient != "exact" for layer in layers) or not layers

    def make_test_function(self, force: bool = False) -> None:
        """Makes Keras's function, without XLA where it is slow at the exact log-dets."""
        with self._choosing_xla():
            super().make_test_function(force=force)

    def make_predict_function(self, force: bool = False) -> None:
        """Makes Keras's function, without XLA where it is slow at the exact log-dets."""
        with self._choosing_xla():
            super().make_predict_function(force=force)

    @contextlib.contextmanager
    def _choosing_xla(self):
        jit_compile = bool(super().jit_compile)
        self.jit_compile = jit_compile and self._can_use_xla(is_training=False)
        try:
            yield
        finally:
            self.jit_compile = jit_compile
