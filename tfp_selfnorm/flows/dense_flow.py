"""`dense_flow`, the paper's dense flow."""

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors import SelfNormDense
from tfp_selfnorm.bijectors.parameters import kernel_variables
from tfp_selfnorm.flows.building import (
    activation_maker,
    check_preprocessing,
    layer_maker,
    standard_normal_flow,
    trainable_lu,
)
from tfp_selfnorm.utils.integers import check_positive_int, check_sizes
from tfp_selfnorm.utils.names import check_optional_name
from tfp_selfnorm.utils.options import check_bool, check_dtype
from tfp_selfnorm.utils.seeds import split_seeds, stateless_seed
from tfp_selfnorm.utils.types import DType, Seed, Shape

tfb = tfp.bijectors


@keras.saving.register_keras_serializable("tfp_selfnorm")
def dense_flow(
    event_shape: Shape,
    *,
    num_layers: int = 2,
    activation: str | Callable | None = "smooth_leaky_relu",
    whitening: bool = False,
    layer: str = "self_norm",
    preprocessing: tfp.bijectors.Bijector | None = None,
    dtype: DType = tf.float32,
    seed: Seed = None,
    name: str = "dense_flow",
    **layer_options: Any,
) -> tfp.distributions.TransformedDistribution:
    """The paper's dense flow: self-normalizing layers with activations between, and a standard normal base.

    From data to latent: preprocessing, flattening, then `num_layers` dense layers. An activation follows each
    layer except the last.

    With `whitening` a further dense layer comes first, which does not train. `adapt(x, whitens=True)` sets it
    from data: its output has mean 0 and a covariance near I. Until then it is the identity, and `fit`
    warns. The maps that a flow can have are the same, because the product of two matrices is a matrix.
    But the steps of an optimizer such as Adam are in the units of the whitened events. Columns of unequal
    units, and many dimensions of unequal variance, such as large images, then need fewer steps. On MNIST
    a rate of 3e-3 was taken, and 1e-3 without the layer. The
    layer costs one more product, O(D^2) an event, and holds W and its inverse.

    Args:
      event_shape: shape of an event: int, tuple or `tf.TensorShape`.
      num_layers: number of dense layers, 1 or more.
      activation: "smooth_leaky_relu" (slope 0.3), "leaky_squareplus" (slope 0.3, a smooth one with an
        inverse in closed form, for faster samples), "leaky_relu" (slope 0.3), "spline" (trainable, one for
        each dimension), `None`, or a function. The function takes the event size and returns the bijector
        from data to latent, elementwise or on vectors.
      whitening: whether a fixed `SelfNormDense` comes first.
      layer: "self_norm", a `SelfNormDense`; or "lu", a matrix of LU factors (`tfb.ScaleMatvecLU`) and a bias.
        Both layers have the same initial map. "lu" is exact in both directions and in its gradient, at O(D^2)
        an event. Its gradient holds one D x D matrix per event.
      preprocessing: bijector from latent to data that is applied last, for example `images.pixel_sigmoid()`.
        Outside its range the density is 0: `log_prob` is -inf, with gradients of 0.
      dtype: float32 or float64.
      seed: int or stateless TFP seed of the initial values.
      name: name of the distribution.
      **layer_options: `gradient`, `mixture` and `inversion` of the layer "self_norm", see `SelfNormDense`.
        "lu" has no options.

    Returns:
      A `tfd.TransformedDistribution`. `log_prob` is in nats.

    Raises:
      TypeError: if an argument is unknown or of another type.
      ValueError: if the activation or layer is unknown, an option has a wrong value, the layer has no such
        option, the shape is not fully defined, or `num_layers` is not positive.

    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> flow = sn.dense_flow(event_shape=(8, 8), num_layers=2, seed=1)
    >>> flow.log_prob(tf.zeros([5, 8, 8])).shape, flow.sample(3, seed=2).shape
    (TensorShape([5]), TensorShape([3, 8, 8]))

    References: Keller et al., "Self Normalizing Flows", ICML 2021, section 5.
    """
    check_optional_name(name)
    make_layer = layer_maker(dense_flow, layer, layer_options, _LAYERS, SelfNormDense.check_options)
    expected = "fully defined, of positive sizes and at least one dimension"
    event_shape = check_sizes(event_shape, "event_shape", expected, lambda sizes: len(sizes) > 0)
    num_layers, dtype = check_positive_int(num_layers, "num_layers"), check_dtype(dtype)
    event_size = math.prod(event_shape)
    make_activation = activation_maker(activation, dtype)
    seeds = split_seeds(seed, num_layers, "dense_flow")
    bijectors = check_preprocessing(preprocessing)
    whitens = check_bool(whitening, "whitening")
    if len(event_shape) != 1:
        bijectors.append(tfb.Reshape(event_shape_out=event_shape, event_shape_in=[event_size]))
    if whitens:
        bijectors.append(_fixed_layer(event_size, dtype, name="whitening"))
    for i in range(num_layers):
        if i > 0 and make_activation is not None:
            bijectors.append(tfb.Invert(make_activation(event_size, f"activation_{i - 1}")))
        bijectors.append(make_layer(event_size, dtype=dtype, seed=seeds[i], name=f"dense_{i}"))
    return standard_normal_flow([event_size], bijectors, dtype, name, preprocessing)


def _fixed_layer(event_size, dtype, name):
    """A dense layer that does not train, at first the identity."""
    identity = tf.eye(event_size, dtype=dtype)
    kernels = kernel_variables(identity, identity, name, trainable=False)
    bias = tf.Variable(tf.zeros([event_size], dtype), trainable=False, name=f"{name}_bias")
    return SelfNormDense(*kernels, bias, name=name)


def lu_layer(
    event_size: int, dtype: tf.DType, seed: Seed, name: str, reverses: bool = False
) -> tfp.bijectors.Chain:
    """LU factors and a bias. The initial map is that of a `SelfNormDense`, or reverses the order."""
    noise = tf.random.stateless_normal([event_size], stateless_seed(seed, "self_norm_dense"), dtype=dtype)
    bias = tf.Variable(1e-3 * noise, name=f"{name}_bias")
    matrix = tf.eye(event_size, dtype=dtype)
    factors = trainable_lu(tf.reverse(matrix, axis=[0]) if reverses else matrix, name)
    return tfb.Chain([factors, tfb.Invert(tfb.Shift(bias))], name=name)


_LAYERS = {"self_norm": SelfNormDense.trainable, "lu": lu_layer}
