"""Checks of numbers, of truth values, and of options that have a name."""

import math
import numbers

import numpy as np
import tensorflow as tf

_DTYPES = ("float32", "float64")
_SHORT_DTYPES = ("float16", "bfloat16")


def is_number(value) -> bool:
    """Whether it is a real number of Python, of numpy or an array without dimensions; a bool is none."""
    value = value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_number(value, name, expected, is_right) -> float:
    """Returns it as a float.

    Args:
      value: the number.
      name: the name of the argument.
      expected: which numbers are right, for the error.
      is_right: whether a float is right, a function.

    Raises:
      TypeError: if it is no number.
      ValueError: if it is not right.
    """
    if not is_number(value):
        raise TypeError(f"`{name}` must be a number; got {value!r}.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not is_right(number):
        raise ValueError(f"`{name}` must be {expected}; got {value!r}.")
    return number


def check_positive(value, name) -> float:
    """Returns a number that must be positive and finite; raises as `check_number` does."""
    return check_number(value, name, "positive and finite", lambda number: 0.0 < number < math.inf)


def check_not_negative(value, name) -> float:
    """Returns a number that must be 0 or more, and finite; raises as `check_number` does."""
    return check_number(value, name, "0 or more, and finite", lambda number: 0.0 <= number < math.inf)


def check_bool(value, name) -> bool:
    """Returns it as a bool of Python; raises TypeError if it is no bool of Python or numpy."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be True or False; got {value!r}.")
    return bool(value)


def check_bools(**values) -> None:
    """Raises TypeError if one of the values, so called, is no bool of Python or numpy."""
    for name, value in values.items():
        check_bool(value, name)


def check_choice(value, name, choices, expected="one of {}") -> None:
    """Raises ValueError if it is none of the names; `expected` also says what else the argument may be."""
    if not (isinstance(value, str) and value in choices):
        raise ValueError(f"`{name}` must be {expected.format(choices)}; got {value!r}.")


def check_dtype(dtype, name="dtype", allows_short=False) -> tf.DType:
    """Returns it as a dtype of TensorFlow.

    Args:
      dtype: a dtype of TensorFlow or numpy, or its name.
      name: the name of the argument.
      allows_short: whether float16 and bfloat16 are right too.

    Raises:
      TypeError: if it is no dtype, or another one.
    """
    allowed = (*_SHORT_DTYPES, *_DTYPES) if allows_short else _DTYPES
    try:
        found = tf.as_dtype(dtype).name if isinstance(dtype, (str, type, np.dtype, tf.DType)) else None
    except TypeError:
        found = None
    if found not in allowed:
        raise TypeError(f"`{name}` must be {', '.join(allowed[:-1])} or {allowed[-1]}; got {dtype!r}.")
    return tf.as_dtype(found)
