"""`glow_flow`, the Glow-like flow of the paper."""

import functools
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.baselines import ConvolutionExponential2D, EmergingConv2D
from tfp_selfnorm.bijectors import ActNorm, AffineCoupling, ChannelSplit, SelfNormConv2D, Squeeze
from tfp_selfnorm.bijectors.conv_parameters import check_kernel_size
from tfp_selfnorm.flows.building import (
    check_image_shape,
    first_bijectors,
    layer_maker,
    squeezed,
    standard_normal_flow,
    trainable_lu,
)
from tfp_selfnorm.flows.networks import check_policy, coupling_network
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.names import check_optional_name
from tfp_selfnorm.utils.options import check_bools, check_dtype
from tfp_selfnorm.utils.seeds import split_seeds
from tfp_selfnorm.utils.types import DType, Seed, Shape

tfb = tfp.bijectors


@keras.saving.register_keras_serializable("tfp_selfnorm")
def glow_flow(
    image_shape: Shape,
    *,
    num_blocks: int = 2,
    steps_per_block: int = 16,
    kernel_size: Shape = 1,
    width: int = 512,
    network_dtype: Any = None,
    act_norm: bool = True,
    split_prior: bool = True,
    centering: bool = True,
    layer: str = "self_norm",
    preprocessing: tfp.bijectors.Bijector | None = None,
    dtype: DType = tf.float32,
    seed: Seed = None,
    name: str = "glow_flow",
    **layer_options: Any,
) -> tfp.distributions.TransformedDistribution:
    """The paper's Glow-like flow: squeezes, steps of normalization, mixing and coupling, and splits.

    From data to latent: preprocessing, a `Centering`, then the blocks. A block is a `Squeeze` and
    `steps_per_block` steps. Each step is an `ActNorm`, a mixing of the channels, and an `AffineCoupling`. A
    split follows each block except the last: one half of the channels is latent at once, and the later blocks
    map the other half. With `split_prior`, a coupling before the split changes the latent half, conditioned
    on the other half. The base is standard normal. Its events have the shape of the images in the first
    block; the latents of later blocks are put back into these images.

    With `centering` or `act_norm` the flow cannot be used until `adapt(flow, data)` or `FlowModel.adapt` has
    set the mean and the initial values of the ActNorms.

    Args:
      image_shape: (height, width, channels), known. `2**num_blocks` must divide height and width.
      num_blocks: number of blocks, 1 or more.
      steps_per_block: number of steps in a block, 1 or more.
      kernel_size: size of the mixing convolutions, an odd int, or two. Their initial map is a random rotation
        of the channels at every size, because a coupling changes only half of the channels.
      width: number of hidden channels of the coupling networks, see `coupling_network`.
      network_dtype: Keras dtype policy of the coupling networks, for example "mixed_float16" or
        "mixed_bfloat16". `None` is the global policy if the flow is float32, and otherwise the flow's dtype.
      act_norm: whether steps have an `ActNorm`.
      split_prior: whether there is a coupling before each split.
      centering: whether a `Centering` subtracts the mean of each pixel before the layers. Otherwise they must
        learn to remove it, as in the paper.
      layer: the mixing of the channels: "self_norm", a `SelfNormConv2D`; "lu", a 1x1 convolution with LU
        factors (`tfb.ScaleMatvecLU`); or "emerging" or "exponential". These two are the convolution of "lu"
        and then a `baselines.EmergingConv2D` or `baselines.ConvolutionExponential2D` near the identity.
      preprocessing: bijector from latent to data that is applied last, for example `images.pixel_sigmoid()`.
        Outside its range the density is 0: `log_prob` is -inf, with gradients of 0.
      dtype: float32 or float64, of events, kernels and results. Coupling networks have their own dtype. Exact
        log-dets and solves of convolutions compute in float64.
      seed: int or stateless TFP seed of the initial values.
      name: name of the distribution.
      **layer_options: `gradient`, `mixture` and `inversion` of the layer "self_norm", as in `conv_flow`.

    Returns:
      A `tfd.TransformedDistribution`. `log_prob` is in nats.

    Raises:
      TypeError: if an argument is unknown or of another type.
      ValueError: if the layer is unknown, an option has a wrong value, the layer has no such option, "lu" has
        a kernel that is not 1x1, the shape is unknown or not divisible, or a number is not positive.

    >>> import numpy as np
    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> flow = sn.glow_flow((8, 8, 1), num_blocks=2, steps_per_block=1, width=8, seed=1)
    >>> sn.adapt(flow, np.random.default_rng(1).normal(size=[100, 8, 8, 1]))
    >>> flow.log_prob(tf.zeros([5, 8, 8, 1])).shape, flow.sample(3, seed=2).shape
    (TensorShape([5]), TensorShape([3, 8, 8, 1]))

    References: Keller et al., "Self Normalizing Flows", ICML 2021, section 5; Kingma & Dhariwal, "Glow",
    NeurIPS 2018.
    """
    check_optional_name(name)
    num_blocks = check_positive_int(num_blocks, "num_blocks")
    steps_per_block = check_positive_int(steps_per_block, "steps_per_block")
    shape, dtype = check_image_shape(image_shape, divisor=2**num_blocks), check_dtype(dtype)
    make_mixing = _mixing_maker(layer, layer_options, kernel_size, dtype)
    make_coupling = _coupling_maker(width, network_dtype, dtype)
    check_bools(act_norm=act_norm, split_prior=split_prior)
    seeds = iter(split_seeds(seed, num_blocks * (2 * steps_per_block + 1), "glow_flow"))
    bijectors, latent_shape = first_bijectors(preprocessing, centering, shape, dtype), squeezed(shape)
    blocks: list[list] = [[] for _ in range(num_blocks)]
    for i, block in enumerate(blocks):
        *sides, channels = squeezed(shape)
        for step in range(steps_per_block):
            prefix = f"block_{i}_step_{step}"
            if act_norm:
                block.append(ActNorm.trainable(channels, dtype=dtype, name=f"{prefix}_act_norm"))
            block.append(make_mixing(sides, channels, seed=next(seeds), name=f"{prefix}_mixing"))
            block.append(make_coupling(sides, channels, next(seeds), f"{prefix}_coupling"))
        if split_prior and i < num_blocks - 1:
            block.append(make_coupling(sides, channels, next(seeds), f"block_{i}_prior"))
        shape = (*sides, channels // 2)
    return standard_normal_flow(latent_shape, bijectors + _nested(blocks), dtype, name, preprocessing)


def _nested(blocks):
    """The bijectors of all blocks, from data to latent. The split of a block holds the later blocks."""
    bijectors: list = []
    for i, block in reversed(list(enumerate(blocks))):
        later = tfb.Chain([*bijectors, Squeeze()])
        split = [ChannelSplit(later, name=f"block_{i}_split")] if bijectors else []
        bijectors = [tfb.Invert(Squeeze()), *block, *split]
    return bijectors


def _mixing_maker(layer, layer_options, kernel_size, dtype):
    """A function that makes a mixing for the sides and channels of images, a seed and a name."""
    make_layer = layer_maker(glow_flow, layer, layer_options, _LAYERS, SelfNormConv2D.check_options)
    if set(check_kernel_size(kernel_size, ndims=2)) != {1} and layer == "lu":
        raise ValueError(f"`layer` 'lu' needs `kernel_size` 1; got {kernel_size!r}.")
    return functools.partial(make_layer, kernel_size=kernel_size, dtype=dtype)


def _coupling_maker(width, network_dtype, dtype):
    """A function that makes a coupling for the sides and channels of images, a seed and a name."""
    check_positive_int(width, "width")
    check_policy(network_dtype, "network_dtype")
    if network_dtype is None and dtype != tf.float32:
        network_dtype = dtype.name

    def make_coupling(sides, channels, seed, name):
        seed = int(tf.random.stateless_uniform([], seed, 0, 2**31 - 1, tf.int32))
        options = {"seed": seed, "dtype": network_dtype, "name": f"{name}_network"}
        num_conditioning = channels // 2
        num_outputs = 2 * (channels - num_conditioning)
        network = coupling_network((*sides, num_conditioning), num_outputs, width, **options)
        return AffineCoupling(network, name=name)

    return make_coupling


def _rotation(spatial_shape, channels, kernel_size, dtype, seed, name):
    """A random rotation of the channels of each pixel, as trainable LU factors."""
    rotation = tf.linalg.qr(tf.random.stateless_normal([channels, channels], seed, dtype=dtype)).q
    return trainable_lu(rotation, name)


def _rotation_before(make, spatial_shape, channels, kernel_size, dtype, seed, name):
    """A rotation, and then a convolution whose initial map is near the identity."""
    options = {"kernel_size": kernel_size, "dtype": dtype, "seed": seed, "name": name}
    parts = [maker(spatial_shape, channels, **options) for maker in (_rotation, make)]
    return tfb.Chain(parts, name=name)


_LAYERS = {
    "self_norm": functools.partial(SelfNormConv2D.trainable, rotates=True),
    "lu": _rotation,
    "emerging": functools.partial(_rotation_before, EmergingConv2D.trainable),
    "exponential": functools.partial(_rotation_before, ConvolutionExponential2D.trainable),
}
