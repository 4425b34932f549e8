"""Keeps updates that are not finite out of a model, counts them, and says where they came from."""

import keras
import tensorflow as tf

from tfp_selfnorm import fused_update


class UpdateGuard:
    """Applies the gradients of a step if they and the loss are finite, and skips the step otherwise.

    Gradients whose sum of squares overflows count as not finite: optimizers square them.

    After `max_skipped` in a row nothing is applied any more until `check` has raised: so the host may look
    now and then, and need not wait for the device at every step.

    Args:
      add_state: function of an initial value, a name and a dtype that makes a scalar variable.

    Attributes:
      max_skipped: the longest run of skipped steps.
      fuses: whether the update of large variables may be compiled by XLA.
    """

    max_skipped = 1
    fuses = True

    def __init__(self, add_state):
        self._run = add_state(0, "skipped_in_a_row", "int32")
        self._first = add_state(0, "first_not_finite", "int32")
        self._steps = add_state(0, "training_steps", "int32")
        self._names = []

    @property
    def steps(self):
        """How many steps there were, skipped ones included: a Keras variable."""
        return self._steps

    @property
    def passing_state(self) -> tuple:
        """The variables that no file is to keep: a run of skipped steps ends with the process."""
        return self._run, self._first

    def apply(self, optimizer, gradients, variables, loss, suspects, kept=()) -> tf.Tensor:
        """Applies the gradients, or not.

        Args:
          optimizer: a Keras optimizer, built.
          gradients: one for each variable, `None` where there is none.
          variables: Keras variables.
          loss: scalar.
          suspects: pairs of a name and a tensor in the order in which the step computed them: the first that
            is not finite is to blame. Before them come the variables, after them the gradients.
          kept: pairs of a `tf.Variable` and its value before the step, which a skipped step puts back.

        Returns:
          Whether the step was right, a scalar of bool.
        """
        gradients_by_name = [
            (f"the gradient of `{variable.name}`", gradient)
            for variable, gradient in zip(variables, gradients, strict=True)
            if gradient is not None
        ]
        suspects = [*((f"`{v.name}`", v) for v in variables), *suspects, *gradients_by_name]
        self._names = [name for name, _ in suspects]
        values = [value for _, value in suspects]
        gradients_given = [gradient for _, gradient in gradients_by_name]
        loss_is_finite = _on_all_replicas(tf.math.is_finite(loss))
        goes_on = tf.convert_to_tensor(self._run) < self.max_skipped
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            scale = tf.convert_to_tensor(optimizer.dynamic_scale)
            is_finite = loss_is_finite & _on_all_replicas(_squares_are_finite(gradients_given, scale))
            # It has a guard of its own, against overflow of the scaled gradients, and needs to see them.
            overflows = ~_on_all_replicas(_all_finite(gradients_given)) & (scale > 1.0)
            is_passed_on = is_finite | (loss_is_finite & overflows)
        else:
            is_finite = loss_is_finite & _on_all_replicas(_squares_are_finite(gradients_given))
            is_passed_on = is_finite
        # The branches may only be entered by all replicas at once.
        update = fused_update.apply if self.fuses else _apply
        tf.distribute.get_replica_context().merge_call(
            self._apply_or_skip,
            args=(update, optimizer, gradients, variables, is_passed_on & goes_on, values, kept),
        )
        return is_finite & goes_on

    def reset(self) -> None:
        """Forgets the run."""
        self._run.assign(0)

    def check(self, step) -> None:
        """Raises ValueError if so many steps in a row were skipped; then the next run begins."""
        if int(self._run.numpy()) >= self.max_skipped:
            first = self._names[int(self._first.numpy())]
            self.reset()
            raise ValueError(
                f"{self.max_skipped} updates in a row were not finite and so skipped, from step {step} on; "
                f"first to be not finite was {first}. The weights are those of step {step}. See "
                "`max_skipped_updates` of `compile`; a smaller learning rate or `clipnorm` may help."
            )

    def _apply_or_skip(self, strategy, update, optimizer, gradients, variables, is_passed_on, suspects, kept):
        def on_each_replica(function, *arguments):
            results = strategy.extended.call_for_each_replica(function, args=arguments)
            return strategy.experimental_local_results(results)

        def apply():
            on_each_replica(update, optimizer, gradients, variables)
            self._run.assign(0)

        def skip():
            first = on_each_replica(_first_not_finite, suspects)[0]
            run = tf.convert_to_tensor(self._run)
            self._first.assign(tf.where(run == 0, first, tf.convert_to_tensor(self._first)))
            self._run.assign(run + 1)
            for variable, value in kept:
                strategy.extended.update(variable, lambda v, old: v.assign(old), args=(value,))

        self._steps.assign_add(1)
        tf.cond(strategy.experimental_local_results(is_passed_on)[0], apply, skip)


def _apply(optimizer, gradients, variables):
    optimizer.apply(gradients, variables)


def _squares_are_finite(gradients, scale=1.0):
    return tf.math.is_finite(
        tf.add_n([tf.cast(tf.nn.l2_loss(_dense(g) / tf.cast(scale, g.dtype)), tf.float32) for g in gradients])
    )


def _all_finite(tensors):
    return tf.reduce_all(tf.stack([tf.reduce_all(tf.math.is_finite(_dense(t))) for t in tensors]))


def _first_not_finite(values):
    """The index of the first that is not, on any replica."""
    bad = tf.stack([tf.cast(~_all_finite([value]), tf.float32) for value in values])
    return tf.argmax(tf.cast(_sum_over_replicas(bad) > 0.0, tf.int32), output_type=tf.int32)


def _on_all_replicas(is_true):
    return _sum_over_replicas(tf.cast(~is_true, tf.float32)) == 0.0


def _sum_over_replicas(value):
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def _dense(gradient):
    """What matters of an `IndexedSlices`."""
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else tf.convert_to_tensor(gradient)
