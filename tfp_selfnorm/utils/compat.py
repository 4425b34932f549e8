"""Private names of other packages, each with the reason; tried with TensorFlow 2.21 and TFP 0.25."""

import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow_probability.python.internal import cache_util

# TensorFlow has no public name for the values of several tensors, such as TFP's bijectors, that go into and
# out of a `tf.function`.
CompositeTensor = tf.__internal__.CompositeTensor
# The cache of a bijector whose passes compute the log-det too, as TFP's `FFJORD` does; TFP keeps it private.
BijectorCacheWithGreedyAttrs = cache_util.BijectorCacheWithGreedyAttrs


def could_record_gradients() -> bool:
    """Whether a gradient tape is open; TensorFlow tells it by no public name."""
    return record.could_possibly_record()


def is_step_of_many_workers(strategy) -> bool:
    """Whether a step runs under several workers; no public name tells the mode of the strategy."""
    is_multi_worker = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return is_multi_worker and strategy.extended._in_multi_worker_mode()
