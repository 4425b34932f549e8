"""Keeps updates that are not finite out of a model, counts them, and says where they came from."""

import keras
import tensorflow as tf


class UpdateGuard:
    """Applies the gradients of a step if they and the loss are finite, and skips the step otherwise.

    After `max_skipped` in a row nothing is applied any more until `reset`: so the host may look, by `check`,
    now and then, and need not wait for the device at every step.

    Args:
      add_state: function of an initial value, a name and a dtype that makes a scalar variable.
    """

    def __init__(self, add_state):
        self._run = add_state(0, "skipped_in_a_row", "int32")
        self._first = add_state(0, "first_not_finite", "int32")
        self._names = []

    def apply(self, optimizer, gradients, variables, loss, suspects, max_skipped, kept=()) -> tf.Tensor:
        """Applies the gradients, or not.

        Args:
          optimizer: a Keras optimizer, built.
          gradients: one for each variable, `None` where there is none.
          variables: Keras variables.
          loss: scalar.
          suspects: pairs of a name and a tensor in the order in which the step computed them: the first that
            is not finite is to blame. Before them come the variables, after them the gradients.
          max_skipped: the longest run of skipped steps.
          kept: pairs of a `tf.Variable` and its value before the step, which a skipped step puts back.

        Returns:
          Whether loss and gradients were finite, a scalar of bool.
        """
        gradients_by_name = [
            (f"the gradient of `{variable.name}`", gradient)
            for variable, gradient in zip(variables, gradients, strict=True)
            if gradient is not None
        ]
        suspects = [*((f"`{v.name}`", v) for v in variables), *suspects, *gradients_by_name]
        self._names = [name for name, _ in suspects]
        values = [value for _, value in suspects]
        loss_is_finite = _on_all_replicas(tf.math.is_finite(loss))
        gradients_are_finite = _on_all_replicas(_all_finite([gradient for _, gradient in gradients_by_name]))
        is_finite = loss_is_finite & gradients_are_finite
        is_right = is_finite
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            # It has a guard of its own, against overflow of the scaled gradients, and needs to see them.
            is_right |= loss_is_finite & (tf.convert_to_tensor(optimizer.dynamic_scale) > 1.0)
        # The branches may only be entered by all replicas at once.
        tf.distribute.get_replica_context().merge_call(
            self._apply_or_skip, args=(optimizer, gradients, variables, is_right, values, max_skipped, kept)
        )
        return is_finite

    def reset(self) -> None:
        """Forgets the run."""
        self._run.assign(0)

    def check(self, max_skipped, step) -> None:
        """Raises ValueError if so many steps in a row were skipped."""
        if int(self._run.numpy()) >= max_skipped:
            first = self._names[int(self._first.numpy())]
            raise ValueError(
                f"{max_skipped} updates in a row were not finite and so skipped, from step {step} on; first "
                f"to be not finite was {first}. The weights are those of step {step}. See "
                "`max_skipped_updates` of `compile`; a smaller learning rate or `clipnorm` may help."
            )

    def _apply_or_skip(
        self, strategy, optimizer, gradients, variables, is_right, suspects, max_skipped, kept
    ):
        def on_each_replica(function, *arguments):
            results = strategy.extended.call_for_each_replica(function, args=arguments)
            return strategy.experimental_local_results(results)

        def apply():
            on_each_replica(optimizer.apply, gradients, variables)
            self._run.assign(0)

        def skip():
            first = on_each_replica(_first_not_finite, suspects)[0]
            run = tf.convert_to_tensor(self._run)
            self._first.assign(tf.where(run == 0, first, tf.convert_to_tensor(self._first)))
            self._run.assign(run + 1)
            for variable, value in kept:
                strategy.extended.update(variable, lambda v, old: v.assign(old), args=(value,))

        is_right = strategy.experimental_local_results(is_right)[0]
        tf.cond(is_right & (tf.convert_to_tensor(self._run) < max_skipped), apply, skip)


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
