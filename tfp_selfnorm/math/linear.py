"""A linear map with a learned inverse and its log-determinant, with the gradients of the paper.

Dense and convolutional layers share it. `linear_map` and `log_det` take the operations of the kind of map,
the kernel of the map, and the other kernel. The map of the other kernel approximates the inverse. Keller et
al. (2021), section 3.
"""

import abc
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfp_selfnorm.utils.compat import is_compiled_by_xla


class Maps(abc.ABC):
    """The maps of one kind of layer.

    Attributes:
      event_ndims: number of dimensions of an event.
      has_matrix_kernels: whether a map is the product with a matrix on the last dimension of an event. One
        kernel can then be the inverse of another one.
    """

    event_ndims: int
    has_matrix_kernels: bool

    @abc.abstractmethod
    def apply(self, kernel: Any, x: tf.Tensor) -> tf.Tensor:
        """The map of each event."""

    def squared_norm(self, x: tf.Tensor) -> tf.Tensor:
        """The squared norm of each event."""
        return tf.reduce_sum(tf.square(x), axis=list(range(-self.event_ndims, 0)))

    def inverse_error(self, kernel: Any, other_kernel: Any, probes: tf.Tensor) -> tf.Tensor:
        """An estimate of `||I - R W|| / ||I||` (Frobenius norm) from standard normal events, a scalar."""
        back = self.apply(other_kernel, self.apply(kernel, probes))
        return tf.norm(probes - back) / tf.norm(probes)


