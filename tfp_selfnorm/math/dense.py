"""The linear map of a self-normalizing layer and its log-determinant, as pure functions.

Both take the kernel of the map, `[..., D, D]`, and the other kernel, which approximates its inverse.
Vectors are `[..., D]`; the two kernels have one shape, whose batch broadcasts with that of the vectors.
"""

import numpy as np
import tensorflow as tf

GRADIENTS = ("self_norm", "exact", "relative")
# From this size on, transposing the rows beats a product with the transposed kernel: 3 times at 2048.
_LARGE = 512


def matvec(kernel, x, adjoint=False):
    """Returns `kernel @ x`, as one product for a whole batch when the kernel has no batch."""
    if kernel.shape.rank != 2:
        return tf.linalg.matvec(kernel, x, adjoint_a=adjoint)
    if x.shape.rank == 2:
        return _rows_product(kernel, x, adjoint)
    return tf.reshape(_rows_product(kernel, _as_rows(x), adjoint), tf.shape(x))


def map_rows(kernel, rows):
    """Returns `kernel @ row` for rows `[..., n, D]`, the same for each kernel `[..., D, D]` of a batch."""
    if kernel.shape.rank == 2:
        return _rows_product(kernel, rows, adjoint=False)
    return tf.matmul(rows, kernel, transpose_b=True)


def _rows_product(kernel, rows, adjoint):
    if adjoint:
        return tf.matmul(rows, kernel)
    size, count = kernel.shape[-1], rows.shape[0]
    if size >= _LARGE and (count is None or count <= size):
        return tf.transpose(tf.matmul(kernel, rows, transpose_b=True))
    return tf.matmul(rows, kernel, transpose_b=True)


def linear_map(x, kernel, other_kernel, gradient="self_norm", mixture=0.5):
    """The map `z = kernel @ x` with the gradient that `gradient` names.

    With `d` the gradient that arrives at `z`, summed over the batch:

    - "self_norm": `mixture d x^T` for the kernel and `-(1 - mixture) (kernel^T d) z^T` for the other
      kernel, the likelihood terms of Keller et al. (2021), section 3, for `mixture = 1/2`;
    - "exact": `d x^T` for the kernel and nothing for the other;
    - "relative": `d z^T kernel`, which is the exact one times `kernel^T kernel` (Gresele et al., 2020).

    The gradient of `x` is `kernel^T d` in all three. Cost: O(D^2) a vector.
    """
    if gradient == "exact":
        return matvec(kernel, x)
    return _linear_map(x, kernel, other_kernel, gradient, mixture, error=None)


def linear_map_with_error(x, kernel, other_kernel, gradient="self_norm", mixture=0.5, train_kernel=True):
    """`linear_map` and the reconstruction error `||x - other_kernel kernel x||^2` of each vector.

    The error trains the two kernels (with `train_kernel=False` the other kernel alone) and never `x`.
    Computed together, the two share their weight gradients: six products of a batch with a kernel for
    a training step, where two separate terms would take eight.
    """
    error = "both" if train_kernel else "other"
    return _linear_map(x, kernel, other_kernel, gradient, mixture, error)


def _linear_map(x, kernel, other_kernel, gradient, mixture, error):
    likelihood_weight = mixture if gradient == "self_norm" else 1.0

    @tf.custom_gradient
    def apply(x, kernel, other_kernel):
        z = matvec(kernel, x)
        residual = None if error is None else x - matvec(other_kernel, z)

        def gradients(d_z, d_error=None):
            d_x = matvec(kernel, d_z, adjoint=True)
            at_z = _scaled(d_z, likelihood_weight)
            at_x = _scaled(d_x, likelihood_weight - 1.0) if likelihood_weight < 1.0 else None
            d_kernel = 0.0
            if gradient == "relative":
                d_kernel = _outer_sum(d_z, matvec(kernel, z, adjoint=True), tf.shape(kernel))
                at_z = None
            if error is not None:
                pull = -2.0 * d_error[..., tf.newaxis] * residual
                at_x = pull if at_x is None else at_x + pull
                if error == "both":
                    back = matvec(other_kernel, pull, adjoint=True)
                    at_z = back if at_z is None else at_z + back
            if at_z is not None:
                d_kernel += _outer_sum(at_z, x, tf.shape(kernel))
            d_other = None if at_x is None else _outer_sum(at_x, z, tf.shape(other_kernel))
            return sum_to_shape(d_x, x), d_kernel, d_other

        if error is None:
            return z, gradients
        return (z, tf.reduce_sum(tf.square(residual), axis=-1)), gradients

    return apply(x, kernel, other_kernel)


