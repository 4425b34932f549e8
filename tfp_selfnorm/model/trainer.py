"""`FlowTrainer`, the training of a distribution by Keras."""

import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfp_selfnorm.flows.networks import computes_in_float16
from tfp_selfnorm.inverse_learning.base import InverseLearning, as_inverse_learning
from tfp_selfnorm.inverse_learning.reconstruction import Reconstruction
from tfp_selfnorm.inverse_learning.reconstruction_weight import ReconstructionWeights
from tfp_selfnorm.inverse_learning.scope import training_scope
from tfp_selfnorm.model.figures import Figures, example_weights
from tfp_selfnorm.model.log_det_cache import LogDetCache
from tfp_selfnorm.model.refresh import Refresh
from tfp_selfnorm.model.scoring import ScoringModel
from tfp_selfnorm.model.update_guard import UpdateGuard, step_tensors
from tfp_selfnorm.structure.variables import find_layers_and_variables
from tfp_selfnorm.utils.compat import is_step_of_many_workers, schedule_of
from tfp_selfnorm.utils.graphs import is_within_reach
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.options import check_bool
from tfp_selfnorm.utils.types import Array, TfpObject


class FlowTrainer(ScoringModel):
    """The training of a distribution by Keras; base of `FlowModel`, which has the documentation."""

    # `None` until `compile`.
    optimizer: Any = None
    train_function: Callable | None
    test_function: Callable | None
    predict_function: Callable | None

    def __init__(
        self,
        distribution: TfpObject,
        inverse_learning: InverseLearning | None,
        bits_per_dim: bool,
        name: str | None,
        condition: Any = None,
    ) -> None:
        """`condition` is a batch of one condition, if the distribution needs one."""
        learning = as_inverse_learning(inverse_learning)
        super().__init__(distribution, name)
        self._inverse_learning, self._learning = inverse_learning, learning
        self.reports_bits_per_dim = check_bool(bits_per_dim, "bits_per_dim")
        found = find_layers_and_variables(distribution, condition)
        self._self_norm_layers = layers = tuple(found.layers)
        self._scales_loss = any(map(computes_in_float16, found.networks))
        self._take_variables(found, learning.untrained_variables(layers))
        self._log_dets = LogDetCache(layers)
        self._refresh = Refresh(layers, learning, self._named.add, distribution, condition)
        self.supports_jit = self._can_use_xla(is_training=True)
        self._guard = UpdateGuard(self._named.add_state)
        self._regularized_layers = [la for la in layers if learning.regularizer(la) is not None]
        regularizers = [learning.regularizer(layer) for layer in self._regularized_layers]
        regularizer = regularizers[0] if regularizers else Reconstruction()
        weights = ReconstructionWeights(regularizer, self._regularized_layers, self._named.add_state)
        self._regularizer_weights = weights
        self._figures = Figures(
            distribution.event_shape,
            bits_per_dim=bits_per_dim,
            reconstruction=any(layer.needs_inverse for layer in layers),
            reconstruction_weight=self._regularizer_weights.changes,
            inverse_error=any(map(learning.tracks, layers)),
        )
        # `fit_to_target` puts its own in their place.
        self._training_figures: Any = self._figures
        self.built = True

    def compile(
        self,
        optimizer: keras.optimizers.Optimizer | str = "adam",
        loss: None = None,
        loss_weights: None = None,
        metrics: None = None,
        weighted_metrics: None = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: bool | str = "auto",
        auto_scale_loss: bool = True,
        *,
        max_skipped_updates: int = 10,
    ) -> None:
        """Sets the optimizer. The loss and the metrics are the model's own.

        Args:
          optimizer: a Keras optimizer, or its name.
          loss, loss_weights, metrics, weighted_metrics: must be `None`.
          run_eagerly, steps_per_execution: as in Keras.
          jit_compile: as in Keras. On the CPU "auto" compiles only the update of large variables by XLA, for
            optimizers of Keras; `False` compiles nothing by XLA. Steps with the exact log-det of a
            `LearnedInverse` are compiled without XLA, in which it takes some times as long.
          auto_scale_loss: whether to scale the loss if a coupling network computes in float16.
          max_skipped_updates: training stops with a ValueError after this number of skipped steps in a row. A
            step is skipped if its loss, its gradients or its learning rate are not finite.

        Raises:
          ValueError: if an argument has another value.
        """
        given = {"loss": loss, "loss_weights": loss_weights, "metrics": metrics}
        for argument, value in {**given, "weighted_metrics": weighted_metrics}.items():
            if value is not None:
                raise ValueError(f"`{argument}` must be None: a FlowModel has its own; got {value!r}.")
        check_positive_int(max_skipped_updates, "max_skipped_updates")
        check_positive_int(steps_per_execution, "steps_per_execution")
        if optimizer is None:
            raise ValueError("`optimizer` must be a Keras optimizer, or its name; got None.")
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
        # The tracker of Keras shows 0 if no step was measured; `Figures` has a loss.
        self._loss_tracker = None
        # Keras keeps no difference between "auto" and `False`.
        self._jit_compile_given = jit_compile
        self._guard.begin(max_skipped_updates, fuses=jit_compile is not False)
        self._optimized_variables: list[str] | None = None

    def get_compile_config(self) -> dict[str, Any] | None:
        """Returns the arguments of `compile`, and the names of the variables that the optimizer updates."""
        config = super().get_compile_config()
        if config:
            config["max_skipped_updates"] = self._guard.max_skipped
            config["jit_compile"] = self._jit_compile_given
            if self.optimizer.built:
                names = self._optimized_variables or self._named.names_of(self.trainable_variables)
                config["optimized_variables"] = list(names)
        return config

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        """Returns the mean of the weighted negative log-likelihoods of a batch, plus the added losses.

        The weighted sum is divided by the number of examples, as in Keras. So the optimum does not depend on
        the division of the data into batches.
        """
        count = tf.cast(tf.size(y_pred), y_pred.dtype)
        weighted = example_weights(y_pred, sample_weight) * y_pred
        nll = -tf.math.divide_no_nan(tf.reduce_sum(weighted), count)
        losses = self.losses
        if any(tf.is_symbolic_tensor(loss) and not is_within_reach(loss) for loss in losses):
            raise ValueError(
                "A network of the flow adds a loss inside a `tf.function`, such as an activity regularizer. "
                "The loss is out of reach outside of it. Call the network without `tf.function`: `fit` "
                "compiles the whole step."
            )
        loss = tf.add_n([nll, *(tf.cast(loss, nll.dtype) for loss in losses)])
        # Keras adds the gradients of the replicas.
        return loss / tf.distribute.get_strategy().num_replicas_in_sync

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Does one step of the optimizer and of the learned inverses, and returns the figures."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        restored = [(variable.value, tf.identity(variable.value)) for variable in self._moving_variables]
        variables = self.trainable_variables
        self._build_optimizer()
        with self._open_scope(is_training=True) as scope, tf.GradientTape() as tape:
            log_prob = self(x, **self._call_arguments(y), training=True)
            loss = self.compute_loss(x, y, log_prob, sample_weight, training=True)
            scaled_loss = self.optimizer.scale_loss(loss)
        self._figures.update_weight(self._regularizer_weights, self._iterations())
        gradients = tape.gradient(scaled_loss, variables)
        named = dict(zip(self._named.names_of(variables), variables, strict=True))
        tensors = step_tensors(x, log_prob, scope)
        is_applied = self._guard.apply(self.optimizer, gradients, named, loss, tensors, restored)
        self._refresh.remember(x, is_applied, **self._call_arguments(y))
        self._figures.update(log_prob, sample_weight, loss, scope, True, is_applied)
        if self._regularizer_weights.is_adaptive:
            self._regularizer_weights.update(scope.reconstruction_errors(), is_applied)
        step = tf.convert_to_tensor(self._guard.steps)
        errors = self._learning.follow(self._self_norm_layers, step, refreshes=False)
        self._figures.update_inverse_errors(errors)
        return self._results()

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Returns the figures of one batch, by the held log-dets."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with self._open_scope(is_training=False) as scope:
            log_prob = self(x, **self._call_arguments(y), training=False)
            loss = self.compute_loss(x, y, log_prob, sample_weight, training=False)
        self._figures.update(log_prob, sample_weight, loss, scope, False)
        self._figures.update_inverse_errors(self._learning.measure(self._self_norm_layers))
        return self._results()

    def predict_step(self, data: Any) -> tf.Tensor:
        """Returns the log densities of one batch, by the held log-dets."""
        with self._open_scope(is_training=False):
            return super().predict_step(data)

    def _check_untrained(self, whitens):
        if whitens and self.optimizer is not None and int(self.optimizer.iterations.numpy()) > 0:
            raise ValueError(
                "`whitens=True` sets all dense layers, which would undo the training of this model. If that "
                "is what you want, call `tfp_selfnorm.whiten(model.distribution, x)`."
            )

    def _call_arguments(self, labels):
        """The further arguments of a call, from the labels of a step."""
        return {}

    def _takes_labels(self):
        own = ("compute_loss", "train_step", "test_step")
        return any(getattr(getattr(self, m), "__func__", None) is not getattr(FlowTrainer, m) for m in own)

    def make_train_function(self, force: bool = False) -> None:
        """Makes Keras's function, with the work between compiled steps added before and after each call."""
        # Keras calls this method before each `fit` and `train_on_batch`.
        self._warn_of_a_rate_of_zero()
        self._refresh.check_inverses()
        if self.trainable:
            self._refresh.warn_of_untaught_inverses()
            self._refresh.warn_of_unset_layers()
        self._refresh.forget_step()
        if self.train_function is not None and not force:
            return
        self._build_optimizer()
        super().make_train_function(force=force)
        compiled_steps: Any = self.train_function

        def steps(iterator):
            self._log_dets.forget()
            step = self._refresh.before_steps(self._guard.steps, self.steps_per_execution)
            try:
                logs = compiled_steps(iterator)
            finally:
                self._refresh.after_steps()
            if step % self._guard.max_skipped < self.steps_per_execution:
                self._check_guard()
            return logs

        self.train_function = steps

    def _warn_of_a_rate_of_zero(self):
        schedule = schedule_of(self.optimizer)
        if schedule is None:
            return
        step = int(self.optimizer.iterations.numpy())
        # A schedule with restarts, or a warm-up, is 0 at single steps.
        if not any(float(schedule(tf.constant(step + i, tf.int64))) for i in (0, 1, 10, 100)):
            warnings.warn(
                "The learning rate is 0, so that this training changes nothing. A schedule that has fallen "
                "to 0 stays there, also in a loaded model: call `compile` with a new optimizer to go on.",
                stacklevel=5,
            )

    def make_test_function(self, force: bool = False) -> None:
        """Makes Keras's function; the first call in an evaluation, after the callbacks, sets the log-dets."""
        if self.test_function is None or force:
            super().make_test_function(force=force)
            self.test_function = self._with_exact_log_dets(self.test_function)

    def make_predict_function(self, force: bool = False) -> None:
        """Makes Keras's function; the first call in a prediction, after the callbacks, sets the log-dets."""
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

    def get_metrics_result(self) -> dict[str, Any]:
        """Returns the figures; an evaluation leaves out the figures of training."""
        results = super().get_metrics_result()
        return self._figures.without_training(results) if self._is_evaluating else results

    def _results(self):
        results = self.get_metrics_result()
        if is_step_of_many_workers(tf.distribute.get_strategy()):
            # Keras takes the mean over the first dimension too, and scalars have none.
            results = {name: tf.reshape(result, [1]) for name, result in results.items()}
        return results

    def _open_scope(self, is_training):
        held = self._refresh.read(is_training)
        return training_scope(self.inverse_learning, seed=self._step_seed(), **held)

    def _build_optimizer(self, names=None):
        """Makes the optimizer's variables, for the trainable variables or for the variables of the names."""
        # If the compiled step made them, Keras would trace it twice.
        if self.optimizer.built:
            return
        variables = self.trainable_variables
        if names is not None:
            known = self._named.all | dict(zip(self._named.names_of(variables), variables, strict=True))
            variables = [variable for name, variable in known.items() if name in names]
        with self.distribute_strategy.scope():
            self.optimizer.build(variables)
        self._optimized_variables = self._named.names_of(variables)

    def _check_guard(self):
        self._guard.check(int(self.optimizer.iterations.numpy()))

    def _end_training(self):
        self._check_guard()
        # Keras may have replaced the kernels by their averages.
        self._refresh.set_inverses()

    def refresh_log_dets(self) -> None:
        """Sets the held log-det of each layer to its exact value.

        Raises:
          ValueError: if a value is not finite, with the name of the layer.
        """
        self._refresh.before_evaluation()

    def set_weights(self, weights: list[Array]) -> None:
        """Sets the weights to arrays, in the order of `weights`."""
        super().set_weights(weights)
        self._refresh.take_weights()

    @property
    def columns(self) -> Any:
        """The `tables.Columns` of a flow of a table, also of a loaded one; `None` for other flows."""
        return self._frames.columns

    @property
    def metrics(self) -> list[keras.Metric]:
        """The figures of the progress bar. There are none before `compile`: a bigger model shows none."""
        figures = self._figures if self._is_evaluating else self._training_figures
        return [*figures.metrics, *super().metrics] if self.compiled else []