class Operations(Maps):
    """The products with the kernels of one kind of linear map.

    Attributes:
      kernel_ndims: number of dimensions of a kernel, apart from its batch.
    """

    kernel_ndims: int

    @abc.abstractmethod
    def adjoint(self, kernel: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        """The transposed map of each event."""

    @abc.abstractmethod
    def kernel_gradient(self, x: tf.Tensor, d_z: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """The gradient of the kernel, summed over the batch, for the gradient `d_z` of the output."""

    @abc.abstractmethod
    def inverse_to_gradient(self, kernel: tf.Tensor) -> tf.Tensor:
        """The approximation of the gradient of `log_det` by a kernel of the inverse map."""

    @abc.abstractmethod
    def log_det(self, kernel: tf.Tensor) -> tf.Tensor:
        """`log |det|` of the map in nats, exact."""

    @property
    @abc.abstractmethod
    def log_det_gradients(self) -> Mapping[str, Callable[[tf.Tensor], tf.Tensor]]:
        """Functions of the kernel alone for the gradient of `log_det`, by name: "exact", and others."""

    @abc.abstractmethod
    def solve(self, kernel: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        """The inverse map of each event, exact."""

    @abc.abstractmethod
    def to_matrix(self, kernel: tf.Tensor) -> tf.Tensor:
        """The kernel as a matrix, if `has_matrix_kernels`."""

    @abc.abstractmethod
    def from_matrix(self, matrix: tf.Tensor) -> tf.Tensor:
        """The kernel from a matrix."""


class HeldCorrection(NamedTuple):
    """The correction of an approximate gradient of a log-det, as it was measured some steps before.

    Attributes:
      error: the exact gradient minus the approximation, which is added to later approximations.
      approximation: the approximation.
      largest_change: if the approximation has changed by more than this part of the exact gradient, its error
        may have changed too. The exact gradient then takes its place, and always if this is negative.
    """

    error: tf.Tensor
    approximation: tf.Tensor
    largest_change: tf.Tensor


def linear_map(
    operations: Operations,
    x: tf.Tensor,
    kernel: tf.Tensor,
    other_kernel: tf.Tensor,
    gradient: str = "self_norm",
    mixture: float = 0.5,
    trains: str | None = None,
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """The map `z = kernel x` with the gradient that `gradient` names, and the reconstruction error.

    Let `d` be the gradient of `z`. The gradients of a dense map, summed over the batch, are:

    - "self_norm": `mixture d x^T` for the kernel and `-(1 - mixture) (kernel^T d) z^T` for the other
      kernel, the likelihood terms of the paper for `mixture = 1/2`;
    - "exact" and "circulant": `d x^T` for the kernel and none for the other kernel;
    - "relative": `d z^T kernel`, the exact gradient times `kernel^T kernel` (Gresele et al., 2020).

    The gradient of `x` is `kernel^T d` in all three.

    The error of an event is `||x - other_kernel kernel x||^2`. It trains both kernels (`trains="both"`), the
    other kernel alone ("other"), or is not computed (`None`). It never trains `x`. The map and the error
    share the gradients of the kernels. So a training step has six products of a batch with a kernel; two
    separate terms would have eight.

    Returns:
      `z`, and the error or `None`.
    """
    if gradient in ("exact", "circulant") and trains is None:
        return operations.apply(kernel, x), None
    likelihood_weight = mixture if gradient == "self_norm" else 1.0

    @tf.custom_gradient
    def apply(x, kernel, other_kernel):
        z = operations.apply(kernel, x)
        residual = None if trains is None else x - operations.apply(other_kernel, z)

        def gradients(d_z, d_error=None):
            d_x = operations.adjoint(kernel, d_z)
            at_z = None if gradient == "relative" else _scaled(d_z, likelihood_weight)
            at_x = _scaled(d_x, likelihood_weight - 1.0) if likelihood_weight < 1.0 else None
            d_kernel = 0.0
            if gradient == "relative":
                d_kernel = operations.kernel_gradient(operations.adjoint(kernel, z), d_z, kernel)
            if trains is not None:
                pull = -2.0 * _with_dimensions(d_error, operations.event_ndims) * residual
                at_x = _add(at_x, pull)
                at_z = _add(at_z, operations.adjoint(other_kernel, pull)) if trains == "both" else at_z
            if at_z is not None:
                d_kernel += operations.kernel_gradient(x, at_z, kernel)
            d_other = None if at_x is None else operations.kernel_gradient(z, at_x, other_kernel)
            return sum_to_shape(d_x, x), d_kernel, d_other

        if trains is None:
            return z, gradients
        return (z, operations.squared_norm(residual)), gradients

    result = apply(x, kernel, other_kernel)
    return (result, None) if trains is None else result


def log_det(
    operations: Operations,
    kernel: tf.Tensor,
    other_kernel: tf.Tensor,
    gradient: str = "self_norm",
    mixture: float = 0.5,
    value: Any = None,
    correction: Any = None,
) -> tf.Tensor:
    """`log |det|` of the map in nats for each kernel of a batch, with the gradient that `gradient` names.

    The gradients are multiplied by the gradient of the result, so they are right in scaled losses, sums and
    micro-batches. T is `inverse_to_gradient`: the transpose of a dense kernel, the flipped kernel of a
    convolution times its multiplicities. For a gradient of one they are:

    - "self_norm": `mixture T(other_kernel)` for the kernel, `-(1 - mixture) T(kernel)` for the other kernel;
    - "exact": the inverse transpose;
    - "relative", of a dense map: `kernel`;
    - "circulant", of a convolution: `circulant_conv.mean_log_det_gradient` times the multiplicities.

    Args:
      operations: the operations of the kind of map.
      kernel: float tensor.
      other_kernel: float tensor of the same shape; its map is close to the inverse.
      gradient: "self_norm", or one of `operations.log_det_gradients`.
      mixture: Python float in [0, 1], used by "self_norm" alone.
      value: a known value to return, at no cost; `None` computes the value.
      correction: a tensor to add to the gradient by the kernel alone, or a `HeldCorrection`.
    """
    if value is None:
        value = operations.log_det(kernel)
        if gradient == "exact":
            return value
    ndims = operations.kernel_ndims
    value = tf.broadcast_to(tf.cast(value, kernel.dtype), tf.shape(kernel)[:-ndims])

    @tf.custom_gradient
    def apply(value, kernel, other_kernel):
        def gradients(upstream):
            scale = _with_dimensions(upstream, ndims)
            if gradient != "self_norm":
                return None, scale * _corrected(operations, kernel, gradient, correction), None
            d_kernel = (mixture * scale) * operations.inverse_to_gradient(other_kernel)
            d_other = None
            if mixture < 1.0:
                d_other = ((mixture - 1.0) * scale) * operations.inverse_to_gradient(kernel)
            return None, d_kernel, d_other

        return tf.identity(value), gradients

    return apply(tf.stop_gradient(value), kernel, other_kernel)


def _corrected(operations, kernel, gradient, correction):
    functions = operations.log_det_gradients
    approximation = functions[gradient](kernel)
    if not isinstance(correction, HeldCorrection):
        return _add(approximation, correction)
    error, old, largest_change = correction
    return tf.cond(
        tf.norm(approximation - old) <= tf.cast(largest_change, kernel.dtype) * tf.norm(old + error),
        lambda: approximation + error,
        lambda: functions["exact"](kernel),
    )


def _with_dimensions(x, count):
    """Appends dimensions of size 1."""
    return x[(..., *[tf.newaxis] * count)]


def _scaled(x, weight):
    return x if weight == 1.0 else weight * x


def _add(x, y):
    """`x + y`, where one of both may be `None` for nothing."""
    if x is None or y is None:
        return y if x is None else x
    return x + y


def largest(x: tf.Tensor) -> tf.Tensor:
    """The largest number; NaN if one is NaN. XLA's own maximum on the CPU ignores NaN."""
    return tf.where(tf.reduce_any(tf.math.is_nan(x)), tf.constant(np.nan, x.dtype), tf.reduce_max(x))


def log_abs_det(matrices: tf.Tensor) -> tf.Tensor:
    """`log |det|` of square matrices; `-inf` for singular ones.

    XLA has no determinant. There it is a QR decomposition, which takes some times as long.
    """
    if not is_compiled_by_xla():
        return tf.linalg.slogdet(matrices).log_abs_determinant
    diagonal = tf.linalg.diag_part(tf.linalg.qr(matrices).r)
    return tf.reduce_sum(tf.math.log(tf.abs(diagonal)), axis=-1)


def sum_to_shape(x: tf.Tensor, like: tf.Tensor | None = None, shape: tf.Tensor | None = None) -> tf.Tensor:
    """Undoes broadcasting: sums `x` over the dimensions in which the target shape is smaller.

    The target is `shape`, or without it the shape of `like`.
    """
    if like is not None and x.shape.is_fully_defined() and x.shape == like.shape:
        return x
    shape = tf.shape(like) if shape is None else shape
    _, axes = tf.raw_ops.BroadcastGradientArgs(s0=tf.shape(x), s1=shape)
    return tf.reshape(tf.reduce_sum(x, axes), shape)


def differentiated_once(gradient: tf.Tensor, *arguments: tf.Tensor) -> tf.Tensor:
    """Returns `gradient`. A second derivative by the arguments raises an error.

    Without it a second derivative would be wrong: no tape records how `gradient` depends on the arguments.

    Raises:
      NotImplementedError: when the result is differentiated.
    """

    @tf.custom_gradient
    def apply(gradient, *arguments):
        def refuse(*_):
            raise NotImplementedError(
                "Exact log-dets and solves of convolutions, and exact solves of a `LearnedInverse`, are "
                "differentiable once."
            )

        return tf.identity(gradient), refuse

    return apply(gradient, *arguments)
