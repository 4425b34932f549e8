"""Builders of flows; each returns a plain `tfd.TransformedDistribution`."""

import math

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors import LeakyReLU, SelfNormDense, SmoothLeakyReLU, trainable_spline
from tfp_selfnorm.seeds import stateless_seed

tfb = tfp.bijectors
tfd = tfp.distributions

ACTIVATIONS = ("smooth_leaky_relu", "leaky_relu", "spline")


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
      dtype: floating dtype.
      seed: int or stateless TFP seed of the initial values.
      name: name of the distribution.

    Returns:
      A `tfd.TransformedDistribution`. `log_prob` is in nats.

    Raises:
      ValueError: for an unknown activation, a shape that is not fully defined, or no layer.

    >>> flow = dense_flow(event_shape=(8, 8), num_layers=2, seed=1)
    >>> flow.log_prob(tf.zeros([5, 8, 8])).shape, flow.sample(3, seed=2).shape
    (TensorShape([5]), TensorShape([3, 8, 8]))

    References: Keller et al., "Self Normalizing Flows", ICML 2021, section 5.
    """
    event_shape = _static_shape(event_shape)
    if num_layers < 1:
        raise ValueError(f"`num_layers` must be 1 or more; got {num_layers!r}.")
    event_size = math.prod(event_shape)
    make_activation = _activation(activation, dtype)
    seeds = tfp.random.split_seed(stateless_seed(seed), n=num_layers, salt="dense_flow")
    bijectors = [] if preprocessing is None else [preprocessing]
    if len(event_shape) != 1:
        bijectors.append(tfb.Reshape(event_shape_out=event_shape, event_shape_in=[event_size]))
    for i in range(num_layers):
        if i > 0 and make_activation is not None:
            bijectors.append(tfb.Invert(make_activation(event_size)))
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
    return tfd.TransformedDistribution(
        tfd.Sample(tfd.Normal(tf.zeros([], dtype), tf.ones([], dtype)), [event_size]),
        tfb.Chain(bijectors),
        name=name,
    )


def _static_shape(event_shape):
    shape = tf.TensorShape([event_shape] if isinstance(event_shape, (int, np.integer)) else event_shape)
    if not shape.is_fully_defined() or shape.num_elements() < 1 or shape.rank < 1:
        raise ValueError(
            f"`event_shape` must be fully defined, of positive sizes and at least one dimension; got {shape}."
        )
    return shape.as_list()


def _activation(activation, dtype):
    """A function from the event size to the bijector, data to latent."""
    if activation is None or callable(activation):
        return activation
    slope = tf.constant(0.3, dtype)
    makers = {
        "smooth_leaky_relu": lambda event_size: SmoothLeakyReLU(slope),
        "leaky_relu": lambda event_size: LeakyReLU(slope),
        "spline": lambda event_size: trainable_spline(event_size, dtype=dtype),
    }
    if activation not in makers:
        raise ValueError(
            f"`activation` must be one of {ACTIVATIONS}, None or a callable; got {activation!r}."
        )
    return makers[activation]
