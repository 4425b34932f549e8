"""Checks of names, and counted nouns.

Without the checks TensorFlow refuses many names only later, when it makes a graph.
"""

import re
from typing import Any

# The names that a name scope at the root of a graph takes, without a digit first (for TFP) and without a
# backslash (for operations).
_NAME = re.compile(r"[A-Za-z.][A-Za-z0-9_.>/-]*")


def check_name(value: Any, owner: str = "") -> None:
    """Raises TypeError if it is no string, and ValueError if it cannot be a name.

    Args:
      value: the name.
      owner: words that errors append to `name`, such as " of the bijector".
    """
    if not isinstance(value, str):
        raise TypeError(f"`name`{owner} must be a string; got {value!r}.")
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"`name`{owner} must begin with a letter, A to Z or a to z, and have only letters, digits "
            f"and . _ - > / after it, as TensorFlow requires; got {value!r}."
        )


def check_optional_name(value: Any, owner: str = "") -> None:
    """The same for a name that may be `None` or empty; it then gets a default."""
    if value is not None and value != "":
        check_name(value, owner)


def check_keras_name(value: Any, owner: str = "") -> None:
    """The same for the name of a Keras model or a variable. It may begin with a digit."""
    check_optional_name(re.sub("^[0-9]", "x", value) if isinstance(value, str) else value, owner)


def usable_name(value: str) -> str:
    """Replaces the characters that a name must not have."""
    name = re.sub(r"[^A-Za-z0-9_.>/-]", "_", value)
    return name if _NAME.fullmatch(name) else f"x{name}"


def plural(number: int, noun: str) -> str:
    """The number with the noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