def log_det(kernel, other_kernel, gradient="self_norm", mixture=0.5, value=None):
    """`log |det kernel|` in nats, shape `[...]`, with the gradient that `gradient` names.

    The term is multiplied by the gradient that arrives, so scaled losses, sums and micro-batches are
    right. For an arriving gradient of one:

    - "self_norm": `mixture other_kernel^T` for the kernel, `-(1 - mixture) kernel^T` for the other;
    - "exact": `kernel^-T`, by one inverse in the backward pass;
    - "relative": `kernel`.

    Args:
      kernel: float tensor `[..., D, D]`.
      other_kernel: float tensor `[..., D, D]`, close to the inverse of `kernel`.
      gradient: one of "self_norm", "exact", "relative".
      mixture: Python float in [0, 1], used by "self_norm" alone.
      value: what to return for the value, at no cost; `None` computes it, in O(D^3).
    """
    if value is None:
        value = tf.linalg.slogdet(kernel).log_abs_determinant
    value = tf.broadcast_to(tf.cast(value, kernel.dtype), tf.shape(kernel)[:-2])

    @tf.custom_gradient
    def apply(value, kernel, other_kernel):
        def gradients(upstream):
            scale = upstream[..., tf.newaxis, tf.newaxis]
            if gradient == "exact":
                return None, scale * tf.linalg.inv(kernel, adjoint=True), None
            if gradient == "relative":
                return None, scale * kernel, None
            d_kernel = (mixture * scale) * tf.linalg.matrix_transpose(other_kernel)
            d_other = None
            if mixture < 1.0:
                d_other = ((mixture - 1.0) * scale) * tf.linalg.matrix_transpose(kernel)
            return None, d_kernel, d_other

        return tf.identity(value), gradients

    return apply(tf.stop_gradient(value), kernel, other_kernel)


def sketch_and_project(forward_kernel, inverse_kernel, probes):
    """Moves `forward_kernel` towards the inverse of `inverse_kernel` along a few directions.

    For probes `e` (the rows of `probes`), `r = forward_kernel e` and `u = inverse_kernel r`, returns
    the matrix nearest to `forward_kernel` in the Frobenius norm that maps every `u` to its `r`, as the
    inverse does (Gower & Richtarik, 2017, the multi-secant update). The distance to the inverse never
    grows. Cost: 4 n D^2 for n probes.

    Args:
      forward_kernel: float tensor `[..., D, D]`.
      inverse_kernel: float tensor `[..., D, D]`.
      probes: float tensor `[..., n, D]`, n at most D.

    Returns:
      The new forward kernel, and the error before the step, `||r - forward_kernel u|| / ||r||`.
    """
    r = map_rows(forward_kernel, probes)
    u = map_rows(inverse_kernel, r)
    residual = r - map_rows(forward_kernel, u)
    gram = tf.matmul(u, u, transpose_b=True)
    # A ridge of rounding size keeps Cholesky safe, and the step a contraction.
    epsilon = 10.0 * np.finfo(gram.dtype.as_numpy_dtype).eps
    ridge = epsilon * tf.linalg.trace(gram)[..., tf.newaxis]
    gram = tf.linalg.set_diag(gram, tf.linalg.diag_part(gram) + ridge)
    weights = tf.linalg.cholesky_solve(tf.linalg.cholesky(gram), u)
    error = tf.norm(residual, axis=[-2, -1]) / tf.norm(r, axis=[-2, -1])
    return forward_kernel + tf.matmul(residual, weights, transpose_a=True), error


def _scaled(x, weight):
    return x if weight == 1.0 else weight * x


def _as_rows(x):
    return tf.reshape(x, [-1, x.shape[-1] or tf.shape(x)[-1]])


def _outer_sum(left, right, kernel_shape):
    """Sums `left right^T` over the batch, down to the shape of the kernel."""
    if kernel_shape.shape[0] == 2:
        return tf.matmul(_as_rows(left), _as_rows(right), transpose_a=True)
    batch = tf.broadcast_dynamic_shape(tf.shape(left)[:-1], tf.shape(right)[:-1])
    size = kernel_shape[-1:]
    kernel_batch_rank = kernel_shape.shape[0] - 2
    # [N, kernel batch, D] to [kernel batch, N, D]: one product an entry of the kernel's batch.
    shape = tf.concat([[-1], batch[-kernel_batch_rank:], size], axis=0)
    order = [*range(1, kernel_batch_rank + 1), 0, kernel_batch_rank + 1]

    def grouped(x):
        full = tf.broadcast_to(x, tf.concat([batch, size], axis=0))
        return tf.transpose(tf.reshape(full, shape), order)

    product = tf.matmul(grouped(left), grouped(right), transpose_a=True)
    return sum_to_shape(product, shape=kernel_shape)


def sum_to_shape(x, like=None, shape=None):
    """Undoes broadcasting: sums `x` over the dimensions in which the target shape is smaller."""
    if like is not None and x.shape.is_fully_defined() and x.shape == like.shape:
        return x
    shape = tf.shape(like) if shape is None else shape
    _, axes = tf.raw_ops.BroadcastGradientArgs(s0=tf.shape(x), s1=shape)
    return tf.reshape(tf.reduce_sum(x, axes), shape)
