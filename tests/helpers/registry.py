"""Every bijector of the package by name, for the contract checks: add new ones here."""

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from dense_convolution import invertible_pair, random_kernel

from tfp_selfnorm import (
    ActNorm,
    AffineCoupling,
    Centering,
    ChannelSplit,
    CircularSplineCoupling,
    LeakyReLU,
    LeakySquareplus,
    LearnedInverse,
    SelfNormConv1D,
    SelfNormConv2D,
    SelfNormDense,
    SmoothLeakyReLU,
    SplineAutoregressive,
    SplineCoupling,
    Squeeze,
    Standardize,
    adapt,
    autoregressive_network,
    baselines,
    conv_flow,
    coupling_flow,
    dense_flow,
    dense_network,
    exact,
    glow_flow,
    images,
    residual_network,
    trainable_spline,
)

tfb = tfp.bijectors


@dataclasses.dataclass(frozen=True)
class Case:
    """A bijector, made for a dtype, and what the checks need to know of it.

    `event_shape` is that of the data, and `latent_shape` that of the latents where it is another.
    `data_range` bounds the inputs of `inverse`; `xla_log_det` is False where the exact log-det has no
    XLA kernel on the CPU; `batch_shape` is that of the parameters; `unused` is how many variables have no
    gradient, since nothing computes with them.
    """

    make: Callable
    event_shape: tuple = (4,)
    latent_shape: tuple | None = None
    data_range: tuple = (-3.0, 3.0)
    xla_log_det: bool = True
    batch_shape: tuple = ()
    unused: int = 0

    def made(self, dtype):
        """The bijector, one for all checks, which leave its variables as they are."""
        return _made(self, dtype)


@functools.cache
def _made(case, dtype):
    return case.make(dtype)


def _kernels(size, dtype, batch_shape=()):
    rng = np.random.default_rng(3)
    kernel = np.eye(size) + 0.4 * rng.normal(size=[*batch_shape, size, size]) / np.sqrt(size)
    bias = rng.normal(size=[*batch_shape, size])
    return [tf.Variable(value, dtype=dtype) for value in (np.linalg.inv(kernel), kernel, bias)]


def _dense(size=4, batch_shape=(), **options):
    return lambda dtype: SelfNormDense(*_kernels(size, dtype, batch_shape), **options)


def _conv(sizes=(3, 3), channels=2, spatial_shape=(4, 5), **options):
    """With a learned inverse that is the inverse where that is asked for, else any kernels."""

    def make(dtype):
        rng = np.random.default_rng(4)
        kernel, inverse = invertible_pair(rng, sizes, channels)
        if options.get("inversion") == "exact" or options.get("gradient", "self_norm") != "self_norm":
            kernel = random_kernel(rng, sizes, channels)
        kernels = (tf.Variable(value, dtype=dtype) for value in (inverse, kernel))
        layer = SelfNormConv2D if len(sizes) == 2 else SelfNormConv1D
        return layer(
            *kernels, spatial_shape, tf.Variable(rng.normal(size=[channels]), dtype=dtype), **options
        )

    return make


def _baseline(layer, num_kernels, sizes=(3, 3), channels=2, spatial_shape=(3, 3), gain=1.0, **options):
    def make(dtype):
        rng = np.random.default_rng(9)
        kernels = [gain * random_kernel(rng, sizes, channels) for _ in range(num_kernels)]
        *kernels, bias = (tf.Variable(v, dtype=dtype) for v in (*kernels, rng.normal(size=[channels])))
        return layer(*kernels, spatial_shape, bias, **options)

    return make


def _centering(shape):
    return lambda dtype: Centering(tf.Variable(np.random.default_rng(2).normal(size=shape), dtype=dtype))


def _standardize(shape):
    def make(dtype):
        rng = np.random.default_rng(2)
        values = rng.normal(size=shape), rng.uniform(0.5, 2.0, size=shape)
        return Standardize(*(tf.Variable(value, dtype=dtype) for value in values))

    return make


def _act_norm(dtype):
    rng = np.random.default_rng(6)
    return ActNorm(*(tf.Variable(0.5 * rng.normal(size=[2]), dtype=dtype) for _ in range(2)))


def _act_norm_batch(dtype):
    rng = np.random.default_rng(6)
    return ActNorm(*(tf.Variable(0.5 * rng.normal(size=[3, 2]), dtype=dtype) for _ in range(2)))


def _nested_split(dtype):
    """Two levels as in a Glow, of a layer, a coupling and a split, with kernels that are inverses."""
    inner = ChannelSplit(
        tfb.Chain([_coupling(2, 1, dtype), tfb.Invert(Squeeze()), Squeeze()]), 2, name="inner"
    )
    dense = _conv((1, 1), spatial_shape=(4, 4), channels=4)(dtype)
    return ChannelSplit(tfb.Chain([dense, _coupling(4, 2, dtype), inner]), 4, name="outer")


