"""Checks of sizes and counts."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import tensorflow as tf


def whole_number(value: Any) -> int | None:
    """Converts an int of Python or numpy, or an array of one int without dimensions; `None` for others.

    A bool is no int.
    """
    value = value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value
    is_int = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return int(value) if is_int else None


def check_positive_int(value: Any, name: str) -> int:
    """Converts it to an int.

    Raises:
      ValueError: if it is no positive int.
    """
    number = whole_number(value)
    if number is None or number < 1:
        raise ValueError(f"`{name}` must be a positive int; got {value!r}.")
    return number


def check_int(value: Any, name: str, lowest: float = -np.inf, highest: float = np.inf) -> int:
    """Converts it to an int.

    Raises:
      ValueError: if it is no int, or out of range.
    """
    number = check_positive_int(value, name) if lowest > 0 else whole_number(value)
    if number is None:
        raise ValueError(f"`{name}` must be an int; got {value!r}.")
    if not lowest <= number <= highest:
        limits = f"{lowest} or more" if highest == np.inf else f"from {lowest} to {highest}"
        raise ValueError(f"`{name}` must be {limits}; got {value!r}.")
    return number


def as_sizes(value: Any) -> list[int | None] | None:
    """Converts a shape to its sizes, positive ints and `None` for unknown ones; `None` if it is no shape.

    An int is a shape with one dimension.
    """
    if isinstance(value, tf.TensorShape) and value.rank is not None:
        value = value.as_list()
    elif isinstance(value, tf.Tensor) and not tf.is_symbolic_tensor(value):
        value = value.numpy()
    if whole_number(value) is not None:
        value = [value]
    elif isinstance(value, np.ndarray) and value.ndim == 1:
        value = list(value)
    if not isinstance(value, (list, tuple)):
        return None
    if not all(size is None or (whole_number(size) or 0) > 0 for size in value):
        return None
    return [whole_number(size) for size in value]


def check_sizes(
    value: Any, name: str, expected: str, is_right: Callable[[list[int]], bool] = lambda sizes: True
) -> list[int]:
    """Converts a shape to its sizes.

    Args:
      value: the shape, or an int for a shape with one dimension.
      name: the name of the argument.
      expected: the right shapes in words, for the error.
      is_right: function that tells whether known sizes are right.

    Raises:
      ValueError: if a size is unknown or no positive int, or the sizes are not right.
    """
    sizes = as_sizes(value)
    if sizes is None or None in sizes or not is_right(cast(list[int], sizes)):
        raise ValueError(f"`{name}` must be {expected}; got {value!r}.")
    return cast(list[int], sizes)


def check_step(step: Any) -> None:
    """Raises TypeError if it is neither an int nor a scalar tensor or variable of a number."""
    if isinstance(step, (np.ndarray, np.generic)) or not hasattr(step, "dtype"):
        check_int(step, "step")
        return
    dtype = tf.as_dtype(step.dtype)
    if tf.TensorShape(step.shape).rank not in (0, None) or not (dtype.is_integer or dtype.is_floating):
        raise TypeError(f"`step` must be an int or a scalar tensor of a number; got {step!r}.")


def check_counts(**counts: int | None) -> None:
    """Raises ValueError if a count is neither `None` nor a positive int."""
    for name, count in counts.items():
        if count is not None:
            check_positive_int(count, name)


def check_sample_shape(n: Any, name: str = "n") -> list[int]:
    """Converts a number of samples, or a shape of them, to sizes.

    Raises:
      ValueError: if it is negative or no integer.
    """
    shape = np.atleast_1d(np.asarray(n, dtype=int if np.size(n) == 0 else None))
    if shape.dtype.kind not in "iu" or (shape < 0).any():
        raise ValueError(f"`{name}` must be an integer or a shape, 0 or more; got {n!r}.")
    return shape.tolist()
