"""The zero-padded convolution of stride 1 as a self-normalizing map. It keeps the shape of an image.

Images are `[..., H, W, C]` and kernels `[kh, kw, C, C]` (height, width, input and output channels), or
`[..., L, C]` and `[k, C, C]`. The sizes of kernels are odd. Keller et al. (2021), section 4 and appendix.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfp_selfnorm.math import circulant_conv, exact_conv, linear
from tfp_selfnorm.math.linear import Operations


def convolve(images: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """The convolution of images `[B, H, W, C]`, in the sense of deep learning (a cross-correlation)."""
    return tf.nn.conv2d(images, kernel, strides=1, padding="SAME")


def flip(kernel: tf.Tensor) -> tf.Tensor:
    """The kernel of the transposed map: mirrored in space, with input and output channels exchanged."""
    return tf.einsum("...io->...oi", tf.reverse(kernel, axis=range(kernel.shape.rank - 2)))


def kernel_gradient(images: tf.Tensor, d_output: tf.Tensor, kernel_size: Sequence[int]) -> tf.Tensor:
    """The gradient of the kernel, summed over the batch."""
    channels = images.shape[-1]
    return tf.raw_ops.Conv2DBackpropFilter(
        input=images,
        filter_sizes=[*kernel_size, channels, channels],
        out_backprop=d_output,
        strides=[1, 1, 1, 1],
        padding="SAME",
    )


def multiplicity(kernel_size: Sequence[int], spatial_shape: Sequence[int]) -> np.ndarray:
    """The counts of each kernel element in the matrix of the map: `(H - |i - ci|) (W - |j - cj|)`.

    A numpy array `[kh, kw]`; 0 for elements that multiply only zeros of the padding.
    """
    counts = [
        np.maximum(size - np.abs(np.arange(length) - length // 2), 0)
        for length, size in zip(kernel_size, spatial_shape, strict=True)
    ]
    return np.multiply.outer(*counts)


def inverse_to_gradient(inverse_kernel: tf.Tensor, spatial_shape: Sequence[int]) -> tf.Tensor:
    """The gradient of `log |det|` by a kernel of the inverse map: `multiplicity * flip(inverse_kernel)`."""
    counts = multiplicity(inverse_kernel.shape[:2], spatial_shape)[..., np.newaxis, np.newaxis]
    return tf.constant(counts, inverse_kernel.dtype) * flip(inverse_kernel)


def solve(kernel: tf.Tensor, z: tf.Tensor, name: str = "kernel") -> tf.Tensor:
    """`exact_conv.solve` with gradients, by a transposed solve; differentiable once."""

    @tf.custom_gradient
    def apply(kernel, z):
        x = exact_conv.solve(kernel, z, name)

        def gradients(d_x):
            d_z = solve(flip(kernel), d_x, name)
            d_kernel = -kernel_gradient(x, d_z, kernel.shape[:2])
            return linear.differentiated_once(d_kernel, kernel, z), d_z

        return x, gradients

    return apply(kernel, z)


class ConvMap(Operations):
    """The convolution of images with the spatial shape `(H, W)`, or `(L,)`.

    Args:
      kernel_size: sizes of the kernel.
      spatial_shape: sizes of an image without its channels.
      name: name of the kernel in errors.
    """

    def __init__(
        self, kernel_size: Sequence[int], spatial_shape: Sequence[int], name: str = "kernel"
    ) -> None:
        self._ndims = len(spatial_shape)
        self._kernel_size, self._shape = _planar(kernel_size), _planar(spatial_shape)
        self._name = name
        self.event_ndims, self.kernel_ndims = self._ndims + 1, self._ndims + 2
        self.has_matrix_kernels = self._kernel_size == (1, 1)

    def apply(self, kernel: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        return self._on_images(convolve, kernel, x)

    def adjoint(self, kernel: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        return self._on_images(lambda z, kernel: convolve(z, flip(kernel)), kernel, z)

    def kernel_gradient(self, x: tf.Tensor, d_z: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        images, d_images = self._images(x, kernel), self._images(d_z, kernel)
        return tf.reshape(kernel_gradient(images, d_images, self._kernel_size), kernel.shape)

    def inverse_to_gradient(self, kernel: tf.Tensor) -> tf.Tensor:
        return tf.reshape(inverse_to_gradient(self._planar_kernel(kernel), self._shape), kernel.shape)

    def log_det(self, kernel: tf.Tensor) -> tf.Tensor:
        return exact_conv.log_det(self._planar_kernel(kernel), self._shape, self._name)

    @property
    def log_det_gradients(self) -> Mapping[str, Callable[[tf.Tensor], tf.Tensor]]:
        return {"exact": self._exact_gradient, "circulant": self._circulant_gradient}

    def solve(self, kernel: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        return self._on_images(lambda z, kernel: solve(kernel, z, self._name), kernel, z)

    def to_matrix(self, kernel: tf.Tensor) -> tf.Tensor:
        return tf.transpose(tf.reshape(kernel, kernel.shape[-2:]))

    def from_matrix(self, matrix: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.transpose(matrix), [*[1] * self._ndims, *matrix.shape])

    def _exact_gradient(self, kernel):
        gradient = exact_conv.log_det_gradient(self._planar_kernel(kernel), self._shape, self._name)
        return tf.reshape(gradient, kernel.shape)

    def _circulant_gradient(self, kernel):
        if self.has_matrix_kernels:
            return self._exact_gradient(kernel)
        counts = multiplicity(self._kernel_size, self._shape)[..., np.newaxis, np.newaxis]
        gradient = circulant_conv.mean_log_det_gradient(self._planar_kernel(kernel), self._shape)
        return tf.reshape(tf.constant(counts, kernel.dtype) * gradient, kernel.shape)

    def _on_images(self, function, kernel, x):
        images = function(self._images(x, kernel), self._planar_kernel(kernel))
        return tf.reshape(images, tf.shape(x))

    def _images(self, x, kernel):
        return tf.reshape(x, [-1, *self._shape, kernel.shape[-1]])

    def _planar_kernel(self, kernel):
        return kernel if self._ndims == 2 else kernel[:, tf.newaxis]


def _planar(sizes):
    """The sizes of an image; a sequence is an image of width 1."""
    return (*sizes, 1)[:2]
