"""Spares the search for garbage among the objects of TensorFlow, a fifth of the tests' time; a pytest plugin.

Reference counting frees as before. A test that needs cycles gone calls `gc.collect`.
"""

import gc

# While modules are imported and tests collected, hardly an object goes.
gc.disable()


def pytest_collection_finish():
    """The objects that there are stay to the end: no later search visits them."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 5)
    gc.enable()
