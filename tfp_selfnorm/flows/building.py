"""What the builders of flows share."""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors import LeakyReLU, SmoothLeakyReLU, trainable_spline
from tfp_selfnorm.seeds import stateless_seed

tfb = tfp.bijectors
tfd = tfp.distributions

ACTIVATIONS = ("smooth_leaky_relu", "leaky_relu", "spline")


def standard_normal_flow(latent_shape, bijectors, dtype, name):
    """The bijectors, from data to latent, over a standard normal base."""
    normal = tfd.Normal(tf.zeros([], dtype), tf.ones([], dtype))
    return tfd.TransformedDistribution(tfd.Sample(normal, latent_shape), tfb.Chain(bijectors), name=name)


def activation_maker(activation, dtype):
    """A function from the event shape, or size, and a name to the bijector, data to latent."""
    if activation is None:
        return None
    if callable(activation):
        return lambda event_shape, name: activation(event_shape)
    slope = tf.constant(0.3, dtype)
    makers = {
        "smooth_leaky_relu": lambda event_shape, name: SmoothLeakyReLU(slope, name=name),
        "leaky_relu": lambda event_shape, name: LeakyReLU(slope, name=name),
        "spline": lambda event_shape, name: trainable_spline(event_shape, dtype=dtype, name=name),
    }
    if activation not in makers:
        raise ValueError(
            f"`activation` must be one of {ACTIVATIONS}, None or a callable; got {activation!r}."
        )
    return makers[activation]


def split_seeds(seed, count, salt):
    return tf.unstack(tfp.random.split_seed(stateless_seed(seed), n=count, salt=salt))


def squeezed(shape):
    return shape[0] // 2, shape[1] // 2, 4 * shape[2]


def check_event_shape(event_shape):
    shape = tf.TensorShape([event_shape] if isinstance(event_shape, (int, np.integer)) else event_shape)
    if not shape.is_fully_defined() or shape.num_elements() < 1 or shape.rank < 1:
        raise ValueError(
            f"`event_shape` must be fully defined, of positive sizes and at least one dimension; got {shape}."
        )
    return shape.as_list()


def check_image_shape(image_shape, divisor):
    shape = tf.TensorShape(image_shape)
    if shape.rank != 3 or not shape.is_fully_defined() or shape.num_elements() < 1:
        raise ValueError(
            f"`image_shape` must be (height, width, channels), known and positive; got {image_shape!r}."
        )
    if shape[0] % divisor or shape[1] % divisor:
        raise ValueError(
            f"`image_shape` must have a height and a width divisible by {divisor} for so many blocks; got "
            f"{image_shape!r}."
        )
    return tuple(shape.as_list())
