"""`EmergingConv2D`, two masked convolutions with triangular matrices."""

from typing import Self

import tensorflow as tf

from tfp_selfnorm.baselines.linear_image_map import LinearImageMap
from tfp_selfnorm.baselines.math import autoregressive_conv, line_conv
from tfp_selfnorm.bijectors.conv_parameters import (
    as_conv_parameters,
    check_conv_sizes,
    initial_bias,
    noisy_identity_kernel,
)
from tfp_selfnorm.utils.names import check_name
from tfp_selfnorm.utils.options import check_bools
from tfp_selfnorm.utils.seeds import split_seeds
from tfp_selfnorm.utils.types import DType, Parameter, Seed, Shape


class EmergingConv2D(LinearImageMap):
    """An emerging convolution: `inverse(y) = B * (A * y) + bias`, with masked kernels A and B.

    The convolutions have stride 1, zero padding that keeps the size ("SAME"), odd kernels in the layout
    height, width, input channels, output channels, and do not mirror the kernel. The mask of
    `A = first_kernel` lets each output depend on the earlier pixels in raster order, and in its own pixel on
    the channels up to its own. The mask of `B = second_kernel` does the same in the reverse order. Both
    matrices are triangular. Together the two kernels reach every pixel that one full kernel of this size
    reaches. The masks keep every element that the order allows. The paper keeps fewer: squares, a quarter of
    each kernel. Masked elements have no effect and gradient 0.

    `inverse_log_det_jacobian` is `H W` times the sum of the logs of both diagonals, exact, at O(C).
    `forward` is exact by substitution in float64, line after line, at O(kh H (W C)^2) an image.

    With a zero on a diagonal the map is singular, and the log-det is minus infinity. If the map is singular
    to working precision, `forward` raises ValueError, and inside a graph `tf.errors.InvalidArgumentError`;
    under XLA the result is NaN.

    Shapes: kernels `[kh, kw, C, C]`, bias `[C]`, events `[H, W, C]`. Dtypes: float32 and float64; one for
    all. Units: nats. `forward` is differentiable once.

    >>> import tensorflow as tf
    >>> import tfp_selfnorm as sn
    >>> layer = sn.baselines.EmergingConv2D.trainable((8, 8), channels=3, kernel_size=(3, 5), seed=1)
    >>> layer.inverse(tf.ones([2, 8, 8, 3])).shape, layer.first_kernel.shape
    (TensorShape([2, 8, 8, 3]), TensorShape([3, 5, 3, 3]))
    >>> two = tf.fill([1, 1, 1, 1], 2.0)
    >>> scaled = sn.baselines.EmergingConv2D(two, two, spatial_shape=(4, 4))
    >>> round(float(scaled.inverse_log_det_jacobian(tf.ones([4, 4, 1]))), 4)    # 16 log 4
    22.1807

    References: Hoogeboom, van den Berg & Welling, "Emerging Convolutions for Generative Normalizing Flows",
    ICML 2019, section 3.
    """

    _DEFAULT_NAME = "emerging_conv2d"
    _PARAMETER_NDIMS = {"first_kernel": 4, "second_kernel": 4, "bias": 1}

    def __init__(
        self,
        first_kernel: Parameter,
        second_kernel: Parameter,
        spatial_shape: Shape,
        bias: Parameter = None,
        validate_args: bool = False,
        name: str | None = None,
    ) -> None:
        """Makes the layer from its parameters; `trainable` makes the parameters too.

        Args:
          first_kernel: A, float `[kh, kw, C, C]`, sizes odd: tensor or `tf.Variable`.
          second_kernel: B, float, with the same shape: tensor or `tf.Variable`.
          spatial_shape: (H, W) of an image, positive ints.
          bias: float `[C]`, or `None`.
          validate_args: has no effect; wrong sizes always raise an error.
          name: name of the ops.

        Raises:
          TypeError: if a parameter is not floating or the dtypes differ.
          ValueError: if the kernels have an even size or different shapes, or their numbers of inputs and
            outputs differ; if a size of `spatial_shape` is unknown.
        """
        parameters = dict(locals())
        name = name or self._DEFAULT_NAME
        check_name(name)
        with tf.name_scope(name):
            dtype, self._first_kernel, self._second_kernel, bias = as_conv_parameters(
                2, bias, first_kernel=first_kernel, second_kernel=second_kernel
            )
            super().__init__(self._first_kernel.shape[-1], bias, dtype, parameters)

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
        validate_args: bool = False,
        name: str | None = None,
    ) -> Self:
        """Makes a layer of `tf.Variable`s that is initially near the identity.

        Initial values: both kernels are the identity plus a hundredth of Glorot's normal noise, as in
        `SelfNormConv2D`. The bias is 0.

        Args:
          spatial_shape: (H, W) of an image, positive ints.
          channels: C, a positive int.
          kernel_size: an odd int, or two.
          dtype: float32 or float64.
          seed: int or stateless TFP seed of the kernels.
          use_bias: whether there is a bias.
          validate_args: see the constructor.
          name: name of the layer; its variables are named after it.

        Raises:
          TypeError: if an argument has another type.
          ValueError: if a size is no positive int, or `kernel_size` is even.
        """
        name = name or cls._DEFAULT_NAME
        spatial_shape, channels, sizes, dtype = check_conv_sizes(
            spatial_shape, channels, kernel_size, dtype, ndims=2
        )
        check_bools(use_bias=use_bias, validate_args=validate_args)
        seeds = split_seeds(seed, 2, "emerging_conv")
        first, second = [
            tf.Variable(noisy_identity_kernel(sizes, channels, dtype, seed), name=f"{name}_{part}_kernel")
            for part, seed in zip(("first", "second"), seeds, strict=True)
        ]
        bias = initial_bias(channels, dtype, name, use_bias)
        return cls(first, second, spatial_shape, bias, validate_args, name)

    @property
    def first_kernel(self) -> Parameter:
        """A, the kernel in raster order, with its masked elements. `inverse` applies it first."""
        return self._first_kernel

    @property
    def second_kernel(self) -> Parameter:
        """B, the kernel in the reverse order, with its masked elements."""
        return self._second_kernel

    def _masked_kernels(self):
        first, second = (tf.convert_to_tensor(k) for k in (self._first_kernel, self._second_kernel))
        return autoregressive_conv.masked(first), autoregressive_conv.masked(second, reverse=True)

    def _to_latent(self, images):
        first, second = self._masked_kernels()
        return line_conv.convolve(line_conv.convolve(images, first), second)

    def _to_data(self, images):
        first, second = self._masked_kernels()
        between = autoregressive_conv.solve(second, images, True, f"second_kernel of {self.name}")
        return autoregressive_conv.solve(first, between, False, f"first_kernel of {self.name}")

    def _log_det(self):
        return tf.add_n(
            [autoregressive_conv.log_det(kernel, self._spatial_shape) for kernel in self._masked_kernels()]
        )
