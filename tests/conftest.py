"""Fixtures and helpers that several test files share.

TensorFlow is imported where it is used: the process of pytest-xdist that only hands out tests does without.
"""

import re

import numpy as np
import pytest
from slow_tests import SLOW

collect_ignore = ["helpers/mutants.py"]


def pytest_collection_modifyitems(items):
    for item in items:
        if any(re.search(pattern, item.nodeid) for pattern in SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def rng():
    return np.random.default_rng(20211107)


@pytest.fixture
def ax():
    """Axes of a figure that pyplot does not know."""
    from matplotlib.figure import Figure

    return Figure(layout="constrained").subplots()


@pytest.fixture
def make_layer(rng):
    """Makes a float64 layer of variables with random kernels; R is off the inverse unless asked."""
    import tensorflow as tf

    from tfp_selfnorm import SelfNormDense

    def make(size, inverse_is_exact=False, **options):
        kernel = np.eye(size) + 0.4 * rng.normal(size=[size, size]) / np.sqrt(size)
        other = np.linalg.inv(kernel)
        if not inverse_is_exact:
            other += 0.1 * rng.normal(size=[size, size])
        bias = tf.Variable(rng.normal(size=[size]))
        return SelfNormDense(tf.Variable(other), tf.Variable(kernel), bias, **options)

    return make


@pytest.fixture
def make_flow():
    """Puts a bijector over a standard normal base."""
    import tensorflow as tf
    import tensorflow_probability as tfp

    tfd = tfp.distributions

    def make(bijector, size, dtype=tf.float64):
        return tfd.TransformedDistribution(
            tfd.MultivariateNormalDiag(tf.zeros(size, dtype), tf.ones(size, dtype)), bijector
        )

    return make


@pytest.fixture
def events(rng):
    """Forty images of 4x4 pixels of 17 grey levels."""
    return rng.uniform(0.0, 17.0, size=[40, 4, 4]).astype(np.float32)


@pytest.fixture
def correlated(rng):
    """Events of mean 0 in the plane, and the negative log-likelihood that the best Gaussian gives them."""
    x = rng.normal(size=[1000, 2]) @ np.array([[1.0, 0.5], [0.5, 2.0]])
    x -= x.mean(axis=0)
    return x.astype(np.float32), 0.5 * np.linalg.slogdet(
        2.0 * np.pi * np.e * np.cov(x, rowvar=False, bias=True)
    )[1]


@pytest.fixture
def uncompiled():
    """Runs all functions eagerly.

    Compiling the exact operations of a convolution takes a second for each shape. test_contract.py and
    test_exact_conv.py see to it that compiled they compute the same.
    """
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
