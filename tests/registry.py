"""Every bijector of the package by name, for the contract checks: add new ones here."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm import LeakyReLU, SelfNormDense, SmoothLeakyReLU, dense_flow, images, trainable_spline

tfb = tfp.bijectors


@dataclasses.dataclass(frozen=True)
class Case:
    """A bijector, made for a dtype, and what the checks need to know of it.

    `data_range` bounds the inputs of `inverse`; `xla_log_det` is False where the exact log-det has no
    XLA kernel on the CPU; `batch_shape` is that of the parameters; `unused` is how many variables have no
    gradient, since nothing computes with them.
    """

    make: Callable
    event_shape: tuple = (4,)
    data_range: tuple = (-3.0, 3.0)
    xla_log_det: bool = True
    batch_shape: tuple = ()
    unused: int = 0


def _kernels(size, dtype, batch_shape=()):
    rng = np.random.default_rng(3)
    kernel = np.eye(size) + 0.4 * rng.normal(size=[*batch_shape, size, size]) / np.sqrt(size)
    bias = rng.normal(size=[*batch_shape, size])
    return [tf.Variable(value, dtype=dtype) for value in (np.linalg.inv(kernel), kernel, bias)]


def _dense(size=4, batch_shape=(), **options):
    return lambda dtype: SelfNormDense(*_kernels(size, dtype, batch_shape), **options)


def _perturbed_spline(dtype):
    spline = trainable_spline(4, bound=3.0, dtype=dtype)
    rng = np.random.default_rng(5)
    for variable in spline.trainable_variables:
        variable.assign(tf.constant(rng.normal(size=variable.shape), dtype))
    return spline


def _learned_slope(bijector):
    return lambda dtype: bijector(tfp.util.TransformedVariable(tf.constant(0.2, dtype), tfb.Sigmoid()))


REGISTRY = {
    "self_norm_dense": Case(_dense(), xla_log_det=False),
    "self_norm_dense of size 1": Case(_dense(size=1), event_shape=(1,), xla_log_det=False),
    "self_norm_dense above the size of large products": Case(
        _dense(size=513), event_shape=(513,), xla_log_det=False
    ),
    "self_norm_dense, exact gradient": Case(_dense(gradient="exact"), xla_log_det=False, unused=1),
    "self_norm_dense, relative gradient": Case(_dense(gradient="relative"), xla_log_det=False, unused=1),
    "self_norm_dense, exact inversion": Case(_dense(inversion="exact"), xla_log_det=False),
    "self_norm_dense, mixture 1, learned": Case(_dense(mixture=1.0), xla_log_det=False),
    "self_norm_dense, batch of kernels": Case(_dense(batch_shape=(3,)), xla_log_det=False, batch_shape=(3,)),
    "self_norm_dense, batch of kernels, exact inversion": Case(
        _dense(batch_shape=(3,), inversion="exact"), xla_log_det=False, batch_shape=(3,)
    ),
    "invert(self_norm_dense)": Case(lambda dtype: tfb.Invert(_dense()(dtype)), xla_log_det=False),
    "smooth_leaky_relu": Case(lambda dtype: SmoothLeakyReLU(tf.constant(0.3, dtype))),
    "smooth_leaky_relu, learned slope": Case(_learned_slope(SmoothLeakyReLU)),
    "leaky_relu": Case(lambda dtype: LeakyReLU(tf.constant(0.3, dtype))),
    "leaky_relu, learned slope": Case(_learned_slope(LeakyReLU)),
    "trainable_spline": Case(_perturbed_spline),
    "pixel_sigmoid": Case(lambda dtype: images.pixel_sigmoid(16, 1e-3, dtype), data_range=(0.5, 15.5)),
    "dense_flow": Case(
        lambda dtype: dense_flow(6, activation="spline", dtype=dtype, seed=1).bijector,
        event_shape=(6,),
        xla_log_det=False,
    ),
}
