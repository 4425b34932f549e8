"""Skips updates that are not finite, counts them, and names their cause."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_selfnorm.inverse_learning.scope import TrainingScope
from tfp_selfnorm.model import fused_update

_LOG_LIKELIHOOD = "the log-likelihood"


class UpdateGuard:
    """Applies the gradients of a step if they, the loss and the learning rate are finite; else skips it.

    If the sum of the squares of the gradients overflows, they count as not finite, because optimizers square
    them. A skipped step leaves the weights as they were. An update may overflow and write weights that are
    not finite. It stops the training at once, with another error, because the earlier weights are lost.

    After `max_skipped` skipped steps in a row every step is skipped, until `check` raises. So the host may
    check now and then, and does not wait for the device at every step.

    Args:
      add_state: function of an initial value, a name and a dtype that makes a scalar variable.

    Attributes:
      max_skipped: the longest run of skipped steps.
      fuses: whether XLA may compile the update of large variables.
      steps: the number of all steps, skipped ones included.
      transient_state: the variables that files do not keep: a run of skipped steps ends with the process.
    """

    max_skipped = 1
    fuses = True

    def __init__(self, add_state: Callable[..., keras.Variable]) -> None:
        self._run = add_state(0, "skipped_in_a_row", "int64")
        self._first = add_state(0, "first_not_finite", "int64")
        self.steps = add_state(0, "training_steps", "int64")
        self.transient_state = self._run, self._first
        # Of all candidates of a step; those of the variables come first.
        self._names: list[str] = []

    def apply(
        self,
        optimizer: keras.optimizers.Optimizer,
        gradients: Sequence[Any],
        variables: dict[str, keras.Variable],
        loss: tf.Tensor,
        tensors: Sequence[tuple[str, tf.Tensor]],
        restored: Sequence[tuple[tf.Variable, tf.Tensor]] = (),
    ) -> tf.Tensor:
        """Applies the gradients, or skips the step.

        Args:
          optimizer: a Keras optimizer, built.
          gradients: one for each variable, or `None`.
          variables: mapping from names to Keras variables.
          loss: scalar.
          tensors: names and tensors of the step, see `step_tensors`. The error names the first of all that is
            not finite: the variables come before them; the loss, the gradients, their squares and the
            learning rate come after them.
          restored: pairs of a `tf.Variable` and its value before the step; a skipped step restores it.

        Returns:
          Whether the step was finite, a scalar of bool.
        """
        if not variables:
            warnings.warn("The model has no trainable weights: it is measured, not trained.", stacklevel=2)
            return tf.constant(True)
        named = [(n, g) for n, g in zip(variables, gradients, strict=True) if g is not None]
        scale, rate = _loss_scale(optimizer), tf.convert_to_tensor(getattr(optimizer, "learning_rate", 1.0))
        squares = [tf.cast(tf.nn.l2_loss(_dense(g) / tf.cast(scale, g.dtype)), tf.float32) for _, g in named]
        total = tf.add_n(squares)
        candidates = [
            *((f"`{name}`", variable) for name, variable in variables.items()),
            *tensors,
            ("the loss", loss),
            *((f"the gradient of `{name}`", gradient) for name, gradient in named),
            *((f"the square of the gradient of `{n}`", s) for (n, _), s in zip(named, squares, strict=True)),
            ("the sum of the squares of the gradients", total),
            ("the learning rate", rate),
        ]
        self._names = [name for name, _ in candidates]
        may_continue = tf.convert_to_tensor(self._run) < self.max_skipped
        is_computable = _on_all_replicas(tf.math.is_finite(loss) & tf.math.is_finite(rate))
        is_finite = is_applied = is_computable & _on_all_replicas(tf.math.is_finite(total))
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            # It has its own guard against overflow of the scaled gradients, and must get them.
            overflows = ~_on_all_replicas(tf.reduce_all(_each_finite([g for _, g in named]))) & (scale > 1.0)
            is_applied = is_finite | (is_computable & overflows)
        values, is_applied = [value for _, value in candidates], is_applied & may_continue
        arguments = optimizer, gradients, list(variables.values()), is_applied, values, restored
        # All replicas must enter the same branch together.
        tf.distribute.get_replica_context().merge_call(self._apply_or_skip, args=arguments)
        return is_finite & may_continue

    def begin(self, max_skipped: int, fuses: bool) -> None:
        """Sets the attributes, and ends the run of skipped steps."""
        self.max_skipped, self.fuses = max_skipped, fuses
        self._run.assign(0)

    def check(self, step: int) -> None:
        """Raises ValueError after `max_skipped` skipped steps in a row, or if an update overflowed.

        An error ends the run of skipped steps.
        """
        if int(self._run.numpy()) < self.max_skipped:
            return
        self._run.assign(0)
        first = int(self._first.numpy())
        if first >= len(self._names):
            raise ValueError(
                f"The update of step {step - 1} made {self._names[first - len(self._names)]} not finite, "
                "although the loss, the gradients and the learning rate were finite: the update overflowed. "
                "Load earlier weights, and use a smaller learning rate."
            )
        cause = self._names[first]
        raise ValueError(
            f"{self.max_skipped} updates in a row were not finite and so skipped, from step {step} on; "
            f"first to be not finite was {cause}.{_hint(cause)} The weights are as before step {step}. See "
            "`max_skipped_updates` of `compile`; a smaller learning rate or `clipnorm` may help."
        )

    def _apply_or_skip(self, strategy, optimizer, gradients, variables, is_applied, candidates, restored):
        def on_each_replica(function, *arguments):
            results = strategy.extended.call_for_each_replica(function, args=arguments)
            return strategy.experimental_local_results(results)

        def apply():
            is_finite = on_each_replica(fused_update.apply, optimizer, gradients, variables, self.fuses)[0]
            broken = len(candidates) + tf.argmin(tf.cast(is_finite, tf.int32))
            is_broken = ~tf.reduce_all(is_finite)
            self._first.assign(tf.where(is_broken, broken, tf.convert_to_tensor(self._first)))
            self._run.assign(tf.where(is_broken, tf.constant(self.max_skipped, tf.int64), 0))

        def skip():
            first = on_each_replica(_first_not_finite, candidates)[0]
            run = tf.convert_to_tensor(self._run)
            self._first.assign(tf.where(run == 0, first, tf.convert_to_tensor(self._first)))
            self._run.assign(run + 1)
            for variable, value in restored:
                strategy.extended.update(variable, lambda v, old: v.assign(old), args=(value,))

        self.steps.assign_add(1)
        tf.cond(strategy.experimental_local_results(is_applied)[0], apply, skip)


def step_tensors(x: tf.Tensor, log_prob: tf.Tensor, scope: TrainingScope) -> list[tuple[str, tf.Tensor]]:
    """Returns names and tensors of a training step, in the order of their computation."""
    passes = scope.passes if scope.sees_passes else []
    outputs = [(f"the output of `{p.layer.name}`", p.output) for p in passes]
    # A kernel that is not finite is named itself. A decoder may compute NaN from finite variables.
    decoded = [p for p in passes if p.error is not None and not p.layer.is_constant_jacobian]
    errors = [(f"the reconstruction by `{p.layer.name}`", p.error) for p in decoded]
    return [("the data", x), *outputs, *errors, (_LOG_LIKELIHOOD, log_prob)]


def _hint(name):
    if name != _LOG_LIKELIHOOD:
        return ""
    return " It is -inf for an event outside the support, such as a pixel outside the range of the levels."


def _loss_scale(optimizer):
    is_scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    return tf.convert_to_tensor(optimizer.dynamic_scale) if is_scaled else tf.ones([])


def _each_finite(tensors):
    return tf.stack([tf.reduce_all(tf.math.is_finite(_dense(t))) for t in tensors])


def _first_not_finite(values):
    """The index of the first value that is not finite on some replica."""
    bad = tf.cast(~_each_finite(values), tf.float32)
    return tf.argmax(tf.cast(_sum_over_replicas(bad) > 0.0, tf.int32))


def _on_all_replicas(is_true):
    return _sum_over_replicas(tf.cast(~is_true, tf.float32)) == 0.0


def _sum_over_replicas(value):
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def _dense(gradient):
    """The values of a gradient, which may be an `IndexedSlices`."""
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else tf.convert_to_tensor(gradient)
