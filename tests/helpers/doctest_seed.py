"""The same random numbers in every docstring example; a pytest plugin."""

import keras
import pytest


@pytest.fixture(autouse=True)
def _doctest_seed():
    keras.utils.set_random_seed(1)
