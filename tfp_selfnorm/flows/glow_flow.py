"""`glow_flow`, the Glow-like flow of the paper."""

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors import ActNorm, AffineCoupling, ChannelSplit, SelfNormConv2D, Squeeze
from tfp_selfnorm.bijectors.conv_parameters import check_kernel_size
from tfp_selfnorm.flows.building import (
    check_image_shape,
    check_preprocessing,
    split_seeds,
    squeezed,
    standard_normal_flow,
)
from tfp_selfnorm.flows.networks import check_policy, coupling_network
from tfp_selfnorm.utils.integers import check_positive_int
from tfp_selfnorm.utils.names import check_optional_name
from tfp_selfnorm.utils.options import check_bools, check_choice, check_dtype

tfb = tfp.bijectors

MIXINGS = ("self_norm", "exact", "lu")


@keras.saving.register_keras_serializable("tfp_selfnorm")
def glow_flow(
    image_shape,
    num_blocks=2,
    steps_per_block=16,
    kernel_size=1,
    width=512,
    act_norm=True,
    split_prior=True,
    mixing="self_norm",
    mixture=0.5,
    inversion=None,
    preprocessing=None,
    dtype=tf.float32,
    network_dtype=None,
    seed=None,
    name="glow_flow",
):
    """The Glow-like flow of the paper: squeezes, steps of normalisation, mixing and coupling, and splits.

    From data to latent: preprocessing, then in each block a `Squeeze`, and `steps_per_block` times an
    `ActNorm`, a mixing of the channels and an `AffineCoupling`. After each block but the last half of the
    channels meet the base, and the others go on; with `split_prior` a coupling conditioned on those that go
    on comes before. The base is standard normal, of the shape of the first block's images: what the later
    blocks end with is put back into them.

    With `act_norm` the flow refuses to compute until `adapt(flow, data)`, or `FlowModel.adapt`, has given it
    its start.

    Args:
      image_shape: (height, width, channels), known; the sides divisible by `2**num_blocks`.
      num_blocks: number of blocks, 1 or more.
      steps_per_block: steps in a block, 1 or more.
      kernel_size: of the mixing convolutions, an odd int, or two. They start as random rotations of the
        channels, whatever their size: a coupling changes one half of them alone.
      width: hidden channels of the coupling networks, see `coupling_network`.
      act_norm: whether steps begin with an `ActNorm`.
      split_prior: whether a coupling comes before each split.
      mixing: "self_norm" or "exact", a `SelfNormConv2D` with that gradient; or "lu", a 1x1 convolution that
        is kept as its LU factors, `tfb.ScaleMatvecLU`.
      mixture: see `SelfNormConv2D`, as for the argument below.
      inversion: see `SelfNormConv2D`.
      preprocessing: bijector that ends the way from latent to data, such as `images.pixel_sigmoid()`.
      dtype: float32 or float64, of events, kernels and all arithmetic but that of the coupling networks.
      network_dtype: Keras dtype policy of the coupling networks, such as "mixed_float16" or "mixed_bfloat16";
        `None` is the global policy for a float32 flow, and the dtype of others.
      seed: int or stateless TFP seed of the initial values.
      name: name of the distribution.

    Returns:
      A `tfd.TransformedDistribution`. `log_prob` is in nats.

    Raises:
      TypeError: if an argument is of another type.
      ValueError: for an unknown mixing, "lu" with another kernel than 1x1, a shape that is unknown or not
        divisible, or a number that is not positive.

    >>> flow = glow_flow((8, 8, 1), num_blocks=2, steps_per_block=1, width=8, seed=1)
    >>> adapt(flow, np.random.default_rng(1).normal(size=[100, 8, 8, 1]))
    >>> flow.log_prob(tf.zeros([5, 8, 8, 1])).shape, flow.sample(3, seed=2).shape
    (TensorShape([5]), TensorShape([3, 8, 8, 1]))

    References: Keller et al., "Self Normalizing Flows", ICML 2021, section 5; Kingma & Dhariwal, "Glow",
    NeurIPS 2018.
    """
    check_optional_name(name)
    num_blocks = check_positive_int(num_blocks, "num_blocks")
    steps_per_block = check_positive_int(steps_per_block, "steps_per_block")
    shape, dtype = check_image_shape(image_shape, divisor=2**num_blocks), check_dtype(dtype)
    check_positive_int(width, "width")
    check_choice(mixing, "mixing", MIXINGS)
    if set(check_kernel_size(kernel_size, ndims=2)) != {1} and mixing == "lu":
        raise ValueError(f"`mixing` 'lu' needs `kernel_size` 1; got {kernel_size!r}.")
    SelfNormConv2D.check_options("exact", mixture, inversion, validate_args=False)
    check_bools(act_norm=act_norm, split_prior=split_prior)
    check_policy(network_dtype, "network_dtype")
    if network_dtype is None and dtype != tf.float32:
        network_dtype = dtype.name
    seeds = iter(split_seeds(seed, num_blocks * (2 * steps_per_block + 1), "glow_flow"))

    def mix(shape, name):
        if mixing == "lu":
            return _lu_mixing(shape[2], dtype, next(seeds), name)
        options = {"gradient": mixing, "mixture": mixture, "inversion": inversion, "rotates": True}
        return SelfNormConv2D.trainable(
            shape[:2], shape[2], kernel_size, dtype=dtype, seed=next(seeds), name=name, **options
        )

    def couple(shape, name):
        kept = shape[2] // 2
        network = coupling_network(
            (*shape[:2], kept),
            2 * (shape[2] - kept),
            width,
            seed=_int_seed(next(seeds)),
            dtype=network_dtype,
            name=f"{name}_network",
        )
        return AffineCoupling(network, name=name)

    def block_of(shape, block):
        """The bijectors of a block and all after it, data to latent, for images of that shape."""
        shape, bijectors = squeezed(shape), []
        for i in range(steps_per_block):
            prefix = f"block_{block}_step_{i}"
            if act_norm:
                bijectors.append(ActNorm.trainable(shape[2], dtype, name=f"{prefix}_act_norm"))
            bijectors += [mix(shape, f"{prefix}_mixing"), couple(shape, f"{prefix}_coupling")]
        if block < num_blocks - 1:
            if split_prior:
                bijectors.append(couple(shape, f"block_{block}_prior"))
            later = block_of((*shape[:2], shape[2] // 2), block + 1)
            bijectors.append(ChannelSplit(tfb.Chain([*later, Squeeze()]), name=f"block_{block}_split"))
        return [tfb.Invert(Squeeze()), *bijectors]

    bijectors = check_preprocessing(preprocessing)
    return standard_normal_flow(squeezed(shape), bijectors + block_of(shape, 0), dtype, name)


def _lu_mixing(channels, dtype, seed, name):
    """A random rotation of the channels as the trainable factors that `tfb.ScaleMatvecLU` takes."""
    rotation = tf.linalg.qr(tf.random.stateless_normal([channels, channels], seed, dtype=dtype)).q
    lower_upper, permutation = tf.linalg.lu(rotation)
    # A variable too, so that it is saved with the factors that it belongs to.
    permutation = tf.Variable(permutation, trainable=False, name=f"{name}_permutation")
    return tfb.ScaleMatvecLU(tf.Variable(lower_upper, name=f"{name}_lower_upper"), permutation, name=name)


def _int_seed(seed):
    return int(tf.random.stateless_uniform([], seed, 0, 2**31 - 1, tf.int32))
