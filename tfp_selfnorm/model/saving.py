"""Saving and loading of a `FlowModel`: as a `.keras` file, if a builder made it, and by named weights.

A new file replaces an earlier one only when it is complete.
"""

import inspect
import math
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, nullcontext
from typing import Any

import keras
import tensorflow as tf

from tfp_selfnorm.flows.building import SELF_NORM_OPTIONS
from tfp_selfnorm.inverse_learning.base import InverseLearning, as_inverse_learning
from tfp_selfnorm.model import weights_file
from tfp_selfnorm.model.serialization import check_bounds, decode, encode
from tfp_selfnorm.utils.files import atomic_path
from tfp_selfnorm.utils.names import check_keras_name, check_optional_name, usable_name
from tfp_selfnorm.utils.types import TfpObject

_RECIPE = ("builder", "arguments", "inverse_learning", "bits_per_dim", "dtype_policy", "format")
# Files of version 0.1.0 have no entry "format".
_FORMAT = 2
_RANDOM_STATE = "seed_generator_state"
_IMAGE_BUILDERS = [{"function": f"tfp_selfnorm>{name}_flow"} for name in ("conv", "glow")]
_BUILDERS_OF_0_1_0 = [{"function": "tfp_selfnorm>dense_flow"}, *_IMAGE_BUILDERS]
_STATE = ("name", "trainable_variables", "columns")


def recipe_of(
    builder: Callable[..., TfpObject],
    arguments: dict[str, Any],
    inverse_learning: InverseLearning | None,
    bits_per_dim: bool,
) -> dict[str, Any]:
    """Returns the config of a model of the flow `builder(**arguments)`."""
    try:
        as_inverse_learning(inverse_learning)
    except TypeError as error:
        raise TypeError(
            f"{error} The arguments of the builder are given by name, such as `event_shape=2`."
        ) from None
    if _is_own(builder):
        if "name" in arguments:
            check_optional_name(arguments["name"])
        # A file must make the same flow if a later version changes a default.
        parameters = inspect.signature(builder).parameters.items()
        defaults = {name: p.default for name, p in parameters if p.default is not inspect.Parameter.empty}
        arguments = defaults | arguments
        if arguments.get("layer") == "self_norm":
            arguments = SELF_NORM_OPTIONS | arguments
    return {
        "builder": encode(builder, "builder"),
        "arguments": {name: encode(value, name) for name, value in arguments.items()},
        "inverse_learning": encode(inverse_learning, "inverse_learning"),
        "bits_per_dim": bool(bits_per_dim),
        "dtype_policy": keras.config.dtype_policy().name,
        "format": _FORMAT,
    }


def model_from_config(cls: type, config: dict[str, Any], custom_objects: dict[str, Any] | None) -> Any:
    """Makes a model of the class; see `FlowModel.from_config`."""
    check_bounds(config, "config")
    config = _in_present_words(config)
    own_arguments = {name: config[name] for name in _own_parameters(cls) if name in config}
    _check_config({name: value for name, value in config.items() if name not in own_arguments})
    # An empty scope would hide the scope of `load_model`.
    scope = keras.saving.custom_object_scope(custom_objects) if custom_objects else nullcontext()
    with scope:
        builder = decode(config["builder"], "builder")
        arguments = {name: decode(value, f"arguments.{name}") for name, value in config["arguments"].items()}
        inverse_learning = decode(config["inverse_learning"], "inverse_learning")
    if "name" in arguments and _is_own(builder):
        arguments["name"] = _usable(arguments["name"])
    if not callable(builder):
        raise ValueError(f"`builder` of the saved model is no function: {builder!r}.")
    with _dtype_policy(config["dtype_policy"]):
        flow, name = builder(**arguments), _usable(config.get("name"))
        options = {"inverse_learning": inverse_learning, "bits_per_dim": config["bits_per_dim"], "name": name}
        model = cls(flow, **options, **own_arguments)
    model._recipe = {key: config[key] for key in _RECIPE}
    if "columns" in config:
        model._frames.names = {part: decode(names, "columns") for part, names in config["columns"].items()}
    if "trainable_variables" in config:
        model._named.train_only(config["trainable_variables"])
    return model


def _own_parameters(cls):
    """The names of the arguments that the constructor of a subclass adds, for a `get_config` of its own."""
    return set(inspect.signature(cls.__init__).parameters) - {"self", "distribution", *_RECIPE, *_STATE}


def config_of(model: keras.Model) -> dict[str, Any]:
    """Returns the config of a `FlowModel`; see `FlowModel.get_config`."""
    if model._recipe is None:
        raise ValueError(
            f"A {type(model).__name__} made from a distribution cannot be saved or cloned whole: make it "
            "with `from_builder`, save its weights with `save_weights` (`save_weights_only=True` in "
            "ModelCheckpoint), or `export` it."
        )
    state = {"name": model.name, "trainable_variables": model._named.trainable_names}
    if names := model._frames.names:
        state["columns"] = {part: encode(value, "columns") for part, value in names.items()}
    return {**model._recipe, **state}


def compile_from_config(model: keras.Model, config: dict[str, Any]) -> None:
    """Compiles a model with the arguments of the saved model, and makes the variables of the optimizer."""
    check_bounds(config, "compile_config")
    config = dict(config)
    optimized = config.pop("optimized_variables", None)
    if not (optimized is None or _is_list_of_names(optimized)):
        raise ValueError(f"`optimized_variables` must be a list of names; got {optimized!r}.")
    model.compile(**keras.saving.deserialize_keras_object(config))
    if optimized is not None:
        model._build_optimizer(optimized)


