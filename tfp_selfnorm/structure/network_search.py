"""Finds the networks that a distribution computes with, in its attributes and in its functions."""

import contextlib
import functools
import types
import weakref
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf
import tf_keras

from tfp_selfnorm.utils.compat import Template, flatten_layers, template_function
from tfp_selfnorm.utils.types import TfpObject

# Functions and objects of these libraries hold no network of a user.
_LIBRARIES = ("keras", "numpy", "tensorflow", "tensorflow_probability", "tf_keras")


def find_networks(distribution: TfpObject) -> list:
    """The outermost layers of Keras 3 and of tf_keras that the distribution holds, each once.

    The search covers the parameters and attributes of TFP objects, containers, and functions. Of a function
    it covers the closure, the globals that it names, the object of a method, and the arguments of a
    `functools.partial`. It does not find a network that a function gets from another place, such as a
    registry.
    """
    networks = _find(distribution, (keras.Layer, tf_keras.layers.Layer))
    inner = {id(layer) for network in networks for layer in _layers_inside(network)}
    return [network for network in networks if id(network) not in inner]


def find_templates(distribution: TfpObject) -> list:
    """The functions of `tf.compat.v1.make_template` in it. TFP's default networks are such functions."""
    return _find(distribution, Template)


def _find(distribution, kinds):
    """The objects of these classes, each once. The inside of a found object is not searched."""
    found: list = []
    visited: dict[int, Any] = {}

    def visit(value):
        # The dictionary keeps the value alive, so no other object gets its id.
        if id(value) in visited or isinstance(value, (tf.Variable, keras.Variable, tf.Tensor, type)):
            return
        visited[id(value)] = value
        if isinstance(value, kinds):
            found.append(value)
            return
        for child in _children(value):
            visit(child)

    visit(distribution)
    return found


def _children(value: Any) -> Iterable:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.FunctionType):
        return _children_of_function(value)
    if isinstance(value, Template):
        return [template_function(value)]
    if isinstance(value, tf.types.experimental.PolymorphicFunction):
        return [value.python_function]
    if isinstance(value, weakref.ref):
        # A method in a `tf.function`, for example, has a weak reference to its object.
        return [value()]
    if isinstance(value, tf.Module) or (callable(value) and not _is_of_library(type(value))):
        return getattr(value, "__dict__", {}).values()
    return ()


def _children_of_function(function):
    children = []
    for cell in function.__closure__ or ():
        # An empty cell raises.
        with contextlib.suppress(ValueError):
            children.append(cell.cell_contents)
    children += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    children += vars(function).values()
    if not _is_of_library(function):
        for name in _names(function.__code__):
            value = function.__globals__.get(name)
            # Functions of other modules are left out: through them the search would reach the whole program.
            if not isinstance(value, types.FunctionType) or value.__module__ == function.__module__:
                children.append(value)
    return children


def _names(code):
    """The global names in the code and in the functions inside it."""
    names = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names += _names(constant)
    return names


def _is_of_library(value):
    return (getattr(value, "__module__", None) or "").split(".")[0] in _LIBRARIES


def _layers_inside(network):
    if isinstance(network, keras.Layer):
        return flatten_layers(network)
    return network.submodules
