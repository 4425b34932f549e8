"""`SelfNormConv2D` and `SelfNormConv1D`, the convolutional self-normalizing layers."""

from typing import Self

import tensorflow as tf

from tfp_selfnorm.bijectors.conv_parameters import (
    as_conv_parameters,
    check_conv_sizes,
    check_spatial_shape,
    initial_bias,
    noisy_identity_kernel,
    rotation_kernel,
)
from tfp_selfnorm.bijectors.parameters import ensure_event, is_checked_now, kernel_variables
from tfp_selfnorm.bijectors.self_norm import SelfNorm
from tfp_selfnorm.math import conv
from tfp_selfnorm.utils.names import check_name
from tfp_selfnorm.utils.options import check_bools
from tfp_selfnorm.utils.seeds import stateless_seed
from tfp_selfnorm.utils.types import DType, Parameter, Seed, Shape


class SelfNormConv(SelfNorm):
    """The convolution of one or two spatial dimensions: base class of the two layers."""

    _GRADIENTS = ("self_norm", "exact", "circulant")
    _SPATIAL_NDIMS: int
    _DEFAULT_NAME: str

    def __init__(
        self,
        forward_kernel: Parameter,
        inverse_kernel: Parameter,
        spatial_shape: Shape,
        bias: Parameter = None,
        *,
        gradient: str = "self_norm",
        mixture: float = 0.5,
        inversion: str | None = None,
        validate_args: bool = False,
        name: str | None = None,
    ) -> None:
        """Makes the layer from its parameters; `trainable` makes the parameters too.

        Args:
          forward_kernel: R, float `[*kernel_size, C, C]`, sizes odd: tensor or `tf.Variable`.
          inverse_kernel: W, float, with the same shape: tensor or `tf.Variable`.
          spatial_shape: sizes of an image without its channels, positive ints.
          bias: float `[C]`, or `None`.
          gradient: the gradient of the likelihood by the kernels, inside a `training_scope`: "self_norm" (the
            learned inverse instead of the inverse transpose), "circulant" (the inverse of the convolution on
            a torus, from W alone) or "exact" (block elimination each step).
          mixture: the weight, in [0, 1], of the log density of the map that is computed; the rest is for that
            of the other map. For `inverse` these are the densities by W and by R (p_f and p_g in the paper).
            "self_norm" uses it inside a `training_scope`. 0.5 is the value of the paper. With 1, W has the
            plain gradient, and only a regularizer trains R.
          inversion: the map of `forward`: "learned" (the convolution with R) or "exact" (the solve with W).
            `None` is "learned" with the gradient "self_norm", and "exact" with the others, for which the
            likelihood does not train R. With these, "learned" needs a `Reconstruction`, or for a 1x1 kernel
            `refresh_inverse`. The regularizer then pulls at W too, which costs likelihood; with
            `Reconstruction("inverse_only")` it trains R alone. `FlowModel.fit` raises an error where nothing
            can give R its values.
          validate_args: whether to check at each call that W is not singular to working precision.
          name: name of the ops.

        Raises:
          TypeError: if a parameter is not floating or the dtypes differ.
          ValueError: if the kernels have an even size or different shapes, or their numbers of inputs and
            outputs differ; if a size of `spatial_shape` is unknown, or an option is out of range.
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
            super().__init__(operations, dtype, forward_kernel, inverse_kernel, bias, parameters)

    @classmethod
    def trainable(
        cls,
        spatial_shape: Shape,
        channels: int,
        kernel_size: Shape = 3,
        *,
        dtype: DType = tf.float32,
        seed: Seed = None,
        use_bias: bool = True,
        rotates: bool | None = None,
        gradient: str = "self_norm",
        mixture: float = 0.5,
        inversion: str | None = None,
        validate_args: bool = False,
        name: str | None = None,
    ) -> Self:
        """Makes a layer of `tf.Variable`s with the paper's initial values.

        Initial values: W is the identity plus a hundredth of Glorot's normal noise, or a random rotation of
        the channels of each pixel. R is the transpose of W, the flipped kernel. The bias is 0.

        Args:
          spatial_shape: sizes of an image without its channels, positive ints.
          channels: C, a positive int.
          kernel_size: an odd int, or one for each spatial dimension.
          dtype: float32 or float64.
          seed: int or stateless TFP seed of the kernel.
          use_bias: whether there is a bias.
          rotates: whether W is initially a rotation, which is right between couplings. `None` is True for
            kernels of size 1.
          gradient: see the constructor.
          mixture: see the constructor.
          inversion: see the constructor.
          validate_args: see the constructor.
          name: name of the layer; its variables are named after it.

        Raises:
          TypeError: if an argument has another type.
          ValueError: if a size is no positive int, `kernel_size` is even, or an option is out of range.
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
            gradient=gradient,
            mixture=mixture,
            inversion=inversion,
            validate_args=validate_args,
            name=name,
        )

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """The sizes of an image without its channels."""
        return self._spatial_shape

    @property
    def refresh_interval(self) -> int:
        """The number of steps between two refreshes, which then cost little beside the steps."""
        return 20

    @property
    def has_gradient_correction(self) -> bool:
        # Of a 1x1 kernel it is the exact gradient.
        return self._gradient == "circulant" and not self.has_matrix_kernels

    @property
    def event_sizes(self) -> tuple[int, ...]:
        return (*self._spatial_shape, self._inverse_kernel.shape[-1])

    def _check_event(self, x, name):
        return ensure_event(super()._check_event(x, name), self.event_sizes)

    def _parameter_control_dependencies(self, is_init):
        # The log-det itself reports a singular kernel.
        return [self.exact_log_det()] if is_checked_now(self, self._inverse_kernel, is_init) else []


