"""Checks of names: TensorFlow refuses many of them, but only once it makes a graph, after the training."""

import re

# What a name scope takes at the root of a graph; but TFP wants no digit first, and operations no backslash.
_NAME = re.compile(r"[A-Za-z.][A-Za-z0-9_.>/-]*")


def is_name(value) -> bool:
    """Whether it is a string that TensorFlow and TFP take for a name."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def check_name(value, owner="") -> None:
    """Raises TypeError if it is no string, and ValueError if it is none that can be a name.

    Args:
      value: the name.
      owner: what errors add to the word `name`, such as " of the bijector".
    """
    if not isinstance(value, str):
        raise TypeError(f"`name`{owner} must be a string; got {value!r}.")
    if not is_name(value):
        raise ValueError(
            f"`name`{owner} must begin with a letter, A to Z or a to z, and go on with letters, digits "
            f"and any of . _ - > /, as TensorFlow asks of names; got {value!r}."
        )


def check_optional_name(value, owner="") -> None:
    """The same for a name that may be `None` or empty, and is made up then."""
    if value is not None and value != "":
        check_name(value, owner)


def check_keras_name(value, owner="") -> None:
    """The same for the name of a Keras model or of a variable, which may begin with a digit."""
    check_optional_name(re.sub("^[0-9]", "x", value) if isinstance(value, str) else value, owner)


def usable_name(value) -> str:
    """The string, with what no name may have replaced."""
    name = re.sub(r"[^A-Za-z0-9_.>/-]", "_", value)
    return name if is_name(name) else f"x{name}"
