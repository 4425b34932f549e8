"""The optimizer's update as one compiled loop over each variable."""

import keras
import tensorflow as tf

# Below it the passes over memory that fusing saves take less time than compiling.
_LARGE_VARIABLE = 2**16


def apply(optimizer, gradients, variables, fuses=True) -> tf.Tensor:
    """`optimizer.apply(gradients, variables)`, where that pays compiled by XLA.

    TensorFlow's graph reads and writes memory for each operation of the update: on the CPU Adam takes as long
    as the products of a step, and fused a third of that. It pays for large variables. Optimizers that are not
    Keras's own may do what XLA cannot, and are left alone, as are replicas and GPUs, where Keras compiles the
    whole step.

    Args:
      optimizer: a Keras optimizer, built.
      gradients: one for each variable, `None` where there is none.
      variables: Keras variables.
      fuses: whether the update may be compiled.

    Returns:
      Whether each variable is finite after the update, a vector of bool.
    """

    def update():
        optimizer.apply(gradients, variables)
        # One pass without a copy. A sum overflows for no weights that are of use.
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
