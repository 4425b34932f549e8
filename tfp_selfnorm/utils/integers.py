"""Checks of sizes and counts."""

import numpy as np
import tensorflow as tf


def whole_number(value) -> int | None:
    """The int that it is, of Python, of numpy or an array without dimensions; `None` if it is no int.

    A bool is none.
    """
    value = value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value
    is_int = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return int(value) if is_int else None


def is_positive_int(value) -> bool:
    """Whether it is an integer of Python or numpy, 1 or more; a bool is none."""
    return (whole_number(value) or 0) > 0


def check_positive_int(value, name) -> int:
    """Returns it as an int.

    Raises:
      ValueError: if it is no positive int.
    """
    if not is_positive_int(value):
        raise ValueError(f"`{name}` must be a positive int; got {value!r}.")
    return whole_number(value)


def check_int(value, name, lowest=-np.inf, highest=np.inf) -> int:
    """Returns it as an int.

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


def as_sizes(value) -> list | None:
    """The sizes of a shape, positive ints and `None` for unknown ones; `None` if it is no such shape.

    An int counts as a shape of one dimension.
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
    if not all(size is None or is_positive_int(size) for size in value):
        return None
    return [whole_number(size) for size in value]


def check_step(step) -> None:
    """Raises TypeError if it is neither an int nor a scalar tensor or variable of a number."""
    if isinstance(step, (np.ndarray, np.generic)) or not hasattr(step, "dtype"):
        check_int(step, "step")
        return
    dtype = tf.as_dtype(step.dtype)
    if tf.TensorShape(step.shape).rank not in (0, None) or not (dtype.is_integer or dtype.is_floating):
        raise TypeError(f"`step` must be an int or a scalar tensor of a number; got {step!r}.")


def check_counts(**counts) -> None:
    """Raises ValueError if one is neither None nor a positive int."""
    for name, count in counts.items():
        if count is not None:
            check_positive_int(count, name)