def _coupling(num_channels=3, num_conditioning=1, dtype=tf.float32, **options):
    """The last layer is no zero, so that it does something."""
    network = keras.Sequential(
        [
            keras.Input([4, 4, num_conditioning], dtype=dtype.name),
            keras.layers.Conv2D(4, 3, padding="same", activation="tanh", dtype=dtype.name),
            keras.layers.Conv2D(2 * (num_channels - num_conditioning), 3, padding="same", dtype=dtype.name),
        ]
    )
    return AffineCoupling(network, num_conditioning, **options)


def _perturbed(make):
    """Moves the variables of a flow off their start, at which couplings do nothing."""

    def moved(dtype):
        flow = make(dtype)
        rng = np.random.default_rng(7)
        for variable in flow.trainable_variables:
            variable.assign_add(tf.constant(0.05 * rng.normal(size=variable.shape), dtype))
        return exact(flow.bijector)

    return moved


def _glow(dtype, **options):
    flow = glow_flow(
        (4, 4, 1),
        num_blocks=2,
        steps_per_block=1,
        width=4,
        centering=False,
        dtype=dtype,
        seed=1,
        **options,
    )
    adapt(flow, tf.constant(np.random.default_rng(8).normal(size=[64, 4, 4, 1]), dtype))
    return flow


def _spline_coupling(dtype):
    network = dense_network(1, 2 * 5, width=5, seed=1, dtype=dtype.name)
    rng = np.random.default_rng(12)
    network.set_weights([rng.normal(size=weight.shape) for weight in network.weights])
    return SplineCoupling(network, num_conditioning=1, num_bins=2, bound=2.0)


def _spline_autoregressive(dtype):
    network = autoregressive_network(3, 3 * 5, width=5, seed=1, dtype=dtype.name)
    rng = np.random.default_rng(12)
    network.set_weights([rng.normal(size=weight.shape) for weight in network.weights])
    return SplineAutoregressive(network, num_bins=2, bound=2.0)


def _circular_spline_coupling(dtype):
    network = dense_network(3, 7, width=5, seed=1, dtype=dtype.name)
    rng = np.random.default_rng(12)
    network.set_weights([0.4 * rng.normal(size=weight.shape) for weight in network.weights])
    return CircularSplineCoupling(network, num_conditioning=2, num_angles=1, num_bins=2)


def _linear_networks(dtype):
    """Two dense layers of Keras with kernels that are inverses."""
    kernel = np.eye(4) + 0.2 * np.random.default_rng(10).normal(size=[4, 4])
    networks = []
    for value in (kernel, np.linalg.inv(kernel)):
        networks.append(
            keras.Sequential([keras.Input([4], dtype=dtype.name), keras.layers.Dense(4, dtype=dtype.name)])
        )
        networks[-1].set_weights([value, np.zeros(4)])
    return LearnedInverse(*networks, event_shape=4)


