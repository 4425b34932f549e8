"""Training by the reverse divergence: the samples of a flow are scored by a target density."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors.pair_memory import keeping_values
from tfp_selfnorm.model.progress import with_short_progress
from tfp_selfnorm.model.target_figures import TargetFigures
from tfp_selfnorm.model.trainer import FlowTrainer
from tfp_selfnorm.structure.layers import self_norm_layers
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.seeds import stateless_seed
from tfp_selfnorm.utils.types import Seed


class TargetTraining:
    """The steps that fit a flow to a target density, see `FlowModel.fit_to_target`.

    Args:
      model: a `FlowModel`, compiled.
      target_log_prob_fn: the function of the samples, and of the condition if the model has one.
      num_samples: the number of samples of a step, for each condition.
      seed: int or stateless TFP seed.

    Raises:
      TypeError: if the function is not callable, or a number has another type.
      ValueError: if a number is out of range, or the flow cannot be trained so.
    """

    def __init__(self, model: Any, target_log_prob_fn: Callable, num_samples: int, seed: Seed) -> None:
        if not callable(target_log_prob_fn):
            raise TypeError(
                "`target_log_prob_fn` must be a function from events to log densities; got "
                f"{target_log_prob_fn!r}."
            )
        _check_model(model)
        self._model, self._target, self._num_samples = model, target_log_prob_fn, num_samples
        self._seed = stateless_seed(seed, "fit_to_target")
        with model.distribute_strategy.scope():
            self.figures = TargetFigures(model.conditions is not None)

    def batches(self, condition: Any, batch_size: int) -> tf.data.Dataset:
        """Returns batches of the conditions, at random and without an end; raises as `log_prob` does."""
        conditions = self._model.conditions
        parts = tf.nest.flatten(conditions.tensor(condition))
        number = parts[0].shape[0] if parts[0].shape.rank else 0
        condition = conditions.array(condition, "condition", number)
        if number == 0:
            raise ValueError("`condition` must be a batch of conditions, 1 or more; got none.")
        data = tf.data.Dataset.from_tensor_slices(condition)
        return data.shuffle(number, seed=int(self._seed[0])).repeat().batch(batch_size)

    def check_target(self, condition: Any = None) -> None:
        """Scores some samples, to raise an error before any training.

        Raises:
          TypeError: if the target returns no tensor of floats.
          ValueError: if it returns another shape, or has no finite value or no gradient at the samples.
        """
        name = "`target_log_prob_fn`"
        with self._model._naming_singular_layers():
            x, log_prob = self._draw(self._seed, condition)
        with tf.GradientTape() as tape:
            tape.watch(x)
            target = self._score(x, condition)
        if not (isinstance(target, tf.Tensor) and target.dtype.is_floating):
            found = f"a tensor of {target.dtype.name}" if tf.is_tensor(target) else repr(target)
            raise TypeError(
                f"{name} must return a tensor of floats, by TensorFlow's functions; got {found:.200}."
            )
        if target.shape != log_prob.shape:
            raise ValueError(
                f"{name} must return one log density for each event: for events of shape {tuple(x.shape)} "
                f"the shape {tuple(log_prob.shape)}; got {tuple(target.shape)}."
            )
        is_finite = np.isfinite(target)
        if not is_finite.any():
            first = float(tf.reshape(target, [-1])[0])
            raise ValueError(
                f"{name} must be finite where the flow has samples; it is {first} at the first "
                f"of {target.shape.num_elements()} samples, and finite at none. Give the flow samples in "
                "the support of the target, for example by its `preprocessing`."
            )
        varies = np.ptp(np.asarray(target)[is_finite]) > 0.0
        if varies and tape.gradient(target, x) is None:
            raise ValueError(
                f"{name} has no gradient by the events. Compute it by TensorFlow's functions of the events."
            )

    def step(self, condition: Any) -> dict[str, tf.Tensor]:
        """Does one step of the optimizer, and returns the figures.

        Args:
          condition: a batch of conditions; without conditions it is not used.
        """
        model = self._model
        condition = None if model.conditions is None else condition
        restored = [(v.value, tf.identity(v.value)) for v in model._moving_variables]
        variables, steps = model.trainable_variables, tf.convert_to_tensor(model._guard.steps)
        seed = tf.random.experimental.stateless_fold_in(self._seed, tf.cast(steps, tf.int32))
        with tf.GradientTape() as tape, keeping_values():
            x, log_prob = self._draw(seed, condition)
            target = tf.ensure_shape(tf.cast(self._score(x, condition), log_prob.dtype), log_prob.shape)
            log_weights = target - log_prob
            loss = FlowTrainer.compute_loss(model, y_pred=log_weights)
            scaled_loss = model.optimizer.scale_loss(loss)
        gradients = self._with_zeros(tape.gradient(scaled_loss, variables), variables)
        named = dict(zip(model._named.names_of(variables), variables, strict=True))
        tensors = [
            ("the samples", x),
            ("the log density of the samples", log_prob),
            ("`target_log_prob_fn` of the samples", target),
        ]
        is_applied = model._guard.apply(model.optimizer, gradients, named, loss, tensors, restored)
        self.figures.update(loss, log_weights, is_applied)
        return model._results()

    @contextlib.contextmanager
    def steps_of_fit(self) -> Iterator[None]:
        """Lets Keras's `fit` of the model do these steps."""
        model = self._model
        kept = model.train_function, model.jit_compile
        # XLA has no kernels for the exact log-dets.
        model._training_figures, model.train_step, model.jit_compile = self.figures, self.step, False
        try:
            model._build_optimizer()
            keras.Model.make_train_function(model, force=True)
            model.train_function = self._with_checks(model.train_function)
            yield
        finally:
            del model.train_step
            model._training_figures = model._figures
            model.train_function, model.jit_compile = kept

    def _with_checks(self, compiled_steps):
        guard, count, number = self._model._guard, self._model.steps_per_execution, 0

        def steps(iterator):
            nonlocal number
            self._model._refresh.inverses.fall_behind()
            logs = compiled_steps(iterator)
            number += count
            if number % guard.max_skipped < count:
                self._model._check_guard()
            return logs

        return steps

    def _draw(self, seed, condition):
        return self._model._draw_and_score([self._num_samples], seed, True, condition)

    def _score(self, x, condition):
        return self._target(x) if condition is None else self._target(x, condition)

    def _with_zeros(self, gradients, variables):
        """The gradients, with zeros for each R: it has no part here, and Keras would warn of `None`."""
        layers = self_norm_layers(self._model.distribution)
        learned = {v.ref() for layer in layers for v in layer.map_variables[1]}
        return [
            tf.zeros_like(v.value) if g is None and v.value.ref() in learned else g
            for g, v in zip(gradients, variables, strict=True)
        ]


