"""`SelfNormConv2D` and `SelfNormConv1D`, the convolutional self-normalizing layers."""

import tensorflow as tf

from tfp_selfnorm.bijectors.conv_parameters import (
    as_conv_parameters,
    check_conv_sizes,
    check_spatial_shape,
    initial_bias,
    noisy_identity_kernel,
    rotation_kernel,
)
from tfp_selfnorm.bijectors.parameters import (
    ensure_event,
    is_checked_now,
    kernel_variables,
    parameter_properties,
)
from tfp_selfnorm.bijectors.self_norm import SelfNorm
from tfp_selfnorm.math import conv
from tfp_selfnorm.utils.names import check_name
from tfp_selfnorm.utils.options import check_bools
from tfp_selfnorm.utils.seeds import stateless_seed


class SelfNormConv(SelfNorm):
    """What the convolutions of one and of two spatial dimensions share."""

    _GRADIENTS: tuple = ("self_norm", "exact")
    _SPATIAL_NDIMS: int
    _DEFAULT_NAME: str

    def __init__(
        self,
        forward_kernel,
        inverse_kernel,
        spatial_shape,
        bias=None,
        gradient="self_norm",
        mixture=0.5,
        inversion=None,
        *,
        validate_args=False,
        name=None,
    ):
        """Makes the layer from its parameters; `trainable` makes the parameters too.

        Args:
          forward_kernel: R, float `[*kernel_size, C, C]`, sizes odd: tensor or `tf.Variable`.
          inverse_kernel: W, of the same shape: tensor or `tf.Variable`.
          spatial_shape: sizes of an image without its channels, positive ints.
          bias: float `[C]`, or `None`.
          gradient: of the likelihood with respect to the kernels, inside a `training_scope` (outside it is
            exact): "self_norm" (the learned inverse in place of the inverse transpose) or "exact" (block
            elimination each step).
          mixture: weight in [0, 1], for "self_norm" inside a `training_scope`, of the density of the
            direction that is computed, against that of the other: for `inverse`, of p_f against p_g. 0.5 is
            the paper's. 1 gives W the plain gradient, and R none but that of a regularizer.
          inversion: what `forward` computes: "learned" (the convolution with R) or "exact" (the solve
            with W). `None` is "learned" for "self_norm" and "exact" for "exact", which does not train R.
          validate_args: whether to check at each call that W is not singular to working precision.
          name: name of the ops.

        Raises:
          TypeError: if a parameter is not floating or the dtypes differ.
          ValueError: if a kernel has an even size, other shapes or as many outputs as inputs not, a size
            of `spatial_shape` is unknown, or an option is not one of those above.
        """
        parameters = dict(locals())
        name = name or self._DEFAULT_NAME
        check_name(name)
        with tf.name_scope(name):
            dtype, forward_kernel, inverse_kernel, bias = as_conv_parameters(
                self._SPATIAL_NDIMS, bias, forward_kernel=forward_kernel, inverse_kernel=inverse_kernel
            )
            self._spatial_shape = check_spatial_shape(spatial_shape, self._SPATIAL_NDIMS)
            sizes = inverse_kernel.shape[:-2]
            operations = conv.ConvMap(sizes, self._spatial_shape, f"inverse_kernel of {name}")
            super().__init__(operations, dtype, forward_kernel, inverse_kernel, bias, parameters, name)

    @classmethod
    def trainable(
        cls,
        spatial_shape,
        channels,
        kernel_size=3,
        dtype=tf.float32,
        seed=None,
        use_bias=True,
        rotates=None,
        *,
        gradient="self_norm",
        mixture=0.5,
        inversion=None,
        validate_args=False,
        name=None,
    ):
        """Makes a layer of `tf.Variable`s with the paper's initial values.

        W starts as the identity plus a hundredth of Glorot's normal noise, or as a random rotation of the
        channels of each pixel; R as its transpose, the flipped kernel; the bias at 0.

        Args:
          spatial_shape: sizes of an image without its channels, positive ints.
          channels: C, a positive int.
          kernel_size: an odd int, or one for each spatial dimension.
          dtype: float32 or float64.
          seed: int or stateless TFP seed of the kernel.
          use_bias: whether there is a bias.
          rotates: whether W starts as a rotation, as it should between couplings; `None`: if the size is 1.
          gradient: see the constructor, as for the arguments below.
          mixture: see the constructor.
          inversion: see the constructor.
          validate_args: see the constructor.
          name: name of the layer; its variables are named after it.

        Raises:
          TypeError: if an argument is of another type.
          ValueError: if a size is not a positive int, one of the kernel is even, or an option is out of
            range.
        """
        name = name or cls._DEFAULT_NAME
        spatial_shape, channels, sizes, dtype = check_conv_sizes(
            spatial_shape, channels, kernel_size, dtype, cls._SPATIAL_NDIMS
        )
        cls.check_options(gradient, mixture, inversion, validate_args)
        rotates = all(size == 1 for size in sizes) if rotates is None else rotates
        check_bools(rotates=rotates, use_bias=use_bias)
        initial_kernel = rotation_kernel if rotates else noisy_identity_kernel
        kernel = initial_kernel(sizes, channels, dtype, stateless_seed(seed, salt="self_norm_conv"))
        forward_kernel, inverse_kernel = kernel_variables(conv.flip(kernel), kernel, name)
        bias = initial_bias(channels, dtype, name, use_bias)
        return cls(
            forward_kernel,
            inverse_kernel,
            spatial_shape,
            bias,
            gradient,
            mixture,
            inversion,
            validate_args=validate_args,
            name=name,
        )

    @classmethod
    def _parameter_properties(cls, dtype):
        kernel_ndims = cls._SPATIAL_NDIMS + 2
        return parameter_properties(forward_kernel=kernel_ndims, inverse_kernel=kernel_ndims, bias=1)

    @property
    def spatial_shape(self) -> tuple:
        """The sizes of an image without its channels."""
        return self._spatial_shape

    @property
    def refresh_interval(self) -> int:
        """Steps after which an exact log-det, cheap as it is here, costs little beside the steps."""
        return 20

    @property
    def event_sizes(self):
        return (*self._spatial_shape, self._inverse_kernel.shape[-1])

    def _check_event(self, x, name):
        return ensure_event(super()._check_event(x, name), self.event_sizes)

    def _parameter_control_dependencies(self, is_init):
        # It reports a singular kernel itself.
        return [self.exact_log_det()] if is_checked_now(self, self._inverse_kernel, is_init) else []


