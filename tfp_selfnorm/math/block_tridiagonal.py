"""Log-determinant and solve of a block-tridiagonal matrix whose blocks repeat down the diagonals.

The matrix of a zero-padded convolution has this form. There are two factorizations. Both take O(N n^2) memory
for N blocks of order n. Cyclic reduction (Golub & Van Loan, "Matrix Computations", 4th edition, section
4.5.4) takes O(n^3 log N), since the blocks repeat. Orthogonal elimination takes O(n^3 N), and is used if
cyclic reduction loses digits. Systems may have batches. The results are not for differentiation.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfp_selfnorm.math.linear import largest

# The greatest relative error of recovered probes with which the result of cyclic reduction is used.
_REDUCTION_TOLERANCE = 1e-10
_NUM_PROBES = 4


class BlockTridiagonal(NamedTuple):
    """Blocks `[..., n, n]`, in `num_blocks` rows.

    The last row is `last_lower, last_diagonal`, each other row is `lower, diagonal, upper`.
    """

    lower: tf.Tensor
    diagonal: tf.Tensor
    upper: tf.Tensor
    last_lower: tf.Tensor
    last_diagonal: tf.Tensor
    num_blocks: int


class _Level(NamedTuple):
    """One step of cyclic reduction: the system, and the inverses of the eliminated diagonal blocks."""

    system: BlockTridiagonal
    inverse: tf.Tensor
    last_inverse: tf.Tensor


class _Elimination(NamedTuple):
    """Orthogonal elimination, `[N, ...]`: the rotations of two rows of blocks, and the three blocks left."""

    rotation: tf.Tensor
    diagonal: tf.Tensor
    upper: tf.Tensor
    second_upper: tf.Tensor


def multiply(system: BlockTridiagonal, x: tf.Tensor) -> tf.Tensor:
    """The product with `x`, `[..., n, N, m]`: m vectors, each in N blocks of n."""
    above = _padded(_product(system.upper, x[..., 1:, :]), after=1)
    below = _padded(_product(system.lower, x[..., :-1, :], system.last_lower), before=1)
    return _product(system.diagonal, x, system.last_diagonal) + above + below


def log_det(system: BlockTridiagonal) -> tuple[tf.Tensor, tf.Tensor]:
    """`log |det|` in nats, `[...]`, and the `recovery_error` of its factorization, a scalar."""
    levels, value = _reduce(system)
    error = recovery_error(system, lambda rhs: _solve_reduced(levels, rhs))

    def orthogonal():
        elimination = _eliminate(system)
        pivots = tf.linalg.diag_part(elimination.diagonal)
        value = tf.reduce_sum(tf.math.log(tf.abs(pivots)), axis=[0, -1])
        return value, _elimination_error(system, elimination)

    return tf.cond(error < _REDUCTION_TOLERANCE, lambda: (value, error), orthogonal)


def log_det_gradient(system: BlockTridiagonal) -> tuple[tuple[tf.Tensor, ...], tf.Tensor]:
    """The gradients of `log |det|` for the five blocks, and the `recovery_error`.

    Three times the cost of `log_det`; O(N^2 n^3) with orthogonal elimination.
    """
    blocks = tuple(map(tf.identity, system[:-1]))
    with tf.GradientTape() as tape:
        tape.watch(blocks)
        levels, value = _reduce(BlockTridiagonal._make((*blocks, system.num_blocks)))
    gradients = tape.gradient(value, blocks, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    error = recovery_error(system, lambda rhs: _solve_reduced(levels, rhs))

    def orthogonal():
        elimination = _eliminate(system)
        return _inverse_adjoint(elimination, system), _elimination_error(system, elimination)

    return tf.cond(error < _REDUCTION_TOLERANCE, lambda: (gradients, error), orthogonal)


def solve(system: BlockTridiagonal, rhs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The solution for `rhs`, `[..., n, N, m]`, and the `recovery_error` of its factorization."""
    levels, _ = _reduce(system)
    error = recovery_error(system, lambda rhs: _solve_reduced(levels, rhs))

    def orthogonal():
        elimination = _eliminate(system)
        return _solve_eliminated(elimination, rhs), _elimination_error(system, elimination)

    return tf.cond(error < _REDUCTION_TOLERANCE, lambda: (_solve_reduced(levels, rhs), error), orthogonal)


