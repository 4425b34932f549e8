"""Keeps updates that are not finite out of a model, counts them, and says where they came from."""

import warnings

import keras
import tensorflow as tf

from tfp_selfnorm.model import fused_update


class UpdateGuard:
    """Applies the gradients of a step if they, the loss and the learning rate are finite; skips others.

    Gradients whose sum of squares overflows count as not finite: optimizers square them. A skipped step
    leaves the weights as they were. The weights that an update has written are looked at: one that overflowed
    stops the training at once, with an error of its own, since the weights before it are gone.

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
        self._names, self._variable_names = [], []

    @property
    def steps(self):
        """How many steps there were, skipped ones included: a Keras variable."""
        return self._steps

    @property
    def transient_state(self) -> tuple:
        """The variables that no file is to keep: a run of skipped steps ends with the process."""
        return self._run, self._first

    def apply(self, optimizer, gradients, variables, loss, candidates, restored=()) -> tf.Tensor:
        """Applies the gradients, or not.

        Args:
          optimizer: a Keras optimizer, built.
          gradients: one for each variable, `None` where there is none.
          variables: mapping from names to Keras variables.
          loss: scalar.
          candidates: pairs of a name and a tensor in the order in which the step computed them: the first
            that is not finite is to blame. Before them come the variables; after them the loss, the
            gradients, their squares, and the learning rate.
          restored: pairs of a `tf.Variable` and its value before the step, which a skipped step puts back.

        Returns:
          Whether the step was right, a scalar of bool.
        """
        if not variables:
            warnings.warn(
                "The model has no trainable weights: it is measured, and not trained.", stacklevel=2
            )
            return tf.constant(True)
        named = [(n, g) for n, g in zip(variables, gradients, strict=True) if g is not None]
        scale, rate = _loss_scale(optimizer), tf.convert_to_tensor(getattr(optimizer, "learning_rate", 1.0))
        squares = [tf.cast(tf.nn.l2_loss(_dense(g) / tf.cast(scale, g.dtype)), tf.float32) for _, g in named]
        total = tf.add_n(squares)
        candidates = [
            *((f"`{name}`", variable) for name, variable in variables.items()),
            *candidates,
            ("the loss", loss),
            *((f"the gradient of `{name}`", gradient) for name, gradient in named),
            *((f"the square of the gradient of `{n}`", s) for (n, _), s in zip(named, squares, strict=True)),
            ("the sum of the squares of the gradients", total),
            ("the learning rate", rate),
        ]
        self._names = [name for name, _ in candidates]
        self._variable_names = list(variables)
        may_continue = tf.convert_to_tensor(self._run) < self.max_skipped
        is_computable = _on_all_replicas(tf.math.is_finite(loss) & tf.math.is_finite(rate))
        is_finite = is_applied = is_computable & _on_all_replicas(tf.math.is_finite(total))
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            # It has a guard of its own, against overflow of the scaled gradients, and needs to see them.
            overflows = ~_on_all_replicas(_all_finite([g for _, g in named])) & (scale > 1.0)
            is_applied = is_finite | (is_computable & overflows)
        values, is_applied = [value for _, value in candidates], is_applied & may_continue
        arguments = optimizer, gradients, list(variables.values()), is_applied, values, restored
        # The branches may only be entered by all replicas at once.
        tf.distribute.get_replica_context().merge_call(self._apply_or_skip, args=arguments)
        return is_finite & may_continue

    def begin(self, max_skipped, fuses) -> None:
        """Takes the attributes of these names, and forgets the run of skipped steps."""
        self.max_skipped, self.fuses = max_skipped, fuses
        self._run.assign(0)

    def check(self, step) -> None:
        """Raises ValueError if so many steps in a row were skipped, or an update broke a weight.

        Then the next run begins.
        """
        if int(self._run.numpy()) < self.max_skipped:
            return
        self._run.assign(0)
        first = int(self._first.numpy())
        if first >= len(self._names):
            raise ValueError(
                f"The update of step {step - 1} made `{self._variable_names[first - len(self._names)]}` not "
                "finite, although the loss, the gradients and the learning rate were finite: the update "
                "overflowed. Training stopped there; load earlier weights, and take a smaller learning rate."
            )
        raise ValueError(
            f"{self.max_skipped} updates in a row were not finite and so skipped, from step {step} on; "
            f"first to be not finite was {self._names[first]}. The weights are those of step {step}. See "
            "`max_skipped_updates` of `compile`; a smaller learning rate or `clipnorm` may help."
        )

    def _apply_or_skip(self, strategy, optimizer, gradients, variables, is_applied, candidates, restored):
        def on_each_replica(function, *arguments):
            results = strategy.extended.call_for_each_replica(function, args=arguments)
            return strategy.experimental_local_results(results)

        def apply():
            is_finite = on_each_replica(fused_update.apply, optimizer, gradients, variables, self.fuses)[0]
            broken = len(candidates) + tf.argmin(tf.cast(is_finite, tf.int32), output_type=tf.int32)
            is_broken = ~tf.reduce_all(is_finite)
            self._first.assign(tf.where(is_broken, broken, tf.convert_to_tensor(self._first)))
            self._run.assign(tf.where(is_broken, self.max_skipped, 0))

        def skip():
            first = on_each_replica(_first_not_finite, candidates)[0]
            run = tf.convert_to_tensor(self._run)
            self._first.assign(tf.where(run == 0, first, tf.convert_to_tensor(self._first)))
            self._run.assign(run + 1)
            for variable, value in restored:
                strategy.extended.update(variable, lambda v, old: v.assign(old), args=(value,))

        self._steps.assign_add(1)
        tf.cond(strategy.experimental_local_results(is_applied)[0], apply, skip)


def _loss_scale(optimizer):
    is_scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    return tf.convert_to_tensor(optimizer.dynamic_scale) if is_scaled else tf.ones([])


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
