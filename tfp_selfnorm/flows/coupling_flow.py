"""`coupling_flow`: couplings of vectors with self-normalizing layers between them."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors import AffineCoupling, SplineCoupling
from tfp_selfnorm.bijectors.spline import MAX_BINS
from tfp_selfnorm.flows.mixed_flow import mixed_flow, network_maker
from tfp_selfnorm.flows.networks import dense_network
from tfp_selfnorm.utils.integers import check_int
from tfp_selfnorm.utils.options import check_choice, check_positive
from tfp_selfnorm.utils.types import DType, Seed, Shape


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
    return mixed_flow(
        coupling_flow,
        _coupling_maker(transform, num_bins, bound),
        "coupling",
        event_shape=event_shape,
        condition_shape=condition_shape,
        num_layers=num_layers,
        layer=layer,
        layer_options=layer_options,
        network=network_maker(network, dense_network, width, depth),
        preprocessing=preprocessing,
        base=base,
        dtype=dtype,
        seed=seed,
        name=name,
    )


def _coupling_maker(transform, num_bins, bound):
    check_choice(transform, "transform", tuple(_COUPLINGS))
    num_bins, bound = check_int(num_bins, "num_bins", 2, MAX_BINS), check_positive(bound, "bound")
    return functools.partial(_COUPLINGS[transform], num_bins=num_bins, bound=bound)


def _affine(size, make_network, name, num_bins, bound):
    network = make_network(size // 2, 2 * (size - size // 2))
    return AffineCoupling(network, size // 2, event_ndims=1, bound=bound, name=name)


def _spline(size, make_network, name, num_bins, bound):
    network = make_network(size // 2, (3 * num_bins - 1) * (size - size // 2))
    return SplineCoupling(network, size // 2, num_bins=num_bins, bound=bound, name=name)


_COUPLINGS = {"spline": _spline, "affine": _affine}
