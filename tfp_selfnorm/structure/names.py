"""Names for variables by what they are, the same in each process: files and optimizers go by them."""

import collections
import re

import keras
import tensorflow as tf
import tensorflow_probability as tfp

# What every Keras layer or model has; what else it has, it was given.
_OF_ALL_LAYERS = {*vars(keras.Layer()), *vars(keras.Model())}

# TFP's prefix of a variable that is made in a call.
CALLS = re.compile(r"^.*[.](sample|log_prob|prob|(forward|inverse)(_log_det_jacobian)?)[.]")


def name_variables(variables, distribution, keras_variables) -> dict:
    """A mapping from names to the variables, each once, in the order of the names.

    - Parameters of TFP objects have the name that they were given, followed by the way to them where several
      bear it, such as `shift.bijector.bijectors.0.shift`. A bijector that is alone in its name goes by it.
    - Variables of networks have the way to them, through attributes and the numbers of layers: the names
      that Keras and TensorFlow make up count what was built before.
    - Variables that no one holds, as those in closures, have their name without such counts, and numbers in
      the order in which they are given.

    Args:
      variables: the variables.
      distribution: the distribution that they were found in.
      keras_variables: mapping from references of variables to the variables of Keras that hold them.
    """
    parameters, of_networks = {}, {}
    _visit(distribution, "", parameters, of_networks)
    own = {v.ref(): own_name(v) for v in variables}
    counts = collections.Counter(own[reference] for reference in own if reference in parameters)
    named, hidden = {}, []
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
        # The call that made it, and the counts.
        name = re.sub(r"_[0-9]+(?=[.]|$)", "", CALLS.sub("", name))
        named[unused_name(name, named)] = variable
    return {name: named[name] for name in sorted(named, key=natural_order)}


def own_name(variable) -> str:
    """The name that TensorFlow gave to a variable, with dots."""
    return variable.name.split(":")[0].replace("/", ".")


def unused_name(name, taken) -> str:
    """The name, with the first number after it that makes it unlike those taken, if it is taken."""
    number, candidate = 0, name
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def _visit(value, path, parameters, of_networks):
    """Finds where variables stand below a TFP object; the first place counts."""
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
        found = value._flatten(predicate=lambda part: isinstance(part, tf.Variable), with_path=True)
        for attributes, variable in found:
            of_networks.setdefault(variable.ref(), _join(path, *attributes))


def _visit_network(value, path, of_networks, visited):
    """Finds where variables stand in a Keras layer or model."""
    if isinstance(value, keras.Variable):
        of_networks.setdefault(value.value.ref(), path)
        return
    if id(value) in visited:
        return
    visited.add(id(value))
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


def natural_order(name) -> list:
    """A key for sorting, with block_2 before block_10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]
