"""The arguments of builders as JSON and back. Names in a file are looked up; nothing is imported."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.bijectors import LeakyReLU, LeakySquareplus, SmoothLeakyReLU, Squeeze, Standardize
from tfp_selfnorm.inverse_learning.reconstruction import Reconstruction
from tfp_selfnorm.inverse_learning.reconstruction_weight import AdaptiveWeight
from tfp_selfnorm.inverse_learning.tracking import Tracking
from tfp_selfnorm.tables import ColumnMap, Columns
from tfp_selfnorm.tables.kinds import KINDS

# Bijectors that their parameters define completely.
_TFP_BIJECTORS = (
    "Chain",
    "Cumsum",
    "Exp",
    "Expm1",
    "FillScaleTriL",
    "Identity",
    "Invert",
    "Log",
    "Log1p",
    "NormalCDF",
    "Pad",
    "Permute",
    "Power",
    "Reshape",
    "Scale",
    "ScaleMatvecDiag",
    "ScaleMatvecLU",
    "ScaleMatvecTriL",
    "Shift",
    "Sigmoid",
    "Sinh",
    "SinhArcsinh",
    "SoftClip",
    "Softfloor",
    "Softplus",
    "Softsign",
    "Square",
    "Tanh",
    "Transpose",
)
_BIJECTORS = {name: getattr(tfp.bijectors, name) for name in _TFP_BIJECTORS}
_BIJECTORS |= {
    kind.__name__: kind
    for kind in (ColumnMap, LeakyReLU, LeakySquareplus, SmoothLeakyReLU, Squeeze, Standardize)
}
_ARRAY_DTYPES = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
_ARRAY_DTYPES += ["bool", "float16", "float32", "float64"]
# TensorFlow ends the process when it makes a tensor of lists nested 255 deep.
_MAX_DEPTH = 100
_MAX_ITEMS = 10**7
_OPTIONS = {
    kind.__name__: kind for kind in (AdaptiveWeight, Columns, Reconstruction, Tracking, *KINDS.values())
}
_SCHEDULES = {name: kind for name, kind in vars(keras.optimizers.schedules).items() if isinstance(kind, type)}
# For each kind of object: the classes that a file may name, and a function that gives an object's arguments.
_OBJECTS: dict[str, tuple[dict, Callable]] = {
    "bijector": (_BIJECTORS, lambda bijector: bijector.parameters),
    "option": (_OPTIONS, vars),
    "schedule": (_SCHEDULES, lambda schedule: schedule.get_config()),
}


def encode(value: Any, name: str) -> Any:
    """Returns a value in terms of JSON.

    Args:
      value: numbers, strings, None; dtypes, shapes, arrays, constant tensors; functions registered with
        Keras; schedules of Keras; options of this package; listed bijectors of TFP and of this package; and
        lists, tuples and dicts of all these.
      name: its name in errors.

    Raises:
      TypeError: if the value, or a part of it, is of another kind.
    """
    # A float64 of numpy is an instance of float too.
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, np.floating)):
        return value
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    if isinstance(value, list):
        return [encode(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if type(value) is tuple:
        return {"tuple": encode(list(value), name)}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": _encode_items(value, name)}
    if isinstance(value, (tf.DType, np.dtype)) or (isinstance(value, type) and issubclass(value, np.generic)):
        return {"dtype": tf.as_dtype(value).name}
    if isinstance(value, tf.TensorShape) and value.rank is not None:
        return {"shape": value.as_list()}
    if _is_constant(value):
        array = np.asarray(value)
        return {"array": [array.dtype.name, list(array.shape), array.ravel().tolist(), _kind(value)]}
    for kind, (classes, arguments_of) in _OBJECTS.items():
        if classes.get(type(value).__name__) is type(value):
            return {kind: [type(value).__name__, _encode_items(arguments_of(value), name)]}
    if hasattr(value, "__name__"):
        registered_name = keras.saving.get_registered_name(value)
        if keras.saving.get_registered_object(registered_name) is value:
            return {"function": registered_name}
    raise TypeError(
        f"`{name}` is a {type(value).__name__} that cannot be saved as an argument of a builder. Register a "
        "function with `keras.saving.register_keras_serializable`. Make objects with variables inside the "
        "builder. Or build the flow yourself, give it to `FlowModel`, and save its weights."
    )


def check_bounds(value: Any, name: str) -> None:
    """Raises ValueError if lists and dicts are nested too deep, or have too many values, for an argument."""
    level, depth, count = [value], 0, 0
    while level:
        depth, count = depth + 1, count + len(level)
        if depth > _MAX_DEPTH:
            raise ValueError(f"`{name}` has lists or dicts nested more than {_MAX_DEPTH} deep.")
        if count > _MAX_ITEMS:
            raise ValueError(f"`{name}` has more than {_MAX_ITEMS} values.")
        level = [
            item
            for part in level
            if isinstance(part, (dict, list, tuple))
            for item in (part.values() if isinstance(part, dict) else part)
        ]


def decode(value: Any, name: str) -> Any:
    """Returns the value from a result of `encode`.

    Raises:
      ValueError: if `encode` does not make such a value, or a name in it is unknown here.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [decode(item, f"{name}[{i}]") for i, item in enumerate(value)]
    kind, content = (
        next(iter(value.items())) if isinstance(value, dict) and len(value) == 1 else (None, value)
    )
    if kind not in _DECODERS:
        raise ValueError(f"`{name}` of the saved model is of no known kind: {content!r:.200}.")
    try:
        return _DECODERS[kind](content, name)
    except (AttributeError, KeyError, RecursionError, TypeError) as error:
        raise ValueError(
            f"`{name}` of the saved model does not describe a {kind}: {content!r:.200}."
        ) from error


