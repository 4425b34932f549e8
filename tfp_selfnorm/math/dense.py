"""The dense map of vectors `[..., D]` by kernels `[..., D, D]`. Their batches broadcast."""

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from tfp_selfnorm.math.linear import Operations, log_abs_det, sum_to_shape

# From this size on, a transposition of the rows is faster than a product with the transposed kernel: by half
# at 2048, and seven times for a few rows at 12,288 without oneDNN.
_LARGE = 1024


def matvec(kernel: tf.Tensor, x: tf.Tensor, adjoint: bool = False) -> tf.Tensor:
    """Returns `kernel @ x`, as one product for the whole batch of `x` if the kernel has no batch."""
    if kernel.shape.rank != 2:
        return tf.linalg.matvec(kernel, x, adjoint_a=adjoint)
    if x.shape.rank == 2:
        return _rows_product(kernel, x, adjoint)
    return tf.reshape(_rows_product(kernel, _as_rows(x), adjoint), tf.shape(x))


def _rows_product(kernel, rows, adjoint):
    if adjoint:
        return tf.matmul(rows, kernel)
    size, count = kernel.shape[-1], rows.shape[-2]
    if size >= _LARGE and (count is None or count <= size):
        return tf.linalg.matrix_transpose(tf.matmul(kernel, rows, transpose_b=True))
    return tf.matmul(rows, kernel, transpose_b=True)


def sketch_and_project(
    forward_kernel: tf.Tensor, inverse_kernel: tf.Tensor, probes: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Moves `forward_kernel` towards the inverse of `inverse_kernel` along a few directions.

    With `E = I - forward_kernel inverse_kernel`, the directions are `r = E^T e` for the probes `e`, the
    columns of `probes`. After a step of training E has low rank, and the `r` lie where the error is largest
    (as in the randomized range finder of Halko et al., 2011). Let `u = inverse_kernel r`. Of all matrices
    that map every `u` to its `r`, as the inverse does, the result is the nearest to `forward_kernel` in the
    Frobenius norm (Gower & Richtarik, 2017, the multi-secant update). Except for rounding, the distance
    to the inverse never grows. Cost: 5 n D^2 for n probes.

    Args:
      forward_kernel: float tensor `[..., D, D]`.
      inverse_kernel: float tensor `[..., D, D]`.
      probes: float tensor `[..., D, n]`, standard normal, n at most D.

    Returns:
      The new forward kernel, and an estimate of the error before the step, `||E|| / ||I||`.
    """
    # A product of few rows with a kernel takes two thirds of the time of a kernel with few columns.
    probes = tf.linalg.matrix_transpose(probes)
    r = probes - tf.matmul(tf.matmul(probes, forward_kernel), inverse_kernel)
    error = tf.norm(r, axis=[-2, -1]) / tf.norm(probes, axis=[-2, -1])
    r = tf.math.divide_no_nan(r, tf.norm(r, axis=-1, keepdims=True))
    u = _rows_product(inverse_kernel, r, adjoint=False)
    residual = r - _rows_product(forward_kernel, u, adjoint=False)
    gram = tf.matmul(u, u, transpose_b=True)
    # A ridge of rounding size keeps Cholesky safe and the step a contraction. Without an error all is 0.
    limits = np.finfo(gram.dtype.as_numpy_dtype)
    ridge = 10.0 * limits.eps * tf.linalg.trace(gram)[..., tf.newaxis] + limits.tiny
    gram = tf.linalg.set_diag(gram, tf.linalg.diag_part(gram) + ridge)
    weights = tf.linalg.cholesky_solve(tf.linalg.cholesky(gram), u)
    return forward_kernel + tf.matmul(residual, weights, transpose_a=True), error


def _as_rows(x):
    return tf.reshape(x, [-1, x.shape[-1] or tf.shape(x)[-1]])


class DenseMap(Operations):
    """The map `kernel @ x`."""

    event_ndims = 1
    kernel_ndims = 2
    has_matrix_kernels = True

    def apply(self, kernel: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        return matvec(kernel, x)

    def adjoint(self, kernel: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        return matvec(kernel, z, adjoint=True)

    def kernel_gradient(self, x: tf.Tensor, d_z: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        if kernel.shape.rank == 2:
            return tf.matmul(_as_rows(d_z), _as_rows(x), transpose_a=True)
        batch = tf.broadcast_dynamic_shape(tf.shape(d_z)[:-1], tf.shape(x)[:-1])
        size = tf.shape(kernel)[-1:]
        kernel_batch_rank = kernel.shape.rank - 2
        # As [N, kernel batch, D]: one product for each entry of the kernel's batch.
        shape = tf.concat([[-1], batch[-kernel_batch_rank:], size], axis=0)

        def grouped(events):
            return tf.reshape(tf.broadcast_to(events, tf.concat([batch, size], axis=0)), shape)

        product = tf.einsum("n...i,n...j->...ij", grouped(d_z), grouped(x))
        return sum_to_shape(product, shape=tf.shape(kernel))

    def inverse_to_gradient(self, kernel: tf.Tensor) -> tf.Tensor:
        return tf.linalg.matrix_transpose(kernel)

    def log_det(self, kernel: tf.Tensor) -> tf.Tensor:
        return log_abs_det(kernel)

    @property
    def log_det_gradients(self) -> Mapping[str, Callable[[tf.Tensor], tf.Tensor]]:
        return {"exact": lambda kernel: tf.linalg.inv(kernel, adjoint=True), "relative": tf.identity}

    def solve(self, kernel: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        # It broadcasts the batches, and solves for all events of a kernel at once.
        return tf.linalg.LinearOperatorFullMatrix(kernel).solvevec(z)

    def to_matrix(self, kernel: tf.Tensor) -> tf.Tensor:
        return tf.convert_to_tensor(kernel)

    def from_matrix(self, matrix: tf.Tensor) -> tf.Tensor:
        return tf.convert_to_tensor(matrix)
