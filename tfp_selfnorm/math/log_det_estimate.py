"""Estimates of the log-det of a map by stochastic Lanczos quadrature, without its Jacobian.

Ubaru, Chen and Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", 2017; Golub and Kahan,
"Calculating the singular values and pseudo-inverse of a matrix", 1965.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.math.networks import Map, in_chunks, jacobian_product

# The number of entries of the Lanczos vectors that are computed at once.
_ENTRIES = 2**22
# A number is 0 if it is this number of roundings of the number that it is the remainder of.
_ROUNDINGS = 10.0
_ZERO = tf.UnconnectedGradients.ZERO


class Estimate(NamedTuple):
    """The mean of random samples, and its standard error. Both have the unit of the samples, such as nats."""

    value: tf.Tensor
    standard_error: tf.Tensor

    @classmethod
    def of(cls, samples: tf.Tensor) -> "Estimate":
        """The estimate by independent samples, in the last dimension; there must be two or more.

        Where the mean is infinite, the standard error is infinite too.
        """
        mean, count = tf.reduce_mean(samples, axis=-1), samples.shape[-1]
        squares = tf.square(samples - mean[..., tf.newaxis])
        error = tf.sqrt(tf.reduce_sum(squares, axis=-1) / (count * (count - 1.0)))
        return cls(mean, tf.where(tf.math.is_inf(mean), tf.abs(mean), error))


def log_det_samples(
    function: Map, x: tf.Tensor, *conditions: tf.Tensor, num_probes: int, num_steps: int, seed: Any
) -> tf.Tensor:
    """Random numbers whose mean is `log |det J|` in nats of the map at each event.

    With a Rademacher probe v, `v^T log(J^T J) v / 2` has the mean `tr log(J^T J) / 2`. Steps of Golub and
    Kahan's form of Lanczos's method give a Gauss quadrature of it. They work with J, and not with `J^T J`,
    whose small eigenvalues would be lost by rounding. With D steps the quadrature is exact. With n steps, its
    error falls as `((c - 1) / (c + 1))^(2 n)`, with the condition number c of J, and it is an upper bound.

    A step costs a product with the Jacobian in forward mode, one in reverse mode, and `O(n D)`, for each
    probe. The vectors are orthogonal to all earlier ones. They have the dtype of the events. The quadrature
    is in float64. Chunks of the batch follow one another; the vectors of a chunk have some 4 million entries.

    Args:
      function: the map, see `math.networks`.
      x: events, `[B, *event]`.
      *conditions: the conditions of the map.
      num_probes: number of probes for each event.
      num_steps: number of steps n, at most D.
      seed: a stateless seed.

    Returns:
      `[B, num_probes]`, without a gradient. It is NaN where a Jacobian is not finite, and `-inf` where it is
      singular, to rounding, in the space that the steps span.
    """
    size = int(np.prod(x.shape[1:]))
    probes = tfp.random.rademacher([tf.shape(x)[0], num_probes, size], x.dtype, seed=seed)

    def of_chunk(inputs):
        probes, *inputs = inputs
        events, *given = (tf.repeat(value, num_probes, axis=0) for value in inputs)
        push, pull = _products(lambda events: function(events, *given), events)
        start = tf.reshape(probes, [-1, size]) / np.sqrt(size)
        samples = size * _quadrature(*_bidiagonal(push, pull, start, num_steps))
        return tf.reshape(tf.cast(samples, x.dtype), [-1, num_probes])

    largest_chunk = max(1, _ENTRIES // (2 * num_steps * num_probes * size))
    signature = tf.TensorSpec([None, num_probes], x.dtype)
    return tf.stop_gradient(in_chunks(of_chunk, (probes, x, *conditions), largest_chunk, signature))


def _products(function: Callable, x: tf.Tensor) -> tuple[Callable, Callable]:
    """The products of the Jacobian at each event, and of its transpose, with flat vectors."""
    shape = tf.shape(x)

    def push(vectors):
        vectors = tf.ensure_shape(tf.reshape(vectors, shape), x.shape)
        return tf.reshape(jacobian_product(function, x, vectors)[1], [-1, vectors.shape[1:].num_elements()])

    def pull(vectors):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            output = function(x)
        product = tape.gradient(output, x, tf.reshape(vectors, shape), _ZERO)
        return tf.reshape(product, [-1, x.shape[1:].num_elements()])

    return push, pull


def _bidiagonal(push, pull, v, num_steps):
    """The diagonal and the one above it, `[N, n]`, of the bidiagonal matrix of J that begins with v."""

    def step(k, v, lefts, rights, diagonal, above):
        rights = tf.tensor_scatter_nd_update(rights, [[k]], [v])
        u, alpha = _orthogonal(push(v), lefts)
        lefts = tf.tensor_scatter_nd_update(lefts, [[k]], [u])
        v, beta = _orthogonal(pull(u), rights)
        diagonal = tf.tensor_scatter_nd_update(diagonal, [[k]], [alpha])
        return k + 1, v, lefts, rights, diagonal, tf.tensor_scatter_nd_update(above, [[k]], [beta])

    vectors = tf.zeros(tf.concat([[num_steps], tf.shape(v)], axis=0), v.dtype)
    numbers = vectors[..., 0]
    state = tf.while_loop(
        lambda k, *_: k < num_steps,
        step,
        (0, v, vectors, vectors, numbers, numbers),
        maximum_iterations=num_steps,
        parallel_iterations=1,
    )
    return tf.transpose(state[-2]), tf.transpose(state[-1])


def _orthogonal(vectors, basis):
    """The unit vectors of the remainders that are orthogonal to the basis, 0 for none, and their norms."""
    norms = tf.norm(vectors, axis=-1)
    for _ in range(2):
        products = tf.einsum("knd,nd->kn", basis, vectors)
        vectors -= tf.einsum("kn,knd->nd", products, basis)
    remaining = tf.norm(vectors, axis=-1)
    is_rounding = remaining <= _ROUNDINGS * np.finfo(vectors.dtype.as_numpy_dtype).eps * norms
    remaining = tf.where(is_rounding, tf.zeros_like(remaining), remaining)
    return tf.math.divide_no_nan(vectors, remaining[:, tf.newaxis]), remaining


def _quadrature(diagonal, above):
    """`e^T log(B^T B) e / 2` of bidiagonal matrices B, with the first unit vector e."""
    rounding = _ROUNDINGS * np.finfo(diagonal.dtype.as_numpy_dtype).eps
    diagonal, above = tf.cast(diagonal, tf.float64), tf.cast(above, tf.float64)
    # Behind a 0 above the diagonal, the rest of the matrix has no influence.
    is_reached = tf.math.cumprod(tf.cast(above != 0.0, tf.float64), axis=-1, exclusive=True) > 0.0
    diagonal = tf.where(is_reached, diagonal, diagonal[:, :1])
    size = diagonal.shape[-1]
    matrix = diagonal[..., tf.newaxis] * np.eye(size) + above[..., tf.newaxis] * np.eye(size, k=1)
    is_finite = tf.reduce_all(tf.math.is_finite(matrix), axis=[-2, -1])
    matrix = tf.where(is_finite[:, tf.newaxis, tf.newaxis], matrix, tf.eye(size, dtype=tf.float64))
    values, _, rights = tf.linalg.svd(matrix)
    weights = tf.square(rights[:, 0, :])
    is_zero = (values <= rounding * values[:, :1]) & (weights > rounding)
    result = tf.reduce_sum(weights * tf.math.log(values), axis=-1)
    result = tf.where(tf.reduce_any(is_zero, axis=-1), tf.constant(-np.inf, tf.float64), result)
    return tf.where(is_finite, result, tf.constant(np.nan, tf.float64))