@contextmanager
def written_whole(model: keras.Model, filepath: str | os.PathLike, suffix: str) -> Iterator[pathlib.Path]:
    """Gives a path to write to; the complete file then replaces an earlier one at `filepath`."""
    with atomic_path(filepath, suffix, _file_size(model)) as partial:
        yield partial


def save_variables(model: keras.Model, store: MutableMapping[str, Any]) -> None:
    """Puts each variable into the store under its name."""
    model._refresh.before_files()
    for name, variable in own_variables(model).items():
        store[name] = variable.numpy()


def load_variables(model: keras.Model, store: MutableMapping[str, Any], skips_mismatch: bool) -> None:
    """Takes each variable from the store by its name; raises and warns as `FlowModel.load_weights` does."""
    own = own_variables(model)
    values, problems = weights_file.read_named(store, own)
    # Files of version 0.1.0 lack the states of random numbers.
    problems = {n: p for n, p in problems.items() if n in store or not n.endswith(_RANDOM_STATE)}
    # The weights of a layer of another model are only a part of a file.
    file = None if getattr(store, "_h5_entry_path", "") else getattr(store, "h5_file", None)
    if file is not None and not problems:
        problems = weights_file.optimizer_problems(file, model.optimizer)
        problems |= weights_file.size_problems(file, model.variables)
    if problems:
        if file is not None:
            # Else Keras would read the state of the optimizer next.
            file.close()
        _report_mismatch(problems, skips_mismatch)
    rounded = [f"`{name}`" for name in values if weights_file.loses_digits(values[name], own[name])]
    if rounded:
        warnings.warn(
            f"The file has floats of more digits than the variables here, which round them: "
            f"{', '.join(rounded)}.",
            stacklevel=3,
        )
    for name, value in values.items():
        own[name].assign(value)
    model._refresh.take_weights(are_all=not problems)


def own_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns the variables that a file keeps, by their names in it."""
    return model._named.without(model._guard.transient_state)


def _report_mismatch(problems, skips_mismatch):
    message = "; ".join(f"`{name}` {problem}" for name, problem in problems.items())
    if not skips_mismatch:
        raise ValueError(f"The weights do not fit this model, which was not changed: {message}.")
    warnings.warn(f"Some weights were skipped, and the optimizer keeps its state: {message}.", stacklevel=4)


def _file_size(model):
    """An upper bound of the bytes of the weights and of the state of the optimizer in a file."""
    variables = [*model.variables, *(model.optimizer.variables if model.optimizer is not None else [])]
    sizes = [math.prod(variable.shape) * tf.as_dtype(variable.dtype).size for variable in variables]
    # Names and the tables of the file need some more.
    return 2**16 + 2**12 * len(variables) + sum(sizes)


def _check_config(config):
    """Raises ValueError if the entries of a config are not complete, or not of their kinds."""
    unknown = set(config) - {*_RECIPE, *_STATE}
    missing = set(_RECIPE) - set(config)
    if unknown or missing or not isinstance(config["arguments"], dict):
        raise ValueError(
            f"The config of a FlowModel must have the entries {_RECIPE}, with the arguments by name, and "
            f"may have {_STATE}; got {config}."
        )
    expected = {
        "bits_per_dim": ("True or False", lambda value: isinstance(value, bool)),
        "format": (f"at most {_FORMAT}; a later version wrote it", lambda value: value in range(_FORMAT + 1)),
        "dtype_policy": ("the name of a dtype policy", lambda value: isinstance(value, str)),
        "name": ("a name or None", lambda value: value is None or isinstance(value, str)),
        "trainable_variables": ("a list of names", _is_list_of_names),
        "columns": ("lists of the names of columns", _is_columns),
    }
    for entry, (kind, is_right) in expected.items():
        if entry in config and not is_right(config[entry]):
            raise ValueError(f"`{entry}` of the saved model must be {kind}; got {config[entry]!r}.")


def _in_present_words(config):
    """The config of a file with today's arguments of builders, where version 0.1.0 wrote others.

    It called the `layer` of a Glow `mixing`, with "exact" for the gradient "exact". It took the options of
    self-normalizing layers for other layers too, where they had no effect. Its flows of images had no
    `Centering`.
    """
    if "format" in config or not isinstance(config.get("arguments"), dict):
        return config
    builder, arguments = config.get("builder"), dict(config["arguments"])
    if builder not in _BUILDERS_OF_0_1_0:
        return {**config, "format": _FORMAT}
    if "mixing" in arguments:
        mixing = arguments.pop("mixing")
        arguments |= {"gradient": "exact"} if mixing == "exact" else {"layer": mixing}
    if arguments.get("layer", "self_norm") != "self_norm":
        arguments = {name: value for name, value in arguments.items() if name not in SELF_NORM_OPTIONS}
    if builder in _IMAGE_BUILDERS:
        arguments["centering"] = False
    return {**config, "arguments": arguments, "format": _FORMAT}


def _is_own(builder):
    module = getattr(builder, "__module__", None) or ""
    # A wrapper has the module of the builder that it wraps.
    return module.startswith("tfp_selfnorm.") and not hasattr(builder, "__wrapped__")


def _usable(name):
    """A usable form of the name from a file: earlier versions did not check names."""
    try:
        check_keras_name(name)
    except ValueError:
        usable = usable_name(name)
        warnings.warn(
            f"TensorFlow does not take the name {name!r}; it is changed to {usable!r}.", stacklevel=4
        )
        return usable
    return name


def _is_columns(value):
    parts = ("events", "conditions")
    return isinstance(value, dict) and all(
        key in parts and isinstance(names, list) for key, names in value.items()
    )


def _is_list_of_names(value):
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


@contextmanager
def _dtype_policy(name):
    """Keras's global policy while a network is built."""
    current = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(current)
