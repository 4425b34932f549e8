"""The same random numbers in every docstring example; a pytest plugin."""

import pytest


@pytest.fixture(autouse=True)
def _doctest_seed():
    # Not above: the process of pytest-xdist that only hands out tests needs no TensorFlow.
    import keras

    keras.utils.set_random_seed(1)
