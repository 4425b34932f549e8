"""Names for variables, the same in each process: files and optimizers use them."""

import collections
import re
from collections.abc import Container, Iterable, Mapping
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_selfnorm.utils.compat import variables_by_path
from tfp_selfnorm.utils.types import TfpObject

# The attributes that every Keras layer or model has. Its other attributes were set by users.
_OF_ALL_LAYERS = {*vars(keras.Layer()), *vars(keras.Model())}

# TFP's prefix of the name of a variable that is made in a call.
CALLS = re.compile(r"^.*[.](sample|log_prob|prob|(forward|inverse)(_log_det_jacobian)?)[.]")


def name_variables(
    variables: Iterable[tf.Variable], distribution: TfpObject, keras_variables: Mapping
) -> dict[str, tf.Variable]:
    """A mapping from names to the variables, each once, in the order of the names.

    - Parameters of TFP objects keep their own names. If several have one name, their paths follow it, such
      as in `shift.bijector.bijectors.0.shift`. In a path a bijector has its name, or its number if another
      bijector beside it has the same name.
    - Variables of networks have their paths, made of attributes and the numbers of layers. The default names
      of Keras and TensorFlow would not do: they count the layers that were built before.
    - Variables that no object holds, such as those in closures, have their own names without such counts,
      and numbers in the order of `variables`.

    Args:
      variables: the variables.
      distribution: the distribution that they were found in.
      keras_variables: mapping from references of variables to the Keras variables that hold them.
    """
    parameters: dict[Any, str] = {}
    of_networks: dict[Any, str] = {}
    _visit(distribution, "", parameters, of_networks)
    own = {v.ref(): own_name(v) for v in variables}
    counts = collections.Counter(own[reference] for reference in own if reference in parameters)
    named: dict[str, tf.Variable] = {}
    hidden = []
    for variable in variables:
        reference = variable.ref()
        if reference in of_networks:
            name = of_networks[reference]
        elif reference in parameters:
            name = own[reference]
            name = f"{name}.{parameters[reference]}" if counts[name] > 1 else name
        else:
            hidden.append(variable)
            continue
        named[unused_name(name, named)] = variable
    for variable in hidden:
        reference = variable.ref()
        name = own[reference]
        if reference in keras_variables:
            name = keras_variables[reference].path.replace("/", ".")
        # Without the call that made it, and without the counts.
        name = re.sub(r"_[0-9]+(?=[.]|$)", "", CALLS.sub("", name))
        named[unused_name(name, named)] = variable
    return {name: named[name] for name in sorted(named, key=natural_order)}


def own_name(variable: tf.Variable) -> str:
    """The name of a variable in TensorFlow, with dots instead of slashes."""
    return variable.name.split(":")[0].replace("/", ".")


def unused_name(name: str, taken: Container[str]) -> str:
    """The name, with a number if it is taken: the first number whose name is free."""
    number, candidate = 0, name
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def _visit(value, path, parameters, of_networks):
    """Finds the paths of variables below a TFP object; the first path counts."""
    if isinstance(value, tf.Variable):
        parameters.setdefault(value.ref(), path)
    elif isinstance(value, tfp.util.DeferredTensor):
        for i, variable in enumerate(value.variables):
            parameters.setdefault(variable.ref(), f"{path}.{i}")
    elif isinstance(value, (tfp.distributions.Distribution, tfp.bijectors.Bijector)):
        for name, child in (value.parameters or {}).items():
            _visit(child, _join(path, name), parameters, of_networks)
    elif isinstance(value, dict):
        for name, child in value.items():
            _visit(child, _join(path, name), parameters, of_networks)
    elif isinstance(value, (list, tuple)):
        names = collections.Counter(getattr(child, "name", None) for child in value)
        for i, child in enumerate(value):
            name = getattr(child, "name", None)
            is_alone = isinstance(child, tfp.bijectors.Bijector) and names[name] == 1
            _visit(child, _join(path, name if is_alone else i), parameters, of_networks)
    elif isinstance(value, keras.Layer):
        _visit_network(value, path, of_networks, set())
    elif isinstance(value, tf.Module):
        for attributes, variable in variables_by_path(value):
            of_networks.setdefault(variable.ref(), _join(path, *attributes))


def _visit_network(value, path, of_networks, visited):
    """Finds the paths of variables in a Keras layer or model."""
    if isinstance(value, keras.Variable):
        of_networks.setdefault(value.value.ref(), path)
        return
    if id(value) in visited:
        return
    visited.add(id(value))
    children: dict
    if isinstance(value, keras.Sequential) or hasattr(value, "operations"):
        children = dict(enumerate(value.layers))
    elif isinstance(value, keras.Layer):
        children = {
            name: child
            for name, child in vars(value).items()
            if name not in _OF_ALL_LAYERS and not name.startswith("_self_")
        }
    elif isinstance(value, keras.random.SeedGenerator):
        children = {"state": value.state}
    elif isinstance(value, dict):
        children = value
    elif isinstance(value, (list, tuple)):
        children = dict(enumerate(value))
    else:
        return
    for name, child in children.items():
        _visit_network(child, _join(path, name), of_networks, visited)


def _join(path, *names):
    parts = [str(name).strip("_").replace("/", ".") for name in names]
    return ".".join([path, *parts] if path else parts)


def natural_order(name: str) -> list[int | str]:
    """A sort key that puts block_2 before block_10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]
