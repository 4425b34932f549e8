"""The optimizer's update as one compiled loop over each variable."""

import keras
import tensorflow as tf

# Below it the passes over memory that fusing saves take less time than compiling.
_LARGE_VARIABLE = 2**16


def apply(optimizer, gradients, variables) -> None:
    """`optimizer.apply(gradients, variables)`, where that pays compiled by XLA.

    TensorFlow's graph reads and writes memory for each operation of the update: on the CPU Adam takes as long
    as the products of a step, and fused a third of that. It pays for large variables. Optimizers that are not
    Keras's own may do what XLA cannot, and are left alone, as are replicas and GPUs, where Keras compiles the
    whole step.
    """
    if _pays(optimizer, gradients, variables):
        fused = tf.function(lambda: optimizer.apply(gradients, variables), autograph=False, jit_compile=True)
        fused()
    else:
        optimizer.apply(gradients, variables)


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
