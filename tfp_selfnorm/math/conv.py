"""The zero-padded convolution of stride 1, which keeps the shape of an image, as a self-normalizing map.

Images are `[..., H, W, C]` and kernels `[kh, kw, C, C]` (height, width, input and output channels), or
`[..., L, C]` and `[k, C, C]`; the sizes of kernels are odd. Keller et al. (2021), section 4 and appendix.
"""

import numpy as np
import tensorflow as tf

from tfp_selfnorm.math import exact_conv
from tfp_selfnorm.math.linear import Operations


def convolve(images, kernel):
    """The convolution, as deep learning has it (a cross-correlation), of images `[B, H, W, C]`."""
    return tf.nn.conv2d(images, kernel, strides=1, padding="SAME")


def flip(kernel):
    """The kernel of the transposed map: mirrored in space, with its channels exchanged."""
    return tf.einsum("...io->...oi", tf.reverse(kernel, axis=range(kernel.shape.rank - 2)))


def kernel_gradient(images, d_output, kernel_size):
    """The gradient of the kernel, summed over the batch."""
    channels = images.shape[-1]
    return tf.raw_ops.Conv2DBackpropFilter(
        input=images,
        filter_sizes=[*kernel_size, channels, channels],
        out_backprop=d_output,
        strides=[1, 1, 1, 1],
        padding="SAME",
    )


def multiplicity(kernel_size, spatial_shape):
    """How often each element of a kernel stands in the matrix of the map: `(H - |i - ci|) (W - |j - cj|)`.

    A numpy array `[kh, kw]`, 0 for elements that reach beyond every image.
    """
    counts = [
        np.maximum(size - np.abs(np.arange(length) - length // 2), 0)
        for length, size in zip(kernel_size, spatial_shape, strict=True)
    ]
    return np.multiply.outer(*counts)


def inverse_to_gradient(inverse_kernel, spatial_shape):
    """What `log |det|` has for a gradient where a kernel for the inverse map is known: `m * flip(kernel)`."""
    counts = multiplicity(inverse_kernel.shape[:2], spatial_shape)[..., np.newaxis, np.newaxis]
    return tf.constant(counts, inverse_kernel.dtype) * flip(inverse_kernel)


def solve(kernel, z, name="kernel"):
    """`exact_conv.solve` with its gradients, of `z` by a transposed solve; differentiable once."""

    @tf.custom_gradient
    def apply(kernel, z):
        x = exact_conv.solve(kernel, z, name)

        def gradients(d_x):
            d_z = solve(flip(kernel), d_x, name)
            d_kernel = -kernel_gradient(x, d_z, kernel.shape[:2])
            return exact_conv.differentiated_once(d_kernel, kernel, z), d_z

        return x, gradients

    return apply(kernel, z)


def operations(kernel_size, spatial_shape, name="kernel"):
    """The operations of `linear` for images of a spatial shape `(H, W)`, or `(L,)`; errors call it `name`."""
    ndims = len(spatial_shape)
    kernel_size, shape = _planar(kernel_size), _planar(spatial_shape)

    def images(x, kernel):
        return tf.reshape(x, [-1, *shape, kernel.shape[-1]])

    def planar(kernel):
        return kernel if ndims == 2 else kernel[:, tf.newaxis]

    def on_images(function):
        return lambda kernel, x: tf.reshape(function(planar(kernel), images(x, kernel)), tf.shape(x))

    def gradient_of_kernel(x, d_z, kernel):
        d_kernel = kernel_gradient(images(x, kernel), images(d_z, kernel), kernel_size)
        return tf.reshape(d_kernel, kernel.shape)

    def to_matrix(kernel):
        return tf.transpose(tf.reshape(kernel, kernel.shape[-2:]))

    def on_kernel(function, *arguments):
        return lambda kernel: tf.reshape(function(planar(kernel), shape, *arguments), kernel.shape)

    return Operations(
        event_ndims=ndims + 1,
        kernel_ndims=ndims + 2,
        apply=on_images(lambda kernel, x: convolve(x, kernel)),
        adjoint=on_images(lambda kernel, z: convolve(z, flip(kernel))),
        kernel_gradient=gradient_of_kernel,
        inverse_to_gradient=on_kernel(inverse_to_gradient),
        log_det=lambda kernel: exact_conv.log_det(planar(kernel), shape, name),
        log_det_gradient=on_kernel(exact_conv.log_det_gradient, name),
        solve=on_images(lambda kernel, z: solve(kernel, z, name)),
        to_matrix=to_matrix if kernel_size == (1, 1) else None,
        from_matrix=lambda matrix: tf.reshape(tf.transpose(matrix), [*[1] * ndims, *matrix.shape]),
    )


def _planar(sizes):
    """Sizes of a sequence are those of an image of width 1."""
    return (*sizes, 1)[:2]
