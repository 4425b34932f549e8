"""`coupling_flow`: couplings of vectors with self-normalizing layers between them."""

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors import AffineCoupling, SelfNormDense, SplineCoupling
from tfp_selfnorm.bijectors.spline import MAX_BINS
from tfp_selfnorm.flows.building import check_base, check_preprocessing, layer_maker, standard_normal_flow
from tfp_selfnorm.flows.dense_flow import lu_layer
from tfp_selfnorm.flows.networks import dense_network
from tfp_selfnorm.utils.integers import check_int, check_positive_int, check_sizes
from tfp_selfnorm.utils.names import check_optional_name
from tfp_selfnorm.utils.options import check_choice, check_dtype, check_positive
from tfp_selfnorm.utils.seeds import split_seeds
from tfp_selfnorm.utils.types import DType, Seed, Shape

tfb = tfp.bijectors


@keras.saving.register_keras_serializable("tfp_selfnorm")
def coupling_flow(
    event_shape: Shape,
    condition_shape: Shape | None = None,
    *,
    num_layers: int = 4,
    transform: str = "spline",
    num_bins: int = 8,
    bound: float = 5.0,
    layer: str = "self_norm",
    network: Callable | None = None,
    width: int = 64,
    depth: int = 2,
    preprocessing: tfp.bijectors.Bijector | None = None,
    base: tfp.distributions.Distribution | None = None,
    dtype: DType = tf.float32,
    seed: Seed = None,
    name: str = "coupling_flow",
    **layer_options: Any,
) -> tfp.distributions.TransformedDistribution:
    """A flow of vectors: mixing layers and couplings, in turns, and a standard normal base.

    From data to latent: preprocessing, flattening, then `num_layers` times a mixing layer and a coupling. The
    coupling changes the second half of the dimensions by a network of the first half. Each mixing layer
    reverses the order of the dimensions at first, so that couplings in turns change each half, and learns
    from there. An event with one dimension has no mixing layers, and needs a condition.

    Args:
      event_shape: shape of an event: int, tuple or `tf.TensorShape`.
      condition_shape: shape of a condition, or `None`. The couplings are named `coupling_0` and so on:
        `flow.log_prob(x, bijector_kwargs={"coupling_0": {"condition": c}, ...})`.
      num_layers: number of couplings.
      transform: "spline", a `SplineCoupling`, or "affine", an `AffineCoupling`.
      num_bins: number of bins of each spline.
      bound: half the width of the interval of the splines; the limit of |s| of the affine couplings.
      layer: "self_norm", a `SelfNormDense`; "lu", a matrix of LU factors; or "permute", which reverses the
        order of the dimensions.
      network: function that makes the network of a coupling: `network(num_inputs, num_outputs,
        condition_size=..., seed=..., dtype=..., name=...)`. `None` is `dense_network` with `width` and
        `depth`.
      width: number of units of the hidden layers.
      depth: number of hidden layers.
      preprocessing: bijector from latent to data that is applied last. Outside its range the density is 0:
        `log_prob` is -inf, with gradients of 0.
      base: distribution of the latents, with events of one dimension of the size of an event; `None` is the
        standard normal one.
      dtype: float32 or float64.
      seed: int or stateless TFP seed of the initial values.
      name: name of the distribution.
      **layer_options: `gradient`, `mixture` and `inversion` of the layer "self_norm", see `SelfNormDense`.

    Returns:
      A `tfd.TransformedDistribution`. `log_prob` is in nats.

    Raises:
      TypeError: if an argument is unknown or of another type.
      ValueError: if an argument is out of range.

    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> flow = sn.coupling_flow(event_shape=2, num_layers=2, width=16, seed=1)
    >>> flow.log_prob(tf.zeros([5, 2])).shape, flow.sample(3, seed=2).shape
    (TensorShape([5]), TensorShape([3, 2]))

    References: Durkan et al., "Neural Spline Flows", NeurIPS 2019; Keller et al., "Self Normalizing Flows",
    ICML 2021, section 5.3, for self-normalizing mixing layers between couplings.
    """
    check_optional_name(name)
    make_layer = layer_maker(coupling_flow, layer, layer_options, _LAYERS, SelfNormDense.check_options)
    make_coupling = _coupling_maker(transform, num_bins, bound)
    event_shape = check_sizes(event_shape, "event_shape", "fully defined, of positive sizes", bool)
    size, condition_size = math.prod(event_shape), _condition_size(condition_shape)
    if size == 1 and not condition_size:
        raise ValueError("`condition_shape` must be given for events of one dimension; got None.")
    num_layers, dtype = check_positive_int(num_layers, "num_layers"), check_dtype(dtype)
    check_base(base, [size], dtype)
    make_network = _network_maker(network, width, depth)
    seeds = split_seeds(seed, 2 * num_layers, "coupling_flow")
    bijectors = check_preprocessing(preprocessing)
    if len(event_shape) != 1:
        bijectors.append(tfb.Reshape(event_shape_out=event_shape, event_shape_in=[size]))
    for i in range(num_layers):
        if size > 1:
            bijectors.append(make_layer(size, dtype=dtype, seed=seeds[2 * i], name=f"mixing_{i}"))
        options = {"condition_size": condition_size, "seed": int(seeds[2 * i + 1][0]), "dtype": dtype.name}
        bijectors.append(make_coupling(size, make_network, options, f"coupling_{i}"))
    return standard_normal_flow([size], bijectors, dtype, name, preprocessing, base)


def _condition_size(shape):
    if shape is None:
        return 0
    return check_sizes(shape, "condition_shape", "one positive size", lambda sizes: len(sizes) == 1)[0]


def _coupling_maker(transform, num_bins, bound):
    check_choice(transform, "transform", tuple(_COUPLINGS))
    num_bins, bound = check_int(num_bins, "num_bins", 2, MAX_BINS), check_positive(bound, "bound")
    return functools.partial(_COUPLINGS[transform], num_bins=num_bins, bound=bound)


def _network_maker(network, width, depth):
    width, depth = check_positive_int(width, "width"), check_positive_int(depth, "depth")
    if network is not None and not callable(network):
        raise TypeError(f"`network` must be a function that makes a network, or None; got {network!r}.")

    def make(num_inputs, num_outputs, **arguments):
        return dense_network(num_inputs, num_outputs, width, depth, **arguments)

    return network or make


def _permute(size, dtype, seed, name):
    return tfb.Permute(list(reversed(range(size))), name=name)


def _self_norm(size, name, **options):
    layer = SelfNormDense.trainable(size, name=name, **options)
    for kernel in layer.inverse_kernel, layer.forward_kernel:
        kernel.assign(tf.reverse(tf.eye(size, dtype=kernel.dtype), axis=[0]))
    return layer


def _lu(size, dtype, seed, name):
    return lu_layer(size, dtype, seed, name, reverses=True)


def _affine(size, make_network, options, name, num_bins, bound):
    network = make_network(size // 2, 2 * (size - size // 2), name=f"{name}_network", **options)
    return AffineCoupling(network, size // 2, event_ndims=1, bound=bound, name=name)


def _spline(size, make_network, options, name, num_bins, bound):
    num_outputs = (3 * num_bins - 1) * (size - size // 2)
    network = make_network(size // 2, num_outputs, name=f"{name}_network", **options)
    return SplineCoupling(network, size // 2, num_bins=num_bins, bound=bound, name=name)


_LAYERS = {"self_norm": _self_norm, "lu": _lu, "permute": _permute}
_COUPLINGS = {"spline": _spline, "affine": _affine}
