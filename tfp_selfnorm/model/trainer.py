"""`FlowTrainer`, the training of a distribution by Keras."""

import functools

import keras
import tensorflow as tf

from tfp_selfnorm.bijectors.pair_memory import keeping_values
from tfp_selfnorm.flows.networks import computes_in_float16
from tfp_selfnorm.inverse_learning.base import as_inverse_learning
from tfp_selfnorm.inverse_learning.reconstruction import Reconstruction
from tfp_selfnorm.inverse_learning.reconstruction_weight import ReconstructionWeights
from tfp_selfnorm.inverse_learning.scope import current_scope, recording_scope, training_scope
from tfp_selfnorm.model.data import unpack
from tfp_selfnorm.model.distribution_model import DistributionModel
from tfp_selfnorm.model.figures import Figures, example_weights
from tfp_selfnorm.model.refresh import Refresh
from tfp_selfnorm.model.update_guard import UpdateGuard
from tfp_selfnorm.structure.layers import at_inference
from tfp_selfnorm.structure.variables import find_layers_and_variables
from tfp_selfnorm.utils.checks import check_events
from tfp_selfnorm.utils.compat import could_record_gradients, is_step_of_many_workers
from tfp_selfnorm.utils.graphs import is_within_reach
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.options import check_bool


class FlowTrainer(DistributionModel):
    """Keras's training of a distribution; base of `FlowModel`, whose docstring says how both behave."""

    # Until `compile`.
    optimizer = None

    def __init__(self, distribution, inverse_learning, bits_per_dim, name):
        learning = as_inverse_learning(inverse_learning)
        check_bool(bits_per_dim, "bits_per_dim")
        super().__init__(distribution, name)
        self.inverse_learning, self._learning = inverse_learning, learning
        self.reports_bits_per_dim = bits_per_dim
        found = find_layers_and_variables(distribution)
        self._self_norm_layers = layers = tuple(found.layers)
        self._scales_loss = any(map(computes_in_float16, found.networks))
        untrained = [layer.forward_kernel for layer in layers if not learning.trains_inverse(layer)]
        self._take_variables(found, [kernel for kernel in untrained if isinstance(kernel, tf.Variable)])
        self._refresh = Refresh(layers, learning, self._named.add)
        self._guard = UpdateGuard(self._named.add_state)
        self._regularized_layers = [la for la in layers if learning.regularizer(la) is not None]
        regularizers = [learning.regularizer(layer) for layer in self._regularized_layers]
        self._regularizer_weights = ReconstructionWeights(
            regularizers[0] if regularizers else Reconstruction(),
            self._regularized_layers,
            self._named.add_state,
        )
        self._figures = Figures(
            distribution.event_shape,
            has_bits_per_dim=bits_per_dim,
            has_inverse=any(layer.needs_inverse for layer in layers),
            has_weight=self._regularizer_weights.changes,
            is_tracked=any(map(learning.tracks, layers)),
        )
        self.built = True

    def compile(
        self,
        optimizer="adam",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        run_eagerly=False,
        steps_per_execution=1,
        jit_compile="auto",
        auto_scale_loss=True,
        *,
        max_skipped_updates=10,
    ):
        """Keras's `compile`, without a loss or metrics: the model has its own.

        Args:
          optimizer: a Keras optimizer, or its name.
          loss: must be `None`, as `loss_weights`, `metrics` and `weighted_metrics` must.
          run_eagerly: as Keras's, and so is `steps_per_execution`.
          jit_compile: as Keras's. "auto" on the CPU leaves to XLA the update of large variables alone, by an
            optimizer of Keras; `False` leaves it nothing.
          auto_scale_loss: whether to scale the loss where a coupling network computes in float16.
          max_skipped_updates: training stops with a ValueError after so many steps in a row whose loss or
            gradients are not finite; single ones are skipped and counted.
        """
        given = {"loss": loss, "loss_weights": loss_weights, "metrics": metrics}
        for argument, value in {**given, "weighted_metrics": weighted_metrics}.items():
            if value is not None:
                raise ValueError(f"`{argument}` must be None: a FlowModel has its own; got {value!r}.")
        check_positive_int(max_skipped_updates, "max_skipped_updates")
        check_positive_int(steps_per_execution, "steps_per_execution")
        if optimizer is None:
            raise ValueError("`optimizer` must be a Keras optimizer, or the name of one; got None.")
        optimizer = keras.optimizers.get(optimizer)
        is_scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if auto_scale_loss and self._scales_loss and not is_scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        super().compile(
            optimizer=optimizer,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            auto_scale_loss=auto_scale_loss,
        )
        # Keras's own shows 0 where no step was measured; the loss is one of our figures.
        self._loss_tracker = None
        # Keras keeps no difference between "auto" and `False`.
        self._jit_compile_given = jit_compile
        self._guard.begin(max_skipped_updates, fuses=jit_compile is not False)
        self._optimized_variables = None
        self._refresh.forget_step()

    def get_compile_config(self):
        """What `compile` was given, and the names of the variables that the optimizer has a state for."""
        config = super().get_compile_config()
        if config:
            config["max_skipped_updates"] = self._guard.max_skipped
            config["jit_compile"] = self._jit_compile_given
            if self.optimizer.built:
                names = self._optimized_variables or self._named.names_of(self.trainable_variables)
                config["optimized_variables"] = list(names)
        return config

    def call(self, x, training=None):
        """The log density of each event: exact, or the surrogate of the training scope that is open.

        Called by a bigger model its gradient is exact too, at O(D^3) for each layer and call, and the
        regularizer is added by `add_loss`, as Keras adds those of weights, in training and in evaluation. A
        weight that adapts or is scheduled goes on at each call in training; where a bigger model does not
        pass `training` on, that is where a gradient tape is open.
        """
        x = tf.identity(check_events(x, self.distribution))
        distribution = self.distribution if training else self.inference_distribution
        scope = current_scope()
        with keeping_values():
            if scope is None and self._regularized_layers:
                return self._log_prob_of_a_bigger_model(distribution, x, training)
            if scope is not None:
                self._check_scope(scope)
            log_prob = distribution.log_prob(x)
            if scope is not None and scope.passes:
                self._add_regularizer(scope, self._iterations())
        return log_prob

    def _log_prob_of_a_bigger_model(self, distribution, x, training):
        is_training = could_record_gradients() if training is None else training
        with recording_scope(self.inverse_learning) as scope:
            log_prob = distribution.log_prob(x)
            if is_training:
                self._guard.steps.assign_add(1)
            if scope.passes:
                self._add_regularizer(scope, self._guard.steps)
        if is_training and self._regularizer_weights.is_adaptive:
            errors = scope.reconstruction_errors()
            are_finite = tf.reduce_all([tf.math.is_finite(error) for error in errors.values()])
            self._regularizer_weights.update(errors, are_finite)
        return log_prob

    def _check_scope(self, scope):
        """A regularizer would teach nothing where the model tracks R, and so keeps it from gradients."""
        for layer in self._self_norm_layers:
            if self._learning.tracks(layer) and scope.learning.regularizer(layer) is not None:
                raise ValueError(
                    f"The open `training_scope` has inverse_learning {scope.inverse_learning!r}, and the "
                    f"FlowModel that is called in it {self.inverse_learning!r}: no gradient reaches "
                    f"`forward_kernel` of `{layer.name}`. Give both the same."
                )

    def _add_regularizer(self, scope, step):
        layers = [la for la in self._regularized_layers if scope.learning.regularizer(la) is not None]
        if layers:
            weight = self._regularizer_weights.read(tf.convert_to_tensor(step))
            self.add_loss(scope.reconstruction_loss(weight, layers))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The mean of the weighted negative log-likelihoods over the batch, plus the added losses.

        As Keras has it, the weighted sum is divided by the number of examples: so the weights of a batch
        count against those of other batches, and the optimum does not depend on how the data fall into
        batches.
        """
        count = tf.cast(tf.size(y_pred), y_pred.dtype)
        weighted = example_weights(y_pred, sample_weight) * y_pred
        nll = -tf.math.divide_no_nan(tf.reduce_sum(weighted), count)
        losses = self.losses
        if any(tf.is_symbolic_tensor(loss) and not is_within_reach(loss) for loss in losses):
            raise ValueError(
                "A network of the flow adds a loss inside a `tf.function`, such as an activity regularizer, "
                "which is out of reach outside of it. Call the network without `tf.function`: `fit` compiles "
                "all of the step."
            )
        loss = tf.add_n([nll, *(tf.cast(loss, nll.dtype) for loss in losses)])
        # Keras adds the gradients of the replicas up.
        return loss / tf.distribute.get_strategy().num_replicas_in_sync

    def train_step(self, data):
        """One step of the optimizer, and of the learned inverses.

        A step whose loss or gradients are not finite changes no weight; it counts for `skipped_updates` only.
        """
        x, y, sample_weight = unpack(data)
        restored = [(variable.value, tf.identity(variable.value)) for variable in self._moving_variables]
        variables = self.trainable_variables
        self._build_optimizer()
        with self._open_scope() as scope, tf.GradientTape() as tape:
            log_prob = self(x, training=True)
            loss = self.compute_loss(x, y, log_prob, sample_weight, training=True)
            scaled_loss = self.optimizer.scale_loss(loss)
        self._figures.update_weight(self._regularizer_weights, self._iterations())
        gradients = tape.gradient(scaled_loss, variables)
        named = dict(zip(self._named.names_of(variables), variables, strict=True))
        candidates = _candidates(x, log_prob, scope)
        is_applied = self._guard.apply(self.optimizer, gradients, named, loss, candidates, restored)
        self._figures.update(log_prob, sample_weight, loss, scope, True, is_applied)
        if self._regularizer_weights.is_adaptive:
            self._regularizer_weights.update(scope.reconstruction_errors(), is_applied)
        step = tf.convert_to_tensor(self._guard.steps)
        errors = self._learning.follow(self._self_norm_layers, step)
        self._figures.update_inverse_errors(errors)
        return self._results()

    def test_step(self, data):
        """The figures of one batch, from the held log-dets."""
        x, y, sample_weight = unpack(data)
        with self._open_scope() as scope:
            log_prob = self(x, training=False)
            loss = self.compute_loss(x, y, log_prob, sample_weight, training=False)
        self._figures.update(log_prob, sample_weight, loss, scope, False)
        self._figures.update_inverse_errors(self._learning.measure(self._self_norm_layers))
        return self._results()

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

        def steps(iterator):
            step = self._refresh.before_steps(self._guard.steps, self.steps_per_execution)
            try:
                logs = compiled_steps(iterator)
            finally:
                self._refresh.after_steps()
            if step % self._guard.max_skipped < self.steps_per_execution:
                self._check_guard()
            return logs

        self.train_function = steps

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
        results = super().get_metrics_result()
        return self._figures.without_training(results) if self._is_evaluating else results

    def _results(self):
        results = self.get_metrics_result()
        if is_step_of_many_workers(tf.distribute.get_strategy()):
            # Keras takes the mean over the first dimension, too, and scalars have none.
            results = {name: tf.reshape(result, [1]) for name, result in results.items()}
        return results

    def _open_scope(self):
        seed = tf.stack([0, tf.convert_to_tensor(self._guard.steps)])
        return training_scope(self.inverse_learning, self._refresh.read(), seed)

    def _iterations(self):
        """The number of updates, for schedules."""
        return 0 if self.optimizer is None else tf.convert_to_tensor(self.optimizer.iterations)

    def _build_optimizer(self, names=None):
        """Makes the optimizer's variables, for the trainable variables or those of the names."""
        # Variables made inside the compiled step would have Keras trace it twice.
        if self.optimizer.built:
            return
        variables = self.trainable_variables
        if names is not None:
            variables = [variable for name, variable in self._flow_variables.items() if name in names]
        with self.distribute_strategy.scope():
            self.optimizer.build(variables)
        self._optimized_variables = self._named.names_of(variables)

    def _check_guard(self):
        self._guard.check(int(self.optimizer.iterations.numpy()))

    def _begin_training(self):
        self._refresh.forget_step()

    def _end_training(self):
        self._check_guard()
        # Keras may have put the averages of the kernels in their place.
        self._refresh.set_inverses()

    def set_weights(self, weights):
        """Keras's `set_weights`."""
        super().set_weights(weights)
        self._refresh.take_weights()

    @functools.cached_property
    def inference_distribution(self):
        """The distribution that the model scores and samples outside of training.

        That is `distribution`, but with moving statistics in each `tfb.BatchNormalization`, whatever its
        `training` says.
        """
        with tf.init_scope():
            return at_inference(self.distribution)

    @property
    def metrics(self):
        """The figures of the progress bar; none before `compile`: a bigger model is to show none."""
        return [*self._figures.metrics, *super().metrics] if self.compiled else []


def _candidates(x, log_prob, scope):
    """The tensors that a step computes, in this order, for `UpdateGuard`."""
    passes = scope.passes if scope.sees_passes else []
    outputs = [(f"the output of `{p.layer.name}`", p.output) for p in passes]
    return [("the data", x), *outputs, ("the log-likelihood", log_prob)]
