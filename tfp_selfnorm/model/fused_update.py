"""The update by the optimizer as one compiled loop over each variable."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

# For smaller variables compiling takes longer than the passes over memory that it saves.
_LARGE_VARIABLE = 2**16


def apply(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[Any],
    variables: Sequence[keras.Variable],
    fuses: bool = True,
) -> tf.Tensor:
    """Calls `optimizer.apply(gradients, variables)`, compiled by XLA if that is faster.

    In a graph of TensorFlow each operation of the update reads and writes memory. On the CPU Adam takes as
    long as the matrix products of a step; compiled it takes a third of that. It is faster for large variables
    only. Optimizers of other packages may have operations that XLA lacks, and are not compiled. With replicas
    or a GPU nothing is compiled here; on GPUs Keras compiles the whole step.

    Args:
      optimizer: a Keras optimizer, built.
      gradients: one for each variable, or `None`.
      variables: Keras variables.
      fuses: whether the update may be compiled.

    Returns:
      Whether each variable is finite after the update, a vector of bool.
    """

    def update():
        optimizer.apply(gradients, variables)
        # One pass without a copy. The sum of useful weights does not overflow.
        return tf.stack([tf.math.is_finite(tf.cast(tf.reduce_sum(v.value), tf.float64)) for v in variables])

    if fuses and _pays(optimizer, gradients, variables):
        return tf.function(update, autograph=False, jit_compile=True)()
    return update()


def _pays(optimizer, gradients, variables):
    is_keras = type(optimizer).__module__.startswith("keras.")
    is_plain = is_keras and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    return (
        is_plain
        and tf.inside_function()
        and not tf.distribute.has_strategy()
        and not tf.config.list_logical_devices("GPU")
        and all(isinstance(gradient, tf.Tensor) for gradient in gradients)
        and any(variable.value.shape.num_elements() >= _LARGE_VARIABLE for variable in variables)
    )