def _residual_networks(dtype):
    """Two networks off the identity; `forward` is exact."""
    rng, networks = np.random.default_rng(10), []
    for _ in range(2):
        networks.append(residual_network(4, width=5, depth=2, seed=1, dtype=dtype.name))
        shapes = [weight.shape for weight in networks[-1].weights]
        networks[-1].set_weights([0.2 * rng.normal(size=shape) for shape in shapes])
    return LearnedInverse(*networks, event_shape=4, inversion="exact")


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
    "self_norm_dense, exact inversion": Case(_dense(inversion="exact"), xla_log_det=False, unused=1),
    "self_norm_dense, mixture 1, learned": Case(_dense(mixture=1.0), xla_log_det=False),
    "self_norm_dense, batch of kernels": Case(_dense(batch_shape=(3,)), xla_log_det=False, batch_shape=(3,)),
    "self_norm_dense, batch of kernels, exact inversion": Case(
        _dense(batch_shape=(3,), inversion="exact"), xla_log_det=False, batch_shape=(3,), unused=1
    ),
    "invert(self_norm_dense)": Case(lambda dtype: tfb.Invert(_dense()(dtype)), xla_log_det=False),
    "smooth_leaky_relu": Case(lambda dtype: SmoothLeakyReLU(tf.constant(0.3, dtype))),
    "smooth_leaky_relu, learned slope": Case(_learned_slope(SmoothLeakyReLU)),
    "leaky_relu": Case(lambda dtype: LeakyReLU(tf.constant(0.3, dtype))),
    "leaky_relu, learned slope": Case(_learned_slope(LeakyReLU)),
    "leaky_squareplus": Case(lambda dtype: LeakySquareplus(tf.constant(0.3, dtype))),
    "leaky_squareplus, learned slope": Case(_learned_slope(LeakySquareplus)),
    "trainable_spline": Case(_perturbed_spline),
    "pixel_sigmoid": Case(lambda dtype: images.pixel_sigmoid(16, 1e-3, dtype), data_range=(0.5, 15.5)),
    "self_norm_conv2d": Case(_conv(), event_shape=(4, 5, 2)),
    "self_norm_conv2d, 1x1": Case(_conv((1, 1)), event_shape=(4, 5, 2)),
    "self_norm_conv2d, exact inversion": Case(_conv(inversion="exact"), event_shape=(4, 5, 2), unused=1),
    "self_norm_conv2d, exact gradient, 3x5": Case(
        _conv((3, 5), gradient="exact"), event_shape=(4, 5, 2), unused=1
    ),
    "self_norm_conv2d, 1x1, exact gradient": Case(
        _conv((1, 1), gradient="exact"), event_shape=(4, 5, 2), unused=1
    ),
    "self_norm_conv2d, circulant gradient": Case(
        _conv(gradient="circulant"), event_shape=(4, 5, 2), unused=1
    ),
    "invert(self_norm_conv2d)": Case(lambda dtype: tfb.Invert(_conv()(dtype)), event_shape=(4, 5, 2)),
    "self_norm_conv1d": Case(_conv((5,), spatial_shape=(6,)), event_shape=(6, 2)),
    "self_norm_conv1d, exact gradient": Case(
        _conv((5,), spatial_shape=(6,), gradient="exact"), event_shape=(6, 2), unused=1
    ),
    "emerging_conv2d": Case(_baseline(baselines.EmergingConv2D, 2), event_shape=(3, 3, 2)),
    "emerging_conv2d, 3x5, of 4 channels": Case(
        _baseline(baselines.EmergingConv2D, 2, (3, 5), 4, (2, 2)), event_shape=(2, 2, 4)
    ),
    "convolution_exponential2d": Case(
        _baseline(baselines.ConvolutionExponential2D, 1, (3, 3), 2, (2, 3), gain=0.1, max_norm=0.5),
        event_shape=(2, 3, 2),
    ),
    "convolution_exponential2d of 4 channels, scaled down": Case(
        _baseline(baselines.ConvolutionExponential2D, 1, (3, 1), 4, (2, 1), max_norm=0.3),
        event_shape=(2, 1, 4),
    ),
    "squeeze": Case(lambda dtype: Squeeze(), event_shape=(2, 3, 8), latent_shape=(4, 6, 2)),
    "squeeze by 3": Case(lambda dtype: Squeeze(3), event_shape=(1, 2, 9), latent_shape=(3, 6, 1)),
    "centering": Case(_centering((2, 3)), event_shape=(2, 3)),
    "centering of channels": Case(_centering((3,)), event_shape=(4, 2, 3)),
    "standardize": Case(_standardize((3,)), event_shape=(3,)),
    "standardize of channels": Case(_standardize((3,)), event_shape=(2, 2, 3)),
    "act_norm": Case(_act_norm, event_shape=(2,)),
    "act_norm of images": Case(_act_norm, event_shape=(3, 3, 2)),
    "act_norm, batch of parameters": Case(_act_norm_batch, event_shape=(2,), batch_shape=(3,)),
    "affine_coupling": Case(lambda dtype: _coupling(dtype=dtype), event_shape=(4, 4, 3)),
    "affine_coupling of halves": Case(lambda dtype: _coupling(4, 2, dtype, bound=1.0), event_shape=(4, 4, 4)),
    "spline_coupling": Case(_spline_coupling, event_shape=(3,)),
    "spline_autoregressive": Case(_spline_autoregressive, event_shape=(3,)),
    "circular_spline_coupling": Case(_circular_spline_coupling, event_shape=(3,)),
    "coupling_flow": Case(
        _perturbed(lambda dtype: coupling_flow(4, num_layers=2, num_bins=3, width=5, dtype=dtype, seed=1)),
        xla_log_det=False,
        unused=2,
    ),
    "channel_split": Case(
        lambda dtype: ChannelSplit(_coupling(2, 1, dtype), num_channels=2), event_shape=(4, 4, 5)
    ),
    "channel_split of vectors": Case(
        lambda dtype: ChannelSplit(_dense(2)(dtype)), event_shape=(4,), xla_log_det=False
    ),
    "channel_split in a channel_split": Case(_nested_split, event_shape=(4, 4, 6)),
    "learned_inverse": Case(_linear_networks, xla_log_det=False),
    "learned_inverse, exact inversion": Case(_residual_networks, xla_log_det=False, unused=8),
    "conv_flow": Case(
        _perturbed(
            lambda dtype: conv_flow(
                (4, 4, 1), num_blocks=2, layers_per_block=1, centering=False, dtype=dtype, seed=1
            )
        ),
        event_shape=(4, 4, 1),
        latent_shape=(2, 2, 4),
        unused=2,
    ),
    "glow_flow": Case(_perturbed(_glow), event_shape=(4, 4, 1), latent_shape=(2, 2, 4), unused=2),
    "glow_flow, lu": Case(
        _perturbed(lambda dtype: _glow(dtype, layer="lu", split_prior=False)),
        event_shape=(4, 4, 1),
        latent_shape=(2, 2, 4),
    ),
    "dense_flow": Case(
        lambda dtype: dense_flow(6, activation="spline", dtype=dtype, seed=1).bijector,
        event_shape=(6,),
        xla_log_det=False,
    ),
}
