"""Seeds: the same integer gives the same numbers at every call."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.utils.integers import check_int, whole_number
from tfp_selfnorm.utils.types import Seed


def stateless_seed(seed: Seed, salt: str | None = None) -> Any:
    """Makes a stateless seed from a TFP seed. The result for an integer depends on the integer alone.

    TFP itself uses an integer as a seed of TensorFlow's stateful generators. Their numbers also depend on the
    global seed and on earlier draws. `None` gives a fresh seed. Raises the errors of `check_seed`.
    """
    check_seed(seed)
    number = whole_number(seed)
    if isinstance(seed, (list, tuple, np.ndarray)) and number is None:
        # TensorFlow does not convert integers of other sizes to int32 by itself.
        seed = [tf.cast(word, tf.int32) if _is_tensor(word) else int(word) for word in seed]
    if number is not None:
        # TFP keeps 32 bits of each number: the higher bits go into the first number.
        seed = (0 if -(2**31) <= number < 2**32 else number >> 32, number)
    return tfp.random.sanitize_seed(seed, salt=salt)


def split_seeds(seed: Seed, count: int, salt: str) -> list[tf.Tensor]:
    """Splits a seed into `count` stateless seeds. Raises the errors of `check_seed`."""
    return tf.unstack(tfp.random.split_seed(stateless_seed(seed), n=count, salt=salt))


def check_seed(seed: Seed) -> None:
    """Checks a seed: an int, a pair of ints (list, tuple, array, or int32 tensor), a TFP stream, or `None`.

    Raises:
      TypeError: if the seed is none of these.
      ValueError: if a number has more than 64 bits.
    """
    if seed is None or isinstance(seed, tfp.util.SeedStream):
        return
    is_pair = isinstance(seed, (list, tuple)) or (isinstance(seed, np.ndarray) and seed.ndim == 1)
    numbers = list(seed) if is_pair else [seed]
    if _is_tensor(seed):
        is_seed = seed.dtype == tf.int32 and seed.shape.is_compatible_with([2])
    else:
        is_seed = len(numbers) == (2 if is_pair else 1) and all(map(_is_whole, numbers))
    if not is_seed:
        raise TypeError(
            f"`seed` must be an int, a pair of ints, an int32 tensor of shape (2,), or None; got {seed!r}."
        )
    if not all(-(2**63) <= (whole_number(number) or 0) < 2**63 for number in numbers):
        raise ValueError(f"`seed` must have integers of at most 64 bits; got {seed!r}.")


def _is_whole(value):
    if _is_tensor(value):
        return value.dtype.is_integer and value.shape.rank == 0
    return whole_number(value) is not None


def _is_tensor(value):
    return isinstance(value, (tf.Tensor, tf.Variable))


def map_with_seeds(dataset: tf.data.Dataset, function: Callable, seed: int | None) -> tf.data.Dataset:
    """Maps the elements of a data set and a stateless seed for each; the seeds are new in each epoch.

    Args:
      dataset: the data set.
      function: a function of an element and a seed.
      seed: int, for seeds that a second run repeats, or `None`.

    Raises:
      TypeError: if `dataset` is no data set.
      ValueError: if `seed` is no int.
    """
    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(f"`dataset` must be a tf.data.Dataset; got {type(dataset).__name__}.")
    if seed is not None:
        seed = check_int(seed, "seed", -(2**63), 2**63 - 1)
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2, drop_remainder=True)
    return tf.data.Dataset.zip(dataset, seeds).map(lambda x, pair: function(x, tf.cast(pair, tf.int32)))
