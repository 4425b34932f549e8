"""The parameters of bijectors: their dtype, their shapes, and the shapes of events."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.utils.options import as_tensor
from tfp_selfnorm.utils.types import Parameter, TfpObject


def ensure_event(x: tf.Tensor, event_sizes: Sequence[int]) -> tf.Tensor:
    """Returns `x` with the sizes of an event; sizes that are unknown now are checked at run time."""
    if x.shape.rank is None:
        return x
    # A reshape would accept all sizes with the right product.
    batch = [None] * (x.shape.rank - len(event_sizes))
    return tf.ensure_shape(x, [*batch, *event_sizes])


def kernel_variables(
    forward_kernel: tf.Tensor, inverse_kernel: tf.Tensor, name: str, **options: Any
) -> tuple[tf.Variable, tf.Variable]:
    """R and W as variables, named after the layer; `options` are of `tf.Variable`."""
    # Each replica of a distributed step assigns R; all replicas assign the same value.
    options = {"aggregation": tf.VariableAggregation.MEAN, **options}
    return (
        tf.Variable(forward_kernel, name=f"{name}_forward_kernel", **options),
        tf.Variable(inverse_kernel, name=f"{name}_inverse_kernel", **options),
    )


def as_parameters(**values: Parameter) -> tuple[Any, ...]:
    """Returns the dtype of the parameters, and the parameters. Constants become tensors.

    The dtype is float32 or float64, the same for all. Python numbers are float32. Only a `bias` may be
    `None`.

    Raises:
      TypeError: if a parameter has another dtype or is missing, or the dtypes differ.
    """
    parameters = {name: _as_parameter(value, name) for name, value in values.items()}
    dtypes = {name: tf.as_dtype(value.dtype) for name, value in parameters.items() if value is not None}
    for name, dtype in dtypes.items():
        if dtype not in (tf.float32, tf.float64):
            raise TypeError(f"`{name}` must be floating, float32 or float64; got dtype {dtype.name}.")
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"`{name}` {dtype.name}" for name, dtype in dtypes.items())
        raise TypeError(f"The parameters must have one dtype; got {listed}.")
    return next(iter(dtypes.values())), *parameters.values()


def _as_parameter(value, name):
    if is_mutable(value) or (value is None and name == "bias"):
        return value
    if value is None:
        raise TypeError(f"`{name}` must be a tensor or a tf.Variable; got None.")
    return as_tensor(value, name, "a tensor of numbers or a tf.Variable")


def is_mutable(value: Parameter) -> bool:
    """Whether the value of a parameter may change: it is a variable or a `tfp.util.DeferredTensor`."""
    return isinstance(value, (tf.Variable, tfp.util.DeferredTensor))


def is_checked_now(bijector: TfpObject, value: Parameter, is_init: bool) -> bool:
    """Whether TFP must check a parameter now: a constant in the constructor, a mutable value at each call."""
    return bijector.validate_args and is_init != is_mutable(value)


def parameter_properties(**event_ndims: int | Callable) -> dict[str, Any]:
    """TFP's properties of parameters, from the rank of each in a bijector without a batch shape."""
    return {name: tfp.util.ParameterProperties(event_ndims=ndims) for name, ndims in event_ndims.items()}


def check_event_shape(x: tf.Tensor, event_sizes: Sequence[int], name: str, owner: str) -> None:
    """Raises ValueError if `x` cannot be a batch of events.

    Args:
      x: the input of a bijector.
      event_sizes: the sizes of an event.
      name: the name of the argument.
      owner: the name of the bijector.
    """
    ndims = len(event_sizes)
    if x.shape.rank is None:
        return
    if x.shape.rank < ndims or not x.shape[x.shape.rank - ndims :].is_compatible_with(event_sizes):
        raise ValueError(
            f"`{name}` of `{owner}` has shape {tuple(x.shape)}; expected "
            f"(..., {', '.join(map(str, event_sizes))}), a batch of events."
        )
