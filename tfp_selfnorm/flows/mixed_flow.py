"""Flows of vectors: mixing layers and layers with a network, in turns."""

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors import SelfNormDense
from tfp_selfnorm.flows.building import check_base, check_preprocessing, layer_maker, standard_normal_flow
from tfp_selfnorm.flows.dense_flow import lu_layer
from tfp_selfnorm.utils.integers import check_positive_int, check_sizes
from tfp_selfnorm.utils.names import check_optional_name
from tfp_selfnorm.utils.options import check_dtype
from tfp_selfnorm.utils.seeds import split_seeds
from tfp_selfnorm.utils.types import DType, Seed, Shape

tfb = tfp.bijectors


def mixed_flow(
    builder: Callable,
    make_change: Callable,
    change_name: str,
    *,
    event_shape: Shape,
    condition_shape: Shape | None,
    num_layers: int,
    layer: str,
    layer_options: dict[str, Any],
    network: Callable,
    preprocessing: tfp.bijectors.Bijector | None,
    base: tfp.distributions.Distribution | None,
    dtype: DType,
    seed: Seed,
    name: str,
) -> tfp.distributions.TransformedDistribution:
    """Mixing layers and layers with a network, in turns, and a standard normal base or the given one.

    Args:
      builder: the function that builds the flow. It has the other arguments, with the same meaning.
      make_change: function that makes a layer with a network: `make_change(size, make_network, name=...)`.
        It calls `make_network(num_inputs, num_outputs)`.
      change_name: the name of these layers, before their number.

    Raises:
      TypeError: if an argument is unknown or of another type.
      ValueError: if an argument is out of range.
    """
    check_optional_name(name)
    make_layer = layer_maker(builder, layer, layer_options, _LAYERS, SelfNormDense.check_options)
    event_shape = check_sizes(event_shape, "event_shape", "fully defined, of positive sizes", bool)
    size, condition_size = math.prod(event_shape), _condition_size(condition_shape)
    if size == 1 and not condition_size:
        raise ValueError("`condition_shape` must be given for events of one dimension; got None.")
    num_layers, dtype = check_positive_int(num_layers, "num_layers"), check_dtype(dtype)
    check_base(base, [size], dtype)
    seeds = split_seeds(seed, 2 * num_layers, builder.__name__)
    bijectors = check_preprocessing(preprocessing)
    if len(event_shape) != 1:
        bijectors.append(tfb.Reshape(event_shape_out=event_shape, event_shape_in=[size]))
    for i in range(num_layers):
        if size > 1:
            bijectors.append(make_layer(size, dtype=dtype, seed=seeds[2 * i], name=f"mixing_{i}"))
        change = f"{change_name}_{i}"

        def make_network(num_inputs, num_outputs, name=f"{change}_network", seed=seeds[2 * i + 1]):
            options = {"condition_size": condition_size, "seed": int(seed[0]), "dtype": dtype.name}
            return network(num_inputs, num_outputs, name=name, **options)

        bijectors.append(make_change(size, make_network, name=change))
    return standard_normal_flow([size], bijectors, dtype, name, preprocessing, base)


def network_maker(network: Callable | None, default: Callable, width: int, depth: int) -> Callable:
    """The function that makes the network of a layer; `None` stands for the default, of a width and depth.

    Raises:
      TypeError: if `network` is no function.
      ValueError: if `width` or `depth` is out of range.
    """
    width, depth = check_positive_int(width, "width"), check_positive_int(depth, "depth")
    if network is not None and not callable(network):
        raise TypeError(f"`network` must be a function that makes a network, or None; got {network!r}.")

    def make(num_inputs, num_outputs, **arguments):
        return default(num_inputs, num_outputs, width, depth, **arguments)

    return network or make


def _condition_size(shape):
    if shape is None:
        return 0
    return check_sizes(shape, "condition_shape", "one positive size", lambda sizes: len(sizes) == 1)[0]


def _permute(size, dtype, seed, name):
    return tfb.Permute(list(reversed(range(size))), name=name)


def _self_norm(size, name, **options):
    layer = SelfNormDense.trainable(size, name=name, **options)
    for kernel in layer.inverse_kernel, layer.forward_kernel:
        kernel.assign(tf.reverse(tf.eye(size, dtype=kernel.dtype), axis=[0]))
    return layer


def _lu(size, dtype, seed, name):
    return lu_layer(size, dtype, seed, name, reverses=True)


_LAYERS = {"self_norm": _self_norm, "lu": _lu, "permute": _permute}
