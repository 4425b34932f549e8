"""Checks of sizes and counts."""

import numpy as np


def is_positive_int(value) -> bool:
    """Whether it is an integer of Python or numpy, 1 or more; a bool is none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value > 0


def check_positive_int(value, name) -> int:
    """Returns it as an int.

    Raises:
      ValueError: if it is no positive int.
    """
    if not is_positive_int(value):
        raise ValueError(f"`{name}` must be a positive int; got {value!r}.")
    return int(value)


def check_counts(**counts) -> None:
    """Raises ValueError if one is neither None nor a positive int."""
    for name, count in counts.items():
        if count is not None:
            check_positive_int(count, name)
