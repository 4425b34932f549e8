"""Exact log-determinant and solve of a zero-padded convolution, without its dense matrix.

The convolution has stride 1, an odd kernel `[..., kh, kw, C, C]` (height, width, input and output channels),
and images `[H, W, C]` that zeros around keep in size. With lines grouped by (kh - 1) / 2 its matrix is
block-tridiagonal: H / p blocks of order p W C. All is computed in float64.
"""

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfp_selfnorm.math import block_tridiagonal

# The relative error of recovered probes from which a result would be noise.
_SINGULAR = 1e-5


def log_det(kernel, spatial_shape, name="kernel"):
    """`log |det|` in nats, `[...]`, of the convolution of images of `spatial_shape`, `(H, W)`.

    Differentiable once. Cost: O(n^3 log H) with `n = (kh - 1) / 2 W C`, or with height and width exchanged
    where that is less; O(C^3) for a 1x1 kernel.

    Raises:
      ValueError: in eager mode, if the convolution is singular to working precision; in a graph that is a
        `tf.errors.InvalidArgumentError`, and NaN where XLA drops it.
    """

    @tf.custom_gradient
    def apply(kernel):
        compiled = _compiled(_log_det_and_error, tuple(spatial_shape), tuple(kernel.shape))
        value, error = compiled(detached_double(kernel))

        def gradient(upstream):
            scale = upstream[..., tf.newaxis, tf.newaxis, tf.newaxis, tf.newaxis]
            return scale * differentiated_once(log_det_gradient(kernel, spatial_shape, name), kernel)

        return tf.cast(checked(value, error, name), kernel.dtype), gradient

    return apply(kernel)


def log_det_gradient(kernel, spatial_shape, name="kernel"):
    """The exact gradient of `log |det|`, at thrice its cost; raises as `log_det` does."""
    compiled = _compiled(_log_det_gradient_and_error, tuple(spatial_shape), tuple(kernel.shape))
    gradient, error = compiled(detached_double(kernel))
    return tf.cast(checked(gradient, error, name), kernel.dtype)


def solve(kernel, z, name="kernel"):
    """The images `[B, H, W, C]` whose convolution with the kernel `[kh, kw, C, C]` is `z`.

    Not differentiable; `conv.solve` is. Cost: a factorization as for `log_det`, and O(n^2 H / p) an image.
    Raises as `log_det` does.
    """
    shapes = tuple(kernel.shape), (None, *z.shape[1:])
    x, error = _compiled(_solution_and_error, tuple(z.shape[1:3]), *shapes)(
        detached_double(kernel), detached_double(z)
    )
    return tf.cast(checked(x, error, name), z.dtype)


def differentiated_once(gradient, *arguments):
    """`gradient`, which depends on the arguments in ways that are not recorded: the next one is refused.

    Raises:
      NotImplementedError: when it is differentiated.
    """

    @tf.custom_gradient
    def apply(gradient, *arguments):
        def refuse(*_):
            raise NotImplementedError("Exact log-dets and solves of convolutions are differentiable once.")

        return tf.identity(gradient), refuse

    return apply(gradient, *arguments)


def detached_double(x):
    """`x` in float64, without its history."""
    # An eager tape would look into the compiled function for a gradient.
    return tf.cast(tf.stop_gradient(x), tf.float64)


class _Layout(NamedTuple):
    """How images fall into blocks: `count` blocks of `lines` x `columns` pixels, and `copies` of all that.

    `swap` exchanges height and width first; `rows` is the height then. Columns (and for a 1x1 kernel rows)
    that the kernel does not couple are copies of one system.
    """

    swap: bool
    rows: int
    count: int
    lines: int
    columns: int
    copies: int


