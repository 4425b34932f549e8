"""`conv_flow`, the paper's convolutional flow."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.baselines import ConvolutionExponential2D, EmergingConv2D
from tfp_selfnorm.bijectors import SelfNormConv2D, Squeeze
from tfp_selfnorm.bijectors.conv_parameters import check_kernel_size
from tfp_selfnorm.flows.building import (
    activation_maker,
    check_image_shape,
    first_bijectors,
    layer_maker,
    squeezed,
    standard_normal_flow,
)
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.names import check_optional_name
from tfp_selfnorm.utils.options import check_dtype
from tfp_selfnorm.utils.seeds import split_seeds
from tfp_selfnorm.utils.types import DType, Seed, Shape

tfb = tfp.bijectors

_LAYERS = {
    "self_norm": SelfNormConv2D.trainable,
    "emerging": EmergingConv2D.trainable,
    "exponential": ConvolutionExponential2D.trainable,
}


@keras.saving.register_keras_serializable("tfp_selfnorm")
def conv_flow(
    image_shape: Shape,
    *,
    num_blocks: int = 3,
    layers_per_block: int = 3,
    kernel_size: Shape = 3,
    activation: str | Callable | None = "smooth_leaky_relu",
    centering: bool = True,
    layer: str = "self_norm",
    preprocessing: tfp.bijectors.Bijector | None = None,
    dtype: DType = tf.float32,
    seed: Seed = None,
    name: str = "conv_flow",
    **layer_options: Any,
) -> tfp.distributions.TransformedDistribution:
    """The paper's convolutional flow: blocks of self-normalizing convolutions with a squeeze between blocks.

    From data to latent: preprocessing, a `Centering`, then blocks of convolutions. An activation follows
    each layer of the flow except the last. A `Squeeze` between blocks halves both sides of the images and
    multiplies the number of channels by four. The base is standard normal; its events have the shape of the
    images in the last block.

    With `centering` the flow cannot be used until `adapt(flow, data)` or `FlowModel.adapt` has set the mean.

    Args:
      image_shape: (height, width, channels), known. `2**(num_blocks - 1)` must divide height and width.
      num_blocks: number of blocks, 1 or more.
      layers_per_block: number of convolutions in a block, 1 or more.
      kernel_size: an odd int, or two.
      activation: as in `dense_flow`; a function gets the shape of the images.
      centering: whether a `Centering` subtracts the mean of each pixel before the layers. Otherwise they must
        learn to remove it, as in the paper.
      layer: "self_norm", a `SelfNormConv2D`; or "emerging" or "exponential", a `baselines.EmergingConv2D` or
        `baselines.ConvolutionExponential2D`. These two are exact in both directions and in their gradient.
      preprocessing: bijector from latent to data that is applied last, for example `images.pixel_sigmoid()`.
        Outside its range the density is 0: `log_prob` is -inf, with gradients of 0.
      dtype: float32 or float64.
      seed: int or stateless TFP seed of the initial values.
      name: name of the distribution.
      **layer_options: `gradient`, `mixture` and `inversion` of the layer "self_norm", see `SelfNormConv2D`.
        The gradient "circulant" ends near the likelihood of "exact", in 28 to 79 % of its time, without
        that of compiling. The paper's, "self_norm", is the default: with the regularizer of `Tracking()`
        its training is stable at a rate of 1e-2 that falls to 0.

    Returns:
      A `tfd.TransformedDistribution`. `log_prob` is in nats.

    Raises:
      TypeError: if an argument is unknown or of another type.
      ValueError: if the activation or layer is unknown, an option has a wrong value, the layer has no such
        option, the shape is unknown or not divisible, or a number is not positive.

    >>> import numpy as np
    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> flow = sn.conv_flow((8, 8, 1), num_blocks=2, layers_per_block=2, seed=1)
    >>> sn.adapt(flow, np.random.default_rng(1).normal(size=[100, 8, 8, 1]))
    >>> flow.log_prob(tf.zeros([5, 8, 8, 1])).shape, flow.distribution.event_shape
    (TensorShape([5]), TensorShape([4, 4, 4]))

    References: Keller et al., "Self Normalizing Flows", ICML 2021, section 5.
    """
    check_optional_name(name)
    make_layer = layer_maker(conv_flow, layer, layer_options, _LAYERS, SelfNormConv2D.check_options)
    num_blocks = check_positive_int(num_blocks, "num_blocks")
    layers_per_block = check_positive_int(layers_per_block, "layers_per_block")
    shape, dtype = check_image_shape(image_shape, divisor=2 ** (num_blocks - 1)), check_dtype(dtype)
    kernel_size = check_kernel_size(kernel_size, ndims=2)
    make_activation = activation_maker(activation, dtype)
    seeds = iter(split_seeds(seed, num_blocks * layers_per_block, "conv_flow"))
    bijectors = first_bijectors(preprocessing, centering, shape, dtype)
    for block in range(num_blocks):
        if block > 0:
            bijectors.append(tfb.Invert(Squeeze()))
            shape = squeezed(shape)
        for i in range(layers_per_block):
            options = {"dtype": dtype, "seed": next(seeds), "name": f"block_{block}_conv_{i}"}
            bijectors.append(make_layer(shape[:2], shape[2], kernel_size, **options))
            is_last = block == num_blocks - 1 and i == layers_per_block - 1
            if make_activation is not None and not is_last:
                bijectors.append(tfb.Invert(make_activation(shape, f"block_{block}_activation_{i}")))
    return standard_normal_flow(shape, bijectors, dtype, name, preprocessing)
