"""Finds the networks that a distribution computes with, also those that only its functions know."""

import functools
import types
import weakref

import keras
import tensorflow as tf
import tf_keras
from tensorflow.python.ops.template import Template

# Their functions and objects hold no network of a user.
_LIBRARIES = ("keras", "numpy", "tensorflow", "tensorflow_probability", "tf_keras")


def find_networks(distribution) -> list:
    """The outermost layers of Keras 3 and of tf_keras that the distribution holds, each once.

    They are searched in the parameters and the attributes of TFP objects, in containers, and in functions: in
    their closures, in the globals that they name, in the objects that they are methods of, and in the
    arguments of `functools.partial`. A network that a function takes from elsewhere, as from a registry, is
    not found.
    """
    return _outermost(_find(distribution, (keras.Layer, tf_keras.layers.Layer)))


def find_templates(distribution) -> list:
    """The functions of `tf.compat.v1.make_template` that it calls, as TFP's default networks are."""
    return _find(distribution, Template)


def _find(distribution, kinds):
    """The objects of these kinds, each once; of an object that is found the inside is not searched."""
    found, visited = [], {}

    def visit(value):
        # The value is kept, so that no other object gets its id.
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


def _children(value):
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
        return [value._func]
    if isinstance(value, tf.types.experimental.PolymorphicFunction):
        return [value.python_function]
    if isinstance(value, weakref.ref):
        # Such as the object that a method in a `tf.function` belongs to.
        return [value()]
    if isinstance(value, tf.Module) or (callable(value) and not _is_of_library(type(value))):
        return getattr(value, "__dict__", {}).values()
    return ()


def _children_of_function(function):
    children = [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]
    children += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    children += vars(function).values()
    if not _is_of_library(function):
        for name in _names(function.__code__):
            value = function.__globals__.get(name)
            # Other functions of a program may name all of it.
            if not isinstance(value, types.FunctionType) or value.__module__ == function.__module__:
                children.append(value)
    return children


def _names(code):
    """What the code and the functions inside it may name."""
    names = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names += _names(constant)
    return names


def _is_empty(cell):
    try:
        cell.cell_contents  # noqa: B018 - it raises where there are none
    except ValueError:
        return True
    return False


def _is_of_library(value):
    return (getattr(value, "__module__", None) or "").split(".")[0] in _LIBRARIES


def _outermost(networks):
    inner = {id(layer) for network in networks for layer in _layers_inside(network)}
    return [network for network in networks if id(network) not in inner]


def _layers_inside(network):
    if isinstance(network, keras.Layer):
        return network._flatten_layers(include_self=False)
    return network.submodules
