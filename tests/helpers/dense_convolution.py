"""The dense matrix of a zero-padded convolution in plain numpy, pixel by pixel: what tests compare with."""

import numpy as np


def couplings(sizes, spatial_shape):
    """The places of each kernel element: the output pixel, the element and the input pixel."""
    for output in np.ndindex(*spatial_shape):
        for element in np.ndindex(*sizes):
            pixel = tuple(o + e - s // 2 for o, e, s in zip(output, element, sizes, strict=True))
            if all(0 <= p < size for p, size in zip(pixel, spatial_shape, strict=True)):
                yield output, element, pixel


def matrix(kernel, spatial_shape):
    """The matrix that takes a flattened image `[*spatial_shape, C]` to the flattened output."""
    kernel = np.asarray(kernel)
    *sizes, channels_in, channels_out = kernel.shape
    blocks = np.zeros([*spatial_shape, channels_out, *spatial_shape, channels_in])
    for output, element, pixel in couplings(sizes, spatial_shape):
        blocks[(*output, slice(None), *pixel, slice(None))] += kernel[element].T
    size = int(np.prod(spatial_shape)) * channels_in
    return blocks.reshape(size, size)


def kernel_gradient(d_matrix, kernel_shape, spatial_shape):
    """The gradient of the kernel from that of its matrix: summed over the places of each element."""
    *sizes, channels_in, channels_out = kernel_shape
    blocks = np.reshape(d_matrix, [*spatial_shape, channels_out, *spatial_shape, channels_in])
    gradient = np.zeros(kernel_shape)
    for output, element, pixel in couplings(sizes, spatial_shape):
        gradient[element] += blocks[(*output, slice(None), *pixel, slice(None))].T
    return gradient


def random_kernel(rng, sizes, channels, noise=0.4):
    """Identity plus noise, well conditioned for a `noise` below 1/2."""
    kernel = noise * rng.normal(size=[*sizes, channels, channels]) / np.sqrt(np.prod(sizes) * channels)
    kernel[tuple(size // 2 for size in sizes)] += np.eye(channels)
    return kernel


def invertible_pair(rng, sizes, channels):
    """A kernel and the kernel of its exact inverse, which has the same size: `A + B S` with a nilpotent B.

    S shifts to a corner of the kernel. With `N^2 = 0`, `(1 + N S)^-1 = 1 - N S` however S pads.
    """
    mixing = np.eye(channels) + 0.3 * rng.normal(size=[channels, channels])
    nilpotent = np.zeros([channels, channels])
    nilpotent[: channels // 2, channels // 2 :] = rng.normal(size=[channels // 2, channels - channels // 2])
    kernel, inverse = np.zeros([2, *sizes, channels, channels])
    centre, corner = tuple(size // 2 for size in sizes), tuple(size - 1 for size in sizes)
    # W x = A (1 + N S) x; HWIO kernels hold transposed matrices.
    for target, matrices in (
        (kernel, (mixing, mixing @ nilpotent)),
        (inverse, (np.linalg.inv(mixing), -nilpotent @ np.linalg.inv(mixing))),
    ):
        target[centre] += matrices[0].T
        if corner != centre:
            target[corner] += matrices[1].T
    return kernel, inverse


def torus_gradient(kernel, spatial_shape):
    """The gradient of the log-det on a torus, divided by its pixels, from the inverse of the dense matrix.

    In each dimension the torus is longer than the image by twice the radius of the kernel; at most as
    long as two kernels, or 16.
    It has length 1 where the kernel or the image has. Elements outside of an image are no part of it.
    """
    *sizes, channels, _ = kernel.shape
    torus = [
        1 if size == 1 or length == 1 else min(length + size - 1, max(16, 2 * size))
        for size, length in zip(sizes, spatial_shape, strict=True)
    ]
    matrix, places = np.zeros([*torus, channels, *torus, channels]), []
    for pixel in np.ndindex(*torus):
        for element in np.ndindex(*sizes):
            offsets = [e - size // 2 for e, size in zip(element, sizes, strict=True)]
            if any(abs(o) >= length for o, length in zip(offsets, spatial_shape, strict=True)):
                continue
            other = [(p + o) % length for p, o, length in zip(pixel, offsets, torus, strict=True)]
            place = (*pixel, slice(None), *other, slice(None))
            matrix[place] += kernel[element].T
            places.append((element, place))
    size = int(np.prod(torus)) * channels
    adjoint = np.linalg.inv(matrix.reshape(size, size)).T.reshape(matrix.shape)
    gradient = np.zeros(kernel.shape)
    for element, place in places:
        gradient[element] += adjoint[place].T
    return gradient / np.prod(torus)
