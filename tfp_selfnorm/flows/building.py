"""Functions that the builders of flows share."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors import Centering, LeakyReLU, LeakySquareplus, SmoothLeakyReLU, trainable_spline
from tfp_selfnorm.flows.support import preprocessed_flow
from tfp_selfnorm.utils.integers import check_sizes
from tfp_selfnorm.utils.options import check_bool, check_choice
from tfp_selfnorm.utils.types import Shape

tfb = tfp.bijectors
tfd = tfp.distributions

# The options of self-normalizing layers that builders pass on, with their default values.
SELF_NORM_OPTIONS = {"gradient": "self_norm", "mixture": 0.5, "inversion": None}


def standard_normal_flow(
    latent_shape: Sequence[int],
    bijectors: list,
    dtype: tf.DType,
    name: str,
    preprocessing: tfp.bijectors.Bijector | None,
    base: tfp.distributions.Distribution | None = None,
) -> tfp.distributions.TransformedDistribution:
    """A flow of bijectors, from data to latent, with a standard normal base, or the given one.

    With a preprocessing, then the first of the bijectors, the density outside its range is 0.
    """
    if base is None:
        base = tfd.Sample(tfd.Normal(tf.zeros([], dtype), tf.ones([], dtype)), latent_shape)
    if preprocessing is not None:
        return preprocessed_flow(base, tfb.Chain(bijectors), name)
    return tfd.TransformedDistribution(base, tfb.Chain(bijectors), name=name)


def check_base(
    base: tfp.distributions.Distribution | None, latent_shape: Sequence[int], dtype: tf.DType
) -> None:
    """Checks the base distribution of a flow; `None` is right.

    Raises:
      TypeError: if `base` is no distribution.
      ValueError: if it has another event shape or dtype.
    """
    if base is None:
        return
    if not isinstance(base, tfd.Distribution):
        raise TypeError(f"`base` must be a TFP distribution or None; got {type(base).__name__}.")
    if list(base.event_shape) != list(latent_shape) or base.dtype != dtype:
        raise ValueError(
            f"`base` must have the event shape {list(latent_shape)} and dtype {dtype.name}; got "
            f"{base.event_shape} and {tf.as_dtype(base.dtype).name}."
        )


def layer_maker(
    builder: Callable,
    layer: str,
    layer_options: dict[str, Any],
    makers: Mapping[str, Any],
    check_options: Callable,
) -> Callable:
    """The function that makes the linear layers of a flow.

    Args:
      builder: the function that builds the flow, for its name and its arguments in errors.
      layer: the name of the layer, one of `makers`.
      layer_options: the options of the layer "self_norm", by name; no other layer has options.
      makers: functions that make a layer, by name.
      check_options: raises TypeError or ValueError if an option of "self_norm" has a wrong value.

    Raises:
      TypeError: if an option is unknown.
      ValueError: if the layer is unknown, or a layer without options gets one.
    """
    unknown = next((option for option in layer_options if option not in SELF_NORM_OPTIONS), None)
    if unknown is not None:
        allowed = ", ".join(f"`{option}`" for option in SELF_NORM_OPTIONS)
        parameters = inspect.signature(builder).parameters.values()
        known = ", ".join(f"`{p.name}`" for p in parameters if p.kind is not p.VAR_KEYWORD)
        renamed = " After version 0.1.0 it is called `layer`." if unknown == "mixing" else ""
        raise TypeError(
            f"`{unknown}` is no argument of `{builder.__name__}`, which are {known}; and no option of "
            f"`layer` 'self_norm', which are {allowed}.{renamed}"
        )
    check_choice(layer, "layer", tuple(makers))
    if layer == "self_norm":
        check_options(**SELF_NORM_OPTIONS | layer_options, validate_args=False)
    elif layer_options:
        option, value = next(iter(layer_options.items()))
        raise ValueError(
            f"`{option}` is an option of `layer` 'self_norm' alone; got {value!r} for {layer!r}. That "
            "layer is exact in both directions."
        )
    return functools.partial(makers[layer], **layer_options)


def trainable_lu(matrix: tf.Tensor, name: str) -> tfp.bijectors.ScaleMatvecLU:
    """`tfb.ScaleMatvecLU` with the LU factors of a matrix as initial values."""
    lower_upper, permutation = tf.linalg.lu(matrix, output_idx_type=tf.int64)
    # A variable, so that it is saved together with the factors. An int32 one would stay in the memory of the
    # host, where a step that XLA compiles for a GPU cannot reach it, and TFP wants int32.
    permutation = tf.Variable(permutation, trainable=False, name=f"{name}_permutation")
    permutation = tfp.util.DeferredTensor(permutation, _as_int32, dtype=tf.int32)
    return tfb.ScaleMatvecLU(tf.Variable(lower_upper, name=f"{name}_lower_upper"), permutation, name=name)


def _as_int32(values):
    return tf.cast(values, tf.int32)


def activation_maker(activation: str | Callable | None, dtype: tf.DType) -> Callable | None:
    """A function that makes a bijector, from data to latent, for the shape or size of events and a name."""
    if activation is None:
        return None
    if callable(activation) and not isinstance(activation, tfb.Bijector):
        return lambda event_shape, name: _made_by(activation, event_shape)
    slope = tf.constant(0.3, dtype)
    makers = {
        "smooth_leaky_relu": lambda event_shape, name: SmoothLeakyReLU(slope, name=name),
        "leaky_relu": lambda event_shape, name: LeakyReLU(slope, name=name),
        "leaky_squareplus": lambda event_shape, name: LeakySquareplus(slope, name=name),
        "spline": lambda event_shape, name: trainable_spline(event_shape, dtype=dtype, name=name),
    }
    expected = "one of {}, None or a function that makes a bijector"
    check_choice(activation, "activation", tuple(makers), expected)
    return makers[activation]


def _made_by(activation, event_shape):
    bijector = activation(event_shape)
    if not isinstance(bijector, tfb.Bijector):
        raise TypeError(
            "`activation` must return a TFP bijector for the shape of events; got "
            f"{type(bijector).__name__} from {activation!r}."
        )
    return bijector


def check_preprocessing(preprocessing: tfp.bijectors.Bijector | None) -> list:
    """Returns a list of the bijector, empty for `None`; raises TypeError if it is no TFP bijector."""
    if preprocessing is None:
        return []
    if not isinstance(preprocessing, tfb.Bijector):
        raise TypeError(f"`preprocessing` must be a TFP bijector or None; got {preprocessing!r}.")
    return [preprocessing]


def first_bijectors(
    preprocessing: tfp.bijectors.Bijector | None, centering: bool, event_shape: Sequence[int], dtype: tf.DType
) -> list:
    """Returns a list of the bijectors before the layers: the preprocessing, and with `centering` a mean."""
    bijectors = check_preprocessing(preprocessing)
    if check_bool(centering, "centering"):
        bijectors.append(Centering.trainable(event_shape, dtype=dtype))
    return bijectors


def squeezed(shape: Sequence[int]) -> tuple[int, int, int]:
    """The shape of an image after a `Squeeze`."""
    return shape[0] // 2, shape[1] // 2, 4 * shape[2]


def check_image_shape(image_shape: Shape, divisor: int) -> tuple:
    """Returns the shape as a tuple; raises ValueError if a size is unknown, or a side is not divisible."""
    expected = "(height, width, channels), known and positive"
    sizes = check_sizes(image_shape, "image_shape", expected, lambda sizes: len(sizes) == 3)
    if any(size % divisor for size in sizes[:2]):
        raise ValueError(
            f"`image_shape` must have a height and a width divisible by {divisor} for this number of blocks; "
            f"got {image_shape!r}."
        )
    return tuple(sizes)
