"""Spares the search for garbage what takes longest, a third of the tests' time; a pytest plugin.

Reference counting frees as before. A test that needs cycles gone calls `gc.collect`.
"""

import gc

# While modules are imported and tests collected, hardly an object goes.
gc.disable()


def pytest_collection_finish():
    """The objects that there are stay to the end: no later search visits them."""
    _iterators_end_at_once()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 5)
    gc.enable()


def _iterators_end_at_once():
    """Iterators of `tf.data` get no thread that tunes them.

    That thread sleeps for longer and longer, and to delete the iterator of a dataset waits for it now and
    then: up to 40 s for what one search finds.
    """
    import tensorflow as tf

    iterate = tf.data.Dataset.__iter__

    def iterate_untuned(dataset):
        options = tf.data.Options()
        options.autotune.enabled = False
        return iterate(dataset.with_options(options))

    tf.data.Dataset.__iter__ = iterate_untuned
