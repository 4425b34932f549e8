"""The config of a `FlowModel` in a file: its checks, and today's words for the words of earlier versions."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from tfp_selfnorm.flows.building import SELF_NORM_OPTIONS
from tfp_selfnorm.utils.names import check_keras_name, usable_name

RECIPE = ("builder", "arguments", "inverse_learning", "bits_per_dim", "dtype_policy")
_BUILDERS_OF_0_1_0 = [{"function": f"tfp_selfnorm>{name}_flow"} for name in ("dense", "conv", "glow")]
_STATE = ("name", "trainable_variables")


def check(config: dict[str, Any]) -> None:
    """Raises ValueError if the entries of a config are not complete, or not of their kinds."""
    unknown = set(config) - {*RECIPE, *_STATE}
    missing = set(RECIPE) - set(config)
    if unknown or missing or not isinstance(config["arguments"], dict):
        raise ValueError(
            f"The config of a FlowModel must have the entries {RECIPE}, with the arguments by name, and "
            f"may have {_STATE}; got {config}."
        )
    expected = {
        "bits_per_dim": ("True or False", lambda value: isinstance(value, bool)),
        "dtype_policy": ("the name of a dtype policy", lambda value: isinstance(value, str)),
        "name": ("a name or None", lambda value: value is None or isinstance(value, str)),
        "trainable_variables": ("a list of names", is_list_of_names),
    }
    for entry, (kind, is_right) in expected.items():
        if entry in config and not is_right(config[entry]):
            raise ValueError(f"`{entry}` of the saved model must be {kind}; got {config[entry]!r}.")


def in_present_words(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the config of a file with today's arguments of builders, where version 0.1.0 wrote others.

    It called the `layer` of a Glow `mixing`, with "exact" for the gradient "exact". It took the options of
    self-normalizing layers for other layers too, where they had no effect.
    """
    builder, arguments = config["builder"], dict(config["arguments"])
    # A call of `from_builder` has no name yet: the builder says there that `mixing` is gone.
    if "name" not in config or builder not in _BUILDERS_OF_0_1_0:
        return config
    if "mixing" in arguments:
        mixing = arguments.pop("mixing")
        arguments |= {"gradient": "exact"} if mixing == "exact" else {"layer": mixing}
    if arguments.get("layer", "self_norm") != "self_norm":
        arguments = {name: value for name, value in arguments.items() if name not in SELF_NORM_OPTIONS}
    return {**config, "arguments": arguments}


def is_own(builder: Any) -> bool:
    """Whether it is a builder of this package."""
    return getattr(builder, "__module__", "").startswith("tfp_selfnorm.")


def usable(name: Any) -> Any:
    """Returns a usable form of the name from a file: earlier versions did not check names."""
    try:
        check_keras_name(name)
    except ValueError:
        changed = usable_name(name)
        warnings.warn(
            f"TensorFlow does not take the name {name!r}; it is changed to {changed!r}.", stacklevel=3
        )
        return changed
    return name


def is_list_of_names(value: Any) -> bool:
    """Whether it is a list or tuple of strings."""
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Sets Keras's global policy while a network is built."""
    current = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(current)
