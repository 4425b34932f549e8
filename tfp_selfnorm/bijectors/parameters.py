"""The parameters of bijectors: their dtype, their shapes, and the shapes of events."""

import tensorflow as tf
import tensorflow_probability as tfp


def ensure_event(x, event_sizes):
    """`x`, whose last sizes are checked at run time where they are not known before."""
    if x.shape.rank is None:
        return x
    # A reshape would take any sizes of the right product.
    batch = [None] * (x.shape.rank - len(event_sizes))
    return tf.ensure_shape(x, [*batch, *event_sizes])


def kernel_variables(forward_kernel, inverse_kernel, name):
    """The two kernels as variables, named after the layer."""
    # A replica of a distributed step assigns R too; all of them assign the same.
    return [
        tf.Variable(value, name=f"{name}_{direction}_kernel", aggregation=tf.VariableAggregation.MEAN)
        for direction, value in (("forward", forward_kernel), ("inverse", inverse_kernel))
    ]


def as_parameters(**values):
    """The one dtype of the parameters, and each of them: a tensor, or as it is if it may change.

    The dtype is float32 or float64; Python numbers count as float32. Only a `bias` may be `None`.

    Raises:
      TypeError: if a parameter is of another dtype or missing, or the dtypes differ.
    """
    dtype = _common_dtype(**values)
    return dtype, *(
        value if value is None or is_mutable(value) else tf.convert_to_tensor(value, dtype, name=name)
        for name, value in values.items()
    )


def _common_dtype(**parameters):
    dtypes = {}
    for name, value in parameters.items():
        if value is None and name == "bias":
            continue
        if value is None:
            raise TypeError(f"`{name}` must be a tensor or a tf.Variable; got None.")
        dtype = getattr(value, "dtype", None) or _as_tensor(value, name).dtype
        dtypes[name] = tf.as_dtype(dtype)
        if dtypes[name] not in (tf.float32, tf.float64):
            raise TypeError(f"`{name}` must be floating, float32 or float64; got dtype {dtypes[name].name}.")
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"`{name}` {dtype.name}" for name, dtype in dtypes.items())
        raise TypeError(f"The parameters must have one dtype; got {listed}.")
    return next(iter(dtypes.values()))


def _as_tensor(value, name):
    try:
        return tf.convert_to_tensor(value, name=name)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be a tensor of numbers or a tf.Variable; got {value!r}.") from error


def is_mutable(value):
    """Whether the value of a parameter may change: of a variable or a `tfp.util.DeferredTensor`."""
    return isinstance(value, (tf.Variable, tfp.util.DeferredTensor))


def is_checked_now(bijector, value, is_init):
    """Whether TFP is to check a parameter: a constant in the constructor, a mutable value at each call."""
    return bijector.validate_args and is_init != is_mutable(value)


def parameter_properties(**event_ndims):
    """TFP's properties of parameters, given the rank of each in a bijector without a batch shape."""
    return {name: tfp.util.ParameterProperties(event_ndims=ndims) for name, ndims in event_ndims.items()}


def check_event_shape(x, event_sizes, name, owner):
    """Raises ValueError unless `x`, so called, may be a batch of events of these sizes, the owner's."""
    ndims = len(event_sizes)
    if x.shape.rank is None:
        return
    if x.shape.rank < ndims or not x.shape[x.shape.rank - ndims :].is_compatible_with(event_sizes):
        raise ValueError(
            f"`{name}` of `{owner}` has shape {tuple(x.shape)}; expected "
            f"(..., {', '.join(map(str, event_sizes))}): that is the shape of its events."
        )
