"""The same random numbers in every docstring example, and figures without a window; a pytest plugin."""

import os
import sys

import pytest

os.environ.setdefault("MPLBACKEND", "agg")


@pytest.fixture(autouse=True)
def _doctest_seed():
    # Not above: the process of pytest-xdist that only hands out tests needs no TensorFlow.
    import keras

    keras.utils.set_random_seed(1)
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