def _layout(kernel_size, spatial_shape):
    (height, width), sizes = kernel_size, tuple(spatial_shape)
    if height == width == 1:
        return _Layout(swap=False, rows=1, count=1, lines=1, columns=1, copies=sizes[0] * sizes[1])
    # The order of a block is radius x the other side: the better one of the two directions.
    swap = height == 1 or (width > 1 and (width // 2) * sizes[0] < (height // 2) * sizes[1])
    if swap:
        height, width, sizes = width, height, sizes[::-1]
    rows, columns = sizes
    lines = min(height // 2, rows)
    copies = columns if width == 1 else 1
    return _Layout(swap, rows, -(-rows // lines), lines, columns // copies, copies)


# Dozens of small operations: compiled they take a twentieth of the time that they take eagerly. Inlined, all
# of it would be optimised again for each layer of a flow: seconds before the first step.
@functools.cache
def _compiled(function, spatial_shape, *shapes):
    layout = _layout(shapes[0][-4:-2], spatial_shape)
    # TensorFlow takes partial functions for as many, and not for one that is traced again and again.
    return tf.function(
        functools.partial(function, layout),
        input_signature=[tf.TensorSpec(shape, tf.float64) for shape in shapes],
        autograph=False,
        experimental_attributes={"_noinline": True},
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
    # Entries of the blocks that no element of the kernel reaches take the zero appended here.
    elements = tf.concat([elements, tf.zeros_like(elements[..., :1, :, :])], axis=-3)
    order = layout.lines * layout.columns * channels
    index = np.stack([_element_index(height, width, layout, offset) for offset in (-1, 0, 1)])
    gathered = tf.einsum("...pqio->...poqi", tf.gather(elements, index, axis=-3))
    lower, diagonal, upper = tf.unstack(tf.reshape(gathered, [*batch, 3, order, order]), axis=-3)
    return _cut_last_row(lower, diagonal, upper, layout, channels)


def _element_index(height, width, layout, offset):
    """For a block and its neighbour `offset` below: which kernel element couples output and input pixel."""
    line, column = np.divmod(np.arange(layout.lines * layout.columns), layout.columns)
    i = line[np.newaxis] + offset * layout.lines - line[:, np.newaxis] + height // 2
    j = column[np.newaxis] - column[:, np.newaxis] + width // 2
    inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
    return np.where(inside, i * width + j, height * width)


def _cut_last_row(lower, diagonal, upper, layout, channels):
    """Lines of the last block beyond the image become rows of the identity."""
    order = diagonal.shape[-1]
    beyond = layout.count * layout.lines - layout.rows
    if not beyond:
        return block_tridiagonal.BlockTridiagonal(lower, diagonal, upper, lower, diagonal, layout.count)
    real = np.arange(order)[:, np.newaxis] < order - beyond * layout.columns * channels
    last_lower = tf.where(real, lower, tf.zeros_like(lower))
    last_diagonal = tf.where(real, diagonal, tf.eye(order, dtype=diagonal.dtype))
    return block_tridiagonal.BlockTridiagonal(lower, diagonal, upper, last_lower, last_diagonal, layout.count)


def _to_blocks(images, layout):
    """Images `[B, H, W, C]` as columns `[n, N, m]`."""
    if layout.swap:
        images = tf.einsum("bhwc->bwhc", images)
    batch, channels = tf.shape(images)[0], images.shape[-1]
    images = tf.reshape(images, [batch, layout.rows, layout.columns, layout.copies, channels])
    beyond = layout.count * layout.lines - layout.rows
    images = tf.pad(images, [[0, 0], [0, beyond], [0, 0], [0, 0], [0, 0]])
    shape = [batch, layout.count, layout.lines, layout.columns, layout.copies, channels]
    blocks = tf.einsum("bnlwkc->lwcnbk", tf.reshape(images, shape))
    order = layout.lines * layout.columns * channels
    return tf.reshape(blocks, [order, layout.count, batch * layout.copies])


def _from_blocks(blocks, shape, layout):
    """The reverse of `_to_blocks`, for images of the given shape."""
    lines, columns = layout.count * layout.lines, layout.columns * layout.copies
    channels = blocks.shape[0] // (layout.lines * layout.columns)
    parts = [layout.lines, layout.columns, channels, layout.count, shape[0], layout.copies]
    images = tf.einsum("lwcnbk->bnlwkc", tf.reshape(blocks, parts))
    images = tf.reshape(images, [shape[0], lines, columns, channels])[:, : layout.rows]
    return tf.reshape(tf.einsum("bhwc->bwhc", images) if layout.swap else images, shape)


def checked(value, error, name):
    """`value`, unless the recovery error says that it is noise; raises as `log_det` does."""
    if tf.executing_eagerly():
        if not error.numpy() < _SINGULAR:
            raise ValueError(
                f"The convolution with `{name}` is singular to working precision: of random images its exact "
                f"inverse recovers all but a relative error of {float(error):.2g}."
            )
        return value
    regular = error < _SINGULAR
    message = f"tfp_selfnorm: the convolution with `{name}` is singular to working precision"
    with tf.control_dependencies([tf.debugging.Assert(regular, [message, error])]):
        return tf.where(regular, value, tf.constant(np.nan, value.dtype))
