"""Seeds: the same integer gives the same numbers, at every call."""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.utils.integers import whole_number


def stateless_seed(seed, salt=None):
    """A stateless seed from a TFP seed; an integer counts as itself, whatever was drawn before.

    TFP takes an integer as a seed of TensorFlow's stateful generators, whose numbers also depend on the
    global seed and on how often one was used. `None` gives a fresh seed. Raises as `check_seed` does.
    """
    check_seed(seed)
    number = whole_number(seed)
    if isinstance(seed, (list, tuple, np.ndarray)) and number is None:
        # Of integers of other sizes TensorFlow makes no int32 itself.
        seed = [tf.cast(word, tf.int32) if _is_tensor(word) else int(word) for word in seed]
    if number is not None:
        # TFP keeps 32 bits of each number: what is above them goes into the first.
        seed = (0 if -(2**31) <= number < 2**32 else number >> 32, number)
    return tfp.random.sanitize_seed(seed, salt=salt)


def check_seed(seed) -> None:
    """Checks an int, a pair of ints (list, tuple, array, or int32 tensor), a stream of TFP, or `None`.

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
        raise ValueError(f"`seed` must be of integers of at most 64 bits; got {seed!r}.")


def _is_whole(value):
    if _is_tensor(value):
        return value.dtype.is_integer and value.shape.rank == 0
    return whole_number(value) is not None


def _is_tensor(value):
    return isinstance(value, (tf.Tensor, tf.Variable))
