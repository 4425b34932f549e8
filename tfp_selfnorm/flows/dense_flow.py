"""`dense_flow`, the paper's dense flow."""

import math

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors import SelfNormDense
from tfp_selfnorm.flows.building import (
    activation_maker,
    check_event_shape,
    check_preprocessing,
    split_seeds,
    standard_normal_flow,
)
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.names import check_optional_name
from tfp_selfnorm.utils.options import check_dtype

tfb = tfp.bijectors


@keras.saving.register_keras_serializable("tfp_selfnorm")
def dense_flow(
    event_shape,
    num_layers=2,
    activation="smooth_leaky_relu",
    preprocessing=None,
    gradient="self_norm",
    mixture=0.5,
    inversion=None,
    dtype=tf.float32,
    seed=None,
    name="dense_flow",
):
    """The paper's dense flow: self-normalizing layers with an activation between, standard normal base.

    From data to latent: preprocessing, flattening, then `num_layers` times a `SelfNormDense`, with the
    activation after each but the last.

    Args:
      event_shape: shape of an event: int, tuple or `tf.TensorShape`.
      num_layers: number of dense layers, 1 or more.
      activation: "smooth_leaky_relu" (slope 0.3), "leaky_relu" (slope 0.3), "spline" (trainable, for
        each dimension), `None`, or a callable that takes the event size and returns the bijector from
        data to latent, elementwise or on vectors.
      preprocessing: bijector that ends the way from latent to data, such as `images.pixel_sigmoid()`.
      gradient: see `SelfNormDense`, as for the two arguments below.
      mixture: see `SelfNormDense`.
      inversion: see `SelfNormDense`.
      dtype: float32 or float64.
      seed: int or stateless TFP seed of the initial values.
      name: name of the distribution.

    Returns:
      A `tfd.TransformedDistribution`. `log_prob` is in nats.

    Raises:
      TypeError: if an argument is of another type.
      ValueError: for an unknown activation or option, a shape that is not fully defined, or no layer.

    >>> flow = dense_flow(event_shape=(8, 8), num_layers=2, seed=1)
    >>> flow.log_prob(tf.zeros([5, 8, 8])).shape, flow.sample(3, seed=2).shape
    (TensorShape([5]), TensorShape([3, 8, 8]))

    References: Keller et al., "Self Normalizing Flows", ICML 2021, section 5.
    """
    check_optional_name(name)
    event_shape = check_event_shape(event_shape)
    num_layers, dtype = check_positive_int(num_layers, "num_layers"), check_dtype(dtype)
    event_size = math.prod(event_shape)
    make_activation = activation_maker(activation, dtype)
    seeds = split_seeds(seed, num_layers, "dense_flow")
    bijectors = check_preprocessing(preprocessing)
    if len(event_shape) != 1:
        bijectors.append(tfb.Reshape(event_shape_out=event_shape, event_shape_in=[event_size]))
    for i in range(num_layers):
        if i > 0 and make_activation is not None:
            bijectors.append(tfb.Invert(make_activation(event_size, f"activation_{i - 1}")))
        bijectors.append(
            SelfNormDense.trainable(
                event_size,
                dtype=dtype,
                seed=seeds[i],
                gradient=gradient,
                mixture=mixture,
                inversion=inversion,
                name=f"dense_{i}",
            )
        )
    return standard_normal_flow([event_size], bijectors, dtype, name)