def _encode_items(items, name):
    return {key: encode(item, f"{name}.{key}") for key, item in items.items()}


def _decode_items(items, name):
    return {key: decode(item, f"{name}.{key}") for key, item in items.items()}


def _decode_array(content, name):
    if len(content) != 4 or content[0] not in _ARRAY_DTYPES:
        raise TypeError
    dtype, shape, values, kind = content
    try:
        array = np.asarray(values, dtype).reshape(shape)
    except (OverflowError, ValueError) as error:
        raise TypeError from error
    return {"tensor": tf.constant, "array": np.asarray, "scalar": lambda array: array[()]}[kind](array)


def _decode_function(content, name):
    function = keras.saving.get_registered_object(content)
    if not callable(function):
        raise ValueError(
            f"`{name}` of the saved model is the function {content!r}, which is not registered here. If you "
            "trust the file, import the module that registers it before loading."
        )
    return function


def _decode_object(kind, content, name):
    classes, _ = _OBJECTS[kind]
    class_name, items = content
    if class_name not in classes:
        raise ValueError(
            f"`{name}` of the saved model is a {kind} of the class {class_name!r}, which is none that a file "
            "may name."
        )
    return classes[class_name](**_decode_items(items, name))


def _is_constant(value):
    # Not for a variable: only its present value would be kept.
    is_tensor = isinstance(value, tf.Tensor) and hasattr(value, "numpy")
    return (is_tensor or isinstance(value, (np.ndarray, np.floating))) and value.dtype.name in _ARRAY_DTYPES


def _kind(value):
    if isinstance(value, np.floating):
        return "scalar"
    return "array" if isinstance(value, np.ndarray) else "tensor"


_DECODERS: dict[str, Callable] = {
    "tuple": lambda content, name: tuple(decode(content, name)),
    "dict": _decode_items,
    "dtype": lambda content, name: tf.as_dtype(content),
    "shape": lambda content, name: tf.TensorShape(content),
    "array": _decode_array,
    "function": _decode_function,
    **{kind: functools.partial(_decode_object, kind) for kind in _OBJECTS},
}


def encode_network(function: Callable | None, name: str) -> Any:
    """Returns a function or a Keras layer in terms of JSON; raises as `encode` does."""
    if isinstance(function, keras.Layer):
        return {"layer": keras.saving.serialize_keras_object(function)}
    return encode(function, name)


def decode_network(value: Any, name: str) -> Any:
    """Returns the function or the Keras layer of an `encode_network`; raises ValueError if it is none."""
    if not (isinstance(value, dict) and list(value) == ["layer"]):
        return decode(value, name)
    layer = keras.saving.deserialize_keras_object(value["layer"])
    if not isinstance(layer, keras.Layer):
        raise ValueError(f"`{name}` of the saved model is no Keras layer: {layer!r:.200}.")
    return layer
