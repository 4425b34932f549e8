"""Exact log-determinant and solve of a zero-padded convolution, without its dense matrix.

The convolution has stride 1 and an odd kernel `[..., kh, kw, C, C]` (height, width, input and output
channels). Zeros around the images `[H, W, C]` keep their size. In groups of p = (kh - 1) / 2 lines its matrix
is block-tridiagonal: H / p blocks of order p W C. All computations are in float64.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfp_selfnorm.math import block_tridiagonal, linear
from tfp_selfnorm.utils import graphs
from tfp_selfnorm.utils.compat import NOT_INLINED

# If the relative error of recovered probes is not below it, a result is noise.
_SINGULAR = 1e-5


def log_det(kernel: tf.Tensor, spatial_shape: Sequence[int], name: str = "kernel") -> tf.Tensor:
    """`log |det|` in nats, `[...]`, of the convolution of images of `spatial_shape`, `(H, W)`.

    Differentiable once. Cost: O(n^3 log H) with `n = (kh - 1) / 2 W C`, or with height and width exchanged
    if that is less; O(C^3) for a 1x1 kernel.

    Raises:
      ValueError: in eager mode, if the convolution is singular to working precision. A graph raises a
        `tf.errors.InvalidArgumentError` instead. XLA drops that, and the value is NaN.
    """

    layout = _layout(kernel.shape[-4:-2], spatial_shape)

    @tf.custom_gradient
    def apply(kernel):
        def gradient(upstream):
            scale = upstream[..., tf.newaxis, tf.newaxis, tf.newaxis, tf.newaxis]
            return scale * linear.differentiated_once(log_det_gradient(kernel, spatial_shape, name), kernel)

        return in_double(_log_det_and_error, layout, name, kernel), gradient

    return apply(kernel)


def log_det_gradient(kernel: tf.Tensor, spatial_shape: Sequence[int], name: str = "kernel") -> tf.Tensor:
    """The exact gradient of `log |det|`, at three times its cost; raises the errors of `log_det`."""
    layout = _layout(kernel.shape[-4:-2], spatial_shape)
    return in_double(_log_det_gradient_and_error, layout, name, kernel)


def solve(kernel: tf.Tensor, z: tf.Tensor, name: str = "kernel") -> tf.Tensor:
    """The images `[B, H, W, C]` whose convolution with the kernel `[kh, kw, C, C]` is `z`.

    Not differentiable; `conv.solve` is. Cost: a factorization as in `log_det`, and O(n^2 H / p) for each
    image. Raises the errors of `log_det`.
    """
    layout = _layout(kernel.shape[-4:-2], z.shape[1:3])
    return in_double(_solution_and_error, layout, name, kernel, z)


def in_double(
    function: Callable, setting: Hashable, name: str, kernel: tf.Tensor, *images: tf.Tensor
) -> tf.Tensor:
    """The result of a compiled function in float64, cast to the dtype of the kernel.

    Args:
      function: function of the setting, the kernel and the images: a result and its recovery error.
      setting: the first argument of the function.
      name: name of the kernel in errors.
      kernel: float tensor, whose shape is known.
      *images: float tensors `[B, ...]`, whose shapes are known except for the batch.

    Raises:
      ValueError: as `log_det`, if the recovery error is not small enough.
    """
    shapes = tuple(kernel.shape), *((None, *x.shape[1:]) for x in images)
    # With their history, an eager tape would differentiate the compiled function.
    detached = [tf.cast(tf.stop_gradient(x), tf.float64) for x in (kernel, *images)]
    value, error = _compiled(function, setting, *shapes)(*detached)
    return tf.cast(checked(value, error, name), kernel.dtype)


class _Layout(NamedTuple):
    """The division of images into `num_blocks` blocks of `lines` x `columns` pixels, in `copies` systems.

    `swap` exchanges height and width first; `rows` is the height after that. Columns (and for a 1x1 kernel
    rows) that the kernel does not couple are copies of one system.
    """

    swap: bool
    rows: int
    num_blocks: int
    lines: int
    columns: int
    copies: int


def _layout(kernel_size, spatial_shape):
    (height, width), sizes = kernel_size, tuple(spatial_shape)
    if height == width == 1:
        return _Layout(swap=False, rows=1, num_blocks=1, lines=1, columns=1, copies=sizes[0] * sizes[1])
    # The order of a block is the radius times the other side. The direction with the smaller order is better.
    swap = height == 1 or (width > 1 and (width // 2) * sizes[0] < (height // 2) * sizes[1])
    if swap:
        height, width, sizes = width, height, sizes[::-1]
    rows, columns = sizes
    lines = min(height // 2, rows)
    copies = columns if width == 1 else 1
    return _Layout(swap, rows, -(-rows // lines), lines, columns // copies, copies)


# These are dozens of small operations. In a compiled function they take a twentieth of their eager time. If
# the function were inlined, TensorFlow would optimise it for each layer of a flow: seconds before the first
# step.
@functools.cache
def _compiled(function, setting, *shapes):
    # With a partial function for each setting, TensorFlow does not warn that one function is retraced often.
    return tf.function(
        functools.partial(function, setting),
        input_signature=[tf.TensorSpec(shape, tf.float64) for shape in shapes],
        autograph=False,
        experimental_attributes=NOT_INLINED,
    )


def _log_det_and_error(layout, kernel):
    value, error = block_tridiagonal.log_det(_blocks(kernel, layout))
    return layout.copies * value, error


def _log_det_gradient_and_error(layout, kernel):
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        system = _blocks(kernel, layout)
    gradients, error = block_tridiagonal.log_det_gradient(system)
    return layout.copies * tape.gradient(system[:-1], kernel, output_gradients=gradients), error


def _solution_and_error(layout, kernel, z):
    x, error = block_tridiagonal.solve(_blocks(kernel, layout), _to_blocks(z, layout))
    return _from_blocks(x, tf.shape(z), layout), error


def _blocks(kernel, layout):
    if layout.swap:
        kernel = tf.einsum("...hwio->...whio", kernel)
    *batch, height, width, channels, _ = kernel.shape
    elements = tf.reshape(kernel, [*batch, height * width, channels, channels])
    # The zero appended here is for entries of the blocks without an element of the kernel.
    elements = tf.concat([elements, tf.zeros_like(elements[..., :1, :, :])], axis=-3)
    order = layout.lines * layout.columns * channels
    index = np.stack([_element_index(height, width, layout, offset) for offset in (-1, 0, 1)])
    gathered = tf.einsum("...pqio->...poqi", tf.gather(elements, index, axis=-3))
    lower, diagonal, upper = tf.unstack(tf.reshape(gathered, [*batch, 3, order, order]), axis=-3)
    return _cut_last_row(lower, diagonal, upper, layout, channels)


def _element_index(height, width, layout, offset):
    """The kernel element that couples each output pixel with each input pixel `offset` blocks below."""
    line, column = np.divmod(np.arange(layout.lines * layout.columns), layout.columns)
    i = line[np.newaxis] + offset * layout.lines - line[:, np.newaxis] + height // 2
    j = column[np.newaxis] - column[:, np.newaxis] + width // 2
    inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
    return np.where(inside, i * width + j, height * width)


def _cut_last_row(lower, diagonal, upper, layout, channels):
    """In the last block, lines beyond the image become rows of the identity."""
    order = diagonal.shape[-1]
    num_blocks = layout.num_blocks
    beyond = num_blocks * layout.lines - layout.rows
    real = np.arange(order)[:, np.newaxis] < order - beyond * layout.columns * channels
    last_lower = tf.where(real, lower, tf.zeros_like(lower))
    last_diagonal = tf.where(real, diagonal, tf.eye(order, dtype=diagonal.dtype))
    return block_tridiagonal.BlockTridiagonal(lower, diagonal, upper, last_lower, last_diagonal, num_blocks)


def _to_blocks(images, layout):
    """Images `[B, H, W, C]` as columns `[n, N, m]`."""
    if layout.swap:
        images = tf.einsum("bhwc->bwhc", images)
    batch, channels = tf.shape(images)[0], images.shape[-1]
    images = tf.reshape(images, [batch, layout.rows, layout.columns, layout.copies, channels])
    beyond = layout.num_blocks * layout.lines - layout.rows
    images = tf.pad(images, [[0, 0], [0, beyond], [0, 0], [0, 0], [0, 0]])
    shape = [batch, layout.num_blocks, layout.lines, layout.columns, layout.copies, channels]
    blocks = tf.einsum("bnlwkc->lwcnbk", tf.reshape(images, shape))
    order = layout.lines * layout.columns * channels
    return tf.reshape(blocks, [order, layout.num_blocks, batch * layout.copies])


def _from_blocks(blocks, shape, layout):
    """The reverse of `_to_blocks`, for images of the given shape."""
    lines, columns = layout.num_blocks * layout.lines, layout.columns * layout.copies
    channels = blocks.shape[0] // (layout.lines * layout.columns)
    parts = [layout.lines, layout.columns, channels, layout.num_blocks, shape[0], layout.copies]
    images = tf.einsum("lwcnbk->bnlwkc", tf.reshape(blocks, parts))
    images = tf.reshape(images, [shape[0], lines, columns, channels])[:, : layout.rows]
    return tf.reshape(tf.einsum("bhwc->bwhc", images) if layout.swap else images, shape)


def checked(value: tf.Tensor, error: tf.Tensor, name: str) -> tf.Tensor:
    """Returns `value` if the recovery error is small enough; raises the errors of `log_det` otherwise."""
    message = (
        f"The convolution with `{name}` is singular to working precision: its exact inverse recovers "
        "random images with a relative error of"
    )
    return graphs.checked(value, error < _SINGULAR, message, error)