class SelfNormConv2D(SelfNormConv):
    """A convolution that learns its inverse: `inverse(y) = W * y + bias`, `forward(x) = R * (x - bias)`.

    The convolutions have stride 1, zero padding that keeps the size ("SAME"), odd kernels in the layout
    height, width, input channels, output channels, and the same number of channels in and out. As usual in
    deep learning, they do not mirror the kernel. `W = inverse_kernel` maps data to latent,
    `R = forward_kernel` latent to data. Training keeps the map of R close to the inverse of the map of W. In
    general this inverse is no convolution. The gradient of `log |det W|` then has `m * flip(R)` instead of
    sums over the inverse transpose: `flip` exchanges channels and mirrors space, `m` is the count of each
    kernel element in the matrix. A training step costs a few convolutions.

    The gradient "circulant" has no learned inverse in it: on a torus the discrete Fourier transform divides W
    into one C x C matrix for each frequency, and the gradient comes from their inverses. It costs O(F C^3)
    for at most F = 144 frequencies, and nothing for each example. It is close to the exact gradient as far as
    the edges of the image have little weight, and damped near a singular matrix. For a 1x1 kernel it is the
    exact gradient. `gradient_correction()` is the error, at the cost of the exact gradient. `FlowModel`
    computes it every 8 to 64 steps, and adds it to the gradient. If the error changes fast, or the circulant
    gradient has changed since, the exact gradient takes its place. In a loop, pass the error to
    `training_scope`.

    `inverse_log_det_jacobian` is `log |det W|` of the whole map, exact, by block elimination in float64. It
    costs O(((k - 1) / 2 W C)^3 log H) for H x W images, once for all examples, and O(C^3) for a 1x1 kernel.
    Its gradient is exact too. Inside a `training_scope` it has a held value at no cost. The solve with
    `inversion="exact"` is exact. The log-dets of `forward`, and of pairs, are as in `SelfNormDense`.

    Shapes: kernels `[kh, kw, C, C]`, bias `[C]`, events `[H, W, C]`. Dtypes: float32 and float64; one for
    all. Units: nats. If W is singular to working precision, a log-det or a solve raises ValueError, and
    inside a graph `tf.errors.InvalidArgumentError`.

    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> layer = sn.SelfNormConv2D.trainable(spatial_shape=(8, 8), channels=3, kernel_size=(3, 5), seed=1)
    >>> layer.inverse(tf.ones([2, 8, 8, 3])).shape, layer.inverse_kernel.shape
    (TensorShape([2, 8, 8, 3]), TensorShape([3, 5, 3, 3]))
    >>> two = tf.fill([1, 1, 1, 1], 2.0)
    >>> scaled = sn.SelfNormConv2D(1.0 / two, two, spatial_shape=(4, 4))
    >>> round(float(scaled.inverse_log_det_jacobian(tf.ones([4, 4, 1]))), 4)    # 16 log 2
    11.0904

    References: Keller et al., "Self Normalizing Flows", ICML 2021, section 4 and appendix.
    """

    _SPATIAL_NDIMS = 2
    _PARAMETER_NDIMS = {"forward_kernel": 4, "inverse_kernel": 4, "bias": 1}
    _DEFAULT_NAME = "self_norm_conv2d"


class SelfNormConv1D(SelfNormConv):
    """A convolution of sequences that learns its inverse: `SelfNormConv2D` in one dimension.

    Shapes: kernels `[k, C, C]` (length, input channels, output channels), bias `[C]`, events `[L, C]`.
    The exact log-det costs O(((k - 1) / 2 C)^3 log L). Everything else is as in `SelfNormConv2D`.

    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> layer = sn.SelfNormConv1D.trainable(spatial_shape=17, channels=2, kernel_size=5, seed=1)
    >>> layer.inverse(tf.ones([4, 17, 2])).shape, layer.inverse_kernel.shape
    (TensorShape([4, 17, 2]), TensorShape([5, 2, 2]))

    References: Keller et al., "Self Normalizing Flows", ICML 2021, section 4.
    """

    _SPATIAL_NDIMS = 1
    _PARAMETER_NDIMS = {"forward_kernel": 3, "inverse_kernel": 3, "bias": 1}
    _DEFAULT_NAME = "self_norm_conv1d"
