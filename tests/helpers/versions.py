"""Marks of tests that need a version of a package."""

import keras
import pytest

keras_3_12 = pytest.mark.skipif(
    tuple(map(int, keras.__version__.split(".")[:2])) < (3, 12),
    reason="Keras before 3.12 takes no `None` among labels, and no vectors in the logs of its progress bar",
)