class SelfNormConv2D(SelfNormConv):
    """A convolution that learns its inverse: `inverse(y) = W * y + bias`, `forward(x) = R * (x - bias)`.

    The convolutions have stride 1, zero padding that keeps the size ("SAME"), odd kernels in the layout
    height, width, input channels, output channels, and as many channels out as in; as everywhere in deep
    learning they do not mirror the kernel. `W = inverse_kernel` maps data to latent, `R = forward_kernel`
    latent to data. Training keeps the map of R close to the inverse of that of W, which is no convolution
    in general, and puts `m * flip(R)` where the gradient of `log |det W|` has sums over the inverse
    transpose: `flip` exchanges channels and mirrors space, `m` counts how often an element of a kernel stands
    in the matrix. A training step costs a few convolutions.

    `inverse_log_det_jacobian` is `log |det W|` of the whole map, exact, by block elimination in float64:
    O(((k - 1) / 2 W C)^3 log H) for H x W images, once and not for each example, and O(C^3) for a 1x1 kernel;
    its gradient is exact too. Inside a `training_scope` it has a held value at no cost. So is the solve of
    `inversion="exact"` exact. The log-dets of `forward`, and of pairs, are as in `SelfNormDense`.

    Shapes: kernels `[kh, kw, C, C]`, bias `[C]`, events `[H, W, C]`. Dtypes: float32 and float64; one for
    all. Units: nats. A log-det or a solve that meets a W singular to working precision raises ValueError,
    and inside a graph `tf.errors.InvalidArgumentError`.

    >>> layer = SelfNormConv2D.trainable(spatial_shape=(8, 8), channels=3, kernel_size=(3, 5), seed=1)
    >>> layer.inverse(tf.ones([2, 8, 8, 3])).shape, layer.inverse_kernel.shape
    (TensorShape([2, 8, 8, 3]), TensorShape([3, 5, 3, 3]))
    >>> two = tf.fill([1, 1, 1, 1], 2.0)
    >>> scaled = SelfNormConv2D(1.0 / two, two, spatial_shape=(4, 4))
    >>> round(float(scaled.inverse_log_det_jacobian(tf.ones([4, 4, 1]))), 4)    # 16 log 2
    11.0904

    References: Keller et al., "Self Normalizing Flows", ICML 2021, section 4 and appendix.
    """

    _SPATIAL_NDIMS = 2
    _DEFAULT_NAME = "self_norm_conv2d"


class SelfNormConv1D(SelfNormConv):
    """The convolution of sequences that learns its inverse: `SelfNormConv2D` in one dimension.

    Shapes: kernels `[k, C, C]` (length, input channels, output channels), bias `[C]`, events `[L, C]`.
    The exact log-det costs O(((k - 1) / 2 C)^3 log L). All else is as in `SelfNormConv2D`.

    >>> layer = SelfNormConv1D.trainable(spatial_shape=17, channels=2, kernel_size=5, seed=1)
    >>> layer.inverse(tf.ones([4, 17, 2])).shape, layer.inverse_kernel.shape
    (TensorShape([4, 17, 2]), TensorShape([5, 2, 2]))

    References: Keller et al., "Self Normalizing Flows", ICML 2021, section 4.
    """

    _SPATIAL_NDIMS = 1
    _DEFAULT_NAME = "self_norm_conv1d"