def recovery_error(system: BlockTridiagonal, solve_function: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """The relative error of random vectors after the product and then the solve.

    A factorization of M is exact for some matrix M + E. This error estimates `||M^-1 E||_F / sqrt(n N)`, the
    error of the log-det. It is large if pivots lost digits, or if the matrix is nearly singular.
    """
    n = system.diagonal.shape[-1]
    probes = np.random.default_rng(0).standard_normal([n, system.num_blocks, _NUM_PROBES])
    probes = tf.constant(probes, system.diagonal.dtype)
    shape = system.diagonal.shape[:-2].concatenate(probes.shape)
    deviation = solve_function(multiply(system, tf.broadcast_to(probes, shape))) - probes
    error = largest(tf.norm(deviation, axis=[-3, -1])) / tf.norm(probes)
    # Infinity fails every tolerance; comparisons with NaN are always false.
    return tf.where(tf.math.is_finite(error), error, tf.constant(np.inf, error.dtype))


def _reduce(system):
    """Eliminates rows 0, 2, 4, ... of blocks at each level: the levels and `log |det|`."""
    levels, value = [], 0.0
    while system.num_blocks > 1:
        lower, diagonal, upper, last_lower, last_diagonal, count = system
        inverse, block_log_det = _inverse_and_log_det(diagonal)
        value += (count // 2) * block_log_det
        # One product holds L A^-1 L, L A^-1 U, U A^-1 L and U A^-1 U.
        sides = tf.matmul(tf.concat([lower, upper], axis=-2), inverse)
        rows = tf.split(tf.matmul(sides, tf.concat([lower, upper], axis=-1)), 2, axis=-2)
        (lower_lower, lower_upper), (upper_lower, upper_upper) = (tf.split(row, 2, axis=-1) for row in rows)
        if count % 2:
            last_inverse, block_log_det = _inverse_and_log_det(last_diagonal)
            value += block_log_det
            new_last_lower = -lower_lower
            new_last = diagonal - lower_upper - tf.matmul(upper, tf.matmul(last_inverse, last_lower))
        else:
            last_inverse = inverse
            at_last = tf.matmul(last_lower, inverse)
            new_last_lower = -tf.matmul(at_last, lower)
            new_last = last_diagonal - tf.matmul(at_last, upper)
        levels.append(_Level(system, inverse, last_inverse))
        new_diagonal = diagonal - lower_upper - upper_lower
        system = BlockTridiagonal(
            -lower_lower, new_diagonal, -upper_upper, new_last_lower, new_last, count // 2
        )
    inverse, block_log_det = _inverse_and_log_det(system.last_diagonal)
    return [*levels, _Level(system, inverse, inverse)], value + block_log_det


def _solve_reduced(levels, rhs):
    (system, inverse, last_inverse), *below = levels
    if system.num_blocks == 1:
        return _product(inverse, rhs)
    is_odd = system.num_blocks % 2
    rest = rhs[..., 1::2, :]
    own = _product(inverse, rhs[..., 0::2, :], last_inverse)
    if is_odd:
        rest -= _product(system.lower, own[..., :-1, :]) + _product(system.upper, own[..., 1:, :])
    else:
        rest -= _padded(_product(system.upper, own[..., 1:, :]), after=1)
        rest -= _product(system.lower, own, system.last_lower)
    x = _solve_reduced(below, rest)
    # The part of the kept rows in the eliminated ones. The first eliminated row has no row on its left.
    pull = _product(system.upper, x) + _padded(_product(system.lower, x[..., :-1, :]), before=1)
    if is_odd:
        pull = tf.concat([pull, _product(system.last_lower, x[..., -1:, :])], axis=-2)
        x = _padded(x, after=1)
    pairs = tf.stack([own - _product(inverse, pull, last_inverse), x], axis=-2)
    *batch, n, count, _, _ = pairs.shape
    return tf.reshape(pairs, [*batch, n, 2 * count, _last_size(x)])[..., : system.num_blocks, :]


@tf.custom_gradient
def _inverse_and_log_det(block):
    # QR, since XLA has no LU on some devices.
    q, r = tf.linalg.qr(block)
    pivots = tf.linalg.diag_part(r)
    value = tf.reduce_sum(tf.math.log(tf.abs(pivots)), axis=-1)
    # A singular pivot does not mean a singular matrix. Any number can replace it: the recovery error decides.
    r = tf.linalg.set_diag(r, tf.where(tf.abs(pivots) > 0.0, pivots, tf.ones_like(pivots)))
    inverse = tf.linalg.triangular_solve(r, tf.linalg.matrix_transpose(q), lower=False)

    def gradients(d_inverse, d_value):
        adjoint = tf.linalg.matrix_transpose(inverse)
        through_inverse = tf.matmul(adjoint, tf.matmul(d_inverse, adjoint))
        return d_value[..., tf.newaxis, tf.newaxis] * adjoint - through_inverse

    return (inverse, value), gradients


def _inverse_adjoint(elimination, system):
    """The blocks of `M^-T` summed down the diagonals, in the order of `BlockTridiagonal`."""
    n, count = system.diagonal.shape[-1], system.num_blocks
    unit = tf.eye(n, dtype=system.diagonal.dtype)[:, tf.newaxis, :]
    unit = tf.broadcast_to(unit, system.diagonal.shape[:-2].concatenate(unit.shape))

    def blocks_of_column(j):
        column = unit * tf.one_hot(j, count, dtype=unit.dtype)[:, tf.newaxis]
        inverse = _padded(_solve_eliminated(elimination, column), before=1, after=1)
        # [..., n, 3, n] to the three adjoint blocks: above, on and below the diagonal.
        near = inverse[..., j : j + 3, :]
        return tuple(tf.linalg.matrix_transpose(near[..., k, :]) for k in range(3))

    above, on, below = tf.map_fn(blocks_of_column, tf.range(count), fn_output_signature=(unit.dtype,) * 3)
    return (
        tf.reduce_sum(above[1 : count - 1], axis=0),
        tf.reduce_sum(on[: count - 1], axis=0),
        tf.reduce_sum(below[: count - 1], axis=0),
        above[-1],
        on[-1],
    )


def _eliminate(system):
    """Rotates each row of blocks with the next one, which makes the matrix upper triangular by blocks."""
    count, zero = system.num_blocks, tf.zeros_like(system.diagonal)
    one = zero + tf.eye(zero.shape[-1], dtype=zero.dtype)
    rows = [(system.lower, system.diagonal, system.upper)] * (count - 1)
    # The last row is rotated with a row of the identity below it.
    rows += [(system.last_lower, system.last_diagonal, zero), (zero, one, zero)]
    first = rows[0][1:]
    stacked = tuple(map(tf.stack, zip(*rows[1:], strict=True)))

    def step(carry, row):
        current, following = carry[:2], row
        n = zero.shape[-1]
        rotation, triangle = tf.linalg.qr(tf.concat([current[0], following[0]], axis=-2), full_matrices=True)
        rotation = tf.linalg.matrix_transpose(rotation)
        above = tf.concat([current[1], zero], axis=-1)
        right = tf.matmul(rotation, tf.concat([above, tf.concat(following[1:], axis=-1)], axis=-2))
        (upper, second_upper), (diagonal, next_upper) = (
            tf.split(part, 2, axis=-1) for part in tf.split(right, 2, axis=-2)
        )
        return diagonal, next_upper, rotation, triangle[..., :n, :], upper, second_upper

    blank = tf.concat([tf.concat([zero, zero], axis=-1)] * 2, axis=-2)
    _, _, *parts = tf.scan(step, stacked, initializer=(*first, blank, zero, zero, zero))
    return _Elimination(*parts)


def _elimination_error(system, elimination):
    return recovery_error(system, lambda rhs: _solve_eliminated(elimination, rhs))


def _solve_eliminated(elimination, rhs):
    n = rhs.shape[-3]
    blocks = tf.stack(tf.unstack(rhs, axis=-2))

    def rotate(carry, step):
        rotation, following = step
        pair = tf.matmul(rotation, tf.concat([carry[0], following], axis=-2))
        return pair[..., n:, :], pair[..., :n, :]

    following = tf.concat([blocks[1:], tf.zeros_like(blocks[:1])], axis=0)
    initial = (blocks[0], tf.zeros_like(blocks[0]))
    _, rotated = tf.scan(rotate, (elimination.rotation, following), initializer=initial)

    def substitute(carry, step):
        right, diagonal, upper, second_upper = step
        right -= tf.matmul(upper, carry[0]) + tf.matmul(second_upper, carry[1])
        return tf.linalg.triangular_solve(diagonal, right, lower=False), carry[0]

    nothing = tf.zeros_like(blocks[0])
    steps = (rotated, *elimination[1:])
    solution, _ = tf.scan(substitute, steps, initializer=(nothing, nothing), reverse=True)
    return tf.stack(tf.unstack(solution), axis=-2)


def _product(block, x, last_block=None):
    """`block @ x` for each block of `x`, `[..., n, N, m]`; the last one may have a factor of its own."""
    if last_block is not None:
        return tf.concat([_product(block, x[..., :-1, :]), _product(last_block, x[..., -1:, :])], axis=-2)
    *batch, n, count, _ = x.shape
    m = _last_size(x)
    return tf.reshape(tf.matmul(block, tf.reshape(x, [*batch, n, count * m])), [*batch, n, count, m])


def _last_size(x):
    """The last size, the only one that may be unknown until a function runs."""
    return tf.shape(x)[-1] if x.shape[-1] is None else x.shape[-1]


def _padded(x, before=0, after=0):
    """Adds blocks of zeros to `x`, `[..., n, N, m]`."""
    return tf.pad(x, [[0, 0]] * (x.shape.rank - 2) + [[before, after], [0, 0]])
