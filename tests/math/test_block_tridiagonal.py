"""Block-tridiagonal log-dets, solves and gradients against dense matrices in numpy."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfp_selfnorm.math import block_tridiagonal
from tfp_selfnorm.math.block_tridiagonal import BlockTridiagonal

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


def random_system(rng, order, count, batch=()):
    """Diagonally heavy: cyclic reduction keeps its digits."""
    lower, diagonal, upper, last_lower, last_diagonal = 0.3 * rng.normal(size=[5, *batch, order, order])
    identity = 2.0 * np.eye(order)
    return BlockTridiagonal(
        *map(tf.constant, (lower, diagonal + identity, upper, last_lower, last_diagonal + identity)), count
    )


def system_with_singular_pivots(rng, order, count):
    """Regular for an even number of blocks, while every block of the diagonal is zero."""
    lower, upper, last_lower = np.eye(order) + 0.2 * rng.normal(size=[3, order, order])
    zero = np.zeros([order, order])
    return BlockTridiagonal(*map(tf.constant, (lower, zero, upper, last_lower, zero)), count)


def dense(system):
    lower, diagonal, upper, last_lower, last_diagonal = map(np.asarray, system[:-1])
    count, order = system.num_blocks, diagonal.shape[-1]
    matrix = np.zeros([count, order, count, order])
    for i in range(count):
        matrix[i, :, i] = diagonal if i < count - 1 else last_diagonal
        if i > 0:
            matrix[i, :, i - 1] = lower if i < count - 1 else last_lower
        if i < count - 1:
            matrix[i, :, i + 1] = upper
    return matrix.reshape(count * order, count * order)


def dense_gradients(system):
    """Of `log |det|`: the inverse transpose, summed over the places of each block."""
    count, order = system.num_blocks, system.diagonal.shape[-1]
    adjoint = np.linalg.inv(dense(system)).T.reshape(count, order, count, order)
    zero = np.zeros([order, order])
    rows = range(count - 1)
    return (
        sum((adjoint[i, :, i - 1] for i in rows if i > 0), zero),
        sum((adjoint[i, :, i] for i in rows), zero),
        sum((adjoint[i, :, i + 1] for i in rows), zero),
        adjoint[-1, :, -2] if count > 1 else zero,
        adjoint[-1, :, -1],
    )


def to_blocks(x, count):
    """Columns `[count * n, m]` as `[n, count, m]`."""
    return tf.constant(x.reshape(count, -1, x.shape[-1]).transpose(1, 0, 2))


def reduction_error(system):
    """The recovery error of cyclic reduction alone."""
    levels, _ = block_tridiagonal._reduce(system)
    return block_tridiagonal.recovery_error(system, lambda rhs: block_tridiagonal._solve_reduced(levels, rhs))


def check(system, rng):
    matrix, count = dense(system), system.num_blocks
    value, error = block_tridiagonal.log_det(system)
    np.testing.assert_allclose(value, np.linalg.slogdet(matrix)[1], **TOLERANCE)
    assert error < 1e-9
    gradients, _ = block_tridiagonal.log_det_gradient(system)
    for found, expected in zip(gradients, dense_gradients(system), strict=True):
        np.testing.assert_allclose(found, expected, **TOLERANCE)
    x = rng.normal(size=[len(matrix), 3])
    np.testing.assert_allclose(
        block_tridiagonal.multiply(system, to_blocks(x, count)), to_blocks(matrix @ x, count), **TOLERANCE
    )
    found, _ = block_tridiagonal.solve(system, to_blocks(matrix @ x, count))
    np.testing.assert_allclose(found, to_blocks(x, count), **TOLERANCE)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 12, 13, 28])
def test_random_systems(count, rng):
    system = random_system(rng, 3, count)
    # A wrong reduction would be made good by orthogonal elimination.
    assert reduction_error(system) < 1e-12
    check(system, rng)


@pytest.mark.parametrize("count", [2, 4, 6, 14])
def test_singular_pivots_do_not_break_it(count, rng):
    system = system_with_singular_pivots(rng, 3, count)
    assert reduction_error(system) > 1e-3
    check(system, rng)


def test_small_pivots_that_lose_some_digits_are_made_good(rng):
    small, zero_pivots = 1e-8 * np.eye(3), system_with_singular_pivots(rng, 3, 6)
    system = zero_pivots._replace(diagonal=small + zero_pivots.diagonal, last_diagonal=tf.constant(small))
    assert 1e-9 < reduction_error(system) < 1e-5
    check(system, rng)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_any_random_system(count, order, seed):
    """Blocks without a heavy diagonal: what cyclic reduction loses, orthogonal elimination makes good."""
    rng = np.random.default_rng(seed)
    system = BlockTridiagonal(*map(tf.constant, rng.normal(size=[5, order, order])), count)
    matrix = dense(system)
    condition = np.linalg.cond(matrix)
    if condition < 1e6:
        value, error = block_tridiagonal.log_det(system)
        np.testing.assert_allclose(value, np.linalg.slogdet(matrix)[1], rtol=1e-7, atol=1e-7)
        x = rng.normal(size=[len(matrix), 2])
        found, _ = block_tridiagonal.solve(system, to_blocks(matrix @ x, count))
        np.testing.assert_allclose(found, to_blocks(x, count), rtol=1e-6, atol=1e-6)
        assert error < 1e-7


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("make", [random_system, system_with_singular_pivots])
def test_compiled(make, jit_compile, rng):
    system = make(rng, 3, 6)
    rhs = tf.constant(rng.normal(size=[3, 6, 2]))

    @tf.function(jit_compile=jit_compile)
    def compute(blocks, rhs):
        system = BlockTridiagonal(*blocks, 6)
        value = block_tridiagonal.log_det(system)[0]
        return (
            value,
            block_tridiagonal.log_det_gradient(system)[0],
            block_tridiagonal.solve(system, rhs)[0],
        )

    value, gradients, x = compute(system[:-1], rhs)
    np.testing.assert_allclose(value, np.linalg.slogdet(dense(system))[1], **TOLERANCE)
    for found, expected in zip(gradients, dense_gradients(system), strict=True):
        np.testing.assert_allclose(found, expected, **TOLERANCE)
    np.testing.assert_allclose(block_tridiagonal.multiply(system, x), rhs, **TOLERANCE)


def test_batches_of_systems(rng):
    system = random_system(rng, 3, 5, batch=(2, 2))
    values, _ = block_tridiagonal.log_det(system)
    gradients, _ = block_tridiagonal.log_det_gradient(system)
    rhs = tf.constant(rng.normal(size=[2, 2, 3, 5, 4]))
    solutions, _ = block_tridiagonal.solve(system, rhs)
    for index in np.ndindex(2, 2):
        one = BlockTridiagonal(*(block[index] for block in system[:-1]), 5)
        np.testing.assert_allclose(values[index], np.linalg.slogdet(dense(one))[1], **TOLERANCE)
        for found, expected in zip(gradients, dense_gradients(one), strict=True):
            np.testing.assert_allclose(found[index], expected, **TOLERANCE)
        np.testing.assert_allclose(block_tridiagonal.multiply(one, solutions[index]), rhs[index], **TOLERANCE)


@pytest.mark.parametrize("jit_compile", [None, True], ids=["eager", "xla"])
def test_one_bad_system_of_a_batch_sends_all_to_orthogonal_elimination(rng, jit_compile):
    """XLA's maximum passes over NaN: the error of a singular pivot must be a number."""
    pair = system_with_singular_pivots(rng, 3, 6), random_system(rng, 3, 6)
    system = BlockTridiagonal(*map(tf.stack, zip(*(one[:-1] for one in pair), strict=True)), 6)

    def compute(blocks):
        system = BlockTridiagonal(*blocks, 6)
        return block_tridiagonal.log_det(system)[0], block_tridiagonal.log_det_gradient(system)[0]

    compiled = compute if jit_compile is None else tf.function(compute, jit_compile=jit_compile)
    values, gradients = compiled(system[:-1])
    for i, one in enumerate(pair):
        np.testing.assert_allclose(values[i], np.linalg.slogdet(dense(one))[1], **TOLERANCE)
        for found, expected in zip(gradients, dense_gradients(one), strict=True):
            np.testing.assert_allclose(found[i], expected, **TOLERANCE)


def test_the_error_tells_a_singular_system(rng):
    regular = random_system(rng, 3, 6)
    flat = np.array(regular.diagonal)
    zero = np.zeros([3, 3])
    flat[:, 0] = 0.0
    singular = BlockTridiagonal(*map(tf.constant, (zero, flat, zero, zero, flat)), 6)
    for compute in (block_tridiagonal.log_det, block_tridiagonal.log_det_gradient):
        assert compute(singular)[-1] > 1e-3
    nan = BlockTridiagonal(*(np.nan * block for block in regular[:-1]), 6)
    assert block_tridiagonal.log_det(nan)[1] == np.inf
