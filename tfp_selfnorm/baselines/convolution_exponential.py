"""`ConvolutionExponential2D`, the matrix exponential of a convolution."""

from typing import Self

import tensorflow as tf

from tfp_selfnorm.baselines.linear_image_map import LinearImageMap
from tfp_selfnorm.baselines.math import convolution_exponential
from tfp_selfnorm.bijectors.conv_parameters import (
    as_conv_parameters,
    check_conv_sizes,
    initial_bias,
    small_noise,
)
from tfp_selfnorm.utils.names import check_name
from tfp_selfnorm.utils.options import check_bools, check_number
from tfp_selfnorm.utils.seeds import stateless_seed
from tfp_selfnorm.utils.types import DType, Parameter, Seed, Shape

# The rounding error is about exp(2 max_norm) units. Up to this limit float32 keeps some digits.
_LARGEST_MAX_NORM = 5.0


class ConvolutionExponential2D(LinearImageMap):
    """The exponential of a convolution: `inverse(y) = exp(M) y + bias`, `forward(x) = exp(-M) (x - bias)`.

    M is the matrix of the convolution with `kernel`: stride 1, zero padding that keeps the size ("SAME"), an
    odd kernel in the layout height, width, input channels, output channels, not mirrored. Every kernel of
    elements below 1e18 gives an invertible map. The spectral norm of M has a bound: the root of its largest
    row sum times its largest column sum. If the bound exceeds `max_norm`, the kernel is scaled down to it.
    The gradient includes the scale. So both directions are series with a fixed number of terms; the rest is
    below rounding. For a `max_norm` of 2 they take 15 convolutions in float32 and 23 in float64. The paper
    limits an estimate of the norm to 0.9 and takes 6 terms. The limit here is larger because the bound is
    larger than the norm, for kernels with random signs much larger.

    `inverse_log_det_jacobian` is the trace of M: `H W` times the trace of the centre of the kernel, exact, at
    O(C).

    Shapes: kernel `[kh, kw, C, C]`, bias `[C]`, events `[H, W, C]`. Dtypes: float32 and float64; one for
    all. Units: nats.

    >>> import math
    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> layer = sn.baselines.ConvolutionExponential2D.trainable(spatial_shape=(8, 8), channels=3, seed=1)
    >>> layer.inverse(tf.ones([2, 8, 8, 3])).shape, layer.kernel.shape
    (TensorShape([2, 8, 8, 3]), TensorShape([3, 3, 3, 3]))
    >>> kernel = tf.fill([1, 1, 1, 1], math.log(2.0))
    >>> doubling = sn.baselines.ConvolutionExponential2D(kernel, spatial_shape=(4, 4))
    >>> doubling.inverse(tf.ones([4, 4, 1]))[0, 0].numpy().round(4)
    array([2.], dtype=float32)
    >>> round(float(doubling.inverse_log_det_jacobian(tf.ones([4, 4, 1]))), 4)    # 16 log 2
    11.0904

    References: Hoogeboom, Garcia Satorras, Tomczak & Welling, "The Convolution Exponential and Generalized
    Sylvester Flows", NeurIPS 2020, section 3.
    """

    _DEFAULT_NAME = "convolution_exponential2d"
    _PARAMETER_NDIMS = {"kernel": 4, "bias": 1}

    def __init__(
        self,
        kernel: Parameter,
        spatial_shape: Shape,
        bias: Parameter = None,
        max_norm: float = 2.0,
        validate_args: bool = False,
        name: str | None = None,
    ) -> None:
        """Makes the layer from its parameters; `trainable` makes the parameters too.

        Args:
          kernel: float `[kh, kw, C, C]`, sizes odd: tensor or `tf.Variable`.
          spatial_shape: (H, W) of an image, positive ints.
          bias: float `[C]`, or `None`.
          max_norm: the limit of the bound on the norm of M, above 0 and at most 5. Rounding errors grow with
            `exp(2 max_norm)`.
          validate_args: has no effect; wrong sizes always raise an error.
          name: name of the ops.

        Raises:
          TypeError: if a parameter is not floating, the dtypes differ or `max_norm` is no number.
          ValueError: if the kernel has an even size or another rank, or its numbers of inputs and outputs
            differ; if a size of `spatial_shape` is unknown, or `max_norm` is out of range.
        """
        parameters = dict(locals())
        name = name or self._DEFAULT_NAME
        check_name(name)
        with tf.name_scope(name):
            dtype, self._kernel, bias = as_conv_parameters(2, bias, kernel=kernel)
            self._max_norm = _check_max_norm(max_norm)
            self._count = convolution_exponential.number_of_terms(self._max_norm, dtype)
            super().__init__(self._kernel.shape[-1], bias, dtype, parameters)

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
        max_norm: float = 2.0,
        validate_args: bool = False,
        name: str | None = None,
    ) -> Self:
        """Makes a layer of `tf.Variable`s that is initially near the identity.

        Initial values: the kernel is a hundredth of Glorot's normal noise, as in `SelfNormConv2D`. The bias
        is 0.

        Args:
          spatial_shape: (H, W) of an image, positive ints.
          channels: C, a positive int.
          kernel_size: an odd int, or two.
          dtype: float32 or float64.
          seed: int or stateless TFP seed of the kernel.
          use_bias: whether there is a bias.
          max_norm: see the constructor.
          validate_args: see the constructor.
          name: name of the layer; its variables are named after it.

        Raises:
          TypeError: if an argument has another type.
          ValueError: if a size is no positive int, `kernel_size` is even, or `max_norm` is out of range.
        """
        name = name or cls._DEFAULT_NAME
        spatial_shape, channels, sizes, dtype = check_conv_sizes(
            spatial_shape, channels, kernel_size, dtype, ndims=2
        )
        max_norm = _check_max_norm(max_norm)
        check_bools(use_bias=use_bias, validate_args=validate_args)
        seed = stateless_seed(seed, salt="convolution_exponential")
        kernel = tf.Variable(small_noise(sizes, channels, dtype, seed), name=f"{name}_kernel")
        bias = initial_bias(channels, dtype, name, use_bias)
        return cls(kernel, spatial_shape, bias, max_norm, validate_args, name)

    @property
    def kernel(self) -> Parameter:
        """The kernel of M, before the scaling."""
        return self._kernel

    @property
    def max_norm(self) -> float:
        """The limit of the bound on the spectral norm of M."""
        return self._max_norm

    def bounded_kernel(self) -> tf.Tensor:
        """The kernel of M, scaled down if its bound exceeds `max_norm`."""
        return convolution_exponential.bounded(tf.convert_to_tensor(self._kernel), self._max_norm)

    def _to_latent(self, images):
        return convolution_exponential.apply(self.bounded_kernel(), images, self._count)

    def _to_data(self, images):
        return convolution_exponential.apply(-self.bounded_kernel(), images, self._count)

    def _log_det(self):
        return convolution_exponential.log_det(self.bounded_kernel(), self._spatial_shape)


def _check_max_norm(max_norm):
    expected = f"above 0 and at most {_LARGEST_MAX_NORM:g}"
    return check_number(max_norm, "max_norm", expected, lambda value: 0.0 < value <= _LARGEST_MAX_NORM)
