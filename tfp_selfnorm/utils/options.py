"""Checks of numbers, tensors, bools, choices and dtypes."""

import math
import numbers
from collections.abc import Callable, Container
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_selfnorm.utils.types import DType

_DTYPES = ("float32", "float64")
_SHORT_DTYPES = ("float16", "bfloat16")


def is_number(value: Any) -> bool:
    """Whether it is a real number of Python or numpy, or an array of one without dimensions.

    A bool is no number.
    """
    value = value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_number(value: Any, name: str, expected: str, is_right: Callable[[float], bool]) -> float:
    """Converts it to a float.

    Args:
      value: the number.
      name: the name of the argument.
      expected: the range of right numbers in words, for the error.
      is_right: function that tells whether a float is right.

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


def check_positive(value: Any, name: str) -> float:
    """Converts a number that must be positive and finite; raises the errors of `check_number`."""
    return check_number(value, name, "positive and finite", lambda number: 0.0 < number < math.inf)


def check_not_negative(value: Any, name: str) -> float:
    """Converts a number that must be 0 or more, and finite; raises the errors of `check_number`."""
    return check_number(value, name, "0 or more, and finite", lambda number: 0.0 <= number < math.inf)


def as_tensor(value: Any, name: str, expected: str) -> tf.Tensor:
    """Converts it to a tensor; raises TypeError, with the expected values in words, if it cannot be one."""
    try:
        return tf.convert_to_tensor(value, name=name)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be {expected}; got {value!r}.") from error


def check_bool(value: Any, name: str) -> bool:
    """Converts it to a bool of Python; raises TypeError if it is no bool of Python or numpy."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be True or False; got {value!r}.")
    return bool(value)


def check_bools(**values: Any) -> None:
    """Raises TypeError if an argument is no bool of Python or numpy."""
    for name, value in values.items():
        check_bool(value, name)


def check_choice(value: Any, name: str, choices: Container[str], expected: str = "one of {}") -> None:
    """Raises ValueError if it is none of the choices.

    Args:
      value: the choice.
      name: the name of the argument.
      choices: the strings that are right.
      expected: the right values in words, for the error; `{}` stands for the choices.
    """
    if not (isinstance(value, str) and value in choices):
        raise ValueError(f"`{name}` must be {expected.format(choices)}; got {value!r}.")


def check_dtype(dtype: DType, name: str = "dtype", allows_short: bool = False) -> tf.DType:
    """Converts it to a dtype of TensorFlow.

    Args:
      dtype: a dtype of TensorFlow or numpy, or its name.
      name: the name of the argument.
      allows_short: whether float16 and bfloat16 are right too.

    Raises:
      TypeError: if it is none of these dtypes.
    """
    allowed = (*_SHORT_DTYPES, *_DTYPES) if allows_short else _DTYPES
    try:
        found = tf.as_dtype(dtype).name if isinstance(dtype, (str, type, np.dtype, tf.DType)) else None
    except TypeError:
        found = None
    if found not in allowed:
        raise TypeError(f"`{name}` must be {', '.join(allowed[:-1])} or {allowed[-1]}; got {dtype!r}.")
    return tf.as_dtype(found)
