"""Stochastic Lanczos quadrature against numpy's eigenvalues."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.math import log_det_estimate
from tfp_selfnorm.math.log_det_estimate import Estimate, log_det_samples

D = 7


def product_with(matrix):
    return lambda x: x @ matrix.T


def probes_of(count, num_probes, seed, size=D):
    return tfp.random.rademacher([count, num_probes, size], tf.float64, seed=seed).numpy()


def exact_samples(matrix, probes):
    """`v^T log(J^T J) v / 2` of each probe."""
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    return 0.5 * np.einsum("bpd,de,bpe->bp", probes, (vectors * np.log(values)) @ vectors.T, probes)


@pytest.fixture
def matrix(rng):
    return np.eye(D) + 0.3 * rng.normal(size=[D, D])


@pytest.mark.parametrize("how", ["eager", "graph", "xla"])
def test_with_as_many_steps_as_dimensions_each_probe_is_exact(matrix, rng, how):
    x, seed = tf.constant(rng.normal(size=[3, D])), tf.constant([1, 2])

    def samples():
        return log_det_samples(product_with(matrix), x, num_probes=5, num_steps=D, seed=seed)

    call = samples if how == "eager" else tf.function(samples, jit_compile=how == "xla")
    # The singular values of XLA have six digits.
    tolerance = 1e-5 if how == "xla" else 1e-10
    np.testing.assert_allclose(call(), exact_samples(matrix, probes_of(3, 5, seed)), rtol=tolerance)


@pytest.mark.parametrize("small", [1e-3, 1e-6])
def test_small_singular_values_are_not_lost_by_a_square(rng, small):
    """In `J^T J` they would be at or below the rounding of the largest eigenvalue."""
    left, right = (np.linalg.qr(rng.normal(size=[D, D]))[0] for _ in range(2))
    singular = np.array([small, 0.1, 0.5, 1.0, 2.0, 3.0, 4.0])
    matrix, seed = (left * singular) @ right, tf.constant([1, 2])
    found = log_det_samples(
        product_with(matrix), tf.zeros([1, D], tf.float64), num_probes=4, num_steps=D, seed=seed
    )
    expected = np.square(probes_of(1, 4, seed) @ right.T) @ np.log(singular)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_too_few_steps_give_a_bound_that_falls(matrix):
    def samples(num_steps):
        return log_det_samples(
            product_with(matrix), tf.zeros([2, D], tf.float64), num_probes=4, num_steps=num_steps, seed=[1, 2]
        ).numpy()

    exact = samples(D)
    errors = [(samples(num_steps) - exact).max() for num_steps in (1, 2, 4)]
    assert (samples(2) >= exact).all()
    assert errors[0] > 2.0 * errors[1] > 4.0 * errors[2] > 0.0


def test_the_jacobian_of_each_event_and_condition(rng):
    """`f(x) = s x^3`, with the diagonal Jacobian `3 s x^2`, for which each probe is exact."""
    x, s = rng.normal(size=[4, 3]), rng.uniform(0.5, 2.0, size=[4, 1])
    found = log_det_samples(
        lambda x, s: s * x**3, tf.constant(x), tf.constant(s), num_probes=2, num_steps=3, seed=[1, 2]
    )
    expected = np.log(3.0 * s * x**2).sum(axis=1)
    np.testing.assert_allclose(found, np.stack(2 * [expected], axis=1), rtol=1e-9)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_chunks_have_the_samples_of_the_whole(monkeypatch, matrix, rng, count):
    x, shift = rng.normal(size=[count, D]), tf.constant(rng.normal(size=[count, 1]))

    def samples():
        function = lambda x, c: x**3 @ matrix.T + c * x  # noqa: E731
        return log_det_samples(function, tf.constant(x), shift, num_probes=3, num_steps=4, seed=[1, 2])

    whole = samples()
    monkeypatch.setattr(log_det_estimate, "_ENTRIES", 2 * 2 * 3 * 4 * D)
    np.testing.assert_allclose(samples(), whole, rtol=1e-9)
    assert whole.shape == (count, 3)


def test_steps_after_the_end_of_the_krylov_space_change_nothing(rng):
    """The identity needs one step, and two singular values need two."""
    x, seed = tf.constant(rng.normal(size=[2, D])), tf.constant([1, 2])
    for size in (1.0, 1e-30, 1e30):
        found = log_det_samples(lambda x: size * x, x, num_probes=3, num_steps=D, seed=seed)  # noqa: B023
        np.testing.assert_allclose(found, D * np.log(size), rtol=1e-12, atol=1e-12)
    scale = np.array([2.0] * 3 + [5.0] * 4)
    found = log_det_samples(lambda x: scale * x, x, num_probes=3, num_steps=5, seed=seed)
    np.testing.assert_allclose(found, np.sum(np.log(scale)), rtol=1e-12)


def test_float32_is_as_exact_as_float32_can_be(matrix):
    samples = {
        dtype: log_det_samples(
            product_with(matrix.astype(dtype)),
            tf.zeros([1, D], dtype),
            num_probes=4,
            num_steps=D,
            seed=[1, 2],
        )
        for dtype in ("float32", "float64")
    }
    assert samples["float32"].dtype == tf.float32
    np.testing.assert_allclose(samples["float32"], samples["float64"], atol=1e-4)


def test_a_singular_jacobian_is_minus_infinity(matrix):
    matrix = matrix @ (np.eye(D) - np.ones([D, D]) / D)
    for singular, num_steps in ((matrix, D), (np.zeros([D, D]), 1)):
        found = log_det_samples(
            product_with(singular),
            tf.zeros([2, D], tf.float64),
            num_probes=3,
            num_steps=num_steps,
            seed=[1, 2],
        )
        assert np.isneginf(Estimate.of(found).value).all()
        assert np.isposinf(Estimate.of(found).standard_error).all()


@pytest.mark.parametrize("how", ["eager", "xla"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_jacobian_that_is_not_finite_gives_nan_to_its_event_alone(value, how):
    x = tf.constant([[value, 1.0], [2.0, 1.0]], tf.float64)

    def samples():
        return log_det_samples(lambda x: x * tf.stop_gradient(x), x, num_probes=2, num_steps=2, seed=[1, 2])

    value, error = Estimate.of(tf.function(samples, jit_compile=True)() if how == "xla" else samples())
    np.testing.assert_allclose(value, [np.nan, np.log(2.0)])
    np.testing.assert_allclose(error, [np.nan, 0.0], atol=1e-12)


def test_an_estimate_is_the_mean_with_its_standard_error(rng):
    samples = rng.normal(size=[3, 10])
    value, error = Estimate.of(tf.constant(samples))
    np.testing.assert_allclose(value, samples.mean(axis=1))
    np.testing.assert_allclose(error, samples.std(axis=1, ddof=1) / np.sqrt(10))