def fit_to_target(
    training: TargetTraining,
    data: tf.data.Dataset,
    steps_per_epoch: int,
    epochs: int,
    callbacks: Any,
    verbose: int | str,
) -> keras.callbacks.History:
    """Trains on batches of conditions, or of nothing; see `FlowModel.fit_to_target`."""
    model = training._model
    with training.steps_of_fit():
        history = keras.Model.fit(
            model,
            data,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            shuffle=False,
            callbacks=with_short_progress(callbacks, verbose),
            verbose=verbose,
        )
    model._end_training()
    return history


def check_steps(**numbers: int) -> None:
    """Raises ValueError if a number is no positive int."""
    for name, number in numbers.items():
        check_positive_int(number, name)


def _check_model(model):
    """Raises ValueError if the model cannot be trained on samples."""
    distribution = model.distribution
    if not model.compiled:
        raise ValueError("Call `compile` before `fit_to_target`.")
    if model.distribute_strategy.num_replicas_in_sync > 1:
        raise ValueError(
            "`fit_to_target` trains on one device; the model was made under a strategy with "
            f"{model.distribute_strategy.num_replicas_in_sync}."
        )
    if distribution.batch_shape.rank != 0:
        raise ValueError(f"`distribution` must have no batch shape; got {distribution.batch_shape}.")
    if distribution.reparameterization_type != tfp.distributions.FULLY_REPARAMETERIZED:
        raise ValueError(
            "`distribution` must have samples with a gradient by its parameters, as flows of normal "
            f"distributions have; {distribution.name!r} has {distribution.reparameterization_type}."
        )
    for layer in self_norm_layers(distribution):
        if layer.inversion == "learned" and not layer.has_matrix_kernels:
            raise ValueError(
                f"`{layer.name}` has a learned inverse that only data train. Make it with "
                "`inversion='exact'`, so that samples come from the map that is trained."
            )
